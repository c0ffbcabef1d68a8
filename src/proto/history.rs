//! History: how much of a topic is kept, and what of it a join asks for.
//!
//! A [`Retention`] is a pattern and what holds for its topics, as text `PATTERN=COUNT,AGE[,disk]`. Of the patterns that
//! cover a topic the most specific one counts, of equal ones the last; a topic that none covers has the default.
//!
//! Invariants: a [`Rule`] keeps 1 to `MAX_COUNT` messages (in memory `MAX_IN_MEMORY`) for one second to 366 days; an
//! [`Ask`] brings at most [`MAX_ASKED`] messages of at most [`MAX_BYTES`].

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::proto::topic::{Pattern, Topic};

pub mod chunk;
pub mod words;

/// Messages of a topic that are kept on disk, at most.
const MAX_COUNT: usize = 10_000_000;
/// Likewise in memory.
const MAX_IN_MEMORY: usize = 100_000;
/// Messages that a join is given of the past, at most.
pub const MAX_ASKED: usize = 1000;
/// What they cost, at most, in bytes.
pub const MAX_BYTES: usize = 4 * 1024 * 1024;
/// Retentions of a node, at most.
const MAX_RULES: usize = 256;
const MAX_AGE: Duration = Duration::from_secs(366 * 24 * 3600);
/// Seconds of a unit.
const UNITS: [(char, u64); 4] = [('s', 1), ('m', 60), ('h', 3600), ('d', 24 * 3600)];

/// How much of a topic is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Messages, at most.
    pub count: usize,
    /// Their age, at most, and how long a topic stays after its last member has gone. `None`: as long as there are
    /// members, and [`LINGER`] after that.
    pub age: Option<Duration>,
    /// In the data directory.
    pub disk: bool,
}

impl Rule {
    /// What holds where nothing is said.
    const DEFAULT: Self = Self { count: 512, age: None, disk: false };

    /// When the oldest message that is kept was taken, if `now` is the time; both in milliseconds since the Unix epoch.
    pub fn first(&self, now: u64) -> u64 {
        self.age
            .map_or(0, |age| now.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// How long a topic without members goes on where nothing is said, for those who come back.
pub const LINGER: Duration = Duration::from_secs(120);

/// How much of the topics of a pattern is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    pattern: Pattern,
    rule: Rule,
}

/// Why a text is no [`Retention`]. Nothing changed; anyone who supplied it must correct it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HistoryError {
    /// It has another shape.
    #[error("history {0:?} is not PATTERN=COUNT,AGE[,disk], such as room:*=10000,7d,disk")]
    Shape(String),
    /// A count that cannot be kept.
    #[error("history {0:?}: the count is 1 to {MAX_IN_MEMORY}, or with disk to {MAX_COUNT}")]
    Count(String),
    /// An age that cannot be kept.
    #[error("history {0:?}: the age is a time such as 30s, 15m, 24h or 7d, at most 366d")]
    Age(String),
    /// There are too many.
    #[error("history is given {0} times; at most {MAX_RULES} patterns are kept")]
    Many(usize),
}

fn age(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let number = text.strip_suffix(unit)?;
    let (_, seconds) = UNITS.iter().find(|(name, _)| *name == unit)?;
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let number = number.parse::<u64>().ok().filter(|_| digits)?;
    let age = Duration::from_secs(number.checked_mul(*seconds)?);
    (!age.is_zero() && age <= MAX_AGE).then_some(age)
}

impl FromStr for Retention {
    type Err = HistoryError;

    fn from_str(text: &str) -> Result<Self, HistoryError> {
        let shape = || HistoryError::Shape(text.to_owned());
        let (pattern, rule) = text.rsplit_once('=').ok_or_else(shape)?;
        let pattern = pattern.parse().map_err(|_none| shape())?;
        let words: Vec<_> = rule.split(',').collect();
        let (count, long, disk) = match words[..] {
            [count, age] => (count, age, false),
            [count, age, "disk"] => (count, age, true),
            _ => return Err(shape()),
        };
        let most = if disk { MAX_COUNT } else { MAX_IN_MEMORY };
        let digits = count.bytes().all(|byte| byte.is_ascii_digit());
        let count = count.parse().ok().filter(|count| digits && (1..=most).contains(count));
        let count = count.ok_or_else(|| HistoryError::Count(text.to_owned()))?;
        let age = age(long).ok_or_else(|| HistoryError::Age(text.to_owned()))?;
        Ok(Self { pattern, rule: Rule { count, age: Some(age), disk } })
    }
}

impl fmt::Display for Retention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rule { count, age, disk } = self.rule;
        let seconds = age.unwrap_or(LINGER).as_secs();
        let unit = UNITS.iter().rev().find(|(_, length)| seconds.is_multiple_of(*length));
        let (unit, length) = unit.copied().unwrap_or(('s', 1));
        let disk = if disk { ",disk" } else { "" };
        write!(f, "{}={count},{}{unit}{disk}", self.pattern, seconds / length)
    }
}

