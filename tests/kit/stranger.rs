//! A stranger: somebody at a node's link port who is not `xpando-node`, and may lie at each step.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::version::TLS13;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use xpando_node::internals::io::identity::{Identity, server_name};
use xpando_node::internals::proto::frame::{self, Lane};
use xpando_node::internals::proto::hello::{Greeting, Hello};
use xpando_node::internals::proto::node::Incarnation;

use super::PATIENCE;

/// Where a stranger goes, and what it knows of the cluster there: its public certificate.
pub(crate) struct LinkPort<'a> {
    pub(crate) address: SocketAddr,
    /// Any identity of that cluster.
    pub(crate) cluster: &'a Identity,
}

/// A TLS connection to a node's link port.
pub(crate) struct Stranger {
    stream: StreamOwned<ClientConnection, TcpStream>,
}

impl Stranger {
    /// Shakes hands under `identity`, or without a certificate. In TLS 1.3 the node judges it later.
    pub(crate) fn connect(port: &LinkPort<'_>, identity: Option<&Identity>) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(port.cluster.authority_certificate()).unwrap();
        let config = ClientConfig::builder_with_provider(provider);
        let config = config.with_protocol_versions(&[&TLS13]).unwrap();
        let config = config.with_root_certificates(roots);
        let mut config = match identity {
            Some(id) => {
                config.with_client_auth_cert(vec![id.certificate()], id.private_key()).unwrap()
            }
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"xpando/1".to_vec()];
        let name = ServerName::try_from(server_name(port.cluster.cluster())).unwrap();
        let session = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut stream = StreamOwned::new(session, dial(port.address));
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).unwrap();
        }
        Self { stream }
    }

    /// Connects and introduces itself truthfully, up to the point where ractor's bytes begin.
    pub(crate) fn link(port: &LinkPort<'_>, identity: &Identity) -> Self {
        let mut stranger = Self::connect(port, Some(identity));
        stranger.greet(&Greeting::Hello(hello(identity)));
        let answer = stranger.hear().unwrap();
        assert!(matches!(answer, Greeting::Welcome(_)), "{answer:?}");
        stranger.greet(&Greeting::Confirm);
        stranger
    }

    pub(crate) fn greet(&mut self, greeting: &Greeting) {
        self.send(&greeting.encode().unwrap());
    }

    /// Sends bytes as they are. A node that has hung up meanwhile is no failure here.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        drop(self.try_send(bytes));
    }

    /// Sends bytes as they are, as long as the node reads them.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).and_then(|()| self.stream.flush())
    }

    /// Sends a piece on a lane of the link.
    pub(crate) fn piece(&mut self, lane: Lane, payload: &[u8]) {
        let header = frame::header(lane, payload.len()).unwrap();
        self.send(&[&header, payload].concat());
    }

    /// What the node answers.
    pub(crate) fn hear(&mut self) -> io::Result<Greeting> {
        let mut length = [0; 2];
        self.stream.read_exact(&mut length)?;
        let mut body = vec![0; usize::from(u16::from_be_bytes(length))];
        self.stream.read_exact(&mut body)?;
        Greeting::decode(&body).map_err(io::Error::other)
    }

    /// The next piece of a link.
    #[allow(dead_code, reason = "the bad member alone reads them")]
    pub(crate) fn hear_piece(&mut self) -> io::Result<(Lane, Vec<u8>)> {
        let mut header = [0; frame::HEADER];
        self.stream.read_exact(&mut header)?;
        let (lane, length) = frame::parse_header(header).map_err(io::Error::other)?;
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload)?;
        Ok((lane, payload))
    }

    /// Waits until the node has hung up.
    pub(crate) fn ends(mut self) {
        hung_up(&mut self.stream);
    }
}

/// A plain TCP connection whose reads do not wait for ever.
pub(crate) fn dial(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    stream
}

/// Reads on until the other side has hung up, and fails if it does not.
pub(crate) fn hung_up(stream: &mut impl Read) {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => {
                let waited = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];
                assert!(!waited.contains(&error.kind()), "the node does not hang up");
                return;
            }
        }
    }
}

/// A truthful hello.
pub(crate) fn hello(identity: &Identity) -> Hello {
    Hello {
        name: identity.name().clone(),
        cluster: identity.cluster(),
        incarnation: Incarnation(1),
        boot: 7,
        advertise: super::free_address(),
        lists: None,
    }
}

/// ractor's first frame, in which the dialer says its name: 8 bytes of length, then protobuf
/// `NetworkMessage { auth { name { name } } }` (ractor_cluster 0.16, `meta.proto` and `auth.proto`).
pub(crate) fn ractor_name(name: &str) -> Vec<u8> {
    let field = |body: &[u8]| [&[0x0a, u8::try_from(body.len()).unwrap()], body].concat();
    let message = field(&field(&field(name.as_bytes())));
    [&(message.len() as u64).to_be_bytes(), message.as_slice()].concat()
}
