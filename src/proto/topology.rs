//! Who sees whom: the directed link matrix of the whole cluster, as this node knows it.
//!
//! The machine behind TopologyTracker: a table of [`rows`]. Every node is the origin of one row: a cell for
//! each peer it knows, with the state of its side of the link. The exchange, its bounds and its invariants are those of
//! rows; what is said here is what the topology adds.
//!
//! # What is its own
//! ```text
//! measurements  round trips that changed by more than half travel together, every 10 s, with many peers later; a state, a doubt and a
//!               reason travel at once
//! no link       of those who heard a row first-hand and reach a peer that its origin does not, three name it there:
//!               the first ones after that peer on the ring of names
//! what left     makes a tombstone of its own row; those linked with it make one in any case. For 24 h it keeps that life and
//!               earlier ones away, for its first hour others are informed of the one that the node made
//! ```
//!
//! # Invariants
//! 1. A cell of our row differs from the last input in measurements alone.
//! 2. A row has at most 1024 cells, and no time more than a day ahead.
//! 3. What left does not come back within 24 h by this node's clock, except in a later life, on a link, or where its place
//!    was needed.
//! 4. A linked life has a row, if need be an empty one; that of an earlier life is gone.

use std::collections::BTreeMap;
use std::mem;
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

use crate::proto::codec;
use crate::proto::event::{Reason, Status};
use crate::proto::node::{Incarnation, NodeName};
use crate::proto::rows::{self, HEAD, MAX_ROWS, MAX_WORD, Rows, State, Table, Tombstones};
use crate::proto::seal::Seals;

mod matrix;
mod side;
pub mod tracker;
pub use matrix::{Edge, Matrix};
pub use side::{Side, Sides};
pub use tracker::Tracker;

/// Between two times that measurements travel, at least.
const MEASURE: Duration = Duration::from_secs(10);
/// With many peers it is so long for each of them: the price of a node does not grow with the cluster.
const MEASURE_PEER: Duration = Duration::from_millis(500);
/// Among so many peers a row waits for the link that is on its way.
const MANY: usize = 10;

/// One node's side of one link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// The peer's status.
    pub state: Status,
    /// Whether it is doubted.
    pub suspect: bool,
    /// Round trip in microseconds, when it was measured.
    pub rtt: Option<u32>,
    /// Suspicion level times 100.
    pub phi: u32,
    /// Since when the state holds, in milliseconds since 1970 by the origin's clock.
    pub since: u64,
    /// Why it is offline.
    pub reason: Option<Reason>,
}

impl Cell {
    /// What is not a measurement.
    fn standing(&self) -> (Status, bool, Option<Reason>) {
        (self.state, self.suspect, self.reason)
    }

    fn is_up(&self) -> bool {
        self.state == Status::Online
    }

    /// Whether the link is on its way: then each of the two will hear the other itself.
    fn is_coming(&self) -> bool {
        matches!(self.state, Status::Connecting | Status::Syncing)
    }
}

/// A node's side of its links.
pub type Cells = BTreeMap<NodeName, Cell>;
/// Cells of a row that differ; `None` is gone.
pub type Changes = Vec<(NodeName, Option<Cell>)>;
/// The latest known row of an origin.
pub type Row = rows::Row<Cells>;
/// What trackers send each other.
pub type Word = rows::Word<Cells, Changes>;
/// What the machine receives. Its own cells are the states of this node's side of its links, peer by peer; give every
/// measurement, few travel. `None` for a peer that is known no more.
pub type Input = rows::Input<Cells, Changes>;
/// What the machine wants done.
pub type Output = rows::Output<Cells, Changes>;

impl Row {
    /// The cell for each peer that the origin knows.
    pub fn cells(&self) -> &Cells {
        static NONE: Cells = Cells::new();
        self.value().unwrap_or(&NONE)
    }
}

/// The table of the topology.
#[derive(Debug)]
pub struct Links;

impl Table for Links {
    type Value = Cells;
    type Change = Changes;

    const KIND: &'static str = "topology";
    const DIGEST: Duration = Duration::from_secs(1);
    const ROUND: Option<Duration> = Some(Duration::from_secs(30));
    const FIRST_DIGEST: Duration = Duration::from_millis(50);
    const RETRY: Duration = Duration::from_secs(1);
    const RELAYS: usize = 3;
    const TOMBSTONES: Tombstones = Tombstones::Final;
    const TOMBSTONE: Duration = Duration::from_secs(24 * 3600);

    fn size(cells: &Cells) -> usize {
        cells.keys().map(|name| name.as_str().len() + 27).sum()
    }

    fn length(changes: &Changes) -> usize {
        changes.len()
    }

