//! Events for listeners outside the tree, who may be slow: a slow one loses the oldest and is told how many.

use std::fmt;

use super::trail::Follower;
use crate::proto::event::Event;

/// What a listener is told.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// Something happened.
    Event(Event),
    /// So many events were dropped here, because this listener was too slow.
    Missed(u64),
}

/// Events as they come.
pub struct Events(pub(super) Follower);

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Events")
    }
}

impl Events {
    /// The next event, or how many were missed; `None` once the node is gone. Nothing is lost when the
    /// future is dropped.
    pub async fn recv(&mut self) -> Option<News> {
        Some(match self.0.recv().await? {
            Ok(noted) => News::Event(noted.event.clone()),
            Err(missed) => News::Missed(missed),
        })
    }
}
