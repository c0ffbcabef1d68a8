//! What the unit tests of the actors share: a small tree, identities of one cluster, and waiting.

use std::marker::PhantomData;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::actors::link::{Link, Myself};
use crate::actors::lists::{self, ListKeeper};
use crate::actors::news::Bus;
use crate::actors::supervisor::{
    ActorTable, Address, Child, Handle, Process, Root, Runner, Tree, start,
};
use crate::io::clock;
use crate::io::identity::{Authority, Identity, Validity};
use crate::io::metrics::Metrics;
use crate::proto::hello::Offer;
use crate::proto::node::{Contact, Incarnation, NodeName};
use crate::proto::restart::{Intensity, Strategy};

/// No test waits longer for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Runs these actors under one supervisor; the later ones restart with an earlier one.
pub(crate) async fn run(metrics: &Metrics, children: Vec<Child>) -> (Root, ActorTable) {
    let roster = ActorTable::default();
    let tree = Tree {
        name: "root",
        strategy: Strategy::RestForOne,
        intensity: Intensity::default(),
        children,
        roster: roster.clone(),
        metrics: metrics.clone(),
        ended: Arc::new(|_, _, _| {}),
    };
    (start(tree, ()).await.expect("starts"), roster)
}

/// The next thing in a channel.
pub(crate) async fn next<T>(rx: &mut UnboundedReceiver<T>) -> T {
    tokio::time::timeout(PATIENCE, rx.recv()).await.expect("in time").expect("not closed")
}

/// Waits until something holds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect(what);
}

/// In paused time: returns when every task waits for something from outside.
pub(crate) async fn settled() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

/// A counter's value; a part of its name is enough.
pub(crate) fn counted(metrics: &Metrics, counter: &str, kind: &str) -> u64 {
    let text = metrics.text().expect("text");
    let kind = format!("=\"{kind}\"}} ");
    let line = text.lines().find(|line| line.contains(counter) && line.contains(&kind));
    line.and_then(|line| line.rsplit(' ').next()).map_or(0, |n| n.parse().expect("a number"))
}

/// The identities of these nodes, all of one new cluster.
pub(crate) fn cluster(names: &[&str]) -> Vec<Identity> {
    let dir = tempfile::tempdir().expect("a directory");
    let now = clock::wall();
    let authority = Authority::init(dir.path(), now).expect("a CA");
    let issue = |text: &&str| {
        authority.issue(dir.path(), &name(text), Validity::leaf(now)).expect("a leaf")
    };
    names.iter().map(issue).collect()
}

/// The identity of a node, of one cluster with the others that this names.
pub(crate) fn identity(of: &str) -> Arc<Identity> {
    static NODES: LazyLock<Vec<Arc<Identity>>> = LazyLock::new(|| {
        cluster(&["a@h", "b@h", "c@h", "x@h"]).into_iter().map(Arc::new).collect()
    });
    NODES.iter().find(|it| it.name().as_str() == of).expect("one of these").clone()
}

pub(crate) fn name(text: &str) -> NodeName {
    text.parse().expect("valid")
}

pub(crate) fn contact(text: &str, port: u16, incarnation: u64) -> Contact {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    Contact { name: name(text), address, incarnation: Incarnation(incarnation) }
}

/// What a node with this identity says of itself in its first life.
pub(crate) fn myself(identity: &Identity, advertise: SocketAddr) -> Myself {
    Myself {
        name: identity.name().clone(),
        cluster: identity.cluster(),
        incarnation: Arc::new(AtomicU64::new(1)),
        boot: 7,
        advertise,
        offer: Offer::OWN,
        lists: identity.lists(),
    }
}

/// What keeps the lists of a node with this identity, and no store.
pub(crate) fn keeper(identity: &Identity, bus: &Bus, metrics: &Metrics, link: &Link) -> ListKeeper {
    let link = link.clone();
    ListKeeper::new(lists::Setup {
        lists: identity.lists(),
        own: Box::new(|| false),
        store: None,
        bus: bus.clone(),
        metrics: metrics.clone(),
        judge: Box::new(move || link.input(crate::proto::link::Input::Judge)),
        trust: Box::new(|| {}),
    })
}

/// For the tests of others: an actor that hands on everything it hears, so that any handle can be
/// mocked. It lives as long as the test's runtime.
pub(crate) async fn probe<M: Send + 'static>(
    name: &'static str,
) -> (Handle<M>, UnboundedReceiver<M>) {
    let (heard, hears) = unbounded_channel();
    let runner = Runner::<Forward<M>>(PhantomData);
    let (address, _) = Actor::spawn(None, runner, heard).await.expect("a probe always starts");
    let handle = Handle::new(name, &Metrics::default());
    handle.point(address);
    (handle, hears)
}

struct Forward<M>(UnboundedSender<M>);

impl<M: Send + 'static> Process for Forward<M> {
    const NAME: &'static str = "forward";
    type Message = M;
    type Setup = UnboundedSender<M>;

    async fn start(heard: Self::Setup, _myself: &Address<M>) -> Result<Self, ActorProcessingErr> {
        Ok(Self(heard))
    }

    fn handle(&mut self, message: M) -> Result<(), ActorProcessingErr> {
        drop(self.0.send(message)); // a test that stopped listening has seen enough
        Ok(())
    }
}
