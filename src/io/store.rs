//! What a node remembers between runs: its incarnation, what it knows of each node ([`Known`]), the lists of the authority
//! that were in force, and the chain of what happened ([`Chain`]).
//!
//! One redb file in the data directory. Invariants:
//! 1. What a call wrote is durable when it returns, whole or not at all. Every commit has two phases, so a
//!    damaged last commit is an error and never an older state that looks sound.
//! 2. The file is locked while the node runs.
//! 3. A damaged file is set aside under a name with its time, never read as far as it goes; the last two of them stay.
//!    The store then starts empty, and [`Condition`] says so until the process ends.
//! 4. A disk that fails costs the call that needed it, no more: the file is opened anew for the next call, and
//!    [`Condition`] says that nothing is remembered until writes have succeeded for a while. A file that was removed is
//!    a failure of this kind, and a new one is begun.
//! 5. Opening reads the file whole only while it is small; it never walks the chain. Every value that is not
//!    part of the chain carries a checksum of its own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use redb::{Database, ReadTransaction, ReadableDatabase, WriteTransaction};

use crate::io::{clock, modes};
use crate::proto::chain::Fault;
use crate::proto::codec::CodecError;
use crate::proto::node::{Incarnation, NodeName};
use crate::proto::registry::{self, Known};

mod chain;
pub mod history;
mod place;
mod schema;

pub use self::chain::{Chain, Limits};
use self::place::{Id, Place};
use self::schema::{NODES, State};

/// Nodes that are remembered at most: those seen last.
const MAX_NODES: usize = 2 * registry::MAX_ROWS;

/// How long writes must succeed after one that failed, before the store counts as sound: on a full disk small ones do.
const STEADY: Duration = Duration::from_secs(10);

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process has it open: nothing changed; the operator runs one node per directory.
    #[error("{0} is in use: a node with this data directory is already running")]
    InUse(PathBuf),
    /// The directory cannot be made or written; nothing changed; the operator must act.
    #[error("data directory {path} is not usable: {cause}; choose another with --data-dir")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        cause: std::io::Error,
    },
    /// Others may write the directory, and so put files of their own there: nothing changed; the operator must act.
    #[error(
        "others may write the data directory {} (mode {mode:04o}): run `chmod go-w {}`, or choose one below it, which the node makes, with --data-dir",
        path.display(), path.display()
    )]
    OpenDirectory {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A later version of the program wrote the file: nothing changed; the operator runs that version.
    #[error("{path} is of schema {found}, which only a later version of xpando-node can read")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: u64,
    },
    /// The disk failed while in use: this call changed nothing. The caller tries again later.
    #[error("store: {0}")]
    Storage(String),
    /// The file is damaged: this call changed nothing. The next call looks at the whole file, and sets it aside
    /// unless it turns out sound.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    /// The file was removed or replaced under the running node: this call changed nothing, and what the file held is not
    /// remembered. The next call begins a new one, or opens the other.
    #[error("{} was removed or replaced while the node ran: what it held is lost", .0.display())]
    Removed(PathBuf),
    /// The chain in the file is that of another node: nothing changed; the operator gives each node a data
    /// directory of its own.
    #[error("the data directory holds the trail of {0}; choose another with --data-dir")]
    Foreign(String),
    /// The chain is not as it was written: nothing changed; the operator decides what to make of it.
    #[error("the trail is not as it was written: {0}")]
    Chain(Fault),
    /// A record cannot be kept: nothing changed; the caller is at fault.
    #[error("a record cannot be kept: {0}")]
    Record(CodecError),
    /// The node's key did not sign: nothing changed; the caller tries again later.
    #[error("the trail cannot be signed: {0}")]
    Signing(String),
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        Self::Chain(fault)
    }
}

impl From<CodecError> for StoreError {
    fn from(error: CodecError) -> Self {
        Self::Record(error)
    }
}

/// What opening found.
#[derive(Debug, PartialEq, Eq)]
pub enum Opened {
    /// A sound file, or none yet.
    Sound,
    /// A damaged file, now moved to this path; the store starts empty.
    SetAside(PathBuf),
}

/// How the store fares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// The damaged file that was set aside last in this run: what it held is not remembered.
    pub set_aside: Option<PathBuf>,
    /// Why nothing is being remembered at this moment.
    pub failing: Option<String>,
}

