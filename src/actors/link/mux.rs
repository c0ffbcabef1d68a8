//! One link's bytes: its lanes on one TLS stream (`proto::frame`), the gate before ractor.
//!
//! The task that runs this owns the stream. It ends when either side says goodbye, the stream ends,
//! or the peer breaks the protocol. Invariants: a piece of one lane delays another lane by at most
//! 64 KiB, but what the authority has signed goes before all but control; reading stops for nothing but
//! a full ractor pipe, which holds the reader back only while ractor reads, and ractor always reads, a flood of
//! words, a signed list until it is in force, and a peer that costs more than its share (`proto::processor`); nothing of a
//! peer is passed on once its certificate is revoked; however the task ends, the exchange learns it.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader,
    DuplexStream, ReadHalf, WriteHalf,
};
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};

use crate::actors::exchange::{Kept, Outlet};
use crate::actors::link::Pulse;
use crate::actors::link::inbound::Inbound;
use crate::actors::link::lists::{Incoming as IncomingLists, Lists, Outgoing as OutgoingLists};
use crate::actors::news::Bus;
use crate::actors::timer;
use crate::io::metrics::{Count, Metrics};
use crate::io::tls::{Cause, cause_of_io};
use crate::proto::capability::Capabilities;
use crate::proto::frame::{self, CloseReason, Control, HEADER, Lane};
use crate::proto::gate::{self, Gate, Quiet};
use crate::proto::link::down_reason;
use crate::proto::membership::LinkEnd;
use crate::proto::node::{Incarnation, NodeName};
use crate::proto::outbox::Piece;
use crate::proto::processor::{self, Turn};
use crate::proto::talk::DownReason;

/// Bytes between ractor's session and the link, each way.
pub(super) const PIPE: usize = 64 * 1024;
/// Small pieces are read together; what is longer is read where it shall be.
const READ: usize = 4 * 1024;
/// Time to say goodbye to a peer that may not be reading.
const GOODBYE: Duration = Duration::from_secs(1);

/// The gate for a link of this direction and peer.
pub(super) fn gate(inbound: bool, peer: NodeName, guard: &LinkGuard) -> Gate {
    let may = guard.outlet.capabilities().clone();
    if inbound { Gate::inbound(peer, may) } else { Gate::outbound(peer, may) }
}

/// What the node says and hears on this link. Dropped, it tells the bus that the link is gone, after all its messages.
pub(crate) struct LinkGuard {
    bus: Bus,
    outlet: Arc<Outlet>,
    end: DownReason,
}

impl LinkGuard {
    /// Tells the bus that there is a link to this life of a peer, which may do this.
    pub(crate) fn open(
        bus: &Bus,
        (peer, may): (NodeName, Capabilities),
        life: Incarnation,
    ) -> Self {
        let outlet = bus.up(peer, life, may);
        Self { bus: bus.clone(), outlet, end: DownReason::LinkLost }
    }

    pub(super) fn outlet(&self) -> Arc<Outlet> {
        self.outlet.clone()
    }
}

impl Drop for LinkGuard {
    fn drop(&mut self) {
        self.bus.down(&self.outlet, self.end);
    }
}

/// The control lane: the link's own affairs.
pub(super) struct Own {
    pub(super) parting: oneshot::Receiver<CloseReason>,
    pub(super) controls: mpsc::Receiver<Control>,
    /// Echoes of the peer's beats go through it back into `controls`.
    pub(super) pulse: Arc<Pulse>,
    /// What the authority has signed, if the peer takes that.
    pub(super) lists: Option<Lists>,
    /// Whether the peer's certificate is revoked.
    pub(super) revoked: Box<dyn Fn() -> bool + Send + Sync>,
}

