//! Registry, with its disk, and ChannelRouter, with its clients.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

use rand::RngExt;
use rand::rngs::StdRng;
use xpando_node::internals::proto::event::{Operator, Status};
use xpando_node::internals::proto::membership::PeerView;
use xpando_node::internals::proto::node::{Incarnation, KeyId, NodeName};
use xpando_node::internals::proto::presence::{self, Attendance, Epoch, To};
use xpando_node::internals::proto::registry::book::{self, Batch, Book, Nodes, Own, Seen};
use xpando_node::internals::proto::registry::{Known, Profile};
use xpando_node::internals::proto::topic::Topic;
use xpando_node::internals::proto::wiring::Ask;

use super::{Actor, Message};
use crate::invariants;
use crate::seals::Toy;
use crate::world::{Happening, Task, World, ms, secs};

/// What a disk holds of other nodes.
pub(crate) type Disk = BTreeMap<NodeName, Known>;

/// A batch on its way to the disk, of this life of the actor.
#[derive(Debug)]
pub(crate) struct Write {
    start: u64,
    batch: Batch,
    known: Vec<Known>,
    gone: Vec<NodeName>,
}

/// A client of a node.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) topic: usize,
    pub(crate) key: String,
    /// Unique in the cluster.
    pub(crate) meta: String,
}

/// Topics that clients join.
pub(crate) fn topics() -> [Topic; 2] {
    ["room:1", "room:2"].map(|topic| topic.parse().expect("a topic"))
}

impl World {
    // Registry.

    pub(super) fn book(
        &self,
        node: usize,
        incarnation: Incarnation,
        nodes: &Nodes,
        rng: StdRng,
    ) -> Book {
        let it = &self.nodes[node];
        let profile = Profile::new([], [], self.wall(node)).expect("within the bounds");
        let (name, address) = (it.name.clone(), it.address);
        let own = Own { name, id: KeyId([1; 16]), address, profile };
        let seals = Box::new(Toy(it.name.clone()));
        Book::new(own, incarnation, nodes, self.local(node), self.wall(node), rng, seals)
    }

    fn seen(&self, node: usize) -> Vec<Seen> {
        let life = self.life(node);
        let seen = |view: &PeerView| {
            Seen::new(view, Some(KeyId([1; 16])), life.signs.peers.get(&view.name))
        };
        life.peers().iter().map(seen).collect()
    }

    /// Gives the book an input, and does what follows.
    pub(in crate::world) fn record(&mut self, node: usize, input: book::Input) {
        if !self.records {
            return;
        }
        let concerned = invariants::stated(&input);
        let (now, mut out) = ((self.local(node), self.wall(node)), Vec::new());
        let life = self.life_mut(node);
        let mut nodes = std::mem::take(&mut life.nodes);
        let mut book = life.book.take().expect("one call at a time");
        book.handle(input, &|| self.seen(node), &mut nodes, now, &mut out);
        let life = self.life_mut(node);
        *life.deadline(Actor::Registry) = book.deadline();
        (life.nodes, life.book) = (nodes, Some(book));
        if out.is_empty() && concerned.is_empty() {
            return;
        }
        invariants::after_book(self, node, &concerned, &out);
        for output in out {
            match output {
                book::Output::Send(peer, word) => {
                    self.send_to(node, &peer, Message::Registry(word.into()))
                }
                book::Output::Ask(ask) => self.ask(node, ask),
                book::Output::Write { batch, known, gone } => {
                    let life = self.life(node);
                    let (number, start) = (life.number, life.starts[Actor::Registry as usize]);
                    let write = Box::new(Write { start, batch, known, gone });
                    let time = self.random(ms(1)..ms(30));
                    self.later(time, Happening::Task(node, number, Task::Written(write)));
                }
                book::Output::Announce(event) => self.announced(node, event),
                book::Output::Charge(..) | book::Output::Closed => {}
            }
        }
    }

    /// A batch has reached the disk, or could not.
    pub(super) fn written(&mut self, node: usize, write: Write) {
        let Write { start, batch, known, gone } = write;
        let done = !self.rng.random_bool(self.weather.full);
        if let Some(disk) = self.nodes[node].disks.last_mut().filter(|_| done) {
            gone.iter().for_each(|name| drop(disk.remove(name)));
            disk.extend(known.into_iter().map(|known| (known.name.clone(), known)));
        }
        // The successor of an actor that ended writes everything anew.
        if self.life(node).starts[Actor::Registry as usize] == start {
            self.record(node, book::Input::Written(batch, done));
        }
    }

