//! PubSub: the one door between nodes, and the news inside this one.
//!
//! - **Owns** who listens to events and to the words of other nodes' actors; the trail of what happened; the exchange
//!   (`pubsub/exchange`) through which everybody publishes, subscribes, calls and serves.
//! - **Hears** announcements from any actor, and the words of peers (through `link`).
//! - **Says** to listeners what they asked for; to peers what they are told.
//! - **After a restart**: no listeners. The tree restarts everything after it, and they attach again. The
//!   exchange lives on: subscriptions and served names stay, the links come back within the second.
//! - **Never** waits for a subscriber or a peer: what finds no room is refused, and that is counted.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ractor::ActorProcessingErr;
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;

use crate::actors::supervisor::{Address, Child, Handle, Process};
use crate::io::metrics::{Count, Metrics};
use crate::proto::codec;
use crate::proto::event::Event;
use crate::proto::frame::{Lane, MAX_PAYLOAD};
use crate::proto::hlc::Stamp;
use crate::proto::interest::TooMany;
use crate::proto::node::NodeName;
use crate::proto::talk::Gone;
use crate::proto::topic::{self, Name, Pattern, Topic};

#[path = "news/announce.rs"]
mod announce;
#[path = "exchange/calls.rs"]
mod calls;
#[path = "news/events.rs"]
mod events;
#[path = "exchange/topics.rs"]
mod exchange;
#[path = "link/inbound.rs"]
mod inbound;
#[path = "exchange/outlet.rs"]
mod outlet;
#[path = "exchange/groups.rs"]
mod remote;
#[path = "exchange/subscription.rs"]
mod subscription;
#[path = "news/trail.rs"]
mod trail;

pub use calls::{CallError, Reply, Request, ServeError, Serving, Watch};
pub use events::{Events, News};
pub use exchange::Spread;
pub use inbound::Fault;
pub(crate) use inbound::Inbound;
pub use outlet::{Outlet, SendError};
pub use remote::RemoteActor;
pub use subscription::{Message, Received, Slow, Subscription};
pub use trail::{Follower, Noted, Page, Trail, WAITING, Wanted};

use exchange::Exchange;

const VERSION: u8 = 2;

/// What an actor says to its like on another node.
#[derive(Serialize, Deserialize)]
struct Words {
    topic: Topic,
    /// When it was said.
    stamp: Stamp,
    payload: Vec<u8>,
}

/// Words of a peer's actor, as this node's actors get them.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The peer; certain, its certificate says so.
    pub from: NodeName,
    /// The words.
    pub payload: Arc<[u8]>,
}

type EventSink = Box<dyn Fn(&Event) + Send>;
type WordsSink = Box<dyn Fn(Delivery) + Send>;

enum Msg {
    Announce(Event),
    Events(&'static str, EventSink),
    OnWords(&'static str, Topic, WordsSink),
    Received(NodeName, Bytes, OwnedSemaphorePermit),
}

/// The handle.
#[derive(Clone)]
pub struct PubSub {
    handle: Handle<Msg>,
    metrics: Metrics,
    exchange: Arc<Exchange>,
    trail: Trail,
}

impl fmt::Debug for PubSub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PubSub").field(self.exchange.me()).finish()
    }
}

/// News and words inside the node.
impl PubSub {
    /// The door of the node of this name, that nobody stands behind yet.
    #[must_use]
    pub fn new(me: NodeName, metrics: &Metrics) -> Self {
        let exchange = Arc::new(Exchange::new(me, metrics));
        Self {
            handle: Handle::new("pubsub", metrics),
            metrics: metrics.clone(),
            exchange,
            trail: Trail::default(),
        }
    }

    /// The node whose door it is.
    #[must_use]
    pub fn name(&self) -> &NodeName {
        self.exchange.me()
    }

    /// What this node counts.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Bytes that wait for each linked peer, by lane.
    #[must_use]
    pub fn waiting(&self) -> Vec<(NodeName, [(Lane, usize); 3])> {
        let table = self.exchange.table();
        table.peers().map(|outlet| (outlet.peer().clone(), outlet.waiting())).collect()
    }

    /// The child to put under a supervisor.
    #[must_use]
    pub fn child(&self) -> Child {
        Child::actor::<Inside>(&self.handle, (self.metrics.clone(), self.trail.clone()))
    }

    /// What happened. It outlives restarts of this actor.
    #[must_use]
    pub fn trail(&self) -> &Trail {
        &self.trail
    }

    /// Logs, counts and notes an event, and tells everybody in this node who listens.
    pub fn announce(&self, event: Event) {
        announce::log(&event);
        announce::count(&event, &self.metrics);
        self.trail.note(event.clone());
        self.handle.cast(Msg::Announce(event));
    }

