//! Replay: what a client missed on a topic, so that it can go on where it was, perhaps at another node.
//!
//! Every message of a topic bears a stamp: its publisher numbers what it says there 1, 2, 3 and so on,
//! within one epoch of its own, with a tag for each that nobody can guess. A node that follows the topic keeps the last messages in a [`Log`]. A
//! client holds a [`Cursor`], which came with the last message it saw: per publisher, the latest stamp.
//! A cursor stands for everything that its publishers said up to those stamps.
//!
//! # When a log can answer
//! Of each publisher the log holds what it said without a gap, from some number up to its latest. The
//! answer is the part above the cursor, when that part is whole for every publisher that the cursor
//! names or the log has heard:
//! ```text
//! the cursor is within what is held, or just before it     the rest of it
//! the cursor is within an epoch that the publisher left    the rest of it, and all of those that followed
//! the cursor does not name the publisher                   all of it, if it begins with 1
//!                                                          and no other epoch was heard before
//! the log never heard of the publisher, or not so far      Gap: it may come yet
//! an unknown epoch, trimmed, lost on the way               Gap
//! a tag that is not that of the message                    Gap: nobody was sent this cursor
//! ```
//! A publisher that was killed begins another epoch, and nobody knows what it said last: an epoch ends with the last of it
//! that came, unless another log has more of it or knows of one between ([`Log::note_elsewhere`], [`Log::note_succession`]). So a cursor gets
//! what somebody got who stayed, as far as any log that is asked has it.
//!
//! After an unknown loss the log has heard of nobody, and a cursor must show that it is later: it has
//! seen something that this log took since. What was taken before a loss or a hole stays for those who ask for the
//! history of the topic; no cursor is answered with it. A publisher of which neither the cursor nor the log knows is
//! beyond what can be decided here: a node that begins to follow while others publish says so with
//! [`Log::missed`].
//!
//! # Invariants
//! 1. `Ok` of [`Log::after`] is exactly what the log took and the cursor has not seen, in the order in
//!    which it was taken; nothing of what lies between was lost, but what came to no log at the end of an epoch.
//! 2. At most as many entries, of as many bytes, as its [`Bounds`] say; in the order in which they came.
//! 3. A cursor names at most [`NODES`] publishers; its text has at most [`TEXT`] bytes, all of
//!    `A–Z a–z 0–9 . _ - @ / : ,`, one text for one cursor. A log that heard more publishers than that
//!    forgets as after an unknown loss.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::proto::node::NodeName;

mod cursor;
mod heard;

pub use cursor::{Cursor, NODES, NoCursor, Position, TEXT};
use heard::{Heard, Run};

/// What a log holds, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Entries.
    pub entries: usize,
    /// What they cost together, in bytes.
    pub bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { entries: 512, bytes: 4 * 1024 * 1024 }
    }
}

/// What a message was to the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The next one of its publisher, or the first one heard of it.
    New,
    /// Taken, but its publisher said something before it that did not come.
    Hole,
    /// Not taken: it came before, or belongs to what its publisher has left behind.
    Ignored,
}

/// Why it cannot be said what a cursor has missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Gap {
    /// The cursor has seen what has not come here. It may be under way: to ask again may help.
    #[error("the cursor is ahead of this node")]
    Ahead,
    /// Something after the cursor is not here any more, or never was; or nobody was sent this cursor.
    #[error("what came after the cursor is not here")]
    Lost,
}

#[derive(Debug)]
struct Logged<T> {
    from: NodeName,
    position: Position,
    /// How often something was lost in unknown ways before.
    losses: u64,
    cost: usize,
    entry: T,
}

/// How a log stands, without what it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Of each publisher the latest position, the first number since a hole or since the log began, and the epoch before.
    heard: Vec<(NodeName, Position, u64, Option<u32>)>,
    whole: bool,
}

impl Standing {
    /// That of a log which has heard of this cursor alone.
    pub fn at(cursor: &Cursor) -> Self {
        let heard = cursor.iter().map(|(name, at)| (name.clone(), at, at.n, None)).collect();
        Self { heard, whole: false }
    }

    /// Whether somebody with this cursor has seen all that was heard.
    pub fn is_seen(&self, cursor: &Cursor) -> bool {
        self.heard.iter().all(|(name, latest, ..)| cursor.has(name, *latest))
    }
}

