//! That a node is forgotten is taken back: by an operator, or with the certificate of the one that had it forgotten.

use super::*;

/// What is known of `x@h` in version 5 of life 4, and its tombstone by `f@h`.
fn x() -> (Entry, Entry) {
    let x = entry("x@h", 4, 5, "x");
    (x.clone(), ruled(("f@h", true), WALL, entry("x@h", 4, 6, "x"), Some(x)))
}

#[test]
fn what_is_taken_back_is_known_as_it_was_stated() {
    let (last, tomb) = x();
    // This one never knew it otherwise than forgotten.
    let mut a = Alone::new(&["b@h", "c@h"]);
    a.given("b@h", tomb.clone());
    assert_eq!(a.input(restore(name("a@h"))), [], "itself");
    let out = a.input(restore(name("x@h")));
    let back = ruled(("a@h", false), WALL, entry("x@h", 4, 7, "x"), Some(last));
    let word = vec![Word::Rows(vec![back.clone()])];
    assert_eq!([sent(&out, "b@h"), sent(&out, "c@h")], [word.clone(), word]);
    assert!(out.contains(&Output::Revived(name("x@h"))), "{out:?}");
    assert_eq!(a.machine.row(&name("x@h")).and_then(Entry::value), Some(&does("x")));
    assert_eq!(a.input(restore(name("x@h"))), [], "it is not forgotten");

    let mut other = Alone::new(&["b@h", "c@h"]);
    other.given("b@h", tomb.clone());
    let out = other.given("c@h", back.clone());
    assert!(out.contains(&Output::Revived(name("x@h"))), "{out:?}");
    assert_eq!(sent(&out, "b@h"), [Word::Rows(vec![back])], "passed on");
    assert_eq!(other.given("b@h", tomb), [], "the tombstone is older");
    // Its own later word is above it, and it goes on above it itself.
    other.given("b@h", entry("x@h", 5, 1, "later"));
    assert_eq!(other.mark("x@h"), Some(mark(5, 1, false)));
}

#[test]
fn nobody_brings_back_what_a_node_never_stated() {
    let (last, tomb) = x();
    let forged = || Entry { state: State::Live(does("forged")), ..last.clone() };
    let later = |entry: Entry| Entry { version: 9, ..entry };
    for offered in [None, Some(forged()), Some(later(forged()))] {
        let mut a = Alone::new(&["b@h"]);
        a.given("b@h", last.clone());
        a.given("b@h", ruled(("f@h", true), WALL, entry("x@h", 4, 6, "x"), offered.clone()));
        a.input(restore(name("x@h")));
        let value = |a: &Alone| a.machine.row(&name("x@h")).and_then(Entry::value).cloned();
        assert_eq!(value(&a), Some(does("x")), "{offered:?}: its own is kept");
        // One that knows nothing of it makes up no node.
        let mut a = Alone::new(&["b@h"]);
        a.given("b@h", ruled(("f@h", false), WALL, entry("x@h", 4, 7, "x"), offered));
        assert_eq!((value(&a), a.mark("x@h")), (None, Some(mark(4, 7, false))));
    }
    // Not even the node itself rules about itself, and a ruling has its author's seal.
    let mut a = Alone::new(&["b@h", "c@h"]);
    let own = ruled(("c@h", false), WALL, entry("c@h", 7, 7, "c"), None);
    assert_eq!(charged(&a.given("b@h", own.clone())), ["no ruling"]);
    let of_b = ruled(("f@h", false), WALL, entry("b@h", 7, 7, "b"), None);
    assert_eq!(charged(&a.given("b@h", of_b)), ["its own tombstone"]);
    let unsealed = Entry {
        seal: tomb.seal.clone(),
        ..ruled(("f@h", false), WALL, entry("x@h", 4, 6, "x"), None)
    };
    assert_eq!(charged(&a.given("b@h", unsealed)), ["unproven row"]);
    // What is said of a node that lives may cross its going on above an earlier word.
    let of_a = ruled(("f@h", false), WALL, entry("a@h", 3, 1, "a"), None);
    assert_eq!(charged(&a.given("b@h", of_a)), [""; 0]);
}

#[test]
fn a_ruling_of_who_may_not_rule_counts_for_nothing() {
    let (last, _) = x();
    let by = |who: &str| ruled((who, true), WALL, entry("x@h", 4, 6, "x"), Some(last.clone()));
    // On its own link, and passed on by another.
    for from in ["edge@h", "b@h"] {
        let mut a = Alone::new(&["edge@h", "b@h"]);
        a.given("b@h", last.clone());
        assert_eq!(charged(&a.given(from, by("edge@h"))), ["unproven row"], "{from}");
        assert_eq!(a.machine.row(&name("x@h")), Some(&last), "{from}");
    }
    // Nor does it help to show the certificate of another, who may.
    let mut a = Alone::new(&["edge@h", "b@h"]);
    a.given("b@h", last.clone());
    let borrowed = Entry { seal: by("b@h").seal, ..by("edge@h") };
    assert_eq!(charged(&a.given("edge@h", borrowed)), ["unproven row"]);
    assert_eq!(a.machine.row(&name("x@h")), Some(&last));
    a.given("b@h", by("b@h"));
    assert_eq!(a.mark("x@h"), Some(mark(4, 6, true)), "who may, rules");
}

#[test]
fn revoking_who_had_a_node_forgotten_takes_that_back() {
    let (last, _) = x();
    let revoked = || ruled(("revoked@h", true), WALL, entry("x@h", 4, 6, "x"), Some(last.clone()));
    let mut a = Alone::new(&["revoked@h"]);
    a.given("revoked@h", revoked());
    assert_eq!(a.mark("x@h"), Some(mark(4, 6, true)));
    let out = a.input(Input::Revoked);
    assert!(out.contains(&Output::Revived(name("x@h"))), "{out:?}");
    assert_eq!(a.machine.row(&name("x@h")), Some(&last), "as it was stated");
    // Where nothing was, nothing is.
    let mut a = Alone::new(&["revoked@h"]);
    a.given("revoked@h", ruled(("revoked@h", true), WALL, entry("x@h", 4, 6, "x"), None));
    a.input(Input::Revoked);
    assert_eq!(a.mark("x@h"), None);
}

#[test]
fn one_author_has_so_many_nodes_forgotten_or_known_again_within_a_minute() {
    let mut a = Alone::new(&["b@h"]);
    let ruling = |n: u64| {
        let of = format!("x{n}@h");
        ruled(("f@h", n.is_multiple_of(2)), WALL, entry(&of, 4, 6, "x"), None)
    };
    (0..100).for_each(|n| drop(a.given("b@h", ruling(n))));
    let taken = |a: &Alone| a.machine.rows().count() - 1;
    assert_eq!(taken(&a), 64);
    a.tick(Duration::from_secs(60));
    (64..100).for_each(|n| drop(a.given("b@h", ruling(n))));
    assert_eq!(taken(&a), 100);
}
