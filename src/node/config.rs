//! The one configuration of a node. Each section is a module's own `Config`.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::actors::event_log::LIMITS;
#[cfg(feature = "gateway")]
use crate::gateway::http;
use crate::io::identity::enrol::Rules;
use crate::io::metrics::Metrics;
use crate::io::seeds::Seed;
use crate::io::store::Limits;
use crate::proto::hello::Offer;
use crate::proto::history::Retentions;
use crate::proto::node::NodeName;
use crate::proto::registry::Profile;
use crate::proto::{discovery, heartbeat, membership};

/// What topics have on disk together, unless it is said otherwise.
const HISTORY_BYTES: u64 = 1 << 30;

/// Everything that makes a node this node.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Its name.
    pub name: NodeName,
    /// Where it accepts links. `None`: port 4697 on the host of its name; on loopback the next free
    /// port when that is taken.
    pub listen: Option<SocketAddr>,
    /// Where it tells others to reach it. `None`: where it listens.
    pub advertise: Option<SocketAddr>,
    /// Addresses to join at.
    pub join: Vec<Seed>,
    /// The certificate directory.
    pub certs: PathBuf,
    /// The data directory.
    pub data_dir: PathBuf,
    /// Send and hear multicast beacons.
    pub beacons: bool,
    /// How much of what happened stays in the store.
    pub events: Limits,
    /// How much of which topics is kept for clients.
    pub history: Retentions,
    /// How much of it there may be on disk, of all topics together, in bytes. The file has at most about twice that, and does
    /// not shrink.
    pub history_bytes: u64,
    /// What it says of itself; when its life began is filled in.
    pub profile: Profile,
    /// Peers that must be linked before it is ready.
    pub min_peers: usize,
    /// How clients reach it over HTTP; `None`: they do not.
    #[cfg(feature = "gateway")]
    pub http: Option<http::Config>,
    /// By what it issues certificates, where it has the authority's key.
    #[doc(hidden)]
    pub issuing: Rules,
    /// Let the admin socket kill actors.
    pub chaos: bool,
    /// Serve [`bench`](crate::node::bench): its orders make load, and any peer may have it subscribe to everything.
    pub bench: bool,
    /// What it speaks on links: tests have a node of a later program.
    #[doc(hidden)]
    pub offer: Offer,
    /// Where it counts. What the program around it counts here appears among the node's metrics.
    pub metrics: Metrics,
    /// Whom to dial, how often, and whom to forget.
    pub membership: membership::Config,
    /// When a silent peer is doubted and given up.
    pub heartbeat: heartbeat::Config,
    /// How often to announce, and what to believe.
    pub discovery: discovery::Config,
}

impl Config {
    /// The defaults for a node of this name with these directories.
    pub fn new(name: NodeName, certs: PathBuf, data_dir: PathBuf) -> Self {
        Self {
            name,
            listen: None,
            advertise: None,
            join: Vec::new(),
            certs,
            data_dir,
            beacons: true,
            events: LIMITS,
            history: Retentions::default(),
            history_bytes: HISTORY_BYTES,
            profile: Profile::default(),
            min_peers: 0,
            #[cfg(feature = "gateway")]
            http: None,
            issuing: Rules::default(),
            chaos: false,
            bench: false,
            offer: Offer::OWN,
            metrics: Metrics::default(),
            membership: membership::Config::default(),
            heartbeat: heartbeat::Config::default(),
            discovery: discovery::Config::default(),
        }
    }
}
