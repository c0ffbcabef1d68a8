//! An invitation that people say to each other, `7-guitar-sunset`: a number, and two words.
//!
//! The words have 20 bits, so that nobody may try them twice. Both sides make a key of them by SPAKE2 (RFC 9382, the group
//! Ed25519): who is in the middle, or guesses, learns only whether one guess was right, and a wrong one burns the code. The
//! key takes the place of an invitation's secret: it proves the request, and seals the answer with which the host learns
//! the cluster's authority.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};
use spake2::{Ed25519Group, Identity as Party, Password, Spake2};
use zeroize::Zeroizing;

use super::EnrolError;
use super::mac::MacKey;
use crate::io::identity::IdentityError;

/// Keys that were agreed on and wait for their proof, of all codes.
const MAX_SESSIONS: usize = 64;
/// Likewise, of one code.
const MAX_OF_CODE: usize = 4;
/// How long one waits.
const PATIENCE: Duration = Duration::from_secs(120);
/// Words that a code is drawn from.
const WORDS: usize = 1024;

/// The words, in order.
fn words() -> impl Iterator<Item = &'static str> {
    include_str!("words.txt").lines().filter(|line| !line.starts_with('#'))
}

/// A code as people say it. Its text is the secret, its `Debug` has no word of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Code {
    number: u32,
    words: Zeroizing<String>,
}

/// Why a text is no code. Nothing changed, and no code was burnt; anyone who heard it asks again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodeError {
    /// It is not a number and two words.
    #[error("a code is a number and two words, for example 7-guitar-sunset")]
    Form,
    /// A word is none that codes have.
    #[error("codes have no such word as the {0}: ask for it again")]
    Word(&'static str),
}

impl Code {
    /// A code of this number and two words drawn at random.
    pub(super) fn draw(number: u32) -> Result<Self, IdentityError> {
        let mut random = Zeroizing::new([0_u8; 4]);
        aws_lc_rs::rand::fill(random.as_mut_slice())
            .map_err(|_unspecified| IdentityError::Crypto("draw random bytes"))?;
        let [a, b, c, d] = *random;
        // The list is as long as a power of two, so that each word is as likely.
        let word = |high, low| {
            let at = usize::from(u16::from_be_bytes([high, low])) % WORDS;
            words().nth(at).unwrap_or_default()
        };
        let words = Zeroizing::new(format!("{}-{}", word(a, b), word(c, d)));
        Ok(Self { number, words })
    }

    /// A code that was written down.
    pub(super) fn of(number: u32, words: &str) -> Self {
        Self { number, words: Zeroizing::new(words.to_owned()) }
    }

    /// Which invitation it is: the number.
    pub fn number(&self) -> u32 {
        self.number
    }

    pub(super) fn words(&self) -> &str {
        &self.words
    }

    fn password(&self) -> Password {
        Password::new(Zeroizing::new(self.to_string()).as_bytes())
    }
}

impl FromStr for Code {
    type Err = CodeError;

    fn from_str(text: &str) -> Result<Self, CodeError> {
        if text.len() > 64 {
            return Err(CodeError::Form);
        }
        let lower = Zeroizing::new(text.trim().to_ascii_lowercase());
        let mut parts = lower.split(['-', ' ']).filter(|part| !part.is_empty());
        let number = parts.next().and_then(|number| number.parse().ok()).ok_or(CodeError::Form)?;
        let (Some(first), Some(second), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(CodeError::Form);
        };
        for (word, which) in [(first, "first"), (second, "second")] {
            if !words().any(|known| known == word) {
                return Err(CodeError::Word(which));
            }
        }
        Ok(Self { number, words: Zeroizing::new(format!("{first}-{second}")) })
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.number, *self.words)
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Code({}, secret)", self.number)
    }
}

/// One half of the key's making, of the side that asks.
pub(super) struct Half(Spake2<Ed25519Group>);

impl Half {
    /// The half, and what is said to the other side.
    pub(super) fn begin(code: &Code) -> (Self, Vec<u8>) {
        let (state, share) = Spake2::<Ed25519Group>::start_a(&code.password(), &asker(), &issuer());
        (Self(state), share)
    }

    /// The key, of what the other side said.
    pub(super) fn finish(self, share: &[u8]) -> Result<MacKey, EnrolError> {
        key(self.0.finish(share))
    }
}

impl fmt::Debug for Half {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Half(secret)")
    }
}

/// The key of the side that issues, and what it says to the other one.
fn answer(code: &Code, share: &[u8]) -> Result<(MacKey, Vec<u8>), EnrolError> {
    let (state, ours) = Spake2::<Ed25519Group>::start_b(&code.password(), &asker(), &issuer());
    key(state.finish(share)).map(|key| (key, ours))
}

fn asker() -> Party {
    Party::new(b"xpando enrol asker")
}

fn issuer() -> Party {
    Party::new(b"xpando enrol issuer")
}

