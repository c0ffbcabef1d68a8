//! A node's status as its operators see it: the JSON of `xpando-node status --json`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::actors::discovery::SeedRow;
use crate::actors::peers::Row;
use crate::actors::timer;
use crate::io::clock::{self, rfc3339};
use crate::io::identity::KeySetState;
use crate::io::metrics::Traffic;
use crate::proto::event::{Broken, Reason, Status};
use crate::proto::heartbeat::{Evidence, RoundTrip, Vital};
use crate::proto::membership::Majority;
use crate::proto::node::{Incarnation, NodeName};
use crate::proto::registry::Known;
use crate::proto::topology::{Edge, Matrix};

mod recorded;

/// One node, and how it sees the others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: NodeName,
    /// The id of its key, 32 hexadecimal digits.
    pub id: String,
    /// The id of its cluster, likewise.
    pub cluster: String,
    /// Its life.
    pub incarnation: u64,
    /// Where it listens for links.
    pub listen: SocketAddr,
    /// Where it listens for clients over HTTP; null when it does not.
    pub http: Option<SocketAddr>,
    /// Whole seconds since it started.
    pub uptime_s: u64,
    /// What it is good for, in words of its own.
    pub specializations: Vec<String>,
    /// What else it says of itself.
    pub metadata: BTreeMap<String, String>,
    /// What it does not do as it should, remember or judge tokens; null when all is well.
    pub degraded: Option<String>,
    /// True while clients are sent to other nodes and no more are taken.
    #[serde(default)]
    pub draining: bool,
    /// Seconds until the last client is sent away; null when none is.
    #[serde(default)]
    pub drain_left_s: Option<u64>,
    /// Sockets and long-polling sessions of clients.
    #[serde(default)]
    pub clients: usize,
    /// What each client may do and have, by the names that `ClientLimits::set` takes.
    #[serde(default)]
    pub limits: BTreeMap<String, String>,
    /// Whether it has a list by which the cluster's own tokens are verified; without one those are refused.
    #[serde(default)]
    pub token_list: bool,
    /// How many other systems' tokens count.
    #[serde(default)]
    pub identities: usize,
    /// The key sets of issuers that it fetches.
    #[serde(default)]
    pub key_sets: Vec<KeySetStatus>,
    /// What its certificate lets it do: `member`, `operate`, `issue`, or `edge` and its patterns.
    #[serde(default)]
    pub may: String,
    /// What of the cluster is being replaced, and who began that.
    #[serde(default)]
    pub rotations: Vec<String>,
    /// Until when its certificates are valid, RFC 3339, by what they are for: `node`, `authority`, `http`.
    #[serde(default)]
    pub certificates: BTreeMap<String, String>,
    /// How much this node stretches its timeouts after a pause of its own: 0, healthy, to 8.
    pub local_health: u32,
    /// Where another process uses its name, as it was heard of in the last 90 s.
    pub namesake: Option<SocketAddr>,
    /// The addresses it is to join at.
    #[serde(default)]
    pub seeds: Vec<SeedStatus>,
    /// Whether it sees most of the cluster it knows.
    pub majority: Majority,
    /// Every other node it knows, by name.
    pub peers: Vec<PeerStatus>,
}

/// How it stands with the key set of an issuer whose tokens count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySetStatus {
    /// Where it is.
    pub url: String,
    /// How many of its keys count; 0 while there is none: then all tokens of the issuer are refused.
    pub keys: usize,
    /// When it was fetched last: RFC 3339, UTC. Null while it is from disk, or there is none.
    pub fetched: Option<String>,
    /// Why the last fetch failed.
    pub error: Option<String>,
}

impl From<KeySetState> for KeySetStatus {
    fn from(set: KeySetState) -> Self {
        let KeySetState { url, keys, fetched, error } = set;
        Self { url, keys, fetched: fetched.map(rfc3339), error }
    }
}

/// What became of a revocation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedStatus {
    /// The serial numbers that were not revoked before.
    pub added: Vec<String>,
    /// How many certificates are revoked now.
    pub total: usize,
    /// The list's file.
    pub list: String,
}

/// One `--join`, and one address behind it where there are some.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeedStatus {
    /// As it was given, with the port.
    pub seed: String,
    /// Where that leads; null while it could not be looked up.
    pub address: Option<SocketAddr>,
    /// Who showed a certificate there last.
    pub node: Option<NodeName>,
    /// Whether that node is linked.
    pub linked: bool,
    /// When it was looked up or dialed last: RFC 3339, UTC.
    pub tried: Option<String>,
    /// What went wrong then.
    pub error: Option<String>,
}

