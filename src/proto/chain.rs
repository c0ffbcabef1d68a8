//! The chain: a node's records, each bound to all before it, so that no change to them goes unseen.
//!
//! Every record is a [`ChainLink`]: it has a number and the SHA-256 of the link before it, its number and its
//! bytes, which are an event as it is stored. The first builds on a genesis that is made of the node's name. From time to time the node signs the
//! last link, a [`Head`]. What is old is forgotten up to a [`Checkpoint`]: the last forgotten link, signed.
//! Of what is forgotten some records outlast the rest: they are a chain of their own, [`Kept`], which the checkpoint's
//! signature covers too. A [`ChainVerifier`] walks what is left and names the first record that is not as it was written. It has no key:
//! its caller tells whether a signature is the node's.
//!
//! Invariants:
//! 1. Numbers start at 1 and rise by one; the order of the links is the order of their numbers.
//! 2. A link's hash depends on every byte of every record before it, on their order and on the node.
//! 3. A head and a checkpoint are signed over different words: one never passes for the other, nor for another
//!    node's, nor for anything else that the node's key signs.
//! 4. A record that was edited, taken out, put in or moved without its hash being made anew is named itself.
//! 5. Hashes need no key, so anyone who can write the file can make them anew. Then the next head says that the
//!    chain was rewritten, and all that can be named is the first record that no sound head proves.
//! 6. A record that outlasted those around it was in the chain as it is, and none is taken out of those that are kept: the
//!    node signed them when it forgot the others.
//! 7. What came after the last head and was cut off together with the note of where the chain ends, and a file
//!    that was replaced by an older copy of itself, cannot be told from one that was never longer.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::proto::codec::read_hexadecimal;
use crate::proto::node::NodeName;

const HASH: usize = 32;
/// Bytes of a stored link before its record: the hash and the number.
const FRONT: usize = HASH + 8;

const GENESIS: &[u8] = b"xpando-node chain 1 genesis\0";
const LINK: &[u8] = b"xpando-node chain 1 link\0";
const HEAD: &[u8] = b"xpando-node chain 1 head\0";
const CHECKPOINT: &[u8] = b"xpando-node chain 1 checkpoint\0";
const KEPT_GENESIS: &[u8] = b"xpando-node chain 1 kept genesis\0";
const KEPT_LINK: &[u8] = b"xpando-node chain 1 kept link\0";
const KEPT_CHECKPOINT: &[u8] = b"xpando-node chain 1 checkpoint with kept\0";

/// A SHA-256. It is written in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hash(pub [u8; HASH]);

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Hash {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let bytes = read_hexadecimal(text).and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or(())
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({self})")
    }
}

/// Where a chain ends: the number and the hash of its last link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tip {
    /// The number; 0 before the first record.
    pub seq: u64,
    /// The hash.
    pub hash: Hash,
}

impl Tip {
    /// The end of a node's chain that has no records yet.
    pub fn genesis(node: &NodeName) -> Self {
        let hash = Sha256::new().chain_update(GENESIS).chain_update(node.as_str()).finalize();
        Self { seq: 0, hash: Hash(hash.into()) }
    }

    /// The end once a record of these bytes has followed.
    #[must_use]
    pub fn then(self, record: &[u8]) -> Self {
        let seq = self.seq.saturating_add(1);
        let hash = Sha256::new()
            .chain_update(LINK)
            .chain_update(self.hash.0)
            .chain_update(seq.to_be_bytes())
            .chain_update(record)
            .finalize();
        Self { seq, hash: Hash(hash.into()) }
    }
}

/// A record in its place in the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainLink<'a> {
    /// Its number and hash, as they were written beside it.
    pub tip: Tip,
    /// The bytes of its record.
    pub record: &'a [u8],
}

