//! Nodes that have to fight for the processor.

use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use crate::kit::{Cluster, Mesh, during};

/// How long the processor is busy.
const BUSY: Duration = Duration::from_secs(60);

/// Processes that do nothing but compute, twice as many as there are cores.
struct Load(Vec<Child>);

impl Load {
    fn new() -> Self {
        let count = 2 * thread::available_parallelism().unwrap().get();
        let spin = || Command::new("/bin/sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        Self((0..count).map(|_| spin()).collect())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.0 {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

#[test]
fn a_busy_machine_makes_nobody_offline() {
    let cluster = Cluster::new();
    let seed = cluster.node("n1").start();
    let join = |number| cluster.node(&format!("n{number}")).join(seed.listen()).launch();
    let others: Vec<_> = (2..=5).map(join).collect();
    let mesh = Mesh::form([seed].into_iter().chain(others).collect());
    let (all, lives) = (mesh.every_pair(), mesh.lives());
    let before = mesh.standings(&all);
    let load = Load::new();
    during(BUSY, || assert_eq!(mesh.standings(&all), before));
    drop(load);
    mesh.is_unharmed();
    assert_eq!(mesh.lives(), lives);
    let [doubts, pauses] =
        ["suspected", "paused"].map(|kind| mesh.count("xpando_heartbeat_verdicts_total", kind));
    eprintln!("{doubts} doubts, {pauses} pauses noticed");
}
