//! Link: connections, handshakes, and exactly one ractor_cluster session per peer.
//!
//! - **Owns** the listening socket's accept loop, every attempt and every live connection, and
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
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ractor::{ActorProcessingErr, ActorRef};
use ractor_cluster::{NodeServerMessage, NodeSessionMessage};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsStream;

use crate::actors::exchange::Outlet;
use crate::actors::news::Bus;
use crate::actors::supervisor::{Address, Child, Handle, Mail, Process};
use crate::actors::timer;
use crate::io::metrics::{Count, Metrics, Timing};
use crate::io::tls::Tls;
use crate::proto::frame::Parting;
use crate::proto::hello::{Hello, Refusal};
use crate::proto::membership::{AttemptId, Failure, LinkEnd};
use crate::proto::node::{ClusterId, Incarnation, NodeId, NodeName};

mod accept;
#[cfg(feature = "testkit")]
pub(crate) mod cable;
mod handshake;
mod inbound;
mod mux;
mod pulse;
mod refusals;
mod sessions;
pub use pulse::{Pulse, RoundTrip};

/// Time for ractor's sessions to agree once a stream is theirs.
const READY: Duration = Duration::from_secs(5);
/// Inbound attempts of one peer at once.
const ATTEMPTS: usize = 4;
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
}

impl Myself {
    fn hello(&self) -> Hello {
        Hello {
            name: self.name.clone(),
            cluster: self.cluster,
            incarnation: Incarnation(self.incarnation.load(Ordering::Relaxed)),
            boot: self.boot,
            advertise: self.advertise,
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
    /// The door.
    pub bus: Bus,
    /// Counters.
    pub metrics: Metrics,
}

/// A step of an attempt or a link, for the one that decides.
#[derive(Clone, Debug)]
pub enum Report {
    /// An outbound attempt read this name and key in the other side's certificate.
    Connected(AttemptId, NodeName, NodeId),
    /// An inbound attempt brought a hello that matches its certificate.
    Greeted(AttemptId, Hello, NodeId),
    /// An outbound attempt was welcomed.
    Welcomed(AttemptId, Hello),
    /// An inbound attempt was confirmed.
    Confirmed(AttemptId),
    /// An attempt ended.
    Failed(AttemptId, Failure),
    /// ractor's sessions agree.
    Ready(AttemptId),
    /// A link ended.
    Ended(AttemptId, LinkEnd),
    /// The certificate that a link was made with is revoked by now.
    Revoked(AttemptId),
    /// A link that lives, for a listener that has just attached.
    Existing(AttemptId, Hello, NodeId, bool),
    /// Every link that lives has been reported to the listener that has just attached.
    Attached,
}

type Listener = Box<dyn Fn(Report) + Send>;

#[derive(Debug)]
enum Decision {
    Proceed,
    Refuse(Refusal),
}

/// A finished handshake.
struct Established {
    stream: TlsStream<TcpStream>,
    hello: Hello,
    id: NodeId,
    /// The serial number of the peer's certificate.
    serial: String,
}

enum Msg {
    Attach(Listener),
    Dial(AttemptId, SocketAddr),
    Decide(AttemptId, Decision),
    Abandon(AttemptId),
    Close(AttemptId, Parting),
    /// A connection showed the certificate of this node and goes on with this task.
    Authenticated(AttemptId, NodeName, mpsc::Sender<Decision>, AbortHandle),
    Step(AttemptId, Report),
    Established(AttemptId, Box<Established>),
    MuxEnded(AttemptId, LinkEnd),
    SessionOpened(AttemptId, ActorRef<NodeSessionMessage>),
    /// With ractor's number of the session.
    SessionReady(AttemptId, u64),
    SessionGone(AttemptId),
    Judge,
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
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        Self { handle: Handle::new("link", metrics), pulses: Pulses::default() }
    }

    /// The child to put under a supervisor.
    #[must_use]
    pub fn child(&self, setup: Setup) -> Child {
        Child::actor::<Inside>(&self.handle, (setup, self.pulses.clone()))
    }

    /// Makes `listener` the one that hears reports. Attempts in progress are abandoned; links that
    /// live are reported first.
    pub(crate) fn attach(&self, listener: impl Fn(Report) + Send + 'static) {
        self.handle.cast(Msg::Attach(Box::new(listener)));
    }

    /// Opens a connection.
    pub fn dial(&self, attempt: AttemptId, address: SocketAddr) {
        self.handle.cast(Msg::Dial(attempt, address));
    }

    /// Lets an attempt take its next step.
    pub fn proceed(&self, attempt: AttemptId) {
        self.handle.cast(Msg::Decide(attempt, Decision::Proceed));
    }

    /// Ends an attempt with a word to the other side.
    pub fn refuse(&self, attempt: AttemptId, refusal: Refusal) {
        self.handle.cast(Msg::Decide(attempt, Decision::Refuse(refusal)));
    }

    /// Ends an attempt without a word.
    pub(crate) fn abandon(&self, attempt: AttemptId) {
        self.handle.cast(Msg::Abandon(attempt));
    }

    /// Ends a link with a goodbye.
    pub fn close(&self, attempt: AttemptId, parting: Parting) {
        self.handle.cast(Msg::Close(attempt, parting));
    }

    /// Reports every link whose peer's certificate is revoked by now.
    pub fn judge(&self) {
        self.handle.cast(Msg::Judge);
    }

    /// The signs of life of a linked peer.
    #[must_use]
    pub fn pulse(&self, peer: &NodeName) -> Option<Arc<Pulse>> {
        let pulses = self.pulses.lock().unwrap_or_else(PoisonError::into_inner);
        pulses.get(peer).map(|(_, pulse)| pulse.clone())
    }

    /// Answers once every link told to close has said its goodbye.
    pub(crate) fn when_closed(&self, done: oneshot::Sender<()>) {
        self.handle.cast(Msg::WhenClosed(done));
    }
}

struct Pending {
    /// Who it is, once a certificate said so; of outbound attempts NodeManager keeps count.
    from: Option<NodeName>,
    decide: mpsc::Sender<Decision>,
    task: AbortHandle,
    since: Instant,
}

struct Linked {
    hello: Hello,
    id: NodeId,
    serial: String,
    /// Since when it is in this stage.
    since: Instant,
    stage: Stage,
}

/// An attempt's task ends with what is known of it.
impl Drop for Pending {
    fn drop(&mut self) {
        self.task.abort();
    }
}

enum Stage {
    /// The peer's earlier session is not gone yet.
    Parked(Box<Established>),
    Running(Running),
    /// The connection is gone, ractor's session not yet.
    Closing(Option<ActorRef<NodeSessionMessage>>),
}

struct Running {
    outlet: Arc<Outlet>,
    part: Option<oneshot::Sender<Parting>>,
    task: AbortHandle,
    session: Option<ActorRef<NodeSessionMessage>>,
    ready: bool,
}

struct Inside {
    setup: Setup,
    pulses: Pulses,
    myself: Address<Msg>,
    server: ActorRef<NodeServerMessage>,
    listener: Option<Listener>,
    pending: BTreeMap<AttemptId, Pending>,
    links: BTreeMap<AttemptId, Linked>,
    waiting_for_close: Vec<oneshot::Sender<()>>,
    /// Every task of this actor: they end with it.
    tasks: JoinSet<()>,
}

impl Inside {
    fn report(&self, report: Report) {
        if let Some(listener) = &self.listener {
            listener(report);
        }
    }

