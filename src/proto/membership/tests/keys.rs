//! A name that is issued another key.

use std::time::Duration;

use super::desk::{Desk, ONLINE, hello, home, name};
use crate::proto::event::{Event, Reason, Source, Status};
use crate::proto::frame::CloseReason;
use crate::proto::hello::{Hello, Refusal};
use crate::proto::membership::{AttemptId, Failure, Input, Output};
use crate::proto::node::{Contact, Credential, Incarnation, KeyId};

/// As far as a thief can go.
const ABSURD: u64 = 1 << 40;

fn key(number: u8, since: u64) -> Credential {
    Credential { key: KeyId([number; 16]), since }
}

const SUPERSEDED: Refusal = Refusal::Superseded { known: KeyId([2; 16]), shown: KeyId([1; 16]) };

impl Desk {
    /// Lets `peer` dial in with that certificate; what the machine makes of its hello.
    fn greets(&mut self, attempt: u64, of: Credential, hello: &Hello) -> Vec<Output> {
        let attempt = AttemptId::Inbound(attempt);
        let mut out = self.give(Input::Shown(attempt, hello.name.clone(), of));
        out.extend(self.give(Input::Greeted(attempt, hello.clone())));
        out
    }

    /// Likewise, and lets it be linked.
    fn link_with(&mut self, number: u64, of: Credential, hello: &Hello) -> Vec<Output> {
        let attempt = AttemptId::Inbound(number);
        let mut out = self.greets(number, of, hello);
        assert!(out.contains(&Output::Proceed(attempt)), "{out:?}");
        out.extend(self.give(Input::Confirmed(attempt)));
        self.give(Input::Ready(attempt));
        out
    }

    fn is_linked_by(&self, attempt: u64) -> bool {
        let link = self.machine.peers.get(&name(1)).and_then(|peer| peer.live.as_ref());
        link.is_some_and(|live| live.attempt == AttemptId::Inbound(attempt))
    }
}

#[test]
fn a_later_key_gets_in_whatever_life_the_earlier_one_had() {
    for linked in [true, false] {
        let mut desk = Desk::new(1);
        desk.link_with(1, key(1, 10), &hello(1, ABSURD));
        if !linked {
            desk.give(Input::Ended(
                AttemptId::Inbound(1),
                crate::proto::membership::LinkEnd::Closed,
            ));
        }
        let out = desk.link_with(2, key(2, 20), &Hello { boot: 9, ..hello(1, 1) });
        let closed = Output::Close(AttemptId::Inbound(1), CloseReason::Replaced);
        assert_eq!(out.contains(&closed), linked);
        assert!(desk.is_linked_by(2) && desk.known(1) == Incarnation(1));
        // The earlier one is refused from then on, with both keys, and ends nothing.
        for life in [ABSURD + 1, 1] {
            let out = desk.greets(3, key(1, 10), &hello(1, life));
            assert_eq!(out[0], Output::Refuse(AttemptId::Inbound(3), SUPERSEDED));
        }
        let refused = Event::LinkRefused { peer: name(1), refusal: SUPERSEDED };
        assert_eq!(desk.events.iter().filter(|it| **it == refused).count(), 1, "once a minute");
        let text = refused.to_string();
        let both = [KeyId([1; 16]), KeyId([2; 16])].map(|key| key.to_string());
        assert!(both.iter().all(|key| text.contains(key)), "{text}");
        assert!(desk.is_linked_by(2) && desk.status(1) == ONLINE);
        // Not even after its link has ended.
        desk.give(Input::Ended(AttemptId::Inbound(2), crate::proto::membership::LinkEnd::Closed));
        let out = desk.greets(4, key(1, 10), &hello(1, ABSURD + 1));
        assert_eq!(out[0], Output::Refuse(AttemptId::Inbound(4), SUPERSEDED));
    }
}

