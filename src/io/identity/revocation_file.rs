//! The revocation list of a running node, as its file changes.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use super::CertificateVerifier;
use super::IdentityError;
use super::disk::{self, FileState, Layout};
use super::revocation::RevocationList;

/// The revocation list of a running node, which the operator may replace at any time.
#[derive(Debug)]
pub struct RevocationFile {
    certs: PathBuf,
    verifier: CertificateVerifier,
    /// What the last look saw; `None` before the first.
    seen: Mutex<Option<FileState>>,
}

impl RevocationFile {
    pub(super) fn new(certs: PathBuf, verifier: CertificateVerifier) -> Self {
        Self { certs, verifier, seen: Mutex::default() }
    }

    /// Reads the list if its file has changed since the last look; how many certificates it names,
    /// when those are others than before. From then on [`CertificateVerifier::peer`] refuses them.
    ///
    /// # Errors
    /// [`IdentityError::DamagedRevocations`], [`IdentityError::Missing`] when a list that was there
    /// is gone, [`IdentityError::Io`]. The list in force stays, and the same file is not judged
    /// twice.
    pub fn look(&self) -> Result<Option<usize>, IdentityError> {
        let layout = Layout::new(&self.certs);
        let path = layout.of_authority(disk::REVOCATIONS);
        let stamp = disk::file_state(&path);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.replace(stamp) == Some(stamp) {
            return Ok(None);
        }
        drop(seen);
        let in_force = self.verifier.list();
        let Some(list) = RevocationList::read(layout, &self.verifier.trusted().bundle)? else {
            let fix = "the list in force stays; copy it anew".to_owned();
            let gone = !in_force.entries.is_empty();
            return if gone { Err(IdentityError::Missing { path, fix }) } else { Ok(None) };
        };
        if list.number < in_force.number {
            let reason = "it is older than the list in force";
            return Err(IdentityError::DamagedRevocations { path, reason });
        }
        let count = (list.entries != in_force.entries).then_some(list.entries.len());
        self.verifier.replace_list(list);
        Ok(count)
    }
}
