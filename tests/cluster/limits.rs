//! What an operator lets clients do and have: each limit on a real node, by a real socket.

use serde_json::json;

use crate::kit::http::token;
use crate::kit::socket::ClientSocket;
use crate::kit::{Cluster, Node};

const ROOM: &str = "room:1";

fn limited(cluster: &Cluster, limits: &[&str]) -> Node {
    let node = cluster.node("a").arg("--allow-anonymous").arg("room:*");
    limits.iter().fold(node, |node, limit| node.arg("--limit").arg(limit)).start()
}

async fn joined(node: &Node, token: Option<&str>) -> ClientSocket {
    let mut socket = ClientSocket::open(node, token).await;
    assert_eq!(socket.asks(1, ROOM, "phx_join", json!({})).await, "ok");
    socket
}

#[test]
fn who_sends_too_much_is_told_and_who_goes_on_is_closed_while_others_are_served() {
    let cluster = Cluster::new();
    // A join and 19 pushes; one comes back in fifty seconds.
    let node = limited(&cluster, &["anonymous.frames=1/20"]);
    let refused = node.counter("xpando_clients_refused_total", "rate_limited");
    crate::kit::client::runtime().block_on(async {
        let mut fast = joined(&node, None).await;
        let mut other = joined(&node, None).await;
        let operator = token(&cluster, "user");
        let mut user = joined(&node, Some(&operator)).await;
        let mut sent = Vec::new();
        for n in 0..100 {
            sent.push(fast.says(1, ROOM, "say", &json!({ "n": n })).await);
        }
        let mut verdicts = Vec::new();
        let closed = loop {
            let Some(reference) = sent.get(verdicts.len()) else { panic!("never closed") };
            match fast.answered(reference).await {
                Ok(verdict) => verdicts.push(verdict),
                Err(closed) => break closed,
            }
        };
        assert_eq!(closed, (1008, "rate limited".to_owned()));
        // All that was answered before the close is told before it.
        assert!(verdicts.len() >= 39, "{verdicts:?}");
        let limited = verdicts.iter().position(|it| it == "rate limited").unwrap();
        assert!(verdicts[..limited].iter().all(|it| it == "ok"), "{verdicts:?}");
        assert!(verdicts[limited..].iter().all(|it| it == "rate limited"), "{verdicts:?}");
        // Neither another client of the same address nor one of another role is held to it.
        assert_eq!(other.asks(1, ROOM, "say", json!({})).await, "ok");
        for n in 0..100 {
            assert_eq!(user.asks(1, ROOM, "say", json!({ "n": n })).await, "ok");
        }
    });
    let refused_later = node.counter("xpando_clients_refused_total", "rate_limited");
    assert!(refused_later >= refused + 21, "{refused_later}");
    node.counts("xpando_channel_events_total", "closed_rate", 0);
}

#[test]
fn who_polls_and_sends_too_much_reads_that_before_its_session_ends() {
    let cluster = Cluster::new();
    let node = limited(&cluster, &["anonymous.frames=1/20"]);
    let path = "/socket/longpoll?vsn=2.0.0";
    let polls = |token: &str| node.asks(&format!("GET {path}&token={token}"), &[]).json();
    let opened = polls("");
    assert_eq!(opened["status"], 410, "{opened}");
    let next = |answer: &serde_json::Value| {
        answer["token"].as_str().map(|token| token.replace('+', "%2B"))
    };
    let mut token = next(&opened).unwrap();
    let mut frames = vec![json!(["1", "0", ROOM, "phx_join", {}])];
    frames.extend((1..100).map(|n| json!(["1", n.to_string(), ROOM, "say", { "n": n }])));
    let posted = node.posts(&format!("{path}&token={token}"), &frames).json();
    assert_eq!(posted["status"], 200);
    let mut limited = 0;
    let ended = loop {
        let polled = polls(&token);
        let messages = polled["messages"].as_array().unwrap();
        let texts = messages.iter().map(|it| it.as_str().unwrap());
        limited += texts.filter(|it| it.contains("rate limited")).count();
        if polled["status"] != 200 {
            break polled;
        }
        token = next(&polled).unwrap();
    };
    assert_eq!((&ended["status"], limited), (&json!(410), 20));
}

#[test]
fn joins_bytes_topics_frames_and_places_have_limits_of_their_own() {
    let cluster = Cluster::new();
    let limits = ["topics=3", "frame=4KiB", "clients=4", "user.joins=1/3", "admin.bytes=1KiB/3KiB"];
    let node = limited(&cluster, &limits);
    crate::kit::client::runtime().block_on(async {
        let user = token(&cluster, "user");
        let mut socket = ClientSocket::open(&node, Some(&user)).await;
        for at in 0..3 {
            let topic = format!("room:{at}");
            assert_eq!(socket.asks(at, &topic, "phx_join", json!({})).await, "ok");
        }
        assert_eq!(socket.asks(3, "room:3", "phx_join", json!({})).await, "rate limited");
        assert_eq!(socket.asks(0, "room:0", "say", json!({})).await, "ok", "no join");

        let mut anonymous = ClientSocket::open(&node, None).await;
        for at in 0..3 {
            let topic = format!("room:{at}");
            assert_eq!(anonymous.asks(at, &topic, "phx_join", json!({})).await, "ok");
        }
        let more = anonymous.asks(3, "room:3", "phx_join", json!({})).await;
        assert_eq!(more, "too many channels joined");
        let long = json!({ "text": "x".repeat(4 << 10) });
        let long = anonymous.asks(0, "room:0", "say", long).await;
        assert_eq!(long, "a frame has at most 4096 bytes");

        let admin = token(&cluster, "admin");
        let mut admin = joined(&node, Some(&admin)).await;
        let two = json!({ "text": "x".repeat(2 << 10) });
        assert_eq!(admin.asks(1, ROOM, "say", two.clone()).await, "ok");
        assert_eq!(admin.asks(1, ROOM, "say", two.clone()).await, "ok", "beyond by one frame");
        assert_eq!(admin.asks(1, ROOM, "say", two).await, "rate limited");

        assert_eq!(ClientSocket::refused(&node).await, 503);
    });
}

#[test]
fn a_limit_that_is_none_is_said_at_the_start() {
    let cluster = Cluster::new();
    for (limit, why) in [
        ("topics=0", "topics is from 1 to 10000"),
        ("frame=2MiB", "frame is from 1024 to 1048576"),
        ("boss.frames=1", "no such limit"),
        ("user.frames=often", "a rate is N or N/BURST"),
    ] {
        let args = ["--name", "x@127.0.0.1", "--no-beacon", "--limit", limit];
        let said = cluster.run(&args);
        let error = String::from_utf8_lossy(&said.stderr);
        assert!(said.status.code() == Some(2) && error.contains(why), "{limit}: {error}");
        assert!(error.contains(&format!("'{limit}' for '--limit")), "{error}");
    }
}
