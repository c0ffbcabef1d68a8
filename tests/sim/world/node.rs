//! One running node: the machines of its actors, joined by `proto::wiring` as `src/actors` joins them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use rand::rngs::StdRng;
use xpando_node::internals::proto::discovery::{self, Discovery};
use xpando_node::internals::proto::event::Event;
use xpando_node::internals::proto::heartbeat::{self, Monitor, Signs};
use xpando_node::internals::proto::link::{self, Report};
use xpando_node::internals::proto::membership::{self, AttemptId, Membership, PeerView};
use xpando_node::internals::proto::node::{Contact, Incarnation, NodeName};
use xpando_node::internals::proto::presence::{Attendance, Presence};
use xpando_node::internals::proto::registry::Registry;
use xpando_node::internals::proto::registry::book::{self, Book, Nodes};
use xpando_node::internals::proto::topology::{Matrix, Sides, Topology, Tracker};
use xpando_node::internals::proto::wiring::{self, Ask, Consumer, Decided, Forgotten, contacts};

use super::wire::At;
use super::{Happening, Micros, Task, Waiting, World};
use crate::invariants::{self, Watched};

mod actors;
mod beacons;
mod bus;
mod records;
mod sight;
pub(crate) use actors::Actor;
pub(crate) use bus::Message;
pub(crate) use records::topics;
pub(super) use records::{Disk, Write};

/// One run of one node.
pub(crate) struct Life {
    pub(crate) number: u64,
    pub(crate) boot: u64,
    pub(crate) incarnation: Incarnation,
    /// How often each actor has started.
    pub(super) starts: [u64; Actor::ALL.len()],
    pub(crate) paused: bool,
    /// Its last pause: from when, until when.
    pub(crate) pause: (Micros, Micros),
    pub(super) waiting: Waiting,
    pub(crate) watched: Watched,
    // The bus.
    links: wiring::Links<At>,
    attached: BTreeSet<Consumer>,
    /// What arrives in each mailbox arrives in order.
    mail: BTreeMap<Actor, Micros>,
    /// Consumers that have not come to the last change of the peers' view.
    behind: BTreeSet<Consumer>,
    // Link.
    pub(super) link: link::Links,
    pub(super) ends: BTreeMap<AttemptId, At>,
    /// The running link of each peer.
    pub(super) outlets: BTreeMap<usize, At>,
    pub(super) inbound: u64,
    // NodeManager, and what it shows in `Peers`.
    pub(crate) membership: Membership,
    /// What an earlier one showed last, until this one shows something.
    earlier: Option<Vec<PeerView>>,
    /// Likewise, until Link has reported which links live.
    unrecalled: Vec<PeerView>,
    forgotten: Forgotten,
    /// Since when each peer has its status: by the one clock, and by the wall clock.
    since: RefCell<BTreeMap<NodeName, (Instant, u64)>>,
    // HeartbeatMonitor. It is out while it is asked, as are the next three.
    monitor: Option<Monitor>,
    pub(crate) signs: Signs,
    // TopologyTracker.
    tracker: Option<Tracker>,
    pub(crate) matrix: Matrix,
    /// What it saw when it looked last.
    sides: RefCell<Arc<Sides>>,
    measurements: wiring::Measurements,
    // Registry.
    book: Option<Book>,
    pub(crate) nodes: Nodes,
    // Discovery.
    discovery: Discovery,
    remembered: Vec<Contact>,
    /// The last beacon.
    sequence: u64,
    /// When the last believed beacon of each node arrived.
    beacons: BTreeMap<NodeName, Instant>,
    // ChannelRouter.
    attendance: Option<Attendance>,
    /// The clients of this node, with their topics.
    pub(crate) members: BTreeMap<u64, records::Member>,
    numbers: u64,
    /// When each actor wants to be woken.
    deadlines: [Option<Instant>; Actor::ALL.len()],
    wake_at: Option<Micros>,
}

