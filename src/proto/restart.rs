//! What a supervisor does when a child ends: which children restart, and when it gives up.
//!
//! The strategies and the intensity window are those of OTP's `supervisor` (Erlang/OTP Design
//! Principles, "Supervisor Behaviour"). Invariants: a decision never names a child outside the
//! tree; more than `intensity.restarts` restarts inside `intensity.window` always end in
//! [`Decision::GiveUp`].

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Which siblings go down with a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Only the child that ended restarts.
    OneForOne,
    /// The child and those started after it restart.
    RestForOne,
    /// All children restart.
    OneForAll,
}

/// How many restarts a supervisor bears before it fails itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intensity {
    /// Restarts borne inside the window.
    pub restarts: usize,
    /// Length of the sliding window.
    pub window: Duration,
}

impl Default for Intensity {
    fn default() -> Self {
        Self { restarts: 10, window: Duration::from_secs(10) }
    }
}

/// What to do about a child that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Stop these children from the last to the first, then start them from the first to the last.
    Restart(Range<usize>),
    /// Fail, so that the supervisor above decides.
    GiveUp,
}

/// The machine: one per supervisor.
#[derive(Debug)]
pub struct Restarts {
    strategy: Strategy,
    intensity: Intensity,
    children: usize,
    recent: VecDeque<Instant>,
}

impl Restarts {
    /// A supervisor of `children` children, none of which has ended yet.
    pub fn new(strategy: Strategy, intensity: Intensity, children: usize) -> Self {
        Self { strategy, intensity, children, recent: VecDeque::new() }
    }

    /// Child number `child` (from 0, in starting order) ended, or could not start.
    pub fn ended(&mut self, child: usize, now: Instant) -> Decision {
        let window = self.intensity.window;
        self.recent.retain(|at| now.saturating_duration_since(*at) < window);
        if self.recent.len() >= self.intensity.restarts || child >= self.children {
            return Decision::GiveUp;
        }
        self.recent.push_back(now);
        Decision::Restart(match self.strategy {
            Strategy::OneForOne => child..child + 1,
            Strategy::RestForOne => child..self.children,
            Strategy::OneForAll => 0..self.children,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strategies_choose_the_children() {
        let now = crate::proto::tests::start();
        let decide =
            |strategy, child| Restarts::new(strategy, Intensity::default(), 4).ended(child, now);
        assert_eq!(decide(Strategy::OneForOne, 1), Decision::Restart(1..2));
        assert_eq!(decide(Strategy::RestForOne, 1), Decision::Restart(1..4));
        assert_eq!(decide(Strategy::OneForAll, 1), Decision::Restart(0..4));
        assert_eq!(decide(Strategy::OneForAll, 4), Decision::GiveUp);
    }

    #[test]
    fn the_window_slides() {
        let start = crate::proto::tests::start();
        let intensity = Intensity { restarts: 2, window: Duration::from_secs(10) };
        let mut restarts = Restarts::new(Strategy::OneForOne, intensity, 1);
        let mut at = |s| restarts.ended(0, start + Duration::from_secs(s));
        assert_eq!(at(0), Decision::Restart(0..1));
        assert_eq!(at(9), Decision::Restart(0..1));
        assert_eq!(at(9), Decision::GiveUp);
        assert_eq!(at(10), Decision::Restart(0..1));
        assert_eq!(at(11), Decision::GiveUp);
    }
}
