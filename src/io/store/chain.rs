//! The chain in the file: appended, read, signed, shortened, verified.
//!
//! Invariants: the state, the links and the checkpoint change in one commit, so they agree after any crash; what
//! is forgotten was walked before and was sound, so no signature ever covers up a change.

use std::borrow::Borrow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use redb::{ReadableTable, ReadableTableMetadata, WriteTransaction};

use super::schema::{self, CHECKPOINT, HEADS, LINKS, SIGNERS, STATE_TABLE, State, TrailState};
use super::{Failure, Store, StoreError};
use crate::io::clock::unix_millis;
use crate::proto::chain::{
    ChainLink, ChainVerifier, Checkpoint, Fault, Head, Signed, Tip, Verified, Why,
};
use crate::proto::event::{Page, Query, Recorded};
use crate::proto::node::{NodeId, NodeName};

/// Signed heads that stay: the newest prove all before them, the others only tell where a rewritten chain begins.
const MAX_HEADS: u64 = 1024;

/// The event of a stored link, with its number and hash.
fn read(seq: u64, bytes: &[u8]) -> Result<Recorded, Failure> {
    let fault = |why| Failure::Refused(Fault { seq, why }.into());
    let link = ChainLink::from_bytes(bytes).ok_or_else(|| fault(Why::Unreadable))?;
    if link.tip.seq != seq {
        return Err(fault(Why::Reordered));
    }
    let event = Recorded::from_bytes(link.record).map_err(|_malformed| fault(Why::Unreadable))?;
    Ok(Recorded { seq, hash: Some(link.tip.hash), ..event })
}

/// What may stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Records up to this age, by the wall clock.
    pub age: Duration,
    /// The newest records up to this many bytes. The file has at most about twice that, and does not shrink.
    pub bytes: u64,
}

/// A node's chain in its store.
#[derive(Clone, Debug)]
pub struct Chain {
    pub(super) store: Arc<Store>,
    node: NodeName,
}

impl Chain {
    /// The chain of `node`, which is empty until something is appended.
    ///
    /// # Errors
    /// [`StoreError::Foreign`], [`StoreError::Storage`], [`StoreError::Damaged`].
    pub fn new(store: Arc<Store>, node: NodeName) -> Result<Self, StoreError> {
        let chain = Self { store, node };
        chain.last()?;
        Ok(chain)
    }

    /// The chain that is in a store, whosever it is; `None` when there is none.
    ///
    /// # Errors
    /// [`StoreError::Storage`], [`StoreError::Damaged`].
    pub fn found(store: Arc<Store>) -> Result<Option<Self>, StoreError> {
        let trail = store.read(|read| Ok(State::read(&read.open_table(STATE_TABLE)?)?.trail))?;
        Ok(trail.map(|trail| Self { store, node: trail.node }))
    }

    /// Whose it is.
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// Appends events in one commit; where the chain ends now, durable on return.
    ///
    /// # Errors
    /// [`StoreError::Record`] for one that is too long; as [`Chain::new`].
    pub fn append<R: Borrow<Recorded>>(&self, events: &[R]) -> Result<Tip, StoreError> {
        let records = events.iter().map(|event| event.borrow().to_bytes());
        let records = records.collect::<Result<Vec<_>, _>>()?;
        self.store.write(|write, state| {
            let mut trail = self.trail(state)?;
            let mut links = write.open_table(LINKS)?;
            for record in &records {
                trail.tip = trail.tip.then(record);
                let link = ChainLink { tip: trail.tip, record }.to_bytes();
                trail.bytes += link.len() as u64;
                links.insert(trail.tip.seq, link.as_slice())?;
            }
            let tip = trail.tip;
            state.trail = Some(trail);
            Ok(tip)
        })
    }

    /// The number of the oldest record that is kept, or of the next one when none is.
    ///
    /// # Errors
    /// As [`Chain::new`].
    pub fn first(&self) -> Result<u64, StoreError> {
        self.store.read(|read| {
            let first = read.open_table(LINKS)?.first()?.map(|(seq, _)| seq.value());
            let state = State::read(&read.open_table(STATE_TABLE)?)?;
            Ok(first.unwrap_or(self.trail(&state)?.tip.seq.saturating_add(1)))
        })
    }

    /// Where the chain ends.
    ///
    /// # Errors
    /// As [`Chain::new`].
    pub fn last(&self) -> Result<Tip, StoreError> {
        self.store.read(|read| Ok(self.trail(&State::read(&read.open_table(STATE_TABLE)?)?)?.tip))
    }

    /// The newest `limit` events before a number that fit, oldest first.
    ///
    /// # Errors
    /// [`StoreError::Chain`] for one that cannot be read; as [`Chain::new`].
    pub fn newest(
        &self,
        before: u64,
        limit: usize,
        fits: impl Fn(&Recorded) -> bool,
    ) -> Result<Vec<Recorded>, StoreError> {
        self.store.read(|read| {
            let links = read.open_table(LINKS)?;
            let mut found = fitting(links.range(..before)?.rev(), limit, fits)?;
            found.reverse();
            Ok(found)
        })
    }

