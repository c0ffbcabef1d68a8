//! The admin socket: one JSON request a line, one JSON answer a line; `watch` and `subscribe` are answered
//! by a line for every event or message until the asker goes. A line with `bytes` is followed by so many
//! bytes of payload.
//!
//! Only the node's own user reaches the socket (mode 0600 in a directory 0700). Invariants: a request
//! has at most 4 KiB and five seconds to arrive, a payload 16 MiB and as long again; a bad one gets an
//! error for answer, and the node goes on; a watcher that does not read loses events and is told how
//! many, and one that takes nothing for five seconds is let go.

use std::fmt::Display;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::actors::supervisor::Child;
use crate::gateway::gauges;
use crate::gateway::history;
use crate::gateway::issue::Issuing;
use crate::gateway::rotation::Rotate;
use crate::gateway::status::{Figures, RevokedStatus};
use crate::gateway::view::NodeView;
use crate::io::identity::Revocee;
use crate::proto::enrol::RequestId;
use crate::proto::event::{Deed, Operator, Query};
use crate::proto::node::NodeName;
use crate::proto::topic::Topic;

mod accept;
pub mod enrol;
mod messages;

/// How an operator came here, in the trail.
const VIA: &str = "admin socket";
/// Longest request line, in bytes.
const MAX_REQUEST: u64 = 4096;
/// Time for a request to arrive and its answer to be taken.
const PATIENCE: Duration = Duration::from_secs(5);

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(strum::VariantNames), strum(serialize_all = "snake_case"))]
#[serde(tag = "ask", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// [`NodeStatus`](crate::gateway::status::NodeStatus).
    Status,
    /// [`NodeRecord`](crate::gateway::status::NodeRecord)s of all nodes that are known, the one that is asked first.
    Nodes,
    /// [`TopologyStatus`](crate::gateway::status::TopologyStatus).
    Topology,
    /// The metrics as Prometheus text, a string.
    Metrics,
    /// [`ClusterView`](crate::gateway::status::ClusterView).
    ClusterView,
    /// [`Figures`].
    Figures,
    /// A [`Page`](crate::proto::event::Page) of what is known.
    Events(Query),
    /// A [`Page`](crate::proto::event::Page) of what is stored, with the hashes.
    Export(Query),
    /// [`Merged`](history::Merged): what happened on every node.
    EventsAll(Query),
    /// [`Verified`](crate::proto::chain::Verified): whether the stored events are as they were written.
    Verify,
    /// The name of the node, then events as they happen, one a line: those after a number, or from now on.
    Watch(Query),
    /// A broadcast to every node: [`Sent`]. The payload follows.
    Publish {
        /// On what topic.
        topic: String,
        /// Of the payload.
        bytes: usize,
    },
    /// The name of the node, then messages as they come: [`Line`]s.
    Subscribe {
        /// A topic, or all below one.
        pattern: String,
    },
    /// A request to a name. The payload follows; the answer is the length of the reply, which follows it.
    Call {
        /// NAME or NAME@NODE.
        to: String,
        /// For how long, in milliseconds.
        within: u64,
        /// Of the payload.
        bytes: usize,
    },
    /// Ends the link to a peer; it is dialed again later.
    Disconnect {
        /// Which.
        node: NodeName,
    },
    /// Has a node forgotten, here and everywhere; it comes back when it lives.
    Forget {
        /// Which.
        node: NodeName,
        /// Takes that back instead.
        #[serde(default)]
        undo: bool,
    },
    /// Revokes certificates: [`RevokedStatus`].
    Revoke {
        /// NAME@HOST, or a serial number in hexadecimal.
        certificates: String,
        /// Why.
        #[serde(default)]
        why: Option<String>,
    },
    /// Sends all clients to other nodes, and takes no more.
    Drain {
        /// Takes clients again instead.
        #[serde(default)]
        undo: bool,
        /// Over so many seconds; otherwise over the node's own drain time.
        #[serde(default)]
        over_s: Option<u64>,
    },
    /// Has the authority or the nodes' certificates replaced.
    Rotate {
        /// What is done.
        what: Rotate,
    },
    /// [`RotationStatus`](crate::gateway::rotation::RotationStatus).
    Rotation,
    /// Makes an invitation: [`Invited`](enrol::Invited).
    Invite(enrol::Invite),
    /// The requests for certificates that wait for approval: [`Waiting`](enrol::Waiting)s.
    Requests,
    /// Has a machine get the certificate that it asks for; the answer is its name.
    Approve {
        /// The request.
        request: RequestId,
    },
    /// Denies a machine the certificate that it asks for; the answer is its name.
    Deny {
        /// The request.
        request: RequestId,
    },
    /// Revokes what was issued to a name, so that another key may have it; how many certificates that were.
    Release {
        /// Which.
        node: NodeName,
    },
    /// Only in a node started with `--chaos`: kills an actor as a crash would.
    Kill {
        /// Its name; an unknown one is answered with all names.
        actor: String,
    },
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer<T> {
    /// What [`Request`] says of it.
    Ok(T),
    /// Why there is none.
    Error(String),
}

