//! A link that comes and goes: it is back when the flapping ends, and no other link has suffered.

use std::time::Duration;

use crate::kit::{Cluster, Mesh, Ways, connections, during, until};
use crate::splits::between;

/// Milliseconds cut, and whole: shorter than any doubt, within it, and beyond the verdict.
const FLAPS: [(u64, u64); 11] = [
    (500, 500),
    (500, 1_000),
    (1_000, 500),
    (2_000, 1_000),
    (4_000, 500),
    (6_000, 2_000),
    (9_000, 1_000),
    (12_000, 3_000),
    (15_000, 500),
    (500, 500),
    (3_000, 500),
];
/// How long it is quiet afterwards.
const QUIET: Duration = Duration::from_secs(3);

/// Has the link of nodes 1 and 2 flap.
#[track_caller]
pub(crate) fn suffers_alone(mesh: &Mesh, cut: impl Fn(), heal: impl Fn()) {
    let concerned = between(1, 2);
    let [kept, all] = [mesh.pairs(|a, b| !concerned(a, b)), mesh.every_pair()];
    let (lives, before) = (mesh.lives(), mesh.standings(&kept));
    for (away, whole) in FLAPS {
        let calls: [(&dyn Fn(), u64); 2] = [(&cut, away), (&heal, whole)];
        for (call, millis) in calls {
            call();
            during(Duration::from_millis(millis), || {
                assert_eq!(mesh.standings(&kept), before, "who is not concerned stays linked");
            });
        }
    }
    for node in &mesh.nodes[..2] {
        let verdicts = node.counter("xpando_heartbeat_verdicts_total", "silent");
        assert!(verdicts > 0, "{}: no verdict on the longest cuts", node.name);
    }
    mesh.linked();
    let after = mesh.standings(&all);
    during(QUIET, || assert_eq!(mesh.standings(&all), after, "now it is quiet"));
    assert_eq!(mesh.standings(&kept), before, "who is not concerned stays linked");
    assert_eq!(mesh.lives(), lives, "nobody restarted");
    for (of, with) in kept {
        let peer = mesh.on(with).name.as_str();
        assert_eq!(mesh.on(of).count_logged("link_lost", &[("node", peer)]), 0, "{of} and {with}");
    }
    for node in &mesh.nodes[2..] {
        assert_eq!(node.total("xpando_links_ended_total"), 0, "{}", node.name);
    }
}

#[test]
fn a_flapping_link_harms_no_other_and_comes_back() {
    let cluster = Cluster::new();
    let ways = Ways::between(&cluster, 4);
    let mesh = ways.mesh();
    let both = [(1, 2), (2, 1)];
    suffers_alone(&mesh, || ways.set(&both, false), || ways.set(&both, true));
    let nodes: Vec<_> = mesh.nodes.iter().collect();
    until("one connection a pair", || match connections(&nodes) {
        6 => Ok(()),
        count => Err(format!("{count} connections")),
    });
}
