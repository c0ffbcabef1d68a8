//! Registry with a mock of NodeManager, a real bus, and a real store in a directory of its own.

use super::*;
use crate::actors::exchange::Exchange;
use crate::actors::news::tests::{Wire, parts};
use crate::actors::peers::tests::{Mock, online};
use crate::actors::supervisor::{ActorTable, Root};
use crate::actors::tests::{counted, identity, name, run, until};
use crate::proto::event::{Author, Event, Reason, Source, Status};
use crate::proto::heartbeat::{Signs, Vital};
use crate::proto::node::{Contact, KeyId};
use crate::proto::registry::book::RETRY;
use crate::proto::registry::{Entry, Profile, Profiles, State, Word};
use crate::proto::rows::tests::sealed_by;
use tempfile::TempDir;

const A: &str = "a@h";
const B: &str = "b@h";
const X: &str = "x@h";

struct World {
    _dir: TempDir,
    store: Arc<Store>,
    bus: Bus,
    registry: Registry,
    metrics: Metrics,
    peers: Peers,
    asked: Mock,
    wire: Wire,
    roster: ActorTable,
    _root: Root,
}

/// Node a, linked with b; it remembers these.
async fn world(remembered: Vec<Known>) -> World {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Arc::new(Store::open(dir.path(), clock::wall()).expect("opens").0);
    let metrics = Metrics::default();
    let bus = Bus::new(&Exchange::new(name(A), &metrics));
    let registry = Registry::new(&metrics, remembered);
    let (peers, asked) = Mock::start().await;
    peers.show([seen(B, Status::Online, 1000)]);
    let setup = Setup {
        own: Own {
            name: name(A),
            id: KeyId([1; 16]),
            address: ([127, 0, 0, 1], 1).into(),
            profile: does("a"),
        },
        identity: identity(A),
        incarnation: Arc::new(AtomicU64::new(3)),
        peers: peers.clone(),
        store: store.clone(),
        bus: bus.clone(),
        metrics: metrics.clone(),
    };
    let (_root, roster) = run(&metrics, vec![bus.child(), registry.child(setup)]).await;
    let wire = Wire::with(&bus, B, 7);
    World { _dir: dir, store, bus, registry, metrics, peers, asked, wire, roster, _root }
}

fn does(what: &str) -> Profile {
    Profile::new([what.parse().expect("a word")], [], 0).expect("within the bounds")
}

fn seen(of: &str, status: Status, port: u16) -> Row {
    let mut row = online(name(of));
    row.id = Some(KeyId([2; 16]));
    row.peer.incarnation = Incarnation(7);
    row.peer.status = status;
    row.peer.address = Some(([127, 0, 0, 1], port).into());
    row
}

/// One that is offline, for this reason.
fn gone(of: &str, reason: Reason, port: u16) -> Row {
    let mut row = seen(of, Status::Offline, port);
    row.peer.reason = Some(reason);
    row
}

fn entry(of: &str, life: u64, version: u64, what: &str) -> Entry {
    let state = State::Live(does(what));
    let row =
        Entry { origin: name(of), incarnation: Incarnation(life), version, state, seal: None };
    sealed_by::<Profiles>(row, &mut NodeSeals::new(identity(of)))
}

impl World {
    /// A peer is seen so.
    fn sees(&self, peer: Row) {
        let others = self.peers.view();
        let mut rows = others.to_vec();
        rows.retain(|row| row.peer.name != peer.peer.name);
        rows.push(peer);
        self.peers.show(rows);
    }

    /// What is known of the last byte of a peer.
    fn heard(&self, of: &str) {
        let heard = Some(timer::now());
        let vital = Vital { heard, ..Vital::default() };
        self.peers.publish_vitals(Signs { local_health: 0, peers: [(name(of), vital)].into() });
    }

    fn hears(&self, word: &Word) {
        self.wire.deliver(Topic::network_registry(), codec::encode(word).expect("encodes"));
    }

    /// Everything that was said to it before is done and written.
    async fn closed(&self) {
        let (done, written) = oneshot::channel();
        self.registry.close(done);
        let closing = tokio::time::timeout(crate::actors::tests::PATIENCE, written).await;
        closing.expect("in time").expect("answered");
    }

    fn known(&self, of: &str) -> Option<Known> {
        self.registry.nodes().get(&name(of)).map(|known| Known::clone(known))
    }

    fn stored(&self, of: &str) -> Option<Known> {
        self.store.known().expect("reads").into_iter().find(|known| known.name == name(of))
    }

    fn does(&self, of: &str, what: &str) -> bool {
        self.known(of).is_some_and(|known| known.does(what))
    }

    fn words(&mut self) -> Vec<Word> {
        let mut words = Vec::new();
        while let Some(told) = self.wire.try_words() {
            let (topic, payload) = parts(&told);
            assert_eq!(topic, Topic::network_registry());
            words.push(codec::decode(&payload, MAX_PAYLOAD).expect("a word"));
        }
        words
    }
}

