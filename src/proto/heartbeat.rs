//! Who is alive: phi-accrual failure detection with indirect probes, suspicion and self-health.
//!
//! The machine behind HeartbeatMonitor. It sends a beat to each watched peer every interval, takes any
//! inbound byte as life, and turns silence first into doubt, then into a question to others, then
//! into a verdict.
//!
//! # Sources
//! - Phi: Hayashibara et al., "The φ Accrual Failure Detector" (SRDS 2004), with the logistic
//!   approximation of the normal distribution that Akka and Cassandra use.
//! - Indirect probes and suspicion: Das, Gupta, Motivala, "SWIM" (DSN 2002).
//! - Self-health: Dadgar, Phillips, Currey, "Lifeguard" (DSN 2018): a node that was itself late
//!   distrusts its own clock first and stretches its timeouts.
//!
//! # A silent peer, step by step
//! ```text
//! phi ≥ 8       suspect; up to 3 other peers are asked whether they hear it
//! within 4 s    any byte from it clears the doubt
//! after 4 s     silent: its link is given up, with the evidence
//! ```
//!
//! # Above 12 peers
//! Each node watches the 9 peers that follow it on the ring of names, so the cost of a node does not
//! grow with the cluster. Who doubts a peer tells the others; they do not take it on trust: one that does
//! not watch that peer sends it a beat, and doubts it, too, when nothing comes back within a second. So
//! every node reaches its own verdict at about the same time. Where three are doubted at once, it may be
//! half of the cluster, and those who watched the others of it may be cut off as well: a node then checks
//! everybody it is linked with in the same way.
//!
//! # Invariants
//! 1. A peer is declared silent only after it was suspect for the whole suspicion time, on a clock
//!    that this node had no reason to doubt in between.
//! 2. Only a linked peer is watched, suspect, or declared silent; a new link starts from nothing.
//! 3. After a pause of this node no peer is worse off than at the last tick before it.
//! 4. Memory is bounded: 200 samples a watched peer, one open question a suspect.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use crate::proto::node::NodeName;

mod evidence;
pub use evidence::{Evidence, Traces};

/// Settings of the machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// Between two beats.
    pub interval: Duration,
    /// Doubt from this phi on.
    pub phi: f64,
    /// Samples of beat intervals kept per peer.
    pub window: usize,
    /// Below this many samples the interval itself is the estimate.
    pub samples: usize,
    /// The smallest standard deviation believed.
    pub sigma: Duration,
    /// The largest one: a peer that was disturbed before is still found silent in time.
    pub most_sigma: Duration,
    /// Silence that is acceptable beyond the mean interval.
    pub pause: Duration,
    /// How soon a peer that another node doubts has to answer a beat.
    pub answer: Duration,
    /// So many doubted at once are reason to check everybody.
    pub many: usize,
    /// Peers asked about a suspect.
    pub probes: usize,
    /// How long a suspect can answer.
    pub suspicion: Duration,
    /// A tick this much later than asked for is a pause of this node.
    pub late: Duration,
    /// Up to this many peers all are watched.
    pub all_up_to: usize,
    /// Above it, so many followers on the ring of names.
    pub watched: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(1),
            phi: 8.0,
            window: 200,
            samples: 4,
            sigma: Duration::from_millis(100),
            most_sigma: Duration::from_millis(250),
            pause: Duration::from_secs(3),
            answer: Duration::from_secs(1),
            many: 3,
            probes: 3,
            suspicion: Duration::from_secs(4),
            late: Duration::from_secs(1),
            all_up_to: 12,
            watched: 9,
        }
    }
}

/// The most that this node distrusts itself; each step stretches its timeouts by an eighth.
const WORST_HEALTH: u32 = 8;

/// What the machine hears.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// A peer is linked.
    Linked(NodeName),
    /// Its link is gone.
    Unlinked(NodeName),
    /// Bytes of a peer arrived, last at this time.
    Heard(NodeName, Instant),
    /// A beat of a peer arrived at this time.
    Beat(NodeName, Instant),
    /// Another peer says whether it hears a suspect.
    Answer {
        /// Who says so.
        from: NodeName,
        /// About whom.
        about: NodeName,
        /// Whether it has heard it since it was asked.
        hears: bool,
    },
    /// Another node doubts a peer.
    Doubted(NodeName),
    /// The deadline passed.
    Tick,
}

