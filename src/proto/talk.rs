//! What nodes send each other on the lanes *calls* and *bulk*: broadcasts, requests, replies, watches
//! and interest, as bytes.
//!
//! ```text
//! bulk   0  payload                                   on the topic of the broadcast before it
//!        1  topic, payload                            (text: length byte, then UTF-8)
//!        2  watch, why                                the watched name is gone
//! calls  0  call, milliseconds left, name, payload    a request
//!        1  call, outcome, payload                    its answer
//!        2  watch, name                               tell me when it is gone
//!        3  watch                                     do not
//!        4  kind, there?, text                        the sender wants a topic, or offers a name
//! ```
//! Numbers are varints (LEB128). Invariant: a head has at most `outbox::MAX_HEAD`
//! bytes; a message of a higher kind is of a later version and is skipped; whatever else does not parse is a
//! [`TalkError`], and the peer that said it is at fault.

use std::ops::Range;

use crate::proto::interest::Interest;
use crate::proto::topic::{Name, Topic};

/// The peer said something that is no word of this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed words")]
pub struct TalkError;

/// How a request ended at the node it was made to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The payload is the reply.
    Replied,
    /// The handler refused; the payload says why, as text.
    Refused,
    /// Nobody there has this name.
    NoSuchName,
    /// Too much was under way there; nothing was done.
    Overloaded,
    /// The time was over before it was done.
    DeadlinePassed,
}

/// Why a watched name is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum DownReason {
    /// It was never there.
    NoSuchName,
    /// It stopped in good order.
    Stopped,
    /// It failed.
    Failed,
    /// Its node left, crashed or was given up.
    NodeOffline,
    /// The link to its node was lost; the name may live on.
    LinkLost,
}

/// A message of the lane *bulk*. Ranges are places in its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bulk<'a> {
    /// A broadcast, on this topic or on that of the one before.
    Broadcast(Option<&'a str>, Range<usize>),
    /// A watched name is gone.
    Gone(u64, DownReason),
    /// Of a kind that only a later version knows.
    Unknown,
}

/// A message of the lane *calls*.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Calls {
    /// A request.
    Request {
        /// Chosen by the caller.
        call: u64,
        /// Milliseconds until nobody waits any more.
        left: u64,
        /// Whom it is for.
        name: Name,
        /// Where its payload is.
        payload: Range<usize>,
    },
    /// Its answer.
    Reply {
        /// As in the request.
        call: u64,
        /// How it ended.
        outcome: Outcome,
        /// Where its payload is.
        payload: Range<usize>,
    },
    /// The sender wants to know when this name is gone.
    Watch {
        /// Chosen by the watcher.
        watch: u64,
        /// Whom.
        name: Name,
    },
    /// It does not any more.
    Unwatch {
        /// As before.
        watch: u64,
    },
    /// What the sender wants or offers, from now on or no more.
    Interest(Interest, bool),
    /// Of a kind that only a later version knows.
    Unknown,
}

fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Texts of this protocol have at most 255 bytes by their types.
fn put_text(out: &mut Vec<u8>, text: &str) {
    out.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(text.as_bytes());
}

/// The head of a broadcast; without a topic it is on that of the broadcast before it.
pub fn broadcast(out: &mut Vec<u8>, topic: Option<&Topic>) {
    match topic {
        None => out.push(0),
        Some(topic) => {
            out.push(1);
            put_text(out, topic.as_str());
        }
    }
}

/// The word that a watched name is gone.
pub fn gone(out: &mut Vec<u8>, watch: u64, why: DownReason) {
    out.push(2);
    put(out, watch);
    out.push(match why {
        DownReason::NoSuchName => 0,
        DownReason::Stopped => 1,
        DownReason::Failed => 2,
        DownReason::NodeOffline => 3,
        DownReason::LinkLost => 4,
    });
}

/// The head of a request.
pub fn request(out: &mut Vec<u8>, call: u64, left: u64, name: &Name) {
    out.push(0);
    put(out, call);
    put(out, left);
    put_text(out, name.as_str());
}

