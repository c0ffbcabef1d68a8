//! The accept loop: connections of strangers.
//!
//! Invariants: each connection has its own task and a deadline; at most [`Descriptors::half_open`] of them have
//! not shown a certificate yet, beyond that the one that has waited longest goes, so that silent
//! connections never keep a node out; those who ask for a certificate have places of their own (`enrolment`); running out of descriptors slows the loop and never ends it.

use std::collections::VecDeque;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};

use crate::actors::link::enrolment::Reception;
use crate::actors::link::refusals::RefusalLog;
use crate::actors::link::{AttemptId, Msg, Setup, handshake, send};
use crate::actors::supervisor::Address;
use crate::io::metrics::{Count, Metrics};
use crate::io::tls::{Cause, TlsError};
use crate::io::{limits, tcp};
use crate::proto::admission::Descriptors;
use crate::proto::link::HANDSHAKE;

/// Wait after a failed accept (out of descriptors, mostly).
const PAUSE: Duration = Duration::from_millis(100);

/// Inbound attempts are numbered across restarts of the actor.
static NEXT: AtomicU64 = AtomicU64::new(1);

pub(super) fn run(
    setup: Setup,
    link: Address<Msg>,
) -> std::io::Result<impl Future<Output = ()> + Send> {
    let listener = TcpListener::from_std(setup.listener.try_clone()?)?;
    Ok(async move {
        let log = Arc::new(RefusalLog::new(setup.metrics.clone()));
        let (enrolment, metrics) = (setup.enrolment.clone(), setup.metrics.clone());
        let reception = Arc::new(Reception::new(enrolment, metrics, log.clone()));
        let mut half_open = HalfOpen::new();
        loop {
            match listener.accept().await {
                Ok((stream, from)) => {
                    setup.metrics.count(Count::Accepted, "tcp");
                    let (setup, link, log) = (setup.clone(), link.clone(), log.clone());
                    let metrics = setup.metrics.clone();
                    let greet = greet(stream, from, setup, link, (log, reception.clone()));
                    half_open.admit(greet, &metrics);
                }
                Err(error) => {
                    log.refused("accept", None, &error);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    })
}

/// The tasks of connections that have not shown a certificate yet. They end with this value.
struct HalfOpen {
    most: usize,
    tasks: JoinSet<()>,
    waiting: VecDeque<AbortHandle>,
}

impl HalfOpen {
    fn new() -> Self {
        let most = Descriptors::shares(limits::descriptors()).half_open;
        Self { most, tasks: JoinSet::new(), waiting: VecDeque::new() }
    }

    fn admit(&mut self, task: impl Future<Output = ()> + Send + 'static, metrics: &Metrics) {
        while self.tasks.try_join_next().is_some() {}
        self.waiting.retain(|task| !task.is_finished());
        while self.waiting.len() >= self.most {
            self.waiting.pop_front().iter().for_each(AbortHandle::abort);
            metrics.count(Count::Refused, "evicted");
        }
        self.waiting.push_back(self.tasks.spawn(task));
    }
}

/// TLS; then the connection is known by name, and a task of its own goes on with the hello. One without a certificate
/// that asks for one goes its own way.
async fn greet(
    stream: TcpStream,
    from: SocketAddr,
    setup: Setup,
    link: Address<Msg>,
    (log, reception): (Arc<RefusalLog>, Arc<Reception>),
) {
    if let Err(error) = tcp::tune(&stream) {
        return log.refused("socket", Some(from), &error);
    }
    let shake = async {
        let caller = setup.tls.hear(stream).await?;
        if caller.enrols() {
            return Ok(Err(caller));
        }
        caller.authenticate().await.map(Ok)
    };
    let (stream, peer) = match tokio::time::timeout(HANDSHAKE, shake).await {
        Ok(Ok(Ok(accepted))) => accepted,
        Ok(Ok(Err(newcomer))) => return reception.receive(newcomer, from).await,
        Ok(Err(error)) => return unmet(&error, from, &setup.metrics, &log),
        Err(_elapsed) => {
            return log.refused("silent", Some(from), &"no TLS handshake within the deadline");
        }
    };
    setup.metrics.count(Count::Accepted, "tls");
    let attempt = AttemptId::Inbound(NEXT.fetch_add(1, Ordering::Relaxed));
    let (decide, decisions) = mpsc::channel(1);
    let steps = handshake::Steps::new(attempt, link.clone(), decisions);
    let name = peer.name.clone();
    let hello = handshake::welcome(Box::new(stream.into()), peer, from, setup.myself, steps, log);
    // The hello waits until the actor is sure to hear of the attempt before its first step.
    let (go, known) = oneshot::channel();
    let wait = async move {
        if known.await.is_ok() {
            hello.await;
        }
    };
    let task = tokio::spawn(wait).abort_handle();
    send(&link, Msg::Authenticated(attempt, name, decide, task));
    go.send(()).unwrap_or(());
}

/// Nothing came of a handshake.
fn unmet(error: &TlsError, from: SocketAddr, metrics: &Metrics, log: &RefusalLog) {
    let cause = error.cause();
    if cause == Cause::Closed {
        // Somebody went away again: a dial that was abandoned, or a look whether the port is open.
        metrics.count(Count::Refused, cause.as_str());
        tracing::debug!(%from, %error, "connection closed before it was one");
    } else if cause == Cause::RefusedAsRevoked {
        let detail = "the caller refuses this node: its certificate is revoked";
        log.refused(cause.as_str(), Some(from), &detail);
    } else if cause == Cause::OtherCluster {
        log.refused(cause.as_str(), Some(from), &format!("the caller {error}"));
    } else {
        log.refused(cause.as_str(), Some(from), error);
    }
}
