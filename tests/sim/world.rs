//! The world: nodes made of the machines that production runs, a network, and one queue of what
//! happens when. One seed, one run.
//!
//! # Modelled
//! - A process: the machines of its actors, joined by `proto::wiring` as `src/actors` joins them (`world/node`). An actor
//!   can start again at any time (`world/node/actors`); what it gets arrives in its mailbox in order, a little later.
//!   Its clock has an offset and a rate, its wall clock another offset that can jump. A paused process
//!   does nothing; what arrives waits, and its timers fire late.
//! - Connections as `actors/link` sees them (`world/wire`): ordered bytes. A lost segment is late, not
//!   gone. A cut in one direction holds that direction back at once and, because acknowledgements are
//!   lost too, the other one soon after; what was held back flows some time after the cut has healed,
//!   unless the kernel gave the connection up before. Dials into a cut time out; to a dead process they
//!   are refused; to a host without power they time out.
//! - Beacons as datagrams: lost, doubled, late, out of order.
//! - A disk: the incarnation and the remembered nodes, kept, an older copy, or lost. Writes take time, and may fail.
//! - Clients that join topics and leave them.
//! - Members that lie (`world/liar`): under their own seals, and with others' only as they got them.
//!
//! # Not modelled
//! TLS and ractor's sessions are a delay and an exchange of `Ready`. Signatures hold. Queues are as
//! long as they need to be: there is no back pressure. What actors ask of NodeManager, and what it decides for Link,
//! arrives at once.

use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::net::SocketAddr;
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use xpando_node::internals::proto::beacon::Beacon;
use xpando_node::internals::proto::event::Event;
use xpando_node::internals::proto::link::Report;
use xpando_node::internals::proto::membership::{AttemptId, Failure};
use xpando_node::internals::proto::node::{Incarnation, NodeName};
use xpando_node::internals::proto::wiring::{Consumer, Notice};

mod faults;
mod liar;
mod node;
mod trace;
mod wire;
pub(crate) use faults::Disk;
pub(crate) use node::{Actor, Life, Message, is_trusted, topics};
use wire::Connection;
pub(crate) use wire::{At, Word};

/// Microseconds since the world began.
pub(crate) type Micros = u64;

pub(crate) const fn ms(n: u64) -> Micros {
    n * 1000
}

/// A time of production.
pub(crate) const fn micros(time: Duration) -> Micros {
    time.as_micros() as Micros
}

pub(crate) const fn secs(n: u64) -> Micros {
    n * 1_000_000
}

/// Every wall clock at the beginning, in milliseconds since 1970, but for its offset.
const WALL: u64 = 1_800_000_000_000;

/// What happens at its time.
#[derive(Debug)]
pub(crate) enum Happening {
    /// A dial reaches the host.
    Arrive(usize),
    /// A word reaches the host of that end.
    Word(At, Word),
    /// What a cut held back on its way to that end goes on.
    Flow(At),
    /// The kernel gives a connection up that has been silent since then.
    TimedOut(At, Micros),
    /// Something for a process.
    Task(usize, u64, Task),
    /// A dead life of a node should be known to be dead by now.
    Overdue { observer: (usize, u64), dead: (usize, u64), since: Micros },
    /// Everything that takes time is looked at.
    Sweep,
    /// A liar lies.
    Lie(usize),
}

/// What a process does next; while it is paused, it waits.
#[derive(Debug)]
pub(crate) enum Task {
    Accept(usize),
    Read(At, Word),
    DialFailed(usize, Failure),
    NoTls(At),
    Late(At),
    LinkGone(At),
    SessionGone(AttemptId),
    /// To that life of NodeManager.
    Report(u64, Box<Report>),
    /// To that life of a consumer.
    Notice(Consumer, u64, Box<Notice<Message>>),
    Written(Box<node::Write>),
    Rejoin(usize, String),
    Datagram(Rc<Beacon>),
    Wake,
}

/// A node's clocks, as they differ from the world's.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Clock {
    /// Nanoseconds the monotonic clock is ahead.
    pub(crate) offset: u64,
    /// Millionths by which it is too fast.
    pub(crate) rate: i64,
    /// Milliseconds the wall clock is ahead.
    pub(crate) wall: i64,
}

