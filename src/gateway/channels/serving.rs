//! How a channel is run: in a task for each join, or on its client's own task.
//!
//! A join of a service has a task with a queue of [`WAITING`] events: a slow or broken one is in nobody's way. The
//! node's own families keep next to nothing for a join and answer at once, so theirs are *inline*: no task, no queue, and
//! an event is dealt with where its frame was read. Invariants:
//! 1. What happens to one join happens one after another.
//! 2. A panic ends the join in which it happened, and nothing else; that is reported ([`Admitted`]'s seat, or `ended`).
//! 3. A join in a task that was granted ends with `terminate`, unless it panicked.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, oneshot};

use super::handler::{Channel, Client, Ended, Joined, Outgoing, Push, Reaction, Request};
use crate::actors::channel_router::outbox::ClientOverflow;
use crate::actors::channel_router::{Greeting, Intercept, Intercepted};
use crate::actors::exchange::{HandlerError, Received, Subscription};
use crate::io::metrics::Count;
use crate::proto::channel::{Json, Outcome, Payload, Say, reason};
use crate::proto::token::Claims;
use crate::proto::topic::Pattern;

/// Events that may wait for a join's task.
const WAITING: usize = 64;

/// A boxed future.
type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Told how the task of a join has ended; `true`: by a panic.
pub(super) type OnEnd = Box<dyn FnOnce(bool) + Send>;

/// A join that is granted, whatever its state is.
pub(super) struct Admitted {
    pub(super) response: Map<String, Value>,
    pub(super) greeting: Option<Greeting>,
    pub(super) intercept: Option<Intercept>,
    pub(super) seat: Box<dyn Seat>,
}

/// A channel, whatever its state is.
pub(super) trait Service: Send + Sync {
    fn traits(&self) -> Traits;
    /// Asks it for a join. `ended` is told of one that is granted.
    fn enter(
        self: Arc<Self>,
        client: Client,
        params: Value,
        ended: OnEnd,
    ) -> Boxed<'static, Result<Admitted, HandlerError>>;
}

/// What a channel says of all its joins.
#[derive(Clone, Copy)]
pub(super) struct Traits {
    /// As [`Channel::presence`].
    pub(super) presence: bool,
    /// What happens to a client that is too slow for it.
    pub(super) overflow: ClientOverflow,
}

impl Traits {
    fn of(channel: &impl Channel) -> Self {
        let lossy = channel.lossy();
        let overflow = if lossy { ClientOverflow::DropOldest } else { ClientOverflow::Disconnect };
        Self { presence: channel.presence(), overflow }
    }
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    /// It is answered, or will be.
    Taken,
    /// Too many wait.
    Overloaded,
    /// The join is over by a panic.
    Crashed,
}

/// A join that goes on.
pub(super) trait Seat: Send {
    /// Whether an event only asks.
    fn asks(&self, event: &str) -> bool;
    /// Its client has another token.
    fn renewed(&mut self, claims: &Arc<Claims>);
    /// Deals with an event. `client` makes what an inline join has none of.
    fn push(&mut self, client: &dyn Fn(ClientOverflow) -> Client, push: Push) -> Pushed;
    /// Ends it; a seat that is dropped has been disconnected.
    fn end(self: Box<Self>, why: Ended);
}

/// A channel whose joins have tasks.
pub(super) struct Tasked<C>(pub(super) C);

impl<C: Channel> Service for Tasked<C> {
    fn traits(&self) -> Traits {
        Traits::of(&self.0)
    }

    fn enter(
        self: Arc<Self>,
        mut client: Client,
        params: Value,
        ended: OnEnd,
    ) -> Boxed<'static, Result<Admitted, HandlerError>> {
        Box::pin(async move {
            let (pushes, waiting) = mpsc::channel(WAITING);
            let (request, requests) = mpsc::unbounded_channel();
            let (answer, answered) = oneshot::channel();
            let (leave, why) = oneshot::channel();
            client.requests = Some(request.clone());
            let intercepts = (!self.0.intercept().is_empty()).then(Intercept::new);
            let (intercept, outgoing) = intercepts.unzip();
            let followed = Followed::default();
            let seated = Seated { client, requests, waiting, followed, outgoing, why };
            let (service, ending) = (self.clone(), Ending(Some(ended)));
            tokio::spawn(async move {
                seated.run(&service.0, params, answer).await;
                ending.well();
            });
            let crashed = |_closed| HandlerError::from("join crashed");
            let (response, greeting) = answered.await.map_err(crashed)??;
            let seat = TaskSeat { service: self, requests: request, pushes, leave };
            Ok(Admitted { response, greeting, intercept, seat: Box::new(seat) })
        })
    }
}

/// Reports the end of a task, also of one that panics.
struct Ending(Option<OnEnd>);

