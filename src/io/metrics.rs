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

macro_rules! counters {
    ($($(#[$doc:meta])* $count:ident $name:literal by $label:literal: $help:literal;)*) => {
        /// What is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Count {
            $($(#[$doc])* $count,)*
        }

        /// The name of each, its label, and the help.
        const COUNTERS: [(&str, &str, &str); [$($name),*].len()] = [$(($name, $label, $help)),*];
    };
}

counters! {
    /// Connections accepted, by how they went on.
    Accepted "xpando_connections_accepted" by "stage": "Connections accepted, by how they went on";
    /// Dials that began.
    Dials "xpando_dials" by "outcome": "Dials that began";
    /// Dials that failed, by cause.
    DialFailed "xpando_dial_failures" by "reason": "Dials that failed, by cause";
    /// Connections refused in TLS, hello or gate, by cause.
    Refused "xpando_connections_refused" by "reason": "Connections refused, by cause";
    /// Links that ended, by cause.
    LinkEnded "xpando_links_ended" by "reason": "Links that ended, by cause";
    /// Datagrams on the beacon socket, by verdict.
    Beacons "xpando_beacons_received" by "verdict": "Beacon datagrams received, by verdict";
    /// Revocation lists, of certificates or tokens, that were new, by outcome.
    Revocations "xpando_revocation_lists" by "outcome": "New revocation lists, by outcome";
    /// Requests for certificates, by what became of them.
    Enrolments "xpando_certificate_requests" by "outcome": "Requests for certificates, by what became of them";
    /// Status changes of peers, by new status.
    Transitions "xpando_peer_transitions" by "status": "Status changes of peers, by new status";
    /// Peers that went offline, by reason.
    Offline "xpando_peer_losses" by "reason": "Peers that went offline, by reason";
    /// Beats of the links, by direction.
    Beats "xpando_heartbeats" by "direction": "Beats of the links, sent or answered";
    /// Verdicts of the failure detector, by verdict.
    Heartbeat "xpando_heartbeat_verdicts" by "verdict": "Verdicts of the failure detector";
    /// Words about the topology that broke a rule, by rule.
    Topology "xpando_topology_violations" by "rule": "Topology words that broke a rule, by rule";
    /// Words about who the nodes are that broke a rule, by rule.
    Registry "xpando_registry_violations" by "rule": "Registry words that broke a rule, by rule";
    /// Messages between nodes, by what became of them.
    Messages "xpando_node_messages" by "outcome": "Messages between nodes, by what became of them";
    /// What the channels' clients do and get, by event.
    Channels "xpando_channel_events" by "event": "What channel clients do and get";
    /// Tokens that were refused, by why.
    Tokens "xpando_tokens_refused" by "reason": "Tokens of clients that were refused, by why";
    /// Actor restarts, by actor.
    Restarts "xpando_actor_restarts" by "actor": "Actor restarts, by actor";
    /// Writes to the store, by outcome.
    Store "xpando_store_writes" by "outcome": "Writes to the store, by outcome";
    /// Events that a peer caused too fast to be taken down, by event.
    EventsOmitted "xpando_events_omitted" by "event": "Events that came too fast to be taken down, by event";
    /// Messages that found no actor, by actor.
    Lost "xpando_messages_lost" by "actor": "Messages that found no actor, by actor";
    /// Answers of the HTTP API, by class of status.
    Api "xpando_http_responses" by "status": "Answers of the HTTP API, by class of status";
    /// Connections, requests and joins of clients that were refused, by cause.
    ClientsRefused "xpando_clients_refused" by "reason": "What was refused to clients, by cause";
    /// Log lines that reached no reader, by why.
    LogLines "xpando_log_lines_lost" by "reason": "Log lines that reached no reader, by why";
    /// Files under the running node that changed or are about to be of no use, by what and how.
    Files "xpando_files" by "event": "Files under the running node that changed, by what and how";
}

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timing {
    /// From a dial's beginning until both sides agreed.
    Handshake,
    /// A write to the store, until it is durable.
    StoreWrite,
}

/// In the order of [`Timing`].
const TIMINGS: [(&str, &str); 2] = [
    ("xpando_handshake_duration_seconds", "From a dial until both sides agreed"),
    ("xpando_store_write_duration_seconds", "A write to the store"),
];
/// The first bucket of a timing in seconds, how much wider each next one is, and how many there are: 0.5 ms to 16 s.
const BUCKETS: (f64, f64, u16) = (0.0005, 2.0, 16);

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let families = COUNTERS.map(|(name, _, help)| {
            let family = Counters::default();
            registry.register(name, help, family.clone());
            family
        });
        let timings = TIMINGS.map(|(name, help)| {
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
    let counters = COUNTERS.iter().map(|(name, ..)| format!("{name}_total"));
    counters.chain(TIMINGS.iter().map(|(name, _)| (*name).to_owned()))
}

impl Metrics {
    /// Adds one, under this value of its label.
    #[doc(hidden)]
    pub fn count(&self, what: Count, value: &'static str) {
        self.add(what, value, 1);
    }

    /// Adds so many.
    #[doc(hidden)]
    pub fn add(&self, what: Count, value: &'static str, many: u64) {
        let mut counters = COUNTERS.iter().zip(&self.0.families);
        if let Some(((_, label, _), family)) = counters.nth(what as usize) {
            family.get_or_create(&[(label, value)]).inc_by(many);
        }
    }

    /// It took so long.
    #[doc(hidden)]
    pub fn took(&self, what: Timing, long: Duration) {
        if let Some(timing) = self.0.timings.get(what as usize) {
            timing.observe(long.as_secs_f64());
        }
    }

    /// What goes over the links.
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
