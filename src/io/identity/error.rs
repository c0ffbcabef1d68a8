//! Why there is no identity, no authority or no list, and what an operator does about it.

use std::fmt;
use std::path::{Path, PathBuf};

use super::pki::CertificateFault;
use crate::proto::lists::ListKind;
use crate::proto::node::NodeName;
use crate::proto::token::ClaimsError;

/// Why an identity, an authority or a list of this host cannot be used or made. Unless a variant says otherwise, nothing on
/// disk has changed and the operator does what [`IdentityError::remedy`] says.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A file or directory could not be read or written. What stood at `path` still stands; of
    /// several files, those before it may have been written, and the same call completes them.
    #[error("cannot {action} {}: {cause}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the operating system said.
        cause: std::io::Error,
    },
    /// A file that is needed is not there.
    #[error("{} is missing{}", path.display(), Then(remedy))]
    Missing {
        /// The file.
        path: PathBuf,
        /// What brings it.
        remedy: Remedy,
    },
    /// A certificate in a file does not count.
    #[error("the certificate {} {fault}{}", path.display(), Then(remedy))]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        fault: CertificateFault,
        /// What replaces it.
        remedy: Remedy,
    },
    /// A private key cannot be used.
    #[error("the private key {} {fault}{}", path.display(), Then(remedy))]
    Key {
        /// Its file.
        path: PathBuf,
        /// Why.
        fault: KeyFault,
        /// What replaces it, or makes it private.
        remedy: Remedy,
    },
    /// A signed list cannot be used. The one in force, if there is one, stays.
    #[error("the {} list {} {fault}{}", of(*kind), path.display(), Then(remedy))]
    List {
        /// Which list.
        kind: ListKind,
        /// Its file.
        path: PathBuf,
        /// Why.
        fault: ListFault,
        /// What replaces it.
        remedy: Remedy,
    },
    /// What was to be made is there already, and not replaced.
    #[error("{} already exists{}", path.display(), Then(remedy))]
    Exists {
        /// The file.
        path: PathBuf,
        /// What replaces it.
        remedy: Remedy,
    },
    /// The authorities in the file are of another cluster. Those that the node started with stay in force.
    #[error("{} is of another cluster than the one that this node started in{}", path.display(), Then(&Remedy::PutBack))]
    OtherCluster {
        /// The file.
        path: PathBuf,
    },
    /// Others may write a directory that decides who is trusted.
    #[error(
        "others may write the directory {} (mode {mode:04o}), and so put keys of their own there{}",
        path.display(), Then(&Remedy::Close)
    )]
    OpenDirectory {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Nothing can be revoked of a node that this authority knows nothing of.
    #[error("{what} was never issued a certificate here{}", Then(&Remedy::Show))]
    NeverIssued {
        /// Which node or certificate.
        what: String,
        /// The file that names those that were.
        list: PathBuf,
    },
    /// A certificate would spell this name like another one's, or has no room for it beside the patterns of an edge.
    #[error(
        "{0} cannot be named in a certificate: its host part reads as an IPv6 address there, or it leaves no room for the patterns of an edge; choose another"
    )]
    UnusableName(NodeName),
    /// No token may say this.
    #[error(transparent)]
    Claims(#[from] ClaimsError),
    /// Claims that are sound make a token longer than any node reads, which is so many bytes.
    #[error("such a token would be longer than {0} bytes: give it fewer or shorter topics")]
    TokenTooLong(usize),
    /// The cryptographic library refused. Nobody can act but the host's operator: entropy or
    /// memory is short.
    #[error("the cryptographic library refused to {0}")]
    Crypto(&'static str),
}

/// Why a private key cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFault {
    /// Others than its owner can read it, with these permission bits, so it may no longer be secret.
    #[error("can be read by others (mode {0:04o})")]
    Exposed(u32),
    /// It is encrypted.
    #[error("is encrypted, and nobody types its passphrase when a node starts")]
    Encrypted,
    /// Its file holds no sound key of its kind in PKCS#8.
    #[error("is damaged")]
    Damaged,
    /// It is not the one that the certificate beside it was made for.
    #[error("does not belong to the certificate beside it")]
    Mismatch,
    /// It is a new one. The one that the node started with stays in force: its id, its links and its signatures are made of it.
    #[error("is a new key, which counts from the next start")]
    New,
    /// It is not the one that signs tokens now: that was rotated on another host.
    #[error("is not the key that signs tokens now")]
    Replaced,
}

