//! Membership: machines in one thread, seeded, in virtual time.
//!
//! `alone` drives one machine by hand. `world` is a network of many, over a link layer that behaves
//! as `actors/link` does; `rules` are what must hold after every event in it; `scenarios` tell one
//! story each, `random` is weather. A failure prints the seed that shows it again.

#![allow(clippy::indexing_slicing, reason = "an index that is off is a failed test")]
#![allow(clippy::wildcard_enum_match_arm, reason = "a test looks for what it is about")]

mod alone;
mod bugs;
mod joining;
mod random;
mod revoked;
mod rules;
mod scenarios;
mod world;
