//! One client: its session, what it has joined, and what it does there.
//!
//! Whatever carries the frames owns a [`ClientTask`], gives it each frame, and sends what its outbox has. Invariants:
//! 1. Nothing here waits: joins are settled elsewhere (`entrance`), and their news comes back with a wake-up.
//! 2. Frames of one topic take effect in their order, leaves and further joins among them; those that come while a join
//!    is pending wait for it, within bounds.
//! 3. A join ends with its right.
//! 4. A dropped client has left all its topics.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore, mpsc};

use super::entrance::{Entrance, Herald, Live, News, Room};
use super::handler::{Client, Ended, Line, Push};
use super::serving::Pushed;
use super::{Bearer, Channels, presence};
use crate::actors::channel_router::outbox::{ClientOverflow, ClientQueue, Close};
use crate::actors::timer;
use crate::gateway::places;
use crate::gateway::refusal::Cause;
use crate::io::clock;
use crate::io::metrics::Count;
use crate::proto::channel::head::Head;
use crate::proto::channel::session::{Ask, JOIN, Join, SOCKET, Session};
use crate::proto::channel::{Dialect, Frame, Json, Malformed, Outcome, Payload, Ref, Say, reason};
use crate::proto::limits::{ClientLimits, ClientMeter, Metered};
use crate::proto::token::{Role, Verb};

mod renewal;
mod showing;

/// KiB of one client's frames whose joins are pending: its hundred joins, and a frame of any length.
const PENDING: usize = 2 * 1024;
/// What a client reads that does more than it may.
const LIMITED: &str = "rate limited";

/// A join that is not settled.
struct Pending {
    task: tokio::task::AbortHandle,
    reference: Option<Ref>,
    /// What came for it meanwhile.
    waiting: VecDeque<(Frame, Room)>,
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One client.
pub(in super::super) struct ClientTask {
    channels: Arc<Channels>,
    session: Session,
    outbox: ClientQueue,
    place: places::Place,
    claims: Option<Bearer>,
    /// What it has left of the rates of its role, the highest of its socket's token and of those of its joins.
    meter: ClientMeter,
    role: Option<Role>,
    live: BTreeMap<u64, Box<Live>>,
    pending: BTreeMap<u64, Pending>,
    places: Arc<Semaphore>,
    herald: Herald,
    news: mpsc::UnboundedReceiver<Box<News>>,
}

impl ClientTask {
    pub(in super::super) fn new(
        channels: &Arc<Channels>,
        dialect: Dialect,
        place: places::Place,
        claims: Option<Bearer>,
    ) -> Self {
        if let Some(claims) = &claims {
            place.entitle(Some(claims));
        }
        channels.admin.clients.connected.fetch_add(1, Ordering::Relaxed);
        let limits = &channels.admin.clients.limits;
        let mut meter = ClientMeter::default();
        let role = claims.as_ref().map(|claims| claims.role);
        meter.follow(limits.rates(role), timer::now());
        let (sender, news) = mpsc::unbounded_channel();
        Self {
            channels: channels.clone(),
            session: Session::new(dialect, limits.topics),
            outbox: ClientQueue::new(limits.queue),
            meter,
            role,
            place,
            claims,
            live: BTreeMap::new(),
            pending: BTreeMap::new(),
            places: Arc::new(Semaphore::new(PENDING)),
            herald: Herald { news: sender, wake: Arc::default() },
            news,
        }
    }

    pub(in super::super) fn outbox(&self) -> &ClientQueue {
        &self.outbox
    }

    /// Whose token it began with.
    pub(super) fn subject(&self) -> Option<&str> {
        self.claims.as_ref().map(|claims| claims.sub.as_str())
    }

    /// What its connection or session has at the gateway.
    pub(in super::super) fn place(&self) -> &places::Place {
        &self.place
    }

    pub(in super::super) fn dialect(&self) -> Dialect {
        self.session.dialect()
    }

    /// Notified when [`ClientTask::sweep`] has something to do.
    pub(in super::super) fn wake(&self) -> Arc<Notify> {
        self.herald.wake.clone()
    }

