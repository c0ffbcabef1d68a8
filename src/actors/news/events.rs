//! Events for listeners outside the tree, who may be slow: a slow one loses the oldest and is told how many.

use std::fmt;
use std::sync::Arc;

use super::trail::Follower;
use crate::proto::event::Event;

/// Events as they come.
pub struct Events(pub(super) Follower);

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Events")
    }
}

impl Events {
    /// The next event, or [`Event::EventsMissed`]; `None` once the node is gone. Nothing is lost when the future is
    /// dropped.
    pub async fn recv(&mut self) -> Option<Event> {
        Some(Arc::unwrap_or_clone(self.0.recv().await?).event)
    }
}
