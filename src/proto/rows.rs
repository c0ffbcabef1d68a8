//! Anti-entropy: a table with one row for each origin, brought to every node.
//!
//! The machine under [`topology`](super::topology) and [`registry`](super::registry). Every node is the origin of one
//! row, and the only one that writes it. A row has a mark, (incarnation, version, tombstone), that rises
//! lexicographically; the later mark wins, wherever it comes from. What a row says is opaque here: a [`Table`] knows
//! its size, how a change applies to it, and who needs it relayed.
//!
//! # What is believed
//! A row is its maker's: of the origin, or, of a [`Ruling`], of its author. What comes over
//! the maker's own link is believed; what others pass on, once the maker's seal on it (`proto/seal.rs`) holds. So a node
//! has a row only if it was linked here or is a member that stated it: nobody can invent one. A row is passed on once
//! its seal was found to hold here, so that nobody is at fault for what it passes on.
//!
//! # How a row travels
//! ```text
//! new link     the whole own row; a Digest a little later
//! own change   a Delta to every linked peer; a receiver that it does not fit wants the row
//! raised row   the whole own row to every linked peer, where others have a later mark of it than this node
//! no link      (where the table relays) of those who heard it first-hand, the table's choice name it in News;
//!              each that took it second-hand names it in News to up to three peers that the table chooses
//! lost words   a Digest, one hash over all marks and values, to one random peer in every period: on another hash the
//!              receiver answers with its Marks; the receiver of Marks wants what is newer there, and names in News what is
//!              newer here; of what is otherwise there under the same mark it sends what is sealed (`equivocation`)
//! ```
//! Beyond the own row and fresh tombstones, rows go only to nodes that want them, and each is wanted of one peer at a
//! time: a node that joins gets each row about once. A row that changes often is wanted of others the less often the more
//! peers there are: while a cluster forms, it comes over its own link soon. An unanswered Want is repeated twice, to the
//! peer that named that row last. A row that is too long for a word travels in parts, in order.
//!
//! # What is gone
//! A tombstone is a row without a value. Where [`Tombstones::Final`], a node that leaves makes it of its own row, and others
//! are informed of it for an hour; what a node sees or wants gone besides, it keeps as the last version of that life, and to itself. A
//! proven link to that life overrules both. Where [`Tombstones::Outbid`], it is a [`Ruling`], one version
//! above what was known: its origin, if it lives, goes on above it, and each node that learns of it within its first
//! hour passes it on at once. It keeps what the origin had stated, and a ruling above it brings that back.
//! When there is no room, the oldest tombstone goes first.
//!
//! # Invariants
//! 1. The row of a linked origin comes from that origin alone, and of the life that is linked. What others said of it
//!    before is no bar: a row of a later life than the linked one is dropped, and one that is no further than `MAX_JUMP`
//!    above the origin's own is named to it, so that it goes on above.
//! 2. A mark only rises, until the row is dropped: a tombstone at its end or for room, a row that the table can spare
//!    for room, what a link overrules.
//! 3. Nobody writes our own row; a later claim to it makes us go on above the claim, at most once a second.
//! 4. Memory is bounded: 1024 rows, of which a linked origin always has one; one open question an origin; each word we send encodes below 48 KiB, one answer
//!    holds at most about 1 MiB, and the same row is not sent twice to the same peer in answer to wants within
//!    half of `RETRY`.
//! 5. An idle node sends one digest of a few bytes in about every `DIGEST`, and one to each peer in every `ROUND`.
//! 6. Each rule that a peer breaks is charged; past 16 a minute it is cut off, and heard no more on that link.
//!
//! Sources: Demers et al., "Epidemic algorithms for replicated database maintenance" (rumour and anti-entropy, death
//! certificates); van Renesse et al., "Efficient reconciliation and flow control for anti-entropy protocols" (versions
//! by origin, digests first); Cassandra's gossip (generation and version).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::StdRng;

use crate::proto::node::{Incarnation, NodeName};
use crate::proto::quota::Quota;
use crate::proto::seal::Seals;

