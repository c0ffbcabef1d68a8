//! Inviting machines, and deciding about those that ask: on a node that has the authority's key.
//!
//! Owns the words of these commands. Invariant: the invitation, which is a secret, is printed to standard output alone.

use std::io::Write;
use std::time::Duration;

use clap::{Args, Subcommand};
use xpando_node::internals::gateway::admin::Request;
use xpando_node::internals::gateway::admin::enrol::{Invite, Invited, Waiting};
use xpando_node::internals::proto::capability::Capabilities;
use xpando_node::internals::proto::enrol::{NamePattern, RequestId};
use xpando_node::internals::proto::node::NodeName;

use super::ask::{Which, ask};
use super::can::Can;
use super::output::{self, Columns, Field, notice, write_line};
use super::token::lifetime;

/// How long a spoken invitation may be good.
const SPOKEN: Duration = Duration::from_secs(60 * 60);

#[derive(Debug, Args)]
pub(super) struct InviteArgs {
    #[command(flatten)]
    which: On,

    /// Names that may be taken, * for any characters: 'web-*@10.0.0.*' [default: any]
    #[arg(long = "name", value_name = "PATTERN")]
    names: Option<NamePattern>,

    /// How long it is good: 30s, 15m, 24h, 7d; at most 366d
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = lifetime)]
    ttl: Duration,

    /// How many machines may join with it
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    uses: u32,

    /// Have each request wait until somebody approves it
    #[arg(long, conflicts_with = "spoken")]
    approve: bool,

    #[command(flatten)]
    can: Can,

    /// Make one to be said aloud, such as 7-guitar-sunset: for one machine, for an hour at most; a wrong guess ends it
    #[arg(long, conflicts_with = "uses")]
    spoken: bool,
}

/// Which node to ask: `--name` has another meaning here.
#[derive(Debug, Args)]
pub(super) struct On {
    /// The node that invites [default: the only one running on this machine]
    #[arg(long = "on", value_name = "NAME@HOST", env = "XPANDO_NAME")]
    on: Option<NodeName>,

    /// Its data directory, as `xpando-node ps` shows it; needed only where several nodes have the name
    #[arg(long, value_name = "DIR", env = "XPANDO_DATA_DIR")]
    data_dir: Option<std::path::PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct RequestsArgs {
    #[command(flatten)]
    which: Which,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(subcommand)]
    command: Option<Decide>,
}

#[derive(Debug, Subcommand)]
enum Decide {
    /// Let a machine have the certificate that it asks for
    Approve(Decided),
    /// Deny it
    Deny(Decided),
}

#[derive(Debug, Args)]
struct Decided {
    /// The request, as the list shows it
    id: RequestId,

    #[command(flatten)]
    which: Which,
}

#[derive(Debug, Args)]
pub(super) struct ReleaseArgs {
    #[command(flatten)]
    which: Which,

    /// The name
    #[arg(value_name = "NAME@HOST")]
    node: NodeName,
}

pub(super) fn invite(args: InviteArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let InviteArgs { which, names, ttl, uses, approve, can, spoken } = args;
    let capabilities = can.capabilities()?.unwrap_or(Capabilities::OPERATE);
    let ttl = if spoken { ttl.min(SPOKEN) } else { ttl };
    let names = names.unwrap_or_else(NamePattern::any);
    let directory = Which::named(which.on, which.data_dir).find()?;
    let invite = Invite {
        names: names.clone(),
        seconds: ttl.as_secs(),
        uses,
        approval: approve,
        spoken,
        capabilities: capabilities.clone(),
    };
    let invited: Invited = ask(&directory, &Request::Invite(invite))?;
    match &invited.at {
        Some(at) => write_line!(
            out,
            "xpando-node join {} --at {at} --name NAME@HOST --start",
            invited.line
        )?,
        None => write_line!(out, "xpando-node join '{}' --name NAME@HOST --start", invited.line)?,
    }
    let many = if uses == 1 { "one machine".to_owned() } else { format!("{uses} machines") };
    let like = if names == NamePattern::any() {
        String::new()
    } else {
        format!(" with a name like {names}")
    };
    notice(format_args!("good for {many}{like}, until {}; may: {capabilities}", invited.until));
    if approve {
        notice(format_args!("each waits until you approve it: `xpando-node requests`"));
    }
    Ok(())
}

pub(super) fn requests(args: RequestsArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    match args.command {
        None => list(&args.which, args.json, out),
        Some(Decide::Approve(Decided { id, which })) => {
            let name: NodeName = ask(&which.find()?, &Request::Approve { request: id })?;
            Ok(write_line!(
                out,
                "approved: {name} gets its certificate when it asks again, within seconds"
            )?)
        }
        Some(Decide::Deny(Decided { id, which })) => {
            let name: NodeName = ask(&which.find()?, &Request::Deny { request: id })?;
            Ok(write_line!(
                out,
                "denied: {name} gets no certificate for that key by that invitation"
            )?)
        }
    }
}

fn list(which: &Which, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let waiting: Vec<Waiting> = ask(&which.find()?, &Request::Requests)?;
    if json {
        return output::json(out, &waiting);
    }
    if waiting.is_empty() {
        return Ok(write_line!(out, "no request waits for approval")?);
    }
    let columns = ["REQUEST", "NAME", "KEY", "HOSTS", "MAY", "SINCE", "INVITED BY"];
    let mut table = Columns::new(&columns);
    for one in &waiting {
        let hosts: Vec<String> = one.hosts.iter().map(ToString::to_string).collect();
        table.row([
            Field::new(one.request),
            Field::new(&one.name),
            Field::new(&one.key),
            Field::or_dash(Some(hosts.join(" ")).filter(|hosts| !hosts.is_empty())),
            Field::new(&one.can),
            Field::new(&one.since),
            Field::new(&one.invited_by),
        ]);
    }
    table.print(out)?;
    write_line!(out)?;
    Ok(write_line!(
        out,
        "Compare KEY with what `join` shows there, then: xpando-node requests approve|deny REQUEST"
    )?)
}

pub(super) fn release(args: &ReleaseArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let node = args.node.clone();
    let revoked: usize = ask(&args.which.find()?, &Request::Release { node })?;
    let name = &args.node;
    Ok(match revoked {
        0 => write_line!(out, "{name} was free already: all its certificates were revoked before"),
        1 => write_line!(out, "{name} is free: its certificate is revoked"),
        many => write_line!(out, "{name} is free: its {many} certificates are revoked"),
    }?)
}
