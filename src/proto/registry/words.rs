//! What registries tell each other, and what the machine hears and says.

use serde::{Deserialize, Serialize};

use super::profile::Profile;
use crate::proto::node::{Incarnation, NodeName};

/// How late a word about a node is. Later marks are greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mark {
    /// The life it is about.
    pub incarnation: Incarnation,
    /// Its version within that life.
    pub version: u64,
    /// Whether it is that the life is forgotten.
    pub forgotten: bool,
}

/// What is known of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// What it said of itself.
    Profile(Profile),
    /// Somebody had it forgotten.
    Forgotten {
        /// When, in milliseconds since 1970 by that node's clock.
        at: u64,
    },
}

/// The latest known word about a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Whom it is about.
    pub origin: NodeName,
    /// The life it is about.
    pub incarnation: Incarnation,
    /// Its version within that life.
    pub version: u64,
    /// The word.
    pub what: What,
}

impl Entry {
    /// How late it is.
    #[must_use]
    pub fn mark(&self) -> Mark {
        let Self { incarnation, version, .. } = *self;
        Mark { incarnation, version, forgotten: self.forgotten_at().is_some() }
    }

    /// What the node said of itself, unless it is forgotten.
    #[must_use]
    pub fn profile(&self) -> Option<&Profile> {
        match &self.what {
            What::Profile(profile) => Some(profile),
            What::Forgotten { .. } => None,
        }
    }

    /// When it was forgotten, if it is.
    #[must_use]
    pub fn forgotten_at(&self) -> Option<u64> {
        match &self.what {
            What::Profile(_) => None,
            What::Forgotten { at } => Some(*at),
        }
    }
}

/// What registries tell each other. Grows only at its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word {
    /// A hash over all marks of the sender.
    Digest(u64),
    /// All marks of the sender of names above `after`, up to the last one listed or, without `more`, to the end.
    Marks {
        /// Where it begins.
        after: Option<NodeName>,
        /// In order of names.
        marks: Vec<(NodeName, Mark)>,
        /// Another word goes on from here.
        more: bool,
    },
    /// Some marks of the sender; it says nothing about the rest.
    News(Vec<(NodeName, Mark)>),
    /// Send the entries of these.
    Want(Vec<NodeName>),
    /// Entries.
    Entries(Vec<Entry>),
}

/// What the machine hears.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// This life of a peer can be talked to.
    Linked(NodeName, Incarnation),
    /// It can be talked to no more.
    Unlinked(NodeName),
    /// A linked peer said something.
    Received(NodeName, Word),
    /// An operator has a node forgotten, of which this life is the latest known elsewhere.
    Forget(NodeName, Incarnation),
    /// This node goes on under a higher incarnation.
    Renewed(Incarnation),
    /// The deadline passed.
    Tick {
        /// Milliseconds since 1970, by this node's wall clock.
        wall: u64,
    },
}

/// What the machine wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Tell a linked peer.
    Send(NodeName, Word),
    /// The entry of this node is new, another, or gone.
    Changed(NodeName),
    /// This life of a node, and earlier ones, are forgotten: nobody looks for it any more.
    Forgotten {
        /// Whose.
        origin: NodeName,
        /// Which.
        incarnation: Incarnation,
        /// Whether it was known here.
        known: bool,
    },
    /// A forgotten node spoke up: it may be looked for.
    Revived(NodeName),
    /// A peer broke a rule: count it.
    Charge(NodeName, &'static str),
    /// A peer broke rules more than 16 times within a minute: end its link.
    Cut(NodeName),
}
