//! A network for the tests of one kind of machine: many of them in one thread, seeded, in virtual time, with links that
//! come and go and words that are late, lost or doubled.

#![allow(clippy::indexing_slicing, reason = "an index that is off is a failed test")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::start;
use crate::proto::codec;
use crate::proto::node::{Incarnation, NodeName};

/// The wall clock at the beginning, in milliseconds since 1970.
pub(crate) const WALL: u64 = 1_800_000_000_000;

pub(crate) fn name(text: &str) -> NodeName {
    text.parse().expect("valid")
}

pub(crate) fn node(at: usize) -> NodeName {
    name(&format!("n{at:03}@h"))
}

pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// When a machine does something, and in which run.
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) now: Instant,
    /// Milliseconds since 1970.
    pub(crate) wall: u64,
    pub(crate) seed: u64,
    /// So many nodes are there.
    pub(crate) nodes: usize,
}

/// What a machine sends: to one node, or to all that are linked.
pub(crate) type Sent<M> = Vec<(Option<NodeName>, <M as Machine>::Word)>;

/// A machine that a node of the network runs. It checks by itself what must hold after each step.
pub(crate) trait Machine: Sized {
    type Word: Clone + Serialize + DeserializeOwned;
    /// No word encodes in more bytes.
    const LONGEST: usize;

    /// What a word is counted as.
    fn kind(word: &Self::Word) -> &'static str;
    /// There is a link to this life of a peer.
    fn up(&mut self, peer: NodeName, life: Incarnation, at: Moment, out: &mut Sent<Self>);
    /// The link to a peer is gone.
    fn down(&mut self, peer: NodeName, at: Moment, out: &mut Sent<Self>);
    /// A linked peer sent this.
    fn hear(&mut self, from: NodeName, word: Self::Word, at: Moment, out: &mut Sent<Self>);
    /// Its deadline passed.
    fn tick(&mut self, at: Moment, out: &mut Sent<Self>);
    fn deadline(&self) -> Option<Instant>;
}

#[derive(Clone, Copy)]
pub(crate) struct Weather {
    pub(crate) loss: f64,
    pub(crate) twice: f64,
    /// Delays in milliseconds; words of one link overtake each other only when `mixed`.
    pub(crate) slowest: u64,
    pub(crate) mixed: bool,
}

pub(crate) const FAIR: Weather = Weather { loss: 0.0, twice: 0.0, slowest: 20, mixed: false };

enum Event<W> {
    Word { from: usize, to: usize, link: u64, word: W },
    Tick(usize),
}

/// Many machines, and the links between them.
pub(crate) struct Network<M: Machine> {
    /// `None` while it is down.
    pub(crate) nodes: Vec<Option<M>>,
    pub(crate) lives: Vec<u64>,
    /// Links up, and which of the links of that pair it is.
    pub(crate) links: BTreeMap<(usize, usize), u64>,
    last: BTreeMap<(usize, usize), Instant>,
    queue: BTreeMap<(Instant, u64), Event<M::Word>>,
    sequence: u64,
    pub(crate) now: Instant,
    start: Instant,
    pub(crate) rng: StdRng,
    pub(crate) weather: Weather,
    pub(crate) seed: u64,
    /// Words sent, by kind.
    pub(crate) sent: BTreeMap<&'static str, usize>,
    /// Words are encoded, and their bytes counted.
    pub(crate) weigh: bool,
    pub(crate) bytes: usize,
}

impl<M: Machine> Network<M> {
    /// Nodes that are all down.
    pub(crate) fn new(nodes: usize, seed: u64, weather: Weather) -> Self {
        let now = start();
        Self {
            nodes: (0..nodes).map(|_| None).collect(),
            lives: vec![0; nodes],
            links: BTreeMap::new(),
            last: BTreeMap::new(),
            queue: BTreeMap::new(),
            sequence: 0,
            now,
            start: now,
            rng: StdRng::seed_from_u64(seed),
            weather,
            seed,
            sent: BTreeMap::new(),
            weigh: false,
            bytes: 0,
        }
    }

    pub(crate) fn moment(&self) -> Moment {
        let gone = u64::try_from((self.now - self.start).as_millis()).expect("short");
        let (now, wall) = (self.now, WALL + gone);
        Moment { now, wall, seed: self.seed, nodes: self.nodes.len() }
    }

    /// Words sent of this kind.
    pub(crate) fn count(&self, kind: &str) -> usize {
        self.sent.get(kind).copied().unwrap_or_default()
    }

    /// Words sent.
    pub(crate) fn words(&self) -> usize {
        self.sent.values().sum()
    }

    /// The next life of a node, with the machine that is made of it and a seed.
    pub(crate) fn start(&mut self, at: usize, make: impl FnOnce(Incarnation, Moment, StdRng) -> M) {
        self.lives[at] += 1;
        self.replace(at, make);
    }

