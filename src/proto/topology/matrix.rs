//! The link matrix as readers see it, and what is new in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use crate::proto::event::{Event, Tally};
use crate::proto::node::{Incarnation, NodeName};
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

    /// Nodes that are not shown, whatever the rows say.
    pub fn forgotten(&self) -> &BTreeSet<NodeName> {
        &self.forgotten
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
