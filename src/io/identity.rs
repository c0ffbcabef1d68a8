//! Who this node is: its key, its certificate, and the authority that it trusts.
//!
//! Owns the `certs` directory:
//!
//! ```text
//! ca/cert.pem          the cluster's authorities, the same file on every node
//! ca/key.pem           its private key, only on the host that issues certificates
//! ca/trust             whom the cluster trusts since its authority was first replaced, the same file on every node
//! ca/next.key          the private key of the authority that is coming or going, during a rotation
//! ca/issued            every certificate it made; ca/invitations: who may come; likewise
//! ca/crl.pem           which of them it revoked, the same file on every node; absent while none is
//! ca/token.key         the private key that signs clients' tokens, where the authority's key is
//! ca/tokens            its public half and the revoked tokens, the same file on every node
//! <name@host>/cert.pem a node's certificate
//! <name@host>/key.pem  a node's private key
//! ```
//!
//! A node's certificate names it in one URI, `spiffe://<cluster>/node/<host>/<name>`; the cluster's id is random, drawn with
//! its first authority, the node's id is made of its key. Invariants: an [`Identity`] that exists is whole (the key belongs to
//! the certificate, the authority signed it, it names this node); private keys are readable by their owner alone and appear
//! in no log; on a host other than loopback nothing is ever invented.

mod authority;
#[cfg(feature = "cli")]
mod backup;
mod disk;
pub mod enrol;
mod error;
mod fetched;
mod files;
mod inventory;
mod issuing;
mod key;
mod lists;
mod pki;
#[cfg(feature = "gateway")]
pub mod provider;
mod revocation;
mod signers;
mod tokens;
mod trust;
mod verifier;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
pub use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;

pub use self::authority::{
    Authority, Intermediate, IntermediateError, LeafOptions, Revocee, RotationError, TokenRotation,
    accept_authority, is_authority_answer, request_authority,
};
#[cfg(feature = "cli")]
pub use self::backup::{BackupError, backup, restore};
use self::disk::Layout;
pub use self::disk::shell_word;
pub(super) use self::disk::{FileState, file_state};
pub use self::error::{IdentityError, KeyFault, ListFault, Remedy};
pub use self::fetched::{Fetch, Fetched, KeySetState};
pub use self::files::{IdentityFiles, Look};
pub use self::inventory::{CertificateInfo, CertificateKind, inventory};
use self::key::Key;
pub use self::lists::{Document, InForce, ListRefused, Lists, News};
use self::pki::Root;
pub use self::pki::{CertificateFault, PeerIdentity, Validity, server_name};
pub(super) use self::pki::{claimed_cluster, cluster_of_server_name};
pub use self::revocation::{RevocationReason, Revoked};
pub use self::signers::Signers;
pub use self::tokens::{MAX_TOKEN, NO_TOKEN_LIST, RevokedToken, TokenError, Tokens};
pub use self::trust::{Rotation, RotationStep};
pub use self::verifier::CertificateVerifier;
use crate::proto::capability::Capabilities;
use crate::proto::node::{ClusterId, NodeId, NodeName};

/// What [`Identity::load_or_develop`] has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// Everything was there.
    Nothing,
    /// A certificate for this node, by the authority that was there.
    Leaf,
    /// A development authority and a certificate for this node.
    AuthorityAndLeaf,
}

/// This node's own key and certificate, and its cluster's authority. The key is the same for life; the certificate
/// may be renewed.
#[derive(Debug)]
pub struct Identity {
    name: NodeName,
    id: NodeId,
    verifier: CertificateVerifier,
    leaf: ArcSwap<Leaf>,
    key: Key,
    certs: PathBuf,
}

/// A node's certificate, and what it says.
#[derive(Debug)]
struct Leaf {
    der: CertificateDer<'static>,
    peer: PeerIdentity,
    /// The authority that signed it.
    root: Root,
}

