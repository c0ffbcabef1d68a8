//! A client that polls: for networks that let no WebSocket through. `forward` is for polls that reach another node.
//!
//! # Protocol
//! The first GET opens a session and gets its token with 410. A GET with the token brings what waits, or after
//! [`WAIT`] nothing; a POST takes frames, one a line. Source: Phoenix.Transports.LongPoll 1.8.
//!
//! # Invariants
//! 1. A session that is not polled for [`LIFE`] is over.
//! 2. What an answer brought is kept until a request shows the token of that answer, and brought again to one that shows
//!    the token before: a proxy may lose an answer and ask again, the next time another node. A client to which one was brought
//!    again [`AGAIN`] times takes no notice of tokens, and is brought nothing again any more.
//! 3. Sessions have places of their own, by the same rules as connections.
//! 4. What one poll brings is at most what the client's outbox holds.
//! 5. Of a session that a user has opened no other user takes or says anything, even one who has got hold of its token.
//! 6. A client that comes back at once and does the same again is not told to: what is no frame is answered, and the
//!    end of a session for being too slow is told late.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Notify;

use serde::{Deserialize, Serialize};

use super::Channels;
use super::client::ClientTask;
use super::socket::HOLD;
use crate::actors::channel_router::outbox::{ClientQueue, Close, Next};
use crate::actors::timer;
use crate::gateway::clients::Order;
use crate::gateway::places::{Place, Places, Shares};
use crate::gateway::refusal::{Cause, RETRY};
use crate::io::metrics::Count;
use crate::proto::admission::{Limits, NoPlace};
use crate::proto::channel::head::{HEAD, Head};
use crate::proto::channel::{Dialect, Encoded, Frame, MAX_FRAME, Malformed};
use crate::proto::node::NodeName;
use crate::proto::share::FRAME;

mod forward;
mod ticket;
pub(in super::super) use forward::{ask, serve};
use ticket::Ticket;

/// How long a poll waits for something to say.
const WAIT: Duration = Duration::from_secs(10);
/// How long a session lives that nobody polls.
const LIFE: Duration = Duration::from_secs(20);
/// How often an answer is brought again.
const AGAIN: u32 = 3;
/// Frames of one request.
const LINES: usize = 100;
/// Sessions at once.
const SESSIONS: usize = 10_000;
/// Bytes of one request.
pub(in super::super) const MAX_BODY: usize = 2 * MAX_FRAME;

/// What a request comes to.
#[derive(Debug, Serialize, Deserialize)]
pub(in super::super) enum Poll {
    /// There is no such session: here is a new one, or none.
    Gone(String),
    /// What waited. The client takes the session's token from each answer.
    Messages(String, Vec<String>),
    /// Nothing waited.
    Nothing(String),
    /// Its frames were taken; what of them is none is answered as a message, for a client whose post fails begins
    /// a new session at once.
    Taken,
    /// The client may not, or should try again later.
    #[serde(skip)]
    Refused(Cause),
}

/// The sessions of a node.
pub(in super::super) struct Sessions {
    all: Mutex<HashMap<String, Arc<Session>>>,
    places: Arc<Places>,
    /// This node, which their tokens name.
    home: NodeName,
}

/// The last answer with messages.
#[derive(Debug, Default)]
struct Answer {
    /// How many there were, with it.
    number: u64,
    /// What it brought, until it is known that the client has it.
    messages: Vec<String>,
    /// How often it was brought again.
    again: u32,
    /// The client takes no notice of tokens.
    heedless: bool,
}

impl Answer {
    /// What is to be brought again to a client that has taken so many.
    fn missed(&mut self, taken: u64) -> Option<Vec<String>> {
        self.heedless |= taken < self.number && self.again >= AGAIN;
        let missed = taken < self.number && !self.heedless;
        if missed {
            self.again += 1;
            return Some(self.messages.clone());
        }
        self.messages = Vec::new();
        None
    }

    fn bring(&mut self, messages: Vec<String>) {
        let kept = if self.heedless { Vec::new() } else { messages };
        (self.number, self.messages, self.again) = (self.number + 1, kept, 0);
    }
}

/// A client that polls.
pub(in super::super) struct Session {
    /// What of its tokens is its own.
    name: String,
    last: Mutex<Answer>,
    place: Place,
    client: Mutex<ClientTask>,
    outbox: ClientQueue,
    /// Held while a body of the client's is read and looked at.
    posting: tokio::sync::Mutex<()>,
    polled: Mutex<Instant>,
    /// The hash of the token that was last found to be its own user's.
    own: AtomicU64,
    /// The client has said or taken something, or has news: its rights and joins may be others.
    heard: Arc<Notify>,
}

impl Sessions {
    pub(in super::super) fn new(home: &NodeName, most: usize, shares: &Arc<Shares>) -> Arc<Self> {
        let places = Places::new(Limits::of(most.min(SESSIONS)), shares);
        Arc::new(Self { all: Mutex::default(), places, home: home.clone() })
    }

