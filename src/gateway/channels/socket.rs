//! A client on a WebSocket.
//!
//! One task owns the socket. Invariants:
//! 1. It waits for the client to take what it is sent for at most [`TAKE`], and for it to say something for at most
//!    [`IDLE`].
//! 2. It is never closed with 1000, after which old clients do not come back.
//! 3. Whoever is told to go can read why: what the client still says is read and thrown away, up to [`REST`] and for
//!    [`PART`], for a stream that is dropped with something unread on it is reset, and the reason lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

use super::Channels;
use super::client::Client;
use crate::actors::channel_router::outbox::{Close, Next};
use crate::actors::timer;
use crate::io::metrics::Count;
use crate::proto::channel::{Encoded, Frame, MAX_FRAME, Malformed};

/// A client that says nothing for so long is disconnected.
pub(in crate::gateway) const IDLE: Duration = Duration::from_secs(60);
/// When to ask a quiet client whether it is there. Its answer keeps the network's paths open; it is no word.
const ASK: Duration = Duration::from_secs(30);
/// A client that takes nothing for so long is disconnected.
const TAKE: Duration = Duration::from_secs(10);
/// How long a client that is to go may go on talking.
const PART: Duration = Duration::from_secs(2);
/// Bytes that it may say meanwhile: several of the longest frames.
const REST: u64 = 16 * 1024 * 1024;

/// Bytes that are read at once, and that small frames are gathered in. More is taken as it is needed, and kept no
/// longer than that.
const BUFFER: usize = 4 * 1024;

type WebSocket = WebSocketStream<TokioIo<Upgraded>>;

/// Serves a client until it goes, or is to go.
pub(in crate::gateway) async fn run(stream: Upgraded, client: Client, channels: Arc<Channels>) {
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER)
        .write_buffer_size(0)
        .max_frame_size(Some(MAX_FRAME))
        .max_message_size(Some(MAX_FRAME));
    let stream = TokioIo::new(stream);
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
    channels.metrics.count(Count::Channels, "connected");
    let mut session = Connection { client, heard: timer::now(), asked: false };
    let news = channels.admin.clients.news.subscribe();
    if let Some(close) = session.serve(&mut socket, news).await {
        channels.metrics.count(Count::Channels, ended(close));
        drop(session);
        part(socket, close).await;
    } else {
        // The answer to the client's own close.
        drop(tokio::time::timeout(TAKE, socket.flush()).await);
    }
    channels.metrics.count(Count::Channels, "disconnected");
}

/// Closes, and hears the client out.
async fn part(mut socket: WebSocket, close: Close) {
    let (code, reason) = (CloseCode::from(close.code), Utf8Bytes::from_static(close.reason));
    let told = async {
        socket.send(Message::Close(Some(CloseFrame { code, reason }))).await.ok()?;
        socket.get_mut().shutdown().await.ok()
    };
    // Whoever does not take even this is gone all the same.
    if let Ok(Some(())) = tokio::time::timeout(TAKE, told).await {
        // After an error the library reads no more.
        let mut rest = socket.into_inner().take(REST);
        drop(tokio::time::timeout(PART, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await);
    }
}

fn ended(close: Close) -> &'static str {
    match close.code {
        1002 => "closed_idle",
        1007 => "closed_malformed",
        1009 => "closed_too_long",
        1013 => "closed_slow",
        _ => "closed_stopping",
    }
}

struct Connection {
    client: Client,
    heard: Instant,
    asked: bool,
}

impl Connection {
    /// How it is to be closed; `None` when it is closed already.
    async fn serve(
        &mut self,
        socket: &mut WebSocket,
        mut news: watch::Receiver<bool>,
    ) -> Option<Close> {
        let mut frames = Vec::new();
        let sleep = tokio::time::sleep_until(self.due().into());
        let mut sleep = std::pin::pin!(sleep);
        let outbox = self.client.outbox().clone();
        loop {
            tokio::select! {
                next = outbox.next(&mut frames) => match next {
                    Next::Close(close) => return Some(close),
                    Next::Frames => send(socket, &mut frames).await?,
                },
                message = socket.next() => {
                    if let Err(close) = self.hear(message?).await {
                        return close;
                    }
                    // A join may have brought a right that ends sooner.
                    let due = self.due();
                    if due < sleep.deadline().into_std() {
                        sleep.as_mut().reset(due.into());
                    }
                }
                () = self.client.swept() => {}
                () = &mut sleep => {
                    if let Some(close) = self.tick(socket).await? {
                        return Some(close);
                    }
                    sleep.as_mut().reset(self.due().into());
                }
                changed = news.changed() => {
                    if changed.is_err() || *news.borrow_and_update() {
                        return Some(Close::RESTART);
                    }
                    self.client.expire();
                }
            }
        }
    }

