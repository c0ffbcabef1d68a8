//! One machine, driven by hand: its judgements, its waits and its limits.

use std::time::Duration;

use super::super::{AttemptId, Config, Failure, Input, LinkEnd, Output};
use super::desk::{Desk, address, dialed, hello, home, ms, name, secs};
use crate::proto::event::{Event, Reason, Source, Status};
use crate::proto::frame::CloseReason;
use crate::proto::hello::{Hello, Refusal};
use crate::proto::node::{Contact, Incarnation};

#[test]
fn waits_between_dials_stay_under_a_doubling_ceiling() {
    let mut longest = [Duration::ZERO; 12];
    for seed in 0..150 {
        let mut desk = Desk::new(seed);
        let mut attempt = dialed(&desk.hint(1, 0, Source::Peer)).expect("dialed at once");
        for (failures, longest) in longest.iter_mut().enumerate() {
            let failed = desk.now;
            let out = desk.give(Input::Failed(attempt, Failure::Refused));
            assert_eq!(dialed(&out), None, "seed {seed}");
            attempt = dialed(&desk.tick()).expect("dialed when due");
            let wait = desk.now - failed;
            let ceiling = (ms(250) * (1 << failures)).min(secs(30));
            assert!(wait <= ceiling, "seed {seed}, {failures}: {wait:?}");
            *longest = wait.max(*longest);
        }
    }
    for (failures, longest) in longest.into_iter().enumerate() {
        let ceiling = (ms(250) * (1 << failures)).min(secs(30));
        assert!(longest > ceiling * 8 / 10, "{failures}: {longest:?} of {ceiling:?}");
    }
}

/// Ten failed dials, a link that lasts for `up`, its end, a refused redial: the wait after that.
fn wait_after_a_link_of(up: Duration, seed: u64) -> Duration {
    let mut desk = Desk::new(seed);
    let mut attempt = dialed(&desk.hint(1, 0, Source::Peer)).expect("dialed at once");
    for _ in 0..10 {
        desk.give(Input::Failed(attempt, Failure::Refused));
        attempt = dialed(&desk.tick()).expect("dialed when due");
    }
    desk.give(Input::Connected(attempt, name(1)));
    desk.give(Input::Welcomed(attempt, hello(1, 1)));
    desk.give(Input::Ready(attempt));
    desk.now += up;
    let redial = dialed(&desk.give(Input::Ended(attempt, LinkEnd::Closed)));
    let redial = redial.expect("a link that worked is dialed again at once");
    desk.give(Input::Failed(redial, Failure::Refused));
    assert_eq!(desk.status(1), (Status::Offline, Some(Reason::Crashed)), "seed {seed}");
    let failed = desk.now;
    desk.tick();
    desk.now - failed
}

#[test]
fn thirty_seconds_up_forget_the_failures_before() {
    let longest = |up| (0..100).map(|seed| wait_after_a_link_of(up, seed)).max();
    assert!(longest(secs(30)) <= Some(ms(250)));
    assert!(longest(secs(29)) > Some(secs(20)));
}

#[test]
fn an_older_life_is_refused_and_told_why_and_hurts_no_link() {
    let mut desk = Desk::new(1);
    let live = desk.link(1, &hello(1, 4));
    let (at, known, linked) = (AttemptId::Inbound(2), Incarnation(4), Some(home(1)));
    let told = |linked| Output::Refuse(at, Refusal::Stale { known, linked });
    let other_boot = Hello { boot: 99, ..hello(1, 4) };
    let mut announced = 0;
    for older in [hello(1, 3), other_boot.clone(), hello(1, 0)] {
        let out = desk.give(Input::Greeted(at, older));
        assert_eq!(out[0], told(linked));
        announced += out
            .iter()
            .filter(|it| matches!(it, Output::Announce(Event::LinkRefused { .. })))
            .count();
        assert_eq!((desk.known(1), desk.status(1).0), (known, Status::Online));
    }
    assert_eq!(announced, 1, "once a minute");
    desk.give(Input::Ended(live, LinkEnd::TimedOut));
    for older in [hello(1, 3), other_boot] {
        assert_eq!(desk.give(Input::Greeted(at, older))[0], told(None));
    }
    desk.hint(1, 2, Source::Beacon);
    assert_eq!(desk.known(1), known, "what is known never falls");
}