/// What became of a broadcast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// Subscribers in this node.
    pub local: usize,
    /// Peers it went to.
    pub peers: usize,
    /// Peers that want it and did not get it.
    pub missed: usize,
}

/// What a subscriber is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// A message; its payload follows.
    Message {
        /// Its topic.
        topic: Topic,
        /// The node that published it.
        from: NodeName,
        /// Of the payload.
        bytes: usize,
    },
    /// So many messages were dropped: the subscriber was too slow.
    Missed(u64),
}

/// The supervised server on this socket, and on each one that takes its place.
pub fn child(
    view: NodeView,
    issuing: Issuing,
    socket: tokio::sync::watch::Receiver<Arc<StdListener>>,
) -> Child {
    let metrics = view.metrics.clone();
    Child::task("admin", &metrics, move || {
        Box::pin(accept::serve((view.clone(), issuing.clone()), socket.clone()))
    })
}

async fn talk((view, issuing): &(NodeView, Issuing), stream: UnixStream) -> std::io::Result<()> {
    let operator = Operator::local(stream.peer_cred()?.uid());
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    let mut limited = (&mut reader).take(MAX_REQUEST);
    tokio::time::timeout(PATIENCE, limited.read_until(b'\n', &mut line)).await??;
    let request = match serde_json::from_slice(&line) {
        Ok(request) => request,
        Err(error) => return refuse(&mut writer, format!("not a request: {error}")).await,
    };
    let to = &mut writer;
    match request {
        Request::Status => answer(to, view.status()).await,
        Request::Nodes => answer(to, view.records()).await,
        Request::Topology => answer(to, view.topology()).await,
        Request::Metrics => tried(to, gauges::text(view)).await,
        Request::ClusterView => answer(to, view.sight()).await,
        Request::Figures => answer(to, Figures::of(view.metrics.traffic())).await,
        Request::Events(query) => answer(to, history::here(view, query).await).await,
        Request::Export(query) => {
            tried(to, view.journal.stored(history::capped(query)).await).await
        }
        Request::EventsAll(query) => answer(to, history::everywhere(view, &query).await).await,
        Request::Verify => tried(to, view.journal.verify().await).await,
        Request::Watch(query) => watch(view, &query, reader, writer).await,
        Request::Publish { topic, bytes } => {
            messages::publish(view.bus.exchange(), &topic, bytes, (reader, writer)).await
        }
        Request::Call { to, within, bytes } => {
            let within = Duration::from_millis(within);
            messages::call(view, &to, within, bytes, (reader, writer)).await
        }
        Request::Subscribe { pattern } => {
            messages::subscribe(view.bus.exchange(), &pattern, (reader, writer)).await
        }
        Request::Disconnect { node: peer } => {
            act(to, view, Deed::Disconnect { peer }, operator).await
        }
        Request::Forget { node: peer, undo: false } => {
            act(to, view, Deed::Forget { peer }, operator).await
        }
        Request::Forget { node: peer, undo: true } => {
            act(to, view, Deed::Restore { peer }, operator).await
        }
        Request::Revoke { certificates, why } => {
            tried(to, revoked(view, &certificates, why, operator).await).await
        }
        Request::Drain { undo: false, over_s } => {
            let over = over_s.map(Duration::from_secs);
            view.drain(over, operator, VIA.to_owned());
            answer(to, ()).await
        }
        Request::Drain { undo: true, .. } => act(to, view, Deed::Undrain, operator).await,
        Request::Rotate { what } => {
            tried(to, view.rotations.rotate(what, operator, VIA).await).await
        }
        Request::Rotation => answer(to, view.rotations.status().await).await,
        Request::Invite(invite) => tried(to, enrol::invite(issuing, invite, operator).await).await,
        Request::Requests => tried(to, enrol::requests(issuing).await).await,
        Request::Approve { request } => {
            tried(to, issuing.decide(request, true, operator, VIA).await).await
        }
        Request::Deny { request } => {
            tried(to, issuing.decide(request, false, operator, VIA).await).await
        }
        Request::Release { node } => tried(to, issuing.release(node, operator, VIA).await).await,
        Request::Kill { actor } => act(to, view, Deed::Kill { actor }, operator).await,
    }
}

