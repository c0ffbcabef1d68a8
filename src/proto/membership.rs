//! Who is a peer, which peers are linked, and whom to dial next.
//!
//! The machine behind NodeManager. It turns hints, the steps of connection attempts and the ends of
//! links into dials, judgements and a status for every peer. It reconciles: a wanted peer without a
//! link is dialed until it is linked, leaves, or is forgotten.
//!
//! # An attempt, step by step
//! ```text
//! outbound   Dial → Connected (certificate read) → Proceed (send Hello)
//!                 → Welcomed → Proceed (send Confirm; this is now the link)
//! inbound    Greeted (Hello read) → Proceed (send Welcome) → Confirmed → Proceed (the link)
//! link       Ready (ractor's sessions agree) → … → Ended
//! ```
//! At each step the machine may answer `Refuse` or `Abandon` instead. `Failed` reports an attempt
//! that ended before it became a link.
//!
//! # Crossed dials
//! A hello arrives while our own hello to that peer is unanswered: the dial of the node whose name
//! sorts first wins. The winner refuses the other (`Crossed`), the loser drops its own. A dial that
//! has not sent its hello yet always gives way. While a welcome of ours is unconfirmed, we dial that
//! peer no more. So of two crossed dials exactly one is confirmed.
//!
//! # Invariants
//! 1. One link per peer at most; a second one closes the first before it takes its place.
//! 2. The known incarnation of a peer never falls; an older life is refused and told why.
//! 3. At most `dials` outbound attempts at once; none to a linked peer, to ourselves, or to a peer
//!    that left (until a later life of it is heard of).
//! 4. A wanted peer without link or attempt has a time for its next dial.
//! 5. A hint never ends a live link, except the peer's own signed word that it lives a later life.
//! 6. A forgotten life is not dialed: only the node itself (a beacon, its certificate, a greeting) or word of a later
//!    life brings it back.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::StdRng;

use crate::proto::event::{Event, Reason, Source, Status};
use crate::proto::frame::CloseReason;
use crate::proto::hello::{Hello, Refusal};
use crate::proto::node::{Contact, Incarnation, NodeName};

mod endings;
mod forgotten;
mod majority;
mod peer;
mod seed;
mod words;
use forgotten::get_or_insert;
pub use majority::Majority;
use peer::{Live, Peer};
pub use peer::{PeerView, usable};
pub use seed::{JoinView, SeedView};
use seed::{Namesake, Seed};
pub use words::{AttemptId, Config, Failure, Input, LinkEnd, Output};

/// An outbound attempt in progress.
#[derive(Clone, Debug)]
struct Dialing {
    target: Target,
    address: SocketAddr,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    Peer(NodeName),
    Seed,
}

/// The machine.
#[derive(Debug)]
pub struct Membership {
    config: Config,
    me: NodeName,
    incarnation: Incarnation,
    peers: BTreeMap<NodeName, Peer>,
    /// The lives that are forgotten, of nodes that are no peers.
    forgotten: BTreeMap<NodeName, Incarnation>,
    seeds: BTreeMap<SocketAddr, Seed>,
    /// What this process says in its hellos: the number that no other process has, and its address.
    own: Option<(u64, SocketAddr)>,
    namesake: Namesake,
    /// What each node was refused for last, and when that was announced.
    refused: BTreeMap<NodeName, (Refusal, Instant)>,
    dialing: BTreeMap<AttemptId, Dialing>,
    next_attempt: u64,
    leaving: bool,
    /// When the next tick is wanted: asked for far more often than it changes.
    deadline: Option<Instant>,
    rng: StdRng,
}

/// A told incarnation this far above our own is not believed: it would use up the counter.
const LARGEST_RAISE: u64 = 1_000_000;

impl Membership {
    /// A node that knows nobody. `first_attempt` numbers its dials: higher than any that an earlier
    /// machine of the same process has given out.
    pub fn new(
        config: Config,
        me: NodeName,
        incarnation: Incarnation,
        first_attempt: u64,
        rng: StdRng,
    ) -> Self {
        Self {
            config,
            me,
            incarnation,
            peers: BTreeMap::new(),
            forgotten: BTreeMap::new(),
            seeds: BTreeMap::new(),
            own: None,
            namesake: Namesake::default(),
            refused: BTreeMap::new(),
            dialing: BTreeMap::new(),
            next_attempt: first_attempt,
            leaving: false,
            deadline: None,
            rng,
        }
    }

