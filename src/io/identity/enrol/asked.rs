//! A request on its way, and the check of its answer.

use std::net::SocketAddr;
use std::path::Path;
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::EnrolError;
use super::csr;
use super::mac::MacKey;
use crate::io::clock::unix_millis;
use crate::io::identity::authority_certificate::AuthorityCertificate;
use crate::io::identity::certificate::fingerprint;
use crate::io::identity::disk::{self, Layout};
use crate::io::identity::key::Key;
use crate::io::identity::pem;
use crate::io::identity::revocation::RevocationList;
use crate::io::identity::tokens::TokenList;
use crate::io::identity::{CertificateVerifier, Identity, IdentityError, Subject, Validity};
use crate::proto::codec::CodecError;
use crate::proto::enrol::{
    Answer, AuthorityHash, Host, Issued, MAX_HOSTS, Proof, Refused, Request,
};
use crate::proto::node::NodeName;

/// What makes the proof of a request.
pub(super) enum Prover<'a> {
    /// An invitation's secret.
    Invitation(&'a super::Line),
    /// The node's own certificate, which is to be renewed.
    Certificate(&'a CertificateDer<'a>),
    /// Nothing: an operator decides.
    Operator,
}

/// A request that was made, and what its answer is checked by.
#[derive(Debug)]
pub struct Asked {
    bytes: Vec<u8>,
    name: NodeName,
    /// The public point of the key that was asked for.
    point: Vec<u8>,
    trust: Trust,
}

/// What tells that an answer is from the cluster that was asked.
#[derive(Debug)]
enum Trust {
    /// The key that request and answer are made under, and an authority of the cluster.
    Seal(MacKey, AuthorityHash),
    /// This authority has signed the certificate; no other authority in the answer counts.
    Pinned(AuthorityHash),
    /// The authorities that the node has.
    Known(CertificateVerifier),
    /// Somebody carried the answer here by hand.
    Carried,
}

/// A certificate that was granted, checked.
#[derive(Debug)]
pub struct Granted {
    name: NodeName,
    certificate: CertificateDer<'static>,
    issued: Issued,
    validity: Validity,
    /// The authority that counts, where the asker did not have it already.
    authority: Option<CertificateDer<'static>>,
}

/// What makes an error of a reason, which says enough.
fn unsound<E>(reason: &'static str) -> impl FnOnce(E) -> EnrolError {
    move |_detail| EnrolError::Answer(reason)
}

fn too_long(_refused: CodecError) -> EnrolError {
    EnrolError::Answer("the request for it would be too long")
}

impl Asked {
    /// Asks for a certificate of this name for this key.
    pub(super) fn make(
        key: &Key,
        name: &NodeName,
        hosts: &[Host],
        prover: &Prover<'_>,
        pinned: Option<AuthorityHash>,
        now: SystemTime,
    ) -> Result<Self, EnrolError> {
        if hosts.len() >= MAX_HOSTS {
            return Err(EnrolError::TooManyHosts);
        }
        let authority = match prover {
            Prover::Invitation(line) => line.authority(),
            Prover::Certificate(_) | Prover::Operator => pinned.unwrap_or(AuthorityHash::ANY),
        };
        let mut request = Request {
            csr: csr::make(key, name)?,
            name: name.clone(),
            hosts: hosts.to_vec(),
            time: unix_millis(now),
            authority,
            proof: Proof::Operator,
        };
        let statement = request.statement().map_err(too_long)?;
        let trust = match prover {
            Prover::Invitation(line) => {
                let shared = line.key();
                request.proof = Proof::Invitation { id: line.id(), mac: shared.code(&statement) };
                Trust::Seal(shared, line.authority())
            }
            Prover::Certificate(der) => {
                let signature = key.signature(&statement)?;
                request.proof = Proof::Certificate { der: der.to_vec(), signature };
                pinned.map_or(Trust::Carried, Trust::Pinned)
            }
            Prover::Operator => pinned.map_or(Trust::Carried, Trust::Pinned),
        };
        let bytes = request.encode().map_err(too_long)?;
        Ok(Self { bytes, name: name.clone(), point: key.point().to_vec(), trust })
    }

