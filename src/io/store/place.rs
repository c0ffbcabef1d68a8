//! Where the file is, how it is opened and how it is set aside.
//!
//! Invariants: under its own name there is a file only once it is whole, so an empty or short one is damage, not
//! a beginning; it is its owner's alone. Of the files that were set aside the last two stay.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use redb::{Database, DatabaseError};

use super::{Failure, StoreError, guarded, schema};
use crate::io::clock::unix_millis;
use crate::io::modes;
use crate::proto::node::Incarnation;

pub(super) const FILE: &str = "node.redb";
/// What its name has behind it until it is whole.
const NEW: &str = ".new";
const CACHE_BYTES: usize = 1024 * 1024;
/// Of a file that is read in passing as well.
const LARGE_CACHE_BYTES: usize = 8 * 1024 * 1024;
/// A file of at most this length is read and checked whole when it is opened.
const CHECKED: u64 = 16 * 1024 * 1024;

/// Where the file is.
#[derive(Debug)]
pub(super) enum Place {
    /// In this directory, under this name.
    Directory(PathBuf, &'static str),
    /// On a disk that fails as it is told.
    #[cfg(test)]
    Simulated(super::tests::disk::Disk),
}

/// What tells the file that is open from another one in its place.
pub(super) type Id = (u64, u64);

impl Place {
    /// The file that is there now.
    pub(super) fn id(&self) -> Option<Id> {
        match self {
            Self::Directory(directory, file) => {
                fs::metadata(directory.join(file)).ok().map(|about| (about.dev(), about.ino()))
            }
            #[cfg(test)]
            Self::Simulated(_) => None,
        }
    }

    /// Where the file is.
    pub(super) fn path(&self) -> PathBuf {
        match self {
            Self::Directory(directory, file) => directory.join(file),
            #[cfg(test)]
            Self::Simulated(_) => PathBuf::from("simulated"),
        }
    }

    /// Opens the file, which is made when there is none; `suspect` asks for a check of all its pages. Also returns
    /// its incarnation; a new file gets this one.
    pub(super) fn open(
        &self,
        suspect: bool,
        incarnation: Incarnation,
    ) -> Result<(Database, Incarnation), Failure> {
        match self {
            Self::Directory(directory, name) => {
                let file = directory.join(name);
                let length = match fs::metadata(&file) {
                    Ok(found) => Some(found.len()),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                    Err(error) => return Err(Failure::Disk(error)),
                };
                match length {
                    None => create(directory, &file, incarnation),
                    Some(0) => Err(Failure::Damaged("it is empty".to_owned())),
                    Some(length) => {
                        modes::tighten(&file, modes::PRIVATE).map_err(Failure::Disk)?;
                        let check = suspect || length <= CHECKED;
                        let mut builder = builder(check);
                        if *name != FILE {
                            builder.set_cache_size(LARGE_CACHE_BYTES);
                        }
                        prepared(builder.open(&file), &file, incarnation)
                    }
                }
            }
            #[cfg(test)]
            Self::Simulated(disk) => {
                let database =
                    builder(suspect || !disk.trusting).create_with_backend(disk.opened());
                prepared(database, Path::new("simulated"), incarnation)
            }
        }
    }

    /// Gives a damaged file another name: that name.
    pub(super) fn set_aside(&self, now: SystemTime) -> Result<PathBuf, Failure> {
        match self {
            Self::Directory(directory, file) => {
                // One that was set aside in the same millisecond stays, too.
                let name = |stamp: u64| directory.join(format!("{file}.damaged-{stamp}"));
                let aside = (unix_millis(now)..).map(name).find(|path| !path.exists());
                let aside = aside.unwrap_or_else(|| name(u64::MAX));
                fs::rename(directory.join(file), &aside).map_err(Failure::Disk)?;
                remove_older(directory, &format!("{file}.damaged-"), &aside);
                Ok(aside)
            }
            #[cfg(test)]
            Self::Simulated(disk) => {
                disk.wipe();
                Ok(PathBuf::from(format!("simulated.damaged-{}", unix_millis(now))))
            }
        }
    }
}

/// Removes damaged files that were set aside before, but for the last one of them.
fn remove_older(directory: &Path, prefix: &str, newest: &Path) {
    let stamp = |path: &Path| -> Option<u64> {
        path.file_name()?.to_str()?.strip_prefix(prefix)?.parse().ok()
    };
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let files = entries.map(|entry| entry.path()).filter(|path| path != newest);
    let mut older: Vec<_> = files.filter_map(|path| Some((stamp(&path)?, path))).collect();
    older.sort_unstable();
    older.pop();
    for (_, path) in older {
        match fs::remove_file(&path) {
            Ok(()) => tracing::warn!(path = %path.display(), "an older damaged file is removed"),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "an older damaged file stays");
            }
        }
    }
}

fn builder(check: bool) -> redb::Builder {
    let mut builder = redb::Builder::new();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(check);
    builder
}

/// A new file under its first name, and under its own once it is whole. The lock goes with the file.
fn create(
    directory: &Path,
    file: &Path,
    incarnation: Incarnation,
) -> Result<(Database, Incarnation), Failure> {
    let mut new = file.as_os_str().to_owned();
    new.push(NEW);
    let new = PathBuf::from(new);
    let create = || {
        match modes::create(&new, modes::PRIVATE) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                modes::tighten(&new, modes::PRIVATE)
            }
            made => made.map(drop),
        }
        .map_err(Failure::Disk)?;
        prepared(builder(true).create(&new), file, incarnation)
    };
    // It may have been removed since the node started.
    modes::make_directory(directory).map_err(Failure::Disk)?;
    let made = match guarded(create) {
        // What a start left that ended too soon. Nothing in it was ever acknowledged.
        Err(Failure::Damaged(_)) => {
            fs::remove_file(&new).map_err(Failure::Disk)?;
            create()?
        }
        made => made?,
    };
    fs::rename(&new, file).map_err(Failure::Disk)?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(Failure::Disk)?;
    Ok(made)
}

fn prepared(
    database: Result<Database, DatabaseError>,
    file: &Path,
    incarnation: Incarnation,
) -> Result<(Database, Incarnation), Failure> {
    let database = match database {
        Ok(database) => database,
        Err(DatabaseError::DatabaseAlreadyOpen) => {
            return Err(Failure::Refused(StoreError::InUse(file.to_owned())));
        }
        Err(other) => return Err(other.into()),
    };
    match schema::prepare(&database, incarnation)? {
        Ok(incarnation) => Ok((database, incarnation)),
        Err(found) => Err(Failure::Refused(StoreError::Newer { path: file.to_owned(), found })),
    }
}
