//! NodeManager in paused time, between a mock of Link and a real Bus.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::oneshot;

use super::*;
use crate::actors::exchange::Exchange;
use crate::actors::link::tests::{Command, Mock};
use crate::actors::supervisor::{ActorTable, Root};
use crate::actors::tests::{cluster, contact, counted, name, next, run, settled, until};
use crate::io::identity::Identity;
use crate::io::metrics::Metrics;
use crate::proto::event::{Event, Reason, Source, Status};
use crate::proto::frame::CloseReason;
use crate::proto::hello::{Hello, Refusal};
use crate::proto::membership::{AttemptId, Failure, LinkEnd};
use crate::proto::node::Contact;
use crate::proto::node::Credential;
use crate::proto::wiring::Ask;

const B: &str = "b@127.0.0.1";

type Tell = Box<dyn Fn(Report) + Send>;

struct World {
    ids: Vec<Identity>,
    peers: Peers,
    link: Mock,
    tell: Tell,
    events: UnboundedReceiver<Event>,
    incarnation: Arc<AtomicU64>,
    metrics: Metrics,
    roster: ActorTable,
    _root: Root,
}

/// Node a, which has just attached to Link.
async fn world() -> World {
    let ids = cluster(&["a@127.0.0.1", B]);
    let metrics = Metrics::default();
    let bus = Bus::new(&Exchange::new(name("a@127.0.0.1"), &metrics));
    let peers = Peers::new(&metrics, []);
    let (link, mut mock) = Mock::start().await;
    let myself = crate::actors::tests::myself(&ids[0], SocketAddr::from(([127, 0, 0, 1], 4000)));
    let incarnation = myself.incarnation.clone();
    let setup = Setup {
        config: Config::default(),
        myself,
        link,
        peers: peers.clone(),
        bus: bus.clone(),
        lives: Arc::default(),
    };
    let (_root, roster) = run(&metrics, vec![bus.child(), child(setup)]).await;
    let (tx, events) = unbounded_channel();
    bus.on_events("test", move |event| drop(tx.send(event.clone())));
    let Command::Attach(tell) = mock.next().await else { panic!("attaches first") };
    World { ids, peers, link: mock, tell, events, incarnation, metrics, roster, _root }
}

impl World {
    /// What b says in its first life.
    fn hello(&self) -> Hello {
        let Contact { name, address: advertise, incarnation } = contact(B, 5000, 1);
        Hello { name, cluster: self.ids[1].cluster(), incarnation, boot: 5, advertise, lists: None }
    }

    /// What b's certificate is of.
    fn credential(&self) -> Credential {
        Credential { key: self.ids[1].id(), since: 1 }
    }

    fn hint(&self) {
        self.peers.ask(Ask::Hint(contact(B, 5000, 1), Source::Beacon));
    }

    async fn dialed(&mut self) -> AttemptId {
        let Command::Dial(attempt, address) = self.link.next().await else { panic!("no dial") };
        assert_eq!(address, contact(B, 5000, 1).address);
        attempt
    }

    async fn proceeds(&mut self, attempt: AttemptId) {
        assert!(matches!(self.link.next().await, Command::Proceed(of) if of == attempt));
    }

    /// Hinted, dialed, agreed and ready.
    async fn link(&mut self) -> AttemptId {
        self.hint();
        let attempt = self.dialed().await;
        (self.tell)(Report::Connected(attempt, name(B), self.credential()));
        self.proceeds(attempt).await;
        (self.tell)(Report::Welcomed(attempt, self.hello()));
        self.proceeds(attempt).await;
        (self.tell)(Report::Ready(attempt));
        self.status(Status::Online).await;
        attempt
    }

    /// Waits until the view shows b so.
    async fn status(&self, status: Status) -> Row {
        let mut view = self.peers.subscribe();
        let shown = view.wait_for(|rows| {
            rows.iter().any(|row| row.peer.name == name(B) && row.peer.status == status)
        });
        let rows = tokio::time::timeout(Duration::from_secs(60), shown).await;
        let rows = rows.expect("in time").expect("published").clone();
        assert_eq!(rows.len(), 1);
        rows[0].clone()
    }

