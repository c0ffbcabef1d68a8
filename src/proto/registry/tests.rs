//! Registry: machines in one thread, seeded, in virtual time. A failure prints the seed.

#![allow(clippy::indexing_slicing, reason = "an index that is off is a failed test")]
#![allow(clippy::wildcard_enum_match_arm, reason = "a test looks for what it is about")]

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::profile::LARGEST;
use super::*;
use crate::proto::codec;
use crate::proto::event::{Author, Operator};
use crate::proto::node::Incarnation;
use crate::proto::rows::tests::{self as table, life};
use crate::proto::rows::{
    FIRST, FUTURE, LAST_RULING, LAST_VERSION, MAX_ANSWER, MAX_CHARGES, MAX_WORD, RAISE, SWEEP,
    Values, YOUNG, row_size,
};
use crate::proto::tests::network::{FAIR, Network, WALL, Weather, ms, name, node};
use crate::proto::tests::seals::Toy;
use crate::proto::tests::start;

mod rulings;
mod world;

type Alone = table::Alone<Registry>;

/// Between two answers of one kind to one peer.
const REPEAT: Duration = Profiles::RETRY.checked_div(2).expect("not by 0");

fn mark(life: u64, version: u64, gone: bool) -> Mark {
    Mark { incarnation: Incarnation(life), version, gone }
}

/// Does this one thing.
fn does(what: &str) -> Profile {
    Profile::new([what.parse().expect("a word")], [], WALL).expect("within the bounds")
}

/// As long as a profile can be.
fn longest() -> Profile {
    let words = (0..32).map(|n| format!("{n:02}{}", "s".repeat(62)).parse().expect("a word"));
    let key = |n: usize| char::from(b"abcdefghijklmnopqrstuvwxyz0123456789"[n % 36]);
    let pairs = (0..1296).map(|n| format!("{}{}=", key(n / 36), key(n)).parse().expect("a pair"));
    let rest = Pair::new("rest", "x".repeat(LARGEST - 2 * 1296 - 4)).expect("a pair");
    Profile::new(words, pairs.chain([rest]), u64::MAX).expect("within the bounds")
}

fn entry(of: &str, at: u64, version: u64, what: &str) -> Entry {
    let state = State::Live(does(what));
    let row = Entry { origin: name(of), incarnation: life(at), version, state, seal: None };
    table::sealed::<Profiles>(row)
}

/// Made by `f@h`.
fn tomb(of: &str, at: u64, version: u64) -> Entry {
    made("f@h", WALL, entry(of, at, version, "x"))
}

/// A tombstone in the place of that entry.
fn made(by: &str, at: u64, entry: Entry) -> Entry {
    ruled((by, true), at, entry, None)
}

/// A ruling in the place of that entry, with what the node stated last.
fn ruled((by, forgotten): (&str, bool), at: u64, entry: Entry, last: Option<Entry>) -> Entry {
    let author = Author::new(name(by), operator());
    let last = last.map(|last| {
        let (incarnation, version) = (last.incarnation, last.version);
        let (value, seal) = (last.value().expect("live").clone(), last.seal.expect("sealed"));
        Stated { incarnation, version, value, seal }
    });
    let ruling = Ruling { forgotten, at, author, last };
    table::sealed::<Profiles>(Entry { state: State::Ruled(Box::new(ruling)), ..entry })
}

fn operator() -> Operator {
    Operator::local(7)
}

fn forget(of: NodeName, life: Incarnation) -> Input {
    Input::Forget(of, life, operator())
}

fn restore(of: NodeName) -> Input {
    Input::Restore(of, operator())
}

impl Alone {
    /// `a@h` in life 3, at version 1, linked to these in life 7.
    fn new(peers: &[&str]) -> Self {
        Self::remembering(peers, [])
    }

    fn remembering(peers: &[&str], entries: impl IntoIterator<Item = Entry>) -> Self {
        let (now, rng) = (start(), StdRng::seed_from_u64(1));
        let machine = Registry::new(
            entry("a@h", 3, 1, "a"),
            entries,
            now,
            WALL,
            rng,
            Box::new(Toy(name("a@h"))),
        );
        Self::linked(machine, now, peers)
    }

