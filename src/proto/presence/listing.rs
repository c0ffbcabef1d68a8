//! What the members of one topic are shown of who is there: the state in parts, changes, or how many.
//!
//! # Protocol
//! ```text
//! presence_state   to one join: the first part of who is there, in order of keys
//! presence_diff    to one join: the parts after it, as joins; to all that have begun: joins and leaves
//! presence_count   {"count": N}, to those that want no more: how many keys are there
//! ```
//! Phoenix's clients replace what they have by a state, and merge a diff; those of before 1.2 keep an entry twice that joins
//! twice. Therefore a member that reads parts is told changes only of what it has read, and the rest by the parts to come.
//!
//! What is told costs its bytes and `FRAME` for each frame, and each of the three kinds has a pace of its own: a crowd that
//! comes makes newcomers wait for the state, and nobody for a join or a message.
//!
//! # Invariants
//! 1. A member that has read up to a place has, below it, what all settled members have, and nothing beyond. So an entry is told once when
//!    it joins and once when it leaves, and nobody is a ghost who leaves between two parts.
//! 2. A frame holds [`PART`] bytes of entries, or one entry; what waits for a reader of parts is [`QUEUE`] at most and one part more.
//! 3. An update within one step is one change: its leave and its join are in one diff, and `phx_ref_prev` is what the members know.
//! 4. An entry that joins and leaves within one step, or leaves and comes back, is not told.
//! 5. One step costs at most `BURST` in parts, and one portion of changes for each that watches.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::words::{Entry, Ref};
use crate::proto::channel::{Dialect, Encoded, Json, Payload, Say};
use crate::proto::topic::Topic;

mod counts;
mod pages;
use counts::Counts;
use pages::{Pages, Place};

/// Bytes of entries in one frame.
pub const PART: usize = 48 * 1024;
/// What may wait for a member before it gets another part.
pub const QUEUE: usize = 128 * 1024;
/// What a frame costs beside its bytes.
const FRAME: usize = 2 * 1024;
/// Bytes a second of parts, and as many of changes; of counts.
const RATE: usize = 32 * 1024 * 1024;
const COUNTS: usize = 16 * 1024 * 1024;
/// Bytes of parts in one step; the least and the most that changes aim at, over all members.
const BURST: usize = 4 * 1024 * 1024;
const CHANGES: usize = 16 * 1024 * 1024;
const LEAST: usize = 16 * 1024;
/// Between two steps.
const TICK: Duration = Duration::from_millis(20);
/// How long a newcomer waits for a state that it is in itself; after that it comes as a change.
const PATIENCE: Duration = Duration::from_secs(1);

/// How much a member is shown, the least first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Sees {
    /// Nobody.
    Nothing,
    /// How many there are.
    Count,
    /// Everybody.
    #[default]
    State,
}

/// No word for how much is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("presence is state, count or off")]
pub struct NotShown;

impl FromStr for Sees {
    type Err = NotShown;

    fn from_str(text: &str) -> Result<Self, NotShown> {
        match text {
            "state" => Ok(Self::State),
            "count" => Ok(Self::Count),
            "off" => Ok(Self::Nothing),
            _other => Err(NotShown),
        }
    }
}

/// What is to be sent to a member.
#[derive(Clone, Copy, Debug)]
pub enum Shown<'a> {
    /// A frame for all that want theirs alike.
    All(&'a Encoded),
    /// An event for its join alone: payload and end of the frame.
    Join(&'static str, &'a Bytes),
}

/// Where what is shown goes.
pub trait Audience {
    /// Whether a member has taken enough of what it was sent: not more than [`QUEUE`] waits for it.
    fn is_ready(&self, member: u64) -> bool;
    /// Sends; how many bytes that were.
    fn give(&mut self, member: u64, shown: Shown<'_>) -> usize;
}

/// A change that was not told yet.
#[derive(Debug, Default)]
struct Change {
    leaves: Option<Arc<Entry>>,
    joins: Option<Arc<Entry>>,
}

/// Who reads parts.
#[derive(Debug)]
struct Reader {
    dialect: Dialect,
    /// Everything before it was read; `None`: nothing yet, not even the first part.
    from: Option<Place>,
    /// The last change before it came, and how long it waits for that to be told.
    after: u64,
    until: Instant,
}

/// When something may be told next.
#[derive(Debug, Default)]
struct Pace(Option<Instant>);

impl Pace {
    fn is_due(&self, now: Instant) -> bool {
        self.0.is_none_or(|at| at <= now)
    }