    pub(in super::super) fn limits(&self) -> &ClientLimits {
        &self.channels.admin.clients.limits
    }

    /// Takes a frame of so many bytes.
    pub(in super::super) fn hear(&mut self, frame: Frame, length: usize) {
        self.sweep();
        let now = timer::now();
        let mut metered = self.meter.frame(length, now);
        if metered == Metered::Taken && frame.event == JOIN {
            metered = self.meter.join(now);
        }
        if self.is_within(metered, &frame.topic) {
            self.take(frame, None);
        } else {
            self.answer(frame.join_ref.as_ref(), frame.reference.as_ref(), &frame.topic, LIMITED);
        }
    }

    /// Answers what is no frame, as far as it can be made out: a client repeats what is not answered.
    pub(in super::super) fn refuse(&mut self, head: &Head, why: Malformed, length: usize) {
        let metered = self.meter.frame(length, timer::now());
        let topic = head.topic.as_deref().unwrap_or(SOCKET);
        let within = self.is_within(metered, topic);
        self.note(Cause::Frame(why), topic);
        let why = if within { why.to_string() } else { LIMITED.to_owned() };
        self.answer(head.join_ref.as_ref(), head.reference.as_ref(), topic, &why);
    }

    /// Whether what the client does is within its rates. If not, it is counted, and ends the client when it is far too much.
    fn is_within(&self, metered: Metered, topic: &str) -> bool {
        if metered != Metered::Taken {
            self.note(Cause::Rate, topic);
        }
        if metered == Metered::Over {
            self.outbox.close(Close::RATE);
        }
        metered == Metered::Taken
    }

    fn answer(&self, join_ref: Option<&Ref>, reference: Option<&Ref>, topic: &str, why: &str) {
        let why = reason(why);
        let reply = Say::Reply(join_ref, reference, Outcome::Error, &why);
        // One that does not read what it is answered loses the answers, not the connection.
        self.outbox.push(reply.encode(self.session.dialect(), topic), ClientOverflow::DropOldest);
    }

    fn note(&self, cause: Cause, about: &str) {
        self.channels.refusals.note(cause, self.place.address(), about);
    }

    /// Takes notice of what tasks have told.
    pub(in super::super) fn sweep(&mut self) {
        while let Ok(news) = self.news.try_recv() {
            match *news {
                News::Settled(join, settled) => self.settle(&join, settled),
                News::Ended(join, crashed) if self.live.contains_key(&join.number) => {
                    if crashed {
                        self.crashed(&join);
                    } else {
                        self.forget(&join, Ended::Closed);
                    }
                }
                News::Renewed(join, reference, judged) => {
                    self.renewed(&join, reference.as_ref(), judged);
                }
                News::Ended(..) => {} // its join was refused, or is over
            }
        }
    }

    /// Does what a frame asks for; one that has waited has had room.
    fn take(&mut self, frame: Frame, room: Option<Room>) {
        match self.session.hear(&frame) {
            Ask::Ignore => {}
            Ask::Answer(join_ref, outcome, why) => {
                let response = if why.is_empty() { empty() } else { reason(why) };
                let reference = frame.reference.as_ref();
                let reply = Say::Reply(join_ref.as_ref(), reference, outcome, &response);
                self.send(&frame.topic, &reply);
            }
            Ask::Join(join, before) => {
                if let Some(before) = before {
                    self.end(&before, Ended::Left, "phx_close", &empty());
                }
                self.join(frame, join, room);
            }
            Ask::Push(join) => self.push(frame, &join),
            Ask::Wait(join) => self.wait(frame, &join, room),
            Ask::Leave(join) => {
                self.gone(&join, Ended::Left);
                self.reply(&join, frame.reference.as_ref(), Outcome::Ok, &empty());
                self.say_end(&join, "phx_close", &empty());
            }
        }
    }

    /// When [`ClientTask::expire`] is due.
    pub(in super::super) fn deadline(&self) -> Option<Instant> {
        let first = self.live.values().filter_map(|live| renewal::due(live)).min()?;
        Some(timer::now() + first.duration_since(clock::wall()).unwrap_or_default())
    }

