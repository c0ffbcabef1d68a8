//! What happens in a cluster, in the words that logs, the CLI and the API use.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use strum::IntoStaticStr;

use crate::proto::node::{Incarnation, KeyId, NodeName};

mod deed;
mod limit;
mod operator;
mod recorded;
mod status;
mod table;

pub use deed::Deed;
pub use limit::Limiter;
pub use operator::{Author, Operator, OperatorError};
pub use recorded::{MAX_EVENTS, MAX_RECORD, Page, Query, Recorded};
pub use status::{Reason, Status};

/// Why a link is refused.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error, IntoStaticStr,
)]
#[strum(serialize_all = "snake_case")]
#[non_exhaustive]
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
    #[strum(serialize = "self")]
    Myself,
    /// The refusing node is about to stop.
    #[error("the node is leaving")]
    Leaving,
    /// The peer is not wanted: it speaks out of turn.
    #[error("unexpected message")]
    Unexpected,
    /// A certificate of that name with another key was issued later.
    #[error("key {shown} of this node gave way to {known}, whose certificate was issued later")]
    Superseded {
        /// The later key.
        known: KeyId,
        /// The one that was shown.
        shown: KeyId,
    },
}

impl Refusal {
    /// Another process uses the name of the refused node.
    pub(crate) fn is_of_namesake(self) -> bool {
        matches!(self, Self::Stale { linked: Some(_), .. })
    }

    /// The refusal as a metric label.
    pub fn label(self) -> &'static str {
        self.into()
    }
}

/// What is broken, when the evidence names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
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
    pub fn label(self) -> &'static str {
        self.into()
    }
}

/// What can be revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Revocable {
    /// Nodes' certificates.
    Certificates,
    /// The authorities that are trusted.
    Trust,
    /// Clients' tokens.
    Tokens,
}

/// How this node learned of an address.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, IntoStaticStr,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "snake_case")]
#[non_exhaustive]
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

impl Source {
    /// The source as the API spells it.
    pub fn label(self) -> &'static str {
        self.into()
    }
}

/// How many links are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Tally {
    /// Online, and not doubted.
    pub online: usize,
    /// Linked and doubted.
    pub suspect: usize,
    /// Agreed on.
    pub syncing: usize,
    /// Dialed.
    pub connecting: usize,
    /// Not linked.
    pub offline: usize,
}

impl Tally {
    /// Counts one more.
    pub(crate) fn add(&mut self, state: Status, suspect: bool) {
        *match state {
            _ if suspect => &mut self.suspect,
            Status::Online => &mut self.online,
            Status::Syncing => &mut self.syncing,
            Status::Connecting => &mut self.connecting,
            Status::Offline => &mut self.offline,
        } += 1;
    }
}

/// `97 online, 2 offline`.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { online, suspect, syncing, connecting, offline } = *self;
        let states = [
            (online, Status::Online.label()),
            (suspect, "suspect"),
            (syncing, Status::Syncing.label()),
            (connecting, Status::Connecting.label()),
            (offline, Status::Offline.label()),
        ];
        let some = states.iter().filter(|(count, _)| *count > 0);
        some.zip(std::iter::once("").chain(std::iter::repeat(", ")))
            .try_for_each(|((count, state), before)| write!(f, "{before}{count} {state}"))
    }
}

/// How much an event matters to an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// A step on the way, or the view of another node.
    Debug,
    /// A change of state.
    Info,
    /// To be looked at.
    Warn,
    /// Something is lost or given up.
    Error,
}

