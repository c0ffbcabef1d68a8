//! Processor time: what one peer may cost this node beside its user's traffic, whatever the kind of its words.
//!
//! What a user asked for is free: requests that are handled, broadcasts with a subscriber, messages of actors. Everything
//! else is paid for: the nodes' own words, beats, interest, and what is refused or skipped. What handling a word took is
//! measured where it is handled; what the reader of a link does by itself has a price here, in nanoseconds of a core.
//!
//! Invariants:
//! 1. A peer that costs less than its share never waits: half a second of a core at once, and a tenth of a core.
//! 2. Beyond it, its link is read in pauses, so that its own connection slows it; nothing is lost, no other link waits.
//! 3. One whose pauses go on takes no place any more: its link ends.

use std::time::{Duration, Instant};

use crate::proto::share::{Rate, Share};
use crate::proto::topic::Name;

/// A byte of what is refused or skipped, or of the nodes' own words: it is decrypted and copied.
pub const BYTE: u64 = 2;
/// A piece of a message that is not whole, or without any.
pub const PIECE: u64 = 500;
/// A control message.
pub const CONTROL: u64 = 3_000;
/// A beat, which is answered.
pub const BEAT: u64 = 10_000;
/// A message for actors, until the one that handles it has it.
pub const WORD: u64 = 10_000;
/// A message that is refused or skipped.
pub const REFUSED: u64 = 2_000;
/// A topic or a name that a peer begins or ceases to want.
pub const INTEREST: u64 = 2_000;
/// A pattern that a peer begins or ceases to want: all routes are made anew.
pub const PATTERN: u64 = 20_000;
/// A watch, or its end.
pub const WATCH: u64 = 2_000;
/// Another watch of the same name that is looked at.
pub const WATCHER: u64 = 2;
/// A question to a node itself.
pub const QUESTION: u64 = 15_000;
/// A byte of the changes of ractor's groups, as the gate counts them.
pub const GROUPS: u64 = 1_000;

/// What a peer costs: a tenth of a core.
const SHARE: Rate = Rate { second: 100e6, burst: 500e6 };
/// How long the pauses of a peer may be: half of the time, and 20 s.
const PAUSES: Rate = Rate { second: 500e6, burst: 20e9 };
/// The longest pause, after which something is read in any case: the peer's beats are in it.
const LONGEST: Duration = Duration::from_secs(1);

/// Whether requests of a name are the node's own affair. Its echo stands for any service.
pub fn is_question(name: &Name) -> bool {
    name.as_str().starts_with("xpando:") && ![Name::echo(), Name::bench()].contains(name)
}

/// Whether more is read of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// At once.
    Now,
    /// Then.
    At(Instant),
    /// Not any more.
    Never,
}

/// What one peer has cost, over all its links.
#[derive(Debug)]
pub struct Account {
    time: Share,
    pauses: Share,
}

impl Account {
    /// The account of a peer that has cost nothing.
    pub fn new(now: Instant) -> Self {
        Self { time: Share::new(SHARE, now), pauses: Share::new(PAUSES, now) }
    }

    /// Adds to what the peer has cost, in nanoseconds of a core.
    pub fn spend(&mut self, nanos: u64, now: Instant) {
        self.time.spend(nanos, now);
    }

    /// When more is read.
    pub fn turn(&mut self, now: Instant) -> Turn {
        let Some(ready) = self.time.ready(now) else { return Turn::Now };
        let until = ready.min(now + LONGEST);
        let pause = until.saturating_duration_since(now).as_nanos();
        self.pauses.spend(u64::try_from(pause).unwrap_or(u64::MAX), now);
        if self.pauses.ready(now).is_some() { Turn::Never } else { Turn::At(until) }
    }

    /// Whether nothing that the peer has cost counts any more.
    pub fn is_settled(&self, now: Instant) -> bool {
        self.time.is_whole(now) && self.pauses.is_whole(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::tests::start;

    /// Spends as fast as it may; the part of a core, and when its link ended.
    fn flood(cost: u64, seconds: u64) -> (f64, Option<Duration>) {
        let (mut account, mut now, mut spent) = (Account::new(start()), start(), 0);
        let end = now + Duration::from_secs(seconds);
        let part = |spent: u64| spent as f64 / 1e9 / seconds as f64;
        while now < end {
            match account.turn(now) {
                Turn::Now => {
                    account.spend(cost, now);
                    spent += cost;
                    now += Duration::from_nanos(cost);
                }
                Turn::At(until) => now = until,
                Turn::Never => return (part(spent), Some(now - start())),
            }
        }
        (part(spent), None)
    }

    #[test]
    fn a_flood_costs_a_tenth_of_a_core_and_ends() {
        for cost in [1_000_000, 60_000_000] {
            let (part, ended) = flood(cost, 10);
            assert!(part < 0.2 && ended.is_none(), "{part} {ended:?}");
            let (_, ended) = flood(cost, 120);
            let ended = ended.expect("it goes on");
            assert!(
                ended > Duration::from_secs(30) && ended < Duration::from_secs(60),
                "{ended:?}"
            );
        }
    }

    #[test]
    fn one_that_costs_less_never_waits() {
        let (mut account, mut now) = (Account::new(start()), start());
        for round in 0..10_000 {
            // Of ten steps one is five times as much.
            account.spend(if round % 10 == 0 { 4_500_000 } else { 500_000 }, now);
            assert_eq!(account.turn(now), Turn::Now);
            now += Duration::from_millis(10);
        }
        account.spend(500_000_000, now + Duration::from_secs(10));
        assert_eq!(account.turn(now + Duration::from_secs(10)), Turn::Now, "a burst");
    }

    #[test]
    fn one_that_asks_for_a_little_too_much_is_slowed_and_never_cut() {
        let (mut account, mut now) = (Account::new(start()), start());
        let mut waited = Duration::ZERO;
        for _ in 0..100_000 {
            account.spend(1_500_000, now);
            now += Duration::from_millis(10);
            match account.turn(now) {
                Turn::Now => {}
                Turn::At(until) => {
                    waited += until - now;
                    now = until;
                }
                Turn::Never => panic!("cut"),
            }
        }
        assert!(waited > Duration::from_secs(100), "{waited:?}");
    }

    #[test]
    fn no_pause_is_longer_than_a_second() {
        let (mut account, now) = (Account::new(start()), start());
        account.spend(60_000_000_000, now);
        assert_eq!(account.turn(now), Turn::At(now + LONGEST));
        assert!(
            !account.is_settled(now + 60 * LONGEST) && account.is_settled(now + 1200 * LONGEST)
        );
    }

    #[test]
    fn what_the_node_itself_answers_is_a_question_and_its_echo_is_not() {
        let is = |name: &str| is_question(&name.parse().expect("valid"));
        assert!(is_question(&Name::sight()) && is_question(&Name::channels()));
        assert!(!is_question(&Name::echo()) && !is_question(&Name::bench()) && !is("work"));
    }
}
