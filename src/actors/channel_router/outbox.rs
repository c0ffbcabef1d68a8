//! What waits to be sent to one client: bounded, and shared by all who have something to say to it.
//!
//! Invariants:
//! 1. Beside one frame of any length at most as many bytes wait as the node's limit, each frame counted with `OVERHEAD`; what a
//!    client is given at its join comes on top, once, and of that the past is made as it is taken.
//! 2. Frames leave in the order in which they came.
//! 3. Where there is no room, the oldest frames of topics that may lose some go first; a client that has none of
//!    those is disconnected.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::proto::channel::Encoded;

/// What a frame costs beside its bytes.
const OVERHEAD: usize = 64;
/// Bytes that are taken together, while a replay waits.
const STEP: usize = 256 * 1024;

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

/// What waits.
enum Item {
    /// What it counts, and whether it may be lost.
    Frame(Encoded, usize, ClientOverflow),
    /// Frames that are made when their turn comes.
    Replay(Box<dyn Iterator<Item = Encoded> + Send>),
}

struct State {
    /// Bytes that may wait.
    bound: usize,
    items: VecDeque<Item>,
    cost: usize,
    /// How many of the items are replays.
    replays: usize,
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
        let cost = cost(&frame);
        self.cost += cost;
        self.items.push_back(Item::Frame(frame, cost, slow));
        if self.cost <= self.bound || self.cost == cost {
            return;
        }
        let (before, mut left, bound) = (self.items.len(), self.cost, self.bound);
        self.items.retain(|item| match item {
            Item::Frame(_, cost, ClientOverflow::DropOldest) if left > bound => {
                left -= cost;
                false
            }
            Item::Frame(..) | Item::Replay(_) => true,
        });
        self.cost = left;
        self.dropped += (before - self.items.len()) as u64;
        if left > bound && left > cost {
            self.end(Close::SLOW);
        }
    }

    fn end(&mut self, close: Close) {
        if self.close.is_none() {
            self.close = Some(close);
            if close == Close::SLOW {
                self.dropped += self.items.len() as u64;
                (self.items, self.cost, self.replays) = (VecDeque::new(), 0, 0);
            }
        }
    }

    /// Takes what waits.
    fn take(&mut self, out: &mut Vec<Encoded>) {
        if self.replays == 0 {
            // A crowd was once told much: its queues must not stay as long as that.
            let items = std::mem::take(&mut self.items);
            self.cost = 0;
            out.extend(items.into_iter().filter_map(|item| match item {
                Item::Frame(frame, ..) => Some(frame),
                Item::Replay(_) => None,
            }));
            return;
        }
        let mut taken = 0;
        while taken < STEP
            && let Some(item) = self.items.pop_front()
        {
            let frame = match item {
                Item::Frame(frame, cost, _) => {
                    self.cost -= cost;
                    frame
                }
                Item::Replay(mut frames) => {
                    let Some(frame) = frames.next() else {
                        self.replays -= 1;
                        continue;
                    };
                    self.items.push_front(Item::Replay(frames));
                    frame
                }
            };
            taken += frame.length();
            out.push(frame);
        }
        if self.items.is_empty() {
            self.items = VecDeque::new();
        }
    }
}

/// The outbox. Clones are the same.
#[derive(Clone)]
pub struct ClientQueue(Arc<Inner>);

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
        let (items, cost, replays) = (VecDeque::new(), 0, 0);
        let (dropped, close, asleep) = (0, None, false);
        let state = Mutex::new(State { bound, items, cost, replays, dropped, close, asleep });
        Self(Arc::new(Inner { state, work: Notify::new() }))
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.0.state.lock();
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
            let given = |frame| Item::Frame(frame, 0, ClientOverflow::Disconnect);
            state.items.extend(frames.into_iter().map(given));
        });
    }

    /// Adds what a client gets of the past at its join, which is made as it is taken.
    pub fn replay(&self, frames: impl Iterator<Item = Encoded> + Send + 'static) {
        self.change(|state| {
            state.items.push_back(Item::Replay(Box::new(frames)));
            state.replays += 1;
        });
    }

    /// Ends it: what waits is still sent, but to a client that is too slow, and nothing more is added.
    pub fn close(&self, close: Close) {
        self.change(|state| state.end(close));
    }

    /// Whether no more than so much waits, nor a quarter of what may.
    pub(super) fn has_room(&self, most: usize) -> bool {
        let state = self.0.state.lock();
        state.cost <= most.min(state.bound / 4)
    }

    /// Why it has ended, if it has.
    pub fn closed(&self) -> Option<Close> {
        self.0.state.lock().close
    }

    /// Whether anything waits.
    pub fn waits(&self) -> bool {
        !self.0.state.lock().items.is_empty()
    }

    /// Frames that were dropped since this was asked last.
    pub fn dropped(&self) -> u64 {
        std::mem::take(&mut self.0.state.lock().dropped)
    }

    /// Moves what waits to `out`, without waiting; `None` when nothing does.
    pub(crate) fn try_next(&self, out: &mut Vec<Encoded>) -> Option<Next> {
        let mut state = self.0.state.lock();
        let before = out.len();
        state.take(out);
        if out.len() > before {
            return Some(Next::Frames);
        }
        state.asleep = state.close.is_none();
        state.close.map(Next::Close)
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
        assert_eq!(outbox.closed(), None);
        outbox.push([frame(4, BOUND / 4)], ClientOverflow::Disconnect);
        assert_eq!(outbox.try_next(&mut Vec::new()), Some(Next::Close(Close::SLOW)));
        assert_eq!(outbox.dropped(), 3);
        outbox.push([frame(5, 1)], ClientOverflow::Disconnect);
        assert_eq!(outbox.try_next(&mut Vec::new()), Some(Next::Close(Close::SLOW)));
    }

    #[test]
    fn what_waits_when_it_ends_is_still_sent() {
        let outbox = ClientQueue::new(BOUND);
        outbox.push([frame(1, 1), frame(2, 1)], ClientOverflow::Disconnect);
        outbox.close(Close::RATE);
        outbox.push([frame(3, 1)], ClientOverflow::Disconnect);
        assert_eq!(waiting(&outbox), [1, 2]);
        assert_eq!(outbox.try_next(&mut Vec::new()), Some(Next::Close(Close::RATE)));
        assert_eq!(outbox.dropped(), 0);
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

    #[test]
    fn the_past_is_made_as_it_is_taken_and_keeps_its_place() {
        let (outbox, made) = (ClientQueue::new(BOUND), Arc::new(Mutex::new(0)));
        outbox.welcome([frame(1, 10)]);
        let count = made.clone();
        let past = (0..10).map(move |_| {
            *count.lock() += 1;
            frame(2, STEP / 2)
        });
        outbox.replay(past);
        outbox.push([frame(3, BOUND / 2), frame(4, 10)], ClientOverflow::Disconnect);
        assert_eq!(*made.lock(), 0);
        assert_eq!(waiting(&outbox), [1, 2, 2]);
        assert_eq!(*made.lock(), 2, "no more than is taken");
        outbox.close(Close::RESTART);
        let mut rest = Vec::new();
        while outbox.waits() {
            rest.extend(waiting(&outbox));
        }
        assert_eq!(rest, [2, 2, 2, 2, 2, 2, 2, 2, 3, 4]);
        assert_eq!(outbox.try_next(&mut Vec::new()), Some(Next::Close(Close::RESTART)));
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
