//! The authority's tokens: made for clients, and revoked.
//!
//! Owns what is written into tokens and the order in which their files change. Invariants: no token is given
//! out before the list that verifies it is on disk; which key signs is said by the list alone, and by no other key is
//! signed; both change only under the directory's lock; a list that cannot be read is not replaced.

#[cfg(feature = "gateway")]
mod create;
mod rotation;

pub use rotation::TokenRotation;
use std::path::Path;
use std::time::SystemTime;

use super::super::disk::{self, Layout};
use super::super::tokens::{RevokedToken, TokenKey, TokenKeys, TokenList};
use super::super::{IdentityError, KeyFault, ListFault, Remedy};
use super::{Authority, next_number};
use crate::io::clock::unix_seconds;
use crate::proto::lists::ListKind;
use crate::proto::token::check_id;

impl Authority {
    /// Adds a token's id to the list that every node refuses tokens by. It stays there until a while
    /// after `exp`, when the token ends by itself. Without news the file stays as it is.
    ///
    /// # Errors
    /// [`IdentityError::Claims`] when no token has such an id; [`ListFault::Full`];
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
        let mut list = self.any_token_list(layout, now)?;
        let added = list.revoke(jti, unix_seconds(exp), unix_seconds(now));
        if added {
            list = self.next_tokens(layout, list, now)?;
        }
        Ok(RevokedToken {
            added,
            total: list.revoked.len(),
            path: layout.of_authority(disk::TOKENS),
        })
    }

    /// The key that signs tokens and the list that verifies them, each made if need be. The caller
    /// holds the directory's lock, so that of several processes one makes them.
    fn token_files(
        &self,
        layout: Layout<'_>,
        now: SystemTime,
    ) -> Result<(TokenKey, TokenList), IdentityError> {
        let (list, keys) = (self.token_list(layout)?, TokenKeys::read(layout)?);
        let path = layout.of_authority(disk::TOKEN_KEY);
        // Every node has the list of a key that is elsewhere, and a new key would end all tokens.
        if self.root.parent.is_some() && !path.exists() {
            return Err(IdentityError::Missing { path, remedy: Remedy::BringTokenKey });
        }
        let Some(mut list) = list else {
            // The key goes first: one without its list is a state that the next call completes.
            let key = keys.first().map_or_else(|| made(&path), Ok)?;
            let list = TokenList::first(key.id(), now);
            self.write_tokens(layout, &list)?;
            return Ok((key, list));
        };
        if let Some(key) = list.signing().and_then(|id| keys.take(id)) {
            return Ok((key, list));
        }
        if path.exists() {
            return Err(IdentityError::Key {
                path,
                fault: KeyFault::Replaced,
                remedy: Remedy::FetchTokenKey,
            });
        }
        // It was lost, or removed so that every token is refused. The list goes first: while the file is missing, the next
        // call makes another one.
        let key = TokenKey::generate()?;
        list.only(key.id());
        let list = self.next_tokens(layout, list, now)?;
        disk::write(&path, key.to_pem()?.as_bytes(), disk::PRIVATE)?;
        Ok((key, list))
    }

    /// The list that verifies tokens, made if need be, for a caller that holds the lock.
    fn any_token_list(
        &self,
        layout: Layout<'_>,
        now: SystemTime,
    ) -> Result<TokenList, IdentityError> {
        match self.token_list(layout)? {
            Some(list) => Ok(list),
            None => self.token_files(layout, now).map(|(_, list)| list),
        }
    }

    /// Writes the list that follows one.
    fn next_tokens(
        &self,
        layout: Layout<'_>,
        list: TokenList,
        now: SystemTime,
    ) -> Result<TokenList, IdentityError> {
        let number = next_number(list.number, now);
        let list = list.after(number, unix_seconds(now));
        self.write_tokens(layout, &list).map(|()| list)
    }

    pub(super) fn token_list(
        &self,
        layout: Layout<'_>,
    ) -> Result<Option<TokenList>, IdentityError> {
        TokenList::read(layout, &self.verifier)
    }

    /// Signs the list with the key that issues now, if there is one.
    pub(super) fn sign_tokens(
        &self,
        layout: Layout<'_>,
        now: SystemTime,
    ) -> Result<(), IdentityError> {
        let Some(list) = self.token_list(layout)? else { return Ok(()) };
        self.next_tokens(layout, list, now).map(drop)
    }

    pub(super) fn write_tokens(
        &self,
        layout: Layout<'_>,
        list: &TokenList,
    ) -> Result<(), IdentityError> {
        let text = list.signed(self.cluster(), self.issuer.key())?;
        if u64::try_from(text.len()).unwrap_or(u64::MAX) >= disk::MAX_LIST {
            return Err(IdentityError::List {
                kind: ListKind::Tokens,
                path: layout.of_authority(disk::TOKENS),
                fault: ListFault::Full,
                remedy: Remedy::AwaitExpiry,
            });
        }
        disk::write(&layout.of_authority(disk::TOKENS), text.as_bytes(), disk::PUBLIC)
    }
}

/// A new key, in this file.
fn made(path: &Path) -> Result<TokenKey, IdentityError> {
    let key = TokenKey::generate()?;
    disk::write(path, key.to_pem()?.as_bytes(), disk::PRIVATE)?;
    Ok(key)
}
