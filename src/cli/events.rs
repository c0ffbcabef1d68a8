//! `xpando-node events`: what happened, as one node noted it or all did; whether it is as it was written.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use xpando_node::internals::gateway::admin::Request;
use xpando_node::internals::gateway::history::Merged;
use xpando_node::internals::io::identity::{CertificateVerifier, Signers};
use xpando_node::internals::io::store::{Chain, Store};
use xpando_node::internals::io::{clock, places, sockets};
use xpando_node::internals::proto::chain::Verified;
use xpando_node::internals::proto::event::{Event, MAX_EVENTS, Page, Query, Recorded};
use xpando_node::internals::proto::node::NodeName;

use super::ask::{Which, ask, open};
use super::output::{self, write_line};
use super::query::uptime;
use super::token::lifetime;
use super::watch::{self, described};

/// Events that are shown, unless another number is asked for.
const SHOWN: usize = 100;
/// The longest that a node may walk its trail: it has some hundred MiB, and perhaps a slow disk.
const WALK: Duration = Duration::from_secs(600);
/// A stamp so many seconds ahead of the clock is told as such.
const AHEAD: u64 = 60;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct EventsArgs {
    #[command(flatten)]
    which: Which,

    #[command(flatten)]
    wanted: WantedArgs,

    /// How many at most, the latest [default: 100, or all with --since]
    #[arg(short = 'n', long, value_name = "N", value_parser = many)]
    limit: Option<usize>,

    /// Go on with what happens from now on, until the node ends
    #[arg(long, conflicts_with_all = ["all", "until"])]
    follow: bool,

    /// Of all nodes, in one order: what could have caused another comes before it
    #[arg(long)]
    all: bool,

    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,

    #[command(subcommand)]
    command: Option<EventsCommand>,
}

/// Which events.
#[derive(Debug, Args)]
struct WantedArgs {
    /// Of this type alone
    #[arg(long = "type", value_name = "TYPE", value_parser = PossibleValuesParser::new(Event::LABELS), hide_possible_values = true)]
    label: Option<String>,

    /// About this node alone
    #[arg(long, value_name = "NAME@HOST")]
    node: Option<NodeName>,

    /// Not before this time: as in RFC 3339, or so long ago (15m, 2h, 7d)
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<u64>,

    /// Before this time, likewise
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<u64>,
}

#[derive(Debug, Subcommand)]
enum EventsCommand {
    /// Check that the stored events are as the node wrote them; a node that does not run is found by --name or --data-dir
    Verify {
        #[command(flatten)]
        which: Which,

        /// Certificate directory, for a node that does not run [default:
        /// $XDG_CONFIG_HOME/xpando/certs]
        #[arg(long, value_name = "DIR", env = "XPANDO_CERTS")]
        certs: Option<PathBuf>,
    },
    /// Print all stored events as JSON, one object a line
    Export {
        #[command(flatten)]
        which: Which,

        #[command(flatten)]
        wanted: WantedArgs,
    },
}

/// A time of an argument, in milliseconds since 1970.
fn time(text: &str) -> Result<u64, String> {
    if let Some(at) = clock::read_rfc3339(text) {
        return Ok(at);
    }
    let ago = lifetime(text).map_err(
        |_bad| "neither a time such as 2026-01-02T03:04:05Z nor so long ago, such as 15m",
    )?;
    let ago = u64::try_from(ago.as_millis()).map_err(|error| error.to_string())?;
    Ok(clock::millis().saturating_sub(ago))
}

fn many(text: &str) -> Result<usize, String> {
    let many = text.parse().ok().filter(|many| (1..=MAX_EVENTS).contains(many));
    many.ok_or_else(|| format!("not within 1 and {MAX_EVENTS}; --since and export have no limit"))
}

impl WantedArgs {
    fn query(&self, after: Option<u64>, limit: usize) -> Query {
        let Self { label, node, since, until } = self;
        let (label, node) = (label.clone(), node.clone());
        Query { after, limit, label, node, since: *since, until: *until }
    }
}

/// Where events are read: from a node that runs, or from the file that it left.
enum Source {
    Node(PathBuf),
    File(Chain),
}

impl Source {
    fn find(which: &Which) -> anyhow::Result<Self> {
        let directory = which.find_stopped()?;
        if sockets::connect(&directory).is_ok() {
            return Ok(Self::Node(directory));
        }
        let store = Store::inspect(&directory)?;
        let chain = Chain::found(Arc::new(store))?;
        let chain =
            chain.with_context(|| format!("no event is stored in {}", directory.display()))?;
        Ok(Self::File(chain))
    }

    fn page(&self, request: Request) -> anyhow::Result<Page> {
        match (self, request) {
            (Self::Node(directory), request) => ask(directory, &request),
            (Self::File(chain), Request::Events(query) | Request::Export(query)) => {
                Ok(chain.read(&query)?)
            }
            (Self::File(_), _) => bail!("only a node that runs answers this"),
        }
    }

