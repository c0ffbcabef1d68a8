//! What goes into the failure detector, and what is shown of it: all of HeartbeatMonitor but its mailbox.
//!
//! # Protocol
//! ```text
//! Notice::Up, Down        Linked, Unlinked of the machine; vital signs last until the node is forgotten
//! Notice::Message         a question is answered 400 ms later by what was heard since; an answer and a doubt go to the
//!                       machine; anyone who sends too much is cut
//! before each tick      the machine gets what the links heard since the last one
//! a doubt, a verdict    gets the traces of the layers below, is noted, then announced
//! ```
//!
//! # Invariants
//! 1. What is announced is in the vital signs before ([`Output::Show`] comes first).
//! 2. An answer is sampled once.
//! 3. A verdict ends no link: it is an [`Ask`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::proto::event::Event;
use crate::proto::heartbeat::{self, Config, Evidence, Heartbeat, Input, Traces};
use crate::proto::node::NodeName;
use crate::proto::questions::{Question, Questions};
use crate::proto::wiring::{Ask, Notice};

/// A peer that was silent for this long has missed a beat: from here on what its machine still sends
/// is counted.
const FALLEN: Duration = Duration::from_millis(1500);
/// Longest message of a monitor, in bytes.
pub const MAX_WORD: usize = 512;

/// What monitors send each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word {
    /// Do you hear this node?
    Ask(NodeName),
    /// I do, or I do not.
    Answer(NodeName, bool),
    /// I doubt this node.
    Doubted(NodeName),
}

/// Round-trip times of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundTrip {
    /// The latest.
    pub last: Duration,
    /// The median of the last 128.
    pub p50: Duration,
    /// Their 99th percentile.
    pub p99: Duration,
}

/// A peer's vital signs.
#[derive(Clone, Debug, Default, PartialEq)]
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

/// What the kernel counts of a connection, the last two since it began and modulo 2^32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Bytes on their way that the other machine has not acknowledged. What waits here until its
    /// window opens does not count.
    pub unacknowledged: u32,
    /// Segments that arrived from it, acknowledgements and repetitions included.
    pub segments: u32,
    /// Bytes that it has acknowledged.
    pub acknowledged: u32,
}

/// What links hear, and the layers below them. Nothing of a peer that is not linked, but its beacons.
pub trait Pulses {
    /// When the last byte of a peer arrived.
    fn heard(&self, peer: &NodeName) -> Option<Instant>;
    /// The round trips of answers that were not asked for before.
    fn pongs(&self, peer: &NodeName) -> Vec<Duration>;
    /// How long beats take there and back.
    fn round_trip(&self, peer: &NodeName) -> Option<RoundTrip>;
    /// What the kernel counts of its connection.
    fn tcp(&self, peer: &NodeName) -> Option<Counts>;
    /// When its last beacon arrived.
    fn beacon(&self, peer: &NodeName) -> Option<Instant>;
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Send a beat, if there is a link.
    Beat(NodeName),
    /// Send this to a peer.
    Send(NodeName, Word),
    /// The vital signs are others.
    Show,
    /// Announce this.
    Announce(Event),
    /// A word broke a rule: count it.
    Charge(&'static str),
    /// Ask NodeManager.
    Ask(Ask),
}

/// The monitor.
#[derive(Debug)]
pub struct Monitor {
    machine: Heartbeat,
    questions: Questions,
    /// Of the peers that are linked, and of those that were until they are forgotten.
    vitals: BTreeMap<NodeName, Vital>,
    linked: BTreeSet<NodeName>,
    /// Of a peer that fell silent: since when, and what had been counted by then.
    fallen: BTreeMap<NodeName, (Instant, Counts)>,
}

impl Monitor {
    /// A monitor that watches nobody yet.
    pub fn new(config: Config, me: NodeName) -> Self {
        Self {
            machine: Heartbeat::new(config, me.clone()),
            questions: Questions::new(me),
            vitals: BTreeMap::new(),
            linked: BTreeSet::new(),
            fallen: BTreeMap::new(),
        }
    }

