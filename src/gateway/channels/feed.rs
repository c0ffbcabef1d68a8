//! What happens in the cluster, for those who watch: `network:updates`, `node:heartbeat` and `node:<name>`.
//!
//! Everything is this node's own view, and goes to its own clients alone. Invariant: no beat is made while nobody
//! watches a node, and no figures while nobody is on `network:updates`.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};

use super::Channels;
use crate::actors::timer;
use crate::gateway::status::Figures;
use crate::gateway::view::NodeView;
use crate::io::clock::{self, ClockWatch};
use crate::proto::channel::{Json, Payload};
use crate::proto::event::{Event, Recorded};
use crate::proto::node::NodeName;
use crate::proto::topic::Topic;

/// Between two beats of a node, and two looks at revoked tokens and at the wall clock.
const BEAT: Duration = Duration::from_secs(1);

/// Publishes until the node ends.
pub(in super::super) async fn run(channels: Arc<Channels>) -> io::Result<()> {
    channels.check_list();
    let mut events = channels.admin.bus.trail().follow();
    let mut clock = ClockWatch::new(clock::wall(), timer::now());
    let mut ticks = tokio::time::interval(BEAT);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            news = events.recv() => match news {
                None => return Ok(()),
                Some(event) => announce(&channels, &event),
            },
            _ = ticks.tick() => {
                // Rights end by the wall clock: anyone who waits for the end of one waits anew.
                let clock_set = clock.was_set(clock::wall(), timer::now());
                let news = channels.tokens_changed() || clock_set;
                channels.admin.clients.news.send_if_modified(|stopping| !*stopping && news);
                if channels.watching.load(Ordering::Relaxed) > 0 {
                    beats(&channels);
                }
                if channels.observing.load(Ordering::Relaxed) > 0 {
                    figures(&channels);
                }
            }
        }
    }
}

fn here(channels: &Channels, topic: &Topic, event: &str, value: &Value) {
    // A heartbeat and a change are short.
    drop(channels.publisher.publish_here(topic, event, &Payload::Json(Json::of(value))));
}

fn announce(channels: &Channels, event: &Recorded) {
    let value = json!(event);
    here(channels, &Topic::network_updates(), "change", &value);
    let (Event::PeerOnline { peer, .. } | Event::PeerOffline { peer, .. }) = &event.event else {
        return;
    };
    let moved = if matches!(event.event, Event::PeerOnline { .. }) { "join" } else { "leave" };
    if let Some(topic) = about(peer) {
        here(channels, &topic, moved, &value);
    }
}

fn figures(channels: &Channels) {
    let figures = Figures::of(channels.metrics.traffic());
    here(channels, &Topic::network_updates(), "figures", &json!(figures));
}

fn beats(channels: &Channels) {
    let admin = &channels.admin;
    let peers: Vec<_> = admin.peers.view().iter().map(|row| row.peer.name.clone()).collect();
    for name in peers.into_iter().chain([admin.name.clone()]) {
        let beat = beat(admin, &name);
        here(channels, &Topic::node_heartbeat(), "heartbeat", &beat);
        if let Some(topic) = about(&name) {
            here(channels, &topic, "heartbeat", &beat);
        }
    }
}

/// The topic of a node. `None` when its name is too long for one.
fn about(name: &NodeName) -> Option<Topic> {
    format!("node:{name}").parse().ok()
}

/// A node as this one sees it.
pub(super) fn beat(admin: &NodeView, name: &NodeName) -> Value {
    if *name == admin.name {
        return json!({ "node": name, "status": "online", "incarnation": admin.life() });
    }
    match admin.peer(name) {
        None => json!({ "node": name, "status": null }),
        Some(peer) => json!({
            "node": name,
            "status": peer.status,
            "suspect": peer.suspect,
            "incarnation": peer.incarnation,
            "rtt_ms": peer.rtt_ms,
            "phi": peer.phi,
            "last_heard": peer.last_heard,
        }),
    }
}
