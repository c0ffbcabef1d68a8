//! The chain in the file: appended, read, signed, shortened, verified.
//!
//! Invariants: the state, the links, what outlasts them and the checkpoint change in one commit, so they agree after any
//! crash; what is forgotten was walked before and was sound, so no signature ever covers up a change. Links that outlast
//! the others have at most [`LASTING_PART`] of the bytes, and come before all others.

use std::borrow::Borrow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use redb::{ReadableTable, ReadableTableMetadata, WriteTransaction};

use super::schema::{
    self, CHECKPOINT, HEADS, KEPT, LASTING, LINKS, PROOFS, SIGNERS, STATE_TABLE, State, TrailState,
};
use super::{Failure, Store, StoreError};
use crate::io::clock::unix_millis;
use crate::proto::chain::{
    self, ChainLink, ChainVerifier, Checkpoint, Fault, Hash, Head, Kept, Signed, Tip, Verified, Why,
};
use crate::proto::event::{Event, Page, Query, Recorded};
use crate::proto::node::{NodeId, NodeName};
use crate::proto::seal::Equivocation;

/// Signed heads that stay: the newest prove all before them, the others only tell where a rewritten chain begins.
const MAX_HEADS: u64 = 1024;

/// Which part of the bytes that may stay is for what outlasts the rest: one in so many.
const LASTING_PART: u64 = 4;
/// Proofs that are kept: one for each key of at most so many.
const MAX_PROOFS: u64 = 1024;
/// Bytes of a kept link before the link.
const KEPT_FRONT: usize = size_of::<Hash>();

/// The event of a stored link, with its number and hash.
fn read(seq: u64, bytes: &[u8]) -> Result<Recorded, Failure> {
    let link = ChainLink::from_bytes(bytes).ok_or_else(|| fault(seq, Why::Unreadable))?;
    if link.tip.seq != seq {
        return Err(fault(seq, Why::Reordered));
    }
    let event =
        Recorded::from_bytes(link.record).map_err(|_malformed| fault(seq, Why::Unreadable))?;
    Ok(Recorded { seq, hash: Some(link.tip.hash), ..event })
}

/// The proof that an event holds, and by what it is kept.
fn proof(event: &Event) -> Option<(String, Equivocation)> {
    let Event::Equivocation { peer, key, .. } = event else { return None };
    Some((format!("{peer} {key}"), Equivocation::of_event(event)?))
}

fn keep_proofs(write: &WriteTransaction, proofs: &[(String, Equivocation)]) -> Result<(), Failure> {
    let mut table = write.open_table(PROOFS)?;
    for (of, proof) in proofs {
        if table.len()? < MAX_PROOFS {
            table.insert(of.as_str(), schema::sealed(proof)?.as_slice())?;
        }
    }
    Ok(())
}

