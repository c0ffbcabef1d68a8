//! Phoenix Channels for clients: what a client may do on which topic, whatever carries its frames.
//!
//! `client` drives the session machine for one client, `entrance` is its way into a topic; `socket` (on `websocket`)
//! and `longpoll` carry its frames; `handler` is what a channel is, `serving` runs one, and `registry` knows whose a topic
//! is: a service's channel or one of those of every node (`family`); `feed` publishes what happens in the cluster;
//! `presence` reads what clients ask for about who is there; `penalty` knows whose bad tokens are answered late.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::actors::channel_router::{ChannelRouter, Publisher};
use crate::actors::timer;
use crate::gateway::memory::MemoryWatch;
use crate::gateway::refusal::{Cause, Refusals};
use crate::gateway::view::NodeView;
use crate::io::clock;
use crate::io::identity::provider::{KeyMark, Providers};
use crate::io::identity::{NO_TOKEN_LIST, TokenError, Tokens};
use crate::io::metrics::{Count, Metrics};
use crate::proto::channel::family::{FamilyRule, FamilyTable};
use crate::proto::presence::listing::Sees;
use crate::proto::token::{Claims, TokenKeyId, Verb};
use crate::proto::topic::{Pattern, Topic};

mod asked;
pub(super) mod client;
mod entrance;
mod family;
pub(super) mod feed;
pub mod handler;
pub(super) mod longpoll;
mod metered;
mod penalty;
mod presence;
pub mod registry;
mod serving;
pub(super) mod socket;
mod websocket;

use handler::Shared;
use penalty::Penalties;
use registry::Handlers;

/// How long the answer to a bad token takes that is shown too often.
const SLOWED: Duration = Duration::from_secs(2);
/// Refusals that are held back at once.
const HELD_BACK: usize = 1024;
/// KiB of frames whose joins are pending, of all clients together.
const PENDING: usize = 64 * 1024;

/// What all clients of a node share.
pub struct Channels {
    pub(super) router: ChannelRouter,
    pub(super) publisher: Publisher,
    pub(super) handlers: Handlers,
    shared: Shared,
    pub(super) admin: NodeView,
    pub(super) metrics: Metrics,
    pub(super) refusals: Refusals,
    /// Places for the frames of pending joins, one for each KiB.
    pub(super) pending: Arc<Semaphore>,
    tokens: Tokens,
    providers: Providers,
    anonymous: Vec<Pattern>,
    presence: Vec<(Pattern, Sees)>,
    pub(super) memory: MemoryWatch,
    penalties: Mutex<Penalties>,
    hasher: RandomState,
    held_back: Semaphore,
    /// The number of the list of revoked tokens, and that of the identity providers, as they were seen last.
    listed: [AtomicU64; 2],
}

impl std::fmt::Debug for Channels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Channels")
    }
}

/// Why a client may not. The text is what it reads.
pub(super) type Refusal = &'static str;

/// What a token that counts says of who shows it, and the key that has signed it.
#[derive(Clone)]
pub(super) struct Bearer {
    claims: Arc<Claims>,
    key: Signer,
}

/// Which key has signed a token.
#[derive(Clone, Copy)]
enum Signer {
    /// One of this cluster.
    Cluster(TokenKeyId),
    /// One of an identity provider.
    Provider(KeyMark),
}

impl Deref for Bearer {
    type Target = Claims;

    fn deref(&self) -> &Claims {
        &self.claims
    }
}

/// A token that does not count.
pub(super) struct Denied {
    pub(super) reason: Refusal,
    pub(super) cause: Cause,
    /// The answer is to be held back, by [`Channels::hold_back`].
    pub(super) late: bool,
}

impl Channels {
    /// Nobody is connected yet.
    pub fn new(
        router: &ChannelRouter,
        publisher: &Publisher,
        admin: &NodeView,
        (tokens, providers): (&Tokens, &Providers),
        (anonymous, families, presence): (&[Pattern], &[FamilyRule], &[(Pattern, Sees)]),
    ) -> Self {
        Self {
            router: router.clone(),
            publisher: publisher.clone(),
            handlers: Handlers::new(FamilyTable::new(families), admin),
            shared: Shared::new(publisher, admin.bus.exchange(), &admin.metrics),
            admin: admin.clone(),
            metrics: admin.metrics.clone(),
            refusals: Refusals::new(&admin.metrics),
            tokens: tokens.clone(),
            providers: providers.clone(),
            anonymous: anonymous.to_vec(),
            presence: presence.to_vec(),
            memory: MemoryWatch::new(),
            penalties: Mutex::default(),
            hasher: RandomState::new(),
            held_back: Semaphore::new(HELD_BACK),
            pending: Arc::new(Semaphore::new(PENDING)),
            listed: Default::default(),
        }
    }

    /// What can be read of the node.
    pub fn admin(&self) -> &NodeView {
        &self.admin
    }

    /// Whose the topics are.
    pub fn handlers(&self) -> &Handlers {
        &self.handlers
    }

    /// What a token says of its bearer. The answer to a bad one takes longer when it is shown too often.
    pub(super) async fn verify(&self, token: &str, from: IpAddr) -> Result<Bearer, Denied> {
        let verified = self.judge(token, from).await;
        if verified.as_ref().is_err_and(|denied| denied.late) {
            self.hold_back(SLOWED).await;
        }
        verified
    }

