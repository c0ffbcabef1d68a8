//! What a channel is: who may join its topics, what a client's events mean there, and what reaches the client.
//!
//! A [`Channel`] is registered for a pattern of topics, such as `jobs:*`. The node's own families (`family`) are
//! channels, too. Each join has a state of its own, and all that happens to it happens one after another:
//!
//! ```text
//! join ─► handle_in, handle_info, handle_out … ─► terminate
//! ```
//!
//! Invariants:
//! 1. A client had a token that allows the topic before [`Channel::join`] is asked, and each event that is not a question
//!    ([`Channel::questions`]) has one that allows pushes.
//! 2. A join that was granted ends with [`Channel::terminate`], whatever ends it, unless the channel itself panicked:
//!    that loses this join alone, and the client joins again.
//! 3. A [`ReplyTo`] answers once, with an error when it is dropped.

use std::future::{Future, ready};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use crate::actors::channel_router::outbox::{ClientOverflow, ClientQueue};
use crate::actors::channel_router::{Greeting, Publisher};
use crate::actors::exchange::{
    DeliveryReport, Exchange, HandlerError, Received, SendError, Subscription,
};
use crate::io::metrics::Metrics;
use crate::proto::channel::{Dialect, Json, Outcome, Payload, Ref, Say};
use crate::proto::interest::TooMany;
use crate::proto::token::Claims;
use crate::proto::topic::{Pattern, Topic};

/// What a service does on its topics, in the terms of Phoenix.Channel. `self` is what all joins share.
///
/// Only `join` and `handle_in` have to be written. They may take their time: a client's other topics do not wait. Any
/// error is a [`HandlerError`] by `?`, and the client gets its text as `{"reason": …}`.
pub trait Channel: Send + Sync + 'static {
    /// What one join keeps. Nobody else has it, so it needs no lock.
    type State: Send + 'static;

    /// Whether a client may join, with these parameters: its state and the response, or why not.
    fn join(
        &self,
        client: &Client,
        params: Value,
    ) -> impl Future<Output = Result<Joined<Self::State>, HandlerError>> + Send;

    /// An event of the client. An error is the reply `error`; the join goes on.
    fn handle_in(
        &self,
        state: &mut Self::State,
        client: &Client,
        push: &Push,
    ) -> impl Future<Output = Result<Reaction, HandlerError>> + Send;

    /// A message of a topic that this join subscribed to ([`Client::subscribe`]), or how many it missed, because it was
    /// too slow. An error is counted and logged; the join goes on.
    fn handle_info(
        &self,
        _state: &mut Self::State,
        _client: &Client,
        _received: Received,
    ) -> impl Future<Output = Result<(), HandlerError>> + Send {
        ready(Ok(()))
    }

    /// Events that do not reach a client before [`Channel::handle_out`] has looked at them. With any, all that is said on
    /// the topic goes through the joins' tasks, in order. Presence is not said, and not looked at.
    fn intercept(&self) -> &[&str] {
        &[]
    }

    /// An event that was told to all who joined, or missed by this one when it joined, on its way to this client. On an
    /// error it does not get it; that is counted and logged.
    fn handle_out(
        &self,
        _state: &mut Self::State,
        _client: &Client,
        _event: &str,
        _payload: &Payload,
    ) -> impl Future<Output = Result<Outgoing, HandlerError>> + Send {
        ready(Ok(Outgoing::AsItIs))
    }

    /// The join is over. Not called after a panic of this channel.
    fn terminate(
        &self,
        _state: Self::State,
        _client: &Client,
        _why: Ended,
    ) -> impl Future<Output = ()> + Send {
        ready(())
    }

    /// Whether clients see who else is there.
    fn presence(&self) -> bool {
        false
    }

    /// Events that only ask: they take the right to join, not the one to push.
    fn questions(&self) -> &[&str] {
        &[]
    }

    /// Whether a client that reads too slowly loses the oldest frames of this topic, rather than its connection.
    fn lossy(&self) -> bool {
        false
    }
}

/// A join that is granted.
pub struct Joined<S> {
    pub(super) state: S,
    pub(super) response: Map<String, Value>,
    pub(super) greeting: Option<Greeting>,
}

