//! JSON Web Tokens (RFC 7519) of another system, those of AshAuthentication among them.
//!
//! AshAuthentication's have as `iss` "AshAuthentication" and its version, as `aud` a version requirement of Elixir such as
//! "~> 4.13", as `sub` a resource and its primary key such as `user?id=7`. Those that are not for a user's session have a
//! claim `act` (confirmation, password reset), or another `purpose` than "user": they open nothing here.

use std::io::ErrorKind;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{DecodingKey, Validation, decode};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use x509_cert::der::Decode;
use x509_cert::spki::SubjectPublicKeyInfoOwned;

use super::super::Remedy;
use super::super::disk::{self, Fix};
use super::key_set as sets;
use super::{KeyMark, ProviderError, Read, TokenError, id_of, needed};
use crate::proto::token::NumericDate;

/// Shortest shared secret, in bytes: as long as the shortest hash (RFC 7518, 3.2).
pub(super) const MIN_SECRET: usize = 32;
/// Longest file of a public key, in bytes.
const MAX_KEY: usize = 16 * 1024;
/// What `iss` of AshAuthentication begins with.
const ASH: &str = "AshAuthentication";

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
    fn names(self) -> (&'static str, jsonwebtoken::Algorithm) {
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
    id: Option<String>,
    /// Whether it is of a set: a token that names a key then means that one.
    of_set: bool,
    key: DecodingKey,
    mark: KeyMark,
}

/// For whom tokens must be.
pub(super) enum Audience {
    /// One of these.
    Among(Vec<String>),
    /// Whoever, or nobody.
    Any,
    /// A version requirement, as AshAuthentication has it.
    VersionRequirement,
}

/// What AshAuthentication's tokens must be besides.
pub(super) struct AshRules {
    /// Tenants whose tokens count, or `*`. One without a tenant counts.
    pub(super) tenants: Vec<String>,
    /// Purposes that count. One without a purpose counts.
    pub(super) purposes: Vec<String>,
}

/// By what a provider's tokens are judged.
pub(super) struct JwtRules {
    /// What `iss` must be; `None`: begin with AshAuthentication.
    pub(super) issuer: Option<String>,
    pub(super) algorithm: Algorithm,
    pub(super) keys: Vec<VerifyingKey>,
    pub(super) audience: Audience,
    /// In seconds.
    pub(super) leeway: u64,
    pub(super) ash: Option<AshRules>,
}

/// What a token says of itself before anything is verified: by this it only finds its provider.
pub(super) struct Seen {
    header: Header,
    issuer: String,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Issuer {
    iss: String,
}

/// The claims that have a meaning for every token (RFC 7519, 4.1).
#[derive(Deserialize)]
struct Registered {
    jti: Option<String>,
    exp: NumericDate,
    nbf: Option<NumericDate>,
    iat: Option<NumericDate>,
}

impl Seen {
    /// `None` for what is no JSON Web Token with an issuer.
    pub(super) fn of(token: &str) -> Option<Self> {
        let mut parts = token.split('.');
        let (header, claims, _signature) = (parts.next()?, parts.next()?, parts.next()?);
        let read = |part| BASE64_URL_SAFE_NO_PAD.decode(part).ok();
        let header = serde_json::from_slice(&read(header)?).ok()?;
        let Issuer { iss } = serde_json::from_slice(&read(claims)?).ok()?;
        parts.next().is_none().then_some(Self { header, issuer: iss })
    }
}

impl JwtRules {
    pub(super) fn has(&self, mark: KeyMark) -> bool {
        self.keys.iter().any(|key| key.mark == mark)
    }

    /// What a token says; `None` when it is of another issuer.
    pub(super) fn read(&self, token: &str, seen: &Seen) -> Option<Result<Read, TokenError>> {
        let own = match &self.issuer {
            Some(issuer) => seen.issuer == *issuer,
            None => seen.issuer.starts_with(ASH),
        };
        own.then(|| self.verify(token, &seen.header))
    }