    /// A place for a session of a client at this address.
    pub(in super::super) fn place(&self, from: IpAddr) -> Result<Place, Cause> {
        match self.places.open(from, false) {
            Ok((place, _evicted)) => Ok(place),
            Err(NoPlace::Full) => Err(Cause::TooManyClients),
            Err(NoPlace::Address) => Err(Cause::TooManyOfAddress),
        }
    }

    /// Whether this is the token of a session that another node has, or had.
    pub(in super::super) fn is_of_another(&self, token: &str) -> bool {
        Ticket::read(token).is_some_and(|ticket| ticket.home != self.home)
    }

    /// The session of a token, and how many answers its client has taken.
    pub(in super::super) fn find(&self, token: &str) -> Option<(Arc<Session>, u64)> {
        let ticket = Ticket::read(token)?;
        let all = self.all.lock();
        Some((all.get(ticket.session)?.clone(), ticket.taken))
    }

    /// A new session, which ends by itself.
    pub(in super::super) fn open(
        self: &Arc<Self>,
        client: ClientTask,
        channels: &Arc<Channels>,
    ) -> Poll {
        let name = ticket::session(&self.home);
        let (outbox, heard) = (client.outbox().clone(), client.wake());
        let place = client.place().clone();
        let (client, polled) = (Mutex::new(client), Mutex::new(timer::now()));
        let (posting, last) = (tokio::sync::Mutex::default(), Mutex::default());
        let (name_of, own) = (name.clone(), AtomicU64::new(0));
        let session =
            Session { name: name_of, last, place, client, outbox, posting, polled, own, heard };
        let session = Arc::new(session);
        let mut sessions = self.all.lock();
        sessions.insert(name.clone(), session.clone());
        drop(sessions);
        channels.metrics.count(Count::Channels, "connected");
        let (all, channels, gone) = (self.clone(), channels.clone(), name.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = session.live(&channels) => {}
                () = session.place.evicted() => {
                    channels.refusals.note(Cause::Evicted, session.place.address(), "long polling");
                }
                () = session.place.overdue() => {
                    channels.refusals.note(Cause::Unentitled, session.place.address(), "long polling");
                }
            }
            session.outbox.close(Close::UNENTITLED);
            all.all.lock().remove(&gone);
            channels.metrics.count(Count::Channels, "disconnected");
        });
        Poll::Gone(ticket::text(&name, 0))
    }
}

impl Session {
    /// What waits, or comes while a client that polls here waits.
    pub(in super::super) async fn polled(&self, taken: u64) -> Poll {
        self.poll(taken, WAIT).await
    }

    pub(in super::super) fn place(&self) -> &Place {
        &self.place
    }

    /// Whether a token that a request shows is good, and of another user than the one who opened the session.
    pub(in super::super) fn is_others(&self, token: &str, channels: &Channels) -> bool {
        let hash = channels.hasher.hash_one(token);
        if self.own.load(Ordering::Relaxed) == hash {
            return false;
        }
        let others = channels.subject(token).is_some_and(|subject| !self.is_of(&subject));
        if !others {
            self.own.store(hash, Ordering::Relaxed);
        }
        others
    }

    /// Whether it may be this user's.
    fn is_of(&self, subject: &str) -> bool {
        self.client.lock().subject().is_none_or(|own| own == subject)
    }

    /// Returns when the session is over.
    async fn live(&self, channels: &Channels) {
        let mut told = channels.admin.clients.follow();
        loop {
            let polled = *self.polled.lock();
            let over = polled + LIFE;
            if over <= timer::now() {
                return;
            }
            if self.outbox.closed().is_some() {
                return tokio::time::sleep(HOLD).await; // its polls wait for that, too
            }
            let soon = timer::now() + Duration::from_secs(1);
            let right = self.client.lock().deadline();
            let next = right.map_or(over, |right| over.min(right.max(soon)));
            tokio::select! {
                () = tokio::time::sleep_until(next.into()) => {}
                () = self.heard.notified() => {}
                order = told.next() => match order {
                    Order::Go => return self.last_poll().await,
                    Order::Look => {}
                },
            }
            let mut client = self.client.lock();
            client.sweep();
            client.expire();
        }
    }

    /// Has the client take what waits, if it polls soon.
    async fn last_poll(&self) {
        self.outbox.close(Close::RESTART);
        let taken = async {
            while self.outbox.waits() {
                self.heard.notified().await;
            }
        };
        drop(tokio::time::timeout(HOLD, taken).await);
    }

    fn touch(&self) {
        *self.polled.lock() = timer::now();
        self.heard.notify_one();
    }

