//! Members that lie. Each runs the program as every other node does, and says besides what it likes, to whom it likes:
//! with its own seal on whatever it states, with others' seals only as it got them.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;

use rand::RngExt;
use xpando_node::internals::proto::discovery;
use xpando_node::internals::proto::event::{Reason, Status};
use xpando_node::internals::proto::frame::CloseReason;
use xpando_node::internals::proto::heartbeat::monitor;
use xpando_node::internals::proto::hello::{Hello, Refusal};
use xpando_node::internals::proto::node::{Contact, Incarnation, NodeName};
use xpando_node::internals::proto::presence::{self, Epoch};
use xpando_node::internals::proto::registry::{Profile, Profiles};
use xpando_node::internals::proto::rows::{Mark, Row, State, Table, Values, Word, statement};
use xpando_node::internals::proto::topology::{Cell, Cells, Links};

use super::node::Message;
use super::wire::At;
use super::{Happening, Micros, World, address, ms, topics};
use crate::seals::seal;

/// Between two lies.
const PAUSE: std::ops::Range<Micros> = ms(20)..ms(500);
/// Words of a flood.
const FLOOD: usize = 300;
/// Words that are kept to be said again.
const KEPT: usize = 64;

/// The row of a node, if there is one.
type MaybeRow<T> = Option<Row<<T as Table>::Value>>;

/// A member that lies.
#[derive(Debug, Default)]
pub(crate) struct Liar {
    /// What it has heard and sent.
    heard: VecDeque<Message>,
    /// What it has said.
    pub(crate) lies: u64,
}

impl World {
    /// From now on these nodes lie, whenever they run.
    pub(crate) fn lie_from_now_on(&mut self, liars: impl IntoIterator<Item = usize>) {
        for node in liars {
            self.note(node, || "is a liar".into());
            self.liars.insert(node, Liar::default());
            self.later(PAUSE.start, Happening::Lie(node));
        }
    }

    pub(crate) fn has_liars(&self) -> bool {
        !self.liars.is_empty()
    }

    pub(crate) fn is_liar(&self, node: usize) -> bool {
        self.liars.contains_key(&node)
    }

    /// Whether a node of that name exists and does not lie.
    pub(crate) fn is_innocent(&self, name: &NodeName) -> bool {
        self.find(name).is_some_and(|node| !self.is_liar(node))
    }

    /// The node at that end of a connection, and the one at the other.
    pub(crate) fn between_ends(&self, at: At) -> (usize, Option<usize>) {
        (self.end(at).node, self.other_end(at))
    }

    /// The nodes that run now and do not lie.
    pub(crate) fn innocents(&self) -> impl Iterator<Item = usize> + use<> {
        let up: Vec<usize> = self.running().filter(|node| !self.is_liar(*node)).collect();
        up.into_iter()
    }

    /// What the liars have said so far.
    pub(crate) fn lies(&self) -> u64 {
        self.liars.values().map(|liar| liar.lies).sum()
    }

    /// A liar hears a word, or sends one.
    pub(super) fn overhear(&mut self, node: usize, message: &Message) {
        // Whose presences those are is known from the link they come over: a test tells them apart by what they say.
        if let Some(liar) = self.liars.get_mut(&node)
            && !matches!(message, Message::Presence(_))
        {
            liar.heard.push_back(message.clone());
            if liar.heard.len() > KEPT {
                liar.heard.pop_front();
            }
        }
    }

    /// Whether a node sends what its machines say: a liar leaves out what it likes.
    pub(super) fn withholds(&mut self, node: usize) -> bool {
        self.is_liar(node) && self.rng.random_ratio(1, 30)
    }

    pub(super) fn lie_soon(&mut self, node: usize) {
        let pause = self.random(PAUSE);
        self.later(pause, Happening::Lie(node));
        let up = self.nodes[node].life.as_ref().is_some_and(|life| !life.paused);
        if up {
            self.lie(node);
            self.wake(node);
        }
    }

    fn lie(&mut self, liar: usize) {
        let peers: Vec<usize> = self.life(liar).outlets.keys().copied().collect();
        if peers.is_empty() {
            return;
        }
        if self.rng.random_ratio(1, 300) {
            let peer = peers[self.rng.random_range(0..peers.len())];
            return self.say_goodbye(liar, peer);
        }
        let flood = self.rng.random_ratio(1, 400);
        let one = peers[self.rng.random_range(0..peers.len())];
        let about = self.victim(liar);
        for _ in 0..if flood { FLOOD } else { 1 } {
            let message = self.invent(liar, &about, one);
            let to_all = !flood && self.rng.random_ratio(1, 3);
            for to in peers.iter().filter(|to| to_all || **to == one) {
                let to = self.nodes[*to].name.clone();
                self.send_to(liar, &to, message.clone());
            }
            self.liars.get_mut(&liar).expect("it is one").lies += 1;
        }
    }

