//! The recorder with a real file, and the actor that writes it.

use super::*;
use crate::actors::exchange::Exchange;
use crate::actors::supervisor::Root;
use crate::actors::tests::{counted, name, run, until};
use crate::proto::event::Query;

const FILE: &str = "history.redb";

struct World {
    dir: tempfile::TempDir,
    recorder: Recorder,
    metrics: Metrics,
    bus: Bus,
    tape: Tape,
    index: u64,
}

fn world() -> World {
    let dir = tempfile::tempdir().expect("a directory");
    let metrics = Metrics::default();
    let history = History::open(dir.path(), clock::wall()).expect("opens").0;
    let rules = vec!["*=100000,1d,disk".parse().expect("a retention")];
    let rules = Retentions::new(rules).expect("few");
    let recorder = Recorder::new(history, rules, u64::MAX, &metrics);
    let bus = Bus::new(&Exchange::new(name("a@127.0.0.1"), &metrics));
    let tape = recorder.tape(&"room:1".parse().expect("a topic"));
    World { dir, recorder, metrics, bus, tape, index: 0 }
}

impl World {
    fn take(&mut self, bytes: usize) {
        let taking = self.recorder.take(&self.tape, self.index);
        let message = vec![7; bytes];
        taking.append(clock::millis(), &name("a@127.0.0.1"), &message, Standing::default());
        self.index += 1;
    }

    /// The indices that can be read.
    fn indices(&self) -> Vec<u64> {
        let found = self.recorder.newest(&self.tape, |_| false);
        found.chunks.iter().flat_map(|chunk| chunk.first()..chunk.next()).collect()
    }

    async fn start(&self) -> Root {
        run(&self.metrics, vec![self.bus.child(), self.recorder.child(&self.bus)]).await.0
    }

    fn announced(&self) -> Vec<String> {
        let page = self.bus.trail().read(&Query { limit: 100, ..Query::default() });
        page.events.iter().map(|it| it.event.label().to_owned()).collect()
    }
}

#[test]
fn what_waits_and_what_is_written_is_read_as_one() {
    let mut world = world();
    for at in 0..10 {
        world.take(10);
        if at == 3 || at == 7 {
            world.recorder.write().expect("writes");
        }
        assert_eq!(world.indices(), (0..=at).collect::<Vec<_>>());
        assert_eq!(world.recorder.next(&world.tape), at + 1);
    }
    let found = world.recorder.newest(&world.tape, |chunk| chunk.first() <= 5);
    assert_eq!(found.chunks.first().map(Chunk::first), Some(4), "no more than is asked for");
    // A topic that opens again goes on with what waits.
    let again = world.recorder.tape(&"room:1".parse().expect("a topic"));
    assert!(Arc::ptr_eq(&again.0, &world.tape.0));
    assert_eq!(world.recorder.topics().len(), 1);
}

#[test]
fn a_write_includes_what_came_while_another_one_was_under_way() {
    let mut world = world();
    world.take(10);
    // As far as another write is that has begun.
    let recorder = world.recorder.clone();
    let under_way = recorder.0.writing.lock();
    let noted = std::mem::take(&mut *recorder.0.noted.lock());
    world.take(10);
    let (done, is_done) = std::sync::mpsc::channel();
    let last = world.recorder.clone();
    let closing = std::thread::spawn(move || done.send(last.write()).expect("heard"));
    assert!(is_done.recv_timeout(Duration::from_millis(200)).is_err(), "it waits for the other");
    *recorder.0.noted.lock() = noted;
    drop(under_way);
    is_done.recv().expect("it ends").expect("writes");
    closing.join().expect("ends");
    let row = recorder.0.history.row(&"room:1".parse().expect("a topic")).expect("reads");
    assert_eq!(row.map(|row| row.next), Some(2), "nothing waits any more");
}

#[test]
fn what_waits_is_bounded_and_what_is_dropped_is_counted() {
    let mut world = world();
    let many = PENDING / FULL + 20;
    for _ in 0..many {
        world.take(FULL);
    }
    assert!(world.recorder.0.pending.load(Ordering::Relaxed) <= PENDING + FULL);
    let lost = counted(&world.metrics, "channel_events", "history_lost");
    let indices = world.indices();
    assert_eq!(indices, (lost..many as u64).collect::<Vec<_>>());
    assert!(lost >= 20, "{lost}");
    world.recorder.write().expect("writes");
    assert_eq!(world.recorder.0.pending.load(Ordering::Relaxed), 0);
    assert_eq!(world.indices(), indices);
}

#[tokio::test(start_paused = true)]
async fn it_is_written_soon_and_a_file_that_fails_is_said_and_begun_anew() {
    let mut world = world();
    let _root = world.start().await;
    world.take(10);
    until("written", || world.recorder.history().totals().topics == 1).await;
    std::fs::remove_file(world.dir.path().join(FILE)).expect("there");
    world.take(10);
    until("that it fails", || world.announced().contains(&"history_failing".to_owned())).await;
    assert!(world.recorder.history().condition().failing.is_some());
    assert_eq!(world.indices().last(), Some(&1), "in memory");
    until("that it recovers", || world.announced().contains(&"history_recovered".to_owned())).await;
    assert!(world.indices().contains(&1));
    let said = world.announced();
    assert_eq!(said.iter().filter(|it| it.starts_with("history_")).count(), 2, "{said:?}");
}
