//! Replay: the rules one by one, and a client that moves between two logs, against the whole history.

#![allow(clippy::indexing_slicing, reason = "an index that is off is a failed test")]

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::strategy::ValueTree;

use super::cursor::STAMP;
use super::*;

mod epochs;

const CAPACITY: usize = 512;
const BYTES: usize = 4 * 1024 * 1024;

fn name(text: &str) -> NodeName {
    text.parse().expect("valid")
}

/// The tag of every message here, unless a test says otherwise.
const TAG: u64 = 0xf;

/// A cursor of messages with that tag: `a@h/1:3` is `a@h/1:3:f`.
fn cursor(text: &str) -> Cursor {
    tagged(text).parse().expect(text)
}

fn tagged(text: &str) -> String {
    let parts = text.split(',').filter(|_| !text.is_empty());
    parts.map(|part| format!("{part}:{TAG:x}")).collect::<Vec<_>>().join(",")
}

/// A log that took these, such as `a1:5` for number 5 of epoch 1 of `a@h`.
fn log(entries: &str) -> Log<String> {
    let mut log = Log::new();
    for entry in entries.split_whitespace() {
        push(&mut log, entry);
    }
    log
}

fn push(log: &mut Log<String>, entry: &str) -> Verdict {
    let (head, n) = entry.split_once(':').expect("a number");
    let (from, epoch) = head.split_at(1);
    let (epoch, n) = (epoch.parse().expect("an epoch"), n.parse().expect("a number"));
    let stamp = Position { epoch, n, tag: TAG };
    log.push(&name(&format!("{from}@h")), stamp, 1, entry.to_owned())
}

fn after(log: &Log<String>, text: &str) -> Result<String, Gap> {
    let cursor = cursor(text);
    log.after(&cursor).map(|entries| entries.cloned().collect::<Vec<_>>().join(" "))
}

fn ok(text: &str) -> Result<String, Gap> {
    Ok(text.to_owned())
}

#[test]
fn the_rest_after_a_cursor_comes_in_order() {
    let log = log("a1:1 b2:1 a1:2 a1:3 b2:2");
    assert_eq!(log.cursor().to_string(), tagged("a@h/1:3,b@h/2:2"));
    assert_eq!(after(&log, ""), ok("a1:1 b2:1 a1:2 a1:3 b2:2"));
    assert_eq!(after(&log, "a@h/1:1"), ok("b2:1 a1:2 a1:3 b2:2"));
    assert_eq!(after(&log, "a@h/1:2,b@h/2:1"), ok("a1:3 b2:2"));
    assert_eq!(after(&log, "a@h/1:3,b@h/2:2"), ok(""));
    assert_eq!(log.after(log.cursor()).map(Iterator::count), Ok(0));
}

#[test]
fn a_log_that_began_later_continues_only_whom_it_can() {
    let log = log("a1:5 b1:1 a1:6");
    assert_eq!(after(&log, "a@h/1:4"), ok("a1:5 b1:1 a1:6"), "just before what is held");
    assert_eq!(after(&log, "a@h/1:5"), ok("b1:1 a1:6"));
    assert_eq!(after(&log, "a@h/1:3"), Err(Gap::Lost));
    assert_eq!(after(&log, "b@h/1:1"), Err(Gap::Lost), "what a said before 5 is unknown");
    assert_eq!(after(&log, ""), Err(Gap::Lost));
    assert_eq!(after(&log, "a@h/2:5"), Err(Gap::Lost), "another epoch");
    assert_eq!(after(&log, "a@h/1:7"), Err(Gap::Ahead));
    assert_eq!(after(&log, "a@h/1:6,c@h/1:1"), Err(Gap::Ahead), "never heard of");
    assert_eq!(after(&log, "a@h/1:3,c@h/1:1"), Err(Gap::Lost), "no waiting helps");
}

#[test]
fn what_came_before_is_ignored_and_a_hole_is_told() {
    let mut log = log("a1:3 b1:1");
    let verdicts = ["a1:3", "a1:2", "a1:4", "a1:6", "a1:5", "a1:7"].map(|e| push(&mut log, e));
    use Verdict::{Hole, Ignored, New};
    assert_eq!(verdicts, [Ignored, Ignored, New, Hole, Ignored, New]);
    assert_eq!(after(&log, "a@h/1:4"), Err(Gap::Lost));
    assert_eq!(after(&log, "a@h/1:5,b@h/1:1"), ok("a1:6 a1:7"), "it has what was lost here");
    assert_eq!(after(&log, "a@h/1:6"), ok("b1:1 a1:7"), "the others are as they were");
    for never in ["c1:0", "c1:18446744073709551615"] {
        assert_eq!(push(&mut log, never), Ignored);
    }
    assert_eq!(log.cursor().to_string(), tagged("a@h/1:7,b@h/1:1"));
}

