//! What clients may do and have at most: what an operator sets, and the machine that holds one client to it.
//!
//! # Settings
//! Texts `NAME=VALUE`; what is not set is as in [`ClientLimits::default`]:
//!
//! ```text
//! topics=100          topics of a socket
//! frame=1MiB          bytes of a frame
//! queue=512KiB        bytes that wait for a client
//! clients=20000       clients of a node, where it has open files for so many
//! accepts=10000       clients accepted a second, and at once
//! ROLE.frames=50/200  frames that a client of this role sends a second, and at once; `off` for as many as it likes
//! ROLE.joins=5/100    likewise the joins among them
//! ROLE.bytes=1MiB     likewise their bytes; without the second number it is as much as the first
//! ```
//!
//! A role is `anonymous`, `user`, `node_operator` or `admin`; without one a rate is set for all four.
//!
//! # Rates
//! Each is a token bucket, and behind it there is a second one of the same size for what the first one refuses. What finds
//! the first one empty is not taken ([`Metered::Limited`]); what finds both empty ends the client ([`Metered::Over`]). So a
//! client that is somewhat too fast reads why, and one that is more than twice too fast is ended.
//!
//! # Invariants
//! 1. After a quiet time a client may do exactly its burst at once; of bytes, one frame more than that.
//! 2. In any time it may do no more than the burst and that time's rate.

use std::collections::BTreeMap;
use std::time::Instant;

use super::channel::MAX_FRAME;
use super::share::{Rate, Share};
use super::token::Role;

/// A rate of what a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Allowance {
    /// In each second.
    pub second: u32,
    /// At once, after a quiet time.
    pub burst: u32,
}

/// What a client of one role may do; `None` is as much as it likes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientRates {
    /// Frames, joins among them.
    pub frames: Option<Allowance>,
    /// Joins.
    pub joins: Option<Allowance>,
    /// Bytes of frames.
    pub bytes: Option<Allowance>,
}

/// What clients of a node may do and have.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientLimits {
    /// Topics that a socket has joined.
    pub topics: usize,
    /// Bytes of a frame.
    pub frame: usize,
    /// Bytes that wait for a client.
    pub queue: usize,
    /// Clients at once.
    pub clients: usize,
    /// Clients accepted a second, and at once.
    pub accepts: usize,
    /// Of clients without a token, users, node operators, admins.
    rates: [ClientRates; ROLES.len()],
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self {
            topics: 100,
            frame: MAX_FRAME,
            queue: 512 << 10,
            clients: 20_000,
            accepts: 10_000,
            rates: [ClientRates::default(); ROLES.len()],
        }
    }
}

/// Whose rates there are, with their words.
const ROLES: [(Option<Role>, &str); 4] = [
    (None, "anonymous"),
    (Some(Role::User), "user"),
    (Some(Role::NodeOperator), "node_operator"),
    (Some(Role::Admin), "admin"),
];

/// Why a text sets no limit. Nothing changed; the operator corrects it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LimitError {
    /// It is not `NAME=VALUE`, or there is no such limit.
    #[error(
        "no such limit: topics, frame, queue, clients or accepts=N, or [ROLE.]frames, [ROLE.]joins or \
         [ROLE.]bytes=N[/BURST], with ROLE anonymous, user, node_operator or admin"
    )]
    Unknown,
    /// The value is no number, or outside of its bounds.
    #[error("{name} is from {least} to {most}")]
    Bounds {
        /// The limit's name.
        name: &'static str,
        /// The least that it may be.
        least: usize,
        /// The most.
        most: usize,
    },
    /// It is no rate.
    #[error(
        "a rate is N or N/BURST, each from 1 to 4294967295 (bytes also with KiB or MiB), or off"
    )]
    Rate,
}

/// A number, of bytes perhaps in KiB or MiB.
fn number(text: &str) -> Option<usize> {
    let sizes = [("KiB", 1 << 10), ("MiB", 1 << 20)];
    let sized = sizes.iter().find_map(|(unit, size)| Some((text.strip_suffix(unit)?, *size)));
    let (digits, size) = sized.unwrap_or((text, 1));
    digits.parse::<usize>().ok()?.checked_mul(size)
}

