//! A disk in memory that loses its power, runs full or fails when it is told to.

use std::io::{Error, ErrorKind};
use std::mem;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use rand::RngExt;
use rand::rngs::StdRng;
use redb::StorageBackend;

/// What is written whole or not at all.
const SECTOR: usize = 512;

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(at, data) => {
                bytes.resize(bytes.len().max(at + data.len()), 0);
                bytes[*at..at + data.len()].copy_from_slice(data);
            }
            Self::Length(length) => bytes.resize(*length, 0),
        }
    }

    /// What a power cut leaves of it: nothing, all, or some of its sectors.
    fn tear(&self, bytes: &mut Vec<u8>, rng: &mut StdRng) {
        match (rng.random_range(0..3), self) {
            (0, _) => {}
            (1, Self::Write(at, data)) => {
                for (n, sector) in data.chunks(SECTOR).enumerate() {
                    if rng.random() {
                        Self::Write(at + n * SECTOR, sector.to_vec()).apply(bytes);
                    }
                }
            }
            (_, whole) => whole.apply(bytes),
        }
    }
}

#[derive(Debug, Default)]
struct Media {
    /// As it is read.
    current: Vec<u8>,
    /// As it would be after a power cut at this moment, at least.
    durable: Vec<u8>,
    unsynced: Vec<Change>,
    /// Changes and syncs until the power goes.
    fuse: Option<u64>,
    /// Why changes fail.
    failing: Option<ErrorKind>,
    /// Counts those who opened it: a process that lost it sees no more of it.
    generation: u64,
}

impl Media {
    fn burn(&mut self) -> Result<(), Error> {
        match &mut self.fuse {
            Some(0) => Err(Error::other("the power is off")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// The disk. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Disk {
    media: Arc<Mutex<Media>>,
    /// Whether a file is opened without a look at all of it, as a long one is.
    pub(in super::super) trusting: bool,
}

impl Disk {
    /// One with this file on it.
    pub(super) fn holding(bytes: &[u8], trusting: bool) -> Self {
        let disk = Self { trusting, ..Self::default() };
        disk.media().current = bytes.to_vec();
        disk.media().durable = bytes.to_vec();
        disk
    }

    fn media(&self) -> MutexGuard<'_, Media> {
        self.media.lock()
    }

    /// The file, for one who opens it.
    pub(in super::super) fn opened(&self) -> Opened {
        let mut media = self.media();
        media.generation += 1;
        Opened { disk: self.clone(), generation: media.generation }
    }

    /// Removes the file.
    pub(in super::super) fn wipe(&self) {
        let mut media = self.media();
        *media = Media { generation: media.generation, ..Media::default() };
    }

    /// The power goes after so many more changes and syncs.
    pub(super) fn cut_after(&self, changes: u64) {
        self.media().fuse = Some(changes);
    }

    /// The power is back: of what was not synced, some is there.
    pub(super) fn restart(&self, rng: &mut StdRng) {
        let mut media = self.media();
        let (mut bytes, unsynced) = (mem::take(&mut media.durable), mem::take(&mut media.unsynced));
        for change in &unsynced {
            change.tear(&mut bytes, rng);
        }
        let generation = media.generation + 1;
        *media = Media { current: bytes.clone(), durable: bytes, generation, ..Media::default() };
    }

    /// Whether changes fail from now on, and how.
    pub(super) fn fail(&self, how: Option<ErrorKind>) {
        self.media().failing = how;
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.media().current.clone()
    }
}

/// The file of a [`Disk`], as one opening of it sees it.
#[derive(Debug)]
pub(in super::super) struct Opened {
    disk: Disk,
    generation: u64,
}

impl Opened {
    fn media(&self) -> Result<MutexGuard<'_, Media>, Error> {
        let media = self.disk.media();
        if media.generation == self.generation {
            Ok(media)
        } else {
            Err(Error::other("opened by another since"))
        }
    }

    fn change(&self, change: Change) -> Result<(), Error> {
        let mut media = self.media()?;
        media.burn()?;
        if let Some(kind) = media.failing {
            return Err(kind.into());
        }
        change.apply(&mut media.current);
        media.unsynced.push(change);
        Ok(())
    }
}

impl StorageBackend for Opened {
    fn len(&self) -> Result<u64, Error> {
        Ok(self.media()?.current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), Error> {
        let media = self.media()?;
        let at = usize::try_from(offset).expect("short");
        let found = media.current.get(at..at + out.len());
        out.copy_from_slice(found.ok_or_else(|| Error::from(ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), Error> {
        self.change(Change::Length(usize::try_from(len).expect("short")))
    }

    fn sync_data(&self) -> Result<(), Error> {
        let mut media = self.media()?;
        media.burn()?;
        if let Some(kind) = media.failing {
            return Err(kind.into());
        }
        let mut durable = mem::take(&mut media.durable);
        mem::take(&mut media.unsynced).iter().for_each(|change| change.apply(&mut durable));
        media.durable = durable;
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.change(Change::Write(usize::try_from(offset).expect("short"), data.to_vec()))
    }
}
