//! Certificates over more than a year of stepped time: nobody does anything about them.

use std::time::{Duration, UNIX_EPOCH};

use xpando_node::internals::io::clock;

use crate::clocks::{Wall, libfaketime};
use crate::enrolment::{invited, line, machine};
use crate::kit::{Cluster, Node, linked, within};

/// What the slowest step may take: a request that meets another clock is made again after some seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// Until when a node's certificate is valid, in days from now.
fn days_left(node: &Node) -> f64 {
    let until = node.gauge("xpando_certificate_expiry_timestamp_seconds", "certificate=\"node\"");
    let now = clock::wall().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    (until - now) / (24.0 * 3600.0)
}

#[test]
fn a_cluster_lives_through_four_hundred_days_and_a_node_that_was_off_for_a_hundred_comes_back() {
    let Some(library) = libfaketime() else { return };
    let cluster = Cluster::new();
    let walls = ["a", "b", "c"].map(|name| Wall::of(&cluster, name));
    let a = walls[0].shown_to(cluster.node("a"), &library).start();
    let invitation = line(&a, &["--uses", "2"]);
    let start = |number: usize, name: &str| {
        walls[number].shown_to(invited(&cluster, name, &invitation), &library).start()
    };
    let (b, c) = (start(1, "b"), start(2, "c"));
    linked(&[&a, &b, &c]);
    let mut c = Some(c);
    for day in (20..=400).step_by(20) {
        if day == 100 {
            assert_eq!(c.take().unwrap().terminate(), Some(0));
        }
        walls.iter().for_each(|wall| wall.set(day * 24));
        if day == 200 {
            // Its certificate has ended, and nobody links with it.
            let again = cluster.node("c").certs(&machine(&cluster, "c"));
            c = Some(walls[2].shown_to(again, &library).start());
        }
        let nodes: Vec<&Node> = [&a, &b].into_iter().chain(c.as_ref()).collect();
        for node in &nodes {
            within(PATIENCE, &format!("certificate of {} for day {day}", node.name), || {
                let left = days_left(node) - day as f64;
                if left > 17.0 { Ok(()) } else { Err(format!("{left} days")) }
            });
        }
        linked(&nodes);
    }
    for node in [a, b].into_iter().chain(c) {
        assert_eq!(node.terminate(), Some(0));
    }
}
