//! What nodes ask each other about a topic's history, under the reserved name `xpando:channels`.
//!
//! ```text
//! (nothing)                     -> (nothing)
//! Question::Heads(topic)        -> Heads; the node that answers knows by then what the one that asks subscribes to
//! Question::Whole(topic)        -> chunks, as below: the oldest that it has in memory without a gap up to the newest
//! Question::Keep(topic)         -> KEPT, once it has opened the topic and taken what others have; or refused
//! Question::Tail(topic, cursor) -> chunks, each behind its length as u32: the messages after the cursor where the node has
//!                                  them without a gap, else the newest that it has; at most MAX_TAIL bytes
//! Question::Past(topic, cursor, ask) -> Theirs: what a join that asks for this would get
//! ```

use serde::{Deserialize, Serialize};

use super::chunk::Chunk;
use super::{Ask, MAX_BYTES};
use crate::proto::codec::{self, CodecError};
use crate::proto::node::NodeName;
use crate::proto::replay::{Position, TEXT};
use crate::proto::topic::Topic;

/// Bytes of the chunks of one answer, at most.
pub const MAX_TAIL: usize = 1024 * 1024;
/// Likewise of what a join would get.
const MAX_PAST: usize = MAX_BYTES + MAX_TAIL;
/// Longest question, and longest heads, in bytes.
const MAX_WORD: usize = TEXT + MAX_STOOD + MAX_SUCCESSIONS + 1024;

/// What a node asks of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// How far it has come with a topic.
    Heads(Topic),
    /// Its messages of a topic after a cursor, or the newest.
    Tail(Topic, String),
    /// What it has of a topic in memory, from the beginning.
    Whole(Topic),
    /// What a join with this `last_seq` would get, or else one that asks for this, from memory or disk.
    Past(Topic, String, Option<Ask>),
    /// To keep a topic for clients of the node that asks, which leaves.
    Keep(Topic),
}

/// The answer of a node that keeps a topic.
pub const KEPT: &[u8] = b"kept";

impl Question {
    /// What it is about.
    pub fn topic(&self) -> &Topic {
        match self {
            Self::Heads(topic)
            | Self::Tail(topic, _)
            | Self::Whole(topic)
            | Self::Past(topic, ..)
            | Self::Keep(topic) => topic,
        }
    }

    /// The question in these bytes.
    ///
    /// # Errors
    /// [`CodecError`]; whoever sent it is at fault.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode(bytes, MAX_WORD)
    }

    /// As it is sent.
    ///
    /// # Errors
    /// None in practice: [`codec::encode`].
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        codec::encode(self)
    }
}

/// How far a node has come with a topic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heads {
    /// Its own last publication there.
    pub own: Option<Position>,
    /// What it has seen there, as a cursor; empty when it does not follow the topic.
    pub cursor: String,
    /// How many messages of it are in its memory.
    pub messages: u64,
    /// It opens the topic itself, and may know more soon.
    pub opening: bool,
    /// Since when nothing was lost of what it took: starts that it has given or knows of, and where they stood, as cursors.
    pub starts: Vec<(u64, String)>,
    /// It may have more on disk.
    pub older: bool,
    /// Which epochs of publishers came after which, and how far those had come at least.
    pub successions: Vec<(NodeName, u32, (u32, u64))>,
}

/// Starts of one answer, at most, and bytes of their cursors.
pub const MAX_STARTS: usize = 4;
pub const MAX_STOOD: usize = TEXT;
/// Bytes of the successions of one answer, at most, and what one has beside its name.
const MAX_SUCCESSIONS: usize = TEXT;
const SUCCESSION: usize = 24;

impl Heads {
    /// As many of these as have room in one answer.
    pub fn fitting<'a>(
        all: impl Iterator<Item = (&'a NodeName, u32, (u32, u64))>,
    ) -> Vec<(NodeName, u32, (u32, u64))> {
        let mut room = MAX_SUCCESSIONS;
        let fits = |(name, epoch, before): (&NodeName, u32, (u32, u64))| {
            room = room.checked_sub(name.as_str().len() + SUCCESSION)?;
            Some((name.clone(), epoch, before))
        };
        all.map_while(fits).collect()
    }

