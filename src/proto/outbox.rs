//! Outbox: what waits to be sent to one peer, in lanes, bounded in bytes.
//!
//! Messages go in at one end; pieces of at most 64 KiB come out at the other whenever the carrier has
//! room, and whatever is there by then goes together: coalescing needs no timer.
//!
//! # Pieces
//! A piece belongs to one lane (`proto::frame`); its payload begins with its kind:
//! ```text
//! 0  whole messages, each behind its length (varint)
//! 1  total length (varint), first bytes of a long message
//! 2  more bytes of it
//! ```
//! *System* (what the nodes' own actors say to each other) goes before *calls*, calls before *bulk*. A
//! long message gives way after each piece, so no lane waits for more than one piece of another.
//!
//! # Credit
//! Bulk is sent on credit: at most [`WINDOW`] bytes of its pieces may be on their way or wait at the
//! other end untaken. What is on its way is what a call has before it, so a sender uses no more of that
//! than the line holds: [`Outbox::set_round_trip`]. A peer that takes nothing costs its sender the bounds
//! of the lanes, and every later message is refused as [`PushError::Full`].
//!
//! # Invariants
//! 1. What was pushed in one lane comes out in that order, each byte once.
//! 2. A lane holds at most its bound, or one message that is longer.
//! 3. No piece's payload is longer than [`MAX_PAYLOAD`]; none is empty.
//! 4. A lane without credit is silent and holds up no other.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;

use crate::proto::frame::{self, HEADER, Lane, MAX_PAYLOAD};

/// Longest message, in bytes.
pub const MAX_MESSAGE: usize = 16 * 1024 * 1024;
/// Bytes of bulk that may be on their way untaken. A sender may overdraw it by less than one piece.
pub const WINDOW: usize = 4 * 1024 * 1024;
/// What a sender uses of it at least.
pub const LEAST: usize = 384 * 1024;
/// The round-trip time, in microseconds, from which on it uses all.
const FAR: usize = 20_000;
/// Longest head of a message, in bytes.
pub(crate) const MAX_HEAD: usize = 500;
/// A message up to this length is copied beside others; a longer one travels by reference.
const SMALL: usize = 8 * 1024;
/// What a lane may hold: system, calls, bulk. Together 4 MiB.
pub(crate) const BOUNDS: [usize; 3] = [512 * 1024, 512 * 1024, 3 * 1024 * 1024];
/// Bytes before the first record of a piece.
const BEFORE: usize = HEADER + 1;

const WHOLE: u8 = 0;
const FIRST: u8 = 1;
const MORE: u8 = 2;

/// Why a message was not taken. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// The peer takes less than it is sent. Try later, or drop the message.
    #[error("overloaded: what waits for the peer fills its outbox")]
    Full,
    /// The message is longer than any may be.
    #[error("{0} bytes where at most {MAX_MESSAGE} are allowed")]
    TooLong(usize),
}

/// Why a piece of the peer is none: it breaks the protocol, and the link ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a malformed piece")]
pub struct PieceError;

/// A piece as it travels: header and beginning, and a part of a long message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its lane.
    pub lane: Lane,
    /// Messages that end in it.
    pub messages: u64,
    /// The header and what follows it.
    pub head: Vec<u8>,
    /// The rest.
    pub body: Bytes,
}

#[derive(Debug)]
enum Chunk {
    /// Room for the header and the kind, then so many records.
    Whole(Vec<u8>, u64),
    /// `sent` counts over both parts.
    Long { head: Vec<u8>, body: Bytes, sent: usize },
}

#[derive(Debug, Default)]
struct Queue {
    chunks: VecDeque<Chunk>,
    waiting: usize,
}

/// The machine.
#[derive(Debug)]
pub struct Outbox {
    queues: [Queue; 3],
    /// Of the whole window; negative while overdrawn.
    credit: i64,
    /// What of the window is not used.
    spared: usize,
}

impl Default for Outbox {
    fn default() -> Self {
        Self { queues: Default::default(), credit: WINDOW as i64, spared: WINDOW - LEAST }
    }
}

const LANES: [Lane; 3] = [Lane::System, Lane::Calls, Lane::Bulk];

