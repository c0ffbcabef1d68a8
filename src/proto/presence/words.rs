//! What presence is made of: epochs, references, entries, the words between nodes, and what the machine
//! wants done.
//!
//! # Invariants
//! 1. An [`Entry`] that exists keeps the bounds: key of at most [`KEY`] bytes; meta of at most [`META`]
//!    bytes that is one JSON object of at most [`LEVELS`] levels without `phx_ref` and `phx_ref_prev`.
//! 2. What needs `size` bytes by this module's count encodes in no more.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::proto::budget::PRESENCE_COST;
use crate::proto::capability::Capabilities;
use crate::proto::channel::nests_within;
use crate::proto::node::{Incarnation, NodeName};
use crate::proto::topic::Topic;

/// Longest key, in bytes.
pub const KEY: usize = 255;
/// Longest meta, in bytes of JSON text.
pub const META: usize = 1024;
/// Deepest nesting of a meta: there is room for what clients find it in.
const LEVELS: usize = 64;
/// Every word encodes in at most this many bytes.
pub const WORD: usize = 60 * 1024;
/// What a word needs beside its changes or entries, at most.
pub(super) const HEAD: usize = 96;

/// One life of an owner's numbering. A later one of the same node is greater.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Epoch {
    /// The node's life.
    pub life: Incarnation,
    /// Which start within that life.
    pub boot: u64,
}

/// The `phx_ref` of an entry, unique in the cluster: 64 bits of a SHA-256 over the owner's name and
/// epoch, then the number of the change that made the entry; both in hexadecimal as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ref {
    pub(super) tag: u64,
    pub(super) number: u64,
}

impl fmt::Display for Ref {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}{:x}", self.tag, self.number)
    }
}

/// What all references of one epoch of a node begin with.
pub(super) fn tag(owner: &NodeName, epoch: Epoch) -> u64 {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    hash.update(owner.as_str().as_bytes());
    hash.update([0]); // no name has it
    hash.update(epoch.life.0.to_be_bytes());
    hash.update(epoch.boot.to_be_bytes());
    hash.finalize().iter().take(8).fold(0, |tag, byte| tag << 8 | u64::from(*byte))
}

/// Somebody in a topic. Entries order by topic, key and reference.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Where.
    pub topic: Topic,
    /// Who: several entries may have one key.
    pub key: Box<str>,
    /// Which.
    pub reference: Ref,
    /// The entry that this one replaced.
    pub previous: Option<Ref>,
    /// What the owner says of it: the text of a JSON object.
    pub meta: Box<str>,
}

impl Entry {
    /// What it costs each node that knows it, in bytes.
    pub(super) fn cost(&self) -> usize {
        PRESENCE_COST + self.topic.as_str().len() + self.key.len() + self.meta.len()
    }

    /// The meta as clients see it, with its `phx_ref` and `phx_ref_prev`, as JSON text.
    pub fn shown(&self) -> String {
        let mut text = format!("{{\"phx_ref\":\"{}\"", self.reference);
        if let Some(previous) = self.previous {
            text += &format!(",\"phx_ref_prev\":\"{previous}\"");
        }
        let fields = self.meta.trim_start().trim_start_matches('{').trim_start();
        if !fields.starts_with('}') {
            text.push(',');
        }
        text += fields;
        text
    }
}

/// Why an entry was not taken. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PresenceError {
    /// This node has as many entries as it may.
    #[error("this node has as many presences as it may")]
    Full,
    /// The key is too long.
    #[error("a presence key has at most {KEY} bytes")]
    Key,
    /// The meta is not what a meta must be.
    #[error(
        "a presence meta is a JSON object of at most {META} bytes and {LEVELS} levels without phx_ref"
    )]
    Meta,
    /// There is no such entry of this node.
    #[error("no such presence")]
    Unknown,
    /// This node's certificate lets it be present elsewhere only.
    #[error("this node's certificate does not let it be present on this topic")]
    NotAllowed,
}

/// An entry on the wire; its owner and its number are known from where it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Body {
    /// Where.
    pub topic: Topic,
    /// Who.
    pub key: String,
    /// A JSON object.
    pub meta: String,
    /// The number of the entry that this one replaced, which has left.
    pub previous: Option<u64>,
}