mod agreement;
mod equivocation;
mod exchange;
mod keys;
mod pace;
mod packing;
mod proof;
mod rulings;
mod table;
#[cfg(test)]
pub(crate) mod tests;
mod words;
use agreement::{agreement, weight};
use equivocation::Equivocations;
use pace::FEW;
use proof::Proofs;
pub use proof::statement;
pub use table::{Table, Tombstones};
pub use words::{Input, Mark, Output, Row, Ruling, State, Stated, Values, Word};
#[cfg(test)]
pub(super) use {exchange::MAX_ANSWER, packing::row_size};

/// Rows of a table, and entries of a word, at most.
pub const MAX_ROWS: usize = 1024;
/// A time further ahead than this, in milliseconds, is not believed.
pub(super) const FUTURE: u64 = 24 * 3600 * 1000;
/// An origin goes on above a claim to its row that is no further than this above what it states.
pub(super) const MAX_JUMP: u64 = 1 << 32;
/// The last version of a row that its origin states.
pub(super) const LAST_VERSION: u64 = 1 << 62;
/// The last version of a ruling, which is above what was stated; a claim above it is absurd.
pub(super) const LAST_RULING: u64 = LAST_VERSION + (1 << 32);
/// Each word encodes below this many bytes.
pub(super) const MAX_WORD: usize = 48 * 1024;
/// What a word needs beside its items, at most.
pub(super) const HEAD: usize = 448;
/// Changes of what is seen of the peers come in bursts (one death is a change in every row): who keeps a table looks at
/// them together, after this time.
pub const BURST: Duration = Duration::from_millis(20);
/// The first version of an own row is drawn up to here, and how far it goes on above a claim: so far that two processes
/// of one life never seal different rows under one mark.
pub(super) const FIRST: u64 = 1 << 28;
/// News is collected, and a digest after a lost link waits, for this long.
const HOLD: Duration = Duration::from_millis(50);
/// Between two raises of the own row that others' claims cause.
pub(super) const RAISE: Duration = Duration::from_secs(1);
/// A tombstone this young is passed on.
pub(super) const YOUNG: Duration = Duration::from_secs(3600);
/// The age of tombstones is looked at so often, when nothing else is due.
pub(super) const SWEEP: Duration = Duration::from_secs(3600);
/// Rules that a peer may break within a minute.
pub(super) const MAX_CHARGES: u32 = 16;

/// A first version for an own row (see [`Rows::new`]).
pub(super) fn first_version(rng: &mut StdRng) -> u64 {
    rng.random_range(1..=FIRST)
}

/// The words, inputs and outputs of a table.
pub(super) type WordOf<T> = Word<<T as Table>::Value, <T as Table>::Change>;
type InputOf<T> = Input<<T as Table>::Value, <T as Table>::Change>;
type OutputOf<T> = Output<<T as Table>::Value, <T as Table>::Change>;

#[derive(Debug)]
struct Link {
    incarnation: Incarnation,
    cut: bool,
    /// What it was sent lately.
    answered: BTreeMap<NodeName, (Mark, Instant)>,
    /// When it was sent all marks.
    compared: Option<Instant>,
    /// When its first digest is due.
    first_digest: Option<Instant>,
    /// Since when it has lacked rows that are known here.
    apart: Option<Instant>,
}

/// An open question.
#[derive(Debug)]
pub(super) struct Ask {
    /// Who is asked next.
    via: NodeName,
    at: Instant,
    need: Mark,
    tries: u32,
}

/// A long row of which the parts before `next` have arrived.
#[derive(Debug)]
struct Partial<V> {
    via: NodeName,
    of: (Mark, u16),
    next: u16,
    value: V,
    /// Its bounds left something out: it is not what its maker sealed.
    broken: bool,
}

