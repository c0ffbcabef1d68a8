//! The history in its file: what stays, what goes, and what damage costs.

use std::time::Duration;

use super::*;
use crate::io::clock;
use crate::proto::replay::Standing;

const ROOM: u64 = u64::MAX;

fn topic(text: &str) -> Topic {
    text.parse().expect("a topic")
}

fn rule(count: usize, seconds: u64) -> Rule {
    Rule { count, age: Some(Duration::from_secs(seconds)), disk: true }
}

/// A chunk of so many messages from this index, each taken at this time and of so many bytes.
fn chunk(first: u64, count: u64, at: u64, size: usize) -> Arc<Chunk> {
    let mut chunk = Chunk::new(first, Standing::default());
    for _ in 0..count {
        assert!(chunk.push(at, &"a@h".parse().expect("a name"), &vec![7; size]));
    }
    Arc::new(chunk)
}

fn writing(text: &str, rule: Rule, chunks: &[Arc<Chunk>]) -> Writing {
    Writing { topic: topic(text), rule, chunks: chunks.to_vec() }
}

fn open(directory: &Path) -> History {
    History::open(directory, clock::wall()).expect("opens").0
}

/// The first indices of what is there.
fn firsts(history: &History, text: &str) -> Vec<u64> {
    let found = history.newest(&topic(text), |_| false).expect("reads");
    found.chunks.iter().map(Chunk::first).collect()
}

#[test]
fn what_is_written_is_there_after_a_restart_and_its_file_is_private() {
    let dir = tempfile::tempdir().expect("a directory");
    let history = open(dir.path());
    let (one, two) = (chunk(0, 3, 1, 9), chunk(3, 2, 2, 9));
    let write = [writing("room:1", rule(10, 9), &[one.clone(), two.clone()])];
    assert_eq!(history.write(&write, ROOM, 2000).expect("writes"), 0);
    // Again, as after a commit that seemed to fail.
    assert_eq!(history.write(&write, ROOM, 2000).expect("writes"), 0);
    let totals = history.totals();
    drop(history);
    let history = open(dir.path());
    assert_eq!(history.totals(), totals);
    assert_eq!(totals.topics, 1);
    let row = history.row(&topic("room:1")).expect("reads").expect("a row");
    assert_eq!((row.next, row.messages, row.last), (5, 5, 2));
    let found = history.newest(&topic("room:1"), |chunk| chunk.first() == 3).expect("reads");
    assert_eq!((found.chunks.len(), found.damaged, found.more), (1, 0, true));
    assert_eq!(firsts(&history, "room:1"), [0, 3]);
    assert_eq!(firsts(&history, "room:2"), Vec::<u64>::new());
    let about = std::fs::metadata(dir.path().join(FILE)).expect("a file");
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&about.permissions()) & 0o777, 0o600);
}

#[test]
fn more_than_a_topic_keeps_and_what_is_too_old_goes() {
    let dir = tempfile::tempdir().expect("a directory");
    let history = open(dir.path());
    let write = |first, at| {
        let write = [writing("room:1", rule(10, 9), &[chunk(first, 5, at, 9)])];
        history.write(&write, ROOM, at).expect("writes")
    };
    for (at, first) in [0, 5, 10, 15].into_iter().enumerate() {
        write(first, at as u64);
    }
    assert_eq!(firsts(&history, "room:1"), [10, 15], "ten messages stay");
    write(20, 9_002);
    assert_eq!(firsts(&history, "room:1"), [15, 20]);
    history.sweep(|_| Some(rule(10, 9)), 9_003 + 1).expect("sweeps");
    assert_eq!(firsts(&history, "room:1"), [20], "the rest is older than nine seconds");
    history.sweep(|_| None, 99_000).expect("sweeps");
    assert_eq!(firsts(&history, "room:1"), [20], "without a rule it stays");
    history.sweep(|_| Some(rule(10, 9)), 99_000).expect("sweeps");
    assert_eq!((firsts(&history, "room:1"), history.totals()), (vec![], Totals::default()));
}

#[test]
fn what_has_most_makes_room_and_costs_no_other_its_history() {
    let dir = tempfile::tempdir().expect("a directory");
    let history = open(dir.path());
    let write = |text: &str, at: u64| {
        let write = [writing(text, rule(1000, 9), &[chunk(at, 1, at, 10_000)])];
        history.write(&write, 66_000, at).expect("writes")
    };
    for at in 0..2 {
        assert_eq!((write("room:a", at), write("room:b", 10 + at)), (0, 0));
    }
    assert_eq!((write("room:loud", 20), write("room:loud", 21)), (0, 0));
    assert_eq!(write("room:loud", 22), 1, "with the slack");
    for at in 23..60 {
        write("room:loud", at);
    }
    assert_eq!(firsts(&history, "room:a"), [0, 1], "though it was silent longest");
    assert_eq!(firsts(&history, "room:b"), [10, 11]);
    assert!(firsts(&history, "room:loud").ends_with(&[59]));
    assert!(history.totals().bytes <= 66_000, "{:?}", history.totals());
    // It has no more than the others: all give.
    write("room:c", 70);
    write("room:c", 71);
    assert_eq!((firsts(&history, "room:a"), firsts(&history, "room:c")), (vec![1], vec![70, 71]));
    assert_eq!(history.totals().topics, 4);
}

