//! Bodies of requests, read only for those who may send one.
//!
//! Invariant: all bodies that are being read or looked at have [`PIECES`] pieces of memory between them, and each is
//! whole within [`READ`] or refused.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::gateway::channels::longpoll::MAX_BODY;
use crate::gateway::refusal::Cause;

/// How long a body may take, with its wait for a place.
pub(super) const READ: Duration = Duration::from_secs(10);
/// What bodies are counted in.
const PIECE: usize = 64 * 1024;
/// How much of it there is: 64 MiB.
const PIECES: usize = 1024;

/// Places for bodies. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Bodies(Arc<Semaphore>);

impl Default for Bodies {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(PIECES)))
    }
}

impl Bodies {
    /// Reads a body of at most [`MAX_BODY`] bytes; its place is free when the permit is dropped.
    ///
    /// # Errors
    /// Why it is refused.
    pub(super) async fn read(&self, body: Body) -> Result<(Bytes, OwnedSemaphorePermit), Cause> {
        let announced = body.size_hint().upper().map_or(Some(MAX_BODY), |it| it.try_into().ok());
        let announced = announced.filter(|it| *it <= MAX_BODY).ok_or(Cause::BodyTooLong)?;
        let pieces = u32::try_from(announced.div_ceil(PIECE).max(1)).unwrap_or(u32::MAX);
        let mut place = None;
        let reading = async {
            let free = self.0.clone().acquire_many_owned(pieces).await;
            let place = place.insert(free.map_err(|_closed| Cause::TooManyBodies)?);
            let (mut stream, mut whole) = (body.into_data_stream(), BytesMut::new());
            while let Some(part) = stream.next().await {
                let part = part.map_err(|_gone| Cause::BodyBroken)?;
                if whole.len() + part.len() > MAX_BODY {
                    return Err(Cause::BodyTooLong);
                }
                whole.extend_from_slice(&part);
            }
            let _held = place;
            Ok(whole.freeze())
        };
        let whole = tokio::time::timeout(READ, reading).await;
        match (whole, place) {
            (Ok(Ok(whole)), Some(place)) => Ok((whole, place)),
            (Ok(Err(cause)), _) => Err(cause),
            (Err(_elapsed), Some(_)) => Err(Cause::BodyStalled),
            (Ok(Ok(_)) | Err(_), None) => Err(Cause::TooManyBodies),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;

    use super::*;

    /// A body without an announced length, a piece at a time, that stalls when it is not whole.
    fn parts(parts: Vec<Bytes>, whole: bool) -> Body {
        let parts = stream::iter(parts.into_iter().map(Ok::<_, Infallible>));
        if whole {
            Body::from_stream(parts)
        } else {
            Body::from_stream(parts.chain(stream::pending()))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_whole_within_its_time_and_its_length_or_refused() {
        let bodies = Bodies::default();
        let read = async |body| bodies.read(body).await.map(|(bytes, _)| bytes.len());
        assert_eq!(read(Body::empty()).await, Ok(0));
        assert_eq!(read(Body::from(vec![0; MAX_BODY])).await, Ok(MAX_BODY));
        assert_eq!(read(Body::from(vec![0; MAX_BODY + 1])).await, Err(Cause::BodyTooLong));
        let half = Bytes::from(vec![0; MAX_BODY / 2]);
        assert_eq!(read(parts(vec![half.clone(); 2], true)).await, Ok(MAX_BODY));
        assert_eq!(read(parts(vec![half.clone(); 3], false)).await, Err(Cause::BodyTooLong));
        assert_eq!(read(parts(vec![half], false)).await, Err(Cause::BodyStalled));
        assert_eq!(bodies.0.available_permits(), PIECES, "all places are free again");
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_share_their_places() {
        let bodies = Bodies::default();
        let mut held = Vec::new();
        for _ in 0..PIECES * PIECE / MAX_BODY {
            held.push(bodies.read(parts(vec![], true)).await.expect("a place"));
        }
        let refused = bodies.read(Body::empty()).await.map(drop);
        assert_eq!(refused, Err(Cause::TooManyBodies));
        held.pop();
        drop(bodies.read(Body::empty()).await.expect("the place of one that is done"));
    }
}
