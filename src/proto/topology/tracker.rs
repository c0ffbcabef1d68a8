//! What goes into the topology machine, and what is shown of it: all of TopologyTracker but its mailbox.
//!
//! # Protocol
//! ```text
//! Notice::Up, Message, Down   Linked, Received, Unlinked of the machine
//! look                      the peers' view became own cells, 20 ms after the first change of a burst; a peer that left,
//!                           and a later own life, are announced
//! Notice::Revoked           rows of revoked nodes are dropped
//! Notice::Equivocation      what the registry found to be proven of a node holds here as well
//! Notice::Forgotten           look, then the tombstone of a node that is no peer
//! Output::Show              what is new is shown 20 ms after the first change of a burst
//! many peers                the next look, or show, is later: with n of them 4 n ms after the one before, at most 500 ms,
//!                           and up to eight times as long while links are on their way; what the machine does by itself
//!                           waits for that look, and goes to each peer with it
//! ```
//!
//! # Invariants
//! 1. Own cells are those of the last look; a peer that is in no view has none.
//! 2. What changed in another node's row becomes one event, once it is shown: of a burst of changes what came of it.
//! 3. No peer is shown of which it is said that it is forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::proto::event::{Event, Reason, Status};
use crate::proto::node::NodeName;
use crate::proto::rows::BURST;
use crate::proto::topology::{self, Input, Matrix, Row, Side, Sides, Topology, Word, matrix};
use crate::proto::wiring::{Ask, Notice};

/// A row of another node is told when it has not changed for so long; with many peers that wait is longer, up to half of
/// [`LATEST`].
const QUIET: Duration = Duration::from_millis(100);
/// It is told so long after its first change that was not told, at the latest.
const LATEST: Duration = Duration::from_secs(2);
/// While links are on their way a wait is up to so many times as long.
const FORMING: usize = 8;

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Send this to a linked peer.
    Send(NodeName, Word),
    /// A peer broke a rule: count it.
    Charge(NodeName, &'static str),
    /// Ask NodeManager.
    Ask(Ask),
    /// Announce this.
    Announce(Event),
}

/// The tracker.
#[derive(Debug)]
pub struct Tracker {
    me: NodeName,
    machine: Topology,
    sides: Arc<Sides>,
    look: Pace,
    show: Pace,
    /// Other nodes' rows as they were told last, once there was a view.
    told: Option<BTreeMap<NodeName, Arc<Row>>>,
    /// Those that changed since then: when first, and when last.
    untold: BTreeMap<NodeName, (Instant, Instant)>,
}

/// When something is done once for a burst of changes.
#[derive(Debug, Default)]
struct Pace {
    at: Option<Instant>,
    rests: Option<Instant>,
}

impl Pace {
    /// Something changed.
    fn soon(&mut self, now: Instant) {
        self.at(now + BURST);
    }

    /// It is wanted at that time.
    fn at(&mut self, at: Instant) {
        let at = self.rests.into_iter().fold(at, Instant::max);
        self.at = self.at.into_iter().chain([at]).min();
    }

    /// Whether it is due, and done.
    fn take(&mut self, now: Instant) -> bool {
        self.at.take_if(|at| *at <= now).is_some()
    }
}

impl Tracker {
    /// A tracker that has not looked yet.
    pub fn new(me: NodeName, machine: Topology) -> Self {
        Self {
            me,
            machine,
            sides: Arc::default(),
            look: Pace::default(),
            show: Pace::default(),
            told: None,
            untold: BTreeMap::new(),
        }
    }

    /// The machine, to read.
    pub fn machine(&self) -> &Topology {
        &self.machine
    }

