//! The supervision tree, as data, and what each actor needs of the others.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Weak};

use tokio::sync::watch;

use crate::actors::channel_router::{self, ChannelRouter, Publisher};
use crate::actors::discovery::{self, Discovery};
use crate::actors::event_log::{self, EventLog, Journal};
use crate::actors::files::{self, Files};
use crate::actors::heartbeat_monitor;
use crate::actors::history_log::Recorder;
use crate::actors::link::{self, Link, Myself};
use crate::actors::lists::ListKeeper;
use crate::actors::news::Bus;
use crate::actors::node_manager;
use crate::actors::peers::Peers;
use crate::actors::registry::{self, Registry};
use crate::actors::supervisor::{self, ActorTable, Child, Tree};
use crate::actors::timer;
use crate::actors::topology_tracker::{self, TopologyTracker};
use crate::gateway::admin;
#[cfg(feature = "gateway")]
use crate::gateway::channels::Channels;
use crate::gateway::clients::Clients;
#[cfg(feature = "gateway")]
use crate::gateway::clients::DRAIN_TIME;
use crate::gateway::issue::{Issuing, Offer};
use crate::gateway::rotation::{self, Rotations};
use crate::gateway::view::{NodeView, OwnCertificates};
use crate::io::identity::Identity;
#[cfg(feature = "gateway")]
use crate::io::identity::Tokens;
use crate::io::metrics::Metrics;
use crate::io::sockets::AdminSocket;
use crate::io::store::Store;
use crate::io::tls::{Tls, Web};
use crate::node::Config;
#[cfg(feature = "gateway")]
use crate::node::clients;
use crate::node::listen::Served;
use crate::proto::event::Event;
use crate::proto::node::Contact;
use crate::proto::registry::Profile;
use crate::proto::registry::book::Own;
use crate::proto::restart::{Intensity, Strategy};

/// What was opened for the tree.
pub(super) struct Parts {
    pub(super) identity: Arc<Identity>,
    pub(super) files: Files,
    #[cfg(feature = "gateway")]
    pub(super) tokens: Tokens,
    pub(super) lists: ListKeeper,
    pub(super) link: Link,
    pub(super) publisher: Publisher,
    pub(super) tls: Tls,
    pub(super) store: Arc<Store>,
    pub(super) journal: Journal,
    /// What keeps topics on disk.
    pub(super) recorder: Option<Recorder>,
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
    /// Follows whether this node can issue certificates.
    pub(super) offer: Arc<Offer>,
    pub(super) tracker: TopologyTracker,
    pub(super) router: ChannelRouter,
    #[cfg(feature = "gateway")]
    pub(super) channels: Arc<Channels>,
}

