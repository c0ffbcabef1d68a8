//! Every event as one log line and one count.

use crate::io::metrics::{Count, Metrics};
use crate::proto::event::{Broken, Event, Reason};

/// Logs an event once: state changes at INFO, what an operator must look at WARN, detours DEBUG.
pub(super) fn log(event: &Event) {
    match event {
        Event::PeerDiscovered { peer, address, source } => {
            tracing::debug!(%peer, %address, ?source, "peer discovered");
        }
        Event::PeerConnecting { peer } => tracing::info!(%peer, "peer connecting"),
        Event::PeerSyncing { peer, incarnation, address } => {
            tracing::debug!(%peer, %incarnation, %address, "peer syncing");
        }
        Event::PeerOnline { peer, incarnation, address } => {
            tracing::info!(%peer, %incarnation, %address, "peer online");
        }
        Event::PeerOffline { peer, reason } => {
            tracing::info!(%peer, reason = reason.label(), "peer offline");
        }
        Event::PeerSuspected { peer, phi, missed } => {
            tracing::warn!(%peer, phi, missed, "peer suspect: not heard");
        }
        Event::PeerCleared { peer } => tracing::info!(%peer, "peer heard again"),
        Event::PeerSilent { peer, phi, missed, heard_by, confirmed_by, broken } => {
            let broken = broken.map(Broken::label);
            tracing::warn!(
                %peer, phi, missed, ?heard_by, ?confirmed_by, broken, "peer silent: given up"
            );
        }
        Event::Paused { millis } => {
            tracing::warn!(millis, "this node was paused; it doubts itself before others");
        }
        Event::LinkReplaced { peer, incarnation } => {
            tracing::info!(%peer, %incarnation, "link replaced by a newer one");
        }
        Event::LinkLost { peer, cause } => tracing::info!(%peer, %cause, "link lost"),
        Event::LinkChanged { from, to, state, suspect, reason } => {
            let (state, reason) = (state.label(), reason.map(Reason::label));
            tracing::debug!(%from, %to, state, suspect, reason, "link changed elsewhere");
        }
        Event::LinkRefused { peer, refusal } => {
            tracing::warn!(%peer, why = %refusal, "link refused");
        }
        Event::RefusedBy { peer, refusal } => {
            tracing::warn!(%peer, why = %refusal, "refused by the peer");
        }
        Event::CertificateRefused { peer } => {
            tracing::warn!(
                %peer,
                "this node's certificate is revoked: the peer refuses it. Issue a new one and restart this node"
            );
        }
        Event::DialFailed { peer: Some(peer), address, cause } => {
            tracing::info!(%peer, %address, %cause, "dial failed; will try again");
        }
        Event::DialFailed { peer: None, address, cause } => {
            tracing::warn!(%address, %cause, "seed does not answer as a node; will try again");
        }
        Event::SeedIsMyself { address } => {
            tracing::warn!(%address, "this --join address is this node itself; ignored");
        }
        Event::IncarnationRaised { to } => {
            tracing::warn!(incarnation = %to, "peers know a later incarnation of this node than its data directory: going on above it");
        }
    }
}

pub(super) fn count(event: &Event, metrics: &Metrics) {
    match event {
        Event::PeerConnecting { .. } => metrics.count(Count::Transitions, "connecting"),
        Event::PeerSyncing { .. } => metrics.count(Count::Transitions, "syncing"),
        Event::PeerOnline { .. } => metrics.count(Count::Transitions, "online"),
        Event::PeerOffline { reason, .. } => {
            metrics.count(Count::Transitions, "offline");
            metrics.count(Count::Offline, reason.label());
        }
        Event::LinkReplaced { .. } => metrics.count(Count::LinkEnded, "replaced"),
        Event::LinkLost { .. } => metrics.count(Count::LinkEnded, "lost"),
        Event::LinkRefused { refusal, .. } => metrics.count(Count::Refused, refusal.label()),
        Event::PeerSuspected { .. } => metrics.count(Count::Heartbeat, "suspected"),
        Event::PeerCleared { .. } => metrics.count(Count::Heartbeat, "cleared"),
        Event::PeerSilent { .. } => metrics.count(Count::Heartbeat, "silent"),
        Event::Paused { .. } => metrics.count(Count::Heartbeat, "paused"),
        Event::PeerDiscovered { .. }
        | Event::RefusedBy { .. }
        | Event::CertificateRefused { .. }
        | Event::LinkChanged { .. }
        | Event::DialFailed { .. }
        | Event::SeedIsMyself { .. }
        | Event::IncarnationRaised { .. } => {}
    }
}
