//! The node's metrics: what was counted, and what is true at the moment somebody asks.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::Ordering;
use std::time::UNIX_EPOCH;

use crate::actors::history_log::Recorder;
use crate::actors::peers::{Row, majority};
use crate::actors::timer;
use crate::gateway::view::NodeView;
use crate::io::clock;
use crate::io::metrics::{Flow, Gauges};
use crate::io::store::history::History;
use crate::io::usage;
use crate::proto::event::{Reason, Status};
use crate::proto::heartbeat::Vital;

/// Everything as Prometheus text.
///
/// # Errors
/// The formatter's, which writing to memory does not have.
pub(super) fn text(view: &NodeView) -> Result<String, fmt::Error> {
    let mut gauges = Gauges::default();
    node(view, &mut gauges);
    peers(view, &mut gauges);
    topology(view, &mut gauges);
    traffic(view, &mut gauges);
    view.metrics.text_with(&gauges)
}

fn node(view: &NodeView, gauges: &mut Gauges) {
    let version = ("version", env!("CARGO_PKG_VERSION").to_owned());
    gauges.many("xpando_build_info", "The program", [(vec![version], 1.0)]);
    let certificates = (view.certificates)().until.into_iter().map(|(what, until)| {
        let until = until.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        (vec![("certificate", what.to_owned())], until)
    });
    gauges.many(
        "xpando_certificate_expiry_timestamp_seconds",
        "Until when a certificate is valid, as Unix time",
        certificates,
    );
    let up = timer::now().saturating_duration_since(view.started);
    let started = (clock::wall() - up).duration_since(UNIX_EPOCH).unwrap_or_default();
    let health = f64::from(view.peers.vitals().local_health);
    let history = view.history.as_ref().map(Recorder::history);
    let in_memory = history.is_some_and(|it| it.condition().is_degraded());
    let degraded = flag(view.store.condition().is_degraded() || in_memory);
    let totals = history.map(History::totals).unwrap_or_default();
    let draining = flag(view.clients.draining());
    let [clients, joins] = [&view.clients.connected, &view.clients.joined]
        .map(|count| count.load(Ordering::Relaxed) as f64);
    for (name, help, value) in [
        ("start_time_seconds", "When the node started, as Unix time", started.as_secs_f64()),
        ("incarnation", "The node's life", view.life() as f64),
        ("store_degraded", "1 while the node does not remember what it should", degraded),
        ("local_health", "0: healthy; to 8: timeouts are stretched after a pause", health),
        ("history_topics", "Topics of which messages are on disk", totals.topics as f64),
        ("history_bytes", "Bytes of these messages", totals.bytes as f64),
        ("draining", "1 while clients are sent to other nodes", draining),
        ("channel_clients", "Clients that are connected", clients),
        ("channel_joins", "Topics that clients have joined", joins),
    ] {
        gauges.one(&format!("xpando_{name}"), help, value);
    }
    if let Ok(used) = usage::usage(None) {
        let (memory, cpu) = (used.memory as f64, used.processor.as_secs_f64());
        gauges.one("process_resident_memory_bytes", "Memory in use", memory);
        gauges.count("process_cpu_seconds", "Processor time used", cpu);
    }
}

fn flag(is_so: bool) -> f64 {
    f64::from(u8::from(is_so))
}