    fn attach(&mut self, listener: Listener) {
        self.pending.clear();
        self.listener = Some(listener);
        for (attempt, link) in &self.links {
            let ready = match &link.stage {
                Stage::Running(running) => running.ready,
                Stage::Parked(_) => false,
                Stage::Closing(_) => continue,
            };
            self.report(Report::Existing(*attempt, link.hello.clone(), link.id, ready));
        }
        self.report(Report::Attached);
        self.judge(); // an earlier listener may not have come to it
    }

    fn judge(&self) {
        for (attempt, link) in &self.links {
            let lives = !matches!(link.stage, Stage::Closing(_));
            if lives && self.setup.tls.is_revoked(&link.serial) {
                self.report(Report::Revoked(*attempt));
            }
        }
    }

    fn dial(&mut self, attempt: AttemptId, address: SocketAddr) {
        let (decide, decisions) = mpsc::channel(1);
        let steps = handshake::Steps::new(attempt, self.myself.clone(), decisions);
        let dial =
            handshake::dial(address, self.setup.tls.clone(), self.setup.myself.clone(), steps);
        let task = self.tasks.spawn(dial);
        self.pending.insert(attempt, Pending { from: None, decide, task, since: timer::now() });
        self.setup.metrics.count(Count::Dials, "started");
    }

    /// A peer may try again while its earlier attempt hangs, but not fill this node with attempts.
    fn authenticated(&mut self, attempt: AttemptId, pending: Pending) {
        let same = |other: &&AttemptId| {
            self.pending.get(other).is_some_and(|other| other.from == pending.from)
        };
        let earlier: Vec<AttemptId> = self.pending.keys().filter(same).copied().collect();
        for oldest in earlier.iter().take((earlier.len() + 1).saturating_sub(ATTEMPTS)) {
            self.abandon(*oldest);
            self.report(Report::Failed(*oldest, Failure::Closed));
            self.setup.metrics.count(Count::Refused, "evicted");
        }
        self.pending.insert(attempt, pending);
    }

