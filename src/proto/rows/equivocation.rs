//! Two different rows that one origin sealed under one mark: how nodes find out, and what follows.
//!
//! A digest covers the values of rows, and marks carry a short hash of each. Who finds another hash under a mark that it
//! has as well sends what is sealed of its row; the other one has both statements then, and sends the proof to all. From
//! then on nothing is taken that is sealed with that key, or not at all, of that origin: not even over its own link. A
//! later life changes nothing, another key of that name does, and so does the revocation of the certificate.
//!
//! # Invariants
//! 1. A key is barred by proof alone: two statements of one kind, origin, incarnation and version with different values,
//!    both seals of which hold, under one key. A node never bars its own rows.
//! 2. Values are compared, never signatures: a row that is sealed again is the same row. A row without a seal is compared
//!    with none: its bounds left something out here, or it is no row of the origin.
//! 3. Memory: one proof for each key, of at most [`MAX_ROWS`] origins. A peer is sent each proof once a minute at most, when
//!    it names a row of that origin. Seals are checked where values differ, and on no other row.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::proof::value_hash;
use super::{
    MAX_ROWS, Mark, Output, OutputOf, Row, Rows, State, Table, Tombstones, Values, Word, statement,
};
use crate::proto::node::{KeyId, NodeName};
use crate::proto::seal::{Equivocation, Seal, Sealed};

/// Statements in one word, at most.
const MAX_COMPARED: usize = 16;
/// Between two times that a peer is sent a proof.
const AGAIN: Duration = Duration::from_secs(60);

/// The proofs, and what is needed to find more.
#[derive(Debug, Default)]
pub(super) struct Equivocations {
    /// Hashes of the values of sealed rows, as long as those are not changed.
    values: BTreeMap<NodeName, [u8; 32]>,
    digest: Option<u128>,
    proofs: BTreeMap<NodeName, BTreeMap<KeyId, Equivocation>>,
    /// When a peer was sent the proofs about an origin.
    sent: BTreeMap<(NodeName, NodeName), Instant>,
}

impl Equivocations {
    /// The row of that origin changed: its hash and the digest are computed anew when they are needed.
    pub(super) fn changed(&mut self, origin: &NodeName) {
        self.values.remove(origin);
        self.digest = None;
    }

    fn short(&self, origin: &NodeName, salt: u64) -> Option<[u8; 4]> {
        let salted = Sha256::new().chain_update(salt.to_be_bytes());
        salted.chain_update(self.values.get(origin)?).finalize().first_chunk().copied()
    }
}

/// What is sealed of a row, if it is one of the origin's own.
fn sealed<T: Table>(row: &Row<T::Value>) -> Option<Sealed> {
    let seal = row.seal.clone().filter(|_| matches!(row.state, State::Live(_)))?;
    Some(Sealed { statement: statement::<T>(row), seal })
}

impl<T: Table> Rows<T> {
    /// Equal on two nodes that hold the same rows, final tombstones aside.
    pub(in super::super) fn digest(&mut self) -> u128 {
        if let Some(digest) = self.equivocations.digest {
            return digest;
        }
        self.hash_values();
        let (barred, mut hash) = (self.barred(), Sha256::new());
        for (origin, row) in &self.rows {
            let Mark { incarnation, version, gone } = row.mark();
            if gone && T::TOMBSTONES == Tombstones::Final || barred.contains(origin) {
                continue;
            }
            hash.update(origin.as_str().as_bytes());
            hash.update([0, u8::from(gone)]);
            hash.update(incarnation.0.to_be_bytes());
            hash.update(version.to_be_bytes());
            hash.update(self.equivocations.values.get(origin).unwrap_or(&[0; 32]));
        }
        let digest = hash.finalize().first_chunk().copied().map_or(0, u128::from_be_bytes);
        self.equivocations.digest = Some(digest);
        digest
    }

    fn hash_values(&mut self) {
        for (origin, row) in &self.rows {
            if let (State::Live(value), Some(_)) = (&row.state, &row.seal)
                && !self.equivocations.values.contains_key(origin)
            {
                self.equivocations.values.insert(origin.clone(), value_hash::<T>(value));
            }
        }
    }

    /// The short hash of a row that can be compared, once [`Self::hash_values`] was called.
    fn value_of(&self, origin: &NodeName, mark: Mark, salt: u64, now: Instant) -> Option<[u8; 4]> {
        let value = self.equivocations.short(origin, salt);
        value.filter(|_| !self.proofs.is_refused(&self.me, origin, mark, now))
    }

