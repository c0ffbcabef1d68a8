//! What a service does on topics of its own: who may join, and what a client's events mean.
//!
//! A [`Handler`] is registered for a pattern of topics, such as `jobs:*`. Each join gets a task of its own, in which
//! the handler sees that client's events one after another; one that panics there loses that join alone, and the
//! client joins again.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};

use serde_json::{Map, Value};

use crate::actors::channel_router::Publisher;
use crate::actors::exchange::HandlerError;
use crate::proto::channel::{Json, Payload};
use crate::proto::token::Claims;
use crate::proto::topic::{Pattern, Topic};

/// A client on one topic.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Client {
    /// The topic that it joins, or has joined.
    pub topic: Topic,
    /// What its token says of it; `None` for an anonymous client.
    pub claims: Option<Arc<Claims>>,
    /// Publishes to all that joined a topic, on every node.
    pub publisher: Publisher,
}

/// An event of a client.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Push {
    /// The event.
    pub event: String,
    /// What it carries.
    pub payload: Payload,
}

/// What becomes of an event.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Reaction {
    /// The reply `ok` with this response.
    Reply(Payload),
    /// The reply `error` with this response; [`HandlerError`] is simpler where it is JSON.
    Refuse(Payload),
    /// To all that joined the topic, on every node; the reply `ok`.
    Broadcast,
    /// No reply.
    Silent,
    /// The join is over, and the client does not join again by itself.
    Close,
}

impl Reaction {
    /// The reply `ok` with a value.
    #[must_use]
    pub fn reply(value: &Value) -> Self {
        Self::Reply(Payload::Json(Json::of(value)))
    }
}

/// A boxed future of a handler.
pub type Doing<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The response to a join, or why it is refused.
pub type Admission = Result<Map<String, Value>, HandlerError>;

/// What a service does on its topics. Who joins must have a token that allows the topic, before the handler
/// is asked.
pub trait Handler: Send + Sync + 'static {
    /// Whether a client may join: the response, or why not.
    fn join<'a>(&'a self, client: &'a Client, params: &'a Value) -> Doing<'a, Admission>;

    /// An event of a client that joined; an error is the reply `error`.
    fn push<'a>(
        &'a self,
        client: &'a Client,
        push: &'a Push,
    ) -> Doing<'a, Result<Reaction, HandlerError>>;

    /// A client is gone.
    fn left<'a>(&'a self, _client: &'a Client) -> Doing<'a, ()> {
        Box::pin(std::future::ready(()))
    }

    /// Whether clients see who else is there.
    fn presence(&self) -> bool {
        false
    }
}

type Registered = (Pattern, Arc<dyn Handler>);

/// The handlers of a node.
#[derive(Clone, Default)]
pub struct Handlers(Arc<RwLock<Vec<Registered>>>);

impl std::fmt::Debug for Handlers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handlers")
    }
}

impl Handlers {
    /// From now on these topics are this handler's; a later handler comes before an earlier one.
    pub fn add(&self, pattern: Pattern, handler: Arc<dyn Handler>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(0, (pattern, handler));
    }

    /// Whose topic it is.
    #[must_use]
    pub fn of(&self, topic: &Topic) -> Option<Arc<dyn Handler>> {
        let handlers = self.0.read().unwrap_or_else(PoisonError::into_inner);
        handlers.iter().find(|(pattern, _)| pattern.covers(topic)).map(|(_, it)| it.clone())
    }
}
