//! The tokens that clients show: how a node judges them.
//!
//! A token is a JSON Web Token (RFC 7519), signed with Ed25519 (RFC 8037, "EdDSA"). Owns `ca/token.key`,
//! which signs, and `ca/tokens`, the signed list of what verifies: the public key, and the ids of the
//! tokens that were revoked. Invariants:
//!
//! 1. The key and the algorithm come from the list alone. Whatever else a token's header says, another
//!    algorithm, none, a key, a place to fetch one, is refused or has no effect.
//! 2. A list counts only with the authority's own signature, and whole; a running node never goes back to
//!    an older list, nor to none.
//! 3. To judge a token takes no clock but the caller's, no other node and no shared secret.
//!
//! Times are strict: `exp` is the first instant at which a token counts no more, `nbf`, where there is one,
//! the first at which it counts. There is no leeway.

#[cfg(feature = "gateway")]
mod jwt;
mod key;
mod list;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use strum::IntoStaticStr;

pub(super) use self::key::TokenKey;
pub(super) use self::list::TokenList;
use super::CertificateVerifier;
use super::IdentityError;
use super::disk::{self, FileState, Layout};

/// What is wrong where no token can be verified, and what mends it.
pub const NO_TOKEN_LIST: &str = "this node has no token list: copy ca/tokens beside ca/cert.pem from the host that has the authority's key";
/// Longest token, in bytes.
pub const MAX_TOKEN: usize = 4 * 1024;

/// Why a token is refused. Anyone who shows it needs another one, but for [`TokenError::NoKey`], where the
/// node's operator must act, and [`TokenError::NotYetValid`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum TokenError {
    /// It is no token, or says what no token may say, or is too long.
    #[error("it is no token of the kind that a cluster makes")]
    Malformed,
    /// It was signed by somebody else, with another algorithm, or changed since.
    #[error("this cluster has not signed it")]
    Signature,
    /// Its time is over.
    #[error("it has expired")]
    Expired,
    /// Its time has not come.
    #[error("it is not valid yet")]
    NotYetValid,
    /// It was made by another cluster, or for somebody else.
    #[error("it is not for this cluster")]
    NotForUs,
    /// The authority has revoked it.
    #[error("it is revoked")]
    Revoked,
    /// There is no list that would verify it.
    #[error(
        "no token can be verified here: copy ca/tokens beside ca/cert.pem from the host that has the authority's key"
    )]
    NoKey,
}

impl TokenError {
    /// One word for programs.
    pub fn label(self) -> &'static str {
        self.into()
    }
}

/// What [`Authority::revoke_token`](super::Authority::revoke_token) has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevokedToken {
    /// False when the token had been revoked before, for at least as long, or has ended by itself.
    pub added: bool,
    /// How many tokens the list names now.
    pub total: usize,
    /// The list's file.
    pub path: PathBuf,
}

/// What a node judges tokens by: the list in its certificate directory, which the operator may replace
/// at any time. Clones share it.
#[derive(Clone, Debug)]
pub struct Tokens(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    certs: PathBuf,
    verifier: CertificateVerifier,
    in_force: ArcSwapOption<TokenList>,
    /// What the last look saw; `None` before the first. Held during a look, so that of two lists that
    /// are read at once the later one stays.
    seen: Mutex<Option<FileState>>,
}

impl Tokens {
    pub(super) fn new(certs: PathBuf, verifier: CertificateVerifier) -> Self {
        let (in_force, seen) = (ArcSwapOption::empty(), Mutex::default());
        Self(Arc::new(Inner { certs, verifier, in_force, seen }))
    }

    /// What verifies tokens by the files in `certs`, which every node has.
    ///
    /// # Errors
    /// [`IdentityError::Missing`] without `ca/cert.pem`; [`IdentityError::DamagedCertificate`] or
    /// [`IdentityError::DamagedTokens`] when a file is not fit for use. Without `ca/tokens` every
    /// token is refused with [`TokenError::NoKey`].
    pub fn open(certs: &Path) -> Result<Self, IdentityError> {
        let layout = Layout::new(certs);
        let missing = format!(
            "copy it from the host that has the authority's key; {} makes a new authority",
            layout.command("init")
        );
        let verifier = CertificateVerifier::read(layout, missing)?;
        let tokens = Self::new(certs.to_owned(), verifier);
        tokens.look().map(|_revoked| tokens)
    }

    /// True when the token with this id is revoked.
    #[must_use]
    pub fn revoked(&self, jti: &str) -> bool {
        let in_force = self.0.in_force.load();
        in_force.as_ref().is_some_and(|list| list.revoked.contains_key(jti))
    }

    /// The number of the list in force: another list has another one.
    pub fn number(&self) -> Option<u64> {
        self.0.in_force.load().as_ref().map(|list| list.number)
    }

    /// Reads the list if its file has changed since the last look, which costs one question to the file
    /// system when it has not; how many revoked tokens it names, when it is another list than before.
    /// From then on tokens are judged by it. May block while a disk does.
    ///
    /// # Errors
    /// [`IdentityError::DamagedTokens`], [`IdentityError::Missing`] when a list that was there is gone,
    /// [`IdentityError::Io`]. The list in force stays, and the same file is not judged twice.
    pub fn look(&self) -> Result<Option<usize>, IdentityError> {
        let layout = Layout::new(&self.0.certs);
        let path = layout.of_authority(disk::TOKENS);
        let mut seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = disk::file_state(&path);
        if seen.replace(stamp) == Some(stamp) {
            return Ok(None);
        }
        let in_force = self.0.in_force.load_full();
        let Some(list) = TokenList::read(layout, &self.0.verifier)? else {
            let fix = "the list in force stays; copy it anew".to_owned();
            return in_force.map_or(Ok(None), |_kept| Err(IdentityError::Missing { path, fix }));
        };
        if let Some(in_force) = in_force {
            if list == *in_force {
                return Ok(None);
            }
            if list.number <= in_force.number {
                let reason = "it is not newer than the list in force";
                return Err(IdentityError::DamagedTokens { path, reason });
            }
        }
        let revoked = list.revoked.len();
        self.0.in_force.store(Some(Arc::new(list)));
        Ok(Some(revoked))
    }
}

#[cfg(test)]
#[cfg(feature = "gateway")]
mod tests;
