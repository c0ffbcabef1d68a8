//! ChannelRouter: which topics have clients here, and who is present in them, in the whole cluster.
//!
//! - **Owns** the topics' tasks (`channel_router/topic`) and the presence machine.
//! - **Hears** joins and leaves of the gateway's clients; which links are up and down, with words of other nodes'
//!   routers on `channel:presence`; which peers are offline.
//! - **Says** what clients say, as broadcasts on their topic; this node's presences to the other routers.
//! - **After a restart**: knows no topic and nobody. Members of the topics before are told `phx_error`, and
//!   join again; others' presences come back with their answers, within about a second.
//! - **Never** waits for a client, and sees no message: those go from the exchange to a topic's task.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ractor::ActorProcessingErr;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

use crate::actors::exchange::{DeliveryReport, Exchange, Kept, SendError, ServeError, Serving};
use crate::actors::history_log::Recorder;
use crate::actors::news::{Bus, PeerMessage, measure};
use crate::actors::peers::Peers;
use crate::actors::supervisor::{Address, Child, Handle, Mail, Process};
use crate::actors::timer;
use crate::io::metrics::{Count, Metrics};
use crate::proto::channel::Payload;
use crate::proto::channel::envelope::Envelope;
use crate::proto::codec;
use crate::proto::history::Retentions;
use crate::proto::history::words::{Heads, Question};
use crate::proto::node::{Incarnation, NodeName};
use crate::proto::presence::{Attendance, Epoch, Output, PresenceError, To, WORD, Word};
use crate::proto::replay::Position;
use crate::proto::topic::{self as topic_of, Name, Topic};
use crate::proto::wiring::{Ask, Consumer, Notice};

mod marks;
pub mod outbox;
mod services;
mod topic;

use marks::Marks;
pub use services::{Following, PresenceEntry, PresenceNews, Presences, Tracked};
pub use topic::{Greeting, Intercept, Intercepted, Member};
use topic::{Links, Order, Presence as Change, Shared, TopicTask};

/// Words about presences that break the protocol, and presences where a peer may not be, as they are counted.
const FAULT: &str = "presence_fault";
const NOT_ALLOWED: &str = "presence_not_allowed";
/// How long a new topic waits for the other nodes to know that it has members here.
const ACQUAINT: Duration = Duration::from_millis(250);
/// Topics that read what they have on disk, or ask for what others have, at once.
const PLACES: usize = 16;
/// Topics whose publications are numbered; when there are more, all numbering begins anew.
const NUMBERED: usize = 100_000;

/// The last numbers of this node's publications, by topic.
struct Stamps {
    /// Of topics that it begins with.
    epoch: u32,
    last: HashMap<Topic, Position>,
}

impl Stamps {
    fn new() -> Self {
        Self { epoch: rand::random(), last: HashMap::new() }
    }

    /// The next of a topic, for all but this member.
    fn next(&mut self, topic: &Topic, marks: &Marks, except: Option<u64>) -> Position {
        if self.last.len() >= NUMBERED && !self.last.contains_key(topic) {
            *self = Self::new();
        }
        let first = Position { epoch: self.epoch, n: 0, tag: 0 };
        let last = self.last.entry(topic.clone()).or_insert(first);
        let next = Position { n: last.n.saturating_add(1), tag: 0, ..*last };
        *last = Position { tag: marks.tag(topic, &next, except), ..next };
        *last
    }
}

/// Publishes on channels: to clients of all nodes, and to anyone else who subscribes to the topic.
#[derive(Clone)]
pub struct Publisher {
    exchange: Exchange,
    stamps: Arc<Mutex<Stamps>>,
    marks: Marks,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Publisher")
    }
}

impl Publisher {
    /// A publisher through this exchange.
    pub(crate) fn new(exchange: &Exchange) -> Self {
        let (stamps, marks) = (Arc::new(Mutex::new(Stamps::new())), Marks::default());
        Self { exchange: exchange.clone(), stamps, marks }
    }

    fn stamps(&self) -> MutexGuard<'_, Stamps> {
        self.stamps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on from these numbers, which an earlier run of this node gave last and no other run goes on from.
    pub(crate) fn go_on(&self, from: Vec<(Topic, Position)>) {
        self.stamps().last.extend(from);
    }

