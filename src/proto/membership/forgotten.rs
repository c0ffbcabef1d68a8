//! Nodes that are forgotten: nobody looks for them, until they are known to live.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::proto::event::{Event, Source};
use crate::proto::hello::{Hello, Refusal};
use crate::proto::membership::{Membership, Output, Peer};
use crate::proto::node::{Incarnation, NodeName};

impl Membership {
    /// This life of a node, and earlier ones, are looked for no more. One that is linked lives, and stays; so does a
    /// later life.
    pub(super) fn forget(
        &mut self,
        name: NodeName,
        life: Incarnation,
        known: bool,
        out: &mut Vec<Output>,
    ) {
        let stays = |peer: &Peer| peer.live.is_some() || peer.incarnation > life;
        if name == self.me || self.peers.get(&name).is_some_and(stays) {
            return;
        }
        let peer = self.peers.remove(&name);
        if let Some(peer) = &peer {
            for attempt in peer.dialing.into_iter().chain(peer.inbound) {
                self.dialing.remove(&attempt);
                out.push(Output::Abandon(attempt));
            }
        }
        self.forgotten.insert(name.clone(), life);
        if known || peer.is_some() {
            out.push(Output::Announce(Event::PeerForgotten { peer: name }));
        }
    }

    /// Whether a hint may lead to a node that is not a peer: to one that is forgotten only when it shows that it lives.
    pub(super) fn accepts_hint(&self, name: &NodeName, life: Incarnation, source: Source) -> bool {
        let Some(forgotten) = self.forgotten.get(name) else { return true };
        match source {
            Source::Beacon => life >= *forgotten,
            // Its certificate was shown at that address.
            Source::Seed | Source::Link => true,
            Source::Peer | Source::Remembered => life > *forgotten,
        }
    }

    /// A node that greets lives, whatever was said of it; only an earlier life than the forgotten one is refused.
    pub(super) fn check_resurrection(&self, hello: &Hello) -> Result<(), Refusal> {
        match self.forgotten.get(&hello.name) {
            Some(known) if hello.incarnation < *known => {
                Err(Refusal::Stale { known: *known, linked: None })
            }
            _ => Ok(()),
        }
    }
}

/// A peer, new when it was not known. Of one that was forgotten, the life stays known.
pub(super) fn get_or_insert<'a>(
    (peers, forgotten): (&'a mut BTreeMap<NodeName, Peer>, &mut BTreeMap<NodeName, Incarnation>),
    name: &NodeName,
    now: Instant,
) -> &'a mut Peer {
    let life = forgotten.remove(name).unwrap_or_default();
    peers.entry(name.clone()).or_insert_with(|| {
        let mut peer = Peer::new(now);
        peer.incarnation = life;
        peer
    })
}
