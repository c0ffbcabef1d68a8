//! The journal on a real disk: what waits is written once, whatever happens to the file.

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicU64;

use tempfile::TempDir;

use super::*;
use crate::actors::tests::{cluster, name};
use crate::io::store::Store;
use crate::proto::event::Event;

mod random;

struct World {
    dir: TempDir,
    identity: Arc<Identity>,
    store: Arc<Store>,
    journal: Journal,
}

fn open(dir: &Path, identity: &Arc<Identity>, limits: Limits) -> (Arc<Store>, Journal) {
    let store = Arc::new(Store::open(dir, clock::wall()).expect("opens").0);
    let chain = Chain::new(store.clone(), name("a@127.0.0.1")).expect("its own");
    let life = Arc::new(AtomicU64::new(1));
    let journal = Journal::open(chain, Trail::default(), identity.clone(), life, limits);
    (store, journal.expect("opens"))
}

impl World {
    fn new(limits: Limits) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let identity = Arc::new(cluster(&["a@127.0.0.1"]).remove(0));
        let (store, journal) = open(dir.path(), &identity, limits);
        Self { dir, identity, store, journal }
    }

    /// The next life of the node.
    fn again(self) -> Self {
        let Self { dir, identity, store, journal } = self;
        drop((store, journal));
        let (store, journal) = open(dir.path(), &identity, LIMITS);
        Self { dir, identity, store, journal }
    }

    fn note(&self, many: std::ops::RangeInclusive<u64>) {
        many.for_each(|millis| self.journal.trail().note(Event::Paused { millis }));
    }

    async fn read(&self, after: Option<u64>, limit: usize) -> (Vec<u64>, u64, u64) {
        let query = Query { after, limit, ..Query::default() };
        let page = self.journal.read(query).await;
        (page.events.iter().map(|event| event.seq).collect(), page.next, page.first)
    }
}

/// What each event says: its number, if all went well.
fn number(Recorded { event, .. }: &Recorded) -> u64 {
    if let Event::Paused { millis } = event { *millis } else { panic!("{event:?}") }
}

#[tokio::test]
async fn numbers_go_on_in_the_next_life_and_old_events_are_read_with_new_ones() {
    let world = World::new(LIMITS);
    world.note(1..=5);
    world.journal.flush().await.expect("writes");
    let world = world.again();
    world.note(6..=8);
    assert_eq!(world.read(None, 100).await, ((1..=8).collect(), 8, 1));
    assert_eq!(world.read(None, 4).await, (vec![5, 6, 7, 8], 8, 1));
    assert_eq!(world.read(Some(3), 3).await, (vec![4, 5, 6], 6, 1));
    assert_eq!(world.read(Some(6), 100).await, (vec![7, 8], 8, 6), "from memory");
    let after = Query { after: Some(0), limit: 9, ..Query::default() };
    let none = world.journal.read(Query { until: Some(0), ..after.clone() }).await;
    assert_eq!((none.events, none.next), (vec![], 8));
    world.journal.write().expect("writes");
    let kept = world.journal.read(after).await;
    assert_eq!(kept.events.iter().map(number).collect::<Vec<_>>(), (1..=8).collect::<Vec<_>>());
    let stamps: Vec<_> = kept.events.iter().map(|event| event.stamp).collect();
    assert!(stamps.is_sorted_by(|one, other| one < other), "{stamps:?}");
    let verified = world.journal.verify().await.expect("sound");
    assert_eq!((verified.last, verified.proved), (8, 8));
}

#[tokio::test]
async fn who_follows_gets_what_is_stored_then_what_waits_and_then_what_comes() {
    let world = World::new(LIMITS);
    let many = PAGE as u64 * 2 + 7;
    world.note(1..=many);
    world.journal.flush().await.expect("writes");
    let world = world.again();
    world.note(many + 1..=many + 2);
    let mut following = world.journal.follow(Some(3));
    for seq in 4..=many + 2 {
        let kept = following.recv().await.expect("runs");
        assert_eq!((kept.seq, number(&kept)), (seq, seq));
    }
    world.note(many + 3..=many + 3);
    assert_eq!(following.recv().await.expect("runs").seq, many + 3);
    let mut from_now = world.journal.follow(None);
    world.note(0..=0);
    assert_eq!(from_now.recv().await.expect("runs").seq, many + 4);
}

#[tokio::test]
async fn who_follows_is_told_how_much_was_forgotten() {
    let world = World::new(Limits { age: Duration::MAX, bytes: 0 });
    world.note(1..=5);
    world.journal.flush().await.expect("writes, and forgets all");
    let world = world.again();
    world.note(6..=6);
    let mut following = world.journal.follow(Some(2));
    let forgotten = following.recv().await.expect("runs");
    assert_eq!((forgotten.seq, forgotten.event), (0, Event::EventsMissed { count: 3 }));
    assert_eq!(following.recv().await.expect("runs").seq, 6);
    let verified = world.journal.verify().await.expect("sound");
    assert_eq!((verified.forgotten, verified.last, verified.proved), (5, 6, 6));
}

