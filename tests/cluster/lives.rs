//! The lives of a node: crash, restart, orderly leave, and which of two lives is believed.

use rustix::process::Signal;
use serde_json::Value;

use crate::kit::{Cluster, copy_files, full, linked, three, until};

fn in_life(incarnation: u64) -> impl Fn(&Value) -> bool {
    move |row| row["incarnation"] == incarnation
}

#[test]
fn a_killed_node_is_offline_everywhere_and_back_with_a_higher_incarnation() {
    let cluster = Cluster::new();
    let [a, b, c] = three(&cluster);
    let first = b.listen();
    b.kill();
    for node in [&a, &c] {
        node.logged("peer_offline", &[("node", &full("b"))]);
        node.sees_as("b", "offline", |row| row["reason"] == "crashed");
    }
    // Its first port is kept busy, so that the second life surely has another.
    let _taken = std::net::TcpListener::bind(first).unwrap();
    let b = cluster.node("b").join(c.listen()).start();
    assert_ne!(b.listen(), first);
    for node in [&a, &c] {
        let row = node.sees_as("b", "online", in_life(2));
        assert_eq!(row["address"], b.listen().to_string(), "the address of the new life");
        assert_eq!(row["reason"], Value::Null);
        let old = [("node", "b@"), ("message", "incarnation 1")];
        assert_eq!(node.count_logged("peer_online", &old), 1, "never an older life again");
    }
}

#[test]
fn a_node_that_is_told_to_stop_says_goodbye_and_may_return() {
    for signal in [Signal::TERM, Signal::INT] {
        let cluster = Cluster::new();
        let [a, mut b, c] = three(&cluster);
        b.signal(signal);
        assert_eq!(b.exit_code(), Some(0));
        for node in [&a, &c] {
            node.sees_as("b", "offline", |row| row["reason"] == "left");
            assert_eq!(node.count_logged("link_lost", &[("node", "b@")]), 0, "it was no loss");
            assert_eq!(node.count_logged("dial_failed", &[("node", "b@")]), 0, "nobody dials it");
        }
        let b = cluster.node("b").join(a.listen()).start();
        linked(&[&a, &b, &c]);
        a.sees_as("b", "online", in_life(2));
    }
}

#[test]
fn a_later_life_replaces_a_stale_session_at_once() {
    let cluster = Cluster::new();
    let [a, old, c] = three(&cluster);
    old.signal(Signal::STOP);
    let copy = cluster.path("b-copied");
    copy_files(&old.data_dir, &copy);
    let new = cluster.node("b").data_dir(&copy).join(a.listen()).start();
    for node in [&a, &c] {
        let row = node.sees_as("b", "online", in_life(2));
        assert_eq!(row["address"], new.listen().to_string());
        node.logged("link_replaced", &[("node", "b@"), ("message", "incarnation 2")]);
    }
    let before = [a.row("b"), c.row("b")];

    old.signal(Signal::CONT);
    let why = "incarnation 2 of this node is known and linked";
    old.logged("refused_by", &[("message", why)]);
    until("refusal by a or c in their logs", || {
        let refused = [&a, &c].map(|node| node.count_logged("link_refused", &[("message", why)]));
        if refused.iter().sum::<usize>() > 0 { Ok(()) } else { Err(format!("{refused:?}")) }
    });
    old.shows("no peer online", |status| {
        status["peers"].as_array().is_some_and(|rows| rows.iter().all(|r| r["status"] != "online"))
    });
    assert_eq!([a.row("b"), c.row("b")], before, "the new life is undisturbed");
    assert_eq!(
        old.status().unwrap()["incarnation"],
        1,
        "it does not raise itself over the new one"
    );
}

#[test]
fn an_older_incarnation_is_refused_while_a_later_one_is_linked() {
    let cluster = Cluster::new();
    let [a, b, c] = three(&cluster);
    assert_eq!(b.terminate(), Some(0));
    let b = cluster.node("b").join(a.listen()).start();
    linked(&[&a, &b, &c]);
    let before = [a.row("b"), c.row("b")];
    let counted = a.counter("xpando_connections_refused_total", "stale");

    let mut older = cluster.node("b").data_dir(&cluster.path("b-fresh")).join(a.listen()).start();
    let why = ("message", "incarnation 2 of this node is known and linked");
    a.logged("link_refused", &[("node", "b@"), why]);
    older.logged("refused_by", &[("node", "a@"), why]);
    a.counts("xpando_connections_refused_total", "stale", counted);
    let row = older.sees("a", "offline");
    assert_eq!(row["reason"], "rejected");
    assert_eq!(older.status().unwrap()["incarnation"], 1);
    assert!(older.runs());
    assert_eq!([a.row("b"), c.row("b")], before, "the genuine links are undisturbed");
}

#[test]
fn a_node_that_lost_its_data_directory_goes_on_above_its_last_life() {
    let cluster = Cluster::new();
    let [a, b, c] = three(&cluster);
    let data_dir = b.data_dir.clone();
    b.kill();
    let b = cluster.node("b").join(a.listen()).start();
    linked(&[&a, &b, &c]);
    b.kill();
    for node in [&a, &c] {
        node.sees("b", "offline");
    }
    std::fs::remove_dir_all(&data_dir).unwrap();

    let b = cluster.node("b").join(a.listen()).start();
    b.logged("incarnation_raised", &[("message", "incarnation 3")]);
    for node in [&a, &c] {
        node.sees_as("b", "online", in_life(3));
    }
    assert_eq!(b.status().unwrap()["incarnation"], 3);
    // The raise is written down: the next life is above it.
    b.counts("xpando_store_writes_total", "ok", 0);
    assert_eq!(b.terminate(), Some(0));
    let b = cluster.node("b").join(a.listen()).start();
    assert_eq!(b.status().unwrap()["incarnation"], 4);
    linked(&[&a, &b, &c]);
    let first = [("node", "b@"), ("message", "incarnation 1")];
    assert_eq!(a.count_logged("peer_online", &first), 1, "never an older life again");
}
