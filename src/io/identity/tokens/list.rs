//! The list of what verifies tokens, as it lies in `ca/tokens`.
//!
//! Lines of text, each ended by a line break:
//!
//! ```text
//! xpando tokens 1 <the cluster's id>
//! number <grows with each list>
//! key <the Ed25519 public key that signs, in hexadecimal>
//! next <the key that shall sign once every node has this list> <second since 1970 when that began> <who began it>
//! former <a key that has signed> <second since 1970 from which on it counts no more>
//! dropped <a key that never counts again>
//! revoked <the id of a token> <second since 1970 after which it may be forgotten>
//! signature <in hexadecimal>
//! ```
//!
//! with `next` only during a rotation, up to `MAX_FORMER` of `former`, the latest first, up to `MAX_DROPPED` of `dropped`,
//! the latest last, and any number of `revoked`. Tokens of all keys count, but for those of a dropped one. The signature is the
//! authority's, ECDSA P-256 with SHA-256, over all bytes before its line. Invariants: nothing but the place of the signature is
//! read of a text that the authority has not signed; the first line says what it has signed, so that nothing else it ever signs,
//! which begins with a byte of DER, is a list, and a list is nothing else; what one list has dropped or revoked, none brings back.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::SystemTime;

use super::super::CertificateVerifier;
use super::super::IdentityError;
use super::super::disk::{self, Layout};
use super::super::key::Key;
use super::super::pki::{Bundle, Signed};
use crate::io::clock::{self, unix_seconds};
use crate::proto::codec::{hexadecimal, read_hexadecimal};
use crate::proto::lists::ListKind;
use crate::proto::node::ClusterId;
use crate::proto::token::{MAX_LIFETIME, TokenKeyId};

/// How long a revoked token is remembered after its end, for hosts whose clocks lag: in seconds.
const LAG: u64 = 60 * 60;

/// Former keys whose tokens count still, at most: each makes a forged token cost one more check of a signature.
pub(in super::super) const MAX_FORMER: usize = 6;
/// Dropped keys that are remembered, at most.
const MAX_DROPPED: usize = 64;

/// A key that shall sign tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct NextKey {
    pub(in super::super) key: TokenKeyId,
    /// Second since 1970 when its rotation began.
    pub(in super::super) began: u64,
    /// Who began it.
    pub(in super::super) by: String,
}

/// What verifies tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct TokenList {
    /// Grows with each list of one authority.
    pub(in super::super) number: u64,
    /// The key that signs tokens.
    pub(in super::super) key: TokenKeyId,
    /// The key that shall sign, during a rotation.
    pub(in super::super) next: Option<NextKey>,
    /// Keys that have signed, the latest first, each with the second since 1970 from which on it counts no more.
    pub(in super::super) former: Vec<(TokenKeyId, u64)>,
    /// Keys that never count again, the latest last.
    dropped: Vec<TokenKeyId>,
    /// The ids of revoked tokens, each with the second since 1970 after which it may be forgotten.
    pub(in super::super) revoked: BTreeMap<String, u64>,
}

impl TokenList {
    /// A list for this key that revokes nothing.
    pub(in super::super) fn first(key: TokenKeyId, now: SystemTime) -> Self {
        Self::of(unix_seconds(now), key)
    }

    fn of(number: u64, key: TokenKeyId) -> Self {
        let (former, dropped) = (Vec::new(), Vec::new());
        Self { number, key, next: None, former, dropped, revoked: BTreeMap::new() }
    }

    /// True when both accept and refuse the same tokens.
    pub(in super::super) fn judges_as(&self, other: &Self) -> bool {
        let drops =
            |one: &Self, all: &Self| one.dropped.iter().all(|key| all.dropped.contains(key));
        self.key == other.key
            && self.next == other.next
            && self.former == other.former
            && self.revoked == other.revoked
            && drops(self, other)
            && drops(other, self)
    }

