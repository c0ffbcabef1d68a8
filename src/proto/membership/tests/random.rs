//! Peers, links and dials that come as they like: `rules` look at each step, and in peace everybody is linked.
//!
//! The link layer is played as its machine reports: an attempt takes the next step only when it is told to proceed, one
//! that ended may have a last report on its way, and a machine that starts again hears of the links that live.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::super::{AttemptId, Failure, Input, LinkEnd, Output};
use super::desk::{Desk, ONLINE, address, hello, home, ms, name, secs};
use crate::proto::event::{Reason, Source};
use crate::proto::frame::CloseReason;
use crate::proto::hello::Refusal;
use crate::proto::node::{Contact, Incarnation};

const PEERS: [usize; 4] = [1, 3, 7, 9];

/// Where an attempt stands, and with whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Dials(SocketAddr),
    /// Its hello, or the welcome, is out.
    Awaits(usize),
    Linked {
        peer: usize,
        life: u64,
        ready: bool,
    },
}

struct Chaos {
    desk: Desk,
    rng: StdRng,
    attempts: BTreeMap<AttemptId, Stage>,
    /// All that there ever were.
    known: BTreeSet<AttemptId>,
    /// Ended, with a report that may still come.
    over: Vec<(AttemptId, Stage)>,
    lives: BTreeMap<usize, u64>,
    inbound: u64,
    machines: u64,
    stopped: bool,
}

