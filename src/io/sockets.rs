//! The admin socket in a node's data directory, and how the nodes of this machine are found.
//!
//! Each running node leaves a link to its data directory in the user's runtime directory
//! (`$XDG_RUNTIME_DIR/xpando`, else `/tmp/xpando-<uid>`). Invariants: socket and directories are the
//! user's alone; a runtime directory of somebody else is not used; a link whose socket nobody
//! answers is stale and does no harm; to look for nodes makes nothing.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::process::getuid;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::modes;
use crate::proto::node::NodeName;

const SOCKET: &str = "admin.sock";
/// Longest path of a socket, in bytes (`sun_path` of unix(7)).
const MAX_PATH: usize = 107;
/// Where the system shows this process's open files.
const DESCRIPTORS: &str = "/proc/self/fd";

/// Why a socket or a runtime directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// The system refused. A node that runs tries again; else the operator acts.
    #[error("cannot {action} {}: {cause}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
    /// The runtime directory is somebody else's; nothing changed; the operator removes it.
    #[error(
        "{} belongs to user {owner}, so nodes are not looked for there: run `sudo rm -r {}`, or `sudo chown -R {user} {}`",
        path.display(), path.display(), path.display()
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who runs this.
        user: u32,
    },
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SocketError {
    let path = path.to_owned();
    move |cause| SocketError::Io { action, path, cause }
}

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
fn bind(data_dir: &Path) -> Result<(UnixListener, Id), SocketError> {
    let path = data_dir.join(SOCKET);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove", &path)(error));
        }
        _ => {}
    }
    let listener = short(data_dir, UnixListener::bind).map_err(failed("bind", &path))?;
    fs::set_permissions(&path, Permissions::from_mode(modes::PRIVATE))
        .and_then(|()| listener.set_nonblocking(true))
        .map_err(failed("prepare", &path))?;
    let id = id(&path).ok_or_else(|| failed("find", &path)(io::ErrorKind::NotFound.into()))?;
    Ok((listener, id))
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

/// What tells one file at a path from another that takes its place.
type Id = (u64, u64);

fn id(path: &Path) -> Option<Id> {
    fs::symlink_metadata(path).ok().map(|about| (about.dev(), about.ino()))
}

/// Where the runtime directory is, if it is there at all.
fn runtime() -> PathBuf {
    let base = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
    base.map_or_else(
        || PathBuf::from(format!("/tmp/xpando-{}", getuid().as_raw())),
        |dir| PathBuf::from(dir).join("xpando"),
    )
}

/// Refuses a runtime directory of somebody else; false when there is none.
fn is_ours(runtime: &Path) -> Result<bool, SocketError> {
    let user = getuid().as_raw();
    match fs::symlink_metadata(runtime) {
        Ok(about) if about.uid() == user => Ok(true),
        Ok(about) => Err(SocketError::Foreign { path: runtime.into(), owner: about.uid(), user }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("look at", runtime)(error)),
    }
}

/// What a running node made anew because it was gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewed {
    /// The admin socket.
    Socket,
    /// The link in the runtime directory.
    Link,
}

/// The admin socket of a running node, and its link. Dropping it takes both away.
#[derive(Debug)]
pub struct AdminSocket {
    data_dir: PathBuf,
    link: PathBuf,
    bound: Mutex<Id>,
    listener: watch::Sender<Arc<UnixListener>>,
}

impl AdminSocket {
    /// Opens the socket of the node that holds the lock on this data directory. The node is found by others on this machine
    /// from the first [`AdminSocket::look`] on.
    ///
    /// # Errors
    /// [`SocketError::Io`]; nothing changed but that an old socket is gone.
    pub fn open(name: &NodeName, data_dir: &Path) -> Result<Self, SocketError> {
        Self::open_in(&runtime(), name, data_dir)
    }

    fn open_in(runtime: &Path, name: &NodeName, data_dir: &Path) -> Result<Self, SocketError> {
        let data_dir = fs::canonicalize(data_dir).map_err(failed("find", data_dir))?;
        let (listener, bound) = bind(&data_dir)?;
        let digest: [u8; 32] = Sha256::digest(data_dir.as_os_str().as_encoded_bytes()).into();
        let [a, b, c, d, ..] = digest;
        let link = runtime.join(format!("{name}~{a:02x}{b:02x}{c:02x}{d:02x}"));
        let (bound, listener) = (Mutex::new(bound), watch::Sender::new(Arc::new(listener)));
        Ok(Self { data_dir, link, bound, listener })
    }

    /// The bound socket, and each one that takes its place.
    pub fn listener(&self) -> watch::Receiver<Arc<UnixListener>> {
        self.listener.subscribe()
    }

    /// Makes anew what is gone: the socket, or the link.
    ///
    /// # Errors
    /// [`SocketError`]; what could be made is made.
    pub fn look(&self) -> Result<Vec<Renewed>, SocketError> {
        let mut renewed = Vec::new();
        if self.socket()? {
            renewed.push(Renewed::Socket);
        }
        if self.register()? {
            renewed.push(Renewed::Link);
        }
        Ok(renewed)
    }