async fn act(
    writer: &mut OwnedWriteHalf,
    view: &NodeView,
    deed: Deed,
    operator: Operator,
) -> std::io::Result<()> {
    tried(writer, view.perform(deed, operator, VIA.to_owned())).await
}

/// Longest reason of an operator, in bytes.
const MAX_WHY: usize = 256;

async fn revoked(
    view: &NodeView,
    certificates: &str,
    why: Option<String>,
    operator: Operator,
) -> Result<RevokedStatus, String> {
    let what: Revocee =
        certificates.parse().map_err(|error| format!("{certificates:?}: {error}"))?;
    if why.as_ref().is_some_and(|why| why.len() > MAX_WHY) {
        return Err(format!("a reason has at most {MAX_WHY} bytes"));
    }
    view.revoke(what, why, operator, "admin socket".to_owned()).await
}

async fn watch(
    view: &NodeView,
    query: &Query,
    mut reader: BufReader<OwnedReadHalf>,
    mut writer: OwnedWriteHalf,
) -> std::io::Result<()> {
    // From here on nothing is missed: what the answer does not show yet comes as news.
    let mut events = view.journal.follow(query.after);
    answer(&mut writer, &view.name).await?;
    loop {
        let mut more = [0; 1];
        let event = tokio::select! {
            event = events.recv() => event,
            // Nothing is asked on this connection any more: it ends, or is to be ended.
            _ = reader.read(&mut more) => return Ok(()),
        };
        let Some(event) = event else { return Ok(()) };
        if query.fits(&event) {
            send_line(&mut writer, &event).await?;
        }
    }
}

async fn answer(writer: &mut OwnedWriteHalf, what: impl Serialize) -> std::io::Result<()> {
    send_line(writer, &Answer::Ok(what)).await
}

async fn refuse(writer: &mut OwnedWriteHalf, why: impl Display) -> std::io::Result<()> {
    send_line(writer, &Answer::<()>::Error(why.to_string())).await
}

async fn tried<T: Serialize, E: Display>(
    writer: &mut OwnedWriteHalf,
    done: Result<T, E>,
) -> std::io::Result<()> {
    match done {
        Ok(what) => answer(writer, what).await,
        Err(why) => refuse(writer, why).await,
    }
}

