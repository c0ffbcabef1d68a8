//! New tokens.

use std::time::{Duration, SystemTime};

use super::super::super::IdentityError;
use super::super::super::disk::Layout;
use super::super::super::tokens::TokenKeys;
use super::super::Authority;
use crate::io::clock::unix_seconds;
use crate::proto::codec::hexadecimal;
use crate::proto::token::{AUDIENCE, Claims, Grant, Role};

impl Authority {
    /// A signed token for `sub`, good from `now` for `lifetime` in whole seconds, with a random id.
    /// Without grants it allows all that the role does.
    ///
    /// Where the key for tokens is missing, a new one is made, and what any other one signed counts no
    /// more; where the list that verifies tokens is missing, it is made anew.
    ///
    /// # Errors
    /// [`KeyFault::Replaced`] when the key that signs is not here;
    /// [`IdentityError::Claims`] when no token may say this, or one this long;
    /// [`IdentityError::Key`] or [`IdentityError::List`] when a file is not fit for use.
    pub fn token(
        &self,
        sub: &str,
        role: Role,
        topics: Vec<Grant>,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<String, IdentityError> {
        let mut id = [0_u8; 16];
        aws_lc_rs::rand::fill(&mut id)
            .map_err(|_unspecified| IdentityError::Crypto("draw random bytes"))?;
        let iat = unix_seconds(now);
        let claims = Claims {
            iss: self.cluster().to_string(),
            aud: AUDIENCE.to_owned(),
            sub: sub.to_owned(),
            jti: hexadecimal(&id),
            iat,
            exp: iat.saturating_add(lifetime.as_secs()),
            role,
            topics,
        };
        claims.check()?;
        let layout = Layout::new(&self.home);
        // The common case needs no lock, and so works in a directory that is read-only.
        let signing = self.token_list(layout)?.and_then(|list| list.signing());
        if let (Ok(keys), Some(id)) = (TokenKeys::read(layout), signing)
            && let Some(key) = keys.take(id)
        {
            return key.sign(&claims);
        }
        let _lock = layout.lock()?;
        let (key, _list) = self.token_files(layout, now)?;
        key.sign(&claims)
    }
}
