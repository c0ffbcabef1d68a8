//! What happened, on this node and on all others: each node answers under one name.
//!
//! Invariants: an answer has a bounded number of events, and is as large as a message may be at most; an asker waits
//! as long as `sight` lets it, and is told of every node that did not answer.

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::actors::exchange::{ServeError, Serving};
use crate::gateway::sight::asked;
use crate::gateway::view::NodeView;
use crate::proto::event::{MAX_EVENTS, Page, Query, Recorded};
use crate::proto::node::NodeName;
use crate::proto::topic::Name;

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
    pub events: Vec<Recorded>,
    /// Nodes that did not answer, by name.
    pub missing: Vec<Missing>,
}

/// What happened here.
pub async fn here(view: &NodeView, query: Query) -> Page {
    view.journal.read(capped(query)).await
}

/// A query whose answer is bounded.
pub(super) fn capped(query: Query) -> Query {
    Query { limit: query.limit.min(MAX_EVENTS), ..query }
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
            let query = serde_json::from_slice(&request.payload)?;
            let page = here(&view, query).await;
            Ok(serde_json::to_vec(&page)?.into())
        }
    })
}

/// What happened on every node, this one included: of each the latest.
pub async fn everywhere(view: &NodeView, query: &Query) -> Merged {
    let query = Query { after: None, ..query.clone() };
    let mut asking = JoinSet::new();
    let peers = view.status().peers.into_iter().map(|peer| peer.name);
    for node in peers.chain([view.name.clone()]) {
        let (view, query) = (view.clone(), query.clone());
        asking.spawn(async move {
            let answer = of(&view, &node, query).await;
            (node, answer)
        });
    }
    let mut merged = Merged::default();
    // A task that panicked is not to take the others' answers along.
    while let Some(answer) = asking.join_next().await {
        match answer {
            Ok((node, Ok(page))) => {
                let noted = |event| Recorded { noted_by: Some(node.clone()), ..event };
                merged.events.extend(page.events.into_iter().map(noted));
            }
            Ok((node, Err(why))) => merged.missing.push(Missing { node, why }),
            Err(error) => tracing::error!(%error, "a question for events ended badly"),
        }
    }
    merged.missing.sort_by(|one, other| one.node.cmp(&other.node));
    merged.events.sort_by_cached_key(|it| (it.stamp, it.noted_by.clone(), it.seq));
    let surplus = merged.events.len().saturating_sub(query.limit);
    merged.events.drain(..surplus);
    merged
}

async fn of(view: &NodeView, node: &NodeName, query: Query) -> Result<Page, String> {
    if *node == view.name {
        return Ok(here(view, query).await);
    }
    asked(view, node, Name::history(), &query).await
}
