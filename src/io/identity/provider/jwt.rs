//! JSON Web Tokens (RFC 7519) of another system, those of AshAuthentication among them.
//!
//! AshAuthentication's have as `iss` "AshAuthentication" and its version, as `aud` a version requirement of Elixir such as
//! "~> 4.13", as `sub` a resource and its primary key such as `user?id=7`. Those that are not for a user's session have a
//! claim `act` (confirmation, password reset), or another `purpose` than "user": they open nothing here.

use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::{Validation, decode};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::keys::{Algorithm, VerifyingKey};
use super::remote::RemoteSet;
use super::{KeyMark, Read, TokenError, id_of};
use crate::proto::token::NumericDate;

/// What `iss` of AshAuthentication begins with.
const ASH: &str = "AshAuthentication";

/// Where a provider's keys are from.
pub(super) enum Keys {
    /// Files.
    Read(Vec<VerifyingKey>),
    /// A URL.
    Remote(Arc<RemoteSet>),
}

/// For whom tokens must be.
pub(super) enum Audience {
    /// One of these.
    Among(Vec<String>),
    /// Any audience, or none.
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
    pub(super) keys: Keys,
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
        let among = |keys: &[VerifyingKey]| keys.iter().any(|key| key.mark == mark);
        match &self.keys {
            Keys::Read(keys) => among(keys),
            Keys::Remote(set) => set.keys().is_some_and(|keys| among(&keys)),
        }
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
        let (name, _) = self.algorithm.names();
        if header.alg != name {
            return Err(TokenError::Algorithm);
        }
        // Extensions that must be understood (RFC 7515, 4.1.11), of which none is.
        if header.crit.is_some() {
            return Err(TokenError::Malformed);
        }
        match &self.keys {
            Keys::Read(keys) => self.verify_by(token, header, keys),
            Keys::Remote(set) => {
                let keys = set.keys().ok_or(TokenError::NoKeySet)?;
                let read = self.verify_by(token, header, &keys);
                if matches!(read, Err(TokenError::UnknownKey)) {
                    set.miss();
                }
                read
            }
        }
    }

    fn verify_by(
        &self,
        token: &str,
        header: &Header,
        keys: &[VerifyingKey],
    ) -> Result<Read, TokenError> {
        let (_, algorithm) = self.algorithm.names();
        let mut rules = Validation::new(algorithm);
        rules.set_required_spec_claims::<&str>(&[]);
        // These are judged below, by the caller's clock.
        (rules.validate_exp, rules.validate_nbf, rules.validate_aud) = (false, false, false);
        let named =
            |key: &&VerifyingKey| !key.of_set || header.kid.is_none() || key.id == header.kid;
        let mut refused = TokenError::UnknownKey;
        for key in keys.iter().filter(named) {
            match decode::<Value>(token, &key.key, &rules) {
                Ok(read) => return self.claims(token, read.claims, key.mark),
                Err(_other) => refused = TokenError::Signature,
            }
        }
        Err(refused)
    }

    fn claims(&self, token: &str, claims: Value, key: KeyMark) -> Result<Read, TokenError> {
        let registered = Registered::deserialize(&claims).map_err(|_type| TokenError::Malformed)?;
        // AshAuthentication of another version is the same issuer.
        let issuer = self.issuer.clone().unwrap_or_else(|| ASH.to_owned());
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

/// A version requirement as Elixir's Version has them: comparisons with `and` and `or` between them. Of a version the patch may
/// be missing.
fn is_requirement(text: &str) -> bool {
    // The longer ones first, since one begins with the other.
    const OPERATORS: [&str; 7] = ["~>", "==", "!=", ">=", "<=", ">", "<"];
    let compares = |text: &str| {
        let version = OPERATORS.iter().find_map(|it| text.trim().strip_prefix(it));
        version.is_some_and(|version| is_version(version.trim_start()))
    };
    text.split(" or ").flat_map(|it| it.split(" and ")).all(compares)
}

/// A version (Semantic Versioning 2.0.0), perhaps without its patch.
fn is_version(text: &str) -> bool {
    let identifiers = |text: &str| {
        let plain = |it: u8| it.is_ascii_alphanumeric() || it == b'-';
        text.split('.').all(|it| !it.is_empty() && it.bytes().all(plain))
    };
    let (text, build) = text.split_once('+').unwrap_or((text, "0"));
    let (numbers, pre) = text.split_once('-').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|it| it.is_ascii_digit());
    let many = numbers.split('.').count();
    (2..=3).contains(&many)
        && numbers.split('.').all(digits)
        && [build, pre].map(identifiers) == [true; 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audience_of_ash_is_a_version_requirement() {
        for good in [
            "~> 4.13",
            "~> 4.13.7",
            "~> 0.1",
            "~>4.13",
            ">= 4.13",
            "~> 4.13 and != 4.13.5",
            ">= 4.13.0 and < 5.0.0 or == 6.0.0-rc.1+build.7",
            "<= 1.0",
            "> 1.0.0-dev",
        ] {
            assert!(is_requirement(good), "{good}");
        }
        for bad in [
            "",
            "4.13",
            "~> 4",
            "~> 4.13.1.2",
            "~> a.b",
            "~> 4.",
            ">= 4.13 and",
            "~> -1.2",
            "or",
            "~> 4.13 or  or ~> 5.0",
            "~> 4.13-",
            "~> 4.13-a..b",
            "~> 4.13+",
            "=> 1.0",
            "~> 1.0 ~> 2.0",
        ] {
            assert!(!is_requirement(bad), "{bad}");
        }
    }
}
