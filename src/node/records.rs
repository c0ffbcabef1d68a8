//! What of the peers goes into the registry and into the link matrix, and what is remembered of an earlier run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use crate::actors::heartbeat_monitor::Vitals;
use crate::actors::node_manager::{NodeManager, Row, View};
use crate::actors::registry::Registry;
use crate::actors::topology_tracker::Side;
use crate::io::store::Store;
use crate::proto::event::Status;
use crate::proto::node::NodeName;
use crate::proto::registry::Known;
use crate::proto::registry::book::Seen;
use crate::proto::topology::Cell;

/// The other nodes of earlier runs, those seen last first.
pub(super) fn remembered(store: &Store, me: &NodeName) -> Vec<Known> {
    let known = store.known().unwrap_or_else(|error| {
        tracing::warn!(%error, "remembered nodes cannot be read");
        Vec::new()
    });
    known.into_iter().filter(|known| known.name != *me).collect()
}

/// The peers, for the registry.
pub(super) fn seen(view: &View, vitals: &Vitals) -> Vec<Seen> {
    let seen = |row: &Row| {
        let peer = &row.peer;
        Seen {
            name: peer.name.clone(),
            id: row.id,
            incarnation: peer.incarnation,
            status: peer.status,
            reason: peer.reason,
            address: peer.address,
            heard: vitals.peers.get(&peer.name).and_then(|vital| vital.heard),
        }
    };
    view.iter().map(seen).collect()
}

/// The forgotten nodes, but those that are peers again.
pub(super) fn forgotten(
    registry: &Registry,
    manager: &NodeManager,
) -> Arc<dyn Fn() -> BTreeSet<NodeName> + Send + Sync> {
    let (registry, peers) = (registry.clone(), manager.peers());
    Arc::new(move || {
        let peers = peers.borrow();
        let back = |name: &NodeName| peers.iter().any(|row| row.peer.name == *name);
        let forgotten = registry.forgotten().into_iter().map(|(name, _)| name);
        forgotten.filter(|name| !back(name)).collect()
    })
}

/// This node's side of every link, for the link matrix.
pub(super) fn sides(view: &View, vitals: &Vitals) -> BTreeMap<NodeName, Side> {
    let side = |row: &Row| {
        let peer = &row.peer;
        let vital = vitals.peers.get(&peer.name).filter(|_| peer.status == Status::Online);
        let trip = vital.and_then(|vital| vital.round_trip);
        let since = row.since.duration_since(UNIX_EPOCH).unwrap_or_default();
        let cell = Cell {
            state: peer.status,
            suspect: vital.is_some_and(|vital| vital.suspect),
            rtt: trip.and_then(|trip| u32::try_from(trip.p50.as_micros()).ok()),
            phi: vital.map_or(0, |vital| (vital.phi * 100.0) as u32),
            since: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            reason: peer.reason,
        };
        (peer.name.clone(), Side { incarnation: peer.incarnation, cell })
    };
    view.iter().map(side).collect()
}
