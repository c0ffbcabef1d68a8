//! How long to wait before trying again: exponential backoff with full jitter.
//!
//! Source: Marc Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015): each wait
//! is drawn uniformly from zero to the ceiling, which spreads a crowd of callers best.

use std::time::Duration;

use rand::{Rng, RngExt};

/// The doubling ceiling of a backoff.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Ceiling of the first wait.
    pub base: Duration,
    /// No ceiling grows beyond this.
    pub cap: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { base: Duration::from_millis(250), cap: Duration::from_secs(30) }
    }
}

/// Failures in a row, and the wait that they earn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Counts one more failure and draws the wait before the next try.
    pub fn fail(&mut self, config: Config, rng: &mut impl Rng) -> Duration {
        let ceiling = config.base.saturating_mul(1 << self.failures.min(20)).min(config.cap);
        self.failures = self.failures.saturating_add(1);
        rng.random_range(Duration::ZERO..=ceiling)
    }

    /// Forgets the failures.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last reset.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{SeedableRng, rngs::StdRng};

    #[test]
    fn waits_stay_under_a_doubling_ceiling_and_use_all_of_it() {
        let mut rng = StdRng::seed_from_u64(1);
        let config = Config::default();
        for failures in 0..40_u32 {
            let ceiling = (250_u64 << failures.min(20)).min(30_000);
            let mut longest = Duration::ZERO;
            for _ in 0..200 {
                let wait = Backoff { failures }.fail(config, &mut rng);
                assert!(wait <= Duration::from_millis(ceiling), "{failures}: {wait:?}");
                longest = longest.max(wait);
            }
            assert!(longest > Duration::from_millis(ceiling * 9 / 10), "{failures}: {longest:?}");
        }
    }

    #[test]
    fn reset_forgets() {
        let mut backoff = Backoff { failures: 9 };
        backoff.reset();
        assert_eq!(backoff.failures(), 0);
    }
}
