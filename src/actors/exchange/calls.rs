//! Requests, their answers, and watches on names.
//!
//! A request carries the time that is left for it; its handler is dropped when that is over. Invariants:
//! 1. Each call ends exactly once: with a reply, with the peer's word why not, when its time is over, or
//!    with the link ([`CallError::OutcomeUnknown`]).
//! 2. A watch is told exactly once that its name is gone, behind everything that its node said before.
//! 3. Of one name's requests at most [`AT_ONCE`] are under way, of which each asker has its share (`proto::askers`), and
//!    of one peer's as many bytes as `Pending` allows; what is more is refused as overloaded, undone. Before a peer's request is handled there is room for its
//!    answer, by what the name's answers were so far.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::actors::exchange::account::Kept;
use crate::actors::exchange::outlet::{Outlet, SendError};
use crate::actors::exchange::topics::Topics;
use crate::actors::timer;
use crate::io::metrics::Count;
use crate::proto::askers::Places;
use crate::proto::frame::Lane;
use crate::proto::interest::TooMany;
use crate::proto::node::NodeName;
use crate::proto::processor::{self, BYTE, QUESTION, REFUSED, WATCH, WATCHER};
use crate::proto::talk::{self, DownReason, Outcome};
use crate::proto::topic::{Address, Name, Topic};

/// Requests of one name that may be under way.
const AT_ONCE: usize = 1024;
/// The longest time that a call may take.
const LONGEST: Duration = Duration::from_secs(86_400);
/// Names whose calls are counted, to go around.
const TURNS: usize = 65_536;

/// Why a call brought no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
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
    /// The actor takes messages of the type that is named, not of this one. Nothing was sent.
    #[error("the actor takes messages of another type: {0}")]
    OtherType(String),
    /// This node is an edge, whose certificate does not name the topic. Nothing was sent.
    #[error("this node's certificate does not let it publish on {0}")]
    NotAllowed(Topic),
}

impl From<SendError> for CallError {
    fn from(error: SendError) -> Self {
        match error {
            SendError::NotConnected => Self::NotConnected,
            SendError::Overloaded => Self::Overloaded,
            SendError::TooLong(length) => Self::TooLong(length),
            SendError::OtherType(wanted) => Self::OtherType(wanted),
            SendError::NotAllowed(topic) => Self::NotAllowed(topic),
        }
    }
}

/// Why a name cannot be served. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// This node serves it already.
    #[error("this node serves the name {0} already")]
    Taken(Name),
    /// This node is an edge, whose certificate does not name the service; or, for requests for certificates, it may not
    /// issue.
    #[error("this node's certificate does not let it serve {0}")]
    NotAllowed(Name),
    /// More than a node may have.
    #[error(transparent)]
    TooMany(#[from] TooMany),
}

/// A request, as its handler gets it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Request {
    /// The node that asks; certain, its certificate says so.
    pub from: NodeName,
    /// What it says.
    pub payload: Bytes,
    /// When nobody waits for the reply any more; the handler is dropped then.
    pub deadline: Instant,
}

/// Why a handler refuses. Any error or text becomes one, by `?` or `into()`: a caller gets its text, a client of a
/// channel `{"reason": text}`.
///
/// It is not `Display` itself, which would make it one of the errors that it is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandlerError(Value);

impl<E: fmt::Display> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self(Value::String(error.to_string()))
    }
}

impl HandlerError {
    /// What a client of a channel gets in place of `{"reason": …}`; a caller gets it as text.
    #[must_use]
    pub fn response(response: Value) -> Self {
        Self(response)
    }

    pub(super) fn into_text(self) -> String {
        self.0.as_str().map_or_else(|| self.0.to_string(), str::to_owned)
    }

    #[cfg(feature = "gateway")]
    pub(crate) fn into_response(self) -> Value {
        if self.0.is_string() { serde_json::json!({ "reason": self.0 }) } else { self.0 }
    }
}

/// A reply, or the handler's own error for the caller.
pub type Reply = Result<Bytes, HandlerError>;
pub(super) type Handler =
    Box<dyn Fn(Request) -> Pin<Box<dyn Future<Output = Reply> + Send>> + Send + Sync>;

