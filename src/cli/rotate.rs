//! `xpando-node rotate`: the cluster's authority or its nodes' certificates are replaced while it works.
//!
//! Owns the words of this command.

use std::io::Write;
use std::time::Duration;

use clap::{Args, ValueEnum};
use xpando_node::internals::gateway::admin::Request;
use xpando_node::internals::gateway::rotation::{Rotate, RotationStatus};

use super::ask::{Which, ask};
use super::output::{self, Columns, Field, write_line};

/// Between two looks of `--watch`.
const EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct RotateArgs {
    /// What to replace [default: nothing; shows how far a rotation is]
    #[arg(value_enum)]
    what: Option<What>,

    /// Go back to the authority that the rotation began with
    #[arg(long, conflicts_with_all = ["what", "force"])]
    abort: bool,

    /// Take the next step, whoever is not ready: once all trust the new authority, it cuts off who has no certificate of it
    #[arg(long, conflicts_with = "what")]
    force: bool,

    /// Show each node until the rotation is over
    #[arg(long)]
    watch: bool,

    /// Print JSON, a line each time
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    which: Which,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// The certificate authority, and then every node's certificate
    Authority,
    /// Every node's certificate
    Nodes,
}

pub(super) fn rotate(args: &RotateArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let directory = args.which.find()?;
    let wish = match (args.what, args.abort, args.force) {
        (Some(What::Authority), ..) => Some(Rotate::Authority),
        (Some(What::Nodes), ..) => Some(Rotate::Nodes),
        (None, true, _) => Some(Rotate::Abort),
        (None, false, true) => Some(Rotate::Force),
        (None, false, false) => None,
    };
    if let Some(what) = wish {
        ask::<()>(&directory, &Request::Rotate { what })?;
    }
    loop {
        let status: RotationStatus = ask(&directory, &Request::Rotation)?;
        if args.json {
            output::json(out, &status)?;
        } else {
            show(&status, out)?;
        }
        out.flush()?;
        if !args.watch || status.rotation.is_none() {
            return Ok(());
        }
        std::thread::sleep(EVERY);
    }
}

fn show(status: &RotationStatus, out: &mut dyn Write) -> anyhow::Result<()> {
    match &status.rotation {
        None => write_line!(out, "no rotation of the authority is under way")?,
        Some(under) => {
            let step = if under.moving {
                "nodes are given certificates of the new authority"
            } else {
                "nodes come to trust the new authority"
            };
            write_line!(out, "{} began at {}: {step}", under.by, under.began)?;
            write_line!(out, "new authority {}", under.authority)?;
        }
    }
    let mut table = Columns::new(&["NODE", "TRUST LIST", "SIGNED BY", "VALID UNTIL", "READY"]);
    for (name, node) in &status.nodes {
        let ready = if status.waits_for.contains(name) { "no" } else { "yes" };
        let node = node.as_ref();
        table.row([
            Field::new(name),
            Field::or_dash(node.map(|node| node.list)),
            Field::or_dash(node.map(|node| &node.authority)),
            Field::or_dash(node.map(|node| &node.until)),
            Field::new(if node.is_none() { "does not answer" } else { ready }),
        ]);
    }
    table.print(out)?;
    Ok(())
}
