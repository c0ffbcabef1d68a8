//! One link's bytes: three lanes on one TLS stream (`proto::frame`), the gate before ractor.
//!
//! The task that runs this owns the stream. It ends when either side says goodbye, the stream ends,
//! or the peer breaks the protocol. Invariants: a piece of one lane delays another lane by at most
//! 64 KiB; what a peer can have waiting at the door is bounded by [`WAITING`]; a full ractor pipe
//! holds the reader back only while ractor reads, and ractor always reads.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, DuplexStream, ReadHalf,
    WriteHalf,
};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::actors::pubsub::PubSub;
use crate::actors::timer;
use crate::io::tls::{Cause, cause_of_io};
use crate::proto::frame::{self, Control, Lane, Parting};
use crate::proto::gate::Gate;
use crate::proto::membership::LinkEnd;
use crate::proto::node::NodeName;

/// Bytes between ractor's session and the link, each way.
pub(super) const PIPE: usize = 64 * 1024;
/// Door pieces of one peer that may wait for PubSub.
const WAITING: usize = 64;
/// Bytes read from the stream at once.
const READ: usize = 32 * 1024;
/// Time to say goodbye to a peer that may not be reading.
const GOODBYE: Duration = Duration::from_secs(1);

/// The gate for a link of this direction and peer.
pub(super) fn gate(inbound: bool, peer: NodeName) -> Gate {
    if inbound { Gate::inbound(peer) } else { Gate::outbound(peer) }
}

/// The door lane's two ends.
pub(super) struct Door {
    peer: NodeName,
    pubsub: PubSub,
    outgoing: mpsc::Receiver<Vec<u8>>,
    waiting: Arc<Semaphore>,
}

impl Door {
    pub(super) fn new(peer: NodeName, pubsub: PubSub, outgoing: mpsc::Receiver<Vec<u8>>) -> Self {
        Self { peer, pubsub, outgoing, waiting: Arc::new(Semaphore::new(WAITING)) }
    }
}

/// Runs a link until it ends.
pub(super) async fn run<S: AsyncRead + AsyncWrite + Send>(
    stream: S,
    gate: Gate,
    pipe: DuplexStream,
    door: Door,
    parting: oneshot::Receiver<Parting>,
) -> LinkEnd {
    let (reader, writer) = tokio::io::split(stream);
    let (from_ractor, to_ractor) = tokio::io::split(pipe);
    let Door { peer, pubsub, outgoing, waiting } = door;
    let incoming = Incoming { gate, to_ractor, peer, pubsub, waiting };
    tokio::select! {
        end = incoming.run(BufReader::with_capacity(READ, reader)) => end,
        end = outgoing_lanes(writer, from_ractor, outgoing, parting) => end,
    }
}

struct Incoming {
    gate: Gate,
    to_ractor: WriteHalf<DuplexStream>,
    peer: NodeName,
    pubsub: PubSub,
    waiting: Arc<Semaphore>,
}

impl Incoming {
    async fn run(mut self, mut reader: impl AsyncRead + Unpin) -> LinkEnd {
        let mut passed = Vec::new();
        loop {
            let (lane, payload) = match piece(&mut reader).await {
                Ok(piece) => piece,
                Err(end) => return end,
            };
            let step = match lane {
                Lane::Control => Control::decode(&payload)
                    .map(|Control::Goodbye(parting)| Some(LinkEnd::Goodbye(parting)))
                    .map_err(|error| format!("control message: {error}")),
                Lane::Ractor => {
                    passed.clear();
                    match self.gate.feed(&payload, timer::now(), &mut passed) {
                        // A pipe that ractor closed ends the link from ractor's side.
                        Ok(()) => Ok(self
                            .to_ractor
                            .write_all(&passed)
                            .await
                            .err()
                            .map(|_| LinkEnd::Closed)),
                        Err(error) => Err(error.to_string()),
                    }
                }
                Lane::Door => {
                    if let Ok(permit) = self.waiting.clone().acquire_owned().await {
                        self.pubsub.received(self.peer.clone(), payload, permit);
                    }
                    Ok(None)
                }
            };
            match step {
                Ok(None) => {}
                Ok(Some(end)) => return end,
                Err(fault) => return LinkEnd::Fault(fault),
            }
        }
    }
}

async fn piece(reader: &mut (impl AsyncRead + Unpin)) -> Result<(Lane, Vec<u8>), LinkEnd> {
    let mut header = [0; frame::HEADER];
    reader.read_exact(&mut header).await.map_err(|error| ended(&error))?;
    let (lane, length) =
        frame::parse_header(header).map_err(|error| LinkEnd::Fault(error.to_string()))?;
    let mut payload = vec![0; length];
    reader.read_exact(&mut payload).await.map_err(|error| ended(&error))?;
    Ok((lane, payload))
}

fn ended(error: &io::Error) -> LinkEnd {
    match (error.kind(), cause_of_io(error)) {
        (io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable, _) => LinkEnd::TimedOut,
        (io::ErrorKind::NetworkUnreachable, _) => LinkEnd::TimedOut,
        (_, Cause::Closed | Cause::Other) => LinkEnd::Closed,
        (_, cause) => LinkEnd::Fault(format!("TLS: {cause}: {error}")),
    }
}

/// Sends what the lanes have: goodbye first, then the door, then ractor.
async fn outgoing_lanes(
    mut writer: WriteHalf<impl AsyncRead + AsyncWrite>,
    mut from_ractor: ReadHalf<DuplexStream>,
    mut door: mpsc::Receiver<Vec<u8>>,
    mut parting: oneshot::Receiver<Parting>,
) -> LinkEnd {
    let mut ractor = vec![0; PIPE];
    loop {
        let sent = tokio::select! {
            biased;
            why = &mut parting => {
                if let Ok(why) = why {
                    // A peer that does not read any more learns it from the end of the stream.
                    drop(tokio::time::timeout(GOODBYE, goodbye(&mut writer, why)).await);
                }
                return LinkEnd::Closed;
            }
            Some(bytes) = door.recv() => send(&mut writer, Lane::Door, &bytes).await,
            read = from_ractor.read(&mut ractor) => match read {
                Ok(0) | Err(_) => return LinkEnd::Closed,
                Ok(length) => send(&mut writer, Lane::Ractor, ractor.get(..length).unwrap_or(&[])).await,
            },
        };
        if sent.is_err() {
            // The reading side knows why, and may still find a goodbye in what had arrived.
            return std::future::pending().await;
        }
    }
}

async fn send(
    writer: &mut (impl AsyncWrite + Unpin),
    lane: Lane,
    payload: &[u8],
) -> io::Result<()> {
    let header = frame::header(lane, payload.len()).ok_or(io::ErrorKind::InvalidInput)?;
    writer.write_all(&[&header, payload].concat()).await?;
    writer.flush().await
}

async fn goodbye(writer: &mut (impl AsyncWrite + Unpin), why: Parting) -> io::Result<()> {
    let message = Control::Goodbye(why).encode().map_err(io::Error::other)?;
    send(writer, Lane::Control, &message).await?;
    writer.shutdown().await
}
