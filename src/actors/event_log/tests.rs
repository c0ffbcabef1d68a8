//! EventLog with a real store in a directory of its own.

use std::sync::atomic::AtomicU64;

use tempfile::TempDir;

use super::*;
use crate::actors::exchange::Exchange;
use crate::actors::supervisor::{ActorTable, Root};
use crate::actors::tests::{cluster, counted, name, run, until};
use crate::io::clock;
use crate::io::store::Chain;
use crate::proto::event::Query;

struct World {
    dir: TempDir,
    setup: Setup,
    roster: ActorTable,
    root: Root,
}

fn setup(dir: &TempDir, metrics: &Metrics) -> Setup {
    let store = Arc::new(Store::open(dir.path(), clock::wall()).expect("opens").0);
    let node = name("a@127.0.0.1");
    let bus = Bus::new(&Exchange::new(node.clone(), metrics));
    let chain = Chain::new(store.clone(), node).expect("its own");
    let identity = Arc::new(cluster(&["a@127.0.0.1"]).remove(0));
    let (trail, life) = (bus.trail().clone(), Arc::new(AtomicU64::new(1)));
    let journal = Journal::open(chain, trail, identity, life, LIMITS).expect("opens");
    Setup { store, journal, bus, metrics: metrics.clone() }
}

async fn world() -> World {
    let dir = tempfile::tempdir().expect("a directory");
    let metrics = Metrics::default();
    let setup = setup(&dir, &metrics);
    let log = EventLog::new(&metrics);
    let children = vec![setup.bus.child(), log.child(setup.clone())];
    let (root, roster) = run(&metrics, children).await;
    World { dir, setup, roster, root }
}

impl World {
    fn happens(&self, millis: u64) {
        self.setup.bus.announce(Event::Paused { millis });
    }

    fn waiting(&self) -> usize {
        self.setup.journal.trail().waiting()
    }

    fn writes(&self, kind: &str) -> u64 {
        counted(&self.setup.metrics, "store_writes", kind)
    }
}

#[tokio::test]
async fn what_happens_is_stored_within_a_while_in_few_batches() {
    let world = world().await;
    (1..=200).for_each(|n| world.happens(n));
    until("stored", || world.waiting() == 0).await;
    assert!(world.writes("ok") < 20, "{} writes", world.writes("ok"));
    let query = Query { after: Some(0), limit: 999, ..Query::default() };
    let kept = world.setup.journal.read(query).await.events;
    assert_eq!(kept.len(), 200);
}

#[tokio::test]
async fn a_raised_incarnation_outlasts_the_run_and_never_falls() {
    let world = world().await;
    world.setup.store.raise(Incarnation(50)).expect("writes");
    for to in [7, 60, 55] {
        world.setup.bus.announce(Event::IncarnationRaised { to: Incarnation(to) });
    }
    let highest = || world.setup.store.raise(Incarnation(0)).expect("reads");
    until("written", || highest() == Incarnation(60) && world.waiting() == 0).await;
    world.root.stop().await;
    drop(world.setup);
    let mut again = None;
    // The file's lock goes with the last of the stopped actors.
    until("closed", || {
        again = Store::open(world.dir.path(), clock::wall()).ok();
        again.is_some()
    })
    .await;
    let (store, _) = again.expect("opened");
    assert_eq!(store.begin_life().expect("writes"), Incarnation(61));
}

#[tokio::test]
async fn what_waited_when_the_actor_was_killed_is_stored_by_its_next_life() {
    let world = world().await;
    until("begun", || world.writes("ok") > 0).await;
    world.happens(1);
    assert!(world.roster.kill("event_log"));
    world.happens(2);
    until("stored", || world.waiting() == 0).await;
    assert_eq!(counted(&world.setup.metrics, "actor_restarts", "event_log"), 1);
    let last = world.setup.journal.verify().await.expect("sound").last;
    assert_eq!(last, 2);
}

#[tokio::test(start_paused = true)]
async fn what_happens_before_a_quiet_time_is_signed_within_a_minute() {
    let world = world().await;
    until("begun", || world.writes("ok") > 0).await;
    world.happens(1);
    until("stored", || world.waiting() == 0).await;
    let chain = Chain::new(world.setup.store.clone(), name("a@127.0.0.1")).expect("its own");
    let proved = || chain.verify(|_, _| true).expect("sound").proved;
    assert_eq!(proved(), 0, "not yet");
    tokio::time::sleep(SEAL).await;
    until("signed", || proved() == 1).await;
    let writes = world.writes("ok");
    tokio::time::sleep(10 * SEAL).await;
    assert_eq!(world.writes("ok"), writes, "nothing happened, so nothing is written");
}

/// The actor's inside is told that a write failed.
#[tokio::test(start_paused = true)]
async fn a_failed_write_is_said_once_and_tried_again_after_a_while() {
    let dir = tempfile::tempdir().expect("a directory");
    let metrics = Metrics::default();
    let setup = setup(&dir, &metrics);
    let log = EventLog::new(&metrics);
    let children = vec![setup.bus.child(), log.child(setup.clone())];
    let (_root, _) = run(&metrics, children).await;
    let trail = setup.journal.trail();
    until("begun", || counted(&metrics, "store_writes", "ok") > 0).await;
    let full = || Err(StoreError::Storage("the disk is full".to_owned()));
    let work = Work { raise: Some(Incarnation(9)), seal: false };
    let start = timer::now();
    log.handle.cast(Msg::Done(work, full()));
    log.handle.cast(Msg::Done(Work::default(), full()));
    until("stored", || trail.waiting() == 0 && trail.first() == 1 && count(trail) == 2).await;
    let waited = timer::now() - start;
    assert!((RETRY..2 * RETRY).contains(&waited), "{waited:?}");
    assert_eq!(counted(&metrics, "store_writes", "failed"), 2);
    let events = trail.read(&Query::default()).events;
    let events: Vec<_> = events.into_iter().map(|it| it.event).collect();
    let why = "store: the disk is full".to_owned();
    assert_eq!(events, [Event::StoreFailing { why }, Event::StoreRecovered]);
    assert_eq!(setup.store.raise(Incarnation(0)).expect("reads"), Incarnation(9));
}

fn count(trail: &crate::actors::news::Trail) -> usize {
    trail.read(&Query::default()).events.len()
}
