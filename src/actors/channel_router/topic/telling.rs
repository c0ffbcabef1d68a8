//! How members are told a message of a topic, and the way of those that a channel looks at first.
//!
//! A member whose channel intercepts gets every message of the topic through its channel's task, so that they stay in their
//! order. Invariants:
//! 1. What is for one join alone has its reference.
//! 2. Where a message stands (`seq`) is told by this node alone, also of a message that is changed, or not told.
//! 3. Beside one message of any length at most [`BOUND`] bytes wait for a channel's task, and what its join was given at
//!    its beginning.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;

use super::kept::Logged;
use super::{Close, Member, TopicTask};
use crate::io::metrics::Count;
use crate::proto::channel::{Dialect, Encoded, Json, Payload, Ref, Say};
use crate::proto::topic::Topic;

/// Under which name a message says where it stands.
pub(super) const SEQ: &str = "seq";
/// Bytes that may wait for a channel's task.
const BOUND: usize = 512 * 1024;
/// What a message costs beside its bytes.
const OVERHEAD: usize = 64;

/// How a member is told.
pub(super) struct Manner<'a> {
    pub(super) topic: &'a Topic,
    pub(super) dialect: Dialect,
    /// It is told where each message stands.
    pub(super) numbered: bool,
    /// For this join alone; otherwise for all.
    pub(super) join: Option<Option<&'a Ref>>,
}

impl Manner<'_> {
    fn encode(&self, event: &str, payload: &Payload) -> Option<Encoded> {
        let say = match self.join {
            Some(join_ref) => Say::Push(join_ref, event, payload),
            None => Say::Broadcast(event, payload),
        };
        say.encode(self.dialect, self.topic.as_str())
    }
}

impl Logged {
    /// The message with this payload. Who is told where it stands is told so in the payload if that is an object,
    /// otherwise in an event `seq` that follows it; what a publisher said under that name is left out for them.
    pub(super) fn frames(&self, payload: &Payload, manner: &Manner<'_>) -> Vec<Encoded> {
        let object = match payload {
            Payload::Json(json) if manner.numbered && json.is_object() => Some(json),
            Payload::Json(_) | Payload::Binary(_) => None,
        };
        let told = match (self.cursor.get().filter(|_| manner.numbered), object) {
            (None, None) => manner.encode(&self.event, payload),
            (None, Some(json)) => manner.encode(&self.event, &Payload::Json(json.without(SEQ))),
            (Some(cursor), Some(json)) => {
                manner.encode(&self.event, &Payload::Json(json.with(SEQ, cursor)))
            }
            (Some(_), None) => {
                let mut frames: Vec<_> = manner.encode(&self.event, payload).into_iter().collect();
                frames.extend(self.place(manner));
                return frames;
            }
        };
        told.into_iter().collect()
    }

    /// Where it stands, for who is not told the message itself.
    pub(super) fn place(&self, manner: &Manner<'_>) -> Option<Encoded> {
        let cursor = self.cursor.get().filter(|_| manner.numbered)?;
        manner.encode(SEQ, &Payload::Json(Json::empty().with(SEQ, cursor)))
    }
}

/// The frames of what a join gets of the past, each made when its client takes it: a crowd that joins and reads nothing
/// costs no copies.
pub(super) fn replay(
    messages: Vec<Arc<Logged>>,
    manner: &Manner<'_>,
) -> impl Iterator<Item = Encoded> + Send + use<> {
    let (topic, dialect, numbered) = (manner.topic.clone(), manner.dialect, manner.numbered);
    let join_ref = manner.join.flatten().cloned();
    messages.into_iter().flat_map(move |kept| {
        let join = Some(join_ref.as_ref());
        kept.frames(&kept.payload, &Manner { topic: &topic, dialect, numbered, join })
    })
}

impl TopicTask {
    /// Tells the members.
    pub(super) fn deliver(&self, heard: &[Arc<Logged>]) {
        self.deliver_but(heard, |_| None);
    }

    /// Tells the members; one for which `these` has an answer gets those messages instead.
    pub(super) fn deliver_but(
        &self,
        heard: &[Arc<Logged>],
        these: impl Fn(&Member) -> Option<Vec<Arc<Logged>>>,
    ) {
        let mut shapes = Shapes::default();
        for member in self.members.values() {
            if let Some(these) = these(member) {
                self.tell_alone(member, &these);
                continue;
            }
            let (dialect, numbered) = (member.dialect, member.resume.is_some());
            let excepted = heard.iter().any(|kept| kept.except == Some(member.id));
            if excepted || member.intercept.is_some() {
                self.tell_alone(member, heard);
                continue;
            }
            let manner = Manner { topic: &self.topic, dialect, numbered, join: None };
            let make =
                || heard.iter().flat_map(|kept| kept.frames(&kept.payload, &manner)).collect();
            let frames = shapes.of((dialect, numbered), make);
            member.outbox.push(frames.iter().cloned(), member.slow);
        }
        let delivered = heard.len() * self.members.len();
        self.shared.metrics.add(Count::Channels, "delivered", delivered as u64);
    }

