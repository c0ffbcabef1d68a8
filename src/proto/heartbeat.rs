//! Who is alive: phi-accrual failure detection with indirect probes, suspicion and self-health.
//!
//! The machine behind HeartbeatMonitor. It sends a beat to each watched peer every interval, takes any
//! inbound byte as life, and turns silence first into doubt, then into a question to others, then
//! into a verdict.
//!
//! # When silence is doubt
//! A beat is answered at once, so an answer comes an interval after the one before it, later or earlier by what the round
//! trip changed. The deviation of these changes, sampled of every watched peer, is that of the normal distribution behind
//! phi; its mean is the interval and the acceptable pause. Phi reaches 8 at 5.3 deviations: after 4.1 s of silence on a
//! steady link, after 5.6 s on the most jittery one, and after 4.5 s on one without enough samples.
//!
//! # Sources
//! - Phi: Hayashibara et al., "The φ Accrual Failure Detector" (SRDS 2004), with the logistic
//!   approximation of the normal distribution and the parameters of Akka.
//! - Jitter as the difference of successive transit times: RFC 3550, section 6.4.1.
//! - Indirect probes and suspicion: Das, Gupta, Motivala, "SWIM" (DSN 2002).
//! - Self-health: Dadgar, Phillips, Currey, "Lifeguard" (DSN 2018): a node that was itself late
//!   distrusts its own clock first and stretches its timeouts.
//!
//! # A silent peer, step by step
//! ```text
//! phi ≥ 8       suspect; up to 3 other peers are asked whether they hear it
//! within 4 s    any byte from it clears the doubt
//! after 4 s     silent: its link is given up, with the evidence; after 12 s where it is reached by other means
//! ```
//!
//! # Above 12 peers
//! Each node watches the 9 peers that follow it on the ring of names, so the cost of a node does not
//! grow with the cluster. Who doubts a peer accuses it to the others, which do not take that on trust: one that does
//! not watch that peer sends it a beat. The first accuser alone changes nothing else: the peer has as long to answer
//! as one that is watched. Once a second one accuses it, too, it is doubted when nothing has come back within a second
//! of the beat. So every node reaches its own verdict at about the same time, and one liar cannot hasten it. Where
//! three are doubted at once, by this node or by two others each, it may be half of the cluster, and those who watched
//! the others of it may be cut off as well: a node then checks everybody it is linked with in the same way.
//!
//! # What others say
//! Answers to questions about a peer are kept as evidence and change no time. Only who was asked can answer, once, and
//! nothing is concluded from one answer alone.
//!
//! # Invariants
//! 1. A peer is declared silent only after it was suspect for the whole suspicion time, on a clock
//!    that this node had no reason to doubt in between.
//! 2. Only a linked peer is watched, suspect, or declared silent; a new link starts from nothing.
//! 3. After a pause of this node no peer is worse off than at the last tick before it.
//! 4. Memory is bounded: 200 samples a watched peer, one open question a suspect.
//! 5. What one other node says of a peer hastens no doubt and delays no verdict: a byte of the peer itself ends both.
//! 6. Whatever was sampled, doubt begins after 4 to 5.6 s of silence, longer only by what `local_health` stretches.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use crate::proto::node::NodeName;

mod evidence;
pub mod monitor;
mod phi;
mod trips;
pub use evidence::{Evidence, Traces};
pub use monitor::{MAX_WORD, Monitor, Pulses, RoundTrip, Signs, Vital, Word};
pub use phi::phi;
use phi::{deviation, sigmas};
pub use trips::Trips;

/// Settings of the machine.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Between two beats.
    pub interval: Duration,
    /// Doubt from this phi on.
    pub phi: f64,
    /// Samples kept of each watched peer.
    pub max_samples: usize,
    /// Below this many, a tenth of the interval is the deviation.
    pub min_samples: usize,
    /// The smallest standard deviation of round trips believed.
    pub min_std_deviation: Duration,
    /// The largest one: a peer that was disturbed before is still found silent in time.
    pub max_std_deviation: Duration,
    /// Silence that is acceptable beyond the interval.
    pub acceptable_pause: Duration,
    /// How soon a peer that two others doubt has to answer a beat.
    pub answer: Duration,
    /// So many doubted at once are reason to check everybody.
    pub mass_suspicion: usize,
    /// Peers asked about a suspect.
    pub probes: usize,
    /// How long a suspect can answer.
    pub suspicion: Duration,
    /// How much longer it can while it is reached by other means: its line is bad.
    pub bad_line: Duration,
    /// A tick this much later than asked for is a pause of this node.
    pub stall_threshold: Duration,
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
            max_samples: 200,
            min_samples: 4,
            min_std_deviation: Duration::from_millis(20),
            max_std_deviation: Duration::from_millis(300),
            acceptable_pause: Duration::from_secs(3),
            answer: Duration::from_secs(1),
            mass_suspicion: 3,
            probes: 3,
            suspicion: Duration::from_secs(4),
            bad_line: Duration::from_secs(8),
            stall_threshold: Duration::from_secs(1),
            all_up_to: 12,
            watched: 9,
        }
    }
}