#[test]
fn a_renewed_certificate_of_the_same_key_begins_nothing_anew() {
    let mut desk = Desk::new(1);
    desk.link_with(1, key(1, 10), &hello(1, 4));
    let out = desk.greets(2, key(1, 30), &Hello { boot: 9, ..hello(1, 3) });
    let stale = Refusal::Stale { known: Incarnation(4), linked: Some(home(1)) };
    assert_eq!(out[0], Output::Refuse(AttemptId::Inbound(2), stale));
    assert!(desk.is_linked_by(1));
    // A process that goes on with the certificate before is the same node.
    let out = desk.link_with(3, key(1, 10), &hello(1, 5));
    assert!(out.contains(&Output::Close(AttemptId::Inbound(1), CloseReason::Replaced)));
    // What was issued before the renewal is earlier than it.
    let out = desk.greets(4, key(2, 20), &hello(1, 9));
    let refusal = Refusal::Superseded { known: KeyId([1; 16]), shown: KeyId([2; 16]) };
    assert_eq!(out[0], Output::Refuse(AttemptId::Inbound(4), refusal));
}

#[test]
fn what_the_earlier_key_had_shown_before_it_was_forgotten_is_no_bar() {
    let mut desk = Desk::new(1);
    desk.link_with(1, key(1, 10), &hello(1, ABSURD));
    desk.give(Input::Ended(AttemptId::Inbound(1), crate::proto::membership::LinkEnd::Closed));
    desk.give(Input::Forget {
        name: name(1),
        life: Incarnation(ABSURD),
        known: true,
        author: None,
    });
    desk.link_with(2, key(2, 20), &hello(1, 1));
    assert!(desk.is_linked_by(2) && desk.known(1) == Incarnation(1));
}

#[test]
fn a_dial_that_finds_the_earlier_key_fails_and_says_so() {
    let mut desk = Desk::new(1);
    desk.link_with(1, key(2, 20), &hello(1, 1));
    desk.give(Input::Ended(AttemptId::Inbound(1), crate::proto::membership::LinkEnd::Closed));
    let (attempt, _) = desk.open.pop_first().expect("it is dialed again");
    desk.give(Input::Shown(attempt, name(1), key(1, 10)));
    let out = desk.give(Input::Connected(attempt, name(1)));
    assert_eq!(out[0], Output::Refuse(attempt, SUPERSEDED));
    let view = desk.machine.peer(&name(1)).expect("known");
    assert_eq!((view.status, view.reason), (Status::Offline, Some(Reason::Rejected)));
    assert!(view.cause.is_some_and(|it| it.contains("gave way to")));
    let late = Failure::Rejected("refused here".to_owned());
    assert_eq!(desk.give(Input::Failed(attempt, late)), [], "it was over already");
}

#[test]
fn a_beacon_counts_for_its_key() {
    let mut desk = Desk::new(1);
    desk.link_with(1, key(2, 20), &hello(1, 5));
    let beacon = |life| Contact { name: name(1), address: home(1), incarnation: Incarnation(life) };
    assert_eq!(desk.give(Input::Beacon(beacon(ABSURD), key(1, 10))), []);
    assert!(desk.is_linked_by(1) && desk.known(1) == Incarnation(5));
    // Of a later key it ends the link of the earlier one, and leads to another.
    let out = desk.give(Input::Beacon(beacon(1), key(3, 30)));
    assert!(out.contains(&Output::Close(AttemptId::Inbound(1), CloseReason::Replaced)));
    desk.pass(Duration::from_secs(2), |_| (Duration::ZERO, Failure::Refused));
    assert!(desk.dials.contains(&home(1)), "{:?}", desk.dials);
    // Without one, it says what it always said.
    let mut desk = Desk::new(1);
    desk.give(Input::Beacon(beacon(1), key(1, 10)));
    let found = Event::PeerDiscovered { peer: name(1), address: home(1), source: Source::Beacon };
    assert!(desk.events.contains(&found));
}
