//! Sets of public keys that others publish (JSON Web Key Set, RFC 7517).

use jsonwebtoken::jwk::{Jwk, JwkSet};
use serde::Deserialize;
use serde_json::Value;

/// Most keys in a set.
const MAX_KEYS: usize = 64;
/// Longest set, in bytes.
pub(super) const MAX_FILE: usize = 256 * 1024;

#[derive(Deserialize)]
struct Set {
    keys: Vec<Value>,
}

/// A set of 1 to 64 keys; `None` where the text is none. Keys of kinds that are not known here are left out (RFC 7517, 5).
pub(in super::super) fn parse(text: &[u8]) -> Option<JwkSet> {
    let text = Some(text).filter(|text| text.len() <= MAX_FILE)?;
    let Set { keys } = serde_json::from_slice(text).ok()?;
    let sound = (1..=MAX_KEYS).contains(&keys.len()) && keys.iter().all(Value::is_object);
    let known = |key| serde_json::from_value::<Jwk>(key).ok();
    sound.then(|| JwkSet { keys: keys.into_iter().filter_map(known).collect() })
}