    /// The keys whose tokens count, `now` in seconds since 1970; the one that signs first.
    pub(in super::super) fn keys(&self, now: u64) -> impl Iterator<Item = TokenKeyId> {
        let next = self.next.iter().map(|next| next.key);
        let former = self.former.iter().filter(move |(_, until)| now < *until);
        let all = std::iter::once(self.key).chain(next).chain(former.map(|(key, _)| *key));
        all.filter(|key| !self.dropped.contains(key))
    }

    /// The key that signs; `None` when it never counts again.
    pub(in super::super) fn signing(&self) -> Option<TokenKeyId> {
        Some(self.key).filter(|key| !self.dropped.contains(key))
    }

    /// The list that follows it, with this number. What was to be remembered until before `now`, in seconds since 1970, is
    /// forgotten.
    pub(in super::super) fn after(mut self, number: u64, now: u64) -> Self {
        self.revoked.retain(|_, until| *until >= now);
        self.former.retain(|(_, until)| now < *until);
        Self { number, ..self }
    }

    /// The next key signs from `now` on, in seconds since 1970; the one before counts for as long as a token of its can live.
    pub(in super::super) fn advance(&mut self, now: u64) {
        let Some(next) = self.next.take() else { return };
        let before = std::mem::replace(&mut self.key, next.key);
        let until = now.saturating_add(MAX_LIFETIME.as_secs()).saturating_add(LAG);
        self.former.insert(0, (before, until));
        self.former.truncate(MAX_FORMER);
    }

    /// This key signs, and no other one counts ever again.
    pub(in super::super) fn only(&mut self, key: TokenKeyId) {
        let before = self.former.drain(..).map(|(key, _)| key).rev();
        let next = self.next.take().map(|next| next.key);
        let others: Vec<_> = before.chain([self.key]).chain(next).filter(|it| *it != key).collect();
        self.key = key;
        self.drop_keys(&others);
    }

    fn drop_keys(&mut self, keys: &[TokenKeyId]) {
        for key in keys {
            if !self.dropped.contains(key) {
                self.dropped.push(*key);
            }
        }
        let surplus = self.dropped.len().saturating_sub(MAX_DROPPED);
        self.dropped.drain(..surplus);
    }

    /// Revokes a token that ends at `exp`; false when this revokes nothing that was not revoked, or
    /// the token has ended. Both in seconds since 1970.
    pub(in super::super) fn revoke(&mut self, jti: &str, exp: u64, now: u64) -> bool {
        let until = exp.saturating_add(LAG);
        if until < now || self.revoked.get(jti).is_some_and(|known| *known >= until) {
            return false;
        }
        self.revoked.insert(jti.to_owned(), until);
        true
    }

    /// The list as text, signed with the authority's key.
    pub(in super::super) fn signed(
        &self,
        cluster: ClusterId,
        authority: &Key,
    ) -> Result<String, IdentityError> {
        let key = |key: &TokenKeyId| hexadecimal(&key.0);
        let mut text =
            format!("{}number {}\nkey {}\n", title(cluster), self.number, key(&self.key));
        // Writing to memory does not fail.
        if let Some(NextKey { key: next, began, by }) = &self.next {
            writeln!(text, "next {} {began} {by}", key(next)).unwrap_or(());
        }
        for (former, until) in &self.former {
            writeln!(text, "former {} {until}", key(former)).unwrap_or(());
        }
        for dropped in &self.dropped {
            writeln!(text, "dropped {}", key(dropped)).unwrap_or(());
        }
        for (jti, until) in &self.revoked {
            writeln!(text, "revoked {jti} {until}").unwrap_or(());
        }
        let signature = authority.signature(text.as_bytes())?;
        writeln!(text, "signature {}", hexadecimal(&signature)).unwrap_or(());
        Ok(text)
    }

