//! Nodes find each other, in any order and in each way, until the mesh is full.

use std::net::TcpListener;

use crate::kit::{Cluster, Node, free_address, linked, multicast, now, skip};

fn by_beacons(names: &[&str]) {
    if !multicast() {
        return;
    }
    let cluster = Cluster::new();
    let start = now();
    let nodes: Vec<Node> = names.iter().map(|name| cluster.node(name).beacons().launch()).collect();
    linked(&nodes.iter().collect::<Vec<_>>());
    eprintln!("{} nodes: {:?} from the first start to a full mesh", names.len(), start.elapsed());
}

#[test]
fn three_nodes_at_once_by_beacons_alone() {
    by_beacons(&["a", "b", "c"]);
}

#[test]
fn five_nodes_at_once_by_beacons_alone() {
    by_beacons(&["a", "b", "c", "d", "e"]);
}

#[test]
fn one_seed_is_enough_for_a_full_mesh() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let b = cluster.node("b").join(a.listen()).start();
    let c = cluster.node("c").join(a.listen()).start();
    linked(&[&a, &b, &c]);
}

#[test]
fn the_seed_may_start_last() {
    let cluster = Cluster::new();
    let seed = free_address();
    let c = cluster.node("c").join(seed).start();
    let b = cluster.node("b").join(seed).start();
    c.logged("no node answers", &[("message", &seed.to_string())]);
    let a = cluster.node("a").listen(seed).start();
    linked(&[&a, &b, &c]);
}

#[test]
fn ipv6_and_ipv4_nodes_form_one_cluster() {
    if TcpListener::bind("[::1]:0").is_err() {
        return skip("ipv6", "this machine has no ::1");
    }
    let cluster = Cluster::new();
    let a = cluster.node("a@::1").start();
    let b = cluster.node("b@::1").join(a.listen()).start();
    let c = cluster.node("c").join(b.listen()).start();
    linked(&[&a, &b, &c]);
    assert!(a.listen().is_ipv6() && c.listen().is_ipv4());
}

#[test]
fn a_seed_may_be_a_name() {
    let cluster = Cluster::new();
    let a = cluster.node("a@localhost").start();
    let b = cluster.node("b").join(format!("localhost:{}", a.listen().port())).start();
    linked(&[&a, &b]);
}

#[test]
fn peers_of_an_earlier_run_are_found_without_seed_or_beacon() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let b = cluster.node("b").join(a.listen()).start();
    linked(&[&a, &b]);
    // The address is remembered once it was reached: the write is counted.
    b.counts("xpando_store_writes_total", "ok", 0);
    b.kill();
    let b = cluster.node("b").start();
    linked(&[&a, &b]);
}

#[test]
fn clusters_of_two_authorities_do_not_mix() {
    if !multicast() {
        return;
    }
    let cluster = Cluster::new();
    let other = cluster.path("other-certs");
    xpando_node::internals::io::identity::Authority::init(
        &other,
        xpando_node::internals::io::clock::wall(),
    )
    .unwrap();
    let a = cluster.node("a").beacons().start();
    let x = cluster.node("x").certs(&other).beacons().start();
    let b = cluster.node("b").beacons().start();
    linked(&[&a, &b]);
    a.counts("xpando_beacons_received_total", "foreign", 0);
    x.counts("xpando_beacons_received_total", "foreign", 0);
    assert_eq!(x.status().unwrap()["peers"].as_array().unwrap().len(), 0);
    assert_eq!(a.status().unwrap()["peers"].as_array().unwrap().len(), 1);
}
