//! HeartbeatMonitor and TopologyTracker: what a node sees of its peers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use xpando_node::internals::proto::heartbeat::monitor::{self, Counts};
use xpando_node::internals::proto::heartbeat::{self, Monitor, Pulses, RoundTrip};
use xpando_node::internals::proto::membership::PeerView;
use xpando_node::internals::proto::node::{Incarnation, NodeName};
use xpando_node::internals::proto::topology::{
    self, Matrix, Side, Sides, Topology, Tracker, tracker,
};
use xpando_node::internals::proto::wiring::Notice;

use super::{Actor, Message};
use crate::invariants;
use crate::seals::Toy;
use crate::world::World;
use crate::world::wire::{At, Word};

/// What the links of a node hear.
struct Heard<'a>(&'a World, usize);

impl Heard<'_> {
    fn outlet(&self, peer: &NodeName) -> Option<At> {
        self.0.outlet(self.1, peer)
    }
}

impl Pulses for Heard<'_> {
    fn heard(&self, peer: &NodeName) -> Option<Instant> {
        self.outlet(peer).map(|at| self.0.end(at).heard)
    }

    fn pongs(&self, peer: &NodeName) -> Vec<Duration> {
        let pongs = self.outlet(peer).map(|at| self.0.end(at).trips.borrow_mut().pongs());
        pongs.unwrap_or_default()
    }

    fn round_trip(&self, peer: &NodeName) -> Option<RoundTrip> {
        self.0.end(self.outlet(peer)?).trips.borrow().measured()
    }

    fn tcp(&self, _peer: &NodeName) -> Option<Counts> {
        None
    }

    fn beacon(&self, peer: &NodeName) -> Option<Instant> {
        self.0.life(self.1).beacons.get(peer).copied()
    }
}

impl World {
    pub(super) fn monitor(&self, node: usize) -> Monitor {
        Monitor::new(heartbeat::Config::default(), self.nodes[node].name.clone())
    }

    /// A notice for the monitor, or its tick.
    pub(super) fn watch(&mut self, node: usize, notice: Option<Notice<Option<monitor::Word>>>) {
        let (now, mut out) = (self.local(node), Vec::new());
        let mut it = self.life_mut(node).monitor.take().expect("one call at a time");
        match notice.clone() {
            Some(notice) => it.handle(notice, &Heard(self, node), now, &mut out),
            None => it.tick(&Heard(self, node), now, &mut out),
        }
        let life = self.life_mut(node);
        *life.deadline(Actor::HeartbeatMonitor) = it.deadline();
        life.monitor = Some(it);
        invariants::after_heartbeat(self, node, notice.as_ref(), &out);
        for output in out {
            match output {
                monitor::Output::Beat(peer) => self.beat(node, &peer),
                monitor::Output::Send(to, word) => self.send_to(node, &to, Message::Monitor(word)),
                monitor::Output::Show => {
                    let life = self.life_mut(node);
                    life.signs = life.monitor.as_ref().expect("it is back").signs(now);
                    self.measured(node);
                }
                monitor::Output::Announce(event) => self.announced(node, event),
                monitor::Output::Charge(rule) => {
                    let by =
                        if let Some(Notice::Message(by, _)) = &notice { Some(by) } else { None };
                    if by.is_none_or(|by| self.is_innocent(by)) && !self.is_liar(node) {
                        self.fail("honest_nodes_are_never_charged", rule);
                    }
                }
                monitor::Output::Ask(ask) => self.ask(node, ask),
            }
        }
    }

    fn beat(&mut self, node: usize, peer: &NodeName) {
        let number = self.micros(node);
        if let Some(at) = self.outlet(node, peer) {
            self.send(at, Word::Ping(number));
        }
    }

    /// What a ping carries.
    pub(in crate::world) fn micros(&self, node: usize) -> u64 {
        self.nodes[node].clock.nanos(self.now) / 1000
    }

