//! TopologyTracker: who sees whom, in the whole cluster.
//!
//! - **Owns** the topology machine, and the view of the link matrix that everybody reads.
//! - **Hears** that something changed (events, and its own clock once a second); other trackers' words
//!   on `network:topology`.
//! - **Says** this node's side of each link, and what it knows of others, to other trackers.
//! - **After a restart**: builds its own row anew from the peers' view; the rows of others come back with
//!   the first digests, within about a second.
//! - **Never** writes another node's row; never ends a link itself (it asks NodeManager to).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ractor::ActorProcessingErr;
use tokio::sync::watch;

use crate::actors::news::{Bus, Delivery};
use crate::actors::supervisor::{Address, Child, Handle, Mail, Process};
use crate::actors::timer;
use crate::io::clock;
use crate::io::metrics::{Count, Metrics};
use crate::proto::codec;
use crate::proto::event::{Event, Reason, Status};
use crate::proto::frame::MAX_PAYLOAD;
use crate::proto::node::{Incarnation, NodeName};
use crate::proto::rows::{BURST, first_version};
use crate::proto::topic::Topic;
use crate::proto::topology::{Cell, Cells, Input, Output, Row, Topology};

/// How often measurements are looked at without any event.
const LOOK: Duration = Duration::from_secs(1);

/// One link, from one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge<'a> {
    /// Who sees.
    pub from: &'a NodeName,
    /// Whom.
    pub to: &'a NodeName,
    /// What.
    pub cell: &'a Cell,
}

/// The link matrix. A clone of it shares its rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matrix {
    /// Counts the changes of this view.
    pub version: u64,
    /// Equal on two nodes that know the same rows.
    pub agreement: u64,
    /// Since when a linked peer has lacked rows that this node has, if one does.
    pub apart: Option<Instant>,
    rows: BTreeMap<NodeName, Arc<Row>>,
    /// The latest known lives of the peers of this node.
    lives: BTreeMap<NodeName, Incarnation>,
    /// Nodes that are not shown, whoever still speaks of them.
    forgotten: BTreeSet<NodeName>,
}

impl Matrix {
    /// Every known side of a link, in the order of the two names.
    pub fn edges(&self) -> impl Iterator<Item = Edge<'_>> {
        let edges = self.rows.iter().flat_map(|(from, row)| edges(from, row.cells()));
        edges.filter(|edge| ![edge.from, edge.to].iter().any(|node| self.forgotten.contains(*node)))
    }

    /// Every node that has a row or is in one, with its latest known life.
    #[must_use]
    pub fn nodes(&self) -> BTreeMap<NodeName, Incarnation> {
        let life = |(name, row): (&NodeName, &Arc<Row>)| (name.clone(), row.incarnation);
        let rows = self.rows.iter().filter(|(name, _)| !self.forgotten.contains(*name));
        let mut nodes: BTreeMap<_, _> = rows.map(life).collect();
        for edge in self.edges().filter(|edge| !self.rows.contains_key(edge.to)) {
            let life = self.lives.get(edge.to).copied().unwrap_or_default();
            nodes.insert(edge.to.clone(), life);
        }
        nodes
    }
}

fn edges<'a>(from: &'a NodeName, cells: &'a Cells) -> impl Iterator<Item = Edge<'a>> {
    cells.iter().map(move |(to, cell)| Edge { from, to, cell })
}

/// What this node knows of one peer.
#[derive(Clone, Debug)]
pub struct Side {
    /// Its latest known life.
    pub incarnation: Incarnation,
    /// This node's side of the link.
    pub cell: Cell,
}

/// What the actor is made from.
#[derive(Clone)]
pub struct Setup {
    /// This node's name.
    pub name: NodeName,
    /// Its life; NodeManager may raise it.
    pub incarnation: Arc<AtomicU64>,
    /// This node's side of every link, at this moment.
    pub sides: Arc<dyn Fn() -> BTreeMap<NodeName, Side> + Send + Sync>,
    /// The nodes that are forgotten.
    pub forgotten: Arc<dyn Fn() -> BTreeSet<NodeName> + Send + Sync>,
    /// Ends the link of a peer that breaks the rules.
    pub cut: Arc<dyn Fn(NodeName) + Send + Sync>,
    /// The door.
    pub bus: Bus,
    /// Counters.
    pub metrics: Metrics,
}

