//! How tables are brought together: digests, marks, questions, answers, rows taken and news.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;
use std::time::Instant;

use rand::RngExt;

use super::packing::{mark_size, row_size, row_words, send_news, send_want};
use super::{
    Ask, HEAD, HOLD, LAST_VERSION, MAX_JUMP, MAX_ROWS, MAX_WORD, Mark, Output, OutputOf, Partial,
    Row, Rows, SWEEP, State, Table, Tombstones, Word, WordOf, YOUNG, millis,
};
use crate::proto::codec;
use crate::proto::node::NodeName;
use crate::proto::seal::Seal;

/// One answer has about this many bytes at most.
pub(crate) const MAX_ANSWER: usize = 1024 * 1024;
/// Rows wanted in one word.
const MAX_WANTS: usize = 256;
/// A want is repeated so often.
const MAX_TRIES: u32 = 2;

impl<T: Table> Rows<T> {
    /// Does what is due.
    pub(super) fn tick(&mut self, wall: u64, now: Instant, out: &mut Vec<OutputOf<T>>) {
        self.wall = (wall, now);
        if self.next_sweep.is_some() {
            let over = |row: &&Arc<Row<_>>| row.gone_at().is_some_and(|at| over::<T>(at, wall));
            let over = self.rows.values().filter(over).map(|row| row.origin.clone());
            for origin in over.collect::<Vec<_>>() {
                drop(self.remove(&origin));
                out.push(Output::Changed(origin));
            }
            let tombstones = self.rows.values().any(|row| row.gone_at().is_some());
            self.next_sweep = tombstones.then(|| now + SWEEP);
        }
        self.repeat(now, out);
        if self.news_at.is_some_and(|at| now >= at) {
            self.relay(out);
        }
        self.digests(now, out);
    }

    /// Sends the digests that are due.
    fn digests(&mut self, now: Instant, out: &mut Vec<OutputOf<T>>) {
        let round = self.next_round.is_some_and(|at| now >= at);
        if round {
            self.next_round = T::ROUND.map(|round| now + round);
            self.partials.clear(); // what is still incomplete lost a part
        }
        let mut one = None;
        if now >= self.next_digest {
            if self.is_sealed_before() {
                self.raise(0, out);
            }
            self.next_digest = now + T::DIGEST.mul_f64(self.rng.random_range(0.8..=1.2));
            let peers = self.links.len();
            one = (peers > 0).then(|| self.rng.random_range(0..peers));
        }
        let first = self.next_first.is_some_and(|at| now >= at);
        if !(round || first || one.is_some()) {
            return;
        }
        let due = self.links.iter_mut().enumerate().filter_map(|(at, (peer, link))| {
            let first = link.first_digest.take_if(|at| now >= *at).is_some();
            (first || round || one == Some(at)).then(|| peer.clone())
        });
        let due: Vec<NodeName> = due.collect();
        if first {
            self.next_first = self.links.values().filter_map(|link| link.first_digest).min();
        }
        if !due.is_empty() {
            let hash = self.digest();
            out.extend(due.into_iter().map(|peer| Output::Send(peer, Word::Digest(hash))));
        }
    }

    /// Repeats the wants that were not answered, or gives up until somebody names that row again.
    fn repeat(&mut self, now: Instant, out: &mut Vec<OutputOf<T>>) {
        let mut again: BTreeMap<NodeName, Vec<NodeName>> = BTreeMap::new();
        let links = &self.links;
        self.asks.retain(|origin, ask| {
            if now < ask.at + T::RETRY {
                return true;
            }
            (ask.at, ask.tries) = (now, ask.tries + 1);
            let goes_on = ask.tries <= MAX_TRIES && links.contains_key(&ask.via);
            if goes_on {
                again.entry(ask.via.clone()).or_default().push(origin.clone());
            }
            goes_on
        });
        again.into_iter().for_each(|(via, names)| send_want::<T>(&via, names, out));
    }

