//! What services do with presence: they are present themselves, on any topic, see who is there, and follow it.
//!
//! What is wanted stands in a book that the router and the services share, and the router does it: at once while it runs, and all of
//! it again when it starts anew.
//!
//! # Invariants
//! 1. What is tracked is there as long as its [`Tracked`] is, through restarts of the router and of links.
//! 2. A follower is told who is there, and then each change, once and in order. One that lags by [`MAX_NEWS`] loses all of them, and
//!    is told how many, and who is there, when it comes back to listen; what it has not taken is bounded so.
//! 3. A word to the router may be lost; what it was about is done with its next one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, oneshot};

use super::topic::Presence as Change;
use super::{ChannelRouter, Msg};
use crate::io::metrics::{Count, Metrics};
use crate::proto::presence::{Attendance, Entry, Output, Presence, PresenceError, check_meta};
use crate::proto::topic::Topic;

/// News that wait for a follower.
const MAX_NEWS: usize = 1024;

type Done = oneshot::Sender<Result<(), PresenceError>>;

/// What is wanted.
#[derive(Default)]
pub(super) struct Book {
    wanted: Mutex<Wanted>,
    /// Something in it was not done yet.
    dirty: AtomicBool,
}

#[derive(Default)]
struct Wanted {
    tracked: BTreeMap<u64, Wish>,
    asks: Vec<(Topic, oneshot::Sender<Vec<PresenceEntry>>)>,
    followers: BTreeMap<u64, (Topic, Arc<Feed>)>,
}

/// An entry that is wanted.
struct Wish {
    topic: Topic,
    key: String,
    meta: String,
    /// What this router shows of it.
    shown: Option<String>,
    gone: bool,
    done: Option<Done>,
}

/// What waits for one follower.
#[derive(Default)]
struct Feed {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

struct Waiting {
    news: VecDeque<PresenceNews>,
    missed: u64,
    /// It was told who is there at least once.
    begun: bool,
    /// It has to be told who is there before anything else.
    behind: bool,
    /// It listens for that.
    asks: bool,
}

impl Default for Waiting {
    fn default() -> Self {
        Self { news: VecDeque::new(), missed: 0, begun: false, behind: true, asks: true }
    }
}

impl Feed {
    fn push(&self, news: PresenceNews) {
        let mut waiting = self.waiting.lock();
        if !waiting.begun {
            return;
        }
        if waiting.behind || waiting.news.len() >= MAX_NEWS {
            waiting.missed += waiting.news.len() as u64 + 1;
            (waiting.news, waiting.behind) = (VecDeque::new(), true);
        } else {
            waiting.news.push_back(news);
        }
        drop(waiting);
        self.wake.notify_one();
    }

    /// Tells who is there, if it is time; what was said before is of no use then.
    fn restate(&self, present: impl FnOnce() -> Vec<PresenceEntry>) {
        let mut waiting = self.waiting.lock();
        if !waiting.behind || !waiting.asks {
            return;
        }
        let missed = std::mem::take(&mut waiting.missed) + waiting.news.len() as u64;
        waiting.news = VecDeque::from([PresenceNews::State { present: present(), missed }]);
        (waiting.begun, waiting.behind, waiting.asks) = (true, false, false);
        drop(waiting);
        self.wake.notify_one();
    }
}

impl Book {
    /// The router starts: nothing of it is done.
    pub(super) fn recall(&self) {
        let mut wanted = self.wanted.lock();
        wanted.tracked.values_mut().for_each(|wish| wish.shown = None);
        for (_, feed) in wanted.followers.values() {
            let mut waiting = feed.waiting.lock();
            (waiting.behind, waiting.asks) = (true, true);
        }
        drop(wanted);
        self.dirty.store(true, Ordering::Release);
    }

    /// Whether something was not done; it is done then.
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty.swap(false, Ordering::AcqRel)
    }

