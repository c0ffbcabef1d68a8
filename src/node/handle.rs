//! What a service holds of a running node: publish, subscribe, call, serve; who is there, and what happens.
//!
//! A [`Node`](crate::node::Node) derefs to it, and each mock node of the [test kit](crate::node::testkit) is
//! one: a service that talks through a `NodeHandle` does not know which it has. Topics,
//! names and addresses are texts here, read at each use; payloads are bytes or, in the methods that end
//! in `typed`, values. Everything is carried by [`Exchange`], which takes what is read already.
//!
//! A value travels as postcard behind a fingerprint of its type, which derives `Schema` of the crate
//! `postcard-schema` (feature `derive`). Another type is refused and counted (a bare `21` is an `i32`, no `u32`), and
//! so is one of another name, or with other fields: publish it on another topic.
//!
//! ```
//! use std::time::Duration;
//! use postcard_schema::Schema;
//! use serde::{Deserialize, Serialize};
//! use xpando_node::{NodeName, Received, testkit};
//!
//! #[derive(Debug, PartialEq, Serialize, Deserialize, Schema)]
//! struct Moved { piece: String, to: (u8, u8) }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (_mesh, [a, b]) = testkit::linked(["a@127.0.0.1", "b@127.0.0.1"]).await?;
//!
//! // To anyone who subscribed, on any node.
//! let mut moves = b.subscribe("game:*")?;
//! testkit::settled().await; // a knows of it
//! let moved = Moved { piece: "rook".into(), to: (3, 4) };
//! let report = a.publish_typed("game:7", &moved).await?;
//! assert_eq!((report.local, report.peers), (0, 1));
//! match moves.recv().await {
//!     Some(Received::Message(message)) => assert_eq!(moves.decode::<Moved>(&message)?, moved),
//!     Some(Received::Missed(_)) | None => unreachable!("b keeps up"),
//! }
//!
//! // To one name, wherever it is served, and back.
//! let _serving = b.serve_typed("double", |_from: NodeName, n: u32| async move {
//!     Ok(n.checked_mul(2).ok_or("too large")?)
//! })?;
//! let doubled: u32 = a.call_typed("double@b@127.0.0.1", &21_u32, Duration::from_secs(1)).await?;
//! assert_eq!(doubled, 42);
//! # Ok(())
//! # }
//! ```

use std::fmt;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use postcard_schema::Schema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::actors::exchange::{
    CallError, DeliveryReport, Exchange, HandlerError, Reply, Request, SendError, ServeError,
    Serving, Subscription, Watch,
};
use crate::actors::news::{Bus, Events};
use crate::actors::peers::{self, View};
use crate::actors::registry::Registry;
use crate::io::metrics::{Count, Metrics};
use crate::proto::codec::{self, CodecError};
use crate::proto::event::Status;
use crate::proto::interest::TooMany;
use crate::proto::membership::Majority;
use crate::proto::node::NodeName;
use crate::proto::outbox::MAX_MESSAGE;
use crate::proto::registry::Known;
use crate::proto::topic::{Address, AddressError};

