//! What a host and an issuer say to each other about a certificate: one request, one answer.
//!
//! Owns the two formats, docs/PROTOCOL.md has them. A request carries a certificate signing request, a name, hosts and what
//! proves the right to them; how the bytes travel (a TLS connection, a call between nodes, a file) is nobody's business here.
//! Invariants: what is decoded has at most [`MAX_MESSAGE`] bytes and keeps every bound below; both enums grow at their ends
//! only; nothing secret is in either message.

mod host;
mod pattern;

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use strum::IntoStaticStr;

pub use self::host::{Host, HostError};
pub use self::pattern::{NamePattern, PatternError};
use crate::proto::codec::{self, CodecError};
use crate::proto::node::{KeyId, NodeName};

/// Longest request and longest answer, in bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// Most hosts of one certificate, the host part of its name among them.
pub const MAX_HOSTS: usize = 16;
/// Most addresses of peers in an answer.
pub const MAX_PEERS: usize = 32;
/// By how much the clocks of the two may differ.
pub const MAX_CLOCK_DIFFERENCE: Duration = Duration::from_secs(5 * 60);
/// Longest certificate signing request, and longest certificate that a request shows, in bytes.
const MAX_DER: usize = 4 * 1024;
/// Longest token of a machine, in bytes.
const MAX_JWT: usize = 16 * 1024;
/// Longest share of a key, in bytes.
const MAX_SHARE: usize = 64;
/// Longest text of a refusal, in bytes.
const MAX_REASON: usize = 512;
/// Most authorities in an answer.
const MAX_AUTHORITIES: usize = 8;

/// The version of both formats.
const VERSION: u8 = 1;
/// What a request's proof is made over begins with this.
const REQUEST: &str = "xpando enrol request 1";
/// What an answer's seal is made over begins with this.
const ANSWER: &str = "xpando enrol answer 1";

/// SHA-256 of an authority's certificate (DER).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AuthorityHash(pub [u8; 32]);

impl AuthorityHash {
    /// Stands for no authority in particular.
    pub const ANY: Self = Self([0; 32]);

    /// The hash of this certificate.
    pub fn of(der: &[u8]) -> Self {
        Self(Sha256::digest(der).into())
    }
}

impl std::fmt::Display for AuthorityHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&codec::hexadecimal(&self.0))
    }
}

/// The id of an invitation: 128 random bits, which are no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InvitationId(pub [u8; 16]);

impl std::fmt::Display for InvitationId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&codec::hexadecimal(&self.0))
    }
}

/// Somebody asks for a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// A PKCS #10 request (DER, RFC 2986), of which the key is taken and nothing else.
    pub csr: Vec<u8>,
    /// The name that the certificate is to be of.
    pub name: NodeName,
    /// Names and addresses of the host, besides the host part of the name.
    pub hosts: Vec<Host>,
    /// The requester's clock, in milliseconds since 1970.
    pub time: u64,
    /// An authority of the cluster that the requester means.
    pub authority: AuthorityHash,
    /// What proves the right to the certificate.
    pub proof: Proof,
}

/// What proves the right to a certificate. Each is bound to the rest of the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Proof {
    /// An invitation: HMAC-SHA256 (RFC 2104) over [`Request::statement`] under the SHA-256 of its secret.
    Invitation {
        /// Which one.
        id: InvitationId,
        /// The code.
        mac: [u8; 32],
    },
    /// A certificate of the same name and key, and that key's signature over [`Request::statement`]: ECDSA P-256 with
    /// SHA-256, ASN.1.
    Certificate {
        /// The certificate (DER), valid or lapsed not too long ago.
        der: Vec<u8>,
        /// The signature.
        signature: Vec<u8>,
    },
    /// Nothing: the operator who holds the authority's key decides.
    Operator,
    /// The first step with a spoken invitation: the asker's share of a key that both make of it (SPAKE2, RFC 9382). It
    /// proves nothing yet.
    SpokenStart {
        /// The invitation's number.
        number: u32,
        /// The share.
        share: Vec<u8>,
    },
    /// The second step: as with an invitation, under the SHA-256 of the key that was made.
    Spoken {
        /// The session that the first step was answered with.
        session: [u8; 16],
        /// The code.
        mac: [u8; 32],
    },
    /// A token of the platform that the host runs on, such as a Kubernetes service account's.
    Machine {
        /// The token (JWS compact serialization, RFC 7515).
        jwt: String,
    },
}

