//! A request on its way, and the check of its answer.

use std::net::SocketAddr;
use std::path::Path;
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;

use super::EnrolError;
use super::csr;
use super::mac::MacKey;
use crate::io::clock::unix_millis;
use crate::io::identity::disk::{self, Fix, Layout};
use crate::io::identity::key::Key;
use crate::io::identity::pki::PeerIdentity;
use crate::io::identity::pki::{Bundle, Root, pem_of};
use crate::io::identity::revocation::RevocationList;
use crate::io::identity::tokens::TokenList;
use crate::io::identity::trust::{TrustList, Trusted};
use crate::io::identity::{CertificateVerifier, Identity, IdentityError, Remedy, Validity};
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
    /// A token of the platform.
    Machine(&'a str),
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
    /// This authority, or one that its list hands trust on to, has signed the certificate.
    Pinned(AuthorityHash),
    /// The authorities that the node has.
    Known(CertificateVerifier),
}

/// A certificate that was granted, checked.
#[derive(Debug)]
pub struct Granted {
    name: NodeName,
    certificate: CertificateDer<'static>,
    issued: Issued,
    validity: Validity,
    /// The authorities that count, where the asker had none.
    bundle: Option<Bundle>,
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
            Prover::Certificate(_) | Prover::Machine(_) | Prover::Operator => {
                pinned.unwrap_or(AuthorityHash::ANY)
            }
        };
        let mut request = unproven(key, name, hosts, authority, now)?;
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
                Trust::Pinned(authority)
            }
            Prover::Machine(token) => {
                request.proof = Proof::Machine { jwt: (*token).to_owned() };
                Trust::Pinned(authority)
            }
            Prover::Operator => Trust::Pinned(authority),
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
        let issued = read(answer)?;
        let (verifier, bundle) = match &self.trust {
            Trust::Known(verifier) => (verifier.clone(), None),
            Trust::Seal(key, meant) => {
                let statement = issued
                    .statement(&self.bytes)
                    .map_err(unsound::<CodecError>("it is malformed"))?;
                if !issued.seal.is_some_and(|seal| key.verify(&statement, &seal)) {
                    return Err(EnrolError::Answer("its seal is not the inviting cluster's"));
                }
                let bundle = bundle(issued.authorities.clone())?;
                let meant = |root: &Root| {
                    *meant == AuthorityHash::ANY || AuthorityHash::of(&root.der) == *meant
                };
                if !bundle.roots().iter().any(meant) {
                    return Err(ABSENT);
                }
                (CertificateVerifier::of(Trusted::of(bundle.clone())), Some(bundle))
            }
            Trust::Pinned(meant) => {
                let bundle = vouched(&issued, *meant)?;
                (CertificateVerifier::of(Trusted::of(bundle.clone())), Some(bundle))
            }
        };
        let certificate = CertificateDer::from(issued.certificate.clone());
        let peer = verifier
            .examine_of(&certificate, &self.name)
            .map_err(unsound("its certificate is not one of this cluster and name"))?;
        Granted::check(issued, &verifier, bundle, peer, &self.point, now)
    }
}

/// A request without a proof.
fn unproven(
    key: &Key,
    name: &NodeName,
    hosts: &[Host],
    authority: AuthorityHash,
    now: SystemTime,
) -> Result<Request, EnrolError> {
    Ok(Request {
        csr: csr::make(key, name)?,
        name: name.clone(),
        hosts: hosts.to_vec(),
        time: unix_millis(now),
        authority,
        proof: Proof::Operator,
    })
}

/// The first step with a spoken invitation.
#[cfg(feature = "gateway")]
#[derive(Debug)]
pub struct AskedSpoken {
    bytes: Vec<u8>,
    request: Request,
    half: super::spoken::Half,
}

#[cfg(feature = "gateway")]
impl AskedSpoken {
    pub(super) fn make(
        key: &Key,
        name: &NodeName,
        hosts: &[Host],
        code: &super::Code,
        now: SystemTime,
    ) -> Result<Self, EnrolError> {
        let mut request = unproven(key, name, hosts, AuthorityHash::ANY, now)?;
        let (half, share) = super::spoken::Half::begin(code);
        request.proof = Proof::SpokenStart { number: code.number(), share };
        Ok(Self { bytes: request.encode().map_err(too_long)?, request, half })
    }

