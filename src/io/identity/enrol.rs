//! How a node comes to its certificate: invitations, requests and answers, on both sides.
//!
//! The side that asks ([`Joiner`], and `Identity::ask_renewal` of a node that has a certificate) makes its key, which never
//! leaves its host, asks, checks the answer, and writes the certificate directory. The side that issues ([`Issuer`]) judges a
//! request by what it proves. Both are bytes in and bytes out ([`crate::proto::enrol`]): connections, links and files carry
//! them.
//!
//! Owns `ca/invitations` where the authority's key is. Invariants:
//!
//! 1. Of a signing request only the key is taken; all else in a certificate is written by the authority.
//! 2. An invitation is used at most as often as it says, counted on disk before a certificate is made; the same key under the
//!    same name gets a certificate again, because an answer may be lost.
//! 3. A name whose key has a certificate that counts is issued to no other key.
//! 4. What a stranger sends before it has proven anything costs a fixed amount of memory, and no disk.
//! 5. An answer counts only if it is from the cluster that the asker means, for its key and name; until then nothing but its
//!    key is written.

mod asked;
mod csr;
mod invitations;
mod issuer;
mod joiner;
mod line;
mod mac;
#[cfg(feature = "gateway")]
mod machine;
mod places;
#[cfg(feature = "gateway")]
mod spoken;

use std::path::PathBuf;
use std::time::SystemTime;

#[cfg(feature = "gateway")]
pub use self::asked::AskedSpoken;
pub use self::asked::{Asked, Granted, accept};
pub use self::invitations::{InvitationInfo, Pending, Terms};
pub use self::issuer::{Answered, Issuer, Means, Outcome, Rules};
pub use self::joiner::Joiner;
pub use self::line::{Line, LineError};
#[cfg(feature = "gateway")]
pub use self::machine::MachineRules;
pub use self::places::{keep_places, kept_places};
#[cfg(feature = "gateway")]
pub use self::spoken::{Code, CodeError};
use super::IdentityError;
use crate::io::clock::rfc3339;
use crate::proto::enrol::{AuthorityHash, MAX_HOSTS, Refused, RequestId};

pub(super) use self::csr::CsrKey;

/// Why a certificate was not asked for, not granted, or not taken. Unless a variant says otherwise nothing changed on disk
/// but that a key was made, and the operator acts as the text says.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnrolError {
    /// A file is not fit for use, or cannot be read or written.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The issuer refused.
    #[error("{0}")]
    Refused(Refused),
    /// The node has a certificate that counts.
    #[error(
        "{} is valid until {}: start the node, or remove that file to ask for another one",
        path.display(), rfc3339(*until)
    )]
    AlreadyJoined {
        /// The certificate's file.
        path: PathBuf,
        /// Its last valid second.
        until: SystemTime,
    },
    /// The certificate directory is of another cluster than the invitation.
    #[error(
        "{} is of another cluster than the one that invites, whose authority's certificate has the SHA-256 {invited}: choose another certificate directory",
        path.display()
    )]
    OtherCluster {
        /// The authority's file.
        path: PathBuf,
        /// The authority that invites.
        invited: AuthorityHash,
    },
    /// Nothing says which cluster is meant.
    #[error(
        "nothing says which cluster is meant: give the SHA-256 of its authority's certificate, or put ca/cert.pem into the certificate directory"
    )]
    NoAuthority,
    /// The answer is not one that the cluster meant gives to this request. Asking at another address may help.
    #[error(
        "the answer cannot be used ({0}): ask at another address; somebody on the way may have changed it"
    )]
    Answer(&'static str),
    /// More hosts than a certificate has room for.
    #[error("a certificate names at most {MAX_HOSTS} hosts, the one in the node's name among them")]
    TooManyHosts,
    /// No invitation is made in these terms.
    #[error("no such invitation can be made: {0}")]
    Terms(&'static str),
    /// There are as many invitations, or requests that wait, as there may be.
    #[error("there are too many open invitations: withdraw some, or wait until they end")]
    Full,
    /// The file of invitations cannot be read.
    #[error("{} is damaged: remove it, which withdraws every invitation", .0.display())]
    DamagedInvitations(PathBuf),
    /// The file of the platform's keys cannot be used.
    #[error("{} holds no JSON Web Key Set of 1 to 64 keys: put the platform's public keys there", .0.display())]
    MachineKeys(PathBuf),
    /// There is no such request, or it waits no more.
    #[error("no request {0} waits for approval")]
    NoSuchRequest(RequestId),
    /// There is no such invitation.
    #[error("there is no such invitation")]
    NoSuchInvitation,
}

#[cfg(test)]
mod tests;
