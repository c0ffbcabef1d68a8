//! Registry: who the nodes are, those of earlier runs and those that others know among them.
//!
//! - **Owns** the registry machine, the view of all known nodes that everybody reads, and its writes to the store: one
//!   at a time, on a blocking thread, batched.
//! - **Hears** that something changed (events); other registries' words on `network:registry`; an operator who has a
//!   node forgotten, and services that rate one.
//! - **Says** what this node is, and what it knows of others, to other registries; to NodeManager whom to look for no
//!   more, and whom again; warns when the disk fails, and tries again until it succeeds.
//! - **After a restart**: goes on from its view, which outlives it, and writes all of it once more.
//! - **Never** waits for the disk, nor for a remembered node; never ends a link itself (it asks NodeManager to).

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ractor::ActorProcessingErr;
use tokio::sync::{oneshot, watch};

use crate::actors::news::{Bus, Delivery};
use crate::actors::supervisor::{Address, Child, Handle, Mail, Process};
use crate::actors::timer;
use crate::io::clock;
use crate::io::metrics::{Count, Metrics, Timing};
use crate::io::store::{Known, Store, StoreError};
use crate::proto::codec;
use crate::proto::event::{Event, Reason, Status};
use crate::proto::frame::MAX_PAYLOAD;
use crate::proto::node::{Incarnation, NodeId, NodeName};
use crate::proto::registry::{Entry, Input, MAX_ROWS, Output, Profile, Registry as Machine, State};
use crate::proto::topic::Topic;

/// Changes come in bursts: they are looked at, and written, together.
const BURST: Duration = Duration::from_millis(20);
/// How often it is noted that linked nodes are still seen.
const TOUCH: Duration = Duration::from_secs(300);
/// Wait before a failed write is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// The first version of this node's entry is drawn up to here.
const FIRST: u64 = 1 << 20;

/// All nodes by name, this one and those that are forgotten among them. A clone shares them.
pub type Nodes = Arc<BTreeMap<NodeName, Arc<Known>>>;

/// What this node sees of one peer.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its name.
    pub name: NodeName,
    /// The id of its key, once it has shown its certificate.
    pub id: Option<NodeId>,
    /// Its latest known life.
    pub incarnation: Incarnation,
    /// Where it stands.
    pub status: Status,
    /// Why it is offline.
    pub reason: Option<Reason>,
    /// Where it was reached, or is looked for.
    pub address: Option<SocketAddr>,
    /// When its last byte arrived.
    pub heard: Option<Instant>,
}

/// What the actor is made from.
#[derive(Clone)]
pub struct Setup {
    /// This node's name.
    pub name: NodeName,
    /// The id of its key.
    pub id: NodeId,
    /// Where others reach it.
    pub address: SocketAddr,
    /// Its life; NodeManager may raise it.
    pub incarnation: Arc<AtomicU64>,
    /// What it says of itself.
    pub profile: Profile,
    /// The peers, at this moment.
    pub seen: Arc<dyn Fn() -> Vec<Seen> + Send + Sync>,
    /// A life of a node is forgotten; whether it was known here.
    pub forget: Arc<dyn Fn(NodeName, Incarnation, bool) + Send + Sync>,
    /// A node is forgotten no more.
    pub revive: Arc<dyn Fn(NodeName) + Send + Sync>,
    /// Ends the link of a peer that breaks the rules.
    pub cut: Arc<dyn Fn(NodeName) + Send + Sync>,
    /// The open store.
    pub store: Arc<Store>,
    /// The door.
    pub bus: Bus,
    /// Counters.
    pub metrics: Metrics,
}

enum Msg {
    Changed,
    Said(Delivery),
    Forget(NodeName, Incarnation),
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
    #[must_use]
    pub fn new(metrics: &Metrics, remembered: impl IntoIterator<Item = Known>) -> Self {
        let recalled = |mut known: Known| {
            // Whatever it was, it is not linked now.
            known.status = known.status.map(|_| Status::Offline);
            (known.name.clone(), Arc::new(known))
        };
        let nodes = Arc::new(remembered.into_iter().map(recalled).collect());
        let handle = Handle::new("registry", metrics);
        Self { handle, publish: Arc::new(watch::Sender::new(nodes)) }
    }

    /// The child to put under a supervisor.
    #[must_use]
    pub fn child(&self, setup: Setup) -> Child {
        Child::actor::<Inside>(&self.handle, (setup, self.publish.clone()))
    }