impl IdentityError {
    /// True when what is wrong is that a file is missing or the certificate of `name` has expired:
    /// what a development authority may mend by itself.
    fn is_about_absence(&self, certs: &Path, name: &NodeName) -> bool {
        let leaf = Layout::new(certs).certificate(name);
        matches!(self, Self::Missing { .. })
            || matches!(self, Self::Certificate { path, .. } if self.is_expired() && *path == leaf)
    }
}

impl Identity {
    /// Reads the identity of `name` from `certs` and checks that it is whole and valid at `now`.
    ///
    /// # Errors
    /// Every variant of [`IdentityError`] that is about a file, each with what mends it.
    pub fn load(certs: &Path, name: &NodeName, now: SystemTime) -> Result<Self, IdentityError> {
        let identity = Self::read(certs, name)?;
        identity.check(&identity.leaf.load(), Layout::new(certs), now)?;
        Ok(identity)
    }

    /// Reads the identity, whatever its dates, and whether it is revoked or not.
    fn read(certs: &Path, name: &NodeName) -> Result<Self, IdentityError> {
        let layout = Layout::new(certs);
        let to_begin = Remedy::Begin(name.clone());
        let verifier = CertificateVerifier::read(layout, to_begin)?;
        verifier.load_revocations(layout)?;
        let leaf = disk::read_certificate(&layout.certificate(name), layout.leaf_fix(name))?;
        let key = disk::read_key(&layout.key(name), layout.leaf_fix(name))?;
        Self::assemble(layout, name, verifier, leaf, key)
    }

    /// Refuses a certificate of this node that counts no more, or not yet.
    fn check(&self, leaf: &Leaf, layout: Layout<'_>, now: SystemTime) -> Result<(), IdentityError> {
        leaf.root.validity.check(now).map_err(layout.authority_error())?;
        let peer = &leaf.peer;
        let checked = self.verifier.check_revoked(peer).and_then(|()| peer.validity.check(now));
        checked.map_err(layout.leaf_error(&self.name))
    }

    /// Puts the parts together and checks that they belong together; dates are not checked.
    fn assemble(
        layout: Layout<'_>,
        name: &NodeName,
        verifier: CertificateVerifier,
        leaf: CertificateDer<'static>,
        key: Key,
    ) -> Result<Self, IdentityError> {
        let peer = verifier.examine_of(&leaf, name).map_err(layout.leaf_error(name))?;
        if !peer.has_key(key.point()) {
            let (fault, remedy) = (KeyFault::Mismatch, layout.leaf_fix(name).damaged);
            return Err(IdentityError::Key { path: layout.key(name), fault, remedy });
        }
        let root = verifier.trusted().bundle.root(peer.authority).cloned();
        let untrusted = || layout.leaf_error(name)(CertificateFault::Untrusted);
        let root = root.ok_or_else(untrusted)?;
        let (name, id) = (name.clone(), peer.id);
        let leaf = ArcSwap::from_pointee(Leaf { der: leaf, peer, root });
        Ok(Self { name, id, verifier, leaf, key, certs: layout.certs().to_owned() })
    }

