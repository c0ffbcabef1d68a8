//! A connection whose client must take what it is sent.
//!
//! Invariant: a write that makes no progress for [`WRITE`] ends the connection, and what it holds.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::gateway::refusal::{Cause, Refusals};

/// How long a client may take nothing while something is sent.
const WRITE: Duration = Duration::from_secs(10);

/// A stream with a limit on its writes.
pub(super) struct Stall<S> {
    stream: S,
    from: IpAddr,
    refusals: Refusals,
    /// Runs while a write waits.
    limit: Option<Pin<Box<Sleep>>>,
}

impl<S> Stall<S> {
    pub(super) fn new(stream: S, from: IpAddr, refusals: &Refusals) -> Self {
        Self { stream, from, refusals: refusals.clone(), limit: None }
    }

    /// What a write comes to, or the end of its limit.
    fn within<T>(
        &mut self,
        cx: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.limit = None;
            return outcome;
        }
        let limit = self.limit.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE)));
        ready!(limit.as_mut().poll(cx));
        self.refusals.note(Cause::Unread, self.from, "");
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stall<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stall<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.within(cx, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        self.within(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(cx);
        self.within(cx, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.within(cx, outcome)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::actors::timer;
    use crate::io::metrics::Metrics;

    #[tokio::test(start_paused = true)]
    async fn a_write_waits_for_its_reader_as_long_as_there_is_progress() {
        let metrics = Metrics::default();
        let (ours, mut theirs) = tokio::io::duplex(16);
        let from = IpAddr::from([127, 0, 0, 1]);
        let mut ours = Stall::new(ours, from, &Refusals::new(&metrics));
        let start = timer::now();
        let writing = tokio::spawn(async move { (ours.write_all(&[0; 64]).await, timer::now()) });
        for _ in 0..2 {
            tokio::time::sleep(WRITE - Duration::from_secs(1)).await;
            theirs.read_exact(&mut [0; 16]).await.expect("bytes");
        }
        let (outcome, at) = writing.await.expect("it ends");
        assert_eq!(outcome.map_err(|error| error.kind()), Err(io::ErrorKind::TimedOut));
        assert_eq!(
            at - start,
            WRITE * 3 - Duration::from_secs(2),
            "counted from the last progress"
        );
        let text = metrics.text().expect("text");
        assert!(text.contains("xpando_clients_refused_total{reason=\"unread\"} 1"), "{text}");
    }
}
