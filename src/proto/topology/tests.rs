//! Topology: machines in one thread, seeded, in virtual time. A failure prints the seed.

#![allow(clippy::indexing_slicing, reason = "an index that is off is a failed test")]
#![allow(clippy::wildcard_enum_match_arm, reason = "a test looks for what it is about")]

use std::time::{Duration, Instant};

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::proto::codec;
use crate::proto::event::{Reason, Status};
use crate::proto::rows::tests::{self as table, Machine, life};
use crate::proto::rows::{
    FIRST, FUTURE, LAST_RULING, LAST_VERSION, MAX_CHARGES, MAX_JUMP, Mark, RAISE, Values, YOUNG,
};
use crate::proto::tests::network::{FAIR, Network, WALL, Weather, ms, name, node};
use crate::proto::tests::seals::Toy;
use crate::proto::tests::start;

type Alone = table::Alone<Topology>;

impl Machine for Topology {
    type Table = Links;

    fn table(&self) -> &Rows<Links> {
        &self.rows
    }

    fn sees(peer: NodeName, up: bool, since: u64) -> Option<Input> {
        let state = if up { Status::Online } else { Status::Offline };
        Some(Input::Own(vec![(peer, Some(Cell { since, ..cell(state, None) }))]))
    }

    fn handle(&mut self, input: Input, now: Instant, out: &mut Vec<Output>) {
        Topology::handle(self, input, now, out);
    }
}

fn cell(state: Status, rtt: Option<u32>) -> Cell {
    Cell { state, suspect: false, rtt, phi: 0, since: WALL, reason: None }
}

fn online() -> Cell {
    cell(Status::Online, Some(1000))
}

impl Alone {
    /// `a@h` in life 3, linked to these in life 7.
    fn new(peers: &[&str]) -> Self {
        let now = start();
        let rng = StdRng::seed_from_u64(1);
        let machine =
            Topology::new(name("a@h"), life(3), 1, now, WALL, rng, Box::new(Toy(name("a@h"))));
        Self::linked(machine, now, peers)
    }

    fn own(&mut self, peer: &str, cell: Cell) -> Vec<Output> {
        self.input(Input::Own(vec![(name(peer), Some(cell))]))
    }

    fn mark(&self, of: &str) -> Option<(u64, u64)> {
        self.machine.row_of(&name(of)).map(|row| (row.incarnation.0, row.version))
    }

    fn cells(&self, of: &str) -> &Cells {
        self.machine.row_of(&name(of)).expect("known").cells()
    }
}

fn changed(of: &str) -> Output {
    Output::Changed(name(of))
}

fn delta(of: &str, at: u64, from: u64, to: u64, cells: &[(&str, Option<Cell>)]) -> Word {
    let change = cells.iter().map(|(peer, cell)| (name(peer), cell.clone())).collect();
    let signature = Vec::new();
    Word::Delta { origin: name(of), incarnation: life(at), from, to, change, signature }
}

fn row(of: &str, at: u64, version: u64, cells: &[(&str, Cell)]) -> Row {
    let cells = cells.iter().map(|(peer, cell)| (name(peer), cell.clone())).collect();
    let state = State::Live(cells);
    let row = Row { origin: name(of), incarnation: life(at), version, state, seal: None };
    table::sealed::<Links>(row)
}

/// That life left, as it said itself at that version.
fn tomb(of: &str, at: u64, version: u64) -> Row {
    let state = State::Gone { at: WALL, by: name(of) };
    table::sealed::<Links>(Row { state, ..row(of, at, version, &[]) })
}

/// A part of a row of `x@h`, with one peer.
fn part(part: u16, parts: u16, peer: &str) -> Word {
    let adds = vec![(name(peer), Some(online()))];
    Word::Part {
        origin: name("x@h"),
        incarnation: life(1),
        version: 4,
        part,
        parts,
        adds,
        seal: None,
    }
}

fn mark(of: &str, at: u64, version: u64) -> (NodeName, Mark) {
    (name(of), Mark { incarnation: life(at), version, gone: version == u64::MAX })
}

fn want(to: &str, names: &[&str]) -> Output {
    Output::Send(name(to), Word::Want(names.iter().map(|n| name(n)).collect()))
}

