//! Clients that do everything wrong, each in its own way, and come back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long a client holds on to a connection, and how long it waits before the next.
const HOLD: Duration = Duration::from_secs(15);
const AGAIN: Duration = Duration::from_secs(2);

const UPGRADE: &str = "GET /socket/websocket?vsn=2.0.0 HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
                       Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// What a client does wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wrong {
    Silent,
    HalfHead,
    SlowBody,
    NoToken,
    HalfFrame,
    Heartbeats,
    Garbage,
    UnreadAnswers,
    LongPolls,
    Requests,
    HalfHandshake,
}

pub(crate) const PLAIN: [Wrong; 10] = [
    Wrong::Silent,
    Wrong::HalfHead,
    Wrong::SlowBody,
    Wrong::NoToken,
    Wrong::HalfFrame,
    Wrong::Heartbeats,
    Wrong::Garbage,
    Wrong::UnreadAnswers,
    Wrong::LongPolls,
    Wrong::Requests,
];

/// What all of them see and do.
#[derive(Default)]
pub(crate) struct Crowd {
    over: AtomicBool,
    connected: AtomicU64,
}

impl Crowd {
    /// How many connections there were.
    pub(crate) fn connected(&self) -> u64 {
        self.connected.load(Ordering::Relaxed)
    }

    /// Nobody comes back.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    pub(crate) async fn client(self: Arc<Self>, node: SocketAddr, wrong: Wrong) {
        while !self.over.load(Ordering::Relaxed) {
            if let Ok(stream) = TcpStream::connect(node).await {
                self.connected.fetch_add(1, Ordering::Relaxed);
                // However it ends, it comes back.
                drop(tokio::time::timeout(HOLD, self.behave(stream, wrong)).await);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn behave(&self, mut stream: TcpStream, wrong: Wrong) -> std::io::Result<()> {
        let again = |text: &str| text.repeat(64);
        match wrong {
            Wrong::Silent => {}
            Wrong::HalfHead => stream.write_all(b"GET /socket/webso").await?,
            Wrong::HalfHandshake => {
                stream.write_all(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03").await?
            }
            Wrong::SlowBody => {
                let head = "POST /socket/longpoll?vsn=2.0.0 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n";
                stream.write_all(head.as_bytes()).await?;
                while !self.over.load(Ordering::Relaxed) {
                    stream.write_all(b"[").await?;
                    tokio::time::sleep(AGAIN).await;
                }
            }
            Wrong::NoToken => stream.write_all(UPGRADE.as_bytes()).await?,
            Wrong::HalfFrame => {
                stream.write_all(UPGRADE.as_bytes()).await?;
                stream.write_all(b"\x81\xff\0\0\0\0\0\x0f\0\0\0\0\0\0half").await?;
            }
            Wrong::Heartbeats => {
                let beat = r#"[null,"1","phoenix","heartbeat",{}]"#;
                let frame =
                    [&[0x81, 0x80 | beat.len() as u8, 0, 0, 0, 0], beat.as_bytes()].concat();
                return self.flood(stream, &frame.repeat(64)).await;
            }
            Wrong::Garbage => return self.flood(stream, &[0xff; 4096]).await,
            Wrong::UnreadAnswers => {
                let request = again("GET /api/openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n");
                while !self.over.load(Ordering::Relaxed) {
                    stream.write_all(request.as_bytes()).await?;
                }
            }
            Wrong::LongPolls | Wrong::Requests => {
                let path = if matches!(wrong, Wrong::Requests) {
                    "/nothing"
                } else {
                    "/socket/longpoll?vsn=2.0.0"
                };
                let request = again(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
                return self.ask(stream, request.as_bytes()).await;
            }
        }
        stream.read_to_end(&mut Vec::new()).await.map(drop)
    }

    /// Upgrades, and sends this as fast as it is taken.
    async fn flood(&self, mut stream: TcpStream, what: &[u8]) -> std::io::Result<()> {
        stream.write_all(UPGRADE.as_bytes()).await?;
        self.ask(stream, what).await
    }

    /// Sends this as fast as it is taken, and reads the answers.
    async fn ask(&self, stream: TcpStream, what: &[u8]) -> std::io::Result<()> {
        let (mut answers, mut requests) = stream.into_split();
        let writing = async {
            while !self.over.load(Ordering::Relaxed) {
                requests.write_all(what).await?;
            }
            Ok::<_, std::io::Error>(())
        };
        let mut sink = tokio::io::sink();
        tokio::select! {
            written = writing => written,
            read = tokio::io::copy(&mut answers, &mut sink) => read.map(drop),
        }
    }
}
