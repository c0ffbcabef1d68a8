//! What happens in a cluster, in the words that logs, the CLI and the API use.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::proto::node::{Incarnation, NodeName};

/// Where a peer stands, as this node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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
        match self {
            Self::Connecting => "connecting",
            Self::Syncing => "syncing",
            Self::Online => "online",
            Self::Offline => "offline",
        }
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
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Crashed => "crashed",
            Self::Unreachable => "unreachable",
            Self::Rejected => "rejected",
            Self::Replaced => "replaced",
            Self::Revoked => "revoked",
            Self::Disconnected => "disconnected",
        }
    }
}

/// Why a link is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The hello names another node than the certificate.
    #[error("the hello names another node than the certificate")]
    Name,
    /// The hello names another cluster.
    #[error("the hello names another cluster")]
    Cluster,
    /// A later life of that node is known, or another process with the same incarnation.
    #[error("incarnation {known} of this node is known{}", linked.map_or_else(String::new, |at| format!(" and linked, at {at}")))]
    Stale {
        /// The latest known incarnation.
        known: Incarnation,
        /// Where that life is linked at this moment.
        linked: Option<SocketAddr>,
    },
    /// Both dialed at once, and the other connection wins.
    #[error("crossed dial: the other connection is kept")]
    Crossed,
    /// The node dialed itself.
    #[error("this is the node itself")]
    Myself,
    /// The refusing node is about to stop.
    #[error("the node is leaving")]
    Leaving,
    /// The peer is not wanted: it speaks out of turn.
    #[error("unexpected message")]
    Unexpected,
}

impl Refusal {
    /// Another process uses the name of the refused node.
    #[must_use]
    pub fn is_of_namesake(self) -> bool {
        matches!(self, Self::Stale { linked: Some(_), .. })
    }

    /// The refusal as a metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Cluster => "cluster",
            Self::Stale { .. } => "stale",
            Self::Crossed => "crossed",
            Self::Myself => "self",
            Self::Leaving => "leaving",
            Self::Unexpected => "unexpected",
        }
    }
}

/// What is broken, when the evidence names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Broken {
    /// The way from here to the peer: it is heard, but what is sent to it gets no acknowledgement.
    /// (Without acknowledgements TCP carries nothing, in either direction.)
    WayThere,
    /// The way from the peer to here: others hear it, and nothing of it arrives. Nothing is known of
    /// the way there.
    WayBack,
    /// Neither: its machine acknowledges everything, but the process says nothing.
    Process,
}

impl Broken {
    /// The finding as the API spells it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::WayThere => "way_there",
            Self::WayBack => "way_back",
            Self::Process => "process",
        }
    }
}

/// What can be revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Revocable {
    /// Nodes' certificates.
    Certificates,
    /// Clients' tokens.
    Tokens,
}

