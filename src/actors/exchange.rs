//! The exchange between this node and all others: broadcasts, requests, and ractor's groups.
//!
//! No actor: shared by everybody who publishes, subscribes, calls or serves, and by the links, with no mailbox in
//! between. It outlives the actors around it: a link that comes back finds the same subscriptions.
//!
//! ```text
//! account, pending ← outlet ← queue ← topics ← subscription, calls, groups
//! ```

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ractor::{ActorRef, Message as RactorMessage};

use crate::io::metrics::Metrics;
use crate::proto::capability::Capabilities;
use crate::proto::frame::Lane;
use crate::proto::interest::TooMany;
use crate::proto::node::NodeName;
use crate::proto::topic::{Address, Name, Pattern, Topic};

mod account;
mod calls;
mod groups;
mod outlet;
mod pending;
mod queue;
mod subscription;
mod topics;

pub(crate) use account::{Account, Kept, Measured};
pub use calls::{CallError, HandlerError, Reply, Request, ServeError, Serving, Watch};
pub use groups::{GroupError, RemoteActor};
pub(crate) use outlet::Ticket;
pub use outlet::{Outlet, SendError};
pub(crate) use queue::{Content, PATIENCE};
pub use queue::{Message, OverflowPolicy, Received};
pub use subscription::Subscription;
pub use topics::DeliveryReport;

use calls::Calls;
use groups::Groups;
use topics::Topics;

/// The exchange of one node. Clones are the same.
#[derive(Clone)]
pub struct Exchange {
    pub(super) topics: Arc<Topics>,
    pub(super) calls: Arc<Calls>,
    groups: Arc<Groups>,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Exchange").field(self.name()).finish()
    }
}

impl Exchange {
    /// That of a node of this name that may do everything, linked to nobody yet.
    #[cfg(any(test, feature = "testkit"))]
    pub(crate) fn new(me: NodeName, metrics: &Metrics) -> Self {
        Self::limited(me, Capabilities::ALL, metrics)
    }

    /// That of a node of this name that may do this, linked to nobody yet.
    pub(crate) fn limited(me: NodeName, may: Capabilities, metrics: &Metrics) -> Self {
        let topics = Arc::new(Topics::new((me, may), metrics));
        let calls = Arc::new(Calls::new(topics.clone()));
        Self { topics, calls, groups: Arc::default() }
    }

    /// Its node.
    #[must_use]
    pub fn name(&self) -> &NodeName {
        self.topics.me()
    }

    /// Whether a linked peer may publish on a topic.
    pub(crate) fn may_publish(&self, peer: &NodeName, topic: &Topic) -> bool {
        self.topics.peer(peer).is_ok_and(|outlet| outlet.capabilities().may_publish(topic))
    }

    /// Adds to what a peer has cost, in nanoseconds of a core.
    pub(crate) fn spend(&self, peer: &NodeName, nanos: u64) {
        if let Ok(outlet) = self.topics.peer(peer) {
            outlet.account().spend(nanos);
        }
    }

    /// The linked nodes that subscribe to a topic.
    pub(crate) fn subscribers(&self, topic: &Topic) -> Vec<NodeName> {
        self.topics.route(topic).peers.iter().map(|outlet| outlet.peer().clone()).collect()
    }

    /// What this node may do.
    pub(crate) fn capabilities(&self) -> &Capabilities {
        self.topics.capabilities()
    }

    /// What this node counts.
    pub(crate) fn metrics(&self) -> &Metrics {
        self.topics.metrics()
    }

    /// Bytes that wait for each linked peer, by lane.
    pub(crate) fn waiting(&self) -> Vec<(NodeName, [(Lane, usize); 3])> {
        let table = self.topics.table();
        table.peers().map(|outlet| (outlet.peer().clone(), outlet.waiting())).collect()
    }

    /// Bytes that are kept of each peer, linked or not, beside its watches.
    pub(crate) fn kept(&self) -> Vec<(NodeName, usize)> {
        self.topics.kept()
    }

    /// Sends every linked peer a word of *calls* and one of *bulk* that only a later program knows.
    #[cfg(feature = "testkit")]
    #[doc(hidden)]
    pub fn send_later_words(&self) {
        for peer in self.topics.table().peers() {
            for lane in [Lane::Calls, Lane::Bulk] {
                let word = |head: &mut Vec<u8>| head.extend_from_slice(b"\x60 of a later version");
                // A link that is gone needs no words.
                peer.push(lane, word, &Bytes::new()).unwrap_or(());
            }
        }
    }

    /// Waits until all that was said to other nodes has been sent, or their links are gone: as long as
    /// one of them does not read.
    pub(crate) async fn flushed(&self) {
        let peers: Vec<_> = self.topics.table().peers().cloned().collect();
        for peer in peers {
            peer.flushed().await;
        }
    }
}

/// Broadcasts: at most once, and in order for each publishing node and topic.
impl Exchange {
    /// Subscribes to a topic or to all topics below one, on this node and all others. Who lags loses the
    /// oldest.
    ///
    /// # Errors
    /// [`TooMany`] topics for one node; nothing changed.
    pub fn subscribe(&self, to: impl Into<Pattern>) -> Result<Subscription, TooMany> {
        self.subscribe_with(to, OverflowPolicy::default())
    }

