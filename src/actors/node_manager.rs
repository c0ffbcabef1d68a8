//! NodeManager: who is a peer, where each stands, and whom to dial.
//!
//! - **Owns** the membership machine, and the view of all peers that everybody reads.
//! - **Hears** the link layer's reports, and hints from Discovery.
//! - **Says** commands to the link layer; every change of a peer as an event.
//! - **After a restart**: knows the links that live, because Link reports them to whoever attaches;
//!   every other peer of its last view that had not left is looked for where it was. Backoffs and the
//!   reasons of offline peers are forgotten.
//! - **Never** touches a socket; never lets a hint end a link.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

use ractor::ActorProcessingErr;
use rand::rngs::StdRng;
use tokio::sync::{oneshot, watch};

use crate::actors::link::{Link, Myself, Report};
use crate::actors::news::Bus;
use crate::actors::supervisor::{Address, Child, Handle, Mail, Process};
use crate::actors::timer;
use crate::io::clock;
use crate::io::metrics::Metrics;
use crate::proto::event::{Reason, Source};
use crate::proto::membership::{Config, Input, JoinView, Majority, Membership, Output, PeerView};
use crate::proto::node::{Contact, Incarnation, NodeId, NodeName};

/// One peer in the view.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Row {
    /// What the machine knows.
    pub peer: PeerView,
    /// The id of its key, once it has shown its certificate.
    pub id: Option<NodeId>,
    /// Since when it has its status, on the wall clock.
    pub since: SystemTime,
}

/// All peers, by name.
pub type View = Arc<Vec<Row>>;

/// Whether the node with these peers sees most of the cluster it knows.
#[must_use]
pub fn majority(view: &View) -> Majority {
    Majority::of(view.iter().map(|row| &row.peer))
}

/// What the actor is made from.
#[derive(Clone)]
pub struct Setup {
    /// The machine's settings.
    pub config: Config,
    /// Who this node is.
    pub myself: Myself,
    /// The link layer.
    pub link: Link,
    /// Where events go.
    pub bus: Bus,
    /// Counts the lives of this actor: attempts are numbered from it.
    pub lives: Arc<AtomicU64>,
    /// The nodes that are forgotten at this moment, with the life that is.
    pub forgotten: Arc<dyn Fn() -> Vec<(NodeName, Incarnation)> + Send + Sync>,
}

enum Msg {
    Report(Report),
    Hint(Contact, Source),
    Seed(std::net::SocketAddr),
    Namesake(std::net::SocketAddr),
    Silent(NodeName),
    Misbehaved(NodeName),
    Disconnect(NodeName),
    Forget(NodeName, Incarnation, bool),
    Revive(NodeName),
    Stop(oneshot::Sender<()>),
}

/// The handle.
#[derive(Clone)]
pub struct NodeManager {
    handle: Handle<Msg>,
    publish: Arc<watch::Sender<View>>,
    join: Arc<watch::Sender<JoinView>>,
}

impl NodeManager {
    /// A manager that does not run yet.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        let handle = Handle::new("node_manager", metrics);
        Self { handle, publish: Arc::default(), join: Arc::default() }
    }

    /// The child to put under a supervisor.
    #[must_use]
    pub fn child(&self, setup: Setup) -> Child {
        Child::actor::<Inside>(&self.handle, (setup, self.publish.clone(), self.join.clone()))
    }

    /// All peers, now and as they change.
    #[must_use]
    pub fn peers(&self) -> watch::Receiver<View> {
        self.publish.subscribe()
    }

    /// How joining goes, now and as that changes.
    #[must_use]
    pub fn joining(&self) -> watch::Receiver<JoinView> {
        self.join.subscribe()
    }

    /// Somebody says a node is at an address.
    pub fn hint(&self, contact: Contact, source: Source) {
        self.handle.cast(Msg::Hint(contact, source));
    }

    /// A node whose name is not known is said to be at this address.
    pub fn seed(&self, address: std::net::SocketAddr) {
        self.handle.cast(Msg::Seed(address));
    }

    /// Another process of this node's name was heard at this address.
    pub fn namesake(&self, address: std::net::SocketAddr) {
        self.handle.cast(Msg::Namesake(address));
    }

    /// A linked peer was not heard for too long: its link is given up.
    pub fn silent(&self, peer: NodeName) {
        self.handle.cast(Msg::Silent(peer));
    }

    /// A linked peer keeps breaking rules: its link is given up.
    pub fn misbehaved(&self, peer: NodeName) {
        self.handle.cast(Msg::Misbehaved(peer));
    }

    /// An operator ends the link to a peer.
    pub fn disconnect(&self, peer: NodeName) {
        self.handle.cast(Msg::Disconnect(peer));
    }

    /// That life of a node is forgotten; `known` says whether it was known beside the peers.
    pub fn forget(&self, node: NodeName, life: Incarnation, known: bool) {
        self.handle.cast(Msg::Forget(node, life, known));
    }

    /// A node is forgotten no more.
    pub fn revive(&self, node: NodeName) {
        self.handle.cast(Msg::Revive(node));
    }

    /// Says goodbye to all peers and takes no more links; answers when that is done.
    pub fn stop(&self, done: oneshot::Sender<()>) {
        self.handle.cast(Msg::Stop(done));
    }
}

struct Inside {
    setup: Setup,
    machine: Membership,
    publish: Arc<watch::Sender<View>>,
    join: Arc<watch::Sender<JoinView>>,
    ids: BTreeMap<NodeName, NodeId>,
    /// What the earlier life of this actor showed last.
    earlier: View,
}

