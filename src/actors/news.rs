//! News: what happens in this node, told to its actors and kept in the trail, and words to actors of other nodes.
//!
//! - **Owns** who listens to events and to the words of other nodes' actors; the trail of what happened.
//! - **Hears** announcements from any actor, and the words of peers (through `link`).
//! - **Says** to listeners what they asked for; to peers' actors (through `exchange`) what they are told.
//! - **After a restart**: no listeners. The tree restarts everything after it, and they attach again.
//! - **Never** waits for a listener or a peer: what finds no room is refused, and that is counted.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use ractor::ActorProcessingErr;
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;

use crate::actors::exchange::{Exchange, SendError};
use crate::actors::supervisor::{Address, Child, Handle, Process};
use crate::io::metrics::{Count, Metrics};
use crate::proto::codec;
use crate::proto::event::Event;
use crate::proto::frame::{Lane, MAX_PAYLOAD};
use crate::proto::hlc::Stamp;
use crate::proto::node::NodeName;
use crate::proto::topic::Topic;

mod announce;
mod events;
mod trail;

pub use events::Events;
pub use trail::{Follower, Trail, WAITING};

const VERSION: u8 = 2;

/// What an actor says to its like on another node.
#[derive(Serialize, Deserialize)]
struct Words {
    topic: Topic,
    /// When it was said.
    stamp: Stamp,
    payload: Vec<u8>,
}

/// Words of a peer's actor, as this node's actors get them.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The peer; certain, its certificate says so.
    pub from: NodeName,
    /// The words.
    pub payload: Arc<[u8]>,
}

type EventSink = Box<dyn Fn(&Event) + Send>;
type WordsSink = Box<dyn Fn(Delivery) + Send>;

enum Msg {
    Announce(Event),
    Events(&'static str, EventSink),
    OnWords(&'static str, Topic, WordsSink),
    Received(NodeName, Bytes, OwnedSemaphorePermit),
}

/// The handle.
#[derive(Clone)]
pub struct Bus {
    handle: Handle<Msg>,
    exchange: Exchange,
    trail: Trail,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Bus").field(self.exchange.name()).finish()
    }
}

impl Bus {
    /// The bus of a node, without its actor.
    #[must_use]
    pub fn new(exchange: &Exchange) -> Self {
        let handle = Handle::new(Inside::NAME, exchange.metrics());
        Self { handle, exchange: exchange.clone(), trail: Trail::default() }
    }

    /// What carries its words to other nodes.
    #[must_use]
    pub fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    fn metrics(&self) -> &Metrics {
        self.exchange.metrics()
    }

    /// The child to put under a supervisor.
    #[must_use]
    pub fn child(&self) -> Child {
        Child::actor::<Inside>(&self.handle, (self.metrics().clone(), self.trail.clone()))
    }

    /// What happened. It outlives restarts of this actor.
    #[must_use]
    pub fn trail(&self) -> &Trail {
        &self.trail
    }

    /// Logs, counts and notes an event, and tells everybody in this node who listens.
    pub fn announce(&self, event: Event) {
        announce::log(&event);
        announce::count(&event, self.metrics());
        self.trail.note(event.clone());
        self.handle.cast(Msg::Announce(event));
    }

    /// Every later event, for a listener outside the tree: it outlives restarts of this actor.
    #[must_use]
    pub fn events(&self) -> Events {
        Events(self.trail.follow())
    }

    /// Gives every later event to `sink`. A listener has one name; a second one replaces the first.
    pub(crate) fn on_events(&self, name: &'static str, sink: impl Fn(&Event) + Send + 'static) {
        self.handle.cast(Msg::Events(name, Box::new(sink)));
    }

    /// Gives all later words of peers on `topic` to `sink`, likewise.
    pub(crate) fn on_words(
        &self,
        name: &'static str,
        topic: Topic,
        sink: impl Fn(Delivery) + Send + 'static,
    ) {
        self.handle.cast(Msg::OnWords(name, topic, Box::new(sink)));
    }

    /// Words for the actors that listen to `topic` on one peer: at most once, in order while the link
    /// lasts. At most about 64 KiB; what is larger or finds no room is counted and dropped.
    pub fn send(&self, peer: &NodeName, topic: Topic, payload: Vec<u8>) {
        let words = Words { topic, stamp: self.trail.stamp(), payload };
        let kind = match codec::encode_versioned(VERSION, &words) {
            Ok(words) if words.len() <= MAX_PAYLOAD => {
                let told = self
                    .exchange
                    .topics
                    .peer(peer)
                    .and_then(|outlet| outlet.push(Lane::Door, |_no_head| {}, &words.into()));
                match told {
                    Ok(()) => "sent",
                    Err(SendError::NotConnected) => "not_linked",
                    Err(SendError::Overloaded) => "overloaded",
                    Err(SendError::TooLong(_)) => "too_large",
                    Err(SendError::OtherType(_)) => "other_type",
                }
            }
            Ok(_) | Err(_) => "too_large",
        };
        self.metrics().count(Count::Door, kind);
    }

    /// Words arrived on a link. The permit bounds what a peer can have waiting here.
    pub(crate) fn received(&self, from: NodeName, words: Bytes, permit: OwnedSemaphorePermit) {
        self.handle.cast(Msg::Received(from, words, permit));
    }
}

struct Inside {
    metrics: Metrics,
    trail: Trail,
    events: BTreeMap<&'static str, EventSink>,
    words: BTreeMap<(Topic, &'static str), WordsSink>,
}

impl Inside {
    fn received(&self, from: NodeName, words: &[u8]) -> &'static str {
        let Ok(Words { topic, stamp, payload }) =
            codec::decode_versioned(VERSION, words, MAX_PAYLOAD)
        else {
            return "malformed";
        };
        if !self.trail.heard(stamp) {
            self.metrics.count(Count::Door, "stamp_far_ahead");
        }
        let mut kind = "no_subscriber";
        let delivery = Delivery { from, payload: payload.into() };
        let same = (topic.clone(), "")..;
        for ((_, _), sink) in self.words.range(same).take_while(|((t, _), _)| *t == topic) {
            sink(delivery.clone());
            kind = "received";
        }
        kind
    }
}

impl Process for Inside {
    const NAME: &'static str = "news";
    type Message = Msg;
    type Setup = (Metrics, Trail);

    async fn start(
        (metrics, trail): Self::Setup,
        _myself: &Address<Msg>,
    ) -> Result<Self, ActorProcessingErr> {
        Ok(Self { metrics, trail, events: BTreeMap::new(), words: BTreeMap::new() })
    }

    fn handle(&mut self, message: Msg) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::Announce(event) => self.events.values().for_each(|sink| sink(&event)),
            Msg::Events(name, sink) => drop(self.events.insert(name, sink)),
            Msg::OnWords(name, topic, sink) => drop(self.words.insert((topic, name), sink)),
            Msg::Received(from, words, permit) => {
                self.metrics.count(Count::Door, self.received(from, &words));
                drop(permit);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests;