/// What may stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Records up to this age, by the wall clock.
    pub age: Duration,
    /// The newest records up to this many bytes, and before them, as a part of these bytes, those that outlast the rest. The
    /// file has at most about twice that, and does not shrink.
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

    /// Appends events in one commit, proofs that they hold are kept beside them for good; where the chain ends now, durable
    /// on return.
    ///
    /// # Errors
    /// [`StoreError::Record`] for one that is too long; as [`Chain::new`].
    pub fn append<R: Borrow<Recorded>>(&self, events: &[R]) -> Result<Tip, StoreError> {
        let records = events.iter().map(|event| event.borrow().to_bytes());
        let records = records.collect::<Result<Vec<_>, _>>()?;
        let proofs = events.iter().filter_map(|event| proof(&event.borrow().event));
        let proofs: Vec<_> = proofs.collect();
        self.store.write(|write, state| {
            if !proofs.is_empty() {
                keep_proofs(write, &proofs)?;
            }
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

    /// All proofs that were kept.
    ///
    /// # Errors
    /// As [`Chain::new`].
    pub fn proofs(&self) -> Result<Vec<Equivocation>, StoreError> {
        self.store.read(schema::proofs)
    }

    /// The number of the oldest record after which none is forgotten, or of the next one when there is none.
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
            let (lasting, links) = (read.open_table(LASTING)?, read.open_table(LINKS)?);
            let older = lasting.range(..before)?.rev().map(|entry| (entry, KEPT_FRONT));
            let newer = links.range(..before)?.rev().map(|entry| (entry, 0));
            let mut found = fitting(newer.chain(older), limit, fits)?;
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
            let (lasting, links) = (read.open_table(LASTING)?, read.open_table(LINKS)?);
            let from = seq.saturating_add(1);
            let older = lasting.range(from..)?.map(|entry| (entry, KEPT_FRONT));
            let newer = links.range(from..)?.map(|entry| (entry, 0));
            fitting(older.chain(newer), limit, fits)
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
                let signature = sign(&what.signed_bytes(&self.node, None)).map_err(unsigned)?;
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

    /// Forgets what is past the limits and signs up to where, in one commit; how many records left the chain. Of those that
    /// leave it for its size, what outlasts the rest is kept beside it. A part that is not as it was written is not
    /// forgotten. `is_signed` is as in [`Chain::verify`].
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
        let part = limits.bytes / LASTING_PART;
        self.store.write(|write, state| {
            let mut trail = self.trail(state)?;
            let (before, stored) = (forgotten(write)?, kept(write)?);
            let mut walk =
                ChainVerifier::new(&self.node, before.as_ref(), stored.as_ref(), is_signed);
            let mut kept = stored.unwrap_or_else(|| Kept::genesis(&self.node));
            let mut links = write.open_table(LINKS)?;
            let (mut last, mut lasting, mut bytes) = (None, Vec::new(), kept.bytes);
            for entry in links.iter()? {
                let (seq, link) = entry?;
                let (seq, link) = (seq.value(), link.value());
                let read =
                    ChainLink::from_bytes(link).ok_or_else(|| fault(seq, Why::Unreadable))?;
                let old = is_old(&read, oldest);
                if !old && trail.bytes + bytes.min(part) <= limits.bytes {
                    break;
                }
                walk.link(&read);
                last = Some(read.tip);
                trail.bytes = trail.bytes.saturating_sub(link.len() as u64);
                if !old && Recorded::is_lasting(read.record) {
                    bytes += link.len() as u64;
                    lasting.push((seq, link.to_vec()));
                }
            }
            if last.is_some() {
                walk.finish(last).map_err(|fault| Failure::Refused(fault.into()))?;
            }
            let changed = keep(write, &mut kept, &lasting, (part, oldest))?;
            let tip = last.or(before.as_ref().filter(|_| changed).map(|before| before.what.tip));
            let Some(tip) = tip else { return Ok(0) };
            let what = Checkpoint { tip, at: unix_millis(now) };
            let kept = (changed || stored.is_some()).then_some(&kept);
            let signature = sign(&what.signed_bytes(&self.node, kept)).map_err(unsigned)?;
            links.retain_in(..=tip.seq, |_, _| false)?;
            write.open_table(HEADS)?.retain_in(..=tip.seq, |_, _| false)?;
            let signed = schema::sealed(&Signed { what, signature })?;
            write.open_table(CHECKPOINT)?.insert((), signed.as_slice())?;
            if let Some(kept) = kept {
                write.open_table(KEPT)?.insert((), schema::sealed(kept)?.as_slice())?;
            }
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
            let kept = read.open_table(KEPT)?.get(())?;
            let kept = kept.map(|bytes| schema::opened(bytes.value())).transpose()?;
            let (checkpoint, kept) = (checkpoint.as_ref(), kept.as_ref());
            let mut walk = ChainVerifier::new(&self.node, checkpoint, kept, is_signed);
            for entry in read.open_table(LASTING)?.iter()? {
                let (seq, bytes) = entry?;
                walk.kept(seq.value(), bytes.value());
            }
            walk.kept_all();
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

/// An entry of a table of links.
type Entry<'a> =
    Result<(redb::AccessGuard<'a, u64>, redb::AccessGuard<'a, &'static [u8]>), redb::StorageError>;

/// The first ones that fit; each with the bytes that stand before its link.
fn fitting<'a>(
    links: impl Iterator<Item = (Entry<'a>, usize)>,
    limit: usize,
    fits: impl Fn(&Recorded) -> bool,
) -> Result<Vec<Recorded>, Failure> {
    let mut found = Vec::new();
    for (link, front) in links {
        if found.len() == limit {
            break;
        }
        let (seq, bytes) = link?;
        let event = read(seq.value(), bytes.value().get(front..).unwrap_or(&[]))?;
        if fits(&event) {
            found.push(event);
        }
    }
    Ok(found)
}

/// Keeps these links, and forgets the oldest that are kept where they are more bytes than this, or older; whether
/// something changed.
fn keep(
    write: &WriteTransaction,
    kept: &mut Kept,
    links: &[(u64, Vec<u8>)],
    (bytes, oldest): (u64, u64),
) -> Result<bool, Failure> {
    let mut lasting = write.open_table(LASTING)?;
    for (seq, link) in links {
        let hash = kept.push(link);
        lasting.insert(*seq, chain::kept_to_bytes(hash, link).as_slice())?;
    }
    let mut changed = !links.is_empty();
    loop {
        let first = lasting.first()?.map(|(seq, it)| (seq.value(), it.value().to_vec()));
        let Some((seq, entry)) = first else { break };
        let read = chain::kept_from_bytes(&entry);
        let read = read.and_then(|(hash, link)| Some((hash, link, ChainLink::from_bytes(link)?)));
        let (hash, link, read) = read.ok_or_else(|| fault(seq, Why::Kept))?;
        if kept.bytes <= bytes && !is_old(&read, oldest) {
            break;
        }
        if !kept.pop(hash, link) {
            return Err(fault(seq, Why::Kept));
        }
        lasting.remove(seq)?;
        changed = true;
    }
    Ok(changed)
}

/// Whether a link's event happened before this.
fn is_old(link: &ChainLink<'_>, oldest: u64) -> bool {
    Recorded::at_of(link.record).is_some_and(|at| at < oldest)
}

fn fault(seq: u64, why: Why) -> Failure {
    Failure::Refused(Fault { seq, why }.into())
}

/// What is kept of the forgotten links.
fn kept(write: &WriteTransaction) -> Result<Option<Kept>, Failure> {
    let kept = write.open_table(KEPT)?;
    let kept = kept.get(())?;
    kept.map(|bytes| schema::opened(bytes.value())).transpose()
}

fn forgotten(write: &WriteTransaction) -> Result<Option<Signed<Checkpoint>>, Failure> {
    let checkpoint = write.open_table(CHECKPOINT)?;
    let checkpoint = checkpoint.get(())?;
    checkpoint.map(|bytes| schema::opened(bytes.value())).transpose()
}

fn unsigned(error: impl std::fmt::Display) -> Failure {
    Failure::Refused(StoreError::Signing(error.to_string()))
}
