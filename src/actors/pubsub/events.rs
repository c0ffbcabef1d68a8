//! Events for listeners that may be slow: a bounded ring, of which a slow one loses the oldest and is
//! told how many.

use std::fmt;

use tokio::sync::broadcast::{self, error::RecvError};

use crate::proto::event::Event;

/// Events that may wait for a listener.
const WAITING: usize = 256;

/// Those who listen.
#[derive(Clone)]
pub(super) struct Listeners(broadcast::Sender<Event>);

impl Default for Listeners {
    fn default() -> Self {
        Self(broadcast::Sender::new(WAITING))
    }
}

impl Listeners {
    pub(super) fn tell(&self, event: &Event) {
        if self.0.receiver_count() > 0 {
            drop(self.0.send(event.clone())); // the last listener may go meanwhile
        }
    }

    pub(super) fn listen(&self) -> Events {
        Events(self.0.subscribe())
    }
}

/// What a listener is told.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// Something happened.
    Event(Event),
    /// So many events were dropped here, because this listener was too slow.
    Missed(u64),
}

/// Events as they come.
pub struct Events(broadcast::Receiver<Event>);

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Events")
    }
}

impl Events {
    /// The next event, or how many were missed; `None` once the node is gone. Nothing is lost when the
    /// future is dropped.
    pub async fn recv(&mut self) -> Option<News> {
        match self.0.recv().await {
            Ok(event) => Some(News::Event(event)),
            Err(RecvError::Lagged(missed)) => Some(News::Missed(missed)),
            Err(RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_listener_learns_how_much_it_missed_and_the_end() {
        let listeners = Listeners::default();
        listeners.tell(&Event::Paused { millis: 0 }); // nobody listens yet
        let mut events = listeners.listen();
        for millis in 0..WAITING as u64 + 7 {
            listeners.tell(&Event::Paused { millis });
        }
        assert_eq!(events.recv().await, Some(News::Missed(7)));
        assert_eq!(events.recv().await, Some(News::Event(Event::Paused { millis: 7 })));
        let mut late = listeners.listen();
        drop(listeners);
        assert_eq!(late.recv().await, None);
    }
}
