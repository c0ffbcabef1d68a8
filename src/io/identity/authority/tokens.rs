//! The authority's tokens: made for clients, and revoked.
//!
//! Owns what is written into tokens and the order in which their files change. Invariants: no token is given
//! out before the list that verifies it is on disk; the key that is on disk is the one that counts, and the
//! list follows it; both change only under the directory's lock; a list that cannot be read is not replaced.

#[cfg(feature = "gateway")]
mod create;

use std::time::SystemTime;

use super::super::IdentityError;
use super::super::disk::{self, Layout};
use super::super::tokens::{RevokedToken, TokenKey, TokenList};
use super::{Authority, next_number};
use crate::io::clock::unix_seconds;
use crate::proto::token::check_id;

impl Authority {
    /// Adds a token's id to the list that every node refuses tokens by. It stays there until a while
    /// after `exp`, when the token ends by itself. Without news the file stays as it is.
    ///
    /// # Errors
    /// [`IdentityError::Claims`] when no token has such an id; [`IdentityError::TokensFull`];
    /// otherwise as [`Authority::token`]. Nothing is revoked then.
    pub fn revoke_token(
        &self,
        jti: &str,
        exp: SystemTime,
        now: SystemTime,
    ) -> Result<RevokedToken, IdentityError> {
        check_id(jti)?;
        let layout = Layout::new(&self.home);
        let _lock = layout.lock()?;
        let (key, mut list) = self.token_files(layout, now)?;
        let added = list.revoke(jti, unix_seconds(exp), unix_seconds(now));
        if added {
            let number = next_number(list.number, now);
            list = list.after(number, &key, unix_seconds(now));
            self.write_tokens(layout, &list)?;
        }
        Ok(RevokedToken {
            added,
            total: list.revoked.len(),
            path: layout.of_authority(disk::TOKENS),
        })
    }

    /// The key that signs tokens and the list that verifies them, each made if need be. The caller
    /// holds the directory's lock, so that of several processes one makes them.
    pub(super) fn token_files(
        &self,
        layout: Layout<'_>,
        now: SystemTime,
    ) -> Result<(TokenKey, TokenList), IdentityError> {
        let list = self.token_list(layout)?;
        let key = match TokenKey::read(layout) {
            Ok(key) => key,
            Err(IdentityError::Missing { .. }) => {
                // The key goes first: one without its list is a state that the next call completes.
                let key = TokenKey::generate()?;
                disk::write(
                    &layout.of_authority(disk::TOKEN_KEY),
                    key.to_pem()?.as_bytes(),
                    disk::PRIVATE,
                )?;
                key
            }
            Err(other) => return Err(other),
        };
        let list = match list {
            Some(list) if list.is_for(&key) => return Ok((key, list)),
            Some(list) => {
                let number = next_number(list.number, now);
                list.after(number, &key, unix_seconds(now))
            }
            None => TokenList::first(&key, now),
        };
        self.write_tokens(layout, &list)?;
        Ok((key, list))
    }

    fn token_list(&self, layout: Layout<'_>) -> Result<Option<TokenList>, IdentityError> {
        TokenList::read(layout, &self.verifier)
    }

    /// Signs the list with the key that issues now, if there is one.
    pub(super) fn sign_tokens(
        &self,
        layout: Layout<'_>,
        now: SystemTime,
    ) -> Result<(), IdentityError> {
        let Some(mut list) = self.token_list(layout)? else { return Ok(()) };
        list.number = next_number(list.number, now);
        self.write_tokens(layout, &list)
    }

    pub(super) fn write_tokens(
        &self,
        layout: Layout<'_>,
        list: &TokenList,
    ) -> Result<(), IdentityError> {
        let text = list.signed(self.cluster(), self.issuer.key())?;
        if u64::try_from(text.len()).unwrap_or(u64::MAX) >= disk::MAX_LIST {
            return Err(IdentityError::TokensFull(layout.of_authority(disk::TOKENS)));
        }
        disk::write(&layout.of_authority(disk::TOKENS), text.as_bytes(), disk::PUBLIC)
    }
}
