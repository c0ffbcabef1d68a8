//! What a channel message is between nodes: an event and its payload, numbered by its publisher.
//!
//! ```text
//! C1 02 | epoch u32 | n u64 | tag u64 | kind u8 (0 JSON, 1 binary) | length of event u8 | event | payload
//! ```
//!
//! Numbers are big-endian. `C1` begins no UTF-8 text, so a payload that somebody published on the topic
//! without an envelope is told apart: clients get it as the event `message`, as JSON if it is that.
//! Invariant: what [`Envelope::decode`] gives may go to a client as it is.

use bytes::Bytes;

use super::{Json, MAX_WORD, Payload};
use crate::proto::channel::session::reserved;
use crate::proto::replay::Position;

/// The event of what was published without an envelope.
const PLAIN: &str = "message";
const MAGIC: [u8; 2] = [0xC1, 2];
const HEAD: usize = 24;

/// A channel message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// `None` for what was published without an envelope.
    pub stamp: Option<Position>,
    /// The event.
    pub event: String,
    /// What it carries.
    pub payload: Payload,
}

impl Envelope {
    /// A message as it is published. `None` when the event has no or over 255 bytes.
    pub fn encode(stamp: Position, event: &str, payload: &Payload) -> Option<Bytes> {
        let length = u8::try_from(event.len()).ok().filter(|length| *length > 0)?;
        let (kind, data) = match payload {
            Payload::Json(json) => (0, json.as_bytes()),
            Payload::Binary(data) => (1, data),
        };
        let mut out = Vec::with_capacity(HEAD + event.len() + data.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&stamp.epoch.to_be_bytes());
        out.extend_from_slice(&stamp.n.to_be_bytes());
        out.extend_from_slice(&stamp.tag.to_be_bytes());
        out.extend_from_slice(&[kind, length]);
        out.extend_from_slice(event.as_bytes());
        out.extend_from_slice(data);
        Some(out.into())
    }

    /// Reads what was published on a topic. `None`: an envelope that is none, or too long for a client.
    pub fn decode(published: &Bytes) -> Option<Self> {
        if published.len() > super::MAX_FRAME {
            return None;
        }
        let Some(rest) = published.strip_prefix(&MAGIC) else {
            let payload = Json::read(published.clone());
            let payload = payload.map_or_else(|| Payload::Binary(published.clone()), Payload::Json);
            return Some(Self { stamp: None, event: PLAIN.to_owned(), payload });
        };
        let (epoch, rest) = rest.split_first_chunk()?;
        let (n, rest) = rest.split_first_chunk()?;
        let (tag, rest) = rest.split_first_chunk()?;
        let ([kind, length], rest) = rest.split_first_chunk()?;
        let (event, data) = rest.split_at_checked(usize::from(*length))?;
        let event = std::str::from_utf8(event).ok()?;
        if !(1..=MAX_WORD).contains(&event.len()) || reserved(event) {
            return None;
        }
        let data = published.slice_ref(data);
        let payload = match kind {
            0 => Payload::Json(Json::read(data)?),
            1 => Payload::Binary(data),
            _ => return None,
        };
        let (n, tag) = (u64::from_be_bytes(*n), u64::from_be_bytes(*tag));
        let stamp = Position { epoch: u32::from_be_bytes(*epoch), n, tag };
        Some(Self { stamp: Some(stamp), event: event.to_owned(), payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STAMP: Position = Position { epoch: 7, n: 9, tag: 11 };

    fn json(text: &'static str) -> Payload {
        Payload::Json(Json::read(Bytes::from_static(text.as_bytes())).expect("JSON"))
    }

    #[test]
    fn what_is_published_arrives() {
        for payload in [json(r#"{"x":1}"#), Payload::Binary(Bytes::from_static(b"\0\xff"))] {
            let bytes = Envelope::encode(STAMP, "shout", &payload).expect("short");
            let envelope = Envelope { stamp: Some(STAMP), event: "shout".to_owned(), payload };
            assert_eq!(Envelope::decode(&bytes), Some(envelope));
        }
    }

    #[test]
    fn what_comes_without_an_envelope_is_a_message() {
        let plain = |text: &'static [u8]| Envelope::decode(&Bytes::from_static(text));
        let envelope = |payload| Envelope { stamp: None, event: "message".to_owned(), payload };
        assert_eq!(plain(br#"{"a":2}"#), Some(envelope(json(r#"{"a":2}"#))));
        assert_eq!(plain(b"hello"), Some(envelope(Payload::Binary(Bytes::from_static(b"hello")))));
    }

    #[test]
    fn what_clients_must_not_get_is_no_envelope() {
        let sound = Envelope::encode(STAMP, "shout", &json("{}")).expect("short").to_vec();
        let with = |at: usize, byte: u8| {
            let mut bytes = sound.clone();
            bytes[at] = byte;
            Envelope::decode(&bytes.into())
        };
        assert_eq!(with(22, 2), None, "unknown kind");
        assert_eq!(with(23, 200), None, "a length that lies");
        assert_eq!(with(23, 0), None, "no event");
        assert_eq!(with(24, 0xff), None, "not UTF-8");
        assert_eq!(with(29, b'x'), None, "not JSON");
        assert_eq!(Envelope::decode(&Bytes::from(sound[..10].to_vec())), None, "cut short");
        let close = Envelope::encode(STAMP, "phx_close", &json("{}")).expect("short");
        assert_eq!(Envelope::decode(&close), None, "the protocol's own event");
        let long = vec![b' '; super::super::MAX_FRAME + 1];
        assert_eq!(Envelope::decode(&long.into()), None, "longer than any frame");
        assert_eq!(Envelope::encode(STAMP, "", &json("{}")), None);
        assert_eq!(Envelope::encode(STAMP, &"e".repeat(256), &json("{}")), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, head: bool) {
            let bytes = if head { [&MAGIC[..], &bytes[..]].concat() } else { bytes };
            drop(Envelope::decode(&bytes.into()));
        }
    }
}
