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
//! 2. What is known of a peer's life comes from the peer itself: its hello or its signed beacon. It never falls while the
//!    name is of one key, and an older life is refused and told why, unless its process goes on asking while no later one
//!    is linked here. A key that was issued later starts anew, and the one before is refused.
//! 3. At most `dials` outbound attempts at once, each until its link is ready; none to a linked peer, to ourselves, or to
//!    a peer that left (until a later life of it is heard of).
//! 4. A wanted peer without link or attempt has a time for its next dial.
//! 5. A hint never ends a live link, except the peer's own signed word that it lives a later life.
//! 6. A forgotten life is not dialed: only the node itself (a beacon, its certificate, a greeting) or word of a later
//!    life brings it back. What was forgotten is no reason to refuse it.
//! 7. Nothing that a peer says of this node's life ends a link of this node.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::StdRng;

use crate::proto::event::{Event, Reason, Source, Status};
use crate::proto::frame::CloseReason;
use crate::proto::hello::{Hello, Refusal};
use crate::proto::node::{Contact, Credential, Incarnation, NodeName};

mod dials;
mod endings;
mod existing;
mod forgotten;
mod keys;
mod majority;
mod peer;
mod rumours;
mod seed;
mod words;
use endings::Claims;
use forgotten::{Forgotten, get_or_insert};
pub use majority::Majority;
use peer::{Live, Peer};
pub use peer::{PeerView, usable};
use rumours::Rumours;
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
    /// A node of which others speak.
    Rumour(NodeName),
    Seed,
}

/// The machine.
#[derive(Debug)]
pub struct Membership {
    config: Config,
    me: NodeName,
    incarnation: Incarnation,
    peers: BTreeMap<NodeName, Peer>,
    /// Nodes that are forgotten and are no peers.
    forgotten: BTreeMap<NodeName, Forgotten>,
    seeds: BTreeMap<SocketAddr, Seed>,
    rumours: Rumours,
    /// The key that each name is of.
    keys: BTreeMap<NodeName, Credential>,
    /// The attempt that has shown a certificate of an earlier key, until its next step.
    outdated: Option<(AttemptId, Refusal)>,
    /// What this process says in its hellos: the number that no other process has, and its address.
    own: Option<(u64, SocketAddr)>,
    namesake: Namesake,
    claims: Claims,
    /// What each node was refused for last, and when that was announced.
    refused: BTreeMap<NodeName, (Refusal, Instant)>,
    dialing: BTreeMap<AttemptId, Dialing>,
    next_attempt: u64,
    leaving: bool,
    /// When the next tick is wanted: asked for far more often than it changes.
    deadline: Option<Instant>,
    rng: StdRng,
}

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
            rumours: Rumours::default(),
            keys: BTreeMap::new(),
            outdated: None,
            own: None,
            namesake: Namesake::default(),
            claims: Claims::default(),
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
            Input::Beacon(contact, shown) => {
                if !self.beacon(contact, shown, now, out) {
                    return false;
                }
            }
            Input::Shown(attempt, name, it) => self.attempt_shows(attempt, &name, it, now, out),
            Input::Told(by, contact) => {
                if !self.hearsay(&by, contact, now) {
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
            Input::Forget { name, life, known, author } => {
                self.forget(name, life, (known, author), now, out);
            }
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
        let dial = (self.under_way() < self.config.dials).then(|| self.next_due()).flatten();
        let rumour = self.next_rumour(now).map(|(at, _)| at.max(now));
        let due = dial.map(|(at, _)| at).into_iter().chain(rumour).chain(buried);
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
        if let Some(refusal) = self.take_outdated(attempt) {
            self.dialing.remove(&attempt);
            self.refuse(attempt, name, refusal, now, out);
            let found = Failure::Rejected(format!("refused here: {refusal}"));
            return self.dial_ended(dialing, found, now, out);
        }
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
        let mut source = Source::Seed;
        match dialing.target {
            Target::Peer(expected) => {
                let found = Failure::Rejected(format!("{name} is there instead"));
                self.round(expected.clone(), address, found, now, out);
                self.peers.entry(expected).and_modify(|peer| peer.forget_address(address));
            }
            Target::Rumour(expected) => {
                let found = expected == name;
                self.rumours.ended(&(expected, address), !found, now);
                if found && !self.forgotten.contains_key(&name) {
                    source = Source::Peer;
                }
            }
            Target::Seed => {}
        }
        if let Some(seed) = self.seeds.get_mut(&address) {
            seed.identified(name.clone(), now + self.config.backoff.cap);
        }
        let contact = Contact { name: name.clone(), address, incarnation: Incarnation(0) };
        self.rumours.settled(&name, now);
        self.hint(contact, source, now, out);
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
        if let Some(refusal) = self.take_outdated(attempt) {
            return Err(refusal);
        }
        if *name == self.me {
            let Some((_, at)) = self.own.filter(|(boot, _)| *boot != hello.boot) else {
                return Err(Refusal::Myself);
            };
            self.meet_namesake(hello.advertise, now, out);
            return Err(Refusal::Stale { known: self.incarnation, linked: Some(at) });
        }
        self.check_resurrection(hello, now)?;
        let crossed_wins = self.me < *name;
        let known = self.peers.contains_key(name);
        let peer = get_or_insert((&mut self.peers, &mut self.forgotten), name, now);
        peer.judge(hello, now)?;
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
        self.rumours.settled(name, now);
        // A dial that has not sent its hello gives way, no matter who spoke of that node.
        self.dialing.retain(|dial, it| {
            let rumoured = it.target == Target::Rumour(name.clone());
            out.extend(rumoured.then_some(Output::Abandon(*dial)));
            !rumoured
        });
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
        if let Err(refusal) = peer.judge(&hello, now) {
            self.refuse(attempt, name.clone(), refusal, now, out);
            let cause = Failure::Rejected(format!("refused here: {refusal}"));
            return self.round(name, address, cause, now, out);
        }
        peer.dialing = None;
        peer.meet(&hello);
        peer.learn_first(address);
        peer.link(&name, Live::new(attempt, address, now), now, out);
        self.claims.linked();
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
        self.claims.linked();
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
                Target::Rumour(name) => self.rumours.ended(&(name, address), true, now),
                Target::Seed => self.seed_failed(address, failure, now, out),
            }
        } else if let Some(peer) = self.peers.values_mut().find(|p| p.inbound == Some(attempt)) {
            peer.inbound = None;
            if !peer.left() {
                peer.dial_instead(now);
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

    fn linked_by(&mut self, attempt: AttemptId) -> Option<(NodeName, &mut Peer)> {
        let mut peers = self.peers.iter_mut();
        peers
            .find(|(_, peer)| peer.live.as_ref().is_some_and(|live| live.attempt == attempt))
            .map(|(name, peer)| (name.clone(), peer))
    }
}

#[cfg(test)]
mod tests;
