//! The conformance suite of `tests/phoenix`: the official Phoenix clients, two releases of them and an older one, against
//! five nodes of the suite's own. Where there is no Node.js, no npm or no way to get the clients, the test says so and
//! shows nothing.

use std::process::{Command, Stdio};

use crate::kit::{Cluster, PROGRAM};

/// The exit status of a suite that could not run.
const ABSENT: i32 = 77;

#[test]
fn the_official_clients_find_what_they_expect() {
    let cluster = Cluster::new();
    let example = cluster.example("channels");
    let mut suite = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/conformance"));
    suite.args(["--built", PROGRAM]).arg(&example.path).stdin(Stdio::null());
    let output = suite.output().unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.code() == Some(ABSENT) {
        eprintln!("SKIPPED: {}", said(&output.stderr).trim());
        return;
    }
    let (checks, errors) = (said(&output.stdout), said(&output.stderr));
    assert!(output.status.success(), "{}\n{checks}\n{errors}", output.status);
}
