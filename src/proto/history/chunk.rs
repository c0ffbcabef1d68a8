//! Chunks: messages of one topic as they lie on disk, in the order in which the node took them, and how the topic's log
//! stood before the first of them.
//!
//! ```text
//! version 01 | first u64 | last u64 | count u32 | length u32 | standing | records | seal: 8 bytes of the SHA-256 of all before
//! record: at u64 | length u8 | from | length u32 | message
//! ```
//!
//! Numbers are big-endian. `first` is the index of the first message, `last` when the last one was taken. Indices of a topic
//! rise by one from message to message; where they jump, something was lost, or at most the end of one epoch
//! ([`UNKNOWN_END`]). Invariants:
//! 1. A chunk that was changed, cut short or is of another version is none.
//! 2. A log that is [rebuilt](rebuild) from chunks answers as the one did that they were taken from, as far as they reach;
//!    where something between them is not there it has missed it, and says so.

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::proto::codec;
use crate::proto::node::NodeName;
use crate::proto::replay::{Bounds, Cursor, Log, Position, Standing};

const VERSION: u8 = 1;
/// Indices jump by so much more where nobody knows how the epoch ended that the publisher of the next message had before.
pub const UNKNOWN_END: u64 = 1 << 16;
const HEAD: usize = 25;
const SEAL: usize = 8;
/// Longest standing, in bytes.
const MAX_STANDING: usize = 32 * 1024;

/// Messages of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    first: u64,
    last: u64,
    count: u32,
    standing: Standing,
    records: Vec<u8>,
}

/// A message in a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its index.
    pub index: u64,
    /// When the node took it, in milliseconds since the Unix epoch.
    pub at: u64,
    /// Its publisher.
    pub from: NodeName,
    /// As it was published.
    pub message: Bytes,
}

/// What a chunk says at its beginning, which is not proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// When its last message was taken, in milliseconds since the Unix epoch.
    pub last: u64,
    /// How many messages it has.
    pub count: u32,
}

impl Chunk {
    /// A chunk that begins with this index, on a log that stands so.
    pub fn new(first: u64, standing: Standing) -> Self {
        Self { first, last: 0, count: 0, standing, records: Vec::new() }
    }

    /// Adds a message. False when its length or its publisher's has no room in a record; nothing changed then.
    pub fn push(&mut self, at: u64, from: &NodeName, message: &[u8]) -> bool {
        let from = from.as_str();
        let Ok(length) = u8::try_from(from.len()) else { return false };
        let Ok(bytes) = u32::try_from(message.len()) else { return false };
        self.records.extend_from_slice(&at.to_be_bytes());
        self.records.push(length);
        self.records.extend_from_slice(from.as_bytes());
        self.records.extend_from_slice(&bytes.to_be_bytes());
        self.records.extend_from_slice(message);
        (self.last, self.count) = (self.last.max(at), self.count.saturating_add(1));
        true
    }

    /// The index of its first message.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// The index after that of its last one.
    pub fn next(&self) -> u64 {
        self.first.saturating_add(u64::from(self.count))
    }

    /// When its last message was taken, in milliseconds since the Unix epoch.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// How many messages it has.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// How the log stood before it.
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Bytes of its messages.
    pub fn size(&self) -> usize {
        self.records.len()
    }

    /// Whether somebody with this cursor has seen all that came before it.
    pub fn is_seen(&self, cursor: &Cursor) -> bool {
        self.standing.is_seen(cursor)
    }

    /// As it lies on disk; `None` when its standing cannot be written.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let standing = codec::encode(&self.standing).ok().filter(|it| it.len() <= MAX_STANDING)?;
        let length = u32::try_from(standing.len()).ok()?;
        let mut out = Vec::with_capacity(HEAD + standing.len() + self.records.len() + SEAL);
        out.push(VERSION);
        out.extend_from_slice(&self.first.to_be_bytes());
        out.extend_from_slice(&self.last.to_be_bytes());
        out.extend_from_slice(&self.count.to_be_bytes());
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&standing);
        out.extend_from_slice(&self.records);
        let seal = Sha256::digest(&out);
        out.extend(seal.iter().take(SEAL));
        Some(out)
    }

    /// The chunk in these bytes; `None` when they are not as they were written.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (rest, seal) = bytes.split_last_chunk::<SEAL>()?;
        if !Sha256::digest(rest).starts_with(seal) {
            return None;
        }
        let (version, rest) = rest.split_first()?;
        let (first, rest) = rest.split_first_chunk()?;
        let (last, rest) = rest.split_first_chunk()?;
        let (count, rest) = rest.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        let (standing, records) = rest.split_at_checked(length)?;
        let chunk = Self {
            first: u64::from_be_bytes(*first),
            last: u64::from_be_bytes(*last),
            count: u32::from_be_bytes(*count),
            standing: codec::decode(standing, MAX_STANDING).ok()?,
            records: records.to_vec(),
        };
        let whole = chunk.records().count() == usize::try_from(chunk.count).ok()?;
        (*version == VERSION && whole).then_some(chunk)
    }

    /// What these bytes say at their beginning.
    pub fn head(bytes: &[u8]) -> Option<Head> {
        let (_, rest) = bytes.split_at_checked(1 + size_of::<u64>())?;
        let (last, rest) = rest.split_first_chunk()?;
        let (count, _) = rest.split_first_chunk()?;
        Some(Head { last: u64::from_be_bytes(*last), count: u32::from_be_bytes(*count) })
    }

    /// Its messages, in order.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        let (mut rest, mut index) = (&self.records[..], self.first);
        std::iter::from_fn(move || {
            let (record, after) = read(rest, index)?;
            (rest, index) = (after, index.saturating_add(1));
            Some(record)
        })
    }
}

fn read(bytes: &[u8], index: u64) -> Option<(Record, &[u8])> {
    let (at, rest) = bytes.split_first_chunk()?;
    let (length, rest) = rest.split_first()?;
    let (from, rest) = rest.split_at_checked(usize::from(*length))?;
    let from = std::str::from_utf8(from).ok()?.parse().ok()?;
    let (length, rest) = rest.split_first_chunk()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (message, rest) = rest.split_at_checked(length)?;
    let at = u64::from_be_bytes(*at);
    Some((Record { index, at, from, message: Bytes::copy_from_slice(message) }, rest))
}

/// The log that these chunks were taken from, in their order, as far as they reach: `entry` makes of a record what the log
/// keeps, with its position and cost; `placed` hears of each where somebody stands who has seen it. `None` where there are
/// none.
pub fn rebuild<T>(
    chunks: &[Chunk],
    bounds: Bounds,
    mut entry: impl FnMut(&Record) -> Option<(Position, usize, T)>,
    mut placed: impl FnMut(&T, &Cursor),
) -> Option<Log<T>> {
    let first = chunks.first()?;
    let (mut log, mut next) = (Log::standing(bounds, &first.standing), first.first);
    for chunk in chunks {
        match chunk.records().next().filter(|_| chunk.first == next.saturating_add(UNKNOWN_END)) {
            Some(record) => log.lost(&record.from),
            None if chunk.first != next => log.missed(),
            None => {}
        }
        for record in chunk.records() {
            match entry(&record) {
                Some((position, cost, entry)) => {
                    log.push(&record.from, position, cost, entry);
                    if let Some((_, at, entry)) = log.entries().next_back()
                        && at == position
                    {
                        placed(entry, log.cursor());
                    }
                }
                None => log.missed(),
            }
        }
        next = chunk.next();
    }
    Some(log)
}

#[cfg(test)]
mod tests;
