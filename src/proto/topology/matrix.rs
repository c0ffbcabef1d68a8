//! The link matrix as readers see it, and what is new in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use rand::rngs::StdRng;

use crate::proto::event::{Event, Tally};
use crate::proto::heartbeat::WITNESSES;
use crate::proto::node::{Incarnation, NodeName};
use crate::proto::rows::{LAST_VERSION, first_version};
use crate::proto::topology::{Cell, Row, Sides};

/// One link, from one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge<'a> {
    /// Who sees.
    pub from: &'a NodeName,
    /// Whom.
    pub to: &'a NodeName,
    /// What.
    pub cell: &'a Cell,
}

/// The link matrix. A clone of it shares its rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matrix {
    /// Counts the changes of this view.
    pub version: u64,
    /// Equal on two nodes that know the same rows.
    pub agreement: u64,
    /// Since when a linked peer has lacked rows that this node has, if one does.
    pub apart: Option<Instant>,
    /// By the names of their origins.
    pub(super) rows: Vec<Arc<Row>>,
    /// Nodes whose rows ended.
    pub(super) gone: BTreeSet<NodeName>,
    /// What this node sees of its peers.
    pub(super) sides: Arc<Sides>,
    pub(super) forgotten: BTreeSet<NodeName>,
}

impl Matrix {
    /// Every known side of a link between nodes that exist, in the order of the two names.
    pub fn edges(&self) -> impl Iterator<Item = Edge<'_>> {
        self.rows.iter().filter(|row| !self.forgotten.contains(&row.origin)).flat_map(move |row| {
            let mut rows = self.rows.iter().peekable();
            let cells = row.cells().iter().filter(move |(to, _)| {
                // Both in order of names: one walk along them instead of a search for each cell.
                while rows.next_if(|row| row.origin < **to).is_some() {}
                let stated = rows.peek().is_some_and(|row| row.origin == **to);
                (stated || self.sides.contains_key(*to) || self.gone.contains(*to))
                    && !self.forgotten.contains(*to)
            });
            cells.map(|(to, cell)| Edge { from: &row.origin, to, cell })
        })
    }

    /// The latest rows, by the names of their origins.
    pub fn rows(&self) -> impl Iterator<Item = &Arc<Row>> {
        self.rows.iter()
    }

    /// The row of an origin.
    fn row(&self, origin: &NodeName) -> Option<&Arc<Row>> {
        let at = self.rows.binary_search_by(|row| row.origin.cmp(origin)).ok()?;
        self.rows.get(at)
    }

    /// The first version of the own row of a tracker that follows the one which showed this, in that life. A claim may
    /// have driven the row further up than a node believes that it has to go on.
    pub fn next_version(&self, me: &NodeName, life: Incarnation, rng: &mut StdRng) -> u64 {
        let before = self.row(me).filter(|row| row.incarnation == life);
        before.map_or(0, |row| row.version).saturating_add(first_version(rng)).min(LAST_VERSION)
    }

    /// Nodes that are not shown, whatever the rows say.
    pub fn forgotten(&self) -> &BTreeSet<NodeName> {
        &self.forgotten
    }

    /// Who is linked with a node that `me` is not linked with, where two state it: two others, or one and the node itself,
    /// which has seen its link with `me` end. Nobody where one alone states it, which may be wrong: a row outlives its
    /// node.
    pub fn reached_by(&self, node: &NodeName, me: &NodeName) -> Vec<NodeName> {
        let others = self.rows.iter().filter(|row| row.origin != *me && row.origin != *node);
        let shown = others.filter(|row| !self.forgotten.contains(&row.origin));
        let by = shown.filter(|row| row.cells().get(node).is_some_and(Cell::is_up));
        let by: Vec<NodeName> = by.map(|row| row.origin.clone()).collect();
        let answers = self.row(node).is_some_and(|own| {
            let is_up = |peer| own.cells().get(peer).map(Cell::is_up);
            is_up(me) == Some(false) && by.iter().any(|peer| is_up(peer) == Some(true))
        });
        if by.len() + usize::from(answers) >= WITNESSES { by } else { Vec::new() }
    }

    /// Every node that has a row or is in one, with its latest known life.
    pub fn nodes(&self) -> BTreeMap<NodeName, Incarnation> {
        let rows = self.rows.iter().filter(|row| !self.forgotten.contains(&row.origin));
        let mut nodes: BTreeMap<_, _> =
            rows.map(|row| (row.origin.clone(), row.incarnation)).collect();
        for Edge { to, .. } in self.edges() {
            if !nodes.contains_key(to) {
                let life = self.sides.get(to).map(|side| side.incarnation);
                nodes.insert(to.clone(), life.unwrap_or_default());
            }
        }
        nodes
    }
}