#[test]
fn after_an_unknown_loss_only_what_is_later_counts() {
    let mut log = log("a1:1 b1:1");
    log.missed();
    for old in ["", "a@h/1:1", "a@h/1:1,b@h/1:1"] {
        assert_eq!(after(&log, old), Err(Gap::Lost), "{old:?}");
    }
    push(&mut log, "a1:2");
    assert_eq!(after(&log, "a@h/1:1"), Err(Gap::Lost), "who else spoke is unknown");
    assert_eq!(after(&log, "a@h/1:2"), ok(""));
    push(&mut log, "c1:1");
    assert_eq!(after(&log, "a@h/1:2"), ok("c1:1"));
    assert_eq!(after(&log, "a@h/1:1,c@h/1:1"), ok("a1:2"), "its c proves it later");
    assert_eq!(after(&log, "c@h/1:1"), Err(Gap::Lost), "of a, only 2 is here");
    push(&mut log, "b1:3");
    assert_eq!(after(&log, "a@h/1:2"), Err(Gap::Lost), "b said something between");
}

#[test]
fn the_log_is_bounded_in_entries_and_bytes() {
    let mut entries: Log<u64> = Log::new();
    let stamp = |n| Position { epoch: 1, n, tag: TAG };
    for n in 1..=600 {
        entries.push(&name("a@h"), stamp(n), 0, n);
    }
    let first = 601 - u64::try_from(CAPACITY).expect("small");
    let rest = |log: &Log<u64>, n: u64| {
        let cursor = cursor(&format!("a@h/1:{n}"));
        log.after(&cursor).map(|rest| rest.copied().collect::<Vec<_>>())
    };
    assert_eq!(rest(&entries, first - 1), Ok((first..=600).collect()));
    assert_eq!(rest(&entries, first - 2), Err(Gap::Lost));

    let mut bytes: Log<u64> = Log::new();
    for n in 1..=9 {
        bytes.push(&name("a@h"), stamp(n), BYTES / 4, n);
    }
    assert_eq!(rest(&bytes, 5), Ok(vec![6, 7, 8, 9]));
    assert_eq!(rest(&bytes, 4), Err(Gap::Lost));
    assert_eq!(bytes.push(&name("a@h"), stamp(10), usize::MAX, 10), Verdict::New);
    assert_eq!((rest(&bytes, 9), rest(&bytes, 10)), (Err(Gap::Lost), Ok(vec![])));
    assert_eq!(bytes.cursor().to_string(), tagged("a@h/1:10"));
    // What came before a hole is history, as long as there is room.
    for n in 11..=14 {
        bytes.push(&name("a@h"), stamp(n), BYTES / 4, n);
    }
    bytes.push(&name("b@h"), stamp(1), 0, 0);
    bytes.push(&name("a@h"), stamp(16), BYTES / 4, 16);
    assert_eq!(rest(&bytes, 15), Ok(vec![0, 16]));
    assert_eq!(bytes.iter().copied().collect::<Vec<_>>(), [12, 13, 14, 0, 16]);
    bytes.cut(BYTES / 4);
    assert_eq!((bytes.len(), bytes.cost(), rest(&bytes, 14)), (2, BYTES / 4, Err(Gap::Lost)));
    bytes.expire(|n| *n < 17);
    assert_eq!((bytes.len(), bytes.cost()), (0, 0));
    let all = cursor("a@h/1:16,b@h/1:1");
    assert_eq!(bytes.after(&all).map(Iterator::count), Ok(0), "who has seen all goes on");
}

#[test]
fn a_cursor_with_another_tag_is_nobodys() {
    let mut entries: Log<u64> = Log::new();
    let tag = |n: u64| n * 1000;
    for n in 1..=600 {
        entries.push(&name("a@h"), Position { epoch: 1, n, tag: tag(n) }, 0, n);
    }
    let rest = |n: u64, tag: u64| {
        let cursor: Cursor = format!("a@h/1:{n}:{tag:x}").parse().expect("a cursor");
        entries.after(&cursor).map(Iterator::count)
    };
    // The latest, one in between, the first that is held, and the one before it.
    for n in [600, 300, 89, 88] {
        assert_eq!(rest(n, tag(n)), Ok(600 - usize::try_from(n).expect("small")), "{n}");
        for other in [0, tag(n) + 1, tag(n - 1), u64::MAX] {
            assert_eq!(rest(n, other), Err(Gap::Lost), "{n} with {other}");
        }
    }
    assert_eq!(rest(601, tag(601)), Err(Gap::Ahead));
}

