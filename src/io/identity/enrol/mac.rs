//! The key that a requester and an issuer share for one request.

use std::fmt;

use aws_lc_rs::hmac;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// A shared key of 256 bits. Wiped when dropped, shown by no `Debug`.
#[derive(Clone)]
pub(in super::super) struct MacKey(Zeroizing<[u8; 32]>);

impl MacKey {
    /// The key that stands for a secret: its SHA-256.
    pub(super) fn of_secret(secret: &[u8]) -> Self {
        Self(Zeroizing::new(Sha256::digest(secret).into()))
    }

    pub(super) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes, for the file of invitations alone.
    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// HMAC-SHA256 of the message (RFC 2104).
    pub(super) fn code(&self, message: &[u8]) -> [u8; 32] {
        let code = hmac::sign(&self.key(), message);
        code.as_ref().try_into().unwrap_or_default()
    }

    /// Whether this is the message's code, in a time that does not depend on how much of it is right.
    pub(super) fn verify(&self, message: &[u8], code: &[u8; 32]) -> bool {
        hmac::verify(&self.key(), message, code).is_ok()
    }

    fn key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, self.0.as_slice())
    }
}

impl fmt::Debug for MacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MacKey(secret)")
    }
}
