//! Where a peer stands, and why it is offline.

use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

/// Where a peer stands, as this node sees it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, IntoStaticStr,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "snake_case")]
pub enum Status {
    /// Known, and being dialed for the first time or right after a loss.
    Connecting,
    /// Both sides agreed on the link; ractor's sessions are exchanging their state.
    Syncing,
    /// Linked: messages flow.
    Online,
    /// Not linked; dialed again and again unless it left.
    Offline,
}

/// Why a peer is offline.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, IntoStaticStr,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// It said goodbye.
    Left,
    /// Its link closed and nobody listens at its address any more.
    Crashed,
    /// It does not answer.
    Unreachable,
    /// It answers, but the link is refused: identity or protocol.
    Rejected,
    /// A later life of it is announced, and not linked yet.
    Replaced,
    /// The authority has revoked its certificate.
    Revoked,
    /// An operator ended the link.
    Disconnected,
}

impl Status {
    /// The status as the API spells it.
    #[must_use]
    pub fn label(self) -> &'static str {
        self.into()
    }
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Left,
        Self::Crashed,
        Self::Unreachable,
        Self::Rejected,
        Self::Replaced,
        Self::Revoked,
        Self::Disconnected,
    ];

    /// The reason as the API spells it.
    pub fn label(self) -> &'static str {
        self.into()
    }
}
