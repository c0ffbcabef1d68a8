//! What a client sends on a WebSocket (RFC 6455), and the heads of what it is sent.
//!
//! Read here and not by the library's stream, which ends with the first message that is too long: closed for that, a
//! client sends it again as soon as it is connected anew. Invariants:
//! 1. A message that is too long is passed over; of it, only as much is held as tells whom to answer.
//! 2. A message holds memory as its bytes come, not as its head announces them.
//! 3. What breaks the protocol of RFC 6455 is told once; nothing is read after it.

use std::future::poll_fn;
use std::io::{self, Cursor};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use crate::proto::channel::head::HEAD;

/// Bytes that are read at once. More is taken as it is needed, and kept no longer than that.
pub(super) const BUFFER: usize = 4 * 1024;
/// Longest payload of a control frame.
const MAX_CONTROL: u64 = 125;

/// What a client sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// UTF-8.
    Text(Bytes),
    Binary(Bytes),
    /// The beginning of a message that is longer than it may be.
    TooLong {
        text: bool,
        begin: Bytes,
        length: usize,
    },
    Ping(Bytes),
    Pong,
    Close,
}

impl Message {
    /// Bytes that it had.
    pub(super) fn length(&self) -> usize {
        match self {
            Self::Text(bytes) | Self::Binary(bytes) | Self::Ping(bytes) => bytes.len(),
            Self::TooLong { length, .. } => *length,
            Self::Pong | Self::Close => 0,
        }
    }
}

/// Reads into a buffer that has no memory as long as nothing comes.
fn first(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
    context: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    let mut bytes = [const { MaybeUninit::uninit() }; BUFFER];
    let mut read = ReadBuf::uninit(&mut bytes);
    ready!(Pin::new(stream).poll_read(context, &mut read))?;
    buffer.extend_from_slice(read.filled());
    Poll::Ready(Ok(read.filled().len()))
}

/// Why nothing more can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// No frame that a client may send.
    Protocol,
    /// A text that is not UTF-8.
    NotText,
}

/// What has come and was not taken yet.
#[derive(Debug)]
pub(super) struct Incoming {
    /// Bytes of a message.
    most: usize,
    buffer: BytesMut,
    frame: Option<Frame>,
    message: Option<Whole>,
}

/// The frame whose payload is coming.
#[derive(Clone, Copy, Debug)]
struct Frame {
    kind: OpCode,
    last: bool,
    mask: [u8; 4],
    /// Of its payload, how much has been taken, and how much is to come.
    taken: u64,
    left: u64,
}

/// The message whose frames are coming.
#[derive(Debug)]
struct Whole {
    text: bool,
    too_long: bool,
    /// Bytes that have come of it; those that are too many are not kept.
    length: usize,
    bytes: BytesMut,
}

impl Incoming {
    /// Nothing has come; messages have at most so many bytes.
    pub(super) fn new(most: usize) -> Self {
        Self { most, buffer: BytesMut::new(), frame: None, message: None }
    }

    /// Reads until there is a message. `None`: nothing comes any more. Nothing is lost when the future is dropped.
    pub(super) async fn read(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
    ) -> Result<Option<Message>, Broken> {
        loop {
            if let Some(message) = self.next()? {
                return Ok(Some(message));
            }
            let read = if self.buffer.is_empty() {
                // Nothing is held for a client that says nothing.
                self.buffer = BytesMut::new();
                poll_fn(|context| first(stream, &mut self.buffer, context)).await
            } else {
                self.buffer.reserve(BUFFER);
                stream.read_buf(&mut self.buffer).await
            };
            if read.unwrap_or(0) == 0 {
                return Ok(None);
            }
        }
    }

    /// The next message, if it is here.
    pub(super) fn next(&mut self) -> Result<Option<Message>, Broken> {
        loop {
            let Some(frame) = self.frame else {
                match self.head()? {
                    Some(frame) => self.frame = Some(frame),
                    None => return Ok(None),
                }
                continue;
            };
            let OpCode::Control(control) = frame.kind else {
                if !self.payload(frame) {
                    return Ok(None);
                }
                match self.message()? {
                    Some(message) => return Ok(Some(message)),
                    None => continue,
                }
            };
            let Some(payload) = self.whole(frame) else { return Ok(None) };
            self.frame = None;
            return Ok(Some(match control {
                Control::Ping => Message::Ping(payload),
                Control::Pong => Message::Pong,
                Control::Close | Control::Reserved(_) => Message::Close,
            }));
        }
    }

