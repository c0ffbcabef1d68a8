//! Benchmarks of this program on this machine. Every figure is also a ratio to a floor measured in
//! the same run, because machines differ and drift.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Subcommand;
use serde::Deserialize;
use xpando_node::actors::timer::now;
use xpando_node::io::clock;
use xpando_node::io::identity::{Authority, Identity, Validity};
use xpando_node::io::tls::Tls;
use xpando_node::proto::node::NodeName;

/// Longest wait for one event.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Subcommand)]
pub(super) enum BenchCommand {
    /// Start N nodes, kill one, restart it; how long until every node knows?
    ///
    /// Floors: starting N processes that only print their version, one after another, and then one
    /// mutual TLS 1.3 handshake per pair, in one process; for the kill, the time until the kernel
    /// reports the killed process gone.
    Formation {
        /// Nodes
        #[arg(default_value_t = 5, value_parser = clap::value_parser!(u16).range(2..=200))]
        nodes: u16,
        /// Repetitions
        #[arg(long, default_value_t = 3)]
        reps: u16,
    },
}

pub(super) fn run(command: BenchCommand, out: &mut dyn Write) -> anyhow::Result<()> {
    match command {
        BenchCommand::Formation { nodes, reps } => {
            for rep in 1..=reps {
                let floor = formation_floor(nodes)?;
                let measured = formation(nodes)?;
                print(rep, nodes, &measured, floor, out)?;
            }
            Ok(())
        }
    }
}

struct Formation {
    from_first: Duration,
    from_last: Duration,
    /// `kill -9` until the others know; until the kernel says it is gone.
    killed: (Duration, Duration),
    /// Start of the restarted node until it is ready; until all are linked with it.
    restarted: (Duration, Duration),
}

fn print(
    rep: u16,
    nodes: u16,
    measured: &Formation,
    floor: Duration,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let ratio = |time: Duration, floor: Duration| time.as_secs_f64() / floor.as_secs_f64();
    let Formation { from_first, from_last, killed, restarted } = measured;
    writeln!(out, "run {rep}, {nodes} nodes")?;
    writeln!(
        out,
        "  full mesh from the first start  {:8.1} ms   {:.2} x floor ({:.1} ms)",
        ms(*from_first),
        ratio(*from_first, floor),
        ms(floor)
    )?;
    writeln!(out, "  full mesh from the last start   {:8.1} ms", ms(*from_last))?;
    writeln!(
        out,
        "  kill -9 until all others know   {:8.1} ms   {:.2} x floor ({:.1} ms)",
        ms(killed.0),
        ratio(killed.0, killed.1),
        ms(killed.1)
    )?;
    writeln!(
        out,
        "  restarted: ready until online everywhere {:8.1} ms (start to ready {:.1} ms)",
        ms(restarted.1.saturating_sub(restarted.0)),
        ms(restarted.0)
    )?;
    Ok(())
}

fn formation_floor(nodes: u16) -> anyhow::Result<Duration> {
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
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (a, b) = (Arc::new(a.clone()), Arc::new(b.clone()));
    runtime.block_on(async {
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

fn names(nodes: u16) -> anyhow::Result<Vec<NodeName>> {
    (1..=nodes).map(|n| Ok(format!("n{n}@127.0.0.1").parse()?)).collect()
}

fn issue(dir: &Scratch, nodes: u16) -> anyhow::Result<Vec<Identity>> {
    let now = clock::wall();
    let certs = dir.0.join("certs");
    let authority = Authority::init(&certs, now)?;
    let issue = |name: &NodeName| Ok(authority.issue(&certs, name, Validity::leaf(now))?);
    names(nodes)?.iter().map(issue).collect()
}

fn formation(nodes: u16) -> anyhow::Result<Formation> {
    let dir = Scratch::new()?;
    issue(&dir, nodes)?;
    let (events, heard) = channel();
    let first = now();
    let mut running = Vec::new();
    for name in names(nodes)? {
        running.push(Running::start(&dir.0, &name, &events)?);
    }
    let last = now();
    let all = usize::from(nodes) * usize::from(nodes - 1);
    let linked = wait_for(&heard, all, |line| line.is("peer online"))?;

    let Some(mut victim) = running.pop() else { bail!("no node") };
    let name = victim.name.clone();
    let others = usize::from(nodes - 1);
    let kill = now();
    victim.child.kill()?;
    victim.child.wait()?;
    let gone = now() - kill;
    let known = wait_for(&heard, others, |line| line.is("peer offline") && line.about(&name))?;

    let start = now();
    let _again = Running::start(&dir.0, &name, &events)?;
    let ready = wait_for(&heard, 1, |line| line.is("node ready"))?;
    let back = wait_for(&heard, others, |line| line.is("peer online") && line.about(&name))?;
    Ok(Formation {
        from_first: linked - first,
        from_last: linked.saturating_duration_since(last),
        killed: (known - kill, gone),
        restarted: (ready - start, back - start),
    })
}

/// A line of a node's log.
#[derive(Debug, Deserialize)]
struct Line {
    message: String,
    peer: Option<String>,
}

impl Line {
    fn is(&self, message: &str) -> bool {
        self.message == message
    }

    fn about(&self, name: &NodeName) -> bool {
        self.peer.as_deref() == Some(name.as_str())
    }
}

type Heard = (Instant, NodeName, Line);

/// When `count` different (node, peer) pairs have said what is wanted.
fn wait_for(
    heard: &Receiver<Heard>,
    count: usize,
    wanted: impl Fn(&Line) -> bool,
) -> anyhow::Result<Instant> {
    let mut pairs = BTreeSet::new();
    loop {
        match heard.recv_timeout(PATIENCE) {
            Ok((at, node, line)) => {
                if wanted(&line) && pairs.insert((node, line.peer)) && pairs.len() == count {
                    return Ok(at);
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                bail!("{} of {count} events within {} s", pairs.len(), PATIENCE.as_secs())
            }
            Err(RecvTimeoutError::Disconnected) => bail!("all nodes ended"),
        }
    }
}

/// A node of the benchmark; it ends with this value.
struct Running {
    name: NodeName,
    child: Child,
}

impl Running {
    fn start(dir: &Path, name: &NodeName, events: &Sender<Heard>) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--name", name.as_str(), "--log-format", "json", "--certs"])
            .arg(dir.join("certs"))
            .arg("--data-dir")
            .arg(dir.join(name.as_str()))
            .env("XDG_RUNTIME_DIR", dir)
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start a node")?;
        let log = child.stderr.take().context("no log")?;
        let (node, events) = (name.clone(), events.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(log).lines().map_while(Result::ok) {
                let at = now();
                let Ok(line) = serde_json::from_str(&line) else { continue };
                if events.send((at, node.clone(), line)).is_err() {
                    return;
                }
            }
        });
        Ok(Self { name: name.clone(), child })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that is gone already needs no end.
        self.child.kill().unwrap_or(());
        self.child.wait().map(|_status| ()).unwrap_or(());
    }
}

/// A directory that goes with this value.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new() -> anyhow::Result<Self> {
        let path =
            std::env::temp_dir().join(format!("xpando-bench-{:016x}", rand::random::<u64>()));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays in the temporary directory does no harm.
        std::fs::remove_dir_all(&self.0).unwrap_or(());
    }
}
