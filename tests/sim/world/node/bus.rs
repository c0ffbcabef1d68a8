//! The bus of a node, and what nodes send each other over their links' lanes.

use std::rc::Rc;

use xpando_node::internals::proto::discovery;
use xpando_node::internals::proto::event::Event;
use xpando_node::internals::proto::heartbeat::monitor;
use xpando_node::internals::proto::node::NodeName;
use xpando_node::internals::proto::presence;
use xpando_node::internals::proto::registry::{self, book};
use xpando_node::internals::proto::talk::DownReason;
use xpando_node::internals::proto::topology;
use xpando_node::internals::proto::wiring::{Consumer, Notice};

use super::Actor;
use crate::invariants;
use crate::world::wire::{At, Word};
use crate::world::{Happening, Task, World, ms};

/// What a consumer sends its like on another node.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    Monitor(monitor::Word),
    Topology(Rc<topology::Word>),
    Registry(Rc<registry::Word>),
    Discovery(Rc<discovery::Word>),
    Presence(Rc<presence::Word>),
}

impl Message {
    /// Whose it is.
    fn consumer(&self) -> Consumer {
        match self {
            Self::Monitor(_) => Consumer::HeartbeatMonitor,
            Self::Topology(_) => Consumer::TopologyTracker,
            Self::Registry(_) => Consumer::Registry,
            Self::Discovery(_) => Consumer::Discovery,
            Self::Presence(_) => Consumer::ChannelRouter,
        }
    }
}

impl World {
    /// Something for the mailbox of an actor: in order, and a little later.
    pub(super) fn mail(&mut self, node: usize, to: Actor, task: Task) {
        let when = self.now + self.random(0..ms(1));
        let life = self.life_mut(node);
        let last = life.mail.entry(to).or_default();
        *last = when.max(*last);
        let (number, when) = (life.number, *last);
        self.at_time(when, Happening::Task(node, number, task));
    }

    fn post(&mut self, node: usize, to: Consumer, notice: Notice<Message>) {
        let recorded = matches!(to, Consumer::Registry | Consumer::ChannelRouter);
        let life = self.life(node);
        if life.attached.contains(&to) && (self.records || !recorded) {
            let start = life.starts[Actor::of(to) as usize];
            self.mail(node, Actor::of(to), Task::Notice(to, start, Box::new(notice)));
        }
    }

    /// A consumer that has started attaches.
    pub(super) fn attach(&mut self, node: usize, consumer: Consumer) {
        let life = self.life_mut(node);
        life.attached.insert(consumer);
        life.behind.remove(&consumer);
        for up in life.links.all().collect::<Vec<_>>() {
            self.post(node, consumer, up);
        }
    }

    /// A link runs.
    pub(in crate::world) fn up(&mut self, node: usize, at: At) {
        let hello = self.end(at).hello.clone().expect("both sides have said hello");
        for notice in self.life_mut(node).links.up(hello.name, hello.incarnation, at) {
            self.spread(node, &notice);
        }
    }

    /// A link that ran is gone.
    pub(in crate::world) fn down(&mut self, node: usize, at: At, why: DownReason) {
        let peer = self.end(at).hello.as_ref().map(|hello| hello.name.clone());
        let peer = peer.expect("both sides have said hello");
        if let Some(notice) = self.life_mut(node).links.down(&peer, &at, why) {
            self.spread(node, &notice);
        }
    }

    fn spread(&mut self, node: usize, notice: &Notice<Message>) {
        Consumer::ALL.into_iter().for_each(|it| self.post(node, it, notice.clone()));
    }

    /// An event reaches those that it concerns.
    pub(super) fn tell_of(&mut self, node: usize, event: &Event) {
        for consumer in Consumer::ALL {
            if let Some(notice) = consumer.concern(event) {
                self.post(node, consumer, notice);
            }
        }
    }

    /// The peers' view is another.
    pub(super) fn changed(&mut self, node: usize) {
        for consumer in Consumer::ALL.into_iter().filter(|it| it.reads_view()) {
            if self.life_mut(node).behind.insert(consumer) {
                self.post(node, consumer, Notice::Changed);
            }
        }
    }

    /// The measurements are others.
    pub(super) fn measured(&mut self, node: usize) {
        let now = self.local(node);
        if !self.life_mut(node).measurements.are_due(now) {
            return;
        }
        for consumer in Consumer::ALL.into_iter().filter(|it| it.reads_measurements()) {
            self.post(node, consumer, Notice::Changed);
        }
    }

    /// A consumer takes a notice from its mailbox.
    pub(super) fn notice(&mut self, node: usize, to: Consumer, notice: Notice<Message>) {
        if matches!(notice, Notice::Changed) {
            self.life_mut(node).behind.remove(&to);
        }
        self.detail(node, || format!("{to:?} gets {notice:?}"));
        let read = |word: Message| match word {
            Message::Monitor(word) => Ok(Some(word)),
            other => Err(other),
        };
        match to {
            Consumer::HeartbeatMonitor => self.watch(node, Some(read_as(notice, read))),
            Consumer::TopologyTracker => {
                let read = |word: Message| match word {
                    Message::Topology(word) => Ok(Rc::unwrap_or_clone(word)),
                    other => Err(other),
                };
                self.track(node, Some(read_as(notice, read)));
            }
            Consumer::Registry => {
                let read = |word: Message| match word {
                    Message::Registry(word) => Ok(Rc::unwrap_or_clone(word)),
                    other => Err(other),
                };
                self.record(node, book::Input::Notice(read_as(notice, read)));
            }
            Consumer::Discovery => {
                let read = |word: Message| match word {
                    Message::Discovery(word) => Ok(Rc::unwrap_or_clone(word)),
                    other => Err(other),
                };
                let notice = read_as(notice, read);
                self.discover(node, |it, now, out| it.handle(notice, now, out));
            }
            Consumer::ChannelRouter => {
                let read = |word: Message| match word {
                    Message::Presence(word) => Ok(Rc::unwrap_or_clone(word)),
                    other => Err(other),
                };
                let notice = read_as(notice, read);
                self.present(node, |it, now, out| it.handle(notice, now, out));
            }
        }
    }

    /// This node's end of the running link to a peer.
    pub(super) fn outlet(&self, node: usize, peer: &NodeName) -> Option<At> {
        self.life(node).outlets.get(&self.find(peer)?).copied()
    }

    /// Sends a message to a linked peer; without a link it is lost.
    pub(in crate::world) fn send_to(&mut self, node: usize, peer: &NodeName, message: Message) {
        if let Some(at) = self.outlet(node, peer) {
            self.overhear(node, &message);
            if !self.withholds(node) {
                self.send(at, Word::System(message));
            }
        }
    }

    /// Sends a word on a running link, and counts it.
    pub(in crate::world) fn send(&mut self, at: At, word: Word) {
        invariants::before_send(self, at, &word);
        self.transmit(at, word);
    }

    /// A message arrived on a link.
    pub(in crate::world) fn delivered(&mut self, node: usize, at: At, message: Message) {
        let peer = self.end(at).hello.as_ref().map(|hello| hello.name.clone());
        let peer = peer.expect("both sides have said hello");
        self.overhear(node, &message);
        if self.life(node).links.is_up(&peer, &at) {
            self.post(node, message.consumer(), Notice::Message(peer, message));
        }
    }
}

/// With its message read, which is of the right kind: topics have one consumer each.
fn read_as<N>(
    notice: Notice<Message>,
    read: impl FnOnce(Message) -> Result<N, Message>,
) -> Notice<N> {
    notice.read(read).unwrap_or_else(|other| panic!("{other:?} at another consumer"))
}
