//! Requests, their answers, and watches on names.
//!
//! A request carries the time that is left for it; its handler is dropped when that is over. Invariants:
//! 1. Each call ends exactly once: with a reply, with the peer's word why not, when its time is over, or
//!    with the link ([`CallError::OutcomeUnknown`]).
//! 2. A watch is told exactly once that its name is gone, behind everything that its node said before.
//! 3. Of one peer's requests at most [`UNDER_WAY`] bytes, and of one name's at most [`AT_ONCE`], are under
//!    way; what is more is refused as overloaded, undone.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot};

use crate::actors::pubsub::exchange::Exchange;
use crate::actors::pubsub::outlet::{Outlet, SendError};
use crate::actors::timer;
use crate::io::metrics::Count;
use crate::proto::frame::Lane;
use crate::proto::interest::TooMany;
use crate::proto::node::NodeName;
use crate::proto::talk::{self, Gone, Outcome};
use crate::proto::topic::{Address, Name};

/// Requests of one name that may be under way.
const AT_ONCE: usize = 1024;
/// Bytes of one peer's requests that may be under way, or one request that is longer.
const UNDER_WAY: usize = 4 * 1024 * 1024;
/// What a request costs beside its payload.
const OVERHEAD: usize = 256;
/// The longest time that a call may take.
const LONGEST: Duration = Duration::from_secs(86_400);
/// Names whose calls are counted, to go around.
const TURNS: usize = 65_536;
/// Watches of one peer.
const WATCHES: usize = 65_536;

/// Why a call brought no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// There is no link to the node. Nothing was sent.
    #[error("there is no link to the node")]
    NotConnected,
    /// Nobody serves this name there, or, without a node, anywhere. Nothing was done.
    #[error("nobody serves this name")]
    NoSuchName,
    /// Too much is under way, here or there. Nothing was done; try later.
    #[error("overloaded")]
    Overloaded,
    /// The time is over. It may have been done.
    #[error("the deadline passed")]
    DeadlinePassed,
    /// The link was lost while the request was under way. It may have been done.
    #[error("the link was lost: whether it was done is unknown")]
    OutcomeUnknown,
    /// The handler's own error.
    #[error("refused: {0}")]
    Refused(String),
    /// Request and name are longer than a message may be. Nothing was sent.
    #[error("{0} bytes where at most 16 MiB are allowed")]
    TooLong(usize),
}

impl From<SendError> for CallError {
    fn from(error: SendError) -> Self {
        match error {
            SendError::NotConnected => Self::NotConnected,
            SendError::Overloaded => Self::Overloaded,
            SendError::TooLong(length) => Self::TooLong(length),
        }
    }
}

/// Why a name cannot be served. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServeError {
    /// This node serves it already.
    #[error("this node serves the name {0} already")]
    Taken(Name),
    /// More than a node may have.
    #[error(transparent)]
    TooMany(#[from] TooMany),
}

/// A request, as its handler gets it.
#[derive(Clone, Debug)]
pub struct Request {
    /// The node that asks; certain, its certificate says so.
    pub from: NodeName,
    /// What it says.
    pub payload: Bytes,
    /// When nobody waits for the reply any more; the handler is dropped then.
    pub deadline: Instant,
}

/// A reply, or the handler's own error for the caller.
pub type Reply = Result<Bytes, String>;
type Handler = Box<dyn Fn(Request) -> Pin<Box<dyn Future<Output = Reply> + Send>> + Send + Sync>;

/// A name that this node serves.
pub(super) struct Service {
    handler: Handler,
    free: Semaphore,
    /// Who is to be told of its end, or how it ended.
    watchers: Mutex<Result<Vec<Watcher>, Gone>>,
}

enum Watcher {
    Peer(u64, Arc<Outlet>),
    Here(oneshot::Sender<Gone>),
}

impl Watcher {
    fn tell(self, why: Gone) {
        match self {
            Self::Peer(watch, outlet) => {
                lock(&outlet.pending.watched).remove(&watch);
                outlet.gone(watch, why);
            }
            Self::Here(told) => told.send(why).unwrap_or(()), // it may have gone
        }
    }

    fn is_gone(&self) -> bool {
        match self {
            Self::Peer(_, outlet) => outlet.is_closed(),
            Self::Here(told) => told.is_closed(),
        }
    }
}

/// A name is served until this is dropped.
pub struct Serving {
    exchange: Arc<Exchange>,
    name: Name,
    end: Gone,
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Serving").field(&self.name).finish()
    }
}

