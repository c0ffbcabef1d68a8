//! What joins get of a topic's history.

use std::time::Duration;

use super::*;

/// What a join that asks for this is told, and gets.
async fn asks(world: &World, resume: Option<&str>, ask: Ask) -> (Value, Vec<u64>) {
    let resume = resume.map(str::to_owned);
    let member = Member { resume, history: Some(ask), ..world.member(None) };
    let client = world.enter(member).await;
    let mut frames = client.take();
    world.router.leave(room(), client.id);
    let reply = frames.remove(0).1["response"].clone();
    (reply, frames.iter().map(|(_, it)| it["n"].as_u64().expect("a number")).collect())
}

#[tokio::test(start_paused = true)]
async fn a_join_gets_the_history_that_it_asks_for() {
    let world = world_with(&["room:*=600,1h"]).await;
    assert_eq!(asks(&world, None, Ask::Last(9)).await, (json!({ "replayed": 0 }), vec![]));
    for n in 1..=700 {
        world.publish(n);
        settled().await;
    }
    let all: Vec<u64> = (101..=700).collect();
    assert_eq!(asks(&world, None, Ask::Last(1)).await, (json!({ "replayed": 1 }), vec![700]));
    assert_eq!(asks(&world, None, Ask::Last(3)).await.1, [698, 699, 700]);
    assert_eq!(asks(&world, None, Ask::Last(0)).await, (json!({ "replayed": 0 }), vec![]));
    let replayed = json!({ "replayed": 600 });
    assert_eq!(asks(&world, None, Ask::Last(5000)).await, (replayed.clone(), all.clone()));
    assert_eq!(asks(&world, None, Ask::Since(0)).await, (replayed, all));
    assert_eq!(asks(&world, None, Ask::Since(u64::MAX)).await.1, Vec::<u64>::new());
    // A cursor that cannot be resumed from is said, and one that can is what counts.
    let (reply, got) = asks(&world, Some("?"), Ask::Last(2)).await;
    assert_eq!((reply, got), (json!({ "gap": true, "replayed": 2 }), vec![699, 700]));
    let (reply, got) = asks(&world, Some(""), Ask::Last(0)).await;
    assert_eq!((&reply["replayed"], got.len()), (&json!(0), 0));
    let cursor = reply["seq"].as_str().expect("a cursor").to_owned();
    world.publish(701);
    settled().await;
    let resumed = (json!({ "replayed": 1 }), vec![701]);
    assert_eq!(asks(&world, Some(&cursor), Ask::Last(9)).await, resumed);
}

#[tokio::test(start_paused = true)]
async fn a_history_that_is_too_long_for_a_join_says_so() {
    let world = world_with(&["room:*=3000,1h"]).await;
    let client = world.enter(world.member(None)).await;
    for n in 1..=1500 {
        world.publish(n);
        if n % 100 == 0 {
            settled().await;
            client.take();
        }
    }
    let reply = json!({ "replayed": 1000, "more": true });
    let newest: Vec<u64> = (501..=1500).collect();
    assert_eq!(asks(&world, None, Ask::Last(1200)).await, (reply.clone(), newest.clone()));
    assert_eq!(asks(&world, None, Ask::Since(0)).await, (reply, newest));
    assert_eq!(asks(&world, None, Ask::Last(1000)).await.0, json!({ "replayed": 1000 }));
}

#[tokio::test(start_paused = true)]
async fn a_service_reads_what_a_join_would_get() {
    let world = world_with(&["room:*=600,1h"]).await;
    let history = TopicHistory::new(&world.router, &room());
    assert_eq!(history.last(9).await, vec![]);
    (1..=3).for_each(|n| world.publish(n));
    settled().await;
    let numbers = |entries: Vec<HistoryEntry>| -> Vec<Value> {
        let number = |it: &HistoryEntry| match it.payload() {
            Payload::Json(json) => json.decode::<Value>().expect("JSON")["n"].clone(),
            Payload::Binary(_) => Value::Null,
        };
        entries.iter().map(number).collect()
    };
    let two = history.last(2).await;
    assert_eq!((two[0].event(), two[0].from()), ("say", world.bus.exchange().name()));
    let (before, after) =
        (two[0].at() - Duration::from_secs(9), two[1].at() + Duration::from_secs(9));
    assert_eq!(numbers(two), [2, 3]);
    assert_eq!(numbers(history.since(before).await), [1, 2, 3]);
    assert_eq!(history.since(after).await, vec![]);
}

#[tokio::test(start_paused = true)]
async fn a_topic_stays_as_long_as_its_history() {
    let world = world_with(&["room:*=10,1h"]).await;
    let client = world.enter(world.member(None)).await;
    world.publish(1);
    settled().await;
    world.router.leave(room(), client.id);
    tokio::time::sleep(Duration::from_secs(3599)).await;
    let heard =
        |world: &World| world.bus.exchange().publish_here(&room(), "{}").expect("short").local;
    assert_eq!(heard(&world), 1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(heard(&world), 0);
    // One without a history has no reason to.
    let client = world.enter(world.member(None)).await;
    world.router.leave(room(), client.id);
    tokio::time::sleep(LINGER + Duration::from_secs(1)).await;
    assert_eq!(heard(&world), 0);
}

/// Whether this node keeps a topic for another one.
async fn keeps(world: &World, from: &str, topic: &str) -> bool {
    let (to, answer) = oneshot::channel();
    world.router.handle.cast(Msg::Keep(name(from), topic.parse().expect("valid"), to));
    answer.await.is_ok()
}

#[tokio::test(start_paused = true)]
async fn what_a_service_reads_or_another_node_has_kept_ends_as_any_topic() {
    let world = world().await;
    let heard = || world.bus.exchange().publish_here(&room(), "{}").expect("short").local;
    assert_eq!(TopicHistory::new(&world.router, &room()).last(9).await, vec![]);
    assert_eq!(heard(), 1);
    tokio::time::sleep(LINGER + Duration::from_secs(1)).await;
    assert_eq!(heard(), 0);
    assert!(keeps(&world, B, "room:1").await);
    assert_eq!(heard(), 1);
    tokio::time::sleep(LINGER + Duration::from_secs(1)).await;
    assert_eq!(heard(), 0);
}

#[tokio::test(start_paused = true)]
async fn one_node_has_no_more_topics_kept_than_it_leaves_free() {
    let world = world().await;
    let topic = |from: &str, n: u32| format!("{from}:{n}");
    let (c, mut kept) = ("c@127.0.0.1", 0);
    while keeps(&world, B, &topic(B, kept)).await {
        kept += 1;
    }
    assert_eq!(kept, 1250);
    assert!(keeps(&world, B, &topic(B, 0)).await, "one that is here");
    // What somebody has joined is no more kept for another node.
    let joined = topic(B, 1).parse().expect("valid");
    assert!(world.router.join(joined, world.member(None)).await);
    settled().await;
    assert!(keeps(&world, B, &topic(B, kept)).await);
    assert!(!keeps(&world, B, &topic(B, kept + 1)).await);
    kept = 0;
    while keeps(&world, c, &topic(c, kept)).await {
        kept += 1;
    }
    assert_eq!(kept, 625);
}