    /// Has present who shall be.
    pub(super) fn fulfil(
        &self,
        attendance: &mut Attendance,
        metrics: &Metrics,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        self.wanted.lock().tracked.retain(|id, wish| {
            if wish.gone {
                attendance.leave(*id, now, out);
                return false;
            }
            let done = match &wish.shown {
                Some(shown) if *shown == wish.meta => Ok(()),
                Some(_) => attendance.update(*id, &wish.meta, now, out),
                None => {
                    let place = (&wish.topic, wish.key.as_str(), wish.meta.as_str());
                    attendance.join(*id, None, place, now, out)
                }
            };
            if let Err(refused) = &done {
                metrics.count(Count::Channels, "presence_refused");
                let (topic, key) = (&wish.topic, &wish.key);
                tracing::warn!(%topic, key, %refused, "a service is not present as it wants to be");
            }
            let before = if done.is_ok() { Some(wish.meta.clone()) } else { wish.shown.take() };
            if let Some(told) = wish.done.take() {
                told.send(done).unwrap_or(()); // who gave up waiting has it, or lets go of it
            }
            // What is refused leaves all as it was.
            if let Some(before) = &before {
                wish.meta.clone_from(before);
            }
            wish.shown = before;
            wish.shown.is_some()
        });
    }

    /// Answers who asks, and tells followers that are behind who is there.
    pub(super) fn answer(&self, presence: &Presence) {
        let present = |topic: &Topic| presence.entries(topic).cloned().map(PresenceEntry).collect();
        let mut wanted = self.wanted.lock();
        for (topic, ask) in std::mem::take(&mut wanted.asks) {
            ask.send(present(&topic)).unwrap_or_else(drop);
        }
        for (topic, feed) in wanted.followers.values() {
            feed.restate(|| present(topic));
        }
    }

    /// Notifies the followers of a topic of what has changed.
    pub(super) fn notify(&self, topic: &Topic, changes: &[Change]) {
        let wanted = self.wanted.lock();
        let feeds = wanted.followers.values().filter(|(of, _)| of == topic);
        for (_, feed) in feeds {
            let mut before: Option<&Arc<Entry>> = None;
            for change in changes {
                match (change, before.take()) {
                    (Change::Joined(now), Some(old)) if now.previous == Some(old.reference) => {
                        let [before, now] = [old, now].map(|it| PresenceEntry(it.clone()));
                        feed.push(PresenceNews::Updated { before, now });
                        continue;
                    }
                    (_, Some(left)) => feed.push(PresenceNews::Left(PresenceEntry(left.clone()))),
                    (_, None) => {}
                }
                match change {
                    Change::Joined(entry) => {
                        feed.push(PresenceNews::Joined(PresenceEntry(entry.clone())));
                    }
                    Change::Left(entry) => before = Some(entry),
                }
            }
            if let Some(left) = before {
                feed.push(PresenceNews::Left(PresenceEntry(left.clone())));
            }
        }
    }
}

/// Somebody who is in a topic: one of the metas of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresenceEntry(Arc<Entry>);

impl PresenceEntry {
    /// Who.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.0.key
    }

    /// What is said of it: the text of a JSON object.
    #[must_use]
    pub fn meta(&self) -> &str {
        &self.0.meta
    }

    /// The meta as a value.
    ///
    /// # Errors
    /// It is of another type.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(&self.0.meta)
    }

    /// Its `phx_ref`, which no other entry of the cluster has; an update has another one.
    #[must_use]
    pub fn reference(&self) -> String {
        self.0.reference.to_string()
    }
}

/// What a follower of a topic is told.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PresenceNews {
    /// Who is there, in place of all that was told before: at first, and again when the follower was too slow or this node's router
    /// has started anew.
    State {
        /// All entries.
        present: Vec<PresenceEntry>,
        /// How many news were lost since the last one that was told.
        missed: u64,
    },
    /// An entry came.
    Joined(PresenceEntry),
    /// An entry has another meta.
    Updated {
        /// What it was.
        before: PresenceEntry,
        /// What it is.
        now: PresenceEntry,
    },
    /// An entry left.
    Left(PresenceEntry),
}

/// Presence for services: who is in which topic, in the whole cluster, whether or not clients are there. Clones are the same.
///
/// What is asked of it waits while this node's router starts anew.
#[derive(Clone)]
pub struct Presences(ChannelRouter);

impl std::fmt::Debug for Presences {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Presences")
    }
}

impl Presences {
    /// That of a router.
    pub(crate) fn new(router: &ChannelRouter) -> Self {
        Self(router.clone())
    }

    /// The router.
    pub(crate) fn router(&self) -> &ChannelRouter {
        &self.0
    }