/// What the machine wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Send a beat.
    Beat(NodeName),
    /// Ask `via` whether it hears `about`.
    Ask {
        /// Whom to ask.
        via: NodeName,
        /// About whom.
        about: NodeName,
    },
    /// Doubt begins.
    Suspect(NodeName, Evidence),
    /// Tell a peer of the doubt: it may not watch that peer itself.
    Tell {
        /// Whom to tell.
        to: NodeName,
        /// About whom.
        about: NodeName,
    },
    /// Doubt ends: the peer was heard.
    Cleared(NodeName),
    /// The peer is given up: end its link.
    Silent(NodeName, Evidence),
    /// This node was late by so much and has forgiven everybody.
    Paused(Duration),
}

#[derive(Debug)]
struct Watch {
    heard: Instant,
    last_beat: Option<Instant>,
    intervals: VecDeque<Duration>,
    /// Mean and deviation of `intervals` in seconds, once there are enough.
    rhythm: Option<(f64, f64)>,
    next_beat: Instant,
    doubt: Option<Doubt>,
    /// Watched out of turn, because another node doubts this peer: by when it has to answer.
    answer_by: Option<Instant>,
}

#[derive(Debug)]
struct Doubt {
    since: Instant,
    heard_by: BTreeSet<NodeName>,
    confirmed_by: BTreeSet<NodeName>,
}

/// The machine.
#[derive(Debug)]
pub struct Heartbeat {
    config: Config,
    /// The silence that is doubt, in deviations above the mean.
    sigmas: f64,
    me: NodeName,
    linked: BTreeMap<NodeName, Instant>,
    watches: BTreeMap<NodeName, Watch>,
    /// When the next tick is due.
    due: Option<Instant>,
    health: u32,
    healed: Option<Instant>,
    /// When everybody was last checked.
    checked: Option<Instant>,
}

impl Heartbeat {
    /// A monitor that watches nobody yet.
    #[must_use]
    pub fn new(config: Config, me: NodeName) -> Self {
        let (linked, watches) = (BTreeMap::new(), BTreeMap::new());
        let sigmas = sigmas(config.phi);
        Self {
            config,
            sigmas,
            me,
            linked,
            watches,
            due: None,
            health: 0,
            healed: None,
            checked: None,
        }
    }

    /// Takes one input and appends what follows from it.
    pub fn handle(&mut self, input: Input, now: Instant, out: &mut Vec<Output>) {
        if let Input::Heard(name, _) | Input::Beat(name, _) = &input
            && !self.watches.contains_key(name)
        {
            return; // above 12 peers that is most of what is heard
        }
        match input {
            Input::Linked(name) => {
                self.watches.remove(&name);
                self.linked.insert(name, now);
                self.choose(now);
            }
            Input::Unlinked(name) => {
                self.watches.remove(&name);
                self.linked.remove(&name);
                self.choose(now);
            }
            Input::Heard(name, at) => self.heard(&name, at, out),
            Input::Beat(name, at) => {
                self.heard(&name, at, out);
                if let Some(watch) = self.watches.get_mut(&name) {
                    watch.sample(at, &self.config);
                }
            }
            Input::Answer { from, about, hears } => {
                let linked = self.linked.contains_key(&from);
                let doubt = self.watches.get_mut(&about).and_then(|watch| watch.doubt.as_mut());
                if let Some(doubt) = doubt.filter(|_| linked) {
                    let side = if hears { &mut doubt.heard_by } else { &mut doubt.confirmed_by };
                    side.insert(from);
                }
            }
            Input::Doubted(name) => {
                if self.linked.contains_key(&name) && !self.watches.contains_key(&name) {
                    self.check(name, now);
                    self.check_all(now);
                }
            }
            Input::Tick => self.tick(now, out),
        }
        self.due = self.next();
    }