impl From<SeedRow> for SeedStatus {
    fn from(row: SeedRow) -> Self {
        let SeedRow { seed, address, node, linked, tried, error } = row;
        let ago = |at: Instant| clock::wall() - timer::now().saturating_duration_since(at);
        let tried = tried.map(|at| rfc3339(ago(at)));
        Self { seed, address, node, linked, tried, error }
    }
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its name.
    pub name: NodeName,
    /// The id of its key, once it has shown its certificate.
    pub id: Option<String>,
    /// Where it was reached, or is looked for.
    pub address: Option<SocketAddr>,
    /// Where it stands.
    pub status: Status,
    /// True while a peer that is online is doubted.
    pub suspect: bool,
    /// Why it is offline.
    pub reason: Option<Reason>,
    /// While it is not linked: what ended its link, or why the last dials failed.
    pub cause: Option<String>,
    /// While it is not linked: who is, where two nodes state that, or one and it itself. Then it is unreachable from
    /// here, not down.
    pub reached_by: Vec<NodeName>,
    /// Its latest known life.
    pub incarnation: Option<u64>,
    /// Since when it has this status: RFC 3339, UTC.
    pub since: String,
    /// Round-trip time of the last beat in milliseconds; null until it is measured.
    pub rtt_ms: Option<f64>,
    /// The median of the last 128, likewise.
    pub rtt_p50_ms: Option<f64>,
    /// Their 99th percentile, likewise.
    pub rtt_p99_ms: Option<f64>,
    /// Suspicion level; null while it is not linked.
    pub phi: Option<f64>,
    /// When its last byte arrived: RFC 3339, UTC.
    pub last_heard: Option<String>,
    /// What the last doubt or verdict rests on.
    pub evidence: Option<EvidenceStatus>,
    /// What it says it is good for.
    pub specializations: Vec<String>,
    /// What else it says of itself.
    pub metadata: BTreeMap<String, String>,
    /// While it is online: whole seconds since it started, as it says.
    pub uptime_s: Option<u64>,
    /// When it was first heard of: RFC 3339, UTC. Null while it was never linked nor told of itself.
    pub first_seen: Option<String>,
    /// When it was last linked, likewise; null when it never was.
    pub last_seen: Option<String>,
    /// What this node's services think of it; 0 unless they say so.
    pub reputation: f64,
}

/// A node that is known, linked or not: an item of `xpando-node nodes --json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its name.
    pub name: NodeName,
    /// Where it stands; null for one that only others have seen.
    pub status: Option<Status>,
    /// Why it is offline.
    pub reason: Option<Reason>,
    /// The id of its key, once it has shown its certificate here.
    pub id: Option<String>,
    /// Its latest known life.
    pub incarnation: Option<u64>,
    /// What it says it is good for.
    pub specializations: Vec<String>,
    /// What else it says of itself.
    pub metadata: BTreeMap<String, String>,
    /// When it was first heard of: RFC 3339, UTC.
    pub first_seen: String,
    /// When it was last linked, likewise; null when it never was.
    pub last_seen: Option<String>,
    /// When it was last heard on a link, likewise.
    pub last_heartbeat: Option<String>,
    /// Where links to it worked, the newest first.
    pub addresses: Vec<SocketAddr>,
    /// What this node's services think of it; 0 unless they say so.
    pub reputation: f64,
    /// While it is online, or only others have seen it: whole seconds since it started, as it says.
    pub uptime_s: Option<u64>,
}

impl NodeRecord {
    /// A node as it is remembered and as it is seen now.
    pub fn new(known: &Known, peer: Option<&PeerStatus>) -> Self {
        let status = peer.map(|peer| peer.status).or(known.status);
        let online = status == Some(Status::Online);
        let (specializations, metadata) = profile_texts(known);
        let heard = peer.and_then(|peer| peer.last_heard.clone());
        Self {
            name: known.name.clone(),
            status,
            reason: peer.map_or(known.reason, |peer| peer.reason),
            id: peer.and_then(|peer| peer.id.clone()).or(known.id.map(|id| id.to_string())),
            incarnation: Some(known.incarnation.0)
                .max(peer.and_then(|peer| peer.incarnation))
                .filter(|life| *life != 0),
            specializations,
            metadata,
            first_seen: at(known.first_seen),
            last_seen: last_seen(known, online),
            last_heartbeat: heard.or(known.last_heartbeat.map(at)),
            addresses: known.addresses.clone(),
            reputation: known.reputation,
            uptime_s: uptime(known).filter(|_| online || status.is_none()),
        }
    }

