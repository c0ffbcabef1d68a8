//! Fifty nodes on one machine for as long as one likes, while some are killed, stopped and told to
//! leave, and come back; all is well in the end. It prints what a node costs.
//!
//! It runs when it is asked for:
//! `SOAK_SECONDS=120 cargo test --release --test cluster soak -- --nocapture`

use std::env;
use std::time::Duration;

use rustix::process::Signal;

use crate::kit::{Cluster, Mesh, Node, during, now, skip};

const NODES: usize = 50;

/// Starts a node that knows two others.
fn launch(cluster: &Cluster, mesh: &Mesh, number: usize) -> Node {
    let seeds = mesh.nodes.iter().take(2).map(Node::listen);
    let start = cluster.node(&format!("n{number:02}"));
    seeds.fold(start, |start, seed| start.join(seed)).launch()
}

/// The least, the middle and the most of what nodes cost.
fn spread(what: &str, mut values: Vec<f64>) {
    values.sort_by(f64::total_cmp);
    let [least, middle, most] = [0, values.len() / 2, values.len() - 1].map(|at| values[at]);
    eprintln!("{what} a node: {least:.1} to {most:.1}, median {middle:.1}");
}

fn costs(mesh: &Mesh) {
    spread("MiB of memory", mesh.nodes.iter().map(|n| n.memory() as f64 / 1024.0).collect());
    let busy = |mesh: &Mesh| mesh.nodes.iter().map(Node::processor).collect::<Vec<_>>();
    let (start, before) = (now(), busy(mesh));
    during(Duration::from_secs(10), || {});
    let after = busy(mesh).into_iter().zip(before).map(|(after, before)| after - before);
    let share = |took: Duration| 100.0 * took.as_secs_f64() / start.elapsed().as_secs_f64();
    spread("percent of a core", after.map(share).collect());
}

/// One bad quarter of a minute: of eight nodes in a row, three die, two hang and three leave.
fn harm(cluster: &Cluster, mesh: &mut Mesh, round: usize) {
    let first = 2 + round * 8 % (NODES - 10);
    for at in first..first + 8 {
        let old = mesh.nodes.remove(at);
        if at < first + 3 {
            old.kill();
        } else if at < first + 5 {
            old.signal(Signal::STOP);
            mesh.nodes.insert(at, old);
            continue;
        } else {
            assert_eq!(old.terminate(), Some(0));
        }
        mesh.nodes.insert(at, launch(cluster, mesh, at + 1));
    }
    for stopped in first + 3..first + 5 {
        let name = mesh.nodes[stopped].name.clone();
        mesh.nodes[0].sees(&name, "offline");
        mesh.nodes[stopped].signal(Signal::CONT);
    }
}

#[test]
fn fifty_nodes_stay_well() {
    let seconds = env::var("SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    let Some(span) = seconds.map(Duration::from_secs) else {
        return skip("soak", "SOAK_SECONDS does not say for how long");
    };
    let cluster = Cluster::new();
    let start = now();
    let mut mesh = Mesh { nodes: Vec::new() };
    for number in 1..=NODES {
        mesh.nodes.push(launch(&cluster, &mesh, number));
    }
    let mut mesh = Mesh::form(mesh.nodes);
    eprintln!("all {NODES} linked {:?} after the first start", start.elapsed());
    costs(&mesh);
    let mut rounds = 0;
    while start.elapsed() < span || rounds == 0 {
        harm(&cluster, &mut mesh, rounds);
        let harmed = now();
        mesh.linked();
        rounds += 1;
        eprintln!("round {rounds}: all linked {:?} after the harm", harmed.elapsed());
    }
    for node in &mut mesh.nodes {
        assert!(node.runs(), "{}", node.name);
    }
    costs(&mesh);
}
