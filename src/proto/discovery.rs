//! Which beacons to believe, and when to send our own and share what we know.
//!
//! The machine behind Discovery. Invariants:
//! 1. A beacon becomes a hint only after every screening verdict and the signature check passed.
//! 2. Per sender, (incarnation, sequence) of believed beacons only rises: a replay is never a hint.
//! 3. Signature checks are bounded per second, whatever arrives.
//! 4. Memory is bounded: at most [`SENDERS`] senders are remembered.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::StdRng;

use crate::proto::beacon::Beacon;
use crate::proto::node::{ClusterId, Incarnation, NodeName};

/// Senders remembered at most; beyond it beacons of new senders are dropped as `Flood`.
pub const SENDERS: usize = 4096;

/// Settings of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Shortest wait between two of our beacons.
    pub beacon_min: Duration,
    /// Longest wait between two of our beacons.
    pub beacon_max: Duration,
    /// Wait between two tellings of known peers to one random peer.
    pub share: Duration,
    /// How far a beacon's time may be from ours.
    pub skew: Duration,
    /// Signatures checked per second at most.
    pub checks: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            beacon_min: Duration::from_secs(1),
            beacon_max: Duration::from_secs(5),
            share: Duration::from_secs(5),
            skew: Duration::from_secs(120),
            checks: 500,
        }
    }
}

/// What became of a received datagram; each is a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Believed: its sender is a hint.
    Accepted,
    /// Not a beacon.
    Malformed,
    /// Of another version of the format.
    Version,
    /// Of another cluster.
    Foreign,
    /// Our own, heard back.
    Echo,
    /// Heard before, or older than one heard before.
    Replayed,
    /// Sent too long ago, or in the future: a recording, or a clock that is off.
    Stale,
    /// The signature or the certificate does not hold, or names another node.
    Forged,
    /// More than can be checked: dropped unread.
    Flood,
}

impl Verdict {
    /// The verdict as a metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Malformed => "malformed",
            Self::Version => "version",
            Self::Foreign => "foreign",
            Self::Echo => "echo",
            Self::Replayed => "replayed",
            Self::Stale => "stale",
            Self::Forged => "forged",
            Self::Flood => "flood",
        }
    }
}

/// What the machine wants done at its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a beacon with this sequence number.
    Beacon(u64),
    /// Tell one random linked peer which peers are known.
    Share,
}

/// The machine.
#[derive(Debug)]
pub struct Discovery {
    config: Config,
    me: NodeName,
    cluster: ClusterId,
    heard: BTreeMap<NodeName, (Incarnation, u64)>,
    sequence: u64,
    beacon_at: Option<Instant>,
    share_at: Instant,
    checks_since: Instant,
    checks: u32,
    rng: StdRng,
}

impl Discovery {
    /// A node that has heard nothing yet. It sends its first beacon at once, or never when
    /// `beacons` is false. `sequence` must be at least that of any beacon this life has sent.
    #[must_use]
    pub fn new(
        config: Config,
        me: NodeName,
        cluster: ClusterId,
        beacons: bool,
        sequence: u64,
        now: Instant,
        rng: StdRng,
    ) -> Self {
        Self {
            config,
            me,
            cluster,
            heard: BTreeMap::new(),
            sequence,
            beacon_at: beacons.then_some(now),
            share_at: now + config.share,
            checks_since: now,
            checks: 0,
            rng,
        }
    }

    /// Judges what a beacon says before its signature is checked; `wall` is our clock in
    /// milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// The [`Verdict`] that ends it.
    pub fn screen(&mut self, beacon: &Beacon, wall: u64, now: Instant) -> Result<(), Verdict> {
        let contact = &beacon.contact;
        if beacon.cluster != self.cluster {
            return Err(Verdict::Foreign);
        }
        if contact.name == self.me {
            return Err(Verdict::Echo);
        }
        if wall.abs_diff(beacon.sent) > u64::try_from(self.config.skew.as_millis()).unwrap_or(0) {
            return Err(Verdict::Stale);
        }
        match self.heard.get(&contact.name) {
            Some(last) if *last >= (contact.incarnation, beacon.sequence) => {
                return Err(Verdict::Replayed);
            }
            None if self.heard.len() >= SENDERS => return Err(Verdict::Flood),
            _ => {}
        }
        if now.saturating_duration_since(self.checks_since) >= Duration::from_secs(1) {
            (self.checks_since, self.checks) = (now, 0);
        }
        self.checks += 1;
        if self.checks > self.config.checks { Err(Verdict::Flood) } else { Ok(()) }
    }

    /// A screened beacon's signature holds: remember it.
    pub fn believe(&mut self, beacon: &Beacon) {
        let contact = &beacon.contact;
        self.heard.insert(contact.name.clone(), (contact.incarnation, beacon.sequence));
    }

