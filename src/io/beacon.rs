//! Beacons on the wire: the multicast socket, and the seal on each datagram.
//!
//! Invariant: a node whose name is on loopback sends and receives on the loopback interface alone;
//! none of its datagrams leaves the machine.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket};

use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};

use crate::io::identity::Identity;
use crate::io::seals::SealChecker;
use crate::proto::beacon::{Beacon, Sealed};
use crate::proto::codec::CodecError;
use crate::proto::node::Credential;

/// The multicast group (MCAST-TEST-NET, RFC 6676: never routed by accident).
pub const GROUP: Ipv4Addr = Ipv4Addr::new(233, 252, 1, 32);
/// The UDP port.
pub const PORT: u16 = 45892;

/// The interface that beacons of a node reachable at `host` use: loopback for loopback.
pub fn interface(host: IpAddr) -> Ipv4Addr {
    match host {
        IpAddr::V4(ip) if ip.is_loopback() => Ipv4Addr::LOCALHOST,
        IpAddr::V4(ip) => ip,
        IpAddr::V6(ip) if ip.is_loopback() => Ipv4Addr::LOCALHOST,
        // An IPv6 host still beacons over IPv4 multicast, on the interface that has its address.
        IpAddr::V6(_) => ipv4_beside(host).unwrap_or(Ipv4Addr::UNSPECIFIED),
    }
}

fn ipv4_beside(host: IpAddr) -> Option<Ipv4Addr> {
    let interfaces = if_addrs::get_if_addrs().ok()?;
    let name = &interfaces.iter().find(|i| i.ip() == host)?.name;
    interfaces.iter().filter(|i| i.name == *name).find_map(|i| match i.ip() {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    })
}

/// Opens the socket that sends to and hears from the group on one interface. Several nodes of one
/// machine may each have one.
///
/// # Errors
/// The system's; without it the node runs without beacons.
pub fn open(interface: Ipv4Addr) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_multicast_if_v4(&interface)?;
    socket.set_multicast_ttl_v4(1)?;
    socket.set_multicast_loop_v4(true)?;
    socket.bind(&SocketAddrV4::new(GROUP, PORT).into())?;
    let on = InterfaceIndexOrAddress::Address(interface);
    socket.join_multicast_v4_n(&GROUP, &on)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// A beacon as the datagram to send.
///
/// # Errors
/// [`CodecError::TooLong`] when name and certificate do not fit one packet.
pub fn sealed(beacon: &Beacon, identity: &Identity) -> Result<Vec<u8>, CodecError> {
    let signed = beacon.to_sign()?;
    let signature = identity.sign(&signed).map_err(|_no_key_no_beacon| CodecError::Malformed)?;
    Beacon::seal(signed, &identity.certificate(), &signature)
}

impl SealChecker {
    /// What the certificate is of that proves that the node named in the beacon sent it.
    pub fn holds(&self, sealed: &Sealed<'_>) -> Option<Credential> {
        let Sealed { beacon, signed, certificate, signature } = sealed;
        self.proves(&beacon.contact.name, certificate, signed, signature)
    }
}

#[cfg(test)]
#[path = "../../tests/kit/skip.rs"]
mod skip;

#[cfg(test)]
mod tests {
    use super::skip::skip;
    use super::*;
    use crate::io::clock;
    use crate::io::identity::{Authority, Validity};
    use crate::proto::lists::ListKind;
    use crate::proto::node::{Contact, Incarnation};

    fn beacon(identity: &Identity, name: &str) -> Beacon {
        Beacon {
            cluster: identity.cluster(),
            contact: Contact {
                name: name.parse().expect("valid"),
                address: ([127, 0, 0, 1], 4697).into(),
                incarnation: Incarnation(1),
            },
            sequence: 1,
            sent: 0,
        }
    }

    fn identities(names: &[&str]) -> Vec<Identity> {
        let dir = tempfile::tempdir().expect("a directory");
        let now = clock::wall();
        let authority = Authority::init(dir.path(), now).expect("a CA");
        let issue = |name: &&str| {
            let name = name.parse().expect("valid");
            authority.issue(dir.path(), &name, Validity::leaf(now)).expect("a leaf")
        };
        names.iter().map(issue).collect()
    }

