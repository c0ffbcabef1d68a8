//! What a machine's own token proves: a JSON Web Token (RFC 7519) of the platform that it runs on, such as a Kubernetes service
//! account's, whose keys are in a file (JSON Web Key Set, RFC 7517).
//!
//! Invariants: the key and its kind come from the file alone, and only signatures with a private key count; a token counts for
//! the issuer and the audience that are configured, and between its dates; the names that it is good for are made of its
//! subject, and of nothing that the asker says.
//!
//! Who sees a token can use it for the same names until it ends: nodes that pass a request on do. A name that has a key is
//! safe from that; tokens should last minutes, and be for this audience alone.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::jwk::{Jwk, JwkSet, KeyAlgorithm};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use parking_lot::Mutex;
use serde::Deserialize;

use crate::io::identity::disk::{self, FileState};
use crate::io::identity::enrol::EnrolError;
use crate::io::identity::provider::key_set;
use crate::proto::enrol::NamePattern;
use crate::proto::node::NodeName;
use crate::proto::token::NumericDate;

/// By how much the clocks of the platform and of this host may differ.
const LEEWAY: Duration = Duration::from_secs(60);

/// By what tokens of machines are judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineRules {
    /// The file with the platform's public keys.
    pub keys: PathBuf,
    /// What `iss` must be.
    pub issuer: String,
    /// What must be in `aud`.
    pub audience: String,
    /// Which subjects count: a text in which each `*` stands for any characters but `:`, for example
    /// `system:serviceaccount:*:*`.
    pub subject: String,
    /// The names that such a subject may take: a [`NamePattern`] in which `$1` to `$9` stand for what the stars of `subject`
    /// stood for, for example `$2-*@*.$1.example`.
    pub names: String,
}

/// Judges tokens by these rules; keys are read again when their file has changed.
#[derive(Debug)]
pub(super) struct Machines {
    rules: MachineRules,
    read: Mutex<Option<(FileState, Arc<JwkSet>)>>,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: NumericDate,
    nbf: Option<NumericDate>,
}

impl Machines {
    pub(super) fn new(rules: MachineRules) -> Self {
        Self { rules, read: Mutex::default() }
    }

    /// Whether the token is good for this name at `now`; the inner error says why not.
    pub(super) fn judge(
        &self,
        token: &str,
        name: &NodeName,
        now: SystemTime,
    ) -> Result<Result<(), &'static str>, EnrolError> {
        let keys = self.keys()?;
        Ok(self.check(token, &keys, name, now))
    }

    fn check(
        &self,
        token: &str,
        keys: &JwkSet,
        name: &NodeName,
        now: SystemTime,
    ) -> Result<(), &'static str> {
        let header = decode_header(token).map_err(|_detail| "it is no token")?;
        if header.crit.is_some() {
            return Err("the token has extensions that are not known here");
        }
        let unknown = "no key of the platform has signed the token";
        let named = |key: &&Jwk| header.kid.is_none() || key.common.key_id == header.kid;
        let (algorithm, mut candidates) = (header.alg, keys.keys.iter().filter(named));
        let rules =
            self.validation(algorithm).ok_or("the token is not signed with a private key")?;
        let claims = candidates.find_map(|key| {
            let declared = key.common.key_algorithm;
            let fits = declared.is_none_or(|it| it == KeyAlgorithm::from(algorithm));
            let key = DecodingKey::from_jwk(key).ok().filter(|_| fits)?;
            decode::<Claims>(token, &key, &rules).ok().map(|it| it.claims)
        });
        let claims = claims.ok_or(unknown)?;
        let at = |date: NumericDate, up| {
            date.seconds(up).and_then(|it| UNIX_EPOCH.checked_add(Duration::from_secs(it)))
        };
        if at(claims.exp, false).is_none_or(|end| now >= end + LEEWAY) {
            return Err("the token has expired");
        }
        let begins = claims.nbf.map(|nbf| at(nbf, true));
        if begins.is_some_and(|begins| begins.is_none_or(|begins| now + LEEWAY < begins)) {
            return Err("the token is not valid yet");
        }
        let names = self.names(&claims.sub).ok_or("the token's subject is none that may join")?;
        if names.matches(name) { Ok(()) } else { Err("the token is for other names") }
    }

    /// What every token must say; `None` for one that is signed with a shared secret, or not at all.
    fn validation(&self, algorithm: Algorithm) -> Option<Validation> {
        let private = matches!(
            algorithm,
            Algorithm::ES256
                | Algorithm::ES384
                | Algorithm::RS256
                | Algorithm::RS384
                | Algorithm::RS512
                | Algorithm::PS256
                | Algorithm::PS384
                | Algorithm::PS512
                | Algorithm::EdDSA
        );
        let mut rules = Validation::new(algorithm);
        rules.set_audience(&[&self.rules.audience]);
        rules.set_issuer(&[&self.rules.issuer]);
        rules.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        // The library would ask the system for the time; ours comes from the caller.
        rules.validate_exp = false;
        rules.validate_nbf = false;
        private.then_some(rules)
    }

    /// The names that a subject may take.
    fn names(&self, subject: &str) -> Option<NamePattern> {
        let taken = captures(&self.rules.subject, subject)?;
        let mut names = String::new();
        let mut parts = self.rules.names.split('$');
        names.push_str(parts.next().unwrap_or_default());
        for part in parts {
            let digit = part.chars().next().and_then(|digit| digit.to_digit(10))?;
            let word = taken.get(usize::try_from(digit).ok()?.checked_sub(1)?)?;
            names.push_str(word);
            names.push_str(part.get(1..)?);
        }
        names.parse().ok()
    }

    fn keys(&self) -> Result<Arc<JwkSet>, EnrolError> {
        let path = &self.rules.keys;
        let state = disk::file_state(path);
        let mut read = self.read.lock();
        if let Some((seen, keys)) = read.as_ref().filter(|(seen, _)| *seen == state) {
            debug_assert!(seen.is_ok(), "what is not there is not kept");
            return Ok(keys.clone());
        }
        let text = disk::read_list(path)?.ok_or(EnrolError::MachineKeys(path.clone()))?;
        let keys = key_set::parse(&text);
        let keys = Arc::new(keys.ok_or_else(|| EnrolError::MachineKeys(path.clone()))?);
        *read = Some((state, keys.clone()));
        Ok(keys)
    }
}