fn charged(out: &[Output]) -> usize {
    out.iter().filter(|o| matches!(o, Output::Charge(..))).count()
}

fn deltas(out: &[Output]) -> usize {
    out.iter().filter(|o| matches!(o, Output::Send(_, Word::Delta { .. }))).count()
}

/// To how many that row is sent whole.
fn sent(out: &[Output], row: &Row) -> usize {
    let whole = |output: &&Output| matches!(output, Output::Send(_, Word::Rows(rows)) if rows[..] == [row.clone()]);
    out.iter().filter(whole).count()
}

#[test]
fn a_change_of_state_is_told_at_once_and_a_measurement_when_it_matters() {
    let mut a = Alone::new(&["b@h", "c@h"]);
    let out = a.own("b@h", online());
    assert_eq!(deltas(&out), 2);
    assert!(out.contains(&changed("a@h")));
    assert_eq!(a.mark("a@h"), Some((3, 2)));
    a.own("c@h", online());
    // Nothing new, a little slower, more doubt: silence.
    assert_eq!(a.own("b@h", online()), []);
    a.tick(ms(11_000));
    for rtt in [0, 1_500, 2_000] {
        assert_eq!(a.own("b@h", Cell { phi: 900, ..cell(Status::Online, Some(rtt)) }), []);
    }
    // Much slower: told, with what else was measured, and not again within 10 s.
    a.own("c@h", cell(Status::Online, Some(7_000)));
    assert_eq!(a.own("b@h", cell(Status::Online, Some(2_001))), []);
    assert_eq!(deltas(&a.tick(ms(500))), 2);
    assert_eq!(a.own("b@h", cell(Status::Online, Some(9_000))), []);
    assert_eq!(deltas(&a.tick(ms(9_999))), 0);
    assert_eq!(deltas(&a.tick(ms(1))), 2);
    let told = ["b@h", "c@h"].map(|peer| a.cells("a@h")[&name(peer)].rtt);
    assert_eq!(told, [9_000, 7_000].map(Some));
    // A measurement that waited but passed is not told.
    a.own("b@h", cell(Status::Online, Some(90_000)));
    a.own("b@h", cell(Status::Online, Some(9_001)));
    assert_eq!(deltas(&a.tick(ms(11_000))), 0);
    // Doubt, a reason and a state are told whenever they come.
    let doubted = Cell { suspect: true, ..online() };
    assert_eq!(deltas(&a.own("b@h", doubted)), 2);
    assert_eq!(deltas(&a.own("b@h", cell(Status::Offline, None))), 2);
    let why = Cell { reason: Some(Reason::Crashed), ..cell(Status::Offline, None) };
    assert_eq!(deltas(&a.own("b@h", why)), 2);
    let out = a.input(Input::Own(vec![(name("b@h"), None)]));
    assert_eq!(deltas(&out), 2);
    assert_eq!(a.cells("a@h").len(), 1);
    assert_eq!(a.input(Input::Own(vec![(name("b@h"), None)])), []);
}

#[test]
fn a_link_begins_with_the_own_row_a_digest_and_the_life_that_is_linked() {
    let mut a = Alone::new(&[]);
    assert_eq!(a.machine.deadline(), None);
    let out = a.input(Input::Linked(name("b@h"), life(7)));
    let own = Word::Rows(vec![row("a@h", 3, 1, &[])]);
    assert_eq!(out, [changed("b@h"), Output::Send(name("b@h"), own)]);
    assert_eq!(a.mark("b@h"), Some((7, 0)));
    let digest = Word::Digest(a.machine.rows.digest());
    assert_eq!(a.tick(2 * Links::FIRST_DIGEST), [Output::Send(name("b@h"), digest)]);
    a.hears("b@h", Word::Rows(vec![row("b@h", 7, 5, &[("a@h", online())])]));
    assert_eq!(a.machine.matrix().count(), 1);
    // The next life has said nothing yet: the old row is gone all the same.
    a.input(Input::Unlinked(name("b@h")));
    a.input(Input::Linked(name("b@h"), life(8)));
    assert_eq!((a.mark("b@h"), a.machine.matrix().count()), (Some((8, 0)), 0));
}

