//! What a topic takes: into its log, and onto the disk where that is to be.
//!
//! Invariants: a message is taken once, with an index that is one above that of the message before, or more where something
//! was lost; the logs of all topics hold at most [`LOGGED`] bytes and what one message adds.

use std::sync::{Arc, OnceLock};

use super::{LOGGED, TopicTask};
use crate::actors::history_log::Taking;
use crate::io::clock;
use crate::io::metrics::Count;
use crate::proto::channel::Payload;
use crate::proto::node::NodeName;
use crate::proto::replay::{Bounds, Cursor, Position, Standing, Verdict};

/// What a log of so many messages holds: the default's share for each 512 of them, four shares at most.
pub(super) fn bounds(count: usize) -> Bounds {
    let Bounds { entries, bytes } = Bounds::default();
    Bounds { entries: count, bytes: bytes * count.div_ceil(entries).min(4) }
}

/// By the wall clock, in milliseconds since the Unix epoch.
pub(super) fn now() -> u64 {
    clock::millis()
}

/// A message as it was told, for those who missed it.
pub(super) struct Logged {
    /// Its place among those of the topic at this node.
    pub(super) index: u64,
    /// When this node took it, in milliseconds since the Unix epoch.
    pub(super) at: u64,
    /// Bytes.
    pub(super) cost: usize,
    pub(super) event: String,
    pub(super) payload: Payload,
    /// The member that is not told, which has said it.
    pub(super) except: Option<u64>,
    /// Where a member stands that has seen it; none for what has no number.
    pub(super) cursor: OnceLock<String>,
}

impl Logged {
    pub(super) fn new(index: u64, at: u64, cost: usize, event: String, payload: Payload) -> Self {
        Self { index, at, cost, event, payload, except: None, cursor: OnceLock::new() }
    }

    /// Who has seen it stands here.
    pub(super) fn stand(&self, cursor: &Cursor) {
        self.cursor.get_or_init(|| cursor.to_string());
    }
}

impl TopicTask {
    /// Takes a message into the log, and onto the disk where that is to be. False when it was there.
    pub(super) fn keep(
        &mut self,
        from: &NodeName,
        stamp: Position,
        message: &[u8],
        kept: &Arc<Logged>,
    ) -> bool {
        let before = self.log.cost();
        let epoch = self.log.latest(from).map(|latest| latest.epoch);
        {
            let kept_on = self.shared.recorder.as_ref().zip(self.tape.as_ref());
            let taking = kept_on.map(|(recorder, tape)| recorder.take(tape, self.index));
            let begins = taking.as_ref().is_some_and(Taking::begins);
            let standing = if begins { self.log.stands() } else { Standing::default() };
            if self.log.push(from, stamp, kept.cost, kept.clone()) == Verdict::Ignored {
                return false;
            }
            if let Some(taking) = taking {
                taking.append(kept.at, from, message, standing);
            }
        }
        self.epoch_began |= epoch.is_some_and(|epoch| epoch != stamp.epoch);
        (self.taken, self.index) = (self.taken + 1, self.index + 1);
        self.older |= self.tape.is_some() && self.taken > self.log.len();
        kept.stand(self.log.cursor());
        // What is kept for others displaces little.
        let lent = self.whole && self.members.is_empty();
        if self.shared.count(before, self.log.cost()) > if lent { LOGGED / 2 } else { LOGGED } {
            self.cut();
        }
        self.expire();
        true
    }

    /// The logs of all topics hold too much: this one lets go of half.
    fn cut(&mut self) {
        let before = self.log.cost();
        self.short = true;
        self.log.cut(before / 2);
        self.shared.count(before, self.log.cost());
        self.shared.metrics.count(Count::Channels, "history_cut");
    }

    /// Nothing of the past can be resumed from here on.
    pub(super) fn forget(&mut self) {
        self.forgot = true;
        // At least one.
        (self.taken, self.index) = (self.taken + 1, self.index + 1);
        self.log.missed();
        self.starts.clear();
    }
}
