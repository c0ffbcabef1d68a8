//! A subscriber's queue: bounded, and never in the way of the others.
//!
//! What arrives in one piece on one topic is one batch, shared by all its subscribers. Invariants:
//! 1. Beside its oldest batch a queue holds at most [`BOUND`] bytes, or one batch that is longer.
//! 2. A batch keeps its sender's credit only while it waits, and at most [`PATIENCE`]: a subscriber that
//!    keeps up slows its senders down to its own pace, one that lags loses what is oldest and is told
//!    how much (or is disconnected), and the others never notice.
//! 3. What one publisher says on one topic comes out in order, each message once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::actors::exchange::outlet::Ticket;
use crate::proto::node::NodeName;
use crate::proto::topic::Topic;

/// Bytes that may wait for a subscriber.
const BOUND: usize = 8 * 1024 * 1024;
/// What a batch costs beside its bytes.
const OVERHEAD: usize = 128;
/// How long a batch may wait on its sender's credit.
pub(crate) const PATIENCE: Duration = Duration::from_millis(50);

/// A message on a topic. The payload may share memory with its neighbours; who keeps it for long should
/// keep a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// Its topic.
    pub topic: Topic,
    /// The node that published it; certain, its certificate says so.
    pub from: NodeName,
    /// What was said.
    pub payload: Bytes,
}

/// What a subscriber is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// A message.
    Message(Message),
    /// So many messages were dropped here, because this subscriber was too slow.
    Missed(u64),
}

/// What happens to a subscriber whose queue is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OverflowPolicy {
    /// It loses the oldest and is told how many.
    #[default]
    DropOldest,
    /// Its subscription ends; what waits is still delivered.
    Disconnect,
}

/// Messages of one topic that arrived together.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) topic: Topic,
    pub(super) from: NodeName,
    pub(super) content: Content,
}

#[derive(Debug)]
pub(crate) enum Content {
    /// The payload of one message.
    One(Bytes),
    /// So many records as they arrived, each of them a sound broadcast.
    Records(Bytes, usize),
}

impl Content {
    /// Its length in bytes.
    pub(crate) fn length(&self) -> usize {
        let (Self::One(bytes) | Self::Records(bytes, _)) = self;
        bytes.len()
    }
}

/// What a subscriber takes next.
pub(super) enum Next {
    Batch(Arc<Batch>),
    /// So many messages were dropped.
    Missed(u64),
    /// The queue is empty and takes nothing any more.
    Closed,
}

impl Batch {
    fn count(&self) -> u64 {
        match &self.content {
            Content::One(_) => 1,
            Content::Records(_, count) => *count as u64,
        }
    }

    fn cost(&self) -> usize {
        let (Content::One(bytes) | Content::Records(bytes, _)) = &self.content;
        bytes.len() + OVERHEAD
    }
}

#[derive(Debug)]
struct Waiting {
    batch: Arc<Batch>,
    since: Instant,
    ticket: Option<Arc<Ticket>>,
}

#[derive(Debug, Default)]
struct State {
    batches: VecDeque<Waiting>,
    cost: usize,
    missed: u64,
    /// Some batch waits on credit.
    holding: bool,
    closed: bool,
    waker: Option<Waker>,
}

/// The queue of one subscription.
#[derive(Debug)]
pub(super) struct Queue {
    policy: OverflowPolicy,
    state: Mutex<State>,
}

impl Queue {
    pub(super) fn new(policy: OverflowPolicy) -> Self {
        Self { policy, state: Mutex::default() }
    }

    /// Adds a batch; how many messages were dropped for it.
    pub(super) fn push(
        &self,
        batch: &Arc<Batch>,
        ticket: Option<&Arc<Ticket>>,
        now: Instant,
    ) -> u64 {
        let mut state = self.state.lock();
        if state.closed {
            return batch.count();
        }
        let ticket = if state.lags(now) { None } else { ticket.cloned() };
        let (cost, before) = (batch.cost(), state.missed);
        if state.beside() + cost > BOUND && !state.batches.is_empty() {
            match self.policy {
                OverflowPolicy::DropOldest => state.make_room(cost),
                OverflowPolicy::Disconnect => {
                    state.closed = true;
                    state.wake();
                    return batch.count();
                }
            }
        }
        state.cost += cost;
        state.holding |= ticket.is_some();
        state.batches.push_back(Waiting { batch: batch.clone(), since: now, ticket });
        state.wake();
        state.missed - before
    }

    /// Gives up the credit that a lagging subscriber holds.
    pub(super) fn release(&self, now: Instant) {
        self.state.lock().lags(now);
    }

    /// What comes next; otherwise wakes the task once there is something.
    pub(super) fn poll(&self, context: &Context<'_>) -> Poll<Next> {
        let mut state = self.state.lock();
        if state.missed > 0 {
            return Poll::Ready(Next::Missed(std::mem::take(&mut state.missed)));
        }
        let Some(oldest) = state.batches.pop_front() else {
            state.holding = false;
            if state.closed {
                return Poll::Ready(Next::Closed);
            }
            state.waker = Some(context.waker().clone());
            return Poll::Pending;
        };
        state.cost -= oldest.batch.cost();
        drop(state);
        Poll::Ready(Next::Batch(oldest.batch))
    }

    pub(super) fn close(&self) {
        *self.state.lock() = State { closed: true, ..State::default() };
    }
}

impl State {
    /// Whether the oldest batch has waited for too long; then none waits on credit.
    fn lags(&mut self, now: Instant) -> bool {
        let lags = self.batches.front().is_some_and(|oldest| oldest.since + PATIENCE < now);
        if lags && self.holding {
            self.batches.iter_mut().for_each(|waiting| waiting.ticket = None);
            self.holding = false;
        }
        lags
    }

    /// What waits behind the oldest, which is the next to be taken however long it is.
    fn beside(&self) -> usize {
        self.cost - self.batches.front().map_or(0, |oldest| oldest.batch.cost())
    }

    fn make_room(&mut self, cost: usize) {
        while self.beside() + cost > BOUND {
            let Some(oldest) = self.batches.pop_front() else { return };
            self.cost -= oldest.batch.cost();
            self.missed += oldest.batch.count();
        }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}
