//! Running a node in the foreground.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use clap::builder::FalseyValueParser;
use tokio::sync::mpsc::UnboundedReceiver;
use xpando_node::internals::gateway::http::{self, Origin, Prefix};
use xpando_node::internals::io::identity::{Authority, IdentityError, Validity, shell_word};
use xpando_node::internals::io::metrics::Metrics;
use xpando_node::internals::io::seeds::Seed;
use xpando_node::internals::io::{clock, places};
use xpando_node::internals::node::{Config, Node, StartError};
use xpando_node::internals::proto::channel::family::FamilyRule;
use xpando_node::internals::proto::history::{Retention, Retentions};
use xpando_node::internals::proto::limits::{ClientLimits, LimitError};
use xpando_node::internals::proto::node::NodeName;
use xpando_node::internals::proto::presence::listing::{NotShown, Sees};
use xpando_node::internals::proto::proxies::Cidr;
use xpando_node::internals::proto::registry::{Pair, Profile, Specialization};
use xpando_node::internals::proto::topic::Pattern;

use super::issuing::IssuingArgs;
use super::logs;
use super::signals::{self, Wish};
use super::token::{IDENTITY, lifetime};

/// How long the end waits for the runtime's threads.
const LEAVE: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Name of this node: name@host
    #[arg(long, value_name = "NAME@HOST", env = "XPANDO_NAME", required = true)]
    name: Option<NodeName>,

    /// Address to accept links on [default: port 4697 on the host of the name; on loopback the next
    /// free port]
    #[arg(long, value_name = "ADDR:PORT", env = "XPANDO_LISTEN", value_parser = address)]
    listen: Option<SocketAddr>,

    /// Address to tell others [default: the one listened on]
    #[arg(long, value_name = "ADDR:PORT", env = "XPANDO_ADVERTISE", value_parser = address)]
    advertise: Option<SocketAddr>,

    /// A node to join at [default port: 4697]; may be repeated
    #[arg(long, value_name = "HOST[:PORT]", env = "XPANDO_JOIN", value_delimiter = ',')]
    join: Vec<Seed>,

    /// Certificate directory [default: $XDG_CONFIG_HOME/xpando/certs]
    #[arg(long, value_name = "DIR", env = "XPANDO_CERTS")]
    certs: Option<PathBuf>,

    /// Data directory [default: $XDG_DATA_HOME/xpando/NAME@HOST]
    #[arg(long, value_name = "DIR", env = "XPANDO_DATA_DIR")]
    data_dir: Option<PathBuf>,

    /// What this node is good for, as every node shall know; may be repeated
    #[arg(long, value_name = "WORD", env = "XPANDO_SPECIALIZATION", value_delimiter = ',')]
    specialization: Vec<Specialization>,

    /// What else every node shall know of it; may be repeated, at most 4 KiB in all
    #[arg(long, value_name = "KEY=VALUE")]
    meta: Vec<Pair>,

    /// Send and hear no multicast beacons
    #[arg(long, env = "XPANDO_NO_BEACON", value_parser = FalseyValueParser::new())]
    no_beacon: bool,

    /// How long events stay in the store: 30s, 15m, 24h, 7d; at most 366d [default: 90d]
    #[arg(long, value_name = "TIME", env = "XPANDO_EVENTS_AGE", value_parser = lifetime)]
    events_age: Option<Duration>,

    /// How much of the newest events stays in the store, in MiB [default: 256]
    #[arg(long, value_name = "MIB", env = "XPANDO_EVENTS_SIZE", value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    events_size: Option<u64>,

    /// Begin a cluster: make an authority and this node's certificate, where there are none
    #[arg(long)]
    init: bool,

    #[command(flatten)]
    http: HttpArgs,

    #[command(flatten)]
    issuing: IssuingArgs,

    #[command(flatten)]
    logs: logs::LogArgs,

    /// Let `xpando-node kill` end actors
    #[arg(long, hide = true)]
    chaos: bool,

    /// Obey `xpando-node bench`, of any peer too
    #[arg(long, hide = true)]
    bench: bool,
}

/// Clients over HTTP.
#[derive(Debug, Args)]
struct HttpArgs {
    /// Address for clients (Phoenix Channels) [default: 127.0.0.1:4000, or the next free port]
    #[arg(long, value_name = "ADDR:PORT", env = "XPANDO_HTTP", value_parser = address)]
    http: Option<SocketAddr>,

    /// Serve no clients
    #[arg(long, env = "XPANDO_NO_HTTP", value_parser = FalseyValueParser::new())]
    no_http: bool,

    /// Certificate chain for clients, PEM [default: none on loopback, the node's own elsewhere]
    #[arg(long, value_name = "FILE", env = "XPANDO_HTTP_CERT", requires = "http_key")]
    http_cert: Option<PathBuf>,

    /// Its private key, PEM
    #[arg(long, value_name = "FILE", env = "XPANDO_HTTP_KEY", requires = "http_cert")]
    http_key: Option<PathBuf>,

