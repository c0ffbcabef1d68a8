//! What goes into the topology machine, and what is shown of it: all of TopologyTracker but its mailbox.
//!
//! # Protocol
//! ```text
//! Notice::Up, Message, Down   Linked, Received, Unlinked of the machine
//! look                      the peers' view became own cells; a peer that left, and a later own life, are announced
//! Notice::Forgotten           look, then the tombstone of a node that is no peer
//! Output::Show              what is new is shown 20 ms after the first change of a burst
//! ```
//!
//! # Invariants
//! 1. Own cells are those of the last look; a peer that is in no view has none.
//! 2. Each change of another node's row becomes one event, when it is shown.
//! 3. No peer is shown of which it is said that it is forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use crate::proto::event::{Event, Reason, Status};
use crate::proto::heartbeat::Vital;
use crate::proto::membership::PeerView;
use crate::proto::node::{Incarnation, NodeName};
use crate::proto::rows::BURST;
use crate::proto::topology::{self, Cell, Input, Matrix, Topology, Word};
use crate::proto::wiring::{Ask, Notice};

/// What this node knows of one peer.
#[derive(Clone, Debug)]
pub struct Side {
    /// Its latest known life.
    pub incarnation: Incarnation,
    /// This node's side of the link.
    pub cell: Cell,
}

impl Side {
    /// This node's side of the link to a peer that has its status `since`, in milliseconds since 1970.
    pub fn new(peer: &PeerView, since: u64, vital: Option<&Vital>) -> Self {
        let vital = vital.filter(|_| peer.status == Status::Online);
        let trip = vital.and_then(|vital| vital.round_trip);
        let cell = Cell {
            state: peer.status,
            suspect: vital.is_some_and(|vital| vital.suspect),
            rtt: trip.and_then(|trip| u32::try_from(trip.p50.as_micros()).ok()),
            phi: vital.map_or(0, |vital| (vital.phi * 100.0) as u32),
            since,
            reason: peer.reason,
        };
        Self { incarnation: peer.incarnation, cell }
    }
}

/// The node's side of every link, when it looks.
pub type Sides = BTreeMap<NodeName, Side>;

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Send this to a linked peer.
    Send(NodeName, Word),
    /// A peer broke a rule: count it.
    Charge(NodeName, &'static str),
    /// Ask NodeManager.
    Ask(Ask),
}

/// The tracker.
#[derive(Debug)]
pub struct Tracker {
    me: NodeName,
    machine: Topology,
    sides: Sides,
    look_at: Option<Instant>,
    show_at: Option<Instant>,
}

impl Tracker {
    /// A tracker that has not looked yet.
    pub fn new(me: NodeName, machine: Topology) -> Self {
        Self { me, machine, sides: Sides::new(), look_at: None, show_at: None }
    }

    /// The machine, to read.
    pub fn machine(&self) -> &Topology {
        &self.machine
    }

    /// Takes news of a link or a node. `sides` is read when it matters.
    pub fn handle(
        &mut self,
        news: Notice<Word>,
        sides: impl FnOnce() -> Sides,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        match news {
            Notice::Up(peer, life) => self.input(Input::Linked(peer, life), now, out),
            Notice::Message(peer, word) => self.input(Input::Received(peer, word), now, out),
            Notice::Down(peer, _) => self.input(Input::Unlinked(peer), now, out),
            Notice::Forgotten(node) => self.forget(node, sides(), now, out),
            Notice::Renewed(life) => self.input(Input::Renewed(life), now, out),
            Notice::Changed => drop(self.look_at.get_or_insert(now + BURST)),
            Notice::Offline(_) => {}
        }
    }

    /// Brings the machine up to what is seen now.
    pub fn look(&mut self, sides: Sides, now: Instant, out: &mut Vec<Output>) {
        self.look_at = None;
        let before = std::mem::replace(&mut self.sides, sides.clone());
        let gone = before.keys().filter(|peer| !sides.contains_key(*peer));
        let mut cells: Vec<_> = gone.map(|peer| (peer.clone(), None)).collect();
        for (peer, side) in sides {
            let left = side.cell.reason == Some(Reason::Left);
            let news = before.get(&peer).is_none_or(|old| old.cell.reason != side.cell.reason);
            if left && news {
                self.input(Input::Gone(peer.clone(), side.incarnation), now, out);
            }
            cells.push((peer, Some(side.cell)));
        }
        self.input(Input::Own(cells), now, out);
    }

