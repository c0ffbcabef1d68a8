//! The certificates and the key under a running node.
//!
//! Invariant: what is in force is always whole. A renewed certificate of the same key takes the place of the one before;
//! another key or another cluster's authorities would be another node or another cluster, and waits for a restart.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;

use super::disk::{self, FileState, Layout};
use super::revocation::RevocationList;
use super::trust::Trusted;
use super::{CertificateVerifier, Identity, IdentityError, KeyFault, Leaf, Remedy};
use crate::proto::lists::ListKind;

/// What a look at files found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look<T> {
    /// The files are those of the look before.
    Unchanged,
    /// The files changed, and say what is in force already.
    Sound,
    /// This is new, and in force from now on.
    New(T),
}

/// The files of a running node's identity, which the operator may replace at any time.
#[derive(Debug)]
pub struct IdentityFiles {
    certs: PathBuf,
    identity: Arc<Identity>,
    /// What the last look saw; `None` before the first.
    seen: Mutex<Option<Vec<FileState>>>,
}

impl IdentityFiles {
    pub(super) fn new(certs: PathBuf, identity: Arc<Identity>) -> Self {
        Self { certs, identity, seen: Mutex::default() }
    }

    /// Reads the files if they have changed since the last look; until when the node's certificate is valid, when it is
    /// another one than before.
    ///
    /// # Errors
    /// [`KeyFault::New`], [`IdentityError::OtherCluster`], and every error of [`Identity::load`] about these
    /// files. What was in force stays, and the same files are not judged twice.
    pub fn look(&self, now: SystemTime) -> Result<Look<SystemTime>, IdentityError> {
        let (layout, name) = (Layout::new(&self.certs), self.identity.name());
        let ours = [disk::CERTIFICATE, disk::TRUST].map(|file| layout.of_authority(file));
        let paths = ours.into_iter().chain([layout.certificate(name), layout.key(name)]);
        let stamps: Vec<_> = paths.map(|path| disk::file_state(&path)).collect();
        let mut seen = self.seen.lock();
        if seen.replace(stamps.clone()) == Some(stamps) {
            return Ok(Look::Unchanged);
        }
        drop(seen);
        let (trusted, leaf) = self.read(layout, now)?;
        let identity = &self.identity;
        if leaf.der == identity.leaf.load().der && trusted == *identity.verifier.trusted() {
            return Ok(Look::Sound);
        }
        let until = leaf.peer.validity.not_after;
        identity.verifier.replace_trusted(trusted);
        identity.leaf.store(leaf);
        Ok(Look::New(until))
    }

    fn read(
        &self,
        layout: Layout<'_>,
        now: SystemTime,
    ) -> Result<(Trusted, Arc<Leaf>), IdentityError> {
        let identity = &self.identity;
        let name = identity.name();
        let mut trusted = Trusted::read(layout, Remedy::CopyAuthority)?;
        if trusted.bundle.cluster() != identity.cluster() {
            return Err(IdentityError::OtherCluster {
                path: layout.of_authority(disk::CERTIFICATE),
            });
        }
        let in_force = identity.verifier.trusted();
        if trusted.list.number < in_force.list.number {
            // A later one came from a peer, and could not be written.
            let later = in_force.list.clone().in_force(&trusted.bundle);
            let path = layout.of_authority(disk::TRUST);
            trusted =
                later.map_err(|reason| IdentityError::unusable(ListKind::Trust, path, reason))?;
        }
        let der = disk::read_certificate(&layout.certificate(name), layout.leaf_fix(name))?;
        let key = disk::read_key(&layout.key(name), layout.leaf_fix(name))?;
        let verifier = CertificateVerifier::of(trusted.clone());
        verifier.replace_list(RevocationList::clone(&identity.verifier.list()));
        let found = Identity::assemble(layout, name, verifier, der, key)?;
        if found.id != identity.id {
            let (path, fault) = (layout.key(name), KeyFault::New);
            return Err(IdentityError::Key { path, fault, remedy: Remedy::Restart });
        }
        let leaf = found.leaf.load_full();
        found.check(&leaf, layout, now)?;
        Ok((trusted, leaf))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;
    use crate::io::clock::wall;
    use crate::io::identity::{Authority, IdentityError, LeafOptions, Validity};

    #[test]
    fn a_renewed_certificate_is_taken_and_what_would_be_another_node_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::init(dir.path(), wall()).unwrap();
        let name = "a@h".parse().unwrap();
        let valid = |days: u32| Validity {
            not_before: wall(),
            not_after: wall() + days * Duration::from_secs(24 * 60 * 60),
        };
        let identity = Arc::new(authority.issue(dir.path(), &name, valid(9)).unwrap());
        let files = identity.files(dir.path());
        let first = identity.certificate();
        assert_eq!(files.look(wall()).unwrap(), Look::Sound, "the first look reads");
        assert_eq!(files.look(wall()).unwrap(), Look::Unchanged);

        let renewed =
            authority.reissue(dir.path(), &name, valid(20), LeafOptions::default()).unwrap();
        assert_eq!(files.look(wall()).unwrap(), Look::New(renewed.validity().not_after));
        assert_eq!(identity.certificate(), renewed.certificate());
        assert_eq!(
            (identity.id(), identity.validity().not_after),
            (renewed.id(), renewed.validity().not_after)
        );
        assert_ne!(identity.certificate(), first);
        let peer = identity.verifier().peer(&identity.certificate(), wall()).unwrap();
        assert!(peer.verify(b"m", &identity.sign(b"m").unwrap()), "the key is the same");

        let kept = identity.certificate();
        let path = |file: &str| dir.path().join(file);
        let refused = |error: IdentityError, part: &str| {
            assert!(error.to_string().contains(part), "{error}");
            assert_eq!(
                files.look(wall()).unwrap(),
                Look::Unchanged,
                "the same is not judged twice"
            );
            assert_eq!(identity.certificate(), kept);
        };
        // Half of a new pair, and then all of it.
        let apart = tempfile::tempdir().unwrap();
        authority.issue(apart.path(), &name, valid(30)).unwrap();
        fs::copy(apart.path().join("a@h/cert.pem"), path("a@h/cert.pem")).unwrap();
        refused(files.look(wall()).unwrap_err(), "does not belong to the certificate");
        fs::copy(apart.path().join("a@h/key.pem"), path("a@h/key.pem")).unwrap();
        let error = files.look(wall()).unwrap_err();
        assert!(matches!(error, IdentityError::Key { fault: KeyFault::New, .. }), "{error}");
        refused(error, "restart the node");
        fs::write(path("a@h/cert.pem"), "rubbish").unwrap();
        refused(files.look(wall()).unwrap_err(), "damaged");
        fs::remove_file(path("a@h/cert.pem")).unwrap();
        refused(files.look(wall()).unwrap_err(), "a@h/cert.pem is missing");
        let other = tempfile::tempdir().unwrap();
        Authority::init(other.path(), wall()).unwrap();
        fs::copy(other.path().join("ca/cert.pem"), path("ca/cert.pem")).unwrap();
        let error = files.look(wall()).unwrap_err();
        assert!(matches!(error, IdentityError::OtherCluster { .. }), "{error}");
        refused(error, "put the one before back");
    }
}