    /// Kills the actor, and takes the next life's listener.
    async fn restart(&mut self) {
        assert!(self.roster.kill("node_manager"));
        loop {
            if let Command::Attach(tell) = self.link.next().await {
                self.tell = tell;
                settled().await; // the handle points at the new life
                return;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_outbound_attempt_becomes_a_link_step_by_step() {
    let mut world = world().await;
    let b = world.credential();
    assert!(world.peers.subscribe().borrow().is_empty());
    world.hint();
    let attempt = world.dialed().await;
    let row = world.status(Status::Connecting).await;
    assert_eq!((row.id, row.peer.address), (None, Some(contact(B, 5000, 1).address)));
    (world.tell)(Report::Connected(attempt, name(B), b));
    world.proceeds(attempt).await;
    (world.tell)(Report::Welcomed(attempt, world.hello()));
    world.proceeds(attempt).await;
    let row = world.status(Status::Syncing).await;
    assert_eq!((row.id, row.peer.incarnation), (Some(b.key), Incarnation(1)));
    (world.tell)(Report::Ready(attempt));
    world.status(Status::Online).await;
    let mut seen = Vec::new();
    while seen.len() < 4 {
        seen.push(next(&mut world.events).await);
    }
    let [
        Event::PeerDiscovered { source: Source::Beacon, .. },
        Event::PeerConnecting { .. },
        Event::PeerSyncing { .. },
        Event::PeerOnline { peer, incarnation: Incarnation(1), .. },
    ] = &seen[..]
    else {
        panic!("{seen:?}")
    };
    assert_eq!(*peer, name(B));
}

#[tokio::test(start_paused = true)]
async fn an_inbound_attempt_becomes_a_link_and_a_bad_one_is_refused() {
    let mut world = world().await;
    let (attempt, b) = (AttemptId::Inbound(1), world.credential());
    (world.tell)(Report::Greeted(attempt, world.hello(), b));
    world.proceeds(attempt).await;
    (world.tell)(Report::Confirmed(attempt));
    world.proceeds(attempt).await;
    (world.tell)(Report::Ready(attempt));
    assert_eq!(world.status(Status::Online).await.id, Some(b.key));

    let old = Hello { incarnation: Incarnation(0), ..world.hello() };
    let late = AttemptId::Inbound(2);
    (world.tell)(Report::Greeted(late, old, b));
    let Command::Refuse(of, why) = world.link.next().await else { panic!("not refused") };
    assert_eq!(
        (of, why),
        (late, Refusal::Stale { known: Incarnation(1), linked: Some(contact(B, 5000, 1).address) })
    );
    (world.tell)(Report::Confirmed(AttemptId::Inbound(9)));
    assert!(matches!(world.link.next().await, Command::Abandon(AttemptId::Inbound(9))));
    world.status(Status::Online).await;
}

#[tokio::test(start_paused = true)]
async fn a_later_life_replaces_the_link() {
    let mut world = world().await;
    let first = world.link().await;
    let later = Hello { incarnation: Incarnation(2), boot: 6, ..world.hello() };
    let second = AttemptId::Inbound(1);
    (world.tell)(Report::Greeted(second, later, world.credential()));
    let Command::Close(of, why) = world.link.next().await else { panic!("not closed") };
    assert_eq!((of, why), (first, CloseReason::Replaced));
    world.proceeds(second).await;
    (world.tell)(Report::Confirmed(second));
    world.proceeds(second).await;
    (world.tell)(Report::Ready(second));
    assert_eq!(world.status(Status::Online).await.peer.incarnation, Incarnation(2));
}

#[tokio::test(start_paused = true)]
async fn a_lost_peer_is_dialed_at_once_then_after_waits_and_shown_offline() {
    let mut world = world().await;
    let attempt = world.link().await;
    (world.tell)(Report::Ended(attempt, LinkEnd::Closed));
    let again = world.dialed().await;
    assert_ne!(again, attempt);
    (world.tell)(Report::Failed(again, Failure::Refused));
    let row = world.status(Status::Offline).await;
    assert_eq!(row.peer.reason, Some(Reason::Crashed));
    // The machine's deadline is kept without any message: it never gives up.
    for _ in 0..5 {
        let start = timer::now();
        let again = world.dialed().await;
        assert!(timer::now() - start <= Config::default().backoff.cap);
        (world.tell)(Report::Failed(again, Failure::Refused));
    }
}

#[tokio::test(start_paused = true)]
async fn a_row_keeps_its_time_while_its_status_lasts() {
    let mut world = world().await;
    world.link().await;
    let online = world.status(Status::Online).await;
    let view = world.peers.subscribe();
    // News that changes no status: another address, then nothing new at all.
    world.peers.ask(Ask::Hint(contact(B, 6000, 1), Source::Peer));
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert_eq!(world.status(Status::Online).await.since, online.since);
    let mut unchanged = world.peers.subscribe();
    unchanged.mark_unchanged();
    world.peers.ask(Ask::Hint(contact(B, 6000, 1), Source::Peer));
    settled().await;
    assert!(!unchanged.has_changed().expect("published"), "no news, no notice");
    assert!(view.has_changed().is_ok());
    let live = AttemptId::Outbound(0);
    (world.tell)(Report::Ended(live, LinkEnd::Goodbye(CloseReason::Left)));
    let left = world.status(Status::Offline).await;
    assert_eq!(left.peer.reason, Some(Reason::Left));
    assert!(left.since >= online.since && left.peer.since > online.peer.since);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_left_is_not_dialed() {
    let mut world = world().await;
    let attempt = world.link().await;
    (world.tell)(Report::Ended(attempt, LinkEnd::Goodbye(CloseReason::Left)));
    world.status(Status::Offline).await;
    world.hint();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(world.link.heard().is_none());
}

#[tokio::test(start_paused = true)]
async fn stopping_says_goodbye_and_asks_when_that_is_done() {
    let mut world = world().await;
    let attempt = world.link().await;
    let (done, mut said) = oneshot::channel();
    world.peers.stop(done);
    let Command::Close(of, why) = world.link.next().await else { panic!("no goodbye") };
    assert_eq!((of, why), (attempt, CloseReason::Left));
    let Command::WhenClosed(closed) = world.link.next().await else { panic!("does not ask") };
    settled().await;
    assert!(said.try_recv().is_err(), "the answer is Link's");
    closed.send(()).expect("the caller waits");
    assert_eq!(said.await, Ok(()));
    // From now on nobody is taken in, and nobody dialed.
    let late = AttemptId::Inbound(7);
    (world.tell)(Report::Greeted(late, world.hello(), world.credential()));
    let Command::Refuse(of, why) = world.link.next().await else { panic!("not refused") };
    assert_eq!((of, why), (late, Refusal::Leaving));
    (world.tell)(Report::Ended(attempt, LinkEnd::Closed));
    world.peers.ask(Ask::Seed(SocketAddr::from(([127, 0, 0, 1], 7000))));
    world.hint();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(world.link.heard().is_none());
}

#[tokio::test(start_paused = true)]
async fn stopping_abandons_attempts() {
    let mut world = world().await;
    world.hint();
    let attempt = world.dialed().await;
    let (done, _said) = oneshot::channel();
    world.peers.stop(done);
    assert!(matches!(world.link.next().await, Command::Abandon(of) if of == attempt));
    assert!(matches!(world.link.next().await, Command::WhenClosed(_)));
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_the_links_that_live_are_known_again() {
    let mut world = world().await;
    let attempt = world.link().await;
    let b = world.credential();
    let of_an_earlier_life = std::mem::replace(&mut world.tell, Box::new(|_| {}));
    world.restart().await;
    of_an_earlier_life(Report::Ended(attempt, LinkEnd::Closed)); // nobody hears it
    (world.tell)(Report::Existing(attempt, world.hello(), b, true));
    let mut rows = world.peers.subscribe();
    let online = |rows: &View| {
        rows.iter().any(|row| row.peer.status == Status::Online && row.id == Some(b.key))
    };
    settled().await;
    assert!(online(&rows.borrow_and_update()), "{rows:?}");
    // It is a link like any other.
    (world.tell)(Report::Ended(attempt, LinkEnd::Closed));
    world.dialed().await;
    assert_eq!(counted(&world.metrics, "actor_restarts", "node_manager"), 1);
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_a_link_that_is_not_ready_is_shown_syncing() {
    let mut world = world().await;
    world.restart().await;
    let attempt = AttemptId::Inbound(3);
    (world.tell)(Report::Existing(attempt, world.hello(), world.credential(), false));
    world.status(Status::Syncing).await;
    (world.tell)(Report::Ready(attempt));
    world.status(Status::Online).await;
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_peers_come_back_with_hints_and_their_attempts_have_new_numbers() {
    let mut world = world().await;
    let mut numbers = std::collections::BTreeSet::new();
    for _ in 0..3 {
        world.hint();
        for _ in 0..4 {
            let attempt = world.dialed().await;
            assert!(numbers.insert(attempt), "{attempt:?} twice");
            (world.tell)(Report::Failed(attempt, Failure::Refused));
        }
        world.restart().await;
    }
    // Offline peers and their reasons are forgotten until the next word of them.
    world.peers.ask(Ask::Hint(contact("c@127.0.0.1", 5000, 1), Source::Remembered));
    world.dialed().await;
    let rows = world.peers.subscribe();
    until("only the new one", || {
        let names: Vec<_> = rows.borrow().iter().map(|row| row.peer.name.clone()).collect();
        names == [name("c@127.0.0.1")]
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_raised_incarnation_is_used_announced_and_kept_by_the_next_life() {
    let mut world = world().await;
    world.hint();
    let attempt = world.dialed().await;
    (world.tell)(Report::Connected(attempt, name(B), world.credential()));
    world.proceeds(attempt).await;
    let refusal = Refusal::Stale { known: Incarnation(7), linked: None };
    (world.tell)(Report::Failed(attempt, Failure::RefusedBy(refusal)));
    // Whatever was begun under the old incarnation ends.
    assert!(matches!(world.link.next().await, Command::Abandon(of) if of == attempt));
    world.dialed().await;
    assert_eq!(world.incarnation.load(Ordering::Relaxed), 8);
    loop {
        if let Event::IncarnationRaised { to } = next(&mut world.events).await {
            assert_eq!(to, Incarnation(8));
            break;
        }
    }
    // The next life goes on from there: the same refusal raises it no further than above 8.
    world.restart().await;
    world.hint();
    let attempt = world.dialed().await;
    let refusal = Refusal::Stale { known: Incarnation(8), linked: None };
    (world.tell)(Report::Failed(attempt, Failure::RefusedBy(refusal)));
    until("raised", || world.incarnation.load(Ordering::Relaxed) == 9).await;
}

#[tokio::test(start_paused = true)]
async fn a_seed_is_dialed_and_known_by_its_certificate() {
    let mut world = world().await;
    let address = contact(B, 5000, 1).address;
    world.peers.ask(Ask::Seed(address));
    let attempt = world.dialed().await;
    assert!(world.peers.subscribe().borrow().is_empty(), "nobody is known by an address");
    (world.tell)(Report::Connected(attempt, name(B), world.credential()));
    world.proceeds(attempt).await;
    let row = world.status(Status::Connecting).await;
    assert_eq!((row.id, row.peer.address), (Some(world.credential().key), Some(address)));
}
