//! What an operator can ask, and what a node leaves behind.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::SocketAddr;
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use crate::kit::{Cluster, Node, free_address, linked, until};

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

fn sorted<const N: usize>(mut words: [&str; N]) -> Vec<&str> {
    words.sort_unstable();
    words.to_vec()
}

/// A `watch` that runs.
struct Watcher(Child);

impl Watcher {
    fn start(cluster: &Cluster, args: &[&str]) -> Self {
        let mut command = cluster.command();
        command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    /// Reads on until a line has all these words. The test runner ends a test that waits for ever.
    #[track_caller]
    fn tells(&mut self, words: &[&str]) {
        let mut line = String::new();
        while !words.iter().all(|word| line.contains(word)) {
            line = read_line(self.0.stdout.as_mut().unwrap());
            assert!(!line.is_empty(), "ended before a line with {words:?}");
        }
    }
}

/// One line, and not a byte more.
fn read_line(from: &mut impl Read) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') && from.read(&mut byte).unwrap() == 1 {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

#[test]
fn status_as_json_has_exactly_the_documented_keys() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let b = cluster.node("b").join(a.listen()).start();
    linked(&[&a, &b]);
    let status = a.status().unwrap();
    let expected = sorted([
        "name",
        "id",
        "cluster",
        "incarnation",
        "listen",
        "http",
        "uptime_s",
        "specializations",
        "metadata",
        "degraded",
        "draining",
        "drain_left_s",
        "clients",
        "limits",
        "token_list",
        "identities",
        "key_sets",
        "may",
        "certificates",
        "rotations",
        "local_health",
        "majority",
        "namesake",
        "seeds",
        "peers",
    ]);
    assert_eq!(keys(&status), expected);
    let row = &status["peers"][0];
    let expected = sorted([
        "name",
        "id",
        "address",
        "status",
        "suspect",
        "reason",
        "cause",
        "reached_by",
        "incarnation",
        "since",
        "rtt_ms",
        "rtt_p50_ms",
        "rtt_p99_ms",
        "phi",
        "last_heard",
        "evidence",
        "specializations",
        "metadata",
        "uptime_s",
        "first_seen",
        "last_seen",
        "reputation",
    ]);
    assert_eq!(keys(row), expected);
    assert_eq!(status["name"], "a@127.0.0.1");
    assert_eq!(status["listen"], a.listen().to_string());
    assert_eq!(row["name"], "b@127.0.0.1");
    assert_eq!(row["id"], b.status().unwrap()["id"]);
    assert_eq!(row["address"], b.listen().to_string());
    assert_eq!((&row["suspect"], &row["reason"]), (&Value::Bool(false), &Value::Null));
    let since = row["since"].as_str().unwrap();
    assert!(since.ends_with('Z') && since.as_bytes()[10] == b'T', "RFC 3339: {since}");
}

#[test]
fn status_says_whether_most_of_the_cluster_is_here() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let b = cluster.node("b").join(a.listen()).start();
    let c = cluster.node("c").join(a.listen()).start();
    linked(&[&a, &b, &c]);
    let seen = |node: &Node| node.status().unwrap()["majority"].clone();
    let all = json!({"held": true, "here": 3, "known": 3, "missing": []});
    assert_eq!(seen(&a), all);
    let c_name = c.name.clone();
    c.kill();
    a.sees(&c_name, "offline");
    let most = json!({"held": true, "here": 2, "known": 3, "missing": [c_name]});
    assert_eq!(seen(&a), most);
    let b_name = b.name.clone();
    b.kill();
    a.sees(&b_name, "offline");
    let alone = json!({"held": false, "here": 1, "known": 3, "missing": [b_name, c_name]});
    assert_eq!(seen(&a), alone);
    let table = cluster.print(&["status"]);
    let told = "sees 1 of 3 nodes, NOT the majority; missing: b@127.0.0.1 c@127.0.0.1";
    assert!(table.contains(told), "{table}");
}