    /// No TLS for clients, wherever the node listens
    #[arg(long, env = "XPANDO_HTTP_PLAIN", value_parser = FalseyValueParser::new(), conflicts_with = "http_cert")]
    http_plain: bool,

    /// Pages that may connect besides the node's own, and by their hosts the names that it may be called by:
    /// https://HOST[:PORT], //HOST or //*.HOST; may be repeated
    #[arg(long, value_name = "ORIGIN", env = "XPANDO_HTTP_ORIGIN", value_delimiter = ',')]
    http_origin: Vec<Origin>,

    /// The path that a proxy serves the node below, if it passes that path on: /xpando [default: none]
    #[arg(long, value_name = "PATH", env = "XPANDO_HTTP_PREFIX")]
    http_prefix: Option<Prefix>,

    /// Topics for clients without a token, such as 'room:lobby' or 'room:*'; may be repeated
    #[arg(long, value_name = "PATTERN", env = "XPANDO_ALLOW_ANONYMOUS", value_delimiter = ',')]
    allow_anonymous: Vec<Pattern>,

    /// How much of which topics is kept for clients: 'room:*=10000,7d,disk' is the last 10,000 messages of each, none older
    /// than a week, in the data directory, without ",disk" in memory; may be repeated, in the environment with ';' between
    /// [default: the last 512, in memory, until two minutes after the last member has gone]
    #[arg(
        long,
        value_name = "PATTERN=COUNT,AGE[,disk]",
        env = "XPANDO_HISTORY",
        value_delimiter = ';'
    )]
    history: Vec<Retention>,

    /// What serves a topic or all below one: 'realtime:*=room', or network, node, off; may be repeated
    /// [default: room:*=room, network:*=network, node:*=node]
    #[arg(long, value_name = "PATTERN=FAMILY", env = "XPANDO_CHANNELS", value_delimiter = ',')]
    channels: Vec<FamilyRule>,

    /// What clients see of each other at most: 'room:big:*=count', or =off or =state; the most specific counts; may be
    /// repeated [default: state]
    #[arg(long, value_name = "PATTERN=WHAT", env = "XPANDO_PRESENCE", value_delimiter = ',', value_parser = shown)]
    presence: Vec<(Pattern, Sees)>,

    /// How much history there may be on disk, of all topics together, in MiB: those that have most let go of their oldest
    /// [default: 1024]
    #[arg(long, value_name = "MIB", env = "XPANDO_HISTORY_SIZE", value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    history_size: Option<u64>,

    /// Settings (TOML) of a system whose tokens count besides the cluster's, see docs/CHANNELS.md; may be repeated
    #[arg(long, value_name = "FILE", env = "XPANDO_IDENTITY", value_delimiter = ',')]
    identity: Vec<PathBuf>,

    /// Over how long `xpando-node drain` sends clients to other nodes: 30s, 5m
    #[arg(long, value_name = "TIME", env = "XPANDO_DRAIN_TIME", default_value = "30s", value_parser = lifetime)]
    drain_time: Duration,

    /// What clients may do and have at most: topics=50, or user.frames=100/200 (a second/at once), see docs/CHANNELS.md;
    /// may be repeated
    #[arg(long, value_name = "NAME=VALUE", env = "XPANDO_LIMIT", value_delimiter = ',', value_parser = limit)]
    limit: Vec<String>,

    /// Proxies that say whose requests they pass on, in X-Forwarded-For or Forwarded: ADDRESS or ADDRESS/BITS; may be
    /// repeated
    #[arg(long, value_name = "CIDR", env = "XPANDO_TRUST_PROXY", value_delimiter = ',')]
    trust_proxy: Vec<Cidr>,

    /// Peers that must be linked before /health/ready says so
    #[arg(long, value_name = "N", env = "XPANDO_MIN_PEERS", default_value_t = 0)]
    min_peers: usize,
}

impl HttpArgs {
    fn config(self) -> anyhow::Result<Option<http::Config>> {
        let mut config = http::Config::default();
        config.listen = self.http;
        config.tls = self.http_cert.zip(self.http_key);
        config.plain = self.http_plain;
        config.origins = self.http_origin;
        config.prefix = self.http_prefix;
        config.anonymous = self.allow_anonymous;
        config.channels = self.channels;
        config.drain_time = Some(self.drain_time);
        for limit in &self.limit {
            config.limits.set(limit)?;
        }
        config.presence = self.presence;
        config.proxies = self.trust_proxy;
        config.identities = self.identity;
        Ok((!self.no_http).then_some(config))
    }
}

impl RunArgs {
    /// The node's name, and its certificate directory.
    pub(super) fn who(&self) -> anyhow::Result<(NodeName, PathBuf)> {
        let name = self.name.clone().context("--name is missing")?;
        Ok((name, self.certs.clone().map_or_else(places::certs, Ok)?))
    }

