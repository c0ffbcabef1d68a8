//! Topics: who subscribed, who is linked and wants what, and the way of a broadcast from the one to the other.
//!
//! Invariants:
//! 1. A broadcast goes to each peer that wants it once, encoded once, and to each local subscriber once.
//! 2. Peers know this node's interest as it was at some moment since their link came up, and soon as it is.
//! 3. Locks are held for a look-up or a copy, in the order interests, outlet, queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::actors::exchange::account::Accounts;
use crate::actors::exchange::outlet::{Outlet, SendError, Ticket};
use crate::actors::exchange::queue::{Batch, Content, Queue};
use crate::actors::timer;
use crate::io::metrics::{Count, Metrics};
use crate::proto::capability::Capabilities;
use crate::proto::interest::{Interest, Interests, Route, TooMany};
use crate::proto::node::NodeName;
use crate::proto::outbox::MAX_MESSAGE;
use crate::proto::talk::DownReason;
use crate::proto::topic::{Name, Pattern, Topic};

/// How far a broadcast got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeliveryReport {
    /// Subscribers in this node that it was queued for.
    pub local: usize,
    /// Peers it was sent to.
    pub peers: usize,
    /// Peers that want it and did not get it: too much waits for them, or their link is gone.
    pub missed: usize,
}

type Table = Interests<Arc<Queue>, Arc<Outlet>>;
type Routed = Arc<Route<Arc<Queue>, Arc<Outlet>>>;

/// Those of one node.
pub(crate) struct Topics {
    me: NodeName,
    may: Capabilities,
    metrics: Metrics,
    interests: RwLock<Table>,
    numbers: AtomicU64,
    accounts: Accounts,
}

impl Topics {
    pub(super) fn new((me, may): (NodeName, Capabilities), metrics: &Metrics) -> Self {
        let (interests, numbers) = (RwLock::default(), AtomicU64::new(0));
        let (metrics, accounts) = (metrics.clone(), Accounts::default());
        Self { me, may, metrics, interests, numbers, accounts }
    }

    pub(super) fn capabilities(&self) -> &Capabilities {
        &self.may
    }

    pub(super) fn me(&self) -> &NodeName {
        &self.me
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(super) fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.interests.read()
    }

    /// What is kept of each peer, in bytes.
    pub(super) fn kept(&self) -> Vec<(NodeName, usize)> {
        self.accounts.kept()
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, Table> {
        self.interests.write()
    }

    /// From now on this queue gets what is published; its number.
    pub(super) fn subscribe(&self, pattern: &Pattern, queue: Arc<Queue>) -> Result<u64, TooMany> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let mut table = self.table_mut();
        if table.subscribe(pattern, number, queue)? {
            table.peers().for_each(|peer| peer.news(Interest::from(pattern), true));
        }
        Ok(number)
    }

    pub(super) fn unsubscribe(&self, pattern: &Pattern, number: u64) {
        let mut table = self.table_mut();
        if table.unsubscribe(pattern, number) {
            table.peers().for_each(|peer| peer.news(Interest::from(pattern), false));
        }
    }

    pub(super) fn offer(&self, name: &Name) -> Result<(), TooMany> {
        let mut table = self.table_mut();
        table.offer(name)?;
        table.peers().for_each(|peer| peer.news(Interest::Name(name.clone()), true));
        Ok(())
    }

    pub(super) fn withdraw(&self, name: &Name) {
        let mut table = self.table_mut();
        table.withdraw(name);
        table.peers().for_each(|peer| peer.news(Interest::Name(name.clone()), false));
    }

    /// A link to a peer that may do this is up: what is sent to it goes through this outlet.
    pub(crate) fn up(&self, peer: NodeName, may: Capabilities) -> Arc<Outlet> {
        let account = self.accounts.of(&peer);
        let outlet = Arc::new(Outlet::new((peer, may), account));
        let mut table = self.table_mut();
        let old = table.up(outlet.peer().clone(), outlet.clone());
        table.own().for_each(|interest| outlet.news(interest, true));
        drop(table);
        if let Some(old) = old {
            self.close(&old, DownReason::LinkLost);
        }
        outlet
    }

    /// A link is gone; a newer one to the same peer stays.
    pub(crate) fn down(&self, outlet: &Arc<Outlet>, why: DownReason) {
        let mut table = self.table_mut();
        if table.peer(outlet.peer()).is_some_and(|current| Arc::ptr_eq(current, outlet)) {
            table.down(outlet.peer());
        }
        drop(table);
        self.close(outlet, why);
    }

    fn close(&self, outlet: &Outlet, why: DownReason) {
        let lost = outlet.close(why);
        if lost > 0 {
            self.metrics.add(Count::Messages, "lost_with_link", lost);
        }
    }

    /// What a peer wants or offers.
    pub(crate) fn wants(
        &self,
        peer: &Arc<Outlet>,
        interest: &Interest,
        there: bool,
    ) -> Result<(), TooMany> {
        let mut table = self.table_mut();
        match table.peer(peer.peer()) {
            Some(current) if Arc::ptr_eq(current, peer) => {
                let taken = table.wants(peer.peer(), interest, there);
                peer.wants(table.wanted(peer.peer()));
                taken
            }
            Some(_) | None => Ok(()), // a link that is being replaced
        }
    }

    pub(super) fn route(&self, topic: &Topic) -> Routed {
        let ready = self.table().ready(topic);
        ready.unwrap_or_else(|| self.table_mut().route(topic))
    }

    pub(in super::super) fn peer(&self, peer: &NodeName) -> Result<Arc<Outlet>, SendError> {
        self.table().peer(peer).cloned().ok_or(SendError::NotConnected)
    }