    fn given(&mut self, from: &str, entry: Entry) -> Vec<Output> {
        self.hears(from, Word::Rows(vec![entry]))
    }

    fn mark(&self, of: &str) -> Option<Mark> {
        self.machine.row(&name(of)).map(Entry::mark)
    }
}

/// What is sent to a peer.
fn sent(out: &[Output], to: &str) -> Vec<Word> {
    let word = |output: &Output| match output {
        Output::Send(peer, word) if *peer == name(to) => Some(word.clone()),
        _ => None,
    };
    out.iter().filter_map(word).collect()
}

fn charged(out: &[Output]) -> Vec<&'static str> {
    let rule = |output: &Output| match output {
        Output::Charge(_, rule) => Some(*rule),
        _ => None,
    };
    out.iter().filter_map(rule).collect()
}

#[test]
fn a_peer_that_links_is_sent_what_we_are_and_soon_a_digest() {
    let mut a = Alone::new(&[]);
    let own = [Word::Rows(vec![entry("a@h", 3, 1, "a")])];
    let first = a.input(Input::Linked(name("b@h"), life(7)));
    assert_eq!(sent(&first, "b@h"), own);
    // Its own first word may have come too early to be heard: then the digests differ.
    let digest = Word::Digest(a.machine.digest());
    assert_eq!(sent(&a.tick(2 * Profiles::FIRST_DIGEST), "b@h"), [digest]);
    a.given("b@h", entry("b@h", 7, 5, "b"));
    assert_eq!(a.mark("b@h"), Some(mark(7, 5, false)));
    a.input(Input::Unlinked(name("b@h")));
    let again = a.input(Input::Linked(name("b@h"), life(7)));
    assert_eq!(sent(&again, "b@h"), own, "what is known is not asked for");
}

#[test]
fn a_linked_node_alone_says_what_it_is() {
    let mut a = Alone::new(&["b@h", "c@h"]);
    a.given("b@h", entry("b@h", 7, 5, "b"));
    let out = a.given("c@h", entry("b@h", 7, 9, "forged"));
    assert_eq!(a.mark("b@h"), Some(mark(7, 5, false)));
    let news = Word::News(vec![(name("b@h"), mark(7, 9, false))]);
    assert_eq!(sent(&out, "b@h"), [news, Word::Want(vec![name("b@h")])], "it hears of it");
    let out = a.given("c@h", tomb("b@h", 7, 9));
    assert_eq!(sent(&out, "c@h"), [], "and no tombstone of a linked node is passed on");
    assert_eq!(a.mark("b@h"), Some(mark(7, 5, false)));
    assert_eq!(charged(&a.given("b@h", tomb("b@h", 7, 6))), ["its own tombstone"]);
    a.given("b@h", entry("b@h", 8, 1, "unlinked"));
    assert_eq!(a.mark("b@h"), Some(mark(7, 5, false)));
}

#[test]
fn a_mark_only_rises() {
    let mut a = Alone::new(&["b@h"]);
    for (at, version) in [(4, 5), (4, 9), (5, 1)] {
        a.given("b@h", entry("x@h", at, version, "x"));
        assert_eq!(a.mark("x@h"), Some(mark(at, version, false)));
    }
    let unproven = Entry { seal: None, ..entry("x@h", 5, 1, "other") };
    for old in [unproven, entry("x@h", 4, 900, "x"), tomb("x@h", 4, 900)] {
        assert_eq!(a.given("b@h", old), []);
    }
    assert_eq!(a.machine.row(&name("x@h")), Some(&entry("x@h", 5, 1, "x")));
}