fn allowance(text: &str) -> Option<Allowance> {
    let (second, burst) = text.split_once('/').unwrap_or((text, text));
    let read = |text| number(text).and_then(|it| u32::try_from(it).ok()).filter(|it| *it > 0);
    Some(Allowance { second: read(second)?, burst: read(burst)? })
}

impl ClientLimits {
    /// Sets one limit, as in this module's head.
    ///
    /// # Errors
    /// [`LimitError`]; nothing changed.
    pub fn set(&mut self, text: &str) -> Result<(), LimitError> {
        let (name, value) = text.split_once('=').ok_or(LimitError::Unknown)?;
        let plain: Option<(&mut usize, &'static str, _)> = match name {
            "topics" => Some((&mut self.topics, "topics", (1, 10_000))),
            "frame" => Some((&mut self.frame, "frame", (1 << 10, MAX_FRAME))),
            "queue" => Some((&mut self.queue, "queue", (16 << 10, 64 << 20))),
            "clients" => Some((&mut self.clients, "clients", (1, 1_000_000))),
            "accepts" => Some((&mut self.accepts, "accepts", (1, 1_000_000))),
            _ => None,
        };
        let Some((limit, name, (least, most))) = plain else { return self.set_rate(name, value) };
        let found = number(value).filter(|found| (least..=most).contains(found));
        *limit = found.ok_or(LimitError::Bounds { name, least, most })?;
        Ok(())
    }

    fn set_rate(&mut self, name: &str, value: &str) -> Result<(), LimitError> {
        let (role, name) = match name.split_once('.') {
            Some((role, name)) => (Some(role), name),
            None => (None, name),
        };
        let known = |role: &str| ROLES.iter().any(|(_, word)| *word == role);
        let field = match name {
            "frames" => |rates: &mut ClientRates, to| rates.frames = to,
            "joins" => |rates: &mut ClientRates, to| rates.joins = to,
            "bytes" => |rates: &mut ClientRates, to| rates.bytes = to,
            _ => return Err(LimitError::Unknown),
        };
        if !role.is_none_or(known) {
            return Err(LimitError::Unknown);
        }
        let to = match value {
            "off" => None,
            value => Some(allowance(value).ok_or(LimitError::Rate)?),
        };
        for (rates, (_, word)) in self.rates.iter_mut().zip(ROLES) {
            if role.is_none_or(|role| role == word) {
                field(rates, to);
            }
        }
        Ok(())
    }

    /// All limits that hold, by name, as [`ClientLimits::set`] takes them; of rates those that are set.
    #[must_use]
    pub fn settings(&self) -> BTreeMap<String, String> {
        let Self { topics, frame, queue, clients, accepts, rates } = self;
        let plain = [
            ("topics", topics),
            ("frame", frame),
            ("queue", queue),
            ("clients", clients),
            ("accepts", accepts),
        ];
        let plain = plain.map(|(name, value)| (name.to_owned(), value.to_string()));
        let rates = rates.iter().zip(ROLES).flat_map(|(rates, (_, role))| {
            let ClientRates { frames, joins, bytes } = rates;
            let of = [("frames", frames), ("joins", joins), ("bytes", bytes)];
            of.into_iter().filter_map(move |(name, rate)| {
                rate.map(|Allowance { second, burst }| {
                    (format!("{role}.{name}"), format!("{second}/{burst}"))
                })
            })
        });
        plain.into_iter().chain(rates).collect()
    }

    /// The rates of a role; of clients without a token where there is none.
    #[must_use]
    pub fn rates(&self, role: Option<Role>) -> ClientRates {
        let found = self.rates.iter().zip(ROLES).find(|(_, (of, _))| *of == role);
        found.map(|(rates, _)| *rates).unwrap_or_default()
    }
}

/// What becomes of something that a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metered {
    /// It is taken.
    Taken,
    /// It is not, and the client is told.
    Limited,
    /// The client is ended.
    Over,
}

