//! What waits to be sent to one client: bounded, and shared by all who have something to say to it.
//!
//! Invariants:
//! 1. Beside one frame of any length at most as many bytes wait as the node's limit, each frame counted with `OVERHEAD`; what a
//!    client is given at its join comes on top, once.
//! 2. Frames leave in the order in which they came.
//! 3. Where there is no room, the oldest frames of topics that may lose some go first; a client that has none of
//!    those is disconnected.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::proto::channel::Encoded;

/// What a frame costs beside its bytes.
const OVERHEAD: usize = 64;

/// What happens to a client that is too slow for a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientOverflow {
    /// It is disconnected with 1013, and comes back.
    Disconnect,
    /// It loses the oldest frames of such topics.
    DropOldest,
}

/// Why a client is disconnected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Close {
    /// The code of the WebSocket protocol (RFC 6455, 7.4).
    pub code: u16,
    /// What the client may read.
    pub reason: &'static str,
}

impl Close {
    /// It takes less than it is sent: try again later.
    pub(crate) const SLOW: Self = Self { code: 1013, reason: "too slow" };
    /// The node goes away: try another.
    pub const RESTART: Self = Self { code: 1012, reason: "the node is stopping" };
    /// Nothing was heard of the client for too long.
    pub const IDLE: Self = Self { code: 1002, reason: "idle for too long" };
    /// It has shown neither a token nor a join for too long.
    pub const UNENTITLED: Self = Self { code: 1008, reason: "neither a token nor a join" };
    /// What it sent as text is not UTF-8.
    pub const NOT_TEXT: Self = Self { code: 1007, reason: "a text frame that is not UTF-8" };
    /// It does more than it may, and goes on.
    pub const RATE: Self = Self { code: 1008, reason: "rate limited" };
    /// What it sent is no WebSocket frame.
    pub const PROTOCOL: Self = Self { code: 1002, reason: "not a WebSocket frame" };
}

#[derive(Debug)]
struct State {
    /// Bytes that may wait.
    bound: usize,
    frames: VecDeque<(Encoded, ClientOverflow)>,
    cost: usize,
    /// Frames that were dropped since somebody asked.
    dropped: u64,
    close: Option<Close>,
    asleep: bool,
}

fn cost(frame: &Encoded) -> usize {
    frame.length() + OVERHEAD
}

impl State {
    fn push(&mut self, frame: Encoded, slow: ClientOverflow) {
        self.cost += cost(&frame);
        self.frames.push_back((frame, slow));
        if self.cost <= self.bound || self.frames.len() == 1 {
            return;
        }
        let (before, mut left, bound) = (self.frames.len(), self.cost, self.bound);
        self.frames.retain(|(frame, slow)| {
            let goes = left > bound && *slow == ClientOverflow::DropOldest;
            left -= if goes { cost(frame) } else { 0 };
            !goes
        });
        self.cost = left;
        self.dropped += (before - self.frames.len()) as u64;
        if left > bound && self.frames.len() > 1 {
            self.end(Close::SLOW);
        }
    }

    fn end(&mut self, close: Close) {
        if self.close.is_none() {
            self.dropped += self.frames.len() as u64;
            (self.frames, self.cost, self.close) = (VecDeque::new(), 0, Some(close));
        }
    }
}

/// The outbox. Clones are the same.
#[derive(Clone, Debug)]
pub struct ClientQueue(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    work: Notify,
}

/// What there is to send.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Frames, in order.
    Frames,
    /// Nothing more: the connection is to be closed so.
    Close(Close),
}