/// How this node learned of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A beacon of the node itself.
    Beacon,
    /// `--join`.
    Seed,
    /// Another peer told.
    Peer,
    /// An earlier run of this node.
    Remembered,
    /// The node itself, on a link.
    Link,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A node was heard of for the first time.
    PeerDiscovered {
        /// Which.
        peer: NodeName,
        /// Where it is said to be.
        address: SocketAddr,
        /// Who says so.
        source: Source,
    },
    /// A peer is dialed for the first time, or right after its link was lost.
    PeerConnecting {
        /// Which.
        peer: NodeName,
    },
    /// Both sides agreed on a link.
    PeerSyncing {
        /// Which.
        peer: NodeName,
        /// Its life.
        incarnation: Incarnation,
        /// Where.
        address: SocketAddr,
    },
    /// A peer is linked.
    PeerOnline {
        /// Which.
        peer: NodeName,
        /// Its life.
        incarnation: Incarnation,
        /// Where.
        address: SocketAddr,
    },
    /// A peer is gone.
    PeerOffline {
        /// Which.
        peer: NodeName,
        /// Why.
        reason: Reason,
    },
    /// A node is forgotten: nobody looks for it any more.
    PeerForgotten {
        /// Which.
        peer: NodeName,
    },
    /// A linked peer is doubted: it has not been heard for too long.
    PeerSuspected {
        /// Which.
        peer: NodeName,
        /// Suspicion level.
        phi: f64,
        /// Beats that should have come.
        missed: u64,
    },
    /// A doubted peer was heard again.
    PeerCleared {
        /// Which.
        peer: NodeName,
    },
    /// A doubted peer stayed silent and is given up.
    PeerSilent {
        /// Which.
        peer: NodeName,
        /// Suspicion level.
        phi: f64,
        /// Beats that should have come.
        missed: u64,
        /// Peers that still hear it.
        heard_by: Vec<NodeName>,
        /// Peers that do not hear it either.
        confirmed_by: Vec<NodeName>,
        /// What is broken, when it can be told.
        broken: Option<Broken>,
    },
    /// This node was away for a while (stopped, starved, asleep) and doubts itself first.
    Paused {
        /// For how many milliseconds.
        millis: u64,
    },
    /// A live link gave way to a newer one of the same peer.
    LinkReplaced {
        /// Which.
        peer: NodeName,
        /// The life that the newer link belongs to.
        incarnation: Incarnation,
    },
    /// A link was lost; the peer is dialed at once.
    LinkLost {
        /// Which peer's.
        peer: NodeName,
        /// What ended it.
        cause: String,
    },
    /// Another node's side of a link changed, as the link matrix tells.
    LinkChanged {
        /// Who sees.
        from: NodeName,
        /// Whom.
        to: NodeName,
        /// How.
        state: Status,
        /// Whether it is doubted.
        suspect: bool,
        /// Why it is offline.
        reason: Option<Reason>,
    },
    /// This node refused a peer.
    LinkRefused {
        /// Which.
        peer: NodeName,
        /// Why.
        refusal: Refusal,
    },
    /// A peer refused this node.
    RefusedBy {
        /// Which.
        peer: NodeName,
        /// Why.
        refusal: Refusal,
    },
    /// A peer refuses this node, because this node's certificate is revoked.
    CertificateRefused {
        /// Which peer.
        peer: NodeName,
    },
    /// A dial failed in a way that differs from the one before.
    DialFailed {
        /// The peer, when it is known.
        peer: Option<NodeName>,
        /// Where.
        address: SocketAddr,
        /// What went wrong.
        cause: String,
    },
    /// A `--join` address turned out to be this node itself.
    SeedIsMyself {
        /// The address.
        address: SocketAddr,
    },
    /// Another process uses this node's name: its peers link with one of the two.
    NameInUse {
        /// Where that process is.
        address: SocketAddr,
    },
    /// The node goes on under a higher incarnation, because peers know of a later life than its
    /// own data directory does.
    IncarnationRaised {
        /// The new incarnation.
        to: Incarnation,
    },
    /// This node starts.
    NodeStarted {
        /// Its life.
        incarnation: Incarnation,
        /// Of the program.
        version: String,
    },
    /// This node says goodbye and stops.
    NodeStopping,
    /// An actor ended and is started again, or its supervisor gives up.
    ActorEnded {
        /// Which.
        actor: String,
        /// Why.
        why: String,
        /// Whether it is started again.
        restarted: bool,
    },
    /// This node's key and certificate were read.
    IdentityLoaded {
        /// The id of the key, in hexadecimal.
        id: String,
        /// The id of the authority's key.
        cluster: String,
        /// Whether the authority was made up for development.
        development: bool,
    },
    /// There is a new list of revoked certificates, and it is in force.
    CertificatesRevoked {
        /// How many it names.
        certificates: usize,
        /// Whether this node's own is one of them.
        own: bool,
    },
    /// There is a new list of revoked tokens, and it is in force.
    TokensRevoked {
        /// How many it names.
        tokens: usize,
    },
    /// A list of revoked certificates or tokens cannot be used: the one before stays in force.
    RevocationsRefused {
        /// Of certificates or of tokens.
        list: Revocable,
        /// What is wrong with it.
        why: String,
    },
    /// The store's file was damaged: it is kept under another name, and what it held is not remembered.
    StoreSetAside {
        /// The other name.
        path: String,
    },
    /// The store cannot be written: nothing is remembered for now.
    StoreFailing {
        /// What the disk says.
        why: String,
    },
    /// The store can be written again.
    StoreRecovered,
    /// So many events had no room while the store could not be written: they were logged, and are in no trail.
    EventsLost {
        /// How many.
        count: u64,
    },
}

impl Event {
    /// The types of events, as the API spells them.
    pub const LABELS: [&str; 31] = [
        "peer_discovered",
        "peer_connecting",
        "peer_syncing",
        "peer_online",
        "peer_offline",
        "peer_forgotten",
        "peer_suspected",
        "peer_cleared",
        "peer_silent",
        "paused",
        "link_replaced",
        "link_lost",
        "link_changed",
        "link_refused",
        "refused_by",
        "certificate_refused",
        "dial_failed",
        "seed_is_myself",
        "name_in_use",
        "incarnation_raised",
        "node_started",
        "node_stopping",
        "actor_ended",
        "identity_loaded",
        "certificates_revoked",
        "tokens_revoked",
        "revocations_refused",
        "store_set_aside",
        "store_failing",
        "store_recovered",
        "events_lost",
    ];

