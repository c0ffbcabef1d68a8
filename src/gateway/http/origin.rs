//! Which pages may connect: browsers name a page's origin in `Origin` (RFC 6454), other clients send none.
//!
//! Invariants:
//! 1. Without a list, only pages of the origin that the request was sent to: scheme, host and port.
//! 2. A name that anybody may point at this node (DNS rebinding) lets no page in: on loopback, and where clients without
//!    a token are served without TLS, `Host` is an address of this node, `localhost`, or a host of the list.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use axum::http::{HeaderMap, HeaderName, Uri, Version, header};

use crate::gateway::refusal::Cause;

/// A pattern of origins: `https://app.example`, `http://app.example:8080`, `//app.example`, `//*.example`. What is left
/// out matches anything, but for the port of `http` and `https`, which is theirs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    scheme: Option<String>,
    host: String,
    below: bool,
    port: Option<u16>,
}

/// A text is no pattern of origins. Anyone who wrote it must correct it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no origin: write https://HOST[:PORT], //HOST or //*.HOST")]
pub struct OriginError(String);

/// What a text in the form of a URL without a path names.
struct Parts<'a> {
    scheme: &'a str,
    host: &'a str,
    port: Option<u16>,
}

fn parts(text: &str) -> Option<Parts<'_>> {
    let (scheme, rest) = text.split_once("//")?;
    let scheme = if scheme.is_empty() { scheme } else { scheme.strip_suffix(':')? };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = authority(rest)?;
    Some(Parts { scheme, host, port })
}

/// Host and port of `HOST[:PORT]` (RFC 3986, 3.2.2): a name of plain letters, or an address, and nothing else.
fn authority(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port),
        Some(_) | None => (text, ""),
    };
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let port = if port.is_empty() { None } else { Some(port.parse().ok()?) };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~*".contains(&byte);
    let sound = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(plain),
    };
    sound.then_some((host, port))
}

/// The address that a host is, if it is one.
fn address(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.parse().ok().map(|address: IpAddr| address.to_canonical())
}

/// One spelling of a host: in lower case, without the root's dot.
fn spelled(host: &str) -> String {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    address(&host).map_or(host, |address| address.to_string())
}

fn port_of(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

impl FromStr for Origin {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Self, OriginError> {
        let wrong = || OriginError(text.to_owned());
        let Parts { scheme, host, port } = parts(text).ok_or_else(wrong)?;
        let (host, below) = match host.strip_prefix("*.") {
            Some(host) => (host, true),
            None => (host, false),
        };
        if host.is_empty() || host.contains('*') {
            return Err(wrong());
        }
        let port = port.or_else(|| port_of(scheme));
        let scheme = (!scheme.is_empty()).then(|| scheme.to_ascii_lowercase());
        Ok(Self { scheme, host: spelled(host), below, port })
    }
}

impl Origin {
    fn covers(&self, host: &str) -> bool {
        let below = self.below && host.strip_suffix(&self.host).is_some_and(|it| it.ends_with('.'));
        host == self.host || below
    }

    fn matches(&self, origin: &Parts<'_>) -> bool {
        let scheme = origin.scheme.to_ascii_lowercase();
        let port = origin.port.or_else(|| port_of(&scheme));
        self.covers(&spelled(origin.host))
            && self.scheme.as_ref().is_none_or(|wanted| *wanted == scheme)
            && self.port.is_none_or(|wanted| port == Some(wanted))
    }
}

/// Which requests are a page's that may connect, or no page's at all.
#[derive(Clone, Debug)]
pub(super) struct Pages {
    /// The origins that may connect; none given: the one that the request was sent to.
    pub(super) origins: Vec<Origin>,
    /// Where the node listens.
    pub(super) listen: SocketAddr,
    pub(super) tls: bool,
    /// Whether some topics are served to clients without a token.
    pub(super) anonymous: bool,
}

/// The only value of a header, if it has one.
fn only(headers: &HeaderMap, name: HeaderName) -> Result<Option<&str>, ()> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(drop),
        (Some(_), Some(_)) => Err(()),
    }
}

