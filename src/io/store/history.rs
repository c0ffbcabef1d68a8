//! The history of topics in a file of its own: chunks of messages, one topic beside the other.
//!
//! A second [`Store`], `history.redb`: it opens, fails, recovers and is set aside as the first one does. Invariants:
//! 1. What a write was given is durable when it returns, whole or not at all, with what it let go of.
//! 2. The chunks of all topics have at most the bytes that they may have together. Beyond that those that have most let go
//!    of their oldest: a loud topic costs no other its history. Of more than `MAX_TOPICS` those with fewest
//!    messages go, of equal ones those that were silent longest: many new topics cost those no history that have more.
//! 3. A chunk that is not as it was written is skipped and counted; nothing after it is lost with it.
//! 4. The names of topics are values in the file, never names of files.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use redb::{ReadTransaction, ReadableTable, Table, TableDefinition, TableError};
use serde::{Deserialize, Serialize};

use super::place::Place;
use super::schema::{opened, sealed};
use super::{Condition, Failure, Opened, Store, StoreError};
use crate::proto::history::Rule;
use crate::proto::history::chunk::{Chunk, Head};
use crate::proto::node::Incarnation;
use crate::proto::replay::Position;
use crate::proto::topic::Topic;

const FILE: &str = "history.redb";
/// Topics that are kept, at most.
const MAX_TOPICS: u64 = 10_000;
/// When there is too much, this part of what may stay is let go of too: one in so many.
const SLACK: u64 = 16;

/// What is kept of each topic.
const TOPICS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("history_topics");
/// The chunks by the number of their topic and the index of their first message.
const CHUNKS: TableDefinition<'_, Key, &[u8]> = TableDefinition::new("history_chunks");
/// The last number of this node's own publications by topic, while it does not run.
const STAMPS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("history_stamps");

type Topics<'a> = Table<'a, &'static str, &'static [u8]>;
type Chunks<'a> = Table<'a, Key, &'static [u8]>;
type Key = (u64, u64);

/// What is kept of a topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// By which its chunks are found.
    number: u64,
    /// The index after that of the last message.
    pub next: u64,
    /// Messages.
    pub messages: u64,
    /// Bytes of the chunks.
    pub bytes: u64,
    /// When the last message was taken, in milliseconds since the Unix epoch.
    pub last: u64,
}

/// What is to be written of a topic.
#[derive(Clone, Debug)]
pub struct Writing {
    /// The topic.
    pub topic: Topic,
    /// What of it stays.
    pub rule: Rule,
    /// What is added, in order.
    pub chunks: Vec<Arc<Chunk>>,
}

/// The newest chunks of a topic.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// In order.
    pub chunks: Vec<Chunk>,
    /// How many were not as they were written, and are left out.
    pub damaged: u64,
    /// Whether there are older ones.
    pub more: bool,
}

/// What all topics have together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Topics.
    pub topics: u64,
    /// Bytes of their chunks.
    pub bytes: u64,
}

/// The history in its file. Clones are the same.
#[derive(Clone, Debug)]
pub struct History(Arc<Inside>);

#[derive(Debug)]
struct Inside {
    store: Store,
    bytes: AtomicU64,
    topics: AtomicU64,
}