impl<'a> ChainLink<'a> {
    /// As it is stored: the hash, the number (big endian), the record.
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.tip.hash.0[..], &self.tip.seq.to_be_bytes(), self.record].concat()
    }

    /// The link of these bytes; `None` when they are too few to be one.
    pub fn from_bytes(bytes: &'a [u8]) -> Option<Self> {
        let (front, record) = bytes.split_first_chunk::<FRONT>()?;
        let (hash, seq) = front.split_first_chunk::<HASH>()?;
        let seq = u64::from_be_bytes(*seq.first_chunk()?);
        Some(Self { tip: Tip { seq, hash: Hash(*hash) }, record })
    }
}

/// A link that the node vouches for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The link.
    pub tip: Tip,
    /// When it was signed, in milliseconds since 1970.
    pub at: u64,
}

impl Head {
    /// The bytes that `node` signs.
    pub fn signed_bytes(&self, node: &NodeName) -> Vec<u8> {
        signed_bytes(HEAD, node, self.tip, self.at)
    }
}

/// The last link that was forgotten, and all before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The link.
    pub tip: Tip,
    /// When it was forgotten, in milliseconds since 1970.
    pub at: u64,
}

impl Checkpoint {
    /// The bytes that `node` signs, which cover what is kept of the forgotten records.
    pub fn signed_bytes(&self, node: &NodeName, kept: Option<&Kept>) -> Vec<u8> {
        match kept {
            None => signed_bytes(CHECKPOINT, node, self.tip, self.at),
            Some(Kept { before, last, .. }) => {
                let words = [KEPT_CHECKPOINT, &before.0, &last.0].concat();
                signed_bytes(&words, node, self.tip, self.at)
            }
        }
    }
}

/// The records that outlast those around them: a chain of their links, whose beginning may be forgotten too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The hash before the first one.
    pub before: Hash,
    /// The hash of the last one.
    pub last: Hash,
    /// Bytes of their links.
    pub bytes: u64,
}

impl Kept {
    /// None of a node's records is kept yet.
    pub fn genesis(node: &NodeName) -> Self {
        let hash = Sha256::new().chain_update(KEPT_GENESIS).chain_update(node.as_str()).finalize();
        Self { before: Hash(hash.into()), last: Hash(hash.into()), bytes: 0 }
    }

    /// Another one after the last, a link as it was stored; its hash.
    pub fn push(&mut self, link: &[u8]) -> Hash {
        self.last = kept_hash(self.last, link);
        self.bytes = self.bytes.saturating_add(link.len() as u64);
        self.last
    }

    /// The first one is forgotten; whether it was as it had been kept. Otherwise nothing changed.
    #[must_use]
    pub fn pop(&mut self, hash: Hash, link: &[u8]) -> bool {
        let sound = kept_hash(self.before, link) == hash;
        if sound {
            self.before = hash;
            self.bytes = self.bytes.saturating_sub(link.len() as u64);
        }
        sound
    }
}

fn kept_hash(before: Hash, link: &[u8]) -> Hash {
    let hash = Sha256::new().chain_update(KEPT_LINK).chain_update(before.0).chain_update(link);
    Hash(hash.finalize().into())
}

/// A kept link as it is stored: its hash among those that are kept, and the link.
pub fn kept_to_bytes(hash: Hash, link: &[u8]) -> Vec<u8> {
    [&hash.0[..], link].concat()
}

/// The hash and the link of these bytes; `None` when they are too few to be one.
pub fn kept_from_bytes(bytes: &[u8]) -> Option<(Hash, &[u8])> {
    bytes.split_first_chunk().map(|(hash, link)| (Hash(*hash), link))
}

/// The name comes last, so that no two different contents are the same bytes.
fn signed_bytes(words: &[u8], node: &NodeName, tip: Tip, at: u64) -> Vec<u8> {
    let (seq, at) = (tip.seq.to_be_bytes(), at.to_be_bytes());
    [words, &seq, &tip.hash.0, &at, node.as_str().as_bytes()].concat()
}

