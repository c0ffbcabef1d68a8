//! Which node of this machine is asked, and how it is asked: over the admin socket in its data directory.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use serde::de::DeserializeOwned;
use xpando_node::internals::gateway::admin::{Answer, Request};
use xpando_node::internals::gateway::status::NodeStatus;
use xpando_node::internals::io::places;
use xpando_node::internals::io::sockets::{self, Registered};
use xpando_node::internals::proto::node::NodeName;
use xpando_node::internals::proto::printable::Printable;

/// A node that does not answer within this time is taken for hung.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Which node to ask.
#[derive(Debug, Args)]
pub(super) struct Which {
    /// Name of the node [default: the only one running on this machine]
    #[arg(long, value_name = "NAME@HOST", env = "XPANDO_NAME")]
    name: Option<NodeName>,

    /// Its data directory, as `xpando-node ps` shows it; needed only where several nodes have the name
    #[arg(long, value_name = "DIR", env = "XPANDO_DATA_DIR")]
    data_dir: Option<PathBuf>,
}

/// More than one node runs here, and none was named: the operator names one.
#[derive(Debug, thiserror::Error)]
#[error("several nodes run on this machine: choose one with --name{}", listed(.0))]
pub(super) struct Several(Vec<Registered>);

fn listed(nodes: &[Registered]) -> String {
    let line = |node: &Registered| format!("\n  {}  {}", node.name, node.data_dir.display());
    nodes.iter().map(line).collect()
}

impl Which {
    /// The node of this name, or in this directory.
    pub(super) fn named(name: Option<NodeName>, data_dir: Option<PathBuf>) -> Self {
        Self { name, data_dir }
    }

    /// The directory that leads to the node's socket.
    pub(super) fn find(&self) -> anyhow::Result<PathBuf> {
        if let Some(directory) = &self.data_dir {
            return Ok(directory.clone());
        }
        let running = sockets::registered()?.into_iter().filter(|node| is_running(&node.data_dir));
        let running: Vec<_> = running.collect();
        let named = |node: &&Registered| self.name.as_ref().is_none_or(|name| node.name == *name);
        let wanted: Vec<_> = running.iter().filter(named).cloned().collect();
        match (wanted.as_slice(), &self.name) {
            ([one], _) => Ok(one.data_dir.clone()),
            ([], None) => bail!("no node runs on this machine"),
            ([], Some(name)) => bail!("no node {name} runs on this machine{}", listed(&running)),
            (_, None) => Err(Several(wanted).into()),
            (some, Some(name)) => bail!(
                "several nodes {name} run on this machine: choose one with --data-dir{}",
                listed(some)
            ),
        }
    }

    /// The directory of the node, or the one that it has left when it is named and does not run.
    pub(super) fn find_stopped(&self) -> anyhow::Result<PathBuf> {
        self.find().or_else(|error| match &self.name {
            Some(name) => Ok(places::data_dir(name)?)
                .and_then(|directory| if directory.is_dir() { Ok(directory) } else { Err(error) }),
            None => Err(error),
        })
    }
}

/// Whether something accepts connections there.
pub(super) fn is_running(directory: &Path) -> bool {
    sockets::connect(directory).is_ok()
}

/// Asks a node; an error is the reason that it gives.
pub(super) fn ask<T: DeserializeOwned>(directory: &Path, request: &Request) -> anyhow::Result<T> {
    open(directory, request, &[], PATIENCE).map(|(_rest, answer)| answer)
}

/// Sends a request and what follows it; returns the connection and the first line of the answer. Reading on has the
/// same patience.
pub(super) fn open<T: DeserializeOwned>(
    directory: &Path,
    request: &Request,
    payload: &[u8],
    patience: Duration,
) -> anyhow::Result<(BufReader<UnixStream>, T)> {
    let mut stream = sockets::connect(directory).map_err(|error| unreachable(directory, &error))?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    let mut answer = String::new();
    let written = stream.write_all(&line).and_then(|()| stream.write_all(payload));
    let mut reader = BufReader::new(stream);
    match written.and_then(|()| reader.read_line(&mut answer)) {
        Ok(1..) => {}
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            bail!("the node in {} does not answer within {patience:?}", directory.display())
        }
        Ok(0) => bail!("the node in {} has ended", directory.display()),
        Err(error) => bail!("the node in {} does not answer: {error}", directory.display()),
    }
    let foreign =
        "the node's answer is for another question: it may run another version of this program";
    match serde_json::from_str(&answer).context(foreign)? {
        Answer::Ok(answer) => Ok((reader, answer)),
        Answer::Error(error) => bail!("{}", Printable(error)),
    }
}

/// Why a directory leads to no node.
fn unreachable(directory: &Path, error: &std::io::Error) -> anyhow::Error {
    let kind = error.kind();
    let why = if kind == ErrorKind::NotFound && !directory.exists() {
        "there is no such directory".to_owned()
    } else if matches!(kind, ErrorKind::NotFound | ErrorKind::ConnectionRefused) {
        "no node runs with this data directory".to_owned()
    } else if kind == ErrorKind::PermissionDenied {
        format!("{error}: ask as the node's own user")
    } else {
        error.to_string()
    };
    let directory = directory.display();
    anyhow!(
        "{directory}: {why}; `xpando-node ps` shows the nodes of this machine and their directories"
    )
}

pub(super) fn status_of(directory: &Path) -> anyhow::Result<NodeStatus> {
    ask(directory, &Request::Status)
}

/// Asks for something to be done.
pub(super) fn command(which: &Which, request: &Request) -> anyhow::Result<()> {
    ask(&which.find()?, request)
}
