//! Actors start, and start again, within one run of a node: each is rebuilt from what `start` has there.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use xpando_node::internals::proto::discovery::{self, Discovery};
use xpando_node::internals::proto::event::{Reason, Source};
use xpando_node::internals::proto::heartbeat::{self, Heartbeat};
use xpando_node::internals::proto::membership::{self, Input, Membership, PeerView};
use xpando_node::internals::proto::node::{Contact, Incarnation, KeyId, NodeName};
use xpando_node::internals::proto::questions::Questions;
use xpando_node::internals::proto::registry::book::{self, Nodes};
use xpando_node::internals::proto::rows::first_version;
use xpando_node::internals::proto::topology::{self, Topology};

use super::Vital;
use crate::invariants;
use crate::world::wire::{At, End, Stage};
use crate::world::{Happening, Task, World};

/// The actors of a node, in the order in which they start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Actor {
    Link,
    NodeManager,
    HeartbeatMonitor,
    TopologyTracker,
    Registry,
    Discovery,
    ChannelRouter,
}

impl Actor {
    pub(crate) const ALL: [Self; 7] = [
        Self::Link,
        Self::NodeManager,
        Self::HeartbeatMonitor,
        Self::TopologyTracker,
        Self::Registry,
        Self::Discovery,
        Self::ChannelRouter,
    ];
}

impl World {
    /// An actor ends, and those that start after it under the same supervisor; all of them start again.
    pub(crate) fn restart(&mut self, node: usize, actor: Actor) {
        self.note(node, || format!("{actor:?} starts again"));
        self.nodes[node].well = self.now;
        let together = Actor::ALL
            .into_iter()
            .filter(|other| *other == actor || actor < *other && *other != Actor::ChannelRouter);
        for actor in together {
            let mut rng = StdRng::seed_from_u64(self.rng.random());
            let life = self.life_mut(node);
            life.watched.restarted(actor);
            life.starts[actor as usize] += 1;
            let start = life.starts[actor as usize];
            match actor {
                Actor::Link => self.restart_link(node),
                Actor::NodeManager => self.restart_manager(node, start, rng),
                Actor::HeartbeatMonitor => self.restart_monitor(node),
                Actor::TopologyTracker => {
                    let topology = self.topology(node, self.life(node).incarnation, rng);
                    let life = self.life_mut(node);
                    (life.topology, life.raised) = (topology, life.incarnation);
                    (life.sides, life.linked) = (BTreeMap::new(), BTreeMap::new());
                    self.look(node);
                }
                Actor::Registry => {
                    let life = self.life(node);
                    let book = self.book(node, life.incarnation, &life.nodes, rng);
                    self.life_mut(node).book = Some(book);
                    self.record(node, book::Input::Tick);
                }
                Actor::Discovery => {
                    let discovery = self.discovery(node, StdRng::seed_from_u64(rng.random()));
                    self.life_mut(node).discovery = discovery;
                    self.look_around(node);
                }
                Actor::ChannelRouter => {
                    let life = self.life_mut(node);
                    life.numbers += 1;
                    let epoch = (life.incarnation, life.numbers);
                    let linked: Vec<_> = self.online(node).into_iter().map(|it| it.name).collect();
                    let (attendance, out) = self.attendance(node, epoch, &linked, rng);
                    let life = self.life_mut(node);
                    life.deadlines[5] = attendance.deadline();
                    life.attendance = Some(attendance);
                    self.perform_presence(node, out);
                    self.rejoin(node);
                }
            }
        }
        self.wake(node);
    }

    fn restart_link(&mut self, node: usize) {
        let life = self.life_mut(node);
        life.sessions.clear();
        life.outlets.clear();
        life.parked.clear();
        for at in life.ends.values().copied().collect::<Vec<_>>() {
            self.vanish(at);
        }
    }

    // NodeManager.

    pub(super) fn membership(
        &self,
        node: usize,
        (boot, incarnation): (u64, Incarnation),
        start: u64,
        nodes: &Nodes,
        rng: StdRng,
    ) -> Membership {
        let (name, config) = (self.nodes[node].name.clone(), membership::Config::default());
        let mut machine = Membership::new(config, name, incarnation, start << 32, rng)
            .with_hello(boot, self.nodes[node].address);
        for (name, life) in book::forgotten(nodes) {
            let input = Input::Forget { name, life, known: false };
            machine.handle(input, self.local(node), &mut Vec::new());
        }
        machine
    }

