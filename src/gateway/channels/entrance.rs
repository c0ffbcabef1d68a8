//! The way into a topic: by what right a client joins it, and what it gets there.
//!
//! Each join is judged in a task of its own, for a channel or a late refusal may take its time, and the client's other
//! topics and heartbeats shall not. Invariants:
//! 1. A join has a right of its own: the token it brought, or else its socket's.
//! 2. A [`Live`] that is dropped has left; so has a join that is given up half-way.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc};

use super::handler::{Client, Line};
use super::presence::{Face, Wish};
use super::serving::{Admitted, OnEnd, Seat, Traits};
use super::{Bearer, Channels, Denied, Refusal, SLOWED, asked};
use crate::actors::channel_router::Member;
use crate::actors::channel_router::outbox::{ClientOverflow, ClientQueue};
use crate::gateway::refusal::Cause;
use crate::io::metrics::Count;
use crate::proto::channel::session::Join;
use crate::proto::channel::{Dialect, Payload, Ref};
use crate::proto::presence::listing::Sees;
use crate::proto::replay;
use crate::proto::token::Verb;
use crate::proto::topic::Topic;

/// How long a join may take.
pub(super) const JOIN: Duration = Duration::from_secs(10);

/// What a join reads whose parameters are JSON that no value holds: half a surrogate pair, or a number beyond all bounds.
const UNREADABLE: &str = "unreadable parameters";

/// A join that lives.
pub(super) struct Live {
    _leaving: Leaving,
    pub(super) member: u64,
    pub(super) join: Join,
    pub(super) claims: Option<Bearer>,
    /// Its client was told that its token ends soon.
    pub(super) warned: bool,
    /// Another token for it is being judged.
    pub(super) renewing: bool,
    /// What its channel has of it.
    pub(super) seat: Box<dyn Seat>,
    /// Its topic shows who is there; what the node says of it, if others see it.
    pub(super) presents: bool,
    pub(super) face: Option<Face>,
}

impl Live {
    fn new(
        channels: &Arc<Channels>,
        join: Join,
        member: u64,
        claims: Option<Bearer>,
        (seat, presents, face): (Box<dyn Seat>, bool, Option<Face>),
    ) -> Self {
        channels.admin.clients.joined.fetch_add(1, Ordering::Relaxed);
        let (warned, renewing) = (false, false);
        let _leaving = Leaving(channels.clone(), join.topic.clone(), member);
        Self { _leaving, member, join, claims, warned, renewing, seat, presents, face }
    }
}

/// Has a member leave the router when it is dropped.
struct Leaving(Arc<Channels>, Topic, u64);