    /// The vital signs.
    pub fn signs(&self, now: Instant) -> Signs {
        let mut peers = self.vitals.clone();
        peers.iter_mut().for_each(|(peer, vital)| vital.phi = self.machine.phi(peer, now));
        Signs { local_health: self.machine.local_health(), peers }
    }

    /// Takes news of a link or a node. A message is `None` when it cannot be read.
    pub fn handle(
        &mut self,
        news: Notice<Option<Word>>,
        pulses: &impl Pulses,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        match news {
            Notice::Up(peer, _) => {
                self.vitals.insert(peer.clone(), Vital::default());
                self.linked.insert(peer.clone());
                self.input(Input::Linked(peer), pulses, now, out);
            }
            Notice::Message(peer, word) => self.received(peer, word, pulses, now, out),
            Notice::Down(peer, _) => {
                if let Some(vital) = self.vitals.get_mut(&peer) {
                    vital.suspect = false;
                }
                self.fallen.remove(&peer);
                self.linked.remove(&peer);
                self.input(Input::Unlinked(peer), pulses, now, out);
                out.push(Output::Show);
            }
            // Nothing is known of it any more, unless it is back.
            Notice::Forgotten(peer) if !self.linked.contains(&peer) => {
                self.vitals.remove(&peer);
                out.push(Output::Show);
            }
            Notice::Forgotten(_)
            | Notice::Offline(_)
            | Notice::Renewed(_)
            | Notice::Revoked
            | Notice::Equivocation(_)
            | Notice::Changed => {}
        }
    }

    fn received(
        &mut self,
        from: NodeName,
        word: Option<Word>,
        pulses: &impl Pulses,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        if !self.questions.word(&from, now) {
            out.push(Output::Charge("flood"));
            return out.push(Output::Ask(Ask::Cut(from)));
        }
        match word {
            Some(Word::Ask(about)) => {
                out.push(match self.questions.ask(from, about.clone(), now) {
                    Ok(()) => Output::Beat(about),
                    Err(rule) => Output::Charge(rule),
                })
            }
            Some(Word::Answer(about, hears)) => {
                self.input(Input::Answer { from, about, hears }, pulses, now, out);
            }
            Some(Word::Doubted(about)) => {
                self.input(Input::Doubted { by: from, about }, pulses, now, out);
            }
            None => {}
        }
    }

    /// When [`Monitor::tick`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.questions.deadline().into_iter().chain(self.machine.deadline()).min()
    }

    /// Does what is due.
    pub fn tick(&mut self, pulses: &impl Pulses, now: Instant, out: &mut Vec<Output>) {
        while let Some(Question { from, about, asked }) = self.questions.due(now) {
            let hears = pulses.heard(&about).is_some_and(|heard| heard > asked);
            out.push(Output::Send(from, Word::Answer(about, hears)));
        }
        self.listen(pulses, now, out);
        if self.machine.deadline().is_some_and(|at| at <= now) {
            let doubted = self.vitals.iter().filter(|(_, vital)| vital.suspect);
            let doubted: Vec<NodeName> = doubted.map(|(peer, _)| peer.clone()).collect();
            for peer in doubted {
                let reached = self.traces(&peer, pulses, now).reached();
                self.input(Input::Reached(peer, reached), pulses, now, out);
            }
            self.input(Input::Tick, pulses, now, out);
            out.push(Output::Show);
        }
    }

