//! The link matrix of the whole cluster, from each node's own mouth.

use rustix::process::Signal;
use serde_json::Value;

use crate::kit::{Cluster, Node, linked, until};

/// The sides of links as a node tells them: from, to, state.
fn links(cluster: &Cluster, node: &Node) -> Vec<(String, String, String)> {
    let name = node.name.as_str();
    let text = cluster.print(&["topology", "--json", "--name", name]);
    let topology: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(topology["as_seen_by"], name);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let link = |link: &Value| (text(&link["from"]), text(&link["to"]), text(&link["state"]));
    topology["links"].as_array().unwrap().iter().map(link).collect()
}

/// Waits until every node tells the same, and that all of `expected` sides are online.
#[track_caller]
fn agree(cluster: &Cluster, nodes: &[&Node], online: usize) -> Vec<(String, String, String)> {
    until("one matrix on all nodes", || {
        let views: Vec<_> = nodes.iter().map(|node| links(cluster, node)).collect();
        let count = views[0].iter().filter(|(_, _, state)| state == "online").count();
        let same = views.iter().all(|view| *view == views[0]);
        if same && count == online { Ok(views[0].clone()) } else { Err(format!("{views:?}")) }
    })
}

#[test]
fn all_nodes_tell_the_same_matrix_and_keep_to_it() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let b = cluster.node("b").join(a.listen()).start();
    let c = cluster.node("c").join(a.listen()).start();
    linked(&[&a, &b, &c]);
    agree(&cluster, &[&a, &b, &c], 6);

    // A dead node's own row stays what it last said; the others' sides of it are offline.
    c.kill();
    let view = agree(&cluster, &[&a, &b], 4);
    let side = |from: &str, to: &str| {
        let found = view.iter().find(|(f, t, _)| f.starts_with(from) && t.starts_with(to));
        found.map(|(_, _, state)| state.as_str())
    };
    assert_eq!((side("a@", "c@"), side("b@", "c@")), (Some("offline"), Some("offline")));
    assert_eq!((side("a@", "b@"), side("b@", "a@")), (Some("online"), Some("online")));

    // Its next life replaces its old row at once.
    let c = cluster.node("c").join(a.listen()).start();
    agree(&cluster, &[&a, &b, &c], 6);
    assert_eq!(c.terminate(), Some(0));
    let view = agree(&cluster, &[&a, &b], 2);
    assert!(view.iter().all(|(from, ..)| !from.starts_with("c@")), "who left says nothing more");
}

#[test]
fn a_doubt_shows_on_the_doubter_s_side_only() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let b = cluster.node("b").join(a.listen()).start();
    linked(&[&a, &b]);
    agree(&cluster, &[&a, &b], 2);
    b.signal(Signal::STOP);
    until("a side in doubt", || {
        let view = links(&cluster, &a);
        let states: Vec<_> = view.iter().map(|(_, _, state)| state.as_str()).collect();
        if states == ["suspect", "online"] { Ok(()) } else { Err(format!("{view:?}")) }
    });
    let matrix = cluster.print(&["topology", "--name", a.name.as_str()]);
    assert!(matrix.contains("a@127.0.0.1   \\   ?"), "{matrix}");
    b.signal(Signal::CONT);
    agree(&cluster, &[&a, &b], 2);
}
