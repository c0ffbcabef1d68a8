//! One story each, of one machine and what it hears.

use std::net::SocketAddr;
use std::time::Duration;

use super::super::{AttemptId, Config, Failure, Input, LinkEnd, Output};
use super::desk::{Desk, ONLINE, address, dialed, hello, home, ms, name, offline, secs};
use crate::proto::event::{Event, Reason, Source, Status};
use crate::proto::frame::CloseReason;
use crate::proto::hello::Refusal;
use crate::proto::node::{Contact, Incarnation};

fn refused(_: SocketAddr) -> (Duration, Failure) {
    (ms(1), Failure::Refused)
}

fn nothing_answers(_: SocketAddr) -> (Duration, Failure) {
    (secs(5), Failure::Unreachable("nothing answers".to_owned()))
}

/// Somebody says a peer is at an address.
fn hint_at(peer: usize, address: SocketAddr, source: Source) -> Input {
    Input::Hint(Contact { name: name(peer), address, incarnation: Incarnation(0) }, source)
}

fn left() -> LinkEnd {
    LinkEnd::Goodbye(CloseReason::Left)
}

#[test]
fn a_hint_leads_to_a_link_in_order() {
    let (peer, incarnation, address) = (name(1), Incarnation(1), home(1));
    let mut desk = Desk::new(1);
    let dial = dialed(&desk.hint(1, 0, Source::Remembered)).expect("dialed at once");
    desk.reach(dial, 1, 1);
    let source = Source::Remembered;
    assert_eq!(
        desk.events,
        [
            Event::PeerDiscovered { peer: peer.clone(), address, source },
            Event::PeerConnecting { peer: peer.clone() },
            Event::PeerSyncing { peer: peer.clone(), incarnation, address },
            Event::PeerOnline { peer: peer.clone(), incarnation, address },
        ]
    );
    // On the other side.
    let mut desk = Desk::new(1);
    desk.link(1, &hello(1, 1));
    assert_eq!(
        desk.events,
        [
            Event::PeerDiscovered { peer: peer.clone(), address, source: Source::Link },
            Event::PeerSyncing { peer: peer.clone(), incarnation, address },
            Event::PeerOnline { peer, incarnation, address },
        ]
    );
}

#[test]
fn a_seed_leads_to_a_link_and_is_left_alone_while_it_lasts() {
    let mut desk = Desk::new(2);
    let dial = dialed(&desk.give(Input::Seed(home(1)))).expect("dialed at once");
    (0..2).for_each(|_| assert_eq!(desk.give(Input::Seed(home(1))), []));
    desk.reach(dial, 1, 1);
    desk.rest(secs(600));
    assert_eq!(desk.dials, [home(1)]);
    let mut other = Desk::new(2);
    other.link(1, &hello(1, 1));
    other.rest(secs(600));
}

#[test]
fn a_seed_that_nobody_answers_is_asked_again_and_reported_once() {
    let mut desk = Desk::new(3);
    desk.give(Input::Seed(home(1)));
    desk.pass(secs(300), refused);
    assert!(matches!(desk.events[..], [Event::DialFailed { peer: None, .. }]), "{:?}", desk.events);
    let dials = desk.dials.len();
    assert!((12..120).contains(&dials), "{dials} dials in 5 minutes");
    let since = desk.now;
    let dial = dialed(&desk.tick()).expect("dialed when due");
    assert!(desk.now - since <= secs(31));
    desk.reach(dial, 1, 1);
}

#[test]
fn another_node_at_the_address_is_linked_as_itself() {
    let mut desk = Desk::new(5);
    let dial = dialed(&desk.give(hint_at(1, home(2), Source::Peer))).expect("dialed at once");
    desk.reach(dial, 2, 1);
    assert_eq!(desk.status(1), offline(Reason::Rejected));
    assert_eq!(desk.dials, [home(2)], "the connection at hand is used");
    desk.rest(secs(120)); // the address is not tried again for n1
    let dial = dialed(&desk.hint(1, 0, Source::Remembered)).expect("dialed at once");
    desk.reach(dial, 1, 1);
}

