//! TCP sockets of links: how they listen, and how they notice that the network is gone.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// Unacknowledged data or silence for this long ends a connection: the kernel's own backstop.
const SILENCE: Duration = Duration::from_secs(20);
/// Silence before the kernel asks whether the other side is still there, and between such questions.
const PROBE: Duration = Duration::from_secs(5);

/// Opens a listening socket. A port that a node has just left is free at once (`SO_REUSEADDR`).
///
/// # Errors
/// The system's; nothing changed.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// How many descriptors this process may have open; `None` when there is no limit.
#[must_use]
pub fn descriptors() -> Option<usize> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.and_then(|most| usize::try_from(most).ok())
}

/// Small messages leave at once; a cut network is noticed by the kernel.
///
/// # Errors
/// The system's; the connection is not usable.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(SILENCE))?;
    let keepalive = TcpKeepalive::new().with_time(PROBE).with_interval(PROBE).with_retries(3);
    socket.set_tcp_keepalive(&keepalive)
}
