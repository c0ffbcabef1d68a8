//! Which names an invitation is for.

use std::fmt;
use std::str::FromStr;

use crate::proto::codec;
use crate::proto::node::{MAX_NAME, NodeName};

/// Most `*` in a pattern: what bounds the work of a match.
const MAX_STARS: usize = 8;

/// A pattern of node names: a name in which each `*` stands for any characters but `@`, none among them. `*@*` is every
/// name, `web-*@10.0.0.*` are those that begin and end so.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamePattern {
    text: String,
}

/// Why a text is no pattern. Nothing changed; anyone who wrote it must correct it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no pattern of node names: write name@host, with at most {MAX_STARS} '*' for any characters, for example web-*@10.0.0.*"
)]
pub struct PatternError(String);

impl NamePattern {
    /// Every name.
    pub fn any() -> Self {
        Self { text: "*@*".to_owned() }
    }

    /// Exactly this name.
    fn exactly(name: &NodeName) -> Self {
        Self { text: name.as_str().to_owned() }
    }

    /// Whether this is such a name.
    #[must_use]
    pub fn matches(&self, name: &NodeName) -> bool {
        let Some((short, host)) = self.text.split_once('@') else { return false };
        part(short.as_bytes(), name.short().as_bytes())
            && part(host.as_bytes(), name.host().as_bytes())
    }
}

/// Whether `text` is like `pattern`. A star that must take more than it has goes on from the last one only: the earlier ones
/// have taken as little as they could, so that the work is at most the product of the lengths.
fn part(mut pattern: &[u8], mut text: &[u8]) -> bool {
    // The pattern behind the last star, and the text that begins behind what that star has taken.
    let mut last: Option<(&[u8], &[u8])> = None;
    loop {
        match (pattern.split_first(), text.split_first()) {
            (Some((b'*', behind)), _) => {
                last = Some((behind, text));
                pattern = behind;
            }
            (Some((one, behind)), Some((other, rest))) if one == other => {
                (pattern, text) = (behind, rest);
            }
            (None, None) => return true,
            (_, _) => {
                let Some((behind, taken)) = last else { return false };
                let Some((_, rest)) = taken.split_first() else { return false };
                (pattern, text) = (behind, rest);
                last = Some((behind, rest));
            }
        }
    }
}

impl FromStr for NamePattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let error = || PatternError(text.chars().take(64).collect());
        // A name without stars has one spelling, as every name.
        if let Ok(name) = text.parse::<NodeName>() {
            return Ok(Self::exactly(&name));
        }
        let (short, host) = text.split_once('@').ok_or_else(error)?;
        let stars = text.bytes().filter(|b| *b == b'*').count();
        let of_name = |b: u8| b.is_ascii_alphanumeric() || b"._-*".contains(&b);
        let of_host = |b: u8| of_name(b) || b == b':';
        let sound = (1..=MAX_STARS).contains(&stars)
            && text.len() <= MAX_NAME
            && !short.is_empty()
            && !host.is_empty()
            && short.bytes().all(of_name)
            && host.bytes().all(of_host);
        if !sound {
            return Err(error());
        }
        Ok(Self { text: format!("{short}@{}", host.to_ascii_lowercase()) })
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

codec::as_text!(NamePattern);
