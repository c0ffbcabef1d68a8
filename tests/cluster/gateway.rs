//! Where a node serves its clients: plainly or over TLS, with which certificate, and how it tells them to go.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ProtocolVersion, RootCertStore, StreamOwned};
use xpando_node::internals::io::clock;
use xpando_node::internals::io::identity::{Identity, server_name};

use crate::kit::stranger::dial;
use crate::kit::{Cluster, Node, parsed};

/// On every address, at a port of the system's choice.
const ANYWHERE: &str = "0.0.0.0:0";
/// Clients that are closed for what they send.
const CLOSED: usize = 100;

/// A node's gateway as seen from this host.
fn gateway(node: &Node) -> SocketAddr {
    let mut http = node.http();
    if http.ip().is_unspecified() {
        http.set_ip(IpAddr::V4(outside().unwrap_or(Ipv4Addr::LOCALHOST)));
    }
    http
}

/// An address of this host that is not loopback, if it has one.
fn outside() -> Option<Ipv4Addr> {
    let found = if_addrs::get_if_addrs().unwrap_or_default().into_iter();
    let mut found = found.filter_map(|interface| match interface.ip() {
        IpAddr::V4(ip) if !ip.is_loopback() && !ip.is_link_local() => Some(ip),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    });
    found.next()
}

/// Asks for a WebSocket; everything that is said until the head of an answer is there, or the end.
fn ask(mut stream: impl Read + Write) -> Vec<u8> {
    let request = "GET /socket/websocket?vsn=2.0.0 HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
                   Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let mut said = Vec::new();
    if stream.write_all(request.as_bytes()).and_then(|()| stream.flush()).is_err() {
        return said;
    }
    let mut bytes = [0; 1024];
    while !said.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut bytes) {
            Ok(length @ 1..) => said.extend_from_slice(&bytes[..length]),
            Ok(0) => break,
            Err(error) => {
                let waited = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];
                assert!(!waited.contains(&error.kind()), "neither an answer nor an end");
                break;
            }
        }
    }
    said
}

#[track_caller]
fn is_plain(address: SocketAddr) {
    let said = ask(dial(address));
    assert!(said.starts_with(b"HTTP/1.1 101 "), "{:?}", String::from_utf8_lossy(&said));
}

/// Plain HTTP is told to use TLS; TLS 1.3 gets this certificate, which `root` vouches for under this name, and serves clients.
#[track_caller]
fn is_tls(
    address: SocketAddr,
    certificate: &CertificateDer<'_>,
    root: &CertificateDer<'static>,
    name: String,
) {
    let said = ask(dial(address));
    let said = String::from_utf8_lossy(&said);
    assert!(said.starts_with("HTTP/1.1 400 ") && said.contains("text/plain"), "{said:?}");

    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from(name).unwrap();
    let session = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(session, dial(address));
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).unwrap();
    }
    assert_eq!(stream.conn.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(stream.conn.peer_certificates().unwrap().first(), Some(certificate));
    let said = ask(stream);
    assert!(said.starts_with(b"HTTP/1.1 101 "), "{:?}", String::from_utf8_lossy(&said));
}

/// A certificate for `localhost` that vouches for itself, as PEM files, and as what is shown.
fn certificate(cluster: &Cluster, name: &str) -> ([PathBuf; 2], CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let files = ["cert", "key"].map(|kind| cluster.path(&format!("{name}-{kind}.pem")));
    std::fs::write(&files[0], made.cert.pem()).unwrap();
    std::fs::write(&files[1], made.signing_key.serialize_pem()).unwrap();
    (files, made.cert.der().clone())
}

#[test]
fn by_default_it_is_for_this_host_alone_and_plain() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    assert_eq!(a.http().ip(), IpAddr::V4(Ipv4Addr::LOCALHOST));
    is_plain(a.http());
    if let Some(outside) = outside() {
        let refused = TcpStream::connect((outside, a.http().port()));
        assert_eq!(refused.map(drop).map_err(|e| e.kind()), Err(io::ErrorKind::ConnectionRefused));
    }
    let elsewhere = cluster.node("b").arg("--http").arg("127.0.0.2:0").start();
    is_plain(elsewhere.http());
}

#[test]
fn elsewhere_it_speaks_tls_with_the_nodes_own_certificate_unless_told_otherwise() {
    let cluster = Cluster::new();
    let a = cluster.node("a").arg("--http").arg(ANYWHERE).start();
    let own = Identity::load(&cluster.certs(), &parsed("a"), clock::wall()).unwrap();
    let name = server_name(own.cluster());
    is_tls(gateway(&a), &own.certificate(), &own.authority_certificate(), name);
    let plain = cluster.node("b").arg("--http").arg(ANYWHERE).arg("--http-plain").start();
    is_plain(gateway(&plain));
}