    /// Ends what the client has no right to any more, and warns of what ends soon.
    pub(in super::super) fn expire(&mut self) {
        let outlived = |live: &Live| {
            let why = self.channels.outlived(live.claims.as_ref()?)?;
            Some((live.join.clone(), why))
        };
        let over: Vec<_> = self.live.values().filter_map(|live| outlived(live)).collect();
        for (join, why) in over {
            self.channels.metrics.count(Count::Channels, "expired");
            self.end(&join, Ended::Expired, "phx_error", &reason(why));
        }
        self.warn();
    }

    fn send(&self, topic: &str, what: &Say<'_>) {
        self.outbox.push(what.encode(self.session.dialect(), topic), ClientOverflow::Disconnect);
    }

    fn reply(&self, join: &Join, reference: Option<&Ref>, outcome: Outcome, response: &Payload) {
        let reply = Say::Reply(join.join_ref.as_ref(), reference, outcome, response);
        self.send(join.topic.as_str(), &reply);
    }

    fn say_end(&self, join: &Join, event: &str, why: &Payload) {
        self.send(join.topic.as_str(), &Say::End(join.join_ref.as_ref(), event, why));
    }

    /// A join is over.
    fn forget(&mut self, join: &Join, why: Ended) {
        self.session.ended(join);
        self.gone(join, why);
    }

    /// Ends a join.
    fn end(&mut self, join: &Join, why: Ended, event: &str, payload: &Payload) {
        self.forget(join, why);
        self.say_end(join, event, payload);
    }

    /// Ends a join whose channel has panicked.
    fn crashed(&mut self, join: &Join) {
        self.channels.metrics.count(Count::Channels, "crashed");
        self.end(join, Ended::Closed, "phx_error", &reason("channel_crash"));
    }

    /// A join is no more: others must not see it any longer.
    fn gone(&mut self, join: &Join, why: Ended) {
        if let Some(live) = self.live.remove(&join.number) {
            live.seat.end(why);
        }
    }

    /// Room for a frame that has to wait.
    fn room(&self, payload: &Payload) -> Option<Room> {
        let kib = u32::try_from(1 + payload.length() / 1024).ok()?;
        let own = self.places.clone().try_acquire_many_owned(kib).ok()?;
        let of_all = self.channels.pending.clone().try_acquire_many_owned(kib).ok()?;
        Some([own, of_all])
    }

    fn join(&mut self, frame: Frame, join: Join, room: Option<Room>) {
        let Some(room) = room.or_else(|| self.room(&frame.payload)) else {
            self.note(Cause::JoinsPending, join.topic.as_str());
            self.session.ended(&join);
            return self.refuse_join(
                &join,
                frame.reference.as_ref(),
                &json!({ "reason": "overloaded" }),
            );
        };
        let entrance = Entrance {
            channels: self.channels.clone(),
            join: join.clone(),
            reference: frame.reference.clone(),
            dialect: self.session.dialect(),
            outbox: self.outbox.clone(),
            herald: self.herald.clone(),
            from: self.place.address(),
            claims: self.claims.clone(),
        };
        let task = entrance.open(frame.payload, room);
        let pending = Pending { task, reference: frame.reference, waiting: VecDeque::new() };
        self.pending.insert(join.number, pending);
    }

    fn wait(&mut self, frame: Frame, join: &Join, room: Option<Room>) {
        let room = room.or_else(|| self.room(&frame.payload));
        match (self.pending.get_mut(&join.number), room) {
            (Some(pending), Some(room)) => pending.waiting.push_back((frame, room)),
            (None, _) | (_, None) => {
                let Frame { join_ref, reference, topic, event, .. } = &frame;
                let own = if event == JOIN { reference.as_ref() } else { join.join_ref.as_ref() };
                let why = reason("overloaded");
                let of = join_ref.as_ref().or(own);
                let reply = Say::Reply(of, reference.as_ref(), Outcome::Error, &why);
                self.send(topic, &reply);
            }
        }
    }