    /// Feeds the machine with what the links heard meanwhile.
    fn listen(&mut self, pulses: &impl Pulses, now: Instant, out: &mut Vec<Output>) {
        let peers: Vec<NodeName> = self.vitals.keys().cloned().collect();
        for peer in peers {
            let Some(heard) = pulses.heard(&peer) else { continue };
            let Some(vital) = self.vitals.get_mut(&peer) else { continue };
            if vital.heard.replace(heard) == Some(heard) {
                let known = self.fallen.get(&peer).is_some_and(|(since, _)| *since == heard);
                // One that sends no beats is silent most of the time.
                if self.machine.watches(&peer)
                    && !known
                    && now.saturating_duration_since(heard) >= FALLEN
                {
                    // The echo of the last beat, and what acknowledged it, has come long ago.
                    let counts = pulses.tcp(&peer);
                    self.fallen.extend(counts.map(|counts| (peer, (heard, counts))));
                }
                continue;
            }
            self.fallen.remove(&peer);
            vital.round_trip = pulses.round_trip(&peer);
            for round_trip in pulses.pongs(&peer) {
                self.input(Input::Pong(peer.clone(), round_trip), pulses, now, out);
            }
            self.input(Input::Heard(peer, heard), pulses, now, out);
        }
    }

    fn input(&mut self, input: Input, pulses: &impl Pulses, now: Instant, out: &mut Vec<Output>) {
        let mut outputs = Vec::new();
        self.machine.handle(input, now, &mut outputs);
        for output in outputs {
            self.perform(output, pulses, now, out);
        }
    }

    fn perform(
        &mut self,
        output: heartbeat::Output,
        pulses: &impl Pulses,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        match output {
            heartbeat::Output::Beat(peer) => out.push(Output::Beat(peer)),
            heartbeat::Output::Ask { via, about } => out.push(Output::Send(via, Word::Ask(about))),
            heartbeat::Output::Tell { to, about } => {
                out.push(Output::Send(to, Word::Doubted(about)));
            }
            heartbeat::Output::Suspect(peer, mut evidence) => {
                evidence.traces = self.traces(&peer, pulses, now);
                let (phi, missed) = (evidence.phi, evidence.missed);
                self.note(&peer, true, Some(evidence), out);
                out.push(Output::Announce(Event::PeerSuspected { peer, phi, missed }));
            }
            heartbeat::Output::Cleared(peer) => {
                self.note(&peer, false, None, out);
                out.push(Output::Announce(Event::PeerCleared { peer }));
            }
            heartbeat::Output::Silent(peer, mut evidence) => {
                evidence.traces = self.traces(&peer, pulses, now);
                let broken = evidence.broken();
                self.note(&peer, false, Some(evidence.clone()), out);
                let Evidence { phi, missed, heard_by, confirmed_by, .. } = evidence;
                out.push(Output::Announce(Event::PeerSilent {
                    peer: peer.clone(),
                    phi,
                    missed,
                    heard_by: heard_by.into_iter().collect(),
                    confirmed_by: confirmed_by.into_iter().collect(),
                    broken,
                }));
                out.push(Output::Ask(Ask::Silent(peer)));
            }
            heartbeat::Output::Paused(late) => {
                let millis = u64::try_from(late.as_millis()).unwrap_or(u64::MAX);
                out.push(Output::Announce(Event::Paused { millis }));
            }
        }
    }

    fn note(
        &mut self,
        peer: &NodeName,
        suspect: bool,
        evidence: Option<Evidence>,
        out: &mut Vec<Output>,
    ) {
        if let Some(vital) = self.vitals.get_mut(peer) {
            (vital.suspect, vital.evidence) = (suspect, evidence);
        }
        out.push(Output::Show);
    }

    /// What the layers below a link saw of a peer while it was silent.
    fn traces(&self, peer: &NodeName, pulses: &impl Pulses, now: Instant) -> Traces {
        let tcp = pulses.tcp(peer);
        let before = self.fallen.get(peer).map(|(_, before)| *before);
        let since = tcp.zip(before);
        Traces {
            unacknowledged: tcp.map(|tcp| tcp.unacknowledged),
            segments: since.map(|(tcp, before)| tcp.segments.wrapping_sub(before.segments)),
            acknowledged: since
                .map(|(tcp, before)| tcp.acknowledged.wrapping_sub(before.acknowledged)),
            beacon: pulses.beacon(peer).map(|at| now.saturating_duration_since(at)),
        }
    }
}