#[test]
fn a_forgotten_node_is_told_of_at_once_and_passed_on_once() {
    let mut a = Alone::new(&["b@h", "c@h"]);
    a.given("b@h", entry("x@h", 4, 5, "x"));
    let out = a.input(forget(name("x@h"), life(4)));
    let last = || Some(entry("x@h", 4, 5, "x"));
    let word = [Word::Rows(vec![ruled(("a@h", true), WALL, entry("x@h", 4, 6, "x"), last())])];
    assert_eq!([sent(&out, "b@h"), sent(&out, "c@h")], [word.clone(), word]);
    let x = name("x@h");
    let forgotten = Output::Gone { origin: x.clone(), incarnation: life(4), known: true };
    assert!(out.contains(&forgotten), "{out:?}");

    let mut other = Alone::new(&["b@h", "c@h"]);
    other.given("c@h", entry("x@h", 4, 5, "x"));
    let out = other.given("b@h", tomb("x@h", 4, 6));
    assert!(out.contains(&forgotten), "{out:?}");
    let word = Word::Rows(vec![ruled(("f@h", true), WALL, entry("x@h", 4, 6, "x"), last())]);
    assert_eq!(
        [sent(&out, "b@h"), sent(&out, "c@h")],
        [vec![], vec![word]],
        "with what it had stated"
    );
    assert_eq!(other.given("c@h", tomb("x@h", 4, 6)), [], "it is known");
    // One that learns of it late keeps it to itself.
    let mut late = Alone::new(&["b@h", "c@h"]);
    late.tick(YOUNG + ms(1));
    let out = late.given("b@h", tomb("x@h", 4, 6));
    assert_eq!(sent(&out, "c@h"), []);
    assert!(out.contains(&Output::Gone { origin: x, incarnation: life(4), known: false }));
}

#[test]
fn forgetting_beats_what_a_node_says_that_was_away() {
    let mut a = Alone::new(&["b@h"]);
    a.given("b@h", entry("x@h", 4, 5, "x"));
    a.input(forget(name("x@h"), life(4)));
    assert_eq!(a.given("b@h", entry("x@h", 4, 5, "x")), []);
    assert_eq!(a.mark("x@h"), Some(mark(4, 6, true)));
    // What it told of the same version counts less, too.
    assert_eq!(a.given("b@h", entry("x@h", 4, 6, "x")), []);
    let out = a.given("b@h", entry("x@h", 5, 1, "x"));
    assert!(out.contains(&Output::Revived(name("x@h"))), "a later life: {out:?}");
    let again = a.input(forget(name("x@h"), life(9)));
    assert_eq!(a.mark("x@h"), Some(mark(9, 1, true)), "the later life of the two");
    assert!(!again.is_empty());
}

#[test]
fn the_forgotten_one_that_lives_speaks_up() {
    let mut a = Alone::new(&["b@h", "c@h"]);
    let said = |version| Word::Rows(vec![entry("a@h", 3, version, "a")]);
    let out = a.given("b@h", tomb("a@h", 3, 2));
    let raised = |a: &Alone| a.mark("a@h").expect("its own").version;
    let first = raised(&a);
    assert!((3..=3 + FIRST).contains(&first), "{first}");
    assert_eq!([sent(&out, "b@h"), sent(&out, "c@h")], [[said(first)], [said(first)]]);
    assert_eq!(charged(&out), [""; 0], "they may have crossed");
    let news = |version| Word::News(vec![(name("a@h"), mark(3, version, true))]);
    assert_eq!(a.hears("b@h", news(2)), [], "it is above that already");
    assert_eq!(a.hears("b@h", news(first + 5)), [], "one word a second");
    a.tick(RAISE);
    let out = a.hears("b@h", news(first + 5));
    let second = raised(&a);
    assert_eq!((sent(&out, "c@h"), second > first + 5), (vec![said(second)], true));
    // A later life is for others to tell it of.
    assert_eq!(a.hears("b@h", Word::News(vec![(name("a@h"), mark(4, 1, false))])), []);
    let out = a.input(Input::Renewed(life(5)));
    assert_eq!(sent(&out, "b@h"), [Word::Rows(vec![entry("a@h", 5, second + 1, "a")])]);
}

#[test]
fn a_link_overrules_a_tombstone() {
    let mut a = Alone::remembering(&[], [tomb("b@h", 7, 4)]);
    let out = a.input(Input::Linked(name("b@h"), life(7)));
    let news = Word::News(vec![(name("b@h"), mark(7, 4, true))]);
    assert_eq!(sent(&out, "b@h")[0], news, "so that it speaks up");
    let out = a.given("b@h", entry("b@h", 7, 5, "b"));
    assert!(out.contains(&Output::Revived(name("b@h"))), "{out:?}");
    assert_eq!(a.input(forget(name("b@h"), life(7))), [], "a linked node is not forgotten");
    assert_eq!(a.input(forget(name("a@h"), life(3))), [], "nor is this one");
}

