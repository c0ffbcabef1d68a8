//! Mutual TLS 1.3: who is at the other end of a stream.
//!
//! Owns the TLS configuration and the words for why a handshake failed. Invariants: a stream that
//! leaves here is TLS 1.3 between two nodes of one cluster, each of which has shown a certificate
//! of the cluster's authority, not revoked at that moment, and proved its key in this very
//! handshake. Sessions are never resumed, because a resumed one would skip the check of the
//! certificate. Streams of those who have no certificate yet are those of `enrol` alone.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName};
use rustls::server::{
    Acceptor, NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier,
};
use rustls::version::TLS13;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, PeerIncompatible, RootCertStore, ServerConfig,
};
use strum::IntoStaticStr;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::{LazyConfigAcceptor, StartHandshake, TlsConnector, client, server};

use super::clock;
use super::identity::{
    CertificateFault, CertificateVerifier, Identity, PeerIdentity, cluster_of_server_name,
    server_name,
};
use crate::proto::node::{ClusterId, NodeName};

pub mod enrol;
mod revocation;
use revocation::{ClientVerifier, ServerVerifier};
mod web;
pub use web::{Web, WebError};

/// The protocol inside the stream (ALPN, RFC 7301), the same from both sides.
const ALPN: &[u8] = b"xpando/1";

/// Why there is no stream. In every case but [`TlsError::Config`] and [`TlsError::Authority`] the
/// stream is closed, nothing else has changed, and its cause says who acts.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The identity cannot be used for TLS. Nothing changed; the operator makes a new certificate.
    #[error("the certificate cannot be used for TLS: {0}")]
    Config(rustls::Error),
    /// The authority's certificate cannot be used for TLS. Nothing changed; the operator makes a
    /// new authority.
    #[error("the authority's certificate cannot be used for TLS: {0}")]
    Authority(VerifierBuilderError),
    /// The cluster's name cannot be asked for. Nothing changed; it cannot happen with a cluster's
    /// id in hexadecimal.
    #[error("the cluster's name is no DNS name: {0}")]
    ServerName(InvalidDnsNameError),
    /// The handshake failed.
    #[error("TLS handshake failed: {0}")]
    Handshake(io::Error),
    /// The handshake failed because the two ends trust different authorities. Whose nodes belong together is for
    /// the operator to say: both need certificates of one authority. What the peer says of itself is not proven.
    #[error("belongs to another cluster (authority {theirs}; ours is {ours}, from {})", certs.display())]
    OtherCluster {
        /// The id of the peer's authority.
        theirs: ClusterId,
        /// The id of ours.
        ours: ClusterId,
        /// The directory that ours is in.
        certs: PathBuf,
    },
    /// The handshake was sound, but the peer showed no certificate.
    #[error("the peer showed no certificate")]
    NoCertificate,
    /// The handshake was sound, but the certificate proves no node of this cluster.
    #[error("the peer's certificate {0}")]
    Peer(CertificateFault),
    /// The handshake was sound, but the peer speaks another protocol inside it.
    #[error("the peer does not speak {} inside TLS", String::from_utf8_lossy(ALPN))]
    Protocol,
}

impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> Self {
        Self::Config(error)
    }
}

/// Why a stream failed, as a fixed word for logs and metrics.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, IntoStaticStr, strum::Display,
)]
#[strum(serialize_all = "snake_case")]
pub enum Cause {
    /// The peer's certificate is of another authority, or damaged.
    Untrusted,
    /// The peer belongs to another cluster.
    OtherCluster,
    /// The peer's certificate has expired.
    Expired,
    /// The peer's certificate is not valid yet: a clock is wrong.
    NotYetValid,
    /// The peer's certificate is revoked.
    Revoked,
    /// The peer showed no certificate.
    NoCertificate,
    /// The peer does not speak TLS 1.3.
    Version,
    /// The peer does not speak TLS.
    Garbage,
    /// The peer's certificate names no node of this cluster.
    Name,
    /// The peer, or the network, closed the connection.
    Closed,
    /// The peer has refused our certificate.
    RefusedByPeer,
    /// The peer has refused our certificate, because it is revoked.
    RefusedAsRevoked,
    /// Anything else.
    Other,
}

