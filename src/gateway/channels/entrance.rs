//! The way into a topic: by what right a client joins it, what it gets there, and who asks a service's handler.
//!
//! Each join is judged in a task of its own, for a handler or a late refusal may take its time, and the client's other
//! topics and heartbeats shall not. Invariants:
//! 1. A join has a right of its own: the token it brought, or else its socket's.
//! 2. A [`Live`] that is dropped has left; so has a join that is given up half-way.
//! 3. A handler whose join said yes is told when that client is gone.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, oneshot};

use super::handler::{self, Admission, Handler, Reaction};
use super::{Bearer, Channels, Denied, Refusal, SLOWED, asked, feed};
use crate::actors::channel_router::outbox::{ClientOverflow, ClientQueue};
use crate::actors::channel_router::{Greeting, Member};
use crate::gateway::refusal::Cause;
use crate::io::clock;
use crate::proto::channel::session::Join;
use crate::proto::channel::{Dialect, Json, Outcome, Payload, Ref, Say, reason};
use crate::proto::node::NodeName;
use crate::proto::replay;
use crate::proto::token::{Claims, Verb};
use crate::proto::topic::Topic;

/// How long a join may take.
const JOIN: Duration = Duration::from_secs(10);
/// Events that may wait for a handler.
const WAITING: usize = 64;

/// Where events for a handler go.
pub(super) type Pushes = mpsc::Sender<(handler::Push, Option<Ref>)>;

/// What a topic is.
pub(super) enum Kind {
    Room,
    Network,
    Node,
    Service(Pushes),
}

/// A join that lives.
pub(super) struct Live {
    channels: Arc<Channels>,
    member: u64,
    pub(super) join: Join,
    pub(super) claims: Option<Bearer>,
    /// Its client was told that its token ends soon.
    pub(super) warned: bool,
    /// Another token for it is being judged.
    pub(super) renewing: bool,
    pub(super) kind: Kind,
}

impl Live {
    fn new(
        channels: &Arc<Channels>,
        join: Join,
        member: u64,
        claims: Option<Bearer>,
        kind: Kind,
    ) -> Self {
        let channels = channels.clone();
        let (warned, renewing) = (false, false);
        let live = Self { channels, member, join, claims, warned, renewing, kind };
        for count in live.counts() {
            count.fetch_add(1, Ordering::Relaxed);
        }
        live
    }