#[test]
fn an_older_life_that_welcomes_is_refused_too() {
    let mut desk = Desk::new(2);
    let live = desk.link(1, &hello(1, 4));
    let redial = dialed(&desk.give(Input::Ended(live, LinkEnd::Closed))).expect("redialed");
    desk.give(Input::Connected(redial, name(1)));
    let out = desk.give(Input::Welcomed(redial, hello(1, 3)));
    let (known, linked) = (Incarnation(4), None);
    assert_eq!(out[0], Output::Refuse(redial, Refusal::Stale { known, linked }));
    assert_eq!(desk.status(1).0, Status::Offline);
    assert!(desk.machine.deadline().is_some(), "it is dialed again");
    assert_eq!(desk.known(1), known);
}

#[test]
fn the_link_gives_way_when_the_newer_one_is_confirmed_and_not_before() {
    let mut desk = Desk::new(3);
    let first = desk.link(1, &hello(1, 4));
    let second = AttemptId::Inbound(2);
    let out = desk.give(Input::Greeted(second, hello(1, 4)));
    assert_eq!(out, [Output::Proceed(second)], "the same life: the link at hand stays for now");
    assert_eq!(desk.status(1).0, Status::Online);
    let out = desk.give(Input::Confirmed(second));
    assert_eq!(out[0], Output::Close(first, CloseReason::Replaced));
    assert_eq!(out.last(), Some(&Output::Proceed(second)));
    assert_eq!(desk.give(Input::Ended(first, LinkEnd::Closed)), [], "nobody's link any more");
    let third = AttemptId::Inbound(3);
    let out = desk.give(Input::Greeted(third, hello(1, 5)));
    assert_eq!(out[0], Output::Close(second, CloseReason::Replaced), "a later life proves it dead");
    assert_eq!(desk.status(1).0, Status::Connecting);
    assert_eq!(desk.known(1), Incarnation(5));
}

#[test]
fn an_unconfirmed_newer_attempt_leaves_the_link_alone() {
    let mut desk = Desk::new(4);
    desk.link(1, &hello(1, 4));
    let second = AttemptId::Inbound(2);
    desk.give(Input::Greeted(second, hello(1, 4)));
    assert_eq!(desk.give(Input::Failed(second, Failure::Closed)), []);
    assert_eq!(desk.status(1).0, Status::Online);
}

#[test]
fn of_two_greetings_of_a_peer_the_later_is_welcome() {
    let mut desk = Desk::new(5);
    let (first, second) = (AttemptId::Inbound(1), AttemptId::Inbound(2));
    desk.give(Input::Greeted(first, hello(1, 4)));
    let out = desk.give(Input::Greeted(second, hello(1, 4)));
    assert_eq!(out, [Output::Abandon(first), Output::Proceed(second)]);
    assert_eq!(desk.give(Input::Confirmed(first)), [Output::Abandon(first)]);
    assert_eq!(desk.give(Input::Confirmed(second)).last(), Some(&Output::Proceed(second)));
}

#[test]
fn of_crossed_dials_the_first_name_wins_once_its_hello_is_out() {
    let inbound = AttemptId::Inbound(1);
    // n5 meets n1, who sorts first, and n9, who sorts last.
    for (peer, greeting, refused) in [(1, true, false), (9, true, true), (9, false, false)] {
        let mut desk = Desk::new(6);
        let dial = dialed(&desk.hint(peer, 0, Source::Peer)).expect("dialed");
        if greeting {
            desk.give(Input::Connected(dial, name(peer)));
        }
        let out = desk.give(Input::Greeted(inbound, hello(peer, 1)));
        if refused {
            assert_eq!(out, [Output::Refuse(inbound, Refusal::Crossed)], "n{peer}");
        } else {
            let given_way = [Output::Abandon(dial), Output::Proceed(inbound)];
            assert_eq!(out, given_way, "n{peer}, hello sent: {greeting}");
            assert_eq!(desk.give(Input::Connected(dial, name(peer))), [Output::Abandon(dial)]);
            assert_eq!(desk.machine.deadline(), None, "no dial while a welcome is unconfirmed");
            let again = dialed(&desk.give(Input::Failed(inbound, Failure::Closed)));
            assert!(again.is_some(), "it came to nothing: dialed again at once");
        }
    }
}