    /// [`Identity::load`], and on a loopback name what a first start lacks: a development authority
    /// when there is none at all, and a certificate when it is missing or expired and the
    /// authority's key is there.
    ///
    /// Processes that start together in one directory make one authority between them.
    ///
    /// # Errors
    /// As [`Identity::load`]; also [`IdentityError::Io`] when something cannot be written.
    pub fn load_or_develop(
        certs: &Path,
        name: &NodeName,
        now: SystemTime,
    ) -> Result<(Self, Made), IdentityError> {
        let layout = Layout::new(certs);
        for directory in [certs, &layout.authority(), &layout.node(name)] {
            disk::check_directory(directory)?;
            disk::close_to_group(directory)?;
        }
        // The common case needs no lock, and so works in a directory that is read-only.
        match Self::load(certs, name, now) {
            Ok(identity) => return Ok((identity, Made::Nothing)),
            Err(why) if !name.is_loopback() || !why.is_about_absence(certs, name) => {
                return Err(why);
            }
            Err(_) => {}
        }
        let has_key = || layout.of_authority(disk::KEY).exists();
        let may_found = || {
            // A certificate without an authority was carried here incompletely: a new authority would
            // not fit it.
            let authority = [disk::CERTIFICATE, disk::KEY].map(|file| layout.of_authority(file));
            !authority.iter().any(|path| path.exists()) && !layout.certificate(name).exists()
        };
        // Nothing is written, not even the lock's file, where nothing can be made.
        if !may_found() && !has_key() {
            return Self::load(certs, name, now).map(|identity| (identity, Made::Nothing));
        }
        let _lock = layout.lock()?;
        // Another process that held the lock before may have made everything.
        let why = match Self::load(certs, name, now) {
            Ok(identity) => return Ok((identity, Made::Nothing)),
            Err(why) => why,
        };
        let (authority, made) = if may_found() {
            (Authority::develop(layout, now)?, Made::AuthorityAndLeaf)
        } else if has_key() && why.is_about_absence(certs, name) {
            (Authority::open(certs)?, Made::Leaf)
        } else {
            return Err(why);
        };
        Ok((authority.renew(layout, name, Validity::leaf(now), LeafOptions::default())?, made))
    }

    /// This node's name, as its certificate has it.
    pub fn name(&self) -> &NodeName {
        &self.name
    }

    /// The directory it was read from.
    pub fn certs(&self) -> &Path {
        &self.certs
    }

    /// The id of the cluster.
    pub fn cluster(&self) -> ClusterId {
        self.verifier.cluster()
    }

