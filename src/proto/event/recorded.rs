//! An event as a node recorded it, how it is stored, and how recorded events are asked for.

use serde::{Deserialize, Serialize};

use super::{Event, OtherEvent};
use crate::proto::chain::Hash;
use crate::proto::codec::{self, CodecError};
use crate::proto::hlc::Stamp;
use crate::proto::node::{Incarnation, NodeName};

/// The longest a stored event may be, in bytes: one that names every node of a large cluster fits.
pub const MAX_RECORD: usize = 256 * 1024;
/// The longest text of an event in a stored one, in bytes; the rest is for the other fields.
const MAX_EVENT: usize = MAX_RECORD - 1024;
/// Events of one answer at most.
pub const MAX_EVENTS: usize = 1000;
const VERSION: u8 = 2;
/// Stored events of this version had no stamp.
const OLD: u8 = 1;

/// An event, and when it happened by every clock there is.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// The node's number of it; 0 when its trail had no room for it.
    pub seq: u64,
    /// The node that recorded it, where events of several are together.
    pub noted_by: Option<NodeName>,
    /// Wall-clock time in milliseconds since 1970.
    pub at: u64,
    /// Milliseconds since the node's start, by a clock that never jumps.
    pub since_start: u64,
    /// The life of the node in which it happened.
    pub incarnation: Incarnation,
    /// Orders it among what happened on other nodes.
    pub stamp: Stamp,
    /// The hash of the chain up to it, where it was read from the store.
    pub hash: Option<Hash>,
    /// What happened.
    pub event: Event,
}

/// What is stored of an event.
#[derive(Serialize, Deserialize)]
struct Stored {
    at: u64,
    since_start: u64,
    incarnation: Incarnation,
    stamp: Stamp,
    label: String,
    node: Option<NodeName>,
    /// The event as JSON: postcard cannot read a type that names itself.
    event: String,
}

/// What was stored in version [`OLD`].
#[derive(Deserialize)]
struct Unstamped {
    at: u64,
    since_start: u64,
    incarnation: Incarnation,
    label: String,
    node: Option<NodeName>,
    event: String,
}

impl From<Unstamped> for Stored {
    fn from(Unstamped { at, since_start, incarnation, label, node, event }: Unstamped) -> Self {
        let stamp = Stamp { millis: at, count: 0 };
        Self { at, since_start, incarnation, stamp, label, node, event }
    }
}

impl From<Stored> for Recorded {
    fn from(Stored { at, since_start, incarnation, stamp, label, node, event }: Stored) -> Self {
        let event = match serde_json::from_str(&event) {
            Ok(Event::Other(OtherEvent { rest, .. })) => {
                Event::Other(OtherEvent { event: label, rest }.about(node))
            }
            Ok(event) => event,
            Err(_unreadable) => {
                Event::Other(OtherEvent { event: label, ..OtherEvent::default() }.about(node))
            }
        };
        Self { seq: 0, noted_by: None, at, since_start, incarnation, stamp, hash: None, event }
    }
}