/// What the stars of a pattern stand for in a text: parts between colons, made of what names have. `None` where the text is
/// not like the pattern.
fn captures<'a>(pattern: &str, text: &'a str) -> Option<Vec<&'a str>> {
    let (patterns, parts) = (pattern.split(':'), text.split(':'));
    let mut taken = Vec::new();
    let mut parts = parts;
    for pattern in patterns {
        let part = parts.next()?;
        let Some((before, after)) = pattern.split_once('*') else {
            if pattern == part {
                continue;
            }
            return None;
        };
        let word = part.strip_prefix(before)?.strip_suffix(after)?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if word.is_empty() || !word.bytes().all(plain) {
            return None;
        }
        taken.push(word);
    }
    parts.next().is_none().then_some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_makes_the_names_that_it_may_take() {
        let names = |subject: &str, names: &str, text: &str| {
            let rules = MachineRules {
                keys: PathBuf::new(),
                issuer: String::new(),
                audience: String::new(),
                subject: subject.to_owned(),
                names: names.to_owned(),
            };
            Machines::new(rules).names(text).map(|it| it.to_string())
        };
        let all = "system:serviceaccount:*:*";
        let web = "system:serviceaccount:prod:web";
        assert_eq!(names(all, "$2-*@*.$1.x", web).unwrap(), "web-*@*.prod.x");
        assert_eq!(
            names("system:serviceaccount:prod:w*", "w$1@*", web).unwrap(),
            "weeb@*".replace("ee", "e")
        );
        assert_eq!(names(web, "web@h", web).unwrap(), "web@h");
        for (subject, template, text) in [
            (all, "$3@*", web),
            (all, "$0@*", web),
            (all, "$@*", web),
            (all, "$2@*", "system:serviceaccount:prod"),
            (all, "$2@*", "system:serviceaccount:prod:web:more"),
            (all, "$2@*", "system:serviceaccount:prod:"),
            (all, "$2@*", "system:serviceaccount:prod:*"),
            (all, "$2@*", "system:serviceaccount:prod:a@b"),
            (web, "web@h", "system:serviceaccount:prod:webx"),
        ] {
            assert_eq!(names(subject, template, text), None, "{text}");
        }
    }
}
