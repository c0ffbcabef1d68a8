//! Nodes of a benchmark: processes of this program in a directory of their own.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Deserialize;
use xpando_node::internals::actors::timer::now;
use xpando_node::internals::io::clock;
use xpando_node::internals::io::identity::{Authority, Identity, Validity};
use xpando_node::internals::proto::node::NodeName;

/// Longest wait for one event.
const PATIENCE: Duration = Duration::from_secs(60);

fn names(nodes: u16) -> anyhow::Result<Vec<NodeName>> {
    (1..=nodes).map(|n| Ok(format!("n{n}@127.0.0.1").parse()?)).collect()
}

/// An authority and certificates for so many nodes.
pub(super) fn issue(dir: &Scratch, nodes: u16) -> anyhow::Result<Vec<Identity>> {
    let now = clock::wall();
    let certs = dir.0.join("certs");
    let authority = Authority::init(&certs, now)?;
    let issue = |name: &NodeName| Ok(authority.issue(&certs, name, Validity::leaf(now))?);
    names(nodes)?.iter().map(issue).collect()
}

/// Nodes that run until this value goes.
pub(super) struct Mesh {
    pub(super) nodes: Vec<Running>,
    events: Sender<Heard>,
    heard: Receiver<Heard>,
    dir: Scratch,
    /// What all of them are started with besides.
    args: Vec<String>,
}

impl Mesh {
    /// Starts so many nodes with these options.
    pub(super) fn with(nodes: u16, args: Vec<String>) -> anyhow::Result<Self> {
        let mut mesh = Self { args, ..Self::prepare(nodes)? };
        mesh.launch_all(nodes)?;
        Ok(mesh)
    }

    /// Starts so many nodes.
    pub(super) fn start(nodes: u16) -> anyhow::Result<Self> {
        let mut mesh = Self::prepare(nodes)?;
        mesh.launch_all(nodes)?;
        Ok(mesh)
    }

    /// What so many nodes need, none of which runs yet.
    pub(super) fn prepare(nodes: u16) -> anyhow::Result<Self> {
        let dir = Scratch::new()?;
        issue(&dir, nodes)?;
        let (events, heard) = channel();
        Ok(Self { nodes: Vec::new(), events, heard, dir, args: Vec::new() })
    }

    /// Nodes that are to have a certificate directory each; none yet.
    pub(super) fn apart() -> anyhow::Result<Self> {
        let (events, heard) = channel();
        let dir = Scratch::new()?;
        Ok(Self { nodes: Vec::new(), events, heard, dir, args: Vec::new() })
    }

    /// Starts a node with a certificate directory of its own: by an invitation, or again, or as the first one of a cluster.
    pub(super) fn launch_apart(
        &mut self,
        name: &NodeName,
        invitation: Option<&str>,
    ) -> anyhow::Result<()> {
        let certs = self.dir.0.join(format!("certs-of-{name}"));
        if self.nodes.is_empty() && !certs.exists() {
            let authority = Authority::init(&certs, clock::wall())?;
            authority.issue(&certs, name, Validity::leaf(clock::wall()))?;
        }
        let start = Start { dir: &self.dir.0, certs, invitation, beacon: false, args: &self.args };
        self.nodes.push(start.run(name, &self.events)?);
        Ok(())
    }

    /// Kills a node; returns when the kernel says it is gone.
    pub(super) fn end(&mut self, name: &NodeName) -> anyhow::Result<()> {
        let at = self.nodes.iter().position(|node| node.name == *name);
        self.nodes.remove(at.context("no such node")?).kill()
    }

    /// What was said since the last wait.
    pub(super) fn drain(&self) -> Vec<Heard> {
        self.heard.try_iter().collect()
    }

    /// Starts all of them, one after the other.
    pub(super) fn launch_all(&mut self, nodes: u16) -> anyhow::Result<()> {
        names(nodes)?.iter().try_for_each(|name| self.launch(name))
    }

