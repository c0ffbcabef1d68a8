//! Link, from its parts to two whole actors that link with each other in one process; and the mock
//! of it that others test against.

use std::net::TcpListener;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::actors::exchange::Exchange;
use crate::actors::news::tests::read;
use crate::actors::supervisor::{ActorTable, Root};
use crate::actors::tests::probe;
use crate::actors::tests::{PATIENCE, cluster, counted, name, next, run, settled, until};
use crate::io::identity::Identity;
use crate::proto::frame::Control;
use crate::proto::lists::ListKind;
use crate::proto::membership::{Failure, LinkEnd};
use crate::proto::node::NodeId;
use crate::proto::talk::DownReason;
use crate::proto::topic::Topic;
use crate::proto::wiring::{Consumer, Notice};

mod enrolment;
mod handshake;
mod mux;

/// What Link was told.
pub(crate) enum Command {
    Attach(Box<dyn Fn(Report) + Send>),
    Dial(AttemptId, SocketAddr),
    Proceed(AttemptId),
    Refuse(AttemptId, Refusal),
    Abandon(AttemptId),
    Close(AttemptId, CloseReason),
    Judge,
    WhenClosed(oneshot::Sender<()>),
}

/// What NodeManager has Link do.
impl Link {
    fn dial(&self, attempt: AttemptId, address: SocketAddr) {
        self.input(Input::Dial(attempt, address));
    }

    fn proceed(&self, attempt: AttemptId) {
        self.input(Input::Decide(attempt, Decision::Proceed));
    }

    fn refuse(&self, attempt: AttemptId, refusal: Refusal) {
        self.input(Input::Decide(attempt, Decision::Refuse(refusal)));
    }

    fn abandon(&self, attempt: AttemptId) {
        self.input(Input::Abandon(attempt));
    }

    fn close(&self, attempt: AttemptId, parting: CloseReason) {
        self.input(Input::Close(attempt, parting));
    }

    fn judge(&self) {
        self.input(Input::Judge);
    }
}

/// Stands in for Link: hears its commands and does nothing.
pub(crate) struct Mock(UnboundedReceiver<Msg>);

impl Mock {
    pub(crate) async fn start() -> (Link, Self) {
        let (handle, heard) = probe("link").await;
        (Link { handle, ..Link::new(&Metrics::default()) }, Self(heard))
    }

    /// A link with this peer: what is said on its own lane.
    pub(crate) fn up(link: &Link, peer: &NodeName) -> mpsc::Receiver<Control> {
        let (control, said) = mpsc::channel(CONTROLS);
        let pulse = Arc::new(Pulse::new(control, None));
        link.pulses.lock().insert(peer.clone(), (OUT, pulse));
        said
    }

    /// A sign of life on the link with this peer, at this moment.
    pub(crate) fn byte_from(link: &Link, peer: &NodeName) {
        link.pulse(peer).expect("up").on_bytes();
    }

    pub(crate) async fn next(&mut self) -> Command {
        Self::command(next(&mut self.0).await)
    }

    /// A command that has arrived already.
    pub(crate) fn heard(&mut self) -> Option<Command> {
        self.0.try_recv().ok().map(Self::command)
    }

    fn command(message: Msg) -> Command {
        match message {
            Msg::Attach(listener) => Command::Attach(listener),
            Msg::Input(Input::Dial(attempt, address)) => Command::Dial(attempt, address),
            Msg::Input(Input::Decide(attempt, Decision::Proceed)) => Command::Proceed(attempt),
            Msg::Input(Input::Decide(attempt, Decision::Refuse(why))) => {
                Command::Refuse(attempt, why)
            }
            Msg::Input(Input::Abandon(attempt)) => Command::Abandon(attempt),
            Msg::Input(Input::Close(attempt, parting)) => Command::Close(attempt, parting),
            Msg::Input(Input::Judge) => Command::Judge,
            Msg::WhenClosed(done) => Command::WhenClosed(done),
            Msg::Input(_)
            | Msg::Authenticated(..)
            | Msg::Established(..)
            | Msg::SessionOpened(..)
            | Msg::SessionReady(..)
            | Msg::SessionGone(..) => panic!("not a command"),
        }
    }
}

