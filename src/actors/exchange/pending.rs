//! What this node awaits from one peer, and does for it: calls, watches, requests under way.
//!
//! Invariants:
//! 1. Each call that waits ends once: with a reply, or dropped with the link.
//! 2. Of one peer's requests, of the answers to them, and of its watches there are at most as many bytes as
//!    `proto::budget` says. This node's own watches there are bounded likewise: a watch counts from when it is sent until
//!    its answer comes, or until that it is taken back is on its way.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::actors::exchange::account::{Account, Kept};
use crate::proto::budget::{ANSWERS, REQUEST_COST, REQUESTS, WATCH_COST, WATCHES};
use crate::proto::interest::TooMany;
use crate::proto::talk::{DownReason, Outcome};
use crate::proto::topic::Name;

/// Answers are counted in portions of so many bytes.
const PORTION: usize = 1024;
/// What is set aside for an answer that is being made at most: some of the largest must fit at once.
const MAX_SET_ASIDE: usize = ANSWERS / 16;

/// A watch, and what it counts for.
struct Watched<T>(T, usize);

/// Watches in one direction.
struct Watches<T> {
    table: HashMap<u64, Watched<T>>,
    bytes: usize,
}

impl<T> Default for Watches<T> {
    fn default() -> Self {
        Self { table: HashMap::new(), bytes: 0 }
    }
}

impl<T> Watches<T> {
    fn insert(&mut self, watch: u64, cost: usize, entry: T) -> Result<(), TooMany> {
        if self.bytes + cost > WATCHES || self.table.contains_key(&watch) {
            return Err(TooMany::WATCHES);
        }
        self.bytes += cost;
        self.table.insert(watch, Watched(entry, cost));
        Ok(())
    }

    fn remove(&mut self, watch: u64) -> Option<T> {
        let Watched(entry, cost) = self.table.remove(&watch)?;
        self.bytes -= cost;
        Some(entry)
    }
}

/// What a watch on a name counts for, at both ends alike.
fn cost(name: &Name) -> usize {
    WATCH_COST + name.as_str().len()
}

/// The table of one link.
pub(super) struct Pending {
    calls: Mutex<HashMap<u64, oneshot::Sender<(Outcome, Bytes)>>>,
    /// Which names of the peer are watched here; `None`: nobody awaits it any more, and the peer is to be informed.
    watches: Mutex<Watches<Option<oneshot::Sender<DownReason>>>>,
    /// Which names the peer watches, or watched while the answer waits.
    watched: Mutex<Watches<Name>>,
    under_way: AtomicUsize,
    /// Room for answers, in portions.
    answers: Arc<Semaphore>,
    next: AtomicU64,
    /// Calls that wait, and requests under way.
    open: AtomicUsize,
}

impl Default for Pending {
    fn default() -> Self {
        Self {
            calls: Mutex::default(),
            watches: Mutex::default(),
            watched: Mutex::default(),
            under_way: AtomicUsize::new(0),
            answers: Arc::new(Semaphore::new(ANSWERS / PORTION)),
            next: AtomicU64::new(0),
            open: AtomicUsize::new(0),
        }
    }
}

/// A call that waits for its reply. Dropped, it is forgotten.
pub(super) struct PendingCall<'a> {
    pending: &'a Pending,
    pub(super) number: u64,
    pub(super) reply: oneshot::Receiver<(Outcome, Bytes)>,
}

impl Drop for PendingCall<'_> {
    fn drop(&mut self) {
        self.pending.open.fetch_sub(1, Ordering::Relaxed);
        self.pending.calls.lock().remove(&self.number);
    }
}

impl Pending {
    /// Whether more than one conversation goes on, so that waiting a moment may fill a piece.
    pub(super) fn busy(&self) -> bool {
        self.open.load(Ordering::Relaxed) > 1
    }

