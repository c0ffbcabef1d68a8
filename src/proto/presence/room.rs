//! Room for presences: whose they are, and who waits for some.
//!
//! # Invariants
//! 1. A holder has, after each thing it takes, at most `SHARE` times as many bytes as are free then.
//! 2. Members that wait cost at most [`PRESENCES`] bytes together; of each holder at most `SHARE` times as many as are free of those.
//! 3. The order of those who wait is that of what their holders have, then that of their joins: to find the first one costs the
//!    logarithm of how many wait.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::proto::budget::{PRESENCE_COST, PRESENCES};
use crate::proto::topic::Topic;

/// Whose presences count together: a user or an address, as a text.
pub type Holder = Arc<str>;

/// What a holder may have, of what is left free: a service with one user for all its members fills a large room, and those
/// who come later find a fifth.
pub(super) const SHARE: usize = 4;

/// What a presence costs, in bytes.
pub(super) fn cost(topic: &Topic, key: &str, meta: &str) -> usize {
    PRESENCE_COST + topic.as_str().len() + key.len() + meta.len()
}

/// How many bytes each holder has.
#[derive(Debug, Default)]
pub(super) struct Held(BTreeMap<Holder, usize>);

impl Held {
    fn of(&self, holder: &Holder) -> usize {
        self.0.get(holder).copied().unwrap_or_default()
    }

    /// Whether a holder may have so many more of those that are free.
    pub(super) fn fits(&self, holder: &Holder, cost: usize, free: usize) -> bool {
        free.checked_sub(cost).is_some_and(|left| self.of(holder) + cost <= SHARE * left)
    }

    pub(super) fn add(&mut self, holder: &Holder, cost: usize) {
        *self.0.entry(holder.clone()).or_default() += cost;
    }

    pub(super) fn remove(&mut self, holder: &Holder, cost: usize) {
        let left = self.of(holder).saturating_sub(cost);
        if left == 0 {
            self.0.remove(holder);
        } else {
            self.0.insert(holder.clone(), left);
        }
    }
}

/// A member that waits for room.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) holder: Holder,
    pub(super) topic: Topic,
    pub(super) key: String,
    pub(super) meta: String,
}

impl Waiting {
    fn cost(&self) -> usize {
        cost(&self.topic, &self.key, &self.meta)
    }
}

/// Who waits, by the numbers of the members.
#[derive(Debug, Default)]
pub(super) struct Queue {
    members: BTreeMap<u64, Waiting>,
    of: BTreeMap<Holder, BTreeSet<u64>>,
    /// By what the holders have.
    order: BTreeSet<(usize, Holder)>,
    /// What those that wait cost.
    costs: Held,
    used: usize,
}

impl Queue {
    /// Has a member wait; false when too much does.
    pub(super) fn put(&mut self, member: u64, waiting: Waiting, held: &Held) -> bool {
        let (cost, holder) = (waiting.cost(), waiting.holder.clone());
        if !self.costs.fits(&holder, cost, PRESENCES.saturating_sub(self.used)) {
            return false;
        }
        self.used += cost;
        self.costs.add(&holder, cost);
        self.members.insert(member, waiting);
        self.order.insert((held.of(&holder), holder.clone()));
        self.of.entry(holder).or_default().insert(member)
    }

    /// A member waits no more.
    pub(super) fn take(&mut self, member: u64, held: &Held) -> Option<Waiting> {
        let waiting = self.members.remove(&member)?;
        let (holder, cost) = (&waiting.holder, waiting.cost());
        self.used = self.used.saturating_sub(cost);
        self.costs.remove(holder, cost);
        if let Some(members) = self.of.get_mut(holder) {
            members.remove(&member);
            if members.is_empty() {
                self.of.remove(holder);
                self.order.remove(&(held.of(holder), holder.clone()));
            }
        }
        Some(waiting)
    }

    /// The next one to be shown.
    pub(super) fn first(&self) -> Option<(u64, &Waiting)> {
        let (_, holder) = self.order.first()?;
        let member = self.of.get(holder)?.first()?;
        Some((*member, self.members.get(member)?))
    }

    /// Changes what a holder has.
    pub(super) fn reorder(
        &mut self,
        holder: &Holder,
        held: &mut Held,
        change: impl FnOnce(&mut Held),
    ) {
        let waits = self.order.remove(&(held.of(holder), holder.clone()));
        change(held);
        if waits {
            self.order.insert((held.of(holder), holder.clone()));
        }
    }
}

#[cfg(test)]
impl Held {
    /// That it is the sum of these.
    pub(super) fn check<'a>(&self, all: impl Iterator<Item = (&'a Holder, usize)>) {
        let mut sums: BTreeMap<Holder, usize> = BTreeMap::new();
        all.for_each(|(holder, cost)| *sums.entry(holder.clone()).or_default() += cost);
        assert_eq!(self.0, sums);
    }
}

#[cfg(test)]
impl Queue {
    pub(super) fn numbers(&self) -> impl Iterator<Item = &u64> {
        self.members.keys()
    }

    /// That each member waits once, in the order of what its holder has.
    pub(super) fn check(&self, held: &Held) {
        self.costs.check(self.members.values().map(|it| (&it.holder, it.cost())));
        assert_eq!(self.used, self.members.values().map(Waiting::cost).sum::<usize>());
        assert!(self.used <= PRESENCES);
        let order: BTreeSet<_> = self.of.keys().map(|it| (held.of(it), it.clone())).collect();
        assert_eq!(self.order, order);
        assert_eq!(self.of.values().map(BTreeSet::len).sum::<usize>(), self.members.len());
    }
}