#[test]
fn a_goodbye_is_offline_left_and_no_dial_until_a_later_life_is_heard_of() {
    let mut desk = Desk::new(10);
    let link = desk.link(1, &hello(1, 1));
    desk.rest(secs(40));
    desk.give(Input::Ended(link, left()));
    assert_eq!(desk.status(1), offline(Reason::Left));
    for source in [Source::Beacon, Source::Peer, Source::Remembered, Source::Seed] {
        desk.hint(1, 1, source);
        desk.hint(1, 0, Source::Remembered);
        desk.rest(secs(300));
    }
    assert_eq!((desk.status(1), desk.dials.len()), (offline(Reason::Left), 0));
    let dial = dialed(&desk.hint(1, 2, Source::Peer)).expect("dialed at once");
    desk.reach(dial, 1, 2);
}

#[test]
fn a_node_that_left_is_welcome_when_it_comes_back_by_itself() {
    let mut desk = Desk::new(11);
    let link = desk.link(1, &hello(1, 1));
    desk.give(Input::Ended(link, left()));
    desk.rest(secs(60));
    desk.link(2, &hello(1, 2));
    assert_eq!(desk.status(1), ONLINE);
}

#[test]
fn a_dial_that_times_out_is_offline_unreachable() {
    let mut desk = Desk::new(12);
    desk.hint(1, 0, Source::Remembered);
    desk.pass(ms(4900), nothing_answers);
    assert_eq!(desk.status(1), (Status::Connecting, None));
    let dial = *desk.open.first_key_value().expect("it is still open").0;
    desk.give(Input::Failed(dial, nothing_answers(home(1)).1));
    assert_eq!(desk.status(1), offline(Reason::Unreachable));
    let since = desk.now;
    let dial = dialed(&desk.tick()).expect("dialed when due");
    assert!(desk.now - since <= secs(10));
    desk.reach(dial, 1, 1);
}

#[test]
fn a_peer_never_met_whose_dial_is_refused_is_unreachable_not_crashed() {
    let mut desk = Desk::new(13);
    let dial = dialed(&desk.hint(1, 0, Source::Remembered)).expect("dialed at once");
    desk.give(Input::Failed(dial, Failure::Refused));
    assert_eq!(desk.status(1), offline(Reason::Unreachable));
}

#[test]
fn at_most_four_dials_at_once_and_everybody_has_a_turn() {
    let mut desk = Desk::new(14);
    let holes: Vec<_> = (2000..2030).map(address).collect();
    for (peer, hole) in (100..).zip(&holes) {
        desk.give(hint_at(peer, *hole, Source::Remembered));
    }
    assert_eq!(desk.dials.len(), Config::default().dials);
    desk.pass(secs(5) * 8 + ms(500), nothing_answers);
    for hole in holes {
        assert!(desk.dials.contains(&hole), "{hole} within eight rounds of four");
    }
}

#[test]
fn a_dial_keeps_its_place_until_its_link_is_ready() {
    let mut desk = Desk::new(14);
    let dials: Vec<_> = (11..14)
        .map(|peer| dialed(&desk.hint(peer, 1, Source::Beacon)).expect("dialed at once"))
        .collect();
    for (dial, peer) in dials.iter().zip(11..14) {
        desk.greet(*dial, peer, 1);
    }
    assert!(dialed(&desk.hint(14, 1, Source::Beacon)).is_some(), "the last place");
    assert_eq!(dialed(&desk.hint(15, 1, Source::Beacon)), None, "three are linked, and not ready");
    assert!(dialed(&desk.give(Input::Ready(dials[0]))).is_some());
    let end = Input::Ended(dials[1], LinkEnd::Closed);
    assert_eq!(dialed(&desk.hint(16, 1, Source::Beacon)), None);
    assert!(dialed(&desk.give(end)).is_some(), "a link that ended keeps none");
}

