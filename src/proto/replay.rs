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
//! the cursor does not name the publisher                   all of it, if it begins with 1
//!                                                          and no other epoch was heard before
//! the log never heard of the publisher, or not so far      Gap: it may come yet
//! another epoch, trimmed, lost on the way                  Gap
//! a tag that is not that of the message                    Gap: nobody was sent this cursor
//! ```
//! After an unknown loss the log has heard of nobody, and a cursor must show that it is later: it has
//! seen something that this log took since. What was taken before a loss or a hole stays for those who ask for the
//! history of the topic; no cursor is answered with it. A publisher of which neither the cursor nor the log knows is
//! beyond what can be decided here: a node that begins to follow while others publish says so with
//! [`Log::missed`].
//!
//! # Invariants
//! 1. `Ok` of [`Log::after`] is exactly what the log took and the cursor has not seen, in the order in
//!    which it was taken; nothing of what lies between was lost.
//! 2. At most as many entries, of as many bytes, as its [`Bounds`] say; in the order in which they came.
//! 3. A cursor names at most [`NODES`] publishers; its text has at most [`TEXT`] bytes, all of
//!    `A–Z a–z 0–9 . _ - @ / : ,`, one text for one cursor. A log that heard more publishers than that
//!    forgets as after an unknown loss.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::proto::node::NodeName;

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

/// Publishers of a cursor, at most.
pub const NODES: usize = 64;
/// Longest text of a cursor, in bytes.
pub const TEXT: usize = 6144;
/// What a publisher needs in that text beside its name, at most.
const STAMP: usize = 48;

/// Where in its publisher's sequence a message stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Position {
    /// Which numbering of the publisher; they have no order.
    pub epoch: u32,
    /// From 1.
    pub n: u64,
    /// Drawn at random for each message: only who was sent a cursor with it can name it.
    pub tag: u64,
}

/// What somebody has seen of a topic: everything up to these stamps. As text `a@h/5f3a:12:9c,b@h/1:7:e0`: in
/// order of names, epochs and tags in hexadecimal, numbers in decimal; empty is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor(BTreeMap<NodeName, Position>);

impl Cursor {
    /// Whether the cursor has this message behind it.
    fn has(&self, from: &NodeName, stamp: Position) -> bool {
        self.0.get(from).is_some_and(|seen| seen.epoch == stamp.epoch && seen.n >= stamp.n)
    }

    /// Whether it has seen nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it has seen all that the other one has.
    pub fn covers(&self, other: &Self) -> bool {
        other.0.iter().all(|(name, stamp)| self.has(name, *stamp))
    }

    /// The publishers that it names, and how far it has seen each.
    pub fn iter(&self) -> impl Iterator<Item = (&NodeName, Position)> {
        self.0.iter().map(|(name, stamp)| (name, *stamp))
    }

    /// Whether a message is the next one of its publisher.
    fn continues(&self, from: &NodeName, stamp: Position) -> bool {
        let next =
            |seen: &Position| seen.epoch == stamp.epoch && seen.n.checked_add(1) == Some(stamp.n);
        self.0.get(from).map_or(stamp.n == 1, next)
    }

    /// Has seen a message, too, if it is the next one of its publisher; whether it is.
    pub fn advance(&mut self, from: &NodeName, stamp: Position) -> bool {
        let next = self.continues(from, stamp);
        if next {
            self.0.insert(from.clone(), stamp);
        }
        next
    }

    fn fits(&self, one_more: &NodeName) -> bool {
        let names = self.0.keys().chain([one_more]);
        self.0.len() < NODES && names.map(|name| name.as_str().len() + STAMP).sum::<usize>() <= TEXT
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().enumerate().try_for_each(|(at, (name, stamp))| {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{name}/{:x}:{}:{:x}", stamp.epoch, stamp.n, stamp.tag)
        })
    }
}

/// The text is no cursor. Nothing changed; anyone who supplied it has to start without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no cursor")]
pub struct NoCursor;

impl FromStr for Cursor {
    type Err = NoCursor;

