//! What is remembered of earlier runs.

use crate::io::store::Store;
use crate::proto::node::NodeName;
use crate::proto::registry::Known;

/// The other nodes of earlier runs, those seen last first.
pub(super) fn remembered(store: &Store, me: &NodeName) -> Vec<Known> {
    let known = store.known().unwrap_or_else(|error| {
        tracing::warn!(%error, "remembered nodes cannot be read");
        Vec::new()
    });
    known.into_iter().filter(|known| known.name != *me).collect()
}
