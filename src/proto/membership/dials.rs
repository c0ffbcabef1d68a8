//! Whom to dial next: peers and seeds as their waits end, rumours in the room that is left.

use std::net::SocketAddr;
use std::time::Instant;

use crate::proto::membership::rumours::Whereabouts;
use crate::proto::membership::{AttemptId, Dialing, Membership, Output, Peer, Target};
use crate::proto::node::NodeName;

impl Membership {
    /// Dials of this node that are no ready links yet. Where nodes lack time for the links that they have begun, more of
    /// them would all be late.
    pub(super) fn under_way(&self) -> usize {
        self.dialing.len() + self.peers.values().filter(|peer| peer.is_dialed_unready()).count()
    }

    /// The target that has waited longest, and since when it is due.
    pub(super) fn next_due(&self) -> Option<(Instant, Result<NodeName, SocketAddr>)> {
        if self.leaving {
            return None;
        }
        // The last dial is kept for news: a peer just lost does not wait for those lost long ago.
        let last = self.config.dials > 1 && self.under_way() + 1 >= self.config.dials;
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

    pub(super) fn dial(&mut self, now: Instant, out: &mut Vec<Output>) {
        while self.under_way() < self.config.dials {
            let Some((_, target)) = self.next_due().filter(|(at, _)| *at <= now) else { break };
            let attempt = AttemptId::Outbound(self.next_attempt);
            let (target, address) = match target {
                Ok(name) => {
                    let peer = self.peers.get_mut(&name);
                    let Some(address) = peer.and_then(|p| p.dial(attempt, now)) else { break };
                    (Target::Peer(name), address)
                }
                Err(address) => {
                    self.seeds.entry(address).and_modify(|seed| seed.dialed(now));
                    (Target::Seed, address)
                }
            };
            self.dial_to(target, address, out);
        }
        while let Some((_, at)) = self.next_rumour(now).filter(|(due, _)| *due <= now) {
            if self.peers.get(&at.0).is_some_and(|peer| !peer.idle()) {
                self.rumours.settled(&at.0, now);
            } else {
                self.dial_rumour(at, out);
            }
        }
    }

    /// Begins the next attempt.
    pub(super) fn dial_to(&mut self, target: Target, address: SocketAddr, out: &mut Vec<Output>) {
        let attempt = AttemptId::Outbound(self.next_attempt);
        self.next_attempt += 1;
        self.dialing.insert(attempt, Dialing { target, address });
        out.push(Output::Dial(attempt, address));
    }

    /// The rumour that is due next. One dial is kept for those who have shown themselves.
    pub(super) fn next_rumour(&self, now: Instant) -> Option<(Instant, Whereabouts)> {
        let room = self.under_way() + 1 < self.config.dials.max(2);
        (room && !self.leaving).then(|| self.rumours.next(now)).flatten()
    }
}