    /// The node itself, which is always online.
    pub fn own(record: Self, node: &NodeStatus) -> Self {
        Self {
            status: Some(Status::Online),
            reason: None,
            id: Some(node.id.clone()),
            incarnation: record.incarnation.max(Some(node.incarnation)),
            last_seen: Some(rfc3339(clock::wall())),
            uptime_s: Some(node.uptime_s),
            ..record
        }
    }
}

fn at(millis: u64) -> String {
    rfc3339(UNIX_EPOCH + Duration::from_millis(millis))
}

/// What a node says of itself.
pub(super) fn profile_texts(known: &Known) -> (Vec<String>, BTreeMap<String, String>) {
    let Some(profile) = known.profile() else { return Default::default() };
    let words = profile.specializations().iter().map(ToString::to_string);
    (words.collect(), profile.metadata().clone())
}

/// Whole seconds since its life began, by its clock and this one's.
fn uptime(known: &Known) -> Option<u64> {
    let since = known.profile().map(|profile| clock::millis().saturating_sub(profile.started()));
    since.map(|millis| millis / 1000)
}

fn last_seen(known: &Known, online: bool) -> Option<String> {
    if online { Some(rfc3339(clock::wall())) } else { known.last_seen.map(at) }
}

/// What a doubt or a verdict rests on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvidenceStatus {
    /// Suspicion level.
    pub phi: f64,
    /// Beats that should have come.
    pub missed: u64,
    /// Milliseconds since the last byte.
    pub silence_ms: u64,
    /// Peers that still heard it.
    pub heard_by: Vec<NodeName>,
    /// Peers that did not hear it either.
    pub confirmed_by: Vec<NodeName>,
    /// Bytes sent to it that its machine has not acknowledged; null where the system does not tell.
    pub unacknowledged_bytes: Option<u32>,
    /// TCP segments of its machine that arrived during the silence, likewise.
    pub segments: Option<u32>,
    /// Milliseconds since its last beacon; null when none was ever heard.
    pub beacon_ms: Option<u64>,
    /// What is broken, when it can be told.
    pub broken: Option<Broken>,
}

impl PeerStatus {
    /// A peer as NodeManager, HeartbeatMonitor, TopologyTracker and Registry see it.
    pub fn new(
        me: &NodeName,
        row: &Row,
        vital: Option<&Vital>,
        matrix: &Matrix,
        known: Option<&Known>,
    ) -> Self {
        let peer = &row.peer;
        let known = known.filter(|known| !known.is_forgotten());
        let is_online = peer.status == Status::Online;
        let (specializations, metadata) = known.map(profile_texts).unwrap_or_default();
        let online = vital.filter(|_| peer.status == Status::Online);
        let trip = online.and_then(|vital| vital.round_trip);
        let rtt = |of: fn(RoundTrip) -> Duration| trip.map(|trip| of(trip).as_secs_f64() * 1e3);
        let reached_by = || matrix.reached_by(&peer.name, me);
        let ago = |at: Instant| clock::wall() - timer::now().saturating_duration_since(at);
        Self {
            name: peer.name.clone(),
            id: row.id.map(|id| id.to_string()),
            address: peer.address,
            status: peer.status,
            suspect: online.is_some_and(|vital| vital.suspect),
            reason: peer.reason,
            cause: peer.cause.clone(),
            reached_by: (!is_online).then(reached_by).unwrap_or_default(),
            incarnation: Some(peer.incarnation.0).filter(|n| *n != 0),
            since: rfc3339(row.since),
            rtt_ms: rtt(|trip| trip.last),
            rtt_p50_ms: rtt(|trip| trip.p50),
            rtt_p99_ms: rtt(|trip| trip.p99),
            phi: online.map(|vital| vital.phi),
            last_heard: vital.and_then(|vital| vital.heard).map(|at| rfc3339(ago(at))),
            evidence: vital.and_then(|vital| vital.evidence.as_ref()).map(EvidenceStatus::from),
            specializations,
            metadata,
            uptime_s: known.and_then(uptime).filter(|_| is_online),
            first_seen: known.map(|known| at(known.first_seen)),
            last_seen: known.and_then(|known| last_seen(known, is_online)),
            reputation: known.map_or(0.0, |known| known.reputation),
        }
    }
}

