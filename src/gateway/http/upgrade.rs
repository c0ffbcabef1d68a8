//! How a channel client gets in: its version and its token, once `guard` has looked at its host and origin.
//!
//! Anyone who may not come in is told by the status of the answer, before anything is accepted: a client that is let in and
//! then closed comes back at once, dozens of times a second. One without any token is let in, for its joins may
//! bring tokens of their own.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{ConnectInfo, Query, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::body::READ;
use super::problem::Problem;
use super::{From, Site, text};
use crate::gateway::channels::Bearer;
use crate::gateway::channels::client::ClientTask;
use crate::gateway::channels::longpoll::{self, Poll};
use crate::gateway::channels::socket;
use crate::gateway::refusal::Cause;
use crate::proto::channel::Dialect;

/// The subprotocol, and what a token among the subprotocols begins with.
const PROTOCOL: &str = "phoenix";
const BEARER: &str = "base64url.bearer.phx.";
/// How long the answer takes to a client that is refused. Most come back at once, and wait longer only from one failed
/// connection to the next.
const REFUSED: Duration = Duration::from_millis(250);
/// How long besides it takes to refuse what was posted: each new session begins without a wait.
const REPEATED: Duration = Duration::from_secs(4);
/// How clients connect.
const WEBSOCKET: &str = "websocket";
const LONGPOLL: &str = "longpoll";

