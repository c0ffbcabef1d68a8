//! Where a node listens for its peers and for those who operate it, and where it tells others that it is.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;

#[cfg(feature = "gateway")]
use crate::io::identity::provider::Providers;
use crate::io::seeds::PORT;
use crate::io::sockets::{AdminSocket, SocketError};
use crate::io::tls::Web;
use crate::io::{addresses, limits, tcp};
use crate::node::{Config, StartError};
use crate::proto::admission::Descriptors;
use crate::proto::node::NodeName;

/// On loopback, how many ports after the usual one are tried.
pub(super) const NEXT_PORTS: u16 = 1000;
/// Peers that may wait to be accepted.
const PEERS: i32 = 128;

/// The admin socket, found by others on this machine; where that fails, it is tried again.
pub(super) fn admin_socket(config: &Config) -> Result<Arc<AdminSocket>, SocketError> {
    let socket = AdminSocket::open(&config.name, &config.data_dir)?;
    if let Err(error) = socket.look() {
        tracing::warn!(%error, "`xpando-node ps` will not find this node");
    }
    Ok(Arc::new(socket))
}

/// The address that a node of this name is at, by its host. Where that is none that other machines can use (Debian
/// gives a host's own name 127.0.1.1), another of this machine's. `flag` is what says it better.
async fn home(name: &NodeName, flag: &'static str) -> Result<IpAddr, StartError> {
    if let Some(ip) = name.host_ip() {
        return Ok(ip);
    }
    let found = tokio::net::lookup_host((name.host(), 0)).await;
    let found = found.map_err(|cause| StartError::Host { name: name.clone(), cause, flag })?;
    let mut found: Vec<_> = found.map(|address| address.ip()).collect();
    found.sort_by_key(|ip| ip.is_ipv6());
    let usable = |ip: &&IpAddr| name.is_loopback() || addresses::useless(**ip).is_none();
    if let Some(ip) = found.iter().find(usable) {
        return Ok(*ip);
    }
    let ip = addresses::outward().map_err(|own| StartError::Home {
        name: name.clone(),
        found: found.clone(),
        own,
        flag,
    })?;
    tracing::warn!(
        %name, is = ?found, chosen = %ip,
        "the host of this node's name is no address that other machines can use: using another one of this machine. \
         Pass {flag} ADDR:PORT, or correct /etc/hosts"
    );
    Ok(ip)
}

/// Raises the limit of the whole process: what nothing else needs of it, clients may have.
fn raise_descriptors() {
    let number =
        |limit: Option<u64>| limit.map_or_else(|| "unlimited".to_owned(), |it| it.to_string());
    match limits::raise_descriptors() {
        Ok((was, is)) => {
            let clients = Descriptors::shares(limits::descriptors()).clients;
            tracing::info!(was = number(was), is = number(is), clients, "limit of open files");
        }
        Err(error) => tracing::warn!(%error, "the limit of open files stays as it is"),
    }
}

pub(super) async fn listen(config: &Config) -> Result<(TcpListener, SocketAddr), StartError> {
    raise_descriptors();
    let (first, last) = match config.listen {
        Some(address) => (address, address.port()),
        None => {
            let ip = home(&config.name, "--listen").await?;
            let last = if config.name.is_loopback() { PORT + NEXT_PORTS } else { PORT };
            (SocketAddr::new(ip, PORT), last)
        }
    };
    let listener = bind(first, last, PEERS);
    let bound = listener.and_then(|listener| listener.local_addr().map(|at| (listener, at)));
    bound.map_err(|cause| StartError::Listen { address: first, cause })
}

pub(super) async fn advertise(
    config: &Config,
    listen: SocketAddr,
) -> Result<SocketAddr, StartError> {
    let mut address = config.advertise.unwrap_or(listen);
    if address.ip().is_unspecified() {
        address.set_ip(home(&config.name, "--advertise").await?);
    }
    if address.port() == 0 {
        address.set_port(listen.port());
    }
    match addresses::useless(address.ip()) {
        Some(_) if address.ip().is_loopback() && config.name.is_loopback() => {}
        // Of use where a tunnel ends at this address on every machine.
        Some(why) if address.ip().is_loopback() => tracing::warn!(
            name = %config.name, %address, why,
            "other nodes are told an address that does not lead here from another machine: pass --advertise ADDR:PORT"
        ),
        Some(why) => return Err(StartError::Advertise { address, why }),
        None => {}
    }
    Ok(address)
}

/// Where clients are served, and with which certificate.
#[derive(Clone)]
#[cfg_attr(not(feature = "gateway"), allow(dead_code, reason = "a gateway alone serves clients"))]
pub(super) struct Served {
    pub(super) listener: Arc<TcpListener>,
    pub(super) address: SocketAddr,
    pub(super) web: Option<Web>,
    /// Whose tokens count besides the cluster's.
    #[cfg(feature = "gateway")]
    pub(super) providers: Providers,
}

/// Listens on the first free port.
pub(super) fn bind(
    mut address: SocketAddr,
    last: u16,
    waiting: i32,
) -> std::io::Result<TcpListener> {
    loop {
        match tcp::listen(address, waiting) {
            Err(error)
                if error.kind() == std::io::ErrorKind::AddrInUse && address.port() < last =>
            {
                address.set_port(address.port() + 1);
            }
            other => return other,
        }
    }
}