/// A name that this node serves.
struct Service {
    handler: Handler,
    places: Mutex<Places>,
    /// Its longest answer so far.
    longest: AtomicUsize,
    /// Who is to be told of its end, or how it ended.
    watchers: Mutex<Result<Vec<Watcher>, DownReason>>,
}

enum Watcher {
    Peer(u64, Arc<Outlet>),
    Here(oneshot::Sender<DownReason>),
}

impl Watcher {
    fn notify(self, why: DownReason) {
        match self {
            Self::Peer(watch, outlet) => outlet.gone(watch, why),
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
#[must_use = "a name is served until this is dropped"]
pub struct Serving {
    calls: Weak<Calls>,
    name: Name,
    end: DownReason,
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Serving").field(&self.name).finish()
    }
}

impl Serving {
    /// Ends it as a failure: watchers are told so.
    pub fn fail(mut self) {
        self.end = DownReason::Failed;
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let Some(service) = self.calls.upgrade().and_then(|calls| calls.end(&self.name)) else {
            return;
        };
        let watchers = std::mem::replace(&mut *service.watchers.lock(), Err(self.end));
        watchers.into_iter().flatten().for_each(|watcher| watcher.notify(self.end));
    }
}

/// Resolves once, when a name is gone.
#[derive(Debug)]
#[must_use = "a watch has no effect unless it is awaited"]
pub struct Watch {
    gone: oneshot::Receiver<DownReason>,
    peer: Option<(u64, Arc<Outlet>)>,
}

impl Watch {
    /// Waits until the name is gone, and says why. By then everything that its node had said before has
    /// been queued for its subscribers, and every reply it had given has reached its caller; a request
    /// that was under way may still be answered.
    pub async fn gone(mut self) -> DownReason {
        (&mut self.gone).await.unwrap_or(DownReason::LinkLost)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let Some((watch, outlet)) = &self.peer else { return };
        outlet.unwatch(*watch);
    }
}

/// What of a peer's requests is under way.
struct UnderWay(Arc<Outlet>, usize, Option<Kept>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.pending().finish(self.1);
    }
}

impl UnderWay {
    fn begin(outlet: &Arc<Outlet>, length: usize) -> Option<Self> {
        let (cost, allowed) = outlet.pending().begin(length);
        let begun = Self(outlet.clone(), cost, outlet.account().room(cost));
        (allowed && begun.2.is_some()).then_some(begun)
    }
}

/// A place among a name's requests.
struct Place<'a>(&'a Service, NodeName);

impl<'a> Place<'a> {
    fn take(service: &'a Service, asker: &NodeName) -> Option<Self> {
        let taken = service.places.lock().take(asker);
        taken.then(|| Self(service, asker.clone()))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.places.lock().give(&self.1);
    }
}

/// What this node serves, and its calls.
pub(crate) struct Calls {
    topics: Arc<Topics>,
    services: RwLock<HashMap<Name, Arc<Service>>>,
    /// How often each name was called without a node.
    turns: Mutex<HashMap<Name, usize>>,
}

impl Calls {
    pub(super) fn new(topics: Arc<Topics>) -> Self {
        Self { topics, services: RwLock::default(), turns: Mutex::default() }
    }

    pub(super) fn serve(
        self: &Arc<Self>,
        name: Name,
        handler: Handler,
    ) -> Result<Serving, ServeError> {
        if !self.topics.capabilities().may_serve(&name) {
            return Err(ServeError::NotAllowed(name));
        }
        let mut services = self.services.write();
        if services.contains_key(&name) {
            return Err(ServeError::Taken(name));
        }
        self.topics.offer(&name)?;
        let (places, watchers) = (Mutex::new(Places::new(AT_ONCE)), Mutex::new(Ok(Vec::new())));
        let service = Service { handler, places, longest: AtomicUsize::new(0), watchers };
        services.insert(name.clone(), Arc::new(service));
        Ok(Serving { calls: Arc::downgrade(self), name, end: DownReason::Stopped })
    }

    /// A name is not served any more.
    fn end(&self, name: &Name) -> Option<Arc<Service>> {
        self.topics.withdraw(name);
        self.services.write().remove(name)
    }

