//! The gateway for clients outside the cluster: HTTP/1.1, with WebSockets and long polling for channels, and the dashboard.
//!
//! Invariants:
//! 1. It listens on loopback unless told otherwise, and elsewhere speaks TLS unless told otherwise.
//! 2. A client has `HEAD` for its handshake and each request head; at most `CONNECTIONS` are connected, and at most
//!    `RATE` are accepted a second: when a node dies, its clients come back to the others in turn.
//! 3. A page of another origin gets nothing, unless that origin is on the list; nor does one by another name of this host.
//! 4. Every wait on a client has a limit: for a head, a body, and for an answer to be taken.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::routing::{any, get};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::actors::supervisor::Child;
use crate::actors::timer;
use crate::gateway::channels::{Channels, feed, longpoll};
use crate::gateway::refusal::{Cause, Refusals};
use crate::io::tls::Web;
use crate::proto::topic::Pattern;

mod api;
mod body;
mod dashboard;
pub mod guard;
pub mod origin;
mod problem;
mod stall;
mod upgrade;

use body::Bodies;
pub use guard::{Prefix, PrefixError};
use origin::Pages;
pub use origin::{Origin, OriginError};
use stall::Stall;

/// The port, unless it is told another.
pub const PORT: u16 = 4000;
/// Time for a handshake, and for the head of a request.
const HEAD: Duration = Duration::from_secs(10);
/// Clients at once.
const CONNECTIONS: usize = 20_000;
/// Clients accepted a second, after a burst of as many.
const RATE: f64 = 5_000.0;
/// Bytes of a request's head, and of what is read ahead.
const BUFFER: usize = 16 * 1024;
/// Wait after a failed accept.
const PAUSE: Duration = Duration::from_millis(100);

/// How clients reach a node.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Where it listens. `None`: 127.0.0.1:4000, or the next port that is free.
    pub listen: Option<SocketAddr>,
    /// Certificate chain and key, as PEM files. `None`: on other addresses than loopback the node's own.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// No TLS, wherever it listens.
    pub plain: bool,
    /// The pages that may connect besides the gateway's own, and by their hosts the names that it has.
    pub origins: Vec<Origin>,
    /// The path that a proxy serves the gateway below, if it does not take that path off.
    pub prefix: Option<Prefix>,
    /// Topics for clients without a token. Who may join `network:updates` may read the API.
    pub anonymous: Vec<Pattern>,
    /// Peers that must be linked before `/health/ready` says so.
    pub min_peers: usize,
}

/// What the server needs.
#[derive(Clone)]
pub struct Http {
    /// The bound socket.
    pub listener: Arc<StdListener>,
    /// The certificate; `None` speaks plain HTTP.
    pub web: Option<Web>,
    /// The pages that may connect besides the gateway's own.
    pub origins: Vec<Origin>,
    /// What its paths begin with, besides none.
    pub prefix: Option<Prefix>,
    /// The clients' part.
    pub channels: Arc<Channels>,
}

/// What every request finds.
#[derive(Clone)]
struct Site {
    channels: Arc<Channels>,
    pages: Arc<Pages>,
    prefix: Option<Prefix>,
    polls: Arc<longpoll::Sessions>,
    bodies: Bodies,
}

impl Http {
    /// The supervised servers: of clients, and of what happens in the cluster.
    #[must_use]
    pub fn children(self) -> [Child; 2] {
        let (metrics, channels) = (self.channels.metrics.clone(), self.channels.clone());
        let feed = Child::task("feed", &metrics, move || Box::pin(feed::run(channels.clone())));
        [feed, Child::task("http", &metrics, move || Box::pin(self.clone().serve()))]
    }

    /// What every request passes and comes to.
    fn routes(&self, listen: SocketAddr) -> Router {
        let channels = self.channels.clone();
        let (tls, anonymous) = (self.web.is_some(), channels.serves_anonymous());
        let pages = Pages { origins: self.origins.clone(), listen, tls, anonymous };
        let (pages, prefix) = (Arc::new(pages), self.prefix.clone());
        let (polls, bodies) = (Arc::default(), Bodies::default());
        let site = Site { channels, pages, prefix, polls, bodies };
        let routes = Router::new()
            .route("/", get(dashboard::page))
            .route("/socket/websocket", any(upgrade::websocket))
            .route("/socket/longpoll", any(upgrade::poll))
            .with_state(site.clone())
            .merge(api::routes(site.clone()));
        // Around all routes, since it changes the path that they go by.
        let guard = axum::middleware::from_fn_with_state(site, guard::guard);
        Router::new().fallback_service(routes).layer(guard)
    }

