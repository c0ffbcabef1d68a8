//! Events that a member causes, and events that it makes up: innocent trails keep what they had, and every node its lines.

use std::collections::BTreeMap;
use std::thread;

use xpando_node::internals::proto::event::{Event, Page, Recorded};
use xpando_node::internals::proto::hlc::Stamp;
use xpando_node::internals::proto::node::Incarnation;

use crate::harm::Scene;
use crate::kit::{full, now, outputs, until, wall};

/// Times that the member comes and goes.
const TIMES: usize = 150;
/// Events of one kind about one node at once; then one a second.
const AT_ONCE: u64 = 64;

#[test]
fn one_that_comes_and_goes_leaves_a_number_and_washes_nothing_away() {
    let mut scene = Scene::new();
    let start = now();
    let harm = scene.under(|member, nodes| {
        for _ in 0..TIMES {
            drop(member.link(&nodes[0]));
        }
    });
    harm.bearable_flood("comes and goes");
    let a = &scene.nodes[0];
    let most = AT_ONCE + start.elapsed().as_secs() + 2;
    let mut taken = BTreeMap::<String, u64>::new();
    for event in a.events(&["--since", "1h"]) {
        if event["peer"] == full("m").as_str() && event["event"] != "events_omitted" {
            *taken.entry(event["event"].to_string()).or_default() += 1;
        }
    }
    assert!(taken.values().all(|count| *count <= most), "{taken:?}");
    let omitted = until("what was left out", || {
        let told = a.events(&["--type", "events_omitted", "-n", "1000"]);
        let about = |it: &&serde_json::Value| it["peer"] == full("m").as_str();
        let count = told.iter().filter(about).filter_map(|it| it["count"].as_u64()).max();
        count.ok_or_else(|| format!("{told:?}"))
    });
    eprintln!("{taken:?}, up to {omitted} of one kind left out");
    assert!(omitted > 5, "{omitted}");
    for kind in ["node_started", "identity_loaded"] {
        assert_eq!(a.events(&["--type", kind]).len(), 1, "{kind}");
    }
    let (last, proved) = a.verified();
    assert_eq!(last, proved);
}

#[test]
fn one_that_stamps_highest_has_its_part_of_the_lines_and_no_more() {
    let mut scene = Scene::new();
    let mut tie = scene.member.link_ractor(&scene.nodes[0]);
    scene.nodes[0].sees("m", "online");
    let ahead = wall() + 365 * 24 * 3_600_000;
    let event = |seq| Recorded {
        seq,
        noted_by: None,
        at: ahead,
        since_start: 0,
        incarnation: Incarnation(1),
        stamp: Stamp { millis: ahead + seq, count: 0 },
        hash: None,
        event: Event::Paused { millis: 1 },
    };
    let page = Page { events: (1..=1000).map(event).collect(), next: 1000, first: 1 };
    let answer = serde_json::to_vec(&page).unwrap();
    let a = &scene.nodes[0];
    let (json, text) = thread::scope(|scope| {
        scope.spawn(|| (0..2).for_each(|_| tie.answers("xpando:history", &answer)));
        let lines = |args: &[&str]| {
            let (code, out, err) = outputs(&a.run(args, &[]));
            assert!(code == Some(0) && err.is_empty(), "{err}");
            out
        };
        let json = lines(&["events", "--all", "-n", "40", "--json"]);
        (json, lines(&["events", "--all", "-n", "40"]))
    });
    let mut by = BTreeMap::<String, usize>::new();
    for line in json.lines() {
        let event: Recorded = serde_json::from_str(line).unwrap();
        *by.entry(event.noted_by.unwrap().to_string()).or_default() += 1;
    }
    eprintln!("{by:?}");
    assert_eq!(by, ["a", "b", "c", "m"].map(|node| (full(node), 10)).into());
    let ahead: Vec<_> = text.lines().filter(|line| line.contains("ahead of this clock")).collect();
    assert!(ahead.len() == 10 && ahead.iter().all(|line| line.starts_with("m@")), "{text}");
}
