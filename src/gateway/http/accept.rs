//! How clients are accepted: each gets a place, or an answer that says why not.
//!
//! Invariants:
//! 1. Each connection has its own task. It ends when its place is given to another client, or was provisional for too
//!    long; an answer that is under way then has [`FINISH`] more.
//! 2. A connection without a place is answered too: health, or a refusal with a body. It lasts for [`BEYOND`]; where
//!    there are too many of either, the oldest goes, so that they keep nobody out.
//! 3. Running out of descriptors, or of memory, slows the loop and never ends it, and is logged once a minute.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

use super::From;
use super::problem::Problem;
use super::stall::Stall;
use crate::actors::timer;
use crate::gateway::memory::MemoryWatch;
use crate::gateway::places::{Place, Places, Shares};
use crate::gateway::refusal::{Cause, Refusals};
use crate::io::limits;
use crate::io::metrics::{Count, Metrics};
use crate::io::tcp;
use crate::io::tls::Web;
use crate::proto::admission::{Descriptors, Limits, NoPlace};
use crate::proto::limits::ClientLimits;
use crate::proto::notices::Notices;
use crate::proto::proxies::{ClientAddress, Proxies};
use crate::proto::share::REQUEST;

/// Time for a handshake, and for the head of a request.
const HEAD: Duration = Duration::from_secs(10);
/// Time of a connection without a place.
const BEYOND: Duration = Duration::from_secs(2);
/// Time for an answer that is under way when the connection is to end.
const FINISH: Duration = Duration::from_secs(1);
/// Bytes of a request's head, and of what is read ahead.
const BUFFER: usize = 16 * 1024;
/// Wait after a failed accept.
const PAUSE: Duration = Duration::from_millis(100);

/// What decides about connections.
#[derive(Clone)]
pub(super) struct Gate(Arc<Inner>);

struct Inner {
    places: Arc<Places>,
    proxies: Proxies,
    refusals: Refusals,
    metrics: Metrics,
    memory: MemoryWatch,
    notices: Mutex<Notices>,
    beyond: usize,
    /// Those with a place, those who gave theirs up and did not close their socket yet, and those beyond.
    connections: usize,
    /// Clients accepted a second, after a burst of as many.
    accepts: usize,
}

impl Gate {
    pub(super) fn new(
        proxies: Proxies,
        refusals: &Refusals,
        metrics: &Metrics,
        shares: &Arc<Shares>,
        limits: &ClientLimits,
        memory: &MemoryWatch,
    ) -> Self {
        let Descriptors { clients, beyond, .. } = Descriptors::shares(limits::descriptors());
        let clients = clients.min(limits.clients);
        let places = Places::new(Limits::among(clients), shares);
        Self(Arc::new(Inner {
            places,
            proxies,
            refusals: refusals.clone(),
            metrics: metrics.clone(),
            memory: memory.clone(),
            notices: Mutex::default(),
            beyond,
            connections: clients + beyond,
            accepts: limits.accepts,
        }))
    }

    /// A place for a caller, and how many others gave theirs up; or one for a refusal.
    fn open(&self, from: IpAddr) -> Result<(Place, usize), Place> {
        let refuse = |cause, about: &str| {
            self.0.refusals.note(cause, from, about);
            self.0.places.refused(from, cause)
        };
        if let Some(scarce) = self.0.memory.scarce() {
            return Err(refuse(Cause::Memory, &scarce.to_string()));
        }
        let opened = self.0.places.open(from, self.0.proxies.trusts(from));
        let (place, evicted) = opened.map_err(|why| match why {
            NoPlace::Full => refuse(Cause::TooManyClients, ""),
            NoPlace::Address => refuse(Cause::TooManyOfAddress, ""),
        })?;
        for _ in 0..evicted {
            self.0.refusals.note(Cause::Evicted, from, "");
        }
        Ok((place, evicted))
    }

    /// Logs it, unless that was done lately.
    fn notice(&self, cause: &'static str, log: impl Fn(u64)) {
        let mut notices = self.0.notices.lock();
        notices.due(cause, timer::now()).into_iter().for_each(log);
    }

    fn cannot_accept(&self, error: &io::Error) {
        self.0.metrics.count(Count::ClientsRefused, "accept");
        self.notice("accept", |left_out| {
            let remedy = "allow the process, or the machine, more open files (ulimit -n, LimitNOFILE=, fs.file-max)";
            tracing::warn!(%error, remedy, left_out, "cannot accept clients");
        });
    }

    /// Whose request it is.
    fn client(&self, from: &From, headers: &HeaderMap) -> IpAddr {
        let all = |name| {
            let values = headers.get_all(name).iter();
            values.map(|it| String::from_utf8_lossy(it.as_bytes())).collect::<Vec<_>>()
        };
        let (for_whom, forwarded) = (all("x-forwarded-for"), all("forwarded"));
        if !from.place.is_proxys() {
            if !(for_whom.is_empty() && forwarded.is_empty()) {
                self.notice("not_trusted", |left_out| {
                    let remedy = "if it is your proxy, name it with --trust-proxy";
                    tracing::info!(from = %from.address, remedy, left_out, "X-Forwarded-For and Forwarded are not believed");
                });
            }
            return from.address;
        }
        let (one, other) = (for_whom.iter().map(|it| &**it), forwarded.iter().map(|it| &**it));
        match self.0.proxies.client(from.address, one, other) {
            ClientAddress::Caller => from.address,
            ClientAddress::At(client) => client,
            ClientAddress::Contradiction => {
                self.notice("contradiction", |left_out| {
                    let remedy = "let the proxy set or remove both headers";
                    tracing::warn!(from = %from.address, remedy, left_out, "X-Forwarded-For and Forwarded contradict each other: neither is believed");
                });
                from.address
            }
        }
    }
}

