//! One topic of this node: its members, what they missed, and who is present.
//!
//! A task of its own, so that a busy topic is in nobody's way. It owns the node's subscription to the topic,
//! the members' outboxes, the log that a member may resume from, and the presence that members are told.
//! Invariants:
//! 1. A member gets the reply to its join first, then what it asks for of the past, then every message from that
//!    moment on, once and in order. What is for its join alone has the join's reference.
//! 2. A message is encoded once for all members that want it alike.
//! 3. Presence is shown as `proto::presence::listing` has it, at its pace.
//! 4. When the router is gone, the members are told to join again.
//! 5. What a client publishes cannot say where a message stands: a member that resumes gets no `seq` but ours.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

use self::kept::{Logged, bounds, now};
use self::past::Past;
use self::rounds::Round;
use super::Publisher;
use super::marks::Marks;
use super::outbox::{ClientOverflow, ClientQueue, Close};
use crate::actors::exchange::{Exchange, Message, Received, Subscription};
use crate::actors::history_log::{Recorder, Tape};
use crate::actors::timer;
use crate::io::metrics::{Count, Metrics};
use crate::proto::channel::envelope::Envelope;
use crate::proto::channel::{Dialect, Json, Payload, Ref, Say, reason};
use crate::proto::history::chunk::UNKNOWN_END;
use crate::proto::history::words::{Question, Theirs};
use crate::proto::history::{Ask, LINGER, MAX_ASKED, Retentions, Rule};
use crate::proto::node::NodeName;
use crate::proto::presence::listing::{self, Audience, Listing, Sees};
use crate::proto::presence::{Entry, Holder};
use crate::proto::replay::{Bounds, Cursor, Log, Position};
use crate::proto::topic::Topic;

mod asking;
mod disk;
mod fetch;
mod kept;
mod past;
mod rounds;
mod sync;
mod telling;

pub use telling::{Intercept, Intercepted};

/// Messages that are taken together.
const TOGETHER: usize = 256;
/// Topics without members that go on for as long as their rule says, at most.
pub(super) const QUIET: usize = 10_000;
/// The part of those up to which topics are kept for others: one in so many.
pub(super) const KEEPS: usize = 4;
/// Likewise those on which nothing was said.
const SILENT: usize = 1_000;
/// How long a topic goes on without members while there are too many of those: anyone can join and leave without end.
const BRIEFLY: Duration = Duration::from_secs(2);
/// Bytes that the logs of all topics hold together.
pub(super) const LOGGED: usize = 64 * 1024 * 1024;
/// With this begins the cursor of who came before the first message.
const START: &str = "+";
/// Starts that are remembered, at most.
const STARTS: usize = 16;

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
    /// Under what key others see it, and what they see of it: a JSON object. `None`: they do not.
    pub presence: Option<(String, String)>,
    /// Whose presences it counts to: a user or an address.
    pub holder: Holder,
    /// What it sees of others.
    pub sees: Sees,
    /// What else it gets first.
    pub greeting: Option<Greeting>,
    /// Through its channel's task go all messages to it.
    pub intercept: Option<Intercept>,
    /// Who waits for it to be a member; the router's.
    pub ready: Option<oneshot::Sender<()>>,
}

/// Which link to each linked node is the one that is up, by number.
pub(super) type Links = Arc<BTreeMap<NodeName, u64>>;

/// What the router tells a topic.
pub(super) enum Order {
    Join(Box<Member>, Links),
    /// There is a link to another node.
    Linked(Links),
    /// The link to this node has ended; these are left.
    Unlinked(NodeName, Links),
    /// Another node asks what this one has.
    Asked(Question, oneshot::Sender<Bytes>),
    Leave(u64),
    /// A node that leaves asks this one to go on with the topic.
    Keep(oneshot::Sender<Bytes>, Links),
    Present(Vec<Presence>),
}

/// Who came and who left.
pub(super) enum Presence {
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
    /// What keeps topics on disk.
    pub(super) recorder: Option<Recorder>,
    /// Whose publications those of this node are.
    pub(super) publisher: Publisher,
    pub(super) me: NodeName,
    pub(super) exchange: Exchange,
    /// When this node has had the time to link to others.
    pub(super) links_by: Instant,
    /// Places for topics that ask other nodes.
    pub(super) rounds: Arc<Semaphore>,
    /// Places for those who wait for the disk.
    pub(super) places: Arc<Semaphore>,
    /// Places for joins that ask other nodes for what is not here.
    pub(super) fetching: Arc<Semaphore>,
    /// Who has said what it is not to be told.
    pub(super) marks: Marks,
}

impl Shared {
    /// A log's cost has changed; what all of them cost.
    pub(super) fn count(&self, before: usize, after: usize) -> usize {
        let change = after.wrapping_sub(before);
        self.logged.fetch_add(change, Ordering::Relaxed).wrapping_add(change)
    }
}

/// Where a log stood before its first message, here or on another node; what came since then is in the log, as far as
/// [`Log::since`] says so.
struct Start {
    id: u64,
    stood: Cursor,
    /// How often the log had lost something.
    losses: u64,
}

