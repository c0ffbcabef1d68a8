//! Whose bad tokens are answered late.
//!
//! A token that this cluster has not signed costs a verification each time it is shown. It is answered at once five
//! times a second, no matter who shows it; an address may show a hundred of them. Clients behind one proxy share an
//! address, so what one of them repeats must not slow the others down. Memory: at most [`ENTRIES`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Bad tokens a second that are answered at once: one and the same, and all of one address.
const OF_TOKEN: u32 = 5;
const OF_ADDRESS: u32 = 100;
/// Tokens and addresses that are counted.
const ENTRIES: usize = 10_000;
const SECOND: Duration = Duration::from_secs(1);

/// Who showed bad tokens within a second. Tokens are known by a hash.
#[derive(Debug, Default)]
pub(super) struct Penalties(BTreeMap<(IpAddr, Option<u64>), (Instant, u32)>);

impl Penalties {
    /// Counts a bad token; true when its answer is to be late.
    pub(super) fn is_late(&mut self, from: IpAddr, token: u64, now: Instant) -> bool {
        // The address first: one that shows many different tokens takes no more room.
        self.count((from, None), now) > OF_ADDRESS
            || self.count((from, Some(token)), now) > OF_TOKEN
    }

    fn count(&mut self, key: (IpAddr, Option<u64>), now: Instant) -> u32 {
        if self.0.len() >= ENTRIES && !self.0.contains_key(&key) {
            self.0.retain(|_, (since, _)| now < *since + SECOND);
            if self.0.len() >= ENTRIES {
                return u32::MAX;
            }
        }
        let (since, count) = self.0.entry(key).or_insert((now, 0));
        if now >= *since + SECOND {
            (*since, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        *count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::timer;

    #[test]
    fn a_token_an_address_and_the_whole_have_their_bounds() {
        let (mut penalties, now) = (Penalties::default(), timer::now());
        let [one, two] = [[10, 0, 0, 1], [10, 0, 0, 2]].map(IpAddr::from);
        let late = |many: usize, penalties: &mut Penalties, from, token: &dyn Fn(usize) -> u64| {
            (0..many).filter(|at| penalties.is_late(from, token(*at), now)).count()
        };
        assert_eq!(late(8, &mut penalties, one, &|_| 7), 3, "one token again and again");
        assert_eq!(late(5, &mut penalties, one, &|_| 8), 0, "another one behind the same proxy");
        assert_eq!(late(5, &mut penalties, two, &|_| 7), 0, "another address");
        assert!(!penalties.is_late(one, 7, now + SECOND), "another second");
        assert_eq!(
            late(150, &mut penalties, two, &|at| 100 + at as u64),
            55,
            "many of one address"
        );
        let full = |at: usize| IpAddr::from(u32::try_from(at).expect("small").to_be_bytes());
        let many = (0..2 * ENTRIES).filter(|at| penalties.is_late(full(*at), 1, now)).count();
        assert!(many > ENTRIES && penalties.0.len() <= ENTRIES, "{many} of more than are counted");
    }
}
