//! EventLog: writes down what must outlast this run.
//!
//! - **Owns** the writes to the store: one at a time, on a blocking thread, batched.
//! - **Hears** events: a peer that came online, an incarnation that was raised.
//! - **Says** nothing but a warning when the disk fails; it tries again until it succeeds.
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
use crate::io::metrics::{Count, Metrics};
use crate::io::store::{Store, StoreError};
use crate::proto::event::Event;
use crate::proto::node::{Contact, Incarnation, NodeName};

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
}

impl EventLog {
    /// A log that does not run yet.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        Self { handle: Handle::new("event_log", metrics) }
    }

    /// The child to put under a supervisor.
    #[must_use]
    pub fn child(&self, setup: Setup) -> Child {
        Child::actor::<Inside>(&self.handle, setup)
    }
}

struct Inside {
    setup: Setup,
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
        let batch = std::mem::take(&mut self.pending);
        tokio::task::spawn_blocking(move || {
            let result = batch.write(&store);
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
    type Setup = Setup;

    async fn start(setup: Setup, myself: &Address<Msg>) -> Result<Self, ActorProcessingErr> {
        let to = myself.clone();
        setup.pubsub.on_events("event_log", move |event| {
            if matches!(event, Event::PeerOnline { .. } | Event::IncarnationRaised { .. }) {
                // The successor of an actor that ended subscribes anew.
                drop(to.cast(Mail::Message(Msg::Event(event.clone()))));
            }
        });
        let (myself, pending) = (myself.clone(), Batch::default());
        Ok(Self { setup, myself, pending, writing: false, failing: false, retry_at: None })
    }

    fn handle(&mut self, message: Msg) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::Event(Event::PeerOnline { peer, incarnation, address }) => {
                let contact = Contact { name: peer.clone(), address, incarnation };
                self.pending.peers.insert(peer, contact);
            }
            Msg::Event(Event::IncarnationRaised { to }) => {
                self.pending.incarnation = self.pending.incarnation.max(Some(to));
            }
            Msg::Event(_) => {}
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