    /// This list with what either has revoked or dropped, but for what was to be remembered until before `now`, in seconds
    /// since 1970. Its keys are its own, unless the other one has dropped the one that signs.
    pub(in super::super) fn with(mut self, other: &Self, now: u64) -> Self {
        let lasting = other.revoked.iter().filter(|(_, until)| **until >= now);
        for (jti, until) in lasting {
            let known = self.revoked.entry(jti.clone()).or_insert(*until);
            *known = (*known).max(*until);
        }
        if other.dropped.contains(&self.key) && other.signing().is_some() {
            self.key = other.key;
            (self.next, self.former) = (other.next.clone(), other.former.clone());
        }
        self.drop_keys(&other.dropped);
        let dropped = &self.dropped;
        self.former.retain(|(key, _)| !dropped.contains(key));
        self.next = self.next.filter(|next| !dropped.contains(&next.key));
        self
    }

    /// Reads a list that one of these authorities signed; the error says in which way it is not one.
    pub(in super::super) fn parse(
        text: &[u8],
        bundle: &Bundle,
        now: SystemTime,
    ) -> Result<Signed<Self>, &'static str> {
        let text = std::str::from_utf8(text).map_err(|_binary| "it is not a text")?;
        let (body, last) = text
            .strip_suffix('\n')
            .and_then(|text| text.rsplit_once('\n'))
            .ok_or("it is not a whole list")?;
        let signature =
            last.strip_prefix("signature ").ok_or("it does not end with a signature")?;
        let body = &text[..=body.len()];
        let signature = read_hexadecimal(signature).ok_or("its signature is none")?;
        let signer = bundle.signer_of(body.as_bytes(), &signature);
        let signer = signer.ok_or("this cluster's authority has not signed it")?;
        let whole = format!("{body}signature {}\n", hexadecimal(&signature));
        let lines = body.strip_prefix(&title(bundle.cluster())).map(str::lines);
        let mut lines = lines.ok_or("it is not a list of tokens")?;
        let mut line = |word: &str| lines.next().and_then(|line| line.strip_prefix(word));
        let number = line("number ").and_then(|number| number.parse().ok());
        let key = line("key ").and_then(key);
        let number = number.ok_or("it has no number")?;
        let mut list = Self::of(number, key.ok_or("it has no key")?);
        let unknown = "a line is of no kind that it may have";
        lines.try_for_each(|line| list.add(line).ok_or(unknown))?;
        if list.former.len() > MAX_FORMER || list.dropped.len() > MAX_DROPPED {
            return Err("it names more keys than a list may");
        }
        Signed::new((list, number), (body.as_bytes(), signer), whole.into(), now)
    }

    /// Adds what a line below the key's says.
    fn add(&mut self, line: &str) -> Option<()> {
        let (word, value) = line.split_once(' ')?;
        match word {
            "next" if self.next.is_none() => {
                let mut words = value.splitn(3, ' ');
                let (next, began, by) = (words.next()?, words.next()?, words.next()?);
                let (began, by) = (began.parse().ok()?, by.to_owned());
                self.next = Some(NextKey { key: key(next)?, began, by });
            }
            "former" => {
                let (former, until) = value.split_once(' ')?;
                self.former.push((key(former)?, until.parse().ok()?));
            }
            "dropped" => self.dropped.push(key(value)?),
            "revoked" => {
                let (jti, until) = value.split_once(' ')?;
                self.revoked.insert(jti.to_owned(), until.parse().ok()?);
            }
            _ => return None,
        }
        Some(())
    }

    /// The list in a certificate directory; `None` when there is none.
    pub(in super::super) fn read(
        layout: Layout<'_>,
        verifier: &CertificateVerifier,
    ) -> Result<Option<Self>, IdentityError> {
        let path = layout.of_authority(disk::TOKENS);
        let Some(text) = disk::read_list(&path)? else { return Ok(None) };
        let damaged = |reason| IdentityError::unusable(ListKind::Tokens, path, reason);
        let list =
            verifier.signers().and_then(|signers| Self::parse(&text, &signers, clock::wall()));
        list.map(|signed| Some(signed.list)).map_err(damaged)
    }
}

/// The first line: what is signed, and for which cluster.
fn title(cluster: ClusterId) -> String {
    format!("xpando tokens 1 {cluster}\n")
}

/// A public key in hexadecimal.
fn key(text: &str) -> Option<TokenKeyId> {
    read_hexadecimal(text)?.try_into().ok().map(TokenKeyId)
}
