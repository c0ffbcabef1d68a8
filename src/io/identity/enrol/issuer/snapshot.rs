//! What an issuer judges strangers by without its lock: the files as they were at its last look.

use crate::io::identity::Authority;
use crate::io::identity::disk::{self, FileState, Layout};
use crate::io::identity::enrol::EnrolError;
use crate::io::identity::enrol::invitations::Invitations;
use crate::proto::enrol::AuthorityHash;

/// The authority and its invitations.
#[derive(Debug)]
pub(super) struct Snapshot {
    seen: Vec<FileState>,
    pub(super) authority: Authority,
    /// Of each authority of the cluster, the root that issues first: every node's certificate leads to it.
    pub(super) hashes: Vec<AuthorityHash>,
    pub(super) invitations: Invitations,
}

impl Snapshot {
    pub(super) fn read(layout: Layout<'_>) -> Result<Self, EnrolError> {
        // What changes while it is read is read again at the next look.
        let seen = Self::look(layout);
        let authority = Authority::open(layout.certs())?;
        let hashes = authority.trusted().iter().map(|der| AuthorityHash::of(der)).collect();
        let invitations = Invitations::read(layout)?;
        Ok(Self { seen, authority, hashes, invitations })
    }

    /// Whether the files are still those that were read.
    pub(super) fn is_current(&self, layout: Layout<'_>) -> bool {
        self.seen == Self::look(layout)
    }

    fn look(layout: Layout<'_>) -> Vec<FileState> {
        let files = [disk::CERTIFICATE, disk::TRUST, disk::KEY, disk::NEXT_KEY, disk::REVOCATIONS];
        let files = files.into_iter().map(|file| layout.of_authority(file));
        let files = files.chain([Invitations::path(layout)]);
        files.map(|path| disk::file_state(&path)).collect()
    }
}
