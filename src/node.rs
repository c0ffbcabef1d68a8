//! Floor 5: a node, from its configuration to its last goodbye.
//!
//! [`Node::start`] opens what is outside (identity, store, sockets), so that whatever is wrong there
//! is one clear error before anything runs, and then starts the supervision tree of `tree`. One
//! node per process: ractor's registries are process-wide.
//!
//! A service that embeds a node starts it with [`Node::builder`] and talks through its [`NodeHandle`], which
//! the [`testkit`] has too:
//!
//! ```
//! use std::time::Duration;
//! use xpando_node::{Bytes, Node, Request};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! let node = Node::builder("svc@127.0.0.1")
//!     .certs(dir.path().join("certs"))
//!     .data_dir(dir.path().join("data"))
//!     .listen("127.0.0.1:0")
//!     .beacons(false)
//!     .start()
//!     .await?;
//! let _serving = node.serve("shout", |request: Request| async move {
//!     Ok(Bytes::from(request.payload.to_ascii_uppercase()))
//! })?;
//! let reply = node.call("shout", "hello", Duration::from_secs(5)).await?;
//! assert_eq!(reply, "HELLO");
//! node.shutdown().await;
//! # Ok(())
//! # }
//! ```

use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::actors::channel_router::{self, Presences, Publisher};
use crate::actors::discovery;
use crate::actors::event_log::Journal;
use crate::actors::exchange::{Exchange, Request, ServeError, Serving};
use crate::actors::files::Files;
use crate::actors::history_log::Recorder;
use crate::actors::link::{Link, Myself};
use crate::actors::lists::{self, ListKeeper};
use crate::actors::news::Bus;
use crate::actors::peers::Peers;
use crate::actors::registry::Registry;
use crate::actors::supervisor::{self, Root};
use crate::actors::topology_tracker::TopologyTracker;
#[cfg(feature = "gateway")]
use crate::gateway::channels::{Channels, handler::Channel};
use crate::gateway::clients::Clients;
use crate::gateway::view::NodeView;
use crate::gateway::{history, rotation, sight};
use crate::io::identity::enrol::kept_places;
use crate::io::identity::{Identity, IdentityError, Made};
#[cfg(feature = "gateway")]
use crate::io::identity::{Tokens, provider::ProviderError};
use crate::io::metrics::Metrics;
use crate::io::places::NoPlace;
use crate::io::seeds::SeedError;
use crate::io::sockets::{AdminSocket, SocketError};
use crate::io::store::{Chain, Opened, Store, StoreError};
use crate::io::tls::{Tls, TlsError, WebError};
use crate::io::{beacon, clock};
#[cfg(feature = "gateway")]
use crate::proto::channel::family::FamilyError;
use crate::proto::event::Event;
use crate::proto::history::HistoryError;
use crate::proto::link;
use crate::proto::lists::ListKind;
use crate::proto::node::{Incarnation, NameError, NodeName};
use crate::proto::registry::{Known, ProfileError};
use crate::proto::topic::Name;

pub mod bench;
mod builder;
#[cfg(feature = "gateway")]
mod clients;
mod config;
mod ended;
mod handle;
mod listen;
mod records;
#[cfg(feature = "testkit")]
pub mod testkit;
mod tree;

pub use builder::Builder;
pub use config::Config;
pub use handle::{NodeError, NodeHandle, TooFew};

use listen::{admin_socket, advertise, listen};
use tree::{Parts, Planted, tree};

/// What a log filter had better contain: ractor warns of each session that ends, in good order or not, and the node
/// itself logs what matters of that.
pub const QUIET: &str = "ractor=error,ractor_cluster=error";
/// Time for what was published last.
const FLUSH: Duration = Duration::from_secs(1);
/// Time for the last events to be stored.
const KEEP: Duration = Duration::from_secs(2);
/// Time for goodbyes at the end.
const GOODBYE: Duration = Duration::from_secs(2);

