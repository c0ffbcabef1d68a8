//! Who sees whom: the directed link matrix of the whole cluster, as this node knows it.
//!
//! The machine behind TopologyTracker. Every node is the origin of one row: a cell for each peer it
//! knows, with the state of its side of the link. A row has a version, (incarnation, version), that
//! rises lexicographically; the view is the set of the latest rows.
//!
//! # How a change travels
//! ```text
//! own change   Delta to every linked peer (one for all of a burst); one that does not fit is answered with Want, Want with Rows
//! no link      of those who heard it first-hand and reach such a peer, three name it in News
//! second-hand  whoever took a relayed row names it in News to up to three peers without that link
//! lost words   a Digest to one random peer about every second, and to every peer every 30 s
//! ```
//! A receiver of a digest wants what is newer at the sender, and names in News what is newer at its
//! own side. Rows go only to who wants them, and each is wanted of one peer at a time, so that a node
//! that joins gets the matrix once, not once from everybody.
//!
//! # What left
//! A tombstone is version `u64::MAX` of the life that left. For its first hour it travels as a row
//! does; for 24 h it keeps that life and earlier ones away. A proven link to that life overrules it.
//!
//! # Invariants
//! 1. The row of a linked origin comes from that origin alone, and of the life that is linked.
//! 2. A relayed row only raises (incarnation, version); a later life replaces a row at once.
//! 3. Nobody writes our own row; a claim to a later version of it makes us go on above the claim.
//! 4. What left does not come back within 24 h, except in a later life or on a link.
//! 5. Memory is bounded: 1024 origins, 1024 cells a row, one open question an origin; each word we
//!    send encodes below 48 KiB, and one answer holds at most about 1 MiB.
//! 6. An idle node sends one digest about every second, and one to each peer every 30 s.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;

use crate::proto::event::{Reason, Status};
use crate::proto::node::{Incarnation, NodeName};
use crate::proto::quota::Quota;

mod exchange;
mod words;
pub use words::{Cell, Input, Mark, Origin, Output, Row, Word};

/// Origins, cells of a row and entries of a word, at most.
pub const MOST: usize = 1024;
/// A version or incarnation this far above the known one is absurd.
const JUMP: u64 = 1 << 32;
/// Each word encodes below this many bytes.
const WORD: usize = 48 * 1024;
/// One answer has about this many bytes at most.
const ANSWER: usize = 1024 * 1024;
/// Rows wanted in one word.
const WANTS: usize = 256;
/// How many tell a peer that the origin does not reach.
const RELAYS: usize = 3;
const DIGEST: Duration = Duration::from_secs(1);
const FULL: Duration = Duration::from_secs(30);
/// News is collected for this long.
const HOLD: Duration = Duration::from_millis(50);
/// An unanswered Want is repeated after this time, twice.
const RETRY: Duration = Duration::from_secs(1);
/// The same row is not sent to the same peer again within this time.
const REPEAT: Duration = Duration::from_millis(500);
/// Between two measurements of one peer that are told.
const MEASURE: Duration = Duration::from_secs(10);
const TOMBSTONE: Duration = Duration::from_secs(24 * 3600);
/// A tombstone this young is told to others.
const MOURNED: Duration = Duration::from_secs(3600);
/// So many charges within a minute are put up with.
const CHARGES: u32 = 16;
/// A `since` further ahead than this, in milliseconds, is not believed.
const FUTURE: u64 = 24 * 3600 * 1000;

#[derive(Debug)]
struct Link {
    incarnation: Incarnation,
    /// What was sent to it lately.
    answered: BTreeMap<NodeName, (Incarnation, u64, Instant)>,
    cut: bool,
    /// Since when it has lacked rows that are known here.
    apart: Option<Instant>,
}

/// An open question.
#[derive(Debug)]
struct Ask {
    via: NodeName,
    at: Instant,
    need: (Incarnation, u64),
    tries: u32,
}

/// A long row of which the parts before `next` have arrived.
#[derive(Debug)]
struct Partial {
    via: NodeName,
    of: (Incarnation, u64, u16),
    next: u16,
    cells: BTreeMap<NodeName, Cell>,
}

