//! The router with a real exchange, and clients that are queues.

use crate::proto::channel::Payload;
use bytes::Bytes;
use serde_json::{Map, Value, json};
use std::time::Duration;

use super::outbox::{ClientOverflow, ClientQueue, Next};
use super::*;
use crate::actors::exchange::Exchange;
use crate::actors::news::tests::Wire;
use crate::actors::supervisor::{ActorTable, Root};
use crate::actors::tests::{PATIENCE, counted, name, run, settled, until};
use crate::proto::channel::{Dialect, Encoded, Frame, Json};
use crate::proto::event::Event;
use crate::proto::history::{Ask, LINGER};
use crate::proto::presence::listing::Sees;
use crate::proto::presence::{Body, Change};

mod history;
mod services;

const B: &str = "b@127.0.0.1";

pub(super) struct World {
    pub(super) bus: Bus,
    router: ChannelRouter,
    pub(super) publisher: Publisher,
    pub(super) metrics: Metrics,
    roster: ActorTable,
    _root: Root,
}

pub(super) async fn world() -> World {
    world_with(&[]).await
}

async fn world_with(history: &[&str]) -> World {
    let metrics = Metrics::default();
    let bus = Bus::new(&Exchange::new(name("a@127.0.0.1"), &metrics));
    let publisher = Publisher::new(bus.exchange());
    let router = ChannelRouter::new(&bus, &publisher, &metrics);
    let rules = history.iter().map(|text| text.parse().expect("a retention")).collect();
    let rules = Retentions::new(rules).expect("few");
    let peers = Peers::new(&metrics, []);
    let incarnation = Arc::new(AtomicU64::new(1));
    let (_stays, leaving) = watch::channel(false);
    let recorder = None;
    let (publisher_of, knows_others) = (publisher.clone(), false);
    let setup = Setup {
        incarnation,
        peers,
        rules,
        recorder,
        publisher: publisher_of,
        knows_others,
        leaving,
    };
    let (root, roster) = run(&metrics, vec![bus.child(), router.child(setup)]).await;
    World { bus, router, publisher, metrics, roster, _root: root }
}

pub(super) fn room() -> Topic {
    "room:1".parse().expect("valid")
}

/// One join of one client.
struct Client {
    id: u64,
    outbox: ClientQueue,
}

impl World {
    pub(super) fn member(&self, key: Option<&str>) -> Member {
        Member {
            holder: "u".into(),
            id: self.router.number(),
            join_ref: None,
            reference: None,
            dialect: Dialect::V2,
            outbox: ClientQueue::new(512 << 10),
            slow: ClientOverflow::Disconnect,
            response: Map::new(),
            resume: None,
            history: None,
            presence: key.map(|key| (key.to_owned(), "{\"x\":1}".to_owned())),
            sees: key.map_or(Sees::Nothing, |_| Sees::State),
            greeting: None,
            intercept: None,
            ready: None,
        }
    }

    async fn enter(&self, member: Member) -> Client {
        let client = Client { id: member.id, outbox: member.outbox.clone() };
        assert!(self.router.join(room(), member).await, "joined");
        client
    }

    async fn resume(&self, cursor: &str) -> (Client, Value) {
        let resume = Some(cursor.to_owned());
        let client = self.enter(Member { resume, ..self.member(None) }).await;
        let (event, reply) = client.take().remove(0);
        assert_eq!(event, "phx_reply");
        (client, reply["response"].clone())
    }

    fn publish(&self, n: u64) {
        let payload = Payload::Json(Json::of(&json!({ "n": n })));
        self.publisher.publish(&room(), "say", &payload).expect("short");
    }
}

impl Client {
    /// What it got since it was asked last: events and payloads.
    fn take(&self) -> Vec<(String, Value)> {
        let mut frames = Vec::new();
        self.outbox.try_next(&mut frames);
        frames.iter().map(frame_parts).collect()
    }

    fn is_closed(&self) -> bool {
        matches!(self.outbox.try_next(&mut Vec::new()), Some(Next::Close(_)))
    }
}

fn whole(frame: &Encoded) -> Frame {
    let text = match frame {
        Encoded::Text(text) => text.clone(),
        Encoded::Parts(first, second) => [&first[..], &second[..]].concat().into(),
        Encoded::Binary(_) => panic!("{frame:?}"),
    };
    Frame::text(Dialect::V2, &text).expect("a frame")
}