    /// Another machine within the life of a node, which knows no link yet.
    pub(crate) fn replace(
        &mut self,
        at: usize,
        make: impl FnOnce(Incarnation, Moment, StdRng) -> M,
    ) {
        let rng = StdRng::seed_from_u64(self.rng.next_u64());
        self.nodes[at] = Some(make(Incarnation(self.lives[at]), self.moment(), rng));
    }

    fn push(&mut self, at: Instant, event: Event<M::Word>) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), event);
    }

    /// A node that runs does something, and what it sends goes on its way.
    pub(crate) fn act(&mut self, at: usize, act: impl FnOnce(&mut M, Moment, &mut Sent<M>)) {
        let moment = self.moment();
        let Some(machine) = &mut self.nodes[at] else { return };
        let mut out = Vec::new();
        act(machine, moment, &mut out);
        if let Some(deadline) = machine.deadline() {
            self.push(deadline, Event::Tick(at));
        }
        for (to, word) in out {
            match to {
                Some(to) => self.send(at, index(&to), word),
                None => self.linked(at).into_iter().for_each(|to| self.send(at, to, word.clone())),
            }
        }
    }

    /// The peers of a node.
    pub(crate) fn linked(&self, at: usize) -> Vec<usize> {
        let links = self.links.range((at, 0)..(at + 1, 0));
        links.map(|((_, peer), _)| *peer).collect()
    }

    fn send(&mut self, from: usize, to: usize, word: M::Word) {
        let (seed, link) = (self.seed, self.links.get(&(from, to)).copied());
        let link = link.unwrap_or_else(|| panic!("seed {seed}: n{from} has no n{to}"));
        *self.sent.entry(M::kind(&word)).or_default() += 1;
        let mut word = word;
        if self.weigh {
            let bytes = codec::encode(&word).expect("encodes");
            assert!(bytes.len() <= M::LONGEST, "seed {seed}: a word of {} bytes", bytes.len());
            self.bytes += bytes.len();
            word = codec::decode(&bytes, M::LONGEST).expect("its own bytes");
        }
        let weather = self.weather;
        let copies = 1 + usize::from(self.rng.random_bool(weather.twice));
        for _ in 0..copies {
            if self.rng.random_bool(weather.loss) {
                continue;
            }
            let mut at = self.now + ms(self.rng.random_range(1..=weather.slowest));
            if !weather.mixed {
                let last = self.last.entry((from, to)).or_insert(at);
                at = at.max(*last);
                *last = at;
            }
            self.push(at, Event::Word { from, to, link, word: word.clone() });
        }
    }

    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= end) {
            let ((at, _), event) = entry.remove_entry();
            self.now = self.now.max(at);
            match event {
                Event::Word { from, to, link, word } => {
                    if self.links.get(&(to, from)) == Some(&link) {
                        self.act(to, |it, moment, out| it.hear(node(from), word, moment, out));
                    }
                }
                Event::Tick(at) => {
                    let due = self.nodes[at].as_ref().and_then(Machine::deadline);
                    if due.is_some_and(|due| due <= self.now) {
                        self.act(at, Machine::tick);
                    }
                }
            }
        }
        self.now = end;
    }

    /// Both sides of a link come or go, unless they are so or a node is down; no machine is informed.
    pub(crate) fn connect(&mut self, a: usize, b: usize, up: bool) -> bool {
        let runs = self.nodes[a].is_some() && self.nodes[b].is_some();
        if a == b || self.links.contains_key(&(a, b)) == up || up && !runs {
            return false;
        }
        self.sequence += 1;
        for pair in [(a, b), (b, a)] {
            self.last.remove(&pair);
            if up {
                self.links.insert(pair, self.sequence);
            } else {
                self.links.remove(&pair);
            }
        }
        true
    }

    /// The machine of a node is informed of its link to a peer.
    pub(crate) fn inform(&mut self, at: usize, peer: usize, up: bool) {
        let life = Incarnation(self.lives[peer]);
        self.act(at, |it, moment, out| {
            if up {
                it.up(node(peer), life, moment, out);
            } else {
                it.down(node(peer), moment, out);
            }
        });
    }

    fn change(&mut self, a: usize, b: usize, up: bool) {
        if self.connect(a, b, up) {
            self.inform(a, b, up);
            self.inform(b, a, up);
        }
    }

    pub(crate) fn link(&mut self, a: usize, b: usize) {
        self.change(a, b, true);
    }

    pub(crate) fn cut(&mut self, a: usize, b: usize) {
        self.change(a, b, false);
    }

    pub(crate) fn crash(&mut self, at: usize) {
        self.nodes[at] = None;
        (0..self.nodes.len()).for_each(|other| self.cut(at, other));
    }

    pub(crate) fn mesh(&mut self, linked: impl Fn(usize, usize) -> bool) {
        for a in 0..self.nodes.len() {
            (a + 1..self.nodes.len()).filter(|b| linked(a, *b)).for_each(|b| self.link(a, b));
        }
    }
}

/// The node of that name.
fn index(name: &NodeName) -> usize {
    name.short()[1..].parse().expect("a number")
}
