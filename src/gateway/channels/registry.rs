//! Whose a topic is: which of the node's own families or of its services' channels serves it.
//!
//! Invariants:
//! 1. No service takes a topic that tells of the nodes; any other it may, also a room.
//! 2. A later channel of a service comes before an earlier one.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use parking_lot::RwLock;

use super::family::network::{self, Network};
use super::family::node::Node;
use super::family::room::Room;
use super::handler::Channel;
use super::serving::{Inline, Service, Tasked};
use crate::gateway::view::NodeView;
use crate::proto::channel::family::{Family, FamilyTable};
use crate::proto::token::{Claims, Role, Verb};
use crate::proto::topic::{Pattern, Topic};

type Registered = (Pattern, Arc<dyn Service>);

/// The channels of a node.
pub struct Handlers {
    table: FamilyTable,
    room: Arc<dyn Service>,
    network: Arc<dyn Service>,
    node: Arc<dyn Service>,
    services: RwLock<Vec<Registered>>,
    /// Joins of the families `node` and `network`.
    pub(super) watching: Arc<AtomicUsize>,
    pub(super) observing: Arc<AtomicUsize>,
}

impl std::fmt::Debug for Handlers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handlers")
    }
}

impl Handlers {
    /// The families where the table says so, and no service.
    pub(super) fn new(table: FamilyTable, admin: &NodeView) -> Self {
        let (watching, observing) = (Arc::default(), Arc::default());
        Self {
            room: Arc::new(Inline(Room)),
            network: Arc::new(Inline(Network::new(admin, &observing))),
            node: Arc::new(Inline(Node::new(admin, &table, &watching))),
            services: RwLock::default(),
            table,
            watching,
            observing,
        }
    }

    /// From now on these topics are this channel's; a later one comes before an earlier one.
    pub fn add(&self, pattern: Pattern, channel: impl Channel) {
        let service = Arc::new(Tasked(channel));
        let mut services = self.services.write();
        services.insert(0, (pattern, service));
    }

    /// Whose topic it is.
    pub(super) fn of(&self, topic: &Topic) -> Option<Arc<dyn Service>> {
        let family = match self.table.of(topic) {
            Some((Family::Network, network::UPDATES)) => return Some(self.network.clone()),
            Some((Family::Node, _)) => return Some(self.node.clone()),
            Some((Family::Room, _)) => Some(&self.room),
            Some((Family::Network | Family::Off, _)) | None => None,
        };
        let services = self.services.read();
        let service = services.iter().find(|(pattern, _)| pattern.covers(topic));
        service.map(|(_, service)| service).or(family).cloned()
    }

    /// The topics of a family that are called so.
    pub(super) fn topics(&self, family: Family, name: &str) -> Vec<Topic> {
        self.table.topics(family, name)
    }

    /// True when the bearer of these claims may do this: what tells of the nodes tells of them under any name.
    pub(super) fn allow(&self, claims: &Claims, verb: Verb, topic: &Topic) -> bool {
        let of_nodes = || self.table.of(topic).is_some_and(|(family, _)| family.is_of_nodes());
        claims.allows(verb, topic) && (claims.role != Role::User || !of_nodes())
    }
}
