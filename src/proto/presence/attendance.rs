//! The members of this node's topics, as presences: what the actor ChannelRouter decides of them. The simulator runs it
//! as well.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use rand::rngs::StdRng;

use super::{Epoch, Output, Presence, PresenceError, Ref, Word};
use crate::proto::node::NodeName;
use crate::proto::topic::Topic;
use crate::proto::wiring::Notice;

/// Who of this node's clients is present, and under what reference.
#[derive(Debug)]
pub struct Attendance {
    presence: Presence,
    epoch: Epoch,
    /// By the numbers of the members.
    present: BTreeMap<u64, Ref>,
    linked: BTreeSet<NodeName>,
}

impl Attendance {
    /// Nobody is present, and no peer is linked. `epoch` must be greater than any earlier one of this node.
    pub fn new(me: NodeName, epoch: Epoch, now: Instant, rng: StdRng) -> Self {
        let presence = Presence::new(me, epoch, now, rng);
        Self { presence, epoch, present: BTreeMap::new(), linked: BTreeSet::new() }
    }

    /// The machine: who is in which topic.
    pub fn presence(&self) -> &Presence {
        &self.presence
    }

    /// The peers that are linked: [`To::All`](super::To::All).
    pub fn linked(&self) -> &BTreeSet<NodeName> {
        &self.linked
    }

    /// A member joins a topic with this key and meta.
    ///
    /// # Errors
    /// [`PresenceError`]: it is a member without a presence.
    pub fn join(
        &mut self,
        member: u64,
        (topic, key, meta): (&Topic, &str, &str),
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<(), PresenceError> {
        let reference = self.presence.track(topic, key, meta, now, out)?;
        self.present.insert(member, reference);
        Ok(())
    }

    /// A member shows another meta.
    ///
    /// # Errors
    /// [`PresenceError`]: it shows the one before.
    pub fn update(
        &mut self,
        member: u64,
        meta: &str,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<(), PresenceError> {
        let present = self.present.get_mut(&member).ok_or(PresenceError::Unknown)?;
        *present = self.presence.update(*present, meta, now, out)?;
        Ok(())
    }

    /// A member leaves its topic.
    pub fn leave(&mut self, member: u64, now: Instant, out: &mut Vec<Output>) {
        if let Some(reference) = self.present.remove(&member) {
            self.presence.untrack(reference, now, out);
        }
    }

    /// Takes news of a link or of this node. A message has at most [`WORD`](super::WORD) bytes.
    pub fn handle(&mut self, notice: Notice<Word>, now: Instant, out: &mut Vec<Output>) {
        match notice {
            Notice::Up(peer, _) => {
                self.presence.up(&peer, now, out);
                self.linked.insert(peer);
            }
            Notice::Message(peer, word) => self.presence.heard(&peer, word, now, out),
            // A link that comes back at once takes nobody's presence away.
            Notice::Down(peer, _) => drop(self.linked.remove(&peer)),
            Notice::Offline(peer) => self.presence.gone(&peer, out),
            // It may have been looked for until now; unless it is back.
            Notice::Forgotten(peer) if !self.linked.contains(&peer) => {
                self.presence.gone(&peer, out);
            }
            // One that started under this life has it already.
            Notice::Renewed(life) if life > self.epoch.life => {
                self.epoch.life = life;
                let renewed = self.presence.renew(self.epoch, now, out);
                for reference in self.present.values_mut() {
                    *reference = renewed.get(reference).copied().unwrap_or(*reference);
                }
            }
            Notice::Renewed(_)
            | Notice::Forgotten(_)
            | Notice::Revoked
            | Notice::Equivocation(_)
            | Notice::Changed => {}
        }
    }

    /// When [`Self::tick`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.presence.deadline()
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.presence.tick(now, out);
    }
}