/// Why a node did not start. Whatever had been opened is closed again; the operator must act.
///
/// Its `Debug` is its text, which is what a `main` that returns it prints.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Another node runs in this process.
    #[error(
        "another node runs in this process: shut it down first, or start this one in a process of its own"
    )]
    Second,
    /// The node's name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// An address to join at.
    #[error("cannot join: {0}")]
    Join(SeedError),
    /// What is given to [`Builder::listen`], [`Builder::advertise`] or [`Builder::http`].
    #[error("{0:?} is not ADDR:PORT (for example 10.0.0.1:4697 or [::1]:4697)")]
    Address(String),
    /// What the node says of itself.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// How much of which topics is kept.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// [`Builder::channels`].
    #[cfg(feature = "gateway")]
    #[error(transparent)]
    Channels(#[from] FamilyError),
    /// A directory that was not named has no default.
    #[error(transparent)]
    Place(#[from] NoPlace),
    /// Certificates or keys.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// An identity provider.
    #[cfg(feature = "gateway")]
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// The identity does not make a TLS configuration.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The data directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The host of the node's name is unknown here.
    #[error("the host of {name} cannot be looked up: {cause}; pass {flag} ADDR:PORT")]
    Host {
        /// The node's name.
        name: NodeName,
        /// What the system says.
        cause: std::io::Error,
        /// What says where the node is.
        flag: &'static str,
    },
    /// The host of the node's name is no address that other machines can use, and nothing tells which of this machine's
    /// addresses is.
    #[error(
        "the host of {name} is {found:?} here, which no other machine can use: pass {flag} ADDR:PORT (this machine has {own:?}), or correct /etc/hosts"
    )]
    Home {
        /// The node's name.
        name: NodeName,
        /// The addresses of its host.
        found: Vec<IpAddr>,
        /// The addresses of this machine that others may reach.
        own: Vec<IpAddr>,
        /// What says where the node is.
        flag: &'static str,
    },
    /// The address to listen on.
    #[error("cannot listen on {address}: {cause}; choose another with --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        cause: std::io::Error,
    },
    /// `--advertise` or `--listen` leaves no address that others could dial.
    #[error("others cannot dial {address} ({why}): pass --advertise ADDR:PORT")]
    Advertise {
        /// The address.
        address: SocketAddr,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The admin socket.
    #[error("the admin socket: {0}")]
    Admin(SocketError),
    /// The address for HTTP clients.
    #[error("cannot listen for clients on {address}: {cause}; choose another with --http")]
    Http {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        cause: std::io::Error,
    },
    /// The certificate for HTTP clients.
    #[error(transparent)]
    Web(#[from] WebError),
    /// The names that every node serves.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// What [`Builder::linked`] waits for did not come. The node has left its cluster again.
    #[error(transparent)]
    TooFew(#[from] TooFew),
    /// An actor failed at its first start.
    #[error("cannot start: {0}")]
    Spawn(String),
}

impl std::fmt::Debug for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl From<SocketError> for StartError {
    fn from(error: SocketError) -> Self {
        Self::Admin(error)
    }
}

impl From<SeedError> for StartError {
    fn from(error: SeedError) -> Self {
        Self::Join(error)
    }
}

/// The one node of the process: groups of actors and ractor's sessions are the process's.
struct OnlyNode;

/// Whether there is one.
static RUNNING: AtomicBool = AtomicBool::new(false);

impl OnlyNode {
    fn new() -> Result<Self, StartError> {
        let runs = RUNNING.swap(true, Ordering::AcqRel);
        if runs { Err(StartError::Second) } else { Ok(Self) }
    }
}

impl Drop for OnlyNode {
    fn drop(&mut self) {
        RUNNING.store(false, Ordering::Release);
    }
}

/// A running node. It is a [`NodeHandle`] with everything behind it. It stops when it is dropped, without the goodbyes of
/// [`Node::shutdown`]: its peers see their links lost.
#[derive(Debug)]
#[must_use = "a node stops when it is dropped"]
pub struct Node {
    handle: NodeHandle,
    listen: SocketAddr,
    incarnation: Arc<AtomicU64>,
    http: Option<SocketAddr>,
    clients: Arc<Clients>,
    publisher: Publisher,
    presences: Presences,
    #[cfg(feature = "gateway")]
    channels: Arc<Channels>,
    peers: Peers,
    tracker: TopologyTracker,
    files: Files,
    journal: Journal,
    recorder: Option<Recorder>,
    root: Root,
    _served: Vec<Serving>,
    _admin_socket: Arc<AdminSocket>,
}

impl Deref for Node {
    type Target = NodeHandle;

    fn deref(&self) -> &NodeHandle {
        &self.handle
    }
}

impl Node {
    /// A node to start, with the defaults of the command line.
    pub fn builder(name: impl Into<String>) -> Builder {
        Builder::new(name.into())
    }

    /// Opens everything and starts.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let only = OnlyNode::new()?;
        let now = clock::wall();
        // The lock on the data directory comes first: a second start changes nothing.
        let (store, opened) = Store::open(&config.data_dir, now)?;
        let store = Arc::new(store);
        let started = Self::start_with(config, only, store.clone(), opened).await;
        if started.is_err() {
            store.unmake();
        }
        started
    }

    async fn start_with(
        mut config: Config,
        only: OnlyNode,
        store: Arc<Store>,
        opened: Opened,
    ) -> Result<Self, StartError> {
        let metrics = config.metrics.clone();
        // What may fail comes before what makes an identity, which stays.
        let (listener, listen) = listen(&config).await?;
        let advertise = advertise(&config, listen).await?;
        #[cfg(feature = "gateway")]
        let http =
            config.http.as_ref().map(|it| clients::listen(it, &config.data_dir)).transpose()?;
        let remembered = records::remembered(&store, &config.name);
        // Those of earlier runs are known to be there, and those that are named are meant.
        if config.join.is_empty() && remembered.is_empty() {
            config.join = kept_places(&config.certs, &config.name);
        }
        let identity = Arc::new(identity(&config, &remembered).await?);
        let tls = Tls::new(&identity)?;
        #[cfg(feature = "gateway")]
        let http = http.map(|clients| clients.with(&identity)).transpose()?;
        #[cfg(not(feature = "gateway"))]
        let http = None;
        let incarnation = store.begin_life()?;
        let life = Arc::new(AtomicU64::new(incarnation.0));
        let may = identity.capabilities();
        let bus = Bus::new(&Exchange::limited(config.name.clone(), may, &metrics));
        let chain = Chain::new(store.clone(), config.name.clone())?;
        let publisher = Publisher::new(bus.exchange());
        let recorder = records::recorder(&config, incarnation, &bus, (&publisher, &metrics))?;
        let (trail, limits) = (bus.trail().clone(), config.events);
        let journal = Journal::open(chain, trail, identity.clone(), life.clone(), limits)?;
        bus.recall(journal.proofs());
        records::say_started(&bus, opened, &identity);
        let link = Link::new(&metrics);
        let lists = lists((&identity, &tls), &link, &store, (&bus, &metrics))?;
        let admin_socket = admin_socket(&config)?;
        let myself = Myself {
            name: config.name.clone(),
            cluster: identity.cluster(),
            incarnation: life,
            boot: rand::random(),
            advertise,
            offer: config.offer,
            lists: lists.lists().clone(),
        };
        let interface = beacon::interface(advertise.ip());
        let parts = Parts {
            socket: config.beacons.then(|| discovery::socket(interface)).flatten(),
            #[cfg(feature = "gateway")]
            tokens: Tokens::of(lists.lists()),
            lists,
            link,
            publisher,
            recorder,
            identity,
            files: Files::new(&metrics),
            listener: Arc::new(listener),
            tls,
            store,
            journal,
            profile: config.profile.clone().begun(clock::millis()),
            remembered: remembered.iter().flat_map(Known::contacts).collect(),
            registry: Registry::new(&metrics, remembered),
            listen,
            http,
            admin_socket: (admin_socket.listener(), Arc::downgrade(&admin_socket)),
            metrics,
            myself,
        };
        Self::run(&config, only, parts, &bus, admin_socket).await
    }

    /// Starts the supervision tree over what is open.
    async fn run(
        config: &Config,
        only: OnlyNode,
        parts: Parts,
        bus: &Bus,
        admin_socket: Arc<AdminSocket>,
    ) -> Result<Self, StartError> {
        let incarnation = parts.myself.incarnation.clone();
        let peers = Peers::new(&parts.metrics, parts.registry.forgotten());
        let handle = NodeHandle::new(bus.clone(), peers.subscribe(), parts.registry.clone());
        let (listen, http) = (parts.listen, parts.http.as_ref().map(|it| it.address));
        let (files, journal, publisher) =
            (parts.files.clone(), parts.journal.clone(), parts.publisher.clone());
        let recorder = parts.recorder.clone();
        let planted = tree(config, parts, &peers, bus);
        #[cfg(feature = "gateway")]
        let channels = planted.channels;
        let Planted { tree, view, offer, tracker, router, .. } = planted;
        let mut served = serve(&view, config.bench)?;
        served.push(channel_router::answer(bus.exchange(), &router, &publisher)?);
        offer.look()?;
        let root = supervisor::start(tree, only).await;
        let root = root.map_err(|error| StartError::Spawn(error.to_string()))?;
        tracing::info!(
            name = %config.name, %listen, incarnation = incarnation.load(Ordering::Relaxed),
            http = http.map(tracing::field::display), "node ready"
        );
        Ok(Self {
            http,
            clients: view.clients,
            publisher,
            presences: Presences::new(&router),
            #[cfg(feature = "gateway")]
            channels,
            handle,
            listen,
            incarnation,
            peers,
            tracker,
            files,
            journal,
            recorder,
            root,
            _served: served,
            _admin_socket: admin_socket,
        })
    }

    /// Where it listens for links.
    #[must_use]
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Where it listens for clients over HTTP.
    #[must_use]
    pub fn http(&self) -> Option<SocketAddr> {
        self.http
    }

    /// Gives topics to a channel: their clients are this service's. A later one comes before an earlier one, and before the
    /// node's own rooms; what tells of the nodes no service takes.
    ///
    /// # Errors
    /// [`NodeError::Text`].
    #[cfg(feature = "gateway")]
    pub fn channel(&self, pattern: &str, channel: impl Channel) -> Result<(), NodeError> {
        self.channels.handlers().add(handle::read(pattern)?, channel);
        Ok(())
    }

    /// Publishes to all clients that joined a topic, on every node.
    #[must_use]
    pub fn publisher(&self) -> &Publisher {
        &self.publisher
    }

    /// Who is in which topic, on all nodes: tracks, lists and follows.
    #[must_use]
    pub fn presence(&self) -> &Presences {
        &self.presences
    }

    /// Its life.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        Incarnation(self.incarnation.load(Ordering::Relaxed))
    }

    /// Its handle, for the parts of a service that outlive a borrow of the node.
    #[must_use]
    pub fn handle(&self) -> &NodeHandle {
        &self.handle
    }

    /// Looks at once at the files that it follows anyway: certificates, keys, lists, sockets.
    pub fn reload(&self) {
        self.files.look();
    }

    /// Returns when the node cannot go on: its supervision tree gave up.
    pub async fn failed(&mut self) {
        self.root.failed().await;
    }

    /// Leaves the cluster: sends what waits, as far as that goes within a second, says goodbye to every
    /// peer, and stops.
    pub async fn shutdown(self) {
        self.handle.bus().announce(Event::NodeStopping);
        self.clients.stop();
        self.presences.router().hand_on(FLUSH).await;
        if tokio::time::timeout(FLUSH, self.handle.exchange().flushed()).await.is_err() {
            tracing::warn!("not every peer took what was published");
        }
        let (leave, left) = oneshot::channel();
        self.tracker.leave(leave);
        let informed = async {
            drop(left.await); // a tracker that does not run has informed nobody
            self.handle.exchange().flushed().await;
        };
        if tokio::time::timeout(FLUSH, informed).await.is_err() {
            tracing::warn!("not every peer took it in time that this node leaves");
        }
        let [(done, said), (noted, written)] = [oneshot::channel(), oneshot::channel()];
        self.handle.registry().close(noted);
        self.peers.stop(done);
        if tokio::time::timeout(GOODBYE, said).await.is_err() {
            tracing::warn!("not every peer took the goodbye in time");
        }
        if tokio::time::timeout(FLUSH, written).await.is_err() {
            tracing::warn!("who was seen last could not be written down");
        }
        match tokio::time::timeout(KEEP, self.journal.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the last events are not remembered"),
            Err(_) => tracing::error!("the last events are not remembered: the disk hangs"),
        }
        self.root.stop().await;
        let life = Incarnation(self.incarnation.load(Ordering::Relaxed));
        records::close(self.recorder, &self.publisher, life).await;
        tracing::info!(name = %self.handle.name(), "stopped");
    }
}

