//! What services read of a topic's history: what a join would get that asks for as much.

use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;

use super::{ChannelRouter, Msg};
use crate::proto::channel::Payload;
use crate::proto::channel::envelope::Envelope;
use crate::proto::history::Ask;
use crate::proto::history::chunk::{Chunk, Record};
use crate::proto::history::words::Theirs;
use crate::proto::node::NodeName;
use crate::proto::topic::Topic;

/// A message that was published on a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryEntry {
    from: NodeName,
    at: SystemTime,
    event: String,
    payload: Payload,
}

impl HistoryEntry {
    /// The node that published it.
    #[must_use]
    pub fn from(&self) -> &NodeName {
        &self.from
    }

    /// When this node, or the one that it has the message of, took it.
    #[must_use]
    pub fn at(&self) -> SystemTime {
        self.at
    }

    /// Its event.
    #[must_use]
    pub fn event(&self) -> &str {
        &self.event
    }

    /// What it carries.
    #[must_use]
    pub fn payload(&self) -> &Payload {
        &self.payload
    }

    fn of(record: &Record) -> Option<Self> {
        let Envelope { event, payload, .. } = Envelope::decode(&record.message)?;
        let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(record.at))?;
        Some(Self { from: record.from.clone(), at, event, payload })
    }
}

/// The history of a topic, as far as this node keeps it: `--history` or `Builder::history` says how much. A topic that nobody has joined here is opened for it, with what other nodes have.
#[derive(Clone)]
pub struct TopicHistory {
    router: ChannelRouter,
    topic: Topic,
}

impl std::fmt::Debug for TopicHistory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("TopicHistory").field(&self.topic).finish()
    }
}

impl TopicHistory {
    /// That of a topic at a router.
    pub(crate) fn new(router: &ChannelRouter, topic: &Topic) -> Self {
        Self { router: router.clone(), topic: topic.clone() }
    }

    /// The last messages, at most so many, 1,000 and 4 MiB, the oldest first. After a loss only what came since. Empty,
    /// too, when this node's router starts anew meanwhile.
    pub async fn last(&self, messages: usize) -> Vec<HistoryEntry> {
        self.read(Ask::Last(messages)).await
    }

    /// Likewise those that were taken at this time or later.
    pub async fn since(&self, time: SystemTime) -> Vec<HistoryEntry> {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.read(Ask::Since(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))).await
    }

    async fn read(&self, ask: Ask) -> Vec<HistoryEntry> {
        let (to, answered) = oneshot::channel();
        self.router.handle.cast(Msg::Read(self.topic.clone(), ask, to));
        let theirs = answered.await.ok().and_then(|answer| Theirs::decode(&answer));
        let chunks = theirs.map(|theirs| theirs.chunks).unwrap_or_default();
        let records = chunks.iter().flat_map(Chunk::records);
        records.filter_map(|record| HistoryEntry::of(&record)).collect()
    }
}