fn key(agreed: spake2::Result<Vec<u8>>) -> Result<MacKey, EnrolError> {
    let agreed =
        agreed.map_err(|_detail| EnrolError::Answer("it is no part of a spoken invitation"))?;
    Ok(MacKey::of_secret(&Zeroizing::new(agreed)))
}

/// Keys that an issuer has agreed on with somebody, who may know the words or not.
#[derive(Debug, Default)]
pub(super) struct Sessions(Vec<Session>);

#[derive(Debug)]
struct Session {
    id: [u8; 16],
    /// Which code it is of: its number, and a hash of it, for numbers come again.
    code: (u32, [u8; 32]),
    key: MacKey,
    since: SystemTime,
}

fn mark(code: &Code) -> (u32, [u8; 32]) {
    (code.number, Sha256::digest(code.words.as_bytes()).into())
}

impl Sessions {
    /// Agrees on a key with whoever sent this share: the id of the session, and the own share. Of too many sessions the
    /// oldest ones end.
    pub(super) fn begin(
        &mut self,
        code: &Code,
        share: &[u8],
        now: SystemTime,
    ) -> Result<([u8; 16], Vec<u8>), EnrolError> {
        let (key, ours) = answer(code, share)?;
        let mut id = [0; 16];
        aws_lc_rs::rand::fill(&mut id)
            .map_err(|_unspecified| IdentityError::Crypto("draw random bytes"))?;
        self.0.retain(|it| now.duration_since(it.since).is_ok_and(|waited| waited < PATIENCE));
        let code = mark(code);
        let of_code = self.0.iter().filter(|it| it.code == code).count();
        let oldest = if of_code >= MAX_OF_CODE {
            self.0.iter().position(|it| it.code == code)
        } else {
            (self.0.len() >= MAX_SESSIONS).then_some(0)
        };
        oldest.into_iter().for_each(|at| drop(self.0.remove(at)));
        self.0.push(Session { id, code, key, since: now });
        Ok((id, ours))
    }

    /// The number of the code that a session is of, and its key.
    pub(super) fn get(&self, id: &[u8; 16]) -> Option<(u32, MacKey)> {
        self.0.iter().find(|it| it.id == *id).map(|it| (it.code.0, it.key.clone()))
    }

    /// Whether a session is of this very code.
    pub(super) fn is_of(&self, id: &[u8; 16], code: &Code) -> bool {
        self.0.iter().any(|it| it.id == *id && it.code == mark(code))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_list_has_1024_short_words() {
        let all: BTreeSet<&str> = words().collect();
        assert_eq!((all.len(), words().count()), (WORDS, WORDS));
        let sound = |word: &&str| {
            (3..=8).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_lowercase())
        };
        assert!(all.iter().all(sound));
    }

    #[test]
    fn a_code_is_read_as_people_write_it() {
        let code = Code::draw(7).unwrap();
        let text = code.to_string();
        assert!(text.starts_with("7-") && text.split('-').count() == 3, "{text}");
        for spelling in [text.clone(), text.to_uppercase(), format!(" {} ", text.replace('-', " "))]
        {
            assert_eq!(spelling.parse::<Code>().unwrap(), code);
        }
        assert!(!format!("{code:?}").contains(code.words.split('-').next().unwrap()));
        for bad in
            ["", "7", "7-guitar", "guitar-sunset", "7-guitar-sunset-oak", "99999999999-oak-oak"]
        {
            assert_eq!(bad.parse::<Code>().unwrap_err(), CodeError::Form, "{bad}");
        }
        assert_eq!("7-oak-guitr".parse::<Code>().unwrap_err(), CodeError::Word("second"));
        assert_eq!("7-x-oak".parse::<Code>().unwrap_err(), CodeError::Word("first"));
        assert_eq!(format!("7-oak-{}", "x".repeat(99)).parse::<Code>(), Err(CodeError::Form));
        let drawn: BTreeSet<String> = (0..50).map(|_| Code::draw(1).unwrap().to_string()).collect();
        assert!(drawn.len() > 45, "they are drawn at random");
    }

    #[test]
    fn the_same_words_make_the_same_key_and_others_another() {
        let [code, other] = ["7-oak-guitar", "7-oak-sunset"].map(|it| it.parse::<Code>().unwrap());
        let agree = |ours: &Code, theirs: &Code| {
            let (half, share) = Half::begin(ours);
            let (key, answer) = answer(theirs, &share).unwrap();
            half.finish(&answer).unwrap().verify(b"m", &key.code(b"m"))
        };
        assert!(agree(&code, &code) && !agree(&code, &other));
        let (_, share) = Half::begin(&code);
        for bad in [&b""[..], &share[1..], &[0x41; 33], &[0xff; 33], &share.repeat(2)] {
            assert!(answer(&code, bad).is_err() || bad == [0x41; 33]);
        }
    }
}