/// The names that every node serves.
fn serve(view: &NodeView, bench: bool) -> Result<Vec<Serving>, ServeError> {
    let bus = &view.bus;
    let echo = bus
        .exchange()
        .serve(Name::echo(), |request: Request| async move { Ok(request.payload) })?;
    let mut served = vec![echo];
    served.extend([sight::serve(view)?, history::serve(view)?, rotation::serve(&view.rotations)?]);
    if bench {
        served.push(bench::serve(&view.name, bus)?);
    }
    Ok(served)
}

/// Who this node is; what had to be made for that is logged.
async fn identity(config: &Config, remembered: &[Known]) -> Result<Identity, IdentityError> {
    let load = || Identity::load_or_develop(&config.certs, &config.name, clock::wall());
    let loaded = match load() {
        Err(error) if error.is_expired() => {
            let addresses = remembered.iter().flat_map(|known| &known.addresses);
            let places = addresses.filter_map(|address| address.to_string().parse().ok());
            ended::renew(config, places.collect()).await;
            load()
        }
        loaded => loaded,
    };
    let (identity, made) = loaded?;
    let certs = config.certs.display();
    let fingerprint = identity.authority_fingerprint();
    match made {
        Made::AuthorityAndLeaf => tracing::warn!(
            %certs, %fingerprint, "made a DEVELOPMENT certificate authority and a certificate for this node"
        ),
        Made::Leaf => {
            tracing::info!(%certs, authority = %fingerprint, "made a certificate for this node")
        }
        Made::Nothing => {}
    }
    Ok(identity)
}

/// What the authority has signed: the later of what was in force before and of what lies there now, before anything is
/// judged by it.
fn lists(
    (identity, tls): (&Arc<Identity>, &Tls),
    link: &Link,
    store: &Arc<Store>,
    (bus, metrics): (&Bus, &Metrics),
) -> Result<ListKeeper, IdentityError> {
    let (own, owner, shown, judge) =
        (identity.clone(), identity.clone(), tls.clone(), link.clone());
    let keeper = ListKeeper::new(lists::Setup {
        lists: identity.lists(),
        own: Box::new(move || own.is_revoked()),
        store: Some(store.clone()),
        bus: bus.clone(),
        metrics: metrics.clone(),
        judge: Box::new(move || judge.input(link::Input::Judge)),
        trust: Box::new(move || records::follow(&shown, &owner)),
    });
    keeper.recall();
    for kind in ListKind::ALL {
        let found = keeper.look(kind);
        keeper.announce(kind, found);
    }
    identity.check_revoked().map(|()| keeper)
}
