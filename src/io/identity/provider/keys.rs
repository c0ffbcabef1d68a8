//! The keys that verify JSON Web Tokens of another system (RFC 7518): shared secrets, public keys, sets of them (RFC 7517).
//!
//! Invariants: a key is for one algorithm, the settings' own; a shared secret is never read of what is public, a key set or a
//! public key's file.

use std::io::ErrorKind;
use std::path::Path;

use jsonwebtoken::DecodingKey;
use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, KeyOperations, PublicKeyUse,
};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use x509_cert::der::Decode;
use x509_cert::spki::SubjectPublicKeyInfoOwned;

use super::super::Remedy;
use super::super::disk::{self, Fix};
use super::key_set as sets;
use super::{KeyMark, ProviderError, needed};

/// Shortest shared secret, in bytes: as long as the shortest hash (RFC 7518, 3.2).
pub(super) const MIN_SECRET: usize = 32;
/// Longest file of a public key, in bytes.
const MAX_KEY: usize = 16 * 1024;
/// How a provider signs (RFC 7518, 3.1; RFC 8037).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) enum Algorithm {
    #[serde(rename = "HS256")]
    Hs256,
    #[serde(rename = "HS384")]
    Hs384,
    #[serde(rename = "HS512")]
    Hs512,
    #[serde(rename = "RS256")]
    Rs256,
    #[serde(rename = "ES256")]
    Es256,
    #[serde(rename = "EdDSA")]
    EdDsa,
}

impl Algorithm {
    pub(super) fn is_secret(self) -> bool {
        matches!(self, Self::Hs256 | Self::Hs384 | Self::Hs512)
    }

    /// As headers have it, and as the library has it.
    pub(super) fn names(self) -> (&'static str, jsonwebtoken::Algorithm) {
        use jsonwebtoken::Algorithm as Of;
        match self {
            Self::Hs256 => ("HS256", Of::HS256),
            Self::Hs384 => ("HS384", Of::HS384),
            Self::Hs512 => ("HS512", Of::HS512),
            Self::Rs256 => ("RS256", Of::RS256),
            Self::Es256 => ("ES256", Of::ES256),
            Self::EdDsa => ("EdDSA", Of::EdDSA),
        }
    }
}

/// A key that verifies.
pub(super) struct VerifyingKey {
    /// As its set names it.
    pub(super) id: Option<String>,
    /// Whether it is of a set: a token that names a key then means that one.
    pub(super) of_set: bool,
    pub(super) key: DecodingKey,
    pub(super) mark: KeyMark,
}

impl PartialEq for VerifyingKey {
    fn eq(&self, other: &Self) -> bool {
        self.mark == other.mark
    }
}

/// A shared secret, in a file that others cannot read. A newline at its end is none of it.
pub(super) fn secret(
    settings: &Path,
    path: &Path,
    algorithm: Algorithm,
) -> Result<VerifyingKey, ProviderError> {
    debug_assert!(algorithm.is_secret(), "others have public keys");
    let made = read_secret(path, |secret| {
        let key = DecodingKey::from_secret(secret).ok()?;
        Some(VerifyingKey { id: None, of_set: false, key, mark: KeyMark::of(settings, secret) })
    })?;
    made.ok_or_else(|| refused(path, "it is not a secret that can be used"))
}

/// What `parse` makes of a secret in a file.
pub(super) fn read_secret<K>(
    path: &Path,
    parse: impl FnOnce(&[u8]) -> Option<K>,
) -> Result<Option<K>, ProviderError> {
    if disk::file_state(path) == Err(ErrorKind::NotFound) {
        return Err(ProviderError::Missing(path.to_owned()));
    }
    let fix = Fix { missing: Remedy::Nothing, damaged: Remedy::Nothing };
    let made = disk::read_secret(path, fix, |bytes| {
        let secret = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
        // A public key that was taken for a secret: anyone could sign with it.
        let sound = secret.len() >= MIN_SECRET && !secret.starts_with(b"-----BEGIN");
        Some(sound.then(|| parse(secret)))
    })?;
    let made = made.ok_or_else(|| {
        refused(path, "a shared secret has 32 bytes at least, and is no public key")
    })?;
    Ok(made)
}

