//! What a node costs while nothing happens.

use std::io::{ErrorKind, Write};
use std::time::Duration;

use anyhow::Context;

use super::mesh::{Mesh, Running};

/// After the mesh is full: hellos, digests and first beats settle.
const SETTLE: Duration = Duration::from_secs(10);

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
    let [floor] = measure(1, time)?[..] else { anyhow::bail!("one node") };
    let costs = measure(nodes, time)?;
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
    Ok(())
}

fn measure(nodes: u16, time: Duration) -> anyhow::Result<Vec<Cost>> {
    let mesh = Mesh::start(nodes)?;
    mesh.full()?;
    std::thread::sleep(SETTLE);
    let before: Vec<Duration> = mesh.nodes.iter().map(processor).collect::<anyhow::Result<_>>()?;
    std::thread::sleep(time);
    let cost = |(node, before): (&Running, &Duration)| {
        let spent = processor(node)?.saturating_sub(*before);
        let share = spent.as_secs_f64() / time.as_secs_f64();
        Ok(Cost { processor: share, memory: memory(node)? })
    };
    mesh.nodes.iter().zip(&before).map(cost).collect()
}

/// Time on a processor of all threads so far (`/proc/PID/task/*/schedstat`, in nanoseconds).
fn processor(node: &Running) -> anyhow::Result<Duration> {
    let mut total = Duration::ZERO;
    for thread in std::fs::read_dir(format!("/proc/{}/task", node.pid()))? {
        let text = match std::fs::read_to_string(thread?.path().join("schedstat")) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => continue, // it has just ended
            Err(error) => return Err(error.into()),
        };
        let nanos = text.split(' ').next().context("an empty schedstat")?.parse()?;
        total += Duration::from_nanos(nanos);
    }
    Ok(total)
}

/// Resident memory in MiB.
fn memory(node: &Running) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 = line.context("no VmRSS")?.trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}
