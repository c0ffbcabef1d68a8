//! What judges certificates: a cluster's authorities and its revocation list, as they are in force.
//!
//! Invariant: a [`PeerIdentity`] leaves here only for a certificate that an authority of the cluster signed directly, whose
//! authority is trusted still and, if it is an intermediate one, not revoked, that was valid at the time it was checked, that names exactly one node of that cluster, and that
//! was not revoked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};

use super::disk::Layout;
use super::pki::{Bundle, Certificate, CertificateFault, PeerIdentity, Root};
use super::revocation::RevocationList;
use super::trust::Trusted;
use super::{IdentityError, Remedy};
use crate::proto::node::{ClusterId, NodeName};

/// Certificates that a verifier remembers.
const EXAMINED: usize = 1024;

/// Certificates whose signature holds, by their SHA-256: a node meets each one in handshakes, beacons and seals.
type Examined = Mutex<BTreeMap<[u8; 32], PeerIdentity>>;

/// Judges certificates by one cluster's authorities. It knows only public facts. All clones of an
/// identity's verifier share its bundle, its revocation list, and what they examined.
#[derive(Clone, Debug)]
pub struct CertificateVerifier {
    cluster: ClusterId,
    trusted: Arc<ArcSwap<Trusted>>,
    revoked: Arc<ArcSwap<RevocationList>>,
    examined: Arc<Examined>,
}

impl CertificateVerifier {
    /// A verifier that trusts exactly these authorities.
    pub(super) fn of(trusted: Trusted) -> Self {
        Self {
            cluster: trusted.bundle.cluster(),
            trusted: Arc::new(ArcSwap::from_pointee(trusted)),
            revoked: Arc::default(),
            examined: Arc::default(),
        }
    }

    /// A verifier whose authorities and list are the same now, and go their own way from here.
    pub(super) fn apart(&self) -> Self {
        let trusted = Arc::new(ArcSwap::new(self.trusted()));
        Self { trusted, revoked: Arc::new(ArcSwap::new(self.list())), ..self.clone() }
    }

    /// The authorities in force.
    pub(super) fn trusted(&self) -> Arc<Trusted> {
        self.trusted.load_full()
    }

    /// Puts other authorities of the same cluster in force, for all clones.
    pub(super) fn replace_trusted(&self, trusted: Trusted) {
        self.trusted.store(Arc::new(trusted));
    }

