//! What this node knows of a node.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::proto::event::{Reason, Status};
use crate::proto::node::{Contact, Incarnation, NodeId, NodeName};
use crate::proto::registry::{Entry, Profile};

/// Addresses that are kept of a node.
const ADDRESSES: usize = 8;

/// A node, as this one knows it. Times are in milliseconds since 1970, by this node's clock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Known {
    /// Its name.
    pub name: NodeName,
    /// The id of its key, once it has shown its certificate here.
    pub id: Option<NodeId>,
    /// The latest word about it, of itself or that it is forgotten.
    #[doc(hidden)]
    pub entry: Option<Entry>,
    /// Where it stands, as far as this node has seen.
    pub status: Option<Status>,
    /// Why it is offline.
    pub reason: Option<Reason>,
    /// Its latest known life; 0 while none is known.
    pub incarnation: Incarnation,
    /// When it was first heard of.
    pub first_seen: u64,
    /// When it was last linked here.
    pub last_seen: Option<u64>,
    /// When it was last heard on a link.
    pub last_heartbeat: Option<u64>,
    /// Where links to it worked, the newest first.
    pub addresses: Vec<SocketAddr>,
    /// What the services of this node think of it; 0 unless they say so.
    pub reputation: f64,
}

impl Known {
    /// A node that was just heard of.
    pub(crate) fn new(name: NodeName, now: u64) -> Self {
        Self {
            name,
            id: None,
            entry: None,
            status: None,
            reason: None,
            incarnation: Incarnation(0),
            first_seen: now,
            last_seen: None,
            last_heartbeat: None,
            addresses: Vec::new(),
            reputation: 0.0,
        }
    }

    /// What it says of itself, as far as that is known.
    pub fn profile(&self) -> Option<&Profile> {
        self.entry.as_ref().and_then(Entry::value)
    }

    /// Whether it has this specialization.
    pub fn does(&self, specialization: &str) -> bool {
        let words = self.profile().map(Profile::specializations);
        words.is_some_and(|words| words.iter().any(|it| it.as_str() == specialization))
    }

    /// Whether it is forgotten: it is not shown. One that is forgotten no more is shown again once what it states is known.
    pub fn is_forgotten(&self) -> bool {
        self.entry.as_ref().is_some_and(|entry| entry.value().is_none())
    }

    /// A link to it worked there.
    pub(crate) fn reached(&mut self, address: SocketAddr) {
        self.addresses.retain(|known| *known != address);
        self.addresses.insert(0, address);
        self.addresses.truncate(ADDRESSES);
    }

    /// Where it may be found, the likeliest first; nowhere when it is forgotten.
    #[doc(hidden)]
    pub fn contacts(&self) -> impl Iterator<Item = Contact> + '_ {
        let addresses = self.addresses.iter().filter(|_| !self.is_forgotten());
        let incarnation = self.incarnation;
        addresses.map(move |address| Contact {
            name: self.name.clone(),
            address: *address,
            incarnation,
        })
    }
}
