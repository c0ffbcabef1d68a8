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
    /// Sends all clients to other nodes, and takes no more.
    Drain,
    /// Takes clients again.
    Undrain,
    /// Has the authority replaced or the nodes' certificates renewed, or takes that back.
    Rotate {
        /// What: `authority`, `nodes`, `abort` or `force`.
        what: String,
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
            Self::Forget { peer } | Self::Restore { peer } | Self::Disconnect { peer } => {
                Some(peer)
            }
            Self::Drain | Self::Undrain | Self::Rotate { .. } | Self::Kill { .. } => None,
        }
    }
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forget { peer } => write!(f, "has {peer} forgotten"),
            Self::Restore { peer } => write!(f, "has {peer} known again"),
            Self::Disconnect { peer } => write!(f, "ends the link to {peer}"),
            Self::Drain => f.write_str("sends clients to other nodes"),
            Self::Undrain => f.write_str("has clients taken again"),
            Self::Rotate { what } => write!(f, "rotates: {what}"),
            Self::Kill { actor } => write!(f, "kills the actor {actor}"),
        }
    }
}
