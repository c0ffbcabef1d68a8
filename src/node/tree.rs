//! The supervision tree, as data, and what each actor needs of the others.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use tokio::sync::watch;

use crate::actors::channel_router::{self, ChannelRouter, Publisher};
use crate::actors::discovery::{self, Discovery, Hint};
use crate::actors::event_log::{self, EventLog, Journal};
use crate::actors::files::{self, Files};
use crate::actors::heartbeat_monitor::{self, HeartbeatMonitor};
use crate::actors::link::{self, Link, Myself};
use crate::actors::news::Bus;
use crate::actors::node_manager::{self, NodeManager, View};
use crate::actors::registry::{self, Registry};
use crate::actors::supervisor::{self, Child, Roster, Tree};
use crate::actors::timer;
use crate::actors::topology_tracker::{self, TopologyTracker};
use crate::gateway::admin;
#[cfg(feature = "gateway")]
use crate::gateway::channels::Channels;
use crate::gateway::status::Joining;
use crate::gateway::view::NodeView;
use crate::io::identity::{Identity, Tokens};
use crate::io::metrics::Metrics;
use crate::io::sockets::AdminSocket;
use crate::io::store::Store;
use crate::io::tls::{Tls, Web};
#[cfg(feature = "gateway")]
use crate::node::clients;
use crate::node::listen::Served;
use crate::node::{Config, records};
use crate::proto::event::{Event, Status};
use crate::proto::node::{Contact, NodeName};
use crate::proto::registry::Profile;
use crate::proto::registry::book::Own;
use crate::proto::restart::{Intensity, Strategy};

/// What was opened for the tree.
pub(super) struct Parts {
    pub(super) identity: Arc<Identity>,
    pub(super) files: Files,
    pub(super) tokens: Tokens,
    pub(super) publisher: Publisher,
    pub(super) tls: Tls,
    pub(super) store: Arc<Store>,
    pub(super) journal: Journal,
    pub(super) profile: Profile,
    pub(super) remembered: Vec<Contact>,
    pub(super) registry: Registry,
    pub(super) listener: Arc<TcpListener>,
    pub(super) listen: SocketAddr,
    pub(super) http: Option<Served>,
    /// What it is bound to, and the socket itself: the node alone keeps it.
    pub(super) admin_socket: (watch::Receiver<Arc<UnixListener>>, Weak<AdminSocket>),
    pub(super) socket: Option<Arc<std::net::UdpSocket>>,
    pub(super) metrics: Metrics,
    pub(super) myself: Myself,
}

/// The supervision tree, as data, and what the node keeps of it.
pub(super) struct Planted {
    pub(super) tree: Tree,
    pub(super) view: NodeView,
    #[cfg(feature = "gateway")]
    pub(super) channels: Arc<Channels>,
}

/// The supervision tree. The picture is in `actors`.
pub(super) fn tree(config: &Config, parts: Parts, manager: &NodeManager, bus: &Bus) -> Planted {
    let metrics = &parts.metrics;
    let (monitor, tracker) = (HeartbeatMonitor::new(metrics), TopologyTracker::new(metrics));
    let (discovery, roster, door) = (Discovery::new(metrics), Roster::default(), bus.clone());
    let fallen: supervisor::Ended = Arc::new(move |actor, why, restarted| {
        let (actor, why) = (actor.to_owned(), why.to_owned());
        door.announce(Event::ActorEnded { actor, why, restarted });
    });
    let branch = |name, strategy, children| Tree {
        name,
        strategy,
        intensity: Intensity::default(),
        children,
        roster: roster.clone(),
        metrics: metrics.clone(),
        ended: fallen.clone(),
    };
    let log = EventLog::new(metrics);
    let view = view(config, &parts, bus, manager, (&monitor, &tracker, &discovery), &roster);
    let (one, rest) = (Strategy::OneForOne, Strategy::RestForOne);
    let records = vec![log.child(recording(&parts, bus))];
    let cluster = cluster(config, &parts, bus, manager, (&monitor, &tracker, &discovery));
    let router = ChannelRouter::new(bus, metrics);
    let gateway = vec![
        router.child(routing(&parts, manager)),
        admin::child(view.clone(), parts.admin_socket.0.clone()),
    ];
    #[cfg(feature = "gateway")]
    let (channels, serving) = clients::serve(
        config,
        &parts.tokens,
        &parts.publisher,
        parts.http.as_ref(),
        &router,
        &view,
    );
    #[cfg(feature = "gateway")]
    let gateway = gateway.into_iter().chain(serving).collect();
    let children = vec![
        bus.child(),
        Child::supervisor(branch("records", one, records)),
        Child::supervisor(branch("cluster", rest, cluster)),
        Child::supervisor(branch("gateway", Strategy::OneForAll, gateway)),
    ];
    Planted {
        tree: branch("root", rest, children),
        view,
        #[cfg(feature = "gateway")]
        channels,
    }
}

