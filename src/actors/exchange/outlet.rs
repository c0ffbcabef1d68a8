//! The outlet to one peer: what this node says to it, and what it owes and is owed.
//!
//! One [`Outbox`] behind a lock that is held for a copy of a message, never for longer and never across
//! a wait. Any task pushes; the link's own task takes pieces and sends them. Invariants:
//! 1. A closed outlet takes nothing and wakes everybody who waits on it.
//! 2. News of interest and of watched names that ended is never dropped while the link lives: it waits
//!    here, one entry each, until a lane has room. News that takes back what still waits ends both.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::actors::exchange::account::{Account, Kept};
use crate::actors::exchange::pending::Pending;
use crate::actors::timer;
use crate::proto::budget::INTEREST_COST;
use crate::proto::capability::Capabilities;
use crate::proto::frame::Lane;
use crate::proto::interest::Interest;
use crate::proto::node::NodeName;
use crate::proto::outbox::{Outbox, Piece, PieceError, PushError};
use crate::proto::talk::{self, DownReason};
use crate::proto::topic::{Name, Topic};

/// Credit is returned in portions of so many bytes.
const PORTION: usize = 128 * 1024;
/// Pieces are sent together up to so many bytes: what a call may have before it in this node.
const TOGETHER: usize = 128 * 1024;
/// Bytes that may wait in ractor's session, or one message that is longer.
const IN_RACTOR: usize = 4 * 1024 * 1024;
/// ractor's session has nothing more when nothing came for so long although the link waited.
const NOTHING: Duration = Duration::from_secs(1);
/// News that goes into the lane at once.
const NEWS: usize = 512;

/// Why a message was not taken. Nothing was sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// There is no link to the node.
    #[error("not connected")]
    NotConnected,
    /// More waits for the peer than may. Try later, or do without.
    #[error("overloaded: the peer takes less than it is sent")]
    Overloaded,
    /// Longer than any message may be.
    #[error("{0} bytes where at most 16 MiB are allowed")]
    TooLong(usize),
    /// The actor takes messages of the type that is named, not of this one.
    #[error("the actor takes messages of another type: {0}")]
    OtherType(String),
    /// This node is an edge, whose certificate does not name the topic.
    #[error("this node's certificate does not let it publish on {0}")]
    NotAllowed(Topic),
}

struct State {
    outbox: Outbox,
    /// The topic of the last broadcast.
    topic: Option<Topic>,
    head: Vec<u8>,
    news: BTreeMap<Interest, bool>,
    gone: BTreeMap<u64, DownReason>,
    /// Watches on the peer's names that are over.
    unwatched: BTreeSet<u64>,
    /// Lanes that refused somebody, who may wait for room.
    full: Vec<Lane>,
    /// The link's task waits for work.
    asleep: bool,
    closed: bool,
}

/// What ractor's session has not given to the link yet.
#[derive(Default)]
struct InRactor {
    lengths: VecDeque<usize>,
    bytes: usize,
    /// Since when the link has waited for it.
    hungry: Option<Instant>,
}

/// The outlet.
pub struct Outlet {
    peer: NodeName,
    /// What the peer may do.
    may: Capabilities,
    account: Arc<Account>,
    /// The peer's interest.
    interest: Mutex<Kept>,
    state: Mutex<State>,
    work: Notify,
    room: Notify,
    /// Bytes of bulk pieces that arrived and were taken, not yet returned as credit.
    taken: AtomicUsize,
    /// Bytes of bulk pieces that arrived and were not returned.
    untaken: AtomicUsize,
    rtt: AtomicU64,
    in_ractor: Mutex<InRactor>,
    pending: Pending,
}

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Outlet").field(&self.peer).finish()
    }
}

