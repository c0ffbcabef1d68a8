//! What a node remembers between runs: its incarnation, and peers with the addresses that worked.
//!
//! One redb file in the data directory. Invariants: the incarnation is durable before anything uses
//! it; the file is locked while the node runs; a damaged file is set aside under a name with its
//! time, never read as far as it goes and never deleted. Every value starts with a version byte.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
};
use serde::{Deserialize, Serialize};

use crate::proto::codec;
use crate::proto::node::{Contact, Incarnation};

const FILE: &str = "node.redb";
const CACHE_BYTES: usize = 1024 * 1024;
const VERSION: u8 = 1;
/// Remembered peers at most: those seen last.
const PEERS: usize = 1024;
const MAX_RECORD: usize = 1024;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const PEERS_TABLE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("peers");
const INCARNATION: &str = "incarnation";

/// What is remembered of a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    contact: Contact,
    /// Milliseconds since the Unix epoch.
    seen: u64,
}

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it open: nothing changed; the operator runs one node per directory.
    #[error("{0} is in use: a node with this data directory is already running")]
    InUse(PathBuf),
    /// The directory cannot be made or written; nothing changed; the operator must act.
    #[error("data directory {path} is not usable: {source}; choose another with --data-dir")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The disk or the file failed while in use; the last write may be lost, earlier ones are not.
    #[error("store: {0}")]
    Storage(String),
}

/// The open store.
#[derive(Debug)]
pub struct Store {
    database: Database,
}

/// What opening found.
#[derive(Debug, PartialEq, Eq)]
pub enum Opened {
    /// A sound file, or none yet.
    Sound,
    /// A damaged file, now moved to this path; the store starts empty.
    SetAside(PathBuf),
}

fn storage(error: impl std::fmt::Display) -> StoreError {
    StoreError::Storage(error.to_string())
}

impl Store {
    /// Opens the store in `directory`, which is made (mode 0700) when it is missing.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub fn open(directory: &Path, now: SystemTime) -> Result<(Self, Opened), StoreError> {
        let unusable = |source| StoreError::Directory { path: directory.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(unusable)?;
        let file = directory.join(FILE);
        match Self::open_file(&file) {
            Ok(store) => Ok((store, Opened::Sound)),
            Err(DatabaseError::DatabaseAlreadyOpen) => Err(StoreError::InUse(file)),
            Err(DatabaseError::Storage(StorageError::Io(source)))
                if source.kind() != std::io::ErrorKind::InvalidData
                    && source.kind() != std::io::ErrorKind::UnexpectedEof =>
            {
                Err(unusable(source))
            }
            Err(_damaged) => {
                let stamp = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
                let aside = directory.join(format!("{FILE}.damaged-{stamp}"));
                fs::rename(&file, &aside).map_err(unusable)?;
                let store = Self::open_file(&file).map_err(storage)?;
                Ok((store, Opened::SetAside(aside)))
            }
        }
    }

    fn open_file(file: &Path) -> Result<Self, DatabaseError> {
        let database = redb::Builder::new().set_cache_size(CACHE_BYTES).create(file)?;
        Ok(Self { database })
    }

    /// Counts this start: the incarnation of the life that begins, durable on return.
    ///
    /// # Errors
    /// [`StoreError::Storage`].
    pub fn begin_life(&self) -> Result<Incarnation, StoreError> {
        self.update_incarnation(Incarnation::next)
    }

    /// Raises the incarnation to at least `to`, durable on return.
    ///
    /// # Errors
    /// [`StoreError::Storage`].
    pub fn raise(&self, to: Incarnation) -> Result<Incarnation, StoreError> {
        self.update_incarnation(|stored| stored.max(to))
    }

    fn update_incarnation(
        &self,
        change: impl Fn(Incarnation) -> Incarnation,
    ) -> Result<Incarnation, StoreError> {
        let write = self.database.begin_write().map_err(storage)?;
        let incarnation = {
            let mut meta = write.open_table(META).map_err(storage)?;
            let stored = meta.get(INCARNATION).map_err(storage)?.map_or(0, |value| value.value());
            let incarnation = change(Incarnation(stored));
            meta.insert(INCARNATION, incarnation.0).map_err(storage)?;
            incarnation
        };
        write.commit().map_err(storage)?;
        Ok(incarnation)
    }