    /// Takes news of a link or a node. `sides` is read when it matters.
    pub fn handle(
        &mut self,
        news: Notice<Word>,
        sides: impl FnOnce() -> Arc<Sides>,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        match news {
            Notice::Up(peer, life) => self.input(Input::Linked(peer, life), now, out),
            Notice::Message(peer, word) => self.input(Input::Received(peer, word), now, out),
            Notice::Down(peer, _) => self.input(Input::Unlinked(peer), now, out),
            Notice::Forgotten(node) => self.forget(node, sides(), now, out),
            Notice::Renewed(life) => self.input(Input::Renewed(life), now, out),
            Notice::Changed => self.look.soon(now),
            Notice::Revoked => self.input(Input::Revoked, now, out),
            Notice::Equivocation(proof) => self.input(Input::Equivocation(proof), now, out),
            Notice::Offline(_) => {}
        }
    }

    /// This node leaves: its own row ends.
    pub fn leave(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.input(Input::Leaving, now, out);
    }

    /// Whether that node stated anything, or is or was a peer here.
    pub fn knows(&self, node: &NodeName) -> bool {
        knows(&self.machine, &self.sides, node)
    }

    /// Brings the machine up to what is seen now.
    pub fn look(&mut self, sides: Arc<Sides>, now: Instant, out: &mut Vec<Output>) {
        self.look.at = None;
        let version = self.machine.version();
        let before = std::mem::replace(&mut self.sides, sides.clone());
        let gone = before.keys().filter(|peer| !sides.contains_key(*peer));
        let mut cells: Vec<_> = gone.map(|peer| (peer.clone(), None)).collect();
        // Of a side that is as it was nothing follows, unless there was no room for it.
        let all = self.machine.row_of(&self.me).is_none_or(|row| row.cells().len() < before.len());
        for (peer, side) in sides.iter() {
            let old = before.get(peer);
            if !all && old == Some(side) {
                continue;
            }
            let left = side.cell.reason == Some(Reason::Left);
            if left && old.is_none_or(|old| old.cell.reason != side.cell.reason) {
                self.input(Input::Gone(peer.clone(), side.incarnation), now, out);
            }
            cells.push((peer.clone(), Some(side.cell.clone())));
        }
        self.input(Input::Own(cells), now, out);
        if self.machine.version() != version {
            self.look.rests = Some(now + self.rest());
        }
    }

    /// How long the next look, or show, is after this one: with many peers longer, the more of them are on their way.
    fn rest(&self) -> Duration {
        let rest = self.machine.paced(BURST);
        if rest == BURST {
            return rest;
        }
        let forms = |side: &&Side| matches!(side.cell.state, Status::Connecting | Status::Syncing);
        let forming = self.sides.values().filter(forms).take(FORMING - 1).count();
        rest * u32::try_from(1 + forming).unwrap_or(1)
    }

    /// A node is forgotten: what it said of its links is, too.
    fn forget(&mut self, node: NodeName, sides: Arc<Sides>, now: Instant, out: &mut Vec<Output>) {
        let side = self.sides.get(&node).map(|side| side.incarnation);
        self.look(sides, now, out);
        let row = self.machine.row_of(&node).map(|row| row.incarnation);
        if let Some(life) = side.max(row).filter(|_| !self.sides.contains_key(&node)) {
            self.input(Input::Gone(node, life), now, out);
        }
        self.show.at = Some(now);
    }