impl Condition {
    /// Whether something was or is being lost.
    pub fn is_degraded(&self) -> bool {
        self.set_aside.is_some() || self.failing.is_some()
    }
}

/// Why a piece of work on the file was not done.
enum Failure {
    /// The disk.
    Disk(std::io::Error),
    /// The file's content.
    Damaged(String),
    /// Neither.
    Refused(StoreError),
}

impl Failure {
    /// The error for the caller; `disk` is what one of the disk means to it.
    fn into_error(self, disk: impl FnOnce(std::io::Error) -> StoreError) -> StoreError {
        match self {
            Self::Disk(source) => disk(source),
            Self::Damaged(text) => StoreError::Damaged(text),
            Self::Refused(error) => error,
        }
    }
}

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        let text = error.to_string();
        if says_damaged(&error) {
            Self::Damaged(text)
        } else if let redb::Error::Io(source) = error {
            Self::Disk(source)
        } else {
            Self::Disk(std::io::Error::other(text))
        }
    }
}

fn says_damaged(error: &redb::Error) -> bool {
    use redb::Error::{
        Corrupted, Io, TableDoesNotExist, TableIsMultimap, TableIsNotMultimap, TableTypeMismatch,
        TypeDefinitionChanged, UpgradeRequired,
    };
    use std::io::ErrorKind::{InvalidData, UnexpectedEof};
    if let Io(source) = error {
        return [InvalidData, UnexpectedEof].contains(&source.kind());
    }
    matches!(
        error,
        Corrupted(_)
            | TableDoesNotExist(_)
            | TableIsMultimap(_)
            | TableIsNotMultimap(_)
            | TableTypeMismatch { .. }
            | TypeDefinitionChanged { .. }
            | UpgradeRequired(_)
    )
}

/// redb may panic on a file that was altered behind its back; to the node that is damage like any other.
fn guarded<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_panic| Err(Failure::Damaged("its pages contradict each other".into())))
}

/// As the actors' clock, paused where that is.
#[expect(clippy::disallowed_methods, reason = "the store has nobody who would tell it the time")]
fn now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

#[derive(Debug, Default)]
struct Inside {
    database: Option<Arc<Database>>,
    /// The file that is open.
    file: Option<Id>,
    /// Since when writes succeed again.
    mended: Option<tokio::time::Instant>,
    /// The file proved damaged in use.
    suspect: bool,
    /// The highest of this run, for the file that takes the place of a damaged one.
    incarnation: Incarnation,
    condition: Condition,
    /// A damaged file stays where it is: somebody only looks at it.
    looking: bool,
}

impl Inside {
    fn open(&mut self, place: &Place, now: SystemTime) -> Result<Opened, Failure> {
        let opened = match guarded(|| place.open(self.suspect, self.incarnation)) {
            Err(Failure::Damaged(_)) if !self.looking => {
                let aside = place.set_aside(now)?;
                self.condition = Condition { set_aside: Some(aside.clone()), failing: None };
                let fresh = guarded(|| place.open(false, self.incarnation))?;
                (fresh, Opened::SetAside(aside))
            }
            sound => (sound?, Opened::Sound),
        };
        let ((database, incarnation), opened) = opened;
        self.suspect = false;
        self.incarnation = self.incarnation.max(incarnation);
        self.database = Some(Arc::new(database));
        self.file = place.id();
        Ok(opened)
    }

    fn fail(&mut self, why: &StoreError) {
        self.condition.failing = Some(why.to_string());
        self.mended = None;
    }
}

/// The open store. Its methods wait for the disk: they are not for the threads of the actors.
#[derive(Debug)]
pub struct Store {
    place: Place,
    inside: Mutex<Inside>,
    /// What this start made: directories, the outermost first, and whether the file is new.
    made: (Vec<PathBuf>, bool),
}