    fn from_str(text: &str) -> Result<Self, NoCursor> {
        if text.len() > TEXT {
            return Err(NoCursor);
        }
        let parts = text.split(',').filter(|_| !text.is_empty());
        let part = |part: &str| {
            let (name, stamp) = part.split_once('/')?;
            let (epoch, stamp) = stamp.split_once(':')?;
            let (n, tag) = stamp.split_once(':')?;
            let (epoch, tag) =
                (u32::from_str_radix(epoch, 16).ok()?, u64::from_str_radix(tag, 16).ok()?);
            let stamp = Position { epoch, n: n.parse().ok()?, tag };
            Some((name.parse().ok()?, stamp)).filter(|_| stamp.n > 0)
        };
        let seen: BTreeMap<_, _> = parts.map(part).collect::<Option<_>>().ok_or(NoCursor)?;
        let cursor = Self(seen);
        // One spelling: in order, each name once, no leading zeros.
        if cursor.0.len() <= NODES && cursor.to_string() == text {
            Ok(cursor)
        } else {
            Err(NoCursor)
        }
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

/// How much of a publisher's current epoch is held; the latest number is in the log's cursor.
#[derive(Debug)]
struct Held {
    /// The first number since a hole or since the log began.
    start: u64,
    /// The first number held; one above the latest when none is.
    low: u64,
    /// The tag of the number before it, where it was held.
    below: Option<u64>,
    /// The epoch before this one.
    before: Option<u32>,
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
    heard: BTreeMap<NodeName, Held>,
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
        let of = |(name, held): (&NodeName, &Held)| {
            let latest = self.latest.0.get(name)?;
            Some((name.clone(), *latest, held.start, held.before))
        };
        Standing { heard: self.heard.iter().filter_map(of).collect(), whole: self.losses == 0 }
    }

    /// A log that stands so, and holds nothing.
    pub fn standing(bounds: Bounds, standing: &Standing) -> Self {
        let mut log = Self::within(bounds);
        log.losses = u64::from(!standing.whole);
        for (name, latest, start, before) in &standing.heard {
            let (low, below) = (latest.n.saturating_add(1), Some(latest.tag));
            let held = Held { start: *start, low, below, before: *before };
            log.heard.insert(name.clone(), held);
            log.latest.0.insert(name.clone(), *latest);
        }
        log
    }

    /// A publisher says that this was its latest. What of it has not come here is lost.
    pub fn hear(&mut self, from: &NodeName, latest: Position) {
        let last = self.latest.0.get(from).copied();
        if last.is_some_and(|last| last.epoch == latest.epoch && last.n >= latest.n) {
            return;
        }
        if last.is_none() && !self.latest.fits(from) {
            self.missed();
        }
        let before = self.heard.get(from).and_then(|held| held.before);
        let before = last.map(|last| last.epoch).filter(|epoch| *epoch != latest.epoch).or(before);
        let next = latest.n.saturating_add(1);
        let held = Held { start: next, low: next, below: Some(latest.tag), before };
        self.heard.insert(from.clone(), held);
        self.latest.0.insert(from.clone(), latest);
    }

    /// It is not known what came of a publisher after its latest: of it nothing before now can be resumed from.
    pub fn lost(&mut self, from: &NodeName) {
        let Some((held, latest)) = self.heard.get_mut(from).zip(self.latest.0.get(from)) else {
            return;
        };
        let beyond = latest.n.saturating_add(2);
        (held.start, held.low, held.below) = (beyond, beyond, None);
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
            let tag = self.heard.get(&kept.from).and_then(|held| self.tag(&kept.from, held, n - 1));
            latest.insert(kept.from.clone(), Position { epoch, n: n - 1, tag: tag.unwrap_or(0) });
            entries.push((&kept.from, kept.position, &kept.entry));
        }
        entries.reverse();
        let stands = |(name, position): (&NodeName, &Position)| {
            let held = self.heard.get(name)?;
            let begins = position.n == 0 && held.before.is_none();
            (!begins).then(|| (name.clone(), *position, held.start, held.before))
        };
        let heard = latest.iter().filter_map(stands).collect();
        (Standing { heard, whole: self.losses == 0 }, entries)
    }