impl Request {
    /// Reads a request.
    ///
    /// # Errors
    /// [`CodecError`]; also [`CodecError::Malformed`] beyond the bounds of a field.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let request: Self = codec::decode_versioned(VERSION, bytes, MAX_MESSAGE)?;
        let sound = request.csr.len() <= MAX_DER && request.hosts.len() <= MAX_HOSTS;
        if sound && request.proof.is_bounded() { Ok(request) } else { Err(CodecError::Malformed) }
    }

    /// The request as bytes.
    ///
    /// # Errors
    /// [`CodecError::TooLong`].
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        bounded(codec::encode_versioned(VERSION, self)?)
    }

    /// What its proof is made over: all of it but the proof.
    ///
    /// # Errors
    /// None that a request of this type can cause.
    pub fn statement(&self) -> Result<Vec<u8>, CodecError> {
        let Self { csr, name, hosts, time, authority, proof: _ } = self;
        codec::encode(&(REQUEST, authority, csr, name, hosts, time))
    }
}

impl Proof {
    fn is_bounded(&self) -> bool {
        match self {
            Self::Certificate { der, signature } => der.len() <= MAX_DER && signature.len() <= 128,
            Self::Machine { jwt } => jwt.len() <= MAX_JWT,
            Self::SpokenStart { share, .. } => share.len() <= MAX_SHARE,
            Self::Invitation { .. } | Self::Spoken { .. } | Self::Operator => true,
        }
    }
}

/// What an issuer answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Answer {
    /// The certificate, and what a node of the cluster needs.
    Issued(Box<Issued>),
    /// None, and why.
    Refused(Refused),
    /// The issuer's share of the key that both make of a spoken invitation.
    SpokenShare {
        /// What the second step names.
        session: [u8; 16],
        /// The share.
        share: Vec<u8>,
    },
}

/// A certificate, and what a node of the cluster needs beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// The node's certificate (DER).
    pub certificate: Vec<u8>,
    /// The certificates of the cluster's authorities (DER), the one that issues first.
    pub authorities: Vec<Vec<u8>>,
    /// The list of trusted authorities, where there is one and it fits into the answer.
    pub trust: Option<Vec<u8>>,
    /// The list of what verifies tokens, likewise.
    pub tokens: Option<Vec<u8>>,
    /// The revocation list (PEM), likewise.
    pub revocations: Option<Vec<u8>>,
    /// Where nodes of the cluster are.
    pub peers: Vec<SocketAddr>,
    /// HMAC-SHA256 over [`Issued::statement`], under the key that the proof was made with; where it was made with one.
    pub seal: Option<[u8; 32]>,
}

impl Issued {
    /// What the seal is made over: the request that is answered, and all of the answer but the seal.
    ///
    /// # Errors
    /// None that an answer of this type can cause.
    pub fn statement(&self, request: &[u8]) -> Result<Vec<u8>, CodecError> {
        let Self { certificate, authorities, trust, tokens, revocations, peers, seal: _ } = self;
        let request: [u8; 32] = Sha256::digest(request).into();
        let lists = (trust, tokens, revocations);
        codec::encode(&(ANSWER, request, certificate, authorities, lists, peers))
    }
}

