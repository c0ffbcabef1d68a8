//! Connections: two tasks that shake hands, and then a link, as `actors/link` has them.
//!
//! A connection has two ends. Each reads only while it waits for the other side, asks its machine at
//! each step, and goes on when told. Words stay in order within a direction; reports stay in order on
//! their way to a machine, which may decide on what is no longer true.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rand::RngExt;
use xpando_node::internals::proto::frame::Parting;
use xpando_node::internals::proto::hello::{Hello, Refusal};
use xpando_node::internals::proto::membership::{AttemptId, Failure, Input, LinkEnd};
use xpando_node::internals::proto::node::{Contact, KeyId, NodeName};
use xpando_node::internals::proto::presence;
use xpando_node::internals::proto::registry;
use xpando_node::internals::proto::topology;

use super::{Happening, Micros, Task, World, host, ms, secs};

/// Time to connect, for TLS, for the hello, and for ractor's sessions.
const PATIENCE: Micros = secs(5);
/// The kernel gives a connection up when nothing was acknowledged for so long (`io/tcp.rs`).
const SILENCE: Micros = secs(20);
/// What is on its way when acknowledgements stop still arrives.
const IN_FLIGHT: Micros = ms(300);
/// A segment that takes longer than this puts a pair into trouble. Beats come every second and the
/// first doubt after 4.1 s of silence: what takes less than three is what the defaults must bear.
const BEARABLE: Micros = secs(3);
/// Round trips kept of a link.
const TRIPS: usize = 128;

/// What a word on the wire says.
#[derive(Clone, Debug)]
pub(crate) enum Word {
    /// TLS is done.
    Certificate,
    Hello(Box<Hello>),
    Welcome(Box<Hello>),
    Confirm,
    Refuse(Refusal),
    /// ractor's session on the other side has agreed.
    Ready,
    Goodbye(Parting),
    Fin,
    Ping(u64),
    Pong(u64),
    Ask(NodeName),
    Answer(NodeName, bool),
    Doubted(NodeName),
    Contacts(Rc<Vec<Contact>>),
    Topology(topology::Word),
    Registry(registry::Word),
    Presence(Rc<presence::Word>),
}

/// One end of one connection: the dialer's is 0.
pub(crate) type At = (usize, usize);

/// Where the task at one end of a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The dialer connects and does TLS.
    Dials,
    /// The acceptor waits for the hello.
    Listens,
    /// Connected or Greeted is reported.
    Asked,
    /// The dialer waits for the welcome, the acceptor for the confirmation.
    Awaits,
    /// Welcomed or Confirmed is reported.
    AskedLast,
    /// A link, and the peer's earlier session is not gone yet.
    Parked,
    Running {
        ready: bool,
    },
    Gone,
}

/// The signs of life of a link, as `actors/link/pulse.rs` keeps them.
#[derive(Debug)]
pub(super) struct Pulse {
    pub(super) heard: Instant,
    pub(super) pongs: Vec<Duration>,
    trips: VecDeque<Duration>,
}

impl Pulse {
    /// The median round trip.
    pub(super) fn round_trip(&self) -> Option<Duration> {
        let mut trips: Vec<_> = self.trips.iter().copied().collect();
        let middle = trips.len().checked_sub(1)? / 2;
        Some(*trips.select_nth_unstable(middle).1)
    }
}

#[derive(Debug)]
pub(super) struct End {
    pub(super) node: usize,
    pub(super) life: u64,
    pub(super) attempt: AttemptId,
    pub(super) stage: Stage,
    /// What the task has not read yet.
    inbox: VecDeque<Word>,
    /// What a cut keeps from arriving.
    stuck: VecDeque<Word>,
    pub(super) stalled: bool,
    /// The last word on its way here arrives then.
    last: Micros,
    /// The other side's hello.
    pub(super) hello: Option<Box<Hello>>,
    pub(super) pulse: Pulse,
}

#[derive(Debug)]
pub(super) struct Connection {
    to: SocketAddr,
    /// The dialer's end, then the acceptor's.
    pub(super) ends: Vec<End>,
    /// Since when nothing is acknowledged.
    pub(super) silent: Option<Micros>,
}

impl World {
    // The network.

    /// How long the next segment from one node to another takes, lost ones sent again included.
    fn transit(&mut self, from: usize, to: usize) -> Micros {
        let mut delay = self.rng.random_range(self.weather.delay.clone());
        if self.weather.loss > 0.0 {
            // RFC 6298: about the round trip and 200 ms, doubling.
            let mut again = 2 * self.weather.delay.end + ms(200);
            while self.rng.random_bool(self.weather.loss) {
                delay += again;
                again *= 2;
            }
        }
        if delay > BEARABLE {
            self.trouble(from, to, self.now + delay);
        }
        delay
    }