/// That a text may be a meta.
///
/// # Errors
/// [`PresenceError::Meta`].
pub fn check_meta(meta: &str) -> Result<(), PresenceError> {
    if meta.len() > META || !nests_within(meta.as_bytes(), LEVELS) {
        return Err(PresenceError::Meta);
    }
    let fields: BTreeMap<String, IgnoredAny> =
        serde_json::from_str(meta).map_err(|_no_object| PresenceError::Meta)?;
    let ours = ["phx_ref", "phx_ref_prev"].iter().any(|name| fields.contains_key(*name));
    if ours { Err(PresenceError::Meta) } else { Ok(()) }
}

impl Body {
    /// That it may become an entry.
    pub(super) fn check(&self) -> Result<(), PresenceError> {
        if self.key.len() > KEY {
            return Err(PresenceError::Key);
        }
        check_meta(&self.meta)
    }

    /// What the entry will cost.
    pub(super) fn cost(&self) -> usize {
        PRESENCE_COST + self.topic.as_str().len() + self.key.len() + self.meta.len()
    }

    pub(super) fn of(entry: &Entry) -> Self {
        Self {
            topic: entry.topic.clone(),
            key: entry.key.as_ref().to_owned(),
            meta: entry.meta.as_ref().to_owned(),
            previous: entry.previous.map(|previous| previous.number),
        }
    }

    pub(super) fn entry(self, tag: u64, number: u64) -> Entry {
        Entry {
            topic: self.topic,
            key: self.key.into(),
            reference: Ref { tag, number },
            previous: self.previous.map(|number| Ref { tag, number }),
            meta: self.meta.into(),
        }
    }
}

/// One step of an owner's clock. Grows only at its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// This entry, numbered as this change, came; the one it replaced left with it.
    Joined(Body),
    /// The entry of this number left.
    Left(u64),
}

impl Change {
    /// What it needs on the wire, at most.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Joined(body) => 18 + body.topic.as_str().len() + body.key.len() + body.meta.len(),
            Self::Left(_) => 11,
        }
    }
}

/// What an entry needs in a page, at most.
pub(super) fn size(entry: &Entry) -> usize {
    28 + entry.topic.as_str().len() + entry.key.len() + entry.meta.len()
}

/// The entries of an owner with numbers above `after` up to `through`, all of them and no other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// The owner's epoch.
    pub epoch: Epoch,
    /// Its clock at that moment.
    pub clock: u64,
    /// Where the page begins.
    pub after: u64,
    /// Where it ends.
    pub through: u64,
    /// Entries that the asker has, in order.
    pub still: Vec<u64>,
    /// Entries after those, in order.
    pub entries: Vec<(u64, Body)>,
}

/// What nodes tell each other: of their own entries only, but for questions. Grows only at its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word {
    /// The sender's changes `after + 1`, `after + 2` and so on.
    Delta {
        /// Its epoch.
        epoch: Epoch,
        /// Its clock before them.
        after: u64,
        /// The changes.
        changes: Vec<Change>,
    },
    /// Where the sender is.
    Digest {
        /// Its epoch.
        epoch: Epoch,
        /// Its clock.
        clock: u64,
    },
    /// Send a page of yours.
    Ask {
        /// The receiver's epoch.
        epoch: Epoch,
        /// The asker has every entry numbered up to here that is still there.
        have: u64,
        /// Where the page shall begin.
        after: u64,
        /// Where the last page shall end; `None` is now.
        upto: Option<u64>,
    },
    /// The answer.
    Page(Page),
}

impl Word {
    /// Whether each entry in it is of a topic where its owner may be present.
    pub fn is_within(&self, may: &Capabilities) -> bool {
        match self {
            Self::Delta { changes, .. } => changes.iter().all(|change| match change {
                Change::Joined(body) => may.may_publish(&body.topic),
                Change::Left(_) => true,
            }),
            Self::Page(page) => page.entries.iter().all(|(_, body)| may.may_publish(&body.topic)),
            Self::Digest { .. } | Self::Ask { .. } => true,
        }
    }
}

/// To whom a word goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    /// Every peer that is up.
    All,
    /// This one.
    One(NodeName),
}

/// What the machine wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Tell peers.
    Say(To, Word),
    /// An entry came. Those of one call belong into one `presence_diff`.
    Joined(Arc<Entry>),
    /// An entry left.
    Left(Arc<Entry>),
    /// A peer broke a rule. Its entries have left; it is not heard again before its next epoch or link.
    Fault(NodeName, &'static str),
}