    pub(super) fn received(
        &mut self,
        from: &NodeName,
        word: WordOf<T>,
        now: Instant,
        out: &mut Vec<OutputOf<T>>,
    ) {
        let length = match &word {
            Word::Rows(rows) => rows.len(),
            Word::Marks { marks, .. } | Word::News(marks) => marks.len(),
            Word::Want(names) => names.len(),
            Word::Part { adds: change, .. } | Word::Delta { change, .. } => T::length(change),
            Word::Digest(_) | Word::Sealed(_) | Word::Equivocation(_) => 0,
        };
        if length > MAX_ROWS {
            return self.charge(from, "too many in one word", now, out);
        }
        match word {
            Word::Rows(rows) => {
                let mut young = Vec::new();
                for row in rows {
                    if self.is_heard(from) {
                        young.extend(self.take(from, row, now, out));
                    }
                }
                young.retain(|row| self.is_passable(&row.origin, now));
                self.send_all(Some(from), young, out);
            }
            Word::Part { origin, incarnation, version, part, parts, adds, seal } => {
                let mark = Mark { incarnation, version, gone: false };
                self.part(from, origin, (mark, part, parts), (adds, seal), now, out);
            }
            Word::Delta { origin, incarnation, from: base, to, change, signature } => {
                let mark = Mark { incarnation, version: to, gone: false };
                if origin != *from {
                    self.charge(from, "delta of another origin", now, out);
                } else if to > LAST_VERSION {
                    self.charge(from, "absurd mark", now, out);
                } else if !self.delta(from, base, mark, (change, signature), now, out) {
                    self.learn(from, vec![(origin, mark)], now, out);
                }
            }
            Word::Digest(theirs) => {
                if theirs != self.digest() {
                    self.send_marks(from, now, out);
                } else if let Some(link) = self.links.get_mut(from) {
                    link.apart = None;
                }
            }
            Word::Marks { after, marks, more, values } => {
                self.compare(from, after.as_ref(), &marks, more, now, out);
                self.compare_values(from, &marks, &values, now, out);
                self.learn(from, marks, now, out);
            }
            Word::News(marks) => self.learn(from, marks, now, out),
            Word::Want(names) => self.answer(from, &names, now, out),
            Word::Sealed(all) => self.compare_sealed(from, all, now, out),
            Word::Equivocation(proof) => drop(self.convict(Some(from), &proof, now, out)),
        }
    }

    /// Sends a peer all marks, once in a while.
    fn send_marks(&mut self, peer: &NodeName, now: Instant, out: &mut Vec<OutputOf<T>>) {
        let marks: Vec<_> = self.marks(now).map(|(name, mark)| (name.clone(), mark)).collect();
        let Some(link) = self.links.get_mut(peer) else { return };
        if link.compared.is_some_and(|at| now < at + T::RETRY / 2) {
            return;
        }
        link.compared = Some(now);
        let parts = codec::chunks(MAX_ROWS, marks, MAX_WORD - HEAD, mark_size);
        let (count, mut after) = (parts.len(), None);
        let salt = self.rng.random();
        for (at, marks) in parts.into_iter().enumerate() {
            let last = marks.last().map(|(name, _)| name.clone());
            let after = mem::replace(&mut after, last);
            let values = self.values_of(&marks, salt, now);
            let word = Word::Marks { after, marks, more: at + 1 < count, values };
            out.push(Output::Send(peer.clone(), word));
        }
    }

    /// The marks that others are informed of, in order of names.
    fn marks(&self, now: Instant) -> impl Iterator<Item = (&NodeName, Mark)> {
        let wall = self.wall(now);
        let ends = T::TOMBSTONES == Tombstones::Final;
        let kept = move |row: &Row<_>, at| ends && (row.seal.is_none() || !is_young(at, wall));
        let barred = self.barred();
        let rows = self.rows.values().filter(move |row| {
            !row.gone_at().is_some_and(|at| kept(row, at)) && !barred.contains(&row.origin)
        });
        rows.map(|row| (&row.origin, row.mark()))
    }