impl Clock {
    fn nanos(&self, now: Micros) -> u64 {
        let now = i64::try_from(now).expect("the world is young");
        self.offset + u64::try_from(now * 1000 + now * self.rate / 1000).expect("time goes on")
    }
}

/// A node, running or not.
pub(crate) struct Node {
    pub(crate) name: NodeName,
    pub(crate) address: SocketAddr,
    pub(crate) seeds: Vec<SocketAddr>,
    pub(crate) clock: Clock,
    pub(crate) life: Option<Life>,
    pub(crate) lives: u64,
    /// Its host has no power.
    pub(crate) unplugged: bool,
    /// What its disk held at the end of each life.
    pub(crate) disks: Vec<node::Disk>,
    /// The incarnation on its disk, now and at the end of earlier lives.
    pub(crate) counters: Vec<u64>,
    /// The highest incarnation it ever had, and the highest version of its row therein.
    pub(crate) truth: (Incarnation, u64),
    /// Likewise of its entry in the registry.
    pub(crate) stated: (Incarnation, u64),
    /// When its last life ended.
    pub(crate) died: Micros,
    /// Since when it has run undisturbed; `Micros::MAX` while it does not.
    pub(crate) well: Micros,
}

/// What the network is like.
#[derive(Clone, Debug)]
pub(crate) struct Weather {
    /// A segment takes this long.
    pub(crate) delay: Range<Micros>,
    /// So many segments and datagrams are lost.
    pub(crate) loss: f64,
    /// So many datagrams arrive twice.
    pub(crate) twice: f64,
    pub(crate) beacons: bool,
    /// So many writes fail.
    pub(crate) full: f64,
}

impl Weather {
    pub(crate) fn fair() -> Self {
        Self { delay: 200..ms(3), loss: 0.0, twice: 0.0, beacons: true, full: 0.0 }
    }
}

pub(crate) struct World {
    pub(crate) scenario: &'static str,
    pub(crate) seed: u64,
    pub(crate) now: Micros,
    pub(crate) nodes: Vec<Node>,
    pub(crate) rng: StdRng,
    pub(crate) weather: Weather,
    pub(crate) trace: trace::Trace,
    /// Bytes are counted.
    pub(crate) weigh: bool,
    /// Registry and presence are part of it: they cost more than all else where hundreds of nodes are simulated.
    pub(crate) records: bool,
    /// What the nodes announced, where somebody asks for it.
    pub(crate) log: Option<Vec<(usize, Event)>>,
    /// Members that lie.
    liars: BTreeMap<usize, liar::Liar>,
    /// Links that membership machines closed.
    pub(crate) closed: u64,
    gaps: u64,
    epoch: Instant,
    /// What is sent in this direction does not arrive, since then.
    cuts: BTreeMap<(usize, usize), Micros>,
    /// Since when what is sent in this direction arrives in bearable time, by sender and receiver.
    paths: Vec<Micros>,
    connections: Vec<Option<Connection>>,
    queue: BinaryHeap<std::cmp::Reverse<(Micros, u64, usize)>>,
    slots: Vec<Option<Happening>>,
    free: Vec<usize>,
    sequence: u64,
}

impl World {
    /// `count` nodes that do not run yet; each knows the first two as seeds.
    pub(crate) fn new(scenario: &'static str, seed: u64, count: usize, weather: Weather) -> Self {
        let node = |at: usize| Node {
            name: format!("n{at:03}@h").parse().expect("a name"),
            address: address(at, 4697),
            seeds: (0..2).map(|seed| address(seed, 4697)).collect(),
            clock: Clock::default(),
            life: None,
            lives: 0,
            unplugged: false,
            disks: Vec::new(),
            counters: Vec::new(),
            truth: (Incarnation(0), 0),
            stated: (Incarnation(0), 0),
            died: 0,
            well: Micros::MAX,
        };
        let mut world = Self {
            scenario,
            seed,
            now: 0,
            nodes: (0..count).map(node).collect(),
            rng: StdRng::seed_from_u64(seed),
            weather,
            trace: trace::Trace::new(),
            weigh: count <= 12,
            records: count <= 100,
            log: None,
            liars: BTreeMap::new(),
            closed: 0,
            gaps: 0,
            epoch: epoch(),
            cuts: BTreeMap::new(),
            paths: vec![0; count * count],
            connections: Vec::new(),
            queue: BinaryHeap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            sequence: 0,
        };
        world.later(0, Happening::Sweep);
        world
    }

