//! The stream below a client's WebSocket, which is read no faster than the client's share has it.
//!
//! Frames are counted here, not where messages are whole: pings and pieces of a message cost as much.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Sleep;

use crate::gateway::places::Place;
use crate::proto::share::{FRAME, Frames};

/// A stream, and whose share what is read from it takes.
pub(super) struct Metered<S> {
    stream: S,
    place: Place,
    frames: Frames,
    /// Until when nothing is read.
    pause: Option<Pin<Box<Sleep>>>,
}

impl<S> Metered<S> {
    pub(super) fn new(stream: S, place: Place) -> Self {
        Self { stream, place, frames: Frames::default(), pause: None }
    }

    /// The stream itself, for what is written to it.
    pub(super) fn inner(&mut self) -> &mut S {
        &mut self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = &mut *self;
        loop {
            if let Some(pause) = &mut me.pause {
                ready!(pause.as_mut().poll(cx));
                me.pause = None;
            }
            let Some(until) = me.place.ready() else { break };
            me.pause = Some(Box::pin(tokio::time::sleep_until(until.into())));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut me.stream).poll_read(cx, buffer))?;
        let read = buffer.filled().get(before..).unwrap_or_default();
        me.place.spend(read.len() as u64 + me.frames.count(read) * FRAME);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use crate::actors::timer;
    use crate::gateway::places::Places;
    use crate::proto::admission::Limits;
    use crate::proto::share::Rate;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_as_fast_as_it_can_is_read_at_its_rate() {
        let places = Places::new(Limits::of(8), &Arc::default());
        for entitled in [false, true] {
            let (place, _) = places.open([127, 0, 0, 1].into(), false).expect("a place");
            let mut rate = Rate::STRANGERS;
            if entitled {
                place.entitle(None);
                rate = Rate::ENTITLED;
            }
            let (mut client, server) = duplex(4096);
            let mut server = Metered::new(server, place);
            tokio::spawn(
                async move { while client.write_all(b"\x89\x80\0\0\0\0").await.is_ok() {} },
            );
            let (start, span) = (timer::now(), Duration::from_secs(5));
            let (mut bytes, mut buffer) = (0, [0; 4096]);
            while timer::now() < start + span {
                bytes += server.read(&mut buffer).await.expect("read");
            }
            let cost = (bytes as f64) * (FRAME as f64 + 6.0) / 6.0;
            let wanted = rate.burst + rate.second * span.as_secs_f64();
            assert!((cost / wanted - 1.0).abs() < 0.1, "{cost} of {wanted}");
        }
    }
}