enum Msg {
    Changed,
    Forgotten(NodeName),
    Said(Delivery),
}

/// The handle.
#[derive(Clone)]
pub struct TopologyTracker {
    handle: Handle<Msg>,
    publish: Arc<watch::Sender<Arc<Matrix>>>,
}

impl TopologyTracker {
    /// A tracker that does not run yet.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        let handle = Handle::new("topology_tracker", metrics);
        Self { handle, publish: Arc::new(watch::Sender::new(Arc::default())) }
    }

    /// The child to put under a supervisor.
    #[must_use]
    pub fn child(&self, setup: Setup) -> Child {
        Child::actor::<Inside>(&self.handle, (setup, self.publish.clone()))
    }

    /// The link matrix, now and as it changes.
    #[must_use]
    pub fn matrix(&self) -> watch::Receiver<Arc<Matrix>> {
        self.publish.subscribe()
    }
}

struct Inside {
    setup: Setup,
    machine: Topology,
    publish: Arc<watch::Sender<Arc<Matrix>>>,
    sides: BTreeMap<NodeName, Side>,
    linked: BTreeMap<NodeName, Incarnation>,
    incarnation: Incarnation,
    look_at: Instant,
    show_at: Option<Instant>,
}

impl Inside {
    fn input(&mut self, input: Input) {
        let mut out = Vec::new();
        self.machine.handle(input, timer::now(), &mut out);
        for output in out {
            match output {
                Output::Send(peer, word) => match codec::encode(&word) {
                    Ok(payload) => {
                        self.setup.bus.send(&peer, Topic::network_topology(), payload);
                    }
                    Err(error) => tracing::error!(%error, "a topology word cannot be encoded"),
                },
                Output::Changed(_) => {
                    self.show_at.get_or_insert(timer::now() + BURST);
                }
                Output::Gone { .. } | Output::Revived(_) => {}
                Output::Charge(peer, rule) => {
                    self.setup.metrics.count(Count::Topology, rule);
                    tracing::debug!(%peer, rule, "a peer's word about the topology breaks a rule");
                }
                Output::Cut(peer) => {
                    tracing::warn!(%peer, "a peer keeps breaking the topology's rules");
                    (self.setup.cut)(peer);
                }
            }
        }
    }

    /// Shows the matrix, and tells what is new in other nodes' rows.
    fn show(&self) {
        let rows = self.machine.rows().map(|row| (row.origin.clone(), row.clone())).collect();
        let lives =
            self.sides.iter().map(|(name, side)| (name.clone(), side.incarnation)).collect();
        let (version, agreement) = (self.machine.version(), self.machine.agreement());
        let apart = self.machine.apart();
        let forgotten = (self.setup.forgotten)();
        let matrix = Arc::new(Matrix { version, agreement, apart, rows, lives, forgotten });
        let before = self.publish.send_replace(matrix.clone());
        for event in changes(&before, &matrix, &self.setup.name) {
            self.setup.bus.announce(event);
        }
    }

    /// Brings the machine up to what the peers' view says now.
    fn look(&mut self) {
        let incarnation = Incarnation(self.setup.incarnation.load(Ordering::Relaxed));
        if incarnation > self.incarnation {
            self.incarnation = incarnation;
            self.input(Input::Renewed(incarnation));
        }
        let before = std::mem::replace(&mut self.sides, (self.setup.sides)());
        let sides = self.sides.clone();
        let gone: BTreeSet<_> = before.keys().filter(|peer| !sides.contains_key(*peer)).collect();
        for peer in gone {
            if self.linked.remove(peer).is_some() {
                self.input(Input::Unlinked(peer.clone()));
            }
            self.input(Input::Own(vec![(peer.clone(), None)]));
        }
        let mut cells = Vec::with_capacity(sides.len());
        for (peer, side) in sides {
            let online = side.cell.state == Status::Online;
            let was = self.linked.get(&peer).copied();
            if was.is_some() && was != Some(side.incarnation).filter(|_| online) {
                self.linked.remove(&peer);
                self.input(Input::Unlinked(peer.clone()));
            }
            if online && self.linked.insert(peer.clone(), side.incarnation).is_none() {
                self.input(Input::Linked(peer.clone(), side.incarnation));
            }
            let left = side.cell.reason == Some(Reason::Left);
            let news = before.get(&peer).is_none_or(|old| old.cell.reason != side.cell.reason);
            if left && news {
                self.input(Input::Gone(peer.clone(), side.incarnation));
            }
            cells.push((peer, Some(side.cell)));
        }
        self.input(Input::Own(cells));
        let apart = self.machine.apart();
        self.publish.send_if_modified(|matrix| {
            let news = matrix.apart != apart;
            if news {
                Arc::make_mut(matrix).apart = apart;
            }
            news
        });
        self.look_at = timer::now() + LOOK;
    }

