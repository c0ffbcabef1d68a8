//! `xpando-node rotate`: the cluster's authority, its nodes' certificates or the key of its tokens are replaced while it works.
//!
//! Owns the words of this command.

use std::io::Write;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, ValueEnum};
use xpando_node::internals::gateway::admin::Request;
use xpando_node::internals::gateway::rotation::{
    FormerTokenKey, NextTokenKey, Rotate, RotationStatus, TokenKeys,
};

use super::ask::{Which, ask};
use super::output::{self, Columns, Field, write_line};

/// Between two looks of `--watch`.
const EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct RotateArgs {
    /// What to replace [default: nothing; shows how far a rotation is]
    #[arg(value_enum)]
    what: Option<What>,

    /// Go back: to the authority that the rotation began with, or of tokens to the key that signs, as long as it does
    #[arg(long, conflicts_with = "force")]
    abort: bool,

    /// Do not wait for who is not ready. Of the authority: take the next step; once all trust the new one, it cuts off who has
    /// no certificate of it. Of tokens: the newest key alone counts from now on, and all tokens of earlier ones are refused
    #[arg(long)]
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
    /// The key that signs tokens; those of the key before count until they end
    Tokens,
}

pub(super) fn rotate(args: &RotateArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let directory = args.which.find()?;
    let wish = match (args.what, args.abort, args.force) {
        (Some(What::Nodes), true, _) | (Some(What::Nodes), _, true) => {
            bail!("certificates are renewed at once: there is nothing to abort or to force")
        }
        (None | Some(What::Authority), true, _) => Some(Rotate::Abort),
        (None | Some(What::Authority), false, true) => Some(Rotate::Force),
        (Some(What::Authority), false, false) => Some(Rotate::Authority),
        (Some(What::Nodes), false, false) => Some(Rotate::Nodes),
        (Some(What::Tokens), true, _) => Some(Rotate::AbortTokens),
        (Some(What::Tokens), false, true) => Some(Rotate::ForceTokens),
        (Some(What::Tokens), false, false) => Some(Rotate::Tokens),
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
        let next = status.tokens.as_ref().and_then(|tokens| tokens.next.as_ref());
        if !args.watch || (status.rotation.is_none() && next.is_none()) {
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
    if let Some(tokens) = &status.tokens {
        show_tokens(tokens, out)?;
    }
    let mut table =
        Columns::new(&["NODE", "TRUST LIST", "SIGNED BY", "VALID UNTIL", "TOKEN KEYS", "READY"]);
    for (name, node) in &status.nodes {
        let next = status.tokens.as_ref().and_then(|tokens| tokens.next.as_ref());
        let waits = status.waits_for.contains(name)
            || next.is_some_and(|next| next.waits_for.contains(name));
        let ready = if waits { "no" } else { "yes" };
        let node = node.as_ref();
        table.row([
            Field::new(name),
            Field::or_dash(node.map(|node| node.list)),
            Field::or_dash(node.map(|node| &node.authority)),
            Field::or_dash(node.map(|node| &node.until)),
            Field::or_dash(node.map(|node| node.token_keys.len())),
            Field::new(if node.is_none() { "does not answer" } else { ready }),
        ]);
    }
    table.print(out)?;
    Ok(())
}

fn show_tokens(tokens: &TokenKeys, out: &mut dyn Write) -> anyhow::Result<()> {
    write_line!(out, "tokens are signed by the key {}", tokens.signs)?;
    if let Some(next) = &tokens.next {
        let NextTokenKey { key, began, by, .. } = next;
        write_line!(out, "{by} began at {began}: {key} signs once every node knows it")?;
    }
    for FormerTokenKey { key, until } in &tokens.former {
        write_line!(out, "tokens of the key {key} count until they end, by {until} at the latest")?;
    }
    Ok(())
}
