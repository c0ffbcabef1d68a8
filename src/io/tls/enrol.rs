//! Connections of machines that have no certificate yet, and ask for one. Their protocol (ALPN) tells them apart.
//!
//! Owns the protocol's name, what a node shows such a caller, and whom a caller believes. Invariants: TLS 1.3 alone; a
//! caller that offers the nodes' own protocol too has to show a certificate like any other; a node shows its leaf and
//! its authorities' certificates, so that a caller who knows the SHA-256 of one can tell the cluster from any other.
//! Dates are not judged by the caller: its clock may be wrong, and the answer says by how much.

use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, ParsedCertificate};
use rustls::version::TLS13;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore,
    ServerConfig, SignatureScheme,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client};

use crate::io::identity::Identity;
use crate::proto::enrol::AuthorityHash;

/// The protocol of those who ask for a certificate.
pub(super) const ALPN: &[u8] = b"xpando-enrol/1";
/// Whom a caller asks for (SNI): it does not know the cluster's id yet.
const NAME: &str = "enrol.xpando.internal";
/// Certificates that are looked at in what a node shows.
const MAX_SHOWN: usize = 8;
/// A fatal alert, "access denied" (RFC 8446, 6): what a caller gets that is not heard for the moment.
pub(super) const DENIED: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];

/// Whom a caller takes for a node of the cluster that it wants to join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// A holder of a certificate that this authority has signed, itself or through others.
    Authority(AuthorityHash),
    /// Anyone: what is said inside proves itself.
    Anyone,
}

/// Why there is no connection to ask over. It is closed, nothing else has changed; another address may help.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The library refuses its configuration.
    #[error("TLS cannot be used: {0}")]
    Config(Error),
    /// The handshake failed.
    #[error("TLS handshake failed: {0}")]
    Handshake(std::io::Error),
    /// The node there is not of the authority whose hash is known.
    #[error(
        "the node there is of another cluster: its authority's certificate has the SHA-256 {0}"
    )]
    OtherAuthority(AuthorityHash),
    /// The node there hears nobody from here for the moment.
    #[error(
        "the node there takes no more requests from this address for the moment; try again in a minute"
    )]
    Denied,
    /// The node there knows of no such requests.
    #[error("the node there takes no requests for certificates: its program is an earlier one")]
    NoEnrolment,
}

impl From<Error> for ConnectError {
    fn from(error: Error) -> Self {
        Self::Config(error)
    }
}

/// What a node shows those who have no certificate.
pub(super) fn server(
    identity: &Identity,
    provider: Arc<CryptoProvider>,
) -> Result<ServerConfig, Error> {
    let shown = [vec![identity.certificate()], identity.authorities()].concat();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(shown, identity.private_key())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

/// The handshake of one who asks for a certificate. Has no time limit of its own.
///
/// # Errors
/// [`ConnectError::OtherAuthority`], [`ConnectError::Denied`], [`ConnectError::NoEnrolment`] or [`ConnectError::Handshake`]; the stream
/// is closed.
pub async fn connect<S>(stream: S, expected: Expected) -> Result<client::TlsStream<S>, ConnectError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let other = OnceLock::new();
    let verifier = Arc::new(Pinned { expected, provider: Arc::clone(&provider), other });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&verifier) as _)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    let name = ServerName::try_from(NAME)
        .map_err(|_not_dns| Error::General("the name asked for is no DNS name".to_owned()))?;
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let stream = connected.map_err(|error| match verifier.other.get() {
        Some(theirs) => ConnectError::OtherAuthority(*theirs),
        None => of_alert(error),
    })?;
    if stream.get_ref().1.alpn_protocol() == Some(ALPN) {
        Ok(stream)
    } else {
        Err(ConnectError::NoEnrolment)
    }
}

/// What the alerts of a node mean here.
fn of_alert(error: std::io::Error) -> ConnectError {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match tls {
        Some(Error::AlertReceived(AlertDescription::AccessDenied)) => ConnectError::Denied,
        // A node of an earlier program knows no such protocol, or asks for a certificate.
        Some(Error::AlertReceived(
            AlertDescription::NoApplicationProtocol | AlertDescription::CertificateRequired,
        )) => ConnectError::NoEnrolment,
        _ => ConnectError::Handshake(error),
    }
}

/// Believes whom one authority has signed.
#[derive(Debug)]
struct Pinned {
    expected: Expected,
    provider: Arc<CryptoProvider>,
    /// That of the last certificate that was shown instead.
    other: OnceLock<AuthorityHash>,
}

