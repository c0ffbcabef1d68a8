//! The key set of an issuer that is at a URL (RFC 7517; OpenID Connect Discovery 1.0, `jwks_uri`): fetched again and again, and
//! kept on disk.
//!
//! Owns the folder `key-sets` of the data directory: a file for each URL, which says of which URL its set is. Invariants:
//!
//! 1. What cannot be fetched, or is no set with a key for the algorithm, changes nothing: the last good set stays in force, for
//!    as long as there is no other. Before there is one, no token of the issuer can be judged.
//! 2. A set in force is the issuer's last one that this node has seen: keys that it no longer has count no more.
//! 3. How often it is fetched is decided by `proto::polling`; tokens, however many, bring it forward once in half a minute.
//! 4. A file in the folder counts as what was fetched did: for its URL, and where it is a set.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use rustls::RootCertStore;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::super::{Fetch, Fetched, KeySetState, Look};
use super::keys::{Algorithm, VerifyingKey, keys_of};
use super::{disk, key_set};
use crate::io::clock;
use crate::io::fetch::{self, Place};
use crate::proto::polling::Polling;

/// A set that has not come by then is given up, for now.
const LIMIT: Duration = Duration::from_secs(10);
/// The folder in the data directory.
const FOLDER: &str = "key-sets";

/// A set as it lies on disk.
#[derive(Serialize, Deserialize)]
struct Stored<'a> {
    url: String,
    #[serde(borrow)]
    set: &'a RawValue,
}

struct Progress {
    /// `None` until it is asked for the first time.
    polling: Option<Polling>,
    fetched: Option<SystemTime>,
    error: Option<String>,
    /// Whether the set in force is on disk.
    kept: bool,
}

/// A key set at a URL.
pub(super) struct RemoteSet {
    place: Place,
    /// Whom to trust for the place; `None`: those whom the machine trusts.
    roots: Option<RootCertStore>,
    /// Whose keys these are.
    settings: PathBuf,
    algorithm: Algorithm,
    /// The file that keeps it.
    file: Option<PathBuf>,
    keys: ArcSwapOption<Vec<VerifyingKey>>,
    /// A token was for a key that the set has not.
    missed: AtomicBool,
    progress: Mutex<Progress>,
}

impl RemoteSet {
    /// The set at a place. `data` is the node's data directory: what lies there is in force until there is a newer one.
    pub(super) fn new(
        place: Place,
        roots: Option<RootCertStore>,
        settings: &Path,
        algorithm: Algorithm,
        data: Option<&Path>,
    ) -> Self {
        let hash: [u8; 32] = Sha256::digest(place.url().as_bytes()).into();
        let name: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let file = data.map(|data| data.join(FOLDER).join(name));
        let stored = file.as_deref().and_then(|file| {
            let bytes = disk::read_list(file).ok().flatten()?;
            let Stored { url, set } = serde_json::from_slice(&bytes).ok()?;
            let set = key_set::parse(set.get().as_bytes()).filter(|_| url == place.url())?;
            keys_of(settings, &set, algorithm)
        });
        let kept = stored.is_some();
        Self {
            place,
            roots,
            settings: settings.to_owned(),
            algorithm,
            file,
            keys: ArcSwapOption::from_pointee(stored),
            missed: AtomicBool::new(false),
            progress: Mutex::new(Progress { polling: None, fetched: None, error: None, kept }),
        }
    }

    /// Goes on from what was known before the settings changed.
    pub(super) fn follow(&self, before: &Self) {
        let same = |it: &Self| (it.place.url().to_owned(), it.settings.clone(), it.algorithm);
        let keys = before.keys.load_full().filter(|_| same(self) == same(before));
        if let Some(keys) = keys {
            self.keys.store(Some(keys));
            self.progress.lock().fetched = before.progress.lock().fetched;
        }
    }

    /// The keys in force; `None`: there is no set yet.
    pub(super) fn keys(&self) -> Option<Arc<Vec<VerifyingKey>>> {
        self.keys.load_full()
    }