    /// Names what is newer here than in a peer's marks.
    fn compare(
        &mut self,
        from: &NodeName,
        after: Option<&NodeName>,
        marks: &[(NodeName, Mark)],
        more: bool,
        now: Instant,
        out: &mut Vec<OutputOf<T>>,
    ) {
        let last = marks.last().map(|(name, _)| name);
        // Both in order of names; a peer whose list is not gets more news than it needs.
        let mut theirs = marks.iter().peekable();
        let newer = self.marks(now).filter(|(name, ours)| {
            while theirs.next_if(|(theirs, _)| theirs < *name).is_some() {}
            let same = theirs.peek().filter(|(theirs, _)| theirs == *name);
            after.is_none_or(|after| *name > after)
                && (!more || last.is_some_and(|last| *name <= last))
                && same.is_none_or(|(_, mark)| ours > mark)
        });
        let newer: Vec<_> = newer.map(|(name, mark)| (name.clone(), mark)).collect();
        if let Some(link) = self.links.get_mut(from) {
            link.apart = (!newer.is_empty()).then(|| link.apart.unwrap_or(now));
        }
        send_news::<T>(from, newer, out);
    }

    /// Sends rows that are wanted, each once in a while.
    pub(super) fn answer(
        &mut self,
        to: &NodeName,
        names: &[NodeName],
        now: Instant,
        out: &mut Vec<OutputOf<T>>,
    ) {
        let names: Vec<_> = names.iter().filter(|name| self.is_passable(name, now)).collect();
        let Some(link) = self.links.get_mut(to) else { return };
        link.answered.retain(|_, (_, at)| now < *at + T::RETRY / 2);
        let (mut rows, mut size) = (Vec::new(), 0);
        for row in names.into_iter().filter_map(|name| self.rows.get(name)) {
            let sent = link.answered.get(&row.origin).is_some_and(|(sent, _)| *sent == row.mark());
            if !sent && size <= MAX_ANSWER {
                link.answered.insert(row.origin.clone(), (row.mark(), now));
                size += row_size::<T>(row);
                rows.push(row.clone());
            }
        }
        let words = row_words::<T>(rows);
        out.extend(words.into_iter().map(|word| Output::Send(to.clone(), word)));
    }

    /// Sends rows to every linked peer but the one they came from.
    pub(super) fn send_all(
        &self,
        from: Option<&NodeName>,
        rows: Vec<Arc<Row<T::Value>>>,
        out: &mut Vec<OutputOf<T>>,
    ) {
        for word in row_words::<T>(rows) {
            let peers = self.links.keys().filter(|peer| Some(*peer) != from);
            out.extend(peers.map(|peer| Output::Send(peer.clone(), word.clone())));
        }
    }

    /// Wants what is newer at a peer.
    fn learn(
        &mut self,
        from: &NodeName,
        mut marks: Vec<(NodeName, Mark)>,
        now: Instant,
        out: &mut Vec<OutputOf<T>>,
    ) {
        self.warn(from, &marks, now, out);
        // Almost all of almost every list is known. Both are in order of names; of a list that is not, more is looked
        // at below.
        let mut rows = self.rows.iter().peekable();
        marks.retain(|(origin, mark)| {
            while rows.next_if(|(name, _)| *name < origin).is_some() {}
            let row = rows.peek().filter(|(name, _)| *name == origin);
            row.is_none_or(|(_, row)| row.mark() != *mark)
        });
        let unknown = marks.iter().any(|(origin, _)| !self.rows.contains_key(origin));
        let full = unknown && self.rows.len() >= MAX_ROWS && self.spare().is_none();
        let (mut wanted, mut absurd) = (Vec::new(), false);
        for (origin, mark) in marks {
            if origin == self.me {
                self.claimed(mark, now, out);
                continue;
            }
            let linked = self.links.get(&origin).map(|link| link.incarnation);
            let its_own_end = linked.is_some()
                && origin == *from
                && mark.gone
                && T::TOMBSTONES == Tombstones::Outbid;
            if its_own_end || Self::absurd(mark) {
                absurd = true;
            } else if self.newer(&origin, mark)
                && !self.proofs.is_refused(from, &origin, mark, now)
                // Of a later life than the linked one: its link is not reported yet.
                && linked.is_none_or(|linked| mark.incarnation == linked)
                && (!full || self.rows.contains_key(&origin))
            {
                self.want(from, origin, mark, now, &mut wanted, out);
            }
        }
        send_want::<T>(from, wanted, out);
        if absurd {
            self.charge(from, "absurd mark", now, out);
        }
    }