    /// The last numbers of the topics that are of this kind. What is published from now on is numbered anew.
    pub(crate) fn take(&self, kind: impl Fn(&Topic) -> bool) -> Vec<(Topic, Position)> {
        let stamps = std::mem::replace(&mut *self.stamps(), Stamps::new());
        stamps.last.into_iter().filter(|(topic, _)| kind(topic)).collect()
    }

    /// The last number that it gave on a topic.
    fn last(&self, topic: &Topic) -> Option<Position> {
        self.stamps().last.get(topic).copied()
    }

    /// To every node, without waiting: one that has no room misses it, and the result says so.
    ///
    /// # Errors
    /// [`SendError::TooLong`], also for an event that is empty or over 255 bytes; nothing was sent.
    pub fn publish(
        &self,
        topic: &Topic,
        event: &str,
        payload: &Payload,
    ) -> Result<DeliveryReport, SendError> {
        self.send(topic, event, payload, None, |bytes| self.exchange.try_publish(topic, bytes))
    }

    /// As [`Publisher::publish`], but not to this member of this node.
    #[cfg(feature = "gateway")]
    pub(crate) fn publish_except(
        &self,
        topic: &Topic,
        event: &str,
        payload: &Payload,
        member: u64,
    ) -> Result<DeliveryReport, SendError> {
        let send = |bytes| self.exchange.try_publish(topic, bytes);
        self.send(topic, event, payload, Some(member), send)
    }

    /// To the clients of this node alone.
    ///
    /// # Errors
    /// As [`Publisher::publish`].
    #[cfg(feature = "gateway")]
    pub(crate) fn publish_here(
        &self,
        topic: &Topic,
        event: &str,
        payload: &Payload,
    ) -> Result<DeliveryReport, SendError> {
        self.send(topic, event, payload, None, |bytes| self.exchange.publish_here(topic, bytes))
    }

    fn send(
        &self,
        topic: &Topic,
        event: &str,
        payload: &Payload,
        except: Option<u64>,
        send: impl FnOnce(bytes::Bytes) -> Result<DeliveryReport, SendError>,
    ) -> Result<DeliveryReport, SendError> {
        // Held while it is sent: numbers leave in their order.
        let mut stamps = self.stamps();
        let stamp = stamps.next(topic, &self.marks, except);
        let bytes = Envelope::encode(stamp, event, payload);
        send(bytes.ok_or(SendError::TooLong(event.len()))?)
    }
}

/// Answers other nodes' routers, until the result is dropped: what they said before has arrived then.
///
/// # Errors
/// [`ServeError`]; nothing changed.
pub fn answer(
    exchange: &Exchange,
    router: &ChannelRouter,
    publisher: &Publisher,
) -> Result<Serving, ServeError> {
    let (router, publisher) = (router.clone(), publisher.clone());
    exchange.serve(Name::channels(), move |asked| {
        let (router, publisher) = (router.clone(), publisher.clone());
        async move {
            if asked.payload.is_empty() {
                return Ok(Bytes::new());
            }
            let question = Question::decode(&asked.payload)?;
            let (to, answer) = oneshot::channel();
            let own = match &question {
                Question::Heads(topic) => publisher.last(topic),
                Question::Tail(..) => None,
            };
            router.handle.cast(Msg::Asked(question, to));
            match answer.await {
                Ok(answer) => Ok(answer),
                // It does not follow the topic.
                Err(_) => Ok(Heads { own, ..Heads::default() }.encode()?.into()),
            }
        }
    })
}

/// What the actor is made from.
#[derive(Clone)]
pub struct Setup {
    /// This node's life; NodeManager may raise it.
    pub incarnation: Arc<AtomicU64>,
    /// The peers, and who ends their links.
    pub peers: Peers,
    /// How much of each topic is kept.
    pub rules: Retentions,
    /// What keeps topics on disk, where any are.
    pub recorder: Option<Recorder>,
    /// Whose publications those of this node are.
    pub publisher: Publisher,
}

enum Msg {
    Join(Topic, Box<Member>),
    Leave(Topic, u64),
    Update(u64, String, oneshot::Sender<Result<(), PresenceError>>),
    Work,
    Idle(Topic, u64),
    Asked(Question, oneshot::Sender<Bytes>),
    Notice(Notice<PeerMessage>),
}

