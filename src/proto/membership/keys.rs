//! Which key a name is of: of those whose certificates were shown here, the one that was issued last.
//!
//! A certificate is shown in a handshake, or on a beacon that its key signed. An incarnation counts for the key that it was
//! said with: with a later key a name starts anew, and what was known of its lives is no bar. The earlier key is refused
//! from then on, with both keys in the refusal, for as long as this process runs.

use std::time::Instant;

use crate::proto::event::{Reason, Source};
use crate::proto::frame::CloseReason;
use crate::proto::hello::Refusal;
use crate::proto::membership::{AttemptId, Dialing, Failure, Membership, Output, Target};
use crate::proto::node::{Contact, Credential, NodeName};

impl Membership {
    /// The key that a name is of.
    pub fn credential(&self, name: &NodeName) -> Option<Credential> {
        self.keys.get(name).copied()
    }

    /// A node's own beacon; whether anything can follow from it.
    pub(super) fn beacon(
        &mut self,
        contact: Contact,
        shown: Credential,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> bool {
        let known = self.shown(None, &contact.name, shown, now, out);
        known.is_ok() && (self.hint(contact, Source::Beacon, now, out) || !out.is_empty())
    }

    /// An attempt shows its certificate, before its next step.
    pub(super) fn attempt_shows(
        &mut self,
        attempt: AttemptId,
        name: &NodeName,
        shown: Credential,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let refused = self.shown(Some(attempt), name, shown, now, out).err();
        self.outdated = refused.map(|refusal| (attempt, refusal));
    }

    /// A dial found a node that is refused.
    pub(super) fn dial_ended(
        &mut self,
        Dialing { target, address }: Dialing,
        found: Failure,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        match target {
            Target::Peer(expected) => self.round(expected, address, found, now, out),
            Target::Rumour(expected) => self.rumours.ended(&(expected, address), true, now),
            Target::Seed => self.seed_failed(address, found, now, out),
        }
    }

    /// A certificate of that name is shown, by an attempt or on a beacon. All that is under way with an earlier key ends.
    ///
    /// # Errors
    /// [`Refusal::Superseded`] when a later one is known.
    pub(super) fn shown(
        &mut self,
        by: Option<AttemptId>,
        name: &NodeName,
        shown: Credential,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<(), Refusal> {
        let known = self.keys.get(name).copied().filter(|_| *name != self.me);
        if let Some(known) = known.filter(|known| known.supersedes(shown)) {
            return Err(Refusal::Superseded { known: known.key, shown: shown.key });
        }
        if known.is_some_and(|known| shown.supersedes(known)) {
            self.rekey_forgotten(name);
            if let Some(peer) = self.peers.get_mut(name) {
                let dialing = peer.dialing.take_if(|it| Some(*it) != by);
                for earlier in dialing.into_iter().chain(peer.inbound.take()) {
                    self.dialing.remove(&earlier);
                    out.push(Output::Abandon(earlier));
                }
                peer.rekey();
                if let Some(live) = peer.live.take() {
                    out.push(Output::Close(live.attempt, CloseReason::Replaced));
                    let cause = "another key of the peer was issued later";
                    peer.lost(name, cause, Some(Reason::Replaced), now, out);
                    peer.next_dial = Some(now + self.config.crossed); // it is dialing by itself
                }
            }
        }
        if self.keys.len() >= 2 * self.config.peers {
            let (peers, forgotten) = (&self.peers, &self.forgotten);
            self.keys.retain(|it, _| peers.contains_key(it) || forgotten.contains_key(it));
        }
        let renewed = known.filter(|known| known.key == shown.key).map_or(0, |known| known.since);
        let since = shown.since.max(renewed);
        self.keys.insert(name.clone(), Credential { since, ..shown });
        Ok(())
    }

    /// Why an attempt is refused that has just shown its certificate, if that is of an earlier key.
    pub(super) fn take_outdated(&mut self, attempt: AttemptId) -> Option<Refusal> {
        self.outdated.take_if(|(of, _)| *of == attempt).map(|(_, refusal)| refusal)
    }
}
