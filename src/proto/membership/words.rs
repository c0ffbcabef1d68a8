//! What the machine hears and says, and its settings.

use std::net::SocketAddr;
use std::time::Duration;

use strum::IntoStaticStr;

use crate::proto::backoff;
use crate::proto::event::{Author, Event, Source};
use crate::proto::frame::CloseReason;
use crate::proto::hello::{Hello, Refusal};
use crate::proto::node::{Contact, Credential, Incarnation, NodeName};

/// Settings of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Outbound attempts at once.
    pub dials: usize,
    /// Waits between dials of one peer.
    pub backoff: backoff::Config,
    /// A link that held this long clears the failures before it.
    pub steady: Duration,
    /// Wait for the other side's dial after ours lost to it.
    pub crossed: Duration,
    /// How long a peer that left is remembered.
    pub tombstone: Duration,
    /// Peers known at most; hints beyond it are dropped.
    pub peers: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            dials: 4,
            backoff: backoff::Config::default(),
            steady: Duration::from_secs(30),
            crossed: Duration::from_secs(1),
            tombstone: Duration::from_secs(24 * 3600),
            peers: 1024,
        }
    }
}

/// One connection attempt; the attempt that both sides agreed on names the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AttemptId {
    /// Dialed by this node.
    Outbound(u64),
    /// Accepted by this node.
    Inbound(u64),
}

/// Why an attempt ended before it became a link.
#[derive(Clone, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Failure {
    /// Nobody listens there.
    Refused,
    /// No answer in time, or no way to get there.
    Unreachable(String),
    /// Somebody answers, but not as a node of this cluster.
    Rejected(String),
    /// A node of another cluster answers: which, and which is ours.
    OtherCluster(String),
    /// The other side refused in the hello.
    RefusedBy(Refusal),
    /// The other side closed without a word.
    Closed,
    /// The node that answers is this one, and its certificate is revoked.
    Revoked(NodeName),
    /// The other side refuses this node, because this node's certificate is revoked.
    RefusedAsRevoked,
}

impl Failure {
    /// The failure as a metric label.
    pub fn label(&self) -> &'static str {
        if let Self::RefusedBy(refusal) = self { refusal.label() } else { self.into() }
    }
}

/// Why a link ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEnd {
    /// The peer said why.
    Goodbye(CloseReason),
    /// The connection was closed or reset.
    Closed,
    /// The network let nothing through.
    TimedOut,
    /// The peer broke the protocol; the link was cut for it.
    Fault(String),
}

/// What the machine hears.
#[derive(Clone, Debug)]
pub enum Input {
    /// Somebody says a node is at an address. An incarnation of 0 means: unknown.
    Hint(Contact, Source),
    /// A node's own beacon says where it is; its key, and since when its certificate counts.
    Beacon(Contact, Credential),
    /// An attempt showed a certificate of that name; its next step follows.
    Shown(AttemptId, NodeName, Credential),
    /// A linked peer says that a node is at an address.
    Told(NodeName, Contact),
    /// A `--join` address, whose node's name is not known yet. May be repeated.
    Seed(SocketAddr),
    /// Another process of this node's name was heard, at this address.
    Namesake(SocketAddr),
    /// An outbound attempt read this name in the other side's certificate.
    Connected(AttemptId, NodeName),
    /// An inbound attempt brought a hello that matches its certificate.
    Greeted(AttemptId, Hello),
    /// An outbound attempt was welcomed with a hello that matches its certificate.
    Welcomed(AttemptId, Hello),
    /// The dialer of an inbound attempt confirmed.
    Confirmed(AttemptId),
    /// An attempt ended before it became a link.
    Failed(AttemptId, Failure),
    /// ractor's sessions on a link agree.
    Ready(AttemptId),
    /// A link ended.
    Ended(AttemptId, LinkEnd),
    /// The failure detector gives up a linked peer.
    Silent(NodeName),
    /// A linked peer keeps breaking rules.
    Misbehaved(NodeName),
    /// An operator ends the link to a peer; it is dialed again later, as after any loss.
    Disconnect(NodeName),
    /// A node is forgotten, unless it is linked or lives a later life.
    Forget {
        /// Which.
        name: NodeName,
        /// Its life.
        life: Incarnation,
        /// Whether others knew it here.
        known: bool,
        /// Who had it forgotten.
        author: Option<Author>,
    },
    /// A node is forgotten no more; who hears of it may look for it.
    Revive(NodeName),
    /// The certificate that a link was made with is revoked.
    Revoked(AttemptId),
    /// After a restart of this machine: a link that lives, and whether it is ready.
    Existing(AttemptId, Hello, bool),
    /// Say goodbye to everybody, and take no more links.
    Stop,
    /// The deadline passed.
    Tick,
}

/// What the machine wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Open a connection.
    Dial(AttemptId, SocketAddr),
    /// Take the attempt's next step.
    Proceed(AttemptId),
    /// Tell the other side no, and close.
    Refuse(AttemptId, Refusal),
    /// Close without a word.
    Abandon(AttemptId),
    /// End a link on purpose.
    Close(AttemptId, CloseReason),
    /// Persist this incarnation and use it in every hello from now on.
    Renew(Incarnation),
    /// Tell everybody in this node.
    Announce(Event),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused => f.write_str("connection refused"),
            Self::Unreachable(detail) | Self::Rejected(detail) | Self::OtherCluster(detail) => {
                f.write_str(detail)
            }
            Self::RefusedBy(refusal) => write!(f, "refused by the peer: {refusal}"),
            Self::Closed => f.write_str("closed by the other side during the handshake"),
            Self::Revoked(name) => write!(f, "the certificate of {name} is revoked"),
            Self::RefusedAsRevoked => {
                f.write_str("the other side refuses this node: its certificate is revoked")
            }
        }
    }
}

impl std::fmt::Display for LinkEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Goodbye(CloseReason::Left) => f.write_str("the peer left"),
            Self::Goodbye(CloseReason::Replaced) => f.write_str("replaced by a newer link"),
            Self::Goodbye(CloseReason::Silent) => f.write_str("the peer had not heard this node"),
            Self::Goodbye(CloseReason::Disconnected) => {
                f.write_str("an operator at the peer ended it")
            }
            Self::Goodbye(CloseReason::Misbehaved) => {
                f.write_str("the peer says this node breaks rules")
            }
            Self::Goodbye(CloseReason::Revoked) => {
                f.write_str("the peer says this node's certificate is revoked")
            }
            Self::Goodbye(CloseReason::Renewed) => f.write_str("the peer renews its incarnation"),
            Self::Closed => f.write_str("connection closed"),
            Self::TimedOut => f.write_str("the network lets nothing through"),
            Self::Fault(detail) => f.write_str(detail),
        }
    }
}