    /// Likewise, with a choice of what happens when the subscriber lags.
    ///
    /// # Errors
    /// As [`Exchange::subscribe`].
    pub fn subscribe_with(
        &self,
        to: impl Into<Pattern>,
        policy: OverflowPolicy,
    ) -> Result<Subscription, TooMany> {
        Subscription::open(&self.topics, to.into(), policy)
    }

    /// To every subscriber on every node. Waits for room where a peer has none.
    ///
    /// # Errors
    /// [`SendError::TooLong`]; [`SendError::NotAllowed`] on an edge.
    pub async fn publish(
        &self,
        topic: &Topic,
        payload: impl Into<Bytes>,
    ) -> Result<DeliveryReport, SendError> {
        self.topics.broadcast(topic, &payload.into(), None).await
    }

    /// Likewise, but not to this subscription.
    ///
    /// # Errors
    /// As [`Exchange::publish`].
    pub async fn publish_from(
        &self,
        from: &Subscription,
        topic: &Topic,
        payload: impl Into<Bytes>,
    ) -> Result<DeliveryReport, SendError> {
        self.topics.broadcast(topic, &payload.into(), Some(from.number())).await
    }

    /// To every subscriber on every node, without waiting: a peer without room misses it, and the result
    /// says so.
    ///
    /// # Errors
    /// As [`Exchange::publish`].
    pub fn try_publish(
        &self,
        topic: &Topic,
        payload: impl Into<Bytes>,
    ) -> Result<DeliveryReport, SendError> {
        self.topics.try_broadcast(topic, &payload.into(), None)
    }

    /// To the subscribers on this node alone.
    ///
    /// # Errors
    /// As [`Exchange::publish`].
    pub fn publish_here(
        &self,
        topic: &Topic,
        payload: impl Into<Bytes>,
    ) -> Result<DeliveryReport, SendError> {
        self.topics.broadcast_here(topic, &payload.into(), None)
    }

    /// To the subscribers on this node alone, but not to this subscription.
    ///
    /// # Errors
    /// As [`Exchange::publish`].
    pub fn publish_here_from(
        &self,
        from: &Subscription,
        topic: &Topic,
        payload: impl Into<Bytes>,
    ) -> Result<DeliveryReport, SendError> {
        self.topics.broadcast_here(topic, &payload.into(), Some(from.number()))
    }

    /// To the subscribers on one node. Waits for room.
    ///
    /// # Errors
    /// [`SendError`]; nothing was sent.
    pub async fn publish_to(
        &self,
        node: &NodeName,
        topic: &Topic,
        payload: impl Into<Bytes>,
    ) -> Result<(), SendError> {
        self.topics.direct(node, topic, &payload.into()).await
    }

    /// Likewise, without waiting.
    ///
    /// # Errors
    /// [`SendError`], [`SendError::Overloaded`] among them; nothing was sent.
    pub fn try_publish_to(
        &self,
        node: &NodeName,
        topic: &Topic,
        payload: impl Into<Bytes>,
    ) -> Result<(), SendError> {
        self.topics.try_direct(node, topic, &payload.into())
    }
}

/// Requests.
impl Exchange {
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
        self.calls.serve(name, Box::new(move |request| Box::pin(handler(request))))
    }

    /// Makes a request and waits for its reply, at most so long. Without a node it goes to one that
    /// offers the name, in turn.
    ///
    /// # Errors
    /// [`CallError`], each of which says whether anything may have been done.
    pub async fn call(
        &self,
        to: &Address,
        payload: impl Into<Bytes>,
        within: Duration,
    ) -> Result<Bytes, CallError> {
        self.calls.call(to, payload.into(), within).await
    }

    /// The nodes that serve a name, the nearest by round-trip time first, this node before all.
    #[must_use]
    pub fn lookup(&self, name: &Name) -> Vec<NodeName> {
        self.calls.lookup(name)
    }

    /// Watches a name on a node.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn watch(&self, name: &Name, node: &NodeName) -> Result<Watch, SendError> {
        self.calls.watch(name, node)
    }
}

/// Actors of other nodes.
impl Exchange {
    /// Lets every node find this actor in a group, until it stops.
    ///
    /// # Errors
    /// [`GroupError`]; nothing changed.
    pub fn join_group<M: RactorMessage>(
        &self,
        group: &Name,
        actor: &ActorRef<M>,
    ) -> Result<(), GroupError> {
        if !self.capabilities().may_join(group.as_str()) {
            return Err(GroupError::NotAllowed(group.clone()));
        }
        Ok(groups::join(group, actor)?)
    }

    /// The actors of a group on this and all linked nodes. Those that joined with another type of messages refuse all
    /// ([`SendError::OtherType`]): a type is known by its path. Of messages that cannot travel there are none.
    #[must_use]
    pub fn group<M: RactorMessage>(&self, group: &Name) -> Vec<RemoteActor<M>> {
        self.groups.members(&self.topics, group)
    }

    /// ractor's session to a peer is ready.
    pub(super) fn session(&self, number: u64, outlet: Arc<Outlet>) {
        self.groups.session(number, outlet);
    }
}

#[cfg(test)]
mod tests;