/// How many there are of each status.
fn by_status(
    all: impl Iterator<Item = Status>,
) -> impl Iterator<Item = (Vec<(&'static str, String)>, f64)> {
    let statuses = [Status::Connecting, Status::Syncing, Status::Online, Status::Offline];
    let mut counts = BTreeMap::from(statuses.map(|status| (status, 0.0)));
    all.for_each(|status| *counts.entry(status).or_default() += 1.0);
    let label = |status: Status| vec![("status", status.label().to_owned())];
    counts.into_iter().map(move |(status, many)| (label(status), many))
}

/// How many peers there are of each status; one that is offline has a reason, and others have none.
fn standing(peers: &[Row]) -> Vec<(Vec<(&'static str, String)>, f64)> {
    let others = [Status::Connecting, Status::Syncing, Status::Online].map(|it| (it, None));
    let offline = Reason::ALL.map(|reason| (Status::Offline, Some(reason)));
    let mut counts: BTreeMap<_, _> =
        others.into_iter().chain(offline).map(|it| (it, 0.0)).collect();
    for Row { peer, .. } in peers {
        *counts.entry((peer.status, peer.reason)).or_default() += 1.0;
    }
    let labels = |status: Status, reason: Option<Reason>| {
        let reason = reason.map(|reason| ("reason", reason.label().to_owned()));
        [("status", status.label().to_owned())].into_iter().chain(reason).collect()
    };
    counts.into_iter().map(|((status, reason), many)| (labels(status, reason), many)).collect()
}

fn peers(view: &NodeView, gauges: &mut Gauges) {
    let (peers, vitals) = (view.peers.view(), view.peers.vitals());
    gauges.many("xpando_peers", "Peers, by status, and those offline by reason", standing(&peers));
    let majority = flag(majority(&peers).held);
    gauges.one(
        "xpando_majority_held",
        "1 while the node sees most of the cluster it knows",
        majority,
    );
    let online = peers.iter().filter(|row| row.peer.status == Status::Online);
    let signs = online.filter_map(|row| {
        Some((vec![("peer", row.peer.name.to_string())], vitals.peers.get(&row.peer.name)?))
    });
    let signs: Vec<_> = signs.collect();
    let each = |value: fn(&Vital) -> Option<f64>| {
        signs.iter().filter_map(move |(peer, vital)| Some((peer.clone(), value(vital)?)))
    };
    gauges.many("xpando_peer_phi", "Suspicion level", each(|vital| Some(vital.phi)));
    gauges.many(
        "xpando_peer_suspect",
        "1 while a linked peer is doubted",
        each(|vital| Some(flag(vital.suspect))),
    );
    gauges.many(
        "xpando_peer_rtt_seconds",
        "Round-trip time of the last beat",
        each(|vital| Some(vital.round_trip?.last.as_secs_f64())),
    );
}

fn topology(view: &NodeView, gauges: &mut Gauges) {
    let matrix = view.matrix.borrow().clone();
    let statuses = by_status(matrix.edges().map(|edge| edge.cell.state));
    gauges.many("xpando_links", "Sides of links in the whole cluster, by status", statuses);
    gauges.one(
        "xpando_topology_version",
        "Changes of this node's view of the link matrix",
        matrix.version as f64,
    );
    let apart = matrix
        .apart
        .map_or(0.0, |since| timer::now().saturating_duration_since(since).as_secs_f64());
    gauges.one(
        "xpando_topology_divergence_seconds",
        "For how long a peer's link matrix has differed from this node's",
        apart,
    );
}

fn traffic(view: &NodeView, gauges: &mut Gauges) {
    let lanes: Vec<_> = view.metrics.traffic().lanes().collect();
    let ways = |value: fn(Flow) -> u64| {
        lanes.iter().flat_map(move |(lane, came, went)| {
            [("in", *came), ("out", *went)].map(|(way, flow)| {
                let labels = vec![("lane", (*lane).to_owned()), ("direction", way.to_owned())];
                (labels, value(flow) as f64)
            })
        })
    };
    gauges.counts("xpando_link_messages", "Messages over links", ways(|flow| flow.messages));
    gauges.counts("xpando_link_bytes", "Bytes over links", ways(|flow| flow.bytes));
    let waiting = view.bus.exchange().waiting();
    let waiting = waiting.into_iter().flat_map(|(peer, lanes)| {
        lanes.map(|(lane, bytes)| {
            let labels = vec![("peer", peer.to_string()), ("lane", lane.label().to_owned())];
            (labels, bytes as f64)
        })
    });
    gauges.many("xpando_outbox_bytes", "Bytes that wait for a peer", waiting);
    let kept = view.bus.exchange().kept().into_iter();
    let kept = kept.map(|(peer, bytes)| (vec![("peer", peer.to_string())], bytes as f64));
    gauges.many("xpando_peer_kept_bytes", "Memory that a peer makes this node use", kept);
}
