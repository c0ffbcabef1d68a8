//! Where keys and certificates lie, and how they are written and read.
//!
//! Owns the layout of a `certs` directory and its file modes. Invariants: a reader sees an old file
//! or a new one, never a part; a private key is never written with a mode wider than 0600; a key that others can read
//! is refused, not used, and so is a directory that others can write.
//!
//! A key that root owns may be readable by its group (0640, 0440), as Kubernetes mounts secrets for a process that is
//! not root.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use zeroize::Zeroizing;

use super::key::Key;
use super::pki::CertificateFault;
use super::{IdentityError, KeyFault, Remedy};
use crate::io::modes;
use crate::proto::lists;
use crate::proto::node::NodeName;

/// Mode of a private key's file.
pub(super) use crate::io::modes::PRIVATE;
/// Mode of a certificate's file: certificates are public.
pub(super) const PUBLIC: u32 = 0o644;
/// Most bytes that are read of a key or a certificate, which have about a thousand.
const MAX_FILE: u64 = 64 * 1024;
/// Most bytes that are read of a list of certificates or tokens, which has up to a hundred of each.
pub(super) const MAX_LIST: u64 = lists::MAX_LIST as u64;

/// File name of a certificate in its directory.
pub(super) const CERTIFICATE: &str = "cert.pem";
/// File name of a private key in its directory.
pub(super) const KEY: &str = "key.pem";
/// File name of the authority's revocation list.
pub(super) const REVOCATIONS: &str = "crl.pem";
/// File name of the authority's record of what it issued.
pub(super) const ISSUED: &str = "issued";
/// File name of the private key that signs tokens.
pub(super) const TOKEN_KEY: &str = "token.key";
/// File name of the private key that shall sign tokens, during a rotation.
pub(super) const NEXT_TOKEN_KEY: &str = "next-token.key";
/// File name of what verifies tokens.
pub(super) const TOKENS: &str = "tokens";
/// File name of the private key of another authority, during a rotation.
pub(super) const NEXT_KEY: &str = "next.key";
/// File name of the invitations that the authority has made.
pub(super) const INVITATIONS: &str = "invitations";
/// File name of the private key for which an intermediate authority's certificate is asked.
pub(super) const REQUEST_KEY: &str = "request.key";
/// File name of the request for it.
pub(super) const REQUEST: &str = "request";
/// File name of the list of trusted authorities.
pub(super) const TRUST: &str = "trust";
/// File name of where the cluster was when a node joined it, in the node's directory.
const PLACES: &str = "peers";
/// Directory of the authority.
pub(super) const AUTHORITY: &str = "ca";

/// A `certs` directory: its paths, and the commands that mend what is wrong in it.
#[derive(Clone, Copy)]
pub(super) struct Layout<'a> {
    certs: &'a Path,
}

impl<'a> Layout<'a> {
    pub(super) fn new(certs: &'a Path) -> Self {
        Self { certs }
    }