impl Ending {
    fn well(mut self) {
        if let Some(ended) = self.0.take() {
            ended(false);
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(ended) = self.0.take() {
            ended(true);
        }
    }
}

struct TaskSeat<C> {
    service: Arc<Tasked<C>>,
    requests: mpsc::UnboundedSender<Request>,
    /// Boxed, for a channel has room for 32 at once.
    pushes: mpsc::Sender<Box<Push>>,
    leave: oneshot::Sender<Ended>,
}

impl<C: Channel> Seat for TaskSeat<C> {
    fn asks(&self, event: &str) -> bool {
        self.service.0.questions().contains(&event)
    }

    fn renewed(&mut self, claims: &Arc<Claims>) {
        self.requests.send(Request::Renew(claims.clone())).unwrap_or(()); // it may have ended by itself
    }

    fn push(&mut self, _client: &dyn Fn(ClientOverflow) -> Client, push: Push) -> Pushed {
        match self.pushes.try_send(Box::new(push)) {
            Ok(()) => Pushed::Taken,
            Err(_full) => Pushed::Overloaded,
        }
    }

    fn end(self: Box<Self>, why: Ended) {
        self.leave.send(why).unwrap_or(()); // it may have ended by itself
    }
}

/// What is granted to a join in a task.
type Granted = (Map<String, Value>, Option<Greeting>);

/// A join in its task.
struct Seated {
    client: Client,
    requests: mpsc::UnboundedReceiver<Request>,
    waiting: mpsc::Receiver<Box<Push>>,
    followed: Followed,
    /// What it is told, where its channel intercepts.
    outgoing: Option<mpsc::UnboundedReceiver<Intercepted>>,
    why: oneshot::Receiver<Ended>,
}

impl Seated {
    async fn run<C: Channel>(
        mut self,
        channel: &C,
        params: Value,
        mut answer: oneshot::Sender<Result<Granted, HandlerError>>,
    ) {
        let joined = tokio::select! {
            joined = channel.join(&self.client, params) => joined,
            // It took too long, or the client is gone.
            () = answer.closed() => return,
        };
        match joined {
            Err(why) => drop(answer.send(Err(why))),
            Ok(Joined { mut state, response, greeting }) => {
                let heard = answer.send(Ok((response, greeting))).is_ok();
                let why =
                    if heard { self.talk(channel, &mut state).await } else { Ended::Disconnected };
                channel.terminate(state, &self.client, why).await;
            }
        }
    }

    async fn talk<C: Channel>(&mut self, channel: &C, state: &mut C::State) -> Ended {
        loop {
            match self.next().await {
                Next::Request(Request::Follow(subscription)) => self.followed.begin(subscription),
                Next::Request(Request::Unfollow(pattern)) => self.followed.end(&pattern),
                Next::Request(Request::Renew(claims)) => self.client.claims = Some(claims),
                Next::Request(Request::Close) => {
                    let (client, empty) = (&self.client, Payload::Json(Json::empty()));
                    let end = Say::End(client.line.join_ref.as_ref(), "phx_close", &empty);
                    client.line.send(&client.topic, &end);
                    return Ended::Closed;
                }
                Next::Push(push) => {
                    let done = channel.handle_in(state, &self.client, &push).await;
                    perform(&self.client, &push, done);
                }
                Next::Received(received) => {
                    if let Err(why) = channel.handle_info(state, &self.client, received).await {
                        failed(&self.client, "handle_info", why);
                    }
                }
                Next::Outgoing(message) => out(channel, state, &self.client, &message).await,
                Next::Over => return (&mut self.why).await.unwrap_or(Ended::Disconnected),
            }
        }
    }