    fn abandon(&mut self, attempt: AttemptId) {
        self.pending.remove(&attempt);
    }

    fn failed(&mut self, attempt: AttemptId, failure: &Failure) {
        self.pending.remove(&attempt);
        if matches!(attempt, AttemptId::Outbound(_)) {
            self.setup.metrics.count(Count::DialFailed, failure.label());
        }
    }

    fn established(&mut self, attempt: AttemptId, established: Box<Established>) {
        let Some(pending) = self.pending.remove(&attempt) else {
            return; // abandoned meanwhile
        };
        if matches!(attempt, AttemptId::Outbound(_)) {
            let took = timer::now().saturating_duration_since(pending.since);
            self.setup.metrics.took(Timing::Handshake, took);
        }
        drop(pending);
        if self.setup.tls.is_revoked(&established.serial) {
            return self.report(Report::Revoked(attempt)); // while the hellos were exchanged
        }
        let (hello, id) = (established.hello.clone(), established.id);
        let serial = established.serial.clone();
        let stage = Stage::Parked(established);
        self.links.insert(attempt, Linked { hello, id, serial, since: timer::now(), stage });
        self.start_parked();
    }

    /// Starts every parked link whose peer has no earlier session any more.
    fn start_parked(&mut self) {
        let busy = |of: &NodeName, links: &BTreeMap<AttemptId, Linked>| {
            let runs = |l: &Linked| !matches!(l.stage, Stage::Parked(_)) && l.hello.name == *of;
            links.values().any(runs)
        };
        let parked = |(attempt, link): (&AttemptId, &Linked)| {
            let free = !busy(&link.hello.name, &self.links);
            (matches!(link.stage, Stage::Parked(_)) && free).then_some(*attempt)
        };
        if let Some(attempt) = self.links.iter().find_map(parked) {
            self.start(attempt);
        }
    }

    fn start(&mut self, attempt: AttemptId) {
        let Some(Linked { hello, id, serial, stage: Stage::Parked(established), .. }) =
            self.links.remove(&attempt)
        else {
            return;
        };
        let peer = hello.name.clone();
        let (part, parting) = oneshot::channel();
        let (pipe, ractor_end) = tokio::io::duplex(mux::PIPE);
        let (control, controls) = mpsc::channel(CONTROLS);
        let pulse = Arc::new(Pulse::new(control, ends(&established.stream)));
        let door = mux::Door::open(&self.setup.bus, peer.clone());
        let outlet = door.outlet();
        let own = mux::Own { parting, controls, pulse: pulse.clone() };
        let (myself, inbound) = (self.myself.clone(), matches!(attempt, AttemptId::Inbound(_)));
        self.pulses().insert(peer.clone(), (attempt, pulse.clone()));
        let task = self.tasks.spawn(async move {
            let gate = mux::gate(inbound, peer);
            let end = mux::run(established.stream, gate, pipe, door, own).await;
            send(&myself, Msg::MuxEnded(attempt, end));
        });
        let part = Some(part);
        let stage = Stage::Running(Running { outlet, part, task, session: None, ready: false });
        self.links.insert(attempt, Linked { hello, id, serial, since: timer::now(), stage });
        sessions::hand_over(&self.server, ractor_end, attempt, inbound);
    }

    fn pulses(&self) -> MutexGuard<'_, BTreeMap<NodeName, (AttemptId, Arc<Pulse>)>> {
        self.pulses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mux_ended(&mut self, attempt: AttemptId, end: LinkEnd) {
        let Some(link) = self.links.get_mut(&attempt) else { return };
        let gone = Stage::Closing(None);
        let Stage::Running(running) = std::mem::replace(&mut link.stage, gone) else { return };
        if let LinkEnd::Fault(fault) = &end {
            tracing::warn!(peer = %link.hello.name, %fault, "link cut: the peer broke the protocol");
            self.setup.metrics.count(Count::Refused, "protocol");
        }
        if let Some(session) = &running.session {
            session.stop(None);
        }
        link.stage = Stage::Closing(running.session);
        link.since = timer::now();
        self.pulses().retain(|_, (of, _)| *of != attempt);
        self.report(Report::Ended(attempt, end));
    }

    /// ractor gave up a session: the connection goes with it.
    fn session_gone(&mut self, attempt: AttemptId) {
        let Some(link) = self.links.remove(&attempt) else { return };
        if let Stage::Running(running) = link.stage {
            running.task.abort();
            self.pulses().retain(|_, (of, _)| *of != attempt);
            let fault = "ractor_cluster ended the session".to_owned();
            self.report(Report::Ended(attempt, LinkEnd::Fault(fault)));
        }
        self.start_parked();
    }