    /// Between these two, not everything arrives in time before `until`.
    pub(super) fn trouble(&mut self, from: usize, to: usize, until: Micros) {
        let count = self.nodes.len();
        let path = &mut self.paths[from * count + to];
        *path = (*path).max(until);
    }

    /// What was late before a cut is late after it.
    pub(super) fn still_late(&mut self, id: usize) {
        let Some(Connection { ends, .. }) = &self.connections[id] else { return };
        if let [dialer, acceptor] = ends.as_slice() {
            let (a, b) = ((dialer.node, dialer.last), (acceptor.node, acceptor.last));
            self.trouble(a.0, b.0, b.1);
            self.trouble(b.0, a.0, a.1);
        }
    }

    /// Whether a segment of a connection arrives now.
    fn passes(&self, from: usize, to: usize) -> bool {
        if self.nodes[from].unplugged || self.nodes[to].unplugged {
            return false;
        }
        let back = self.cuts.get(&(to, from)).is_some_and(|at| *at + IN_FLIGHT <= self.now);
        !back && !self.cuts.contains_key(&(from, to))
    }

    pub(super) fn reaches_both_ways(&self, a: usize, b: usize) -> bool {
        let cut = self.cuts.contains_key(&(a, b)) || self.cuts.contains_key(&(b, a));
        !cut && !self.nodes[a].unplugged && !self.nodes[b].unplugged
    }

    pub(super) fn arrive(&mut self, id: usize) {
        let Some(connection) = &self.connections[id] else { return };
        let (to, from) = (connection.to, connection.ends[0].node);
        let target = host(to);
        if !self.reaches_both_ways(from, target) {
            let nothing = Failure::Unreachable("nothing answers".to_owned());
            return self.task_of((id, 0), PATIENCE, Task::DialFailed(id, nothing));
        }
        let there = &self.nodes[target];
        match there.life.as_ref().filter(|_| there.address == to) {
            None => {
                let back = self.transit(target, from);
                self.task_of((id, 0), back, Task::DialFailed(id, Failure::Refused));
            }
            Some(life) => {
                let life = life.number;
                self.task_of((id, 0), PATIENCE, Task::NoTls((id, 0)));
                self.later(0, Happening::Task(target, life, Task::Accept(id)));
            }
        }
    }

    pub(super) fn word(&mut self, at: At, word: Word) {
        let Some(connection) = &mut self.connections[at.0] else { return };
        if connection.ends[at.1].stage == Stage::Gone {
            return;
        }
        let (from, to) = (connection.ends[1 - at.1].node, connection.ends[at.1].node);
        if connection.ends[at.1].stalled || !self.passes(from, to) {
            let end = self.end_mut(at);
            end.stalled = true;
            end.stuck.push_back(word);
            return;
        }
        let life = self.end(at).life;
        self.task(to, life, Task::Read(at, word));
    }

    pub(super) fn flow(&mut self, at: At) {
        let Some(connection) = &mut self.connections[at.0] else { return };
        let (from, to) = (connection.ends[1 - at.1].node, connection.ends[at.1].node);
        if !self.passes(from, to) {
            return; // the next heal sets it going
        }
        let end = self.end_mut(at);
        end.stalled = false;
        for word in std::mem::take(&mut end.stuck) {
            self.word(at, word);
        }
    }

    /// A cut goes through a connection: in the end the kernels notice.
    pub(super) fn fall_silent(&mut self, id: usize) {
        let now = self.now;
        let Some(connection) = self.connections[id].as_mut() else { return };
        if connection.silent.is_some() {
            return;
        }
        connection.silent = Some(now);
        for end in 0..connection.ends.len() {
            // Without traffic the first keepalive probe comes only after 5 s.
            let wait = SILENCE + self.random(0..secs(5));
            self.later(wait, Happening::TimedOut((id, end), now));
        }
    }

    /// What a cut held back on a connection goes on with the next retransmission.
    pub(super) fn speak_again(&mut self, id: usize) {
        let Some(connection) = self.connections[id].as_mut() else { return };
        let Some(since) = connection.silent.take() else { return };
        let outage = (self.now - since).min(SILENCE);
        for end in 0..connection.ends.len() {
            let wait = self.random(0..outage + 1);
            self.later(wait, Happening::Flow((id, end)));
            let Some(Connection { ends, .. }) = &mut self.connections[id] else { return };
            ends[end].stalled = true;
            let (from, to) = (ends.get(1 - end).map(|e| e.node), ends[end].node);
            if let Some(from) = from {
                self.trouble(from, to, self.now + wait);
            }
        }
    }