fn refused(path: &Path, reason: &'static str) -> ProviderError {
    ProviderError::Content { path: path.to_owned(), reason }
}

/// A public key, PEM ("PUBLIC KEY", RFC 7468, 13).
pub(super) fn public(
    settings: &Path,
    path: &Path,
    algorithm: Algorithm,
) -> Result<VerifyingKey, ProviderError> {
    let text = needed(path, MAX_KEY)?;
    let wrong = || refused(path, "it is no PEM public key (BEGIN PUBLIC KEY) for the algorithm");
    let info = SubjectPublicKeyInfoDer::from_pem_slice(&text).map_err(|_pem| wrong())?;
    let key = SubjectPublicKeyInfoOwned::from_der(&info).map_err(|_der| wrong())?;
    let bits = key.subject_public_key.as_bytes().ok_or_else(wrong)?;
    // RFC 8017, A.1; RFC 5480, 2.1.1 with an uncompressed point of P-256; RFC 8410, 3.
    let key = match (algorithm, key.algorithm.oid.to_string().as_str(), bits.len()) {
        (Algorithm::Rs256, "1.2.840.113549.1.1.1", 256..) => DecodingKey::from_rsa_der(bits),
        (Algorithm::Es256, "1.2.840.10045.2.1", 65) => DecodingKey::from_ec_der(bits),
        (Algorithm::EdDsa, "1.3.101.112", 32) => DecodingKey::from_ed_der(bits),
        _ => return Err(wrong()),
    };
    let mark = KeyMark::of(settings, &info);
    Ok(VerifyingKey { id: None, of_set: false, key, mark })
}

/// The keys of a set that fit the algorithm.
pub(super) fn key_set(
    settings: &Path,
    path: &Path,
    algorithm: Algorithm,
) -> Result<Vec<VerifyingKey>, ProviderError> {
    if algorithm.is_secret() {
        return Err(refused(path, "a shared secret is no key set: name its file as key_file"));
    }
    let text = needed(path, usize::MAX)?;
    let set = sets::parse(&text);
    let set = set.ok_or_else(|| refused(path, "it is no JSON Web Key Set of 1 to 64 keys"))?;
    let made = keys_of(settings, &set, algorithm);
    made.ok_or_else(|| refused(path, "none of its keys is for the algorithm"))
}

/// The keys of a set that fit the algorithm; `None` where there are none.
pub(super) fn keys_of(
    settings: &Path,
    set: &JwkSet,
    algorithm: Algorithm,
) -> Option<Vec<VerifyingKey>> {
    let fit = |jwk| of_set(settings, jwk, algorithm);
    let made: Vec<_> = set.keys.iter().filter_map(fit).collect();
    (!made.is_empty()).then_some(made)
}

fn of_set(settings: &Path, jwk: &Jwk, algorithm: Algorithm) -> Option<VerifyingKey> {
    let fits = match (&jwk.algorithm, algorithm) {
        (AlgorithmParameters::RSA(_), Algorithm::Rs256) => true,
        (AlgorithmParameters::EllipticCurve(it), Algorithm::Es256) => {
            it.curve == EllipticCurve::P256
        }
        (AlgorithmParameters::OctetKeyPair(it), Algorithm::EdDsa) => {
            it.curve == EllipticCurve::Ed25519
        }
        _ => false,
    };
    let common = &jwk.common;
    let declared = common.key_algorithm;
    let (_, wanted) = algorithm.names();
    let signs = common.public_key_use.as_ref().is_none_or(|it| *it == PublicKeyUse::Signature)
        && common.key_operations.as_ref().is_none_or(|it| it.contains(&KeyOperations::Verify));
    if !fits || !signs || declared.is_some_and(|it| it != KeyAlgorithm::from(wanted)) {
        return None;
    }
    let key = DecodingKey::from_jwk(jwk).ok()?;
    let mark = KeyMark::of(settings, &serde_json::to_vec(jwk).ok()?);
    Some(VerifyingKey { id: common.key_id.clone(), of_set: true, key, mark })
}
