//! EventLog with a real store in a directory of its own.

use super::*;
use crate::actors::supervisor::{Root, Roster};
use crate::actors::tests::{contact, counted, name, run, until};
use crate::proto::event::{Reason, Source};
use tempfile::TempDir;

struct World {
    dir: TempDir,
    store: Arc<Store>,
    pubsub: PubSub,
    metrics: Metrics,
    roster: Roster,
    root: Root,
}

async fn world() -> World {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Arc::new(Store::open(dir.path(), clock::wall()).expect("opens").0);
    let metrics = Metrics::default();
    let (pubsub, log) =
        (PubSub::new("a@127.0.0.1".parse().expect("valid"), &metrics), EventLog::new(&metrics));
    let setup = Setup { store: store.clone(), pubsub: pubsub.clone(), metrics: metrics.clone() };
    let (root, roster) = run(&metrics, vec![pubsub.child(), log.child(setup)]).await;
    World { dir, store, pubsub, metrics, roster, root }
}

impl World {
    fn online(&self, contact: &Contact) {
        let Contact { name: peer, address, incarnation } = contact.clone();
        self.pubsub.announce(Event::PeerOnline { peer, incarnation, address });
    }

    fn peers(&self) -> Vec<Contact> {
        self.store.peers().expect("reads")
    }

    fn written(&self) -> u64 {
        counted(&self.metrics, "store_writes", "ok")
    }
}

#[tokio::test]
async fn a_peer_that_came_online_is_remembered_where_it_was_last() {
    let world = world().await;
    let first = contact("b@127.0.0.1", 1000, 1);
    world.online(&first);
    until("remembered", || world.peers() == [first.clone()]).await;
    let later = contact("b@127.0.0.1", 2000, 2);
    world.online(&later);
    until("remembered anew", || world.peers() == [later.clone()]).await;
}

#[tokio::test]
async fn a_raised_incarnation_outlasts_the_run() {
    let world = world().await;
    world.pubsub.announce(Event::IncarnationRaised { to: Incarnation(42) });
    until("written", || world.written() == 1).await;
    world.root.stop().await;
    drop((world.pubsub, world.store));
    let mut again = None;
    // The file's lock goes with the last of the stopped actors.
    until("closed", || {
        again = Store::open(world.dir.path(), clock::wall()).ok();
        again.is_some()
    })
    .await;
    let (store, _) = again.expect("opened");
    assert_eq!(store.begin_life().expect("writes"), Incarnation(43));
}

#[tokio::test]
async fn an_incarnation_never_falls_and_the_highest_of_a_batch_counts() {
    let world = world().await;
    world.store.raise(Incarnation(50)).expect("writes");
    for to in [7, 60, 55] {
        world.pubsub.announce(Event::IncarnationRaised { to: Incarnation(to) });
    }
    let highest = || world.store.raise(Incarnation(0)).expect("reads");
    until("written", || highest() == Incarnation(60)).await;
    // A write of its own shows that the queue before it is done.
    let last = contact("z@127.0.0.1", 1, 1);
    world.online(&last);
    until("all written", || world.peers() == [last.clone()]).await;
    assert_eq!(highest(), Incarnation(60));
}

#[tokio::test]
async fn a_burst_is_written_in_few_batches_and_whole() {
    let world = world().await;
    for n in 1..=200 {
        world.online(&contact(&format!("n{n}@127.0.0.1"), n, 1));
    }
    until("all remembered", || world.peers().len() == 200).await;
    let started = timer::now();
    until("counted", || world.written() > 0).await;
    assert!(world.written() < 100, "{} writes in {:?}", world.written(), started.elapsed());
}

#[tokio::test]
async fn other_events_are_not_written() {
    let world = world().await;
    let (peer, address) = (name("b@127.0.0.1"), contact("b@127.0.0.1", 1, 1).address);
    for event in [
        Event::PeerDiscovered { peer: peer.clone(), address, source: Source::Beacon },
        Event::PeerSyncing { peer: peer.clone(), incarnation: Incarnation(1), address },
        Event::PeerOffline { peer: peer.clone(), reason: Reason::Left },
    ] {
        world.pubsub.announce(event);
    }
    let known = contact("z@127.0.0.1", 1, 1);
    world.online(&known);
    until("the last is written", || world.written() == 1).await;
    assert_eq!(world.peers(), [known]);
}

#[tokio::test]
async fn after_a_restart_the_next_event_is_written_again() {
    let world = world().await;
    let (before, after) = (contact("b@127.0.0.1", 1, 1), contact("c@127.0.0.1", 2, 1));
    world.online(&before);
    until("remembered", || world.peers() == [before.clone()]).await;
    assert!(world.roster.kill("event_log"));
    until("restarted", || counted(&world.metrics, "actor_restarts", "event_log") == 1).await;
    // An event may fall into the gap: the peer's next one counts.
    until("remembered by the next life", || {
        world.online(&after);
        world.peers().contains(&after)
    })
    .await;
    assert!(world.peers().contains(&before), "what was written stays");
}

/// A store cannot be made to fail from outside, so the actor's inside is told that it did.
#[tokio::test(start_paused = true)]
async fn a_failed_write_is_tried_again_after_a_while_with_what_came_in_meanwhile() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Arc::new(Store::open(dir.path(), clock::wall()).expect("opens").0);
    let metrics = Metrics::default();
    let (pubsub, log) =
        (PubSub::new("a@127.0.0.1".parse().expect("valid"), &metrics), EventLog::new(&metrics));
    let setup = Setup { store: store.clone(), pubsub: pubsub.clone(), metrics: metrics.clone() };
    let (_root, _) = run(&metrics, vec![pubsub.child(), log.child(setup)]).await;
    let old = contact("b@127.0.0.1", 1, 1);
    let other = contact("c@127.0.0.1", 2, 1);
    let failed = Batch {
        peers: [old.clone(), other.clone()].map(|c| (c.name.clone(), c)).into(),
        incarnation: Some(Incarnation(9)),
    };
    let error = StoreError::Storage("the disk is full".to_owned());
    let first = contact("d@127.0.0.1", 4, 1);
    let newer = contact("b@127.0.0.1", 3, 2);
    let online = |contact: &Contact| {
        let Contact { name: peer, address, incarnation } = contact.clone();
        Msg::Event(Event::PeerOnline { peer, incarnation, address })
    };
    // The first is being written when the newer word comes in, and then the write is said to fail.
    log.handle.cast(online(&first));
    log.handle.cast(online(&newer));
    log.handle.cast(Msg::Event(Event::IncarnationRaised { to: Incarnation(4) }));
    log.handle.cast(Msg::Written(failed, Err(error)));
    let start = timer::now();
    until("tried again", || counted(&metrics, "store_writes", "ok") == 2).await;
    assert_eq!(counted(&metrics, "store_writes", "failed"), 1);
    let waited = timer::now() - start;
    assert!((RETRY..2 * RETRY).contains(&waited), "{waited:?}");
    let mut peers = store.peers().expect("reads");
    peers.sort_by_key(|contact| contact.name.clone());
    assert_eq!(peers, [newer, other, first], "the newer word wins");
    assert_eq!(store.raise(Incarnation(0)).expect("reads"), Incarnation(9));
}