    pub(super) fn timed_out(&mut self, at: At, since: Micros) {
        let Some(connection) = &self.connections[at.0] else { return };
        if connection.silent == Some(since) {
            let End { node, life, .. } = connection.ends[at.1];
            self.task(node, life, Task::LinkGone(at));
        }
    }

    /// The other host knows nothing of this connection any more, and says so when it is asked.
    pub(super) fn reset(&mut self, at: At) {
        let wait = self.random(ms(1)..secs(5));
        let Some(connection) = &mut self.connections[at.0] else { return };
        connection.silent = None;
        let end = &mut connection.ends[at.1];
        end.stalled = false;
        end.stuck.clear();
        self.task_of(at, wait, Task::Read(at, Word::Fin));
    }

    // The two tasks.

    /// Something for the process at that end, in that time.
    fn task_of(&mut self, at: At, delay: Micros, task: Task) {
        let End { node, life, .. } = *self.end(at);
        self.later(delay, Happening::Task(node, life, task));
    }

    pub(super) fn dial(&mut self, node: usize, attempt: AttemptId, to: SocketAddr) {
        let id = self.connections.len();
        let end = self.end_of(node, attempt, Stage::Dials);
        self.connections.push(Some(Connection { to, ends: vec![end], silent: None }));
        self.life_mut(node).ends.insert(attempt, (id, 0));
        let delay = self.transit(node, host(to));
        self.later(delay, Happening::Arrive(id));
    }

    pub(super) fn accept(&mut self, node: usize, id: usize) {
        let Some(dialer) = self.connections[id].as_ref().map(|c| c.ends[0].node) else { return };
        let life = self.life_mut(node);
        life.inbound += 1;
        let attempt = AttemptId::Inbound(life.inbound);
        life.ends.insert(attempt, (id, 1));
        let end = self.end_of(node, attempt, Stage::Listens);
        if let Some(connection) = &mut self.connections[id] {
            connection.ends.push(end);
        }
        self.task_of((id, 1), PATIENCE, Task::Late((id, 1)));
        if !self.reaches_both_ways(node, dialer) {
            self.fall_silent(id);
        }
        self.say((id, 1), Word::Certificate);
    }

    fn end_of(&self, node: usize, attempt: AttemptId, stage: Stage) -> End {
        let (life, last) = (self.life(node).number, self.now);
        let (inbox, stuck, hello) = (VecDeque::new(), VecDeque::new(), None);
        let heard = self.local(node);
        let pulse = Pulse { heard, pongs: Vec::new(), trips: VecDeque::new() };
        End { node, life, attempt, stage, inbox, stuck, stalled: false, last, hello, pulse }
    }

    pub(super) fn proceed(&mut self, at: At) {
        let dialer = at.1 == 0;
        match self.end(at).stage {
            Stage::Asked => {
                let hello = Box::new(self.hello(self.end(at).node));
                self.end_mut(at).stage = Stage::Awaits;
                self.say(at, if dialer { Word::Hello(hello) } else { Word::Welcome(hello) });
                self.read(at);
            }
            // A confirmation that cannot be written any more ends the attempt, not a link.
            Stage::AskedLast if dialer && self.is_closed(at) => self.failed(at, Failure::Closed),
            Stage::AskedLast => {
                if dialer {
                    self.say(at, Word::Confirm);
                }
                let node = self.end(at).node;
                self.end_mut(at).stage = Stage::Parked;
                self.life_mut(node).parked.insert(at);
                self.task_of(at, PATIENCE, Task::Unready(at));
                self.start_parked(node);
            }
            stage => self.fail("sim", &format!("{at:?}: proceed while {stage:?}")),
        }
    }

    /// The other side has closed, and that has arrived.
    fn is_closed(&self, at: At) -> bool {
        self.end(at).inbox.iter().any(|word| matches!(word, Word::Fin))
    }

    pub(super) fn refuse(&mut self, at: At, refusal: Refusal) {
        self.say(at, Word::Refuse(refusal));
        self.failed(at, Failure::Rejected(format!("refused here: {refusal}")));
    }