    fn service(&self, name: &Name) -> Option<Arc<Service>> {
        self.services.read().get(name).cloned()
    }

    /// The nodes that serve a name: those with the shortest way first, this one before all.
    pub(super) fn lookup(&self, name: &Name) -> Vec<NodeName> {
        let mut peers = self.topics.table().offered_by(name);
        peers.sort_by_key(|(_, outlet)| outlet.rtt());
        let here = self.service(name).map(|_| self.topics.me().clone());
        here.into_iter().chain(peers.into_iter().map(|(node, _)| node)).collect()
    }

    /// Counts the calls of a name that any node may answer.
    fn turn(&self, name: &Name) -> usize {
        let mut turns = self.turns.lock();
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
        if node == *self.topics.me() {
            let service = self.service(&to.name).ok_or(CallError::NoSuchName)?;
            let request = Request { from: node, payload, deadline };
            // In a task of its own, as if from another node: a handler that panics is not its caller.
            let handling = tokio::spawn(async move { service.handle(request).await });
            let failed = |_| Err(CallError::Refused("the handler failed".to_owned()));
            return handling.await.map_or_else(failed, concluded);
        }
        let outlet = self.topics.peer(&node)?;
        let mut call = outlet.pending().call();
        let number = call.number;
        let push = || {
            let left = deadline.saturating_duration_since(timer::now());
            let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
            outlet.push(Lane::Calls, |out| talk::request(out, number, left, &to.name), &payload)
        };
        let until = tokio::time::Instant::from_std(deadline);
        // Without room until the end it was never sent.
        let sent = tokio::time::timeout_at(until, outlet.when_room(push)).await;
        sent.unwrap_or(Err(SendError::Overloaded))?;
        match tokio::time::timeout_at(until, &mut call.reply).await {
            Ok(Ok(reply)) => concluded(reply),
            Ok(Err(_link_lost)) => Err(CallError::OutcomeUnknown),
            Err(_elapsed) => Err(CallError::DeadlinePassed),
        }
    }

    /// A peer's request. It is answered from a task of its own.
    pub(crate) fn requested(
        &self,
        from: &Arc<Outlet>,
        call: u64,
        left: u64,
        name: &Name,
        payload: Bytes,
    ) {
        let service = self.service(name);
        let length = payload.len() as u64;
        let refuse = |outcome| {
            from.account().spend(REFUSED + BYTE * length);
            // A caller whose own lane is full of answers learns it from the clock.
            from.push(Lane::Calls, |out| talk::reply(out, call, outcome), &Bytes::new())
                .unwrap_or(());
        };
        let Some(service) = service else { return refuse(Outcome::NoSuchName) };
        let Some(under_way) = UnderWay::begin(from, payload.len()) else {
            self.topics.metrics().count(Count::Messages, "request_overloaded");
            return refuse(Outcome::Overloaded);
        };
        let deadline = timer::now() + Duration::from_millis(left).min(LONGEST);
        let request = Request { from: from.peer().clone(), payload, deadline };
        let (from, question) = (from.clone(), processor::is_question(name));
        if question {
            from.account().spend(QUESTION + BYTE * length);
        }
        tokio::spawn(async move {
            let mut answer = Answer { to: from.clone(), call, given: false };
            let until = tokio::time::Instant::from_std(deadline);
            let room =
                from.pending().answer(service.longest.load(Ordering::Relaxed), from.account());
            let room = tokio::time::timeout_at(until, room).await.ok().flatten();
            let (outcome, payload) = match &room {
                Some(_) => service.handle(request).await,
                None => (Outcome::Overloaded, Bytes::new()),
            };
            answer.given = true;
            if outcome == Outcome::Overloaded {
                from.account().spend(REFUSED + BYTE * length);
            } else if question {
                from.account().spend(BYTE * payload.len() as u64);
            }
            let push = || from.push(Lane::Calls, |out| talk::reply(out, call, outcome), &payload);
            // The caller gives up at the same time; a reply too long is one that it cannot get.
            let pushed = tokio::time::timeout_at(until, from.when_room(push)).await;
            answer.given = !matches!(pushed, Ok(Err(SendError::TooLong(_))));
            // An answer that waits for room counts: a peer that asks and does not read is bounded.
            drop((room, under_way));
        });
    }

