//! Two nodes that dial each other at the same instant end with one link on both sides.

use crate::kit::{Cluster, Node, Ways, connections, free_address, linked, until};

/// Each saw the other come online once, and nothing ended since.
#[track_caller]
fn one_link(a: &Node, b: &Node, round: u32) {
    linked(&[a, b]);
    until("single connection", || match connections(&[a, b]) {
        1 => Ok(()),
        count => Err(format!("round {round}: {count} connections")),
    });
    for (node, peer) in [(a, b.name.as_str()), (b, a.name.as_str())] {
        assert_eq!(node.total("xpando_links_ended_total"), 0, "round {round}: {}", node.name);
        node.logged("peer_online", &[("node", peer)]);
        let online = node.count_logged("peer_online", &[("node", peer)]);
        assert_eq!(online, 1, "round {round}: {}", node.name);
    }
    linked(&[a, b]);
}

#[test]
fn crossed_dials_end_in_one_link_without_flapping() {
    let cluster = Cluster::new();
    for round in 1..=20 {
        let [at_a, at_b] = [free_address(), free_address()];
        let a = cluster.node("a").listen(at_a).join(at_b).launch();
        let b = cluster.node("b").listen(at_b).join(at_a).launch();
        one_link(&a, &b, round);
        // Dropped without a goodbye: the next round starts against remembered peers, too.
    }
}

/// Here the dials surely cross: no hello gets through before both nodes have sent theirs.
#[test]
fn of_two_dials_that_cross_the_first_name_s_is_the_link() {
    let cluster = Cluster::new();
    for round in 1..=20 {
        let ways = Ways::between(&cluster, 2);
        ways.hold(true);
        let [a, b] = [1, 2].map(|number| {
            let fresh = cluster.path(&format!("{number}-{round}"));
            ways.launch(number, ways.node(number).data_dir(&fresh))
        });
        for node in [&a, &b] {
            node.logged("peer_connecting", &[]); // it knows whom it reached: its hello is under way
        }
        ways.hold(false);
        one_link(&a, &b, round);
        assert_eq!(
            connections(&[&b]),
            1,
            "round {round}: the link is the one that the first dialed"
        );
        for node in [&a, &b] {
            let met = node.counter("xpando_connections_accepted_total", "tls");
            assert_eq!(met, 1, "round {round}: nobody had to dial again ({})", node.name);
        }
    }
}
