//! The hash over all names and marks. It follows each change: rows are dropped and changed here, and inserted in `put`.

use std::sync::Arc;

use super::{Mark, Row, Rows, Table, Tombstones};
use crate::proto::node::NodeName;

impl<T: Table> Rows<T> {
    /// Drops a row.
    pub(super) fn remove(&mut self, origin: &NodeName) -> Option<Arc<Row<T::Value>>> {
        let lost = self.rows.remove(origin)?;
        self.agreement = self.agreement.wrapping_sub(weight::<T>(&lost));
        self.proofs.forget(origin);
        self.equivocations.changed(origin);
        self.second_hand.remove(origin);
        Some(lost)
    }

    /// Changes a row where it is.
    pub(super) fn amend<R>(
        &mut self,
        origin: &NodeName,
        change: impl FnOnce(&mut Row<T::Value>) -> R,
    ) -> Option<R> {
        let row = self.rows.get_mut(origin)?;
        let lost = weight::<T>(row);
        let changed = change(Arc::make_mut(row));
        self.agreement = self.agreement.wrapping_sub(lost).wrapping_add(weight::<T>(row));
        self.equivocations.changed(origin);
        Some(changed)
    }
}

/// What [`Rows::agreement`] is for these rows.
pub(super) fn agreement<'a, T: Table>(rows: impl Iterator<Item = &'a Arc<Row<T::Value>>>) -> u64
where
    T::Value: 'a,
{
    rows.fold(0, |sum, row| sum.wrapping_add(weight::<T>(row)))
}

/// What a row adds to the agreement: FNV-1a over its name and mark, spread by MurmurHash's last step so that sums differ.
pub(super) fn weight<T: Table>(row: &Row<T::Value>) -> u64 {
    if T::TOMBSTONES == Tombstones::Final && row.gone_at().is_some() {
        return 0;
    }
    let Mark { incarnation, version, gone } = row.mark();
    let numbers = [incarnation.0, version].into_iter().flat_map(u64::to_be_bytes);
    let bytes = row.origin.as_str().bytes().chain([0]).chain(numbers).chain([u8::from(gone)]);
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let hash = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ hash >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ hash >> 33
}
