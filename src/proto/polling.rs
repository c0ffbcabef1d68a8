//! When a document is fetched again that somebody else publishes, such as an issuer's key set.
//!
//! Pure. Invariants: one fetch at a time; after one that was good the next is due when the document says (its `max-age`,
//! between `SHORTEST` and `LONGEST`; `USUAL` if it says nothing), a little earlier at random, so that nodes do not ask
//! together; what somebody misses in the document brings that forward, however many miss however much, to `HINTED` after
//! the last fetch; while fetches fail, nothing brings the next one forward, and waits grow to `LAST_WAIT`.

use std::time::{Duration, Instant};

use rand::{Rng, RngExt as _};

use super::backoff::{self, Backoff};

/// Between two fetches that were good, at least.
const SHORTEST: Duration = Duration::from_secs(60);
/// At most.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// Where the document does not say.
const USUAL: Duration = Duration::from_secs(5 * 60);
/// From one fetch to the next when something is missed.
const HINTED: Duration = Duration::from_secs(30);
/// Waits after failures.
const WAITS: backoff::Config =
    backoff::Config { base: Duration::from_secs(2), cap: Duration::from_secs(60) };
/// A fetch that has not ended by then never will: who was at it is gone.
const LOST: Duration = Duration::from_secs(60);

/// The fetches of one document.
#[derive(Debug)]
pub struct Polling {
    next: Instant,
    /// When the last fetch began.
    began: Option<Instant>,
    under_way: bool,
    backoff: Backoff,
}

impl Polling {
    /// Due at once.
    pub fn new(now: Instant) -> Self {
        Self { next: now, began: None, under_way: false, backoff: Backoff::default() }
    }

    /// Whether to fetch now; then a fetch is under way. `missed`: somebody looked for what the document has not.
    pub fn due(&mut self, missed: bool, now: Instant) -> bool {
        let since = |wait| self.began.is_none_or(|began| now >= began + wait);
        let hinted = missed && self.backoff.failures() == 0 && since(HINTED);
        let busy = self.under_way && !since(LOST);
        let due = !busy && (now >= self.next || hinted);
        if due {
            (self.began, self.under_way) = (Some(now), true);
        }
        due
    }

    /// The fetch was good, and the document says how long it is.
    pub fn fetched(&mut self, max_age: Option<Duration>, now: Instant, rng: &mut impl Rng) {
        self.backoff.reset();
        self.under_way = false;
        let wait = max_age.unwrap_or(USUAL).clamp(SHORTEST, LONGEST);
        self.next = now + wait.mul_f64(rng.random_range(0.9..1.0));
    }

    /// The fetch failed, or brought something else.
    pub fn failed(&mut self, now: Instant, rng: &mut impl Rng) {
        self.under_way = false;
        self.next = now + self.backoff.fail(WAITS, rng);
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;
    use crate::proto::tests::start;

    fn second(at: u64) -> Instant {
        start() + Duration::from_secs(at)
    }

    #[test]
    fn a_document_is_fetched_again_when_it_says_so_within_bounds() {
        let rng = &mut StdRng::seed_from_u64(1);
        for (says, seconds) in
            [(None, 300), (Some(0), 60), (Some(600), 600), (Some(u64::MAX), 86_400)]
        {
            let mut polling = Polling::new(second(0));
            assert!(
                polling.due(false, second(0)) && !polling.due(true, second(9)),
                "one at a time"
            );
            polling.fetched(says.map(Duration::from_secs), second(10), rng);
            assert!(!polling.due(false, second(10 + seconds * 9 / 10 - 1)), "{seconds}");
            assert!(polling.due(false, second(10 + seconds)), "{seconds}");
        }
    }

    #[test]
    fn what_is_missed_brings_it_forward_to_half_a_minute_and_no_more() {
        let rng = &mut StdRng::seed_from_u64(2);
        let mut polling = Polling::new(second(0));
        assert!(polling.due(false, second(0)));
        polling.fetched(Some(LONGEST), second(1), rng);
        let fetches = (2..3600).filter(|at| {
            let due = polling.due(true, second(*at));
            if due {
                polling.fetched(Some(LONGEST), second(*at), rng);
            }
            due
        });
        assert_eq!(fetches.count(), 119, "one in half a minute");
        assert!(!polling.due(false, second(3700)));
    }

    #[test]
    fn failures_are_tried_again_after_longer_waits_whatever_is_missed() {
        let rng = &mut StdRng::seed_from_u64(3);
        let (mut polling, mut tries, mut last) = (Polling::new(second(0)), 0, 0);
        for at in 0..7200 {
            if polling.due(true, second(at)) {
                assert!(at == 0 || at - last <= 61, "{at}");
                (tries, last) = (tries + 1, at);
                polling.failed(second(at), rng);
            }
        }
        assert!((100..400).contains(&tries), "{tries}");
        assert!(polling.due(false, second(7300)));
        polling.fetched(None, second(7300), rng);
        assert!(!polling.due(false, second(7500)) && polling.due(true, second(7500)));
    }

    #[test]
    fn a_fetch_that_got_lost_is_not_waited_for() {
        let mut polling = Polling::new(second(0));
        assert!(polling.due(false, second(0)));
        assert!(!polling.due(false, second(59)) && polling.due(false, second(60)));
    }
}
