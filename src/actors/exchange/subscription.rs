//! A subscription: takes messages out of its queue.

use std::fmt;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use postcard_schema::Schema;
use serde::de::DeserializeOwned;

use crate::actors::exchange::queue::{
    Batch, Content, Message, Next, OverflowPolicy, Queue, Received,
};
use crate::actors::exchange::topics::Topics;
use crate::io::metrics::Count;
use crate::proto::codec::{self, CodecError};
use crate::proto::interest::TooMany;
use crate::proto::outbox::{MAX_MESSAGE, Records};
use crate::proto::talk::{Bulk, read_bulk};
use crate::proto::topic::Pattern;

/// A subscription; it ends when dropped.
#[must_use = "a subscription ends when it is dropped"]
pub struct Subscription {
    topics: Weak<Topics>,
    pattern: Pattern,
    number: u64,
    queue: Arc<Queue>,
    current: Option<(Arc<Batch>, Records)>,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("pattern", &self.pattern).finish_non_exhaustive()
    }
}

impl Subscription {
    pub(super) fn open(
        topics: &Arc<Topics>,
        pattern: Pattern,
        policy: OverflowPolicy,
    ) -> Result<Self, TooMany> {
        let queue = Arc::new(Queue::new(policy));
        let number = topics.subscribe(&pattern, queue.clone())?;
        Ok(Self { topics: Arc::downgrade(topics), pattern, number, queue, current: None })
    }

    /// What it subscribed to.
    #[must_use]
    pub fn pattern(&self) -> &Pattern {
        &self.pattern
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The next message, or how many were missed; `None` once a subscription of policy
    /// [`OverflowPolicy::Disconnect`] was too slow. Nothing is lost when the future is dropped.
    pub async fn recv(&mut self) -> Option<Received> {
        if let Some(message) = self.next_of_current() {
            return Some(Received::Message(message));
        }
        // A flood must not keep its worker from everything else.
        tokio::task::coop::consume_budget().await;
        std::future::poll_fn(|context| self.poll(context)).await
    }

    /// The next message if one is there; `None` otherwise.
    pub fn try_recv(&mut self) -> Option<Received> {
        match self.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(received) => received,
            Poll::Pending => None,
        }
    }

    /// A message that was published as a value.
    ///
    /// # Errors
    /// [`CodecError`]: it is of another type, or no value at all. This is counted.
    pub fn decode<T: DeserializeOwned + Schema>(&self, message: &Message) -> Result<T, CodecError> {
        let value = codec::decode_typed(&message.payload, MAX_MESSAGE);
        if let (Err(_), Some(topics)) = (&value, self.topics.upgrade()) {
            topics.metrics().count(Count::Messages, "other_type");
        }
        value
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Received>> {
        loop {
            if let Some(message) = self.next_of_current() {
                return Poll::Ready(Some(Received::Message(message)));
            }
            match self.queue.poll(context) {
                Poll::Ready(Next::Batch(batch)) => self.current = Some((batch, Records::bare())),
                Poll::Ready(Next::Missed(count)) => {
                    return Poll::Ready(Some(Received::Missed(count)));
                }
                Poll::Ready(Next::Closed) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn next_of_current(&mut self) -> Option<Message> {
        let (batch, records) = self.current.as_mut()?;
        let payload = match &batch.content {
            Content::One(payload) => {
                let payload = payload.clone();
                let message =
                    Message { topic: batch.topic.clone(), from: batch.from.clone(), payload };
                self.current = None;
                return Some(message);
            }
            Content::Records(bytes, _) => broadcast(bytes, records),
        };
        match payload {
            Some(payload) => {
                Some(Message { topic: batch.topic.clone(), from: batch.from.clone(), payload })
            }
            None => {
                self.current = None;
                None
            }
        }
    }
}

/// The payload of the next record.
fn broadcast(bytes: &Bytes, records: &mut Records) -> Option<Bytes> {
    let range = records.next(bytes)?.ok()?;
    let begin = range.start;
    match read_bulk(bytes.get(range.clone())?) {
        Ok(Bulk::Broadcast(_, payload)) => Some(bytes.slice(begin + payload.start..range.end)),
        Ok(Bulk::Gone(..) | Bulk::Unknown) | Err(_) => None,
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(topics) = self.topics.upgrade() {
            topics.unsubscribe(&self.pattern, self.number);
        }
        self.queue.close();
    }
}
