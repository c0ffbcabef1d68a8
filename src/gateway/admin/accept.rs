//! Who asks on the admin socket, also when the socket is made anew.

use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::talk;
use crate::actors::timer;
use crate::gateway::issue::Issuing;
use crate::gateway::view::NodeView;
use crate::io::metrics::Count;
use crate::proto::notices::Notices;

/// Wait after a failed accept.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn serve(
    parts: (NodeView, Issuing),
    mut socket: watch::Receiver<Arc<StdListener>>,
) -> std::io::Result<()> {
    let mut clients = JoinSet::new();
    loop {
        let bound = socket.borrow_and_update().clone();
        let listener = UnixListener::from_std(bound.try_clone()?)?;
        tokio::select! {
            () = accept(&parts, &listener, &mut clients) => {}
            changed = socket.changed() => if changed.is_err() {
                accept(&parts, &listener, &mut clients).await;
            },
        }
    }
}

async fn accept(parts: &(NodeView, Issuing), listener: &UnixListener, clients: &mut JoinSet<()>) {
    let mut notices = Notices::default();
    loop {
        while clients.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, mostly. Who asks waits; the node goes on.
                parts.0.metrics.count(Count::ClientsRefused, "accept_admin");
                if let Some(left_out) = notices.due("accept", timer::now()) {
                    let remedy = "allow the process more open files (ulimit -n, LimitNOFILE=)";
                    tracing::warn!(%error, remedy, left_out, "the admin socket cannot accept");
                }
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let parts = parts.clone();
        clients.spawn(async move {
            if let Err(error) = talk(&parts, stream).await {
                tracing::debug!(%error, "admin client");
            }
        });
    }
}
