//! What waits longer the more peers there are, and what waits for a link.

use std::time::{Duration, Instant};

use super::{Rows, Table};
use crate::proto::node::NodeName;

/// Peers to which a change is sent as soon as the one before it.
pub(super) const FEW: usize = 5;
/// With many peers a wait is at most so many times as long.
const LONGEST_WAIT: usize = 25;
/// With many peers: between two versions of a row that a node gets second-hand.
const AT_SECOND_HAND: Duration = Duration::from_millis(200);
/// A row of an origin that is about to be linked is wanted of others after this time.
const AWAITED: Duration = Duration::from_secs(10);

impl<T: Table> Rows<T> {
    /// A wait between two things that are sent to every peer, or follow from what every peer sends: with many peers it is
    /// longer in proportion, or what a node sends and receives while a cluster forms would grow with the square of them.
    pub(in super::super) fn paced(&self, wait: Duration) -> Duration {
        wait * u32::try_from(self.pace()).unwrap_or(1)
    }

    /// How many times as long such a wait is.
    fn pace(&self) -> usize {
        (self.links.len() / FEW).clamp(1, LONGEST_WAIT)
    }

    /// Until when the row of an origin is not wanted of others: with many peers, or while it is about to be linked.
    pub(super) fn rests(&self, origin: &NodeName, now: Instant) -> Option<Instant> {
        if T::is_awaited(self, origin) {
            return Some(now + AWAITED);
        }
        let last = self.second_hand.get(origin).filter(|_| self.pace() > 1);
        last.map(|last| *last + self.paced(AT_SECOND_HAND))
    }
}