impl Pages {
    /// Looks at `Host` and `Origin`.
    ///
    /// # Errors
    /// Why the request is refused.
    pub(super) fn admit(
        &self,
        version: Version,
        target: &Uri,
        headers: &HeaderMap,
    ) -> Result<(), Cause> {
        let host = only(headers, header::HOST).map_err(|()| Cause::BadHost)?;
        // What a whole URL names goes before `Host` (RFC 9112, 3.2.2).
        let host = match (host, target.authority()) {
            // No browser speaks HTTP/1.0, which has no `Host`.
            (None, None) if version < Version::HTTP_11 => None,
            (None, _) => return Err(Cause::BadHost),
            (Some(host), named) => {
                let sent = authority(host).ok_or(Cause::BadHost)?;
                let named = named.map(|named| authority(named.as_str()).ok_or(Cause::BadHost));
                Some(named.transpose()?.unwrap_or(sent))
            }
        };
        let own = host.is_some_and(|(host, _)| self.is_own(host));
        let bound = self.listen.ip().is_loopback() || self.anonymous && !self.tls;
        let listed = |host: &str| self.origins.iter().any(|one| one.covers(&spelled(host)));
        if bound && !own && host.is_some_and(|(host, _)| !listed(host)) {
            return Err(Cause::Host);
        }
        let origin = only(headers, header::ORIGIN).map_err(|()| Cause::Origin)?;
        let Some(origin) = origin else { return Ok(()) };
        let page = parts(origin).filter(|page| !page.scheme.is_empty()).ok_or(Cause::Origin)?;
        let allowed = self.origins.iter().any(|pattern| pattern.matches(&page))
            || (own || self.origins.is_empty())
                && host.is_some_and(|(host, port)| self.same(&page, host, port));
        if allowed { Ok(()) } else { Err(Cause::Origin) }
    }

    /// Whether a host is this node's by what it is, and not by what a name server answers.
    fn is_own(&self, host: &str) -> bool {
        let (host, listen) = (spelled(host), self.listen.ip());
        match address(&host) {
            None => host == "localhost",
            Some(address) => {
                address.is_loopback()
                    || address == listen.to_canonical()
                    || listen.is_unspecified() && !address.is_unspecified()
            }
        }
    }

