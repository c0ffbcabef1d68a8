//! What proves rows. Own ones are sealed whenever they change; of others a seal is checked when the row does not come from
//! its maker, or is about to be passed on, and once.
//!
//! A certificate that is renewed is sent with the row as a whole, at the next digest: a delta carries none.
//!
//! Invariant: checks that fail are at most `MAX_DOUBTS` for each peer and minute, and one for each row and minute.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{MAX_ROWS, Mark, Output, OutputOf, Row, Rows, Ruling, State, Table, Tombstones};
use crate::proto::codec;
use crate::proto::node::NodeName;
use crate::proto::quota::Quota;
use crate::proto::seal::{Seal, Seals};

/// Unproven rows of one peer that are looked at within a minute.
const MAX_DOUBTS: u32 = 64;
/// Tombstones that one node makes of others, and that are taken within a minute.
pub(super) const MAX_FORGETS: u32 = 64;
/// A row that was not proven is not looked at again for so long.
const AGAIN: Duration = Duration::from_secs(60);

/// What was proven and what was not, by origin.
#[derive(Debug)]
pub(super) struct Proofs {
    pub(super) seals: Box<dyn Seals>,
    proven: BTreeMap<NodeName, Mark>,
    unproven: BTreeMap<NodeName, (Mark, Instant)>,
    doubts: Quota,
    forgets: Quota,
}

impl Proofs {
    pub(super) fn new(seals: Box<dyn Seals>) -> Self {
        let (proven, unproven) = (BTreeMap::new(), BTreeMap::new());
        let (doubts, forgets) = (Quota::new(MAX_DOUBTS), Quota::new(MAX_FORGETS));
        Self { seals, proven, unproven, doubts, forgets }
    }

    /// This node's seal on a row, where that is to be passed on.
    pub(super) fn seal<T: Table>(&mut self, row: &Row<T::Value>) -> Option<Seal> {
        let own = *row.maker() == row.origin || T::TOMBSTONES == Tombstones::Outbid;
        if own { self.seals.make(&statement::<T>(row)) } else { None }
    }

    /// Whether a row was not proven a moment ago.
    pub(super) fn is_refused(&self, origin: &NodeName, mark: Mark, now: Instant) -> bool {
        let before = self.unproven.get(origin);
        before.is_some_and(|(refused, at)| *refused == mark && now < *at + AGAIN)
    }

    /// Nothing is to be known of that origin.
    pub(super) fn forget(&mut self, origin: &NodeName) {
        self.proven.remove(origin);
    }

    /// Whether its maker's seal on a row holds.
    fn holds<T: Table>(&mut self, row: &Row<T::Value>, now: Instant) -> bool {
        let (origin, mark) = (&row.origin, row.mark());
        let seal = row.seal.as_ref();
        let holds =
            seal.is_some_and(|seal| self.seals.hold(row.maker(), &statement::<T>(row), seal));
        if holds {
            self.unproven.remove(origin);
            self.proven.insert(origin.clone(), mark);
        } else {
            self.unproven.retain(|_, (_, at)| now < *at + AGAIN);
            if self.unproven.len() >= MAX_ROWS {
                self.unproven.pop_first();
            }
            self.unproven.insert(origin.clone(), (mark, now));
        }
        holds
    }
}

impl<T: Table> Rows<T> {
    /// Seals the own row as it is now; returns the signature.
    pub(super) fn seal_own(&mut self) -> Vec<u8> {
        let seal = self.rows.get(&self.me).and_then(|own| self.proofs.seal::<T>(own));
        let signature = seal.as_ref().map(|seal| seal.signature.clone()).unwrap_or_default();
        self.amend(&self.me.clone(), |own| own.seal = seal);
        signature
    }

    /// Whether the own row is sealed under a certificate that was renewed meanwhile.
    pub(super) fn is_sealed_before(&self) -> bool {
        let seal = self.rows.get(&self.me).and_then(|own| own.seal.as_ref());
        seal.is_some_and(|seal| !self.proofs.seals.is_current(seal))
    }

    /// Whether what a peer passes on is proven to be its maker's.
    pub(super) fn is_proven(
        &mut self,
        from: &NodeName,
        row: &Row<T::Value>,
        now: Instant,
        out: &mut Vec<OutputOf<T>>,
    ) -> bool {
        let (origin, maker) = (&row.origin, row.maker());
        if maker != origin && T::TOMBSTONES == Tombstones::Final {
            self.charge(from, "a tombstone of another", now, out);
            return false;
        }
        if maker != from {
            if self.proofs.is_refused(origin, row.mark(), now)
                || self.proofs.doubts.is_spent(from, now)
            {
                return false;
            }
            if !self.proofs.holds::<T>(row, now) {
                let _counted = self.proofs.doubts.spend(from, now);
                self.asks.remove(origin);
                out.push(Output::Charge(from.clone(), "unproven row"));
                return false;
            }
        }
        maker == origin || self.proofs.forgets.spend(maker, now)
    }

    /// Whether a row that is known here can be passed on.
    pub(super) fn is_passable(&mut self, origin: &NodeName, now: Instant) -> bool {
        let Some(row) = self.rows.get(origin) else { return false };
        let (mark, ours) = (row.mark(), *row.maker() == self.me);
        if ours || self.proofs.proven.get(origin) == Some(&mark) {
            return row.seal.is_some();
        }
        !self.proofs.is_refused(origin, mark, now) && self.proofs.holds::<T>(row, now)
    }

    /// Drops what makers whose certificates are revoked stated. What they ruled is taken back: what the origin had stated
    /// counts again.
    pub(super) fn drop_revoked(&mut self, now: Instant, out: &mut Vec<OutputOf<T>>) {
        let revoked = |row: &Row<T::Value>| {
            row.seal.as_ref().is_some_and(|seal| self.proofs.seals.is_revoked(seal))
        };
        let others = self.rows.values().filter(|row| row.origin != self.me && revoked(row));
        for row in others.cloned().collect::<Vec<_>>() {
            self.overrule(&row.origin, out);
            let last = row.ruling().and_then(|ruling| ruling.last.clone());
            if let Some(last) = last.filter(|last| !self.proofs.seals.is_revoked(&last.seal)) {
                self.put(last.row(row.origin.clone()), false, now, out);
            }
        }
    }
}

/// What is sealed of a row. Of a final tombstone every node takes the time by its own clock; what a ruling has of the
/// origin is proven by the origin's own seal.
pub fn statement<T: Table>(row: &Row<T::Value>) -> Vec<u8> {
    let end = match &row.state {
        State::Ruled(ruling) => {
            let Ruling { forgotten, at, author, .. } = &**ruling;
            let head = ("xpando ruling 1", T::KIND);
            let whole = (head, &row.origin, row.incarnation, row.version, forgotten, at, author);
            return codec::encode(&whole).unwrap_or_default();
        }
        State::Live(_) => None,
        State::Gone { by, .. } if T::TOMBSTONES == Tombstones::Final => Some((0, by)),
        State::Gone { at, by } => Some((*at, by)),
    };
    let head = ("xpando row 1", T::KIND);
    let whole = (head, &row.origin, row.incarnation, row.version, row.value(), end);
    // No row of a table refuses to be encoded; an empty statement would be one of no row.
    codec::encode(&whole).unwrap_or_default()
}
