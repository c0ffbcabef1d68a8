//! Phoenix Channels for clients: what a client may do on which topic, whatever carries its frames.
//!
//! `client` drives the session machine for one client; `socket` and `longpoll` carry its frames; `handler` is what
//! services add; `feed` publishes what happens in the cluster. The topics of every node:
//!
//! - `room:*`: whoever may join talks to everybody who joined, on every node, and sees who is there.
//! - `network:updates`: `snapshot` at the join, then `change` for each event of this node's view, and `figures` of its
//!   traffic once a second; a push of `view` is answered by what this node or another one sees.
//! - `node:heartbeat`: once a second a `heartbeat` of each node, as this one sees it.
//! - `node:<name>`: `join`, `leave` and `heartbeat` of that node, and `data` to and from it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use crate::actors::channel_router::{ChannelRouter, Publisher};
use crate::actors::timer;
use crate::gateway::admin::Admin;
use crate::gateway::refusal::Refusals;
use crate::io::clock;
use crate::io::identity::{TokenError, Tokens};
use crate::io::metrics::{Count, Metrics};
use crate::proto::token::Claims;
use crate::proto::topic::{Pattern, Topic};

pub(super) mod client;
pub(super) mod feed;
pub mod handler;
pub(super) mod longpoll;
pub(super) mod socket;

use handler::Handlers;

/// Bad tokens a second of one address that are answered at once.
const BAD: u32 = 5;
/// How long the answer to one more takes.
const SLOWED: Duration = Duration::from_secs(2);
/// Clients that ask at once what a node sees.
const VIEWS: usize = 16;
/// Addresses whose bad tokens are counted.
const ADDRESSES: usize = 10_000;

/// What all clients of a node share.
pub struct Channels {
    pub(super) router: ChannelRouter,
    pub(super) publisher: Publisher,
    pub(super) handlers: Handlers,
    pub(super) admin: Admin,
    pub(super) metrics: Metrics,
    pub(super) refusals: Refusals,
    /// Places for those who ask what a node sees.
    pub(super) views: Arc<Semaphore>,
    tokens: Tokens,
    anonymous: Vec<Pattern>,
    bad: Mutex<BTreeMap<IpAddr, (Instant, u32)>>,
    /// Joins of topics below `node:`.
    pub(super) watching: AtomicUsize,
    /// Joins of `network:updates`.
    pub(super) observing: AtomicUsize,
    /// The number of the list of revoked tokens that was seen last.
    listed: AtomicU64,
}

impl std::fmt::Debug for Channels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Channels")
    }
}

/// Why a client may not. The text is what it reads.
pub(super) type Refusal = &'static str;

impl Channels {
    /// Nobody is connected yet.
    #[must_use]
    pub fn new(
        router: &ChannelRouter,
        admin: &Admin,
        tokens: &Tokens,
        anonymous: &[Pattern],
    ) -> Self {
        Self {
            router: router.clone(),
            publisher: Publisher::new(&admin.pubsub),
            handlers: Handlers::default(),
            admin: admin.clone(),
            metrics: admin.metrics.clone(),
            refusals: Refusals::new(&admin.metrics),
            tokens: tokens.clone(),
            anonymous: anonymous.to_vec(),
            bad: Mutex::default(),
            watching: AtomicUsize::new(0),
            observing: AtomicUsize::new(0),
            views: Arc::new(Semaphore::new(VIEWS)),
            listed: AtomicU64::new(0),
        }
    }

    /// What can be read of the node.
    #[must_use]
    pub fn admin(&self) -> &Admin {
        &self.admin
    }

    /// What publishes on channels.
    #[must_use]
    pub fn publisher(&self) -> &Publisher {
        &self.publisher
    }

    /// The handlers of services.
    #[must_use]
    pub fn handlers(&self) -> &Handlers {
        &self.handlers
    }

    /// What a token says of its bearer. The answer to bad ones takes longer when there are many.
    pub(super) async fn verify(&self, token: &str, from: IpAddr) -> Result<Arc<Claims>, Refusal> {
        let mut verified = self.tokens.verify(token, clock::wall());
        if verified == Err(TokenError::NoKey) {
            let tokens = self.tokens.clone();
            // What is wrong with the file is logged by whoever looks at it all the time.
            drop(tokio::task::spawn_blocking(move || drop(tokens.look())).await);
            verified = self.tokens.verify(token, clock::wall());
        }
        let error = match verified {
            Ok(claims) => return Ok(Arc::new(claims)),
            Err(error) => error,
        };
        self.metrics.count(Count::Tokens, error.label());
        if self.too_many_bad(from) {
            self.metrics.count(Count::Tokens, "slowed");
            tokio::time::sleep(SLOWED).await;
        }
        Err(match error {
            TokenError::Expired => "token expired",
            TokenError::Revoked => "token revoked",
            TokenError::Malformed
            | TokenError::Signature
            | TokenError::NotYetValid
            | TokenError::NotForUs
            | TokenError::NoKey => "unauthorized",
        })
    }

    /// Counts a bad token.
    fn too_many_bad(&self, from: IpAddr) -> bool {
        let now = timer::now();
        let mut bad = self.bad.lock().unwrap_or_else(PoisonError::into_inner);
        if bad.len() >= ADDRESSES && !bad.contains_key(&from) {
            bad.retain(|_, (since, _)| now < *since + Duration::from_secs(1));
            if bad.len() >= ADDRESSES {
                return true;
            }
        }
        let (since, count) = bad.entry(from).or_insert((now, 0));
        if now >= *since + Duration::from_secs(1) {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        *count > BAD
    }

    /// Whether there is another list of revoked tokens than when this was asked last.
    fn tokens_changed(&self) -> bool {
        let number = self.tokens.number().unwrap_or(0);
        self.listed.swap(number, Ordering::Relaxed) != number
    }

    /// Why a token that was good is none any more.
    pub(super) fn outlived(&self, claims: &Claims) -> Option<Refusal> {
        if claims.expires() <= clock::wall() {
            return Some("token expired");
        }
        self.tokens.revoked(&claims.jti).then_some("token revoked")
    }

    /// Whether there is a topic for clients without a token.
    pub(super) fn serves_anonymous(&self) -> bool {
        !self.anonymous.is_empty()
    }

    /// Whether a client without a token may be on a topic.
    pub(super) fn anonymous(&self, topic: &Topic) -> bool {
        self.anonymous.iter().any(|pattern| pattern.covers(topic))
    }
}
