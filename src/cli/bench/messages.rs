//! How fast messages go from node to node, beside the floor of the same run.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;
use xpando_node::internals::io::identity::Identity;
use xpando_node::internals::node::bench::{Kind, Load, Made, Order};
use xpando_node::internals::proto::node::NodeName;

use super::super::ask::{Which, status_of};
use super::channels::quantiles;
use super::mesh::{Mesh, Scratch, issue};
use super::{floor, order};

/// The longest message, in bytes, with room for its topic.
const MAX_SIZE: i64 = 16 * 1024 * 1024 - 512;
/// Time that a node may take beyond that of the load.
const PATIENCE: Duration = Duration::from_secs(60);

/// A load between running nodes.
#[derive(Debug, Args)]
pub(in crate::cli) struct LoadArgs {
    #[command(flatten)]
    which: Which,

    /// Nodes to send to: one for cast and call, all that are to count for fanout
    #[arg(long, value_name = "NAME@HOST", required = true, value_delimiter = ',')]
    to: Vec<NodeName>,

    /// Bytes of a message
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=MAX_SIZE))]
    size: u32,

    /// For how long
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,

    /// At most so many messages
    #[arg(long, default_value_t = u64::MAX)]
    count: u64,

    /// Tasks that send at once
    #[arg(long, default_value_t = 1)]
    concurrency: usize,

    /// Subscribers on each node
    #[arg(long, default_value_t = 1)]
    subscribers: usize,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What a load came to, in figures.
#[derive(Debug, Serialize)]
struct Figures {
    messages: u64,
    delivered: u64,
    missed: u64,
    failed: u64,
    seconds: f64,
    per_second: f64,
    bytes_per_second: f64,
    round_trip_p50_us: f64,
    round_trip_p99_us: f64,
    round_trip_p999_us: f64,
    /// Of sender and receivers together, for each delivery.
    cpu_us_per_message: f64,
    sender_peak_rss_mib: f64,
    receiver_peak_rss_mib: f64,
}

impl Figures {
    fn of(made: &Made, size: usize) -> Self {
        let seconds = made.took.as_secs_f64();
        let per_second = made.delivered as f64 / seconds;
        let cpu =
            made.there.iter().chain([&made.here]).map(|used| used.processor).sum::<Duration>();
        let peak = made.there.iter().map(|used| used.peak_memory).max().unwrap_or(0);
        let [p50, p99, p999] = made.round_trips.map(|nanos| nanos as f64 / 1e3);
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        Self {
            messages: made.done,
            delivered: made.delivered,
            missed: made.missed,
            failed: made.failed,
            seconds,
            per_second,
            bytes_per_second: per_second * size as f64,
            round_trip_p50_us: p50,
            round_trip_p99_us: p99,
            round_trip_p999_us: p999,
            cpu_us_per_message: cpu.as_secs_f64() * 1e6 / made.delivered.max(1) as f64,
            sender_peak_rss_mib: mib(made.here.peak_memory),
            receiver_peak_rss_mib: mib(peak),
        }
    }
}

/// `bench cast`, `call` and `fanout` between nodes that run.
pub(super) fn load(kind: Kind, args: &LoadArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    if kind != Kind::Fanout && args.to.len() != 1 {
        bail!("one node with --to");
    }
    let load = Load {
        kind,
        to: args.to.clone(),
        topic: String::new(),
        size: args.size as usize,
        time: Duration::try_from_secs_f64(args.seconds)?,
        count: args.count,
        concurrency: args.concurrency,
        subscribers: args.subscribers as u64,
    };
    let figures = Figures::of(&made(&args.which.find()?, load)?, args.size as usize);
    if args.json {
        return Ok(writeln!(out, "{}", serde_json::to_string(&figures)?)?);
    }
    let Figures { messages, delivered, missed, failed, seconds, .. } = figures;
    writeln!(
        out,
        "{messages} messages, {delivered} delivered, {missed} missed, {failed} failed in {seconds:.2} s"
    )?;
    writeln!(
        out,
        "  {:.0} deliveries/s, {:.1} MB/s",
        figures.per_second,
        figures.bytes_per_second / 1e6
    )?;
    print(&figures, out)
}

