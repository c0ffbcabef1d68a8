//! The journal: the trail on disk. It writes what waits, signs and shortens the chain, and reads both as one.
//!
//! Every step waits for the disk, so it runs on a blocking thread. Invariants:
//! 1. One step at a time, and each goes on from what the file says, so that nothing is written twice, whoever began the
//!    last step and however it ended.
//! 2. The numbers of the chain are those of the trail. A file that took the place of a damaged one begins where the
//!    damaged one ended.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::actors::news::{Follower, Noted, Trail, Wanted};
use crate::io::clock;
use crate::io::identity::{Identity, Signers};
use crate::io::store::{Chain, Entry, Limits, StoreError};
use crate::proto::chain::{Fault, Hash, Record, Verified, Why};

/// Entries that are read at once for somebody who follows.
const PAGE: usize = 256;
/// Records of one commit at most.
const AT_ONCE: usize = 4096;

/// What stays, unless it is told otherwise: three months, and 256 MiB.
pub const LIMITS: Limits =
    Limits { age: Duration::from_secs(90 * 24 * 3600), bytes: 256 * 1024 * 1024 };

/// An event as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its number.
    pub seq: u64,
    /// The hash of the chain up to it, once it is stored.
    pub hash: Option<Hash>,
    /// What.
    pub record: Record,
}

impl From<Entry> for Kept {
    fn from(Entry { tip, record }: Entry) -> Self {
        Self { seq: tip.seq, hash: Some(tip.hash), record }
    }
}

impl From<&Noted> for Kept {
    fn from(noted: &Noted) -> Self {
        Self { seq: noted.seq, hash: None, record: noted.record() }
    }
}

/// A part of what is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Oldest first.
    pub entries: Vec<Kept>,
    /// What comes next is after this number.
    pub next: u64,
    /// The first number that is still kept; what was before is forgotten.
    pub first: u64,
}

impl Part {
    /// The first `limit` entries of a chain after a number that fit.
    ///
    /// # Errors
    /// As [`Chain::newest`].
    pub fn of(chain: &Chain, query: &Query) -> Result<Self, StoreError> {
        let Query { after, limit, wanted } = query;
        // First: what comes meanwhile is then after it.
        let last = chain.last()?.seq;
        let fits = |record: &Record| wanted.fits_record(record);
        let entries = chain.after(after.unwrap_or(0), *limit, fits)?;
        let full = entries.last().filter(|_| entries.len() == *limit).map(|entry| entry.tip.seq);
        let next = full.or(entries.last().map(|entry| entry.tip.seq.max(last))).unwrap_or(last);
        let entries = entries.into_iter().map(Kept::from).collect();
        Ok(Self { entries, next, first: chain.first()? })
    }
}