/// A rate, and a second one for what it refuses.
#[derive(Clone, Debug)]
struct Bucket([Share; 2]);

impl Bucket {
    fn new(Allowance { second, burst }: Allowance, now: Instant) -> Self {
        // A share is given until it is overdrawn: what brings it below nothing is still given.
        let rate = Rate { second: second.into(), burst: f64::from(burst) - 1.0 };
        Self([Share::new(rate, now); 2])
    }

    fn take(&mut self, cost: u64, now: Instant) -> Metered {
        let free = self.0.iter_mut().zip([Metered::Taken, Metered::Limited]);
        for (share, metered) in free {
            if share.ready(now).is_none() {
                share.spend(cost, now);
                return metered;
            }
        }
        Metered::Over
    }
}

/// What one client has left of its rates.
#[derive(Clone, Debug, Default)]
pub struct ClientMeter {
    rates: ClientRates,
    /// Of frames, joins, bytes.
    buckets: [Option<Bucket>; 3],
}

impl ClientMeter {
    /// Goes by these rates from now on; what was used up of a rate that stays is used up.
    pub fn follow(&mut self, rates: ClientRates, now: Instant) {
        let of = |rates: ClientRates| [rates.frames, rates.joins, rates.bytes];
        let (before, after) = (of(self.rates), of(rates));
        for (bucket, (before, after)) in self.buckets.iter_mut().zip(before.into_iter().zip(after))
        {
            if before != after {
                *bucket = after.map(|allowance| Bucket::new(allowance, now));
            }
        }
        self.rates = rates;
    }

    /// The client sends a frame of so many bytes.
    pub fn frame(&mut self, bytes: usize, now: Instant) -> Metered {
        let [frames, _, of_bytes] = &mut self.buckets;
        take(frames, 1, now).max(take(of_bytes, bytes as u64, now))
    }

    /// The frame is a join.
    pub fn join(&mut self, now: Instant) -> Metered {
        let [_, joins, _] = &mut self.buckets;
        take(joins, 1, now)
    }
}