    /// When [`Tracker::tick`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        [self.look.at, self.show.at, self.step_at()].into_iter().flatten().min()
    }

    /// When the machine does what is due by itself: not between two looks. While links come by the second, news of
    /// others' rows and changes of the own one are for the same peers.
    fn step_at(&self) -> Option<Instant> {
        self.machine.deadline().map(|at| self.look.rests.into_iter().fold(at, Instant::max))
    }

    /// Does what is due. True when the matrix is to be shown.
    pub fn tick(
        &mut self,
        sides: impl FnOnce() -> Arc<Sides>,
        wall: u64,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> bool {
        let step = self.step_at().is_some_and(|at| at <= now);
        if self.look.take(now) {
            self.look(sides(), now, out);
        }
        if step {
            self.input(Input::Tick { wall }, now, out);
        }
        self.show.take(now)
    }

    /// The matrix without the forgotten nodes, and what is to be told of other nodes' rows. `before` is what an earlier
    /// tracker showed last, if this one has shown nothing.
    pub fn show(
        &mut self,
        before: &Matrix,
        forgotten: BTreeSet<NodeName>,
        now: Instant,
    ) -> (Matrix, Vec<Event>) {
        self.show.rests = Some(now + self.rest());
        let matrix = Matrix {
            version: self.machine.version(),
            agreement: self.machine.agreement(),
            apart: self.machine.apart(),
            rows: self.machine.rows().cloned().collect(),
            gone: self.machine.gone().cloned().collect(),
            sides: self.sides.clone(),
            forgotten,
        };
        self.told.get_or_insert_with(|| {
            before.rows().map(|row| (row.origin.clone(), Arc::clone(row))).collect()
        });
        (matrix, self.due_events(now))
    }

    /// Tells of the rows that have not changed for a while, or not been told for long.
    fn due_events(&mut self, now: Instant) -> Vec<Event> {
        let (machine, sides, mut events) = (&self.machine, &self.sides, Vec::new());
        let due = |(first, last): &(Instant, Instant)| due(machine, *first, *last);
        let Some(told) = &mut self.told else { return events };
        self.untold.retain(|origin, changed| {
            let keep = due(changed) > now;
            if !keep {
                match machine.shared_row_of(origin) {
                    Some(row) => {
                        let before = told.get(origin).map(Arc::as_ref);
                        events.extend(matrix::news(before, row, |it| knows(machine, sides, it)));
                        told.insert(origin.clone(), Arc::clone(row));
                    }
                    None => drop(told.remove(origin)),
                }
            }
            keep
        });
        let next = self.untold.values().map(due).min();
        next.into_iter().for_each(|at| self.show.at(at));
        events
    }

    fn input(&mut self, input: Input, now: Instant, out: &mut Vec<Output>) {
        let mut outputs = Vec::new();
        self.machine.handle(input, now, &mut outputs);
        for output in outputs {
            match output {
                topology::Output::Send(peer, word) => out.push(Output::Send(peer, word)),
                topology::Output::Changed(origin) => {
                    self.show.soon(now);
                    if origin != self.me {
                        self.untold.entry(origin).or_insert((now, now)).1 = now;
                    }
                }
                topology::Output::Gone { .. } | topology::Output::Revived(_) => {}
                topology::Output::Equivocation(key, proof) => {
                    out.extend(proof.event(key).map(Output::Announce));
                }
                topology::Output::Charge(peer, rule) => out.push(Output::Charge(peer, rule)),
                topology::Output::Cut(peer) => out.push(Output::Ask(Ask::Cut(peer))),
            }
        }
    }
}

fn knows(machine: &Topology, sides: &Sides, node: &NodeName) -> bool {
    machine.knows(node) || sides.contains_key(node)
}

