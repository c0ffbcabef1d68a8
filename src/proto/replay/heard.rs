//! What a log has heard of one publisher: the epochs, one after another, that it can go on from.

use std::collections::VecDeque;

use super::Position;

/// Epochs of a publisher that it has left and a log goes on from, at most.
pub(super) const LEFT: usize = 8;

/// Epochs before those that are remembered, so that they are not taken for new ones.
const OLD: usize = 16;

/// How much of an epoch is held.
#[derive(Debug)]
pub(super) struct Run {
    /// Its latest message.
    pub(super) last: Position,
    /// The first number since a hole or since the log began.
    pub(super) start: u64,
    /// The first number held; one above the latest when none is.
    pub(super) low: u64,
    /// The tag of the number before it, where it was held.
    pub(super) below: Option<u64>,
}

impl Run {
    /// An epoch of which this message is the first that is held.
    pub(super) fn with(stamp: Position) -> Self {
        Self { last: stamp, start: stamp.n, low: stamp.n, below: None }
    }

    /// Whether it is not known how it went on.
    pub(super) fn is_lost(&self) -> bool {
        self.low > self.last.n.saturating_add(1)
    }

    /// Whether nothing of it has come.
    pub(super) fn is_hearsay(&self) -> bool {
        self.start > self.last.n
    }

    /// One that has come so far, and of which nothing is held; `start` is as in a [`Standing`].
    pub(super) fn after(last: Position, start: u64) -> Self {
        Self { last, start, low: last.n.saturating_add(1), below: Some(last.tag) }
    }
}

/// What was heard of a publisher.
#[derive(Debug)]
pub(super) struct Heard {
    /// Epochs that it has left, one after another, each held up to its end, and each but the first from its beginning. The
    /// current one goes on from them, or there are none.
    pub(super) left: VecDeque<Run>,
    pub(super) current: Run,
    /// The epoch before all of these, and how far it came at least.
    pub(super) before: Option<(u32, u64)>,
    /// Epochs before it, as far as they are remembered.
    pub(super) old: VecDeque<u32>,
}

impl Heard {
    pub(super) fn of(current: Run) -> Self {
        Self { left: VecDeque::new(), current, before: None, old: VecDeque::new() }
    }

    pub(super) fn runs(&self) -> impl Iterator<Item = &Run> {
        self.left.iter().chain([&self.current])
    }

    /// The epoch of this number, and its place.
    pub(super) fn run(&self, epoch: u32) -> Option<(usize, &Run)> {
        self.runs().enumerate().find(|(_, run)| run.last.epoch == epoch)
    }

    /// The epoch before the one in this place, and how far it came at least.
    pub(super) fn before(&self, place: usize) -> Option<(u32, u64)> {
        let previous = place.checked_sub(1).and_then(|place| self.left.get(place));
        previous.map_or(self.before, |run| Some((run.last.epoch, run.last.n)))
    }

    /// Whether the publisher has left this epoch.
    pub(super) fn has_left(&self, epoch: u32) -> bool {
        let before = self.before.is_some_and(|(before, _)| before == epoch);
        before || self.old.contains(&epoch) || self.left.iter().any(|run| run.last.epoch == epoch)
    }

    /// Whether this epoch came after that one.
    pub(super) fn follows(&self, epoch: u32, earlier: u32) -> bool {
        let place = |of| self.run(of).map(|(place, _)| place);
        match (place(epoch), place(earlier)) {
            (Some(epoch), Some(earlier)) => epoch > earlier,
            (Some(_), None) => self.has_left(earlier),
            (None, _) => {
                let before = self.before.is_some_and(|(before, _)| before == epoch);
                before && self.old.contains(&earlier)
            }
        }
    }

    /// Goes on from nothing before the epoch in this place.
    pub(super) fn cut(&mut self, place: usize) {
        let before = self.before(place);
        let dropped = self.left.drain(..place.min(self.left.len())).map(|run| run.last.epoch);
        let last = std::mem::replace(&mut self.before, before).map(|(epoch, _)| epoch);
        self.old.extend(
            last.into_iter().chain(dropped).filter(|it| before.is_none_or(|(b, _)| b != *it)),
        );
        self.old.drain(..self.old.len().saturating_sub(OLD));
    }

    /// It is not known how the epoch in this place went on: nothing goes on from it or from those before.
    pub(super) fn lose(&mut self, place: usize) {
        self.cut(place);
        let run = self.left.front_mut().unwrap_or(&mut self.current);
        let beyond = run.last.n.saturating_add(2);
        (run.start, run.low, run.below) = (beyond, beyond, None);
    }

    /// This epoch is current, though it was taken for one of before.
    pub(super) fn forget(&mut self, epoch: u32) {
        self.old.retain(|old| *old != epoch);
        self.before = self.before.filter(|(before, _)| *before != epoch);
    }

    /// Another epoch is the current one. Where it is not known from its beginning, it goes on from none.
    pub(super) fn begin(&mut self, run: Run, whole: bool) {
        self.left.push_back(std::mem::replace(&mut self.current, run));
        self.cut(self.left.len().saturating_sub(if whole { LEFT } else { 0 }));
    }

    /// What came of the current epoch before this is not here.
    pub(super) fn skip(&mut self, run: Run) {
        self.cut(self.left.len());
        self.current = run;
    }
}