/// The head of a reply.
pub fn reply(out: &mut Vec<u8>, call: u64, outcome: Outcome) {
    out.push(1);
    put(out, call);
    out.push(match outcome {
        Outcome::Replied => 0,
        Outcome::Refused => 1,
        Outcome::NoSuchName => 2,
        Outcome::Overloaded => 3,
        Outcome::DeadlinePassed => 4,
    });
}

/// The wish to know when a name is gone.
pub fn watch(out: &mut Vec<u8>, watch: u64, name: &Name) {
    out.push(2);
    put(out, watch);
    put_text(out, name.as_str());
}

/// Its end.
pub fn unwatch(out: &mut Vec<u8>, watch: u64) {
    out.push(3);
    put(out, watch);
}

/// What this node wants or offers.
pub fn interest(out: &mut Vec<u8>, interest: &Interest, there: bool) {
    let (kind, text) = match interest {
        Interest::Topic(topic) => (0, topic.as_str()),
        Interest::Below(prefix) => (1, prefix.as_ref()),
        Interest::Name(name) => (2, name.as_str()),
    };
    out.extend_from_slice(&[4, kind, u8::from(there)]);
    put_text(out, text);
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Result<u8, TalkError> {
        let byte = self.bytes.get(self.at).ok_or(TalkError)?;
        self.at += 1;
        Ok(*byte)
    }

    fn number(&mut self) -> Result<u64, TalkError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(TalkError)
    }

    fn text(&mut self) -> Result<&'a str, TalkError> {
        let length = usize::from(self.byte()?);
        let text = self.bytes.get(self.at..self.at + length).ok_or(TalkError)?;
        self.at += length;
        str::from_utf8(text).map_err(|_not_utf8| TalkError)
    }

    fn name(&mut self) -> Result<Name, TalkError> {
        self.text()?.parse().map_err(|_not_a_name| TalkError)
    }

    fn rest(self) -> Range<usize> {
        self.at..self.bytes.len()
    }

    fn end(self) -> Result<(), TalkError> {
        if self.at == self.bytes.len() { Ok(()) } else { Err(TalkError) }
    }
}

/// Reads a message of the lane *bulk*.
///
/// # Errors
/// [`TalkError`].
pub fn read_bulk(bytes: &[u8]) -> Result<Bulk<'_>, TalkError> {
    let mut reader = Reader { bytes, at: 0 };
    match reader.byte()? {
        0 => Ok(Bulk::Broadcast(None, reader.rest())),
        1 => {
            let topic = reader.text()?;
            Ok(Bulk::Broadcast(Some(topic), reader.rest()))
        }
        2 => {
            let watch = reader.number()?;
            let why = match reader.byte()? {
                0 => DownReason::NoSuchName,
                1 => DownReason::Stopped,
                2 => DownReason::Failed,
                3 => DownReason::NodeOffline,
                4 => DownReason::LinkLost,
                _ => return Err(TalkError),
            };
            reader.end()?;
            Ok(Bulk::Gone(watch, why))
        }
        _ => Ok(Bulk::Unknown),
    }
}

