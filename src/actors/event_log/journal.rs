//! The journal: the trail on disk. It writes what waits, signs and shortens the chain, and reads both as one.
//!
//! Every step waits for the disk, so it runs on a blocking thread. Invariants:
//! 1. One step at a time, and each goes on from what the file says, so that nothing is written twice, no matter who began the
//!    last step and however it ended.
//! 2. The numbers of the chain are those of the trail. A file that took the place of a damaged one begins where the
//!    damaged one ended.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::actors::news::{Follower, Trail};
use crate::io::clock;
use crate::io::identity::{Identity, Signers};
use crate::io::store::{Chain, Limits, StoreError};
use crate::proto::chain::{Fault, Verified, Why};
use crate::proto::event::{Page, Query, Recorded};
use crate::proto::seal::Equivocation;

/// Entries that are read at once for somebody who follows.
const PAGE: usize = 256;
/// Records of one commit at most.
const AT_ONCE: usize = 4096;

/// What stays, unless it is told otherwise: three months, and 256 MiB.
pub const LIMITS: Limits =
    Limits { age: Duration::from_secs(90 * 24 * 3600), bytes: 256 * 1024 * 1024 };

struct Inside {
    chain: Chain,
    trail: Trail,
    identity: Arc<Identity>,
    limits: Limits,
    step: Mutex<()>,
}

/// The journal. Clones are the same.
#[derive(Clone)]
pub struct Journal(Arc<Inside>);

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Journal").field(&self.0.chain).finish()
    }
}

impl Journal {
    /// Opens the chain, and lets the trail go on where it ends. Waits for the disk.
    ///
    /// # Errors
    /// As [`Chain::new`].
    pub fn open(
        chain: Chain,
        trail: Trail,
        identity: Arc<Identity>,
        life: Arc<std::sync::atomic::AtomicU64>,
        limits: Limits,
    ) -> Result<Self, StoreError> {
        let last = chain.last()?.seq;
        // A record that cannot be read is for `verify` to find, not a reason not to start.
        let newest = chain.newest(u64::MAX, 1, |_| true).unwrap_or_default();
        let stamp = newest.first().map(|event| event.stamp).unwrap_or_default();
        if !chain.signers()?.iter().any(|known| *known == *identity.certificate()) {
            chain.keep_signer(identity.id(), &identity.certificate())?;
        }
        trail.store_after(last, stamp, life);
        Ok(Self(Arc::new(Inside { chain, trail, identity, limits, step: Mutex::new(()) })))
    }

    /// The trail that it keeps.
    pub fn trail(&self) -> &Trail {
        &self.0.trail
    }

    /// The proofs that earlier lives found or were sent; none while the disk cannot be read.
    pub fn proofs(&self) -> Vec<Equivocation> {
        self.0.chain.proofs().unwrap_or_else(|error| {
            tracing::warn!(%error, "what was proven of other nodes cannot be read");
            Vec::new()
        })
    }

    /// Writes what waits, durable on return. Waits for the disk.
    ///
    /// # Errors
    /// [`StoreError`]; what is not written waits on.
    pub fn write(&self) -> Result<(), StoreError> {
        let _one = self.0.step.lock();
        let trail = &self.0.trail;
        // What comes meanwhile is for the next: events that come as fast as they are written would keep it forever.
        let last = trail.last();
        while trail.unstored(0).0 < last && self.write_some()? {}
        Ok(())
    }

    fn write_some(&self) -> Result<bool, StoreError> {
        let Inside { chain, trail, identity, .. } = &*self.0;
        let (stored, waiting) = trail.unstored(AT_ONCE);
        if waiting.is_empty() {
            return Ok(false);
        }
        let last = chain.last()?.seq;
        if last > stored {
            // A commit that came to its end although it seemed to fail.
            trail.stored(last);
            return Ok(true);
        }
        if last < stored && last > 0 {
            return Err(Fault { seq: last.saturating_add(1), why: Why::TailCut }.into());
        }
        if last < stored {
            chain.begin_after(stored, clock::wall(), |bytes| identity.sign(bytes))?;
            chain.keep_signer(identity.id(), &identity.certificate())?;
        }
        trail.stored(chain.append(&waiting)?.seq);
        Ok(true)
    }

    /// Signs where the chain ends, and forgets what is past the limits. Waits for the disk.
    ///
    /// # Errors
    /// As [`Chain::sign_head`] and [`Chain::retain`].
    pub fn seal(&self) -> Result<(), StoreError> {
        let _one = self.0.step.lock();
        let Inside { chain, identity, limits, .. } = &*self.0;
        let (now, sign) = (clock::wall(), |bytes: &[u8]| identity.sign(bytes));
        chain.sign_head(now, sign)?;
        let signers = self.signers()?;
        chain.retain(limits, now, sign, |message, by| signers.signed(message, by))?;
        Ok(())
    }

    fn signers(&self) -> Result<Signers, StoreError> {
        let Inside { chain, identity, .. } = &*self.0;
        Ok(Signers::of(&identity.verifier(), identity.name(), &chain.signers()?))
    }