    /// The request, to be carried to an issuer; the second step has to come to the same one.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn go_on(
        self,
        key: &Key,
        answer: &[u8],
        now: SystemTime,
    ) -> Result<Asked, EnrolError> {
        let (session, share) = match Answer::decode(answer).map_err(unsound("it is malformed"))? {
            Answer::SpokenShare { session, share } => (session, share),
            Answer::Refused(refused) => return Err(EnrolError::Refused(refused)),
            Answer::Issued(_) => return Err(EnrolError::Answer("nothing was proven yet")),
        };
        let shared = self.half.finish(&share)?;
        let mut request = self.request;
        request.time = unix_millis(now);
        let mac = shared.code(&request.statement().map_err(too_long)?);
        request.proof = Proof::Spoken { session, mac };
        Ok(Asked {
            bytes: request.encode().map_err(too_long)?,
            name: request.name,
            point: key.point().to_vec(),
            trust: Trust::Seal(shared, AuthorityHash::ANY),
        })
    }
}

/// The authority that was meant is not among those of the answer.
const ABSENT: EnrolError = EnrolError::Answer("the authority that was meant is not in it");

fn read(answer: &[u8]) -> Result<Issued, EnrolError> {
    match Answer::decode(answer).map_err(unsound("it is malformed"))? {
        Answer::Issued(issued) => Ok(*issued),
        Answer::Refused(refused) => Err(EnrolError::Refused(refused)),
        Answer::SpokenShare { .. } => Err(EnrolError::Answer("it grants nothing")),
    }
}

fn bundle(authorities: Vec<Vec<u8>>) -> Result<Bundle, EnrolError> {
    let authorities = authorities.into_iter().map(CertificateDer::from).collect();
    Bundle::of(authorities).map_err(EnrolError::Answer)
}

/// The authority that was meant, and those that its own list hands trust on to.
fn vouched(issued: &Issued, meant: AuthorityHash) -> Result<Bundle, EnrolError> {
    let meant = |der: &&Vec<u8>| AuthorityHash::of(der) == meant;
    let meant = issued.authorities.iter().find(meant).ok_or(ABSENT)?.clone();
    // An intermediate one counts with the root that signed it.
    let with_root = || {
        issued.authorities.iter().find_map(|root| bundle(vec![meant.clone(), root.clone()]).ok())
    };
    let alone = bundle(vec![meant.clone()]).or_else(|error| with_root().ok_or(error))?;
    let Some(list) = &issued.trust else { return Ok(alone) };
    let list = TrustList::parse(list, &alone).map_err(EnrolError::Answer)?;
    let trusted = list.list.in_force(&alone).map_err(EnrolError::Answer)?;
    Ok(trusted.bundle)
}

/// What the answer in a file grants to this certificate directory, which has the key that was asked for; it is written there.
/// Where the directory has no authority yet, the one in the file counts, for an operator carried it: its fingerprint is to be
/// compared.
///
/// # Errors
/// As [`Asked::check`]; [`IdentityError`] about the directory.
pub fn accept(certs: &Path, answer: &[u8], now: SystemTime) -> Result<Granted, EnrolError> {
    let layout = Layout::new(certs);
    let issued = read(answer)?;
    let (verifier, bundle) = match Trusted::read(layout, Remedy::Nothing) {
        Ok(known) => (CertificateVerifier::of(known), None),
        Err(IdentityError::Missing { .. }) => {
            let first = issued.authorities.first().ok_or(ABSENT)?;
            let bundle = vouched(&issued, AuthorityHash::of(first))?;
            (CertificateVerifier::of(Trusted::of(bundle.clone())), Some(bundle))
        }
        Err(other) => return Err(other.into()),
    };
    let certificate = CertificateDer::from(issued.certificate.clone());
    let peer = verifier
        .examine(&certificate)
        .map_err(unsound("its certificate is not one of this directory's cluster"))?;
    let fix = Fix { missing: Remedy::OtherDirectory, damaged: Remedy::Remove };
    let key = disk::read_key(&layout.key(&peer.name), fix)?;
    let granted = Granted::check(issued, &verifier, bundle, peer, key.point(), now)?;
    granted.write(certs)?;
    Ok(granted)
}

