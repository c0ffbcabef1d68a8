//! The admin socket: one JSON request a line, one JSON answer a line.
//!
//! Only the node's own user reaches the socket (mode 0600 in a directory 0700). Invariants: a request
//! has at most [`MAX_REQUEST`] bytes and [`PATIENCE`] to arrive; a bad one gets an error for answer,
//! and the node goes on.

use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::actors::node_manager::View;
use crate::actors::supervisor::{Child, Roster};
use crate::actors::timer;
use crate::gateway::status::{NodeStatus, PeerStatus};
use crate::io::metrics::Metrics;
use crate::proto::node::{ClusterId, NodeId, NodeName};

/// Longest request line, in bytes.
const MAX_REQUEST: u64 = 4096;
/// Time for a request to arrive and its answer to be taken.
const PATIENCE: Duration = Duration::from_secs(5);

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// [`NodeStatus`].
    Status,
    /// The counters as Prometheus text.
    Metrics,
    /// Only in a node started with `--chaos`: kills an actor as a crash would.
    Kill {
        /// Its name; an unknown one is answered with all names.
        actor: String,
    },
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To [`Request::Status`].
    Status(NodeStatus),
    /// To [`Request::Metrics`].
    Metrics(String),
    /// It is done.
    Done,
    /// Why it is not.
    Error(String),
}

/// What the admin socket can read and do.
#[derive(Clone)]
pub struct Admin {
    /// The node's name.
    pub name: NodeName,
    /// The id of its key.
    pub id: NodeId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its life.
    pub incarnation: Arc<AtomicU64>,
    /// Where it listens for links.
    pub listen: std::net::SocketAddr,
    /// When it started.
    pub started: Instant,
    /// All peers.
    pub peers: watch::Receiver<View>,
    /// Counters.
    pub metrics: Metrics,
    /// The actors, when `--chaos` allows to kill them.
    pub chaos: Option<Roster>,
}

impl Admin {
    /// The supervised server on this socket.
    #[must_use]
    pub fn child(self, socket: Arc<StdListener>) -> Child {
        let metrics = self.metrics.clone();
        Child::task("admin", &metrics, move || Box::pin(serve(self.clone(), socket.clone())))
    }

    /// The node's status now.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        NodeStatus {
            name: self.name.clone(),
            id: self.id.to_string(),
            cluster: self.cluster.to_string(),
            incarnation: self.incarnation.load(Ordering::Relaxed),
            listen: self.listen,
            uptime_s: timer::now().saturating_duration_since(self.started).as_secs(),
            peers: self.peers.borrow().iter().map(PeerStatus::from).collect(),
        }
    }

    fn answer(&self, request: &str) -> Answer {
        match serde_json::from_str(request) {
            Ok(Request::Status) => Answer::Status(self.status()),
            Ok(Request::Metrics) => match self.metrics.text() {
                Ok(text) => Answer::Metrics(text),
                Err(error) => Answer::Error(error.to_string()),
            },
            Ok(Request::Kill { actor }) => match &self.chaos {
                None => Answer::Error("this node was not started with --chaos".to_owned()),
                Some(roster) if roster.kill(&actor) => Answer::Done,
                Some(roster) => {
                    Answer::Error(format!("the actors are: {}", roster.names().join(" ")))
                }
            },
            Err(error) => Answer::Error(format!("not a request: {error}")),
        }
    }
}

async fn serve(admin: Admin, socket: Arc<StdListener>) -> std::io::Result<()> {
    let listener = UnixListener::from_std(socket.try_clone()?)?;
    let mut clients = JoinSet::new();
    loop {
        while clients.try_join_next().is_some() {}
        let (stream, _) = listener.accept().await?;
        let admin = admin.clone();
        clients.spawn(async move {
            match tokio::time::timeout(PATIENCE, talk(&admin, stream)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "admin client"),
                Err(_elapsed) => tracing::debug!("admin client took too long"),
            }
        });
    }
}

async fn talk(admin: &Admin, stream: UnixStream) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut request = String::new();
    BufReader::new(reader.take(MAX_REQUEST)).read_line(&mut request).await?;
    let mut answer = serde_json::to_vec(&admin.answer(&request))?;
    answer.push(b'\n');
    writer.write_all(&answer).await
}