impl Drop for Leaving {
    fn drop(&mut self) {
        let Self(channels, topic, member) = self;
        channels.router.leave(topic.clone(), *member);
        channels.admin.clients.joined.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What tasks have to tell their client.
pub(super) enum News {
    /// A join was granted or refused; the response says why.
    Settled(Join, Result<Box<Live>, Value>),
    /// The task of a join has ended; `true`: by a panic.
    Ended(Join, bool),
    /// Another token for a join was judged.
    Renewed(Join, Option<Ref>, Result<Bearer, Refusal>),
}

/// Tells a client its news, and wakes who drives it.
#[derive(Clone)]
pub(super) struct Herald {
    /// Boxed: a channel has room for 32 from its first message, and most clients have little news.
    pub(super) news: mpsc::UnboundedSender<Box<News>>,
    pub(super) wake: Arc<Notify>,
}

impl Herald {
    pub(super) fn send(&self, news: News) {
        // A client that is gone needs no news.
        if self.news.send(Box::new(news)).is_ok() {
            self.wake.notify_one();
        }
    }
}

/// The news of how a join is settled, which comes even from a task that crashes.
struct Settling(Option<(Herald, Join)>);

impl Settling {
    fn give(mut self, settled: Result<Box<Live>, Value>) {
        if let Some((herald, join)) = self.0.take() {
            herald.send(News::Settled(join, settled));
        }
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        if let Some((herald, join)) = self.0.take() {
            herald.send(News::Settled(join, Err(json!({ "reason": "join crashed" }))));
        }
    }
}

/// Room for a frame that waits: of its client, and of all.
pub(super) type Room = [OwnedSemaphorePermit; 2];

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
    pub(super) fn open(self, payload: Payload, room: Room) -> tokio::task::AbortHandle {
        let settling = Settling(Some((self.herald.clone(), self.join.clone())));
        let channels = self.channels.clone();
        let task = tokio::spawn(async move {
            let settled = match tokio::time::timeout(JOIN, self.admit(payload)).await {
                Ok(Ok(live)) => Ok(Box::new(live)),
                Ok(Err(Refused { response, late })) => {
                    if late {
                        channels.hold_back(SLOWED).await;
                    }
                    Err(response)
                }
                Err(_elapsed) => Err(json!({ "reason": "join timeout" })),
            };
            drop(room);
            settling.give(settled);
        });
        task.abort_handle()
    }

    async fn admit(self, payload: Payload) -> Result<Live, Refused> {
        let Payload::Json(params) = &payload else { return Err(refused("unmatched topic")) };
        let params: Value = params.decode().map_err(|_text| refused(UNREADABLE))?;
        drop(payload);
        let claims = self.right(&params).await?;
        // A topic costs its node more than it costs the client.
        if let Some(scarce) = self.channels.memory.scarce() {
            self.channels.refusals.note(Cause::Memory, self.from, &scarce.to_string());
            return Err(refused("overloaded"));
        }
        let service = self.channels.handlers.of(&self.join.topic);
        let service = service.ok_or_else(|| refused("unmatched topic"))?;
        let mut member = self.member(&params);
        let Traits { presence: presents, overflow } = service.traits();
        let face = if presents { self.show(&mut member, &params, claims.as_ref())? } else { None };
        member.slow = overflow;
        let (client, ended) = (self.client(claims.as_ref(), &member), self.ended());
        let admitted = service.enter(client, params, ended).await;
        let Admitted { response, greeting, intercept, seat } =
            admitted.map_err(|why| Refused { response: why.into_response(), late: false })?;
        (member.response, member.greeting, member.intercept) = (response, greeting, intercept);
        let shown = (seat, presents, face);
        // Leaves again when it is given up before the router has come to it.
        let live = Live::new(&self.channels, self.join.clone(), member.id, claims, shown);
        match self.channels.router.join(self.join.topic.clone(), member).await {
            true => Ok(live),
            false => Err(refused("join crashed")),
        }
    }

    /// The client as its channel has it.
    fn client(&self, claims: Option<&Bearer>, member: &Member) -> Client {
        let (join_ref, outbox) = (self.join.join_ref.clone(), self.outbox.clone());
        let (member, overflow) = (member.id, member.slow);
        Client {
            topic: self.join.topic.clone(),
            claims: claims.map(|bearer| bearer.claims.clone()),
            line: Line { member, join_ref, dialect: self.dialect, outbox, overflow },
            shared: self.channels.shared.clone(),
            requests: None,
        }
    }

    fn ended(&self) -> OnEnd {
        let (herald, join) = (self.herald.clone(), self.join.clone());
        Box::new(move |crashed| herald.send(News::Ended(join, crashed)))
    }

    /// By what right a client joins a topic.
    async fn right(&self, params: &Value) -> Result<Option<Bearer>, Refused> {
        let token = params.get("token").or_else(|| params.get("access_token"));
        let topic = &self.join.topic;
        if let Some(token) = token.and_then(Value::as_str) {
            let granted = self.channels.grant(token, topic, self.from).await;
            let denied = |Denied { reason, late, .. }| Refused { late, ..refused(reason) };
            return granted.map(Some).map_err(denied);
        }
        let Some(bearer) = self.claims.clone() else {
            let open = self.channels.anonymous(topic);
            return if open { Ok(None) } else { Err(self.unauthorized(Cause::JoinWithoutToken)) };
        };
        if let Some(why) = self.channels.outlived(&bearer) {
            return Err(refused(why));
        }
        match self.channels.handlers.allow(&bearer, Verb::Join, topic) {
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
            holder: self.from.to_string().into(),
            sees: Sees::Nothing,
            greeting: None,
            intercept: None,
            ready: None,
        }
    }

    /// How others see a client, and what it sees of them: as it wishes, and the topic lets it.
    fn show(
        &self,
        member: &mut Member,
        params: &Value,
        claims: Option<&Bearer>,
    ) -> Result<Option<Face>, Refused> {
        let (topic, most) = (&self.join.topic, self.channels.shown(&self.join.topic));
        if most == Sees::Nothing {
            return Ok(None);
        }
        let allow = |bearer: &Bearer| self.channels.handlers.allow(bearer, Verb::Push, topic);
        let (pushes, node) = (claims.is_none_or(allow), &self.channels.admin.name);
        let shown = Wish::read(params).and_then(|wish| {
            member.sees = wish.sees.min(most);
            let face = wish.seen.then(|| Face::new(node));
            let meta = face.as_ref().map(|face| face.meta(&wish.fields, pushes)).transpose()?;
            Ok((face, meta))
        });
        let (face, meta) = shown.map_err(|why| {
            self.channels.metrics.count(Count::Channels, "presence_invalid");
            refused(why)
        })?;
        if let Some(claims) = claims {
            member.holder = format!("{} {}", claims.iss, claims.sub).into();
        }
        member.presence = meta.map(|meta| {
            let anonymous = || format!("anonymous:{:x}@{node}", member.id);
            (claims.map_or_else(anonymous, |claims| claims.sub.clone()), meta)
        });
        Ok(face)
    }
}
