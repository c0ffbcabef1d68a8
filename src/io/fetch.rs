//! Documents that others publish over HTTPS, such as the key set of an issuer of tokens.
//!
//! A fetch is one GET (RFC 9110) over one connection, HTTP/1.1, and one answer. Invariants:
//!
//! 1. Over TLS, to a host whose certificate the roots vouch for; without TLS only to this machine.
//! 2. What answers chooses nothing but the bytes and how long they are good: redirects, other encodings and any other status
//!    than 200 are refused.
//! 3. It ends in time and in bounded memory, whatever the other side sends or does not send.
//! 4. An error tells no text of the other side.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper::header::{self, HeaderMap, HeaderName};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Longest address, in bytes.
const MAX_URL: usize = 2048;
/// Most bytes of an answer's head.
const MAX_HEAD: usize = 16 * 1024;

/// Why there is no document. Nothing changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    /// Its name is unknown, or leads elsewhere than it may.
    #[error("the host cannot be looked up: {0}")]
    Host(io::Error),
    /// Plain HTTP to another machine.
    #[error("http:// leads to another machine than this one: use https://")]
    NotHere,
    /// Nobody answers there.
    #[error("no connection: {0}")]
    Connection(io::Error),
    /// No TLS with somebody whom the roots vouch for.
    #[error("TLS failed: {0}")]
    Tls(io::Error),
    /// There is nobody to trust.
    #[error(
        "this machine has no root certificates: install them (ca-certificates), or name those of a private authority"
    )]
    NoRoots,
    /// The roots cannot be used.
    #[error("the root certificates cannot be used: {0}")]
    Roots(rustls::Error),
    /// What is answered is not HTTP, or ends too soon.
    #[error("no whole answer over HTTP/1.1: {0}")]
    Http(hyper::Error),
    /// Another place.
    #[error("the answer is {0}: redirects are not followed, name the place itself")]
    Redirect(StatusCode),
    /// Anything but the document.
    #[error("the answer is {0}")]
    Status(StatusCode),
    /// It is packed.
    #[error("the answer has a Content-Encoding, which was not asked for")]
    Encoded,
    /// It is longer than it may be.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
    /// It takes too long.
    #[error("no whole answer within {0:?}")]
    Late(Duration),
}

/// Where a document is: an absolute URL with `https`, or with `http` and this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    url: String,
    uri: Uri,
    tls: bool,
    host: String,
    port: u16,
}

impl Place {
    /// As it was given.
    pub(super) fn url(&self) -> &str {
        &self.url
    }
}

impl FromStr for Place {
    type Err = &'static str;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        let wrong = "it is no URL such as https://id.example/jwks.json";
        let uri: Uri = Some(url)
            .filter(|it| it.len() <= MAX_URL)
            .and_then(|it| it.parse().ok())
            .ok_or(wrong)?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong),
        };
        let authority = uri.authority().ok_or(wrong)?;
        if authority.as_str().contains('@') || url.contains('#') {
            return Err("a name, a password or a fragment (#) has no place in it");
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let literal: Option<std::net::IpAddr> = host.parse().ok();
        let local = host == "localhost" || literal.is_some_and(|it| it.is_loopback());
        let has_more = authority.as_str().len() > authority.host().len();
        if host.is_empty() || has_more && authority.port_u16().is_none() {
            return Err(wrong);
        }
        if !tls && !local {
            return Err(
                "http:// is for this machine alone (localhost, 127.0.0.1, [::1]): use https://",
            );
        }
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Ok(Self { url: url.to_owned(), uri, tls, host, port })
    }
}

/// What was fetched.
pub(super) struct Document {
    pub(super) bytes: Vec<u8>,
    /// How long it is good (RFC 9111, 5.2.2.1, less its age), if it says.
    pub(super) max_age: Option<Duration>,
}

/// The authorities in a PEM text; `None` where it holds anything else, or none.
pub(super) fn roots_of(pem: &[u8]) -> Option<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate.ok()?).ok()?;
    }
    (!roots.is_empty()).then_some(roots)
}

/// The authorities that this machine trusts: as the system has them, or as `SSL_CERT_FILE` and `SSL_CERT_DIR` say. Blocks on
/// the file system.
fn system_roots() -> Result<RootCertStore, FetchError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() { Err(FetchError::NoRoots) } else { Ok(roots) }
}

/// Fetches a document of at most `most` bytes within `limit`. `roots` are whom to trust for it; without them those whom this
/// machine trusts.
///
/// # Errors
/// Each [`FetchError`].
pub(super) async fn fetch(
    place: &Place,
    roots: Option<RootCertStore>,
    most: usize,
    limit: Duration,
) -> Result<Document, FetchError> {
    let fetched = tokio::time::timeout(limit, fetch_at_length(place, roots, most)).await;
    fetched.map_err(|_elapsed| FetchError::Late(limit))?
}