    fn want(&self, change: impl FnOnce(&mut Wanted)) {
        let book = &self.0.book;
        change(&mut book.wanted.lock());
        book.dirty.store(true, Ordering::Release);
        self.0.handle.cast(Msg::Work);
    }

    /// Makes somebody present in a topic, on every node, until the result is dropped. A key may be there several times, each time with a meta
    /// of its own: what serializes to a JSON object of at most 1,024 bytes, without `phx_ref`.
    ///
    /// # Errors
    /// [`PresenceError`]; nobody is present.
    pub async fn track(
        &self,
        topic: &Topic,
        key: &str,
        meta: &impl Serialize,
    ) -> Result<Tracked, PresenceError> {
        if !self.0.bus.exchange().capabilities().may_publish(topic) {
            return Err(PresenceError::NotAllowed);
        }
        let (meta, (done, tracked), id) = (text(meta)?, oneshot::channel(), self.0.number());
        let (topic, key, shown, gone) = (topic.clone(), key.to_owned(), None, false);
        let wish = Wish { topic, key, meta, shown, gone, done: Some(done) };
        // Lets go of it when the caller does not wait.
        let guard = Tracked { presences: self.clone(), id };
        self.want(|wanted| drop(wanted.tracked.insert(id, wish)));
        tracked.await.unwrap_or(Err(PresenceError::Unknown))?;
        Ok(guard)
    }

    /// All entries of a topic, in order of keys, as this node knows them.
    pub async fn list(&self, topic: &Topic) -> Vec<PresenceEntry> {
        let (ask, answered) = oneshot::channel();
        self.want(|wanted| wanted.asks.push((topic.clone(), ask)));
        answered.await.unwrap_or_default()
    }

    /// Follows who comes to a topic, changes and leaves. It begins with who is there.
    pub fn follow(&self, topic: &Topic) -> Following {
        let (id, feed) = (self.0.number(), Arc::<Feed>::default());
        self.want(|wanted| drop(wanted.followers.insert(id, (topic.clone(), feed.clone()))));
        Following { presences: self.clone(), id, feed }
    }
}

/// The text of a meta.
fn text(meta: &impl Serialize) -> Result<String, PresenceError> {
    let text = serde_json::to_string(meta).map_err(|_unserializable| PresenceError::Meta)?;
    check_meta(&text)?;
    Ok(text)
}

/// Somebody whom this service has present. Leaves when it is dropped.
#[must_use = "who is tracked leaves when this is dropped"]
pub struct Tracked {
    presences: Presences,
    id: u64,
}

impl std::fmt::Debug for Tracked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tracked")
    }
}

impl Tracked {
    /// Shows another meta in place of the one before.
    ///
    /// # Errors
    /// [`PresenceError`]; the one before is shown.
    pub async fn update(&self, meta: &impl Serialize) -> Result<(), PresenceError> {
        let (meta, (done, updated)) = (text(meta)?, oneshot::channel());
        self.presences.want(|wanted| {
            if let Some(wish) = wanted.tracked.get_mut(&self.id) {
                (wish.meta, wish.done) = (meta, Some(done));
            }
        });
        // One that another update overtakes is shown as that says.
        updated.await.unwrap_or(Ok(()))
    }

    /// Leaves, as it does when it is dropped.
    pub fn untrack(self) {
        drop(self);
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.presences.want(|wanted| {
            if let Some(wish) = wanted.tracked.get_mut(&self.id) {
                wish.gone = true;
            }
        });
    }
}

/// News of who is in a topic.
#[must_use = "it ends when it is dropped"]
pub struct Following {
    presences: Presences,
    id: u64,
    feed: Arc<Feed>,
}

impl std::fmt::Debug for Following {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Following")
    }
}

impl Following {
    /// The next news. Nothing is lost when the future is dropped; none comes any more when the node has ended.
    pub async fn recv(&mut self) -> PresenceNews {
        loop {
            let asks = {
                let mut waiting = self.feed.waiting.lock();
                if let Some(news) = waiting.news.pop_front() {
                    return news;
                }
                waiting.behind && !std::mem::replace(&mut waiting.asks, true)
            };
            if asks {
                self.presences.want(|_| {});
            }
            self.feed.wake.notified().await;
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.presences.want(|wanted| drop(wanted.followers.remove(&self.id)));
    }
}
