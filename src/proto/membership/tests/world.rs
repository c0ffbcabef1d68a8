//! The network: processes, connections between them, and one queue of what happens when.
//!
//! It plays `actors/link` as its tasks do. A connection has two ends; each end reads its inbox only
//! while it waits for the other side, asks its machine at each step, and goes on when told. Words
//! stay in order within a direction, reports stay in order on their way to a machine, and a machine
//! may decide on what is no longer true.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::super::{AttemptId, Config, Failure, Input, LinkEnd, Membership, Output, PeerView};
use super::rules;
use crate::proto::event::{Event, Reason, Source, Status};
use crate::proto::node::{Contact, Incarnation, NodeName};
use crate::proto::tests::start;

mod wire;
use wire::{Connection, Stage, Word};

/// Deadline of a handshake, and again of ractor's sessions.
const DEADLINE: Duration = Duration::from_secs(5);
/// A dial into nothing ends after this.
const CONNECT: Duration = Duration::from_secs(5);
/// The kernel gives a silent connection up after this.
const SILENCE: Duration = Duration::from_secs(9);
/// Discovery tells one linked peer what it knows this often.
const SHARE: Duration = Duration::from_secs(5);

pub(super) fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub(super) fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// `n0@h`, `n1@h`, … `n10@h` sorts before `n2@h`.
pub(super) fn name(node: usize) -> NodeName {
    format!("n{node}@h").parse().expect("a name")
}

pub(super) fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// One end of one connection.
type At = (u64, usize);

#[derive(Debug)]
enum Happening {
    Arrive(u64),
    Certified(u64),
    DialFailed(u64, Failure),
    Word(At, Word),
    Late(At),
    Unready(At),
    Ready(At),
    TimedOut(At),
    SessionGone(usize, u64, AttemptId),
    Report(usize, u64, Input),
    Beacon(usize, u64),
    Share(usize, u64),
}

/// One run of one node.
pub(super) struct Life {
    pub(super) machine: Membership,
    pub(super) number: u64,
    pub(super) boot: u64,
    /// What its hellos say.
    pub(super) incarnation: Incarnation,
    pub(super) deadline: Option<Instant>,
    /// Its reports arrive in order.
    mailbox: Instant,
    inbound: u64,
    machines: u64,
    ends: BTreeMap<AttemptId, At>,
    /// ractor's sessions, until they are gone.
    sessions: BTreeMap<AttemptId, NodeName>,
    pub(super) watched: rules::Watched,
}

/// A node, running or not.
pub(super) struct Node {
    pub(super) address: SocketAddr,
    pub(super) seeds: Vec<SocketAddr>,
    /// The incarnation on its disk.
    pub(super) disk: u64,
    pub(super) life: Option<Life>,
    lives: u64,
    remembers: Vec<Contact>,
}

/// How a node comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disk {
    /// One higher than before, as it should be.
    Kept,
    /// The incarnation of the life before: its write was lost.
    RolledBack,
    /// Everything lost: the first incarnation again.
    Lost,
}

/// What the network is like.
#[derive(Clone, Debug)]
pub(super) struct Weather {
    /// A word takes this long.
    pub(super) delay: Range<Duration>,
    /// Nodes tell each other whom they know.
    pub(super) gossip: bool,
    /// Nodes beacon every 1 to 5 s.
    pub(super) beacons: bool,
}

impl Weather {
    pub(super) fn fair() -> Self {
        Self { delay: ms(1)..ms(5), gossip: false, beacons: false }
    }
}

pub(super) struct World {
    pub(super) seed: u64,
    pub(super) config: Config,
    pub(super) weather: Weather,
    pub(super) start: Instant,
    pub(super) now: Instant,
    pub(super) nodes: Vec<Node>,
    pub(super) rng: StdRng,
    /// Everything the machines put out.
    pub(super) log: Vec<(Instant, usize, Output)>,
    /// Addresses that swallow dials.
    pub(super) holes: BTreeSet<SocketAddr>,
    cuts: BTreeSet<(usize, usize)>,
    connections: BTreeMap<u64, Connection>,
    queue: BTreeMap<(Instant, u64), Happening>,
    sequence: u64,
}

