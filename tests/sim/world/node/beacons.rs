//! Beacons.

use std::rc::Rc;

use rand::RngExt;
use xpando_node::internals::proto::beacon::Beacon;
use xpando_node::internals::proto::discovery::Verdict;
use xpando_node::internals::proto::event::Source;
use xpando_node::internals::proto::membership::Input;
use xpando_node::internals::proto::node::{KeyId, NodeName};

use super::Life;
use crate::world::{Happening, Task, World, ms};

impl World {
    pub(super) fn beacon(&mut self, node: usize, sequence: u64) {
        let (contact, sent) = (self.contact(node), self.wall(node));
        let beacon = Rc::new(Beacon { cluster: KeyId([7; 16]), contact, sequence, sent });
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            let copies = 1 + usize::from(self.rng.random_bool(self.weather.twice));
            let Some(life) = self.nodes[other].life.as_ref().map(|life| life.number) else {
                continue;
            };
            let cut = self.nodes[node].unplugged || self.cuts.contains_key(&(node, other));
            for _ in 0..copies {
                if cut || self.rng.random_bool(self.weather.loss) {
                    continue;
                }
                // Late by far, now and then: a later one overtakes it.
                let late = if self.rng.random_bool(self.weather.twice) { ms(6000) } else { 1 };
                let delay = self.weather.delay.clone();
                let delay = self.random(delay) + self.random(0..late);
                self.later(delay, Happening::Task(other, life, Task::Datagram(beacon.clone())));
            }
        }
    }

    pub(super) fn datagram(&mut self, node: usize, beacon: &Beacon) {
        let (wall, now) = (self.wall(node), self.local(node));
        let Life { discovery, signs, .. } = self.life_mut(node);
        let heard = |peer: &NodeName| signs.peers.get(peer)?.heard;
        if discovery.screen(beacon, heard, wall, now).is_ok() {
            if discovery.believe(beacon) == Verdict::Namesake {
                self.fail("sim", "names are used once");
            }
            self.life_mut(node).beacons.insert(beacon.contact.name.clone(), now);
            self.hint(node, Input::Hint(beacon.contact.clone(), Source::Beacon));
        }
    }

    /// A node's own word where it is. The simulator has no keys: whatever is sealed is genuine.
    pub(in crate::world) fn sealed(&self, node: usize) -> Vec<u8> {
        let (contact, sent) = (self.contact(node), self.wall(node));
        let beacon = Beacon { cluster: KeyId([7; 16]), contact, sequence: 0, sent };
        Beacon::seal(beacon.to_sign().expect("encodes"), &[], &[]).expect("short")
    }

    /// A beacon that was asked for, and passed on.
    pub(super) fn relayed(&mut self, node: usize, sealed: &[u8]) {
        let beacon = Beacon::decode(sealed).expect("sealed here").beacon;
        if self.life(node).discovery.is_current(&beacon, self.wall(node)) {
            self.hint(node, Input::Hint(beacon.contact, Source::Peer));
        }
    }
}
