//! A node's status as its operators see it: the JSON of `xpando-node status --json`.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::actors::node_manager::Row;
use crate::io::clock::rfc3339;
use crate::proto::event::{Reason, Status};
use crate::proto::node::NodeName;

/// One node, and how it sees the others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: NodeName,
    /// The id of its key, 32 hexadecimal digits.
    pub id: String,
    /// The id of its cluster, likewise.
    pub cluster: String,
    /// Its life.
    pub incarnation: u64,
    /// Where it listens for links.
    pub listen: SocketAddr,
    /// Whole seconds since it started.
    pub uptime_s: u64,
    /// Every other node it knows, by name.
    pub peers: Vec<PeerStatus>,
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its name.
    pub name: NodeName,
    /// The id of its key, once it has shown its certificate.
    pub id: Option<String>,
    /// Where it was reached, or is looked for.
    pub address: Option<SocketAddr>,
    /// Where it stands.
    pub status: Status,
    /// True while a peer that is online is doubted.
    pub suspect: bool,
    /// Why it is offline.
    pub reason: Option<Reason>,
    /// Its latest known life.
    pub incarnation: Option<u64>,
    /// Since when it has this status: RFC 3339, UTC.
    pub since: String,
    /// Round-trip time in milliseconds; null until it is measured.
    pub rtt_ms: Option<f64>,
}

impl From<&Row> for PeerStatus {
    fn from(row: &Row) -> Self {
        let peer = &row.peer;
        Self {
            name: peer.name.clone(),
            id: row.id.map(|id| id.to_string()),
            address: peer.address,
            status: peer.status,
            suspect: false,
            reason: peer.reason,
            incarnation: Some(peer.incarnation.0).filter(|n| *n != 0),
            since: rfc3339(row.since),
            rtt_ms: None,
        }
    }
}
