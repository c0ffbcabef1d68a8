//! What proves rows. Own ones are sealed whenever they change; of others a seal is checked when the row does not come from
//! its maker, or is about to be passed on, and once.
//!
//! A certificate that is renewed is sent with the row as a whole, at the next digest: a delta carries none.
//!
//! Invariants: checks that fail are at most `MAX_DOUBTS` for each peer and minute, and one for each row of each peer and
//! minute: what one peer forges is no reason to refuse what another passes on. Of a row that its maker sends itself nothing
//! is proven, even where another one of the same mark was.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::{MAX_ROWS, Mark, Output, OutputOf, Row, Rows, Ruling, State, Table, Tombstones};
use crate::proto::codec;
use crate::proto::node::{KeyId, NodeName};
use crate::proto::quota::Quota;
use crate::proto::seal::{Seal, Seals, Statement};

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
    /// By origin, and by the peer that passed it on; this node itself for what it has.
    unproven: BTreeMap<(NodeName, NodeName), (Mark, Instant)>,
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

    /// Whether a row that a peer passes on was not proven a moment ago.
    pub(super) fn is_refused(
        &self,
        from: &NodeName,
        origin: &NodeName,
        mark: Mark,
        now: Instant,
    ) -> bool {
        let before = self.unproven.get(&(origin.clone(), from.clone()));
        before.is_some_and(|(refused, at)| *refused == mark && now < *at + AGAIN)
    }

    /// Nothing is to be known of that origin.
    pub(super) fn forget(&mut self, origin: &NodeName) {
        self.proven.remove(origin);
    }

    /// With which key a seal was made.
    pub(super) fn key(&self, seal: &Seal) -> Option<KeyId> {
        self.seals.credential(seal).map(|it| it.key)
    }

    /// Whether nothing more of a peer is looked at within this minute.
    pub(super) fn is_doubted(&self, from: &NodeName, now: Instant) -> bool {
        self.doubts.is_spent(from, now)
    }

    /// A peer passed on something unproven.
    pub(super) fn doubt(&mut self, from: &NodeName, now: Instant) {
        let _counted = self.doubts.spend(from, now);
    }

    /// A row that a peer passes on is not looked at again for a while.
    pub(super) fn refuse(&mut self, from: &NodeName, origin: &NodeName, mark: Mark, now: Instant) {
        self.unproven.retain(|_, (_, at)| now < *at + AGAIN);
        if self.unproven.len() >= MAX_ROWS {
            self.unproven.pop_first();
        }
        self.unproven.insert((origin.clone(), from.clone()), (mark, now));
    }

    /// Whether its maker's seal on a row that a peer passes on holds.
    pub(super) fn holds<T: Table>(
        &mut self,
        from: &NodeName,
        row: &Row<T::Value>,
        now: Instant,
    ) -> bool {
        let (origin, mark) = (&row.origin, row.mark());
        let holds = row.seal.as_ref().is_some_and(|seal| {
            let allowed = row.ruling().is_none() || self.seals.may_operate(seal);
            allowed && self.seals.hold(row.maker(), &statement::<T>(row), seal)
        });
        if holds {
            self.unproven.remove(&(origin.clone(), from.clone()));
            self.proven.insert(origin.clone(), mark);
        } else {
            self.refuse(from, origin, mark, now);
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

    /// Whether what a peer passes on is proven to be its maker's. A ruling is proven by its seal even on its maker's own
    /// link: the certificate in it says whether its maker may rule.
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
        if maker != from || row.ruling().is_some() {
            if self.proofs.is_refused(from, origin, row.mark(), now)
                || self.proofs.is_doubted(from, now)
            {
                return false;
            }
            if !self.proofs.holds::<T>(from, row, now) {
                self.proofs.doubt(from, now);
                self.asks.remove(origin);
                out.push(Output::Charge(from.clone(), "unproven row"));
                return false;
            }
        } else {
            self.proofs.forget(origin);
        }
        maker == origin || self.proofs.forgets.spend(maker, now)
    }

    /// Whether a row that is known here can be passed on.
    pub(super) fn is_passable(&mut self, origin: &NodeName, now: Instant) -> bool {
        let Some(row) = self.rows.get(origin).filter(|_| !self.is_barred(origin)) else {
            return false;
        };
        let (mark, ours) = (row.mark(), *row.maker() == self.me);
        if ours || self.proofs.proven.get(origin) == Some(&mark) {
            return row.seal.is_some();
        }
        let me = &self.me;
        !self.proofs.is_refused(me, origin, mark, now) && self.proofs.holds::<T>(me, row, now)
    }

    /// Drops what makers whose certificates are revoked stated. What they ruled is taken back: what the origin had stated
    /// counts again.
    pub(super) fn drop_revoked(&mut self, now: Instant, out: &mut Vec<OutputOf<T>>) {
        self.drop_revoked_proofs();
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

/// What is sealed of a row: its value by a hash. The time of a final tombstone is not sealed, since every node takes its
/// own; nor is what a ruling has of the origin, which bears the origin's own seal.
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
    let Row { origin, incarnation, version, .. } = row;
    let mut whole = Statement::new(T::KIND, origin.clone(), *incarnation, *version);
    whole.value = row.value().map(value_hash::<T>);
    whole.end = end.map(|(at, by)| (at, by.clone()));
    whole.to_bytes()
}

/// What is compared of a value.
pub(super) fn value_hash<T: Table>(value: &T::Value) -> [u8; 32] {
    // No value of a table refuses to be encoded.
    Sha256::digest(codec::encode(value).unwrap_or_default()).into()
}
