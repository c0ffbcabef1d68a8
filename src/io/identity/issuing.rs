//! The lists of a node that has the authority's key: it revokes, and makes one list of those that were made apart.

use std::time::SystemTime;

use super::disk::{self, Layout};
use super::lists::Lists;
use super::revocation::{RevocationReason, Revoked};
use super::{Authority, IdentityError, Revocee};
use crate::proto::lists::ListKind;

impl Lists {
    /// Adds certificates to the revocation list's file, where the authority's key is. [`Lists::look`] has it in force.
    ///
    /// # Errors
    /// As [`Authority::open`] and [`Authority::revoke`].
    pub fn revoke(
        &self,
        what: &Revocee,
        reason: Option<RevocationReason>,
        now: SystemTime,
    ) -> Result<Revoked, IdentityError> {
        Authority::open(self.certs())?.revoke_for(what, reason, now)
    }

    /// Makes a list of all that is revoked, if the latest lacks some and the authority's key is here, and writes the list
    /// in force where the file has an older one, or none. May block while a disk does.
    ///
    /// # Errors
    /// [`IdentityError`]: the file stays as it was, or has no list of all. The list in force stays.
    pub fn settle(&self, kind: ListKind, now: SystemTime) -> Result<(), IdentityError> {
        let _one = self.settling();
        let has_key = || Layout::new(self.certs()).of_authority(disk::KEY).exists();
        if self.set_lacks(kind, false) && has_key() {
            self.merge(kind, now).inspect_err(|_again| {
                self.set_lacks(kind, true);
            })?;
            // What was made is in force at once.
            self.look(kind).map(drop)
        } else {
            self.write(kind)
        }
    }

    fn merge(&self, kind: ListKind, now: SystemTime) -> Result<(), IdentityError> {
        let authority = Authority::open(self.certs())?;
        match kind {
            // One list of trust follows another: there is nothing to merge.
            ListKind::Trust => Ok(()),
            ListKind::Revocations => authority.merge_revocations(&self.verifier().list(), now),
            ListKind::Tokens => {
                self.token_list().map_or(Ok(()), |list| authority.merge_tokens(&list, now))
            }
        }
    }
}
