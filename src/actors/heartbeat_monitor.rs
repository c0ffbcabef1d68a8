//! HeartbeatMonitor: who is alive.
//!
//! - **Owns** the failure detector, and the view of every peer's vital signs.
//! - **Hears** which peers come and go (from Bus), the signs of life of their links (from Link's
//!   pulses), and other nodes' questions, answers and doubts on `node:heartbeat`.
//! - **Says** beats on the links; doubts as events; a peer that stays silent to NodeManager, which ends its
//!   link; questions to other peers.
//! - **After a restart**: watches the peers that are linked, each as if just heard; samples, doubts and
//!   the evidence of the past are forgotten.
//! - **Never** ends a link itself; never takes another node's word for a verdict.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ractor::ActorProcessingErr;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::actors::link::{Link, RoundTrip};
use crate::actors::news::{Bus, Delivery};
use crate::actors::supervisor::{Address, Child, Handle, Mail, Process};
use crate::actors::timer;
use crate::io::metrics::{Count, Metrics};
use crate::proto::codec;
use crate::proto::event::Event;
use crate::proto::heartbeat::{Config, Evidence, Heartbeat, Input, Output, Traces};
use crate::proto::node::NodeName;
use crate::proto::questions::{Question, Questions};
use crate::proto::topic::Topic;

/// A peer that was silent for this long has missed a beat: from here on what its machine still sends
/// is counted.
const FALLEN: Duration = Duration::from_millis(1500);
/// Longest message on the topic, in bytes.
const MAX_WORD: usize = 512;

/// What monitors say to each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Word {
    /// Do you hear this node?
    Ask(NodeName),
    /// I do, or I do not.
    Answer(NodeName, bool),
    /// I doubt this node.
    Doubted(NodeName),
}

/// A peer's vital signs.
#[derive(Clone, Debug, PartialEq)]
pub struct Vital {
    /// Suspicion level.
    pub phi: f64,
    /// It is doubted.
    pub suspect: bool,
    /// When its last byte arrived.
    pub heard: Option<Instant>,
    /// How long beats take.
    pub round_trip: Option<RoundTrip>,
    /// What the last doubt or verdict rested on; gone once it is linked anew.
    pub evidence: Option<Evidence>,
}

/// What the monitor shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Signs {
    /// How much this node stretches its timeouts after it was late itself: 0, healthy, to 8.
    pub local_health: u32,
    /// All peers' vital signs, by name.
    pub peers: BTreeMap<NodeName, Vital>,
}

/// The latest signs.
pub type Vitals = Arc<Signs>;

/// Tells when the last beacon of a node was heard.
type BeaconHeard = dyn Fn(&NodeName) -> Option<Instant> + Send + Sync;

/// What the actor is made from.
#[derive(Clone)]
pub struct Setup {
    /// The machine's settings.
    pub config: Config,
    /// This node's name.
    pub name: NodeName,
    /// The link layer.
    pub link: Link,
    /// The door.
    pub bus: Bus,
    /// Takes the peers that are given up.
    pub silent: Arc<dyn Fn(NodeName) + Send + Sync>,
    /// Ends the link of a peer that says too much.
    pub cut: Arc<dyn Fn(NodeName) + Send + Sync>,
    /// When the last beacon of a node was heard.
    pub beacon: Arc<BeaconHeard>,
    /// The peers linked at this moment.
    pub linked: Arc<dyn Fn() -> Vec<NodeName> + Send + Sync>,
    /// Counters.
    pub metrics: Metrics,
}

enum Msg {
    Linked(NodeName),
    Unlinked(NodeName),
    Forgotten(NodeName),
    Said(Delivery),
}

/// The handle.
#[derive(Clone)]
pub struct HeartbeatMonitor {
    handle: Handle<Msg>,
    publish: Arc<watch::Sender<Vitals>>,
}

impl HeartbeatMonitor {
    /// A monitor that does not run yet.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        let handle = Handle::new("heartbeat_monitor", metrics);
        Self { handle, publish: Arc::new(watch::Sender::new(Vitals::default())) }
    }

    /// The child to put under a supervisor.
    #[must_use]
    pub fn child(&self, setup: Setup) -> Child {
        Child::actor::<Inside>(&self.handle, (setup, self.publish.clone()))
    }

    /// All peers' vital signs, renewed with every beat.
    #[must_use]
    pub fn vitals(&self) -> watch::Receiver<Vitals> {
        self.publish.subscribe()
    }
}

