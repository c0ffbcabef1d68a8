//! A process that stops answering without closing its sockets: doubt, verdict, and the way back.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::kit::{Cluster, Node, during, linked, now, three};

const ACCUSATIONS: [&str; 3] = ["peer_suspected", "peer_silent", "peer_offline"];

/// How soon is for the benchmark and the simulator to say: here only who reads along learns it.
fn took(node: &Node, what: &str, since: Instant) {
    eprintln!("{}: {what} after {:?}", node.name, since.elapsed());
}

#[track_caller]
fn accuses_nobody(node: &Node) {
    node.logged("paused", &[]);
    for accusation in ACCUSATIONS {
        assert_eq!(node.count_logged(accusation, &[]), 0, "the woken node accuses nobody");
    }
    assert_eq!(node.counter("xpando_heartbeat_verdicts_total", "suspected"), 0);
    assert_eq!(node.counter("xpando_heartbeat_verdicts_total", "silent"), 0);
}

#[test]
fn a_node_stopped_for_three_seconds_keeps_its_links() {
    let cluster = Cluster::new();
    let [a, b, c] = three(&cluster);
    let before = [a.row("c"), b.row("c")];
    c.signal(Signal::STOP);
    during(Duration::from_secs(3), || {
        for node in [&a, &b] {
            assert_eq!(node.row("c")["status"], "online");
        }
    });
    c.signal(Signal::CONT);
    let woken = now();
    for node in [&a, &b] {
        node.sees_as("c", "online", |row| {
            row["suspect"] == false && row["phi"].as_f64().is_some_and(|phi| phi < 1.0)
        });
        took(node, "at ease again", woken);
    }
    accuses_nobody(&c);
    for node in [&a, &b, &c] {
        assert_eq!(node.total("xpando_links_ended_total"), 0, "{}", node.name);
    }
    for (before, node) in before.iter().zip([&a, &b]) {
        assert_eq!(node.row("c")["since"], before["since"], "it was online all the time");
    }
}

#[test]
fn a_node_stopped_for_thirty_seconds_is_given_up_and_back_at_once_when_it_wakes() {
    let cluster = Cluster::new();
    let [a, b, c] = three(&cluster);
    let neighbours = [a.row("b"), b.row("a")];
    c.signal(Signal::STOP);
    let stopped = now();
    for node in [&a, &b] {
        node.logged("peer_suspected", &[("node", "c@")]);
        took(node, "suspect", stopped);
    }
    for node in [&a, &b] {
        node.logged("peer_offline", &[("node", "c@"), ("message", "unreachable")]);
        took(node, "offline", stopped);
        let row = node.sees_as("c", "offline", |row| row["reason"] == "unreachable");
        let evidence = &row["evidence"];
        assert!(evidence["phi"].as_f64().unwrap() >= 8.0, "{evidence}");
        assert!(evidence["missed"].as_u64().unwrap() >= 8, "{evidence}");
        assert_eq!(evidence["heard_by"], Value::Array(vec![]), "{evidence}");
        // Its machine acknowledges every byte: a stopped process is told from a cut way.
        assert_eq!(evidence["broken"], "process", "{evidence}");
        assert_eq!(evidence["unacknowledged_bytes"], 0, "{evidence}");
    }
    during(Duration::from_secs(30).saturating_sub(stopped.elapsed()), || {
        for node in [&a, &b] {
            assert_eq!(node.row("c")["status"], "offline");
        }
        assert_eq!([a.row("b"), b.row("a")], neighbours, "those who go on stay linked");
    });
    c.signal(Signal::CONT);
    let woken = now();
    linked(&[&a, &b, &c]);
    took(&a, "all linked", woken);
    accuses_nobody(&c);
    assert_eq!([a.row("b"), b.row("a")], neighbours, "those who went on stay linked");
    for (node, peer) in [(&a, "b@"), (&b, "a@")] {
        assert_eq!(node.count_logged("peer_suspected", &[("node", peer)]), 0);
    }
}

#[test]
fn round_trips_are_measured_on_every_link() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let b = cluster.node("b").join(a.listen()).start();
    linked(&[&a, &b]);
    for (node, peer) in [(&a, "b"), (&b, "a")] {
        let row = node.sees_as(peer, "online", |row| row["rtt_ms"].is_f64());
        assert!(row["rtt_ms"].as_f64().unwrap() > 0.0, "{row}");
        assert!(row["last_heard"].is_string() && row["phi"].is_f64(), "{row}");
    }
}
