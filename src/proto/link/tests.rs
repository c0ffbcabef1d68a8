//! The machine alone, against a model of what the actor does, under random orders of events.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::proto::capability::Capabilities;
use crate::proto::node::{Incarnation, KeyId};
use crate::proto::tests::start;

fn name(text: &str) -> NodeName {
    text.parse().expect("valid")
}

fn proven(of: &str) -> Proven {
    let hello = Hello {
        name: name(of),
        cluster: KeyId([1; 16]),
        incarnation: Incarnation(1),
        boot: 1,
        advertise: ([127, 0, 0, 1], 1).into(),
        lists: None,
    };
    Proven {
        hello,
        credential: Credential { key: KeyId([2; 16]), since: 0 },
        serials: vec![of.to_owned()],
        capabilities: Capabilities::ALL,
    }
}

/// The machine, with revoked certificates and a clock.
struct World {
    machine: Links,
    revoked: BTreeSet<String>,
    now: Instant,
}

impl World {
    fn new() -> Self {
        Self { machine: Links::default(), revoked: BTreeSet::new(), now: start() }
    }

    fn input(&mut self, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        let revoked = &self.revoked;
        self.machine.handle(
            input,
            |serials| serials.iter().any(|it| revoked.contains(it)),
            self.now,
            &mut out,
        );
        out
    }

    /// An inbound attempt of a peer that is through.
    fn established(&mut self, number: u64, of: &str) -> Vec<Output> {
        let attempt = AttemptId::Inbound(number);
        self.input(Input::Authenticated(attempt, name(of)));
        self.input(Input::Established(attempt, proven(of)))
    }
}

const A: AttemptId = AttemptId::Inbound(1);
const B: AttemptId = AttemptId::Inbound(2);

fn ended(attempt: AttemptId, why: &str) -> Output {
    Output::Report(Report::Ended(attempt, LinkEnd::Fault(why.to_owned())))
}

#[test]
fn a_second_link_of_a_peer_waits_until_the_first_is_gone() {
    let mut world = World::new();
    assert_eq!(world.established(1, "b@h"), [Output::Start(A)]);
    assert_eq!(world.input(Input::SessionReady(A)), [Output::Report(Report::Ready(A))]);
    assert_eq!(world.established(2, "b@h"), []);
    let other = AttemptId::Inbound(3);
    assert_eq!(world.established(3, "c@h"), [Output::Start(other)], "another peer's does not");
    let part = Output::Part(A, CloseReason::Replaced);
    assert_eq!(world.input(Input::Close(A, CloseReason::Replaced)), [part]);
    assert_eq!(world.input(Input::Close(A, CloseReason::Left)), [], "one goodbye");
    let end = Output::Report(Report::Ended(A, LinkEnd::Closed));
    let out = world.input(Input::MuxEnded(A, LinkEnd::Closed));
    assert_eq!(out, [Output::StopSession(A), end], "ractor's session is still there");
    assert_eq!(world.input(Input::SessionGone(A)), [Output::Over(A), Output::Start(B)]);
}

#[test]
fn whatever_gets_stuck_is_given_up_in_time() {
    let mut world = World::new();
    world.established(1, "b@h");
    world.established(2, "b@h");
    let begun = world.now;
    world.now += GONE;
    assert_eq!(world.machine.deadline(), Some(world.now));
    let late = "ractor's sessions did not agree in time";
    assert_eq!(world.input(Input::Tick), [Output::Drop(B), ended(B, late)]);
    world.now = begun + READY;
    assert_eq!(world.machine.deadline(), Some(world.now));
    let fault = Output::Fault(name("b@h"), late.to_owned());
    let broken = [Output::Break(A), fault, Output::StopSession(A), ended(A, late)];
    assert_eq!(world.input(Input::Tick), broken);
    world.now += GONE;
    assert_eq!(world.input(Input::Tick), [Output::Over(A)], "ractor never had a session");
    assert_eq!(world.machine.deadline(), None);
}

#[test]
fn a_peer_does_not_fill_the_node_with_attempts() {
    let mut world = World::new();
    for number in 1..=4 {
        let attempt = AttemptId::Inbound(number);
        assert_eq!(world.input(Input::Authenticated(attempt, name("b@h"))), []);
    }
    let other = AttemptId::Inbound(5);
    assert_eq!(world.input(Input::Authenticated(other, name("c@h"))), []);
    let out = world.input(Input::Authenticated(AttemptId::Inbound(6), name("b@h")));
    let failed = Output::Report(Report::Failed(A, Failure::Closed));
    assert_eq!(out, [Output::Drop(A), failed, Output::Evicted], "the oldest goes");
    let step = Input::Step(A, Report::Confirmed(A));
    assert_eq!(world.input(step), [], "and takes no further step");
    assert_eq!(world.input(Input::Established(A, proven("b@h"))), [Output::Drop(A)]);
}