    /// The first `limit` events after a number that fit, oldest first.
    ///
    /// # Errors
    /// As [`Chain::newest`].
    pub fn after(
        &self,
        seq: u64,
        limit: usize,
        fits: impl Fn(&Recorded) -> bool,
    ) -> Result<Vec<Recorded>, StoreError> {
        self.store.read(|read| {
            let links = read.open_table(LINKS)?;
            fitting(links.range(seq.saturating_add(1)..)?, limit, fits)
        })
    }

    /// What is asked for.
    ///
    /// # Errors
    /// As [`Chain::newest`].
    pub fn read(&self, query: &Query) -> Result<Page, StoreError> {
        // First: what comes meanwhile is then after it.
        let last = self.last()?.seq;
        let fits = |event: &Recorded| query.fits(event);
        let events = match query.after {
            Some(after) => self.after(after, query.limit, fits)?,
            None => self.newest(u64::MAX, query.limit, fits)?,
        };
        let full = query.after.is_some() && events.len() == query.limit;
        let next = events.last().map_or(last, |it| if full { it.seq } else { it.seq.max(last) });
        Ok(Page { events, next, first: self.first()? })
    }

    /// Lets a chain that has no records yet begin after a number: those up to it were in a file that was set aside.
    ///
    /// # Errors
    /// [`StoreError::Signing`]; as [`Chain::new`].
    pub fn begin_after<E: std::fmt::Display>(
        &self,
        seq: u64,
        now: SystemTime,
        sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>,
    ) -> Result<(), StoreError> {
        self.store.write(|write, state| {
            let mut trail = self.trail(state)?;
            if trail.tip.seq == 0 {
                trail.tip.seq = seq;
                let what = Checkpoint { tip: trail.tip, at: unix_millis(now) };
                let signature = sign(&what.signed_bytes(&self.node)).map_err(unsigned)?;
                let signed = schema::sealed(&Signed { what, signature })?;
                write.open_table(CHECKPOINT)?.insert((), signed.as_slice())?;
                state.trail = Some(trail);
            }
            Ok(())
        })
    }

    /// Remembers a certificate (DER) of a key of this node, by which its signatures can be verified later.
    ///
    /// # Errors
    /// As [`Chain::new`].
    pub fn keep_signer(&self, key: NodeId, certificate: &[u8]) -> Result<(), StoreError> {
        self.store.write(|write, _state| {
            let sealed = schema::sealed(&certificate)?;
            write.open_table(SIGNERS)?.insert(&key.0[..], sealed.as_slice())?;
            Ok(())
        })
    }

    /// The certificates that were remembered.
    ///
    /// # Errors
    /// As [`Chain::new`].
    pub fn signers(&self) -> Result<Vec<Vec<u8>>, StoreError> {
        self.store.read(|read| {
            let signers = read.open_table(SIGNERS)?;
            signers.iter()?.map(|entry| schema::opened(entry?.1.value())).collect()
        })
    }

    /// Signs where the chain ends, durable on return; `None` when nothing came since the last time.
    ///
    /// # Errors
    /// [`StoreError::Signing`]; as [`Chain::new`].
    pub fn sign_head<E: std::fmt::Display>(
        &self,
        now: SystemTime,
        sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>,
    ) -> Result<Option<Signed<Head>>, StoreError> {
        self.store.write(|write, state| {
            let what = Head { tip: self.trail(state)?.tip, at: unix_millis(now) };
            let mut heads = write.open_table(HEADS)?;
            let signed = heads.last()?.map_or(0, |(seq, _)| seq.value());
            if what.tip.seq <= signed.max(forgotten(write)?.map_or(0, |c| c.what.tip.seq)) {
                return Ok(None);
            }
            let signature = sign(&what.signed_bytes(&self.node)).map_err(unsigned)?;
            let head = Signed { what, signature };
            heads.insert(what.tip.seq, schema::sealed(&head)?.as_slice())?;
            while heads.len()? > MAX_HEADS {
                heads.pop_first()?;
            }
            Ok(Some(head))
        })
    }

