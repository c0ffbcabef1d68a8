//! `/api/events`: what happened, a page at a time, or as it happens.

use std::convert::Infallible;
use std::sync::Arc;

use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream, StreamExt};

use super::{Answer, Asked, Reader, json};
use crate::actors::event_log::{Noted, Trail, Wanted};
use crate::gateway::http::problem::Problem;
use crate::gateway::status::{Change, Changes};
use crate::proto::event::Event;

/// Events on a page, unless another number is asked for, and at most.
const PAGE: usize = 100;
const LARGEST: usize = 1000;

fn wrong(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, detail)
}

pub(super) async fn events(Reader(asked): Reader) -> Answer {
    let query = asked.query(&["since", "type", "node", "limit"])?;
    let label: Option<String> = query.get("type", "a type of events")?;
    if let Some(label) = label.as_ref().filter(|label| !Event::LABELS.contains(&label.as_str())) {
        return Err(wrong(format!("type={label:?} is no type of events")));
    }
    let wanted = Wanted { label, node: query.get("node", "a name NAME@HOST")? };
    let since: Option<u64> = query.get("since", "a number of an event")?;
    let limit: Option<usize> = query.get("limit", "a number of events")?;
    let limit = limit.unwrap_or(PAGE);
    if !(1..=LARGEST).contains(&limit) {
        return Err(wrong(format!("limit={limit} is not within 1 and {LARGEST}")));
    }
    let trail = &asked.admin().trail;
    if as_stream(&asked.headers) {
        return follow(&asked, last(&asked.headers)?.or(since), wanted);
    }
    let page = match since {
        Some(since) => trail.after(since, limit, &wanted),
        None => trail.latest(limit, &wanted),
    };
    json(&Changes::from(page))
}

/// Whether a stream is wanted rather than a page.
fn as_stream(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    accept.is_some_and(|accept| accept.trim_start().starts_with("text/event-stream"))
}

/// The number of the last event that somebody who comes back has seen.
fn last(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(id) = headers.get("last-event-id") else { return Ok(None) };
    let number = id.to_str().ok().and_then(|id| id.parse().ok());
    number.map(Some).ok_or_else(|| wrong("Last-Event-ID is not a number of an event"))
}

/// Server-sent events: each a [`Change`], its number for id.
fn follow(asked: &Asked, since: Option<u64>, wanted: Wanted) -> Answer {
    let Ok(place) = asked.api.streams.clone().try_acquire_owned() else {
        let detail = "too many read events already";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail));
    };
    let stream = changes(&asked.admin().trail, since, wanted).map(move |change| {
        let _held = &place; // as long as the stream is
        let event = Sent::default().json_data(&change).unwrap_or_default();
        let event = match change.seq {
            Some(seq) => event.id(seq.to_string()),
            None => event,
        };
        Ok::<_, Infallible>(event)
    });
    Ok::<Response, Problem>(Sse::new(stream).keep_alive(KeepAlive::default()).into_response())
}

fn changes(
    trail: &Trail,
    since: Option<u64>,
    wanted: Wanted,
) -> impl Stream<Item = Change> + Send + use<> {
    let (before, follower) = match since {
        Some(since) => {
            let (page, follower) = trail.follow_after(since);
            (page.entries, follower)
        }
        None => (Vec::new(), trail.follow()),
    };
    let later =
        stream::unfold(follower, |mut follower| async { Some((follower.recv().await?, follower)) });
    let all = stream::iter(before.into_iter().map(Ok)).chain(later);
    all.filter_map(move |news: Result<Arc<Noted>, u64>| {
        let fits = news.as_ref().map_or(true, |noted| wanted.fits(noted));
        std::future::ready(fits.then(|| Change::told(news)))
    })
}
