//! What one peer says, piece by piece: put together, read, and carried to those it is for.
//!
//! Runs in the link's own task and waits for nobody. Invariants:
//! 1. Messages of a kind that only a later version knows are counted and skipped. Whatever breaks the protocol is a [`Fault`], and the link ends: malformed frames or messages, more than the credit allows, a long message that does not go on within [`STALLED`].
//! 2. Of a long message no more memory is used than has arrived, and a step: once a step has arrived there is room for the
//!    whole, which the system gives as it is written. A room that grew would be there twice while it is copied.
//! 3. A long message for which there is no room beside what else is kept of the peer is skipped: a request is refused, a
//!    broadcast is lost. A reply that is waited for has room.
//! 4. What the peer's certificate does not let it publish or serve is skipped and counted.
//! 5. A batch that waits for its subscribers keeps at most twice its own bytes alive.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Semaphore;

use crate::actors::exchange::{Content, Exchange, Kept, Outlet, PATIENCE, Ticket};
use crate::actors::news::Bus;
use crate::io::metrics::Count;
use crate::proto::budget::{MAX_WORDS, WORD_PORTION};
use crate::proto::frame::{Lane, MAX_PAYLOAD};
use crate::proto::interest::Interest;
use crate::proto::outbox::{self, LEAST, PieceError, Records, Start, WINDOW};
use crate::proto::processor::{BYTE, INTEREST, PATTERN, PIECE, REFUSED, WORD};
use crate::proto::talk::{self, Bulk, Calls, DownReason, TalkError};
use crate::proto::topic::Topic;

/// A long message goes on within this time.
const STALLED: Duration = Duration::from_secs(30);
/// How much of a long message is allocated ahead.
const STEP: usize = 1024 * 1024;

