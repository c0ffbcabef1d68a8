//! Questions to running nodes over their admin sockets.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use comfy_table::{Attribute, Cell, Color, Table, presets};
use serde::Serialize;
use xpando_node::gateway::admin::{Answer, Request};
use xpando_node::gateway::status::{NodeStatus, PeerStatus};
use xpando_node::io::places;
use xpando_node::io::sockets::{self, Registered};
use xpando_node::proto::event::Status;
use xpando_node::proto::membership::Majority;
use xpando_node::proto::node::NodeName;

use super::on_terminal;

/// A node that does not answer within this time is taken for hung.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Which node to ask.
#[derive(Debug, Args)]
pub(super) struct Which {
    /// Name of the node [default: the only one running on this machine]
    #[arg(long, value_name = "NAME@HOST", env = "XPANDO_NAME")]
    name: Option<NodeName>,

    /// Its data directory, if it was given one
    #[arg(long, value_name = "DIR", env = "XPANDO_DATA_DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    which: Which,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct NamesArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct MetricsArgs {
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, Args)]
pub(super) struct DrainArgs {
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, Args)]
pub(super) struct DisconnectArgs {
    #[command(flatten)]
    which: Which,

    /// The peer
    #[arg(value_name = "NAME@HOST")]
    node: NodeName,
}

#[derive(Debug, Args)]
pub(super) struct KillArgs {
    #[command(flatten)]
    which: Which,

    /// The actor
    actor: String,
}

/// Asks a node, and fails with the reason when it says one.
pub(super) fn ask(directory: &Path, request: &Request) -> anyhow::Result<Answer> {
    ask_within(PATIENCE, directory, request)
}

/// [`ask`], with another patience for the answer.
pub(super) fn ask_within(
    patience: Duration,
    directory: &Path,
    request: &Request,
) -> anyhow::Result<Answer> {
    let stream = sockets::connect(directory)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let answer = exchange(&stream, request)?;
    if let Answer::Error(error) = answer {
        bail!("{error}")
    }
    Ok(answer)
}

fn exchange(mut stream: &UnixStream, request: &Request) -> anyhow::Result<Answer> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).context("the node does not answer")?;
    Ok(serde_json::from_str(&answer)?)
}

pub(super) fn status_of(directory: &Path) -> anyhow::Result<NodeStatus> {
    let Answer::Status(status) = ask(directory, &Request::Status)? else {
        bail!("the node's answer is no status")
    };
    Ok(status)
}

impl Which {
    /// The directory of the node, or the one that it has left when it is named and does not run.
    pub(super) fn find_stopped(&self) -> anyhow::Result<PathBuf> {
        self.find().or_else(|error| match &self.name {
            Some(name) => Ok(places::data_dir(name)?)
                .and_then(|directory| if directory.is_dir() { Ok(directory) } else { Err(error) }),
            None => Err(error),
        })
    }

    /// The directory that leads to the node's socket.
    pub(super) fn find(&self) -> anyhow::Result<PathBuf> {
        if let Some(directory) = &self.data_dir {
            return Ok(directory.clone());
        }
        let living: Vec<_> =
            sockets::registered()?.into_iter().filter(|node| answers(&node.link)).collect();
        let wanted: Vec<_> = living
            .iter()
            .filter(|n| self.name.as_ref().is_none_or(|name| n.name == *name))
            .collect();
        match (wanted.as_slice(), &self.name) {
            ([one], _) => Ok(one.link.clone()),
            ([], Some(name)) => bail!("no node {name} runs on this machine{}", listed(&living)),
            ([], None) => bail!("no node runs on this machine"),
            (_, Some(name)) => {
                bail!("several nodes {name} run on this machine: say which with --data-dir DIR")
            }
            (_, None) => {
                bail!("several nodes run on this machine: say which with --name{}", listed(&living))
            }
        }
    }
}

fn listed(nodes: &[Registered]) -> String {
    nodes.iter().map(|node| format!("\n  {}", node.name)).collect()
}

fn answers(link: &Path) -> bool {
    sockets::connect(link).is_ok()
}

pub(super) fn status(args: &StatusArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let directory = args.which.find()?;
    let status = status_of(&directory)
        .with_context(|| format!("cannot ask the node at {}", directory.display()))?;
    if args.json {
        return Ok(writeln!(out, "{}", serde_json::to_string(&status)?)?);
    }
    writeln!(
        out,
        "{}  incarnation {}  listening on {}  up {}\ncluster {}",
        status.name,
        status.incarnation,
        status.listen,
        uptime(status.uptime_s),
        status.cluster
    )?;
    if let Some(why) = &status.degraded {
        writeln!(out, "degraded: {why}")?;
    }
    if status.peers.is_empty() {
        return Ok(writeln!(out, "no peers known yet")?);
    }
    writeln!(out, "{}", majority(&status.majority))?;
    if status.doubts_itself > 0 {
        writeln!(out, "was paused lately, and waits longer before it doubts others")?;
    }
    let mut table = table(&["PEER", "STATUS", "ADDRESS", "INCARNATION", "SINCE"]);
    for peer in &status.peers {
        table.add_row(row(peer));
    }
    Ok(writeln!(out, "{table}")?)
}

