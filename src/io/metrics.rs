//! What one node counts and measures, in the Prometheus text format.
//!
//! One registry per node, never a global one. Invariant: each label of what is counted has few values, all from enums
//! in the code; nothing a peer sends becomes a label. (Of gauges, gathered when somebody asks, some are labelled by
//! peer: those that the node knows, by names that certificates vouch for.)

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

mod text;
mod traffic;

pub use text::{CONTENT_TYPE, Gauges};
pub use traffic::{Flow, Traffic};

/// By one label: its name and its value.
type Counters = Family<[(&'static str, &'static str); 1], Counter>;

/// The node's counters. Clones count into the same.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    families: [Counters; COUNTERS.len()],
    timings: [Histogram; TIMINGS.len()],
    traffic: Traffic,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Connections accepted, by how they went on.
    Accepted,
    /// Dials that began.
    Dials,
    /// Dials that failed, by cause.
    DialFailed,
    /// Connections refused in TLS, hello or gate, by cause.
    Refused,
    /// Links that ended, by cause.
    LinkEnded,
    /// Datagrams on the beacon socket, by verdict.
    Beacons,
    /// Revocation lists, of certificates or tokens, that were new, by outcome.
    Revocations,
    /// Status changes of peers, by new status.
    Transitions,
    /// Peers that went offline, by reason.
    Offline,
    /// Beats of the links, by direction.
    Beats,
    /// Verdicts of the failure detector, by verdict.
    Heartbeat,
    /// Words about the topology that broke a rule, by rule.
    Topology,
    /// Words about who the nodes are that broke a rule, by rule.
    Registry,
    /// Messages of the door, by what became of them.
    Door,
    /// What the channels' clients do and get, by event.
    Channels,
    /// Tokens that were refused, by why.
    Tokens,
    /// Actor restarts, by actor.
    Restarts,
    /// Writes to the store, by outcome.
    Store,
    /// Messages that found no actor, by actor.
    Lost,
    /// Answers of the HTTP API, by class of status.
    Api,
    /// Connections, requests and joins of clients that were refused, by cause.
    ClientsRefused,
    /// Log lines that reached no reader, by why.
    LogLines,
    /// Files under the running node that changed or are about to be of no use, by what and how.
    Files,
}

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timing {
    /// From a dial's beginning until both sides agreed.
    Handshake,
    /// A write to the store, until it is durable.
    StoreWrite,
}

const TIMINGS: [(Timing, &str, &str); 2] = [
    (Timing::Handshake, "xpando_handshake_duration_seconds", "From a dial until both sides agreed"),
    (Timing::StoreWrite, "xpando_store_write_duration_seconds", "A write to the store"),
];
/// The first bucket of a timing in seconds, how much wider each next one is, and how many there are: 0.5 ms to 16 s.
const BUCKETS: (f64, f64, u16) = (0.0005, 2.0, 16);

