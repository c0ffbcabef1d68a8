//! What a node says that finds nobody, or another process of its name.

use crate::kit::{Cluster, free_address, full, linked, outputs};

#[test]
fn a_node_that_finds_nobody_says_what_it_tried() {
    let cluster = Cluster::new();
    let nobody = free_address().to_string();
    let a = cluster.node("a").join(&nobody).start();
    let first = cluster.node("b").start();
    let seen = a.shows("its seed", |status| status["seeds"][0]["error"] == "connection refused");
    let seed = &seen["seeds"][0];
    assert_eq!((&seed["seed"], &seed["address"]), (&seed["address"], &nobody.as_str().into()));
    assert!(
        seed["tried"].is_string() && seed["node"].is_null() && seed["linked"] == false,
        "{seed}"
    );
    let (code, text, _) = outputs(&a.run(&["status"], &[]));
    assert_eq!(code, Some(0));
    assert!(text.contains("connection refused") && text.contains("no peers known yet"), "{text}");
    let (code, text, _) = outputs(&a.run(&["why", &nobody], &[]));
    assert_eq!(code, Some(0));
    assert!(text.contains(&nobody) && text.contains("connection refused"), "{text}");
    assert!(text.contains("is the node running"), "{text}");
    let (code, _, text) = outputs(&a.run(&["why", "10.9.8.7"], &[]));
    assert!(code == Some(1) && text.contains("10.9.8.7:4697") && text.contains(&nobody), "{text}");
    // After ten seconds, once.
    let seeds = format!("{nobody}: connection refused");
    let remedy = format!("--join {}", a.listen());
    let fields = [("level", "WARN"), ("seeds", &seeds), ("beacons", "off"), ("message", &remedy)];
    a.logged("no other node is linked", &fields);
    first.logged("no other node is linked, and none is looked for", &[("level", "INFO")]);
    let b = first;
    let c = cluster.node("c").join(a.listen()).join(b.listen()).start();
    linked(&[&a, &b, &c]);
    let both = |row: &serde_json::Value| row["linked"] == true && row["error"].is_null();
    let seen = c.shows("its seeds", |it| it["seeds"].as_array().unwrap().iter().all(both));
    assert_eq!(seen["seeds"].as_array().unwrap().len(), 2);
    let (_, text, _) = outputs(&c.run(&["why", &a.listen().to_string()], &[]));
    assert!(text.contains(&format!("{} is there, and linked", full("a"))), "{text}");
}

#[test]
fn a_second_process_of_a_name_says_so_once_and_shows_where_the_first_is() {
    let cluster = Cluster::new();
    let first = cluster.node("a").start();
    let b = cluster.node("b").join(first.listen()).start();
    linked(&[&first, &b]);
    let at = first.listen().to_string();
    let other = || cluster.node("a").data_dir(&cluster.path("other"));
    let second = other().join(b.listen()).start();
    let says = "another process uses this node's name";
    second.logged(says, &[("message", &at), ("level", "WARN")]);
    assert_eq!(
        second.shows("the first", |it| it["namesake"] == at.as_str())["peers"][0]["status"],
        "offline"
    );
    let (_, text, _) = outputs(&second.run(&["status"], &[]));
    assert!(text.contains(&format!("another process uses this name at {at}")), "{text}");
    b.counts("xpando_connections_refused_total", "stale", 3);
    assert_eq!(second.count_logged(says, &[]), 1);
    assert_eq!(second.count_logged("", &[("level", "WARN")]), 1, "and nothing else");
    assert_eq!(b.count_logged("link_refused", &[]), 1);
    second.kill();
    // It dials the first one itself: then both know.
    let second = other().join(first.listen()).start();
    let there = second.listen().to_string();
    second.logged(says, &[("message", &at)]);
    first.logged(says, &[("message", &there)]);
    first.shows("the second", |it| it["namesake"] == there.as_str());
    linked(&[&first, &b]);
}
