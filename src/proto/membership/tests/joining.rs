//! Seeds as operators see them, and another process of this node's name.

use std::net::SocketAddr;
use std::time::Instant;

use super::super::{AttemptId, Failure, Input, Output, SeedView};
use super::desk::{Desk, address, name, secs};
use crate::proto::event::{Event, Source};
use crate::proto::hello::{Hello, Refusal};
use crate::proto::node::{Contact, Incarnation, KeyId};
use crate::proto::tests::start;

/// The node `n5`, whose hellos say boot 7 and port 5000.
fn n5() -> Desk {
    Desk::new(3).with_hello(7, own())
}

impl Desk {
    /// A seed is given, and dialed at once.
    fn seed(&mut self, at: SocketAddr) -> AttemptId {
        match self.give(Input::Seed(at)).as_slice() {
            [Output::Dial(attempt, to)] if *to == at => *attempt,
            other => panic!("{other:?}"),
        }
    }

    /// Dials that are due until then, of whomever.
    fn dials_until(&mut self, until: Instant) -> Vec<AttemptId> {
        let mut dials = Vec::new();
        while let Some(at) = self.machine.deadline().filter(|at| *at <= until) {
            self.now = at.max(self.now);
            let out = self.give(Input::Tick);
            dials.extend(out.iter().filter_map(|it| match it {
                Output::Dial(attempt, _) => Some(*attempt),
                _ => None,
            }));
            if dials.is_empty() && out.is_empty() && self.machine.deadline() <= Some(at) {
                break;
            }
        }
        dials
    }

    fn namesake(&self) -> Option<SocketAddr> {
        self.machine.joining().namesake
    }
}

fn own() -> SocketAddr {
    address(5000)
}

fn hello(boot: u64, port: u16) -> Hello {
    let (name, cluster) = (name(5), KeyId([7; 16]));
    Hello {
        name,
        cluster,
        incarnation: Incarnation(7),
        boot,
        advertise: address(port),
        lists: None,
    }
}

fn announced(out: &[Output]) -> Vec<&Event> {
    let events = out.iter().filter_map(|it| match it {
        Output::Announce(event) => Some(event),
        _ => None,
    });
    events.collect()
}

#[test]
fn a_seed_shows_its_last_try_its_error_and_who_was_there() {
    let mut desk = n5();
    let (at, begun) = (address(3001), desk.now);
    let attempt = desk.seed(at);
    let view = |desk: &Desk| desk.machine.joining().seeds;
    let fresh = SeedView { address: at, node: None, tried: Some(begun), failure: None };
    assert_eq!(view(&desk), std::slice::from_ref(&fresh));
    let refused = Failure::OtherCluster("belongs to another cluster".to_owned());
    desk.give(Input::Failed(attempt, refused.clone()));
    assert_eq!(view(&desk), [SeedView { failure: Some(refused), ..fresh.clone() }]);
    let dials = desk.dials_until(begun + secs(1));
    assert_eq!((dials.len(), view(&desk)[0].tried), (1, Some(desk.now)));
    desk.give(Input::Connected(dials[0], name(1)));
    let node = Some(name(1));
    assert_eq!(view(&desk), [SeedView { node, tried: Some(desk.now), ..fresh }]);
}

