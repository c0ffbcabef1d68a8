//! Presence: who is in which topic, in the whole cluster, with the semantics of Phoenix.Presence.
//!
//! A delta-state CRDT (Almeida, Shoker, Baquero: *Delta State Replicated Data Types*, 2016), as
//! Phoenix.Tracker is, with one simplification: an entry is added and removed by its owner alone, one
//! node in one epoch, which numbers its changes 1, 2, 3 and so on. The state of an owner is therefore
//! what it says of itself, and how far it is known is one number. Merging is taking what is later: there
//! are no concurrent changes, no vectors of clocks, and nobody hands on what others said.
//!
//! # Protocol
//! ```text
//! own change     Delta to all, at once; within 20 ms of the last one it waits for those that follow
//! peer comes up  Digest to it; a newer epoch of a peer is answered with a Digest
//! every 5 s      Digest to all
//! lost words     anyone who lacks changes asks for pages, one at a time, until it has read everything;
//!                of entries that it had before, pages hold only the numbers
//! ```
//! A later epoch of a node starts empty in place of the earlier one. What a peer said is forgotten when
//! it goes, but for its epoch. A node whose life is raised (its disk was lost, and its peers know a later life) goes on
//! under a later epoch, too: words of the earlier one would be ignored for ever.
//!
//! # Invariants
//! 1. A word speaks of its sender's own entries; nobody else adds or removes them.
//! 2. On one link an epoch of a peer never falls; words of earlier ones are ignored, and words of peers that are not
//!    up. A new link may begin with an earlier one: a disk was lost.
//! 3. Anyone who applies each [`Output::Joined`] and [`Output::Left`] from the start has [`Presence::state`].
//! 4. When words arrive again, every node comes to have the entries of all owners that are up, without
//!    those of any other.
//! 5. Memory is bounded: `PRESENCES` bytes an owner, and nothing for pages
//!    that do not arrive; a word encodes in at most [`WORD`] bytes.
//! 6. One seed, one run: iteration is in order, time and randomness are given.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::StdRng;

use crate::proto::budget::PRESENCES;
use crate::proto::node::NodeName;
use crate::proto::topic::Topic;

mod attendance;
pub mod listing;
mod owner;
mod room;
mod words;
pub use attendance::Attendance;
use owner::{Owner, Peer};
pub use room::Holder;
pub use words::{
    Body, Change, Entry, Epoch, KEY, META, Output, Page, PresenceError, Ref, To, WORD, Word,
    check_meta,
};

/// How often a node says where it is; each time a fifth more or less.
const DIGEST: Duration = Duration::from_secs(5);
/// Changes that follow each other faster than this are told together.
const HOLD: Duration = Duration::from_millis(20);
/// Peers whose epochs are remembered, unless more are up.
const PEERS: usize = 1024;

/// The machine.
#[derive(Debug)]
pub struct Presence {
    me: NodeName,
    own: Owner,
    peers: BTreeMap<NodeName, Peer>,
    /// All entries, in order of topic, key and reference.
    shown: BTreeSet<Arc<Entry>>,
    /// The last changes of our own, not told yet, and what they need on the wire.
    untold: (Vec<Change>, usize),
    /// When the next change may be told.
    tell_at: Instant,
    next_digest: Instant,
    rng: StdRng,
}

impl Presence {
    /// Nobody is anywhere. `epoch` must be greater than that of any earlier machine of this node.
    pub fn new(me: NodeName, epoch: Epoch, now: Instant, rng: StdRng) -> Self {
        Self {
            own: Owner::new(&me, epoch),
            me,
            peers: BTreeMap::new(),
            shown: BTreeSet::new(),
            untold: (Vec::new(), words::HEAD),
            tell_at: now,
            next_digest: now,
            rng,
        }
    }

    /// All entries of a topic, in order of keys.
    pub fn entries(&self, topic: &Topic) -> impl Iterator<Item = &Arc<Entry>> {
        let reference = Ref { tag: 0, number: 0 };
        let (key, meta) = (Box::default(), Box::default());
        let before = Entry { topic: topic.clone(), key, reference, previous: None, meta };
        self.shown.range(Arc::new(before)..).take_while(move |entry| entry.topic == *topic)
    }

