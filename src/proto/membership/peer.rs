//! What the machine holds of one peer.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::proto::backoff::Backoff;
use crate::proto::event::{Event, Reason, Status};
use crate::proto::frame::CloseReason;
use crate::proto::hello::{Hello, Refusal};
use crate::proto::membership::{AttemptId, Failure, Output};
use crate::proto::node::{Incarnation, NodeName};

/// Addresses kept per peer; the one that worked last comes first.
const ADDRESSES: usize = 8;
/// Beacons of a peer bring its next dial forward at most this often.
const HURRY: Duration = Duration::from_secs(1);
/// An older life is taken that has asked for this long while no later one was linked: its process runs, so the later one
/// is over, or was never more than a restored disk.
pub(super) const INSISTS: Duration = Duration::from_secs(10);

/// True for an address that can be dialed: a real host and port.
pub fn usable(address: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    let no_host = ip.is_unspecified() || ip.is_multicast() || ip == Ipv4Addr::BROADCAST;
    !no_host && address.port() != 0
}

/// A peer, as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerView {
    /// Its name.
    pub name: NodeName,
    /// Where it was reached, or is looked for.
    pub address: Option<SocketAddr>,
    /// Where it stands.
    pub status: Status,
    /// Why it is offline.
    pub reason: Option<Reason>,
    /// While it is not linked: what ended its link, or why the last round of dials failed.
    pub cause: Option<String>,
    /// Its latest known life; 0 while none is known.
    pub incarnation: Incarnation,
    /// Since when it has this status.
    pub since: Instant,
}

/// The link of a peer.
#[derive(Clone, Debug)]
pub(super) struct Live {
    pub(super) attempt: AttemptId,
    pub(super) address: SocketAddr,
    pub(super) up: Instant,
    pub(super) ready: bool,
}

impl Live {
    pub(super) fn new(attempt: AttemptId, address: SocketAddr, now: Instant) -> Self {
        Self { attempt, address, up: now, ready: false }
    }
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) status: Status,
    pub(super) incarnation: Incarnation,
    pub(super) live: Option<Live>,
    /// The outbound attempt in progress.
    pub(super) dialing: Option<AttemptId>,
    /// That attempt has sent its hello.
    pub(super) greeting: bool,
    /// The inbound attempt that was welcomed and is not confirmed yet.
    pub(super) inbound: Option<AttemptId>,
    pub(super) backoff: Backoff,
    pub(super) next_dial: Option<Instant>,
    reason: Option<Reason>,
    cause: Option<String>,
    since: Instant,
    boot: Option<u64>,
    addresses: Vec<SocketAddr>,
    /// Which of `addresses` this round of dials comes to next.
    cursor: usize,
    /// Somebody refused a connection in this round.
    refused: bool,
    rejected: bool,
    revoked: bool,
    was_ready: bool,
    last_dial: Option<Instant>,
    /// When it was dialed, or will be, because an attempt of its own came to nothing.
    instead: Option<Instant>,
    pub(super) insistence: Insistence,
    reported: Option<Failure>,
}

/// Which process is refused for a later life of its name, and since when.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Insistence(Option<(u64, Instant)>);

impl Insistence {
    /// It asks again; whether it has for long enough.
    pub(super) fn is_enough(&mut self, boot: u64, now: Instant) -> bool {
        let since = self.0.filter(|(asking, _)| *asking == boot).map_or(now, |(_, since)| since);
        self.0 = Some((boot, since));
        now.saturating_duration_since(since) >= INSISTS
    }
}

