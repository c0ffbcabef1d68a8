//! Clients' tokens on the command line, and the list of them in a running node.

use std::io::Write;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use xpando_node::internals::io::clock;
use xpando_node::internals::io::identity::Authority;
use xpando_node::internals::proto::token::Role;

use crate::kit::client::{Caller, Client, runtime};
use crate::kit::{Cluster, Node, full, linked, until};
use crate::revocation::carried;

/// `xpando-node token …` on the cluster's certificates.
fn token(cluster: &Cluster, args: &[&str]) -> Output {
    cluster.run(&[&["token"], args, &["--certs", "certs"]].concat())
}

/// The same, when it must succeed; its standard output.
fn print(cluster: &Cluster, args: &[&str]) -> String {
    cluster.print(&[&["token"], args, &["--certs", "certs"]].concat())
}

#[track_caller]
fn fails(output: &Output, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
    assert!(output.stdout.is_empty(), "nothing is printed of a bad token");
}

#[test]
fn a_token_is_made_verified_and_revoked() {
    let cluster = Cluster::new();
    let create = [
        "create",
        "--sub",
        "alice",
        "--topics",
        "room:*",
        "--topics",
        "chat:1=join",
        "--ttl",
        "2h",
    ];
    let made = token(&cluster, &create);
    assert!(made.status.success() && made.stderr.is_empty(), "{made:?}");
    let text = String::from_utf8(made.stdout).unwrap();
    let line = text.strip_suffix('\n').unwrap();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    assert!(line.chars().all(plain), "the token and nothing else: {text:?}");

    let claims: Value =
        serde_json::from_str(&print(&cluster, &["verify", line, "--json"])).unwrap();
    assert_eq!((&claims["sub"], &claims["role"]), (&"alice".into(), &"user".into()));
    assert_eq!(claims["topics"], serde_json::json!(["room:*", "chat:1=join"]));
    assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 7200);
    let mut piped = cluster.command();
    piped.args(["token", "verify", "-", "--certs", "certs"]);
    let mut piped = piped.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    piped.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let piped = piped.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&piped.stdout).starts_with("subject      alice\n"));

    let told = print(&cluster, &["revoke", line]);
    assert!(told.contains(claims["jti"].as_str().unwrap()), "{told}");
    fails(&token(&cluster, &["verify", line]), &["token refused (revoked)"]);
    let other = print(&cluster, &["create", "--sub", "bob", "--role", "admin"]);
    assert!(print(&cluster, &["verify", other.trim()]).contains("role         admin\n"));
    let foreign = cluster.beside();
    fails(&token(&foreign, &["verify", other.trim()]), &["token refused (unknown_issuer)"]);
    fails(&token(&cluster, &["verify", "x.y.z"]), &["token refused (malformed)"]);
}

#[test]
fn what_no_token_can_be_is_bad_usage() {
    let cluster = Cluster::new();
    for bad in [
        &["create"] as &[&str],
        &["create", "--sub", "a", "--ttl", "367d"],
        &["create", "--sub", "a", "--ttl", "1w"],
        &["create", "--sub", "a", "--role", "root"],
        &["create", "--sub", "a", "--topics", "room:1=leave"],
        &["verify"],
        &["revoke"],
    ] {
        let output = token(&cluster, bad);
        assert_eq!(output.status.code(), Some(2), "{bad:?}: {output:?}");
    }
    fails(&token(&cluster, &["create", "--sub", ""]), &["a subject has 1 to 255 bytes"]);
    std::fs::remove_file(cluster.certs().join("ca/key.pem")).unwrap();
    for args in [&["create", "--sub", "a"] as &[&str], &["revoke", "1"]] {
        fails(&token(&cluster, args), &["ca/key.pem is missing", "on the host that has it"]);
    }
}

