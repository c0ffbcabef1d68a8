//! A link without socket, TLS and ractor: the real mux, on a stream of the caller's. Two exchanges in one
//! process talk through it, or an exchange and a test.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, duplex};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinHandle};

use crate::actors::link::mux::{self, LinkGuard, Own, PIPE};
use crate::actors::link::{CONTROLS, Pulse};
use crate::actors::news::Bus;
use crate::proto::capability::Capabilities;
use crate::proto::frame::CloseReason;
use crate::proto::membership::LinkEnd;
use crate::proto::node::{Incarnation, NodeName};

/// The life that every node is in.
const LIFE: Incarnation = Incarnation(1);

/// Links two exchanges.
pub(crate) fn cable(a: &Bus, b: &Bus) -> [End; 2] {
    let (to_b, to_a) = duplex(PIPE);
    let [end_a, end_b] = [a, b].map(|bus| {
        let exchange = bus.exchange();
        (exchange.name().clone(), exchange.capabilities().clone())
    });
    [End::start(to_b, a, end_b), End::start(to_a, b, end_a)]
}

/// One end of a link. Dropped, it ends as a task that is cancelled does.
#[derive(Debug)]
pub(crate) struct End {
    /// Says goodbye.
    pub(crate) part: Option<oneshot::Sender<CloseReason>>,
    pub(crate) pulse: Arc<Pulse>,
    task: JoinHandle<LinkEnd>,
    _ractor: DuplexStream,
}

impl End {
    pub(crate) fn start(
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
        bus: &Bus,
        (peer, may): (NodeName, Capabilities),
    ) -> Self {
        let (mut pipe, ractor) = duplex(PIPE);
        let (part, parting) = oneshot::channel();
        let (control, controls) = mpsc::channel(CONTROLS);
        let pulse = Arc::new(Pulse::new(control, None));
        let own = Own {
            parting,
            controls,
            pulse: pulse.clone(),
            lists: None,
            revoked: Box::new(|| false),
        };
        let guard = LinkGuard::open(bus, (peer.clone(), may), LIFE);
        let task = tokio::spawn(async move {
            mux::run(stream, mux::gate(true, peer, &guard), &mut pipe, guard, own).await
        });
        Self { part: Some(part), pulse, task, _ractor: ractor }
    }

    pub(crate) fn runs(&self) -> bool {
        !self.task.is_finished()
    }

    /// Waits until it has ended, by itself or because the other end did.
    pub(crate) async fn ended(&mut self) -> Result<LinkEnd, JoinError> {
        (&mut self.task).await
    }

    /// Breaks it off; returns when its exchange knows.
    pub(crate) async fn stop(mut self) {
        self.task.abort();
        drop(self.ended().await);
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.task.abort();
    }
}