impl History {
    /// Opens the file in the data directory, or makes it.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open(directory: &Path, now: SystemTime) -> Result<(Self, Opened), StoreError> {
        let place = Place::Directory(directory.to_owned(), FILE);
        let unusable = |cause| StoreError::Directory { path: directory.to_owned(), cause };
        let (store, opened) =
            Store::open_at(place, now).map_err(|failure| failure.into_error(unusable))?;
        Ok((Self::over(store)?, opened))
    }

    pub(super) fn over(store: Store) -> Result<Self, StoreError> {
        let history = Self(Arc::new(Inside {
            store,
            bytes: AtomicU64::default(),
            topics: AtomicU64::default(),
        }));
        history.count(&history.rows()?);
        Ok(history)
    }

    fn count(&self, rows: &[(Topic, Row)]) {
        let bytes = rows.iter().map(|(_, row)| row.bytes).sum();
        self.0.bytes.store(bytes, Ordering::Relaxed);
        self.0.topics.store(rows.len() as u64, Ordering::Relaxed);
    }

    /// How the file fares.
    pub fn condition(&self) -> Condition {
        self.0.store.condition()
    }

    /// What all topics have together.
    pub fn totals(&self) -> Totals {
        let Inside { bytes, topics, .. } = &*self.0;
        Totals { topics: topics.load(Ordering::Relaxed), bytes: bytes.load(Ordering::Relaxed) }
    }

    /// The topics of which something is kept, and what.
    ///
    /// # Errors
    /// [`StoreError::Storage`], [`StoreError::Damaged`].
    pub fn rows(&self) -> Result<Vec<(Topic, Row)>, StoreError> {
        self.0.store.read(|read| {
            let Some(topics) = there(read.open_table(TOPICS))? else { return Ok(Vec::new()) };
            rows(&topics)
        })
    }

    /// What is kept of a topic.
    ///
    /// # Errors
    /// [`StoreError::Storage`], [`StoreError::Damaged`].
    pub fn row(&self, topic: &Topic) -> Result<Option<Row>, StoreError> {
        self.0.store.read(|read| row(read, topic))
    }

    /// The newest chunks of a topic, from the last one back to the first of which `enough` says so.
    ///
    /// # Errors
    /// [`StoreError::Storage`], [`StoreError::Damaged`].
    pub fn newest(
        &self,
        topic: &Topic,
        mut enough: impl FnMut(&Chunk) -> bool,
    ) -> Result<Found, StoreError> {
        self.0.store.read(|read| {
            let mut found = Found::default();
            let Some(Row { number, .. }) = row(read, topic)? else { return Ok(found) };
            let chunks = read.open_table(CHUNKS)?;
            let mut newest = chunks.range((number, 0)..=(number, u64::MAX))?.rev();
            for entry in newest.by_ref() {
                let Some(chunk) = Chunk::decode(entry?.1.value()) else {
                    found.damaged += 1;
                    continue;
                };
                let last = enough(&chunk);
                found.chunks.push(chunk);
                if last {
                    break;
                }
            }
            found.more = newest.next().is_some();
            found.chunks.reverse();
            Ok(found)
        })
    }

    /// Adds chunks, and lets go of what is more than the topics' rules and all together may have, `most` bytes, by the time
    /// `now` in milliseconds since the Unix epoch. Returns how many messages were let go of for want of room.
    ///
    /// # Errors
    /// [`StoreError::Storage`], [`StoreError::Damaged`]; what was written before stays.
    pub fn write(&self, writings: &[Writing], most: u64, now: u64) -> Result<u64, StoreError> {
        let before = self.totals();
        let (totals, cut) = self.0.store.write(|write, _state| {
            let mut file = File {
                topics: write.open_table(TOPICS)?,
                chunks: write.open_table(CHUNKS)?,
                totals: before,
            };
            for writing in writings {
                file.add(writing, now)?;
            }
            let cut = file.make_room(most)?;
            Ok((file.totals, cut))
        })?;
        self.0.bytes.store(totals.bytes, Ordering::Relaxed);
        self.0.topics.store(totals.topics, Ordering::Relaxed);
        Ok(cut)
    }

    /// Lets go of what is older than the topics' rules keep, as `rule` says of those that have one.
    ///
    /// # Errors
    /// As [`History::write`].
    pub fn sweep(&self, rule: impl Fn(&Topic) -> Option<Rule>, now: u64) -> Result<(), StoreError> {
        let rows = self.rows()?;
        self.count(&rows);
        let due = rows.into_iter().filter_map(|(topic, _)| {
            Some(Writing { rule: rule(&topic)?, topic, chunks: Vec::new() })
        });
        let due: Vec<_> = due.collect();
        if due.is_empty() { Ok(()) } else { self.write(&due, u64::MAX, now).map(drop) }
    }

    /// Remembers the last numbers of this node's own publications in this life, for the next one.
    ///
    /// # Errors
    /// [`StoreError::Storage`], [`StoreError::Damaged`].
    pub fn keep_stamps(
        &self,
        stamps: &[(Topic, Position)],
        life: Incarnation,
    ) -> Result<(), StoreError> {
        self.0.store.write(|write, _state| {
            let mut table = write.open_table(STAMPS)?;
            for (topic, stamp) in stamps {
                table.insert(topic.as_str(), sealed(&(*stamp, life))?.as_slice())?;
            }
            Ok(())
        })
    }

    /// The numbers that the life before this one remembered. The file has them no more on return: no later life goes on from
    /// them, and none goes on from those of a file that was put back.
    ///
    /// # Errors
    /// [`StoreError::Storage`], [`StoreError::Damaged`].
    pub fn take_stamps(&self, life: Incarnation) -> Result<Vec<(Topic, Position)>, StoreError> {
        self.0.store.write(|write, _state| {
            let mut stamps = Vec::new();
            for entry in write.open_table(STAMPS)?.iter()? {
                let (topic, stamp) = entry?;
                let Ok(topic) = topic.value().parse() else { continue };
                let (stamp, of): (Position, Incarnation) = opened(stamp.value())?;
                stamps.extend((of.next() == life).then_some((topic, stamp)));
            }
            write.delete_table(STAMPS)?;
            Ok(stamps)
        })
    }
}

