//! Exchanges of several nodes in one process, and cables between them that a test can watch, stop and cut.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex, split};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::*;
use crate::actors::link::cable::End;
use crate::actors::news::Bus;
pub(super) use crate::actors::tests::settled;
use crate::proto::capability::Capabilities;
use crate::proto::frame::{HEADER, header, parse_header};

pub(super) const A: &str = "a@127.0.0.1";
pub(super) const B: &str = "b@127.0.0.1";
pub(super) const C: &str = "c@127.0.0.1";
/// What a stream between two links holds.
const PIPE: usize = 64 * 1024;

/// The exchange of a node.
pub(super) fn node(me: &str) -> (Exchange, Metrics) {
    let metrics = Metrics::default();
    (Exchange::new(name(me), &metrics), metrics)
}

pub(super) fn exchange(me: &str) -> Exchange {
    node(me).0
}

pub(super) fn topic(text: &str) -> Topic {
    text.parse().expect("valid")
}

pub(super) fn pattern(text: &str) -> Pattern {
    text.parse().expect("valid")
}

impl End {
    /// Waits until it ends by itself.
    pub(super) async fn end(&mut self) -> LinkEnd {
        let ended = tokio::time::timeout(PATIENCE * 5, self.ended()).await;
        ended.expect("ends in time").expect("no panic")
    }
}

/// One direction of a cable.
struct Way {
    open: watch::Sender<bool>,
    carried: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Way {
    fn start(
        from: impl AsyncRead + Send + Unpin + 'static,
        to: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        let ((open, opened), carried) = (watch::channel(true), Arc::new(AtomicUsize::new(0)));
        let task = tokio::spawn(carry(from, to, opened, carried.clone()));
        Self { open, carried, task }
    }
}

async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut open: watch::Receiver<bool>,
    carried: Arc<AtomicUsize>,
) {
    let mut bytes = vec![0; PIPE];
    while open.wait_for(|open| *open).await.is_ok() {
        let Ok(length @ 1..) = from.read(&mut bytes).await else { break };
        carried.fetch_add(length, Ordering::Relaxed);
        if to.write_all(&bytes[..length]).await.is_err() {
            break;
        }
    }
    to.shutdown().await.unwrap_or(()); // the other end may have gone
}

/// A link between two nodes.
pub(super) struct Cable {
    pub(super) ends: [End; 2],
    ways: [Way; 2],
}

impl Cable {
    /// Links two nodes; returns when each knows what the other wants.
    pub(super) async fn plug(a: &Exchange, b: &Exchange) -> Self {
        let ((a_end, to_a), (b_end, to_b)) = (duplex(PIPE), duplex(PIPE));
        let ((a_reads, a_writes), (b_reads, b_writes)) = (split(to_a), split(to_b));
        let ways = [Way::start(a_reads, b_writes), Way::start(b_reads, a_writes)];
        let ends = [
            End::start(a_end, &Bus::new(a), (b.name().clone(), b.capabilities().clone())),
            End::start(b_end, &Bus::new(b), (a.name().clone(), a.capabilities().clone())),
        ];
        settled().await;
        Self { ends, ways }
    }

    /// Bytes that went from the first node to the second.
    pub(super) fn carried(&self) -> usize {
        self.ways[0].carried.load(Ordering::Relaxed)
    }

    /// Whether what the first node says reaches the second; what it says meanwhile is not read.
    pub(super) fn open(&self, open: bool) {
        self.ways[0].open.send_replace(open);
    }

    /// The connection breaks: both ends find their streams ended.
    pub(super) async fn cut(mut self) {
        self.ways.iter().for_each(|way| way.task.abort());
        for end in &mut self.ends {
            assert_eq!(end.end().await, LinkEnd::Closed);
        }
    }

    pub(super) fn runs(&self) -> bool {
        self.ends.iter().all(End::runs)
    }
}

/// A peer whose pieces the test writes and reads.
pub(super) struct Raw {
    pub(super) end: End,
    stream: DuplexStream,
}

impl Raw {
    /// Links with a node under this name.
    pub(super) async fn plug(exchange: &Exchange, me: &str, buffer: usize) -> Self {
        Self::plug_as(exchange, (name(me), Capabilities::ALL), buffer).await
    }

    /// Likewise, with a certificate that lets it do this.
    pub(super) async fn plug_as(
        exchange: &Exchange,
        me: (NodeName, Capabilities),
        buffer: usize,
    ) -> Self {
        let (ours, stream) = duplex(buffer);
        let end = End::start(ours, &Bus::new(exchange), me);
        settled().await;
        Self { end, stream }
    }

    /// One piece; an error once the link has ended.
    pub(super) async fn try_say(&mut self, lane: Lane, payload: &[u8]) -> std::io::Result<()> {
        let header = header(lane, payload.len()).expect("a piece");
        self.stream.write_all(&[&header, payload].concat()).await
    }

    pub(super) async fn send(&mut self, lane: Lane, payload: &[u8]) {
        self.try_say(lane, payload).await.expect("the link reads");
    }

    /// The next piece, if there is one before everything has come to rest, or the link has ended.
    pub(super) async fn hear(&mut self) -> Option<(Lane, Vec<u8>)> {
        tokio::time::timeout(Duration::from_millis(1), async {
            let mut head = [0; HEADER];
            self.stream.read_exact(&mut head).await.ok()?;
            let (lane, length) = parse_header(head).expect("sound");
            let mut payload = vec![0; length];
            self.stream.read_exact(&mut payload).await.expect("whole");
            Some((lane, payload))
        })
        .await
        .ok()
        .flatten()
    }
}

/// A piece's payload with one whole message in it.
pub(super) fn whole(message: &[u8]) -> Vec<u8> {
    let mut payload = vec![0];
    put(&mut payload, message.len());
    payload.extend_from_slice(message);
    payload
}

/// A number as it travels.
pub(super) fn put(out: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// The next thing a subscriber gets.
pub(super) async fn recv(subscription: &mut Subscription) -> Option<Received> {
    tokio::time::timeout(PATIENCE, subscription.recv()).await.expect("in time")
}

/// The next message.
pub(super) async fn message(subscription: &mut Subscription) -> Message {
    match recv(subscription).await {
        Some(Received::Message(message)) => message,
        other => panic!("{other:?}"),
    }
}

/// Everything that waits for a subscriber.
pub(super) fn drained(subscription: &mut Subscription) -> Vec<Received> {
    std::iter::from_fn(|| subscription.try_recv()).collect()
}

/// The numbers with which these messages begin.
pub(super) fn numbers(received: &[Received]) -> Vec<u32> {
    let number = |received: &Received| match received {
        Received::Message(message) => {
            u32::from_be_bytes(*message.payload.first_chunk().expect("four bytes"))
        }
        Received::Missed(count) => panic!("{count} missed"),
    };
    received.iter().map(number).collect()
}

/// A payload of this length that begins with a number.
pub(super) fn numbered(number: u32, length: usize) -> Bytes {
    let mut payload = number.to_be_bytes().to_vec();
    payload.resize(length.max(4), number as u8);
    payload.into()
}
