//! TCP sockets of links: how they listen, and how they notice that the network is gone.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::Duration;

use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
use rustix::net::sockopt::set_tcp_congestion;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use crate::proto::heartbeat::monitor::Counts;

/// Unacknowledged data or silence for this long ends a connection: the kernel's own backstop.
pub const SILENCE: Duration = Duration::from_secs(20);
/// Silence before the kernel asks whether the other side is still there, and between such questions.
pub const PROBE: Duration = Duration::from_secs(5);
/// Room for the kernel's answer about one connection.
const ANSWER: usize = 4096;

// Numbers of netlink(7) and sock_diag(7).
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_INFO: u16 = 2;
const IPPROTO_TCP: u8 = 6;
/// Length of a `nlmsghdr`.
const HEADER: usize = 16;
/// Where an answer's attributes begin: after the header and an `inet_diag_msg`.
const ATTRIBUTES: usize = HEADER + 72;

/// Opens a listening socket, where so many callers may wait to be accepted: anyone who finds no room calls again after a
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

/// Small messages leave at once. One that gets lost is sent again without ever longer waits, as long as
/// few are under way: on a bad line those would look like a dead peer. A cut network is noticed by the
/// kernel.
///
/// # Errors
/// The system's; the connection is not usable.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(SILENCE))?;
    socket.set_tcp_thin_linear_timeouts(true)?;
    // Under BBR the kernel takes no stream for a thin one (it never leaves its initial slow start), so
    // the option before has no effect. Where only an administrator may choose CUBIC, Reno is free.
    let cubic = set_tcp_congestion(stream, "cubic");
    cubic.or_else(|_| set_tcp_congestion(stream, "reno")).unwrap_or(());
    let keepalive = TcpKeepalive::new().with_time(PROBE).with_interval(PROBE).with_retries(3);
    socket.set_tcp_keepalive(&keepalive)
}

/// The first bytes that have arrived and were not read yet; none when there are none, or the connection is gone.
pub fn peek(stream: &TcpStream) -> [u8; 16] {
    let mut bytes = [0; 16];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    rustix::net::recv(stream, &mut bytes, flags).map_or([0; 16], |_| bytes)
}

/// Asks the kernel about the connection between these addresses of this machine and another: the
/// figures of `TCP_INFO`, through the socket-diagnosis interface (sock_diag(7)), which needs no file
/// descriptor of the connection and no unsafe code.
///
/// # Errors
/// There is no such connection, or this kernel does not tell.
pub fn inspect(here: SocketAddr, there: SocketAddr) -> io::Result<Counts> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(SOCK_DIAG),
    )?;
    let kernel = SocketAddrNetlink::new(0, 0);
    rustix::net::sendto(&socket, &question(here, there), SendFlags::empty(), &kernel)?;
    let mut answer = [0; ANSWER];
    let (length, _) = rustix::net::recv(&socket, &mut answer, RecvFlags::empty())?;
    let answer = answer.get(..length).unwrap_or_default();
    match half(answer, 4) {
        Some(SOCK_DIAG_BY_FAMILY) => {}
        Some(NLMSG_ERROR) => {
            let errno = word(answer, HEADER).unwrap_or_default().cast_signed();
            return Err(io::Error::from_raw_os_error(-errno));
        }
        Some(_) | None => return Err(io::ErrorKind::InvalidData.into()),
    }
    // Where no connection fits, the kernel answers with the socket that listens there.
    if half(answer, HEADER + 6).map(u16::from_be) != Some(there.port()) {
        return Err(io::ErrorKind::NotFound.into());
    }
    let queued = word(answer, HEADER + 60).unwrap_or_default();
    figures(answer, queued).ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// A `nlmsghdr` and an `inet_diag_req_v2`.
fn question(here: SocketAddr, there: SocketAddr) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(72);
    bytes.extend(72_u32.to_ne_bytes());
    bytes.extend([SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST].map(u16::to_ne_bytes).concat());
    bytes.extend([0; 8]); // number, sender
    let family = if here.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    bytes.extend([family.as_raw().to_ne_bytes()[0], IPPROTO_TCP, 1 << (INET_DIAG_INFO - 1), 0]);
    bytes.extend(u32::MAX.to_ne_bytes()); // in any state
    bytes.extend([here.port(), there.port()].map(u16::to_be_bytes).concat());
    for address in [here.ip(), there.ip()] {
        match address {
            IpAddr::V4(ip) => bytes.extend([&ip.octets()[..], &[0; 12]].concat()),
            IpAddr::V6(ip) => bytes.extend(ip.octets()),
        }
    }
    bytes.extend([0; 4]); // on any interface
    bytes.extend([0xff; 8]); // with any cookie
    bytes
}

/// What an answer's `tcp_info` says.
fn figures(answer: &[u8], queued: u32) -> Option<Counts> {
    let mut at = ATTRIBUTES;
    loop {
        let length = usize::from(half(answer, at)?);
        if half(answer, at + 2)? == INET_DIAG_INFO {
            let info = answer.get(at + 4..at + length)?;
            let (acknowledged, segments, unsent) =
                (word(info, 120)?, word(info, 140)?, word(info, 144)?);
            let unacknowledged = queued.saturating_sub(unsent);
            return Some(Counts { unacknowledged, segments, acknowledged });
        }
        at += length.max(4).next_multiple_of(4);
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|half| u16::from_ne_bytes(*half))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_ne_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    #[tokio::test]
    async fn a_link_sends_again_without_ever_longer_waits_whatever_the_machine_prefers() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let address = listener.local_addr().expect("bound");
        let stream = tokio::net::TcpStream::connect(address).await.expect("open");
        set_tcp_congestion(&stream, "bbr").unwrap_or(()); // where this kernel has it
        tune(&stream).expect("tuned");
        assert!(SockRef::from(&stream).tcp_thin_linear_timeouts().expect("told"));
        let algorithm = rustix::net::sockopt::tcp_congestion(&stream).expect("told");
        assert!(["cubic", "reno"].contains(&algorithm.as_str()), "{algorithm}");
    }

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
