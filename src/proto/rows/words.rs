//! What the nodes of a table send each other, and the machine's inputs and outputs.

use serde::{Deserialize, Serialize};

use crate::proto::node::{Incarnation, NodeName};
use crate::proto::seal::Seal;

/// How late a row is. Later marks are greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mark {
    /// The life it is of.
    pub incarnation: Incarnation,
    /// Its version within that life; 0 while nothing but the life is known.
    pub version: u64,
    /// Whether it is a tombstone.
    pub gone: bool,
}

/// What a row says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State<V> {
    /// What the origin states.
    Live(V),
    /// A tombstone: this life of the origin left, or was forgotten.
    Gone {
        /// When, in milliseconds since 1970 by the clock of the node that made the tombstone.
        at: u64,
        /// Who made it: the origin as it left, or one that forgot it.
        by: NodeName,
    },
}

/// The latest known row of an origin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row<V> {
    /// Whose row it is.
    pub origin: NodeName,
    /// The life it is of.
    pub incarnation: Incarnation,
    /// Its version within that life.
    pub version: u64,
    /// What it says.
    pub state: State<V>,
    /// What proves it to those that are not linked with its maker; without one it is passed on to nobody.
    pub seal: Option<Seal>,
}

impl<V> Row<V> {
    /// How late it is.
    pub fn mark(&self) -> Mark {
        let Self { incarnation, version, .. } = *self;
        Mark { incarnation, version, gone: self.gone_at().is_some() }
    }

    /// What the origin states, unless this is a tombstone.
    pub fn value(&self) -> Option<&V> {
        match &self.state {
            State::Live(value) => Some(value),
            State::Gone { .. } => None,
        }
    }

    /// When the tombstone was made, if this is one.
    pub fn gone_at(&self) -> Option<u64> {
        match &self.state {
            State::Live(_) => None,
            State::Gone { at, .. } => Some(*at),
        }
    }

    /// Who states it.
    pub fn maker(&self) -> &NodeName {
        match &self.state {
            State::Live(_) => &self.origin,
            State::Gone { by, .. } => by,
        }
    }
}

/// What the nodes of a table send each other. Grows only at its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word<V, C> {
    /// Whole rows.
    Rows(Vec<Row<V>>),
    /// One part of a row that is too long for a word.
    Part {
        /// Whose row it is.
        origin: NodeName,
        /// The life it is of.
        incarnation: Incarnation,
        /// Its version within that life.
        version: u64,
        /// Which part, from 0; parts travel in order.
        part: u16,
        /// Of how many.
        parts: u16,
        /// What this part adds to those before it.
        adds: C,
        /// With the last part: what proves the whole.
        seal: Option<Seal>,
    },
    /// The sender's own row changed.
    Delta {
        /// The sender.
        origin: NodeName,
        /// Its life.
        incarnation: Incarnation,
        /// The version before.
        from: u64,
        /// The version after.
        to: u64,
        /// What differs.
        change: C,
        /// The signature of the row as it is then, under the same certificate as before.
        signature: Vec<u8>,
    },
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
    /// Some marks of the sender; it implies nothing about the rest.
    News(Vec<(NodeName, Mark)>),
    /// A request for the rows of these origins.
    Want(Vec<NodeName>),
}

/// What the machine receives.
#[derive(Clone, Debug, PartialEq)]
pub enum Input<V, C> {
    /// This node's own row changes.
    Own(C),
    /// This life of a peer can be reached.
    Linked(NodeName, Incarnation),
    /// It can be reached no more.
    Unlinked(NodeName),
    /// A word of a linked peer.
    Received(NodeName, Word<V, C>),
    /// This life of a node left, or is to be forgotten.
    Gone(NodeName, Incarnation),
    /// This node goes on under a higher incarnation.
    Renewed(Incarnation),
    /// This node leaves.
    Leaving,
    /// Other certificates are revoked than before.
    Revoked,
    /// The deadline passed.
    Tick {
        /// Milliseconds since 1970, by this node's wall clock.
        wall: u64,
    },
}

/// What the machine wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Output<V, C> {
    /// Send this to a linked peer.
    Send(NodeName, Word<V, C>),
    /// The row of this origin is new, another, or dropped.
    Changed(NodeName),
    /// A row became a tombstone.
    Gone {
        /// Whose.
        origin: NodeName,
        /// Of which life.
        incarnation: Incarnation,
        /// Whether this node knew the origin before, or made the tombstone.
        known: bool,
    },
    /// A row took the place of a tombstone.
    Revived(NodeName),
    /// A peer broke a rule: count it.
    Charge(NodeName, &'static str),
    /// A peer broke rules more than 16 times within a minute: end its link.
    Cut(NodeName),
}
