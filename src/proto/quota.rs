//! How much of something each peer may do within a minute.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::proto::node::NodeName;

const MINUTE: Duration = Duration::from_secs(60);

/// A bound on what each peer does. Memory: one entry for each peer that did anything within the last
/// minute it was asked about.
#[derive(Debug)]
pub struct Quota {
    most: u32,
    spent: BTreeMap<NodeName, (Instant, u32)>,
}

impl Quota {
    /// At most so often within a minute.
    pub fn new(most: u32) -> Self {
        Self { most, spent: BTreeMap::new() }
    }

    /// Whether one more would be one too many.
    pub(crate) fn is_spent(&self, peer: &NodeName, now: Instant) -> bool {
        let spent = self.spent.get(peer).filter(|(since, _)| now < *since + MINUTE);
        spent.is_some_and(|(_, count)| *count >= self.most)
    }

    /// Counts one; false when it is one too many.
    #[must_use]
    pub(crate) fn spend(&mut self, peer: &NodeName, now: Instant) -> bool {
        if !self.spent.contains_key(peer) {
            self.spent.retain(|_, (since, _)| now < *since + MINUTE);
        }
        let (since, count) = self.spent.entry(peer.clone()).or_insert((now, 0));
        if now >= *since + MINUTE {
            (*since, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        *count <= self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::tests::start;

    #[test]
    fn each_peer_has_its_own_minute() {
        let [a, b] = ["a@h", "b@h"].map(|name| name.parse::<NodeName>().expect("valid"));
        let (mut quota, now) = (Quota::new(2), start());
        let later = now + Duration::from_secs(59);
        assert!(quota.spend(&a, now) && !quota.is_spent(&a, later));
        assert!(quota.spend(&a, later) && quota.is_spent(&a, later) && !quota.spend(&a, later));
        assert!(quota.spend(&b, later));
        assert!(quota.spend(&a, now + MINUTE), "a new minute");
        assert!(quota.spend(&"c@h".parse().expect("valid"), now + 3 * MINUTE));
        assert_eq!(quota.spent.len(), 1, "old entries go");
    }
}
