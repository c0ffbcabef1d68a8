//! The list of what verifies tokens, as it lies in `ca/tokens`.
//!
//! Lines of text, each ended by a line break:
//!
//! ```text
//! xpando tokens 1 <the cluster's id>
//! number <grows with each list>
//! key <the Ed25519 public key in hexadecimal>
//! revoked <the id of a token> <second since 1970 after which it may be forgotten>
//! signature <in hexadecimal>
//! ```
//!
//! with any number of `revoked`. The signature is the authority's, ECDSA P-256 with SHA-256, over all
//! bytes before its line. Invariants: nothing but the place of the signature is read of a text that the
//! authority has not signed; the first line says what it has signed, so that nothing else it ever signs,
//! which begins with a byte of DER, is a list, and a list is nothing else.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use super::super::CertificateVerifier;
use super::super::IdentityError;
use super::super::disk::{self, Layout};
use super::super::key::Key;
use super::super::revocation::bytes;
use super::super::signed::Signed;
use super::key::{PUBLIC_KEY, TokenKey};
use crate::proto::codec::hexadecimal;
use crate::proto::node::ClusterId;

/// How long a revoked token is remembered after its end, for hosts whose clocks lag: in seconds.
const LAG: u64 = 60 * 60;

/// What verifies tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct TokenList {
    /// Grows with each list of one authority.
    pub(in super::super) number: u64,
    /// The public half of the key that signs tokens.
    pub(super) key: [u8; PUBLIC_KEY],
    /// The ids of revoked tokens, each with the second since 1970 after which it may be forgotten.
    pub(in super::super) revoked: BTreeMap<String, u64>,
}

impl TokenList {
    /// A list for this key that revokes nothing.
    pub(in super::super) fn first(key: &TokenKey, now: SystemTime) -> Self {
        let number = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self { number, key: *key.public(), revoked: BTreeMap::new() }
    }

    /// True when both accept and refuse the same tokens.
    pub(in super::super) fn judges_as(&self, other: &Self) -> bool {
        self.key == other.key && self.revoked == other.revoked
    }

    /// True when it verifies what `key` signs.
    pub(in super::super) fn is_for(&self, key: &TokenKey) -> bool {
        self.key == *key.public()
    }

    /// The list that follows it, with this number and for this key. What was to be remembered until
    /// before `now`, in seconds since 1970, is forgotten.
    pub(in super::super) fn after(mut self, number: u64, key: &TokenKey, now: u64) -> Self {
        self.revoked.retain(|_, until| *until >= now);
        Self { number, key: *key.public(), ..self }
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
        let mut text =
            format!("{}number {}\nkey {}\n", title(cluster), self.number, hexadecimal(&self.key));
        for (jti, until) in &self.revoked {
            // Writing to memory does not fail.
            writeln!(text, "revoked {jti} {until}").unwrap_or(());
        }
        let signature = authority.signature(text.as_bytes())?;
        writeln!(text, "signature {}", hexadecimal(&signature)).unwrap_or(());
        Ok(text)
    }

    /// What is revoked by either, but for what was to be remembered until before `now`, in seconds since 1970.
    pub(in super::super) fn with(mut self, other: &Self, now: u64) -> Self {
        let lasting = other.revoked.iter().filter(|(_, until)| **until >= now);
        for (jti, until) in lasting {
            let known = self.revoked.entry(jti.clone()).or_insert(*until);
            *known = (*known).max(*until);
        }
        self
    }

    /// Reads a list that this verifier's authority signed; the error says in which way it is not one.
    pub(in super::super) fn parse(
        text: &[u8],
        verifier: &CertificateVerifier,
    ) -> Result<Signed<Self>, &'static str> {
        let text = std::str::from_utf8(text).map_err(|_binary| "it is not a text")?;
        let (body, last) = text
            .strip_suffix('\n')
            .and_then(|text| text.rsplit_once('\n'))
            .ok_or("it is not a whole list")?;
        let signature =
            last.strip_prefix("signature ").ok_or("it does not end with a signature")?;
        let body = &text[..=body.len()];
        let signature = bytes(signature);
        if !verifier.signed(body.as_bytes(), &signature) {
            return Err("this cluster's authority has not signed it");
        }
        let whole = format!("{body}signature {}\n", hexadecimal(&signature));
        let lines = body.strip_prefix(&title(verifier.cluster())).map(str::lines);
        let mut lines = lines.ok_or("it is not a list of tokens")?;
        let mut line = |word: &str| lines.next().and_then(|line| line.strip_prefix(word));
        let number = line("number ").and_then(|number| number.parse().ok());
        let key = line("key ").and_then(|key| bytes(key).try_into().ok());
        let number = number.ok_or("it has no number")?;
        let key = key.ok_or("it has no key")?;
        let revoked = lines
            .map(entry)
            .collect::<Option<_>>()
            .ok_or("a line is of no kind that it may have")?;
        Ok(Signed::new(Self { number, key, revoked }, number, body.as_bytes(), whole.into()))
    }

    /// The list in a certificate directory; `None` when there is none.
    pub(in super::super) fn read(
        layout: Layout<'_>,
        verifier: &CertificateVerifier,
    ) -> Result<Option<Self>, IdentityError> {
        let path = layout.of_authority(disk::TOKENS);
        let Some(text) = disk::read_list(&path)? else { return Ok(None) };
        let damaged = |reason| IdentityError::DamagedTokens { path, reason };
        Self::parse(&text, verifier).map(|signed| Some(signed.list)).map_err(damaged)
    }
}

/// The first line: what is signed, and for which cluster.
fn title(cluster: ClusterId) -> String {
    format!("xpando tokens 1 {cluster}\n")
}

/// The token that a line revokes.
fn entry(line: &str) -> Option<(String, u64)> {
    let (jti, until) = line.strip_prefix("revoked ")?.split_once(' ')?;
    Some((jti.to_owned(), until.parse().ok()?))
}
