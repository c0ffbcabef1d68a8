//! Machines that join, an authority that is replaced under load, and a node that is revoked: how long each takes, and what it
//! costs those who work meanwhile.
//!
//! Every node has a certificate directory of its own and joins by an invitation. While numbered messages go from each to all
//! others, calls at a steady pace tell how long an answer takes: first while nothing else happens, then during a rotation that is
//! aborted half-way and one that is not. What is asked of each figure stands beside it.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{ScopedJoinHandle, scope, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use xpando_node::internals::actors::timer::now;
use xpando_node::internals::gateway::admin::Request;
use xpando_node::internals::gateway::admin::enrol::{Invite, Invited};
use xpando_node::internals::gateway::rotation::{Rotate, RotationStatus};
use xpando_node::internals::io::clock;
use xpando_node::internals::node::bench::{Ledger, Numbers, Order, Probe, Probed, Sent};
use xpando_node::internals::proto::capability::Capabilities;
use xpando_node::internals::proto::enrol::NamePattern;
use xpando_node::internals::proto::node::NodeName;

use super::super::ask::ask;
use super::channels::quantiles;
use super::mesh::{Heard, Mesh};
use super::order;

/// Below which topics messages are numbered.
const BELOW: &str = "rotation:load";
/// Between 256 messages of one node.
const PAUSE: Duration = Duration::from_millis(100);
/// Between two calls of one node.
const EVERY: Duration = Duration::from_millis(5);
/// Of one order to make calls.
const STRETCH: Duration = Duration::from_secs(1);
/// Within this a node has written down where the others are.
const REMEMBERED: Duration = Duration::from_secs(7);
/// Between two looks at a rotation.
const LOOK: Duration = Duration::from_millis(50);
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is asked of a join, a revocation, a link that is missing, and of p99 during a rotation.
const JOIN: Duration = Duration::from_secs(3);
const REVOCATION: Duration = Duration::from_secs(2);
const MISSING: Duration = Duration::from_secs(1);
const SLOWER: f64 = 2.0;

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn ratio(time: Duration, floor: Duration) -> f64 {
    time.as_secs_f64() / floor.as_secs_f64()
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

/// The nodes of the benchmark.
struct Cluster {
    mesh: Mesh,
    names: Vec<NodeName>,
}

impl Cluster {
    fn directory(&self, node: &NodeName) -> anyhow::Result<PathBuf> {
        let running = self.mesh.nodes.iter().find(|it| it.name == *node);
        Ok(self.mesh.data_dir(running.context("the node does not run")?))
    }

    fn ask<T: serde::de::DeserializeOwned>(&self, request: &Request) -> anyhow::Result<T> {
        ask(&self.directory(self.first()?)?, request)
    }

    fn first(&self) -> anyhow::Result<&NodeName> {
        self.names.first().context("no nodes")
    }

    fn others(&self, node: &NodeName) -> Vec<NodeName> {
        self.names.iter().filter(|it| *it != node).cloned().collect()
    }
}

/// All of it, between so many nodes; the load goes on for so many seconds before anything is rotated.
pub(super) fn run(nodes: u16, quiet: Duration, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut cluster = form(nodes, out)?;
    rotation(&cluster, quiet, out)?;
    revocation(&mut cluster, out)
}

/// Starts the nodes, each by an invitation of the first.
fn form(nodes: u16, out: &mut dyn Write) -> anyhow::Result<Cluster> {
    let mut cluster = Cluster { mesh: Mesh::apart()?, names: Vec::new() };
    let mut joins = Vec::new();
    for number in 1..=nodes {
        let name: NodeName = format!("n{number}@127.0.0.1").parse()?;
        let pairs = cluster.names.len() * 2;
        if pairs == 0 {
            cluster.mesh.launch_apart(&name, None)?;
            cluster.mesh.wait_for(1, |line| line.is("node ready"))?;
        } else {
            let (names, capabilities) = (NamePattern::any(), Capabilities::OPERATE);
            let (seconds, uses, approval, spoken) = (600, 1, false, false);
            let invite = Invite { names, seconds, uses, approval, spoken, capabilities };
            let invited: Invited = cluster.ask(&Request::Invite(invite))?;
            let start = now();
            cluster.mesh.launch_apart(&name, Some(&invited.line))?;
            joins.push(cluster.mesh.wait_for(pairs, |line| line.is("peer_online"))? - start);
        }
        cluster.names.push(name);
    }
    let (last, others) = cluster.names.split_last().context("no nodes")?;
    let (last, others) = (last.clone(), others.len());
    sleep(REMEMBERED);
    cluster.mesh.end(&last)?;
    cluster.mesh.wait_for(others, |line| line.is("peer_offline") && line.about(&last))?;
    let start = now();
    cluster.mesh.launch_apart(&last, None)?;
    let floor = cluster.mesh.wait_for(others * 2, |line| line.is("peer_online"))? - start;
    for (name, join) in cluster.names.iter().skip(1).zip(&joins) {
        writeln!(
            out,
            "{name} joins by an invitation, start of the program until linked with all  {:8.1} ms   {:.2} x floor ({:.1} ms: {last} starts again)   asked {:.0} ms: {}",
            ms(*join),
            ratio(*join, floor),
            ms(floor),
            ms(JOIN),
            verdict(*join <= JOIN)
        )?;
    }
    Ok(cluster)
}

/// What the load came to.
struct Load {
    sent: Vec<Sent>,
    ledgers: Vec<(NodeName, Ledger)>,
    probed: Vec<Probed>,
    /// When the last publisher ended, in milliseconds since 1970.
    ended: u64,
}

/// What the two rotations took, and when, in milliseconds since 1970.
struct Rotations {
    aborted: Duration,
    whole: Duration,
    begin: u64,
    end: u64,
}

/// Rotates under load.
fn rotation(cluster: &Cluster, quiet: Duration, out: &mut dyn Write) -> anyhow::Result<()> {
    for node in &cluster.names {
        let check = Order::Check("rotation:*".to_owned());
        order::<()>(&cluster.directory(node)?, node, &check, PATIENCE)?;
    }
    cluster.names.iter().try_for_each(|node| until_wanted(cluster, node))?;
    cluster.mesh.drain();
    let (begin, stop) = (clock::millis(), AtomicBool::new(false));
    let makers = cluster.names.iter().map(|node| Maker::of(cluster, node));
    let makers = makers.collect::<anyhow::Result<Vec<_>>>()?;
    let (load, rotations) = scope(|scope| -> anyhow::Result<_> {
        let stop = &stop;
        let publishing: Vec<_> =
            makers.iter().map(|it| scope.spawn(move || it.publish(quiet))).collect();
        let probing: Vec<_> = makers.iter().map(|it| scope.spawn(move || it.probe(stop))).collect();
        sleep(quiet);
        let rotations = rotate(cluster);
        stop.store(true, Ordering::Relaxed);
        let probed = probing.into_iter().map(joined).collect::<anyhow::Result<_>>()?;
        let published = publishing.into_iter().map(joined).collect::<anyhow::Result<Vec<_>>>()?;
        let ended = published.iter().map(|(_, at)| *at).min().unwrap_or_default();
        let sent: Vec<_> = published.into_iter().map(|(sent, _)| sent).collect();
        let ledgers = ledgers(cluster)?;
        Ok((Load { sent, ledgers, probed, ended }, rotations?))
    })?;
    let missing = longest_missing(&cluster.mesh.drain());
    print(&load, &rotations, begin, missing, out)
}

fn joined<T>(task: ScopedJoinHandle<'_, anyhow::Result<T>>) -> anyhow::Result<T> {
    task.join().unwrap_or_else(|_panic| bail!("a task of the load ended"))
}

/// Waits until all others' subscriptions are known to a node.
fn until_wanted(cluster: &Cluster, node: &NodeName) -> anyhow::Result<()> {
    let (directory, wanted) = (cluster.directory(node)?, cluster.names.len() - 1);
    let below = "rotation:ready".to_owned();
    let (wait, pause) = (true, Duration::ZERO);
    let numbers = Order::Numbers(Numbers { below, topics: 1, size: 16, count: 1, wait, pause });
    let end = now() + PATIENCE;
    while now() < end {
        let sent: Sent = order(&directory, node, &numbers, PATIENCE)?;
        if usize::try_from(sent.reached)? == wanted {
            return Ok(());
        }
        sleep(LOOK);
    }
    bail!("the subscriptions of the others are not known to {node}")
}

/// Who makes the load of one node.
struct Maker {
    node: NodeName,
    directory: PathBuf,
    others: Vec<NodeName>,
}

impl Maker {
    fn of(cluster: &Cluster, node: &NodeName) -> anyhow::Result<Self> {
        let (directory, others) = (cluster.directory(node)?, cluster.others(node));
        Ok(Self { node: node.clone(), directory, others })
    }

    /// Publishes for the quiet time and the two rotations; what was sent, and when that ended.
    fn publish(&self, quiet: Duration) -> anyhow::Result<(Sent, u64)> {
        let time = quiet + Duration::from_secs(30);
        let count = u64::try_from(256 * time.as_millis() / PAUSE.as_millis())?;
        let below = BELOW.to_owned();
        let numbers = Numbers { below, topics: 1, size: 64, count, wait: true, pause: PAUSE };
        let within = time * 4 + PATIENCE;
        let sent = order(&self.directory, &self.node, &Order::Numbers(numbers), within)?;
        Ok((sent, clock::millis()))
    }

    /// Calls the others until told to stop. The ledger of a node is kept while somebody asks for it.
    fn probe(&self, stop: &AtomicBool) -> anyhow::Result<Probed> {
        let (directory, node, mut all) = (&self.directory, &self.node, Probed::default());
        let probe = Order::Probe(Probe { to: self.others.clone(), every: EVERY, time: STRETCH });
        while !stop.load(Ordering::Relaxed) {
            let probed: Probed = order(directory, node, &probe, PATIENCE)?;
            all.answered.extend(probed.answered);
            all.failed += probed.failed;
            order::<Ledger>(directory, node, &Order::Checked, PATIENCE)?;
        }
        Ok(all)
    }
}

/// One rotation that is aborted when nodes are moved, and one that is not.
fn rotate(cluster: &Cluster) -> anyhow::Result<Rotations> {
    let rotate = |what: Rotate| cluster.ask::<()>(&Request::Rotate { what });
    let before = over(cluster)?;
    let (begin, start) = (clock::millis(), now());
    rotate(Rotate::Authority)?;
    until(cluster, |status| status.rotation.as_ref().is_none_or(|it| it.moving).then_some(()))?;
    rotate(Rotate::Abort)?;
    if over(cluster)? != before {
        bail!("the rotation that was aborted left another authority");
    }
    let (aborted, start) = (now() - start, now());
    rotate(Rotate::Authority)?;
    if over(cluster)? == before {
        bail!("the rotation left the earlier authority");
    }
    Ok(Rotations { aborted, whole: now() - start, begin, end: clock::millis() })
}

/// Waits until no rotation is under way and all certificates are of one authority, which is told.
fn over(cluster: &Cluster) -> anyhow::Result<String> {
    until(cluster, |status| {
        let all: Option<Vec<_>> =
            status.nodes.values().map(|it| it.as_ref().map(|it| it.authority.as_str())).collect();
        let all = all.filter(|all| status.rotation.is_none() && all.len() == cluster.names.len());
        let first = all.as_ref().and_then(|all| all.first()).map(|first| (*first).to_owned());
        first.filter(|first| all.iter().flatten().all(|it| it == first))
    })
}

fn until<T>(cluster: &Cluster, wanted: impl Fn(&RotationStatus) -> Option<T>) -> anyhow::Result<T> {
    let end = now() + PATIENCE;
    while now() < end {
        if let Some(found) = wanted(&cluster.ask(&Request::Rotation)?) {
            return Ok(found);
        }
        sleep(LOOK);
    }
    bail!("the rotation does not go on")
}

/// The ledgers, once nothing more comes.
fn ledgers(cluster: &Cluster) -> anyhow::Result<Vec<(NodeName, Ledger)>> {
    let all = || {
        let one = |node: &NodeName| {
            let ledger = order(&cluster.directory(node)?, node, &Order::Checked, PATIENCE)?;
            Ok((node.clone(), ledger))
        };
        cluster.names.iter().map(one).collect::<anyhow::Result<Vec<(NodeName, Ledger)>>>()
    };
    let mut last = all()?;
    loop {
        sleep(STRETCH);
        let next = all()?;
        if next == last {
            return Ok(next);
        }
        last = next;
    }
}

/// The longest time from the end of a link, as one of its ends says, until it was there again.
fn longest_missing(heard: &[Heard]) -> Duration {
    let mut since: BTreeMap<(&NodeName, Option<&str>), Instant> = BTreeMap::new();
    let mut longest = Duration::ZERO;
    for (at, node, line) in heard {
        let link = (node, line.peer());
        if line.is("peer_offline") {
            since.insert(link, *at);
        } else if line.is("peer_online")
            && let Some(since) = since.remove(&link)
        {
            longest = longest.max(*at - since);
        }
    }
    // One that is not there again counts up to now.
    since.values().fold(longest, |longest, since| longest.max(now() - *since))
}

fn print(
    load: &Load,
    rotations: &Rotations,
    begin: u64,
    missing: Duration,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let ours = |node: &NodeName, ledger: &Ledger| {
        let streams = ledger.streams.iter().filter(|it| it.topic.as_str().starts_with(BELOW));
        let streams = streams.filter(|it| it.from != *node);
        streams.fold((0, 0), |(came, again), it| (came + it.received - it.back, again + it.back))
    };
    let sum = |of: fn(&Sent) -> u64| load.sent.iter().map(of).sum::<u64>();
    let (sent, accepted, missed) = (sum(|it| it.sent), sum(|it| it.reached), sum(|it| it.missed));
    let (mut came, mut again) = (0, 0);
    for (node, ledger) in &load.ledgers {
        let (more, doubled) = ours(node, ledger);
        (came, again) = (came + more, again + doubled);
    }
    let dropped: u64 = load.ledgers.iter().map(|(_, ledger)| ledger.dropped).sum();
    let lost = accepted.saturating_sub(came);
    writeln!(
        out,
        "messages: {sent} sent by all, accepted for {accepted} receivers ({missed} not), came {came}, lost {lost}, doubled or late {again}, dropped by receivers {dropped}   asked none lost: {}",
        verdict(lost == 0 && again == 0)
    )?;
    let window = |from: u64, to: u64| {
        let answered = load.probed.iter().flat_map(|it| &it.answered);
        let within = answered.filter(|(at, _)| (from..to).contains(at)).map(|(_, took)| *took);
        within.collect::<Vec<u64>>()
    };
    // The first second is that of connections which grow.
    let [mut quiet, mut during] =
        [window(begin + 1000, rotations.begin), window(rotations.begin, rotations.end)];
    let (calls, worst) = (during.len(), during.iter().max().copied().unwrap_or_default());
    let [p50_quiet, p99_quiet] = quantiles(&mut quiet);
    let [p50, p99] = quantiles(&mut during);
    let failed: u64 = load.probed.iter().map(|it| it.failed).sum();
    writeln!(
        out,
        "calls, quiet ({})             p50 {p50_quiet:.2} ms, p99 {p99_quiet:.2} ms",
        quiet.len()
    )?;
    writeln!(
        out,
        "calls, during rotations ({calls})  p50 {p50:.2} ms, p99 {p99:.2} ms, longest {:.1} ms   p99 {:.2} x floor (quiet)   asked {SLOWER:.1} x: {}   failed {failed}",
        worst as f64 / 1e6,
        p99 / p99_quiet,
        verdict(p99 <= SLOWER * p99_quiet)
    )?;
    writeln!(
        out,
        "longest time that a link was missing  {:.1} ms   asked {:.0} ms: {}",
        ms(missing),
        ms(MISSING),
        verdict(missing <= MISSING)
    )?;
    writeln!(
        out,
        "rotation aborted half-way, until all are back  {:.2} s; whole rotation, until all have new certificates  {:.2} s",
        rotations.aborted.as_secs_f64(),
        rotations.whole.as_secs_f64()
    )?;
    if load.ended < rotations.end {
        writeln!(out, "the messages ended {} ms before the rotation", rotations.end - load.ended)?;
    }
    Ok(())
}

/// Revokes one node; then another one is killed, for comparison.
fn revocation(cluster: &mut Cluster, out: &mut dyn Write) -> anyhow::Result<()> {
    let [.., killed, revoked] = cluster.names.as_slice() else { bail!("two nodes at least") };
    let (killed, revoked) = (killed.clone(), revoked.clone());
    let others = cluster.names.len() - 1;
    cluster.mesh.drain();
    let start = now();
    let request = Request::Revoke { certificates: revoked.to_string(), why: None };
    let _list: serde_json::Value = cluster.ask(&request)?;
    let gone = |name: NodeName| {
        move |line: &super::mesh::Line| line.is("peer_offline") && line.about(&name)
    };
    let out_everywhere = cluster.mesh.wait_for(others, gone(revoked.clone()))? - start;
    let start = now();
    cluster.mesh.end(&killed)?;
    // The revoked one is linked with nobody.
    let floor = cluster.mesh.wait_for(others - 1, gone(killed))? - start;
    writeln!(
        out,
        "revoked, until all others have ended their links  {:.1} ms   {:.2} x floor ({:.1} ms: kill -9)   asked {:.0} ms: {}",
        ms(out_everywhere),
        ratio(out_everywhere, floor),
        ms(floor),
        ms(REVOCATION),
        verdict(out_everywhere <= REVOCATION)
    )?;
    Ok(())
}
