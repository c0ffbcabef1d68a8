//! What left, by what was seen of it and by its own last word.

use super::*;

#[test]
fn what_was_seen_to_leave_stays_away_for_a_day() {
    let mut a = Alone::new(&["b@h", "c@h"]);
    a.hears("b@h", Word::Rows(vec![row("x@h", 4, 5, &[])]));
    let (origin, incarnation) = (name("x@h"), life(4));
    let left = [changed("x@h"), Output::Gone { origin, incarnation, known: true }];
    assert_eq!(a.input(Input::Gone(name("x@h"), life(4))), left);
    assert_eq!(a.input(Input::Gone(name("a@h"), life(3))), []);
    assert_eq!(a.hears("b@h", Word::Rows(vec![row("x@h", 4, 6, &[]), row("x@h", 3, 6, &[])])), []);
    let marks = Word::Marks {
        after: Some(name("w@h")),
        marks: vec![],
        more: false,
        values: Values::default(),
    };
    assert_eq!(a.hears("b@h", marks), [], "nobody has to believe it");
    assert_eq!(a.hears("b@h", Word::Want(vec![name("x@h")])), []);
    a.tick(Links::TOMBSTONE - ms(1));
    a.hears("b@h", Word::Rows(vec![row("x@h", 4, 6, &[])]));
    assert_eq!(a.mark("x@h"), None);
    a.tick(ms(1));
    a.hears("b@h", Word::Rows(vec![row("x@h", 4, 6, &[])]));
    assert_eq!(a.mark("x@h"), Some((4, 6)));
    // A link proves life.
    a.input(Input::Gone(name("x@h"), life(4)));
    a.input(Input::Linked(name("x@h"), life(4)));
    assert_eq!(a.mark("x@h"), Some((4, 0)));
}

#[test]
fn a_node_that_leaves_ends_its_row_for_all() {
    let mut x = Alone::new(&["b@h"]);
    x.own("b@h", online());
    let own = x.machine.rows.row(&name("a@h")).expect("its own").mark();
    let (version, end) = (own.version + 1, |version| Word::Rows(vec![tomb("a@h", 3, version)]));
    assert!(x.input(Input::Leaving).contains(&Output::Send(name("b@h"), end(version))));
    assert_eq!(x.own("b@h", cell(Status::Offline, None)), [], "that was its last word");

    // One that is linked with it takes it, and one that is not.
    let (origin, incarnation) = (name("x@h"), life(7));
    let left = [changed("x@h"), Output::Gone { origin, incarnation, known: true }];
    let end = Word::Rows(vec![tomb("x@h", 7, 6)]);
    for from in ["x@h", "b@h"] {
        let mut a = Alone::new(&[from]);
        a.hears(from, Word::Rows(vec![row("x@h", 7, 5, &[])]));
        assert_eq!(a.hears(from, end.clone()), left);
        a.input(Input::Unlinked(name("x@h")));
        assert_eq!(a.input(Input::Gone(name("x@h"), life(7))), [], "it is gone already");
        a.input(Input::Linked(name("c@h"), life(7)));
        // It is passed on for an hour.
        let marks = Word::Marks {
            after: Some(name("w@h")),
            marks: vec![],
            more: false,
            values: Values::default(),
        };
        let mark = Mark { incarnation: life(7), version: 6, gone: true };
        let told = Word::News(vec![(name("x@h"), mark)]);
        assert_eq!(a.hears("c@h", marks.clone()), [Output::Send(name("c@h"), told)]);
        let out = a.hears("c@h", Word::Want(vec![name("x@h")]));
        assert_eq!(out, [Output::Send(name("c@h"), end.clone())]);
        a.tick(YOUNG);
        assert_eq!(a.hears("c@h", marks), []);
        a.hears("c@h", Word::Rows(vec![row("x@h", 7, 5, &[])]));
        assert_eq!(a.mark("x@h"), None, "an earlier word");
        a.hears("c@h", Word::Rows(vec![row("x@h", 8, 1, &[])]));
        assert_eq!(a.mark("x@h"), Some((8, 1)), "a later life");
    }
}
