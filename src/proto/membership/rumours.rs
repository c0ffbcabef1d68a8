//! Nodes of which only others speak: they are looked for within bounds, and become peers when they show their
//! certificate. Until then they are in no view, count for no majority and are no event.
//!
//! The bounds are those of the peer that speaks of them: it may be wrong, or make others dial where it likes. A peer
//! whose word led to nothing within the last minute has one dial at a time, and [`FAILURES`] of them come to nothing in
//! a minute at most.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::proto::event::Source;
use crate::proto::membership::{Membership, Output, Target, usable};
use crate::proto::node::{Contact, NodeName};

/// Rumours of one peer at once.
const RUMOURS: usize = 1024;
/// Dials that the word of one peer may cost within a [`MINUTE`] without finding a node.
const FAILURES: u32 = 12;
const MINUTE: Duration = Duration::from_secs(60);
/// A rumour is tried so often before it has to be heard again.
const TRIES: u32 = 4;
/// The wait after its first failure; each later one is twice as long.
const AGAIN: Duration = Duration::from_secs(1);

/// A node at an address.
pub(super) type Whereabouts = (NodeName, SocketAddr);

#[derive(Debug)]
struct Rumour {
    by: NodeName,
    next: Instant,
    tries: u32,
    dialing: bool,
}

/// What the word of one peer has cost.
#[derive(Debug, Default)]
struct Teller {
    rumours: usize,
    dialing: usize,
    /// Since when failures are counted, and how many there were.
    failed: Option<(Instant, u32)>,
}

impl Teller {
    fn failures(&self, now: Instant) -> u32 {
        self.failed.filter(|(since, _)| now < *since + MINUTE).map_or(0, |(_, count)| count)
    }

    /// When the next dial may be.
    fn ready(&self, now: Instant) -> Option<Instant> {
        match (self.failures(now), self.failed) {
            (0, _) => Some(now),
            (FAILURES.., Some((since, _))) => Some(since + MINUTE),
            _ => (self.dialing == 0).then_some(now),
        }
    }
}

/// The rumours.
#[derive(Debug, Default)]
pub(super) struct Rumours {
    rumours: BTreeMap<Whereabouts, Rumour>,
    tellers: BTreeMap<NodeName, Teller>,
}

impl Rumours {
    /// How many there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.rumours.len()
    }

    /// True when that is news, and there is room for it.
    fn heard(&mut self, by: &NodeName, at: Whereabouts, now: Instant) -> bool {
        if let Some(rumour) = self.rumours.get_mut(&at) {
            // What another one says as well does not wait for the first one's bounds.
            let spent = |by| self.tellers.get(by).is_some_and(|it: &Teller| it.failures(now) > 0);
            if rumour.by == *by || rumour.dialing || spent(by) || !spent(&rumour.by) {
                return false;
            }
            let before = std::mem::replace(&mut rumour.by, by.clone());
            self.left(&before, now);
        } else {
            if self.tellers.get(by).is_some_and(|teller| teller.rumours >= RUMOURS) {
                return false;
            }
            let rumour = Rumour { by: by.clone(), next: now, tries: 0, dialing: false };
            self.rumours.insert(at, rumour);
        }
        self.tellers.entry(by.clone()).or_default().rumours += 1;
        true
    }

    /// The rumour that is to be tried next, and when.
    pub(super) fn next(&self, now: Instant) -> Option<(Instant, Whereabouts)> {
        let waiting = self.rumours.iter().filter(|(_, rumour)| !rumour.dialing);
        let due = waiting.filter_map(|(at, rumour)| {
            Some((self.tellers.get(&rumour.by)?.ready(now)?.max(rumour.next), at))
        });
        due.min_by_key(|(due, _)| *due).map(|(due, at)| (due, at.clone()))
    }

    fn dialed(&mut self, at: &Whereabouts) {
        let Some(rumour) = self.rumours.get_mut(at) else { return };
        rumour.dialing = true;
        if let Some(teller) = self.tellers.get_mut(&rumour.by) {
            teller.dialing += 1;
        }
    }

    /// A dial is over, and whether it came to nothing; one that was given up counts for nobody.
    pub(super) fn ended(&mut self, at: &Whereabouts, failed: bool, now: Instant) {
        let Some(rumour) = self.rumours.get_mut(at) else { return };
        rumour.dialing = false;
        let Some(teller) = self.tellers.get_mut(&rumour.by) else { return };
        teller.dialing = teller.dialing.saturating_sub(1);
        if failed {
            let since = teller.failed.filter(|(since, _)| now < *since + MINUTE);
            let (since, count) = since.unwrap_or((now, 0));
            teller.failed = Some((since, count + 1));
            rumour.next = now + AGAIN * 2u32.saturating_pow(rumour.tries);
            rumour.tries += 1;
            if rumour.tries >= TRIES {
                self.drop(at, now);
            }
        }
    }

    fn drop(&mut self, at: &Whereabouts, now: Instant) {
        if let Some(rumour) = self.rumours.remove(at) {
            if let Some(teller) = self.tellers.get_mut(&rumour.by).filter(|_| rumour.dialing) {
                teller.dialing = teller.dialing.saturating_sub(1);
            }
            self.left(&rumour.by, now);
        }
    }

    /// A peer has a rumour less.
    fn left(&mut self, by: &NodeName, now: Instant) {
        let Some(teller) = self.tellers.get_mut(by) else { return };
        teller.rumours = teller.rumours.saturating_sub(1);
        if teller.rumours == 0 && teller.failures(now) == 0 {
            self.tellers.remove(by);
        }
    }

    /// A node is found, or looked for no more.
    pub(super) fn settled(&mut self, name: &NodeName, now: Instant) {
        let of = self.rumours.keys().filter(|(of, _)| of == name).cloned();
        of.collect::<Vec<_>>().iter().for_each(|at| self.drop(at, now));
    }
}

impl Membership {
    /// A peer says where a node is; whether anything follows.
    pub(super) fn hearsay(&mut self, by: &NodeName, contact: Contact, now: Instant) -> bool {
        let Contact { name, address, incarnation } = contact;
        let told = |by: &NodeName| self.peers.get(by).is_some_and(|it| it.live.is_some());
        if name == self.me || name == *by || !usable(address) || self.leaving || !told(by) {
            return false;
        }
        if !self.accepts_hint(&name, incarnation, Source::Peer) {
            return false;
        }
        // Of a peer, what it says itself is known, and tried first.
        let known = self.peers.get(&name).is_some_and(|peer| {
            let later = incarnation > peer.incarnation;
            !peer.idle() || peer.left() && !later || peer.refuses_us() || peer.is_at(address)
        });
        !known && self.rumours.heard(by, (name, address), now)
    }

    pub(super) fn dial_rumour(&mut self, at: Whereabouts, out: &mut Vec<Output>) {
        self.rumours.dialed(&at);
        let (name, address) = at;
        self.dial_to(Target::Rumour(name), address, out);
    }
}