#[tokio::test]
async fn what_outlasted_the_rest_is_read_and_no_follower_hears_it_late() {
    let world = World::new(Limits { age: Duration::MAX, bytes: 4000 });
    world.journal.trail().note(Event::NodeStarted { version: "1".to_owned() });
    world.note(2..=200);
    world.journal.flush().await.expect("writes, and forgets most");
    let world = world.again();
    let label = Some("node_started".to_owned());
    let page = world.journal.read(Query { label, after: Some(0), ..Query::default() }).await;
    assert_eq!(page.events.iter().map(|event| event.seq).collect::<Vec<_>>(), [1]);
    assert!(page.first > 100 && page.events[0].hash.is_some(), "{page:?}");
    let mut following = world.journal.follow(Some(0));
    let forgotten = following.recv().await.expect("runs");
    assert_eq!(forgotten.event, Event::EventsMissed { count: page.first - 1 });
    assert_eq!(following.recv().await.expect("runs").seq, page.first);
    assert_eq!(world.journal.verify().await.expect("sound").lasting, 1);
}

#[tokio::test]
async fn a_commit_that_succeeded_although_it_seemed_to_fail_is_not_written_again() {
    let world = World::new(LIMITS);
    world.note(1..=5);
    let (_, waiting) = world.journal.trail().unstored(3);
    world.journal.0.chain.append(&waiting).expect("writes");
    world.journal.write().expect("writes");
    let kept = world.journal.0.chain.after(0, 99, |_| true).expect("reads");
    assert_eq!(kept.iter().map(number).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn a_file_that_is_damaged_while_it_is_in_use_gives_way_to_one_that_goes_on() {
    let world = World::new(LIMITS);
    // More than the store's cache holds.
    world.note(1..=20_000);
    world.journal.flush().await.expect("writes");
    let file = world.dir.path().join("node.redb");
    let mut bytes = fs::read(&file).expect("reads");
    bytes[4096..].fill(0xa5);
    fs::write(&file, &bytes).expect("writes");
    let newest = world.journal.trail().first();
    let (found, _, first) = world.read(Some(0), 20_000).await;
    let memory: Vec<_> = (newest..=20_000).collect();
    assert_eq!((found, first), (memory.clone(), newest), "from memory");
    // The next one opens a new file, in which nothing is yet.
    assert_eq!(world.read(Some(0), 20_000).await, (memory, 20_000, newest));
    assert_eq!(world.read(None, 1).await, (vec![20_000], 20_000, newest));
    world.note(20_001..=20_003);
    world.journal.write().expect("writes");
    assert!(world.store.condition().set_aside.is_some());
    let verified = world.journal.verify().await.expect("sound");
    assert_eq!((verified.forgotten, verified.last, verified.proved), (20_000, 20_003, 20_003));
    let last = vec![20_001, 20_002, 20_003];
    assert_eq!(world.again().read(None, 9).await, (last, 20_003, 20_001));
}

#[tokio::test]
async fn a_key_that_was_replaced_is_still_believed() {
    let certs = tempfile::tempdir().expect("a directory");
    let now = clock::wall();
    let authority = crate::io::identity::Authority::init(certs.path(), now).expect("a CA");
    let valid = crate::io::identity::Validity::leaf(now);
    let issue = || authority.issue(certs.path(), &name("a@127.0.0.1"), valid);
    let first = Arc::new(issue().expect("a leaf"));
    let fresh = tempfile::tempdir().expect("a directory");
    let (store, journal) = open(fresh.path(), &first, LIMITS);
    journal.trail().note(Event::Paused { millis: 1 });
    journal.flush().await.expect("writes");
    drop((store, journal));
    authority.revoke(&name("a@127.0.0.1"), now).expect("revoked");
    let second = Arc::new(issue().expect("a fresh leaf"));
    assert_ne!(first.id(), second.id());
    let (_store, journal) = open(fresh.path(), &second, LIMITS);
    journal.trail().note(Event::Paused { millis: 2 });
    let verified = journal.verify().await.expect("both keys count");
    assert_eq!((verified.last, verified.proved), (2, 2));
    // The key of another cluster does not.
    let foreign = cluster(&["a@127.0.0.1"]).remove(0);
    let certificates = journal.0.chain.signers().expect("reads");
    assert_eq!(certificates.len(), 2);
    let signers = Signers::of(&foreign.verifier(), &name("a@127.0.0.1"), &certificates);
    let error = journal.0.chain.verify(|m, s| signers.signed(m, s)).expect_err("not its cluster");
    assert!(error.to_string().contains("not the node's"), "{error}");
}
