//! The round trips of one link: those that were not sampled yet, and what is shown of the last ones.

use std::collections::VecDeque;
use std::time::Duration;

use super::RoundTrip;

/// Round-trip times kept.
const KEPT: usize = 128;
/// Answers kept until they are asked for.
const PONGS: usize = 16;

/// The round trips of one link.
#[derive(Debug, Default)]
pub struct Trips {
    pongs: VecDeque<Duration>,
    last: VecDeque<Duration>,
}

impl Trips {
    /// A beat came back after this time.
    pub fn push(&mut self, took: Duration) {
        for (times, kept) in [(&mut self.pongs, PONGS), (&mut self.last, KEPT)] {
            times.push_back(took);
            if times.len() > kept {
                times.pop_front();
            }
        }
    }

    /// The round trips of answers since the last call, each once: who samples them must neither miss one nor count one
    /// twice.
    pub fn pongs(&mut self) -> Vec<Duration> {
        self.pongs.drain(..).collect()
    }

    /// How long beats take there and back; `None` before the first came back.
    pub fn measured(&self) -> Option<RoundTrip> {
        let last = *self.last.back()?;
        let mut sorted: Vec<_> = self.last.iter().copied().collect();
        sorted.sort_unstable();
        let at = |percent: usize| sorted.get((sorted.len() - 1) * percent / 100).copied();
        Some(RoundTrip { last, p50: at(50)?, p99: at(99)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_is_sampled_once_and_a_flood_is_bounded() {
        let mut trips = Trips::default();
        [30, 50].map(Duration::from_millis).into_iter().for_each(|took| trips.push(took));
        assert_eq!(trips.pongs(), [30, 50].map(Duration::from_millis), "two within one look");
        assert!(trips.pongs().is_empty());
        (0..100).for_each(|_| trips.push(Duration::ZERO));
        assert_eq!(trips.pongs().len(), PONGS, "a flood is bounded");
    }
}