/// A Link actor with everything around it but a NodeManager.
struct Node {
    name: NodeName,
    id: NodeId,
    link: Link,
    address: SocketAddr,
    bus: Bus,
    metrics: Metrics,
    reports: UnboundedReceiver<Report>,
    roster: ActorTable,
    lists: ListKeeper,
    _root: Root,
}

impl Node {
    /// One that is told nothing unless the test says it.
    async fn start(identity: &Identity) -> Self {
        let metrics = Metrics::default();
        let bus = Bus::new(&Exchange::new(identity.name().clone(), &metrics));
        let link = Link::new(&metrics);
        let keeper = crate::actors::tests::keeper(identity, &bus, &metrics, &link);
        let lists = keeper.lists();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("nonblocking");
        let address = listener.local_addr().expect("bound");
        let setup = Setup {
            listener: Arc::new(listener),
            tls: Tls::new(identity).expect("a sound identity"),
            myself: Myself {
                lists: lists.clone(),
                ..crate::actors::tests::myself(identity, address)
            },
            bus: bus.clone(),
            enrolment: Enrolment::new(|request| async move { request }),
            lists: keeper.clone(),
            metrics: metrics.clone(),
        };
        let (root, roster) = run(&metrics, vec![bus.child(), link.child(setup)]).await;
        let (name, id) = (identity.name().clone(), identity.id());
        let reports = unbounded_channel().1;
        let lists = keeper;
        let mut node =
            Self { name, id, link, address, bus, metrics, reports, roster, lists, _root: root };
        node.attach(false);
        node
    }

    /// Becomes the listener; an eager one agrees to every step at once.
    fn attach(&mut self, eager: bool) {
        let (tx, reports) = unbounded_channel();
        self.reports = reports;
        let link = self.link.clone();
        self.link.attach(move |report| {
            if eager && let Some(attempt) = step(&report) {
                link.proceed(attempt);
            }
            drop(tx.send(report));
        });
    }

    /// The next step. That attaching is over is for [`Node::existing`] only.
    async fn report(&mut self) -> Report {
        loop {
            let report = next(&mut self.reports).await;
            if !matches!(report, Report::Attached) {
                return report;
            }
        }
    }

