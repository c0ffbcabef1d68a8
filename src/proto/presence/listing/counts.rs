//! How many are there, told to members that want no more.
//!
//! Newcomers are told first; the others in turn, [`PORTION`] in one step, each the number that holds at that moment. A change in a
//! room of thousands so makes no join and no message wait behind a frame for each of them.
//!
//! # Invariants
//! 1. Every member is told the number that holds, at the latest when all have had their turn once; and none twice in a row.
//! 2. One step tells [`PORTION`] members at most.

use std::collections::{BTreeMap, VecDeque};

use crate::proto::channel::Dialect;

/// Members that are told in one step.
pub(super) const PORTION: usize = 128;

/// The members that are told how many are there.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// What each of them was told last.
    pub(super) members: BTreeMap<u64, (Dialect, Option<usize>)>,
    /// Those that were told nothing yet, and some that are gone or told by now.
    newcomers: VecDeque<u64>,
    /// The number that is being told, and how many members have not had their turn since.
    number: Option<usize>,
    left: usize,
    /// The turn is that of the first member from here on.
    next: u64,
}

impl Counts {
    pub(super) fn admit(&mut self, member: u64, dialect: Dialect) {
        self.members.insert(member, (dialect, None));
        self.newcomers.push_back(member);
    }

    pub(super) fn forget(&mut self, member: u64) {
        if self.members.remove(&member).is_some_and(|(_, told)| told.is_none()) {
            self.newcomers.retain(|id| *id != member);
        }
    }

    /// Whether somebody does not know yet that so many are there.
    pub(super) fn is_due(&self, number: usize) -> bool {
        let changed = self.number != Some(number) && !self.members.is_empty();
        changed || self.left > 0 || !self.newcomers.is_empty()
    }

    /// The next to tell that so many are there; they know it from now on.
    pub(super) fn take(&mut self, number: usize) -> Vec<(u64, Dialect)> {
        let mut taken = Vec::new();
        if self.number != Some(number) {
            (self.number, self.left) = (Some(number), self.members.len());
        }
        while taken.len() < PORTION
            && let Some(newcomer) = self.newcomers.pop_front()
        {
            if let Some((dialect, told @ None)) = self.members.get_mut(&newcomer) {
                *told = Some(number);
                taken.push((newcomer, *dialect));
            }
        }
        while taken.len() < PORTION && self.left > 0 {
            let mut from_here = self.members.range_mut(self.next..);
            let Some((member, (dialect, told))) = from_here.next() else {
                self.left = if self.members.is_empty() { 0 } else { self.left };
                self.next = 0;
                continue;
            };
            if *told != Some(number) {
                *told = Some(number);
                taken.push((*member, *dialect));
            }
            (self.next, self.left) = (*member + 1, self.left - 1);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_goes_before_its_first_count_is_forgotten() {
        let mut counts = Counts::default();
        for member in 0..1000 {
            counts.admit(member, Dialect::V2);
            counts.forget(member);
        }
        assert!(counts.newcomers.is_empty() && !counts.is_due(3));
        counts.admit(1, Dialect::V2);
        assert_eq!(counts.take(3), [(1, Dialect::V2)]);
        assert!(!counts.is_due(3) && counts.is_due(4));
        counts.forget(1);
        assert!(!counts.is_due(3) && !counts.is_due(4));
    }
}