    /// Whether a message is the next one of its publisher.
    pub fn continues(&self, from: &NodeName, stamp: Position) -> bool {
        self.latest.continues(from, stamp)
    }

    /// The latest position of a publisher.
    pub fn latest(&self, from: &NodeName) -> Option<Position> {
        self.latest.0.get(from).copied()
    }

    /// Takes a message; `cost` is what it needs in memory, in bytes.
    pub fn push(&mut self, from: &NodeName, stamp: Position, cost: usize, entry: T) -> Verdict {
        let last = self.latest.0.get(from).copied();
        let before = self.heard.get(from).and_then(|held| held.before);
        let verdict = match last {
            _ if stamp.n == 0 || stamp.n == u64::MAX => Verdict::Ignored, // nobody counts so
            None => Verdict::New,
            Some(last) if last.epoch == stamp.epoch && stamp.n <= last.n => Verdict::Ignored,
            Some(last) if last.epoch == stamp.epoch && stamp.n == last.n + 1 => Verdict::New,
            Some(last) if last.epoch == stamp.epoch => Verdict::Hole,
            Some(_) if before == Some(stamp.epoch) => Verdict::Ignored,
            Some(_) if stamp.n == 1 => Verdict::New,
            Some(_) => Verdict::Hole,
        };
        if verdict == Verdict::Ignored {
            return verdict;
        }
        if last.is_none() && !self.latest.fits(from) {
            self.missed();
        }
        let follows = last.is_some_and(|last| last.epoch == stamp.epoch);
        if !follows || verdict == Verdict::Hole {
            let before = last.map(|last| last.epoch).filter(|_| !follows).or(before);
            let held = Held { start: stamp.n, low: stamp.n, below: None, before };
            self.heard.insert(from.clone(), held);
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
        if self.is_held(&oldest)
            && let Some(held) = self.heard.get_mut(&oldest.from)
        {
            (held.low, held.below) = (oldest.position.n + 1, Some(oldest.position.tag));
        }
    }

    /// Whether it belongs to what is held of its publisher without a gap.
    fn is_held(&self, kept: &Logged<T>) -> bool {
        let of = self.heard.get(&kept.from).zip(self.latest.0.get(&kept.from));
        of.is_some_and(|(held, latest)| {
            let Position { epoch, n, .. } = kept.position;
            kept.losses == self.losses && epoch == latest.epoch && n >= held.low
        })
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

    /// The tag of a number of this publisher, if it is known here.
    fn tag(&self, name: &NodeName, held: &Held, n: u64) -> Option<u64> {
        if n < held.low {
            return held.below.filter(|_| n + 1 == held.low);
        }
        let is = |kept: &&Logged<T>| kept.position.n == n && kept.from == *name;
        let kept = self.kept.iter().rev().find(|kept| is(kept) && self.is_held(kept));
        kept.map(|kept| kept.position.tag)
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
            let Some((held, latest)) = self.heard.get(name).zip(self.latest.0.get(name)) else {
                continue;
            };
            let forged = self.tag(name, held, seen.n).is_some_and(|tag| tag != seen.tag);
            if seen.epoch != latest.epoch || seen.n < held.low - 1 || forged {
                return Err(Gap::Lost);
            }
            later |= seen.n >= held.start;
        }
        let unnamed = self.heard.iter().filter(|(name, _)| !cursor.0.contains_key(*name));
        let mut unnamed = unnamed.map(|(_, held)| held);
        if !later || unnamed.any(|held| held.low != 1 || held.before.is_some()) {
            return Err(Gap::Lost);
        }
        if cursor.0.iter().any(|(name, seen)| !self.latest.has(name, *seen)) {
            return Err(Gap::Ahead);
        }
        let fresh = |kept: &&Logged<T>| {
            let seen = cursor.0.get(&kept.from);
            self.is_held(kept) && seen.is_none_or(|seen| kept.position.n > seen.n)
        };
        let kept = self.kept.iter().filter(fresh);
        Ok(kept.map(|kept| (&kept.from, kept.position, &kept.entry)))
    }
}

#[cfg(test)]
mod tests;