#[test]
fn a_delta_that_does_not_fit_is_answered_with_want_once() {
    let mut a = Alone::new(&["b@h", "c@h"]);
    assert_eq!(a.hears("b@h", delta("b@h", 7, 3, 4, &[])), [want("b@h", &["b@h"])]);
    assert_eq!(a.hears("b@h", delta("b@h", 7, 4, 5, &[])), []); // asked already
    let out = a.hears("b@h", Word::Rows(vec![row("b@h", 7, 5, &[])]));
    assert_eq!(out, [changed("b@h")]);
    let out = a.hears("b@h", delta("b@h", 7, 5, 6, &[("a@h", Some(online()))]));
    assert_eq!((out, a.mark("b@h")), (vec![changed("b@h")], Some((7, 6))));
    for stale in
        [delta("b@h", 7, 5, 6, &[]), delta("b@h", 7, 2, 3, &[]), delta("b@h", 6, 6, 7, &[])]
    {
        assert_eq!(a.hears("b@h", stale), []);
    }
    // An answer that was lost is asked for again, twice.
    a.hears("b@h", delta("b@h", 7, 8, 9, &[]));
    let asked = |out: Vec<Output>| out.contains(&want("b@h", &["b@h"]));
    assert_eq!([1, 2, 3, 4].map(|_| asked(a.tick(ms(1000)))), [true, true, false, false]);
}

#[test]
fn what_is_heard_of_while_a_question_is_open_is_not_lost() {
    let mut a = Alone::new(&["b@h", "c@h"]);
    let news = |version| Word::News(vec![mark("x@h", 1, version)]);
    assert_eq!(a.hears("b@h", news(4)), [want("b@h", &["x@h"])]);
    assert_eq!(a.hears("c@h", news(6)), []);
    // The answer is older than what the other one has: it is asked in turn.
    let out = a.hears("b@h", Word::Rows(vec![row("x@h", 1, 4, &[])]));
    assert_eq!(out, [changed("x@h"), want("c@h", &["x@h"])]);
    assert_eq!(a.hears("b@h", news(6)), [], "the question is open");
    assert_eq!(a.hears("c@h", Word::Rows(vec![row("x@h", 1, 6, &[])])), [changed("x@h")]);
    assert_eq!(a.machine.rows.asks.len(), 0);
    // Once it is linked it is asked itself, whatever was asked of others.
    a.hears("c@h", news(9));
    a.input(Input::Linked(name("x@h"), life(1)));
    assert_eq!(a.hears("x@h", news(9)), [want("x@h", &["x@h"])]);
}

#[test]
fn what_a_lost_link_owed_is_wanted_of_another_and_its_parts_are_dropped() {
    let mut a = Alone::new(&["b@h", "c@h"]);
    let news = || Word::News(vec![mark("x@h", 1, 4)]);
    assert_eq!(a.hears("b@h", news()), [want("b@h", &["x@h"])]);
    assert_eq!(a.hears("b@h", part(0, 2, "p@h")), []);
    a.input(Input::Unlinked(name("b@h")));
    assert_eq!(a.hears("c@h", news()), [want("c@h", &["x@h"])]);
    a.input(Input::Linked(name("b@h"), life(7)));
    a.hears("b@h", part(1, 2, "q@h"));
    assert_eq!(a.mark("x@h"), None);
}

#[test]
fn a_long_row_counts_when_all_its_parts_came_in_order() {
    let mut parts = [part(0, 3, "p@h"), part(1, 3, "q@h"), part(2, 3, "r@h")];
    let whole = row("x@h", 1, 4, &["p@h", "q@h", "r@h"].map(|peer| (peer, online())));
    if let Word::Part { seal, .. } = &mut parts[2] {
        *seal = whole.seal.clone();
    }
    for order in [&[0, 1, 2][..], &[1, 0, 1, 2]] {
        let mut a = Alone::new(&["b@h"]);
        order.iter().for_each(|at| drop(a.hears("b@h", parts[*at].clone())));
        assert_eq!(a.machine.row_of(&name("x@h")), Some(&whole));
    }
    for order in [[0, 2, 1], [0, 2, 2], [0, 1, 1], [0, 0, 2], [2, 1, 0]] {
        let mut a = Alone::new(&["b@h", "c@h"]);
        order.iter().for_each(|at| drop(a.hears("b@h", parts[*at].clone())));
        assert_eq!(a.mark("x@h"), None, "{order:?}");
    }
}