impl Identity {
    /// Asks for a new certificate of this node: its name, its key and its hosts, by the certificate that it has.
    ///
    /// # Errors
    /// [`IdentityError::Crypto`].
    pub fn ask_renewal(&self, now: SystemTime) -> Result<Asked, EnrolError> {
        let own = self.certificate();
        let trusted = self.verifier.trusted();
        let authority = trusted.bundle.first().map(|root| AuthorityHash::of(&root.der));
        let prover = Prover::Certificate(&own);
        let mut asked = Asked::make(&self.key, self.name(), &[], &prover, authority, now)?;
        asked.trust = Trust::Known(self.verifier());
        Ok(asked)
    }
}

impl Granted {
    /// Checks what holds of every answer: the key, the dates, the lists.
    fn check(
        issued: Issued,
        verifier: &CertificateVerifier,
        bundle: Option<Bundle>,
        peer: PeerIdentity,
        point: &[u8],
        now: SystemTime,
    ) -> Result<Self, EnrolError> {
        if !peer.has_key(point) {
            return Err(EnrolError::Answer("its certificate is for another key"));
        }
        let trusted = &verifier.trusted().bundle;
        if let Some(list) = &issued.revocations {
            let list = RevocationList::parse(list, trusted, now).map_err(EnrolError::Answer)?.list;
            if list.entries.contains_key(&peer.serial) {
                return Err(EnrolError::Answer("its certificate is revoked"));
            }
        }
        if let Some(list) = &issued.tokens {
            TokenList::parse(list, trusted, now).map_err(EnrolError::Answer)?;
        }
        if let Some(list) = issued.trust.as_ref().filter(|_| bundle.is_some()) {
            TrustList::parse(list, trusted).map_err(EnrolError::Answer)?;
        }
        peer.validity
            .check(now)
            .map_err(unsound("its certificate is not valid at this time by this host's clock"))?;
        let certificate = CertificateDer::from(issued.certificate.clone());
        Ok(Self { name: peer.name, certificate, issued, validity: peer.validity, bundle })
    }

    /// Whose certificate it is.
    pub fn name(&self) -> &NodeName {
        &self.name
    }

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
        self.bundle.as_ref().and_then(Bundle::first).map(Root::fingerprint)
    }

    /// Puts the certificate, and nothing else, where the node's certificate lies in `certs`.
    ///
    /// # Errors
    /// [`IdentityError::Io`]; the file before it stays.
    pub fn write_certificate(&self, certs: &Path) -> Result<(), IdentityError> {
        let path = Layout::new(certs).certificate(&self.name);
        disk::write(&path, pem_of(&self.certificate).as_bytes(), disk::PUBLIC)
    }

    /// Writes all that was granted: the lists and the authority first, the node's certificate last, so that a node which
    /// finds its certificate finds the rest. A list that is there already stays.
    pub(super) fn write(&self, certs: &Path) -> Result<(), IdentityError> {
        let layout = Layout::new(certs);
        let _lock = layout.lock()?;
        disk::make_directory(&layout.authority())?;
        let Issued { revocations, tokens, trust, .. } = &self.issued;
        let bundle = self.bundle.as_ref().map(|bundle| bundle.to_pem().into_bytes());
        let lists = [
            (disk::REVOCATIONS, revocations),
            (disk::TOKENS, tokens),
            (disk::TRUST, if bundle.is_some() { trust } else { &None }),
            (disk::CERTIFICATE, &bundle),
        ];
        for (file, list) in lists {
            let path = layout.of_authority(file);
            if let Some(list) = list.as_ref().filter(|_| !path.exists()) {
                disk::write(&path, list, disk::PUBLIC)?;
            }
        }
        self.write_certificate(certs)
    }
}

impl From<Refused> for EnrolError {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}
