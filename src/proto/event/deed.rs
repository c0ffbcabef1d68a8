//! What operators have a node do.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::proto::node::NodeName;

/// What an operator has a node do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "deed", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Deed {
    /// Has a node forgotten, here and everywhere.
    Forget {
        /// Which.
        peer: NodeName,
    },
    /// Has a node that is forgotten known again.
    Restore {
        /// Which.
        peer: NodeName,
    },
    /// Ends the link to a peer.
    Disconnect {
        /// Which.
        peer: NodeName,
    },
    /// Revokes certificates.
    Revoke {
        /// A node, or a serial number.
        certificates: String,
        /// Why, in the operator's words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// Sends all clients to other nodes, and takes no more.
    Drain,
    /// Takes clients again.
    Undrain,
    /// Has the authority replaced or the nodes' certificates renewed, or takes that back.
    Rotate {
        /// What: `authority`, `nodes`, `abort` or `force`.
        what: String,
    },
    /// Invites machines: whoever has the line gets a certificate.
    Invite {
        /// The id of the invitation.
        invitation: String,
        /// The pattern of names that it is for.
        names: String,
        /// How many certificates it is good for.
        uses: u32,
        /// Whether each request waits for approval.
        approval: bool,
    },
    /// Lets a machine have the certificate that it asks for.
    Approve {
        /// The name that it asks for.
        peer: NodeName,
        /// The id of its request.
        request: String,
    },
    /// Denies a machine the certificate that it asks for.
    Deny {
        /// The name that it asks for.
        peer: NodeName,
        /// The id of its request.
        request: String,
    },
    /// Revokes what was issued to a name, so that another key may have it.
    Release {
        /// Which.
        peer: NodeName,
    },
    /// Kills an actor, in a node that was started for that.
    Kill {
        /// Which.
        actor: String,
    },
}

impl Deed {
    /// The other node that it is about.
    pub fn about(&self) -> Option<&NodeName> {
        match self {
            Self::Forget { peer }
            | Self::Restore { peer }
            | Self::Disconnect { peer }
            | Self::Approve { peer, .. }
            | Self::Deny { peer, .. }
            | Self::Release { peer } => Some(peer),
            Self::Revoke { .. }
            | Self::Drain
            | Self::Undrain
            | Self::Rotate { .. }
            | Self::Invite { .. }
            | Self::Kill { .. } => None,
        }
    }
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forget { peer } => write!(f, "has {peer} forgotten"),
            Self::Restore { peer } => write!(f, "has {peer} known again"),
            Self::Disconnect { peer } => write!(f, "ends the link to {peer}"),
            Self::Revoke { certificates, why: None } => write!(f, "revokes {certificates}"),
            Self::Revoke { certificates, why: Some(why) } => {
                write!(f, "revokes {certificates} ({why})")
            }
            Self::Drain => f.write_str("sends clients to other nodes"),
            Self::Undrain => f.write_str("has clients taken again"),
            Self::Rotate { what } => write!(f, "rotates: {what}"),
            Self::Invite { invitation, names, uses, approval } => {
                let approval = if *approval { ", each to be approved" } else { "" };
                write!(
                    f,
                    "invites {uses} nodes named like {names}{approval} (invitation {invitation})"
                )
            }
            Self::Approve { peer, request } => write!(f, "approves request {request} of {peer}"),
            Self::Deny { peer, request } => write!(f, "denies request {request} of {peer}"),
            Self::Release { peer } => {
                write!(f, "releases the name {peer}: its certificates are revoked")
            }
            Self::Kill { actor } => write!(f, "kills the actor {actor}"),
        }
    }
}