#[test]
fn another_digest_is_answered_with_marks_once_and_its_own_with_nothing() {
    let mut a = Alone::new(&["b@h"]);
    let digest = Word::Digest(a.machine.rows.digest());
    assert_eq!(a.hears("b@h", digest), []);
    let marks = vec![mark("a@h", 3, 1), mark("b@h", 7, 0)];
    let out = a.hears("b@h", Word::Digest(0));
    let [Output::Send(_, Word::Marks { after: None, marks: sent, more: false, values })] = &out[..]
    else {
        panic!("{out:?}")
    };
    assert_eq!((sent, values.hashes.iter().flatten().count()), (&marks, 1), "b stated nothing");
    assert_eq!(a.hears("b@h", Word::Digest(0)), []); // sent a moment ago
    // A peer that lacks something is apart, until its digest shows that it does not.
    a.hears(
        "b@h",
        Word::Marks { after: None, marks: vec![], more: false, values: Values::default() },
    );
    assert_eq!(a.machine.apart(), Some(a.now));
    let digest = Word::Digest(a.machine.rows.digest());
    a.hears("b@h", digest);
    assert_eq!(a.machine.apart(), None);
}

#[test]
fn marks_are_answered_with_news_and_wants_and_a_want_with_rows() {
    let mut a = Alone::new(&["b@h", "c@h"]);
    a.hears("c@h", Word::Rows(vec![row("x@h", 1, 5, &[]), row("y@h", 1, 5, &[])]));
    let marks = vec![mark("b@h", 7, 1), mark("x@h", 1, 4), mark("y@h", 1, 6), mark("z@h", 1, 1)];
    let out = a.hears(
        "b@h",
        Word::Marks { after: Some(name("a@h")), marks, more: false, values: Values::default() },
    );
    // c and x are newer here; a is not covered; b itself, y and z are newer there.
    let news = Word::News(vec![mark("c@h", 7, 0), mark("x@h", 1, 5)]);
    let wanted = want("b@h", &["b@h", "y@h", "z@h"]);
    assert_eq!(out, [Output::Send(name("b@h"), news), wanted]);
    let part = Word::Marks {
        after: None,
        marks: vec![mark("c@h", 7, 0)],
        more: true,
        values: Values::default(),
    };
    let news = Word::News(vec![mark("a@h", 3, 1), mark("b@h", 7, 0)]);
    assert_eq!(a.hears("c@h", part), [Output::Send(name("c@h"), news)]);
    let wants = |names: &[&str]| Word::Want(names.iter().map(|n| name(n)).collect());
    let rows = |out: &[Output]| match out {
        [Output::Send(_, Word::Rows(rows))] => rows.len(),
        _ => 0,
    };
    assert_eq!(rows(&a.hears("b@h", wants(&["x@h", "x@h", "a@h", "q@h"]))), 2);
    assert_eq!(a.hears("b@h", wants(&["x@h", "a@h"])), []); // sent a moment ago
    a.now += Links::RETRY / 2;
    assert_eq!(rows(&a.hears("b@h", wants(&["x@h"]))), 1);
}