    /// Link abandons the attempts in progress, and reports the links that live.
    fn restart_manager(&mut self, node: usize, start: u64, rng: StdRng) {
        let earlier = self.peers(node);
        let life = self.life(node);
        let me = (life.boot, life.incarnation);
        let membership = self.membership(node, me, start, &life.nodes, rng);
        let life = self.life_mut(node);
        (life.membership, life.earlier) = (membership, Some(earlier.clone()));
        life.deadlines[0] = life.membership.deadline();
        let ends: Vec<At> = life.ends.values().copied().collect();
        for at in ends {
            match self.end(at).stage {
                Stage::Parked | Stage::Running { .. } => self.report_existing(at),
                _ => self.vanish(at),
            }
        }
        let when = self.life(node).mailbox.max(self.now);
        let number = self.life(node).number;
        self.at_time(when, Happening::Task(node, number, Task::Recall(earlier)));
    }

    /// Every other peer is looked for where it was last.
    pub(super) fn recall(&mut self, node: usize, earlier: Vec<PeerView>) {
        for PeerView { name, address, incarnation, reason, .. } in earlier {
            if let Some(address) = address.filter(|_| reason != Some(Reason::Left)) {
                let contact = Contact { name, address, incarnation };
                self.hint(node, &contact, Source::Remembered);
            }
        }
        self.life_mut(node).earlier = None;
        invariants::recalled(self, node);
    }

    /// A new NodeManager is told of a link that lives.
    fn report_existing(&mut self, at: At) {
        let End { attempt, stage, ref hello, .. } = *self.end(at);
        let hello = hello.as_deref().cloned().expect("both sides have said hello");
        let ready = stage == Stage::Running { ready: true };
        self.report(at, Input::Existing(attempt, hello, ready));
    }

    /// Link reports to NodeManager.
    pub(in crate::world) fn report(&mut self, at: At, input: Input) {
        let End { node, life, .. } = *self.end(at);
        let when = self.now + self.random(0..200);
        let Some(it) = self.living(node, life) else { return };
        it.mailbox = it.mailbox.max(when);
        let (when, start) = (it.mailbox, it.starts[Actor::NodeManager as usize]);
        self.at_time(when, Happening::Task(node, life, Task::Report(start, Box::new(input))));
    }

    // HeartbeatMonitor.

    fn restart_monitor(&mut self, node: usize) {
        let me = self.nodes[node].name.clone();
        let life = self.life_mut(node);
        life.heartbeat = Heartbeat::new(heartbeat::Config::default(), me.clone());
        life.questions = Questions::new(me);
        life.vitals.clear();
        life.deadlines[1] = None;
        for Contact { name, .. } in self.online(node) {
            self.linked(node, name);
        }
    }

    pub(super) fn linked(&mut self, node: usize, peer: NodeName) {
        let at = self.index(&peer);
        self.life_mut(node).vitals.insert(at, Vital::default());
        self.watch(node, heartbeat::Input::Linked(peer));
    }

    // TopologyTracker and Discovery.

    pub(super) fn topology(
        &self,
        node: usize,
        incarnation: Incarnation,
        mut rng: StdRng,
    ) -> Topology {
        let (me, first) = (self.nodes[node].name.clone(), first_version(&mut rng));
        topology::Topology::new(me, incarnation, first, self.local(node), self.wall(node), rng)
    }

    pub(super) fn discovery(&self, node: usize, rng: StdRng) -> Discovery {
        let it = &self.nodes[node];
        let (name, address) = (it.name.clone(), it.address);
        let own = discovery::Own { name, cluster: KeyId([7; 16]), address, begun: 0 };
        let sequence = it.life.as_ref().map_or(0, |life| life.sequence);
        let config = discovery::Config::default();
        Discovery::new(config, own, self.weather.beacons, sequence, self.local(node), rng)
    }

    /// What Discovery does when it starts.
    pub(in crate::world) fn look_around(&mut self, node: usize) {
        for contact in self.life(node).remembered.clone() {
            self.member(node, Input::Hint(contact, Source::Remembered));
        }
        for seed in self.nodes[node].seeds.clone() {
            self.member(node, Input::Seed(seed));
        }
        self.discovery_tick(node);
    }
}
