//! Who the nodes are: what each says of itself, who is remembered, and who is forgotten.

use std::net::TcpListener;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::kit::http::token;
use crate::kit::{Cluster, Node, full, linked, outputs, row, until};

/// All nodes that a node knows.
#[track_caller]
fn nodes(node: &Node) -> Vec<Value> {
    let (code, out, err) = outputs(&node.run(&["nodes", "--json"], &[]));
    assert_eq!(code, Some(0), "{err}");
    serde_json::from_str(&out).unwrap()
}

fn of<'a>(nodes: &'a [Value], name: &str) -> Option<&'a Value> {
    nodes.iter().find(|node| node["name"] == full(name))
}

/// Waits until a node knows this of another.
#[track_caller]
fn knows(node: &Node, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    until(&format!("such a {name} on {}", node.name), || {
        let nodes = nodes(node);
        let found = of(&nodes, name).filter(|node| wanted(node)).cloned();
        found.ok_or_else(|| format!("{nodes:?}"))
    })
}

fn does(what: &'static str) -> impl Fn(&Value) -> bool {
    move |node| node["specializations"].as_array().unwrap().iter().any(|it| *it == what)
}

/// Waits until nothing that a node shows is about another.
#[track_caller]
fn has_forgotten(node: &Node, name: &str) {
    until(&format!("trace of {name} on {}", node.name), || {
        let (status, nodes) = (node.status()?, nodes(node));
        let (_, topology, _) = outputs(&node.run(&["topology", "--json"], &[]));
        let traces = [
            row(&status, name).is_some(),
            of(&nodes, name).is_some(),
            topology.contains(&full(name)),
            status["majority"].to_string().contains(&full(name)),
        ];
        if traces.contains(&true) {
            Err(format!("{traces:?}: {status} {topology}"))
        } else {
            Ok(())
        }
    });
}

#[track_caller]
fn forgets(node: &Node, name: &str) {
    let (code, out, err) = outputs(&node.run(&["forget", &full(name)], &[]));
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains(&full(name)), "{out}");
}

#[track_caller]
fn refuses_to_forget(node: &Node, name: &str, why: &str) {
    let (code, _, err) = outputs(&node.run(&["forget", &full(name)], &[]));
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains(why), "{err}");
}

#[test]
fn every_node_knows_what_each_says_of_itself() {
    let cluster = Cluster::new();
    let a = cluster.node("a").arg("--specialization").arg("nlp").start();
    let b = cluster.node("b").join(a.listen()).env("XPANDO_SPECIALIZATION", "gpu,nlp");
    let b = b.arg("--meta").arg("zone=eu=west, été").arg("--meta").arg("rack=7").start();
    let c = cluster.node("c").join(a.listen()).start();
    linked(&[&a, &b, &c]);
    let meta = json!({"rack": "7", "zone": "eu=west, été"});
    for node in [&a, &c] {
        let b_row = knows(node, "b", does("gpu"));
        assert_eq!(b_row["specializations"], json!(["gpu", "nlp"]));
        assert_eq!((&b_row["metadata"], &b_row["status"]), (&meta, &"online".into()));
        assert_eq!(b_row["addresses"], json!([b.listen().to_string()]));
        assert_eq!((&b_row["incarnation"], &b_row["reputation"]), (&1.into(), &0.0.into()));
        assert_eq!(b_row["id"], b.status().unwrap()["id"]);
        assert!(b_row["uptime_s"].is_u64() && b_row["last_seen"].is_string(), "{b_row}");
        let in_status = node.status().unwrap();
        assert_eq!(row(&in_status, "b").unwrap()["metadata"], meta);
    }
    knows(&b, "a", does("nlp"));
    let names: Vec<_> = nodes(&b).iter().map(|node| node["name"].clone()).collect();
    assert_eq!(names, ["b", "a", "c"].map(full), "itself first");
    assert_eq!(b.status().unwrap()["metadata"], meta, "of itself");
    let (_, table, _) = outputs(&b.run(&["nodes"], &[]));
    assert!(table.contains("rack=7 zone=eu=west, été") && table.contains("gpu nlp"), "{table}");

    // One that was never linked with it hears of it from the others.
    b.kill();
    a.sees("b", "offline");
    let d = cluster.node("d").join(a.listen()).start();
    let heard = knows(&d, "b", does("gpu"));
    assert_eq!((&heard["status"], &heard["metadata"]), (&Value::Null, &meta));
    assert_eq!((&heard["last_seen"], &heard["addresses"]), (&Value::Null, &json!([])));
}