#[test]
fn the_row_of_a_linked_origin_comes_from_itself() {
    let mut a = Alone::new(&["b@h", "c@h"]);
    a.hears("b@h", Word::Rows(vec![row("b@h", 7, 5, &[])]));
    let forged = row("b@h", 7, 9, &[("a@h", cell(Status::Offline, None))]);
    // It is asked, and hears what is said of it.
    let told = Output::Send(name("b@h"), Word::News(vec![mark("b@h", 7, 9)]));
    assert_eq!(a.hears("c@h", Word::Rows(vec![forged.clone()])), [told, want("b@h", &["b@h"])]);
    assert_eq!(a.mark("b@h"), Some((7, 5)));
    for other in [row("b@h", 8, 1, &[]), tomb("b@h", 7, 9)] {
        assert_eq!(a.hears("c@h", Word::Rows(vec![other])), []);
    }
    assert_eq!(a.mark("b@h"), Some((7, 5)));
    a.input(Input::Unlinked(name("b@h")));
    a.hears("c@h", Word::Rows(vec![forged]));
    assert_eq!(a.mark("b@h"), Some((7, 9)));
    a.hears("c@h", Word::Rows(vec![row("b@h", 7, 8, &[]), row("b@h", 6, 99, &[])]));
    assert_eq!(a.mark("b@h"), Some((7, 9)));
    a.hears("c@h", Word::Rows(vec![row("b@h", 8, 1, &[])]));
    assert_eq!(a.mark("b@h"), Some((8, 1)));
}

#[test]
fn a_claim_to_our_own_row_raises_its_version_above_the_claim() {
    let mut a = Alone::new(&["b@h", "c@h"]);
    a.own("b@h", online());
    let forged = Row { seal: None, ..row("a@h", 3, 2, &[]) };
    assert_eq!(charged(&a.hears("b@h", Word::Rows(vec![forged]))), 1);
    assert_eq!(charged(&a.hears("b@h", Word::Rows(vec![row("a@h", 2, 9, &[])]))), 1);
    assert_eq!(a.mark("a@h"), Some((3, 2)));
    let out = a.hears("b@h", Word::Rows(vec![row("a@h", 3, 50, &[])]));
    // A copy at the claimed version is forged: ours replaces it.
    let own = |at, version| row("a@h", at, version, &[("b@h", online())]);
    let (_, raised) = a.mark("a@h").expect("known");
    // Far above it: the next version might be one that a peer has with other content.
    assert!((100..=51 + FIRST).contains(&raised), "{raised}");
    assert_eq!(
        (charged(&out), sent(&out, &own(3, raised)), a.mark("a@h")),
        (0, 2, Some((3, raised)))
    );
    assert_eq!(a.machine.matrix().count(), 1);
    assert_eq!(a.hears("c@h", Word::News(vec![mark("a@h", 3, raised + 9)])), []); // once a second
    a.now += RAISE;
    for claim in
        [mark("a@h", 2, 90), mark("a@h", 3, u64::MAX), mark("a@h", 3, raised + 1 + MAX_JUMP)]
    {
        assert_eq!(a.hears("c@h", Word::News(vec![claim])), []);
    }
    let out = a.hears("c@h", Word::News(vec![mark("a@h", 3, raised + 9)]));
    let (_, again) = a.mark("a@h").expect("known");
    assert_eq!((sent(&out, &own(3, again)), again > raised + 9), (2, true));
    let out = a.input(Input::Renewed(life(9)));
    assert_eq!((sent(&out, &own(9, again + 1)), a.mark("a@h")), (2, Some((9, again + 1))));
}