    /// All entries of a topic: each key with its metas, in order of keys.
    pub fn state(&self, topic: &Topic) -> impl Iterator<Item = (&str, Vec<&Entry>)> {
        let mut entries = self.entries(topic).map(Arc::as_ref).peekable();
        std::iter::from_fn(move || {
            let first = entries.next()?;
            let mut metas = vec![first];
            while let Some(entry) = entries.next_if(|entry| entry.key == first.key) {
                metas.push(entry);
            }
            Some((first.key.as_ref(), metas))
        })
    }

    /// What the entries of a peer cost, in bytes.
    pub fn bytes_of(&self, peer: &NodeName) -> usize {
        self.peers.get(peer).map_or(0, |peer| peer.owner.bytes)
    }

    /// How many bytes are free for entries of this node.
    fn free(&self) -> usize {
        PRESENCES.saturating_sub(self.own.bytes)
    }

    /// What an entry of this node would cost with another meta.
    fn cost_with(&self, reference: Ref, meta: &str) -> Option<usize> {
        self.owned(reference).map(|entry| room::cost(&entry.topic, &entry.key, meta))
    }

    /// When [`tick`](Self::tick) is due.
    pub fn deadline(&self) -> Option<Instant> {
        let tell = (!self.untold.0.is_empty()).then_some(self.tell_at);
        let digest = self.anybody().then_some(self.next_digest);
        tell.into_iter().chain(digest).min()
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant, out: &mut Vec<Output>) {
        if now >= self.tell_at {
            self.announce(now, out);
        }
        if self.anybody() && now >= self.next_digest {
            self.next_digest = self.round(now);
            self.digest(To::All, now, out);
        }
    }

