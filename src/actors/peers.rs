//! Peers: where the peers of this node stand, and what may be asked of NodeManager about them.
//!
//! The one place where actors read who is a peer. NodeManager publishes the view, HeartbeatMonitor the vital signs,
//! Discovery the times of beacons; every actor may name this handle, as it may name `link`. It outlives restarts of
//! those actors. Invariants:
//! 1. A change is published before the event that announces it.
//! 2. A consumer gets no notice while nothing changes, and one of all measurements within a second.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::actors::supervisor::Handle;
use crate::actors::timer;
use crate::io::metrics::Metrics;
use crate::proto::heartbeat::Signs;
use crate::proto::link::Report;
use crate::proto::membership::{JoinView, Majority, PeerView};
use crate::proto::node::{Contact, Incarnation, NodeId, NodeName};
use crate::proto::wiring::{self, Ask, Consumer, Forgotten, Measurements, Notice};

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
pub fn majority(view: &View) -> Majority {
    Majority::of(view.iter().map(|row| &row.peer))
}

/// The latest vital signs.
pub type Vitals = Arc<Signs>;

/// What NodeManager receives.
pub(super) enum Msg {
    Report(Report),
    Ask(Ask),
    Disconnect(NodeName),
    Stop(oneshot::Sender<()>),
}

/// The handle.
#[derive(Clone)]
pub struct Peers {
    pub(super) handle: Handle<Msg>,
    view: Arc<watch::Sender<View>>,
    join: Arc<watch::Sender<JoinView>>,
    vitals: Arc<watch::Sender<Vitals>>,
    /// When the last believed beacon of each node arrived.
    beacons: Arc<Mutex<BTreeMap<NodeName, Instant>>>,
    forgotten: Arc<Mutex<Forgotten>>,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Peers")
    }
}

/// What is known.
impl Peers {
    /// No peers yet, and no NodeManager that runs; these lives are forgotten.
    pub fn new(
        metrics: &Metrics,
        forgotten: impl IntoIterator<Item = (NodeName, Incarnation)>,
    ) -> Self {
        Self::of(Handle::new("node_manager", metrics), forgotten)
    }

    fn of(
        handle: Handle<Msg>,
        forgotten: impl IntoIterator<Item = (NodeName, Incarnation)>,
    ) -> Self {
        Self {
            handle,
            view: Arc::default(),
            join: Arc::default(),
            vitals: Arc::new(watch::Sender::new(Vitals::default())),
            beacons: Arc::default(),
            forgotten: Arc::new(Mutex::new(Forgotten::new(forgotten))),
        }
    }

    /// All peers now.
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// All peers, now and as they change.
    pub fn subscribe(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    /// All peers' vital signs, renewed with every beat.
    pub fn vitals(&self) -> Vitals {
        self.vitals.borrow().clone()
    }

    /// How joining goes.
    pub fn joining(&self) -> JoinView {
        self.join.borrow().clone()
    }

    /// What the machine knows of all peers.
    pub(super) fn known(&self) -> Vec<PeerView> {
        self.view().iter().map(|row| row.peer.clone()).collect()
    }

    /// The peers that are linked, with their addresses.
    pub(super) fn contacts(&self) -> Vec<Contact> {
        wiring::contacts(self.view().iter().map(|row| &row.peer))
    }

    /// The lives that are forgotten, of nodes that are no peers again.
    pub(super) fn forgotten(&self) -> BTreeMap<NodeName, Incarnation> {
        self.forgotten.lock().of_no_peer(self.view().iter().map(|row| &row.peer))
    }

    /// When the last beacon of a node arrived.
    pub(super) fn beacon_of(&self, node: &NodeName) -> Option<Instant> {
        self.beacons.lock().get(node).copied()
    }

    /// Tells a consumer when what it reads has changed, as long as `tasks` lives: measurements at most once in
    /// [`MEASURED`].
    pub(super) fn follow<M>(
        &self,
        consumer: Consumer,
        tasks: &mut JoinSet<()>,
        sink: impl Fn(Notice<M>) + Clone + Send + 'static,
    ) {
        if consumer.reads_view() {
            let (mut view, sink) = (self.view.subscribe(), sink.clone());
            tasks.spawn(async move {
                while view.changed().await.is_ok() {
                    sink(Notice::Changed);
                }
            });
        }
        if consumer.reads_measurements() {
            let mut vitals = self.vitals.subscribe();
            let mut measurements = Measurements::new(timer::now());
            tasks.spawn(async move {
                while vitals.changed().await.is_ok() {
                    if measurements.are_due(timer::now()) {
                        sink(Notice::Changed);
                    }
                }
            });
        }
    }
}

/// What is published, each by one actor.
impl Peers {
    /// NodeManager: the peers stand so.
    pub(crate) fn publish(&self, rows: impl FnOnce(&View) -> Vec<Row>) {
        self.view.send_if_modified(|view| {
            let rows = rows(view);
            let changed = rows != **view;
            if changed {
                *view = Arc::new(rows);
            }
            changed
        });
    }

