//! One client: its session, what it has joined, and by what right.
//!
//! Whatever carries the frames owns a [`Client`], gives it each frame, and sends what its outbox has. Invariants:
//! 1. Frames of one client take effect in their order; a join is over, one way or the other, before the next.
//! 2. A join has a right of its own: the token it brought, or else its socket's. It ends with that right.
//! 3. A dropped client has left all its topics.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use super::handler::{self, Handler, Reaction};
use super::{Channels, Refusal};
use crate::actors::channel_router::outbox::{Outbox, Slow};
use crate::actors::channel_router::{Greeting, Member};
use crate::actors::timer;
use crate::gateway::sight;
use crate::io::clock;
use crate::io::metrics::Count;
use crate::proto::channel::session::{Ask, Join, Session};
use crate::proto::channel::{Dialect, Frame, Json, Outcome, Payload, Ref, Say, reason};
use crate::proto::node::NodeName;
use crate::proto::replay;
use crate::proto::token::{Claims, Verb};
use crate::proto::topic::Topic;

/// How long a join may take.
const JOIN: Duration = Duration::from_secs(10);
/// Events that may wait for a handler.
const WAITING: usize = 64;

/// The node's own events on `network:updates`.
const OWN: [&str; 3] = ["snapshot", "change", "figures"];

/// Where events for a handler go.
type Pushes = mpsc::Sender<(handler::Push, Option<Ref>)>;

/// What a topic is.
enum Kind {
    Room,
    Network,
    Node,
    Service(Pushes),
}

/// A join that lives.
struct Live {
    member: u64,
    join: Join,
    claims: Option<Arc<Claims>>,
    kind: Kind,
}

/// One client.
pub(in crate::gateway) struct Client {
    channels: Arc<Channels>,
    session: Session,
    outbox: Outbox,
    from: IpAddr,
    claims: Option<Arc<Claims>>,
    live: BTreeMap<u64, Live>,
    /// Joins whose handler has ended them.
    ended: (mpsc::UnboundedSender<Join>, mpsc::UnboundedReceiver<Join>),
}

/// A join that is about to be.
struct Entry {
    join: Join,
    reference: Option<Ref>,
    params: Value,
    claims: Option<Arc<Claims>>,
}

impl Client {
    pub(in crate::gateway) fn new(
        channels: &Arc<Channels>,
        dialect: Dialect,
        from: IpAddr,
        claims: Option<Arc<Claims>>,
    ) -> Self {
        channels.admin.clients.connected.fetch_add(1, Ordering::Relaxed);
        Self {
            channels: channels.clone(),
            session: Session::new(dialect),
            outbox: Outbox::default(),
            from,
            claims,
            live: BTreeMap::new(),
            ended: mpsc::unbounded_channel(),
        }
    }

    pub(in crate::gateway) fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    pub(in crate::gateway) fn dialect(&self) -> Dialect {
        self.session.dialect()
    }

    /// Takes a frame.
    pub(in crate::gateway) async fn hear(&mut self, frame: Frame) {
        self.sweep();
        match self.session.hear(&frame) {
            Ask::Ignore => {}
            Ask::Answer(join_ref, outcome, why) => {
                let response = if why.is_empty() { empty() } else { reason(why) };
                let reference = frame.reference.as_ref();
                let reply = Say::Reply(join_ref.as_ref(), reference, outcome, &response);
                self.say(&frame.topic, &reply);
            }
            Ask::Join(join, before) => {
                if let Some(before) = before {
                    self.end(&before, "phx_close", &empty());
                }
                self.join(frame, join).await;
            }
            Ask::Push(join) => self.push(frame, &join),
            Ask::Leave(join) => {
                self.gone(&join);
                self.reply(&join, frame.reference.as_ref(), Outcome::Ok, &empty());
                self.say(
                    join.topic.as_str(),
                    &Say::End(join.join_ref.as_ref(), "phx_close", &empty()),
                );
            }
        }
    }

    /// Forgets joins that their handlers have ended.
    pub(in crate::gateway) fn sweep(&mut self) {
        while let Ok(join) = self.ended.1.try_recv() {
            self.forget(&join);
        }
    }

    /// Waits until a handler has ended a join, and forgets it.
    pub(in crate::gateway) async fn swept(&mut self) {
        // There is always a sender: the client's own.
        if let Some(join) = self.ended.1.recv().await {
            self.forget(&join);
        }
    }