    fn session_opened(&mut self, attempt: AttemptId, session: ActorRef<NodeSessionMessage>) {
        match self.links.get_mut(&attempt).map(|link| &mut link.stage) {
            Some(Stage::Running(running)) => running.session = Some(session),
            Some(Stage::Closing(closing)) => {
                session.stop(None);
                *closing = Some(session);
            }
            Some(Stage::Parked(_)) | None => session.stop(None),
        }
    }

    fn session_ready(&mut self, attempt: AttemptId, number: u64) {
        if let Some(Stage::Running(running)) = self.links.get_mut(&attempt).map(|l| &mut l.stage) {
            running.ready = true;
            self.setup.bus.exchange().session(number, running.outlet.clone());
            self.report(Report::Ready(attempt));
        }
    }

    fn close(&mut self, attempt: AttemptId, parting: Parting) {
        match self.links.get_mut(&attempt).map(|link| &mut link.stage) {
            Some(Stage::Running(running)) => {
                if let Some(part) = running.part.take() {
                    // The task tells when it ended; one that already did needs no goodbye.
                    part.send(parting).ok();
                }
            }
            Some(Stage::Parked(_)) => drop(self.links.remove(&attempt)),
            Some(Stage::Closing(_)) | None => {}
        }
    }

    /// Until when a link must have got out of its stage; a ready one may stay as it is.
    fn unready(link: &Linked) -> Option<Instant> {
        let waits = match &link.stage {
            Stage::Parked(_) => true,
            Stage::Running(running) => !running.ready,
            Stage::Closing(_) => true,
        };
        waits.then_some(link.since + READY)
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
        pulses.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let server = sessions::server(&setup.myself, myself).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(accept::run(setup.clone(), myself.clone())?);
        Ok(Self {
            setup,
            pulses,
            myself: myself.clone(),
            server,
            listener: None,
            pending: BTreeMap::new(),
            links: BTreeMap::new(),
            waiting_for_close: Vec::new(),
            tasks,
        })
    }

    fn handle(&mut self, message: Msg) -> Result<(), ActorProcessingErr> {
        while self.tasks.try_join_next().is_some() {}
        match message {
            Msg::Attach(listener) => self.attach(listener),
            Msg::Dial(attempt, address) => self.dial(attempt, address),
            Msg::Decide(attempt, decision) => {
                if let Decision::Refuse(refusal) = &decision
                    && *refusal != Refusal::Crossed
                {
                    self.setup.metrics.count(Count::Refused, refusal.label());
                }
                if let Some(pending) = self.pending.get(&attempt) {
                    // A task that ended meanwhile has its report under way.
                    drop(pending.decide.try_send(decision));
                }
            }
            Msg::Abandon(attempt) => self.abandon(attempt),
            Msg::Close(attempt, parting) => self.close(attempt, parting),
            Msg::Authenticated(attempt, from, decide, task) => {
                let since = timer::now();
                self.authenticated(attempt, Pending { from: Some(from), decide, task, since });
            }
            Msg::Step(attempt, report) => {
                if !self.pending.contains_key(&attempt) {
                    return Ok(()); // abandoned meanwhile
                }
                if let Report::Failed(_, failure) = &report {
                    self.failed(attempt, failure);
                }
                self.report(report);
            }
            Msg::Established(attempt, established) => self.established(attempt, established),
            Msg::MuxEnded(attempt, end) => self.mux_ended(attempt, end),
            Msg::SessionOpened(attempt, session) => self.session_opened(attempt, session),
            Msg::SessionReady(attempt, number) => self.session_ready(attempt, number),
            Msg::SessionGone(attempt) => self.session_gone(attempt),
            Msg::Judge => self.judge(),
            Msg::WhenClosed(done) => self.waiting_for_close.push(done),
        }
        if self.links.values().all(|link| matches!(link.stage, Stage::Closing(_))) {
            // Whoever asked and went away needs no answer.
            self.waiting_for_close.drain(..).for_each(|done| done.send(()).unwrap_or(()));
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        self.links.values().filter_map(Self::unready).min()
    }

    fn tick(&mut self) -> Result<(), ActorProcessingErr> {
        let now = timer::now();
        let late = |link: &Linked| Self::unready(link).is_some_and(|at| at <= now);
        let late: Vec<_> = self.links.iter().filter(|(_, l)| late(l)).map(|(a, _)| *a).collect();
        for attempt in late {
            let fault = LinkEnd::Fault("ractor's sessions did not agree in time".to_owned());
            match self.links.get(&attempt).map(|link| &link.stage) {
                Some(Stage::Running(running)) => {
                    running.task.abort();
                    self.mux_ended(attempt, fault);
                }
                // A session that never came to life is never reported gone either.
                Some(Stage::Closing(_)) => self.session_gone(attempt),
                Some(Stage::Parked(_)) | None => {
                    self.links.remove(&attempt);
                    self.report(Report::Ended(attempt, fault));
                }
            }
        }
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