async fn fetch_at_length(
    place: &Place,
    roots: Option<RootCertStore>,
    most: usize,
) -> Result<Document, FetchError> {
    let stream = connected(place).await?;
    if !place.tls {
        return exchange(place, stream, most).await;
    }
    let roots = match roots {
        Some(roots) => roots,
        // A task that was cancelled has read none.
        None => tokio::task::spawn_blocking(system_roots)
            .await
            .map_err(|_ended| FetchError::NoRoots)??,
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(FetchError::Roots)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = ServerName::try_from(place.host.clone())
        .map_err(|error| FetchError::Host(io::Error::other(error)))?;
    let connector = TlsConnector::from(Arc::new(config));
    let stream = connector.connect(name, stream).await.map_err(FetchError::Tls)?;
    exchange(place, stream, most).await
}

/// A connection to the first address of the host that takes one.
async fn connected(place: &Place) -> Result<TcpStream, FetchError> {
    let found = tokio::net::lookup_host((place.host.as_str(), place.port)).await;
    let found: Vec<SocketAddr> = found.map_err(FetchError::Host)?.collect();
    let may = |address: &SocketAddr| place.tls || address.ip().is_loopback();
    let mut refused = FetchError::NotHere;
    for address in found.into_iter().filter(may) {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => refused = FetchError::Connection(error),
        }
    }
    Err(refused)
}

/// One request, and its answer.
async fn exchange(
    place: &Place,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    most: usize,
) -> Result<Document, FetchError> {
    let shaken = http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(FetchError::Http)?;
    let answered = async {
        let path = place.uri.path_and_query().map_or("/", |it| it.as_str());
        let host = place.uri.authority().map_or(place.host.as_str(), |it| it.as_str());
        let mut request = Request::new(String::new());
        *request.uri_mut() = path.parse().unwrap_or_default();
        let headers = request.headers_mut();
        let texts: [(HeaderName, &str); 4] = [
            (header::HOST, host),
            (header::ACCEPT, "application/jwk-set+json, application/json"),
            (header::USER_AGENT, concat!("xpando-node/", env!("CARGO_PKG_VERSION"))),
            (header::CONNECTION, "close"),
        ];
        for (name, text) in texts {
            if let Ok(value) = text.parse() {
                headers.insert(name, value);
            }
        }
        let answer = sender.send_request(request).await.map_err(FetchError::Http)?;
        read(answer, most).await
    };
    // The connection is driven while its answer is read, and dropped with it.
    let (mut answered, mut connection) = (std::pin::pin!(answered), std::pin::pin!(connection));
    tokio::select! {
        biased;
        document = &mut answered => document,
        ended = &mut connection => match ended {
            Err(error) => Err(FetchError::Http(error)),
            // What came before it was closed is still to be read.
            Ok(()) => answered.await,
        },
    }
}

async fn read(answer: Response<Incoming>, most: usize) -> Result<Document, FetchError> {
    let status = answer.status();
    if status.is_redirection() {
        return Err(FetchError::Redirect(status));
    }
    if status != StatusCode::OK {
        return Err(FetchError::Status(status));
    }
    let encoding = answer.headers().get(header::CONTENT_ENCODING);
    if encoding.is_some_and(|it| it != "identity") {
        return Err(FetchError::Encoded);
    }
    let max_age = max_age(answer.headers());
    let mut body = answer.into_body();
    let mut bytes = Vec::new();
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let data: Bytes = frame.map_err(FetchError::Http)?.into_data().unwrap_or_default();
        if bytes.len() + data.len() > most {
            return Err(FetchError::TooLong(most));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(Document { bytes, max_age })
}

/// How long an answer is good by its `Cache-Control` and `Age`: not at all where it is not to be kept.
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let texts = headers.get_all(header::CACHE_CONTROL).iter().filter_map(|it| it.to_str().ok());
    let mut told = None;
    for directive in texts.flat_map(|text| text.split(',')) {
        let directive = directive.trim().to_ascii_lowercase();
        if ["no-cache", "no-store"].contains(&directive.as_str()) {
            return Some(Duration::ZERO);
        }
        let seconds = directive.strip_prefix("max-age=").map(|it| it.trim_matches('"').parse());
        told = told.or(seconds.and_then(Result::ok));
    }
    let age = headers.get(header::AGE).and_then(|it| it.to_str().ok()?.trim().parse().ok());
    told.map(|seconds: u64| Duration::from_secs(seconds.saturating_sub(age.unwrap_or(0))))
}

#[cfg(test)]
mod tests;
