//! The gateway for clients outside the cluster: HTTP/1.1, with WebSockets and long polling for channels, and the dashboard.
//!
//! Invariants:
//! 1. It listens on loopback unless told otherwise, and elsewhere speaks TLS unless told otherwise.
//! 2. Places are for clients that have a right to something; others have one for a short time (`accept`).
//! 3. A page of another origin gets nothing, unless that origin is on the list; nor does one by another name of this host.
//! 4. Every wait on a client has a limit: for a head, a body, and for an answer to be taken.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderMap, HeaderName};
use axum::routing::{any, get};
use tokio::net::TcpListener;

use crate::actors::supervisor::Child;
use crate::gateway::channels::{Channels, feed, longpoll};
use crate::gateway::places::{Place, Shares};
use crate::io::tls::Web;
use crate::proto::channel::family::FamilyRule;
pub use crate::proto::limits::{ClientLimits, LimitError};
use crate::proto::presence::listing::Sees;
use crate::proto::proxies::{Cidr, Proxies};
use crate::proto::topic::Pattern;
use accept::Gate;

mod accept;
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

/// The port, unless it is told another.
pub const PORT: u16 = 4000;

/// How clients reach a node.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
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
    /// What serves which topics, beside `room:*=room`, `network:*=network` and `node:*=node`. Of the patterns
    /// that cover a topic the most specific one counts, of equal ones the last.
    pub channels: Vec<FamilyRule>,
    /// What clients see of each other at most; of the patterns that cover a topic the most specific one counts, of equal
    /// ones the last. Elsewhere: who is there.
    pub presence: Vec<(Pattern, Sees)>,
    /// Settings of the identity providers whose tokens count besides the cluster's.
    pub identities: Vec<PathBuf>,
    /// Over how long a drain sends clients elsewhere. `None`: 30 s.
    pub drain_time: Option<Duration>,
    /// What clients may do and have.
    pub limits: ClientLimits,
    /// The proxies whose word counts about whose request they pass on.
    pub proxies: Vec<Cidr>,
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
    /// The proxies that are trusted.
    pub proxies: Proxies,
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
    pub fn children(self) -> [Child; 2] {
        let (metrics, channels) = (self.channels.metrics.clone(), self.channels.clone());
        let feed = Child::task("feed", &metrics, move || Box::pin(feed::run(channels.clone())));
        [feed, Child::task("http", &metrics, move || Box::pin(self.clone().serve()))]
    }

    /// What every request passes and comes to.
    fn routes(
        &self,
        listen: SocketAddr,
        polls: Arc<longpoll::Sessions>,
        shares: &Arc<Shares>,
    ) -> (Gate, Router) {
        let channels = self.channels.clone();
        let (tls, anonymous) = (self.web.is_some(), channels.serves_anonymous());
        let pages = Pages { origins: self.origins.clone(), listen, tls, anonymous };
        let (pages, prefix) = (Arc::new(pages), self.prefix.clone());
        let (refusals, metrics) = (&channels.refusals, &channels.metrics);
        let limits = &channels.admin.clients.limits;
        let gate =
            Gate::new(self.proxies.clone(), refusals, metrics, shares, limits, &channels.memory);
        let site = Site { channels, pages, prefix, polls, bodies: Bodies::default() };
        let routes = Router::new()
            .route("/", get(dashboard::page))
            .route("/socket/websocket", any(upgrade::websocket))
            .route("/socket/longpoll", any(upgrade::poll))
            .with_state(site.clone())
            .merge(api::routes(site.clone()));
        // Around all routes, since it changes the path that they go by.
        let guard = axum::middleware::from_fn_with_state(site, guard::guard);
        let meet = axum::middleware::from_fn_with_state(gate.clone(), accept::meet);
        (gate, Router::new().fallback_service(routes).layer(guard).layer(meet))
    }

    async fn serve(self) -> io::Result<()> {
        let listener = TcpListener::from_std(self.listener.try_clone()?)?;
        let (admin, shares) = (self.channels.admin(), Arc::default());
        let polls = longpoll::Sessions::new(&admin.name, admin.clients.limits.clients, &shares);
        // Other nodes are answered as long as this server runs.
        let _serving = longpoll::serve(admin.bus.exchange(), &polls).map_err(io::Error::other)?;
        let (gate, routes) = self.routes(listener.local_addr()?, polls, &shares);
        accept::run(listener, gate, self.web, routes).await;
        Ok(())
    }
}

/// Who asks.
#[derive(Clone)]
struct From {
    /// Of the client: of the connection, or as a trusted proxy says.
    address: IpAddr,
    /// What the connection has.
    place: Place,
}

/// What a header has, if it is text.
fn text(headers: &HeaderMap, name: HeaderName) -> &str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}