impl Answer {
    /// Reads an answer.
    ///
    /// # Errors
    /// [`CodecError`]; also [`CodecError::Malformed`] beyond the bounds of a field.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let answer: Self = codec::decode_versioned(VERSION, bytes, MAX_MESSAGE)?;
        let sound = match &answer {
            Self::Issued(issued) => {
                issued.authorities.len() <= MAX_AUTHORITIES && issued.peers.len() <= MAX_PEERS
            }
            Self::SpokenShare { share, .. } => share.len() <= MAX_SHARE,
            Self::Refused(refused) => refused.text().is_none_or(|text| text.len() <= MAX_REASON),
        };
        if sound { Ok(answer) } else { Err(CodecError::Malformed) }
    }

    /// The answer as bytes.
    ///
    /// # Errors
    /// [`CodecError::TooLong`].
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        bounded(codec::encode_versioned(VERSION, self)?)
    }
}

fn bounded(bytes: Vec<u8>) -> Result<Vec<u8>, CodecError> {
    if bytes.len() > MAX_MESSAGE {
        return Err(CodecError::TooLong { length: bytes.len(), cap: MAX_MESSAGE });
    }
    Ok(bytes)
}

/// Why no certificate is issued. Nothing was issued; unless a variant says otherwise nothing changed, and the requester's
/// operator acts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
#[non_exhaustive]
pub enum Refused {
    /// The bytes are no request, or a part of it is damaged.
    #[error("the request is malformed ({reason})")]
    Malformed {
        /// In which way.
        reason: String,
    },
    /// The requester means another cluster.
    #[error(
        "this is another cluster: its authority's certificate has the SHA-256 {ours}; ask at an address of the cluster that invited"
    )]
    OtherAuthority {
        /// The authority that issues here.
        ours: AuthorityHash,
    },
    /// There is no such invitation, or the secret is not its secret.
    #[error("this invitation is not known here: copy the whole line, or ask for a new one")]
    UnknownInvitation,
    /// The invitation's time is over.
    #[error("the invitation ended at {} s since 1970: ask for a new one", .ended)]
    Expired {
        /// Its last second, since 1970.
        ended: u64,
    },
    /// The invitation was used as often as it may be.
    #[error("the invitation is used up: ask for a new one")]
    UsedUp,
    /// The invitation is for other names.
    #[error(
        "the invitation is for names like {pattern}: choose such a name, or ask for another invitation"
    )]
    NameNotAllowed {
        /// Those that it is for.
        pattern: String,
    },
    /// The name belongs to another key.
    #[error(
        "the name belongs to another key: {holder}, not to {requested}; choose another name, or have the name released where certificates are issued"
    )]
    NameTaken {
        /// The id of the key that has the name.
        holder: KeyId,
        /// The id of the key in the request.
        requested: KeyId,
    },
    /// The key belongs to another name.
    #[error("this key is the one of {name}: make a key of its own for each name")]
    KeyTaken {
        /// The name that has it.
        name: NodeName,
    },
    /// A certificate cannot spell the name.
    #[error(
        "a certificate cannot spell this name, or has no room for it beside the patterns of an edge: choose another host part"
    )]
    UnusableName,
    /// The clocks differ by more than [`MAX_CLOCK_DIFFERENCE`].
    #[error("{}", clock(*.ahead))]
    Clock {
        /// By how many milliseconds the requester's clock is ahead of the issuer's; behind, when negative.
        ahead: i64,
    },
    /// The request waits until somebody approves it; the same request again, later, is answered then.
    #[error("the request {request} waits for approval: approve it where certificates are issued")]
    Waiting {
        /// Its id.
        request: RequestId,
    },
    /// Somebody denied the request.
    #[error("the request was denied")]
    Denied,
    /// The certificate that is to be renewed lapsed too long ago.
    #[error(
        "the certificate ended at {} s since 1970, more than {} days ago: join anew with an invitation", .ended, .grace / 86_400
    )]
    Lapsed {
        /// Its last second, since 1970.
        ended: u64,
        /// How many seconds after its end a certificate is renewed.
        grace: u64,
    },
    /// The certificate, or one of the same key, is revoked.
    #[error(
        "a certificate of this key is revoked: remove the node's directory and join anew, which makes a new key"
    )]
    Revoked,
    /// What was shown is no certificate of this cluster, name and key.
    #[error("what the request shows proves nothing here ({reason})")]
    Unproven {
        /// What is wrong.
        reason: String,
    },
    /// Somebody has tried wrong words with the spoken invitation, which counts no more.
    #[error("wrong words were tried with this code, which counts no more: ask for a new one")]
    Burnt,
    /// Such a proof is not taken here.
    #[error("the issuer takes no proof of this kind")]
    NotTaken,
    /// Too much was asked for, or guessed.
    #[error("too many requests: ask again in {} s", .after.div_ceil(1000))]
    RateLimited {
        /// In how many milliseconds to ask again.
        after: u64,
    },
    /// This node cannot issue, now or at all. The issuer's operator acts.
    #[error("no certificate can be issued there ({reason})")]
    CannotIssue {
        /// Why.
        reason: String,
    },
}