impl World {
    /// `count` nodes, all running, at ports 1000, 1001, …; nobody knows anybody.
    pub(super) fn new(count: usize, seed: u64, weather: Weather) -> Self {
        Self::with(Config::default(), count, seed, weather)
    }

    pub(super) fn with(config: Config, count: usize, seed: u64, weather: Weather) -> Self {
        let now = start();
        let mut world = Self {
            seed,
            config,
            weather,
            start: now,
            now,
            nodes: Vec::new(),
            rng: StdRng::seed_from_u64(seed),
            log: Vec::new(),
            holes: BTreeSet::new(),
            cuts: BTreeSet::new(),
            connections: BTreeMap::new(),
            queue: BTreeMap::new(),
            sequence: 0,
        };
        for node in 0..count {
            let address = address(1000 + u16::try_from(node).expect("few nodes"));
            let (seeds, remembers) = (Vec::new(), Vec::new());
            world.nodes.push(Node { address, seeds, disk: 0, life: None, lives: 0, remembers });
            world.boot(node, Disk::Kept);
        }
        world
    }

    /// Fails the test, with what is needed to see it again.
    #[track_caller]
    pub(super) fn fail(&self, what: &str) -> ! {
        let at = self.now - self.start;
        let tail = self.log.iter().rev().take(16).rev();
        let tail =
            tail.map(|(at, node, out)| format!("\n  {:?} n{node} {out:?}", *at - self.start));
        let (seed, count, tail) = (self.seed, self.nodes.len(), tail.collect::<String>());
        panic!("seed {seed}, {count} nodes, at {at:?}: {what}\nbefore that:{tail}")
    }