impl Peer {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            status: Status::Connecting,
            incarnation: Incarnation(0),
            live: None,
            dialing: None,
            greeting: false,
            inbound: None,
            backoff: Backoff::default(),
            next_dial: Some(now),
            reason: None,
            cause: None,
            since: now,
            boot: None,
            addresses: Vec::new(),
            cursor: 0,
            refused: false,
            rejected: false,
            revoked: false,
            was_ready: false,
            last_dial: None,
            instead: None,
            insistence: Insistence::default(),
            reported: None,
        }
    }

    pub(super) fn view(&self, name: &NodeName) -> PeerView {
        PeerView {
            name: name.clone(),
            address: self.live.as_ref().map(|l| l.address).or_else(|| self.first_address()),
            status: self.status,
            reason: self.reason,
            cause: self.cause.clone(),
            incarnation: self.incarnation,
            since: self.since,
        }
    }

    pub(super) fn first_address(&self) -> Option<SocketAddr> {
        self.addresses.first().copied()
    }

    /// No link, and nothing under way to get one.
    pub(super) fn idle(&self) -> bool {
        self.live.is_none() && self.dialing.is_none() && self.inbound.is_none()
    }

    /// It has a link that this node dialed, and that is not ready.
    pub(super) fn is_dialed_unready(&self) -> bool {
        let dialed = |live: &Live| matches!(live.attempt, AttemptId::Outbound(_)) && !live.ready;
        self.live.as_ref().is_some_and(dialed)
    }

    pub(super) fn left(&self) -> bool {
        self.reason == Some(Reason::Left)
    }

    pub(super) fn buried(&self, tombstone: Duration) -> Option<Instant> {
        (self.left() && self.idle()).then(|| self.since + tombstone)
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.next_dial.filter(|_| self.idle() && !self.addresses.is_empty())
    }

    /// Puts an address first, on the peer's own word or proof; true when it is a new one.
    pub(super) fn learn_first(&mut self, address: SocketAddr) -> bool {
        if self.first_address() == Some(address) {
            return false;
        }
        let known = self.addresses.iter().position(|a| *a == address);
        if let Some(at) = known {
            self.addresses.remove(at);
        }
        self.addresses.insert(0, address);
        self.addresses.truncate(ADDRESSES);
        self.cursor = 0;
        known.is_none()
    }

    /// Adds an address that is hearsay; true when it is a new one and there is room for it.
    pub(super) fn learn_last(&mut self, address: SocketAddr) -> bool {
        let news = self.addresses.len() < ADDRESSES && !self.addresses.contains(&address);
        if news {
            self.addresses.push(address);
        }
        news
    }

    pub(super) fn is_at(&self, address: SocketAddr) -> bool {
        self.addresses.contains(&address)
    }

    pub(super) fn forget_address(&mut self, address: SocketAddr) {
        if let Some(at) = self.addresses.iter().position(|a| *a == address) {
            self.addresses.remove(at);
            self.cursor -= usize::from(at < self.cursor);
        }
    }

    /// Brings the next dial forward; a peer that had left is wanted again.
    pub(super) fn expedite_dial(&mut self, now: Instant) {
        if self.left() {
            self.reason = Some(Reason::Unreachable);
        }
        let at = self.last_dial.map_or(now, |last| (last + HURRY).max(now));
        self.next_dial = Some(self.next_dial.map_or(at, |next| next.min(at)));
    }

    /// An attempt of its own came to nothing: it is dialed instead, at once but not more often than once a second.
    pub(super) fn dial_instead(&mut self, now: Instant) {
        let at = match self.instead {
            Some(at) if at > now => at,
            Some(at) => (at + HURRY).max(now),
            None => now,
        };
        (self.instead, self.next_dial) = (Some(at), Some(at));
    }

    /// It was not dialed for a while: one more dial makes no storm.
    pub(super) fn rested(&self, now: Instant) -> bool {
        self.last_dial.is_none_or(|last| now.saturating_duration_since(last) >= HURRY)
    }

    /// Starts an attempt; the address to dial.
    pub(super) fn dial(&mut self, attempt: AttemptId, now: Instant) -> Option<SocketAddr> {
        let address = self.addresses.get(self.cursor).or(self.addresses.first()).copied()?;
        self.take_up(attempt);
        self.greeting = false;
        self.last_dial = Some(now);
        Some(address)
    }

    /// An attempt that began as a dial of an address turned out to reach this peer.
    pub(super) fn take_up(&mut self, attempt: AttemptId) {
        self.dialing = Some(attempt);
        self.greeting = true;
    }

    /// The dial of one address failed. `None` while the round goes on, else what it amounts to.
    pub(super) fn address_failed(
        &mut self,
        address: SocketAddr,
        failure: &Failure,
    ) -> Option<Reason> {
        // A process that is being torn down may still accept, and closes a moment later.
        self.refused |= matches!(failure, Failure::Refused | Failure::Closed);
        self.rejected |= matches!(
            failure,
            Failure::Rejected(_)
                | Failure::OtherCluster(_)
                | Failure::RefusedBy(_)
                | Failure::RefusedAsRevoked
        );
        self.revoked |= matches!(failure, Failure::Revoked(_));
        let at = self.addresses.iter().position(|a| *a == address);
        self.cursor = at.map_or(self.cursor, |at| at + 1);
        if self.cursor < self.addresses.len() {
            return None;
        }
        let reason = match (self.revoked, self.rejected, self.refused && self.was_ready) {
            (true, _, _) => Reason::Revoked,
            (false, true, _) => Reason::Rejected,
            (false, false, true) => Reason::Crashed,
            (false, false, false) => Reason::Unreachable,
        };
        self.begin_round();
        Some(reason)
    }

    fn begin_round(&mut self) {
        (self.cursor, self.refused, self.rejected, self.revoked) = (0, false, false, false);
    }

    /// Whether what a round of dials amounts to changes the status. A dying process may take one
    /// last connection before its socket closes: only the next round finds that nobody listens. That a
    /// certificate is revoked is worth knowing whatever was known before, and outlasts what follows.
    pub(super) fn is_news(&self, round: Reason) -> bool {
        let gone = self.reason == Some(Reason::Unreachable) && round == Reason::Crashed;
        self.status != Status::Offline || gone || round == Reason::Revoked
    }

    /// It refuses this node for good, or until another process of this node's name is gone: nothing that is heard of it
    /// makes another dial worth more.
    pub(super) fn refuses_us(&self) -> bool {
        match &self.reported {
            Some(Failure::RefusedBy(Refusal::Superseded { .. })) => true,
            Some(Failure::RefusedBy(refusal)) => refusal.is_of_namesake(),
            reported => *reported == Some(Failure::RefusedAsRevoked),
        }
    }

    /// The last failure that was reported is this one.
    pub(super) fn has_reported(&self, failure: &Failure) -> bool {
        self.reported.as_ref() == Some(failure)
    }

    /// It was lost a moment ago, or is known to live again.
    pub(super) fn is_fresh(&self) -> bool {
        self.status != Status::Offline || self.reason == Some(Reason::Replaced)
    }

    /// True when this failure has not been reported since the peer was last linked.
    pub(super) fn report(&mut self, failure: &Failure) -> bool {
        self.cause = Some(failure.to_string());
        let news = self.reported.as_ref() != Some(failure);
        self.reported = Some(failure.clone());
        news
    }

    /// Whether a link with this life of the peer may be.
    pub(super) fn judge(&mut self, hello: &Hello, now: Instant) -> Result<(), Refusal> {
        let other_process = self.boot.is_some_and(|boot| boot != hello.boot);
        let older = match hello.incarnation.cmp(&self.incarnation) {
            std::cmp::Ordering::Greater => false,
            std::cmp::Ordering::Equal => other_process,
            std::cmp::Ordering::Less => true,
        };
        let linked = self.live.as_ref().map(|live| live.address);
        if older && (linked.is_some() || !self.insistence.is_enough(hello.boot, now)) {
            return Err(Refusal::Stale { known: self.incarnation, linked });
        }
        Ok(())
    }

    /// Another key is the name's: what is known of lives was of the one before.
    pub(super) fn rekey(&mut self) {
        (self.incarnation, self.boot) = (Incarnation(0), None);
        self.insistence = Insistence::default();
    }

    /// Remembers what a judged hello says.
    pub(super) fn meet(&mut self, hello: &Hello) {
        let later = hello.incarnation > self.incarnation;
        self.incarnation = hello.incarnation;
        self.boot = Some(hello.boot);
        if usable(hello.advertise) {
            self.learn_first(hello.advertise);
        }
        if self.left() && later {
            self.reason = Some(Reason::Unreachable);
        }
    }

    /// Closes the link, if there is one, in favour of a newer.
    pub(super) fn replace(
        &mut self,
        name: &NodeName,
        incarnation: Incarnation,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        if let Some(old) = self.live.take() {
            out.push(Output::Close(old.attempt, CloseReason::Replaced));
            let peer = name.clone();
            out.push(Output::Announce(Event::LinkReplaced { peer, incarnation }));
            self.set(name, Status::Connecting, None, now, out);
        }
    }

    /// Both sides agreed: this attempt is the link.
    pub(super) fn link(
        &mut self,
        name: &NodeName,
        live: Live,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        self.live = Some(live);
        self.insistence = Insistence::default();
        self.next_dial = None;
        (self.cause, self.reported) = (None, None);
        self.begin_round();
        self.set(name, Status::Syncing, None, now, out);
    }

    pub(super) fn ready(&mut self, name: &NodeName, now: Instant, out: &mut Vec<Output>) {
        if let Some(live) = &mut self.live {
            live.ready = true;
            self.was_ready = true;
            self.set(name, Status::Online, None, now, out);
        }
    }

    /// The link is gone against everybody's will: the peer is offline for a reason that is known
    /// at once, or being dialed again.
    pub(super) fn lost(
        &mut self,
        name: &NodeName,
        cause: &str,
        offline: Option<Reason>,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let (peer, cause) = (name.clone(), cause.to_owned());
        self.cause = Some(cause.clone());
        out.push(Output::Announce(Event::LinkLost { peer, cause }));
        let status = if offline.is_some() { Status::Offline } else { Status::Connecting };
        self.set(name, status, offline, now, out);
    }

    pub(super) fn set(
        &mut self,
        name: &NodeName,
        status: Status,
        reason: Option<Reason>,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        if (self.status, self.reason) == (status, reason) {
            return;
        }
        (self.status, self.reason, self.since) = (status, reason, now);
        let peer = name.clone();
        let incarnation = self.incarnation;
        let address = self.live.as_ref().map(|live| live.address);
        out.push(Output::Announce(match (status, reason, address) {
            (Status::Online, _, Some(address)) => Event::PeerOnline { peer, incarnation, address },
            (Status::Syncing, _, Some(address)) => {
                Event::PeerSyncing { peer, incarnation, address }
            }
            (Status::Offline, Some(reason), _) => Event::PeerOffline { peer, reason },
            _ => Event::PeerConnecting { peer },
        }));
    }
}
