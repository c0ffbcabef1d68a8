//! Registry: who the nodes are, those of earlier runs and those that others know among them.
//!
//! - **Owns** the registry machine, the view of all known nodes that everybody reads, and its writes to the store: one
//!   at a time, on a blocking thread, batched, one in five seconds once changes go on.
//! - **Hears** which links are up and down, with other registries' words on `network:registry`; that the peers' view
//!   changed; an operator who has a node forgotten or takes that back, and services that rate one.
//! - **Says** what this node is, and what it knows of others, to other registries; to NodeManager whom to look for no
//!   more, and whom again; warns when the disk fails, and tries again until it succeeds.
//! - **After a restart**: goes on from its view, which outlives it, and writes all of it once more.
//! - **Never** waits for the disk, nor for a remembered node; never ends a link itself (it asks NodeManager to).

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use ractor::ActorProcessingErr;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::actors::news::{Bus, PeerMessage, measure};
use crate::actors::peers::{Peers, Row};
use crate::actors::supervisor::{Address, Child, Handle, Mail, Process};
use crate::actors::timer;
use crate::io::clock;
use crate::io::identity::Identity;
use crate::io::metrics::{Count, Metrics, Timing};
use crate::io::seals::NodeSeals;
use crate::io::store::{Store, StoreError};
use crate::proto::codec;
use crate::proto::event::Operator;
use crate::proto::frame::MAX_PAYLOAD;
use crate::proto::node::{Incarnation, NodeName};
use crate::proto::registry::Known;
use crate::proto::registry::book::{self, Batch, Book, Input, Nodes, Output, Own, Seen};
use crate::proto::share::{Rate, Share};
use crate::proto::topic::Topic;
use crate::proto::wiring::{Ask, Consumer, Notice};

/// How often nodes are written: each write waits for the disk, and while a cluster forms something changes all the time.
const WRITES: Rate = Rate { second: 0.2, burst: 4.0 };

/// What the actor is made from.
#[derive(Clone)]
pub struct Setup {
    /// What this node is.
    pub own: Own,
    /// Whose seal it bears.
    pub identity: Arc<Identity>,
    /// Its life; NodeManager may raise it.
    pub incarnation: Arc<AtomicU64>,
    /// The peers; whom to look for no more, and whom again.
    pub peers: Peers,
    /// The open store.
    pub store: Arc<Store>,
    /// The bus.
    pub bus: Bus,
    /// Counters.
    pub metrics: Metrics,
}

enum Msg {
    Notice(Notice<PeerMessage>),
    Forget(NodeName, Incarnation, Operator),
    Restore(NodeName, Operator),
    Rated(NodeName),
    Written(Batch, Result<(), StoreError>),
    Close(oneshot::Sender<()>),
}

/// The handle.
#[derive(Clone)]
pub struct Registry {
    handle: Handle<Msg>,
    publish: Arc<watch::Sender<Nodes>>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Registry")
    }
}

impl Registry {
    /// A registry that does not run yet and remembers these.
    pub fn new(metrics: &Metrics, remembered: impl IntoIterator<Item = Known>) -> Self {
        let nodes = book::recalled(remembered);
        let handle = Handle::new("registry", metrics);
        Self { handle, publish: Arc::new(watch::Sender::new(nodes)) }
    }

    /// The child to put under a supervisor.
    pub fn child(&self, setup: Setup) -> Child {
        Child::actor::<Inside>(&self.handle, (setup, self.publish.clone()))
    }

    /// All nodes now.
    pub fn nodes(&self) -> Nodes {
        self.publish.borrow().clone()
    }

    /// The nodes that are forgotten, with the life that is.
    pub fn forgotten(&self) -> Vec<(NodeName, Incarnation)> {
        book::forgotten(&self.publish.borrow())
    }

    /// Has a node forgotten, here and wherever it is heard of, unless it is linked. `life` is the latest known one.
    pub fn forget(&self, node: NodeName, life: Incarnation, operator: Operator) {
        self.handle.cast(Msg::Forget(node, life, operator));
    }

    /// Has a node that is forgotten known again, here and wherever it is heard of.
    pub fn restore(&self, node: NodeName, operator: Operator) {
        self.handle.cast(Msg::Restore(node, operator));
    }

    /// Notes what the services of this node think of a node; false when it is not known.
    #[must_use]
    pub fn rate(&self, node: &NodeName, reputation: f64) -> bool {
        let known = self.publish.send_if_modified(|nodes| book::rate(nodes, node, reputation));
        if known {
            self.handle.cast(Msg::Rated(node.clone()));
        }
        known
    }

    /// Notes who is seen at the end, and answers when that is written.
    pub fn close(&self, done: oneshot::Sender<()>) {
        self.handle.cast(Msg::Close(done));
    }

    /// In a test kit, where no actor runs: a node is known so.
    #[cfg(feature = "testkit")]
    pub(crate) fn imagine(&self, node: &NodeName, change: impl FnOnce(&mut Known)) {
        self.publish.send_modify(|nodes| {
            let new = || Arc::new(Known::new(node.clone(), clock::millis()));
            let known = Arc::make_mut(nodes).entry(node.clone()).or_insert_with(new);
            change(Arc::make_mut(known));
        });
    }
}

struct Inside {
    setup: Setup,
    book: Book,
    publish: Arc<watch::Sender<Nodes>>,
    myself: Address<Msg>,
    failing: bool,
    closing: Option<oneshot::Sender<()>>,
    /// What is written once the disk has rested.
    waiting: Option<Write>,
    writes: Share,
    _tasks: JoinSet<()>,
}

/// Nodes that are to be written and to be removed.
struct Write {
    batch: Batch,
    known: Vec<Known>,
    gone: Vec<NodeName>,
}

