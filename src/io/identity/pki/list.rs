//! A list that was read: what is said, by whom, and which number it has.

use std::time::SystemTime;

use sha2::{Digest as _, Sha256};

use super::bundle::Root;
use crate::io::clock::unix_seconds;
use crate::proto::lists::Mark;

/// How far the number of an intermediate authority's list, which is a second since 1970, may be ahead of this host's clock.
const AHEAD: u64 = 24 * 60 * 60;

/// A list that an authority has signed. An intermediate's may not be numbered later than a day from now: its key must not be
/// enough to leave the root no later number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Signed<L> {
    pub(in super::super) list: L,
    pub(in super::super) mark: Mark,
    /// The one text that there is of it.
    pub(in super::super) bytes: Vec<u8>,
}

impl<L> Signed<L> {
    /// A list of this number, of which this part is signed by this authority.
    pub(in super::super) fn new(
        (list, number): (L, u64),
        (signed, by): (&[u8], &Root),
        bytes: Vec<u8>,
        now: SystemTime,
    ) -> Result<Self, &'static str> {
        let newest = unix_seconds(now).saturating_add(AHEAD);
        if by.parent.is_some() && number > newest {
            return Err("its number is of a time to come: set the clock of the host that made it");
        }
        Ok(Self::by_root((list, number), signed, bytes))
    }

    /// A list of this number, of which this part is signed by a root.
    pub(in super::super) fn by_root(
        (list, number): (L, u64),
        signed: &[u8],
        bytes: Vec<u8>,
    ) -> Self {
        let digest = Sha256::digest(signed).first_chunk().copied().unwrap_or_default();
        Self { list, mark: Mark { number, digest }, bytes }
    }
}
