//! `xpando-node watch`: what happens in the cluster, as one node sees it, one line an event.

use std::io::{BufRead, Write};
use std::path::Path;

use anyhow::bail;
use clap::Args;
use serde_json::json;
use serde_json::value::RawValue;
use xpando_node::gateway::admin::{Answer, Request};
use xpando_node::gateway::status::{Change, What};
use xpando_node::io::clock;
use xpando_node::proto::event::{Broken, Event, Reason, Revocable};
use xpando_node::proto::node::NodeName;

use super::ask::{PATIENCE, Which, open, unexpected};
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
    let request = Request::Watch { after: None, label: None, node: None, from: None };
    let (node, changes) = changes(&args.which.find()?, &request)?;
    let at = clock::rfc3339(clock::wall());
    if args.json {
        output::json(out, &json!({"at": at, "event": "watching", "node": node}))?;
    } else {
        write_line!(out, "{at}  watching {node}")?;
    }
    out.flush()?;
    for line in changes {
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

/// Asks a node for changes as they happen: its name, and a line of JSON for each until the node ends.
pub(super) fn changes(
    directory: &Path,
    request: &Request,
) -> anyhow::Result<(NodeName, impl Iterator<Item = std::io::Result<String>> + use<>)> {
    let (reader, answer) = open(directory, request, &[], PATIENCE)?;
    let Answer::Watching(node) = answer else { return unexpected() };
    reader.get_ref().set_read_timeout(None)?;
    Ok((node, reader.lines()))
}

/// A change for people.
pub(super) fn described(change: &Change) -> String {
    format!("{}  {}", change.at, text(&change.what))
}

/// What happened, for people.
pub(super) fn text(what: &What) -> String {
    match what {
        What::Event(event) => told(event),
        What::Other { event, rest } => {
            format!("{event} {}", serde_json::to_string(rest).unwrap_or_default())
        }
        What::Missed { missed } => format!("{missed} events came faster than they were read"),
    }
}

fn told(event: &Event) -> String {
    match event {
        Event::PeerDiscovered { peer, address, .. } => format!("{peer} discovered at {address}"),
        Event::PeerConnecting { peer } => format!("{peer} connecting"),
        Event::PeerSyncing { peer, incarnation, .. } => {
            format!("{peer} syncing, incarnation {incarnation}")
        }
        Event::PeerOnline { peer, incarnation, address } => {
            format!("{peer} online at {address}, incarnation {incarnation}")
        }
        Event::PeerOffline { peer, reason } => format!("{peer} offline ({})", reason.label()),
        Event::PeerForgotten { peer } => format!("{peer} forgotten"),
        Event::PeerSuspected { peer, phi, missed } => {
            format!("{peer} suspect: missed {missed} beats (phi {phi:.1})")
        }
        Event::PeerCleared { peer } => format!("{peer} heard again"),
        Event::PeerSilent { peer, missed, heard_by, broken, .. } => {
            let broken = broken.map_or("", |broken| match broken {
                Broken::WayThere => "; the way there is cut",
                Broken::WayBack => "; the way back is cut",
                Broken::Process => "; its machine answers, the process does not",
            });
            let heard = match heard_by.as_slice() {
                [] => String::new(),
                names => format!("; still heard by {}", list(names)),
            };
            format!("{peer} given up after {missed} missed beats{heard}{broken}")
        }
        Event::Paused { millis } => {
            format!("this node was paused for {:.1} s", *millis as f64 / 1e3)
        }
        Event::LinkReplaced { peer, .. } => format!("{peer} has a newer link"),
        Event::LinkLost { peer, cause } => format!("{peer} link lost: {cause}"),
        Event::LinkChanged { from, to, state, suspect, reason } => {
            let reason = reason.map(Reason::label).or(suspect.then_some("suspect"));
            let reason = reason.map_or_else(String::new, |reason| format!(" ({reason})"));
            format!("{from} sees {to} {}{reason}", state.label())
        }
        Event::LinkRefused { peer, refusal } => format!("{peer} refused: {refusal}"),
        Event::RefusedBy { peer, refusal } => format!("refused by {peer}: {refusal}"),
        Event::CertificateRefused { peer } => {
            format!("refused by {peer}: this node's certificate is revoked")
        }
        Event::DialFailed { peer, address, cause } => match peer {
            Some(peer) => format!("{peer} cannot be dialed at {address}: {cause}"),
            None => format!("no node answers at {address}: {cause}"),
        },
        Event::NameInUse { address } => format!("another process uses this name at {address}"),
        Event::SeedIsMyself { address } => format!("{address} is this node itself"),
        Event::IncarnationRaised { .. }
        | Event::NodeStarted { .. }
        | Event::NodeStopping
        | Event::ActorEnded { .. }
        | Event::IdentityLoaded { .. }
        | Event::CertificatesRevoked { .. }
        | Event::TokensRevoked { .. }
        | Event::RevocationsRefused { .. }
        | Event::StoreSetAside { .. }
        | Event::StoreFailing { .. }
        | Event::StoreRecovered
        | Event::EventsLost { .. } => told_of_itself(event),
    }
}

/// What happened to the node itself.
#[expect(clippy::wildcard_enum_match_arm, reason = "the caller tells all others")]
fn told_of_itself(event: &Event) -> String {
    match event {
        Event::IncarnationRaised { to } => format!("this node goes on as incarnation {to}"),
        Event::NodeStarted { incarnation, version } => {
            format!("this node starts, incarnation {incarnation}, version {version}")
        }
        Event::NodeStopping => "this node says goodbye and stops".to_owned(),
        Event::ActorEnded { actor, why, restarted: true } => {
            format!("actor {actor} ended and is restarted: {why}")
        }
        Event::ActorEnded { actor, why, restarted: false } => {
            format!("actor {actor} ended too often: {why}")
        }
        Event::IdentityLoaded { id, cluster, development } => {
            let kind = if *development { "development cluster" } else { "cluster" };
            format!("identity {id} of {kind} {cluster}")
        }
        Event::CertificatesRevoked { certificates, own } => {
            let own = if *own { ", this node's own among them" } else { "" };
            format!("{certificates} certificates are revoked{own}")
        }
        Event::TokensRevoked { tokens } => format!("{tokens} tokens are revoked"),
        Event::RevocationsRefused { list, why } => match list {
            Revocable::Certificates => format!("list of revoked certificates refused: {why}"),
            Revocable::Tokens => format!("list of revoked tokens refused: {why}"),
        },
        Event::StoreSetAside { path } => {
            format!("the store was damaged and begins anew; it is kept as {path}")
        }
        Event::StoreFailing { why } => format!("nothing is remembered: {why}"),
        Event::StoreRecovered => "the store can be written again".to_owned(),
        Event::EventsLost { count } => {
            format!(
                "{count} events before this one are in no trail: the store could not be written"
            )
        }
        _ => String::new(),
    }
}

fn list(names: &[NodeName]) -> String {
    names.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", ")
}
