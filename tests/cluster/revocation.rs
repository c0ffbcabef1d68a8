//! A certificate that the operator revokes while the cluster runs, and the way back.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::kit::{Cluster, Node, copy_files, during, full, linked, now, until};

/// A certificate directory of a host of its own: what an operator carries there for this node.
pub(crate) fn carried(cluster: &Cluster, name: &str, to: &str) -> PathBuf {
    let (from, to) = (cluster.certs(), cluster.path(to));
    std::fs::create_dir_all(to.join("ca")).unwrap();
    std::fs::copy(from.join("ca/cert.pem"), to.join("ca/cert.pem")).unwrap();
    copy_files(&from.join(full(name)), &to.join(full(name)));
    to
}

/// Carries the revocation list to a host.
fn carry_list(cluster: &Cluster, to: &Path) {
    let text = std::fs::read(cluster.certs().join("ca/crl.pem")).unwrap();
    std::fs::write(to.join("ca/crl.pem"), text).unwrap();
}

fn revoke(cluster: &Cluster, name: &str) -> String {
    let certs = cluster.certs();
    cluster.print(&["cert", "revoke", &full(name), "--certs", certs.to_str().unwrap()])
}

fn why(cluster: &Cluster, node: &Node, peer: &str) -> String {
    let data_dir = node.data_dir.to_str().unwrap();
    cluster.print(&["why", &full(peer), "--data-dir", data_dir])
}

#[test]
fn a_revoked_node_is_offline_everywhere_until_it_has_a_fresh_certificate() {
    let cluster = Cluster::new();
    ["a", "b", "c"].iter().for_each(|name| cluster.issue(name));
    // b's host has no copy of the list: that others refuse it, it learns from them.
    let host_of_b = carried(&cluster, "b", "host-of-b");
    let a = cluster.node("a").start();
    let b = cluster.node("b").certs(&host_of_b).join(a.listen()).start();
    let c = cluster.node("c").join(a.listen()).start();
    linked(&[&a, &b, &c]);
    let others = [a.row("c"), c.row("a")];

    let told = revoke(&cluster, "b");
    assert!(told.contains("ca/crl.pem  (1 in all)"), "{told}");
    for node in [&a, &c] {
        node.logged("peer_offline", &[("node", &full("b")), ("message", "(revoked)")]);
        node.sees_as("b", "offline", |row| row["reason"] == "revoked");
        let text = why(&cluster, node, "b");
        assert!(text.contains("offline (revoked)"), "{text}");
        assert!(text.contains("Its certificate is revoked: it needs a new one"), "{text}");
        node.counts("xpando_revocation_lists_total", "loaded", 0);
        // It is dialed, and it dials: both are refused for what they are.
        node.logged("dial_failed", &[("node", "b@"), ("message", "certificate of b@")]);
        node.counts("xpando_connections_refused_total", "revoked", 0);
    }
    for refusing in ["a@", "c@"] {
        let plain = b.logged("this node's certificate is revoked", &[("node", refusing)]);
        assert_eq!(plain["level"], "WARN");
    }
    let attempts = || a.counter("xpando_connections_refused_total", "revoked");
    let before = attempts();
    during(Duration::from_secs(6), || {
        for node in [&a, &c] {
            assert_eq!(node.row("b")["reason"], "revoked");
        }
    });
    assert!(attempts() - before <= 10, "no tight loop: {} in 6 s", attempts() - before);
    assert_eq!([a.row("c"), c.row("a")], others, "nobody else is disturbed");
    let topology = c.links();
    assert!(topology.contains(&(full("a"), full("b"), "offline".to_owned())), "{topology:?}");

    // The process ends: what is known of it stays.
    assert_eq!(b.terminate(), Some(0));
    until("dial of the stopped node", || match a.row("b") {
        row if row["cause"] == "connection refused" => Ok(()),
        row => Err(row.to_string()),
    });
    assert_eq!(a.row("b")["reason"], "revoked");

    let certs = cluster.certs();
    cluster.print(&["cert", "issue", &full("b"), "--certs", certs.to_str().unwrap()]);
    std::fs::remove_dir_all(&host_of_b).unwrap();
    carried(&cluster, "b", "host-of-b");
    let b = cluster.node("b").certs(&host_of_b).join(a.listen()).start();
    linked(&[&a, &b, &c]);
    for node in [&a, &c] {
        assert_eq!(node.row("b")["reason"], serde_json::Value::Null);
    }
}