fn print(figures: &Figures, out: &mut dyn Write) -> anyhow::Result<()> {
    writeln!(
        out,
        "  calls p50 {:.0} µs, p99 {:.0} µs, p99.9 {:.0} µs; {:.2} µs of CPU a message; peak RSS {:.0} MiB here, {:.0} MiB there",
        figures.round_trip_p50_us,
        figures.round_trip_p99_us,
        figures.round_trip_p999_us,
        figures.cpu_us_per_message,
        figures.sender_peak_rss_mib,
        figures.receiver_peak_rss_mib
    )?;
    Ok(())
}

/// Opens the sinks, makes the load through the node in this directory, and closes them.
fn made(directory: &Path, mut load: Load) -> anyhow::Result<Made> {
    load.topic = format!("bench:{:016x}", rand::random::<u64>());
    let sinks = |subscribers: usize| {
        let sink = Order::Sink(load.topic.clone(), subscribers);
        load.to.iter().try_for_each(|node| order(directory, node, &sink, PATIENCE))
    };
    sinks(usize::try_from(load.subscribers)?)?;
    let here = status_of(directory)?.name;
    let made = order(directory, &here, &Order::Load(load.clone()), load.time + PATIENCE)?;
    sinks(0)?;
    Ok(made)
}

fn ends() -> anyhow::Result<([Identity; 2], Scratch)> {
    let dir = Scratch::new()?;
    let Ok(ends) = <[Identity; 2]>::try_from(issue(&dir, 2)?) else { bail!("two identities") };
    Ok((ends, dir))
}

/// `bench messages`: all of it, between nodes of its own.
pub(super) fn run(seconds: f64, out: &mut dyn Write) -> anyhow::Result<()> {
    let time = Duration::try_from_secs_f64(seconds)?;
    let (ends, _dir) = ends()?;
    let pair = Mesh::start(2)?;
    pair.full()?;
    for size in [64, 1024, 65_536] {
        let floor = floor::casts(&ends, size, time)?;
        let made = between(&pair, Kind::Cast, size, time, 1, 1)?;
        let figures = Figures::of(&made, size);
        writeln!(
            out,
            "casts of {size} B    {:10.0} /s {:8.1} MB/s   {:.2} x floor ({floor:.0} /s)   missed {}",
            figures.per_second,
            figures.bytes_per_second / 1e6,
            figures.per_second / floor,
            figures.missed
        )?;
        print(&figures, out)?;
    }
    let (mut times, many) = floor::calls(&ends, 64, 64, time)?;
    let [p50, p99] = quantiles(&mut times).map(|millis| millis * 1e3);
    let one = Figures::of(&between(&pair, Kind::Call, 64, time, 1, 1)?, 64);
    writeln!(
        out,
        "one call           p50 {:.1} µs, p99 {:.1} µs   {:.2} x floor (p50 {p50:.1} µs, p99 {p99:.1} µs)",
        one.round_trip_p50_us,
        one.round_trip_p99_us,
        one.round_trip_p50_us / p50
    )?;
    let calls = Figures::of(&between(&pair, Kind::Call, 64, time, 64, 1)?, 64);
    writeln!(
        out,
        "64 calls at once   {:10.0} /s   {:.2} x floor ({many:.0} /s)   failed {}",
        calls.per_second,
        calls.per_second / many,
        calls.failed
    )?;
    print(&calls, out)?;
    drop(pair);
    let five = Mesh::start(5)?;
    five.full()?;
    let floor = floor::casts(&ends, 64, time)?;
    for subscribers in [1, 100] {
        let made = between(&five, Kind::Fanout, 64, time, 1, subscribers)?;
        let figures = Figures::of(&made, 64);
        let broadcasts = made.done as f64 / made.took.as_secs_f64();
        writeln!(
            out,
            "fan-out to 4 nodes, {subscribers} subscribers each   {broadcasts:.0} broadcasts/s, {:.0} deliveries/s   {:.2} x floor of casts ({floor:.0} /s)   missed {}",
            figures.per_second,
            figures.per_second / floor,
            figures.missed
        )?;
        print(&figures, out)?;
    }
    Ok(())
}

/// A load from the first node of a mesh to all others.
fn between(
    mesh: &Mesh,
    kind: Kind,
    size: usize,
    time: Duration,
    concurrency: usize,
    subscribers: u64,
) -> anyhow::Result<Made> {
    let (first, others) = mesh.nodes.split_first().context("no nodes")?;
    let to = others.iter().map(|node| node.name.clone()).collect();
    let (topic, count) = (String::new(), u64::MAX);
    let load = Load { kind, to, topic, size, time, count, concurrency, subscribers };
    made(&mesh.data_dir(first), load)
}
