//! One connection: two tasks that shake hands, and then a link.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::RngExt;

use super::super::super::{AttemptId, Failure, Input, LinkEnd};
use super::{At, CONNECT, DEADLINE, Happening, Node, SILENCE, World, ms, secs};
use crate::proto::frame::CloseReason;
use crate::proto::hello::{Hello, Refusal};
use crate::proto::node::{Contact, KeyId};

/// What a word on the wire says.
#[derive(Clone, Debug)]
pub(super) enum Word {
    Hello(Hello),
    Welcome(Hello),
    Confirm,
    Refuse(Refusal),
    Goodbye(CloseReason),
    Fin,
}

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

#[derive(Debug)]
pub(super) struct End {
    pub(super) node: usize,
    pub(super) life: u64,
    pub(super) attempt: AttemptId,
    pub(super) stage: Stage,
    pub(super) inbox: VecDeque<Word>,
    /// The last word on its way here arrives then.
    pub(super) last: Instant,
    /// The other side's hello.
    pub(super) hello: Option<Hello>,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) to: SocketAddr,
    /// The dialer's end, then the acceptor's.
    pub(super) ends: Vec<End>,
    /// A cut went through it: nothing arrives any more.
    pub(super) broken: bool,
}

impl World {
    pub(super) fn break_off(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.broken = true;
        for end in 0..connection.ends.len() {
            self.soon(secs(1)..SILENCE, Happening::TimedOut((id, end)));
        }
    }

    /// Applies a command to the end of a connection; one that is gone ignores it.
    pub(super) fn at(
        &mut self,
        node: usize,
        attempt: AttemptId,
        command: impl FnOnce(&mut Self, At),
    ) {
        let known = self.life(node).ends.get(&attempt).copied();
        let at = known.unwrap_or_else(|| self.fail(&format!("n{node} made {attempt:?} up")));
        if self.end(at).stage != Stage::Gone {
            command(self, at);
        }
    }

    pub(super) fn dial(&mut self, node: usize, attempt: AttemptId, to: SocketAddr) {
        self.sequence += 1;
        let id = self.sequence;
        let end = self.end_of(node, attempt, Stage::Dials);
        self.connections.insert(id, Connection { to, ends: vec![end], broken: false });
        self.enter(node, attempt, (id, 0));
        self.soon(self.weather.delay.clone(), Happening::Arrive(id));
    }

    fn end_of(&self, node: usize, attempt: AttemptId, stage: Stage) -> End {
        let (life, last) = (self.life(node).number, self.now);
        End { node, life, attempt, stage, inbox: VecDeque::new(), last, hello: None }
    }

    fn enter(&mut self, node: usize, attempt: AttemptId, at: At) {
        let before = self.nodes[node].life.as_mut().and_then(|l| l.ends.insert(attempt, at));
        self.check(before.is_none(), || format!("n{node} used {attempt:?} twice"));
    }

    pub(super) fn proceed(&mut self, at: At) {
        let (id, dialer) = (at.0, at.1 == 0);
        match self.end(at).stage {
            Stage::Asked => {
                let hello = self.hello(self.end(at).node);
                self.end_mut(at).stage = Stage::Awaits;
                self.say(at, if dialer { Word::Hello(hello) } else { Word::Welcome(hello) });
                self.read(at);
            }
            // A confirmation that cannot be written any more ends the attempt, not a link.
            Stage::AskedLast if dialer && self.reset(at) => self.failed(at, Failure::Closed),
            Stage::AskedLast => {
                if dialer {
                    self.say(at, Word::Confirm);
                }
                self.end_mut(at).stage = Stage::Parked;
                self.soon(DEADLINE..DEADLINE + ms(1), Happening::Unready(at));
                self.start_parked(self.end(at).node);
            }
            stage => self.fail(&format!("connection {id}: proceed while {stage:?}")),
        }
    }

    /// The other side has closed, and the reset has arrived.
    fn reset(&self, at: At) -> bool {
        self.end(at).inbox.iter().any(|word| matches!(word, Word::Fin))
    }

