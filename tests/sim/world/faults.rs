//! What can go wrong: starts and ends of processes, pauses, clocks, cuts.

use rand::{RngExt, SeedableRng, rngs::StdRng};
use xpando_node::internals::proto::event::{Source, Status};
use xpando_node::internals::proto::membership::Input;
use xpando_node::internals::proto::node::{Contact, Incarnation};
use xpando_node::internals::proto::registry::book::{self, recalled};
use xpando_node::internals::proto::wiring::Ask;

use super::wire::Stage;
use super::{Actor, Happening, Life, Micros, Task, World, address, secs};
use crate::invariants;

/// How a disk comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disk {
    Kept,
    /// As it was before the last life.
    Stale,
    /// Empty.
    Lost,
}

impl World {
    /// Starts a node that is down.
    pub(crate) fn boot(&mut self, node: usize, disk: Disk) {
        let (boot, mut rng) = (self.rng.random(), StdRng::seed_from_u64(self.rng.random()));
        let rng = || StdRng::seed_from_u64(rng.random());
        if self.nodes[node].unplugged {
            self.plug_in(node);
        }
        let it = &mut self.nodes[node];
        match disk {
            Disk::Kept => {}
            Disk::Stale => drop((it.counters.pop(), it.disks.pop())),
            Disk::Lost => (it.counters, it.disks) = (Vec::new(), Vec::new()),
        }
        let incarnation = Incarnation(it.counters.last().copied().unwrap_or_default() + 1);
        let remembered = it.disks.last().cloned().unwrap_or_default();
        it.lives += 1;
        it.counters.push(incarnation.0);
        it.disks.push(remembered.clone());
        it.well = self.now;
        let number = it.lives;
        let nodes = recalled(remembered.into_values());
        let life = Life::new(self, node, number, boot, incarnation, nodes, rng);
        let row = life.topology().row_of(&self.nodes[node].name);
        let mark = row.map(|row| (row.incarnation, row.version)).unwrap_or_default();
        self.nodes[node].truth = self.nodes[node].truth.max(mark);
        self.nodes[node].life = Some(life);
        self.note(node, || format!("starts with its disk {disk:?}, incarnation {incarnation}"));
        Actor::ALL.into_iter().for_each(|actor| self.start_actor(node, actor));
        self.wake(node);
    }

    /// Moves a node that is down to another port of its host.
    pub(crate) fn move_port(&mut self, node: usize) {
        let port = self.nodes[node].address.port() + 1;
        self.nodes[node].address = address(node, port);
    }

    /// Ends a process. Its sockets close, or, with the host's power, fall silent.
    pub(crate) fn crash(&mut self, node: usize, silent: bool) {
        let bounds: Vec<_> = (0..self.nodes.len())
            .map(|observer| invariants::death_noticed_within(self, observer, node, silent))
            .collect();
        self.note(node, || if silent { "loses power".into() } else { "is killed".into() });
        let name = self.nodes[node].name.clone();
        let sees = |world: &Self, at: &usize| {
            let view = world.life(*at).membership.peer(&name);
            view.is_some_and(|view| view.status == Status::Online)
        };
        let observers: Vec<_> = self.running().filter(|at| *at != node && sees(self, at)).collect();
        let Some(life) = self.nodes[node].life.take() else { return };
        self.nodes[node].well = Micros::MAX;
        self.nodes[node].died = self.now;
        self.nodes[node].unplugged = silent;
        for at in life.ends.into_values() {
            if silent {
                self.fall_silent(at.0);
                self.end_mut(at).stage = Stage::Gone;
                self.bury(at.0);
            } else {
                self.vanish(at);
            }
        }
        for observer in observers {
            let life = self.life(observer).number;
            let (observer_life, dead) = ((observer, life), (node, self.nodes[node].lives));
            let overdue = Happening::Overdue { observer: observer_life, dead, since: self.now };
            self.later(bounds[observer], overdue);
        }
    }

    /// A host gets power again: what others still send to its former life is answered with a reset.
    fn plug_in(&mut self, node: usize) {
        self.nodes[node].unplugged = false;
        for id in 0..self.connections.len() {
            let Some(connection) = &self.connections[id] else { continue };
            let ours = connection.ends.iter().position(|end| end.node == node);
            if let Some(end) =
                ours.filter(|_| connection.silent.is_some() && connection.ends.len() == 2)
                && connection.ends[end].stage == Stage::Gone
            {
                self.reset((id, 1 - end));
            }
        }
    }

    /// A node hears where another one is, from a source that knows nothing of lives.
    pub(crate) fn meet(&mut self, node: usize, other: usize) {
        let contact = Contact { incarnation: Incarnation(0), ..self.contact(other) };
        self.ask(node, Ask::Hint(contact, Source::Remembered));
        self.wake(node);
    }

    /// A node is given the address of another one to join at.
    pub(crate) fn join_at(&mut self, node: usize, other: usize) {
        self.ask(node, Ask::Seed(self.nodes[other].address));
        self.wake(node);
    }

