//! The `xpando-node` program: read the command line, run it, say how it ended.

use std::process::ExitCode;

mod cli;

fn main() -> ExitCode {
    cli::main()
}