impl Outlet {
    pub(super) fn new((peer, may): (NodeName, Capabilities), account: Arc<Account>) -> Self {
        let state = State {
            outbox: Outbox::default(),
            topic: None,
            head: Vec::new(),
            news: BTreeMap::new(),
            gone: BTreeMap::new(),
            unwatched: BTreeSet::new(),
            full: Vec::new(),
            asleep: false,
            closed: false,
        };
        Self {
            peer,
            may,
            interest: Mutex::new(account.keep()),
            account,
            state: Mutex::new(state),
            work: Notify::new(),
            room: Notify::new(),
            taken: AtomicUsize::new(0),
            untaken: AtomicUsize::new(0),
            rtt: AtomicU64::new(u64::MAX),
            in_ractor: Mutex::default(),
            pending: Pending::default(),
        }
    }

    /// Where it leads.
    pub(crate) fn peer(&self) -> &NodeName {
        &self.peer
    }

    /// What the peer's certificate lets it do.
    pub(crate) fn capabilities(&self) -> &Capabilities {
        &self.may
    }

    /// The account of the peer.
    pub(crate) fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// Enters in the account how many topics, patterns and names the peer wants.
    pub(super) fn wants(&self, interests: usize) {
        let mut interest = self.interest.lock();
        interest.set(interests * INTEREST_COST);
    }

    /// What this node awaits from the peer, and does for it.
    pub(super) fn pending(&self) -> &Pending {
        &self.pending
    }

