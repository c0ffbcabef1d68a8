//! Datagrams that are no honest beacon: each is counted under its verdict, and nobody is dialed.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;
use xpando_node::internals::io::identity::Identity;
use xpando_node::internals::io::{beacon, clock};
use xpando_node::internals::proto::beacon::{Beacon, MAX_BEACON};
use xpando_node::internals::proto::node::{Contact, Incarnation};

use crate::kit::{Cluster, Node, PATIENCE, linked, multicast, parsed, until};

const RECEIVED: &str = "xpando_beacons_received_total";

/// A node that hears beacons, somebody who sends what it likes, and an address that is a trap.
struct Scene {
    a: Node,
    air: UdpSocket,
    trap: TcpListener,
    cluster: Cluster,
}

impl Scene {
    fn new() -> Self {
        let cluster = Cluster::new();
        let a = cluster.node("a").beacons().start();
        let air = beacon::open(Ipv4Addr::LOCALHOST).unwrap(); // sends on loopback only
        let trap = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        trap.set_nonblocking(true).unwrap();
        Self { a, air, trap, cluster }
    }

    /// A beacon of `name` that leads to the trap.
    fn beacon(&self, identity: &Identity, name: &str) -> Beacon {
        Beacon {
            cluster: identity.cluster(),
            contact: Contact {
                name: parsed(name),
                address: self.trap.local_addr().unwrap(),
                incarnation: Incarnation(1),
            },
            sequence: 1,
            sent: millis(),
        }
    }

    fn send(&self, datagram: &[u8]) {
        let sent = self.air.send_to(datagram, (beacon::GROUP, beacon::PORT)).unwrap();
        assert_eq!(sent, datagram.len());
    }

    #[track_caller]
    fn counts(&self, verdict: &str, datagram: &[u8]) {
        let before = self.a.counter(RECEIVED, verdict);
        self.send(datagram);
        self.a.counts(RECEIVED, verdict, before);
    }

    /// Nobody came to the trap, and nobody new is known; then an honest beacon leads there, which
    /// shows that the trap works, and that whatever was sent before has been dealt with.
    #[track_caller]
    fn nothing_was_dialed(&self, but: &[&str]) {
        let trapped = || self.trap.accept().map(|(_, from)| from).ok();
        assert_eq!(trapped(), None::<SocketAddr>, "somebody followed a bad beacon");
        let known = self.a.status().unwrap()["peers"].clone();
        let known: Vec<_> = known.as_array().unwrap().iter().map(|r| r["name"].clone()).collect();
        let but: Vec<Value> = but.iter().map(|name| parsed(name).as_str().into()).collect();
        assert_eq!(known, but);
        let honest = self.cluster.identity("honest");
        self.counts("accepted", &seal(&self.beacon(&honest, "honest"), &honest));
        until("dial after an honest beacon", || trapped().ok_or_else(|| "none".to_owned()));
        assert_eq!(self.a.count_logged("panic", &[]), 0);
    }
}

