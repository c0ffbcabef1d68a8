//! What goes over the links, by lane: counted for every piece, so with nothing but an addition.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::proto::frame::Lane;

/// One way of one lane.
#[derive(Debug, Default)]
struct Way {
    messages: AtomicU64,
    bytes: AtomicU64,
}

/// What came and what went since the start.
#[derive(Debug, Default)]
pub struct Traffic {
    came: [Way; Lane::ALL.len()],
    went: [Way; Lane::ALL.len()],
}

/// What came, or what went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Messages; of ractor's lane, pieces.
    pub messages: u64,
    /// Bytes, with their headers, before TLS.
    pub bytes: u64,
}

impl Way {
    fn add(&self, messages: u64, bytes: usize) {
        self.messages.fetch_add(messages, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn flow(&self) -> Flow {
        let read = |of: &AtomicU64| of.load(Ordering::Relaxed);
        Flow { messages: read(&self.messages), bytes: read(&self.bytes) }
    }
}

impl Traffic {
    /// A piece, or messages of pieces that were counted before, came in.
    pub fn came(&self, lane: Lane, messages: u64, bytes: usize) {
        if let Some(way) = self.came.get(lane as usize) {
            way.add(messages, bytes);
        }
    }

    /// A piece went out.
    pub fn went(&self, lane: Lane, messages: u64, bytes: usize) {
        if let Some(way) = self.went.get(lane as usize) {
            way.add(messages, bytes);
        }
    }

    /// By lane: what came, and what went.
    pub fn lanes(&self) -> impl Iterator<Item = (&'static str, Flow, Flow)> {
        let ways = self.came.iter().zip(&self.went);
        ways.zip(Lane::ALL).map(|((came, went), lane)| (lane.label(), came.flow(), went.flow()))
    }

    /// All lanes together: what came, and what went.
    pub fn total(&self) -> (Flow, Flow) {
        let sum = |sum: Flow, more: Flow| Flow {
            messages: sum.messages + more.messages,
            bytes: sum.bytes + more.bytes,
        };
        let none = (Flow::default(), Flow::default());
        self.lanes().fold(none, |(came, went), (_, more, out)| (sum(came, more), sum(went, out)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lane_and_way_has_its_own_count() {
        let traffic = Traffic::default();
        traffic.came(Lane::Bulk, 3, 100);
        traffic.came(Lane::Bulk, 1, 0);
        traffic.went(Lane::System, 1, 10);
        let bulk = traffic.lanes().find(|(name, ..)| *name == "bulk");
        assert_eq!(bulk, Some(("bulk", Flow { messages: 4, bytes: 100 }, Flow::default())));
        let (came, went) = traffic.total();
        assert_eq!((came.bytes, went), (100, Flow { messages: 1, bytes: 10 }));
    }
}