    /// All nodes, now and as they change.
    #[must_use]
    pub fn nodes(&self) -> watch::Receiver<Nodes> {
        self.publish.subscribe()
    }

    /// The nodes that are forgotten, with the life that is.
    #[must_use]
    pub fn forgotten(&self) -> Vec<(NodeName, Incarnation)> {
        let nodes = self.publish.borrow();
        let forgotten = nodes.values().filter(|known| known.is_forgotten());
        forgotten.map(|known| (known.name.clone(), known.incarnation)).collect()
    }

    /// Has a node forgotten, here and wherever it is heard of, unless it is linked. `life` is the latest known one.
    pub fn forget(&self, node: NodeName, life: Incarnation) {
        self.handle.cast(Msg::Forget(node, life));
    }

    /// Notes what the services of this node think of a node; false when it is not known.
    #[must_use]
    pub fn rate(&self, node: &NodeName, reputation: f64) -> bool {
        let known = self.publish.send_if_modified(|nodes| {
            let known = nodes.get(node).filter(|known| !known.is_forgotten());
            let Some(known) = known.map(|known| Known { reputation, ..Known::clone(known) }) else {
                return false;
            };
            Arc::make_mut(nodes).insert(node.clone(), Arc::new(known));
            true
        });
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

/// What is to be written.
#[derive(Clone, Debug, Default)]
struct Batch(BTreeSet<NodeName>);

struct Inside {
    setup: Setup,
    machine: Machine,
    publish: Arc<watch::Sender<Nodes>>,
    myself: Address<Msg>,
    linked: BTreeMap<NodeName, Incarnation>,
    incarnation: Incarnation,
    /// Nodes whose entries changed since they were shown.
    changed: BTreeSet<NodeName>,
    /// What NodeManager is to be told once it is shown.
    forgotten: Vec<(NodeName, Incarnation, bool)>,
    look_at: Option<Instant>,
    touch_at: Instant,
    pending: Batch,
    writing: bool,
    failing: bool,
    retry_at: Option<Instant>,
    closing: Option<oneshot::Sender<()>>,
}

impl Inside {
    fn input(&mut self, input: Input) {
        let mut out = Vec::new();
        self.machine.handle(input, timer::now(), &mut out);
        for output in out {
            match output {
                Output::Send(peer, word) => match codec::encode(&word) {
                    Ok(payload) => {
                        self.setup.bus.tell(&peer, Topic::network_registry(), payload);
                    }
                    Err(error) => tracing::error!(%error, "a registry word cannot be encoded"),
                },
                Output::Changed(node) => {
                    if self.machine.row(&node).is_none() {
                        (self.setup.revive)(node.clone());
                    }
                    self.changed.insert(node);
                    self.soon();
                }
                Output::Gone { origin, incarnation, known } => {
                    self.forgotten.push((origin, incarnation, known));
                }
                Output::Revived(node) => (self.setup.revive)(node),
                Output::Charge(peer, rule) => {
                    self.setup.metrics.count(Count::Registry, rule);
                    tracing::debug!(%peer, rule, "a peer's word about the nodes breaks a rule");
                }
                Output::Cut(peer) => {
                    tracing::warn!(%peer, "a peer keeps breaking the registry's rules");
                    (self.setup.cut)(peer);
                }
            }
        }
    }

    fn soon(&mut self) {
        self.look_at.get_or_insert(timer::now() + BURST);
    }

    /// Brings the machine and the view up to what the peers' view says now, and has written what changed.
    fn look(&mut self) {
        self.look_at = None;
        let incarnation = Incarnation(self.setup.incarnation.load(Ordering::Relaxed));
        if incarnation > self.incarnation {
            self.incarnation = incarnation;
            self.input(Input::Renewed(incarnation));
        }
        let seen = (self.setup.seen)();
        self.links(&seen);
        self.show(&seen);
        // First the view, then the news: who hears of it finds it there.
        for (node, life, known) in mem::take(&mut self.forgotten) {
            (self.setup.forget)(node, life, known);
        }
        self.write();
    }

    fn links(&mut self, seen: &[Seen]) {
        let online = seen.iter().filter(|peer| peer.status == Status::Online);
        let online: BTreeMap<_, _> = online.map(|it| (it.name.clone(), it.incarnation)).collect();
        let before = mem::replace(&mut self.linked, online.clone());
        for (peer, life) in &before {
            if online.get(peer) != Some(life) {
                self.input(Input::Unlinked(peer.clone()));
            }
        }
        for (peer, life) in online {
            if before.get(&peer) != Some(&life) {
                self.input(Input::Linked(peer, life));
            }
        }
    }

    /// Shows what changed. Nothing else than this writes the view, but ratings.
    fn show(&mut self, seen: &[Seen]) {
        let (now, at) = (clock::millis(), timer::now());
        let touch = self.closing.is_some() || self.touch_at <= at;
        if touch {
            self.touch_at = at + TOUCH;
        }
        let changed = mem::take(&mut self.changed);
        let (machine, pending, me) = (&self.machine, &mut self.pending.0, &self.setup.name);
        self.publish.send_if_modified(|view| {
            let mut nodes = BTreeMap::clone(view);
            for name in &changed {
                match machine.row(name) {
                    Some(entry) => {
                        let known = nodes.get(name).map(Arc::as_ref);
                        nodes.insert(name.clone(), Arc::new(with_entry(known, entry, now)));
                    }
                    None => drop(nodes.remove(name)),
                }
            }
            let mut news = !changed.is_empty();
            pending.extend(changed.iter().filter(|name| *name != me).cloned());
            for peer in seen {
                let known = nodes.get(&peer.name).map(Arc::as_ref);
                let heard = peer.heard.map(|heard| ago(now, at, heard));
                let room = nodes.len() < 2 * MAX_ROWS;
                let Some((known, matters)) = with_sight(known, peer, heard, (now, touch), room)
                else {
                    continue;
                };
                news = true;
                if matters {
                    pending.insert(peer.name.clone());
                }
                nodes.insert(peer.name.clone(), Arc::new(known));
            }
            if news {
                *view = Arc::new(nodes);
            }
            news
        });
    }

    fn said(&mut self, delivery: Delivery) {
        if !self.linked.contains_key(&delivery.from) {
            self.look(); // its first word may be faster than the news of its link
        }
        match codec::decode(&delivery.payload, MAX_PAYLOAD) {
            Ok(word) => self.input(Input::Received(delivery.from, word)),
            Err(_) => self.setup.metrics.count(Count::Door, "malformed"),
        }
    }

    fn write(&mut self) {
        if self.writing || self.retry_at.is_some() {
            return;
        }
        if self.pending.0.is_empty() {
            if let Some(done) = self.closing.take() {
                done.send(()).unwrap_or(()); // whoever waited may be gone
            }
            return;
        }
        self.writing = true;
        let batch = mem::take(&mut self.pending);
        let nodes = self.publish.borrow().clone();
        let (mut known, mut gone) = (Vec::new(), Vec::new());
        for name in &batch.0 {
            match nodes.get(name) {
                Some(node) => known.push(Known::clone(node)),
                None => gone.push(name.clone()),
            }
        }
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

    fn written(&mut self, batch: Batch, result: Result<(), StoreError>) {
        self.writing = false;
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
                self.pending.0.extend(batch.0);
                self.retry_at = Some(timer::now() + RETRY);
            }
        }
        self.write();
    }
}

/// A node of which this word is known now. One that is forgotten, or comes back from there, is a new one.
fn with_entry(known: Option<&Known>, entry: &Entry, now: u64) -> Known {
    let kept = known.filter(|known| entry.gone_at().is_none() && !known.is_forgotten());
    let mut known = kept.cloned().unwrap_or_else(|| Known::new(entry.origin.clone(), now));
    known.incarnation = known.incarnation.max(entry.incarnation);
    known.entry = Some(entry.clone());
    known
}

/// A node as it is seen now, and whether that is worth a write; `None` when nothing is new. One that was never linked
/// is not remembered, and one that is forgotten is not seen until it speaks up.
fn with_sight(
    known: Option<&Known>,
    peer: &Seen,
    heard: Option<u64>,
    (now, touch): (u64, bool),
    room: bool,
) -> Option<(Known, bool)> {
    let online = peer.status == Status::Online;
    let before = match known {
        Some(known) if known.is_forgotten() => return None,
        Some(known) => known.clone(),
        None if online && room => Known::new(peer.name.clone(), now),
        None => return None,
    };
    let was = before.status == Some(Status::Online);
    let mut after = before.clone();
    (after.status, after.reason) = (Some(peer.status), peer.reason);
    after.incarnation = after.incarnation.max(peer.incarnation);
    after.id = peer.id.or(after.id);
    if let Some(address) = peer.address.filter(|_| online)
        && after.addresses.first() != Some(&address)
    {
        after.reached(address);
    }
    if online != was || online && touch {
        after.last_seen = Some(now);
        after.last_heartbeat = heard.or(after.last_heartbeat);
    }
    let moves = !matches!(peer.status, Status::Online | Status::Offline);
    let on_its_way = Known { status: before.status, reason: before.reason, ..after.clone() };
    let matters = if moves && !was { on_its_way != before } else { after != before };
    (after != before).then_some((after, matters))
}

/// An instant by the wall clock, in milliseconds since 1970.
fn ago(wall: u64, now: Instant, at: Instant) -> u64 {
    let ago = now.saturating_duration_since(at).as_millis();
    wall.saturating_sub(u64::try_from(ago).unwrap_or(u64::MAX))
}

impl Process for Inside {
    const NAME: &'static str = "registry";
    type Message = Msg;
    type Setup = (Setup, Arc<watch::Sender<Nodes>>);

