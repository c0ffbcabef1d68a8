//! A client on a WebSocket.
//!
//! One task owns the socket. Invariants:
//! 1. It waits for the client to take what it is sent for at most [`TAKE`], and for it to say something for at most
//!    [`IDLE`].
//! 2. It is never closed with 1000, after which old clients do not come back.
//! 3. Anyone who is told to go can read why: what the client still says is read and thrown away, up to [`REST`] and for
//!    [`PART`], for a stream that is dropped with something unread on it is reset, and the reason lost.
//! 4. What a client sends wrong does not end its connection, but where the WebSocket itself is broken. It connects
//!    anew at once and does the same again, so a connection that is ended for what its client does is ended [`HOLD`]
//!    later.
//! 5. What a client said before it closed is carried out, also what waits for a join: for as long as a join may take, and
//!    while the node takes clients. A close is answered after that.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Channels;
use super::client::ClientTask;
use super::entrance::JOIN;
use super::metered::Metered;
use super::websocket::{self, BINARY, BUFFER, Broken, CLOSE, Incoming, Message, PING, PONG, TEXT};
use crate::actors::channel_router::outbox::{Close, Next};
use crate::actors::timer;
use crate::gateway::clients::{Order, Told};
use crate::gateway::refusal::Cause;
use crate::io::metrics::Count;
use crate::proto::channel::head::Head;
use crate::proto::channel::{Encoded, Frame, Malformed};

/// A client that says nothing for so long is disconnected.
pub(in super::super) const IDLE: Duration = Duration::from_secs(60);
/// When to ask a quiet client whether it is there. Its answer keeps the network's paths open; it is no word.
const ASK: Duration = Duration::from_secs(30);
/// A client that takes nothing for so long is disconnected.
const TAKE: Duration = Duration::from_secs(10);
/// Between what a client did and the end of its connection for it: at most fifteen connections a minute.
pub(super) const HOLD: Duration = Duration::from_secs(4);
/// How long a client that is to go may go on talking.
const PART: Duration = Duration::from_secs(2);
/// Bytes that it may say meanwhile: several of the longest frames.
const REST: u64 = 16 * 1024 * 1024;

type Stream = Metered<TokioIo<Upgraded>>;

/// Serves a client until it goes, or is to go.
pub(in super::super) async fn run(stream: Upgraded, client: ClientTask, channels: Arc<Channels>) {
    let mut stream = Metered::new(TokioIo::new(stream), client.place().clone());
    channels.metrics.count(Count::Channels, "connected");
    let heard = timer::now();
    let incoming = Incoming::new(client.limits().frame);
    let mut connection = Connection { client, incoming, heard, asked: false, parting: None };
    let mut told = channels.admin.clients.follow();
    let close = connection.serve(&mut stream, &mut told).await;
    if close.is_none() {
        connection.finish(&mut stream, &mut told).await;
    }
    if let Some(close) = close {
        if close == Close::UNENTITLED {
            let from = connection.client.place().address();
            channels.refusals.note(Cause::Unentitled, from, "");
        }
        channels.metrics.count(Count::Channels, ended(close));
        drop(connection);
        if [Close::SLOW, Close::NOT_TEXT, Close::PROTOCOL, Close::RATE].contains(&close) {
            hold(&mut told).await;
        }
        part(stream, close).await;
    }
    channels.metrics.count(Count::Channels, "disconnected");
}

/// Waits for [`HOLD`], or until the client is sent elsewhere.
async fn hold(told: &mut Told) {
    drop(tokio::time::timeout(HOLD, told.go()).await);
}

/// Closes, and hears the client out.
async fn part(mut stream: Stream, close: Close) {
    let payload = [&close.code.to_be_bytes(), close.reason.as_bytes()].concat();
    let told = async {
        put(&mut stream, CLOSE, &payload).await?;
        stream.inner().shutdown().await.ok()
    };
    // Anyone who does not take even this is gone all the same.
    if let Ok(Some(())) = tokio::time::timeout(TAKE, told).await {
        let mut rest = stream.take(REST);
        drop(tokio::time::timeout(PART, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await);
    }
}

fn ended(close: Close) -> &'static str {
    match close {
        Close::IDLE => "closed_idle",
        Close::PROTOCOL | Close::NOT_TEXT => "closed_malformed",
        Close::SLOW => "closed_slow",
        Close::UNENTITLED => "closed_unentitled",
        Close::RATE => "closed_rate",
        _ => "closed_stopping",
    }
}