    /// What goes with these marks of own rows.
    pub(super) fn values_of(
        &mut self,
        marks: &[(NodeName, Mark)],
        salt: u64,
        now: Instant,
    ) -> Values {
        self.hash_values();
        let hashes = marks.iter().map(|(origin, mark)| self.value_of(origin, *mark, salt, now));
        Values { salt, hashes: hashes.collect() }
    }

    /// A peer's marks came with these: it is sent what is sealed of rows that it has otherwise.
    pub(super) fn compare_values(
        &mut self,
        from: &NodeName,
        marks: &[(NodeName, Mark)],
        values: &Values,
        now: Instant,
        out: &mut Vec<OutputOf<T>>,
    ) {
        self.hash_values();
        let others = marks.iter().zip(&values.hashes).filter(|((origin, mark), theirs)| {
            let known = || self.rows.get(origin).is_some_and(|row| row.mark() == *mark);
            let ours = || self.value_of(origin, *mark, values.salt, now);
            theirs.is_some() && known() && ours().is_some_and(|ours| Some(ours) != **theirs)
        });
        let others = others.take(MAX_COMPARED).map(|((origin, mark), _)| (origin.clone(), *mark));
        let mut all = Vec::new();
        for (origin, mark) in others.collect::<Vec<_>>() {
            if !self.is_passable(&origin, now) {
                continue;
            }
            let ours = self.rows.get(&origin).and_then(|row| sealed::<T>(row));
            let Some(link) = self.links.get_mut(from) else { return };
            let before = link.answered.get(&origin);
            if before.is_none_or(|(of, at)| *of != mark || now >= *at + T::RETRY / 2) {
                link.answered.insert(origin, (mark, now));
                all.extend(ours);
            }
        }
        if !all.is_empty() {
            out.push(Output::Send(from.clone(), Word::Sealed(all)));
        }
    }

    /// A peer sent what is sealed of rows that it found otherwise here.
    pub(super) fn compare_sealed(
        &mut self,
        from: &NodeName,
        all: Vec<Sealed>,
        now: Instant,
        out: &mut Vec<OutputOf<T>>,
    ) {
        if all.len() > MAX_COMPARED {
            return self.charge(from, "too many in one word", now, out);
        }
        for theirs in all {
            match theirs.origin() {
                Some(origin) => drop(self.is_contradicted(from, &origin, theirs, now, out)),
                None => self.charge(from, "malformed statement", now, out),
            }
        }
    }

    /// Whether that row contradicts the one that is known, as is proven now.
    pub(super) fn contradicts(
        &mut self,
        from: &NodeName,
        row: &Row<T::Value>,
        now: Instant,
        out: &mut Vec<OutputOf<T>>,
    ) -> bool {
        let known = self.rows.get(&row.origin);
        let other =
            known.is_some_and(|known| known.mark() == row.mark() && known.state != row.state);
        let theirs = if other { sealed::<T>(row) } else { None };
        theirs.is_some_and(|theirs| self.is_contradicted(from, &row.origin, theirs, now, out))
    }

    fn is_contradicted(
        &mut self,
        from: &NodeName,
        origin: &NodeName,
        theirs: Sealed,
        now: Instant,
        out: &mut Vec<OutputOf<T>>,
    ) -> bool {
        let ours = self.rows.get(origin).and_then(|row| sealed::<T>(row));
        let Some(proof) = ours.map(|ours| Equivocation([ours, theirs])) else { return false };
        // Of what is not proven here, nothing follows.
        if proof.subject().is_none() || !self.is_passable(origin, now) {
            return false;
        }
        let found = self.convict(Some(from), &proof, now, out);
        if found {
            let word = Word::Equivocation(Box::new(proof));
            out.extend(self.links.keys().map(|peer| Output::Send(peer.clone(), word.clone())));
        }
        found
    }

    /// Takes a proof, of a peer or of another table of this node; whether it is a new one that holds.
    pub(super) fn convict(
        &mut self,
        from: Option<&NodeName>,
        proof: &Equivocation,
        now: Instant,
        out: &mut Vec<OutputOf<T>>,
    ) -> bool {
        if from.is_some_and(|from| self.proofs.is_doubted(from, now)) {
            return false;
        }
        let keys = proof.0.each_ref().map(|it| self.proofs.key(&it.seal));
        let (Some(subject), [Some(key), other]) = (proof.subject(), keys) else {
            return self.doubt_proof(from, now, out);
        };
        let origin = subject.origin;
        let known = self.equivocations.proofs.get(&origin);
        let full = known.is_none() && self.equivocations.proofs.len() >= MAX_ROWS;
        if full || known.is_some_and(|proofs| proofs.contains_key(&key)) {
            // The proof is known. That it was looked at counts against the peer all the same.
            from.into_iter().for_each(|from| self.proofs.doubt(from, now));
            return false;
        }
        let mut holds = |it: &Sealed| {
            it.seal.is_short() && self.proofs.seals.hold(&origin, &it.statement, &it.seal)
        };
        if other != Some(key) || !proof.0.iter().all(&mut holds) {
            return self.doubt_proof(from, now, out);
        }
        self.asks.remove(&origin);
        self.partials.remove(&origin);
        self.equivocations.changed(&origin);
        self.equivocations.proofs.entry(origin).or_default().insert(key, proof.clone());
        // What another table has was announced there.
        out.extend(from.map(|_| Output::Equivocation(key, Box::new(proof.clone()))));
        true
    }

