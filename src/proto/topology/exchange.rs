//! How views are brought together: digests, answers, rows taken, news and repeated questions.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Instant;

use rand::RngExt;

use super::{
    ANSWER, Cell, DIGEST, FULL, FUTURE, HOLD, MOST, MOURNED, Mark, Origin, Output, Partial, RELAYS,
    REPEAT, RETRY, Row, Topology, WORD, Word,
};
use crate::proto::codec;
use crate::proto::event::Status;
use crate::proto::node::{Incarnation, NodeName};

/// What a row or a digest needs on the wire beside its cells or marks, at most.
const HEAD: usize = 320;

impl Topology {
    /// Whatever is due.
    pub(super) fn exchange(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.repeat(now, out);
        if self.news_at.is_some_and(|at| now >= at) {
            self.tell(out);
        }
        if now >= self.next_full {
            self.next_full = now + FULL;
            self.partials.clear(); // what is still incomplete lost a part
            let words = self.digest(now);
            for peer in self.links.keys() {
                out.extend(words.iter().map(|word| Output::Send(peer.clone(), word.clone())));
            }
        }
        if now >= self.next_digest {
            self.next_digest = now + DIGEST.mul_f64(self.rng.random_range(0.8..=1.2));
            let peers = self.links.len();
            if peers > 0 {
                let one = self.rng.random_range(0..peers);
                if let Some(peer) = self.links.keys().nth(one).cloned() {
                    self.send_digest(&peer, now, out);
                }
            }
        }
    }

    /// Asks once more what was not answered, or gives up until somebody tells of it again.
    fn repeat(&mut self, now: Instant, out: &mut Vec<Output>) {
        let mut again: BTreeMap<NodeName, Vec<NodeName>> = BTreeMap::new();
        let links = &self.links;
        self.asks.retain(|origin, ask| {
            if now < ask.at + RETRY {
                return true;
            }
            (ask.at, ask.tries) = (now, ask.tries + 1);
            let goes_on = ask.tries <= 2 && links.contains_key(&ask.via);
            if goes_on {
                again.entry(ask.via.clone()).or_default().push(origin.clone());
            }
            goes_on
        });
        again.into_iter().for_each(|(via, names)| want(&via, names, out));
    }

    /// All that is known, in order of names: rows, and what left lately.
    fn marks(&self, now: Instant) -> Vec<(&NodeName, (Incarnation, u64))> {
        let rows = self.rows.iter().map(|(name, row)| (name, (row.incarnation, row.version)));
        let mut marks: Vec<_> = rows.collect();
        let young =
            |name: &NodeName, at: Instant| now < at + MOURNED && !self.rows.contains_key(name);
        let tombs = self.tombs.iter().filter(|(name, (_, at))| young(name, *at));
        marks.extend(tombs.map(|(name, (left, _))| (name, (*left, u64::MAX))));
        marks.sort_by_key(|(name, _)| *name); // already so, but for the few that left
        marks
    }

    pub(super) fn send_digest(&self, peer: &NodeName, now: Instant, out: &mut Vec<Output>) {
        out.extend(self.digest(now).into_iter().map(|word| Output::Send(peer.clone(), word)));
    }

    fn digest(&self, now: Instant) -> Vec<Word> {
        let marks = self.marks(now).into_iter();
        let marks = marks.map(|(name, (life, version))| (name.clone(), life, version));
        let parts = codec::chunks(MOST, marks, WORD - HEAD, mark_size);
        let (count, mut after) = (parts.len(), None);
        let word = |(at, marks): (usize, Vec<Mark>)| {
            let last = marks.last().map(|(name, _, _)| name.clone());
            let after = std::mem::replace(&mut after, last);
            Word::Digest { after, marks, more: at + 1 < count }
        };
        parts.into_iter().enumerate().map(word).collect()
    }

    /// Names what is newer here than in a digest.
    pub(super) fn compare(
        &mut self,
        from: &NodeName,
        after: Option<NodeName>,
        marks: &[Mark],
        more: bool,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let last = marks.last().map(|(name, _, _)| name);
        let covered = |name: &NodeName| {
            after.as_ref().is_none_or(|after| name > after)
                && (!more || last.is_some_and(|last| name <= last))
        };
        // Both in order of names; a peer whose list is not gets more news than it needs.
        let mut theirs = marks.iter().peekable();
        let newer = self.marks(now).into_iter().filter(|(name, ours)| {
            while theirs.next_if(|(theirs, _, _)| theirs < *name).is_some() {}
            let same = theirs.peek().filter(|(theirs, _, _)| theirs == *name);
            covered(name) && same.is_none_or(|(_, life, version)| *ours > (*life, *version))
        });
        let newer: Vec<_> =
            newer.map(|(name, (life, version))| (name.clone(), life, version)).collect();
        if let Some(link) = self.links.get_mut(from) {
            link.apart = (!newer.is_empty()).then(|| link.apart.unwrap_or(now));
        }
        news(from, newer, out);
    }

