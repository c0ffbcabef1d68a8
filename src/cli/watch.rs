//! `xpando-node watch`: what happens in the cluster, as one node sees it, one line an event.

use std::io::{BufRead, Write};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::bail;
use clap::Args;
use serde_json::json;
use serde_json::value::RawValue;
use xpando_node::internals::gateway::admin::Request;
use xpando_node::internals::io::clock;
use xpando_node::internals::proto::event::{Query, Recorded};
use xpando_node::internals::proto::node::NodeName;

use super::ask::{PATIENCE, Which, open};
use super::output::{self, write_line};

#[derive(Debug, Args)]
pub(super) struct WatchArgs {
    #[command(flatten)]
    which: Which,

    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
}

/// Follows until the node ends, which is a failure, or nobody reads any more.
pub(super) fn watch(args: &WatchArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let request = Request::Watch(Query::default());
    let (node, lines) = follow(&args.which.find()?, &request)?;
    let at = clock::rfc3339(clock::wall());
    if args.json {
        output::json(out, &json!({"at": at, "event": "watching", "node": node}))?;
    } else {
        write_line!(out, "{at}  watching {node}")?;
    }
    out.flush()?;
    for line in lines {
        let line = line?;
        if args.json {
            output::json(out, &RawValue::from_string(line)?)?;
        } else {
            write_line!(out, "{}", described(&serde_json::from_str(&line)?))?;
        }
        out.flush()?;
    }
    bail!("{node} has ended")
}

/// Asks a node for events as they happen: its name, and a line of JSON for each until the node ends.
pub(super) fn follow(
    directory: &Path,
    request: &Request,
) -> anyhow::Result<(NodeName, impl Iterator<Item = std::io::Result<String>> + use<>)> {
    let (reader, node) = open(directory, request, &[], PATIENCE)?;
    reader.get_ref().set_read_timeout(None)?;
    Ok((node, reader.lines()))
}

/// An event for people.
pub(super) fn described(Recorded { at, event, .. }: &Recorded) -> String {
    format!("{}  {event}", clock::rfc3339(UNIX_EPOCH + Duration::from_millis(*at)))
}
