//! What operators have a node rule about another one: that it is forgotten, and that it is not any more.
//!
//! A [`Ruling`] is one version above what was known, and carries what the origin had stated last. That is proven by the
//! origin's own seal, not by the author's: each node keeps the latest of it that it knows, so that any node which has the
//! tombstone can bring it back, and nobody can bring back what the origin never stated. What is brought back is what the
//! author of that ruling had: all nodes then have the same of the origin.

use std::time::Instant;

use super::{OutputOf, Row, Rows, Ruling, State, Stated, Table, Tombstones, statement};
use crate::proto::event::{Author, Operator};
use crate::proto::node::{Incarnation, NodeName};

impl<T: Table> Rows<T> {
    /// Has that life of a node, or the later one that is known, forgotten.
    pub(super) fn forget(
        &mut self,
        origin: NodeName,
        life: Incarnation,
        operator: Operator,
        now: Instant,
        out: &mut Vec<OutputOf<T>>,
    ) {
        let known = self.known(&origin).unwrap_or_default();
        let above = if life > known.incarnation {
            (life, 1)
        } else {
            (known.incarnation, known.version.saturating_add(1))
        };
        self.rule(origin, above, (true, operator), now, out);
    }

    /// Has a node that is forgotten known again.
    pub(super) fn restore(
        &mut self,
        origin: NodeName,
        operator: Operator,
        now: Instant,
        out: &mut Vec<OutputOf<T>>,
    ) {
        let Some(known) = self.known(&origin).filter(|known| known.gone) else { return };
        let above = (known.incarnation, known.version.saturating_add(1));
        self.rule(origin, above, (false, operator), now, out);
    }

    fn rule(
        &mut self,
        origin: NodeName,
        (incarnation, version): (Incarnation, u64),
        (forgotten, operator): (bool, Operator),
        now: Instant,
        out: &mut Vec<OutputOf<T>>,
    ) {
        if T::TOMBSTONES != Tombstones::Outbid || origin == self.me || self.is_linked(&origin) {
            return;
        }
        let (at, author) = (self.wall(now), Author::new(self.me.clone(), operator));
        let last = self.last(&origin, true, None);
        let state = State::Ruled(Box::new(Ruling { forgotten, at, author, last }));
        let mut row = Row { origin, incarnation, version, state, seal: None };
        row.seal = self.proofs.seal::<T>(&row);
        if self.room(&row.origin, out) {
            let row = self.put(row, true, now, out);
            self.send_all(None, vec![row], out);
        }
    }

    /// Whether a ruling of others is looked at.
    pub(super) fn hears_ruling(
        &mut self,
        from: &NodeName,
        row: &Row<T::Value>,
        now: Instant,
        out: &mut Vec<OutputOf<T>>,
    ) -> bool {
        if row.origin == self.me {
            self.claimed(row.mark(), now, out); // it may have crossed our going on above an earlier one
        } else if T::TOMBSTONES != Tombstones::Outbid || row.origin == *row.maker() {
            self.charge(from, "no ruling", now, out);
        } else if row.origin == *from {
            self.charge(from, "its own tombstone", now, out);
        } else {
            return true;
        }
        false
    }

    /// The latest that the origin had stated, as offered and, if it counts, as known here, that its seal proves.
    pub(super) fn last(
        &mut self,
        origin: &NodeName,
        known_counts: bool,
        offered: Option<Stated<T::Value>>,
    ) -> Option<Stated<T::Value>> {
        let known = self.rows.get(origin).filter(|_| known_counts).and_then(|row| stated(row));
        let mut both: Vec<_> = known.into_iter().chain(offered).collect();
        both.sort_by_key(|it| std::cmp::Reverse((it.incarnation, it.version)));
        let rows = both.into_iter().map(|it| it.row(origin.clone()));
        let mut proven = rows.filter(|row| {
            let seal = row.seal.as_ref().filter(|seal| seal.is_short());
            seal.is_some_and(|seal| self.proofs.seals.hold(origin, &statement::<T>(row), seal))
        });
        proven.next().and_then(|row| stated(&row))
    }
}

/// What an origin stated, as a row has it.
fn stated<V: Clone>(row: &Row<V>) -> Option<Stated<V>> {
    let (incarnation, version) = (row.incarnation, row.version);
    match &row.state {
        State::Live(value) => {
            let (value, seal) = (value.clone(), row.seal.clone()?);
            Some(Stated { incarnation, version, value, seal })
        }
        State::Gone { .. } => None,
        State::Ruled(ruling) => ruling.last.clone(),
    }
}
