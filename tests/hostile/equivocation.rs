//! A member that states different things to different nodes: they find out, and take nothing of its key any more.

use std::time::Duration;

use crate::harm::Scene;
use crate::kit::{full, outputs, parsed, until, within};

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
    let [a, b, c] = &scene.nodes;
    let mut ties = [a, b, c].map(|node| scene.member.link(node));
    ties.iter_mut().for_each(|tie| tie.cells([parsed("a")].into_iter()));
    for node in [a, b, c] {
        node.sees("m", "syncing");
        let seen = node.links().into_iter().find(|(from, to, _)| *from == m && *to == full("a"));
        assert_eq!(seen, None, "{}", node.name);
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
}