/// Runs a link until it ends. ractor's session ends with the pipe, which the caller drops once it has reported the end:
/// otherwise the end of the session could be faster, and look like its cause.
pub(super) async fn run<S: AsyncRead + AsyncWrite + Send>(
    stream: S,
    gate: Gate,
    pipe: &mut DuplexStream,
    mut guard: LinkGuard,
    own: Own,
) -> LinkEnd {
    let (reader, writer) = tokio::io::split(stream);
    let (from_ractor, to_ractor) = tokio::io::split(pipe);
    let Own { parting, controls, pulse, lists, revoked } = own;
    let (lists_in, lists_out) = lists.unzip();
    let inbound = Inbound::new(guard.bus.clone(), guard.outlet.clone());
    let outlet = guard.outlet.clone();
    let metrics = guard.bus.exchange().metrics().clone();
    let kept = outlet.account().keep();
    let incoming = Incoming {
        gate,
        kept,
        to_ractor,
        inbound,
        pulse,
        outlet,
        lists: lists_in,
        revoked,
        metrics: metrics.clone(),
    };
    let outlet = guard.outlet.clone();
    let lanes = Outgoing { from_ractor, outlet, controls, parting, lists: lists_out, metrics };
    let end = tokio::select! {
        end = incoming.run(BufReader::with_capacity(READ, reader)) => end,
        end = lanes.run(writer) => end,
    };
    guard.end = down_reason(&end);
    end
}

struct Incoming<'a> {
    gate: Gate,
    /// What the gate let ractor keep.
    kept: Kept,
    to_ractor: WriteHalf<&'a mut DuplexStream>,
    inbound: Inbound,
    pulse: Arc<Pulse>,
    outlet: Arc<Outlet>,
    lists: Option<IncomingLists>,
    revoked: Box<dyn Fn() -> bool + Send + Sync>,
    metrics: Metrics,
}

impl Incoming<'_> {
    async fn run(mut self, mut reader: impl AsyncBufRead + Unpin) -> LinkEnd {
        let mut passed = Vec::new();
        loop {
            let (lane, payload) = match self.piece(&mut reader).await {
                Ok(piece) => piece,
                Err(end) => return end,
            };
            self.pulse.on_bytes();
            // Of the exchange's lanes, the messages are counted where they are told apart.
            let whole = u64::from(matches!(lane, Lane::Control | Lane::Ractor | Lane::Lists));
            self.metrics.traffic().came(lane, whole, HEADER + payload.len());
            let account = self.outlet.account();
            let step = match lane {
                // Until its link is ended, which is under way.
                lane if lane != Lane::Control && (self.revoked)() => {
                    self.skip(payload.len(), "revoked");
                    Ok(None)
                }
                Lane::Control => match Control::decode(&payload) {
                    Ok(Some(control)) => self.control(control),
                    Ok(None) => {
                        self.skip(payload.len(), "unknown_kind");
                        Ok(None)
                    }
                    Err(error) => Err(format!("control message: {error}")),
                },
                Lane::Ractor => {
                    passed.clear();
                    match self.gate.feed(&payload, timer::now(), &mut passed) {
                        // A pipe that ractor closed ends the link from ractor's side.
                        Ok(()) => {
                            account.spend(processor::GROUPS * self.gate.changed());
                            self.kept.set(self.gate.kept());
                            let written = self.to_ractor.write_all(&passed).await;
                            Ok(written.err().map(|_| LinkEnd::Closed))
                        }
                        Err(error) => Err(error.to_string()),
                    }
                }
                Lane::Lists => match &mut self.lists {
                    Some(lists) => lists.piece(&self.outlet, &payload).await.map(|()| None),
                    None => {
                        self.skip(payload.len(), "unknown_kind");
                        Ok(None)
                    }
                },
                Lane::System | Lane::Calls | Lane::Bulk => {
                    let taken = self.inbound.piece(lane, payload, timer::now()).await;
                    taken.map(|()| None).map_err(|fault| fault.to_string())
                }
            };
            match step {
                Ok(None) => {}
                Ok(Some(end)) => return end,
                Err(fault) => return LinkEnd::Fault(fault),
            }
            if let Err(end) = self.pause().await {
                return end;
            }
        }
    }

    /// Pays for a piece that is skipped, and counts why.
    fn skip(&self, length: usize, why: &'static str) {
        self.outlet.account().spend(processor::CONTROL + processor::BYTE * length as u64);
        self.metrics.count(Count::Messages, why);
    }

    /// Reads nothing more while the peer costs more than its share.
    async fn pause(&self) -> Result<(), LinkEnd> {
        let account = self.outlet.account();
        let until = match account.turn(timer::now()) {
            Turn::Now => return Ok(()),
            Turn::At(until) => until,
            Turn::Never => {
                let fault = "more processor time than a peer may cost, for too long";
                return Err(LinkEnd::Fault(fault.to_owned()));
            }
        };
        self.metrics.count(Count::Messages, "reader_paused");
        if account.notable("processor") {
            let peer = self.outlet.peer();
            tracing::warn!(%peer, "a peer costs more processor time than it may and is read in pauses: see what it sends, or revoke it");
        }
        tokio::time::sleep_until(until.into()).await;
        Ok(())
    }

    fn control(&mut self, control: Control) -> Result<Option<LinkEnd>, String> {
        let beat = matches!(control, Control::Ping(_));
        self.outlet.account().spend(if beat { processor::BEAT } else { processor::CONTROL });
        match control {
            Control::Goodbye(parting) => return Ok(Some(LinkEnd::Goodbye(parting))),
            Control::Ping(number) => self.pulse.send(Control::Pong(number)),
            Control::Pong(number) => {
                if let Some(took) = self.pulse.on_pong(number) {
                    self.metrics.count(Count::Beats, "answered");
                    self.outlet.echoed(took);
                }
            }
            Control::Credit(bytes) => {
                self.outlet.credited(bytes).map_err(|_too_much| "credit never used".to_owned())?;
            }
        }
        Ok(None)
    }

    /// The next piece. While it waits for one, it looks after what waits here.
    async fn piece(
        &mut self,
        reader: &mut (impl AsyncBufRead + Unpin),
    ) -> Result<(Lane, Bytes), LinkEnd> {
        loop {
            let now = timer::now();
            let Some(deadline) = self.inbound.deadline(now) else { break };
            // A peer that always has something to say delays nothing here.
            if deadline <= now {
                let held = self.inbound.tick(now);
                held.map_err(|fault| LinkEnd::Fault(fault.to_string()))?;
                continue;
            }
            match tokio::time::timeout_at(deadline.into(), reader.fill_buf()).await {
                Ok(filled) => {
                    filled.map_err(|error| ended(&error))?;
                    break;
                }
                Err(_elapsed) => {} // due
            }
        }
        piece(reader).await
    }
}

