//! What happened, on this node and on all others: each node answers under one name.
//!
//! Invariants: an answer has a bounded number of events, and is as large as a message may be at most; an asker waits
//! for `PATIENCE` at most, and is told of every node that did not answer.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::actors::event_log::Query;
use crate::actors::exchange::{ServeError, Serving};
use crate::actors::news::Wanted;
use crate::gateway::status::{Change, Changes};
use crate::gateway::view::NodeView;
use crate::proto::node::NodeName;
use crate::proto::topic::{Address, Name};

/// How long a node may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Events of one answer at most.
pub const MOST: usize = 1000;

/// Which events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// The first ones after this number; without it, the latest.
    pub after: Option<u64>,
    /// At most so many; never more than [`MOST`].
    pub limit: usize,
    /// Of this type alone.
    pub label: Option<String>,
    /// About this node alone.
    pub node: Option<NodeName>,
    /// At this time or later, in milliseconds since 1970.
    pub from: Option<u64>,
    /// Before this time, likewise.
    pub until: Option<u64>,
}

impl From<Asked> for Query {
    fn from(Asked { after, limit, label, node, from, until }: Asked) -> Self {
        Self { after, limit: limit.min(MOST), wanted: Wanted { label, node, from, until } }
    }
}

/// What happened on one node of several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct There {
    /// Where it was noted.
    pub noted_by: NodeName,
    /// What.
    #[serde(flatten)]
    pub change: Change,
}

/// A node whose events are missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Which.
    pub node: NodeName,
    /// Why.
    pub why: String,
}

/// What happened on all nodes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Merged {
    /// By their stamps: what could have caused another comes before it.
    pub events: Vec<There>,
    /// Nodes that did not answer, by name.
    pub missing: Vec<Missing>,
}

/// What happened here.
pub async fn here(view: &NodeView, asked: Asked) -> Changes {
    view.journal.read(asked.into()).await.into()
}

/// Answers other nodes, until the result is dropped.
///
/// # Errors
/// [`ServeError`]; nothing changed.
pub fn serve(view: &NodeView) -> Result<Serving, ServeError> {
    let (view, bus) = (view.clone(), &view.bus);
    bus.exchange().serve(Name::history(), move |request| {
        let view = view.clone();
        async move {
            let text = |error: serde_json::Error| error.to_string();
            let asked = serde_json::from_slice(&request.payload).map_err(text)?;
            let changes = here(&view, asked).await;
            serde_json::to_vec(&changes).map(Bytes::from).map_err(text)
        }
    })
}

/// What happened on every node, this one included: of each the latest.
pub async fn everywhere(view: &NodeView, asked: &Asked) -> Merged {
    let asked = Asked { after: None, ..asked.clone() };
    let mut asking = JoinSet::new();
    let peers = view.status().peers.into_iter().map(|peer| peer.name);
    for node in peers.chain([view.name.clone()]) {
        let (view, asked) = (view.clone(), asked.clone());
        asking.spawn(async move {
            let answer = of(&view, &node, asked).await;
            (node, answer)
        });
    }
    let mut merged = Merged::default();
    // A task that panicked is not to take the others' answers along.
    while let Some(answer) = asking.join_next().await {
        match answer {
            Ok((noted_by, Ok(changes))) => {
                let there = |change| There { noted_by: noted_by.clone(), change };
                merged.events.extend(changes.events.into_iter().map(there));
            }
            Ok((node, Err(why))) => merged.missing.push(Missing { node, why }),
            Err(error) => tracing::error!(%error, "a question for events ended badly"),
        }
    }
    merged.missing.sort_by(|one, other| one.node.cmp(&other.node));
    let order =
        |there: &There| (there.change.stamp.clone(), there.noted_by.clone(), there.change.seq);
    merged.events.sort_by_cached_key(order);
    let surplus = merged.events.len().saturating_sub(asked.limit);
    merged.events.drain(..surplus);
    merged
}

async fn of(view: &NodeView, node: &NodeName, asked: Asked) -> Result<Changes, String> {
    if *node == view.name {
        return Ok(here(view, asked).await);
    }
    let to = Address { name: Name::history(), node: Some(node.clone()) };
    let asked = serde_json::to_vec(&asked).map_err(|error| error.to_string())?;
    let reply = view.bus.exchange().call(&to, asked, PATIENCE).await;
    let reply = reply.map_err(|error| error.to_string())?;
    serde_json::from_slice(&reply).map_err(|error| format!("an answer in other words: {error}"))
}
