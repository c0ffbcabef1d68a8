//! Which pages may connect: browsers say in `Origin` where a page comes from (RFC 6454), other clients do not.
//!
//! Invariant: without a list, only pages of the host that the request was sent to.

use std::str::FromStr;

/// A pattern of origins: `https://app.example`, `http://app.example:8080`, `//app.example`, `//*.example`. What is left
/// out matches anything, but for the port of `http` and `https`, which is theirs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    scheme: Option<String>,
    host: String,
    below: bool,
    port: Option<u16>,
}

/// A text is no pattern of origins. Whoever wrote it must correct it.
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

/// Host and port of `HOST[:PORT]`.
fn authority(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port.parse().ok()?)),
        Some(_) | None => (text, None),
    };
    let sound = !host.is_empty() && !host.contains(['/', '@', '?', '#', ' ']);
    sound.then_some((host, port))
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
        Ok(Self { scheme, host: host.to_ascii_lowercase(), below, port })
    }
}

impl Origin {
    fn matches(&self, origin: &Parts<'_>) -> bool {
        let host = origin.host.to_ascii_lowercase();
        let below = self.below && host.strip_suffix(&self.host).is_some_and(|it| it.ends_with('.'));
        let scheme = origin.scheme.to_ascii_lowercase();
        let port = origin.port.or_else(|| port_of(&scheme));
        (host == self.host || below)
            && self.scheme.as_ref().is_none_or(|wanted| *wanted == scheme)
            && self.port.is_none_or(|wanted| port == Some(wanted))
    }
}

/// Whether a request with this `Origin`, sent to this `Host`, may go on.
pub(super) fn allowed(list: &[Origin], origin: Option<&str>, host: Option<&str>) -> bool {
    let Some(origin) = origin else { return true };
    let Some(parts) = parts(origin).filter(|parts| !parts.scheme.is_empty()) else { return false };
    if !list.is_empty() {
        return list.iter().any(|pattern| pattern.matches(&parts));
    }
    let own = host.and_then(authority);
    own.is_some_and(|(own, _)| own.eq_ignore_ascii_case(parts.host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_list_pages_of_the_same_host_may_connect() {
        let to = |origin, host| allowed(&[], Some(origin), Some(host));
        assert!(to("http://a.example:8080", "a.example:4000"), "scheme and port do not count");
        assert!(to("https://[::1]", "[::1]:4000") && to("http://A.example", "a.example"));
        assert!(!to("http://b.example", "a.example") && !to("http://a.example.evil", "a.example"));
        assert!(!to("null", "a.example") && !to("//a.example", "a.example"));
        assert!(!to("http://a.example@evil", "a.example") && !to("", "a.example"));
        assert!(allowed(&[], None, None), "no browser");
        assert!(!allowed(&[], Some("http://a.example"), None));
    }

    #[test]
    fn a_list_replaces_that() {
        for (pattern, yes, no) in [
            ("https://a.example", "https://a.example", "https://a.example:8443"),
            ("https://a.example", "https://a.example:443", "http://a.example"),
            ("http://a.example:81", "http://A.example:81", "http://a.example"),
            ("//a.example", "ftp://a.example:1", "http://b.a.example"),
            ("//*.example", "http://a.b.example:5", "http://badexample"),
            ("//*.example", "http://example", "http://example.org"),
        ] {
            let list = [pattern.parse().expect("an origin")];
            assert!(allowed(&list, Some(yes), None), "{pattern} {yes}");
            assert!(!allowed(&list, Some(no), Some("example.org")), "{pattern} {no}");
        }
        for bad in
            ["", "a.example", "https:/a", "//", "//*", "//a*b", "http://a:99999", "http://a/b"]
        {
            assert!(bad.parse::<Origin>().is_err(), "{bad}");
        }
    }
}
