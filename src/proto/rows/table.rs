//! What one table holds, and how it is kept.

use std::fmt::Debug;
use std::time::Duration;

use serde::Serialize;

use super::{Row, Rows};
use crate::proto::node::NodeName;

/// What a tombstone does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tombstones {
    /// It ends that life: no version is later. A link proves that the life goes on; from then on there is an empty row
    /// until the origin sends its own. Every node makes its own tombstones, so they are no part of the hash.
    Final,
    /// It is one version above the known one, for everybody to keep; an origin that lives goes on above it.
    Outbid,
}

/// What one table holds, and how it is kept.
pub trait Table: Debug + Sized {
    /// What an origin states; the default is what is known of one that has stated nothing.
    type Value: Clone + Debug + Default + PartialEq + Serialize;
    /// A change of an own row, or a part of a long one.
    type Change: Clone + Debug + PartialEq;

    /// What its rows are called where they are sealed.
    const KIND: &'static str;
    /// One random peer gets a digest in about every such period.
    const DIGEST: Duration;
    /// Every peer gets a digest in every such period.
    const ROUND: Option<Duration>;
    /// A newly linked peer gets its first digest about this long after the own row; with many peers later, and one of
    /// those that are linked until then.
    const FIRST_DIGEST: Duration;
    /// An unanswered want is repeated after this time.
    const RETRY: Duration;
    /// Peers to which each node that takes a row second-hand names it; nothing is relayed when 0.
    const RELAYS: usize;
    /// What a tombstone does.
    const TOMBSTONES: Tombstones;
    /// How long a tombstone is kept.
    const TOMBSTONE: Duration;

    /// Bytes that a value needs on the wire, at most.
    fn size(value: &Self::Value) -> usize;

    /// Entries of a change.
    fn length(change: &Self::Change) -> usize;

    /// A long value as changes of at most `limit` bytes each that make it from the default.
    fn parts(value: &Self::Value, limit: usize) -> Vec<Self::Change>;

    /// Applies a change. What breaks a bound is left out or clamped, and the rule returned; `latest` is the latest time
    /// that is believed, in milliseconds since 1970.
    fn apply(value: &mut Self::Value, change: Self::Change, latest: u64) -> Option<&'static str>;

    /// Brings a whole value within its bounds, likewise.
    fn bound(value: &mut Self::Value, latest: u64) -> Option<&'static str>;

    /// The linked peers to which this node names a row that it took from `source`.
    fn relays(rows: &Rows<Self>, row: &Row<Self::Value>, source: &NodeName) -> Vec<NodeName>;

    /// Whether the origin is about to send its row itself, so that it need not be asked of others.
    fn is_awaited(_rows: &Rows<Self>, _origin: &NodeName) -> bool {
        false
    }

    /// A row that can be dropped for another, besides tombstones.
    fn spare(rows: &Rows<Self>) -> Option<NodeName>;
}
