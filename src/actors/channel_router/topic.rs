//! One topic of this node: its members, what they missed, and who is present.
//!
//! A task of its own, so that a busy topic is in nobody's way. It owns the node's subscription to the topic,
//! the members' outboxes, the log that a member may resume from, and the presence that members are told.
//! Invariants:
//! 1. A member gets the reply to its join first, then what it asks for of the past, then every message from that
//!    moment on, once and in order. What is for its join alone has the join's reference.
//! 2. A message is encoded once for all members that want it alike.
//! 3. Presence takes at most [`RATE`] bytes a second of a topic: changes that come faster are told together, and
//!    newcomers wait for the state. A member is told changes only after the state that they change.
//! 4. When the router is gone, the members are told to join again.
//! 5. What a client publishes cannot say where a message stands: a member that resumes gets no `seq` but ours.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::{mpsc, oneshot};

use super::outbox::{ClientOverflow, ClientQueue};
use crate::actors::exchange::{Message, Received, Subscription};
use crate::actors::timer;
use crate::io::clock;
use crate::io::metrics::{Count, Metrics};
use crate::proto::channel::envelope::Envelope;
use crate::proto::channel::{Dialect, Encoded, Json, Outcome, Payload, Ref, Say, reason, tail};
use crate::proto::history::{Ask, LINGER, Retentions, Rule};
use crate::proto::presence::{self as entry, Entry};
use crate::proto::replay::{Bounds, Log, Verdict};
use crate::proto::topic::Topic;

mod past;

/// Messages that are taken together.
const TOGETHER: usize = 256;
/// Topics without members that go on for longer than [`LINGER`], at most.
const QUIET: usize = 10_000;
/// Bytes that the logs of all topics hold together.
pub(super) const LOGGED: usize = 64 * 1024 * 1024;
/// With this begins the cursor of who came before the first message.
const START: &str = "+";
/// Bytes of presence a second.
const RATE: usize = 64 * 1024 * 1024;
/// What the answer to a join says of the past, and messages of where they stand: nobody else says it.
const OWN: [&str; 4] = [SEQ, "replayed", "gap", "more"];
const SEQ: &str = "seq";
/// Between two changes of presence that are told.
const TICK: Duration = Duration::from_millis(20);

/// What a member gets when it has joined, made at that moment.
pub type Greeting = Box<dyn FnOnce() -> Vec<(&'static str, Payload)> + Send>;

/// A client's join, granted.
pub struct Member {
    /// Unique in the node.
    pub id: u64,
    /// The client's reference of the join.
    pub join_ref: Option<Ref>,
    /// Its reference of the request.
    pub reference: Option<Ref>,
    /// How it wants its frames.
    pub dialect: Dialect,
    /// Where they go.
    pub outbox: ClientQueue,
    /// What happens when it is too slow.
    pub slow: ClientOverflow,
    /// The answer to its join; an object.
    pub response: serde_json::Map<String, serde_json::Value>,
    /// It resumes here: it asked to be told where each message stands. The text is what it gave.
    pub resume: Option<String>,
    /// What it asks for of the topic's history, unless it can resume.
    pub history: Option<Ask>,
    /// Under what key others see it, and what they see of it: a JSON object.
    pub presence: Option<(String, String)>,
    /// What else it gets first.
    pub greeting: Option<Greeting>,
    /// Who waits for it to be a member; the router's.
    pub ready: Option<oneshot::Sender<()>>,
}

/// What the router tells a topic.
pub(super) enum Order {
    Join(Box<Member>),
    Leave(u64),
    Joined(Arc<Entry>),
    Left(Arc<Entry>),
}

/// What all topics share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) metrics: Metrics,
    /// Bytes in all logs.
    pub(super) logged: Arc<AtomicUsize>,
    /// Topics without members.
    pub(super) quiet: Arc<AtomicUsize>,
    /// How much of each topic is kept.
    pub(super) rules: Arc<Retentions>,
}