/// What can be read of the node.
fn view(
    config: &Config,
    parts: &Parts,
    bus: &Bus,
    manager: &NodeManager,
    (monitor, tracker, discovery): (&HeartbeatMonitor, &TopologyTracker, &Discovery),
    roster: &Roster,
) -> NodeView {
    let Parts { metrics, myself, .. } = parts;
    let (ended, store, registry) = (manager.clone(), parts.store.clone(), parts.registry.clone());
    NodeView {
        name: config.name.clone(),
        id: parts.identity.id(),
        cluster: parts.identity.cluster(),
        incarnation: myself.incarnation.clone(),
        listen: parts.listen,
        http: parts.http.as_ref().map(|(_, address, _)| *address),
        started: timer::now(),
        peers: manager.peers(),
        joining: joining(config, manager, discovery),
        vitals: monitor.vitals(),
        matrix: tracker.matrix(),
        nodes: registry.nodes(),
        journal: parts.journal.clone(),
        bus: bus.clone(),
        metrics: metrics.clone(),
        clients: Arc::default(),
        disconnect: Arc::new(move |peer| ended.disconnect(peer)),
        forget: Arc::new(move |node, life| registry.forget(node, life)),
        store: Arc::new(move || store.condition()),
        certificates: certificates(parts),
        token_list: token_list(parts),
        min_peers: config.min_peers,
        roster: roster.clone(),
        chaos: config.chaos,
    }
}

/// Whether there is a list by which clients' tokens are verified.
fn token_list(parts: &Parts) -> Arc<dyn Fn() -> bool + Send + Sync> {
    let tokens = parts.tokens.clone();
    Arc::new(move || tokens.number().is_some())
}

/// Until when the certificates are valid.
fn certificates(parts: &Parts) -> Arc<dyn Fn() -> Vec<(&'static str, SystemTime)> + Send + Sync> {
    let (identity, web) = (parts.identity.clone(), parts.http.as_ref().and_then(|it| it.2.clone()));
    Arc::new(move || {
        let http = web.as_ref().and_then(Web::validity).map(|valid| ("http", valid));
        let own = [("node", identity.validity()), ("authority", identity.authority_validity())];
        own.into_iter().chain(http).map(|(what, valid)| (what, valid.not_after)).collect()
    })
}

/// What became of each `--join`, and where another process uses the node's name.
fn joining(config: &Config, manager: &NodeManager, discovery: &Discovery) -> Joining {
    let (discovery, name) = (discovery.clone(), config.name.clone());
    let (peers, join) = (manager.peers(), manager.joining());
    Arc::new(move || {
        let join = join.borrow().clone();
        let peers: Vec<_> = peers.borrow().iter().map(|row| row.peer.clone()).collect();
        (discovery.seeds(&join, &peers, &name), join.namesake)
    })
}