impl ClientQueue {
    /// Nothing waits; later `bound` bytes may.
    pub fn new(bound: usize) -> Self {
        let (frames, dropped, close, asleep) = (VecDeque::new(), 0, None, false);
        let state = Mutex::new(State { bound, frames, cost: 0, dropped, close, asleep });
        Self(Arc::new(Inner { state, work: Notify::new() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        if state.close.is_some() {
            return;
        }
        change(&mut state);
        if std::mem::take(&mut state.asleep) {
            drop(state);
            self.0.work.notify_one();
        }
    }

    /// Adds frames.
    pub fn push(&self, frames: impl IntoIterator<Item = Encoded>, slow: ClientOverflow) {
        self.change(|state| frames.into_iter().for_each(|frame| state.push(frame, slow)));
    }

    /// Adds what a client gets at its join, however much that is.
    pub fn welcome(&self, frames: impl IntoIterator<Item = Encoded>) {
        self.change(|state| {
            state
                .frames
                .extend(frames.into_iter().map(|frame| (frame, ClientOverflow::Disconnect)));
        });
    }

    /// Ends it: nothing that waits is sent any more.
    pub fn close(&self, close: Close) {
        self.change(|state| state.end(close));
    }

    /// Whether no more than so much waits, nor a quarter of what may.
    pub(super) fn has_room(&self, most: usize) -> bool {
        let state = self.state();
        state.cost <= most.min(state.bound / 4)
    }

    /// Whether it has ended.
    pub fn is_closed(&self) -> bool {
        self.state().close.is_some()
    }

    /// Frames that were dropped since this was asked last.
    pub fn dropped(&self) -> u64 {
        std::mem::take(&mut self.state().dropped)
    }

    /// Moves what waits to `out`, without waiting; `None` when nothing does.
    pub(crate) fn try_next(&self, out: &mut Vec<Encoded>) -> Option<Next> {
        let mut state = self.state();
        if state.frames.is_empty() {
            state.asleep = state.close.is_none();
            return state.close.map(Next::Close);
        }
        // A crowd was once told much: its queues must not stay as long as that.
        let frames = std::mem::take(&mut state.frames);
        state.cost = 0;
        drop(state);
        out.extend(frames.into_iter().map(|(frame, _)| frame));
        Some(Next::Frames)
    }

    /// Moves what waits to `out`, as soon as something does. Nothing is lost when the future is dropped.
    pub async fn next(&self, out: &mut Vec<Encoded>) -> Next {
        loop {
            if let Some(next) = self.try_next(out) {
                return next;
            }
            self.0.work.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    const BOUND: usize = 512 << 10;

    fn frame(tag: u8, length: usize) -> Encoded {
        Encoded::Binary(Bytes::from(vec![tag; length]))
    }

    fn waiting(outbox: &ClientQueue) -> Vec<u8> {
        let mut frames = Vec::new();
        assert_eq!(outbox.try_next(&mut frames), Some(Next::Frames));
        let tag = |frame: &Encoded| match frame {
            Encoded::Binary(bytes) | Encoded::Text(bytes) | Encoded::Parts(bytes, _) => bytes[0],
        };
        frames.iter().map(tag).collect()
    }

    #[test]
    fn who_is_too_slow_is_disconnected() {
        let outbox = ClientQueue::new(BOUND);
        outbox.push([frame(1, 2 * BOUND)], ClientOverflow::Disconnect);
        assert_eq!(waiting(&outbox), [1], "one long frame alone has room");
        outbox.push([frame(2, BOUND / 2), frame(3, BOUND / 4)], ClientOverflow::Disconnect);
        assert!(!outbox.is_closed());
        outbox.push([frame(4, BOUND / 4)], ClientOverflow::Disconnect);
        assert_eq!(outbox.try_next(&mut Vec::new()), Some(Next::Close(Close::SLOW)));
        assert_eq!(outbox.dropped(), 3);
        outbox.push([frame(5, 1)], ClientOverflow::Disconnect);
        assert_eq!(outbox.try_next(&mut Vec::new()), Some(Next::Close(Close::SLOW)));
    }

    #[test]
    fn what_may_be_lost_goes_before_anybody_is_disconnected() {
        let outbox = ClientQueue::new(BOUND);
        outbox.push([frame(1, BOUND / 4)], ClientOverflow::Disconnect);
        for tag in 2..9 {
            outbox.push([frame(tag, BOUND / 4)], ClientOverflow::DropOldest);
        }
        assert_eq!(outbox.dropped(), 5);
        outbox.push([frame(9, BOUND / 4)], ClientOverflow::Disconnect);
        assert_eq!(waiting(&outbox), [1, 8, 9]);
        assert_eq!(outbox.dropped(), 1);
    }

    #[test]
    fn what_a_client_is_given_at_its_join_has_room() {
        let outbox = ClientQueue::new(BOUND);
        outbox.welcome([frame(1, BOUND), frame(2, BOUND)]);
        outbox.push([frame(3, BOUND / 2)], ClientOverflow::Disconnect);
        assert_eq!(waiting(&outbox), [1, 2, 3]);
    }

    #[tokio::test]
    async fn a_close_reaches_who_waits() {
        let outbox = ClientQueue::new(BOUND);
        let (mut out, closer) = (Vec::new(), outbox.clone());
        let (next, ()) =
            tokio::join!(outbox.next(&mut out), async { closer.close(Close::RESTART) });
        assert_eq!(next, Next::Close(Close::RESTART));
    }
}
