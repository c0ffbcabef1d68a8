//! Tokens as `Phoenix.Token.sign/4` makes them.
//!
//! A token is three parts in Base64 (RFC 4648, 5, without padding) with dots between them: the text `HS256`, an Erlang term
//! (`proto::term`), and the HMAC-SHA256 of the two parts before it. The term is `{data, signed_at, max_age}`, in milliseconds
//! and seconds; older ones are `{data, signed_at}`. The key is derived from the application's `secret_key_base` and a salt by
//! PBKDF2 (RFC 8018, 5.2). Source: Plug.Crypto and Plug.Crypto.MessageVerifier 2.1.

use std::num::NonZeroU32;
use std::path::Path;

use aws_lc_rs::{hmac, pbkdf2};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::Value;
use zeroize::Zeroizing;

use super::keys::read_secret;
use super::{KeyMark, ProviderError, Read, TokenError, id_of};
use crate::proto::term;
use crate::proto::token::MAX_LIFETIME;

/// The first parts that there are: HS256, which Phoenix.Token makes, HS384 and HS512.
const PROTECTED: [&str; 3] = ["SFMyNTY", "SFMzODQ", "SFM1MTI"];
/// How long a token lasts that does not say so, in seconds: as in Phoenix.
const MAX_AGE: u64 = 86_400;
/// Most rounds of the derivation, which is done whenever the files change.
const MAX_ITERATIONS: u32 = 1_000_000;

/// How the key is made of the secret.
pub(super) struct Derivation {
    pub(super) salt: String,
    pub(super) iterations: u32,
    /// In bytes.
    pub(super) length: usize,
    pub(super) digest: String,
}

/// By what tokens are judged.
pub(super) struct PhoenixRules {
    key: hmac::Key,
    mark: KeyMark,
    /// In seconds; `None`: as the token says.
    max_age: Option<u64>,
    leeway: u64,
}

impl PhoenixRules {
    pub(super) fn new(
        settings: &Path,
        secret: &Path,
        derivation: &Derivation,
        max_age: Option<u64>,
        leeway: u64,
    ) -> Result<Self, ProviderError> {
        let refuse = |reason: &str| {
            let (path, reason) = (settings.to_owned(), reason.to_owned());
            ProviderError::Settings { path, reason }
        };
        let algorithm = match derivation.digest.as_str() {
            "sha256" => pbkdf2::PBKDF2_HMAC_SHA256,
            "sha384" => pbkdf2::PBKDF2_HMAC_SHA384,
            "sha512" => pbkdf2::PBKDF2_HMAC_SHA512,
            _ => return Err(refuse("key_digest is sha256, sha384 or sha512")),
        };
        let iterations = NonZeroU32::new(derivation.iterations)
            .filter(|it| it.get() <= MAX_ITERATIONS)
            .ok_or_else(|| refuse("key_iterations is 1 to 1000000"))?;
        if !(16..=128).contains(&derivation.length) {
            return Err(refuse("key_length is 16 to 128 bytes"));
        }
        let longest = MAX_LIFETIME.as_secs();
        if max_age.is_some_and(|it| !(1..=longest).contains(&it)) {
            return Err(refuse("max_age is 1 second to 366 days"));
        }
        let made = read_secret(secret, |secret| {
            let mut key = Zeroizing::new(vec![0; derivation.length]);
            let salt = derivation.salt.as_bytes();
            pbkdf2::derive(algorithm, iterations, salt, secret, &mut key);
            let mark = KeyMark::of(settings, &key);
            let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
            Some(Self { key, mark, max_age, leeway })
        })?;
        made.ok_or_else(|| refuse("the secret cannot be used"))
    }

    pub(super) fn has(&self, mark: KeyMark) -> bool {
        self.mark == mark
    }

    /// What a token says; `None` when it is none of this kind.
    pub(super) fn read(&self, token: &str) -> Option<Result<Read, TokenError>> {
        let mut parts = token.split('.');
        let (protected, term, signature) = (parts.next()?, parts.next()?, parts.next()?);
        let own = PROTECTED.contains(&protected) && parts.next().is_none();
        own.then(|| self.verify(token, protected, term, signature))
    }

    fn verify(
        &self,
        token: &str,
        protected: &str,
        term: &str,
        signature: &str,
    ) -> Result<Read, TokenError> {
        if Some(&protected) != PROTECTED.first() {
            return Err(TokenError::Algorithm);
        }
        let read =
            |part| BASE64_URL_SAFE_NO_PAD.decode(part).map_err(|_text| TokenError::Malformed);
        let (term, signature) = (read(term)?, read(signature)?);
        let (signed, _signature) = token.rsplit_once('.').unwrap_or_default();
        hmac::verify(&self.key, signed.as_bytes(), &signature)
            .map_err(|_unspecified| TokenError::Signature)?;
        // Only now is it read: a term of a stranger costs nothing.
        let term = term::read(&term).map_err(|_term| TokenError::Malformed)?;
        let (data, signed_at, max_age) = parts_of(term).ok_or(TokenError::Malformed)?;
        let max_age = self.max_age.or(max_age).ok_or(TokenError::Malformed)?;
        if max_age == 0 {
            return Err(TokenError::Expired);
        }
        // Downwards: a token never counts for longer than it does in Phoenix.
        let expires = signed_at.saturating_add(max_age.saturating_mul(1000)) / 1000;
        Ok(Read {
            claims: data,
            usual: "",
            issuer: "Phoenix.Token".to_owned(),
            jti: Some(id_of(signed)),
            made: Some(signed_at / 1000),
            // One that was signed later than now is invalid in Phoenix, too.
            begins: Some((signed_at / 1000).saturating_sub(self.leeway)),
            expires: expires.saturating_add(self.leeway),
            key: self.mark,
        })
    }
}

/// The data, the time when it was signed in milliseconds since 1970, and how long it lasts in seconds, if that has an end.
fn parts_of(term: Value) -> Option<(Value, u64, Option<u64>)> {
    let (data, signed_at, max_age) = match term {
        Value::Array(parts) => {
            let mut parts = parts.into_iter();
            let (data, signed_at, max_age) = (parts.next()?, parts.next()?, parts.next());
            (parts.next().is_none()).then_some((data, signed_at, max_age))?
        }
        Value::Object(mut map) => (map.remove("data")?, map.remove("signed")?, None),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => return None,
    };
    let max_age = match max_age {
        None => Some(MAX_AGE),
        Some(Value::String(forever)) if forever == "infinity" => None,
        Some(Value::Number(number)) if number.is_f64() => {
            let whole = number.as_f64()?.floor();
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "from 0 to a lifetime"
            )]
            let seconds = whole.clamp(0.0, MAX_LIFETIME.as_secs_f64()) as u64;
            Some(seconds)
        }
        // A negative one has ended.
        Some(Value::Number(number)) => Some(number.as_u64().unwrap_or(0)),
        Some(
            Value::Null | Value::Bool(_) | Value::String(_) | Value::Array(_) | Value::Object(_),
        ) => return None,
    };
    Some((data, signed_at.as_u64()?, max_age))
}