struct Inside {
    setup: Setup,
    machine: Heartbeat,
    publish: Arc<watch::Sender<Vitals>>,
    vitals: BTreeMap<NodeName, Vital>,
    /// Of a peer that fell silent: since when, and how many segments had come by then.
    fallen: BTreeMap<NodeName, (Instant, u32)>,
    questions: Questions,
}

impl Inside {
    fn input(&mut self, input: Input) {
        let mut out = Vec::new();
        self.machine.handle(input, timer::now(), &mut out);
        for output in out {
            self.perform(output);
        }
    }

    fn perform(&mut self, output: Output) {
        let bus = self.setup.bus.clone();
        match output {
            Output::Beat(peer) => self.beat(&peer),
            Output::Ask { via, about } => self.say(via, &Word::Ask(about)),
            Output::Tell { to, about } => self.say(to, &Word::Doubted(about)),
            Output::Suspect(peer, mut evidence) => {
                evidence.traces = self.traces(&peer);
                let (phi, missed) = (evidence.phi, evidence.missed);
                self.note(&peer, true, Some(evidence));
                bus.announce(Event::PeerSuspected { peer, phi, missed });
            }
            Output::Cleared(peer) => {
                self.note(&peer, false, None);
                bus.announce(Event::PeerCleared { peer });
            }
            Output::Silent(peer, mut evidence) => {
                evidence.traces = self.traces(&peer);
                let broken = evidence.broken();
                self.note(&peer, false, Some(evidence.clone()));
                let Evidence { phi, missed, heard_by, confirmed_by, .. } = evidence;
                bus.announce(Event::PeerSilent {
                    peer: peer.clone(),
                    phi,
                    missed,
                    heard_by: heard_by.into_iter().collect(),
                    confirmed_by: confirmed_by.into_iter().collect(),
                    broken,
                });
                (self.setup.silent)(peer);
            }
            Output::Paused(late) => {
                let millis = u64::try_from(late.as_millis()).unwrap_or(u64::MAX);
                bus.announce(Event::Paused { millis });
            }
        }
    }

    fn beat(&self, peer: &NodeName) {
        if let Some(pulse) = self.setup.link.pulse(peer) {
            pulse.beat();
            self.setup.metrics.count(Count::Beats, "sent");
        }
    }

    /// What the layers below a link saw of a peer while it was silent.
    fn traces(&self, peer: &NodeName) -> Traces {
        let tcp = self.setup.link.pulse(peer).and_then(|pulse| pulse.tcp());
        let fallen = self.fallen.get(peer).map(|(_, segments)| *segments);
        let beacon = (self.setup.beacon)(peer);
        Traces {
            unacknowledged: tcp.map(|tcp| tcp.unacknowledged),
            segments: tcp.zip(fallen).map(|(tcp, before)| tcp.segments.wrapping_sub(before)),
            beacon: beacon.map(|at| timer::now().saturating_duration_since(at)),
        }
    }

    fn note(&mut self, peer: &NodeName, suspect: bool, evidence: Option<Evidence>) {
        if let Some(vital) = self.vitals.get_mut(peer) {
            vital.suspect = suspect;
            vital.evidence = evidence;
        }
        self.publish();
    }

    fn say(&self, to: NodeName, word: &Word) {
        match codec::encode(word) {
            Ok(payload) => self.setup.bus.send(&to, Topic::node_heartbeat(), payload),
            Err(error) => tracing::error!(%error, "a heartbeat message cannot be encoded"),
        }
    }

    fn said(&mut self, delivery: Delivery) {
        let (from, now) = (delivery.from, timer::now());
        if !self.questions.word(&from, now) {
            self.setup.metrics.count(Count::Heartbeat, "flood");
            return (self.setup.cut)(from);
        }
        match codec::decode(&delivery.payload, MAX_WORD) {
            Ok(Word::Ask(about)) => match self.questions.ask(from, about.clone(), now) {
                Ok(()) => self.beat(&about),
                Err(kind) => self.setup.metrics.count(Count::Heartbeat, kind),
            },
            Ok(Word::Answer(about, hears)) => self.input(Input::Answer { from, about, hears }),
            Ok(Word::Doubted(about)) => self.input(Input::Doubted(about)),
            Err(_) => self.setup.metrics.count(Count::Door, "malformed"),
        }
    }

    /// Answers the questions whose time has come.
    fn answer(&mut self, now: Instant) {
        while let Some(Question { from, about, asked }) = self.questions.due(now) {
            let pulse = self.setup.link.pulse(&about);
            let hears = pulse.is_some_and(|pulse| pulse.heard() > asked);
            self.say(from, &Word::Answer(about, hears));
        }
    }

