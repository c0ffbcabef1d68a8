//! What a node costs while nothing happens.

use std::io::Write;
use std::time::Duration;

use serde::de::IgnoredAny;
use xpando_node::internals::actors::timer::now;
use xpando_node::internals::gateway::admin::Request;
use xpando_node::internals::io::usage::{Usage, usage};

use super::channels::quantiles;
use super::mesh::{Mesh, Running};
use crate::cli::ask::ask;

/// After the mesh is full: hellos, digests and first beats settle.
const SETTLE: Duration = Duration::from_secs(10);

/// Metrics are read so often.
const SCRAPES: usize = 200;

/// What one node cost.
#[derive(Clone, Copy)]
struct Cost {
    /// Share of a core.
    processor: f64,
    /// Resident memory in MiB, at the end.
    memory: f64,
}

pub(super) fn run(nodes: u16, seconds: u64, out: &mut dyn Write) -> anyhow::Result<()> {
    let time = Duration::from_secs(seconds);
    let [floor] = measure(&Mesh::start(1)?, time)?[..] else { anyhow::bail!("one node") };
    let mesh = Mesh::start(nodes)?;
    let costs = measure(&mesh, time)?;
    let mean = |of: fn(&Cost) -> f64| costs.iter().map(of).sum::<f64>() / costs.len() as f64;
    let most = |of: fn(&Cost) -> f64| costs.iter().map(of).fold(0.0, f64::max);
    let (processor, memory) = (mean(|cost| cost.processor), mean(|cost| cost.memory));
    writeln!(out, "{nodes} idle nodes, watched for {seconds} s")?;
    writeln!(
        out,
        "  processor  {:7.3} % of a core a node, at most {:.3} %   {:.1} x floor ({:.3} %)",
        processor * 100.0,
        most(|cost| cost.processor) * 100.0,
        processor / floor.processor,
        floor.processor * 100.0
    )?;
    writeln!(
        out,
        "  memory     {memory:7.1} MiB a node, at most {:.1} MiB          {:.2} x floor ({:.1} MiB)",
        most(|cost| cost.memory),
        memory / floor.memory,
        floor.memory
    )?;
    let asked = |request: &Request| -> anyhow::Result<[f64; 2]> {
        let directory = mesh.nodes.first().map(|node| mesh.data_dir(node)).unwrap_or_default();
        let mut times = Vec::new();
        for _ in 0..SCRAPES {
            let begun = now();
            ask::<IgnoredAny>(&directory, request)?;
            times.push(u64::try_from(begun.elapsed().as_nanos())?);
        }
        Ok(quantiles(&mut times))
    };
    let ([floor, _], [p50, p99]) = (asked(&Request::Figures)?, asked(&Request::Metrics)?);
    writeln!(
        out,
        "  metrics    p50 {p50:.2} ms, p99 {p99:.2} ms a scrape, of {} peers   {:.1} x floor ({floor:.2} ms)",
        nodes - 1,
        p50 / floor
    )?;
    Ok(())
}

fn measure(mesh: &Mesh, time: Duration) -> anyhow::Result<Vec<Cost>> {
    mesh.full()?;
    std::thread::sleep(SETTLE);
    let used = |node: &Running| usage(Some(node.pid()));
    let before = mesh.nodes.iter().map(used).collect::<Result<Vec<_>, _>>()?;
    std::thread::sleep(time);
    let cost = |(node, before): (&Running, &Usage)| {
        let now = used(node)?;
        let spent = now.processor.saturating_sub(before.processor);
        let processor = spent.as_secs_f64() / time.as_secs_f64();
        Ok(Cost { processor, memory: now.memory as f64 / f64::from(1 << 20) })
    };
    mesh.nodes.iter().zip(&before).map(cost).collect()
}