impl Store {
    /// Opens the store in `directory`, which is made when it is missing. Directory and file are this user's alone
    /// afterwards.
    ///
    /// # Errors
    /// [`StoreError::InUse`], [`StoreError::Directory`], [`StoreError::OpenDirectory`], [`StoreError::Newer`].
    pub fn open(directory: &Path, now: SystemTime) -> Result<(Self, Opened), StoreError> {
        let unusable = |cause| StoreError::Directory { path: directory.to_owned(), cause };
        let made = modes::make_directory(directory).map_err(unusable)?;
        if let Some(mode) = modes::open_to_others(directory).map_err(unusable)? {
            return Err(StoreError::OpenDirectory { path: directory.to_owned(), mode });
        }
        modes::tighten(directory, modes::DIRECTORY).map_err(unusable)?;
        let place = Place::Directory(directory.to_owned(), place::FILE);
        let is_new = place.id().is_none();
        match Self::open_at(place, now) {
            Ok((mut store, opened)) => {
                store.made = (made, is_new);
                Ok((store, opened))
            }
            Err(failure) => {
                remove_directories(&made);
                Err(failure.into_error(unusable))
            }
        }
    }

    /// Takes away what [`Store::open`] made, for a start that failed: a file that was there before stays.
    pub fn unmake(&self) {
        let (directories, is_new) = &self.made;
        if *is_new {
            // What cannot be removed is found again by the next start.
            std::fs::remove_file(self.place.path()).unwrap_or(());
        }
        remove_directories(directories);
    }

    /// Opens the store that a node left in `directory`, to look at it: nothing is made, and nothing set aside.
    ///
    /// # Errors
    /// [`StoreError::InUse`], [`StoreError::Directory`], [`StoreError::Newer`], [`StoreError::Damaged`].
    pub fn inspect(directory: &Path) -> Result<Self, StoreError> {
        let unusable = |cause| StoreError::Directory { path: directory.to_owned(), cause };
        std::fs::metadata(directory.join(place::FILE)).map_err(unusable)?;
        let mut inside = Inside { looking: true, suspect: true, ..Inside::default() };
        let place = Place::Directory(directory.to_owned(), place::FILE);
        inside.open(&place, clock::wall()).map_err(|failure| failure.into_error(unusable))?;
        Ok(Self { place, inside: Mutex::new(inside), made: Default::default() })
    }

    fn open_at(place: Place, now: SystemTime) -> Result<(Self, Opened), Failure> {
        let mut inside = Inside::default();
        let opened = inside.open(&place, now)?;
        Ok((Self { place, inside: Mutex::new(inside), made: Default::default() }, opened))
    }

    /// How the store fares.
    pub fn condition(&self) -> Condition {
        let inside = self.inside.lock();
        let mut condition = inside.condition.clone();
        if inside.mended.is_some_and(|since| now().duration_since(since) >= STEADY) {
            condition.failing = None;
        }
        condition
    }

    /// Counts this start: the incarnation of the life that begins, durable on return.
    ///
    /// # Errors
    /// [`StoreError::Storage`], [`StoreError::Damaged`].
    pub fn begin_life(&self) -> Result<Incarnation, StoreError> {
        self.update_incarnation(Incarnation::next)
    }

    /// Raises the incarnation to at least `to`, durable on return.
    ///
    /// # Errors
    /// [`StoreError::Storage`], [`StoreError::Damaged`].
    pub fn raise(&self, to: Incarnation) -> Result<Incarnation, StoreError> {
        self.update_incarnation(|stored| stored.max(to))
    }

    fn update_incarnation(
        &self,
        change: impl Fn(Incarnation) -> Incarnation,
    ) -> Result<Incarnation, StoreError> {
        self.write(|_write, state| {
            state.incarnation = change(state.incarnation);
            Ok(state.incarnation)
        })
    }

    /// Remembers this of nodes, and nothing more of those that are `gone`.
    ///
    /// # Errors
    /// [`StoreError::Storage`], [`StoreError::Damaged`].
    pub fn remember(&self, known: &[Known], gone: &[NodeName]) -> Result<(), StoreError> {
        self.write(|write, _state| {
            let mut nodes = write.open_table(NODES)?;
            for node in known {
                nodes.insert(node.name.as_str(), schema::sealed(node)?.as_slice())?;
            }
            for name in gone {
                nodes.remove(name.as_str())?;
            }
            Ok(())
        })
    }

