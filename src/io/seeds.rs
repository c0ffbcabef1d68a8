//! Seeds: the `HOST[:PORT]` of `--join`, and the addresses behind it.
//!
//! Names are looked up again each time, so that a seed may move; all addresses of a name count,
//! IPv4 and IPv6.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use crate::proto::membership::usable;

/// The port of a node, unless it is told another.
pub const PORT: u16 = 4697;

/// A host name or address, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    host: String,
    port: u16,
}

/// Why a text is no seed. Nothing changed; anyone who wrote it must correct it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not HOST or HOST:PORT of one machine (for example 10.0.0.1, db.example:4697 or [2001:db8::1]:4697)"
)]
pub struct SeedError(String);

impl FromStr for Seed {
    type Err = SeedError;

    fn from_str(text: &str) -> Result<Self, SeedError> {
        let error = || SeedError(text.to_owned());
        let bracketed_alone = text.starts_with('[') && text.ends_with(']');
        let (host, port) = match text.rsplit_once(':').filter(|_| !bracketed_alone) {
            Some((host, port)) => (host, port.parse().map_err(|_no_number| error())?),
            None => (text, PORT),
        };
        let host = match host.strip_prefix('[') {
            Some(rest) => {
                let inner = rest.strip_suffix(']').ok_or_else(error)?;
                inner.parse::<Ipv6Addr>().map_err(|_not_ipv6| error())?;
                inner
            }
            None => host,
        };
        let name = !host.is_empty() && host.len() <= 253 && !host.contains([' ', '/', '@', '[']);
        let bare_ipv6 = host.contains(':') && !text.starts_with('[');
        // Nobody is at such an address, and a dial of 0.0.0.0 would reach this machine.
        let nobody = host.parse().is_ok_and(|ip| !usable(SocketAddr::new(ip, port)));
        let sound = name && !bare_ipv6 && port != 0 && !nobody;
        if sound { Ok(Self { host: host.to_owned(), port }) } else { Err(error()) }
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.parse::<IpAddr>() {
            Ok(ip) => SocketAddr::new(ip, self.port).fmt(f),
            Err(_) => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl Seed {
    /// The addresses behind the seed, now.
    ///
    /// # Errors
    /// The resolver's; nothing changed, asking again later may help.
    pub(crate) async fn resolve(&self) -> std::io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((self.host.as_str(), self.port)).await?.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_host_and_port() {
        for good in ["10.0.0.1:4697", "db.example:1", "[::1]:4697", "localhost:65535"] {
            let seed: Seed = good.parse().expect(good);
            assert_eq!(seed.to_string(), good);
        }
        for (short, whole) in
            [("h", "h:4697"), ("10.0.0.1", "10.0.0.1:4697"), ("[::1]", "[::1]:4697")]
        {
            assert_eq!(short.parse::<Seed>().expect(short).to_string(), whole);
        }
        for bad in [
            "",
            "h:",
            ":1",
            "h:0",
            "h:70000",
            "::1:4697",
            "::1",
            "[x]:1",
            "[x]",
            "[::1",
            "a b:1",
            "a@h:1",
            "a@h",
            "0.0.0.0:4697",
            "0.0.0.0",
            "[::]:1",
            "224.0.0.1:1",
            "255.255.255.255:1",
        ] {
            assert_eq!(bad.parse::<Seed>(), Err(SeedError(bad.to_owned())));
        }
    }

    #[tokio::test]
    async fn addresses_resolve_without_a_resolver() {
        let seed: Seed = "[::1]:4697".parse().expect("valid");
        assert_eq!(seed.resolve().await.expect("literal"), ["[::1]:4697".parse().expect("valid")]);
    }
}
