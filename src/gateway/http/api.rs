//! The HTTP API: what `openapi.json` says, for programs and people.
//!
//! Invariants:
//! 1. Who may join `network:updates` may read; an admin's token alone may change anything. `/health/*` and the document
//!    are for everybody: they say nothing about the cluster.
//! 2. Whatever is wrong with a request ends in problem details. A parameter that is unknown, given twice or out of range
//!    is wrong: it is not passed over.
//! 3. A reader of events that does not read holds a bounded queue, and at most [`STREAMS`] read at once. A stream ends with the
//!    token that it was asked for with.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::guard::Below;
use super::problem::Problem;
use super::upgrade::bearer;
use super::{From, Site};
use crate::gateway::channels::Bearer;
use crate::gateway::refusal::Cause;
use crate::gateway::status::{ClusterView, NodeRecord};
use crate::gateway::view::{DeedError, NodeView};
use crate::gateway::{gauges, sight};
use crate::io::metrics::{CONTENT_TYPE, Count};
use crate::proto::event::{Deed, Operator};
use crate::proto::node::{NameError, NodeName};
use crate::proto::token::{Role, Verb};
use crate::proto::topic::Topic;

mod events;

/// Readers of events at once.
const STREAMS: usize = 64;
/// What the API is.
const DOCUMENT: &str = include_str!("api/openapi.json");

type Answer = Result<Response, Problem>;

/// What the API adds to the site.
#[derive(Clone)]
struct Api {
    site: Site,
    streams: Arc<Semaphore>,
}

/// Its routes.
pub(super) fn routes(site: Site) -> Router {
    let metrics = site.channels.metrics.clone();
    let api = Api { site, streams: Arc::new(Semaphore::new(STREAMS)) };
    Router::new()
        .route("/api/openapi.json", get(document))
        .route("/api/status", get(status))
        .route("/api/nodes", get(nodes))
        .route("/api/nodes/{node}/disconnect", post(disconnect))
        .route("/api/nodes/{node}/forget", post(forget).delete(restore))
        .route("/api/drain", post(drain).delete(undrain))
        .route("/api/topology", get(topology))
        .route("/api/events", get(events::events))
        .route("/metrics", get(scrape))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .fallback(unknown)
        .method_not_allowed_fallback(not_allowed)
        .layer(axum::middleware::map_response(move |mut response: Response| {
            metrics.count(Count::Api, class(response.status()));
            let headers = response.headers_mut();
            let stale = HeaderValue::from_static("no-store");
            headers.entry(header::CACHE_CONTROL).or_insert(stale);
            let literal = HeaderValue::from_static("nosniff");
            headers.insert(header::X_CONTENT_TYPE_OPTIONS, literal);
            std::future::ready(response)
        }))
        .with_state(api)
}

fn class(status: StatusCode) -> &'static str {
    match status.as_u16() {
        ..=399 => "ok",
        400..=499 => "refused",
        500.. => "failed",
    }
}

async fn unknown(request: Request) -> Problem {
    let path = request.uri().path();
    Problem::new(StatusCode::NOT_FOUND, format!("there is nothing at {path}"))
}

async fn not_allowed(request: Request) -> Problem {
    let (method, path) = (request.method(), request.uri().path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not for {path}"))
}

/// What one may do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Right {
    Read,
    Change,
}

/// A request, and what answers it.
struct Asked {
    api: Api,
    from: From,
    query: Option<String>,
    headers: HeaderMap,
    /// Whose token it has, once that is found to be good.
    operator: Option<Operator>,
    /// What the token says; `None` where everybody may read.
    bearer: Option<Bearer>,
}