#[test]
fn watch_tells_each_change_as_it_happens_until_the_node_ends() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let b = cluster.node("b").join(a.listen()).start();
    linked(&[&a, &b]);
    // What changes in b's row while it is still to be told is one event with that.
    until("what b sees is told", || {
        let told = ["link_changed", "links_changed"]
            .map(|event| a.count_logged(event, &[("node", "b@127.0.0.1")]));
        if told == [0, 0] { Err(format!("{told:?}")) } else { Ok(()) }
    });
    let mut json = Watcher::start(&cluster, &["watch", "--name", &a.name, "--json"]);
    let mut text = Watcher::start(&cluster, &["watch", "--name", &a.name]);
    json.tells(&["\"event\":\"watching\"", "\"node\":\"a@127.0.0.1\""]);
    text.tells(&["watching a@127.0.0.1"]);
    let c = cluster.node("c").join(a.listen()).start();
    json.tells(&[
        "\"event\":\"peer_online\"",
        "\"peer\":\"c@127.0.0.1\"",
        "\"peer_incarnation\":1",
    ]);
    json.tells(&["\"event\":\"link_changed\",\"from\":\"b@", "\"to\":\"c@", "\"online\""]);
    text.tells(&["Z  c@127.0.0.1 online at 127.0.0.1:"]);
    text.tells(&["Z  b@127.0.0.1 sees c@127.0.0.1 online"]);
    linked(&[&a, &b, &c]);
    c.kill();
    json.tells(&["\"event\":\"peer_offline\"", "\"reason\":\"crashed\""]);
    text.tells(&["Z  c@127.0.0.1 offline (crashed)"]);
    text.tells(&["Z  b@127.0.0.1 sees c@127.0.0.1 offline (crashed)"]);
    assert_eq!(a.terminate(), Some(0));
    for watcher in [json, text] {
        let ended = watcher.0.wait_with_output().unwrap();
        assert_eq!(ended.status.code(), Some(1));
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(said, "xpando-node: a@127.0.0.1 has ended\n");
    }
}

#[test]
fn status_needs_a_name_only_among_several() {
    let cluster = Cluster::new();
    let none = cluster.run(&["status"]);
    assert_eq!(none.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&none.stderr).contains("no node runs on this machine"));

    let a = cluster.node("a").start();
    let table = cluster.print(&["status"]);
    assert!(table.starts_with("a@127.0.0.1") && table.contains("no peers"), "{table}");
    assert!(!table.contains('\u{1b}'), "colour is for terminals: {table:?}");

    let b = cluster.node("b").join(a.listen()).start();
    linked(&[&a, &b]);
    let several = cluster.run(&["status"]);
    assert_eq!(several.status.code(), Some(1));
    let text = String::from_utf8_lossy(&several.stderr);
    for word in ["--name", "a@127.0.0.1", "b@127.0.0.1"] {
        assert!(text.contains(word), "{text}");
    }
    let json = cluster.print(&["status", "--name", "b@127.0.0.1", "--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["name"], "b@127.0.0.1");
    let table = cluster.print(&["status", "--name", "b@127.0.0.1"]);
    assert!(table.contains("a@127.0.0.1") && table.contains("online"), "{table}");
    let unknown = cluster.run(&["status", "--name", "x@127.0.0.1"]);
    assert_eq!(unknown.status.code(), Some(1));
}

#[test]
fn names_tells_the_living_from_the_stale() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let b = cluster.node("b").start();
    let c = cluster.node("c").start();
    b.kill();
    assert_eq!(c.terminate(), Some(0));
    let text = cluster.print(&["ps"]);
    let line = |name: &str| text.lines().find(|line| line.contains(name)).unwrap_or("");
    assert!(line("a@").contains("running"), "{text}");
    assert!(line("a@").contains(&a.listen().to_string()), "{text}");
    assert!(line("b@").contains("stale"), "{text}");
    assert_eq!(line("c@"), "", "one that stopped in order is not listed: {text}");
    // A stale one stands in nobody's way.
    let status: Value = serde_json::from_str(&cluster.print(&["status", "--json"])).unwrap();
    assert_eq!(status["name"], "a@127.0.0.1");
    // It is shown once; the running ones with the directories by which commands find them.
    let names: Value = serde_json::from_str(&cluster.print(&["ps", "--json"])).unwrap();
    assert_eq!(names.as_array().unwrap().len(), 1, "{names}");
    let directory = names[0]["data_dir"].as_str().unwrap();
    assert!(text.contains(directory), "{text}");
    assert!(cluster.print(&["status", "--data-dir", directory]).starts_with("a@127.0.0.1"));
    // And a restart makes it a living one again.
    let _b = cluster.node("b").start();
    assert!(!cluster.print(&["ps"]).contains("stale"));
}