    /// A peer's request for which there is no room: it is refused before it has come.
    pub(crate) fn refused(&self, from: &Outlet, call: u64) {
        self.topics.metrics().count(Count::Messages, "request_overloaded");
        let head = |out: &mut Vec<u8>| talk::reply(out, call, Outcome::Overloaded);
        from.push(Lane::Calls, head, &Bytes::new()).unwrap_or(()); // or it learns it from the clock
    }

    /// Whether a peer's reply is waited for.
    pub(crate) fn awaits(&self, from: &Outlet, call: u64) -> bool {
        from.pending().awaits(call)
    }

    /// A peer's reply.
    pub(crate) fn replied(&self, from: &Outlet, call: u64, outcome: Outcome, payload: Bytes) {
        let length = payload.len() as u64;
        if !from.pending().replied(call, outcome, payload) {
            from.account().spend(REFUSED + BYTE * length);
            self.topics.metrics().count(Count::Messages, "late_reply");
        }
    }

    /// A name that this node watches is gone.
    pub(crate) fn gone(&self, from: &Outlet, watch: u64, why: DownReason) {
        from.pending().gone(watch, why);
    }

    pub(super) fn watch(&self, name: &Name, node: &NodeName) -> Result<Watch, SendError> {
        if node == self.topics.me() {
            let (told, gone) = oneshot::channel();
            match self.service(name) {
                Some(service) => service.watch(Watcher::Here(told)),
                None => Watcher::Here(told).notify(DownReason::NoSuchName),
            }
            return Ok(Watch { gone, peer: None });
        }
        let outlet = self.topics.peer(node)?;
        let watching = outlet.pending().watch(name);
        let (watch, gone) = watching.map_err(|_too_many| SendError::Overloaded)?;
        let asked = outlet.push(Lane::Calls, |out| talk::watch(out, watch, name), &Bytes::new());
        if let Err(error) = asked {
            outlet.pending().forget(watch);
            return Err(error);
        }
        Ok(Watch { gone, peer: Some((watch, outlet)) })
    }

    /// A peer wants to know when a name is gone.
    pub(crate) fn watched(&self, by: &Arc<Outlet>, watch: u64, name: Name) -> Result<(), TooMany> {
        by.account().spend(WATCH);
        let service = self.service(&name);
        by.pending().watched(watch, name)?;
        let watcher = Watcher::Peer(watch, by.clone());
        match service {
            Some(service) => service.watch(watcher),
            None => watcher.notify(DownReason::NoSuchName),
        }
        Ok(())
    }

    /// It does not any more.
    pub(crate) fn unwatched(&self, by: &Arc<Outlet>, watch: u64) {
        by.account().spend(WATCH);
        let name = by.unwatched(watch);
        let Some(service) = name.and_then(|name| self.service(&name)) else { return };
        let same = |watcher: &Watcher| match watcher {
            Watcher::Peer(number, outlet) => *number == watch && Arc::ptr_eq(outlet, by),
            Watcher::Here(_) => false,
        };
        if let Ok(watchers) = &mut *service.watchers.lock() {
            by.account().spend(WATCHER * watchers.len() as u64);
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
        let mut watchers = self.watchers.lock();
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
                watcher.notify(why);
            }
        }
    }

    async fn handle(&self, request: Request) -> (Outcome, Bytes) {
        let Some(_place) = Place::take(self, &request.from) else {
            return (Outcome::Overloaded, Bytes::new());
        };
        let until = tokio::time::Instant::from_std(request.deadline);
        match tokio::time::timeout_at(until, (self.handler)(request)).await {
            Ok(Ok(reply)) => {
                self.longest.fetch_max(reply.len(), Ordering::Relaxed);
                (Outcome::Replied, reply)
            }
            Ok(Err(why)) => (Outcome::Refused, Bytes::from(why.into_text())),
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
impl Calls {
    /// Those who are to be told of a name's end.
    pub(super) fn watchers(&self, name: &Name) -> usize {
        let service = self.service(name).expect("served");
        service.watchers.lock().as_ref().expect("lives").len()
    }
}