    /// The options that say which node this is and where it is, as far as they were given.
    pub(super) fn told(&self) -> String {
        let word = |path: &PathBuf| shell_word(path);
        let given = [
            ("name", self.name.as_ref().map(ToString::to_string)),
            ("listen", self.listen.map(|it| it.to_string())),
            ("advertise", self.advertise.map(|it| it.to_string())),
            ("certs", self.certs.as_ref().map(word)),
            ("data-dir", self.data_dir.as_ref().map(word)),
        ];
        let given = given.into_iter().filter_map(|(option, value)| Some((option, value?)));
        let joins = self.join.iter().map(|seed| ("join", seed.to_string()));
        given.chain(joins).map(|(option, value)| format!(" --{option} {value}")).collect()
    }

    /// Joins at these, too.
    pub(super) fn joining(mut self, seeds: impl IntoIterator<Item = Seed>) -> Self {
        self.join.extend(seeds);
        self
    }
}

/// A limit, which is set later.
fn limit(text: &str) -> Result<String, LimitError> {
    ClientLimits::default().set(text).map(|()| text.to_owned())
}

fn shown(text: &str) -> Result<(Pattern, Sees), String> {
    let (pattern, sees) = text.rsplit_once('=').ok_or("it is PATTERN=state, =count or =off")?;
    let pattern = pattern.parse().map_err(|error| format!("{pattern:?}: {error}"))?;
    Ok((pattern, sees.parse().map_err(|error: NotShown| error.to_string())?))
}

/// `ADDR:PORT`, where ADDR may be a name.
fn address(text: &str) -> Result<SocketAddr, String> {
    let found = text.to_socket_addrs().map_err(|error| format!("{error}; write ADDR:PORT"))?;
    let mut found: Vec<_> = found.collect();
    found.sort_by_key(SocketAddr::is_ipv6);
    found.first().copied().ok_or_else(|| "no address".to_owned())
}

pub(super) fn run(mut args: RunArgs) -> anyhow::Result<()> {
    let name = args.name.context("--name is missing")?;
    let profile = Profile::new(args.specialization, args.meta, 0)?;
    let data_dir = args.data_dir.map_or_else(|| places::data_dir(&name), Ok)?;
    let certs = args.certs.map_or_else(places::certs, Ok)?;
    if args.init {
        begin_cluster(&name, &certs)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers())
        .enable_all()
        .build()?;
    let metrics = Metrics::default();
    let entered = runtime.enter();
    let logs = args.logs.init(&name, &metrics)?;
    drop(entered);
    // Before the start, so that a signal during it still ends in a goodbye.
    let wishes = signals::catch()?;
    let mut config = Config::new(name, certs, data_dir);
    config.listen = args.listen;
    config.advertise = args.advertise;
    config.join = args.join;
    config.beacons = !args.no_beacon;
    config.events.age = args.events_age.unwrap_or(config.events.age);
    config.events.bytes = args.events_size.map_or(config.events.bytes, |size| size << 20);
    config.profile = profile;
    config.min_peers = args.http.min_peers;
    config.history = Retentions::new(std::mem::take(&mut args.http.history))?;
    config.history_bytes = args.http.history_size.map_or(config.history_bytes, |size| size << 20);
    config.http = args.http.config()?;
    config.issuing = args.issuing.rules();
    config.chaos = args.chaos;
    config.bench = args.bench;
    config.metrics = metrics;
    let served = runtime.block_on(serve(config, wishes));
    logs.close();
    // A thread that waits for a disk that hangs is left behind.
    runtime.shutdown_timeout(LEAVE);
    served
}

/// Makes what the first node of a cluster lacks. What is there stays.
fn begin_cluster(name: &NodeName, certs: &Path) -> anyhow::Result<()> {
    let now = clock::wall();
    match Authority::init(certs, now) {
        Ok(_) | Err(IdentityError::Exists { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    match Authority::open(certs)?.issue(certs, name, Validity::leaf(now)) {
        Ok(_) | Err(IdentityError::Exists { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Half of the cores: a message that passes from worker to worker waits for a core to wake each time, and
/// the other half is for anyone who talks with this node (DECISIONS 24).
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1))
}

/// Why a node does not start, with the option that says so.
fn start_error(error: StartError) -> anyhow::Error {
    let identity = matches!(error, StartError::Provider(_));
    let error = anyhow::Error::from(error);
    if identity { error.context(IDENTITY) } else { error }
}

async fn serve(config: Config, mut wishes: UnboundedReceiver<Wish>) -> anyhow::Result<()> {
    let bench = config.bench;
    let mut node = Node::start(config).await.map_err(start_error)?;
    if bench {
        super::bench::serve(&node)?;
    }
    loop {
        tokio::select! {
            wish = wishes.recv() => match wish {
                Some(Wish::Look) => node.reload(),
                Some(Wish::End) | None => break,
            },
            () = node.failed() => anyhow::bail!("an actor failed too often: the node cannot go on"),
        }
    }
    node.shutdown().await;
    Ok(())
}