fn bound(lane: Lane) -> usize {
    let [system, calls, bulk] = BOUNDS;
    match lane {
        Lane::Control | Lane::Ractor | Lane::Lists => 0,
        Lane::System => system,
        Lane::Calls => calls,
        Lane::Bulk => bulk,
    }
}

impl Outbox {
    fn queue(&mut self, lane: Lane) -> Option<&mut Queue> {
        let [system, calls, bulk] = &mut self.queues;
        match lane {
            Lane::Control | Lane::Ractor | Lane::Lists => None,
            Lane::System => Some(system),
            Lane::Calls => Some(calls),
            Lane::Bulk => Some(bulk),
        }
    }

    /// Takes a message made of `head`, at most `MAX_HEAD` bytes, and `body`. The link's own lanes
    /// take nothing here and are always full.
    ///
    /// # Errors
    /// [`PushError`].
    pub fn push(&mut self, lane: Lane, head: &[u8], body: &Bytes) -> Result<(), PushError> {
        let length = head.len() + body.len();
        if length > MAX_MESSAGE || head.len() > MAX_HEAD {
            return Err(PushError::TooLong(length));
        }
        let Some(queue) = self.queue(lane) else { return Err(PushError::Full) };
        if queue.waiting > 0 && queue.waiting + length > bound(lane) {
            return Err(PushError::Full);
        }
        if length <= SMALL {
            queue.pack(length, head, body);
        } else {
            queue.waiting += length;
            let (head, body) = (head.to_vec(), body.clone());
            queue.chunks.push_back(Chunk::Long { head, body, sent: 0 });
        }
        Ok(())
    }

    /// The next piece to send, if any lane has something and may send it.
    pub fn take(&mut self) -> Option<Piece> {
        LANES.into_iter().find_map(|lane| {
            if lane == Lane::Bulk && self.credit <= self.spared as i64 {
                return None;
            }
            let (piece, length) = self.queue(lane)?.pop(lane)?;
            if lane == Lane::Bulk {
                self.credit -= length as i64;
            }
            Some(piece)
        })
    }

    /// The other side took so many bytes of bulk pieces.
    ///
    /// # Errors
    /// [`PieceError`] when that is more than it can have been sent.
    pub fn credit(&mut self, bytes: u32) -> Result<(), PieceError> {
        self.credit += i64::from(bytes);
        if self.credit > WINDOW as i64 { Err(PieceError) } else { Ok(()) }
    }

    /// The shortest time there and back, in microseconds: so far apart, so much may be on its way.
    pub fn set_round_trip(&mut self, micros: u64) {
        let micros = usize::try_from(micros).unwrap_or(FAR).min(FAR);
        self.spared = WINDOW - (WINDOW / FAR * micros).max(LEAST);
    }

    /// Bytes that wait in a lane.
    pub fn waiting(&mut self, lane: Lane) -> usize {
        self.queue(lane).map_or(0, |queue| queue.waiting)
    }

    /// Messages that wait, or wait in part.
    pub fn messages(&self) -> u64 {
        let of = |chunk: &Chunk| match chunk {
            Chunk::Whole(_, count) => *count,
            Chunk::Long { .. } => 1,
        };
        self.queues.iter().flat_map(|queue| &queue.chunks).map(of).sum()
    }

    /// Whether a lane that was full has room again for many messages.
    pub fn has_room(&mut self, lane: Lane) -> bool {
        self.waiting(lane) <= bound(lane) / 2
    }
}

impl Queue {
    fn pack(&mut self, length: usize, head: &[u8], body: &[u8]) {
        let mut size = [0; 10];
        let size = varint(length, &mut size);
        let needed = size.len() + length;
        let fits = |chunk: &Vec<u8>| chunk.len() + needed <= HEADER + MAX_PAYLOAD;
        // A chunk behind a full one will be full too, most likely.
        let busy = match self.chunks.back() {
            Some(Chunk::Whole(chunk, _)) if fits(chunk) => None,
            Some(_) => Some(HEADER + MAX_PAYLOAD),
            None => Some(BEFORE + needed),
        };
        if let Some(capacity) = busy {
            let mut chunk = Vec::with_capacity(capacity);
            chunk.extend_from_slice(&[0; BEFORE]);
            self.chunks.push_back(Chunk::Whole(chunk, 0));
        }
        if let Some(Chunk::Whole(chunk, count)) = self.chunks.back_mut() {
            *count += 1;
            chunk.extend_from_slice(size);
            chunk.extend_from_slice(head);
            chunk.extend_from_slice(body);
        }
        self.waiting += needed;
    }