    pub(super) fn close(&mut self, at: At, parting: Parting) {
        match self.end(at).stage {
            Stage::Running { .. } => {
                self.say(at, Word::Goodbye(parting));
                self.link_ended(at, LinkEnd::Closed);
            }
            Stage::Parked => self.vanish(at),
            stage => self.fail("sim", &format!("{at:?}: closes an attempt while {stage:?}")),
        }
    }

    /// Starts the links whose peer has no earlier session any more.
    pub(super) fn start_parked(&mut self, node: usize) {
        for at in std::mem::take(&mut self.life_mut(node).parked) {
            if self.is_gone(at) {
                continue;
            }
            let name = self.end(at).hello.as_ref().map(|hello| hello.name.clone());
            let peer = self.index(&name.expect("both sides have said hello"));
            if self.life(node).sessions.contains_key(&peer) {
                self.life_mut(node).parked.insert(at);
            } else {
                self.start(at, peer);
            }
        }
    }

    fn start(&mut self, at: At, peer: usize) {
        let (node, attempt) = (self.end(at).node, self.end(at).attempt);
        let heard = self.local(node);
        let end = self.end_mut(at);
        end.stage = Stage::Running { ready: false };
        end.pulse.heard = heard;
        let life = self.life_mut(node);
        life.sessions.insert(peer, attempt);
        life.outlets.insert(peer, at);
        let other = (at.0, 1 - at.1);
        if matches!(self.end(other).stage, Stage::Running { .. }) {
            self.say(at, Word::Ready);
            self.say(other, Word::Ready);
        }
        self.read(at);
    }

    pub(super) fn link_ended(&mut self, at: At, end: LinkEnd) {
        let End { node, attempt, .. } = *self.end(at);
        self.report(at, Input::Ended(attempt, end));
        let gone = self.random(0..ms(2));
        self.task_of(at, gone, Task::SessionGone(attempt));
        self.life_mut(node).outlets.retain(|_, running| *running != at);
        self.vanish(at);
    }

    pub(super) fn failed(&mut self, at: At, failure: Failure) {
        let attempt = self.end(at).attempt;
        self.report(at, Input::Failed(attempt, failure));
        self.vanish(at);
    }

    /// One end is no more; the other finds out.
    pub(super) fn vanish(&mut self, at: At) {
        let End { node, attempt, stage, .. } = *self.end(at);
        if stage == Stage::Gone {
            return;
        }
        self.end_mut(at).stage = Stage::Gone;
        self.say(at, Word::Fin);
        if let Some(life) = &mut self.nodes[node].life {
            life.ends.remove(&attempt);
        }
        self.bury(at.0);
    }

    /// Forgets a connection that has no end left.
    pub(super) fn bury(&mut self, id: usize) {
        let over = |c: &Connection| c.ends.iter().all(|end| end.stage == Stage::Gone);
        if self.connections[id].as_ref().is_some_and(over) {
            self.connections[id] = None;
        }
    }

    /// Sends a word to the other end.
    pub(super) fn say(&mut self, from: At, word: Word) {
        let Some(connection) = &self.connections[from.0] else { return };
        let Some(other) = connection.ends.get(1 - from.1).filter(|e| e.stage != Stage::Gone) else {
            return;
        };
        let (node, to) = (connection.ends[from.1].node, other.node);
        let delay = self.transit(node, to);
        let there = (from.0, 1 - from.1);
        let arrives = self.now + delay;
        let other = self.end_mut(there);
        other.last = other.last.max(arrives);
        let at = other.last;
        self.at_time(at, Happening::Word(there, word));
    }

    /// A word has reached the process.
    pub(super) fn receive(&mut self, at: At, word: Word) {
        if self.is_gone(at) {
            return;
        }
        self.end_mut(at).inbox.push_back(word);
        self.read(at);
    }

    pub(super) fn is_gone(&self, at: At) -> bool {
        self.connections[at.0].as_ref().is_none_or(|c| c.ends[at.1].stage == Stage::Gone)
    }

