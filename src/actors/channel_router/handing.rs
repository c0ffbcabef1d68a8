//! Handing on: a node that is drained or stops has others keep what it has of its topics, for clients that come back there.
//!
//! # Protocol
//! Of each topic [`COPIES`] linked nodes are asked to keep it, in an order that a hash of topic and node gives, so that topics
//! spread over all of them. A node that is asked opens the topic as for a member, takes what other nodes have, the one that
//! leaves among them, and answers when it has; it lets go of it as of any topic without members.
//!
//! # Invariants
//! 1. A node keeps for another one only topics on which that one may publish, and believes it no more than any node that it
//!    asks (`topic/sync`).
//! 2. A node that leaves itself keeps nothing for others, nor does one with a quarter of the topics without members that it may
//!    have, or half of the bytes of history; topics that nobody has joined here get no more than that half either. What is kept for
//!    others displaces little.
//! 3. At most [`AT_ONCE`] topics are handed on at once.
//! 4. One node has at most as many topics kept that nobody has joined here as it leaves free for others; each costs it [`KEEP`].

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::topic::{KEEPS, LOGGED, Order, QUIET};
use super::{ChannelRouter, Inside, Msg};
use crate::actors::exchange::Exchange;
use crate::actors::timer;
use crate::io::metrics::Count;
use crate::proto::history::words::{KEPT, Question};
use crate::proto::node::NodeName;
use crate::proto::topic::{Address, Name, Topic};

/// Nodes that keep a topic.
const COPIES: usize = 2;
/// Topics that are handed on at once.
const AT_ONCE: usize = 16;
/// What it costs a node to have a topic kept, in nanoseconds of a core: this one asks all others about it.
pub(super) const KEEP: u64 = 200_000;
/// Between two times that a node which is drained hands on its topics, and how long each may take.
const HAND_ON: Duration = Duration::from_secs(60);
/// How long one node may take.
const WITHIN: Duration = Duration::from_secs(5);

impl ChannelRouter {
    /// Has other nodes keep what this one has of its topics, as far as that goes within this time. From then on it keeps
    /// nothing for others.
    pub(crate) async fn hand_on(&self, within: Duration) {
        drop(tokio::time::timeout(within, self.hand_on_all()).await);
    }

    async fn hand_on_all(&self) {
        let (to, listed) = oneshot::channel();
        self.handle.cast(Msg::Topics(to));
        let Ok((topics, peers)) = listed.await else { return };
        let mut handing = JoinSet::new();
        for topic in topics {
            if handing.len() >= AT_ONCE {
                handing.join_next().await;
            }
            let (exchange, metrics) = (self.bus.exchange().clone(), self.metrics.clone());
            let peers = keepers(&topic, &peers);
            handing.spawn(async move {
                if hand_on(&exchange, &topic, peers).await {
                    metrics.count(Count::Channels, "history_handed_on");
                }
            });
        }
        while handing.join_next().await.is_some() {}
    }
}

impl Inside {
    /// Keeps a topic for this node, which leaves, if there is room. Who is not answered asks another one.
    pub(super) fn keep(&mut self, from: NodeName, topic: &Topic, to: oneshot::Sender<Bytes>) {
        let quiet = self.shared.quiet.load(Ordering::Relaxed);
        let logged = self.shared.logged.load(Ordering::Relaxed);
        // What is opening is not counted among those without members yet.
        let free = (QUIET / KEEPS).saturating_sub(quiet.max(self.lent.len()));
        let own = self.lent.values().filter(|whose| **whose == from).count();
        let crowded = own >= free || logged >= LOGGED / 2;
        let opens = !self.topics.contains_key(topic);
        if self.leaving || (opens && crowded) {
            return;
        }
        self.order_open(topic, true, Order::Keep(to, self.links.clone()));
        if opens && self.topics.contains_key(topic) {
            self.lent.insert(topic.clone(), from);
        }
    }

    /// An order for a topic that opens for it if it must.
    pub(super) fn order_open(&mut self, topic: &Topic, whole: bool, order: Order) {
        if !self.topics.contains_key(topic) && !self.open(topic, whole) {
            return;
        }
        if let Some(running) = self.topics.get_mut(topic) {
            running.joins += 1;
            running.order(order);
        }
    }

    pub(super) fn leaves(&mut self, leaving: bool) {
        self.leaving = leaving;
        self.hand_on_at = leaving.then(timer::now);
    }

    pub(super) fn hand_on(&mut self) {
        self.hand_on_at = Some(timer::now() + HAND_ON);
        let router = self.router.clone();
        tokio::spawn(async move { router.hand_on(HAND_ON).await });
    }
}

/// Who is asked to keep a topic, in this order.
fn keepers(topic: &Topic, peers: &[NodeName]) -> Vec<NodeName> {
    let mut peers = peers.to_vec();
    peers.sort_by_cached_key(|peer| {
        let mut hasher = DefaultHasher::new();
        (topic, peer).hash(&mut hasher);
        hasher.finish()
    });
    peers
}

/// Whether a node keeps the topic now.
async fn hand_on(exchange: &Exchange, topic: &Topic, peers: Vec<NodeName>) -> bool {
    let Ok(question) = Question::Keep(topic.clone()).encode().map(Bytes::from) else {
        return false;
    };
    let mut kept = 0;
    for peer in peers.into_iter().take(2 * COPIES) {
        let to = Address { name: Name::channels(), node: Some(peer) };
        let answer = exchange.call(&to, question.clone(), WITHIN).await;
        kept += usize::from(answer.is_ok_and(|answer| *answer == *KEPT));
        if kept == COPIES {
            break;
        }
    }
    kept > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_spread_over_all_nodes() {
        let peers: Vec<NodeName> =
            (0..5).map(|n| format!("n{n}@h").parse().expect("a name")).collect();
        let first = |n: u32| {
            let topic = format!("room:{n}").parse().expect("a topic");
            keepers(&topic, &peers).remove(0)
        };
        for peer in &peers {
            let share = (0..1000).filter(|n| first(*n) == *peer).count();
            assert!((100..300).contains(&share), "{share} of 1000");
        }
    }
}