    /// Writes what waits and signs it, durable on return.
    ///
    /// # Errors
    /// [`StoreError`]; what is not written waits on.
    pub async fn flush(&self) -> Result<(), StoreError> {
        self.on_a_thread(|journal| {
            journal.write()?;
            journal.seal()
        })
        .await
    }

    /// Flushes, and walks the whole chain.
    ///
    /// # Errors
    /// [`StoreError::Chain`] with the first record that is not as it was written.
    pub async fn verify(&self) -> Result<Verified, StoreError> {
        self.flush().await?;
        self.on_a_thread(|journal| {
            let signers = journal.signers()?;
            journal.0.chain.verify(|message, signature| signers.signed(message, signature))
        })
        .await
    }

    /// What is asked for, whether it is stored yet or not; what is in memory alone while the disk cannot be read.
    pub async fn read(&self, query: Query) -> Page {
        let trail = &self.0.trail;
        if query.after.is_some_and(|after| after.saturating_add(1) >= trail.first()) {
            return trail.read(&query);
        }
        let asked = query.clone();
        let read = self.on_a_thread(move |journal| journal.both(&asked)).await;
        read.unwrap_or_else(|error| {
            tracing::warn!(%error, "stored events cannot be read");
            trail.read(&query)
        })
    }

    /// What is stored, with its hashes; what waits is stored first.
    ///
    /// # Errors
    /// As [`Chain::newest`].
    pub async fn stored(&self, query: Query) -> Result<Page, StoreError> {
        self.on_a_thread(move |journal| {
            journal.write()?;
            journal.0.chain.read(&query)
        })
        .await
    }

    /// What is on disk and what is in memory.
    fn both(&self, query: &Query) -> Result<Page, StoreError> {
        let Inside { chain, trail, .. } = &*self.0;
        // A file that took the place of a damaged one has nothing before the next write.
        let (stored, _) = trail.unstored(0);
        if chain.last()?.seq < stored {
            return Ok(trail.read(query));
        }
        if query.after.is_some() {
            // The disk before the memory: what is stored meanwhile is in both, and not between them.
            let mut older = chain.read(query)?;
            if older.events.len() == query.limit {
                return Ok(older);
            }
            let from = older.next;
            let limit = query.limit - older.events.len();
            let rest = Query { after: Some(from), limit, ..query.clone() };
            let newer = trail.read(&rest);
            // What was stored and dropped from memory since the disk was read is on the disk now.
            let missed = newer.first > from.saturating_add(1);
            let newer = if missed { self.both(&rest)? } else { newer };
            older.events.extend(newer.events);
            return Ok(Page { next: newer.next, ..older });
        }
        let newer = trail.read(query);
        let limit = query.limit.saturating_sub(newer.events.len());
        let mut events = chain.newest(newer.first, limit, |event| query.fits(event))?;
        events.extend(newer.events);
        Ok(Page { events, next: newer.next, first: chain.first()?.min(newer.first) })
    }

    /// Everything after a number, or everything from now on.
    #[must_use]
    pub fn follow(&self, after: Option<u64>) -> Following {
        let follower = after.is_none().then(|| self.0.trail.follow());
        Following { journal: self.clone(), queue: VecDeque::new(), behind: after, follower }
    }

    async fn on_a_thread<T: Send + 'static>(
        &self,
        step: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let journal = self.clone();
        let stepped = tokio::task::spawn_blocking(move || step(&journal)).await;
        stepped.unwrap_or_else(|error| Err(StoreError::Storage(error.to_string())))
    }
}

/// Gets events, first those that were and then those that come.
pub struct Following {
    journal: Journal,
    queue: VecDeque<Recorded>,
    /// What is still to be read begins after this number.
    behind: Option<u64>,
    follower: Option<Follower>,
}

impl Following {
    /// The next event, or that some were missed; `None` once the node is gone. Nothing is lost when the future is
    /// dropped.
    pub async fn recv(&mut self) -> Option<Recorded> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(event);
            }
            let Some(after) = self.behind else { break };
            let trail = self.journal.trail();
            if after.saturating_add(1) >= trail.first() {
                let (page, follower) = trail.follow_after(after);
                self.queue.extend(page.events);
                (self.behind, self.follower) = (None, Some(follower));
                continue;
            }
            let query = Query { after: Some(after), limit: PAGE, ..Query::default() };
            let page = self.journal.read(query).await;
            // While the disk cannot be read, memory goes on from its first.
            let missed = page.first.saturating_sub(after.saturating_add(1));
            // Older events that outlasted the rest are no news: a query shows them, a follower does not get them.
            self.queue.extend(page.events.into_iter().filter(|event| event.seq >= page.first));
            self.behind = Some(page.next.max(after.saturating_add(missed)));
            if missed > 0 {
                return Some(Arc::unwrap_or_clone(self.journal.trail().missed(missed)));
            }
        }
        self.follower.as_mut()?.recv().await.map(Arc::unwrap_or_clone)
    }
}

#[cfg(test)]
mod tests;
