//! Who may read and write what lies on the disk.
//!
//! Invariants: what is made here is its owner's alone, whatever the umask; a directory that others may write is
//! not used, because who may write it may put files of their own in the place of ours; to open a file never waits for
//! somebody else, as a FIFO would.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, StatVfsMountFlags, statvfs};
use rustix::process::geteuid;

/// Mode of a directory.
pub(crate) const DIRECTORY: u32 = 0o700;
/// Mode of a file that others may not read.
pub(crate) const PRIVATE: u32 = 0o600;

/// Makes a directory and its missing parents, for the owner alone; those that it made, the outermost first.
///
/// # Errors
/// The system's; some may have been made.
pub(crate) fn make_directory(path: &Path) -> io::Result<Vec<PathBuf>> {
    let missing = |path: &&Path| !path.as_os_str().is_empty() && !path.is_dir();
    let mut missing: Vec<_> = path.ancestors().take_while(missing).collect();
    missing.reverse();
    let mut made = Vec::new();
    for directory in missing {
        match DirBuilder::new().mode(DIRECTORY).create(directory) {
            Ok(()) => {
                // The umask may have taken bits away.
                fs::set_permissions(directory, Permissions::from_mode(DIRECTORY))?;
                made.push(directory.to_owned());
            }
            // Somebody else made it meanwhile.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(made)
}

/// Makes a file that is not there yet, with exactly this mode.
///
/// # Errors
/// The system's; there may be an empty file.
pub fn create(path: &Path, mode: u32) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(path)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    Ok(file)
}

/// Opens a file to read it, at once: one that is there, and no FIFO, device or directory.
///
/// # Errors
/// The system's; [`io::ErrorKind::InvalidInput`] for what is no regular file.
pub fn open(path: &Path) -> io::Result<File> {
    // Without the flag, a FIFO that nobody writes would be waited for.
    let flags = i32::from_ne_bytes((OFlags::NONBLOCK | OFlags::NOCTTY).bits().to_ne_bytes());
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")),
    }
}

/// Takes from this user's file or directory every permission that `mode` does not give. What is somebody else's stays as
/// it is.
///
/// # Errors
/// The system's.
pub(crate) fn tighten(path: &Path, mode: u32) -> io::Result<()> {
    let about = fs::metadata(path)?;
    let found = about.mode() & 0o7777;
    if found & 0o777 & !mode == 0 || about.uid() != geteuid().as_raw() {
        return Ok(());
    }
    match fs::set_permissions(path, Permissions::from_mode(found & (mode | 0o7000))) {
        // Nobody writes there.
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(()),
        done => done,
    }
}

/// The mode of a directory that others may write; `None` for another one, and for one that is not there. On a file system
/// that is read-only here, as Kubernetes mounts secrets, nobody may. That this user's own directory is its group's too, as
/// a umask of 002 makes it, is for [`tighten`].
///
/// # Errors
/// The system's.
pub(crate) fn open_to_others(directory: &Path) -> io::Result<Option<u32>> {
    let about = match fs::metadata(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        about => about?,
    };
    let (mode, own) = (about.mode() & 0o7777, about.uid() == geteuid().as_raw());
    let open = mode & if own { 0o002 } else { 0o022 } != 0;
    Ok((open && !is_read_only(directory)?).then_some(mode))
}

/// Whether the file system is read-only here.
///
/// # Errors
/// The system's.
pub fn is_read_only(path: &Path) -> io::Result<bool> {
    Ok(statvfs(path)?.f_flag.contains(StatVfsMountFlags::RDONLY))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn what_is_made_is_the_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "one/two"].map(|path| dir.path().join(path));
        assert_eq!(make_directory(&two).unwrap(), [one.clone(), two.clone()]);
        assert_eq!(make_directory(&two).unwrap(), Vec::<PathBuf>::new());
        assert_eq!((mode(&one), mode(&two)), (DIRECTORY, DIRECTORY));
        create(&two.join("file"), PRIVATE).unwrap();
        assert_eq!(mode(&two.join("file")), PRIVATE);
        assert!(create(&two.join("file"), PRIVATE).is_err(), "a file is never taken over");
        assert!(
            make_directory(&two.join("file")).is_err()
                && make_directory(&two.join("file/x")).is_err()
        );
    }

    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let [fifo, file] = ["fifo", "file"].map(|name| dir.path().join(name));
        let mode = rustix::fs::Mode::from_raw_mode(PRIVATE);
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, mode).unwrap();
        fs::write(&file, "x").unwrap();
        assert!(open(&file).is_ok());
        for path in [fifo.as_path(), dir.path(), Path::new("/dev/null")] {
            assert_eq!(open(path).unwrap_err().to_string(), "it is no regular file", "{path:?}");
        }
        assert_eq!(open(&dir.path().join("x")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn permissions_are_taken_and_never_given() {
        let dir = tempfile::tempdir().unwrap();
        for (found, wanted) in [(0o777, 0o700), (0o2750, 0o2700), (0o500, 0o500), (0o700, 0o700)] {
            fs::set_permissions(dir.path(), Permissions::from_mode(found)).unwrap();
            tighten(dir.path(), DIRECTORY).unwrap();
            assert_eq!(mode(dir.path()), wanted, "{found:o}");
        }
    }

    #[test]
    fn a_directory_that_others_may_write_is_known() {
        let dir = tempfile::tempdir().unwrap();
        for (found, open) in
            [(0o700, false), (0o755, false), (0o775, false), (0o702, true), (0o1777, true)]
        {
            fs::set_permissions(dir.path(), Permissions::from_mode(found)).unwrap();
            assert_eq!(open_to_others(dir.path()).unwrap(), open.then_some(found), "{found:o}");
        }
        assert_eq!(open_to_others(&dir.path().join("none")).unwrap(), None);
    }
}
