//! What happened, on this node and on all others: each node answers under one name.
//!
//! Invariants: an answer has a bounded number of events, and is as large as a message may be at most; an asker waits
//! as long as `sight` lets it, and is told of every node that did not answer. Each node that asks is answered one
//! question at a time, and not before `IDLE` times as long as its last answer took have passed.

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::actors::exchange::{ServeError, Serving};
use crate::actors::timer;
use crate::gateway::askers::{Askers, IDLE};
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
    let (view, bus, askers) = (view.clone(), &view.bus, Askers::default());
    bus.exchange().serve(Name::history(), move |request| {
        let (view, turn) = (view.clone(), askers.turn(&request.from));
        async move {
            let (query, turn) = (serde_json::from_slice(&request.payload)?, turn?);
            // A request that is past its deadline waits no more: it is dropped here.
            let mut next = turn.lock().await;
            tokio::time::sleep_until((*next).into()).await;
            let began = timer::now();
            let page = here(&view, query).await;
            let now = timer::now();
            *next = now + now.saturating_duration_since(began) * IDLE;
            Ok(serde_json::to_vec(&page)?.into())
        }
    })
}

/// What happened on every node, this one included: of each the latest, and of each a fair part.
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
    let (mut merged, mut pages) = (Merged::default(), Vec::new());
    // A task that panicked is not to take the others' answers along.
    while let Some(answer) = asking.join_next().await {
        match answer {
            Ok((node, Ok(page))) => {
                let noted = |event| Recorded { noted_by: Some(node.clone()), ..event };
                pages.push(page.events.into_iter().map(noted).collect());
            }
            Ok((node, Err(why))) => merged.missing.push(Missing { node, why }),
            Err(error) => tracing::error!(%error, "a question for events ended badly"),
        }
    }
    merged.missing.sort_by(|one, other| one.node.cmp(&other.node));
    merged.events = latest(pages, query.limit);
    merged
}

/// The latest of several nodes' events, by stamp. Each node has an equal part of the places before what is left of them
/// goes by stamp: one whose stamps are ahead drives out nobody.
fn latest(pages: Vec<Vec<Recorded>>, limit: usize) -> Vec<Recorded> {
    let part = limit.checked_div(pages.len()).unwrap_or(0);
    let by_stamp = |it: &Recorded| (it.stamp, it.noted_by.clone(), it.seq);
    let (mut events, mut rest) = (Vec::new(), Vec::new());
    for mut page in pages {
        page.sort_by_cached_key(by_stamp);
        let own = page.split_off(page.len().saturating_sub(part));
        events.extend(own);
        rest.extend(page);
    }
    rest.sort_by_cached_key(by_stamp);
    let left = limit.saturating_sub(events.len());
    events.extend(rest.split_off(rest.len().saturating_sub(left)));
    events.sort_by_cached_key(by_stamp);
    events
}

async fn of(view: &NodeView, node: &NodeName, query: Query) -> Result<Page, String> {
    if *node == view.name {
        return Ok(here(view, query).await);
    }
    asked(view, node, Name::history(), &query).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::event::Event;
    use crate::proto::hlc::Stamp;
    use crate::proto::node::Incarnation;

    fn page(node: &str, stamps: std::ops::Range<u64>) -> Vec<Recorded> {
        let event = |millis| Recorded {
            seq: millis,
            noted_by: Some(node.parse().expect("valid")),
            at: millis,
            since_start: 0,
            incarnation: Incarnation(1),
            stamp: Stamp { millis, count: 0 },
            hash: None,
            event: Event::StoreRecovered,
        };
        stamps.map(event).collect()
    }

    fn kept(pages: Vec<Vec<Recorded>>, limit: usize) -> Vec<u64> {
        latest(pages, limit).iter().map(|it| it.stamp.millis).collect()
    }

    #[test]
    fn each_node_has_its_part_whatever_its_stamps() {
        let ahead = || page("x@h", 1000..1100);
        assert_eq!(
            kept(vec![page("a@h", 1..4), ahead(), page("b@h", 2..9)], 6),
            [2, 3, 7, 8, 1098, 1099]
        );
        assert_eq!(
            kept(vec![page("a@h", 1..2), ahead()], 6),
            [1, 1095, 1096, 1097, 1098, 1099],
            "what is left over"
        );
        assert_eq!(kept(vec![page("a@h", 1..4), page("b@h", 2..9)], 100).len(), 10);
        assert_eq!(kept(vec![], 6), [0; 0]);
    }
}
