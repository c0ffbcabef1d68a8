//! The link matrix of the whole cluster, from each node's own mouth.

use rustix::process::Signal;

use crate::kit::{Cluster, Node, linked, until};

/// Waits until every node tells the same, and that all of `expected` sides are online.
#[track_caller]
fn agree(nodes: &[&Node], online: usize) -> Vec<(String, String, String)> {
    until("one matrix on all nodes", || {
        let views: Vec<_> = nodes.iter().map(|node| node.links()).collect();
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
    agree(&[&a, &b, &c], 6);

    // A dead node's own row stays what it last said; the others' sides of it are offline.
    c.kill();
    let view = agree(&[&a, &b], 4);
    let side = |from: &str, to: &str| {
        let found = view.iter().find(|(f, t, _)| f.starts_with(from) && t.starts_with(to));
        found.map(|(_, _, state)| state.as_str())
    };
    assert_eq!((side("a@", "c@"), side("b@", "c@")), (Some("offline"), Some("offline")));
    assert_eq!((side("a@", "b@"), side("b@", "a@")), (Some("online"), Some("online")));

    // Its next life replaces its old row at once.
    let c = cluster.node("c").join(a.listen()).start();
    agree(&[&a, &b, &c], 6);
    assert_eq!(c.terminate(), Some(0));
    let view = agree(&[&a, &b], 2);
    assert!(view.iter().all(|(from, ..)| !from.starts_with("c@")), "who left says nothing more");
}

#[test]
fn a_doubt_shows_on_the_doubter_s_side_only() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let b = cluster.node("b").join(a.listen()).start();
    linked(&[&a, &b]);
    agree(&[&a, &b], 2);
    b.signal(Signal::STOP);
    until("a side in doubt", || {
        let view = a.links();
        let states: Vec<_> = view.iter().map(|(_, _, state)| state.as_str()).collect();
        if states == ["suspect", "online"] { Ok(()) } else { Err(format!("{view:?}")) }
    });
    let matrix = cluster.print(&["topology", "--name", a.name.as_str()]);
    assert!(matrix.contains("a@127.0.0.1   \\   ?"), "{matrix}");
    b.signal(Signal::CONT);
    agree(&[&a, &b], 2);
}
