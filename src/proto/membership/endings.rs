//! How this node refuses attempts, and ends links on purpose: one that is worth nothing, or all of them.

use std::time::{Duration, Instant};

use crate::proto::event::{Event, Reason};
use crate::proto::frame::CloseReason;
use crate::proto::hello::Refusal;
use crate::proto::membership::{AttemptId, Failure, LARGEST_RAISE, Membership, Output};
use crate::proto::node::{Incarnation, NodeName};

/// A node that is refused again and again for one reason is announced this often.
const REFUSED_AGAIN: Duration = Duration::from_secs(60);

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
        let failure = Failure::RefusedBy(refusal);
        let news = |peer: &NodeName| {
            self.peers.get(peer).is_none_or(|known| !known.has_reported(&failure))
        };
        // A crossed dial is the everyday end of two nodes that dialed at once.
        let peer = self.name_of(attempt).filter(|_| refusal != Refusal::Crossed).filter(news);
        out.extend(peer.map(|peer| Output::Announce(Event::RefusedBy { peer, refusal })));
        match refusal {
            Refusal::Stale { linked: Some(at), .. } => self.meet_namesake(at, now, out),
            Refusal::Stale { known, linked: None } => self.renew(known, now, out),
            Refusal::Name
            | Refusal::Cluster
            | Refusal::Crossed
            | Refusal::Myself
            | Refusal::Leaving
            | Refusal::Unexpected => {}
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

    /// A peer knows of a later life of this node than it remembers itself, and that life is gone:
    /// the data directory was lost or rolled back. Go on above it. (While the later life is linked
    /// somewhere, it is another process that owns the name, and this one stays out.)
    pub(super) fn renew(&mut self, known: Incarnation, now: Instant, out: &mut Vec<Output>) {
        let ahead = known.0.saturating_sub(self.incarnation.0);
        if known < self.incarnation || ahead > LARGEST_RAISE {
            return;
        }
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
        out.extend(std::mem::take(&mut self.dialing).into_keys().map(Output::Abandon));
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