/// So many others have to say the same of a peer before anything follows from it.
pub(crate) const WITNESSES: usize = 2;
/// The worst `local_health`; each step stretches the timeouts by an eighth.
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
    /// A peer answered a beat after this time.
    Pong(NodeName, Duration),
    /// Another peer says whether it hears a suspect.
    Answer {
        /// Who says so.
        from: NodeName,
        /// About whom.
        about: NodeName,
        /// Whether it has heard it since it was asked.
        hears: bool,
    },
    /// A peer doubts another one.
    Doubted {
        /// Who says so.
        by: NodeName,
        /// About whom.
        about: NodeName,
    },
    /// Whether a doubted peer is reached by other means than its connection, as of now.
    Reached(NodeName, bool),
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
    /// The last answer took this long.
    round_trip: Option<Duration>,
    /// By how many seconds each answer took longer than the one before it.
    changes: VecDeque<f64>,
    /// The deviation of `changes` in seconds, once there are enough.
    deviation: Option<f64>,
    next_beat: Instant,
    doubt: Option<Doubt>,
    /// Why it is watched out of turn.
    accused: Option<Accused>,
}

/// Others doubt a peer, and it was sent a beat.
#[derive(Debug)]
struct Accused {
    /// When.
    asked: Instant,
    /// The only one who doubts it; `None` when more do, or nearly everybody may have to be doubted.
    by: Option<NodeName>,
}

#[derive(Debug)]
struct Doubt {
    since: Instant,
    /// Who was asked and has not answered.
    asked: BTreeSet<NodeName>,
    heard_by: BTreeSet<NodeName>,
    confirmed_by: BTreeSet<NodeName>,
    reached: bool,
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
    local_health: u32,
    healed: Option<Instant>,
    /// When everybody was last checked.
    checked: Option<Instant>,
}