impl Shared {
    /// A log's cost has changed; what all of them cost.
    pub(super) fn count(&self, before: usize, after: usize) -> usize {
        let change = after.wrapping_sub(before);
        self.logged.fetch_add(change, Ordering::Relaxed).wrapping_add(change)
    }
}

/// What a log of so many messages holds: the default's share for each 512 of them, four shares at most.
fn bounds(count: usize) -> Bounds {
    let Bounds { entries, bytes } = Bounds::default();
    Bounds { entries: count, bytes: bytes * count.div_ceil(entries).min(4) }
}

/// By the wall clock, in milliseconds since the Unix epoch.
fn now() -> u64 {
    clock::millis()
}

/// A message as it was told, for those who missed it.
struct Logged {
    /// When this node took it, in milliseconds since the Unix epoch.
    at: u64,
    /// Bytes.
    cost: usize,
    event: String,
    payload: Payload,
    /// Where a member stands that has seen it; none for what has no number.
    cursor: OnceLock<String>,
}

pub(super) struct TopicTask {
    topic: Topic,
    subscription: Subscription,
    orders: mpsc::UnboundedReceiver<Order>,
    idle: Box<dyn Fn(u64) + Send>,
    shared: Shared,
    rule: Rule,
    members: BTreeMap<u64, Box<Member>>,
    log: Log<Arc<Logged>>,
    /// How many messages the log ever took, and the cursor of who was here before the first of them.
    taken: usize,
    start: String,
    presence: Present,
    /// Since when it has no members.
    empty: Option<Instant>,
    /// Joins ever.
    joins: u64,
}

impl TopicTask {
    pub(super) fn new(
        topic: Topic,
        subscription: Subscription,
        orders: mpsc::UnboundedReceiver<Order>,
        idle: Box<dyn Fn(u64) + Send>,
        shared: Shared,
    ) -> Self {
        let rule = shared.rules.of(&topic);
        // Of what was said before this moment nothing is known.
        let mut log = Log::within(bounds(rule.count));
        log.missed();
        Self {
            topic,
            subscription,
            orders,
            idle,
            shared,
            rule,
            members: BTreeMap::new(),
            log,
            taken: 0,
            start: format!("{START}{:x}", rand::random::<u64>()),
            presence: Present::default(),
            empty: None,
            joins: 0,
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            let due = self.deadline();
            let timer = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                order = self.orders.recv() => match order {
                    Some(order) => {
                        self.obey(order);
                        while let Ok(order) = self.orders.try_recv() {
                            self.obey(order);
                        }
                    }
                    None => return self.abandon(),
                },
                () = timer => {}
                received = self.subscription.recv() => match received {
                    Some(received) => self.hear(received),
                    None => return self.abandon(),
                },
            }
            let now = timer::now();
            self.presence.announce(&self.topic, &self.members, now);
            if self.gone().is_some_and(|at| at <= now) {
                self.empty = Some(now); // asked again, should it not be heard
                (self.idle)(self.joins);
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        [self.gone(), self.presence.due()].into_iter().flatten().min()
    }

    /// When it has been without members for long enough.
    fn gone(&self) -> Option<Instant> {
        let crowded = self.shared.quiet.load(Ordering::Relaxed) > QUIET;
        let linger = match self.rule.age {
            Some(age) if age < LINGER => age,
            Some(age) if !crowded && !self.log.is_empty() => age,
            Some(_) | None => LINGER,
        };
        self.empty.map(|since| since + linger)
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Join(member) => self.join(member),
            Order::Leave(id) => drop(self.members.remove(&id)),
            Order::Joined(entry) => self.presence.joined(&entry),
            Order::Left(entry) => self.presence.left(&entry),
        }
        match (self.members.is_empty(), self.empty) {
            (true, None) => {
                self.empty = Some(timer::now());
                self.shared.quiet.fetch_add(1, Ordering::Relaxed);
            }
            (false, Some(_)) => {
                self.empty = None;
                self.shared.quiet.fetch_sub(1, Ordering::Relaxed);
            }
            (true, Some(_)) | (false, None) => {}
        }
    }

