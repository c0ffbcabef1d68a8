//! Benchmarks of this program on this machine. Every figure is also a ratio to a floor measured in
//! the same run, because machines differ and drift.

use std::io::Write;

use clap::Subcommand;

mod formation;
mod idle;
mod mesh;

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
    /// Floor: one node without peers, measured right before.
    Idle {
        /// Nodes
        #[arg(default_value_t = 5, value_parser = clap::value_parser!(u16).range(2..=200))]
        nodes: u16,
        /// How long they are watched
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
        seconds: u64,
    },
}

pub(super) fn run(command: BenchCommand, out: &mut dyn Write) -> anyhow::Result<()> {
    match command {
        BenchCommand::Formation { nodes, reps } => formation::run(nodes, reps, out),
        BenchCommand::Idle { nodes, seconds } => idle::run(nodes, seconds, out),
    }
}