/// The last messages of a topic, in the order in which they came.
#[derive(Debug)]
pub struct Log<T> {
    bounds: Bounds,
    kept: VecDeque<Logged<T>>,
    /// What they cost together.
    cost: usize,
    heard: BTreeMap<NodeName, Heard>,
    /// The latest stamps of those heard.
    latest: Cursor,
    /// How often something was lost in unknown ways.
    losses: u64,
}

impl<T> Default for Log<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Log<T> {
    /// A log that has heard nothing, and missed nothing.
    pub fn new() -> Self {
        Self::within(Bounds::default())
    }

    /// Likewise, with bounds of its own.
    pub fn within(bounds: Bounds) -> Self {
        Self {
            bounds,
            kept: VecDeque::new(),
            cost: 0,
            heard: BTreeMap::new(),
            latest: Cursor::default(),
            losses: 0,
        }
    }

    /// Has these bounds from now on.
    pub fn set_bounds(&mut self, bounds: Bounds) {
        self.bounds = bounds;
        self.cut(bounds.bytes);
    }

    /// How it stands.
    pub fn stands(&self) -> Standing {
        let of = |(name, heard): (&NodeName, &Heard)| {
            let Run { last, start, .. } = heard.current;
            (name.clone(), last, start, heard.before(heard.left.len()).map(|(epoch, _)| epoch))
        };
        Standing { heard: self.heard.iter().map(of).collect(), whole: self.losses == 0 }
    }

    /// A log that stands so, and holds nothing.
    pub fn standing(bounds: Bounds, standing: &Standing) -> Self {
        let mut log = Self::within(bounds);
        log.losses = u64::from(!standing.whole);
        for (name, latest, start, before) in &standing.heard {
            let before = before.map(|epoch| (epoch, 0));
            let heard = Heard { before, ..Heard::of(Run::after(*latest, *start)) };
            log.heard.insert(name.clone(), heard);
            log.latest.0.insert(name.clone(), *latest);
        }
        log
    }

    /// A publisher says that this was its latest, or another log has it. What of it has not come here is lost.
    pub fn hear(&mut self, from: &NodeName, latest: Position) {
        let next = latest.n.saturating_add(1);
        match self.heard.get_mut(from) {
            Some(heard) if heard.current.last.epoch == latest.epoch => {
                if heard.current.last.n >= latest.n {
                    return;
                }
                heard.skip(Run::after(latest, next));
            }
            Some(heard) if heard.has_left(latest.epoch) => {
                return self.note_elsewhere(from, latest);
            }
            Some(heard) => heard.begin(Run::after(latest, next), false),
            None => {
                if !self.latest.fits(from) {
                    self.missed();
                }
                self.heard.insert(from.clone(), Heard::of(Run::after(latest, next)));
            }
        }
        self.latest.0.insert(from.clone(), latest);
    }

    /// What another log of the same messages has lost, this one has lost, too.
    pub fn inherit_losses<U>(&mut self, other: &Log<U>) {
        for (name, theirs) in &other.heard {
            self.hear(name, theirs.current.last);
        }
        for (name, epoch, before) in other.successions() {
            self.note_succession(name, epoch, before);
        }
        for (name, theirs) in &other.heard {
            let Some(heard) = self.heard.get_mut(name) else { continue };
            let lost = theirs.runs().filter(|run| run.is_lost());
            let places = lost.filter_map(|run| Some(heard.run(run.last.epoch)?.0));
            if let Some(latest) = places.max() {
                heard.lose(latest);
            }
        }
    }

    /// A publisher says itself that this was its latest: what others said of it does not count against that.
    pub fn correct(&mut self, from: &NodeName, latest: Position) {
        let next = latest.n.saturating_add(1);
        if let Some(heard) = self.heard.get_mut(from) {
            let last = heard.current.last;
            let ahead =
                last.epoch == latest.epoch && last.n > latest.n && heard.current.is_hearsay();
            if ahead || last.epoch != latest.epoch && heard.has_left(latest.epoch) {
                heard.skip(Run::after(latest, next));
                heard.forget(latest.epoch);
                self.latest.0.insert(from.clone(), latest);
                return;
            }
        }
        self.hear(from, latest);
    }