    /// An operator of a node has another one forgotten, as far as that is allowed. Returns whether it is.
    pub(crate) fn forget(&mut self, node: usize, other: usize) -> bool {
        let name = self.nodes[other].name.clone();
        let life = self.life(node);
        let known = life.nodes.get(&name).filter(|known| !known.is_forgotten());
        let peer = life.membership.peer(&name);
        let linked = |peer: &PeerView| matches!(peer.status, Status::Online | Status::Syncing);
        let lives = [known.map(|known| known.incarnation), peer.as_ref().map(|it| it.incarnation)];
        let Some(latest) = lives.into_iter().flatten().max() else { return false };
        if peer.is_some_and(|peer| linked(&peer)) {
            return false;
        }
        self.note(node, || format!("has {name} forgotten"));
        self.record(node, book::Input::Forget(name, latest, Operator::local(1)));
        true
    }

    // ChannelRouter.

    pub(super) fn attendance(
        &self,
        node: usize,
        (life, boot): (Incarnation, u64),
        rng: StdRng,
    ) -> Attendance {
        let me = self.nodes[node].name.clone();
        Attendance::new(me, Epoch { life, boot }, self.local(node), rng)
    }

    /// Has the attendance do something, and does what follows.
    pub(super) fn present<T>(
        &mut self,
        node: usize,
        act: impl FnOnce(&mut Attendance, Instant, &mut Vec<presence::Output>) -> T,
    ) -> T {
        let records = self.records;
        let (now, mut out) = (self.local(node), Vec::new());
        let life = self.life_mut(node);
        let attendance = life.attendance.as_mut().expect("one that runs");
        let result = act(attendance, now, &mut out);
        life.deadlines[Actor::ChannelRouter as usize] = attendance.deadline().filter(|_| records);
        self.perform_presence(node, out);
        result
    }

    fn perform_presence(&mut self, node: usize, out: Vec<presence::Output>) {
        if !self.records {
            return;
        }
        invariants::after_presence(self, node, &out);
        for output in out {
            match output {
                presence::Output::Say(To::One(peer), word) => {
                    self.send_to(node, &peer, Message::Presence(word.into()));
                }
                presence::Output::Say(To::All, word) => {
                    let word = Rc::new(word);
                    let attendance = self.life(node).attendance.as_ref();
                    for peer in attendance.expect("one that runs").linked().clone() {
                        self.send_to(node, &peer, Message::Presence(word.clone()));
                    }
                }
                presence::Output::Fault(peer, _) => {
                    self.ask(node, Ask::Cut(peer));
                }
                presence::Output::Joined(_) | presence::Output::Left(_) => {}
            }
        }
    }

    /// A client comes to a node.
    pub(crate) fn join(&mut self, node: usize, topic: usize, key: &str) {
        let name = self.nodes[node].name.clone();
        let life = self.life_mut(node);
        life.numbers += 1;
        let (number, key) = (life.numbers, key.to_owned());
        let meta = format!("{{\"at\":\"{name}\",\"n\":{}}}", life.number * 1_000_000 + number);
        let member = Member { topic, key: key.clone(), meta: meta.clone() };
        life.members.insert(number, member);
        let topics = topics();
        let place = (&topics[topic], key.as_str(), meta.as_str());
        let joined = self.present(node, |it, now, out| it.join(number, None, place, now, out));
        joined.unwrap_or_else(|refused| self.fail("sim", &refused.to_string()));
        self.wake(node);
    }

    /// A client of a node goes, if there is one.
    pub(crate) fn part(&mut self, node: usize) {
        let Some((number, _)) = self.life_mut(node).members.pop_first() else { return };
        self.present(node, |it, now, out| it.leave(number, now, out));
        self.wake(node);
    }

    /// The clients of a router that ended come back, under other numbers.
    pub(super) fn rejoin(&mut self, node: usize) {
        let life = self.life_mut(node);
        let (number, members) = (life.number, std::mem::take(&mut life.members));
        for Member { topic, key, .. } in members.into_values() {
            let pause = self.random(ms(10)..secs(2));
            self.later(pause, Happening::Task(node, number, Task::Rejoin(topic, key)));
        }
    }
}
