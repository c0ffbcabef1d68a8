//! The cluster's authority is replaced, and its nodes' certificates are renewed, while messages flow.

use std::time::Duration;

use serde_json::Value;
use xpando_node::internals::node::bench::{Ledger, Numbers, Order, Sent};

use crate::kit::{Cluster, Node, linked, three, until};

/// Messages of one publisher on its topic.
const MESSAGES: u64 = 200_000;

/// What `rotate` shows.
fn rotation(node: &Node) -> Value {
    let text = node.ask(&["rotate", "--json"]).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Waits until no rotation is under way, and all nodes have certificates of one authority, which is told.
fn over(node: &Node) -> String {
    until("end of the rotation", || {
        let status = rotation(node);
        let nodes = status["nodes"].as_object().unwrap();
        let signers: Vec<_> = nodes.values().map(|node| node["authority"].as_str()).collect();
        match signers.first() {
            Some(Some(first)) if signers.iter().all(|it| *it == Some(*first)) => {
                let ended = status["rotation"].is_null() && nodes.len() == 3;
                if ended { Ok((*first).to_owned()) } else { Err(status.to_string()) }
            }
            _ => Err(status.to_string()),
        }
    })
}

/// So many links have ended at each node.
fn ended(nodes: &[Node; 3]) -> [u64; 3] {
    nodes.each_ref().map(|node| node.total("xpando_links_ended_total"))
}

#[test]
fn the_authority_is_replaced_under_load_and_no_link_or_message_is_lost() {
    let cluster = Cluster::new();
    let nodes = three(&cluster);
    let [a, b, c] = &nodes;
    let first = over(a);
    let links = ended(&nodes);
    b.check("numbered:*");
    a.reaches("numbered:ready", 1);
    let publish = Order::Numbers(Numbers {
        below: "numbered:".to_owned(),
        topics: 1,
        size: 64,
        count: MESSAGES,
        wait: true,
        pause: Duration::from_millis(10),
    });
    let publishing = a.ordered::<Sent>(&publish);

    a.ask(&["rotate", "authority"]).unwrap();
    let again = a.ask(&["rotate", "authority"]).unwrap_err();
    assert!(again.contains("began to rotate the authority"), "{again}");
    let second = over(c);
    assert_ne!(second, first);

    // Once more, and back half-way.
    b.ask(&["rotate", "authority"]).unwrap();
    b.ask(&["rotate", "--abort"]).unwrap();
    assert_eq!(over(a), second);
    c.ask(&["rotate", "nodes"]).unwrap();

    let sent = publishing.join().unwrap();
    let Ledger { streams, dropped, foreign, .. } = until("the last message", || {
        let ledger = b.ledger();
        match ledger.streams.first() {
            Some(stream) if stream.next == MESSAGES => Ok(ledger),
            stream => Err(format!("{stream:?} of {sent:?}")),
        }
    });
    assert_eq!((streams.len(), dropped, foreign), (1, 0, 0));
    assert_eq!((streams[0].received, streams[0].lost, streams[0].back), (MESSAGES, 0, 0));
    assert_eq!(ended(&nodes), links, "certificates are renewed without a new link");
    linked(&[a, b, c]);
    // What is new is in force for who starts anew.
    let d = cluster.node("d").join(a.listen()).start();
    linked(&[a, b, c, &d]);
    for node in nodes {
        assert_eq!(node.terminate(), Some(0));
    }
}

#[test]
fn a_node_that_does_not_answer_holds_a_rotation_up_until_it_is_forced_or_forgotten() {
    let cluster = Cluster::new();
    let [a, b, c] = three(&cluster);
    c.kill();
    a.sees("c", "offline");
    a.ask(&["rotate", "authority"]).unwrap();
    let waits = || rotation(&b)["waits_for"].clone();
    until("wait for the node that is gone", || match waits() {
        names if names == serde_json::json!(["c@127.0.0.1"]) => Ok(()),
        other => Err(other.to_string()),
    });
    assert!(!rotation(&a)["rotation"].is_null());
    a.ask(&["forget", "c@127.0.0.1"]).unwrap();
    until("end of the rotation", || {
        let status = rotation(&b);
        if status["rotation"].is_null() { Ok(()) } else { Err(status.to_string()) }
    });
    linked(&[&a, &b]);
}
