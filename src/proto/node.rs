//! Who is who: names, ids, incarnations and addresses of nodes.
//!
//! Owns the rules of a valid node name. Invariant: a [`NodeName`] that exists is valid, so every
//! floor above compares names without checking them again.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::proto::codec;

/// Longest accepted part before the `@`, in bytes.
pub(crate) const MAX_SHORT_NAME: usize = 63;
/// Longest accepted host part, in bytes (the limit of a DNS name).
pub(crate) const MAX_HOST: usize = 253;
/// Longest accepted whole name, in bytes: names travel with a one-byte length.
pub(crate) const MAX_NAME: usize = 255;

/// A node's full name, `name@host`.
///
/// `name` is 1–63 of `A–Z a–z 0–9 . _ -` and does not begin with `-`; `host` is a DNS name, an IPv4 address, or an IPv6
/// address without brackets or zone. The host is kept in lower case and IP addresses in their
/// canonical spelling, so that equal names are equal strings.
///
/// Names are keys of nearly every map and part of nearly every message: a clone shares the text, and
/// most comparisons are over before they come to it.
#[derive(Clone)]
pub struct NodeName {
    /// The first eight bytes, padded with zeros, which no name contains: they order as the text does.
    head: u64,
    full: Arc<str>,
    at: u8,
}

codec::as_text!(NodeName, it => it.as_str());

/// Why a text is not a node name. Nothing changed; anyone who supplied the text must correct it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// There is no `@`.
    #[error("node name {0:?} has no '@': write name@host, for example a@127.0.0.1")]
    NoAt(String),
    /// The part before the `@` is empty or too long.
    #[error("node name {0:?}: the part before '@' must have 1 to {MAX_SHORT_NAME} characters")]
    ShortLength(String),
    /// The part before the `@` has a character that a name cannot have.
    #[error(
        "node name {0:?}: the part before '@' may have only letters, digits, '.', '_' and '-' (found {1:?})"
    )]
    ShortCharacter(String, char),
    /// The part before the `@` begins with a `-`: commands would take the name for an option.
    #[error("node name {0:?}: a name does not begin with '-'")]
    Dash(String),
    /// The part after the `@` is neither a host name nor an IP address.
    #[error("node name {0:?}: the part after '@' is neither a host name nor an IP address")]
    Host(String),
    /// The whole is longer than 255 bytes (its first 40 characters are quoted).
    #[error("node name \"{0}…\" is too long: at most {MAX_NAME} bytes")]
    TooLong(String),
}

impl NodeName {
    /// The part before the `@`.
    #[must_use]
    pub fn short(&self) -> &str {
        self.full.get(..usize::from(self.at)).unwrap_or_default()
    }

    /// The part after the `@`, in lower case.
    #[must_use]
    pub fn host(&self) -> &str {
        self.full.get(usize::from(self.at) + 1..).unwrap_or_default()
    }

    /// The whole name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.full
    }

    /// The host as an IP address, when it is written as one.
    pub(crate) fn host_ip(&self) -> Option<IpAddr> {
        self.host().parse().ok()
    }

    /// True when the host part names this machine's loopback: `localhost`, 127.0.0.0/8 or `::1`.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.host_ip().map_or(self.host() == "localhost", |ip| ip.is_loopback())
    }

    /// The SPIFFE path that names this node in a certificate: `/node/<host>/<name>`.
    ///
    /// SPIFFE (SPIFFE-ID specification, section 2.2) allows neither `@` nor percent-encoding in a
    /// path, so the parts are separate segments and the colons of an IPv6 host become `-`.
    pub(crate) fn spiffe_path(&self) -> String {
        format!("/node/{}/{}", self.host().replace(':', "-"), self.short())
    }

    /// The reverse of [`NodeName::spiffe_path`]; `None` when the path names no node.
    pub(crate) fn from_spiffe_path(path: &str) -> Option<Self> {
        let (host, short) = path.strip_prefix("/node/")?.split_once('/')?;
        let name = format!("{short}@{host}").parse::<Self>().ok();
        let ipv6 = || format!("{short}@{}", host.replace('-', ":")).parse::<Self>().ok();
        // Only the path that the name itself would produce is accepted: one name, one spelling.
        ipv6()
            .filter(|n| n.host_ip().is_some_and(|ip| ip.is_ipv6()))
            .or(name)
            .filter(|n| n.spiffe_path() == path)
    }
}

