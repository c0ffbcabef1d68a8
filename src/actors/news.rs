//! News: what happens in this node, told to its actors and kept in the trail, and the news of its links.
//!
//! - **Owns** who listens; which links are up; the trail of what happened; what is proven of other nodes.
//! - **Hears** announcements from any actor; that a link is up, its messages, and that it is down, in this order, from
//!   the link itself.
//! - **Says** to listeners what they asked for; to peers' actors (through `exchange`) what they are told.
//! - **After a restart**: no listeners and no links. The tree restarts everything after it, and they attach again.
//! - **Never** waits for a listener or a peer: what finds no room is refused, and that is counted.
//!
//! Who gets what, and in which order, is in `proto::wiring`.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use ractor::ActorProcessingErr;
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;

use crate::actors::exchange::{Account, Exchange, Measured, Outlet, SendError};
use crate::actors::supervisor::{Address, Child, Handle, Process};
use crate::actors::timer;
use crate::io::metrics::{Count, Metrics};
use crate::proto::capability::Capabilities;
use crate::proto::codec;
use crate::proto::event::{Event, Limiter};
use crate::proto::frame::{Lane, MAX_PAYLOAD};
use crate::proto::hlc::Stamp;
use crate::proto::node::{Incarnation, NodeName};
use crate::proto::seal::Equivocation;
use crate::proto::talk::DownReason;
use crate::proto::topic::Topic;
use crate::proto::wiring::{Consumer, Links, Notice};

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

/// What an actor's like on another node sent it. Until it is dropped it counts against what may wait of the peer.
#[derive(Clone, Debug)]
pub struct PeerMessage(Arc<(Vec<u8>, OwnedSemaphorePermit)>, Arc<Outlet>);

impl PeerMessage {
    /// The account of its sender.
    pub(crate) fn account(&self) -> &Arc<Account> {
        self.1.account()
    }

    /// What its sender may do.
    pub(crate) fn capabilities(&self) -> &Capabilities {
        self.1.capabilities()
    }
}

/// Has the peer pay for what the thread does until the result is dropped, where it sent this.
pub(crate) fn measure(notice: &Notice<PeerMessage>) -> Option<Measured> {
    if let Notice::Message(_, message) = notice { Some(message.account().measure()) } else { None }
}

impl Deref for PeerMessage {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0.0
    }
}

/// What is proven of other nodes. It outlives restarts of the actor.
type Proven = Arc<Mutex<Vec<Equivocation>>>;

type EventSink = Box<dyn Fn(&Event) + Send>;
type NoticeSink = Box<dyn Fn(Notice<PeerMessage>) + Send>;

enum Msg {
    Announce(Event),
    OnEvents(&'static str, EventSink),
    Attach(Consumer, NoticeSink),
    /// A link, which is its outlet here.
    Up(Arc<Outlet>, Incarnation),
    Received(Arc<Outlet>, Bytes, OwnedSemaphorePermit),
    Down(Arc<Outlet>, DownReason),
}

/// The handle.
#[derive(Clone)]
pub struct Bus {
    handle: Handle<Msg>,
    exchange: Exchange,
    trail: Trail,
    limiter: Arc<Mutex<Limiter>>,
    proven: Proven,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Bus").field(self.exchange.name()).finish()
    }
}

impl Bus {
    /// The bus of a node, without its actor.
    pub fn new(exchange: &Exchange) -> Self {
        let handle = Handle::new(Inside::NAME, exchange.metrics());
        let (trail, limiter, proven) = (Trail::default(), Arc::default(), Arc::default());
        Self { handle, exchange: exchange.clone(), trail, limiter, proven }
    }

    /// What carries its words to other nodes.
    pub fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    fn metrics(&self) -> &Metrics {
        self.exchange.metrics()
    }

    /// The child to put under a supervisor.
    pub fn child(&self) -> Child {
        let setup = (self.metrics().clone(), self.trail.clone(), self.proven.clone());
        Child::actor::<Inside>(&self.handle, setup)
    }

    /// What was proven of other nodes in earlier lives: who concludes from that is told when it attaches.
    pub(crate) fn recall(&self, proofs: Vec<Equivocation>) {
        proven(&self.proven).extend(proofs);
    }

    /// What happened. It outlives restarts of this actor.
    pub fn trail(&self) -> &Trail {
        &self.trail
    }

    /// Counts an event, logs and notes it unless a peer causes too many, and tells everybody in this node who listens.
    pub fn announce(&self, event: Event) {
        announce::count(&event, self.metrics());
        let taken = self.limiter.lock().take(&event, timer::now());
        self.take_down(taken);
        self.handle.cast(Msg::Announce(event));
    }

    /// Logs and notes what was left out for long enough; when to do so next.
    pub(crate) fn settle(&self) -> Option<Instant> {
        let (due, next) = {
            let mut limiter = self.limiter.lock();
            (limiter.due(timer::now()), limiter.deadline())
        };
        self.take_down(due);
        next
    }

    fn take_down(&self, events: Vec<Event>) {
        for event in events {
            announce::log(&event);
            if let Event::EventsOmitted { count, kind, .. } = &event {
                announce::omitted(kind, *count, self.metrics());
            }
            self.trail.note(event);
        }
    }

    /// Every later event, for a listener outside the tree: it outlives restarts of this actor.
    pub fn events(&self) -> Events {
        Events(self.trail.follow())
    }