/// The supervision tree. The picture is in `actors`.
pub(super) fn tree(config: &Config, parts: Parts, peers: &Peers, bus: &Bus) -> Planted {
    let metrics = &parts.metrics;
    let (tracker, discovery) = (TopologyTracker::new(metrics), Discovery::new(metrics));
    let (roster, events) = (ActorTable::default(), bus.clone());
    let fallen: supervisor::Ended = Arc::new(move |actor, why, restarted| {
        let (actor, why) = (actor.to_owned(), why.to_owned());
        events.announce(Event::ActorEnded { actor, why, restarted });
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
    let view = view(config, &parts, bus, peers, (&tracker, &discovery), &roster);
    let (one, rest) = (Strategy::OneForOne, Strategy::RestForOne);
    let history = parts.recorder.as_ref().map(|recorder| recorder.child(bus));
    let records = [log.child(recording(&parts, bus))].into_iter().chain(history).collect();
    let issuing = issuing(config, &parts, bus, peers);
    let offer = Arc::new(issuing.offer(config.issuing.clone()));
    let cluster = cluster(config, &parts, (bus, &issuing, &offer), peers, (&tracker, &discovery));
    let router = ChannelRouter::new(bus, &parts.publisher, metrics);
    let incarnation = parts.myself.incarnation.clone();
    let routing = channel_router::Setup {
        incarnation,
        peers: peers.clone(),
        rules: config.history.clone(),
        recorder: parts.recorder.clone(),
        publisher: parts.publisher.clone(),
        knows_others: !(parts.remembered.is_empty() && config.join.is_empty()),
        leaving: view.clients.leaving(),
    };
    let admin = admin::child(view.clone(), issuing.clone(), parts.admin_socket.0.clone());
    let rotation = rotation::child(view.rotations.clone(), metrics);
    let gateway = vec![router.child(routing), admin, rotation];
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
        offer,
        tracker,
        router,
        #[cfg(feature = "gateway")]
        channels,
    }
}

/// The clients that it may have.
#[cfg(feature = "gateway")]
fn clients_of(config: &Config) -> Clients {
    let set = config.http.as_ref();
    set.map(|it| Clients::new(it.drain_time.unwrap_or(DRAIN_TIME), it.limits.clone()))
        .unwrap_or_default()
}

#[cfg(not(feature = "gateway"))]
fn clients_of(_config: &Config) -> Clients {
    Clients::default()
}

/// What can be read of the node.
fn view(
    config: &Config,
    parts: &Parts,
    bus: &Bus,
    peers: &Peers,
    (tracker, discovery): (&TopologyTracker, &Discovery),
    roster: &ActorTable,
) -> NodeView {
    let Parts { metrics, myself, .. } = parts;
    NodeView {
        name: config.name.clone(),
        id: parts.identity.id(),
        cluster: parts.identity.cluster(),
        incarnation: myself.incarnation.clone(),
        listen: parts.listen,
        http: parts.http.as_ref().map(|it| it.address),
        started: timer::now(),
        peers: peers.clone(),
        discovery: discovery.clone(),
        matrix: tracker.matrix(),
        registry: parts.registry.clone(),
        journal: parts.journal.clone(),
        bus: bus.clone(),
        metrics: metrics.clone(),
        rotations: Rotations::new(
            config.certs.clone(),
            parts.identity.clone(),
            (parts.files.clone(), parts.lists.clone()),
            (parts.registry.clone(), bus.clone()),
        ),
        clients: Arc::new(clients_of(config)),
        store: parts.store.clone(),
        history: parts.recorder.clone(),
        certificates: Arc::new(certificates(parts)),
        lists: parts.lists.clone(),
        identities: providers(parts),
        min_peers: config.min_peers,
        roster: roster.clone(),
        chaos: config.chaos,
    }
}

/// What it does with requests for certificates.
fn issuing(config: &Config, parts: &Parts, bus: &Bus, peers: &Peers) -> Issuing {
    let Parts { identity, myself, metrics, .. } = parts;
    let known = (config.certs.as_path(), identity.verifier());
    Issuing::new(known, myself.advertise, (bus, peers, metrics))
}

/// What the certificates say.
fn certificates(parts: &Parts) -> impl Fn() -> OwnCertificates + use<> {
    let (identity, web) =
        (parts.identity.clone(), parts.http.as_ref().and_then(|it| it.web.clone()));
    move || {
        let http = web.as_ref().and_then(Web::validity).map(|valid| ("http", valid));
        let own = [("node", identity.validity()), ("authority", identity.authority_validity())];
        let all = own.into_iter().chain(http);
        let until = all.map(|(what, valid)| (what, valid.not_after)).collect();
        OwnCertificates { until, may: identity.capabilities() }
    }
}

fn recording(parts: &Parts, bus: &Bus) -> event_log::Setup {
    event_log::Setup {
        store: parts.store.clone(),
        journal: parts.journal.clone(),
        bus: bus.clone(),
        metrics: parts.metrics.clone(),
    }
}

/// The actors that make a cluster of nodes, and what each needs of the others.
fn cluster(
    config: &Config,
    parts: &Parts,
    (bus, issuing, offer): (&Bus, &Issuing, &Arc<Offer>),
    peers: &Peers,
    (tracker, discovery): (&TopologyTracker, &Discovery),
) -> Vec<Child> {
    let Parts { metrics, myself, identity, link, .. } = parts;
    let links = link::Setup {
        listener: parts.listener.clone(),
        tls: parts.tls.clone(),
        myself: myself.clone(),
        bus: bus.clone(),
        enrolment: issuing.enrolment(),
        lists: parts.lists.clone(),
        metrics: metrics.clone(),
    };
    let members = node_manager::Setup {
        config: config.membership,
        myself: myself.clone(),
        link: link.clone(),
        peers: peers.clone(),
        bus: bus.clone(),
        lives: Arc::default(),
    };
    let heartbeats = heartbeat_monitor::Setup {
        config: config.heartbeat,
        name: config.name.clone(),
        link: link.clone(),
        bus: bus.clone(),
        peers: peers.clone(),
        metrics: metrics.clone(),
    };
    let topology = topology_tracker::Setup {
        name: config.name.clone(),
        identity: identity.clone(),
        incarnation: myself.incarnation.clone(),
        peers: peers.clone(),
        bus: bus.clone(),
        metrics: metrics.clone(),
    };
    let nodes = registry::Setup {
        own: Own {
            name: config.name.clone(),
            id: identity.id(),
            address: myself.advertise,
            profile: parts.profile.clone(),
        },
        identity: identity.clone(),
        incarnation: myself.incarnation.clone(),
        peers: peers.clone(),
        store: parts.store.clone(),
        bus: bus.clone(),
        metrics: metrics.clone(),
    };
    let hints = discovery::Setup {
        config: config.discovery,
        identity: identity.clone(),
        incarnation: myself.incarnation.clone(),
        advertise: myself.advertise,
        socket: parts.socket.clone(),
        seeds: config.join.clone(),
        remembered: parts.remembered.clone(),
        sequence: Arc::default(),
        peers: peers.clone(),
        bus: bus.clone(),
        metrics: metrics.clone(),
    };
    vec![
        link.child(links),
        node_manager::child(members),
        heartbeat_monitor::child(heartbeats),
        tracker.child(topology),
        parts.registry.child(nodes),
        discovery.child(hints),
        parts.files.child(files(config, parts, link, (bus, peers), (issuing, offer))),
    ]
}

/// What looks at the files of identity providers.
#[cfg(feature = "gateway")]
fn providers(parts: &Parts) -> Option<Arc<dyn files::Followed>> {
    let providers = parts.http.as_ref()?.providers.clone();
    (providers.count() > 0).then(|| Arc::new(providers) as Arc<dyn files::Followed>)
}

/// There are none.
#[cfg(not(feature = "gateway"))]
fn providers(_parts: &Parts) -> Option<Arc<dyn files::Followed>> {
    None
}

fn files(
    config: &Config,
    parts: &Parts,
    link: &Link,
    (bus, peers): (&Bus, &Peers),
    (issuing, offer): (&Issuing, &Arc<Offer>),
) -> files::Setup {
    let offer = offer.clone();
    files::Setup {
        lists: parts.lists.clone(),
        identity: parts.identity.clone(),
        own: Arc::new(parts.identity.files(&config.certs)),
        tls: parts.tls.clone(),
        web: parts.http.as_ref().and_then(|it| it.web.clone()),
        providers: providers(parts),
        admin: parts.admin_socket.1.clone(),
        enrolment: issuing.enrolment(),
        issuing: Arc::new(move || {
            if let Err(error) = offer.look() {
                tracing::error!(%error, "other nodes' requests for certificates are not answered");
            }
        }),
        peers: peers.clone(),
        link: link.clone(),
        bus: bus.clone(),
        metrics: parts.metrics.clone(),
    }
}
