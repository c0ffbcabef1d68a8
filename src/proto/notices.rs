//! How often the log repeats itself: one line a cause within a minute, and how many like it were left out.
//!
//! What others do wrong is logged with its cause and its remedy, but they choose how often they do it.
//! Invariant: the causes are words in the code, so memory does not grow with what others send.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);

/// When each cause was last logged, and what was left out since.
#[derive(Debug, Default)]
pub struct Notices {
    logged: BTreeMap<&'static str, (Instant, u64)>,
}

impl Notices {
    /// Counts one occurrence of a cause. `Some` when it is to be logged now: how many before it were not.
    pub fn due(&mut self, cause: &'static str, now: Instant) -> Option<u64> {
        let Some((since, left_out)) = self.logged.get_mut(cause) else {
            self.logged.insert(cause, (now, 0));
            return Some(0);
        };
        if now < *since + MINUTE {
            *left_out = left_out.saturating_add(1);
            return None;
        }
        *since = now;
        Some(std::mem::take(left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::tests::start;

    #[test]
    fn each_cause_is_logged_once_a_minute_with_the_count_of_those_left_out() {
        let (mut notices, now) = (Notices::default(), start());
        assert_eq!(notices.due("origin", now), Some(0));
        assert_eq!(notices.due("host", now), Some(0), "another cause");
        for second in [0, 30, 59] {
            assert_eq!(notices.due("origin", now + Duration::from_secs(second)), None);
        }
        assert_eq!(notices.due("origin", now + MINUTE), Some(3));
        assert_eq!(notices.due("origin", now + MINUTE), None);
        assert_eq!(notices.due("origin", now + 3 * MINUTE), Some(1));
    }
}