#[test]
fn a_cursor_has_one_short_text() {
    for good in [
        "",
        "a@h/5f3a:12:9c,b@h/1:7:0",
        "a@::1/0:1:1",
        "a@h/ffffffff:18446744073709551615:ffffffffffffffff",
    ] {
        assert_eq!(good.parse().map(|cursor: Cursor| cursor.to_string()), Ok(good.to_owned()));
    }
    for bad in [
        ",",
        "a@h",
        "a@h/1",
        "a@h/1:1",
        "a@h/1::1",
        "a@h/:1:1",
        "a@h/1:1:",
        "a@h/1:0:1",
        "a@h/1:01:1",
        "a@h/01:1:1",
        "a@h/1:1:01",
        "a@h/A:1:1",
        "a@h/1:1:A",
        "a@h/+1:1:1",
        "a@h/1:+1:1",
        "a@h/1:1:+1",
        "a@h/100000000:1:1",
        "a@h/1:18446744073709551616:1",
        "a@h/1:1:10000000000000000",
        "a/1:1:1",
        "b@h/1:1:1,a@h/1:1:1",
        "a@h/1:1:1,a@h/1:2:1",
        "a@h/1:1:1,",
        " a@h/1:1:1",
        "a@H/1:1:1",
        "ä@h/1:1:1",
    ] {
        assert_eq!(bad.parse::<Cursor>(), Err(NoCursor), "{bad:?}");
    }
    let many = |count: usize, pad: usize| {
        let pad = "x".repeat(pad);
        let stamp = "ffffffff:18446744073709551615:ffffffffffffffff";
        (10..10 + count).map(|n| format!("n{n}{pad}@h/{stamp}")).collect::<Vec<_>>().join(",")
    };
    assert!(many(NODES, 0).parse::<Cursor>().is_ok());
    assert_eq!(many(NODES + 1, 0).parse::<Cursor>(), Err(NoCursor));
    assert!(many(63, 45).len() > TEXT && many(63, 44).len() <= TEXT);
    assert_eq!(many(63, 45).parse::<Cursor>(), Err(NoCursor));
    assert!(many(63, 44).parse::<Cursor>().is_ok());
}

#[test]
fn more_publishers_than_a_cursor_holds_are_an_unknown_loss() {
    for (pad, fit) in [(0, NODES), (58, TEXT / (63 + 2 + STAMP))] {
        let mut log: Log<usize> = Log::new();
        let publisher = |at: usize| name(&format!("n{at:04}{}@h", "x".repeat(pad)));
        let stamp = Position { epoch: u32::MAX, n: u64::MAX - 1, tag: u64::MAX };
        for at in 0..fit {
            assert_eq!(log.push(&publisher(at), stamp, 1, at), Verdict::New);
        }
        let full = log.cursor().clone();
        assert_eq!((full.0.len(), full.to_string().parse()), (fit, Ok(full.clone())));
        assert_eq!(log.after(&full).map(Iterator::count), Ok(0));
        assert_eq!(log.push(&publisher(fit), stamp, 1, fit), Verdict::New);
        assert_eq!(log.cursor().0.len(), 1);
        assert_eq!(log.after(&full).map(Iterator::count), Err(Gap::Lost));
    }
}

/// A message: publisher, place among all that the publisher ever said, stamp.
type Said = (usize, usize, Position);

const PUBLISHERS: usize = 3;
/// So many entries fit into a log of the world.
const WINDOW: usize = 8;

#[derive(Clone, Debug)]
enum Step {
    Publish(usize),
    /// The publisher starts anew; what it said is still on its way.
    Restart(usize),
    /// The next message of a publisher comes to a log.
    Deliver(usize, usize),
    Lose(usize, usize),
    Twice(usize, usize),
    /// A log loses so many messages of each publisher, and does not know which.
    Miss(usize, [usize; PUBLISHERS]),
    /// The client goes to a log, with its cursor if it can.
    Move(usize),
    Leave,
}

