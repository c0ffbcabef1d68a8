//! TLS for clients that are no nodes: browsers, services, operators. They show a token, not a certificate.
//!
//! Invariants: TLS 1.2 and 1.3 with the library's own choice of ciphers; no client certificate is asked for; what is
//! served is always a certificate with its own key, the latest pair that fits together.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{InconsistentKeys, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, server};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;
use x509_cert::time::Time;
use zeroize::Zeroizing;

use crate::io::identity::{FileState, Identity, Look, Validity, file_state};
use crate::io::modes;

/// Most bytes that are read of a certificate chain or a key.
const MAX_FILE: u64 = 1024 * 1024;

/// Why clients cannot be served over TLS with these files. Nothing changed; the operator acts.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WebError {
    /// A file is not there, or holds something else.
    #[error("cannot read {}: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: pem::Error,
    },
    /// The key needs a passphrase.
    #[error(
        "the key {} is encrypted: nobody is there to type its passphrase; write it without one (`openssl pkey`), mode 0600",
        .0.display()
    )]
    Encrypted(PathBuf),
    /// The key does not belong to the certificate.
    #[error(
        "the key {} does not belong to the certificate {}: put the pair of one renewal there",
        key.display(), certificate.display()
    )]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The library does not take the certificate or the key.
    #[error("the certificate {} and its key cannot be used: {cause}", certificate.display())]
    Unusable {
        /// The certificate's file.
        certificate: PathBuf,
        /// What the library says.
        cause: rustls::Error,
    },
    /// The library does not take the node's own certificate.
    #[error("the node's certificate cannot be used for clients: {0}")]
    Node(rustls::Error),
}

/// Where certificate and key come from.
#[derive(Debug)]
enum Source {
    /// They are the node's own.
    Node,
    /// PEM files, and what the last look saw of them.
    Files { certificate: PathBuf, key: PathBuf, seen: Mutex<[FileState; 2]> },
}

struct Served {
    acceptor: TlsAcceptor,
    leaf: CertificateDer<'static>,
}

/// The side that clients call. Clones share everything.
#[derive(Clone)]
pub struct Web(Arc<Inner>);

struct Inner {
    source: Source,
    served: ArcSwap<Served>,
}

impl Web {
    /// With the node's own certificate, which clients trust who trust the cluster's authority.
    ///
    /// # Errors
    /// [`WebError::Node`].
    pub fn of(identity: &Identity) -> Result<Self, WebError> {
        let served = ArcSwap::from_pointee(of_node(identity)?);
        Ok(Self(Arc::new(Inner { source: Source::Node, served })))
    }

    /// With a certificate chain and its key from PEM files.
    ///
    /// # Errors
    /// [`WebError`].
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, WebError> {
        // Before they are read: what changes meanwhile is read again.
        let seen = Mutex::new([file_state(certificate), file_state(key)]);
        let served = ArcSwap::from_pointee(of_files(certificate, key)?);
        let source = Source::Files { certificate: certificate.into(), key: key.into(), seen };
        Ok(Self(Arc::new(Inner { source, served })))
    }

    /// Serves the renewed certificate, if there is one: the node's own, or that of files that changed since the last look.
    /// Connections that live are not touched.
    ///
    /// # Errors
    /// [`WebError`]; what was served before is served on, and the same files are not judged twice.
    pub fn look(&self, identity: &Identity) -> Result<Look<()>, WebError> {
        let served = match &self.0.source {
            Source::Node if self.0.served.load().leaf == identity.certificate() => {
                return Ok(Look::Unchanged);
            }
            Source::Node => of_node(identity)?,
            Source::Files { certificate, key, seen } => {
                let stamps = [file_state(certificate), file_state(key)];
                let mut seen = seen.lock();
                if std::mem::replace(&mut *seen, stamps) == stamps {
                    return Ok(Look::Unchanged);
                }
                of_files(certificate, key)?
            }
        };
        let same = served.leaf == self.0.served.load().leaf;
        // The same certificate may come with another chain.
        self.0.served.store(Arc::new(served));
        Ok(if same { Look::Sound } else { Look::New(()) })
    }

    /// From when until when the certificate is valid; `None` where that cannot be read.
    pub fn validity(&self) -> Option<Validity> {
        let served = self.0.served.load();
        let leaf: Certificate = Certificate::from_der(&served.leaf).ok()?;
        let at = |date: Time| UNIX_EPOCH.checked_add(date.to_unix_duration());
        let dates = leaf.tbs_certificate().validity();
        Some(Validity { not_before: at(dates.not_before)?, not_after: at(dates.not_after)? })
    }

    /// The certificate's file, unless it is the node's own.
    pub fn file(&self) -> Option<&Path> {
        match &self.0.source {
            Source::Node => None,
            Source::Files { certificate, .. } => Some(certificate),
        }
    }