    /// Every later event, for a listener outside the tree: it outlives restarts of this actor.
    #[must_use]
    pub fn events(&self) -> Events {
        Events(self.trail.follow())
    }

    /// Gives every later event to `sink`. A listener has one name; a second one replaces the first.
    pub fn on_events(&self, name: &'static str, sink: impl Fn(&Event) + Send + 'static) {
        self.handle.cast(Msg::Events(name, Box::new(sink)));
    }

    /// Gives all later words of peers on `topic` to `sink`, likewise.
    pub fn on_words(
        &self,
        name: &'static str,
        topic: Topic,
        sink: impl Fn(Delivery) + Send + 'static,
    ) {
        self.handle.cast(Msg::OnWords(name, topic, Box::new(sink)));
    }

    /// Words for the actors that listen to `topic` on one peer: at most once, in order while the link
    /// lasts. At most about 64 KiB; what is larger or finds no room is counted and dropped.
    pub fn tell(&self, peer: &NodeName, topic: Topic, payload: Vec<u8>) {
        let words = Words { topic, stamp: self.trail.stamp(), payload };
        let kind = match codec::encode_versioned(VERSION, &words) {
            Ok(words) if words.len() <= MAX_PAYLOAD => {
                let told = self
                    .exchange
                    .peer(peer)
                    .and_then(|outlet| outlet.push(Lane::Door, |_no_head| {}, &words.into()));
                match told {
                    Ok(()) => "sent",
                    Err(SendError::NotConnected) => "not_linked",
                    Err(SendError::Overloaded) => "overloaded",
                    Err(SendError::TooLong(_)) => "too_large",
                }
            }
            Ok(_) | Err(_) => "too_large",
        };
        self.metrics.count(Count::Door, kind);
    }

    /// Words arrived on a link. The permit bounds what a peer can have waiting here.
    pub(crate) fn received(&self, from: NodeName, words: Bytes, permit: OwnedSemaphorePermit) {
        self.handle.cast(Msg::Received(from, words, permit));
    }

    /// Waits until all that was said to other nodes has been sent, or their links are gone: as long as
    /// one of them does not read.
    pub async fn flushed(&self) {
        let peers: Vec<_> = self.exchange.table().peers().cloned().collect();
        for peer in peers {
            peer.flushed().await;
        }
    }

    /// A link to a peer is up: what is said to it goes through this outlet.
    pub(crate) fn up(&self, peer: NodeName) -> Arc<Outlet> {
        let outlet = Arc::new(Outlet::new(peer));
        self.exchange.up(&outlet);
        outlet
    }

    /// The link is gone.
    pub(crate) fn down(&self, outlet: &Arc<Outlet>, why: Gone) {
        self.exchange.down(outlet, why);
    }
}

/// Broadcasts: at most once, and in order for each publishing node and topic.
impl PubSub {
    /// Subscribes to a topic or to all topics below one, on this node and all others. Who lags loses the
    /// oldest.
    ///
    /// # Errors
    /// [`TooMany`] topics for one node; nothing changed.
    pub fn subscribe(&self, to: impl Into<Pattern>) -> Result<Subscription, TooMany> {
        self.subscribe_with(to, Slow::default())
    }

    /// Likewise, with a choice of what happens when the subscriber lags.
    ///
    /// # Errors
    /// As [`PubSub::subscribe`].
    pub fn subscribe_with(
        &self,
        to: impl Into<Pattern>,
        slow: Slow,
    ) -> Result<Subscription, TooMany> {
        self.exchange.subscribe(to.into(), slow)
    }

    /// To every subscriber on every node. Waits for room where a peer has none.
    ///
    /// # Errors
    /// [`SendError::TooLong`].
    pub async fn broadcast(
        &self,
        topic: &Topic,
        payload: impl Into<Bytes>,
    ) -> Result<Spread, SendError> {
        self.exchange.broadcast(topic, &payload.into(), None).await
    }

    /// Likewise, but not to this subscription.
    ///
    /// # Errors
    /// As [`PubSub::broadcast`].
    pub async fn broadcast_from(
        &self,
        from: &Subscription,
        topic: &Topic,
        payload: impl Into<Bytes>,
    ) -> Result<Spread, SendError> {
        self.exchange.broadcast(topic, &payload.into(), Some(from.number())).await
    }

    /// To every subscriber on every node, without waiting: a peer without room misses it, and the result
    /// says so.
    ///
    /// # Errors
    /// As [`PubSub::broadcast`].
    pub fn try_broadcast(
        &self,
        topic: &Topic,
        payload: impl Into<Bytes>,
    ) -> Result<Spread, SendError> {
        self.exchange.try_broadcast(topic, &payload.into(), None)
    }