#[tokio::test]
async fn a_peer_is_remembered_with_what_it_says_and_where_it_was() {
    let world = world(vec![]).await;
    until("b is stored", || world.stored(B).is_some()).await;
    world.hears(&Word::Rows(vec![entry(B, 7, 1, "nlp")]));
    until("its profile is stored", || world.stored(B).is_some_and(|b| b.does("nlp"))).await;
    world.heard(B);
    world.sees(gone(B, Reason::Left, 1000));
    let left = |b: Known| b.reason == Some(Reason::Left) && b.last_heartbeat.is_some();
    until("its end is stored", || world.stored(B).is_some_and(left)).await;
    world.sees(seen(B, Status::Online, 2000));
    let ports = |b: Known| b.addresses.iter().map(std::net::SocketAddr::port).collect::<Vec<_>>();
    until("its new address", || world.stored(B).map(ports) == Some(vec![2000, 1000])).await;
    let b = world.stored(B).expect("there");
    assert_eq!((b.id, b.incarnation, b.reputation), (Some(KeyId([2; 16])), Incarnation(7), 0.0));
    assert!(b.first_seen <= b.last_seen.expect("it was linked"));
    let own = world.known(A).expect("itself");
    assert!(own.does("a") && own.status == Some(Status::Online) && own.incarnation.0 == 3);
    assert_eq!(world.stored(A), None);
}

#[tokio::test]
async fn who_was_never_linked_is_not_remembered_and_who_others_know_is() {
    let world = world(vec![]).await;
    world.sees(seen("c@h", Status::Offline, 9));
    world.hears(&Word::Rows(vec![entry(X, 4, 1, "gpu")]));
    until("x is stored", || world.stored(X).is_some()).await;
    let x = world.known(X).expect("known");
    assert_eq!((x.does("gpu"), x.status, x.last_seen, x.incarnation.0), (true, None, None, 4));
    assert_eq!((world.known("c@h"), world.stored("c@h")), (None, None));
}

#[tokio::test]
async fn a_forgotten_node_is_told_of_shown_no_more_and_stays_so_on_disk() {
    let mut world = world(vec![]).await;
    world.sees(seen(X, Status::Online, 5));
    let x = Wire::with(&world.bus, X, 7);
    let word = Word::Rows(vec![entry(X, 7, 4, "gpu")]);
    x.deliver(Topic::network_registry(), codec::encode(&word).expect("encodes"));
    until("x is known", || world.known(X).is_some()).await;
    let operator = || Operator::local(7);
    world.registry.forget(name(X), Incarnation(7), operator()); // linked: nothing happens
    world.closed().await;
    x.close();
    world.sees(gone(X, Reason::Crashed, 5));
    until("x is offline", || world.known(X).and_then(|x| x.reason).is_some()).await;
    assert_eq!(world.asked.heard(), None);
    assert!(world.registry.rate(&name(X), 0.5));
    world.words();
    world.registry.forget(name(X), Incarnation(7), operator());
    let forget = Ask::Forget {
        name: name(X),
        life: Incarnation(7),
        known: true,
        author: Some(Author::new(name(A), operator())),
    };
    assert_eq!(world.asked.next().await, forget);
    let x = world.known(X).expect("its tombstone");
    assert!(x.is_forgotten() && x.contacts().next().is_none());
    assert!(!world.registry.rate(&name(X), 1.0), "nobody to rate");
    let tombs = |word: &Word| matches!(word, Word::Rows(e) if e[0].gone_at().is_some());
    until("b is told", || world.words().iter().any(tombs)).await;
    until("it is stored", || world.stored(X).is_some_and(|x| x.is_forgotten())).await;
    // Taken back, it is known as it was, and looked for there.
    let mut events = world.bus.events();
    world.registry.restore(name(X), operator());
    assert_eq!(world.asked.next().await, Ask::Revive(name(X)));
    let (life, at) = (Incarnation(7), ([127, 0, 0, 1], 5).into());
    let contact = Contact { name: name(X), address: at, incarnation: life };
    assert_eq!(world.asked.next().await, Ask::Hint(contact, Source::Remembered));
    let author = Some(Author::new(name(A), operator()));
    let restored = Event::PeerRestored { peer: name(X), author };
    while events.recv().await != Some(restored.clone()) {}
    let x = world.known(X).expect("known");
    assert_eq!((x.does("gpu"), x.reputation, x.status), (true, 0.5, Some(Status::Offline)));
    until("it is stored", || world.stored(X).is_some_and(|x| x.does("gpu"))).await;
    world.registry.forget(name(X), Incarnation(7), operator());
    assert_eq!(world.asked.next().await, forget);
    // Its next life is a new node.
    world.hears(&Word::Rows(vec![entry(X, 8, 1, "new")]));
    until("it is back", || world.does(X, "new")).await;
    assert_eq!(world.asked.heard(), Some(Ask::Revive(name(X))));
}

