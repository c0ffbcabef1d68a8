//! The members of this node's topics, as presences: what the actor ChannelRouter decides of them. The simulator runs it
//! as well.
//!
//! # Invariants
//! 1. A user, or an address without a token, has presences for at most four times as many bytes as are left free (Choudhury
//!    and Hahne, *Dynamic queue length thresholds*, 1998): one alone leaves a fifth for those who come later.
//! 2. A member that finds no room waits, and is present as soon as there is some. What waits is bounded in the same way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use rand::rngs::StdRng;

use super::room::{Held, Holder, Queue, Waiting, cost};
use super::{Epoch, Output, Presence, PresenceError, Ref, Word, check_meta};
use crate::proto::node::NodeName;
use crate::proto::topic::Topic;
use crate::proto::wiring::Notice;

/// Who of this node's clients is present, and under what reference.
#[derive(Debug)]
pub struct Attendance {
    presence: Presence,
    epoch: Epoch,
    /// By the numbers of the members.
    present: BTreeMap<u64, Present>,
    held: Held,
    queue: Queue,
    linked: BTreeSet<NodeName>,
}

/// A member that is present.
#[derive(Debug)]
struct Present {
    reference: Ref,
    holder: Option<Holder>,
    /// In bytes.
    cost: usize,
}

impl Attendance {
    /// Nobody is present, and no peer is linked. `epoch` must be greater than any earlier one of this node.
    pub fn new(me: NodeName, epoch: Epoch, now: Instant, rng: StdRng) -> Self {
        let presence = Presence::new(me, epoch, now, rng);
        let (present, linked) = (BTreeMap::new(), BTreeSet::new());
        let (held, queue) = (Held::default(), Queue::default());
        Self { presence, epoch, present, held, queue, linked }
    }

    /// The machine: who is in which topic.
    pub fn presence(&self) -> &Presence {
        &self.presence
    }

    /// The peers that are linked: [`To::All`](super::To::All).
    pub fn linked(&self) -> &BTreeSet<NodeName> {
        &self.linked
    }

    /// A member joins a topic with this key and meta. Its presence is a part of what its holder may have, a user or an
    /// address; what is nobody's (`None`) has no bound of its own, and does not wait.
    ///
    /// # Errors
    /// [`PresenceError`]: it is a member without a presence. When that is `Full` it may get one later.
    pub fn join(
        &mut self,
        member: u64,
        holder: Option<&Holder>,
        (topic, key, meta): (&Topic, &str, &str),
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<(), PresenceError> {
        let cost = cost(topic, key, meta);
        let fits = holder.is_none_or(|it| self.held.fits(it, cost, self.presence.free()));
        let tracked = match fits {
            true => self.presence.track(topic, key, meta, now, out),
            false => Err(PresenceError::Full),
        };
        match (tracked, holder) {
            (Ok(reference), _) => {
                self.place(member, Present { reference, holder: holder.cloned(), cost });
                Ok(())
            }
            (Err(PresenceError::Full), Some(holder)) => {
                let [key, meta] = [key, meta].map(str::to_owned);
                let holder = holder.clone();
                let waiting = Waiting { holder, topic: topic.clone(), key, meta };
                self.queue.put(member, waiting, &self.held);
                Err(PresenceError::Full)
            }
            (Err(refused), _) => Err(refused),
        }
    }

    /// A member shows another meta; one that waits for room will.
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
        if let Some(waiting) = self.queue.take(member, &self.held) {
            let changed = Waiting { meta: meta.to_owned(), ..waiting.clone() };
            let sound = check_meta(meta);
            if sound.is_ok() && self.queue.put(member, changed, &self.held) {
                return Ok(());
            }
            self.queue.put(member, waiting, &self.held);
            return sound.and(Err(PresenceError::Full));
        }
        let present = self.present.get(&member).ok_or(PresenceError::Unknown)?;
        let cost = self.presence.cost_with(present.reference, meta).unwrap_or(present.cost);
        let more = cost.saturating_sub(present.cost);
        let fits = |it| more == 0 || self.held.fits(it, more, self.presence.free());
        if !present.holder.as_ref().is_none_or(fits) {
            return Err(PresenceError::Full);
        }
        let reference = self.presence.update(present.reference, meta, now, out)?;
        if let Some(before) = self.displace(member) {
            self.place(member, Present { reference, cost, ..before });
        }
        self.admit(now, out);
        Ok(())
    }

    /// A member leaves its topic.
    pub fn leave(&mut self, member: u64, now: Instant, out: &mut Vec<Output>) {
        self.queue.take(member, &self.held);
        if let Some(present) = self.displace(member) {
            self.presence.untrack(present.reference, now, out);
            self.admit(now, out);
        }
    }

    /// Shows those that wait, of those first who hold least, as long as there is room.
    fn admit(&mut self, now: Instant, out: &mut Vec<Output>) {
        while let Some((member, waiting)) = self.queue.first() {
            let place = (&waiting.topic, waiting.key.as_str(), waiting.meta.as_str());
            let cost = cost(place.0, place.1, place.2);
            if !self.held.fits(&waiting.holder, cost, self.presence.free()) {
                return;
            }
            // One that is malformed goes, too.
            let tracked = self.presence.track(place.0, place.1, place.2, now, out);
            let taken = self.queue.take(member, &self.held);
            if let (Ok(reference), Some(Waiting { holder, .. })) = (tracked, taken) {
                self.place(member, Present { reference, holder: Some(holder), cost });
            }
        }
    }

    fn place(&mut self, member: u64, present: Present) {
        if let Some(holder) = &present.holder {
            self.queue.reorder(holder, &mut self.held, |held| held.add(holder, present.cost));
        }
        self.present.insert(member, present);
    }

    fn displace(&mut self, member: u64) -> Option<Present> {
        let present = self.present.remove(&member)?;
        if let Some(holder) = &present.holder {
            self.queue.reorder(holder, &mut self.held, |held| held.remove(holder, present.cost));
        }
        Some(present)
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
                for Present { reference, .. } in self.present.values_mut() {
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

#[cfg(test)]
impl Attendance {
    /// That all counts are those of what is there, and nobody waits for whom there is room.
    pub(super) fn check(&self) {
        let holders = self.present.values().filter_map(|it| Some((it.holder.as_ref()?, it.cost)));
        self.held.check(holders);
        self.queue.check(&self.held);
        let both = self.queue.numbers().filter(|member| self.present.contains_key(member));
        assert_eq!(both.count(), 0, "present and waiting");
        let costs: usize = self.present.values().map(|it| it.cost).sum();
        assert_eq!(costs + self.presence.free(), crate::proto::budget::PRESENCES);
        if let Some((_, waiting)) = self.queue.first() {
            let cost = cost(&waiting.topic, &waiting.key, &waiting.meta);
            let fits = self.held.fits(&waiting.holder, cost, self.presence.free());
            assert!(!fits, "{} waits for nothing", waiting.holder);
        }
    }
}
