//! A hybrid logical clock: stamps that order what happened on many nodes, as far as one thing could have caused
//! another, and that stay close to the wall clock otherwise.
//!
//! After Kulkarni, Demirbas, Madappa, Avva and Leone, "Logical Physical Clocks" (OPODIS 2014). Every word between
//! the actors of two nodes carries its sender's stamp; who hears it goes on above it. Invariants:
//! 1. Stamps of one clock rise, but where 3 says otherwise.
//! 2. Whatever follows a heard word has a later stamp than the word, unless the word's stamp was not believed.
//! 3. A stamp more than [`AHEAD`] above this node's wall clock is not believed, not even this node's own: one node
//!    whose clock is wrong by years must not carry the whole cluster there, and once its clock is right again, its
//!    stamps are as well.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How far ahead of the wall clock a stamp may be, in milliseconds: a day, so that clocks that are set to the wrong
/// time zone still order what they tell each other.
pub const AHEAD: u64 = 24 * 3600 * 1000;

/// A moment of the clock. It is written as `MILLISECONDS.COUNT`, in figures of one length, so that texts order as
/// moments do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stamp {
    /// The highest wall-clock time that was read or heard of, in milliseconds since 1970.
    pub millis: u64,
    /// Tells apart what has the same time.
    pub count: u32,
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:013}.{:06}", self.millis, self.count)
    }
}

impl FromStr for Stamp {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (millis, count) = text.split_once('.').ok_or(())?;
        let stamp = millis.parse().ok().zip(count.parse().ok());
        stamp.map(|(millis, count)| Self { millis, count }).ok_or(())
    }
}

/// The clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hlc {
    last: Stamp,
}

impl Hlc {
    /// A clock that goes on above `last`, the latest stamp of an earlier life.
    pub fn after(last: Stamp) -> Self {
        Self { last }
    }

    /// The stamp of something that happens now. `wall` is in milliseconds since 1970.
    pub fn tick(&mut self, wall: u64) -> Stamp {
        let stray = self.last.millis > wall.saturating_add(AHEAD);
        self.last = match self.last.count.checked_add(1) {
            _ if stray || wall > self.last.millis => Stamp { millis: wall, count: 0 },
            Some(count) => Stamp { count, ..self.last },
            None => Stamp { millis: self.last.millis.saturating_add(1), count: 0 },
        };
        self.last
    }

    /// Another node's stamp was heard; whether it is believed.
    pub fn heard(&mut self, stamp: Stamp, wall: u64) -> bool {
        let believed = stamp.millis <= wall.saturating_add(AHEAD);
        if believed {
            self.last = self.last.max(stamp);
        }
        believed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        /// On a node.
        Happens(usize),
        /// From one node to another.
        Says(usize, usize),
        /// A node's wall clock jumps to this.
        Jumps(usize, u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0..3usize).prop_map(Step::Happens),
            (0..3usize, 0..3usize).prop_map(|(from, to)| Step::Says(from, to)),
            (0..3usize, 0..10_000u64).prop_map(|(node, to)| Step::Jumps(node, to)),
        ];
        proptest::collection::vec(step, 1..60)
    }

    proptest! {
        #[test]
        fn what_could_cause_comes_before_what_it_could_cause(steps in steps()) {
            let mut clocks = [Hlc::default(); 3];
            let mut walls = [1_000u64, 5_000, 9_000];
            // The latest stamp that could have caused what a node does next.
            let mut causes = [Stamp::default(); 3];
            for step in steps {
                match step {
                    Step::Happens(node) => {
                        let stamp = clocks[node].tick(walls[node]);
                        prop_assert!(stamp > causes[node]);
                        causes[node] = stamp;
                    }
                    Step::Says(from, to) => {
                        let stamp = clocks[from].tick(walls[from]);
                        prop_assert!(stamp > causes[from]);
                        causes[from] = stamp;
                        prop_assert!(clocks[to].heard(stamp, walls[to]));
                        causes[to] = causes[to].max(stamp);
                    }
                    Step::Jumps(node, to) => walls[node] = to,
                }
            }
            // Nothing runs ahead of the fastest clock.
            prop_assert!(causes.iter().all(|stamp| stamp.millis <= 10_000));
        }
    }

    #[test]
    fn a_stamp_of_another_age_is_not_believed() {
        let mut clock = Hlc::default();
        assert!(!clock.heard(Stamp { millis: 1_000 + AHEAD + 1, count: 0 }, 1_000));
        assert_eq!(clock.tick(1_000), Stamp { millis: 1_000, count: 0 });
        assert!(clock.heard(Stamp { millis: 1_000 + AHEAD, count: 7 }, 1_000));
        assert_eq!(clock.tick(1_000), Stamp { millis: 1_000 + AHEAD, count: 8 });
    }

    #[test]
    fn a_clock_that_jumped_leaves_no_mark_once_it_is_right_again() {
        const YEARS: u64 = 10 * 365 * 24 * 3600 * 1000;
        let mut clock = Hlc::default();
        clock.tick(1_000);
        assert_eq!(clock.tick(1_000 + YEARS), Stamp { millis: 1_000 + YEARS, count: 0 });
        assert_eq!(clock.tick(4_500), Stamp { millis: 4_500, count: 0 });
        let mut later = Hlc::after(Stamp { millis: 4_500 + YEARS, count: 9 });
        assert_eq!(later.tick(5_000), Stamp { millis: 5_000, count: 0 }, "nor in the next life");
        // What others may believe rises, and is over when its time is.
        let mut clock = Hlc::default();
        assert_eq!(clock.tick(1_000 + AHEAD), Stamp { millis: 1_000 + AHEAD, count: 0 });
        assert_eq!(clock.tick(1_000), Stamp { millis: 1_000 + AHEAD, count: 1 });
        assert_eq!(clock.tick(1_001 + AHEAD), Stamp { millis: 1_001 + AHEAD, count: 0 });
    }

    #[test]
    fn a_count_that_is_used_up_borrows_a_millisecond() {
        let mut clock = Hlc::after(Stamp { millis: 5, count: u32::MAX });
        assert_eq!(clock.tick(0), Stamp { millis: 6, count: 0 });
    }

    #[test]
    fn texts_order_as_moments_do() {
        let stamps = [(9, 2), (9, 10), (10, 0), (1_767_323_045_678, 3)];
        let texts = stamps.map(|(millis, count)| Stamp { millis, count }.to_string());
        assert!(texts.is_sorted(), "{texts:?}");
        assert_eq!(texts[3], "1767323045678.000003");
        assert_eq!(texts[3].parse(), Ok(Stamp { millis: 1_767_323_045_678, count: 3 }));
        assert!(["", ".", "1", "1.", "1.2.3"].iter().all(|it| it.parse::<Stamp>().is_err()));
    }
}