#[test]
fn stop_closes_every_link_with_a_goodbye_and_takes_no_more() {
    let mut desk = Desk::new(15);
    for (link, peer) in (1..).zip(11..15) {
        desk.link(link, &hello(peer, 1));
    }
    let out = desk.give(Input::Stop);
    let goodbye = |o: &&Output| matches!(o, Output::Close(_, CloseReason::Left));
    assert_eq!(out.iter().filter(goodbye).count(), 4);
    desk.hint(14, 1, Source::Beacon);
    desk.give(Input::Seed(home(14)));
    desk.hint(1, 1, Source::Peer);
    desk.rest(secs(60));
    assert_eq!(desk.machine.deadline(), None, "nothing is left to do");
}

#[test]
fn a_restarted_machine_keeps_the_links_that_are_reported_to_it() {
    let mut desk = Desk::new(16);
    let peers = [1, 2, 3];
    for peer in peers {
        let link = AttemptId::Inbound(peer);
        desk.give(Input::Existing(link, hello(peer as usize, 1), true));
        desk.hint(peer as usize, 1, Source::Remembered);
    }
    desk.rest(secs(60));
    assert_eq!(peers.map(|peer| desk.status(peer as usize)), [ONLINE; 3]);
    let ends = |e: &Event| matches!(e, Event::LinkLost { .. } | Event::LinkReplaced { .. });
    assert!(!desk.events.iter().any(ends), "{:?}", desk.events);
}

#[test]
fn a_seed_that_is_on_its_way_out_is_dialed_no_more_as_a_peer() {
    let mut desk = Desk::new(1);
    let dial = dialed(&desk.give(Input::Seed(home(1)))).expect("dialed at once");
    desk.reach(dial, 1, 1);
    desk.rest(secs(60));
    desk.give(Input::Ended(dial, left()));
    // Its address is asked again: the process is there for a moment, and refuses.
    let again = dialed(&desk.tick()).expect("the seed is dialed");
    desk.open.clear();
    desk.give(Input::Connected(again, name(1)));
    desk.give(Input::Failed(again, Failure::RefusedBy(Refusal::Leaving)));
    desk.pass(secs(600), refused);
    assert_eq!(desk.status(1), offline(Reason::Left));
}

#[test]
fn a_late_hello_of_a_peer_that_left_does_not_bring_it_back() {
    let mut desk = Desk::new(1);
    let link = desk.link(1, &hello(1, 4));
    desk.give(Input::Ended(link, left()));
    let late = AttemptId::Inbound(2);
    desk.give(Input::Greeted(late, hello(1, 4)));
    let out = desk.give(Input::Failed(late, Failure::Closed));
    assert_eq!((dialed(&out), desk.dials.len()), (None, 0));
    assert_eq!(desk.status(1), offline(Reason::Left));
}

#[test]
fn a_confirmation_that_cannot_be_written_is_no_link() {
    let mut desk = Desk::new(1);
    let dial = dialed(&desk.hint(1, 0, Source::Peer)).expect("dialed at once");
    desk.give(Input::Connected(dial, name(1)));
    desk.give(Input::Welcomed(dial, hello(1, 1)));
    desk.give(Input::Failed(dial, Failure::Closed));
    assert_ne!(desk.status(1).0, Status::Syncing);
    assert!(desk.machine.deadline().is_some(), "a wanted peer has a time for its next dial");
}

#[test]
fn of_two_links_that_are_reported_one_is_closed() {
    let mut desk = Desk::new(1);
    desk.give(Input::Existing(AttemptId::Outbound(3), hello(1, 5), false));
    let out = desk.give(Input::Existing(AttemptId::Inbound(2), hello(1, 5), true));
    assert_eq!(out.iter().filter(|o| matches!(o, Output::Close(..))).count(), 1, "{out:?}");
}

#[test]
fn a_reported_link_of_an_older_life_is_closed() {
    let mut desk = Desk::new(1);
    desk.give(Input::Existing(AttemptId::Outbound(3), hello(1, 5), false));
    let older = AttemptId::Inbound(2);
    let out = desk.give(Input::Existing(older, hello(1, 4), true));
    assert_eq!(desk.known(1), Incarnation(5));
    assert!(out.contains(&Output::Close(older, CloseReason::Replaced)), "{out:?}");
}

