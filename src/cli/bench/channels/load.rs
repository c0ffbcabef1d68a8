//! Clients of Phoenix Channels that cost next to nothing: they know where frames begin and end, and no more.
//!
//! One thread serves all of them. A frame of the server is not masked (RFC 6455, 5.1), so what many clients get alike is
//! the same bytes for each.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use xpando_node::internals::actors::timer::now;

/// Time for anything that one client waits for.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes that a client reads at once.
const READ: usize = 16 * 1024;

/// A client's reading side.
pub(in super::super) struct Reader {
    stream: OwnedReadHalf,
    buffer: Vec<u8>,
    /// Where in the buffer the next frame begins.
    begin: usize,
}

/// A client's writing side.
pub(in super::super) struct Writer(OwnedWriteHalf);

/// A client that has joined a topic.
pub(in super::super) async fn join(
    to: SocketAddr,
    topic: &str,
) -> anyhow::Result<(Reader, Writer)> {
    join_as(to, topic, "{}").await
}

/// Likewise, with parameters.
pub(super) async fn join_as(
    to: SocketAddr,
    topic: &str,
    params: &str,
) -> anyhow::Result<(Reader, Writer)> {
    let joined = tokio::time::timeout(PATIENCE, joining(to, topic, params)).await;
    joined.context("no join in time")?
}

async fn joining(to: SocketAddr, topic: &str, params: &str) -> anyhow::Result<(Reader, Writer)> {
    let (mut reader, mut writer) = connect(to).await?;
    writer.send(&format!(r#"["1","1","{topic}","phx_join",{params}]"#)).await?;
    let mut joined = false;
    while !joined {
        reader.frames(|frame| joined |= contains(frame, br#""phx_reply",{"status":"ok""#)).await?;
    }
    Ok((reader, writer))
}

/// A client that has joined nothing yet.
pub(in super::super) async fn connect(to: SocketAddr) -> anyhow::Result<(Reader, Writer)> {
    connect_from(None, to).await
}

/// Likewise, from this address of the machine.
pub(super) async fn connect_from(
    from: Option<IpAddr>,
    to: SocketAddr,
) -> anyhow::Result<(Reader, Writer)> {
    let (stream, mut writer) = dial(from, to).await?.into_split();
    let request = format!(
        "GET /socket/websocket?vsn=2.0.0 HTTP/1.1\r\nHost: {to}\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    writer.write_all(request.as_bytes()).await?;
    let mut reader = Reader::new(stream);
    reader.upgraded().await?;
    Ok((reader, Writer(writer)))
}

/// A connection from this address of the machine: of each there are as many as an address has ports.
pub(super) async fn dial(from: Option<IpAddr>, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(from) = from {
        socket.bind((from, 0).into())?;
    }
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl Writer {
    /// Sends a text frame.
    pub(in super::super) async fn send(&mut self, text: &str) -> io::Result<()> {
        self.0.write_all(&masked(text)).await
    }
}

/// A client's text frame, with a mask that changes nothing.
pub(super) fn masked(text: &str) -> Vec<u8> {
    let mut frame = vec![0x81];
    match u16::try_from(text.len()) {
        Ok(short) if short < 126 => frame.push(0x80 | text.len() as u8),
        Ok(length) => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&length.to_be_bytes());
        }
        Err(_long) => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(text.len() as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(text.as_bytes());
    frame
}

impl Reader {
    /// One that has read nothing yet.
    pub(super) fn new(stream: OwnedReadHalf) -> Self {
        Self { stream, buffer: Vec::with_capacity(1024), begin: 0 }
    }

    async fn upgraded(&mut self) -> anyhow::Result<()> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                if !self.buffer.starts_with(b"HTTP/1.1 101 ") {
                    bail!("not upgraded: {}", String::from_utf8_lossy(&self.buffer));
                }
                self.begin = end + 4;
                return Ok(());
            }
            self.more().await?;
        }
    }

    async fn more(&mut self) -> io::Result<()> {
        self.buffer.drain(..self.begin);
        self.begin = 0;
        self.buffer.reserve(if self.buffer.capacity() < 2048 { 1024 } else { READ });
        if self.stream.read_buf(&mut self.buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    /// Shows every whole frame that is there, after at least one has come; how many there were.
    pub(in super::super) async fn frames(
        &mut self,
        mut show: impl FnMut(&[u8]),
    ) -> io::Result<u64> {
        loop {
            let mut count = 0;
            while let Some((payload, end)) = next(&self.buffer[self.begin..]) {
                show(&self.buffer[self.begin + payload..self.begin + end]);
                self.begin += end;
                count += 1;
            }
            if count > 0 {
                return Ok(count);
            }
            self.more().await?;
        }
    }
}

/// Where the payload of the first frame begins and ends, when it is whole.
fn next(bytes: &[u8]) -> Option<(usize, usize)> {
    let (begin, length) = match *bytes.get(1)? {
        126 => (4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?))),
        127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?) as usize),
        short => (2, usize::from(short)),
    };
    let end = begin + length;
    (bytes.len() >= end).then_some((begin, end))
}

pub(in super::super) fn contains(text: &[u8], what: &[u8]) -> bool {
    text.windows(what.len()).any(|window| window == what)
}

/// The number that a message carries as `"at":N`.
pub(super) fn at(frame: &[u8]) -> Option<u64> {
    let begin = frame.windows(5).position(|window| window == b"\"at\":")? + 5;
    let digits = frame.get(begin..)?.iter().take_while(|byte| byte.is_ascii_digit());
    Some(digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

/// Nanoseconds since the start of a measurement.
pub(super) fn since(start: Instant) -> u64 {
    u64::try_from((now() - start).as_nanos()).unwrap_or(u64::MAX)
}