/// A table that may not be there yet.
fn there<T>(table: Result<T, TableError>) -> Result<Option<T>, Failure> {
    match table {
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        table => Ok(Some(table?)),
    }
}

fn row(read: &ReadTransaction, topic: &Topic) -> Result<Option<Row>, Failure> {
    let Some(topics) = there(read.open_table(TOPICS))? else { return Ok(None) };
    topics.get(topic.as_str())?.map(|row| opened(row.value())).transpose()
}

fn rows(
    topics: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<Vec<(Topic, Row)>, Failure> {
    let mut rows = Vec::new();
    for entry in topics.iter()? {
        let (topic, row) = entry?;
        // What is no topic was never written here.
        if let Ok(topic) = topic.value().parse() {
            rows.push((topic, opened(row.value())?));
        }
    }
    Ok(rows)
}

/// The tables of one write, and what they have together.
struct File<'a> {
    topics: Topics<'a>,
    chunks: Chunks<'a>,
    totals: Totals,
}

/// The oldest chunk of a topic: what is said of it without its messages.
struct Oldest {
    key: Key,
    /// `None`: it is damaged.
    head: Option<Head>,
    bytes: u64,
}

impl File<'_> {
    fn row(&self, topic: &Topic) -> Result<Option<Row>, Failure> {
        self.topics.get(topic.as_str())?.map(|row| opened(row.value())).transpose()
    }

    /// A row for a topic that has none.
    fn begin(&mut self) -> Result<Row, Failure> {
        // Every row has chunks.
        let last = self.chunks.last()?.map(|(key, _)| key.value().0);
        self.totals.topics += 1;
        Ok(Row { number: last.map_or(0, |last| last + 1), ..Row::default() })
    }

    fn add(&mut self, Writing { topic, rule, chunks }: &Writing, now: u64) -> Result<(), Failure> {
        let mut row = match self.row(topic)? {
            Some(row) => row,
            None if chunks.is_empty() => return Ok(()),
            None => self.begin()?,
        };
        let before = row;
        for chunk in chunks {
            let Some(bytes) = chunk.encode() else { continue };
            let length = bytes.len() as u64;
            let key = (row.number, chunk.first());
            // A commit that came to its end although it seemed to fail.
            if let Some(old) = self.chunks.insert(key, bytes.as_slice())? {
                row.forget(Chunk::head(old.value()).as_ref(), old.value().len() as u64);
            }
            row.bytes += length;
            row.messages += u64::from(chunk.count());
            (row.next, row.last) = (row.next.max(chunk.next()), row.last.max(chunk.last()));
        }
        let oldest = rule.first(now);
        self.cut(&mut row, |row, head| {
            let rest = row.messages.saturating_sub(u64::from(head.count));
            head.last < oldest || rest >= rule.count as u64
        })?;
        self.totals.bytes = self.totals.bytes.saturating_sub(before.bytes) + row.bytes;
        if row == before { Ok(()) } else { self.put(topic, row) }
    }

    /// Lets go of the oldest chunks of a topic, as long as they are damaged or `goes` says so.
    fn cut(&mut self, row: &mut Row, goes: impl Fn(&Row, &Head) -> bool) -> Result<(), Failure> {
        while let Some(Oldest { key, head, bytes }) = self.oldest(row)? {
            if head.is_some_and(|head| !goes(row, &head)) {
                break;
            }
            self.chunks.remove(key)?;
            row.forget(head.as_ref(), bytes);
        }
        Ok(())
    }

    fn put(&mut self, topic: &Topic, row: Row) -> Result<(), Failure> {
        if self.oldest(&row)?.is_none() {
            self.topics.remove(topic.as_str())?;
            self.totals.topics = self.totals.topics.saturating_sub(1);
        } else {
            self.topics.insert(topic.as_str(), sealed(&row)?.as_slice())?;
        }
        Ok(())
    }

    /// The oldest chunk of a topic.
    fn oldest(&self, row: &Row) -> Result<Option<Oldest>, Failure> {
        let mut chunks = self.chunks.range((row.number, 0)..=(row.number, u64::MAX))?;
        let oldest = chunks.next().transpose()?;
        Ok(oldest.map(|(key, chunk)| {
            let bytes = chunk.value();
            Oldest { key: key.value(), head: Chunk::head(bytes), bytes: bytes.len() as u64 }
        }))
    }

    /// Lets go of what has no room; how many messages that were.
    fn make_room(&mut self, most: u64) -> Result<u64, Failure> {
        if self.totals.bytes <= most && self.totals.topics <= MAX_TOPICS {
            return Ok(0);
        }
        let (mut rows, mut cut) = (rows(&self.topics)?, 0);
        if self.totals.topics > MAX_TOPICS {
            rows.sort_by_key(|(_, row)| std::cmp::Reverse((row.messages, row.last)));
            let stay = usize::try_from(MAX_TOPICS - MAX_TOPICS / SLACK).unwrap_or(usize::MAX);
            for (topic, row) in rows.drain(stay.min(rows.len())..) {
                cut += self.shorten(&topic, row, 0)?;
            }
        }
        if self.totals.bytes > most {
            let share = fair_share(rows.iter().map(|(_, row)| row.bytes), most - most / SLACK);
            for (topic, row) in rows.into_iter().filter(|(_, row)| row.bytes > share) {
                cut += self.shorten(&topic, row, share)?;
            }
        }
        Ok(cut)
    }

    /// Lets go of the oldest of a topic until it has at most so many bytes; how many messages that were.
    fn shorten(&mut self, topic: &Topic, mut row: Row, most: u64) -> Result<u64, Failure> {
        let before = row;
        self.cut(&mut row, |row, _head| row.bytes > most)?;
        self.totals.bytes = self.totals.bytes.saturating_sub(before.bytes - row.bytes);
        self.put(topic, row)?;
        Ok(before.messages - row.messages)
    }
}

/// The most that each may have, so that all together have at most `most`: those that have less keep what they have.
fn fair_share(all: impl Iterator<Item = u64>, most: u64) -> u64 {
    let mut all: Vec<u64> = all.collect();
    all.sort_unstable();
    let (mut left, mut others) = (most, all.len() as u64);
    for bytes in all {
        let share = left / others;
        if bytes > share {
            return share;
        }
        (left, others) = (left - bytes, others - 1);
    }
    u64::MAX
}

impl Row {
    /// A chunk of it is gone.
    fn forget(&mut self, head: Option<&Head>, bytes: u64) {
        let count = head.map_or(0, |head| u64::from(head.count));
        self.messages = self.messages.saturating_sub(count);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests;