impl Heartbeat {
    /// A monitor that watches nobody yet.
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
            local_health: 0,
            healed: None,
            checked: None,
        }
    }

    /// Takes one input and appends what follows from it.
    pub fn handle(&mut self, input: Input, now: Instant, out: &mut Vec<Output>) {
        if let Input::Heard(name, _) | Input::Pong(name, _) = &input
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
            Input::Pong(name, round_trip) => {
                // What arrived during a stall of this node was not measured.
                let stalled = self.late(now) >= self.config.stall_threshold;
                if let Some(watch) = self.watches.get_mut(&name).filter(|_| !stalled) {
                    watch.sample(round_trip, &self.config);
                }
            }
            Input::Answer { from, about, hears } => {
                let doubt = self.watches.get_mut(&about).and_then(|watch| watch.doubt.as_mut());
                if let Some(doubt) = doubt
                    && doubt.asked.remove(&from)
                {
                    let side = if hears { &mut doubt.heard_by } else { &mut doubt.confirmed_by };
                    side.insert(from);
                }
            }
            Input::Doubted { by, about } => self.accuse(by, about, now),
            Input::Reached(name, reached) => {
                let doubt = self.watches.get_mut(&name).and_then(|watch| watch.doubt.as_mut());
                doubt.into_iter().for_each(|doubt| doubt.reached = reached);
            }
            Input::Tick => self.tick(now, out),
        }
        self.due = self.next();
    }

    /// When the machine wants its next [`Input::Tick`].
    pub fn deadline(&self) -> Option<Instant> {
        self.due
    }

    fn next(&self) -> Option<Instant> {
        let next = |watch: &Watch| {
            let doubt = match &watch.doubt {
                Some(doubt) => self.verdict_at(doubt),
                None => self.doubt_at(watch),
            };
            watch.next_beat.min(doubt)
        };
        self.watches.values().map(next).min()
    }

    /// Suspicion level of a linked peer now; 0 for one that is not watched.
    pub fn phi(&self, name: &NodeName, now: Instant) -> f64 {
        self.watches.get(name).map_or(0.0, |watch| self.phi_of(watch, now))
    }

    /// How much the timeouts of this node are stretched after it was late itself: 0, healthy, to 8.
    pub fn local_health(&self) -> u32 {
        self.local_health
    }

    /// How much later it is than a tick was due.
    fn late(&self, now: Instant) -> Duration {
        self.due.map_or(Duration::ZERO, |due| now.saturating_duration_since(due))
    }

    /// Whether a peer is watched now.
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
        if watch.accused.take().is_some() {
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
        self.watches.retain(|name, watch| wanted.contains(name) || watch.accused.is_some());
        for name in wanted {
            self.watches.entry(name).or_insert_with(|| Watch::new(now));
        }
    }

    /// A peer doubts another one. If that one is not watched here, it is sent a beat.
    fn accuse(&mut self, by: NodeName, about: NodeName, now: Instant) {
        if by == about || !self.linked.contains_key(&by) || !self.linked.contains_key(&about) {
            return;
        }
        let answer = self.stretch(self.config.answer);
        let Some(watch) = self.watches.get_mut(&about) else {
            return self.check(about, Some(by), now);
        };
        if let Some(accused) = &mut watch.accused
            && accused.by.as_ref().is_some_and(|first| *first != by)
        {
            accused.confirm(answer, now);
            self.check_all(now);
        }
    }

    /// Has a peer that is not watched answer a beat: soon, unless only one accuses it.
    fn check(&mut self, name: NodeName, by: Option<NodeName>, now: Instant) {
        let accused = Some(Accused { asked: now, by });
        self.watches.insert(name, Watch { accused, ..Watch::new(now) });
    }

    /// Where several peers are doubted at once: has everybody answer, once in a while.
    fn check_all(&mut self, now: Instant) {
        let agreed = |watch: &Watch| watch.accused.as_ref().is_some_and(|it| it.by.is_none());
        let doubted = |watch: &&Watch| watch.doubt.is_some() || agreed(watch);
        let many = self.watches.values().filter(doubted).count() >= self.config.mass_suspicion;
        let rests = self.checked.is_some_and(|at| now < at + self.config.suspicion);
        if many && !rests && self.linked.len() > self.config.all_up_to {
            self.checked = Some(now);
            let answer = self.stretch(self.config.answer);
            let accused = self.watches.values_mut().filter_map(|watch| watch.accused.as_mut());
            accused.for_each(|accused| accused.confirm(answer, now));
            let unwatched = self.linked.keys().filter(|name| !self.watches.contains_key(*name));
            let unwatched: Vec<NodeName> = unwatched.cloned().collect();
            unwatched.into_iter().for_each(|name| self.check(name, None, now));
        }
    }

    fn tick(&mut self, now: Instant, out: &mut Vec<Output>) {
        let late = self.late(now);
        if late >= self.config.stall_threshold {
            self.forgive(late, now, out);
        } else if self.healed.is_none_or(|at| now >= at + self.config.interval) {
            self.local_health = self.local_health.saturating_sub(1);
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
        self.local_health = (self.local_health + steps).min(WORST_HEALTH);
        self.healed = Some(now);
        for (name, watch) in &mut self.watches {
            watch.heard = (watch.heard + late).min(now);
            watch.accused.iter_mut().for_each(|it| it.asked = (it.asked + late).min(now));
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
                // Who doubts because others do need not accuse.
                let own = watch.accused.as_ref().is_none_or(|it| it.by.is_some());
                // Those that follow it on the ring: about different suspects different ones are asked.
                let after = self.linked.range::<NodeName, _>(name..);
                let ring = after.chain(self.linked.range::<NodeName, _>(..name));
                let doubted =
                    |via: &NodeName| self.watches.get(via).is_some_and(|w| w.doubt.is_some());
                let asked = ring.map(|(via, _)| via).filter(|via| *via != name && !doubted(via));
                let asked: Vec<NodeName> = asked.take(self.config.probes).cloned().collect();
                if let Some(watch) = self.watches.get_mut(name) {
                    watch.doubt = Some(Doubt::new(now, &asked));
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
            Some(doubt) if now >= self.verdict_at(doubt) => {
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

    /// When a peer is given up unless something is heard.
    fn verdict_at(&self, doubt: &Doubt) -> Instant {
        let more = if doubt.reached { self.config.bad_line } else { Duration::ZERO };
        doubt.since + self.stretch(self.config.suspicion + more)
    }

    fn stretch(&self, time: Duration) -> Duration {
        time + time * self.local_health / WORST_HEALTH
    }

    /// Mean, with the acceptable pause, and deviation of the time between a peer's answers, in seconds.
    fn estimate(&self, watch: &Watch) -> (f64, f64) {
        let Config { interval, min_std_deviation, max_std_deviation, .. } = &self.config;
        let mean = *interval + self.stretch(self.config.acceptable_pause);
        let deviation = watch.deviation.unwrap_or(interval.as_secs_f64() / 10.0);
        let [min, max] = [min_std_deviation, max_std_deviation].map(Duration::as_secs_f64);
        (mean.as_secs_f64(), deviation.clamp(min, max))
    }

    fn phi_of(&self, watch: &Watch, now: Instant) -> f64 {
        let (mean, sigma) = self.estimate(watch);
        phi(now.saturating_duration_since(watch.heard).as_secs_f64(), mean, sigma)
    }

    /// When doubt begins unless something is heard: phi reaches the threshold, or the answer of a peer that others doubt
    /// is overdue.
    fn doubt_at(&self, watch: &Watch) -> Instant {
        let (mean, sigma) = self.estimate(watch);
        let silence = Duration::try_from_secs_f64(mean + self.sigmas * sigma);
        let at = watch.heard + silence.unwrap_or(self.config.acceptable_pause);
        let agreed = watch.accused.as_ref().filter(|it| it.by.is_none());
        agreed.map_or(at, |it| at.min(it.asked + self.stretch(self.config.answer)))
    }
}

impl Accused {
    /// The peer has `answer` since the beat. Of one that had longer the doubt is due now, not before.
    fn confirm(&mut self, answer: Duration, now: Instant) {
        self.by = None;
        self.asked = now.checked_sub(answer).map_or(self.asked, |at| self.asked.max(at));
    }
}

impl Doubt {
    /// One that begins now, about which these are asked.
    fn new(since: Instant, asked: &[NodeName]) -> Self {
        let asked = asked.iter().cloned().collect();
        let (heard_by, confirmed_by) = (BTreeSet::new(), BTreeSet::new());
        Self { since, asked, heard_by, confirmed_by, reached: false }
    }
}

impl Watch {
    fn new(now: Instant) -> Self {
        Self {
            heard: now,
            round_trip: None,
            changes: VecDeque::new(),
            deviation: None,
            next_beat: now,
            doubt: None,
            accused: None,
        }
    }

    fn sample(&mut self, round_trip: Duration, config: &Config) {
        let took = round_trip.as_secs_f64();
        if let Some(last) = self.round_trip.replace(round_trip) {
            self.changes.push_back(took - last.as_secs_f64());
            if self.changes.len() > config.max_samples {
                self.changes.pop_front();
            }
            let enough = self.changes.len() >= config.min_samples;
            self.deviation = enough.then(|| deviation(&self.changes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::tests::start;

    mod liar;

    fn name(text: &str) -> NodeName {
        text.parse().expect("valid")
    }

    /// One monitor, peers that beat when told to, and a clock that runs from deadline to deadline.
    struct World {
        machine: Heartbeat,
        /// When each peer last answered.
        heard: BTreeMap<NodeName, Instant>,
        now: Instant,
        out: Vec<(Duration, Output)>,
        start: Instant,
    }

    impl World {
        fn new(peers: &[&str]) -> Self {
            let start = start();
            let machine = Heartbeat::new(Config::default(), name("a@h"));
            let heard = BTreeMap::new();
            let mut world = Self { machine, heard, now: start, out: Vec::new(), start };
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

        /// A peer answers the beat of a second after the last one that it answered.
        fn answers(&mut self, peer: &str) {
            let interval = self.machine.config.interval;
            let due = self.heard.insert(name(peer), self.now).map(|at| at + interval);
            let round_trip = due.map_or(Duration::ZERO, |due| self.now - due.min(self.now));
            self.input(Input::Pong(name(peer), round_trip));
            self.input(Input::Heard(name(peer), self.now));
        }

        /// Runs until `until`; each of `alive` answers every second.
        fn run(&mut self, until: f64, alive: &[&str]) {
            let end = self.start + Duration::from_secs_f64(until);
            while self.now < end {
                let second = (self.now - self.start).as_secs() + 1;
                let beat = self.start + Duration::from_secs(second);
                let tick = self.machine.deadline().filter(|at| *at < beat && *at < end);
                self.now = tick.unwrap_or(beat).max(self.now).min(end);
                if self.now == beat {
                    for peer in alive {
                        self.answers(peer);
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
    fn a_silent_peer_behind_a_bad_line_is_given_up_later_and_at_once_when_it_is_reached_no_more() {
        for (until, given_up) in [(18.0, 16.0..17.0), (10.0, 10.0..11.0), (8.0, 8.0..9.0)] {
            let mut world = World::new(&["b@h"]);
            world.run(5.0, &[]);
            assert_eq!(world.when(is_suspect).len(), 1);
            world.input(Input::Reached(name("b@h"), true));
            world.run(until, &[]);
            world.input(Input::Reached(name("b@h"), false));
            world.run(30.0, &[]);
            let [silent] = world.when(is_silent)[..] else { panic!("given up once") };
            assert!(given_up.contains(&silent), "{silent} is not in {given_up:?}");
        }
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

    /// Silence that is doubt, after answers that took these milliseconds.
    fn patience(round_trips: impl IntoIterator<Item = u64>) -> f64 {
        let mut world = World::new(&["b@h"]);
        for millis in round_trips {
            world.input(Input::Pong(name("b@h"), Duration::from_millis(millis)));
        }
        world.run(20.0, &[]);
        let [suspect] = world.when(is_suspect)[..] else { panic!("one doubt") };
        suspect
    }

    #[test]
    fn doubt_comes_sooner_on_a_steady_link_and_later_on_a_jittery_one_within_bounds() {
        let within = |range: std::ops::Range<f64>, found: f64| {
            assert!(range.contains(&found), "{found} is not in {range:?}");
        };
        within(4.5..4.6, patience([]));
        within(4.5..4.6, patience([5, 900, 5, 900])); // three changes are too few
        // A long way is no jitter.
        within(4.1..4.15, patience([2; 50]));
        within(4.1..4.15, patience([800; 50]));
        let jitter = |size: u64| patience((0..50).map(move |at| at % 2 * size));
        let by_jitter = [20, 60, 120, 200, 280].map(jitter);
        assert!(by_jitter.is_sorted_by(|less, more| less + 0.15 < *more), "{by_jitter:?}");
        within(5.5..5.6, jitter(5_000));
        // What is long past counts no more.
        within(4.1..4.15, patience((0..20).map(|at| at % 2 * 900).chain([2; 201])));
    }

    #[test]
    fn a_stall_of_this_node_is_no_jitter_of_its_peers() {
        let mut world = World::new(&["b@h"]);
        world.run(20.0, &["b@h"]);
        world.now += Duration::from_secs(30);
        world.answers("b@h");
        world.input(Input::Tick);
        let woken = (world.now - world.start).as_secs_f64();
        world.run(woken + 20.0, &["b@h"]);
        world.run(woken + 40.0, &[]);
        let suspect = world.when(is_suspect);
        assert!(suspect[0] - woken < 24.2, "as soon as on any steady link: {suspect:?}, {woken}");
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
        assert_eq!(world.machine.local_health(), 8);
        let paused = (world.now - world.start).as_secs_f64();
        world.run(paused + 20.0, &[]);
        let suspect = world.when(is_suspect);
        assert!(suspect[0] - paused > 4.6, "doubts later than usual: {suspect:?}");
        assert!(world.machine.local_health() < 8, "heals");
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

    /// One of more than 12, which watches n00 to n08 of n00 to n39 and has run for ten seconds.
    fn one_of_many() -> (World, Vec<String>) {
        let peers: Vec<String> = (0..40).map(|n| format!("n{n:02}@h")).collect();
        let names: Vec<&str> = peers.iter().map(String::as_str).collect();
        let mut world = World::new(&names);
        world.run(10.0, &names[..9]);
        (world, peers)
    }

    fn doubted(by: &str, about: &str) -> Input {
        Input::Doubted { by: name(by), about: name(about) }
    }

    #[test]
    fn a_peer_that_two_others_doubt_has_a_second_to_answer() {
        let (mut world, peers) = one_of_many();
        let names: Vec<&str> = peers.iter().map(String::as_str).collect();
        for about in ["n30@h", "n31@h", "n05@h", "nobody@h"] {
            ["n28@h", "n29@h"].into_iter().for_each(|by| world.input(doubted(by, about)));
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
    fn what_one_other_says_of_a_peer_makes_this_node_look_and_see_for_itself() {
        let (mut world, peers) = one_of_many();
        let names: Vec<&str> = peers.iter().map(String::as_str).collect();
        // The same one again, one that is not linked, and the peer itself are no second accuser.
        for by in ["n28@h", "n28@h", "nobody@h", "n30@h"] {
            world.input(doubted(by, "n30@h"));
        }
        let beat = |o: &Output| matches!(o, Output::Beat(to) if *to == name("n30@h"));
        world.run(10.1, &names[..9]);
        assert_eq!(world.when(beat).len(), 1, "it is asked at once");
        world.run(30.0, &names[..9]);
        let [suspect, silent] = [world.when(is_suspect), world.when(is_silent)];
        assert_eq!((suspect.len(), silent.len()), (1, 1));
        assert!((14.0..15.0).contains(&suspect[0]), "as any other silent peer: {suspect:?}");
        assert!((18.0..19.0).contains(&silent[0]), "{silent:?}");
        let accused = world.when(|o| matches!(o, Output::Tell { .. }));
        assert_eq!((accused.len(), accused[0]), (39, suspect[0]), "on its own evidence");
    }

    #[test]
    fn a_second_accuser_counts_from_the_beat_that_the_first_one_caused() {
        let (mut world, peers) = one_of_many();
        let names: Vec<&str> = peers.iter().map(String::as_str).collect();
        world.input(doubted("n28@h", "n30@h"));
        world.run(12.5, &names[..9]);
        assert_eq!(world.when(is_suspect), vec![0.0; 0]);
        world.input(doubted("n29@h", "n30@h"));
        world.run(30.0, &names[..9]);
        assert_eq!((world.when(is_suspect), world.when(is_silent)), (vec![12.5], vec![16.5]));
    }

    #[test]
    fn where_many_are_doubted_everybody_is_checked_once_in_a_while() {
        let (mut world, peers) = one_of_many();
        let names: Vec<&str> = peers.iter().map(String::as_str).collect();
        for about in ["n30@h", "n31@h", "n32@h", "n33@h"] {
            world.input(doubted("n28@h", about));
        }
        assert_eq!(world.machine.watched().count(), 13, "one accuser is no reason to doubt all");
        world.input(doubted("n29@h", "n30@h"));
        world.input(doubted("n29@h", "n31@h"));
        assert_eq!(world.machine.watched().count(), 13);
        world.input(doubted("n29@h", "n32@h"));
        assert_eq!(world.machine.watched().count(), 40);
        world.run(30.0, &names[..30]);
        let silent = world.when(is_silent);
        assert_eq!((silent.len(), silent[0], silent[9]), (10, 15.0, 15.0));
    }

    #[test]
    fn only_the_first_answer_of_one_that_was_asked_counts() {
        let (mut world, peers) = one_of_many();
        let names: Vec<&str> = peers.iter().map(String::as_str).collect();
        world.run(16.0, &names[1..9]);
        let asked = |o: &Output| matches!(o, Output::Ask { about, .. } if *about == name("n00@h"));
        assert_eq!(world.when(asked).len(), 3, "n01 to n03");
        for (from, hears) in [("n01@h", true), ("n01@h", false), ("n20@h", true)] {
            world.input(Input::Answer { from: name(from), about: name("n00@h"), hears });
        }
        world.run(20.0, &names[1..9]);
        let evidence = world.out.iter().find_map(|(_, output)| {
            if let Output::Silent(_, evidence) = output { Some(evidence.clone()) } else { None }
        });
        let evidence = evidence.expect("given up");
        assert_eq!(evidence.heard_by, BTreeSet::from([name("n01@h")]));
        assert_eq!(evidence.confirmed_by, BTreeSet::new());
    }

    #[test]
    fn beats_keep_their_rhythm() {
        let mut world = World::new(&["b@h"]);
        world.run(60.0, &["b@h"]);
        let beats = world.when(|o| matches!(o, Output::Beat(_)));
        assert_eq!(beats.len(), 60, "{beats:?}");
    }
}
