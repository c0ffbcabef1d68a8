//! What becomes of the nodes, as this one sees them.
//!
//! `heartbeat` is a topic of all nodes, and each has one of its own, called as it is: a client gets `snapshot` there at its
//! join, then `join`, `leave` and `heartbeat` (`feed`). It may send `data`, to all who joined.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use serde_json::{Value, json};

use super::super::handler::{Channel, Client, Joined, Push, Reaction};
use super::Counted;
use crate::actors::exchange::HandlerError;
use crate::gateway::view::NodeView;
use crate::proto::channel::family::{Family, FamilyTable};
use crate::proto::channel::{Json, Payload};
use crate::proto::node::NodeName;

/// The topic of all nodes, by what stands behind its prefix.
pub(in super::super) const HEARTBEAT: &str = "heartbeat";

/// The channel.
pub(in super::super) struct Node {
    admin: NodeView,
    table: FamilyTable,
    /// Joins.
    watching: Arc<AtomicUsize>,
}

impl Node {
    pub(in super::super) fn new(
        admin: &NodeView,
        table: &FamilyTable,
        watching: &Arc<AtomicUsize>,
    ) -> Self {
        Self { admin: admin.clone(), table: table.clone(), watching: watching.clone() }
    }
}

impl Channel for Node {
    type State = Counted;

    async fn join(
        &self,
        client: &Client,
        _params: Value,
    ) -> Result<Joined<Self::State>, HandlerError> {
        let joined = || Joined::new(Counted::of(&self.watching));
        let name = match self.table.of(&client.topic) {
            Some((Family::Node, HEARTBEAT)) => return Ok(joined()),
            Some((Family::Node, name)) => name.parse::<NodeName>().ok(),
            Some((Family::Room | Family::Network | Family::Off, _)) | None => None,
        };
        let (name, admin) = (name.ok_or("unmatched topic")?, self.admin.clone());
        Ok(joined()
            .greeting(move || vec![("snapshot", Payload::Json(Json::of(&beat(&admin, &name))))]))
    }

    async fn handle_in(
        &self,
        _state: &mut Self::State,
        _client: &Client,
        push: &Push,
    ) -> Result<Reaction, HandlerError> {
        match push.event.as_str() {
            "data" => Ok(Reaction::Broadcast),
            _ => Err("only data can be sent here".into()),
        }
    }

    /// What is newer makes up for what is lost.
    fn lossy(&self) -> bool {
        true
    }
}

/// A node as this one sees it.
pub(in super::super) fn beat(admin: &NodeView, name: &NodeName) -> Value {
    if *name == admin.name {
        return json!({ "node": name, "status": "online", "incarnation": admin.life() });
    }
    match admin.peer(name) {
        None => json!({ "node": name, "status": null }),
        Some(peer) => json!({
            "node": name,
            "status": peer.status,
            "suspect": peer.suspect,
            "incarnation": peer.incarnation,
            "rtt_ms": peer.rtt_ms,
            "phi": peer.phi,
            "last_heard": peer.last_heard,
        }),
    }
}