/// What differs for nodes that exist between a row as it was told last and as it is: one change as what it is, more of them by their number.
pub(super) fn news(
    told: Option<&Row>,
    row: &Row,
    exists: impl Fn(&NodeName) -> bool,
) -> Option<Event> {
    let mut before = told.map(|row| row.cells().iter()).into_iter().flatten().peekable();
    let mut changed = row.cells().iter().filter(|(peer, cell)| {
        // Both in order of names.
        while before.next_if(|(name, _)| name < peer).is_some() {}
        let same = before.next_if(|(name, _)| name == peer);
        same.is_none_or(|(_, before)| before.standing() != cell.standing()) && exists(peer)
    });
    let (from, (to, cell)) = (row.origin.clone(), changed.next()?);
    let mut links = Tally::default();
    let mut count = |cell: &Cell| links.add(cell.state, cell.suspect);
    let Some((_, second)) = changed.next() else {
        let (state, suspect, reason) = cell.standing();
        return Some(Event::LinkChanged { from, to: to.clone(), state, suspect, reason });
    };
    [cell, second].into_iter().chain(changed.map(|(_, cell)| cell)).for_each(&mut count);
    Some(Event::LinksChanged { from, links })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::event::Status;
    use crate::proto::rows::State;
    use crate::proto::tests::network::name;

    /// A matrix in which these see those as linked, or not.
    fn matrix(cells: &[(&str, &str, bool)]) -> Matrix {
        let mut rows: BTreeMap<NodeName, Row> = BTreeMap::new();
        for (from, to, up) in cells {
            let state = if *up { Status::Online } else { Status::Offline };
            let cell = Cell { state, suspect: false, rtt: None, phi: 0, since: 0, reason: None };
            let (origin, incarnation) = (name(from), Incarnation(1));
            let state = State::Live(BTreeMap::new());
            let new = Row { origin, incarnation, version: 1, state, seal: None };
            if let State::Live(row) = &mut rows.entry(name(from)).or_insert(new).state {
                row.insert(name(to), cell);
            }
        }
        Matrix { rows: rows.into_values().map(Arc::new).collect(), ..Matrix::default() }
    }

    fn reached(cells: &[(&str, &str, bool)]) -> Vec<NodeName> {
        matrix(cells).reached_by(&name("x@h"), &name("me@h"))
    }

    #[test]
    fn the_row_of_a_tracker_that_follows_another_is_above_that_one_s() {
        use rand::SeedableRng;
        let mut rng = StdRng::seed_from_u64(1);
        let mut next =
            |matrix: &Matrix, life| matrix.next_version(&name("me@h"), Incarnation(life), &mut rng);
        let mut matrix = matrix(&[("me@h", "x@h", true)]);
        let above = 1 << 40;
        matrix.rows.iter_mut().for_each(|row| Arc::make_mut(row).version = above);
        assert!(next(&matrix, 1) > above);
        assert!(next(&matrix, 2) < above, "a later life begins anew");
        assert!(next(&Matrix::default(), 1) < above);
    }

    #[test]
    fn what_one_alone_states_makes_no_node_reached() {
        assert_eq!(reached(&[("me@h", "x@h", false), ("me@h", "c@h", true)]), vec![]);
        let [c, d] = [("c@h", "x@h", true), ("d@h", "x@h", true)];
        assert_eq!(reached(&[c]), vec![], "it may lie");
        assert_eq!(reached(&[c, ("d@h", "x@h", false)]), vec![]);
        assert_eq!(reached(&[c, d]), [name("c@h"), name("d@h")]);
    }

    #[test]
    fn what_a_node_states_of_itself_counts_once_it_has_seen_the_end_of_the_link() {
        let [c, its] = [("c@h", "x@h", true), ("x@h", "c@h", true)];
        assert_eq!(reached(&[c, its, ("x@h", "me@h", true)]), vec![], "its row is older than that");
        assert_eq!(reached(&[c, ("x@h", "c@h", false), ("x@h", "me@h", false)]), vec![]);
        assert_eq!(reached(&[its, ("x@h", "me@h", false)]), vec![], "nobody is linked with it");
        assert_eq!(reached(&[c, its, ("x@h", "me@h", false)]), [name("c@h")]);
    }
}
