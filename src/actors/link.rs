//! Link: connections, handshakes, and exactly one ractor_cluster session per peer.
//!
//! - **Owns** the listening socket's accept loop, the link machine, every attempt's task and every live connection, and
//!   ractor_cluster's `NodeServer` (its child; if that ends, this actor ends).
//! - **Hears** commands from NodeManager (dial, proceed, refuse, abandon, close), the steps of its own
//!   handshake tasks, and the session events of ractor_cluster.
//! - **Says** each step to its one listener as a [`Report`]; to Bus which links are up.
//! - **After a restart**: no connection is left, the peers see their streams end and everybody dials
//!   again. The listening socket itself survives.
//! - **Never** hands ractor a stream before NodeManager agreed, before the peer's earlier session is
//!   gone, or without the gate in front; never accepts a step of an attempt it does not know.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use ractor::{ActorProcessingErr, ActorRef};
use ractor_cluster::{NodeServerMessage, NodeSessionMessage};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsStream;

use crate::actors::exchange::Outlet;
use crate::actors::lists::ListKeeper;
use crate::actors::news::Bus;
use crate::actors::supervisor::{Address, Child, Handle, Mail, Process};
use crate::actors::timer;
use crate::io::identity::Lists;
use crate::io::metrics::{Count, Metrics, Timing};
use crate::io::tls::Tls;
use crate::proto::frame::CloseReason;
use crate::proto::hello::{Hello, Offer, Refusal};
use crate::proto::link::{Decision, Input, Links, Output, Proven, Report};
use crate::proto::membership::AttemptId;
use crate::proto::node::{ClusterId, Incarnation, NodeName};

mod accept;
#[cfg(feature = "testkit")]
pub(crate) mod cable;
pub mod enrolment;
mod handshake;
mod inbound;
mod lists;
mod mux;
mod pulse;
mod refusals;
mod sessions;
pub use enrolment::Enrolment;
pub use pulse::Pulse;

/// Beats and echoes that may wait for a link's control lane.
const CONTROLS: usize = 16;

/// What this node says of itself in every hello.
#[derive(Clone, Debug)]
pub struct Myself {
    /// Its name.
    pub name: NodeName,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its life; NodeManager may raise it.
    pub incarnation: Arc<AtomicU64>,
    /// Drawn at start.
    pub boot: u64,
    /// Where others reach it.
    pub advertise: SocketAddr,
    /// What it speaks.
    pub offer: Offer,
    /// What the authority has signed, as it is in force here.
    pub lists: Lists,
}

impl Myself {
    fn hello(&self) -> Hello {
        Hello {
            name: self.name.clone(),
            cluster: self.cluster,
            incarnation: Incarnation(self.incarnation.load(Ordering::Relaxed)),
            boot: self.boot,
            advertise: self.advertise,
            lists: Some(self.lists.marks()),
        }
    }
}

/// What the actor is made from.
#[derive(Clone)]
pub struct Setup {
    /// The socket to accept on; bound by the node, so that a taken port is an error at start.
    pub listener: Arc<std::net::TcpListener>,
    /// Certificates and trust.
    pub tls: Tls,
    /// Who this node is.
    pub myself: Myself,
    /// The guard.
    pub bus: Bus,
    /// What answers those who ask for a certificate.
    pub enrolment: Enrolment,
    /// Takes lists of peers.
    pub lists: ListKeeper,
    /// Counters.
    pub metrics: Metrics,
}

type Listener = Box<dyn Fn(Report) + Send>;

/// A finished handshake.
struct Established {
    stream: TlsStream<TcpStream>,
    proven: Proven,
}

enum Msg {
    Attach(Listener),
    /// What the machine alone has to know.
    Input(Input),
    /// A connection showed the certificate of this node and goes on with this task.
    Authenticated(AttemptId, NodeName, mpsc::Sender<Decision>, AbortHandle),
    Established(AttemptId, Box<Established>),
    SessionOpened(AttemptId, ActorRef<NodeSessionMessage>),
    /// With ractor's number of the session.
    SessionReady(AttemptId, u64),
    SessionGone(AttemptId),
    WhenClosed(oneshot::Sender<()>),
}

/// The signs of life of every running link, by peer.
type Pulses = Arc<Mutex<BTreeMap<NodeName, (AttemptId, Arc<Pulse>)>>>;

/// The handle.
#[derive(Clone)]
pub struct Link {
    handle: Handle<Msg>,
    pulses: Pulses,
}

impl Link {
    /// A link layer that does not run yet.
    pub fn new(metrics: &Metrics) -> Self {
        Self { handle: Handle::new("link", metrics), pulses: Pulses::default() }
    }

    /// The child to put under a supervisor.
    pub fn child(&self, setup: Setup) -> Child {
        Child::actor::<Inside>(&self.handle, (setup, self.pulses.clone()))
    }