    fn holds(checker: &mut SealChecker, datagram: &[u8]) -> bool {
        checker.holds(&Beacon::decode(datagram).expect("decodes")).is_some()
    }

    #[test]
    fn only_the_node_itself_can_seal_its_beacon() {
        let ids = identities(&["a@127.0.0.1", "b@127.0.0.1"]);
        let mut checker = SealChecker::new(ids[0].verifier());
        let genuine = sealed(&beacon(&ids[0], "a@127.0.0.1"), &ids[0]).expect("fits");
        assert!(holds(&mut checker, &genuine) && holds(&mut checker, &genuine));
        let claims_a = sealed(&beacon(&ids[1], "a@127.0.0.1"), &ids[1]).expect("fits");
        assert!(!holds(&mut checker, &claims_a), "b signs for a");
        let foreign = &identities(&["a@127.0.0.1"])[0];
        let other_ca = sealed(&beacon(foreign, "a@127.0.0.1"), foreign).expect("fits");
        assert!(!holds(&mut checker, &other_ca), "a of another cluster");
        let mut tampered = genuine;
        tampered[25] ^= 1; // within the name
        if let Ok(sealed) = Beacon::decode(&tampered) {
            assert_eq!(checker.holds(&sealed), None, "tampered");
        }
    }

    #[test]
    fn a_revoked_node_cannot_seal_any_more() {
        let dir = tempfile::tempdir().expect("a directory");
        let authority = Authority::init(dir.path(), clock::wall()).expect("a CA");
        let valid = Validity::leaf(clock::wall());
        let [a, b] = ["a@127.0.0.1", "b@127.0.0.1"].map(|name| {
            authority.issue(dir.path(), &name.parse().expect("valid"), valid).expect("a leaf")
        });
        let (mut knows, mut fresh) =
            (SealChecker::new(a.verifier()), SealChecker::new(a.verifier()));
        let beacon = sealed(&beacon(&b, "b@127.0.0.1"), &b).expect("fits");
        assert!(holds(&mut knows, &beacon));
        authority.revoke(b.name(), clock::wall()).expect("revoked");
        assert_eq!(a.lists().look(ListKind::Revocations).expect("a list"), Some(1));
        assert!(!holds(&mut knows, &beacon), "its certificate was remembered");
        assert!(!holds(&mut fresh, &beacon));
    }

    #[test]
    fn a_beacon_of_the_longest_name_fits_a_packet() {
        let name = format!("{}@{}", "n".repeat(63), vec!["h".repeat(47); 4].join("."));
        let id = &identities(&[&name])[0];
        let bytes = sealed(&beacon(id, &name), id).expect("fits");
        assert!(bytes.len() <= crate::proto::beacon::MAX_BEACON, "{}", bytes.len());
    }

    #[test]
    fn loopback_names_stay_on_loopback() {
        for host in ["127.0.0.1", "127.9.9.9", "::1"] {
            assert_eq!(interface(host.parse().expect("valid")), Ipv4Addr::LOCALHOST);
        }
        assert_eq!(interface(Ipv4Addr::new(10, 1, 2, 3).into()), Ipv4Addr::new(10, 1, 2, 3));
    }

    #[test]
    fn the_group_is_heard_on_loopback_by_several_sockets() {
        let sockets = [open(Ipv4Addr::LOCALHOST), open(Ipv4Addr::LOCALHOST)];
        let [Ok(a), Ok(b)] = sockets else {
            return skip("multicast", "the group cannot be joined on loopback");
        };
        b.set_nonblocking(false).expect("blocking");
        b.set_read_timeout(Some(std::time::Duration::from_secs(5))).expect("timeout");
        let word = format!("test {}", std::process::id());
        a.send_to(word.as_bytes(), (GROUP, PORT)).expect("sent");
        let mut buffer = [0; 2048];
        while b.recv(&mut buffer).map(|n| &buffer[..n] != word.as_bytes()).expect("heard") {}
    }
}