    /// Sends rows that are wanted, each once in a while.
    pub(super) fn answer(
        &mut self,
        from: &NodeName,
        names: &[NodeName],
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Some(link) = self.links.get_mut(from) else { return };
        link.answered.retain(|_, (_, _, at)| now < *at + REPEAT);
        let (mut rows, mut size) = (Vec::new(), 0);
        for name in names {
            let tomb = || {
                let life = self.tombs.get(name).map(|(left, _)| *left)?;
                let (version, cells) = (u64::MAX, BTreeMap::new());
                Some(Arc::new(Origin { incarnation: life, version, cells }))
            };
            let Some(row) = self.rows.get(name).cloned().or_else(tomb) else { continue };
            let sent = link.answered.get(name).map(|(life, version, _)| (*life, *version));
            if sent == Some((row.incarnation, row.version)) || size > ANSWER {
                continue;
            }
            link.answered.insert(name.clone(), (row.incarnation, row.version, now));
            for part in parts(name, Arc::unwrap_or_clone(row)) {
                size += row_size(&part);
                rows.push(part);
            }
        }
        for rows in codec::chunks(MOST, rows, WORD - HEAD, row_size) {
            out.push(Output::Send(from.clone(), Word::Rows(rows)));
        }
    }

    /// Names fresh rows to those that their origins do not reach.
    fn tell(&mut self, out: &mut Vec<Output>) {
        self.news_at = None;
        let mut told: BTreeMap<NodeName, Vec<Mark>> = BTreeMap::new();
        for (origin, source) in std::mem::take(&mut self.fresh) {
            let Some(row) = self.rows.get(&origin) else { continue };
            let first_hand = source == origin;
            // Both in order of names: one walk along them instead of a search for each peer.
            let mut cells = row.cells.iter().peekable();
            let mut reaches = |peer: &NodeName| {
                while cells.next_if(|(name, _)| *name < peer).is_some() {}
                cells.peek().is_some_and(|(name, cell)| *name == peer && up(cell))
            };
            let lacks = |peer: &&NodeName| {
                !reaches(peer)
                    && **peer != origin
                    && **peer != source
                    && (!first_hand || self.on_duty(row, peer))
            };
            let mut peers: Vec<&NodeName> = self.links.keys().filter(lacks).collect();
            let most = if first_hand { peers.len() } else { RELAYS.min(peers.len()) };
            for _ in 0..most {
                let peer = peers.swap_remove(self.rng.random_range(0..peers.len()));
                let mark = (origin.clone(), row.incarnation, row.version);
                told.entry(peer.clone()).or_default().push(mark);
            }
        }
        told.into_iter().for_each(|(peer, marks)| news(&peer, marks, out));
    }

    /// Whether this node is one of the three that tell `peer` of that row: the first ones after it,
    /// on the ring of names, of those that the origin and the peer both reach.
    fn on_duty(&self, row: &Origin, peer: &NodeName) -> bool {
        let Some(reach) = self.rows.get(peer) else { return true };
        let after = (Bound::Excluded(peer), Bound::Unbounded);
        let (segment, wrapped) = if *peer < self.me {
            (row.cells.range::<NodeName, _>((after.0, Bound::Excluded(&self.me))), None)
        } else {
            let before = row.cells.range::<NodeName, _>(..&self.me);
            (row.cells.range::<NodeName, _>(after), Some(before))
        };
        let between = segment.chain(wrapped.into_iter().flatten());
        let first = between.filter(|(name, cell)| up(cell) && online(reach, name));
        first.take(RELAYS).count() < RELAYS
    }

    /// Whether there is room for that origin, if need be in place of one that nobody reaches.
    pub(super) fn room(&mut self, origin: &NodeName) -> bool {
        if self.rows.len() < MOST || self.rows.contains_key(origin) {
            return true;
        }
        let up = |(_, _, cell): &(_, _, &Cell)| cell.state != Status::Offline;
        let seen: BTreeSet<&NodeName> = self.matrix().filter(up).map(|(_, to, _)| to).collect();
        let keep = |name: &NodeName| *name == self.me || self.links.contains_key(name);
        let orphan = self.rows.keys().find(|name| !keep(name) && !seen.contains(name)).cloned();
        orphan.is_some_and(|orphan| self.rows.remove(&orphan).is_some())
    }

