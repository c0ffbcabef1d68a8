//! Every event as one log line and one count.

use crate::io::metrics::{Count, Metrics};
use crate::proto::event::{Broken, Event, Reason, Refusal, Revocable};
use crate::proto::node::NodeName;

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
        Event::PeerForgotten { peer } => tracing::info!(%peer, "peer forgotten"),
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
        Event::RefusedBy { peer, refusal } => log_refused_by(peer, *refusal),
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
        Event::SeedIsMyself { .. }
        | Event::NameInUse { .. }
        | Event::IncarnationRaised { .. }
        | Event::NodeStarted { .. }
        | Event::NodeStopping
        | Event::ActorEnded { .. }
        | Event::IdentityLoaded { .. }
        | Event::CertificatesRevoked { .. }
        | Event::TokensRevoked { .. }
        | Event::RevocationsRefused { .. }
        | Event::StoreSetAside { .. }
        | Event::StoreFailing { .. }
        | Event::StoreRecovered
        | Event::EventsLost { .. } => log_of_itself(event),
    }
}

/// That another process has this node's name is logged by an event of its own.
fn log_refused_by(peer: &NodeName, refusal: Refusal) {
    if refusal.is_of_namesake() {
        tracing::debug!(%peer, why = %refusal, "refused by the peer");
    } else {
        tracing::warn!(%peer, why = %refusal, "refused by the peer");
    }
}

/// What happens to this node itself.
#[expect(clippy::wildcard_enum_match_arm, reason = "the caller logs all others")]
fn log_of_itself(event: &Event) {
    match event {
        Event::SeedIsMyself { address } => {
            tracing::warn!(%address, "this --join address is this node itself; ignored");
        }
        Event::NameInUse { address } => {
            tracing::warn!(
                %address,
                "another process uses this node's name: peers link with one of the two only. Stop one, or give it another name"
            );
        }
        Event::IncarnationRaised { to } => {
            tracing::warn!(incarnation = %to, "peers know a later incarnation of this node than its data directory: going on above it");
        }
        Event::NodeStarted { incarnation, version } => {
            tracing::info!(%incarnation, %version, "starting");
        }
        Event::NodeStopping => tracing::info!("leaving"),
        Event::ActorEnded { actor, why, restarted: true } => {
            tracing::warn!(actor, %why, "an actor ended and is restarted");
        }
        Event::ActorEnded { actor, why, restarted: false } => {
            tracing::error!(actor, %why, "an actor ended too often: its supervisor gives up");
        }
        Event::IdentityLoaded { id, cluster, development } => {
            tracing::info!(%cluster, %id, development, "identity loaded");
        }
        Event::CertificatesRevoked { certificates, own } => {
            tracing::info!(certificates, "new revocation list: its certificates are refused");
            if *own {
                tracing::warn!(
                    "this node's own certificate is revoked: others refuse it. Issue a new one and restart this node"
                );
            }
        }
        Event::TokensRevoked { tokens } => {
            tracing::info!(revoked = tokens, "new token list: tokens are judged by it");
        }
        Event::RevocationsRefused { list: Revocable::Certificates, why: error } => {
            tracing::warn!(%error, "revocation list refused: the last good one stays in force");
        }
        Event::RevocationsRefused { list: Revocable::Tokens, why: error } => {
            tracing::warn!(%error, "token list refused: what was in force before stays");
        }
        Event::StoreSetAside { path } => {
            tracing::error!(%path, "the store was damaged: set aside, starting empty");
        }
        Event::StoreFailing { why } => {
            tracing::error!(%why, "nothing is being remembered; will try again");
        }
        Event::StoreRecovered => tracing::info!("the store can be written again"),
        Event::EventsLost { count } => {
            tracing::error!(count, "events are in no trail: the store could not be written");
        }
        _ => {}
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
        Event::PeerSuspected { .. } => metrics.count(Count::Heartbeat, "suspected"),
        Event::PeerCleared { .. } => metrics.count(Count::Heartbeat, "cleared"),
        Event::PeerSilent { .. } => metrics.count(Count::Heartbeat, "silent"),
        Event::Paused { .. } => metrics.count(Count::Heartbeat, "paused"),
        Event::PeerDiscovered { .. }
        | Event::PeerForgotten { .. }
        | Event::LinkRefused { .. }
        | Event::RefusedBy { .. }
        | Event::CertificateRefused { .. }
        | Event::LinkChanged { .. }
        | Event::DialFailed { .. }
        | Event::SeedIsMyself { .. }
        | Event::NameInUse { .. }
        | Event::IncarnationRaised { .. }
        | Event::NodeStarted { .. }
        | Event::NodeStopping
        | Event::ActorEnded { .. }
        | Event::IdentityLoaded { .. }
        | Event::CertificatesRevoked { .. }
        | Event::TokensRevoked { .. }
        | Event::RevocationsRefused { .. }
        | Event::StoreSetAside { .. }
        | Event::StoreFailing { .. }
        | Event::StoreRecovered
        | Event::EventsLost { .. } => {}
    }
}