#[test]
fn abuse_is_charged_and_cut_past_sixteen_a_minute() {
    let many = |n: usize| (0..n).map(|i| (node(i), Some(online()))).collect();
    let whole = |n: usize| Word::Delta {
        origin: name("b@h"),
        incarnation: life(7),
        from: 0,
        to: 1,
        change: many(n),
        signature: Vec::new(),
    };
    let (first, full, long) = (whole(5), whole(1024), whole(1025));
    let over = delta("b@h", 7, 1, 2, &[("one@more", Some(online()))]);
    let late = Cell { since: WALL + FUTURE + 1, ..online() };
    let state = State::Gone { at: WALL, by: name("b@h") };
    let of_another = table::sealed::<Links>(Row { state, ..row("x@h", 7, 1, &[]) });
    let cases: Vec<(Word, Word)> = vec![
        (first.clone(), long),
        (full, over),
        (first.clone(), Word::Want(vec![name("x@h"); 1025])),
        (first.clone(), delta("c@h", 7, 0, 1, &[])),
        (first.clone(), delta("b@h", 7, 1, 1 + LAST_VERSION, &[])),
        (first.clone(), delta("b@h", 7, 1, u64::MAX, &[])),
        (first.clone(), delta("b@h", 7, 1, 2, &[("c@h", Some(late.clone()))])),
        (first.clone(), Word::Rows(vec![of_another])),
        (first.clone(), Word::Rows(vec![row("b@h", 7, 2, &[("c@h", late)])])),
        (first.clone(), Word::Rows(vec![row("x@h", Incarnation::LAST.0 + 1, 2, &[])])),
        (first.clone(), Word::Rows(vec![row("x@h", 1, LAST_VERSION + 1, &[])])),
        (first.clone(), part(1, 1, "c@h")),
        (
            first.clone(),
            Word::News(vec![
                mark("x@h", 1, LAST_RULING + 1),
                mark("y@h", Incarnation::LAST.0 + 1, 1),
            ]),
        ),
    ];
    for (at, (before, abuse)) in cases.into_iter().enumerate() {
        let mut a = Alone::new(&["b@h", "c@h"]);
        assert_eq!(charged(&a.hears("b@h", before)), 0, "case {at}");
        assert_eq!(charged(&a.hears("b@h", abuse)), 1, "case {at}");
        let since = a.machine.matrix().map(|(_, _, cell)| cell.since).max().unwrap_or_default();
        assert!(since <= WALL + FUTURE, "case {at}");
    }
    let mut a = Alone::new(&["b@h", "c@h"]);
    let cut = |out: &[Output]| out.contains(&Output::Cut(name("b@h")));
    for round in 0..3 {
        let abused = (0..MAX_CHARGES).map(|_| a.hears("b@h", delta("c@h", 7, 0, 1, &[])));
        assert!(abused.collect::<Vec<_>>().iter().all(|out| charged(out) == 1 && !cut(out)));
        if round < 2 {
            a.tick(Duration::from_secs(60));
        }
    }
    assert!(cut(&a.hears("b@h", delta("c@h", 7, 0, 1, &[]))));
    assert_eq!(a.hears("b@h", delta("c@h", 7, 0, 1, &[])), []); // not heard any more
    assert_eq!(a.hears("q@h", delta("c@h", 7, 0, 1, &[])), []); // nor who is not linked
}

/// A restarted peer speaks at once; the tracker hears of its new link a moment later.
#[test]
fn a_later_life_that_speaks_before_its_link_is_reported_is_no_abuse() {
    let words = [
        delta("b@h", 8, 0, 1, &[]),
        Word::Rows(vec![row("b@h", 8, 2, &[])]),
        Word::Marks {
            after: None,
            marks: vec![mark("b@h", 8, 2)],
            more: false,
            values: Values::default(),
        },
    ];
    for word in words {
        let mut a = Alone::new(&["b@h", "c@h"]);
        assert_eq!(charged(&a.hears("b@h", word)), 0);
        assert_eq!(a.mark("b@h"), Some((7, 0)));
        a.input(Input::Unlinked(name("b@h")));
        a.input(Input::Linked(name("b@h"), life(8)));
        a.hears("b@h", Word::Rows(vec![row("b@h", 8, 2, &[])]));
        assert_eq!(a.mark("b@h"), Some((8, 2)));
    }
}

#[test]
fn a_million_nodes_find_no_room() {
    let mut a = Alone::new(&["b@h"]);
    a.own("b@h", online());
    let invented = |from: usize| (from..from + 1000).map(node_of_many).collect::<Vec<_>>();
    let row = |origin: NodeName| Row {
        state: State::Live([(node_of_many(7), online())].into()),
        ..Row { origin, ..row("x@h", 1, 1, &[]) }
    };
    for from in (0..20_000).step_by(1000) {
        let names = invented(from);
        a.hears(
            "b@h",
            Word::News(names.iter().map(|n| (n.clone(), mark("x@h", 1, 1).1)).collect()),
        );
        a.hears("b@h", Word::Rows(names.into_iter().map(row).collect()));
        assert!(a.machine.rows.rows.len() <= MAX_ROWS && a.machine.rows.asks.len() <= MAX_ROWS);
    }
    assert_eq!(a.mark("a@h"), Some((3, 2)));
    assert!(a.mark("b@h").is_some());
}