    /// The link is gone: nobody will answer any more.
    pub(super) fn end(&self, why: DownReason) {
        self.calls.lock().clear();
        drop(std::mem::take(&mut *self.watched.lock()));
        for (_, Watched(watch, _)) in std::mem::take(&mut *self.watches.lock()).table {
            watch.map_or(Ok(()), |watch| watch.send(why)).unwrap_or(()); // the watcher may have gone
        }
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn call(&self) -> PendingCall<'_> {
        let (number, (told, reply)) = (self.number(), oneshot::channel());
        self.calls.lock().insert(number, told);
        self.open.fetch_add(1, Ordering::Relaxed);
        PendingCall { pending: self, number, reply }
    }

    /// Whether a reply is waited for.
    pub(super) fn awaits(&self, call: u64) -> bool {
        self.calls.lock().contains_key(&call)
    }

    /// A reply. One that nobody waits for came too late.
    pub(super) fn replied(&self, call: u64, outcome: Outcome, payload: Bytes) -> bool {
        let waiting = self.calls.lock().remove(&call);
        waiting.is_some_and(|waiting| waiting.send((outcome, payload)).is_ok())
    }

    /// A watch on one of the peer's names: its number, and what tells its end.
    pub(super) fn watch(
        &self,
        name: &Name,
    ) -> Result<(u64, oneshot::Receiver<DownReason>), TooMany> {
        let (number, (told, gone)) = (self.number(), oneshot::channel());
        self.watches.lock().insert(number, cost(name), Some(told))?;
        Ok((number, gone))
    }

    /// Nobody awaits a watch any more; whether the peer is to learn it.
    pub(super) fn unwatch(&self, watch: u64) -> bool {
        let mut watches = self.watches.lock();
        watches.table.get_mut(&watch).is_some_and(|entry| entry.0.take().is_some())
    }

    /// A watch is over: its answer came, or the peer was never told of it, or is told that it is over.
    pub(super) fn forget(&self, watch: u64) -> Option<oneshot::Sender<DownReason>> {
        self.watches.lock().remove(watch)?
    }

    /// A watched name is gone.
    pub(super) fn gone(&self, watch: u64, why: DownReason) {
        if let Some(watch) = self.forget(watch) {
            watch.send(why).unwrap_or(()); // the watcher may have gone
        }
    }

    /// The peer watches a name.
    pub(super) fn watched(&self, watch: u64, name: Name) -> Result<(), TooMany> {
        self.watched.lock().insert(watch, cost(&name), name)
    }

    /// Whether it does.
    pub(super) fn is_watched(&self, watch: u64) -> bool {
        self.watched.lock().table.contains_key(&watch)
    }

    /// It does not any more, or its answer is on its way; which name that was.
    pub(super) fn unwatched(&self, watch: u64) -> Option<Name> {
        self.watched.lock().remove(watch)
    }

    /// Waits for room for an answer of about so many bytes. It is room again when the result is dropped. `None`: with
    /// all else that is kept of the peer there is none.
    pub(super) async fn answer(
        &self,
        about: usize,
        account: &Arc<Account>,
    ) -> Option<(OwnedSemaphorePermit, Kept)> {
        let portions = about.min(MAX_SET_ASIDE) / PORTION + 1;
        let permit = self.answers.clone().acquire_many_owned(u32::try_from(portions).ok()?).await;
        Some((permit.ok()?, account.room(portions * PORTION)?))
    }

    /// A request of so many bytes begins: what it counts for, and whether it may go on.
    pub(super) fn begin(&self, length: usize) -> (usize, bool) {
        let cost = length + REQUEST_COST;
        let before = self.under_way.fetch_add(cost, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
        (cost, before == 0 || before + cost <= REQUESTS)
    }

    /// It ended.
    pub(super) fn finish(&self, cost: usize) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        self.under_way.fetch_sub(cost, Ordering::Relaxed);
    }
}

#[cfg(test)]
impl Pending {
    /// Calls and watches that wait for the peer, and names that it watches.
    pub(super) fn open(&self) -> (usize, usize, usize) {
        let (watches, watched) = (self.watches.lock(), self.watched.lock());
        (self.calls.lock().len(), watches.table.len(), watched.table.len())
    }
}