fn majority(seen: &Majority) -> String {
    let Majority { held, here, known, missing } = seen;
    let word = if *held { "the majority" } else { "NOT the majority" };
    let missing: Vec<&str> = missing.iter().map(NodeName::as_str).collect();
    match missing.as_slice() {
        [] => format!("sees all {known} nodes"),
        missing => format!("sees {here} of {known} nodes, {word}; missing: {}", missing.join(" ")),
    }
}

fn row(peer: &PeerStatus) -> Vec<Cell> {
    let text = match peer.reason {
        Some(reason) if peer.reached_by.is_empty() => {
            format!("{} ({})", peer.status.label(), reason.label())
        }
        Some(reason) => format!("{} ({} from here)", peer.status.label(), reason.label()),
        None if peer.suspect => format!("{}, suspect", peer.status.label()),
        None => peer.status.label().to_owned(),
    };
    let or_dash = |text: Option<String>| Cell::new(text.unwrap_or_else(|| "-".to_owned()));
    vec![
        Cell::new(&peer.name),
        coloured(text, Some(peer.status)),
        or_dash(peer.address.map(|address| address.to_string())),
        or_dash(peer.incarnation.map(|incarnation| incarnation.to_string())),
        Cell::new(&peer.since),
    ]
}

/// A status in its colour, where people read it.
pub(super) fn coloured(text: String, status: Option<Status>) -> Cell {
    let colour = match status {
        Some(Status::Online) => Color::Green,
        Some(Status::Offline) => Color::Red,
        Some(Status::Connecting | Status::Syncing) | None => Color::Yellow,
    };
    let cell = Cell::new(text);
    if on_terminal() { cell.fg(colour) } else { cell }
}

pub(super) fn table(titles: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let bold = |title: &&str| {
        let cell = Cell::new(title);
        if on_terminal() { cell.add_attribute(Attribute::Bold) } else { cell }
    };
    table.set_header(titles.iter().map(bold).collect::<Vec<_>>());
    table
}

pub(super) fn uptime(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[derive(Serialize)]
struct Named {
    name: NodeName,
    state: &'static str,
    listen: Option<std::net::SocketAddr>,
    incarnation: Option<u64>,
}

pub(super) fn names(args: &NamesArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let found = sockets::registered()?.into_iter().map(|node| match status_of(&node.link) {
        Ok(status) => Named {
            name: status.name,
            state: "running",
            listen: Some(status.listen),
            incarnation: Some(status.incarnation),
        },
        Err(_) => {
            let state = if answers(&node.link) { "silent" } else { "stale" };
            Named { name: node.name, state, listen: None, incarnation: None }
        }
    });
    let found: Vec<_> = found.collect();
    if args.json {
        return Ok(writeln!(out, "{}", serde_json::to_string(&found)?)?);
    }
    if found.is_empty() {
        return Ok(writeln!(out, "no node runs on this machine")?);
    }
    let mut table = table(&["NAME", "STATE", "LISTEN", "INCARNATION"]);
    for node in found {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        table.add_row([
            node.name.to_string(),
            node.state.to_owned(),
            or_dash(node.listen.map(|listen| listen.to_string())),
            or_dash(node.incarnation.map(|incarnation| incarnation.to_string())),
        ]);
    }
    Ok(writeln!(out, "{table}")?)
}

pub(super) fn metrics(args: &MetricsArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let Answer::Metrics(text) = ask(&args.which.find()?, &Request::Metrics)? else {
        bail!("the node's answer is no metrics")
    };
    Ok(write!(out, "{text}")?)
}

pub(super) fn kill(args: &KillArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    command(&args.which, &Request::Kill { actor: args.actor.clone() })?;
    Ok(writeln!(out, "killed {}", args.actor)?)
}

pub(super) fn drain(args: &DrainArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    command(&args.which, &Request::Drain)?;
    Ok(writeln!(out, "its clients go to other nodes, and it takes no more")?)
}

pub(super) fn disconnect(args: &DisconnectArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    command(&args.which, &Request::Disconnect { node: args.node.clone() })?;
    Ok(writeln!(out, "link to {} ended", args.node)?)
}

/// Asks for something to be done.
pub(super) fn command(which: &Which, request: &Request) -> anyhow::Result<()> {
    let Answer::Done = ask(&which.find()?, request)? else {
        bail!("the node's answer is for another question")
    };
    Ok(())
}