    /// Where a node keeps its data, its socket among them.
    pub(super) fn data_dir(&self, node: &Running) -> PathBuf {
        self.dir.0.join(node.name.as_str())
    }

    /// The number of the last event in the trail of a node.
    pub(super) fn last_event(&self, node: &Running) -> anyhow::Result<u64> {
        let mut program = Command::new(std::env::current_exe()?);
        program.args(["events", "--json", "-n", "1", "--data-dir"]).arg(self.data_dir(node));
        let event: serde_json::Value = serde_json::from_slice(&program.output()?.stdout)?;
        event["seq"].as_u64().context("an event without a number")
    }

    pub(super) fn launch(&mut self, name: &NodeName) -> anyhow::Result<()> {
        let certs = self.dir.0.join("certs");
        let start =
            Start { dir: &self.dir.0, certs, invitation: None, beacon: true, args: &self.args };
        self.nodes.push(start.run(name, &self.events)?);
        Ok(())
    }

    /// Waits until every node is linked with every other; when that was.
    pub(super) fn full(&self) -> anyhow::Result<Instant> {
        let nodes = self.nodes.len();
        match nodes {
            1 => self.wait_for(1, |line| line.is("node ready")),
            _ => self.wait_for(nodes * (nodes - 1), |line| line.is("peer_online")),
        }
    }
}

/// A line of a node's log.
#[derive(Debug, Deserialize)]
pub(super) struct Line {
    message: String,
    event: Option<String>,
    node: Option<String>,
}

impl Line {
    /// An event of this type, or this message.
    pub(super) fn is(&self, what: &str) -> bool {
        self.event.as_deref().unwrap_or(&self.message) == what
    }

    /// Which other node it is about.
    pub(super) fn peer(&self) -> Option<&str> {
        self.node.as_deref()
    }

    pub(super) fn about(&self, name: &NodeName) -> bool {
        self.node.as_deref() == Some(name.as_str())
    }
}

pub(super) type Heard = (Instant, NodeName, Line);

impl Mesh {
    /// When `count` different (node, peer) pairs have said what is wanted.
    pub(super) fn wait_for(
        &self,
        count: usize,
        wanted: impl Fn(&Line) -> bool,
    ) -> anyhow::Result<Instant> {
        let mut pairs = BTreeSet::new();
        loop {
            match self.heard.recv_timeout(PATIENCE) {
                Ok((at, node, line)) => {
                    if wanted(&line) && pairs.insert((node, line.node)) && pairs.len() == count {
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
}

/// A node of the benchmark; it ends with this value.
pub(super) struct Running {
    pub(super) name: NodeName,
    child: Child,
}

/// How a node is started.
struct Start<'a> {
    dir: &'a Path,
    certs: PathBuf,
    invitation: Option<&'a str>,
    beacon: bool,
    args: &'a [String],
}

impl Start<'_> {
    fn run(self, name: &NodeName, events: &Sender<Heard>) -> anyhow::Result<Running> {
        let mut program = Command::new(std::env::current_exe()?);
        if let Some(invitation) = self.invitation {
            program.args(["join", invitation, "--start"]);
        }
        if !self.beacon {
            program.args(["--no-beacon", "--listen", "127.0.0.1:0"]);
        }
        let mut child = program
            .args(["--name", name.as_str(), "--log-format", "json", "--certs"])
            .arg(self.certs)
            .arg("--data-dir")
            .arg(self.dir.join(name.as_str()))
            .args(["--bench", "--allow-anonymous", "room:*"])
            .args(self.args)
            .env("XDG_RUNTIME_DIR", self.dir)
            .stdout(Stdio::null())
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
        Ok(Running { name: name.clone(), child })
    }
}

impl Running {
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it; returns when the kernel says it is gone.
    pub(super) fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
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
pub(super) struct Scratch(pub(super) std::path::PathBuf);

impl Scratch {
    pub(super) fn new() -> anyhow::Result<Self> {
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
