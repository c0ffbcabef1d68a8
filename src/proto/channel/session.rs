//! The rules of one client's socket: which topics it has joined, and what each of its frames means.
//!
//! # Protocol
//! A join has the client's `join_ref` (in V1 its `ref`) and a number of ours. Later frames belong to it when
//! they carry the same `join_ref` or none; others are of a join that is over, and ignored. Joining a topic
//! again ends the join before. While a join is pending all frames of its topic wait for it, a leave and another join among
//! them, for Phoenix hears no frame before the join before it is settled. Source: Phoenix.Socket and Phoenix.Channel.Server 1.8.
//!
//! # Invariants
//! 1. A topic is joined at most once, and at most so many as the node's limit are, those that are pending among them.
//! 2. Every request gets one reply: from here, or from anyone who performs what [`Session::hear`] asks for.

use std::collections::BTreeMap;

use super::{Dialect, Frame, Outcome, Payload, Ref};
use crate::proto::topic::Topic;

/// The event that joins a topic.
pub const JOIN: &str = "phx_join";
/// The topic of the socket itself: heartbeats, and answers to what has no topic.
pub const SOCKET: &str = "phoenix";

/// The event that tells a client that its right to a topic ends soon.
pub const EXPIRING: &str = "token_expiring";

/// Whether an event is the protocol's own: nobody may publish it.
pub fn reserved(event: &str) -> bool {
    event.starts_with("phx_")
        || event == EXPIRING
        || matches!(event, "presence_state" | "presence_diff" | "presence_count")
}

/// A join of this socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    /// Ours: no two joins of a socket have the same.
    pub number: u64,
    /// The client's.
    pub join_ref: Option<Ref>,
    /// The topic.
    pub topic: Topic,
}

/// What a frame asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Answer it so, with this `join_ref`.
    Answer(Option<Ref>, Outcome, &'static str),
    /// Let the client join, or refuse it; [`Session::joined`] or [`Session::ended`] settles it. The earlier join of
    /// this topic, if there is one, is over: end it with `phx_close`.
    Join(Join, Option<Join>),
    /// An event for a join.
    Push(Join),
    /// A frame for a topic whose join is pending: to be heard again when that is settled, in order.
    Wait(Join),
    /// The join is over at the client's wish: answer, then `phx_close`.
    Leave(Join),
    /// Nothing: it is of a join that is over.
    Ignore,
}

/// The machine.
#[derive(Debug)]
pub struct Session {
    dialect: Dialect,
    joins: BTreeMap<Topic, Entry>,
    numbers: u64,
    /// Topics that it may have joined.
    most: usize,
}

#[derive(Debug)]
struct Entry {
    join: Join,
    pending: bool,
}

impl Session {
    /// A socket that has joined nothing, and may join `most` topics.
    pub fn new(dialect: Dialect, most: usize) -> Self {
        Self { dialect, joins: BTreeMap::new(), numbers: 0, most }
    }

    /// How the client wants its frames.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// What a frame means.
    pub fn hear(&mut self, frame: &Frame) -> Ask {
        let error = |why| Ask::Answer(None, Outcome::Error, why);
        if frame.topic == SOCKET {
            return match frame.event.as_str() {
                "heartbeat" => Ask::Answer(None, Outcome::Ok, ""),
                _ => error("unmatched topic"),
            };
        }
        let current = self.joins.iter().find(|(topic, _)| topic.as_str() == frame.topic);
        if let Some((_, Entry { join, pending: true })) = current {
            return Ask::Wait(join.clone());
        }
        let current = current.map(|(_, entry)| entry.join.clone());
        match (frame.event.as_str(), current) {
            (JOIN, before) => self.join(frame, before),
            ("phx_leave", None) => Ask::Answer(frame.join_ref.clone(), Outcome::Ok, ""),
            (_, None) => error("unmatched topic"),
            (_, Some(join)) if !belongs(frame, &join) => Ask::Ignore,
            ("phx_leave", Some(join)) => {
                self.joins.remove(&join.topic);
                Ask::Leave(join)
            }
            (event, Some(join)) if reserved(event) => {
                Ask::Answer(join.join_ref, Outcome::Error, "reserved event")
            }
            (_, Some(join)) => Ask::Push(join),
        }
    }

    fn join(&mut self, frame: &Frame, before: Option<Join>) -> Ask {
        let join_ref = frame.join_ref.clone().or_else(|| frame.reference.clone());
        let Ok(topic) = Topic::try_from(frame.topic.as_str()) else {
            return Ask::Answer(None, Outcome::Error, "unmatched topic");
        };
        if matches!(frame.payload, Payload::Binary(_)) {
            return Ask::Answer(join_ref, Outcome::Error, "a join is a text frame");
        }
        if before.is_none() && self.joins.len() >= self.most {
            return Ask::Answer(join_ref, Outcome::Error, "too many channels joined");
        }
        self.numbers += 1;
        let join = Join { number: self.numbers, join_ref, topic: topic.clone() };
        self.joins.insert(topic, Entry { join: join.clone(), pending: true });
        Ask::Join(join, before)
    }

    /// The join of this topic, while it is pending.
    pub fn pending(&self, topic: &Topic) -> Option<&Join> {
        self.joins.get(topic).filter(|entry| entry.pending).map(|entry| &entry.join)
    }

    /// A pending join was granted; false when it is over already.
    pub fn joined(&mut self, join: &Join) -> bool {
        let entry = self.joins.get_mut(&join.topic);
        let entry = entry.filter(|entry| entry.join.number == join.number);
        entry.map(|entry| entry.pending = false).is_some()
    }

    /// A join was refused, or has ended by itself; false when it had already.
    pub fn ended(&mut self, join: &Join) -> bool {
        let current = self.joins.get(&join.topic).is_some_and(|it| it.join.number == join.number);
        if current {
            self.joins.remove(&join.topic);
        }
        current
    }

    /// The joins that live or are pending, by topic.
    pub fn joins(&self) -> impl Iterator<Item = &Join> + '_ {
        self.joins.values().map(|entry| &entry.join)
    }
}

fn belongs(frame: &Frame, join: &Join) -> bool {
    frame.join_ref.is_none() || frame.join_ref == join.join_ref
}