    /// Takes words from the inbox while the task at this end is one that reads.
    fn read(&mut self, at: At) {
        let dialer = at.1 == 0;
        loop {
            if self.is_gone(at) {
                return;
            }
            let attempt = self.end(at).attempt;
            let stage = self.end(at).stage;
            if matches!(stage, Stage::Asked | Stage::AskedLast | Stage::Parked) {
                return;
            }
            let Some(word) = self.end_mut(at).inbox.pop_front() else { return };
            match (stage, word) {
                (Stage::Running { .. }, word) => self.heard(at, word),
                (Stage::Dials, Word::Certificate) => {
                    let name = self.nodes[self.end((at.0, 1)).node].name.clone();
                    self.end_mut(at).stage = Stage::Asked;
                    self.task_of(at, PATIENCE, Task::Late(at));
                    self.report(at, Input::Connected(attempt, name));
                }
                (Stage::Listens, Word::Hello(hello)) => {
                    self.end_mut(at).hello = Some(hello.clone());
                    self.end_mut(at).stage = Stage::Asked;
                    self.report(at, Input::Greeted(attempt, *hello));
                }
                (Stage::Awaits, Word::Welcome(hello)) if dialer => {
                    self.end_mut(at).hello = Some(hello.clone());
                    self.end_mut(at).stage = Stage::AskedLast;
                    self.report(at, Input::Welcomed(attempt, *hello));
                }
                (Stage::Awaits, Word::Confirm) if !dialer => {
                    self.end_mut(at).stage = Stage::AskedLast;
                    self.report(at, Input::Confirmed(attempt));
                }
                (Stage::Awaits, Word::Refuse(refusal)) => {
                    self.failed(at, Failure::RefusedBy(refusal));
                }
                (_, Word::Fin) => self.failed(at, Failure::Closed),
                (stage, word) => self.fail("sim", &format!("{at:?}: {word:?} while {stage:?}")),
            }
        }
    }

    /// A word on a running link.
    fn heard(&mut self, at: At, word: Word) {
        let End { node, attempt, .. } = *self.end(at);
        let now = self.local(node);
        match word {
            Word::Fin => return self.link_ended(at, LinkEnd::Closed),
            Word::Ready => {
                self.end_mut(at).stage = Stage::Running { ready: true };
                self.end_mut(at).pulse.heard = now;
                return self.report(at, Input::Ready(attempt));
            }
            _ => self.end_mut(at).pulse.heard = now,
        }
        match word {
            Word::Goodbye(parting) => self.link_ended(at, LinkEnd::Goodbye(parting)),
            Word::Ping(number) => self.send(at, Word::Pong(number)),
            Word::Pong(sent) => {
                let took = Duration::from_micros(self.micros(node).saturating_sub(sent));
                let Pulse { pongs, trips, .. } = &mut self.end_mut(at).pulse;
                pongs.push(took);
                trips.push_back(took);
                if trips.len() > TRIPS {
                    trips.pop_front();
                }
            }
            word => {
                let from = self.end((at.0, 1 - at.1)).node;
                self.delivered(node, from, word);
            }
        }
    }

    fn hello(&self, node: usize) -> Hello {
        let Contact { name, address, incarnation } = self.contact(node);
        let boot = self.life(node).boot;
        Hello { name, cluster: KeyId([7; 16]), incarnation, boot, advertise: address }
    }

    pub(super) fn end(&self, at: At) -> &End {
        &self.connections[at.0].as_ref().expect("a connection in use").ends[at.1]
    }

    pub(super) fn end_mut(&mut self, at: At) -> &mut End {
        &mut self.connections[at.0].as_mut().expect("a connection in use").ends[at.1]
    }

    /// Tasks of the ends themselves, in their process.
    pub(super) fn attend(&mut self, task: Task) {
        match task {
            Task::DialFailed(id, failure) => {
                if !self.is_gone((id, 0)) && self.end((id, 0)).stage == Stage::Dials {
                    self.failed((id, 0), failure);
                }
            }
            Task::NoTls(at) => {
                if !self.is_gone(at) && self.end(at).stage == Stage::Dials {
                    self.failed(at, Failure::Unreachable("no TLS within 5 s".to_owned()));
                }
            }
            Task::Late(at) => {
                let linked = |stage| matches!(stage, Stage::Parked | Stage::Running { .. });
                if !self.is_gone(at) && !linked(self.end(at).stage) {
                    self.failed(at, Failure::Unreachable("no hello within 5 s".to_owned()));
                }
            }
            Task::Unready(at) => {
                let waits =
                    |stage| matches!(stage, Stage::Parked | Stage::Running { ready: false });
                if !self.is_gone(at) && waits(self.end(at).stage) {
                    self.link_ended(at, LinkEnd::Fault("not ready in time".to_owned()));
                }
            }
            Task::LinkGone(at) => {
                if !self.is_gone(at) && matches!(self.end(at).stage, Stage::Running { .. }) {
                    self.link_ended(at, LinkEnd::TimedOut);
                }
            }
            other => self.fail("sim", &format!("no task of an end: {other:?}")),
        }
    }
}