    pub(super) fn refuse(&mut self, at: At, refusal: Refusal) {
        let stage = self.end(at).stage;
        let asked = matches!(stage, Stage::Asked | Stage::AskedLast);
        self.check(asked, || format!("refuses while {stage:?}"));
        self.say(at, Word::Refuse(refusal));
        self.failed(at, Failure::Rejected(format!("refused here: {refusal}")));
    }

    pub(super) fn close(&mut self, at: At, parting: CloseReason) {
        match self.end(at).stage {
            Stage::Running { .. } => {
                self.say(at, Word::Goodbye(parting));
                self.link_ended(at, LinkEnd::Closed);
            }
            Stage::Parked => self.vanish(at),
            stage => self.fail(&format!("closes an attempt while {stage:?}")),
        }
    }

    /// Starts the links whose peer has no earlier session any more.
    pub(super) fn start_parked(&mut self, node: usize) {
        let life = self.life(node);
        let parked: Vec<_> = life.ends.iter().map(|(attempt, at)| (*attempt, *at)).collect();
        for (attempt, at) in parked {
            let Some(hello) =
                self.end(at).hello.clone().filter(|_| self.end(at).stage == Stage::Parked)
            else {
                continue;
            };
            if self.life(node).sessions.values().any(|peer| *peer == hello.name) {
                continue;
            }
            self.end_mut(at).stage = Stage::Running { ready: false };
            if let Some(life) = self.nodes[node].life.as_mut() {
                life.sessions.insert(attempt, hello.name);
            }
            let other = (at.0, 1 - at.1);
            if matches!(self.end(other).stage, Stage::Running { .. }) {
                self.soon(self.weather.delay.clone(), Happening::Ready(at));
                self.soon(self.weather.delay.clone(), Happening::Ready(other));
            }
            self.read(at);
        }
    }

    pub(super) fn link_ended(&mut self, at: At, end: LinkEnd) {
        let End { node, life, attempt, .. } = *self.end(at);
        self.vanish(at);
        self.report(at, Input::Ended(attempt, end));
        self.soon(ms(0)..ms(2), Happening::SessionGone(node, life, attempt));
    }

    pub(super) fn failed(&mut self, at: At, failure: Failure) {
        let attempt = self.end(at).attempt;
        self.vanish(at);
        self.report(at, Input::Failed(attempt, failure));
    }

    /// What a machine that has just attached hears of this end; an attempt ends.
    pub(super) fn reattach(&mut self, at: At) -> Option<Input> {
        let End { attempt, stage, ref hello, .. } = *self.end(at);
        let ready = stage == (Stage::Running { ready: true });
        match stage {
            Stage::Gone => None,
            Stage::Parked | Stage::Running { .. } => {
                hello.clone().map(|hello| Input::Existing(attempt, hello, ready))
            }
            Stage::Dials | Stage::Listens | Stage::Asked | Stage::Awaits | Stage::AskedLast => {
                self.vanish(at);
                None
            }
        }
    }

    /// One end is no more; the other finds out.
    pub(super) fn vanish(&mut self, at: At) {
        if self.end(at).stage != Stage::Gone {
            self.end_mut(at).stage = Stage::Gone;
            self.say(at, Word::Fin);
        }
    }

    fn say(&mut self, from: At, word: Word) {
        let delay = self.rng.random_range(self.weather.delay.clone());
        let now = self.now;
        let Some(connection) = self.connections.get_mut(&from.0).filter(|c| !c.broken) else {
            return;
        };
        let Some(other) = connection.ends.get_mut(1 - from.1) else { return };
        other.last = other.last.max(now + delay);
        let at = other.last;
        self.later(at, Happening::Word((from.0, 1 - from.1), word));
    }