    /// The head of the next frame, if it is here.
    fn head(&mut self) -> Result<Option<Frame>, Broken> {
        let mut cursor = Cursor::new(&self.buffer[..]);
        let parsed = FrameHeader::parse(&mut cursor).map_err(|_reserved| Broken::Protocol)?;
        let length = usize::try_from(cursor.position()).unwrap_or(usize::MAX);
        let Some((head, left)) = parsed else { return Ok(None) };
        let fits = match head.opcode {
            OpCode::Control(_) => head.is_final && left <= MAX_CONTROL,
            OpCode::Data(Data::Continue) => self.message.is_some(),
            OpCode::Data(_) => self.message.is_none(),
        };
        let plain = !head.rsv1 && !head.rsv2 && !head.rsv3;
        let Some(mask) = head.mask.filter(|_| fits && plain) else { return Err(Broken::Protocol) };
        self.buffer.advance(length);
        if let OpCode::Data(kind @ (Data::Text | Data::Binary)) = head.opcode {
            let text = kind == Data::Text;
            self.message = Some(Whole { text, too_long: false, length: 0, bytes: BytesMut::new() });
        }
        Ok(Some(Frame { kind: head.opcode, last: head.is_final, mask, taken: 0, left }))
    }

    /// The payload of a frame, when all of it is here.
    fn whole(&mut self, frame: Frame) -> Option<Bytes> {
        let length = usize::try_from(frame.left).ok().filter(|left| *left <= self.buffer.len())?;
        let mut payload = self.buffer.split_to(length);
        unmask(&mut payload, frame.mask, frame.taken);
        Some(payload.freeze())
    }

    /// Takes of a frame's payload what is here; true when that was the rest of it.
    fn payload(&mut self, mut frame: Frame) -> bool {
        let Some(message) = &mut self.message else { return true };
        let room = self.most.saturating_sub(message.bytes.len());
        message.too_long |= usize::try_from(frame.left).map_or(true, |left| left > room);
        if message.too_long {
            message.bytes.truncate(HEAD);
        } else if (self.buffer.len() as u64) < frame.left {
            return false; // taken in one piece
        }
        let here = usize::try_from(frame.left)
            .map_or(self.buffer.len(), |left| left.min(self.buffer.len()));
        message.length = message.length.saturating_add(here);
        let mut part = self.buffer.split_to(here);
        if message.too_long {
            part.truncate(HEAD - message.bytes.len());
        }
        unmask(&mut part, frame.mask, frame.taken);
        if message.bytes.is_empty() && !message.too_long {
            message.bytes = part;
        } else {
            message.bytes.extend_from_slice(&part);
        }
        frame.taken += here as u64;
        frame.left -= here as u64;
        self.frame = Some(frame);
        frame.left == 0
    }

    /// The message whose frame has just ended, if that was its last one.
    fn message(&mut self) -> Result<Option<Message>, Broken> {
        if !self.frame.take().is_some_and(|frame| frame.last) {
            return Ok(None);
        }
        let Some(whole) = self.message.take() else { return Ok(None) };
        let Whole { text, too_long, length, bytes } = whole;
        let bytes = bytes.freeze();
        Ok(Some(match (text, too_long) {
            (_, true) => Message::TooLong { text, begin: bytes, length },
            (true, false) if std::str::from_utf8(&bytes).is_err() => return Err(Broken::NotText),
            (true, false) => Message::Text(bytes),
            (false, false) => Message::Binary(bytes),
        }))
    }
}

/// Takes the mask off a part of a payload that begins at `taken`.
fn unmask(part: &mut [u8], mut mask: [u8; 4], taken: u64) {
    mask.rotate_left((taken % 4) as usize);
    for chunk in part.chunks_mut(4) {
        chunk.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
    }
}

