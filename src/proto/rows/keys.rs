//! Rows of a name that was issued another key: those of the key that was issued later come first, whatever their marks are.
//!
//! Marks do not tell keys apart. Where a peer has a row of the earlier key, its mark may be the greater one: it is wanted,
//! refused when it comes, and the peer is sent the row of the later key, which takes the place of its own.

use std::time::Instant;

use super::{OutputOf, Row, Rows, Table};
use crate::proto::node::NodeName;

impl<T: Table> Rows<T> {
    /// Whether the known row or this one is of the key that was issued later, where both are the origin's own and of two keys.
    fn later_key(&self, row: &Row<T::Value>) -> Option<Later> {
        let (origin, seals) = (&row.origin, &self.proofs.seals);
        let known = self.rows.get(origin).filter(|_| *origin != self.me)?;
        let (ours, theirs) = (known.seal.as_ref()?, row.seal.as_ref()?);
        let own = known.maker() == origin && row.maker() == origin;
        if !own || ours.certificate == theirs.certificate {
            return None;
        }
        let (ours, theirs) = (seals.credential(ours)?, seals.credential(theirs)?);
        if theirs.supersedes(ours) {
            Some(Later::Theirs)
        } else {
            ours.supersedes(theirs).then_some(Later::Ours)
        }
    }

    /// The known row gives way to one of a later key that has no greater mark, unless its origin is linked: then it was
    /// overruled by its link.
    pub(super) fn give_way(&mut self, from: &NodeName, row: &Row<T::Value>, now: Instant) {
        let origin = &row.origin;
        let gives_way = !self.is_linked(origin)
            && !self.newer(origin, row.mark())
            && self.later_key(row) == Some(Later::Theirs);
        if gives_way && self.proofs.holds::<T>(from, row, now) {
            drop(self.remove(origin));
        }
    }

    /// Whether a row that is proven, or came over its origin's link, is of an earlier key than the known one: then the peer
    /// is sent that.
    pub(super) fn is_superseded(
        &mut self,
        from: &NodeName,
        row: &Row<T::Value>,
        now: Instant,
        out: &mut Vec<OutputOf<T>>,
    ) -> bool {
        let origin = &row.origin;
        // What is not proven here supersedes nothing.
        let superseded = self.later_key(row) == Some(Later::Ours) && self.is_passable(origin, now);
        if superseded {
            self.proofs.refuse(from, origin, row.mark(), now);
            if from != origin {
                self.answer(from, std::slice::from_ref(origin), now, out);
            }
        }
        superseded
    }
}

/// Which of two rows is of the later key.
#[derive(PartialEq)]
enum Later {
    Ours,
    Theirs,
}
