//! TopologyTracker: who sees whom, in the whole cluster.
//!
//! - **Owns** the topology machine (in `Tracker`), and the view of the link matrix that everybody reads.
//! - **Hears** which links are up and down, with other trackers' words on `network:topology`; that the peers' view,
//!   a doubt or a measurement changed.
//! - **Says** this node's side of each link, and what it knows of others, to other trackers.
//! - **After a restart**: builds its own row anew from the peers' view and is told the links that are up; the rows of
//!   others come back with the first digests, within about a second.
//! - **Never** writes another node's row; never ends a link itself (it asks NodeManager to).

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, UNIX_EPOCH};

use ractor::ActorProcessingErr;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::actors::news::{Bus, PeerMessage, measure};
use crate::actors::peers::{Peers, Row};
use crate::actors::supervisor::{Address, Child, Handle, Mail, Process};
use crate::actors::timer;
use crate::io::clock;
use crate::io::identity::Identity;
use crate::io::metrics::{Count, Metrics};
use crate::io::seals::NodeSeals;
use crate::proto::codec;
use crate::proto::frame::MAX_PAYLOAD;
use crate::proto::node::{Incarnation, NodeName};
use crate::proto::topic::Topic;
use crate::proto::topology::tracker::Output;
use crate::proto::topology::{Matrix, Side, Sides, Topology, Tracker, Word};
use crate::proto::wiring::{Consumer, Notice};

/// What the actor is made from.
#[derive(Clone)]
pub struct Setup {
    /// This node's name.
    pub name: NodeName,
    /// Whose seal its own row bears.
    pub identity: Arc<Identity>,
    /// Its life; NodeManager may raise it.
    pub incarnation: Arc<AtomicU64>,
    /// The peers, of which this node's sides of links are made, and who is forgotten.
    pub peers: Peers,
    /// The bus.
    pub bus: Bus,
    /// Counters.
    pub metrics: Metrics,
}

enum Msg {
    Notice(Notice<PeerMessage>),
    /// This node leaves, and who waits until others are informed of it.
    Leave(oneshot::Sender<()>),
}

/// The handle.
#[derive(Clone)]
pub struct TopologyTracker {
    handle: Handle<Msg>,
    publish: Arc<watch::Sender<Arc<Matrix>>>,
}

impl std::fmt::Debug for TopologyTracker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TopologyTracker")
    }
}

impl TopologyTracker {
    /// A tracker that does not run yet.
    pub fn new(metrics: &Metrics) -> Self {
        let handle = Handle::new("topology_tracker", metrics);
        Self { handle, publish: Arc::new(watch::Sender::new(Arc::default())) }
    }

    /// The child to put under a supervisor.
    pub fn child(&self, setup: Setup) -> Child {
        Child::actor::<Inside>(&self.handle, (setup, self.publish.clone()))
    }

    /// Informs others that this node leaves, and answers when that is on its way.
    pub fn leave(&self, done: oneshot::Sender<()>) {
        self.handle.cast(Msg::Leave(done));
    }

    /// The link matrix, now and as it changes.
    pub fn matrix(&self) -> watch::Receiver<Arc<Matrix>> {
        self.publish.subscribe()
    }
}

struct Inside {
    setup: Setup,
    tracker: Tracker,
    publish: Arc<watch::Sender<Arc<Matrix>>>,
    _tasks: JoinSet<()>,
}

impl Inside {
    fn perform(&self, out: Vec<Output>) {
        // Most words go to many peers, one after the other.
        let mut last: Option<(Word, Vec<u8>)> = None;
        for output in out {
            match output {
                Output::Send(peer, word) => {
                    let same = last.take_if(|(last, _)| *last == word);
                    let encoded = same.map_or_else(|| codec::encode(&word), |(_, it)| Ok(it));
                    match encoded {
                        Ok(payload) => {
                            self.setup.bus.send(&peer, Topic::network_topology(), payload.clone());
                            last = Some((word, payload));
                        }
                        Err(error) => tracing::error!(%error, "a topology word cannot be encoded"),
                    }
                }
                Output::Charge(peer, rule) => {
                    self.setup.metrics.count(Count::Topology, rule);
                    tracing::debug!(%peer, rule, "a peer's word about the topology breaks a rule");
                }
                Output::Announce(event) => self.setup.bus.announce(event),
                Output::Ask(ask) => {
                    tracing::warn!(?ask, "a peer keeps breaking the topology's rules");
                    self.setup.peers.ask(ask);
                }
            }
        }
        let apart = self.tracker.machine().apart();
        self.publish.send_if_modified(|matrix| {
            let changed = matrix.apart != apart;
            if changed {
                Arc::make_mut(matrix).apart = apart;
            }
            changed
        });
    }