fn step() -> impl Strategy<Value = Step> {
    let (p, l) = (0..PUBLISHERS, 0..2_usize);
    prop_oneof![
        8 => p.clone().prop_map(Step::Publish),
        1 => p.clone().prop_map(Step::Restart),
        14 => (l.clone(), p.clone()).prop_map(|(l, p)| Step::Deliver(l, p)),
        1 => (l.clone(), p.clone()).prop_map(|(l, p)| Step::Lose(l, p)),
        2 => (l.clone(), 0..9_usize).prop_map(|(l, at)| Step::Twice(l, at)),
        1 => (l.clone(), [0..3_usize, 0..3, 0..3]).prop_map(|(l, many)| Step::Miss(l, many)),
        4 => l.prop_map(Step::Move),
        3 => Just(Step::Leave),
    ]
}

/// A log, what is on the way to it, and what it took since it last forgot.
#[derive(Default)]
struct Site {
    log: Log<Said>,
    ways: [VecDeque<Said>; PUBLISHERS],
    took: Vec<(Said, Verdict)>,
    forgot: usize,
}

#[derive(Default)]
struct World {
    epochs: [u32; PUBLISHERS],
    said: [Vec<Position>; PUBLISHERS],
    sites: [Site; 2],
    /// Where the client listens.
    at: Option<usize>,
    cursor: String,
    /// Where and when it got that cursor: the log, how often it had forgotten, how much it had taken.
    origin: (usize, usize, usize),
    /// What it got since it last started without a cursor.
    seen: BTreeSet<(usize, usize)>,
    resumed: usize,
    refused: usize,
}

fn publisher(at: usize) -> NodeName {
    name(["a@h", "b@h", "c@h"][at])
}

impl World {
    fn run(&mut self, step: Step) {
        match step {
            Step::Publish(p) => {
                let last = self.said[p].last().filter(|last| last.epoch == self.epochs[p]);
                let n = last.map_or(1, |last| last.n + 1);
                // No two messages of a publisher have the same.
                let stamp =
                    Position { epoch: self.epochs[p], n, tag: n << 8 | u64::from(self.epochs[p]) };
                let said = (p, self.said[p].len(), stamp);
                self.said[p].push(stamp);
                self.sites.iter_mut().for_each(|site| site.ways[p].push_back(said));
            }
            Step::Restart(p) => self.epochs[p] += 1,
            Step::Deliver(l, p) => {
                if let Some(said) = self.sites[l].ways[p].pop_front() {
                    self.take(l, said);
                }
            }
            Step::Lose(l, p) => drop(self.sites[l].ways[p].pop_front()),
            Step::Twice(l, back) => {
                let Some((said, _)) = self.sites[l].took.iter().rev().nth(back).copied() else {
                    return;
                };
                let newest = self.sites[l].log.cursor().0[&publisher(said.0)].epoch;
                if said.2.epoch + 1 >= newest {
                    let verdict =
                        self.sites[l].log.push(&publisher(said.0), said.2, BYTES / WINDOW, said);
                    assert_eq!(verdict, Verdict::Ignored);
                }
            }
            Step::Miss(l, many) => {
                let site = &mut self.sites[l];
                for (way, many) in site.ways.iter_mut().zip(many) {
                    way.drain(..many.min(way.len()));
                }
                site.log.missed();
                site.took.clear();
                site.forgot += 1;
                if self.at == Some(l) {
                    self.at = None; // it is told, and shall ask
                }
            }
            Step::Move(l) => self.go(l),
            Step::Leave => self.at = None,
        }
    }

    fn take(&mut self, l: usize, said: Said) {
        let site = &mut self.sites[l];
        let verdict = site.log.push(&publisher(said.0), said.2, BYTES / WINDOW, said);
        assert_ne!(verdict, Verdict::Ignored, "each comes once, in order");
        site.took.push((said, verdict));
        if self.at == Some(l) {
            assert!(self.seen.insert((said.0, said.1)), "{said:?} came twice");
            self.note(l);
        }
    }

    /// The client got the cursor of a log.
    fn note(&mut self, l: usize) {
        let site = &self.sites[l];
        self.cursor = site.log.cursor().to_string();
        self.origin = (l, site.forgot, site.took.len());
    }

    /// A log is told how far the other one is.
    fn ask(&mut self, l: usize) {
        let [one, two] = &mut self.sites;
        let (site, other) = if l == 0 { (one, two) } else { (two, one) };
        other.log.cursor().iter().for_each(|(name, latest)| site.log.note_elsewhere(name, latest));
        let successions = other.log.successions();
        successions.for_each(|(name, epoch, before)| site.log.note_succession(name, epoch, before));
    }