/// The machine.
#[derive(Debug)]
pub struct Topology {
    me: NodeName,
    /// Shared with whoever shows them: a change of one copies that one.
    rows: BTreeMap<NodeName, Arc<Origin>>,
    tombs: BTreeMap<NodeName, (Incarnation, Instant)>,
    links: BTreeMap<NodeName, Link>,
    asks: BTreeMap<NodeName, Ask>,
    partials: BTreeMap<NodeName, Partial>,
    charges: Quota,
    /// When a cell of ours was last told, and a measurement that waits for its turn.
    told: BTreeMap<NodeName, (Instant, Option<Cell>)>,
    /// Origins to tell of, and who told us.
    fresh: BTreeMap<NodeName, NodeName>,
    news_at: Option<Instant>,
    next_digest: Instant,
    next_full: Instant,
    corrected: Option<Instant>,
    wall: (u64, Instant),
    version: u64,
    rng: StdRng,
}

impl Topology {
    /// A node that sees nobody yet. `wall` is in milliseconds since 1970. `first` is the first version
    /// of its row, above 0: draw it. Where a life goes on without its memory (a rolled-back disk, a
    /// restarted actor), two rows that count from 1 would come to bear one mark and differ for ever.
    #[must_use]
    pub fn new(
        me: NodeName,
        incarnation: Incarnation,
        first: u64,
        now: Instant,
        wall: u64,
        rng: StdRng,
    ) -> Self {
        let own = Origin { incarnation, version: first, cells: BTreeMap::new() };
        Self {
            rows: BTreeMap::from([(me.clone(), Arc::new(own))]),
            me,
            tombs: BTreeMap::new(),
            links: BTreeMap::new(),
            asks: BTreeMap::new(),
            partials: BTreeMap::new(),
            charges: Quota::new(CHARGES),
            told: BTreeMap::new(),
            fresh: BTreeMap::new(),
            news_at: None,
            next_digest: now + DIGEST,
            next_full: now + FULL,
            corrected: None,
            wall: (wall, now),
            version: 1,
            rng,
        }
    }

    /// The latest rows, this node's own among them.
    pub fn rows(&self) -> impl Iterator<Item = (&NodeName, &Arc<Origin>)> {
        self.rows.iter()
    }

    /// The latest row of an origin.
    #[must_use]
    pub fn row_of(&self, origin: &NodeName) -> Option<&Origin> {
        self.rows.get(origin).map(Arc::as_ref)
    }

    /// Every known cell: from whom, to whom, what.
    pub fn matrix(&self) -> impl Iterator<Item = (&NodeName, &NodeName, &Cell)> {
        self.rows.iter().flat_map(|(from, row)| row.cells.iter().map(move |(to, c)| (from, to, c)))
    }

    /// Counts the changes of the view.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Equal on two nodes that know the same rows: FNV-1a over (origin, incarnation, version).
    #[must_use]
    pub fn agreement(&self) -> u64 {
        let rows = self.rows.iter().flat_map(|(name, row)| {
            let numbers = [row.incarnation.0, row.version];
            name.as_str().bytes().chain([0]).chain(numbers.into_iter().flat_map(u64::to_be_bytes))
        });
        rows.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }

    /// Since when a linked peer has lacked rows that are known here, if one does.
    #[must_use]
    pub fn apart(&self) -> Option<Instant> {
        self.links.values().filter_map(|link| link.apart).min()
    }

