//! Who the nodes are: what each says of itself, and who is forgotten, as this node knows it.
//!
//! The machine behind Registry. There is one entry for each node: what it said of itself last (its profile), or that
//! somebody had it forgotten (its tombstone). An entry has a mark, (incarnation, version, forgotten), that rises
//! lexicographically; the later mark wins, wherever it comes from.
//!
//! # How a word travels
//! ```text
//! own profile  Entries to every peer that is linked, and to all of them when it must rise
//! a forget     Entries to all linked peers at once; who learns of it tells all of its own, once, within its first hour
//! the rest     a Digest to one peer about every 10 s, and soon to one that was just linked; one hash for all marks:
//!              on another hash the receiver answers with its Marks, and Want and Entries bring both sides together
//! ```
//! Nothing else is relayed, so nodes that start together send a few words a link. An idle node sends one short digest
//! about every 10 s.
//!
//! # Who is forgotten
//! A tombstone is one version above what was known. It beats whatever a node says that was away meanwhile, and keeps
//! for 30 days. A node that hears of its own tombstone lives: it speaks up, one version above. A later life is above
//! any tombstone of an earlier one. While a node is linked its tombstone does not count.
//!
//! # Invariants
//! 1. The entry of a linked origin comes from that origin alone, and of the life that is linked.
//! 2. A mark only rises, until the entry is dropped: a tombstone after 30 days, or the oldest when there is no room.
//! 3. Nobody writes our own entry; a later claim about us makes us go on above the claim.
//! 4. Memory is bounded: 1024 entries, one open question an origin; each word we send encodes below 48 KiB, one answer
//!    holds at most about 1 MiB, and the same entry is not sent to the same peer twice within a second.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::StdRng;

use crate::proto::node::{Incarnation, NodeName};
use crate::proto::quota::Quota;

mod exchange;
mod profile;
mod words;
pub use profile::{LARGEST, LONGEST, Pair, Profile, ProfileError, Specialization};
pub use words::{Entry, Input, Mark, Output, What, Word};

/// Entries, and marks or names in a word, at most.
pub const MOST: usize = 1024;
/// A version or incarnation this far above the known one is absurd.
const JUMP: u64 = 1 << 32;
const DIGEST: Duration = Duration::from_secs(10);
/// About when a peer that was just linked gets a digest.
const EARLY: Duration = Duration::from_secs(1);
/// The same is not sent to the same peer again within this time.
const REPEAT: Duration = Duration::from_secs(1);
/// What was asked for is not asked of another within this time.
const RETRY: Duration = Duration::from_secs(2);
/// How long a tombstone stays.
pub const TOMBSTONE: Duration = Duration::from_secs(30 * 24 * 3600);
/// A tombstone this young is told to others by whoever learns of it.
const YOUNG: Duration = Duration::from_secs(3600);
/// Between two looks at the age of tombstones.
const SWEEP: Duration = Duration::from_secs(3600);
/// So many charges within a minute are put up with.
const CHARGES: u32 = 16;
/// A tombstone of a time further ahead than this is not believed to be.
const FUTURE: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug)]
struct Link {
    incarnation: Incarnation,
    cut: bool,
    /// What was sent to it lately.
    answered: BTreeMap<NodeName, (Mark, Instant)>,
    /// When it was sent all marks.
    compared: Option<Instant>,
}

/// The machine.
#[derive(Debug)]
pub struct Registry {
    me: NodeName,
    entries: BTreeMap<NodeName, Entry>,
    links: BTreeMap<NodeName, Link>,
    /// What was asked for, and when.
    asks: BTreeMap<NodeName, (Mark, Instant)>,
    /// Who was linked last, and has not had a digest since.
    newcomer: Option<NodeName>,
    charges: Quota,
    next_digest: Instant,
    next_sweep: Instant,
    corrected: Option<Instant>,
    wall: (u64, Instant),
    rng: StdRng,
}

impl Registry {
    /// A node that says this of itself and remembers these. `wall` is in milliseconds since 1970. `first` is the first
    /// version of its entry, above 0: draw it, so that a life that goes on without its memory does not come to give
    /// two words one mark.
    #[must_use]
    pub fn new(
        (me, incarnation, profile): (NodeName, Incarnation, Profile),
        first: u64,
        remembered: impl IntoIterator<Item = Entry>,
        now: Instant,
        wall: u64,
        rng: StdRng,
    ) -> Self {
        let entries = remembered.into_iter().map(|entry| (entry.origin.clone(), entry));
        let mut entries: BTreeMap<_, _> = entries.take(MOST).collect();
        let before = entries.get(&me).filter(|entry| entry.incarnation == incarnation);
        let version = before.map_or(first, |before| first.max(before.version.saturating_add(1)));
        let what = What::Profile(profile);
        let own = Entry { origin: me.clone(), incarnation, version, what };
        entries.insert(me.clone(), own);
        Self {
            me,
            entries,
            links: BTreeMap::new(),
            asks: BTreeMap::new(),
            newcomer: None,
            charges: Quota::new(CHARGES),
            next_digest: now + DIGEST,
            next_sweep: now,
            corrected: None,
            wall: (wall, now),
            rng,
        }
    }