impl Refused {
    /// One word for programs.
    pub fn label(&self) -> &'static str {
        self.into()
    }

    /// Whether the same request may be answered otherwise later, though nobody changes it.
    #[must_use]
    pub fn passes(&self) -> bool {
        matches!(self, Self::Waiting { .. } | Self::RateLimited { .. } | Self::CannotIssue { .. })
    }

    /// The text of an issuer's own making in it.
    fn text(&self) -> Option<&str> {
        match self {
            Self::Malformed { reason }
            | Self::Unproven { reason }
            | Self::CannotIssue { reason }
            | Self::NameNotAllowed { pattern: reason } => Some(reason),
            Self::OtherAuthority { .. }
            | Self::UnknownInvitation
            | Self::Expired { .. }
            | Self::UsedUp
            | Self::NameTaken { .. }
            | Self::KeyTaken { .. }
            | Self::UnusableName
            | Self::Clock { .. }
            | Self::Waiting { .. }
            | Self::Denied
            | Self::Lapsed { .. }
            | Self::Revoked
            | Self::Burnt
            | Self::NotTaken
            | Self::RateLimited { .. } => None,
        }
    }
}

fn clock(ahead: i64) -> String {
    let side = if ahead > 0 { "ahead of" } else { "behind" };
    format!(
        "this host's clock is {} s {side} the issuer's, and may differ by {} s: set the wrong one",
        ahead.unsigned_abs() / 1000,
        MAX_CLOCK_DIFFERENCE.as_secs()
    )
}

/// The id of a request that waits for approval: eight hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId([u8; 4]);

impl RequestId {
    /// The id of what this key asks for under this name with this invitation. It is the same each time.
    pub fn of(invitation: InvitationId, key: KeyId, name: &NodeName) -> Self {
        let mut hash = Sha256::new();
        hash.update(invitation.0);
        hash.update(key.0);
        hash.update(name.as_str());
        let digest: [u8; 32] = hash.finalize().into();
        Self(digest.first_chunk().copied().unwrap_or_default())
    }
}

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&codec::hexadecimal(&self.0))
    }
}

impl std::fmt::Debug for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// A text is no id of a request. Nothing changed; anyone who wrote it must correct it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no id of a request, which has eight hexadecimal digits")]
pub struct RequestIdError(String);

impl std::str::FromStr for RequestId {
    type Err = RequestIdError;

    fn from_str(text: &str) -> Result<Self, RequestIdError> {
        let digits = text.len() == 8 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let id = digits.then(|| u32::from_str_radix(text, 16).ok()).flatten();
        let error = || RequestIdError(text.chars().take(40).collect());
        id.map(|id| Self(id.to_be_bytes())).ok_or_else(error)
    }
}

codec::as_text!(RequestId);

#[cfg(test)]
mod tests;