#[test]
fn a_node_that_restarts_knows_whom_it_knew_and_waits_for_nobody() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let b = cluster.node("b").join(a.listen()).arg("--specialization").arg("nlp").start();
    linked(&[&a, &b]);
    knows(&a, "b", does("nlp"));
    let (home, certs) = (b.listen(), cluster.certs());
    b.kill();
    a.sees_as("b", "offline", |row| row["reason"] == "crashed");
    assert_eq!(a.terminate(), Some(0));

    // Who is dialed there connects, and gets no answer.
    let silent = TcpListener::bind(home).unwrap();
    let a = cluster.node("a").certs(&certs).start();
    assert_eq!(a.asks("GET /health/ready", &[]).status, 200);
    let known = nodes(&a);
    let b = of(&known, "b").unwrap();
    assert!(does("nlp")(b) && b["status"] != "online" && b["last_seen"].is_string(), "{b}");
    assert_eq!(b["addresses"], json!([home.to_string()]));
    let since = b["first_seen"].clone();
    // Nobody tells the nodes of each other but their own memory: b has none.
    drop(silent);
    let b = cluster.node("b").data_dir(&cluster.path("b-anew")).listen(home).start();
    linked(&[&a, &b]);
    assert_eq!(knows(&a, "b", |b| b["status"] == "online")["first_seen"], since);
}

#[test]
fn a_forgotten_node_is_gone_everywhere_and_nobody_brings_it_back_but_itself() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let [b, c, d] = ["b", "c", "d"].map(|name| cluster.node(name).join(a.listen()).start());
    linked(&[&a, &b, &c, &d]);
    refuses_to_forget(&a, "c", "c@127.0.0.1 is linked: stop it or disconnect it first");
    refuses_to_forget(&a, "a", "this is the node itself");
    refuses_to_forget(&a, "x", "no node x@127.0.0.1 is known");
    let c_first = knows(&b, "c", |c| c["incarnation"] == 1)["first_seen"].clone();
    let data_dir = c.data_dir.clone();
    c.kill();
    for node in [&a, &b, &d] {
        node.sees("c", "offline");
    }
    // One is down while it happens, and remembers.
    assert_eq!(b.terminate(), Some(0));
    forgets(&a, "c");
    for node in [&a, &d] {
        has_forgotten(node, "c");
        node.logged("peer_forgotten", &[("node", "c@")]);
    }
    let (_, events, _) = outputs(&d.run(&["events", "--type", "peer_forgotten"], &[]));
    assert!(events.contains("c@127.0.0.1 forgotten"), "{events}");
    refuses_to_forget(&d, "c", "no node c@127.0.0.1 is known");

    // It is so still after a restart of the one that forgot first, and on the one that was down.
    assert_eq!(a.terminate(), Some(0));
    let a = cluster.node("a").join(d.listen()).start();
    has_forgotten(&a, "c");
    let b = cluster.node("b").join(d.listen()).start();
    linked(&[&a, &b, &d]);
    for node in [&a, &b, &d] {
        has_forgotten(node, "c");
    }
    b.logged("peer_forgotten", &[("node", "c@")]);
    assert_eq!(a.count_logged("peer_discovered", &[("node", "c@")]), 0, "nobody told it of c");

    // A later life is a new node.
    let c = cluster.node("c").data_dir(&data_dir).join(a.listen()).start();
    linked(&[&a, &b, &c, &d]);
    let back = knows(&b, "c", |c| c["incarnation"] == 2 && c["status"] == "online");
    assert_ne!(back["first_seen"], c_first);
}

#[test]
fn what_was_forgotten_by_mistake_is_brought_back_from_any_node() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let b = cluster.node("b").join(a.listen()).start();
    let c = cluster.node("c").join(a.listen()).arg("--specialization").arg("nlp").start();
    linked(&[&a, &b, &c]);
    knows(&b, "c", does("nlp"));
    let (home, data_dir) = (c.listen(), c.data_dir.clone());
    c.kill();
    for node in [&a, &b] {
        node.sees("c", "offline");
    }
    let undo =
        |node: &Node, name: &str| outputs(&node.run(&["forget", "--undo", &full(name)], &[]));
    for name in ["c", "a", "x"] {
        let (code, _, err) = undo(&b, name);
        assert!(code == Some(1) && err.contains("is not forgotten"), "{name}: {err}");
    }
    forgets(&a, "c");
    for node in [&a, &b] {
        has_forgotten(node, "c");
    }
    let operator = format!("uid:{}", rustix::process::getuid().as_raw());
    let (_, events, _) = outputs(&b.run(&["events", "--type", "peer_forgotten"], &[]));
    let author = format!("c@127.0.0.1 forgotten, by a@127.0.0.1, asked by {operator}");
    assert!(events.contains(&author), "{events}");

    // Another node, which has started again meanwhile, takes it back; one that was never linked with c hears of that.
    assert_eq!(b.terminate(), Some(0));
    let b = cluster.node("b").join(a.listen()).start();
    let d = cluster.node("d").join(a.listen()).start();
    linked(&[&a, &b, &d]);
    has_forgotten(&d, "c");
    let (code, out, err) = undo(&b, "c");
    assert!(code == Some(0) && out.contains("c@127.0.0.1 is known again"), "{out}{err}");
    for node in [&a, &b] {
        let back = knows(node, "c", |c| does("nlp")(c) && c["status"] == "offline");
        assert_eq!(
            (&back["incarnation"], &back["addresses"]),
            (&1.into(), &json!([home.to_string()]))
        );
    }
    assert_eq!(knows(&d, "c", does("nlp"))["status"], Value::Null);
    let author = format!("by b@127.0.0.1, asked by {operator}");
    for node in [&a, &b] {
        node.logged("peer_restored", &[("node", "c@"), ("message", &author)]);
    }
    assert!(undo(&a, "c").2.contains("is not forgotten"));
    // It is dialed there, and nobody tells it of the others.
    let c = cluster.node("c").data_dir(&data_dir).listen(home).start();
    linked(&[&a, &b, &c, &d]);
}

