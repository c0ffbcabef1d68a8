//! What a join gets of another node's messages and those of this one.

use std::sync::Arc;

use serde_json::Value;

use super::*;
use crate::actors::channel_router::tests::{World, world};
use crate::actors::channel_router::topic::kept::now;
use crate::actors::channel_router::topic::tests::{P, Q, payload, position, takes, takes_at, task};
use crate::actors::tests::name;
use crate::proto::channel::Payload;
use crate::proto::channel::envelope::Envelope;
use crate::proto::replay::Position;

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
async fn what_a_publisher_said_before_the_epoch_of_the_cursor_is_seen() {
    let world = world().await;
    let mut task = task(&world);
    let of = |epoch, n| Position { epoch, ..position(n) };
    takes_at(&mut task, P, of(9, 1));
    (1..=3).for_each(|n| takes(&mut task, P, n));
    assert_eq!(joined(&world, &task), Some(vec![4, 5]));
    // It has begun another one since, of which the other node has not heard.
    (4..=5).for_each(|n| takes(&mut task, P, n));
    takes_at(&mut task, P, of(2, 1));
    assert_eq!(joined(&world, &task), Some(vec![4, 5, 1]));
}