impl Chaos {
    fn new(seed: u64) -> Self {
        let lives = PEERS.into_iter().map(|peer| (peer, 1)).collect();
        let rng = StdRng::seed_from_u64(seed);
        let (attempts, over) = (BTreeMap::new(), Vec::new());
        let (inbound, machines, stopped) = (0, 0, false);
        let desk = Desk::new(seed);
        let known = BTreeSet::new();
        Self { desk, rng, attempts, known, over, lives, inbound, machines, stopped }
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.rng.random_range(0..of.len())]
    }

    fn peer(&mut self) -> usize {
        self.one(&PEERS)
    }

    /// The life that is said of a peer: mostly the right one.
    fn life(&mut self, peer: usize) -> u64 {
        let life = self.lives[&peer];
        self.one(&[life, life, life, life + 1, life.saturating_sub(1)])
    }

    /// An input, and what the link layer does of it; `takes` is the attempt that goes on when it may, and where to.
    fn give(&mut self, input: Input, takes: Option<(AttemptId, Stage)>) {
        let out = self.desk.give(input);
        if let Some((attempt, stage)) = takes {
            let before = self.attempts.remove(&attempt);
            if out.contains(&Output::Proceed(attempt)) {
                self.attempts.insert(attempt, stage);
            } else if let Some(before) = before {
                self.over.push((attempt, before));
            }
        }
        for output in out {
            match output {
                Output::Dial(attempt, to) => {
                    assert!(self.known.insert(attempt), "{attempt:?} is used twice");
                    self.attempts.insert(attempt, Stage::Dials(to));
                }
                Output::Proceed(attempt) => {
                    let asked = takes.map(|(attempt, _)| attempt);
                    assert_eq!(asked, Some(attempt), "only the one that asks goes on");
                }
                Output::Abandon(attempt)
                | Output::Refuse(attempt, _)
                | Output::Close(attempt, _) => {
                    assert!(self.known.contains(&attempt), "{attempt:?} is made up");
                    let over = self.attempts.remove(&attempt).map(|stage| (attempt, stage));
                    self.over.extend(over);
                }
                _ => {}
            }
        }
    }

    /// The next thing that an attempt may report.
    fn step(&mut self, attempt: AttemptId, stage: Stage) {
        let inbound = matches!(attempt, AttemptId::Inbound(_));
        let fails = self.rng.random_bool(0.3);
        let failure = |it: &mut Self| {
            let refusal = Refusal::Stale { known: Incarnation(7), linked: Some(address(6000)) };
            let found = Failure::RefusedBy(it.one(&[Refusal::Crossed, Refusal::Leaving, refusal]));
            let unreachable = Failure::Unreachable("nothing answers".to_owned());
            let all = [found, unreachable, Failure::Refused, Failure::Closed];
            all[it.rng.random_range(0..4)].clone()
        };
        match stage {
            Stage::Dials(to) if !fails => {
                let there = PEERS.into_iter().find(|peer| home(*peer) == to);
                let found = there.filter(|_| self.rng.random_bool(0.9));
                let peer = found.unwrap_or_else(|| self.peer());
                let takes = Some((attempt, Stage::Awaits(peer)));
                self.give(Input::Connected(attempt, name(peer)), takes);
            }
            Stage::Awaits(peer) if !fails => {
                let life = if inbound { self.lives[&peer] } else { self.life(peer) };
                let takes = Some((attempt, Stage::Linked { peer, life, ready: false }));
                let input = if inbound {
                    Input::Confirmed(attempt)
                } else {
                    Input::Welcomed(attempt, hello(peer, life))
                };
                self.give(input, takes);
            }
            Stage::Linked { peer, life, ready: false } if !fails => {
                let now = Stage::Linked { peer, life, ready: true };
                self.give(Input::Ready(attempt), None);
                self.attempts.entry(attempt).and_modify(|stage| *stage = now);
            }
            Stage::Linked { .. } => {
                let parting = [
                    CloseReason::Left,
                    CloseReason::Replaced,
                    CloseReason::Renewed,
                    CloseReason::Silent,
                    CloseReason::Revoked,
                    CloseReason::Disconnected,
                ];
                let ends = [
                    LinkEnd::Goodbye(self.one(&parting)),
                    LinkEnd::Closed,
                    LinkEnd::TimedOut,
                    LinkEnd::Fault("a bad frame".to_owned()),
                ];
                let end = ends[self.rng.random_range(0..4)].clone();
                self.attempts.remove(&attempt);
                self.give(Input::Ended(attempt, end), None);
            }
            Stage::Dials(_) | Stage::Awaits(_) => {
                let failure = failure(self);
                self.attempts.remove(&attempt);
                self.give(Input::Failed(attempt, failure), None);
            }
        }
    }

    /// Something happens.
    fn happen(&mut self) {
        let peer = self.peer();
        let life = self.life(peer);
        match self.rng.random_range(0..40) {
            0..18 => {
                let open: Vec<_> = self.attempts.iter().map(|(id, stage)| (*id, *stage)).collect();
                if !open.is_empty() {
                    let (attempt, stage) = self.one(&open);
                    self.step(attempt, stage);
                }
            }
            18..22 => {
                self.inbound += 1;
                let attempt = AttemptId::Inbound(self.inbound);
                self.known.insert(attempt);
                self.attempts.insert(attempt, Stage::Awaits(peer));
                let takes = Some((attempt, Stage::Awaits(peer)));
                self.give(Input::Greeted(attempt, hello(peer, life)), takes);
            }
            22..26 => {
                let all = [Source::Beacon, Source::Peer, Source::Remembered, Source::Seed];
                let (source, other) = (self.one(&all), self.peer());
                let address = self.one(&[home(peer), home(peer), home(other)]);
                let incarnation = Incarnation(self.one(&[life, 0]));
                let contact = Contact { name: name(peer), address, incarnation };
                self.give(Input::Hint(contact, source), None);
            }
            26 => self.give(Input::Seed(home(peer)), None),
            27 => self.give(Input::Silent(name(peer)), None),
            28 => self.give(Input::Misbehaved(name(peer)), None),
            29 => self.give(Input::Disconnect(name(peer)), None),
            30 => {
                let (name, life, known) = (name(peer), Incarnation(life), true);
                self.give(Input::Forget { name, life, known, author: None }, None);
            }
            31 => self.give(Input::Revive(name(peer)), None),
            32 => *self.lives.get_mut(&peer).expect("a peer") += 1,
            33 => {
                if let Some((attempt, stage)) = self.over.pop() {
                    self.step(attempt, stage);
                }
            }
            34 if !self.stopped && self.rng.random_bool(0.3) => self.restart(),
            35 => {
                let links: Vec<_> = self.attempts.keys().copied().collect();
                if !links.is_empty() {
                    let link = self.one(&links);
                    self.give(Input::Revoked(link), None);
                }
            }
            _ => {
                let most = self.one(&[ms(20), ms(2000), secs(60)]);
                let until = self.desk.now + self.rng.random_range(ms(0)..most);
                self.wait(until);
            }
        }
    }

    fn wait(&mut self, until: std::time::Instant) {
        while let Some(at) = self.desk.machine.deadline().filter(|at| *at <= until) {
            self.desk.now = at.max(self.desk.now);
            self.give(Input::Tick, None);
        }
        self.desk.now = until;
    }

    /// The machine ends, and another one hears of the links that live.
    fn restart(&mut self) {
        self.machines += 1;
        self.desk.restart(self.machines << 32, self.rng.random());
        self.attempts.retain(|_, stage| matches!(stage, Stage::Linked { .. }));
        self.over.clear();
        for (attempt, stage) in self.attempts.clone() {
            if let Stage::Linked { peer, life, ready } = stage {
                self.give(Input::Existing(attempt, hello(peer, life), ready), None);
            }
        }
    }

    /// Everybody lives a later life than any that was heard of, where others say it is, and answers.
    fn peace(&mut self, seed: u64) {
        self.lives.values_mut().for_each(|life| *life += 100);
        self.over.clear();
        for peer in PEERS {
            let (name, address, incarnation) = (name(peer), home(peer), Incarnation(0));
            self.give(Input::Hint(Contact { name, address, incarnation }, Source::Peer), None);
        }
        for attempt in self.attempts.keys().copied().collect::<Vec<_>>() {
            let linked = matches!(self.attempts.remove(&attempt), Some(Stage::Linked { .. }));
            let input = if linked {
                Input::Ended(attempt, LinkEnd::Closed)
            } else {
                Input::Failed(attempt, Failure::Closed)
            };
            self.give(input, None);
        }
        let until = self.desk.now + secs(180);
        while self.desk.now < until {
            for (attempt, stage) in self.attempts.clone() {
                match stage {
                    Stage::Dials(to) => {
                        let there = PEERS.into_iter().find(|peer| home(*peer) == to);
                        let peer = there.expect("all listen at home");
                        let takes = Some((attempt, Stage::Awaits(peer)));
                        self.give(Input::Connected(attempt, name(peer)), takes);
                    }
                    Stage::Awaits(peer) => {
                        let life = self.lives[&peer];
                        let takes = Some((attempt, Stage::Linked { peer, life, ready: true }));
                        self.give(Input::Welcomed(attempt, hello(peer, life)), takes);
                        self.give(Input::Ready(attempt), None);
                    }
                    Stage::Linked { .. } => {}
                }
            }
            let linked = |stage: &Stage| matches!(stage, Stage::Linked { .. });
            let next = self.desk.machine.deadline().unwrap_or(until);
            let soon = self.desk.now + ms(10);
            let rest = self.attempts.values().all(linked);
            self.wait(if rest { next.clamp(soon, until.max(soon)) } else { soon });
        }
        for peer in self.desk.machine.peers() {
            let stands = (peer.status, peer.reason);
            assert!(stands == ONLINE || stands.1 == Some(Reason::Left), "seed {seed}: {peer:?}");
        }
    }
}

#[test]
fn the_rules_hold_whatever_happens_and_in_peace_all_are_linked() {
    for seed in 0..400 {
        let mut chaos = Chaos::new(seed);
        let steps = chaos.rng.random_range(20..300);
        (0..steps).for_each(|_| chaos.happen());
        chaos.peace(seed);
    }
}

#[test]
fn stop_at_any_moment_leaves_nothing_behind() {
    for seed in 0..400 {
        let mut chaos = Chaos::new(seed);
        let steps = chaos.rng.random_range(1..60);
        (0..steps).for_each(|_| chaos.happen());
        chaos.give(Input::Stop, None);
        chaos.stopped = true;
        assert_eq!(chaos.attempts, BTreeMap::new(), "seed {seed}");
        (0..50).for_each(|_| chaos.happen());
        let idle = chaos.desk.machine.peers.values().all(super::super::Peer::idle);
        assert!(idle && chaos.desk.machine.dialing.is_empty(), "seed {seed}");
    }
}