    /// Returns when the handle reaches a living actor. That has no links yet.
    async fn reached(&self) {
        let asking = async {
            loop {
                let (done, said) = oneshot::channel();
                self.link.when_closed(done);
                if said.await.is_ok() {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, asking).await.expect("in time");
    }

    /// Skips the steps of attempts until a link is ready or ended.
    async fn news(&mut self) -> Report {
        loop {
            let report = self.report().await;
            if step(&report).is_none() {
                return report;
            }
        }
    }

    /// Ready, or not: the links that a new listener is told of.
    async fn existing(&mut self) -> Vec<(AttemptId, NodeName, bool)> {
        self.attach(true);
        let mut links = Vec::new();
        loop {
            let report = next(&mut self.reports).await;
            if let Report::Existing(attempt, hello, _, ready) = report {
                links.push((attempt, hello.name, ready));
            } else {
                assert!(matches!(report, Report::Attached), "{report:?}");
                return links;
            }
        }
    }
}

/// The attempt that waits for a word after this report.
fn step(report: &Report) -> Option<AttemptId> {
    match report {
        Report::Connected(attempt, ..)
        | Report::Greeted(attempt, ..)
        | Report::Welcomed(attempt, _)
        | Report::Confirmed(attempt) => Some(*attempt),
        Report::Failed(..)
        | Report::Ready(_)
        | Report::Ended(..)
        | Report::Revoked(_)
        | Report::Existing(..)
        | Report::Attached => None,
    }
}

const OUT: AttemptId = AttemptId::Outbound(1);

/// Two nodes whose listeners agree to everything.
async fn pair(names: [&str; 2]) -> (Node, Node) {
    let ids = cluster(&names);
    let (mut a, mut b) = (Node::start(&ids[0]).await, Node::start(&ids[1]).await);
    a.attach(true);
    b.attach(true);
    (a, b)
}

/// The two, and the attempt of their link at the accepting side.
async fn linked(names: [&str; 2]) -> (Node, Node, AttemptId) {
    let (mut a, mut b) = pair(names).await;
    a.link.dial(OUT, b.address);
    let ready = a.news().await;
    assert!(matches!(ready, Report::Ready(OUT)), "{ready:?}");
    let Report::Ready(inbound @ AttemptId::Inbound(_)) = b.news().await else {
        panic!("not ready")
    };
    (a, b, inbound)
}

fn ended(report: &Report) -> Option<(AttemptId, &LinkEnd)> {
    if let Report::Ended(attempt, end) = report { Some((*attempt, end)) } else { None }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_link_talk_and_part() {
    let (mut a, mut b, inbound) = linked(["talk-a@127.0.0.1", "talk-b@127.0.0.1"]).await;
    let (tx, mut heard) = unbounded_channel();
    b.bus.attach(Consumer::Discovery, move |news| drop(tx.send(read(news))));
    let (done, said) = oneshot::channel();
    b.bus.on_events("test", move |_| {});
    // Both go through b's Bus, in order with the subscription above.
    a.bus.send(&b.name, Topic::network_peers(), b"hi".to_vec());
    assert_eq!(next(&mut heard).await, Notice::Up(a.name.clone(), Incarnation(1)));
    assert_eq!(next(&mut heard).await, Notice::Message(a.name.clone(), b"hi".to_vec()));

    a.link.close(OUT, CloseReason::Left);
    a.link.when_closed(done);
    tokio::time::timeout(PATIENCE, said).await.expect("in time").expect("answered");
    let end = a.news().await;
    assert_eq!(ended(&end), Some((OUT, &LinkEnd::Closed)), "{end:?}");
    let end = b.news().await;
    assert_eq!(ended(&end), Some((inbound, &LinkEnd::Goodbye(CloseReason::Left))), "{end:?}");
    let down = Notice::Down(a.name.clone(), DownReason::NodeOffline);
    assert_eq!(next(&mut heard).await, down);
    until("the outlet is gone", || {
        b.bus.send(&a.name, Topic::network_peers(), vec![]);
        counted(&b.metrics, "node_messages", "not_linked") > 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beats_go_there_and_back_and_the_pulse_ends_with_the_link() {
    let (mut a, mut b, _) = linked(["beat-a@127.0.0.1", "beat-b@127.0.0.1"]).await;
    let pulse = a.link.pulse(&b.name).expect("linked");
    pulse.beat();
    until("echoed", || pulse.round_trip().is_some()).await;
    assert_eq!(pulse.pongs().len(), 1);
    assert!(b.link.pulse(&a.name).expect("linked").pongs().is_empty(), "b has sent no beat");
    b.link.close(AttemptId::Outbound(9), CloseReason::Left);
    a.link.close(OUT, CloseReason::Left);
    assert!(ended(&a.news().await).is_some() && ended(&b.news().await).is_some());
    assert!(a.link.pulse(&b.name).is_none() && b.link.pulse(&a.name).is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_is_answered_at_once_without_links_and_not_before_the_goodbye_with_one() {
    let (a, b, _) = linked(["closing-a@127.0.0.1", "closing-b@127.0.0.1"]).await;
    let lonely = Node::start(&cluster(&["closing-c@127.0.0.1"])[0]).await;
    let (done, said) = oneshot::channel();
    lonely.link.when_closed(done);
    tokio::time::timeout(PATIENCE, said).await.expect("in time").expect("answered");

    let (done, mut said) = oneshot::channel();
    a.link.when_closed(done);
    let mut a = a;
    assert_eq!(a.existing().await, [(OUT, b.name.clone(), true)]); // the question has been heard
    assert!(said.try_recv().is_err(), "the link lives");
    b.link.close(AttemptId::Inbound(u64::MAX), CloseReason::Left); // unknown: nothing happens
    a.link.close(OUT, CloseReason::Renewed);
    tokio::time::timeout(PATIENCE, &mut said).await.expect("in time").expect("answered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_whose_certificate_is_revoked_is_reported_and_none_is_made_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let now = crate::io::clock::wall();
    let authority = crate::io::identity::Authority::init(dir.path(), now).expect("a CA");
    let ids = ["revoked-a@127.0.0.1", "revoked-b@127.0.0.1"].map(|node| {
        let valid = crate::io::identity::Validity::leaf(now);
        authority.issue(dir.path(), &name(node), valid).expect("a leaf")
    });
    let (mut a, mut b) = (Node::start(&ids[0]).await, Node::start(&ids[1]).await);
    a.attach(true);
    b.attach(true);
    a.link.dial(OUT, b.address);
    assert!(matches!(a.news().await, Report::Ready(OUT)));
    let Report::Ready(inbound) = b.news().await else { panic!("not ready") };

    authority.revoke(&b.name, now).expect("revoked");
    assert_eq!(ids[0].lists().look(ListKind::Revocations).expect("a list"), Some(1));
    a.link.judge();
    b.link.judge(); // it has not seen the list
    assert!(matches!(a.news().await, Report::Revoked(OUT)));
    assert_eq!(a.existing().await, [(OUT, b.name.clone(), true)]);
    assert!(matches!(a.news().await, Report::Revoked(OUT)), "anyone who listens now is told again");
    a.link.close(OUT, CloseReason::Revoked);
    assert_eq!(ended(&a.news().await), Some((OUT, &LinkEnd::Closed)));
    assert_eq!(
        ended(&b.news().await),
        Some((inbound, &LinkEnd::Goodbye(CloseReason::Revoked))),
        "and nothing was revoked there"
    );

    let again = AttemptId::Outbound(2);
    a.link.dial(again, b.address);
    let Report::Failed(of, why) = a.news().await else { panic!("not refused") };
    assert_eq!((of, why), (again, Failure::Revoked(b.name.clone())));
    until("b was told", || counted(&b.metrics, "connections_refused", "refused_as_revoked") == 1)
        .await;
    b.link.dial(again, a.address);
    let Report::Failed(of, why) = b.news().await else { panic!("not refused") };
    assert_eq!((of, why), (again, Failure::RefusedAsRevoked));
    until("a counted it", || counted(&a.metrics, "connections_refused", "revoked") == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_list_is_in_force_before_anything_else_comes_over_the_link() {
    let dir = tempfile::tempdir().expect("a directory");
    let now = crate::io::clock::wall();
    let authority = crate::io::identity::Authority::init(dir.path(), now).expect("a CA");
    let names = ["lists-a@127.0.0.1", "lists-b@127.0.0.1", "lists-c@127.0.0.1"];
    let ids = names.map(|node| {
        let valid = crate::io::identity::Validity::leaf(now);
        authority.issue(dir.path(), &name(node), valid).expect("a leaf")
    });
    let (mut a, mut b) = (Node::start(&ids[0]).await, Node::start(&ids[1]).await);
    a.attach(true);
    b.attach(true);
    // What a knows alone.
    authority.revoke(ids[2].name(), now).expect("revoked");
    assert_eq!(a.lists.look(ListKind::Revocations).expect("a list"), Some(1));
    b.link.dial(OUT, a.address);
    assert!(matches!(b.news().await, Report::Ready(OUT)));
    assert_eq!(b.lists.lists().marks(), a.lists.lists().marks(), "before ractor's first byte");
    assert!(ids[1].verifier().peer(&ids[2].certificate(), now).is_err());
    assert_eq!(counted(&b.metrics, "revocation_lists", "loaded"), 1);
    assert_eq!(counted(&a.metrics, "revocation_lists", "sent"), 1);
    let Report::Ready(inbound) = a.news().await else { panic!("not ready") };

    // A list that comes while the link lives has the link judged.
    authority.revoke(ids[1].name(), now).expect("revoked");
    let found = a.lists.look(ListKind::Revocations);
    a.lists.announce(ListKind::Revocations, found);
    assert!(matches!(a.news().await, Report::Revoked(of) if of == inbound));
    until("b has it", || b.lists.lists().marks() == a.lists.lists().marks()).await;
    assert!(ids[1].is_revoked());
}

/// A list that arrives while the hellos are exchanged: TLS has let the peer in.
#[tokio::test]
async fn a_certificate_revoked_during_the_hello_makes_no_link() {
    let dir = tempfile::tempdir().expect("a directory");
    let now = crate::io::clock::wall();
    let authority = crate::io::identity::Authority::init(dir.path(), now).expect("a CA");
    let ids = ["late-a@127.0.0.1", "late-b@127.0.0.1"].map(|node| {
        let valid = crate::io::identity::Validity::leaf(now);
        authority.issue(dir.path(), &name(node), valid).expect("a leaf")
    });
    let mut node = Node::start(&ids[0]).await;
    node.attach(true);
    let mut peer = handshake::Peer::dial(&ids[1], node.address).await;
    peer.send(&handshake::hello(&ids[1])).await;
    peer.hear().await;
    authority.revoke(ids[1].name(), now).expect("revoked");
    assert_eq!(ids[0].lists().look(ListKind::Revocations).expect("a list"), Some(1));
    peer.send(&crate::proto::hello::Greeting::Confirm).await;
    let Report::Greeted(attempt, ..) = node.report().await else { panic!("not greeted") };
    assert!(matches!(node.report().await, Report::Confirmed(_)));
    assert!(matches!(node.report().await, Report::Revoked(of) if of == attempt));
    assert_eq!(node.existing().await, []);
}

/// Both sides agree on a second link while the first lives; its attempt at either side.
async fn agree_again(a: &mut Node, b: &mut Node) -> (AttemptId, AttemptId) {
    let two = AttemptId::Outbound(2);
    a.link.dial(two, b.address);
    let inbound = loop {
        if let Report::Confirmed(attempt) = b.report().await {
            break attempt;
        }
    };
    // No byte is under way any more. What is left happens in this process, before time moves.
    tokio::time::pause();
    settled().await;
    tokio::time::resume();
    (two, inbound)
}

#[tokio::test]
async fn a_second_link_of_a_pair_waits_for_the_end_of_the_first_session() {
    let (mut a, mut b, first) = linked(["second-a@127.0.0.1", "second-b@127.0.0.1"]).await;
    let (two, inbound) = agree_again(&mut a, &mut b).await;
    let parked = [(OUT, b.name.clone(), true), (two, b.name.clone(), false)];
    assert_eq!(a.existing().await, parked);
    let parked = [(first, a.name.clone(), true), (inbound, a.name.clone(), false)];
    assert_eq!(b.existing().await, parked);
    let (done, mut said) = oneshot::channel();
    a.link.close(OUT, CloseReason::Replaced);
    a.link.when_closed(done);

    let end = a.news().await;
    assert_eq!(ended(&end), Some((OUT, &LinkEnd::Closed)), "{end:?}");
    let end = b.news().await;
    assert_eq!(ended(&end), Some((first, &LinkEnd::Goodbye(CloseReason::Replaced))), "{end:?}");
    let ready = a.news().await;
    assert!(matches!(ready, Report::Ready(attempt) if attempt == two), "{ready:?}");
    let ready = b.news().await;
    assert!(matches!(ready, Report::Ready(attempt) if attempt == inbound), "{ready:?}");
    assert!(said.try_recv().is_err(), "the second link was not told to close");
    assert_eq!(a.existing().await, [(two, b.name.clone(), true)]);
}

#[tokio::test]
async fn a_parked_link_can_be_closed_and_ends_at_the_other_side_too() {
    let (mut a, mut b, first) = linked(["parked-a@127.0.0.1", "parked-b@127.0.0.1"]).await;
    let (two, inbound) = agree_again(&mut a, &mut b).await;
    a.link.close(two, CloseReason::Replaced);
    assert_eq!(a.existing().await, [(OUT, b.name.clone(), true)]);
    let end = b.news().await;
    assert_eq!(ended(&end).map(|(attempt, _)| attempt), Some(inbound), "{end:?}");
    assert_eq!(b.existing().await, [(first, a.name.clone(), true)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_ends_the_links_at_the_peers_and_the_next_life_links_again() {
    let (mut a, mut b, inbound) = linked(["crash-a@127.0.0.1", "crash-b@127.0.0.1"]).await;
    assert!(a.roster.kill("link"));
    let end = b.news().await;
    assert_eq!(ended(&end), Some((inbound, &LinkEnd::Closed)), "{end:?}");
    until("restarted", || counted(&a.metrics, "actor_restarts", "link") == 1).await;
    a.reached().await;
    assert_eq!(a.existing().await, [], "after a restart no connection is left");
    // The listening socket survived, and so did the handle.
    b.link.dial(OUT, a.address);
    let ready = b.news().await;
    assert!(matches!(ready, Report::Ready(OUT)), "{ready:?}");
    let ready = a.news().await;
    assert!(matches!(ready, Report::Ready(AttemptId::Inbound(_))), "{ready:?}");
    assert_eq!(b.existing().await, [(OUT, a.name.clone(), true)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_listener_is_told_of_live_links_and_attempts_are_abandoned() {
    let (mut a, b, _) = linked(["listen-a@127.0.0.1", "listen-b@127.0.0.1"]).await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let (attempt, started) = (AttemptId::Outbound(2), timer::now());
    a.link.dial(attempt, silent.local_addr().expect("bound"));
    let (mut stream, _) = silent.accept().await.expect("dialed");
    assert!(stream.read_u8().await.is_ok(), "TLS begins");
    assert_eq!(a.existing().await, [(OUT, b.name.clone(), true)], "and no word of the attempt");
    let mut rest = Vec::new();
    let eof = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
    assert!(eof.is_ok(), "the connection is closed");
    assert!(started.elapsed() < Duration::from_secs(4), "long before it would have failed");
    a.attach(true);
    let Report::Existing(OUT, hello, shown, true) = a.report().await else { panic!("not told") };
    assert_eq!((hello.name, hello.incarnation, shown.key), (b.name, Incarnation(1), b.id));
    assert_eq!(hello.advertise, b.address);
}

#[tokio::test]
async fn a_peer_that_never_speaks_ractor_is_cut_off() {
    let ids = cluster(&["mute-a@127.0.0.1", "mute-b@127.0.0.1"]);
    let mut node = Node::start(&ids[0]).await;
    node.attach(true);
    let mut peer = handshake::Peer::dial(&ids[1], node.address).await;
    peer.send(&handshake::hello(&ids[1])).await;
    peer.hear().await;
    peer.send(&crate::proto::hello::Greeting::Confirm).await;
    let Report::Greeted(attempt, ..) = node.report().await else { panic!("not greeted") };
    assert!(matches!(node.report().await, Report::Confirmed(_)));
    let started = timer::now();
    while node.existing().await.is_empty() {
        assert!(started.elapsed() < PATIENCE);
    }
    tokio::time::pause();
    let Report::Ended(of, LinkEnd::Fault(fault)) = node.report().await else { panic!("not cut") };
    assert_eq!((of, fault.as_str()), (attempt, "ractor's sessions did not agree in time"));
    assert_eq!(counted(&node.metrics, "connections_refused", "protocol"), 1);
}
