//! Tokens as JSON Web Tokens: signed by the authority, read by every node that serves clients.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::Deserialize;

use super::super::IdentityError;
use super::{MAX_TOKEN, TokenError, TokenKey, Tokens};
use crate::io::clock::unix_seconds;
use crate::proto::token::{AUDIENCE, Claims, NumericDate, TokenKeyId};

/// What is read of a token.
#[derive(Deserialize)]
struct Received {
    #[serde(flatten)]
    claims: Claims,
    /// Tokens made here have none.
    nbf: Option<NumericDate>,
}

/// Whose it claims to be.
#[derive(Deserialize)]
struct Issuer {
    iss: String,
}

impl Tokens {
    /// What the token says, if it counts at `now`.
    ///
    /// # Errors
    /// Each [`TokenError`]. After [`TokenError::NoKey`] a [`Tokens::look`] may help at once.
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<Claims, TokenError> {
        self.verify_signed(token, now).map(|(claims, _)| claims)
    }

    /// As [`Tokens::verify`], and which key has signed it: once that [counts no more](Tokens::counts), the token does not either.
    ///
    /// # Errors
    /// As [`Tokens::verify`].
    pub fn verify_signed(
        &self,
        token: &str,
        now: SystemTime,
    ) -> Result<(Claims, TokenKeyId), TokenError> {
        let (Received { claims, nbf }, key) = self.read(token, now)?;
        if now >= claims.expires() {
            return Err(TokenError::Expired);
        }
        let begins =
            |nbf: NumericDate| UNIX_EPOCH.checked_add(Duration::from_secs(nbf.seconds(true)?));
        if nbf.is_some_and(|nbf| begins(nbf).is_none_or(|begins| now < begins)) {
            return Err(TokenError::NotYetValid);
        }
        if self.revoked(&claims.jti) {
            return Err(TokenError::Revoked);
        }
        Ok((claims, key))
    }

    /// What a token of this cluster says, whether or not it still counts, and which key has signed it, which counts at `now`.
    ///
    /// # Errors
    /// [`TokenError::Malformed`], [`TokenError::Signature`], [`TokenError::UnknownIssuer`],
    /// [`TokenError::NotForUs`] or [`TokenError::NoKey`].
    pub fn claims(&self, token: &str, now: SystemTime) -> Result<Claims, TokenError> {
        self.read(token, now).map(|(received, _)| received.claims)
    }

    /// Reads a token by each key in turn: a header may name one, but is not to be believed, and there are few.
    fn read(&self, token: &str, now: SystemTime) -> Result<(Received, TokenKeyId), TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::Malformed);
        }
        let Some(list) = self.0.token_list() else {
            return Err(self.foreign(token).unwrap_or(TokenError::NoKey));
        };
        let rules = self.rules();
        let mut refused = TokenError::Signature;
        for id in list.keys(unix_seconds(now)) {
            match decode::<Received>(token, &DecodingKey::from_ed_der(&id.0), &rules) {
                // Extensions that must be understood (RFC 7515, 4.1.11), of which none is.
                Ok(read) if read.header.crit.is_some() => return Err(TokenError::Malformed),
                Ok(read) => return Ok((read.claims, id)),
                Err(error) => refused = reason(&error),
            }
            if refused != TokenError::Signature {
                return Err(refused);
            }
        }
        Err(self.foreign(token).unwrap_or(refused))
    }

    /// That a token names another issuer than this cluster, whether or not it is that one's.
    fn foreign(&self, token: &str) -> Option<TokenError> {
        let mut parts = token.split('.');
        let (_header, claims, _signature) = (parts.next()?, parts.next()?, parts.next()?);
        let claims = BASE64_URL_SAFE_NO_PAD.decode(claims).ok()?;
        let Issuer { iss } = serde_json::from_slice(&claims).ok()?;
        let other = parts.next().is_none() && iss != self.0.verifier().cluster().to_string();
        other.then_some(TokenError::UnknownIssuer)
    }

    /// What every token must say, and be signed with.
    fn rules(&self) -> Validation {
        let mut rules = Validation::new(Algorithm::EdDSA);
        rules.set_audience(&[AUDIENCE]);
        rules.set_issuer(&[self.0.verifier().cluster().to_string()]);
        rules.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        // The library would ask the system for the time; ours comes from the caller.
        rules.validate_exp = false;
        rules.validate_nbf = false;
        rules
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the library adds variants")]
fn reason(error: &Error) -> TokenError {
    match error.kind() {
        ErrorKind::InvalidSignature | ErrorKind::InvalidAlgorithm => TokenError::Signature,
        ErrorKind::InvalidIssuer | ErrorKind::InvalidAudience => TokenError::NotForUs,
        _ => TokenError::Malformed,
    }
}

impl TokenKey {
    /// A token that says this: JWS compact serialization (RFC 7515, 7.1).
    pub(in super::super) fn sign(&self, claims: &Claims) -> Result<String, IdentityError> {
        let key = EncodingKey::from_ed_der(self.private());
        let token = encode(&Header::new(Algorithm::EdDSA), claims, &key)
            .map_err(|_refused| IdentityError::Crypto("sign"))?;
        if token.len() > MAX_TOKEN {
            Err(IdentityError::TokenTooLong(MAX_TOKEN))
        } else {
            Ok(token)
        }
    }
}
