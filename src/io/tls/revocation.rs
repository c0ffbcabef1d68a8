//! What TLS checks of the other side: the stock rules, and then whether its certificate is revoked. Of a certificate
//! that is refused, it keeps what the error of the handshake does not say.
//!
//! Invariant: nothing passes that the stock verifier refuses. The revocation list is the one that all
//! verifiers of the identity share, read anew in each handshake: a list that arrives later needs no new
//! TLS configuration, and an empty one cannot turn anything off.

use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use crate::io::identity::{CertificateVerifier, claimed_cluster};
use crate::proto::node::{ClusterId, NodeName};

const REVOKED: Error = Error::InvalidCertificate(CertificateError::Revoked);

/// What both traits ask about signatures: the stock rules alone.
macro_rules! signatures_by_stock {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            self.stock.verify_tls12_signature(message, certificate, signature)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            self.stock.verify_tls13_signature(message, certificate, signature)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.stock.supported_verify_schemes()
        }
    };
}

/// Judges the node that one connection called.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub(super) stock: Arc<dyn ServerCertVerifier>,
    pub(super) verifier: CertificateVerifier,
    /// Whom the refused certificate names: the error of the handshake does not tell.
    pub(super) revoked: OnceLock<NodeName>,
    /// The other cluster that the refused certificate is of, as it says.
    pub(super) foreign: OnceLock<ClusterId>,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let stock = &self.stock;
        let verified =
            stock.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let verified = verified.inspect_err(|_refused| {
            let ours = self.verifier.cluster();
            if let Some(theirs) = claimed_cluster(end_entity).filter(|theirs| *theirs != ours) {
                self.foreign.get_or_init(|| theirs);
            }
        })?;
        match self.verifier.revoked(end_entity) {
            Some(name) => {
                self.revoked.get_or_init(|| name);
                Err(REVOKED)
            }
            None => Ok(verified),
        }
    }

    signatures_by_stock!();
}

/// Judges anyone who calls this node.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    pub(super) stock: Arc<dyn ClientCertVerifier>,
    pub(super) verifier: CertificateVerifier,
}

impl ClientCertVerifier for ClientVerifier {
    fn offer_client_auth(&self) -> bool {
        self.stock.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.stock.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.stock.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.stock.verify_client_cert(end_entity, intermediates, now)?;
        match self.verifier.revoked(end_entity) {
            Some(_) => Err(REVOKED),
            None => Ok(verified),
        }
    }

    signatures_by_stock!();
}