/// `GET /socket/websocket` (RFC 6455, 4.2).
pub(super) async fn websocket(
    State(site): State<Site>,
    Extension(ConnectInfo(from)): Extension<ConnectInfo<From>>,
    mut request: Request,
) -> Response {
    let upgrading = hyper::upgrade::on(&mut request);
    let (head, _nobody) = request.into_parts();
    let Admitted { accept, dialect, claims } = match site.admit(&head, &from).await {
        Ok(admitted) => admitted,
        Err((cause, problem)) => return refused(WEBSOCKET, cause, problem).await,
    };
    let protocol = offers(&head.headers).any(|offer| offer == PROTOCOL);
    let (channels, place) = (site.channels, from.place);
    let client = ClientTask::new(&channels, dialect, place.clone(), claims);
    tokio::spawn(async move {
        tokio::select! {
            () = place.evicted() => {}
            // A client that goes before its answer is nobody's loss.
            () = async { if let Ok(stream) = upgrading.await { socket::run(stream, client, channels).await } } => {}
        }
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

/// The answer to a client that is refused, after [`REFUSED`].
pub(super) async fn refused(transport: &str, cause: Cause, problem: Problem) -> Response {
    tokio::time::sleep(REFUSED).await;
    if transport == LONGPOLL {
        longpoll::answer(&Poll::Refused(cause))
    } else {
        problem.into_response()
    }
}

/// What lets a client in.
struct Admitted {
    /// The key to answer with.
    accept: HeaderValue,
    dialect: Dialect,
    claims: Option<Bearer>,
}

impl Site {
    /// Looks at all that can be wrong with a client before it is let in.
    async fn admit(&self, head: &Parts, from: &From) -> Result<Admitted, (Cause, Problem)> {
        let refuse = |cause, about: &str| (cause, self.refuse(cause, from, about));
        if self.channels.admin().clients.draining() {
            return Err(refuse(Cause::Draining, ""));
        }
        let line = || format!("{} {:?}", head.method, head.version);
        let accept = accept(head).map_err(|cause| refuse(cause, &line()))?;
        let params = params(head);
        let headers = &head.headers;
        let token = params.get("token").map(String::as_str).or_else(|| bearer(headers));
        let token = token.map(str::to_owned).or_else(|| offered(headers));
        let (dialect, claims) = self.rights(&params, token.as_deref(), from).await?;
        let place = from.place.attribute(from.address);
        place.map_err(|_crowded| refuse(Cause::TooManyOfAddress, ""))?;
        Ok(Admitted { accept, dialect, claims })
    }

    /// A client's serializer and token.
    async fn rights(
        &self,
        params: &Params,
        token: Option<&str>,
        from: &From,
    ) -> Result<(Dialect, Option<Bearer>), (Cause, Problem)> {
        let refuse = |cause, about: &str| (cause, self.refuse(cause, from, about));
        let vsn = params.get("vsn").map(String::as_str);
        let dialect = Dialect::of(vsn);
        let dialect = dialect.ok_or_else(|| refuse(Cause::Serializer, vsn.unwrap_or_default()))?;
        let Some(token) = token.filter(|token| !token.is_empty()) else {
            return Ok((dialect, None));
        };
        match self.channels.verify(token, from.address).await {
            Ok(claims) => Ok((dialect, Some(claims))),
            Err(denied) => {
                let (cause, problem) = refuse(denied.cause, denied.reason);
                // Not 401: to a browser that is a question for a name and password.
                Err((cause, problem.status(StatusCode::FORBIDDEN).detail(denied.reason)))
            }
        }
    }
}

type Params = BTreeMap<String, String>;

/// The parameters, as far as they can be read: what is missing then is refused for that.
fn params(head: &Parts) -> Params {
    Query::try_from_uri(&head.uri).map_or_else(|_bad| Params::new(), |Query(params)| params)
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

/// `/socket/longpoll`. Nearly every answer to a client is 200; what it means is in its body.
pub(super) async fn poll(
    State(site): State<Site>,
    Extension(ConnectInfo(from)): Extension<ConnectInfo<From>>,
    request: Request,
) -> Response {
    let (head, body) = request.into_parts();
    let post = head.method == Method::POST;
    let (cause, problem) = match site.polled(&head, body, &from).await {
        Ok(Poll::Refused(cause)) => (cause, site.refuse(cause, &from, "")),
        Ok(poll) => return longpoll::answer(&poll),
        Err(refused) => refused,
    };
    if post {
        // The client opens another session, and says the same again.
        tokio::time::sleep(REPEATED).await;
    }
    refused(LONGPOLL, cause, problem).await
}

impl Site {
    /// What a poll comes to. A body is read when its session is known.
    async fn polled(
        &self,
        head: &Parts,
        body: Body,
        from: &From,
    ) -> Result<Poll, (Cause, Problem)> {
        let refuse = |cause| (cause, self.refuse(cause, from, ""));
        let (params, headers) = (params(head), &head.headers);
        let token = params.get("token").map(String::as_str);
        let header = |name| Some(text(headers, HeaderName::from_static(name)));
        let given = |it: &&str| !it.is_empty();
        let session = header("x-phoenix-longpoll-token").filter(given).or(token);
        let known = session.and_then(|session| self.polls.find(session));
        if let Some((session, _)) = &known {
            if shown(head).is_some_and(|token| session.is_others(&token, &self.channels)) {
                return Err(refuse(Cause::OthersSession));
            }
            from.place.entitle_as(session.place());
        }
        match (&head.method, known) {
            (&Method::GET, Some((session, taken))) => Ok(session.polled(taken).await),
            (&Method::POST, Some((session, _))) => {
                let turn = tokio::time::timeout(READ, session.turn()).await;
                let _turn = turn.map_err(|_elapsed| refuse(Cause::TooManyBodies))?;
                let (body, place) = self.bodies.read(body).await.map_err(refuse)?;
                let kind = header("content-type").filter(given);
                let (poll, cost) = (session.take(kind, &body), longpoll::cost(&body));
                drop((body, place)); // nothing that others need is held while this one waits
                session.place().pay(from.address, cost).await;
                Ok(poll)
            }
            (method @ (&Method::GET | &Method::POST), None) => {
                let body = (method == Method::POST).then_some(body);
                let posts = body.is_some();
                match self.elsewhere(head, (&params, session), body, from).await? {
                    // Over there is over: the client gets a new one here.
                    None | Some(Poll::Gone(_)) if !posts => self.opened(head, &params, from).await,
                    None => Ok(Poll::Gone(String::new())),
                    Some(poll) => Ok(poll),
                }
            }
            _ => Err(refuse(Cause::Method)),
        }
    }

    /// What the home of a session says to a request that has come here; `None` when it is no session's of another node. A
    /// token that the request shows is judged first.
    async fn elsewhere(
        &self,
        head: &Parts,
        (params, session): (&Params, Option<&str>),
        body: Option<Body>,
        from: &From,
    ) -> Result<Option<Poll>, (Cause, Problem)> {
        let Some(session) = session.filter(|session| self.polls.is_of_another(session)) else {
            return Ok(None);
        };
        let (_, claims) = self.rights(params, shown(head).as_deref(), from).await?;
        if claims.is_some() {
            from.place.entitle(claims.as_deref());
        }
        let subject = claims.as_ref().map(|claims| claims.sub.as_str());
        let exchange = self.channels.admin().bus.exchange();
        let Some(body) = body else {
            return Ok(Some(longpoll::ask(exchange, session, subject, None).await));
        };
        let refuse = |cause| (cause, self.refuse(cause, from, ""));
        let (body, place) = self.bodies.read(body).await.map_err(refuse)?;
        let kind = text(&head.headers, header::CONTENT_TYPE).to_owned();
        let cost = longpoll::cost(&body);
        let poll = longpoll::ask(exchange, session, subject, Some((kind, body))).await;
        drop(place);
        from.place.pay(from.address, cost).await;
        Ok(Some(poll))
    }

    /// A new session.
    async fn opened(
        &self,
        head: &Parts,
        params: &Params,
        from: &From,
    ) -> Result<Poll, (Cause, Problem)> {
        let refuse = |cause| (cause, self.refuse(cause, from, ""));
        if self.channels.admin().clients.draining() {
            return Err(refuse(Cause::Draining));
        }
        let (dialect, claims) = self.rights(params, shown(head).as_deref(), from).await?;
        let place = self.polls.place(from.address).map_err(refuse)?;
        let client = ClientTask::new(&self.channels, dialect, place, claims);
        Ok(self.polls.open(client, &self.channels))
    }

    /// Notes what is refused; the answer.
    pub(super) fn refuse(&self, cause: Cause, from: &From, about: &str) -> Problem {
        self.channels.refusals.note(cause, from.address, about);
        cause.into()
    }
}

/// The token that a poll's request shows of its bearer. Such a one has dots; one of a session, which clients put below the
/// same name behind it, has none.
fn shown(head: &Parts) -> Option<String> {
    let Query(all) = Query::<Vec<(String, String)>>::try_from_uri(&head.uri).unwrap_or_default();
    let is_bearers = |(name, value): &(String, String)| name == "token" && value.contains('.');
    let in_query = all.into_iter().find(is_bearers).map(|(_, token)| token);
    let header = || text(&head.headers, HeaderName::from_static("x-phoenix-authtoken")).to_owned();
    let in_header = || bearer(&head.headers).map_or_else(header, str::to_owned);
    in_query.or_else(|| Some(in_header()).filter(|token| !token.is_empty()))
}

/// The token in `Authorization`. Another scheme is for a proxy on the way.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = text(headers, header::AUTHORIZATION).split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The token among the subprotocols that a client offers: Base64 in either alphabet, padded or not.
fn offered(headers: &HeaderMap) -> Option<String> {
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
