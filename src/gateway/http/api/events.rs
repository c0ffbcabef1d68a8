//! `/api/events`: what happened, a page at a time, or as it happens.

use std::convert::Infallible;
use std::str::FromStr;

use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use futures_util::stream::{self, Stream, StreamExt};

use super::{Answer, Asked, Reader, json};
use crate::actors::event_log::Following;
use crate::actors::news::Wanted;
use crate::gateway::history::{self, MOST};
use crate::gateway::http::problem::Problem;
use crate::gateway::refusal::Cause;
use crate::gateway::status::Change;
use crate::io::clock;
use crate::proto::event::Event;

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

pub(super) async fn events(Reader(asked): Reader) -> Answer {
    let query = asked.query(&["since", "type", "node", "from", "until", "limit"])?;
    let label: Option<String> = query.get("type", "a type of events")?;
    if let Some(label) = label.as_ref().filter(|label| !Event::LABELS.contains(&label.as_str())) {
        return Err(wrong(format!("type={label:?} is no type of events")));
    }
    let time =
        |name| Ok::<_, Problem>(query.get(name, "a time as in RFC 3339")?.map(|Time(at)| at));
    let (from, until) = (time("from")?, time("until")?);
    let node = query.get("node", "a name NAME@HOST")?;
    let since: Option<u64> = query.get("since", "a number of an event")?;
    let limit: Option<usize> = query.get("limit", "a number of events")?;
    let limit = limit.unwrap_or(PAGE);
    if !(1..=MOST).contains(&limit) {
        return Err(wrong(format!("limit={limit} is not within 1 and {MOST}")));
    }
    if as_stream(&asked.headers) {
        let wanted = Wanted { label, node, from, until };
        return follow(&asked, last(&asked.headers)?.or(since), wanted);
    }
    let wanted = history::Asked { after: since, limit, label, node, from, until };
    json(&history::here(asked.admin(), wanted).await)
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
        return Err(asked.api.site.refuse(Cause::TooManyReaders, &asked.from, ""));
    };
    let stream = changes(asked.admin().journal.follow(since), wanted).map(move |change| {
        let _held = &place; // as long as the stream is
        let event = Sent::default().json_data(&change).unwrap_or_default();
        let event = match change.seq {
            Some(seq) => event.id(seq.to_string()),
            None => event,
        };
        Ok::<_, Infallible>(event)
    });
    // A proxy that gathers what it passes on would keep events back.
    let unbuffered = [("x-accel-buffering", "no")];
    Ok((unbuffered, Sse::new(stream).keep_alive(KeepAlive::default())).into_response())
}

fn changes(following: Following, wanted: Wanted) -> impl Stream<Item = Change> + Send + use<> {
    let all = stream::unfold(following, |mut following| async {
        Some((following.recv().await?, following))
    });
    all.filter_map(move |news| {
        let fits = news.as_ref().map_or(true, |kept| wanted.fits_record(&kept.record));
        std::future::ready(fits.then(|| Change::told(news)))
    })
}