    fn due(&self) -> Instant {
        let quiet = self.heard + if self.asked { IDLE } else { ASK };
        // Rights may end earlier than this was last asked for.
        let soon = timer::now() + Duration::from_secs(1);
        self.client.deadline().map_or(quiet, |right| quiet.min(right.max(soon)))
    }

    /// What is due; `None` when the client is gone.
    async fn tick(&mut self, socket: &mut WebSocket) -> Option<Option<Close>> {
        let now = timer::now();
        self.client.expire();
        if self.heard + IDLE <= now {
            return Some(Some(Close::IDLE));
        }
        if self.heard + ASK <= now && !self.asked {
            self.asked = true;
            let ping = socket.send(Message::Ping(bytes::Bytes::new()));
            tokio::time::timeout(TAKE, ping).await.ok()?.ok()?;
        }
        Some(None)
    }

    async fn hear(&mut self, message: Result<Message, Error>) -> Result<(), Option<Close>> {
        // An answer to our question is no word of the client's own.
        if !matches!(message, Ok(Message::Pong(_))) {
            (self.heard, self.asked) = (timer::now(), false);
        }
        let frame = match message {
            Ok(Message::Text(text)) => {
                Frame::text(self.client.dialect(), &bytes::Bytes::from(text))
            }
            Ok(Message::Binary(bytes)) => Frame::binary(&bytes),
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => return Ok(()),
            Ok(Message::Close(_)) => return Err(None),
            Err(error) => return Err(broken(&error)),
        };
        match frame {
            Ok(frame) => self.client.hear(frame).await,
            // Other dialects have kinds of their own.
            Err(Malformed::Kind) => {}
            Err(_malformed) => return Err(Some(Close::MALFORMED)),
        }
        Ok(())
    }
}

/// How to answer what is no WebSocket message; `None` when nobody is left to answer.
fn broken(error: &Error) -> Option<Close> {
    if matches!(error, Error::Capacity(_)) {
        return Some(Close::TOO_LONG);
    }
    matches!(error, Error::Utf8(_) | Error::Protocol(_)).then_some(Close::MALFORMED)
}

/// Sends what there is, in as few writes as possible. Frames that many clients get are not copied for each: what a
/// crowd has to wait for would be held once for every one of them.
async fn send(socket: &mut WebSocket, frames: &mut Vec<Encoded>) -> Option<()> {
    let sending = async {
        // What the library has to say is whole before anything else is said on its stream.
        socket.flush().await.ok()?;
        let stream = socket.get_mut();
        let mut gathered = Vec::with_capacity(BUFFER);
        for frame in std::mem::take(frames) {
            let (Encoded::Text(payload) | Encoded::Binary(payload)) = &frame;
            head(&mut gathered, matches!(frame, Encoded::Text(_)), payload.len());
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

/// The head of a frame that is a whole message of a server (RFC 6455, 5.2).
fn head(out: &mut Vec<u8>, text: bool, length: usize) {
    out.push(if text { 0x81 } else { 0x82 });
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short), _) if short < 126 => out.push(short),
        (_, Ok(length)) => {
            out.push(126);
            out.extend_from_slice(&length.to_be_bytes());
        }
        (_, Err(_long)) => {
            out.push(127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_say_how_long_a_message_is() {
        let of = |text, length| {
            let mut out = Vec::new();
            head(&mut out, text, length);
            out
        };
        assert_eq!(of(true, 125), [0x81, 125]);
        assert_eq!(of(false, 126), [0x82, 126, 0, 126]);
        assert_eq!(of(true, 0xffff), [0x81, 126, 0xff, 0xff]);
        assert_eq!(of(true, 0x1_0000), [0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    }
}
