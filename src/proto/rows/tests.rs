//! What the tests of tables share: one machine driven by hand, and many in one thread, seeded, in virtual time, with
//! links that come and go and words that are late, lost or doubled.

#![allow(clippy::indexing_slicing, reason = "an index that is off is a failed test")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use serde::Serialize;

use super::{Input, InputOf, Mark, Output, OutputOf, Rows, Table, Tombstones, WordOf, millis};
use crate::proto::codec;
use crate::proto::node::{Incarnation, NodeName};
use crate::proto::tests::start;

pub(crate) const WALL: u64 = 1_800_000_000_000;

pub(crate) fn name(text: &str) -> NodeName {
    text.parse().expect("valid")
}

pub(crate) fn node(at: usize) -> NodeName {
    name(&format!("n{at:03}@h"))
}

pub(crate) fn life(at: u64) -> Incarnation {
    Incarnation(at)
}

pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A machine around a table.
pub(crate) trait Machine {
    type Table: Table;

    fn table(&self) -> &Rows<Self::Table>;

    fn handle(
        &mut self,
        input: InputOf<Self::Table>,
        now: Instant,
        out: &mut Vec<OutputOf<Self::Table>>,
    );
}

impl<T: Table> Machine for Rows<T> {
    type Table = T;

    fn table(&self) -> &Self {
        self
    }

    fn handle(&mut self, input: InputOf<T>, now: Instant, out: &mut Vec<OutputOf<T>>) {
        Rows::handle(self, input, now, out);
    }
}

/// One machine, driven by hand.
pub(crate) struct Alone<M> {
    pub(crate) machine: M,
    pub(crate) now: Instant,
}

impl<M: Machine> Alone<M> {
    /// That machine, linked to these in life 7.
    pub(crate) fn linked(machine: M, now: Instant, peers: &[&str]) -> Self {
        let mut alone = Self { machine, now };
        for peer in peers {
            alone.input(Input::Linked(name(peer), life(7)));
        }
        alone
    }

    pub(crate) fn input(&mut self, input: InputOf<M::Table>) -> Vec<OutputOf<M::Table>> {
        let mut out = Vec::new();
        self.machine.handle(input, self.now, &mut out);
        out
    }

    pub(crate) fn hears(&mut self, from: &str, word: WordOf<M::Table>) -> Vec<OutputOf<M::Table>> {
        self.input(Input::Received(name(from), word))
    }

    pub(crate) fn tick(&mut self, after: Duration) -> Vec<OutputOf<M::Table>> {
        self.now += after;
        let wall = self.machine.table().wall.0 + millis(after);
        self.input(Input::Tick { wall })
    }
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
    queue: BTreeMap<(Instant, u64), Event<WordOf<M::Table>>>,
    seq: u64,
    pub(crate) now: Instant,
    start: Instant,
    pub(crate) rng: StdRng,
    weather: Weather,
    pub(crate) seed: u64,
    /// Words and bytes sent; bytes only when `weigh`.
    pub(crate) words: usize,
    pub(crate) bytes: usize,
    pub(crate) weigh: bool,
}

impl<M: Machine> Network<M>
where
    WordOf<M::Table>: Serialize,
{
    /// Nodes that are all down.
    pub(crate) fn new(nodes: usize, seed: u64, weather: Weather) -> Self {
        let now = start();
        Self {
            nodes: (0..nodes).map(|_| None).collect(),
            lives: vec![0; nodes],
            links: BTreeMap::new(),
            last: BTreeMap::new(),
            queue: BTreeMap::new(),
            seq: 0,
            now,
            start: now,
            rng: StdRng::seed_from_u64(seed),
            weather,
            seed,
            words: 0,
            bytes: 0,
            weigh: false,
        }
    }

    pub(crate) fn wall(&self) -> u64 {
        WALL + millis(self.now - self.start)
    }

    /// The next life of a node, with the machine that is made of it and a seed.
    pub(crate) fn next_life(&mut self, at: usize, make: impl FnOnce(Incarnation, StdRng) -> M) {
        self.lives[at] += 1;
        let rng = StdRng::seed_from_u64(self.rng.next_u64());
        self.nodes[at] = Some(make(life(self.lives[at]), rng));
    }

    fn push(&mut self, at: Instant, event: Event<WordOf<M::Table>>) {
        self.seq += 1;
        self.queue.insert((at, self.seq), event);
    }

    pub(crate) fn input(&mut self, at: usize, input: InputOf<M::Table>) {
        let Some(machine) = &mut self.nodes[at] else { return };
        let small = self.lives.len() < 20; // the check is dear
        let before = if small { marks(machine) } else { Vec::new() };
        let mut out = Vec::new();
        machine.handle(input, self.now, &mut out);
        for (name, mark) in before {
            let ended = mark.gone && M::Table::TOMBSTONES == Tombstones::Final;
            let after = machine.table().row(&name).map(|row| row.mark());
            let risen = ended || after >= Some(mark);
            assert!(risen, "seed {}: {name} fell from {mark:?} at n{at}", self.seed);
        }
        if let Some(deadline) = machine.table().deadline() {
            self.push(deadline, Event::Tick(at));
        }
        for output in out {
            match output {
                Output::Send(to, word) => self.send(at, &to, word),
                Output::Changed(_) | Output::Gone { .. } | Output::Revived(_) => {}
                Output::Charge(..) | Output::Cut(_) => {
                    panic!("seed {}: honest nodes, but n{at} outputs {output:?}", self.seed)
                }
            }
        }
    }

    fn send(&mut self, from: usize, to: &NodeName, word: WordOf<M::Table>) {
        let to: usize = to.short()[1..].parse().expect("a number");
        let link = self.links.get(&(from, to)).copied();
        let link = link.unwrap_or_else(|| panic!("seed {}: n{from} has no n{to}", self.seed));
        self.words += 1;
        if self.weigh {
            self.bytes += codec::encode(&word).expect("encodes").len();
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
                        self.input(to, Input::Received(node(from), word));
                    }
                }
                Event::Tick(at) => {
                    let due = self.nodes[at].as_ref().and_then(|it| it.table().deadline());
                    if due.is_some_and(|due| due <= self.now) {
                        let wall = self.wall();
                        self.input(at, Input::Tick { wall });
                    }
                }
            }
        }
        self.now = end;
    }

    /// Both sides of a link come or go, unless they are so or a node is down; the machines are not informed.
    pub(crate) fn connect(&mut self, a: usize, b: usize, up: bool) -> bool {
        let runs = self.nodes[a].is_some() && self.nodes[b].is_some();
        if a == b || self.links.contains_key(&(a, b)) == up || up && !runs {
            return false;
        }
        self.seq += 1;
        for pair in [(a, b), (b, a)] {
            self.last.remove(&pair);
            if up {
                self.links.insert(pair, self.seq);
            } else {
                self.links.remove(&pair);
            }
        }
        true
    }
}

/// All marks that a machine has.
fn marks<M: Machine>(machine: &M) -> Vec<(NodeName, Mark)> {
    machine.table().rows().map(|row| (row.origin.clone(), row.mark())).collect()
}
