//! What innocent nodes suffer while one member is bad, and the bounds of it.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::kit::{Cluster, Node, full, now, row, three};
use crate::member::Member;

/// How long a view of an innocent node about another one may be wrong.
const WRONG: Duration = Duration::from_secs(2);
/// How much memory a bad member may cost each node, in KiB.
const MEMORY: u64 = 32 * 1024;
/// Which part of a core each node may spend on it.
const CORE: f64 = 0.2;

/// Three nodes that are linked, and a member that belongs to no node.
pub(crate) struct Scene {
    pub(crate) nodes: [Node; 3],
    pub(crate) member: Member,
    pub(crate) cluster: Cluster,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let cluster = Cluster::new();
        let nodes = three(&cluster);
        let member = Member::new(cluster.identity("m"));
        Self { nodes, member, cluster }
    }

    /// What the nodes suffer during an attack. What it does to a node that it stops itself is not looked at.
    pub(crate) fn under(&mut self, attack: impl FnOnce(&mut Member, &[Node; 3])) -> Harm {
        let Self { nodes, member, .. } = self;
        let before = nodes.each_ref().map(Count::of);
        let (start, over) = (now(), AtomicBool::new(false));
        let mut peaks = [0; 3];
        let mut harm = thread::scope(|scope| {
            let watching = scope.spawn(|| watched(nodes, &over));
            let calling = scope.spawn(|| called(nodes, &over));
            let ended = Ended(&over);
            attack(member, nodes);
            drop(ended);
            let (calls, failed) = calling.join().unwrap();
            let (wrong, most) = watching.join().unwrap();
            peaks = most;
            Harm { calls, failed, wrong, ..Harm::default() }
        });
        let took = start.elapsed();
        for ((node, before), peak) in nodes.iter().zip(before).zip(peaks) {
            let after = Count::of(node);
            harm.links += after.links - before.links;
            harm.suspicions += after.suspicions - before.suspicions;
            harm.events = harm.events.max(after.events - before.events);
            harm.memory = harm.memory.max(peak.max(after.memory).saturating_sub(before.memory));
            let core = (after.processor - before.processor).as_secs_f64() / took.as_secs_f64();
            harm.core = harm.core.max(core);
        }
        harm
    }
}

/// The attack is over, or has failed.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a node counts.
struct Count {
    links: usize,
    suspicions: usize,
    events: u64,
    memory: u64,
    processor: Duration,
}

impl Count {
    fn of(node: &Node) -> Self {
        // Links with the bad member come and go as it likes.
        let lost = |peer: &&str| {
            let fields = [("node", *peer)];
            node.count_logged("link_lost", &fields) + node.count_logged("link_replaced", &fields)
        };
        let suspected = |peer: &&str| node.count_logged("peer_suspected", &[("node", *peer)]);
        let innocent = ["a@", "b@", "c@"];
        let last: Value =
            serde_json::from_str(&node.ask(&["events", "-n", "1", "--json"]).unwrap()).unwrap();
        Self {
            links: innocent.iter().map(lost).sum(),
            suspicions: innocent.iter().map(suspected).sum(),
            events: last["seq"].as_u64().unwrap(),
            memory: node.memory(),
            processor: node.processor(),
        }
    }
}

/// What innocent nodes suffered.
#[derive(Debug, Default)]
pub(crate) struct Harm {
    links: usize,
    suspicions: usize,
    calls: usize,
    failed: usize,
    /// Which view was wrong, and for how long without a break.
    wrong: Vec<(String, Duration)>,
    /// The largest of all nodes: events, KiB at any time, part of a core.
    events: u64,
    memory: u64,
    core: f64,
}

impl fmt::Display for Harm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { links, suspicions, calls, failed, wrong, events, memory, core } = self;
        write!(
            f,
            "{links} links lost, {suspicions} suspicions, {failed} of {calls} calls failed, "
        )?;
        write!(f, "{events} events, +{memory} KiB, {core:.2} of a core, wrong: {wrong:?}")
    }
}

impl Harm {
    /// Prints it, and fails where it is more than an innocent node may suffer.
    #[track_caller]
    pub(crate) fn bearable(&self, attack: &str) {
        self.bearable_with(attack, MEMORY);
        assert!(self.core <= CORE, "{attack}: {self}");
    }

    /// Likewise where so much is sent that reading it takes a core.
    #[track_caller]
    pub(crate) fn bearable_flood(&self, attack: &str) {
        self.bearable_with(attack, MEMORY);
    }

    /// Likewise with so much memory, in KiB.
    #[track_caller]
    pub(crate) fn bearable_with(&self, attack: &str, memory: u64) {
        eprintln!("{attack}: {self}");
        assert_eq!((self.links, self.suspicions, self.failed), (0, 0, 0), "{attack}: {self}");
        let wrong = self.wrong.iter().filter(|(_, time)| *time > WRONG);
        assert_eq!(wrong.count(), 0, "{attack}: {self}");
        assert!(self.memory <= memory, "{attack}: {self}");
    }
}

/// Looks how each node sees the others, until it is over; what was wrong, and the most memory that each had.
fn watched(nodes: &[Node; 3], over: &AtomicBool) -> (Vec<(String, Duration)>, [u64; 3]) {
    let mut since: Vec<(String, Instant, Instant)> = Vec::new();
    let (mut wrong, mut peaks) = (Vec::new(), [0; 3]);
    while !over.load(Ordering::Relaxed) {
        for (node, peak) in nodes.iter().zip(&mut peaks) {
            *peak = node.memory().max(*peak);
            let Ok(status) = node.status() else { continue };
            for peer in ["a", "b", "c"].map(full).iter().filter(|peer| **peer != node.name) {
                let view = format!("{} of {peer}", node.name);
                let at = since.iter().position(|(of, ..)| *of == view);
                let right = row(&status, peer).is_some_and(|row| row["status"] == "online");
                match (at, right) {
                    (None, false) => since.push((view, now(), now())),
                    (Some(at), false) => since[at].2 = now(),
                    (Some(at), true) => {
                        let (view, from, to) = since.swap_remove(at);
                        wrong.push((view, to - from));
                    }
                    (None, true) => {}
                }
            }
            if status["majority"]["held"] != true {
                wrong.push((format!("{} has no majority", node.name), Duration::MAX));
            }
        }
    }
    wrong.extend(since.into_iter().map(|(view, from, _)| (view, from.elapsed())));
    (wrong, peaks)
}

/// Has the nodes call each other, until it is over: how often, and how often that failed.
fn called([a, b, c]: &[Node; 3], over: &AtomicBool) -> (usize, usize) {
    let (mut calls, mut failed) = (0, 0);
    while !over.load(Ordering::Relaxed) {
        for (from, to) in [(a, "b"), (b, "c"), (c, "a")] {
            calls += 1;
            failed += usize::from(from.echo(to).is_err());
        }
    }
    (calls, failed)
}
