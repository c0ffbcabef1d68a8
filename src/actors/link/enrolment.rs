//! Connections of machines that ask for a certificate: one request, one answer, and the connection ends.
//!
//! Invariants: such a connection takes none of the places of links once it has said what it is; which are heard,
//! `proto::newcomers` decides; a request has at most [`MAX_REQUEST`] bytes and [`HANDSHAKE`] to come, its answer
//! [`ANSWERED`] to be made and as long again as [`HANDSHAKE`] to be taken. Each end is counted. A task here ends with
//! the link actor.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::{AbortHandle, JoinSet};

use crate::actors::link::refusals::RefusalLog;
use crate::actors::timer;
use crate::io::metrics::{Count, Metrics};
use crate::io::tls::Caller;
use crate::proto::link::HANDSHAKE;
use crate::proto::newcomers::{NewcomerId, Newcomers, Unheard};

/// Longest request, in bytes.
pub const MAX_REQUEST: usize = 64 << 10;
/// Time for an answer to be made, on this node or another.
pub const ANSWERED: Duration = Duration::from_secs(20);

type Answering = Pin<Box<dyn Future<Output = Bytes> + Send>>;

/// What answers requests for certificates: bytes in, bytes out.
#[derive(Clone)]
pub struct Enrolment(Arc<dyn Fn(Bytes) -> Answering + Send + Sync>);

impl fmt::Debug for Enrolment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Enrolment")
    }
}

impl Enrolment {
    /// Answered by this function.
    pub fn new<F>(answer: impl Fn(Bytes) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Bytes> + Send + 'static,
    {
        Self(Arc::new(move |request| Box::pin(answer(request))))
    }

    /// The answer to this request.
    pub(crate) async fn ask(&self, request: Bytes) -> Bytes {
        (self.0)(request).await
    }
}

/// The connections that are open.
pub(super) struct Reception {
    enrolment: Enrolment,
    metrics: Metrics,
    log: Arc<RefusalLog>,
    places: Arc<Mutex<Places>>,
    tasks: Mutex<JoinSet<()>>,
}

#[derive(Default)]
struct Places {
    machine: Newcomers,
    tasks: BTreeMap<NewcomerId, Option<AbortHandle>>,
}

impl Reception {
    pub(super) fn new(enrolment: Enrolment, metrics: Metrics, log: Arc<RefusalLog>) -> Self {
        let (places, tasks) = (Arc::default(), Mutex::default());
        Self { enrolment, metrics, log, places, tasks }
    }

    /// Hears a caller in a task of its own, or denies it.
    pub(super) async fn receive<S>(&self, caller: Caller<S>, from: SocketAddr)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let denied = match self.open(from) {
            Ok(place) => {
                self.metrics.count(Count::Accepted, "enrol");
                return self.start(caller, place, from);
            }
            Err(why) => why,
        };
        self.log.refused(denied.label(), Some(from), &"a request for a certificate");
        // A caller that does not read learns nothing.
        drop(tokio::time::timeout(HANDSHAKE, caller.deny()).await);
    }

    fn open(&self, from: SocketAddr) -> Result<Place, Unheard> {
        let mut places = self.places.lock();
        let (id, evicted) = places.machine.open(from.ip(), timer::now())?;
        places.tasks.insert(id, None);
        let task = evicted.and_then(|id| places.tasks.remove(&id));
        drop(places);
        if evicted.is_some() {
            self.log.refused("enrol_evicted", None, &"it has sent no request, and others wait");
        }
        task.flatten().iter().for_each(AbortHandle::abort);
        Ok(Place { places: self.places.clone(), id })
    }

    fn start<S>(&self, caller: Caller<S>, place: Place, from: SocketAddr)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (id, log, answer) = (place.id, self.log.clone(), self.enrolment.clone());
        let talk = async move {
            if let Err((cause, detail)) = talk(caller, &place, &answer).await {
                log.refused(cause, Some(from), &detail);
            }
        };
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        let task = tasks.spawn(talk);
        drop(tasks);
        // One that was given up before it began ends now, and one that has ended needs no handle.
        match self.places.lock().tasks.get_mut(&id) {
            Some(place) => *place = Some(task),
            None => task.abort(),
        }
    }
}

/// A place, which is free again when this is dropped.
struct Place {
    places: Arc<Mutex<Places>>,
    id: NewcomerId,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.places.lock();
        places.machine.close(self.id);
        places.tasks.remove(&self.id);
    }
}

/// Why a connection ends without an answer, as a word and a text.
type Unanswered = (&'static str, String);

async fn talk<S>(caller: Caller<S>, place: &Place, enrolment: &Enrolment) -> Result<(), Unanswered>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let listening = async {
        let mut stream = caller.enrol().await.map_err(|error| ("enrol_tls", error.to_string()))?;
        let length = stream.read_u32().await.map_err(closed)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > MAX_REQUEST {
            return Err(("enrol_too_long", format!("a request of {length} bytes")));
        }
        let mut request = vec![0; length];
        stream.read_exact(&mut request).await.map_err(closed)?;
        Ok((stream, Bytes::from(request)))
    };
    let heard = tokio::time::timeout(HANDSHAKE, listening).await;
    let late = |what: &str| ("enrol_silent", format!("no {what} within the deadline"));
    let (mut stream, request) = heard.map_err(|_elapsed| late("request"))??;
    place.places.lock().machine.asked(place.id);
    let answer = tokio::time::timeout(ANSWERED, (enrolment.0)(request)).await;
    let answer =
        answer.map_err(|_elapsed| ("enrol_late", "no answer was made in time".to_owned()))?;
    let sending = async {
        stream.write_u32(u32::try_from(answer.len()).unwrap_or(u32::MAX)).await?;
        stream.write_all(&answer).await?;
        stream.shutdown().await
    };
    let sent = tokio::time::timeout(HANDSHAKE, sending).await;
    sent.map_err(|_elapsed| late("end of reading"))?.map_err(closed)
}

fn closed(error: std::io::Error) -> Unanswered {
    ("enrol_closed", error.to_string())
}