/// Something with the node's signature over its `signed_bytes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed<T> {
    /// What is signed.
    pub what: T,
    /// By which the node vouches for it.
    pub signature: Vec<u8>,
}

/// What is wrong with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// It cannot be read at all.
    #[error("cannot be read")]
    Unreadable,
    /// It or its hash is not what was written.
    #[error("was edited")]
    Edited,
    /// It is not there, and later ones are.
    #[error("is missing")]
    Missing,
    /// Another one stands in its place, and it comes later.
    #[error("is out of its order")]
    Reordered,
    /// It was not written by the node: its number is taken, or past the end.
    #[error("was inserted")]
    Inserted,
    /// It and all after it are gone, although the node noted or signed that they were there.
    #[error("and all after it were cut off")]
    TailCut,
    /// It or one soon after was changed, and the hashes were made anew; the next head does not fit.
    #[error("or one after it was changed, and the hashes made anew")]
    Rewritten,
    /// It or one beside it outlasted the rest, and was changed, taken out or put in.
    #[error("or a lasting one beside it was changed, taken out or put in")]
    Kept,
    /// The head or the checkpoint at it has no signature of the node, or is not where it belongs.
    #[error("is vouched for by a signature that is not the node's")]
    Signature,
}

/// The first record that is not as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("record {seq} {why}")]
#[non_exhaustive]
pub struct Fault {
    /// Its number.
    pub seq: u64,
    /// What is wrong.
    #[doc(hidden)]
    pub why: Why,
}

/// What a sound chain holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// The last forgotten record; 0 when nothing was forgotten.
    pub forgotten: u64,
    /// Of those that were forgotten so many are kept, since they outlast the rest.
    #[serde(default)]
    pub lasting: u64,
    /// The last record.
    pub last: u64,
    /// The last record that the node's signature proves; those after it are only consistent.
    pub proved: u64,
}

/// Walks a chain. It is given what is kept of the forgotten records, then the links in their order, and each head after
/// the links up to it.
pub struct ChainVerifier<'a, C> {
    node: &'a NodeName,
    is_signed: C,
    forgotten: u64,
    /// Where the kept records end as they were given, and where they have to.
    kept: (Hash, Hash),
    lasting: u64,
    tip: Tip,
    proved: u64,
    fault: Option<Fault>,
}

impl<C> fmt::Debug for ChainVerifier<'_, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ChainVerifier")
            .field(&self.node)
            .field(&self.tip)
            .field(&self.fault)
            .finish()
    }
}

impl<'a, C: Fn(&[u8], &[u8]) -> bool> ChainVerifier<'a, C> {
    /// A walk over the chain of `node`, which was forgotten up to `checkpoint` but for what is `kept`. `is_signed` tells
    /// whether its second argument is the node's signature over its first.
    pub fn new(
        node: &'a NodeName,
        checkpoint: Option<&Signed<Checkpoint>>,
        kept: Option<&Kept>,
        is_signed: C,
    ) -> Self {
        let tip = checkpoint.map_or_else(|| Tip::genesis(node), |signed| signed.what.tip);
        let sound = checkpoint.is_none_or(|signed| {
            is_signed(&signed.what.signed_bytes(node, kept), &signed.signature)
        });
        let fault = (!sound).then_some(Fault { seq: tip.seq, why: Why::Signature });
        let Kept { before, last, .. } = kept.copied().unwrap_or_else(|| Kept::genesis(node));
        let (forgotten, proved) = (tip.seq, tip.seq);
        Self { node, is_signed, forgotten, kept: (before, last), lasting: 0, tip, proved, fault }
    }