    /// The failure detector of a node errs: it gives up a peer that is well.
    pub(crate) fn give_up(&mut self, node: usize, peer: usize) {
        self.note(node, || format!("gives n{peer:03} up"));
        (self.nodes[node].well, self.nodes[peer].well) = (self.now, self.now);
        self.ask(node, Ask::Silent(self.nodes[peer].name.clone()));
        self.wake(node);
    }

    /// Says goodbye, and takes no more links.
    pub(crate) fn stop(&mut self, node: usize) {
        self.note(node, || "leaves".into());
        self.nodes[node].well = Micros::MAX;
        self.track_leaving(node);
        self.member(node, Input::Stop);
        self.record(node, book::Input::Close);
    }

    /// Says goodbye, and ends soon after.
    pub(crate) fn leave(&mut self, node: usize) {
        self.stop(node);
        let drain = self.random(0..secs(1));
        self.run(drain);
        if self.is_up(node) {
            self.crash(node, false);
        }
    }

    /// SIGSTOP.
    pub(crate) fn pause(&mut self, node: usize) {
        if self.life(node).paused {
            return;
        }
        self.note(node, || "is paused".into());
        self.nodes[node].well = Micros::MAX;
        let now = self.now;
        let life = self.life_mut(node);
        (life.paused, life.pause) = (true, (now, now));
    }

    /// SIGCONT: its timers are late, what arrived meanwhile waits; either may come first.
    pub(crate) fn resume(&mut self, node: usize) {
        if !self.is_up(node) || !self.life(node).paused {
            return;
        }
        self.note(node, || "goes on".into());
        self.nodes[node].well = self.now;
        let now = self.now;
        let life = self.life_mut(node);
        (life.paused, life.pause.1) = (false, now);
        let (number, waiting) = (life.number, std::mem::take(&mut life.waiting));
        if self.rng.random_bool(0.5) {
            self.perform(node, Task::Wake);
        }
        for task in waiting {
            self.task(node, number, task);
        }
        if self.is_up(node) {
            self.perform(node, Task::Wake);
        }
    }

    /// The wall clock of a node jumps.
    pub(crate) fn jump(&mut self, node: usize, millis: i64) {
        self.note(node, || format!("its wall clock jumps by {millis} ms"));
        self.nodes[node].clock.wall += millis;
    }

    /// What `from` sends to `to` does not arrive any more.
    pub(crate) fn cut(&mut self, from: usize, to: usize) {
        if self.cuts.contains_key(&(from, to)) {
            return;
        }
        self.note(from, || format!("is cut off towards n{to:03}"));
        self.cuts.insert((from, to), self.now);
        let count = self.nodes.len();
        self.paths[from * count + to] = Micros::MAX;
        self.between(from, to).into_iter().for_each(|id| self.fall_silent(id));
    }

    pub(crate) fn cut_both(&mut self, a: usize, b: usize) {
        self.cut(a, b);
        self.cut(b, a);
    }

    pub(crate) fn heal(&mut self, from: usize, to: usize) {
        if self.cuts.remove(&(from, to)).is_none() {
            return;
        }
        self.note(from, || format!("reaches n{to:03} again"));
        let count = self.nodes.len();
        self.paths[from * count + to] = self.now;
        self.between(from, to).into_iter().for_each(|id| self.still_late(id));
        if self.reaches_both_ways(from, to) {
            self.between(from, to).into_iter().for_each(|id| self.speak_again(id));
        }
    }

    pub(crate) fn heal_all(&mut self) {
        for (from, to) in self.cuts.keys().copied().collect::<Vec<_>>() {
            self.heal(from, to);
        }
    }

    /// Nothing passes between those that are on different sides.
    pub(crate) fn split(&mut self, side: impl Fn(usize) -> bool) {
        for a in 0..self.nodes.len() {
            for b in 0..a {
                if side(a) != side(b) {
                    self.cut_both(a, b);
                }
            }
        }
    }

    /// The connections of two nodes.
    fn between(&self, a: usize, b: usize) -> Vec<usize> {
        let ends = |node: usize| self.nodes[node].life.iter().flat_map(|l| l.ends.values());
        let with = |id: usize, node: usize| {
            let connection = self.connections[id].as_ref();
            connection.is_some_and(|c| c.ends.iter().any(|end| end.node == node))
        };
        let ours = ends(a).map(|at| at.0).filter(|id| with(*id, b));
        let theirs = ends(b).map(|at| at.0).filter(|id| with(*id, a));
        let ids: std::collections::BTreeSet<usize> = ours.chain(theirs).collect();
        ids.into_iter().collect()
    }

    /// Where a node is, as it says itself.
    pub(crate) fn contact(&self, node: usize) -> Contact {
        let it = &self.nodes[node];
        let incarnation = it.life.as_ref().map(|life| life.incarnation).unwrap_or_default();
        Contact { name: it.name.clone(), address: it.address, incarnation }
    }
}
