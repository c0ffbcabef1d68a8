//! One bad member: it has a genuine certificate of the cluster and a program of its own that speaks the wire as it
//! likes. Each attack runs against three real nodes and prints what the innocent ones suffered.
//!
//! What has to hold is in [`harm`]; what does not hold yet is in [`open`], with what fails.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that cannot go on ends here, and says what it saw"
)]

#[path = "../kit/kit.rs"]
#[allow(dead_code, unused_imports, reason = "the kit is the tests' of clusters, too")]
mod kit;

mod bounds;
mod capabilities;
mod equivocation;
mod gone;
mod harm;
mod hearsay;
mod lists;
mod lives;
mod member;
mod open;
mod ractor;
mod speed;
mod trail;