    /// The nodes remembered, those seen last first.
    ///
    /// # Errors
    /// [`StoreError::Storage`], [`StoreError::Damaged`].
    pub fn known(&self) -> Result<Vec<Known>, StoreError> {
        let mut nodes = self.read(|read| schema::nodes(&read.open_table(NODES)?))?;
        nodes.sort_by_key(|node| std::cmp::Reverse(node.last_seen));
        nodes.truncate(MAX_NODES);
        Ok(nodes)
    }

    /// Remembers a list that the authority signed as the one in force of its kind, in the place of the one before.
    ///
    /// # Errors
    /// [`StoreError::Storage`], [`StoreError::Damaged`].
    pub fn keep_list(&self, kind: &str, list: &[u8]) -> Result<(), StoreError> {
        self.write(|write, _state| {
            let mut lists = write.open_table(schema::LISTS)?;
            lists.insert(kind, schema::sealed(&list)?.as_slice())?;
            Ok(())
        })
    }

    /// The list of this kind that was in force last.
    ///
    /// # Errors
    /// [`StoreError::Storage`], [`StoreError::Damaged`].
    pub fn list(&self, kind: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(|read| schema::list(read, kind))
    }

    fn read<T>(
        &self,
        work: impl FnOnce(&ReadTransaction) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        self.work(|database| work(&database.begin_read()?))
    }

    fn write<T>(
        &self,
        work: impl FnOnce(&WriteTransaction, &mut State) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        let (value, incarnation) = self.work(|database| {
            let mut write = database.begin_write()?;
            // Two phases, and a file that needs no repair however the process ends.
            write.set_quick_repair(true);
            let mut state = State::read(&write.open_table(schema::STATE_TABLE)?)?;
            let value = work(&write, &mut state)?;
            state.write(&mut write.open_table(schema::STATE_TABLE)?)?;
            write.commit()?;
            Ok((value, state.incarnation))
        })?;
        let mut inside = self.inside.lock();
        inside.incarnation = inside.incarnation.max(incarnation);
        if inside.condition.failing.is_some() {
            inside.mended.get_or_insert_with(now);
        }
        Ok(value)
    }

    fn work<T>(&self, work: impl FnOnce(&Database) -> Result<T, Failure>) -> Result<T, StoreError> {
        let database = self.database()?;
        match guarded(|| work(&database)) {
            Ok(value) => Ok(value),
            Err(Failure::Refused(error)) => Err(error),
            Err(failure) => Err(self.failed(database, failure)),
        }
    }

    /// The database, opened anew after a failure.
    fn database(&self) -> Result<Arc<Database>, StoreError> {
        let mut inside = self.inside.lock();
        if inside.database.is_some() && self.place.id() != inside.file {
            let error = StoreError::Removed(self.place.path());
            tracing::error!(%error, "the store begins anew");
            inside.fail(&error);
            let held = inside.database.take();
            close(held);
            return Err(error);
        }
        if inside.database.is_none()
            && let Err(failure) = inside.open(&self.place, clock::wall())
        {
            let error = failure.into_error(|source| self.storage(&source));
            inside.fail(&error);
            return Err(error);
        }
        inside.database.clone().ok_or_else(|| self.storage(&std::io::ErrorKind::NotFound.into()))
    }

    fn storage(&self, source: &std::io::Error) -> StoreError {
        StoreError::Storage(format!("{}: {source}", self.place.path().display()))
    }

    /// Closes a database that failed: redb refuses all further work on it.
    fn failed(&self, database: Arc<Database>, failure: Failure) -> StoreError {
        let damaged = matches!(failure, Failure::Damaged(_));
        let error = failure.into_error(|source| self.storage(&source));
        let mut inside = self.inside.lock();
        inside.suspect |= damaged;
        inside.fail(&error);
        let held = inside.database.take_if(|held| Arc::ptr_eq(held, &database));
        close((held, database));
        error
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        close(self.inside.lock().database.take());
    }
}

/// Closes a database, which may panic as any work on it.
fn close<T>(database: T) {
    drop(guarded(|| {
        drop(database);
        Ok(())
    }));
}

/// Removes those of the directories that are empty.
fn remove_directories(outermost_first: &[PathBuf]) {
    for directory in outermost_first.iter().rev() {
        std::fs::remove_dir(directory).unwrap_or(());
    }
}

#[cfg(test)]
mod tests;
