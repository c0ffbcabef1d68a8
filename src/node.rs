//! Floor 5: a node, from its configuration to its last goodbye.
//!
//! [`Node::start`] opens what is outside (identity, store, sockets), so that whatever is wrong there
//! is one clear error before anything runs, and then starts the supervision tree of `tree`. One
//! node per process: ractor's registries are process-wide.
//!
//! A service that embeds a node starts it with [`Node::builder`] and talks through its [`Door`], which
//! the [`testkit`] has too:
//!
//! ```
//! use std::time::Duration;
//! use xpando_node::node::{Bytes, Node, Request};
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

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use tokio::sync::oneshot;

use crate::actors::channel_router::{self, ChannelRouter};
use crate::actors::discovery::{self, Discovery, Hint};
use crate::actors::event_log::{self, EventLog};
use crate::actors::heartbeat_monitor::{self, HeartbeatMonitor, Vitals};
use crate::actors::link::{self, Link, Myself};
use crate::actors::node_manager::{self, NodeManager};
use crate::actors::pubsub::PubSub;
use crate::actors::revocation;
use crate::actors::supervisor::{self, Child, Root, Roster, Tree};
use crate::actors::timer;
use crate::actors::topology_tracker::{self, Side, TopologyTracker};
use crate::gateway::admin::Admin;
use crate::gateway::channels::Channels;
use crate::gateway::http::Http;
use crate::gateway::sight;
use crate::io::identity::{Identity, IdentityError, Made, Tokens};
use crate::io::metrics::Metrics;
use crate::io::places::NoPlace;
use crate::io::seeds::SeedError;
use crate::io::sockets::{self, Registration};
use crate::io::store::{Opened, Store, StoreError};
use crate::io::tls::{Tls, TlsError, Web, WebError};
use crate::io::{beacon, clock};
use crate::proto::node::{Contact, Incarnation, NameError};
use crate::proto::restart::{Intensity, Strategy};
use crate::proto::topology::Cell;

pub mod bench;
mod builder;
mod config;
mod door;
mod listen;
pub mod testkit;

pub use builder::Builder;
pub use bytes::Bytes;
pub use config::Config;
pub use door::{Door, DoorError};

// What the door speaks, so that a service finds everything here.
pub use crate::actors::node_manager::{Row, View};
pub use crate::actors::pubsub::{
    CallError, Events, Message, News, Received, Reply, Request, SendError, ServeError, Serving,
    Spread, Subscription, Watch,
};
pub use crate::proto::event::{Event, Reason, Status};
pub use crate::proto::membership::Majority;
pub use crate::proto::node::NodeName;

// And what its topics for clients need.
pub use crate::actors::channel_router::Publisher;
pub use crate::gateway::channels::handler::{Admission, Client, Doing, Handler, Push, Reaction};
pub use crate::gateway::http;
pub use crate::proto::channel::{Json, Payload};
pub use crate::proto::token::{Claims, Role};
pub use crate::proto::topic::Topic;

use listen::{advertise, clients, listen};

/// The port of a node, unless it is told another.
pub const PORT: u16 = 4697;
/// Time for what was published last.
const FLUSH: Duration = Duration::from_secs(1);
/// Time for goodbyes at the end.
const GOODBYE: Duration = Duration::from_secs(2);