    /// Tells a member what others are told otherwise: what it has said itself it is not told, and what its channel
    /// intercepts goes there.
    fn tell_alone(&self, member: &Member, heard: &[Arc<Logged>]) {
        let (dialect, numbered) = (member.dialect, member.resume.is_some());
        let join = member.intercept.as_ref().map(|_| member.join_ref.as_ref());
        let manner = Manner { topic: &self.topic, dialect, numbered, join };
        for kept in heard {
            let told = kept.except != Some(member.id);
            match &member.intercept {
                Some(intercept) if intercept.is_full(kept) => member.outbox.close(Close::SLOW),
                Some(intercept) => intercept.send(kept, &manner, told),
                None if told => {
                    member.outbox.push(kept.frames(&kept.payload, &manner), member.slow);
                }
                None => member.outbox.push(kept.place(&manner), member.slow),
            }
        }
    }
}

/// Frames for members that want them alike, made when the first asks.
#[derive(Default)]
struct Shapes(Vec<((Dialect, bool), Vec<Encoded>)>);

impl Shapes {
    fn of(&mut self, shape: (Dialect, bool), make: impl FnOnce() -> Vec<Encoded>) -> &[Encoded] {
        let at = self.0.iter().position(|(made, _)| *made == shape).unwrap_or_else(|| {
            self.0.push((shape, make()));
            self.0.len() - 1
        });
        self.0.get(at).map_or(&[], |(_, frames)| frames)
    }
}

/// The way of a topic's messages to the task of a join whose channel looks at some of them.
#[derive(Clone)]
pub struct Intercept {
    to: mpsc::UnboundedSender<Intercepted>,
    waiting: Arc<AtomicUsize>,
}

/// A message on its way to a member, in the task of its join.
pub struct Intercepted {
    kept: Arc<Logged>,
    topic: Topic,
    dialect: Dialect,
    numbered: bool,
    join_ref: Option<Ref>,
    told: bool,
    _room: Room,
}

/// What a message takes of the bytes that may wait.
struct Room(Arc<AtomicUsize>, usize);

impl Drop for Room {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

impl Intercept {
    /// A way, and its end.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Intercepted>) {
        let (to, end) = mpsc::unbounded_channel();
        (Self { to, waiting: Arc::default() }, end)
    }

    /// Whether no more may wait.
    pub(super) fn is_full(&self, kept: &Logged) -> bool {
        let waiting = self.waiting.load(Ordering::Relaxed);
        waiting > 0 && waiting + kept.cost + OVERHEAD > BOUND
    }

    /// Sends a message on its way; who has said it itself is told where it stands alone.
    pub(super) fn send(&self, kept: &Arc<Logged>, manner: &Manner<'_>, told: bool) {
        let cost = kept.cost + OVERHEAD;
        self.waiting.fetch_add(cost, Ordering::Relaxed);
        // A join that is over takes nothing.
        drop(self.to.send(Intercepted {
            kept: kept.clone(),
            topic: manner.topic.clone(),
            dialect: manner.dialect,
            numbered: manner.numbered,
            join_ref: manner.join.flatten().cloned(),
            told,
            _room: Room(self.waiting.clone(), cost),
        }));
    }
}

impl Intercepted {
    fn manner(&self) -> Manner<'_> {
        let join = Some(self.join_ref.as_ref());
        Manner { topic: &self.topic, dialect: self.dialect, numbered: self.numbered, join }
    }

    /// Its event; `None` when the client is not told, whatever its channel says.
    pub fn event(&self) -> Option<&str> {
        self.told.then_some(&self.kept.event)
    }

    /// What it carries.
    pub fn payload(&self) -> &Payload {
        &self.kept.payload
    }

    /// The frames for the client, with this payload.
    pub fn frames(&self, payload: &Payload) -> Vec<Encoded> {
        self.kept.frames(payload, &self.manner())
    }

    /// The frame for a client that is not told, if it is told where messages stand.
    pub fn place(&self) -> Option<Encoded> {
        self.kept.place(&self.manner())
    }
}
