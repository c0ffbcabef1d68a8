//! All nodes that a node knows, and having one forgotten.

use std::io::Write;

use clap::Args;
use xpando_node::internals::gateway::admin::Request;
use xpando_node::internals::gateway::status::NodeRecord;
use xpando_node::internals::proto::node::NodeName;

use super::ask::{Which, ask, command};
use super::output::{self, Columns, Field, write_line};
use super::query::uptime;

#[derive(Debug, Args)]
pub(super) struct NodesArgs {
    #[command(flatten)]
    which: Which,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ForgetArgs {
    #[command(flatten)]
    which: Which,

    /// The node, which must not be linked
    #[arg(value_name = "NAME@HOST")]
    node: NodeName,

    /// Have it known again, as it was
    #[arg(long)]
    undo: bool,
}

pub(super) fn nodes(args: &NodesArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let nodes: Vec<NodeRecord> = ask(&args.which.find()?, &Request::Nodes)?;
    if args.json {
        return output::json(out, &nodes);
    }
    let titles =
        ["NODE", "STATUS", "UP", "INCARNATION", "LAST SEEN", "SPECIALIZATIONS", "METADATA"];
    let mut table = Columns::new(&titles);
    for node in &nodes {
        table.row(row(node));
    }
    Ok(table.print(out)?)
}

fn row(node: &NodeRecord) -> [Field; 7] {
    let status = match (node.status, node.reason) {
        (Some(status), Some(reason)) => format!("{} ({})", status.label(), reason.label()),
        (Some(status), None) => status.label().to_owned(),
        (None, _) => "known to others".to_owned(),
    };
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    let pairs: Vec<_> = node.metadata.iter().map(|(key, value)| format!("{key}={value}")).collect();
    [
        Field::new(&node.name),
        Field::new(status).coloured(node.status),
        Field::or_dash(node.uptime_s.map(uptime)),
        Field::or_dash(node.incarnation),
        Field::or_dash(node.last_seen.as_ref()),
        Field::or_dash(some(node.specializations.join(" "))),
        Field::or_dash(some(pairs.join(" "))),
    ]
}

pub(super) fn forget(args: &ForgetArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let (node, undo) = (args.node.clone(), args.undo);
    command(&args.which, &Request::Forget { node, undo })?;
    Ok(if undo {
        write_line!(out, "{} is known again", args.node)
    } else {
        let words = "is forgotten, until it comes back by itself; `forget --undo` takes that back";
        write_line!(out, "{} {words}", args.node)
    }?)
}