    fn socket(&self) -> Result<bool, SocketError> {
        let mut bound = self.bound.lock();
        if id(&self.data_dir.join(SOCKET)) == Some(*bound) {
            return Ok(false);
        }
        modes::make_directory(&self.data_dir).map_err(failed("make", &self.data_dir))?;
        let (listener, id) = bind(&self.data_dir)?;
        *bound = id;
        self.listener.send_replace(Arc::new(listener));
        Ok(true)
    }

    /// Lets others on this machine find the node.
    fn register(&self) -> Result<bool, SocketError> {
        if fs::read_link(&self.link).is_ok_and(|to| to == self.data_dir) {
            return Ok(false);
        }
        let Some(runtime) = self.link.parent() else { return Ok(false) };
        loop {
            modes::make_directory(runtime).map_err(failed("make", runtime))?;
            if is_ours(runtime)? {
                modes::tighten(runtime, modes::DIRECTORY).map_err(failed("close", runtime))?;
            }
            match symlink(&self.data_dir, &self.link) {
                Ok(()) => return Ok(true),
                // An earlier run left its link.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    fs::remove_file(&self.link).map_err(failed("remove", &self.link))?;
                }
                // Another node, leaving, took the directory with it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed("make", &self.link)(error)),
            }
        }
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        for path in [&self.link, &self.data_dir.join(SOCKET)] {
            if let Err(error) = fs::remove_file(path) {
                tracing::debug!(%error, path = %path.display(), "a stale socket stays");
            }
        }
        // The last node of this user takes the directory with it; with others in it, it stays.
        self.link.parent().map_or(Ok(()), fs::remove_dir).unwrap_or(());
    }
}

/// All nodes registered on this machine by this user, by name.
///
/// # Errors
/// [`SocketError`].
pub fn registered() -> Result<Vec<Registered>, SocketError> {
    let runtime = runtime();
    let mut nodes = Vec::new();
    if !is_ours(&runtime)? {
        return Ok(nodes);
    }
    let listing = |source| failed("list", &runtime)(source);
    for entry in fs::read_dir(&runtime).map_err(listing)? {
        let entry = entry.map_err(listing)?;
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

    fn answers(directory: &Path, listener: &UnixListener) {
        let mut client = connect(directory).expect("connects");
        listener.set_nonblocking(false).expect("blocking");
        let (mut server, _) = listener.accept().expect("accepts");
        client.write_all(b"x").expect("writes");
        let mut byte = [0];
        server.read_exact(&mut byte).expect("reads");
        assert_eq!(&byte, b"x");
    }

    #[test]
    fn a_socket_in_a_deep_directory_is_private_and_replaces_an_old_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let deep = dir.path().join("d".repeat(120));
        fs::create_dir(&deep).expect("made");
        drop(bind(&deep).expect("binds"));
        let (listener, _) = bind(&deep).expect("binds over the old one");
        let mode = fs::metadata(deep.join(SOCKET)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        answers(&deep, &listener);
    }

    #[test]
    fn a_socket_that_is_gone_or_replaced_is_made_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let data = dir.path().join("data");
        fs::create_dir(&data).expect("made");
        let runtime = dir.path().join("run/xpando");
        let socket = AdminSocket::open_in(&runtime, &"a@127.0.0.1".parse().expect("valid"), &data);
        let socket = socket.expect("opens");
        assert!(!runtime.exists(), "not before the node is found");
        let mut listener = socket.listener();
        assert!(!socket.socket().expect("it is there"));
        let removals: [&dyn Fn() -> io::Result<()>; 3] =
            [&|| fs::remove_file(data.join(SOCKET)), &|| fs::remove_dir_all(&data), &|| {
                fs::remove_file(data.join(SOCKET)).and_then(|()| fs::write(data.join(SOCKET), "x"))
            }];
        for remove in removals {
            remove().expect("removed");
            assert!(socket.socket().expect("made again"));
            assert!(listener.has_changed().expect("it lives"));
            answers(&data, &listener.borrow_and_update());
        }
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&data), 0o700);

        for gone in [&runtime, dir.path().join("run").as_path()] {
            assert_eq!(socket.look().expect("made"), [Renewed::Link]);
            assert_eq!(socket.look().expect("there"), []);
            assert_eq!(fs::read_dir(&runtime).expect("there").count(), 1);
            assert_eq!(mode(&runtime), 0o700);
            fs::remove_dir_all(gone).expect("removed");
        }
        fs::create_dir_all(&runtime).expect("made");
        symlink("elsewhere", &socket.link).expect("made");
        assert_eq!(socket.look().expect("replaced"), [Renewed::Link]);
        drop(socket);
        assert!(!runtime.exists() && !data.join(SOCKET).exists(), "nothing is left");
    }

    #[test]
    fn a_directory_of_somebody_else_is_named_with_its_owner() {
        let error = SocketError::Foreign { path: "/run/x/xpando".into(), owner: 0, user: 1000 };
        let text = error.to_string();
        for part in ["/run/x/xpando belongs to user 0", "sudo rm -r", "sudo chown -R 1000"] {
            assert!(text.contains(part), "{text}");
        }
        if getuid().as_raw() != 0 {
            assert!(matches!(is_ours(Path::new("/usr")), Err(SocketError::Foreign { .. })));
        }
    }
}
