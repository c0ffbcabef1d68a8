//! The admin socket in a node's data directory, and how the nodes of this machine are found.
//!
//! Each running node leaves a link to its socket in the user's runtime directory
//! (`$XDG_RUNTIME_DIR/xpando`, else `/tmp/xpando-<uid>`). Invariants: socket and directories are the
//! user's alone; a runtime directory of somebody else is not used; a link whose socket nobody
//! answers is stale and does no harm.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::proto::node::NodeName;

const SOCKET: &str = "admin.sock";
/// Longest path of a socket, in bytes (`sun_path` of unix(7)).
const MAX_PATH: usize = 107;
/// Where the system shows this process's open files.
const DESCRIPTORS: &str = "/proc/self/fd";

/// A node that registered on this machine; it may be gone since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Its name.
    pub name: NodeName,
    /// Its data directory, with its admin socket.
    pub data_dir: PathBuf,
    link: PathBuf,
}

impl Registered {
    /// Takes the entry of a node that was killed out of the runtime directory. A node that starts there at this
    /// moment is found by its data directory.
    pub fn remove(&self) {
        if let Err(error) = fs::remove_file(&self.link) {
            tracing::debug!(%error, path = %self.link.display(), "a stale entry stays");
        }
    }
}

/// Opens the socket in a data directory. The caller holds the directory's lock, so a socket that is
/// there already is of an earlier run.
///
/// # Errors
/// The system's; nothing changed but that an old socket is gone.
pub fn bind(data_dir: &Path) -> io::Result<UnixListener> {
    let path = data_dir.join(SOCKET);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = short(data_dir, UnixListener::bind)?;
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Connects to the socket in a data directory.
///
/// # Errors
/// The system's: not found, or refused by nobody.
pub fn connect(data_dir: &Path) -> io::Result<UnixStream> {
    short(data_dir, UnixStream::connect)
}

/// A socket's path may have 107 bytes; a directory's may have more. The open directory is short.
fn short<T>(directory: &Path, open: impl Fn(PathBuf) -> io::Result<T>) -> io::Result<T> {
    use std::os::fd::AsRawFd;
    let path = directory.join(SOCKET);
    if path.as_os_str().len() <= MAX_PATH {
        return open(path);
    }
    let directory = fs::File::open(directory)?;
    open(PathBuf::from(format!("{DESCRIPTORS}/{}/{SOCKET}", directory.as_raw_fd()))).map_err(
        |error| match fs::metadata(DESCRIPTORS) {
            Ok(_) => error,
            Err(_missing) => io::Error::other(format!(
                "the path of {} has over {MAX_PATH} bytes, which needs {DESCRIPTORS}, and /proc is not mounted",
                path.display()
            )),
        },
    )
}

/// The runtime directory, made when it is missing.
fn runtime() -> io::Result<PathBuf> {
    let user = rustix::process::getuid().as_raw();
    let base = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
    let path = base.map_or_else(
        || PathBuf::from(format!("/tmp/xpando-{user}")),
        |dir| PathBuf::from(dir).join("xpando"),
    );
    DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
    if fs::symlink_metadata(&path)?.uid() == user {
        Ok(path)
    } else {
        Err(io::Error::other(format!("{} belongs to somebody else", path.display())))
    }
}

/// The registration of a running node; dropping it takes it back.
#[derive(Debug)]
pub struct Registration {
    link: PathBuf,
    socket: PathBuf,
}

impl Drop for Registration {
    fn drop(&mut self) {
        for path in [&self.link, &self.socket] {
            if let Err(error) = fs::remove_file(path) {
                tracing::debug!(%error, path = %path.display(), "a stale socket stays");
            }
        }
        // The last node of this user takes the directory with it; with others in it, it stays.
        self.link.parent().map_or(Ok(()), fs::remove_dir).unwrap_or(());
    }
}

/// Lets others on this machine find the node with this data directory.
///
/// # Errors
/// The system's; the node runs on and is found by its data directory only.
pub fn register(name: &NodeName, data_dir: &Path) -> io::Result<Registration> {
    let data_dir = fs::canonicalize(data_dir)?;
    let digest: [u8; 32] = Sha256::digest(data_dir.as_os_str().as_encoded_bytes()).into();
    let [a, b, c, d, ..] = digest;
    let file = format!("{name}~{a:02x}{b:02x}{c:02x}{d:02x}");
    let socket = data_dir.join(SOCKET);
    loop {
        let link = runtime()?.join(&file);
        match symlink(&data_dir, &link) {
            Ok(()) => return Ok(Registration { link, socket }),
            // An earlier run left its link.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => fs::remove_file(&link)?,
            // Another node, leaving, took the directory with it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

/// All nodes registered on this machine by this user, by name.
///
/// # Errors
/// The system's.
pub fn registered() -> io::Result<Vec<Registered>> {
    let mut nodes = Vec::new();
    for entry in fs::read_dir(runtime()?)? {
        let entry = entry?;
        let file = entry.file_name();
        let name = file.to_str().and_then(|text| text.rsplit_once('~'));
        if let Some(name) = name.and_then(|(name, _)| name.parse().ok()) {
            let link = entry.path();
            // One that ends meanwhile has taken its link back.
            if let Ok(data_dir) = fs::read_link(&link) {
                nodes.push(Registered { name, data_dir, link });
            }
        }
    }
    nodes.sort_by(|a, b| (&a.name, &a.link).cmp(&(&b.name, &b.link)));
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_socket_in_a_deep_directory_is_private_and_replaces_an_old_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let deep = dir.path().join("d".repeat(120));
        fs::create_dir(&deep).expect("made");
        drop(bind(&deep).expect("binds"));
        let listener = bind(&deep).expect("binds over the old one");
        let mode = fs::metadata(deep.join(SOCKET)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut client = connect(&deep).expect("connects");
        listener.set_nonblocking(false).expect("blocking");
        let (mut server, _) = listener.accept().expect("accepts");
        client.write_all(b"x").expect("writes");
        let mut byte = [0];
        server.read_exact(&mut byte).expect("reads");
        assert_eq!(&byte, b"x");
    }
}
