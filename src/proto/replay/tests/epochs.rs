//! Epochs of a publisher, one after another, and what other logs and the publisher itself say of them.

use super::super::heard::LEFT;
use super::*;

#[test]
fn another_epoch_goes_on_from_the_one_before() {
    let mut log = log("a1:1 a1:2 b1:1");
    assert!(log.begins(&name("a@h"), Position { epoch: 9, n: 1, tag: TAG }));
    let verdicts = ["a9:1", "a1:3", "a9:2", "a1:1"].map(|e| push(&mut log, e));
    use Verdict::{Hole, Ignored, New};
    assert_eq!(verdicts, [New, Ignored, New, Ignored], "what was left behind stays there");
    assert_eq!(after(&log, ""), ok("a1:1 a1:2 b1:1 a9:1 a9:2"));
    assert_eq!(after(&log, "a@h/1:1,b@h/1:1"), ok("a1:2 a9:1 a9:2"));
    assert_eq!(after(&log, "a@h/1:2"), ok("b1:1 a9:1 a9:2"));
    assert_eq!(after(&log, "a@h/9:1,b@h/1:1"), ok("a9:2"));
    assert_eq!(after(&log, "a@h/1:3,b@h/1:1"), Err(Gap::Lost), "what it has seen never came here");
    assert_eq!(after(&log, "a@h/9:3,b@h/1:1"), Err(Gap::Ahead));
    assert_eq!(after(&log, "a@h/4:1,b@h/1:1"), Err(Gap::Lost), "unknown");
    // One whose beginning did not come goes on from nothing.
    assert!(!log.begins(&name("a@h"), Position { epoch: 5, n: 3, tag: TAG }));
    assert_eq!(push(&mut log, "a5:3"), Hole);
    assert_eq!(after(&log, "a@h/9:2,b@h/1:1"), Err(Gap::Lost));
    assert_eq!(after(&log, "a@h/5:2,b@h/1:1"), ok("a5:3"));
    assert_eq!(push(&mut log, "a9:3"), Ignored);
    // The hole does not make it forget which epoch was before.
    assert_eq!(push(&mut log, "a5:9"), Hole);
    assert_eq!(push(&mut log, "a9:4"), Ignored);
}

#[test]
fn a_hole_parts_an_epoch_from_those_before_and_so_does_what_is_let_go() {
    let mut log = log("a1:1 a2:1 a2:2 a3:1");
    assert_eq!(after(&log, "a@h/1:1"), ok("a2:1 a2:2 a3:1"));
    push(&mut log, "a3:3");
    for seen in ["", "a@h/1:1", "a@h/2:2", "a@h/3:1"] {
        assert_eq!(after(&log, seen), Err(Gap::Lost), "{seen}");
    }
    let mut log = self::log("a1:1 a1:2 a2:1 a2:2");
    log.cut(3);
    assert_eq!(after(&log, "a@h/1:1"), ok("a1:2 a2:1 a2:2"));
    log.cut(2);
    assert_eq!((after(&log, "a@h/1:2"), after(&log, "a@h/1:1")), (ok("a2:1 a2:2"), Err(Gap::Lost)));
    assert_eq!(log.after(&"a@h/1:2:e".parse().expect("a cursor")).map(drop), Err(Gap::Lost));
    log.cut(1);
    assert_eq!((after(&log, "a@h/1:2"), after(&log, "a@h/2:1")), (Err(Gap::Lost), ok("a2:2")));
    // So many epochs are gone on from.
    let mut log = self::log("a1:1");
    for epoch in 2..=LEFT + 1 {
        push(&mut log, &format!("a{epoch}:1"));
    }
    assert_eq!(log.after(&cursor("a@h/1:1")).map(Iterator::count), Ok(LEFT));
    push(&mut log, &format!("a{}:1", LEFT + 2));
    assert_eq!(after(&log, "a@h/1:1"), Err(Gap::Lost));
    assert_eq!(push(&mut log, "a1:2"), Verdict::Ignored);
    // An old one is not taken for a new one.
    for epoch in LEFT + 3..=LEFT + 12 {
        push(&mut log, &format!("a{epoch}:1"));
    }
    assert_eq!(push(&mut log, "a1:1"), Verdict::Ignored);
    log.hear(&name("a@h"), Position { epoch: 1, n: 9, tag: TAG });
    assert_eq!(log.cursor(), &cursor(&format!("a@h/{:x}:1", LEFT + 12)));
}