/// Reads a message of the lane *calls*.
///
/// # Errors
/// [`TalkError`].
pub fn read_calls(bytes: &[u8]) -> Result<Calls, TalkError> {
    let mut reader = Reader { bytes, at: 0 };
    match reader.byte()? {
        0 => {
            let (call, left) = (reader.number()?, reader.number()?);
            let name = reader.name()?;
            Ok(Calls::Request { call, left, name, payload: reader.rest() })
        }
        1 => {
            let call = reader.number()?;
            let outcome = match reader.byte()? {
                0 => Outcome::Replied,
                1 => Outcome::Refused,
                2 => Outcome::NoSuchName,
                3 => Outcome::Overloaded,
                4 => Outcome::DeadlinePassed,
                _ => return Err(TalkError),
            };
            Ok(Calls::Reply { call, outcome, payload: reader.rest() })
        }
        2 => {
            let (watch, name) = (reader.number()?, reader.name()?);
            reader.end().map(|()| Calls::Watch { watch, name })
        }
        3 => {
            let watch = reader.number()?;
            reader.end().map(|()| Calls::Unwatch { watch })
        }
        4 => {
            let (kind, there) = (reader.byte()?, reader.byte()?);
            let text = reader.text()?;
            let interest = match kind {
                0 => Topic::try_from(text).map(Interest::Topic).ok(),
                1 => Interest::below(text),
                2 => text.parse().map(Interest::Name).ok(),
                _ => None,
            };
            reader.end()?;
            let there = match there {
                0 => false,
                1 => true,
                _ => return Err(TalkError),
            };
            Ok(Calls::Interest(interest.ok_or(TalkError)?, there))
        }
        _ => Ok(Calls::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> Name {
        text.parse().expect("valid")
    }

    #[test]
    fn every_word_comes_back() {
        let topic = Topic::try_from("room:1").expect("valid");
        let mut out = Vec::new();
        broadcast(&mut out, Some(&topic));
        out.extend_from_slice(b"hi");
        assert_eq!(read_bulk(&out), Ok(Bulk::Broadcast(Some("room:1"), 8..10)));
        assert_eq!(read_bulk(b"\0hi"), Ok(Bulk::Broadcast(None, 1..3)));
        for why in [
            DownReason::NoSuchName,
            DownReason::Stopped,
            DownReason::Failed,
            DownReason::NodeOffline,
            DownReason::LinkLost,
        ] {
            out.clear();
            gone(&mut out, u64::MAX, why);
            assert_eq!(read_bulk(&out), Ok(Bulk::Gone(u64::MAX, why)));
        }
        out.clear();
        request(&mut out, 300, 5000, &name("work"));
        out.push(9);
        let payload = out.len() - 1..out.len();
        let expected = Calls::Request { call: 300, left: 5000, name: name("work"), payload };
        assert_eq!(read_calls(&out), Ok(expected));
        use Outcome::{DeadlinePassed, NoSuchName, Overloaded, Refused, Replied};
        for outcome in [Replied, Refused, NoSuchName, Overloaded, DeadlinePassed] {
            out.clear();
            reply(&mut out, 7, outcome);
            assert_eq!(read_calls(&out), Ok(Calls::Reply { call: 7, outcome, payload: 3..3 }));
        }
        out.clear();
        watch(&mut out, 1, &name("work"));
        assert_eq!(read_calls(&out), Ok(Calls::Watch { watch: 1, name: name("work") }));
        out.clear();
        unwatch(&mut out, 1);
        assert_eq!(read_calls(&out), Ok(Calls::Unwatch { watch: 1 }));
        for wanted in [
            Interest::Topic(topic),
            Interest::below("").expect("everything"),
            Interest::below("room:").expect("valid"),
            Interest::Name(name("work")),
        ] {
            for there in [true, false] {
                out.clear();
                interest(&mut out, &wanted, there);
                assert_eq!(read_calls(&out), Ok(Calls::Interest(wanted.clone(), there)));
            }
        }
    }

    #[test]
    fn what_is_no_word_is_told() {
        let bad: [&[u8]; 8] = [
            b"",
            b"\x00",
            b"\x02\x01\x04wo",
            b"\x03\x01\x00",
            b"\x04\x00\x02\x01a",
            b"\x04\x09\x01\x01a",
            b"\x04\x01\x01\x04room",
            b"\x01\x01\x05",
        ];
        for bytes in bad {
            assert_eq!(read_calls(bytes), Err(TalkError), "{bytes:?}");
        }
        let bad: [&[u8]; 4] = [b"", b"\x01\x05a", b"\x01\x01\xff", b"\x02\x01\x09"];
        for bytes in bad {
            assert_eq!(read_bulk(bytes), Err(TalkError), "{bytes:?}");
        }
        assert_eq!(read_calls(b"\x05later"), Ok(Calls::Unknown));
        assert_eq!(read_bulk(b"\x03later"), Ok(Bulk::Unknown));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _either = read_bulk(&bytes);
            let _either = read_calls(&bytes);
        }
    }
}
