//! Membership: one machine, whose inputs a test makes up. Networks of many are simulated in `tests/sim`.
//!
//! `desk` drives the machine and has `rules` look at each step; `scenarios` tell one story each, `random` makes up links
//! and peers as they come. A failure prints the seed that shows it again.

#![allow(clippy::indexing_slicing, reason = "an index that is off is a failed test")]
#![allow(clippy::wildcard_enum_match_arm, reason = "a test looks for what it is about")]

mod alone;
mod desk;
mod hostile;
mod joining;
mod keys;
mod random;
mod revoked;
mod rules;
mod scenarios;