/// The machine of one table.
#[derive(Debug)]
pub struct Rows<T: Table> {
    pub(super) me: NodeName,
    /// Shared with their readers: a change of one copies that one.
    pub(super) rows: BTreeMap<NodeName, Arc<Row<T::Value>>>,
    links: BTreeMap<NodeName, Link>,
    pub(super) asks: BTreeMap<NodeName, Ask>,
    partials: BTreeMap<NodeName, Partial<T::Value>>,
    /// When the row of an origin came second-hand last.
    second_hand: BTreeMap<NodeName, Instant>,
    charges: Quota,
    proofs: Proofs,
    equivocations: Equivocations,
    /// Origins that were linked.
    met: BTreeSet<NodeName>,
    /// Rows to be relayed, and who they came from.
    fresh: BTreeMap<NodeName, NodeName>,
    news_at: Option<Instant>,
    next_digest: Instant,
    next_round: Option<Instant>,
    /// The first of the first digests, or before it.
    next_first: Option<Instant>,
    /// When there are tombstones: by when to look at their age.
    next_sweep: Option<Instant>,
    raised: Option<Instant>,
    pub(super) wall: (u64, Instant),
    /// The sum of all rows' weights.
    agreement: u64,
    rng: StdRng,
}

impl<T: Table> Rows<T> {
    /// A node that is linked with nobody, states `own`, and remembers these. `wall` is in milliseconds since 1970. Draw
    /// the first version of its own row ([`first_version`]): where a life goes on without its memory (a rolled-back disk, a
    /// restarted actor), two rows that count from 1 would come to bear one mark and differ for ever.
    pub fn new(
        mut own: Row<T::Value>,
        remembered: impl IntoIterator<Item = Row<T::Value>>,
        now: Instant,
        wall: u64,
        rng: StdRng,
        seals: Box<dyn Seals>,
    ) -> Self {
        let rows = remembered.into_iter().map(|row| (row.origin.clone(), Arc::new(row)));
        let mut rows: BTreeMap<_, _> = rows.collect();
        let me = own.origin.clone();
        if let Some(before) = rows.remove(&me).filter(|row| row.incarnation == own.incarnation) {
            own.version = own.version.max(before.version.saturating_add(1));
        }
        while rows.len() >= MAX_ROWS {
            rows.pop_last();
        }
        rows.insert(me.clone(), Arc::new(own));
        let agreement = agreement::<T>(rows.values());
        let next_sweep = rows.values().any(|row| row.gone_at().is_some()).then_some(now);
        let mut table = Self {
            me,
            rows,
            links: BTreeMap::new(),
            asks: BTreeMap::new(),
            partials: BTreeMap::new(),
            second_hand: BTreeMap::new(),
            charges: Quota::new(MAX_CHARGES),
            proofs: Proofs::new(seals),
            equivocations: Equivocations::default(),
            met: BTreeSet::new(),
            fresh: BTreeMap::new(),
            news_at: None,
            next_digest: now + T::DIGEST,
            next_round: T::ROUND.map(|round| now + round),
            next_first: None,
            next_sweep,
            raised: None,
            wall: (wall, now),
            agreement,
            rng,
        };
        table.seal_own();
        table
    }

    /// All rows, this node's own and tombstones among them, by name.
    pub fn rows(&self) -> impl Iterator<Item = &Arc<Row<T::Value>>> {
        self.rows.values()
    }

    /// The row of an origin.
    pub fn row(&self, origin: &NodeName) -> Option<&Row<T::Value>> {
        self.rows.get(origin).map(Arc::as_ref)
    }

    pub(super) fn is_linked(&self, peer: &NodeName) -> bool {
        self.links.contains_key(peer)
    }

    /// The linked peers.
    pub(super) fn peers(&self) -> impl Iterator<Item = &NodeName> {
        self.links.keys()
    }

    /// Equal on two nodes that know the same: a hash of all names and marks, without final tombstones.
    pub fn agreement(&self) -> u64 {
        self.agreement
    }

    /// Since when a linked peer has lacked rows that are known here, if one does.
    pub fn apart(&self) -> Option<Instant> {
        self.links.values().filter_map(|link| link.apart).min()
    }