async fn piece(reader: &mut (impl AsyncRead + Unpin)) -> Result<(Lane, Bytes), LinkEnd> {
    let mut header = [0; HEADER];
    reader.read_exact(&mut header).await.map_err(|error| ended(&error))?;
    let (lane, length) =
        frame::parse_header(header).map_err(|error| LinkEnd::Fault(error.to_string()))?;
    let mut payload = BytesMut::with_capacity(length);
    let mut rest = reader.take(length as u64);
    while payload.len() < length {
        if rest.read_buf(&mut payload).await.map_err(|error| ended(&error))? == 0 {
            return Err(LinkEnd::Closed);
        }
    }
    Ok((lane, payload.freeze()))
}

fn ended(error: &io::Error) -> LinkEnd {
    match (error.kind(), cause_of_io(error)) {
        (io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable, _) => LinkEnd::TimedOut,
        (io::ErrorKind::NetworkUnreachable, _) => LinkEnd::TimedOut,
        (_, Cause::Closed | Cause::Other) => LinkEnd::Closed,
        (_, cause) => LinkEnd::Fault(format!("TLS: {cause}: {error}")),
    }
}

struct Outgoing<'a> {
    from_ractor: ReadHalf<&'a mut DuplexStream>,
    outlet: Arc<Outlet>,
    controls: mpsc::Receiver<Control>,
    parting: oneshot::Receiver<CloseReason>,
    lists: Option<OutgoingLists>,
    metrics: Metrics,
}