impl Cause {
    /// The word, in lower case with underscores.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

impl TlsError {
    /// The error as a fixed word.
    pub(crate) fn cause(&self) -> Cause {
        match self {
            Self::Config(_) | Self::Authority(_) | Self::ServerName(_) | Self::Protocol => {
                Cause::Other
            }
            Self::Handshake(error) => cause_of_io(error),
            Self::OtherCluster { .. } => Cause::OtherCluster,
            Self::NoCertificate => Cause::NoCertificate,
            Self::Peer(error) => cause_of_peer(error),
        }
    }

    /// Whose certificate was refused as revoked, where that is known: not on the side that was
    /// called.
    #[must_use]
    pub(crate) fn revoked(&self) -> Option<&NodeName> {
        if let Self::Peer(CertificateFault::Revoked(name)) = self { Some(name) } else { None }
    }
}

/// Why reading or writing a TLS stream failed.
///
/// The side that connects needs it: in TLS 1.3 its handshake ends before the accepting side has
/// judged its certificate, so a refusal arrives as an error of its first read.
pub fn cause_of_io(error: &io::Error) -> Cause {
    if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return cause_of_tls(tls);
    }
    let closed = matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected
    );
    if closed { Cause::Closed } else { Cause::Other }
}

fn cause_of_peer(error: &CertificateFault) -> Cause {
    match error {
        CertificateFault::Untrusted | CertificateFault::Damaged(_) => Cause::Untrusted,
        CertificateFault::Revoked(_) => Cause::Revoked,
        CertificateFault::Expired(_) => Cause::Expired,
        CertificateFault::NotYetValid(_) => Cause::NotYetValid,
        CertificateFault::NotANode(_) | CertificateFault::WrongName(_) => Cause::Name,
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the library adds variants")]
fn cause_of_tls(error: &rustls::Error) -> Cause {
    use rustls::Error as E;
    match error {
        E::NoCertificatesPresented => Cause::NoCertificate,
        E::InvalidCertificate(why) => cause_of_certificate(why),
        E::AlertReceived(alert) => cause_of_alert(*alert),
        E::PeerIncompatible(
            PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::SupportedVersionsExtensionRequired,
        ) => Cause::Version,
        E::InvalidMessage(_) | E::InappropriateMessage { .. } | E::PeerSentOversizedRecord => {
            Cause::Garbage
        }
        _ => Cause::Other,
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the library adds variants")]
fn cause_of_certificate(why: &CertificateError) -> Cause {
    use CertificateError as C;
    match why {
        C::Expired | C::ExpiredContext { .. } => Cause::Expired,
        C::NotValidYet | C::NotValidYetContext { .. } => Cause::NotYetValid,
        C::Revoked => Cause::Revoked,
        C::NotValidForName | C::NotValidForNameContext { .. } => Cause::Name,
        _ => Cause::Untrusted,
    }
}

/// An alert is the peer's judgement of us; those of RFC 8446, 6.2 that speak of a certificate
/// speak of ours. `DecryptError` among them: our proof of the key did not verify.
#[expect(clippy::wildcard_enum_match_arm, reason = "the library adds variants")]
fn cause_of_alert(alert: AlertDescription) -> Cause {
    use AlertDescription as A;
    match alert {
        A::NoCertificate
        | A::BadCertificate
        | A::UnsupportedCertificate
        | A::CertificateExpired
        | A::CertificateUnknown
        | A::UnknownCA
        | A::AccessDenied
        | A::DecryptError
        | A::CertificateRequired => Cause::RefusedByPeer,
        A::CertificateRevoked => Cause::RefusedAsRevoked,
        A::ProtocolVersion => Cause::Version,
        A::CloseNotify | A::UserCanceled => Cause::Closed,
        _ => Cause::Other,
    }
}

/// One identity, ready for handshakes on either side. A clone shares everything.
#[derive(Clone)]
pub struct Tls {
    sides: Arc<ArcSwap<Sides>>,
    server_name: ServerName<'static>,
    verifier: CertificateVerifier,
    certs: PathBuf,
}

impl Tls {
    /// Prepares both sides of the handshake. The private key is copied into the TLS library.
    ///
    /// # Errors
    /// [`TlsError::Config`] or [`TlsError::Authority`] when the library refuses the identity.
    pub fn new(identity: &Identity) -> Result<Self, TlsError> {
        Ok(Self {
            sides: Arc::new(ArcSwap::from_pointee(Sides::new(identity)?)),
            server_name: ServerName::try_from(server_name(identity.cluster()))
                .map_err(TlsError::ServerName)?,
            verifier: identity.verifier(),
            certs: identity.certs().to_owned(),
        })
    }

    /// Shows the certificate that the identity has now, in handshakes from now on. Streams that live are not touched.
    ///
    /// # Errors
    /// As [`Tls::new`]; nothing changed.
    pub fn renew(&self, identity: &Identity) -> Result<(), TlsError> {
        self.sides.store(Arc::new(Sides::new(identity)?));
        Ok(())
    }

    /// The handshake of the side that was called, with a node. Has no time limit of its own.
    ///
    /// # Errors
    /// [`TlsError::Handshake`], [`TlsError::OtherCluster`], [`TlsError::NoCertificate`], [`TlsError::Peer`] or
    /// [`TlsError::Protocol`]; the stream is closed.
    pub async fn accept<S>(
        &self,
        stream: S,
    ) -> Result<(server::TlsStream<S>, PeerIdentity), TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.hear(stream).await?.authenticate().await
    }

    /// Waits until a caller has said what it wants.
    ///
    /// # Errors
    /// [`TlsError::Handshake`]; the stream is closed.
    pub async fn hear<S>(&self, stream: S) -> Result<Caller<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await;
        Ok(Caller { hello: hello.map_err(TlsError::Handshake)?, tls: self.clone() })
    }

    /// The handshake of the side that calls. Has no time limit of its own.
    ///
    /// It returns before the other side has judged our certificate: a refusal is an error of the
    /// first read, for which see [`cause_of_io`].
    ///
    /// # Errors
    /// As [`Tls::accept`].
    pub async fn connect<S>(
        &self,
        stream: S,
    ) -> Result<(client::TlsStream<S>, PeerIdentity), TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let sides = self.sides.load_full();
        let judge = Arc::new(ServerVerifier {
            stock: Arc::clone(&sides.called) as Arc<dyn ServerCertVerifier>,
            verifier: self.verifier.clone(),
            revoked: OnceLock::new(),
            foreign: OnceLock::new(),
        });
        let mut config = sides.client.clone();
        config.dangerous().set_certificate_verifier(Arc::clone(&judge) as _);
        let connector = TlsConnector::from(Arc::new(config));
        let connected = connector.connect(self.server_name.clone(), stream).await;
        let stream = connected.map_err(|error| match judge.revoked.get().cloned() {
            Some(name) => TlsError::Peer(CertificateFault::Revoked(name)),
            None => self.failed(error, judge.foreign.get().copied()),
        })?;
        let (_, session) = stream.get_ref();
        let peer = self.peer(session.alpn_protocol(), session.peer_certificates())?;
        Ok((stream, peer))
    }

    fn failed(&self, error: io::Error, theirs: Option<ClusterId>) -> TlsError {
        let ours = self.verifier.cluster();
        match theirs.filter(|theirs| *theirs != ours) {
            Some(theirs) => TlsError::OtherCluster { theirs, ours, certs: self.certs.clone() },
            None => TlsError::Handshake(error),
        }
    }

    /// True when one of the certificates with these serial numbers is revoked by now.
    #[must_use]
    pub fn any_revoked(&self, serials: &[String]) -> bool {
        self.verifier.any_revoked(serials)
    }

    fn peer(
        &self,
        alpn: Option<&[u8]>,
        certificates: Option<&[CertificateDer<'static>]>,
    ) -> Result<PeerIdentity, TlsError> {
        // A caller that offers no protocol at all passes the handshake, hence the check.
        if alpn != Some(ALPN) {
            return Err(TlsError::Protocol);
        }
        let leaf = certificates.and_then(<[_]>::first).ok_or(TlsError::NoCertificate)?;
        self.verifier.peer(leaf, clock::wall()).map_err(TlsError::Peer)
    }
}

/// Somebody who has called and said what it wants, and has not been answered.
pub struct Caller<S> {
    hello: StartHandshake<S>,
    tls: Tls,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Caller<S> {
    /// Whether it has no certificate and asks for one.
    pub fn enrols(&self) -> bool {
        let hello = self.hello.client_hello();
        let offers = |wanted: &[u8]| {
            hello.alpn().is_some_and(|mut offered| offered.any(|protocol| protocol == wanted))
        };
        offers(enrol::ALPN) && !offers(ALPN)
    }

    /// The rest of the handshake with a node.
    ///
    /// # Errors
    /// As [`Tls::accept`].
    pub async fn authenticate(self) -> Result<(server::TlsStream<S>, PeerIdentity), TlsError> {
        let Self { hello, tls } = self;
        let server = Arc::clone(&tls.sides.load().server);
        // Whom the caller asks for tells which cluster it belongs to, before it refuses our certificate.
        let wanted = hello.client_hello().server_name().and_then(cluster_of_server_name);
        let accepted = hello.into_stream(server).await;
        let stream = accepted.map_err(|error| {
            let refused = matches!(cause_of_io(&error), Cause::RefusedByPeer | Cause::Untrusted);
            tls.failed(error, wanted.filter(|_| refused))
        })?;
        let (_, session) = stream.get_ref();
        let peer = tls.peer(session.alpn_protocol(), session.peer_certificates())?;
        Ok((stream, peer))
    }

    /// The rest of the handshake with one who asks for a certificate.
    ///
    /// # Errors
    /// [`TlsError::Handshake`]; the stream is closed.
    pub async fn enrol(self) -> Result<server::TlsStream<S>, TlsError> {
        let config = Arc::clone(&self.tls.sides.load().newcomers);
        self.hello.into_stream(config).await.map_err(TlsError::Handshake)
    }

    /// Ends the connection; the caller learns that it is to come again later.
    pub async fn deny(mut self) {
        // Anyone who has gone needs no word.
        drop(self.hello.io.write_all(&enrol::DENIED).await);
        drop(self.hello.io.shutdown().await);
    }
}

/// Both sides of a handshake.
struct Sides {
    server: Arc<ServerConfig>,
    /// For those who have no certificate.
    newcomers: Arc<ServerConfig>,
    /// For one call each, with a verifier of its own.
    client: ClientConfig,
    called: Arc<WebPkiServerVerifier>,
}

impl Sides {
    fn new(identity: &Identity) -> Result<Self, TlsError> {
        // Explicit, so that it does not matter what another library installed for the process.
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        identity.authorities().into_iter().try_for_each(|root| roots.add(root))?;
        let roots = Arc::new(roots);
        let called =
            WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(TlsError::Authority)?;
        let callers = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(TlsError::Authority)?;
        let callers = Arc::new(ClientVerifier { stock: callers, verifier: identity.verifier() });
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(callers)
            .with_single_cert(vec![identity.certificate()], identity.private_key())?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        let newcomers = Arc::new(enrol::server(identity, Arc::clone(&provider))?);
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&called) as _)
            .with_client_auth_cert(vec![identity.certificate()], identity.private_key())?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = Resumption::disabled();
        Ok(Self { server: Arc::new(server), newcomers, client, called })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;
    use crate::io::identity::{Authority, Validity};

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    /// A cluster in a directory of its own.
    struct Cluster {
        dir: tempfile::TempDir,
        authority: Authority,
    }

    impl Cluster {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let authority = Authority::init(dir.path(), clock::wall()).unwrap();
            Self { dir, authority }
        }

        fn identity(&self, name: &str, validity: Validity) -> Identity {
            self.authority.issue(self.dir.path(), &name.parse().unwrap(), validity).unwrap()
        }

        fn node(&self, name: &str) -> Tls {
            Tls::new(&self.identity(name, Validity::leaf(clock::wall()))).unwrap()
        }

        fn node_valid(&self, name: &str, not_before: SystemTime, not_after: SystemTime) -> Tls {
            Tls::new(&self.identity(name, Validity { not_before, not_after })).unwrap()
        }
    }

    type Connected = Result<(client::TlsStream<DuplexStream>, PeerIdentity), TlsError>;
    type Accepted = Result<(server::TlsStream<DuplexStream>, PeerIdentity), TlsError>;

    async fn shake(client: &Tls, server: &Tls) -> (Connected, Accepted) {
        let (near, far) = duplex(64 * 1024);
        tokio::join!(client.connect(near), server.accept(far))
    }

    /// What the client learns at its first read after a handshake that looked sound to it.
    async fn first_read(connected: Connected) -> Cause {
        let (mut stream, _) = connected.unwrap();
        cause_of_io(&stream.read_u8().await.unwrap_err())
    }

    /// Why the server gives up on a client that sends these bytes and then listens.
    async fn accept_bytes(bytes: &[u8]) -> Cause {
        let server = Cluster::new().node("b@h");
        let (mut near, far) = duplex(64 * 1024);
        near.write_all(bytes).await.unwrap();
        server.accept(far).await.unwrap_err().cause()
    }

    #[tokio::test]
    async fn two_nodes_of_a_cluster_know_each_other() {
        let cluster = Cluster::new();
        let a = cluster.identity("a@::1", Validity::leaf(clock::wall()));
        let b = cluster.identity("b@h", Validity::leaf(clock::wall()));
        let (connected, accepted) = shake(&Tls::new(&a).unwrap(), &Tls::new(&b).unwrap()).await;
        let ((mut near, peer_of_a), (mut far, peer_of_b)) = (connected.unwrap(), accepted.unwrap());
        assert_eq!((&peer_of_a.name, peer_of_a.id), (b.name(), b.id()));
        assert_eq!((&peer_of_b.name, peer_of_b.id), (a.name(), a.id()));
        assert!(peer_of_b.verify(b"m", &a.sign(b"m").unwrap()));
        let session = near.get_ref().1;
        assert_eq!(session.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        let group = session.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
        near.write_all(b"ping").await.unwrap();
        near.flush().await.unwrap();
        let mut ping = [0; 4];
        far.read_exact(&mut ping).await.unwrap();
        assert_eq!(&ping, b"ping");
    }

    #[tokio::test]
    async fn a_second_handshake_is_as_full_as_the_first() {
        let cluster = Cluster::new();
        let (a, b) = (cluster.node("a@h"), cluster.node("b@h"));
        for _ in 0..3 {
            let (connected, accepted) = shake(&a, &b).await;
            let kind = connected.unwrap().0.get_ref().1.handshake_kind();
            assert_eq!(kind, Some(rustls::HandshakeKind::Full));
            assert_eq!(accepted.unwrap().1.name.as_str(), "a@h");
        }
    }

    #[tokio::test]
    async fn both_sides_name_the_other_cluster_and_their_own() {
        let clusters = [Cluster::new(), Cluster::new()];
        let of = |it: &Cluster| it.identity("a@h", Validity::leaf(clock::wall()));
        let [ours, theirs] = clusters.each_ref().map(of);
        let tls = [&ours, &theirs].map(|identity| Tls::new(identity).unwrap());
        let (connected, accepted) = shake(&tls[0], &tls[1]).await;
        let says = |of: &Identity, own: &Identity| {
            let certs = own.certs().display();
            let (of, own) = (of.cluster(), own.cluster());
            format!("belongs to another cluster (authority {of}; ours is {own}, from {certs})")
        };
        let (connected, accepted) = (connected.unwrap_err(), accepted.unwrap_err());
        assert_eq!([connected.cause(), accepted.cause()], [Cause::OtherCluster; 2]);
        assert_eq!(connected.to_string(), says(&theirs, &ours));
        assert_eq!(accepted.to_string(), says(&ours, &theirs));
    }

    #[tokio::test]
    async fn a_client_of_another_cluster_is_untrusted() {
        let (ours, theirs) = (Cluster::new(), Cluster::new());
        let server = ours.identity("b@h", Validity::leaf(clock::wall()));
        let client = theirs.identity("a@h", Validity::leaf(clock::wall()));
        // A client that would accept any server of our cluster, but is not of it.
        let mut roots = RootCertStore::empty();
        roots.add(server.authority_certificate()).unwrap();
        let (cause, refusal) = raw_client(&server, |config| {
            config
                .with_root_certificates(roots)
                .with_client_auth_cert(vec![client.certificate()], client.private_key())
                .unwrap()
        })
        .await;
        assert_eq!(cause, Cause::Untrusted);
        assert_eq!(refusal, Cause::RefusedByPeer);
    }

    #[tokio::test]
    async fn a_client_without_a_certificate_is_refused() {
        let server = Cluster::new().identity("b@h", Validity::leaf(clock::wall()));
        let mut roots = RootCertStore::empty();
        roots.add(server.authority_certificate()).unwrap();
        let (cause, refusal) = raw_client(&server, |config| {
            config.with_root_certificates(roots).with_no_client_auth()
        })
        .await;
        assert_eq!(cause, Cause::NoCertificate);
        assert_eq!(refusal, Cause::RefusedByPeer);
    }

    /// Why the server refuses a client with its own configuration, and what that client learns.
    async fn raw_client(
        server: &Identity,
        config: impl FnOnce(rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>) -> ClientConfig,
    ) -> (Cause, Cause) {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let mut config = config(builder.with_protocol_versions(&[&TLS13]).unwrap());
        config.alpn_protocols = vec![ALPN.to_vec()];
        let client = TlsConnector::from(Arc::new(config));
        let server_name = ServerName::try_from(server_name(server.cluster())).unwrap();
        let server = Tls::new(server).unwrap();
        let (near, far) = duplex(64 * 1024);
        let (connected, accepted) =
            tokio::join!(client.connect(server_name, near), server.accept(far));
        let refusal = connected.unwrap().read_u8().await.unwrap_err();
        (accepted.unwrap_err().cause(), cause_of_io(&refusal))
    }

    #[tokio::test]
    async fn a_client_that_offers_no_protocol_is_refused() {
        let cluster = Cluster::new();
        let server = cluster.node("b@h");
        let client = cluster.identity("a@h", Validity::leaf(clock::wall()));
        let mut config = Tls::new(&client).unwrap().sides.load().client.clone();
        config.alpn_protocols.clear();
        let name = ServerName::try_from(super::server_name(client.cluster())).unwrap();
        let (near, far) = duplex(64 * 1024);
        let client = TlsConnector::from(Arc::new(config));
        let (_, accepted) = tokio::join!(client.connect(name, near), server.accept(far));
        assert!(matches!(accepted.unwrap_err(), TlsError::Protocol));
    }

    #[tokio::test]
    async fn expired_certificates_are_refused_on_both_sides() {
        let cluster = Cluster::new();
        let good = cluster.node("a@h");
        let now = clock::wall();
        let expired = cluster.node_valid("old@h", now - 9 * DAY, now - DAY);
        let (connected, accepted) = shake(&good, &expired).await;
        assert_eq!(connected.unwrap_err().cause(), Cause::Expired);
        assert_eq!(accepted.unwrap_err().cause(), Cause::RefusedByPeer);
        let (connected, accepted) = shake(&expired, &good).await;
        assert_eq!(accepted.unwrap_err().cause(), Cause::Expired);
        assert_eq!(first_read(connected).await, Cause::RefusedByPeer);
    }

    #[tokio::test]
    async fn certificates_of_the_future_are_refused_on_both_sides() {
        let cluster = Cluster::new();
        let good = cluster.node("a@h");
        let now = clock::wall();
        let early = cluster.node_valid("new@h", now + DAY, now + 9 * DAY);
        let (connected, accepted) = shake(&good, &early).await;
        assert_eq!(connected.unwrap_err().cause(), Cause::NotYetValid);
        assert_eq!(accepted.unwrap_err().cause(), Cause::RefusedByPeer);
        let (connected, accepted) = shake(&early, &good).await;
        assert_eq!(accepted.unwrap_err().cause(), Cause::NotYetValid);
        assert_eq!(first_read(connected).await, Cause::RefusedByPeer);
    }

    #[tokio::test]
    async fn revoked_certificates_are_refused_on_both_sides_as_soon_as_the_list_says_so() {
        let cluster = Cluster::new();
        let good = cluster.identity("a@h", Validity::leaf(clock::wall()));
        let (a, b) = (Tls::new(&good).unwrap(), cluster.node("b@h"));
        let lists = good.lists();
        let (connected, accepted) = shake(&a, &b).await;
        assert!(connected.is_ok() && accepted.is_ok());
        cluster.authority.revoke(&"b@h".parse().unwrap(), clock::wall()).unwrap();
        assert_eq!(lists.look(crate::proto::lists::ListKind::Revocations).unwrap(), Some(1));
        let (connected, accepted) = shake(&a, &b).await;
        let error = connected.unwrap_err();
        assert_eq!(error.cause(), Cause::Revoked);
        assert_eq!(error.revoked().map(NodeName::as_str), Some("b@h"));
        assert_eq!(accepted.unwrap_err().cause(), Cause::RefusedAsRevoked);
        let (connected, accepted) = shake(&b, &a).await;
        assert_eq!(accepted.unwrap_err().cause(), Cause::Revoked);
        assert_eq!(first_read(connected).await, Cause::RefusedAsRevoked);
        // Anyone who has not got the list knows no better, and a fresh certificate is a good one.
        let fresh = cluster.node("b@h");
        let (connected, accepted) = shake(&fresh, &a).await;
        assert_eq!(connected.unwrap().1.name.as_str(), "a@h");
        assert_eq!(accepted.unwrap().1.name.as_str(), "b@h");
    }

    /// A ClientHello of TLS 1.2 (RFC 5246, 7.4.1.2) in its record.
    fn hello_of_tls_1_2() -> Vec<u8> {
        let mut body = vec![3, 3]; // the version
        body.extend([7; 32]); // random bytes
        body.push(0); // no session
        body.extend([0, 2, 0xc0, 0x2b]); // ECDHE-ECDSA with AES-128-GCM
        body.extend([1, 0]); // no compression
        let extensions = [
            [0, 10, 0, 4, 0, 2, 0, 23].as_slice(), // groups: P-256
            &[0, 11, 0, 2, 1, 0],                  // points: uncompressed
            &[0, 13, 0, 4, 0, 2, 4, 3],            // signatures: ECDSA P-256 SHA-256
        ]
        .concat();
        body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
        body.extend(extensions);
        let length = u16::try_from(body.len()).unwrap();
        let mut record = vec![22, 3, 1]; // handshake, in the oldest record version
        record.extend((length + 4).to_be_bytes());
        record.extend([1, 0]); // ClientHello
        record.extend(length.to_be_bytes());
        record.extend(body);
        record
    }

    #[tokio::test]
    async fn an_older_tls_is_refused() {
        assert_eq!(accept_bytes(&hello_of_tls_1_2()).await, Cause::Version);
        let client = Cluster::new().node("a@h");
        let (near, mut far) = duplex(64 * 1024);
        // A fatal alert, "protocol version": what a server of TLS 1.2 answers.
        far.write_all(&[21, 3, 3, 0, 2, 2, 70]).await.unwrap();
        assert_eq!(client.connect(near).await.unwrap_err().cause(), Cause::Version);
    }

    #[tokio::test]
    async fn what_is_not_tls_is_garbage_and_an_end_is_closed() {
        assert_eq!(accept_bytes(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await, Cause::Garbage);
        assert_eq!(accept_bytes(&[0xff; 4096]).await, Cause::Garbage);
        let server = Cluster::new().node("b@h");
        for sent in [&b""[..], &hello_of_tls_1_2()[..20]] {
            let (mut near, far) = duplex(64 * 1024);
            near.write_all(sent).await.unwrap();
            drop(near);
            assert_eq!(server.accept(far).await.unwrap_err().cause(), Cause::Closed);
        }
        let (near, mut far) = duplex(64 * 1024);
        far.write_all(b"SSH-2.0-server\r\n").await.unwrap();
        assert_eq!(server.connect(near).await.unwrap_err().cause(), Cause::Garbage);
    }

    #[test]
    fn causes_are_words() {
        assert_eq!(Cause::NotYetValid.as_str(), "not_yet_valid");
        assert_eq!(format!("{:<9}|", Cause::Expired), "expired  |");
        let plain = io::Error::new(io::ErrorKind::TimedOut, "late");
        assert_eq!(cause_of_io(&plain), Cause::Other);
        assert_eq!(cause_of_io(&io::ErrorKind::ConnectionReset.into()), Cause::Closed);
    }
}