    /// Notes that a token is for a key that the set has not.
    pub(super) fn miss(&self) {
        self.missed.store(true, Ordering::Relaxed);
    }

    /// How it stands.
    pub(super) fn state(&self) -> KeySetState {
        let (progress, keys) = (self.progress.lock(), self.keys.load());
        KeySetState {
            url: self.place.url().to_owned(),
            keys: keys.as_ref().map_or(0, |keys| keys.len()),
            fetched: progress.fetched,
            error: progress.error.clone(),
        }
    }

    /// The next fetch, if it is due. `clock` tells the time, then and now; `number` rises when the set in force changes.
    pub(super) fn due(
        self: &Arc<Self>,
        clock: fn() -> Instant,
        number: &Arc<AtomicU64>,
    ) -> Option<Fetch> {
        let now = clock();
        let mut progress = self.progress.lock();
        let polling = progress.polling.get_or_insert_with(|| Polling::new(now));
        if !polling.due(self.missed.load(Ordering::Relaxed), now) {
            return None;
        }
        self.missed.store(false, Ordering::Relaxed);
        let (set, number) = (self.clone(), number.clone());
        Some(Box::pin(async move { set.fetch(clock, &number).await }))
    }

    async fn fetch(self: Arc<Self>, clock: fn() -> Instant, number: &AtomicU64) -> Fetched {
        let url = self.place.url().to_owned();
        let fetched = fetch::fetch(&self.place, self.roots.clone(), key_set::MAX_FILE, LIMIT).await;
        let fetched = fetched.map_err(|error| error.to_string()).and_then(|document| {
            let keys = self.read(&document.bytes)?;
            Ok((document, keys))
        });
        let (document, keys) = match fetched {
            Ok(fetched) => fetched,
            Err(error) => {
                let mut progress = self.progress.lock();
                progress.error = Some(error.clone());
                if let Some(polling) = &mut progress.polling {
                    polling.failed(clock(), &mut rand::rng());
                }
                return Fetched { url, found: Err(error), not_kept: None };
            }
        };
        let changed = self.keys.load().as_ref().is_none_or(|old| !old.iter().eq(&keys));
        if changed {
            self.keys.store(Some(Arc::new(keys)));
            number.fetch_add(1, Ordering::Release);
        }
        let to_keep = {
            let mut progress = self.progress.lock();
            progress.error = None;
            progress.fetched = Some(clock::wall());
            if let Some(polling) = &mut progress.polling {
                polling.fetched(document.max_age, clock(), &mut rand::rng());
            }
            changed || !progress.kept
        };
        let not_kept = if to_keep { self.clone().keep(document.bytes).await.err() } else { None };
        if to_keep {
            self.progress.lock().kept = not_kept.is_none();
        }
        let found = Ok(if changed { Look::New(()) } else { Look::Sound });
        Fetched { url, found, not_kept }
    }

    /// The keys of a set that was fetched.
    fn read(&self, bytes: &[u8]) -> Result<Vec<VerifyingKey>, String> {
        let set = key_set::parse(bytes);
        let set = set.ok_or("what is there is no JSON Web Key Set of 1 to 64 keys")?;
        let keys = keys_of(&self.settings, &set, self.algorithm);
        keys.ok_or_else(|| "none of the keys there is for the algorithm".to_owned())
    }

    /// Puts a set on disk.
    async fn keep(self: Arc<Self>, set: Vec<u8>) -> Result<(), String> {
        let Some(file) = self.file.clone() else { return Ok(()) };
        let kept = tokio::task::spawn_blocking(move || {
            let set = serde_json::from_slice(&set).map_err(|error| error.to_string())?;
            let stored = Stored { url: self.place.url().to_owned(), set };
            let text = serde_json::to_vec(&stored).map_err(|error| error.to_string())?;
            file.parent().map_or(Ok(()), disk::make_directory).map_err(|it| it.to_string())?;
            disk::write(&file, &text, disk::PRIVATE).map_err(|error| error.to_string())
        });
        kept.await.map_err(|error| error.to_string())?
    }
}