    fn go(&mut self, l: usize) {
        self.ask(l);
        let cursor: Cursor = self.cursor.parse().expect("a cursor");
        let site = &self.sites[l];
        let answer: Result<Vec<Said>, Gap> =
            site.log.after(&cursor).map(|rest| rest.copied().collect());
        let own = self.origin.0 == l && self.origin.1 == site.forgot;
        if self.origin.0 == l && self.origin.1 < site.forgot {
            assert!(answer.is_err(), "{cursor} is of before a loss");
        }
        // Of its own cursors a log refuses none without a reason.
        let since = &site.took[if own { self.origin.2 } else { 0 }..];
        let first = |said: &Said| {
            !site
                .took
                .iter()
                .any(|(s, _)| (s.0, s.2.epoch) == (said.0, said.2.epoch) && s.1 < said.1)
        };
        let plain = since.iter().all(|(said, verdict)| {
            let alone = !site.took.iter().any(|(s, _)| s.0 == said.0 && s.2.epoch != said.2.epoch);
            *verdict == Verdict::New && (!first(said) || (said.2.n == 1 && alone))
        });
        let proves = site.forgot == 0 || !cursor.0.is_empty();
        if own && plain && proves && since.len() <= WINDOW {
            assert!(answer.is_ok(), "{cursor} refused: {answer:?}");
        }
        self.at = Some(l);
        match answer {
            Ok(rest) => {
                assert_eq!(rest, self.expected(l, &cursor), "after {cursor}");
                for said in rest {
                    assert!(self.seen.insert((said.0, said.1)), "{said:?} came twice");
                }
                self.resumed += 1;
            }
            Err(_) => {
                self.seen.clear();
                self.refused += 1;
            }
        }
        self.note(l);
    }

    /// All that publishers said from the cursor to where the log is, in the order of the log; but what was said at the end of
    /// an epoch and is here not, nor there.
    fn expected(&self, l: usize, cursor: &Cursor) -> Vec<Said> {
        let (site, mut due) = (&self.sites[l], BTreeSet::new());
        for p in 0..PUBLISHERS {
            let took = || site.took.iter().map(|(said, _)| said).filter(|said| said.0 == p);
            let seen = cursor.0.get(&publisher(p));
            let place = |stamp: &Position| self.said[p].iter().position(|said| said == stamp);
            let from = match (seen, took().next()) {
                (Some(stamp), _) => place(stamp).expect("it was said") + 1,
                // Of the first epoch that was heard here, everything.
                (None, Some(first)) => {
                    let begins = |said: &Position| said.n == 1 && said.epoch == first.2.epoch;
                    self.said[p].iter().position(begins).expect("it was said")
                }
                (None, None) => continue,
            };
            let head = took().next_back().expect("a publisher that the cursor names is known").1;
            assert!(from <= head + 1, "the cursor is ahead, and nobody said so");
            due.extend((from..=head).map(|at| (p, at)));
        }
        let took = site.took.iter().map(|(said, _)| *said);
        let order: Vec<Said> = took.filter(|said| due.remove(&(said.0, said.1))).collect();
        let there = &self.sites[1 - l].log;
        due.retain(|&(p, at)| {
            let epoch = self.said[p][at].epoch;
            let later = |said: &Said| (said.0, said.2.epoch) == (p, epoch) && said.1 > at;
            let is = |kept: &&Logged<Said>| (kept.entry.0, kept.entry.1) == (p, at);
            let held = there.kept.iter().filter(is).any(|kept| there.is_held(kept));
            site.took.iter().any(|(said, _)| later(said)) || held
        });
        assert!(due.is_empty(), "{due:?} is not here, and nobody said so");
        order
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn a_client_that_moves_gets_each_message_once_or_a_gap(
        steps in proptest::collection::vec(step(), 0..150),
    ) {
        let mut world = World::default();
        steps.into_iter().for_each(|step| world.run(step));
    }

    #[test]
    fn only_its_own_text_is_a_cursor(text in "[a-c@h/:,0-2x]{0,24}|(([a-c]@h|a@::1)/[0-3]:[0-3]:[0-9a-f],?){0,4}") {
        if let Ok(cursor) = text.parse::<Cursor>() {
            prop_assert_eq!(cursor.to_string(), text);
        }
    }
}

/// The world above is one in which clients both go on and have to start anew.
#[test]
fn the_world_has_both_ends() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let steps = proptest::collection::vec(step(), 100);
    let (mut resumed, mut refused) = (0, 0);
    for _ in 0..100 {
        let mut world = World::default();
        let steps = steps.new_tree(&mut runner).expect("steps").current();
        steps.into_iter().for_each(|step| world.run(step));
        (resumed, refused) = (resumed + world.resumed, refused + world.refused);
    }
    assert!(resumed > 300 && refused > 300, "{resumed} resumed, {refused} refused");
}