    pub(super) fn certs(self) -> &'a Path {
        self.certs
    }

    pub(super) fn authority(self) -> PathBuf {
        self.certs.join(AUTHORITY)
    }

    /// A file of the authority.
    pub(super) fn of_authority(self, file: &str) -> PathBuf {
        self.authority().join(file)
    }

    pub(super) fn node(self, name: &NodeName) -> PathBuf {
        self.certs.join(name.as_str())
    }

    pub(super) fn certificate(self, name: &NodeName) -> PathBuf {
        self.node(name).join(CERTIFICATE)
    }

    pub(super) fn key(self, name: &NodeName) -> PathBuf {
        self.node(name).join(KEY)
    }

    pub(super) fn places(self, name: &NodeName) -> PathBuf {
        self.node(name).join(PLACES)
    }

    /// What brings or replaces a node's certificate or key.
    pub(super) fn leaf_fix(self, name: &NodeName) -> Fix {
        Fix { missing: Remedy::Issue(name.clone()), damaged: Remedy::Reissue(name.clone()) }
    }

    /// That a node's certificate does not count. For a revoked one a new key is made, which makes it the first.
    pub(super) fn leaf_error(self, name: &NodeName) -> impl Fn(CertificateFault) -> IdentityError {
        let (path, Fix { missing, damaged }) = (self.certificate(name), self.leaf_fix(name));
        move |fault| {
            let revoked = matches!(fault, CertificateFault::Revoked(_));
            let remedy = if revoked { missing.clone() } else { damaged.clone() };
            IdentityError::Certificate { path: path.clone(), fault, remedy }
        }
    }

    /// That the authority's certificate does not count.
    pub(super) fn authority_error(self) -> impl Fn(CertificateFault) -> IdentityError {
        let path = self.of_authority(CERTIFICATE);
        let remedy = Remedy::ReplaceAuthority;
        move |fault| {
            let (path, remedy) = (path.clone(), remedy.clone());
            IdentityError::Certificate { path, fault, remedy }
        }
    }

    /// Takes the directory's exclusive lock, making the directory if needed. The lock ends when the
    /// returned file is dropped or the process ends.
    pub(super) fn lock(self) -> Result<File, IdentityError> {
        make_directory(self.certs)?;
        let path = self.certs.join(".lock");
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(PRIVATE)
            .open(&path)
            .and_then(|file| modes::tighten(&path, PRIVATE).map(|()| file))
            .and_then(|file| file.lock().map(|()| file))
            .map_err(failed("lock", &path))
    }
}

/// A path as one word of a POSIX shell, for commands that can be copied: quoted if it must be.
pub fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@:,=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Turns an I/O error into ours: `cannot <action> <path>: <why>`.
fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |cause| IdentityError::Io { action, path, cause }
}

/// Refuses a directory that others may write.
pub(super) fn check_directory(path: &Path) -> Result<(), IdentityError> {
    match modes::open_to_others(path).map_err(failed("look at", path))? {
        Some(mode) => Err(IdentityError::OpenDirectory { path: path.to_owned(), mode }),
        None => Ok(()),
    }
}

/// Takes the group's permission to write from a directory that this user owns.
pub(super) fn close_to_group(path: &Path) -> Result<(), IdentityError> {
    match modes::tighten(path, 0o755) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.map_err(failed("change the mode of", path)),
    }
}

/// Makes a directory and its missing parents, for the owner alone.
pub(super) fn make_directory(path: &Path) -> Result<(), IdentityError> {
    modes::make_directory(path).map(drop).map_err(failed("make the directory", path))
}

/// Puts `bytes` at `path` in one step: a temporary file beside it, synced, then renamed over it.
/// The directory must exist. After an error the old file, if any, still stands.
pub(super) fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), IdentityError> {
    let temporary = temporary_beside(path)?;
    create(&temporary, bytes, mode)
        .and_then(|()| fs::rename(&temporary, path))
        .inspect_err(|_| {
            // The write has failed already; a leftover that cannot be removed is hidden and harmless.
            fs::remove_file(&temporary).ok();
        })
        .and_then(|()| sync_parent(path))
        .map_err(failed("write", path))
}

/// Puts a whole new directory at `path` in one step, so that its files appear together or not at
/// all. Fails with [`IdentityError::Exists`] when there is a directory with files in it.
pub(super) fn write_directory(
    path: &Path,
    files: &[(&str, &[u8], u32)],
) -> Result<(), IdentityError> {
    let temporary = temporary_beside(path)?;
    let fill = || {
        modes::make_directory(&temporary)?;
        for (name, bytes, mode) in files {
            create(&temporary.join(name), bytes, *mode)?;
        }
        File::open(&temporary)?.sync_all()?;
        fs::rename(&temporary, path)
    };
    fill()
        .inspect_err(|_| {
            // As above: the leftover is hidden and harmless.
            fs::remove_dir_all(&temporary).ok();
        })
        .and_then(|()| sync_parent(path))
        .map_err(|source| {
            // What rename(2) answers when the target is a directory with files in it.
            let occupied = [io::ErrorKind::DirectoryNotEmpty, io::ErrorKind::AlreadyExists];
            if occupied.contains(&source.kind()) {
                IdentityError::Exists { path: path.to_owned(), remedy: Remedy::MoveAuthority }
            } else {
                failed("write", path)(source)
            }
        })
}