/// Every request, before anything else is done about it: names its client, and has it wait for its share.
pub(super) async fn meet(State(gate): State<Gate>, mut request: Request, next: Next) -> Response {
    let Some(ConnectInfo(mut from)) = request.extensions().get::<ConnectInfo<From>>().cloned()
    else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    // Perhaps below the prefix of a proxy.
    let health =
        ["/health/live", "/health/ready"].iter().any(|it| request.uri().path().ends_with(it));
    if let Some(cause) = from.place.refusal().filter(|_| !health) {
        return Problem::from(cause).into_response();
    }
    from.address = gate.client(&from, request.headers());
    from.place.pay(from.address, REQUEST).await;
    request.extensions_mut().insert(ConnectInfo(from));
    next.run(request).await
}

/// Accepts clients for ever.
pub(super) async fn run(listener: TcpListener, gate: Gate, web: Option<Web>, routes: Router) {
    let (mut pace, mut clients) = (Pace::new(gate.0.accepts as f64), JoinSet::new());
    let half = (gate.0.beyond / 2).max(1);
    let (mut health, mut refused) = (Beyond::new(half), Beyond::new(half));
    loop {
        while clients.try_join_next().is_some() {}
        pace.wait().await;
        gate.0.places.fewer_than(gate.0.connections).await;
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                gate.cannot_accept(&error);
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let from = from.ip().to_canonical();
        // Where places are short, those who ask for health have some of their own: they keep them for a moment, and what
        // asks for nothing cannot take them.
        let asks_health = || web.is_none() && tcp::peek(&stream).starts_with(b"GET /health/");
        let (pool, place) = match gate.open(from) {
            Ok((place, evicted)) => {
                if evicted == 0 || !asks_health() {
                    (None, place)
                } else {
                    (Some(&mut health), gate.0.places.refused(from, Cause::TooManyClients))
                }
            }
            Err(place) if asks_health() => (Some(&mut health), place),
            Err(place) => (Some(&mut refused), place),
        };
        let refusals = gate.0.refusals.clone();
        let task = client(stream, place, web.clone(), routes.clone(), refusals);
        match pool {
            Some(pool) => pool.spawn(task).await,
            None => drop(clients.spawn(task)),
        }
    }
}

/// The tasks of connections without a place.
struct Beyond {
    most: usize,
    tasks: JoinSet<()>,
    oldest: VecDeque<AbortHandle>,
}

impl Beyond {
    fn new(most: usize) -> Self {
        Self { most, tasks: JoinSet::new(), oldest: VecDeque::new() }
    }

    /// Returns when there is room for it, which the oldest makes.
    async fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        while self.tasks.try_join_next().is_some() {}
        self.oldest.retain(|task| !task.is_finished());
        while self.tasks.len() >= self.most {
            self.oldest.pop_front().iter().for_each(AbortHandle::abort);
            self.tasks.join_next().await;
        }
        let task = async { drop(tokio::time::timeout(BEYOND, task).await) };
        self.oldest.push_back(self.tasks.spawn(task));
    }
}

/// Serves a connection until it ends, or another client has its place.
async fn client(
    stream: TcpStream,
    place: Place,
    web: Option<Web>,
    routes: Router,
    refusals: Refusals,
) {
    // A socket that is gone already is found out by the first read.
    stream.set_nodelay(true).unwrap_or(());
    tokio::select! {
        biased;
        () = place.evicted() => {}
        () = serve(stream, &place, web, routes, refusals) => {}
    }
}

async fn serve(
    stream: TcpStream,
    place: &Place,
    web: Option<Web>,
    routes: Router,
    refusals: Refusals,
) {
    let address = place.address();
    let Some(web) = web else {
        return talk(Stall::new(stream, address, &refusals), place, routes, refusals).await;
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
        talk(stream, place, routes, refusals).await;
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

async fn talk<S>(stream: S, place: &Place, routes: Router, refusals: Refusals)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let from = From { address: place.address(), place: place.clone() };
    let routes = TowerToHyperService::new(routes);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(from.clone()));
        routes.call(request)
    });
    let talking = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(BUFFER)
        .keep_alive(place.refusal().is_none())
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut talking = std::pin::pin!(talking);
    let ended = tokio::select! {
        ended = &mut talking => Ok(ended),
        () = place.overdue() => {
            talking.as_mut().graceful_shutdown();
            tokio::time::timeout(FINISH, talking).await
        }
    };
    if let Ok(Err(error)) = ended {
        tracing::trace!(%error, "client");
        if error.is_parse() {
            let long = error.is_parse_too_large();
            refusals.note(
                if long { Cause::HeadTooLong } else { Cause::NotHttp },
                place.address(),
                "",
            );
        }
    }
}

/// Lets so many through in a second.
struct Pace {
    /// In a second, and at once.
    rate: f64,
    allowed: f64,
    at: Instant,
}

impl Pace {
    fn new(rate: f64) -> Self {
        Self { rate, allowed: rate, at: timer::now() }
    }

    async fn wait(&mut self) {
        let now = timer::now();
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        (self.allowed, self.at) = ((self.allowed + since * self.rate).min(self.rate), now);
        if self.allowed < 1.0 {
            tokio::time::sleep(Duration::from_secs_f64((1.0 - self.allowed) / self.rate)).await;
        }
        self.allowed -= 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: f64 = 10_000.0;

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
        let mut pace = Pace::new(RATE);
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
        let mut pace = Pace::new(RATE);
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