#[test]
fn what_others_said_of_a_node_is_no_bar_once_it_is_linked() {
    let (c, far) = (name("c@h"), 1 << 40);
    let own = entry("c@h", 7, 5, "c");
    for forged in [
        entry("c@h", far, 1, "forged"),
        tomb("c@h", far, 1),
        entry("c@h", 7, LAST_VERSION, "forged"),
        entry("c@h", 6, LAST_VERSION, "forged"),
    ] {
        let mut a = Alone::new(&["b@h"]);
        a.given("b@h", forged.clone());
        assert_eq!(a.machine.row(&c), Some(&forged), "nobody knows better");
        let mut out = a.input(Input::Linked(c.clone(), life(7)));
        out.extend(a.given("c@h", own.clone()));
        assert_eq!(a.machine.row(&c), Some(&own), "{forged:?}");
        assert_eq!(charged(&out), [""; 0]);
        let revived = out.contains(&Output::Revived(c.clone()));
        assert_eq!(revived, forged.gone_at().is_some());
        a.given("b@h", forged);
        assert_eq!(a.machine.row(&c), Some(&own), "nor does it come back");
    }
    // One that it can go on above is named to it, so that others see the later one.
    let mut a = Alone::new(&["b@h"]);
    a.given("b@h", entry("c@h", 7, 900, "forged"));
    a.input(Input::Linked(c.clone(), life(7)));
    let out = a.given("c@h", own);
    assert_eq!(sent(&out, "c@h"), [Word::News(vec![(c.clone(), mark(7, 900, false))])]);
    a.given("c@h", entry("c@h", 7, 901, "c"));
    assert_eq!(a.machine.row(&c), Some(&entry("c@h", 7, 901, "c")));
}

#[test]
fn invented_nodes_take_the_place_of_none_that_is_or_was_linked() {
    let mut a = Alone::new(&["b@h", "x@h"]);
    a.given("x@h", entry("x@h", 7, 1, "x"));
    a.input(Input::Unlinked(name("x@h")));
    for ghost in 0..2 * MAX_ROWS {
        a.given("b@h", entry(&format!("a{ghost}@h"), 1, 1, "ghost"));
    }
    assert_eq!(a.machine.rows.len(), MAX_ROWS);
    for late in 0..50 {
        let late = format!("c{late}@h");
        a.input(Input::Linked(name(&late), life(1)));
        a.given(&late, entry(&late, 1, 1, "late"));
        assert_eq!(a.mark(&late), Some(mark(1, 1, false)), "{late}");
    }
    assert!(a.mark("x@h").is_some() && a.mark("a@h").is_some());
    assert_eq!(a.machine.rows.len(), MAX_ROWS);
}

#[test]
fn who_states_the_last_version_there_is_can_be_forgotten_and_known_again() {
    let mut a = Alone::new(&["b@h"]);
    a.given("b@h", entry("x@h", 4, LAST_VERSION, "x"));
    assert_eq!(charged(&a.given("b@h", tomb("x@h", 4, LAST_VERSION + 1))), [""; 0]);
    assert_eq!(a.mark("x@h"), Some(mark(4, LAST_VERSION + 1, true)));
}

#[test]
fn forged_words_are_charged_and_cost_the_link() {
    let mut a = Alone::new(&["b@h"]);
    let far = entry("x@h", 4, LAST_VERSION + 1, "x");
    assert_eq!(charged(&a.given("b@h", far.clone())), ["absurd mark"]);
    assert_eq!(
        charged(&a.given("b@h", entry("x@h", Incarnation::LAST.0 + 1, 1, "x"))),
        ["absurd mark"]
    );
    assert_eq!(charged(&a.given("b@h", tomb("x@h", 1, u64::MAX))), ["absurd mark"]);
    let beyond = Mark { version: LAST_RULING + 1, ..far.mark() };
    let news = Word::News(vec![(name("x@h"), beyond)]);
    assert_eq!(charged(&a.hears("b@h", news)), ["absurd mark"]);
    let many = Word::Want(vec![name("x@h"); MAX_ROWS + 1]);
    assert_eq!(charged(&a.hears("b@h", many)), ["too many in one word"]);
    assert_eq!(a.mark("x@h"), None);
    let cut = (5..MAX_CHARGES).flat_map(|_| a.given("b@h", far.clone())).collect::<Vec<_>>();
    assert!(!cut.contains(&Output::Cut(name("b@h"))));
    assert!(a.given("b@h", far).contains(&Output::Cut(name("b@h"))));
    assert_eq!(a.hears("b@h", Word::Digest(0)), [], "and it is heard no more");
    assert_eq!(a.hears("stranger@h", Word::Digest(0)), []);
}

