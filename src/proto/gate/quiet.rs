//! What ractor says of its own accord stays at home: its pings, and actors that are in no group.
//!
//! Each session of ractor pings its peer every 1–5 s, only to log how long that took. Whether a peer is
//! alive is the heartbeat's question, and in a large mesh those pings and their answers would be most
//! of what an idle node sends. It also announces each actor that could take messages from afar; a peer has a use for
//! those in groups alone, and learns of them as they join. Bytes here are our own ractor's: they are believed, not judged.
//!
//! On the way it counts casts and calls, so that their senders know how many still wait in ractor.

use super::{CONTROL_TAG, NODE_TAG, PREFIX, hold, length, varint};

/// Bytes that [`Quiet::pass`] may hold back: of a frame's body the tag, the size, and the inner tag.
pub const HELD: usize = PREFIX + KIND;
const KIND: usize = 7;
/// `NodeMessage.cast` and `NodeMessage.call` in `node.proto`.
const MESSAGE_TAGS: [u8; 2] = [0x0a, 0x12];
/// `ControlMessage.spawn` and `ControlMessage.ping` in ractor_cluster's `control.proto`.
const HOME_TAGS: [u8; 2] = [0x0a, 0x1a];

/// The bytes of one link that ractor sends to the peer.
#[derive(Debug, Default)]
pub struct Quiet {
    held: Vec<u8>,
    /// What of the current frame is still to come, and whether it stays at home.
    left: u64,
    home: bool,
    messages: usize,
}

impl Quiet {
    /// Takes bytes from ractor and appends to `out` those that go to the peer: at most [`HELD`] more
    /// than came, because so many may have been held back.
    pub fn pass(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            if self.left == 0 && !self.head(&mut bytes, out) {
                return;
            }
            let take = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
            let (body, rest) = bytes.split_at(take);
            if !self.home {
                out.extend_from_slice(body);
            }
            bytes = rest;
            self.left = self.left.saturating_sub(take as u64);
        }
    }

    /// Casts and calls that began to pass since this was last asked.
    pub fn messages(&mut self) -> usize {
        std::mem::take(&mut self.messages)
    }

    /// Reads the head of a frame; false when there is not enough of it yet.
    fn head(&mut self, bytes: &mut &[u8], out: &mut Vec<u8>) -> bool {
        if !hold(&mut self.held, bytes, PREFIX) {
            return false;
        }
        let length = length(&self.held);
        let kind = usize::try_from(length).unwrap_or(KIND).min(KIND);
        if !hold(&mut self.held, bytes, PREFIX + kind) {
            return false;
        }
        let body = self.held.get(PREFIX..).unwrap_or(&[]);
        self.home = inner_tag(body, CONTROL_TAG).is_some_and(|tag| HOME_TAGS.contains(&tag));
        let message = inner_tag(body, NODE_TAG).is_some_and(|tag| MESSAGE_TAGS.contains(&tag));
        self.messages += usize::from(message);
        self.left = length.saturating_sub(kind as u64);
        if self.home {
            self.held.clear();
        } else {
            out.append(&mut self.held);
        }
        true
    }
}

/// The tag of what is in a frame of this kind, if it is one.
fn inner_tag(body: &[u8], kind: u8) -> Option<u8> {
    let rest = body.strip_prefix(&[kind])?;
    let (_, size) = varint(rest)?;
    rest.get(usize::try_from(size).ok()?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(body: &[u8]) -> Vec<u8> {
        [&(body.len() as u64).to_be_bytes(), body].concat()
    }

    fn pass(bytes: &[u8], chunk: usize) -> Vec<u8> {
        let (mut quiet, mut out) = (Quiet::default(), Vec::new());
        bytes.chunks(chunk).for_each(|piece| quiet.pass(piece, &mut out));
        out
    }

    /// A control message with one field, as protobuf writes it.
    fn control(tag: u8, inner: &[u8]) -> Vec<u8> {
        let size = |length| u8::try_from(length).expect("short");
        let message = [&[tag, size(inner.len())], inner].concat();
        frame(&[&[CONTROL_TAG, size(message.len())], message.as_slice()].concat())
    }

    #[test]
    fn pings_and_actors_in_no_group_stay_at_home_and_all_else_goes_in_order() {
        let [spawn, ping] = HOME_TAGS.map(|tag| control(tag, &[0x0a, 2, 8, 1]));
        let long = {
            let mut size = Vec::new();
            prost::encoding::encode_varint(70_000, &mut size);
            let actors = [&[0x0a], size.as_slice(), &vec![7; 70_000]].concat();
            size.clear();
            prost::encoding::encode_varint(actors.len() as u64, &mut size);
            frame(&[&[CONTROL_TAG], size.as_slice(), &actors].concat())
        };
        let (join, ready) = (control(0x2a, &[0x0a, 2, 8, 1]), control(0x4a, &[]));
        let cast = frame(&[&[NODE_TAG, 100], [0x1a; 100].as_slice()].concat());
        let others = [&join, &frame(&[]), &cast, &ready, &frame(&[CONTROL_TAG, 0])];
        let home = [ping, spawn, long].concat();
        let mixed: Vec<u8> =
            others.iter().flat_map(|other| [home.as_slice(), other]).collect::<Vec<_>>().concat();
        let expected = others.map(Vec::as_slice).concat();
        for chunk in [1, 2, 9, 11, 20, usize::MAX] {
            assert_eq!(pass(&[mixed.as_slice(), &home].concat(), chunk), expected, "by {chunk}");
        }
    }

    #[test]
    fn casts_and_calls_are_counted() {
        let node = |tag: u8, length: usize| {
            let mut size = Vec::new();
            prost::encoding::encode_varint(length as u64 + 1, &mut size);
            frame(&[&[NODE_TAG], size.as_slice(), &[tag], &vec![0; length]].concat())
        };
        let frames = [node(0x0a, 3), node(0x12, 200), node(0x1a, 9), node(0x0a, 70_000)].concat();
        for chunk in [1, 13, usize::MAX] {
            let (mut quiet, mut out) = (Quiet::default(), Vec::new());
            frames.chunks(chunk).for_each(|piece| quiet.pass(piece, &mut out));
            assert_eq!((quiet.messages(), quiet.messages(), out.len()), (3, 0, frames.len()));
        }
    }

    proptest! {
        #[test]
        fn what_holds_no_ping_passes_unchanged(
            bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..9),
            chunk in 1_usize..60,
        ) {
            let bodies = bodies.iter().filter(|body| body.first() != Some(&CONTROL_TAG));
            let bytes: Vec<u8> = bodies.flat_map(|body| frame(body)).collect();
            prop_assert_eq!(pass(&bytes, chunk), bytes);
        }
    }
}
