//! Phoenix Channels: what clients and the gateway say to each other.
//!
//! # Protocol
//! Phoenix's serializers 2.0.0 (`[join_ref, ref, topic, event, payload]`, and binary frames with one byte
//! for each length) and 1.0.0 (objects without `join_ref`), as the official clients speak them; `session`
//! holds the rules of one socket, `head` finds out whom to answer what is no frame, `envelope` is what travels
//! between nodes.
//!
//! # Invariants
//! 1. A [`Json`] that exists is one JSON value of at most `DEPTH` levels, so anyone who passes it on need not
//!    look into it.
//! 2. No input panics; what is no frame is a [`Malformed`], and nothing changed.
//! 3. References are kept as the client wrote them, and so given back.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

pub mod envelope;
pub mod family;
pub mod head;
mod json;
pub mod session;

pub use json::Json;
pub(crate) use json::nests_within;
use json::shallow;

/// Longest frame, in bytes.
pub const MAX_FRAME: usize = 1024 * 1024;
/// Longest topic, event or reference, in bytes: binary frames have one byte for a length.
pub const MAX_WORD: usize = 255;
/// Deepest nesting of a payload.
pub(crate) const DEPTH: usize = 128;

/// How a client wants its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `vsn=1.0.0`: objects, no binary frames.
    V1,
    /// `vsn=2.0.0`.
    V2,
}

impl Dialect {
    /// The dialect of a `vsn` parameter; an absent one means 1.0.0. `None`: no dialect of ours.
    pub fn of(version: Option<&str>) -> Option<Self> {
        match version {
            None => Some(Self::V1),
            Some(text) if text.starts_with("1.0.") => Some(Self::V1),
            Some(text) if text.starts_with("2.0.") => Some(Self::V2),
            Some(_) => None,
        }
    }
}

/// What an event carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// A JSON value; clients send objects.
    Json(Json),
    /// Bytes.
    Binary(Bytes),
}

impl Payload {
    /// How many bytes it has.
    #[must_use]
    pub fn length(&self) -> usize {
        match self {
            Self::Json(json) => json.as_bytes().len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }
}

/// A reference as the client wrote it: a JSON string or number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ref(Arc<str>);

impl Ref {
    fn read(raw: &RawValue) -> Result<Option<Self>, Malformed> {
        let text = raw.get();
        match text.as_bytes().first() {
            Some(b'n') => Ok(None),
            Some(b'"' | b'-' | b'0'..=b'9') if text.len() <= MAX_WORD => {
                Ok(Some(Self(text.into())))
            }
            Some(_) | None => Err(Malformed::Reference),
        }
    }

    fn of(text: &str) -> Result<Option<Self>, Malformed> {
        if text.is_empty() {
            return Ok(None);
        }
        let quoted = serde_json::to_string(text).map_err(|_error| Malformed::Reference)?;
        Ok(Some(Self(quoted.into())))
    }
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not JSON of the dialect's shape.
    #[error("not a frame of this version of the protocol")]
    Shape,
    /// A reference that is neither a string nor a number, or too long.
    #[error("a reference is a string or a number of at most {MAX_WORD} bytes")]
    Reference,
    /// Topic or event is empty or too long.
    #[error("topic and event have 1 to {MAX_WORD} bytes")]
    Word,
    /// The payload nests too deep.
    #[error("the payload nests more than {DEPTH} levels")]
    Deep,
    /// The lengths of a binary frame lie, or its words are not UTF-8.
    #[error("a binary frame with lengths that do not fit")]
    Lengths,
    /// A binary frame of a kind that clients do not send.
    #[error("a binary frame of an unknown kind")]
    Kind,
    /// It has more bytes than the node takes, which is at most [`MAX_FRAME`].
    #[error("a frame has at most {0} bytes")]
    TooLong(usize),
    /// It came with more others in one request than are taken.
    #[error("too many frames in one request")]
    TooMany,
}

impl Malformed {
    /// One word for programs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Shape => "frame_shape",
            Self::Reference => "frame_reference",
            Self::Word => "frame_word",
            Self::Deep => "frame_depth",
            Self::Lengths => "frame_lengths",
            Self::Kind => "frame_kind",
            Self::TooLong(_) => "frame_too_long",
            Self::TooMany => "frames_too_many",
        }
    }
}

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The reference of the join that this belongs to.
    pub join_ref: Option<Ref>,
    /// Its own reference, for the reply.
    pub reference: Option<Ref>,
    /// The topic; not every text here is a valid one.
    pub topic: String,
    /// The event.
    pub event: String,
    /// What it carries.
    pub payload: Payload,
}

