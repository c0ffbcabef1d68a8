//! What this node publishes on channels, numbered by topic.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::marks::Marks;
use crate::actors::exchange::{DeliveryReport, Exchange, SendError};
use crate::proto::channel::Payload;
use crate::proto::channel::envelope::Envelope;
use crate::proto::replay::Position;
use crate::proto::topic::Topic;

/// Topics whose publications are numbered; when there are more, all numbering begins anew.
const NUMBERED: usize = 100_000;

/// The last numbers of this node's publications, by topic.
struct Stamps {
    /// Of topics that it begins with.
    epoch: u32,
    last: HashMap<Topic, Position>,
}

impl Stamps {
    fn new() -> Self {
        Self { epoch: rand::random(), last: HashMap::new() }
    }

    /// The next of a topic, for all but this member.
    fn next(&mut self, topic: &Topic, marks: &Marks, except: Option<u64>) -> Position {
        if self.last.len() >= NUMBERED && !self.last.contains_key(topic) {
            *self = Self::new();
        }
        let first = Position { epoch: self.epoch, n: 0, tag: 0 };
        let last = self.last.entry(topic.clone()).or_insert(first);
        let next = Position { n: last.n.saturating_add(1), tag: 0, ..*last };
        *last = Position { tag: marks.tag(topic, &next, except), ..next };
        *last
    }
}

/// Publishes on channels: to clients of all nodes, and to anyone else who subscribes to the topic.
#[derive(Clone)]
pub struct Publisher {
    exchange: Exchange,
    stamps: Arc<Mutex<Stamps>>,
    pub(super) marks: Marks,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Publisher")
    }
}

impl Publisher {
    /// A publisher through this exchange.
    pub(crate) fn new(exchange: &Exchange) -> Self {
        let (stamps, marks) = (Arc::new(Mutex::new(Stamps::new())), Marks::default());
        Self { exchange: exchange.clone(), stamps, marks }
    }

    /// Goes on from these numbers, which an earlier run of this node gave last and no other run goes on from.
    pub(crate) fn go_on(&self, from: Vec<(Topic, Position)>) {
        self.stamps.lock().last.extend(from);
    }

    /// The last numbers of the topics that are of this kind. What is published from now on is numbered anew.
    pub(crate) fn take(&self, kind: impl Fn(&Topic) -> bool) -> Vec<(Topic, Position)> {
        let stamps = std::mem::replace(&mut *self.stamps.lock(), Stamps::new());
        stamps.last.into_iter().filter(|(topic, _)| kind(topic)).collect()
    }

    /// The last number that it gave on a topic.
    pub(super) fn last(&self, topic: &Topic) -> Option<Position> {
        self.stamps.lock().last.get(topic).copied()
    }

    /// To every node, without waiting: one that has no room misses it, and the result says so.
    ///
    /// # Errors
    /// [`SendError::TooLong`], also for an event that is empty or over 255 bytes; nothing was sent.
    pub fn publish(
        &self,
        topic: &Topic,
        event: &str,
        payload: &Payload,
    ) -> Result<DeliveryReport, SendError> {
        self.send(topic, event, payload, None, |bytes| self.exchange.try_publish(topic, bytes))
    }

    /// As [`Publisher::publish`], but not to this member of this node.
    #[cfg(feature = "gateway")]
    pub(crate) fn publish_except(
        &self,
        topic: &Topic,
        event: &str,
        payload: &Payload,
        member: u64,
    ) -> Result<DeliveryReport, SendError> {
        let send = |bytes| self.exchange.try_publish(topic, bytes);
        self.send(topic, event, payload, Some(member), send)
    }

    /// To the clients of this node alone.
    ///
    /// # Errors
    /// As [`Publisher::publish`].
    #[cfg(feature = "gateway")]
    pub(crate) fn publish_here(
        &self,
        topic: &Topic,
        event: &str,
        payload: &Payload,
    ) -> Result<DeliveryReport, SendError> {
        self.send(topic, event, payload, None, |bytes| self.exchange.publish_here(topic, bytes))
    }

    fn send(
        &self,
        topic: &Topic,
        event: &str,
        payload: &Payload,
        except: Option<u64>,
        send: impl FnOnce(bytes::Bytes) -> Result<DeliveryReport, SendError>,
    ) -> Result<DeliveryReport, SendError> {
        // Held while it is sent: numbers leave in their order.
        let mut stamps = self.stamps.lock();
        let stamp = stamps.next(topic, &self.marks, except);
        let bytes = Envelope::encode(stamp, event, payload);
        send(bytes.ok_or(SendError::TooLong(event.len()))?)
    }
}
