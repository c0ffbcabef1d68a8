//! Polls that reach another node than the one that has their session: behind a balancer that sends each request where it likes.
//!
//! # Protocol
//! A session's token names its node, the home. A node that gets a poll of another node's session shows it to that node, under
//! one name of its own, as [`Forwarded`]; the answer is the [`Poll`] that the client gets. A home that is not linked, has no
//! such session any more, or does not answer is a session that is over: the client opens another one where it is, joins
//! anew, and asks for what it missed.
//!
//! # Invariants
//! 1. A token that is no session's reaches no other node; nobody but the home says whose session a token is.
//! 2. A request that shows a token of its bearer is judged by it where it arrives, before it is forwarded; the session's
//!    own rights are its home's matter.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::ticket::Ticket;
use super::{MAX_BODY, Poll, Session, Sessions, cost};
use crate::actors::exchange::{CallError, Exchange, HandlerError, ServeError, Serving};
use crate::gateway::refusal::Cause;
use crate::proto::codec;
use crate::proto::outbox::MAX_MESSAGE;
use crate::proto::topic::{Address, Name};

/// How long a forwarded poll waits for something to say: less than one at home, so that it holds its place for a short time.
pub(super) const WAIT: Duration = Duration::from_secs(5);
/// How long the home may take.
const PATIENCE: Duration = Duration::from_secs(9);
/// When a client is to poll again whose home has too much under way.
const AGAIN: Duration = Duration::from_secs(1);
/// Bytes of what is forwarded, beside a body.
const HEAD: usize = 1024;

/// A poll, as the home gets it. Grows only at its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Forwarded {
    /// The token that the client shows.
    token: String,
    /// What the client sends: the type of the body and the body; `None` asks for what waits.
    post: Option<(String, Vec<u8>)>,
    /// Whose token it shows besides.
    subject: Option<String>,
}

/// Answers other nodes about the sessions of this one, until the result is dropped.
///
/// # Errors
/// [`ServeError`]; nothing changed.
pub(in super::super::super) fn serve(
    exchange: &Exchange,
    sessions: &Arc<Sessions>,
) -> Result<Serving, ServeError> {
    let sessions = sessions.clone();
    exchange.serve(Name::polls(), move |request| {
        let sessions = sessions.clone();
        async move {
            let Forwarded { token, post, subject } =
                codec::decode(&request.payload, HEAD + MAX_BODY)
                    .map_err(|_malformed| HandlerError::from("no poll"))?;
            // Another user's is none here.
            let of = |session: &Session| subject.as_ref().is_none_or(|it| session.is_of(it));
            let found = sessions.find(&token).filter(|(session, _)| of(session));
            let poll = match (found, post) {
                (None, _) => Poll::Gone(String::new()),
                (Some((session, taken)), None) => session.poll(taken, WAIT).await,
                (Some((session, _)), Some((kind, body))) => {
                    let _turn = session.turn().await;
                    let body = Bytes::from(body);
                    let poll = session.take(Some(&kind), &body);
                    session.place().pay(session.place().address(), cost(&body)).await;
                    poll
                }
            };
            Ok::<_, HandlerError>(codec::encode(&poll)?.into())
        }
    })
}

/// The answer of a session's home to a client of this user.
pub(in super::super::super) async fn ask(
    exchange: &Exchange,
    token: &str,
    subject: Option<&str>,
    post: Option<(String, Bytes)>,
) -> Poll {
    let gone = || Poll::Gone(String::new());
    let Some(Ticket { home, .. }) = Ticket::read(token) else { return gone() };
    let post = post.map(|(kind, body)| (kind.chars().take(HEAD / 8).collect(), body.to_vec()));
    let asks = post.is_none();
    let subject = subject.map(str::to_owned);
    let forwarded = Forwarded { token: token.to_owned(), post, subject };
    let Ok(forwarded) = codec::encode(&forwarded) else { return gone() };
    let to = Address { name: Name::polls(), node: Some(home) };
    match exchange.call(&to, forwarded, PATIENCE).await {
        Ok(answer) => codec::decode(&answer, MAX_MESSAGE).unwrap_or_else(|_broken| gone()),
        // Nothing was done: the client may say the same again, soon.
        Err(CallError::Overloaded) if asks => {
            tokio::time::sleep(AGAIN).await;
            Poll::Nothing(token.to_owned())
        }
        Err(CallError::Overloaded) => Poll::Refused(Cause::TooManyBodies),
        Err(_gone) => gone(),
    }
}