impl From<&Evidence> for EvidenceStatus {
    fn from(evidence: &Evidence) -> Self {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self {
            phi: evidence.phi,
            missed: evidence.missed,
            silence_ms: millis(evidence.silence),
            heard_by: evidence.heard_by.iter().cloned().collect(),
            confirmed_by: evidence.confirmed_by.iter().cloned().collect(),
            unacknowledged_bytes: evidence.traces.unacknowledged,
            segments: evidence.traces.segments,
            beacon_ms: evidence.traces.beacon.map(millis),
            broken: evidence.broken(),
        }
    }
}

/// What went over all links since the node started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// When it was looked at: RFC 3339, UTC.
    pub at: String,
    /// Messages that came.
    pub messages_in: u64,
    /// Messages that went.
    pub messages_out: u64,
    /// Bytes that came.
    pub bytes_in: u64,
    /// Bytes that went.
    pub bytes_out: u64,
}

impl Figures {
    /// The figures now.
    pub fn of(traffic: &Traffic) -> Self {
        let (came, went) = traffic.total();
        Self {
            at: rfc3339(clock::wall()),
            messages_in: came.messages,
            messages_out: went.messages,
            bytes_in: came.bytes,
            bytes_out: went.bytes,
        }
    }
}

/// What one node sees: the answer to a client that asks for its view.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterView {
    /// The node, and its peers.
    pub status: NodeStatus,
    /// The link matrix.
    pub topology: TopologyStatus,
}

/// The link matrix as one node sees it: the JSON of `xpando-node topology --json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopologyStatus {
    /// Whose view this is.
    pub as_seen_by: NodeName,
    /// Counts the changes of this view.
    pub version: u64,
    /// Equal in two views that rest on the same words of every node, 16 hexadecimal digits.
    pub agreement: String,
    /// Every node, by name.
    pub nodes: Vec<TopologyNode>,
    /// Every side of a link, by names.
    pub links: Vec<TopologyLink>,
}

/// One node of the matrix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopologyNode {
    /// Its name.
    pub name: NodeName,
    /// Where it stands, as the viewing node sees it; where it has no view of its own, online if two nodes state that they
    /// are linked with it, or one and it itself.
    pub status: Status,
    /// Its latest known life.
    pub incarnation: u64,
}

/// One side of a link.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopologyLink {
    /// Who sees.
    pub from: NodeName,
    /// Whom.
    pub to: NodeName,
    /// How: connecting, syncing, online, suspect or offline.
    pub state: String,
    /// Median round-trip time in milliseconds.
    pub rtt_ms: Option<f64>,
    /// Suspicion level.
    pub phi: f64,
    /// Since when: RFC 3339, UTC.
    pub since: String,
    /// Why it is offline.
    pub reason: Option<Reason>,
}

impl TopologyStatus {
    /// The matrix of node `name`, which sees its peers so.
    pub fn new(name: &NodeName, peers: &[Row], matrix: &Matrix) -> Self {
        let own = |node: &NodeName| {
            let row = peers.iter().find(|row| row.peer.name == *node);
            row.map(|row| row.peer.status).or((node == name).then_some(Status::Online))
        };
        let linked = |node: &NodeName| {
            let reached = !matrix.reached_by(node, name).is_empty();
            if reached { Status::Online } else { Status::Offline }
        };
        let node = |(node, life): (&NodeName, &Incarnation)| TopologyNode {
            name: node.clone(),
            status: own(node).unwrap_or_else(|| linked(node)),
            incarnation: life.0,
        };
        Self {
            as_seen_by: name.clone(),
            version: matrix.version,
            agreement: format!("{:016x}", matrix.agreement),
            nodes: matrix.nodes().iter().map(node).collect(),
            links: matrix.edges().map(TopologyLink::from).collect(),
        }
    }
}

impl From<Edge<'_>> for TopologyLink {
    fn from(Edge { from, to, cell }: Edge<'_>) -> Self {
        let state = if cell.suspect { "suspect" } else { cell.state.label() };
        Self {
            from: from.clone(),
            to: to.clone(),
            state: state.to_owned(),
            rtt_ms: cell.rtt.map(|micros| f64::from(micros) / 1e3),
            phi: f64::from(cell.phi) / 100.0,
            since: rfc3339(UNIX_EPOCH + Duration::from_millis(cell.since)),
            reason: cell.reason,
        }
    }
}