    async fn start(
        (setup, publish): Self::Setup,
        myself: &Address<Msg>,
    ) -> Result<Self, ActorProcessingErr> {
        let to = myself.clone();
        // The successor of an actor that ended subscribes anew.
        setup.bus.on_events("registry", move |event| {
            if !matches!(event, Event::LinkChanged { .. }) {
                drop(to.cast(Mail::Message(Msg::Changed)));
            }
        });
        let (to, topic) = (myself.clone(), Topic::network_registry());
        setup.bus.on_words("registry", topic, move |delivery| {
            drop(to.cast(Mail::Message(Msg::Said(delivery))));
        });
        let incarnation = Incarnation(setup.incarnation.load(Ordering::Relaxed));
        let now = timer::now();
        let nodes = publish.borrow().clone();
        let (version, wall) = (rand::random_range(1..=FIRST), clock::millis());
        let state = State::Live(setup.profile.clone());
        let own = Entry { origin: setup.name.clone(), incarnation, version, state };
        let remembered = nodes.values().filter_map(|known| known.entry.clone());
        let machine = Machine::new(own, remembered, now, wall, rand::make_rng());
        let own = Known {
            id: Some(setup.id),
            status: Some(Status::Online),
            addresses: vec![setup.address],
            ..Known::new(setup.name.clone(), setup.profile.started())
        };
        let known = nodes.get(&setup.name).map_or(own, |known| Known::clone(known));
        publish.send_modify(|nodes| {
            Arc::make_mut(nodes).insert(setup.name.clone(), Arc::new(known));
        });
        let changed = BTreeSet::from([setup.name.clone()]);
        // All of it: what an earlier life of this actor was about to write is not known.
        let pending = Batch(nodes.keys().filter(|name| **name != setup.name).cloned().collect());
        let mut inside = Self {
            setup,
            machine,
            publish,
            myself: myself.clone(),
            linked: BTreeMap::new(),
            incarnation,
            changed,
            forgotten: Vec::new(),
            look_at: None,
            touch_at: now + TOUCH,
            pending,
            writing: false,
            failing: false,
            retry_at: None,
            closing: None,
        };
        inside.look();
        Ok(inside)
    }

    fn handle(&mut self, message: Msg) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::Changed => self.soon(),
            Msg::Said(delivery) => self.said(delivery),
            Msg::Forget(node, life) => {
                self.look(); // one that is linked by now is not forgotten
                self.input(Input::Gone(node, life));
                self.look();
            }
            Msg::Rated(node) => {
                self.pending.0.insert(node);
                self.soon();
            }
            Msg::Written(batch, result) => self.written(batch, result),
            Msg::Close(done) => {
                self.closing = Some(done);
                self.look();
            }
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        let own = [self.look_at, self.retry_at, Some(self.touch_at), self.machine.deadline()];
        own.into_iter().flatten().min()
    }

    fn tick(&mut self) -> Result<(), ActorProcessingErr> {
        let now = timer::now();
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if due(self.machine.deadline()) {
            self.input(Input::Tick { wall: clock::millis() });
        }
        if due(self.retry_at) {
            self.retry_at = None;
            self.soon();
        }
        if due(self.look_at) || due(Some(self.touch_at)) {
            self.look();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