/// The handle.
#[derive(Clone)]
pub struct ChannelRouter {
    handle: Handle<Msg>,
    bus: Bus,
    metrics: Metrics,
    marks: Marks,
    numbers: Arc<AtomicU64>,
    /// What services want.
    book: Arc<services::Book>,
}

impl ChannelRouter {
    /// A router that does not run yet. What clients say goes through this publisher.
    pub fn new(bus: &Bus, publisher: &Publisher, metrics: &Metrics) -> Self {
        Self {
            handle: Handle::new("channel_router", metrics),
            marks: publisher.marks.clone(),
            bus: bus.clone(),
            metrics: metrics.clone(),
            numbers: Arc::default(),
            book: Arc::default(),
        }
    }

    /// The child to put under a supervisor.
    pub fn child(&self, setup: Setup) -> Child {
        Child::actor::<Inside>(&self.handle, (self.clone(), setup))
    }

    /// A number for a member.
    pub fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Makes a client a member; it gets the reply to its join, and all that follows. False when the router did not
    /// come to it: the client gets no reply then.
    pub async fn join(&self, topic: Topic, mut member: Member) -> bool {
        let (ready, joined) = oneshot::channel();
        member.ready = Some(ready);
        self.handle.cast(Msg::Join(topic, Box::new(member)));
        joined.await.is_ok()
    }

    /// A member shows another meta. The answer comes with the result, which fails when the router did not come to it.
    pub fn update(&self, id: u64, meta: String) -> oneshot::Receiver<Result<(), PresenceError>> {
        let (done, updated) = oneshot::channel();
        self.handle.cast(Msg::Update(id, meta, done));
        updated
    }

    /// A member is none any more.
    pub fn leave(&self, topic: Topic, id: u64) {
        self.handle.cast(Msg::Leave(topic, id));
    }
}

struct Running {
    orders: mpsc::UnboundedSender<Order>,
    /// Joins ever: a topic that knows of fewer is about to get another.
    joins: u64,
    on_disk: bool,
}

struct Inside {
    router: ChannelRouter,
    setup: Setup,
    myself: Address<Msg>,
    topics: BTreeMap<Topic, Running>,
    links: Links,
    attendance: Attendance,
    /// What the presences of each peer cost.
    kept: BTreeMap<NodeName, Kept>,
    shared: Shared,
}

impl Inside {
    fn join(&mut self, topic: Topic, member: Box<Member>) {
        if !self.topics.contains_key(&topic) && !self.open(&topic) {
            return self.router.metrics.count(Count::Channels, "too_many_topics");
        }
        // What peers would not take is not shown here either.
        let may = self.router.bus.exchange().capabilities().may_publish(&topic);
        if let Some((key, meta)) = member.presence.as_ref().filter(|_| may) {
            let mut out = Vec::new();
            let place = (&topic, key.as_str(), meta.as_str());
            if let Err(refused) = self.attendance.join(member.id, place, timer::now(), &mut out) {
                tracing::debug!(%topic, %refused, "not present");
                self.router.metrics.count(Count::Channels, "presence_refused");
            }
            self.perform(out);
        }
        if let Some(running) = self.topics.get_mut(&topic) {
            running.joins += 1;
            running.order(Order::Join(member, self.links.clone()));
        }
    }

    fn open(&mut self, topic: &Topic) -> bool {
        let Ok(subscription) = self.router.bus.exchange().subscribe(topic.clone()) else {
            return false;
        };
        let (orders, heard) = mpsc::unbounded_channel();
        let (to, about) = (self.myself.clone(), topic.clone());
        // A router that ended took its topics with it.
        let idle = move |joins| drop(to.cast(Mail::Message(Msg::Idle(about.clone(), joins))));
        let mut hall =
            TopicTask::new(topic.clone(), subscription, heard, Box::new(idle), self.shared.clone());
        let (acquainted, links) = (self.acquainted(), self.links.clone());
        // It outlives this actor by as long as it takes to tell its members.
        tokio::spawn(async move {
            acquainted.await;
            hall.restore().await;
            hall.catch_up(&links).await;
            hall.run().await;
        });
        let on_disk = self.shared.rules.of(topic).disk;
        let running = Running { orders, joins: 0, on_disk };
        let there = self.attendance.presence().entries(topic);
        running.order(Order::Present(there.cloned().map(Change::Joined).collect()));
        self.topics.insert(topic.clone(), running);
        true
    }

