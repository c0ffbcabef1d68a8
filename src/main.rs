//! The `xpando-node` program: read the command line, run it, say how it ended.

use std::process::ExitCode;

mod cli;

/// Pieces of 64 KiB come and go with every message: this allocator keeps their pages.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main()
}