#[test]
fn a_crossed_refusal_waits_for_the_other_dial_and_is_no_failure() {
    for seed in 0..50 {
        let mut desk = Desk::new(seed);
        let dial = dialed(&desk.hint(1, 0, Source::Peer)).expect("dialed");
        desk.give(Input::Connected(dial, name(1)));
        desk.give(Input::Failed(dial, Failure::RefusedBy(Refusal::Crossed)));
        assert_eq!(desk.status(1), (Status::Connecting, None));
        let wait = desk.machine.deadline().expect("dialed again") - desk.now;
        assert!((ms(500)..=ms(1500)).contains(&wait), "seed {seed}: {wait:?}");
    }
}

#[test]
fn hints_end_no_link_except_the_signed_word_of_a_later_life() {
    let mut desk = Desk::new(7);
    let live = desk.link(1, &hello(1, 4));
    for source in [Source::Peer, Source::Remembered, Source::Seed, Source::Link] {
        assert_eq!(desk.hint(1, 9, source), [], "{source:?}");
    }
    for known in [0, 3, 4] {
        assert_eq!(desk.hint(1, known, Source::Beacon), []);
    }
    let out = desk.hint(1, 5, Source::Beacon);
    assert_eq!(out[0], Output::Close(live, CloseReason::Replaced));
    assert!(dialed(&out).is_some(), "and the later life is dialed at once");
}

#[test]
fn hints_of_nobody_of_myself_and_beyond_the_cap_are_dropped() {
    let mut desk = Desk::with(Config { peers: 3, ..Config::default() }, 8);
    assert_eq!(desk.hint(5, 9, Source::Beacon), [], "that is me");
    for bad in ["0.0.0.0:1", "[::]:1", "127.0.0.1:0", "233.252.1.32:5", "[ff02::1]:5"] {
        let address = bad.parse().expect("an address");
        let contact = Contact { name: name(1), address, incarnation: Incarnation(1) };
        assert_eq!(desk.give(Input::Hint(contact, Source::Beacon)), [], "{bad}");
        assert_eq!(desk.give(Input::Seed(address)), [], "{bad}");
    }
    (10..20).for_each(|peer| drop(desk.hint(peer, 1, Source::Peer)));
    assert_eq!(desk.machine.peers().count(), 3);
}

#[test]
fn hearsay_is_tried_after_what_the_peer_says_itself() {
    let mut desk = Desk::new(9);
    let live = desk.link(1, &hello(1, 4));
    for port in 1..200 {
        let contact =
            Contact { name: name(1), address: address(port), incarnation: Incarnation(9) };
        desk.give(Input::Hint(contact, Source::Peer));
    }
    let mut out = desk.give(Input::Ended(live, LinkEnd::Closed));
    let mut tried = 0;
    while let Some(attempt) = dialed(&out) {
        tried += 1;
        let first = out.contains(&Output::Dial(attempt, home(1)));
        assert_eq!(first, tried == 1, "{out:?}");
        out = desk.give(Input::Failed(attempt, Failure::Refused));
    }
    assert!((2..=8).contains(&tried), "{tried} addresses in one round");
    assert_eq!(desk.status(1), (Status::Offline, Some(Reason::Crashed)));
}

#[test]
fn beacons_bring_a_dial_forward_but_not_more_than_once_a_second() {
    let mut desk = Desk::new(10);
    let mut dials = 0;
    for _ in 0..100 {
        let out = desk.hint(1, 1, Source::Beacon);
        if let Some(attempt) = dialed(&out) {
            dials += 1;
            desk.give(Input::Failed(attempt, Failure::Refused));
        }
        desk.now += ms(100);
        if let Some(attempt) = dialed(&desk.give(Input::Tick)) {
            dials += 1;
            desk.give(Input::Failed(attempt, Failure::Refused));
        }
    }
    assert!((9..=20).contains(&dials), "{dials} dials in 10 s of beacons");
}