    fn change(
        &self,
        lane: Lane,
        change: impl FnOnce(&mut State) -> Result<(), PushError>,
    ) -> Result<(), SendError> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(SendError::NotConnected);
        }
        match change(&mut state) {
            Ok(()) => {
                let wake = std::mem::take(&mut state.asleep);
                drop(state);
                if wake {
                    self.work.notify_one();
                }
                Ok(())
            }
            Err(PushError::Full) => {
                if !state.full.contains(&lane) {
                    state.full.push(lane);
                }
                Err(SendError::Overloaded)
            }
            Err(PushError::TooLong(length)) => Err(SendError::TooLong(length)),
        }
    }

    /// A message of a lane whose head the caller writes.
    pub(in super::super) fn push(
        &self,
        lane: Lane,
        head: impl FnOnce(&mut Vec<u8>),
        payload: &Bytes,
    ) -> Result<(), SendError> {
        self.change(lane, |state| {
            state.head.clear();
            head(&mut state.head);
            state.outbox.push(lane, &state.head, payload)
        })
    }

    /// A broadcast.
    pub(super) fn broadcast(&self, topic: &Topic, payload: &Bytes) -> Result<(), SendError> {
        self.change(Lane::Bulk, |state| {
            let same = state.topic.as_ref() == Some(topic);
            state.head.clear();
            talk::broadcast(&mut state.head, (!same).then_some(topic));
            state.outbox.push(Lane::Bulk, &state.head, payload)?;
            if !same {
                state.topic = Some(topic.clone());
            }
            Ok(())
        })
    }

    /// Bytes that wait, by lane.
    pub(super) fn waiting(&self) -> [(Lane, usize); 3] {
        let mut state = self.state.lock();
        [Lane::System, Lane::Calls, Lane::Bulk].map(|lane| (lane, state.outbox.waiting(lane)))
    }

    /// Tries again whenever there may be room.
    pub(super) async fn when_room(
        &self,
        mut push: impl FnMut() -> Result<(), SendError>,
    ) -> Result<(), SendError> {
        loop {
            match push() {
                Err(SendError::Overloaded) => {}
                other => return other,
            }
            let mut room = std::pin::pin!(self.room.notified());
            // From here on no news of room is missed.
            room.as_mut().enable();
            match push() {
                Err(SendError::Overloaded) => room.await,
                other => return other,
            }
        }
    }

    /// What this node wants or offers, for the peer to know.
    pub(super) fn news(&self, interest: Interest, there: bool) {
        let told = self.change(Lane::Calls, |state| {
            // What the peer was never told of and is over needs no telling: those who come and go while
            // it does not read must not pile up.
            if state.news.get(&interest).is_some_and(|waits| *waits != there) {
                state.news.remove(&interest);
            } else {
                state.news.insert(interest, there);
            }
            Ok(())
        });
        told.unwrap_or(()); // a link that is closed needs no news
    }

    /// A name that the peer watches is gone.
    pub(super) fn gone(&self, watch: u64, why: DownReason) {
        let told = self.change(Lane::Bulk, |state| {
            if self.pending.is_watched(watch) {
                state.gone.insert(watch, why);
            }
            Ok(())
        });
        told.unwrap_or(()); // the watcher learns of the link's end instead
    }

    /// The peer watches a name no more, whether an answer waits or not; which name that was.
    pub(super) fn unwatched(&self, watch: u64) -> Option<Name> {
        self.state.lock().gone.remove(&watch);
        self.pending.unwatched(watch)
    }

    /// Nobody here awaits a watch any more.
    pub(super) fn unwatch(&self, watch: u64) {
        if self.pending.unwatch(watch) {
            let told = self.change(Lane::Calls, |state| {
                state.unwatched.insert(watch);
                Ok(())
            });
            told.unwrap_or(()); // a link that is closed watches nothing
        }
    }

    /// What to send next: as many pieces as go well together. Only the link's own task asks.
    pub(crate) async fn next(&self, pieces: &mut Vec<Piece>) -> Option<u32> {
        loop {
            let due = self.taken.load(Ordering::Relaxed);
            let credit = (due >= PORTION).then(|| {
                self.taken.fetch_sub(due, Ordering::Relaxed);
                self.untaken.fetch_sub(due, Ordering::Relaxed);
                u32::try_from(due).unwrap_or(u32::MAX)
            });
            self.take(pieces);
            if credit.is_some() || !pieces.is_empty() {
                return credit;
            }
            self.work.notified().await;
            if self.pending.busy() {
                // Others that are ready to run may have something for the same piece.
                tokio::task::yield_now().await;
            }
        }
    }

    fn take(&self, pieces: &mut Vec<Piece>) {
        let mut state = self.state.lock();
        state.owed(&self.pending);
        let mut length = 0;
        while length < TOGETHER {
            let Some(piece) = state.outbox.take() else { break };
            length += piece.head.len() + piece.body.len();
            pieces.push(piece);
        }
        state.asleep = pieces.is_empty();
        let State { full, outbox, .. } = &mut *state;
        let waited = full.len();
        full.retain(|lane| !outbox.has_room(*lane));
        if full.len() < waited || pieces.is_empty() {
            self.room.notify_waiters();
        }
    }

    /// Waits until the link's task has sent everything, or the link is gone.
    pub(super) async fn flushed(&self) {
        loop {
            let mut news = std::pin::pin!(self.room.notified());
            news.as_mut().enable();
            {
                let state = self.state.lock();
                if state.closed || state.asleep && state.outbox.messages() == 0 {
                    return;
                }
            }
            news.await;
        }
    }

    /// A message of so many bytes is about to be given to ractor's session.
    pub(super) fn hand_to_ractor(&self, bytes: usize) -> Result<(), SendError> {
        if self.is_closed() {
            return Err(SendError::NotConnected);
        }
        let mut waiting = self.in_ractor.lock();
        let now = timer::now();
        // What was for an actor that ended meanwhile never comes.
        if waiting.hungry.is_some_and(|since| since + NOTHING < now) {
            *waiting = InRactor { hungry: Some(now), ..InRactor::default() };
        }
        if waiting.bytes > 0 && waiting.bytes + bytes > IN_RACTOR {
            return Err(SendError::Overloaded);
        }
        waiting.bytes += bytes;
        waiting.lengths.push_back(bytes);
        Ok(())
    }

    /// Whether the link waits for bytes of ractor's session.
    pub(crate) fn waits_for_ractor(&self, waits: bool) {
        let mut waiting = self.in_ractor.lock();
        waiting.hungry = waits.then(|| waiting.hungry.unwrap_or_else(timer::now));
    }

    /// The link got bytes, in which so many messages began.
    pub(crate) fn came_from_ractor(&self, messages: usize) {
        let mut waiting = self.in_ractor.lock();
        waiting.hungry = None;
        for _ in 0..messages {
            let length = waiting.lengths.pop_front().unwrap_or(0);
            waiting.bytes -= length;
        }
    }

    /// The peer's subscribers took so many bytes.
    pub(crate) fn credited(&self, bytes: u32) -> Result<(), PieceError> {
        let credited = self.state.lock().outbox.credit(bytes);
        self.work.notify_one();
        credited
    }

    /// Subscribers here took so many bytes of the peer's.
    fn took(&self, bytes: usize) {
        let before = self.taken.fetch_add(bytes, Ordering::Relaxed);
        if before < PORTION && before + bytes >= PORTION {
            self.work.notify_one();
        }
    }

    /// Bytes of the peer's bulk that have not gone back as credit.
    pub(crate) fn untaken(&self) -> usize {
        self.untaken.load(Ordering::Relaxed)
    }

    /// Whether unconsumed bytes exceed `held`.
    pub(crate) fn waits_beside(&self, held: usize) -> bool {
        self.untaken() > self.taken.load(Ordering::Relaxed) + held
    }

    /// Closes; returns the number of discarded messages.
    pub(super) fn close(&self, why: DownReason) -> u64 {
        let lost = {
            let mut state = self.state.lock();
            if state.closed {
                return 0;
            }
            state.closed = true;
            (state.news, state.gone) = (BTreeMap::new(), BTreeMap::new());
            state.unwatched.clear();
            std::mem::take(&mut state.outbox).messages()
        };
        self.room.notify_waiters();
        self.pending.end(why);
        self.wants(0);
        lost
    }

    pub(in super::super) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// A beat came back after this time.
    pub(crate) fn echoed(&self, after: Duration) {
        let micros = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
        if micros < self.rtt.fetch_min(micros, Ordering::Relaxed) {
            self.state.lock().outbox.set_round_trip(micros);
        }
    }

    /// The shortest time there and back, in microseconds; the largest number before it was measured.
    pub(super) fn rtt(&self) -> u64 {
        self.rtt.load(Ordering::Relaxed)
    }
}

