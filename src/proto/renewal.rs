//! When a node's certificate is renewed.
//!
//! Pure. A certificate is renewed at a random point between a half and four fifths of its life, and before anybody would be warned of its end ([`SOON`]), so that the nodes of a cluster
//! that were issued together do not ask together, and a fifth is left for what goes wrong; at once, within a second and a half, when
//! another authority issues than the one that signed it, or the cluster wants it replaced. Where it could not be renewed it is
//! tried again, after longer and longer waits.
//!
//! Invariants: one attempt at a time; the point is drawn once for each certificate; waits grow from `FIRST_WAIT` to
//! `LAST_WAIT`; time that steps is followed, for a certificate's dates are of the wall clock and waits are not.

use std::time::{Duration, Instant, SystemTime};

use rand::{Rng, RngExt as _};

/// Somebody is warned of a certificate when so much of its time is left, or a third of its life.
pub const SOON: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Of its life, when a certificate is renewed.
const FIRST_SHARE: f64 = 0.5;
/// At the latest.
const LAST_SHARE: f64 = 0.8;
/// Within so much time all nodes ask when all are to.
const SPREAD: Duration = Duration::from_millis(1500);
/// Before the second attempt.
const FIRST_WAIT: Duration = Duration::from_secs(2);
/// Between later attempts, at most.
const LAST_WAIT: Duration = Duration::from_secs(3600);

/// What is known of the certificate that is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its first valid second.
    pub from: SystemTime,
    /// Its last.
    pub until: SystemTime,
    /// It is to be replaced now, whatever its dates.
    pub outdated: bool,
}

/// The times of one node's certificate.
#[derive(Debug, Default)]
pub struct Renewal {
    /// The certificate that this is about, and from when on it is renewed.
    drawn: Option<(Held, SystemTime)>,
    /// Not before then: attempts wait, or all nodes ask.
    not_before: Option<Instant>,
    failed: u32,
    under_way: bool,
}

impl Renewal {
    /// Whether to ask for another certificate now; then one attempt is under way.
    pub fn due(&mut self, held: Held, wall: SystemTime, now: Instant, rng: &mut impl Rng) -> bool {
        if self.drawn.is_none_or(|(drawn, _)| drawn != held) {
            let life = held.until.duration_since(held.from).unwrap_or_default();
            let share = rng.random_range(FIRST_SHARE..LAST_SHARE);
            // A hundredth of its life before somebody is warned.
            let latest = held.until - SOON.min(life / 3) - life / 100;
            self.drawn = Some((held, (held.from + life.mul_f64(share)).min(latest)));
            self.failed = 0;
            self.not_before =
                held.outdated.then(|| now + SPREAD.mul_f64(rng.random_range(0.0..1.0)));
        }
        let since = self.drawn.map(|(_, since)| since);
        let wanted = held.outdated || since.is_some_and(|since| wall >= since);
        let due = wanted && !self.under_way && self.not_before.is_none_or(|at| at <= now);
        self.under_way |= due;
        due
    }

    /// The attempt is over; the next certificate is another one, if there was one.
    pub fn ended(&mut self, renewed: bool, now: Instant, rng: &mut impl Rng) {
        self.under_way = false;
        if renewed {
            return;
        }
        let wait = FIRST_WAIT.saturating_mul(2_u32.saturating_pow(self.failed)).min(LAST_WAIT);
        self.failed = self.failed.saturating_add(1);
        self.not_before = Some(now + wait.mul_f64(rng.random_range(0.5..1.0)));
    }

    /// How many attempts have failed since the certificate is in force.
    pub fn failures(&self) -> u32 {
        self.failed
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;
    use crate::proto::tests::start;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn held(days: u32) -> Held {
        let from = SystemTime::UNIX_EPOCH + 20_000 * DAY;
        Held { from, until: from + days * DAY, outdated: false }
    }

    #[test]
    fn a_certificate_is_renewed_once_between_a_half_and_four_fifths_of_its_life() {
        let (held, now) = (held(100), start());
        let mut points = Vec::new();
        for seed in 0..50 {
            let (mut renewal, rng) = (Renewal::default(), &mut StdRng::seed_from_u64(seed));
            let mut due = |day| renewal.due(held, held.from + day * DAY, now, rng);
            let day = (0..100).find(|day| due(*day)).expect("before its end");
            assert!(!due(day + 1), "one attempt is under way");
            points.push(day);
        }
        assert!(points.iter().all(|day| (50..=69).contains(day)), "{points:?}");
        points.sort_unstable();
        points.dedup();
        assert!(points.len() > 10, "they are spread: {points:?}");
        let (mut renewal, rng) = (Renewal::default(), &mut StdRng::seed_from_u64(4));
        let long = Held { until: held.from + 1000 * DAY, ..held };
        let day = (0..1000).find(|day| renewal.due(long, held.from + *day * DAY, now, rng));
        assert!(day.is_some_and(|day| (500..=800).contains(&day)), "{day:?}");
    }

    #[test]
    fn all_are_replaced_at_once_when_the_cluster_wants_it_but_not_together() {
        let outdated = Held { outdated: true, ..held(100) };
        let mut waits = Vec::new();
        for seed in 0..20 {
            let (mut renewal, rng) = (Renewal::default(), &mut StdRng::seed_from_u64(seed));
            let mut due =
                |ms| renewal.due(outdated, outdated.from, start() + Duration::from_millis(ms), rng);
            waits.push((0..2000).find(|ms| due(*ms)).expect("within two seconds"));
        }
        assert!(waits.iter().all(|ms| *ms <= 1500));
        assert!(waits.iter().max().expect("some") - waits.iter().min().expect("some") > 500);
    }

    #[test]
    fn what_fails_is_tried_again_later_and_later_until_there_is_another_certificate() {
        let (old, rng) = (held(10), &mut StdRng::seed_from_u64(1));
        let (mut renewal, mut now, wall) = (Renewal::default(), start(), old.from + 9 * DAY);
        let mut waits = Vec::new();
        for _ in 0..20 {
            let before = now;
            while !renewal.due(old, wall, now, rng) {
                now += Duration::from_secs(1);
            }
            waits.push(now.duration_since(before));
            renewal.ended(false, now, rng);
        }
        assert!(waits[1] <= FIRST_WAIT && waits[3] > waits[1], "{waits:?}");
        assert!(waits.iter().all(|wait| *wait <= LAST_WAIT));
        assert!(waits[19] > LAST_WAIT / 3 && renewal.failures() == 20);
        let new = Held { from: wall, until: wall + 10 * DAY, outdated: false };
        assert!(!renewal.due(new, wall, now, rng) && renewal.failures() == 0);
        assert!(renewal.due(new, wall + 9 * DAY, now, rng), "also after its end");
    }
}