    /// What a peer published: queues it for the subscribers here; how many of them there are.
    pub(crate) fn arrived(
        &self,
        topic: &Topic,
        from: &NodeName,
        content: Content,
        ticket: Option<&Arc<Ticket>>,
        now: Instant,
    ) -> usize {
        let route = self.route(topic);
        let batch = Batch { topic: topic.clone(), from: from.clone(), content };
        self.deliver(&route.local, batch, ticket, now)
    }

    /// Queues a batch for these subscribers; how many of them there are.
    fn deliver(
        &self,
        to: &[(u64, Arc<Queue>)],
        batch: Batch,
        ticket: Option<&Arc<Ticket>>,
        now: Instant,
    ) -> usize {
        let batch = Arc::new(batch);
        let dropped: u64 = to.iter().map(|(_, queue)| queue.push(&batch, ticket, now)).sum();
        if dropped > 0 {
            self.metrics.add(Count::Messages, "dropped_slow", dropped);
        }
        to.len()
    }

    /// Gives up the credit that lagging subscribers hold.
    pub(crate) fn release(&self, now: Instant) {
        self.table().subscribers().for_each(|queue| queue.release(now));
    }

    /// To the subscribers in this node, one of them excepted.
    pub(super) fn broadcast_here(
        &self,
        topic: &Topic,
        payload: &Bytes,
        but: Option<u64>,
    ) -> Result<DeliveryReport, SendError> {
        check(payload)?;
        Ok(self.here(&self.route(topic).local, topic, payload, but))
    }

    fn here(
        &self,
        local: &[(u64, Arc<Queue>)],
        topic: &Topic,
        payload: &Bytes,
        but: Option<u64>,
    ) -> DeliveryReport {
        let batch = || Batch {
            topic: topic.clone(),
            from: self.me.clone(),
            content: Content::One(payload.clone()),
        };
        let local = match but {
            _ if local.is_empty() => 0,
            None => self.deliver(local, batch(), None, timer::now()),
            Some(but) => {
                let mut others = local.to_vec();
                others.retain(|(number, _)| *number != but);
                self.deliver(&others, batch(), None, timer::now())
            }
        };
        DeliveryReport { local, ..DeliveryReport::default() }
    }

    /// To all subscribers everywhere, one of those in this node excepted; waits for nobody.
    pub(super) fn try_broadcast(
        &self,
        topic: &Topic,
        payload: &Bytes,
        but: Option<u64>,
    ) -> Result<DeliveryReport, SendError> {
        let (route, mut report) = self.begin(topic, payload, but)?;
        for peer in &route.peers {
            report.add(peer.broadcast(topic, payload).is_ok());
        }
        Ok(self.counted(report))
    }

    /// Likewise; waits for room where there is none.
    pub(super) async fn broadcast(
        &self,
        topic: &Topic,
        payload: &Bytes,
        but: Option<u64>,
    ) -> Result<DeliveryReport, SendError> {
        let (route, mut report) = self.begin(topic, payload, but)?;
        for peer in &route.peers {
            report.add(peer.when_room(|| peer.broadcast(topic, payload)).await.is_ok());
        }
        Ok(self.counted(report))
    }

    /// A broadcast that has reached this node, and the way it goes on.
    fn begin(
        &self,
        topic: &Topic,
        payload: &Bytes,
        but: Option<u64>,
    ) -> Result<(Routed, DeliveryReport), SendError> {
        self.allow(topic)?;
        check(payload)?;
        let route = self.route(topic);
        let report = self.here(&route.local, topic, payload, but);
        Ok((route, report))
    }

    /// Whether this node may publish on a topic: peers would not take it.
    fn allow(&self, topic: &Topic) -> Result<(), SendError> {
        let allowed = self.may.may_publish(topic);
        if allowed { Ok(()) } else { Err(SendError::NotAllowed(topic.clone())) }
    }

    fn counted(&self, report: DeliveryReport) -> DeliveryReport {
        if report.missed > 0 {
            self.metrics.add(Count::Messages, "overloaded", report.missed as u64);
        }
        report
    }

    /// To the subscribers on one node.
    pub(super) fn try_direct(
        &self,
        node: &NodeName,
        topic: &Topic,
        payload: &Bytes,
    ) -> Result<(), SendError> {
        match self.way(node, topic, payload)? {
            None => Ok(()),
            Some(peer) => peer.broadcast(topic, payload),
        }
    }

    /// Likewise; waits for room.
    pub(super) async fn direct(
        &self,
        node: &NodeName,
        topic: &Topic,
        payload: &Bytes,
    ) -> Result<(), SendError> {
        match self.way(node, topic, payload)? {
            None => Ok(()),
            Some(peer) => peer.when_room(|| peer.broadcast(topic, payload)).await,
        }
    }

    /// The outlet of a message to one node; `None` when that is this node and it is there.
    fn way(
        &self,
        node: &NodeName,
        topic: &Topic,
        payload: &Bytes,
    ) -> Result<Option<Arc<Outlet>>, SendError> {
        if *node != self.me {
            self.allow(topic)?;
            check(payload)?;
            return self.peer(node).map(Some);
        }
        self.broadcast_here(topic, payload, None)?;
        Ok(None)
    }
}

impl DeliveryReport {
    fn add(&mut self, sent: bool) {
        *(if sent { &mut self.peers } else { &mut self.missed }) += 1;
    }
}

fn check(payload: &Bytes) -> Result<(), SendError> {
    // With room for the longest topic before it.
    let most = MAX_MESSAGE - 512;
    if payload.len() > most { Err(SendError::TooLong(payload.len())) } else { Ok(()) }
}