    /// When [`Client::expire`] is due.
    pub(in crate::gateway) fn deadline(&self) -> Option<Instant> {
        let rights = self.live.values().filter_map(|live| live.claims.as_ref());
        let first = rights.map(|claims| claims.expires()).min()?;
        Some(timer::now() + first.duration_since(clock::wall()).unwrap_or_default())
    }

    /// Ends what the client has no right to any more.
    pub(in crate::gateway) fn expire(&mut self) {
        let outlived = |live: &Live| {
            let why = self.channels.outlived(live.claims.as_ref()?)?;
            Some((live.join.clone(), why))
        };
        let over: Vec<_> = self.live.values().filter_map(outlived).collect();
        for (join, why) in over {
            self.channels.metrics.count(Count::Channels, "expired");
            self.end(&join, "phx_error", &reason(why));
        }
    }

    fn say(&self, topic: &str, what: &Say<'_>) {
        self.outbox.push(what.encode(self.session.dialect(), topic), Slow::Disconnect);
    }

    fn reply(&self, join: &Join, reference: Option<&Ref>, outcome: Outcome, response: &Payload) {
        let reply = Say::Reply(join.join_ref.as_ref(), reference, outcome, response);
        self.say(join.topic.as_str(), &reply);
    }

    /// A join is over.
    fn forget(&mut self, join: &Join) {
        self.session.ended(join);
        self.gone(join);
    }

    /// Ends a join.
    fn end(&mut self, join: &Join, event: &str, why: &Payload) {
        self.forget(join);
        self.say(join.topic.as_str(), &Say::End(join.join_ref.as_ref(), event, why));
    }

    /// Where a join is counted.
    fn counts(&self, kind: &Kind) -> impl Iterator<Item = &AtomicUsize> {
        let more = match kind {
            Kind::Node => Some(&self.channels.watching),
            Kind::Network => Some(&self.channels.observing),
            Kind::Room | Kind::Service(_) => None,
        };
        [&self.channels.admin.clients.joined].into_iter().chain(more)
    }