/// Removes a file, if it is there.
pub(super) fn remove(path: &Path) -> Result<(), IdentityError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.and_then(|()| sync_parent(path)).map_err(failed("remove", path)),
    }
}

/// Puts a file in the place of another one in the same directory, in one step.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), IdentityError> {
    fs::rename(from, to).and_then(|()| sync_parent(to)).map_err(failed("rename", from))
}

/// Adds `bytes` to the end of a file, which is made when it is not there, in one write.
pub(super) fn append(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(PUBLIC);
    options
        .open(path)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .map_err(failed("write", path))
}

/// A hidden name in the same directory, hence on the same file system, that nobody else uses.
fn temporary_beside(path: &Path) -> Result<PathBuf, IdentityError> {
    let mut random = [0; 8];
    aws_lc_rs::rand::fill(&mut random)
        .map_err(|_unspecified| IdentityError::Crypto("draw random bytes"))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(path.with_file_name(format!(".{name}.{:016x}", u64::from_be_bytes(random))))
}

fn create(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = modes::create(path, mode)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes a rename in `path`'s directory durable.
fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        File::open(parent)?.sync_all()
    })
}

/// What an error says to do about a file.
pub(super) struct Fix {
    /// When it is not there.
    pub(super) missing: Remedy,
    /// When it is there, but not fit for use.
    pub(super) damaged: Remedy,
}

/// A node's or the authority's private key.
pub(super) fn read_key(path: &Path, fix: Fix) -> Result<Key, IdentityError> {
    read_secret(path, fix, Key::from_pem)
}

/// Whether a key of this mode can be read by others than its owner; by its group that root gave it to it may.
fn is_exposed(mode: u32, owner: u32) -> bool {
    mode & if owner == 0 { 0o037 } else { 0o077 } != 0
}

/// What makes a key private where it lies.
fn private_fix(path: &Path, owner: u32) -> Remedy {
    if modes::is_read_only(path).unwrap_or(false) {
        return Remedy::MountPrivate;
    }
    let user = rustix::process::geteuid().as_raw();
    Remedy::MakePrivate { of_other: owner != user && user != 0 }
}

/// A private key; an error when the file can be read by others.
pub(super) fn read_secret<K>(
    path: &Path,
    fix: Fix,
    parse: impl FnOnce(&[u8]) -> Option<K>,
) -> Result<K, IdentityError> {
    path.parent().map_or(Ok(()), check_directory)?;
    let Some(file) = open(path)? else {
        return Err(IdentityError::Missing { path: path.to_owned(), remedy: fix.missing });
    };
    // The mode is read from the open file, so that what is checked is what is used.
    let about = file.metadata().map_err(failed("read", path))?;
    let (mode, owner) = (about.mode() & 0o777, about.uid());
    if is_exposed(mode, owner) {
        let (fault, remedy) = (KeyFault::Exposed(mode), private_fix(path, owner));
        return Err(IdentityError::Key { path: path.to_owned(), fault, remedy });
    }
    let pem = read(file, path, MAX_FILE)?;
    // PKCS#8's label, or the header of older forms (RFC 7468, 11; RFC 1421, 4.6.1.1).
    let is_encrypted = || pem.windows(9).any(|part| part == b"ENCRYPTED");
    parse(&pem).ok_or_else(|| {
        let (fault, remedy) = if is_encrypted() {
            (KeyFault::Encrypted, Remedy::Decrypt)
        } else {
            (KeyFault::Damaged, fix.damaged)
        };
        IdentityError::Key { path: path.to_owned(), fault, remedy }
    })
}

