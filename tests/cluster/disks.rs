//! Disks that fail under a node: its links live on, it says what it does not remember, and remembers it once it can.

use std::time::Duration;

use serde_json::Value;

use crate::kit::disk::{Disk, Faults};
use crate::kit::trail::{flooded, numbers};
use crate::kit::{Cluster, Node, full, linked, until};

/// Of a flood: enough to need room on the disk.
const FLOOD: Duration = Duration::from_millis(200);

/// The node says everywhere that it remembers nothing, for this reason.
#[track_caller]
fn degraded(node: &Node, why: &str) {
    node.shows(&format!("{why:?}"), |status| {
        let said = status["degraded"].as_str().unwrap_or_default();
        said.contains("nothing is remembered") && said.contains(why)
    });
    let ready = node.asks("GET /health/ready", &[]);
    assert_eq!(ready.problem(503), "not ready: store");
    assert_eq!(ready.json()["checks"]["store"], Value::Bool(false));
    assert_eq!(metric(node), "1.0");
}

/// It says that all is well again.
#[track_caller]
fn recovered(node: &Node) {
    node.shows("nothing degraded", |status| status["degraded"].is_null());
    let ready = node.asks("GET /health/ready", &[]);
    assert_eq!((ready.status, &ready.json()["degraded"]), (200, &Value::Bool(false)));
    assert_eq!(metric(node), "0.0");
}

fn metric(node: &Node) -> String {
    let text = String::from_utf8(node.run(&["metrics"], &[]).stdout).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix("xpando_store_degraded "));
    value.unwrap_or_else(|| panic!("{text}")).to_owned()
}

/// A node that comes and goes while another one's disk fails: that one links with it, and shows the events of it.
#[track_caller]
fn visit(cluster: &Cluster, name: &str, host: &Node) {
    let guest = cluster.node(name).join(host.listen()).start();
    linked(&[host, &guest]);
    assert_eq!(guest.terminate(), Some(0));
    host.sees(name, "offline");
    let shown = host.events(&["--type", "peer_offline", "--node", &full(name)]);
    assert_eq!(shown.len(), 1, "{shown:?}");
}

/// What is stored in the end: all of a life, the flood and the guests of its bad time among it.
#[track_caller]
fn remembers(node: &Node, floods: &[u64], guests: &[&str]) {
    let (last, proved) = node.verified();
    assert_eq!(last, proved);
    // The event of the recovery is stored a moment after the node shows it.
    let stored = until("the recovery in the trail", || {
        let stored = node.exported();
        let there = stored.iter().any(|it| it["event"] == "store_recovered");
        if there { Ok(stored) } else { Err(format!("{} events", stored.len())) }
    });
    let numbers = numbers(&stored);
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    let of = |kind: &'static str| stored.iter().filter(move |it| it["event"] == kind);
    let flooded = flooded(&stored);
    let expected: Vec<_> = floods.iter().flat_map(|noted| 0..*noted).collect();
    assert!(flooded == expected, "{} of {} events of floods", flooded.len(), expected.len());
    for guest in guests {
        assert_eq!(of("peer_offline").filter(|it| it["peer"] == full(guest)).count(), 1, "{guest}");
    }
    let place = |kind| of(kind).map(|it| it["seq"].as_u64().unwrap()).collect::<Vec<_>>();
    let (failing, recovered) = (place("store_failing"), place("store_recovered"));
    assert!(
        failing.len() == 1 && recovered.len() == 1 && failing < recovered,
        "{failing:?} {recovered:?}"
    );
    assert_eq!(of("events_lost").count(), 0);
}

/// Nobody of them lost another one.
#[track_caller]
fn no_link_was_lost(nodes: &[&Node]) {
    linked(nodes);
    for node in nodes {
        for peer in nodes {
            for kind in ["link_lost", "peer_offline", "link_replaced"] {
                let lost = node.events(&["--since", "1h", "--type", kind, "--node", &peer.name]);
                let own = lost.iter().filter(|it| it["peer"] == peer.name).collect::<Vec<_>>();
                assert!(own.is_empty(), "{}: {own:?}", node.name);
            }
        }
    }
}

#[test]
fn a_full_disk_and_then_a_read_only_one_cost_no_link_and_no_event() {
    let cluster = Cluster::new();
    let Some(disk) = Disk::mount(&cluster.path("disk"), 64) else { return };
    let a = cluster.node("a").data_dir(&cluster.path("disk/a")).start();
    let [b, c] = ["b", "c"].map(|name| cluster.node(name).join(a.listen()).start());
    linked(&[&a, &b, &c]);
    recovered(&a);

    disk.fill();
    let first = a.floods(FLOOD);
    degraded(&a, "No space left");
    visit(&cluster, "d", &a);
    disk.is_read_only(true);
    degraded(&a, "Read-only");
    visit(&cluster, "e", &a);
    disk.is_read_only(false);
    disk.free();
    recovered(&a);

    let floods = [first.over().noted, a.floods(FLOOD).over().noted];
    remembers(&a, &floods, &["d", "e"]);
    no_link_was_lost(&[&a, &b, &c]);
    assert_eq!(a.terminate(), Some(0));
}

#[test]
fn a_disk_with_errors_costs_no_link_and_no_event() {
    let cluster = Cluster::new();
    let Some(faults) = Faults::build(&cluster.path("")) else { return };
    let a = faults.under(cluster.node("a"), &cluster.path("a")).start();
    let [b, c] = ["b", "c"].map(|name| cluster.node(name).join(a.listen()).start());
    linked(&[&a, &b, &c]);
    recovered(&a);

    faults.fail(&["fsync"]);
    let first = a.floods(FLOOD);
    degraded(&a, "Input/output error");
    visit(&cluster, "d", &a);
    faults.fail(&["open", "read", "write"]);
    visit(&cluster, "e", &a);
    let shown = a.events(&["--since", "1h", "--type", "node_started"]);
    assert!(shown.len() <= 1, "what memory has forgotten is not shown: {shown:?}");
    degraded(&a, "Input/output error");
    faults.fail(&[]);
    recovered(&a);

    let floods = [first.over().noted, a.floods(FLOOD).over().noted];
    remembers(&a, &floods, &["d", "e"]);
    no_link_was_lost(&[&a, &b, &c]);
    assert_eq!(a.terminate(), Some(0));
}
