//! A link with all that it can carry: nobody takes a full link for a broken one.

use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::kit::{Cluster, linked, now, outputs};

/// For how long each side sends as fast as it can.
const SECONDS: &str = "30";

#[test]
fn a_link_full_of_bulk_both_ways_raises_no_doubt_and_carries_calls() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let b = cluster.node("b").join(a.listen()).start();
    linked(&[&a, &b]);
    let watches = [&a, &b].map(|node| node.follow(&["watch", "--json"]));
    let (calls, slowest) = thread::scope(|scope| {
        let cast = |from: &'static str, to: &'static str| {
            let node = if from == "a" { &a } else { &b };
            scope.spawn(move || {
                let to = format!("{to}@127.0.0.1");
                let args = ["bench", "cast", "--to", &to, "--size", "16384", "--json"];
                let output = node.run(&[&args[..], &["--seconds", SECONDS]].concat(), b"");
                let (code, out, err) = outputs(&output);
                assert_eq!(code, Some(0), "{err}");
                serde_json::from_str::<Value>(&out).unwrap()
            })
        };
        let casts = [cast("a", "b"), cast("b", "a")];
        let (mut calls, mut slowest) = (0, Duration::ZERO);
        while !casts.iter().all(thread::ScopedJoinHandle::is_finished) {
            for (node, to) in [(&a, "b"), (&b, "a")] {
                let start = now();
                let echoed = node.echo(to);
                assert!(echoed.is_ok(), "call {calls}: {echoed:?}");
                (calls, slowest) = (calls + 1, slowest.max(start.elapsed()));
            }
        }
        for figures in casts.map(|cast| cast.join().unwrap()) {
            eprintln!("{figures}");
            assert_eq!(figures["delivered"], figures["messages"], "all of it arrived");
            assert!(figures["bytes_per_second"].as_f64().unwrap() > 1e6, "it was no load");
        }
        (calls, slowest)
    });
    eprintln!("{calls} calls meanwhile, the slowest with its process {slowest:?}");
    for (watch, node) in watches.iter().zip([&a, &b]) {
        let events: Vec<_> = watch.lines().into_iter().map(|(_, line)| line).collect();
        let harm = ["peer_suspected", "peer_silent", "peer_offline", "link_lost", "paused"];
        let harmed = |line: &&Value| harm.iter().any(|name| line["event"] == *name);
        assert_eq!(events.iter().find(harmed), None, "on {}", node.name);
        assert_eq!(node.counter("xpando_heartbeat_verdicts_total", "suspected"), 0);
        assert_eq!(node.total("xpando_links_ended_total"), 0, "{}", node.name);
    }
}
