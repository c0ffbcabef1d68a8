//! What another node sees, asked over the cluster: each node answers under one name.
//!
//! Invariant: an answer is as large as a message may be at most, and an asker waits for `PATIENCE` at most.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::actors::exchange::{ServeError, Serving};
#[cfg(feature = "gateway")]
use crate::gateway::status::ClusterView;
use crate::gateway::view::NodeView;
use crate::proto::node::NodeName;
use crate::proto::topic::{Address, Name};

/// How long a node may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// Answers other nodes, until the result is dropped.
///
/// # Errors
/// [`ServeError`]; nothing changed.
pub fn serve(view: &NodeView) -> Result<Serving, ServeError> {
    let (view, bus) = (view.clone(), &view.bus);
    bus.exchange().serve(Name::sight(), move |_asked| {
        let sight = serde_json::to_vec(&view.sight());
        async move { Ok(sight?.into()) }
    })
}

/// What a node sees: this one at once, another when it answers. The error says why it does not.
#[cfg(feature = "gateway")]
pub(super) async fn of(view: &NodeView, node: &NodeName) -> Result<ClusterView, String> {
    if *node == view.name {
        return Ok(view.sight());
    }
    asked(view, node, Name::sight(), &()).await
}

/// What another node answers under a name. The error says why it does not.
pub(super) async fn asked<T: DeserializeOwned>(
    view: &NodeView,
    node: &NodeName,
    name: Name,
    query: &impl Serialize,
) -> Result<T, String> {
    let to = Address { name, node: Some(node.clone()) };
    let query = serde_json::to_vec(query).map_err(|error| error.to_string())?;
    let reply = view.bus.exchange().call(&to, query, PATIENCE).await;
    let reply = reply.map_err(|error| error.to_string())?;
    serde_json::from_slice(&reply).map_err(|error| format!("an answer in other words: {error}"))
}