impl Asked {
    fn of(parts: &Parts, api: &Api) -> Result<Self, Problem> {
        let nobody = || Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "who asks is not known");
        let ConnectInfo(from) = parts.extensions.get().cloned().ok_or_else(nobody)?;
        let query = parts.uri.query().map(str::to_owned);
        let (api, headers) = (api.clone(), parts.headers.clone());
        Ok(Self { api, from, query, headers, operator: None, bearer: None })
    }

    fn admin(&self) -> &NodeView {
        self.api.site.channels.admin()
    }

    /// Has the node do what the request is for.
    fn perform(&self, deed: Deed) -> Answer {
        self.query(&[])?;
        // Nobody changes anything without a token.
        let nobody = || Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "who asks is not known");
        let operator = self.operator.clone().ok_or_else(nobody)?;
        self.admin().perform(deed, operator, self.from.address.to_string()).map_err(|why| {
            let status = match why {
                DeedError::Unknown(_) | DeedError::NotForgotten(_) => StatusCode::NOT_FOUND,
                DeedError::Myself | DeedError::Linked(_) | DeedError::NotLinked { .. } => {
                    StatusCode::CONFLICT
                }
                DeedError::NoChaos
                | DeedError::NoActor(_)
                | DeedError::Certificates
                | DeedError::NotAllowed(_) => StatusCode::FORBIDDEN,
            };
            Problem::new(status, why.to_string())
        })?;
        Ok(StatusCode::ACCEPTED.into_response())
    }

    /// The parameters: only these.
    fn query(&self, known: &[&str]) -> Result<Query, Problem> {
        Query::read(self.query.as_deref(), known)
    }

    /// Whether who asks may.
    async fn permit(&mut self, right: Right) -> Result<(), Problem> {
        let (site, topic) = (&self.api.site, Topic::network_updates());
        let refuse = |cause, about: &str| site.refuse(cause, &self.from, about);
        let Some(token) = bearer(&self.headers) else {
            let everybody = right == Right::Read && site.channels.anonymous(&topic);
            if !everybody {
                return Err(refuse(Cause::NoToken, ""));
            }
            self.from.place.entitle(None);
            return Ok(());
        };
        let verified = site.channels.verify(token, self.from.address).await;
        let claims = verified.map_err(|it| refuse(it.cause, it.reason).detail(it.reason))?;
        let role = claims.role;
        let may = match right {
            Right::Read => claims.allows(Verb::Join, &topic),
            Right::Change => claims.may_change(),
        };
        if may {
            self.from.place.entitle(Some(&claims));
            self.operator = Operator::token(&claims.sub).ok();
            self.bearer = Some(claims);
            return Ok(());
        }
        let missing = match right {
            Right::Read if role == Role::User => {
                format!("the token's role is {role}: reading needs node_operator or admin")
            }
            Right::Read => "the token's topics do not include network:updates".to_owned(),
            Right::Change if role == Role::Admin => {
                "the token is narrowed to topics: changes need an admin's token for all of them"
                    .to_owned()
            }
            Right::Change => format!("the token's role is {role}: changes need admin"),
        };
        Err(refuse(Cause::Role, &missing).detail(missing))
    }

    /// What the node sees that the query names.
    async fn seen(&self) -> Result<ClusterView, Problem> {
        let query = self.query(&["seen_by"])?;
        let Some(node) = query.get::<NodeName>("seen_by", "a name NAME@HOST")? else {
            return Ok(self.admin().sight());
        };
        let known = node == self.admin().name || self.admin().peer(&node).is_some();
        if !known {
            let detail = format!("no node {node} is known");
            return Err(Problem::new(StatusCode::NOT_FOUND, detail));
        }
        sight::of(self.admin(), &node).await.map_err(|why| {
            Problem::new(StatusCode::BAD_GATEWAY, format!("{node} does not answer: {why}"))
        })
    }
}

/// A request of everybody.
struct Anybody(Asked);

impl FromRequestParts<Api> for Anybody {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        Asked::of(parts, api).map(Self)
    }
}

/// A request of somebody who may change something, or else read.
struct By<const CHANGE: bool>(Asked);

type Reader = By<false>;
type Changer = By<true>;

impl<const CHANGE: bool> FromRequestParts<Api> for By<CHANGE> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        let mut asked = Asked::of(parts, api)?;
        asked.permit(if CHANGE { Right::Change } else { Right::Read }).await?;
        Ok(Self(asked))
    }
}

/// The parameters of a query: only these, each once.
struct Query(BTreeMap<String, String>);

