//! Chunks: any change of their bytes, and a log that goes on from them after a stop at any point.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const BOUNDS: Bounds = Bounds { entries: 10, bytes: usize::MAX };

fn name(text: &str) -> NodeName {
    text.parse().expect("valid")
}

/// A message is its position, as text.
fn message(position: Position) -> String {
    format!("{} {} {}", position.epoch, position.n, position.tag)
}

fn entry(record: &Record) -> Option<(Position, usize, u64)> {
    let text = std::str::from_utf8(&record.message).ok()?;
    let mut parts = text.split(' ');
    let epoch = parts.next()?.parse().ok()?;
    let (n, tag) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some((Position { epoch, n, tag }, 1, record.index))
}

fn sample() -> Chunk {
    let mut log: Log<()> = Log::new();
    log.push(&name("a@h"), Position { epoch: 1, n: 1, tag: 9 }, 1, ());
    let mut chunk = Chunk::new(7, log.stands());
    for n in 2..5 {
        let position = Position { epoch: 1, n, tag: n };
        assert!(chunk.push(n, &name("a@h"), message(position).as_bytes()));
    }
    chunk
}

#[test]
fn a_chunk_is_read_as_it_was_written() {
    let chunk = sample();
    let bytes = chunk.encode().expect("short");
    assert_eq!(Chunk::decode(&bytes), Some(chunk.clone()));
    assert_eq!(Chunk::head(&bytes), Some(Head { last: 4, count: 3 }));
    assert_eq!((chunk.first(), chunk.next(), chunk.last(), chunk.count()), (7, 10, 4, 3));
    let records: Vec<_> = chunk.records().map(|it| (it.index, it.at, it.from)).collect();
    let a = || name("a@h");
    assert_eq!(records, [(7, 2, a()), (8, 3, a()), (9, 4, a())]);
}

#[test]
fn one_that_was_cut_or_changed_anywhere_is_none() {
    let bytes = sample().encode().expect("short");
    for at in 0..bytes.len() {
        assert_eq!(Chunk::decode(&bytes[..at]), None, "cut at {at}");
        for bit in 0..8 {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << bit;
            assert_eq!(Chunk::decode(&changed), None, "bit {bit} of {at}");
        }
    }
    let longer = [&bytes[..], &[0]].concat();
    assert_eq!(Chunk::decode(&longer), None);
}

/// A topic: its log, and what was written of it in chunks of any length.
struct Topic {
    log: Log<u64>,
    index: u64,
    chunks: Vec<Chunk>,
    open: Option<Chunk>,
    last: BTreeMap<usize, Position>,
}

#[derive(Clone, Debug)]
enum Step {
    Say(usize),
    /// The next message of a publisher does not come.
    Hole(usize),
    /// A publisher begins anew.
    Again(usize),
    Missed,
    /// What was taken is written.
    Flush,
    /// The node stops and starts.
    Restart,
    /// A chunk is lost: so many from the end.
    Lose(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..3_usize).prop_map(Step::Say),
        1 => (0..3_usize).prop_map(Step::Hole),
        1 => (0..3_usize).prop_map(Step::Again),
        1 => Just(Step::Missed),
        4 => Just(Step::Flush),
        2 => Just(Step::Restart),
        1 => (0..3_usize).prop_map(Step::Lose),
    ]
}

impl Topic {
    fn new() -> Self {
        let (log, last) = (Log::within(BOUNDS), BTreeMap::new());
        Self { log, index: 0, chunks: Vec::new(), open: None, last }
    }

    fn publisher(at: usize) -> NodeName {
        name(["a@h", "b@h", "c@h"][at])
    }

    fn next(&mut self, at: usize) -> Position {
        let last = self.last.entry(at).or_insert(Position { epoch: 1, n: 0, tag: 0 });
        *last = Position { n: last.n + 1, tag: last.n * 7 + u64::from(last.epoch), ..*last };
        *last
    }