/// Why a node did not do what it was asked to.
///
/// Its `Debug` is its text, which is what a `main` that returns it prints.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// See there.
    #[error(transparent)]
    TooFew(#[from] TooFew),
    /// The text is no topic, pattern, name or address. Nothing was done; the caller must correct it.
    #[error("{given:?}: {why}")]
    Text {
        /// The text.
        given: String,
        /// What is wrong with it.
        why: AddressError,
    },
    /// The value's own `Serialize` refuses. Nothing was done.
    #[error("the value does not encode: {0}")]
    Encode(CodecError),
    /// The reply is no value of the type asked for. The request was done.
    #[error("the reply: {0}")]
    Decode(CodecError),
    /// No such node is known. Nothing was done.
    #[error("no node {0} is known")]
    Unknown(NodeName),
    /// A reputation that is no number to compare with others. Nothing was done; the caller must correct it.
    #[error("a reputation is a finite number")]
    Reputation,
    /// The node has as many subscriptions as it may. Nothing was done.
    #[error(transparent)]
    TooMany(#[from] TooMany),
    /// See there whether anything was sent.
    #[error(transparent)]
    Send(#[from] SendError),
    /// See there whether anything was done.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The name is not served. Nothing was done.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

impl fmt::Debug for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Fewer nodes were linked in time than were waited for. Nothing was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{linked} of {min} nodes are linked")]
#[non_exhaustive]
pub struct TooFew {
    /// Nodes that are linked.
    pub linked: usize,
    /// Nodes waited for.
    pub min: usize,
}

/// A handle to a running node. Clones are the same.
#[derive(Clone, Debug)]
pub struct NodeHandle {
    bus: Bus,
    members: watch::Receiver<View>,
    registry: Registry,
}

/// Who is there, and what happens.
impl NodeHandle {
    pub(super) fn new(bus: Bus, members: watch::Receiver<View>, registry: Registry) -> Self {
        Self { bus, members, registry }
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The name of its node.
    #[must_use]
    pub fn name(&self) -> &NodeName {
        self.exchange().name()
    }

    /// What carries it: for topics and names that are read already, local and direct broadcasts, and the
    /// choice of what happens to a slow subscriber.
    #[must_use]
    pub fn exchange(&self) -> &Exchange {
        self.bus.exchange()
    }

    pub(super) fn bus(&self) -> &Bus {
        &self.bus
    }

    /// All other nodes it knows, by name, now and as they change.
    #[must_use]
    pub fn members(&self) -> watch::Receiver<View> {
        self.members.clone()
    }

    /// Waits until so many other nodes are linked, at most so long.
    ///
    /// # Errors
    /// [`TooFew`].
    pub async fn linked(&self, min: usize, within: Duration) -> Result<(), TooFew> {
        let online =
            |view: &View| view.iter().filter(|row| row.peer.status == Status::Online).count();
        let mut members = self.members();
        let reached = tokio::time::timeout(within, members.wait_for(|view| online(view) >= min));
        if let Ok(Ok(_view)) = reached.await {
            return Ok(());
        }
        Err(TooFew { linked: online(&self.members.borrow()), min })
    }

    /// All nodes that its node knows, this one first, those of earlier runs and those that only others see among them:
    /// what each says of itself ([`Known::does`]), when it was seen, and what it is thought of.
    #[must_use]
    pub fn nodes(&self) -> Vec<Known> {
        let nodes = self.registry.nodes();
        let known = nodes.values().filter(|known| !known.is_forgotten());
        let (own, others): (Vec<_>, Vec<_>) = known.partition(|known| known.name == *self.name());
        own.into_iter().chain(others).map(|known| Known::clone(known)).collect()
    }

    /// What the services of its node think of a node: 0 until they say so.
    ///
    /// # Errors
    /// [`NodeError::Unknown`].
    pub fn reputation(&self, node: &NodeName) -> Result<f64, NodeError> {
        let nodes = self.registry.nodes();
        let known = nodes.get(node).filter(|known| !known.is_forgotten());
        known.map(|known| known.reputation).ok_or_else(|| NodeError::Unknown(node.clone()))
    }

    /// Says what they think of it. It is remembered, and told to nobody.
    ///
    /// # Errors
    /// [`NodeError::Unknown`], [`NodeError::Reputation`].
    pub fn set_reputation(&self, node: &NodeName, reputation: f64) -> Result<(), NodeError> {
        if !reputation.is_finite() {
            return Err(NodeError::Reputation);
        }
        let known = self.registry.rate(node, reputation);
        known.then_some(()).ok_or_else(|| NodeError::Unknown(node.clone()))
    }

    /// Whether its node sees most of the cluster it knows: for a service that would rather pause than
    /// serve in a minority. The node itself cuts nobody off.
    #[must_use]
    pub fn majority(&self) -> Majority {
        peers::majority(&self.members.borrow())
    }

    /// What happens from now on. A listener that missed some looks at [`NodeHandle::members`] again.
    #[must_use]
    pub fn events(&self) -> Events {
        self.bus.events()
    }
}

/// Publishing: at most once, and in order for each publishing node and topic.
impl NodeHandle {
    /// To every subscriber on every node; waits for room where a peer has none.
    ///
    /// # Errors
    /// [`NodeError::Text`], [`NodeError::Send`].
    pub async fn publish(
        &self,
        topic: &str,
        payload: impl Into<Bytes>,
    ) -> Result<DeliveryReport, NodeError> {
        Ok(self.exchange().publish(&read(topic)?, payload).await?)
    }

    /// Likewise, without waiting: a peer without room misses it, and the result says so.
    ///
    /// # Errors
    /// As [`NodeHandle::publish`].
    pub fn try_publish(
        &self,
        topic: &str,
        payload: impl Into<Bytes>,
    ) -> Result<DeliveryReport, NodeError> {
        Ok(self.exchange().try_publish(&read(topic)?, payload)?)
    }

    /// As [`NodeHandle::publish`]; subscribers read it with
    /// [`Subscription::decode`].
    ///
    /// # Errors
    /// Besides those, [`NodeError::Encode`].
    pub async fn publish_typed<T: Serialize + Schema + ?Sized>(
        &self,
        topic: &str,
        value: &T,
    ) -> Result<DeliveryReport, NodeError> {
        self.publish(topic, encoded(value)?).await
    }

    /// Subscribes to a topic, `room:1`, or to all below one, `room:*`, on this node and all others. Who
    /// lags loses the oldest and is told how many. Other nodes know of it within moments.
    ///
    /// # Errors
    /// [`NodeError::Text`], [`NodeError::TooMany`].
    pub fn subscribe(&self, pattern: &str) -> Result<Subscription, NodeError> {
        Ok(self.exchange().subscribe(read::<crate::proto::topic::Pattern>(pattern)?)?)
    }
}

/// Requests.
impl NodeHandle {
    /// Makes a request and waits for its reply, at most so long: to a name on one node,
    /// `work@b@127.0.0.1`, or, in turn, to those that offer it, `work`.
    ///
    /// # Errors
    /// [`NodeError::Text`], [`NodeError::Call`].
    pub async fn call(
        &self,
        to: &str,
        payload: impl Into<Bytes>,
        within: Duration,
    ) -> Result<Bytes, NodeError> {
        Ok(self.exchange().call(&read::<Address>(to)?, payload, within).await?)
    }

    /// As [`NodeHandle::call`], to a name on this node.
    ///
    /// # Errors
    /// As [`NodeHandle::call`].
    pub async fn call_on(
        &self,
        node: &NodeName,
        name: &str,
        payload: impl Into<Bytes>,
        within: Duration,
    ) -> Result<Bytes, NodeError> {
        let to = Address { name: read(name)?, node: Some(node.clone()) };
        Ok(self.exchange().call(&to, payload, within).await?)
    }

    /// As [`NodeHandle::call`], with values, of the types that the name is [served](NodeHandle::serve_typed) with.
    ///
    /// # Errors
    /// Besides those, [`NodeError::Encode`] and [`NodeError::Decode`].
    pub async fn call_typed<Q, A>(
        &self,
        to: &str,
        question: &Q,
        within: Duration,
    ) -> Result<A, NodeError>
    where
        Q: Serialize + Schema + ?Sized,
        A: DeserializeOwned + Schema,
    {
        let reply = self.call(to, encoded(question)?, within).await?;
        decoded(self.exchange().metrics(), &reply).map_err(NodeError::Decode)
    }

    /// As [`NodeHandle::call_typed`], to a name on this node.
    ///
    /// # Errors
    /// As [`NodeHandle::call_typed`].
    pub async fn call_typed_on<Q, A>(
        &self,
        node: &NodeName,
        name: &str,
        question: &Q,
        within: Duration,
    ) -> Result<A, NodeError>
    where
        Q: Serialize + Schema + ?Sized,
        A: DeserializeOwned + Schema,
    {
        let reply = self.call_on(node, name, encoded(question)?, within).await?;
        decoded(self.exchange().metrics(), &reply).map_err(NodeError::Decode)
    }

    /// Serves requests to a name until the result is dropped. Each request runs in a task of its own,
    /// and is dropped at its deadline.
    ///
    /// # Errors
    /// [`NodeError::Text`], [`NodeError::Serve`].
    pub fn serve<F>(
        &self,
        name: &str,
        handler: impl Fn(Request) -> F + Send + Sync + 'static,
    ) -> Result<Serving, NodeError>
    where
        F: Future<Output = Reply> + Send + 'static,
    {
        Ok(self.exchange().serve(read(name)?, handler)?)
    }

    /// Likewise, with values: the handler gets the asking node and its question. One that is no `Q` is
    /// counted and refused without it.
    ///
    /// # Errors
    /// As [`NodeHandle::serve`].
    pub fn serve_typed<Q, A, F>(
        &self,
        name: &str,
        handler: impl Fn(NodeName, Q) -> F + Send + Sync + 'static,
    ) -> Result<Serving, NodeError>
    where
        Q: DeserializeOwned + Schema,
        A: Serialize + Schema,
        F: Future<Output = Result<A, HandlerError>> + Send + 'static,
    {
        let metrics = self.exchange().metrics().clone();
        self.serve(name, move |request: Request| {
            let question = decoded(&metrics, &request.payload);
            let answering = question.map(|question| handler(request.from, question));
            async move {
                let unread = |error| format!("the question: {error}");
                let answer = answering.map_err(unread)?.await?;
                Ok(codec::encode_typed(&answer)?.into())
            }
        })
    }

    /// The nodes that serve a name, the nearest by round-trip time first, this node before all.
    ///
    /// # Errors
    /// [`NodeError::Text`].
    pub fn lookup(&self, name: &str) -> Result<Vec<NodeName>, NodeError> {
        Ok(self.exchange().lookup(&read(name)?))
    }

    /// Watches a name on a node: tells once when it is gone, and why.
    ///
    /// # Errors
    /// [`NodeError::Text`], [`NodeError::Send`].
    pub fn watch(&self, name: &str, node: &NodeName) -> Result<Watch, NodeError> {
        Ok(self.exchange().watch(&read(name)?, node)?)
    }
}

pub(super) fn read<T: std::str::FromStr<Err: Into<AddressError>>>(
    text: &str,
) -> Result<T, NodeError> {
    text.parse().map_err(|why: T::Err| NodeError::Text { given: text.to_owned(), why: why.into() })
}

fn encoded<T: Serialize + Schema + ?Sized>(value: &T) -> Result<Vec<u8>, NodeError> {
    codec::encode_typed(value).map_err(NodeError::Encode)
}

fn decoded<T: DeserializeOwned + Schema>(metrics: &Metrics, bytes: &[u8]) -> Result<T, CodecError> {
    let value = codec::decode_typed(bytes, MAX_MESSAGE);
    value.inspect_err(|_| metrics.count(Count::Messages, "other_type"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::exchange::{Message, Received};
    use crate::actors::tests::counted;
    use crate::node::testkit::{self, Mesh, settled};

    const SECOND: Duration = Duration::from_secs(1);

    async fn two() -> (Mesh, [NodeHandle; 2]) {
        testkit::linked(["a@127.0.0.1", "b@127.0.0.1"]).await.expect("names")
    }

    /// How many values of another type a node has counted.
    fn refused(node: &NodeHandle) -> u64 {
        counted(node.exchange().metrics(), "node_messages", "other_type")
    }

    async fn message(subscription: &mut Subscription) -> Message {
        match subscription.recv().await {
            Some(Received::Message(message)) => message,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_waits_for_as_many_links_as_it_is_told() {
        let (_mesh, [a, b]) = two().await;
        assert_eq!(a.linked(1, SECOND).await, Ok(()));
        assert_eq!(a.linked(2, SECOND).await, Err(TooFew { linked: 1, min: 2 }));
        let _serving = b.serve("echo", |it: Request| async { Ok(it.payload) }).expect("free");
        assert_eq!(a.call_on(b.name(), "echo", "x", SECOND).await, Ok("x".into()));
        let nobody = a.call_on(a.name(), "echo", "x", SECOND).await;
        assert_eq!(nobody, Err(CallError::NoSuchName.into()));
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_and_values_reach_subscribers_on_other_nodes() {
        let (_mesh, [a, b]) = two().await;
        let mut all = b.subscribe("room:*").expect("sound");
        settled().await;
        let report = a.try_publish("room:1", "hello").expect("sound");
        assert_eq!((report.peers, report.missed), (1, 0));
        let got = message(&mut all).await;
        assert_eq!((got.payload, got.topic.as_str()), ("hello".into(), "room:1"));
        a.publish_typed("room:2", &(7_u32, "seven")).await.expect("sound");
        let got = message(&mut all).await;
        assert_eq!(all.decode::<(u32, String)>(&got), Ok((7, "seven".to_owned())));
        assert_eq!(refused(&b), 0);
        let other = all.decode::<(u64, String)>(&got);
        assert!(matches!(other, Err(CodecError::OtherType(_))), "{other:?}");
        assert_eq!(refused(&b), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn values_are_asked_and_answered_and_other_types_are_told_apart() {
        let (_mesh, [a, b]) = two().await;
        let _serving = b
            .serve_typed("halve", |from: NodeName, n: u64| async move {
                assert_eq!(from.short(), "a");
                if n.is_multiple_of(2) { Ok(n / 2) } else { Err(format!("{n} is odd"))? }
            })
            .expect("free");
        settled().await;
        assert_eq!(a.lookup("halve").expect("sound"), [b.name().clone()]);
        assert_eq!(a.call_typed("halve", &8_u64, SECOND).await, Ok(4_u64));
        let odd = a.call_typed::<_, u64>("halve@b@127.0.0.1", &7_u64, SECOND).await;
        assert_eq!(odd, Err(CallError::Refused("7 is odd".to_owned()).into()));
        // Of both, postcard would make a number without complaint.
        let answer = a.call_typed_on::<_, i64>(b.name(), "halve", &8_u64, SECOND).await;
        assert_eq!(answer, Err(NodeError::Decode(CodecError::OtherType("i64"))));
        assert_eq!((refused(&a), refused(&b)), (1, 0));
        let question = a.call_typed::<_, u64>("halve", &8_u32, SECOND).await;
        let why = format!("the question: {}", CodecError::OtherType("u64"));
        assert_eq!(question, Err(CallError::Refused(why).into()));
        assert_eq!((refused(&a), refused(&b)), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn any_error_of_a_handler_refuses_with_its_text() {
        let (_mesh, [a, b]) = two().await;
        let _plain = b
            .serve("plain", |request: Request| async move {
                let number = str::from_utf8(&request.payload)?.parse::<u8>()?;
                Ok(number.checked_sub(1).ok_or("too small")?.to_string().into())
            })
            .expect("free");
        let _typed = b
            .serve_typed("typed", |_, text: String| async move { Ok(text.parse::<NodeName>()?) })
            .expect("free");
        settled().await;
        assert_eq!(a.call("plain", "8", SECOND).await, Ok("7".into()));
        let refused = |why: &dyn fmt::Display| Err(CallError::Refused(why.to_string()).into());
        let not_a_number = "eight".parse::<u8>().expect_err("a word");
        for (given, why) in [("eight", &not_a_number as &dyn fmt::Display), ("0", &"too small")] {
            assert_eq!(a.call("plain", given, SECOND).await, refused(why));
        }
        let bytes = vec![0xff];
        let not_a_text = str::from_utf8(&bytes).expect_err("no text");
        assert_eq!(a.call("plain", bytes.clone(), SECOND).await, refused(&not_a_text));
        let nobody = "nobody".parse::<NodeName>().expect_err("no host");
        let typed = a.call_typed::<_, NodeName>("typed", &"nobody", SECOND).await;
        assert_eq!(typed.map(drop), refused(&nobody).map(drop));
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_finds_who_does_what_and_rates_it() {
        let (mut mesh, [a, b]) = two().await;
        mesh.specialize(&b, &["nlp"]).expect("a word");
        let nodes = a.nodes();
        let names: Vec<_> =
            nodes.iter().map(|node| (node.name.short(), node.does("nlp"))).collect();
        assert_eq!(names, [("a", false), ("b", true)]);
        let first = |node: &NodeHandle| node.nodes().first().map(|node| node.name.clone());
        assert_eq!(first(&b).as_ref(), Some(b.name()), "itself first");
        assert_eq!(a.reputation(b.name()), Ok(0.0));
        a.set_reputation(b.name(), 0.5).expect("known");
        assert_eq!((a.reputation(b.name()), b.reputation(b.name())), (Ok(0.5), Ok(0.0)));
        mesh.cut(&a, &b).await;
        let status = |node: &NodeHandle| node.nodes().last().and_then(|node| node.status);
        assert_eq!((status(&a), a.reputation(b.name())), (Some(Status::Offline), Ok(0.5)));
        for wrong in [f64::NAN, f64::INFINITY] {
            assert_eq!(a.set_reputation(b.name(), wrong), Err(NodeError::Reputation));
        }
        let nobody: NodeName = "x@h".parse().expect("valid");
        let unknown = Err(NodeError::Unknown(nobody.clone()));
        assert_eq!(a.set_reputation(&nobody, 1.0), unknown.clone());
        assert_eq!(a.reputation(&nobody).map(drop), unknown);
    }

    #[tokio::test(start_paused = true)]
    async fn a_bad_text_is_quoted_and_does_nothing() {
        let (_mesh, [a, _b]) = two().await;
        let answer = |_: Request| async { Ok(Bytes::new()) };
        let said = [
            ("a b", a.publish("a b", "").await.err()),
            ("room*", a.subscribe("room*").err()),
            ("w@h", a.serve("w@h", answer).err()),
            ("w@h w", a.call("w@h w", "", SECOND).await.err()),
            ("", a.lookup("").err()),
        ];
        for (text, error) in said {
            let error = error.expect(text);
            assert!(matches!(&error, NodeError::Text { given, .. } if given == text));
            assert!(error.to_string().starts_with(&format!("{text:?}: ")), "{error}");
        }
    }
}
