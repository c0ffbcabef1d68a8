//! The members of this node's topics, as presences: what the actor ChannelRouter decides of them. The simulator runs it
//! as well.

use std::collections::BTreeMap;
use std::time::Instant;

use rand::rngs::StdRng;

use super::{Epoch, Output, Presence, Ref, Refused, Word};
use crate::proto::event::Event;
use crate::proto::node::NodeName;
use crate::proto::topic::Topic;

/// Who of this node's clients is present, and under what reference.
#[derive(Debug)]
pub struct Attendance {
    presence: Presence,
    epoch: Epoch,
    /// By the numbers of the members.
    present: BTreeMap<u64, Ref>,
}

impl Attendance {
    /// Nobody is present; these peers are linked. `epoch` must be greater than any earlier one of this node.
    #[must_use]
    pub fn new<'a>(
        me: NodeName,
        epoch: Epoch,
        linked: impl IntoIterator<Item = &'a NodeName>,
        now: Instant,
        rng: StdRng,
        out: &mut Vec<Output>,
    ) -> Self {
        let mut presence = Presence::new(me, epoch, now, rng);
        linked.into_iter().for_each(|peer| presence.up(peer, now, out));
        Self { presence, epoch, present: BTreeMap::new() }
    }

    /// The machine: who is in which topic.
    #[must_use]
    pub fn presence(&self) -> &Presence {
        &self.presence
    }

    /// A member joins a topic with this key and meta.
    ///
    /// # Errors
    /// [`Refused`]: it is a member without a presence.
    pub fn join(
        &mut self,
        member: u64,
        (topic, key, meta): (&Topic, &str, &str),
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<(), Refused> {
        let reference = self.presence.track(topic, key, meta, now, out)?;
        self.present.insert(member, reference);
        Ok(())
    }

    /// A member leaves its topic.
    pub fn leave(&mut self, member: u64, now: Instant, out: &mut Vec<Output>) {
        if let Some(reference) = self.present.remove(&member) {
            self.presence.untrack(reference, now, out);
        }
    }

    /// Whether an event is of use to [`Self::event`].
    #[must_use]
    pub fn concerns(event: &Event) -> bool {
        matches!(
            event,
            Event::PeerOnline { .. } | Event::PeerOffline { .. } | Event::IncarnationRaised { .. }
        )
    }

    /// Something happened in this node.
    pub fn event(&mut self, event: &Event, now: Instant, out: &mut Vec<Output>) {
        if let Event::PeerOnline { peer, .. } = event {
            self.presence.up(peer, now, out);
        } else if let Event::PeerOffline { peer, .. } = event {
            self.presence.gone(peer, out);
        } else if let Event::IncarnationRaised { to } = event {
            self.epoch.life = *to;
            let renewed = self.presence.renew(self.epoch, now, out);
            for reference in self.present.values_mut() {
                *reference = renewed.get(reference).copied().unwrap_or(*reference);
            }
        }
    }

    /// A peer's router sent this word, in at most [`WORD`](super::WORD) bytes.
    pub fn received(&mut self, from: &NodeName, word: Word, now: Instant, out: &mut Vec<Output>) {
        self.presence.heard(from, word, now, out);
    }

    /// When [`Self::tick`] is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.presence.deadline()
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.presence.tick(now, out);
    }
}
