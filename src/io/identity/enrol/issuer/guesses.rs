//! How many proofs failed lately.

use std::time::{Duration, SystemTime};

/// Failed proofs within a window that are answered at once; behind them the answer is to ask later.
const MAX_GUESSES: u32 = 32;
const WINDOW: Duration = Duration::from_secs(60);

/// Counts proofs that failed. Who proves something is not slowed by those who guess. Memory: this.
#[derive(Debug, Default)]
pub(super) struct Guesses {
    since: Option<SystemTime>,
    within: u32,
    total: u64,
}

impl Guesses {
    /// Counts one; in how long to ask again, when there are too many.
    pub(super) fn count(&mut self, now: SystemTime) -> Option<Duration> {
        self.total = self.total.saturating_add(1);
        // A clock that was set back begins a window, too.
        let passed = self.since.and_then(|since| now.duration_since(since).ok());
        let left = passed.and_then(|passed| WINDOW.checked_sub(passed)).filter(|it| !it.is_zero());
        let Some(left) = left else {
            (self.since, self.within) = (Some(now), 1);
            return None;
        };
        self.within = self.within.saturating_add(1);
        (self.within > MAX_GUESSES).then_some(left)
    }

    /// All that were counted.
    pub(super) fn total(&self) -> u64 {
        self.total
    }
}