    /// All that is wanted, oldest first; then the number of the last one.
    fn each(
        &self,
        wanted: &WantedArgs,
        ask: fn(Query) -> Request,
        mut show: impl FnMut(&Recorded) -> anyhow::Result<()>,
    ) -> anyhow::Result<u64> {
        let mut after = 0;
        loop {
            let page = self.page(ask(wanted.query(Some(after), MAX_EVENTS)))?;
            page.events.iter().try_for_each(&mut show)?;
            if page.events.len() < MAX_EVENTS {
                return Ok(page.next);
            }
            after = page.next;
        }
    }
}

pub(super) fn events(args: &EventsArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    match &args.command {
        Some(EventsCommand::Verify { which, certs }) => {
            return verify(which, certs.as_deref(), out);
        }
        Some(EventsCommand::Export { which, wanted }) => {
            let print = |event: &Recorded| output::json(out, event);
            let source = Source::find(which)?;
            return source.each(wanted, Request::Export, print).map(|_last| ());
        }
        None => {}
    }
    if args.all {
        return everywhere(args, out);
    }
    let source = Source::find(&args.which)?;
    let mut print = |event: &Recorded| show(event, args.json, out);
    let last = match (args.limit, args.wanted.since) {
        (None, Some(_)) => source.each(&args.wanted, Request::Events, print)?,
        (limit, _) => {
            let query = args.wanted.query(None, limit.unwrap_or(SHOWN));
            let page = source.page(Request::Events(query))?;
            page.events.iter().try_for_each(&mut print)?;
            page.next
        }
    };
    match source {
        Source::Node(directory) if args.follow => follow(&directory, last, args, out),
        Source::File(_) if args.follow => bail!("the node does not run: nothing more happens"),
        Source::Node(_) | Source::File(_) => Ok(()),
    }
}

fn show(event: &Recorded, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    if json { output::json(out, event) } else { Ok(write_line!(out, "{}", described(event))?) }
}

fn follow(
    directory: &Path,
    after: u64,
    args: &EventsArgs,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let request = Request::Watch(args.wanted.query(Some(after), MAX_EVENTS));
    let (_node, lines) = watch::follow(directory, &request)?;
    out.flush()?;
    for line in lines {
        show(&serde_json::from_str(&line?)?, args.json, out)?;
        out.flush()?;
    }
    bail!("the node has ended")
}

/// The events of all nodes; those that did not answer are named on standard error.
fn everywhere(args: &EventsArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let query = args.wanted.query(None, args.limit.unwrap_or(SHOWN));
    let merged: Merged = ask(&args.which.find()?, &Request::EventsAll(query))?;
    let by = |event: &Recorded| event.noted_by.as_ref().map_or("", NodeName::as_str).to_owned();
    let width = merged.events.iter().map(|event| by(event).len()).max().unwrap_or(0);
    let wall = clock::millis();
    for event in &merged.events {
        if args.json {
            output::json(out, event)?;
        } else {
            let ahead = event.stamp.millis.saturating_sub(wall) / 1000;
            let note = if ahead > AHEAD {
                format!(" (its stamp is {} ahead of this clock)", uptime(ahead))
            } else {
                String::new()
            };
            write_line!(out, "{:width$}  {}{note}", by(event), described(event))?;
        }
    }
    out.flush()?;
    for missing in &merged.missing {
        output::notice(format_args!("no events of {}: {}", missing.node, missing.why));
    }
    Ok(())
}

fn verify(which: &Which, certs: Option<&Path>, out: &mut dyn Write) -> anyhow::Result<()> {
    let verified = match Source::find(which)? {
        Source::Node(directory) => open(&directory, &Request::Verify, &[], WALK)?.1,
        Source::File(chain) => {
            let certs = certs.map_or_else(places::certs, |certs| Ok(certs.to_owned()))?;
            let verifier = CertificateVerifier::load(&certs)?;
            let signers = Signers::of(&verifier, chain.node(), &chain.signers()?);
            chain.verify(|message, signature| signers.signed(message, signature))?
        }
    };
    let Verified { forgotten, lasting, last, proved } = verified;
    if last == forgotten {
        return Ok(write_line!(
            out,
            "no event is stored; {forgotten} were forgotten in their time"
        )?);
    }
    write_line!(out, "events {} to {last} are as they were written", forgotten + 1)?;
    if proved < last {
        write_line!(
            out,
            "those after {proved} are not signed yet: that some were cut off cannot be seen"
        )?;
    }
    if lasting > 0 {
        write_line!(
            out,
            "of the {forgotten} that were forgotten in their time {lasting} are kept, as they were written"
        )?;
    }
    Ok(())
}