    /// Requests come first: what the last callback asked for counts before the next one. Nothing is lost when the future is
    /// dropped.
    async fn next(&mut self) -> Next {
        let Self { requests, waiting, followed, outgoing, .. } = self;
        let other = async {
            tokio::select! {
                push = waiting.recv() => push.map_or(Next::Over, Next::Push),
                received = followed.next() => Next::Received(received),
                message = next(outgoing) => Next::Outgoing(message),
            }
        };
        tokio::select! {
            biased;
            Some(request) = requests.recv() => Next::Request(request),
            next = other => next,
        }
    }
}

/// What comes next to a join.
enum Next {
    Request(Request),
    Push(Box<Push>),
    Received(Received),
    Outgoing(Intercepted),
    /// Its client has left, or is gone.
    Over,
}

/// The next message to a client; none where nothing is intercepted.
async fn next(outgoing: &mut Option<mpsc::UnboundedReceiver<Intercepted>>) -> Intercepted {
    let message = match outgoing {
        Some(outgoing) => outgoing.recv().await,
        None => None,
    };
    match message {
        Some(message) => message,
        None => std::future::pending().await, // the topic has let this member go
    }
}

/// Tells a client what was said on the topic, as its channel wants it.
async fn out<C: Channel>(
    channel: &C,
    state: &mut C::State,
    client: &Client,
    message: &Intercepted,
) {
    let payload = message.payload();
    let outgoing = match message.event() {
        None => Ok(Outgoing::Withheld),
        Some(event) if channel.intercept().contains(&event) => {
            channel.handle_out(state, client, event, payload).await
        }
        Some(_) => Ok(Outgoing::AsItIs),
    };
    let frames = match outgoing {
        Ok(Outgoing::AsItIs) => message.frames(payload),
        Ok(Outgoing::Changed(payload)) => message.frames(&payload),
        Ok(Outgoing::Withheld) => message.place().into_iter().collect(),
        Err(why) => {
            failed(client, "handle_out", why);
            message.place().into_iter().collect()
        }
    };
    client.line.outbox.push(frames, client.line.overflow);
}

/// An error that no client is answered with.
fn failed(client: &Client, callback: &str, why: HandlerError) {
    client.shared.metrics().count(Count::Channels, "handler_failed");
    let why = why.into_response();
    tracing::debug!(topic = %client.topic, callback, %why, "a channel has failed");
}

/// Does what a channel makes of an event.
fn perform(client: &Client, push: &Push, done: Result<Reaction, HandlerError>) {
    let (outcome, response) = match done {
        Ok(Reaction::Silent) => return,
        Ok(Reaction::Reply(response)) => (Outcome::Ok, response),
        Ok(Reaction::Refuse(response)) => (Outcome::Error, response),
        Err(why) => (Outcome::Error, Payload::Json(Json::of(&why.into_response()))),
        Ok(Reaction::Broadcast) => match client.broadcast(&push.event, &push.payload) {
            Err(_long) => (Outcome::Error, reason("too long")),
            Ok(report) => {
                client.shared.metrics().count(Count::Channels, "published");
                let response = match report.missed {
                    0 => Json::empty(),
                    nodes => Json::of(&json!({ "missed": nodes })),
                };
                (Outcome::Ok, Payload::Json(response))
            }
        },
    };
    client.line.reply(&client.topic, push.reference.as_ref(), outcome, &response);
}

/// What a join subscribed to.
#[derive(Default)]
struct Followed(Vec<Subscription>);

impl Followed {
    fn begin(&mut self, subscription: Subscription) {
        self.0.push(subscription);
    }

    fn end(&mut self, pattern: &Pattern) {
        self.0.retain(|it| it.pattern() != pattern);
    }

    /// What comes next of any of them. Nothing is lost when the future is dropped.
    async fn next(&mut self) -> Received {
        poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Received> {
        let found = self.0.iter_mut().enumerate().find_map(|(at, subscription)| {
            match pin!(subscription.recv()).poll(context) {
                Poll::Ready(received) => Some((at, received?)),
                Poll::Pending => None,
            }
        });
        let Some((at, received)) = found else { return Poll::Pending };
        // The others come first the next time.
        self.0.rotate_left(at + 1);
        Poll::Ready(received)
    }
}

/// A channel whose joins have no tasks: `handle_in` must be ready at once, there is neither `handle_info`, `handle_out` nor
/// `terminate`, and requests of a [`Client`] do nothing. For the node's own families.
pub(super) struct Inline<C>(pub(super) C);

impl<C: Channel> Service for Inline<C> {
    fn traits(&self) -> Traits {
        Traits::of(&self.0)
    }

    fn enter(
        self: Arc<Self>,
        client: Client,
        params: Value,
        _ended: OnEnd,
    ) -> Boxed<'static, Result<Admitted, HandlerError>> {
        Box::pin(async move {
            let Joined { state, response, greeting } = self.0.join(&client, params).await?;
            let seat = InlineSeat { service: self, state };
            Ok(Admitted { response, greeting, intercept: None, seat: Box::new(seat) })
        })
    }
}

struct InlineSeat<C: Channel> {
    service: Arc<Inline<C>>,
    state: C::State,
}

impl<C: Channel> Seat for InlineSeat<C> {
    fn asks(&self, event: &str) -> bool {
        self.service.0.questions().contains(&event)
    }

    fn renewed(&mut self, _claims: &Arc<Claims>) {} // each event brings what is known of its client

    fn push(&mut self, client: &dyn Fn(ClientOverflow) -> Client, push: Push) -> Pushed {
        let client = client(Traits::of(&self.service.0).overflow);
        let handled = catch_unwind(AssertUnwindSafe(|| {
            let handling = pin!(self.service.0.handle_in(&mut self.state, &client, &push));
            match handling.poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(done) => done,
                Poll::Pending => Err("not answered".into()),
            }
        }));
        match handled {
            Ok(done) => {
                perform(&client, &push, done);
                Pushed::Taken
            }
            Err(_panic) => Pushed::Crashed,
        }
    }

    fn end(self: Box<Self>, _why: Ended) {}
}
