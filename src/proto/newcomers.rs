//! Which of those who ask for a certificate are heard now: how many at once, of one address, and how often.
//!
//! Pure. Invariants: at most `PLACES` connections are open, of one address [`PER_ADDRESS`]; where all are taken the
//! one that has waited longest without a request goes, and one whose request is being answered never does; of one
//! address [`RATE`] connections are heard in a second, after a burst; memory is bounded by `ADDRESSES` whatever the
//! number of addresses that call. An address is a network of 64 bits in IPv6, as in `admission`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use crate::proto::admission::network;
use crate::proto::share::{Rate, Share};

/// Connections at once.
const PLACES: usize = 8;
/// Of them, of one address.
pub const PER_ADDRESS: usize = 4;
/// Connections of one address, in a second and at once.
pub const RATE: Rate = Rate { second: 2.0, burst: 32.0 };
/// Addresses whose rate is remembered.
const ADDRESSES: usize = 1024;

/// Why one is not heard. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unheard {
    /// Its address has called too often.
    Limited,
    /// All places are taken by requests that are being answered, or by others of its address.
    Busy,
}

impl Unheard {
    /// The word for counters.
    pub fn label(self) -> &'static str {
        match self {
            Self::Limited => "enrol_limited",
            Self::Busy => "enrol_busy",
        }
    }
}

/// A connection. A later one has a larger number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NewcomerId(u64);

#[derive(Debug)]
struct Open {
    from: IpAddr,
    has_asked: bool,
}

/// The machine.
#[derive(Debug, Default)]
pub struct Newcomers {
    opened: u64,
    open: BTreeMap<NewcomerId, Open>,
    rates: BTreeMap<IpAddr, Share>,
}

impl Newcomers {
    /// Opens a place for a caller of this address; one in the second place of the result was given up for it, and is
    /// closed already.
    ///
    /// # Errors
    /// [`Unheard`].
    pub fn open(
        &mut self,
        from: IpAddr,
        now: Instant,
    ) -> Result<(NewcomerId, Option<NewcomerId>), Unheard> {
        let from = network(from);
        if !self.spend(from, now) {
            return Err(Unheard::Limited);
        }
        let same = self.open.values().filter(|open| open.from == from).count();
        let evicted = if same >= PER_ADDRESS {
            Some(self.silent(|open| open.from == from).ok_or(Unheard::Busy)?)
        } else if self.open.len() >= PLACES {
            Some(self.silent(|_| true).ok_or(Unheard::Busy)?)
        } else {
            None
        };
        evicted.iter().for_each(|id| self.close(*id));
        self.opened += 1;
        let id = NewcomerId(self.opened);
        self.open.insert(id, Open { from, has_asked: false });
        Ok((id, evicted))
    }

    /// The request of one has come: it keeps its place until it is answered.
    pub fn asked(&mut self, id: NewcomerId) {
        if let Some(open) = self.open.get_mut(&id) {
            open.has_asked = true;
        }
    }

    /// The place is free again. One that was given up is already.
    pub fn close(&mut self, id: NewcomerId) {
        self.open.remove(&id);
    }

    /// The one that has waited longest without a request.
    fn silent(&self, which: impl Fn(&Open) -> bool) -> Option<NewcomerId> {
        let mut silent = self.open.iter().filter(|(_, open)| !open.has_asked && which(open));
        silent.next().map(|(id, _)| *id)
    }

