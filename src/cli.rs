//! Floor 6: the command line.
//!
//! Flags become one resolved command here; the floors below see none of clap. Exit status: 0 done,
//! 1 failed (the reason on standard error), 2 bad usage.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xpando_node::internals::io::places;

mod ask;
mod bench;
mod can;
mod cert;
mod env;
mod events;
mod fields;
mod invite;
mod issuing;
mod join;
#[cfg(feature = "top")]
mod labels;
mod logs;
mod message;
mod nodes;
mod output;
mod query;
mod remedy;
mod revoke;
mod rotate;
mod run;
mod signals;
mod token;
#[cfg(feature = "top")]
mod top;
mod topology;
mod watch;
mod why;

/// A cluster node: nodes name@host that find each other, stay linked over mutual TLS, and know who is
/// alive.
///
/// Without a subcommand it runs a node: `xpando-node --name a@127.0.0.1`.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(flatten)]
    run: run::RunArgs,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show how a running node sees the cluster
    Status(query::StatusArgs),
    /// List all known nodes: what they say of themselves, and when they were seen
    Nodes(nodes::NodesArgs),
    /// Explain why a peer has the status it has
    Why(why::WhyArgs),
    /// Show who sees whom in the whole cluster
    Topology(topology::TopologyArgs),
    /// Follow what happens in the cluster, one line an event
    Watch(watch::WatchArgs),
    /// Show what happened
    Events(events::EventsArgs),
    /// Watch nodes, links, rates and events live in this terminal
    #[cfg(feature = "top")]
    Top(ask::Which),
    /// Broadcast a message to the subscribers on every node
    Publish(message::PublishArgs),
    /// Print messages as they come, one line each
    Subscribe(message::SubscribeArgs),
    /// Make a request to a name and print the reply
    Call(message::CallArgs),
    /// List the nodes running on this machine
    #[command(visible_alias = "names")]
    Ps(query::PsArgs),
    /// Print a running node's metrics as Prometheus text
    Metrics(ask::Which),
    /// Send a node's clients to other nodes, before it is stopped
    Drain(query::DrainArgs),
    /// End a node's link to a peer; it is dialed again later
    Disconnect(query::DisconnectArgs),
    /// Have a node forgotten that is gone for good, here and everywhere
    Forget(nodes::ForgetArgs),
    /// Replace the cluster's authority or its nodes' certificates while it works
    Rotate(rotate::RotateArgs),
    /// Invite machines into the cluster: print the command to run there
    ///
    /// Ask a node that has the authority's key. Whoever has the line may join: pass it on in confidence.
    Invite(invite::InviteArgs),
    /// Join a cluster by an invitation: get a certificate for this machine
    ///
    /// Makes a key, which stays here, and asks the nodes in the invitation for a certificate. When that is
    /// interrupted, the same command goes on.
    Join(Box<join::JoinArgs>),
    /// List the machines that wait to be let in; let one in or deny it
    Requests(invite::RequestsArgs),
    /// Free a node's name for another key: revoke what was issued to it
    Release(invite::ReleaseArgs),
    /// Revoke a node's certificates, or one: it is out everywhere within seconds
    Revoke(revoke::RevokeArgs),
    /// Make and show certificates: the cluster's authority and its nodes
    Cert {
        /// Certificate directory [default: $XDG_CONFIG_HOME/xpando/certs]
        #[arg(long, value_name = "DIR", env = "XPANDO_CERTS", global = true)]
        certs: Option<PathBuf>,
        #[command(subcommand)]
        command: cert::CertCommand,
    },
    /// Make, check and revoke the tokens that clients show to a node
    Token {
        /// Certificate directory [default: $XDG_CONFIG_HOME/xpando/certs]
        #[arg(long, value_name = "DIR", env = "XPANDO_CERTS", global = true)]
        certs: Option<PathBuf>,
        #[command(subcommand)]
        command: token::TokenCommand,
    },
    /// Measure this program on this machine
    Bench {
        #[command(subcommand)]
        command: bench::BenchCommand,
    },
    /// Kill an actor of a node that was started with --chaos
    #[command(hide = true)]
    Kill(query::KillArgs),
}

/// Reads the command line and runs it.
pub(crate) fn main() -> ExitCode {
    let cli: Cli = env::parse();
    match execute(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::failure(&error);
            ExitCode::FAILURE
        }
    }
}

fn execute(cli: Cli) -> anyhow::Result<()> {
    let mut out = output::Stdout::lock();
    let done = match cli.command {
        None => return run::run(cli.run),
        Some(Command::Status(args)) => query::status(&args, &mut out),
        Some(Command::Nodes(args)) => nodes::nodes(&args, &mut out),
        Some(Command::Forget(args)) => nodes::forget(&args, &mut out),
        Some(Command::Revoke(args)) => revoke::revoke(&args, &mut out),
        Some(Command::Why(args)) => why::why(&args, &mut out),
        Some(Command::Topology(args)) => topology::topology(&args, &mut out),
        Some(Command::Watch(args)) => watch::watch(&args, &mut out),
        Some(Command::Events(args)) => events::events(&args, &mut out),
        #[cfg(feature = "top")]
        Some(Command::Top(which)) => {
            drop(out); // the terminal's own
            return top::top(&which);
        }
        Some(Command::Publish(args)) => message::publish(&args, &mut out),
        Some(Command::Subscribe(args)) => message::subscribe(&args, &mut out),
        Some(Command::Call(args)) => message::call(&args, &mut out),
        Some(Command::Ps(args)) => query::ps(&args, &mut out),
        Some(Command::Metrics(which)) => query::metrics(&which, &mut out),
        Some(Command::Drain(args)) => query::drain(&args, &mut out),
        Some(Command::Disconnect(args)) => query::disconnect(&args, &mut out),
        Some(Command::Rotate(args)) => rotate::rotate(&args, &mut out),
        Some(Command::Kill(args)) => query::kill(&args, &mut out),
        Some(Command::Invite(args)) => invite::invite(args, &mut out),
        Some(Command::Join(args)) => {
            // A node that starts has no use for it.
            drop(out);
            return join::join(*args);
        }
        Some(Command::Requests(args)) => invite::requests(args, &mut out),
        Some(Command::Release(args)) => invite::release(&args, &mut out),
        Some(Command::Cert { certs, command }) => {
            cert::run(command, &certs.map_or_else(places::certs, Ok)?, &mut out)
        }
        Some(Command::Token { certs, command }) => {
            token::run(command, &certs.map_or_else(places::certs, Ok)?, &mut out)
        }
        Some(Command::Bench { command }) => bench::run(command, &mut out),
    };
    let done = done.and_then(|()| Ok(out.flush()?));
    if out.is_closed() { Ok(()) } else { done }
}