#[tokio::test]
async fn what_is_thought_of_a_node_is_remembered() {
    let world = world(vec![]).await;
    until("b is known", || world.stored(B).is_some()).await;
    assert!(world.registry.rate(&name(B), -1.5));
    assert_eq!(world.known(B).map(|b| b.reputation), Some(-1.5), "at once");
    until("written", || world.stored(B).is_some_and(|b| b.reputation == -1.5)).await;
    world.sees(seen(B, Status::Offline, 1000));
    until("parted", || world.stored(B).is_some_and(|b| b.status == Some(Status::Offline))).await;
    assert_eq!(world.stored(B).map(|b| b.reputation), Some(-1.5), "and stays");
    assert!(!world.registry.rate(&name("nobody@h"), 1.0));
}

#[tokio::test]
async fn an_earlier_run_is_remembered_as_offline_and_after_a_restart_nothing_is_lost() {
    let remembered = Known {
        status: Some(Status::Online),
        entry: Some(entry(X, 4, 9, "gpu")),
        ..Known::new(name(X), 1)
    };
    let mut world = world(vec![remembered]).await;
    assert_eq!(world.known(X).and_then(|x| x.status), Some(Status::Offline));
    world.hears(&Word::Rows(vec![entry(B, 7, 1, "nlp")]));
    until("b is known", || world.does(B, "nlp")).await;
    let version = |world: &World| world.known(A).and_then(|a| a.entry).map(|entry| entry.version);
    let before = version(&world);
    world.words();
    assert!(world.roster.kill("registry"));
    until("restarted", || counted(&world.metrics, "actor_restarts", "registry") == 1).await;
    until("it speaks above its last word", || version(&world) > before).await;
    assert!(world.does(B, "nlp") && world.does(X, "gpu"));
    let own = |word: &Word| matches!(word, Word::Rows(e) if e[0].origin == name(A));
    until("and tells b", || world.words().iter().any(own)).await;
    until("all is written", || world.stored(X).is_some() && world.stored(B).is_some()).await;
}

#[tokio::test]
async fn nonsense_is_counted_and_abuse_costs_the_link() {
    let mut world = world(vec![]).await;
    world.wire.deliver(Topic::network_registry(), vec![0xff; 9]);
    for _ in 0..20 {
        world.hears(&Word::Want(vec![name(A); 5000]));
    }
    assert_eq!(world.asked.next().await, Ask::Cut(name(B)));
    assert_eq!(counted(&world.metrics, "node_messages", "malformed"), 1);
    assert_eq!(counted(&world.metrics, "registry_violations", "too many in one word"), 17);
}

#[tokio::test]
async fn at_the_end_it_is_written_who_is_still_seen() {
    let world = world(vec![]).await;
    until("b is stored", || world.stored(B).is_some()).await;
    let before = world.stored(B).and_then(|b| b.last_seen).expect("it is linked");
    until("time passes", || clock::millis() > before).await;
    world.closed().await;
    assert!(world.stored(B).and_then(|b| b.last_seen) > Some(before));
}

/// A store cannot be made to fail from outside, so the actor's inside is told that it did.
#[tokio::test(start_paused = true)]
async fn a_failed_write_is_tried_again_after_a_while() {
    let world = world(vec![]).await;
    until("b is stored", || counted(&world.metrics, "store_writes", "ok") == 1).await;
    let error = StoreError::Storage("the disk is full".to_owned());
    world.store.remember(&[], &[name(B)]).expect("writes");
    world.registry.handle.cast(Msg::Written(Batch([name(B)].into()), Err(error)));
    let start = timer::now();
    until("tried again", || world.stored(B).is_some()).await;
    assert_eq!(counted(&world.metrics, "store_writes", "failed"), 1);
    let waited = timer::now() - start;
    assert!((RETRY..2 * RETRY).contains(&waited), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn while_changes_go_on_nodes_are_written_now_and_then() {
    let world = world(vec![]).await;
    let writes = || counted(&world.metrics, "store_writes", "ok");
    until("b is stored", || writes() > 0).await;
    for version in 1..=100 {
        world.hears(&Word::Rows(vec![entry(B, 7, version, "nlp")]));
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert!((5..=7).contains(&writes()), "{} writes in 10 s", writes());
    let last = |b: Known| b.entry.is_some_and(|entry| entry.version == 100);
    until("the last change is stored", || world.stored(B).is_some_and(last)).await;
    // At the end nothing waits.
    for version in 101..=110 {
        world.hears(&Word::Rows(vec![entry(B, 7, version, "nlp")]));
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let before = timer::now();
    world.closed().await;
    assert!(timer::now() - before < std::time::Duration::from_secs(1));
    assert!(world.stored(B).is_some_and(|b| b.entry.is_some_and(|entry| entry.version == 110)));
}