    fn say_goodbye(&mut self, liar: usize, peer: usize) {
        use CloseReason::{Disconnected, Left, Misbehaved, Renewed, Revoked, Silent};
        let all = [Left, Renewed, Silent, Misbehaved, Revoked, Disconnected];
        let why = all[self.rng.random_range(0..all.len())];
        if let Some(at) = self.life(liar).outlets.get(&peer).copied() {
            self.part_with(at, why);
        }
    }

    /// Somebody else, or nobody.
    fn victim(&mut self, liar: usize) -> NodeName {
        if self.rng.random_ratio(1, 6) {
            let number = self.rng.random_range(0..4);
            return format!("ghost{number}@h").parse().expect("a name");
        }
        let count = self.nodes.len();
        let other = (liar + self.rng.random_range(1..count)) % count;
        self.nodes[other].name.clone()
    }

    fn invent(&mut self, liar: usize, about: &NodeName, to: usize) -> Message {
        match self.rng.random_range(0..12) {
            0..4 => {
                let row = self.life(liar).topology().row_of(about).cloned();
                let own = self.life(liar).topology().row_of(&self.nodes[liar].name).cloned();
                let value = self.cells();
                Message::Topology(Rc::new(self.table_word::<Links>(
                    liar,
                    about,
                    to,
                    (row, own),
                    value,
                )))
            }
            4..6 => {
                let row = self.life(liar).registry().row(about).cloned();
                let own = self.life(liar).registry().row(&self.nodes[liar].name).cloned();
                let started = self.wall(liar) + self.random(0..1 << 40);
                let value = Profile::new([], [], started).expect("within the bounds");
                Message::Registry(Rc::new(self.table_word::<Profiles>(
                    liar,
                    about,
                    to,
                    (row, own),
                    value,
                )))
            }
            6..8 => Message::Monitor(match self.rng.random_range(0..3) {
                0 => monitor::Word::Ask(about.clone()),
                1 => monitor::Word::Answer(about.clone(), self.rng.random()),
                _ => monitor::Word::Doubted(about.clone()),
            }),
            8..10 => Message::Discovery(Rc::new(self.whereabouts(liar, about))),
            10 => Message::Presence(Rc::new(self.attendance_lie(liar))),
            _ => self.again(liar, about),
        }
    }

    /// What it has heard or sent, once more.
    fn again(&mut self, liar: usize, about: &NodeName) -> Message {
        let heard = self.liars[&liar].heard.len();
        if heard == 0 {
            return Message::Monitor(monitor::Word::Doubted(about.clone()));
        }
        let at = self.rng.random_range(0..heard);
        self.liars[&liar].heard[at].clone()
    }

    fn cells(&mut self) -> Cells {
        let mut cells = BTreeMap::new();
        for node in 0..self.nodes.len() {
            if self.rng.random_ratio(2, 3) {
                let name = self.nodes[node].name.clone();
                cells.insert(name, self.cell());
            }
        }
        for ghost in 0..self.rng.random_range(0..3) {
            cells.insert(format!("ghost{ghost}@h").parse().expect("a name"), self.cell());
        }
        cells
    }

    fn cell(&mut self) -> Cell {
        let states = [Status::Online, Status::Offline, Status::Connecting, Status::Syncing];
        Cell {
            state: states[self.rng.random_range(0..states.len())],
            suspect: self.rng.random(),
            rtt: self.rng.random::<bool>().then_some(1000),
            phi: self.rng.random(),
            since: self.rng.random_range(0..super::WALL * 2),
            reason: self.rng.random::<bool>().then_some(Reason::Crashed),
        }
    }

    /// A mark near what is known, or an absurd one.
    fn mark(&mut self, known: Option<Mark>) -> Mark {
        let Mark { incarnation, version, gone } = known.unwrap_or_default();
        let lives = [
            incarnation.0,
            incarnation.0 + 1,
            incarnation.0.saturating_sub(1),
            1_000_002,
            1 << 48,
            u64::MAX,
        ];
        let versions = [
            version,
            version + 1,
            version + (1 << 20),
            version + (1 << 32) + 1,
            1 << 62,
            0,
            u64::MAX,
        ];
        // Most are of the present life: others are soon seen through.
        let life =
            if self.rng.random_ratio(2, 3) { 0 } else { self.rng.random_range(0..lives.len()) };
        let version = versions[self.rng.random_range(0..versions.len())];
        Mark {
            incarnation: Incarnation(lives[life]),
            version,
            gone: gone || self.rng.random_ratio(1, 8),
        }
    }

