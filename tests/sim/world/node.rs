//! One running node: the machines, joined as `src/actors` and `src/node.rs` join them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use xpando_node::internals::proto::discovery::Discovery;
use xpando_node::internals::proto::event::{Event, Reason, Source, Status};
use xpando_node::internals::proto::heartbeat::{self, Heartbeat};
use xpando_node::internals::proto::membership::{self, AttemptId, Membership, PeerView};
use xpando_node::internals::proto::node::{Contact, Incarnation, NodeName};
use xpando_node::internals::proto::presence::{Attendance, Presence};
use xpando_node::internals::proto::questions::Questions;
use xpando_node::internals::proto::registry::Registry;
use xpando_node::internals::proto::registry::book::{self, Book, Nodes};
use xpando_node::internals::proto::rows::BURST;
use xpando_node::internals::proto::topology::{self, Cell, Topology};

use super::wire::{At, Word};
use super::{Happening, Micros, Task, Waiting, World};
use crate::invariants::{self, Watched};

mod actors;
mod beacons;
mod door;
mod records;
pub(crate) use actors::Actor;
pub(crate) use records::topics;
pub(super) use records::{Disk, Write};

/// How often measurements are looked at without any event (`actors/topology_tracker.rs`).
const LOOK: Duration = Duration::from_secs(1);

/// What HeartbeatMonitor shows of a peer.
#[derive(Debug, Default)]
pub(crate) struct Vital {
    pub(crate) suspect: bool,
    /// How long it had been silent when the last doubt began.
    pub(crate) doubted_after: Option<Duration>,
    heard: Option<Instant>,
    round_trip: Option<Duration>,
    phi: f64,
}

/// One run of one node.
pub(crate) struct Life {
    pub(crate) number: u64,
    pub(crate) boot: u64,
    pub(crate) incarnation: Incarnation,
    pub(crate) membership: Membership,
    discovery: Discovery,
    heartbeat: Heartbeat,
    pub(crate) topology: Topology,
    /// Out while it is asked.
    book: Option<Book>,
    attendance: Option<Attendance>,
    /// How often each actor has started.
    pub(super) starts: [u64; Actor::ALL.len()],
    pub(crate) paused: bool,
    /// Its last pause: from when, until when.
    pub(crate) pause: (Micros, Micros),
    pub(super) waiting: Waiting,
    pub(crate) watched: Watched,
    // Link.
    pub(super) ends: BTreeMap<AttemptId, At>,
    pub(super) parked: BTreeSet<At>,
    /// ractor's sessions, by peer, until they are gone.
    pub(super) sessions: BTreeMap<usize, AttemptId>,
    /// The running link of each peer.
    pub(super) outlets: BTreeMap<usize, At>,
    pub(super) inbound: u64,
    /// Its reports arrive in order.
    pub(super) mailbox: Micros,
    // NodeManager.
    /// What an earlier one showed last, until this one shows something.
    earlier: Option<Vec<PeerView>>,
    // HeartbeatMonitor.
    pub(crate) vitals: BTreeMap<usize, Vital>,
    questions: Questions,
    // TopologyTracker.
    pub(crate) sides: BTreeMap<NodeName, (Incarnation, Cell)>,
    pub(crate) linked: BTreeMap<NodeName, Incarnation>,
    look_at: Instant,
    raised: Incarnation,
    /// Since when each peer has its status: by the one clock, and by the wall clock.
    since: BTreeMap<usize, (Instant, u64)>,
    // Registry.
    pub(crate) nodes: Nodes,
    // Discovery.
    remembered: Vec<Contact>,
    /// The last beacon.
    sequence: u64,
    // ChannelRouter.
    /// The clients of this node, with their topics.
    pub(crate) members: BTreeMap<u64, records::Member>,
    numbers: u64,
    /// What happened in this node reaches registry and router in order.
    pub(super) bus: Micros,
    /// When each machine wants to be woken: membership, heartbeat, tracker, discovery, registry, presence.
    deadlines: [Option<Instant>; 6],
    wake_at: Option<Micros>,
}

