//! One machine, driven by hand: all that it is given is checked by `rules`, what it puts out is kept.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::super::{AttemptId, Config, Failure, Input, Membership, Output};
use super::rules::Watched;
use crate::proto::event::{Event, Reason, Source, Status};
use crate::proto::hello::Hello;
use crate::proto::node::{Contact, Incarnation, KeyId, NodeName};
use crate::proto::tests::start;

pub(super) const ONLINE: (Status, Option<Reason>) = (Status::Online, None);

pub(super) fn offline(reason: Reason) -> (Status, Option<Reason>) {
    (Status::Offline, Some(reason))
}

pub(super) fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub(super) fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub(super) fn name(peer: usize) -> NodeName {
    format!("n{peer}@h").parse().expect("a name")
}

pub(super) fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Where a peer listens.
pub(super) fn home(peer: usize) -> SocketAddr {
    address(3000 + u16::try_from(peer).expect("few peers"))
}

pub(super) fn hello(peer: usize, incarnation: u64) -> Hello {
    let (cluster, incarnation) = (KeyId([7; 16]), Incarnation(incarnation));
    Hello {
        name: name(peer),
        cluster,
        incarnation,
        boot: incarnation.0,
        advertise: home(peer),
        lists: None,
    }
}

pub(super) fn dialed(out: &[Output]) -> Option<AttemptId> {
    out.iter().find_map(|o| match o {
        Output::Dial(attempt, _) => Some(*attempt),
        _ => None,
    })
}

/// The node `n5`, so that there are names on both sides of its own.
pub(super) struct Desk {
    pub(super) machine: Membership,
    pub(super) now: Instant,
    config: Config,
    watched: Watched,
    pub(super) events: Vec<Event>,
    pub(super) dials: Vec<SocketAddr>,
    /// Dials that nobody has answered yet.
    pub(super) open: BTreeMap<AttemptId, SocketAddr>,
}

impl Desk {
    pub(super) fn new(seed: u64) -> Self {
        Self::with(Config::default(), seed)
    }

    pub(super) fn with(config: Config, seed: u64) -> Self {
        let rng = StdRng::seed_from_u64(seed);
        Self {
            machine: Membership::new(config, name(5), Incarnation(7), 0, rng),
            now: start(),
            config,
            watched: Watched::default(),
            events: Vec::new(),
            dials: Vec::new(),
            open: BTreeMap::new(),
        }
    }

    /// With what it says in its hellos.
    pub(super) fn with_hello(mut self, boot: u64, advertise: SocketAddr) -> Self {
        self.machine = self.machine.with_hello(boot, advertise);
        self
    }

    /// Another machine takes the place of this one: its attempts have these numbers and above.
    pub(super) fn restart(&mut self, first: u64, seed: u64) {
        let (rng, life) = (StdRng::seed_from_u64(seed), self.machine.incarnation());
        self.machine = Membership::new(self.config, name(5), life, first, rng);
        self.watched = Watched::default();
        self.open.clear();
    }

    pub(super) fn give(&mut self, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        let acts = self.machine.handle(input.clone(), self.now, &mut out);
        let (config, now) = (self.config, self.now);
        self.watched.after(&self.machine, (config, now), &input, acts, &out);
        for output in &out {
            match output {
                Output::Dial(attempt, to) => {
                    self.dials.push(*to);
                    self.open.insert(*attempt, *to);
                }
                Output::Abandon(attempt) => drop(self.open.remove(attempt)),
                Output::Announce(event) => self.events.push(event.clone()),
                _ => {}
            }
        }
        out
    }

    pub(super) fn hint(&mut self, peer: usize, incarnation: u64, source: Source) -> Vec<Output> {
        let incarnation = Incarnation(incarnation);
        let contact = Contact { name: name(peer), address: home(peer), incarnation };
        self.give(Input::Hint(contact, source))
    }

    /// Waits for the deadline; what the machine does then.
    pub(super) fn tick(&mut self) -> Vec<Output> {
        self.now = self.machine.deadline().expect("there is a deadline").max(self.now);
        self.give(Input::Tick)
    }

    /// Lets time pass. A dial of an address comes to nothing as `answer` has it.
    pub(super) fn pass(
        &mut self,
        time: Duration,
        answer: impl Fn(SocketAddr) -> (Duration, Failure),
    ) {
        let until = self.now + time;
        let mut failing = BTreeMap::new();
        loop {
            for (attempt, to) in std::mem::take(&mut self.open) {
                let (after, failure) = answer(to);
                failing.insert((self.now + after, attempt), failure);
            }
            let failed = failing.first_key_value().map(|((at, _), _)| *at);
            let tick = self.machine.deadline();
            let Some(at) = failed.into_iter().chain(tick).min().filter(|at| *at <= until) else {
                break;
            };
            self.now = at.max(self.now);
            match failing.pop_first().filter(|((due, _), _)| *due <= at) {
                Some(((_, attempt), failure)) => drop(self.give(Input::Failed(attempt, failure))),
                None => drop(self.give(Input::Tick)),
            }
        }
        self.open.extend(failing.into_keys().map(|(_, attempt)| (attempt, address(1))));
        self.now = until;
    }

    /// Lets time pass in which nothing is dialed.
    pub(super) fn rest(&mut self, time: Duration) {
        self.pass(time, |to| panic!("{to} is dialed"));
    }

    /// Lets `peer` dial in and be linked.
    pub(super) fn link(&mut self, attempt: u64, hello: &Hello) -> AttemptId {
        let attempt = AttemptId::Inbound(attempt);
        let welcome = self.give(Input::Greeted(attempt, hello.clone()));
        assert_eq!(welcome.last(), Some(&Output::Proceed(attempt)), "{welcome:?}");
        let link = self.give(Input::Confirmed(attempt));
        assert_eq!(link.last(), Some(&Output::Proceed(attempt)), "{link:?}");
        self.give(Input::Ready(attempt));
        attempt
    }

    /// A dial reaches this life of `peer` and becomes a link.
    pub(super) fn reach(&mut self, attempt: AttemptId, peer: usize, incarnation: u64) {
        self.greet(attempt, peer, incarnation);
        self.give(Input::Ready(attempt));
        assert_eq!(self.status(peer), ONLINE);
    }

    /// A dial reaches this life of `peer` and becomes a link that is not ready.
    pub(super) fn greet(&mut self, attempt: AttemptId, peer: usize, incarnation: u64) {
        self.open.remove(&attempt);
        let connected = self.give(Input::Connected(attempt, name(peer)));
        assert!(connected.contains(&Output::Proceed(attempt)), "{connected:?}");
        let link = self.give(Input::Welcomed(attempt, hello(peer, incarnation)));
        assert!(link.contains(&Output::Proceed(attempt)), "{link:?}");
    }

    pub(super) fn status(&self, peer: usize) -> (Status, Option<Reason>) {
        let view = self.machine.peers().find(|view| view.name == name(peer)).expect("known");
        (view.status, view.reason)
    }

    pub(super) fn known(&self, peer: usize) -> Incarnation {
        self.machine.peers().find(|view| view.name == name(peer)).expect("known").incarnation
    }
}
