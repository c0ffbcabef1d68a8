//! Who signed what a node has kept: its own keys, whenever they were its own.

use super::CertificateVerifier;
use super::disk::Layout;
use super::pki::PeerIdentity;
use super::{IdentityError, Remedy};
use crate::proto::node::NodeName;

use std::path::Path;

/// The keys that one node has had in one cluster.
#[derive(Clone, Debug)]
pub struct Signers(Vec<PeerIdentity>);

impl Signers {
    /// The keys of those of the certificates (DER) that the authority made for `name`. Neither dates nor revocation
    /// count: what a key signed while it was the node's stays signed.
    pub fn of(verifier: &CertificateVerifier, name: &NodeName, certificates: &[Vec<u8>]) -> Self {
        let of_node = |der: &Vec<u8>| verifier.examine_of(&der.as_slice().into(), name).ok();
        Self(certificates.iter().filter_map(of_node).collect())
    }

    /// Whether `signature` is one of these keys' over `message`.
    #[must_use]
    pub fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        self.0.iter().rev().any(|signer| signer.verify(message, signature))
    }
}

impl CertificateVerifier {
    /// What judges by the authority's certificate in `certs`, without any revocation list.
    ///
    /// # Errors
    /// [`IdentityError`] about `ca/cert.pem`.
    pub fn load(certs: &Path) -> Result<Self, IdentityError> {
        Self::read(Layout::new(certs), Remedy::OtherCerts)
    }
}