    /// A word of a table: forged rows, invented marks, pieces that fit nothing.
    fn table_word<T: Table>(
        &mut self,
        liar: usize,
        about: &NodeName,
        to: usize,
        (known, own): (MaybeRow<T>, MaybeRow<T>),
        value: T::Value,
    ) -> Word<T::Value, T::Change> {
        let me = self.nodes[liar].name.clone();
        let of_itself = self.rng.random_ratio(1, 3);
        let (origin, known) = if of_itself { (me.clone(), own) } else { (about.clone(), known) };
        let mark = self.mark(known.as_ref().map(Row::mark));
        let Mark { incarnation, version, .. } = mark;
        match self.rng.random_range(0..9) {
            0..4 => {
                let by = if self.rng.random() { me.clone() } else { origin.clone() };
                let at = self.wall(liar).saturating_sub(self.random(0..1 << 20));
                let state = if mark.gone { State::Gone { at, by } } else { State::Live(value) };
                let mut row = Row { origin, incarnation, version, state, seal: None };
                row.seal = match known.and_then(|known| known.seal) {
                    Some(of_another_row) if self.rng.random_ratio(1, 4) => Some(of_another_row),
                    _ => Some(seal(&me, &statement::<T>(&row))),
                };
                Word::Rows(vec![row])
            }
            4 => {
                let values =
                    Values { salt: self.rng.random(), hashes: vec![Some(self.rng.random())] };
                let (marks, more) = (vec![(origin, mark)], self.rng.random());
                Word::Marks { after: None, marks, more, values }
            }
            5 => {
                let about_the_receiver = self.nodes[to].name.clone();
                Word::News(vec![(origin, mark), (about_the_receiver, mark)])
            }
            6 => Word::Want(self.nodes.iter().map(|node| node.name.clone()).collect()),
            7 => Word::Digest(self.rng.random()),
            _ => {
                let change = T::parts(&value, 1024).into_iter().next();
                let Some(change) = change else { return Word::Want(vec![origin]) };
                let from = known.map_or(0, |known| known.version);
                if self.rng.random() {
                    let signature = vec![0; 8];
                    Word::Delta { origin, incarnation, from, to: version, change, signature }
                } else {
                    let parts = self.rng.random_range(1..4);
                    let part = self.rng.random_range(0..parts);
                    Word::Part {
                        origin,
                        incarnation,
                        version,
                        part,
                        parts,
                        adds: change,
                        seal: None,
                    }
                }
            }
        }
    }

    fn whereabouts(&mut self, liar: usize, about: &NodeName) -> discovery::Word {
        match self.rng.random_range(0..6) {
            0 => discovery::Word::Show(about.clone()),
            1 => discovery::Word::Shown(self.sealed(liar)),
            _ => {
                let somewhere = self.rng.random_range(0..self.nodes.len() + 20);
                let known = self.nodes.get(somewhere).map(|node| node.address);
                let nowhere: SocketAddr = address(somewhere, 4697);
                let [earlier, later] = [0, 5].map(|at| self.rng.random_range(0..=at));
                let life = [0, 1, later, 1 << 48, earlier][self.rng.random_range(0..5)];
                let contact = Contact {
                    name: about.clone(),
                    address: known.unwrap_or(nowhere),
                    incarnation: Incarnation(life),
                };
                discovery::Word::Contacts(vec![contact])
            }
        }
    }

    /// About its own presences: it can say what it likes of those.
    fn attendance_lie(&mut self, liar: usize) -> presence::Word {
        let life = self.life(liar).incarnation;
        let boot = self.rng.random_range(0..3);
        let epoch = Epoch { life: Incarnation(life.0 + self.rng.random_range(0..2)), boot };
        let [clock, after] = [0, 1].map(|_| self.rng.random_range(0..6));
        let name = self.nodes[liar].name.clone();
        let body = presence::Body {
            topic: topics()[self.rng.random_range(0..2)].clone(),
            key: format!("k{clock}"),
            meta: format!("{{\"at\":\"{name}\",\"n\":{}}}", self.rng.random::<u32>()),
            previous: self.rng.random::<bool>().then_some(after),
        };
        match self.rng.random_range(0..4) {
            0 => presence::Word::Digest { epoch, clock },
            1 => presence::Word::Ask { epoch, have: clock, after, upto: Some(clock) },
            2 => presence::Word::Page(presence::Page {
                epoch,
                clock,
                after,
                through: clock.max(after),
                still: vec![after],
                entries: vec![(after + 1, body)],
            }),
            _ => {
                let left = presence::Change::Left(clock);
                let changes = vec![presence::Change::Joined(body), left];
                presence::Word::Delta { epoch, after, changes }
            }
        }
    }

    /// A liar's hello may bring a later life than it has.
    pub(super) fn distort(&mut self, node: usize, hello: &mut Hello) {
        if self.is_liar(node) && self.rng.random_ratio(1, 10) {
            hello.incarnation.0 += [1, 1000, 1 << 40][self.rng.random_range(0..3)];
        }
    }

    /// Why a liar refuses an attempt that it was to answer, if it does.
    pub(super) fn refuses(&mut self, at: At) -> Option<Refusal> {
        let node = self.end(at).node;
        if !self.is_liar(node) || self.rng.random_ratio(7, 10) {
            return None;
        }
        let linked = self.rng.random::<bool>().then(|| self.nodes[node].address);
        let known = [1, 2, 7, 1 << 19, 1 << 50][self.rng.random_range(0..5)];
        let stale = Refusal::Stale { known: Incarnation(known), linked };
        let all = [stale, stale, Refusal::Crossed, Refusal::Unexpected, Refusal::Name];
        Some(all[self.rng.random_range(0..all.len())])
    }
}