#[test]
fn a_bad_list_stops_a_start_and_changes_nothing_in_a_running_node() {
    let cluster = Cluster::new();
    ["a", "b"].iter().for_each(|name| cluster.issue(name));
    let host_of_a = carried(&cluster, "a", "host-of-a");
    let a = cluster.node("a").certs(&host_of_a).start();
    let b = cluster.node("b").join(a.listen()).start();
    linked(&[&a, &b]);
    let foreign = cluster.beside();
    foreign.issue("b");
    revoke(&foreign, "b");
    carry_list(&foreign, &host_of_a);
    let refused = a.logged("revocations_refused", &[("message", "has not signed it")]);
    assert_eq!(refused["level"], "WARN");
    a.counts("xpando_revocation_lists_total", "refused", 0);
    assert_eq!(a.row("b")["status"], "online");
    assert_eq!(a.terminate(), Some(0));
    let ended = cluster.node("a").certs(&host_of_a).ends();
    ended.fails_with(1, &["ca/crl.pem", "has not signed it", "copy it anew"]);

    // The right list, of a node that is revoked itself: it does not start.
    revoke(&cluster, "a");
    carry_list(&cluster, &host_of_a);
    let ended = cluster.node("a").certs(&host_of_a).ends();
    ended.fails_with(1, &["is revoked", "cert issue a@127.0.0.1"]);
}

fn list_of(certs: &Path) -> Vec<u8> {
    std::fs::read(certs.join("ca/crl.pem")).unwrap_or_default()
}

fn out(node: &Node, peer: &str) {
    node.sees_as(peer, "offline", |row| row["reason"] == "revoked");
}

#[test]
fn a_list_that_is_made_on_one_host_counts_on_all_and_an_older_one_never_again() {
    let cluster = Cluster::new();
    ["a", "b", "c", "d"].iter().for_each(|name| cluster.issue(name));
    // Each on a host of its own: the authority's key is on a's alone.
    let [of_b, of_c, of_d] =
        ["b", "c", "d"].map(|name| carried(&cluster, name, &format!("host-of-{name}")));
    let a = cluster.node("a").start();
    let join = |name: &str, certs: &Path| cluster.node(name).certs(certs).join(a.listen()).start();
    let (b, c, d) = (join("b", &of_b), join("c", &of_c), join("d", &of_d));
    linked(&[&a, &b, &c, &d]);

    let refused = b.ask(&["revoke", &full("c")]).unwrap_err();
    assert!(refused.contains("has not the authority's key"), "{refused}");
    let begin = now();
    let told = a.ask(&["revoke", &full("c"), "--reason", "key compromise"]).unwrap();
    assert!(told.contains("revoked      serial ") && told.contains("(1 in all)"), "{told}");
    [&a, &b, &d].iter().for_each(|node| out(node, "c"));
    eprintln!("revoked on one host: out on three after {:?}", begin.elapsed());
    let acted = a.logged("operator_acted", &[("message", "revokes c@127.0.0.1 (key compromise)")]);
    assert_eq!(acted["level"], "INFO");
    let first = list_of(&cluster.certs());
    for certs in [&of_b, &of_d] {
        until("the file", || if list_of(certs) == first { Ok(()) } else { Err(String::new()) });
    }
    // Nor does a token's list stay where it was made.
    let certs = cluster.certs();
    cluster.print(&["token", "revoke", "1", "--certs", certs.to_str().unwrap()]);
    b.logged("tokens_revoked", &[("message", "1 in all")]);
    // A second list, from the files alone.
    revoke(&cluster, "d");
    [&a, &b].iter().for_each(|node| out(node, "d"));
    let second = list_of(&cluster.certs());
    until("the file", || if list_of(&of_b) == second { Ok(()) } else { Err(String::new()) });

    // The host of b gets its earlier list back while b is down, and nobody tells b.
    assert_eq!((a.terminate(), b.terminate()), (Some(0), Some(0)));
    std::fs::write(of_b.join("ca/crl.pem"), &first).unwrap();
    let b = cluster.node("b").certs(&of_b).join(c.listen()).start();
    let refused = b.logged("revocations_refused", &[("message", "is older (number")]);
    assert_eq!(refused["level"], "WARN");
    b.counts("xpando_revocation_lists_total", "older", 0);
    assert_eq!(list_of(&of_b), second, "it is written anew before the node runs");
    // The revoked ones go on, and are refused by a node that only remembers, whoever dials.
    until("refusal of who is revoked", || {
        let ways = ["xpando_connections_refused_total", "xpando_dial_failures_total"];
        match ways.map(|counter| b.counter(counter, "revoked")) {
            [0, 0] => Err("nobody".to_owned()),
            _ => Ok(()),
        }
    });
    assert_eq!(b.row("d")["status"].as_str().filter(|status| *status == "online"), None);
}