    /// When the machine wants its next [`Input::Tick`].
    pub fn deadline(&self) -> Option<Instant> {
        let linked = !self.links.is_empty();
        let digests = [Some(self.next_digest), self.next_round, self.next_first];
        let digests = digests.into_iter().filter(|_| linked);
        let asks = self.asks.values().map(|ask| ask.at + T::RETRY).min();
        digests.chain([asks, self.news_at, self.next_sweep]).flatten().min()
    }

    /// Takes one input and appends what follows from it.
    pub fn handle(&mut self, input: InputOf<T>, now: Instant, out: &mut Vec<OutputOf<T>>) {
        match input {
            Input::Own(change) => self.change(change, now, out),
            Input::Linked(peer, incarnation) => self.linked(peer, incarnation, now, out),
            Input::Unlinked(peer) => {
                self.links.remove(&peer);
                self.partials.retain(|_, partial| partial.via != peer);
                // What it owed us, another one may have.
                self.asks.retain(|_, ask| ask.via != peer);
                self.next_digest = self.next_digest.min(now + HOLD);
            }
            Input::Received(from, word) => {
                if self.is_heard(&from) {
                    self.received(&from, word, now, out);
                }
            }
            Input::Gone(origin, life) => self.gone(origin, life, now, out),
            Input::Forget(origin, life, operator) => {
                self.forget(origin, life, operator, now, out);
            }
            Input::Restore(origin, operator) => self.restore(origin, operator, now, out),
            Input::Renewed(incarnation) => {
                self.amend(&self.me.clone(), |own| {
                    own.incarnation = own.incarnation.max(incarnation);
                });
                self.raise(0, out);
            }
            Input::Leaving => self.leave(now, out),
            Input::Revoked => self.drop_revoked(now, out),
            Input::Equivocation(proof) => drop(self.convict(None, &proof, now, out)),
            Input::Tick { wall } => self.tick(wall, now, out),
        }
    }

    /// Changes the own row, and sends the change to every linked peer.
    fn change(&mut self, change: T::Change, now: Instant, out: &mut Vec<OutputOf<T>>) {
        let latest = self.latest(now);
        let changed = self.amend(&self.me.clone(), |own| {
            let State::Live(value) = &mut own.state else { return None };
            let _ours_is_within_bounds = T::apply(value, change.clone(), latest);
            let from = own.version;
            own.version = from.saturating_add(1).min(LAST_VERSION);
            Some((from, own.incarnation, own.version))
        });
        let Some((from, incarnation, to)) = changed.flatten() else { return };
        let signature = self.seal_own();
        let origin = self.me.clone();
        let word = Word::Delta { origin, incarnation, from, to, change, signature };
        out.extend(self.links.keys().map(|peer| Output::Send(peer.clone(), word.clone())));
        out.push(Output::Changed(self.me.clone()));
    }

    /// Goes on above a version that others have of the own row, and sends it to every linked peer.
    fn raise(&mut self, above: u64, out: &mut Vec<OutputOf<T>>) {
        let me = self.me.clone();
        self.amend(&me, |own| {
            own.version = own.version.max(above).saturating_add(1).min(LAST_VERSION);
        });
        self.announce(out);
    }

    /// This node leaves: where that ends its row, others learn it of itself.
    fn leave(&mut self, now: Instant, out: &mut Vec<OutputOf<T>>) {
        if T::TOMBSTONES != Tombstones::Final {
            return;
        }
        let (me, at) = (self.me.clone(), self.wall(now));
        self.amend(&me, |own| {
            own.version = own.version.saturating_add(1).min(LAST_VERSION);
            own.state = State::Gone { at, by: own.origin.clone() };
        });
        self.announce(out);
    }

    /// Sends the own row, which is another, to every linked peer.
    fn announce(&mut self, out: &mut Vec<OutputOf<T>>) {
        self.seal_own();
        let own = self.rows.get(&self.me).cloned();
        out.push(Output::Changed(self.me.clone()));
        self.send_all(None, own.into_iter().collect(), out);
    }