    fn spend(&mut self, now: Instant, bytes: usize, rate: usize) {
        let pause = Duration::from_secs_f64(bytes as f64 / rate as f64);
        self.0 = Some(now + pause.max(TICK));
    }
}

/// The presence of one topic, as it is shown to the members of one node.
#[derive(Debug)]
pub struct Listing {
    topic: Topic,
    /// What settled members know.
    told: Pages,
    /// What they do not know yet, in the order in which it came, and where the change of an entry is.
    changes: BTreeMap<u64, Change>,
    places: BTreeMap<Ref, u64>,
    number: u64,
    /// How many entries each key has, told or not.
    keys: BTreeMap<Box<str>, usize>,
    settled: BTreeMap<u64, Dialect>,
    readers: BTreeMap<u64, Reader>,
    /// The readers, the first that came first.
    turns: VecDeque<u64>,
    counts: Counts,
    changing: Pace,
    reading: Pace,
    counting: Pace,
}

impl Listing {
    /// Nobody is there.
    pub fn new(topic: Topic) -> Self {
        Self {
            topic,
            told: Pages::default(),
            changes: BTreeMap::new(),
            places: BTreeMap::new(),
            number: 0,
            keys: BTreeMap::new(),
            settled: BTreeMap::new(),
            readers: BTreeMap::new(),
            turns: VecDeque::new(),
            counts: Counts::default(),
            changing: Pace::default(),
            reading: Pace::default(),
            counting: Pace::default(),
        }
    }

    /// A member is shown so much from now on.
    pub fn admit(&mut self, member: u64, sees: Sees, dialect: Dialect, now: Instant) {
        match sees {
            Sees::Nothing => {}
            Sees::Count => self.counts.admit(member, dialect),
            Sees::State => {
                let (after, until) = (self.number, now + PATIENCE);
                self.readers.insert(member, Reader { dialect, from: None, after, until });
                self.turns.push_back(member);
            }
        }
    }

    /// A member is gone.
    pub fn forget(&mut self, member: u64) {
        self.settled.remove(&member);
        self.counts.forget(member);
        if self.readers.remove(&member).is_some() {
            self.turns.retain(|id| *id != member);
        }
    }

    /// An entry came. One that replaced another one comes after that has left.
    pub fn joined(&mut self, entry: Arc<Entry>) {
        *self.keys.entry(entry.key.clone()).or_default() += 1;
        let reference = entry.reference;
        let known = self.places.get(&reference).copied();
        let replaced = entry.previous.and_then(|previous| self.places.get(&previous)).copied();
        let back = known.and_then(|at| self.changes.get(&at)).is_some_and(|change| {
            change.joins.is_none()
                && change.leaves.as_ref().is_some_and(|left| left.reference == reference)
        });
        if let Some(at) = known.filter(|_| back) {
            self.changes.remove(&at);
            self.places.remove(&reference);
            return;
        }
        let free = |at: &u64| self.changes.get(at).is_some_and(|change| change.joins.is_none());
        if let Some(at) = replaced.filter(free)
            && let Some(change) = self.changes.get_mut(&at)
        {
            // The members know what it replaced in the end.
            let previous = change.leaves.as_ref().map(|left| left.reference);
            change.joins = Some(if entry.previous == previous {
                entry
            } else {
                Arc::new(Entry { previous, ..Entry::clone(&entry) })
            });
            self.places.insert(reference, at);
            return;
        }
        self.change(reference, Change { leaves: None, joins: Some(entry) });
    }

    /// An entry left.
    pub fn left(&mut self, entry: &Arc<Entry>) {
        if let Some(many) = self.keys.get_mut(&entry.key) {
            *many -= 1;
            if *many == 0 {
                self.keys.remove(&entry.key);
            }
        }
        let change = self.places.get(&entry.reference).and_then(|at| self.changes.get_mut(at));
        let untold = change.filter(|change| {
            change.joins.as_ref().is_some_and(|it| it.reference == entry.reference)
        });
        match untold {
            Some(change) => change.joins = None, // its place stays: what replaces it finds it
            None => {
                self.change(entry.reference, Change { leaves: Some(entry.clone()), joins: None })
            }
        }
    }

    fn change(&mut self, reference: Ref, change: Change) {
        self.number += 1;
        self.changes.insert(self.number, change);
        self.places.insert(reference, self.number);
    }

    /// When there is something to tell.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        let counting = self.counts.is_due(self.keys.len());
        let of = |pace: &Pace, wanted: bool| wanted.then(|| pace.0.unwrap_or(now));
        let changing = of(&self.changing, !self.changes.is_empty());
        let reading = of(&self.reading, !self.readers.is_empty());
        [changing, reading, of(&self.counting, counting)].into_iter().flatten().min()
    }

    /// Tells what may be told now.
    pub fn step(&mut self, now: Instant, audience: &mut impl Audience) {
        if !self.changes.is_empty() && self.changing.is_due(now) {
            self.tell_changes(now, audience);
        }
        if self.counting.is_due(now) && self.counts.is_due(self.keys.len()) {
            self.tell_counts(now, audience);
        }
        if !self.readers.is_empty() && self.reading.is_due(now) {
            self.tell_parts(now, audience);
        }
    }

