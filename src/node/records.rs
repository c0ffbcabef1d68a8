//! What is remembered of earlier runs.

use crate::actors::news::Bus;
use crate::io::identity::Identity;
use crate::io::store::{Opened, Store};
use crate::proto::event::Event;
use crate::proto::node::NodeName;
use crate::proto::registry::Known;

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
