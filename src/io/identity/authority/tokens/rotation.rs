//! A new key for tokens in place of the one before, while clients are served.
//!
//! Owns the steps, each a token list of its own:
//!
//! ```text
//! begin    old signs, new counts         every node comes to know the new key; it lies in ca/next-token.key
//! move     new signs, old counts still   until the last token that old can have signed has ended
//! only     new signs, old counts no more
//! abort    old signs, new is forgotten   before it has signed anything
//! ```
//!
//! Invariants: a step changes the list in one write, before which nothing has happened and after which the step is done,
//! whatever becomes of this process; the private key is on disk before the list names it; only one key is on its way at a time.
//! When a new key may sign is for the caller to know: nodes that do not have its list refuse what it signs.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::super::{Authority, RotationError};
use crate::io::clock::unix_seconds;
use crate::io::identity::disk::{self, Layout};
use crate::io::identity::tokens::{MAX_FORMER, NextKey, TokenKeys, TokenList};
use crate::io::identity::{IdentityError, KeyFault, Lists, Remedy};
use crate::proto::token::TokenKeyId;

/// The keys of tokens, as the list in force names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRotation {
    /// The key that signs.
    pub signs: TokenKeyId,
    /// The key that is to sign, when its rotation began, and who began it.
    pub next: Option<(TokenKeyId, SystemTime, String)>,
    /// Keys that have signed and count still, the latest first, each with the instant from which on it counts no more.
    pub former: Vec<(TokenKeyId, SystemTime)>,
}

fn instant(seconds: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(UNIX_EPOCH)
}

impl Lists {
    /// The keys of tokens, and how far their rotation is; `None` without a token list.
    pub fn token_rotation(&self, now: SystemTime) -> Option<TokenRotation> {
        let list = self.token_list()?;
        let former = list.former.iter().filter(|(_, until)| unix_seconds(now) < *until);
        let next = list.next.as_ref();
        Some(TokenRotation {
            signs: list.key,
            next: next.map(|next| (next.key, instant(next.began), next.by.clone())),
            former: former.map(|(key, until)| (*key, instant(*until))).collect(),
        })
    }
}

impl Authority {
    /// Makes a key that is to sign tokens once every node knows it. Tokens of it count from now on.
    ///
    /// # Errors
    /// [`RotationError::TokensUnderWay`] when there is such a key already: who made it, and when.
    /// [`RotationError::TokenKeysFull`]. Nothing is changed then.
    pub fn begin_tokens(&self, by: &str, now: SystemTime) -> Result<(), RotationError> {
        self.change_tokens(now, |authority, layout, list| {
            if let Some(NextKey { began, by, .. }) = &list.next {
                return Err(RotationError::TokensUnderWay {
                    by: by.clone(),
                    began: instant(*began),
                });
            }
            if let (MAX_FORMER.., Some((_, until))) = (list.former.len(), list.former.last()) {
                return Err(RotationError::TokenKeysFull { until: instant(*until) });
            }
            // The key that signs may still lie where the next one comes.
            authority.put_token_key(layout, list)?;
            let key = super::made(&layout.of_authority(disk::NEXT_TOKEN_KEY))?.id();
            let by = by.chars().filter(|c| !c.is_control()).take(200).collect();
            list.next = Some(NextKey { key, began: unix_seconds(now), by });
            Ok(())
        })
    }

    /// Has the next key sign, which is `to`, from now on. Every node should know it by now. Tokens of the key before count until
    /// they end.
    ///
    /// # Errors
    /// [`RotationError::NoTokens`], also when another key is the next one meanwhile; [`KeyFault::Replaced`] when the
    /// key is not here. Nothing is changed then.
    pub fn move_tokens(&self, to: TokenKeyId, now: SystemTime) -> Result<(), RotationError> {
        self.change_tokens(now, |_, layout, list| {
            list.next.as_ref().filter(|next| next.key == to).ok_or(RotationError::NoTokens)?;
            check_here(layout, to)?;
            list.advance(unix_seconds(now));
            Ok(())
        })
    }

    /// Has one key alone count from now on, and never another one again: the next one where there is one, otherwise the one
    /// that signs when there are former ones, otherwise a new one.
    ///
    /// # Errors
    /// [`KeyFault::Replaced`] when the key is not here. Nothing is changed then.
    pub fn drop_tokens(&self, now: SystemTime) -> Result<(), RotationError> {
        self.change_tokens(now, |authority, layout, list| {
            let key = match &list.next {
                Some(next) => next.key,
                None if !list.former.is_empty() => list.key,
                None => {
                    authority.put_token_key(layout, list)?;
                    super::made(&layout.of_authority(disk::NEXT_TOKEN_KEY))?.id()
                }
            };
            check_here(layout, key)?;
            list.only(key);
            Ok(())
        })
    }

    /// Forgets the next key, which has signed nothing.
    ///
    /// # Errors
    /// [`RotationError::NoTokens`]. Nothing is changed then.
    pub fn abort_tokens(&self, now: SystemTime) -> Result<(), RotationError> {
        self.change_tokens(now, |_, _, list| {
            list.next.take().map(drop).ok_or(RotationError::NoTokens)
        })
    }

    /// Writes the next token list, under the directory's lock.
    fn change_tokens(
        &self,
        now: SystemTime,
        change: impl FnOnce(&Self, Layout<'_>, &mut TokenList) -> Result<(), RotationError>,
    ) -> Result<(), RotationError> {
        let layout = Layout::new(&self.home);
        let _lock = layout.lock()?;
        // Another process may have changed what issues since this authority was opened.
        let present = Self::open(&self.home)?;
        let list = present.any_token_list(layout, now)?;
        let number = list.number;
        let mut list = list.after(number, unix_seconds(now));
        change(&present, layout, &mut list)?;
        let list = present.next_tokens(layout, list, now)?;
        if list.next.is_none() {
            present.put_token_key(layout, &list)?;
        }
        Ok(())
    }

    /// Puts the key that signs in its place, and removes the one that shall never sign, for a caller that holds the lock, while
    /// no key is on its way.
    fn put_token_key(&self, layout: Layout<'_>, list: &TokenList) -> Result<(), IdentityError> {
        let [key, next] =
            [disk::TOKEN_KEY, disk::NEXT_TOKEN_KEY].map(|file| layout.of_authority(file));
        let lies_there =
            TokenKeys::read(layout)?.first().is_some_and(|first| first.id() == list.key);
        if lies_there || TokenKeys::read(layout)?.take(list.key).is_none() {
            return disk::remove(&next);
        }
        disk::rename(&next, &key)
    }
}

/// Refuses a key whose private half is not here.
fn check_here(layout: Layout<'_>, key: TokenKeyId) -> Result<(), IdentityError> {
    let here = TokenKeys::read(layout)?.take(key).is_some();
    here.then_some(()).ok_or_else(|| IdentityError::Key {
        path: layout.of_authority(disk::TOKEN_KEY),
        fault: KeyFault::Replaced,
        remedy: Remedy::FetchTokenKey,
    })
}