    /// Whether one more of an address is not one too many.
    fn spend(&mut self, from: IpAddr, now: Instant) -> bool {
        if !self.rates.contains_key(&from) && self.rates.len() >= ADDRESSES {
            self.rates.retain(|_, share| !share.is_whole(now));
            // Where so many call at once, one is forgotten, and may call as often as a new one.
            if self.rates.len() >= ADDRESSES {
                self.rates.pop_first();
            }
        }
        let share = self.rates.entry(from).or_insert_with(|| Share::new(RATE, now));
        // One that calls on meanwhile does not put its next turn off.
        let allowed = share.ready(now).is_none();
        if allowed {
            share.spend(1, now);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;
    use crate::proto::tests::start;
    use proptest::prelude::*;

    fn ip(number: u32) -> IpAddr {
        Ipv4Addr::from(0x0a00_0000 + number).into()
    }

    #[test]
    fn ten_thousand_callers_of_an_address_are_heard_at_its_rate() {
        let (mut newcomers, mut now, mut heard) = (Newcomers::default(), start(), 0);
        for _ in 0..10_000 {
            now += Duration::from_millis(1);
            if let Ok((id, _)) = newcomers.open(ip(1), now) {
                newcomers.close(id);
                heard += 1;
            }
        }
        assert!((50..=56).contains(&heard), "a burst, and two a second for ten seconds: {heard}");
        assert!(newcomers.open(ip(2), now).is_ok(), "another address");
        assert!(newcomers.open(ip(1), now + Duration::from_secs(60)).is_ok());
    }

    #[test]
    fn silent_callers_keep_nobody_out_and_one_that_is_answered_keeps_its_place() {
        let (mut newcomers, now) = (Newcomers::default(), start());
        let mut open = |from| newcomers.open(ip(from), now);
        let first = open(1).expect("free").0;
        for from in 2..=8 {
            assert_eq!(open(from).expect("free").1, None);
        }
        let (next, evicted) = open(9).expect("room");
        assert_eq!(evicted, Some(first));
        newcomers.open.values_mut().for_each(|open| open.has_asked = true);
        assert_eq!(newcomers.open(ip(10), now), Err(Unheard::Busy));
        newcomers.close(next);
        assert!(newcomers.open(ip(10), now).is_ok());
    }

    #[test]
    fn one_address_has_half_of_the_places_and_gives_up_its_own() {
        let (mut newcomers, now) = (Newcomers::default(), start());
        let other = newcomers.open(ip(2), now).expect("free").0;
        let first = newcomers.open(ip(1), now).expect("free").0;
        for _ in 1..PER_ADDRESS {
            assert_eq!(newcomers.open(ip(1), now).expect("free").1, None);
        }
        assert_eq!(newcomers.open(ip(1), now).expect("its own").1, Some(first));
        assert!(newcomers.open.contains_key(&other));
    }

    #[test]
    fn addresses_without_end_are_not_remembered_without_end() {
        let (mut newcomers, now) = (Newcomers::default(), start());
        for number in 0..100_000 {
            if let Ok((id, _)) = newcomers.open(ip(number), now) {
                newcomers.close(id);
            }
        }
        assert!(newcomers.rates.len() <= ADDRESSES && newcomers.open.is_empty());
    }

    proptest! {
        #[test]
        fn bounds_hold_whatever_happens(steps in prop::collection::vec((0..4_u8, 0..6_u32, 0..9_usize), 0..300)) {
            let (mut newcomers, mut now) = (Newcomers::default(), start());
            let (mut open, mut asked) = (BTreeSet::new(), BTreeSet::new());
            for (what, from, which) in steps {
                now += Duration::from_millis(100);
                let chosen = open.iter().nth(which).copied();
                match (what, chosen) {
                    (0 | 1, _) => if let Ok((id, evicted)) = newcomers.open(ip(from), now) {
                        open.insert(id);
                        if let Some(id) = evicted {
                            prop_assert!(open.remove(&id) && !asked.contains(&id));
                        }
                    },
                    (2, Some(id)) => {
                        newcomers.asked(id);
                        asked.insert(id);
                    }
                    (3, Some(id)) => {
                        newcomers.close(id);
                        open.remove(&id);
                    }
                    _ => {}
                }
                prop_assert!(open.iter().eq(newcomers.open.keys()) && open.len() <= PLACES);
                for one in newcomers.open.values() {
                    let same = newcomers.open.values().filter(|other| other.from == one.from);
                    prop_assert!(same.count() <= PER_ADDRESS);
                }
            }
        }
    }
}