    /// The next kept record, as it is stored.
    pub fn kept(&mut self, seq: u64, bytes: &[u8]) {
        if self.fault.is_some() {
            return;
        }
        let sound = kept_from_bytes(bytes).filter(|(hash, link)| {
            let numbered = ChainLink::from_bytes(link).is_some_and(|link| link.tip.seq == seq);
            numbered && seq <= self.forgotten && kept_hash(self.kept.0, link) == *hash
        });
        match sound {
            Some((hash, _)) => {
                self.kept.0 = hash;
                self.lasting += 1;
            }
            None => self.note(seq, Why::Kept),
        }
    }

    /// All kept records were given.
    pub fn kept_all(&mut self) {
        if self.fault.is_none() && self.kept.0 != self.kept.1 {
            self.note(self.forgotten, Why::Kept);
        }
    }

    /// The next link.
    pub fn link(&mut self, link: &ChainLink<'_>) {
        let (expected, seq) = (self.tip.then(link.record), link.tip.seq);
        match self.fault {
            Some(fault) => self.fault = Some(explained(fault, seq, link.tip == expected)),
            None if seq > expected.seq => self.note(expected.seq, Why::Missing),
            None if seq < expected.seq => self.note(seq, Why::Inserted),
            None if link.tip != expected => self.note(seq, Why::Edited),
            None => self.tip = expected,
        }
    }

    /// What should be the link with this number is no link.
    pub fn unreadable(&mut self, seq: u64) {
        if self.fault.is_none() {
            self.note(seq, Why::Unreadable);
        }
    }

    /// The next head.
    pub fn head(&mut self, head: &Signed<Head>) {
        if self.fault.is_some() {
            return;
        }
        let tip = head.what.tip;
        if !(self.is_signed)(&head.what.signed_bytes(self.node), &head.signature)
            || tip.seq < self.tip.seq
        {
            self.note(tip.seq, Why::Signature);
        } else if tip.seq > self.tip.seq {
            self.note(self.tip.seq.saturating_add(1), Why::TailCut);
        } else if tip != self.tip {
            self.note(self.proved.saturating_add(1), Why::Rewritten);
        } else {
            self.proved = tip.seq;
        }
    }

    /// The end. `noted` is where the chain ended by the node's own unsigned note.
    ///
    /// # Errors
    /// The first [`Fault`].
    pub fn finish(mut self, noted: Option<Tip>) -> Result<Verified, Fault> {
        if let (Some(noted), None) = (noted, self.fault) {
            let next = self.tip.seq.saturating_add(1);
            match noted.seq.cmp(&self.tip.seq) {
                std::cmp::Ordering::Greater => self.note(next, Why::TailCut),
                std::cmp::Ordering::Less => {
                    self.note(noted.seq.saturating_add(1), Why::Inserted);
                }
                std::cmp::Ordering::Equal if noted != self.tip => {
                    self.note(self.proved.saturating_add(1), Why::Rewritten);
                }
                std::cmp::Ordering::Equal => {}
            }
        }
        match self.fault {
            Some(fault) => Err(fault),
            None => {
                let Self { forgotten, lasting, tip, proved, .. } = self;
                Ok(Verified { forgotten, lasting, last: tip.seq, proved })
            }
        }
    }

    fn note(&mut self, seq: u64, why: Why) {
        self.fault = Some(Fault { seq, why });
    }
}

/// A fault in the light of a later link, which fits the sound part of the chain or not.
fn explained(fault: Fault, seq: u64, fits: bool) -> Fault {
    let why = match fault.why {
        Why::Missing | Why::TailCut if seq == fault.seq => Why::Reordered,
        Why::TailCut if seq > fault.seq => Why::Missing,
        // What was taken for the record stood before it.
        Why::Edited | Why::Unreadable if seq == fault.seq && fits => Why::Inserted,
        why @ (Why::Unreadable
        | Why::Edited
        | Why::Missing
        | Why::Reordered
        | Why::Inserted
        | Why::TailCut
        | Why::Rewritten
        | Why::Kept
        | Why::Signature) => why,
    };
    Fault { why, ..fault }
}

#[cfg(test)]
mod tests;
