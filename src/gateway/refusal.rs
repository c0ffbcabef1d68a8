//! What is refused to clients: each cause with the status of its answer, its words, and what the operator can do.
//!
//! Invariant: every refusal is counted by its cause, and logged with its remedy at most once a minute and cause.

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::StatusCode;
use parking_lot::Mutex;

use crate::actors::timer;
use crate::io::identity::NO_TOKEN_LIST;
use crate::io::metrics::{Count, Metrics};
use crate::proto::channel::Malformed;
use crate::proto::notices::Notices;

/// Seconds after which to try again what is refused with 503.
pub(super) const RETRY: &str = "10";
/// Characters of a log line that a client chooses.
const MAX_ABOUT: usize = 120;

/// What is known of a cause: its label in metrics and logs, the answer's status, what the client reads, what mends it.
struct Facts(&'static str, StatusCode, &'static str, &'static str);

macro_rules! causes {
    ($($(#[$doc:meta])* $cause:ident $(($why:ident: $of:ty))? => $label:expr, $status:ident, $detail:expr, $remedy:expr;)*) => {
        /// Why something is refused to a client.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Cause {
            $($(#[$doc])* $cause $(($of))?,)*
        }

        impl Cause {
            fn facts(self) -> Facts {
                match self {
                    $(Self::$cause $(($why))? => Facts($label, StatusCode::$status, $detail, $remedy),)*
                }
            }
        }
    };
}

causes! {
    /// `Host` is missing, given twice, or no host.
    BadHost => "bad_host", BAD_REQUEST,
        "Host must be given once, as HOST or HOST:PORT",
        "correct the client or the proxy that sends it";
    /// The request names a host that is not known to be this node.
    Host => "host", MISDIRECTED_REQUEST,
        "this node is not known under the name in Host",
        "use its address or localhost, or allow the name with --http-origin https://NAME";
    /// The page's origin may not connect.
    Origin => "origin", FORBIDDEN,
        "this page's origin is not allowed",
        "allow the page with --http-origin SCHEME://HOST[:PORT]";
    /// Polls are GET, what a client sends is POST.
    Method => "method", METHOD_NOT_ALLOWED,
        "a poll is GET, and what a client sends is POST",
        "use a client that speaks Phoenix Channels";
    /// No upgrade to a WebSocket is asked for, or not over HTTP/1.1.
    NoUpgrade => "no_upgrade", UPGRADE_REQUIRED,
        "a WebSocket is opened with Upgrade and Connection, over HTTP/1.1",
        "let the proxy speak HTTP/1.1 to the node, and pass Upgrade and Connection on (nginx: \
         proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade)";
    /// The version of the WebSocket protocol is not 13.
    WebSocketVersion => "websocket_version", UPGRADE_REQUIRED,
        "the version of the WebSocket protocol is not 13",
        "use a client that speaks RFC 6455";
    /// The serializer's version is unknown.
    Serializer => "serializer", FORBIDDEN,
        "the serializer's version (vsn) is unknown",
        "use a client with vsn 1.0.0 or 2.0.0";
    /// There is no token, and one is needed.
    NoToken => "no_token", UNAUTHORIZED,
        "a token is needed",
        "send Authorization: Bearer TOKEN; xpando-node token create --role node_operator makes one";
    /// The token is not accepted.
    Token => "token", UNAUTHORIZED,
        "the token is not accepted",
        "xpando-node token verify TOKEN tells why (with --identity FILE for those of an existing system); ca/tokens must be \
         that of the authority";
    /// The token is good, and does not reach so far.
    Role => "role", FORBIDDEN,
        "the token does not reach so far",
        "make a token with another --role, or with more --topics";
    /// A request shows one user's token and another one's session.
    OthersSession => "others_session", FORBIDDEN,
        "the session is another user's",
        "let the client open a session of its own after it has changed its user";
    /// A request's body was not whole in time.
    BodyStalled => "body_stalled", REQUEST_TIMEOUT,
        "the body was not whole within 10 s",
        "send it faster, or less at once";
    /// A request's body is longer than it may be.
    BodyTooLong => "body_too_long", PAYLOAD_TOO_LARGE,
        "the body is longer than 2 MiB",
        "send less at once";
    /// A request's body ended too soon.
    BodyBroken => "body_broken", BAD_REQUEST,
        "the body ended too soon",
        "look for a proxy that cuts requests short";
    /// The client did not take its answer.
    Unread => "unread", REQUEST_TIMEOUT,
        "the answer was not read within 10 s",
        "read what is asked for";
    /// A client speaks plain HTTP where TLS is spoken.
    PlainHttp => "plain_http", BAD_REQUEST,
        "this port speaks TLS: use https:// or wss://",
        "use https:// or wss://, or serve plain HTTP with --http-plain";
    /// A client does not speak HTTP.
    NotHttp => "not_http", BAD_REQUEST,
        "this is not HTTP/1.1",
        "where TLS is not served, use http:// or ws://, or give --http-cert";
    /// A request's head is longer than it may be.
    HeadTooLong => "head_too_long", REQUEST_HEADER_FIELDS_TOO_LARGE,
        "the head of the request is longer than 16 KiB",
        "look for large cookies or tokens in the address";
    /// The node has no list by which it could verify tokens.
    NoTokenList => "no_token_list", UNAUTHORIZED,
        "this node cannot verify tokens",
        NO_TOKEN_LIST;
    /// The key set of the token's issuer has not been fetched yet.
    NoKeySet => "no_key_set", UNAUTHORIZED,
        "this node cannot verify tokens of this issuer",
        "xpando-node status names the key set that is missing, and why; it is fetched again and again";
    /// A join without a token, of a topic that needs one.
    JoinWithoutToken => "join_without_token", FORBIDDEN,
        "this topic needs a token",
        "give the client a token (xpando-node token create), or open the topic with --allow-anonymous PATTERN";
    /// The token does not allow this on this topic.
    NotGranted => "not_granted", FORBIDDEN,
        "the token does not allow this on this topic",
        "give the client a token with another --role or more --topics";
    /// More joins are pending than may be.
    JoinsPending => "joins_pending", SERVICE_UNAVAILABLE,
        "too many joins are pending",
        "look for a service whose handler admits clients slowly";
    /// What a client sent is no frame.
    Frame(why: Malformed) => why.label(), BAD_REQUEST,
        "what was sent is not a frame of Phoenix Channels",
        "the client must keep the protocol and its bounds, which docs/CHANNELS.md lists";
    /// A client does more than its rates let it.
    Rate => "rate_limited", TOO_MANY_REQUESTS,
        "the client sends more than it may",
        "slow the client down, or allow more with --limit ROLE.frames=N/BURST (or .joins, .bytes)";
    /// No more clients are taken, since the node is about to stop.
    Draining => "draining", SERVICE_UNAVAILABLE,
        "this node takes no more clients",
        "connect to another node; `xpando-node drain --undo` has this one take clients again";
    /// All places are taken by clients that are entitled to them.
    TooManyClients => "too_many_clients", SERVICE_UNAVAILABLE,
        "this node has as many clients as it may",
        "spread the clients over more nodes, or allow the process more open files (ulimit -n, LimitNOFILE=)";
    /// As many follow the events as may.
    TooManyReaders => "too_many_readers", SERVICE_UNAVAILABLE,
        "too many read events already",
        "follow the events of another node, or end a reader";
    /// As many bodies are being read as may.
    TooManyBodies => "too_many_bodies", SERVICE_UNAVAILABLE,
        "too many requests are being read",
        "try again; spread the clients over more nodes";
    /// The client's address has as many places as it may.
    TooManyOfAddress => "too_many_of_address", SERVICE_UNAVAILABLE,
        "there are too many clients from this address",
        "if it is a proxy of yours, name it with --trust-proxy";
    /// A client that was entitled to nothing yet gave its place to another.
    Evicted => "evicted", SERVICE_UNAVAILABLE,
        "a connection without a token or a join gave its place to another client",
        "look for the address that opens many connections, and shut it out before the node";
    /// A client showed neither a token nor a join in time.
    Unentitled => "unentitled", FORBIDDEN,
        "neither a token was accepted nor a topic joined within 10 s",
        "let the client show a token, or join a topic of --allow-anonymous";
    /// The memory that this node may use is nearly used up.
    Memory => "memory", SERVICE_UNAVAILABLE,
        "this node has no memory for more clients, or for what they join",
        "raise the limit of its cgroup (or ulimit -v), or spread the clients over more nodes";
}

impl Cause {
    /// Its word in metrics and logs.
    pub(super) fn label(self) -> &'static str {
        self.facts().0
    }

    /// The status of the answer.
    pub(super) fn status(self) -> StatusCode {
        self.facts().1
    }

    /// What the client reads.
    pub(super) fn detail(self) -> &'static str {
        self.facts().2
    }

    /// Whether a client may read the remedy, too: not where that speaks of the node's own files.
    pub(super) fn is_for_clients(self) -> bool {
        self != Self::NoTokenList && self != Self::NoKeySet
    }

    /// What mends it, for the operator or the client's author.
    pub(super) fn remedy(self) -> &'static str {
        self.facts().3
    }
}

/// Counts and logs what is refused. Clones share one log.
#[derive(Clone, Debug)]
pub(super) struct Refusals {
    metrics: Metrics,
    notices: Arc<Mutex<Notices>>,
}

impl Refusals {
    pub(super) fn new(metrics: &Metrics) -> Self {
        Self { metrics: metrics.clone(), notices: Arc::default() }
    }

    /// Notes one refusal. `about` is what the client sent that led to it, perhaps nothing.
    pub(super) fn note(&self, cause: Cause, from: IpAddr, about: &str) {
        self.metrics.count(Count::ClientsRefused, cause.label());
        let mut notices = self.notices.lock();
        if let Some(left_out) = notices.due(cause.label(), timer::now()) {
            let (cause, remedy, why) = (cause.label(), cause.remedy(), cause.detail());
            let about: String = about.chars().take(MAX_ABOUT).collect();
            tracing::warn!(cause, %from, ?about, why, remedy, left_out, "client refused");
        }
    }
}