    /// When the machine wants its next [`Input::Tick`].
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let tombs = self.tombs.values().map(|(_, at)| *at + TOMBSTONE).min();
        let linked = !self.links.is_empty();
        let rounds = linked.then(|| self.next_digest.min(self.next_full));
        let asks = self.asks.values().map(|ask| ask.at + RETRY).min();
        [tombs, rounds, asks, self.news_at].into_iter().flatten().min()
    }

    /// Takes one input and appends what follows from it.
    pub fn handle(&mut self, input: Input, now: Instant, out: &mut Vec<Output>) {
        let before = self.version;
        match input {
            Input::Own(cells) => self.own(cells, now, out),
            Input::Forget(peer) => {
                self.told.remove(&peer);
                if self.rows.get(&self.me).is_some_and(|own| own.cells.contains_key(&peer)) {
                    self.change(1, vec![(peer, None)], out);
                }
            }
            Input::Linked(peer, incarnation) => self.linked(peer, incarnation, now, out),
            Input::Unlinked(peer) => {
                self.links.remove(&peer);
                self.partials.retain(|_, partial| partial.via != peer);
                // What it owed us, another one may have.
                self.asks.retain(|_, ask| ask.via != peer);
                self.next_digest = self.next_digest.min(now + HOLD);
            }
            Input::Received(from, word) => {
                if self.links.get(&from).is_some_and(|link| !link.cut) {
                    self.received(&from, word, now, out);
                }
            }
            Input::Left(origin, incarnation) => {
                if origin != self.me {
                    self.bury(origin, incarnation, now);
                }
            }
            Input::Renewed(incarnation) => {
                if let Some(own) = self.rows.get_mut(&self.me).map(Arc::make_mut) {
                    own.incarnation = own.incarnation.max(incarnation);
                }
                self.change(2, Vec::new(), out);
            }
            Input::Tick { wall } => self.tick(wall, now, out),
        }
        if self.version != before {
            out.push(Output::Changed);
        }
    }

    /// Takes what is news among these cells, and tells of all of it at once.
    fn own(&mut self, cells: Vec<(NodeName, Cell)>, now: Instant, out: &mut Vec<Output>) {
        let known = self.rows.get(&self.me).map_or(0, |own| own.cells.len());
        let (mut room, mut news) = (MOST.saturating_sub(known), Vec::new());
        for (peer, cell) in cells {
            let old = self.rows.get(&self.me).and_then(|own| own.cells.get(&peer));
            let fresh = old.is_none();
            if fresh && room == 0 {
                continue;
            }
            let measured = old.filter(|old| says(old) == says(&cell));
            let told = self.told.get(&peer).map(|(at, _)| *at);
            if let Some(old) = measured {
                let late = told.is_none_or(|at| now >= at + MEASURE);
                let moved = moved(old.rtt, cell.rtt);
                if !moved || !late {
                    // A measurement that came too early is told in its time, unless it passes.
                    let waits = moved.then_some(cell);
                    self.told.entry(peer).and_modify(|told| told.1 = waits);
                    continue;
                }
            }
            room -= usize::from(fresh);
            self.told.insert(peer.clone(), (now, None));
            news.push((peer, Some(cell)));
        }
        exchange::deltas(news).into_iter().for_each(|news| self.change(1, news, out));
    }

    /// Raises our version and tells every linked peer; by more than one, nobody's copy fits.
    fn change(&mut self, by: u64, cells: Vec<(NodeName, Option<Cell>)>, out: &mut Vec<Output>) {
        let Some(own) = self.rows.get_mut(&self.me).map(Arc::make_mut) else { return };
        own.version = own.version.saturating_add(by).min(u64::MAX - 1);
        for (peer, cell) in cells.clone() {
            match cell {
                Some(cell) => drop(own.cells.insert(peer, cell)),
                None => drop(own.cells.remove(&peer)),
            }
        }
        let word = Word::Delta {
            origin: self.me.clone(),
            incarnation: own.incarnation,
            from: own.version.saturating_sub(1),
            to: own.version,
            cells,
        };
        self.version += 1;
        out.extend(self.links.keys().map(|peer| Output::Send(peer.clone(), word.clone())));
    }

    fn linked(&mut self, peer: NodeName, life: Incarnation, now: Instant, out: &mut Vec<Output>) {
        if peer == self.me {
            return;
        }
        self.tombs.retain(|name, (left, _)| *name != peer || *left > life);
        let known = self.rows.get(&peer).is_some_and(|row| row.incarnation >= life);
        if !known && !self.tombs.contains_key(&peer) && self.room(&peer) {
            let row = Origin { incarnation: life, version: 0, cells: BTreeMap::new() };
            self.rows.insert(peer.clone(), Arc::new(row));
            self.version += 1;
        }
        if self.links.is_empty() {
            self.next_digest = now + DIGEST; // nothing was due while there was nobody
            self.next_full = now + FULL;
        }
        self.asks.remove(&peer); // from now on it answers itself
        let link = Link { incarnation: life, answered: BTreeMap::new(), cut: false, apart: None };
        self.links.insert(peer.clone(), link);
        self.send_digest(&peer, now, out);
    }

    fn received(&mut self, from: &NodeName, word: Word, now: Instant, out: &mut Vec<Output>) {
        let length = match &word {
            Word::Delta { cells, .. } => cells.len(),
            Word::Digest { marks, .. } | Word::News(marks) => marks.len(),
            Word::Rows(rows) => rows.len(),
            Word::Want(names) => names.len(),
        };
        if length > MOST {
            return self.charge(from, "too many in one word", now, out);
        }
        match word {
            Word::Delta { origin, incarnation, from: base, to, cells } => {
                if origin != *from {
                    return self.charge(from, "delta of another origin", now, out);
                }
                let marks = vec![(origin, incarnation, to)];
                if self.delta(from, (incarnation, base, to), cells, now, out) {
                    self.learn(from, marks, now, out);
                }
            }
            Word::Digest { after, marks, more } => {
                self.compare(from, after, &marks, more, now, out);
                self.learn(from, marks, now, out);
            }
            Word::News(marks) => self.learn(from, marks, now, out),
            Word::Want(names) => self.answer(from, &names, now, out),
            Word::Rows(rows) => {
                for row in rows {
                    if self.links.get(from).is_none_or(|link| link.cut) {
                        return;
                    }
                    self.row(from, row, now, out);
                }
            }
        }
    }

    /// Applies a delta that fits; says whether it is news that does not fit.
    fn delta(
        &mut self,
        from: &NodeName,
        (life, base, to): (Incarnation, u64, u64),
        cells: Vec<(NodeName, Option<Cell>)>,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> bool {
        let wall = self.wall(now);
        let Some(row) = self.rows.get_mut(from) else { return true };
        if row.incarnation != life || row.version != base || to <= base || to - base > JUMP {
            return true;
        }
        if self.links.get(from).is_none_or(|link| link.incarnation != life) || to == u64::MAX {
            return true;
        }
        let added = || {
            let new = |(name, cell): &&(NodeName, Option<Cell>)| {
                cell.is_some() && !row.cells.contains_key(name)
            };
            cells.iter().filter(new).count()
        };
        if row.cells.len() + cells.len() > MOST && row.cells.len() + added() > MOST {
            self.charge(from, "too many cells", now, out);
            return false;
        }
        let row = Arc::make_mut(row);
        row.version = to;
        let mut ahead = false;
        for (peer, cell) in cells {
            match cell {
                Some(cell) => {
                    ahead |= cell.since > wall.saturating_add(FUTURE);
                    row.cells.insert(peer, exchange::clamp(cell, wall));
                }
                None => drop(row.cells.remove(&peer)),
            }
        }
        if ahead {
            self.charge(from, "time in the far future", now, out);
        }
        self.taken(from, from, now, out);
        false
    }

    /// A row was raised: the view changed, a question may be answered, and others may need it.
    fn taken(&mut self, origin: &NodeName, from: &NodeName, now: Instant, out: &mut Vec<Output>) {
        self.version += 1;
        let known = self.known(origin);
        if let Some(ask) = self.asks.remove(origin)
            && known < Some(ask.need)
            && origin != from
            && self.links.contains_key(&ask.via)
        {
            // Meanwhile a later one was heard of.
            out.push(Output::Send(ask.via.clone(), Word::Want(vec![origin.clone()])));
            self.asks.insert(origin.clone(), Ask { at: now, ..ask });
        }
        self.fresh.insert(origin.clone(), from.clone());
        self.hold(now);
    }

    /// Wants what is newer at the sender.
    fn learn(
        &mut self,
        from: &NodeName,
        mut marks: Vec<Mark>,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        // Almost all of almost every digest is known. Both are in order of names; of a list that is
        // not, more is looked at below.
        let mut rows = self.rows.iter().peekable();
        marks.retain(|(origin, life, version)| {
            while rows.next_if(|(name, _)| *name < origin).is_some() {}
            let row = rows.peek().filter(|(name, _)| *name == origin);
            row.is_none_or(|(_, row)| (row.incarnation, row.version) != (*life, *version))
        });
        let (mut wanted, mut absurd) = (Vec::new(), false);
        for (origin, life, version) in marks {
            let mark = (life, version);
            if origin == self.me {
                self.claimed(mark, now, out);
                continue;
            }
            let linked = self.links.get(&origin).map(|link| link.incarnation);
            let allowed = match linked {
                // A later life than the linked one: its link is not reported yet.
                Some(_) if origin == *from => version != u64::MAX,
                _ => true,
            };
            if !allowed || self.absurd(&origin, mark) {
                absurd = true;
            } else if self.newer(&origin, mark) && linked.is_none_or(|linked| life == linked) {
                self.want(from, origin, mark, now, &mut wanted, out);
            }
        }
        exchange::want(from, wanted, out);
        if absurd {
            self.charge(from, "absurd version", now, out);
        }
    }

    fn want(
        &mut self,
        from: &NodeName,
        origin: NodeName,
        need: (Incarnation, u64),
        now: Instant,
        wanted: &mut Vec<NodeName>,
        out: &mut Vec<Output>,
    ) {
        if let Some(ask) = self.asks.get_mut(&origin) {
            if need > ask.need {
                ask.need = need;
                if !self.links.contains_key(&origin) {
                    ask.via = from.clone();
                }
            }
            return;
        }
        if self.asks.len() >= MOST || wanted.len() >= WANTS {
            return;
        }
        if origin != *from && self.links.contains_key(&origin) {
            // It shall tell us itself, and hear what is said of it.
            if need.1 != u64::MAX {
                let mark = (origin.clone(), need.0, need.1);
                out.push(Output::Send(origin.clone(), Word::News(vec![mark])));
                out.push(Output::Send(origin.clone(), Word::Want(vec![origin.clone()])));
                let ask = Ask { via: origin.clone(), at: now, need, tries: 2 };
                self.asks.insert(origin, ask);
            }
            return;
        }
        wanted.push(origin.clone());
        self.asks.insert(origin, Ask { via: from.clone(), at: now, need, tries: 0 });
    }

    /// Others have a later version of our row than we do: ours was lost, or theirs is forged.
    fn claimed(
        &mut self,
        (life, version): (Incarnation, u64),
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Some(own) = self.rows.get_mut(&self.me).map(Arc::make_mut) else { return };
        let above = life >= own.incarnation && version > own.version && version != u64::MAX;
        let rests = self.corrected.is_some_and(|at| now < at + DIGEST);
        if above && !rests && version - own.version <= JUMP {
            own.version = version;
            self.corrected = Some(now);
            self.change(2, Vec::new(), out);
        }
    }

    fn known(&self, origin: &NodeName) -> Option<(Incarnation, u64)> {
        let row = self.rows.get(origin).map(|row| (row.incarnation, row.version));
        row.or_else(|| self.tombs.get(origin).map(|(left, _)| (*left, u64::MAX)))
    }

    fn newer(&self, origin: &NodeName, mark: (Incarnation, u64)) -> bool {
        self.known(origin).is_none_or(|known| mark > known)
    }

    fn absurd(&self, origin: &NodeName, (life, version): (Incarnation, u64)) -> bool {
        let (known, base) = self.known(origin).unwrap_or_default();
        let base = if known == life { base } else { 0 };
        life.0 > known.0.saturating_add(JUMP)
            || version > base.saturating_add(JUMP) && version != u64::MAX
    }

    /// That life and earlier ones of a node are gone.
    fn bury(&mut self, origin: NodeName, life: Incarnation, now: Instant) {
        let row = self.rows.get(&origin).map(|row| row.incarnation);
        if row.is_some_and(|row| row > life) || !self.newer(&origin, (life, u64::MAX)) {
            return;
        }
        let oldest = self.tombs.iter().min_by_key(|(_, (_, at))| *at).map(|(name, _)| name.clone());
        if let Some(oldest) = oldest.filter(|_| self.tombs.len() >= MOST) {
            self.tombs.remove(&oldest);
        }
        self.asks.remove(&origin);
        self.partials.remove(&origin);
        if self.rows.remove(&origin).is_some() {
            self.version += 1;
        }
        self.tombs.insert(origin, (life, now));
    }

    fn tick(&mut self, wall: u64, now: Instant, out: &mut Vec<Output>) {
        self.wall = (wall, now);
        self.tombs.retain(|_, (_, at)| now < *at + TOMBSTONE);
        let due = |(peer, (at, cell)): (&NodeName, &(Instant, Option<Cell>))| {
            let cell = cell.as_ref().filter(|_| now >= *at + MEASURE)?;
            Some((peer.clone(), cell.clone()))
        };
        let due: Vec<(NodeName, Cell)> = self.told.iter().filter_map(due).collect();
        self.own(due, now, out);
        self.exchange(now, out);
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
        let since = now.saturating_duration_since(self.wall.1).as_millis();
        self.wall.0.saturating_add(u64::try_from(since).unwrap_or(u64::MAX))
    }
}

/// What a cell says beside its measurements.
fn says(cell: &Cell) -> (Status, bool, Option<Reason>) {
    (cell.state, cell.suspect, cell.reason)
}

/// Whether a round trip changed by more than half, and by more than a millisecond.
fn moved(old: Option<u32>, new: Option<u32>) -> bool {
    match (old, new) {
        (Some(old), Some(new)) => old.abs_diff(new) > (old / 2).max(1000),
        (old, new) => old != new,
    }
}

#[cfg(test)]
mod tests;