#[test]
fn a_certificate_that_is_given_is_shown_wherever_it_listens() {
    let cluster = Cluster::new();
    let ([cert, key], shown) = certificate(&cluster, "web");
    for (node, http) in [("a", ANYWHERE), ("b", "127.0.0.1:0")] {
        let node = cluster.node(node).arg("--http").arg(http);
        let node = node.arg("--http-cert").arg(cert.to_str().unwrap());
        let node = node.arg("--http-key").arg(key.to_str().unwrap()).start();
        is_tls(gateway(&node), &shown, &shown, "localhost".to_owned());
    }
}

/// The certificate that is shown at this moment.
fn shown(address: SocketAddr, roots: &[&CertificateDer<'static>]) -> CertificateDer<'static> {
    let mut trusted = RootCertStore::empty();
    roots.iter().for_each(|root| trusted.add((*root).clone()).unwrap());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(trusted).with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let session = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(session, dial(address));
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).unwrap();
    }
    stream.conn.peer_certificates().unwrap()[0].clone().into_owned()
}

#[test]
fn a_renewed_certificate_is_shown_without_a_restart_once_its_key_is_there() {
    let cluster = Cluster::new();
    let ([cert, key], old) = certificate(&cluster, "web");
    let ([new_cert, new_key], new) = certificate(&cluster, "new");
    let node = cluster.node("a").arg("--http").arg("127.0.0.1:0");
    let node = node.arg("--http-cert").arg(cert.to_str().unwrap());
    let node = node.arg("--http-key").arg(key.to_str().unwrap()).start();
    let roots = [&old, &new];
    assert_eq!(shown(node.http(), &roots), old);
    std::fs::rename(&new_cert, &cert).unwrap();
    let refused = node.logged("certificate for clients refused", &[("error", "does not belong")]);
    assert_eq!(refused["level"], "WARN");
    node.counts("xpando_files_total", "http_certificate_refused", 0);
    assert_eq!(shown(node.http(), &roots), old, "half a pair changes nothing");
    std::fs::rename(&new_key, &key).unwrap();
    node.logged("certificate for clients was renewed", &[]);
    assert_eq!(shown(node.http(), &roots), new);
    std::fs::remove_file(&cert).unwrap();
    node.logged("certificate for clients refused", &[("error", "web-cert.pem")]);
    assert_eq!(shown(node.http(), &roots), new);
}

#[test]
fn a_certificate_and_key_that_cannot_be_used_end_the_start() {
    let cluster = Cluster::new();
    let ([cert, key], _) = certificate(&cluster, "web");
    let ([_, other], _) = certificate(&cluster, "other");
    let (nothing, rubbish) = (cluster.path("nothing.pem"), cluster.path("rubbish.pem"));
    std::fs::write(&rubbish, "rubbish\n").unwrap();
    let mismatch = format!("{} does not belong to the certificate", other.display());
    let unreadable = |path: &PathBuf| format!("cannot read {}", path.display());
    for (cert, key, words) in [
        (&cert, &other, mismatch),
        (&nothing, &key, unreadable(&nothing)),
        (&cert, &nothing, unreadable(&nothing)),
        (&cert, &rubbish, unreadable(&rubbish)),
        (&cert, &cert, unreadable(&cert)),
        (&rubbish, &key, unreadable(&rubbish)),
        (&key, &key, unreadable(&key)),
    ] {
        let node = cluster.node("a").arg("--http").arg("127.0.0.1:0");
        let node = node.arg("--http-cert").arg(cert.to_str().unwrap());
        node.arg("--http-key").arg(key.to_str().unwrap()).ends().fails_with(1, &[&words]);
    }
}

/// A frame of a client, with a mask that changes nothing.
fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | kind, 0x80 | 127];
    frame.extend_from_slice(&(payload.len() as u64).to_be_bytes());
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
}

/// A stream that is dropped with something unread on it is reset, and the reason lost: each of these goes on sending.
#[test]
fn a_client_that_sends_no_text_can_read_why_it_is_closed() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let sent = [frame(1, b"\xff"), frame(2, &vec![0; 2 << 20])].concat();
    thread::scope(|clients| {
        for _ in 0..CLOSED {
            clients.spawn(|| {
                let mut stream = dial(a.http());
                assert!(ask(&mut stream).starts_with(b"HTTP/1.1 101 "));
                stream.write_all(&sent).unwrap();
                let mut read = Vec::new();
                stream.read_to_end(&mut read).unwrap();
                let head = [0x88, read.len() as u8 - 2, 0x03, 0xef];
                assert_eq!(read[..4], head, "a close frame with 1007");
                assert_eq!(read[4..], *b"a text frame that is not UTF-8");
            });
        }
    });
}
