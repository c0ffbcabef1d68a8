//! Lists that the authority signs and every node follows: which is in force here, and what goes to whom.
//!
//! One [`Side`] for each end of a link. It owns what this node knows of the peer's lists, and the list that is coming. It
//! knows no contents: a list is its kind, its [`Mark`] and bytes; I/O judges them.
//!
//! # Protocol
//! ```text
//! hello      the marks of all lists of the sender; without them the peer has no such lists, and gets no words
//! link up    who has a later list sends it before anything else
//! a new one  of this node's own disk: it is sent to all; of a peer: Have to all, and to each that says Want
//! words      0 Have(kind, mark)   1 Want(kind)   2 Begin(kind, mark, length)   3 More(bytes)
//! ```
//! The order of marks is that of numbers, and of two lists with one number the greater digest is later, so that all nodes
//! end with the same one.
//!
//! # Invariants
//! 1. What is in force never becomes earlier ([`Marks::raise`]).
//! 2. At most one list of a peer is held while it comes, of at most [`MAX_LIST`] bytes. One that is not later than what is
//!    in force, of an unknown kind, or without room is skipped, not held.
//! 3. A list is sent once to a peer on one link, however often the peer asks.
//! 4. When links stay and nobody changes anything, all nodes have the latest list of each kind.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

use crate::proto::codec::{self, CodecError};

/// Largest list, in bytes.
pub const MAX_LIST: usize = 16 * 1024 * 1024;
/// Most bytes of a list in one word.
pub const PART: usize = 64 * 1024;
/// Most kinds that a hello names.
const MAX_KINDS: usize = 8;
/// Kinds of [`Word`], which its first byte tells.
const WORDS: u8 = 4;

/// What a list is about. Kinds of later versions are skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
#[non_exhaustive]
pub enum ListKind {
    /// Whom the cluster trusts.
    Trust,
    /// Certificates that are revoked.
    Revocations,
    /// What verifies clients' tokens, and which of them are revoked.
    Tokens,
}

impl ListKind {
    /// All kinds, with their numbers on the wire, in the order in which they are sent.
    const TABLE: [(Self, u8); 3] = [(Self::Trust, 0), (Self::Revocations, 1), (Self::Tokens, 2)];

    /// All of them.
    pub const ALL: [Self; Self::TABLE.len()] = [Self::Trust, Self::Revocations, Self::Tokens];

    /// One word for programs.
    pub fn label(self) -> &'static str {
        self.into()
    }

    fn code(self) -> u8 {
        Self::TABLE.iter().find(|(kind, _)| *kind == self).map_or(u8::MAX, |(_, code)| *code)
    }

    fn of(code: u8) -> Option<Self> {
        Self::TABLE.iter().find(|(_, known)| *known == code).map(|(kind, _)| *kind)
    }
}

/// Tells lists of one kind apart: the later one is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mark {
    /// Grows with each list.
    pub number: u64,
    /// The first half of a SHA-256 over what is signed.
    pub digest: [u8; 16],
}

/// The latest list of each kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks(BTreeMap<ListKind, Mark>);

impl Marks {
    /// The mark of this kind.
    pub fn get(&self, kind: ListKind) -> Option<Mark> {
        self.0.get(&kind).copied()
    }

    /// There is such a list; false, and nothing changes, when it is no later than the one before.
    pub fn raise(&mut self, kind: ListKind, mark: Mark) -> bool {
        let later = self.get(kind) < Some(mark);
        if later {
            self.0.insert(kind, mark);
        }
        later
    }

    /// As a hello carries them.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, CodecError> {
        let marks: Vec<(u8, Mark)> =
            self.0.iter().map(|(kind, mark)| (kind.code(), *mark)).collect();
        codec::encode(&marks)
    }

    /// The marks at the beginning of these bytes; `None` when there are none.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let marks: Vec<(u8, Mark)> = codec::decode_open(bytes, bytes.len()).ok()?;
        let known = |(code, mark)| Some((ListKind::of(code)?, mark));
        (marks.len() <= MAX_KINDS).then(|| Self(marks.into_iter().filter_map(known).collect()))
    }
}

impl FromIterator<(ListKind, Mark)> for Marks {
    fn from_iter<I: IntoIterator<Item = (ListKind, Mark)>>(marks: I) -> Self {
        Self(marks.into_iter().collect())
    }
}

/// A message of the lane of lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word<'a> {
    /// The sender has this list of a kind.
    Have(u8, Mark),
    /// The sender has no list of this kind that is as late as the receiver's.
    Want(u8),
    /// A list of a kind comes, of so many bytes.
    Begin(u8, Mark, u32),
    /// The next bytes of it.
    More(&'a [u8]),
}

impl<'a> Word<'a> {
    /// The word as bytes.
    ///
    /// # Errors
    /// As [`codec::encode`].
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        codec::encode(self)
    }

    /// The word in a piece; `None` for one of a kind that only a later version knows.
    ///
    /// # Errors
    /// [`CodecError::Malformed`], [`CodecError::Trailing`].
    pub fn decode(bytes: &'a [u8]) -> Result<Option<Self>, CodecError> {
        if bytes.first().is_some_and(|kind| *kind >= WORDS) {
            return Ok(None);
        }
        let (word, rest) =
            postcard::take_from_bytes(bytes).map_err(|_detail| CodecError::Malformed)?;
        if rest.is_empty() { Ok(Some(word)) } else { Err(CodecError::Trailing(rest.len())) }
    }

    /// Such a list comes.
    pub fn begin(kind: ListKind, mark: Mark, length: usize) -> Self {
        Self::Begin(kind.code(), mark, u32::try_from(length).unwrap_or(u32::MAX))
    }
}