impl Recorded {
    /// The bytes that are stored and hashed: a version and the fields. Of an event that has no room the type, the node
    /// and the length alone are stored.
    ///
    /// # Errors
    /// [`CodecError::TooLong`] for one that could not be read back.
    pub fn to_bytes(&self) -> Result<Vec<u8>, CodecError> {
        let Self { at, since_start, incarnation, stamp, ref event, .. } = *self;
        let label = event.label().to_owned();
        // No event's own `Serialize` refuses.
        let mut text = serde_json::to_string(event).unwrap_or_default();
        if text.len() > MAX_EVENT {
            text = format!(r#"{{"event":"{label}","left_out_bytes":{}}}"#, text.len());
        }
        let node = event.about().cloned();
        let stored = Stored { at, since_start, incarnation, stamp, label, node, event: text };
        let bytes = codec::encode_versioned(VERSION, &stored)?;
        if bytes.len() > MAX_RECORD {
            return Err(CodecError::TooLong { length: bytes.len(), cap: MAX_RECORD });
        }
        Ok(bytes)
    }

    /// The event of these bytes, which hold neither its number nor its hash.
    ///
    /// # Errors
    /// Any [`CodecError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        let stored = match codec::decode_versioned(VERSION, bytes, MAX_RECORD) {
            Err(CodecError::Version(OLD)) => {
                codec::decode_versioned::<Unstamped>(OLD, bytes, MAX_RECORD).map(Stored::from)
            }
            read => read,
        };
        stored.map(Self::from)
    }

    /// Whether stored bytes are of an event that outlasts the others.
    pub fn is_lasting(bytes: &[u8]) -> bool {
        type Fields<'a> = (u64, u64, Incarnation, Stamp, &'a str);
        type Unstamped<'a> = (u64, u64, Incarnation, &'a str);
        let label = match bytes.split_first() {
            Some((&VERSION, fields)) => {
                postcard::take_from_bytes(fields).map(|(it, _): (Fields<'_>, _)| it.4)
            }
            Some((&OLD, fields)) => {
                postcard::take_from_bytes(fields).map(|(it, _): (Unstamped<'_>, _)| it.3)
            }
            _ => return false,
        };
        label.is_ok_and(Event::is_lasting)
    }

    /// [`Recorded::at`] of stored bytes, without reading the rest.
    pub fn at_of(bytes: &[u8]) -> Option<u64> {
        let (version, fields) = bytes.split_first()?;
        [VERSION, OLD]
            .contains(version)
            .then(|| postcard::take_from_bytes(fields).ok())
            .flatten()
            .map(|f| f.0)
    }
}

/// A part of what was recorded.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Page {
    /// Oldest first.
    pub events: Vec<Recorded>,
    /// What comes next is after this number.
    pub next: u64,
    /// The first number after which nothing is forgotten; of what was before only what outlasts the rest is known.
    pub first: u64,
}

/// Which events: all, unless it says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Query {
    /// The first ones after this number; without it, the latest.
    pub after: Option<u64>,
    /// At most so many.
    pub limit: usize,
    /// Of this type: one of [`Event::LABELS`].
    #[serde(rename = "type")]
    pub label: Option<String>,
    /// About this node.
    pub node: Option<NodeName>,
    /// At this time or later, in milliseconds since 1970.
    pub since: Option<u64>,
    /// Before this time, likewise.
    pub until: Option<u64>,
}

impl Default for Query {
    fn default() -> Self {
        let limit = MAX_EVENTS;
        Self { after: None, limit, label: None, node: None, since: None, until: None }
    }
}