    /// The heads in these bytes.
    ///
    /// # Errors
    /// [`CodecError`]; whoever sent them is at fault.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode(bytes, MAX_WORD)
    }

    /// As they are sent.
    ///
    /// # Errors
    /// None in practice: [`codec::encode`].
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        codec::encode(self)
    }
}

/// What a join would get of another node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Theirs {
    /// The messages are all that came after the cursor; otherwise they are the newest.
    pub resumed: bool,
    /// There are older ones.
    pub more: bool,
    /// The messages; where the node stood before them is at their beginning.
    pub chunks: Vec<Chunk>,
}

impl Theirs {
    /// As it is sent: a byte, and the chunks as in other answers.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![u8::from(self.resumed) | u8::from(self.more) << 1];
        out.extend(encode_within(&self.chunks, MAX_PAST));
        out
    }

    /// What is in these bytes; `None` when it is nothing of the kind.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (flags, rest) = bytes.split_first()?;
        let chunks = decode_within(rest, MAX_PAST)?;
        Some(Self { resumed: flags & 1 > 0, more: flags & 2 > 0, chunks })
    }
}

/// The newest of these chunks that have room in one answer, in their order, as they are sent.
pub fn encode_tail(chunks: &[Chunk]) -> Vec<u8> {
    encode_within(chunks, MAX_TAIL)
}

fn encode_within(chunks: &[Chunk], most: usize) -> Vec<u8> {
    let (mut room, mut parts) = (most, Vec::new());
    for bytes in chunks.iter().rev().filter_map(Chunk::encode) {
        let length = u32::try_from(bytes.len()).ok().filter(|_| bytes.len() + 4 <= room);
        let Some(length) = length else { break };
        room -= bytes.len() + 4;
        parts.push((length, bytes));
    }
    let mut out = Vec::with_capacity(most - room);
    for (length, bytes) in parts.into_iter().rev() {
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&bytes);
    }
    out
}

/// The chunks of an answer; `None` when one of them is none, or it is too long.
pub fn decode_tail(bytes: &[u8]) -> Option<Vec<Chunk>> {
    decode_within(bytes, MAX_TAIL)
}

fn decode_within(mut bytes: &[u8], most: usize) -> Option<Vec<Chunk>> {
    let mut chunks = Vec::new();
    if bytes.len() > most {
        return None;
    }
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk()?;
        let (chunk, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        chunks.push(Chunk::decode(chunk)?);
        bytes = rest;
    }
    Some(chunks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::replay::Standing;
    use proptest::prelude::*;

    #[test]
    fn an_answer_has_the_newest_that_fit() {
        let chunk = |first: u64, size: usize| {
            let mut chunk = Chunk::new(first, Standing::default());
            assert!(chunk.push(7, &"a@h".parse().expect("a name"), &vec![0; size]));
            chunk
        };
        let chunks = [chunk(1, MAX_TAIL / 2), chunk(2, MAX_TAIL / 2 - 100), chunk(3, 5)];
        assert_eq!(decode_tail(&encode_tail(&chunks)), Some(chunks[1..].to_vec()));
        assert_eq!(decode_tail(&encode_tail(&chunks[..1])), Some(chunks[..1].to_vec()));
        assert_eq!(decode_tail(&encode_tail(&[chunk(1, MAX_TAIL)])), Some(Vec::new()));
        let cut = encode_tail(&chunks);
        assert_eq!(decode_tail(&cut[..cut.len() - 1]), None);
        assert_eq!(decode_tail(&vec![0; MAX_TAIL + 1]), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            drop((Question::decode(&bytes), Heads::decode(&bytes), decode_tail(&bytes)));
            drop(Theirs::decode(&bytes));
        }
    }
}