    /// Forgets what is past the limits and signs up to where, in one commit; how many records were forgotten. A part
    /// that is not as it was written is not forgotten. `is_signed` is as in [`Chain::verify`].
    ///
    /// # Errors
    /// [`StoreError::Chain`], [`StoreError::Signing`]; as [`Chain::new`].
    pub fn retain<E: std::fmt::Display>(
        &self,
        limits: &Limits,
        now: SystemTime,
        sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>,
        is_signed: impl Fn(&[u8], &[u8]) -> bool,
    ) -> Result<u64, StoreError> {
        let oldest = unix_millis(now)
            .saturating_sub(u64::try_from(limits.age.as_millis()).unwrap_or(u64::MAX));
        self.store.write(|write, state| {
            let mut trail = self.trail(state)?;
            let before = forgotten(write)?;
            let mut walk = ChainVerifier::new(&self.node, before.as_ref(), is_signed);
            let mut links = write.open_table(LINKS)?;
            let mut last = None;
            for entry in links.iter()? {
                let (seq, bytes) = entry?;
                let fault = Fault { seq: seq.value(), why: Why::Unreadable };
                let link = ChainLink::from_bytes(bytes.value())
                    .ok_or_else(|| Failure::Refused(fault.into()))?;
                let old = Recorded::at_of(link.record).is_some_and(|at| at < oldest);
                if !old && trail.bytes <= limits.bytes {
                    break;
                }
                walk.link(&link);
                last = Some(link.tip);
                trail.bytes = trail.bytes.saturating_sub(bytes.value().len() as u64);
            }
            let Some(tip) = last else { return Ok(0) };
            walk.finish(Some(tip)).map_err(|fault| Failure::Refused(fault.into()))?;
            let what = Checkpoint { tip, at: unix_millis(now) };
            let signature = sign(&what.signed_bytes(&self.node)).map_err(unsigned)?;
            links.retain_in(..=tip.seq, |_, _| false)?;
            write.open_table(HEADS)?.retain_in(..=tip.seq, |_, _| false)?;
            let signed = schema::sealed(&Signed { what, signature })?;
            write.open_table(CHECKPOINT)?.insert((), signed.as_slice())?;
            state.trail = Some(trail);
            Ok(tip.seq - before.map_or(0, |before| before.what.tip.seq))
        })
    }

    /// Walks all that is kept. `is_signed` tells whether its second argument is the node's signature over its first.
    ///
    /// # Errors
    /// [`StoreError::Chain`] with the first record that is not as it was written; as [`Chain::new`].
    pub fn verify(&self, is_signed: impl Fn(&[u8], &[u8]) -> bool) -> Result<Verified, StoreError> {
        self.store.read(|read| {
            let trail = self.trail(&State::read(&read.open_table(STATE_TABLE)?)?)?;
            let checkpoint = read.open_table(CHECKPOINT)?.get(())?;
            let checkpoint = checkpoint.map(|bytes| schema::opened(bytes.value())).transpose()?;
            let mut walk = ChainVerifier::new(&self.node, checkpoint.as_ref(), is_signed);
            let heads = read.open_table(HEADS)?;
            let mut heads = heads.iter()?.peekable();
            for entry in read.open_table(LINKS)?.iter()? {
                let (seq, bytes) = entry?;
                while let Some(head) = heads.next_if(|head| {
                    head.as_ref().is_ok_and(|(signed, _)| signed.value() < seq.value())
                }) {
                    walk.head(&schema::opened(head?.1.value())?);
                }
                match ChainLink::from_bytes(bytes.value()) {
                    Some(link) => walk.link(&link),
                    None => walk.unreadable(seq.value()),
                }
            }
            for head in heads {
                walk.head(&schema::opened(head?.1.value())?);
            }
            walk.finish(Some(trail.tip)).map_err(|fault| Failure::Refused(fault.into()))
        })
    }

    /// Where this node's chain stands.
    fn trail(&self, state: &State) -> Result<TrailState, Failure> {
        match &state.trail {
            None => {
                Ok(TrailState { node: self.node.clone(), tip: Tip::genesis(&self.node), bytes: 0 })
            }
            Some(trail) if trail.node == self.node => Ok(trail.clone()),
            Some(other) => Err(Failure::Refused(StoreError::Foreign(other.node.to_string()))),
        }
    }
}

fn fitting<'a>(
    links: impl Iterator<
        Item = Result<
            (redb::AccessGuard<'a, u64>, redb::AccessGuard<'a, &'static [u8]>),
            redb::StorageError,
        >,
    >,
    limit: usize,
    fits: impl Fn(&Recorded) -> bool,
) -> Result<Vec<Recorded>, Failure> {
    let mut found = Vec::new();
    for link in links {
        if found.len() == limit {
            break;
        }
        let (seq, bytes) = link?;
        let event = read(seq.value(), bytes.value())?;
        if fits(&event) {
            found.push(event);
        }
    }
    Ok(found)
}

fn forgotten(write: &WriteTransaction) -> Result<Option<Signed<Checkpoint>>, Failure> {
    let checkpoint = write.open_table(CHECKPOINT)?;
    let checkpoint = checkpoint.get(())?;
    checkpoint.map(|bytes| schema::opened(bytes.value())).transpose()
}

fn unsigned(error: impl std::fmt::Display) -> Failure {
    Failure::Refused(StoreError::Signing(error.to_string()))
}
