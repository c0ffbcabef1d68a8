//! The trail: what happened, numbered in its order; the newest of it stays in memory, and all that is not stored yet.
//!
//! Whoever follows gets every later entry, or the number of those it was too slow for. Invariants:
//! 1. Numbers rise by one, and go on where the stored chain of earlier lives ends; who asks for what was and then
//!    follows misses nothing and gets nothing twice.
//! 2. What is not stored yet is not dropped. When [`MOST`] wait, because the store fails, later events get no number;
//!    once there is room again, an event says how many they were.
//! 3. Stamps rise; whatever follows a word of another node has a later stamp than that node's word.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::broadcast::{self, error::RecvError};

use crate::actors::timer;
use crate::io::clock;
use crate::proto::chain::{Moment, Record};
use crate::proto::event::Event;
use crate::proto::hlc::{Hlc, Stamp};
use crate::proto::node::{Incarnation, NodeName};

/// Entries that stay.
const KEPT: usize = 4096;
/// Entries that may wait for the store.
const MOST: usize = 65_536;
/// Entries that may wait for a follower.
pub const WAITING: usize = 1024;

/// An event as this node noted it.
#[derive(Clone, Debug, PartialEq)]
pub struct Noted {
    /// Its number; 0 when the trail had no room for it.
    pub seq: u64,
    /// When.
    pub moment: Moment,
    /// What.
    pub event: Event,
}

impl Noted {
    /// As it is kept.
    #[must_use]
    pub fn record(&self) -> Record {
        Record::new(&self.event, self.moment)
    }
}

struct Kept {
    last: u64,
    /// The last one that is stored, or that never will be.
    stored: u64,
    entries: VecDeque<Arc<Noted>>,
    /// Those without a number that no event has told of yet.
    lost: u64,
    clock: Hlc,
    life: Arc<AtomicU64>,
    started: Instant,
}

impl Kept {
    fn waiting(&self) -> usize {
        usize::try_from(self.last.saturating_sub(self.stored)).unwrap_or(usize::MAX)
    }

    fn moment(&mut self) -> Moment {
        let since = timer::now().saturating_duration_since(self.started).as_millis();
        let at = clock::millis();
        Moment {
            at,
            since_start: u64::try_from(since).unwrap_or(u64::MAX),
            incarnation: Incarnation(self.life.load(Ordering::Relaxed)),
            stamp: self.clock.tick(at),
        }
    }

    fn add(&mut self, event: Event) -> Arc<Noted> {
        let moment = self.moment();
        if self.waiting() >= MOST {
            self.lost += 1;
            return Arc::new(Noted { seq: 0, moment, event });
        }
        self.last += 1;
        let noted = Arc::new(Noted { seq: self.last, moment, event });
        self.entries.push_back(noted.clone());
        self.forget();
        noted
    }

    /// Drops what is stored and not among the newest.
    fn forget(&mut self) {
        while self.entries.len() > KEPT
            && self.entries.front().is_some_and(|noted| noted.seq <= self.stored)
        {
            self.entries.pop_front();
        }
    }
}

struct Inner {
    kept: Mutex<Kept>,
    news: broadcast::Sender<Arc<Noted>>,
}

/// The trail. Clones are the same.
#[derive(Clone)]
pub struct Trail(Arc<Inner>);

/// A trail that is not stored.
impl Default for Trail {
    fn default() -> Self {
        let kept = Kept {
            last: 0,
            stored: u64::MAX,
            entries: VecDeque::new(),
            lost: 0,
            clock: Hlc::default(),
            life: Arc::default(),
            started: timer::now(),
        };
        Self(Arc::new(Inner { kept: Mutex::new(kept), news: broadcast::Sender::new(WAITING) }))
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
    /// Those at this time or later, in milliseconds since 1970.
    pub from: Option<u64>,
    /// Those before this time, likewise.
    pub until: Option<u64>,
}

impl Wanted {
    /// Whether an entry is.
    #[must_use]
    pub fn fits(&self, noted: &Noted) -> bool {
        self.label.as_ref().is_none_or(|label| label == noted.event.label())
            && self.is_in_time(noted.moment.at)
            && self.node.as_ref().is_none_or(|node| noted.event.concerns(node))
    }

    /// Whether a stored one is.
    #[must_use]
    pub fn fits_record(&self, record: &Record) -> bool {
        let concerns = |node| {
            record.node.as_ref() == Some(node)
                || record.event().is_ok_and(|event| event.concerns(node))
        };
        self.label.as_ref().is_none_or(|label| *label == record.label)
            && self.is_in_time(record.at)
            && self.node.as_ref().is_none_or(concerns)
    }

