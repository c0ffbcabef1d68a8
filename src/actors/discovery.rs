//! Discovery: beacons, seeds, what peers tell, what earlier runs knew. All of it only hints.
//!
//! - **Owns** the discovery machine, the beacon socket's reader, and the look-ups of seeds.
//! - **Hears** datagrams, addresses of seeds, peers' lists on `network:peers`, and who comes online.
//! - **Says** hints to NodeManager; beacons to the network; the linked peers to each new peer, and now
//!   and then to a random one.
//! - **After a restart**: gives the remembered peers and seeds as hints again, and sends a beacon at
//!   once. It forgets which beacons it heard, so one replay of each sender may pass: a hint, no more.
//! - **Never** ends or opens a link; never believes an unsigned word.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use ractor::ActorProcessingErr;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::actors::news::{Bus, PeerMessage, measure};
use crate::actors::peers::Peers;
use crate::actors::supervisor::{Address, Child, Handle, Mail, Process};
use crate::actors::timer;
use crate::io::beacon;
use crate::io::clock;
use crate::io::identity::Identity;
use crate::io::metrics::{Count, Metrics};
use crate::io::seals::SealChecker;
use crate::io::seeds::Seed;
use crate::proto::beacon::{Beacon, MAX_BEACON};
use crate::proto::codec::{self, CodecError};
use crate::proto::discovery::{
    Announced, Config, Discovery as Machine, Output, Own, Verdict, Word, contacts_for,
};
use crate::proto::event::{Reason, Source};
use crate::proto::frame::MAX_PAYLOAD;
use crate::proto::membership::PeerView;
use crate::proto::node::{Contact, Incarnation, NodeName};
use crate::proto::topic::Topic;
use crate::proto::wiring::{Ask, Consumer, Notice};

mod joining;
use joining::LookUp;
pub use joining::SeedRow;

/// Datagrams that may wait for this actor; more are dropped unread.
const WAITING: usize = 64;
/// How often seeds are looked up again.
const LOOK_UP: Duration = Duration::from_secs(30);

/// What the actor is made from.
#[derive(Clone)]
pub struct Setup {
    /// The machine's settings.
    pub config: Config,
    /// Signs our beacons, checks those of others.
    pub identity: Arc<Identity>,
    /// Our life; NodeManager may raise it.
    pub incarnation: Arc<AtomicU64>,
    /// Where others reach us.
    pub advertise: SocketAddr,
    /// The socket for beacons, unless they are off.
    pub socket: Option<Arc<UdpSocket>>,
    /// `--join`.
    pub seeds: Vec<Seed>,
    /// Peers of earlier runs.
    pub remembered: Vec<Contact>,
    /// The last beacon this life has sent.
    pub sequence: Arc<AtomicU64>,
    /// Takes the hints, and shows who is linked and how joining goes.
    pub peers: Peers,
    /// The bus.
    pub bus: Bus,
    /// Counters.
    pub metrics: Metrics,
}

enum Msg {
    Datagram(Vec<u8>, OwnedSemaphorePermit),
    /// What the look-up of the seed with this number found.
    LookedUp(usize, std::io::Result<Vec<SocketAddr>>),
    Notice(Notice<PeerMessage>),
}

type LookUps = Arc<Mutex<Vec<LookUp>>>;

/// The handle.
#[derive(Clone)]
pub struct Discovery {
    handle: Handle<Msg>,
    lookups: LookUps,
}

impl Discovery {
    /// A discovery that does not run yet.
    pub fn new(metrics: &Metrics) -> Self {
        let handle = Handle::new("discovery", metrics);
        Self { handle, lookups: LookUps::default() }
    }

    /// The child to put under a supervisor.
    pub fn child(&self, setup: Setup) -> Child {
        Child::actor::<Inside>(&self.handle, (setup, self.lookups.clone()))
    }

    /// What became of each `--join` of the node `me`.
    pub fn seeds(&self, peers: &Peers, me: &NodeName) -> Vec<SeedRow> {
        let lookups = self.lookups.lock();
        joining::rows(&lookups, &peers.joining(), &peers.known(), me)
    }
}