/// The text of a file of certificates, not yet checked.
pub(super) fn read_certificates(
    path: &Path,
    fix: Fix,
) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    let Some(file) = open(path)? else {
        return Err(IdentityError::Missing { path: path.to_owned(), remedy: fix.missing });
    };
    read(file, path, MAX_FILE)
}

/// The first certificate in a file, not yet checked.
pub(super) fn read_certificate(
    path: &Path,
    fix: Fix,
) -> Result<CertificateDer<'static>, IdentityError> {
    let damaged = fix.damaged.clone();
    CertificateDer::from_pem_slice(&read_certificates(path, fix)?).map_err(|_not_pem| {
        let fault = CertificateFault::Damaged("it holds no PEM certificate");
        IdentityError::Certificate { path: path.to_owned(), fault, remedy: damaged }
    })
}

/// A list of certificates or tokens, not yet checked; `None` when there is no such file.
pub(super) fn read_list(path: &Path) -> Result<Option<Vec<u8>>, IdentityError> {
    read_up_to(path, MAX_LIST)
}

/// The first bytes of a file; `None` when there is no such file.
pub(super) fn read_up_to(path: &Path, most: u64) -> Result<Option<Vec<u8>>, IdentityError> {
    let Some(file) = open(path)? else { return Ok(None) };
    Ok(Some(std::mem::take(&mut *read(file, path, most)?)))
}

/// What tells one state of a file from another: a new file in its place, the time of its last change (of its mode,
/// too), its length; or why there is none to be seen.
pub(in super::super) type FileState = Result<(u64, i64, i64, u64), io::ErrorKind>;

/// The stamp of the file that is at `path` now. One that changes while it is read has another one
/// afterwards.
pub(in super::super) fn file_state(path: &Path) -> FileState {
    fs::metadata(path)
        .map(|about| (about.ino(), about.ctime(), about.ctime_nsec(), about.len()))
        .map_err(|error| error.kind())
}

fn open(path: &Path) -> Result<Option<File>, IdentityError> {
    match modes::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(other) => Err(failed("read", path)(other)),
    }
}

fn read(file: File, path: &Path, most: u64) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    // Room for the whole file at once: a buffer that grew would leave an unwiped copy behind.
    let size = file.metadata().map_or(MAX_FILE, |about| about.len()).min(most);
    let room = usize::try_from(size).unwrap_or_default() + 64;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    file.take(most).read_to_end(&mut bytes).map_err(failed("read", path))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_may_be_read_by_the_group_that_root_gave_it_to() {
        let user = 1000;
        for mode in [0o600, 0o400] {
            assert!(!is_exposed(mode, user) && !is_exposed(mode, 0), "{mode:o}");
        }
        for mode in [0o640, 0o440] {
            assert!(is_exposed(mode, user) && !is_exposed(mode, 0), "{mode:o}");
        }
        for mode in [0o644, 0o444, 0o660, 0o650, 0o604, 0o602] {
            assert!(is_exposed(mode, user) && is_exposed(mode, 0), "{mode:o}");
        }
    }

    #[test]
    fn a_write_replaces_the_whole_file_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write(&path, b"one", PRIVATE).unwrap();
        write(&path, b"two", PRIVATE).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_keeps_the_old_file_and_cleans_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::create_dir(&path).unwrap();
        assert!(matches!(write(&path, b"x", PUBLIC), Err(IdentityError::Io { .. })));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_is_never_written_over_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        write_directory(&path, &[("f", b"one", PRIVATE)]).unwrap();
        let again = write_directory(&path, &[("f", b"two", PRIVATE)]);
        assert!(matches!(again, Err(IdentityError::Exists { .. })));
        assert_eq!(fs::read(path.join("f")).unwrap(), b"one");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_path_in_a_command_is_one_shell_word() {
        assert_eq!(shell_word(Path::new("/var/lib/x")), "/var/lib/x");
        assert_eq!(shell_word(Path::new("my certs")), "'my certs'");
        assert_eq!(shell_word(Path::new("it's")), r"'it'\''s'");
    }
}
