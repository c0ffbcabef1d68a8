//! Benchmarks of this program on this machine. Every figure is also a ratio to a floor measured in
//! the same run, because machines differ and drift.

use std::io::Write;

use clap::Subcommand;
use xpando_node::internals::node::bench::Kind;

mod channels;
mod floor;
mod formation;
mod idle;
mod jitter;
mod mesh;
mod messages;
mod store;
mod topics;

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
    /// What this machine can do at best: a bare TLS 1.3 stream, one channel before it
    Floor {
        /// Bytes of a message
        #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=16_000_000))]
        size: u32,
        /// For how long each
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
    },
    /// All of these between nodes of its own, each beside its floor
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
    /// Many topics, and topics that come and go, between two nodes of its own
    Topics {
        /// Topics
        #[arg(default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=500_000))]
        topics: u64,
        /// For how long others come and go
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
    },
}

pub(super) fn run(command: BenchCommand, out: &mut dyn Write) -> anyhow::Result<()> {
    match command {
        BenchCommand::Formation { nodes, reps } => formation::run(nodes, reps, out),
        BenchCommand::Idle { nodes, seconds } => idle::run(nodes, seconds, out),
        BenchCommand::Cast(args) => messages::load(Kind::Cast, &args, out),
        BenchCommand::Call(args) => messages::load(Kind::Call, &args, out),
        BenchCommand::Fanout(args) => messages::load(Kind::Fanout, &args, out),
        BenchCommand::Floor { size, seconds } => messages::floors(size as usize, seconds, out),
        BenchCommand::Messages { seconds } => messages::run(seconds, out),
        BenchCommand::Channels { seconds, idle } => channels::run(seconds, idle as usize, out),
        BenchCommand::Store { events, batch, seconds } => {
            store::run(events, batch, out)?;
            jitter::run(seconds, out)
        }
        BenchCommand::Topics { topics, seconds } => topics::run(topics, seconds, out),
    }
}