struct Connection {
    client: ClientTask,
    incoming: Incoming,
    heard: Instant,
    asked: bool,
    parting: Option<Parting>,
}

/// How a client goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parting {
    /// By a close, which is to be answered.
    Close,
    /// It says nothing more, but may still read.
    End,
}

impl Connection {
    /// How it is to be closed; `None` when it is closed already.
    async fn serve(&mut self, stream: &mut Stream, told: &mut Told) -> Option<Close> {
        let mut frames = Vec::new();
        let sleep = tokio::time::sleep_until(self.due().into());
        let mut sleep = std::pin::pin!(sleep);
        let (outbox, wake) = (self.client.outbox().clone(), self.client.wake());
        loop {
            tokio::select! {
                next = outbox.next(&mut frames) => match next {
                    Next::Close(close) => return Some(close),
                    Next::Frames => {
                        send(stream, &mut frames).await?;
                        continue;
                    }
                },
                message = self.incoming.read(stream) => match message {
                    Ok(message) => {
                        if message.is_none() {
                            self.parting = Some(Parting::End);
                        }
                        self.hear(message?, stream).await?;
                        // Many short frames are read at once: others have their turn between them.
                        tokio::task::consume_budget().await;
                    }
                    Err(Broken::Protocol) => return Some(Close::PROTOCOL),
                    Err(Broken::NotText) => return Some(Close::NOT_TEXT),
                },
                () = wake.notified() => self.client.sweep(),
                () = &mut sleep => {
                    if let Some(close) = self.tick(stream).await? {
                        return Some(close);
                    }
                    sleep.as_mut().reset(self.due().into());
                }
                order = told.next() => match order {
                    Order::Go => outbox.close(Close::RESTART),
                    Order::Look => self.client.expire(),
                },
            }
            // A join may have brought a right that ends sooner, or the clock was set.
            let due = self.due();
            if due < sleep.deadline().into_std() {
                sleep.as_mut().reset(due.into());
            }
        }
    }

    fn due(&self) -> Instant {
        let quiet = self.heard + if self.asked { IDLE } else { ASK };
        // Rights may end earlier than this was last asked for.
        let soon = timer::now() + Duration::from_secs(1);
        let first =
            [self.client.deadline(), self.client.place().deadline()].into_iter().flatten().min();
        first.map_or(quiet, |first| quiet.min(first.max(soon)))
    }

    /// What is due; `None` when the client is gone.
    async fn tick(&mut self, stream: &mut Stream) -> Option<Option<Close>> {
        let now = timer::now();
        self.client.expire();
        if self.client.place().deadline().is_some_and(|deadline| deadline <= now) {
            return Some(Some(Close::UNENTITLED));
        }
        if self.heard + IDLE <= now {
            return Some(Some(Close::IDLE));
        }
        if self.heard + ASK <= now && !self.asked {
            self.asked = true;
            tokio::time::timeout(TAKE, put(stream, PING, b"")).await.ok()??;
        }
        Some(None)
    }

    /// Takes a message; `None` when the client is gone.
    async fn hear(&mut self, message: Message, stream: &mut Stream) -> Option<()> {
        // An answer to our question is no word of the client's own.
        if message != Message::Pong {
            (self.heard, self.asked) = (timer::now(), false);
        }
        match &message {
            Message::Text(_) | Message::Binary(_) | Message::TooLong { .. } => self.take(&message),
            Message::Ping(payload) => {
                return tokio::time::timeout(TAKE, put(stream, PONG, payload)).await.ok()?;
            }
            Message::Pong => {}
            Message::Close => {
                self.parting = Some(Parting::Close);
                return None;
            }
        }
        Some(())
    }