impl Inside {
    /// Link has told which links live: every other peer is looked for where it was last.
    fn recall(&mut self) {
        for row in std::mem::take(&mut self.earlier).iter() {
            let PeerView { name, address, incarnation, reason, .. } = row.peer.clone();
            if let Some(address) = address.filter(|_| reason != Some(Reason::Left)) {
                let contact = Contact { name, address, incarnation };
                self.input(Input::Hint(contact, Source::Remembered));
            }
        }
        self.publish();
    }

    fn input(&mut self, input: Input) {
        let mut out = Vec::new();
        if !self.machine.handle(input, timer::now(), &mut out) {
            return;
        }
        // First the view, then the news: who hears of a change finds it there.
        self.publish();
        for output in out {
            self.perform(output);
        }
    }

    fn perform(&self, output: Output) {
        let link = &self.setup.link;
        match output {
            Output::Dial(attempt, address) => link.dial(attempt, address),
            Output::Proceed(attempt) => link.proceed(attempt),
            Output::Refuse(attempt, refusal) => link.refuse(attempt, refusal),
            Output::Abandon(attempt) => link.abandon(attempt),
            Output::Close(attempt, parting) => link.close(attempt, parting),
            // The event that comes with it has the store write it down.
            Output::Renew(Incarnation(to)) => {
                self.setup.myself.incarnation.store(to, Ordering::Relaxed);
            }
            Output::Announce(event) => self.setup.bus.announce(event),
        }
    }

    fn publish(&self) {
        self.publish.send_if_modified(|view| {
            let rows: Vec<_> = self.machine.peers().map(|peer| self.row(peer, view)).collect();
            let news = rows != **view;
            if news {
                *view = Arc::new(rows);
            }
            news
        });
        let joining = self.machine.joining();
        self.join.send_if_modified(|join| {
            let news = *join != joining;
            *join = joining;
            news
        });
    }

    /// A row keeps its time while its status lasts: a stepped wall clock does not move it.
    fn row(&self, peer: PeerView, before: &View) -> Row {
        let id = self.ids.get(&peer.name).copied();
        let at = before.binary_search_by(|row| row.peer.name.cmp(&peer.name)).ok();
        let same = at.and_then(|at| before.get(at)).filter(|row| row.peer.since == peer.since);
        let since = same.map_or_else(clock::wall, |row| row.since);
        Row { peer, id, since }
    }

    fn report(&mut self, report: Report) {
        let input = match report {
            Report::Connected(attempt, name, id) => {
                self.ids.insert(name.clone(), id);
                Input::Connected(attempt, name)
            }
            Report::Greeted(attempt, hello, id) => {
                self.ids.insert(hello.name.clone(), id);
                Input::Greeted(attempt, hello)
            }
            Report::Existing(attempt, hello, id, ready) => {
                self.ids.insert(hello.name.clone(), id);
                Input::Existing(attempt, hello, ready)
            }
            Report::Welcomed(attempt, hello) => Input::Welcomed(attempt, hello),
            Report::Confirmed(attempt) => Input::Confirmed(attempt),
            Report::Failed(attempt, failure) => Input::Failed(attempt, failure),
            Report::Ready(attempt) => Input::Ready(attempt),
            Report::Ended(attempt, end) => Input::Ended(attempt, end),
            Report::Revoked(attempt) => Input::Revoked(attempt),
            Report::Attached => return self.recall(),
        };
        self.input(input);
    }
}

impl Process for Inside {
    const NAME: &'static str = "node_manager";
    type Message = Msg;
    type Setup = (Setup, Arc<watch::Sender<View>>, Arc<watch::Sender<JoinView>>);

    async fn start(
        (setup, publish, join): Self::Setup,
        myself: &Address<Msg>,
    ) -> Result<Self, ActorProcessingErr> {
        let incarnation = Incarnation(setup.myself.incarnation.load(Ordering::Relaxed));
        let first_attempt = setup.lives.fetch_add(1, Ordering::Relaxed) << 32;
        let rng: StdRng = rand::make_rng();
        let name = setup.myself.name.clone();
        let machine = Membership::new(setup.config, name, incarnation, first_attempt, rng)
            .with_hello(setup.myself.boot, setup.myself.advertise);
        let to = myself.clone();
        // Reports to an earlier life of this actor have nobody to hear them: Link reports anew.
        setup.link.attach(move |report| drop(to.cast(Mail::Message(Msg::Report(report)))));
        let earlier = publish.borrow().clone();
        let mut inside = Self { setup, machine, publish, join, ids: BTreeMap::new(), earlier };
        for (name, life) in (inside.setup.forgotten)() {
            // It was announced when it became so.
            inside.machine.handle(
                Input::Forget { name, life, known: false },
                timer::now(),
                &mut vec![],
            );
        }
        Ok(inside)
    }

    fn handle(&mut self, message: Msg) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::Report(report) => self.report(report),
            Msg::Hint(contact, source) => self.input(Input::Hint(contact, source)),
            Msg::Seed(address) => self.input(Input::Seed(address)),
            Msg::Namesake(address) => self.input(Input::Namesake(address)),
            Msg::Silent(peer) => self.input(Input::Silent(peer)),
            Msg::Misbehaved(peer) => self.input(Input::Misbehaved(peer)),
            Msg::Disconnect(peer) => self.input(Input::Disconnect(peer)),
            Msg::Forget(name, life, known) => {
                self.input(Input::Forget { name: name.clone(), life, known });
                if self.machine.peer(&name).is_none() {
                    self.ids.remove(&name);
                }
            }
            Msg::Revive(name) => self.input(Input::Revive(name)),
            Msg::Stop(done) => {
                self.input(Input::Stop);
                self.setup.link.when_closed(done);
            }
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        self.machine.deadline()
    }

    fn tick(&mut self) -> Result<(), ActorProcessingErr> {
        self.input(Input::Tick);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