#[test]
fn a_running_node_reads_each_new_list() {
    let cluster = Cluster::new();
    let list = cluster.certs().join("ca/tokens");
    let away = cluster.path("tokens-away");
    std::fs::rename(&list, &away).unwrap();
    let a = cluster.node("a").start();
    // Where clients are served, all that show a token would be refused.
    let told =
        a.logged("clients with tokens will be refused", &[("remedy", "comes with the first link")]);
    assert_eq!(told["level"], "WARN");
    assert_eq!(a.status().unwrap()["token_list"], false);
    assert!(
        a.ask(&["status"])
            .unwrap()
            .contains("clients with tokens are refused: this node has no token list")
    );
    let ready = a.asks("GET /health/ready", &[]);
    assert_eq!(ready.problem(503), "not ready: token_list");
    let refused = a.asks("GET /api/status", &[("Authorization", "Bearer a.b.c")]);
    assert_eq!(refused.problem(401), "this node cannot verify tokens");
    a.logged(
        "client refused",
        &[("cause", "no_token_list"), ("remedy", "comes with the first link")],
    );
    a.counts("xpando_clients_refused_total", "no_token_list", 0);
    std::fs::rename(&away, &list).unwrap();
    a.logged("tokens_revoked", &[("message", "0 in all")]);
    assert_eq!(a.status().unwrap()["token_list"], true);
    assert_eq!(a.asks("GET /health/ready", &[]).status, 200);
    print(&cluster, &["revoke", "1"]);
    a.logged("tokens_revoked", &[("message", "1 in all")]);
    a.counts("xpando_revocation_lists_total", "tokens_loaded", 0);
    // In one step: a look in between would find the file while it is still empty.
    let rubbish = cluster.path("rubbish");
    std::fs::write(&rubbish, "rubbish").unwrap();
    std::fs::rename(&rubbish, &list).unwrap();
    let refused = a.logged("revocations_refused", &[("message", "ca/tokens cannot be used")]);
    assert_eq!(refused["level"], "WARN");
    assert_eq!(a.terminate(), Some(0));
    // Clients are refused then; the cluster goes on.
    cluster.node("a").start().logged("revocations_refused", &[("message", "tokens refused")]);
}

/// Three nodes, of which `a` alone has the authority's key.
fn hosts(cluster: &Cluster) -> [Node; 3] {
    ["a", "b", "c"].iter().for_each(|name| cluster.issue(name));
    let a = cluster.node("a").start();
    let [b, c] = ["b", "c"].map(|name| {
        let certs = carried(cluster, name, &format!("host-of-{name}"));
        cluster.node(name).certs(&certs).join(a.listen()).start()
    });
    linked(&[&a, &b, &c]);
    [a, b, c]
}

/// A token of somebody who may read the API.
fn made(cluster: &Cluster) -> String {
    let (authority, hour) = (Authority::open(&cluster.certs()).unwrap(), Duration::from_secs(3600));
    authority.token("ann", Role::NodeOperator, vec![], hour, clock::wall()).unwrap()
}

/// What a node answers to a token.
fn answer(node: &Node, token: &str) -> u16 {
    node.asks("GET /api/status", &[("Authorization", &format!("Bearer {token}"))]).status
}

/// What `rotate` shows of tokens.
fn keys(node: &Node) -> Value {
    let text = node.ask(&["rotate", "--json"]).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["tokens"].clone()
}

/// Waits until another key signs than this one; what `rotate` shows then.
fn signs_other(node: &Node, key: &Value) -> Value {
    until("new key that signs", || match keys(node) {
        keys if keys["next"].is_null() && keys["signs"] != *key => Ok(keys),
        keys => Err(keys.to_string()),
    })
}