/// How a peer broke the protocol: the link ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListFault {
    /// A list that begins within another one.
    #[error("a list within a list")]
    Nested,
    /// A part of no list, or an empty one, or more of it than was announced.
    #[error("a part of no list")]
    Part,
    /// A list of no bytes, or of too many.
    #[error("a list of {0} bytes, at most {MAX_LIST} are allowed")]
    Length(u32),
}

/// What is to be done for a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send the list of this kind that is in force.
    Send(ListKind),
    /// Send a [`Word::Have`] or a [`Word::Want`].
    Say(Word<'static>),
    /// Judge a list that the peer sent, which it says has this mark.
    Judge(ListKind, Mark, Vec<u8>),
    /// A list of the peer was skipped for this reason: count it.
    Skipped(&'static str),
}

/// A list that comes.
#[derive(Debug)]
struct Coming {
    /// `None`: it is skipped.
    list: Option<(ListKind, Mark, Vec<u8>)>,
    /// Bytes that are still to come.
    left: usize,
}

/// One end of a link.
#[derive(Debug)]
pub struct Side {
    /// What the peer has, as far as is known.
    theirs: Marks,
    /// What was sent to it, or named to it.
    sent: Marks,
    named: Marks,
    coming: Option<Coming>,
}

impl Side {
    /// The link is up; `own` is in force here, and the peer's hello had `theirs`. What is later here goes to it first.
    pub fn new(own: &Marks, theirs: Marks, out: &mut Vec<Output>) -> Self {
        let named = Marks::default();
        let mut side = Self { theirs, sent: Marks::default(), named, coming: None };
        side.changed(own, |_all| true, out);
        side
    }

    /// Other lists are in force here than before; `push` tells of which kinds they are sent unasked.
    pub fn changed(&mut self, own: &Marks, push: impl Fn(ListKind) -> bool, out: &mut Vec<Output>) {
        for (kind, mark) in &own.0 {
            if self.theirs.get(*kind) >= Some(*mark) {
                continue;
            }
            if push(*kind) {
                self.send(own, *kind, out);
            } else if self.sent.get(*kind) < Some(*mark) && self.named.raise(*kind, *mark) {
                out.push(Output::Say(Word::Have(kind.code(), *mark)));
            }
        }
    }

    fn send(&mut self, own: &Marks, kind: ListKind, out: &mut Vec<Output>) {
        if own.get(kind).is_some_and(|mark| self.sent.raise(kind, mark)) {
            out.push(Output::Send(kind));
        }
    }

    /// The peer sent a word. `room` tells whether a list of so many bytes may be held.
    ///
    /// # Errors
    /// [`ListFault`].
    pub fn word(
        &mut self,
        word: Word<'_>,
        own: &Marks,
        room: impl FnOnce(usize) -> Result<(), &'static str>,
        out: &mut Vec<Output>,
    ) -> Result<(), ListFault> {
        match word {
            Word::Have(code, mark) => {
                let Some(kind) = ListKind::of(code) else { return Ok(()) };
                self.theirs.raise(kind, mark);
                if own.get(kind) < Some(mark) {
                    out.push(Output::Say(Word::Want(code)));
                }
            }
            Word::Want(code) => ListKind::of(code).into_iter().for_each(|kind| {
                self.send(own, kind, out);
            }),
            Word::Begin(code, mark, length) => self.begin(code, mark, length, own, room, out)?,
            Word::More(bytes) => self.more(bytes, out)?,
        }
        Ok(())
    }

    fn begin(
        &mut self,
        code: u8,
        mark: Mark,
        length: u32,
        own: &Marks,
        room: impl FnOnce(usize) -> Result<(), &'static str>,
        out: &mut Vec<Output>,
    ) -> Result<(), ListFault> {
        let left = usize::try_from(length).unwrap_or(usize::MAX);
        if self.coming.is_some() {
            return Err(ListFault::Nested);
        }
        if !(1..=MAX_LIST).contains(&left) {
            return Err(ListFault::Length(length));
        }
        let wanted = match ListKind::of(code) {
            None => Err("unknown_kind"),
            Some(kind) => {
                self.theirs.raise(kind, mark);
                let later = own.get(kind) < Some(mark);
                if later { room(left).map(|()| kind) } else { Err("known") }
            }
        };
        let list = match wanted {
            // As much is allocated as has come: a peer that only announces costs nothing.
            Ok(kind) => Some((kind, mark, Vec::new())),
            Err(why) => {
                out.push(Output::Skipped(why));
                None
            }
        };
        self.coming = Some(Coming { list, left });
        Ok(())
    }

    fn more(&mut self, bytes: &[u8], out: &mut Vec<Output>) -> Result<(), ListFault> {
        let coming = self.coming.as_mut().ok_or(ListFault::Part)?;
        if bytes.is_empty() || bytes.len() > coming.left {
            return Err(ListFault::Part);
        }
        if let Some((_, _, list)) = &mut coming.list {
            if list.len() + bytes.len() > list.capacity() {
                // Twice what is there, and no more than the whole.
                list.reserve_exact(coming.left.min(list.len().max(bytes.len())));
            }
            list.extend_from_slice(bytes);
        }
        coming.left -= bytes.len();
        if coming.left == 0 {
            let list = self.coming.take().and_then(|coming| coming.list);
            out.extend(list.map(|(kind, mark, bytes)| Output::Judge(kind, mark, bytes)));
        }
        Ok(())
    }

    /// Whether a list of the peer is held that has not come whole.
    pub fn holds(&self) -> bool {
        self.coming.as_ref().is_some_and(|coming| coming.list.is_some())
    }
}

#[cfg(test)]
mod tests;