    fn parts(cells: &Cells, limit: usize) -> Vec<Changes> {
        let cells = cells.iter().map(|(peer, cell)| (peer.clone(), Some(cell.clone())));
        codec::chunks(MAX_ROWS, cells, limit, change_size)
    }

    fn apply(cells: &mut Cells, changes: Changes, latest: u64) -> Option<&'static str> {
        let mut broken = None;
        for (peer, cell) in changes {
            match cell {
                None => drop(cells.remove(&peer)),
                Some(mut cell) if cells.len() < MAX_ROWS || cells.contains_key(&peer) => {
                    broken = broken.or(clamp(&mut cell, latest));
                    cells.insert(peer, cell);
                }
                Some(_) => broken = Some("too many cells"),
            }
        }
        broken
    }

    fn bound(cells: &mut Cells, latest: u64) -> Option<&'static str> {
        let mut broken = None;
        while cells.len() > MAX_ROWS {
            cells.pop_last();
            broken = Some("too many cells");
        }
        cells.values_mut().fold(broken, |broken, cell| broken.or(clamp(cell, latest)))
    }

    /// Linked peers that the origin does not reach, nor is about to. Of a row that came first-hand, those that it is on
    /// this node to inform.
    fn relays(rows: &Rows<Self>, row: &Row, source: &NodeName) -> Vec<NodeName> {
        let first_hand = *source == row.origin;
        // Both in order of names: one walk along them instead of a search for each peer.
        let mut cells = row.cells().iter().peekable();
        let mut reaches = |peer: &NodeName| {
            while cells.next_if(|(name, _)| *name < peer).is_some() {}
            let cell = cells.peek().filter(|(name, _)| *name == peer);
            cell.is_some_and(|(_, cell)| cell.is_up() || cell.is_coming())
        };
        let lacks = |peer: &&NodeName| {
            !reaches(peer)
                && **peer != row.origin
                && *peer != source
                && (!first_hand || on_duty(rows, row, peer))
        };
        rows.peers().filter(lacks).cloned().collect()
    }

    fn is_awaited(rows: &Rows<Self>, origin: &NodeName) -> bool {
        let cells = rows.row(&rows.me).map(Row::cells);
        let many = cells.filter(|cells| cells.len() >= MANY);
        many.and_then(|cells| cells.get(origin)).is_some_and(Cell::is_coming)
    }

    /// The row of an origin that nobody reaches. Of most origins the first row shows at once that somebody does.
    fn spare(rows: &Rows<Self>) -> Option<NodeName> {
        let is_reached = |origin: &NodeName| {
            let mut cells = rows.rows().filter_map(|row| row.cells().get(origin));
            cells.any(|cell| cell.state != Status::Offline)
        };
        let mut origins = rows.rows().map(|row| &row.origin).filter(|origin| **origin != rows.me);
        let spare = origins.find(|origin| !rows.is_linked(origin) && !is_reached(origin));
        spare.cloned()
    }
}

fn clamp(cell: &mut Cell, latest: u64) -> Option<&'static str> {
    let ahead = cell.since > latest;
    cell.since = cell.since.min(latest);
    ahead.then_some("time in the far future")
}

/// What a cell needs on the wire, at most.
fn change_size((name, _): &(NodeName, Option<Cell>)) -> usize {
    name.as_str().len() + 28
}

/// Whether this node is one of the three that name that row to `peer`: the first ones after it, on the ring of names,
/// of those that the origin and the peer both reach.
fn on_duty(rows: &Rows<Links>, row: &Row, peer: &NodeName) -> bool {
    let Some(reach) = rows.row(peer) else { return true };
    let after = (Bound::Excluded(peer), Bound::Unbounded);
    let (segment, wrapped) = if *peer < rows.me {
        (row.cells().range::<NodeName, _>((after.0, Bound::Excluded(&rows.me))), None)
    } else {
        let before = row.cells().range::<NodeName, _>(..&rows.me);
        (row.cells().range::<NodeName, _>(after), Some(before))
    };
    let between = segment.chain(wrapped.into_iter().flatten());
    let both = between
        .filter(|(name, cell)| cell.is_up() && reach.cells().get(*name).is_some_and(Cell::is_up));
    both.take(Links::RELAYS).count() < Links::RELAYS
}

/// The machine.
#[derive(Debug)]
pub struct Topology {
    rows: Rows<Links>,
    /// Measurements that wait until they may travel.
    measured: Cells,
    /// When they may.
    next_measured: Instant,
    version: u64,
}

