//! Tokens that another system has made for its users, and by what they count here.
//!
//! An identity provider is a file of settings (`settings`), and the files that it names: a key or a set of keys, which may be at a
//! URL instead (`remote`), and the ids of tokens that the system has revoked. Three kinds of tokens are read: JSON Web Tokens (RFC 7519), those of AshAuthentication,
//! which are JSON Web Tokens too (`jwt`), and those of Phoenix.Token (`phoenix`). Invariants:
//!
//! 1. The algorithm, the key and what claims mean come from the files alone, and from the URL that they name. What a token says of itself only selects which of
//!    them it is held against.
//! 2. A key that is secret is in a file that others cannot read, and in no log.
//! 3. A provider whose files cannot be used any more stays as it was; a node does not start with one. Of a list of revoked ids
//!    what can be used counts.
//! 4. To judge a token takes bounded memory and time: it is at most [`MAX_TOKEN`] long, and there are at most `MAX_PROVIDERS`
//!    providers.
//! 5. Once the key that a token was signed with is gone from the files, or from the set at a URL, the token counts no more.

mod jwt;
pub(super) mod key_set;
mod keys;
mod phoenix;
mod remote;
mod revoked;
mod settings;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde_json::Value;
use sha2::{Digest, Sha256};

use self::jwt::{JwtRules, Keys};
use self::phoenix::PhoenixRules;
use self::remote::RemoteSet;
use self::revoked::{MAX_REVOKED, Revoked};
use super::disk::{self, FileState};
use super::{Fetch, IdentityError, KeySetState, Look, MAX_TOKEN, TokenError};
use crate::io::clock::unix_seconds;
use crate::proto::token::mapping::Mapping;
use crate::proto::token::{AUDIENCE, Claims, check_id};

/// Most providers of a node.
const MAX_PROVIDERS: usize = 16;
/// Longest file of settings, in bytes.
const MAX_SETTINGS: usize = 64 * 1024;
/// Longest file of root certificates, in bytes.
const MAX_ROOTS: usize = 256 * 1024;

/// Why an identity provider cannot be used. What was in force before stays; the operator corrects the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProviderError {
    /// A file that is needed is not there.
    #[error("{} is missing: put it there", .0.display())]
    Missing(PathBuf),
    /// A file cannot be read, or others can read a secret.
    #[error(transparent)]
    File(#[from] IdentityError),
    /// Settings that are none, or do not fit together.
    #[error("{} is no identity provider: {reason}", path.display())]
    Settings {
        /// The file of settings.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A key, a key set or a list of revoked ids is not what the settings say.
    #[error("{} cannot be used: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// More files than may be.
    #[error("{0} identity providers, at most {MAX_PROVIDERS} are allowed: leave some out")]
    TooMany(usize),
}

/// By which a key is known: a hash of the key and of whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyMark([u8; 32]);

impl KeyMark {
    fn of(settings: &Path, key: &[u8]) -> Self {
        let mut hash = Sha256::new();
        // Two providers with the same key are two.
        hash.update(settings.as_os_str().as_encoded_bytes());
        hash.update([0]);
        hash.update(key);
        Self(hash.finalize().into())
    }
}

/// How tokens of a kind are read and verified.
enum Kind {
    Jwt(JwtRules),
    Phoenix(Box<PhoenixRules>),
}

/// A provider as its files have it.
struct Provider {
    kind: Kind,
    mapping: Mapping,
    revoked: Revoked,
    /// The file of what is revoked.
    list: Option<PathBuf>,
    /// The files that it was made of, and what state they were in.
    files: Vec<(PathBuf, FileState)>,
}

/// What a token of a provider says, once its signature is good.
struct Read {
    claims: Value,
    /// Where its kind has the subject.
    usual: &'static str,
    issuer: String,
    /// Its own id; `None`: it has none.
    jti: Option<String>,
    /// In seconds since 1970.
    made: Option<u64>,
    /// The first second in which it counts.
    begins: Option<u64>,
    /// The first second in which it counts no more.
    expires: u64,
    key: KeyMark,
}

/// What all providers of a node are. Clones share it.
#[derive(Clone, Default)]
pub struct Providers {
    paths: Arc<[PathBuf]>,
    /// The data directory, if what is fetched is to be kept.
    data: Option<Arc<Path>>,
    all: Arc<ArcSwap<Vec<Arc<Provider>>>>,
    /// Held while files are looked at.
    looking: Arc<Mutex<()>>,
    /// Why the files of one cannot be used, as the last look found.
    failing: Arc<Mutex<Option<String>>>,
    /// What was found in files, and is to be said once.
    notes: Arc<Mutex<Vec<String>>>,
    number: Arc<AtomicU64>,
}

impl fmt::Debug for Providers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Providers").field("paths", &self.paths).finish_non_exhaustive()
    }
}