#[test]
fn a_told_incarnation_is_believed_unless_it_is_absurd_or_old() {
    let stale = |known, linked: bool| {
        let linked = linked.then(|| home(1));
        Failure::RefusedBy(Refusal::Stale { known: Incarnation(known), linked })
    };
    for (known, linked, raised) in [
        (7, false, Some(8)),
        (40, false, Some(41)),
        (6, false, None),
        (40, true, None),
        (u64::MAX, false, None),
        (2_000_000, false, None),
    ] {
        let mut desk = Desk::new(11);
        let dial = dialed(&desk.hint(9, 0, Source::Peer)).expect("dialed");
        let out = desk.give(Input::Failed(dial, stale(known, linked)));
        let renewed = raised.map(|to| Output::Renew(Incarnation(to)));
        let renews = out.iter().find(|o| matches!(o, Output::Renew(_)));
        assert_eq!(renews, renewed.as_ref(), "{known} {linked}");
        assert_eq!(desk.machine.incarnation(), Incarnation(raised.unwrap_or(7)));
    }
}

#[test]
fn a_peer_that_left_is_forgotten_after_its_tombstone() {
    let mut desk = Desk::new(12);
    let live = desk.link(1, &hello(1, 4));
    desk.give(Input::Ended(live, LinkEnd::Goodbye(CloseReason::Left)));
    assert_eq!(desk.status(1), (Status::Offline, Some(Reason::Left)));
    let tombstone = Config::default().tombstone;
    assert_eq!(desk.machine.deadline(), Some(desk.now + tombstone));
    assert_eq!(desk.tick(), []);
    assert_eq!(desk.machine.peers().count(), 0);
    assert_eq!(desk.machine.deadline(), None);
}

#[test]
fn a_fault_is_rejected_and_waits() {
    let mut desk = Desk::new(13);
    let live = desk.link(1, &hello(1, 4));
    let out = desk.give(Input::Ended(live, LinkEnd::Fault("a bad frame".to_owned())));
    assert_eq!((dialed(&out), desk.status(1)), (None, (Status::Offline, Some(Reason::Rejected))));
    assert!(desk.machine.deadline().is_some());
}

#[test]
fn a_silent_peer_is_unreachable_and_dialed_again() {
    let mut desk = Desk::new(15);
    assert_eq!(desk.give(Input::Silent(name(1))), [], "nobody");
    let live = desk.link(1, &hello(1, 4));
    let out = desk.give(Input::Silent(name(1)));
    assert_eq!(out[0], Output::Close(live, CloseReason::Silent));
    assert_eq!(desk.status(1), (Status::Offline, Some(Reason::Unreachable)));
    assert_eq!(desk.give(Input::Silent(name(1))), [], "no link any more");
    assert!(dialed(&desk.tick()).is_some());
}

#[test]
fn strangers_and_echoes_are_turned_away() {
    let mut desk = Desk::new(14);
    let (inbound, unknown) = (AttemptId::Inbound(1), AttemptId::Outbound(77));
    assert_eq!(
        desk.give(Input::Greeted(inbound, hello(5, 9)))[0],
        Output::Refuse(inbound, Refusal::Myself)
    );
    assert_eq!(desk.give(Input::Connected(unknown, name(1))), [Output::Abandon(unknown)]);
    assert_eq!(desk.give(Input::Welcomed(unknown, hello(1, 1))), [Output::Abandon(unknown)]);
    assert_eq!(desk.give(Input::Confirmed(inbound)), [Output::Abandon(inbound)]);
    for nothing in [
        Input::Ready(unknown),
        Input::Ended(unknown, LinkEnd::Closed),
        Input::Failed(unknown, Failure::Closed),
        Input::Tick,
    ] {
        assert_eq!(desk.give(nothing), []);
    }
    desk.give(Input::Stop);
    let out = desk.give(Input::Greeted(inbound, hello(1, 1)));
    assert_eq!(out[0], Output::Refuse(inbound, Refusal::Leaving));
}

#[test]
fn a_later_life_whose_handshake_comes_to_nothing_is_dialed() {
    let mut desk = Desk::new(16);
    desk.link(1, &hello(1, 4));
    let second = AttemptId::Inbound(2);
    desk.give(Input::Greeted(second, hello(1, 5)));
    let out = desk.give(Input::Failed(second, Failure::Closed));
    assert!(dialed(&out).is_some(), "the link gave way to it: {out:?}");
}

