//! The file of settings of an identity provider: TOML, read strictly.
//!
//! Invariants: a name that is not known is refused, and so is one that has no effect for the kind; other files are found
//! beside this one, unless their paths are absolute.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::jwt::{Audience, JwtRules, Keys};
use super::keys::{self, Algorithm, VerifyingKey};
use super::phoenix::{Derivation, PhoenixRules};
use super::remote::RemoteSet;
use super::revoked::Revoked;
use super::{Kind, MAX_ROOTS, MAX_SETTINGS, Provider, ProviderError, disk, needed};
use crate::io::fetch::{self, Place};
use crate::proto::token::mapping::{Mapping, RoleRule, SubjectRule, TopicRule};

/// Most by which clocks may differ, in seconds.
const MAX_LEEWAY: u64 = 300;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Name {
    Jwt,
    Ash,
    Phoenix,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl From<OneOrMany> for Vec<String> {
    fn from(it: OneOrMany) -> Self {
        match it {
            OneOrMany::One(one) => vec![one],
            OneOrMany::Many(many) => many,
        }
    }
}

/// The file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    kind: Name,
    issuer: Option<String>,
    algorithm: Option<Algorithm>,
    key_file: Option<PathBuf>,
    key_set_file: Option<PathBuf>,
    key_set_url: Option<String>,
    key_set_ca: Option<PathBuf>,
    audience: Option<OneOrMany>,
    any_audience: Option<bool>,
    leeway: Option<u64>,
    tenants: Option<OneOrMany>,
    purposes: Option<OneOrMany>,
    revoked_file: Option<PathBuf>,
    salt: Option<String>,
    max_age: Option<u64>,
    key_iterations: Option<u32>,
    key_length: Option<usize>,
    key_digest: Option<String>,
    #[serde(default)]
    subject: SubjectRule,
    role: Option<RoleRule>,
    topics: Option<TopicRule>,
}

impl Provider {
    /// The provider whose settings are in this file; what is fetched for it is kept in the data directory.
    /// `before` is what was revoked until now.
    pub(super) fn read(
        path: &Path,
        data: Option<&Path>,
        before: Option<&Revoked>,
    ) -> Result<Self, ProviderError> {
        // Before anything is read, so that what changes meanwhile is read again.
        let mut files = vec![(path.to_owned(), disk::file_state(path))];
        let refuse = |reason: String| ProviderError::Settings { path: path.to_owned(), reason };
        let text = String::from_utf8(needed(path, MAX_SETTINGS)?)
            .map_err(|_binary| refuse("it is not a text".to_owned()))?;
        let mut settings: Settings =
            toml::from_str(&text).map_err(|error| refuse(error.to_string().trim().to_owned()))?;
        let beside = path.parent().unwrap_or(Path::new(""));
        let Settings { key_file, key_set_file, key_set_ca, revoked_file, .. } = &mut settings;
        for file in [key_file, key_set_file, key_set_ca, revoked_file].into_iter().flatten() {
            *file = beside.join(&*file);
            files.push((file.clone(), disk::file_state(file)));
        }
        settings.check().map_err(|reason| refuse(reason.to_owned()))?;
        let list = settings.revoked_file.take();
        let revoked = list.as_deref().map(|list| Revoked::read(list, before)).transpose()?;
        let mapping = Mapping {
            subject: std::mem::take(&mut settings.subject),
            role: settings.role.take(),
            topics: settings.topics.take(),
        };
        mapping.check().map_err(|reason| refuse(reason.to_owned()))?;
        let kind = settings.kind(path, data)?;
        Ok(Self { kind, mapping, revoked: revoked.unwrap_or_default(), list, files })
    }
}