/// A host as names have it: most are written so already.
pub(crate) fn valid_host(host: &str) -> Option<Cow<'_, str>> {
    match host.parse::<IpAddr>() {
        // There is one way to write it, unlike an IPv6 address.
        Ok(IpAddr::V4(_)) => return Some(host.into()),
        Ok(IpAddr::V6(ip)) => return Some(ip.to_string().into()),
        Err(_) => {}
    }
    let label_ok = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    // A last label of digits only would be a mistyped IPv4 address, never a host name (RFC 3696, 2).
    let mistyped_ip =
        host.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    let valid = host.len() <= MAX_HOST && !mistyped_ip && host.split('.').all(label_ok);
    let upper = host.bytes().any(|b| b.is_ascii_uppercase());
    valid.then(|| if upper { host.to_ascii_lowercase().into() } else { host.into() })
}

impl FromStr for NodeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.len() > MAX_NAME {
            return Err(NameError::TooLong(text.chars().take(40).collect()));
        }
        let (short, host) = text.split_once('@').ok_or_else(|| NameError::NoAt(text.to_owned()))?;
        if !(1..=MAX_SHORT_NAME).contains(&short.len()) {
            return Err(NameError::ShortLength(text.to_owned()));
        }
        let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if let Some(bad) = short.chars().find(|c| !allowed(c)) {
            return Err(NameError::ShortCharacter(text.to_owned(), bad));
        }
        if short.starts_with('-') {
            return Err(NameError::Dash(text.to_owned()));
        }
        if matches!(short, "." | "..") {
            return Err(NameError::ShortCharacter(text.to_owned(), '.'));
        }
        let host = valid_host(host).ok_or_else(|| NameError::Host(text.to_owned()))?;
        let full: Arc<str> = match host {
            Cow::Borrowed(_) => text.into(),
            Cow::Owned(host) => format!("{short}@{host}").into(),
        };
        let mut head = [0; 8];
        head.iter_mut().zip(full.bytes()).for_each(|(to, from)| *to = from);
        let at =
            u8::try_from(short.len()).map_err(|_long| NameError::ShortLength(text.to_owned()))?;
        Ok(Self { head: u64::from_be_bytes(head), full, at })
    }
}

impl PartialEq for NodeName {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for NodeName {}

impl PartialOrd for NodeName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for NodeName {
    fn cmp(&self, other: &Self) -> Ordering {
        let text = || {
            let same = Arc::ptr_eq(&self.full, &other.full);
            if same { Ordering::Equal } else { self.full.cmp(&other.full) }
        };
        self.head.cmp(&other.head).then_with(text)
    }
}

impl Hash for NodeName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.full.hash(state);
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.full)
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.full)
    }
}

/// Sixteen bytes of a SHA-256, shown as 32 hexadecimal digits: the id of a public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyId(pub [u8; 16]);

impl KeyId {
    /// The id of a public key given as DER-encoded `SubjectPublicKeyInfo` (RFC 5280, 4.1).
    pub fn of_public_key(spki_der: &[u8]) -> Self {
        use sha2::{Digest, Sha256};
        let digest: [u8; 32] = Sha256::digest(spki_der).into();
        let mut id = [0; 16];
        id.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
        Self(id)
    }