    /// When the machine wants its next [`Input::Tick`].
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.due
    }

    fn next(&self) -> Option<Instant> {
        let next = |watch: &Watch| {
            let doubt = match &watch.doubt {
                Some(doubt) => doubt.since + self.stretch(self.config.suspicion),
                None => self.doubt_at(watch),
            };
            watch.next_beat.min(doubt)
        };
        self.watches.values().map(next).min()
    }

    /// Suspicion level of a linked peer now; 0 for one that is not watched.
    #[must_use]
    pub fn phi(&self, name: &NodeName, now: Instant) -> f64 {
        self.watches.get(name).map_or(0.0, |watch| self.phi_of(watch, now))
    }

    /// How much this node distrusts itself, 0 to 8.
    #[must_use]
    pub fn health(&self) -> u32 {
        self.health
    }

    /// Whether a peer is watched now.
    #[must_use]
    pub fn watches(&self, name: &NodeName) -> bool {
        self.watches.contains_key(name)
    }

    /// The peers watched now.
    pub fn watched(&self) -> impl Iterator<Item = &NodeName> {
        self.watches.keys()
    }

    fn heard(&mut self, name: &NodeName, at: Instant, out: &mut Vec<Output>) {
        let Some(watch) = self.watches.get_mut(name) else { return };
        if at <= watch.heard {
            return;
        }
        watch.heard = at;
        if watch.doubt.take().is_some() {
            out.push(Output::Cleared(name.clone()));
        }
        if watch.answer_by.take().is_some() {
            self.choose(at); // it has answered: others watch it
        }
    }

    /// Watches everybody, or the next ones on the ring.
    fn choose(&mut self, now: Instant) {
        let all = self.linked.len() <= self.config.all_up_to;
        let many = if all { self.linked.len() } else { self.config.watched };
        let after = self.linked.range::<NodeName, _>(&self.me..);
        let ring = after.chain(self.linked.range::<NodeName, _>(..&self.me));
        let wanted: BTreeSet<NodeName> = ring.take(many).map(|(name, _)| name.clone()).collect();
        self.watches.retain(|name, watch| wanted.contains(name) || watch.answer_by.is_some());
        for name in wanted {
            self.watches.entry(name).or_insert_with(|| Watch::new(now));
        }
    }

    /// Has a peer that is not watched answer soon.
    fn check(&mut self, name: NodeName, now: Instant) {
        let answer_by = Some(now + self.stretch(self.config.answer));
        self.watches.insert(name, Watch { answer_by, ..Watch::new(now) });
    }

    /// Where several peers are doubted at once: has everybody answer, once in a while.
    fn check_all(&mut self, now: Instant) {
        let doubted = |watch: &&Watch| watch.doubt.is_some() || watch.answer_by.is_some();
        let many = self.watches.values().filter(doubted).count() >= self.config.many;
        let rests = self.checked.is_some_and(|at| now < at + self.config.suspicion);
        if many && !rests && self.linked.len() > self.config.all_up_to {
            self.checked = Some(now);
            let unwatched = self.linked.keys().filter(|name| !self.watches.contains_key(*name));
            let unwatched: Vec<NodeName> = unwatched.cloned().collect();
            unwatched.into_iter().for_each(|name| self.check(name, now));
        }
    }

    fn tick(&mut self, now: Instant, out: &mut Vec<Output>) {
        let late = self.due.map_or(Duration::ZERO, |due| now.saturating_duration_since(due));
        if late >= self.config.late {
            self.forgive(late, now, out);
        } else if self.healed.is_none_or(|at| now >= at + self.config.interval) {
            self.health = self.health.saturating_sub(1);
            self.healed = Some(now);
        }
        self.beat(now, out);
        let names: Vec<NodeName> = self.watches.keys().cloned().collect();
        for name in names {
            self.judge(&name, now, out);
        }
        self.check_all(now);
    }

    /// This node was away: whatever the others did meanwhile, it could not hear.
    fn forgive(&mut self, late: Duration, now: Instant, out: &mut Vec<Output>) {
        let steps = u32::try_from(late.as_secs()).unwrap_or(WORST_HEALTH).max(1);
        self.health = (self.health + steps).min(WORST_HEALTH);
        self.healed = Some(now);
        for (name, watch) in &mut self.watches {
            watch.heard = (watch.heard + late).min(now);
            watch.last_beat = None;
            watch.answer_by = watch.answer_by.map(|by| by + late);
            if let Some(doubt) = &mut watch.doubt {
                doubt.since = (doubt.since + late).min(now);
                if watch.heard + self.config.interval >= now {
                    watch.doubt = None;
                    out.push(Output::Cleared(name.clone()));
                }
            }
        }
        out.push(Output::Paused(late));
    }

    /// Beats that are due soon go with one that is due now: peers are linked at different times, and
    /// one tick comes to serve them all. Missed beats are never sent in a burst.
    fn beat(&mut self, now: Instant, out: &mut Vec<Output>) {
        let interval = self.config.interval;
        if self.watches.values().any(|watch| watch.next_beat <= now) {
            for (name, watch) in &mut self.watches {
                if watch.next_beat <= now + interval / 2 {
                    watch.next_beat = now + interval;
                    out.push(Output::Beat(name.clone()));
                }
            }
        }
    }

    fn judge(&mut self, name: &NodeName, now: Instant, out: &mut Vec<Output>) {
        let Some(watch) = self.watches.get(name) else { return };
        match &watch.doubt {
            None if now >= self.doubt_at(watch) => {
                let evidence = self.evidence(watch, now);
                // One that was told of the doubt need not tell it on.
                let own = watch.answer_by.is_none();
                // Those that follow it on the ring: about different suspects different ones are asked.
                let after = self.linked.range::<NodeName, _>(name..);
                let ring = after.chain(self.linked.range::<NodeName, _>(..name));
                let doubted =
                    |via: &NodeName| self.watches.get(via).is_some_and(|w| w.doubt.is_some());
                let asked = ring.map(|(via, _)| via).filter(|via| *via != name && !doubted(via));
                let asked: Vec<NodeName> = asked.take(self.config.probes).cloned().collect();
                let (heard_by, confirmed_by) = (BTreeSet::new(), BTreeSet::new());
                if let Some(watch) = self.watches.get_mut(name) {
                    watch.doubt = Some(Doubt { since: now, heard_by, confirmed_by });
                }
                out.push(Output::Suspect(name.clone(), evidence));
                if self.linked.len() > self.config.all_up_to && own {
                    let others = self.linked.keys().filter(|to| *to != name);
                    let tell = |to: &NodeName| Output::Tell { to: to.clone(), about: name.clone() };
                    out.extend(others.map(tell));
                }
                for via in asked {
                    out.push(Output::Ask { via, about: name.clone() });
                }
            }
            Some(doubt) if now >= doubt.since + self.stretch(self.config.suspicion) => {
                out.push(Output::Silent(name.clone(), self.evidence(watch, now)));
                self.watches.remove(name);
                self.linked.remove(name);
                self.choose(now);
            }
            None | Some(_) => {}
        }
    }

    fn evidence(&self, watch: &Watch, now: Instant) -> Evidence {
        let silence = now.saturating_duration_since(watch.heard);
        let interval = self.config.interval.as_millis().max(1);
        let (heard_by, confirmed_by) = match &watch.doubt {
            Some(doubt) => (doubt.heard_by.clone(), doubt.confirmed_by.clone()),
            None => Default::default(),
        };
        Evidence {
            phi: self.phi_of(watch, now),
            missed: u64::try_from(silence.as_millis() / interval).unwrap_or(u64::MAX),
            silence,
            heard_by,
            confirmed_by,
            traces: Traces::default(),
        }
    }

    fn stretch(&self, time: Duration) -> Duration {
        time + time * self.health / WORST_HEALTH
    }

    /// Mean (with the acceptable pause) and deviation of a peer's beats, in seconds.
    fn estimate(&self, watch: &Watch) -> (f64, f64) {
        let (mean, sigma) = watch.rhythm.unwrap_or((self.config.interval.as_secs_f64(), 0.0));
        // What a disturbance leaves in the samples must not put off the next doubt at will.
        let mean = mean.min(self.config.interval.as_secs_f64() * 1.25);
        let [least, most] = [self.config.sigma, self.config.most_sigma].map(|d| d.as_secs_f64());
        (mean + self.stretch(self.config.pause).as_secs_f64(), sigma.clamp(least, most))
    }

    fn phi_of(&self, watch: &Watch, now: Instant) -> f64 {
        let (mean, sigma) = self.estimate(watch);
        phi(now.saturating_duration_since(watch.heard).as_secs_f64(), mean, sigma)
    }

    /// When doubt begins unless something is heard: phi reaches the threshold, or the answer of a peer
    /// that another node doubts is overdue.
    fn doubt_at(&self, watch: &Watch) -> Instant {
        let (mean, sigma) = self.estimate(watch);
        let silence = Duration::try_from_secs_f64(mean + self.sigmas * sigma);
        let at = watch.heard + silence.unwrap_or(self.config.pause);
        watch.answer_by.map_or(at, |by| by.min(at))
    }
}