impl Topology {
    /// A node that sees nobody yet. `wall` is in milliseconds since 1970; draw `first`, the first version of its row,
    /// above 0 (see [`Rows::new`]).
    pub fn new(
        me: NodeName,
        incarnation: Incarnation,
        first: u64,
        now: Instant,
        wall: u64,
        rng: StdRng,
        seals: Box<dyn Seals>,
    ) -> Self {
        let state = State::Live(Cells::new());
        let own = Row { origin: me, incarnation, version: first, state, seal: None };
        let rows = Rows::new(own, [], now, wall, rng, seals);
        Self { rows, measured: Cells::new(), next_measured: now + MEASURE, version: 1 }
    }

    /// The latest rows, this node's own among them, without those of whom left.
    pub fn rows(&self) -> impl Iterator<Item = &Arc<Row>> {
        self.rows.rows().filter(|row| row.value().is_some())
    }

    /// The latest row of an origin, unless it left.
    pub fn row_of(&self, origin: &NodeName) -> Option<&Row> {
        self.shared_row_of(origin).map(Arc::as_ref)
    }

    fn shared_row_of(&self, origin: &NodeName) -> Option<&Arc<Row>> {
        self.rows.rows.get(origin).filter(|row| row.value().is_some())
    }

    /// Nodes of which there is no row because they left, or are forgotten.
    fn gone(&self) -> impl Iterator<Item = &NodeName> {
        self.rows.rows().filter(|row| row.value().is_none()).map(|row| &row.origin)
    }

    /// Whether that node stated anything, or was linked here.
    fn knows(&self, node: &NodeName) -> bool {
        self.rows.row(node).is_some()
    }

    /// Every known cell: from whom, to whom, what.
    pub fn matrix(&self) -> impl Iterator<Item = (&NodeName, &NodeName, &Cell)> {
        self.rows().flat_map(|row| row.cells().iter().map(move |(to, c)| (&row.origin, to, c)))
    }

    /// Counts the changes of the view.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Equal on two nodes that know the same rows.
    pub fn agreement(&self) -> u64 {
        self.rows.agreement()
    }

    /// Since when a linked peer has lacked rows that are known here, if one does.
    pub fn apart(&self) -> Option<Instant> {
        self.rows.apart()
    }

    /// See [`Rows::paced`].
    fn paced(&self, wait: Duration) -> Duration {
        self.rows.paced(wait)
    }

    /// When the machine wants its next [`Input::Tick`].
    pub fn deadline(&self) -> Option<Instant> {
        self.rows.deadline()
    }

    /// Takes one input and appends what follows from it.
    pub fn handle(&mut self, input: Input, now: Instant, out: &mut Vec<Output>) {
        let before = out.len();
        if let Input::Own(cells) = input {
            self.own(cells, now, out);
        } else {
            let due = now >= self.next_measured && !self.measured.is_empty();
            if due && matches!(input, Input::Tick { .. }) {
                let peers = u32::try_from(self.rows.peers().count()).unwrap_or(u32::MAX);
                self.next_measured = now + MEASURE.max(MEASURE_PEER * peers);
                let measured = mem::take(&mut self.measured);
                self.state(measured.into_iter().map(|(peer, cell)| (peer, Some(cell))), now, out);
            }
            self.rows.handle(input, now, out);
        }
        let changed = |output: &&Output| matches!(output, Output::Changed(_));
        self.version += out.iter().skip(before).filter(changed).map(|_| 1).sum::<u64>();
    }

    /// Takes what is news among these cells, and sends all of it at once.
    fn own(&mut self, cells: Changes, now: Instant, out: &mut Vec<Output>) {
        let Self { rows, measured, .. } = self;
        let Some(own) = rows.row(&rows.me).map(Row::cells) else { return };
        let (mut room, mut news) = (MAX_ROWS.saturating_sub(own.len()), Vec::new());
        for (peer, cell) in cells {
            let old = own.get(&peer);
            measured.remove(&peer);
            match (old, cell) {
                (None, None) => {}
                (Some(old), Some(cell)) if old.standing() == cell.standing() => {
                    if moved(old.rtt, cell.rtt) {
                        measured.insert(peer, cell);
                    }
                }
                (None, Some(_)) if room == 0 => {}
                (old, cell) => {
                    room -= usize::from(old.is_none());
                    news.push((peer, cell));
                }
            }
        }
        self.state(news, now, out);
    }

    /// Has this node state these cells.
    fn state(
        &mut self,
        cells: impl IntoIterator<Item = (NodeName, Option<Cell>)>,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        for cells in codec::chunks(MAX_ROWS, cells, MAX_WORD - HEAD, change_size) {
            self.rows.handle(Input::Own(cells), now, out);
        }
    }
}

/// Whether a round trip changed by more than half, and by more than a millisecond.
fn moved(old: Option<u32>, new: Option<u32>) -> bool {
    match (old, new) {
        (Some(old), Some(new)) => old.abs_diff(new) > (old / 2).max(1000),
        (old, new) => old != new,
    }
}

#[cfg(test)]
mod tests;
