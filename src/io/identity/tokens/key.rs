//! The Ed25519 private key that signs tokens: made, kept out of sight, used to sign.
//!
//! Owns the private bytes. Invariants: they are wiped when the key is dropped, no `Debug` shows them, and
//! they leave only as PEM for the key's own file.

use std::fmt;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use zeroize::Zeroizing;

use super::super::disk::{self, Fix, Layout};
use super::super::{IdentityError, Remedy};
use crate::proto::token::TokenKeyId;

/// A private key for tokens, and its public half.
pub(in super::super) struct TokenKey {
    pkcs8: Zeroizing<PrivatePkcs8KeyDer<'static>>,
    id: TokenKeyId,
}

impl TokenKey {
    /// A new random key.
    pub(in super::super) fn generate() -> Result<Self, IdentityError> {
        let made = Ed25519KeyPair::generate().and_then(|pair| pair.to_pkcs8v1());
        let key = made.ok().and_then(|made| Self::from_pkcs8(made.as_ref().to_vec().into()));
        key.ok_or(IdentityError::Crypto("make a key"))
    }

    /// The key in a file of the authority; `None` where there is none.
    fn read(layout: Layout<'_>, file: &str) -> Result<Option<Self>, IdentityError> {
        let fix = Fix { missing: Remedy::Nothing, damaged: Remedy::RemoveTokenKey };
        match disk::read_secret(&layout.of_authority(file), fix, Self::from_pem) {
            Ok(key) => Ok(Some(key)),
            Err(IdentityError::Missing { .. }) => Ok(None),
            Err(other) => Err(other),
        }
    }

    /// The first PKCS#8 key in a PEM text; `None` when there is no sound Ed25519 key.
    fn from_pem(pem: &[u8]) -> Option<Self> {
        PrivatePkcs8KeyDer::from_pem_slice(pem).ok().and_then(Self::from_pkcs8)
    }

    fn from_pkcs8(pkcs8: PrivatePkcs8KeyDer<'static>) -> Option<Self> {
        let pkcs8 = Zeroizing::new(pkcs8);
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8.secret_pkcs8_der()).ok()?;
        let id = TokenKeyId(pair.public_key().as_ref().try_into().ok()?);
        Some(Self { pkcs8, id })
    }

    /// The key as PEM, for its own file only. The encoder leaves unwiped copies in memory; it runs
    /// when a key is made, which a serving node does at most once, before it serves.
    pub(in super::super) fn to_pem(&self) -> Result<Zeroizing<String>, IdentityError> {
        rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&self.pkcs8, &rcgen::PKCS_ED25519)
            .map(|pair| Zeroizing::new(pair.serialize_pem()))
            .map_err(|_unreadable| IdentityError::Crypto("encode a key"))
    }

    /// The public half.
    pub(in super::super) fn id(&self) -> TokenKeyId {
        self.id
    }

    /// The private key, for what signs with it.
    #[cfg(feature = "gateway")]
    pub(super) fn private(&self) -> &[u8] {
        self.pkcs8.secret_pkcs8_der()
    }
}

/// The private keys for tokens that lie in an authority's directory.
pub(in super::super) struct TokenKeys(Vec<TokenKey>);

impl TokenKeys {
    /// The one that signs first, and during a rotation the next one. Which of them signs, the list says: a rotation that was
    /// interrupted leaves the one that signs in the other's file.
    pub(in super::super) fn read(layout: Layout<'_>) -> Result<Self, IdentityError> {
        let files = [disk::TOKEN_KEY, disk::NEXT_TOKEN_KEY];
        let keys = files.map(|file| TokenKey::read(layout, file));
        keys.into_iter().filter_map(Result::transpose).collect::<Result<_, _>>().map(Self)
    }

    /// The first of them.
    pub(in super::super) fn first(self) -> Option<TokenKey> {
        self.0.into_iter().next()
    }

    /// The one with this public half.
    pub(in super::super) fn take(self, id: TokenKeyId) -> Option<TokenKey> {
        self.0.into_iter().find(|key| key.id == id)
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey(secret)")
    }
}