    /// A node is forgotten: what it said of its links is, too.
    fn forget(&mut self, node: NodeName) {
        let side = self.sides.get(&node).map(|side| side.incarnation);
        self.look();
        let row = self.machine.row_of(&node).map(|row| row.incarnation);
        if let Some(life) = side.max(row).filter(|_| !self.sides.contains_key(&node)) {
            self.input(Input::Gone(node, life));
        }
        self.show();
    }

    fn said(&mut self, delivery: Delivery) {
        match codec::decode(&delivery.payload, MAX_PAYLOAD) {
            Ok(word) => self.input(Input::Received(delivery.from, word)),
            Err(_) => self.setup.metrics.count(Count::Door, "malformed"),
        }
    }
}

/// What changed between two matrices in the rows of nodes other than `me`.
fn changes(before: &Matrix, after: &Matrix, me: &NodeName) -> Vec<Event> {
    let says = |cell: &Cell| (cell.state, cell.suspect, cell.reason);
    let mut events = Vec::new();
    for (from, row) in after.rows.iter().filter(|(from, _)| *from != me) {
        let old = before.rows.get(from);
        if old.is_some_and(|old| Arc::ptr_eq(old, row)) {
            continue;
        }
        for Edge { from, to, cell } in edges(from, row.cells()) {
            let same = old.and_then(|old| old.cells().get(to)).map(says) == Some(says(cell));
            if !same {
                let (from, to) = (from.clone(), to.clone());
                let (state, suspect, reason) = says(cell);
                events.push(Event::LinkChanged { from, to, state, suspect, reason });
            }
        }
    }
    events
}

impl Process for Inside {
    const NAME: &'static str = "topology_tracker";
    type Message = Msg;
    type Setup = (Setup, Arc<watch::Sender<Arc<Matrix>>>);

    async fn start(
        (setup, publish): Self::Setup,
        myself: &Address<Msg>,
    ) -> Result<Self, ActorProcessingErr> {
        let to = myself.clone();
        // The successor of an actor that ended subscribes anew.
        setup.bus.on_events("topology_tracker", move |event| {
            if let Event::PeerForgotten { peer } = event {
                drop(to.cast(Mail::Message(Msg::Forgotten(peer.clone()))));
            } else if !matches!(event, Event::LinkChanged { .. }) {
                drop(to.cast(Mail::Message(Msg::Changed)));
            }
        });
        let (to, topic) = (myself.clone(), Topic::network_topology());
        setup.bus.on_words("topology_tracker", topic, move |delivery| {
            drop(to.cast(Mail::Message(Msg::Said(delivery))));
        });
        let incarnation = Incarnation(setup.incarnation.load(Ordering::Relaxed));
        let (name, now) = (setup.name.clone(), timer::now());
        let (wall, mut rng) = (clock::millis(), rand::make_rng());
        let first = first_version(&mut rng);
        let machine = Topology::new(name, incarnation, first, now, wall, rng);
        let (sides, linked) = (BTreeMap::new(), BTreeMap::new());
        let (look_at, show_at) = (now, None);
        let mut inside =
            Self { setup, machine, publish, sides, linked, incarnation, look_at, show_at };
        inside.look();
        inside.show();
        Ok(inside)
    }

    fn handle(&mut self, message: Msg) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::Changed => self.look_at = self.look_at.min(timer::now() + BURST),
            Msg::Forgotten(node) => self.forget(node),
            Msg::Said(delivery) => self.said(delivery),
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        let machine = self.machine.deadline();
        machine.into_iter().chain(self.show_at).chain([self.look_at]).min()
    }

    fn tick(&mut self) -> Result<(), ActorProcessingErr> {
        let now = timer::now();
        if self.look_at <= now {
            self.look();
        }
        if self.machine.deadline().is_some_and(|at| at <= now) {
            self.input(Input::Tick { wall: clock::millis() });
        }
        if self.show_at.is_some_and(|at| at <= now) {
            self.show_at = None;
            self.show();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