    /// The request, to be carried to an issuer.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What the answer grants.
    ///
    /// # Errors
    /// [`EnrolError::Refused`]; [`EnrolError::Answer`] when it is not this cluster's answer to this request, for this key
    /// and name, or its certificate is not valid at `now`.
    pub fn check(&self, answer: &[u8], now: SystemTime) -> Result<Granted, EnrolError> {
        let answer =
            Answer::decode(answer).map_err(|_detail| EnrolError::Answer("it is malformed"))?;
        let issued = match answer {
            Answer::Issued(issued) => *issued,
            Answer::Refused(refused) => return Err(EnrolError::Refused(refused)),
        };
        let (verifier, authority) = match &self.trust {
            Trust::Known(verifier) => (verifier.clone(), None),
            Trust::Seal(key, pinned) => {
                let statement = issued
                    .statement(&self.bytes)
                    .map_err(unsound::<CodecError>("it is malformed"))?;
                if !issued.seal.is_some_and(|seal| key.verify(&statement, &seal)) {
                    return Err(EnrolError::Answer("its seal is not the inviting cluster's"));
                }
                authority(&issued, Some(*pinned))?
            }
            Trust::Pinned(pinned) => authority(&issued, Some(*pinned))?,
            Trust::Carried => authority(&issued, None)?,
        };
        let certificate = CertificateDer::from(issued.certificate.clone());
        let peer = verifier
            .examine_of(&certificate, &self.name, Subject::Peer)
            .map_err(unsound("its certificate is not one of this cluster and name"))?;
        if !peer.has_key(&self.point) {
            return Err(EnrolError::Answer("its certificate is for another key"));
        }
        if let Some(list) = &issued.revocations {
            let list =
                RevocationList::parse(list, verifier.authority()).map_err(EnrolError::Answer)?;
            if list.entries.contains_key(&peer.serial) {
                return Err(EnrolError::Answer("its certificate is revoked"));
            }
        }
        if let Some(list) = &issued.tokens {
            TokenList::parse(list, &verifier).map_err(EnrolError::Answer)?;
        }
        peer.validity
            .check(now, &Subject::Peer)
            .map_err(unsound("its certificate is not valid at this time by this host's clock"))?;
        let validity = peer.validity;
        Ok(Granted { name: self.name.clone(), certificate, issued, validity, authority })
    }
}

/// The authority of an answer that counts: the one that was meant, or the first one.
fn authority(
    issued: &Issued,
    pinned: Option<AuthorityHash>,
) -> Result<(CertificateVerifier, Option<CertificateDer<'static>>), EnrolError> {
    let meant = |der: &&Vec<u8>| pinned.is_none_or(|pinned| AuthorityHash::of(der) == pinned);
    let der = issued.authorities.iter().find(meant);
    let der = der.ok_or(EnrolError::Answer("the authority that was meant is not in it"))?;
    let authority = AuthorityCertificate::of(CertificateDer::from(der.clone()));
    let AuthorityCertificate { verifier, der, .. } = authority.map_err(EnrolError::Answer)?;
    Ok((verifier, Some(der)))
}

impl Identity {
    /// Asks for a new certificate of this node: its name, its key, by the certificate that it has.
    ///
    /// # Errors
    /// [`EnrolError::TooManyHosts`]; [`IdentityError::Crypto`].
    pub fn ask_renewal(&self, hosts: &[Host], now: SystemTime) -> Result<Asked, EnrolError> {
        let own = self.certificate();
        let authority = Some(AuthorityHash::of(&self.authority.der));
        let prover = Prover::Certificate(&own);
        let mut asked = Asked::make(&self.key, self.name(), hosts, &prover, authority, now)?;
        asked.trust = Trust::Known(self.verifier());
        Ok(asked)
    }
}

impl Granted {
    /// From when until when the certificate is valid.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// Where nodes of the cluster are, as the issuer says.
    pub fn peers(&self) -> &[SocketAddr] {
        &self.issued.peers
    }

    /// SHA-256 of the certificate of the authority that the answer brought: `AB:CD:…`.
    pub fn authority_fingerprint(&self) -> Option<String> {
        self.authority.as_ref().map(|der| fingerprint(der))
    }

    /// Puts the certificate, and nothing else, where the node's certificate lies in `certs`.
    ///
    /// # Errors
    /// [`IdentityError::Io`]; the file before it stays.
    pub fn write_certificate(&self, certs: &Path) -> Result<(), IdentityError> {
        let path = Layout::new(certs).certificate(&self.name);
        disk::write(&path, certificate_pem(&self.certificate).as_bytes(), disk::PUBLIC)
    }

    /// Writes all that was granted: the lists and the authority first, the node's certificate last, so that a node which
    /// finds its certificate finds the rest. A list that is there already stays.
    pub(super) fn write(&self, certs: &Path) -> Result<(), IdentityError> {
        let layout = Layout::new(certs);
        let _lock = layout.lock()?;
        disk::make_directory(&layout.authority())?;
        let lists =
            [(disk::REVOCATIONS, &self.issued.revocations), (disk::TOKENS, &self.issued.tokens)];
        for (file, list) in lists {
            let path = layout.of_authority(file);
            if let Some(list) = list.as_ref().filter(|_| !path.exists()) {
                disk::write(&path, list, disk::PUBLIC)?;
            }
        }
        let path = layout.of_authority(disk::CERTIFICATE);
        if let Some(der) = self.authority.as_ref().filter(|_| !path.exists()) {
            disk::write(&path, certificate_pem(der).as_bytes(), disk::PUBLIC)?;
        }
        self.write_certificate(certs)
    }
}

fn certificate_pem(der: &[u8]) -> Zeroizing<String> {
    pem::encode("CERTIFICATE", der)
}

impl From<Refused> for EnrolError {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}
