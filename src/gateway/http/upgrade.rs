//! How a channel client gets in: its version, its origin, its token.
//!
//! Whoever may not come in is told by the status of the answer, before anything is accepted: a client that is let in and
//! then closed comes back at once, dozens of times a second. One without any token is let in, for its joins may
//! bring tokens of their own.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, Query, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::problem::Problem;
use super::{From, Site, origin};
use crate::gateway::channels::client::Client;
use crate::gateway::channels::longpoll::{self, Poll};
use crate::gateway::channels::socket;
use crate::gateway::refusal::Cause;
use crate::proto::channel::Dialect;
use crate::proto::token::Claims;

/// The subprotocol, and what a token among the subprotocols begins with.
const PROTOCOL: &str = "phoenix";
const BEARER: &str = "base64url.bearer.phx.";
/// How long the answer takes to a client that is refused. Most come back at once, and wait longer only from one failed
/// connection to the next.
const REFUSED: Duration = Duration::from_millis(250);
/// The header of a token in a poll.
const AUTH: &str = "x-phoenix-authtoken";

type Params = Query<BTreeMap<String, String>>;

/// `GET /socket/websocket` (RFC 6455, 4.2).
pub(super) async fn websocket(
    State(site): State<Site>,
    Extension(ConnectInfo(from)): Extension<ConnectInfo<From>>,
    Query(params): Params,
    mut request: Request,
) -> Response {
    let upgrading = hyper::upgrade::on(&mut request);
    let (head, _nobody) = request.into_parts();
    let Admitted { accept, dialect, claims } = match site.admit(&head, &params, &from).await {
        Ok(admitted) => admitted,
        Err(problem) => {
            tokio::time::sleep(REFUSED).await;
            return problem.into_response();
        }
    };
    let protocol = offers(&head.headers).any(|offer| offer == PROTOCOL);
    let (channels, place) = (site.channels, from.place);
    let client = Client::new(&channels, dialect, from.address, claims);
    tokio::spawn(async move {
        // A client that goes before its answer is nobody's loss.
        if let Ok(stream) = upgrading.await {
            socket::run(stream, client, channels).await;
        }
        drop(place);
    });
    let mut answer = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = answer.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if protocol {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
    }
    answer
}

/// What lets a client in.
struct Admitted {
    /// The key to answer with.
    accept: HeaderValue,
    dialect: Dialect,
    claims: Option<Arc<Claims>>,
}

impl Site {
    /// Looks at all that can be wrong with a client before it is let in.
    async fn admit(
        &self,
        head: &Parts,
        params: &BTreeMap<String, String>,
        from: &From,
    ) -> Result<Admitted, Problem> {
        let headers = &head.headers;
        let refuse = |cause, about: &str| self.refuse(cause, from, about);
        if self.channels.admin().clients.draining() {
            return Err(refuse(Cause::Draining, ""));
        }
        let accept = accept(head).map_err(|cause| refuse(cause, &line(head)))?;
        if !self.allows(headers) {
            return Err(refuse(Cause::Origin, text(headers, header::ORIGIN)));
        }
        let vsn = params.get("vsn").map(String::as_str);
        let dialect = Dialect::of(vsn);
        let dialect = dialect.ok_or_else(|| refuse(Cause::Serializer, vsn.unwrap_or_default()))?;
        let token = params.get("token").cloned().or_else(|| bearer(headers));
        let claims = self.claims(token.as_deref(), from.address).await;
        let claims = claims.map_err(|()| refuse(Cause::Token, ""))?;
        Ok(Admitted { accept, dialect, claims })
    }
}

/// What a header has, if it is text.
fn text(headers: &HeaderMap, name: HeaderName) -> &str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn line(head: &Parts) -> String {
    format!("{} {:?}", head.method, head.version)
}

/// The key to answer with, if a WebSocket is asked for.
fn accept(head: &Parts) -> Result<HeaderValue, Cause> {
    let headers = &head.headers;
    let says = |name, what: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|text| text.split(',')).any(|word| word.trim().eq_ignore_ascii_case(what))
    };
    // An upgrade in a request of HTTP/1.0 is to be ignored (RFC 9110, 7.8).
    let asked = head.method == Method::GET
        && head.version == Version::HTTP_11
        && says(header::CONNECTION, "upgrade")
        && says(header::UPGRADE, "websocket");
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|_| asked);
    let key = key.ok_or(Cause::NoUpgrade)?;
    if !says(header::SEC_WEBSOCKET_VERSION, "13") {
        return Err(Cause::WebSocketVersion);
    }
    HeaderValue::try_from(derive_accept_key(key.as_bytes())).map_err(|_bad| Cause::NoUpgrade)
}

