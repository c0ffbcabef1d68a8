//! Questions to running nodes over their admin sockets.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::anyhow;
use clap::Args;
use serde::Serialize;
use xpando_node::internals::actors::timer;
use xpando_node::internals::gateway::admin::Request;
use xpando_node::internals::gateway::status::{KeySetStatus, NodeStatus, PeerStatus, SeedStatus};
use xpando_node::internals::io::clock;
use xpando_node::internals::io::identity::NO_TOKEN_LIST;
use xpando_node::internals::io::sockets::{self, Registered};
use xpando_node::internals::proto::event::Status;
use xpando_node::internals::proto::membership::Majority;
use xpando_node::internals::proto::node::NodeName;
use xpando_node::internals::proto::renewal::SOON;

use super::ask::{Several, Which, ask, command, is_running, status_of};
use super::output::{self, Columns, Field, write_line};
use super::token::lifetime;

/// Between two looks at a node that is waited for.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    which: Which,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Wait until the node answers
    #[arg(long)]
    wait: bool,

    /// And until so many of its peers are online
    #[arg(
        long,
        value_name = "N",
        requires = "wait",
        default_value_t = 0,
        hide_default_value = true
    )]
    peers: usize,

    /// How long to wait, in seconds; then it is a failure
    #[arg(long, value_name = "SECONDS", requires = "wait", default_value_t = 30)]
    timeout: u64,
}

#[derive(Debug, Args)]
pub(super) struct PsArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct DrainArgs {
    #[command(flatten)]
    which: Which,

    /// Take clients again
    #[arg(long)]
    undo: bool,

