//! An edge says only what its certificate lets it, and others take no more of it than that.

use super::kit::*;
use super::*;
use crate::proto::interest::Interest;
use crate::proto::talk;

fn edge() -> Capabilities {
    Capabilities::edge(vec![pattern("sensor:*"), pattern("report")]).expect("short")
}

fn named(text: &str) -> Name {
    text.parse().expect("valid")
}

async fn nothing(_request: Request) -> Reply {
    Ok::<_, HandlerError>(Bytes::new())
}

#[tokio::test(start_paused = true)]
async fn an_edge_is_told_at_once_what_it_may_not() {
    let metrics = Metrics::default();
    let a = Exchange::limited(name(A), edge(), &metrics);
    let (b, _) = node(B);
    let _cable = Cable::plug(&a, &b).await;
    let mut heard = b.subscribe(pattern("*")).expect("few");
    let mut said = a.subscribe(pattern("*")).expect("few");
    settled().await;

    let (room, sensor) = (topic("room:1"), topic("sensor:1"));
    let refused = Err(SendError::NotAllowed(room.clone()));
    assert_eq!(a.publish(&room, "x").await, refused);
    assert_eq!(a.try_publish(&room, "x"), refused);
    assert_eq!(a.publish_to(&name(B), &room, "x").await, Err(SendError::NotAllowed(room.clone())));
    assert_eq!(a.publish_here(&room, "here").expect("short").local, 1, "in the node it may");
    a.publish(&sensor, "20").await.expect("allowed");
    assert_eq!(message(&mut heard).await.payload, "20");
    assert_eq!(drained(&mut heard), []);

    let billing = a.serve(named("billing"), nothing).map(drop);
    assert_eq!(billing, Err(ServeError::NotAllowed(named("billing"))));
    assert_eq!(
        a.serve(Name::issue(), nothing).map(drop),
        Err(ServeError::NotAllowed(Name::issue()))
    );
    let _report = a.serve(named("report"), nothing).expect("allowed");
    settled().await;
    assert_eq!((b.lookup(&named("report")), b.lookup(&named("billing"))), (vec![name(A)], vec![]));
    // It hears and calls what others do.
    b.publish(&room, "for all").await.expect("short");
    assert_eq!(
        [message(&mut said).await.payload, message(&mut said).await.payload],
        ["here", "20"]
    );
    assert_eq!(message(&mut said).await.payload, "for all");
    let _billing = b.serve(named("billing"), nothing).expect("a member");
    settled().await;
    let called = a.call(&"billing".parse().expect("valid"), "", PATIENCE).await;
    assert_eq!(called, Ok(Bytes::new()));
}

#[tokio::test(start_paused = true)]
async fn what_an_edge_says_all_the_same_is_skipped_and_counted() {
    let (b, metrics) = node(B);
    let mut heard = b.subscribe(pattern("*")).expect("few");
    let mut raw = Raw::plug_as(&b, (name(A), edge()), 1 << 20).await;
    let broadcast = |to: &str, payload: &str| {
        let mut message = Vec::new();
        talk::broadcast(&mut message, Some(&topic(to)));
        message.extend_from_slice(payload.as_bytes());
        message
    };
    let bulk = [("room:1", "no"), ("sensor:1", "yes"), ("sensor", "no"), ("report", "too")];
    for (to, payload) in bulk {
        raw.send(Lane::Bulk, &whole(&broadcast(to, payload))).await;
    }
    // A long one, in two pieces; what follows on its topic does not name it again.
    let long = broadcast("room:1", &"n".repeat(100_000));
    let (first, rest) = long.split_at(50_000);
    let mut piece = vec![1];
    put(&mut piece, long.len());
    raw.send(Lane::Bulk, &[&piece, first].concat()).await;
    raw.send(Lane::Bulk, &[&[2], rest].concat()).await;
    let mut same = Vec::new();
    talk::broadcast(&mut same, None);
    raw.send(Lane::Bulk, &whole(&[same.as_slice(), b"no"].concat())).await;
    for service in [named("billing"), Name::issue(), named("report")] {
        let mut message = Vec::new();
        talk::interest(&mut message, &Interest::Name(service), true);
        raw.send(Lane::Calls, &whole(&message)).await;
    }
    settled().await;
    assert_eq!(
        [message(&mut heard).await.payload, message(&mut heard).await.payload],
        ["yes", "too"]
    );
    assert_eq!(drained(&mut heard), []);
    assert_eq!(b.lookup(&named("report")), [name(A)]);
    assert_eq!((b.lookup(&named("billing")), b.lookup(&Name::issue())), (vec![], vec![]));
    assert_eq!(counted(&metrics, "node_messages", "not_allowed"), 6);
    assert!(raw.end.runs(), "the link stays");
}

#[tokio::test(start_paused = true)]
async fn requests_for_certificates_go_to_those_who_may_issue() {
    let (b, metrics) = node(B);
    let mut raws = Vec::new();
    for (who, may) in [(A, Capabilities::OPERATE), (C, Capabilities::ALL)] {
        let mut raw = Raw::plug_as(&b, (name(who), may), 1 << 20).await;
        let mut message = Vec::new();
        talk::interest(&mut message, &Interest::Name(Name::issue()), true);
        raw.send(Lane::Calls, &whole(&message)).await;
        raws.push(raw);
    }
    settled().await;
    assert_eq!(b.lookup(&Name::issue()), [name(C)]);
    assert_eq!(counted(&metrics, "node_messages", "not_allowed"), 1);
}