#[test]
fn a_revoked_certificate_makes_no_link_and_those_made_with_it_are_reported() {
    let mut world = World::new();
    world.established(1, "b@h");
    world.revoked.insert("b@h".to_owned());
    let revoked = |attempt| Output::Report(Report::Revoked(attempt));
    assert_eq!(world.input(Input::Judge), [revoked(A)]);
    assert_eq!(world.established(2, "b@h"), [Output::Drop(B), revoked(B)]);
    let out = world.input(Input::Attach);
    let Proven { hello, credential, .. } = proven("b@h");
    let existing = Output::Report(Report::Existing(A, hello, credential, false));
    assert_eq!(out, [existing, Output::Report(Report::Attached), revoked(A)]);
}

#[test]
fn another_listener_takes_over_links_and_no_attempts() {
    let mut world = World::new();
    world.established(1, "b@h");
    let dial = AttemptId::Outbound(7);
    world.input(Input::Dial(dial, ([127, 0, 0, 1], 1).into()));
    world.input(Input::Authenticated(B, name("c@h")));
    let out = world.input(Input::Attach);
    let Proven { hello, credential, .. } = proven("b@h");
    let existing = Output::Report(Report::Existing(A, hello, credential, false));
    let attached = Output::Report(Report::Attached);
    assert_eq!(out, [Output::Drop(dial), Output::Drop(B), existing, attached]);
    assert_eq!(world.input(Input::Decide(B, Decision::Proceed)), []);
    assert_eq!(world.input(Input::Established(dial, proven("c@h"))), [Output::Drop(dial)]);
}

/// What the actor holds of each attempt, and what was reported of it.
#[derive(Default)]
struct Model {
    peers: BTreeMap<AttemptId, &'static str>,
    live: BTreeSet<AttemptId>,
    started: BTreeSet<AttemptId>,
    ended: BTreeSet<AttemptId>,
}

impl Model {
    fn check(&mut self, out: &[Output]) -> Result<(), TestCaseError> {
        for output in out {
            match output {
                Output::Start(attempt) => {
                    let peer = self.peers[attempt];
                    let same = self.live.iter().filter(|other| self.peers[*other] == peer).count();
                    prop_assert_eq!(same, 0, "invariant 1: {:?}", attempt);
                    prop_assert!(self.started.insert(*attempt), "started once: {:?}", attempt);
                    self.live.insert(*attempt);
                }
                Output::Over(attempt) => prop_assert!(self.live.remove(attempt), "{:?}", attempt),
                Output::Report(Report::Ended(attempt, _)) => {
                    prop_assert!(self.ended.insert(*attempt), "invariant 4: {:?}", attempt);
                }
                Output::Report(Report::Ready(attempt)) => {
                    prop_assert!(self.live.contains(attempt) && !self.ended.contains(attempt));
                }
                Output::Report(_)
                | Output::Dial(..)
                | Output::Decide(..)
                | Output::Drop(_)
                | Output::Took(_)
                | Output::Evicted
                | Output::Fault(..)
                | Output::Part(..)
                | Output::Break(_)
                | Output::StopSession(_) => {}
            }
        }
        Ok(())
    }
}

proptest! {
    /// Events of two peers' attempts in any order, sensible or not.
    #[test]
    fn the_invariants_hold_whatever_happens(
        steps in proptest::collection::vec((0..10u8, 1..8u64, 0..3u64), 0..80)
    ) {
        let (mut world, mut model) = (World::new(), Model::default());
        for (step, number, seconds) in steps {
            let attempt = AttemptId::Inbound(number);
            let peer = if number % 2 == 0 { "b@h" } else { "c@h" };
            world.now += Duration::from_secs(seconds);
            let input = match step {
                0 if model.peers.contains_key(&attempt) => continue, // numbers are given once
                0 => {
                    model.peers.insert(attempt, peer);
                    Input::Authenticated(attempt, name(peer))
                }
                1 if model.started.contains(&attempt) => continue,
                1 => Input::Established(attempt, proven(peer)),
                2 => Input::Close(attempt, CloseReason::Left),
                3 => Input::MuxEnded(attempt, LinkEnd::Closed),
                4 => Input::SessionOpened(attempt),
                5 => Input::SessionReady(attempt),
                6 => Input::SessionGone(attempt),
                7 => Input::Abandon(attempt),
                8 => Input::Attach,
                _ => Input::Tick,
            };
            let out = world.input(input);
            model.check(&out)?;
        }
        // Everything that is not ready gets over in time.
        for _ in 0..20 {
            world.now += READY;
            let out = world.input(Input::Tick);
            model.check(&out)?;
        }
        let unready = world.machine.deadline();
        prop_assert_eq!(unready, None);
    }
}