    fn want(
        &mut self,
        from: &NodeName,
        origin: NodeName,
        need: Mark,
        now: Instant,
        wanted: &mut Vec<NodeName>,
        out: &mut Vec<OutputOf<T>>,
    ) {
        let linked = self.links.contains_key(&origin);
        if let Some(ask) = self.asks.get_mut(&origin) {
            if need >= ask.need {
                ask.need = need;
                if !linked {
                    ask.via = from.clone();
                }
            }
            return;
        }
        if self.asks.len() >= MAX_ROWS || wanted.len() >= MAX_WANTS {
            return;
        }
        let (mut via, mut at, mut tries) = (from.clone(), now, 0);
        let rests = self.rests(&origin, now).filter(|until| *until > now && !linked && !need.gone);
        if linked && origin != *from {
            if T::TOMBSTONES == Tombstones::Final && need.gone {
                return; // it is linked
            }
            // It shall send its row itself, and learn what others have of it.
            out.push(Output::Send(origin.clone(), Word::News(vec![(origin.clone(), need)])));
            out.push(Output::Send(origin.clone(), Word::Want(vec![origin.clone()])));
            (via, tries) = (origin.clone(), MAX_TRIES);
        } else if let Some(until) = rests {
            at = until.checked_sub(T::RETRY).unwrap_or(now);
        } else {
            wanted.push(origin.clone());
        }
        self.asks.insert(origin, Ask { via, at, need, tries });
    }

    /// Whether a row of that mark is to be taken from that peer.
    fn accepts(
        &mut self,
        from: &NodeName,
        origin: &NodeName,
        mark: Mark,
        now: Instant,
        out: &mut Vec<OutputOf<T>>,
    ) -> bool {
        let linked = self.links.get(origin).map(|link| link.incarnation);
        if *origin == self.me {
            // A tombstone that others pass on may cross our going on above it.
            let crossed = mark.gone && T::TOMBSTONES == Tombstones::Outbid;
            if !crossed && (mark.gone || !self.newer(origin, mark)) {
                self.charge(from, "row about ourselves", now, out);
            }
            self.claimed(mark, now, out);
        } else if linked.is_some() && origin != from {
            self.learn(from, vec![(origin.clone(), mark)], now, out);
        } else if Self::absurd(mark) {
            self.charge(from, "absurd mark", now, out);
        } else if linked.is_some() && mark.gone && T::TOMBSTONES == Tombstones::Outbid {
            self.charge(from, "its own tombstone", now, out);
        } else if linked.is_some_and(|linked| linked != mark.incarnation) {
            // Of a link that is over, or not reported yet.
        } else if origin == from
            && let Some(known) = self.known(origin).filter(|known| mark < *known)
            && known.incarnation == mark.incarnation
            && known.version.saturating_sub(mark.version) <= MAX_JUMP
        {
            // It has nothing later, whatever others claim; what they claimed before, it shall go on above.
            self.asks.remove(origin);
            out.push(Output::Send(origin.clone(), Word::News(vec![(origin.clone(), known)])));
        } else if origin != from && !self.newer(origin, mark) {
            // It is known.
        } else {
            return true;
        }
        false
    }

    /// Makes a place for a row that is accepted, if there can be one.
    fn place(
        &mut self,
        from: &NodeName,
        row: &Row<T::Value>,
        now: Instant,
        out: &mut Vec<OutputOf<T>>,
    ) -> bool {
        let room = self.room(&row.origin, out);
        let asked = self.is_linked(&row.origin) || self.asks.contains_key(&row.origin);
        if !room && !asked && row.gone_at().is_none() {
            self.charge(from, "unwanted row", now, out);
        }
        room
    }