    /// Makes `listener` the one that hears reports. Attempts in progress are abandoned; links that
    /// live are reported first.
    pub(crate) fn attach(&self, listener: impl Fn(Report) + Send + 'static) {
        self.handle.cast(Msg::Attach(Box::new(listener)));
    }

    /// What the machine is to do.
    pub(crate) fn input(&self, input: Input) {
        self.handle.cast(Msg::Input(input));
    }

    /// The signs of life of a linked peer.
    pub fn pulse(&self, peer: &NodeName) -> Option<Arc<Pulse>> {
        let pulses = self.pulses.lock();
        pulses.get(peer).map(|(_, pulse)| pulse.clone())
    }

    /// Answers once every link told to close has said its goodbye.
    pub(crate) fn when_closed(&self, done: oneshot::Sender<()>) {
        self.handle.cast(Msg::WhenClosed(done));
    }
}

/// A pending attempt's task.
struct Attempt {
    decide: mpsc::Sender<Decision>,
    task: AbortHandle,
}

/// An attempt's task ends with what is known of it.
impl Drop for Attempt {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Running {
    outlet: Arc<Outlet>,
    part: Option<oneshot::Sender<CloseReason>>,
    task: AbortHandle,
}

struct Inside {
    setup: Setup,
    pulses: Pulses,
    myself: Address<Msg>,
    server: ActorRef<NodeServerMessage>,
    listener: Option<Listener>,
    machine: Links,
    attempts: BTreeMap<AttemptId, Attempt>,
    /// The connections of attempts that are through and wait.
    parked: BTreeMap<AttemptId, TlsStream<TcpStream>>,
    running: BTreeMap<AttemptId, Running>,
    sessions: BTreeMap<AttemptId, ActorRef<NodeSessionMessage>>,
    waiting_for_close: Vec<oneshot::Sender<()>>,
    /// Every task of this actor: they end with it.
    tasks: JoinSet<()>,
}

impl Inside {
    fn input(&mut self, input: Input) {
        let (mut out, tls) = (Vec::new(), self.setup.tls.clone());
        self.machine.handle(input, |serials| tls.any_revoked(serials), timer::now(), &mut out);
        for output in out {
            self.perform(output);
        }
    }

    fn perform(&mut self, output: Output) {
        let metrics = &self.setup.metrics;
        match output {
            Output::Report(report) => self.report(report),
            Output::Dial(attempt, address) => self.dial(attempt, address),
            Output::Decide(attempt, decision) => {
                if let Some(attempt) = self.attempts.get(&attempt) {
                    // A task that ended meanwhile has its report under way.
                    drop(attempt.decide.try_send(decision));
                }
            }
            Output::Drop(attempt) => {
                self.attempts.remove(&attempt);
                self.parked.remove(&attempt);
            }
            Output::Took(took) => metrics.took(Timing::Handshake, took),
            Output::Evicted => metrics.count(Count::Refused, "evicted"),
            Output::Start(attempt) => self.start(attempt),
            Output::Part(attempt, parting) => {
                let part = self.running.get_mut(&attempt).and_then(|link| link.part.take());
                // The task tells when it ended; one that already did needs no goodbye.
                part.map(|part| part.send(parting).ok());
            }
            Output::Break(attempt) => {
                self.running.get(&attempt).iter().for_each(|link| link.task.abort());
            }
            Output::Fault(peer, fault) => {
                tracing::warn!(%peer, %fault, "link cut: the peer broke the protocol");
                metrics.count(Count::Refused, "protocol");
            }
            Output::StopSession(attempt) => {
                self.sessions.get(&attempt).iter().for_each(|session| session.stop(None));
            }
            Output::Over(attempt) => drop(self.sessions.remove(&attempt)),
        }
    }

    fn report(&mut self, report: Report) {
        if let Report::Failed(AttemptId::Outbound(_), failure) = &report {
            self.setup.metrics.count(Count::DialFailed, failure.label());
        }
        if let Report::Ended(attempt, _) = &report {
            self.running.remove(attempt);
            self.pulses.lock().retain(|_, (of, _)| of != attempt);
        }
        if let Some(listener) = &self.listener {
            listener(report);
        }
    }

    fn dial(&mut self, attempt: AttemptId, address: SocketAddr) {
        let (decide, decisions) = mpsc::channel(1);
        let steps = handshake::Steps::new(attempt, self.myself.clone(), decisions);
        let dial =
            handshake::dial(address, self.setup.tls.clone(), self.setup.myself.clone(), steps);
        let task = self.tasks.spawn(dial);
        self.attempts.insert(attempt, Attempt { decide, task });
        self.setup.metrics.count(Count::Dials, "started");
    }