async fn send_line(writer: &mut OwnedWriteHalf, what: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    tokio::time::timeout(PATIENCE, writer.write_all(&line)).await?
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::actors::discovery::Discovery;
    use crate::actors::event_log::{self, EventLog, Journal};
    use crate::actors::exchange::Exchange;
    use crate::actors::files::Files;
    use crate::actors::link::Link;
    use crate::actors::news::{Bus, Events, WAITING};
    use crate::actors::peers::{Peers, Row};
    use crate::actors::registry::Registry;
    use crate::actors::supervisor::{ActorTable, Root, Tree, start};
    use crate::actors::tests::keeper;
    use crate::actors::timer;
    use crate::gateway::rotation::Rotations;
    use crate::gateway::status::NodeStatus;
    use crate::gateway::view::OwnCertificates;
    use crate::io::identity::enrol::Rules;
    use crate::io::identity::{Authority, Validity};
    use crate::io::metrics::{Count, Metrics};
    use crate::io::store::{Chain, Store};
    use crate::io::{clock, sockets};
    use crate::proto::capability::Capabilities;
    use crate::proto::event::{Author, Event, Recorded, Status};
    use crate::proto::membership::PeerView;
    use crate::proto::node::{Incarnation, KeyId};
    use crate::proto::registry::{Entry, Known, Ruling, State};
    use crate::proto::restart::{Intensity, Strategy};
    use serde::de::DeserializeOwned;
    use std::sync::atomic::AtomicU64;
    use std::time::UNIX_EPOCH;
    use tempfile::TempDir;
    use tokio::sync::watch;

    pub(crate) struct World {
        pub(crate) dir: TempDir,
        metrics: Metrics,
        peers: Peers,
        pub(crate) bus: Bus,
        root: Root,
        _socket: sockets::AdminSocket,
    }

    fn name(text: &str) -> NodeName {
        text.parse().expect("valid")
    }

    /// `x@127.0.0.1`, which is forgotten.
    fn forgotten() -> Known {
        let author = Author::new(name("b@127.0.0.1"), Operator::local(1));
        let ruling = Ruling { forgotten: true, at: clock::millis(), author, last: None };
        let (origin, state) = (name("x@127.0.0.1"), State::Ruled(Box::new(ruling)));
        let entry = Entry { origin, incarnation: Incarnation(1), version: 1, state, seal: None };
        Known { entry: Some(entry), ..Known::new(name("x@127.0.0.1"), 0) }
    }

    fn own_certificates() -> OwnCertificates {
        OwnCertificates { may: Capabilities::ALL, ..OwnCertificates::default() }
    }

    /// The server, and an actor that can be killed when there is `chaos`.
    pub(crate) async fn world(chaos: bool) -> World {
        let dir = tempfile::tempdir().expect("a directory");
        let (metrics, roster) = (Metrics::default(), ActorTable::default());
        let peers = Peers::new(&metrics, []);
        let bus = Bus::new(&Exchange::new("a@127.0.0.1".parse().expect("valid"), &metrics));
        let victim = EventLog::new(&metrics);
        let store = Store::open(&dir.path().join("data"), clock::wall()).expect("opens").0;
        let (store, life) = (Arc::new(store), Arc::new(AtomicU64::new(3)));
        let certs = dir.path().join("certs");
        let authority = Authority::init(&certs, clock::wall()).expect("a CA");
        let (own, valid) = (name("a@127.0.0.1"), Validity::leaf(clock::wall()));
        let identity = Arc::new(authority.issue(&certs, &own, valid).expect("a leaf"));
        let chain = Chain::new(store.clone(), name("a@127.0.0.1")).expect("its own");
        let (trail, limits) = (bus.trail().clone(), event_log::LIMITS);
        let journal = Journal::open(chain, trail, identity.clone(), life, limits).expect("opens");
        let lists = keeper(&identity, &bus, &metrics, &Link::new(&metrics));
        let admin = NodeView {
            rotations: Rotations::new(
                certs.clone(),
                identity.clone(),
                (Files::new(&metrics), lists.clone()),
                (Registry::new(&metrics, []), bus.clone()),
            ),
            journal: journal.clone(),
            clients: Arc::default(),
            name: name("a@127.0.0.1"),
            id: KeyId([1; 16]),
            cluster: KeyId([2; 16]),
            incarnation: Arc::new(AtomicU64::new(3)),
            listen: ([127, 0, 0, 1], 4697).into(),
            http: None,
            started: timer::now(),
            peers: peers.clone(),
            discovery: Discovery::new(&metrics),
            matrix: watch::channel(Arc::default()).1,
            registry: Registry::new(&metrics, [forgotten()]),
            bus: bus.clone(),
            metrics: metrics.clone(),
            store: store.clone(),
            history: None,
            certificates: Arc::new(own_certificates),
            lists,
            identities: None,
            min_peers: 0,
            roster: roster.clone(),
            chaos,
        };
        let socket = sockets::AdminSocket::open(&name("a@127.0.0.1"), dir.path()).expect("binds");
        let known = (&*certs, identity.verifier());
        let issuing = Issuing::new(known, admin.listen, (&bus, &peers, &metrics));
        issuing.offer(Rules::default()).look().expect("serves");
        let victim = victim.child(event_log::Setup {
            store,
            journal,
            bus: bus.clone(),
            metrics: metrics.clone(),
        });
        let tree = Tree {
            name: "root",
            strategy: Strategy::OneForOne,
            intensity: Intensity::default(),
            children: vec![bus.child(), victim, child(admin, issuing, socket.listener())],
            roster,
            metrics: metrics.clone(),
            ended: Arc::new(|_, _, _| {}),
        };
        let root = start(tree, ()).await.expect("starts");
        World { dir, metrics, peers, bus, root, _socket: socket }
    }

    impl World {
        fn connect(&self) -> UnixStream {
            let stream = sockets::connect(self.dir.path()).expect("it listens");
            stream.set_nonblocking(true).expect("nonblocking");
            UnixStream::from_std(stream).expect("a stream")
        }

        /// Says this, and takes the answer line.
        pub(crate) async fn ask<T: DeserializeOwned>(&self, request: &[u8]) -> Answer<T> {
            let mut stream = self.connect();
            // A request that is cut off may be answered before it is sent.
            drop(stream.write_all(request).await);
            answered(stream).await
        }
    }

    async fn answered<T: DeserializeOwned>(stream: UnixStream) -> Answer<T> {
        let mut line = String::new();
        let mut reader = BufReader::new(stream);
        let reading = reader.read_line(&mut line);
        let read = tokio::time::timeout(Duration::from_secs(20), reading).await;
        read.expect("in time").expect("an answer");
        assert!(line.ends_with('\n'), "{line:?}");
        serde_json::from_str(&line).expect("an answer")
    }

    async fn status(world: &World) -> NodeStatus {
        let Answer::Ok(status) = world.ask(b"{\"ask\":\"status\"}\n").await else { panic!() };
        status
    }

    pub(crate) fn error(answer: Answer<()>) -> String {
        if let Answer::Error(text) = answer { text } else { panic!("{answer:?}") }
    }

    #[tokio::test]
    async fn the_status_shows_the_node_and_its_peers() {
        let world = world(false).await;
        let peer = PeerView {
            name: name("b@127.0.0.1"),
            address: Some(([127, 0, 0, 1], 4698).into()),
            status: Status::Online,
            reason: None,
            cause: None,
            incarnation: Incarnation(9),
            since: timer::now(),
        };
        let unknown = PeerView {
            name: name("c@127.0.0.1"),
            address: None,
            status: Status::Connecting,
            incarnation: Incarnation(0),
            ..peer.clone()
        };
        let since = UNIX_EPOCH + Duration::from_millis(1_767_323_045_678);
        let rows = [(peer, Some(KeyId([5; 16]))), (unknown, None)];
        let rows = rows.map(|(peer, id)| Row { peer, id, since }).to_vec();
        world.peers.publish(|_| rows);
        let status = status(&world).await;
        assert_eq!((status.name, status.incarnation), (name("a@127.0.0.1"), 3));
        assert_eq!((status.id, status.cluster), ("01".repeat(16), "02".repeat(16)));
        let [b, c] = &status.peers[..] else { panic!("{:?}", status.peers) };
        assert_eq!((&b.name, b.id.as_deref()), (&name("b@127.0.0.1"), Some(&*"05".repeat(16))));
        assert_eq!((b.incarnation, b.since.as_str()), (Some(9), "2026-01-02T03:04:05.678Z"));
        assert_eq!((c.id.as_ref(), c.incarnation, c.address), (None, None, None));
    }

    #[tokio::test]
    async fn the_metrics_are_prometheus_text() {
        let world = world(false).await;
        world.metrics.count(Count::Beacons, "accepted");
        let Answer::Ok(text) = world.ask::<String>(b"{\"ask\":\"metrics\"}\n").await else {
            panic!()
        };
        assert!(text.contains("xpando_beacons_received_total{verdict=\"accepted\"} 1"), "{text}");
    }

    #[tokio::test]
    async fn a_watcher_gets_every_later_event_and_is_told_of_those_it_lost() {
        let world = world(false).await;
        let mut stream = world.connect();
        stream.write_all(b"{\"ask\":\"watch\"}\n").await.expect("sent");
        let mut lines = BufReader::new(stream).lines();
        let mut next = async || {
            let line = tokio::time::timeout(Duration::from_secs(20), lines.next_line()).await;
            line.expect("in time").expect("a line").expect("not the end")
        };
        assert_eq!(next().await, "{\"ok\":\"a@127.0.0.1\"}");
        let event = |millis| Event::Paused { millis };
        let told = |line: String| serde_json::from_str::<Recorded>(&line).expect("an event").event;
        world.bus.announce(event(1));
        assert_eq!(told(next().await), event(1));
        // More than the socket and the queue hold, before anything is read.
        let flood = 40 * WAITING as u64;
        (2..=flood).for_each(|n| world.bus.announce(event(n)));
        while world.bus.trail().last() < flood {
            tokio::task::yield_now().await;
        }
        let (mut seen, mut missed) = (1, 0);
        while seen + missed < flood {
            let event = told(next().await);
            if let Event::EventsMissed { count } = event {
                missed += count;
            } else {
                seen += 1;
                assert_eq!(
                    event,
                    Event::Paused { millis: seen + missed },
                    "in order, none else missing"
                );
            }
        }
        assert!(missed > 0, "the queue is bounded");
    }

    #[tokio::test]
    async fn a_bad_request_is_answered_and_the_node_goes_on() {
        let world = world(false).await;
        let long = [b"{\"ask\":\"status\"".as_slice(), &vec![b' '; 100_000], b"}\n"].concat();
        for bad in [
            b"\n".as_slice(),
            b"GET / HTTP/1.1\r\n",
            b"{\"ask\":\"dance\"}\n",
            b"{\"ask\":\"kill\"}\n",
            b"{\"ask\":\"kill\",\"actor\":\"x\",\"more\":1}\n",
        ] {
            let text = error(world.ask(bad).await);
            assert!(text.contains("not a request"), "{text}");
        }
        let text = error(world.ask(&long).await); // only its beginning is read
        assert!(text.contains("not a request"), "{text}");
        drop(world.connect()); // and one that says nothing at all
        status(&world).await;
        let text = world.metrics.text().expect("text");
        assert!(!text.contains("actor_restarts_total{"), "{text}");
    }

    #[tokio::test]
    async fn bytes_that_are_no_text_disturb_nobody() {
        let world = world(false).await;
        let mut stream = world.connect();
        stream.write_all(&[0xff, 0xfe, b'\n']).await.expect("sent");
        let mut rest = Vec::new();
        let closing = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut rest));
        drop(closing.await.expect("in time"));
        status(&world).await;
    }

    #[tokio::test]
    async fn a_client_that_asks_nothing_is_let_go_in_time() {
        let world = world(false).await;
        let mut silent = world.connect();
        status(&world).await;
        tokio::time::pause();
        let start = timer::now();
        let mut rest = Vec::new();
        drop(silent.read_to_end(&mut rest).await);
        assert_eq!(rest, b"");
        assert!(timer::now() - start <= PATIENCE + Duration::from_secs(1));
    }

    #[tokio::test]
    async fn actors_are_killed_only_with_chaos_and_by_their_name() {
        let kill = b"{\"ask\":\"kill\",\"actor\":\"event_log\"}\n";
        let plain = world(false).await;
        let text = error(plain.ask(kill).await);
        assert!(text.contains("--chaos"), "{text}");
        let world = world(true).await;
        let text = error(world.ask(b"{\"ask\":\"kill\",\"actor\":\"x\"}\n").await);
        assert_eq!(text, "the actors are: admin event_log news");
        assert_eq!(world.ask(kill).await, Answer::Ok(()));
        let restarted = "actor_restarts_total{actor=\"event_log\"} 1";
        let waiting = async {
            while !world.metrics.text().expect("text").contains(restarted) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("restarted");
        world.root.stop().await;
    }

    const B: &str = "b@127.0.0.1";
    const C: &str = "c@127.0.0.1";

    /// Requests that change something: their fields, what the trail calls it, and the node that it is about.
    const DEEDS: [(&str, &str, &str, Option<&str>); 7] = [
        ("drain", "", "drain", None),
        ("drain", r#","undo":true"#, "undrain", None),
        ("disconnect", r#","node":"b@127.0.0.1""#, "disconnect", Some(B)),
        ("forget", r#","node":"c@127.0.0.1""#, "forget", Some(C)),
        ("forget", r#","node":"x@127.0.0.1","undo":true"#, "restore", Some("x@127.0.0.1")),
        ("rotate", r#","what":"authority""#, "rotate", None),
        ("kill", r#","actor":"event_log""#, "kill", None),
    ];

    #[test]
    fn of_each_request_it_is_known_whether_it_is_a_deed() {
        let mut known = vec![
            "status",
            "nodes",
            "topology",
            "metrics",
            "cluster_view",
            "figures",
            "events",
            "export",
            "events_all",
            "verify",
            "watch",
            "rotation",
            "requests",
            // A deed, and in the trail as soon as the disk has it.
            "revoke",
        ];
        // Their deeds are those of `enrol::tests`.
        known.extend(["invite", "approve", "deny", "release"]);
        // They are what clients and services do, as on every other way to a topic or a name.
        known.extend(["publish", "subscribe", "call"]);
        known.extend(DEEDS.iter().map(|(request, ..)| *request));
        for request in <Request as strum::VariantNames>::VARIANTS {
            assert!(known.contains(request), "is {request} a deed?");
        }
    }

    /// The next deed in the trail, or what was announced after all of them.
    pub(crate) async fn deed(events: &mut Events) -> Event {
        loop {
            let event = events.recv().await.expect("the trail goes on");
            if matches!(event, Event::OperatorActed { .. } | Event::Paused { .. }) {
                return event;
            }
        }
    }

    #[tokio::test]
    async fn each_deed_is_in_the_trail_with_its_operator() {
        let world = world(true).await;
        let row = |of: &str, status| {
            let (address, incarnation) = (Some(([127, 0, 0, 1], 4698).into()), Incarnation(9));
            let (name, reason, cause, since) = (name(of), None, None, timer::now());
            let peer = PeerView { name, address, status, reason, cause, incarnation, since };
            Row { peer, id: None, since: clock::wall() }
        };
        let rows = vec![row(B, Status::Online), row(C, Status::Offline)];
        world.peers.publish(|_| rows);
        let mut events = world.bus.events();
        for (request, fields, label, about) in DEEDS {
            let line = format!("{{\"ask\":\"{request}\"{fields}}}\n");
            assert_eq!(world.ask(line.as_bytes()).await, Answer::Ok(()), "{line}");
            let acted = deed(&mut events).await;
            let Event::OperatorActed { deed, operator, via } = &acted else { panic!("{acted:?}") };
            assert_eq!(serde_json::to_value(deed).expect("plain")["deed"], label);
            assert_eq!(deed.about().map(NodeName::as_str), about, "{line}");
            let uid = rustix::process::getuid().as_raw();
            assert_eq!((operator, via.as_str()), (&Operator::local(uid), "admin socket"));
            assert!(Event::is_lasting(acted.label()));
            assert!(about.is_none_or(|about| acted.concerns(&name(about))), "{acted}");
        }
        // What is refused is no deed.
        error(world.ask(b"{\"ask\":\"forget\",\"node\":\"b@127.0.0.1\"}\n").await);
        world.bus.announce(Event::Paused { millis: 7 });
        assert_eq!(deed(&mut events).await, Event::Paused { millis: 7 });
    }

    #[tokio::test]
    async fn the_server_itself_comes_back_on_the_same_socket() {
        let world = world(true).await;
        let mut stream = world.connect();
        let kill = b"{\"ask\":\"kill\",\"actor\":\"admin\"}\n";
        stream.write_all(kill).await.expect("sent");
        // It may die before it has answered.
        let mut rest = Vec::new();
        let closing = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut rest));
        drop(closing.await.expect("in time"));
        status(&world).await;
    }

    #[tokio::test]
    async fn bytes_that_are_no_text_get_an_error_for_answer() {
        let world = world(false).await;
        let text = error(world.ask(&[0xff, 0xfe, b'\n']).await);
        assert!(text.contains("not a request"), "{text}");
    }
}
