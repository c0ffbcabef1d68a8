//! How this node refuses attempts, and ends links on purpose: one that is worth nothing, or all of them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::proto::event::{Event, Reason};
use crate::proto::frame::CloseReason;
use crate::proto::hello::Refusal;
use crate::proto::membership::{AttemptId, Dialing, Failure, Membership, Output, Target};
use crate::proto::node::{Incarnation, NodeName};

/// A node that is refused again and again for one reason is announced this often.
const REFUSED_AGAIN: Duration = Duration::from_secs(60);
/// A told incarnation this far above our own is not believed: it would use up the counter.
const LARGEST_RAISE: u64 = 1_000_000;
/// Between two renewals of this node's life.
const RENEW_AGAIN: Duration = Duration::from_secs(60);
/// Peers that must agree on a later life of this node once it had a link in its own.
const WITNESSES: usize = 2;

/// What peers say of a later life of this node.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// There was a link in this life.
    linked: bool,
    /// Who says so, since the last link came up.
    by: BTreeSet<NodeName>,
    renewed: Option<Instant>,
}

impl Claims {
    /// There is a link: this life is the one that peers know.
    pub(super) fn linked(&mut self) {
        self.linked = true;
        self.by.clear();
    }
}

impl Membership {
    /// Refuses an attempt, and announces that once a minute for each node.
    pub(super) fn refuse(
        &mut self,
        attempt: AttemptId,
        peer: NodeName,
        refusal: Refusal,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        out.push(Output::Refuse(attempt, refusal));
        // The dials of two nodes cross every day; what concerns this node's own name is announced otherwise.
        if refusal == Refusal::Crossed || peer == self.me {
            return;
        }
        let announced = self.refused.get(&peer);
        if announced.is_none_or(|(last, at)| *last != refusal || now >= *at + REFUSED_AGAIN) {
            if self.refused.len() >= self.config.peers {
                self.refused.clear();
            }
            self.refused.insert(peer.clone(), (refusal, now));
            out.push(Output::Announce(Event::LinkRefused { peer, refusal }));
        }
    }

    /// The other side refuses this node in its hello.
    pub(super) fn refused_by(
        &mut self,
        attempt: AttemptId,
        refusal: Refusal,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        // A peer that dials and then refuses is dialed instead: what it says counts where this node asked.
        let Some(target) = self.dialing.get(&attempt).map(|dialing| dialing.target.clone()) else {
            return;
        };
        // At a seed it is a process with this node's own certificate that answers.
        let peer = if let Target::Peer(peer) = target { Some(peer) } else { None };
        let failure = Failure::RefusedBy(refusal);
        let news = |peer: &&NodeName| {
            self.peers.get(*peer).is_none_or(|known| !known.has_reported(&failure))
        };
        // A crossed dial is the everyday end of two nodes that dialed at once.
        if let Some(peer) = peer.as_ref().filter(|_| refusal != Refusal::Crossed).filter(news) {
            out.push(Output::Announce(Event::RefusedBy { peer: peer.clone(), refusal }));
        }
        match refusal {
            Refusal::Stale { known, linked } => {
                let sound = peer.is_none_or(|peer| self.is_witnessed(peer));
                match linked {
                    Some(at) if sound => self.meet_namesake(at, now, out),
                    None if sound => self.renew(known, now, out),
                    Some(_) | None => {}
                }
            }
            Refusal::Name
            | Refusal::Cluster
            | Refusal::Crossed
            | Refusal::Myself
            | Refusal::Leaving
            | Refusal::Unexpected
            | Refusal::Superseded { .. } => {}
        }
    }

    /// A link is worth nothing, whatever the kernel says: not heard for too long, or abused.
    pub(super) fn give_up(
        &mut self,
        name: &NodeName,
        parting: CloseReason,
        (cause, reason): (&str, Reason),
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        if let Some(live) = peer.live.take() {
            out.push(Output::Close(live.attempt, parting));
            peer.next_dial = Some(now + peer.backoff.fail(self.config.backoff, &mut self.rng));
            peer.lost(name, cause, Some(reason), now, out);
        }
    }

    /// What proved the peer's name proves it no more.
    pub(super) fn revoked(&mut self, link: AttemptId, now: Instant, out: &mut Vec<Output>) {
        if let Some(name) = self.linked_by(link).map(|(name, _)| name) {
            let why = ("its certificate is revoked", Reason::Revoked);
            self.give_up(&name, CloseReason::Revoked, why, now, out);
        }
    }

    /// Whether it counts that this peer, too, says that a later life of this node is known: while no link shows the
    /// opposite, before the first link of this life, or where two say so.
    fn is_witnessed(&mut self, by: NodeName) -> bool {
        let refuted = self.peers.values().any(|peer| peer.live.is_some());
        if !refuted {
            self.claims.by.insert(by);
        }
        !refuted && (!self.claims.linked || self.claims.by.len() >= WITNESSES)
    }

    /// Peers know of a later life of this node than it remembers itself, and that life is gone:
    /// the data directory was lost or rolled back. Go on above it. (While the later life is linked
    /// somewhere, it is another process that owns the name, and this one stays out.)
    fn renew(&mut self, known: Incarnation, now: Instant, out: &mut Vec<Output>) {
        let ahead = known.0.saturating_sub(self.incarnation.0);
        let rests = self.claims.renewed.is_some_and(|at| now < at + RENEW_AGAIN);
        if known < self.incarnation || ahead > LARGEST_RAISE || rests {
            return;
        }
        self.claims = Claims { renewed: Some(now), ..Claims::default() };
        self.incarnation = known.next();
        out.push(Output::Renew(self.incarnation));
        out.push(Output::Announce(Event::IncarnationRaised { to: self.incarnation }));
        self.drop_everything(CloseReason::Renewed, now, out);
    }

    pub(super) fn stop(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.leaving = true;
        self.drop_everything(CloseReason::Left, now, out);
    }

    fn drop_everything(&mut self, parting: CloseReason, now: Instant, out: &mut Vec<Output>) {
        for (attempt, Dialing { target, address }) in std::mem::take(&mut self.dialing) {
            out.push(Output::Abandon(attempt));
            if let Target::Rumour(name) = target {
                self.rumours.ended(&(name, address), false, now);
            }
        }
        for (name, peer) in &mut self.peers {
            peer.dialing = None;
            out.extend(peer.inbound.take().map(Output::Abandon));
            if let Some(live) = peer.live.take() {
                out.push(Output::Close(live.attempt, parting));
                if !self.leaving {
                    peer.lost(name, "this node renews its incarnation", None, now, out);
                }
            }
            if !peer.left() {
                peer.next_dial = Some(now);
            }
        }
        self.seeds.values_mut().for_each(|seed| seed.retry(now));
    }
}
