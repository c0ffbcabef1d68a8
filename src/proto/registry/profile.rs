//! What a node says of itself, within bounds.
//!
//! Invariant: a profile that exists is within its bounds, no matter whom it comes from: at most [`MAX_SPECIALIZATIONS`] specializations and
//! `LARGEST` bytes of metadata, words of a few plain characters, and values that no terminal takes for a command.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::proto::codec;

/// Specializations at most.
pub(super) const MAX_SPECIALIZATIONS: usize = 32;
/// Keys and values of the metadata, in bytes, at most.
pub(crate) const LARGEST: usize = 4096;
/// Longest specialization or key, in bytes.
pub const LONGEST: usize = 64;

/// Why something is no part of a profile. Nothing changed; anyone who supplied it must correct it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// It is no word.
    #[error("{0:?} is not a specialization or key: 1 to {LONGEST} of A-Z a-z 0-9 . _ : / -")]
    Word(String),
    /// There is no `=`.
    #[error("{0:?} is not KEY=VALUE")]
    Pair(String),
    /// A value has a control character.
    #[error("the value of {0:?} has a control character")]
    Value(String),
    /// A key has two values.
    #[error("the key {0:?} is given twice")]
    Twice(String),
    /// There are more specializations than a node may have.
    #[error("{0} specializations where at most {MAX_SPECIALIZATIONS} are allowed")]
    TooMany(usize),
    /// The metadata is longer than a node's may be.
    #[error("{0} bytes of metadata where at most {LARGEST} are allowed")]
    TooLong(usize),
}

fn word(text: &str) -> Result<(), ProfileError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._:/-".contains(&b);
    let sound = (1..=LONGEST).contains(&text.len()) && text.bytes().all(plain);
    sound.then_some(()).ok_or_else(|| ProfileError::Word(text.chars().take(2 * LONGEST).collect()))
}

/// What a node is good for, in one word: 1 to 64 of `A–Z a–z 0–9 . _ : / -`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Specialization(String);

codec::as_text!(Specialization);

impl Specialization {
    /// The word.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Specialization {
    type Err = ProfileError;

    fn from_str(text: &str) -> Result<Self, ProfileError> {
        word(text).map(|()| Self(text.to_owned()))
    }
}