/// Which part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The first entries after this number; without it, the latest.
    pub after: Option<u64>,
    /// At most so many.
    pub limit: usize,
    /// Only these.
    pub wanted: Wanted,
}

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
        let stamp = newest.first().map(|entry| entry.record.stamp).unwrap_or_default();
        if !chain.signers()?.iter().any(|known| *known == *identity.certificate()) {
            chain.keep_signer(identity.id(), &identity.certificate())?;
        }
        trail.store_after(last, stamp, life);
        Ok(Self(Arc::new(Inside { chain, trail, identity, limits, step: Mutex::new(()) })))
    }

    /// The trail that it keeps.
    #[must_use]
    pub fn trail(&self) -> &Trail {
        &self.0.trail
    }

    /// Writes what waits, durable on return. Waits for the disk.
    ///
    /// # Errors
    /// [`StoreError`]; what is not written waits on.
    pub fn write(&self) -> Result<(), StoreError> {
        let _one = self.0.step.lock().unwrap_or_else(PoisonError::into_inner);
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
        let records: Vec<_> = waiting.iter().map(|noted| noted.record()).collect();
        trail.stored(chain.append(&records)?.seq);
        Ok(true)
    }

    /// Signs where the chain ends, and forgets what is past the limits. Waits for the disk.
    ///
    /// # Errors
    /// As [`Chain::sign_head`] and [`Chain::retain`].
    pub fn seal(&self) -> Result<(), StoreError> {
        let _one = self.0.step.lock().unwrap_or_else(PoisonError::into_inner);
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

    /// What is kept, whether it is stored yet or not; what is in memory alone while the disk cannot be read.
    pub async fn read(&self, query: Query) -> Part {
        let first = self.0.trail.first();
        if query.after.is_some_and(|after| after.saturating_add(1) >= first) {
            return self.newer(&query);
        }
        let asked = query.clone();
        let read = self.on_a_thread(move |journal| journal.both(&asked)).await;
        read.unwrap_or_else(|error| {
            tracing::warn!(%error, "stored events cannot be read");
            self.newer(&query)
        })
    }

    /// What is stored, with its hashes; what waits is stored first. Without a number to begin after, all of it.
    ///
    /// # Errors
    /// As [`Chain::newest`].
    pub async fn stored(&self, query: Query) -> Result<Part, StoreError> {
        self.on_a_thread(move |journal| {
            journal.write()?;
            Part::of(&journal.0.chain, &query)
        })
        .await
    }

    /// What is in memory.
    fn newer(&self, Query { after, limit, wanted }: &Query) -> Part {
        let trail = &self.0.trail;
        let page = match after {
            Some(after) => trail.after(*after, *limit, wanted),
            None => trail.latest(*limit, wanted),
        };
        let entries = page.entries.iter().map(|noted| Kept::from(&**noted)).collect();
        Part { entries, next: page.next, first: page.first }
    }

    /// What is on disk and what is in memory.
    fn both(&self, query: &Query) -> Result<Part, StoreError> {
        let Query { limit, wanted, .. } = query;
        let chain = &self.0.chain;
        // A file that took the place of a damaged one has nothing before the next write.
        let (stored, _) = self.0.trail.unstored(0);
        if chain.last()?.seq < stored {
            return Ok(self.newer(query));
        }
        if query.after.is_some() {
            // The disk before the memory: what is stored meanwhile is in both, and not between them.
            let older = Part::of(chain, query)?;
            if older.entries.len() == *limit {
                return Ok(older);
            }
            let from = older.next;
            let rest =
                Query { after: Some(from), limit: limit - older.entries.len(), ..query.clone() };
            let newer = self.newer(&rest);
            // What was stored and dropped from memory since the disk was read is on the disk now.
            let missed = newer.first > from.saturating_add(1);
            let newer = if missed { self.both(&rest)? } else { newer };
            let entries = older.entries.into_iter().chain(newer.entries).collect();
            return Ok(Part { entries, next: newer.next, first: older.first });
        }
        let newer = self.newer(query);
        let fits = |record: &Record| wanted.fits_record(record);
        let older = chain.newest(newer.first, limit.saturating_sub(newer.entries.len()), fits)?;
        let entries = older.into_iter().map(Kept::from).chain(newer.entries).collect();
        Ok(Part { entries, next: newer.next, first: chain.first()?.min(newer.first) })
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

/// Gets entries, first those that were and then those that come.
pub struct Following {
    journal: Journal,
    queue: VecDeque<Kept>,
    /// What is still to be read begins after this number.
    behind: Option<u64>,
    follower: Option<Follower>,
}

impl Following {
    /// The next entry, or how many were missed; `None` once the node is gone. Nothing is lost when the future is
    /// dropped.
    pub async fn recv(&mut self) -> Option<Result<Kept, u64>> {
        loop {
            if let Some(kept) = self.queue.pop_front() {
                return Some(Ok(kept));
            }
            let Some(after) = self.behind else { break };
            let first = self.journal.trail().first();
            if after.saturating_add(1) >= first {
                let (page, follower) = self.journal.trail().follow_after(after);
                self.queue.extend(page.entries.iter().map(|noted| Kept::from(&**noted)));
                (self.behind, self.follower) = (None, Some(follower));
                continue;
            }
            let query = Query { after: Some(after), limit: PAGE, wanted: Wanted::default() };
            let part = self.journal.read(query).await;
            // While the disk cannot be read, memory goes on from its first.
            let missed = part.first.saturating_sub(after.saturating_add(1));
            self.queue.extend(part.entries);
            self.behind = Some(part.next.max(after.saturating_add(missed)));
            if missed > 0 {
                return Some(Err(missed));
            }
        }
        let news = self.follower.as_mut()?.recv().await?;
        Some(news.map(|noted| Kept::from(&*noted)))
    }
}

#[cfg(test)]
mod tests;