    /// As [`World::new`], and all nodes start within a second.
    pub(crate) fn started(
        scenario: &'static str,
        seed: u64,
        count: usize,
        weather: Weather,
    ) -> Self {
        let mut world = Self::new(scenario, seed, count, weather);
        for node in 0..count {
            let pause = world.rng.random_range(0..=secs(1) / count as u64);
            world.run(pause);
            world.boot(node, Disk::Kept);
        }
        world
    }

    pub(crate) fn life(&self, node: usize) -> &Life {
        self.nodes[node].life.as_ref().unwrap_or_else(|| self.fail("sim", "that node is down"))
    }

    fn life_mut(&mut self, node: usize) -> &mut Life {
        self.nodes[node].life.as_mut().expect("only a running node is asked to act")
    }

    fn living(&mut self, node: usize, life: u64) -> Option<&mut Life> {
        self.nodes[node].life.as_mut().filter(|it| it.number == life)
    }

    /// The nodes that run now.
    pub(crate) fn running(&self) -> impl Iterator<Item = usize> + use<> {
        let up: Vec<usize> = (0..self.nodes.len()).filter(|n| self.is_up(*n)).collect();
        up.into_iter()
    }

    pub(crate) fn is_up(&self, node: usize) -> bool {
        self.nodes[node].life.is_some()
    }

    /// The node of that name.
    pub(crate) fn index(&self, name: &NodeName) -> usize {
        self.find(name).unwrap_or_else(|| self.fail("sim", &format!("who is {name}?")))
    }

    /// The node of that name, unless a liar invented it.
    pub(crate) fn find(&self, name: &NodeName) -> Option<usize> {
        name.short()[1..].parse().ok()
    }

    /// That node's monotonic clock.
    pub(crate) fn local(&self, node: usize) -> Instant {
        self.epoch + Duration::from_nanos(self.nodes[node].clock.nanos(self.now))
    }

    /// That node's wall clock.
    pub(crate) fn wall(&self, node: usize) -> u64 {
        let clock = self.nodes[node].clock;
        (WALL + clock.nanos(self.now) / 1_000_000).saturating_add_signed(clock.wall)
    }

    /// When that node's clock shows `at`, or has just passed it.
    fn when(&self, node: usize, at: Instant) -> Micros {
        let clock = self.nodes[node].clock;
        let nanos = at.saturating_duration_since(self.epoch).as_nanos();
        let nanos = nanos.saturating_sub(u128::from(clock.offset));
        let rate = u128::try_from(1_000_000 + clock.rate).expect("clocks go forward");
        let mut when = Micros::try_from(nanos * 1000 / rate).unwrap_or(Micros::MAX / 2);
        while self.epoch + Duration::from_nanos(clock.nanos(when)) < at {
            when += 1;
        }
        when.max(self.now)
    }

    /// Since when the network between two nodes is well; `Micros::MAX` while it is not.
    pub(crate) fn path(&self, a: usize, b: usize) -> Micros {
        let count = self.nodes.len();
        self.paths[a * count + b].max(self.paths[b * count + a])
    }

    /// Since when everything is well with a pair of nodes and the network between them;
    /// `Micros::MAX` while it is not, and of a liar.
    pub(crate) fn well(&self, a: usize, b: usize) -> Micros {
        if self.is_liar(a) || self.is_liar(b) {
            return Micros::MAX;
        }
        self.path(a, b).max(self.nodes[a].well).max(self.nodes[b].well)
    }

    /// Whether a pair of nodes has been well for longer than `time`.
    pub(crate) fn well_for(&self, a: usize, b: usize, time: Micros) -> bool {
        self.well(a, b).checked_add(time).is_some_and(|at| at < self.now)
    }

    /// Lets time pass.
    pub(crate) fn run(&mut self, time: Micros) {
        let until = self.now + time;
        while self.step(until) {}
        self.now = until;
    }

