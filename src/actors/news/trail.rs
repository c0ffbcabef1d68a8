//! The trail: what happened, numbered in its order; the newest of it stays in memory, and all that is not stored yet.
//!
//! Anyone who follows gets every later entry, or the number of those it was too slow for. Invariants:
//! 1. Numbers rise by one, and go on where the stored chain of earlier lives ends; who asks for what was and then
//!    follows misses nothing and gets nothing twice.
//! 2. What is not stored yet is not dropped. When [`MAX_UNSTORED`] wait, because the store fails, later events get no number;
//!    once there is room again, an event says how many they were.
//! 3. Stamps rise, as far as `proto::hlc` says; whatever follows a word of another node has a later stamp than that
//!    node's word.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::broadcast::{self, error::RecvError};

use crate::actors::timer;
use crate::io::clock;
use crate::proto::event::{Event, Page, Query, Recorded};
use crate::proto::hlc::{Hlc, Stamp};
use crate::proto::node::Incarnation;

/// Entries that stay.
const KEPT: usize = 4096;
/// Entries that may wait for the store.
const MAX_UNSTORED: usize = 65_536;
/// Entries that may wait for a follower.
pub const WAITING: usize = 1024;

struct State {
    last: u64,
    /// The last one that is stored, or that never will be.
    stored: u64,
    entries: VecDeque<Arc<Recorded>>,
    /// Those without a number that no event has told of yet.
    lost: u64,
    clock: Hlc,
    life: Arc<AtomicU64>,
    started: Instant,
}

impl State {
    fn waiting(&self) -> usize {
        usize::try_from(self.last.saturating_sub(self.stored)).unwrap_or(usize::MAX)
    }

    fn recorded(&mut self, seq: u64, event: Event) -> Arc<Recorded> {
        let since = timer::now().saturating_duration_since(self.started).as_millis();
        let at = clock::millis();
        Arc::new(Recorded {
            seq,
            noted_by: None,
            at,
            since_start: u64::try_from(since).unwrap_or(u64::MAX),
            incarnation: Incarnation(self.life.load(Ordering::Relaxed)),
            stamp: self.clock.tick(at),
            hash: None,
            event,
        })
    }

    fn add(&mut self, event: Event) -> Arc<Recorded> {
        if self.waiting() >= MAX_UNSTORED {
            self.lost += 1;
            return self.recorded(0, event);
        }
        self.last += 1;
        let recorded = self.recorded(self.last, event);
        self.entries.push_back(recorded.clone());
        self.forget();
        recorded
    }

    /// Drops what is stored and not among the newest.
    fn forget(&mut self) {
        while self.entries.len() > KEPT
            && self.entries.front().is_some_and(|oldest| oldest.seq <= self.stored)
        {
            self.entries.pop_front();
        }
    }
}

struct Inner {
    kept: Mutex<State>,
    news: broadcast::Sender<Arc<Recorded>>,
}

/// The trail. Clones are the same.
#[derive(Clone)]
pub struct Trail(Arc<Inner>);