    /// What a token says of its bearer, at once.
    pub(super) async fn judge(&self, token: &str, from: IpAddr) -> Result<Bearer, Denied> {
        let mut verified = self.verify_now(token);
        if verified.as_ref().is_err_and(|error| *error == TokenError::NoKey) {
            let tokens = self.tokens.clone();
            // What is wrong with the file is logged by anyone who looks at it all the time.
            drop(tokio::task::spawn_blocking(move || drop(tokens.look())).await);
            verified = self.verify_now(token);
        }
        let error = match verified {
            Ok(bearer) => return Ok(bearer),
            Err(error) => error,
        };
        self.metrics.count(Count::Tokens, error.label());
        let (reason, cause) = match error {
            TokenError::Expired => ("token expired", Cause::Token),
            TokenError::Revoked => ("token revoked", Cause::Token),
            TokenError::NotYetValid => ("token not valid yet", Cause::Token),
            TokenError::Malformed
            | TokenError::Signature
            | TokenError::Algorithm
            | TokenError::UnknownIssuer
            | TokenError::UnknownKey
            | TokenError::Unmapped(_)
            | TokenError::NotForUs => ("unauthorized", Cause::Token),
            TokenError::NoKey => ("this node cannot verify tokens", Cause::NoTokenList),
            TokenError::NoKeySet => ("this node cannot verify tokens", Cause::NoKeySet),
        };
        // What the authority has signed is no guess, and what cannot be verified here is not the client's fault.
        let unsigned = matches!(
            error,
            TokenError::Malformed
                | TokenError::Signature
                | TokenError::Algorithm
                | TokenError::UnknownIssuer
                | TokenError::UnknownKey
        );
        let late = unsigned && self.is_late(token, from);
        if late {
            self.metrics.count(Count::Tokens, "slowed");
        }
        Err(Denied { reason, cause, late })
    }

    /// What a token says of its bearer that is to let it join a topic. One that does not is noted.
    pub(super) async fn grant(
        &self,
        token: &str,
        topic: &Topic,
        from: IpAddr,
    ) -> Result<Bearer, Denied> {
        let judged = self.judge(token, from).await.and_then(|bearer| {
            let allowed = self.handlers.allow(&bearer, Verb::Join, topic);
            let (reason, cause) = ("unauthorized", Cause::NotGranted);
            if allowed { Ok(bearer) } else { Err(Denied { reason, cause, late: false }) }
        });
        if let Err(Denied { reason, cause, .. }) = judged {
            let about = if cause == Cause::NotGranted { topic.as_str() } else { reason };
            self.refusals.note(cause, from, about);
        }
        judged
    }

    /// What a token says by the files as they are.
    fn verify_now(&self, token: &str) -> Result<Bearer, TokenError> {
        let now = clock::wall();
        let bearer = |claims, key| Bearer { claims: Arc::new(claims), key };
        match self.providers.verify(token, now) {
            None => self
                .tokens
                .verify_signed(token, now)
                .map(|(claims, key)| bearer(claims, Signer::Cluster(key))),
            // The cluster's own list revokes tokens of others, too.
            Some(Ok((claims, _))) if self.tokens.revoked(&claims.jti) => Err(TokenError::Revoked),
            Some(verified) => verified.map(|(claims, key)| bearer(claims, Signer::Provider(key))),
        }
    }

    /// Whose a token is that counts.
    fn subject(&self, token: &str) -> Option<String> {
        self.verify_now(token).ok().map(|bearer| bearer.sub.clone())
    }

    /// Waits before a refusal that would be asked for again at once, unless as many wait as may.
    pub(super) async fn hold_back(&self, long: Duration) {
        if let Ok(_place) = self.held_back.try_acquire() {
            tokio::time::sleep(long).await;
        }
    }

    /// Counts a bad token; whether it is to be answered late.
    fn is_late(&self, token: &str, from: IpAddr) -> bool {
        let hash = self.hasher.hash_one(token);
        let mut penalties = self.penalties.lock();
        penalties.is_late(from, hash, timer::now())
    }

    /// Logs that no token can be verified, if that is so.
    fn check_list(&self) {
        if self.tokens.number().is_none() {
            let others = self.providers.count();
            tracing::warn!(
                remedy = NO_TOKEN_LIST,
                others,
                "clients with tokens will be refused, but for those of other systems"
            );
        }
    }

    /// Whether other tokens may count than when this was asked last.
    fn tokens_changed(&self) -> bool {
        let now = [self.tokens.number().unwrap_or(0), self.providers.number()];
        let seen = self.listed.iter().zip(now);
        seen.map(|(seen, now)| seen.swap(now, Ordering::Relaxed)).ne(now)
    }

    /// Why a token that was good is none any more.
    pub(super) fn outlived(&self, bearer: &Bearer) -> Option<Refusal> {
        let now = clock::wall();
        if bearer.expires() <= now {
            return Some("token expired");
        }
        let gone = match bearer.key {
            Signer::Cluster(key) => !self.tokens.counts(key, now),
            Signer::Provider(key) => self.providers.outlived(key, &bearer.jti),
        };
        (gone || self.tokens.revoked(&bearer.jti)).then_some("token revoked")
    }

    /// Waits until a token that is good is none any more; why.
    pub(super) async fn until_outlived(&self, bearer: &Bearer) -> Refusal {
        let mut told = self.admin.clients.follow();
        loop {
            if let Some(why) = self.outlived(bearer) {
                return why;
            }
            let left = bearer.expires().duration_since(clock::wall()).unwrap_or_default();
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                () = told.changed() => {}
            }
        }
    }

    /// What clients may see of others on a topic, at most.
    fn shown(&self, topic: &Topic) -> Sees {
        let counts = Pattern::most_specific(&self.presence, |(pattern, _)| pattern, topic);
        counts.map(|(_, sees)| *sees).unwrap_or_default()
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