struct Inside {
    setup: Setup,
    machine: Machine,
    lookups: LookUps,
    seals: SealChecker,
    /// Beacons could not be sent, and that was said.
    mute: bool,
    _tasks: JoinSet<()>,
}

impl Inside {
    fn datagram(&mut self, datagram: &[u8]) -> Verdict {
        let sealed = match Beacon::decode(datagram) {
            Ok(sealed) => sealed,
            Err(CodecError::Version(_)) => return Verdict::Version,
            Err(_) => return Verdict::Malformed,
        };
        let vitals = self.setup.peers.vitals();
        let sign = |peer: &NodeName| vitals.peers.get(peer).filter(|vital| !vital.suspect)?.heard;
        let (wall, now) = (clock::millis(), timer::now());
        if let Err(verdict) = self.machine.screen(&sealed.beacon, sign, wall, now) {
            return verdict;
        }
        let Some(credential) = self.seals.holds(&sealed) else { return Verdict::Forged };
        let verdict = self.machine.believe(&sealed.beacon);
        if verdict == Verdict::Namesake {
            self.setup.peers.ask(Ask::Namesake(sealed.beacon.contact.address));
            return verdict;
        }
        self.setup.peers.heard_beacon(sealed.beacon.contact.name.clone());
        self.setup.peers.ask(Ask::Beacon(sealed.beacon.contact, credential));
        verdict
    }

    fn looked_up(&mut self, number: usize, found: std::io::Result<Vec<SocketAddr>>) {
        let mut lookups = self.lookups.lock();
        let Some(lookup) = lookups.get_mut(number) else { return };
        let seed = &lookup.seed;
        let failing = matches!(lookup.found, Some((_, Err(_))));
        match &found {
            Ok(addresses) => {
                addresses.iter().for_each(|address| self.setup.peers.ask(Ask::Seed(*address)));
            }
            Err(error) if !failing => {
                tracing::warn!(%seed, %error, "a --join name cannot be looked up; will try again");
            }
            Err(_) => {}
        }
        lookup.found = Some((timer::now(), found.map_err(|error| error.to_string())));
    }

    /// No node is linked: what was tried, and how others come here. Where nothing is left to try, that is said once.
    fn alone(&self, since: Duration, announced: Announced) {
        let (peers, join) = (self.setup.peers.known(), self.setup.peers.joining());
        let name = self.setup.identity.name();
        let lookups = self.lookups.lock();
        let seeds = texts(&joining::rows(&lookups, &join, &peers, name));
        drop(lookups);
        let sought = peers.iter().filter(|peer| peer.reason != Some(Reason::Left));
        let sought: Vec<_> = sought.map(sought_text).collect();
        let wanted = !(seeds.is_empty() && sought.is_empty());
        if !wanted && announced == Announced::Before {
            return;
        }
        let (here, seconds) = (self.setup.advertise, since.as_secs());
        let (sought, air) = (texts(&sought), self.machine.air());
        let interface = beacon::interface(here.ip());
        let beacons = match &self.setup.socket {
            Some(_) => format!(
                "{} sent on {interface}, {} heard, {} of other clusters heard",
                air.sent, air.heard, air.foreign
            ),
            None => "off".to_owned(),
        };
        if wanted || self.setup.socket.is_some() && peers.is_empty() {
            tracing::warn!(
                seconds,
                seeds,
                peers = sought,
                beacons,
                "no other node is linked, after all that was tried. Others join here with --join {here}; `xpando-node status` shows more"
            );
        } else {
            tracing::info!(
                seconds,
                beacons,
                "no other node is linked, and none is looked for. Others join here with --join {here}"
            );
        }
    }

    fn contact(&self) -> Contact {
        Contact {
            name: self.setup.identity.name().clone(),
            address: self.setup.advertise,
            incarnation: Incarnation(self.setup.incarnation.load(Ordering::Relaxed)),
        }
    }

    /// A beacon of this node, sealed now.
    fn sealed(&self, sequence: u64) -> Result<Vec<u8>, CodecError> {
        let cluster = self.setup.identity.cluster();
        let beacon = Beacon { cluster, contact: self.contact(), sequence, sent: clock::millis() };
        beacon::sealed(&beacon, &self.setup.identity)
    }