#[test]
fn answers_are_bounded_and_not_repeated() {
    let entries = (0..900).map(|n| {
        let short = entry(&format!("x{n}@{}", "h".repeat(60)), 1, 1, "x");
        table::sealed::<Profiles>(Entry { state: State::Live(longest()), ..short })
    });
    let mut a = Alone::remembering(&["b@h"], entries);
    let out = a.hears("b@h", Word::Digest(0));
    let words = sent(&out, "b@h");
    let marks: usize = words
        .iter()
        .map(|word| if let Word::Marks { marks, .. } = word { marks.len() } else { 0 })
        .sum();
    assert_eq!((marks, words.len() > 1), (901, true));
    assert_eq!(a.hears("b@h", Word::Digest(0)), [], "once a second");
    let names: Vec<_> = a.machine.rows().map(|entry| entry.origin.clone()).collect();
    let out = a.hears("b@h", Word::Want(names.clone()));
    let words = sent(&out, "b@h");
    let mut total = 0;
    for word in &words {
        let long = codec::encode(word).expect("encodes").len();
        assert!(long < MAX_WORD, "{long}");
        total += long;
    }
    assert!((MAX_ANSWER / 2..MAX_ANSWER + MAX_WORD).contains(&total), "{total}");
    let had = |words: &[Word]| -> BTreeSet<NodeName> {
        let entries = words.iter().flat_map(|word| match word {
            Word::Rows(entries) => entries.clone(),
            _ => vec![],
        });
        entries.map(|entry| entry.origin).collect()
    };
    let more = a.hears("b@h", Word::Want(names));
    assert!(had(&words).is_disjoint(&had(&sent(&more, "b@h"))), "only what it has not had");
    let one = Word::Want(vec![had(&words).first().expect("some").clone()]);
    assert_eq!(a.hears("b@h", one.clone()), []);
    a.tick(REPEAT);
    assert_eq!(sent(&a.hears("b@h", one), "b@h").len(), 1);
}

#[test]
fn what_a_peer_s_marks_lack_is_named_as_far_as_they_reach_and_sent_to_who_wants_it() {
    let known = ["f@h", "g@h", "x@h"].map(|of| entry(of, 1, 5, "x"));
    let mut a = Alone::remembering(&["b@h"], known.clone());
    let marks = vec![(name("f@h"), mark(1, 5, false)), (name("g@h"), mark(1, 4, false))];
    let word = |more| Word::Marks {
        after: Some(name("b@h")),
        marks: marks.clone(),
        more,
        values: Values::default(),
    };
    let news = |of: &[&Entry]| {
        Word::News(of.iter().map(|entry| (entry.origin.clone(), entry.mark())).collect())
    };
    let [_, g, x] = known;
    let named = sent(&a.hears("b@h", word(true)), "b@h");
    assert_eq!(named, [news(&[&g])], "of the rest it says nothing");
    let named = sent(&a.hears("b@h", word(false)), "b@h");
    assert_eq!(named, [news(&[&g, &x])], "it has no more");
    let wants = Word::Want(vec![g.origin.clone()]);
    assert_eq!(sent(&a.hears("b@h", wants), "b@h"), [Word::Rows(vec![g])]);
}

#[test]
fn what_is_asked_of_one_is_not_asked_of_another_until_it_is_late() {
    let mut a = Alone::new(&["b@h", "c@h"]);
    let news = || Word::News(vec![(name("x@h"), mark(1, 1, false))]);
    assert_eq!(sent(&a.hears("b@h", news()), "b@h"), [Word::Want(vec![name("x@h")])]);
    assert_eq!(a.hears("c@h", news()), []);
    let late = a.tick(Profiles::RETRY);
    let again = Word::Want(vec![name("x@h")]);
    assert_eq!(
        (sent(&late, "b@h").contains(&again), sent(&late, "c@h").contains(&again)),
        (false, true)
    );
}

