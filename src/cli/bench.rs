//! Benchmarks of this program on this machine. Every figure is also a ratio to a floor measured in
//! the same run, because machines differ and drift.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use clap::Subcommand;
use serde::de::DeserializeOwned;
use xpando_node::internals::io::limits::raise_descriptors;
use xpando_node::internals::node::bench::{Kind, Order};
use xpando_node::internals::node::{Node, NodeError};
use xpando_node::internals::proto::node::NodeName;
use xpando_node::internals::proto::topic::{Address, Name};

use super::message::call_at;

mod channels;
mod floor;
mod formation;
mod history;
mod idle;
mod jitter;
mod mesh;
mod messages;
mod rotation;
mod store;

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
    /// What N linked nodes cost while nothing happens: processor and memory of each
    ///
    /// Floor: one node without peers, measured right before; for a scrape of metrics, a question to the same node that
    /// is answered with five numbers.
    Idle {
        /// Nodes
        #[arg(default_value_t = 5, value_parser = clap::value_parser!(u16).range(2..=200))]
        nodes: u16,
        /// How long they are watched
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
        seconds: u64,
    },
    /// Broadcasts from a running node to one other
    Cast(messages::LoadArgs),
    /// Requests from a running node to one other
    Call(messages::LoadArgs),
    /// Broadcasts from a running node to several
    Fanout(messages::LoadArgs),
    /// All of these between nodes of its own, each beside its floor: a bare TLS 1.3 stream, one channel before it
    Messages {
        /// For how long each
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
    },
    /// Phoenix Channels clients of nodes of its own: joins, deliveries, memory
    ///
    /// Floor: the same frames, written to as many sockets by a bare loop.
    Channels {
        /// For how long each
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
        /// Clients that are connected and idle
        #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(100..=15_000))]
        idle: u32,
    },
    /// Presence of N members in one room on two nodes, beside a load of messages: joins with counts and with states, updates
    ///
    /// Floor: joins of small rooms, under the same load.
    Presence {
        /// Members
        #[arg(default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(100..=15_000))]
        members: u32,
    },
    /// N clients of one node, from several addresses of this machine: memory of each, joins, a message to all of them
    ///
    /// Presence is off. Floor: the same bytes, written to as many sockets by a bare loop and read by the same clients. Takes
    /// more open files than clients (ulimit -Hn), which root gives itself.
    Crowd {
        /// Clients
        #[arg(default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(100..=100_000))]
        clients: u32,
    },
    /// The floor of `crowd`: prints an address, takes N connections, and writes each line of standard input to all of them
    #[command(hide = true)]
    Bare {
        /// Connections
        #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
        sockets: u32,
    },
    /// History on disk: one client that publishes N messages, and joins that ask for the last 1,000 of them
    ///
    /// Floor: the same client on a topic that is kept in memory, in turns.
    History {
        /// Messages
        #[arg(default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1000..=10_000_000))]
        messages: u64,
    },
    /// N nodes that join by invitations; a rotation of the authority under load, aborted half-way, and another; a revocation
    ///
    /// Floors: for a join, a node that starts again; for calls during the rotations, the same calls before them, under the same
    /// load; for the revocation, a node that is killed.
    Rotation {
        /// Nodes
        #[arg(default_value_t = 5, value_parser = clap::value_parser!(u16).range(3..=20))]
        nodes: u16,
        /// How long calls are measured before anything is rotated
        #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(2..=600))]
        seconds: u64,
    },
    /// The trail on this disk: append, open, read, verify, forget; and what writing it does to heartbeats
    ///
    /// Floor: the same bytes in the same batches, appended to a plain file and synced; the same nodes at rest.
    Store {
        /// Events
        #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1000..))]
        events: u64,
        /// Events in one commit
        #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=100_000))]
        batch: u64,
        /// How long the beats of a node that stores events at full rate are watched, and as long those of one at rest
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=100))]
        seconds: u64,
    },
}

pub(super) fn run(command: BenchCommand, out: &mut dyn Write) -> anyhow::Result<()> {
    raise_descriptors().context("the limit of open files stays as it is")?;
    match command {
        BenchCommand::Formation { nodes, reps } => formation::run(nodes, reps, out),
        BenchCommand::Idle { nodes, seconds } => idle::run(nodes, seconds, out),
        BenchCommand::Cast(args) => messages::load(Kind::Cast, &args, out),
        BenchCommand::Call(args) => messages::load(Kind::Call, &args, out),
        BenchCommand::Fanout(args) => messages::load(Kind::Fanout, &args, out),
        BenchCommand::Messages { seconds } => messages::run(seconds, out),
        BenchCommand::Channels { seconds, idle } => channels::run(seconds, idle as usize, out),
        BenchCommand::Presence { members } => channels::presence::run(members as usize, out),
        BenchCommand::Crowd { clients } => channels::crowd::run(clients as usize, out),
        BenchCommand::Bare { sockets } => channels::bare::broadcast(sockets as usize, out),
        BenchCommand::History { messages } => history::run(messages, out),
        BenchCommand::Rotation { nodes, seconds } => {
            rotation::run(nodes, Duration::from_secs(seconds), out)
        }
        BenchCommand::Store { events, batch, seconds } => {
            store::run(events, batch, out)?;
            jitter::run(seconds, out)
        }
    }
}

/// Serves what benchmarks join, on a node that obeys them.
pub(super) fn serve(node: &Node) -> Result<(), NodeError> {
    node.channel(channels::crowd::SERVICE, channels::crowd::Nothing)
}

/// Orders something of a node, through the one that keeps its data in this directory.
fn order<T: DeserializeOwned>(
    directory: &Path,
    node: &NodeName,
    order: &Order,
    within: Duration,
) -> anyhow::Result<T> {
    let to = Address { name: Name::bench(), node: Some(node.clone()) };
    let reply = call_at(directory, &to, &serde_json::to_vec(order)?, within)
        .context("no benchmark without its service: start each of these nodes with --bench")?;
    Ok(serde_json::from_slice(&reply)?)
}