    fn join(&mut self, mut member: Box<Member>) {
        self.joins += 1;
        let past = self.past(member.resume.as_deref(), member.history);
        let numbered = member.resume.is_some();
        let mut response = std::mem::take(&mut member.response);
        if numbered || member.history.is_some() {
            response.retain(|name, _| !OWN.contains(&name.as_str()));
        }
        past.describe(&mut response);
        // Who is given messages stands where the last of them says.
        if numbered && past.stands() {
            response.insert(SEQ.into(), self.cursor().into());
        }
        let topic = self.topic.as_str();
        let (join_ref, reference) = (member.join_ref.as_ref(), member.reference.as_ref());
        let payload = Payload::Json(Json::of(&response));
        let reply = Say::Reply(join_ref, reference, Outcome::Ok, &payload);
        let mut frames: Vec<_> = reply.encode(member.dialect, topic).into_iter().collect();
        let frames_of =
            |kept: &Arc<Logged>| self.frames(kept, member.dialect, numbered, Some(join_ref));
        frames.extend(past.messages.iter().flat_map(frames_of));
        for (event, payload) in member.greeting.take().map(|make| make()).unwrap_or_default() {
            let push = Say::Push(member.join_ref.as_ref(), event, &payload);
            frames.extend(push.encode(member.dialect, topic));
        }
        member.outbox.welcome(frames);
        if member.presence.is_some() {
            self.presence.newcomers.insert(member.id);
        }
        if let Some(ready) = member.ready.take() {
            ready.send(()).unwrap_or(()); // who gave up waiting leaves
        }
        self.members.insert(member.id, member);
    }

    /// Where a member stands that has just joined.
    fn cursor(&self) -> String {
        if self.taken == 0 { self.start.clone() } else { self.log.cursor().to_string() }
    }

    fn hear(&mut self, received: Received) {
        let mut heard = Vec::new();
        let mut next = Some(received);
        while let Some(received) = next {
            match received {
                Received::Message(message) => heard.extend(self.take(&message)),
                Received::Missed(messages) => {
                    self.shared.metrics.add(Count::Channels, "missed", messages);
                    self.forget();
                }
            }
            next = if heard.len() < TOGETHER { self.subscription.try_recv() } else { None };
        }
        let mut shapes = Shapes::default();
        for member in self.members.values() {
            let (dialect, numbered) = (member.dialect, member.resume.is_some());
            let make = || {
                heard.iter().flat_map(|kept| self.frames(kept, dialect, numbered, None)).collect()
            };
            let frames = shapes.of((dialect, numbered), make);
            member.outbox.push(frames.iter().cloned(), member.slow);
        }
        let delivered = heard.len() * self.members.len();
        self.shared.metrics.add(Count::Channels, "delivered", delivered as u64);
        self.sweep();
    }

    fn take(&mut self, message: &Message) -> Option<Arc<Logged>> {
        let Some(Envelope { stamp, event, payload }) = Envelope::decode(&message.payload) else {
            self.shared.metrics.count(Count::Channels, "malformed");
            return None;
        };
        let (at, cost) = (now(), message.payload.len());
        let kept = Arc::new(Logged { at, cost, event, payload, cursor: OnceLock::new() });
        // What has no number could not be told from what was missed: it is not kept.
        let Some(stamp) = stamp else { return Some(kept) };
        let before = self.log.cost();
        let verdict = self.log.push(&message.from, stamp, cost, kept.clone());
        if verdict == Verdict::Ignored {
            return None;
        }
        self.taken += 1;
        kept.cursor.get_or_init(|| self.log.cursor().to_string());
        if self.shared.count(before, self.log.cost()) > LOGGED {
            self.cut();
        }
        self.expire();
        Some(kept)
    }