    fn linked(
        &mut self,
        peer: NodeName,
        life: Incarnation,
        now: Instant,
        out: &mut Vec<OutputOf<T>>,
    ) {
        if peer == self.me {
            return;
        }
        if self.links.is_empty() {
            self.next_digest = now + T::DIGEST; // nothing was due while there was nobody
            self.next_round = T::ROUND.map(|round| now + round);
        }
        self.asks.remove(&peer); // from now on it answers itself
        // Of many new links one at a time is enough to learn of those that have none with this node.
        let few = self.links.len() < FEW || self.next_first.is_none();
        let jitter = self.rng.random_range(0.5..=1.5);
        let first = few.then(|| now + self.paced(T::FIRST_DIGEST).mul_f64(jitter));
        self.next_first = self.next_first.into_iter().chain(first).min();
        let link = Link {
            incarnation: life,
            cut: false,
            answered: BTreeMap::new(),
            compared: None,
            first_digest: first,
            apart: None,
        };
        self.links.insert(peer.clone(), link);
        self.meet(&peer);
        let known = self.known(&peer);
        match T::TOMBSTONES {
            Tombstones::Final => {
                let over = known.is_none_or(|known| known.incarnation != life || known.gone);
                if over && self.room(&peer, out) {
                    let state = State::Live(T::Value::default());
                    let origin = peer.clone();
                    let row = Row { origin, incarnation: life, version: 0, state, seal: None };
                    self.put(row, false, now, out);
                }
            }
            Tombstones::Outbid => {
                // It lives, and shall go on above what is known; of a life that it does not live, nothing is.
                if known.is_some_and(|known| known.incarnation > life) {
                    self.overrule(&peer, out);
                } else if let Some(known) = known.filter(|known| known.gone) {
                    let news = Word::News(vec![(peer.clone(), known)]);
                    out.push(Output::Send(peer.clone(), news));
                }
            }
        }
        let own = self.rows.get(&self.me).cloned();
        out.extend(packing::row_words::<T>(own).into_iter().map(|w| Output::Send(peer.clone(), w)));
    }

    /// That life and earlier ones of a node are gone.
    fn gone(
        &mut self,
        origin: NodeName,
        life: Incarnation,
        now: Instant,
        out: &mut Vec<OutputOf<T>>,
    ) {
        if T::TOMBSTONES != Tombstones::Final || origin == self.me || self.is_linked(&origin) {
            return;
        }
        let known = self.known(&origin).unwrap_or_default();
        if known.gone && known.incarnation == life {
            return; // it is gone by its own word, or was made so before
        }
        let state = State::Gone { at: self.wall(now), by: self.me.clone() };
        let row = Row { origin, incarnation: life, version: u64::MAX, state, seal: None };
        if row.mark() > known && self.room(&row.origin, out) {
            self.put(row, true, now, out);
        }
    }

    /// Takes the place of what was known; `ours` says whether this node made it.
    fn put(
        &mut self,
        mut row: Row<T::Value>,
        ours: bool,
        now: Instant,
        out: &mut Vec<OutputOf<T>>,
    ) -> Arc<Row<T::Value>> {
        let (origin, incarnation, latest) = (row.origin.clone(), row.incarnation, self.latest(now));
        let at = match &mut row.state {
            State::Live(_) => None,
            State::Gone { at, .. } => Some(at),
            State::Ruled(ruling) => Some(&mut ruling.at),
        };
        if let Some(at) = at.filter(|at| **at > latest) {
            (*at, row.seal) = (latest, None); // it is another row now
        }
        let gone = row.gone_at().is_some();
        if gone {
            self.asks.remove(&origin);
            self.next_sweep.get_or_insert(now + SWEEP);
        }
        self.partials.remove(&origin);
        let row = Arc::new(row);
        let before = self.rows.insert(origin.clone(), row.clone());
        self.equivocations.changed(&origin);
        let lost = before.as_deref().map_or(0, weight::<T>);
        self.agreement = self.agreement.wrapping_sub(lost).wrapping_add(weight::<T>(&row));
        let was = before.map(|before| before.gone_at().is_some());
        out.push(Output::Changed(origin.clone()));
        if gone {
            out.push(Output::Gone { origin, incarnation, known: ours || was == Some(false) });
        } else if was == Some(true) {
            out.push(Output::Revived(origin));
        }
        row
    }