impl Life {
    /// Its actors have yet to start.
    pub(super) fn new(
        world: &World,
        node: usize,
        number: u64,
        boot: u64,
        incarnation: Incarnation,
        nodes: Nodes,
        mut rng: impl FnMut() -> StdRng,
    ) -> Self {
        let now = world.local(node);
        let forgotten = Forgotten::new(book::forgotten(&nodes));
        let (monitor, tracker) =
            (world.monitor(node), world.tracker(node, incarnation, &Matrix::default(), rng()));
        let discovery = world.discovery(node, 0, rng());
        let book = Some(world.book(node, incarnation, &nodes, rng()));
        let attendance = Some(world.attendance(node, (incarnation, 0), rng()));
        Self {
            number,
            boot,
            incarnation,
            starts: [0; Actor::ALL.len()],
            paused: false,
            pause: (0, 0),
            waiting: VecDeque::new(),
            watched: Watched::default(),
            links: wiring::Links::default(),
            attached: BTreeSet::new(),
            mail: BTreeMap::new(),
            behind: BTreeSet::new(),
            link: link::Links::default(),
            ends: BTreeMap::new(),
            outlets: BTreeMap::new(),
            inbound: 0,
            membership: world.membership(node, (boot, incarnation), 0, &forgotten, rng()),
            earlier: None,
            unrecalled: Vec::new(),
            forgotten,
            since: RefCell::default(),
            monitor: Some(monitor),
            signs: Signs::default(),
            tracker: Some(tracker),
            matrix: Matrix::default(),
            sides: RefCell::default(),
            measurements: wiring::Measurements::new(now),
            book,
            discovery,
            remembered: nodes.values().flat_map(|known| known.contacts()).collect(),
            nodes,
            sequence: 0,
            beacons: BTreeMap::new(),
            attendance,
            members: BTreeMap::new(),
            numbers: 0,
            deadlines: [None; Actor::ALL.len()],
            wake_at: None,
        }
    }

    /// The connection of the running link to a peer.
    pub(crate) fn line(&self, peer: usize) -> Option<usize> {
        self.outlets.get(&peer).map(|at| at.0)
    }

    /// How many attempts and links there are.
    pub(crate) fn ends(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn topology(&self) -> &Topology {
        self.tracker.as_ref().expect("it is not being asked").machine()
    }

    /// The topology, unless it is being asked.
    pub(crate) fn rests(&self) -> Option<&Topology> {
        self.tracker.as_ref().map(Tracker::machine)
    }

    /// Whether the tracker has seen that a node exists.
    pub(crate) fn knows(&self, node: &NodeName) -> bool {
        self.tracker.as_ref().expect("it is not being asked").knows(node)
    }

    pub(crate) fn registry(&self) -> &Registry {
        self.book.as_ref().expect("it is not being asked").machine()
    }

    pub(crate) fn presence(&self) -> &Presence {
        self.attendance.as_ref().expect("it is not being asked").presence()
    }

    /// What is shown to nobody.
    pub(crate) fn hidden(&self) -> BTreeSet<NodeName> {
        if self.forgotten.is_empty() {
            return BTreeSet::new(); // nearly always
        }
        self.forgotten.of_no_peer(&self.peers()).into_keys().collect()
    }

    /// What the peers' view shows.
    fn peers(&self) -> Vec<PeerView> {
        self.earlier.clone().unwrap_or_else(|| self.membership.peers().collect())
    }

    fn deadline(&mut self, actor: Actor) -> &mut Option<Instant> {
        &mut self.deadlines[actor as usize]
    }
}

impl World {
    /// Something a process does.
    pub(super) fn perform(&mut self, node: usize, task: Task) {
        match task {
            Task::Accept(id) => self.accept(node, id),
            Task::Read(at, word) => self.receive(at, word),
            Task::SessionGone(attempt) => self.link(node, link::Input::SessionGone(attempt)),
            Task::Report(start, report) => {
                if self.life(node).starts[Actor::NodeManager as usize] == start {
                    self.reported(node, *report);
                }
            }
            Task::Notice(consumer, start, notice) => {
                if self.life(node).starts[Actor::of(consumer) as usize] == start {
                    self.notice(node, consumer, *notice);
                }
            }
            Task::Written(write) => self.written(node, *write),
            Task::Rejoin(topic, key) => self.join(node, topic, &key),
            Task::Datagram(beacon) => self.datagram(node, &beacon),
            Task::Wake => {
                // One that was overtaken by an earlier one has nothing to do.
                if self.life(node).wake_at.is_some_and(|at| at <= self.now) {
                    self.tick(node);
                }
            }
            task @ (Task::DialFailed(..) | Task::NoTls(_) | Task::Late(_) | Task::LinkGone(_)) => {
                self.attend(task);
            }
        }
        self.wake(node);
    }

