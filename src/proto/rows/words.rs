//! What the nodes of a table send each other, and the machine's inputs and outputs.

use serde::{Deserialize, Serialize};

use crate::proto::event::{Author, Operator};
use crate::proto::node::{Incarnation, KeyId, NodeName};
use crate::proto::seal::{Equivocation, Seal, Sealed};

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
    /// A tombstone: this life of the origin left.
    Gone {
        /// When, in milliseconds since 1970 by the clock of the node that made the tombstone.
        at: u64,
        /// Who made it: the origin as it left, or one that saw that.
        by: NodeName,
    },
    /// What a member ruled about the origin.
    Ruled(Box<Ruling<V>>),
}

/// What a member ruled about another node at an operator's request, in the place of what that states.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ruling<V> {
    /// Whether the node is forgotten, which makes it a tombstone; otherwise it is not any more.
    pub forgotten: bool,
    /// When, in milliseconds since 1970 by the author's clock.
    pub at: u64,
    /// Who made it.
    pub author: Author,
    /// What the origin had stated last, as far as it is known.
    pub last: Option<Stated<V>>,
}

/// What an origin stated, with its own seal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stated<V> {
    /// The life it is of.
    pub incarnation: Incarnation,
    /// Its version within that life.
    pub version: u64,
    /// What it says.
    pub value: V,
    /// What proves it.
    pub seal: Seal,
}

impl<V> Stated<V> {
    /// As the origin's row.
    pub fn row(self, origin: NodeName) -> Row<V> {
        let Self { incarnation, version, value, seal } = self;
        Row { origin, incarnation, version, state: State::Live(value), seal: Some(seal) }
    }
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

    /// What the origin states, or had stated before it was forgotten for a while; `None` of a tombstone.
    pub fn value(&self) -> Option<&V> {
        match &self.state {
            State::Live(value) => Some(value),
            State::Ruled(ruling) if !ruling.forgotten => ruling.last.as_ref().map(|it| &it.value),
            State::Gone { .. } | State::Ruled(_) => None,
        }
    }

    /// When the tombstone was made, if this is one.
    pub fn gone_at(&self) -> Option<u64> {
        match &self.state {
            State::Live(_) => None,
            State::Gone { at, .. } => Some(*at),
            State::Ruled(ruling) => ruling.forgotten.then_some(ruling.at),
        }
    }

    /// What a member ruled about the origin, if this is that.
    pub fn ruling(&self) -> Option<&Ruling<V>> {
        if let State::Ruled(ruling) = &self.state { Some(ruling) } else { None }
    }

    /// Who states it.
    pub fn maker(&self) -> &NodeName {
        match &self.state {
            State::Live(_) => &self.origin,
            State::Gone { by, .. } => by,
            State::Ruled(ruling) => &ruling.author.by,
        }
    }
}

/// Short hashes of what rows hold, in the order of the marks that they come with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Values {
    /// Drawn for each word: nobody can choose rows whose short hashes are the same.
    pub salt: u64,
    /// `None` of what is not to be compared.
    pub hashes: Vec<Option<[u8; 4]>>,
}

impl Values {
    /// What one of them needs on the wire.
    pub(super) const SIZE: usize = 5;
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
    /// A hash over all marks and values of the sender.
    Digest(u128),
    /// All marks of the sender of names above `after`, up to the last one listed or, without `more`, to the end.
    Marks {
        /// Where it begins.
        after: Option<NodeName>,
        /// In order of names.
        marks: Vec<(NodeName, Mark)>,
        /// Another word goes on from here.
        more: bool,
        /// What the rows hold.
        values: Values,
    },
    /// Some marks of the sender; it implies nothing about the rest.
    News(Vec<(NodeName, Mark)>),
    /// A request for the rows of these origins.
    Want(Vec<NodeName>),
    /// What is sealed of rows that the receiver has otherwise under the same marks.
    Sealed(Vec<Sealed>),
    /// The proof that a node states different things to different peers.
    Equivocation(Box<Equivocation>),
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
    /// This life of a node left.
    Gone(NodeName, Incarnation),
    /// An operator has this life of a node, or a later known one, forgotten.
    Forget(NodeName, Incarnation, Operator),
    /// An operator has a node forgotten no more.
    Restore(NodeName, Operator),
    /// This node goes on under a higher incarnation.
    Renewed(Incarnation),
    /// This node leaves.
    Leaving,
    /// Other certificates are revoked than before.
    Revoked,
    /// Another table of this node has this proof.
    Equivocation(Box<Equivocation>),
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
    /// A tombstone gave way to a row, or was dropped.
    Revived(NodeName),
    /// It is proven that the holder of this key states different things to different peers.
    Equivocation(KeyId, Box<Equivocation>),
    /// A peer broke a rule: count it.
    Charge(NodeName, &'static str),
    /// A peer broke rules more than 16 times within a minute: end its link.
    Cut(NodeName),
}
