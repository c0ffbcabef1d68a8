//! The kit: a [`Cluster`] is one directory with one authority, a [`Node`] one process in it.
//!
//! Nothing here sleeps for a fixed time to be safe: [`until`] asks again and again until a condition
//! holds, and fails with the last answer when [`PATIENCE`] runs out. Nodes listen on a port of the
//! system's choice and hear no beacons unless told otherwise.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use serde_json::Value;
use tempfile::TempDir;
use xpando_node::internals::io::identity::{Authority, Identity, Validity};
use xpando_node::internals::io::{beacon, clock};
use xpando_node::internals::proto::node::NodeName;

pub(crate) mod client;
pub(crate) mod crowd;
pub(crate) mod disk;
pub(crate) mod example;
pub(crate) mod http;
pub(crate) mod mesh;
pub(crate) mod message;
pub(crate) mod node;
pub(crate) mod skip;
pub(crate) mod socket;
pub(crate) mod stranger;
pub(crate) mod terminal;
pub(crate) mod trail;
pub(crate) mod ways;

pub(crate) use mesh::Mesh;
pub(crate) use message::{Follow, grows, outputs, wall};
pub(crate) use node::{Node, Start};
pub(crate) use skip::skip;
pub(crate) use terminal::Terminal;
pub(crate) use ways::Ways;

/// How long a condition may take: far more than a loaded machine needs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at a condition: the longer it already took, the less often, so that waiting takes
/// little of the processor.
const LOOK: RangeInclusive<Duration> = Duration::from_millis(20)..=Duration::from_millis(200);
/// Between two looks at what is to stay as it is: the watching takes little of the processor.
const WATCH: Duration = Duration::from_millis(500);
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_xpando-node");

/// Clusters of one process take turns, as nextest has those of several processes do.
static TURN: Mutex<()> = Mutex::new(());

/// One directory with one authority, for any number of nodes.
pub(crate) struct Cluster {
    dir: TempDir,
    _turn: Option<MutexGuard<'static, ()>>,
}

impl Cluster {
    /// A cluster with an authority.
    pub(crate) fn new() -> Self {
        Self::without_authority().with_authority()
    }

    /// Another cluster in the turn of this one.
    pub(crate) fn beside(&self) -> Self {
        Self::in_turn(None).with_authority()
    }

    fn with_authority(self) -> Self {
        Authority::init(&self.certs(), clock::wall()).unwrap();
        self
    }

    /// A cluster whose certificate directory is empty.
    pub(crate) fn without_authority() -> Self {
        Self::in_turn(Some(TURN.lock()))
    }

    fn in_turn(turn: Option<MutexGuard<'static, ()>>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["run", "certs"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
        }
        Self { dir, _turn: turn }
    }

    /// A node to start: `a` is short for `a@127.0.0.1`.
    pub(crate) fn node(&self, name: &str) -> Start {
        Start::new(self.command(), self.dir.path(), &full(name))
    }

    /// Where nodes keep their certificates.
    pub(crate) fn certs(&self) -> PathBuf {
        self.path("certs")
    }

    /// A place in the cluster's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The program, in an environment where only this cluster exists.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(PROGRAM);
        command.env_clear().current_dir(self.dir.path()).env("HOME", self.path("home"));
        command.env("XDG_RUNTIME_DIR", self.path("run"));
        command
    }

    /// Runs a subcommand to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command().args(args).output().unwrap()
    }

    /// Runs a subcommand that must succeed; its standard output.
    pub(crate) fn print(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Issues what a node of this name needs where nodes keep their certificates.
    pub(crate) fn issue(&self, name: &str) {
        let validity = Validity::leaf(clock::wall());
        Authority::open(&self.certs())
            .unwrap()
            .issue(&self.certs(), &parsed(name), validity)
            .unwrap();
    }

    /// An identity of this cluster that no node uses, valid now.
    pub(crate) fn identity(&self, name: &str) -> Identity {
        self.identity_valid(name, Validity::leaf(clock::wall()))
    }

    /// An identity of this cluster, kept apart from those of its nodes.
    pub(crate) fn identity_valid(&self, name: &str, validity: Validity) -> Identity {
        let authority = Authority::open(&self.certs()).unwrap();
        let apart = tempfile::tempdir_in(self.dir.path()).unwrap();
        authority.issue(apart.path(), &parsed(name), validity).unwrap()
    }

    /// An identity of a cluster that has nothing to do with this one.
    pub(crate) fn foreign_identity(&self, name: &str) -> Identity {
        let apart = tempfile::tempdir_in(self.dir.path()).unwrap();
        let authority = Authority::init(apart.path(), clock::wall()).unwrap();
        authority.issue(apart.path(), &parsed(name), Validity::leaf(clock::wall())).unwrap()
    }
}

/// `a` is short for `a@127.0.0.1`.
pub(crate) fn full(name: &str) -> String {
    if name.contains('@') { name.to_owned() } else { format!("{name}@127.0.0.1") }
}