    /// When the machine wants its next [`Discovery::tick`].
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.beacon_at.map_or(self.share_at, |at| at.min(self.share_at))
    }

    /// What is due.
    pub fn tick(&mut self, now: Instant, out: &mut Vec<Output>) {
        if self.beacon_at.is_some_and(|at| at <= now) {
            self.sequence += 1;
            out.push(Output::Beacon(self.sequence));
            let wait = self.rng.random_range(self.config.beacon_min..=self.config.beacon_max);
            self.beacon_at = Some(now + wait);
        }
        if self.share_at <= now {
            out.push(Output::Share);
            self.share_at = now + self.config.share.mul_f64(self.rng.random_range(0.8..=1.2));
        }
    }

    /// One of `count` things, at random.
    pub fn pick(&mut self, count: usize) -> Option<usize> {
        (count > 0).then(|| self.rng.random_range(0..count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::node::{Contact, KeyId};
    use crate::proto::tests::start;
    use rand::SeedableRng;

    const WALL: u64 = 1_700_000_000_000;

    fn machine(beacons: bool, now: Instant) -> Discovery {
        let me = "me@127.0.0.1".parse().expect("valid");
        let rng = StdRng::seed_from_u64(4);
        Discovery::new(Config::default(), me, KeyId([1; 16]), beacons, 0, now, rng)
    }

    fn beacon(name: &str, incarnation: u64, sequence: u64) -> Beacon {
        Beacon {
            cluster: KeyId([1; 16]),
            contact: Contact {
                name: name.parse().expect("valid"),
                address: "127.0.0.1:4697".parse().expect("valid"),
                incarnation: Incarnation(incarnation),
            },
            sequence,
            sent: WALL,
        }
    }

    #[test]
    fn foreign_echoed_and_stale_beacons_are_screened_out() {
        let now = start();
        let mut discovery = machine(true, now);
        let mut screen = |beacon: &Beacon| discovery.screen(beacon, WALL, now);
        let good = beacon("a@127.0.0.1", 1, 1);
        assert_eq!(screen(&good), Ok(()));
        assert_eq!(
            screen(&Beacon { cluster: KeyId([2; 16]), ..good.clone() }),
            Err(Verdict::Foreign)
        );
        assert_eq!(screen(&beacon("me@127.0.0.1", 1, 1)), Err(Verdict::Echo));
        for off in [WALL - 120_001, WALL + 120_001] {
            assert_eq!(screen(&Beacon { sent: off, ..good.clone() }), Err(Verdict::Stale));
        }
    }

    #[test]
    fn only_rising_sequences_pass_and_only_believed_ones_count() {
        let now = start();
        let mut discovery = machine(true, now);
        let mut hear = |incarnation, sequence, believe| {
            let beacon = beacon("a@127.0.0.1", incarnation, sequence);
            let verdict = discovery.screen(&beacon, WALL, now);
            if believe && verdict.is_ok() {
                discovery.believe(&beacon);
            }
            verdict
        };
        assert_eq!(hear(1, 9, false), Ok(()), "a forged one must not silence the genuine");
        assert_eq!(hear(1, 5, true), Ok(()));
        assert_eq!(hear(1, 5, true), Err(Verdict::Replayed));
        assert_eq!(hear(1, 4, true), Err(Verdict::Replayed));
        assert_eq!(hear(2, 1, true), Ok(()));
        assert_eq!(hear(1, 6, true), Err(Verdict::Replayed));
    }

    #[test]
    fn checks_and_memory_are_bounded() {
        let now = start();
        let mut discovery = machine(true, now);
        let passed = |discovery: &mut Discovery, at| {
            (0..2000)
                .filter(|n| discovery.screen(&beacon("a@h", 1, n + 1), WALL, at).is_ok())
                .count()
        };
        assert_eq!(passed(&mut discovery, now), 500);
        assert_eq!(passed(&mut discovery, now + Duration::from_secs(1)), 500);
        for n in 0..SENDERS {
            discovery.believe(&beacon(&format!("n{n}@h"), 1, 1));
        }
        let later = now + Duration::from_secs(9);
        assert_eq!(discovery.screen(&beacon("new@h", 1, 1), WALL, later), Err(Verdict::Flood));
    }

    #[test]
    fn the_first_beacon_goes_at_once_and_then_every_one_to_five_seconds() {
        let mut now = start();
        let mut discovery = machine(true, now);
        let (mut out, mut last, mut expected) = (Vec::new(), None::<Instant>, 0);
        for _ in 0..200 {
            now = discovery.deadline();
            out.clear();
            discovery.tick(now, &mut out);
            assert!(!out.is_empty(), "a deadline is a promise");
            for output in &out {
                if let Output::Beacon(sequence) = output {
                    expected += 1;
                    assert_eq!(*sequence, expected);
                    if let Some(last) = last.replace(now) {
                        let wait = now - last;
                        assert!(wait >= Duration::from_secs(1) && wait <= Duration::from_secs(5));
                    }
                }
            }
        }
        assert!(expected > 100 && out.len() < 3);
        let mut silent = machine(false, now);
        out.clear();
        silent.tick(now + Duration::from_secs(60), &mut out);
        assert_eq!(out, [Output::Share]);
    }
}