    fn start(&mut self, attempt: AttemptId) {
        let proven = self.machine.proven(attempt);
        let Some((stream, Proven { hello, serials, capabilities, .. })) =
            self.parked.remove(&attempt).zip(proven)
        else {
            return;
        };
        let (peer, life) = (hello.name.clone(), hello.incarnation);
        let (part, parting) = oneshot::channel();
        let (mut pipe, ractor_end) = tokio::io::duplex(mux::PIPE);
        let (control, controls) = mpsc::channel(CONTROLS);
        let pulse = Arc::new(Pulse::new(control, ends(&stream)));
        self.pulses.lock().insert(peer.clone(), (attempt, pulse.clone()));
        let guard =
            mux::LinkGuard::open(&self.setup.bus, (peer.clone(), capabilities.clone()), life);
        let outlet = guard.outlet();
        let lists = hello.lists.clone().map(|theirs| lists::open(&self.setup.lists, theirs));
        let (tls, serials) = (self.setup.tls.clone(), serials.clone());
        let revoked = Box::new(move || tls.any_revoked(&serials));
        let own = mux::Own { parting, controls, pulse, lists, revoked };
        let (myself, inbound) = (self.myself.clone(), matches!(attempt, AttemptId::Inbound(_)));
        let task = self.tasks.spawn(async move {
            let gate = mux::gate(inbound, peer, &guard);
            let end = mux::run(stream, gate, &mut pipe, guard, own).await;
            send(&myself, Msg::Input(Input::MuxEnded(attempt, end)));
        });
        self.running.insert(attempt, Running { outlet, part: Some(part), task });
        sessions::hand_over(&self.server, ractor_end, attempt, inbound);
    }
}

impl Process for Inside {
    const NAME: &'static str = "link";
    type Message = Msg;
    type Setup = (Setup, Pulses);

    async fn start(
        (setup, pulses): Self::Setup,
        myself: &Address<Msg>,
    ) -> Result<Self, ActorProcessingErr> {
        // What an earlier life of this actor heard is over.
        pulses.lock().clear();
        let server = sessions::server(&setup.myself, myself).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(accept::run(setup.clone(), myself.clone())?);
        Ok(Self {
            setup,
            pulses,
            myself: myself.clone(),
            server,
            listener: None,
            machine: Links::default(),
            attempts: BTreeMap::new(),
            parked: BTreeMap::new(),
            running: BTreeMap::new(),
            sessions: BTreeMap::new(),
            waiting_for_close: Vec::new(),
            tasks,
        })
    }

    fn handle(&mut self, message: Msg) -> Result<(), ActorProcessingErr> {
        while self.tasks.try_join_next().is_some() {}
        match message {
            Msg::Attach(listener) => {
                self.listener = Some(listener);
                self.input(Input::Attach);
            }
            Msg::Input(input) => {
                if let Input::Decide(_, Decision::Refuse(refusal)) = &input
                    && *refusal != Refusal::Crossed
                {
                    self.setup.metrics.count(Count::Refused, refusal.label());
                }
                self.input(input);
            }
            Msg::Authenticated(attempt, from, decide, task) => {
                self.attempts.insert(attempt, Attempt { decide, task });
                self.input(Input::Authenticated(attempt, from));
            }
            Msg::Established(attempt, established) => {
                let Established { stream, proven } = *established;
                self.attempts.remove(&attempt);
                self.parked.insert(attempt, stream);
                self.input(Input::Established(attempt, proven));
            }
            Msg::SessionOpened(attempt, session) => {
                self.sessions.insert(attempt, session);
                self.input(Input::SessionOpened(attempt));
            }
            Msg::SessionReady(attempt, number) => {
                if let Some(link) = self.running.get(&attempt) {
                    self.setup.bus.exchange().session(number, link.outlet.clone());
                }
                self.input(Input::SessionReady(attempt));
            }
            Msg::SessionGone(attempt) => {
                self.sessions.remove(&attempt);
                self.input(Input::SessionGone(attempt));
            }
            Msg::WhenClosed(done) => self.waiting_for_close.push(done),
        }
        if self.machine.is_closed() {
            // Anyone who asked and went away needs no answer.
            self.waiting_for_close.drain(..).for_each(|done| done.send(()).unwrap_or(()));
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

/// A cast to this actor. One that ended has no use for news of its tasks: they end with it.
fn send(to: &Address<Msg>, message: Msg) {
    drop(to.cast(Mail::Message(message)));
}

/// The addresses of a connection, here and there.
fn ends(stream: &TlsStream<TcpStream>) -> Option<(SocketAddr, SocketAddr)> {
    let (socket, _) = stream.get_ref();
    Some((socket.local_addr().ok()?, socket.peer_addr().ok()?))
}

#[cfg(test)]
pub(crate) mod tests;
