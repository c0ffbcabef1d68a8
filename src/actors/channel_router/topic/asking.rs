//! Asking other nodes what they have of a topic: how far each is, and then those that are further for their messages.
//!
//! Invariants:
//! 1. Asking takes at most [`WITHIN`] for each of its two steps, and of the answers at most [`PAGES`] parts.
//! 2. A node that opens the topic answers so at once, and is asked again by one that does not open it itself.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::JoinSet;

use crate::actors::exchange::Exchange;
use crate::actors::timer;
use crate::proto::channel::envelope::Envelope;
use crate::proto::history::chunk::Chunk;
use crate::proto::history::words::{Heads, Question, decode_tail};
use crate::proto::node::NodeName;
use crate::proto::replay::{Bounds, Cursor, Log, Position};
use crate::proto::topic::{Address, Name, Topic};

/// How long a step of asking takes, at most.
pub(super) const WITHIN: Duration = Duration::from_secs(1);
/// Until a node is asked again that opens the topic.
const AGAIN: Duration = Duration::from_millis(20);
/// Parts that are asked for at once, at most.
const PAGES: usize = 16;

/// What another node has.
pub(in super::super) struct Answer {
    pub(super) peer: NodeName,
    pub(super) link: u64,
    pub(super) heads: Heads,
    /// How far it is, by those.
    pub(super) cursor: Cursor,
    pub(super) chunks: Vec<Chunk>,
    /// It may have more, and did not get to say it.
    pub(super) cut_short: bool,
}

/// Who asks, and what it has.
pub(super) struct Asking {
    pub(super) exchange: Exchange,
    pub(super) topic: Topic,
    pub(super) cursor: Cursor,
    /// All that they have in memory, rather than the newest.
    pub(super) whole: bool,
    /// Those that open the topic are asked again; but not by one that does so itself, as they ask it, too.
    pub(super) patient: bool,
    pub(super) until: Instant,
}

impl Asking {
    async fn call(&self, peer: &NodeName, question: &Question) -> Option<Bytes> {
        let to = Address { name: Name::channels(), node: Some(peer.clone()) };
        let left = self.until.saturating_duration_since(timer::now());
        self.exchange.call(&to, question.encode().ok()?, left).await.ok()
    }

    async fn heads_of(&self, peer: &NodeName) -> Option<Heads> {
        loop {
            let heads = self.call(peer, &Question::Heads(self.topic.clone())).await?;
            // One of an earlier version answers with nothing.
            let heads = Heads::decode(&heads).unwrap_or_default();
            if !(heads.opening && self.patient) || timer::now() + AGAIN >= self.until {
                return Some(heads);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Asks these nodes how far they are.
    pub(super) async fn heads(mut self, peers: BTreeMap<NodeName, u64>) -> Vec<Answer> {
        self.until = timer::now() + WITHIN;
        let mut asking = JoinSet::new();
        for (peer, link) in peers {
            if !self.exchange.may_publish(&peer, &self.topic) {
                continue;
            }
            let (exchange, topic) = (self.exchange.clone(), self.topic.clone());
            let cursor = Cursor::default();
            let one = Self { exchange, topic, cursor, ..self };
            asking.spawn(async move {
                let heads = one.heads_of(&peer).await?;
                let cursor = heads.cursor.parse().unwrap_or_default();
                Some(Answer { peer, link, heads, cursor, chunks: Vec::new(), cut_short: false })
            });
        }
        let mut answers = Vec::new();
        while let Some(answer) = asking.join_next().await {
            answers.extend(answer.ok().flatten());
        }
        answers.sort_by(|a, b| (b.heads.messages, &a.peer).cmp(&(a.heads.messages, &b.peer)));
        answers
    }

    /// Asks those that are further for what they have.
    pub(super) async fn tails(mut self, mut answers: Vec<Answer>) -> Vec<Answer> {
        self.until = timer::now() + WITHIN;
        let mut pages = PAGES;
        for answer in &mut answers {
            // Another one may have more of an epoch that this one goes on from.
            let mut there = self.cursor.clone();
            while !there.covers(&answer.cursor) {
                let Some(left) = pages.checked_sub(1) else {
                    answer.cut_short = true;
                    break;
                };
                pages = left;
                let question = if self.whole && there.is_empty() {
                    Question::Whole(self.topic.clone())
                } else {
                    Question::Tail(self.topic.clone(), there.to_string())
                };
                let tail = self.call(&answer.peer, &question).await;
                let Some(chunks) = tail.and_then(|tail| decode_tail(&tail)) else {
                    answer.cut_short = true;
                    break;
                };
                if !advance(&mut there, &chunks, Cursor::follow) {
                    break;
                }
                advance(&mut self.cursor, &chunks, Cursor::advance);
                answer.chunks.extend(chunks);
            }
        }
        answers
    }
}

/// Brings a cursor further by what these have; whether there was anything.
fn advance(
    cursor: &mut Cursor,
    chunks: &[Chunk],
    mut by: impl FnMut(&mut Cursor, &NodeName, Position) -> bool,
) -> bool {
    let mut further = false;
    if let Some(first) = chunks.first().filter(|_| cursor.is_empty()) {
        *cursor = Log::<()>::standing(Bounds::default(), first.standing()).cursor().clone();
    }
    for record in chunks.iter().flat_map(Chunk::records) {
        let stamp = Envelope::decode(&record.message).and_then(|it| it.stamp);
        further |= stamp.is_some_and(|stamp| by(cursor, &record.from, stamp));
    }
    further
}