impl State {
    /// Moves what waits outside the lanes into them, as far as there is room.
    fn owed(&mut self, pending: &Pending) {
        while let Some((watch, why)) = self.gone.pop_first() {
            if !self.push(Lane::Bulk, |head| talk::gone(head, watch, why)) {
                self.gone.insert(watch, why);
                break;
            }
            pending.unwatched(watch);
        }
        while let Some(watch) = self.unwatched.pop_first() {
            if !self.push(Lane::Calls, |head| talk::unwatch(head, watch)) {
                self.unwatched.insert(watch);
                break;
            }
            pending.forget(watch);
        }
        for _ in 0..NEWS {
            let Some((interest, there)) = self.news.pop_first() else { break };
            if !self.push(Lane::Calls, |head| talk::interest(head, &interest, there)) {
                self.news.insert(interest, there);
                break;
            }
        }
    }

    /// A message without a payload; whether its lane has room for it.
    fn push(&mut self, lane: Lane, head: impl FnOnce(&mut Vec<u8>)) -> bool {
        self.head.clear();
        head(&mut self.head);
        self.outbox.push(lane, &self.head, &Bytes::new()).is_ok()
    }
}

/// The credit of the pieces of a batch: it goes back when the last who holds the ticket drops it.
#[derive(Debug)]
pub(crate) struct Ticket {
    outlet: Arc<Outlet>,
    bytes: usize,
}

impl Ticket {
    pub(crate) fn new(outlet: Arc<Outlet>, bytes: usize) -> Self {
        outlet.untaken.fetch_add(bytes, Ordering::Relaxed);
        Self { outlet, bytes }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Both as one.
    pub(crate) fn joined(one: Option<Self>, two: Option<Self>) -> Option<Self> {
        match (one, two) {
            (Some(mut one), Some(mut two)) => {
                one.bytes += std::mem::take(&mut two.bytes);
                Some(one)
            }
            (one, two) => one.or(two),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.outlet.took(self.bytes);
    }
}

#[cfg(test)]
impl Outlet {
    /// News that waits.
    pub(super) fn waiting_news(&self) -> usize {
        self.state.lock().news.len()
    }
}