/// What a topic waits for.
enum Job {
    /// What was read from disk for a join.
    Loaded(Box<Member>, Option<Box<disk::Loaded>>),
    /// What other nodes have that were asked.
    Asked(Vec<asking::Answer>),
    /// What one of them has of what a join asks for, which gets this here up to this index.
    Fetched(Box<Member>, (Past, u64), Option<Theirs>),
    /// What was read from disk for another node's join.
    Read(fetch::Asked, Option<Box<disk::Loaded>>),
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
    bounds: Bounds,
    /// Where its messages go, where it is kept on disk.
    tape: Option<Tape>,
    /// The index of the next message.
    index: u64,
    /// There may be older messages on disk than the log has.
    older: bool,
    /// Joins that wait for what is read or asked for, those of them that wait for links, and what reads and asks.
    pending: BTreeSet<u64>,
    early_joins: BTreeMap<u64, Box<Member>>,
    jobs: JoinSet<Job>,
    /// What other nodes are asked.
    round: Round,
    /// Since when the topic is here, in milliseconds since the Unix epoch, and from when on a publisher that the log has not
    /// heard is one that it missed.
    opened: u64,
    since: u64,
    /// It has lost something, and with it what it had heard.
    forgot: bool,
    /// Which links to other nodes it has asked what they have.
    asked: Links,
    /// Another node knows how this node's life before this one has ended.
    own_end_known: bool,
    /// A publisher has begun another epoch since all other nodes were asked.
    epoch_began: bool,
    /// How many messages the log ever took.
    taken: usize,
    /// Where those stand who were here before the first of them, also on other nodes.
    starts: VecDeque<Start>,
    /// Other nodes were opening the topic, too, when they were asked.
    opened_at_once: bool,
    /// The linked nodes; whether one of them has had more than this log, or this log more than it has.
    links: Links,
    short: bool,
    /// It takes all that others have in memory, not the newest alone.
    whole: bool,
    listing: Listing,
    /// Since when it has no members.
    empty: Option<Instant>,
    /// Joins ever, and what else it was asked.
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
        let tape = shared.recorder.as_ref().filter(|_| rule.disk).map(|it| it.tape(&topic));
        // What is on disk need not all be in memory.
        let most = if tape.is_some() { MAX_ASKED } else { rule.count };
        let bounds = bounds(rule.count.min(most));
        let mut log = Log::within(bounds);
        log.missed();
        Self {
            listing: Listing::new(topic.clone()),
            topic,
            subscription,
            orders,
            idle,
            shared,
            rule,
            members: BTreeMap::new(),
            log,
            bounds,
            tape,
            index: 0,
            older: false,
            pending: BTreeSet::new(),
            early_joins: BTreeMap::new(),
            jobs: JoinSet::new(),
            round: Round::default(),
            opened: now(),
            since: now(),
            forgot: false,
            asked: Links::default(),
            own_end_known: false,
            epoch_began: false,
            taken: 0,
            starts: VecDeque::new(),
            opened_at_once: false,
            links: Links::default(),
            short: false,
            whole: false,
            empty: None,
            joins: 0,
        }
    }

    pub(super) async fn run(mut self) {
        self.ask_again();
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
                Some(job) = self.jobs.join_next() => self.finish(job),
                received = self.subscription.recv(), if self.listens() => match received {
                    Some(received) => self.receive(received),
                    None => return self.abandon(),
                },
            }
            let now = timer::now();
            let mut shown = Shown { topic: &self.topic, members: &self.members };
            self.listing.step(now, &mut shown);
            self.step_rounds(now);
            if self.gone().is_some_and(|at| at <= now) {
                self.empty = Some(now); // asked again, should it not be heard
                if !self.stays() {
                    (self.idle)(self.joins);
                }
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let due = [self.gone(), self.listing.due(timer::now()), self.rounds_due()];
        due.into_iter().flatten().min()
    }

    /// When it has been without members for long enough.
    fn gone(&self) -> Option<Instant> {
        let quiet = self.shared.quiet.load(Ordering::Relaxed);
        let crowded = quiet > if self.log.is_empty() { SILENT } else { QUIET };
        let linger = match self.rule.age {
            _ if crowded => BRIEFLY,
            Some(age) if age < LINGER || !self.log.is_empty() => age,
            Some(_) | None => LINGER,
        };
        self.empty.map(|since| since + linger)
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Join(member, links) => {
                self.joins += 1;
                self.join(member, &links);
            }
            Order::Linked(links) => self.linked(&links),
            Order::Unlinked(peer, links) => self.unlinked(&peer, &links),
            Order::Asked(question, answer) => {
                self.joins += 1;
                self.answer(&question, answer);
            }
            Order::Keep(to, links) => {
                self.joins += 1;
                self.keep_for(to, &links);
            }
            Order::Leave(id) => {
                self.pending.remove(&id);
                self.early_joins.remove(&id);
                self.members.remove(&id);
                self.listing.forget(id);
            }
            Order::Present(changes) => changes.into_iter().for_each(|change| match change {
                Presence::Joined(entry) => self.listing.joined(entry),
                Presence::Left(entry) => self.listing.left(&entry),
            }),
        }
        self.mind();
    }

    /// Notes since when nobody is here.
    fn mind(&mut self) {
        match (self.members.is_empty() && self.pending.is_empty(), self.empty) {
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

    fn join(&mut self, member: Box<Member>, links: &Links) {
        self.links = links.clone();
        let past =
            member.history.is_some() || member.resume.as_ref().is_some_and(|it| !it.is_empty());
        if self.waits_for_links(&member) {
            self.pending.insert(member.id);
            self.early_joins.insert(member.id, member);
        } else if past && self.is_to_ask() {
            self.ask_for(member);
        } else {
            self.admit(member);
        }
    }

    /// Where a member stands that has just joined.
    fn cursor(&mut self) -> String {
        if self.taken > 0 {
            return self.log.cursor().to_string();
        }
        let stands = |start: &&Start| start.stood == *self.log.cursor();
        let id = self.starts.iter().find(stands).map(|start| start.id);
        let id = id.unwrap_or_else(|| {
            let id = rand::random();
            self.begin(id, self.log.cursor().clone());
            id
        });
        format!("{START}{id:x}")
    }

    /// Remembers a start.
    fn begin(&mut self, id: u64, stood: Cursor) {
        if self.starts.iter().any(|start| start.id == id) {
            return;
        }
        if self.starts.len() >= STARTS {
            self.starts.pop_front();
        }
        self.starts.push_back(Start { id, stood, losses: self.log.losses() });
    }

    /// Takes this, and what else has come.
    fn hear(&mut self, received: Received) {
        self.hear_with(received, Subscription::try_recv);
    }

    fn hear_with(
        &mut self,
        received: Received,
        mut more: impl FnMut(&mut Subscription) -> Option<Received>,
    ) {
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
            next = if heard.len() < TOGETHER { more(&mut self.subscription) } else { None };
        }
        self.deliver(&heard);
        self.sweep();
    }

    fn take(&mut self, message: &Message) -> Option<Arc<Logged>> {
        let Some(Envelope { stamp, event, payload }) = Envelope::decode(&message.payload) else {
            self.shared.metrics.count(Count::Channels, "malformed");
            return None;
        };
        // A clock that steps back makes no message older than the one before it.
        let last = self.log.iter().next_back().map_or(0, |kept| kept.at);
        let begins =
            |stamp| message.from == self.shared.me && self.log.begins(&message.from, stamp);
        if !self.own_end_known && stamp.is_some_and(begins) {
            // How its life before this one ended, nobody knows.
            self.log.lost(&message.from);
            self.index += UNKNOWN_END;
        }
        let (at, cost) = (now().max(last), message.payload.len());
        let except = stamp.as_ref().and_then(|stamp| self.excepted(stamp));
        let kept = Logged::new(self.index, at, cost, event, payload);
        let kept = Arc::new(Logged { except, ..kept });
        // What has no number could not be told from what was missed: it is not kept.
        let Some(stamp) = stamp else { return Some(kept) };
        let taken = self.keep(&message.from, stamp, &message.payload, &kept);
        taken.then_some(kept)
    }

    /// The member whose own word this is, which is not to be told.
    fn excepted(&self, stamp: &Position) -> Option<u64> {
        let member = self.shared.marks.read(&self.topic, stamp);
        // Numbers of other nodes' publishers are none of a member here.
        member.filter(|id| self.members.contains_key(id))
    }

    /// Lets go of members whose connection has ended, and counts what they lost.
    fn sweep(&mut self) {
        let (metrics, listing) = (&self.shared.metrics, &mut self.listing);
        self.members.retain(|id, member| {
            match member.outbox.dropped() {
                0 => {}
                frames => metrics.add(Count::Channels, "dropped_slow", frames),
            }
            let closed = member.outbox.closed().is_some();
            if closed {
                listing.forget(*id);
            }
            !closed
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

/// The members, as whom a listing is shown to.
struct Shown<'a> {
    topic: &'a Topic,
    members: &'a BTreeMap<u64, Box<Member>>,
}

impl Audience for Shown<'_> {
    fn is_ready(&self, member: u64) -> bool {
        self.members.get(&member).is_none_or(|member| member.outbox.has_room(listing::QUEUE))
    }

    fn give(&mut self, member: u64, shown: listing::Shown<'_>) -> usize {
        let Some(member) = self.members.get(&member) else { return 0 };
        let frame = match shown {
            listing::Shown::All(frame) => frame.clone(),
            listing::Shown::Join(event, tail) => {
                let empty = Payload::Json(Json::empty());
                let say = Say::Push(member.join_ref.as_ref(), event, &empty);
                say.with_tail(member.dialect, self.topic.as_str(), tail)
            }
        };
        let length = frame.length();
        member.outbox.push([frame], member.slow);
        length
    }
}

#[cfg(test)]
mod tests;
