//! What every request passes before anything else is done for it: its host, its page's origin, and the path's prefix.
//!
//! Invariants:
//! 1. Nothing of a request is read but its head, until its host and origin are known to be good.
//! 2. A page that is refused may read why; a page that is let in may read every answer (CORS, in the Fetch standard).
//! 3. What a client sends about a prefix changes what is given back to that client, and never which path is served.

use std::str::FromStr;

use axum::Extension;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::{From, Site, text, upgrade};

/// Longest prefix, in bytes.
const MAX_PREFIX: usize = 128;

/// A path that the gateway's own begin with: `/xpando`, `/a/b`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix(String);

/// A text is no prefix of paths. Anyone who wrote it must correct it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no prefix of paths: write /NAME or /NAME/NAME, with A-Z a-z 0-9 - . _ ~, at most {MAX_PREFIX} bytes"
)]
pub struct PrefixError(String);

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        let sound = |name: &str| {
            !name.is_empty() && name.bytes().all(plain) && !name.bytes().all(|byte| byte == b'.')
        };
        let path = text.strip_suffix('/').unwrap_or(text);
        let names = path.strip_prefix('/').filter(|_| path.len() <= MAX_PREFIX);
        match names.is_some_and(|names| names.split('/').all(sound)) {
            true => Ok(Self(path.to_owned())),
            false => Err(PrefixError(text.to_owned())),
        }
    }
}

impl Prefix {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// What stands behind it in a path: nothing, or what begins with a slash.
    fn behind<'a>(&self, path: &'a str) -> Option<&'a str> {
        path.strip_prefix(&self.0).filter(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// Below what path a client sees the gateway.
#[derive(Clone, Debug)]
pub(super) struct Below(pub(super) Option<Prefix>);

/// Lets a request through to what serves it.
pub(super) async fn guard(
    State(site): State<Site>,
    Extension(ConnectInfo(from)): Extension<ConnectInfo<From>>,
    mut request: Request,
    next: Next,
) -> Response {
    let prefix = match strip(site.prefix.as_ref(), &mut request) {
        Ok(prefix) => prefix,
        Err(redirect) => return *redirect,
    };
    request.extensions_mut().insert(Below(prefix));
    let (path, headers) = (request.uri().path(), request.headers());
    let origin = headers.get(header::ORIGIN).cloned();
    if let Err(cause) = site.pages.admit(request.version(), request.uri(), headers) {
        let [page, host] = [header::ORIGIN, header::HOST].map(|name| text(headers, name));
        let page = if page.is_empty() { "no page".to_owned() } else { format!("a page of {page}") };
        let refused = site.refuse(cause, &from, &format!("{page}, to {host}"));
        let preflight = request.method() == Method::OPTIONS;
        let mut answer = match path.strip_prefix("/socket/") {
            Some(transport) => upgrade::refused(transport, cause, refused).await,
            None => refused.into_response(),
        };
        if !preflight {
            share(answer.headers_mut(), origin);
        }
        return answer;
    }
    let asks = headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut answer = match origin {
        Some(_) if asks && request.method() == Method::OPTIONS => preflight(),
        Some(_) | None => next.run(request).await,
    };
    share(answer.headers_mut(), origin);
    answer
}

/// Takes the prefix off a path that has it. Both forms are served: some proxies take it off, others do not.
fn strip(prefix: Option<&Prefix>, request: &mut Request) -> Result<Option<Prefix>, Box<Response>> {
    let Some((own, rest)) = prefix.and_then(|own| Some((own, own.behind(request.uri().path())?)))
    else {
        // One that a proxy took off.
        let named = text(request.headers(), HeaderName::from_static("x-forwarded-prefix"));
        return Ok(named.parse().ok());
    };
    if rest.is_empty() {
        // The page's own addresses are relative to what ends with a slash.
        let (_, last) = own.0.rsplit_once('/').unwrap_or_default();
        let to = [(header::LOCATION, format!("{last}/"))];
        return Err(Box::new((StatusCode::PERMANENT_REDIRECT, to).into_response()));
    }
    let query = request.uri().query().map_or_else(String::new, |query| format!("?{query}"));
    let mut parts = request.uri().clone().into_parts();
    parts.path_and_query = format!("{rest}{query}").parse().ok();
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
    Ok(Some(own.clone()))
}

/// The answer to a browser that asks whether a page may ask.
fn preflight() -> Response {
    let given = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD, POST"),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "authorization, content-type, last-event-id, x-phoenix-authtoken, x-phoenix-longpoll-token, \
             x-csrf-token, x-requested-with",
        ),
        (header::ACCESS_CONTROL_MAX_AGE, "600"),
    ];
    (StatusCode::NO_CONTENT, given).into_response()
}

/// Lets a page of this origin read the answer.
fn share(headers: &mut HeaderMap, origin: Option<HeaderValue>) {
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_a_plain_path() {
        for (text, path) in
            [("/xpando", "/xpando"), ("/a/b/", "/a/b"), ("/a.b-c_d~1", "/a.b-c_d~1")]
        {
            assert_eq!(text.parse::<Prefix>().expect(text).as_str(), path);
        }
        let long = format!("/{}", "x".repeat(MAX_PREFIX));
        for bad in [
            "",
            "/",
            "//",
            "a",
            "/a//b",
            "/..",
            "/a/../b",
            "/.",
            "/a b",
            "/a?b",
            "/a#b",
            "/%61",
            "//evil.example",
            "/a\"b",
            "/<b>",
            "https://evil.example",
            "/a\r\nb",
            &long,
        ] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_prefix_is_taken_off_whole_and_only_if_it_is_the_configured_one() {
        let own: Prefix = "/a/b".parse().expect("a prefix");
        let path = |path: &str, forwarded: Option<&str>| {
            let mut request = Request::builder().uri(path);
            if let Some(forwarded) = forwarded {
                request = request.header("x-forwarded-prefix", forwarded);
            }
            let mut request = request.body(axum::body::Body::empty()).expect("a request");
            let found = strip(Some(&own), &mut request)
                .map_err(|redirect| text(redirect.headers(), header::LOCATION).to_owned())?;
            let found = found.map(|prefix| prefix.as_str().to_owned());
            Ok::<_, String>((request.uri().to_string(), found))
        };
        let is = |uri: &str, prefix: Option<&str>| Ok((uri.to_owned(), prefix.map(str::to_owned)));
        assert_eq!(path("/a/b/api/status?x=1", None), is("/api/status?x=1", Some("/a/b")));
        assert_eq!(path("/a/b/", None), is("/", Some("/a/b")));
        assert_eq!(path("/a/b", None), Err("b/".to_owned()));
        assert_eq!(path("/api/status", None), is("/api/status", None), "a proxy took it off");
        assert_eq!(path("/a/bc", None), is("/a/bc", None));
        assert_eq!(path("/api", Some("/c")), is("/api", Some("/c")), "a proxy took off another");
        assert_eq!(path("/c/metrics", Some("/c")), is("/c/metrics", Some("/c")), "not by a header");
        assert_eq!(path("/api", Some("//evil.example")), is("/api", None));
    }
}