    /// Where it is counted.
    fn counts(&self) -> impl Iterator<Item = &AtomicUsize> {
        let more = match self.kind {
            Kind::Node => Some(&self.channels.watching),
            Kind::Network => Some(&self.channels.observing),
            Kind::Room | Kind::Service(_) => None,
        };
        [&self.channels.admin.clients.joined].into_iter().chain(more)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.channels.router.leave(self.join.topic.clone(), self.member);
        for count in self.counts() {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// What tasks have to tell their client.
pub(super) enum News {
    /// A join was granted or refused; the response says why.
    Settled(Join, Result<Live, Value>),
    /// The handler of a join has ended; `true`: by a crash.
    Ended(Join, bool),
    /// Another token for a join was judged.
    Renewed(Join, Option<Ref>, Result<Bearer, Refusal>),
}

/// Tells a client its news, and wakes who drives it.
#[derive(Clone)]
pub(super) struct Herald {
    pub(super) news: mpsc::UnboundedSender<News>,
    pub(super) wake: Arc<Notify>,
}

impl Herald {
    pub(super) fn send(&self, news: News) {
        // A client that is gone needs no news.
        if self.news.send(news).is_ok() {
            self.wake.notify_one();
        }
    }
}

/// The verdict on a join, which comes even from a task that crashes.
struct Verdict(Option<(Herald, Join)>);

impl Verdict {
    fn give(mut self, settled: Result<Live, Value>) {
        if let Some((herald, join)) = self.0.take() {
            herald.send(News::Settled(join, settled));
        }
    }
}

impl Drop for Verdict {
    fn drop(&mut self) {
        if let Some((herald, join)) = self.0.take() {
            herald.send(News::Settled(join, Err(json!({ "reason": "join crashed" }))));
        }
    }
}

/// Room for a frame that waits: of its client, and of all.
pub(super) type Place = [OwnedSemaphorePermit; 2];

/// A join that is about to be.
pub(super) struct Entrance {
    pub(super) channels: Arc<Channels>,
    pub(super) join: Join,
    pub(super) reference: Option<Ref>,
    pub(super) dialect: Dialect,
    pub(super) outbox: ClientQueue,
    pub(super) herald: Herald,
    pub(super) from: IpAddr,
    /// The right of the socket.
    pub(super) claims: Option<Bearer>,
}

/// Why a join is refused.
struct Refused {
    response: Value,
    late: bool,
}

fn refused(why: &str) -> Refused {
    Refused { response: json!({ "reason": why }), late: false }
}

impl Entrance {
    /// Settles the join, in a task that ends when the result is aborted.
    pub(super) fn open(self, payload: Payload, place: Place) -> tokio::task::AbortHandle {
        let verdict = Verdict(Some((self.herald.clone(), self.join.clone())));
        let channels = self.channels.clone();
        let task = tokio::spawn(async move {
            let settled = match tokio::time::timeout(JOIN, self.admit(payload)).await {
                Ok(Ok(live)) => Ok(live),
                Ok(Err(Refused { response, late })) => {
                    if late {
                        channels.hold_back(SLOWED).await;
                    }
                    Err(response)
                }
                Err(_elapsed) => Err(json!({ "reason": "join timeout" })),
            };
            drop(place);
            verdict.give(settled);
        });
        task.abort_handle()
    }

    async fn admit(self, payload: Payload) -> Result<Live, Refused> {
        let Payload::Json(params) = &payload else { return Err(refused("unmatched topic")) };
        let params: Value = params.decode().unwrap_or_default();
        drop(payload);
        let claims = self.right(&params).await?;
        let topic = self.join.topic.as_str();
        let mut member = self.member(&params);
        let kind = if topic == "network:updates" {
            (member.slow, member.greeting) = (ClientOverflow::DropOldest, Some(self.snapshot()));
            Kind::Network
        } else if let Some(name) = topic.strip_prefix("node:") {
            member.slow = ClientOverflow::DropOldest;
            if topic != Topic::node_heartbeat().as_str() {
                let name = name.parse().map_err(|_no_node| refused("unmatched topic"))?;
                member.greeting = Some(self.about(name));
            }
            Kind::Node
        } else if let Some(handler) = self.channels.handlers.of(&self.join.topic) {
            let presence = handler.presence();
            let (response, pushes) = self.serve(params, claims.clone(), handler).await?;
            member.response = response;
            member.presence = presence.then(|| self.shown(claims.as_deref(), member.id));
            Kind::Service(pushes)
        } else if topic.starts_with("room:") {
            member.presence = Some(self.shown(claims.as_deref(), member.id));
            Kind::Room
        } else {
            return Err(refused("unmatched topic"));
        };
        // Leaves again when it is given up before the router has come to it.
        let live = Live::new(&self.channels, self.join.clone(), member.id, claims, kind);
        match self.channels.router.join(self.join.topic.clone(), member).await {
            true => Ok(live),
            false => Err(refused("join crashed")),
        }
    }

    /// By what right a client joins a topic.
    async fn right(&self, params: &Value) -> Result<Option<Bearer>, Refused> {
        let token = params.get("token").or_else(|| params.get("access_token"));
        let bearer = match token.and_then(Value::as_str) {
            Some(token) => match self.channels.judge(token, self.from).await {
                Ok(bearer) => Some(bearer),
                Err(Denied { reason, cause, late }) => {
                    self.channels.refusals.note(cause, self.from, reason);
                    return Err(Refused { late, ..refused(reason) });
                }
            },
            None => self.claims.clone(),
        };
        let topic = &self.join.topic;
        let Some(bearer) = bearer else {
            let open = self.channels.anonymous(topic);
            return if open { Ok(None) } else { Err(self.unauthorized(Cause::JoinWithoutToken)) };
        };
        if let Some(why) = self.channels.outlived(&bearer) {
            return Err(refused(why));
        }
        match bearer.allows(Verb::Join, topic) {
            true => Ok(Some(bearer)),
            false => Err(self.unauthorized(Cause::NotGranted)),
        }
    }

    fn unauthorized(&self, cause: Cause) -> Refused {
        self.channels.refusals.note(cause, self.from, self.join.topic.as_str());
        refused("unauthorized")
    }

    fn member(&self, params: &Value) -> Member {
        let resume = params.get("last_seq").map(|seq| match seq {
            Value::Null => String::new(),
            Value::String(cursor) if cursor.len() <= replay::TEXT => cursor.clone(),
            Value::Number(zero) if zero.as_u64() == Some(0) => String::new(),
            // No cursor of ours: there is a gap.
            Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_)
            | Value::Object(_) => "?".to_owned(),
        });
        Member {
            id: self.channels.router.number(),
            join_ref: self.join.join_ref.clone(),
            reference: self.reference.clone(),
            dialect: self.dialect,
            outbox: self.outbox.clone(),
            slow: ClientOverflow::Disconnect,
            response: Map::new(),
            resume,
            history: params.get("history").and_then(asked::read),
            presence: None,
            greeting: None,
            ready: None,
        }
    }

    /// Under what key others see a client, and what they see.
    fn shown(&self, claims: Option<&Claims>, member: u64) -> (String, String) {
        let node = &self.channels.admin.name;
        let key = match claims {
            Some(claims) => claims.sub.clone(),
            None => format!("anonymous:{member:x}@{node}"),
        };
        let since = clock::wall().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let meta = json!({ "node": node, "online_at": since.as_secs() });
        (key, meta.to_string())
    }

    fn snapshot(&self) -> Greeting {
        let channels = self.channels.clone();
        Box::new(move || {
            let (status, topology) = (channels.admin.status(), channels.admin.topology());
            let snapshot = json!({ "status": status, "topology": topology });
            vec![("snapshot", Payload::Json(Json::of(&snapshot)))]
        })
    }

    fn about(&self, name: NodeName) -> Greeting {
        let channels = self.channels.clone();
        Box::new(move || {
            let beat = feed::beat(&channels.admin, &name);
            vec![("snapshot", Payload::Json(Json::of(&beat)))]
        })
    }

    /// Asks a service's handler, in a task that goes on with this client's events.
    async fn serve(
        &self,
        params: Value,
        bearer: Option<Bearer>,
        handler: Arc<dyn Handler>,
    ) -> Result<(Map<String, Value>, Pushes), Refused> {
        let client = handler::Client {
            topic: self.join.topic.clone(),
            claims: bearer.map(|bearer| bearer.claims),
            publisher: self.channels.publisher.clone(),
        };
        let (pushes, waiting) = mpsc::channel(WAITING);
        let (answer, answered) = oneshot::channel();
        let (join, dialect) = (self.join.clone(), self.dialect);
        let served = Served { handler, client, join, dialect, outbox: self.outbox.clone() };
        let (herald, join) = (self.herald.clone(), self.join.clone());
        tokio::spawn(async move {
            let crashed = tokio::spawn(served.run(params, answer, waiting)).await.is_err();
            herald.send(News::Ended(join, crashed));
        });
        let answer = answered.await.map_err(|_crashed| refused("join crashed"))?;
        let response =
            answer.map_err(|why| Refused { response: why.into_response(), late: false })?;
        Ok((response, pushes))
    }
}

/// A client as a service's handler has it.
struct Served {
    handler: Arc<dyn Handler>,
    client: handler::Client,
    join: Join,
    dialect: Dialect,
    outbox: ClientQueue,
}

impl Served {
    async fn run(
        self,
        params: Value,
        mut answer: oneshot::Sender<Admission>,
        waiting: mpsc::Receiver<(handler::Push, Option<Ref>)>,
    ) {
        let admission = tokio::select! {
            admission = self.handler.join(&self.client, &params) => admission,
            // It took too long, or the client is gone.
            () = answer.closed() => return,
        };
        drop(params);
        let admitted = admission.is_ok();
        let heard = answer.send(admission).is_ok();
        if !admitted {
            return;
        }
        if heard {
            self.talk(waiting).await;
        }
        self.handler.left(&self.client).await;
    }

    async fn talk(&self, mut waiting: mpsc::Receiver<(handler::Push, Option<Ref>)>) {
        while let Some((push, reference)) = waiting.recv().await {
            let reply = |outcome, response: &Payload| {
                let join_ref = self.join.join_ref.as_ref();
                self.send(&Say::Reply(join_ref, reference.as_ref(), outcome, response));
            };
            let empty = Payload::Json(Json::empty());
            match self.handler.push(&self.client, &push).await {
                Ok(Reaction::Reply(response)) => reply(Outcome::Ok, &response),
                Ok(Reaction::Refuse(response)) => reply(Outcome::Error, &response),
                Err(why) => {
                    let response = Json::of(&why.into_response());
                    reply(Outcome::Error, &Payload::Json(response));
                }
                Ok(Reaction::Silent) => {}
                Ok(Reaction::Broadcast) => {
                    let publisher = &self.client.publisher;
                    match publisher.publish(&self.client.topic, &push.event, &push.payload) {
                        Ok(_spread) => reply(Outcome::Ok, &empty),
                        Err(_long) => reply(Outcome::Error, &reason("too long")),
                    }
                }
                Ok(Reaction::Close) => {
                    self.send(&Say::End(self.join.join_ref.as_ref(), "phx_close", &empty));
                    return;
                }
            }
        }
    }

    fn send(&self, what: &Say<'_>) {
        self.outbox
            .push(what.encode(self.dialect, self.join.topic.as_str()), ClientOverflow::Disconnect);
    }
}
