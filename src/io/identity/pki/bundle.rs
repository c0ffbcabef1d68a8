//! The authorities that a cluster trusts, as every node has them in `ca/cert.pem`.
//!
//! Owns what makes a file of certificates the bundle of one cluster. Invariants: a bundle has at least one authority and at
//! most [`MAX_ROOTS`]; all are of one cluster; each is signed by itself, a root, or by a root that is in it, an intermediate;
//! the first root is the one that issues, itself or through its intermediates.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::super::key::POINT;
use super::certificate::{Certificate, Validity, fingerprint};
use crate::proto::node::{ClusterId, KeyId};

/// Organization in the certificate of an authority that a node on loopback made for itself.
pub(in super::super) const DEVELOPMENT: &str = "xpando development";
/// Most authorities that one cluster trusts at a time.
pub(in super::super) const MAX_ROOTS: usize = 8;

/// One authority: its certificate, and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Root {
    pub(in super::super) der: CertificateDer<'static>,
    /// The id of its key.
    pub(in super::super) key: KeyId,
    pub(in super::super) point: [u8; POINT],
    pub(in super::super) validity: Validity,
    /// The serial number of its certificate, in lower-case hexadecimal.
    pub(in super::super) serial: String,
    pub(in super::super) development: bool,
    /// The id of the key of the root that signed it; `None` for a root.
    pub(in super::super) parent: Option<KeyId>,
}

impl Root {
    /// The authority that this certificate is of, and its cluster.
    pub(in super::super) fn of(
        der: CertificateDer<'static>,
    ) -> Result<(Self, ClusterId), &'static str> {
        let certificate = Certificate::parse(&der)?;
        if !certificate.is_authority() {
            return Err("it is not an authority's certificate");
        }
        let cluster = certificate.cluster();
        let root = Self {
            key: certificate.key_id(),
            point: *certificate.point(),
            validity: certificate.validity(),
            serial: certificate.serial(),
            parent: None,
            development: certificate.organization() == Some(DEVELOPMENT),
            der,
        };
        Ok((root, cluster))
    }

    /// SHA-256 of its certificate: `AB:CD:…`.
    pub(in super::super) fn fingerprint(&self) -> String {
        fingerprint(&self.der)
    }

    /// The id of the key of the root that it hangs on, which may be itself.
    pub(in super::super) fn top(&self) -> KeyId {
        self.parent.unwrap_or(self.key)
    }

    fn is_signed_by(&self, other: &Self) -> bool {
        Certificate::parse(&self.der).is_ok_and(|it| it.is_signed_by(&other.point))
    }
}

/// The authorities of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Bundle {
    cluster: ClusterId,
    /// Never empty.
    roots: Vec<Root>,
}

impl Bundle {
    /// The bundle of these certificates; the error says why they are none.
    pub(in super::super) fn of(
        certificates: Vec<CertificateDer<'static>>,
    ) -> Result<Self, &'static str> {
        let mut roots: Vec<Root> = Vec::new();
        let mut clusters = Vec::new();
        for der in certificates {
            let (root, cluster) = Root::of(der)?;
            clusters.push(cluster);
            if !roots.iter().any(|known| known.der == root.der) {
                roots.push(root);
            }
        }
        let cluster = *clusters.first().ok_or("it holds no PEM certificate")?;
        if clusters.iter().any(|other| *other != cluster) {
            return Err("its authorities are of different clusters");
        }
        if roots.len() > MAX_ROOTS {
            return Err("it has more than eight authorities");
        }
        let (mut sound, others): (Vec<Root>, Vec<Root>) =
            roots.iter().cloned().partition(|root| root.is_signed_by(root));
        for other in others {
            // By a root: an intermediate makes no authorities.
            let parent = roots.iter().find(|it| it.is_signed_by(it) && other.is_signed_by(it));
            let parent = Some(parent.ok_or("its signature is not its own")?.key);
            sound.push(Root { parent, ..other });
        }
        Ok(Self { cluster, roots: sound })
    }

    /// The bundle in a PEM text.
    pub(in super::super) fn of_pem(pem: &[u8]) -> Result<Self, &'static str> {
        let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
        Self::of(certificates.map_err(|_not_pem| "it holds no PEM certificate")?)
    }

    pub(in super::super) fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The certificates as PEM (RFC 7468).
    pub(in super::super) fn to_pem(&self) -> String {
        self.roots.iter().map(|root| pem_of(&root.der)).collect()
    }

    /// The authorities: the roots, the issuing one first, then the intermediates.
    pub(in super::super) fn roots(&self) -> &[Root] {
        &self.roots
    }

    /// The root that issues.
    pub(in super::super) fn first(&self) -> Option<&Root> {
        self.roots.first()
    }

    /// The one with this key.
    pub(in super::super) fn root(&self, key: KeyId) -> Option<&Root> {
        self.roots.iter().find(|root| root.key == key)
    }

    /// Those that this holds of, and the intermediates of the roots among them.
    pub(in super::super) fn keeping(&self, keep: impl Fn(&Root) -> bool) -> Option<Self> {
        let kept: Vec<&Root> = self.roots.iter().filter(|root| keep(root)).collect();
        let stays = |root: &&Root| kept.iter().any(|it| it.key == root.top());
        let roots: Vec<Root> = kept.iter().copied().filter(stays).cloned().collect();
        (!roots.is_empty()).then_some(Self { cluster: self.cluster, roots })
    }

    /// Whose signature over `message` this is: ECDSA P-256 with SHA-256, ASN.1.
    pub(in super::super) fn signer_of(&self, message: &[u8], signature: &[u8]) -> Option<&Root> {
        let by = |point: &[u8; POINT]| {
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point).verify(message, signature)
        };
        self.signer(|point| by(point).is_ok())
    }

    /// The one of whose public point this holds: who signed something.
    pub(in super::super) fn signer(
        &self,
        signed_by: impl Fn(&[u8; POINT]) -> bool,
    ) -> Option<&Root> {
        self.roots.iter().find(|root| signed_by(&root.point))
    }
}

/// A certificate as PEM (RFC 7468).
pub(in super::super) fn pem_of(der: &CertificateDer<'_>) -> String {
    let lines = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE", der.to_vec()), lines)
}