impl Watch {
    fn new(now: Instant) -> Self {
        Self {
            heard: now,
            last_beat: None,
            intervals: VecDeque::new(),
            rhythm: None,
            next_beat: now,
            doubt: None,
            answer_by: None,
        }
    }

    fn sample(&mut self, at: Instant, config: &Config) {
        if let Some(last) = self.last_beat.replace(at) {
            self.intervals.push_back(at.saturating_duration_since(last));
            if self.intervals.len() > config.window {
                self.intervals.pop_front();
            }
            let enough = self.intervals.len() >= config.samples;
            self.rhythm = enough.then(|| mean_and_deviation(&self.intervals));
        }
    }
}

/// Of some samples, in seconds.
fn mean_and_deviation(samples: &VecDeque<Duration>) -> (f64, f64) {
    let count = samples.len() as f64;
    let mean = samples.iter().map(Duration::as_secs_f64).sum::<f64>() / count;
    let square = |sample: &Duration| (sample.as_secs_f64() - mean).powi(2);
    (mean, (samples.iter().map(square).sum::<f64>() / count).sqrt())
}

/// How many deviations beyond the mean phi reaches `threshold`: the same for every mean and
/// deviation, so this is worked out once and not for every peer at every input.
fn sigmas(threshold: f64) -> f64 {
    // phi rises with time; before 20 sigma it passes any sensible threshold.
    let (mut low, mut high) = (-20.0, 20.0);
    for _ in 0..40 {
        let middle = f64::midpoint(low, high);
        if phi(middle, 0.0, 1.0) < threshold { low = middle } else { high = middle }
    }
    high
}

