//! What is remembered of earlier runs.

use crate::actors::channel_router::{Publisher, TopicHistory};
use crate::actors::history_log::Recorder;
use crate::actors::news::Bus;
use crate::io::clock;
use crate::io::identity::Identity;
use crate::io::metrics::Metrics;
use crate::io::store::history::History;
use crate::io::store::{Opened, Store, StoreError};
use crate::io::tls::Tls;
use crate::node::{Config, KEEP, Node};
use crate::proto::event::Event;
use crate::proto::node::{Incarnation, NodeName};
use crate::proto::registry::Known;
use crate::proto::topic::Topic;

impl Node {
    /// What was said on a topic: the last messages, or those since a time.
    #[must_use]
    pub fn history(&self, topic: &Topic) -> TopicHistory {
        TopicHistory::new(self.presences.router(), topic)
    }
}

/// The other nodes of earlier runs, those seen last first.
pub(super) fn remembered(store: &Store, me: &NodeName) -> Vec<Known> {
    let known = store.known().unwrap_or_else(|error| {
        tracing::warn!(%error, "remembered nodes cannot be read");
        Vec::new()
    });
    known.into_iter().filter(|known| known.name != *me).collect()
}

/// The first events of a life.
pub(super) fn say_started(bus: &Bus, opened: Opened, identity: &Identity) {
    if let Opened::SetAside(path) = opened {
        bus.announce(Event::StoreSetAside { path: path.display().to_string() });
    }
    let version = env!("CARGO_PKG_VERSION").to_owned();
    bus.announce(Event::NodeStarted { version });
    let (id, cluster) = (identity.id().to_string(), identity.cluster().to_string());
    let development = identity.is_development();
    bus.announce(Event::IdentityLoaded { id, cluster, development });
}

/// What keeps topics on disk, if any are. This life goes on from the numbers that the one before gave last.
pub(super) fn recorder(
    config: &Config,
    life: Incarnation,
    bus: &Bus,
    (publisher, metrics): (&Publisher, &Metrics),
) -> Result<Option<Recorder>, StoreError> {
    if !config.history.on_disk() {
        return Ok(None);
    }
    let (history, opened) = History::open(&config.data_dir, clock::wall())?;
    if let Opened::SetAside(path) = opened {
        bus.announce(Event::HistorySetAside { path: path.display().to_string() });
    }
    publisher.go_on(history.take_stamps(life)?);
    // Others know of a later life than this directory does: what it remembers is not the last that was said.
    let stale = publisher.clone();
    bus.on_events("publisher", move |event| {
        if matches!(event, Event::IncarnationRaised { .. }) {
            stale.take(|_| false);
        }
    });
    let (rules, most) = (config.history.clone(), config.history_bytes);
    Ok(Some(Recorder::new(history, rules, most, metrics)))
}

/// Writes what topics have on disk, and what the next life goes on from. Nothing is published any more.
pub(super) async fn close(recorder: Option<Recorder>, publisher: &Publisher, life: Incarnation) {
    let Some(recorder) = recorder else { return };
    let stamps = publisher.take(|topic| recorder.keeps(topic));
    let written = tokio::task::spawn_blocking(move || {
        recorder.write()?;
        recorder.history().keep_stamps(&stamps, life)
    });
    match tokio::time::timeout(KEEP, written).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => tracing::error!(%error, "the last of the history is not on disk"),
        Ok(Err(_)) | Err(_) => tracing::error!("the last of the history is not on disk"),
    }
}

/// Has handshakes follow the authorities that are trusted now.
pub(super) fn follow(tls: &Tls, identity: &Identity) {
    if let Err(error) = tls.renew(identity) {
        tracing::error!(%error, "handshakes go by the authorities of before");
    }
}