    /// The logs of all topics hold too much: this one lets go of half.
    fn cut(&mut self) {
        let before = self.log.cost();
        self.log.cut(before / 2);
        self.shared.count(before, self.log.cost());
        self.shared.metrics.count(Count::Channels, "history_cut");
    }

    /// Nothing of the past can be resumed from here on.
    fn forget(&mut self) {
        let before = self.log.cost();
        self.taken += 1; // at least
        self.log.missed();
        self.shared.count(before, self.log.cost());
    }

    /// A message, for one join or, without one, for all members. Those who are told where it stands (`numbered`) are
    /// told so in the payload if that is an object, otherwise in an event `seq` that follows it; what a publisher
    /// said under that name is left out for them.
    fn frames(
        &self,
        kept: &Logged,
        dialect: Dialect,
        numbered: bool,
        join: Option<Option<&Ref>>,
    ) -> Vec<Encoded> {
        let encode = |event: &str, payload: &Payload| {
            let say = match join {
                Some(join_ref) => Say::Push(join_ref, event, payload),
                None => Say::Broadcast(event, payload),
            };
            say.encode(dialect, self.topic.as_str())
        };
        let object = match &kept.payload {
            Payload::Json(json) if numbered && json.is_object() => Some(json),
            Payload::Json(_) | Payload::Binary(_) => None,
        };
        match (kept.cursor.get().filter(|_| numbered), object) {
            (None, None) => encode(&kept.event, &kept.payload).into_iter().collect(),
            (None, Some(json)) => {
                encode(&kept.event, &Payload::Json(json.without(SEQ))).into_iter().collect()
            }
            (Some(cursor), Some(json)) => {
                let payload = Payload::Json(json.with(SEQ, cursor));
                encode(&kept.event, &payload).into_iter().collect()
            }
            (Some(cursor), None) => {
                let seq = encode(SEQ, &Payload::Json(Json::empty().with(SEQ, cursor)));
                [encode(&kept.event, &kept.payload), seq].into_iter().flatten().collect()
            }
        }
    }

    /// Lets go of members whose connection has ended, and counts what they lost.
    fn sweep(&mut self) {
        let metrics = &self.shared.metrics;
        self.members.retain(|_, member| {
            match member.outbox.dropped() {
                0 => {}
                frames => metrics.add(Count::Channels, "dropped_slow", frames),
            }
            !member.outbox.is_closed()
        });
    }

    /// The router is gone: members join again.
    fn abandon(self) {
        for member in self.members.values() {
            let why = reason("channel_crash");
            let end = Say::End(member.join_ref.as_ref(), "phx_error", &why);
            member.outbox.push(end.encode(member.dialect, self.topic.as_str()), member.slow);
        }
    }
}

impl Drop for TopicTask {
    fn drop(&mut self) {
        self.shared.count(self.log.cost(), 0);
        if self.empty.is_some() {
            self.shared.quiet.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Frames for members that want them alike, made when the first asks.
#[derive(Default)]
struct Shapes(Vec<((Dialect, bool), Vec<Encoded>)>);

impl Shapes {
    fn of(&mut self, shape: (Dialect, bool), make: impl FnOnce() -> Vec<Encoded>) -> &[Encoded] {
        let at = self.0.iter().position(|(made, _)| *made == shape).unwrap_or_else(|| {
            self.0.push((shape, make()));
            self.0.len() - 1
        });
        self.0.get(at).map_or(&[], |(_, frames)| frames)
    }
}

/// Metas, with their references in them, by key and reference.
type Metas = BTreeMap<Box<str>, BTreeMap<entry::Ref, Json>>;

/// Who is present, and what the members know of it.
#[derive(Default)]
struct Present {
    state: Metas,
    joins: Metas,
    leaves: Metas,
    newcomers: BTreeSet<u64>,
    /// Nothing is told before.
    next: Option<Instant>,
}

#[derive(Serialize)]
struct Listed<'a> {
    metas: Vec<&'a RawValue>,
}

#[derive(Serialize)]
struct Diff<'a> {
    joins: BTreeMap<&'a str, Listed<'a>>,
    leaves: BTreeMap<&'a str, Listed<'a>>,
}

fn listed(metas: &Metas) -> BTreeMap<&str, Listed<'_>> {
    let raw = |json| Json::decode(json).ok();
    let of = metas.iter().map(|(key, of)| (&**key, of.values().filter_map(raw).collect()));
    of.map(|(key, metas)| (key, Listed { metas })).collect()
}