#[test]
fn what_others_said_of_a_node_s_links_is_no_bar_once_it_is_linked() {
    for (at, version) in [(1 << 40, 1), (1 << 40, LAST_VERSION), (7, LAST_VERSION)] {
        let mut a = Alone::new(&["b@h"]);
        a.hears("b@h", Word::Rows(vec![row("c@h", at, version, &[])]));
        a.input(Input::Linked(name("c@h"), life(7)));
        let own = row("c@h", 7, 9, &[("a@h", online())]);
        a.hears("c@h", Word::Rows(vec![own.clone()]));
        assert_eq!(a.machine.row_of(&name("c@h")), Some(&own), "{at} {version}");
    }
}

#[test]
fn an_unwanted_row_without_room_is_charged() {
    let mut a = Alone::new(&["b@h"]);
    let all: Vec<NodeName> = (0..MAX_ROWS).map(node).collect();
    let cells = all.iter().map(|peer| (peer.clone(), Some(online()))).collect();
    a.input(Input::Own(cells)); // so that nobody's row can be spared
    a.hears("b@h", Word::News(vec![mark("x@h", 1, 1)]));
    let rows = all.iter().map(|origin| row(origin.as_str(), 1, 1, &[]));
    assert_eq!(charged(&a.hears("b@h", Word::Rows(rows.take(MAX_ROWS - 2).collect()))), 0);
    assert_eq!(a.machine.rows.rows.len(), MAX_ROWS);
    assert_eq!(charged(&a.hears("b@h", Word::Rows(vec![row("x@h", 1, 1, &[])]))), 0, "wanted");
    assert_eq!(charged(&a.hears("b@h", Word::Rows(vec![row("y@h", 1, 1, &[])]))), 1);
    assert_eq!(a.hears("b@h", Word::News(vec![mark("y@h", 1, 1)])), [], "nor is it wanted");
    a.input(Input::Linked(name("y@h"), life(1)));
    assert_eq!(charged(&a.hears("y@h", Word::Rows(vec![row("y@h", 1, 1, &[])]))), 0, "its own");
    assert_eq!(a.mark("y@h"), Some((1, 1)), "a linked one has a place");
}

fn node_of_many(at: usize) -> NodeName {
    name(&format!("{}{at}@{}", "m".repeat(50), format!("{}.", "h".repeat(60)).repeat(3) + "end"))
}

#[test]
fn the_largest_cluster_travels_in_words_below_48_kib() {
    let mut a = Alone::new(&["b@h"]);
    let rest = 1 << 31;
    for at in 0..1100 {
        let full = Cell { rtt: Some(u32::MAX), phi: u32::MAX, since: WALL, ..online() };
        a.input(Input::Own(vec![(node_of_many(at), Some(full))]));
        if at < 1022 {
            let of = row(node_of_many(at).as_str(), rest, rest, &[]);
            assert_eq!(charged(&a.hears("b@h", Word::Rows(vec![of]))), 0);
        }
    }
    assert_eq!(a.cells("a@h").len(), MAX_ROWS);
    let mut words = a.input(Input::Linked(name("c@h"), life(1)));
    words.extend(a.hears("c@h", Word::Want(vec![name("a@h")])));
    let all = (0..1022).map(node_of_many).collect();
    words.extend(a.hears("c@h", Word::Want(all)));
    let mut c = Alone::new(&[]);
    c.machine.rows.me = name("c@h");
    c.input(Input::Linked(name("a@h"), life(3)));
    assert!(words.len() > 10);
    for word in words {
        if let Output::Send(_, word) = word {
            let bytes = codec::encode(&word).expect("encodes");
            assert!(bytes.len() < MAX_WORD, "{} bytes", bytes.len());
            let word: Word = codec::decode(&bytes, MAX_WORD).expect("its own bytes");
            assert_eq!(charged(&c.hears("a@h", word)), 0);
        }
    }
    assert_eq!(c.machine.row_of(&name("a@h")), a.machine.row_of(&name("a@h")));
    assert!(c.machine.rows().count() > 1000);
}

mod equivocation;
mod hostile;
mod keys;
mod leaving;
mod many;
mod renewal;
mod world;
