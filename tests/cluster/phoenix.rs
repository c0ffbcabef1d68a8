//! The conformance suite of `tests/phoenix`: the official Phoenix clients, two releases of them and an older one, against
//! six nodes of the suite's own. Where there is no Node.js, no npm or no way to get the clients, the test says so and
//! shows nothing.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::kit::{Cluster, PROGRAM, skip};

/// The exit status of a suite that could not run.
const ABSENT: i32 = 77;

/// Runs a suite of checks, which must all hold, with the program and what else it needs; what it printed.
#[track_caller]
pub(crate) fn checks(script: &str, more: &[&Path]) -> Option<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(script);
    let mut suite = Command::new(path);
    passes(script, suite.args(["--built", PROGRAM]).args(more))
}

/// Runs a script that must succeed, unless what it needs is not here; what it printed. `name` is the need it stands for.
#[track_caller]
pub(crate) fn passes(name: &str, script: &mut Command) -> Option<String> {
    let output = script.stdin(Stdio::null()).output().unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.code() == Some(ABSENT) {
        skip(name, &said(&output.stderr));
        return None;
    }
    let (checks, errors) = (said(&output.stdout), said(&output.stderr));
    assert!(output.status.success(), "{}\n{checks}\n{errors}", output.status);
    Some(checks)
}

#[test]
fn the_official_clients_find_what_they_expect() {
    let cluster = Cluster::new();
    let example = cluster.example("channels");
    checks("conformance", &[&example.path]);
}