    /// A pending join is granted or refused; what waited for it goes on.
    fn settle(&mut self, join: &Join, settled: Result<Box<Live>, Value>) {
        let Some(mut pending) = self.pending.remove(&join.number) else { return };
        match settled {
            Ok(live) => {
                self.channels.metrics.count(Count::Channels, "joined");
                self.place.entitle(live.claims.as_deref());
                self.rise(live.claims.as_ref().map(|claims| claims.role));
                self.session.joined(join);
                self.live.insert(join.number, live);
            }
            Err(response) => {
                self.session.ended(join);
                self.refuse_join(join, pending.reference.as_ref(), &response);
            }
        }
        let mut waiting = std::mem::take(&mut pending.waiting);
        while let Some((frame, room)) = waiting.pop_front() {
            self.take(frame, Some(room));
            let again = self.session.pending(&join.topic).map(|join| join.number);
            if let Some(next) = again.and_then(|number| self.pending.get_mut(&number)) {
                next.waiting = waiting;
                return;
            }
        }
    }

    /// Whether something that the client has said waits for a join.
    pub(super) fn has_waiting(&self) -> bool {
        self.pending.values().any(|pending| !pending.waiting.is_empty())
    }

    /// The client has shown that it may do as much as one of this role.
    fn rise(&mut self, role: Option<Role>) {
        if role > self.role {
            self.role = role;
            let rates = self.limits().rates(role);
            self.meter.follow(rates, timer::now());
        }
    }

    fn refuse_join(&self, join: &Join, reference: Option<&Ref>, response: &Value) {
        self.channels.metrics.count(Count::Channels, "join_refused");
        let response = Payload::Json(Json::of(response));
        self.reply(join, reference, Outcome::Error, &response);
    }

    fn push(&mut self, frame: Frame, join: &Join) {
        let Some(live) = self.live.get_mut(&join.number) else { return };
        let allowed = live.seat.asks(&frame.event)
            || live
                .claims
                .as_ref()
                .is_none_or(|claims| self.channels.handlers.allow(claims, Verb::Push, &join.topic));
        if let Some(why) = live.claims.as_ref().and_then(|it| self.channels.outlived(it)) {
            self.reply(join, frame.reference.as_ref(), Outcome::Error, &reason(why));
            return self.end(join, Ended::Expired, "phx_error", &reason(why));
        }
        // It is answered once the token is judged.
        if frame.event == renewal::RENEWAL {
            return self.renew(&frame, join);
        }
        if !allowed {
            self.note(Cause::NotGranted, join.topic.as_str());
            let why = reason("unauthorized");
            return self.reply(join, frame.reference.as_ref(), Outcome::Error, &why);
        }
        // No channel hears of it.
        if live.presents && frame.event == presence::META {
            return self.show(&frame, join);
        }
        let claims = live.claims.as_ref().map(|bearer| bearer.claims.clone());
        let member = live.member;
        let (channels, dialect, outbox) = (&self.channels, self.session.dialect(), &self.outbox);
        let client = |overflow| {
            let (join_ref, outbox) = (join.join_ref.clone(), outbox.clone());
            Client {
                topic: join.topic.clone(),
                claims: claims.clone(),
                line: Line { member, join_ref, dialect, outbox, overflow },
                shared: channels.shared.clone(),
                requests: None,
            }
        };
        let (event, payload, reference) = (frame.event, frame.payload, frame.reference.clone());
        match live.seat.push(&client, Push { event, payload, reference }) {
            Pushed::Taken => {}
            Pushed::Overloaded => {
                let why = reason("overloaded");
                self.reply(join, frame.reference.as_ref(), Outcome::Error, &why);
            }
            Pushed::Crashed => self.crashed(join),
        }
    }
}

fn empty() -> Payload {
    Payload::Json(Json::empty())
}

impl Drop for ClientTask {
    fn drop(&mut self) {
        self.channels.admin.clients.connected.fetch_sub(1, Ordering::Relaxed);
        self.outbox.close(crate::actors::channel_router::outbox::Close::RESTART);
    }
}
