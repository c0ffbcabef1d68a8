//! What a join gets of another node's messages and those of this one.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::*;
use crate::actors::channel_router::marks::Marks;
use crate::actors::channel_router::tests::{World, room, world};
use crate::actors::channel_router::topic::kept::now;
use crate::actors::channel_router::topic::{KEEPS, LOGGED, Links, QUIET, Shared};
use crate::actors::tests::{counted, name};
use crate::proto::channel::envelope::Envelope;
use crate::proto::channel::{Json, Payload};
use crate::proto::history::Retentions;
use crate::proto::replay::Position;

const P: &str = "p@127.0.0.1";
const Q: &str = "q@127.0.0.1";

/// The task of a topic, of which this node has heard nothing yet.
fn task(World { bus, publisher, metrics, .. }: &World) -> TopicTask {
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
        places: Arc::new(Semaphore::new(1)),
        settled_at: timer::now(),
        fetching: Arc::new(Semaphore::new(1)),
        marks: Marks::default(),
    };
    let subscription = exchange.subscribe(room()).expect("few");
    TopicTask::new(room(), subscription, mpsc::unbounded_channel().1, Box::new(drop), shared)
}

fn position(n: u64) -> Position {
    Position { epoch: 1, n, tag: 100 + n }
}

fn payload(n: u64) -> Payload {
    Payload::Json(Json::of(&json!({ "n": n })))
}

/// This node takes the message of a publisher with this number.
fn takes(task: &mut TopicTask, from: &str, n: u64) {
    let message = Envelope::encode(position(n), "say", &payload(n)).expect("short");
    let kept = Logged::new(task.index, now(), message.len(), "say".to_owned(), payload(n));
    assert!(task.keep(&name(from), position(n), &message, &Arc::new(kept)));
}

/// What another node has for a join that has seen three messages of `P`: the fourth and the fifth.
fn theirs() -> Theirs {
    let mut cursor = Cursor::default();
    (1..=3).for_each(|n| assert!(cursor.advance(&name(P), position(n))));
    let mut chunk = Chunk::new(7, Standing::at(&cursor));
    for n in [4, 5] {
        let message = Envelope::encode(position(n), "say", &payload(n)).expect("short");
        assert!(chunk.push(now(), &name(P), &message));
    }
    Theirs { resumed: true, more: false, chunks: vec![chunk] }
}

/// The numbers that such a join gets of both; `None` when it cannot be said what it missed.
fn joined(world: &World, task: &TopicTask) -> Option<Vec<u64>> {
    let resume = Some(format!("{P}/1:3:{:x}", position(3).tag));
    let past = task.joined(&Member { resume, ..world.member(None) }, theirs())?;
    assert!(past.is_resumed());
    let number = |kept: &Arc<Logged>| match &kept.payload {
        Payload::Json(json) => json.decode::<Value>().expect("JSON")["n"].as_u64(),
        Payload::Binary(_) => None,
    };
    Some(past.messages.iter().map(|kept| number(kept).expect("a number")).collect())
}

#[tokio::test]
async fn a_join_goes_on_with_what_another_node_has_and_what_came_here_since() {
    let world = world().await;
    let mut task = task(&world);
    assert_eq!(joined(&world, &task), Some(vec![4, 5]), "nothing was heard here");
    task.log.hear(&name(P), position(5));
    assert_eq!(joined(&world, &task), Some(vec![4, 5]), "no more was heard of");
    takes(&mut task, P, 6);
    takes(&mut task, Q, 1);
    assert_eq!(joined(&world, &task), Some(vec![4, 5, 6, 1]));
}

#[tokio::test]
async fn what_this_node_heard_of_and_did_not_get_is_a_gap_for_the_join() {
    let world = world().await;
    let mut heard = task(&world);
    heard.log.hear(&name(P), position(6));
    assert_eq!(joined(&world, &heard), None, "the sixth is nowhere");
    let mut another = task(&world);
    another.log.hear(&name(Q), position(2));
    assert_eq!(joined(&world, &another), None, "what another one said is nowhere");
}

#[tokio::test]
async fn what_this_node_lost_between_its_messages_or_after_them_is_a_gap_for_the_join() {
    let world = world().await;
    let mut between = task(&world);
    takes(&mut between, P, 5);
    between.forget();
    takes(&mut between, P, 6);
    assert_eq!(joined(&world, &between), None);
    let mut last = task(&world);
    takes(&mut last, P, 6);
    assert_eq!(joined(&world, &last), Some(vec![4, 5, 6]));
    last.forget();
    assert_eq!(joined(&world, &last), None);
    let mut only = task(&world);
    only.forget();
    assert_eq!(joined(&world, &only), None);
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
