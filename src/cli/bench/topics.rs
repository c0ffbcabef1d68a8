//! What many topics cost, and topics that come and go. Floor: the same messages on one topic.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;
use xpando_node::internals::actors::timer::now;
use xpando_node::internals::io::usage::usage;
use xpando_node::internals::node::bench::{Changed, Numbers, Order, Sent};
use xpando_node::internals::proto::node::NodeName;
use xpando_node::internals::proto::topic::{Address, Name};

use super::super::message::call_at;
use super::mesh::{Mesh, Running};

/// Longest time for one order.
const PATIENCE: Duration = Duration::from_secs(120);
/// Messages to take a rate of.
const MESSAGES: u64 = 1_000_000;
const HELD: &str = "topics:held:";

/// Orders something of the node of this name, which keeps its data there.
pub(super) fn order_at<T: DeserializeOwned>(
    directory: &Path,
    node: &NodeName,
    order: &Order,
) -> anyhow::Result<T> {
    let to = Address { name: Name::bench(), node: Some(node.clone()) };
    let reply = call_at(directory, &to, &serde_json::to_vec(order)?, PATIENCE)?;
    Ok(serde_json::from_slice(&reply)?)
}

fn order<T: DeserializeOwned>(mesh: &Mesh, node: &Running, order: &Order) -> anyhow::Result<T> {
    order_at(&mesh.data_dir(node), &node.name, order)
}

fn numbers(topics: u64, count: u64) -> Order {
    let (below, size, wait, pause) = (HELD.to_owned(), 64, true, Duration::ZERO);
    Order::Numbers(Numbers { below, topics, size, count, wait, pause })
}

/// Waits until this node knows that the other wants all the topics.
fn known(mesh: &Mesh, by: &Running, topics: u64) -> anyhow::Result<()> {
    let start = now();
    while start.elapsed() < PATIENCE {
        if order::<Sent>(mesh, by, &numbers(topics, topics))?.reached == topics {
            return Ok(());
        }
    }
    bail!("the topics did not become known")
}

/// `bench topics`.
pub(super) fn run(topics: u64, seconds: f64, out: &mut dyn Write) -> anyhow::Result<()> {
    let mesh = Mesh::start(2)?;
    mesh.full()?;
    let [here, there] = &mesh.nodes[..] else { bail!("two nodes") };
    let memory = || -> anyhow::Result<[u64; 2]> {
        let of = |node: &Running| usage(Some(node.pid())).context("a node has ended");
        Ok([of(here)?.memory, of(there)?.memory])
    };
    let rate = |count: u64, took: Duration| count as f64 / took.as_secs_f64();

    // Buffers are as large as they get before anything is weighed.
    order::<Changed>(&mesh, here, &Order::Topics(HELD.to_owned(), 1))?;
    known(&mesh, there, 1)?;
    let one: Sent = order(&mesh, there, &numbers(1, MESSAGES))?;
    let before = memory()?;
    let (begin, held): (_, Changed) =
        (now(), order(&mesh, here, &Order::Topics(HELD.to_owned(), topics))?);
    known(&mesh, there, topics)?;
    let took = begin.elapsed();
    let [mine, theirs] = memory()?;
    let each = |after: u64, before: u64| after.saturating_sub(before) as f64 / topics as f64;
    writeln!(
        out,
        "{topics} topics       {:10.0} subscribed/s, all known to the peer after {:.2} s   {:.0} B each here, {:.0} B at the peer",
        rate(held.subscribed, held.took),
        took.as_secs_f64(),
        each(mine, before[0]),
        each(theirs, before[1])
    )?;
    let many: Sent = order(&mesh, there, &numbers(topics, MESSAGES))?;
    let [many, one] = [many, one].map(|sent| rate(sent.sent, sent.took));
    writeln!(
        out,
        "broadcasts to them  {many:10.0} /s, each topic in turn   {:.2} x those to one topic ({one:.0} /s)",
        many / one
    )?;
    let storm = Order::Churn("topics:storm:".to_owned(), Duration::try_from_secs_f64(seconds)?);
    let storm: Changed = order(&mesh, here, &storm)?;
    let after = memory()?;
    let mib = |after: u64, before: u64| after.saturating_sub(before) as f64 / f64::from(1 << 20);
    writeln!(
        out,
        "others come and go  {:10.0} subscribed and unsubscribed/s   {:.1} MiB more here, {:.1} MiB at the peer",
        rate(storm.subscribed, storm.took),
        mib(after[0], mine),
        mib(after[1], theirs)
    )?;
    Ok(())
}