    /// The next piece and the length of its payload.
    fn pop(&mut self, lane: Lane) -> Option<(Piece, usize)> {
        let (mut head, body, messages, done) = match self.chunks.front_mut()? {
            Chunk::Whole(chunk, messages) => {
                let (chunk, messages) = (std::mem::take(chunk), *messages);
                self.waiting = self.waiting.saturating_sub(chunk.len() - BEFORE);
                (chunk, Bytes::new(), messages, true)
            }
            Chunk::Long { head: first, body, sent } => {
                let total = first.len() + body.len();
                let mut head = vec![0; BEFORE];
                let at = if *sent == 0 {
                    if let Some(kind) = head.last_mut() {
                        *kind = FIRST;
                    }
                    head.extend_from_slice(varint(total, &mut [0; 10]));
                    head.extend_from_slice(first);
                    *sent = first.len();
                    self.waiting = self.waiting.saturating_sub(first.len());
                    0
                } else {
                    if let Some(kind) = head.last_mut() {
                        *kind = MORE;
                    }
                    *sent - first.len()
                };
                let room = HEADER + MAX_PAYLOAD - head.len();
                let part = body.slice(at..body.len().min(at + room));
                *sent += part.len();
                self.waiting = self.waiting.saturating_sub(part.len());
                let done = *sent == total;
                (head, part, u64::from(done), done)
            }
        };
        if done {
            self.chunks.pop_front();
        }
        let length = head.len() - HEADER + body.len();
        let header = frame::header(lane, length)?;
        if let Some(place) = head.first_chunk_mut() {
            *place = header;
        }
        Some((Piece { lane, messages, head, body }, length))
    }
}

/// A number in postcard's varint, which is LEB128.
fn varint(mut value: usize, room: &mut [u8; 10]) -> &[u8] {
    let mut used = 0;
    for byte in room.iter_mut() {
        used += 1;
        *byte = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            break;
        }
        *byte |= 0x80;
    }
    room.get(..used).unwrap_or(&[])
}

/// Reads a varint of at most 32 bits at `at`: the value, and where what follows begins.
fn read_varint(bytes: &[u8], mut at: usize) -> Option<(usize, usize)> {
    let mut value = 0;
    for shift in [0, 7, 14, 21, 28] {
        let byte = *bytes.get(at)?;
        at += 1;
        value |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, at));
        }
    }
    None
}

/// What the beginning of a piece's payload announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Whole messages follow: [`Records`].
    Whole,
    /// The first bytes of a message of so many bytes follow, from this offset.
    First(usize, usize),
    /// More bytes of it follow.
    More,
}

/// Reads the beginning of a payload.
///
/// # Errors
/// [`PieceError`] when it announces nothing known, or a message of a forbidden length.
pub fn start(payload: &[u8]) -> Result<Start, PieceError> {
    match payload.first() {
        Some(&WHOLE) => Ok(Start::Whole),
        Some(&MORE) => Ok(Start::More),
        Some(&FIRST) => {
            let (total, at) = read_varint(payload, 1).ok_or(PieceError)?;
            let fits = (1..=MAX_MESSAGE).contains(&total);
            if fits { Ok(Start::First(total, at)) } else { Err(PieceError) }
        }
        Some(_) | None => Err(PieceError),
    }
}

/// The whole messages of a payload: where each one is.
#[derive(Clone, Debug)]
pub struct Records {
    at: usize,
}

impl Records {
    /// The messages of a payload of kind [`Start::Whole`].
    pub fn of_payload() -> Self {
        Self { at: 1 }
    }

    /// The messages of records alone.
    pub fn bare() -> Self {
        Self { at: 0 }
    }

    /// Where the next record begins.
    pub fn position(&self) -> usize {
        self.at
    }

