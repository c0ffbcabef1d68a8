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

use crate::actors::link::Pulse;
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

/// The control lane: the link's own affairs.
pub(super) struct Own {
    pub(super) parting: oneshot::Receiver<Parting>,
    pub(super) controls: mpsc::Receiver<Control>,
    /// Echoes of the peer's beats go through it back into `controls`.
    pub(super) pulse: Arc<Pulse>,
}

/// Runs a link until it ends.
pub(super) async fn run<S: AsyncRead + AsyncWrite + Send>(
    stream: S,
    gate: Gate,
    pipe: DuplexStream,
    door: Door,
    own: Own,
) -> LinkEnd {
    let (reader, writer) = tokio::io::split(stream);
    let (from_ractor, to_ractor) = tokio::io::split(pipe);
    let Door { peer, pubsub, outgoing, waiting } = door;
    let Own { parting, controls, pulse } = own;
    let incoming = Incoming { gate, to_ractor, peer, pubsub, waiting, pulse };
    let lanes = Outgoing { from_ractor, door: outgoing, controls, parting };
    tokio::select! {
        end = incoming.run(BufReader::with_capacity(READ, reader)) => end,
        end = lanes.run(writer) => end,
    }
}

struct Incoming {
    gate: Gate,
    to_ractor: WriteHalf<DuplexStream>,
    peer: NodeName,
    pubsub: PubSub,
    waiting: Arc<Semaphore>,
    pulse: Arc<Pulse>,
}

impl Incoming {
    async fn run(mut self, mut reader: impl AsyncRead + Unpin) -> LinkEnd {
        let mut passed = Vec::new();
        loop {
            let (lane, payload) = match piece(&mut reader).await {
                Ok(piece) => piece,
                Err(end) => return end,
            };
            self.pulse.on_bytes();
            let step = match lane {
                Lane::Control => match Control::decode(&payload) {
                    Ok(control) => Ok(self.control(control)),
                    Err(error) => Err(format!("control message: {error}")),
                },
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

impl Incoming {
    fn control(&self, control: Control) -> Option<LinkEnd> {
        match control {
            Control::Goodbye(parting) => return Some(LinkEnd::Goodbye(parting)),
            Control::Ping(number) => {
                self.pulse.on_beat();
                self.pulse.say(Control::Pong(number));
            }
            Control::Pong(number) => self.pulse.on_echo(number),
        }
        None
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

struct Outgoing {
    from_ractor: ReadHalf<DuplexStream>,
    door: mpsc::Receiver<Vec<u8>>,
    controls: mpsc::Receiver<Control>,
    parting: oneshot::Receiver<Parting>,
}

impl Outgoing {
    /// Sends what the lanes have: the link's own first, then the door, then ractor.
    async fn run(mut self, mut writer: WriteHalf<impl AsyncRead + AsyncWrite>) -> LinkEnd {
        let mut ractor = vec![0; PIPE];
        loop {
            let (lane, payload) = tokio::select! {
                biased;
                why = &mut self.parting => return part(&mut writer, why).await,
                Some(control) = self.controls.recv() => match control.encode() {
                    Ok(bytes) => (Lane::Control, Payload::Message(bytes)),
                    Err(_) => continue, // no control message is unencodable
                },
                Some(bytes) = self.door.recv() => (Lane::Door, Payload::Message(bytes)),
                read = self.from_ractor.read(&mut ractor) => match read {
                    Ok(0) | Err(_) => return LinkEnd::Closed,
                    Ok(length) => (Lane::Ractor, Payload::Piece(length)),
                },
            };
            let bytes = match &payload {
                Payload::Message(bytes) => bytes.as_slice(),
                Payload::Piece(length) => ractor.get(..*length).unwrap_or(&[]),
            };
            // Between pieces a goodbye can go at once; a piece under way has to end first.
            let ended = {
                let mut sending = std::pin::pin!(send(&mut writer, lane, bytes));
                tokio::select! {
                    sent = &mut sending => sent.map(|()| None),
                    why = &mut self.parting => {
                        let sent = tokio::time::timeout(GOODBYE, sending).await;
                        sent.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into())).map(|()| Some(why))
                    }
                }
            };
            match ended {
                Ok(None) => {}
                Ok(Some(why)) => return part(&mut writer, why).await,
                // A peer that does not read gets no goodbye.
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return LinkEnd::TimedOut,
                // The reading side knows why, and may still find a goodbye in what had arrived.
                Err(_) => return std::future::pending().await,
            }
        }
    }
}

/// What one piece carries: a message of its own, or so many bytes of ractor's buffer.
enum Payload {
    Message(Vec<u8>),
    Piece(usize),
}

/// Says goodbye, if this end was told to and not just dropped.
async fn part(
    writer: &mut (impl AsyncWrite + Unpin),
    why: Result<Parting, oneshot::error::RecvError>,
) -> LinkEnd {
    if let Ok(why) = why {
        // A peer that does not read any more learns it from the end of the stream.
        drop(tokio::time::timeout(GOODBYE, goodbye(writer, why)).await);
    }
    LinkEnd::Closed
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