    /// Another log has this message. Where its publisher has left the epoch and it did not come here, or the epoch is unknown
    /// and may lie between, nothing before can be resumed from.
    pub fn note_elsewhere(&mut self, from: &NodeName, theirs: Position) {
        let Some(heard) = self.heard.get_mut(from) else { return };
        let left = heard.left.len();
        match heard.run(theirs.epoch) {
            Some((place, run)) if place < left && run.last.n < theirs.n => {
                heard.cut(place + 1);
                heard.before = heard.before.map(|(epoch, _)| (epoch, theirs.n));
            }
            None if !heard.has_left(theirs.epoch) => heard.cut(left),
            Some(_) | None => {}
        }
    }

    /// To another log this epoch of a publisher came after that one, which had come so far at least. Where that is otherwise
    /// here, nothing before it can be resumed from.
    pub fn note_succession(&mut self, from: &NodeName, epoch: u32, before: (u32, u64)) {
        let Some(heard) = self.heard.get_mut(from) else { return };
        let Some((place, _)) = heard.run(epoch) else { return };
        let here = heard.before(place);
        if here.is_some_and(|here| here.0 != before.0 || here.1 < before.1) {
            heard.cut(place);
            heard.before = Some(before);
        }
    }

    /// Which epoch of a publisher came after which, and how far that had come at least, as [`Log::note_succession`] takes it.
    pub fn successions(&self) -> impl Iterator<Item = (&NodeName, u32, (u32, u64))> {
        self.heard.iter().flat_map(|(name, heard)| {
            let before = move |(place, run): (usize, &Run)| {
                heard.before(place).map(|before| (name, run.last.epoch, before))
            };
            heard.runs().enumerate().filter_map(before)
        })
    }

    /// It is not known what came of a publisher after its latest: of it nothing before now can be resumed from.
    pub fn lost(&mut self, from: &NodeName) {
        if let Some(heard) = self.heard.get_mut(from) {
            heard.lose(heard.left.len());
        }
    }

    /// How a log stands that has heard nothing, and has missed nothing if this one has not.
    pub fn beginning(&self) -> Standing {
        Standing { heard: Vec::new(), whole: self.losses == 0 }
    }

    /// The newest of what is held without a gap, at most so many, and how a log stands that goes on with them.
    pub fn tail(&self, bounds: Bounds) -> (Standing, Vec<(&NodeName, Position, &T)>) {
        let mut latest = self.latest.0.clone();
        let (mut room, mut entries) = (bounds.bytes, Vec::new());
        for kept in self.kept.iter().rev().filter(|kept| self.is_held(kept)) {
            if kept.cost > room || entries.len() >= bounds.entries {
                break;
            }
            room -= kept.cost;
            let Position { epoch, n, .. } = kept.position;
            let run = self.heard.get(&kept.from).and_then(|heard| heard.run(epoch));
            let tag = run.and_then(|(_, run)| self.tag(&kept.from, run, n - 1));
            latest.insert(kept.from.clone(), Position { epoch, n: n - 1, tag: tag.unwrap_or(0) });
            entries.push((&kept.from, kept.position, &kept.entry));
        }
        entries.reverse();
        let stands = |(name, position): (&NodeName, &Position)| {
            let heard = self.heard.get(name)?;
            let (place, run) = heard.run(position.epoch)?;
            // At the start of an epoch, the position is the last one of the epoch before.
            let previous = place.checked_sub(1).filter(|_| position.n == 0);
            let (place, run, position) =
                match previous.and_then(|place| Some((place, heard.left.get(place)?))) {
                    Some((place, run)) => (place, run, run.last),
                    None => (place, run, *position),
                };
            let before = heard.before(place).map(|(epoch, _)| epoch);
            let begins = position.n == 0 && before.is_none();
            (!begins).then(|| (name.clone(), position, run.start, before))
        };
        let heard = latest.iter().filter_map(stands).collect();
        (Standing { heard, whole: self.losses == 0 }, entries)
    }

    /// Whether a message is the next one of its publisher.
    pub fn continues(&self, from: &NodeName, stamp: Position) -> bool {
        self.latest.continues(from, stamp)
    }

    /// Whether it is the first one of an epoch that is unknown here, of a known publisher. Whether that is a later epoch than
    /// the current one, it does not say.
    pub fn begins(&self, from: &NodeName, stamp: Position) -> bool {
        let known = self.heard.contains_key(from);
        known && stamp.n == 1 && self.verdict(from, stamp) == Verdict::New
    }