    /// Feeds the machine with what the links heard meanwhile.
    fn listen(&mut self, now: Instant) {
        let peers: Vec<NodeName> = self.vitals.keys().cloned().collect();
        for peer in peers {
            let Some(pulse) = self.setup.link.pulse(&peer) else { continue };
            let heard = pulse.heard();
            let Some(vital) = self.vitals.get_mut(&peer) else { continue };
            if vital.heard.replace(heard) == Some(heard) {
                let known = self.fallen.get(&peer).is_some_and(|(since, _)| *since == heard);
                // One that sends no beats is silent most of the time.
                if self.machine.watches(&peer)
                    && !known
                    && now.saturating_duration_since(heard) >= FALLEN
                {
                    // The echo of the last beat, and what acknowledged it, has come long ago.
                    let tcp = pulse.tcp();
                    self.fallen.extend(tcp.map(|tcp| (peer, (heard, tcp.segments))));
                }
                continue;
            }
            self.fallen.remove(&peer);
            vital.round_trip = pulse.round_trip();
            for round_trip in pulse.pongs() {
                self.input(Input::Pong(peer.clone(), round_trip));
            }
            self.input(Input::Heard(peer, heard));
        }
    }

    fn publish(&mut self) {
        let now = timer::now();
        for (peer, vital) in &mut self.vitals {
            vital.phi = self.machine.phi(peer, now);
        }
        let (local_health, peers) = (self.machine.local_health(), self.vitals.clone());
        self.publish.send_replace(Arc::new(Signs { local_health, peers }));
    }

    fn linked(&mut self, peer: NodeName) {
        let (heard, round_trip, evidence) = (None, None, None);
        let fresh = Vital { phi: 0.0, suspect: false, heard, round_trip, evidence };
        self.vitals.insert(peer.clone(), fresh);
        self.input(Input::Linked(peer));
    }

    /// Nothing is known of it any more, unless it is back.
    fn forgotten(&mut self, peer: &NodeName) {
        if !(self.setup.linked)().contains(peer) {
            self.vitals.remove(peer);
            self.publish();
        }
    }

    fn unlinked(&mut self, peer: NodeName) {
        if let Some(vital) = self.vitals.get_mut(&peer) {
            vital.suspect = false;
        }
        self.fallen.remove(&peer);
        self.input(Input::Unlinked(peer));
        self.publish();
    }
}

impl Process for Inside {
    const NAME: &'static str = "heartbeat_monitor";
    type Message = Msg;
    type Setup = (Setup, Arc<watch::Sender<Vitals>>);

    async fn start(
        (setup, publish): Self::Setup,
        myself: &Address<Msg>,
    ) -> Result<Self, ActorProcessingErr> {
        let to = myself.clone();
        setup.bus.on_events("heartbeat_monitor", move |event| {
            let message = if let Event::PeerOnline { peer, .. } = event {
                Msg::Linked(peer.clone())
            } else if let Event::PeerForgotten { peer } = event {
                Msg::Forgotten(peer.clone())
            } else if let Event::LinkLost { peer, .. }
            | Event::LinkReplaced { peer, .. }
            | Event::PeerOffline { peer, .. } = event
            {
                Msg::Unlinked(peer.clone())
            } else {
                return;
            };
            // The successor of an actor that ended subscribes anew.
            drop(to.cast(Mail::Message(message)));
        });
        let (to, topic) = (myself.clone(), Topic::node_heartbeat());
        setup.bus.on_words("heartbeat_monitor", topic, move |delivery| {
            drop(to.cast(Mail::Message(Msg::Said(delivery))));
        });
        let machine = Heartbeat::new(setup.config, setup.name.clone());
        let (vitals, fallen) = (BTreeMap::new(), BTreeMap::new());
        let questions = Questions::new(setup.name.clone());
        let mut inside = Self { setup, machine, publish, vitals, fallen, questions };
        for peer in (inside.setup.linked)() {
            inside.linked(peer);
        }
        Ok(inside)
    }

    fn handle(&mut self, message: Msg) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::Linked(peer) => self.linked(peer),
            Msg::Unlinked(peer) => self.unlinked(peer),
            Msg::Forgotten(peer) => self.forgotten(&peer),
            Msg::Said(delivery) => self.said(delivery),
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        self.questions.deadline().into_iter().chain(self.machine.deadline()).min()
    }

    fn tick(&mut self) -> Result<(), ActorProcessingErr> {
        let now = timer::now();
        self.answer(now);
        self.listen(now);
        if self.machine.deadline().is_some_and(|at| at <= now) {
            self.input(Input::Tick);
            self.publish();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
