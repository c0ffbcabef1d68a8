//! What this node sees of its peers, as it goes into its row.

use std::collections::BTreeMap;

use crate::proto::event::Status;
use crate::proto::heartbeat::Vital;
use crate::proto::membership::PeerView;
use crate::proto::node::{Incarnation, NodeName};
use crate::proto::topology::Cell;

/// What this node knows of one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    /// Its latest known life.
    pub incarnation: Incarnation,
    /// This node's side of the link.
    pub cell: Cell,
}

impl Side {
    /// This node's side of the link to a peer that has its status `since`, in milliseconds since 1970.
    pub fn new(peer: &PeerView, since: u64, vital: Option<&Vital>) -> Self {
        let vital = vital.filter(|_| peer.status == Status::Online);
        let trip = vital.and_then(|vital| vital.round_trip);
        let cell = Cell {
            state: peer.status,
            suspect: vital.is_some_and(|vital| vital.suspect),
            rtt: trip.and_then(|trip| u32::try_from(trip.p50.as_micros()).ok()),
            phi: vital.map_or(0, |vital| (vital.phi * 100.0) as u32),
            since,
            reason: peer.reason,
        };
        Self { incarnation: peer.incarnation, cell }
    }
}

/// The node's side of every link, when it looks.
pub type Sides = BTreeMap<NodeName, Side>;
