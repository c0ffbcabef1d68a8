//! The Ed25519 private key that signs tokens: made, kept out of sight, used to sign.
//!
//! Owns the private bytes. Invariants: they are wiped when the key is dropped, no `Debug` shows them, and
//! they leave only as PEM for the key's own file.

use std::fmt;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use zeroize::Zeroizing;

use super::super::IdentityError;
use super::super::disk::{self, Fix, Layout};

/// Length of an Ed25519 public key (RFC 8032, 5.1.5), in bytes.
pub(super) const PUBLIC_KEY: usize = 32;

/// A private key for tokens, and its public half.
pub(in super::super) struct TokenKey {
    pkcs8: Zeroizing<PrivatePkcs8KeyDer<'static>>,
    public: [u8; PUBLIC_KEY],
}

impl TokenKey {
    /// A new random key.
    pub(in super::super) fn generate() -> Result<Self, IdentityError> {
        let made = Ed25519KeyPair::generate().and_then(|pair| pair.to_pkcs8v1());
        let key = made.ok().and_then(|made| Self::from_pkcs8(made.as_ref().to_vec().into()));
        key.ok_or(IdentityError::Crypto("make a key"))
    }

    /// The key in ca/token.key.
    pub(in super::super) fn read(layout: Layout<'_>) -> Result<Self, IdentityError> {
        let fix = Fix {
            missing: "tokens are made on the host that has it".to_owned(),
            damaged: "restore it from its backup, or remove it: the next `xpando-node token create` makes another, and every earlier token is refused".to_owned(),
        };
        disk::read_secret(&layout.of_authority(disk::TOKEN_KEY), fix, Self::from_pem)
    }

    /// The first PKCS#8 key in a PEM text; `None` when there is no sound Ed25519 key.
    fn from_pem(pem: &[u8]) -> Option<Self> {
        PrivatePkcs8KeyDer::from_pem_slice(pem).ok().and_then(Self::from_pkcs8)
    }

    fn from_pkcs8(pkcs8: PrivatePkcs8KeyDer<'static>) -> Option<Self> {
        let pkcs8 = Zeroizing::new(pkcs8);
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8.secret_pkcs8_der()).ok()?;
        let public = pair.public_key().as_ref().try_into().ok()?;
        Some(Self { pkcs8, public })
    }

    /// The key as PEM, for its own file only. The encoder leaves unwiped copies in memory; it runs
    /// when a key is made, which a serving node does at most once, before it serves.
    pub(in super::super) fn to_pem(&self) -> Result<Zeroizing<String>, IdentityError> {
        rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&self.pkcs8, &rcgen::PKCS_ED25519)
            .map(|pair| Zeroizing::new(pair.serialize_pem()))
            .map_err(|_unreadable| IdentityError::Crypto("encode a key"))
    }

    /// The public half.
    pub(super) fn public(&self) -> &[u8; PUBLIC_KEY] {
        &self.public
    }

    /// The private key, for what signs with it.
    #[cfg(feature = "gateway")]
    pub(super) fn private(&self) -> &[u8] {
        self.pkcs8.secret_pkcs8_der()
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey(secret)")
    }
}
