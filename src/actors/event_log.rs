//! EventLog: notes what happens, and writes down what must outlast this run.
//!
//! - **Owns** the trail of events, and the writes to the store: one at a time, on a blocking thread, batched.
//! - **Hears** every event of this node.
//! - **Says** each one, with its number, to those who follow the trail; warns when the disk fails, and tries again until
//!   it succeeds.
//! - **After a restart**: writes of the moment may be missing; the next time the peer comes online it
//!   is remembered again, and an incarnation that was lost is raised again by the peers' refusal.
//! - **Never** waits for the disk itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ractor::ActorProcessingErr;

use crate::actors::pubsub::PubSub;
use crate::actors::supervisor::{Address, Child, Handle, Mail, Process};
use crate::actors::timer;
use crate::io::clock;
use crate::io::metrics::{Count, Metrics, Timing};
use crate::io::store::{Store, StoreError};
use crate::proto::event::Event;
use crate::proto::node::{Contact, Incarnation, NodeName};

mod trail;

pub use trail::{Follower, Noted, Page, Trail, WAITING, Wanted};

/// Wait before a failed write is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// What the actor is made from.
#[derive(Clone)]
pub struct Setup {
    /// The open store.
    pub store: Arc<Store>,
    /// Where events come from.
    pub pubsub: PubSub,
    /// Counters.
    pub metrics: Metrics,
}

#[derive(Clone, Debug, Default)]
struct Batch {
    peers: BTreeMap<NodeName, Contact>,
    incarnation: Option<Incarnation>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.peers.is_empty() && self.incarnation.is_none()
    }

    fn write(&self, store: &Store) -> Result<(), StoreError> {
        if let Some(to) = self.incarnation {
            store.raise(to)?;
        }
        let contacts: Vec<_> = self.peers.values().cloned().collect();
        store.remember(&contacts, clock::wall())
    }
}

enum Msg {
    Event(Event),
    Written(Batch, Result<(), StoreError>),
}

/// The handle.
#[derive(Clone)]
pub struct EventLog {
    handle: Handle<Msg>,
    trail: Trail,
}

impl EventLog {
    /// A log that does not run yet.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        Self { handle: Handle::new("event_log", metrics), trail: Trail::default() }
    }

    /// What happened. It outlives restarts of the actor.
    #[must_use]
    pub fn trail(&self) -> &Trail {
        &self.trail
    }

    /// The child to put under a supervisor.
    #[must_use]
    pub fn child(&self, setup: Setup) -> Child {
        Child::actor::<Inside>(&self.handle, (setup, self.trail.clone()))
    }
}

struct Inside {
    setup: Setup,
    trail: Trail,
    myself: Address<Msg>,
    pending: Batch,
    writing: bool,
    failing: bool,
    retry_at: Option<Instant>,
}

impl Inside {
    fn write(&mut self) {
        if self.writing || self.retry_at.is_some() || self.pending.is_empty() {
            return;
        }
        self.writing = true;
        let (store, to) = (self.setup.store.clone(), self.myself.clone());
        let (batch, metrics) = (std::mem::take(&mut self.pending), self.setup.metrics.clone());
        tokio::task::spawn_blocking(move || {
            let begun = timer::now();
            let result = batch.write(&store);
            metrics.took(Timing::StoreWrite, timer::now().saturating_duration_since(begun));
            // The successor of an actor that ended hears of the next event.
            drop(to.cast(Mail::Message(Msg::Written(batch, result))));
        });
    }

    fn written(&mut self, batch: Batch, result: Result<(), StoreError>) {
        self.writing = false;
        match result {
            Ok(()) => {
                self.setup.metrics.count(Count::Store, "ok");
                if std::mem::take(&mut self.failing) {
                    tracing::info!("the store can be written again");
                }
            }
            Err(error) => {
                self.setup.metrics.count(Count::Store, "failed");
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(%error, "peers are not being remembered; will try again");
                }
                // What came in meanwhile is newer.
                let newer = std::mem::replace(&mut self.pending, batch);
                self.pending.peers.extend(newer.peers);
                self.pending.incarnation = self.pending.incarnation.max(newer.incarnation);
                self.retry_at = Some(timer::now() + RETRY);
            }
        }
    }
}

impl Process for Inside {
    const NAME: &'static str = "event_log";
    type Message = Msg;
    type Setup = (Setup, Trail);

    async fn start(
        (setup, trail): (Setup, Trail),
        myself: &Address<Msg>,
    ) -> Result<Self, ActorProcessingErr> {
        let to = myself.clone();
        setup.pubsub.on_events("event_log", move |event| {
            // The successor of an actor that ended subscribes anew.
            drop(to.cast(Mail::Message(Msg::Event(event.clone()))));
        });
        let (myself, pending) = (myself.clone(), Batch::default());
        Ok(Self { setup, trail, myself, pending, writing: false, failing: false, retry_at: None })
    }

    fn handle(&mut self, message: Msg) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::Event(event) => {
                if let Event::PeerOnline { peer, incarnation, address } = &event {
                    let contact = Contact {
                        name: peer.clone(),
                        address: *address,
                        incarnation: *incarnation,
                    };
                    self.pending.peers.insert(peer.clone(), contact);
                }
                if let Event::IncarnationRaised { to } = &event {
                    self.pending.incarnation = self.pending.incarnation.max(Some(*to));
                }
                self.trail.note(event, clock::wall());
            }
            Msg::Written(batch, result) => self.written(batch, result),
        }
        self.write();
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        self.retry_at
    }

    fn tick(&mut self) -> Result<(), ActorProcessingErr> {
        self.retry_at = None;
        self.write();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