impl Outgoing<'_> {
    /// Sends what the lanes have: the link's own first, then the exchange and ractor by turns.
    async fn run(mut self, mut writer: WriteHalf<impl AsyncRead + AsyncWrite>) -> LinkEnd {
        // What was held back of a frame goes out with the next bytes, in one piece.
        let mut ractor = vec![0; PIPE - gate::HELD];
        let (mut quiet, mut passed) = (Quiet::default(), Vec::new());
        let mut pieces = Vec::new();
        loop {
            // However much there is to say, a goodbye does not wait for its turn.
            match self.parting.try_recv() {
                Ok(why) => return part(&mut writer, Ok(why)).await,
                Err(TryRecvError::Closed) => return LinkEnd::Closed,
                Err(TryRecvError::Empty) => {}
            }
            pieces.clear();
            if let Ok(control) = self.controls.try_recv() {
                pieces.push(of(control));
            } else if let Some(word) = self.lists.as_mut().and_then(OutgoingLists::next) {
                pieces.push(piece_of(Lane::Lists, &word));
            } else {
                self.outlet.waits_for_ractor(true);
                tokio::select! {
                    why = &mut self.parting => return part(&mut writer, why).await,
                    Some(control) = self.controls.recv() => pieces.push(of(control)),
                    () = changed(self.lists.as_mut()) => continue,
                    credit = self.outlet.next(&mut pieces) => {
                        pieces.extend(credit.map(|bytes| of(Control::Credit(bytes))));
                    }
                    read = self.from_ractor.read(&mut ractor) => match read {
                        Ok(0) | Err(_) => return LinkEnd::Closed,
                        Ok(length) => {
                            passed.clear();
                            quiet.pass(ractor.get(..length).unwrap_or(&[]), &mut passed);
                            self.outlet.came_from_ractor(quiet.messages());
                            if passed.is_empty() {
                                continue;
                            }
                            pieces.push(piece_of(Lane::Ractor, &passed));
                        }
                    },
                }
                self.outlet.waits_for_ractor(false);
            }
            // Between pieces a goodbye can go at once; a piece under way has to end first.
            let ended = {
                let mut sending = std::pin::pin!(send(&mut writer, &pieces));
                tokio::select! {
                    biased;
                    sent = &mut sending => sent.map(|()| None),
                    why = &mut self.parting => {
                        let sent = tokio::time::timeout(GOODBYE, sending).await;
                        sent.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into())).map(|()| Some(why))
                    }
                }
            };
            for piece in pieces.iter().filter(|_| ended.is_ok()) {
                let bytes = piece.head.len() + piece.body.len();
                self.metrics.traffic().went(piece.lane, piece.messages, bytes);
            }
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

/// Returns when there may be more to send of lists.
async fn changed(lists: Option<&mut OutgoingLists>) {
    match lists {
        Some(lists) => lists.changed().await,
        None => std::future::pending().await,
    }
}

fn piece_of(lane: Lane, payload: &[u8]) -> Piece {
    // No payload is empty or too long: ractor's buffer and control messages are neither.
    let header = frame::header(lane, payload.len()).unwrap_or_default();
    Piece { lane, messages: 1, head: [&header, payload].concat(), body: Bytes::new() }
}

fn of(control: Control) -> Piece {
    // No control message is unencodable.
    piece_of(Lane::Control, &control.encode().unwrap_or_default())
}

/// Says goodbye, if this end was told to and not just dropped.
async fn part(
    writer: &mut (impl AsyncWrite + Unpin),
    why: Result<CloseReason, oneshot::error::RecvError>,
) -> LinkEnd {
    if let Ok(why) = why {
        // A peer that does not read any more learns it from the end of the stream.
        drop(tokio::time::timeout(GOODBYE, goodbye(writer, why)).await);
    }
    LinkEnd::Closed
}

async fn send(writer: &mut (impl AsyncWrite + Unpin), pieces: &[Piece]) -> io::Result<()> {
    let parts = pieces.iter().flat_map(|piece| [piece.head.as_slice(), piece.body.as_ref()]);
    let mut slices: Vec<IoSlice<'_>> = parts.map(IoSlice::new).collect();
    let mut rest = slices.as_mut_slice();
    IoSlice::advance_slices(&mut rest, 0); // drops what is empty at the beginning
    while !rest.is_empty() {
        let written = writer.write_vectored(rest).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut rest, written);
    }
    writer.flush().await
}

async fn goodbye(writer: &mut (impl AsyncWrite + Unpin), why: CloseReason) -> io::Result<()> {
    send(writer, &[of(Control::Goodbye(why))]).await?;
    writer.shutdown().await
}
