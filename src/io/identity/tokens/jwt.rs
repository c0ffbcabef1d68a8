//! Tokens as JSON Web Tokens: signed by the authority, read by every node that serves clients.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::Deserialize;

use super::super::IdentityError;
use super::{MAX_TOKEN, TokenError, TokenKey, Tokens};
use crate::proto::token::{AUDIENCE, Claims, NumericDate};

/// What is read of a token.
#[derive(Deserialize)]
struct Received {
    #[serde(flatten)]
    claims: Claims,
    /// Tokens made here have none.
    nbf: Option<NumericDate>,
}

impl Tokens {
    /// What the token says, if it counts at `now`.
    ///
    /// # Errors
    /// Each [`TokenError`]. After [`TokenError::NoKey`] a [`Tokens::look`] may help at once.
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<Claims, TokenError> {
        let Received { claims, nbf } = self.read(token)?;
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
        Ok(claims)
    }

    /// What a token of this cluster says, whether or not it still counts.
    ///
    /// # Errors
    /// [`TokenError::Malformed`], [`TokenError::Signature`], [`TokenError::NotForUs`] or
    /// [`TokenError::NoKey`].
    pub fn claims(&self, token: &str) -> Result<Claims, TokenError> {
        self.read(token).map(|received| received.claims)
    }

    fn read(&self, token: &str) -> Result<Received, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::Malformed);
        }
        let Some(list) = self.0.token_list() else { return Err(TokenError::NoKey) };
        let key = DecodingKey::from_ed_der(&list.key);
        let read = decode::<Received>(token, &key, &self.rules());
        let read = read.map_err(|error| reason(&error))?;
        // Extensions that must be understood (RFC 7515, 4.1.11), of which none is.
        if read.header.crit.is_some() {
            return Err(TokenError::Malformed);
        }
        Ok(read.claims)
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
        if token.len() > MAX_TOKEN { Err(IdentityError::TokenTooLong) } else { Ok(token) }
    }
}