    /// Whether this epoch of a publisher came after that one, as far as is known here.
    pub fn follows(&self, from: &NodeName, epoch: u32, earlier: u32) -> bool {
        self.heard.get(from).is_some_and(|heard| heard.follows(epoch, earlier))
    }

    /// The latest position of a publisher.
    pub fn latest(&self, from: &NodeName) -> Option<Position> {
        self.latest.0.get(from).copied()
    }

    /// What this message would be.
    fn verdict(&self, from: &NodeName, stamp: Position) -> Verdict {
        let heard = self.heard.get(from);
        let last = heard.map(|heard| heard.current.last);
        match last {
            _ if stamp.n == 0 || stamp.n == u64::MAX => Verdict::Ignored, // nobody counts so
            None => Verdict::New,
            Some(last) if last.epoch == stamp.epoch && stamp.n <= last.n => Verdict::Ignored,
            Some(last) if last.epoch == stamp.epoch && stamp.n == last.n + 1 => Verdict::New,
            Some(last) if last.epoch == stamp.epoch => Verdict::Hole,
            Some(_) if heard.is_some_and(|it| it.has_left(stamp.epoch)) => Verdict::Ignored,
            Some(_) if stamp.n == 1 => Verdict::New,
            Some(_) => Verdict::Hole,
        }
    }

    /// Takes a message; `cost` is what it needs in memory, in bytes.
    pub fn push(&mut self, from: &NodeName, stamp: Position, cost: usize, entry: T) -> Verdict {
        let verdict = self.verdict(from, stamp);
        if verdict == Verdict::Ignored {
            return verdict;
        }
        if !self.heard.contains_key(from) && !self.latest.fits(from) {
            self.missed();
        }
        match self.heard.get_mut(from) {
            None => drop(self.heard.insert(from.clone(), Heard::of(Run::with(stamp)))),
            Some(heard) if heard.current.last.epoch != stamp.epoch => {
                heard.begin(Run::with(stamp), verdict == Verdict::New);
            }
            Some(heard) if verdict == Verdict::New => heard.current.last = stamp,
            Some(heard) => heard.skip(Run::with(stamp)),
        }
        self.latest.0.insert(from.clone(), stamp);
        let cost = cost.min(self.bounds.bytes.saturating_add(1));
        self.cost += cost;
        let (from, losses) = (from.clone(), self.losses);
        self.kept.push_back(Logged { from, position: stamp, losses, cost, entry });
        self.cut(self.bounds.bytes);
        verdict
    }

    /// Lets go of the oldest until the rest costs so much at most.
    pub fn cut(&mut self, bytes: usize) {
        while self.kept.len() > self.bounds.entries || self.cost > bytes {
            self.let_go();
        }
    }

    /// Lets go of the oldest as long as they are of this kind.
    pub fn expire(&mut self, past: impl Fn(&T) -> bool) {
        while self.kept.front().is_some_and(|oldest| past(&oldest.entry)) {
            self.let_go();
        }
    }

    fn let_go(&mut self) {
        let Some(oldest) = self.kept.pop_front() else { return };
        self.cost -= oldest.cost;
        let Some(place) = self.place(&oldest) else { return };
        let Some(heard) = self.heard.get_mut(&oldest.from) else { return };
        heard.cut(place); // no cursor of an earlier epoch is whole from here on
        let run = heard.left.front_mut().unwrap_or(&mut heard.current);
        (run.low, run.below) = (oldest.position.n + 1, Some(oldest.position.tag));
    }

    /// The place of its epoch, if it belongs to what is held of its publisher without a gap.
    fn place(&self, kept: &Logged<T>) -> Option<usize> {
        let Position { epoch, n, .. } = kept.position;
        let (place, run) = self.heard.get(&kept.from)?.run(epoch)?;
        (kept.losses == self.losses && n >= run.low).then_some(place)
    }

    /// Whether it is held, and nothing of its publisher is missing after it.
    fn is_held(&self, kept: &Logged<T>) -> bool {
        self.place(kept).is_some()
    }

    /// Nobody knows what did not come: nothing before now can be resumed from.
    pub fn missed(&mut self) {
        self.heard.clear();
        self.latest = Cursor::default();
        self.losses += 1;
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// All that is kept, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.kept.iter().map(|kept| &kept.entry)
    }

