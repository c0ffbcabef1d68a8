//! Connections: two tasks that shake hands, and then a link, as `actors/link` has them.
//!
//! A connection has two ends. Each reads only while it waits for the other side, asks its machine at
//! each step, and goes on when told. Words stay in order within a direction; reports stay in order on
//! their way to a machine, which may decide on what is no longer true.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::RngExt;
use xpando_node::internals::io::tcp::{PROBE, SILENCE};
use xpando_node::internals::proto::capability::Capabilities;
use xpando_node::internals::proto::frame::CloseReason;
use xpando_node::internals::proto::heartbeat::Trips;
use xpando_node::internals::proto::hello::{Hello, Refusal};
use xpando_node::internals::proto::link::{CONNECT, HANDSHAKE, Input, Proven, Report, down_reason};
use xpando_node::internals::proto::membership::{AttemptId, Failure, LinkEnd};
use xpando_node::internals::proto::node::{Contact, Credential, KeyId};
use xpando_node::internals::proto::talk::DownReason;

use super::node::Message;
use super::{Happening, Micros, Task, World, host, micros, ms, secs};

/// Names have one key here.
const KEY: Credential = Credential { key: KeyId([1; 16]), since: 0 };
/// What is on its way when acknowledgements stop still arrives.
const IN_FLIGHT: Micros = ms(300);
/// A segment that takes longer than this puts a pair into trouble. Beats come every second and the
/// first doubt after 4.1 s of silence: what takes less than three is what the defaults must bear.
const BEARABLE: Micros = secs(3);

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
    Goodbye(CloseReason),
    Fin,
    Ping(u64),
    Pong(u64),
    System(Message),
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
    /// Both sides have agreed, and the peer's earlier session may not be gone yet.
    Parked,
    Running,
    Gone,
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
    /// When its last byte arrived.
    pub(super) heard: Instant,
    pub(super) trips: RefCell<Trips>,
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
        if delay > BEARABLE && to < self.nodes.len() {
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
        if target >= self.nodes.len() || !self.reaches_both_ways(from, target) {
            let nothing = Failure::Unreachable("nothing answers".to_owned());
            return self.task_of((id, 0), micros(CONNECT), Task::DialFailed(id, nothing));
        }
        let there = &self.nodes[target];
        match there.life.as_ref().filter(|_| there.address == to) {
            None => {
                let back = self.transit(target, from);
                self.task_of((id, 0), back, Task::DialFailed(id, Failure::Refused));
            }
            Some(life) => {
                let life = life.number;
                self.task_of((id, 0), micros(HANDSHAKE), Task::NoTls((id, 0)));
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
            let wait = micros(SILENCE) + self.random(0..micros(PROBE));
            self.later(wait, Happening::TimedOut((id, end), now));
        }
    }

    /// What a cut held back on a connection goes on with the next retransmission.
    pub(super) fn speak_again(&mut self, id: usize) {
        let Some(connection) = self.connections[id].as_mut() else { return };
        let Some(since) = connection.silent.take() else { return };
        let outage = (self.now - since).min(micros(SILENCE));
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
        let name = self.nodes[dialer].name.clone();
        self.link(node, Input::Authenticated(attempt, name));
        self.task_of((id, 1), micros(HANDSHAKE), Task::Late((id, 1)));
        if !self.reaches_both_ways(node, dialer) {
            self.fall_silent(id);
        }
        self.transmit((id, 1), Word::Certificate);
    }

    fn end_of(&self, node: usize, attempt: AttemptId, stage: Stage) -> End {
        let (life, last) = (self.life(node).number, self.now);
        let (inbox, stuck, hello) = (VecDeque::new(), VecDeque::new(), None);
        let (stalled, heard, trips) = (false, self.local(node), RefCell::default());
        End { node, life, attempt, stage, inbox, stuck, stalled, last, hello, heard, trips }
    }

    pub(super) fn proceed(&mut self, at: At) {
        let dialer = at.1 == 0;
        match self.end(at).stage {
            Stage::Asked => {
                let node = self.end(at).node;
                let mut hello = self.hello(node);
                self.distort(node, &mut hello);
                if !dialer && let Some(refusal) = self.refuses(at) {
                    return self.refuse(at, refusal);
                }
                let hello = Box::new(hello);
                self.end_mut(at).stage = Stage::Awaits;
                self.transmit(at, if dialer { Word::Hello(hello) } else { Word::Welcome(hello) });
                self.read(at);
            }
            // A confirmation that cannot be written any more ends the attempt, not a link.
            Stage::AskedLast if dialer && self.is_closed(at) => self.failed(at, Failure::Closed),
            Stage::AskedLast => {
                if dialer {
                    self.transmit(at, Word::Confirm);
                }
                self.end_mut(at).stage = Stage::Parked;
                let End { node, attempt, ref hello, .. } = *self.end(at);
                let hello = hello.as_deref().cloned().expect("both sides have said hello");
                let proven = Proven {
                    hello,
                    credential: KEY,
                    serials: Vec::new(),
                    capabilities: Capabilities::ALL,
                };
                self.link(node, Input::Established(attempt, proven));
            }
            stage => self.fail("sim", &format!("{at:?}: proceed while {stage:?}")),
        }
    }

    /// The other side has closed, and that has arrived.
    fn is_closed(&self, at: At) -> bool {
        self.end(at).inbox.iter().any(|word| matches!(word, Word::Fin))
    }

    pub(super) fn refuse(&mut self, at: At, refusal: Refusal) {
        self.transmit(at, Word::Refuse(refusal));
        self.failed(at, Failure::Rejected(format!("refused here: {refusal}")));
    }

    pub(super) fn part_with(&mut self, at: At, parting: CloseReason) {
        self.transmit(at, Word::Goodbye(parting));
        self.link_ended(at, LinkEnd::Closed);
    }

    pub(super) fn start(&mut self, at: At) {
        let node = self.end(at).node;
        let heard = self.local(node);
        let end = self.end_mut(at);
        (end.stage, end.heard) = (Stage::Running, heard);
        let peer = end.hello.as_ref().map(|hello| hello.name.clone());
        let peer = self.index(&peer.expect("both sides have said hello"));
        self.life_mut(node).outlets.insert(peer, at);
        self.up(node, at);
        let other = (at.0, 1 - at.1);
        if self.end(other).stage == Stage::Running {
            self.transmit(at, Word::Ready);
            self.transmit(other, Word::Ready);
        }
        self.read(at);
    }

    /// ractor's session of a link ends soon.
    pub(super) fn stop_session(&mut self, node: usize, attempt: AttemptId) {
        let (gone, life) = (self.random(0..ms(2)), self.life(node).number);
        self.later(gone, Happening::Task(node, life, Task::SessionGone(attempt)));
    }

    /// The connection of a running link has ended.
    fn link_ended(&mut self, at: At, end: LinkEnd) {
        let End { node, attempt, .. } = *self.end(at);
        self.close(at, down_reason(&end));
        self.link(node, Input::MuxEnded(attempt, end));
    }

    fn failed(&mut self, at: At, failure: Failure) {
        let End { node, attempt, .. } = *self.end(at);
        self.link(node, Input::Step(attempt, Report::Failed(attempt, failure)));
    }

    /// An end breaks off.
    pub(super) fn vanish(&mut self, at: At) {
        self.close(at, DownReason::LinkLost);
    }

    /// One end is no more; the other finds out.
    fn close(&mut self, at: At, why: DownReason) {
        let End { node, attempt, stage, .. } = *self.end(at);
        if stage == Stage::Gone {
            return;
        }
        self.end_mut(at).stage = Stage::Gone;
        self.transmit(at, Word::Fin);
        if let Some(life) = &mut self.nodes[node].life {
            life.ends.remove(&attempt);
            life.outlets.retain(|_, running| *running != at);
            if stage == Stage::Running {
                self.down(node, at, why);
            }
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
    pub(super) fn transmit(&mut self, from: At, word: Word) {
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
                (Stage::Running, word) => self.heard(at, word),
                (Stage::Dials, Word::Certificate) => {
                    let name = self.nodes[self.end((at.0, 1)).node].name.clone();
                    self.end_mut(at).stage = Stage::Asked;
                    self.task_of(at, micros(HANDSHAKE), Task::Late(at));
                    self.came_to(at, Report::Connected(attempt, name, KEY));
                }
                (Stage::Listens, Word::Hello(hello)) => {
                    self.end_mut(at).hello = Some(hello.clone());
                    self.end_mut(at).stage = Stage::Asked;
                    self.came_to(at, Report::Greeted(attempt, *hello, KEY));
                }
                (Stage::Awaits, Word::Welcome(hello)) if dialer => {
                    self.end_mut(at).hello = Some(hello.clone());
                    self.end_mut(at).stage = Stage::AskedLast;
                    self.came_to(at, Report::Welcomed(attempt, *hello));
                }
                (Stage::Awaits, Word::Confirm) if !dialer => {
                    self.end_mut(at).stage = Stage::AskedLast;
                    self.came_to(at, Report::Confirmed(attempt));
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
            Word::Goodbye(parting) => return self.link_ended(at, LinkEnd::Goodbye(parting)),
            _ => self.end_mut(at).heard = now,
        }
        match word {
            Word::Ready => self.link(node, Input::SessionReady(attempt)),
            Word::Ping(number) => self.send(at, Word::Pong(number)),
            Word::Pong(sent) => {
                let took = Duration::from_micros(self.micros(node).saturating_sub(sent));
                self.end_mut(at).trips.get_mut().push(took);
            }
            Word::System(message) => self.delivered(node, at, message),
            word => self.fail("sim", &format!("{at:?}: {word:?} on a link")),
        }
    }

    /// The task of an attempt came to a step.
    fn came_to(&mut self, at: At, report: Report) {
        let End { node, attempt, .. } = *self.end(at);
        self.link(node, Input::Step(attempt, report));
    }

    fn hello(&self, node: usize) -> Hello {
        let Contact { name, address, incarnation } = self.contact(node);
        let boot = self.life(node).boot;
        Hello { name, cluster: KeyId([7; 16]), incarnation, boot, advertise: address, lists: None }
    }

    pub(super) fn end(&self, at: At) -> &End {
        &self.connections[at.0].as_ref().expect("a connection in use").ends[at.1]
    }

    /// The node at the other end.
    pub(super) fn other_end(&self, at: At) -> Option<usize> {
        self.connections[at.0].as_ref()?.ends.get(1 - at.1).map(|end| end.node)
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
                let linked = |stage| matches!(stage, Stage::Parked | Stage::Running);
                if !self.is_gone(at) && !linked(self.end(at).stage) {
                    self.failed(at, Failure::Unreachable("no hello within 5 s".to_owned()));
                }
            }
            Task::LinkGone(at) => {
                if !self.is_gone(at) && matches!(self.end(at).stage, Stage::Running) {
                    self.link_ended(at, LinkEnd::TimedOut);
                }
            }
            other => self.fail("sim", &format!("no task of an end: {other:?}")),
        }
    }
}
