//! TopologyTracker with a mock of NodeManager and a real bus, in paused time.

use std::time::Duration;

use super::*;
use crate::actors::exchange::Exchange;
use crate::actors::news::tests::{Wire, parts};
use crate::actors::peers::tests::{Mock, offline, online};
use crate::actors::supervisor::{ActorTable, Root};
use crate::actors::tests::{counted, identity, name, run};
use crate::proto::event::{Event, Status};
use crate::proto::heartbeat::{Signs, Vital};
use crate::proto::rows::BURST;
use crate::proto::rows::State;
use crate::proto::rows::tests::sealed_by;
use crate::proto::topology::{self, Cell, Cells, Links, Word};
use crate::proto::wiring::Ask;

const A: &str = "a@h";
const B: &str = "b@h";

struct World {
    bus: Bus,
    tracker: TopologyTracker,
    metrics: Metrics,
    peers: Peers,
    asked: Mock,
    wire: Wire,
    roster: ActorTable,
    _root: Root,
}

/// Returns when a burst of changes has been looked at and shown.
async fn settled() {
    tokio::time::sleep(BURST * 3).await;
}

fn cell(state: Status) -> Cell {
    Cell { state, suspect: false, rtt: None, phi: 0, since: 7, reason: None }
}

/// The peer b, linked in its third life.
fn b() -> Row {
    let mut row = online(name(B));
    row.peer.incarnation = Incarnation(3);
    row.since = UNIX_EPOCH + Duration::from_millis(7);
    row
}

/// Node a, linked with b.
async fn world() -> World {
    let metrics = Metrics::default();
    let bus = Bus::new(&Exchange::new(name("a@127.0.0.1"), &metrics));
    let tracker = TopologyTracker::new(&metrics);
    let (peers, asked) = Mock::start().await;
    peers.show([b()]);
    let setup = Setup {
        name: name(A),
        identity: identity(A),
        incarnation: Arc::new(AtomicU64::new(1)),
        peers: peers.clone(),
        bus: bus.clone(),
        metrics: metrics.clone(),
    };
    let (_root, roster) = run(&metrics, vec![bus.child(), tracker.child(setup)]).await;
    let wire = Wire::with(&bus, B, 3);
    let world = World { bus, tracker, metrics, peers, asked, wire, roster, _root };
    settled().await;
    world
}

impl World {
    /// A node that is not linked stated something, and b passes it on.
    fn knows(&self, of: &str) {
        let (origin, incarnation, state) = (name(of), Incarnation(3), State::Live(Cells::new()));
        let row = topology::Row { origin, incarnation, version: 1, state, seal: None };
        let row = sealed_by::<Links>(row, &mut NodeSeals::new(identity(of)));
        self.received(&Word::Rows(vec![row]));
    }

    /// The peers are these now.
    async fn sees(&mut self, rows: impl IntoIterator<Item = Row>) {
        self.peers.show(rows);
        settled().await;
    }

    fn received(&self, word: &Word) {
        self.wire.deliver(Topic::network_topology(), codec::encode(word).expect("encodes"));
    }

    fn edge(&self, from: &str, to: &str) -> Option<Cell> {
        let matrix = self.tracker.matrix().borrow().clone();
        let mut edges = matrix.edges();
        edges.find(|e| (e.from, e.to) == (&name(from), &name(to))).map(|e| e.cell.clone())
    }

    fn words(&mut self) -> Vec<Word> {
        let mut words = Vec::new();
        while let Some(told) = self.wire.try_words() {
            let (topic, payload) = parts(&told);
            assert_eq!(topic, Topic::network_topology());
            words.push(codec::decode(&payload, MAX_PAYLOAD).expect("a word"));
        }
        words
    }
}

/// What b says first of its own row.
fn delta(from: u64, to: u64) -> Word {
    let change = vec![(name(A), Some(cell(Status::Online)))];
    let signature = Vec::new();
    Word::Delta { origin: name(B), incarnation: Incarnation(3), from, to, change, signature }
}