    /// All entries, this node's own among them, by name.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// The entry of a node.
    #[must_use]
    pub fn entry(&self, origin: &NodeName) -> Option<&Entry> {
        self.entries.get(origin)
    }

    /// Equal on two nodes that know the same: FNV-1a over all names and marks.
    #[must_use]
    pub fn agreement(&self) -> u64 {
        let bytes = self.entries.values().flat_map(|entry| {
            let Mark { incarnation, version, forgotten } = entry.mark();
            let numbers = [incarnation.0, version].into_iter().flat_map(u64::to_be_bytes);
            let name = entry.origin.as_str().bytes();
            name.chain([0]).chain(numbers).chain([u8::from(forgotten)])
        });
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }

    /// When the machine wants its next [`Input::Tick`].
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let digest = (!self.links.is_empty()).then_some(self.next_digest);
        let tombs = self.entries.values().any(|entry| entry.forgotten_at().is_some());
        digest.into_iter().chain(tombs.then_some(self.next_sweep)).min()
    }

    /// Takes one input and appends what follows from it.
    pub fn handle(&mut self, input: Input, now: Instant, out: &mut Vec<Output>) {
        match input {
            Input::Linked(peer, incarnation) => self.linked(peer, incarnation, now, out),
            Input::Unlinked(peer) => {
                self.links.remove(&peer);
            }
            Input::Received(from, word) => {
                if self.links.get(&from).is_some_and(|link| !link.cut) {
                    self.received(&from, word, now, out);
                }
            }
            Input::Forget(origin, life) => self.forget(origin, life, now, out),
            Input::Renewed(incarnation) => {
                if let Some(own) = self.entries.get_mut(&self.me) {
                    own.incarnation = own.incarnation.max(incarnation);
                    self.speak_up(0, out);
                }
            }
            Input::Tick { wall } => self.tick(wall, now, out),
        }
    }

    fn linked(&mut self, peer: NodeName, life: Incarnation, now: Instant, out: &mut Vec<Output>) {
        if peer == self.me {
            return;
        }
        if self.links.is_empty() {
            self.next_digest = now + DIGEST; // nothing was due while there was nobody
        }
        let link =
            Link { incarnation: life, cut: false, answered: BTreeMap::new(), compared: None };
        self.links.insert(peer.clone(), link);
        let known = self.entries.get(&peer).map(Entry::mark);
        if let Some(mark) = known.filter(|mark| mark.forgotten || mark.incarnation > life) {
            // It lives, and shall say so above what is known.
            let word = Word::News(vec![(peer.clone(), mark)]);
            out.push(Output::Send(peer.clone(), word));
        }
        let own = self.entries.get(&self.me).cloned();
        out.extend(own.map(|own| Output::Send(peer.clone(), Word::Entries(vec![own]))));
        // Its own first word may have come too early to be heard.
        if known.is_none_or(|mark| mark.forgotten || mark.incarnation != life) {
            out.push(Output::Send(peer.clone(), Word::Want(vec![peer.clone()])));
        }
        let soon = now + EARLY.mul_f64(self.rng.random_range(0.5..=1.5));
        self.next_digest = self.next_digest.min(soon);
        self.newcomer = Some(peer);
    }

    fn received(&mut self, from: &NodeName, word: Word, now: Instant, out: &mut Vec<Output>) {
        let length = match &word {
            Word::Digest(_) => 0,
            Word::Marks { marks, .. } | Word::News(marks) => marks.len(),
            Word::Want(names) => names.len(),
            Word::Entries(entries) => entries.len(),
        };
        if length > MOST {
            return self.charge(from, "too many in one word", now, out);
        }
        match word {
            Word::Digest(theirs) => {
                if theirs != self.agreement() {
                    self.send_marks(from, now, out);
                }
            }
            Word::Marks { after, marks, more } => {
                self.compare(from, after.as_ref(), &marks, more, now, out);
                self.learn(from, marks, now, out);
            }
            Word::News(marks) => self.learn(from, marks, now, out),
            Word::Want(names) => self.answer(from, names, now, out),
            Word::Entries(entries) => {
                let mut young = Vec::new();
                for entry in entries {
                    if self.links.get(from).is_some_and(|link| !link.cut) {
                        young.extend(self.take(from, entry, now, out));
                    }
                }
                self.relay(Some(from), young, out);
            }
        }
    }

    /// An operator says so: one version above whatever is known.
    fn forget(&mut self, origin: NodeName, life: Incarnation, now: Instant, out: &mut Vec<Output>) {
        if origin == self.me || self.links.contains_key(&origin) {
            return;
        }
        let known = self.entries.get(&origin).map(Entry::mark).unwrap_or_default();
        let incarnation = known.incarnation.max(life);
        let version = if incarnation == known.incarnation { known.version } else { 0 };
        let (version, at) = (version.saturating_add(1), self.wall(now));
        let entry = Entry { origin, incarnation, version, what: What::Forgotten { at } };
        if self.room(&entry.origin, out) {
            self.put(entry.clone(), true, out);
            self.relay(None, vec![entry], out);
        }
    }

    /// Takes the place of what was known.
    fn put(&mut self, mut entry: Entry, known: bool, out: &mut Vec<Output>) {
        let (origin, incarnation) = (entry.origin.clone(), entry.incarnation);
        self.asks.remove(&origin);
        if let What::Forgotten { at } = &mut entry.what {
            *at = (*at).min(self.wall.0.saturating_add(millis(FUTURE)));
        }
        let forgotten = entry.mark().forgotten;
        let before = self.entries.insert(origin.clone(), entry);
        let was = before.as_ref().map(|before| before.mark().forgotten);
        out.push(Output::Changed(origin.clone()));
        if forgotten {
            let known = known || was == Some(false);
            out.push(Output::Forgotten { origin, incarnation, known });
        } else if was == Some(true) {
            out.push(Output::Revived(origin));
        }
    }

    /// Goes on above a version that others have of us, and tells them.
    fn speak_up(&mut self, above: u64, out: &mut Vec<Output>) {
        let Some(own) = self.entries.get_mut(&self.me) else { return };
        own.version = own.version.max(above).saturating_add(1);
        let own = own.clone();
        out.push(Output::Changed(self.me.clone()));
        self.relay(None, vec![own], out);
    }

    /// Others have a later word about us than we do: ours was lost, we are forgotten, or it is forged.
    fn claimed(&mut self, mark: Mark, now: Instant, out: &mut Vec<Output>) {
        let Some(own) = self.entries.get(&self.me).map(Entry::mark) else { return };
        let rests = self.corrected.is_some_and(|at| now < at + REPEAT);
        // A later life of ours is not for this machine: it is told to go on under that, if it is so.
        if mark > own && mark.incarnation == own.incarnation && !rests {
            self.corrected = Some(now);
            self.speak_up(mark.version, out);
        }
    }

    fn newer(&self, origin: &NodeName, mark: Mark) -> bool {
        self.entries.get(origin).is_none_or(|known| mark > known.mark())
    }

    fn absurd(&self, origin: &NodeName, mark: Mark) -> bool {
        let known = self.entries.get(origin).map(Entry::mark).unwrap_or_default();
        let base = if known.incarnation == mark.incarnation { known.version } else { 0 };
        mark.incarnation.0 > known.incarnation.0.saturating_add(JUMP)
            || mark.version > base.saturating_add(JUMP)
    }

    /// Whether an entry of that node has a place, if need be that of the oldest tombstone.
    fn fits(&self, origin: &NodeName) -> bool {
        self.entries.len() < MOST
            || self.entries.contains_key(origin)
            || self.entries.values().any(|entry| entry.forgotten_at().is_some())
    }

    /// Makes a place for it, if there can be one.
    fn room(&mut self, origin: &NodeName, out: &mut Vec<Output>) -> bool {
        if self.entries.len() < MOST || self.entries.contains_key(origin) {
            return true;
        }
        let tombs = self.entries.values().filter(|entry| entry.forgotten_at().is_some());
        let oldest = tombs.min_by_key(|entry| entry.forgotten_at());
        let Some(oldest) = oldest.map(|entry| entry.origin.clone()) else { return false };
        self.entries.remove(&oldest);
        out.push(Output::Changed(oldest));
        true
    }

    fn tick(&mut self, wall: u64, now: Instant, out: &mut Vec<Output>) {
        self.wall = (wall, now);
        if now >= self.next_sweep {
            self.next_sweep = now + SWEEP;
            let old = |entry: &Entry| entry.forgotten_at().is_some_and(|at| expired(at, wall));
            self.entries.retain(|origin, entry| {
                let gone = old(entry);
                out.extend(gone.then(|| Output::Changed(origin.clone())));
                !gone
            });
        }
        if now >= self.next_digest {
            self.next_digest = now + DIGEST.mul_f64(self.rng.random_range(0.8..=1.2));
            self.asks.retain(|_, (_, at)| now < *at + RETRY);
            self.send_digest(out);
        }
    }

    fn charge(&mut self, peer: &NodeName, what: &'static str, now: Instant, out: &mut Vec<Output>) {
        out.push(Output::Charge(peer.clone(), what));
        if !self.charges.spend(peer, now)
            && let Some(link) = self.links.get_mut(peer).filter(|link| !link.cut)
        {
            link.cut = true;
            out.push(Output::Cut(peer.clone()));
        }
    }

    /// This node's wall clock, in milliseconds since 1970.
    fn wall(&self, now: Instant) -> u64 {
        self.wall.0.saturating_add(millis(now.saturating_duration_since(self.wall.1)))
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn expired(at: u64, wall: u64) -> bool {
    at.saturating_add(millis(TOMBSTONE)) < wall
}

#[cfg(test)]
mod tests;
