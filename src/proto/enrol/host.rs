//! A host as a certificate names it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::proto::codec;
use crate::proto::node::valid_host;

/// The domain of names that tell clusters apart (`node.<cluster>.xpando.internal`): no host has one.
const RESERVED: &str = "xpando.internal";

/// A DNS name in lower case, or an IP address. No wildcard, no trailing dot, nothing under `xpando.internal`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// A DNS name.
    Name(String),
    /// An address.
    Address(IpAddr),
}

/// Why a text is no host. Nothing changed; anyone who wrote it must correct it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// It is neither a DNS name nor an address.
    #[error("{0:?} is neither a host name nor an IP address")]
    Neither(String),
    /// It is a name that a cluster has for itself.
    #[error("{0:?} is under {RESERVED}, which no host is named by")]
    Reserved(String),
}

impl FromStr for Host {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let quoted = || text.chars().take(64).collect();
        let name = valid_host(text).ok_or_else(|| HostError::Neither(quoted()))?;
        let parent = name.strip_suffix(RESERVED);
        if parent.is_some_and(|parent| parent.is_empty() || parent.ends_with('.')) {
            return Err(HostError::Reserved(quoted()));
        }
        Ok(Self::Name(name.into_owned()))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(address) => address.fmt(f),
        }
    }
}

codec::as_text!(Host);
