//! ChannelRouter: which topics have clients here, and who is present in them, in the whole cluster.
//!
//! - **Owns** the topics' tasks (`channel_router/topic`) and the presence machine.
//! - **Hears** joins and leaves of the gateway's clients; which links are up and down, with words of other nodes'
//!   routers on `channel:presence`; which peers are offline.
//! - **Says** what clients say, as broadcasts on their topic; this node's presences to the other routers.
//! - **After a restart**: knows no topic and nobody. Members of the topics before are told `phx_error`, and
//!   join again; others' presences come back with their answers, within about a second.
//! - **Never** waits for a client, and sees no message: those go from the exchange to a topic's task.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ractor::ActorProcessingErr;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::actors::exchange::{Exchange, Kept, ServeError, Serving};
use crate::actors::history_log::Recorder;
use crate::actors::news::{Bus, PeerMessage, measure};
use crate::actors::peers::Peers;
use crate::actors::supervisor::{Address, Child, Handle, Mail, Process};
use crate::actors::timer;
use crate::io::metrics::{Count, Metrics};
use crate::proto::codec;
use crate::proto::history::words::{Heads, Question};
use crate::proto::history::{Ask as History, Retentions};
use crate::proto::node::{Incarnation, NodeName};
use crate::proto::presence::{Attendance, Epoch, Holder, Output, PresenceError, To, WORD, Word};
use crate::proto::topic::{Name, Topic};
use crate::proto::wiring::{Ask, Consumer, Notice};

mod handing;
mod marks;
pub mod outbox;
mod publisher;
mod reading;
mod services;
mod topic;

use marks::Marks;
pub use publisher::Publisher;
pub use reading::{HistoryEntry, TopicHistory};
pub use services::{Following, PresenceEntry, PresenceNews, Presences, Tracked};
pub use topic::{Greeting, Intercept, Intercepted, Member};
use topic::{Links, Order, Presence as Change, Shared, TopicTask};

/// Words about presences that break the protocol, and presences where a peer may not be, as they are counted.
const FAULT: &str = "presence_fault";
const NOT_ALLOWED: &str = "presence_not_allowed";
/// Why a topic is not kept for a node.
const NOT_KEPT: &str = "the topic is not kept here";
/// Between two lines about members that are not present.
const UNSEEN: Duration = Duration::from_secs(60);
/// Topics that read what they have on disk at once, and likewise that ask for what others have.
const PLACES: usize = 16;
/// How long after its start joins that go on from a cursor wait for links: alone, a node does not know what they missed.
const SETTLES: Duration = Duration::from_secs(5);
/// Joins that ask other nodes for what is not here at once: a client must not have a node ask without end.
const FETCHES: usize = 4;

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
                Question::Tail(..) | Question::Whole(_) | Question::Past(..) => None,
                Question::Keep(topic) => {
                    let allowed = router.bus.exchange().may_publish(&asked.from, topic);
                    let topic = Some(topic.clone()).filter(|_| allowed).ok_or(NOT_KEPT)?;
                    router.bus.exchange().spend(&asked.from, handing::KEEP);
                    router.handle.cast(Msg::Keep(asked.from, topic, to));
                    return Ok(answer.await.map_err(|_refused| NOT_KEPT)?);
                }
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
    /// Whether other nodes are known, which it links to as soon as it can.
    pub knows_others: bool,
    /// Whether this node sends its clients elsewhere.
    pub leaving: watch::Receiver<bool>,
}