#[derive(Deserialize)]
struct Two<'a>(
    #[serde(borrow)] &'a RawValue,
    #[serde(borrow)] &'a RawValue,
    #[serde(borrow)] Cow<'a, str>,
    #[serde(borrow)] Cow<'a, str>,
    #[serde(borrow)] &'a RawValue,
);

#[derive(Deserialize)]
struct One<'a> {
    #[serde(borrow)]
    topic: Cow<'a, str>,
    #[serde(borrow)]
    event: Cow<'a, str>,
    #[serde(borrow, default)]
    payload: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "ref")]
    reference: Option<&'a RawValue>,
    #[serde(borrow, default)]
    join_ref: Option<&'a RawValue>,
}

impl Frame {
    /// Reads a text frame.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn text(dialect: Dialect, text: &Bytes) -> Result<Self, Malformed> {
        let (join_ref, reference, topic, event, payload) = match dialect {
            Dialect::V2 => {
                let Two(join_ref, reference, topic, event, payload) = shape(text)?;
                (Some(join_ref), Some(reference), topic, event, Some(payload))
            }
            Dialect::V1 => {
                let One { topic, event, payload, reference, join_ref } = shape(text)?;
                (join_ref, reference, topic, event, payload)
            }
        };
        let reference = reference.map(Ref::read).transpose()?.flatten();
        let join_ref = join_ref.map(Ref::read).transpose()?.flatten();
        let payload = match payload {
            None => Json::empty(),
            Some(raw) => Json(text.slice_ref(raw.get().as_bytes())),
        };
        if !shallow(payload.as_bytes()) {
            return Err(Malformed::Deep);
        }
        let payload = Payload::Json(payload);
        Self { join_ref, reference, topic: topic.into(), event: event.into(), payload }.checked()
    }

    /// Reads a binary frame.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn binary(bytes: &Bytes) -> Result<Self, Malformed> {
        let (kind, rest) = bytes.split_first().ok_or(Malformed::Lengths)?;
        if *kind != PUSH {
            return Err(Malformed::Kind);
        }
        let (lengths, mut rest) = rest.split_first_chunk().ok_or(Malformed::Lengths)?;
        let mut word = |length: u8| -> Result<&str, Malformed> {
            let split = rest.split_at_checked(usize::from(length));
            let (word, after) = split.ok_or(Malformed::Lengths)?;
            rest = after;
            std::str::from_utf8(word).map_err(|_utf8| Malformed::Lengths)
        };
        let [join_ref, reference, topic, event] = *lengths;
        let (join_ref, reference) = (word(join_ref)?, word(reference)?);
        let (topic, event) = (word(topic)?.to_owned(), word(event)?.to_owned());
        let (join_ref, reference) = (Ref::of(join_ref)?, Ref::of(reference)?);
        let payload = Payload::Binary(bytes.slice_ref(rest));
        Self { join_ref, reference, topic, event, payload }.checked()
    }

    fn checked(self) -> Result<Self, Malformed> {
        let fits = |word: &str| (1..=MAX_WORD).contains(&word.len());
        if fits(&self.topic) && fits(&self.event) { Ok(self) } else { Err(Malformed::Word) }
    }
}

fn shape<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, Malformed> {
    serde_json::from_slice(text).map_err(|_detail| Malformed::Shape)
}

/// Kinds of binary frames.
const PUSH: u8 = 0;
const REPLY: u8 = 1;
const BROADCAST: u8 = 2;

/// A frame for a client, ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encoded {
    /// A text frame: UTF-8.
    Text(Bytes),
    /// A text frame in two parts, of which many clients share the second.
    Parts(Bytes, Bytes),
    /// A binary frame.
    Binary(Bytes),
}

impl Encoded {
    /// Its length in bytes.
    pub fn length(&self) -> usize {
        match self {
            Self::Text(bytes) | Self::Binary(bytes) => bytes.len(),
            Self::Parts(first, second) => first.len() + second.len(),
        }
    }
}

/// How a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Well.
    Ok,
    /// Not.
    Error,
}

impl Outcome {
    fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
        }
    }
}

