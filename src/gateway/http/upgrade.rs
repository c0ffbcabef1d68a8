//! How a channel client gets in: its version, its origin, its token.
//!
//! Whoever may not come in is told by the status of the answer, before anything is accepted: a client that is let in and
//! then closed comes back at once, dozens of times a second. One without any token is let in, for its joins may
//! bring tokens of their own.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::{From, Site, origin};
use crate::gateway::channels::client::Client;
use crate::gateway::channels::longpoll::{self, Poll};
use crate::gateway::channels::socket;
use crate::proto::channel::Dialect;
use crate::proto::token::Claims;

/// The subprotocol, and what a token among the subprotocols begins with.
const PROTOCOL: &str = "phoenix";
const BEARER: &str = "base64url.bearer.phx.";
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
    if site.channels.admin().clients.draining() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let headers = request.headers();
    let Some(accept) = wanted(request.method(), headers) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let dialect = Dialect::of(params.get("vsn").map(String::as_str));
    let (Some(dialect), true) = (dialect, site.allows(headers)) else {
        return StatusCode::FORBIDDEN.into_response();
    };
    let protocol = offers(headers).any(|offer| offer == PROTOCOL);
    let token = params.get("token").cloned().or_else(|| bearer(headers));
    let Ok(claims) = site.claims(token.as_deref(), from.address).await else {
        return StatusCode::FORBIDDEN.into_response();
    };
    let (channels, place) = (site.channels, from.place);
    let client = Client::new(&channels, dialect, from.address, claims);
    let upgrading = hyper::upgrade::on(&mut request);
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

/// The key to answer with, if a WebSocket is asked for.
fn wanted(method: &Method, headers: &HeaderMap) -> Option<HeaderValue> {
    let says = |name, what: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|text| text.split(',')).any(|word| word.trim().eq_ignore_ascii_case(what))
    };
    let asked = method == Method::GET
        && says(header::CONNECTION, "upgrade")
        && says(header::UPGRADE, "websocket")
        && says(header::SEC_WEBSOCKET_VERSION, "13");
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|_| asked)?;
    HeaderValue::try_from(derive_accept_key(key.as_bytes())).ok()
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
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
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