impl<S> Joined<S> {
    /// With this state. The response is empty.
    #[must_use]
    pub fn new(state: S) -> Self {
        Self { state, response: Map::new(), greeting: None }
    }

    /// With a response; one that is no JSON object stands in `response` of an object.
    #[must_use]
    pub fn response(mut self, response: Value) -> Self {
        self.response = match response {
            Value::Object(response) => response,
            other @ (Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_)) => Map::from_iter([("response".to_owned(), other)]),
        };
        self
    }

    /// The client gets these events right after the response, before anything else of the topic. They are made at that
    /// moment.
    #[must_use]
    pub fn greeting(
        mut self,
        make: impl FnOnce() -> Vec<(&'static str, Payload)> + Send + 'static,
    ) -> Self {
        self.greeting = Some(Box::new(make));
        self
    }
}

impl<S> std::fmt::Debug for Joined<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Joined")
    }
}

/// An event of a client.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Push {
    /// The event.
    pub event: String,
    /// What it carries.
    pub payload: Payload,
    /// The client's, for the reply.
    pub(super) reference: Option<Ref>,
}

impl Push {
    /// What a JSON payload says.
    ///
    /// # Errors
    /// It is binary, or of another shape.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, HandlerError> {
        match &self.payload {
            Payload::Json(json) => Ok(json.decode()?),
            Payload::Binary(_) => Err("a JSON payload is expected".into()),
        }
    }
}

/// What becomes of an event.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Reaction {
    /// The reply `ok` with this response.
    Reply(Payload),
    /// The reply `error` with this response; [`HandlerError`] is simpler where it is JSON.
    Refuse(Payload),
    /// To all that joined the topic, on every node; the reply `ok`, with `missed` when some nodes had no room for it.
    Broadcast,
    /// No reply from here: there is none, or a [`ReplyTo`] gives it.
    Silent,
}

impl Reaction {
    /// The reply `ok` with a value.
    #[must_use]
    pub fn reply(value: &Value) -> Self {
        Self::Reply(Payload::Json(Json::of(value)))
    }
}

/// What becomes of an event on its way to a client.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Outgoing {
    /// The client gets it.
    AsItIs,
    /// The client gets this payload with it.
    Changed(Payload),
    /// The client does not get it.
    Withheld,
}

/// Why a join is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ended {
    /// The client left, or joined the topic anew.
    Left,
    /// Its connection or session is gone.
    Disconnected,
    /// Its right to the topic has ended.
    Expired,
    /// The channel closed it ([`Client::close`]).
    Closed,
}

/// What the joins of a node share.
#[derive(Clone)]
pub(super) struct Shared(Arc<(Publisher, Exchange, Metrics)>);

impl Shared {
    pub(super) fn new(publisher: &Publisher, exchange: &Exchange, metrics: &Metrics) -> Self {
        Self(Arc::new((publisher.clone(), exchange.clone(), metrics.clone())))
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.0.2
    }
}

/// What a join's task is asked for beside its client's events.
pub(super) enum Request {
    Follow(Subscription),
    Unfollow(Pattern),
    /// Its client has another token.
    Renew(Arc<Claims>),
    Close,
}

/// A client on one topic. Clones are the same.
#[derive(Clone)]
#[non_exhaustive]
pub struct Client {
    /// The topic that it joins, or has joined.
    pub topic: Topic,
    /// What its token says of it; `None` for an anonymous client. Callbacks get what it says after a renewal, other clones
    /// keep what it said.
    pub claims: Option<Arc<Claims>>,
    pub(super) line: Line,
    pub(super) shared: Shared,
    /// To the join's task. `None`: it has none.
    pub(super) requests: Option<mpsc::UnboundedSender<Request>>,
}

/// The way to a client's join.
#[derive(Clone)]
pub(super) struct Line {
    /// Its number as a member of the topic.
    pub(super) member: u64,
    pub(super) join_ref: Option<Ref>,
    pub(super) dialect: Dialect,
    pub(super) outbox: ClientQueue,
    pub(super) overflow: ClientOverflow,
}

impl Line {
    pub(super) fn send(&self, topic: &Topic, what: &Say<'_>) {
        self.outbox.push(what.encode(self.dialect, topic.as_str()), self.overflow);
    }