#[test]
fn a_seed_that_leads_back_here_is_told_from_another_process_of_this_name() {
    let mut desk = n5();
    let at = address(3001);
    let attempt = desk.seed(at);
    assert_eq!(desk.give(Input::Connected(attempt, name(5))), [Output::Proceed(attempt)]);
    // The same connection, as it arrives.
    let inbound = AttemptId::Inbound(1);
    let out = desk.give(Input::Greeted(inbound, hello(7, 5000)));
    assert_eq!(out, [Output::Refuse(inbound, Refusal::Myself)], "nobody need know");
    let out = desk.give(Input::Failed(attempt, Failure::RefusedBy(Refusal::Myself)));
    assert_eq!(announced(&out), [&Event::SeedIsMyself { address: at }]);
    assert_eq!(
        (desk.namesake(), desk.machine.joining().seeds[0].node.clone()),
        (None, Some(name(5)))
    );
    assert_eq!(desk.dials_until(start() + secs(600)), [], "it is dialed no more");
    assert_eq!(desk.machine.peers().count(), 0);

    let mut desk = n5();
    let attempt = desk.seed(at);
    desk.give(Input::Connected(attempt, name(5)));
    let taken = Refusal::Stale { known: Incarnation(7), linked: Some(at) };
    let out = desk.give(Input::Failed(attempt, Failure::RefusedBy(taken)));
    assert_eq!(
        announced(&out),
        [&Event::NameInUse { address: at }],
        "and not as a seed that fails"
    );
    assert_eq!(desk.namesake(), Some(at));
    assert_ne!(desk.dials_until(desk.now + secs(60)), [], "it may be gone one day");
}

#[test]
fn another_process_of_this_name_is_announced_once_and_forgotten_when_it_is_gone() {
    let mut desk = n5();
    let (inbound, taken) = (AttemptId::Inbound(1), address(6000));
    let refused = Refusal::Stale { known: Incarnation(7), linked: Some(own()) };
    let out = desk.give(Input::Greeted(inbound, hello(8, 6000)));
    assert!(out.contains(&Output::Refuse(inbound, refused)), "{out:?}");
    assert_eq!(announced(&out), [&Event::NameInUse { address: taken }]);
    for second in 1..=60 {
        desk.now = start() + secs(second);
        assert_eq!(announced(&desk.give(Input::Namesake(taken))), Vec::<&Event>::new());
    }
    let last = desk.now;
    desk.now = last + secs(89);
    desk.give(Input::Tick);
    assert_eq!(desk.namesake(), Some(taken));
    desk.now = desk.machine.deadline().expect("it is forgotten one day");
    desk.give(Input::Tick);
    assert_eq!((desk.now, desk.namesake()), (last + secs(90), None));
    desk.now = start() + secs(600);
    assert_eq!(
        announced(&desk.give(Input::Namesake(taken))),
        [&Event::NameInUse { address: taken }]
    );
}

#[test]
fn a_peer_that_holds_to_another_process_is_not_hurried_and_warned_of_once() {
    let mut desk = n5();
    let begun = desk.now;
    let contact = |incarnation| Contact {
        name: name(1),
        address: address(3001),
        incarnation: Incarnation(incarnation),
    };
    let refusal = Refusal::Stale { known: Incarnation(7), linked: Some(address(6000)) };
    let (mut told, mut in_use, mut dials) = (0, 0, 0);
    for _ in 0..60 {
        let mut out = desk.give(Input::Hint(contact(1), Source::Beacon));
        out.extend(desk.give(Input::Tick));
        for output in std::mem::take(&mut out) {
            if let Output::Dial(attempt, _) = output {
                dials += 1;
                out.extend(desk.give(Input::Connected(attempt, name(1))));
                out.extend(desk.give(Input::Failed(attempt, Failure::RefusedBy(refusal))));
            }
        }
        let events = announced(&out);
        told += events.iter().filter(|it| matches!(it, Event::RefusedBy { .. })).count();
        in_use += events.iter().filter(|it| matches!(it, Event::NameInUse { .. })).count();
        desk.now += secs(1);
    }
    assert_eq!((told, in_use), (1, 1));
    assert!((2..=20).contains(&dials), "{dials} dials in {:?}", desk.now - begun);
    // An earlier life of this node, in which a peer still believes, is no other process.
    let mut desk = n5();
    let attempt = desk.seed(address(3001));
    let earlier = Refusal::Stale { known: Incarnation(7), linked: Some(own()) };
    let out = desk.give(Input::Failed(attempt, Failure::RefusedBy(earlier)));
    assert!(!announced(&out).iter().any(|it| matches!(it, Event::NameInUse { .. })), "{out:?}");
}
