//! Revoking certificates through a running node.

use std::io::Write;

use clap::Args;
use xpando_node::internals::gateway::admin::Request;
use xpando_node::internals::gateway::status::RevokedStatus;

use super::ask::{Which, ask};
use super::output::write_line;

#[derive(Debug, Args)]
pub(super) struct RevokeArgs {
    #[command(flatten)]
    which: Which,

    /// The node, all of whose certificates are revoked, or the serial number of one certificate
    #[arg(value_name = "NAME@HOST|SERIAL")]
    certificates: String,

    /// Why, for the trail; key-compromise, affiliation-changed, superseded, cessation-of-operation and privilege-withdrawn are
    /// in the revocation list, too
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// Asks a running node, in whose certificate directory the authority's key is.
pub(super) fn revoke(args: &RevokeArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let (certificates, why) = (args.certificates.clone(), args.reason.clone());
    let request = Request::Revoke { certificates, why };
    let revoked: RevokedStatus = ask(&args.which.find()?, &request)?;
    if revoked.added.is_empty() {
        write_line!(out, "nothing new: it was revoked before")?;
    }
    for serial in &revoked.added {
        write_line!(out, "revoked      serial {serial}")?;
    }
    write_line!(out, "list         {}  ({} in all)", revoked.list, revoked.total)?;
    write_line!(out)?;
    Ok(write_line!(out, "It is in force here, and goes to every linked node at once.")?)
}