    fn beacon(&mut self, sequence: u64) {
        let Some(socket) = &self.setup.socket else { return };
        self.setup.sequence.store(sequence, Ordering::Relaxed);
        let sent = self
            .sealed(sequence)
            .map_err(std::io::Error::other)
            .and_then(|bytes| socket.send_to(&bytes, (beacon::GROUP, beacon::PORT)));
        match sent {
            Ok(_) => self.mute = false,
            Err(error) if !std::mem::replace(&mut self.mute, true) => {
                tracing::warn!(%error, "beacons cannot be sent; seeds and peers still find each other");
            }
            Err(_) => {}
        }
    }

    /// Tells one peer who is linked here.
    fn share(&self, peer: &NodeName) {
        for some in contacts_for(self.setup.peers.contacts(), peer) {
            self.send(peer, &Word::Contacts(some));
        }
    }

    fn send(&self, peer: &NodeName, word: &Word) {
        match codec::encode(word) {
            Ok(payload) => self.setup.bus.send(peer, Topic::network_peers(), payload),
            Err(error) => tracing::error!(%error, "a word cannot be encoded"),
        }
    }

    /// A node's own word that another one passed on, as was asked: a hint, if its seal holds.
    fn check(&mut self, sealed: &[u8]) -> Verdict {
        let Ok(sealed) = Beacon::decode(sealed) else { return Verdict::Malformed };
        if !self.machine.is_current(&sealed.beacon, clock::millis()) {
            return Verdict::Stale;
        }
        if self.seals.holds(&sealed).is_none() {
            return Verdict::Forged;
        }
        self.setup.peers.ask(Ask::Hint(sealed.beacon.contact, Source::Peer));
        Verdict::Relayed
    }

    fn perform(&mut self, out: Vec<Output>) {
        for output in out {
            match output {
                Output::Beacon(sequence) => self.beacon(sequence),
                Output::Alone(since, announced) => self.alone(since, announced),
                Output::Share => {
                    let linked = self.setup.peers.contacts();
                    let one = self.machine.pick(linked.len()).and_then(|at| linked.get(at));
                    if let Some(contact) = one {
                        self.share(&contact.name);
                    }
                }
                Output::ShareWith(peer) => self.share(&peer),
                Output::Send(peer, word) => self.send(&peer, &word),
                // Beacons on the air count from 1: this one cannot be sent again as one of them.
                Output::ShowTo(peer) => match self.sealed(0) {
                    Ok(sealed) => self.send(&peer, &Word::Shown(sealed)),
                    Err(error) => tracing::error!(%error, "a beacon cannot be sealed"),
                },
                Output::Check(sealed) => {
                    let verdict = self.check(&sealed);
                    self.setup.metrics.count(Count::Beacons, verdict.label());
                }
                Output::Ask(ask) => self.setup.peers.ask(ask),
            }
        }
    }
}

impl Process for Inside {
    const NAME: &'static str = "discovery";
    type Message = Msg;
    type Setup = (Setup, LookUps);

    async fn start(
        (setup, lookups): Self::Setup,
        myself: &Address<Msg>,
    ) -> Result<Self, ActorProcessingErr> {
        let mut tasks = JoinSet::new();
        if let Some(socket) = &setup.socket {
            tasks.spawn(listen(socket, setup.metrics.clone(), myself.clone())?);
        }
        let unknown = |seed: &Seed| LookUp { seed: seed.clone(), found: None };
        *lookups.lock() = setup.seeds.iter().map(unknown).collect();
        for (number, seed) in setup.seeds.iter().cloned().enumerate() {
            tasks.spawn(look_up(number, seed, myself.clone()));
        }
        for contact in setup.remembered.clone() {
            setup.peers.ask(Ask::Hint(contact, Source::Remembered));
        }
        let to = myself.clone();
        setup.bus.attach(Consumer::Discovery, move |notice| forward(&to, Msg::Notice(notice)));
        let machine = Machine::new(
            setup.config,
            Own {
                name: setup.identity.name().clone(),
                cluster: setup.identity.cluster(),
                address: setup.advertise,
                begun: clock::millis(),
            },
            setup.socket.is_some(),
            setup.sequence.load(Ordering::Relaxed),
            timer::now(),
            rand::make_rng(),
        );
        let seals = SealChecker::new(setup.identity.verifier());
        let mut inside = Self { setup, machine, lookups, seals, mute: false, _tasks: tasks };
        inside.tick()?; // the first beacon goes out now
        Ok(inside)
    }