#[test]
fn a_dial_on_its_way_when_the_link_is_reported_is_abandoned() {
    let mut desk = Desk::new(1);
    let dial = dialed(&desk.hint(1, 0, Source::Remembered)).expect("dialed at once");
    let out = desk.give(Input::Existing(AttemptId::Inbound(2), hello(1, 5), true));
    assert!(out.contains(&Output::Abandon(dial)), "{out:?}");
    let mut out = desk.give(Input::Connected(dial, name(1)));
    out.extend(desk.give(Input::Welcomed(dial, hello(1, 5))));
    assert!(!out.iter().any(|o| matches!(o, Output::Proceed(_) | Output::Close(..))), "{out:?}");
    assert_eq!(desk.status(1), ONLINE);
}

#[test]
fn a_second_crash_within_a_second_is_offline_at_once_too() {
    let mut desk = Desk::new(1);
    let link = desk.link(1, &hello(1, 1));
    desk.rest(secs(60));
    desk.give(Input::Ended(link, LinkEnd::Closed));
    desk.pass(secs(60), refused);
    assert_eq!(desk.status(1), offline(Reason::Crashed));
    let link = desk.link(2, &hello(1, 2));
    desk.rest(ms(500));
    let dial = dialed(&desk.give(Input::Ended(link, LinkEnd::Closed))).expect("dialed at once");
    desk.give(Input::Failed(dial, Failure::Refused));
    assert_eq!(desk.status(1), offline(Reason::Crashed));
}

#[test]
fn a_crash_is_offline_at_once_while_others_are_unreachable() {
    for seed in 0..20 {
        let mut desk = Desk::new(seed);
        for port in 2000..2012 {
            desk.give(hint_at(usize::from(port), address(port), Source::Remembered));
        }
        let link = desk.link(1, &hello(1, 1));
        desk.pass(secs(20), nothing_answers);
        let out = desk.give(Input::Ended(link, LinkEnd::Closed));
        let dial = dialed(&out).unwrap_or_else(|| panic!("seed {seed}: not dialed at once"));
        assert!(out.contains(&Output::Dial(dial, home(1))), "seed {seed}: {out:?}");
        desk.give(Input::Failed(dial, Failure::Refused));
        assert_eq!(desk.status(1), offline(Reason::Crashed), "seed {seed}");
    }
}

#[test]
fn a_peer_that_refuses_because_it_leaves_has_left() {
    let mut desk = Desk::new(1);
    let link = desk.link(1, &hello(1, 4));
    // The peer stops while it believes this link unconfirmed: the stream just ends.
    let dial = dialed(&desk.give(Input::Ended(link, LinkEnd::Closed))).expect("dialed at once");
    desk.give(Input::Connected(dial, name(1)));
    desk.give(Input::Failed(dial, Failure::RefusedBy(Refusal::Leaving)));
    assert_eq!(desk.status(1), offline(Reason::Left));
}

#[test]
fn a_wrong_first_address_does_not_skip_the_second() {
    let mut desk = Desk::new(1);
    for port in [3001, 3002, 3003] {
        desk.give(hint_at(1, address(port), Source::Peer));
    }
    desk.give(Input::Connected(AttemptId::Outbound(0), name(5)));
    assert_eq!(desk.dials, [address(3001), address(3002)]);
}

#[test]
fn the_end_of_a_seeds_link_is_one_dial() {
    let mut desk = Desk::new(1);
    let dial = dialed(&desk.give(Input::Seed(home(1)))).expect("dialed at once");
    desk.reach(dial, 1, 1);
    desk.rest(secs(60));
    desk.give(Input::Ended(dial, LinkEnd::Closed));
    desk.pass(ms(20), |_| (ms(19), Failure::Refused));
    assert_eq!(desk.dials.len(), 2);
}
