//! `/api/events`: what happened, a page at a time, or as it happens.

use std::convert::Infallible;
use std::str::FromStr;
use std::sync::Arc;

use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use futures_util::stream::{self, StreamExt};

use super::{Answer, Asked, By, Reader, json};
use crate::gateway::channels::{Bearer, Channels};
use crate::gateway::history;
use crate::gateway::http::problem::Problem;
use crate::gateway::refusal::Cause;
use crate::io::clock;
use crate::proto::event::{Event, MAX_EVENTS, Query};

/// Events on a page, unless another number is asked for.
const PAGE: usize = 100;

fn wrong(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, detail)
}

/// A time in a query.
struct Time(u64);

impl FromStr for Time {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        // In a query a plus is a space, which nobody means here.
        clock::read_rfc3339(&text.replace(' ', "+")).map(Self).ok_or(())
    }
}

pub(super) async fn events(By(asked): Reader) -> Answer {
    let read = asked.query(&["after", "since", "until", "type", "node", "limit"])?;
    let label: Option<String> = read.get("type", "a type of events")?;
    if let Some(label) = label.as_ref().filter(|label| !Event::LABELS.contains(&label.as_str())) {
        return Err(wrong(format!("type={label:?} is no type of events")));
    }
    let time = |name| Ok::<_, Problem>(read.get(name, "a time as in RFC 3339")?.map(|Time(at)| at));
    let (since, until) = (time("since")?, time("until")?);
    let node = read.get("node", "a name NAME@HOST")?;
    let after: Option<u64> = read.get("after", "a number of an event")?;
    let limit: Option<usize> = read.get("limit", "a number of events")?;
    let limit = limit.unwrap_or(PAGE);
    if !(1..=MAX_EVENTS).contains(&limit) {
        return Err(wrong(format!("limit={limit} is not within 1 and {MAX_EVENTS}")));
    }
    let query = Query { after, limit, label, node, since, until };
    if as_stream(&asked.headers) {
        return follow(&asked, last(&asked.headers)?.or(after), query);
    }
    json(&history::here(asked.admin(), query).await)
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

/// Server-sent events: each a [`Recorded`], its number for id. Ends with the token, and says so in a comment.
fn follow(asked: &Asked, after: Option<u64>, query: Query) -> Answer {
    let Ok(place) = asked.api.streams.clone().try_acquire_owned() else {
        return Err(asked.api.site.refuse(Cause::TooManyReaders, &asked.from, ""));
    };
    let following = asked.admin().journal.follow(after);
    let ended = ended(asked.api.site.channels.clone(), asked.bearer.clone());
    let all = stream::unfold(Some((following, Box::pin(ended))), |open| async {
        let (mut following, mut ended) = open?;
        tokio::select! {
            biased;
            why = &mut ended => Some((Err(why), None)),
            event = following.recv() => Some((Ok(event?), Some((following, ended)))),
        }
    });
    let stream = all.filter_map(move |next| {
        let _held = &place; // as long as the stream is
        let sent = match next {
            Err(why) => Some(Sent::default().comment(why)),
            Ok(event) if !query.fits(&event) => None,
            Ok(event) => {
                let sent = Sent::default().json_data(&event).unwrap_or_default();
                Some(if event.seq > 0 { sent.id(event.seq.to_string()) } else { sent })
            }
        };
        std::future::ready(sent.map(Ok::<_, Infallible>))
    });
    // A proxy that gathers what it passes on would keep events back.
    let unbuffered = [("x-accel-buffering", "no")];
    Ok((unbuffered, Sse::new(stream).keep_alive(KeepAlive::default())).into_response())
}

/// Waits until somebody may read no more; why.
async fn ended(channels: Arc<Channels>, bearer: Option<Bearer>) -> &'static str {
    match bearer {
        Some(bearer) => channels.until_outlived(&bearer).await,
        None => std::future::pending().await,
    }
}
