//! The places of one name's requests, and how its askers share them.
//!
//! Invariant: one asker has at most `FACTOR` times as many places as are free, so that where a name is slow there are some
//! for those that come next, however many askers take as much as they can (Choudhury, Hahne: *Dynamic queue length
//! thresholds for shared-memory packet switches*, 1998).

use std::collections::HashMap;

use crate::proto::node::NodeName;

/// An asker alone has three quarters of all places.
const FACTOR: usize = 3;

/// The places of one name.
#[derive(Debug)]
pub struct Places {
    free: usize,
    taken: HashMap<NodeName, usize>,
}

impl Places {
    /// The places of a name, of which none is taken.
    pub fn new(free: usize) -> Self {
        Self { free, taken: HashMap::new() }
    }

    /// Takes one for an asker; whether it may.
    #[must_use]
    pub fn take(&mut self, asker: &NodeName) -> bool {
        let taken = self.taken.get(asker).copied().unwrap_or(0);
        if taken >= self.free.saturating_mul(FACTOR) {
            return false;
        }
        self.free -= 1;
        self.taken.insert(asker.clone(), taken + 1);
        true
    }

    /// Gives back one that was taken.
    pub fn give(&mut self, asker: &NodeName) {
        let Some(taken) = self.taken.get_mut(asker) else { return };
        self.free += 1;
        *taken -= 1;
        if *taken == 0 {
            self.taken.remove(asker);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn asker(number: usize) -> NodeName {
        format!("n{number}@h").parse().expect("valid")
    }

    #[test]
    fn each_further_asker_finds_places() {
        let mut places = Places::new(1024);
        let mut takes = |number| (0..2000).filter(|_| places.take(&asker(number))).count();
        assert_eq!([0, 1, 2, 3].map(&mut takes), [768, 192, 48, 12]);
        places.give(&asker(0));
        assert!(places.take(&asker(4)) && !places.take(&asker(0)));
    }

    proptest! {
        #[test]
        fn places_are_neither_lost_nor_made(steps in prop::collection::vec((0..3_usize, any::<bool>()), 0..200)) {
            let (mut places, mut taken) = (Places::new(16), [0_usize; 3]);
            for (number, takes) in steps {
                if takes {
                    taken[number] += usize::from(places.take(&asker(number)));
                } else {
                    places.give(&asker(number));
                    taken[number] = taken[number].saturating_sub(1);
                }
                prop_assert_eq!(places.free + taken.iter().sum::<usize>(), 16);
                prop_assert_eq!(places.taken.len(), taken.iter().filter(|it| **it > 0).count());
            }
        }
    }
}