    async fn serve(self) -> io::Result<()> {
        let listener = TcpListener::from_std(self.listener.try_clone()?)?;
        let channels = self.channels.clone();
        let routes = self.routes(listener.local_addr()?);
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let mut pace = Pace::new();
        let mut clients = JoinSet::new();
        loop {
            while clients.try_join_next().is_some() {}
            pace.wait().await;
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, mostly: who wants in waits.
                    tracing::warn!(%error, "cannot accept clients");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = room.clone().try_acquire_owned() else {
                channels.refusals.note(Cause::TooManyClients, from.ip().to_canonical(), "");
                continue;
            };
            let (routes, web) = (routes.clone(), self.web.clone());
            let from = From { address: from.ip().to_canonical(), place: Arc::new(permit) };
            clients.spawn(client(stream, from, routes, web, channels.refusals.clone()));
        }
    }
}

/// Lets so many through in a second.
struct Pace {
    allowed: f64,
    at: std::time::Instant,
}

impl Pace {
    fn new() -> Self {
        Self { allowed: RATE, at: timer::now() }
    }

    async fn wait(&mut self) {
        let now = timer::now();
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        (self.allowed, self.at) = ((self.allowed + since * RATE).min(RATE), now);
        if self.allowed < 1.0 {
            tokio::time::sleep(Duration::from_secs_f64((1.0 - self.allowed) / RATE)).await;
        }
        self.allowed -= 1.0;
    }
}

/// Who asks.
#[derive(Clone)]
struct From {
    address: IpAddr,
    /// One of [`CONNECTIONS`], kept as long as what came of the connection lives.
    place: Arc<OwnedSemaphorePermit>,
}

async fn client(
    stream: TcpStream,
    from: From,
    routes: Router,
    web: Option<Web>,
    refusals: Refusals,
) {
    // A socket that is gone already is found out by the first read.
    stream.set_nodelay(true).unwrap_or(());
    let address = from.address;
    let Some(web) = web else {
        return talk(Stall::new(stream, address, &refusals), from, routes, refusals).await;
    };
    let handshake = async {
        let mut first = [0];
        stream.peek(&mut first).await?;
        if first[0].is_ascii_alphabetic() {
            refusals.note(Cause::PlainHttp, address, "");
            answer_plainly(stream).await?;
            return Err(io::ErrorKind::InvalidData.into());
        }
        web.accept(Stall::new(stream, address, &refusals)).await
    };
    if let Ok(Ok(stream)) = tokio::time::timeout(HEAD, handshake).await {
        talk(stream, from, routes, refusals).await;
    }
}

/// Answers a request in plain HTTP on a port that speaks TLS.
async fn answer_plainly(mut stream: TcpStream) -> io::Result<()> {
    let (cause, words) = (Cause::PlainHttp, Cause::PlainHttp.detail());
    let head = format!(
        "HTTP/1.1 {}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close",
        cause.status(),
        words.len() + 1
    );
    stream.write_all(format!("{head}\r\n\r\n{words}\n").as_bytes()).await?;
    stream.shutdown().await?;
    // What is unread when a stream is dropped resets it, and the answer may be lost.
    let mut rest = stream.take(BUFFER as u64);
    tokio::io::copy(&mut rest, &mut tokio::io::sink()).await.map(drop)
}

async fn talk<S>(stream: S, from: From, routes: Router, refusals: Refusals)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let address = from.address;
    let service = TowerToHyperService::new(routes.layer(axum::Extension(ConnectInfo(from))));
    let talking = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = talking.await {
        tracing::debug!(%error, "client");
        if error.is_parse() {
            let long = error.is_parse_too_large();
            refusals.note(if long { Cause::HeadTooLong } else { Cause::NotHttp }, address, "");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long it takes to let so many through.
    async fn takes(pace: &mut Pace, many: f64) -> Duration {
        let start = timer::now();
        for _ in 0..many as u64 {
            pace.wait().await;
        }
        timer::now() - start
    }

    /// Timers ring at whole milliseconds.
    fn about(took: Duration, wanted: f64) -> bool {
        (took.as_secs_f64() - wanted).abs() < 0.003
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_at_once_and_then_so_many_a_second() {
        let mut pace = Pace::new();
        assert_eq!(takes(&mut pace, RATE).await, Duration::ZERO, "a burst");
        for _ in 0..3 {
            let took = takes(&mut pace, RATE).await;
            assert!(about(took, 1.0), "a second's worth took {took:?}");
        }
        let took = takes(&mut pace, RATE / 10.0).await;
        assert!(about(took, 0.1), "a tenth of it took {took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn quiet_times_save_up_one_burst_and_no_more() {
        let mut pace = Pace::new();
        takes(&mut pace, RATE).await;
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!(takes(&mut pace, RATE / 2.0).await, Duration::ZERO, "half a burst");
        let took = takes(&mut pace, RATE / 2.0).await;
        assert!(about(took, 0.5), "what half a second had not saved took {took:?}");
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(takes(&mut pace, RATE).await, Duration::ZERO, "a burst");
        let took = takes(&mut pace, RATE).await;
        assert!(about(took, 1.0), "after the burst of a long quiet time, {took:?}");
    }
}