    /// Sees to it that the node wakes when the first of its actors wants to.
    pub(super) fn wake(&mut self, node: usize) {
        let Some(life) = &self.nodes[node].life else { return };
        let Some(at) = life.deadlines.iter().flatten().min() else { return };
        let (at, number) = (self.when(node, *at), life.number);
        let life = self.life_mut(node);
        if life.wake_at.is_none_or(|wake| at < wake) {
            life.wake_at = Some(at);
            self.at_time(at, Happening::Task(node, number, Task::Wake));
        }
    }

    /// Whatever is due, actor by actor.
    fn tick(&mut self, node: usize) {
        let now = self.local(node);
        self.life_mut(node).wake_at = None;
        for actor in Actor::ALL {
            if self.life(node).deadlines[actor as usize].is_none_or(|at| at > now) {
                continue;
            }
            match actor {
                Actor::News => {}
                Actor::Link => self.link(node, link::Input::Tick),
                Actor::NodeManager => self.member(node, membership::Input::Tick),
                Actor::HeartbeatMonitor => self.watch(node, None),
                Actor::TopologyTracker => self.track(node, None),
                Actor::Registry => self.record(node, book::Input::Tick),
                Actor::Discovery => self.discover(node, |it, now, out| it.tick(now, out)),
                Actor::ChannelRouter => self.present(node, |it, now, out| it.tick(now, out)),
            }
        }
    }

    // Link.

    /// Gives the link machine an input, and does what it says.
    pub(super) fn link(&mut self, node: usize, input: link::Input) {
        let (now, mut out) = (self.local(node), Vec::new());
        self.detail(node, || format!("link hears {input:?}"));
        let life = self.life_mut(node);
        life.link.handle(input, |_serials| false, now, &mut out);
        *life.deadline(Actor::Link) = life.link.deadline();
        for output in out {
            self.connect(node, output);
        }
    }

    fn connect(&mut self, node: usize, output: link::Output) {
        use link::{Decision, Output};
        let at = |world: &Self, attempt: AttemptId| world.life(node).ends.get(&attempt).copied();
        match output {
            Output::Report(report) => {
                let start = self.life(node).starts[Actor::NodeManager as usize];
                self.mail(node, Actor::NodeManager, Task::Report(start, Box::new(report)));
            }
            Output::Dial(attempt, to) => self.dial(node, attempt, to),
            Output::Decide(attempt, Decision::Proceed) => {
                at(self, attempt).into_iter().for_each(|at| self.proceed(at));
            }
            Output::Decide(attempt, Decision::Refuse(refusal)) => {
                at(self, attempt).into_iter().for_each(|at| self.refuse(at, refusal));
            }
            Output::Drop(attempt) | Output::Break(attempt) => {
                at(self, attempt).into_iter().for_each(|at| self.vanish(at));
            }
            Output::Start(attempt) => at(self, attempt).into_iter().for_each(|at| self.start(at)),
            Output::Part(attempt, parting) => {
                at(self, attempt).into_iter().for_each(|at| self.part_with(at, parting));
            }
            Output::StopSession(attempt) => self.stop_session(node, attempt),
            Output::Evicted if self.is_liar(node) => {}
            Output::Evicted => self.fail("honest_nodes_are_never_charged", "evicted"),
            // A session that does not agree in time, where the network is that slow.
            Output::Fault(..) | Output::Took(_) | Output::Over(_) => {}
        }
    }

    // NodeManager.

    fn reported(&mut self, node: usize, report: Report) {
        match wiring::step(report) {
            Some(input) => self.member(node, input),
            None => {
                let earlier = std::mem::take(&mut self.life_mut(node).unrecalled);
                wiring::recall(&earlier).for_each(|input| self.member(node, input));
                self.life_mut(node).earlier = None;
                let membership = &self.life(node).membership;
                let lost = wiring::lost(&earlier, |peer| membership.peer(peer));
                self.changed(node);
                lost.into_iter().for_each(|event| self.announced(node, event));
            }
        }
    }

    /// A machine of this node asks NodeManager.
    pub(super) fn ask(&mut self, node: usize, ask: Ask) {
        self.life_mut(node).forgotten.asked(&ask);
        self.member(node, ask.into());
    }

    /// Somebody says a node is at an address. Nearly all of it is known.
    fn hint(&mut self, node: usize, input: membership::Input) {
        let (now, mut out) = (self.local(node), Vec::new());
        let life = self.life_mut(node);
        let news = life.membership.handle(input.clone(), now, &mut out);
        if news || !out.is_empty() {
            self.decided(node, &input, news, out);
        } else {
            *life.deadline(Actor::NodeManager) = life.membership.deadline();
        }
    }

