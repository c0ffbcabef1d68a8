//! Many monitors, one of which says what it likes: it can neither have a peer that lives given up nor keep a dead one.

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

/// Time passes in steps of this length; a byte takes one.
const STEP: Duration = Duration::from_millis(20);
/// How long one that is asked listens.
const LISTEN: Duration = crate::proto::questions::LISTEN;
/// A peer that falls silent is given up within this, and above 12 peers within a second more.
const PROMISE: Duration = Duration::from_secs(11);

/// A peer that is away for less than this is not doubted: its last answer came an interval before, its next one comes an
/// interval after, each up to two steps late, and doubt takes 4.53 s.
const SHORT: u64 = 2_450;

/// Nodes that are all linked with each other. The last one is the liar.
struct Cluster {
    monitors: Vec<Heartbeat>,
    rng: StdRng,
    start: Instant,
    now: Instant,
    /// One that does not answer from then until then.
    away: (usize, Duration, Duration),
    /// On their way: when, to whom, what.
    mail: VecDeque<(Instant, usize, Input)>,
    suspected: Vec<(usize, NodeName, Duration)>,
    silent: Vec<(usize, NodeName, Duration)>,
}

fn node(at: usize) -> NodeName {
    format!("n{at:02}@h").parse().expect("valid")
}

impl Cluster {
    fn new(nodes: usize, seed: u64, away: (usize, Duration, Duration)) -> Self {
        let start = start();
        let monitor = |at| Heartbeat::new(Config::default(), node(at));
        let mut monitors: Vec<Heartbeat> = (0..nodes).map(monitor).collect();
        for (at, monitor) in monitors.iter_mut().enumerate() {
            for peer in (0..nodes).filter(|peer| *peer != at) {
                monitor.handle(Input::Linked(node(peer)), start, &mut Vec::new());
            }
        }
        let (rng, mail) = (StdRng::seed_from_u64(seed), VecDeque::new());
        let (suspected, silent) = (Vec::new(), Vec::new());
        Self { monitors, rng, start, now: start, away, mail, suspected, silent }
    }

    fn liar(&self) -> usize {
        self.monitors.len() - 1
    }

    fn is_away(&self, node: usize) -> bool {
        let (away, from, until) = self.away;
        node == away && (from..until).contains(&(self.now - self.start))
    }

    fn run(&mut self, time: Duration) {
        while self.now < self.start + time {
            self.now += STEP;
            while self.mail.front().is_some_and(|mail| mail.0 <= self.now) {
                let Some((_, to, input)) = self.mail.pop_front() else { break };
                self.input(to, input);
            }
            for at in (0..self.liar()).filter(|at| !self.is_away(*at)).collect::<Vec<_>>() {
                if self.monitors[at].deadline().is_some_and(|due| due <= self.now) {
                    self.input(at, Input::Tick);
                }
            }
            self.lie();
        }
    }

    fn input(&mut self, at: usize, input: Input) {
        let mut out = Vec::new();
        self.monitors[at].handle(input, self.now, &mut out);
        for output in out {
            self.perform(at, output);
        }
    }

    fn post(&mut self, wait: Duration, to: usize, input: Input) {
        if to != self.liar() && !self.is_away(to) {
            let when = self.now + wait;
            let place = self.mail.partition_point(|mail| mail.0 <= when);
            self.mail.insert(place, (when, to, input));
        }
    }

    fn perform(&mut self, at: usize, output: Output) {
        let index = |name: &NodeName| name.as_str()[1..3].parse::<usize>().expect("a number");
        let since = self.now - self.start;
        match output {
            Output::Beat(to) if !self.is_away(index(&to)) => {
                // The liar answers beats: else it would be given up itself.
                self.post(STEP, index(&to), Input::Heard(node(at), self.now));
                self.post(STEP, at, Input::Heard(to, self.now + STEP));
            }
            Output::Ask { via, about } => {
                let via = index(&via);
                let hears = if via == self.liar() {
                    self.rng.random()
                } else {
                    !self.is_away(index(&about))
                };
                if !self.is_away(via) {
                    self.post(LISTEN, at, Input::Answer { from: node(via), about, hears });
                }
            }
            Output::Tell { to, about } => {
                self.post(STEP, index(&to), Input::Doubted { by: node(at), about });
            }
            Output::Suspect(peer, _) => self.suspected.push((at, peer, since)),
            Output::Silent(peer, _) => self.silent.push((at, peer, since)),
            Output::Beat(_) | Output::Cleared(_) | Output::Paused(_) => {}
        }
    }

    /// The liar accuses somebody to everybody, and answers what it was not asked.
    fn lie(&mut self) {
        let (liar, away) = (self.liar(), self.away.0);
        if self.rng.random_ratio(7, 8) {
            return;
        }
        for to in 0..liar {
            let target = if self.rng.random() { away } else { self.rng.random_range(0..liar) };
            let (by, about) = (node(liar), node(target));
            let word = match self.rng.random_range(0..3) {
                0 => Input::Doubted { by, about },
                1 => Input::Answer { from: by, about, hears: self.rng.random() },
                _ => continue,
            };
            self.post(STEP, to, word);
        }
    }
}

fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![Just(13), Just(14), Just(20), Just(50)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn one_liar_has_nobody_doubted_that_is_silent_for_less_than_the_doubt_takes(
        nodes in sizes(), seed: u64, away in 0..12_usize, from in 2000..4000_u64, silent in 1100..SHORT,
    ) {
        let [from, silent] = [from, silent].map(Duration::from_millis);
        let mut cluster = Cluster::new(nodes, seed, (away, from, from + silent));
        cluster.run(Duration::from_secs(9));
        prop_assert_eq!(&cluster.suspected, &vec![]);
        prop_assert_eq!(&cluster.silent, &vec![]);
    }

    #[test]
    fn one_liar_keeps_nobody_that_is_dead_and_accuses_nobody_else(
        nodes in sizes(), seed: u64, dead in 0..12_usize, from in 2000..4000_u64,
    ) {
        let from = Duration::from_millis(from);
        let mut cluster = Cluster::new(nodes, seed, (dead, from, Duration::MAX));
        cluster.run(from + PROMISE + STEP);
        let mut observers: Vec<usize> = cluster.silent.iter().map(|(at, ..)| *at).collect();
        observers.sort_unstable();
        let others: Vec<usize> = (0..nodes - 1).filter(|at| *at != dead).collect();
        prop_assert_eq!(observers, others, "everybody gives it up, once");
        prop_assert!(cluster.silent.iter().all(|(_, peer, _)| *peer == node(dead)));
        prop_assert!(cluster.suspected.iter().all(|(_, peer, _)| *peer == node(dead)));
    }
}