    /// The first changes of all, so many bytes of them.
    fn take(&mut self, limit: usize) -> Vec<Change> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while let Some(first) = self.changes.first_entry() {
            let change = first.get();
            let both = [&change.leaves, &change.joins].into_iter().flatten();
            let cost: usize = both.map(|entry| pages::cost(entry)).sum();
            if bytes > 0 && bytes + cost > limit {
                break;
            }
            bytes += cost;
            taken.push(first.remove());
        }
        let first = self.changes.first_key_value().map_or(u64::MAX, |(first, _)| *first);
        self.places.retain(|_, at| *at >= first);
        taken
    }

    fn tell_changes(&mut self, now: Instant, audience: &mut impl Audience) {
        let begun = self.readers.values().filter(|reader| reader.from.is_some()).count();
        let watching = self.settled.len() + begun;
        let limit = match watching {
            0 => usize::MAX,
            many => (CHANGES / many).clamp(LEAST, PART),
        };
        let taken = self.take(limit);
        for change in &taken {
            change.leaves.iter().for_each(|entry| self.told.remove(entry));
            change.joins.iter().for_each(|entry| self.told.insert(entry.clone()));
        }
        if watching == 0 {
            return;
        }
        let mut frames = Vec::new();
        let (mut spent, topic) = (0, self.topic.as_str());
        let settled = self.settled.iter().map(|(id, dialect)| (*id, *dialect, None));
        let readers = self
            .readers
            .iter()
            .filter_map(|(id, reader)| Some((*id, reader.dialect, Some(reader.from.as_ref()?))));
        for (member, dialect, from) in settled.chain(readers) {
            let shape = (dialect, from);
            let at = frames.iter().position(|(made, _)| *made == shape).unwrap_or_else(|| {
                frames.push((shape, diff(&taken, from).and_then(|it| it.encode(dialect, topic))));
                frames.len() - 1
            });
            if let Some((_, Some(frame))) = frames.get(at) {
                spent += audience.give(member, Shown::All(frame)) + FRAME;
            }
        }
        if spent > 0 {
            self.changing.spend(now, spent, RATE);
        }
    }

    fn tell_counts(&mut self, now: Instant, audience: &mut impl Audience) {
        let (count, topic) = (self.keys.len(), self.topic.as_str());
        let payload = Payload::Json(Json::of(&BTreeMap::from([("count", count)])));
        let frames = [Dialect::V1, Dialect::V2].map(|dialect| {
            (dialect, Say::Broadcast("presence_count", &payload).encode(dialect, topic))
        });
        let mut spent = 0;
        for (member, dialect) in self.counts.take(count) {
            let frame = frames.iter().find(|(of, _)| *of == dialect);
            if let Some((_, Some(frame))) = frame {
                spent += audience.give(member, Shown::All(frame)) + FRAME;
            }
        }
        if spent > 0 {
            self.counting.spend(now, spent, COUNTS);
        }
    }

    fn tell_parts(&mut self, now: Instant, audience: &mut impl Audience) {
        let mut spent = 0;
        let untold = self.changes.first_key_value().map_or(u64::MAX, |(first, _)| *first);
        for member in std::mem::take(&mut self.turns) {
            let Some(reader) = self.readers.get_mut(&member) else { continue };
            let ready = reader.after < untold || reader.until <= now;
            let mut done = false;
            while ready && !done && spent < BURST && audience.is_ready(member) {
                let first = reader.from.is_none();
                let (part, next) = self.told.part(reader.from.as_ref(), reader.dialect);
                let event = if first { "presence_state" } else { "presence_diff" };
                if let Some(part) = part {
                    spent += audience.give(member, Shown::Join(event, &part)) + FRAME;
                }
                done = next.is_none();
                reader.from = next;
            }
            if done {
                self.settled.insert(member, reader.dialect);
                self.readers.remove(&member);
            } else {
                self.turns.push_back(member);
            }
        }
        if self.readers.is_empty() {
            self.told.rest();
        }
        self.reading.spend(now, spent, RATE);
    }
}

/// A diff of what of these changes lies before a place.
fn diff(changes: &[Change], before: Option<&Place>) -> Option<Diff> {
    let known = |entry: &&Arc<Entry>| before.is_none_or(|place| pages::is_before(entry, place));
    let of = |pick: fn(&Change) -> Option<&Arc<Entry>>| {
        changes.iter().filter_map(pick).filter(known).collect::<BTreeSet<_>>()
    };
    let joins = of(|change| change.joins.as_ref());
    let leaves = of(|change| change.leaves.as_ref());
    if joins.is_empty() && leaves.is_empty() {
        return None;
    }
    let mut text = Vec::with_capacity(128 * (joins.len() + leaves.len()));
    text.extend_from_slice(b"{\"joins\":{");
    pages::write(&mut text, joins.into_iter().map(Arc::as_ref));
    text.extend_from_slice(b"},\"leaves\":{");
    pages::write(&mut text, leaves.into_iter().map(Arc::as_ref));
    text.extend_from_slice(b"}}");
    Some(Diff(Payload::Json(Json::assembled(text))))
}

struct Diff(Payload);

impl Diff {
    fn encode(&self, dialect: Dialect, topic: &str) -> Option<Encoded> {
        Say::Broadcast("presence_diff", &self.0).encode(dialect, topic)
    }
}

#[cfg(test)]
mod tests;