    /// The handshake. Has no time limit of its own.
    ///
    /// # Errors
    /// The handshake's; the stream is closed.
    pub async fn accept<S>(&self, stream: S) -> io::Result<server::TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let acceptor = self.0.served.load().acceptor.clone();
        acceptor.accept(stream).await
    }
}

fn of_node(identity: &Identity) -> Result<Served, WebError> {
    let chain = vec![identity.certificate(), identity.authority_certificate()];
    served(chain, identity.private_key()).map_err(WebError::Node)
}

fn of_files(certificate: &Path, key: &Path) -> Result<Served, WebError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        |cause| WebError::File { path, cause }
    };
    let read = |path: &Path| contents(path).map_err(|cause| failed(path)(pem::Error::Io(cause)));
    let text = read(certificate)?;
    let chain = CertificateDer::pem_slice_iter(&text);
    let chain: Vec<_> = chain.collect::<Result<_, _>>().map_err(failed(certificate))?;
    if chain.is_empty() {
        return Err(failed(certificate)(pem::Error::NoItemsFound));
    }
    let text = read(key)?;
    let private = PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
        if text.windows(9).any(|part| part == b"ENCRYPTED") {
            WebError::Encrypted(key.into())
        } else {
            failed(key)(error)
        }
    })?;
    let mismatch = rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch);
    served(chain, private).map_err(|error| {
        if error == mismatch {
            WebError::Mismatch { certificate: certificate.into(), key: key.into() }
        } else {
            WebError::Unusable { certificate: certificate.into(), cause: error }
        }
    })
}

/// What is in a file.
fn contents(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let file = modes::open(path)?;
    // Room for all of it at once: a buffer that grew would leave an unwiped copy behind.
    let room = usize::try_from(file.metadata()?.len().min(MAX_FILE)).unwrap_or_default() + 64;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    file.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn served(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Served, rustls::Error> {
    let leaf = chain.first().cloned().unwrap_or_else(|| CertificateDer::from(Vec::new()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Served { acceptor: TlsAcceptor::from(Arc::new(config)), leaf })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::io::clock::wall;
    use crate::io::identity::{Authority, LeafOptions};

    #[test]
    fn only_a_whole_new_pair_takes_the_place_of_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::init(dir.path(), wall()).unwrap();
        let issue = |name: &str| {
            let (name, valid) = (name.parse().unwrap(), Validity::leaf(wall()));
            authority.issue(dir.path(), &name, valid).unwrap()
        };
        let [identity, old, new] = ["a@h", "old@h", "new@h"].map(issue);
        let (cert, key) = (dir.path().join("web.pem"), dir.path().join("web.key"));
        let put = |node: &str, file: &str, to: &Path| {
            fs::copy(dir.path().join(node).join(file), to).unwrap();
        };
        put("old@h", "cert.pem", &cert);
        put("old@h", "key.pem", &key);
        let web = Web::read(&cert, &key).unwrap();
        let serves = |one: &Identity| web.0.served.load().leaf == one.certificate();
        let look = || web.look(&identity);
        assert_eq!(look().unwrap(), Look::Unchanged);

        put("new@h", "cert.pem", &cert);
        assert!(matches!(look(), Err(WebError::Mismatch { .. })));
        assert!(serves(&old));
        assert_eq!(look().unwrap(), Look::Unchanged, "not judged twice");
        put("new@h", "key.pem", &key);
        assert_eq!(look().unwrap(), Look::New(()));
        assert!(serves(&new));

        fs::write(
            &key,
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
        )
        .unwrap();
        assert!(matches!(look(), Err(WebError::Encrypted(path)) if path == key));
        fs::remove_file(&cert).unwrap();
        assert!(matches!(look(), Err(WebError::File { path, .. }) if path == cert));
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, &cert, mode).unwrap();
        assert!(look().unwrap_err().to_string().ends_with("it is no regular file"));
        assert!(serves(&new));
    }

    #[test]
    fn the_nodes_own_certificate_is_served_as_it_is_renewed() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::init(dir.path(), wall()).unwrap();
        let (name, valid) = ("a@h".parse().unwrap(), Validity::leaf(wall()));
        let identity = Arc::new(authority.issue(dir.path(), &name, valid).unwrap());
        let web = Web::of(&identity).unwrap();
        assert_eq!(web.look(&identity).unwrap(), Look::Unchanged);
        authority.reissue(dir.path(), &name, valid, LeafOptions::default()).unwrap();
        assert!(matches!(identity.files(dir.path()).look(wall()), Ok(Look::New(_))));
        assert_eq!(web.look(&identity).unwrap(), Look::New(()));
        assert_eq!(web.0.served.load().leaf, identity.certificate());
    }
}