    /// Takes a row, or a part of one.
    pub(super) fn row(&mut self, from: &NodeName, row: Row, now: Instant, out: &mut Vec<Output>) {
        let (origin, mark) = (row.origin.clone(), (row.incarnation, row.version));
        if origin == self.me {
            if self.known(&origin) >= Some(mark) || row.version == u64::MAX {
                self.charge(from, "row about ourselves", now, out);
            }
            return self.claimed(mark, now, out);
        }
        let linked = self.links.get(&origin).map(|link| link.incarnation);
        let whole = row.part < row.parts && row.cells.len() <= MOST;
        if !whole || self.absurd(&origin, mark) {
            return self.charge(from, "absurd row", now, out);
        }
        if linked.is_some() && origin != *from {
            return self.learn(from, vec![(origin, mark.0, mark.1)], now, out);
        }
        if linked.is_some() && mark.1 == u64::MAX {
            return self.charge(from, "goodbye on a link", now, out);
        }
        if linked.is_some_and(|linked| mark.0 != linked) {
            return; // of a link that is over, or not reported yet
        }
        if !self.newer(&origin, mark) {
            if origin == *from {
                self.asks.remove(&origin); // it has nothing later, whatever others say
            }
            return;
        }
        if mark.1 == u64::MAX {
            self.bury(origin, mark.0, now);
        } else if !self.room(&origin) {
            self.charge(from, "too many origins", now, out);
        } else {
            self.assemble(from, row, now, out);
        }
    }

    fn assemble(&mut self, from: &NodeName, row: Row, now: Instant, out: &mut Vec<Output>) {
        let (origin, of) = (row.origin, (row.incarnation, row.version, row.parts));
        let partial = self.partials.remove(&origin);
        let fits = |p: &Partial| p.via == *from && p.of == of && p.next == row.part;
        let fresh = || Partial { via: from.clone(), of, next: 0, cells: BTreeMap::new() };
        let mut partial = match partial.filter(fits) {
            Some(partial) => partial,
            None if row.part == 0 => fresh(),
            None => return, // a part before it was lost: the next digest asks again
        };
        let wall = self.wall(now);
        let ahead = row.cells.iter().any(|(_, cell)| cell.since > wall.saturating_add(FUTURE));
        let cells = row.cells.into_iter().map(|(peer, cell)| (peer, clamp(cell, wall)));
        if partial.cells.is_empty() {
            partial.cells = cells.collect(); // built at once, without a search for each cell
        } else {
            partial.cells.extend(cells);
        }
        partial.next += 1;
        if ahead && origin == *from {
            self.charge(from, "time in the far future", now, out);
        }
        if partial.cells.len() > MOST {
            return self.charge(from, "too many cells", now, out);
        }
        if partial.next < row.parts {
            if self.partials.len() < MOST {
                self.partials.insert(origin, partial);
            }
            return;
        }
        let (incarnation, version, _) = of;
        let row = Origin { incarnation, version, cells: partial.cells };
        self.rows.insert(origin.clone(), Arc::new(row));
        self.tombs.remove(&origin);
        self.taken(&origin, from, now, out);
    }

    /// When news is told of that has just come in.
    pub(super) fn hold(&mut self, now: Instant) {
        self.news_at.get_or_insert(now + HOLD);
    }
}

pub(super) fn clamp(cell: Cell, wall: u64) -> Cell {
    Cell { since: cell.since.min(wall.saturating_add(FUTURE)), ..cell }
}

fn up(cell: &Cell) -> bool {
    cell.state == Status::Online
}

fn online(row: &Origin, peer: &NodeName) -> bool {
    row.cells.get(peer).is_some_and(up)
}

pub(super) fn want(peer: &NodeName, names: Vec<NodeName>, out: &mut Vec<Output>) {
    for names in codec::chunks(MOST, names, WORD - HEAD, |name| name.as_str().len() + 2) {
        out.push(Output::Send(peer.clone(), Word::Want(names)));
    }
}

fn news(peer: &NodeName, marks: impl IntoIterator<Item = Mark>, out: &mut Vec<Output>) {
    for marks in codec::chunks(MOST, marks, WORD - HEAD, mark_size) {
        out.push(Output::Send(peer.clone(), Word::News(marks)));
    }
}

/// Cells of our own, in as many lists as their words need.
pub(super) fn deltas(cells: Vec<(NodeName, Option<Cell>)>) -> Vec<Vec<(NodeName, Option<Cell>)>> {
    codec::chunks(MOST, cells, WORD - HEAD, own_size)
}

/// A row in as many parts as its words need.
fn parts(origin: &NodeName, row: Origin) -> Vec<Row> {
    let (incarnation, version) = (row.incarnation, row.version);
    let mut parts = codec::chunks(MOST, row.cells, WORD - 3 * HEAD, cell_size);
    if parts.is_empty() {
        parts.push(Vec::new());
    }
    let count = u16::try_from(parts.len()).unwrap_or(u16::MAX);
    let row = |(part, cells)| Row {
        origin: origin.clone(),
        incarnation,
        version,
        part,
        parts: count,
        cells,
    };
    (0..count).zip(parts).map(row).collect()
}

// What things need on the wire, at most.

fn mark_size((name, _, _): &Mark) -> usize {
    name.as_str().len() + 22
}

fn cell_size((name, _): &(NodeName, Cell)) -> usize {
    name.as_str().len() + 27
}

fn own_size((name, _): &(NodeName, Option<Cell>)) -> usize {
    name.as_str().len() + 28
}

fn row_size(row: &Row) -> usize {
    HEAD + row.cells.iter().map(cell_size).sum::<usize>()
}
