//! Nodes that are forgotten: nobody looks for them, until they are known to live.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::proto::event::{Author, Event, Source};
use crate::proto::hello::{Hello, Refusal};
use crate::proto::membership::peer::Insistence;
use crate::proto::membership::{Membership, Output, Peer};
use crate::proto::node::{Incarnation, NodeName};

/// A node that is forgotten. `life` is hearsay: it is no reason to refuse anybody.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Forgotten {
    /// Up to this life it is looked for no more.
    life: Incarnation,
    /// The latest life that it has shown itself.
    met: Incarnation,
    insistence: Insistence,
}

impl Membership {
    /// This life of a node, and earlier ones, are looked for no more. One that is linked lives, and stays; so does a
    /// later life. Nobody can have more forgotten than the node has shown here.
    pub(super) fn forget(
        &mut self,
        name: NodeName,
        life: Incarnation,
        (known, author): (bool, Option<Author>),
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let stays = |peer: &Peer| peer.live.is_some() || peer.incarnation > life;
        if name == self.me || self.peers.get(&name).is_some_and(stays) {
            return;
        }
        self.rumours.settled(&name, now);
        let peer = self.peers.remove(&name);
        if let Some(peer) = &peer {
            for attempt in peer.dialing.into_iter().chain(peer.inbound) {
                self.dialing.remove(&attempt);
                out.push(Output::Abandon(attempt));
            }
        }
        let before = self.forgotten.get(&name).copied().unwrap_or_default();
        let met = peer.as_ref().map_or(before.met, |peer| peer.incarnation);
        let life = if met == Incarnation(0) { life } else { life.min(met) };
        self.forgotten.insert(name.clone(), Forgotten { life, met, ..before });
        if known || peer.is_some() {
            out.push(Output::Announce(Event::PeerForgotten { peer: name, author }));
        }
    }

    /// Another key is the name's: what it had shown was of the one before.
    pub(super) fn rekey_forgotten(&mut self, name: &NodeName) {
        if let Some(forgotten) = self.forgotten.get_mut(name) {
            forgotten.met = Incarnation(0);
            forgotten.insistence = Insistence::default();
        }
    }

    /// Whether a hint may lead to a node that is not a peer: to one that is forgotten only when it shows that it lives.
    pub(super) fn accepts_hint(&self, name: &NodeName, life: Incarnation, source: Source) -> bool {
        let Some(forgotten) = self.forgotten.get(name) else { return true };
        match source {
            Source::Beacon => life >= forgotten.met,
            // Its certificate was shown at that address.
            Source::Seed | Source::Link => true,
            Source::Peer | Source::Remembered => life > forgotten.life,
        }
    }

    /// A node that greets lives, whatever was said of it; only an earlier life than it has shown itself is refused.
    pub(super) fn check_resurrection(
        &mut self,
        hello: &Hello,
        now: Instant,
    ) -> Result<(), Refusal> {
        let Some(Forgotten { met, insistence, .. }) = self.forgotten.get_mut(&hello.name) else {
            return Ok(());
        };
        if hello.incarnation < *met && !insistence.is_enough(hello.boot, now) {
            return Err(Refusal::Stale { known: *met, linked: None });
        }
        Ok(())
    }
}

/// A peer, new when it was not known. Of one that was forgotten, the life that it has shown stays known.
pub(super) fn get_or_insert<'a>(
    (peers, forgotten): (&'a mut BTreeMap<NodeName, Peer>, &mut BTreeMap<NodeName, Forgotten>),
    name: &NodeName,
    now: Instant,
) -> &'a mut Peer {
    let Forgotten { met, insistence, .. } = forgotten.remove(name).unwrap_or_default();
    peers.entry(name.clone()).or_insert_with(|| {
        let mut peer = Peer::new(now);
        (peer.incarnation, peer.insistence) = (met, insistence);
        peer
    })
}