    /// Gives every later event to `sink`. A listener has one name; a second one replaces the first.
    pub(crate) fn on_events(&self, name: &'static str, sink: impl Fn(&Event) + Send + 'static) {
        self.handle.cast(Msg::OnEvents(name, Box::new(sink)));
    }

    /// Gives what concerns a consumer to `sink`, in one order, likewise. What is proven and the links that are up come
    /// first.
    pub(crate) fn attach(
        &self,
        consumer: Consumer,
        sink: impl Fn(Notice<PeerMessage>) + Send + 'static,
    ) {
        self.handle.cast(Msg::Attach(consumer, Box::new(sink)));
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
                    .and_then(|outlet| outlet.push(Lane::System, |_no_head| {}, &words.into()));
                match told {
                    Ok(()) => "sent",
                    Err(SendError::NotConnected) => "not_linked",
                    Err(SendError::Overloaded) => "overloaded",
                    Err(SendError::TooLong(_)) => "too_large",
                    Err(SendError::OtherType(_)) => "other_type",
                    Err(SendError::NotAllowed(_)) => "not_allowed",
                }
            }
            Ok(_) | Err(_) => "too_large",
        };
        self.metrics().count(Count::Messages, kind);
    }

    /// There is a link to this life of a peer, which may do this: what is sent to it goes through the outlet.
    pub(crate) fn up(&self, peer: NodeName, life: Incarnation, may: Capabilities) -> Arc<Outlet> {
        let outlet = self.exchange.topics.up(peer, may);
        self.handle.cast(Msg::Up(outlet.clone(), life));
        outlet
    }

    /// Words arrived on a link. The permit bounds what a peer can have waiting for the actors here.
    pub(crate) fn received(&self, link: &Arc<Outlet>, words: Bytes, permit: OwnedSemaphorePermit) {
        self.handle.cast(Msg::Received(link.clone(), words, permit));
    }

    /// The link is gone.
    pub(crate) fn down(&self, link: &Arc<Outlet>, why: DownReason) {
        self.exchange.topics.down(link, why);
        self.handle.cast(Msg::Down(link.clone(), why));
    }
}

fn proven(proven: &Proven) -> MutexGuard<'_, Vec<Equivocation>> {
    proven.lock()
}

/// A link, by its outlet.
struct Way(Arc<Outlet>);

impl PartialEq for Way {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

struct Inside {
    metrics: Metrics,
    trail: Trail,
    proven: Proven,
    events: BTreeMap<&'static str, EventSink>,
    consumers: BTreeMap<Topic, (Consumer, NoticeSink)>,
    links: Links<Way>,
}

impl Inside {
    fn announce(&self, event: &Event) {
        proven(&self.proven).extend(Equivocation::of_event(event));
        self.events.values().for_each(|sink| sink(event));
        for (consumer, sink) in self.consumers.values() {
            consumer.concern(event).into_iter().for_each(sink);
        }
    }

    fn deliver(&self, notice: &Notice<PeerMessage>) {
        self.consumers.values().for_each(|(_, sink)| sink(notice.clone()));
    }

    fn received(
        &self,
        link: Arc<Outlet>,
        words: &[u8],
        permit: OwnedSemaphorePermit,
    ) -> &'static str {
        let Ok(Words { topic, stamp, payload }) =
            codec::decode_versioned(VERSION, words, MAX_PAYLOAD)
        else {
            return "malformed";
        };
        if !self.trail.heard(stamp) {
            self.metrics.count(Count::Messages, "stamp_far_ahead");
        }
        let peer = link.peer().clone();
        if !self.links.is_up(&peer, &Way(link.clone())) {
            return "link_gone";
        }
        let Some((_, sink)) = self.consumers.get(&topic) else { return "no_subscriber" };
        sink(Notice::Message(peer, PeerMessage(Arc::new((payload, permit)), link)));
        "received"
    }
}

impl Process for Inside {
    const NAME: &'static str = "news";
    type Message = Msg;
    type Setup = (Metrics, Trail, Proven);

    async fn start(
        (metrics, trail, proven): Self::Setup,
        _myself: &Address<Msg>,
    ) -> Result<Self, ActorProcessingErr> {
        let (events, consumers, links) = (BTreeMap::new(), BTreeMap::new(), Links::default());
        Ok(Self { metrics, trail, proven, events, consumers, links })
    }

    fn handle(&mut self, message: Msg) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::Announce(event) => self.announce(&event),
            Msg::OnEvents(name, sink) => drop(self.events.insert(name, sink)),
            Msg::Attach(consumer, sink) => {
                if consumer.takes_proofs() {
                    let proven = proven(&self.proven).clone().into_iter();
                    proven.for_each(|proof| sink(Notice::Equivocation(Box::new(proof))));
                }
                self.links.all().for_each(&sink);
                self.consumers.insert(consumer.topic(), (consumer, sink));
            }
            Msg::Up(link, life) => {
                let notices = self.links.up(link.peer().clone(), life, Way(link));
                notices.iter().for_each(|notice| self.deliver(notice));
            }
            Msg::Received(link, words, permit) => {
                self.metrics.count(Count::Messages, self.received(link, &words, permit));
            }
            Msg::Down(link, why) => {
                let peer = link.peer().clone();
                let notices = self.links.down(&peer, &Way(link), why);
                notices.iter().for_each(|notice| self.deliver(notice));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests;