    /// Waits until the linked peers know what this node subscribes to now: anyone who hears that it has joined may be
    /// told things at once. One that does not answer in time holds up nobody.
    fn acquainted(&self) -> impl Future<Output = ()> + Send + 'static {
        let asks = self.attendance.linked().iter().cloned().map(|peer| {
            let bus = self.router.bus.clone();
            let to = topic_of::Address { name: Name::channels(), node: Some(peer) };
            async move { drop(bus.exchange().call(&to, Bytes::new(), ACQUAINT).await) }
        });
        let asks: Vec<_> = asks.collect();
        async move {
            let mut asking = JoinSet::new();
            asks.into_iter().for_each(|ask| drop(asking.spawn(ask)));
            while asking.join_next().await.is_some() {}
        }
    }

    fn leave(&mut self, topic: &Topic, id: u64) {
        if let Some(running) = self.topics.get(topic) {
            running.order(Order::Leave(id));
        }
        let mut out = Vec::new();
        self.attendance.leave(id, timer::now(), &mut out);
        self.perform(out);
    }

    fn update(&mut self, id: u64, meta: &str) -> Result<(), PresenceError> {
        let mut out = Vec::new();
        let updated = self.attendance.update(id, meta, timer::now(), &mut out);
        if updated.is_err() {
            self.router.metrics.count(Count::Channels, "presence_refused");
        }
        self.perform(out);
        updated
    }

    /// Does what services want.
    fn work(&mut self) {
        if !self.router.book.is_dirty() {
            return;
        }
        let (mut out, router) = (Vec::new(), self.router.clone());
        router.book.fulfil(&mut self.attendance, &router.metrics, timer::now(), &mut out);
        self.perform(out);
        router.book.answer(self.attendance.presence());
    }

    fn perform(&mut self, out: Vec<Output>) {
        // What happens together is told together: an update is a leave and a join.
        let mut changed: BTreeMap<Topic, Vec<Change>> = BTreeMap::new();
        for output in out {
            match output {
                Output::Joined(entry) => {
                    changed.entry(entry.topic.clone()).or_default().push(Change::Joined(entry));
                }
                Output::Left(entry) => {
                    changed.entry(entry.topic.clone()).or_default().push(Change::Left(entry));
                }
                Output::Say(To::One(peer), word) => self.send([&peer], &word),
                Output::Say(To::All, word) => self.send(self.attendance.linked(), &word),
                Output::Fault(peer, rule) => {
                    self.router.metrics.count(Count::Channels, FAULT);
                    tracing::warn!(%peer, rule, "presence words that break the rules");
                    self.setup.peers.ask(Ask::Cut(peer));
                }
            }
        }
        for (topic, changes) in changed {
            self.router.book.tell(&topic, &changes);
            if let Some(running) = self.topics.get(&topic) {
                running.order(Order::Present(changes));
            }
        }
    }

    fn send<'a>(&self, peers: impl IntoIterator<Item = &'a NodeName>, word: &Word) {
        let Ok(word) = codec::encode(word) else {
            return self.router.metrics.count(Count::Channels, FAULT);
        };
        for peer in peers {
            self.router.bus.send(peer, Topic::channel_presence(), word.clone());
        }
    }

    /// Other nodes' topics may have what those here do not.
    fn links(&mut self, notice: &Notice<PeerMessage>) {
        match notice {
            Notice::Up(peer, _) => {
                Arc::make_mut(&mut self.links).insert(peer.clone(), self.router.number());
                let kept = self.topics.values().filter(|running| running.on_disk);
                kept.for_each(|running| running.order(Order::Linked(self.links.clone())));
            }
            Notice::Down(peer, _) | Notice::Forgotten(peer) | Notice::Offline(peer) => {
                Arc::make_mut(&mut self.links).remove(peer);
            }
            Notice::Message(..)
            | Notice::Renewed(_)
            | Notice::Revoked
            | Notice::Equivocation(_)
            | Notice::Changed => {}
        }
    }

    fn notice(&mut self, notice: Notice<PeerMessage>, out: &mut Vec<Output>) {
        self.links(&notice);
        let from = if let Notice::Message(peer, message) = &notice {
            let kept = self.kept.entry(peer.clone());
            kept.or_insert_with(|| message.account().keep());
            Some(peer.clone())
        } else {
            None
        };
        if let Notice::Offline(peer) = &notice {
            self.kept.remove(peer);
        }
        let read = |message: PeerMessage| {
            let word: Word = codec::decode(&message, WORD).map_err(|_malformed| FAULT)?;
            if word.is_within(message.capabilities()) { Ok(word) } else { Err(NOT_ALLOWED) }
        };
        match notice.read(read) {
            Ok(notice) => self.attendance.handle(notice, timer::now(), out),
            Err(fault) => {
                self.router.metrics.count(Count::Channels, fault);
                let cut = from.iter().filter(|_| fault == FAULT);
                cut.for_each(|peer| self.setup.peers.ask(Ask::Cut(peer.clone())));
            }
        }
        if let Some(peer) = from
            && let Some(kept) = self.kept.get_mut(&peer)
        {
            kept.set(self.attendance.presence().bytes_of(&peer));
        }
    }
}

