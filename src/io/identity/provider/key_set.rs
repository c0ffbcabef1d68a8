//! Sets of public keys that others publish (JSON Web Key Set, RFC 7517).

use jsonwebtoken::jwk::JwkSet;

/// Most keys in a set.
const MAX_KEYS: usize = 64;
/// Longest set, in bytes.
const MAX_FILE: usize = 256 * 1024;

/// A set of 1 to 64 keys; `None` where the text is none.
pub(in super::super) fn parse(text: &[u8]) -> Option<JwkSet> {
    let text = Some(text).filter(|text| text.len() <= MAX_FILE)?;
    let set: JwkSet = serde_json::from_slice(text).ok()?;
    Some(set).filter(|it| (1..=MAX_KEYS).contains(&it.keys.len()))
}
