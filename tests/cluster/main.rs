//! Clusters of real `xpando-node` processes, seen as an operator sees them: command line, logs,
//! counters, exit codes. Each test has its own authority, directories and ports; the kit kills
//! whatever a test has started, and prints its logs when the test fails.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that cannot go on ends here, and says what it saw"
)]

#[path = "../kit/kit.rs"]
mod kit;

mod accounting;
mod addresses;
mod api;
mod carried;
mod clients;
mod clocks;
mod command_line;
mod crashes;
mod crossed_dials;
mod crowd;
mod dashboard;
mod disks;
mod draining;
mod embedding;
mod enrolment;
mod everywhere;
mod examples;
mod flapping;
mod formation;
mod gateway;
mod handlers;
mod history;
mod hostile_beacons;
mod hostile_links;
mod identity;
mod intermediate;
mod joining;
mod journal;
mod later;
mod limits;
mod lives;
mod load;
mod machine;
mod many;
mod messages;
mod netlab;
mod phoenix;
mod proxies;
mod reading;
mod registry;
mod renewal;
mod requests;
mod revocation;
mod rights;
mod rotation;
mod saturated;
mod silence;
mod soak;
mod splits;
mod startup;
mod stopped;
mod storms;
mod supervision;
mod tampered;
mod terminal;
mod tokens;
mod top;
mod topology;
mod unread;
mod wording;