    #[track_caller]
    pub(super) fn check(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.fail(&what());
        }
    }

    pub(super) fn life(&self, node: usize) -> &Life {
        self.nodes[node].life.as_ref().unwrap_or_else(|| self.fail("that node is down"))
    }

    pub(super) fn machine(&self, node: usize) -> &Membership {
        &self.life(node).machine
    }

    /// How `node` sees `peer`.
    pub(super) fn view(&self, node: usize, peer: usize) -> Option<PeerView> {
        self.machine(node).peers().find(|view| view.name == name(peer))
    }

    pub(super) fn status(&self, node: usize, peer: usize) -> Option<(Status, Option<Reason>)> {
        self.view(node, peer).map(|view| (view.status, view.reason))
    }

    /// Everything `node` put out since `since`.
    pub(super) fn said(&self, node: usize, since: Instant) -> impl Iterator<Item = &Output> {
        let after = move |(at, who, _): &&(Instant, usize, Output)| *at >= since && *who == node;
        self.log.iter().filter(after).map(|(_, _, output)| output)
    }

    pub(super) fn events(&self, node: usize, since: Instant) -> Vec<&Event> {
        let mut events = Vec::new();
        for output in self.said(node, since) {
            if let Output::Announce(event) = output {
                events.push(event);
            }
        }
        events
    }

    pub(super) fn dials(&self, node: usize, since: Instant) -> usize {
        self.said(node, since).filter(|output| matches!(output, Output::Dial(..))).count()
    }

    pub(super) fn contact(&self, node: usize) -> Contact {
        let incarnation = self.nodes[node].life.as_ref().map(|life| life.incarnation);
        let address = self.nodes[node].address;
        Contact { name: name(node), address, incarnation: incarnation.unwrap_or_default() }
    }

    /// Starts a node that is down.
    pub(super) fn boot(&mut self, node: usize, disk: Disk) {
        let (boot, rng) = (self.rng.random(), StdRng::seed_from_u64(self.rng.random()));
        let it = &mut self.nodes[node];
        it.disk = match disk {
            Disk::Kept => it.disk + 1,
            Disk::RolledBack => it.disk.max(1),
            Disk::Lost => 1,
        };
        it.lives += 1;
        let (number, incarnation) = (it.lives, Incarnation(it.disk));
        let machine = Membership::new(self.config, name(node), incarnation, 0, rng);
        it.life = Some(Life {
            machine,
            number,
            boot,
            incarnation,
            deadline: None,
            mailbox: self.now,
            inbound: 0,
            machines: 0,
            ends: BTreeMap::new(),
            sessions: BTreeMap::new(),
            watched: rules::Watched::default(),
        });
        let remembers = std::mem::take(&mut it.remembers);
        for seed in it.seeds.clone() {
            self.input(node, Input::Seed(seed));
        }
        for contact in remembers.into_iter().filter(|_| disk != Disk::Lost) {
            self.input(node, Input::Hint(contact, Source::Remembered));
        }
        if self.weather.beacons {
            self.soon(ms(0)..ms(1), Happening::Beacon(node, number));
        }
        if self.weather.gossip {
            self.soon(SHARE..SHARE + ms(1), Happening::Share(node, number));
        }
    }

    /// The machine's actor restarts inside a living process: attempts end, links are told of.
    pub(super) fn restart_machine(&mut self, node: usize) {
        let lost = |it: &Happening| {
            matches!(it, Happening::Report(to, _, input)
                if *to == node && !matches!(input, Input::Hint(..)))
        };
        self.queue.retain(|_, happening| !lost(happening));
        let rng = StdRng::seed_from_u64(self.rng.random());
        let Some(life) = self.nodes[node].life.as_mut() else { return };
        life.machines += 1;
        let first = life.machines << 32;
        life.machine = Membership::new(self.config, name(node), life.incarnation, first, rng);
        life.watched = rules::Watched::default();
        for at in life.ends.clone().into_values() {
            if let Some(existing) = self.reattach(at) {
                self.input(node, existing);
            }
        }
        for seed in self.nodes[node].seeds.clone() {
            self.input(node, Input::Seed(seed));
        }
    }

    /// Ends a process. Its sockets close, or, with the machine's power, fall silent.
    pub(super) fn crash(&mut self, node: usize, silent: bool) {
        let known: Vec<_> = self.machine(node).peers().collect();
        let Some(life) = self.nodes[node].life.take() else { return };
        let contact = |view: PeerView| {
            let PeerView { name, address, incarnation, .. } = view;
            Some(Contact { name, address: address?, incarnation })
        };
        self.nodes[node].remembers = known.into_iter().filter_map(contact).collect();
        for at in life.ends.into_values() {
            if silent {
                self.break_off(at.0);
            }
            self.vanish(at);
        }
    }

    /// Nothing passes between two nodes, until [`World::heal`].
    pub(super) fn cut(&mut self, a: usize, b: usize) {
        self.cuts.insert((a.min(b), a.max(b)));
        let between = |c: &Connection| {
            c.ends.iter().any(|e| e.node == a) && c.ends.iter().any(|e| e.node == b)
        };
        let hit: Vec<_> =
            self.connections.iter().filter(|(_, c)| between(c)).map(|(id, _)| *id).collect();
        hit.into_iter().for_each(|id| self.break_off(id));
    }

    pub(super) fn heal(&mut self, a: usize, b: usize) {
        self.cuts.remove(&(a.min(b), a.max(b)));
    }

    pub(super) fn heal_all(&mut self) {
        self.cuts.clear();
        self.holes.clear();
    }

    fn severed(&self, a: usize, b: usize) -> bool {
        self.cuts.contains(&(a.min(b), a.max(b)))
    }

    /// Every two running nodes are online with each other, on one connection, in their present lives.
    pub(super) fn meshed(&self) -> Result<(), String> {
        let up = || self.nodes.iter().enumerate().filter(|(_, node)| node.life.is_some());
        for (a, _) in up() {
            for (b, _) in up().filter(|(b, _)| *b != a) {
                let view = self.view(a, b).ok_or_else(|| format!("n{a} does not know n{b}"))?;
                if view.status != Status::Online || view.incarnation != self.life(b).incarnation {
                    return Err(format!("n{a} sees {view:?}"));
                }
                if self.line(a, b).is_none_or(|(id, _)| Some(id) != self.line(b, a).map(|l| l.0)) {
                    return Err(format!("n{a} and n{b} are not on one connection"));
                }
            }
        }
        Ok(())
    }

    /// The connection that `node`'s machine takes for its link with `peer`.
    pub(super) fn line(&self, node: usize, peer: usize) -> Option<At> {
        let life = self.life(node);
        let live = life.machine.peers.get(&name(peer))?.live.as_ref()?;
        life.ends.get(&live.attempt).copied()
    }

    /// Lets time pass.
    pub(super) fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.step(until) {}
        self.now = until;
    }

    /// Lets time pass until `done`; fails when that takes longer than `limit`.
    #[track_caller]
    pub(super) fn run_until(&mut self, limit: Duration, done: impl Fn(&Self) -> bool, what: &str) {
        let until = self.now + limit;
        while !done(self) {
            if !self.step(until) {
                let views: Vec<_> = (0..self.nodes.len())
                    .filter(|node| self.nodes[*node].life.is_some())
                    .flat_map(|node| self.machine(node).peers().map(move |view| (node, view)))
                    .map(|(node, view)| format!("\n  n{node}: {view:?}"))
                    .collect();
                self.fail(&format!("not within {limit:?}: {what}{}", views.concat()));
            }
        }
    }

    /// The next thing that happens before `until`, if there is one.
    pub(super) fn step(&mut self, until: Instant) -> bool {
        let due = |(node, it): (usize, &Node)| Some((it.life.as_ref()?.deadline?, node));
        let tick = self.nodes.iter().enumerate().filter_map(due).min();
        let queued = self.queue.first_key_value().map(|((at, _), _)| *at);
        match (tick, queued) {
            (Some((at, node)), _) if at <= until && queued.is_none_or(|queued| at <= queued) => {
                self.now = self.now.max(at);
                self.input(node, Input::Tick);
            }
            (_, Some(at)) if at <= until => {
                self.now = at;
                if let Some((_, happening)) = self.queue.pop_first() {
                    self.happen(happening);
                }
            }
            _ => return false,
        }
        true
    }

    /// Gives a machine an input now, checks the rules, and does what it says.
    pub(super) fn input(&mut self, node: usize, input: Input) {
        let mut out = Vec::new();
        let now = self.now;
        let Some(life) = self.nodes[node].life.as_mut() else { return };
        life.machine.handle(input.clone(), now, &mut out);
        life.deadline = life.machine.deadline();
        rules::after(self, node, &input, &out);
        for output in out {
            self.log.push((now, node, output.clone()));
            self.perform(node, output);
        }
    }

    fn perform(&mut self, node: usize, output: Output) {
        match output {
            Output::Dial(attempt, to) => self.dial(node, attempt, to),
            Output::Proceed(attempt) => self.at(node, attempt, Self::proceed),
            Output::Refuse(attempt, refusal) => {
                self.at(node, attempt, |world, at| world.refuse(at, refusal));
            }
            Output::Abandon(attempt) => self.at(node, attempt, |world, at| {
                let linked = matches!(world.end(at).stage, Stage::Parked | Stage::Running { .. });
                world.check(!linked, || format!("n{node} abandons its link {attempt:?}"));
                world.vanish(at);
            }),
            Output::Close(attempt, parting) => {
                self.at(node, attempt, |world, at| world.close(at, parting));
            }
            Output::Renew(incarnation) => {
                self.nodes[node].disk = incarnation.0;
                if let Some(life) = self.nodes[node].life.as_mut() {
                    life.incarnation = incarnation;
                }
            }
            Output::Announce(Event::PeerOnline { peer, .. }) if self.weather.gossip => {
                let known = (0..self.nodes.len()).find(|node| name(*node) == peer);
                known.into_iter().for_each(|peer| self.introduce(node, peer));
            }
            Output::Announce(_) => {}
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Arrive(id) => self.arrive(id),
            Happening::Certified(id) => {
                let to = self.connections[&id].ends.get(1).map(|end| name(end.node));
                if let (Stage::Dials, Some(to)) = (self.end((id, 0)).stage, to) {
                    self.end_mut((id, 0)).stage = Stage::Asked;
                    self.soon(DEADLINE..DEADLINE + ms(1), Happening::Late((id, 0)));
                    self.report((id, 0), Input::Connected(self.end((id, 0)).attempt, to));
                }
            }
            Happening::DialFailed(id, failure) => {
                if self.end((id, 0)).stage == Stage::Dials {
                    self.failed((id, 0), failure);
                }
            }
            Happening::Word(at, word) => {
                if !self.connections[&at.0].broken {
                    self.end_mut(at).inbox.push_back(word);
                    self.read(at);
                }
            }
            Happening::Late(at) => {
                let shaking =
                    |stage| !matches!(stage, Stage::Gone | Stage::Parked | Stage::Running { .. });
                if shaking(self.end(at).stage) {
                    self.failed(at, Failure::Unreachable("no hello within 5 s".to_owned()));
                }
            }
            Happening::Unready(at) => {
                if matches!(self.end(at).stage, Stage::Parked | Stage::Running { ready: false }) {
                    self.link_ended(at, LinkEnd::Fault("not ready in time".to_owned()));
                }
            }
            Happening::Ready(at) => {
                if self.end(at).stage == (Stage::Running { ready: false }) {
                    self.end_mut(at).stage = Stage::Running { ready: true };
                    self.report(at, Input::Ready(self.end(at).attempt));
                }
            }
            Happening::TimedOut(at) => {
                if matches!(self.end(at).stage, Stage::Running { .. }) {
                    self.link_ended(at, LinkEnd::TimedOut);
                }
            }
            Happening::SessionGone(node, life, attempt) => {
                if let Some(life) = self.living(node, life) {
                    life.sessions.remove(&attempt);
                    self.start_parked(node);
                }
            }
            Happening::Report(node, life, input) => {
                if self.living(node, life).is_some() {
                    self.input(node, input);
                }
            }
            Happening::Beacon(node, life) => self.beacon(node, life),
            Happening::Share(node, life) => self.share(node, life),
        }
    }

    fn beacon(&mut self, node: usize, life: u64) {
        if self.living(node, life).is_none() {
            return;
        }
        let contact = self.contact(node);
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            if !self.severed(node, other) && self.rng.random_bool(0.9) {
                self.tell(other, contact.clone(), Source::Beacon);
            }
        }
        self.soon(secs(1)..secs(5), Happening::Beacon(node, life));
    }

    fn share(&mut self, node: usize, life: u64) {
        if self.living(node, life).is_none() {
            return;
        }
        let peers: Vec<_> = self.online(node);
        if !peers.is_empty() {
            let peer = peers[self.rng.random_range(0..peers.len())];
            self.introduce(node, peer);
        }
        self.soon(SHARE..SHARE + ms(1), Happening::Share(node, life));
    }

    /// A node tells a peer whom it is linked with.
    fn introduce(&mut self, node: usize, peer: usize) {
        for view in self.machine(node).peers().collect::<Vec<_>>() {
            let PeerView { name: who, address, incarnation, status, .. } = view;
            if let Some(address) = address.filter(|_| status == Status::Online && who != name(peer))
            {
                self.tell(peer, Contact { name: who, address, incarnation }, Source::Peer);
            }
        }
    }

    fn online(&self, node: usize) -> Vec<usize> {
        let online = |peer: &usize| self.status(node, *peer) == Some((Status::Online, None));
        (0..self.nodes.len()).filter(online).collect()
    }

    /// A hint on its way.
    pub(super) fn tell(&mut self, node: usize, contact: Contact, source: Source) {
        if let Some(life) = self.nodes[node].life.as_ref().map(|life| life.number) {
            let hint = Input::Hint(contact, source);
            self.soon(self.weather.delay.clone(), Happening::Report(node, life, hint));
        }
    }

    fn living(&mut self, node: usize, life: u64) -> Option<&mut Life> {
        self.nodes[node].life.as_mut().filter(|it| it.number == life)
    }

    fn soon(&mut self, within: Range<Duration>, happening: Happening) {
        let delay = self.rng.random_range(within);
        self.later(self.now + delay, happening);
    }

    fn later(&mut self, at: Instant, happening: Happening) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), happening);
    }
}
