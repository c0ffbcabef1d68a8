//! Twenty nodes on one machine: a full mesh, a crash and a new life, a split in two.

use crate::kit::{Cluster, Ways};

#[test]
fn twenty_nodes_form_a_mesh_lose_one_and_heal() {
    let cluster = Cluster::new();
    let ways = Ways::between(&cluster, 20);
    let mut mesh = ways.mesh();

    let killed = mesh.nodes.remove(6);
    let name = killed.name.clone();
    killed.kill();
    for node in &mesh.nodes {
        node.sees_as(&name, "offline", |row| row["reason"] == "crashed");
    }
    mesh.nodes.insert(6, ways.launch(7, ways.node(7)));
    mesh.linked();

    let split = |a: usize, b: usize| (a <= 10) != (b <= 10);
    let across = mesh.pairs(split);
    let calls: [&dyn Fn(); 2] = [&|| ways.set(&across, false), &|| ways.set(&across, true)];
    mesh.mends("ten and ten", split, calls, || {});
}