#[test]
fn what_another_log_has_of_an_epoch_that_was_left_is_missing_here() {
    let at = |epoch, n| Position { epoch, n, tag: TAG };
    let a = name("a@h");
    let fresh = || log("a1:1 a1:2 a2:1 a3:1 a3:2");
    let seen = |log: &Log<String>| {
        ["a@h/1:1", "a@h/2:1", "a@h/3:1"].map(|seen| after(log, seen).ok().map(|it| it.len()))
    };
    let whole = [Some(19), Some(9), Some(4)];
    assert_eq!(seen(&fresh()), whole);
    for (theirs, rest) in [
        (at(1, 2), whole),
        (at(1, 3), [None, Some(9), Some(4)]),
        (at(2, 2), [None, None, Some(4)]),
        (at(3, 9), whole),
        (at(7, 9), [None, None, Some(4)]),
    ] {
        let mut log = fresh();
        log.note_elsewhere(&a, theirs);
        assert_eq!(seen(&log), rest, "{theirs:?}");
        // To hear of it says so, too, and is no step back.
        let mut log = fresh();
        if log.latest(&a).is_some_and(|latest| latest.epoch != theirs.epoch && theirs.epoch < 7) {
            log.hear(&a, theirs);
            assert_eq!((seen(&log), log.latest(&a)), (rest, Some(at(3, 2))));
        }
    }
    for (epoch, before, rest) in [
        (3, (2, 1), whole),
        (3, (2, 2), [None, None, Some(4)]),
        (3, (5, 1), [None, None, Some(4)]),
        (2, (1, 2), whole),
        (2, (1, 3), [None, Some(9), Some(4)]),
        (1, (9, 9), whole),
        (8, (3, 9), whole),
    ] {
        let mut log = fresh();
        log.note_succession(&a, epoch, before);
        assert_eq!(seen(&log), rest, "{epoch} after {before:?}");
    }
    // What it says itself, another one takes.
    let further = log("a1:1 a1:2 a1:3 a2:1 a3:1");
    let said: Vec<_> = further.successions().map(|(_, epoch, before)| (epoch, before)).collect();
    assert_eq!(said, [(2, (1, 3)), (3, (2, 1))]);
    let mut log = fresh();
    further
        .successions()
        .for_each(|(name, epoch, before)| log.note_succession(name, epoch, before));
    assert_eq!(seen(&log), [None, Some(9), Some(4)]);
    assert_eq!(log.successions().next(), Some((&a, 2, (1, 3))), "and says it further");
}

#[test]
fn what_a_publisher_says_itself_counts_against_what_others_say() {
    let at = |epoch, n| Position { epoch, n, tag: TAG };
    let a = name("a@h");
    // Somebody said that it had come to 900, and somebody else that it had left its epoch.
    for hearsay in [at(1, 900), at(7, 3)] {
        let mut log = log("a1:1 a1:2");
        log.hear(&a, hearsay);
        assert_eq!(log.latest(&a), Some(hearsay));
        log.correct(&a, at(1, 3));
        assert_eq!(log.latest(&a), Some(at(1, 3)));
        assert_eq!(
            (push(&mut log, "a1:3"), push(&mut log, "a1:4")),
            (Verdict::Ignored, Verdict::New)
        );
        assert_eq!((after(&log, "a@h/1:2"), after(&log, "a@h/1:3")), (Err(Gap::Lost), ok("a1:4")));
    }
    // What has come does not go because an answer is late.
    let mut log = log("a1:1 a1:2");
    log.correct(&a, at(1, 1));
    assert_eq!((after(&log, "a@h/1:1"), log.latest(&a)), (ok("a1:2"), Some(at(1, 2))));
}

#[test]
fn a_log_goes_on_from_one_that_stands_so_through_epochs() {
    let whole = log("a1:1 a1:2 a2:1 b1:1 a2:2");
    for entries in 0..=5 {
        let (standing, tail) = whole.tail(Bounds { entries, bytes: BYTES });
        let mut log = Log::standing(Bounds::default(), &standing);
        for (from, position, entry) in tail {
            let first = position.n == 1 && log.latest(from).is_none();
            assert!(first || log.continues(from, position) || log.begins(from, position));
            log.push(from, position, 1, entry.clone());
        }
        for seen in ["a@h/2:2,b@h/1:1", "a@h/2:1,b@h/1:1", "a@h/1:2,b@h/1:1", "a@h/1:1", ""] {
            let (here, there) = (after(&log, seen), after(&whole, seen));
            let all: Vec<&String> = whole.iter().collect();
            let held = |entry: &str| all[5 - entries..].iter().any(|held| **held == entry);
            let reaches = there.as_ref().is_ok_and(|it| it.split_whitespace().all(held));
            assert_eq!(here, if reaches { there } else { Err(Gap::Lost) }, "{entries} {seen}");
        }
    }
}

#[test]
fn epochs_follow_each_other_as_far_as_they_are_remembered() {
    let mut log = log("a1:1 a2:1 a3:1");
    let follows = |log: &Log<String>, epoch, earlier| log.follows(&name("a@h"), epoch, earlier);
    for (epoch, earlier) in [(2, 1), (3, 1), (3, 2)] {
        assert!(follows(&log, epoch, earlier) && !follows(&log, earlier, epoch));
    }
    assert!(!follows(&log, 3, 3) && !follows(&log, 3, 4) && !follows(&log, 4, 3));
    assert!(!log.follows(&name("b@h"), 2, 1));
    // It goes on from nothing before the hole, and knows what was there.
    push(&mut log, "a4:7");
    for (epoch, earlier) in [(4, 1), (4, 3), (3, 1), (3, 2)] {
        assert!(follows(&log, epoch, earlier) && !follows(&log, earlier, epoch));
    }
}