    /// Lets time pass until `done`, and says how much; fails when that takes longer than `limit`.
    pub(crate) fn run_until(
        &mut self,
        invariant: &'static str,
        limit: Micros,
        done: impl Fn(&Self) -> Result<(), String>,
    ) -> Micros {
        let start = self.now;
        let pace = if limit < secs(2) { ms(1) } else { ms(100) };
        while let Err(why) = done(self) {
            if self.now >= start + limit {
                self.fail(invariant, &format!("not within {} s: {why}", limit / secs(1)));
            }
            self.run(pace);
        }
        self.now - start
    }

    fn step(&mut self, until: Micros) -> bool {
        let Some(std::cmp::Reverse((at, sequence, slot))) = self.queue.peek().copied() else {
            return false;
        };
        if at > until {
            return false;
        }
        self.queue.pop();
        self.now = at;
        self.trace.mix(at ^ sequence << 32);
        self.free.push(slot);
        let happening = self.slots[slot].take().expect("a queued slot is filled");
        self.happen(happening);
        true
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Arrive(id) => self.arrive(id),
            Happening::Word(at, word) => self.word(at, word),
            Happening::Flow(at) => self.flow(at),
            Happening::TimedOut(at, since) => self.timed_out(at, since),
            Happening::Task(node, life, task) => self.task(node, life, task),
            Happening::Overdue { observer, dead, since } => {
                crate::invariants::dead_node_is_declared_offline(self, observer, dead, since);
            }
            Happening::Sweep => {
                crate::invariants::nobody_stays_connecting(self);
                crate::invariants::no_ghost_is_shown(self);
                crate::invariants::nobody_is_invented(self);
                let pause = secs(1 + self.nodes.len() as u64 / 20);
                self.later(pause, Happening::Sweep);
            }
            Happening::Lie(node) => self.lie_soon(node),
        }
    }

    /// A process does something, or will when it goes on.
    fn task(&mut self, node: usize, life: u64, task: Task) {
        match self.living(node, life) {
            None => {}
            Some(it) if it.paused => it.waiting.push_back(task),
            Some(_) => self.perform(node, task),
        }
    }

    /// From now on, in that time.
    fn later(&mut self, delay: Micros, happening: Happening) {
        self.at_time(self.now + delay, happening);
    }

    fn at_time(&mut self, at: Micros, happening: Happening) {
        self.sequence += 1;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(happening);
        self.queue.push(std::cmp::Reverse((at, self.sequence, slot)));
    }

    /// How many links were lost or replaced so far, between nodes that do not lie.
    pub(crate) fn gaps(&self) -> u64 {
        self.gaps
    }

    /// From now on it is kept what the nodes announce.
    pub(crate) fn keep_log(&mut self) {
        self.log = Some(Vec::new());
    }

    /// What a node announced since the log is kept.
    pub(crate) fn announced_by(&self, node: usize) -> impl Iterator<Item = &Event> {
        let log = self.log.as_ref().expect("it is kept");
        log.iter().filter(move |(by, _)| *by == node).map(|(_, event)| event)
    }

    pub(crate) fn random(&mut self, range: Range<Micros>) -> Micros {
        self.rng.random_range(range)
    }
}

/// The address of a node that listens on `port`.
pub(crate) fn address(node: usize, port: u16) -> SocketAddr {
    let [.., high, low] = u32::try_from(node).expect("few nodes").to_be_bytes();
    SocketAddr::from(([10, 0, high, low], port))
}

/// The node at an address.
fn host(address: SocketAddr) -> usize {
    match address.ip() {
        std::net::IpAddr::V4(ip) => {
            let [_, _, high, low] = ip.octets();
            usize::from(high) * 256 + usize::from(low)
        }
        std::net::IpAddr::V6(_) => unreachable!("all nodes have IPv4 addresses"),
    }
}

/// A point in time to count from.
#[expect(
    clippy::disallowed_methods,
    reason = "instants can only be had from the clock; runs differ by it alone"
)]
fn epoch() -> Instant {
    Instant::now()
}

/// Things that wait for a process.
type Waiting = VecDeque<Task>;