    /// Remembers where peers were reached.
    ///
    /// # Errors
    /// [`StoreError::Storage`].
    pub fn remember(&self, contacts: &[Contact], now: SystemTime) -> Result<(), StoreError> {
        let seen = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let seen = u64::try_from(seen).unwrap_or(u64::MAX);
        let write = self.database.begin_write().map_err(storage)?;
        {
            let mut peers = write.open_table(PEERS_TABLE).map_err(storage)?;
            for contact in contacts {
                let record = Remembered { contact: contact.clone(), seen };
                let bytes = codec::encode_versioned(VERSION, &record).map_err(storage)?;
                peers.insert(contact.name.as_str(), bytes.as_slice()).map_err(storage)?;
            }
        }
        write.commit().map_err(storage)
    }

    /// The peers remembered, those seen last first. A record that cannot be read is left out.
    ///
    /// # Errors
    /// [`StoreError::Storage`].
    pub fn peers(&self) -> Result<Vec<Contact>, StoreError> {
        let read = self.database.begin_read().map_err(storage)?;
        let peers = match read.open_table(PEERS_TABLE) {
            Ok(peers) => peers,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(error) => return Err(storage(error)),
        };
        let mut records = Vec::new();
        for entry in peers.iter().map_err(storage)? {
            let (_, bytes) = entry.map_err(storage)?;
            if let Ok(record) =
                codec::decode_versioned::<Remembered>(VERSION, bytes.value(), MAX_RECORD)
            {
                records.push(record);
            }
        }
        records.sort_by_key(|record| std::cmp::Reverse(record.seen));
        records.truncate(PEERS);
        Ok(records.into_iter().map(|record| record.contact).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn contact(name: &str, port: u16) -> Contact {
        Contact {
            name: name.parse().expect("valid"),
            address: ([127, 0, 0, 1], port).into(),
            incarnation: Incarnation(1),
        }
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn lives_are_counted_across_openings() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("deep/er");
        for life in 1..=3 {
            let (store, opened) = Store::open(&path, at(0)).expect("opens");
            assert_eq!(opened, Opened::Sound);
            assert_eq!(store.begin_life().expect("writes"), Incarnation(life));
        }
        let (store, _) = Store::open(&path, at(0)).expect("opens");
        assert_eq!(store.raise(Incarnation(9)).expect("writes"), Incarnation(9));
        assert_eq!(store.raise(Incarnation(2)).expect("writes"), Incarnation(9));
        assert_eq!(store.begin_life().expect("writes"), Incarnation(10));
    }

    #[test]
    fn peers_are_remembered_latest_first() {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, _) = Store::open(dir.path(), at(0)).expect("opens");
        assert_eq!(store.peers().expect("reads"), []);
        store.remember(&[contact("a@h", 1), contact("b@h", 2)], at(1)).expect("writes");
        store.remember(&[contact("b@h", 3)], at(2)).expect("writes");
        drop(store);
        let (store, _) = Store::open(dir.path(), at(0)).expect("opens");
        assert_eq!(store.peers().expect("reads"), [contact("b@h", 3), contact("a@h", 1)]);
    }

    #[test]
    fn a_second_process_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let _first = Store::open(dir.path(), at(0)).expect("opens");
        let second = Store::open(dir.path(), at(0)).expect_err("locked");
        assert!(second.to_string().contains("already running"), "{second}");
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_a_bad_directory_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join(FILE), vec![7; 5000]).expect("writes");
        let (store, opened) = Store::open(dir.path(), at(5)).expect("opens");
        assert_eq!(opened, Opened::SetAside(dir.path().join("node.redb.damaged-5000")));
        assert_eq!(store.begin_life().expect("writes"), Incarnation(1));
        let file = dir.path().join("plain");
        fs::write(&file, "x").expect("writes");
        let error = Store::open(&file, at(0)).expect_err("not a directory").to_string();
        assert!(error.contains("--data-dir"), "{error}");
    }
}
