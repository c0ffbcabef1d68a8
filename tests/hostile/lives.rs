//! What others say of the life of a node: it locks nobody out, and ends no link.

use std::time::Duration;

use serde_json::Value;
use xpando_node::internals::io::clock;
use xpando_node::internals::io::identity::Validity;
use xpando_node::internals::proto::hello::{Greeting, Refusal};
use xpando_node::internals::proto::node::Incarnation;

use crate::harm::Scene;
use crate::kit::{Node, linked, now, outputs, parsed, until};
use crate::member::Member;

/// As far as one claim was ever believed.
const FAR: u64 = 1 << 32;

/// How a node knows another.
#[track_caller]
pub(crate) fn known(node: &Node, of: &str) -> Value {
    let (code, out, err) = outputs(&node.run(&["nodes", "--json"], &[]));
    assert_eq!(code, Some(0), "{err}");
    let nodes: Vec<Value> = serde_json::from_str(&out).unwrap();
    nodes.into_iter().find(|it| it["name"] == parsed(of).as_str()).unwrap_or_default()
}

/// Stops c, has `lie` said to a and b, and starts c again. Everybody sees it as it is, within two seconds of its link.
fn while_c_restarts(lies: &str, lie: impl Fn(&mut crate::member::Tie)) {
    let Scene { nodes: [a, b, c], mut member, cluster } = Scene::new();
    let mut c = c;
    for _ in 0..2 {
        c.kill();
        for node in [&a, &b] {
            node.sees("c", "offline");
        }
        let mut ties = [&a, &b].map(|node| member.link(node));
        ties.iter_mut().for_each(&lie);
        for node in [&a, &b] {
            // Of one sender and topic, words arrive in order: what it said before is done.
            node.sees("m", "syncing");
        }
        let start = now();
        c = cluster.node("c").join(a.listen()).arg("--specialization").arg("true").start();
        linked(&[&a, &b, &c]);
        let took = start.elapsed();
        let life = c.status().unwrap()["incarnation"].clone();
        let shown = now();
        for node in [&a, &b] {
            until(&format!("c as it is on {}", node.name), || {
                let c = known(node, "c");
                let right = c["specializations"] == serde_json::json!(["true"])
                    && c["incarnation"] == life
                    && c["status"] == "online";
                let sees = (parsed("c").to_string(), a.name.clone(), "online".to_owned());
                let links = node.links();
                if right && links.contains(&sees) { Ok(()) } else { Err(format!("{c} {links:?}")) }
            });
        }
        let wrong = shown.elapsed();
        eprintln!("{lies}: c linked {took:?} after its start, its view was wrong for {wrong:?}");
        assert!(wrong < Duration::from_secs(2), "{lies}: {wrong:?}");
        assert_eq!(a.count_logged("link_lost", &[("node", "b@")]), 0);
        assert_eq!(b.count_logged("link_lost", &[("node", "a@")]), 0);
    }
    // Nor does anything remain in the memory of the others.
    assert_eq!([a.terminate(), b.terminate()], [Some(0); 2]);
    let a = cluster.node("a").join(c.listen()).start();
    let b = cluster.node("b").join(c.listen()).start();
    linked(&[&a, &b, &c]);
}

#[test]
fn a_tombstone_of_a_life_far_ahead_keeps_nobody_out() {
    let c = parsed("c");
    while_c_restarts("tombstones", |tie| {
        for life in [1 + FAR, 2 + FAR, 1_000] {
            tie.tombstone(&c, life, 1);
        }
    });
}

#[test]
fn a_forged_profile_or_row_does_not_outrank_the_node_itself() {
    let c = parsed("c");
    while_c_restarts("profiles and rows", |tie| {
        for life in [FAR, 1_000] {
            tie.profile(&c, life, 1);
            tie.row(&c, life, 1);
        }
        for times in 1..4 {
            tie.profile(&c, 1, times * FAR - 1);
            tie.row(&c, 1, times * FAR - 1);
        }
    });
}

#[test]
fn whatever_a_stolen_key_said_the_one_that_was_issued_later_gets_in() {
    let Scene { nodes: [a, b, c], cluster, .. } = Scene::new();
    let issued = clock::wall() - Duration::from_secs(60);
    let stolen = cluster.identity_valid("m", Validity::leaf(issued));
    let mut thief = Member::in_life(stolen, FAR);
    let mut ties = [&a, &b, &c].map(|node| thief.link(node));
    let (m, life) = (parsed("m"), FAR + 9);
    ties.iter_mut().for_each(|tie| {
        tie.profile(&m, life, FAR);
        tie.row(&m, life, FAR);
    });
    for node in [&a, &b, &c] {
        node.sees("m", "syncing");
    }
    let genuine = cluster.node("m").join(a.listen()).start();
    linked(&[&a, &b, &c, &genuine]);
    for node in [&a, &b, &c] {
        let answer = thief.greet(node);
        assert!(matches!(answer, Greeting::Refuse(Refusal::Superseded { .. })), "{answer:?}");
        node.logged("link_refused", &[("node", "m@")]);
        node.sees("m", "online");
        let life = genuine.status().unwrap()["incarnation"].clone();
        until("m as it is", || {
            let m = known(node, "m");
            if m["incarnation"] == life { Ok(()) } else { Err(m.to_string()) }
        });
        assert_eq!(node.count_logged("link_lost", &[("node", "b@")]), 0);
        assert_eq!(node.count_logged("link_lost", &[("node", "c@")]), 0);
    }
}

#[test]
fn a_member_that_calls_a_life_stale_ends_no_link() {
    let mut scene = Scene::new();
    let before = scene.nodes.each_ref().map(|node| node.status().unwrap()["incarnation"].clone());
    let harm = scene.under(|member, nodes| {
        let start = now();
        while start.elapsed() < Duration::from_secs(4) {
            for node in nodes {
                member.refuse(node, |welcome| Refusal::Stale {
                    known: welcome.incarnation,
                    linked: None,
                });
                member.refuse(node, |welcome| Refusal::Stale {
                    known: Incarnation(welcome.incarnation.0 + 1000),
                    linked: Some(node.listen()),
                });
            }
        }
    });
    harm.bearable("stale");
    let after = scene.nodes.each_ref().map(|node| node.status().unwrap()["incarnation"].clone());
    assert_eq!(before, after);
    for node in &scene.nodes {
        assert_eq!(node.count_logged("name_in_use", &[]), 0);
    }
}