    pub(super) fn arrive(&mut self, id: u64) {
        let Connection { to, ends, .. } = &self.connections[&id];
        let (to, from, dials) = (*to, ends[0].node, ends[0].stage == Stage::Dials);
        let listens = |node: &Node| node.address == to && node.life.is_some();
        let target = self.nodes.iter().position(listens);
        let severed = target.is_some_and(|target| self.severed(from, target));
        if severed || self.holes.contains(&to) {
            let wait = if self.rng.random_bool(0.5) || !severed { CONNECT } else { ms(1) };
            let failure = Failure::Unreachable("nothing answers".to_owned());
            self.soon(wait..wait + ms(1), Happening::DialFailed(id, failure));
        } else if let Some(target) = target.filter(|_| dials) {
            let Some(life) = self.nodes[target].life.as_mut() else { return };
            life.inbound += 1;
            let attempt = AttemptId::Inbound(life.inbound);
            let end = self.end_of(target, attempt, Stage::Listens);
            self.connections.entry(id).and_modify(|c| c.ends.push(end));
            self.enter(target, attempt, (id, 1));
            self.soon(DEADLINE..DEADLINE + ms(1), Happening::Late((id, 1)));
            self.soon(self.weather.delay.clone(), Happening::Certified(id));
        } else {
            self.soon(self.weather.delay.clone(), Happening::DialFailed(id, Failure::Refused));
        }
    }

    /// Takes words from the inbox while the task at this end is one that reads.
    pub(super) fn read(&mut self, at: At) {
        let dialer = at.1 == 0;
        while matches!(self.end(at).stage, Stage::Listens | Stage::Awaits | Stage::Running { .. }) {
            let attempt = self.end(at).attempt;
            let Some(word) = self.end_mut(at).inbox.pop_front() else { return };
            match (self.end(at).stage, word) {
                (Stage::Listens, Word::Hello(hello)) => {
                    self.end_mut(at).hello = Some(hello.clone());
                    self.end_mut(at).stage = Stage::Asked;
                    self.report(at, Input::Greeted(attempt, hello));
                }
                (Stage::Awaits, Word::Welcome(hello)) if dialer => {
                    self.end_mut(at).hello = Some(hello.clone());
                    self.end_mut(at).stage = Stage::AskedLast;
                    self.report(at, Input::Welcomed(attempt, hello));
                }
                (Stage::Awaits, Word::Confirm) if !dialer => {
                    self.end_mut(at).stage = Stage::AskedLast;
                    self.report(at, Input::Confirmed(attempt));
                }
                (Stage::Awaits, Word::Refuse(refusal)) => {
                    self.failed(at, Failure::RefusedBy(refusal));
                }
                (Stage::Running { .. }, Word::Goodbye(parting)) => {
                    self.link_ended(at, LinkEnd::Goodbye(parting));
                }
                (Stage::Running { .. }, Word::Fin) => self.link_ended(at, LinkEnd::Closed),
                (_, Word::Fin) => self.failed(at, Failure::Closed),
                (stage, word) => self.fail(&format!("{word:?} while {stage:?}")),
            }
        }
    }

    fn hello(&self, node: usize) -> Hello {
        let Contact { name, address, incarnation } = self.contact(node);
        let (cluster, boot) = (KeyId([7; 16]), self.life(node).boot);
        Hello { name, cluster, incarnation, boot, advertise: address }
    }

    pub(super) fn report(&mut self, at: At, input: Input) {
        let End { node, life, .. } = *self.end(at);
        let when = self.now + self.rng.random_range(ms(0)..Duration::from_micros(200));
        let Some(it) = self.living(node, life) else { return };
        it.mailbox = it.mailbox.max(when);
        let when = it.mailbox;
        self.later(when, Happening::Report(node, life, input));
    }

    pub(super) fn end(&self, at: At) -> &End {
        &self.connections[&at.0].ends[at.1]
    }

    pub(super) fn end_mut(&mut self, at: At) -> &mut End {
        let connection = self.connections.get_mut(&at.0).expect("connections are kept");
        &mut connection.ends[at.1]
    }
}
