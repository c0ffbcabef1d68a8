//! Counters of one node, in the Prometheus text format.
//!
//! One registry per node, never a global one. Each label has few values, all from enums in the code;
//! nothing a peer sends becomes a label.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

type Family1 = Family<Kind, Counter>;

/// The node's counters. Clones count into the same.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    families: [Family1; COUNTERS.len()],
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Connections accepted, by how they went on.
    Accepted,
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
    /// Verdicts of the failure detector, by kind.
    Heartbeat,
    /// Words about the topology that broke a rule, by rule.
    Topology,
    /// Messages of the door, by what became of them.
    Door,
    /// What the channels' clients do and get, by kind.
    Channels,
    /// Tokens that were refused, by why.
    Tokens,
    /// Actor restarts, by actor.
    Restarts,
    /// Writes to the store, by outcome.
    Store,
    /// Messages that found no actor, by actor.
    Lost,
}

const COUNTERS: [(Count, &str, &str); 15] = [
    (Count::Accepted, "xpando_connections_accepted", "Connections accepted, by how they went on"),
    (Count::DialFailed, "xpando_dial_failures", "Dials that failed, by cause"),
    (Count::Refused, "xpando_connections_refused", "Connections refused, by cause"),
    (Count::LinkEnded, "xpando_links_ended", "Links that ended, by cause"),
    (Count::Beacons, "xpando_beacons_received", "Beacon datagrams received, by verdict"),
    (Count::Revocations, "xpando_revocation_lists", "New revocation lists, by outcome"),
    (Count::Transitions, "xpando_peer_transitions", "Status changes of peers, by new status"),
    (Count::Heartbeat, "xpando_heartbeat_verdicts", "Verdicts of the failure detector, by kind"),
    (Count::Topology, "xpando_topology_violations", "Topology words that broke a rule, by rule"),
    (Count::Door, "xpando_door_messages", "Messages between nodes, by what became of them"),
    (Count::Channels, "xpando_channel_events", "What channel clients do and get, by kind"),
    (Count::Tokens, "xpando_tokens_refused", "Tokens of clients that were refused, by why"),
    (Count::Restarts, "xpando_actor_restarts", "Actor restarts, by actor"),
    (Count::Store, "xpando_store_writes", "Writes to the store, by outcome"),
    (Count::Lost, "xpando_messages_lost", "Messages that found no actor, by actor"),
];

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let families = COUNTERS.map(|(_, name, help)| {
            let family = Family1::default();
            registry.register(name, help, family.clone());
            family
        });
        Self(Arc::new(Inner { registry, families }))
    }
}

impl Metrics {
    /// Adds one.
    pub fn count(&self, what: Count, kind: &'static str) {
        self.add(what, kind, 1);
    }

    /// Adds so many.
    pub fn add(&self, what: Count, kind: &'static str, many: u64) {
        let at = COUNTERS.iter().position(|(count, ..)| *count == what);
        if let Some(family) = at.and_then(|at| self.0.families.get(at)) {
            family.get_or_create(&Kind { kind }).inc_by(many);
        }
    }

    /// All counters as Prometheus text.
    ///
    /// # Errors
    /// The formatter's, which writing to memory does not have.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.0.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_appear_under_their_name_and_kind() {
        let metrics = Metrics::default();
        metrics.count(Count::Refused, "tls");
        metrics.clone().count(Count::Refused, "tls");
        let text = metrics.text().expect("text");
        assert!(text.contains("xpando_connections_refused_total{kind=\"tls\"} 2"), "{text}");
    }
}