impl Providers {
    /// The providers of these files of settings. Key sets that are fetched are kept in the data directory, and read from there;
    /// none is fetched yet.
    ///
    /// # Errors
    /// Each [`ProviderError`].
    pub fn open(paths: &[PathBuf], data: Option<&Path>) -> Result<Self, ProviderError> {
        if paths.len() > MAX_PROVIDERS {
            return Err(ProviderError::TooMany(paths.len()));
        }
        let all: Result<Vec<_>, _> =
            paths.iter().map(|path| Provider::read(path, data, None).map(Arc::new)).collect();
        let all = all?;
        let notes = all.iter().filter_map(|it| it.note()).collect();
        Ok(Self {
            paths: paths.into(),
            data: data.map(Arc::from),
            all: Arc::new(ArcSwap::from_pointee(all)),
            notes: Arc::new(Mutex::new(notes)),
            ..Self::default()
        })
    }

    /// Reads again what has changed; what cannot be used stays as it was. Blocks on the file system.
    ///
    /// # Errors
    /// The [`ProviderError`] of the first provider whose files cannot be used; others are up to date.
    pub fn look(&self) -> Result<Look<()>, ProviderError> {
        let _alone = self.looking.lock();
        let mut all = self.all.load().to_vec();
        let (mut changed, mut failed) = (false, None);
        for (provider, path) in all.iter_mut().zip(self.paths.iter()) {
            let same = provider.files.iter().all(|(path, state)| disk::file_state(path) == *state);
            if same && provider.revoked.unread.is_none() {
                continue;
            }
            match Provider::read(path, self.data.as_deref(), Some(&provider.revoked)) {
                // Still unreadable, and nothing else is new.
                Ok(read) if same && read.revoked.unread == provider.revoked.unread => {}
                Ok(read) => {
                    if let (Some(set), Some(before)) = (read.remote(), provider.remote()) {
                        set.follow(before);
                    }
                    self.notes.lock().extend(read.note());
                    (*provider, changed) = (Arc::new(read), true);
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if changed {
            self.all.store(Arc::new(all));
            self.number.fetch_add(1, Ordering::Release);
        }
        *self.failing.lock() = failed.as_ref().map(ToString::to_string);
        match failed {
            Some(error) => Err(error),
            None if changed => Ok(Look::New(())),
            None => Ok(Look::Unchanged),
        }
    }

    /// The key sets that are to be fetched now. `clock` tells the time, then and now.
    pub fn due(&self, clock: fn() -> Instant) -> Vec<Fetch> {
        let all = self.all.load();
        let sets = all.iter().filter_map(|it| it.remote());
        sets.filter_map(|set| set.due(clock, &self.number)).collect()
    }

    /// How it stands with each key set that is fetched.
    pub fn key_sets(&self) -> Vec<KeySetState> {
        self.all.load().iter().filter_map(|it| it.remote()).map(|set| set.state()).collect()
    }

    /// Why files of a provider cannot be used, and are not in force.
    pub fn trouble(&self) -> Option<String> {
        let unread = self.all.load().iter().find_map(|it| it.revoked.unread.clone());
        unread.or_else(|| self.failing.lock().clone())
    }

    /// What is to be said of the files that were read since this was asked last.
    pub fn notes(&self) -> Vec<String> {
        std::mem::take(&mut *self.notes.lock())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.paths.len()
    }

    /// Changes when a provider has.
    pub fn number(&self) -> u64 {
        self.number.load(Ordering::Acquire)
    }

    /// True when the token with this id, signed with this key, counts no more: its provider has revoked it, or has given up
    /// the key.
    pub fn outlived(&self, key: KeyMark, jti: &str) -> bool {
        let all = self.all.load();
        let provider = all.iter().find(|it| it.has(key));
        provider.is_none_or(|it| it.revoked.has(jti))
    }

    /// What a token says, and by which key, if it counts at `now`; `None` when it is of no provider of this node.
    pub fn verify(
        &self,
        token: &str,
        now: SystemTime,
    ) -> Option<Result<(Claims, KeyMark), TokenError>> {
        if token.len() > MAX_TOKEN {
            return None;
        }
        let all = self.all.load();
        let mut refused = None;
        let seen = jwt::Seen::of(token);
        for provider in all.iter() {
            let read = match (&provider.kind, &seen) {
                (Kind::Phoenix(rules), None) => rules.read(token),
                (Kind::Jwt(rules), Some(seen)) => rules.read(token, seen),
                (Kind::Phoenix(_), Some(_)) | (Kind::Jwt(_), None) => None,
            };
            match read.map(|read| provider.judge(read?, now)) {
                Some(Ok(judged)) => return Some(Ok(judged)),
                // What one has signed says more than that another one has not.
                Some(Err(error)) => refused = refused.filter(|it| !is_foreign(*it)).or(Some(error)),
                None => {}
            }
        }
        refused.map(Err)
    }
}

/// Whether a token may be another provider's.
fn is_foreign(error: TokenError) -> bool {
    use TokenError::{Algorithm, NotForUs, Signature, UnknownKey};
    [Algorithm, NotForUs, Signature, UnknownKey].contains(&error)
}

impl Provider {
    /// What is to be said of its list of revoked ids.
    fn note(&self) -> Option<String> {
        self.revoked.note(self.list.as_deref()?)
    }

    /// Its key set, where that is at a URL.
    fn remote(&self) -> Option<&Arc<RemoteSet>> {
        match &self.kind {
            Kind::Jwt(JwtRules { keys: Keys::Remote(set), .. }) => Some(set),
            Kind::Jwt(_) | Kind::Phoenix(_) => None,
        }
    }

    fn has(&self, key: KeyMark) -> bool {
        match &self.kind {
            Kind::Jwt(rules) => rules.has(key),
            Kind::Phoenix(rules) => rules.has(key),
        }
    }

    fn judge(&self, read: Read, now: SystemTime) -> Result<(Claims, KeyMark), TokenError> {
        let Read { claims, usual, issuer, jti, made, begins, expires, key } = read;
        let seconds = unix_seconds(now);
        if seconds >= expires {
            return Err(TokenError::Expired);
        }
        if begins.is_some_and(|begins| seconds < begins) {
            return Err(TokenError::NotYetValid);
        }
        let jti = jti.ok_or(TokenError::Malformed)?;
        check_id(&jti).map_err(|_id| TokenError::Malformed)?;
        if self.revoked.has(jti.as_str()) {
            return Err(TokenError::Revoked);
        }
        let mapped = self.mapping.apply(&claims, usual).map_err(TokenError::Unmapped)?;
        let claims = Claims {
            iss: issuer,
            aud: AUDIENCE.to_owned(),
            sub: mapped.sub,
            jti,
            iat: made.unwrap_or(seconds).min(seconds),
            exp: expires,
            role: mapped.role,
            topics: mapped.topics,
        };
        claims.check().map_err(|_unsound| TokenError::Malformed)?;
        Ok((claims, key))
    }
}

/// The id of a token that has none of its own: half of the SHA-256 of what is signed, in hexadecimal.
fn id_of(signed: &str) -> String {
    let hash: [u8; 32] = Sha256::digest(signed.as_bytes()).into();
    hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// A file that a provider needs, of at most so many bytes.
fn needed(path: &Path, most: usize) -> Result<Vec<u8>, ProviderError> {
    let refuse = |reason| ProviderError::Content { path: path.to_owned(), reason };
    let reason = match most {
        MAX_SETTINGS => "it is longer than 64 KiB",
        MAX_REVOKED => "it is longer than 64 MiB",
        _ => "it is too long",
    };
    // Before it is read: what is too long is looked at again and again.
    let length = disk::file_state(path).map_or(0, |(.., length)| length);
    if usize::try_from(length).unwrap_or(usize::MAX) > most {
        return Err(refuse(reason));
    }
    let limit = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
    let text = disk::read_up_to(path, limit)?;
    let text = text.ok_or_else(|| ProviderError::Missing(path.to_owned()))?;
    if text.len() <= most { Ok(text) } else { Err(refuse(reason)) }
}

#[cfg(test)]
mod tests;
