//! How a publication says whom of its own node it is not for, without saying more to anybody else.
//!
//! Each number of a publisher has a tag that nobody can guess, so that no cursor can be made up
//! ([`replay`](crate::proto::replay)). Here it is a keyed hash (SipHash, its key drawn by each process) of topic, epoch and
//! number, combined by XOR with the number of the member that is not told, plus one; zero is nobody. The node that drew the
//! key reads it back; to any other one the tag is as random as before, and the message is for all of its members.

use std::hash::{BuildHasher, RandomState};

use crate::proto::replay::Position;
use crate::proto::topic::Topic;

/// The key.
#[derive(Clone, Default)]
pub(super) struct Marks(RandomState);

impl Marks {
    fn hash(&self, topic: &Topic, stamp: &Position) -> u64 {
        self.0.hash_one((topic, stamp.epoch, stamp.n))
    }

    /// The tag of a publication that is not for this member.
    pub(super) fn tag(&self, topic: &Topic, stamp: &Position, except: Option<u64>) -> u64 {
        self.hash(topic, stamp) ^ except.map_or(0, |id| id.wrapping_add(1))
    }

    /// Whom it is not for; of other publishers' tags any number.
    pub(super) fn read(&self, topic: &Topic, stamp: &Position) -> Option<u64> {
        (self.hash(topic, stamp) ^ stamp.tag).checked_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_made_a_mark_reads_it() {
        let (ours, others) = (Marks::default(), Marks::default());
        let topic: Topic = "room:1".parse().expect("a topic");
        let at = |n| Position { epoch: 1, n, tag: 0 };
        let tagged = |n, except| Position { tag: ours.tag(&topic, &at(n), except), ..at(n) };
        for except in [None, Some(0), Some(7)] {
            let stamp = tagged(1, except);
            assert_eq!(ours.read(&topic, &stamp), except);
            assert_ne!(others.read(&topic, &stamp), except);
            // It says nothing under another number or on another topic.
            assert_ne!(ours.read(&topic, &Position { n: 2, ..stamp }), except);
            assert_ne!(ours.read(&"room:2".parse().expect("a topic"), &stamp), except);
        }
    }
}