#[test]
fn tombstones_make_room_and_end() {
    let profiles = (0..MAX_ROWS - 3).map(|n| entry(&format!("x{n}@h"), 1, 1, "x"));
    let old = |of: &str, age: u64| made("f@h", WALL - age, entry(of, 1, 1, "x"));
    let tombs = [old("t1@h", 5), old("t2@h", 9)];
    let mut a = Alone::remembering(&["b@h"], profiles.chain(tombs));
    a.given("b@h", entry("new@h", 1, 1, "x"));
    assert_eq!((a.mark("t1@h").is_some(), a.mark("t2@h")), (true, None), "the oldest goes");
    a.given("b@h", entry("newer@h", 1, 1, "x"));
    let out = a.given("b@h", entry("newest@h", 1, 1, "x"));
    assert_eq!((charged(&out), a.mark("newest@h")), (vec!["unwanted row"], None), "no room");
    let news = Word::News(vec![(name("newest@h"), mark(1, 1, false))]);
    assert_eq!(a.hears("b@h", news), [], "so it is not asked for");
    assert_eq!(a.machine.rows.len(), MAX_ROWS);

    let mut a = Alone::remembering(&["b@h"], [old("t1@h", 5)]);
    a.tick(Profiles::TOMBSTONE - SWEEP);
    assert!(a.mark("t1@h").is_some());
    let out = a.tick(SWEEP);
    assert!(out.contains(&Output::Changed(name("t1@h"))) && a.mark("t1@h").is_none());
    assert_eq!(a.given("b@h", old("t1@h", 5)), [], "what is over does not come back");
    a.given("b@h", made("f@h", u64::MAX, entry("t3@h", 1, 1, "x")));
    let at = a.machine.row(&name("t3@h")).and_then(Entry::gone_at).expect("taken");
    assert_eq!(at, a.machine.wall.0 + FUTURE, "nor does it stay for ever");
}

#[test]
fn a_life_that_goes_on_speaks_above_its_last_word() {
    let a = Alone::remembering(&[], [entry("a@h", 3, 40, "a"), tomb("c@h", 1, 1)]);
    assert_eq!(a.mark("a@h"), Some(mark(3, 41, false)));
    let many = (0..=MAX_ROWS).map(|n| entry(&format!("a{n}@h"), 1, 1, "x"));
    let a = Alone::remembering(&[], many.chain([entry("a@h", 3, 40, "a")]));
    let places = (a.mark("a@h"), a.machine.rows.len());
    assert_eq!(places, (Some(mark(3, 41, false)), MAX_ROWS), "its own row has a place");
    let later = Alone::remembering(&[], [entry("a@h", 2, 40, "a")]);
    assert_eq!(later.mark("a@h"), Some(mark(3, 1, false)));
}

#[test]
fn alone_or_forgotten_by_nobody_nothing_is_due() {
    let mut a = Alone::new(&[]);
    assert_eq!(a.machine.deadline(), None);
    a.input(Input::Linked(name("b@h"), life(7)));
    let early = a.machine.deadline().expect("a digest");
    assert!(
        (a.now + Profiles::FIRST_DIGEST / 2..=a.now + Profiles::FIRST_DIGEST * 2).contains(&early)
    );
    let out = a.tick(early - a.now);
    assert_eq!(sent(&out, "b@h"), [Word::Digest(a.machine.digest())]);
    let next = a.machine.deadline().expect("a digest") - a.now;
    assert!((ms(8000)..=ms(12_000)).contains(&next), "{next:?}");
}

#[test]
fn the_longest_entry_fits_the_word_and_its_estimate() {
    let long = format!("{}@{}", "n".repeat(63), ["h".repeat(60).as_str(); 3].join("."));
    let state = State::Live(longest());
    let entry = Entry { state, ..entry(&long, u64::MAX, u64::MAX, "x") };
    let bytes = codec::encode(&Word::Rows(vec![entry.clone()])).expect("encodes").len();
    assert!(bytes < MAX_WORD / 3, "{bytes}");
    assert!(bytes <= row_size::<Profiles>(&entry) + 2);
}