/// Something that happened. `event/table.rs` holds the label, level, subject and text of each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
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
        #[serde(rename = "peer_incarnation", alias = "incarnation")]
        incarnation: Incarnation,
        /// Where.
        address: SocketAddr,
    },
    /// A peer is linked.
    PeerOnline {
        /// Which.
        peer: NodeName,
        /// Its life.
        #[serde(rename = "peer_incarnation", alias = "incarnation")]
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
        /// Who had it forgotten, where that is known.
        #[serde(flatten)]
        author: Option<Author>,
    },
    /// A node that was forgotten is known again: somebody took that back.
    PeerRestored {
        /// Which.
        peer: NodeName,
        /// Who did.
        #[serde(flatten)]
        author: Option<Author>,
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
    /// This node was away for a while (stopped, starved, asleep) and stretches its timeouts.
    Paused {
        /// For how many milliseconds.
        millis: u64,
    },
    /// A live link gave way to a newer one of the same peer.
    LinkReplaced {
        /// Which.
        peer: NodeName,
        /// The life that the newer link belongs to.
        #[serde(rename = "peer_incarnation", alias = "incarnation")]
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
    /// Several of another node's sides of links changed, as the link matrix tells. The trail of that node has each.
    LinksChanged {
        /// Who sees.
        from: NodeName,
        /// How those that changed are now.
        links: Tally,
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
    /// A node sealed two different rows under one mark: what its key states is taken no more. The bytes are in hexadecimal.
    Equivocation {
        /// Which.
        peer: NodeName,
        /// The id of its key.
        key: String,
        /// Of which table both rows are.
        table: String,
        /// Of which life of it.
        #[serde(rename = "peer_incarnation", alias = "incarnation")]
        incarnation: Incarnation,
        /// Their version.
        version: u64,
        /// What is signed of each.
        statements: [String; 2],
        /// The signatures.
        signatures: [String; 2],
        /// The certificates, DER.
        certificates: [String; 2],
    },
    /// A certificate of this node was renewed, and the new one is in force.
    CertificateRenewed {
        /// What it is for: `node` or `http`.
        purpose: String,
        /// Until when it is valid (RFC 3339), where that is known.
        until: Option<String>,
    },
    /// This node issued a certificate.
    CertificateIssued {
        /// To whom.
        peer: NodeName,
        /// The id of the key.
        key: String,
        /// Until when it is valid (RFC 3339).
        until: String,
        /// By what right: an invitation, the certificate before it.
        by: String,
    },
    /// A machine asks for a certificate, and somebody has to approve that.
    CertificateRequested {
        /// The name that it asks for.
        peer: NodeName,
        /// The id of its key.
        key: String,
        /// The id of the request.
        request: String,
    },
    /// An operator had this node do something.
    OperatorActed {
        /// What.
        #[serde(flatten)]
        deed: Deed,
        /// Who.
        operator: Operator,
        /// Over what: `admin socket`, or the address of a client of the API.
        via: String,
    },
    /// There is a new list of revoked certificates, and it is in force.
    CertificatesRevoked {
        /// How many it names.
        certificates: usize,
        /// Whether this node's own is one of them.
        own: bool,
    },
    /// There is a new list of whom the cluster trusts, and it is in force.
    TrustChanged {
        /// How many authorities are trusted.
        authorities: usize,
    },
    /// There is a new list of revoked tokens, and it is in force.
    TokensRevoked {
        /// How many it names.
        tokens: usize,
    },
    /// A list of revoked certificates, of tokens or of trusted authorities cannot be used: the one before stays in force.
    RevocationsRefused {
        /// Of what.
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
    /// The file of the topics' history was damaged: it is kept under another name, and what it held is not there for joins.
    HistorySetAside {
        /// The other name.
        path: String,
    },
    /// The topics' history cannot be written: it is kept in memory alone for now.
    HistoryFailing {
        /// What the disk says.
        why: String,
    },
    /// The topics' history can be written again.
    HistoryRecovered,
    /// So many events had no room while the store could not be written: they were logged, and are in no trail.
    EventsLost {
        /// How many.
        count: u64,
    },
    /// So many events came faster than their reader took them. No trail has it: it stands for them before the reader.
    EventsMissed {
        /// How many.
        count: u64,
    },
    /// So many events of one kind came too fast to be taken down one by one: they are in no log and no trail.
    EventsOmitted {
        /// How many.
        count: u64,
        /// Of which kind.
        kind: String,
        /// The node that they were about, when it was one.
        peer: Option<NodeName>,
    },
    /// An event that another version of this program stored.
    #[serde(untagged)]
    Other(OtherEvent),
}

/// An event of another version of this program, or one that was too long to be stored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct OtherEvent {
    /// Its type.
    pub event: String,
    /// The rest of it.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl OtherEvent {
    /// Whether a member that names a node names this one.
    fn names(&self, node: &NodeName) -> bool {
        let named = |key: &str| self.rest.get(key).and_then(Value::as_str);
        ["node", "peer", "from", "to"].iter().any(|key| named(key) == Some(node.as_str()))
    }

    /// With the node that it is about as a member.
    fn about(mut self, node: Option<NodeName>) -> Self {
        self.rest.extend(node.map(|node| ("node".to_owned(), node.as_str().into())));
        self
    }
}

impl Event {
    /// Whether it is about a node.
    pub fn concerns(&self, node: &NodeName) -> bool {
        let seen = matches!(self, Self::LinkChanged { to, .. } if to == node);
        let named = matches!(self, Self::Other(other) if other.names(node));
        let done = matches!(self, Self::OperatorActed { deed, .. } if deed.about() == Some(node));
        seen || named || done || self.about() == Some(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> NodeName {
        text.parse().expect("valid")
    }

    fn at() -> SocketAddr {
        ([10, 0, 0, 2], 4697).into()
    }

    #[track_caller]
    fn tells(event: &Event, level: Level, about: Option<&str>, text: &str) {
        assert_eq!(event.level(), level, "{event:?}");
        assert_eq!(event.about().map(NodeName::as_str), about, "{event:?}");
        assert_eq!(event.to_string(), text);
    }

    #[test]
    fn events_of_peers_have_their_level_subject_and_text() {
        let (peer, b) = (name("b@h"), Some("b@h"));
        let event = Event::PeerOffline { peer: peer.clone(), reason: Reason::Crashed };
        tells(&event, Level::Info, b, "b@h offline (crashed)");
        let mut silent = Event::PeerSilent {
            peer: peer.clone(),
            phi: 8.04,
            missed: 9,
            heard_by: Vec::new(),
            confirmed_by: Vec::new(),
            broken: None,
        };
        let given_up = "b@h given up after 9 missed beats (phi 8.0)";
        tells(&silent, Level::Warn, b, given_up);
        if let Event::PeerSilent { heard_by, confirmed_by, broken, .. } = &mut silent {
            *heard_by = vec![name("c@h"), name("d@h")];
            *confirmed_by = vec![name("e@h")];
            *broken = Some(Broken::WayBack);
        }
        let grounds = "; still heard by c@h, d@h; not heard either by e@h; the way back is cut";
        tells(&silent, Level::Warn, b, &format!("{given_up}{grounds}"));
        let refused = |linked| Event::RefusedBy {
            peer: peer.clone(),
            refusal: Refusal::Stale { known: Incarnation(2), linked },
        };
        let known = "refused by b@h: incarnation 2 of this node is known";
        tells(&refused(None), Level::Warn, b, known);
        let linked = format!("{known} and linked, at 10.0.0.2:4697");
        tells(&refused(Some(at())), Level::Debug, b, &linked);
        let dial = |peer| Event::DialFailed { peer, address: at(), cause: "refused".into() };
        let failed = "cannot be dialed at 10.0.0.2:4697: refused; will try again";
        tells(&dial(Some(peer.clone())), Level::Info, b, &format!("b@h {failed}"));
        let seed = "no node answers at 10.0.0.2:4697: refused; will try again";
        tells(&dial(None), Level::Warn, None, seed);
        let seen = |suspect, reason| Event::LinkChanged {
            from: peer.clone(),
            to: name("c@h"),
            state: Status::Offline,
            suspect,
            reason,
        };
        let left = seen(false, Some(Reason::Left));
        tells(&left, Level::Debug, b, "b@h sees c@h offline (left)");
        tells(&seen(true, None), Level::Debug, b, "b@h sees c@h offline (suspect)");
        let links = Tally { online: 97, offline: 2, ..Tally::default() };
        let several = Event::LinksChanged { from: peer.clone(), links };
        tells(&several, Level::Debug, b, "b@h links changed: 97 online, 2 offline");
        assert!(left.concerns(&name("c@h")) && !left.concerns(&name("d@h")));
    }

    #[test]
    fn events_of_the_node_itself_have_their_level_and_text() {
        let ended = |restarted| Event::ActorEnded { actor: "x".into(), why: "y".into(), restarted };
        tells(&ended(true), Level::Warn, None, "actor x ended and is restarted: y");
        let given_up = "actor x ended too often, and its supervisor gives up: y";
        tells(&ended(false), Level::Error, None, given_up);
        let revoked = |own| Event::CertificatesRevoked { certificates: 3, own };
        let list = "a new list of revoked certificates is in force, 3 in all";
        tells(&revoked(false), Level::Info, None, list);
        let own = ": this node's certificate is revoked. Issue a new one and restart this node";
        tells(&revoked(true), Level::Warn, None, &format!("{list}{own}"));
        tells(&Event::StoreRecovered, Level::Info, None, "the store can be written again");
    }

    #[test]
    fn labels_are_the_tags_that_serde_writes() {
        let why = String::new;
        let peer: NodeName = "b@127.0.0.1".parse().expect("valid");
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
            assert_eq!(serde_json::from_value::<Event>(json).expect("its own"), event);
        }
        // Serde writes a variant in snake case, and so does the table.
        let snake = |name: &str| {
            let pieces = name.char_indices().map(|(at, it)| match it {
                'A'..='Z' if at > 0 => format!("_{}", it.to_ascii_lowercase()),
                _ => it.to_ascii_lowercase().to_string(),
            });
            pieces.collect::<String>()
        };
        assert_eq!(Event::VARIANTS.map(snake), Event::LABELS);
    }
}
