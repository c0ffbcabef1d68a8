//! Nodes and addresses that one member invents.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use xpando_node::internals::proto::node::NodeName;

use crate::harm::Scene;
use crate::kit::{during, full, linked, now, parsed, within};
use crate::member::Member;

/// How long a link of the member lasts without ractor's handshake, but for a little.
const TIE: Duration = Duration::from_secs(4);

fn ghosts(many: usize) -> impl Iterator<Item = NodeName> {
    (0..many).map(|n| parsed(&format!("ghost{n}")))
}

#[test]
fn invented_nodes_are_looked_for_within_bounds_and_count_for_nothing() {
    let mut scene = Scene::new();
    let victim = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let at = victim.local_addr().unwrap();
    let dials = Arc::new(AtomicUsize::new(0));
    let counted = dials.clone();
    // A connection there is closed at once.
    thread::spawn(move || {
        for _dial in victim.incoming() {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    let start = now();
    let harm = scene.under(|member: &mut Member, nodes| {
        let contacts: Vec<(NodeName, SocketAddr, u64)> =
            ghosts(2000).map(|name| (name, at, 1)).collect();
        for _ in 0..2 {
            let mut ties = nodes.each_ref().map(|node| member.link(node));
            during(TIE, || ties.iter_mut().for_each(|tie| tie.contacts(&contacts)));
        }
    });
    harm.bearable("invented contacts");
    let (dials, seconds) = (dials.load(Ordering::Relaxed), start.elapsed().as_secs());
    eprintln!("{dials} dials at one address in {seconds} s by three nodes");
    assert!(dials <= 3 * 16, "{dials}");
    for node in &scene.nodes {
        let status = node.status().unwrap();
        assert_eq!(status["peers"].as_array().unwrap().len(), 3, "{status}");
        assert_eq!(node.count_logged("peer_discovered", &[("node", "ghost")]), 0);
    }
}

#[test]
fn an_invented_node_has_no_profile_no_row_and_no_cell() {
    let mut scene = Scene::new();
    let harm = scene.under(|member, nodes| {
        let mut ties = nodes.each_ref().map(|node| member.link(node));
        for tie in &mut ties {
            tie.cells(ghosts(1000));
            for ghost in ghosts(1100) {
                tie.profile(&ghost, 1, 1);
                tie.row(&ghost, 1, 1);
            }
        }
    });
    harm.bearable("1100 profiles and rows, 1000 cells");
    let [a, b, c] = &scene.nodes;
    for node in [a, b, c] {
        for of in ["nodes", "topology"] {
            let shown = node.ask(&[of, "--json"]).unwrap();
            assert!(!shown.contains("ghost"), "{of}: {shown}");
        }
        assert_eq!(node.count_logged("link_changed", &[("to", "ghost")]), 0);
    }
    let d = scene.cluster.node("d").join(a.listen()).arg("--specialization").arg("new").start();
    linked(&[a, b, c, &d]);
    for node in [a, b, c] {
        within(Duration::from_secs(2), "what d states", || {
            let nodes: Vec<Value> = serde_json::from_str(&node.ask(&["nodes", "--json"])?)
                .map_err(|e| e.to_string())?;
            let d = nodes.iter().find(|it| it["name"] == full("d")).cloned().unwrap_or_default();
            let right = d["specializations"] == serde_json::json!(["new"]);
            if right { Ok(()) } else { Err(format!("{} nodes, {d}", nodes.len())) }
        });
    }
}
