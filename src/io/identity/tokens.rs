//! The tokens that clients show: how a node judges them.
//!
//! A token is a JSON Web Token (RFC 7519), signed with Ed25519 (RFC 8037, "EdDSA"). Owns `ca/token.key`,
//! which signs, during a rotation `ca/next-token.key`, which is to sign, and `ca/tokens`, the signed list of what
//! verifies: the public keys, and the ids of the tokens that were revoked. Invariants:
//!
//! 1. The keys and the algorithm come from the list alone. Whatever else a token's header says, another
//!    algorithm, none, a key, a place to fetch one, is refused or has no effect.
//! 2. A list counts only with the authority's own signature, and whole; a running node never goes back to
//!    an older list, nor to none; a key that was dropped counts never again.
//! 3. To judge a token takes no clock but the caller's, no other node and no shared secret.
//!
//! Times are strict: `exp` is the first instant at which a token counts no more, `nbf`, where there is one,
//! the first at which it counts. There is no leeway.

#[cfg(feature = "gateway")]
mod jwt;
mod key;
pub(super) mod list;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use strum::IntoStaticStr;

pub(super) use self::key::{TokenKey, TokenKeys};
pub(super) use self::list::{MAX_FORMER, NextKey, TokenList};
use super::CertificateVerifier;
use super::disk::Layout;
use super::lists::Lists;
use super::{IdentityError, Remedy};
use crate::proto::lists::ListKind;
use crate::proto::token::TokenKeyId;
use crate::proto::token::mapping::Unmapped;

/// What is wrong where no token can be verified, and what mends it.
pub const NO_TOKEN_LIST: &str = "this node has no token list: it comes with the first link to a node that has one; where the authority's key is, `xpando-node token create` makes it";
/// Longest token, in bytes.
pub const MAX_TOKEN: usize = 4 * 1024;

/// Why a token is refused. Anyone who shows it needs another one, but for [`TokenError::NoKey`] and
/// [`TokenError::NoKeySet`], where the node's operator must act, and [`TokenError::NotYetValid`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum TokenError {
    /// It is no token, or says what no token may say, or is too long.
    #[error("it is no token, or says what no token may say")]
    Malformed,
    /// It was signed by somebody else, with another algorithm, or changed since.
    #[error("no key that counts here has signed it")]
    Signature,
    /// Its time is over.
    #[error("it has expired")]
    Expired,
    /// Its time has not come.
    #[error("it is not valid yet")]
    NotYetValid,
    /// It was made by another cluster, or for somebody else.
    #[error("it is not for this cluster, or not for its users")]
    NotForUs,
    /// The authority has revoked it.
    #[error("it is revoked")]
    Revoked,
    /// It is of an issuer that is known, and signed with another algorithm than that one's.
    #[error("its issuer does not sign with this algorithm")]
    Algorithm,
    /// It names an issuer that is not this cluster, and whose tokens do not count here.
    #[error("its issuer (the claim iss) is none whose tokens count here")]
    UnknownIssuer,
    /// It names a key that its issuer's key set has not.
    #[error("its issuer has no such key")]
    UnknownKey,
    /// Its claims give no subject, no role or no topics by the rules for its issuer.
    #[error("by the settings of its issuer {0}")]
    Unmapped(Unmapped),
    /// The key set of its issuer has not been fetched yet.
    #[error("its issuer's key set could not be fetched yet")]
    #[strum(serialize = "no_key")]
    NoKeySet,
    /// There is no list that would verify it.
    #[error(
        "no token can be verified here: the token list comes with the first link to a node that has one, or with a copy of ca/tokens"
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

/// What a node judges tokens by: the latest token list. Clones share it.
#[derive(Clone, Debug)]
pub struct Tokens(Lists);

impl Tokens {
    /// By the token list among these.
    pub fn of(lists: &Lists) -> Self {
        Self(lists.clone())
    }

    /// What verifies tokens by the files in `certs`, which every node has.
    ///
    /// # Errors
    /// [`IdentityError::Missing`] without `ca/cert.pem`; [`IdentityError::Certificate`] or
    /// [`IdentityError::List`] when a file is not fit for use. Without `ca/tokens` every
    /// token is refused with [`TokenError::NoKey`].
    pub fn open(certs: &Path) -> Result<Self, IdentityError> {
        let layout = Layout::new(certs);
        let missing = Remedy::MakeAuthority;
        let verifier = CertificateVerifier::read(layout, missing)?;
        let tokens = Self(Lists::new(certs.to_owned(), verifier));
        tokens.look().map(|_revoked| tokens)
    }

    /// True when the token with this id is revoked.
    #[must_use]
    pub fn revoked(&self, jti: &str) -> bool {
        self.0.token_list().is_some_and(|list| list.revoked.contains_key(jti))
    }

    /// True when tokens of this key count at `now`.
    #[must_use]
    pub fn counts(&self, key: TokenKeyId, now: SystemTime) -> bool {
        self.0.token_keys(now).contains(&key)
    }

    /// The number of the list in force: another list has another one.
    pub fn number(&self) -> Option<u64> {
        self.0.token_list().map(|list| list.number)
    }

    /// As [`Lists::look`] at the token list.
    ///
    /// # Errors
    /// As [`Lists::look`].
    pub fn look(&self) -> Result<Option<usize>, IdentityError> {
        self.0.look(ListKind::Tokens)
    }
}

#[cfg(test)]
#[cfg(feature = "gateway")]
mod tests;