/// What holds for each topic. Clones are cheap enough for one per actor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retentions(Vec<Retention>);

impl Retentions {
    /// These, in the order in which they were given.
    ///
    /// # Errors
    /// [`HistoryError::Many`].
    pub fn new(retentions: Vec<Retention>) -> Result<Self, HistoryError> {
        match retentions.len() {
            ..=MAX_RULES => Ok(Self(retentions)),
            many => Err(HistoryError::Many(many)),
        }
    }

    /// Whether any topic is kept on disk.
    pub(crate) fn on_disk(&self) -> bool {
        self.0.iter().any(|it| it.rule.disk)
    }

    /// What holds for a topic.
    pub(crate) fn of(&self, topic: &Topic) -> Rule {
        let counts = Pattern::most_specific(&self.0, |it| &it.pattern, topic);
        counts.map_or(Rule::DEFAULT, |it| it.rule)
    }
}

/// What a join asks for of the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// The last messages, so many.
    Last(usize),
    /// Those that the node took at this time or later, in milliseconds since the Unix epoch.
    Since(u64),
}

impl Ask {
    /// How many messages it brings at most.
    pub fn most(self) -> usize {
        match self {
            Self::Last(count) => count.min(MAX_ASKED),
            Self::Since(_) => MAX_ASKED,
        }
    }

    /// Whether so many messages are fewer than it asks for.
    pub fn is_short_of(self, messages: usize) -> bool {
        match self {
            Self::Last(count) => messages < count,
            Self::Since(_) => true,
        }
    }

    /// Whether it asks for what was taken at this time.
    pub fn wants(self, at: u64) -> bool {
        match self {
            Self::Last(_) => true,
            Self::Since(since) => at >= since,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn retention(text: &str) -> Retention {
        text.parse().expect(text)
    }

    #[test]
    fn a_retention_has_a_pattern_a_count_and_an_age() {
        let kept = retention("room:*=10000,7d,disk");
        let age = Duration::from_secs(7 * 24 * 3600);
        assert_eq!(kept.rule, Rule { count: 10_000, age: Some(age), disk: true });
        for good in ["room:*=10000,7d,disk", "*=512,2m", "a=b=1,90s", "room:1=10000000,366d,disk"] {
            assert_eq!(retention(good).to_string(), good);
        }
        let error = |text: &str| text.parse::<Retention>().expect_err(text);
        for bad in ["", "room:*", "room*=1,1s", "room:*=1", "*=1,1s,memory", "*=1,1s,disk,disk"] {
            assert_eq!(error(bad), HistoryError::Shape(bad.to_owned()));
        }
        for bad in ["*=0,1s", "*=x,1s", "*=+1,1s", "*=100001,1s", "*=10000001,1s,disk", "*=,1s"] {
            assert_eq!(error(bad), HistoryError::Count(bad.to_owned()));
        }
        for bad in ["*=1,0s", "*=1,1", "*=1,s", "*=1,1w", "*=1,367d", "*=1,+1s", "*=1,1é", "*=1,"]
        {
            assert_eq!(error(bad), HistoryError::Age(bad.to_owned()));
        }
    }

    #[test]
    fn the_most_specific_pattern_counts_and_of_equal_ones_the_last() {
        let given = ["room:1=7,1m", "*=1,1m", "room:*=2,1m", "room:a:*=3,1m", "room:*=4,1m,disk"];
        let rules =
            Retentions::new(given.iter().map(|text| retention(text)).collect()).expect("few");
        let count = |topic: &str| rules.of(&topic.parse().expect("a topic")).count;
        assert_eq!(["room:1", "room:2", "room:a:1", "x"].map(count), [7, 4, 3, 1]);
        assert_eq!(Retentions::default().of(&"x".parse().expect("a topic")), Rule::DEFAULT);
        let many = vec![retention("*=1,1m"); MAX_RULES + 1];
        assert_eq!(Retentions::new(many), Err(HistoryError::Many(MAX_RULES + 1)));
    }

    proptest! {
        #[test]
        fn what_is_read_is_within_bounds(text in "(room:)?\\*?=[0-9]{1,9},[0-9]{1,6}[smhdx](,disk)?") {
            if let Ok(kept) = text.parse::<Retention>() {
                let most = if kept.rule.disk { MAX_COUNT } else { MAX_IN_MEMORY };
                prop_assert!((1..=most).contains(&kept.rule.count) && kept.rule.age <= Some(MAX_AGE));
                prop_assert_eq!(kept.to_string().parse::<Retention>(), Ok(kept));
            }
        }
    }
}
