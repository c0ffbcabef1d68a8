//! NodeManager: who is a peer, where each stands, and whom to dial.
//!
//! - **Owns** the membership machine, and the view of all peers that everybody reads.
//! - **Hears** the link layer's reports, and what other actors ask for through `peers`, its handle.
//! - **Says** commands to the link layer; every change of a peer as an event.
//! - **After a restart**: knows the links that live, because Link reports them to anyone who attaches;
//!   every other peer of its last view that had not left is looked for where it was. Backoffs and the
//!   reasons of offline peers are forgotten.
//! - **Never** touches a socket; never lets a hint end a link.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use ractor::ActorProcessingErr;
use rand::rngs::StdRng;

use crate::actors::link::{Link, Myself};
use crate::actors::news::Bus;
use crate::actors::peers::{Msg, Peers, Row, View};
use crate::actors::supervisor::{Address, Child, Mail, Process};
use crate::actors::timer;
use crate::io::clock;
use crate::proto::link::Report;
use crate::proto::membership::{Config, Input, Membership, Output, PeerView};
use crate::proto::node::Incarnation;
use crate::proto::wiring::{self, Decided};

/// What the actor is made from.
#[derive(Clone)]
pub struct Setup {
    /// The machine's settings.
    pub config: Config,
    /// Who this node is.
    pub myself: Myself,
    /// The link layer.
    pub link: Link,
    /// Where the peers are shown.
    pub peers: Peers,
    /// Where events go.
    pub bus: Bus,
    /// Counts the lives of this actor: attempts are numbered from it.
    pub lives: Arc<AtomicU64>,
}

/// The child to put under a supervisor.
pub fn child(setup: Setup) -> Child {
    let handle = setup.peers.handle.clone();
    Child::actor::<Inside>(&handle, setup)
}

struct Inside {
    setup: Setup,
    machine: Membership,
    /// What the earlier life of this actor showed last.
    earlier: View,
}

impl Inside {
    /// Link has reported which links live: every other peer is looked for where it was last.
    fn recall(&mut self) {
        let earlier: Vec<_> =
            std::mem::take(&mut self.earlier).iter().map(|row| row.peer.clone()).collect();
        wiring::recall(&earlier).for_each(|input| self.input(input));
        self.publish();
        let lost = wiring::lost(&earlier, |peer| self.machine.peer(peer));
        lost.into_iter().for_each(|event| self.setup.bus.announce(event));
    }

    fn input(&mut self, input: Input) {
        let mut out = Vec::new();
        if !self.machine.handle(input, timer::now(), &mut out) {
            return;
        }
        // First the view, then the news: who hears of a change finds it there.
        self.publish();
        for output in out {
            self.perform(output);
        }
    }

    fn perform(&self, output: Output) {
        match Decided::from(output) {
            Decided::Link(input) => self.setup.link.input(input),
            // The event that comes with it has the store write it down.
            Decided::Renew(Incarnation(to)) => {
                self.setup.myself.incarnation.store(to, Ordering::Relaxed);
            }
            Decided::Announce(event) => self.setup.bus.announce(event),
        }
    }

    fn publish(&self) {
        self.setup.peers.publish(|view| self.rows(view));
        self.setup.peers.publish_joining(self.machine.joining());
    }

    /// All peers. A row keeps its time while its status lasts: a stepped wall clock does not move it.
    fn rows(&self, before: &View) -> Vec<Row> {
        // Both in order of names: one walk along them instead of a search for each.
        let mut before = before.iter().peekable();
        let row = |peer: PeerView| {
            while before.next_if(|row| row.peer.name < peer.name).is_some() {}
            let same = before.peek().filter(|row| row.peer.name == peer.name);
            let same = same.filter(|row| row.peer.since == peer.since);
            let since = same.map_or_else(clock::wall, |row| row.since);
            let id = self.machine.credential(&peer.name).map(|it| it.key);
            Row { peer, id, since }
        };
        self.machine.peers().map(row).collect()
    }

    fn report(&mut self, report: Report) {
        wiring::shown(&report).into_iter().for_each(|input| self.input(input));
        match wiring::step(report) {
            Some(input) => self.input(input),
            None => self.recall(),
        }
    }
}

impl Process for Inside {
    const NAME: &'static str = "node_manager";
    type Message = Msg;
    type Setup = Setup;

    async fn start(setup: Setup, myself: &Address<Msg>) -> Result<Self, ActorProcessingErr> {
        let incarnation = Incarnation(setup.myself.incarnation.load(Ordering::Relaxed));
        let first_attempt = setup.lives.fetch_add(1, Ordering::Relaxed) << 32;
        let rng: StdRng = rand::make_rng();
        let name = setup.myself.name.clone();
        let machine = Membership::new(setup.config, name, incarnation, first_attempt, rng)
            .with_hello(setup.myself.boot, setup.myself.advertise);
        let to = myself.clone();
        // Reports to an earlier life of this actor have nobody to hear them: Link reports anew.
        setup.link.attach(move |report| drop(to.cast(Mail::Message(Msg::Report(report)))));
        let earlier = setup.peers.view();
        let mut inside = Self { setup, machine, earlier };
        for (name, life) in inside.setup.peers.forgotten() {
            // It was announced when it became so.
            let forget = Input::Forget { name, life, known: false, author: None };
            inside.machine.handle(forget, timer::now(), &mut Vec::new());
        }
        Ok(inside)
    }

    fn handle(&mut self, message: Msg) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::Report(report) => self.report(report),
            Msg::Ask(ask) => self.input(ask.into()),
            Msg::Disconnect(peer) => self.input(Input::Disconnect(peer)),
            Msg::Stop(done) => {
                self.input(Input::Stop);
                self.setup.link.when_closed(done);
            }
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        self.machine.deadline()
    }

    fn tick(&mut self) -> Result<(), ActorProcessingErr> {
        self.input(Input::Tick);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