    /// Shows the matrix, and tells what is new in other nodes' rows.
    fn show(&mut self) {
        let forgotten = self.setup.peers.forgotten().into_keys().collect();
        let before = self.publish.borrow().clone();
        let (matrix, events) = self.tracker.show(&before, forgotten, timer::now());
        self.publish.send_replace(Arc::new(matrix));
        events.into_iter().for_each(|event| self.setup.bus.announce(event));
    }
}

/// What the node sees of its peers.
fn sides(setup: &Setup) -> Arc<Sides> {
    let vitals = setup.peers.vitals();
    let side = |row: &Row| {
        let since = row.since.duration_since(UNIX_EPOCH).unwrap_or_default();
        let since = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        (row.peer.name.clone(), Side::new(&row.peer, since, vitals.peers.get(&row.peer.name)))
    };
    Arc::new(setup.peers.view().iter().map(side).collect())
}

impl Process for Inside {
    const NAME: &'static str = "topology_tracker";
    type Message = Msg;
    type Setup = (Setup, Arc<watch::Sender<Arc<Matrix>>>);

    async fn start(
        (setup, publish): Self::Setup,
        myself: &Address<Msg>,
    ) -> Result<Self, ActorProcessingErr> {
        let (to, mut tasks) = (myself.clone(), JoinSet::new());
        // The successor of an actor that ended attaches anew.
        let sink = move |notice| drop(to.cast(Mail::Message(Msg::Notice(notice))));
        setup.bus.attach(Consumer::TopologyTracker, sink.clone());
        setup.peers.follow(Consumer::TopologyTracker, &mut tasks, sink);
        let incarnation = Incarnation(setup.incarnation.load(Ordering::Relaxed));
        let (name, now) = (setup.name.clone(), timer::now());
        let (wall, mut rng) = (clock::millis(), rand::make_rng());
        let first = publish.borrow().next_version(&name, incarnation, &mut rng);
        let seals = Box::new(NodeSeals::new(setup.identity.clone()));
        let machine = Topology::new(name.clone(), incarnation, first, now, wall, rng, seals);
        let mut tracker = Tracker::new(name, machine);
        let mut out = Vec::new();
        tracker.look(sides(&setup), now, &mut out);
        let mut inside = Self { setup, tracker, publish, _tasks: tasks };
        inside.perform(out);
        inside.show();
        Ok(inside)
    }

    fn handle(&mut self, message: Msg) -> Result<(), ActorProcessingErr> {
        let (now, mut out) = (timer::now(), Vec::new());
        let _paid = if let Msg::Notice(notice) = &message { measure(notice) } else { None };
        match message {
            Msg::Notice(notice) => match notice.read(|it| codec::decode(&it, MAX_PAYLOAD)) {
                Ok(notice) => self.tracker.handle(notice, || sides(&self.setup), now, &mut out),
                Err(_) => self.setup.metrics.count(Count::Messages, "malformed"),
            },
            Msg::Leave(done) => {
                self.tracker.leave(now, &mut out);
                self.perform(mem::take(&mut out));
                done.send(()).unwrap_or(()); // the caller may have stopped waiting
            }
        }
        self.perform(out);
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        self.tracker.deadline()
    }

    fn tick(&mut self) -> Result<(), ActorProcessingErr> {
        let mut out = Vec::new();
        let show =
            self.tracker.tick(|| sides(&self.setup), clock::millis(), timer::now(), &mut out);
        self.perform(out);
        if show {
            self.show();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
