//! What another node sees, asked over the cluster: each node answers under one name.
//!
//! Invariants: an answer is as large as a message may be at most, and an asker waits for `PATIENCE` at most; answers are
//! made one at a time, on a thread of their own, and for `IDLE` times as long nothing is made anew: all who ask
//! meanwhile get the same.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;

use crate::actors::exchange::{HandlerError, ServeError, Serving};
use crate::actors::timer;
use crate::gateway::askers::{Askers, IDLE};
#[cfg(feature = "gateway")]
use crate::gateway::status::ClusterView;
use crate::gateway::view::NodeView;
use crate::proto::node::NodeName;
use crate::proto::outbox::MAX_MESSAGE;
use crate::proto::topic::{Address, Name};

/// How long a node may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Bytes of a cell in an answer at least.
const CELL: usize = 32;

/// The last answer, and until when it is given.
type Last = Arc<Mutex<Option<(Bytes, Instant)>>>;

/// Answers other nodes, until the result is dropped.
///
/// # Errors
/// [`ServeError`]; nothing changed.
pub fn serve(view: &NodeView) -> Result<Serving, ServeError> {
    let (view, bus, last, askers) = (view.clone(), &view.bus, Last::default(), Askers::default());
    bus.exchange().serve(Name::sight(), move |request| {
        let (view, last, turn) = (view.clone(), last.clone(), askers.turn(&request.from));
        async move {
            let turn = turn?;
            let _one = turn.lock().await;
            answer(view, &last).await
        }
    })
}

async fn answer(view: NodeView, last: &Last) -> Result<Bytes, HandlerError> {
    let mut last = last.lock().await;
    let began = timer::now();
    if let Some((answer, until)) = &*last
        && began < *until
    {
        return Ok(answer.clone());
    }
    let cells = view.matrix.borrow().edges().count();
    if cells * CELL > MAX_MESSAGE {
        return Err(format!("the matrix has {cells} cells, more than a message may be long").into());
    }
    let made = tokio::task::spawn_blocking(move || serde_json::to_vec(&view.sight())).await??;
    let answer = Bytes::from(made);
    let now = timer::now();
    *last = Some((answer.clone(), now + now.saturating_duration_since(began) * IDLE));
    Ok(answer)
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
