//! The link matrix as readers see it, and what is new in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use crate::proto::event::Event;
use crate::proto::node::{Incarnation, NodeName};
use crate::proto::topology::{Cell, Cells, Row};

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
    pub(super) rows: BTreeMap<NodeName, Arc<Row>>,
    /// The latest known lives of the peers of this node.
    pub(super) lives: BTreeMap<NodeName, Incarnation>,
    /// Nodes that are not shown, even while others still have rows of them.
    pub(super) forgotten: BTreeSet<NodeName>,
}

impl Matrix {
    /// Every known side of a link, in the order of the two names.
    pub fn edges(&self) -> impl Iterator<Item = Edge<'_>> {
        let edges = self.rows.iter().flat_map(|(from, row)| edges(from, row.cells()));
        edges.filter(|edge| ![edge.from, edge.to].iter().any(|node| self.forgotten.contains(*node)))
    }

    /// Every node that has a row or is in one, with its latest known life.
    pub fn nodes(&self) -> BTreeMap<NodeName, Incarnation> {
        let life = |(name, row): (&NodeName, &Arc<Row>)| (name.clone(), row.incarnation);
        let rows = self.rows.iter().filter(|(name, _)| !self.forgotten.contains(*name));
        let mut nodes: BTreeMap<_, _> = rows.map(life).collect();
        for edge in self.edges().filter(|edge| !self.rows.contains_key(edge.to)) {
            let life = self.lives.get(edge.to).copied().unwrap_or_default();
            nodes.insert(edge.to.clone(), life);
        }
        nodes
    }

    /// What changed since `before` in the rows of nodes other than `me`.
    pub fn changes(&self, before: &Self, me: &NodeName) -> Vec<Event> {
        let says = |cell: &Cell| (cell.state, cell.suspect, cell.reason);
        let mut events = Vec::new();
        for (from, row) in self.rows.iter().filter(|(from, _)| *from != me) {
            let old = before.rows.get(from);
            if old.is_some_and(|old| Arc::ptr_eq(old, row)) {
                continue;
            }
            for Edge { from, to, cell } in edges(from, row.cells()) {
                let same = old.and_then(|old| old.cells().get(to)).map(says) == Some(says(cell));
                if !same {
                    let (from, to) = (from.clone(), to.clone());
                    let (state, suspect, reason) = says(cell);
                    events.push(Event::LinkChanged { from, to, state, suspect, reason });
                }
            }
        }
        events
    }
}

fn edges<'a>(from: &'a NodeName, cells: &'a Cells) -> impl Iterator<Item = Edge<'a>> {
    cells.iter().map(move |(to, cell)| Edge { from, to, cell })
}