/// The subprotocols that a client offers.
fn offers(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let offers = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    offers.filter_map(|value| value.to_str().ok()).flat_map(|it| it.split(',')).map(str::trim)
}

/// `/socket/longpoll`. Every answer to a client is 200; what it means is in its body.
pub(super) async fn poll(
    State(site): State<Site>,
    Extension(ConnectInfo(from)): Extension<ConnectInfo<From>>,
    Query(params): Params,
    method: Method,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let origin = headers.get(header::ORIGIN).cloned();
    if site.channels.admin().clients.draining() {
        return site.refuse(Cause::Draining, &from, "").into_response();
    }
    if !site.allows(&headers) {
        return longpoll::answer(&Poll::Refused, None);
    }
    let token = params.get("token").cloned();
    let session = headers.get("x-phoenix-longpoll-token").and_then(|it| it.to_str().ok());
    let session = session.map(str::to_owned).or(token);
    let polls = &site.polls;
    let known = session.as_deref().and_then(|session| polls.find(session));
    let poll = match (method, known) {
        (Method::OPTIONS, _) => return longpoll::preflight(origin.as_ref()),
        (Method::GET, Some(session)) => session.poll().await,
        (Method::POST, Some(session)) => session.take(&headers, &body).await,
        (Method::GET, None) => {
            let auth = headers.get(AUTH).and_then(|it| it.to_str().ok()).map(str::to_owned);
            // A token of ours has two dots; one of a session that is over has none.
            let given = session.filter(|it| it.contains('.')).or(auth);
            match Dialect::of(params.get("vsn").map(String::as_str)) {
                None => Poll::Refused,
                Some(dialect) => match site.claims(given.as_deref(), from.address).await {
                    Err(()) => Poll::Refused,
                    Ok(claims) => {
                        let client = Client::new(&site.channels, dialect, from.address, claims);
                        polls.open(client, &site.channels)
                    }
                },
            }
        }
        (Method::POST, None) => Poll::Gone(String::new()),
        _ => return StatusCode::BAD_REQUEST.into_response(),
    };
    longpoll::answer(&poll, origin.as_ref())
}

impl Site {
    /// Notes what is refused; the answer.
    pub(super) fn refuse(&self, cause: Cause, from: &From, about: &str) -> Problem {
        self.channels.refusals.note(cause, from.address, about);
        cause.into()
    }

    pub(super) fn allows(&self, headers: &HeaderMap) -> bool {
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
        origin::allowed(&self.origins, text(header::ORIGIN), text(header::HOST))
    }

    /// What a token says; `None` for a client without one.
    async fn claims(&self, token: Option<&str>, from: IpAddr) -> Result<Option<Arc<Claims>>, ()> {
        match token {
            None | Some("") => Ok(None),
            Some(token) => self.channels.verify(token, from).await.map(Some).map_err(drop),
        }
    }
}

/// The token among the subprotocols that a client offers: Base64 in either alphabet, padded or not.
fn bearer(headers: &HeaderMap) -> Option<String> {
    let padding = DecodePaddingMode::Indifferent;
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(padding);
    let text = offers(headers).find_map(|offer| offer.strip_prefix(BEARER))?;
    let standard = text.replace('-', "+").replace('_', "/");
    let bytes = GeneralPurpose::new(&alphabet::STANDARD, config).decode(standard);
    // What cannot be read is a bad token, not none.
    Some(
        bytes
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .unwrap_or_else(|| "?".to_owned()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upgrade_is_asked_for_by_all_its_headers_and_over_http_1_1() {
        const SOUND: [(&str, &str); 4] = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let asked = |method, version, headers: &[(&str, &str)]| {
            let mut request = axum::http::Request::builder().method(method).version(version);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            accept(&request.body(()).expect("a request").into_parts().0)
        };
        let answer = asked(Method::GET, Version::HTTP_11, &SOUND).expect("an upgrade");
        assert_eq!(answer, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "as in RFC 6455, 1.3");
        for (method, version) in [
            (Method::GET, Version::HTTP_10),
            (Method::POST, Version::HTTP_11),
            (Method::HEAD, Version::HTTP_11),
        ] {
            assert_eq!(asked(method, version, &SOUND), Err(Cause::NoUpgrade));
        }
        for left_out in 0..SOUND.len() {
            let mut headers = SOUND.to_vec();
            let (name, _) = headers.remove(left_out);
            let cause = asked(Method::GET, Version::HTTP_11, &headers).expect_err(name);
            let wanted = match name {
                "sec-websocket-version" => Cause::WebSocketVersion,
                _ => Cause::NoUpgrade,
            };
            assert_eq!(cause, wanted, "without {name}");
        }
    }
}