    fn doubt_proof(
        &mut self,
        from: Option<&NodeName>,
        now: Instant,
        out: &mut Vec<OutputOf<T>>,
    ) -> bool {
        if let Some(from) = from {
            self.proofs.doubt(from, now);
            out.push(Output::Charge(from.clone(), "unproven row"));
        }
        false
    }

    /// Whether a seal is with a key of that origin that is barred, or may be.
    fn is_of_barred_key(&self, origin: &NodeName, seal: Option<&Seal>) -> bool {
        let Some(proofs) = self.equivocations.proofs.get(origin).filter(|_| *origin != self.me)
        else {
            return false;
        };
        let same = |it: &Sealed| seal.is_some_and(|seal| seal.certificate == it.seal.certificate);
        let key = || seal.and_then(|seal| self.proofs.key(seal));
        proofs.values().flat_map(|proof| &proof.0).any(same)
            || key().is_none_or(|key| proofs.contains_key(&key))
    }

    /// Whether the known row of that origin is of a barred key.
    pub(super) fn is_barred(&self, origin: &NodeName) -> bool {
        self.equivocations.proofs.contains_key(origin)
            && self.rows.get(origin).is_some_and(|row| {
                row.maker() == origin && self.is_of_barred_key(origin, row.seal.as_ref())
            })
    }

    /// The origins whose known rows are of a barred key.
    pub(super) fn barred(&self) -> BTreeSet<NodeName> {
        let origins = self.equivocations.proofs.keys();
        origins.filter(|origin| self.is_barred(origin)).cloned().collect()
    }

    /// Whether a row is refused for what its origin's key has sealed: then the peer is sent why. Of such an origin, a row
    /// is taken with a seal of another key that holds.
    pub(super) fn is_refused_row(
        &mut self,
        from: &NodeName,
        row: &Row<T::Value>,
        now: Instant,
        out: &mut Vec<OutputOf<T>>,
    ) -> bool {
        let origin = &row.origin;
        if row.maker() != origin || !self.equivocations.proofs.contains_key(origin) {
            return false;
        }
        let refused = *origin != self.me
            && (self.is_of_barred_key(origin, row.seal.as_ref())
                || !self.proofs.holds::<T>(from, row, now));
        if refused {
            self.proofs.refuse(from, origin, row.mark(), now);
            self.send_proofs(from, origin, now, out);
        }
        refused
    }

    /// A peer names rows: it is sent what is proven of their origins.
    pub(super) fn warn(
        &mut self,
        from: &NodeName,
        marks: &[(NodeName, Mark)],
        now: Instant,
        out: &mut Vec<OutputOf<T>>,
    ) {
        if !self.equivocations.proofs.is_empty() {
            marks.iter().for_each(|(origin, _)| self.send_proofs(from, origin, now, out));
        }
    }

    fn send_proofs(
        &mut self,
        to: &NodeName,
        origin: &NodeName,
        now: Instant,
        out: &mut Vec<OutputOf<T>>,
    ) {
        let Equivocations { proofs, sent, .. } = &mut self.equivocations;
        let Some(proofs) = proofs.get(origin) else { return };
        let pair = (to.clone(), origin.clone());
        if sent.get(&pair).is_some_and(|at| now < *at + AGAIN) {
            return;
        }
        sent.retain(|_, at| now < *at + AGAIN);
        sent.insert(pair, now);
        let words = proofs.values().map(|proof| Word::Equivocation(Box::new(proof.clone())));
        out.extend(words.map(|word| Output::Send(to.clone(), word)));
    }

    /// Drops the proofs about certificates that are revoked: nothing holds under those anyway.
    pub(super) fn drop_revoked_proofs(&mut self) {
        let seals = &self.proofs.seals;
        let revoked = |proof: &Equivocation| proof.0.iter().any(|it| seals.is_revoked(&it.seal));
        self.equivocations.proofs.retain(|_, proofs| {
            proofs.retain(|_, proof| !revoked(proof));
            !proofs.is_empty()
        });
        self.equivocations.digest = None;
    }
}
