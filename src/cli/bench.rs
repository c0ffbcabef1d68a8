//! Benchmarks of this program on this machine.

use std::io::Write;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(super) enum BenchCommand {}

pub(super) fn run(command: BenchCommand, _out: &mut dyn Write) -> anyhow::Result<()> {
    match command {}
}