impl Query {
    fn read(query: Option<&str>, known: &[&str]) -> Result<Self, Problem> {
        let wrong = |detail: String| Problem::new(StatusCode::BAD_REQUEST, detail);
        let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(
            &format!("/?{}", query.unwrap_or_default())
                .parse()
                .map_err(|_bad| wrong("the query cannot be read".to_owned()))?,
        );
        let pairs = pairs.map_err(|_bad| wrong("the query cannot be read".to_owned()))?.0;
        let mut read = BTreeMap::new();
        for (name, value) in pairs {
            if !known.contains(&name.as_str()) {
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(wrong(format!("unknown parameter {name:?}; known: {known}")));
            }
            if read.insert(name.clone(), value).is_some() {
                return Err(wrong(format!("parameter {name:?} is given twice")));
            }
        }
        Ok(Self(read))
    }

    /// A parameter, if it is given.
    fn get<T: FromStr>(&self, name: &str, expected: &str) -> Result<Option<T>, Problem> {
        let Some(text) = self.0.get(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_bad| {
            let detail = format!("{name}={text:?} is not {expected}");
            Problem::new(StatusCode::BAD_REQUEST, detail)
        })
    }
}

fn json(what: &impl Serialize) -> Answer {
    Ok(Json(what).into_response())
}

/// The document, with the path that the client sees the API below.
async fn document(Anybody(asked): Anybody, Extension(Below(prefix)): Extension<Below>) -> Answer {
    asked.query(&[])?;
    let server = prefix.map_or_else(|| "/".to_owned(), |prefix| prefix.as_str().to_owned());
    let rest = DOCUMENT.strip_prefix('{').unwrap_or_default();
    let document = format!("{{\n  \"servers\": {},{rest}", json!([{ "url": server }]));
    Ok(([(header::CONTENT_TYPE, "application/json")], document).into_response())
}

async fn status(By(asked): Reader) -> Answer {
    json(&asked.seen().await?.status)
}

async fn topology(By(asked): Reader) -> Answer {
    json(&asked.seen().await?.topology)
}

#[derive(Serialize)]
struct Nodes {
    as_seen_by: NodeName,
    nodes: Vec<NodeRecord>,
}

async fn nodes(By(asked): Reader) -> Answer {
    asked.query(&[])?;
    let (as_seen_by, nodes) = (asked.admin().name.clone(), asked.admin().records());
    json(&Nodes { as_seen_by, nodes })
}

async fn scrape(By(asked): Reader) -> Answer {
    asked.query(&[])?;
    let text = gauges::text(asked.admin())
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}

async fn disconnect(By(asked): Changer, Path(node): Path<String>) -> Answer {
    asked.perform(Deed::Disconnect { peer: named(&node)? })
}

async fn forget(By(asked): Changer, Path(node): Path<String>) -> Answer {
    asked.perform(Deed::Forget { peer: named(&node)? })
}

async fn restore(By(asked): Changer, Path(node): Path<String>) -> Answer {
    asked.perform(Deed::Restore { peer: named(&node)? })
}

async fn drain(By(asked): Changer) -> Answer {
    asked.perform(Deed::Drain)
}

async fn undrain(By(asked): Changer) -> Answer {
    asked.perform(Deed::Undrain)
}

fn named(node: &str) -> Result<NodeName, Problem> {
    let unknown = |_| Problem::new(StatusCode::NOT_FOUND, format!("no node {node:?} is known"));
    node.parse().map_err(|error: NameError| unknown(error))
}

async fn live(Anybody(asked): Anybody) -> Answer {
    asked.query(&[])?;
    json(&json!({ "live": true }))
}

async fn ready(Anybody(asked): Anybody) -> Answer {
    asked.query(&[])?;
    let checks = asked.admin().checks();
    let found = checks.iter().map(|(name, sound)| ((*name).to_owned(), Value::Bool(*sound)));
    let found = Value::Object(found.collect());
    let missing: Vec<&str> = checks.iter().filter(|(_, sound)| !sound).map(|it| it.0).collect();
    if missing.is_empty() {
        let degraded = asked.admin().degraded().is_some();
        return json(&json!({ "ready": true, "degraded": degraded, "checks": found }));
    }
    let detail = format!("not ready: {}", missing.join(", "));
    Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).with("checks", found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::event::Event;

    #[test]
    fn the_document_knows_every_type_of_event() {
        let document: Value = serde_json::from_str(DOCUMENT).expect("JSON");
        let types = &document["components"]["schemas"]["EventType"]["enum"];
        assert_eq!(*types, json!(Event::LABELS.as_slice()));
    }
}
