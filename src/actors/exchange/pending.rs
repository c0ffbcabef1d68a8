//! What this node awaits from one peer, and does for it: calls, watches, requests under way.
//!
//! Invariants:
//! 1. Each call that waits ends once: with a reply, or dropped with the link.
//! 2. Of one peer's requests at most [`UNDER_WAY`] bytes are under way, and it watches at most [`MAX_WATCHES`] names.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::proto::interest::TooMany;
use crate::proto::talk::{DownReason, Outcome};
use crate::proto::topic::Name;

/// Bytes of one peer's requests that may be under way, or one request that is longer.
const UNDER_WAY: usize = 4 * 1024 * 1024;
/// What a request costs beside its payload.
const OVERHEAD: usize = 256;
/// Watches of one peer.
const MAX_WATCHES: usize = 65_536;

/// The table of one link.
#[derive(Default)]
pub(super) struct Pending {
    calls: Mutex<HashMap<u64, oneshot::Sender<(Outcome, Bytes)>>>,
    watches: Mutex<HashMap<u64, oneshot::Sender<DownReason>>>,
    /// Which names the peer watches.
    watched: Mutex<HashMap<u64, Name>>,
    under_way: AtomicUsize,
    next: AtomicU64,
    /// Calls that wait, and requests under way.
    open: AtomicUsize,
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
        lock(&self.pending.calls).remove(&self.number);
    }
}

impl Pending {
    /// Whether more than one conversation goes on, so that waiting a moment may fill a piece.
    pub(super) fn busy(&self) -> bool {
        self.open.load(Ordering::Relaxed) > 1
    }

    /// The link is gone: nobody will answer any more.
    pub(super) fn end(&self, why: DownReason) {
        lock(&self.calls).clear();
        lock(&self.watched).clear();
        for (_, watch) in std::mem::take(&mut *lock(&self.watches)) {
            watch.send(why).unwrap_or(()); // the watcher may have gone
        }
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn call(&self) -> PendingCall<'_> {
        let (number, (told, reply)) = (self.number(), oneshot::channel());
        lock(&self.calls).insert(number, told);
        self.open.fetch_add(1, Ordering::Relaxed);
        PendingCall { pending: self, number, reply }
    }

    /// A reply. One that nobody waits for came too late.
    pub(super) fn replied(&self, call: u64, outcome: Outcome, payload: Bytes) -> bool {
        let waiting = lock(&self.calls).remove(&call);
        waiting.is_some_and(|waiting| waiting.send((outcome, payload)).is_ok())
    }

    /// A watch on one of the peer's names: its number, and what tells its end.
    pub(super) fn watch(&self) -> (u64, oneshot::Receiver<DownReason>) {
        let (number, (told, gone)) = (self.number(), oneshot::channel());
        lock(&self.watches).insert(number, told);
        (number, gone)
    }

    /// Takes a watch back; whether it was still awaited.
    pub(super) fn unwatch(&self, watch: u64) -> bool {
        lock(&self.watches).remove(&watch).is_some()
    }

    /// A watched name is gone.
    pub(super) fn gone(&self, watch: u64, why: DownReason) {
        if let Some(watch) = lock(&self.watches).remove(&watch) {
            watch.send(why).unwrap_or(()); // the watcher may have gone
        }
    }

    /// The peer watches a name.
    pub(super) fn watched(&self, watch: u64, name: Name) -> Result<(), TooMany> {
        let mut watched = lock(&self.watched);
        if watched.len() >= MAX_WATCHES || watched.contains_key(&watch) {
            return Err(TooMany);
        }
        watched.insert(watch, name);
        Ok(())
    }

    /// It does not any more; which name that was.
    pub(super) fn unwatched(&self, watch: u64) -> Option<Name> {
        lock(&self.watched).remove(&watch)
    }

    /// A request of so many bytes begins: what it counts for, and whether it may go on.
    pub(super) fn begin(&self, length: usize) -> (usize, bool) {
        let cost = length + OVERHEAD;
        let before = self.under_way.fetch_add(cost, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
        (cost, before == 0 || before + cost <= UNDER_WAY)
    }

    /// It ended.
    pub(super) fn finish(&self, cost: usize) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        self.under_way.fetch_sub(cost, Ordering::Relaxed);
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
impl Pending {
    /// Calls and watches that wait for the peer, and names that it watches.
    pub(super) fn open(&self) -> (usize, usize, usize) {
        (lock(&self.calls).len(), lock(&self.watches).len(), lock(&self.watched).len())
    }
}
