//! A member that states different things to different nodes: they find out, and take nothing of its key any more.

use std::time::Duration;

use crate::harm::Scene;
use crate::kit::{Node, full, linked, outputs, parsed, until, within};
use crate::member::Member;

/// Every peer gets a digest of the topology in such a time.
const ROUND: Duration = Duration::from_secs(40);

#[test]
fn a_member_that_states_two_things_under_one_mark_is_found_out_by_all() {
    let mut scene = Scene::new();
    let m = full("m");
    let proofs = ["--type", "equivocation", "--node", &m];
    let harm = scene.under(|member, nodes| {
        let [a, b, _] = nodes;
        let mut tie = member.link(a);
        tie.cells([parsed("b")].into_iter());
        let mut other = member.link_again(b);
        other.cells([parsed("c")].into_iter());
        for node in nodes {
            within(ROUND, "a proof", || {
                let found = node.events(&proofs);
                if found.len() == 1 { Ok(()) } else { Err(format!("{found:?}")) }
            });
        }
    });
    harm.bearable("two rows under one mark");
    // A later life of the same key is linked, and says nothing.
    let Scene { nodes, mut member, cluster } = scene;
    says_nothing(&nodes, &mut member);
    for node in &nodes {
        // Both signatures are in the trail, where they stay, and are shown.
        let [event] = node.events(&proofs).try_into().unwrap();
        let signatures = event["signatures"].as_array().unwrap();
        let why = until("why", || node.ask(&["why", &m]));
        for signature in signatures {
            assert!(why.contains(signature.as_str().unwrap()), "{why}");
        }
        let (code, text, _) = outputs(&node.run(&["events", "--node", &m, "-n", "100"], &[]));
        assert!(code == Some(0) && text.contains("sealed two different rows"), "{text}");
    }
    // Nor does it when the whole cluster has begun anew.
    nodes.into_iter().for_each(|node| assert_eq!(node.terminate(), Some(0)));
    let a = cluster.node("a").start();
    let [b, c] = ["b", "c"].map(|name| cluster.node(name).join(a.listen()).start());
    linked(&[&a, &b, &c]);
    let nodes = [a, b, c];
    says_nothing(&nodes, &mut member);
    assert_eq!(nodes.each_ref().map(|node| node.events(&proofs).len()), [1; 3]);
}

/// The member links with each node in another life, and states a cell that none of them takes.
fn says_nothing(nodes: &[Node; 3], member: &mut Member) {
    let (a, m) = (parsed("a"), full("m"));
    let mut ties = nodes.each_ref().map(|node| member.link(node));
    ties.iter_mut().for_each(|tie| tie.cells([a.clone()].into_iter()));
    for node in nodes {
        node.sees("m", "syncing");
        let seen = node.links().into_iter().find(|(from, to, _)| *from == m && *to == full("a"));
        assert_eq!(seen, None, "{}", node.name);
    }
}