    /// The next message in `bytes`, which must be the same each time.
    pub fn next(&mut self, bytes: &[u8]) -> Option<Result<Range<usize>, PieceError>> {
        if self.at >= bytes.len() {
            return None;
        }
        let found = read_varint(bytes, self.at)
            .map(|(length, begin)| begin..begin.saturating_add(length))
            .filter(|range| range.end <= bytes.len());
        match &found {
            Some(range) => self.at = range.end,
            None => self.at = usize::MAX,
        }
        Some(found.ok_or(PieceError))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Takes pieces apart again, as a receiver does.
    #[derive(Default)]
    struct Receiver {
        messages: Vec<(Lane, Vec<u8>)>,
        partial: Vec<(Lane, usize, Vec<u8>)>,
    }

    impl Receiver {
        fn take(&mut self, piece: &Piece) {
            let bytes = [&piece.head[..], &piece.body].concat();
            let (lane, length) =
                frame::parse_header(bytes[..4].try_into().expect("4")).expect("sound");
            let payload = &bytes[4..];
            assert_eq!(payload.len(), length);
            match start(payload).expect("sound") {
                Start::Whole => {
                    let mut records = Records::of_payload();
                    while let Some(range) = records.next(payload) {
                        self.messages.push((lane, payload[range.expect("sound")].to_vec()));
                    }
                }
                Start::First(total, at) => self.partial.push((lane, total, payload[at..].to_vec())),
                Start::More => {
                    let partial = self.partial.iter_mut().find(|(l, ..)| *l == lane);
                    partial.expect("begun").2.extend_from_slice(&payload[1..]);
                }
            }
            let done = self.partial.iter().position(|(_, total, bytes)| bytes.len() == *total);
            if let Some(done) = done {
                let (lane, _, bytes) = self.partial.remove(done);
                self.messages.push((lane, bytes));
            }
        }
    }

    #[test]
    fn small_messages_share_a_piece_and_large_ones_travel_by_reference() {
        let mut outbox = Outbox::default();
        for number in 0..1000_u32 {
            outbox
                .push(Lane::Bulk, &number.to_be_bytes(), &Bytes::from(vec![7; 60]))
                .expect("room");
        }
        let large = Bytes::from(vec![8; 200_000]);
        outbox.push(Lane::Bulk, b"head", &large).expect("room");
        assert_eq!(outbox.messages(), 1001);
        let first = outbox.take().expect("some");
        assert!(first.head.len() > 64_000 && first.body.is_empty(), "{}", first.head.len());
        let mut receiver = Receiver::default();
        receiver.take(&first);
        while let Some(piece) = outbox.take() {
            if !piece.body.is_empty() {
                let inside = large.as_ptr_range();
                assert!(inside.contains(&piece.body.as_ptr()), "not copied");
            }
            receiver.take(&piece);
        }
        assert_eq!(receiver.messages.len(), 1001);
        assert_eq!(receiver.messages[999].1[..4], 999_u32.to_be_bytes());
        assert_eq!(receiver.messages[1000].1.len(), 200_004);
        assert_eq!((outbox.waiting(Lane::Bulk), outbox.messages()), (0, 0));
    }

    #[test]
    fn a_lane_is_bounded_and_a_long_message_fits_an_empty_one() {
        let mut outbox = Outbox::default();
        let long = Bytes::from(vec![0; MAX_MESSAGE]);
        assert_eq!(outbox.push(Lane::Bulk, b"x", &long), Err(PushError::TooLong(MAX_MESSAGE + 1)));
        outbox.push(Lane::Bulk, b"", &long).expect("the lane is empty");
        assert_eq!(outbox.push(Lane::Bulk, b"x", &Bytes::new()), Err(PushError::Full));
        outbox.push(Lane::Calls, b"x", &Bytes::new()).expect("another lane");
        let mut outbox = Outbox::default();
        let (mut pushed, payload) = (0, Bytes::from(vec![0; 64]));
        while outbox.push(Lane::Bulk, b"", &payload).is_ok() {
            pushed += 1;
        }
        let [.., most] = BOUNDS;
        assert!((most / 66..=most / 64).contains(&pushed), "{pushed}");
        assert_eq!(outbox.push(Lane::Control, b"", &payload), Err(PushError::Full));
    }

    #[test]
    fn a_call_overtakes_a_long_transfer_after_one_piece() {
        let mut outbox = Outbox::default();
        outbox.push(Lane::Bulk, b"", &Bytes::from(vec![0; 1_000_000])).expect("room");
        let lane = |piece: Piece| {
            frame::parse_header(*piece.head.first_chunk().expect("4")).expect("sound").0
        };
        assert_eq!(outbox.take().map(lane), Some(Lane::Bulk));
        outbox.push(Lane::Calls, b"call", &Bytes::new()).expect("room");
        outbox.push(Lane::System, b"word", &Bytes::new()).expect("room");
        assert_eq!(outbox.take().map(lane), Some(Lane::System));
        assert_eq!(outbox.take().map(lane), Some(Lane::Calls));
        assert_eq!(outbox.take().map(lane), Some(Lane::Bulk));
    }

    #[test]
    fn bulk_stops_without_credit_and_goes_on_with_it() {
        let mut outbox = Outbox::default();
        outbox.push(Lane::Bulk, b"", &Bytes::from(vec![0; 6 * 1024 * 1024])).expect("empty");
        let mut sent = 0;
        while let Some(piece) = outbox.take() {
            sent += piece.head.len() - HEADER + piece.body.len();
        }
        assert!((LEAST..LEAST + MAX_PAYLOAD).contains(&sent), "{sent}");
        outbox.set_round_trip(u64::MAX);
        while let Some(piece) = outbox.take() {
            sent += piece.head.len() - HEADER + piece.body.len();
        }
        let all = WINDOW - WINDOW % FAR;
        assert!((all..WINDOW + MAX_PAYLOAD).contains(&sent), "{sent}");
        outbox.push(Lane::Calls, b"call", &Bytes::new()).expect("room");
        assert!(outbox.take().is_some(), "the other lanes go on");
        assert!(outbox.take().is_none());
        assert_eq!(outbox.credit(sent as u32), Ok(()));
        assert!(outbox.take().is_some());
        assert_eq!(outbox.credit(WINDOW as u32), Err(PieceError), "more than was sent");
    }

    #[test]
    fn malformed_pieces_are_told() {
        assert_eq!(start(&[]), Err(PieceError));
        assert_eq!(start(&[3]), Err(PieceError));
        assert_eq!(start(&[FIRST, 0]), Err(PieceError), "an empty long message");
        assert_eq!(start(&[FIRST, 0x81, 0x80, 0x80, 0x08]), Err(PieceError), "over 16 MiB");
        assert_eq!(start(&[FIRST, 0x80, 0x80, 0x80, 0x80, 0x80, 1]), Err(PieceError));
        let mut records = Records::of_payload();
        assert_eq!(records.next(&[0, 5, 1]), Some(Err(PieceError)), "longer than the piece");
        assert_eq!(records.next(&[0, 5, 1]), None);
    }

    fn lane() -> impl Strategy<Value = Lane> {
        prop_oneof![Just(Lane::System), Just(Lane::Calls), Just(Lane::Bulk)]
    }

    proptest! {
        #[test]
        fn every_message_comes_out_once_in_order_of_its_lane(
            messages in proptest::collection::vec((lane(), 0..40_usize, prop_oneof![0..200_usize, 7_000..9_000_usize, 60_000..140_000_usize]), 0..40),
            stops in proptest::collection::vec(0..4_usize, 40),
        ) {
            let mut outbox = Outbox::default();
            outbox.set_round_trip(u64::MAX);
            let (mut receiver, mut pushed) = (Receiver::default(), Vec::new());
            for (number, ((lane, head, body), pieces)) in messages.into_iter().zip(stops).enumerate() {
                let head = vec![number as u8; head];
                let body = Bytes::from(vec![!(number as u8); body]);
                if outbox.push(lane, &head, &body).is_ok() {
                    pushed.push((lane, [&head[..], &body].concat()));
                }
                for _ in 0..pieces {
                    if let Some(piece) = outbox.take() {
                        receiver.take(&piece);
                    }
                }
            }
            while let Some(piece) = outbox.take() {
                receiver.take(&piece);
            }
            for lane in LANES {
                let of = |all: &[(Lane, Vec<u8>)]| -> Vec<Vec<u8>> {
                    all.iter().filter(|(l, _)| *l == lane).map(|(_, m)| m.clone()).collect()
                };
                prop_assert_eq!(of(&receiver.messages), of(&pushed));
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _either = start(&bytes);
            let mut records = Records::of_payload();
            let mut last = 0;
            while let Some(Ok(range)) = records.next(&bytes) {
                prop_assert!(range.start > last && range.end <= bytes.len());
                last = range.end;
            }
        }
    }
}
