//! The library of `xpando-node`: everything but the command line.
//!
#![doc = include_str!("../README.md")]

/// What the program, the fuzz targets and this crate's own tests use. Nothing in it is promised.
#[doc(hidden)]
#[path = "."]
pub mod internals {
    pub mod actors;
    pub mod gateway;
    pub mod io;
    pub mod node;
    pub mod proto;
}

use internals::{actors, gateway, io, node, proto};

// The node, and what it is asked and answers.
pub use crate::actors::channel_router::{
    Following, HistoryEntry, PresenceEntry, PresenceNews, Presences, Publisher, TopicHistory,
    Tracked,
};
pub use crate::actors::exchange::{
    DeliveryReport, Exchange, HandlerError, Message, OverflowPolicy, Received, RemoteActor, Reply,
    Request, Serving, Subscription, Watch,
};
pub use crate::actors::news::Events;
pub use crate::actors::peers::{Row, View};
#[cfg(feature = "gateway")]
pub use crate::gateway::channels::handler::{
    Channel, Client, Ended, Joined, Outgoing, Push, Reaction, ReplyTo,
};
#[cfg(feature = "testkit")]
pub use crate::node::testkit;
pub use crate::node::{Builder, Node, NodeHandle, QUIET};
pub use crate::proto::channel::{Json, Payload};
pub use crate::proto::event::{
    Author, Broken, Deed, Event, Operator, OtherEvent, Reason, Refusal, Revocable, Source, Status,
    Tally,
};
pub use crate::proto::lists::ListKind;
pub use crate::proto::membership::{Majority, PeerView};
pub use crate::proto::node::{ClusterId, Incarnation, NodeId, NodeName};
pub use crate::proto::registry::Known;
pub use crate::proto::talk::DownReason;
pub use crate::proto::token::{Claims, Grant, Role, Verb, Verbs};
pub use crate::proto::topic::{Address, Name, Pattern, Topic};

// Why something did not happen.
pub use crate::actors::exchange::{CallError, GroupError, SendError, ServeError};
#[cfg(feature = "gateway")]
pub use crate::io::identity::provider::ProviderError;
pub use crate::io::identity::{CertificateFault, IdentityError, KeyFault, ListFault, Remedy};
pub use crate::io::places::NoPlace;
pub use crate::io::sockets::SocketError;
pub use crate::io::store::StoreError;
pub use crate::io::tls::{TlsError, WebError};
pub use crate::node::{NodeError, StartError, TooFew};
pub use crate::proto::chain::Fault;
#[cfg(feature = "gateway")]
pub use crate::proto::channel::family::FamilyError;
pub use crate::proto::codec::CodecError;
pub use crate::proto::event::OperatorError;
pub use crate::proto::history::HistoryError;
pub use crate::proto::interest::TooMany;
pub use crate::proto::node::NameError;
pub use crate::proto::presence::PresenceError;
pub use crate::proto::token::ClaimsError;
pub use crate::proto::topic::{AddressError, TopicError};

// Of other crates: what signatures name. An actor must be one of this version of ractor.
pub use bytes::Bytes;
pub use postcard_schema::Schema;
pub use ractor;
pub use serde_json;

/// What [`Builder`] has no word for: [`Node::start`] takes it. Each `Config` comes from [`Builder::config`], `new` or
/// `default`, and is changed field by field.
pub mod config {
    #[cfg(feature = "gateway")]
    pub use crate::gateway::http::{Config as Http, Origin, OriginError, Prefix, PrefixError};
    pub use crate::io::metrics::Metrics;
    pub use crate::io::seeds::{Seed, SeedError};
    pub use crate::io::store::Limits;
    pub use crate::node::Config;
    #[cfg(feature = "gateway")]
    pub use crate::proto::channel::family::{Family, FamilyRule};
    pub use crate::proto::discovery::Config as Discovery;
    pub use crate::proto::heartbeat::Config as Heartbeat;
    pub use crate::proto::history::{Retention, Retentions};
    #[cfg(feature = "gateway")]
    pub use crate::proto::limits::{Allowance, ClientLimits, ClientRates, LimitError};
    pub use crate::proto::membership::Config as Membership;
    #[cfg(feature = "gateway")]
    pub use crate::proto::presence::listing::{NotShown, Sees};
    #[cfg(feature = "gateway")]
    pub use crate::proto::proxies::{Cidr, CidrError};
    pub use crate::proto::registry::{Pair, Profile, ProfileError, Specialization};
}

/// What most services name: `use xpando_node::prelude::*`.
pub mod prelude {
    pub use crate::{
        Bytes, HandlerError, Node, NodeError, NodeHandle, NodeName, Received, Request, Serving,
        Status, Subscription, View,
    };
}

/// Has the code in docs/CHANNELS.md compiled.
#[cfg(all(doctest, feature = "gateway"))]
#[doc = include_str!("../docs/CHANNELS.md")]
struct ChannelsPage;