    /// Whether a row is here just so: then its origin has nothing later, and nobody is asked for it any more.
    fn is_known(&mut self, row: &Row<T::Value>) -> bool {
        let known = self.rows.get(&row.origin).is_some_and(|known| **known == *row);
        if known {
            self.asks.remove(&row.origin);
        }
        known
    }

    /// Takes a row, if it is later than what is known; returns it if it is to be passed on at once.
    fn take(
        &mut self,
        from: &NodeName,
        mut row: Row<T::Value>,
        now: Instant,
        out: &mut Vec<OutputOf<T>>,
    ) -> Option<Arc<Row<T::Value>>> {
        let (wall, latest) = (self.wall(now), self.latest(now));
        match &mut row.state {
            // Others' clocks do not matter here: it is kept as long as one that was made here.
            State::Gone { at, .. } if T::TOMBSTONES == Tombstones::Final => *at = wall,
            State::Gone { .. } => return None, // what ends here is ruled
            State::Ruled(it) if it.forgotten && over::<T>(it.at, wall) => return None,
            State::Ruled(_) | State::Live(_) => {}
        }
        if row.ruling().is_some() && !self.hears_ruling(from, &row, now, out) {
            return None;
        }
        row.seal = row.seal.filter(Seal::is_short);
        if row.ruling().is_none() && row.version > LAST_VERSION {
            self.charge(from, "absurd mark", now, out);
            return None;
        }
        self.give_way(from, &row, now);
        if self.contradicts(from, &row, now, out)
            || !self.accepts(from, &row.origin, row.mark(), now, out)
            || self.is_known(&row)
            || self.is_refused_row(from, &row, now, out)
            || !self.is_proven(from, &row, now, out)
            || self.is_superseded(from, &row, now, out)
            || !self.place(from, &row, now, out)
        {
            return None;
        }
        if let State::Live(value) = &mut row.state
            && let Some(broken) = T::bound(value, latest)
        {
            row.seal = None; // it is another row now
            if row.origin == *from {
                self.charge(from, broken, now, out);
            }
        }
        if let State::Ruled(ruling) = &mut row.state {
            ruling.last = self.last(&row.origin, ruling.forgotten, ruling.last.take());
        }
        let young = row.ruling().is_some_and(|ruling| is_young(ruling.at, wall));
        let row = self.put(row, false, now, out);
        self.taken(&row.origin, from, now, out);
        young.then_some(row)
    }

    /// Takes a part of a long row; with the last one the row is whole.
    fn part(
        &mut self,
        from: &NodeName,
        origin: NodeName,
        (mark, part, parts): (Mark, u16, u16),
        (adds, seal): (T::Change, Option<Seal>),
        now: Instant,
        out: &mut Vec<OutputOf<T>>,
    ) {
        if part >= parts || mark.version > LAST_VERSION {
            return self.charge(from, "absurd part", now, out);
        }
        if !self.accepts(from, &origin, mark, now, out) {
            return;
        }
        let fits = |it: &Partial<_>| it.via == *from && it.of == (mark, parts) && it.next == part;
        let mut partial = match self.partials.remove(&origin).filter(fits) {
            Some(partial) => partial,
            None if part == 0 => {
                let (via, value) = (from.clone(), T::Value::default());
                Partial { via, of: (mark, parts), next: 0, value, broken: false }
            }
            None => return, // a part before it was lost: the next digest asks again
        };
        let broken = T::apply(&mut partial.value, adds, self.latest(now));
        partial.broken |= broken.is_some();
        broken.filter(|_| origin == *from).into_iter().for_each(|r| self.charge(from, r, now, out));
        partial.next += 1;
        if partial.next == parts {
            let (Mark { incarnation, version, .. }, state) = (mark, State::Live(partial.value));
            let seal = seal.filter(|seal| !partial.broken && seal.is_short());
            let row = Row { origin: origin.clone(), incarnation, version, state, seal };
            if self.contradicts(from, &row, now, out)
                || self.is_known(&row)
                || self.is_refused_row(from, &row, now, out)
                || !self.is_proven(from, &row, now, out)
                || !self.place(from, &row, now, out)
            {
                return;
            }
            self.put(row, false, now, out);
            self.taken(&origin, from, now, out);
        } else if self.partials.len() < MAX_ROWS {
            self.partials.insert(origin, partial);
        }
    }