    /// Whether a page comes from where it sends its request. A proxy may have taken the TLS away.
    fn same(&self, page: &Parts<'_>, host: &str, port: Option<u16>) -> bool {
        let scheme = page.scheme.to_ascii_lowercase();
        let usual = port_of(&scheme);
        (scheme == "https" || scheme == "http" && !self.tls)
            && spelled(page.host) == spelled(host)
            && page.port.or(usual) == port.or(usual)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages of a node that listens here, with these on its list.
    fn pages(listen: &str, list: &[&str]) -> Pages {
        Pages {
            origins: list.iter().map(|text| text.parse().expect("an origin")).collect(),
            listen: listen.parse().expect("an address"),
            tls: false,
            anonymous: false,
        }
    }

    /// What becomes of a request for `target`, with `Host` and `Origin` as often as they are given.
    fn asks(pages: &Pages, target: &str, hosts: &[&str], origins: &[&str]) -> Result<(), Cause> {
        let mut headers = HeaderMap::new();
        for (name, values) in [(header::HOST, hosts), (header::ORIGIN, origins)] {
            for value in values {
                headers.append(&name, value.parse().expect("a value"));
            }
        }
        pages.admit(Version::HTTP_11, &target.parse().expect("a target"), &headers)
    }

    const LOCAL: &str = "127.0.0.1:4000";

    #[test]
    fn on_loopback_the_host_is_an_address_of_the_node_or_localhost_or_on_the_list() {
        let sound = [
            "127.0.0.1:4000",
            "127.0.0.1",
            "localhost:4000",
            "LocalHost.",
            "localhost:",
            "[::1]:4000",
        ];
        let more =
            ["127.9.9.9", "[::ffff:127.0.0.1]", "app.example", "App.Example.:80", "a.b.example"];
        let pages = pages(LOCAL, &["https://app.example", "//*.b.example"]);
        for host in sound.iter().chain(&more) {
            assert_eq!(asks(&pages, "/", &[host], &[]), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "app.example.evil",
            "127.0.0.1.evil.example",
            "192.0.2.1",
            "0.0.0.0",
            "127.1",
            "b.example.evil",
            "xb.example",
            "[2001:db8::1]",
        ] {
            assert_eq!(asks(&pages, "/", &[host], &[]), Err(Cause::Host), "{host}");
            let origin = format!("http://{host}");
            assert_eq!(asks(&pages, "/", &[host], &[&origin]), Err(Cause::Host), "{host}");
        }
        for host in [
            "",
            "a@localhost",
            "localhost:x",
            "localhost:+80",
            "localhost:99999",
            "localhost/",
            "local host",
            "[::1",
            "[fe80::1%25lo]",
            "localhost,evil.example",
            "localhost%00",
            "::1",
        ] {
            assert_eq!(asks(&pages, "/", &[host], &[]), Err(Cause::BadHost), "{host}");
        }
    }

    #[test]
    fn there_is_one_host_and_the_url_of_a_request_goes_before_it() {
        let pages = pages(LOCAL, &[]);
        assert_eq!(asks(&pages, "/", &[], &[]), Err(Cause::BadHost));
        assert_eq!(asks(&pages, "/", &["localhost", "localhost"], &[]), Err(Cause::BadHost));
        assert_eq!(asks(&pages, "http://localhost:4000/", &["evil.example"], &[]), Ok(()));
        assert_eq!(asks(&pages, "http://evil.example/", &["localhost"], &[]), Err(Cause::Host));
        assert_eq!(asks(&pages, "http://a@localhost/", &["localhost"], &[]), Err(Cause::BadHost));
        assert_eq!(asks(&pages, "http://localhost/", &[], &[]), Err(Cause::BadHost));
        let target = Uri::from_static("/");
        let mut headers = HeaderMap::new();
        assert_eq!(pages.admit(Version::HTTP_10, &target, &headers), Ok(()), "a probe");
        headers.insert(header::ORIGIN, "http://localhost".parse().expect("a value"));
        assert_eq!(pages.admit(Version::HTTP_10, &target, &headers), Err(Cause::Origin), "a page");
    }

    #[test]
    fn elsewhere_any_name_is_good_unless_it_is_all_that_lets_a_page_in() {
        let mut there = pages("192.0.2.7:4000", &[]);
        assert_eq!(asks(&there, "/", &["any.example"], &[]), Ok(()), "a token is needed");
        there.anonymous = true;
        assert_eq!(asks(&there, "/", &["any.example"], &[]), Err(Cause::Host));
        assert_eq!(asks(&there, "/", &["192.0.2.7:4000"], &[]), Ok(()));
        assert_eq!(asks(&there, "/", &["192.0.2.8:4000"], &[]), Err(Cause::Host));
        there.listen = "0.0.0.0:4000".parse().expect("an address");
        assert_eq!(asks(&there, "/", &["192.0.2.8:4000"], &[]), Ok(()), "one of its addresses");
        there.tls = true;
        assert_eq!(asks(&there, "/", &["any.example"], &[]), Ok(()), "the certificate names it");
    }

    #[test]
    fn without_a_list_pages_of_the_same_origin_may_connect() {
        let to =
            |host: &str, origin: &str| asks(&pages("192.0.2.7:4000", &[]), "/", &[host], &[origin]);
        for (host, origin) in [
            ("a.example:4000", "http://a.example:4000"),
            ("a.example", "http://A.example"),
            ("a.example", "https://a.example"), // behind a proxy that speaks TLS
            ("a.example:8443", "https://a.example.:8443"),
            ("[::1]:4000", "http://[::1]:4000"),
            ("a.example:80", "http://a.example"),
        ] {
            assert_eq!(to(host, origin), Ok(()), "{host} {origin}");
        }
        for (host, origin) in [
            ("a.example:4000", "http://a.example:8080"),
            ("a.example:4000", "http://a.example"),
            ("a.example:443", "http://a.example"),
            ("a.example", "http://b.example"),
            ("a.example", "http://a.example.evil"),
            ("a.example", "null"),
            ("a.example", "//a.example"),
            ("a.example", "http://a.example@evil"),
            ("a.example", "ftp://a.example"),
            ("a.example", ""),
        ] {
            assert_eq!(to(host, origin), Err(Cause::Origin), "{host} {origin}");
        }
        let twice = ["http://a.example", "http://a.example"];
        assert_eq!(asks(&pages(LOCAL, &[]), "/", &["localhost"], &twice), Err(Cause::Origin));
        let tls = Pages { tls: true, ..pages("192.0.2.7:443", &[]) };
        assert_eq!(asks(&tls, "/", &["a.example"], &["https://a.example"]), Ok(()));
        assert_eq!(asks(&tls, "/", &["a.example"], &["http://a.example"]), Err(Cause::Origin));
    }

    #[test]
    fn a_list_adds_pages_to_those_of_the_nodes_own_addresses() {
        for (pattern, yes, no) in [
            ("https://a.example", "https://a.example", "https://a.example:8443"),
            ("https://a.example", "https://a.example:443", "http://a.example"),
            ("http://a.example:81", "http://A.example:81", "http://a.example"),
            ("//a.example", "ftp://a.example:1", "http://b.a.example"),
            ("//*.example", "http://a.b.example:5", "http://badexample"),
            ("//*.example", "http://example", "http://example.org"),
        ] {
            let list = pages(LOCAL, &[pattern]);
            assert_eq!(asks(&list, "/", &[LOCAL], &[yes]), Ok(()), "{pattern} {yes}");
            assert_eq!(asks(&list, "/", &[LOCAL], &[no]), Err(Cause::Origin), "{pattern} {no}");
            let own = format!("http://{LOCAL}");
            assert_eq!(asks(&list, "/", &[LOCAL], &[&own]), Ok(()), "the dashboard");
            let other = ["http://127.0.0.1:4001"];
            assert_eq!(asks(&list, "/", &[LOCAL], &other), Err(Cause::Origin), "another port");
        }
        let list = pages("192.0.2.7:4000", &["https://a.example"]);
        let name = asks(&list, "/", &["b.example"], &["http://b.example"]);
        assert_eq!(name, Err(Cause::Origin), "a name that is not on the list");
        for bad in
            ["", "a.example", "https:/a", "//", "//*", "//a*b", "http://a:99999", "http://a/b"]
        {
            assert!(bad.parse::<Origin>().is_err(), "{bad}");
        }
    }
}