/// How a peer broke the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// A piece.
    #[error(transparent)]
    Piece(#[from] PieceError),
    /// A message.
    #[error(transparent)]
    Talk(#[from] TalkError),
    /// More bulk than its credit.
    #[error("more bulk than it had credit for")]
    Credit,
    /// More interest or watches than a node may have.
    #[error("too much interest")]
    TooMany,
    /// A long message that ended in the middle.
    #[error("a long message did not go on for {} s", STALLED.as_secs())]
    Stalled,
}

/// A long message that is not whole yet.
struct Partial {
    total: usize,
    /// How many bytes of it have come.
    come: usize,
    bytes: Vec<u8>,
    /// `None`: it is skipped.
    room: Option<Kept>,
    since: Instant,
    /// The credit of its pieces.
    held: Option<Ticket>,
}

impl Partial {
    /// More bytes of it.
    fn push(&mut self, bytes: &[u8], ticket: Option<Ticket>, now: Instant) {
        (self.come, self.since) = (self.come + bytes.len(), now);
        if self.room.is_none() {
            return; // the credit goes back at once
        }
        if self.bytes.len() + bytes.len() > self.bytes.capacity() {
            self.bytes.reserve_exact(self.total.saturating_sub(self.bytes.len()));
        }
        self.bytes.extend_from_slice(bytes);
        self.held = Ticket::joined(self.held.take(), ticket);
    }

    /// A message may be longer than the window: it gives its credit back while nothing else waits. What
    /// waits goes first, so that a long message does not drive others out of a subscriber's queue.
    fn ease(&mut self, outlet: &Outlet) {
        let held = self.held.as_ref().map_or(0, Ticket::bytes);
        if held > LEAST / 2 && !outlet.waits_beside(held) {
            self.held = None;
        }
    }
}

/// What arrives on one link.
pub(super) struct Inbound {
    bus: Bus,
    exchange: Exchange,
    outlet: Arc<Outlet>,
    topic: Option<Topic>,
    /// Of the lanes system, calls and bulk.
    partial: [Option<Partial>; 3],
    /// Since when much of the peer's credit is held here.
    held: Option<Instant>,
    waiting: Arc<Semaphore>,
}

impl Inbound {
    pub(super) fn new(bus: Bus, outlet: Arc<Outlet>) -> Self {
        let exchange = bus.exchange().clone();
        let waiting = Arc::new(Semaphore::new(MAX_WORDS));
        let partial = [None, None, None];
        Self { bus, exchange, outlet, topic: None, partial, held: None, waiting }
    }

    /// A piece of a lane that is not the link's own.
    pub(super) async fn piece(
        &mut self,
        lane: Lane,
        payload: Bytes,
        now: Instant,
    ) -> Result<(), Fault> {
        let ticket = match lane {
            Lane::Bulk => {
                let ticket = Ticket::new(self.outlet.clone(), payload.len());
                if self.outlet.untaken() > WINDOW + MAX_PAYLOAD {
                    return Err(Fault::Credit);
                }
                Some(ticket)
            }
            Lane::Control | Lane::Ractor | Lane::System | Lane::Calls | Lane::Lists => None,
        };
        let start = outbox::start(&payload)?;
        if start != Start::Whole || payload.len() == 1 {
            self.outlet.account().spend(PIECE);
        }
        let whole = match start {
            Start::Whole => {
                if self.partial(lane).is_some_and(|partial| partial.is_some()) {
                    return Err(PieceError.into());
                }
                return match lane {
                    Lane::Bulk => self.bulk(&payload, ticket.map(Arc::new).as_ref(), now),
                    Lane::Control | Lane::Ractor | Lane::System | Lane::Calls | Lane::Lists => {
                        self.records(lane, &payload).await
                    }
                };
            }
            Start::First(total, at) => {
                let partial = self.partial(lane).ok_or(PieceError)?;
                // What actors send each other is never longer than a piece may be.
                if partial.is_some() || lane == Lane::System && total > MAX_PAYLOAD {
                    return Err(PieceError.into());
                }
                if payload.len() == at + total {
                    let message = payload.slice(at..);
                    let ticket = ticket.map(Arc::new);
                    return self.whole(lane, message, ticket.as_ref(), now).await;
                }
                let rest = payload.get(at..).unwrap_or(&[]);
                let room = self.room(lane, total, rest)?;
                let bytes = Vec::with_capacity(room.as_ref().map_or(0, |_| total.min(STEP)));
                let mut partial = Partial { total, come: 0, bytes, room, since: now, held: None };
                partial.push(rest, ticket, now);
                Self::grown(self.partial(lane).ok_or(PieceError)?, partial)?
            }
            Start::More => {
                let outlet = self.outlet.clone();
                let place = self.partial(lane).ok_or(PieceError)?;
                let mut partial = place.take().ok_or(PieceError)?;
                let rest = payload.get(1..).filter(|rest| !rest.is_empty()).ok_or(PieceError)?;
                partial.push(rest, ticket, now);
                partial.ease(&outlet);
                Self::grown(place, partial)?
            }
        };
        match whole {
            Some((message, held)) => {
                self.whole(lane, message, held.map(Arc::new).as_ref(), now).await
            }
            None => Ok(()),
        }
    }

    /// A long message is whole.
    async fn whole(
        &mut self,
        lane: Lane,
        message: Bytes,
        ticket: Option<&Arc<Ticket>>,
        now: Instant,
    ) -> Result<(), Fault> {
        match lane {
            Lane::Bulk => self.long_bulk(&message, ticket, now),
            Lane::Control | Lane::Ractor | Lane::System | Lane::Calls | Lane::Lists => {
                self.message(lane, message).await
            }
        }
    }

    fn partial(&mut self, lane: Lane) -> Option<&mut Option<Partial>> {
        let [system, calls, bulk] = &mut self.partial;
        match lane {
            Lane::Control | Lane::Ractor | Lane::Lists => None,
            Lane::System => Some(system),
            Lane::Calls => Some(calls),
            Lane::Bulk => Some(bulk),
        }
    }

    /// Room for a long message, whose head is in its first bytes.
    fn room(&mut self, lane: Lane, total: usize, first: &[u8]) -> Result<Option<Kept>, Fault> {
        let account = self.outlet.account();
        if let Some(room) = account.room(total) {
            return Ok(Some(room));
        }
        match lane {
            Lane::Control | Lane::Ractor | Lane::System | Lane::Lists => {}
            Lane::Calls => match talk::read_calls(first)? {
                Calls::Reply { call, .. } if self.exchange.calls.awaits(&self.outlet, call) => {
                    let mut room = account.keep();
                    room.set(total);
                    return Ok(Some(room));
                }
                Calls::Request { call, .. } => self.exchange.calls.refused(&self.outlet, call),
                Calls::Reply { .. }
                | Calls::Watch { .. }
                | Calls::Unwatch { .. }
                | Calls::Interest(..)
                | Calls::Unknown => {}
            },
            Lane::Bulk => {
                // What follows on this topic does not name it again.
                if let Bulk::Broadcast(Some(topic), _) = talk::read_bulk(first)? {
                    self.topic = Some(Topic::try_from(topic).map_err(|_not_a_topic| TalkError)?);
                }
            }
        }
        self.refused(1, total);
        self.exchange.metrics().count(Count::Messages, "no_room");
        if self.outlet.account().notable("memory") {
            let peer = self.outlet.peer();
            tracing::warn!(%peer, total, "a long message of a peer is skipped: too much of it is kept already, see what it has there");
        }
        Ok(None)
    }

    /// The message if it is whole; otherwise it is kept.
    fn grown(
        place: &mut Option<Partial>,
        partial: Partial,
    ) -> Result<Option<(Bytes, Option<Ticket>)>, PieceError> {
        match partial.come.cmp(&partial.total) {
            std::cmp::Ordering::Less => {
                *place = Some(partial);
                Ok(None)
            }
            std::cmp::Ordering::Equal => {
                Ok(partial.room.map(|_kept| (partial.bytes.into(), partial.held)))
            }
            std::cmp::Ordering::Greater => Err(PieceError),
        }
    }

    async fn records(&self, lane: Lane, payload: &Bytes) -> Result<(), Fault> {
        let mut records = Records::of_payload();
        while let Some(range) = records.next(payload) {
            self.message(lane, payload.slice(range?)).await?;
        }
        Ok(())
    }

    async fn message(&self, lane: Lane, message: Bytes) -> Result<(), Fault> {
        self.exchange.metrics().traffic().came(lane, 1, 0);
        match lane {
            Lane::System => {
                self.outlet.account().spend(WORD + BYTE * message.len() as u64);
                // The actors take them soon; a flood waits here and holds up only its sender.
                let portions = u32::try_from(message.len() / WORD_PORTION).unwrap_or(0) + 1;
                let permit = self.waiting.clone().acquire_many_owned(portions).await;
                if let Ok(permit) = permit {
                    self.bus.received(&self.outlet, message, permit);
                }
                Ok(())
            }
            Lane::Calls => self.called(&message),
            Lane::Control | Lane::Ractor | Lane::Bulk | Lane::Lists => Ok(()), // not of these lanes
        }
    }

    fn called(&self, message: &Bytes) -> Result<(), Fault> {
        let (Exchange { topics, calls, .. }, outlet) = (&self.exchange, &self.outlet);
        match talk::read_calls(message)? {
            Calls::Request { call, left, name, payload } => {
                calls.requested(outlet, call, left, &name, message.slice(payload));
            }
            Calls::Reply { call, outcome, payload } => {
                calls.replied(outlet, call, outcome, message.slice(payload));
            }
            Calls::Watch { watch, name } => {
                calls.watched(outlet, watch, name).map_err(|_too_many| Fault::TooMany)?;
            }
            Calls::Unwatch { watch } => calls.unwatched(outlet, watch),
            Calls::Unknown => self.unknown(message.len()),
            Calls::Interest(Interest::Name(name), true)
                if !outlet.capabilities().may_serve(&name) =>
            {
                self.not_allowed(1, name.as_str());
            }
            Calls::Interest(interest, there) => {
                let below = matches!(interest, Interest::Below(_));
                outlet.account().spend(if below { PATTERN } else { INTEREST });
                topics.wants(outlet, &interest, there).map_err(|_too_many| Fault::TooMany)?;
            }
        }
        Ok(())
    }

    /// A message that only a later version knows is skipped.
    fn unknown(&self, length: usize) {
        self.refused(1, length);
        self.exchange.metrics().count(Count::Messages, "unknown_kind");
    }

    /// What a peer may not do is skipped.
    fn not_allowed(&self, count: u64, what: &str) {
        self.refused(count, what.len());
        self.exchange.metrics().add(Count::Messages, "not_allowed", count);
        if self.outlet.account().notable("capabilities") {
            let (peer, may) = (self.outlet.peer(), self.outlet.capabilities());
            tracing::warn!(%peer, what, %may, "a peer publishes or serves what its certificate does not let it: skipped");
        }
    }

    /// Enters the cost of messages that nobody here takes.
    fn refused(&self, count: u64, bytes: usize) {
        self.outlet.account().spend(REFUSED * count + BYTE * bytes as u64);
    }

    /// Whole messages of bulk: neighbours on one topic go together.
    fn bulk(
        &mut self,
        payload: &Bytes,
        ticket: Option<&Arc<Ticket>>,
        now: Instant,
    ) -> Result<(), Fault> {
        let mut records = Records::of_payload();
        let (mut begin, mut end, mut count) = (records.position(), records.position(), 0);
        let mut gone: Option<(u64, DownReason)> = None;
        let mut unknown = false;
        while let Some(range) = records.next(payload) {
            let range = range?;
            let next = range.end;
            let other = match talk::read_bulk(payload.get(range).unwrap_or(&[]))? {
                Bulk::Broadcast(None, _) if self.topic.is_none() => return Err(TalkError.into()),
                Bulk::Broadcast(None, _) => None,
                Bulk::Broadcast(Some(topic), _) => {
                    let same = self.topic.as_ref().is_some_and(|last| last.as_str() == topic);
                    if same { None } else { Some(Topic::try_from(topic)) }
                }
                Bulk::Gone(watch, why) => {
                    gone = Some((watch, why));
                    None
                }
                Bulk::Unknown => {
                    unknown = true;
                    None
                }
            };
            if other.is_some() || gone.is_some() || unknown {
                self.run(payload, begin..end, count, ticket, now);
                (begin, count) = (end, 0);
            }
            if let Some(topic) = other {
                self.topic = Some(topic.map_err(|_not_a_topic| TalkError)?);
            }
            match gone.take() {
                Some((watch, why)) => {
                    self.refused(1, 0);
                    self.exchange.calls.gone(&self.outlet, watch, why);
                    begin = next;
                }
                None if std::mem::take(&mut unknown) => {
                    self.unknown(next - end);
                    begin = next;
                }
                None => count += 1,
            }
            end = next;
        }
        self.run(payload, begin..end, count, ticket, now);
        Ok(())
    }

    /// Neighbours on the present topic.
    fn run(
        &self,
        payload: &Bytes,
        range: std::ops::Range<usize>,
        count: usize,
        ticket: Option<&Arc<Ticket>>,
        now: Instant,
    ) {
        if count == 0 {
            return;
        }
        let records = if range.len() * 2 >= payload.len() {
            payload.slice(range)
        } else {
            Bytes::copy_from_slice(payload.get(range).unwrap_or(&[]))
        };
        self.deliver(Content::Records(records, count), count as u64, ticket, now);
    }

    fn deliver(&self, content: Content, count: u64, ticket: Option<&Arc<Ticket>>, now: Instant) {
        let Some(topic) = &self.topic else { return };
        if !self.outlet.capabilities().may_publish(topic) {
            return self.not_allowed(count, topic.as_str());
        }
        let bytes = content.length();
        let found = self.exchange.topics.arrived(topic, self.outlet.peer(), content, ticket, now);
        let kind = if found > 0 { "received" } else { "no_subscriber" };
        if found == 0 {
            self.refused(1 + count / 8, bytes); // neighbours are looked at together
        }
        self.exchange.metrics().add(Count::Messages, kind, count);
        self.exchange.metrics().traffic().came(Lane::Bulk, count, 0);
    }

    /// One long message of bulk.
    fn long_bulk(
        &mut self,
        message: &Bytes,
        ticket: Option<&Arc<Ticket>>,
        now: Instant,
    ) -> Result<(), Fault> {
        match talk::read_bulk(message)? {
            Bulk::Broadcast(topic, payload) => {
                if let Some(topic) = topic {
                    let topic = Topic::try_from(topic).map_err(|_not_a_topic| TalkError)?;
                    self.topic = Some(topic);
                }
                if self.topic.is_none() {
                    return Err(TalkError.into());
                }
                let content = Content::One(message.slice(payload));
                self.deliver(content, 1, ticket, now);
                Ok(())
            }
            Bulk::Gone(..) => Err(TalkError.into()),
            Bulk::Unknown => {
                self.unknown(message.len());
                Ok(())
            }
        }
    }

    /// When [`Self::tick`] is due, if it is.
    pub(super) fn deadline(&mut self, now: Instant) -> Option<Instant> {
        let much = self.outlet.untaken() > LEAST / 2;
        self.held = much.then(|| self.held.unwrap_or(now));
        let stalled = self.partial.iter().flatten().map(|partial| partial.since + STALLED).min();
        let held = self.held.map(|since| since + PATIENCE + Duration::from_millis(5));
        stalled.into_iter().chain(held).min()
    }

    /// It is due: what did not go on is at fault, and who lags here holds nobody up.
    pub(super) fn tick(&mut self, now: Instant) -> Result<(), Fault> {
        self.held = None;
        self.partial.iter_mut().flatten().for_each(|partial| partial.held = None);
        self.exchange.topics.release(now);
        let stalled = |partial: &Partial| partial.since + STALLED <= now;
        if self.partial.iter().flatten().any(stalled) { Err(Fault::Stalled) } else { Ok(()) }
    }
}