impl Life {
    pub(super) fn new(
        world: &World,
        node: usize,
        number: u64,
        boot: u64,
        incarnation: Incarnation,
        nodes: Nodes,
        mut rng: impl FnMut() -> StdRng,
    ) -> Self {
        let (me, now) = (world.nodes[node].name.clone(), world.local(node));
        Self {
            number,
            boot,
            incarnation,
            membership: world.membership(node, (boot, incarnation), 0, &nodes, rng()),
            discovery: world.discovery(node, rng()),
            heartbeat: Heartbeat::new(heartbeat::Config::default(), me.clone()),
            topology: world.topology(node, incarnation, rng()),
            book: Some(world.book(node, incarnation, &nodes, rng())),
            attendance: Some(world.attendance(node, (incarnation, 0), &[], rng()).0),
            starts: [0; Actor::ALL.len()],
            paused: false,
            pause: (0, 0),
            waiting: VecDeque::new(),
            watched: Watched::default(),
            ends: BTreeMap::new(),
            parked: BTreeSet::new(),
            sessions: BTreeMap::new(),
            outlets: BTreeMap::new(),
            inbound: 0,
            mailbox: world.now,
            earlier: None,
            vitals: BTreeMap::new(),
            questions: Questions::new(me),
            sides: BTreeMap::new(),
            linked: BTreeMap::new(),
            look_at: now,
            raised: incarnation,
            since: BTreeMap::new(),
            remembered: nodes.values().flat_map(|known| known.contacts()).collect(),
            nodes,
            sequence: 0,
            members: BTreeMap::new(),
            numbers: 0,
            bus: world.now,
            deadlines: [None, None, Some(now), Some(now), Some(now), None],
            wake_at: None,
        }
    }

    pub(crate) fn registry(&self) -> &Registry {
        self.book.as_ref().expect("it is not being asked").machine()
    }

    pub(crate) fn presence(&self) -> &Presence {
        self.attendance.as_ref().expect("one that runs").presence()
    }

    fn monitor_deadline(&self) -> Option<Instant> {
        let question = self.questions.deadline();
        question.into_iter().chain(self.heartbeat.deadline()).min()
    }

    fn tracker_deadline(&self) -> Option<Instant> {
        self.topology.deadline().into_iter().chain([self.look_at]).min()
    }
}

impl World {
    /// Something a process does.
    pub(super) fn perform(&mut self, node: usize, task: Task) {
        match task {
            Task::Accept(id) => self.accept(node, id),
            Task::Read(at, word) => self.receive(at, word),
            Task::SessionGone(attempt) => {
                self.life_mut(node).sessions.retain(|_, session| *session != attempt);
                self.start_parked(node);
            }
            Task::Report(start, input) => {
                if self.life(node).starts[Actor::NodeManager as usize] == start {
                    self.member(node, *input);
                }
            }
            Task::Recall(earlier) => self.recall(node, earlier),
            Task::Happened(event) => self.happened(node, &event),
            Task::Written(write) => self.written(node, *write),
            Task::Rejoin(topic, key) => self.join(node, topic, &key),
            Task::Datagram(beacon) => self.datagram(node, &beacon),
            Task::Wake => {
                // One that was overtaken by an earlier one has nothing to do.
                if self.life(node).wake_at.is_some_and(|at| at <= self.now) {
                    self.tick(node);
                }
            }
            task @ (Task::DialFailed(..)
            | Task::NoTls(_)
            | Task::Late(_)
            | Task::Unready(_)
            | Task::LinkGone(_)) => self.attend(task),
        }
        self.wake(node);
    }

