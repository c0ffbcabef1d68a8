//! Networks that fall apart and come together again, on the ways of the kit.

use std::thread;

use serde_json::{Value, json};

use crate::kit::mesh::halves;
use crate::kit::{Cluster, Mesh, Ways, until};

const SILENT: (&str, &str) = ("xpando_heartbeat_verdicts_total", "silent");

/// Splits a mesh between these numbers and the others, again and again.
#[track_caller]
pub(crate) fn heal(mesh: &Mesh, splits: &[Vec<usize>], cut: impl Fn(&[usize]), heal: impl Fn()) {
    for half in splits {
        let split = |a, b| half.contains(&a) != half.contains(&b);
        mesh.mends(&format!("split {half:?}"), split, [&|| cut(half), &heal], || {});
    }
}

/// Whether a pair is these two, in either order.
pub(crate) fn between(one: usize, other: usize) -> impl Fn(usize, usize) -> bool {
    move |a, b| [(one, other), (other, one)].contains(&(a, b))
}

/// Nodes 1 and 2 gave each other up, each with its evidence: all others still hear both. Every node
/// that is asked knows that their two edges are gone, and no other.
#[track_caller]
pub(crate) fn shows_on_two_edges(mesh: &Mesh) {
    let others: Vec<&str> = mesh.nodes[2..].iter().map(|node| node.name.as_str()).collect();
    for (of, with) in [(1, 2), (2, 1)] {
        let row = mesh.on(of).row(&mesh.on(with).name);
        let evidence = &row["evidence"];
        assert_eq!(evidence["heard_by"], json!(others), "{row}");
        assert_eq!(evidence["confirmed_by"], json!([]), "{row}");
        assert!(evidence["phi"].as_f64().unwrap() >= 8.0, "{row}");
    }
    for node in &mesh.nodes[2..] {
        assert_eq!(node.counter(SILENT.0, SILENT.1), 0, "{}", node.name);
    }
    let edge = |(a, b): (usize, usize)| {
        let state = if between(1, 2)(a, b) { "offline" } else { "online" };
        (mesh.on(a).name.clone(), mesh.on(b).name.clone(), state.to_owned())
    };
    let mut expected: Vec<_> = mesh.every_pair().into_iter().map(edge).collect();
    expected.sort();
    for node in &mesh.nodes {
        until(&format!("two lost edges on {}", node.name), || {
            let mut links = node.links();
            links.sort();
            if links == expected { Ok(()) } else { Err(format!("{links:?}")) }
        });
    }
}

/// Five clusters share the fifteen splits, at once: they mostly wait.
#[test]
fn every_split_of_five_nodes_heals() {
    let first = Cluster::new();
    let others = [(); 4].map(|()| first.beside());
    let clusters = others.iter().chain([&first]);
    let splits = halves(5);
    assert_eq!(splits.len(), 15);
    thread::scope(|scope| {
        for (cluster, splits) in clusters.zip(splits.chunks(3)) {
            scope.spawn(|| {
                let ways = Ways::between(cluster, 5);
                let mesh = ways.mesh();
                let across =
                    |half: &[usize]| mesh.pairs(|a, b| half.contains(&a) != half.contains(&b));
                let all = mesh.every_pair();
                heal(&mesh, splits, |half| ways.set(&across(half), false), || ways.set(&all, true));
            });
        }
    });
}

#[test]
fn a_one_way_cut_shows_on_two_edges_and_nowhere_else() {
    let cluster = Cluster::new();
    let ways = Ways::between(&cluster, 4);
    let mesh = ways.mesh();
    let way = [(1, 2)];
    let calls: [&dyn Fn(); 2] = [&|| ways.set(&way, false), &|| ways.set(&way, true)];
    mesh.mends("one way", between(1, 2), calls, || shows_on_two_edges(&mesh));
    assert_eq!(mesh.on(1).row(&mesh.on(2).name)["evidence"], Value::Null, "all is well again");
}
