//! Floor 1: the pure part. Vocabulary, wire formats and state machines.
//!
//! Nothing here reads a clock, opens a socket or a file, sleeps, spawns or seeds a generator:
//! time arrives as an argument, randomness as a generator the caller seeded, effects leave as
//! values. That is what lets one test run hundreds of nodes in one thread, the same way each time.

#![deny(clippy::indexing_slicing)]

pub mod admission;
pub mod askers;
pub mod backoff;
pub mod beacon;
pub mod budget;
pub mod capability;
pub mod chain;
pub mod channel;
pub mod codec;
pub mod discovery;
pub mod enrol;
pub mod event;
pub mod frame;
pub mod gate;
pub mod heartbeat;
pub mod hello;
pub mod history;
pub mod hlc;
pub mod interest;
pub mod limits;
pub mod link;
pub mod lists;
pub mod membership;
pub mod newcomers;
pub mod node;
pub mod notices;
pub mod outbox;
pub mod polling;
pub mod presence;
pub mod printable;
pub mod processor;
pub mod proxies;
pub mod questions;
pub mod quota;
pub mod registry;
pub mod renewal;
pub mod replay;
pub mod restart;
pub mod rotation;
pub mod rows;
pub mod seal;
pub mod share;
pub mod talk;
pub mod term;
pub mod token;
pub mod topic;
pub mod topology;
pub mod wiring;

#[cfg(test)]
pub(crate) mod tests;