    /// This node's id.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// This node's certificate, the latest one.
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.leaf.load().der.clone()
    }

    /// The certificates of the authorities that the cluster trusts, the issuing one first.
    pub(super) fn authorities(&self) -> Vec<CertificateDer<'static>> {
        self.verifier.trusted().bundle.roots().iter().map(|root| root.der.clone()).collect()
    }

    /// The certificate of the authority that signed this node's.
    pub fn authority_certificate(&self) -> CertificateDer<'static> {
        self.leaf.load().root.der.clone()
    }

    /// A copy of the private key, which the caller must neither keep nor show.
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        self.key.to_der()
    }

    /// True when the authority is one that a node on loopback made for itself.
    pub fn is_development(&self) -> bool {
        self.leaf.load().root.development
    }

    /// From when until when this node's certificate is valid.
    pub fn validity(&self) -> Validity {
        self.leaf.load().peer.validity
    }

    /// From when until when the certificate of the authority that signed this node's is valid.
    pub fn authority_validity(&self) -> Validity {
        self.leaf.load().root.validity
    }

    /// What this node may do.
    pub fn capabilities(&self) -> Capabilities {
        self.leaf.load().peer.capabilities.clone()
    }

    /// SHA-256 of this node's certificate: `AB:CD:…`.
    pub fn fingerprint(&self) -> String {
        pki::fingerprint(&self.leaf.load().der)
    }

    /// SHA-256 of the certificate of the authority that signed this node's: `AB:CD:…`.
    pub fn authority_fingerprint(&self) -> String {
        self.leaf.load().root.fingerprint()
    }

    /// This node's signature over `message`: ECDSA P-256 with SHA-256, ASN.1, at most 72 bytes.
    /// [`PeerIdentity::verify`] checks it.
    ///
    /// # Errors
    /// [`IdentityError::Crypto`] when the host has no entropy.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, IdentityError> {
        self.key.signature(message)
    }

    /// The certificates and the key in `certs`, to be looked at again while the node runs.
    pub fn files(self: &Arc<Self>, certs: &Path) -> IdentityFiles {
        IdentityFiles::new(certs.to_owned(), self.clone())
    }

    /// What judges other nodes' certificates.
    pub fn verifier(&self) -> CertificateVerifier {
        self.verifier.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Barrier;
    use std::time::Duration;

    use super::*;
    use crate::io::clock::wall;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn name(text: &str) -> NodeName {
        text.parse().unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    /// A directory in which a development node `a@127.0.0.1` has started once.
    fn developed() -> (tempfile::TempDir, Identity) {
        let dir = tempfile::tempdir().unwrap();
        let (identity, made) =
            Identity::load_or_develop(dir.path(), &name("a@127.0.0.1"), wall()).unwrap();
        assert_eq!(made, Made::AuthorityAndLeaf);
        (dir, identity)
    }

    /// The error of loading `a@127.0.0.1`; starting it must fail in the same way.
    fn refusal(certs: &Path) -> String {
        let a = name("a@127.0.0.1");
        let error = Identity::load(certs, &a, wall()).unwrap_err().to_string();
        let again = Identity::load_or_develop(certs, &a, wall()).unwrap_err().to_string();
        assert_eq!(error, again);
        error
    }

    #[test]
    fn a_first_start_on_loopback_makes_everything_and_a_second_nothing() {
        let root = tempfile::tempdir().unwrap();
        let certs = root.path().join("deep/certs");
        let a = name("a@::1");
        let (first, made) = Identity::load_or_develop(&certs, &a, wall()).unwrap();
        assert_eq!(made, Made::AuthorityAndLeaf);
        assert!(first.is_development());
        for dir in ["..", "", "ca", "a@::1"] {
            assert_eq!(mode(&certs.join(dir)), 0o700, "{dir}");
        }
        for key in ["ca/key.pem", "a@::1/key.pem"] {
            assert_eq!(mode(&certs.join(key)), 0o600, "{key}");
        }
        let (second, made) = Identity::load_or_develop(&certs, &a, wall()).unwrap();
        assert_eq!(made, Made::Nothing);
        assert_eq!(first.certificate(), second.certificate());
        assert_eq!((first.id(), first.cluster()), (second.id(), second.cluster()));
        assert_eq!((second.name(), second.is_development()), (&a, true));
        let (_, made) = Identity::load_or_develop(&certs, &name("b@::1"), wall()).unwrap();
        assert_eq!(made, Made::Leaf);
        let entries: BTreeSet<_> =
            fs::read_dir(&certs).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(entries, [".lock", "a@::1", "b@::1", "ca"].map(Into::into).into());
    }

    #[test]
    fn nodes_that_start_together_make_one_authority() {
        let dir = tempfile::tempdir().unwrap();
        let barrier = Barrier::new(8);
        let start = |i: usize| {
            // Two threads for each name, so that both kinds of race occur.
            let node = name(&format!("n{}@127.0.0.1", i / 2));
            barrier.wait();
            Identity::load_or_develop(dir.path(), &node, wall()).unwrap()
        };
        let started: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|i| scope.spawn(move || start(i))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let count = |what| started.iter().filter(|(_, made)| *made == what).count();
        assert_eq!((count(Made::AuthorityAndLeaf), count(Made::Leaf)), (1, 3));
        let ids: BTreeSet<_> = started.iter().map(|(identity, _)| identity.id()).collect();
        assert_eq!(ids.len(), 4);
        for (one, _) in &started {
            for (other, _) in &started {
                let peer = one.verifier().peer(&other.certificate(), wall()).unwrap();
                assert_eq!((&peer.name, peer.id), (other.name(), other.id()));
            }
        }
    }

    #[test]
    fn nothing_is_invented_off_loopback() {
        let dir = tempfile::tempdir().unwrap();
        let certs = dir.path();
        let a = name("a@10.0.0.1");
        let error = Identity::load_or_develop(certs, &a, wall()).unwrap_err();
        assert_eq!(error.remedy(), Remedy::Begin(a.clone()), "{error}");
        assert_eq!(fs::read_dir(certs).unwrap().count(), 0);
        Authority::init(certs, wall()).unwrap();
        let error = Identity::load_or_develop(certs, &a, wall()).unwrap_err();
        assert_eq!(error.remedy(), Remedy::Issue(a), "{error}");
        assert!(error.to_string().contains("a@10.0.0.1/cert.pem is missing"), "{error}");
    }

    #[test]
    fn no_authority_is_invented_beside_a_certificate() {
        let (dir, _) = developed();
        fs::remove_dir_all(dir.path().join("ca")).unwrap();
        assert!(refusal(dir.path()).contains("ca/cert.pem is missing"));
        assert!(!dir.path().join("ca").exists());
    }

    #[test]
    fn an_exposed_key_is_refused_with_the_remedy() {
        let (dir, _) = developed();
        let key = dir.path().join("a@127.0.0.1/key.pem");
        for open in [0o604, 0o620, 0o644, 0o666] {
            fs::set_permissions(&key, fs::Permissions::from_mode(open)).unwrap();
            let error = Identity::load(dir.path(), &name("a@127.0.0.1"), wall()).unwrap_err();
            assert_eq!(error.remedy(), Remedy::MakePrivate { of_other: false });
            assert!(error.to_string().contains(&format!("mode {open:04o}")), "{error}");
        }
        fs::set_permissions(&key, fs::Permissions::from_mode(0o400)).unwrap();
        assert!(Identity::load(dir.path(), &name("a@127.0.0.1"), wall()).is_ok());
    }

    #[test]
    fn a_damaged_file_is_named_with_the_fix() {
        let fix = "issue a@127.0.0.1 anew";
        for (file, says, fix) in [
            ("ca/cert.pem", "damaged", "copy it anew"),
            ("a@127.0.0.1/cert.pem", "damaged", fix),
            ("a@127.0.0.1/key.pem", "damaged", fix),
        ] {
            let (dir, _) = developed();
            let path = dir.path().join(file);
            let sound = fs::read(&path).unwrap();
            let half = sound.len() / 2;
            let rubbish = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
            for damaged in [&b""[..], &sound[..half], &[0xff; 100], &rubbish[..]] {
                fs::write(&path, damaged).unwrap();
                let error = refusal(dir.path());
                for part in [file, says, fix] {
                    assert!(error.contains(part), "{file}: {error}");
                }
            }
            // No changed byte may crash the reader, and none may yield another identity.
            for at in (0..sound.len()).step_by(7) {
                let mut changed = sound.clone();
                changed[at] ^= 0x04;
                fs::write(&path, &changed).unwrap();
                if let Ok(identity) = Identity::load(dir.path(), &name("a@127.0.0.1"), wall()) {
                    assert_eq!(identity.name(), &name("a@127.0.0.1"));
                }
            }
        }
    }

    #[test]
    fn no_changed_bit_of_a_certificate_makes_another_identity() {
        let (_dir, identity) = developed();
        let verifier = identity.verifier();
        let sound = identity.certificate().to_vec();
        let ours = verifier.peer(&identity.certificate(), wall()).unwrap();
        let mut passed = 0;
        for at in 0..sound.len() {
            for bit in 0..8 {
                let mut changed = sound.clone();
                changed[at] ^= 1 << bit;
                // Tags outside the signed part have bits that the parser does not look at.
                if let Ok(peer) = verifier.peer(&changed.into(), wall()) {
                    assert_eq!(peer, ours, "byte {at}, bit {bit}");
                    passed += 1;
                }
            }
        }
        assert!(passed < 32, "{passed} changed certificates passed");
        for end in 0..sound.len() {
            assert!(verifier.peer(&sound[..end].into(), wall()).is_err(), "first {end}");
        }
    }

    #[test]
    fn files_of_different_nodes_do_not_mix() {
        let (dir, _) = developed();
        let certs = dir.path();
        Identity::load_or_develop(certs, &name("b@127.0.0.1"), wall()).unwrap();
        fs::copy(certs.join("b@127.0.0.1/key.pem"), certs.join("a@127.0.0.1/key.pem")).unwrap();
        assert!(refusal(certs).contains("does not belong to the certificate beside it"));
        fs::copy(certs.join("b@127.0.0.1/cert.pem"), certs.join("a@127.0.0.1/cert.pem")).unwrap();
        assert!(refusal(certs).contains("belongs to b@127.0.0.1, another node"));
    }

    #[test]
    fn another_cluster_is_refused() {
        let ((here, ours), (there, theirs)) = (developed(), developed());
        let error = ours.verifier().peer(&theirs.certificate(), wall()).unwrap_err();
        assert!(matches!(error, CertificateFault::Untrusted), "{error}");
        fs::copy(there.path().join("ca/cert.pem"), here.path().join("ca/cert.pem")).unwrap();
        assert!(refusal(here.path()).contains("is not signed by this cluster's authority"));
    }

    #[test]
    fn dates_are_checked_on_both_sides() {
        let (dir, identity) = developed();
        let a = name("a@127.0.0.1");
        let verifier = identity.verifier();
        let at = |now| verifier.peer(&identity.certificate(), now);
        assert!(
            at(identity.validity().not_after).is_ok() && at(identity.validity().not_before).is_ok()
        );
        let late = identity.validity().not_after + Duration::from_secs(1);
        let early = identity.validity().not_before - Duration::from_secs(1);
        assert!(matches!(at(late), Err(CertificateFault::Expired(_))));
        assert!(matches!(at(early), Err(CertificateFault::NotYetValid(_))));
        let error = Identity::load(dir.path(), &a, late).unwrap_err();
        assert_eq!(error.remedy(), Remedy::Reissue(a.clone()), "{error}");
        let error = Identity::load_or_develop(dir.path(), &a, early).unwrap_err().to_string();
        assert!(error.contains("clock"), "{error}");
    }

    #[test]
    fn an_expired_certificate_is_renewed_on_loopback_and_the_id_stays() {
        let (dir, first) = developed();
        let later = wall() + 91 * DAY;
        let (second, made) = Identity::load_or_develop(dir.path(), first.name(), later).unwrap();
        assert_eq!((made, second.id()), (Made::Leaf, first.id()));
        assert!(second.validity().not_after > first.validity().not_after);
        // Without the authority's key there is nothing to renew it with.
        fs::remove_file(dir.path().join("ca/key.pem")).unwrap();
        let later = wall() + 200 * DAY;
        let error = Identity::load_or_develop(dir.path(), first.name(), later).unwrap_err();
        assert!(error.is_expired(), "{error}");
    }

    #[test]
    fn a_signature_proves_its_node_and_its_message() {
        let (dir, a) = developed();
        let (b, _) = Identity::load_or_develop(dir.path(), &name("b@127.0.0.1"), wall()).unwrap();
        let peer =
            |identity: &Identity| a.verifier().peer(&identity.certificate(), wall()).unwrap();
        let signature = a.sign(b"message").unwrap();
        assert!(signature.len() <= 72);
        assert!(peer(&a).verify(b"message", &signature));
        assert!(!peer(&a).verify(b"messagf", &signature));
        assert!(!peer(&b).verify(b"message", &signature));
        assert!(!peer(&a).verify(b"message", b""));
        for at in 0..signature.len() {
            let mut changed = signature.clone();
            changed[at] ^= 1;
            assert!(!peer(&a).verify(b"message", &changed), "byte {at}");
        }
    }

    #[test]
    fn a_key_is_not_shown() {
        let (dir, identity) = developed();
        let authority = Authority::open(dir.path()).unwrap();
        let shown = format!("{identity:?} {authority:?}");
        let secret = format!("{:?}", identity.private_key().secret_der());
        assert!(shown.contains("Key(secret)"), "{shown}");
        assert!(!shown.contains(secret.trim_matches(['[', ']'])));
    }
}