    /// What waits for a client that has taken so many answers, or comes within `wait`.
    async fn poll(&self, taken: u64, wait: Duration) -> Poll {
        self.touch();
        let missed = {
            let mut last = self.last.lock();
            last.missed(taken).map(|messages| (last.number, messages))
        };
        if let Some((number, messages)) = missed {
            return Poll::Messages(ticket::text(&self.name, number), messages);
        }
        let mut frames = Vec::new();
        let next = tokio::time::timeout(wait, self.outbox.next(&mut frames)).await;
        self.touch();
        match next {
            Err(_elapsed) => Poll::Nothing(ticket::text(&self.name, taken)),
            Ok(Next::Close(close)) => {
                if [Close::SLOW, Close::RATE].contains(&close) {
                    tokio::time::sleep(HOLD).await;
                }
                Poll::Gone(String::new())
            }
            Ok(Next::Frames) => {
                let text = |frame| match frame {
                    Encoded::Text(text) => String::from_utf8(text.to_vec()).ok(),
                    Encoded::Parts(first, second) => {
                        String::from_utf8([first, second].concat()).ok()
                    }
                    Encoded::Binary(_) => None, // the protocol has no way to say it
                };
                let messages: Vec<String> = frames.into_iter().filter_map(text).collect();
                let mut last = self.last.lock();
                last.bring(messages.clone());
                Poll::Messages(ticket::text(&self.name, last.number), messages)
            }
        }
    }

    /// Waits until the client's earlier bodies are done, so that it holds room for one of them at a time.
    pub(in super::super) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.posting.lock().await
    }

    /// Takes the client's frames, of a body of this type.
    pub(in super::super) fn take(&self, kind: Option<&str>, body: &Bytes) -> Poll {
        let lines: Vec<_> = match kind {
            Some(kind) if kind.starts_with("application/x-ndjson") => {
                body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect()
            }
            Some(_) | None => vec![&body[..]],
        };
        let mut client = self.client.lock();
        for (at, line) in lines.into_iter().enumerate() {
            match read(client.dialect(), client.limits().frame, &body.slice_ref(line)) {
                Ok(frame) if at < LINES => client.hear(frame, line.len()),
                Ok(Frame { join_ref, reference, topic, .. }) => {
                    let head = Head { join_ref, reference, topic: Some(topic) };
                    client.refuse(&head, Malformed::TooMany, line.len());
                }
                Err((head, why)) => client.refuse(&head, why, line.len()),
            }
        }
        drop(client);
        self.heard.notify_one();
        Poll::Taken
    }
}

/// What a body takes of its client's share.
pub(in super::super) fn cost(body: &Bytes) -> u64 {
    let lines = body.split(|byte| *byte == b'\n').count() as u64;
    body.len() as u64 + lines * FRAME
}

/// The frame of a line: text, or Base64 of a binary one.
fn read(dialect: Dialect, most: usize, line: &Bytes) -> Result<Frame, (Head, Malformed)> {
    let begin = line.slice(..line.len().min(HEAD));
    if matches!(line.first(), Some(b'[' | b'{')) {
        if line.len() > most {
            return Err((Head::text(dialect, &begin), Malformed::TooLong(most)));
        }
        return Frame::text(dialect, line).map_err(|why| (Head::text(dialect, line), why));
    }
    if line.len() > most.div_ceil(3) * 4 {
        let whole = begin.slice(..begin.len() / 4 * 4);
        let begin = BASE64_STANDARD.decode(whole).unwrap_or_default();
        return Err((Head::binary(&begin), Malformed::TooLong(most)));
    }
    let bytes = BASE64_STANDARD.decode(line);
    let bytes: Bytes = bytes.map_err(|_text| (Head::default(), Malformed::Shape))?.into();
    Frame::binary(&bytes).map_err(|why| (Head::binary(&bytes), why))
}

/// The answer. Clients go by the status in its body, and know 200, 204, 403, 410 and 500 there: 403 ends a try, 500
/// has them try again later, and another one in the answer to a poll stops them for good.
pub(in super::super) fn answer(poll: &Poll) -> Response {
    let of_session = |code: u16, token: &str, messages: &[String]| {
        let mut body = json!({ "status": code, "messages": messages });
        if !token.is_empty() {
            body["token"] = token.into();
        }
        (StatusCode::OK, body)
    };
    let (status, body) = match poll {
        Poll::Refused(cause) => {
            let (usual, posted) = (cause.status(), [Cause::BodyStalled, Cause::BodyTooLong]);
            let (status, code) = if usual.is_server_error() {
                (usual, 500)
            } else if posted.contains(cause) {
                (usual, usual.as_u16())
            } else if *cause == Cause::BodyBroken {
                (StatusCode::OK, 400)
            } else {
                (StatusCode::OK, 403)
            };
            let mut body =
                json!({ "status": code, "cause": cause.label(), "detail": cause.detail() });
            if cause.is_for_clients() {
                body["remedy"] = cause.remedy().into();
            }
            (status, body)
        }
        Poll::Gone(token) => of_session(410, token, &[]),
        Poll::Messages(token, messages) => of_session(200, token, messages),
        Poll::Nothing(token) => of_session(204, token, &[]),
        Poll::Taken => (StatusCode::OK, json!({ "status": 200 })),
    };
    let mut answer = (status, body.to_string()).into_response();
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY));
    }
    answer
}