/// Kinds of frames that are sent.
pub(super) const TEXT: u8 = 1;
pub(super) const BINARY: u8 = 2;
pub(super) const CLOSE: u8 = 8;
pub(super) const PING: u8 = 9;
pub(super) const PONG: u8 = 10;

/// The head of a frame that is a whole message of a server (RFC 6455, 5.2).
pub(super) fn head(out: &mut Vec<u8>, kind: u8, length: usize) {
    out.push(0x80 | kind);
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
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::proto::channel::MAX_FRAME;

    #[test]
    fn heads_say_how_long_a_message_is() {
        let of = |kind, length| {
            let mut out = Vec::new();
            head(&mut out, kind, length);
            out
        };
        assert_eq!(of(TEXT, 125), [0x81, 125]);
        assert_eq!(of(BINARY, 126), [0x82, 126, 0, 126]);
        assert_eq!(of(TEXT, 0xffff), [0x81, 126, 0xff, 0xff]);
        assert_eq!(of(TEXT, 0x1_0000), [0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(of(PONG, 0), [0x8a, 0]);
    }

    /// A client's frame: the first byte of its head, and its payload.
    fn sent(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        head(&mut out, 0, payload.len());
        out[0] = first;
        out[1] |= 0x80;
        let mask = [0x6d, 0xb6, 0xb2, 0x80];
        out.extend_from_slice(&mask);
        out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        out
    }

    #[tokio::test]
    async fn a_client_that_says_nothing_holds_no_buffer() {
        for pipe in [7, 4 * BUFFER] {
            let (mut client, mut server) = tokio::io::duplex(pipe);
            let texts = ["x".to_owned(), "y".repeat(3 * BUFFER), "z".to_owned()];
            let bytes =
                texts.iter().flat_map(|text| sent(0x81, text.as_bytes())).collect::<Vec<_>>();
            let sending = tokio::spawn(async move {
                client.write_all(&bytes).await.expect("sent");
                client
            });
            let mut incoming = Incoming::new(MAX_FRAME);
            for text in texts {
                let message = incoming.read(&mut server).await;
                assert_eq!(message, Ok(Some(Message::Text(text.into()))));
            }
            let _client = sending.await.expect("sent");
            tokio::select! {
                biased;
                message = incoming.read(&mut server) => panic!("{message:?}"),
                () = std::future::ready(()) => {}
            }
            assert_eq!(incoming.buffer.capacity(), 0);
        }
    }

    /// What comes of bytes that arrive in pieces of this length.
    fn read(bytes: &[u8], piece: usize) -> (Vec<Message>, Option<Broken>) {
        let (mut incoming, mut messages) = (Incoming::new(MAX_FRAME), Vec::new());
        for piece in bytes.chunks(piece.max(1)) {
            incoming.buffer.extend_from_slice(piece);
            loop {
                match incoming.next() {
                    Ok(Some(message)) => messages.push(message),
                    Ok(None) => break,
                    Err(broken) => return (messages, Some(broken)),
                }
            }
            let held = incoming.message.as_ref().map_or(0, |message| message.bytes.len());
            assert!(held <= MAX_FRAME && incoming.buffer.len() <= MAX_FRAME + 14 + piece.len());
        }
        (messages, None)
    }

    #[test]
    fn a_message_that_is_too_long_is_passed_over() {
        let long: Vec<u8> = (0..MAX_FRAME + 1).map(|at| b'a' + (at % 26) as u8).collect();
        let fits = &long[..MAX_FRAME];
        let begin = |of: &[u8]| Bytes::copy_from_slice(&of[..HEAD]);
        let text = |text: &'static str| Message::Text(Bytes::from_static(text.as_bytes()));
        let pieces: Vec<u8> = std::iter::once(sent(0x02, &long[..600_000]))
            .chain([sent(0x89, b"?"), sent(0x00, &long[600_000..700_000])])
            .chain([sent(0x00, &long[700_000..]), sent(0x80, &long)])
            .collect::<Vec<_>>()
            .concat();
        for (bytes, wanted) in [
            (sent(0x81, fits), Message::Text(Bytes::copy_from_slice(fits))),
            (
                sent(0x81, &long),
                Message::TooLong { text: true, begin: begin(&long), length: long.len() },
            ),
            (
                sent(0x82, &long),
                Message::TooLong { text: false, begin: begin(&long), length: long.len() },
            ),
        ] {
            let all = [sent(0x81, b"before"), bytes, sent(0x81, b"after")].concat();
            for piece in [usize::MAX, 4096, 1021] {
                let (messages, broken) = read(&all, piece.min(all.len()));
                assert_eq!(broken, None);
                assert!(messages == [text("before"), wanted.clone(), text("after")]);
            }
        }
        let (messages, broken) = read(&[pieces, sent(0x81, b"after")].concat(), 5000);
        let ping = Message::Ping(Bytes::from_static(b"?"));
        assert_eq!(broken, None);
        assert!(
            messages
                == [
                    ping,
                    Message::TooLong { text: false, begin: begin(&long), length: 2 * long.len() },
                    text("after")
                ]
        );
        // Announced only: nothing is held for it.
        let mut announced = sent(0x81, b"");
        announced[1] = 0xff;
        announced.splice(2..2, u64::MAX.to_be_bytes().into_iter().map(|byte| byte & 0x7f));
        assert_eq!(read(&announced, 1), (vec![], None));
    }

    #[test]
    fn what_breaks_the_protocol_is_told() {
        let whole = |bytes: &[u8]| read(bytes, bytes.len());
        let broken = |bytes: &[u8]| whole(bytes).1;
        for (name, bytes) in [
            ("not masked", b"\x81\x05hello".to_vec()),
            ("a reserved bit", sent(0xc1, b"x")),
            ("a reserved kind", sent(0x83, b"x")),
            ("a reserved control", sent(0x8b, b"")),
            ("a ping in pieces", sent(0x09, b"x")),
            ("a long ping", sent(0x89, &[0; 126])),
            ("nothing to go on with", sent(0x80, b"x")),
            ("a message in a message", [sent(0x01, b"x"), sent(0x81, b"y")].concat()),
        ] {
            assert_eq!(broken(&bytes), Some(Broken::Protocol), "{name}");
        }
        assert_eq!(broken(&sent(0x81, b"\xff")), Some(Broken::NotText));
        let halves = [sent(0x01, &"é".as_bytes()[..1]), sent(0x80, &"é".as_bytes()[1..])].concat();
        assert_eq!(whole(&halves), (vec![Message::Text("é".as_bytes().into())], None));
        let ends = [sent(0x8a, b"!"), sent(0x88, &1000_u16.to_be_bytes())].concat();
        assert_eq!(whole(&ends), (vec![Message::Pong, Message::Close], None));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, piece in 1..9_usize) {
            let (messages, broken) = read(&bytes, piece);
            prop_assert_eq!((messages, broken), read(&bytes, bytes.len().max(1)));
        }

        #[test]
        fn messages_arrive_whole_however_they_are_cut(
            texts in prop::collection::vec(("\\PC{0,20}", 0..4_usize), 0..6), piece in 1..40_usize,
        ) {
            let mut bytes = Vec::new();
            for (text, cuts) in &texts {
                let parts: Vec<_> = text.as_bytes().chunks(text.len() / (cuts + 1) + 1).collect();
                let last = parts.len().saturating_sub(1);
                for (at, part) in parts.iter().enumerate() {
                    let kind = if at == 0 { 1 } else { 0 };
                    bytes.extend(sent(if at == last { 0x80 | kind } else { kind }, part));
                    bytes.extend(sent(0x89, b""));
                }
            }
            let (messages, broken) = read(&bytes, piece);
            prop_assert_eq!(broken, None);
            let mut heard = Vec::new();
            for message in &messages {
                if let Message::Text(text) = message {
                    heard.push(std::str::from_utf8(text).expect("UTF-8"));
                }
            }
            let said: Vec<_> = texts.iter().map(|(text, _)| text.as_str()).filter(|text| !text.is_empty()).collect();
            prop_assert_eq!(heard, said);
        }
    }
}
