//! TLS for clients that are no nodes: browsers, services, operators. They show a token, not a certificate.
//!
//! Invariant: TLS 1.2 and 1.3 with the library's own choice of ciphers; no client certificate is asked for.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, server};

use crate::io::identity::Identity;

/// Why clients cannot be served over TLS. The operator acts.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// A file is not there, or holds something else.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// The key does not belong to the certificate, or the library knows neither.
    #[error("the certificate and key for HTTP cannot be used: {0}")]
    Tls(#[from] rustls::Error),
}

/// The side that clients call.
#[derive(Clone)]
pub struct Web(TlsAcceptor);

impl std::fmt::Debug for Web {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Web")
    }
}

impl Web {
    /// With the node's own certificate, which clients trust who trust the cluster's authority.
    ///
    /// # Errors
    /// [`WebError::Tls`].
    pub fn of(identity: &Identity) -> Result<Self, WebError> {
        let chain = vec![identity.certificate().clone(), identity.authority_certificate().clone()];
        Self::new(chain, identity.private_key())
    }

    /// With a certificate chain and its key from PEM files.
    ///
    /// # Errors
    /// [`WebError`].
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, WebError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source| WebError::File { path, source }
        };
        let chain = CertificateDer::pem_file_iter(certificate).map_err(failed(certificate))?;
        let chain: Vec<_> = chain.collect::<Result<_, _>>().map_err(failed(certificate))?;
        if chain.is_empty() {
            return Err(failed(certificate)(pem::Error::NoItemsFound));
        }
        let key = PrivateKeyDer::from_pem_file(key).map_err(failed(key))?;
        Self::new(chain, key)
    }

    fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, WebError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    /// The handshake. Has no time limit of its own.
    ///
    /// # Errors
    /// The handshake's; the stream is closed.
    pub async fn accept<S>(&self, stream: S) -> io::Result<server::TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.0.accept(stream).await
    }
}