/// Why a node did not start. Whatever had been opened is closed again; the operator must act.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The node's name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// An address to join at.
    #[error("cannot join: {0}")]
    Join(#[from] SeedError),
    /// What is given to [`Builder::listen`], [`Builder::advertise`] or [`Builder::http`].
    #[error("{0:?} is not ADDR:PORT (for example 10.0.0.1:4697 or [::1]:4697)")]
    Address(String),
    /// A directory that was not named has no default.
    #[error(transparent)]
    Place(#[from] NoPlace),
    /// Certificates or keys.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The identity does not make a TLS configuration.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The data directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The host of the node's name is unknown here.
    #[error("the host of {name} cannot be looked up: {source}; pass --listen ADDR:PORT")]
    Host {
        /// The node's name.
        name: NodeName,
        /// What the system says.
        source: std::io::Error,
    },
    /// The address to listen on.
    #[error("cannot listen on {address}: {source}; choose another with --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// `--advertise` or `--listen` leaves no address that others could dial.
    #[error("{0} is no address that others can dial: pass --advertise ADDR:PORT")]
    Advertise(SocketAddr),
    /// The admin socket.
    #[error("cannot open the admin socket: {0}")]
    Admin(std::io::Error),
    /// The address for HTTP clients.
    #[error("cannot listen for clients on {address}: {source}; choose another with --http")]
    Http {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// The certificate for HTTP clients.
    #[error(transparent)]
    Web(#[from] WebError),
    /// The names that every node serves.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// An actor failed at its first start.
    #[error("cannot start: {0}")]
    Spawn(String),
}

/// A running node. It is a [`Door`] with everything behind it.
#[derive(Debug)]
pub struct Node {
    door: Door,
    listen: SocketAddr,
    incarnation: Arc<AtomicU64>,
    http: Option<SocketAddr>,
    channels: Arc<Channels>,
    stop: StopHandle,
    root: Root,
    _served: Vec<Serving>,
    _registration: Option<Registration>,
}

struct StopHandle(NodeManager);

impl std::fmt::Debug for StopHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StopHandle")
    }
}

impl Deref for Node {
    type Target = Door;

    fn deref(&self) -> &Door {
        &self.door
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
        let metrics = Metrics::default();
        let now = clock::wall();
        // The lock on the data directory comes first: a second start changes nothing.
        let (store, opened) = Store::open(&config.data_dir, now)?;
        if let Opened::SetAside(path) = opened {
            tracing::error!(path = %path.display(), "the store was damaged: set aside, starting empty");
        }
        let (identity, made) = Identity::load_or_develop(&config.certs, &config.name, now)?;
        say_made(&identity, made, &config);
        let tls = Tls::new(&identity)?;
        let (listener, listen) = listen(&config).await?;
        let advertise = advertise(&config, listen).await?;
        let incarnation = store.begin_life()?;
        let remembered = store.peers().unwrap_or_else(|error| {
            tracing::warn!(%error, "remembered peers cannot be read");
            Vec::new()
        });
        let http = config.http.as_ref().map(|http| clients(http, &identity)).transpose()?;
        let admin_socket = sockets::bind(&config.data_dir).map_err(StartError::Admin)?;
        let registration = sockets::register(&config.name, &config.data_dir);
        if let Err(error) = &registration {
            tracing::warn!(%error, "`xpando-node names` will not find this node");
        }
        let myself = Myself {
            name: config.name.clone(),
            cluster: identity.cluster(),
            incarnation: Arc::new(AtomicU64::new(incarnation.0)),
            boot: rand::random(),
            advertise,
        };
        let interface = beacon::interface(advertise.ip());
        let parts = Parts {
            socket: config.beacons.then(|| discovery::socket(interface)).flatten(),
            tokens: identity.tokens(&config.certs),
            identity: Arc::new(identity),
            listener: Arc::new(listener),
            tls,
            store: Arc::new(store),
            remembered,
            listen,
            http,
            admin_socket: Arc::new(admin_socket),
            metrics,
            myself,
        };
        let incarnation = parts.myself.incarnation.clone();
        let manager = NodeManager::new(&parts.metrics);
        let peers = manager.peers();
        let pubsub = PubSub::new(config.name.clone(), &parts.metrics);
        let http = parts.http.as_ref().map(|(_, address, _)| *address);
        let (tree, channels) = tree(&config, parts, &manager, &pubsub);
        let served = serve(channels.admin())?;
        let root = supervisor::start(tree).await.map_err(|e| StartError::Spawn(e.to_string()))?;
        tracing::info!(
            name = %config.name, %listen, incarnation = incarnation.load(Ordering::Relaxed),
            http = http.map(tracing::field::display), "node ready"
        );
        Ok(Self {
            http,
            channels,
            door: Door::new(pubsub, peers),
            listen,
            incarnation,
            stop: StopHandle(manager),
            root,
            _served: served,
            _registration: registration.ok(),
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

    /// Gives topics to a handler: its clients are this service's. A later handler comes before an earlier one.
    ///
    /// # Errors
    /// [`DoorError::Text`].
    pub fn channel(&self, pattern: &str, handler: impl Handler) -> Result<(), DoorError> {
        self.channels.handlers().add(door::read(pattern)?, Arc::new(handler));
        Ok(())
    }

    /// Publishes to all clients that joined a topic, on every node.
    #[must_use]
    pub fn publisher(&self) -> &Publisher {
        self.channels.publisher()
    }

    /// Its life.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        Incarnation(self.incarnation.load(Ordering::Relaxed))
    }

    /// Its door, to keep beside the node.
    #[must_use]
    pub fn door(&self) -> &Door {
        &self.door
    }

    /// Returns when the node cannot go on: its supervision tree gave up.
    pub async fn failed(&mut self) {
        self.root.failed().await;
    }

    /// Leaves the cluster: sends what waits, as far as that goes within a second, says goodbye to every
    /// peer, and stops.
    pub async fn shutdown(self) {
        tracing::info!(name = %self.name(), "leaving");
        self.channels.admin().clients.drain();
        if tokio::time::timeout(FLUSH, self.door.pubsub().flushed()).await.is_err() {
            tracing::warn!("not every peer took what was published");
        }
        let (done, said) = oneshot::channel();
        self.stop.0.stop(done);
        if tokio::time::timeout(GOODBYE, said).await.is_err() {
            tracing::warn!("not every peer took the goodbye in time");
        }
        self.root.stop().await;
        tracing::info!(name = %self.door.name(), "stopped");
    }
}

/// The names that every node serves.
fn serve(admin: &Admin) -> Result<Vec<Serving>, ServeError> {
    let mut served = Vec::from(bench::serve(&admin.name, &admin.pubsub)?);
    served.extend([channel_router::answer(&admin.pubsub)?, sight::serve(admin)?]);
    Ok(served)
}

/// What was opened for the tree.
struct Parts {
    identity: Arc<Identity>,
    tokens: Tokens,
    tls: Tls,
    store: Arc<Store>,
    remembered: Vec<Contact>,
    listener: Arc<TcpListener>,
    listen: SocketAddr,
    http: Option<(Arc<TcpListener>, SocketAddr, Option<Web>)>,
    admin_socket: Arc<std::os::unix::net::UnixListener>,
    socket: Option<Arc<std::net::UdpSocket>>,
    metrics: Metrics,
    myself: Myself,
}

/// The supervision tree, as data. The picture is in `actors`.
fn tree(
    config: &Config,
    parts: Parts,
    manager: &NodeManager,
    pubsub: &PubSub,
) -> (Tree, Arc<Channels>) {
    let Parts { metrics, myself, .. } = &parts;
    let (monitor, tracker) = (HeartbeatMonitor::new(metrics), TopologyTracker::new(metrics));
    let roster = Roster::default();
    let branch = |name, strategy, children| Tree {
        name,
        strategy,
        intensity: Intensity::default(),
        children,
        roster: roster.clone(),
        metrics: metrics.clone(),
    };
    let log = EventLog::new(metrics);
    let records = event_log::Setup {
        store: parts.store.clone(),
        pubsub: pubsub.clone(),
        metrics: metrics.clone(),
    };
    let (ended, store) = (manager.clone(), parts.store.clone());
    let admin = Admin {
        name: config.name.clone(),
        id: parts.identity.id(),
        cluster: parts.identity.cluster(),
        incarnation: myself.incarnation.clone(),
        listen: parts.listen,
        http: parts.http.as_ref().map(|(_, address, _)| *address),
        started: timer::now(),
        peers: manager.peers(),
        vitals: monitor.vitals(),
        matrix: tracker.matrix(),
        trail: log.trail().clone(),
        pubsub: pubsub.clone(),
        metrics: metrics.clone(),
        clients: Arc::default(),
        disconnect: Arc::new(move |peer| ended.disconnect(peer)),
        store: Arc::new(move || store.condition()),
        min_peers: config.http.as_ref().map_or(0, |http| http.min_peers),
        roster: roster.clone(),
        chaos: config.chaos,
    };
    let (one, rest) = (Strategy::OneForOne, Strategy::RestForOne);
    let records = vec![log.child(records)];
    let cluster = cluster(config, &parts, pubsub, manager, &monitor, &tracker);
    let router = ChannelRouter::new(pubsub, metrics);
    let anonymous = config.http.as_ref().map_or(&[][..], |http| &http.anonymous);
    let channels = Arc::new(Channels::new(&router, &admin, &parts.tokens, anonymous));
    let mut gateway =
        vec![router.child(routing(&parts, manager)), admin.child(parts.admin_socket.clone())];
    if let (Some((listener, _, web)), Some(http)) = (&parts.http, &config.http) {
        let (listener, web) = (listener.clone(), web.clone());
        let (origins, channels) = (http.origins.clone(), channels.clone());
        gateway.extend(Http { listener, web, origins, channels }.children());
    }
    let children = vec![
        pubsub.child(),
        Child::supervisor(branch("records", one, records)),
        Child::supervisor(branch("cluster", rest, cluster)),
        Child::supervisor(branch("gateway", Strategy::OneForAll, gateway)),
    ];
    (branch("root", rest, children), channels)
}

fn routing(parts: &Parts, manager: &NodeManager) -> channel_router::Setup {
    let (peers, abusers) = (manager.peers(), manager.clone());
    channel_router::Setup {
        incarnation: parts.myself.incarnation.clone(),
        linked: Arc::new(move || names(&peers.borrow())),
        cut: Arc::new(move |peer| abusers.misbehaved(peer)),
    }
}

/// The actors that make a cluster of nodes, and what each needs of the others.
fn cluster(
    config: &Config,
    parts: &Parts,
    pubsub: &PubSub,
    manager: &NodeManager,
    monitor: &HeartbeatMonitor,
    tracker: &TopologyTracker,
) -> Vec<Child> {
    let Parts { metrics, myself, .. } = parts;
    let (link, discovery) = (Link::new(metrics), Discovery::new(metrics));
    let links = link::Setup {
        listener: parts.listener.clone(),
        tls: parts.tls.clone(),
        myself: myself.clone(),
        pubsub: pubsub.clone(),
        metrics: metrics.clone(),
    };
    let members = node_manager::Setup {
        config: config.membership,
        myself: myself.clone(),
        link: link.clone(),
        pubsub: pubsub.clone(),
        lives: Arc::default(),
    };
    let (silenced, flooders) = (manager.clone(), manager.clone());
    let (beacons, peers) = (discovery.clone(), manager.peers());
    let heartbeats = heartbeat_monitor::Setup {
        config: config.heartbeat,
        name: config.name.clone(),
        link: link.clone(),
        pubsub: pubsub.clone(),
        silent: Arc::new(move |peer| silenced.silent(peer)),
        cut: Arc::new(move |peer| flooders.misbehaved(peer)),
        beacon: Arc::new(move |peer| beacons.heard(peer)),
        linked: Arc::new(move || names(&peers.borrow())),
        metrics: metrics.clone(),
    };
    let (abusers, peers, vitals) = (manager.clone(), manager.peers(), monitor.vitals());
    let topology = topology_tracker::Setup {
        name: config.name.clone(),
        incarnation: myself.incarnation.clone(),
        sides: Arc::new(move || sides(&peers.borrow(), &vitals.borrow())),
        cut: Arc::new(move |peer| abusers.misbehaved(peer)),
        pubsub: pubsub.clone(),
        metrics: metrics.clone(),
    };
    let revocations = revocation::Setup {
        file: Arc::new(parts.identity.revocation_file(&config.certs)),
        tokens: parts.tokens.clone(),
        identity: parts.identity.clone(),
        link: link.clone(),
        metrics: metrics.clone(),
    };
    vec![
        link.child(links),
        manager.child(members),
        monitor.child(heartbeats),
        tracker.child(topology),
        discovery.child(discovery_setup(config, parts, manager, pubsub)),
        revocation::child(revocations),
    ]
}

fn discovery_setup(
    config: &Config,
    parts: &Parts,
    manager: &NodeManager,
    pubsub: &PubSub,
) -> discovery::Setup {
    let (hinted, peers) = (manager.clone(), manager.peers());
    discovery::Setup {
        config: config.discovery,
        identity: parts.identity.clone(),
        incarnation: parts.myself.incarnation.clone(),
        advertise: parts.myself.advertise,
        socket: parts.socket.clone(),
        seeds: config.join.clone(),
        remembered: parts.remembered.clone(),
        sequence: Arc::default(),
        hint: Arc::new(move |hint| match hint {
            Hint::Contact(contact, source) => hinted.hint(contact, source),
            Hint::Seed(address) => hinted.seed(address),
        }),
        linked: Arc::new(move || linked(&peers.borrow())),
        pubsub: pubsub.clone(),
        metrics: parts.metrics.clone(),
    }
}

fn linked(view: &View) -> Vec<Contact> {
    let online = view.iter().filter(|row| row.peer.status == Status::Online);
    online
        .filter_map(|row| {
            let peer = &row.peer;
            let (name, incarnation) = (peer.name.clone(), peer.incarnation);
            peer.address.map(|address| Contact { name, address, incarnation })
        })
        .collect()
}

/// The peers that are linked.
fn names(view: &View) -> Vec<NodeName> {
    linked(view).into_iter().map(|contact| contact.name).collect()
}

/// This node's side of every link, for the link matrix.
fn sides(view: &View, vitals: &Vitals) -> BTreeMap<NodeName, Side> {
    let side = |row: &Row| {
        let peer = &row.peer;
        let vital = vitals.peers.get(&peer.name).filter(|_| peer.status == Status::Online);
        let trip = vital.and_then(|vital| vital.round_trip);
        let since = row.since.duration_since(UNIX_EPOCH).unwrap_or_default();
        let cell = Cell {
            state: peer.status,
            suspect: vital.is_some_and(|vital| vital.suspect),
            rtt: trip.and_then(|trip| u32::try_from(trip.p50.as_micros()).ok()),
            phi: vital.map_or(0, |vital| (vital.phi * 100.0) as u32),
            since: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            reason: peer.reason,
        };
        (peer.name.clone(), Side { incarnation: peer.incarnation, cell })
    };
    view.iter().map(side).collect()
}

fn say_made(identity: &Identity, made: Made, config: &Config) {
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
    tracing::info!(
        cluster = %identity.cluster(), id = %identity.id(), development = identity.is_development(),
        "identity loaded"
    );
}
