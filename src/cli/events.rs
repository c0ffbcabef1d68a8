//! `xpando-node events`: what happened, as one node noted it.

use std::io::Write;

use anyhow::bail;
use clap::Args;
use clap::builder::PossibleValuesParser;
use xpando_node::gateway::admin::{Answer, Request};
use xpando_node::proto::event::Event;
use xpando_node::proto::node::NodeName;

use super::query::{Which, ask};
use super::watch::line;

#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    #[command(flatten)]
    which: Which,

    /// Of this type alone
    #[arg(long = "type", value_name = "TYPE", value_parser = PossibleValuesParser::new(Event::LABELS))]
    label: Option<String>,

    /// About this node alone
    #[arg(long, value_name = "NAME@HOST")]
    node: Option<NodeName>,

    /// How many at most, the latest
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    limit: usize,

    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
}

pub(super) fn events(args: &EventsArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let (label, node) = (args.label.clone(), args.node.clone());
    let request = Request::Events { since: None, limit: args.limit, label, node };
    let Answer::Events(changes) = ask(&args.which.find()?, &request)? else {
        bail!("the node's answer is for another question")
    };
    for change in &changes.events {
        if args.json {
            writeln!(out, "{}", serde_json::to_string(change)?)?;
        } else {
            writeln!(out, "{}", line(change))?;
        }
    }
    Ok(())
}
