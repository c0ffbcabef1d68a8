//! What trackers tell each other, and what the machine hears and says.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::proto::event::{Reason, Status};
use crate::proto::node::{Incarnation, NodeName};

/// One node's side of one link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// The peer's status.
    pub state: Status,
    /// Whether it is doubted.
    pub suspect: bool,
    /// Round trip in microseconds, when it was measured.
    pub rtt: Option<u32>,
    /// Suspicion level times 100.
    pub phi: u32,
    /// Since when the state holds, in milliseconds since 1970 by the origin's clock.
    pub since: u64,
    /// Why it is offline.
    pub reason: Option<Reason>,
}

/// The latest known row of an origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The life it is of.
    pub incarnation: Incarnation,
    /// Its version within that life; 0 while nothing but the life is known.
    pub version: u64,
    /// What the origin says of its peers.
    pub cells: BTreeMap<NodeName, Cell>,
}

/// A row, or one part of a long one, on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Whose.
    pub origin: NodeName,
    /// The life it is of.
    pub incarnation: Incarnation,
    /// Its version; `u64::MAX` says that this life left.
    pub version: u64,
    /// Which part, from 0.
    pub part: u16,
    /// Of how many; parts travel in order.
    pub parts: u16,
    /// The cells.
    pub cells: Vec<(NodeName, Cell)>,
}

/// An origin and how far its row is known.
pub type Mark = (NodeName, Incarnation, u64);

/// What trackers tell each other. Grows only at its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word {
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
        /// The cells that differ; `None` is gone.
        cells: Vec<(NodeName, Option<Cell>)>,
    },
    /// All that the sender knows of names above `after`, up to the last one listed or, without
    /// `more`, to the end.
    Digest {
        /// Where it begins.
        after: Option<NodeName>,
        /// In order of names.
        marks: Vec<Mark>,
        /// Another digest goes on from here.
        more: bool,
    },
    /// Rows.
    Rows(Vec<Row>),
    /// Send the rows of these.
    Want(Vec<NodeName>),
    /// Some of what the sender knows; it says nothing about the rest.
    News(Vec<Mark>),
}

/// What the machine hears.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// This node's side of its links, peer by peer. Give every measurement; few are told.
    Own(Vec<(NodeName, Cell)>),
    /// This node knows that peer no more.
    Forget(NodeName),
    /// This life of a peer can be talked to.
    Linked(NodeName, Incarnation),
    /// It can be talked to no more.
    Unlinked(NodeName),
    /// A linked peer said something.
    Received(NodeName, Word),
    /// This life of a node said goodbye, or was forgotten.
    Left(NodeName, Incarnation),
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
    /// The view changed; at most once an input.
    Changed,
    /// A peer broke a rule: count it.
    Charge(NodeName, &'static str),
    /// A peer broke rules more than 16 times within a minute: end its link.
    Cut(NodeName),
}