    fn handle(&mut self, message: Msg) -> Result<(), ActorProcessingErr> {
        let _paid = if let Msg::Notice(notice) = &message { measure(notice) } else { None };
        match message {
            Msg::Datagram(bytes, permit) => {
                let verdict = self.datagram(&bytes);
                self.setup.metrics.count(Count::Beacons, verdict.label());
                if !matches!(
                    verdict,
                    Verdict::Accepted
                        | Verdict::Linked
                        | Verdict::Repeated
                        | Verdict::Echo
                        | Verdict::Namesake
                        | Verdict::Foreign
                ) {
                    tracing::debug!(
                        verdict = verdict.label(),
                        bytes = bytes.len(),
                        "beacon dropped"
                    );
                }
                drop(permit);
            }
            Msg::LookedUp(number, found) => self.looked_up(number, found),
            Msg::Notice(notice) => match notice.read(|it| codec::decode(&it, MAX_PAYLOAD)) {
                Ok(notice) => {
                    let mut out = Vec::new();
                    self.machine.handle(notice, timer::now(), &mut out);
                    self.perform(out);
                }
                Err(_) => self.setup.metrics.count(Count::Messages, "malformed"),
            },
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        Some(self.machine.deadline())
    }

    fn tick(&mut self) -> Result<(), ActorProcessingErr> {
        let mut out = Vec::new();
        self.machine.tick(timer::now(), &mut out);
        self.perform(out);
        Ok(())
    }
}

fn texts(of: &[impl ToString]) -> String {
    of.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn sought_text(peer: &PeerView) -> String {
    let at = peer.address.map_or_else(String::new, |address| format!(" at {address}"));
    format!("{}{at}: {}", peer.name, peer.cause.as_deref().unwrap_or("no answer yet"))
}

fn forward(to: &Address<Msg>, message: Msg) {
    // An actor that ended has a successor, which hears anew.
    drop(to.cast(Mail::Message(message)));
}

/// Opens the beacon socket for a node at `host`, or says why there is none.
pub fn socket(interface: Ipv4Addr) -> Option<Arc<UdpSocket>> {
    match beacon::open(interface) {
        Ok(socket) => Some(Arc::new(socket)),
        Err(error) => {
            tracing::warn!(%error, %interface, "no beacons: the multicast socket cannot be opened");
            None
        }
    }
}

/// Reads datagrams; what the actor has no room for is dropped and counted.
fn listen(
    socket: &UdpSocket,
    metrics: Metrics,
    to: Address<Msg>,
) -> std::io::Result<impl Future<Output = ()> + Send + use<>> {
    let socket = tokio::net::UdpSocket::from_std(socket.try_clone()?)?;
    let room = Arc::new(Semaphore::new(WAITING));
    Ok(async move {
        // One byte more than a beacon may have, so that a longer one shows.
        let mut buffer = vec![0; MAX_BEACON + 1];
        loop {
            match socket.recv(&mut buffer).await {
                Ok(length) => match room.clone().try_acquire_owned() {
                    Ok(permit) => {
                        let bytes = buffer.get(..length).unwrap_or(&[]).to_vec();
                        forward(&to, Msg::Datagram(bytes, permit));
                    }
                    Err(_full) => metrics.count(Count::Beacons, Verdict::Flood.label()),
                },
                Err(error) => {
                    tracing::debug!(%error, "beacon socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    })
}

async fn look_up(number: usize, seed: Seed, to: Address<Msg>) {
    loop {
        forward(&to, Msg::LookedUp(number, seed.resolve().await));
        tokio::time::sleep(LOOK_UP).await;
    }
}

#[cfg(test)]
mod tests;
