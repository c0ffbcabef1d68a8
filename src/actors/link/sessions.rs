//! ractor_cluster's `NodeServer`, made safe: no listener of its own, streams only from here.

use ractor::{Actor, ActorProcessingErr, ActorRef};
use ractor_cluster::node::{NodeConnectionMode, NodeServerSessionInformation};
use ractor_cluster::{
    BoxRead, BoxWrite, ClusterBidiStream, NodeEventSubscription, NodeServer, NodeServerMessage,
};
use tokio::io::DuplexStream;

use crate::actors::link::{AttemptId, Msg, Myself, send};
use crate::actors::supervisor::Address;

/// Starts the `NodeServer` as a child of the link actor, without its built-in listener.
pub(super) async fn server(
    myself: &Myself,
    link: &Address<Msg>,
) -> Result<ActorRef<NodeServerMessage>, ActorProcessingErr> {
    let (short, host) = (myself.name.short().to_owned(), myself.name.host().to_owned());
    // TLS has proven membership; ractor's own cookie only keeps clusters apart once more.
    let cookie = myself.cluster.to_string();
    let isolated = Some(NodeConnectionMode::Isolated);
    let server = NodeServer::new(0, cookie, short, host, None, isolated)
        .with_listen_addr(std::net::Ipv4Addr::LOCALHOST.into());
    let (server, _) = Actor::spawn_linked(None, server, (), link.get_cell()).await?;
    // Unlinked first, or the server would start its listener again. Killed, because a listener that
    // waits in `accept` would obey a stop only after its next connection.
    for listener in server.get_cell().get_children() {
        listener.unlink(server.get_cell());
        listener.kill_and_wait(None).await?;
    }
    let subscription = Box::new(Subscription(link.clone()));
    server.cast(NodeServerMessage::PortChanged { port: myself.advertise.port() })?;
    server.cast(NodeServerMessage::SubscribeToEvents { id: "link".to_owned(), subscription })?;
    Ok(server)
}

/// Gives ractor its end of the pipe.
pub(super) fn hand_over(
    server: &ActorRef<NodeServerMessage>,
    pipe: DuplexStream,
    attempt: AttemptId,
    is_server: bool,
) {
    let stream = Box::new(Pipe { pipe, label: label(attempt) });
    // A server that ended takes the link actor down with it, and all of this again.
    drop(server.cast(NodeServerMessage::ConnectionOpenedExternal { stream, is_server }));
}

fn label(attempt: AttemptId) -> String {
    match attempt {
        AttemptId::Outbound(n) => format!("out-{n}"),
        AttemptId::Inbound(n) => format!("in-{n}"),
    }
}

fn attempt(label: &str) -> Option<AttemptId> {
    match label.split_once('-')? {
        ("out", n) => n.parse().ok().map(AttemptId::Outbound),
        ("in", n) => n.parse().ok().map(AttemptId::Inbound),
        _ => None,
    }
}

struct Pipe {
    pipe: DuplexStream,
    label: String,
}

impl ClusterBidiStream for Pipe {
    fn split(self: Box<Self>) -> (BoxRead, BoxWrite) {
        let (reader, writer) = tokio::io::split(self.pipe);
        (Box::new(reader), Box::new(writer))
    }

    fn peer_label(&self) -> Option<String> {
        Some(self.label.clone())
    }
}

struct Subscription(Address<Msg>);

impl Subscription {
    fn forward(
        &self,
        session: NodeServerSessionInformation,
        message: impl FnOnce(AttemptId, NodeServerSessionInformation) -> Msg,
    ) {
        if let Some(attempt) = attempt(&session.peer_addr) {
            send(&self.0, message(attempt, session));
        }
    }
}

impl NodeEventSubscription for Subscription {
    fn node_session_opened(&self, session: NodeServerSessionInformation) {
        self.forward(session, |attempt, session| Msg::SessionOpened(attempt, session.actor));
    }

    fn node_session_disconnected(&self, session: NodeServerSessionInformation) {
        self.forward(session, |attempt, _| Msg::SessionGone(attempt));
    }

    fn node_session_authenticated(&self, _session: NodeServerSessionInformation) {}

    fn node_session_ready(&self, session: NodeServerSessionInformation) {
        self.forward(session, |attempt, session| Msg::SessionReady(attempt, session.node_id));
    }
}
