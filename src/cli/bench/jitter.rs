//! What storing events at full rate does to a node's heartbeats. Floor: the same nodes at rest.

use std::collections::BTreeMap;
use std::io::Write;
use std::thread;
use std::time::Duration;

use anyhow::bail;
use xpando_node::internals::actors::timer::now;
use xpando_node::internals::node::bench::{Flooded, Order};

use super::channels::quantiles;
use super::mesh::{Mesh, Running};
use super::order;
use crate::cli::ask::status_of;

/// Time that a node may take beyond that of the flood.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at the beats: several between two beats.
const LOOK: Duration = Duration::from_millis(100);
/// After the mesh is full: first beats settle.
const SETTLE: Duration = Duration::from_secs(5);
const NODES: u16 = 5;

/// Round trips of all beats to and from the first node, for so long: p50 and p99 in milliseconds, and how many.
fn beats(mesh: &Mesh, first: &Running, time: Duration) -> anyhow::Result<([f64; 2], usize)> {
    let (start, mut seen) = (now(), BTreeMap::new());
    while start.elapsed() < time {
        for node in &mesh.nodes {
            for peer in status_of(&mesh.data_dir(node))?.peers {
                let (Some(rtt), Some(heard)) = (peer.rtt_ms, peer.last_heard) else { continue };
                if node.name == first.name || peer.name == first.name {
                    // The same beat is seen several times; another one hardly takes as many nanoseconds.
                    seen.insert((node.name.clone(), peer.name, (rtt * 1e6) as u64), heard);
                }
            }
        }
        thread::sleep(LOOK);
    }
    let mut times: Vec<u64> = seen.into_keys().map(|(_, _, nanoseconds)| nanoseconds).collect();
    let many = times.len();
    Ok((quantiles(&mut times), many))
}

pub(super) fn run(seconds: u64, out: &mut dyn Write) -> anyhow::Result<()> {
    let time = Duration::from_secs(seconds);
    let mesh = Mesh::start(NODES)?;
    mesh.full()?;
    thread::sleep(SETTLE);
    let Some(first) = mesh.nodes.first() else { bail!("nodes") };
    let ([_, idle], _) = beats(&mesh, first, time)?;
    let (directory, name) = (mesh.data_dir(first), first.name.clone());
    let within = time + PATIENCE;
    let flood = thread::spawn(move || order(&directory, &name, &Order::Flood(time), within));
    let ([p50, p99], many) = beats(&mesh, first, time)?;
    let Ok(flooded) = flood.join() else { bail!("the flood panicked") };
    let flooded: Flooded = flooded?;
    writeln!(
        out,
        "beats of a node that stores {:.0} events/s   p50 {p50:.2} ms, p99 {p99:.2} ms of {many}   {:+.2} ms beside the same at rest ({idle:.2} ms, {:.1} x)",
        flooded.noted as f64 / flooded.took.as_secs_f64(),
        p99 - idle,
        p99 / idle
    )?;
    Ok(())
}