impl Running {
    fn order(&self, order: Order) {
        // A topic that has ended is forgotten when the router hears of it.
        drop(self.orders.send(order));
    }
}

impl Process for Inside {
    const NAME: &'static str = "channel_router";
    type Message = Msg;
    type Setup = (ChannelRouter, Setup);

    async fn start(
        (router, setup): (ChannelRouter, Setup),
        myself: &Address<Msg>,
    ) -> Result<Self, ActorProcessingErr> {
        // An actor that ended attaches anew when it starts.
        let to = myself.clone();
        router.bus.attach(Consumer::ChannelRouter, move |notice| {
            drop(to.cast(Mail::Message(Msg::Notice(notice))));
        });
        router.book.recall();
        drop(myself.cast(Mail::Message(Msg::Work)));
        let life = Incarnation(setup.incarnation.load(Ordering::Relaxed));
        let epoch = Epoch { life, boot: router.number() };
        let (me, now) = (router.bus.exchange().name().clone(), timer::now());
        let attendance = Attendance::new(me, epoch, now, rand::make_rng());
        let shared = Shared {
            metrics: router.metrics.clone(),
            logged: Arc::default(),
            quiet: Arc::default(),
            rules: Arc::new(setup.rules.clone()),
            recorder: setup.recorder.clone(),
            publisher: setup.publisher.clone(),
            me: router.bus.exchange().name().clone(),
            exchange: router.bus.exchange().clone(),
            places: Arc::new(Semaphore::new(PLACES)),
            marks: router.marks.clone(),
        };
        let recorder = setup.recorder.clone();
        let kept = tokio::task::spawn_blocking(move || recorder.map(|it| it.topics())).await;
        let mut inside = Self {
            router,
            setup,
            myself: myself.clone(),
            topics: BTreeMap::new(),
            links: Links::default(),
            attendance,
            kept: BTreeMap::new(),
            shared,
        };
        // What is on disk shall have no holes, whether or not somebody is here.
        for topic in kept?.unwrap_or_default() {
            if !inside.open(&topic) {
                break;
            }
        }
        Ok(inside)
    }

    fn handle(&mut self, message: Msg) -> Result<(), ActorProcessingErr> {
        let mut out = Vec::new();
        let _paid = if let Msg::Notice(notice) = &message { measure(notice) } else { None };
        match message {
            Msg::Join(topic, member) => self.join(topic, member),
            Msg::Leave(topic, id) => self.leave(&topic, id),
            Msg::Update(id, meta, done) => done.send(self.update(id, &meta)).unwrap_or_else(drop),
            Msg::Asked(question, to) => {
                let (Question::Heads(topic) | Question::Tail(topic, _)) = &question;
                // Who is not answered by a topic is told that there is none.
                if let Some(running) = self.topics.get(topic) {
                    running.order(Order::Asked(question, to));
                }
            }
            Msg::Idle(topic, joins) => {
                if self.topics.get(&topic).is_some_and(|running| running.joins == joins) {
                    self.topics.remove(&topic);
                }
            }
            Msg::Notice(notice) => self.notice(notice, &mut out),
            Msg::Work => {}
        }
        self.perform(out);
        self.work();
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        self.attendance.deadline()
    }

    fn tick(&mut self) -> Result<(), ActorProcessingErr> {
        let mut out = Vec::new();
        self.attendance.tick(timer::now(), &mut out);
        self.perform(out);
        self.work();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
