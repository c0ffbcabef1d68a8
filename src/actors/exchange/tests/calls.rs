//! Requests and watches between nodes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use super::kit::*;
use super::*;
use crate::proto::frame::{CloseReason, Control};
use crate::proto::talk::DownReason;

const LONG: Duration = Duration::from_secs(10);

fn offer(text: &str) -> Name {
    text.parse().expect("valid")
}

fn to(text: &str) -> Address {
    text.parse().expect("valid")
}

/// Counts while it lives.
struct Alive(Arc<AtomicUsize>);

impl Alive {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[test]
fn a_client_of_a_channel_gets_the_reason_or_the_response_of_a_refusal() {
    let io = std::io::Error::other("the disk");
    assert_eq!(HandlerError::from(io).into_response(), json!({ "reason": "the disk" }));
    let own = json!({ "code": 7 });
    let response = HandlerError::response(own.clone());
    assert_eq!(response.clone().into_text(), own.to_string());
    assert_eq!(response.into_response(), own);
}

/// Serves `work`: echoes, refuses, panics, or never answers, as it is told.
fn work(exchange: &Exchange) -> (Serving, Arc<AtomicUsize>) {
    let running = Arc::new(AtomicUsize::new(0));
    let count = running.clone();
    let serving = exchange.serve(offer("work"), move |request: Request| {
        let alive = Alive::new(&count);
        async move {
            let _alive = alive;
            match &request.payload[..] {
                b"refuse" => Err("no".into()),
                b"panic" => panic!("on purpose"),
                b"sleep" => std::future::pending().await,
                b"who" => Ok(request.from.to_string().into()),
                b"left" => {
                    let left = request.deadline - crate::actors::timer::now();
                    Ok(left.as_millis().to_string().into())
                }
                _ => Ok(request.payload),
            }
        }
    });
    (serving.expect("free"), running)
}

#[tokio::test(start_paused = true)]
async fn a_call_brings_the_reply_or_says_what_became_of_it() {
    let (a, b) = (exchange(A), exchange(B));
    let (_serving, running) = work(&b);
    let _cable = Cable::plug(&a, &b).await;
    let call = async |payload: &'static str| a.call(&to("work@b@127.0.0.1"), payload, LONG).await;
    assert_eq!(call("hi").await, Ok("hi".into()));
    assert_eq!(call("").await, Ok("".into()));
    assert_eq!(call("who").await, Ok(A.into()));
    assert_eq!(call("refuse").await, Err(CallError::Refused("no".into())));
    assert_eq!(call("panic").await, Err(CallError::Refused("the handler failed".into())));
    let left: u64 =
        String::from_utf8_lossy(&call("left").await.expect("told")).parse().expect("ms");
    assert!((9_900..=10_000).contains(&left), "the deadline travels: {left} ms");
    let nobody = a.call(&to("nobody@b@127.0.0.1"), "x", LONG).await;
    assert_eq!(nobody, Err(CallError::NoSuchName));
    assert_eq!(a.call(&to("nobody"), "x", LONG).await, Err(CallError::NoSuchName));
    let unlinked = a.call(&to("work@c@127.0.0.1"), "x", LONG).await;
    assert_eq!(unlinked, Err(CallError::NotConnected));
    let began = crate::actors::timer::now();
    assert_eq!(call("sleep").await, Err(CallError::DeadlinePassed));
    assert!(crate::actors::timer::now() - began >= LONG);
    settled().await;
    assert_eq!(running.load(Ordering::Relaxed), 0, "the handler is dropped at its deadline");
    let long = vec![0; 17 << 20];
    let told = a.call(&to("work@b@127.0.0.1"), long, LONG).await;
    assert!(matches!(told, Err(CallError::TooLong(length)) if length > 17 << 20), "{told:?}");
    let long = Bytes::from(vec![7; 5 << 20]);
    assert_eq!(a.call(&to("work@b@127.0.0.1"), long.clone(), LONG).await, Ok(long));
}

#[tokio::test(start_paused = true)]
async fn a_call_within_a_node_ends_in_the_same_ways() {
    let a = exchange(A);
    let (serving, running) = work(&a);
    let call = async |payload: &'static str| a.call(&to("work"), payload, LONG).await;
    assert_eq!(call("hi").await, Ok("hi".into()));
    assert_eq!(call("who").await, Ok(A.into()));
    assert_eq!(call("refuse").await, Err(CallError::Refused("no".into())));
    assert_eq!(call("sleep").await, Err(CallError::DeadlinePassed));
    settled().await;
    assert_eq!(running.load(Ordering::Relaxed), 0);
    assert_eq!(call("panic").await, Err(CallError::Refused("the handler failed".into())));
    assert!(matches!(
        a.serve(offer("work"), |_| async { Ok(Bytes::new()) }),
        Err(ServeError::Taken(_))
    ));
    drop(serving);
    assert_eq!(call("hi").await, Err(CallError::NoSuchName));
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_link_leaves_the_outcome_unknown() {
    let (a, b) = (exchange(A), exchange(B));
    let (_serving, running) = work(&b);
    let cable = Cable::plug(&a, &b).await;
    let caller = a.clone();
    let call =
        tokio::spawn(async move { caller.call(&to("work@b@127.0.0.1"), "sleep", LONG).await });
    settled().await;
    assert_eq!(running.load(Ordering::Relaxed), 1);
    cable.cut().await;
    assert_eq!(call.await.expect("no panic"), Err(CallError::OutcomeUnknown));
    assert_eq!(a.call(&to("work"), "x", LONG).await, Err(CallError::NoSuchName));
    let _again = Cable::plug(&a, &b).await;
    assert_eq!(a.call(&to("work"), "x", LONG).await, Ok("x".into()));
}

#[tokio::test(start_paused = true)]
async fn more_than_a_name_can_take_is_refused_undone() {
    let (a, b) = (exchange(A), exchange(B));
    let (_serving, running) = work(&b);
    let _cable = Cable::plug(&a, &b).await;
    let calls: Vec<_> = (0..1100)
        .map(|_| {
            let a = a.clone();
            tokio::spawn(async move { a.call(&to("work@b@127.0.0.1"), "sleep", LONG).await })
        })
        .collect();
    settled().await;
    assert_eq!(running.load(Ordering::Relaxed), 768, "the share of one asker");
    let (mut overloaded, mut passed) = (0, 0);
    for call in calls {
        match call.await.expect("no panic") {
            Err(CallError::Overloaded) => overloaded += 1,
            Err(CallError::DeadlinePassed) => passed += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((overloaded, passed), (332, 768));
    assert_eq!(a.call(&to("work"), "x", LONG).await, Ok("x".into()), "and then there is room");
}

#[tokio::test(start_paused = true)]
async fn one_peer_leaves_places_of_a_slow_name_to_the_others() {
    let (a, b, c) = (exchange(A), exchange(B), exchange(C));
    let (_serving, running) = work(&b);
    let _cables = (Cable::plug(&a, &b).await, Cable::plug(&c, &b).await);
    for _ in 0..2000 {
        let a = a.clone();
        tokio::spawn(async move { a.call(&to("work@b@127.0.0.1"), "sleep", LONG).await });
    }
    settled().await;
    assert_eq!(running.load(Ordering::Relaxed), 768);
    for other in [&b, &c] {
        assert_eq!(other.call(&to("work@b@127.0.0.1"), "x", LONG).await, Ok("x".into()));
    }
    assert_eq!(a.call(&to("work@b@127.0.0.1"), "x", LONG).await, Err(CallError::Overloaded));
}

#[tokio::test(start_paused = true)]
async fn what_a_user_asked_for_costs_a_peer_nothing_and_what_is_refused_does() {
    let (a, b) = (exchange(A), exchange(B));
    let (_serving, _running) = work(&b);
    let mut heard = b.subscribe(topic("t")).expect("few");
    let _cable = Cable::plug(&a, &b).await;
    // What both had to announce to each other counts no more.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let outlet = b.topics.peer(&name(A)).expect("linked");
    let is_settled = || {
        outlet.account().turn(crate::actors::timer::now());
        outlet.account().is_settled(crate::actors::timer::now())
    };
    for _ in 0..100 {
        assert_eq!(a.call(&to("work@b@127.0.0.1"), "x", LONG).await, Ok("x".into()));
        a.publish(&topic("t"), vec![0; 50_000]).await.expect("short");
        recv(&mut heard).await.expect("open");
    }
    settled().await;
    assert!(is_settled());
    for refused in ["nobody@b@127.0.0.1", "xpando:sight@b@127.0.0.1"] {
        let refused = a.call(&to(refused), vec![0; 4 << 20], LONG).await;
        assert_eq!(refused, Err(CallError::NoSuchName));
        assert!(!is_settled());
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(is_settled());
    }
    a.publish_to(&name(B), &topic("nobody"), vec![0; 1 << 20]).await.expect("linked");
    settled().await;
    assert!(!is_settled());
}

#[tokio::test(start_paused = true)]
async fn of_one_peer_only_so_many_bytes_of_requests_are_under_way() {
    let (a, (b, metrics)) = (exchange(A), node(B));
    let running = Arc::new(AtomicUsize::new(0));
    let count = running.clone();
    let _serving = b.serve(offer("hold"), move |request: Request| {
        let alive = Alive::new(&count);
        async move {
            let _alive = (alive, request);
            std::future::pending().await
        }
    });
    let _cable = Cable::plug(&a, &b).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let a = a.clone();
        let payload = vec![0; 1 << 20];
        calls.spawn(async move { a.call(&to("hold@b@127.0.0.1"), payload, LONG).await });
    }
    settled().await;
    assert_eq!(running.load(Ordering::Relaxed), 3, "with what they cost beside, less than four");
    assert_eq!(counted(&metrics, "node_messages", "request_overloaded"), 7);
    let mut overloaded = 0;
    while let Some(told) = calls.join_next().await {
        overloaded += usize::from(told.expect("no panic") == Err(CallError::Overloaded));
    }
    assert_eq!(overloaded, 7);
}

#[tokio::test(start_paused = true)]
async fn sixty_four_at_once_each_get_their_own_reply() {
    let (a, b) = (exchange(A), exchange(B));
    let _serving = b.serve(offer("later"), |request: Request| async move {
        let turn = u64::from(request.payload[3] % 7);
        tokio::time::sleep(Duration::from_millis(turn)).await;
        Ok(request.payload)
    });
    let _cable = Cable::plug(&a, &b).await;
    let calls: Vec<_> = (0..64)
        .map(|number| {
            let a = a.clone();
            let payload = numbered(number, 100);
            tokio::spawn(
                async move { (a.call(&to("later"), payload.clone(), LONG).await, payload) },
            )
        })
        .collect();
    for call in calls {
        let (reply, payload) = call.await.expect("no panic");
        assert_eq!(reply, Ok(payload));
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_overtakes_a_bulk_transfer() {
    let (a, b) = (exchange(A), exchange(B));
    let mut heard = b.subscribe(topic("t")).expect("few");
    let (_serving, _) = work(&b);
    let _cable = Cable::plug(&a, &b).await;
    a.publish(&topic("t"), vec![0; 15 << 20]).await.expect("not too long");
    assert_eq!(a.call(&to("work"), "hi", LONG).await, Ok("hi".into()));
    assert_eq!(drained(&mut heard), [], "the transfer is still under way");
    assert_eq!(message(&mut heard).await.payload.len(), 15 << 20);
}

#[tokio::test(start_paused = true)]
async fn without_a_node_calls_go_around_and_lookup_knows_the_nearest() {
    let (a, b, c) = (exchange(A), exchange(B), exchange(C));
    let me = |exchange: &Exchange| {
        let me = exchange.name().to_string();
        exchange.serve(offer("who"), move |_| std::future::ready(Ok(me.clone().into())))
    };
    let (_b, _c) = (me(&b).expect("free"), me(&c).expect("free"));
    let (ab, _ac) = (Cable::plug(&a, &b).await, Cable::plug(&a, &c).await);
    let mut turns = BTreeMap::new();
    for _ in 0..10 {
        let node = a.call(&to("who"), "", LONG).await.expect("answered");
        *turns.entry(node).or_insert(0) += 1;
    }
    assert_eq!(turns, [(B.into(), 5), (C.into(), 5)].into());

    let set = |peer: &str, rtt| a.topics.peer(&name(peer)).expect("linked").echoed(rtt);
    set(B, Duration::from_millis(9));
    assert_eq!(a.lookup(&offer("who")), [name(B), name(C)], "c was not measured yet");
    set(C, Duration::from_millis(3));
    assert_eq!(a.lookup(&offer("who")), [name(C), name(B)]);
    let own = me(&a).expect("free");
    assert_eq!(a.lookup(&offer("who")), [name(A), name(C), name(B)]);
    drop(own);
    ab.cut().await;
    assert_eq!(a.lookup(&offer("who")), [name(C)]);
    assert_eq!(a.lookup(&offer("nobody")), []);
}

#[tokio::test(start_paused = true)]
async fn two_names_that_are_called_by_turns_both_go_around() {
    let (a, b) = (exchange(A), exchange(B));
    for text in ["one", "two"] {
        for exchange in [&a, &b] {
            let me = exchange.name().to_string();
            let serve = move |_| std::future::ready(Ok(Bytes::from(me.clone())));
            std::mem::forget(exchange.serve(offer(text), serve).expect("free"));
        }
    }
    let _cable = Cable::plug(&a, &b).await;
    let mut nodes = std::collections::BTreeSet::new();
    for _ in 0..4 {
        for text in ["one", "two"] {
            nodes.insert((text, a.call(&to(text), "", LONG).await.expect("answered")));
        }
    }
    assert_eq!(nodes.len(), 4, "{nodes:?}");
}

#[tokio::test(start_paused = true)]
async fn the_round_trip_of_the_beats_is_that_of_the_lookup() {
    let (a, b) = (exchange(A), exchange(B));
    let cable = Cable::plug(&a, &b).await;
    let outlet = a.topics.peer(&name(B)).expect("linked");
    assert_eq!(outlet.rtt(), u64::MAX);
    cable.ends[0].pulse.beat();
    settled().await;
    assert!(outlet.rtt() < 1_000_000, "{}", outlet.rtt());
}

#[tokio::test(start_paused = true)]
async fn a_watch_tells_once_why_a_name_is_gone() {
    let (a, b) = (exchange(A), exchange(B));
    let cable = Cable::plug(&a, &b).await;
    let (stops, _) = work(&b);
    let watch = |text: &str| a.watch(&offer(text), &name(B)).expect("linked");
    let (one, two) = (watch("work"), watch("work"));
    settled().await;
    drop(stops);
    assert_eq!((one.gone().await, two.gone().await), (DownReason::Stopped, DownReason::Stopped));
    let (fails, _) = work(&b);
    let one = watch("work");
    settled().await;
    fails.fail();
    assert_eq!(one.gone().await, DownReason::Failed);
    assert_eq!(watch("work").gone().await, DownReason::NoSuchName);
    assert_eq!(a.watch(&offer("work"), &name(C)).err(), Some(SendError::NotConnected));
    let (serving, _) = work(&b);
    let one = watch("work");
    settled().await;
    cable.cut().await;
    assert_eq!(one.gone().await, DownReason::LinkLost);
    let mut cable = Cable::plug(&a, &b).await;
    let one = watch("work");
    settled().await;
    cable.ends[1].part.take().expect("once").send(CloseReason::Left).expect("runs");
    assert_eq!(one.gone().await, DownReason::NodeOffline);
    drop(serving);
    // In one's own node.
    let (serving, _) = work(&a);
    let one = a.watch(&offer("work"), &name(A)).expect("here");
    drop(serving);
    assert_eq!(one.gone().await, DownReason::Stopped);
    let none = a.watch(&offer("work"), &name(A)).expect("here");
    assert_eq!(none.gone().await, DownReason::NoSuchName);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_name_comes_behind_all_that_its_node_said_before() {
    let (a, b) = (exchange(A), exchange(B));
    let mut heard = a.subscribe(topic("t")).expect("few");
    let (serving, _) = work(&b);
    let _cable = Cable::plug(&b, &a).await;
    let watch = a.watch(&offer("work"), &name(B)).expect("linked");
    settled().await;
    let mut said = 0;
    while b.try_publish(&topic("t"), numbered(said, 5000)).expect("short").missed == 0 {
        said += 1;
    }
    drop(serving);
    assert_eq!(watch.gone().await, DownReason::Stopped);
    assert_eq!(numbers(&drained(&mut heard)), (0..said).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_dropped_is_forgotten_at_the_other_side() {
    let (a, b) = (exchange(A), exchange(B));
    let (_serving, _) = work(&b);
    let _cable = Cable::plug(&a, &b).await;
    let watches: Vec<_> =
        (0..50).map(|_| a.watch(&offer("work"), &name(B)).expect("linked")).collect();
    settled().await;
    let (here, there) =
        (a.topics.peer(&name(B)).expect("linked"), b.topics.peer(&name(A)).expect("linked"));
    assert_eq!((here.pending().open().1, there.pending().open().2), (50, 50));
    assert_eq!(b.calls.watchers(&offer("work")), 50);
    drop(watches);
    settled().await;
    assert_eq!((here.pending().open().1, there.pending().open().2), (0, 0));
    assert_eq!(b.calls.watchers(&offer("work")), 0);
    // Likewise a call whose caller went away.
    let caller = a.clone();
    let call =
        tokio::spawn(async move { caller.call(&to("work@b@127.0.0.1"), "sleep", LONG).await });
    settled().await;
    assert_eq!(here.pending().open().0, 1);
    call.abort();
    settled().await;
    assert_eq!(here.pending().open().0, 0);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_asks_and_never_reads_costs_a_bounded_number_of_answers() {
    let b = exchange(B);
    let running = Arc::new(AtomicUsize::new(0));
    let (count, reply) = (running.clone(), Bytes::from(vec![1; 100_000]));
    let _serving = b.serve(offer("big"), move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        std::future::ready(Ok(reply.clone()))
    });
    let mut raw = Raw::plug(&b, A, 1024).await;
    for call in 0..20_000 {
        let mut ask = Vec::new();
        crate::proto::talk::request(&mut ask, call, 86_400_000, &offer("big"));
        raw.send(Lane::Calls, &whole(&ask)).await;
    }
    settled().await;
    let served = running.load(Ordering::Relaxed);
    assert!(served <= (4 << 20) / 256 + 16, "{served} answers wait for room");
    let ping = Control::Ping(1).encode().expect("encodes");
    raw.send(Lane::Control, &ping).await;
    assert!(raw.end.runs());
}