/// Why a signed list cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ListFault {
    /// This cluster's authority did not make it, or it was damaged since; in which way.
    #[error("cannot be used ({0})")]
    Unusable(&'static str),
    /// It is older than the one in force.
    #[error(
        "is older (number {found}) than the list in force (number {in_force}), which stays and is written there where that is possible"
    )]
    Older {
        /// Its number.
        found: u64,
        /// The number of the list in force.
        in_force: u64,
    },
    /// It has no room for one more.
    #[error("is full")]
    Full,
}

/// What an operator does about an error. Its text has no command: those are the command line's affair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Remedy {
    /// Nothing: it mends itself, or the caller knows.
    #[default]
    Nothing,
    /// A cluster has to be founded, or this node given its files.
    Begin(NodeName),
    /// An authority can be made.
    MakeAuthority,
    /// The authority's time is over.
    ReplaceAuthority,
    /// The authority stays unless it is moved away.
    MoveAuthority,
    /// Every node has the same file.
    CopyAuthority,
    /// Another certificate directory has it.
    OtherCerts,
    /// Another host has what is missing.
    AskAuthority,
    /// What was there is in a backup.
    Restore,
    /// The authority's certificate and key are of one backup, or another intermediate authority is asked for.
    RestorePair,
    /// Tokens are another host's affair.
    BringTokenKey,
    /// The node's first certificate is to be issued.
    Issue(NodeName),
    /// The node's certificate is to be replaced.
    Reissue(NodeName),
    /// A key is to be readable by its owner alone.
    MakePrivate {
        /// Whether it is another user's.
        of_other: bool,
    },
    /// A key is mounted read-only in a mode that others can read.
    MountPrivate,
    /// A directory is to be writable by its owner alone.
    Close,
    /// A key is to be decrypted.
    Decrypt,
    /// Without the file another one is made.
    Remove,
    /// Likewise, and what the earlier key signed counts no more.
    RemoveTokenKey,
    /// The host that signs tokens has another key.
    FetchTokenKey,
    /// A request came from another directory.
    OtherDirectory,
    /// The list is on other nodes, or where the authority's key is.
    CopyList(ListKind),
    /// Time makes room; or every earlier token is given up.
    AwaitExpiry,
    /// The node reads it when it starts.
    Restart,
    /// What was there is to be put back.
    PutBack,
    /// What was issued can be listed.
    Show,
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Nothing => "",
            Self::Begin(name) => {
                return write!(
                    f,
                    "on the host that is to hold the authority's key make an authority, once, and issue {name}; copy ca/cert.pem and the directory {name} from there"
                );
            }
            Self::MakeAuthority => "a new authority can be made",
            Self::ReplaceAuthority => {
                "move the directory ca away, make a new authority and issue every node's certificate anew"
            }
            Self::MoveAuthority => {
                "to make a new cluster, move it away first; every node then needs a new certificate"
            }
            Self::CopyAuthority => "copy it anew: every node of the cluster has the same file",
            Self::OtherCerts => "choose the directory that has the cluster's ca/cert.pem",
            Self::AskAuthority => "certificates and tokens are made on the host that has it",
            Self::Restore => "restore it from its backup",
            Self::RestorePair => {
                "restore the pair from one backup; if it was an intermediate authority's, its time is over: ask for another one"
            }
            Self::BringTokenKey => {
                "tokens are made and revoked where it is: beside the root authority's key, or bring it here"
            }
            Self::Issue(name) => {
                return write!(
                    f,
                    "issue {name} where the authority's key is, and copy the directory {name} from there"
                );
            }
            Self::Reissue(name) => {
                return write!(f, "issue {name} anew where the authority's key is");
            }
            Self::MakePrivate { of_other: false } => {
                "let nobody else read it, and make a new key if someone may have copied it"
            }
            Self::MakePrivate { of_other: true } => {
                "as its owner, let nobody else read it, and make a new key if someone may have copied it"
            }
            Self::MountPrivate => {
                "it is mounted read-only: mount it with mode 0400, or 0440 if root owns it (Kubernetes: `defaultMode: 0440`)"
            }
            Self::Close => "let nobody else write it",
            Self::Decrypt => "put a copy that is not encrypted in its place",
            Self::Remove => "remove it, and a new one is made",
            Self::RemoveTokenKey => {
                "restore it from its backup, or remove it: the next token that is made makes another key, and every earlier token is refused"
            }
            Self::FetchTokenKey => {
                "make tokens on the host that has that key, copy the file from there, or rotate the tokens' key"
            }
            Self::OtherDirectory => "the request was made in another certificate directory",
            Self::CopyList(ListKind::Trust) => "copy it anew from another node",
            Self::CopyList(ListKind::Revocations) => {
                "copy it anew from the host that has the authority's key"
            }
            Self::CopyList(ListKind::Tokens) => {
                "copy it anew from the host that has the authority's key, or there from its backup or another node"
            }
            Self::AwaitExpiry => {
                "it has room again when revoked tokens have expired; removing ca/token.key and making a token refuses every earlier one"
            }
            Self::Restart => "restart the node",
            Self::PutBack => {
                "put the one before back, or restart the node with a certificate of the new cluster"
            }
            Self::Show => "the list of certificates has those that were",
        };
        f.write_str(text)
    }
}