    /// Somebody came to this node. `meta` is a JSON object without `phx_ref`.
    ///
    /// # Errors
    /// [`PresenceError`], but for `Unknown`.
    pub fn track(
        &mut self,
        topic: &Topic,
        key: &str,
        meta: &str,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<Ref, PresenceError> {
        let (key, meta) = (key.to_owned(), meta.to_owned());
        self.join(Body { topic: topic.clone(), key, meta, previous: None }, now, out)
    }

    /// An entry of this node is replaced by one with another meta, which knows what it replaced.
    ///
    /// # Errors
    /// [`PresenceError`], but for `Key`.
    pub fn update(
        &mut self,
        reference: Ref,
        meta: &str,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<Ref, PresenceError> {
        let old = self.owned(reference).ok_or(PresenceError::Unknown)?;
        let (meta, previous) = (meta.to_owned(), Some(reference.number));
        self.join(Body { meta, previous, ..Body::of(old) }, now, out)
    }

    /// An entry of this node leaves, if it is there.
    fn untrack(&mut self, reference: Ref, now: Instant, out: &mut Vec<Output>) {
        if self.owned(reference).is_some() {
            self.change(Change::Left(reference.number), now, out);
        }
    }

    /// This node goes on under a later epoch, with all that it has. Returns the new reference of each entry.
    pub fn renew(
        &mut self,
        epoch: Epoch,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> BTreeMap<Ref, Ref> {
        let start = out.len();
        let before = std::mem::replace(&mut self.own, Owner::new(&self.me, epoch)).entries;
        self.untold = (Vec::new(), words::HEAD);
        let mut renewed = BTreeMap::new();
        out.extend(before.values().cloned().map(Output::Left));
        self.show(out, start);
        for old in before.into_values() {
            self.change(Change::Joined(Body { previous: None, ..Body::of(&old) }), now, out);
            let newest = self.own.entries.values().next_back().map(|entry| entry.reference);
            renewed.extend(newest.map(|newest| (old.reference, newest)));
        }
        self.digest(To::All, now, out);
        renewed
    }

    /// A peer can be talked to.
    pub fn up(&mut self, peer: &NodeName, now: Instant, out: &mut Vec<Output>) {
        if *peer == self.me {
            return;
        }
        if !self.anybody() {
            self.next_digest = self.round(now); // nothing was due while there was nobody
        }
        if self.peers.len() >= PEERS && !self.peers.contains_key(peer) {
            let gone = self.peers.iter().find(|(_, peer)| !peer.up).map(|(name, _)| name.clone());
            gone.and_then(|name| self.peers.remove(&name));
        }
        let known = self.peers.entry(peer.clone()).or_insert_with(|| Peer::new(peer));
        (known.up, known.refused, known.fresh) = (true, false, true);
        self.digest(To::One(peer.clone()), now, out);
    }

    /// A peer is gone, and all that were there.
    pub fn gone(&mut self, peer: &NodeName, out: &mut Vec<Output>) {
        let from = out.len();
        if let Some(peer) = self.peers.get_mut(peer) {
            peer.up = false;
            peer.clear(out);
        }
        self.show(out, from);
    }

    /// A peer said something, in at most [`WORD`] bytes.
    pub fn heard(&mut self, from: &NodeName, word: Word, now: Instant, out: &mut Vec<Output>) {
        let Some(peer) = self.peers.get_mut(from).filter(|peer| peer.up) else { return };
        let start = out.len();
        let epoch = match &word {
            Word::Ask { epoch, have, after, upto } => {
                if *epoch != self.own.epoch {
                    return self.digest(To::One(from.clone()), now, out);
                }
                let page = Word::Page(self.own.page(*have, *after, *upto));
                return out.push(Output::Say(To::One(from.clone()), page));
            }
            Word::Delta { epoch, .. } | Word::Digest { epoch, .. } => *epoch,
            Word::Page(page) => page.epoch,
        };
        // On its link the words of a peer are in order: the first one shows its epoch, whatever was known before.
        let first = std::mem::take(&mut peer.fresh);
        let newer = epoch > peer.owner.epoch || first && epoch != peer.owner.epoch;
        if newer {
            peer.renew(epoch, out);
        }
        if epoch == peer.owner.epoch && !peer.refused {
            match peer.heard(word, out) {
                Ok(ask) => out.extend(ask.map(|ask| Output::Say(To::One(from.clone()), ask))),
                Err(rule) => {
                    peer.refused = true;
                    peer.clear(out);
                    out.push(Output::Fault(from.clone(), rule));
                }
            }
        }
        self.show(out, start);
        if newer {
            self.digest(To::One(from.clone()), now, out);
        }
    }

    fn anybody(&self) -> bool {
        self.peers.values().any(|peer| peer.up)
    }

    fn round(&mut self, now: Instant) -> Instant {
        now + DIGEST.mul_f64(self.rng.random_range(0.8..=1.2))
    }

    fn owned(&self, reference: Ref) -> Option<&Entry> {
        let entry = self.own.entries.get(&reference.number).map(Arc::as_ref);
        entry.filter(|entry| entry.reference == reference)
    }

    fn join(
        &mut self,
        body: Body,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Result<Ref, PresenceError> {
        body.check()?;
        let entry = |number| self.own.entries.get(&number);
        let before = body.previous.and_then(entry).map_or(0, |entry| entry.cost());
        if self.own.bytes - before + body.cost() > PRESENCES {
            return Err(PresenceError::Full);
        }
        self.change(Change::Joined(body), now, out);
        let newest = self.own.entries.last_key_value().ok_or(PresenceError::Unknown)?;
        Ok(newest.1.reference)
    }

    fn change(&mut self, change: Change, now: Instant, out: &mut Vec<Output>) {
        let (from, size) = (out.len(), change.size());
        if self.untold.1 + size > WORD {
            self.announce(now, out);
        }
        self.own.apply(change.clone(), out);
        self.show(out, from);
        self.untold.0.push(change);
        self.untold.1 += size;
        if now >= self.tell_at {
            self.announce(now, out);
        }
    }

    /// Tells every change that was not told yet.
    fn announce(&mut self, now: Instant, out: &mut Vec<Output>) {
        let (changes, _) = std::mem::replace(&mut self.untold, (Vec::new(), words::HEAD));
        if changes.is_empty() || !self.anybody() {
            return; // anyone who comes asks for what it lacks
        }
        let length = u64::try_from(changes.len()).unwrap_or(u64::MAX);
        let after = self.own.clock.saturating_sub(length);
        out.push(Output::Say(To::All, Word::Delta { epoch: self.own.epoch, after, changes }));
        self.tell_at = now + HOLD;
    }

    /// Says where this node is, after what led there.
    fn digest(&mut self, to: To, now: Instant, out: &mut Vec<Output>) {
        self.announce(now, out);
        let (epoch, clock) = (self.own.epoch, self.own.clock);
        out.push(Output::Say(to, Word::Digest { epoch, clock }));
    }

    /// What is shown is what was told.
    fn show(&mut self, out: &[Output], from: usize) {
        for output in out.iter().skip(from) {
            match output {
                Output::Joined(entry) => drop(self.shown.insert(entry.clone())),
                Output::Left(entry) => drop(self.shown.remove(entry)),
                Output::Say(..) | Output::Fault(..) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