/// A trail that is not stored.
impl Default for Trail {
    fn default() -> Self {
        let kept = State {
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

impl Trail {
    /// From now on it is stored: it goes on after the last stored entry, in a life that began just now.
    pub(crate) fn store_after(&self, last: u64, stamp: Stamp, life: Arc<AtomicU64>) {
        let mut kept = self.0.kept.lock();
        (kept.last, kept.stored) = (last, last);
        (kept.clock, kept.life, kept.started) = (Hlc::after(stamp), life, timer::now());
        kept.entries.clear();
    }

    /// Takes an event down.
    pub fn note(&self, event: Event) {
        let mut kept = self.0.kept.lock();
        if kept.lost > 0 && kept.waiting() < MAX_UNSTORED {
            let count = std::mem::take(&mut kept.lost);
            // Under the lock, so that followers get the numbers in their order. Nobody follows, mostly.
            drop(self.0.news.send(kept.add(Event::EventsLost { count })));
        }
        drop(self.0.news.send(kept.add(event)));
    }

    /// The stamp of a word to another node.
    pub(super) fn stamp(&self) -> Stamp {
        self.0.kept.lock().clock.tick(clock::millis())
    }

    /// Another node's stamp came; whether it is believed.
    pub(super) fn heard(&self, stamp: Stamp) -> bool {
        self.0.kept.lock().clock.heard(stamp, clock::millis())
    }

    /// The last stored number, and the first `limit` entries that wait after it.
    pub fn unstored(&self, limit: usize) -> (u64, Vec<Arc<Recorded>>) {
        let kept = self.0.kept.lock();
        let from = kept.entries.partition_point(|it| it.seq <= kept.stored);
        (kept.stored, kept.entries.range(from..).take(limit).cloned().collect())
    }

    /// The last number.
    pub fn last(&self) -> u64 {
        self.0.kept.lock().last
    }

    /// Entries that wait to be stored.
    pub fn waiting(&self) -> usize {
        self.0.kept.lock().waiting()
    }

    /// Entries up to this number are stored.
    pub fn stored(&self, seq: u64) {
        let mut kept = self.0.kept.lock();
        kept.stored = kept.stored.max(seq);
        kept.forget();
    }

    /// The first number that is still in memory, or the next when none is.
    pub fn first(&self) -> u64 {
        first(&self.0.kept.lock())
    }

    /// What is asked for and still in memory.
    pub fn read(&self, query: &Query) -> Page {
        page(&self.0.kept.lock(), query)
    }

    /// Every later entry.
    #[must_use]
    pub fn follow(&self) -> Follower {
        Follower { news: self.0.news.subscribe(), trail: Arc::downgrade(&self.0) }
    }

    /// Everything after a number, and every later entry.
    #[must_use]
    pub(crate) fn follow_after(&self, seq: u64) -> (Page, Follower) {
        let kept = self.0.kept.lock();
        let query = Query { after: Some(seq), limit: usize::MAX, ..Query::default() };
        (page(&kept, &query), self.follow())
    }

    /// What stands before a reader for so many events that it missed.
    pub(crate) fn missed(&self, count: u64) -> Arc<Recorded> {
        self.0.kept.lock().recorded(0, Event::EventsMissed { count })
    }
}

fn first(kept: &State) -> u64 {
    kept.entries.front().map_or(kept.last + 1, |oldest| oldest.seq)
}

fn page(kept: &State, query: &Query) -> Page {
    let all = kept.entries.iter().map(Arc::as_ref).filter(|it| query.fits(it));
    let events: Vec<_> = match query.after {
        Some(after) => all.filter(|it| it.seq > after).take(query.limit).cloned().collect(),
        None => {
            let mut latest: Vec<_> = all.rev().take(query.limit).cloned().collect();
            latest.reverse();
            latest
        }
    };
    let full = query.after.is_some() && events.len() == query.limit;
    let next = events.last().filter(|_| full).map_or(kept.last, |it| it.seq);
    Page { events, next, first: first(kept) }
}

/// Gets entries as they come.
pub struct Follower {
    news: broadcast::Receiver<Arc<Recorded>>,
    trail: Weak<Inner>,
}

impl Follower {
    /// The next entry, or that some were missed; `None` once the node is gone. Nothing is lost when the future is
    /// dropped.
    pub async fn recv(&mut self) -> Option<Arc<Recorded>> {
        match self.news.recv().await {
            Ok(recorded) => Some(recorded),
            Err(RecvError::Lagged(missed)) => Some(Trail(self.trail.upgrade()?).missed(missed)),
            Err(RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::node::NodeName;
    use tokio::sync::broadcast::error::TryRecvError;

    fn after(seq: u64, limit: usize) -> Query {
        Query { after: Some(seq), limit, ..Query::default() }
    }

    fn latest(limit: usize) -> Query {
        Query { limit, ..Query::default() }
    }

    fn paused(trail: &Trail, many: std::ops::RangeInclusive<u64>) {
        many.for_each(|millis| trail.note(Event::Paused { millis }));
    }

    fn numbers(page: &Page) -> Vec<u64> {
        page.events.iter().map(|it| it.seq).collect()
    }

    #[test]
    fn pages_follow_each_other_without_gap_or_double() {
        let trail = Trail::default();
        assert_eq!(trail.read(&after(0, 3)), Page { events: vec![], next: 0, first: 1 });
        paused(&trail, 1..=3);
        let peer: NodeName = "b@127.0.0.1".parse().expect("valid");
        trail.note(Event::PeerConnecting { peer: peer.clone() });
        paused(&trail, 5..=7);
        let label = Some("paused".to_owned());
        let page = trail.read(&Query { label: label.clone(), ..after(1, 3) });
        assert_eq!((numbers(&page), page.next), (vec![2, 3, 5], 5));
        let page = trail.read(&Query { label, ..after(page.next, 3) });
        assert_eq!((numbers(&page), page.next), (vec![6, 7], 7));
        let page = trail.read(&Query { node: Some(peer), ..after(0, 3) });
        assert_eq!((numbers(&page), page.next), (vec![4], 7), "the end: nothing before 7 fits");
        let page = trail.read(&latest(3));
        assert_eq!((numbers(&page), page.next, page.first), (vec![5, 6, 7], 7, 1));
    }

    #[test]
    fn the_oldest_goes_and_the_first_says_so() {
        let trail = Trail::default();
        paused(&trail, 1..=KEPT as u64 + 5);
        let page = trail.read(&after(0, 1));
        assert_eq!((numbers(&page), page.first), (vec![6], 6));
    }

    #[tokio::test]
    async fn who_follows_misses_nothing_and_a_slow_one_learns_how_much() {
        let trail = Trail::default();
        paused(&trail, 1..=3);
        let (page, mut follower) = trail.follow_after(1);
        assert_eq!(numbers(&page), [2, 3]);
        paused(&trail, 4..=4 + WAITING as u64);
        let missed = follower.recv().await.expect("runs");
        assert_eq!((missed.seq, &missed.event), (0, &Event::EventsMissed { count: 1 }));
        let next = follower.recv().await.expect("runs");
        assert_eq!(next.seq, 5);
        assert!(missed.stamp > next.stamp, "it is told later than that happened");
        drop((page, trail));
        while let Some(left) = follower.recv().await {
            assert!(left.seq > 5, "{left:?}");
        }
    }

    /// An hour from now.
    fn ahead() -> u64 {
        clock::millis() + 3_600_000
    }

    fn stored_after(last: u64) -> Trail {
        let trail = Trail::default();
        trail.store_after(last, Stamp { millis: ahead(), count: 5 }, Arc::new(7.into()));
        trail
    }

    #[test]
    fn a_stored_trail_goes_on_where_the_life_before_ended() {
        let trail = stored_after(40);
        assert_eq!((trail.first(), trail.waiting()), (41, 0));
        paused(&trail, 1..=3);
        let (stored, waiting) = trail.unstored(2);
        assert_eq!((stored, waiting.len(), waiting[0].seq, trail.waiting()), (40, 2, 41, 3));
        assert_eq!(waiting[0].incarnation, Incarnation(7));
        let (stamp, hour) = (waiting[0].stamp, ahead());
        assert!(stamp.count == 6 && (hour - 60_000..=hour).contains(&stamp.millis), "{stamp}");
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
        paused(&trail, 1..=MAX_UNSTORED as u64 + 3);
        assert_eq!((trail.first(), trail.waiting()), (1, MAX_UNSTORED));
        let mut last = 0;
        let mut missed = 0;
        loop {
            match follower.news.try_recv() {
                Ok(news) => last = news.seq,
                Err(TryRecvError::Lagged(many)) => missed += many,
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        assert!(missed > 0, "the queue is bounded");
        assert_eq!(last, 0, "followers hear of those without a number too");
        trail.stored(10);
        paused(&trail, 0..=0);
        let page = trail.read(&latest(2));
        assert_eq!(page.events[0].event, Event::EventsLost { count: 3 });
        assert_eq!(numbers(&page), [MAX_UNSTORED as u64 + 1, MAX_UNSTORED as u64 + 2]);
        trail.stored(u64::MAX);
        assert_eq!(trail.first(), MAX_UNSTORED as u64 + 2 - KEPT as u64 + 1);
    }

    #[test]
    fn what_follows_a_word_has_a_later_stamp() {
        let (here, there) = (Trail::default(), Trail::default());
        for _ in 0..5 {
            let word = there.stamp();
            assert!(here.heard(word));
            here.note(Event::StoreRecovered);
            let noted = here.read(&latest(1)).events.remove(0);
            assert!(noted.stamp > word);
            assert!(there.heard(noted.stamp));
        }
    }
}
