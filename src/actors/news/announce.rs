//! Every event as one log line and one count.

use tracing::field::display;

use crate::io::metrics::{Count, Metrics};
use crate::proto::event::{Event, Level};

/// Logs an event once.
pub(super) fn log(event: &Event) {
    macro_rules! line {
        ($level:ident) => {{
            let node = event.about().map(display);
            tracing::event!(tracing::Level::$level, event = %event.label(), node, "{event}");
        }};
    }
    match event.level() {
        Level::Debug => line!(DEBUG),
        Level::Info => line!(INFO),
        Level::Warn => line!(WARN),
        Level::Error => line!(ERROR),
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "few events are counted")]
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
        _ => {}
    }
}

/// Counts what was left out.
pub(super) fn omitted(kind: &str, count: u64, metrics: &Metrics) {
    if let Some(label) = Event::known_label(kind) {
        metrics.add(Count::EventsOmitted, label, count);
    }
}
