//! How soon a mesh is there, and how soon everybody knows of a death and a return.

use std::cell::Cell;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use xpando_node::internals::actors::timer::now;
use xpando_node::internals::io::tls::Tls;

use super::floor::runtime;
use super::mesh::{Mesh, Scratch, issue};

/// What others see is in a trail within this.
const SETTLED: Duration = Duration::from_secs(3);

/// Repeats the measurement, each time beside its floor.
pub(super) fn run(nodes: u16, reps: u16, out: &mut dyn Write) -> anyhow::Result<()> {
    for rep in 1..=reps {
        let floor = floor(nodes)?;
        writeln!(out, "run {rep}, {nodes} nodes")?;
        formation(nodes, floor, out)?;
    }
    Ok(())
}

fn floor(nodes: u16) -> anyhow::Result<Duration> {
    let dir = Scratch::new()?;
    let identities: Vec<_> = issue(&dir, nodes.min(2))?;
    let tls = identities.iter().map(Tls::new).collect::<Result<Vec<_>, _>>()?;
    let [a, b] = tls.as_slice() else { bail!("two identities") };
    let start = now();
    let program = std::env::current_exe()?;
    for _ in 0..nodes {
        Command::new(&program).arg("--version").stdout(Stdio::null()).status()?;
    }
    let pairs = u32::from(nodes) * u32::from(nodes - 1) / 2;
    let (a, b) = (Arc::new(a.clone()), Arc::new(b.clone()));
    runtime()?.block_on(async {
        let mut handshakes = tokio::task::JoinSet::new();
        for _ in 0..pairs {
            let (a, b) = (a.clone(), b.clone());
            handshakes.spawn(async move {
                let (dialer, acceptor) = tokio::io::duplex(16 * 1024);
                let (one, other) = tokio::join!(a.connect(dialer), b.accept(acceptor));
                one.is_ok() && other.is_ok()
            });
        }
        let done = handshakes.join_all().await;
        anyhow::ensure!(done.into_iter().all(|ok| ok), "a handshake failed");
        Ok(())
    })?;
    Ok(now() - start)
}

fn formation(nodes: u16, floor: Duration, out: &mut dyn Write) -> anyhow::Result<()> {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let ratio = |time: Duration, floor: Duration| time.as_secs_f64() / floor.as_secs_f64();
    let mut mesh = Mesh::prepare(nodes)?;
    let first = now();
    mesh.launch_all(nodes)?;
    let last = now();
    let linked = mesh.full()?;
    let (from_first, from_last) = (linked - first, linked.saturating_duration_since(last));
    writeln!(
        out,
        "  full mesh from the first start  {:8.1} ms   {:.2} x floor ({:.1} ms)",
        ms(from_first),
        ratio(from_first, floor),
        ms(floor)
    )?;
    writeln!(out, "  full mesh from the last start   {:8.1} ms", ms(from_last))?;
    std::thread::sleep(SETTLED);
    let Some(first) = mesh.nodes.first() else { bail!("no node") };
    writeln!(out, "  events in the trail of one node {:8}", mesh.last_event(first)?)?;

    let Some(victim) = mesh.nodes.pop() else { bail!("no node") };
    let name = victim.name.clone();
    let others = usize::from(nodes - 1);
    let kill = now();
    victim.kill()?;
    let gone = now() - kill;
    let known = mesh.wait_for(others, |line| line.is("peer_offline") && line.about(&name))? - kill;
    writeln!(
        out,
        "  kill -9 until all others know   {:8.1} ms   {:.2} x floor ({:.1} ms)",
        ms(known),
        ratio(known, gone),
        ms(gone)
    )?;

    let start = now();
    mesh.launch(&name)?;
    // Its first links may be there before it says that it is ready.
    let ready = Cell::new(start);
    let back = mesh.wait_for(others + 1, |line| {
        let is_ready = line.is("node ready");
        if is_ready {
            ready.set(now());
        }
        is_ready || (line.is("peer_online") && line.about(&name))
    })?;
    let (ready, back) = (ready.get() - start, back - start);
    writeln!(
        out,
        "  restarted: ready until online everywhere {:8.1} ms (start to ready {:.1} ms)",
        ms(back.saturating_sub(ready)),
        ms(ready)
    )?;
    Ok(())
}
