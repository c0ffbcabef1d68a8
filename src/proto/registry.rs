//! Who the nodes are: what each states of itself, and who is forgotten, as this node knows it.
//!
//! The machine behind Registry: a table of [`rows`], whose exchange, bounds and invariants it has. There
//! is one entry for each node: its profile, or the tombstone of one that somebody had forgotten.
//!
//! # What is its own
//! ```text
//! a profile    never changes within a life: an entry travels whole
//! a forget     to all linked peers at once; who learns of it passes it on to all of its own, once, within its first hour
//! the rest     is not relayed; digests are rare, and nodes that start together send a few words a link
//! ```
//!
//! # Who is forgotten
//! A tombstone is one version above what was known, and carries the seal of the node that made it, of which each node
//! takes 64 a minute, and who asked for it. It beats what a node states that was away meanwhile, and keeps
//! for 30 days. A node that lives and learns of its own tombstone goes on above it. A later life is above
//! any tombstone of an earlier one. A linked node is not forgotten. What the node had stated stays in the tombstone: any
//! node can bring it back, in one version above that.

use std::time::Duration;

use crate::proto::node::NodeName;
use crate::proto::rows::{self, Rows, Table, Tombstones};

pub mod book;
mod known;
mod profile;
pub use crate::proto::rows::{MAX_ROWS, Mark, Ruling, State, Stated};
pub use known::Known;
pub use profile::{LONGEST, Pair, Profile, ProfileError, Specialization};

/// The change of a profile: there is none.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Never {}

/// The latest known of a node: its profile, or that it is forgotten.
pub type Entry = rows::Row<Profile>;
/// What registries send each other.
pub type Word = rows::Word<Profile, Never>;
/// What the machine receives.
pub type Input = rows::Input<Profile, Never>;
/// What the machine wants done.
pub type Output = rows::Output<Profile, Never>;
/// The machine.
pub type Registry = Rows<Profiles>;

/// The table of the registry.
#[derive(Debug)]
pub struct Profiles;

impl Table for Profiles {
    type Value = Profile;
    type Change = Never;

    const KIND: &'static str = "registry";
    const DIGEST: Duration = Duration::from_secs(10);
    const ROUND: Option<Duration> = None;
    const FIRST_DIGEST: Duration = Duration::from_secs(1);
    const RETRY: Duration = Duration::from_secs(2);
    const RELAYS: usize = 0;
    const TOMBSTONES: Tombstones = Tombstones::Outbid;
    const TOMBSTONE: Duration = Duration::from_secs(30 * 24 * 3600);

    fn size(profile: &Profile) -> usize {
        profile.size()
    }

    fn length(change: &Never) -> usize {
        match *change {}
    }

    fn parts(_: &Profile, _: usize) -> Vec<Never> {
        Vec::new() // none is longer than a word
    }

    fn apply(_: &mut Profile, change: Never, _: u64) -> Option<&'static str> {
        match change {}
    }

    fn bound(_: &mut Profile, _: u64) -> Option<&'static str> {
        None // one that exists is within its bounds
    }

    fn relays(_: &Rows<Self>, _: &Entry, _: &NodeName) -> Vec<NodeName> {
        Vec::new()
    }

    fn spare(_: &Rows<Self>) -> Option<NodeName> {
        None
    }
}

#[cfg(test)]
mod tests;