    /// The authorities in force but the intermediate ones that are revoked: whose lists count from now on.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn signers(&self) -> Result<Bundle, &'static str> {
        let counts = |root: &Root| root.parent.is_none() || !self.is_revoked(&root.serial);
        self.trusted.load().bundle.keeping(counts).ok_or("no authority may sign it")
    }

    /// The revocation list in force.
    pub(super) fn list(&self) -> Arc<RevocationList> {
        self.revoked.load_full()
    }

    /// Puts another revocation list in force, for all clones.
    pub(super) fn replace_list(&self, list: RevocationList) {
        self.revoked.store(Arc::new(list));
    }

    /// True when the certificate of this serial number, in lower-case hexadecimal, is revoked.
    #[must_use]
    pub fn is_revoked(&self, serial: &str) -> bool {
        self.revoked.load().entries.contains_key(serial)
    }

    /// True when one of these certificates is revoked.
    #[must_use]
    pub fn any_revoked(&self, serials: &[String]) -> bool {
        serials.iter().any(|serial| self.is_revoked(serial))
    }

    /// Whose certificate `leaf` is, when it is revoked. For a certificate whose signature was
    /// checked already.
    #[must_use]
    pub fn revoked(&self, leaf: &CertificateDer<'_>) -> Option<NodeName> {
        let certificate = Certificate::parse(leaf).ok()?;
        // A certificate that is trusted no more may be on the list all the same.
        let by_issuer = || {
            let peer = self.examine(leaf);
            peer.is_ok_and(|peer| self.any_revoked(&peer.serials()))
        };
        let revoked = self.is_revoked(&certificate.serial()) || by_issuer();
        revoked.then(|| certificate.node(self.cluster).ok()).flatten()
    }

    /// Refuses a certificate that is revoked.
    pub(super) fn check_revoked(&self, peer: &PeerIdentity) -> Result<(), CertificateFault> {
        if self.any_revoked(&peer.serials()) {
            return Err(CertificateFault::Revoked(peer.name.clone()));
        }
        Ok(())
    }

    /// The cluster whose certificates are accepted.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Who `leaf` belongs to, provided that this cluster's authority signed it and has not revoked
    /// it, that both are valid at `now`, and that it names one node of this cluster.
    ///
    /// # Errors
    /// [`CertificateFault::Damaged`], [`CertificateFault::Untrusted`], [`CertificateFault::NotANode`],
    /// [`CertificateFault::Revoked`], [`CertificateFault::NotYetValid`] or [`CertificateFault::Expired`], checked in this
    /// order, so that dates are reported only of certificates that are ours.
    pub fn peer(
        &self,
        leaf: &CertificateDer<'_>,
        now: SystemTime,
    ) -> Result<PeerIdentity, CertificateFault> {
        let peer = self.examine(leaf)?;
        self.check_revoked(&peer)?;
        peer.validity.check(now)?;
        let authority = self.trusted.load().bundle.root(peer.authority).map(|root| root.validity);
        authority.ok_or(CertificateFault::Untrusted)?.check(now)?;
        Ok(peer)
    }

    /// [`CertificateVerifier::examine`], and that the certificate is this node's.
    pub(super) fn examine_of(
        &self,
        leaf: &CertificateDer<'_>,
        name: &NodeName,
    ) -> Result<PeerIdentity, CertificateFault> {
        let peer = self.examine(leaf)?;
        if peer.name == *name {
            return Ok(peer);
        }
        Err(CertificateFault::WrongName(peer.name))
    }

    /// Everything [`CertificateVerifier::peer`] checks, except dates and revocation.
    pub(super) fn examine(
        &self,
        leaf: &CertificateDer<'_>,
    ) -> Result<PeerIdentity, CertificateFault> {
        let digest: [u8; 32] = Sha256::digest(leaf).into();
        let trusted = self.trusted.load();
        let bundle = &trusted.bundle;
        // What a dropped authority signed is not trusted, however often it was before.
        let known = self.examined.lock().get(&digest).cloned();
        if let Some(peer) = known.filter(|peer| bundle.root(peer.authority).is_some()) {
            return Ok(peer);
        }
        let certificate = Certificate::parse(leaf).map_err(CertificateFault::Damaged)?;
        let Some(authority) = bundle.signer(|point| certificate.is_signed_by(point)) else {
            return Err(CertificateFault::Untrusted);
        };
        let name = certificate.node(self.cluster).map_err(CertificateFault::NotANode)?;
        let capabilities = certificate.capabilities().map_err(CertificateFault::NotANode)?;
        let peer = PeerIdentity {
            capabilities: capabilities.unwrap_or_default(),
            name,
            id: certificate.key_id(),
            validity: certificate.validity(),
            serial: certificate.serial(),
            issuer: authority.parent.map(|_root| authority.serial.clone()),
            authority: authority.key,
            point: *certificate.point(),
        };
        let mut examined = self.examined.lock();
        if examined.len() >= EXAMINED {
            examined.pop_first();
        }
        examined.insert(digest, peer.clone());
        Ok(peer)
    }
}

impl CertificateVerifier {
    /// What judges by the bundle in `certs`, without any revocation list; `missing` as in [`Trusted::read`].
    pub(super) fn read(layout: Layout<'_>, missing: Remedy) -> Result<Self, IdentityError> {
        Trusted::read(layout, missing).map(Self::of)
    }

    /// Puts the revocation list in `certs` in force, if there is one.
    pub(super) fn load_revocations(&self, layout: Layout<'_>) -> Result<(), IdentityError> {
        let found = RevocationList::read(layout, &self.trusted().bundle)?;
        found.into_iter().for_each(|list| self.replace_list(list));
        Ok(())
    }
}