    /// `before` is what an earlier one has shown.
    pub(super) fn tracker(
        &self,
        node: usize,
        incarnation: Incarnation,
        before: &Matrix,
        mut rng: StdRng,
    ) -> Tracker {
        let me = self.nodes[node].name.clone();
        let first = before.next_version(&me, incarnation, &mut rng);
        let (now, wall) = (self.local(node), self.wall(node));
        let seals = Box::new(Toy(me.clone()));
        Tracker::new(me.clone(), Topology::new(me, incarnation, first, now, wall, rng, seals))
    }

    /// This node's side of every link, by the views of the peers and of their vital signs.
    fn sides(&self, node: usize) -> Sides {
        let (life, wall) = (self.life(node), self.wall(node));
        let mut known = life.since.borrow_mut();
        let side = |peer: PeerView| {
            let since = known.entry(peer.name.clone()).or_insert((peer.since, wall));
            if since.0 != peer.since {
                *since = (peer.since, wall);
            }
            let side = Side::new(&peer, since.1, life.signs.peers.get(&peer.name));
            (peer.name, side)
        };
        life.peers().into_iter().map(side).collect()
    }

    /// A notice for the tracker, or its tick.
    pub(super) fn track(&mut self, node: usize, notice: Option<Notice<topology::Word>>) {
        let concerned = notice.as_ref().map(invariants::concerned).unwrap_or_default();
        self.tracked(node, &concerned, |it, world, now, out| {
            let sides = || world.looks(node);
            match notice {
                Some(notice) => {
                    it.handle(notice, sides, now, out);
                    false
                }
                None => it.tick(sides, world.wall(node), now, out),
            }
        });
    }

    /// This node leaves.
    pub(in crate::world) fn track_leaving(&mut self, node: usize) {
        self.tracked(node, &[], |it, _, now, out| {
            it.leave(now, out);
            false
        });
    }

    /// The tracker looks when it starts.
    pub(super) fn first_look(&mut self, node: usize) {
        self.tracked(node, &[], |it, world, now, out| {
            it.look(world.looks(node), now, out);
            true
        });
    }

    fn looks(&self, node: usize) -> Arc<Sides> {
        let sides = Arc::new(self.sides(node));
        self.life(node).sides.replace(sides.clone());
        sides
    }

    fn tracked(
        &mut self,
        node: usize,
        concerned: &[NodeName],
        act: impl FnOnce(&mut Tracker, &Self, Instant, &mut Vec<tracker::Output>) -> bool,
    ) {
        let (now, mut out) = (self.local(node), Vec::new());
        let mut it = self.life_mut(node).tracker.take().expect("one call at a time");
        let before = self.life(node).sides.take();
        let show = act(&mut it, self, now, &mut out);
        let life = self.life_mut(node);
        *life.deadline(Actor::TopologyTracker) = it.deadline();
        life.tracker = Some(it);
        invariants::after_topology(self, node, concerned, &out);
        let after = self.life(node).sides.take();
        if after.is_empty() {
            self.life(node).sides.replace(before);
        } else {
            invariants::after_look(self, node, &before, &after);
            self.life(node).sides.replace(after);
        }
        for output in out {
            match output {
                tracker::Output::Send(peer, word) => {
                    self.send_to(node, &peer, Message::Topology(word.into()));
                }
                tracker::Output::Announce(event) => self.announced(node, event),
                tracker::Output::Charge(..) => {}
                tracker::Output::Ask(ask) => self.ask(node, ask),
            }
        }
        if show {
            self.show(node);
        }
    }

    fn show(&mut self, node: usize) {
        let (hidden, now) = (self.life(node).hidden(), self.local(node));
        let life = self.life_mut(node);
        let tracker = life.tracker.as_mut().expect("it is not being asked");
        let (matrix, events) = tracker.show(&life.matrix, hidden, now);
        life.matrix = matrix;
        *life.deadline(Actor::TopologyTracker) = tracker.deadline();
        events.into_iter().for_each(|event| self.announced(node, event));
        invariants::matrix_is_the_table(self, node);
    }
}