fn recording(parts: &Parts, bus: &Bus) -> event_log::Setup {
    event_log::Setup {
        store: parts.store.clone(),
        journal: parts.journal.clone(),
        bus: bus.clone(),
        metrics: parts.metrics.clone(),
    }
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
    bus: &Bus,
    manager: &NodeManager,
    (monitor, tracker, discovery): (&HeartbeatMonitor, &TopologyTracker, &Discovery),
) -> Vec<Child> {
    let Parts { metrics, myself, .. } = parts;
    let link = Link::new(metrics);
    let registry = parts.registry.clone();
    let links = link::Setup {
        listener: parts.listener.clone(),
        tls: parts.tls.clone(),
        myself: myself.clone(),
        bus: bus.clone(),
        metrics: metrics.clone(),
    };
    let members = node_manager::Setup {
        config: config.membership,
        myself: myself.clone(),
        link: link.clone(),
        bus: bus.clone(),
        lives: Arc::default(),
        forgotten: Arc::new(move || registry.forgotten()),
    };
    let (silenced, flooders) = (manager.clone(), manager.clone());
    let (beacons, peers) = (discovery.clone(), manager.peers());
    let heartbeats = heartbeat_monitor::Setup {
        config: config.heartbeat,
        name: config.name.clone(),
        link: link.clone(),
        bus: bus.clone(),
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
        sides: Arc::new(move || records::sides(&peers.borrow(), &vitals.borrow())),
        forgotten: records::forgotten(&parts.registry, manager),
        cut: Arc::new(move |peer| abusers.misbehaved(peer)),
        bus: bus.clone(),
        metrics: metrics.clone(),
    };
    let files = files::Setup {
        lists: Arc::new(parts.identity.revocation_file(&config.certs)),
        tokens: parts.tokens.clone(),
        identity: parts.identity.clone(),
        own: Arc::new(parts.identity.files(&config.certs)),
        tls: parts.tls.clone(),
        web: parts.http.as_ref().and_then(|(_, _, web)| web.clone()),
        admin: parts.admin_socket.1.clone(),
        link: link.clone(),
        bus: bus.clone(),
        metrics: metrics.clone(),
    };
    vec![
        link.child(links),
        manager.child(members),
        monitor.child(heartbeats),
        tracker.child(topology),
        parts.registry.child(registry_setup(parts, bus, manager, monitor)),
        discovery.child(discovery_setup(config, parts, manager, bus)),
        parts.files.child(files),
    ]
}

fn registry_setup(
    parts: &Parts,
    bus: &Bus,
    manager: &NodeManager,
    monitor: &HeartbeatMonitor,
) -> registry::Setup {
    let (peers, vitals) = (manager.peers(), monitor.vitals());
    let [forgets, revives, abusers] = [(); 3].map(|()| manager.clone());
    registry::Setup {
        own: Own {
            name: parts.myself.name.clone(),
            id: parts.identity.id(),
            address: parts.myself.advertise,
            profile: parts.profile.clone(),
        },
        incarnation: parts.myself.incarnation.clone(),
        seen: Arc::new(move || records::seen(&peers.borrow(), &vitals.borrow())),
        forget: Arc::new(move |node, life, known| forgets.forget(node, life, known)),
        revive: Arc::new(move |node| revives.revive(node)),
        cut: Arc::new(move |peer| abusers.misbehaved(peer)),
        store: parts.store.clone(),
        bus: bus.clone(),
        metrics: parts.metrics.clone(),
    }
}

fn discovery_setup(
    config: &Config,
    parts: &Parts,
    manager: &NodeManager,
    bus: &Bus,
) -> discovery::Setup {
    let (hinted, peers) = (manager.clone(), manager.peers());
    let (all, join) = (manager.peers(), manager.joining());
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
            Hint::Namesake(address) => hinted.namesake(address),
        }),
        peers: Arc::new(move || all.borrow().iter().map(|row| row.peer.clone()).collect()),
        join: Arc::new(move || join.borrow().clone()),
        linked: Arc::new(move || linked(&peers.borrow())),
        bus: bus.clone(),
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
