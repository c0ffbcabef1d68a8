//! Words of a hostile peer.

use super::*;
use crate::proto::seal::{Equivocation, Sealed};

/// What a hostile peer says: plausible words about few names, with numbers at the edges.
fn hostile() -> impl Strategy<Value = Word> {
    let who = prop::sample::select(vec!["a@h", "b@h", "c@h", "x@h", "y@h"]).prop_map(name);
    let number = || {
        let edges = vec![0, 1, 2, 3, 7, 8, MAX_JUMP, MAX_JUMP + 1, u64::MAX - 1, u64::MAX];
        prop_oneof![4 => 0_u64..9, 1 => prop::sample::select(edges)]
    };
    let cell = number().prop_map(|since| Cell { since, ..online() });
    let mark = (number().prop_map(Incarnation), number(), any::<bool>());
    let mark = mark.prop_map(|(incarnation, version, gone)| Mark { incarnation, version, gone });
    let marks = prop::collection::vec((who.clone(), mark.clone()), 0..6);
    let values = prop::collection::vec(any::<Option<[u8; 4]>>(), 0..6);
    let changes =
        prop::collection::vec((who.clone(), prop::option::of(cell.clone())), 0..4).boxed();
    let state = prop_oneof![
        4 => prop::collection::btree_map(who.clone(), cell, 0..4).prop_map(State::Live),
        1 => (number(), who.clone()).prop_map(|(at, by)| State::Gone { at, by }),
    ];
    let row = (who.clone(), mark.clone(), state).prop_map(|(origin, mark, state)| {
        let Mark { incarnation, version, .. } = mark;
        table::sealed::<Links>(Row { origin, incarnation, version, state, seal: None })
    });
    let sealed = row.clone().prop_map(|row| Sealed {
        statement: rows::statement::<Links>(&row),
        seal: row.seal.expect("sealed"),
    });
    let part = (who.clone(), mark.clone(), 0_u16..3, 0_u16..3, changes.clone());
    prop_oneof![
        (who.clone(), mark, number(), changes).prop_map(|(origin, mark, to, change)| {
            let Mark { incarnation, version: from, .. } = mark;
            Word::Delta { origin, incarnation, from, to, change, signature: vec![1] }
        }),
        part.prop_map(|(origin, mark, part, parts, adds)| {
            let Mark { incarnation, version, .. } = mark;
            Word::Part { origin, incarnation, version, part, parts, adds, seal: None }
        }),
        any::<u128>().prop_map(Word::Digest),
        (prop::option::of(who.clone()), marks.clone(), any::<bool>(), values).prop_map(
            |(after, marks, more, hashes)| {
                let values = Values { salt: 7, hashes };
                Word::Marks { after, marks, more, values }
            }
        ),
        prop::collection::vec(row, 0..5).prop_map(Word::Rows),
        prop::collection::vec(sealed.clone(), 0..5).prop_map(Word::Sealed),
        (sealed.clone(), sealed)
            .prop_map(|(a, b)| Word::Equivocation(Box::new(Equivocation([a, b])))),
        prop::collection::vec(who, 0..6).prop_map(Word::Want),
        marks.prop_map(Word::News),
    ]
}

proptest! {
    #[test]
    fn hostile_words_do_no_harm(words in prop::collection::vec((any::<bool>(), 0_u64..400, hostile()), 0..60)) {
        let mut a = Alone::new(&["b@h", "c@h"]);
        a.own("b@h", online());
        for (b, wait, word) in words {
            let mut out = a.hears(if b { "b@h" } else { "c@h" }, word);
            out.extend(a.tick(ms(wait)));
            prop_assert!(out.len() <= 40, "{} outputs", out.len());
            prop_assert_eq!(a.cells("a@h").len(), 1);
            prop_assert_eq!(a.mark("a@h").map(|(life, _)| life), Some(3));
            for peer in ["b@h", "c@h"] {
                // It may have ended its own.
                prop_assert_eq!(a.mark(peer).map_or(7, |(life, _)| life), 7);
            }
            let deadline = a.machine.deadline();
            prop_assert!(deadline.is_some_and(|at| at > a.now));
        }
    }
}