    /// NodeManager: joining goes so.
    pub(super) fn publish_joining(&self, joining: JoinView) {
        self.join.send_if_modified(|join| {
            let changed = *join != joining;
            *join = joining;
            changed
        });
    }

    /// HeartbeatMonitor: the vital signs are these.
    pub(super) fn publish_vitals(&self, signs: Signs) {
        self.vitals.send_replace(Arc::new(signs));
    }

    /// Discovery: a beacon of a node arrived.
    pub(super) fn heard_beacon(&self, node: NodeName) {
        let mut beacons = self.beacons.lock();
        beacons.insert(node, timer::now());
    }
}

/// What NodeManager is asked for.
impl Peers {
    /// What a machine wants of the peers.
    pub(super) fn ask(&self, ask: Ask) {
        self.forgotten.lock().asked(&ask);
        self.handle.cast(Msg::Ask(ask));
    }

    /// An operator ends the link to a peer.
    pub fn disconnect(&self, peer: NodeName) {
        self.handle.cast(Msg::Disconnect(peer));
    }

    /// Says goodbye to all peers and takes no more links; answers when that is done.
    pub fn stop(&self, done: oneshot::Sender<()>) {
        self.handle.cast(Msg::Stop(done));
    }
}

#[cfg(test)]
pub(crate) mod tests {
    //! The mock of NodeManager that others test against.

    use std::net::Ipv4Addr;

    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;
    use crate::actors::tests::{next, probe, settled};
    use crate::io::clock;
    use crate::proto::event::{Reason, Status};

    /// Stands in for NodeManager: records what it is asked for and does nothing.
    pub(crate) struct Mock(UnboundedReceiver<Msg>);

    impl Mock {
        pub(crate) async fn start() -> (Peers, Self) {
            let (handle, asked) = probe("node_manager").await;
            (Peers::of(handle, []), Self(asked))
        }

        pub(crate) async fn next(&mut self) -> Ask {
            Self::ask(next(&mut self.0).await)
        }

        /// What has arrived already.
        pub(crate) fn heard(&mut self) -> Option<Ask> {
            self.0.try_recv().ok().map(Self::ask)
        }

        fn ask(message: Msg) -> Ask {
            if let Msg::Ask(ask) = message { ask } else { panic!("not of an actor") }
        }
    }

    /// A peer that is linked, in its first life.
    pub(crate) fn online(name: NodeName) -> Row {
        let peer = PeerView {
            name,
            address: Some((Ipv4Addr::LOCALHOST, 1).into()),
            status: Status::Online,
            reason: None,
            cause: None,
            incarnation: Incarnation(1),
            since: timer::now(),
        };
        Row { peer, id: None, since: clock::wall() }
    }

    /// One that is not, for this reason.
    pub(crate) fn offline(name: NodeName, reason: Option<Reason>) -> Row {
        let Row { peer, id, since } = online(name);
        Row { peer: PeerView { status: Status::Offline, reason, ..peer }, id, since }
    }

    impl Peers {
        /// The peers are these, sorted by name.
        pub(crate) fn show(&self, rows: impl IntoIterator<Item = Row>) {
            let mut rows: Vec<_> = rows.into_iter().collect();
            rows.sort_by(|a, b| a.peer.name.cmp(&b.peer.name));
            self.publish(|_| rows);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_consumer_gets_no_notice_without_a_change_and_few_of_measurements() {
        let (peers, _mock) = Mock::start().await;
        let (tx, mut heard) = unbounded_channel();
        let mut tasks = JoinSet::new();
        peers.follow(Consumer::TopologyTracker, &mut tasks, move |notice: Notice<()>| {
            assert_eq!(notice, Notice::Changed);
            tx.send(()).expect("the test listens");
        });
        peers.follow(Consumer::Discovery, &mut tasks, |_: Notice<()>| panic!("it reads no view"));
        tokio::time::sleep(wiring::MEASURED * 60).await;
        assert!(heard.try_recv().is_err(), "nothing changed");
        let b = || "b@h".parse().expect("valid");
        for rows in [vec![online(b())], vec![], vec![online(b())]] {
            peers.show(rows);
            settled().await;
        }
        assert_eq!([(); 4].map(|()| heard.try_recv().is_ok()), [true, true, true, false]);
        peers.publish(|view| view.to_vec());
        settled().await;
        assert!(heard.try_recv().is_err(), "published again, and the same");
        for health in [0, 1, 0, 1] {
            peers.publish_vitals(Signs { local_health: health, ..Signs::default() });
            settled().await;
        }
        assert_eq!((heard.try_recv(), heard.try_recv().is_ok()), (Ok(()), false));
    }
}