    /// All that is kept with its publisher and position, in order.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = (&NodeName, Position, &T)> {
        self.kept.iter().map(|kept| (&kept.from, kept.position, &kept.entry))
    }

    /// What is kept costs together, in bytes.
    pub fn cost(&self) -> usize {
        self.cost
    }

    /// What this log has seen: the cursor after the last message.
    pub fn cursor(&self) -> &Cursor {
        &self.latest
    }

    /// The tag of a number in this epoch of a publisher, if it is known here.
    fn tag(&self, name: &NodeName, run: &Run, n: u64) -> Option<u64> {
        if n < run.low {
            return run.below.filter(|_| n + 1 == run.low);
        }
        let (epoch, is_held) = (run.last.epoch, |kept: &&Logged<T>| self.is_held(kept));
        let is = |kept: &&Logged<T>| (kept.position.epoch, kept.position.n) == (epoch, n);
        let mut kept = self.kept.iter().rev().filter(|kept| kept.from == *name && is(kept));
        kept.find(is_held).map(|kept| kept.position.tag)
    }

    /// What a cursor has not seen, in order. Nor has it seen anything that comes later.
    ///
    /// # Errors
    /// [`Gap`], when that cannot be said for sure.
    pub fn after(&self, cursor: &Cursor) -> Result<impl DoubleEndedIterator<Item = &T>, Gap> {
        self.entries_after(cursor).map(|entries| entries.map(|(_, _, entry)| entry))
    }

    /// Likewise, with their publishers and positions.
    ///
    /// # Errors
    /// As [`Log::after`].
    pub fn entries_after(
        &self,
        cursor: &Cursor,
    ) -> Result<impl DoubleEndedIterator<Item = (&NodeName, Position, &T)>, Gap> {
        self.beyond(cursor, self.losses == 0)
    }

    /// What came since the log, or one that has told it all that it took from then on, stood here: a cursor of its own is not
    /// asked to show that it is later than what was lost before.
    ///
    /// # Errors
    /// As [`Log::after`].
    pub fn since(
        &self,
        stood: &Cursor,
    ) -> Result<impl DoubleEndedIterator<Item = (&NodeName, Position, &T)>, Gap> {
        self.beyond(stood, true)
    }

    /// How often something was lost in unknown ways.
    pub fn losses(&self) -> u64 {
        self.losses
    }

    fn beyond(
        &self,
        cursor: &Cursor,
        mut later: bool,
    ) -> Result<impl DoubleEndedIterator<Item = (&NodeName, Position, &T)>, Gap> {
        for (name, seen) in &cursor.0 {
            let Some(heard) = self.heard.get(name) else { continue };
            let (place, run) = heard.run(seen.epoch).ok_or(Gap::Lost)?;
            let beyond = place < heard.left.len() && seen.n > run.last.n;
            let forged = self.tag(name, run, seen.n).is_some_and(|tag| tag != seen.tag);
            if beyond || seen.n < run.low - 1 || forged {
                return Err(Gap::Lost);
            }
            later |= seen.n >= run.start;
        }
        let begins = |heard: &Heard| {
            heard.before.is_none() && heard.runs().next().is_some_and(|run| run.low == 1)
        };
        let mut unnamed = self.heard.iter().filter(|(name, _)| !cursor.0.contains_key(*name));
        if !later || unnamed.any(|(_, heard)| !begins(heard)) {
            return Err(Gap::Lost);
        }
        let here = |name: &NodeName, seen: &Position| {
            let run = self.heard.get(name).and_then(|heard| heard.run(seen.epoch));
            run.is_some_and(|(_, run)| run.last.n >= seen.n)
        };
        if cursor.0.iter().any(|(name, seen)| !here(name, seen)) {
            return Err(Gap::Ahead);
        }
        let stands: BTreeMap<_, _> = (cursor.0.iter())
            .filter_map(|(name, seen)| {
                let (place, _) = self.heard.get(name)?.run(seen.epoch)?;
                Some((name.clone(), (place, seen.n)))
            })
            .collect();
        let fresh = move |kept: &&Logged<T>| {
            let seen = stands.get(&kept.from);
            let place = self.place(kept).map(|place| (place, kept.position.n));
            place.is_some_and(|place| seen.is_none_or(|seen| place > *seen))
        };
        let kept = self.kept.iter().filter(fresh);
        Ok(kept.map(|kept| (&kept.from, kept.position, &kept.entry)))
    }
}

#[cfg(test)]
mod tests;