    /// The type, as the API spells it.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::PeerDiscovered { .. } => "peer_discovered",
            Self::PeerConnecting { .. } => "peer_connecting",
            Self::PeerSyncing { .. } => "peer_syncing",
            Self::PeerOnline { .. } => "peer_online",
            Self::PeerOffline { .. } => "peer_offline",
            Self::PeerForgotten { .. } => "peer_forgotten",
            Self::PeerSuspected { .. } => "peer_suspected",
            Self::PeerCleared { .. } => "peer_cleared",
            Self::PeerSilent { .. } => "peer_silent",
            Self::Paused { .. } => "paused",
            Self::LinkReplaced { .. } => "link_replaced",
            Self::LinkLost { .. } => "link_lost",
            Self::LinkChanged { .. } => "link_changed",
            Self::LinkRefused { .. } => "link_refused",
            Self::RefusedBy { .. } => "refused_by",
            Self::CertificateRefused { .. } => "certificate_refused",
            Self::DialFailed { .. } => "dial_failed",
            Self::SeedIsMyself { .. } => "seed_is_myself",
            Self::NameInUse { .. } => "name_in_use",
            Self::IncarnationRaised { .. } => "incarnation_raised",
            Self::NodeStarted { .. } => "node_started",
            Self::NodeStopping => "node_stopping",
            Self::ActorEnded { .. } => "actor_ended",
            Self::IdentityLoaded { .. } => "identity_loaded",
            Self::CertificatesRevoked { .. } => "certificates_revoked",
            Self::TokensRevoked { .. } => "tokens_revoked",
            Self::RevocationsRefused { .. } => "revocations_refused",
            Self::StoreSetAside { .. } => "store_set_aside",
            Self::StoreFailing { .. } => "store_failing",
            Self::StoreRecovered => "store_recovered",
            Self::EventsLost { .. } => "events_lost",
        }
    }

    /// Whether it is about a node.
    #[must_use]
    pub fn concerns(&self, node: &NodeName) -> bool {
        let seen = matches!(self, Self::LinkChanged { to, .. } if to == node);
        seen || self.node() == Some(node)
    }

    /// The node that it is about, when there is one; of a link that of its two ends which sees the other.
    #[must_use]
    pub fn node(&self) -> Option<&NodeName> {
        match self {
            Self::LinkChanged { from: peer, .. }
            | Self::PeerDiscovered { peer, .. }
            | Self::PeerConnecting { peer, .. }
            | Self::PeerSyncing { peer, .. }
            | Self::PeerOnline { peer, .. }
            | Self::PeerOffline { peer, .. }
            | Self::PeerForgotten { peer }
            | Self::PeerSuspected { peer, .. }
            | Self::PeerCleared { peer, .. }
            | Self::PeerSilent { peer, .. }
            | Self::LinkReplaced { peer, .. }
            | Self::LinkLost { peer, .. }
            | Self::LinkRefused { peer, .. }
            | Self::RefusedBy { peer, .. }
            | Self::CertificateRefused { peer, .. } => Some(peer),
            Self::DialFailed { peer, .. } => peer.as_ref(),
            Self::Paused { .. }
            | Self::SeedIsMyself { .. }
            | Self::NameInUse { .. }
            | Self::IncarnationRaised { .. }
            | Self::NodeStarted { .. }
            | Self::NodeStopping
            | Self::ActorEnded { .. }
            | Self::IdentityLoaded { .. }
            | Self::CertificatesRevoked { .. }
            | Self::TokensRevoked { .. }
            | Self::RevocationsRefused { .. }
            | Self::StoreSetAside { .. }
            | Self::StoreFailing { .. }
            | Self::StoreRecovered
            | Self::EventsLost { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_the_tags_that_serde_writes() {
        let peer: NodeName = "b@127.0.0.1".parse().expect("valid");
        let why = String::new;
        let events = [
            Event::PeerConnecting { peer: peer.clone() },
            Event::LinkLost { peer, cause: why() },
            Event::NodeStopping,
            Event::ActorEnded { actor: why(), why: why(), restarted: true },
            Event::StoreRecovered,
            Event::EventsLost { count: 3 },
        ];
        for event in events {
            let json = serde_json::to_value(&event).expect("plain");
            assert_eq!(json["event"], event.label());
            assert!(Event::LABELS.contains(&event.label()), "{event:?}");
        }
        // Every label is a tag, and there is no other: serde lists all tags when it meets a foreign one.
        let foreign = serde_json::from_str::<Event>(r#"{"event":"?"}"#).expect_err("foreign");
        let tags: Vec<_> =
            foreign.to_string().split('`').skip(1).step_by(2).map(str::to_owned).collect();
        assert_eq!(tags[1..], Event::LABELS);
    }
}