impl Serving {
    /// Ends it as a failure: watchers are told so.
    pub fn fail(mut self) {
        self.end = Gone::Failed;
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.exchange.withdraw(&self.name);
        let mut services = self.exchange.services.write().unwrap_or_else(PoisonError::into_inner);
        let service = services.remove(&self.name);
        drop(services);
        let Some(service) = service else { return };
        let watchers = std::mem::replace(&mut *lock(&service.watchers), Err(self.end));
        watchers.into_iter().flatten().for_each(|watcher| watcher.tell(self.end));
    }
}

/// Tells once that a name is gone.
#[derive(Debug)]
pub struct Watch {
    gone: oneshot::Receiver<Gone>,
    peer: Option<(u64, Arc<Outlet>)>,
}

impl Watch {
    /// Waits until the name is gone, and says why. By then everything that its node had said before has
    /// been queued for its subscribers, and every reply it had given has reached its caller; a request
    /// that was under way may still be answered.
    pub async fn gone(mut self) -> Gone {
        (&mut self.gone).await.unwrap_or(Gone::LinkLost)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let Some((watch, outlet)) = &self.peer else { return };
        if lock(&outlet.pending.watches).remove(watch).is_some() {
            let head = |out: &mut Vec<u8>| talk::unwatch(out, *watch);
            // A peer too busy to hear it will tell in vain.
            outlet.push(Lane::Calls, head, &Bytes::new()).unwrap_or(());
        }
    }
}

/// What this node waits for from a peer, and does for it.
#[derive(Default)]
pub(super) struct Pending {
    calls: Mutex<HashMap<u64, oneshot::Sender<(Outcome, Bytes)>>>,
    watches: Mutex<HashMap<u64, oneshot::Sender<Gone>>>,
    /// Which names the peer watches.
    watched: Mutex<HashMap<u64, Name>>,
    under_way: AtomicUsize,
    next: AtomicU64,
    /// Calls that wait, and requests under way.
    open: AtomicUsize,
}

impl Pending {
    /// Whether more than one conversation goes on, so that waiting a moment may fill a piece.
    pub(super) fn busy(&self) -> bool {
        self.open.load(Ordering::Relaxed) > 1
    }

    /// The link is gone: nobody will answer any more.
    pub(super) fn end(&self, why: Gone) {
        lock(&self.calls).clear();
        lock(&self.watched).clear();
        for (_, watch) in std::mem::take(&mut *lock(&self.watches)) {
            watch.send(why).unwrap_or(()); // the watcher may have gone
        }
    }

    /// A reply. One that nobody waits for came too late.
    pub(super) fn replied(&self, call: u64, outcome: Outcome, payload: Bytes) -> bool {
        let waiting = lock(&self.calls).remove(&call);
        waiting.is_some_and(|waiting| waiting.send((outcome, payload)).is_ok())
    }

    /// A watched name is gone.
    pub(super) fn gone(&self, watch: u64, why: Gone) {
        if let Some(watch) = lock(&self.watches).remove(&watch) {
            watch.send(why).unwrap_or(()); // the watcher may have gone
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forgets a call whose caller went away.
struct Forget<'a>(&'a Pending, u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
        lock(&self.0.calls).remove(&self.1);
    }
}

/// What of a peer's requests is under way.
struct UnderWay(Arc<Outlet>, usize);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.pending.open.fetch_sub(1, Ordering::Relaxed);
        self.0.pending.under_way.fetch_sub(self.1, Ordering::Relaxed);
    }
}

impl UnderWay {
    fn begin(outlet: &Arc<Outlet>, length: usize) -> Option<Self> {
        let cost = length + OVERHEAD;
        let before = outlet.pending.under_way.fetch_add(cost, Ordering::Relaxed);
        outlet.pending.open.fetch_add(1, Ordering::Relaxed);
        let begun = Self(outlet.clone(), cost);
        (before == 0 || before + cost <= UNDER_WAY).then_some(begun)
    }
}

impl Exchange {
    pub(super) fn serve(
        self: &Arc<Self>,
        name: Name,
        handler: Handler,
    ) -> Result<Serving, ServeError> {
        let mut services = self.services.write().unwrap_or_else(PoisonError::into_inner);
        if services.contains_key(&name) {
            return Err(ServeError::Taken(name));
        }
        self.offer(&name)?;
        let (free, watchers) = (Semaphore::new(AT_ONCE), Mutex::new(Ok(Vec::new())));
        services.insert(name.clone(), Arc::new(Service { handler, free, watchers }));
        Ok(Serving { exchange: self.clone(), name, end: Gone::Stopped })
    }

