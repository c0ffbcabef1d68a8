//! HeartbeatMonitor: who is alive.
//!
//! - **Owns** the failure detector (in `Monitor`), and the view of every peer's vital signs.
//! - **Hears** which links are up and down (from Bus), the signs of life of their links (from Link's
//!   pulses), and other nodes' questions, answers and doubts on `node:heartbeat`.
//! - **Says** beats on the links; doubts as events; a peer that stays silent to NodeManager, which ends its
//!   link; questions to other peers.
//! - **After a restart**: watches the peers that are linked, each as if just heard; samples, doubts and
//!   the evidence of the past are forgotten.
//! - **Never** ends a link itself; never takes another node's word for a verdict.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use ractor::ActorProcessingErr;

use crate::actors::link::Link;
use crate::actors::news::{Bus, PeerMessage, measure};
use crate::actors::peers::Peers;
use crate::actors::supervisor::{Address, Child, Handle, Mail, Process};
use crate::actors::timer;
use crate::io::metrics::{Count, Metrics};
use crate::proto::codec;
use crate::proto::heartbeat::monitor::{Counts, Output};
use crate::proto::heartbeat::{Config, MAX_WORD, Monitor, Pulses, RoundTrip};
use crate::proto::node::NodeName;
use crate::proto::topic::Topic;
use crate::proto::wiring::{Consumer, Notice};

/// What the actor is made from.
#[derive(Clone)]
pub struct Setup {
    /// The machine's settings.
    pub config: Config,
    /// This node's name.
    pub name: NodeName,
    /// The link layer.
    pub link: Link,
    /// The bus.
    pub bus: Bus,
    /// The peers: what the vital signs are shown in, and who ends links.
    pub peers: Peers,
    /// Counters.
    pub metrics: Metrics,
}

/// The child to put under a supervisor.
pub fn child(setup: Setup) -> Child {
    Child::actor::<Inside>(&Handle::new(Inside::NAME, &setup.metrics), setup)
}

/// What the links hear, as Link and Discovery know it.
struct Heard<'a>(&'a Setup);

impl Pulses for Heard<'_> {
    fn heard(&self, peer: &NodeName) -> Option<Instant> {
        self.0.link.pulse(peer).map(|pulse| pulse.heard())
    }

    fn pongs(&self, peer: &NodeName) -> Vec<Duration> {
        self.0.link.pulse(peer).map(|pulse| pulse.pongs()).unwrap_or_default()
    }

    fn round_trip(&self, peer: &NodeName) -> Option<RoundTrip> {
        self.0.link.pulse(peer)?.round_trip()
    }

    fn tcp(&self, peer: &NodeName) -> Option<Counts> {
        self.0.link.pulse(peer)?.tcp()
    }

    fn beacon(&self, peer: &NodeName) -> Option<Instant> {
        self.0.peers.beacon_of(peer)
    }
}

struct Inside {
    setup: Setup,
    monitor: Monitor,
}

impl Inside {
    fn perform(&self, out: Vec<Output>) {
        let Setup { link, bus, peers, metrics, .. } = &self.setup;
        for output in out {
            match output {
                Output::Beat(peer) => {
                    if let Some(pulse) = link.pulse(&peer) {
                        pulse.beat();
                        metrics.count(Count::Beats, "sent");
                    }
                }
                Output::Send(to, word) => match codec::encode(&word) {
                    Ok(payload) => bus.send(&to, Topic::node_heartbeat(), payload),
                    Err(error) => tracing::error!(%error, "a heartbeat message cannot be encoded"),
                },
                Output::Show => peers.publish_vitals(self.monitor.signs(timer::now())),
                Output::Announce(event) => bus.announce(event),
                Output::Charge(rule) => metrics.count(Count::Heartbeat, rule),
                Output::Ask(ask) => peers.ask(ask),
            }
        }
    }
}

impl Process for Inside {
    const NAME: &'static str = "heartbeat_monitor";
    type Message = Notice<PeerMessage>;
    type Setup = Setup;

    async fn start(
        setup: Setup,
        myself: &Address<Self::Message>,
    ) -> Result<Self, ActorProcessingErr> {
        // The successor of an actor that ended attaches anew.
        let to = myself.clone();
        setup.bus.attach(Consumer::HeartbeatMonitor, move |notice| {
            drop(to.cast(Mail::Message(notice)));
        });
        let monitor = Monitor::new(setup.config, setup.name.clone());
        Ok(Self { setup, monitor })
    }

    fn handle(&mut self, message: Self::Message) -> Result<(), ActorProcessingErr> {
        let _paid = measure(&message);
        let read = |payload: PeerMessage| {
            let word = codec::decode(&payload, MAX_WORD).ok();
            if word.is_none() {
                self.setup.metrics.count(Count::Messages, "malformed");
            }
            Ok::<_, Infallible>(word)
        };
        let Ok(notice) = message.read(read);
        let mut out = Vec::new();
        self.monitor.handle(notice, &Heard(&self.setup), timer::now(), &mut out);
        self.perform(out);
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        self.monitor.deadline()
    }

    fn tick(&mut self) -> Result<(), ActorProcessingErr> {
        let mut out = Vec::new();
        self.monitor.tick(&Heard(&self.setup), timer::now(), &mut out);
        self.perform(out);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
