//! A process that stops answering without closing its sockets: doubt, verdict, and the way back.

use rustix::process::Signal;
use serde_json::Value;

use crate::kit::{Cluster, linked};

#[test]
fn a_stopped_node_is_suspect_then_unreachable_and_back_at_once_when_it_wakes() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let b = cluster.node("b").join(a.listen()).start();
    let c = cluster.node("c").join(a.listen()).start();
    linked(&[&a, &b, &c]);
    c.signal(Signal::STOP);
    for node in [&a, &b] {
        node.sees_as("c", "online", |row| row["suspect"] == true);
    }
    for node in [&a, &b] {
        let row = node.sees_as("c", "offline", |row| row["reason"] == "unreachable");
        let evidence = &row["evidence"];
        assert!(evidence["phi"].as_f64().unwrap() >= 8.0, "{evidence}");
        assert!(evidence["missed"].as_u64().unwrap() >= 8, "{evidence}");
        assert_eq!(evidence["heard_by"], Value::Array(vec![]), "{evidence}");
        // Its machine acknowledges every byte: a stopped process is told from a cut way.
        assert_eq!(evidence["broken"], "process", "{evidence}");
        assert_eq!(evidence["unacknowledged_bytes"], 0, "{evidence}");
    }
    // The two that go on never doubted each other.
    assert_eq!(a.count_logged("peer suspect: not heard", &[("peer", "b@")]), 0);
    c.signal(Signal::CONT);
    linked(&[&a, &b, &c]);
    c.logged("this node was paused; it doubts itself before others", &[]);
    for accusation in ["peer suspect: not heard", "peer silent: given up"] {
        assert_eq!(c.count_logged(accusation, &[]), 0, "the woken node accuses nobody");
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
