//! What a certificate lets a node do, as it is said on the command line.

use clap::{Args, ValueEnum};
use xpando_node::internals::proto::capability::{Capabilities, CapabilitiesError};
use xpando_node::internals::proto::topic::Pattern;

/// More than a member may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Capability {
    /// Nothing more
    Member,
    /// Have nodes forgotten
    Operate,
    /// Answer requests for certificates, where the authority's key is
    Issue,
}

/// The options of all commands that grant a certificate.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Can {
    /// What the node may do beside what every member does; several with commas
    #[arg(long, value_name = "WHAT", value_delimiter = ',', value_enum)]
    can: Vec<Capability>,

    /// Make it an edge: it publishes, serves and joins groups only where a topic or name is like this one; may be repeated
    #[arg(long, value_name = "PATTERN", conflicts_with = "can")]
    edge: Vec<Pattern>,
}

impl Can {
    /// What the options say, if anything.
    pub(super) fn capabilities(&self) -> Result<Option<Capabilities>, CapabilitiesError> {
        if !self.edge.is_empty() {
            return Capabilities::edge(self.edge.clone()).map(Some);
        }
        let (operate, issue) =
            (self.can.contains(&Capability::Operate), self.can.contains(&Capability::Issue));
        Ok((!self.can.is_empty()).then_some(Capabilities::Member { operate, issue }))
    }
}