    pub(super) fn reply(
        &self,
        topic: &Topic,
        reference: Option<&Ref>,
        outcome: Outcome,
        response: &Payload,
    ) {
        self.send(topic, &Say::Reply(self.join_ref.as_ref(), reference, outcome, response));
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sub = self.claims.as_ref().map(|claims| &claims.sub);
        let mut shown = f.debug_struct("Client");
        shown.field("topic", &self.topic).field("sub", &sub).finish_non_exhaustive()
    }
}

impl Client {
    /// Tells this client an event. One that reads too slowly is disconnected, as by what others tell it.
    pub fn push(&self, event: &str, payload: &Payload) {
        self.line.send(&self.topic, &Say::Push(self.line.join_ref.as_ref(), event, payload));
    }

    /// Tells all that joined the topic, on every node.
    ///
    /// # Errors
    /// As [`Publisher::publish`].
    pub fn broadcast(&self, event: &str, payload: &Payload) -> Result<DeliveryReport, SendError> {
        self.publisher().publish(&self.topic, event, payload)
    }

    /// Tells all others that joined the topic, on every node, but not this client. Where it is told where messages stand
    /// (`last_seq`), it is told that alone.
    ///
    /// # Errors
    /// As [`Publisher::publish`].
    pub fn broadcast_from(
        &self,
        event: &str,
        payload: &Payload,
    ) -> Result<DeliveryReport, SendError> {
        self.publisher().publish_except(&self.topic, event, payload, self.line.member)
    }

    /// A reply to an event that is given later, from any task: return [`Reaction::Silent`] for now.
    pub fn reply_to(&self, push: &Push) -> ReplyTo {
        let (line, topic) = (self.line.clone(), self.topic.clone());
        ReplyTo { line, topic, reference: push.reference.clone(), open: true }
    }

    /// From now on [`Channel::handle_info`] gets what is published there, on this node and all others, until the join
    /// ends.
    ///
    /// # Errors
    /// [`TooMany`] topics for one node; nothing changed.
    pub fn subscribe(&self, to: impl Into<Pattern>) -> Result<(), TooMany> {
        let subscription = self.shared.0.1.subscribe(to)?;
        self.request(Request::Follow(subscription));
        Ok(())
    }

    /// Ends a subscription of this join. What waits of it may still come.
    pub fn unsubscribe(&self, from: impl Into<Pattern>) {
        self.request(Request::Unfollow(from.into()));
    }

    /// Ends this join once the present callback is done: `phx_close`, after which the client does not join again by itself.
    /// What it was answered and told before it still gets; its events that wait are not looked at.
    pub fn close(&self) {
        self.request(Request::Close);
    }

    fn request(&self, request: Request) {
        if let Some(requests) = &self.requests {
            drop(requests.send(request)); // a join that is over needs nothing
        }
    }

    /// Publishes on other topics.
    #[must_use]
    pub fn publisher(&self) -> &Publisher {
        &self.shared.0.0
    }
}

/// A reply that is still to be given. One that is dropped is the reply `error` with `{"reason": "not answered"}`, so that
/// no client waits for what will not come. After the join's end it reaches nobody.
#[must_use = "dropped, it is an error for the client"]
pub struct ReplyTo {
    line: Line,
    topic: Topic,
    reference: Option<Ref>,
    open: bool,
}

impl std::fmt::Debug for ReplyTo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplyTo").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl ReplyTo {
    /// The reply `ok` with this response.
    pub fn ok(self, response: &Payload) {
        self.answer(Outcome::Ok, response);
    }

    /// The reply `error`.
    pub fn error(self, why: impl Into<HandlerError>) {
        let response = Json::of(&why.into().into_response());
        self.answer(Outcome::Error, &Payload::Json(response));
    }

    fn answer(mut self, outcome: Outcome, response: &Payload) {
        self.open = false;
        self.line.reply(&self.topic, self.reference.as_ref(), outcome, response);
    }
}

impl Drop for ReplyTo {
    fn drop(&mut self) {
        if self.open {
            let why = crate::proto::channel::reason("not answered");
            self.line.reply(&self.topic, self.reference.as_ref(), Outcome::Error, &why);
        }
    }
}
