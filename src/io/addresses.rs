//! This machine's addresses, and which of them nodes on other machines can use.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

/// An address of the documentation (RFC 5737): what leads there leads everywhere.
const ELSEWHERE: (Ipv4Addr, u16) = (Ipv4Addr::new(198, 51, 100, 1), 9);

/// Why nodes on other machines cannot reach a node at an address; `None` when nothing speaks against it.
pub fn useless(ip: IpAddr) -> Option<&'static str> {
    match ip.to_canonical() {
        ip if ip.is_loopback() => Some("only this machine reaches it"),
        ip if ip.is_unspecified() => Some("it stands for all addresses"),
        ip if ip.is_multicast() || ip == Ipv4Addr::BROADCAST => {
            Some("it is no address of one machine")
        }
        IpAddr::V6(ip) if ip.is_unicast_link_local() => Some("it needs an interface beside it"),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// The address of this machine that others are most likely to reach: the one that leads to the network, else its only
/// one. The error lists those that there are.
///
/// # Errors
/// There is no such address, or the machine has several and no route tells which.
pub fn outward() -> Result<IpAddr, Vec<IpAddr>> {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    let own = interfaces.into_iter().map(|interface| interface.ip());
    let own: Vec<_> = own.filter(|ip| useless(*ip).is_none()).collect();
    chosen(routed(), own)
}

fn chosen(routed: Option<IpAddr>, own: Vec<IpAddr>) -> Result<IpAddr, Vec<IpAddr>> {
    let only = || if let [ip] = own.as_slice() { Some(*ip) } else { None };
    routed.filter(|ip| useless(*ip).is_none()).or_else(only).ok_or(own)
}

/// Where datagrams to elsewhere would leave from. Connecting a datagram socket sends nothing.
fn routed() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(ELSEWHERE).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn what_others_cannot_use_is_told_from_what_they_can() {
        for bad in [
            "127.0.0.1",
            "127.0.1.1",
            "::1",
            "::ffff:127.0.0.1",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
            "fe80::1",
        ] {
            assert!(useless(ip(bad)).is_some(), "{bad}");
        }
        for good in
            ["10.0.0.7", "192.168.1.1", "169.254.1.1", "203.0.113.5", "2001:db8::1", "fd00::1"]
        {
            assert_eq!(useless(ip(good)), None, "{good}");
        }
    }

    #[test]
    fn the_route_decides_and_without_one_the_only_address() {
        let [a, b] = [ip("10.0.0.7"), ip("172.17.0.1")];
        assert_eq!(chosen(Some(a), vec![b, a]), Ok(a));
        assert_eq!(chosen(None, vec![b]), Ok(b));
        assert_eq!(chosen(Some(ip("127.0.0.1")), vec![b]), Ok(b));
        assert_eq!(chosen(None, vec![a, b]), Err(vec![a, b]));
        assert_eq!(chosen(None, vec![]), Err(vec![]));
    }
}