impl Settings {
    /// Refuses what does not fit together.
    fn check(&self) -> Result<(), &'static str> {
        let jwt = [
            self.issuer.is_some(),
            self.algorithm.is_some(),
            self.key_set_file.is_some(),
            self.key_set_url.is_some(),
            self.audience.is_some(),
            self.any_audience.is_some(),
        ];
        let phoenix = [
            self.salt.is_some(),
            self.max_age.is_some(),
            self.key_iterations.is_some(),
            self.key_length.is_some(),
            self.key_digest.is_some(),
        ];
        let ash = [self.tenants.is_some(), self.purposes.is_some()];
        let any = |all: &[bool]| all.contains(&true);
        match self.kind {
            Name::Phoenix if any(&jwt) => {
                return Err(
                    "tokens of Phoenix.Token have no issuer, algorithm, key set or audience",
                );
            }
            Name::Jwt | Name::Ash if any(&phoenix) => {
                return Err("salt, max_age and key_* are of kind = \"phoenix\"");
            }
            Name::Jwt | Name::Phoenix if any(&ash) => {
                return Err("tenants and purposes are of kind = \"ash\"");
            }
            Name::Jwt if self.issuer.is_none() => {
                return Err("issuer is missing: what the claim iss must be");
            }
            Name::Jwt if self.algorithm.is_none() => {
                return Err("algorithm is missing: HS256, HS384, HS512, RS256, ES256 or EdDSA");
            }
            Name::Jwt | Name::Ash if self.audience.is_some() && self.any_audience == Some(true) => {
                return Err("audience and any_audience exclude each other");
            }
            Name::Jwt if self.audience.is_none() && self.any_audience != Some(true) => {
                return Err(
                    "audience is missing: what the claim aud must be; or any_audience = true",
                );
            }
            Name::Phoenix if self.salt.as_deref().is_none_or(str::is_empty) => {
                return Err("salt is missing: what the application gives to Phoenix.Token.sign");
            }
            Name::Jwt | Name::Ash | Name::Phoenix => {}
        }
        if self.leeway.is_some_and(|leeway| leeway > MAX_LEEWAY) {
            return Err("leeway is at most 300 seconds");
        }
        if self.key_set_ca.is_some() && self.key_set_url.is_none() {
            return Err("key_set_ca is for a key_set_url");
        }
        let keys =
            [self.key_file.is_some(), self.key_set_file.is_some(), self.key_set_url.is_some()];
        match keys.into_iter().filter(|it| *it).count() {
            1 => Ok(()),
            0 => Err("key_file is missing (or key_set_file or key_set_url, for JSON Web Tokens)"),
            _ => Err("key_file, key_set_file and key_set_url exclude each other"),
        }
    }

    /// The set at `key_set_url`.
    fn remote(
        &self,
        url: &str,
        path: &Path,
        data: Option<&Path>,
    ) -> Result<RemoteSet, ProviderError> {
        let refuse = |reason: String| ProviderError::Settings { path: path.to_owned(), reason };
        let algorithm = self.algorithm.unwrap_or(Algorithm::Hs256);
        if algorithm.is_secret() {
            let reason = "a shared secret is no key set: name its file as key_file";
            return Err(refuse(reason.to_owned()));
        }
        let place: Place = url.parse().map_err(|why| refuse(format!("key_set_url: {why}")))?;
        let roots = self.key_set_ca.as_deref().map(|file| {
            let roots = fetch::roots_of(&needed(file, MAX_ROOTS)?);
            let reason = "it holds no PEM certificates of authorities alone";
            roots.ok_or_else(|| ProviderError::Content { path: file.to_owned(), reason })
        });
        Ok(RemoteSet::new(place, roots.transpose()?, path, algorithm, data))
    }

    fn kind(self, path: &Path, data: Option<&Path>) -> Result<Kind, ProviderError> {
        let leeway = self.leeway.unwrap_or(0);
        if self.kind == Name::Phoenix {
            let derivation = Derivation {
                salt: self.salt.unwrap_or_default(),
                iterations: self.key_iterations.unwrap_or(1000),
                length: self.key_length.unwrap_or(32),
                digest: self.key_digest.unwrap_or_else(|| "sha256".to_owned()),
            };
            let key = self.key_file.unwrap_or_default();
            let rules = PhoenixRules::new(path, &key, &derivation, self.max_age, leeway)?;
            return Ok(Kind::Phoenix(Box::new(rules)));
        }
        let ash = self.kind == Name::Ash;
        let algorithm = self.algorithm.unwrap_or(Algorithm::Hs256);
        let found = match (&self.key_file, &self.key_set_url) {
            (Some(file), _) => Keys::Read(jwt_key(path, file, algorithm)?),
            (None, Some(url)) => Keys::Remote(Arc::new(self.remote(url, path, data)?)),
            (None, None) => {
                let set = self.key_set_file.as_deref().unwrap_or(path);
                Keys::Read(keys::key_set(path, set, algorithm)?)
            }
        };
        let audience = match (self.audience, self.any_audience) {
            (Some(audience), _) => Audience::Among(audience.into()),
            (None, Some(true)) => Audience::Any,
            (None, _) => Audience::VersionRequirement,
        };
        Ok(Kind::Jwt(JwtRules {
            issuer: self.issuer,
            algorithm,
            keys: found,
            audience,
            leeway,
            ash: ash.then(|| {
                let tenants = self.tenants.map(Vec::from).unwrap_or_default();
                let purposes = self.purposes.map_or_else(|| vec!["user".to_owned()], Vec::from);
                super::jwt::AshRules { tenants, purposes }
            }),
        }))
    }
}

fn jwt_key(
    path: &Path,
    file: &Path,
    algorithm: Algorithm,
) -> Result<Vec<VerifyingKey>, ProviderError> {
    Ok(vec![match algorithm.is_secret() {
        true => keys::secret(path, file, algorithm)?,
        false => keys::public(path, file, algorithm)?,
    }])
}
