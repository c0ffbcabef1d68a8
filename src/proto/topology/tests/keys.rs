//! A name that is issued another key: rows of the earlier one are no bar.

use super::equivocation::{Keyed, a, liar, net, states, states_under};
use super::*;

fn later(version: u64, sees: &str) -> Row {
    let row = row("x@h", 1, version, &[(sees, online())]);
    table::sealed_by::<Links>(row, &mut Keyed::new(&liar(), 2))
}

#[test]
fn a_row_of_a_later_key_takes_the_place_of_one_with_a_greater_mark() {
    let mut a = a(&["b@h", "c@h"]);
    a.hears("b@h", Word::Rows(vec![states(900, "c@h")]));
    assert_eq!(a.machine.mark(&liar()), Some(900));
    let forged = table::sealed_by::<Links>(later(1, "d@h"), &mut Keyed::new(&name("b@h"), 2));
    a.hears("b@h", Word::Rows(vec![forged]));
    assert_eq!(a.machine.mark(&liar()), Some(900), "its seal does not hold");
    a.hears("c@h", Word::Rows(vec![later(1, "d@h")]));
    assert_eq!(a.machine.mark(&liar()), Some(1));
    // One that has the earlier one still is sent the later one.
    let earlier = states(901, "c@h");
    let out = a.hears("b@h", Word::Rows(vec![earlier.clone()]));
    let rows = |of: Row| Output::Send(name("b@h"), Word::Rows(vec![of]));
    assert_eq!((out, a.machine.mark(&liar())), (vec![rows(later(1, "d@h"))], Some(1)));
    assert_eq!(a.hears("b@h", Word::News(vec![(liar(), earlier.mark())])), [], "not asked again");
    assert_eq!(a.machine.proven, []);
    // A certificate that was renewed is of the same key: the later mark wins.
    a.hears("c@h", Word::Rows(vec![states_under(&mut Keyed::new(&liar(), 2), 902, "c@h")]));
    assert_eq!(a.machine.mark(&liar()), Some(902));
}

#[test]
fn nodes_that_were_apart_agree_on_the_later_key() {
    for seed in 0..20 {
        let mut net = net(4, seed, |a, b| a + 1 == b && b < 4);
        net.run(ms(500));
        // Nobody is linked with it any more.
        for at in 0..4 {
            net.links.retain(|(a, b), _| *a != 4 && *b != 4);
            net.input(at, Input::Unlinked(node(4)));
        }
        let (mut first, mut second) = (Keyed::new(&node(4), 1), Keyed::new(&node(4), 2));
        let row = |version, seals: &mut Keyed| {
            let row = row(node(4).as_str(), 7, version, &[("y@h", online())]);
            Word::Rows(vec![table::sealed_by::<Links>(row, seals)])
        };
        for (at, word) in [(0, row(9_000, &mut first)), (3, row(3, &mut second))] {
            let from = node(if at == 0 { 1 } else { 2 });
            net.input(at, Input::Received(from, word));
        }
        net.run(Duration::from_secs(60));
        for machine in net.nodes.iter().flatten() {
            assert_eq!(machine.mark(&node(4)), Some(3), "seed {seed}");
        }
    }
}