enum Msg {
    Join(Topic, Box<Member>),
    Leave(Topic, u64),
    /// A topic knows what there is to know of it.
    Opened(Topic, oneshot::Sender<()>),
    Update(u64, String, oneshot::Sender<Result<(), PresenceError>>),
    Work,
    Idle(Topic, u64),
    Asked(Question, oneshot::Sender<Bytes>),
    Leaving(bool),
    /// All topics, and the linked nodes, of a node that leaves.
    Topics(oneshot::Sender<(Vec<Topic>, Vec<NodeName>)>),
    /// What was said on a topic, for a service.
    Read(Topic, History, oneshot::Sender<Bytes>),
    /// To keep a topic for this node, which leaves.
    Keep(NodeName, Topic, oneshot::Sender<Bytes>),
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

/// A member, to whose presences it counts, and under what key and with what fields it is present.
type Shown = (u64, Holder, String, String);

struct Running {
    orders: mpsc::UnboundedSender<Order>,
    /// Members that nobody sees yet, while the topic opens: what is said to one that is seen must reach it, and what comes
    /// before is the topic's past.
    opening: Option<Vec<Shown>>,
    /// Joins ever, and what else a topic must not end before: one that knows of fewer is about to get another.
    joins: u64,
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
    /// Topics that were opened for other nodes and that nobody has joined here, and for which.
    lent: BTreeMap<Topic, NodeName>,
    /// This node keeps nothing for others any more.
    leaving: bool,
    /// When it hands its topics on next.
    hand_on_at: Option<Instant>,
    /// Members that got no presence since it was last said, and when that was.
    unseen: (u64, Option<Instant>),
}

impl Inside {
    fn join(&mut self, topic: Topic, member: Box<Member>) {
        if !self.topics.contains_key(&topic) && !self.open(&topic, false) {
            return self.router.metrics.count(Count::Channels, "too_many_topics");
        }
        let Some(running) = self.topics.get_mut(&topic) else { return };
        running.joins += 1;
        self.lent.remove(&topic);
        let shown = member.presence.clone();
        let shown = shown.map(|(key, meta)| (member.id, member.holder.clone(), key, meta));
        let now = match (shown, &mut running.opening) {
            (Some(shown), Some(waiting)) => {
                waiting.push(shown);
                None
            }
            (shown, _) => shown,
        };
        // Who is present is known to a member before it is told who is there.
        now.into_iter().for_each(|shown| self.show(&topic, &shown));
        if let Some(running) = self.topics.get(&topic) {
            running.order(Order::Join(member, self.links.clone()));
        }
    }

    /// A member is present from now on.
    fn show(&mut self, topic: &Topic, (id, holder, key, meta): &Shown) {
        // What peers would not take is not shown here either.
        if !self.router.bus.exchange().capabilities().may_publish(topic) {
            return;
        }
        let (mut out, place) = (Vec::new(), (topic, key.as_str(), meta.as_str()));
        let (holder, now) = (Some(holder), timer::now());
        if let Err(refused) = self.attendance.join(*id, holder, place, now, &mut out) {
            self.router.metrics.count(Count::Channels, "presence_refused");
            self.unseen.0 += 1;
            if self.unseen.1.is_none_or(|last| now.duration_since(last) >= UNSEEN) {
                let members = std::mem::take(&mut self.unseen.0);
                self.unseen.1 = Some(now);
                tracing::warn!(%topic, key, members, %refused, "members are not present");
            }
        }
        self.perform(out);
    }

    fn opened(&mut self, topic: &Topic) {
        let running = self.topics.get_mut(topic);
        let waiting = running.and_then(|running| running.opening.take()).unwrap_or_default();
        waiting.iter().for_each(|shown| self.show(topic, shown));
    }

    /// Opens a topic, for members or, with all that other nodes have in memory, for a node that leaves.
    fn open(&mut self, topic: &Topic, whole: bool) -> bool {
        let Ok(subscription) = self.router.bus.exchange().subscribe(topic.clone()) else {
            return false;
        };
        let (orders, heard) = mpsc::unbounded_channel();
        let (to, about) = (self.myself.clone(), topic.clone());
        // A router that ended took its topics with it.
        let idle = move |joins| drop(to.cast(Mail::Message(Msg::Idle(about.clone(), joins))));
        let (router, opened) = (self.myself.clone(), topic.clone());
        let mut hall =
            TopicTask::new(topic.clone(), subscription, heard, Box::new(idle), self.shared.clone());
        hall.begin_with(&self.links, whole);
        // Who answers knows that messages on the topic are to come here.
        let asking = hall.ask_heads();
        // It outlives this actor by as long as it takes to tell its members.
        tokio::spawn(async move {
            let ((), answers) = tokio::join!(hall.restore(), asking);
            hall.catch_up(answers).await;
            let (done, known) = oneshot::channel();
            drop(router.cast(Mail::Message(Msg::Opened(opened, done))));
            drop(known.await); // a router that ended has closed the orders
            hall.run().await;
        });
        let running = Running { orders, opening: Some(Vec::new()), joins: 0 };
        let there = self.attendance.presence().entries(topic);
        running.order(Order::Present(there.cloned().map(Change::Joined).collect()));
        self.topics.insert(topic.clone(), running);
        true
    }