fn frame_parts(frame: &Encoded) -> (String, Value) {
    let frame = whole(frame);
    let Payload::Json(payload) = frame.payload else { panic!("JSON") };
    (frame.event, payload.decode().expect("JSON"))
}

fn message(n: u64) -> (String, Value) {
    ("say".to_owned(), json!({ "n": n }))
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().map(|keys| keys.keys().map(String::as_str).collect()).unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn members_get_the_reply_and_then_what_is_published() {
    let world = world().await;
    let greeting: Greeting = Box::new(|| vec![("hello", Payload::Json(Json::empty()))]);
    let member = Member { greeting: Some(greeting), ..world.member(None) };
    let (one, two) = (world.enter(member).await, world.enter(world.member(None)).await);
    world.publish(1);
    world.bus.exchange().publish_here(&room(), "{\"plain\":true}").expect("short");
    settled().await;
    let events: Vec<_> = one.take().into_iter().map(|(event, _)| event).collect();
    assert_eq!(events, ["phx_reply", "hello", "say", "message"]);
    assert_eq!(
        two.take().get(1..),
        Some(&[message(1), ("message".into(), json!({ "plain": true }))][..])
    );
    world.router.leave(room(), one.id);
    settled().await;
    world.publish(2);
    settled().await;
    assert_eq!((one.take(), two.take()), (vec![], vec![message(2)]));
}

#[tokio::test(start_paused = true)]
async fn who_is_too_slow_is_let_go_and_nobody_else() {
    let world = world().await;
    let (stuck, other) =
        (world.enter(world.member(None)).await, world.enter(world.member(None)).await);
    let payload = Payload::Binary(Bytes::from(vec![0; 64 * 1024]));
    for _ in 0..16 {
        world.publisher.publish(&room(), "blob", &payload).expect("short");
        settled().await;
        other.outbox.try_next(&mut Vec::new());
    }
    assert!(stuck.is_closed() && !other.is_closed());
    assert!(counted(&world.metrics, "channel_events", "dropped_slow") > 0);
}

#[tokio::test(start_paused = true)]
async fn members_see_who_is_there_and_who_comes_and_goes() {
    let world = world().await;
    let anna = world.enter(world.member(Some("anna"))).await;
    settled().await;
    let first = anna.take();
    let [_reply, (event, state)] = &first[..] else { panic!("{first:?}") };
    assert_eq!((event.as_str(), keys(state)), ("presence_state", vec!["anna"]));
    assert!(state["anna"]["metas"][0]["phx_ref"].is_string());
    assert_eq!(state["anna"]["metas"][0]["x"], 1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let ben = world.enter(world.member(Some("ben"))).await;
    settled().await;
    assert_eq!(keys(&ben.take()[1].1), ["anna", "ben"], "the state has its own entry");
    let diff = anna.take();
    let [(event, diff)] = &diff[..] else { panic!("{diff:?}") };
    assert_eq!((event.as_str(), keys(&diff["joins"])), ("presence_diff", vec!["ben"]));
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.router.leave(room(), ben.id);
    // Who comes and goes at once is not worth a word.
    let carl = world.enter(world.member(Some("carl"))).await;
    world.router.leave(room(), carl.id);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let diffs = anna.take();
    assert!(diffs.iter().any(|(_, diff)| keys(&diff["leaves"]) == ["ben"]), "{diffs:?}");
}

#[tokio::test(start_paused = true)]
async fn an_update_is_told_as_one_and_counts_to_those_that_want_no_more() {
    let world = world().await;
    let anna = world.enter(world.member(Some("anna"))).await;
    let count = world.enter(Member { sees: Sees::Count, ..world.member(Some("ben")) }).await;
    let unseen = world.enter(Member { sees: Sees::State, ..world.member(None) }).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let first = anna.take();
    assert_eq!(count.take()[1..], [("presence_count".to_owned(), json!({ "count": 2 }))]);
    assert_eq!(keys(&unseen.take()[1].1), ["anna", "ben"]);
    let updated = world.router.update(anna.id, "{\"x\":2}".to_owned()).await;
    assert_eq!(updated, Ok(Ok(())));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let [(event, diff)] = &anna.take()[..] else { panic!("one change") };
    let (joined, left) = (&diff["joins"]["anna"]["metas"][0], &diff["leaves"]["anna"]["metas"][0]);
    assert_eq!((event.as_str(), &joined["x"], &left["x"]), ("presence_diff", &2.into(), &1.into()));
    assert_eq!(joined["phx_ref_prev"], first[1].1["anna"]["metas"][0]["phx_ref"]);
    assert_eq!(joined["phx_ref_prev"], left["phx_ref"]);
    assert_eq!((count.take(), unseen.take().len()), (vec![], 1));
    let refused = [
        (anna.id, "[]", PresenceError::Meta),
        (unseen.id, "{}", PresenceError::Unknown),
        (1 << 60, "{}", PresenceError::Unknown),
    ];
    for (id, meta, why) in refused {
        assert_eq!(world.router.update(id, meta.to_owned()).await, Ok(Err(why)));
    }
    assert_eq!(counted(&world.metrics, "channel_events", "presence_refused"), 3);
    world.router.leave(room(), anna.id);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(count.take(), [("presence_count".to_owned(), json!({ "count": 1 }))]);
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_opens_asks_each_linked_node_once() {
    let world = world().await;
    let mut wire = Wire::open(&world.bus, B);
    settled().await;
    world.enter(world.member(None)).await;
    assert_eq!(wire.requests("xpando:channels"), 1);
}

#[tokio::test(start_paused = true)]
async fn the_users_of_a_node_that_is_gone_leave() {
    let world = world().await;
    let wire = Wire::open(&world.bus, B);
    let anna = world.enter(world.member(Some("anna"))).await;
    let epoch = Epoch { life: Incarnation(1), boot: 1 };
    let body = Body { topic: room(), key: "zoe".into(), meta: "{}".into(), previous: None };
    let word = Word::Delta { epoch, after: 0, changes: vec![Change::Joined(body)] };
    wire.deliver(Topic::channel_presence(), codec::encode(&word).expect("encodes"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let joined = anna.take();
    assert!(
        joined.iter().any(|(_, it)| keys(it).contains(&"zoe") || keys(&it["joins"]) == ["zoe"]),
        "{joined:?}"
    );
    wire.close();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(anna.take().is_empty(), "a link may come back at once");
    let reason = crate::proto::event::Reason::Crashed;
    world.bus.announce(Event::PeerOffline { peer: name(B), reason });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let left = anna.take();
    assert!(left.iter().any(|(_, diff)| keys(&diff["leaves"]) == ["zoe"]), "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn who_comes_back_gets_what_it_missed() {
    let world = world().await;
    let (client, response) = world.resume("").await;
    assert_eq!(response["replayed"], 0);
    let start = response["seq"].as_str().expect("a cursor").to_owned();
    (1..=2).for_each(|n| world.publish(n));
    settled().await;
    let frame_parts = client.take();
    let seq = frame_parts[1].1["seq"].as_str().expect("a cursor").to_owned();
    assert_eq!(frame_parts[1].1["n"], 2);
    world.router.leave(room(), client.id);
    (3..=5).for_each(|n| world.publish(n));
    settled().await;
    for (cursor, missed) in [(&seq, &[3, 4, 5][..]), (&start, &[1, 2, 3, 4, 5])] {
        let member = Member { resume: Some(cursor.clone()), ..world.member(None) };
        let client = world.enter(member).await;
        let frame_parts = client.take();
        let replayed: Vec<_> =
            frame_parts[1..].iter().map(|(_, it)| it["n"].as_u64().unwrap()).collect();
        assert_eq!(replayed, missed);
        assert_eq!(frame_parts[0].1["response"], json!({ "replayed": missed.len() }));
        world.router.leave(room(), client.id);
    }
    for n in 0..600 {
        world.publish(n);
        settled().await;
    }
    let (_, response) = world.resume(&seq).await;
    assert_eq!(response["gap"], true, "the log is shorter than that");
    for cursor in ["no cursor", "a@127.0.0.1/1:99:0", &start] {
        assert_eq!(world.resume(cursor).await.1["gap"], true, "{cursor}");
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_else_says_where_a_message_stands() {
    let world = world().await;
    let member = || Member { resume: Some(String::new()), ..world.member(None) };
    let (victim, plain) = (world.enter(member()).await, world.enter(world.member(None)).await);
    let say = |text: &'static str| {
        let payload = Payload::Json(Json::read(Bytes::from_static(text.as_bytes())).expect("JSON"));
        world.publisher.publish(&room(), "say", &payload).expect("short");
    };
    world.publish(1);
    settled().await;
    let seq = |frame_parts: &[(String, Value)]| frame_parts.last().expect("one").1["seq"].clone();
    let first = seq(&victim.take());
    let ahead = first.as_str().expect("a cursor").replacen(":1:", ":4:", 1);
    for forged in [
        r#"{"n":2,"seq":"AHEAD"}"#,
        r#"{"seq":"AHEAD","n":3,"seq":"AHEAD"}"#,
        r#"{"n":4,"\u0073\u0065q":"AHEAD"}"#,
    ] {
        say(String::leak(forged.replace("AHEAD", &ahead)));
    }
    settled().await;
    let frame_parts = victim.take();
    assert_eq!(frame_parts.iter().map(|(_, it)| it["n"].clone()).collect::<Vec<_>>(), [2, 3, 4]);
    assert!(frame_parts.iter().all(|(_, it)| it["seq"] != ahead.as_str()), "{frame_parts:?}");
    assert_eq!(plain.take().pop().map(|(_, it)| it["n"].clone()), Some(4.into()));
    // What comes without an envelope has no number, and no say either.
    world.bus.exchange().publish_here(&room(), format!("{{\"seq\":\"{ahead}\"}}")).expect("short");
    settled().await;
    assert_eq!(victim.take(), [("message".to_owned(), json!({}))]);
    // Who goes on from what it was frame_parts misses nothing; a forged place is a gap.
    world.router.leave(room(), victim.id);
    (5..=7).for_each(|n| world.publish(n));
    settled().await;
    let (_, response) = world.resume(seq(&frame_parts).as_str().expect("a cursor")).await;
    assert_eq!(response["replayed"], 3);
    assert_eq!(world.resume(&ahead).await.1["gap"], true);
}

#[tokio::test(start_paused = true)]
async fn what_is_for_one_join_has_its_reference() {
    let world = world().await;
    let join =
        Frame::text(Dialect::V2, &Bytes::from_static(b"[\"6\",\"6\",\"room:1\",\"phx_join\",{}]"));
    let join_ref = join.expect("a frame").join_ref;
    assert!(join_ref.is_some());
    let member = |resume: &str| Member {
        join_ref: join_ref.clone(),
        resume: Some(resume.to_owned()),
        greeting: Some(Box::new(|| vec![("hello", Payload::Json(Json::empty()))])),
        ..world.member(Some("anna"))
    };
    let frames = |client: &Client| {
        let mut frames = Vec::new();
        client.outbox.try_next(&mut frames);
        frames.iter().map(whole).collect::<Vec<_>>()
    };
    let first = world.enter(member("")).await;
    world.publish(1);
    world.publish(2);
    settled().await;
    let frame_parts = frames(&first);
    let seq =
        frame_parts.iter().find(|frame| frame.event == "say").map(|frame| match &frame.payload {
            Payload::Json(json) => json.decode::<Value>().expect("JSON")["seq"].clone(),
            Payload::Binary(_) => panic!("JSON"),
        });
    let again = world.enter(member(seq.expect("one").as_str().expect("a cursor"))).await;
    settled().await;
    for frame in frame_parts.iter().chain(&frames(&again)) {
        let all =
            frame.event == "presence_diff" || frame_parts.contains(frame) && frame.event == "say";
        assert_eq!(frame.join_ref.is_none(), all, "{frame:?}");
    }
    let events: Vec<_> = frame_parts.iter().map(|frame| frame.event.as_str()).collect();
    assert_eq!(events, ["phx_reply", "hello", "presence_state", "say", "say"]);
}

#[tokio::test(start_paused = true)]
async fn a_topic_without_members_ends_after_a_while() {
    let world = world().await;
    let client = world.enter(world.member(None)).await;
    let heard =
        |world: &World| world.bus.exchange().publish_here(&room(), "{}").expect("short").local;
    world.router.leave(room(), client.id);
    tokio::time::sleep(LINGER - Duration::from_secs(1)).await;
    assert_eq!(heard(&world), 1, "who comes back finds what it missed");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(heard(&world), 0);
    let again = world.enter(world.member(None)).await;
    world.publish(1);
    settled().await;
    assert_eq!(again.take().get(1), Some(&message(1)));
}

#[tokio::test(start_paused = true)]
async fn of_the_topics_in_which_nothing_was_said_few_wait_for_members() {
    let world = world().await;
    let topics: Vec<Topic> =
        (0..1_100).map(|n| format!("room:{n}").parse().expect("valid")).collect();
    for topic in &topics {
        let member = world.member(None);
        let id = member.id;
        assert!(world.router.join(topic.clone(), member).await);
        world.router.leave(topic.clone(), id);
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let exchange = world.bus.exchange();
    let heard = |topic: &&Topic| exchange.publish_here(topic, "{}").expect("short").local == 1;
    assert_eq!(topics.iter().filter(heard).count(), 1_000);
}

#[tokio::test]
async fn after_a_crash_members_are_told_to_join_again() {
    let world = world().await;
    let client = world.enter(world.member(Some("anna"))).await;
    let mut frame_parts = Vec::new();
    until("the first state", || {
        frame_parts.extend(client.take());
        frame_parts.len() == 2
    })
    .await;
    assert!(world.roster.kill("channel_router"));
    until("frame_parts", || {
        frame_parts.extend(client.take());
        frame_parts.last().is_some_and(|(event, _)| event == "phx_error")
    })
    .await;
    let joining = async {
        loop {
            let member = world.member(None);
            let (id, outbox) = (member.id, member.outbox.clone());
            if world.router.join(room(), member).await {
                return Client { id, outbox };
            }
            tokio::task::yield_now().await;
        }
    };
    let again = tokio::time::timeout(PATIENCE, joining).await.expect("joined again");
    world.publish(1);
    let mut heard = Vec::new();
    until("heard", || {
        heard.extend(again.take());
        heard.contains(&message(1))
    })
    .await;
}

#[cfg(feature = "gateway")]
#[tokio::test(start_paused = true)]
async fn who_says_something_to_others_is_not_told() {
    let world = world().await;
    let resuming = Member { resume: Some(String::new()), ..world.member(None) };
    let (one, two) = (world.enter(resuming).await, world.enter(world.member(None)).await);
    settled().await;
    drop((one.take(), two.take()));
    let payload = Payload::Json(Json::of(&json!({ "n": 1 })));
    for from in [one.id, two.id] {
        world.publisher.publish_except(&room(), "say", &payload, from).expect("short");
    }
    settled().await;
    let told = one.take();
    let events: Vec<_> =
        told.iter().map(|(event, payload)| (event.as_str(), &payload["n"])).collect();
    assert_eq!(events, [("seq", &Value::Null), ("say", &json!(1))], "it stands behind its own");
    assert_eq!(two.take(), vec![message(1)]);
    // Who goes on from there has missed nothing.
    world.router.leave(room(), one.id);
    let last = told[0].1["seq"].as_str().expect("a cursor");
    assert_eq!(world.resume(last).await.1["replayed"], 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_intercepted_goes_to_its_channel_in_order_and_within_bounds() {
    let world = world().await;
    let (intercept, mut end) = Intercept::new();
    let member = Member { intercept: Some(intercept), ..world.member(None) };
    let client = world.enter(member).await;
    (1..=3).for_each(|n| world.publish(n));
    settled().await;
    let events: Vec<_> = client.take().into_iter().map(|(event, _)| event).collect();
    assert_eq!(events, ["phx_reply"], "nothing goes past the channel");
    for n in 1..=3 {
        let message = end.try_recv().expect("a message");
        assert_eq!(message.event(), Some("say"));
        assert_eq!(
            message.frames(message.payload()).iter().map(frame_parts).collect::<Vec<_>>(),
            [("say".to_owned(), json!({ "n": n }))]
        );
        assert_eq!(message.place(), None, "it is not told where messages stand");
    }
    // A channel that takes nothing costs its client the connection, not the node its memory.
    let long = Payload::Binary(Bytes::from(vec![0; 200_000]));
    for _ in 0..2 {
        world.publisher.publish(&room(), "blob", &long).expect("short");
    }
    settled().await;
    assert!(client.outbox.closed().is_none());
    world.publisher.publish(&room(), "blob", &long).expect("short");
    settled().await;
    assert!(client.outbox.closed().is_some());
}