    fn service(&self, name: &Name) -> Option<Arc<Service>> {
        self.services.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// The nodes that serve a name: those with the shortest way first, this one before all.
    pub(super) fn lookup(&self, name: &Name) -> Vec<NodeName> {
        let mut peers = self.table().offered_by(name);
        peers.sort_by_key(|(_, outlet)| outlet.rtt());
        let here = self.service(name).map(|_| self.me().clone());
        here.into_iter().chain(peers.into_iter().map(|(node, _)| node)).collect()
    }

    /// Counts the calls of a name that any node may answer.
    fn turn(&self, name: &Name) -> usize {
        let mut turns = lock(&self.turns);
        if turns.len() >= TURNS && !turns.contains_key(name) {
            turns.clear();
        }
        let turn = turns.entry(name.clone()).or_default();
        *turn = turn.wrapping_add(1);
        *turn
    }

    pub(super) async fn call(
        &self,
        to: &Address,
        payload: Bytes,
        within: Duration,
    ) -> Result<Bytes, CallError> {
        let node = match &to.node {
            Some(node) => node.clone(),
            None => {
                let nodes = self.lookup(&to.name);
                let turn = self.turn(&to.name).checked_rem(nodes.len());
                let node = turn.and_then(|turn| nodes.get(turn));
                node.ok_or(CallError::NoSuchName)?.clone()
            }
        };
        let deadline = timer::now() + within.min(LONGEST);
        if node == *self.me() {
            let service = self.service(&to.name).ok_or(CallError::NoSuchName)?;
            let request = Request { from: node, payload, deadline };
            // In a task of its own, as if from another node: a handler that panics is not its caller.
            let handling = tokio::spawn(async move { service.handle(request).await });
            let failed = |_| Err(CallError::Refused("the handler failed".to_owned()));
            return handling.await.map_or_else(failed, concluded);
        }
        let outlet = self.peer(&node)?;
        let call = outlet.pending.next.fetch_add(1, Ordering::Relaxed);
        let (reply, replied) = oneshot::channel();
        lock(&outlet.pending.calls).insert(call, reply);
        outlet.pending.open.fetch_add(1, Ordering::Relaxed);
        let _forget = Forget(&outlet.pending, call);
        let push = || {
            let left = deadline.saturating_duration_since(timer::now());
            let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
            outlet.push(Lane::Calls, |out| talk::request(out, call, left, &to.name), &payload)
        };
        let until = tokio::time::Instant::from_std(deadline);
        // Without room until the end it was never sent.
        let sent = tokio::time::timeout_at(until, outlet.when_room(push)).await;
        sent.unwrap_or(Err(SendError::Overloaded))?;
        match tokio::time::timeout_at(until, replied).await {
            Ok(Ok(reply)) => concluded(reply),
            Ok(Err(_link_lost)) => Err(CallError::OutcomeUnknown),
            Err(_elapsed) => Err(CallError::DeadlinePassed),
        }
    }

    /// A peer's request. It is answered from a task of its own.
    pub(super) fn requested(
        &self,
        from: &Arc<Outlet>,
        call: u64,
        left: u64,
        name: &Name,
        payload: Bytes,
    ) {
        let service = self.service(name);
        let refuse = |outcome| {
            // A caller whose own lane is full of answers learns it from the clock.
            from.push(Lane::Calls, |out| talk::reply(out, call, outcome), &Bytes::new())
                .unwrap_or(());
        };
        let Some(service) = service else { return refuse(Outcome::NoSuchName) };
        let Some(under_way) = UnderWay::begin(from, payload.len()) else {
            self.metrics().count(Count::Door, "request_overloaded");
            return refuse(Outcome::Overloaded);
        };
        let deadline = timer::now() + Duration::from_millis(left).min(LONGEST);
        let request = Request { from: from.peer().clone(), payload, deadline };
        let from = from.clone();
        tokio::spawn(async move {
            let mut answer = Answer { to: from.clone(), call, given: false };
            let (outcome, payload) = service.handle(request).await;
            answer.given = true;
            let push = || from.push(Lane::Calls, |out| talk::reply(out, call, outcome), &payload);
            let until = tokio::time::Instant::from_std(deadline);
            // The caller gives up at the same time; a reply too long is one that it cannot get.
            let pushed = tokio::time::timeout_at(until, from.when_room(push)).await;
            answer.given = !matches!(pushed, Ok(Err(SendError::TooLong(_))));
            // An answer that waits for room counts: a peer that asks and does not read is bounded.
            drop(under_way);
        });
    }

    pub(super) fn watch(&self, name: &Name, node: &NodeName) -> Result<Watch, SendError> {
        let (told, gone) = oneshot::channel();
        if node == self.me() {
            match self.service(name) {
                Some(service) => service.watch(Watcher::Here(told)),
                None => Watcher::Here(told).tell(Gone::NoSuchName),
            }
            return Ok(Watch { gone, peer: None });
        }
        let outlet = self.peer(node)?;
        let watch = outlet.pending.next.fetch_add(1, Ordering::Relaxed);
        lock(&outlet.pending.watches).insert(watch, told);
        let asked = outlet.push(Lane::Calls, |out| talk::watch(out, watch, name), &Bytes::new());
        if let Err(error) = asked {
            lock(&outlet.pending.watches).remove(&watch);
            return Err(error);
        }
        Ok(Watch { gone, peer: Some((watch, outlet)) })
    }

    /// A peer wants to know when a name is gone.
    pub(super) fn watched(&self, by: &Arc<Outlet>, watch: u64, name: Name) -> Result<(), TooMany> {
        let Some(service) = self.service(&name) else {
            by.gone(watch, Gone::NoSuchName);
            return Ok(());
        };
        let mut watched = lock(&by.pending.watched);
        if watched.len() >= WATCHES || watched.contains_key(&watch) {
            return Err(TooMany);
        }
        watched.insert(watch, name);
        drop(watched);
        service.watch(Watcher::Peer(watch, by.clone()));
        Ok(())
    }

    /// It does not any more.
    pub(super) fn unwatched(&self, by: &Arc<Outlet>, watch: u64) {
        let name = lock(&by.pending.watched).remove(&watch);
        let Some(service) = name.and_then(|name| self.service(&name)) else { return };
        let same = |watcher: &Watcher| match watcher {
            Watcher::Peer(number, outlet) => *number == watch && Arc::ptr_eq(outlet, by),
            Watcher::Here(_) => false,
        };
        if let Ok(watchers) = &mut *lock(&service.watchers) {
            watchers.retain(|watcher| !same(watcher));
        }
    }
}

/// A handler that panics refuses.
struct Answer {
    to: Arc<Outlet>,
    call: u64,
    given: bool,
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.given {
            let head = |out: &mut Vec<u8>| talk::reply(out, self.call, Outcome::Refused);
            let why = Bytes::from_static(b"the handler failed");
            self.to.push(Lane::Calls, head, &why).unwrap_or(()); // or the link did
        }
    }
}