    /// A join is no more: others must not see it any longer.
    fn gone(&mut self, join: &Join) {
        if let Some(live) = self.live.remove(&join.number) {
            self.channels.router.leave(live.join.topic.clone(), live.member);
            for count in self.counts(&live.kind) {
                count.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    async fn join(&mut self, frame: Frame, join: Join) {
        let reference = frame.reference.clone();
        let refused = match tokio::time::timeout(JOIN, self.admit(frame, &join)).await {
            Ok(Ok(())) => {
                self.channels.metrics.count(Count::Channels, "joined");
                return self.session.joined(&join);
            }
            Ok(Err(refused)) => refused,
            Err(_elapsed) => json!({ "reason": "join timeout" }),
        };
        self.channels.metrics.count(Count::Channels, "join_refused");
        self.gone(&join);
        let response = Payload::Json(Json::of(&refused));
        self.reply(&join, reference.as_ref(), Outcome::Error, &response);
    }

    async fn admit(&mut self, frame: Frame, join: &Join) -> Result<(), Value> {
        let refused = |why: &str| json!({ "reason": why });
        let Payload::Json(params) = &frame.payload else { return Err(refused("unmatched topic")) };
        let params: Value = params.decode().unwrap_or_default();
        let claims = self.right(&join.topic, &params).await.map_err(refused)?;
        let entry = Entry { join: join.clone(), reference: frame.reference, params, claims };
        let topic = join.topic.as_str();
        let mut member = self.member(&entry);
        let kind = if topic == "network:updates" {
            (member.slow, member.greeting) = (Slow::DropOldest, Some(self.snapshot()));
            Kind::Network
        } else if let Some(name) = topic.strip_prefix("node:") {
            member.slow = Slow::DropOldest;
            if topic != Topic::node_heartbeat().as_str() {
                let name = name.parse().map_err(|_no_node| refused("unmatched topic"))?;
                member.greeting = Some(self.about(name));
            }
            Kind::Node
        } else if let Some(handler) = self.channels.handlers.of(&join.topic) {
            let (response, pushes) = self.serve(&entry, handler.clone()).await?;
            member.response = response;
            member.presence = handler.presence().then(|| self.shown(&entry, member.id));
            Kind::Service(pushes)
        } else if topic.starts_with("room:") {
            member.presence = Some(self.shown(&entry, member.id));
            Kind::Room
        } else {
            return Err(refused("unmatched topic"));
        };
        for count in self.counts(&kind) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let live = Live { member: member.id, join: join.clone(), claims: entry.claims, kind };
        self.live.insert(join.number, live);
        // Taken out again by whoever waits too long for it.
        match self.channels.router.join(join.topic.clone(), member).await {
            true => Ok(()),
            false => Err(refused("join crashed")),
        }
    }

    /// By what right a client joins a topic.
    async fn right(&self, topic: &Topic, params: &Value) -> Result<Option<Arc<Claims>>, Refusal> {
        let claims = match params.get("token").and_then(Value::as_str) {
            Some(token) => Some(self.channels.verify(token, self.from).await?),
            None => self.claims.clone(),
        };
        let Some(claims) = claims else {
            return if self.channels.anonymous(topic) { Ok(None) } else { Err("unauthorized") };
        };
        if let Some(why) = self.channels.outlived(&claims) {
            return Err(why);
        }
        if claims.allows(Verb::Join, topic) { Ok(Some(claims)) } else { Err("unauthorized") }
    }

    fn member(&self, entry: &Entry) -> Member {
        let resume = entry.params.get("last_seq").map(|seq| match seq {
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
            join_ref: entry.join.join_ref.clone(),
            reference: entry.reference.clone(),
            dialect: self.session.dialect(),
            outbox: self.outbox.clone(),
            slow: Slow::Disconnect,
            response: Map::new(),
            resume,
            presence: None,
            greeting: None,
            ready: None,
        }
    }

    /// Under what key others see a client, and what they see.
    fn shown(&self, entry: &Entry, member: u64) -> (String, String) {
        let node = &self.channels.admin.name;
        let key = match &entry.claims {
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
            let beat = super::feed::beat(&channels.admin, &name);
            vec![("snapshot", Payload::Json(Json::of(&beat)))]
        })
    }

    /// Asks a service's handler, and gives it a task for this client's events.
    async fn serve(
        &self,
        entry: &Entry,
        handler: Arc<dyn Handler>,
    ) -> Result<(Map<String, Value>, Pushes), Value> {
        let client = handler::Client {
            topic: entry.join.topic.clone(),
            claims: entry.claims.clone(),
            publisher: self.channels.publisher.clone(),
        };
        let (asked, who, params) = (handler.clone(), client.clone(), entry.params.clone());
        let answer = tokio::spawn(async move { asked.join(&who, &params).await }).await;
        let Ok(answer) = answer else { return Err(json!({ "reason": "join crashed" })) };
        let response = answer?;
        let (pushes, waiting) = mpsc::channel(WAITING);
        let served = Served {
            handler,
            client,
            join: entry.join.clone(),
            dialect: self.session.dialect(),
            outbox: self.outbox.clone(),
        };
        let (over, join) = (self.ended.0.clone(), entry.join.clone());
        tokio::spawn(async move {
            let (told, crashed) =
                (served.clone(), tokio::spawn(served.run(waiting)).await.is_err());
            if crashed {
                told.end("phx_error", &reason("channel_crash"));
            }
            drop(over.send(join)); // a client that is gone needs no word of it
        });
        Ok((response, pushes))
    }

    fn push(&mut self, frame: Frame, join: &Join) {
        let Some(live) = self.live.get(&join.number) else { return };
        let allowed = live.claims.as_ref().is_none_or(|it| it.allows(Verb::Push, &join.topic));
        let outlived = live.claims.as_ref().and_then(|claims| self.channels.outlived(claims));
        let said = match (&live.kind, outlived, allowed) {
            (_, Some(why), _) => {
                self.reply(join, frame.reference.as_ref(), Outcome::Error, &reason(why));
                return self.end(join, "phx_error", &reason(why));
            }
            // Who may hear of the network may ask for it.
            (Kind::Network, None, _) if frame.event == "view" => match self.view(&frame, join) {
                Ok(()) => return,
                Err(why) => Err(why),
            },
            (_, None, false) => Err("unauthorized"),
            (Kind::Service(pushes), None, true) => {
                let push = handler::Push { event: frame.event, payload: frame.payload };
                match pushes.try_send((push, frame.reference.clone())) {
                    Ok(()) => return,
                    Err(_full) => Err("overloaded"),
                }
            }
            (Kind::Node, None, true) if frame.event != "data" => Err("only data can be sent here"),
            // What the node says there, nobody else says.
            (Kind::Network, None, true) if OWN.contains(&frame.event.as_str()) => Err("reserved"),
            (Kind::Room | Kind::Network | Kind::Node, None, true) => {
                publish(&self.channels, &join.topic, &frame.event, &frame.payload)
            }
        };
        let (outcome, response) = match said {
            Ok(response) => (Outcome::Ok, response),
            Err(why) => (Outcome::Error, reason(why)),
        };
        self.reply(join, frame.reference.as_ref(), outcome, &response);
    }
}

#[derive(Deserialize)]
struct View {
    /// Whose; this node's own unless it names one.
    node: Option<NodeName>,
}

impl Client {
    /// Answers, in a task of its own, what a node sees.
    fn view(&self, frame: &Frame, join: &Join) -> Result<(), Refusal> {
        let asked = match &frame.payload {
            Payload::Json(json) => json.decode::<View>().ok(),
            Payload::Binary(_) => None,
        };
        let node = asked.ok_or("name a node: {\"node\": \"NAME@HOST\"}")?.node;
        let channels = self.channels.clone();
        let place = channels.views.clone().try_acquire_owned().map_err(|_full| "overloaded")?;
        let (outbox, dialect) = (self.outbox.clone(), self.session.dialect());
        let (join, reference) = (join.clone(), frame.reference.clone());
        tokio::spawn(async move {
            let node = node.unwrap_or_else(|| channels.admin.name.clone());
            let (outcome, response) = match sight::of(&channels.admin, &node).await {
                Ok(sight) => (Outcome::Ok, Payload::Json(Json::of(&json!(sight)))),
                Err(why) => (Outcome::Error, reason(&why)),
            };
            let reply = Say::Reply(join.join_ref.as_ref(), reference.as_ref(), outcome, &response);
            // A large view for a slow client makes way for what is newer, and is asked for again.
            outbox.push(reply.encode(dialect, join.topic.as_str()), Slow::DropOldest);
            drop(place);
        });
        Ok(())
    }
}

fn empty() -> Payload {
    Payload::Json(Json::empty())
}

fn publish(
    channels: &Channels,
    topic: &Topic,
    event: &str,
    payload: &Payload,
) -> Result<Payload, Refusal> {
    let spread = channels.publisher.publish(topic, event, payload).map_err(|_long| "too long")?;
    channels.metrics.count(Count::Channels, "published");
    Ok(match spread.missed {
        0 => empty(),
        nodes => Payload::Json(Json::of(&json!({ "missed": nodes }))),
    })
}

impl Drop for Client {
    fn drop(&mut self) {
        let joins: Vec<_> = self.live.values().map(|live| live.join.clone()).collect();
        joins.iter().for_each(|join| self.gone(join));
        self.channels.admin.clients.connected.fetch_sub(1, Ordering::Relaxed);
        self.outbox.close(crate::actors::channel_router::outbox::Close::RESTART);
    }
}

/// A client as a service's handler has it.
#[derive(Clone)]
struct Served {
    handler: Arc<dyn Handler>,
    client: handler::Client,
    join: Join,
    dialect: Dialect,
    outbox: Outbox,
}

impl Served {
    async fn run(self, mut waiting: mpsc::Receiver<(handler::Push, Option<Ref>)>) {
        while let Some((push, reference)) = waiting.recv().await {
            let reply = |outcome, response: &Payload| {
                let join_ref = self.join.join_ref.as_ref();
                self.say(&Say::Reply(join_ref, reference.as_ref(), outcome, response));
            };
            match self.handler.push(&self.client, &push).await {
                Reaction::Reply(response) => reply(Outcome::Ok, &response),
                Reaction::Refuse(response) => reply(Outcome::Error, &response),
                Reaction::Silent => {}
                Reaction::Broadcast => {
                    let publisher = &self.client.publisher;
                    match publisher.publish(&self.client.topic, &push.event, &push.payload) {
                        Ok(_spread) => reply(Outcome::Ok, &empty()),
                        Err(_long) => reply(Outcome::Error, &reason("too long")),
                    }
                }
                Reaction::Close => {
                    self.end("phx_close", &empty());
                    break;
                }
            }
        }
        self.handler.left(&self.client).await;
    }

    fn end(&self, event: &str, why: &Payload) {
        self.say(&Say::End(self.join.join_ref.as_ref(), event, why));
    }

    fn say(&self, what: &Say<'_>) {
        self.outbox.push(what.encode(self.dialect, self.join.topic.as_str()), Slow::Disconnect);
    }
}