/// What a node says to a client.
#[derive(Clone, Debug)]
pub enum Say<'a> {
    /// The answer to a request.
    Reply(Option<&'a Ref>, Option<&'a Ref>, Outcome, &'a Payload),
    /// An event for one join alone.
    Push(Option<&'a Ref>, &'a str, &'a Payload),
    /// An event for everybody who joined.
    Broadcast(&'a str, &'a Payload),
    /// The end of a join: `phx_close`, or `phx_error`, after which the client joins again.
    End(Option<&'a Ref>, &'a str, &'a Payload),
}

impl Say<'_> {
    /// The frame. `None` when the dialect has no way to say it: V1 has no binary frames; a topic, event
    /// or reference is too long for a binary one.
    pub fn encode(&self, dialect: Dialect, topic: &str) -> Option<Encoded> {
        let (Self::Reply(.., payload)
        | Self::Push(.., payload)
        | Self::Broadcast(_, payload)
        | Self::End(.., payload)) = self;
        match (dialect, payload) {
            (_, Payload::Json(json)) => Some(Encoded::Text(self.text(dialect, topic, json).into())),
            (Dialect::V2, Payload::Binary(data)) => self.binary(topic, data).map(Encoded::Binary),
            (Dialect::V1, Payload::Binary(_)) => None,
        }
    }

    /// A text frame whose payload and end are a [`tail`], which is not copied. The payload in `self` has no effect.
    pub fn with_tail(&self, dialect: Dialect, topic: &str, tail: &Bytes) -> Encoded {
        Encoded::Parts(self.before_payload(dialect, topic, 0).into(), tail.clone())
    }

    fn text(&self, dialect: Dialect, topic: &str, payload: &Json) -> Vec<u8> {
        let mut out = self.before_payload(dialect, topic, payload.0.len());
        out.extend_from_slice(&payload.0);
        out.extend(matches!(self, Self::Reply(..)).then_some(b'}'));
        out.push(end(dialect));
        out
    }

    /// A text frame up to its payload, with room for one of this length.
    fn before_payload(&self, dialect: Dialect, topic: &str, length: usize) -> Vec<u8> {
        let (join_ref, reference, event, status) = match self {
            Self::Reply(join_ref, reference, outcome, _) => {
                (*join_ref, *reference, "phx_reply", Some(outcome.label()))
            }
            Self::Push(join_ref, event, _) => (*join_ref, None, *event, None),
            Self::Broadcast(event, _) => (None, None, *event, None),
            Self::End(join_ref, event, _) => (*join_ref, *join_ref, *event, None),
        };
        let mut out = Vec::with_capacity(length + topic.len() + event.len() + 64);
        let reference = reference.map_or("null", |reference| &reference.0);
        match dialect {
            Dialect::V2 => {
                let join_ref = join_ref.map_or("null", |join_ref| &join_ref.0);
                put(&mut out, &["[", join_ref, ",", reference, ","]);
                quote(&mut out, topic);
                out.push(b',');
                quote(&mut out, event);
                out.push(b',');
            }
            Dialect::V1 => {
                put(&mut out, &["{\"ref\":", reference, ",\"topic\":"]);
                quote(&mut out, topic);
                put(&mut out, &[",\"event\":"]);
                quote(&mut out, event);
                put(&mut out, &[",\"payload\":"]);
            }
        }
        if let Some(status) = status {
            put(&mut out, &["{\"status\":\"", status, "\",\"response\":"]);
        }
        out
    }

    fn binary(&self, topic: &str, data: &Bytes) -> Option<Bytes> {
        let bare = |reference: &Option<&Ref>| -> Option<String> {
            let Some(Ref(raw)) = reference else { return Some(String::new()) };
            if raw.starts_with('"') {
                serde_json::from_str(raw).ok()
            } else {
                Some(raw.to_string())
            }
        };
        let (kind, words) = match self {
            Self::Reply(join_ref, reference, outcome, _) => {
                let (join_ref, reference) = (bare(join_ref)?, bare(reference)?);
                (REPLY, vec![join_ref, reference, topic.into(), outcome.label().into()])
            }
            Self::Push(join_ref, event, _) | Self::End(join_ref, event, _) => {
                (PUSH, vec![bare(join_ref)?, topic.into(), (*event).to_owned()])
            }
            Self::Broadcast(event, _) => (BROADCAST, vec![topic.into(), (*event).to_owned()]),
        };
        let mut out = vec![kind];
        for word in &words {
            out.push(u8::try_from(word.len()).ok()?);
        }
        words.iter().for_each(|word| out.extend_from_slice(word.as_bytes()));
        out.extend_from_slice(data);
        Some(out.into())
    }
}

/// What closes a text frame.
fn end(dialect: Dialect) -> u8 {
    if dialect == Dialect::V2 { b']' } else { b'}' }
}

/// A payload, and the end of a text frame that is no reply.
pub fn tail(dialect: Dialect, payload: &Json) -> Bytes {
    [&payload.0[..], &[end(dialect)]].concat().into()
}

fn put(out: &mut Vec<u8>, words: &[&str]) {
    words.iter().for_each(|word| out.extend_from_slice(word.as_bytes()));
}

/// Writes a JSON string.
fn quote(out: &mut Vec<u8>, text: &str) {
    // Writing a string to memory does not fail.
    serde_json::to_writer(out, text).unwrap_or(());
}

/// A reason as clients read it: `{"reason":"…"}`.
pub fn reason(text: &str) -> Payload {
    Payload::Json(Json::of(&serde_json::json!({ "reason": text })))
}

#[cfg(test)]
mod tests;