    fn verify(&self, token: &str, header: &Header) -> Result<Read, TokenError> {
        let (name, algorithm) = self.algorithm.names();
        if header.alg != name {
            return Err(TokenError::Algorithm);
        }
        // Extensions that must be understood (RFC 7515, 4.1.11), of which none is.
        if header.crit.is_some() {
            return Err(TokenError::Malformed);
        }
        let mut rules = Validation::new(algorithm);
        rules.set_required_spec_claims::<&str>(&[]);
        // These are judged below, by the caller's clock.
        (rules.validate_exp, rules.validate_nbf, rules.validate_aud) = (false, false, false);
        let named =
            |key: &&VerifyingKey| !key.of_set || header.kid.is_none() || key.id == header.kid;
        let mut refused = TokenError::UnknownKey;
        for key in self.keys.iter().filter(named) {
            match decode::<Value>(token, &key.key, &rules) {
                Ok(read) => return self.claims(token, read.claims, key.mark),
                Err(_other) => refused = TokenError::Signature,
            }
        }
        Err(refused)
    }

    fn claims(&self, token: &str, claims: Value, key: KeyMark) -> Result<Read, TokenError> {
        let registered = Registered::deserialize(&claims).map_err(|_type| TokenError::Malformed)?;
        let issuer = claims.get("iss").and_then(Value::as_str).unwrap_or_default().to_owned();
        if !self.is_for_us(claims.get("aud").unwrap_or(&Value::Null)) {
            return Err(TokenError::NotForUs);
        }
        if let Some(rules) = &self.ash {
            rules.check(&claims)?;
        }
        let whole = |date: NumericDate, up| date.seconds(up).ok_or(TokenError::Malformed);
        // The year 9999 is far enough for any sum.
        let expires = whole(registered.exp, false)? + self.leeway;
        let made = registered.iat.map(|iat| whole(iat, false)).transpose()?;
        let begins = registered.nbf.map(|nbf| whole(nbf, true)).transpose()?;
        let (signed, _signature) = token.rsplit_once('.').unwrap_or_default();
        let jti = registered.jti.or_else(|| Some(id_of(signed)));
        let begins = begins.map(|begins| begins.saturating_sub(self.leeway));
        Ok(Read { claims, usual: "sub", issuer, jti, made, begins, expires, key })
    }

    fn is_for_us(&self, aud: &Value) -> bool {
        let names = |name: &Value| match (&self.audience, name.as_str()) {
            (Audience::Any, _) => true,
            (Audience::Among(all), Some(name)) => all.iter().any(|it| it == name),
            (Audience::VersionRequirement, Some(name)) => is_requirement(name),
            (Audience::Among(_) | Audience::VersionRequirement, None) => false,
        };
        match aud {
            Value::Array(all) => matches!(self.audience, Audience::Any) || all.iter().any(names),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Object(_) => names(aud),
        }
    }
}

impl AshRules {
    fn check(&self, claims: &Value) -> Result<(), TokenError> {
        let among = |claim: &str, all: &[String]| match claims.get(claim) {
            None | Some(Value::Null) => true,
            Some(Value::String(text)) => all.iter().any(|it| it == text || it == "*"),
            Some(Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => false,
        };
        let session = claims.get("act").is_none() && among("purpose", &self.purposes);
        let ours = among("tenant", &self.tenants);
        if session && ours { Ok(()) } else { Err(TokenError::NotForUs) }
    }
}

/// `~> MAJOR.MINOR`, perhaps with a patch version (Elixir's Version).
fn is_requirement(text: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|it| it.is_ascii_digit());
    let numbers = text.strip_prefix("~> ").map(|it| it.split('.').map(digits).collect::<Vec<_>>());
    numbers.is_some_and(|it| [2, 3].contains(&it.len()) && !it.contains(&false))
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
    let made: Vec<_> = set.keys.iter().filter_map(|jwk| of_set(settings, jwk, algorithm)).collect();
    match made.is_empty() {
        false => Ok(made),
        true => Err(refused(path, "none of its keys is for the algorithm")),
    }
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
    let signs = common.public_key_use.as_ref().is_none_or(|it| *it == PublicKeyUse::Signature);
    if !fits || !signs || declared.is_some_and(|it| it != KeyAlgorithm::from(wanted)) {
        return None;
    }
    let key = DecodingKey::from_jwk(jwk).ok()?;
    let mark = KeyMark::of(settings, &serde_json::to_vec(jwk).ok()?);
    Some(VerifyingKey { id: common.key_id.clone(), of_set: true, key, mark })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audience_of_ash_is_a_version_requirement() {
        for good in ["~> 4.13", "~> 4.13.7", "~> 0.1"] {
            assert!(is_requirement(good), "{good}");
        }
        for bad in
            ["", "4.13", "~> 4", "~>4.13", "~> 4.13.1.2", "~> a.b", "~> 4.", ">= 4.13", "~> -1.2"]
        {
            assert!(!is_requirement(bad), "{bad}");
        }
    }
}
