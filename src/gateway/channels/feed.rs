//! What happens in the cluster, for those who watch: on the topics of the families `network` and `node`.
//!
//! Everything is this node's own view, and goes to its own clients alone. Invariant: no beat is made while nobody
//! watches a node, and no figures while nobody follows the network.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};

use super::Channels;
use super::family::network::UPDATES;
use super::family::node::{HEARTBEAT, beat};
use crate::actors::timer;
use crate::gateway::status::Figures;
use crate::io::clock::{self, ClockWatch};
use crate::proto::channel::family::Family;
use crate::proto::channel::{Json, Payload};
use crate::proto::event::{Event, Recorded};

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
                if news {
                    channels.admin.clients.look();
                }
                let handlers = &channels.handlers;
                if handlers.watching.load(Ordering::Relaxed) > 0 {
                    beats(&channels);
                }
                if handlers.observing.load(Ordering::Relaxed) > 0 {
                    figures(&channels);
                }
            }
        }
    }
}

/// Publishes on the topics of a family that are called so.
fn here(channels: &Channels, family: Family, name: &str, event: &str, value: &Value) {
    let payload = Payload::Json(Json::of(value));
    for topic in channels.handlers.topics(family, name) {
        // A heartbeat and a change are short.
        drop(channels.publisher.publish_here(&topic, event, &payload));
    }
}

fn announce(channels: &Channels, event: &Recorded) {
    let value = json!(event);
    here(channels, Family::Network, UPDATES, "change", &value);
    let (Event::PeerOnline { peer, .. } | Event::PeerOffline { peer, .. }) = &event.event else {
        return;
    };
    let moved = if matches!(event.event, Event::PeerOnline { .. }) { "join" } else { "leave" };
    here(channels, Family::Node, peer.as_str(), moved, &value);
}

fn figures(channels: &Channels) {
    let figures = Figures::of(channels.metrics.traffic());
    here(channels, Family::Network, UPDATES, "figures", &json!(figures));
}

fn beats(channels: &Channels) {
    let admin = &channels.admin;
    let peers: Vec<_> = admin.peers.view().iter().map(|row| row.peer.name.clone()).collect();
    for name in peers.into_iter().chain([admin.name.clone()]) {
        let beat = beat(admin, &name);
        here(channels, Family::Node, HEARTBEAT, "heartbeat", &beat);
        here(channels, Family::Node, name.as_str(), "heartbeat", &beat);
    }
}