#[test]
fn the_key_of_tokens_is_replaced_while_clients_are_served() {
    let cluster = Cluster::new();
    let nodes = hosts(&cluster);
    let [a, b, c] = &nodes;
    let (runtime, old) = (runtime(), made(&cluster));
    let (token, topic) = (old.clone(), "room:1".to_owned());
    let caller = Caller { token, topic, nodes: vec![b.http()], watches: false };
    let client = Client::start(&runtime, caller);
    let joined = || client.seen.lock().joined;
    let since = until("join", || joined().ok_or_else(|| "not joined".to_owned()));
    nodes.iter().for_each(|node| assert_eq!(answer(node, &old), 200));
    let first = keys(a)["signs"].clone();

    // The answer is about what was just begun.
    let begun: Value =
        serde_json::from_str(&a.ask(&["rotate", "tokens", "--json"]).unwrap()).unwrap();
    let tokens = &begun["tokens"];
    assert!(!tokens["next"].is_null() || tokens["signs"] != first, "{begun}");
    let second = signs_other(a, &first);
    assert_eq!(second["former"][0]["key"], first, "{second}");
    // Every node accepts what it signs from the first moment, and the client is where it was.
    let new = made(&cluster);
    for node in &nodes {
        assert_eq!((answer(node, &new), answer(node, &old)), (200, 200));
    }
    assert_eq!(joined(), Some(since));
    assert_eq!(signs_other(c, &first)["signs"], second["signs"]);

    let refused = |node: &Node| node.counter("xpando_tokens_refused_total", "signature");
    let before = nodes.each_ref().map(refused);
    a.ask(&["rotate", "tokens", "--force"]).unwrap();
    b.counts("xpando_channel_events_total", "expired", 0);
    for (node, before) in nodes.iter().zip(before) {
        until("refusal of the former key's token", || match answer(node, &old) {
            401 => Ok(()),
            other => Err(other.to_string()),
        });
        assert!(refused(node) > before);
        assert_eq!(answer(node, &new), 200);
    }
    assert_eq!(keys(a)["former"], json!([]));
    for node in nodes {
        assert_eq!(node.terminate(), Some(0));
    }
}

#[test]
fn a_new_key_of_tokens_waits_for_every_node_and_can_be_aborted() {
    let cluster = Cluster::new();
    let [a, b, c] = hosts(&cluster);
    let first = keys(&a)["signs"].clone();
    c.kill();
    a.sees("c", "offline");
    a.ask(&["rotate", "tokens"]).unwrap();
    let again = a.ask(&["rotate", "tokens"]).unwrap_err();
    assert!(again.contains("began to rotate the key of tokens"), "{again}");
    let elsewhere = b.ask(&["rotate", "tokens"]).unwrap_err();
    assert!(elsewhere.contains("ca/key.pem is missing"), "{elsewhere}");
    let waits = || keys(&b)["next"]["waits_for"].clone();
    until("wait for the node that is gone", || match waits() {
        names if names == json!([full("c")]) => Ok(()),
        other => Err(other.to_string()),
    });
    let shown = a.ask(&["rotate"]).unwrap();
    assert!(shown.contains("signs once every node knows it"), "{shown}");
    assert_eq!(keys(&a)["signs"], first);
    a.ask(&["rotate", "tokens", "--abort"]).unwrap();
    assert_eq!((&keys(&a)["next"], &keys(&a)["signs"]), (&Value::Null, &first));
    let none = a.ask(&["rotate", "tokens", "--abort"]).unwrap_err();
    assert!(none.contains("no rotation of the key of tokens"), "{none}");

    // It goes on by itself when the node is there again, and after a restart of the one that has the key.
    a.ask(&["rotate", "tokens"]).unwrap();
    let next = keys(&a)["next"]["key"].clone();
    let listen = a.listen();
    assert_eq!(a.terminate(), Some(0));
    let a = cluster.node("a").join(b.listen()).start();
    assert_eq!(keys(&a)["next"]["key"], next);
    let certs = cluster.path("host-of-c");
    let c = cluster.node("c").certs(&certs).join(listen).join(b.listen()).start();
    assert_eq!(signs_other(&a, &first)["signs"], next);
    assert_eq!(answer(&c, &made(&cluster)), 200);
}