impl Pinned {
    fn chains(
        &self,
        leaf: &CertificateDer<'_>,
        authority: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let leaf = ParsedCertificate::try_from(leaf)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        let at = |time| {
            verify_server_cert_signed_by_trust_anchor(&leaf, &roots, others, time, algorithms)
        };
        // Whatever the time is here, it is judged at one when the certificate is valid.
        match at(now) {
            Err(Error::InvalidCertificate(CertificateError::ExpiredContext {
                not_after, ..
            })) => at(not_after),
            Err(Error::InvalidCertificate(CertificateError::NotValidYetContext {
                not_before,
                ..
            })) => at(not_before),
            other => other,
        }
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Expected::Authority(wanted) = self.expected else {
            return Ok(ServerCertVerified::assertion());
        };
        let shown = intermediates.get(..MAX_SHOWN).unwrap_or(intermediates);
        let Some(authority) = shown.iter().find(|der| AuthorityHash::of(der) == wanted) else {
            let theirs = AuthorityHash::of(shown.last().unwrap_or(end_entity));
            self.other.get_or_init(|| theirs);
            return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        };
        self.chains(end_entity, authority, shown, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;
    use crate::io::clock;
    use crate::io::identity::{Authority, Validity};
    use crate::io::tls::{Cause, Tls, cause_of_io};

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn identity(not_before: SystemTime, not_after: SystemTime) -> Identity {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::init(dir.path(), clock::wall()).unwrap();
        let validity = Validity { not_before, not_after };
        authority.issue(dir.path(), &"a@h".parse().unwrap(), validity).unwrap()
    }

    fn valid() -> Identity {
        identity(clock::wall() - DAY, clock::wall() + DAY)
    }

    fn hash(identity: &Identity) -> Expected {
        Expected::Authority(AuthorityHash::of(&identity.authority_certificate()))
    }

    /// What a caller gets of a node, and whether that takes it for one who enrols.
    async fn call(
        identity: &Identity,
        expected: Expected,
    ) -> (Result<client::TlsStream<DuplexStream>, ConnectError>, bool) {
        let tls = Tls::new(identity).unwrap();
        let (near, far) = duplex(64 * 1024);
        let serves = async {
            let caller = tls.hear(far).await.unwrap();
            let enrols = caller.enrols();
            if let Ok(mut stream) = caller.enrol().await {
                stream.write_u8(7).await.unwrap();
                stream.flush().await.unwrap();
            }
            enrols
        };
        tokio::join!(connect(near, expected), serves)
    }

    #[tokio::test]
    async fn one_without_a_certificate_is_heard_by_a_node_of_the_authority_that_it_knows() {
        let node = valid();
        for expected in [hash(&node), Expected::Anyone] {
            let (stream, enrols) = call(&node, expected).await;
            let mut stream = stream.unwrap();
            assert!(enrols && stream.read_u8().await.unwrap() == 7);
            let session = stream.get_ref().1;
            assert_eq!(session.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
            let group = session.negotiated_key_exchange_group().unwrap().name();
            assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
        }
    }

    #[tokio::test]
    async fn a_node_of_another_authority_is_not_believed_even_if_it_shows_the_right_certificate() {
        let [node, other] = [valid(), valid()];
        let error = call(&other, hash(&node)).await.0.unwrap_err();
        let ConnectError::OtherAuthority(theirs) = &error else { panic!("{error}") };
        let Expected::Authority(of_other) = hash(&other) else { panic!() };
        assert_eq!(*theirs, of_other);
        // The authority's certificate is no secret: a leaf that it has not signed is none of its nodes.
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let Expected::Authority(wanted) = hash(&node) else { panic!() };
        let judge =
            Pinned { expected: Expected::Authority(wanted), provider, other: OnceLock::new() };
        let shown = [node.authority_certificate(), other.authority_certificate()];
        let name = ServerName::try_from(NAME).unwrap();
        let judged = |leaf: &Identity| {
            judge.verify_server_cert(&leaf.certificate(), &shown, &name, &[], UnixTime::now())
        };
        assert!(judged(&node).is_ok() && judged(&other).is_err());
    }

    #[tokio::test]
    async fn a_clock_that_is_wrong_keeps_nobody_from_asking() {
        let now = clock::wall();
        for node in [identity(now - 9 * DAY, now - DAY), identity(now + DAY, now + 9 * DAY)] {
            assert!(call(&node, hash(&node)).await.0.is_ok());
        }
    }

    #[tokio::test]
    async fn one_who_offers_the_protocol_of_nodes_too_is_asked_for_a_certificate() {
        let node = valid();
        let tls = Tls::new(&node).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let judge = Pinned {
            expected: Expected::Anyone,
            provider: Arc::clone(&provider),
            other: OnceLock::new(),
        };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(judge))
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec(), super::super::ALPN.to_vec()];
        let connector = TlsConnector::from(Arc::new(config));
        let (near, far) = duplex(64 * 1024);
        let serves = async {
            let caller = tls.hear(far).await.unwrap();
            assert!(!caller.enrols());
            caller.authenticate().await.unwrap_err().cause()
        };
        let name = ServerName::try_from(NAME).unwrap();
        let (stream, cause) = tokio::join!(connector.connect(name, near), serves);
        assert_eq!(cause, Cause::NoCertificate);
        let refusal = stream.unwrap().read_u8().await.unwrap_err();
        assert_eq!(cause_of_io(&refusal), Cause::RefusedByPeer);
    }

    #[tokio::test]
    async fn one_that_is_not_heard_for_the_moment_knows_it_and_an_older_node_is_named() {
        let node = valid();
        let tls = Tls::new(&node).unwrap();
        let (near, far) = duplex(64 * 1024);
        let denies = async { tls.hear(far).await.unwrap().deny().await };
        let (connected, ()) = tokio::join!(connect(near, hash(&node)), denies);
        assert!(matches!(connected.unwrap_err(), ConnectError::Denied));
        let (near, far) = duplex(64 * 1024);
        // What a node answered before there was this protocol.
        let answers = async { tls.hear(far).await.unwrap().authenticate().await.map(drop) };
        let (connected, answered) = tokio::join!(connect(near, hash(&node)), answers);
        assert!(matches!(connected.unwrap_err(), ConnectError::NoEnrolment) && answered.is_err());
    }
}