#[tokio::test(start_paused = true)]
async fn a_change_is_in_the_matrix_and_on_the_wire_at_once() {
    let mut world = world().await;
    assert_eq!(world.edge(A, B), Some(cell(Status::Online)));
    world.words();
    let vital = Vital { phi: 8.0, suspect: true, ..Vital::default() };
    let signs = Signs { local_health: 0, peers: [(name(B), vital)].into() };
    world.peers.publish_vitals(signs);
    world.bus.announce(Event::PeerSuspected { peer: name(B), phi: 8.0, missed: 8 });
    settled().await;
    assert!(world.edge(A, B).expect("known").suspect);
    let told = world.words();
    let deltas = told.iter().filter(|word| matches!(word, Word::Delta { .. })).count();
    assert_eq!(deltas, 1, "{told:?}");
    world.wire.close();
    world.sees([offline(name(B), None)]).await;
    assert_eq!(world.words(), [], "an unlinked peer is told nothing");
    world.sees([]).await;
    assert_eq!(world.edge(A, B), None, "forgotten with the peer");
}

#[tokio::test(start_paused = true)]
async fn a_peer_s_row_is_shown_with_its_life() {
    let world = world().await;
    world.received(&delta(0, 1));
    settled().await;
    assert_eq!(world.edge(B, A), Some(cell(Status::Online)));
    let nodes = world.tracker.matrix().borrow().nodes();
    assert_eq!(nodes, [(name(A), Incarnation(1)), (name(B), Incarnation(3))].into());
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_node_is_neither_seen_nor_heard_whoever_speaks_of_it() {
    let world = world().await;
    world.received(&delta(0, 1));
    let change = vec![(name("c@h"), Some(cell(Status::Offline)))];
    world.received(&Word::Delta {
        origin: name(B),
        incarnation: Incarnation(3),
        from: 1,
        to: 2,
        change,
        signature: Vec::new(),
    });
    settled().await;
    assert_eq!(world.edge(B, "c@h"), None, "nobody has seen that c exists");
    world.knows("c@h");
    settled().await;
    assert!(world.edge(B, "c@h").is_some());
    let forget = async |node: &str| {
        let (name, life) = (name(node), Incarnation(3));
        world.peers.ask(Ask::Forget { name: name.clone(), life, known: true, author: None });
        world.bus.announce(Event::PeerForgotten { peer: name, author: None });
        settled().await;
    };
    forget("c@h").await;
    assert_eq!(world.edge(B, "c@h"), None, "b still speaks of it");
    let nodes = || world.tracker.matrix().borrow().nodes().into_keys().collect::<Vec<_>>();
    assert_eq!(nodes(), [name(A), name(B)]);
    world.wire.close();
    world.peers.show([]);
    forget(B).await;
    assert_eq!(nodes(), [name(A)]);
    [B, "c@h"].iter().for_each(|node| world.peers.ask(Ask::Revive(name(node))));
    world.bus.announce(Event::PeerForgotten { peer: name("x@h"), author: None });
    settled().await;
    assert_eq!(nodes(), [name(A)], "its row is gone for good");
}

#[tokio::test(start_paused = true)]
async fn nonsense_is_counted_and_abuse_costs_the_link() {
    let mut world = world().await;
    world.wire.deliver(Topic::network_topology(), vec![0xff; 9]);
    for _ in 0..20 {
        world.received(&Word::Want(vec![name(A); 5000]));
    }
    settled().await;
    assert_eq!(counted(&world.metrics, "node_messages", "malformed"), 1);
    assert_eq!(world.asked.heard(), Some(Ask::Cut(name(B))));
    let text = world.metrics.text().expect("text");
    assert!(text.contains("xpando_topology_violations_total{"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_the_own_row_is_there_and_the_others_are_asked_for() {
    let mut world = world().await;
    world.received(&delta(0, 1));
    settled().await;
    world.words();
    assert!(world.roster.kill("topology_tracker"));
    settled().await;
    settled().await; // b's first digest is due
    assert_eq!(world.edge(A, B), Some(cell(Status::Online)));
    assert_eq!(world.edge(B, A), None, "b's row comes with its next words");
    let words = world.words();
    assert!(matches!(words[..], [Word::Rows(_), ..]), "b gets its row: {words:?}");
    let digest = |word: &Word| matches!(word, Word::Digest(_));
    assert!(words.iter().any(digest), "and can see what is missing here: {words:?}");
}
