//! What nodes say to each other behind their links' doors.

use std::rc::Rc;

use xpando_node::internals::proto::discovery::{CONTACTS, contacts_for};
use xpando_node::internals::proto::event::Source;
use xpando_node::internals::proto::heartbeat;
use xpando_node::internals::proto::node::NodeName;
use xpando_node::internals::proto::registry::book;
use xpando_node::internals::proto::topology;

use crate::invariants;
use crate::world::World;
use crate::world::wire::{At, Word};

impl World {
    /// Tells one peer who is linked here.
    pub(super) fn share(&mut self, node: usize, peer: &NodeName) {
        for some in contacts_for(self.online(node), peer) {
            self.tell(node, peer, Word::Contacts(Rc::new(some)));
        }
    }

    // `actors::news` and `actors::exchange`.

    /// Sends a message to a linked peer; without a link it is lost.
    pub(super) fn tell(&mut self, node: usize, peer: &NodeName, word: Word) {
        if let Some(at) = self.life(node).outlets.get(&self.index(peer)).copied() {
            self.send(at, word);
        }
    }

    /// Sends a word on a running link, and counts it.
    pub(in crate::world) fn send(&mut self, at: At, word: Word) {
        invariants::before_send(self, self.end(at).node, &word);
        self.say(at, word);
    }

    /// A message of a linked peer.
    pub(in crate::world) fn delivered(&mut self, node: usize, from: usize, word: Word) {
        let name = self.nodes[from].name.clone();
        match word {
            Word::Ask(about) => {
                let asked = self.local(node);
                let life = self.life_mut(node);
                if life.questions.ask(name, about.clone(), asked).is_ok() {
                    life.deadlines[1] = life.monitor_deadline();
                    self.beat(node, &about);
                }
            }
            Word::Answer(about, hears) => {
                self.watch(node, heartbeat::Input::Answer { from: name, about, hears });
            }
            Word::Doubted(about) => self.watch(node, heartbeat::Input::Doubted(about)),
            Word::Contacts(contacts) => {
                for contact in contacts.iter().take(CONTACTS) {
                    self.hint(node, contact, Source::Peer);
                }
            }
            Word::Registry(word) => self.record(node, book::Input::Received(name, word)),
            Word::Presence(word) => {
                let word = Rc::unwrap_or_clone(word);
                self.present(node, |it, now, out| it.received(&name, word, now, out));
            }
            Word::Topology(word) => self.track(node, topology::Input::Received(name, word)),
            other => self.fail("sim", &format!("no message: {other:?}")),
        }
    }
}
