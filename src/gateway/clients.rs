//! How many clients are here, and whether they are to go elsewhere.

use std::sync::atomic::AtomicUsize;

use tokio::sync::watch;

/// The clients that are here.
#[derive(Debug, Default)]
pub struct Clients {
    /// Sockets and long-polling sessions.
    pub connected: AtomicUsize,
    /// Topics that they have joined.
    pub joined: AtomicUsize,
    /// Changes when tokens were revoked; true once they are to go elsewhere.
    pub news: watch::Sender<bool>,
}

impl Clients {
    /// Sends all clients to other nodes and takes no more; or takes clients again.
    pub fn drain(&self, draining: bool) {
        self.news.send_replace(draining);
    }

    /// Whether clients are sent elsewhere.
    pub fn draining(&self) -> bool {
        *self.news.borrow()
    }
}