    /// Over how long clients go: 30s, 5m [default: as the node was started]
    #[arg(long, value_name = "TIME", value_parser = lifetime, conflicts_with = "undo")]
    drain_time: Option<Duration>,
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

pub(super) fn status(args: &StatusArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let status = if args.wait { waited(args)? } else { status_of(&args.which.find()?)? };
    if args.json {
        return output::json(out, &status);
    }
    write_line!(
        out,
        "{}  incarnation {}  listening on {}  up {}",
        status.name,
        status.incarnation,
        status.listen,
        uptime(status.uptime_s),
    )?;
    write_line!(out, "cluster {}  may {}", status.cluster, status.may)?;
    match status.http {
        Some(http) => write_line!(out, "clients over HTTP on {http}")?,
        None => write_line!(out, "no clients over HTTP")?,
    }
    if let Some(left) = status.drain_left_s {
        write_line!(
            out,
            "draining: {} clients are left, the last goes within {left} s; `xpando-node drain --undo` ends it",
            status.clients
        )?;
    }
    if let Some(why) = &status.degraded {
        write_line!(out, "degraded: {why}")?;
    }
    if status.http.is_some() && !status.token_list {
        let whose = if status.identities == 0 { "tokens" } else { "tokens of this cluster" };
        write_line!(out, "clients with {whose} are refused: {NO_TOKEN_LIST}")?;
    }
    for KeySetStatus { url, keys, fetched, error } in &status.key_sets {
        let since =
            fetched.as_deref().unwrap_or(if *keys == 0 { "never" } else { "before this start" });
        let why =
            error.as_ref().map(|why| format!("; the last try failed: {why}")).unwrap_or_default();
        write_line!(out, "key set {url}: {keys} keys, fetched {since}{why}")?;
    }
    for rotation in &status.rotations {
        write_line!(out, "{rotation}: `xpando-node rotate` shows each node")?;
    }
    for (what, until) in ending(&status.certificates, clock::wall()) {
        write_line!(
            out,
            "the {what} certificate ends at {until}: `xpando-node cert show` has more"
        )?;
    }
    if let Some(address) = status.namesake {
        write_line!(out, "another process uses this name at {address}: stop one of the two")?;
    }
    if !status.seeds.is_empty() {
        seeds(&status.seeds).print(out)?;
    }
    if status.peers.is_empty() {
        return Ok(write_line!(out, "no peers known yet")?);
    }
    write_line!(out, "{}", majority(&status.majority))?;
    if status.local_health > 0 {
        write_line!(out, "was paused lately, and waits longer before it doubts others")?;
    }
    let mut table = Columns::new(&["PEER", "STATUS", "ADDRESS", "INCARNATION", "SINCE"]);
    for peer in &status.peers {
        table.row(row(peer));
    }
    Ok(table.print(out)?)
}

/// The status of a node that runs and has enough peers, once that is so.
fn waited(args: &StatusArgs) -> anyhow::Result<NodeStatus> {
    let limit = Duration::from_secs(args.timeout);
    let end = timer::now() + limit;
    loop {
        let missing = match args.which.find().and_then(|directory| status_of(&directory)) {
            Ok(status) => {
                let online = |peer: &&PeerStatus| peer.status == Status::Online;
                let online = status.peers.iter().filter(online).count();
                if online >= args.peers {
                    return Ok(status);
                }
                anyhow!("{} has {online} of {} peers online", status.name, args.peers)
            }
            Err(error) if error.is::<Several>() => return Err(error),
            Err(error) => error,
        };
        if timer::now() >= end {
            return Err(missing.context(format!("waited {limit:?}")));
        }
        std::thread::sleep(LOOK);
    }
}

/// What became of each `--join`.
fn seeds(seeds: &[SeedStatus]) -> Columns {
    let mut table = Columns::new(&["JOIN", "ADDRESS", "NODE", "LAST TRY", "RESULT"]);
    for seed in seeds {
        let (result, status) = match &seed.error {
            _ if seed.linked => ("linked", Some(Status::Online)),
            Some(error) => (error.as_str(), Some(Status::Offline)),
            None => ("no answer yet", None),
        };
        table.row([
            Field::new(&seed.seed),
            Field::or_dash(seed.address),
            Field::or_dash(seed.node.as_ref()),
            Field::or_dash(seed.tried.as_ref()),
            Field::new(result).coloured(status),
        ]);
    }
    table
}

pub(super) fn majority(seen: &Majority) -> String {
    let Majority { held, here, known, missing, .. } = seen;
    let word = if *held { "the majority" } else { "NOT the majority" };
    let missing: Vec<&str> = missing.iter().map(NodeName::as_str).collect();
    match missing.as_slice() {
        [] => format!("sees all {known} nodes"),
        missing => format!("sees {here} of {known} nodes, {word}; missing: {}", missing.join(" ")),
    }
}

fn row(peer: &PeerStatus) -> [Field; 5] {
    let text = match peer.reason {
        Some(reason) if peer.reached_by.is_empty() => {
            format!("{} ({})", peer.status.label(), reason.label())
        }
        Some(reason) => format!("{} ({} from here)", peer.status.label(), reason.label()),
        None if peer.suspect => format!("{}, suspect", peer.status.label()),
        None => peer.status.label().to_owned(),
    };
    [
        Field::new(&peer.name),
        Field::new(text).coloured(Some(peer.status)),
        Field::or_dash(peer.address),
        Field::or_dash(peer.incarnation),
        Field::new(&peer.since),
    ]
}

/// The certificates that end within thirty days, or have ended. RFC 3339 texts of one length compare as their instants do.
fn ending(
    certificates: &BTreeMap<String, String>,
    now: SystemTime,
) -> impl Iterator<Item = (&String, &String)> {
    let soon = clock::rfc3339(now + SOON);
    certificates.iter().filter(move |(_, until)| **until < soon)
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
    listen: Option<SocketAddr>,
    incarnation: Option<u64>,
    data_dir: PathBuf,
}

pub(super) fn ps(args: &PsArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let found: Vec<_> = sockets::registered()?.into_iter().map(Named::of).collect();
    if args.json {
        return output::json(out, &found);
    }
    if found.is_empty() {
        return Ok(write_line!(out, "no node runs on this machine")?);
    }
    let mut table = Columns::new(&["NAME", "STATE", "LISTEN", "INCARNATION", "DATA DIRECTORY"]);
    for node in found {
        table.row([
            Field::new(&node.name),
            Field::new(node.state),
            Field::or_dash(node.listen),
            Field::or_dash(node.incarnation),
            Field::new(node.data_dir.display()),
        ]);
    }
    Ok(table.print(out)?)
}

impl Named {
    /// A node as it answers. One that was killed is shown once: its entry is removed.
    fn of(node: Registered) -> Self {
        let status = status_of(&node.data_dir).ok();
        let state = match &status {
            Some(_) => "running",
            None if is_running(&node.data_dir) => "silent",
            None => {
                node.remove();
                "stale"
            }
        };
        Self {
            name: node.name,
            state,
            listen: status.as_ref().map(|status| status.listen),
            incarnation: status.map(|status| status.incarnation),
            data_dir: node.data_dir,
        }
    }
}

pub(super) fn metrics(which: &Which, out: &mut dyn Write) -> anyhow::Result<()> {
    let text: String = ask(&which.find()?, &Request::Metrics)?;
    Ok(output::lines(out, &text)?)
}

pub(super) fn kill(args: &KillArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    command(&args.which, &Request::Kill { actor: args.actor.clone() })?;
    Ok(write_line!(out, "killed {}", args.actor)?)
}

pub(super) fn drain(args: &DrainArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let over_s = args.drain_time.map(|time| time.as_secs());
    command(&args.which, &Request::Drain { undo: args.undo, over_s })?;
    Ok(if args.undo {
        write_line!(out, "it takes clients again")
    } else {
        write_line!(
            out,
            "its clients go to other nodes, one after another, and it takes no more; `status` shows how many are left, `drain --undo` ends it"
        )
    }?)
}

pub(super) fn disconnect(args: &DisconnectArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    command(&args.which, &Request::Disconnect { node: args.node.clone() })?;
    Ok(write_line!(out, "link to {} ended", args.node)?)
}