impl Query {
    /// Whether an event is asked for by its type, node and time. That events were missed is for everybody.
    pub fn fits(&self, Recorded { at, event, .. }: &Recorded) -> bool {
        matches!(event, Event::EventsMissed { .. })
            || self.label.as_ref().is_none_or(|label| label == event.label())
                && self.node.as_ref().is_none_or(|node| event.concerns(node))
                && self.since.is_none_or(|since| *at >= since)
                && self.until.is_none_or(|until| *at < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(event: Event) -> Recorded {
        Recorded {
            seq: 0,
            noted_by: None,
            at: 1_700_000_000_123,
            since_start: 4567,
            incarnation: Incarnation(3),
            stamp: Stamp { millis: 1_700_000_000_125, count: 2 },
            hash: None,
            event,
        }
    }

    fn b() -> NodeName {
        "b@127.0.0.1".parse().expect("valid")
    }

    #[test]
    fn an_event_without_room_leaves_its_type_node_and_length() {
        let long = recorded(Event::LinkLost { peer: b(), cause: "x".repeat(MAX_EVENT) });
        let read = Recorded::from_bytes(&long.to_bytes().expect("short")).expect("known");
        assert_eq!(
            serde_json::to_string(&read.event).expect("plain"),
            r#"{"event":"link_lost","left_out_bytes":261173,"node":"b@127.0.0.1"}"#
        );
        assert_eq!(read.event.label(), "link_lost");
        assert!(read.event.concerns(&b()) && !read.event.concerns(&"c@h".parse().expect("valid")));
        let label =
            Event::Other(OtherEvent { event: "x".repeat(MAX_RECORD), ..OtherEvent::default() });
        let refused = recorded(label).to_bytes();
        assert!(matches!(refused, Err(CodecError::TooLong { .. })), "{refused:?}");
    }

    #[test]
    fn an_event_comes_back_as_it_was() {
        let event = recorded(Event::PeerSilent {
            peer: b(),
            phi: 9.25,
            missed: 4,
            heard_by: vec!["c@127.0.0.1".parse().expect("valid")],
            confirmed_by: Vec::new(),
            broken: None,
        });
        let bytes = event.to_bytes().expect("short");
        assert_eq!(bytes[0], VERSION);
        assert_eq!(Recorded::from_bytes(&bytes), Ok(event));
        assert_eq!(Recorded::at_of(&bytes), Some(1_700_000_000_123));
    }

    #[test]
    fn what_outlasts_the_rest_is_known_by_its_bytes() {
        let lasting = |event| Recorded::is_lasting(&recorded(event).to_bytes().expect("short"));
        assert!(lasting(Event::NodeStarted { version: "1".to_owned() }));
        assert!(
            !lasting(Event::Paused { millis: 1 }) && !lasting(Event::PeerConnecting { peer: b() })
        );
        let other =
            OtherEvent { event: "node_started_otherwise".to_owned(), ..OtherEvent::default() };
        assert!(!lasting(Event::Other(other)));
        assert!(Recorded::is_lasting(b"\x01\x07\x08\x09\x0cnode_started\x00\x02{}"));
        for bytes in [&b""[..], b"\x01", b"\x02\x07\x08", b"\x09\x07\x08\x09\x0cnode_started"] {
            assert!(!Recorded::is_lasting(bytes), "{bytes:?}");
        }
    }

    #[test]
    fn what_other_versions_stored_is_read() {
        let bytes = b"\x01\x07\x08\x09\x06paused\x00\x0d{\"event\":\"x\"}";
        let read = Recorded::from_bytes(bytes).expect("known");
        let Recorded { at, since_start, incarnation, stamp, .. } = read;
        assert_eq!((at, since_start, incarnation), (7, 8, Incarnation(9)));
        assert_eq!((stamp, read.event.label()), (Stamp { millis: 7, count: 0 }, "paused"));
        assert_eq!(Recorded::at_of(bytes), Some(7));
        // Fields were called otherwise, and types were others.
        let read = |text: &str| serde_json::from_str::<Event>(text).expect("some event");
        let address = ([10, 0, 0, 2], 1).into();
        assert_eq!(
            read(
                r#"{"event":"peer_online","peer":"b@127.0.0.1","incarnation":4,"address":"10.0.0.2:1"}"#
            ),
            Event::PeerOnline { peer: b(), incarnation: Incarnation(4), address }
        );
        assert_eq!(
            read(r#"{"event":"node_started","incarnation":4,"version":"0.1"}"#),
            Event::NodeStarted { version: "0.1".to_owned() }
        );
        let other = read(r#"{"event":"dance","node":"b@127.0.0.1","steps":3}"#);
        assert_eq!(other.to_string(), r#"dance {"node":"b@127.0.0.1","steps":3}"#);
        assert!(other.label() == "dance" && other.concerns(&b()) && other.about().is_none());
    }

    #[test]
    fn a_query_is_fitted_by_type_node_and_time() {
        let event = recorded(Event::PeerConnecting { peer: b() });
        let at = event.at;
        let label = |it: &str| Query { label: Some(it.to_owned()), ..Query::default() };
        for (query, fits) in [
            (Query::default(), true),
            (label("peer_connecting"), true),
            (label("paused"), false),
            (Query { node: Some(b()), ..Query::default() }, true),
            (Query { node: "c@h".parse().ok(), ..Query::default() }, false),
            (Query { since: Some(at), until: Some(at + 1), ..Query::default() }, true),
            (Query { since: Some(at + 1), ..Query::default() }, false),
            (Query { until: Some(at), ..Query::default() }, false),
        ] {
            assert_eq!(query.fits(&event), fits, "{query:?}");
            assert!(query.fits(&recorded(Event::EventsMissed { count: 1 })), "for everybody");
        }
        assert!(serde_json::from_str::<Query>(r#"{"from":1}"#).is_err());
        assert_eq!(serde_json::from_str::<Query>("{}").expect("all"), Query::default());
    }
}
