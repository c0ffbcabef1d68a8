//! What is refused to clients: each cause with the status of its answer, its words, and what the operator can do.
//!
//! Invariant: every refusal is counted by its cause, and logged with its remedy at most once a minute and cause.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::StatusCode;

use crate::actors::timer;
use crate::io::metrics::{Count, Metrics};
use crate::proto::notices::Notices;

/// Characters of a log line that a client chooses.
const MAX_ABOUT: usize = 120;

/// Why something is refused to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The page's origin may not connect.
    Origin,
    /// No upgrade to a WebSocket is asked for, or not over HTTP/1.1.
    NoUpgrade,
    /// The version of the WebSocket protocol is not 13.
    WebSocketVersion,
    /// The serializer's version is unknown.
    Serializer,
    /// The token is not accepted.
    Token,
    /// No more clients are taken, since the node is about to stop.
    Draining,
    /// There are as many clients as there may be.
    TooManyClients,
}

/// What is known of a cause: its label in metrics and logs, the answer's status, what the client reads, what mends it.
struct Facts(&'static str, StatusCode, &'static str, &'static str);

impl Cause {
    fn facts(self) -> Facts {
        use StatusCode as Is;
        match self {
            Self::Origin => Facts(
                "origin",
                Is::FORBIDDEN,
                "this page's origin is not allowed",
                "allow the page with --http-origin SCHEME://HOST[:PORT]",
            ),
            Self::NoUpgrade => Facts(
                "no_upgrade",
                Is::UPGRADE_REQUIRED,
                "a WebSocket is opened with Upgrade and Connection, over HTTP/1.1",
                "let the proxy speak HTTP/1.1 to the node, and pass Upgrade and Connection on (nginx: \
                 proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade)",
            ),
            Self::WebSocketVersion => Facts(
                "websocket_version",
                Is::UPGRADE_REQUIRED,
                "the version of the WebSocket protocol is not 13",
                "use a client that speaks RFC 6455",
            ),
            Self::Serializer => Facts(
                "serializer",
                Is::FORBIDDEN,
                "the serializer's version (vsn) is unknown",
                "use a client with vsn 1.0.0 or 2.0.0",
            ),
            Self::Token => Facts(
                "token",
                Is::FORBIDDEN,
                "the token is not accepted",
                "xpando-node token verify TOKEN tells why; ca/tokens must be that of the authority",
            ),
            Self::Draining => Facts(
                "draining",
                Is::SERVICE_UNAVAILABLE,
                "this node takes no more clients",
                "connect to another node; `xpando-node drain --undo` has this one take clients again",
            ),
            Self::TooManyClients => Facts(
                "too_many_clients",
                Is::SERVICE_UNAVAILABLE,
                "this node has as many clients as it may",
                "spread the clients over more nodes",
            ),
        }
    }

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
        let mut notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(left_out) = notices.due(cause.label(), timer::now()) {
            let (cause, remedy, why) = (cause.label(), cause.remedy(), cause.detail());
            let about: String = about.chars().take(MAX_ABOUT).collect();
            tracing::warn!(cause, %from, ?about, why, remedy, left_out, "client refused");
        }
    }
}