    fn flush(&mut self) {
        self.chunks.extend(self.open.take());
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Say(at) => {
                let (position, from) = (self.next(at), Self::publisher(at));
                if self.open.as_ref().is_some_and(|open| open.next() != self.index) {
                    self.flush();
                }
                let (standing, index) = (self.log.stands(), self.index);
                self.log.push(&from, position, 1, index);
                let open = self.open.get_or_insert_with(|| Chunk::new(index, standing));
                assert!(open.push(index, &from, message(position).as_bytes()));
                self.index += 1;
            }
            Step::Hole(at) => drop(self.next(at)),
            Step::Again(at) => {
                let last = self.next(at);
                self.last.insert(at, Position { epoch: last.epoch + 1, n: 0, tag: 0 });
            }
            Step::Missed => {
                self.log.missed();
                self.index += 1;
            }
            Step::Flush => self.flush(),
            Step::Restart => {
                self.flush();
                self.log = self.rebuilt();
            }
            Step::Lose(back) => {
                if let Some(at) = self.chunks.len().checked_sub(back + 1) {
                    self.chunks.remove(at);
                }
            }
        }
    }

    fn rebuilt(&self) -> Log<u64> {
        let chunks: Vec<_> = self.chunks.iter().chain(&self.open).cloned().collect();
        let (last, log) =
            (chunks.last().map(Chunk::next), rebuild(&chunks, BOUNDS, entry, |_, _| {}));
        let mut log = log.unwrap_or_else(|| Log::within(BOUNDS));
        // Where the topic ends is written beside its chunks.
        if last != Some(self.index) {
            log.missed();
        }
        log
    }
}

fn answer(log: &Log<u64>, cursor: &Cursor) -> Option<Vec<u64>> {
    log.after(cursor).ok().map(|rest| rest.copied().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// A log that is rebuilt answers every cursor as the one that went on, and after a loss with no less than it
    /// should: what it says is all that came after.
    #[test]
    fn a_rebuilt_log_says_what_the_one_before_said(
        steps in proptest::collection::vec(step(), 0..60),
    ) {
        let (mut topic, mut cursors, mut lost) = (Topic::new(), vec![], false);
        // All that was ever taken, with where one stood who had taken it.
        let mut all: Vec<(Cursor, u64)> = Vec::new();
        for step in &steps {
            let before = topic.index;
            topic.run(step);
            lost |= matches!(step, Step::Lose(_));
            if matches!(step, Step::Say(_)) {
                all.push((topic.log.cursor().clone(), before));
                cursors.push(topic.log.cursor().clone());
            }
        }
        let rebuilt = topic.rebuilt();
        for cursor in &cursors {
            let (own, from_disk) = (answer(&topic.log, cursor), answer(&rebuilt, cursor));
            if !lost && !steps.iter().any(|it| matches!(it, Step::Restart)) {
                prop_assert_eq!(&from_disk, &own, "{}", cursor);
            }
            if let Some(got) = from_disk {
                let at = all.iter().position(|(stood, _)| stood == cursor);
                let after = all.iter().skip(at.map_or(0, |at| at + 1)).map(|(_, index)| *index);
                let expected: Vec<_> = after.collect();
                prop_assert_eq!(got, expected, "{} of {:?}", cursor, steps);
            }
        }
    }

    #[test]
    fn no_bytes_panic(bytes: Vec<u8>) {
        drop((Chunk::decode(&bytes), Chunk::head(&bytes)));
    }
}

#[test]
fn an_end_that_is_unknown_is_lost_alone_and_any_other_jump_is_all() {
    let said = |epoch| Position { epoch, n: 1, tag: 7 };
    let seen = |text: &str| text.parse::<Cursor>().expect("a cursor");
    for (jump, others) in [(0, true), (UNKNOWN_END, true), (1, false), (UNKNOWN_END + 1, false)] {
        let mut first = Chunk::new(1, Standing::default());
        assert!(first.push(0, &name("a@h"), message(said(1)).as_bytes()));
        assert!(first.push(0, &name("b@h"), message(said(1)).as_bytes()));
        let mut second = Chunk::new(3 + jump, Standing::default());
        assert!(second.push(0, &name("a@h"), message(said(2)).as_bytes()));
        let log = rebuild(&[first, second], Bounds::default(), entry, |_, _| {}).expect("chunks");
        // Who has seen the first of the new epoch has seen what may be lost.
        assert_eq!(answer(&log, &seen("a@h/2:1:7,b@h/1:1:7")).is_some(), others, "{jump}");
        assert_eq!(answer(&log, &seen("a@h/1:1:7,b@h/1:1:7")).is_some(), jump == 0, "{jump}");
    }
}