impl fmt::Display for Specialization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A key of the metadata and its value: `KEY=VALUE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    key: String,
    value: String,
}

impl Pair {
    /// A key as a specialization is written, and any text without control characters.
    ///
    /// # Errors
    /// [`ProfileError::Word`], [`ProfileError::Value`].
    pub fn new(key: impl Into<String>, value: impl Into<String>) -> Result<Self, ProfileError> {
        let (key, value) = (key.into(), value.into());
        word(&key)?;
        if value.chars().any(char::is_control) {
            return Err(ProfileError::Value(key));
        }
        Ok(Self { key, value })
    }
}

impl FromStr for Pair {
    type Err = ProfileError;

    fn from_str(text: &str) -> Result<Self, ProfileError> {
        let pair = text.split_once('=');
        let (key, value) = pair.ok_or_else(|| ProfileError::Pair(text.to_owned()))?;
        Self::new(key, value)
    }
}

/// What a node says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Plain", into = "Plain")]
pub struct Profile {
    specializations: BTreeSet<Specialization>,
    metadata: BTreeMap<String, String>,
    started: u64,
}

impl Profile {
    /// The profile of a life that began then, in milliseconds since 1970.
    ///
    /// # Errors
    /// [`ProfileError::TooMany`], [`ProfileError::TooLong`], [`ProfileError::Twice`].
    pub fn new(
        specializations: impl IntoIterator<Item = Specialization>,
        metadata: impl IntoIterator<Item = Pair>,
        started: u64,
    ) -> Result<Self, ProfileError> {
        let specializations: BTreeSet<_> = specializations.into_iter().collect();
        if specializations.len() > MAX_SPECIALIZATIONS {
            return Err(ProfileError::TooMany(specializations.len()));
        }
        let mut pairs = BTreeMap::new();
        for Pair { key, value } in metadata {
            if pairs.insert(key.clone(), value).is_some() {
                return Err(ProfileError::Twice(key));
            }
        }
        let long = pairs.iter().map(|(key, value)| key.len() + value.len()).sum();
        if long > LARGEST {
            return Err(ProfileError::TooLong(long));
        }
        Ok(Self { specializations, metadata: pairs, started })
    }

    /// What the node is good for.
    pub fn specializations(&self) -> &BTreeSet<Specialization> {
        &self.specializations
    }

    /// What else it says.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// When its life began by its own clock, in milliseconds since 1970.
    pub fn started(&self) -> u64 {
        self.started
    }

    /// Likewise, of a life that begins then.
    #[must_use]
    pub(crate) fn begun(self, started: u64) -> Self {
        Self { started, ..self }
    }

    /// What it needs on the wire, at most.
    pub(super) fn size(&self) -> usize {
        let words = self.specializations.iter().map(|it| it.0.len() + 1).sum::<usize>();
        let pairs = self.metadata.iter().map(|(key, value)| key.len() + value.len() + 3);
        words + pairs.sum::<usize>() + 16
    }
}

/// A profile before it is checked.
#[derive(Serialize, Deserialize)]
struct Plain {
    specializations: BTreeSet<Specialization>,
    metadata: BTreeMap<String, String>,
    started: u64,
}

impl TryFrom<Plain> for Profile {
    type Error = ProfileError;

    fn try_from(plain: Plain) -> Result<Self, ProfileError> {
        let pairs = plain.metadata.into_iter().map(|(key, value)| Pair::new(key, value));
        let pairs = pairs.collect::<Result<Vec<_>, _>>()?;
        Self::new(plain.specializations, pairs, plain.started)
    }
}

impl From<Profile> for Plain {
    fn from(profile: Profile) -> Self {
        let Profile { specializations, metadata, started } = profile;
        Self { specializations, metadata, started }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::codec;

    #[test]
    fn words_and_pairs_have_bounds() {
        for good in ["nlp", "a", "A.b_c:d/e-9", &"x".repeat(64)] {
            assert_eq!(good.parse::<Specialization>().expect(good).as_str(), good);
        }
        for bad in ["", "a b", "a,b", "é", "a=b", "\u{1b}[2J", "a\n", &"x".repeat(65)] {
            let error = bad.parse::<Specialization>().expect_err(bad).to_string();
            assert!(error.contains("1 to 64 of A-Z"), "{error}");
        }
        let pair: Pair = "zone=eu=west, été".parse().expect("sound");
        assert_eq!((pair.key.as_str(), pair.value.as_str()), ("zone", "eu=west, été"));
        assert_eq!("k=".parse::<Pair>().expect("sound").value, "");
        for (bad, says) in [
            ("zone", "is not KEY=VALUE"),
            ("=x", "1 to 64 of A-Z"),
            ("a b=x", "1 to 64 of A-Z"),
            ("k=a\nb", "control character"),
            ("k=\u{9b}2J", "control character"),
        ] {
            let error = bad.parse::<Pair>().expect_err(bad).to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn a_profile_has_bounds() {
        let words = |n: usize| (0..n).map(|n| Specialization(format!("s{n}")));
        let pair = |key: &str, long: usize| Pair::new(key, "x".repeat(long)).expect("sound");
        assert!(Profile::new(words(MAX_SPECIALIZATIONS), [], 0).is_ok());
        assert_eq!(Profile::new(words(33), [], 0), Err(ProfileError::TooMany(33)));
        assert!(Profile::new([], [pair("k", 4095)], 0).is_ok());
        let long = Profile::new([], [pair("k", 2000), pair("l", 2095)], 0);
        assert_eq!(long, Err(ProfileError::TooLong(4097)));
        let twice = Profile::new([], [pair("k", 1), pair("k", 2)], 0);
        assert_eq!(twice, Err(ProfileError::Twice("k".into())));
    }

    #[test]
    fn what_is_forged_does_not_decode() {
        let plain = |word: &str, value: &str, many: usize| {
            let words: BTreeSet<_> = (0..many).map(|n| format!("{word}{n}")).collect();
            let pairs = BTreeMap::from([("k".to_owned(), value.to_owned())]);
            codec::encode(&(words, pairs, 7_u64)).expect("encodes")
        };
        let read = |bytes: &[u8]| codec::decode::<Profile>(bytes, 1 << 20);
        let sound = read(&plain("s", "v", 32)).expect("within the bounds");
        assert_eq!((sound.specializations().len(), sound.started()), (32, 7));
        assert_eq!(read(&codec::encode(&sound).expect("encodes")), Ok(sound));
        for bad in [
            plain("s", "v", 33),
            plain("a b", "v", 1),
            plain("s", "\u{1b}[2J", 1),
            plain("s", &"x".repeat(4096), 1),
        ] {
            assert_eq!(read(&bad), Err(codec::CodecError::Malformed));
        }
    }
}