    /// Sees to it that the node wakes when the first of its machines wants to.
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
        let due = |world: &Self, machine: usize| {
            world.life(node).deadlines[machine].is_some_and(|at| at <= now)
        };
        if due(self, 0) {
            self.member(node, membership::Input::Tick);
        }
        if due(self, 1) {
            self.monitor_tick(node);
        }
        if due(self, 2) {
            if self.life(node).look_at <= now {
                self.look(node);
            }
            if self.life(node).topology.deadline().is_some_and(|at| at <= now) {
                let wall = self.wall(node);
                self.track(node, topology::Input::Tick { wall });
            }
        }
        if due(self, 3) {
            self.discovery_tick(node);
        }
        if due(self, 4) {
            self.record(node, book::Input::Tick);
        }
        if due(self, 5) {
            self.present(node, |attendance, now, out| attendance.tick(now, out));
        }
    }

    // NodeManager.

    /// Somebody says a node is at an address. Nearly all of it is known.
    fn hint(&mut self, node: usize, contact: &Contact, source: Source) {
        let (now, mut out) = (self.local(node), Vec::new());
        let input = membership::Input::Hint(contact.clone(), source);
        let life = self.life_mut(node);
        if life.membership.handle(input, now, &mut out) {
            life.earlier = None;
        }
        if out.is_empty() {
            life.deadlines[0] = life.membership.deadline();
        } else {
            self.decided(node, &membership::Input::Hint(contact.clone(), source), out);
        }
    }

    /// Gives the membership machine an input, and does what it says.
    pub(super) fn member(&mut self, node: usize, input: membership::Input) {
        let (now, mut out) = (self.local(node), Vec::new());
        let life = self.life_mut(node);
        if life.membership.handle(input.clone(), now, &mut out) {
            life.earlier = None;
        }
        self.decided(node, &input, out);
    }

    fn decided(&mut self, node: usize, input: &membership::Input, out: Vec<membership::Output>) {
        self.detail(node, || format!("membership hears {input:?}"));
        let life = self.life_mut(node);
        life.deadlines[0] = life.membership.deadline();
        invariants::after_membership(self, node, input, &out);
        for output in out {
            self.manage(node, output);
        }
    }

    fn manage(&mut self, node: usize, output: membership::Output) {
        use membership::Output;
        self.detail(node, || format!("membership says {output:?}"));
        let at = |world: &Self, attempt: AttemptId| world.life(node).ends.get(&attempt).copied();
        match output {
            Output::Dial(attempt, to) => self.dial(node, attempt, to),
            Output::Proceed(attempt) => {
                if let Some(at) = at(self, attempt) {
                    self.proceed(at);
                }
            }
            Output::Refuse(attempt, refusal) => {
                if let Some(at) = at(self, attempt) {
                    self.refuse(at, refusal);
                }
            }
            Output::Abandon(attempt) => {
                if let Some(at) = at(self, attempt) {
                    self.vanish(at);
                }
            }
            Output::Close(attempt, parting) => {
                if let Some(at) = at(self, attempt) {
                    self.close(at, parting);
                }
            }
            Output::Renew(incarnation) => {
                self.life_mut(node).incarnation = incarnation;
                let it = &mut self.nodes[node];
                it.truth = it.truth.max((incarnation, 0));
                it.well = self.now; // its links end and come back
            }
            Output::Announce(event) => self.announced(node, event),
        }
    }

    /// An event reaches everybody in this node who listens.
    fn announced(&mut self, node: usize, event: Event) {
        self.note(node, || format!("{event:?}"));
        invariants::after_event(self, node, &event);
        let soon = self.local(node) + BURST;
        let life = self.life_mut(node);
        life.look_at = life.look_at.min(soon);
        life.deadlines[2] = life.tracker_deadline();
        self.publish(node, &event);
        if let Event::PeerOnline { peer, .. } = event {
            self.linked(node, peer.clone());
            self.share(node, &peer);
        } else if let Event::LinkLost { peer, .. }
        | Event::LinkReplaced { peer, .. }
        | Event::PeerOffline { peer, .. } = event
        {
            let at = self.index(&peer);
            if let Some(vital) = self.life_mut(node).vitals.get_mut(&at) {
                vital.suspect = false;
            }
            self.gaps += 1;
            self.watch(node, heartbeat::Input::Unlinked(peer));
        } else if let Event::PeerForgotten { peer } = event {
            self.forgotten(node, &peer);
        } else if let Event::IncarnationRaised { to } = event
            && let Some(counter) = self.nodes[node].counters.last_mut()
        {
            *counter = to.0;
        }
    }

    /// The peers, as NodeManager shows them.
    fn peers(&self, node: usize) -> Vec<PeerView> {
        let life = self.life(node);
        life.earlier.clone().unwrap_or_else(|| life.membership.peers().collect())
    }

    /// The peers that are linked, and where.
    fn online(&self, node: usize) -> Vec<Contact> {
        let online = self.peers(node).into_iter().filter(|view| view.status == Status::Online);
        online
            .filter_map(|view| {
                let (name, incarnation) = (view.name, view.incarnation);
                view.address.map(|address| Contact { name, address, incarnation })
            })
            .collect()
    }

    // HeartbeatMonitor.

    fn watch(&mut self, node: usize, input: heartbeat::Input) {
        let (now, mut out) = (self.local(node), Vec::new());
        let life = self.life_mut(node);
        life.heartbeat.handle(input.clone(), now, &mut out);
        life.deadlines[1] = life.monitor_deadline();
        invariants::after_heartbeat(self, node, &input, &out);
        for output in out {
            self.act(node, output);
        }
    }

    fn act(&mut self, node: usize, output: heartbeat::Output) {
        use heartbeat::Output;
        match output {
            Output::Beat(peer) => self.beat(node, &peer),
            Output::Ask { via, about } => self.tell(node, &via, Word::Ask(about)),
            Output::Tell { to, about } => self.tell(node, &to, Word::Doubted(about)),
            Output::Suspect(peer, evidence) => {
                let silence = evidence.silence;
                self.note(node, || format!("suspects {peer} after {silence:?}"));
                self.suspect(node, &peer, true);
                let index = self.index(&peer);
                if let Some(vital) = self.life_mut(node).vitals.get_mut(&index) {
                    vital.doubted_after = Some(silence);
                }
            }
            Output::Cleared(peer) => {
                self.note(node, || format!("clears {peer}"));
                self.suspect(node, &peer, false);
            }
            Output::Silent(peer, evidence) => {
                self.note(node, || format!("gives {peer} up: {evidence:?}"));
                self.suspect(node, &peer, false);
                self.member(node, membership::Input::Silent(peer));
            }
            Output::Paused(late) => self.note(node, || format!("was paused for {late:?}")),
        }
    }

    /// Notes a doubt, or its end, and has the tracker look.
    fn suspect(&mut self, node: usize, peer: &NodeName, suspect: bool) {
        let (soon, peer) = (self.local(node) + BURST, self.index(peer));
        let life = self.life_mut(node);
        if let Some(vital) = life.vitals.get_mut(&peer) {
            vital.suspect = suspect;
        }
        life.look_at = life.look_at.min(soon);
        life.deadlines[2] = life.tracker_deadline();
    }

    fn beat(&mut self, node: usize, peer: &NodeName) {
        let number = self.micros(node);
        if let Some(at) = self.life(node).outlets.get(&self.index(peer)).copied() {
            self.send(at, Word::Ping(number));
        }
    }

    /// What a ping carries.
    pub(super) fn micros(&self, node: usize) -> u64 {
        self.nodes[node].clock.nanos(self.now) / 1000
    }

    fn monitor_tick(&mut self, node: usize) {
        let now = self.local(node);
        while let Some(question) = self.life_mut(node).questions.due(now) {
            let outlet = self.life(node).outlets.get(&self.index(&question.about)).copied();
            let hears = outlet.is_some_and(|at| self.end(at).pulse.heard > question.asked);
            self.tell(node, &question.from, Word::Answer(question.about, hears));
        }
        self.listen(node);
        let life = self.life_mut(node);
        life.deadlines[1] = life.monitor_deadline();
        if life.heartbeat.deadline().is_some_and(|at| at <= now) {
            self.watch(node, heartbeat::Input::Tick);
            let Some(life) = self.nodes[node].life.as_mut() else { return };
            let mut vitals = std::mem::take(&mut life.vitals);
            for (peer, vital) in &mut vitals {
                vital.phi = self.life(node).heartbeat.phi(&self.nodes[*peer].name, now);
            }
            self.life_mut(node).vitals = vitals;
        }
    }

    /// Feeds the machine with what the links heard meanwhile.
    fn listen(&mut self, node: usize) {
        let fresh = |(peer, at): (&usize, &At)| {
            let heard = Some(self.end(*at).pulse.heard);
            let vital = self.life(node).vitals.get(peer)?;
            (vital.heard != heard).then_some((*peer, *at))
        };
        let fresh: Vec<_> = self.life(node).outlets.iter().filter_map(fresh).collect();
        for (peer, at) in fresh {
            let pulse = &mut self.end_mut(at).pulse;
            let (heard, pongs) = (pulse.heard, std::mem::take(&mut pulse.pongs));
            let trip = pulse.round_trip();
            if let Some(vital) = self.life_mut(node).vitals.get_mut(&peer) {
                (vital.heard, vital.round_trip) = (Some(heard), trip);
            }
            let name = self.nodes[peer].name.clone();
            for round_trip in pongs {
                self.watch(node, heartbeat::Input::Pong(name.clone(), round_trip));
            }
            self.watch(node, heartbeat::Input::Heard(name, heard));
        }
    }

    // TopologyTracker.

    fn track(&mut self, node: usize, input: topology::Input) {
        let (now, mut out) = (self.local(node), Vec::new());
        if !matches!(input, topology::Input::Own(_) | topology::Input::Tick { .. }) {
            self.detail(node, || format!("topology hears {input:?}"));
        }
        let concerned = invariants::concerned(&input);
        let life = self.life_mut(node);
        life.topology.handle(input, now, &mut out);
        life.deadlines[2] = life.tracker_deadline();
        invariants::after_topology(self, node, &concerned, &out);
        for output in out {
            match output {
                topology::Output::Send(peer, word) => {
                    self.tell(node, &peer, Word::Topology(word));
                }
                topology::Output::Cut(peer) => {
                    self.member(node, membership::Input::Misbehaved(peer));
                }
                topology::Output::Changed(_)
                | topology::Output::Gone { .. }
                | topology::Output::Revived(_)
                | topology::Output::Charge(..) => {}
            }
        }
    }

    /// This node's side of every link, as `node::sides` makes it.
    fn sides(&mut self, node: usize) -> BTreeMap<NodeName, (Incarnation, Cell)> {
        let wall = self.wall(node);
        let views = self.peers(node);
        let views: Vec<_> = views.into_iter().map(|view| (self.index(&view.name), view)).collect();
        let life = self.life_mut(node);
        let (vitals, known) = (&life.vitals, &mut life.since);
        let side = |(at, peer): (usize, PeerView)| {
            let since = known.entry(at).or_insert((peer.since, wall));
            if since.0 != peer.since {
                *since = (peer.since, wall);
            }
            let vital = vitals.get(&at).filter(|_| peer.status == Status::Online);
            let trip = vital.and_then(|vital| vital.round_trip);
            let cell = Cell {
                state: peer.status,
                suspect: vital.is_some_and(|vital| vital.suspect),
                rtt: trip.and_then(|trip| u32::try_from(trip.as_micros()).ok()),
                phi: vital.map_or(0, |vital| (vital.phi * 100.0) as u32),
                since: since.1,
                reason: peer.reason,
            };
            (peer.name, (peer.incarnation, cell))
        };
        views.into_iter().map(side).collect()
    }

    /// A node is forgotten: what it said of its links is, too, and its vital signs.
    fn forgotten(&mut self, node: usize, peer: &NodeName) {
        let side = self.life(node).sides.get(peer).map(|side| side.0);
        self.look(node);
        let life = self.life_mut(node);
        let row = life.topology.row_of(peer).map(|row| row.incarnation);
        let gone = side.max(row).filter(|_| !life.sides.contains_key(peer));
        if !life.linked.contains_key(peer) {
            let at = self.index(peer);
            self.life_mut(node).vitals.remove(&at);
        }
        if let Some(life) = gone {
            self.track(node, topology::Input::Gone(peer.clone(), life));
        }
    }

    /// Brings the topology machine up to what the peers' view says now.
    fn look(&mut self, node: usize) {
        let incarnation = self.life(node).incarnation;
        if incarnation > self.life(node).raised {
            self.life_mut(node).raised = incarnation;
            self.track(node, topology::Input::Renewed(incarnation));
        }
        let sides = self.sides(node);
        let before = std::mem::replace(&mut self.life_mut(node).sides, sides.clone());
        for peer in before.keys().filter(|peer| !sides.contains_key(*peer)) {
            if self.life_mut(node).linked.remove(peer).is_some() {
                self.track(node, topology::Input::Unlinked(peer.clone()));
            }
            self.track(node, topology::Input::Own(vec![(peer.clone(), None)]));
        }
        let mut cells = Vec::with_capacity(sides.len());
        let mut olds = before.iter().peekable();
        let mut changed = Vec::new();
        for (peer, (life, cell)) in sides {
            while olds.next_if(|(name, _)| **name < peer).is_some() {}
            let old = olds.peek().filter(|(name, _)| **name == peer).map(|(_, old)| *old);
            if old.is_none_or(|(old_life, old)| (*old_life, old) != (life, &cell)) {
                changed.push(peer.clone());
            }
            let online = cell.state == Status::Online;
            let was = self.life(node).linked.get(&peer).copied();
            if was.is_some() && was != Some(life).filter(|_| online) {
                self.life_mut(node).linked.remove(&peer);
                self.track(node, topology::Input::Unlinked(peer.clone()));
            }
            if online && self.life_mut(node).linked.insert(peer.clone(), life).is_none() {
                self.track(node, topology::Input::Linked(peer.clone(), life));
            }
            let left = cell.reason == Some(Reason::Left);
            let news = old.is_none_or(|(_, old)| old.reason != cell.reason);
            if left && news {
                self.track(node, topology::Input::Gone(peer.clone(), life));
            }
            cells.push((peer, Some(cell)));
        }
        self.track(node, topology::Input::Own(cells));
        let next = self.local(node) + LOOK;
        let life = self.life_mut(node);
        life.look_at = next;
        life.deadlines[2] = life.tracker_deadline();
        invariants::after_look(self, node, &changed);
    }
}
