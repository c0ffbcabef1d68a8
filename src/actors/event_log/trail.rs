//! The trail: what happened, numbered in its order; the newest of it stays in memory.
//!
//! Whoever follows gets every later entry, or the number of those it was too slow for. Invariants: numbers rise by
//! one; who asks for what was and then follows misses nothing and gets nothing twice.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::broadcast::{self, error::RecvError};

use crate::proto::event::Event;
use crate::proto::node::NodeName;

/// Entries that stay.
const KEPT: usize = 4096;
/// Entries that may wait for a follower.
pub const WAITING: usize = 1024;

/// An event as this node noted it.
#[derive(Clone, Debug, PartialEq)]
pub struct Noted {
    /// Its number.
    pub seq: u64,
    /// When.
    pub at: SystemTime,
    /// What.
    pub event: Event,
}

#[derive(Default)]
struct Kept {
    last: u64,
    entries: VecDeque<Arc<Noted>>,
}

struct Inner {
    kept: Mutex<Kept>,
    news: broadcast::Sender<Arc<Noted>>,
}

/// The trail. Clones are the same.
#[derive(Clone)]
pub struct Trail(Arc<Inner>);

impl Default for Trail {
    fn default() -> Self {
        Self(Arc::new(Inner { kept: Mutex::default(), news: broadcast::Sender::new(WAITING) }))
    }
}

impl fmt::Debug for Trail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Trail").field(&self.kept().last).finish()
    }
}

/// Which entries are wanted; all, unless it says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// A type of events: one of [`Event::LABELS`].
    pub label: Option<String>,
    /// Those about this node.
    pub node: Option<NodeName>,
}

impl Wanted {
    /// Whether an entry is.
    #[must_use]
    pub fn fits(&self, noted: &Noted) -> bool {
        self.label.as_ref().is_none_or(|label| label == noted.event.label())
            && self.node.as_ref().is_none_or(|node| noted.event.concerns(node))
    }
}

/// A part of the trail.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// Oldest first.
    pub entries: Vec<Arc<Noted>>,
    /// What comes next is after this number.
    pub next: u64,
    /// The first number that is still in memory; what was before is forgotten.
    pub first: u64,
}

impl Trail {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an event down.
    pub(super) fn note(&self, event: Event, at: SystemTime) {
        let mut kept = self.kept();
        kept.last += 1;
        let noted = Arc::new(Noted { seq: kept.last, at, event });
        if kept.entries.len() == KEPT {
            kept.entries.pop_front();
        }
        kept.entries.push_back(noted.clone());
        // Under the lock, so that followers get the numbers in their order. Nobody follows, mostly.
        drop(self.0.news.send(noted));
    }

    /// The first `limit` entries after a number that fit.
    #[must_use]
    pub fn after(&self, seq: u64, limit: usize, wanted: &Wanted) -> Page {
        page(&self.kept(), seq, limit, wanted)
    }

    /// The last `limit` entries that fit.
    #[must_use]
    pub fn latest(&self, limit: usize, wanted: &Wanted) -> Page {
        let kept = self.kept();
        let fitting = kept.entries.iter().rev().filter(|noted| wanted.fits(noted));
        let mut entries: Vec<_> = fitting.take(limit).cloned().collect();
        entries.reverse();
        Page { entries, next: kept.last, first: first(&kept) }
    }

    /// Every later entry.
    #[must_use]
    pub fn follow(&self) -> Follower {
        Follower(self.0.news.subscribe())
    }

    /// Everything after a number, and every later entry.
    #[must_use]
    pub fn follow_after(&self, seq: u64) -> (Page, Follower) {
        let kept = self.kept();
        (page(&kept, seq, KEPT, &Wanted::default()), Follower(self.0.news.subscribe()))
    }
}

fn first(kept: &Kept) -> u64 {
    kept.entries.front().map_or(kept.last + 1, |noted| noted.seq)
}

fn page(kept: &Kept, seq: u64, limit: usize, wanted: &Wanted) -> Page {
    let later = kept.entries.iter().filter(|noted| noted.seq > seq && wanted.fits(noted));
    let entries: Vec<_> = later.take(limit).cloned().collect();
    let full = entries.len() == limit;
    let next = entries.last().filter(|_| full).map_or(kept.last, |noted| noted.seq);
    Page { entries, next, first: first(kept) }
}

/// Gets entries as they come.
pub struct Follower(broadcast::Receiver<Arc<Noted>>);

impl Follower {
    /// The next entry, or how many were missed; `None` once the node is gone. Nothing is lost when the future is
    /// dropped.
    pub async fn recv(&mut self) -> Option<Result<Arc<Noted>, u64>> {
        match self.0.recv().await {
            Ok(noted) => Some(Ok(noted)),
            Err(RecvError::Lagged(missed)) => Some(Err(missed)),
            Err(RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn paused(trail: &Trail, many: std::ops::RangeInclusive<u64>) {
        many.for_each(|millis| trail.note(Event::Paused { millis }, UNIX_EPOCH));
    }

    fn numbers(page: &Page) -> Vec<u64> {
        page.entries.iter().map(|noted| noted.seq).collect()
    }

    #[test]
    fn pages_follow_each_other_without_gap_or_double() {
        let trail = Trail::default();
        let all = Wanted::default();
        assert_eq!(trail.after(0, 3, &all), Page { entries: vec![], next: 0, first: 1 });
        paused(&trail, 1..=3);
        let peer: NodeName = "b@127.0.0.1".parse().expect("valid");
        trail.note(Event::PeerConnecting { peer: peer.clone() }, UNIX_EPOCH);
        paused(&trail, 5..=7);
        let label = Some("paused".to_owned());
        let wanted = Wanted { label, node: None };
        let page = trail.after(1, 3, &wanted);
        assert_eq!((numbers(&page), page.next), (vec![2, 3, 5], 5));
        let page = trail.after(page.next, 3, &wanted);
        assert_eq!((numbers(&page), page.next), (vec![6, 7], 7));
        let wanted = Wanted { label: None, node: Some(peer) };
        let page = trail.after(0, 3, &wanted);
        assert_eq!((numbers(&page), page.next), (vec![4], 7), "the end: nothing before 7 fits");
        let page = trail.latest(3, &all);
        assert_eq!((numbers(&page), page.next, page.first), (vec![5, 6, 7], 7, 1));
    }

    #[test]
    fn the_oldest_goes_and_the_first_says_so() {
        let trail = Trail::default();
        paused(&trail, 1..=KEPT as u64 + 5);
        let page = trail.after(0, 1, &Wanted::default());
        assert_eq!((numbers(&page), page.first), (vec![6], 6));
    }

    #[tokio::test]
    async fn who_follows_misses_nothing_and_a_slow_one_learns_how_much() {
        let trail = Trail::default();
        paused(&trail, 1..=3);
        let (page, mut follower) = trail.follow_after(1);
        assert_eq!(numbers(&page), [2, 3]);
        paused(&trail, 4..=4 + WAITING as u64);
        assert_eq!(follower.recv().await, Some(Err(1)));
        let next = follower.recv().await.and_then(Result::ok).map(|noted| noted.seq);
        assert_eq!(next, Some(5));
    }
}