    /// A node is forgotten: what it said of its links is, too.
    fn forget(&mut self, node: NodeName, sides: Sides, now: Instant, out: &mut Vec<Output>) {
        let side = self.sides.get(&node).map(|side| side.incarnation);
        self.look(sides, now, out);
        let row = self.machine.row_of(&node).map(|row| row.incarnation);
        if let Some(life) = side.max(row).filter(|_| !self.sides.contains_key(&node)) {
            self.input(Input::Gone(node, life), now, out);
        }
        self.show_at = Some(now);
    }

    /// When [`Tracker::tick`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.machine.deadline().into_iter().chain(self.look_at).chain(self.show_at).min()
    }

    /// Does what is due. True when the matrix is to be shown.
    pub fn tick(
        &mut self,
        sides: impl FnOnce() -> Sides,
        wall: u64,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> bool {
        if self.look_at.is_some_and(|at| at <= now) {
            self.look(sides(), now, out);
        }
        if self.machine.deadline().is_some_and(|at| at <= now) {
            self.input(Input::Tick { wall }, now, out);
        }
        self.show_at.take_if(|at| *at <= now).is_some()
    }

    /// The matrix without the forgotten nodes, and what is new in other nodes' rows since `before`.
    pub fn show(&self, before: &Matrix, forgotten: BTreeSet<NodeName>) -> (Matrix, Vec<Event>) {
        let lives = self.sides.iter().map(|(name, side)| (name.clone(), side.incarnation));
        let matrix = Matrix {
            version: self.machine.version(),
            agreement: self.machine.agreement(),
            apart: self.machine.apart(),
            rows: self.machine.rows().map(|row| (row.origin.clone(), Arc::clone(row))).collect(),
            lives: lives.collect(),
            forgotten,
        };
        let events = matrix.changes(before, &self.me);
        (matrix, events)
    }

    fn input(&mut self, input: Input, now: Instant, out: &mut Vec<Output>) {
        let mut outputs = Vec::new();
        self.machine.handle(input, now, &mut outputs);
        for output in outputs {
            match output {
                topology::Output::Send(peer, word) => out.push(Output::Send(peer, word)),
                topology::Output::Changed(_) => {
                    self.show_at.get_or_insert(now + BURST);
                }
                topology::Output::Gone { .. } | topology::Output::Revived(_) => {}
                topology::Output::Charge(peer, rule) => out.push(Output::Charge(peer, rule)),
                topology::Output::Cut(peer) => out.push(Output::Ask(Ask::Cut(peer))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::proto::tests::start;

    fn tracker(now: Instant) -> Tracker {
        let me: NodeName = "a@h".parse().expect("valid");
        let rng = StdRng::seed_from_u64(1);
        let machine = Topology::new(me.clone(), Incarnation(1), 1, now, 0, rng);
        Tracker::new(me, machine)
    }

    #[test]
    fn a_peer_that_is_in_no_view_any_more_has_no_side() {
        let now = start();
        let mut tracker = tracker(now);
        let [b, c] = ["b@h", "c@h"].map(|name| name.parse::<NodeName>().expect("valid"));
        let state = Status::Online;
        let cell = Cell { state, suspect: false, rtt: None, phi: 0, since: 0, reason: None };
        let side = Side { incarnation: Incarnation(1), cell };
        let both = Sides::from([(b.clone(), side.clone()), (c.clone(), side.clone())]);
        let own =
            |it: &Tracker| it.machine().matrix().map(|(_, to, _)| to.clone()).collect::<Vec<_>>();
        tracker.look(both, now, &mut Vec::new());
        assert_eq!(own(&tracker), [b.clone(), c]);
        tracker.look(Sides::from([(b.clone(), side)]), now, &mut Vec::new());
        assert_eq!(own(&tracker), [b]);
    }

    #[test]
    fn a_burst_of_changes_is_looked_at_once() {
        let now = start();
        let mut tracker = tracker(now);
        for after in [0, 10, 19] {
            let at = now + Duration::from_millis(after);
            tracker.handle(Notice::Changed, || panic!("not yet"), at, &mut Vec::new());
            tracker.tick(|| panic!("not yet"), 0, at, &mut Vec::new());
        }
        let mut looks = 0;
        for after in [BURST, BURST * 2] {
            let look = || {
                looks += 1;
                Sides::new()
            };
            tracker.tick(look, 0, now + after, &mut Vec::new());
        }
        assert_eq!(looks, 1);
    }
}