fn millis() -> u64 {
    let since = clock::wall().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

fn seal(beacon: &Beacon, identity: &Identity) -> Vec<u8> {
    beacon::sealed(beacon, identity).unwrap()
}

#[test]
fn bytes_that_are_no_beacon() {
    if !multicast() {
        return;
    }
    let scene = Scene::new();
    let b = scene.cluster.identity("b");
    let genuine = seal(&scene.beacon(&b, "b"), &b);
    let noise: Vec<u8> =
        (0..600_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    scene.counts("malformed", &noise);
    scene.counts("malformed", b"");
    scene.counts("malformed", b"xpb\x01");
    for length in [5, genuine.len() / 2, genuine.len() - 1] {
        scene.counts("malformed", &genuine[..length]);
    }
    scene.counts("malformed", &[genuine.as_slice(), b"!"].concat());
    scene.counts("malformed", &[genuine.as_slice(), &[0; MAX_BEACON]].concat());
    scene.counts("version", &[b"xpb\x02", &genuine[4..]].concat());
    scene.nothing_was_dialed(&[]);
}

#[test]
fn beacons_that_are_forged() {
    if !multicast() {
        return;
    }
    let scene = Scene::new();
    let [b, foreign] = [scene.cluster.identity("b"), scene.cluster.foreign_identity("b")];
    let mut bent = seal(&scene.beacon(&b, "b"), &b);
    *bent.last_mut().unwrap() ^= 1;
    scene.counts("forged", &bent);
    // A member of the cluster signs for another.
    scene.counts("forged", &seal(&scene.beacon(&b, "x"), &b));
    // Another cluster's node says it is of this one.
    let claims = Beacon { cluster: b.cluster(), ..scene.beacon(&foreign, "b") };
    scene.counts("forged", &seal(&claims, &foreign));
    // The address was changed under a genuine seal.
    let elsewhere = scene.beacon(&b, "b");
    let moved = Contact { address: ([127, 0, 0, 1], 9).into(), ..elsewhere.contact.clone() };
    let signature = b.sign(&elsewhere.to_sign().unwrap()).unwrap();
    let signed = Beacon { contact: moved, ..elsewhere }.to_sign().unwrap();
    scene.counts("forged", &Beacon::seal(signed, &b.certificate(), &signature).unwrap());
    scene.nothing_was_dialed(&[]);
}

#[test]
fn beacons_of_another_cluster_another_time_and_ourselves() {
    if !multicast() {
        return;
    }
    let scene = Scene::new();
    let [b, foreign] = [scene.cluster.identity("b"), scene.cluster.foreign_identity("b")];
    scene.counts("foreign", &seal(&scene.beacon(&foreign, "b"), &foreign));
    for sent in [millis() - 600_000, millis() + 600_000, 0, u64::MAX] {
        scene.counts("stale", &seal(&Beacon { sent, ..scene.beacon(&b, "b") }, &b));
    }
    let a = scene.cluster.identity("a");
    scene.counts("echo", &seal(&scene.beacon(&a, "a"), &a));
    scene.nothing_was_dialed(&[]);
}

#[test]
fn a_beacon_that_is_sent_again() {
    if !multicast() {
        return;
    }
    let scene = Scene::new();
    // Heard from the air, as an attacker would.
    scene.air.set_nonblocking(false).unwrap();
    scene.air.set_read_timeout(Some(PATIENCE)).unwrap();
    let b = scene.cluster.node("b").beacons().start();
    let mut buffer = [0; 2048];
    let recorded = loop {
        let length = scene.air.recv(&mut buffer).unwrap();
        let heard = Beacon::decode(&buffer[..length]);
        let of_b = |name: &str, cluster: String| {
            name == b.name && b.status().unwrap()["cluster"] == cluster
        };
        if heard.is_ok_and(|h| of_b(h.beacon.contact.name.as_str(), h.beacon.cluster.to_string())) {
            break buffer[..length].to_vec();
        }
    };
    linked(&[&scene.a, &b]);
    let row = scene.a.row("b");
    for _ in 0..5 {
        scene.counts("replayed", &recorded);
    }
    assert_eq!(scene.a.row("b"), row, "the link is undisturbed");
    scene.nothing_was_dialed(&["b"]);
}

#[test]
fn a_flood_of_forged_beacons_keeps_no_genuine_node_out() {
    if !multicast() {
        return;
    }
    let scene = Scene::new();
    let foreign = scene.cluster.foreign_identity("b");
    let b = scene.cluster.identity("b");
    for sequence in 1..=3000 {
        let claims = Beacon { cluster: b.cluster(), sequence, ..scene.beacon(&foreign, "b") };
        if sequence <= 300 {
            scene.send(&seal(&claims, &foreign));
        } else {
            scene.send(&sequence.to_be_bytes());
        }
    }
    let c = scene.cluster.node("c").beacons().start();
    linked(&[&scene.a, &c]);
    assert!(scene.air.take_error().unwrap().is_none());
    let answered = Duration::from_secs(5);
    let start = crate::kit::now();
    scene.a.status().unwrap();
    assert!(start.elapsed() < answered);
}