/// What is counted, under which name, by which label, and the help.
const COUNTERS: [(Count, &str, &str, &str); 23] = [
    (
        Count::Accepted,
        "xpando_connections_accepted",
        "stage",
        "Connections accepted, by how they went on",
    ),
    (Count::Dials, "xpando_dials", "outcome", "Dials that began"),
    (Count::DialFailed, "xpando_dial_failures", "reason", "Dials that failed, by cause"),
    (Count::Refused, "xpando_connections_refused", "reason", "Connections refused, by cause"),
    (Count::LinkEnded, "xpando_links_ended", "reason", "Links that ended, by cause"),
    (Count::Beacons, "xpando_beacons_received", "verdict", "Beacon datagrams received, by verdict"),
    (Count::Revocations, "xpando_revocation_lists", "outcome", "New revocation lists, by outcome"),
    (
        Count::Transitions,
        "xpando_peer_transitions",
        "status",
        "Status changes of peers, by new status",
    ),
    (Count::Offline, "xpando_peer_losses", "reason", "Peers that went offline, by reason"),
    (Count::Beats, "xpando_heartbeats", "direction", "Beats of the links, sent or answered"),
    (Count::Heartbeat, "xpando_heartbeat_verdicts", "verdict", "Verdicts of the failure detector"),
    (
        Count::Topology,
        "xpando_topology_violations",
        "rule",
        "Topology words that broke a rule, by rule",
    ),
    (
        Count::Registry,
        "xpando_registry_violations",
        "rule",
        "Registry words that broke a rule, by rule",
    ),
    (
        Count::Door,
        "xpando_node_messages",
        "outcome",
        "Messages between nodes, by what became of them",
    ),
    (Count::Channels, "xpando_channel_events", "event", "What channel clients do and get"),
    (
        Count::Tokens,
        "xpando_tokens_refused",
        "reason",
        "Tokens of clients that were refused, by why",
    ),
    (Count::Restarts, "xpando_actor_restarts", "actor", "Actor restarts, by actor"),
    (Count::Store, "xpando_store_writes", "outcome", "Writes to the store, by outcome"),
    (Count::Lost, "xpando_messages_lost", "actor", "Messages that found no actor, by actor"),
    (Count::Api, "xpando_http_responses", "status", "Answers of the HTTP API, by class of status"),
    (
        Count::ClientsRefused,
        "xpando_clients_refused",
        "reason",
        "What was refused to clients, by cause",
    ),
    (
        Count::Files,
        "xpando_files",
        "event",
        "Files under the running node that changed, by what and how",
    ),
    (
        Count::LogLines,
        "xpando_log_lines_lost",
        "reason",
        "Log lines that reached no reader, by why",
    ),
];

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let families = COUNTERS.map(|(_, name, _, help)| {
            let family = Counters::default();
            registry.register(name, help, family.clone());
            family
        });
        let timings = TIMINGS.map(|(_, name, help)| {
            let (first, factor, many) = BUCKETS;
            let timing = Histogram::new(exponential_buckets(first, factor, many));
            registry.register(name, help, timing.clone());
            timing
        });
        Self(Arc::new(Inner { registry, families, timings, traffic: Traffic::default() }))
    }
}

/// The names of all that can be counted or timed, also of what was not yet.
pub fn names() -> impl Iterator<Item = String> {
    let counters = COUNTERS.iter().map(|(_, name, ..)| format!("{name}_total"));
    counters.chain(TIMINGS.iter().map(|(_, name, _)| (*name).to_owned()))
}

impl Metrics {
    /// Adds one, under this value of its label.
    pub fn count(&self, what: Count, value: &'static str) {
        self.add(what, value, 1);
    }

    /// Adds so many.
    pub fn add(&self, what: Count, value: &'static str, many: u64) {
        let counters = COUNTERS.iter().zip(&self.0.families);
        for ((_, _, label, _), family) in counters.filter(|((count, ..), _)| *count == what) {
            family.get_or_create(&[(label, value)]).inc_by(many);
        }
    }

    /// It took so long.
    pub fn took(&self, what: Timing, long: Duration) {
        let at = TIMINGS.iter().position(|(timing, ..)| *timing == what);
        if let Some(timing) = at.and_then(|at| self.0.timings.get(at)) {
            timing.observe(long.as_secs_f64());
        }
    }

    /// What goes over the links.
    #[must_use]
    pub(crate) fn traffic(&self) -> &Traffic {
        &self.0.traffic
    }

    /// All that was counted and measured, as Prometheus text.
    ///
    /// # Errors
    /// The formatter's, which writing to memory does not have.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        self.text_with(&Gauges::default())
    }

    /// Likewise, and these gauges.
    ///
    /// # Errors
    /// As [`Metrics::text`].
    pub(crate) fn text_with(&self, gauges: &Gauges) -> Result<String, std::fmt::Error> {
        text::text(&self.0.registry, gauges)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_appear_under_their_name_and_label() {
        let metrics = Metrics::default();
        metrics.count(Count::Refused, "tls");
        metrics.clone().count(Count::Refused, "tls");
        metrics.took(Timing::Handshake, Duration::from_millis(3));
        let mut gauges = Gauges::default();
        gauges.many("xpando_peers", "Peers", [(vec![("status", "online".to_owned())], 2.0)]);
        let text = metrics.text_with(&gauges).expect("text");
        for line in [
            "# TYPE xpando_connections_refused_total counter",
            "# HELP xpando_connections_refused_total Connections refused, by cause.",
            "xpando_connections_refused_total{reason=\"tls\"} 2",
            "xpando_handshake_duration_seconds_bucket{le=\"0.004\"} 1",
            "xpando_handshake_duration_seconds_bucket{le=\"0.002\"} 0",
            "# TYPE xpando_peers gauge",
            "xpando_peers{status=\"online\"} 2.0",
        ] {
            assert!(text.lines().any(|one| one == line), "{line}: {text}");
        }
    }
}
