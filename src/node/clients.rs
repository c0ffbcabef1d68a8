//! What the feature `gateway` adds to a node: clients over HTTP.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::actors::channel_router::{ChannelRouter, Publisher};
use crate::actors::files::Followed;
use crate::actors::supervisor::Child;
use crate::gateway::channels::Channels;
use crate::gateway::http::{self, Http};
use crate::gateway::view::NodeView;
use crate::io::identity::provider::Providers;
use crate::io::identity::{Fetch, Identity, KeySetState, Look, Tokens};
use crate::io::tls::Web;
use crate::node::listen::{NEXT_PORTS, Served, bind};
use crate::node::{Config, StartError};
use crate::proto::channel::family::FamilyRule;
use crate::proto::presence::listing::Sees;
use crate::proto::proxies::Proxies;
use crate::proto::topic::Pattern;

/// Clients that may wait to be accepted: when a node dies, all of its clients come to the others at once. The system has
/// the last word.
const CLIENTS: i32 = 4096;

impl Followed for Providers {
    fn look(&self) -> Result<Look<()>, String> {
        Self::look(self).map_err(|error| error.to_string())
    }

    fn due(&self, clock: fn() -> Instant) -> Vec<Fetch> {
        Self::due(self, clock)
    }

    fn key_sets(&self) -> Vec<KeySetState> {
        Self::key_sets(self)
    }

    fn trouble(&self) -> Option<String> {
        Self::trouble(self)
    }

    fn notes(&self) -> Vec<String> {
        Self::notes(self)
    }

    fn count(&self) -> usize {
        Self::count(self)
    }
}

/// Where clients are served, bound.
pub(super) struct Bound {
    listener: Arc<TcpListener>,
    address: SocketAddr,
    web: Option<Web>,
    /// Over TLS with the node's own certificate.
    own: bool,
    /// Whose tokens count besides the cluster's.
    providers: Providers,
}

/// Listens for clients where the configuration says so. `data` is the data directory.
pub(super) fn listen(config: &http::Config, data: &Path) -> Result<Bound, StartError> {
    let first = config.listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], http::PORT)));
    let last = config.listen.map_or(first.port() + NEXT_PORTS, |address| address.port());
    let web = config.tls.as_ref().map(|(certificate, key)| Web::read(certificate, key));
    let web = web.transpose()?;
    let providers = Providers::open(&config.identities, Some(data))?;
    let own = web.is_none() && !config.plain && !first.ip().is_loopback();
    let bound =
        bind(first, last, CLIENTS).and_then(|it| it.local_addr().map(|at| (Arc::new(it), at)));
    let (listener, address) = bound.map_err(|cause| StartError::Http { address: first, cause })?;
    Ok(Bound { listener, address, web, own, providers })
}

impl Bound {
    /// With the certificate that they are served with.
    pub(super) fn with(self, identity: &Identity) -> Result<Served, StartError> {
        let web = if self.own { Some(Web::of(identity)?) } else { self.web };
        Ok(Served {
            listener: self.listener,
            address: self.address,
            web,
            providers: self.providers,
        })
    }
}

/// What it says of topics.
fn of(http: &http::Config) -> (&[Pattern], &[FamilyRule], &[(Pattern, Sees)]) {
    let http::Config { anonymous, channels, presence, .. } = http;
    (anonymous, channels, presence)
}

/// What clients share, and the actors that serve them.
pub(super) fn serve(
    config: &Config,
    tokens: &Tokens,
    publisher: &Publisher,
    http: Option<&Served>,
    router: &ChannelRouter,
    view: &NodeView,
) -> (Arc<Channels>, Vec<Child>) {
    let none: (&[_], &[_], &[_]) = (&[], &[], &[]);
    let topics = config.http.as_ref().map_or(none, of);
    let providers = http.map(|it| it.providers.clone()).unwrap_or_default();
    let tokens = (tokens, &providers);
    let channels = Arc::new(Channels::new(router, publisher, view, tokens, topics));
    let (Some(Served { listener, web, .. }), Some(config)) = (http, &config.http) else {
        return (channels, Vec::new());
    };
    let (listener, web) = (listener.clone(), web.clone());
    let (origins, prefix) = (config.origins.clone(), config.prefix.clone());
    let proxies = Proxies::new(config.proxies.clone());
    let http = Http { listener, web, origins, prefix, proxies, channels: channels.clone() };
    (channels, http.children().into())
}
