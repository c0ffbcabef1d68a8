//! Killing any one actor leaves the node serving, the process the same, and its link kept or rebuilt.

use rustix::process::Signal;

use crate::kit::{Cluster, connections, linked, now, until};

fn survives_the_death_of(actor: &str) {
    let cluster = Cluster::new();
    let mut a = cluster.node("a").arg("--chaos").start();
    let b = cluster.node("b").join(a.listen()).start();
    linked(&[&a, &b]);
    let (pid, start) = (a.pid(), now());
    let answer = a.kill_actor(actor);
    a.counts("xpando_actor_restarts_total", actor, 0);
    linked(&[&a, &b]);
    eprintln!("{actor}: linked again after {:?}; the answer was {answer:?}", start.elapsed());
    assert!(a.runs());
    assert_eq!(a.pid(), pid);
    until("single connection between a and b", || match connections(&[&a, &b]) {
        1 => Ok(()),
        count => Err(format!("{count} connections")),
    });
    // It takes new peers, and tells old ones about them: every part works again.
    let c = cluster.node("c").join(a.listen()).start();
    linked(&[&a, &b, &c]);
    assert_eq!(a.terminate(), Some(0));
    b.sees_as("a", "offline", |row| row["reason"] == "left");
}

#[test]
fn news_dies() {
    survives_the_death_of("news");
}

#[test]
fn event_log_dies() {
    survives_the_death_of("event_log");
}

#[test]
fn link_dies() {
    survives_the_death_of("link");
}

#[test]
fn node_manager_dies() {
    survives_the_death_of("node_manager");
}

#[test]
fn discovery_dies() {
    survives_the_death_of("discovery");
}

#[test]
fn registry_dies() {
    survives_the_death_of("registry");
}

#[test]
fn files_dies() {
    survives_the_death_of("files");
}

#[test]
fn admin_dies() {
    survives_the_death_of("admin");
}

#[test]
fn records_dies() {
    survives_the_death_of("records");
}

#[test]
fn cluster_dies() {
    survives_the_death_of("cluster");
}

#[test]
fn gateway_dies() {
    survives_the_death_of("gateway");
}

#[test]
fn without_chaos_nobody_can_kill() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    assert!(a.kill_actor("link").unwrap_err().contains("--chaos"));
    assert_eq!(a.total("xpando_actor_restarts_total"), 0);
    let b = cluster.node("b").arg("--chaos").start();
    let error = b.kill_actor("nobody").unwrap_err();
    assert!(error.contains("node_manager"), "{error}");
}

/// What dies with the links is not shown as if it lived: here the peer cannot come back by itself.
#[test]
fn after_the_death_of_its_links_a_node_claims_none() {
    for actor in ["link", "news", "cluster"] {
        let cluster = Cluster::new();
        let a = cluster.node("a").arg("--chaos").start();
        let b = cluster.node("b").join(a.listen()).start();
        linked(&[&a, &b]);
        b.signal(Signal::STOP);
        a.kill_actor(actor).unwrap();
        a.counts("xpando_actor_restarts_total", actor, 0);
        a.shows(&format!("nobody online after the death of {actor}"), |status| {
            let rows = status["peers"].as_array().unwrap();
            rows.iter().all(|row| row["status"] != "online")
        });
        b.signal(Signal::CONT);
        linked(&[&a, &b]);
    }
}

#[test]
fn topology_tracker_dies() {
    survives_the_death_of("topology_tracker");
}
