//! All nodes that a node knows, and having one forgotten.

use std::io::Write;

use anyhow::bail;
use clap::Args;
use comfy_table::Cell;
use xpando_node::gateway::admin::{Answer, Request};
use xpando_node::gateway::status::NodeRecord;
use xpando_node::proto::node::NodeName;

use super::query::{Which, ask, coloured, command, table, uptime};

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
}

pub(super) fn nodes(args: &NodesArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let Answer::Nodes(nodes) = ask(&args.which.find()?, &Request::Nodes)? else {
        bail!("the node's answer is for another question")
    };
    if args.json {
        return Ok(writeln!(out, "{}", serde_json::to_string(&nodes)?)?);
    }
    let mut table =
        table(&["NODE", "STATUS", "UP", "INCARNATION", "LAST SEEN", "SPECIALIZATIONS", "METADATA"]);
    for node in &nodes {
        table.add_row(row(node));
    }
    Ok(writeln!(out, "{table}")?)
}

fn row(node: &NodeRecord) -> Vec<Cell> {
    let status = match (node.status, node.reason) {
        (Some(status), Some(reason)) => format!("{} ({})", status.label(), reason.label()),
        (Some(status), None) => status.label().to_owned(),
        (None, _) => "known to others".to_owned(),
    };
    let or_dash = |text: Option<String>| Cell::new(text.unwrap_or_else(|| "-".to_owned()));
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    let pairs: Vec<_> = node.metadata.iter().map(|(key, value)| format!("{key}={value}")).collect();
    vec![
        Cell::new(&node.name),
        coloured(status, node.status),
        or_dash(node.uptime_s.map(uptime)),
        or_dash(node.incarnation.map(|life| life.to_string())),
        or_dash(node.last_seen.clone()),
        or_dash(some(node.specializations.join(" "))),
        or_dash(some(pairs.join(" "))),
    ]
}

pub(super) fn forget(args: &ForgetArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    command(&args.which, &Request::Forget { node: args.node.clone() })?;
    Ok(writeln!(out, "{} is forgotten, until it comes back by itself", args.node)?)
}