fn take(bucket: &mut Option<Bucket>, cost: u64, now: Instant) -> Metered {
    bucket.as_mut().map_or(Metered::Taken, |bucket| bucket.take(cost, now))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::proto::tests::start;

    fn limits(settings: &[&str]) -> ClientLimits {
        let mut limits = ClientLimits::default();
        settings.iter().for_each(|text| limits.set(text).expect(text));
        limits
    }

    fn meter(settings: &[&str]) -> ClientMeter {
        let mut meter = ClientMeter::default();
        meter.follow(limits(settings).rates(Some(Role::User)), start());
        meter
    }

    #[test]
    fn each_limit_is_set_by_its_name_and_a_rate_for_one_role_or_all() {
        let set = limits(&["topics=7", "frame=64KiB", "queue=1MiB", "clients=50", "accepts=9"]);
        let found = (set.topics, set.frame, set.queue, set.clients, set.accepts);
        assert_eq!(found, (7, 64 << 10, 1 << 20, 50, 9));
        let set =
            limits(&["frames=10/20", "user.frames=5", "user.bytes=1KiB/2MiB", "admin.frames=off"]);
        let frames = |role| set.rates(role).frames.map(|it| (it.second, it.burst));
        assert_eq!(frames(None), Some((10, 20)));
        assert_eq!(frames(Some(Role::User)), Some((5, 5)));
        assert_eq!(frames(Some(Role::NodeOperator)), Some((10, 20)));
        assert_eq!(frames(Some(Role::Admin)), None);
        let bytes = Allowance { second: 1 << 10, burst: 2 << 20 };
        assert_eq!(set.rates(Some(Role::User)).bytes, Some(bytes));
        assert_eq!(set.rates(None).bytes, None);
        assert_eq!(
            limits(&[]).rates(Some(Role::User)),
            ClientRates::default(),
            "no rate by default"
        );
    }

    #[test]
    fn what_holds_is_listed_as_it_is_set() {
        let set =
            limits(&["topics=7", "frame=64KiB", "user.frames=5", "joins=1/9", "admin.joins=off"]);
        let all = set.settings();
        let found: Vec<_> = all.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let again = limits(&found.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(again, set);
        assert_eq!((all["frame"].as_str(), all["user.frames"].as_str()), ("65536", "5/5"));
        assert!(!all.contains_key("admin.joins"), "{all:?}");
    }

    #[test]
    fn what_is_no_limit_is_refused_and_changes_nothing() {
        let mut set = ClientLimits::default();
        for text in
            ["", "topics", "topic=1", "boss.frames=1", "user.topics=1", "user.=1", ".frames=1"]
        {
            assert_eq!(set.set(text), Err(LimitError::Unknown), "{text}");
        }
        for text in [
            "topics=0",
            "topics=10001",
            "topics=",
            "topics=-1",
            "frame=2MiB",
            "frame=1",
            "queue=1",
            "clients=0",
            "accepts=99999999999999999999",
            "frame=17592186044416MiB",
        ] {
            assert!(matches!(set.set(text), Err(LimitError::Bounds { .. })), "{text}");
        }
        for text in [
            "frames=0",
            "frames=1/0",
            "frames=x",
            "user.bytes=1/2/3",
            "joins=4GiB",
            "joins=5000MiB",
        ] {
            assert_eq!(set.set(text), Err(LimitError::Rate), "{text}");
        }
        assert_eq!(set, ClientLimits::default());
    }

    #[test]
    fn a_burst_is_taken_as_much_again_is_limited_and_then_the_client_is_over() {
        let mut meter = meter(&["frames=2/5"]);
        let mut at = |millis| meter.frame(10, start() + Duration::from_millis(millis));
        let verdicts: Vec<_> = (0..11).map(|_| at(0)).collect();
        assert_eq!(
            verdicts,
            [[Metered::Taken; 5], [Metered::Limited; 5]]
                .concat()
                .into_iter()
                .chain([Metered::Over])
                .collect::<Vec<_>>()
        );
        assert_eq!([at(499), at(500), at(501)], [Metered::Over, Metered::Taken, Metered::Limited]);
        let all_again = [at(60_000), at(60_000), at(60_000), at(60_000), at(60_000), at(60_000)];
        assert_eq!(all_again.iter().filter(|it| **it == Metered::Taken).count(), 5);
    }

    #[test]
    fn joins_and_bytes_have_rates_of_their_own() {
        let mut meter = meter(&["joins=1/2", "bytes=100/1000"]);
        let now = start();
        assert_eq!(
            [meter.join(now), meter.join(now), meter.join(now)],
            [Metered::Taken, Metered::Taken, Metered::Limited]
        );
        assert_eq!(meter.frame(999, now), Metered::Taken);
        assert_eq!(meter.frame(1, now), Metered::Taken);
        assert_eq!(meter.frame(1, now), Metered::Limited);
        assert_eq!(meter.frame(1, now + Duration::from_millis(10)), Metered::Taken);
    }

    #[test]
    fn another_role_goes_by_its_own_rates_and_the_same_one_gets_nothing_anew() {
        let set = limits(&["user.frames=1", "admin.frames=1/3"]);
        let (mut meter, now) = (ClientMeter::default(), start());
        meter.follow(set.rates(None), now);
        assert!((0..1000).all(|_| meter.frame(1, now) == Metered::Taken), "without a rate");
        meter.follow(set.rates(Some(Role::User)), now);
        assert_eq!([meter.frame(1, now), meter.frame(1, now)], [Metered::Taken, Metered::Limited]);
        meter.follow(set.rates(Some(Role::User)), now);
        assert_eq!(meter.frame(1, now), Metered::Over);
        meter.follow(set.rates(Some(Role::Admin)), now);
        assert!((0..3).all(|_| meter.frame(1, now) == Metered::Taken));
        assert_eq!(meter.frame(1, now), Metered::Limited);
    }
}
