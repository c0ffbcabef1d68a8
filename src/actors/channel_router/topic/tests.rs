//! A topic's task alone: what it keeps, and when it asks others.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::*;
use crate::actors::channel_router::tests::{World, room, world};
use crate::actors::tests::{counted, name};

pub(super) const P: &str = "p@127.0.0.1";
pub(super) const Q: &str = "q@127.0.0.1";

/// The task of a topic, of which this node has heard nothing yet.
pub(super) fn task(World { bus, publisher, metrics, .. }: &World) -> TopicTask {
    let exchange = bus.exchange();
    let shared = Shared {
        metrics: metrics.clone(),
        logged: Arc::default(),
        quiet: Arc::default(),
        rules: Arc::new(Retentions::new(Vec::new()).expect("none")),
        recorder: None,
        publisher: publisher.clone(),
        me: exchange.name().clone(),
        exchange: exchange.clone(),
        rounds: Arc::new(Semaphore::new(1)),
        places: Arc::new(Semaphore::new(1)),
        links_by: timer::now(),
        fetching: Arc::new(Semaphore::new(1)),
        marks: Marks::default(),
    };
    let subscription = exchange.subscribe(room()).expect("few");
    TopicTask::new(room(), subscription, mpsc::unbounded_channel().1, Box::new(drop), shared)
}

pub(super) fn position(n: u64) -> Position {
    Position { epoch: 1, n, tag: 100 + n }
}

pub(super) fn payload(n: u64) -> Payload {
    Payload::Json(Json::of(&json!({ "n": n })))
}

/// This node takes the message of a publisher with this number.
pub(super) fn takes(task: &mut TopicTask, from: &str, n: u64) {
    takes_at(task, from, position(n));
}

/// Likewise, in any epoch.
pub(super) fn takes_at(task: &mut TopicTask, from: &str, at: Position) {
    let message = Envelope::encode(at, "say", &payload(at.n)).expect("short");
    let kept = Logged::new(task.index, now(), message.len(), "say".to_owned(), payload(at.n));
    assert!(task.keep(&name(from), at, &message, &Arc::new(kept)));
}

#[tokio::test]
async fn what_is_kept_for_another_node_is_cut_at_half_of_what_others_may_have() {
    let world = world().await;
    let mut task = task(&world);
    task.shared.logged.store(LOGGED / 2, Ordering::Relaxed);
    takes(&mut task, P, 1);
    assert_eq!(counted(&world.metrics, "channel_events", "history_cut"), 0);
    task.begin_with(&Links::default(), true);
    takes(&mut task, P, 2);
    assert_eq!(counted(&world.metrics, "channel_events", "history_cut"), 1);
    task.members.insert(1, Box::new(world.member(None)));
    takes(&mut task, P, 3);
    assert_eq!(counted(&world.metrics, "channel_events", "history_cut"), 1, "somebody is here");
}

#[tokio::test]
async fn where_many_topics_have_no_members_another_node_makes_none_last() {
    let world = world().await;
    let mut task = task(&world);
    let since = timer::now() - Duration::from_secs(9);
    let keep = |task: &mut TopicTask| {
        task.empty = Some(since);
        task.keep_for(oneshot::channel().0, &Links::default());
        task.empty
    };
    assert!(keep(&mut task) > Some(since));
    task.shared.quiet.store(QUIET / KEEPS, Ordering::Relaxed);
    assert_eq!(keep(&mut task), Some(since));
}