impl Service {
    fn watch(&self, watcher: Watcher) {
        let mut watchers = lock(&self.watchers);
        match &mut *watchers {
            Ok(watchers) => {
                // Only before they would grow: many who watch one name cost no more each.
                if watchers.len() == watchers.capacity() {
                    watchers.retain(|watcher| !watcher.is_gone());
                }
                watchers.push(watcher);
            }
            Err(why) => {
                let why = *why;
                drop(watchers);
                watcher.tell(why);
            }
        }
    }

    async fn handle(&self, request: Request) -> (Outcome, Bytes) {
        let Ok(_running) = self.free.try_acquire() else {
            return (Outcome::Overloaded, Bytes::new());
        };
        let until = tokio::time::Instant::from_std(request.deadline);
        match tokio::time::timeout_at(until, (self.handler)(request)).await {
            Ok(Ok(reply)) => (Outcome::Replied, reply),
            Ok(Err(why)) => (Outcome::Refused, Bytes::from(why)),
            Err(_elapsed) => (Outcome::DeadlinePassed, Bytes::new()),
        }
    }
}

fn concluded((outcome, payload): (Outcome, Bytes)) -> Result<Bytes, CallError> {
    match outcome {
        Outcome::Replied => Ok(payload),
        Outcome::Refused => Err(CallError::Refused(String::from_utf8_lossy(&payload).into_owned())),
        Outcome::NoSuchName => Err(CallError::NoSuchName),
        Outcome::Overloaded => Err(CallError::Overloaded),
        Outcome::DeadlinePassed => Err(CallError::DeadlinePassed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Pending {
        /// Calls and watches that wait for the peer, and names that it watches.
        pub(in crate::actors::pubsub) fn open(&self) -> (usize, usize, usize) {
            (lock(&self.calls).len(), lock(&self.watches).len(), lock(&self.watched).len())
        }
    }

    impl Exchange {
        /// Those who are to be told of a name's end.
        pub(in crate::actors::pubsub) fn watchers(&self, name: &Name) -> usize {
            let service = self.service(name).expect("served");
            lock(&service.watchers).as_ref().expect("lives").len()
        }
    }
}