    /// Takes what is to be a frame.
    fn take(&mut self, message: &Message) {
        let (dialect, length) = (self.client.dialect(), message.length());
        let read = match message {
            Message::Text(text) => {
                Frame::text(dialect, text).map_err(|why| (Head::text(dialect, text), why))
            }
            Message::Binary(bytes) => {
                Frame::binary(bytes).map_err(|why| (Head::binary(bytes), why))
            }
            Message::TooLong { text, begin, length: _ } => {
                let head = if *text { Head::text(dialect, begin) } else { Head::binary(begin) };
                Err((head, Malformed::TooLong(self.client.limits().frame)))
            }
            Message::Ping(_) | Message::Pong | Message::Close => return,
        };
        match read {
            Ok(frame) => self.client.hear(frame, length),
            Err((head, why)) => self.client.refuse(&head, why, length),
        }
    }

    /// Carries out what a client said before it went, and tells it what comes of that where it can still read.
    async fn finish(&mut self, stream: &mut Stream, told: &mut Told) {
        // Its stream broke where it was written to.
        while self.parting.is_none()
            && let Ok(Some(message)) = self.incoming.next()
            && message != Message::Close
        {
            self.take(&message);
        }
        tokio::select! {
            () = self.settle(stream) => {}
            () = tokio::time::sleep(JOIN) => {}
            () = told.go() => {}
        }
        if self.parting == Some(Parting::Close) {
            // Anyone who does not wait for it is gone all the same.
            drop(tokio::time::timeout(TAKE, put(stream, CLOSE, b"")).await);
        }
    }

    /// Returns when nothing that the client said waits any more.
    async fn settle(&mut self, stream: &mut Stream) {
        let (outbox, wake) = (self.client.outbox().clone(), self.client.wake());
        let (mut frames, mut open, mut reads) = (Vec::new(), true, self.parting.is_some());
        while self.client.has_waiting() {
            tokio::select! {
                next = outbox.next(&mut frames), if open => {
                    open = next == Next::Frames;
                    reads = reads && send_in_time(stream, &mut frames).await;
                    frames.clear();
                }
                () = wake.notified() => self.client.sweep(),
            }
        }
        if reads && outbox.try_next(&mut frames) == Some(Next::Frames) {
            send_in_time(stream, &mut frames).await;
        }
    }
}

/// Sends to a client that goes; whether it still reads.
async fn send_in_time(stream: &mut Stream, frames: &mut Vec<Encoded>) -> bool {
    let sent = tokio::time::timeout(PART, send(stream, frames)).await;
    sent.is_ok_and(|sent| sent.is_some())
}

/// Sends a short frame.
async fn put(stream: &mut Stream, kind: u8, payload: &[u8]) -> Option<()> {
    let mut frame = Vec::with_capacity(payload.len() + 4);
    websocket::head(&mut frame, kind, payload.len());
    frame.extend_from_slice(payload);
    stream.inner().write_all(&frame).await.ok()?;
    stream.inner().flush().await.ok()
}

/// Sends what there is, in as few writes as possible. Frames that many clients get are not copied for each: what a
/// crowd has to wait for would be held once for every one of them.
async fn send(stream: &mut Stream, frames: &mut Vec<Encoded>) -> Option<()> {
    let stream = stream.inner();
    let sending = async {
        let mut gathered = Vec::with_capacity(BUFFER);
        for frame in std::mem::take(frames) {
            let kind = if matches!(frame, Encoded::Binary(_)) { BINARY } else { TEXT };
            websocket::head(&mut gathered, kind, frame.length());
            let payload = match &frame {
                Encoded::Text(payload) | Encoded::Binary(payload) => payload,
                Encoded::Parts(first, second) => {
                    gathered.extend_from_slice(first);
                    second
                }
            };
            if payload.len() < BUFFER {
                gathered.extend_from_slice(payload);
            }
            if payload.len() >= BUFFER || gathered.len() >= 4 * BUFFER {
                stream.write_all(&gathered).await.ok()?;
                gathered.clear();
            }
            if payload.len() >= BUFFER {
                stream.write_all(payload).await.ok()?;
            }
        }
        stream.write_all(&gathered).await.ok()?;
        stream.flush().await.ok()
    };
    tokio::time::timeout(TAKE, sending).await.ok()?
}