    /// The id that these 32 hexadecimal digits show.
    pub fn from_hex(text: &str) -> Option<Self> {
        let digits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let id = digits.then(|| u128::from_str_radix(text, 16).ok()).flatten()?;
        Some(Self(id.to_be_bytes()))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The key that a certificate is of, and since when the certificate counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credential {
    /// The key.
    pub key: KeyId,
    /// In seconds since 1970.
    pub since: u64,
}

impl Credential {
    /// Whether a name of both is this one's: it has another key, which was issued later.
    pub(crate) fn supersedes(self, other: Self) -> bool {
        self.key != other.key && (self.since, self.key) > (other.since, other.key)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The cluster's id: the key id of its certificate authority.
pub type ClusterId = KeyId;

/// A node's id: the key id of its own key. It outlives restarts and renewed certificates.
pub type NodeId = KeyId;

/// How often a node has started: a counter that it persists, so that a later life of the same
/// name is told from an earlier one. The first life is 1.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Incarnation(pub u64);

impl Incarnation {
    /// The last one that is believed of anybody. A node that restarts a thousand times a second comes to it in nine
    /// thousand years.
    pub(crate) const LAST: Self = Self(1 << 48);

    /// The incarnation after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Where a node can be reached, as one node tells another. A hint, never a proof.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contact {
    /// The node's name.
    pub name: NodeName,
    /// The address it advertises for links.
    pub address: SocketAddr,
    /// The life it was in.
    pub incarnation: Incarnation,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> NodeName {
        text.parse().expect("a valid name")
    }

    #[test]
    fn names_have_two_parts_and_one_spelling() {
        let n = name("Web-1.x@DB.Example");
        assert_eq!(
            (n.short(), n.host(), n.as_str()),
            ("Web-1.x", "db.example", "Web-1.x@db.example")
        );
        assert_eq!(name("a@0:0::1"), name("a@::1"));
        assert!(name("a@127.8.0.1").is_loopback() && name("a@localhost").is_loopback());
        assert!(!name("a@10.0.0.1").is_loopback() && !name("a@local").is_loopback());
    }

    #[test]
    fn names_order_as_their_texts_do() {
        let texts = ["a@h", "a@ha", "a@h.example", "a.b@h", "B@h", "b@h", "node-10@h", "node-1@h"];
        for (one, other) in texts.iter().flat_map(|one| texts.map(|other| (*one, other))) {
            assert_eq!(name(one).cmp(&name(other)), one.cmp(other), "{one} and {other}");
            assert_eq!(name(one) == name(other), one == other);
        }
    }

    #[test]
    fn bad_names_are_refused_with_the_reason() {
        let reason = |text: &str| text.parse::<NodeName>().expect_err(text).to_string();
        for (bad, says) in [
            ("", "no '@'"),
            ("a", "no '@'"),
            ("@h", "1 to 63"),
            ("a@", "neither a host name"),
            ("a b@h", "' '"),
            ("a/b@h", "'/'"),
            ("..@h", "'.'"),
            ("a@h/x", "neither"),
            ("a@h h", "neither"),
            ("a@b@c", "neither"),
            ("a@1.2.3", "neither"),
            ("a@-h", "neither"),
            ("ä@h", "'ä'"),
            ("a@h\n", "neither"),
            ("-a@h", "begin with '-'"),
            ("--name@h", "begin with '-'"),
        ] {
            assert!(reason(bad).contains(says), "{bad:?} gave {}", reason(bad));
        }
        assert!(reason(&format!("{}@h", "a".repeat(64))).contains("1 to 63"));
        assert!(reason(&format!("a@{}", "h".repeat(300))).contains("too long"));
    }

    #[test]
    fn an_id_is_read_as_it_is_shown() {
        let id = KeyId([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0xab, 0xcd, 0xef, 14, 255]);
        assert_eq!(KeyId::from_hex(&id.to_string()), Some(id));
        for bad in ["", "00", &"0".repeat(33), &"g".repeat(32), &format!("+{}", "0".repeat(31))] {
            assert_eq!(KeyId::from_hex(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_spiffe_path_names_exactly_one_node() {
        for text in ["a@127.0.0.1", "a@::1", "a@fe80::1:2", "web.1@db-1.example", "a@a-b"] {
            let n = name(text);
            assert_eq!(NodeName::from_spiffe_path(&n.spiffe_path()), Some(n.clone()), "{text}");
        }
        for bad in [
            "/node/h",
            "/x/h/a",
            "/node/H/a",
            "/node/h/a/b",
            "/node//a",
            "node/h/a",
            "/node/0--1/a",
        ] {
            assert_eq!(NodeName::from_spiffe_path(bad), None, "{bad}");
        }
    }
}