fn remove(metas: &mut Metas, entry: &Entry) -> Option<Json> {
    let of = metas.get_mut(&entry.key)?;
    let meta = of.remove(&entry.reference);
    if of.is_empty() {
        metas.remove(&entry.key);
    }
    meta
}

impl Present {
    fn joined(&mut self, entry: &Entry) {
        let Some(meta) = Json::read(entry.shown().into()) else { return };
        for metas in [&mut self.state, &mut self.joins] {
            let of = metas.entry(entry.key.clone()).or_default();
            of.insert(entry.reference, meta.clone());
        }
    }

    fn left(&mut self, entry: &Entry) {
        let Some(meta) = remove(&mut self.state, entry) else { return };
        // Who came and went before anybody was told needs no telling.
        if remove(&mut self.joins, entry).is_none() {
            let of = self.leaves.entry(entry.key.clone()).or_default();
            of.insert(entry.reference, meta);
        }
    }

    fn news(&self) -> bool {
        self.joins.len() + self.leaves.len() + self.newcomers.len() > 0
    }

    /// When there is something to tell that had to wait.
    fn due(&self) -> Option<Instant> {
        self.next.filter(|_| self.news())
    }

    /// Tells the members what has changed, and newcomers all, if it is time.
    fn announce(&mut self, topic: &Topic, members: &BTreeMap<u64, Box<Member>>, now: Instant) {
        if !self.news() || self.next.is_some_and(|next| next > now) {
            return;
        }
        let newcomers = std::mem::take(&mut self.newcomers);
        let (joins, leaves) = (std::mem::take(&mut self.joins), std::mem::take(&mut self.leaves));
        let mut spent = 0;
        let mut give = |member: &Member, frames: &[Encoded]| {
            spent += frames.iter().map(Encoded::length).sum::<usize>();
            member.outbox.push(frames.iter().cloned(), member.slow);
        };
        if joins.len() + leaves.len() > 0 {
            let diff = Json::of(&Diff { joins: listed(&joins), leaves: listed(&leaves) });
            let (payload, mut shapes) = (Payload::Json(diff), Shapes::default());
            let told =
                |member: &&Member| member.presence.is_some() && !newcomers.contains(&member.id);
            for member in members.values().map(Box::as_ref).filter(told) {
                let say = Say::Broadcast("presence_diff", &payload);
                let make = || say.encode(member.dialect, topic.as_str()).into_iter().collect();
                give(member, shapes.of((member.dialect, false), make));
            }
        }
        if !newcomers.is_empty() {
            let state = Json::of(&listed(&self.state));
            let payload = Payload::Json(state.clone());
            // Each join has a reference of its own, before a state that all of them share.
            let tails = [Dialect::V1, Dialect::V2].map(|dialect| (dialect, tail(dialect, &state)));
            for member in newcomers.iter().filter_map(|id| members.get(id)) {
                let say = Say::Push(member.join_ref.as_ref(), "presence_state", &payload);
                let tail = tails.iter().find(|(dialect, _)| *dialect == member.dialect);
                let frame =
                    tail.map(|(dialect, tail)| say.with_tail(*dialect, topic.as_str(), tail));
                give(member, frame.as_slice());
            }
        }
        let pause = Duration::from_secs_f64(spent as f64 / RATE as f64);
        self.next = (spent > 0).then(|| now + pause.max(TICK));
    }
}