    /// Two nodes that open a topic at once do not wait for each other.
    fn asked_early(&self, question: &Question, to: oneshot::Sender<Bytes>) {
        let answer = match question {
            Question::Heads(topic) => {
                let own = self.setup.publisher.last(topic);
                Heads { own, opening: true, ..Heads::default() }.encode().unwrap_or_default()
            }
            Question::Tail(..) | Question::Whole(_) | Question::Past(..) | Question::Keep(_) => {
                Vec::new()
            }
        };
        to.send(answer.into()).unwrap_or(()); // who asked may have gone
    }

    fn leave(&mut self, topic: &Topic, id: u64) {
        if let Some(running) = self.topics.get_mut(topic) {
            running.opening.iter_mut().for_each(|waiting| waiting.retain(|(of, ..)| *of != id));
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
            self.router.book.notify(&topic, &changes);
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
                let linked = || Order::Linked(self.links.clone());
                self.topics.values().for_each(|running| running.order(linked()));
            }
            Notice::Down(peer, _) | Notice::Forgotten(peer) | Notice::Offline(peer) => {
                if Arc::make_mut(&mut self.links).remove(peer).is_some() {
                    let unlinked = || Order::Unlinked(peer.clone(), self.links.clone());
                    self.topics.values().for_each(|running| running.order(unlinked()));
                }
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
            links_by: if setup.knows_others { now + SETTLES } else { now },
            rounds: Arc::new(Semaphore::new(PLACES)),
            places: Arc::new(Semaphore::new(PLACES)),
            fetching: Arc::new(Semaphore::new(FETCHES)),
            marks: router.marks.clone(),
        };
        let (mut leaving, to) = (setup.leaving.clone(), myself.clone());
        tokio::spawn(async move {
            loop {
                let leaves = *leaving.borrow_and_update();
                // An actor that ended has a successor that is told.
                let told = to.cast(Mail::Message(Msg::Leaving(leaves)));
                if told.is_err() || leaving.changed().await.is_err() {
                    break;
                }
            }
        });
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
            leaving: false,
            lent: BTreeMap::new(),
            hand_on_at: None,
            unseen: (0, None),
        };
        // What is on disk shall have no holes, whether or not somebody is here.
        for topic in kept?.unwrap_or_default() {
            if !inside.open(&topic, false) {
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
            Msg::Opened(topic, done) => {
                self.opened(&topic);
                done.send(()).unwrap_or(()); // a topic that ended waits for nothing
            }
            Msg::Update(id, meta, done) => done.send(self.update(id, &meta)).unwrap_or_else(drop),
            Msg::Asked(question, to) => {
                // Who is not answered by a topic is told that there is none.
                match self.topics.get_mut(question.topic()) {
                    Some(Running { opening: Some(_), .. }) => self.asked_early(&question, to),
                    Some(running) => {
                        running.joins += 1;
                        running.order(Order::Asked(question, to));
                    }
                    None => {}
                }
            }
            Msg::Idle(topic, joins) => {
                if self.topics.get(&topic).is_some_and(|running| running.joins == joins) {
                    self.topics.remove(&topic);
                    self.lent.remove(&topic);
                }
            }
            Msg::Leaving(leaving) => self.leaves(leaving),
            Msg::Topics(to) => {
                self.leaving = true;
                let topics = self.topics.keys().cloned().collect();
                to.send((topics, self.links.keys().cloned().collect())).unwrap_or(()); // it may have given up
            }
            Msg::Read(topic, ask, to) => {
                let question = Question::Past(topic.clone(), String::new(), Some(ask));
                self.order_open(&topic, false, Order::Asked(question, to));
            }
            Msg::Keep(from, topic, to) => self.keep(from, &topic, to),
            Msg::Notice(notice) => self.notice(notice, &mut out),
            Msg::Work => {}
        }
        self.perform(out);
        self.work();
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        [self.attendance.deadline(), self.hand_on_at].into_iter().flatten().min()
    }

    fn tick(&mut self) -> Result<(), ActorProcessingErr> {
        let mut out = Vec::new();
        self.attendance.tick(timer::now(), &mut out);
        if self.hand_on_at.is_some_and(|at| at <= timer::now()) {
            self.hand_on();
        }
        self.perform(out);
        self.work();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