    /// Applies a delta of a linked origin, if it fits what is known.
    fn delta(
        &mut self,
        from: &NodeName,
        base: u64,
        mark: Mark,
        (change, signature): (T::Change, Vec<u8>),
        now: Instant,
        out: &mut Vec<OutputOf<T>>,
    ) -> bool {
        if self.is_barred(from) {
            return true; // nothing of it is taken
        }
        let (latest, to) = (self.latest(now), mark.version);
        let linked = self.links.get(from).map(|link| link.incarnation);
        let known = Mark { version: base, ..mark };
        if self.known(from) != Some(known) || linked != Some(mark.incarnation) || to <= base {
            return false;
        }
        let broken = self.amend(from, |row| {
            row.version = to;
            let broken = match &mut row.state {
                State::Live(value) => T::apply(value, change, latest),
                State::Gone { .. } | State::Ruled(_) => None, // its own row is neither
            };
            let seal = row.seal.take().map(|seal| Seal { signature, ..seal });
            row.seal = seal.filter(|seal| broken.is_none() && seal.is_short());
            broken
        });
        broken.flatten().into_iter().for_each(|rule| self.charge(from, rule, now, out));
        out.push(Output::Changed(from.clone()));
        self.taken(from, from, now, out);
        true
    }

    /// A row was raised by a peer: a question may be answered, and others may need it.
    fn taken(
        &mut self,
        origin: &NodeName,
        from: &NodeName,
        now: Instant,
        out: &mut Vec<OutputOf<T>>,
    ) {
        let Some(known) = self.known(origin) else { return };
        if origin != from {
            self.second_hand.insert(origin.clone(), now);
        }
        if let Some(ask) = self.asks.remove(origin)
            && known < ask.need
            && origin != from
            && self.links.contains_key(&ask.via)
        {
            // Meanwhile a later one was named.
            let rests = self.rests(origin, now).and_then(|until| until.checked_sub(T::RETRY));
            if rests.is_none() {
                out.push(Output::Send(ask.via.clone(), Word::Want(vec![origin.clone()])));
            }
            self.asks.insert(origin.clone(), Ask { at: rests.unwrap_or(now), ..ask });
        }
        if T::RELAYS > 0 && !known.gone {
            self.fresh.insert(origin.clone(), from.clone());
            self.news_at.get_or_insert(now + HOLD);
        }
    }

    /// Names fresh rows to those that their origins do not reach.
    fn relay(&mut self, out: &mut Vec<OutputOf<T>>) {
        self.news_at = None;
        let mut news: BTreeMap<NodeName, Vec<(NodeName, Mark)>> = BTreeMap::new();
        for (origin, source) in mem::take(&mut self.fresh) {
            // It may have ended meanwhile: what this node has seen of that, it keeps to itself.
            let row = self.rows.get(&origin).filter(|row| row.gone_at().is_none());
            let Some(row) = row.filter(|_| !self.is_barred(&origin)) else { continue };
            let mut peers = T::relays(self, row, &source);
            let most = if source == origin { peers.len() } else { T::RELAYS.min(peers.len()) };
            for _ in 0..most {
                let peer = peers.swap_remove(self.rng.random_range(0..peers.len()));
                news.entry(peer).or_default().push((origin.clone(), row.mark()));
            }
        }
        news.into_iter().for_each(|(peer, marks)| send_news::<T>(&peer, marks, out));
    }
}

/// Whether a tombstone of that time has ended.
fn over<T: Table>(at: u64, wall: u64) -> bool {
    at.saturating_add(millis(T::TOMBSTONE)) <= wall
}

fn is_young(at: u64, wall: u64) -> bool {
    at.saturating_add(millis(YOUNG)) > wall
}