/// What follows an error's text.
struct Then<'a>(&'a Remedy);

impl fmt::Display for Then<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self.0 == Remedy::Nothing { Ok(()) } else { write!(f, ": {}", self.0) }
    }
}

/// Of what a list is.
fn of(kind: ListKind) -> &'static str {
    match kind {
        ListKind::Trust => "trust",
        ListKind::Revocations => "revocation",
        ListKind::Tokens => "token",
    }
}

impl IdentityError {
    /// What an operator does about it.
    #[must_use]
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::Missing { remedy, .. }
            | Self::Certificate { remedy, .. }
            | Self::Key { remedy, .. }
            | Self::List { remedy, .. }
            | Self::Exists { remedy, .. } => remedy.clone(),
            Self::OtherCluster { .. } => Remedy::PutBack,
            Self::OpenDirectory { .. } => Remedy::Close,
            Self::NeverIssued { .. } => Remedy::Show,
            Self::Io { .. }
            | Self::UnusableName(_)
            | Self::Claims(_)
            | Self::TokenTooLong(_)
            | Self::Crypto(_) => Remedy::Nothing,
        }
    }

    /// The file or directory that it is about.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Missing { path, .. }
            | Self::Certificate { path, .. }
            | Self::Key { path, .. }
            | Self::List { path, .. }
            | Self::Exists { path, .. }
            | Self::OtherCluster { path }
            | Self::OpenDirectory { path, .. }
            | Self::NeverIssued { list: path, .. }
            | Self::Io { path, .. } => Some(path),
            Self::UnusableName(_) | Self::Claims(_) | Self::TokenTooLong(_) | Self::Crypto(_) => {
                None
            }
        }
    }

    /// Whether it is that a certificate's time is over.
    pub(crate) fn is_expired(&self) -> bool {
        matches!(self, Self::Certificate { fault: CertificateFault::Expired(_), .. })
    }

    /// A list in a file that cannot be used.
    pub(super) fn unusable(kind: ListKind, path: PathBuf, reason: &'static str) -> Self {
        let (fault, remedy) = (ListFault::Unusable(reason), Remedy::CopyList(kind));
        Self::List { kind, path, fault, remedy }
    }
}
