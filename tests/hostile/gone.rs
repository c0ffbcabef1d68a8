//! What is left of a member that is revoked: its events, and that it is revoked.

use std::time::Duration;

use serde_json::Value;
use xpando_node::internals::proto::frame::Lane;
use xpando_node::internals::proto::interest::Interest;
use xpando_node::internals::proto::node::Incarnation;
use xpando_node::internals::proto::presence::{Body, Change, Epoch, Word};
use xpando_node::internals::proto::talk;

use crate::harm::Scene;
use crate::kit::{Node, full, parsed, until, wall, within};
use crate::member::Tie;
use crate::ractor::{self, Members, actors};

/// By then nothing is left.
const GONE: Duration = Duration::from_secs(10);

/// Leaves something in every table.
fn fill(tie: &mut Tie) {
    let (group, scope) = ("group".to_owned(), "xpando".to_owned());
    let join = Some(Members { group, actors: actors(0..100), scope });
    tie.control(ractor::Control { join, ..Default::default() });
    let mut out = Vec::new();
    talk::interest(&mut out, &Interest::Topic("theirs".parse().unwrap()), true);
    tie.messages(Lane::Calls, [out]);
    let mut out = Vec::new();
    talk::watch(&mut out, 1, &"xpando:echo".parse().unwrap());
    tie.messages(Lane::Calls, [out]);
    tie.requests("xpando:history", b"{}", 100);
    let (topic, epoch) = ("room:1".parse().unwrap(), Epoch { life: Incarnation(1), boot: wall() });
    let body = Body { topic, key: "somebody".into(), meta: "{}".into(), previous: None };
    let changes = vec![Change::Joined(body); 100];
    tie.publish("channel:presence", &Word::Delta { epoch, after: 0, changes });
    tie.cells([parsed("a"), parsed("b")].into_iter());
    tie.own_profile();
    tie.contacts(&[(parsed("ghost"), ([127, 0, 0, 1], 9).into(), 1)]);
}

/// What a node shows of the member, beside its row as a peer.
fn left(node: &Node) -> Vec<String> {
    let mut left = Vec::new();
    let m = full("m");
    let links: Vec<_> = node.links().into_iter().filter(|(from, ..)| *from == m).collect();
    if !links.is_empty() {
        left.push(format!("links {links:?}"));
    }
    let nodes: Vec<Value> = serde_json::from_str(&node.ask(&["nodes", "--json"]).unwrap()).unwrap();
    let row = nodes.into_iter().find(|it| it["name"] == m.as_str());
    if row.as_ref().is_some_and(|row| row["status"] != "offline" || row["reason"] != "revoked") {
        left.push(format!("row {row:?}"));
    }
    let metrics = node.ask(&["metrics"]).unwrap();
    let of = |line: &&str| line.contains(&m) && !line.ends_with(" 0");
    left.extend(metrics.lines().filter(of).map(str::to_owned));
    let there = node.publish("theirs", b"");
    if there != (0, 0) {
        left.push(format!("interest {there:?}"));
    }
    left
}

/// What a node keeps of the member, in bytes.
fn kept(node: &Node) -> f64 {
    let metrics = node.ask(&["metrics"]).unwrap();
    let wanted = format!("xpando_peer_kept_bytes{{peer=\"{}\"}} ", full("m"));
    let value = metrics.lines().find_map(|line| line.strip_prefix(&wanted)?.parse().ok());
    value.unwrap_or(0.0)
}

#[test]
fn nothing_is_left_of_a_member_that_is_revoked_but_its_events() {
    let mut scene = Scene::new();
    let mut tie = scene.member.link_ractor(&scene.nodes[0]);
    fill(&mut tie);
    let nodes = &scene.nodes;
    nodes[0].sees("m", "online");
    nodes[0].reaches("theirs", 1);
    // 100 actors, as many presences, and a topic.
    until("what is kept", || match kept(&nodes[0]) {
        bytes if bytes > 1_000_000.0 => Ok(()),
        bytes => Err(format!("{bytes}")),
    });
    let before = nodes.each_ref().map(left);
    eprintln!("{before:#?}");
    let certs = scene.cluster.certs();
    let revoke = ["cert", "revoke", &full("m"), "--certs", certs.to_str().unwrap()];
    scene.cluster.print(&revoke);
    for node in nodes {
        within(GONE, "all of it gone", || {
            let left = left(node);
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        });
    }
    assert!(nodes[0].count_logged("peer_offline", &[("node", &full("m"))]) > 0);
}
