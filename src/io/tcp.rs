//! TCP sockets of links: how they listen, and how they notice that the network is gone.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use rustix::net::RecvFlags;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// Unacknowledged data or silence for this long ends a connection: the kernel's own backstop.
const SILENCE: Duration = Duration::from_secs(20);
/// Silence before the kernel asks whether the other side is still there, and between such questions.
const PROBE: Duration = Duration::from_secs(5);
/// Room for the kernel's answer about one connection.
const ANSWER: usize = 4096;

/// Opens a listening socket, where so many callers may wait to be accepted: whoever finds no room calls again after a
/// second, and then after ever longer. A port that a node has just left is free at once (`SO_REUSEADDR`).
///
/// # Errors
/// The system's; nothing changed.
pub fn listen(address: SocketAddr, waiting: i32) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    // What the standard library has asked for is asked for anew.
    rustix::net::listen(&listener, waiting)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Small messages leave at once, and those that get lost are sent again without ever longer waits (as
/// long as few are under way), which on a bad line would look like a dead peer; a cut network is
/// noticed by the kernel.
///
/// # Errors
/// The system's; the connection is not usable.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(SILENCE))?;
    socket.set_tcp_thin_linear_timeouts(true)?;
    let keepalive = TcpKeepalive::new().with_time(PROBE).with_interval(PROBE).with_retries(3);
    socket.set_tcp_keepalive(&keepalive)
}

/// The first bytes that have arrived and were not read yet; none when there are none, or the connection is gone.
#[must_use]
pub fn peek(stream: &TcpStream) -> [u8; 16] {
    let mut bytes = [0; 16];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    rustix::net::recv(stream, &mut bytes, flags).map_or([0; 16], |_| bytes)
}

/// What the kernel knows of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// Bytes on their way that the other machine has not acknowledged. What waits here until its
    /// window opens does not count.
    pub unacknowledged: u32,
    /// Segments that arrived since the connection began, acknowledgements and repetitions included.
    pub segments: u32,
}

/// Asks the kernel about the connection between these addresses of this machine and another: the
/// figures of `TCP_INFO`, through the socket-diagnosis interface (sock_diag(7)), which needs no file
/// descriptor of the connection and no unsafe code.
///
/// # Errors
/// There is no such connection, or this kernel does not tell.
pub fn inspect(here: SocketAddr, there: SocketAddr) -> io::Result<Tcp> {
    let socket = netlink_sys::Socket::new(NETLINK_SOCK_DIAG)?;
    let mut id = if here.is_ipv4() { SocketId::new_v4() } else { SocketId::new_v6() };
    (id.source_address, id.source_port) = (here.ip(), here.port());
    (id.destination_address, id.destination_port) = (there.ip(), there.port());
    id.cookie = [0xff; 8]; // any
    let request = InetRequest {
        family: if here.is_ipv4() { AF_INET } else { AF_INET6 },
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::INFO,
        states: StateFlags::all(),
        socket_id: id,
    };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send_to(&bytes, &netlink_sys::SocketAddr::new(0, 0), 0)?;
    let mut answer = Vec::with_capacity(ANSWER);
    socket.recv(&mut answer, 0)?;
    let answer =
        NetlinkMessage::<SockDiagMessage>::deserialize(&answer).map_err(io::Error::other)?;
    if let NetlinkPayload::Error(error) = answer.payload {
        return Err(error.to_io());
    }
    let NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(found)) = answer.payload else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    // Where no connection fits, the kernel answers with the socket that listens there.
    if found.header.socket_id.destination_port != there.port() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let info =
        found.nlas.iter().find_map(|nla| if let Nla::TcpInfo(i) = nla { Some(i) } else { None });
    let info = info.ok_or(io::ErrorKind::Unsupported)?;
    let unacknowledged = found.header.send_queue.saturating_sub(info.notsent_bytes);
    Ok(Tcp { unacknowledged, segments: info.segs_in })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    #[test]
    fn the_kernel_tells_what_arrived_and_what_was_not_acknowledged() {
        for loopback in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(loopback).expect("binds");
            let mut one = TcpStream::connect(listener.local_addr().expect("bound")).expect("open");
            let (mut other, there) = listener.accept().expect("accepted");
            let here = other.local_addr().expect("bound");
            let before = inspect(here, there).expect("told");
            one.write_all(b"hello").expect("sent");
            other.read_exact(&mut [0; 5]).expect("arrived");
            let after = inspect(here, there).expect("told");
            assert!(after.segments > before.segments, "{before:?} {after:?}");
            assert_eq!(after.unacknowledged, 0, "nothing was sent back");
            // Its window closes: what waits here for it to open has not been sent.
            one.set_nonblocking(true).expect("set");
            while one.write(&[0; 65536]).is_ok() {}
            let mut stuck = inspect(there, here).expect("told");
            while stuck.unacknowledged > 0 {
                stuck = inspect(there, here).expect("told");
            }
            drop((one, other));
            let nobody = SocketAddr::new(there.ip(), 1);
            assert!(inspect(here, nobody).is_err(), "a listening socket is no connection");
        }
    }
}