/// [`full`], as the program has it.
pub(crate) fn parsed(name: &str) -> NodeName {
    full(name).parse().unwrap()
}

#[expect(clippy::disallowed_methods, reason = "the one clock of these tests")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// `a`, `b` and `c`, each in the life that its data directory comes to next; all linked.
pub(crate) fn three(cluster: &Cluster) -> [Node; 3] {
    let a = cluster.node("a").start();
    let b = cluster.node("b").join(a.listen()).start();
    let c = cluster.node("c").join(a.listen()).start();
    linked(&[&a, &b, &c]);
    [a, b, c]
}

/// Waits until `look` gives a value; fails with what it last said when [`PATIENCE`] runs out.
#[track_caller]
pub(crate) fn until<T>(what: &str, look: impl FnMut() -> Result<T, String>) -> T {
    within(PATIENCE, what, look)
}

/// [`until`], with another patience.
#[track_caller]
pub(crate) fn within<T>(
    patience: Duration,
    what: &str,
    mut look: impl FnMut() -> Result<T, String>,
) -> T {
    let start = now();
    loop {
        match look() {
            Ok(value) => return value,
            Err(last) if start.elapsed() > patience => panic!("no {what} in time: {last}"),
            Err(_) => thread::sleep((start.elapsed() / 16).clamp(*LOOK.start(), *LOOK.end())),
        }
    }
}

/// Looks again and again for as long as `span` lasts: what `check` demands must hold each time.
#[track_caller]
pub(crate) fn during(span: Duration, mut check: impl FnMut()) {
    let start = now();
    while start.elapsed() < span {
        check();
        thread::sleep(WATCH);
    }
}

/// Waits until every node sees every other one online.
#[track_caller]
pub(crate) fn linked(nodes: &[&Node]) {
    for node in nodes {
        let others = || nodes.iter().filter(|peer| peer.name != node.name);
        let online = |status: &Value, peer: &Node| {
            row(status, &peer.name).is_some_and(|row| row["status"] == "online")
        };
        node.shows("all peers online", |status| others().all(|peer| online(status, peer)));
    }
}

/// A port of loopback that is free at this moment.
pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

/// Whether loopback carries multicast here. Where it does not, says so: the test has nothing to show.
pub(crate) fn multicast() -> bool {
    let works = || -> std::io::Result<bool> {
        let [hears, says] =
            [beacon::open(Ipv4Addr::LOCALHOST)?, beacon::open(Ipv4Addr::LOCALHOST)?];
        hears.set_nonblocking(false)?;
        hears.set_read_timeout(Some(Duration::from_secs(2)))?;
        let word = format!("is loopback multicast? {}", std::process::id());
        says.send_to(word.as_bytes(), (beacon::GROUP, beacon::PORT))?;
        let mut buffer = [0; 2048];
        loop {
            let length = hears.recv(&mut buffer)?;
            if &buffer[..length] == word.as_bytes() {
                return Ok(true);
            }
        }
    };
    let works = works().unwrap_or(false);
    if !works {
        skip("multicast", "loopback carries none on this machine");
    }
    works
}

/// Copies the files of one directory into a new one; sockets stay behind.
pub(crate) fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// The TCP connections that reach the link port of one of these nodes.
pub(crate) fn connections(nodes: &[&Node]) -> usize {
    let ports = nodes.iter().map(|node| node.listen().port()).collect::<Vec<_>>();
    tcp_sockets("01").iter().filter(|socket| ports.contains(&socket.local)).count()
}

/// A TCP socket of this machine: its ports, and what its owner's descriptors call it.
pub(crate) struct Socket {
    pub(crate) local: u16,
    pub(crate) remote: u16,
    pub(crate) inode: String,
}

/// The TCP sockets of this machine in one state (Linux's number for it).
pub(crate) fn tcp_sockets(state: &str) -> Vec<Socket> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let text: String = tables.iter().filter_map(|t| std::fs::read_to_string(t).ok()).collect();
    let rows = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let port = |field: &str| u16::from_str_radix(field.rsplit_once(':').unwrap().1, 16).unwrap();
    rows.filter(|row| row.get(3) == Some(&state))
        .map(|row| Socket { local: port(row[1]), remote: port(row[2]), inode: row[9].to_owned() })
        .collect()
}

/// The sockets that a process holds, unless it is gone.
pub(crate) fn socket_inodes(process: u32) -> Vec<String> {
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{process}/fd")) else { return vec![] };
    let targets = descriptors.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    let inode = |target: PathBuf| {
        let name = target.to_str()?.strip_prefix("socket:[")?;
        Some(name.trim_end_matches(']').to_owned())
    };
    targets.filter_map(inode).collect()
}

/// A peer's row in a status.
pub(crate) fn row<'a>(status: &'a Value, peer: &str) -> Option<&'a Value> {
    status["peers"].as_array()?.iter().find(|row| row["name"] == full(peer).as_str())
}