    /// Others have a later mark of our row than we do: ours was lost, we are forgotten, or theirs is forged.
    fn claimed(&mut self, mark: Mark, now: Instant, out: &mut Vec<OutputOf<T>>) {
        let Some(own) = self.known(&self.me) else { return };
        let rests = self.raised.is_some_and(|at| now < at + RAISE);
        let near = mark.version.saturating_sub(own.version) <= MAX_JUMP;
        // A later life of ours is not for this machine: it is renewed, if it is so.
        if mark > own && mark.incarnation == own.incarnation && near && !rests {
            self.raised = Some(now);
            // An earlier machine of this life may have sent versions above the claim, which are still on their way: far
            // above them, or one of them would be another row of the same version.
            let far = first_version(&mut self.rng);
            self.raise(mark.version.saturating_add(far), out);
        }
    }

    fn known(&self, origin: &NodeName) -> Option<Mark> {
        self.rows.get(origin).map(|row| row.mark())
    }

    fn newer(&self, origin: &NodeName, mark: Mark) -> bool {
        self.known(origin).is_none_or(|known| mark > known)
    }

    /// A linked origin is remembered as one that exists.
    fn meet(&mut self, peer: &NodeName) {
        if self.met.len() >= 2 * MAX_ROWS {
            self.met.retain(|origin| self.rows.contains_key(origin));
        }
        self.met.insert(peer.clone());
    }

    /// Drops a row that does not count any more.
    fn overrule(&mut self, origin: &NodeName, out: &mut Vec<OutputOf<T>>) {
        if let Some(row) = self.remove(origin) {
            self.partials.remove(origin);
            out.push(Output::Changed(origin.clone()));
            out.extend(row.gone_at().map(|_| Output::Revived(origin.clone())));
        }
    }

    /// No honest node has a row of such a mark. The bounds are the same on every node, so that nobody is at fault for
    /// what it passes on.
    fn absurd(mark: Mark) -> bool {
        mark.version > LAST_RULING || mark.incarnation > Incarnation::LAST
    }

    /// What can be dropped for another row.
    fn spare(&self) -> Option<NodeName> {
        let tombstones = self.rows.values().filter_map(|row| Some((row.gone_at()?, &row.origin)));
        tombstones.min().map(|(_, origin)| origin.clone()).or_else(|| T::spare(self))
    }

    /// What must give way to the row of a linked origin: one of which only others speak, before one that was linked.
    fn hearsay(&self) -> Option<NodeName> {
        let others = self.rows.keys().filter(|it| **it != self.me && !self.links.contains_key(*it));
        others.min_by_key(|origin| self.met.contains(*origin)).cloned()
    }

    /// Makes a place for the row of that origin, if there can be one.
    fn room(&mut self, origin: &NodeName, out: &mut Vec<OutputOf<T>>) -> bool {
        if self.rows.len() < MAX_ROWS || self.rows.contains_key(origin) {
            return true;
        }
        let linked = self.links.contains_key(origin);
        let spare = self.spare().or_else(|| linked.then(|| self.hearsay()).flatten());
        let Some(spare) = spare else { return false };
        self.remove(&spare);
        out.push(Output::Changed(spare));
        true
    }

    fn is_heard(&self, peer: &NodeName) -> bool {
        self.links.get(peer).is_some_and(|link| !link.cut)
    }

    fn charge(
        &mut self,
        peer: &NodeName,
        rule: &'static str,
        now: Instant,
        out: &mut Vec<OutputOf<T>>,
    ) {
        out.push(Output::Charge(peer.clone(), rule));
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

    /// The latest time that is believed, likewise.
    fn latest(&self, now: Instant) -> u64 {
        self.wall(now).saturating_add(FUTURE)
    }
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