    /// To the subscribers on this node alone.
    ///
    /// # Errors
    /// As [`PubSub::broadcast`].
    pub fn local_broadcast(
        &self,
        topic: &Topic,
        payload: impl Into<Bytes>,
    ) -> Result<Spread, SendError> {
        self.exchange.broadcast_here(topic, &payload.into(), None)
    }

    /// To the subscribers on this node alone, but not to this subscription.
    ///
    /// # Errors
    /// As [`PubSub::broadcast`].
    pub fn local_broadcast_from(
        &self,
        from: &Subscription,
        topic: &Topic,
        payload: impl Into<Bytes>,
    ) -> Result<Spread, SendError> {
        self.exchange.broadcast_here(topic, &payload.into(), Some(from.number()))
    }

    /// To the subscribers on one node. Waits for room.
    ///
    /// # Errors
    /// [`SendError`]; nothing was sent.
    pub async fn direct_broadcast(
        &self,
        node: &NodeName,
        topic: &Topic,
        payload: impl Into<Bytes>,
    ) -> Result<(), SendError> {
        self.exchange.direct(node, topic, &payload.into()).await
    }

    /// Likewise, without waiting.
    ///
    /// # Errors
    /// [`SendError`], [`SendError::Overloaded`] among them; nothing was sent.
    pub fn try_direct_broadcast(
        &self,
        node: &NodeName,
        topic: &Topic,
        payload: impl Into<Bytes>,
    ) -> Result<(), SendError> {
        self.exchange.try_direct(node, topic, &payload.into())
    }
}

/// Requests.
impl PubSub {
    /// Serves requests to a name until the result is dropped. Each request runs in a task of its own, and
    /// is dropped at its deadline.
    ///
    /// # Errors
    /// [`ServeError`]; nothing changed.
    pub fn serve<F>(
        &self,
        name: Name,
        handler: impl Fn(Request) -> F + Send + Sync + 'static,
    ) -> Result<Serving, ServeError>
    where
        F: Future<Output = Reply> + Send + 'static,
    {
        self.exchange.serve(name, Box::new(move |request| Box::pin(handler(request))))
    }

    /// Makes a request and waits for its reply, at most so long. Without a node it goes to one that
    /// offers the name, in turn.
    ///
    /// # Errors
    /// [`CallError`], each of which says whether anything may have been done.
    pub async fn call(
        &self,
        to: &topic::Address,
        payload: impl Into<Bytes>,
        within: Duration,
    ) -> Result<Bytes, CallError> {
        self.exchange.call(to, payload.into(), within).await
    }

    /// The nodes that serve a name, the nearest by round-trip time first, this node before all.
    #[must_use]
    pub fn lookup(&self, name: &Name) -> Vec<NodeName> {
        self.exchange.lookup(name)
    }

    /// Watches a name on a node.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn watch(&self, name: &Name, node: &NodeName) -> Result<Watch, SendError> {
        self.exchange.watch(name, node)
    }
}

struct Inside {
    metrics: Metrics,
    trail: Trail,
    events: BTreeMap<&'static str, EventSink>,
    words: BTreeMap<(Topic, &'static str), WordsSink>,
}

impl Inside {
    fn received(&self, from: NodeName, words: &[u8]) -> &'static str {
        let Ok(Words { topic, stamp, payload }) =
            codec::decode_versioned(VERSION, words, MAX_PAYLOAD)
        else {
            return "malformed";
        };
        if !self.trail.heard(stamp) {
            self.metrics.count(Count::Door, "stamp_far_ahead");
        }
        let mut kind = "no_subscriber";
        let delivery = Delivery { from, payload: payload.into() };
        let same = (topic.clone(), "")..;
        for ((_, _), sink) in self.words.range(same).take_while(|((t, _), _)| *t == topic) {
            sink(delivery.clone());
            kind = "received";
        }
        kind
    }
}

impl Process for Inside {
    const NAME: &'static str = "pubsub";
    type Message = Msg;
    type Setup = (Metrics, Trail);

    async fn start(
        (metrics, trail): Self::Setup,
        _myself: &Address<Msg>,
    ) -> Result<Self, ActorProcessingErr> {
        Ok(Self { metrics, trail, events: BTreeMap::new(), words: BTreeMap::new() })
    }

    fn handle(&mut self, message: Msg) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::Announce(event) => self.events.values().for_each(|sink| sink(&event)),
            Msg::Events(name, sink) => drop(self.events.insert(name, sink)),
            Msg::OnWords(name, topic, sink) => drop(self.words.insert((topic, name), sink)),
            Msg::Received(from, words, permit) => {
                self.metrics.count(Count::Door, self.received(from, &words));
                drop(permit);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "news/tests.rs"]
pub(crate) mod tests;