impl Inside {
    fn input(&mut self, input: Input) {
        let Self { setup, book, publish, .. } = self;
        let (now, mut out) = ((timer::now(), clock::millis()), Vec::new());
        let seen = || {
            let vitals = setup.peers.vitals();
            let seen = |row: &Row| Seen::new(&row.peer, row.id, vitals.peers.get(&row.peer.name));
            setup.peers.view().iter().map(seen).collect()
        };
        publish.send_if_modified(|nodes| book.handle(input, &seen, nodes, now, &mut out));
        out.into_iter().for_each(|output| self.perform(output));
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Send(peer, word) => match codec::encode(&word) {
                Ok(payload) => {
                    self.setup.bus.send(&peer, Topic::network_registry(), payload);
                }
                Err(error) => tracing::error!(%error, "a registry word cannot be encoded"),
            },
            Output::Ask(ask) => {
                if let Ask::Cut(peer) = &ask {
                    tracing::warn!(%peer, "a peer keeps breaking the registry's rules");
                }
                self.setup.peers.ask(ask);
            }
            Output::Announce(event) => self.setup.bus.announce(event),
            Output::Charge(peer, rule) => {
                self.setup.metrics.count(Count::Registry, rule);
                tracing::debug!(%peer, rule, "a peer's word about the nodes breaks a rule");
            }
            Output::Write { batch, known, gone } => {
                self.waiting = Some(Write { batch, known, gone });
                self.write();
            }
            Output::Closed => {
                if let Some(done) = self.closing.take() {
                    done.send(()).unwrap_or(()); // the caller may have stopped waiting
                }
            }
        }
    }

    /// Writes what waits, once it may. At the end nothing waits.
    fn write(&mut self) {
        let now = timer::now();
        let due = self.writes.ready(now).is_none() || self.closing.is_some();
        let Some(Write { batch, known, gone }) = self.waiting.take_if(|_| due) else { return };
        self.writes.spend(1, now);
        let (store, to) = (self.setup.store.clone(), self.myself.clone());
        let metrics = self.setup.metrics.clone();
        tokio::task::spawn_blocking(move || {
            let begun = timer::now();
            let result = store.remember(&known, &gone);
            metrics.took(Timing::StoreWrite, timer::now().saturating_duration_since(begun));
            // The successor of an actor that ended writes everything anew.
            drop(to.cast(Mail::Message(Msg::Written(batch, result))));
        });
    }

    /// Counts a write, and logs the first that failed and the first that succeeded again.
    fn note(&mut self, result: &Result<(), StoreError>) {
        match result {
            Ok(()) => {
                self.setup.metrics.count(Count::Store, "ok");
                if mem::take(&mut self.failing) {
                    tracing::info!("nodes are being remembered again");
                }
            }
            Err(error) => {
                self.setup.metrics.count(Count::Store, "failed");
                if !mem::replace(&mut self.failing, true) {
                    tracing::warn!(%error, "nodes are not being remembered; will try again");
                }
            }
        }
    }
}

impl Process for Inside {
    const NAME: &'static str = "registry";
    type Message = Msg;
    type Setup = (Setup, Arc<watch::Sender<Nodes>>);

    async fn start(
        (setup, publish): Self::Setup,
        myself: &Address<Msg>,
    ) -> Result<Self, ActorProcessingErr> {
        let (to, mut tasks) = (myself.clone(), JoinSet::new());
        // The successor of an actor that ended attaches anew.
        let sink = move |notice| drop(to.cast(Mail::Message(Msg::Notice(notice))));
        setup.bus.attach(Consumer::Registry, sink.clone());
        setup.peers.follow(Consumer::Registry, &mut tasks, sink);
        let incarnation = Incarnation(setup.incarnation.load(Ordering::Relaxed));
        let (own, now, wall) = (setup.own.clone(), timer::now(), clock::millis());
        let nodes = publish.borrow().clone();
        let seals = Box::new(NodeSeals::new(setup.identity.clone()));
        let book = Book::new(own, incarnation, &nodes, now, wall, rand::make_rng(), seals);
        drop(nodes);
        let mut inside = Self {
            setup,
            book,
            publish,
            myself: myself.clone(),
            failing: false,
            closing: None,
            waiting: None,
            writes: Share::new(WRITES, now),
            _tasks: tasks,
        };
        inside.tick()?; // the first look
        Ok(inside)
    }

    fn handle(&mut self, message: Msg) -> Result<(), ActorProcessingErr> {
        let _paid = if let Msg::Notice(notice) = &message { measure(notice) } else { None };
        match message {
            Msg::Notice(notice) => match notice.read(|word| codec::decode(&word, MAX_PAYLOAD)) {
                Ok(notice) => self.input(Input::Notice(notice)),
                Err(_) => self.setup.metrics.count(Count::Messages, "malformed"),
            },
            Msg::Forget(node, life, operator) => self.input(Input::Forget(node, life, operator)),
            Msg::Restore(node, operator) => self.input(Input::Restore(node, operator)),
            Msg::Rated(node) => self.input(Input::Rated(node)),
            Msg::Written(batch, result) => {
                self.note(&result);
                self.input(Input::Written(batch, result.is_ok()));
            }
            Msg::Close(done) => {
                self.closing = Some(done);
                self.write();
                self.input(Input::Close);
            }
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        let now = timer::now();
        let write = self.waiting.as_ref().map(|_| self.writes.ready(now).unwrap_or(now));
        self.book.deadline().into_iter().chain(write).min()
    }

    fn tick(&mut self) -> Result<(), ActorProcessingErr> {
        self.write();
        self.input(Input::Tick);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
