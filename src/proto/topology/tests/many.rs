//! What is asked, sent and named the less often, or not at all, while a cluster of many nodes forms.

use super::*;

/// Names of so many peers.
fn peers(count: usize) -> Vec<NodeName> {
    (0..count).map(node).collect()
}

/// When the next version of a row is wanted, where it is named as soon as the one before came second-hand.
fn next_want(count: usize) -> Duration {
    let peers = peers(count);
    let names: Vec<_> = peers.iter().map(NodeName::as_str).collect();
    let (mut a, via) = (Alone::new(&names), names[0]);
    let news = |version| Word::News(vec![mark("x@h", 1, version)]);
    assert_eq!(a.hears(via, news(4)), [want(via, &["x@h"])], "the first one at once");
    a.hears(via, Word::Rows(vec![row("x@h", 1, 4, &[])]));
    let begun = a.now;
    let mut out = a.hears(via, news(6));
    while !out.contains(&want(via, &["x@h"])) {
        out = a.tick(ms(1));
    }
    a.now - begun
}

#[test]
fn with_many_peers_a_row_that_changes_often_is_wanted_of_others_now_and_then() {
    assert_eq!([9, 10, 20, 100].map(next_want), [0, 400, 800, 4000].map(ms));
}

#[test]
fn of_many_new_links_one_at_a_time_gets_a_digest() {
    let digests = |count: usize| {
        let mut a = Alone::new(&[]);
        peers(count).into_iter().for_each(|peer| drop(a.input(Input::Linked(peer, life(7)))));
        let out = (0..20).flat_map(|_| a.tick(ms(10))).collect::<Vec<_>>();
        out.iter().filter(|it| matches!(it, Output::Send(_, Word::Digest(_)))).count()
    };
    assert_eq!([1, 5, 6, 20].map(digests), [1, 5, 5, 5]);
}

/// After how long one of eleven nodes, whose own cell for z@h is such, asks another for the row of that one.
fn asked(state: Option<Status>) -> Option<Duration> {
    let peers = peers(10);
    let mut a = Alone::new(&["b@h"]);
    let offline = peers.iter().map(|peer| (peer.as_str(), Some(Status::Offline)));
    for (peer, state) in offline.chain([("z@h", state)]) {
        state.into_iter().for_each(|state| drop(a.own(peer, cell(state, None))));
    }
    let begun = a.now;
    let mut out = a.hears("b@h", Word::News(vec![mark("z@h", 1, 4)]));
    while !out.contains(&want("b@h", &["z@h"])) && a.now < begun + ms(60_000) {
        out = a.tick(ms(10));
    }
    out.contains(&want("b@h", &["z@h"])).then(|| a.now - begun)
}

#[test]
fn a_row_is_not_asked_of_others_while_its_origin_is_being_linked() {
    let coming = [Status::Connecting, Status::Syncing].map(|it| asked(Some(it)));
    assert_eq!(coming, [Some(ms(10_000)); 2]);
    let others = [Some(Status::Offline), None].map(asked);
    assert_eq!(others, [Some(ms(0)); 2]);
}

#[test]
fn a_row_is_named_to_those_that_its_origin_neither_reaches_nor_is_about_to() {
    let named = |state| {
        let mut a = Alone::new(&["b@h", "x@h"]);
        let cells = [("a@h", online()), ("b@h", cell(state, None))];
        let mut out = a.hears("x@h", Word::Rows(vec![row("x@h", 7, 4, &cells)]));
        out.extend(a.tick(ms(60)));
        out.contains(&Output::Send(name("b@h"), Word::News(vec![mark("x@h", 7, 4)])))
    };
    let all = [Status::Online, Status::Syncing, Status::Connecting, Status::Offline];
    assert_eq!(all.map(named), [false, false, false, true]);
}

#[test]
fn measurements_travel_the_less_often_the_more_peers_there_are() {
    let next = |count: usize| {
        let peers = peers(count);
        let mut a = Alone::new(&peers.iter().map(NodeName::as_str).collect::<Vec<_>>());
        a.own("n0@h", online());
        let mut measures = |rtt| {
            a.own("n0@h", cell(Status::Online, Some(rtt)));
            while deltas(&a.tick(ms(500))) == 0 {}
            a.now
        };
        let first = measures(50_000);
        measures(100_000) - first
    };
    assert_eq!([3, 20, 100].map(next), [10_000, 10_000, 50_000].map(ms));
}
