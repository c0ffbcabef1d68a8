//! A P-256 private key: made, kept out of sight, used to sign.
//!
//! Owns the private bytes. Invariants: they are wiped when the key is dropped, no `Debug` shows
//! them, and they leave only as PEM for the key's own file and as DER for the TLS configuration.

use std::fmt;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use super::IdentityError;

/// Length of a P-256 public key as an uncompressed point (SEC 1, 2.3.3), in bytes.
pub(super) const POINT: usize = 65;

/// A private key and the signer made of it.
pub(super) struct Key {
    pkcs8: Zeroizing<PrivatePkcs8KeyDer<'static>>,
    pair: EcdsaKeyPair,
}

impl Key {
    /// A new random key.
    pub(super) fn generate() -> Result<Self, IdentityError> {
        let refused = IdentityError::Crypto("make a key");
        let Ok(document) =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new())
        else {
            return Err(refused);
        };
        Self::from_pkcs8(document.as_ref().to_vec().into()).ok_or(refused)
    }

    /// The first PKCS#8 key in a PEM text; `None` when there is no sound P-256 key.
    pub(super) fn from_pem(pem: &[u8]) -> Option<Self> {
        PrivatePkcs8KeyDer::from_pem_slice(pem).ok().and_then(Self::from_pkcs8)
    }

    fn from_pkcs8(pkcs8: PrivatePkcs8KeyDer<'static>) -> Option<Self> {
        let pkcs8 = Zeroizing::new(pkcs8);
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.secret_pkcs8_der())
                .ok()?;
        Some(Self { pkcs8, pair })
    }

    /// The key as PEM, for its own file only. The encoder leaves unwiped copies in memory; it runs
    /// when a key is made, which a serving node does at most once, before it serves.
    pub(super) fn to_pem(&self) -> Result<Zeroizing<String>, IdentityError> {
        rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&self.pkcs8, &rcgen::PKCS_ECDSA_P256_SHA256)
            .map(|pair| Zeroizing::new(pair.serialize_pem()))
            .map_err(|_unreadable| IdentityError::Crypto("encode a key"))
    }

    /// A copy of the key for the TLS configuration, which keeps it.
    pub(super) fn to_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.pkcs8.clone_key())
    }

    /// The public key as an uncompressed point.
    pub(super) fn point(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    /// ECDSA with SHA-256 over `message`, ASN.1 (RFC 3279, 2.2.3).
    pub(super) fn signature(&self, message: &[u8]) -> Result<Vec<u8>, IdentityError> {
        self.pair
            .sign(&SystemRandom::new(), message)
            .map(|signature| signature.as_ref().to_vec())
            .map_err(|_unspecified| IdentityError::Crypto("sign"))
    }
}

impl rcgen::PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        self.point()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.signature(message).map_err(|_unspecified| rcgen::Error::RingUnspecified)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(secret)")
    }
}