impl Desk {
    pub(super) fn forget(&mut self, peer: usize, life: u64) -> Vec<Output> {
        self.give(Input::Forget {
            name: name(peer),
            life: Incarnation(life),
            known: false,
            author: None,
        })
    }

    pub(super) fn knows(&self, peer: usize) -> bool {
        self.machine.peer(&name(peer)).is_some()
    }
}

fn forgotten(peer: usize) -> Output {
    Output::Announce(Event::PeerForgotten { peer: name(peer), author: None })
}

#[test]
fn a_forgotten_node_is_looked_for_no_more_until_it_lives() {
    for (source, life, comes_back) in [
        (Source::Peer, 4, false),
        (Source::Remembered, 3, false),
        (Source::Peer, 0, false),
        (Source::Beacon, 3, true),
        (Source::Beacon, 4, true),
        (Source::Peer, 5, true),
        (Source::Remembered, 5, true),
    ] {
        let mut desk = Desk::new(1);
        let attempt = dialed(&desk.hint(1, 4, Source::Peer)).expect("dialed at once");
        let out = desk.forget(1, 4);
        assert_eq!(out, [Output::Abandon(attempt), forgotten(1)]);
        assert!(!desk.knows(1) && desk.machine.deadline().is_none());
        assert_eq!(desk.give(Input::Failed(attempt, Failure::Refused)), [], "what was under way");
        let out = desk.hint(1, life, source);
        assert_eq!(desk.knows(1), comes_back, "{source:?} {life}");
        assert_eq!(dialed(&out).is_some(), comes_back, "{source:?} {life}");
    }
}

#[test]
fn who_greets_after_it_was_forgotten_is_a_new_peer_and_never_an_earlier_life() {
    let mut desk = Desk::new(1);
    let live = desk.link(7, &hello(1, 4));
    desk.give(Input::Ended(live, LinkEnd::TimedOut));
    desk.forget(1, 4);
    let early = AttemptId::Inbound(8);
    let out = desk.give(Input::Greeted(early, hello(1, 3)));
    let stale = Refusal::Stale { known: Incarnation(4), linked: None };
    assert_eq!(out[0], Output::Refuse(early, stale));
    assert!(!desk.knows(1));
    desk.link(9, &hello(1, 4));
    assert_eq!(desk.status(1), (Status::Online, None));
    assert_eq!(desk.forget(1, 4), [], "one that is linked lives");
    assert_eq!(desk.status(1), (Status::Online, None));
    let end = LinkEnd::Goodbye(CloseReason::Left);
    desk.give(Input::Ended(AttemptId::Inbound(9), end));
    assert_eq!(desk.forget(1, 3), [], "of an earlier life");
    assert_eq!(desk.forget(1, 4), [forgotten(1)]);
    assert!(!desk.knows(1));
}

#[test]
fn a_tombstone_is_announced_only_of_one_that_was_known_and_can_be_lifted() {
    let mut desk = Desk::new(1);
    assert_eq!(desk.forget(1, 4), []);
    let (two, life) = (name(2), Incarnation(1));
    let known = Input::Forget { name: two, life, known: true, author: None };
    assert_eq!(desk.give(known), [forgotten(2)]);
    assert_eq!(desk.forget(5, 7), [], "nobody forgets itself");
    desk.hint(1, 4, Source::Peer);
    assert!(!desk.knows(1));
    desk.give(Input::Revive(name(1)));
    desk.hint(1, 4, Source::Peer);
    assert!(desk.knows(1));
}

/// A seed leads to it: its certificate shows that it lives.
#[test]
fn a_forgotten_node_at_a_seed_is_a_peer_again() {
    let mut desk = Desk::new(1);
    let live = desk.link(7, &hello(1, 4));
    desk.give(Input::Ended(live, LinkEnd::TimedOut));
    desk.forget(1, 4);
    let attempt = dialed(&desk.give(Input::Seed(home(1)))).expect("dialed");
    desk.give(Input::Connected(attempt, name(1)));
    assert_eq!(desk.known(1), Incarnation(4), "its life stays known");
    let out = desk.give(Input::Welcomed(attempt, hello(1, 3)));
    assert!(out.contains(&Output::Refuse(
        attempt,
        Refusal::Stale { known: Incarnation(4), linked: None }
    )));
}