/// Its own greeting says that it lives.
#[test]
fn a_node_that_was_forgotten_in_its_sleep_comes_back_in_the_same_life() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let b = cluster.node("b").join(a.listen()).arg("--specialization").arg("nlp").start();
    let c = cluster.node("c").join(a.listen()).start();
    linked(&[&a, &b, &c]);
    b.signal(Signal::STOP);
    for node in [&a, &c] {
        node.sees("b", "offline");
    }
    forgets(&a, "b");
    for node in [&a, &c] {
        has_forgotten(node, "b");
    }
    b.signal(Signal::CONT);
    linked(&[&a, &b, &c]);
    for node in [&a, &c] {
        let back = knows(node, "b", does("nlp"));
        assert_eq!((&back["incarnation"], &back["status"]), (&1.into(), &"online".into()));
    }
}

#[test]
fn forgetting_over_the_api_takes_an_admin() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let b = cluster.node("b").join(a.listen()).start();
    linked(&[&a, &b]);
    let [operator, admin] =
        ["node_operator", "admin"].map(|role| format!("Bearer {}", token(&cluster, role)));
    let forget = |name: &str, who: &str| {
        a.asks(&format!("POST /api/nodes/{name}/forget"), &[("Authorization", who)])
    };
    let b_name = b.name.clone();
    a.asks(&format!("POST /api/nodes/{b_name}/forget"), &[]).problem(401);
    forget(&b_name, &operator).problem(403);
    assert!(forget(&b_name, &admin).problem(409).contains("is linked: stop it"));
    assert!(forget(&a.name, &admin).problem(409).contains("the node itself"));
    forget("x@127.0.0.1", &admin).problem(404);
    forget("nobody", &admin).problem(404);
    b.kill();
    a.sees("b", "offline");
    let restore = |name: &str, who: &str| {
        a.asks(&format!("DELETE /api/nodes/{name}/forget"), &[("Authorization", who)])
    };
    assert!(restore(&b_name, &admin).problem(404).contains("is not forgotten"));
    assert_eq!(forget(&b_name, &admin).status, 202);
    has_forgotten(&a, "b");
    forget(&b_name, &admin).problem(404);
    a.logged("peer_forgotten", &[("message", "by a@127.0.0.1, asked by token:test")]);
    a.asks(&format!("DELETE /api/nodes/{b_name}/forget"), &[]).problem(401);
    restore(&b_name, &operator).problem(403);
    assert_eq!(restore(&b_name, &admin).status, 202);
    knows(&a, "b", |b| b["status"] == "offline");
    restore(&b_name, &admin).problem(404);
}

#[test]
fn what_a_node_may_not_say_of_itself_is_bad_usage() {
    let cluster = Cluster::new();
    let long = format!("k={}", "x".repeat(4096));
    let many: Vec<_> = (0..33).map(|n| format!("s{n}")).collect();
    for (code, flag, value, says) in [
        (2, "--specialization", "n l p", "is not a specialization"),
        (2, "--specialization", "\u{1b}[31mred", "is not a specialization"),
        (2, "--meta", "zone", "is not KEY=VALUE"),
        (2, "--meta", "=x", "is not a specialization or key"),
        (2, "--meta", "k=a\u{1b}[2J", "has a control character"),
        (1, "--meta", &long, "4097 bytes of metadata where at most 4096 are allowed"),
        (1, "--specialization", &many.join(","), "33 specializations where at most 32"),
    ] {
        let output = cluster.run(&["--name", "a@127.0.0.1", flag, value]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{flag} {value}: {text}");
        assert!(text.contains(says) && !text.contains('\u{1b}'), "{flag} {value}: {text}");
    }
    let twice = cluster.run(&["--name", "a@127.0.0.1", "--meta", "k=1", "--meta", "k=2"]);
    assert!(String::from_utf8_lossy(&twice.stderr).contains("the key \"k\" is given twice"));
}