#[test]
fn a_fair_share_leaves_those_alone_that_have_less() {
    let share = |all: &[u64], most| fair_share(all.iter().copied(), most);
    assert_eq!(share(&[], 10), u64::MAX);
    assert_eq!(share(&[4, 6], 10), u64::MAX);
    assert_eq!(share(&[1, 2, 100], 10), 7);
    assert_eq!(share(&[50, 1, 50], 11), 5);
    assert_eq!(share(&[9, 9, 9], 2), 0);
}

#[test]
fn of_more_topics_than_are_kept_those_with_fewest_messages_go() {
    let dir = tempfile::tempdir().expect("a directory");
    let history = open(dir.path());
    let name = |n: u64| format!("room:{n}");
    let write = |numbers: std::ops::RangeInclusive<u64>| {
        let one = |n| writing(&name(n), rule(9, 1000), &[chunk(0, 1, n, 10)]);
        let writings: Vec<_> = numbers.map(one).collect();
        history.write(&writings, ROOM, MAX_TOPICS).expect("writes")
    };
    assert_eq!((write(1..=MAX_TOPICS), history.totals().topics), (0, MAX_TOPICS));
    let left = MAX_TOPICS - MAX_TOPICS / SLACK;
    assert_eq!(write(MAX_TOPICS + 1..=MAX_TOPICS + 1), MAX_TOPICS + 1 - left, "with the slack");
    assert_eq!(history.totals().topics, left);
    assert_eq!(firsts(&history, &name(1)), Vec::<u64>::new());
    assert_eq!(firsts(&history, &name(MAX_TOPICS + 1)), [0]);
    // However silent: a flood of topics of one message lets go of its own.
    let more = |text: &str, count, at| {
        let more = [writing(text, rule(9, 1000), &[chunk(0, count, at, 10)])];
        history.write(&more, ROOM, MAX_TOPICS).expect("writes")
    };
    more("room:two", 2, 1);
    more("room:silent", 1, 1);
    write(MAX_TOPICS + 2..=MAX_TOPICS + 900);
    assert_eq!(history.totals().topics, left);
    assert_eq!(firsts(&history, "room:two"), [0]);
    assert_eq!(firsts(&history, "room:silent"), Vec::<u64>::new());
    // Each has what is its own.
    let of = |n: u64| {
        let found = history.newest(&topic(&name(n)), |_| false).expect("reads");
        found.chunks.iter().map(|chunk| chunk.last()).collect::<Vec<_>>()
    };
    assert!((MAX_TOPICS - 9..=MAX_TOPICS + 1).all(|n| of(n) == [n]));
}

#[test]
fn numbers_are_for_the_next_life_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let history = open(dir.path());
    let stamps = vec![(topic("room:1"), Position { epoch: 1, n: 2, tag: 3 })];
    history.keep_stamps(&stamps, Incarnation(4)).expect("writes");
    assert_eq!(history.take_stamps(Incarnation(5)).expect("reads"), stamps);
    assert_eq!(history.take_stamps(Incarnation(5)).expect("reads"), vec![]);
    history.keep_stamps(&stamps, Incarnation(4)).expect("writes");
    assert_eq!(history.take_stamps(Incarnation(6)).expect("reads"), vec![], "of an old file");
}

#[test]
fn a_chunk_that_was_changed_is_skipped_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let history = open(dir.path());
    let marked = |mark: u8, first| {
        let mut chunk = Chunk::new(first, Standing::default());
        assert!(chunk.push(1, &"a@h".parse().expect("a name"), &[mark; 40]));
        Arc::new(chunk)
    };
    let chunks = [marked(1, 0), marked(2, 1), marked(3, 2)];
    history.write(&[writing("room:1", rule(10, 9), &chunks)], ROOM, 1).expect("writes");
    drop(history);
    let file = dir.path().join(FILE);
    let mut bytes = std::fs::read(&file).expect("a file");
    let places: Vec<_> =
        (0..bytes.len() - 40).filter(|at| bytes[*at..*at + 40] == [2; 40]).collect();
    assert!(!places.is_empty());
    places.iter().for_each(|at| bytes[*at] = 9);
    std::fs::write(&file, bytes).expect("writes");
    // As of a file that is too long to be read whole when it is opened.
    let trusting = Place::Directory(dir.path().to_owned(), FILE);
    let store = Store::open_at(trusting, clock::wall());
    match store
        .map_err(|failure| failure.into_error(|cause| StoreError::Storage(cause.to_string())))
    {
        Ok((store, Opened::Sound)) => {
            let history = History::over(store).expect("reads");
            let found = history.newest(&topic("room:1"), |_| false).expect("reads");
            assert_eq!((found.chunks.len(), found.damaged), (2, 1));
        }
        // One that is short is set aside as a whole.
        Ok((_, Opened::SetAside(path))) => assert!(path.exists()),
        Err(error) => panic!("{error}"),
    }
}