    /// Gives the membership machine an input, and does what it says.
    pub(super) fn member(&mut self, node: usize, input: membership::Input) {
        let (now, mut out) = (self.local(node), Vec::new());
        let news = self.life_mut(node).membership.handle(input.clone(), now, &mut out);
        self.decided(node, &input, news, out);
    }

    fn decided(
        &mut self,
        node: usize,
        input: &membership::Input,
        news: bool,
        out: Vec<membership::Output>,
    ) {
        self.detail(node, || format!("membership hears {input:?}"));
        let life = self.life_mut(node);
        *life.deadline(Actor::NodeManager) = life.membership.deadline();
        if news {
            life.earlier = None;
            self.changed(node);
        }
        invariants::after_membership(self, node, input, &out);
        for output in out {
            self.detail(node, || format!("membership says {output:?}"));
            match Decided::from(output) {
                Decided::Link(input) => {
                    self.closed += u64::from(matches!(input, link::Input::Close(..)));
                    self.link(node, input);
                }
                Decided::Renew(incarnation) => {
                    self.life_mut(node).incarnation = incarnation;
                    let it = &mut self.nodes[node];
                    it.truth = it.truth.max((incarnation, 0));
                    it.well = self.now; // its links end and come back
                }
                Decided::Announce(event) => self.announced(node, event),
            }
        }
    }

    /// An event reaches everybody in this node whom it concerns.
    fn announced(&mut self, node: usize, event: Event) {
        if matches!(event, Event::LinkChanged { .. } | Event::LinksChanged { .. }) {
            self.detail(node, || format!("{event:?}"));
        } else {
            self.note(node, || format!("{event:?}"));
        }
        invariants::after_event(self, node, &event);
        self.log.iter_mut().for_each(|log| log.push((node, event.clone())));
        self.tell_of(node, &event);
        match event {
            Event::LinkLost { peer, .. } | Event::LinkReplaced { peer, .. } => {
                self.gaps += u64::from(!self.is_liar(node) && self.is_innocent(&peer));
            }
            Event::IncarnationRaised { to } => {
                if let Some(counter) = self.nodes[node].counters.last_mut() {
                    *counter = to.0;
                }
            }
            _ => {}
        }
    }

    // Discovery.

    /// Has the discovery machine do something, and does what follows.
    fn discover(
        &mut self,
        node: usize,
        act: impl FnOnce(&mut Discovery, Instant, &mut Vec<discovery::Output>),
    ) {
        use discovery::Output;
        let (now, mut out) = (self.local(node), Vec::new());
        let life = self.life_mut(node);
        act(&mut life.discovery, now, &mut out);
        *life.deadline(Actor::Discovery) = Some(life.discovery.deadline());
        for output in out {
            match output {
                Output::Beacon(sequence) => {
                    self.life_mut(node).sequence = sequence;
                    self.beacon(node, sequence);
                }
                Output::Alone(..) => {}
                Output::Share => {
                    let linked = contacts(&self.life(node).peers());
                    let one = self.life_mut(node).discovery.pick(linked.len());
                    if let Some(contact) = one.and_then(|at| linked.get(at)) {
                        self.share(node, &contact.name);
                    }
                }
                Output::ShareWith(peer) => self.share(node, &peer),
                Output::Send(peer, word) => self.discovery_word(node, &peer, word),
                Output::ShowTo(peer) => {
                    let sealed = self.sealed(node);
                    self.discovery_word(node, &peer, discovery::Word::Shown(sealed));
                }
                Output::Check(sealed) => self.relayed(node, &sealed),
                Output::Ask(ask @ (Ask::Hint(..) | Ask::Told(..))) => self.hint(node, ask.into()),
                Output::Ask(ask) => self.ask(node, ask),
            }
        }
    }

    /// Tells one peer who is linked here.
    fn share(&mut self, node: usize, peer: &NodeName) {
        for some in discovery::contacts_for(contacts(&self.life(node).peers()), peer) {
            self.discovery_word(node, peer, discovery::Word::Contacts(some));
        }
    }

    fn discovery_word(&mut self, node: usize, peer: &NodeName, word: discovery::Word) {
        self.send_to(node, peer, Message::Discovery(Rc::new(word)));
    }
}

/// The peer is linked and not doubted.
pub(crate) fn is_trusted(life: &Life, peer: &NodeName) -> bool {
    life.signs.peers.get(peer).is_some_and(|vital: &heartbeat::Vital| !vital.suspect)
}