/// When a row is told that changed then for the first time, and for the last time.
fn due(machine: &Topology, first: Instant, last: Instant) -> Instant {
    (last + machine.paced(QUIET).min(LATEST / 2)).min(first + LATEST)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing, reason = "an index that is off is a failed test")]

    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::proto::event::Tally;
    use crate::proto::node::Incarnation;
    use crate::proto::tests::network::{ms, name, node};
    use crate::proto::tests::seals::Toy;
    use crate::proto::tests::start;
    use crate::proto::topology::Cell;

    fn tracker(now: Instant) -> Tracker {
        let me = name("a@h");
        let rng = StdRng::seed_from_u64(1);
        let machine =
            Topology::new(me.clone(), Incarnation(1), 1, now, 0, rng, Box::new(Toy(me.clone())));
        Tracker::new(me, machine)
    }

    fn up(tracker: &mut Tracker, peer: NodeName, now: Instant) {
        let up = Notice::Up(peer, Incarnation(1));
        tracker.handle(up, || panic!("no look"), now, &mut Vec::new());
    }

    fn cell(state: Status) -> Cell {
        Cell { state, suspect: false, rtt: None, phi: 0, since: 0, reason: None }
    }

    #[test]
    fn a_peer_that_is_in_no_view_any_more_has_no_side() {
        let now = start();
        let mut tracker = tracker(now);
        let [b, c] = ["b@h", "c@h"].map(name);
        let side = Side { incarnation: Incarnation(1), cell: cell(Status::Online) };
        let both = Sides::from([(b.clone(), side.clone()), (c.clone(), side.clone())]);
        let own =
            |it: &Tracker| it.machine().matrix().map(|(_, to, _)| to.clone()).collect::<Vec<_>>();
        tracker.look(Arc::new(both), now, &mut Vec::new());
        assert_eq!(own(&tracker), [b.clone(), c]);
        tracker.look(Arc::new(Sides::from([(b.clone(), side)])), now, &mut Vec::new());
        assert_eq!(own(&tracker), [b]);
    }

    #[test]
    fn a_burst_of_changes_is_looked_at_once() {
        let now = start();
        let mut tracker = tracker(now);
        for after in [0, 10, 19] {
            let at = now + ms(after);
            tracker.handle(Notice::Changed, || panic!("not yet"), at, &mut Vec::new());
            tracker.tick(|| panic!("not yet"), 0, at, &mut Vec::new());
        }
        let mut looks = 0;
        for after in [BURST, BURST * 2] {
            let look = || {
                looks += 1;
                Arc::default()
            };
            tracker.tick(look, 0, now + after, &mut Vec::new());
        }
        assert_eq!(looks, 1);
    }

    /// How long after a first change with so many peers, to that state, the next one is looked at.
    fn next_look(peers: usize, first: Status) -> Duration {
        let now = start();
        let mut tracker = tracker(now);
        (0..peers).for_each(|at| up(&mut tracker, node(at), now));
        let (mut sides, mut looks, mut at) = (Sides::new(), Vec::new(), now);
        for state in [first, Status::Online] {
            tracker.handle(Notice::Changed, || panic!("no look"), at, &mut Vec::new());
            sides.insert(node(0), Side { incarnation: Incarnation(1), cell: cell(state) });
            at = tracker.look.at.expect("a look is due");
            tracker.tick(|| Arc::new(sides.clone()), 0, at, &mut Vec::new());
            looks.push(at);
        }
        assert_eq!(looks[0], now + BURST, "the first one is looked at as soon with many peers");
        looks[1] - looks[0]
    }

    #[test]
    fn with_many_peers_the_next_change_waits_longer() {
        assert_eq!([9, 50, 300].map(|it| next_look(it, Status::Offline)), [20, 200, 500].map(ms));
        let forms = [Status::Connecting, Status::Syncing];
        for state in forms {
            assert_eq!([9, 50, 300].map(|it| next_look(it, state)), [20, 400, 1000].map(ms));
        }
    }

    #[test]
    fn news_of_others_waits_for_the_next_look_and_goes_with_it() {
        let now = start();
        let mut tracker = tracker(now);
        (0..50).for_each(|at| up(&mut tracker, node(at), now));
        let side = |state| Side { incarnation: Incarnation(1), cell: cell(state) };
        let change = |tracker: &mut Tracker, at| {
            tracker.handle(Notice::Changed, || panic!("no look"), at, &mut Vec::new());
        };
        change(&mut tracker, now);
        let sides = Sides::from([(node(0), side(Status::Syncing))]);
        tracker.tick(|| Arc::new(sides), 0, now + BURST, &mut Vec::new());
        // A row that its origin has sent, and that the others lack.
        let row = topology::Row {
            origin: node(1),
            incarnation: Incarnation(1),
            version: 7,
            state: crate::proto::rows::State::Live([(name("a@h"), cell(Status::Online))].into()),
            seal: None,
        };
        let message = Notice::Message(node(1), Word::Rows(vec![row]));
        tracker.handle(message, || panic!("no look"), now + BURST, &mut Vec::new());
        change(&mut tracker, now + BURST);
        let next = tracker.look.at.expect("a look is due");
        assert!(next > now + ms(200), "with many peers it is late");
        let sides = Sides::from([(node(0), side(Status::Online))]);
        let (mut news, mut deltas) = (Vec::new(), Vec::new());
        while let Some(at) = tracker.deadline().filter(|at| *at <= next) {
            let mut out = Vec::new();
            tracker.tick(|| Arc::new(sides.clone()), 0, at, &mut out);
            let sent = |of: fn(&Word) -> bool| {
                out.iter().any(|it| matches!(it, Output::Send(_, word) if of(word)))
            };
            news.extend(sent(|word| matches!(word, Word::News(_))).then_some(at));
            deltas.extend(sent(|word| matches!(word, Word::Delta { .. })).then_some(at));
        }
        assert_eq!((news, deltas), (vec![next], vec![next]));
    }

    /// Deltas of b@h.
    struct B {
        tracker: Tracker,
        version: u64,
        shown: Matrix,
    }

    impl B {
        fn says(&mut self, cells: &[(&str, Status)], now: Instant) {
            let change = cells.iter().map(|(to, state)| (name(to), Some(cell(*state)))).collect();
            let (from, to) = (self.version, self.version + 1);
            self.version = to;
            let (origin, incarnation) = (name("b@h"), Incarnation(1));
            let word = Word::Delta { origin, incarnation, from, to, change, signature: Vec::new() };
            let message = Notice::Message(name("b@h"), word);
            self.tracker.handle(message, || panic!("no look"), now, &mut Vec::new());
        }

        /// What is told until then, and when.
        fn events_until(&mut self, until: Instant) -> Vec<(Instant, Event)> {
            let mut told = Vec::new();
            while let Some(now) = self.tracker.deadline().filter(|at| *at <= until) {
                if self.tracker.tick(Arc::default, 0, now, &mut Vec::new()) {
                    let (matrix, events) = self.tracker.show(&self.shown, BTreeSet::new(), now);
                    self.shown = matrix;
                    told.extend(events.into_iter().map(|event| (now, event)));
                }
            }
            told
        }
    }

    #[test]
    fn what_changed_in_a_row_is_one_event_when_it_rests() {
        use Status::{Connecting, Offline, Online};
        let now = start();
        let mut b = B { tracker: tracker(now), version: 0, shown: Matrix::default() };
        ["b@h", "c@h", "d@h", "e@h"]
            .into_iter()
            .for_each(|peer| up(&mut b.tracker, name(peer), now));
        b.says(&[("x@h", Online), ("c@h", Connecting), ("d@h", Connecting), ("e@h", Offline)], now);
        assert_eq!(b.events_until(now + ms(90)), []);
        b.says(&[("c@h", Online), ("d@h", Online)], now + ms(90));
        let links = Tally { online: 2, offline: 1, ..Tally::default() };
        let several = Event::LinksChanged { from: name("b@h"), links };
        assert_eq!(b.events_until(now + ms(1000)), [(now + ms(190), several)]);
        b.says(&[("c@h", Offline)], now + ms(1000));
        let one = Event::LinkChanged {
            from: name("b@h"),
            to: name("c@h"),
            state: Offline,
            suspect: false,
            reason: None,
        };
        assert_eq!(b.events_until(now + ms(2000)), [(now + ms(1100), one)]);
        // There and back again is no news.
        b.says(&[("c@h", Online)], now + ms(2000));
        b.says(&[("c@h", Offline)], now + ms(2050));
        assert_eq!(b.events_until(now + ms(3000)), []);
    }

    #[test]
    fn a_row_that_never_rests_is_told_now_and_then() {
        let now = start();
        let mut b = B { tracker: tracker(now), version: 0, shown: Matrix::default() };
        up(&mut b.tracker, name("b@h"), now);
        (0..200).for_each(|at| up(&mut b.tracker, node(at), now));
        let mut told = 0;
        for step in 0..200_u64 {
            let peer = node(usize::try_from(step).expect("few"));
            b.says(&[(peer.as_str(), Status::Online)], now + ms(50 * step));
            told += b.events_until(now + ms(50 * step + 49)).len();
        }
        assert!((4..=5).contains(&told), "{told} events in 10 s");
    }
}