    fn is_in_time(&self, at: u64) -> bool {
        self.from.is_none_or(|from| at >= from) && self.until.is_none_or(|until| at < until)
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

    /// From now on it is stored: it goes on after the last stored entry, in a life that began just now.
    pub(crate) fn store_after(&self, last: u64, stamp: Stamp, life: Arc<AtomicU64>) {
        let mut kept = self.kept();
        (kept.last, kept.stored) = (last, last);
        (kept.clock, kept.life, kept.started) = (Hlc::after(stamp), life, timer::now());
        kept.entries.clear();
    }

    /// Takes an event down.
    pub fn note(&self, event: Event) {
        let mut kept = self.kept();
        if kept.lost > 0 && kept.waiting() < MOST {
            let count = std::mem::take(&mut kept.lost);
            // Under the lock, so that followers get the numbers in their order. Nobody follows, mostly.
            drop(self.0.news.send(kept.add(Event::EventsLost { count })));
        }
        drop(self.0.news.send(kept.add(event)));
    }

    /// The stamp of a word to another node.
    pub(super) fn stamp(&self) -> Stamp {
        self.kept().clock.tick(clock::millis())
    }

    /// Another node's stamp came; whether it is believed.
    pub(super) fn heard(&self, stamp: Stamp) -> bool {
        self.kept().clock.heard(stamp, clock::millis())
    }

    /// The last stored number, and the first `limit` entries that wait after it.
    #[must_use]
    pub fn unstored(&self, limit: usize) -> (u64, Vec<Arc<Noted>>) {
        let kept = self.kept();
        let from = kept.entries.partition_point(|noted| noted.seq <= kept.stored);
        (kept.stored, kept.entries.range(from..).take(limit).cloned().collect())
    }

    /// The last number.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.kept().last
    }

    /// Entries that wait to be stored.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.kept().waiting()
    }

    /// Entries up to this number are stored.
    pub fn stored(&self, seq: u64) {
        let mut kept = self.kept();
        kept.stored = kept.stored.max(seq);
        kept.forget();
    }

    /// The first number that is still in memory, or the next when none is.
    #[must_use]
    pub fn first(&self) -> u64 {
        first(&self.kept())
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
    pub(crate) fn follow_after(&self, seq: u64) -> (Page, Follower) {
        let kept = self.kept();
        (page(&kept, seq, usize::MAX, &Wanted::default()), Follower(self.0.news.subscribe()))
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

    fn paused(trail: &Trail, many: std::ops::RangeInclusive<u64>) {
        many.for_each(|millis| trail.note(Event::Paused { millis }));
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
        trail.note(Event::PeerConnecting { peer: peer.clone() });
        paused(&trail, 5..=7);
        let label = Some("paused".to_owned());
        let wanted = Wanted { label, ..Wanted::default() };
        let page = trail.after(1, 3, &wanted);
        assert_eq!((numbers(&page), page.next), (vec![2, 3, 5], 5));
        let page = trail.after(page.next, 3, &wanted);
        assert_eq!((numbers(&page), page.next), (vec![6, 7], 7));
        let wanted = Wanted { node: Some(peer), ..Wanted::default() };
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

    fn stored_after(last: u64) -> Trail {
        let trail = Trail::default();
        trail.store_after(last, Stamp { millis: u64::MAX / 2, count: 5 }, Arc::new(7.into()));
        trail
    }

    #[test]
    fn a_stored_trail_goes_on_where_the_life_before_ended() {
        let trail = stored_after(40);
        assert_eq!((trail.first(), trail.waiting()), (41, 0));
        paused(&trail, 1..=3);
        let (stored, waiting) = trail.unstored(2);
        assert_eq!((stored, waiting.len(), waiting[0].seq, trail.waiting()), (40, 2, 41, 3));
        let moment = waiting[0].moment;
        assert_eq!(moment.incarnation, Incarnation(7));
        assert_eq!(moment.stamp, Stamp { millis: u64::MAX / 2, count: 6 });
        trail.stored(42);
        let (stored, waiting) = trail.unstored(2);
        assert_eq!((stored, waiting.len(), waiting[0].seq), (42, 1, 43));
        trail.stored(41); // late news
        assert_eq!(trail.unstored(2).0, 42);
    }

    #[test]
    fn what_is_not_stored_stays_and_what_has_no_room_is_counted() {
        let trail = stored_after(0);
        let mut follower = trail.follow();
        paused(&trail, 1..=MOST as u64 + 3);
        assert_eq!((trail.first(), trail.waiting()), (1, MOST));
        let mut last = 0;
        while let Ok(news) = follower.0.try_recv() {
            last = news.seq;
        }
        assert_eq!(last, 0, "followers hear of those without a number too");
        trail.stored(10);
        paused(&trail, 0..=0);
        let page = trail.latest(2, &Wanted::default());
        assert_eq!(page.entries[0].event, Event::EventsLost { count: 3 });
        assert_eq!(numbers(&page), [MOST as u64 + 1, MOST as u64 + 2]);
        trail.stored(u64::MAX);
        assert_eq!(trail.first(), MOST as u64 + 2 - KEPT as u64 + 1);
    }

    #[test]
    fn what_follows_a_word_has_a_later_stamp() {
        let (here, there) = (Trail::default(), Trail::default());
        for _ in 0..5 {
            let word = there.stamp();
            assert!(here.heard(word));
            here.note(Event::StoreRecovered);
            let noted = here.latest(1, &Wanted::default()).entries.remove(0);
            assert!(noted.moment.stamp > word);
            assert!(there.heard(noted.moment.stamp));
        }
    }
}