/// Suspicion level after `t` seconds of silence, for beats of this mean and deviation.
///
/// With y = (t − m)/σ and e = exp(−y(1.5976 + 0.070566 y²)): −log10(e/(1+e)) for t > m, else
/// −log10(1 − 1/(1+e)).
#[must_use]
pub fn phi(t: f64, mean: f64, sigma: f64) -> f64 {
    let y = (t - mean) / sigma;
    let e = (-y * (1.5976 + 0.070_566 * y * y)).exp();
    let tail = if t > mean { e / (1.0 + e) } else { 1.0 - 1.0 / (1.0 + e) };
    // Beyond what a double can tell from zero, phi is as good as endless; 300 keeps it a number.
    if tail <= 1e-300 { 300.0 } else { 0.0 - tail.log10() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::tests::start;

    fn name(text: &str) -> NodeName {
        text.parse().expect("valid")
    }

    /// One monitor, peers that beat when told to, and a clock that runs from deadline to deadline.
    struct World {
        machine: Heartbeat,
        now: Instant,
        out: Vec<(Duration, Output)>,
        start: Instant,
    }

    impl World {
        fn new(peers: &[&str]) -> Self {
            let start = start();
            let machine = Heartbeat::new(Config::default(), name("a@h"));
            let mut world = Self { machine, now: start, out: Vec::new(), start };
            for peer in peers {
                world.input(Input::Linked(name(peer)));
            }
            world
        }

        fn input(&mut self, input: Input) {
            let mut out = Vec::new();
            self.machine.handle(input, self.now, &mut out);
            let at = self.now - self.start;
            self.out.extend(out.into_iter().map(|output| (at, output)));
        }

        /// Runs until `until`; each of `alive` beats every second.
        fn run(&mut self, until: f64, alive: &[&str]) {
            let end = self.start + Duration::from_secs_f64(until);
            while self.now < end {
                let second = (self.now - self.start).as_secs() + 1;
                let beat = self.start + Duration::from_secs(second);
                let tick = self.machine.deadline().filter(|at| *at < beat && *at < end);
                self.now = tick.unwrap_or(beat).max(self.now).min(end);
                if self.now == beat {
                    for peer in alive {
                        self.input(Input::Beat(name(peer), self.now));
                    }
                } else {
                    self.input(Input::Tick);
                }
            }
        }

        fn when(&self, wanted: impl Fn(&Output) -> bool) -> Vec<f64> {
            let found = self.out.iter().filter(|(_, output)| wanted(output));
            found.map(|(at, _)| at.as_secs_f64()).collect()
        }
    }

    fn is_suspect(output: &Output) -> bool {
        matches!(output, Output::Suspect(..))
    }

    fn is_silent(output: &Output) -> bool {
        matches!(output, Output::Silent(..))
    }

    #[test]
    fn phi_matches_the_normal_distribution() {
        // Survival of the standard normal at so many sigma, as −log10.
        for (y, expected) in [(0.0, 0.301), (1.0, 0.7995), (2.0, 1.643), (3.0, 2.870)] {
            let found = phi(10.0 + y, 10.0, 1.0);
            assert!((found - expected).abs() < 0.05, "at {y}: {found}");
        }
        // Far out the approximation is eager: 8 comes at 5.2 sigma, not at 5.6.
        assert!(phi(15.1, 10.0, 1.0) < 8.0 && phi(15.3, 10.0, 1.0) > 8.0);
        assert!(phi(0.0, 10.0, 1.0) < 1e-6 && phi(1e9, 10.0, 1.0) >= 300.0);
    }

    #[test]
    fn a_silent_peer_is_suspect_within_six_and_given_up_within_ten_seconds() {
        let mut world = World::new(&["b@h", "c@h"]);
        world.run(20.0, &["b@h", "c@h"]);
        assert_eq!((world.when(is_suspect), world.when(is_silent)), (vec![], vec![]));
        world.run(40.0, &["c@h"]);
        let (suspect, silent) = (world.when(is_suspect), world.when(is_silent));
        assert_eq!((suspect.len(), silent.len()), (1, 1), "once each");
        assert!((23.0..26.0).contains(&suspect[0]), "suspect at {suspect:?}");
        assert!((27.0..30.0).contains(&silent[0]), "silent at {silent:?}");
        let asked = world.when(|o| matches!(o, Output::Ask { via, .. } if *via == name("c@h")));
        assert_eq!(asked, suspect);
    }

    #[test]
    fn a_peer_that_was_disturbed_before_is_still_found_silent_in_time() {
        let mut world = World::new(&["b@h"]);
        for silence in [2.0, 4.0, 6.0, 8.0] {
            let from = (world.now - world.start).as_secs_f64();
            world.run(from + 3.0, &["b@h"]);
            world.run(from + 3.0 + silence, &[]);
        }
        let from = (world.now - world.start).as_secs_f64();
        world.run(from + 3.0, &["b@h"]);
        assert_eq!(world.when(is_silent), vec![0.0; 0]);
        world.run(from + 20.0, &[]);
        let [suspect, silent] = [world.when(is_suspect), world.when(is_silent)];
        assert!(suspect.last().is_some_and(|at| at - from - 3.0 < 6.0), "{suspect:?}, {from}");
        assert!(silent.last().is_some_and(|at| at - from - 3.0 < 10.0), "{silent:?}, {from}");
    }

    #[test]
    fn a_byte_within_the_suspicion_time_clears_the_doubt() {
        let mut world = World::new(&["b@h"]);
        world.run(10.0, &["b@h"]);
        world.run(16.0, &[]);
        assert_eq!(world.when(is_suspect).len(), 1);
        world.input(Input::Heard(name("b@h"), world.now));
        world.run(30.0, &["b@h"]);
        assert_eq!(world.when(|o| matches!(o, Output::Cleared(_))).len(), 1);
        assert_eq!(world.when(is_silent), vec![0.0; 0]);
    }

    #[test]
    fn the_evidence_tells_who_hears_it_and_who_does_not() {
        let mut world = World::new(&["b@h", "c@h", "d@h"]);
        world.run(10.0, &["b@h", "c@h", "d@h"]);
        world.run(16.0, &["c@h", "d@h"]);
        for (from, hears) in [("c@h", true), ("d@h", false), ("stranger@h", true)] {
            world.input(Input::Answer { from: name(from), about: name("b@h"), hears });
        }
        world.run(20.0, &["c@h", "d@h"]);
        let evidence = world.out.iter().find_map(|(_, output)| {
            if let Output::Silent(_, evidence) = output { Some(evidence.clone()) } else { None }
        });
        let evidence = evidence.expect("given up");
        assert_eq!(evidence.heard_by, BTreeSet::from([name("c@h")]));
        assert_eq!(evidence.confirmed_by, BTreeSet::from([name("d@h")]));
        assert!(evidence.phi >= 8.0 && evidence.missed >= 8 && evidence.silence.as_secs() >= 8);
    }

    #[test]
    fn a_node_that_was_paused_accuses_nobody() {
        for pause in [3, 30, 3600] {
            let mut world = World::new(&["b@h", "c@h"]);
            world.run(10.0, &["b@h", "c@h"]);
            world.now += Duration::from_secs(pause);
            world.input(Input::Tick);
            let end = (world.now - world.start).as_secs_f64() + 30.0;
            world.run(end, &["b@h", "c@h"]);
            assert_eq!(world.when(|o| matches!(o, Output::Paused(_))).len(), 1);
            assert_eq!((world.when(is_suspect), world.when(is_silent)), (vec![], vec![]));
        }
    }

    #[test]
    fn distrust_of_itself_stretches_the_timeouts_and_heals() {
        let mut world = World::new(&["b@h"]);
        world.run(10.0, &["b@h"]);
        world.now += Duration::from_secs(30);
        world.input(Input::Tick);
        assert_eq!(world.machine.health(), 8);
        let paused = (world.now - world.start).as_secs_f64();
        world.run(paused + 20.0, &[]);
        let suspect = world.when(is_suspect);
        assert!(suspect[0] - paused > 4.6, "doubts later than usual: {suspect:?}");
        assert!(world.machine.health() < 8, "heals");
    }

    #[test]
    fn above_twelve_peers_nine_are_watched_and_a_doubt_is_told_to_all() {
        let peers: Vec<String> = (0..40).map(|n| format!("n{n:02}@h")).collect();
        let names: Vec<&str> = peers.iter().map(String::as_str).collect();
        let mut world = World::new(&names);
        let watched: Vec<String> = world.machine.watched().map(ToString::to_string).collect();
        assert_eq!(watched, names[..9], "those after a@h on the ring");
        world.run(10.0, &names[..9]);
        world.run(20.0, &names[1..9]);
        let told =
            world.when(|o| matches!(o, Output::Tell { about, .. } if *about == name("n00@h")));
        assert_eq!((told.len(), told[0]), (39, world.when(is_suspect)[0]));
    }

    #[test]
    fn a_peer_that_another_node_doubts_has_a_second_to_answer() {
        let peers: Vec<String> = (0..40).map(|n| format!("n{n:02}@h")).collect();
        let names: Vec<&str> = peers.iter().map(String::as_str).collect();
        let mut world = World::new(&names);
        world.run(10.0, &names[..9]);
        for about in ["n30@h", "n31@h", "n05@h", "nobody@h"] {
            world.input(Input::Doubted(name(about)));
        }
        assert_eq!(world.machine.watched().count(), 11, "the two that were not watched");
        world.run(10.5, &names[..9]);
        world.input(Input::Heard(name("n31@h"), world.now));
        assert_eq!(world.machine.watched().count(), 10, "it answered: others watch it");
        world.run(30.0, &names[..9]);
        let of = |wanted: fn(&Output) -> bool| world.when(wanted);
        assert_eq!(of(is_suspect), [11.0], "of one alone, and soon");
        assert_eq!(of(is_silent), [15.0]);
        assert_eq!(of(|o| matches!(o, Output::Tell { .. })), vec![0.0; 0], "it is known already");
        assert_eq!(world.machine.watched().count(), 9);
    }

    #[test]
    fn where_many_are_doubted_everybody_is_checked_once_in_a_while() {
        let peers: Vec<String> = (0..40).map(|n| format!("n{n:02}@h")).collect();
        let names: Vec<&str> = peers.iter().map(String::as_str).collect();
        let mut world = World::new(&names);
        world.run(10.0, &names[..9]);
        world.input(Input::Doubted(name("n30@h")));
        world.input(Input::Doubted(name("n31@h")));
        assert_eq!(world.machine.watched().count(), 11);
        world.input(Input::Doubted(name("n32@h")));
        assert_eq!(world.machine.watched().count(), 40);
        world.run(30.0, &names[..30]);
        let silent = world.when(is_silent);
        assert_eq!((silent.len(), silent[0], silent[9]), (10, 15.0, 15.0));
    }

    #[test]
    fn beats_keep_their_rhythm() {
        let mut world = World::new(&["b@h"]);
        world.run(60.0, &["b@h"]);
        let beats = world.when(|o| matches!(o, Output::Beat(_)));
        assert_eq!(beats.len(), 60, "{beats:?}");
    }
}