#[test]
fn nodes_that_start_at_once_make_one_authority_between_them() {
    for _ in 0..5 {
        let cluster = Cluster::without_authority();
        let seed = free_address();
        let a = cluster.node("a").listen(seed).launch();
        let others = ["b", "c"].map(|name| cluster.node(name).join(seed).launch());
        let [b, c] = &others;
        linked(&[&a, b, c]);
        let made = [&a, b, c].map(|n| n.count_logged("DEVELOPMENT certificate authority", &[]));
        assert_eq!(made.iter().sum::<usize>(), 1, "{made:?}");
        let line = [&a, b, c].into_iter().zip(made).find(|(_, made)| *made == 1).unwrap().0;
        let said = line.logged("DEVELOPMENT", &[]);
        let shown = cluster.print(&["cert", "show", "--json", "--certs", "certs"]);
        assert!(shown.contains(said["fingerprint"].as_str().unwrap()), "{shown}");
    }
}

#[test]
fn a_node_listens_for_links_and_for_clients_and_nowhere_else() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let b = cluster.node("b").join(a.listen()).start();
    linked(&[&a, &b]);
    for node in [&a, &b] {
        let http = node.status().unwrap()["http"].as_str().map(|at| at.parse::<SocketAddr>());
        let http = http.expect("it serves clients").expect("an address");
        assert!(http.ip().is_loopback());
        let expected = BTreeSet::from([node.listen().port(), http.port()]);
        assert_eq!(BTreeSet::from_iter(node.listening_ports()), expected, "{}", node.name);
    }
    let quiet = cluster.node("c").arg("--no-http").start();
    assert_eq!(quiet.listening_ports(), [quiet.listen().port()]);
}

#[test]
fn secrets_and_sockets_are_the_users_alone() {
    use std::os::unix::fs::PermissionsExt;
    let cluster = Cluster::without_authority();
    let a = cluster.node("a").start();
    let mode = |path: std::path::PathBuf| {
        let about = std::fs::metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        about.permissions().mode() & 0o777
    };
    assert_eq!(mode(cluster.certs().join("a@127.0.0.1/key.pem")), 0o600);
    assert_eq!(mode(cluster.certs().join("ca/key.pem")), 0o600);
    assert_eq!(mode(cluster.certs().join("a@127.0.0.1")), 0o700);
    assert_eq!(mode(a.data_dir.clone()), 0o700);
    assert_eq!(mode(a.data_dir.join("admin.sock")), 0o600);
    let data_dir = a.data_dir.clone();
    assert_eq!(a.terminate(), Some(0));
    assert!(!data_dir.join("admin.sock").exists());
    let left = std::fs::read_dir(cluster.path("run/xpando")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "nothing is left in the runtime directory");
}

#[test]
fn flags_may_come_from_the_environment() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let data_dir = cluster.path("from-the-environment");
    let b = cluster.node("b").data_dir(&data_dir).env("XPANDO_JOIN", &a.listen().to_string());
    let b = b.start();
    linked(&[&a, &b]);
}
