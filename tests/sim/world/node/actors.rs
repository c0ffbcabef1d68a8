//! Actors start, and start again, within one run of a node: each is rebuilt from what `start` has there.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use xpando_node::internals::proto::discovery::{self, Discovery};
use xpando_node::internals::proto::event::Source;
use xpando_node::internals::proto::link;
use xpando_node::internals::proto::membership::{self, Input, Membership};
use xpando_node::internals::proto::node::{Incarnation, KeyId};
use xpando_node::internals::proto::registry::book;
use xpando_node::internals::proto::wiring::{self, Ask, Consumer, Forgotten};

use crate::world::World;

/// The actors of a node, in the order in which they start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Actor {
    News,
    Link,
    NodeManager,
    HeartbeatMonitor,
    TopologyTracker,
    Registry,
    Discovery,
    ChannelRouter,
}

impl Actor {
    pub(crate) const ALL: [Self; 8] = [
        Self::News,
        Self::Link,
        Self::NodeManager,
        Self::HeartbeatMonitor,
        Self::TopologyTracker,
        Self::Registry,
        Self::Discovery,
        Self::ChannelRouter,
    ];

    pub(super) fn of(consumer: Consumer) -> Self {
        match consumer {
            Consumer::HeartbeatMonitor => Self::HeartbeatMonitor,
            Consumer::TopologyTracker => Self::TopologyTracker,
            Consumer::Registry => Self::Registry,
            Consumer::Discovery => Self::Discovery,
            Consumer::ChannelRouter => Self::ChannelRouter,
        }
    }

    /// Whether it starts again when `other` has ended: all that start after it under the same supervisor do.
    fn follows(self, other: Self) -> bool {
        self == other || other < self && (self != Self::ChannelRouter || other == Self::News)
    }
}

impl World {
    /// An actor ends, and those that start after it under the same supervisor; all of them start again.
    pub(crate) fn restart(&mut self, node: usize, actor: Actor) {
        self.note(node, || format!("{actor:?} starts again"));
        self.nodes[node].well = self.now;
        let together = || Actor::ALL.into_iter().filter(|it| it.follows(actor));
        // All end before the first one starts.
        for actor in together() {
            let life = self.life_mut(node);
            life.watched.restarted(actor);
            life.starts[actor as usize] += 1;
            life.deadlines[actor as usize] = None;
            if actor == Actor::Link {
                for at in self.life(node).ends.values().copied().collect::<Vec<_>>() {
                    self.vanish(at);
                }
            }
        }
        for actor in together() {
            self.rebuild(node, actor);
            self.start_actor(node, actor);
        }
        self.wake(node);
    }

    /// A machine of an actor, as its actor makes it.
    fn rebuild(&mut self, node: usize, actor: Actor) {
        let rng = StdRng::seed_from_u64(self.rng.random());
        let life = self.life(node);
        let incarnation = life.incarnation;
        match actor {
            Actor::News => {
                let life = self.life_mut(node);
                life.links = wiring::Links::default();
                life.attached.clear();
            }
            Actor::Link => self.life_mut(node).link = link::Links::default(),
            Actor::NodeManager => {
                let (me, start) = ((life.boot, incarnation), life.starts[actor as usize]);
                let earlier = life.peers();
                let forgotten = Forgotten::new(life.forgotten.of_no_peer(&earlier));
                let membership = self.membership(node, me, start, &forgotten, rng);
                let life = self.life_mut(node);
                (life.earlier, life.unrecalled) = (Some(earlier.clone()), earlier);
                life.membership = membership;
            }
            Actor::HeartbeatMonitor => self.life_mut(node).monitor = Some(self.monitor(node)),
            Actor::TopologyTracker => {
                let tracker = self.tracker(node, incarnation, &life.matrix, rng);
                self.life_mut(node).tracker = Some(tracker);
            }
            Actor::Registry => {
                let book = self.book(node, incarnation, &life.nodes, rng);
                self.life_mut(node).book = Some(book);
            }
            Actor::Discovery => {
                let discovery = self.discovery(node, life.sequence, rng);
                self.life_mut(node).discovery = discovery;
            }
            Actor::ChannelRouter => {
                let life = self.life_mut(node);
                life.numbers += 1;
                let epoch = (life.incarnation, life.numbers);
                let attendance = self.attendance(node, epoch, rng);
                self.life_mut(node).attendance = Some(attendance);
                self.rejoin(node);
            }
        }
    }

    /// What an actor does when it starts.
    pub(in crate::world) fn start_actor(&mut self, node: usize, actor: Actor) {
        let consumer = Consumer::ALL.into_iter().find(|it| Actor::of(*it) == actor);
        consumer.into_iter().for_each(|it| self.attach(node, it));
        match actor {
            Actor::News | Actor::Link | Actor::HeartbeatMonitor | Actor::ChannelRouter => {}
            Actor::NodeManager => {
                let life = self.life_mut(node);
                *life.deadline(actor) = life.membership.deadline();
                self.link(node, link::Input::Attach);
            }
            Actor::TopologyTracker => {
                let now = self.local(node);
                self.life_mut(node).measurements = wiring::Measurements::new(now);
                self.first_look(node);
            }
            Actor::Registry => self.record(node, book::Input::Tick),
            Actor::Discovery => {
                for contact in self.life(node).remembered.clone() {
                    self.ask(node, Ask::Hint(contact, Source::Remembered));
                }
                for seed in self.nodes[node].seeds.clone() {
                    self.ask(node, Ask::Seed(seed));
                }
                self.discover(node, |it, now, out| it.tick(now, out));
            }
        }
    }

    pub(super) fn membership(
        &self,
        node: usize,
        (boot, incarnation): (u64, Incarnation),
        start: u64,
        forgotten: &Forgotten,
        rng: StdRng,
    ) -> Membership {
        let (name, config) = (self.nodes[node].name.clone(), membership::Config::default());
        let mut machine = Membership::new(config, name, incarnation, start << 32, rng)
            .with_hello(boot, self.nodes[node].address);
        for (name, life) in forgotten.of_no_peer(&[]) {
            let input = Input::Forget { name, life, known: false, author: None };
            machine.handle(input, self.local(node), &mut Vec::new());
        }
        machine
    }

    pub(super) fn discovery(&self, node: usize, sequence: u64, rng: StdRng) -> Discovery {
        let it = &self.nodes[node];
        let (name, address) = (it.name.clone(), it.address);
        let own = discovery::Own { name, cluster: KeyId([7; 16]), address, begun: 0 };
        let config = discovery::Config::default();
        Discovery::new(config, own, self.weather.beacons, sequence, self.local(node), rng)
    }
}