    /// The peers, by name.
    pub fn peers(&self) -> impl Iterator<Item = PeerView> + '_ {
        self.peers.iter().map(|(name, peer)| peer.view(name))
    }

    /// One peer.
    pub fn peer(&self, name: &NodeName) -> Option<PeerView> {
        self.peers.get(name).map(|peer| peer.view(name))
    }

    /// This node's own life.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Takes one input and appends what follows from it. False when nothing can: no peer looks other
    /// than before.
    pub fn handle(&mut self, input: Input, now: Instant, out: &mut Vec<Output>) -> bool {
        match input {
            Input::Hint(contact, source) => {
                // Almost all that nodes tell each other is known: nothing is due because of it.
                if !self.hint(contact, source, now, out) {
                    return false;
                }
            }
            Input::Seed(address) => {
                if usable(address) {
                    self.seeds.entry(address).or_insert_with(|| Seed::new(now));
                }
            }
            Input::Namesake(address) => self.meet_namesake(address, now, out),
            Input::Connected(attempt, name) => self.connected(attempt, name, now, out),
            Input::Greeted(attempt, hello) => match self.greeted(attempt, &hello, now, out) {
                Ok(()) => out.push(Output::Proceed(attempt)),
                Err(refusal) => self.refuse(attempt, hello.name, refusal, now, out),
            },
            Input::Welcomed(attempt, hello) => self.welcomed(attempt, hello, now, out),
            Input::Confirmed(attempt) => self.confirmed(attempt, now, out),
            Input::Failed(attempt, failure) => self.failed(attempt, failure, now, out),
            Input::Ready(attempt) => {
                if let Some((name, peer)) = self.linked_by(attempt) {
                    peer.ready(&name, now, out);
                    self.refused.remove(&name);
                }
            }
            Input::Ended(attempt, end) => self.ended(attempt, end, now, out),
            Input::Silent(name) => {
                let why = ("not heard for too long", Reason::Unreachable);
                self.give_up(&name, CloseReason::Silent, why, now, out);
            }
            Input::Misbehaved(name) => {
                let why = ("keeps breaking rules", Reason::Rejected);
                self.give_up(&name, CloseReason::Misbehaved, why, now, out);
            }
            Input::Disconnect(name) => {
                let why = ("ended by an operator", Reason::Disconnected);
                self.give_up(&name, CloseReason::Disconnected, why, now, out);
            }
            Input::Forget { name, life, known } => self.forget(name, life, known, out),
            Input::Revive(name) => drop(self.forgotten.remove(&name)),
            Input::Revoked(link) => self.revoked(link, now, out),
            Input::Existing(attempt, hello, ready) => {
                self.existing(attempt, &hello, ready, now, out)
            }
            Input::Stop => self.stop(now, out),
            Input::Tick => {}
        }
        self.bury(now);
        self.namesake.expire(now);
        self.dial(now, out);
        let buried = self.peers.values().filter_map(|p| p.buried(self.config.tombstone)).min();
        let dial = (self.dialing.len() < self.config.dials).then(|| self.next_due()).flatten();
        let due = dial.map(|(at, _)| at).into_iter().chain(buried);
        self.deadline = due.chain(self.namesake.until()).min();
        true
    }

    /// When the machine wants its next [`Input::Tick`].
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether anything can follow from the hint, or the peer looks other than before.
    fn hint(
        &mut self,
        contact: Contact,
        source: Source,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> bool {
        let Contact { name, address, incarnation } = contact;
        if name == self.me || !usable(address) || self.leaving {
            return false;
        }
        if !self.peers.contains_key(&name) {
            if self.peers.len() >= self.config.peers
                || !self.accepts_hint(&name, incarnation, source)
            {
                return false;
            }
            out.push(Output::Announce(Event::PeerDiscovered {
                peer: name.clone(),
                address,
                source,
            }));
            out.push(Output::Announce(Event::PeerConnecting { peer: name.clone() }));
        }
        let peer = get_or_insert((&mut self.peers, &mut self.forgotten), &name, now);
        let older_life = incarnation != Incarnation(0) && incarnation < peer.incarnation;
        let newer_life = incarnation > peer.incarnation && peer.incarnation != Incarnation(0);
        if older_life || peer.left() && !newer_life {
            return false;
        }
        let first = peer.first_address();
        let news = match source {
            Source::Beacon | Source::Seed | Source::Link => peer.learn_first(address),
            Source::Peer | Source::Remembered => peer.learn_last(address),
        };
        let signed = source == Source::Beacon;
        if let Some(live) = peer.live.take_if(|_| newer_life && signed) {
            out.push(Output::Close(live.attempt, CloseReason::Replaced));
            let cause = "a later life of the peer is announced";
            peer.lost(&name, cause, Some(Reason::Replaced), now, out);
        }
        if newer_life || (news || signed) && !peer.refuses_us() {
            peer.expedite_dial(now);
        }
        let shows = first != peer.first_address();
        newer_life || news || shows || signed && peer.idle()
    }

    /// A link that outlived the machine before. A peer may have two: an ending one and its heir.
    fn existing(
        &mut self,
        attempt: AttemptId,
        hello: &Hello,
        ready: bool,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let name = &hello.name;
        let peer = get_or_insert((&mut self.peers, &mut self.forgotten), name, now);
        if peer.judge(hello).is_err() {
            return out.push(Output::Close(attempt, CloseReason::Replaced));
        }
        // A hint may have been faster than the news of the link.
        if let Some(needless) = peer.dialing.take() {
            self.dialing.remove(&needless);
            out.push(Output::Abandon(needless));
        }
        peer.replace(name, hello.incarnation, now, out);
        peer.meet(hello);
        peer.link(name, Live::new(attempt, hello.advertise, now), now, out);
        if ready {
            peer.ready(name, now, out);
        }
    }

    fn connected(
        &mut self,
        attempt: AttemptId,
        name: NodeName,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Some(dialing) = self.dialing.get(&attempt).cloned() else {
            return out.push(Output::Abandon(attempt));
        };
        let address = dialing.address;
        if dialing.target == Target::Peer(name.clone()) {
            if let Some(peer) = self.peers.get_mut(&name) {
                peer.greeting = true;
            }
            return out.push(Output::Proceed(attempt));
        }
        if dialing.target == Target::Seed && name == self.me {
            // This process, or another of its name: the answer to the hello tells.
            return out.push(Output::Proceed(attempt));
        }
        self.dialing.remove(&attempt);
        if let Target::Peer(expected) = dialing.target {
            let found = Failure::Rejected(format!("{name} is there instead"));
            self.round(expected.clone(), address, found, now, out);
            self.peers.entry(expected).and_modify(|peer| peer.forget_address(address));
        }
        if let Some(seed) = self.seeds.get_mut(&address) {
            seed.identified(name.clone(), now + self.config.backoff.cap);
        }
        let contact = Contact { name: name.clone(), address, incarnation: Incarnation(0) };
        self.hint(contact, Source::Seed, now, out);
        // The connection at hand serves the peer that was found, if that has none yet.
        match self.peers.get_mut(&name) {
            Some(peer) if peer.idle() && !self.leaving => {
                peer.take_up(attempt);
                self.dialing.insert(attempt, Dialing { target: Target::Peer(name), address });
                out.push(Output::Proceed(attempt));
            }
            _ => out.push(Output::Abandon(attempt)),
        }
    }

    fn greeted(
        &mut self,
        attempt: AttemptId,
        hello: &Hello,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        let name = &hello.name;
        if self.leaving {
            return Err(Refusal::Leaving);
        }
        if *name == self.me {
            let Some((_, at)) = self.own.filter(|(boot, _)| *boot != hello.boot) else {
                return Err(Refusal::Myself);
            };
            self.meet_namesake(hello.advertise, now, out);
            return Err(Refusal::Stale { known: self.incarnation, linked: Some(at) });
        }
        self.check_resurrection(hello)?;
        let crossed_wins = self.me < *name;
        let known = self.peers.contains_key(name);
        let peer = get_or_insert((&mut self.peers, &mut self.forgotten), name, now);
        peer.judge(hello)?;
        if peer.dialing.is_some() && peer.greeting && crossed_wins {
            return Err(Refusal::Crossed);
        }
        if !known {
            let (peer, address) = (name.clone(), hello.advertise);
            let found = Event::PeerDiscovered { peer, address, source: Source::Link };
            out.push(Output::Announce(found));
        }
        if let Some(dial) = peer.dialing.take() {
            self.dialing.remove(&dial);
            out.push(Output::Abandon(dial));
        }
        if let Some(earlier) = peer.inbound.replace(attempt) {
            out.push(Output::Abandon(earlier));
        }
        if hello.incarnation > peer.incarnation {
            peer.replace(name, hello.incarnation, now, out);
        }
        peer.meet(hello);
        Ok(())
    }

    fn welcomed(&mut self, attempt: AttemptId, hello: Hello, now: Instant, out: &mut Vec<Output>) {
        let Some(Dialing { target, address }) = self.dialing.remove(&attempt) else {
            return out.push(Output::Abandon(attempt));
        };
        let Target::Peer(name) = target else {
            out.push(Output::Abandon(attempt));
            let there = Failure::Rejected("a node of this node's name is there".to_owned());
            return self.seed_failed(address, there, now, out);
        };
        let Some(peer) = self.peers.get_mut(&name) else {
            return out.push(Output::Abandon(attempt));
        };
        if let Err(refusal) = peer.judge(&hello) {
            self.refuse(attempt, name.clone(), refusal, now, out);
            let cause = Failure::Rejected(format!("refused here: {refusal}"));
            return self.round(name, address, cause, now, out);
        }
        peer.dialing = None;
        peer.meet(&hello);
        peer.learn_first(address);
        peer.link(&name, Live::new(attempt, address, now), now, out);
        out.push(Output::Proceed(attempt));
    }

    fn confirmed(&mut self, attempt: AttemptId, now: Instant, out: &mut Vec<Output>) {
        let found = self.peers.iter_mut().find(|(_, peer)| peer.inbound == Some(attempt));
        let Some((name, peer)) = found else {
            return out.push(Output::Abandon(attempt));
        };
        peer.inbound = None;
        peer.replace(name, peer.incarnation, now, out);
        let address = peer.first_address().unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
        peer.link(name, Live::new(attempt, address, now), now, out);
        out.push(Output::Proceed(attempt));
    }

    fn failed(
        &mut self,
        attempt: AttemptId,
        failure: Failure,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        if self.linked_by(attempt).is_some() {
            // Its last greeting could not be written: it never became the link it was taken for.
            return self.ended(attempt, LinkEnd::Closed, now, out);
        }
        if let Failure::RefusedBy(refusal) = failure {
            self.refused_by(attempt, refusal, now, out);
        }
        if let Some(Dialing { target, address }) = self.dialing.remove(&attempt) {
            match target {
                Target::Peer(name) if matches!(&failure, Failure::Revoked(who) if *who != name) => {
                    let found = Failure::Rejected(format!("another node is there: {failure}"));
                    self.round(name, address, found, now, out);
                }
                Target::Peer(name) => self.round(name, address, failure, now, out),
                Target::Seed => self.seed_failed(address, failure, now, out),
            }
        } else if let Some(peer) = self.peers.values_mut().find(|p| p.inbound == Some(attempt)) {
            peer.inbound = None;
            if !peer.left() {
                peer.next_dial = Some(now);
            }
        }
    }

    /// One address of a peer failed: on to its next one, or to the wait before the next round.
    fn round(
        &mut self,
        name: NodeName,
        address: SocketAddr,
        failure: Failure,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Some(peer) = self.peers.get_mut(&name) else { return };
        peer.dialing = None;
        if peer.left() {
            return; // a seed led to it while it was still on its way out
        }
        if failure == Failure::RefusedBy(Refusal::Crossed) {
            let jitter = self.rng.random_range(Duration::ZERO..=self.config.crossed);
            peer.next_dial = Some(now + self.config.crossed / 2 + jitter);
            return;
        }
        if failure == Failure::RefusedBy(Refusal::Leaving) && peer.incarnation != Incarnation(0) {
            // Its goodbye got lost, because it took the link for unconfirmed.
            peer.next_dial = None;
            return peer.set(&name, Status::Offline, Some(Reason::Left), now, out);
        }
        if let Some(round) = peer.address_failed(address, &failure) {
            let wait = peer.backoff.fail(self.config.backoff, &mut self.rng);
            peer.next_dial = Some(now + wait);
            if peer.report(&failure) {
                if failure == Failure::RefusedAsRevoked {
                    out.push(Output::Announce(Event::CertificateRefused { peer: name.clone() }));
                }
                let (peer, cause) = (Some(name.clone()), failure.to_string());
                out.push(Output::Announce(Event::DialFailed { peer, address, cause }));
            }
            if peer.is_news(round) {
                peer.set(&name, Status::Offline, Some(round), now, out);
            }
        } else {
            peer.next_dial = Some(now);
        }
    }

    fn ended(&mut self, attempt: AttemptId, end: LinkEnd, now: Instant, out: &mut Vec<Output>) {
        let (config, leaving) = (self.config, self.leaving);
        let Some(name) = self.linked_by(attempt).map(|(name, _)| name) else { return };
        let Some(peer) = self.peers.get_mut(&name) else { return };
        let Some(live) = peer.live.take() else { return };
        let later = now + config.backoff.cap;
        self.seeds.values_mut().for_each(|seed| seed.leave_to(&name, later));
        if leaving {
            return;
        }
        let up = now.saturating_duration_since(live.up);
        if up >= config.steady {
            peer.backoff.reset();
        }
        // A link that worked is dialed again at once: that tells a crash from a cut in milliseconds.
        let at_once = live.ready && (peer.backoff.failures() == 0 || peer.rested(now));
        let barred =
            matches!(end, LinkEnd::Goodbye(CloseReason::Revoked | CloseReason::Disconnected));
        let clean = matches!(end, LinkEnd::Closed | LinkEnd::Goodbye(_)) && !barred;
        peer.next_dial = Some(if clean && at_once {
            now
        } else {
            now + peer.backoff.fail(config.backoff, &mut self.rng)
        });
        let offline = match &end {
            LinkEnd::Goodbye(CloseReason::Left) => {
                peer.next_dial = None;
                Some(Reason::Left)
            }
            LinkEnd::TimedOut => Some(Reason::Unreachable),
            LinkEnd::Fault(_) => Some(Reason::Rejected),
            LinkEnd::Goodbye(CloseReason::Revoked) => {
                if peer.report(&Failure::RefusedAsRevoked) {
                    out.push(Output::Announce(Event::CertificateRefused { peer: name.clone() }));
                }
                Some(Reason::Rejected)
            }
            LinkEnd::Closed
            | LinkEnd::Goodbye(
                CloseReason::Replaced
                | CloseReason::Renewed
                | CloseReason::Silent
                | CloseReason::Misbehaved,
            ) => None,
            LinkEnd::Goodbye(CloseReason::Disconnected) => Some(Reason::Disconnected),
        };
        if offline == Some(Reason::Left) {
            peer.set(&name, Status::Offline, offline, now, out);
        } else {
            peer.lost(&name, &end.to_string(), offline, now, out);
        }
    }

    /// Forgets peers that left long ago.
    fn bury(&mut self, now: Instant) {
        let tombstone = self.config.tombstone;
        self.peers.retain(|_, peer| peer.buried(tombstone).is_none_or(|at| at > now));
    }

    /// The target that has waited longest, and since when it is due.
    fn next_due(&self) -> Option<(Instant, Result<NodeName, SocketAddr>)> {
        if self.leaving {
            return None;
        }
        // The last dial is kept for news: a peer just lost does not wait for those lost long ago.
        let last = self.config.dials > 1 && self.dialing.len() + 1 >= self.config.dials;
        let due = |(name, peer): (&NodeName, &Peer)| {
            let at = peer.due().filter(|_| !last || peer.is_fresh())?;
            Some((at, Ok(name.clone())))
        };
        let peers = self.peers.iter().filter_map(due);
        let linked = |name: &NodeName| self.peers.get(name).is_some_and(|p| !p.idle());
        let seeds = self.seeds.iter().filter(|(_, seed)| !last || seed.is_news());
        let seeds = seeds.filter_map(|(a, s)| Some((s.due(linked)?, Err(*a))));
        peers.chain(seeds).min_by_key(|(at, _)| *at)
    }

    fn dial(&mut self, now: Instant, out: &mut Vec<Output>) {
        while self.dialing.len() < self.config.dials {
            let Some((_, target)) = self.next_due().filter(|(at, _)| *at <= now) else { return };
            let attempt = AttemptId::Outbound(self.next_attempt);
            self.next_attempt += 1;
            let (target, address) = match target {
                Ok(name) => {
                    let peer = self.peers.get_mut(&name);
                    let Some(address) = peer.and_then(|p| p.dial(attempt, now)) else { return };
                    (Target::Peer(name), address)
                }
                Err(address) => {
                    self.seeds.entry(address).and_modify(|seed| seed.dialed(now));
                    (Target::Seed, address)
                }
            };
            self.dialing.insert(attempt, Dialing { target, address });
            out.push(Output::Dial(attempt, address));
        }
    }

    fn linked_by(&mut self, attempt: AttemptId) -> Option<(NodeName, &mut Peer)> {
        let mut peers = self.peers.iter_mut();
        peers
            .find(|(_, peer)| peer.live.as_ref().is_some_and(|live| live.attempt == attempt))
            .map(|(name, peer)| (name.clone(), peer))
    }

    fn name_of(&self, attempt: AttemptId) -> Option<NodeName> {
        match self.dialing.get(&attempt).map(|dialing| &dialing.target) {
            Some(Target::Peer(name)) => Some(name.clone()),
            Some(Target::Seed) => None,
            None => {
                let inbound = |peer: &Peer| peer.inbound == Some(attempt);
                self.peers.iter().find(|(_, peer)| inbound(peer)).map(|(name, _)| name.clone())
            }
        }
    }
}

#[cfg(test)]
mod tests;
