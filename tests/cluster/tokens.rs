//! Clients' tokens on the command line, and the list of them in a running node.

use std::io::Write;
use std::process::{Output, Stdio};

use serde_json::Value;

use crate::kit::Cluster;

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
    fails(&token(&foreign, &["verify", other.trim()]), &["token refused (signature)"]);
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
