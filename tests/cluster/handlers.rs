//! Channels of a service and those of every node, by real sockets: what each join keeps, what it is told and answered, how
//! it ends, and under which names a node's own families are served.

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::kit::client::runtime;
use crate::kit::{Cluster, Node, PATIENCE, free_address};

/// A client's socket, and what it was told that nobody has looked at.
struct Socket {
    stream: WebSocketStream<TcpStream>,
    /// `[join_ref, ref, topic, event, payload]` each.
    told: Vec<Value>,
    frames: u64,
}

impl Socket {
    async fn open(address: SocketAddr, token: &str) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let url = format!("ws://{address}/socket/websocket?vsn=2.0.0&token={token}");
        let stream = client_async(url, stream).await.unwrap().0;
        Self { stream, told: Vec::new(), frames: 0 }
    }

    /// Sends a frame of a join; its reference.
    async fn send(&mut self, join: &str, topic: &str, event: &str, payload: Value) -> String {
        self.frames += 1;
        let reference = self.frames.to_string();
        let frame = json!([join, reference, topic, event, payload]);
        self.stream.send(Message::text(frame.to_string())).await.unwrap();
        reference
    }

    /// Waits for a frame, which is taken out.
    async fn gets(&mut self, what: impl Fn(&Value) -> bool) -> Value {
        loop {
            if let Some(at) = self.told.iter().position(&what) {
                return self.told.remove(at);
            }
            match tokio::time::timeout(PATIENCE, self.stream.next()).await {
                Ok(Some(Ok(Message::Text(text)))) => {
                    self.told.push(serde_json::from_str(&text).unwrap());
                }
                other => panic!("{other:?} after {:?}", self.told),
            }
        }
    }

    /// The answer to a frame: its status and response.
    async fn answer(&mut self, reference: &str) -> (String, Value) {
        let is = |frame: &Value| frame[1] == reference && frame[3] == "phx_reply";
        let mut frame = self.gets(is).await;
        let status = frame[4]["status"].as_str().unwrap().to_owned();
        (status, frame[4]["response"].take())
    }

    async fn asks(
        &mut self,
        join: &str,
        topic: &str,
        event: &str,
        payload: Value,
    ) -> (String, Value) {
        let reference = self.send(join, topic, event, payload).await;
        self.answer(&reference).await
    }

    /// What a topic says by this event.
    async fn hears(&mut self, topic: &str, event: &str) -> Value {
        self.gets(|frame| frame[2] == topic && frame[3] == event).await[4].take()
    }
}

fn ok(response: Value) -> (String, Value) {
    ("ok".to_owned(), response)
}

fn error(reason: &str) -> (String, Value) {
    ("error".to_owned(), json!({ "reason": reason }))
}

fn token(cluster: &Cluster, topics: &str, more: &[&str]) -> String {
    let create = ["token", "create", "--sub", "ada", "--topics", topics, "--certs", "certs"];
    cluster.print(&[&create, more].concat()).trim().to_owned()
}

/// A node with the example's service beside it.
fn service(cluster: &Cluster) -> (Node, crate::kit::example::Running, SocketAddr) {
    let node = cluster.node("a").start();
    let address = free_address();
    let running = cluster.example("channels").start("s", &node, &[&address.to_string()]);
    node.sees("s", "online");
    (node, running, address)
}

#[test]
fn each_join_of_a_service_has_a_state_and_an_end_of_its_own() {
    let cluster = Cluster::new();
    let (_node, service, address) = service(&cluster);
    let (ada, short) =
        (token(&cluster, "test:*", &[]), token(&cluster, "test:*", &["--ttl", "3s"]));
    runtime().block_on(async {
        let mut one = Socket::open(address, &ada).await;
        for (join, topic) in [("1", "test:1"), ("2", "test:2"), ("3", "test:3")] {
            let welcome = json!({ "welcome": "ada", "params": {} });
            assert_eq!(one.asks(join, topic, "phx_join", json!({})).await, ok(welcome));
        }
        for n in 1..=3 {
            assert_eq!(one.asks("1", "test:1", "count", json!({})).await, ok(json!({ "sent": n })));
        }
        assert_eq!(one.asks("2", "test:2", "count", json!({})).await, ok(json!({ "sent": 1 })));
        assert_eq!(one.asks("1", "test:1", "fail", json!({})).await, error("as you wish"));
        // A join that panics is over, and no other: what it kept is gone.
        one.send("2", "test:2", "crash", json!({})).await;
        assert_eq!(one.hears("test:2", "phx_error").await, json!({ "reason": "channel_crash" }));
        assert_eq!(one.asks("1", "test:1", "count", json!({})).await, ok(json!({ "sent": 5 })));
        one.asks("4", "test:2", "phx_join", json!({})).await;
        assert_eq!(one.asks("4", "test:2", "count", json!({})).await, ok(json!({ "sent": 1 })));
        // The four ways in which a join ends, each of which its channel is told.
        one.send("4", "test:2", "close", json!({})).await;
        assert_eq!(one.hears("test:2", "phx_close").await, json!({}));
        assert_eq!(one.asks("4", "test:2", "count", json!({})).await, error("unmatched topic"));
        assert_eq!(one.asks("1", "test:1", "phx_leave", json!({})).await, ok(json!({})));
        let mut two = Socket::open(address, &short).await;
        assert_eq!(two.asks("1", "test:4", "phx_join", json!({})).await.0, "ok");
        assert_eq!(two.hears("test:4", "phx_error").await, json!({ "reason": "token expired" }));
        // Joined anew, and then the connection is lost.
        one.asks("5", "test:3", "phx_join", json!({})).await;
        assert_eq!(one.asks("5", "test:3", "count", json!({})).await, ok(json!({ "sent": 1 })));
        drop(one.stream);
        // By then the loss has been noticed: who is present is told.
        let mut three = Socket::open(address, &ada).await;
        three.asks("1", "test:3", "phx_join", json!({})).await;
        let present = three.hears("test:3", "presence_state").await;
        let mut gone = present["ada"]["metas"].as_array().unwrap().len() == 1;
        while !gone {
            gone = three.hears("test:3", "presence_diff").await["leaves"]["ada"].is_object();
        }
    });
    let printed = service.stop();
    for line in [
        "test:2 ended after 2 events: Closed",
        "test:1 ended after 5 events: Left",
        "test:4 ended after 0 events: Expired",
        "test:3 ended after 0 events: Left",
        "test:3 ended after 1 events: Disconnected",
    ] {
        assert!(printed.lines().any(|printed| printed == line), "{line} of\n{printed}");
    }
    let second = printed.lines().filter(|line| line.starts_with("test:2")).count();
    assert_eq!(second, 1, "what has panicked is not told its end:\n{printed}");
}

#[test]
fn a_service_answers_when_it_likes_and_hears_of_other_topics() {
    let cluster = Cluster::new();
    let (node, service, address) = service(&cluster);
    let ada = token(&cluster, "test:*", &[]);
    runtime().block_on(async {
        let mut one = Socket::open(address, &ada).await;
        one.asks("1", "test:1", "phx_join", json!({})).await;
        let held = one.send("1", "test:1", "hold", json!({})).await;
        assert_eq!(one.asks("1", "test:1", "count", json!({})).await, ok(json!({ "sent": 2 })));
        assert!(!one.told.iter().any(|frame| frame[1] == held.as_str()), "{:?}", one.told);
        one.asks("1", "test:1", "release", json!({ "x": 7 })).await;
        assert_eq!(one.answer(&held).await, ok(json!({ "x": 7 })));
        // What is let go of is answered, too.
        let held = one.send("1", "test:1", "hold", json!({})).await;
        one.asks("1", "test:1", "forget", json!({})).await;
        assert_eq!(one.answer(&held).await, error("not answered"));

        let mut two = Socket::open(address, &ada).await;
        two.asks("9", "test:1", "phx_join", json!({})).await;
        let followed = one.asks("1", "test:1", "follow", json!({ "topic": "news:1" })).await;
        assert_eq!(followed, ok(json!({})));
        // The other node hears soon who wants it.
        crate::kit::until("a subscriber of news:1", || {
            let sent = node.ask(&["publish", "news:1", "hello"])?;
            if sent.contains("and 0 other") { Err(sent) } else { Ok(()) }
        });
        let news = one.gets(|frame| frame[3] == "news").await;
        let told = json!({ "topic": "news:1", "from": "a@127.0.0.1", "text": "hello" });
        assert_eq!(news, json!(["1", null, "test:1", "news", told]));
        // It is the join's own: nobody else's on the topic.
        assert_eq!(two.asks("9", "test:1", "count", json!({})).await, ok(json!({ "sent": 1 })));
        assert!(!two.told.iter().any(|frame| frame[3] == "news"), "{:?}", two.told);
        // What it hears may end it, after what it was told before.
        node.ask(&["publish", "news:1", "over"]).unwrap();
        assert_eq!(one.hears("test:1", "news").await["text"], "over");
        assert_eq!(one.hears("test:1", "phx_close").await, json!({}));
        assert_eq!(one.asks("1", "test:1", "count", json!({})).await, error("unmatched topic"));
        assert_eq!(two.asks("9", "test:1", "count", json!({})).await, ok(json!({ "sent": 2 })));
    });
    let printed = service.stop();
    assert!(printed.contains("test:1 ended after 6 events: Closed"), "{printed}");
}

#[test]
fn a_service_knows_what_the_renewed_token_of_a_join_says() {
    let cluster = Cluster::new();
    let (_node, service, address) = service(&cluster);
    let (user, chief) =
        (token(&cluster, "test:*", &[]), token(&cluster, "test:*", &["--role", "admin"]));
    runtime().block_on(async {
        let mut one = Socket::open(address, &chief).await;
        for (join, topic) in [("1", "test:1"), ("2", "test:2")] {
            one.asks(join, topic, "phx_join", json!({})).await;
            assert_eq!(one.asks(join, topic, "role", json!({})).await.1["role"], "admin");
        }
        let renewal = json!({ "access_token": user });
        assert_eq!(one.asks("1", "test:1", "access_token", renewal).await, ok(json!({})));
        assert_eq!(one.asks("1", "test:1", "role", json!({})).await.1["role"], "user");
        assert_eq!(one.asks("2", "test:2", "role", json!({})).await.1["role"], "admin");
    });
    service.stop();
}

#[test]
fn what_is_told_to_others_passes_their_channels() {
    let cluster = Cluster::new();
    let (node, service, address) = service(&cluster);
    let far_address = free_address();
    let far = cluster.example("channels").start("t", &node, &[&far_address.to_string()]);
    node.sees("t", "online");
    let ada = token(&cluster, "*", &[]);
    runtime().block_on(async {
        let mut one = Socket::open(address, &ada).await;
        let mut two = Socket::open(address, &ada).await;
        let mut three = Socket::open(far_address, &ada).await;
        for socket in [&mut one, &mut two, &mut three] {
            assert_eq!(socket.asks("1", "test:1", "phx_join", json!({})).await.0, "ok");
        }
        // Not to itself; to others here and elsewhere. What follows shows that nothing is on its way any more.
        assert_eq!(one.asks("1", "test:1", "others", json!({ "n": 1 })).await, ok(json!({})));
        assert_eq!(one.asks("1", "test:1", "shout", json!({ "n": 2 })).await, ok(json!({})));
        assert_eq!(one.hears("test:1", "shout").await, json!({ "n": 2 }));
        assert!(!one.told.iter().any(|frame| frame[3] == "others"), "{:?}", one.told);
        for socket in [&mut two, &mut three] {
            assert_eq!(socket.hears("test:1", "others").await, json!({ "n": 1 }));
            assert_eq!(socket.hears("test:1", "shout").await, json!({ "n": 2 }));
        }

        // Each is told what its own join makes of it.
        one.asks("2", "veiled:1", "phx_join", json!({})).await;
        let (_, joined) = two.asks("2", "veiled:1", "phx_join", json!({ "last_seq": null })).await;
        assert_eq!(one.asks("2", "veiled:1", "aside", json!({ "n": 3 })).await, ok(json!({})));
        let aside = one.gets(|frame| frame[3] == "aside").await;
        let told = json!({ "said": { "n": 3 }, "sent": 1 });
        assert_eq!(aside, json!(["2", null, "veiled:1", "aside", told]), "it is this join's own");
        assert_eq!(one.asks("2", "veiled:1", "secret", json!({ "n": 4 })).await, ok(json!({})));
        assert_eq!(one.asks("2", "veiled:1", "shout", json!({ "n": 5 })).await, ok(json!({})));
        assert_eq!(one.hears("veiled:1", "secret").await, json!({ "n": 4 }));
        let seen = |payload: Value, sent: u64| {
            assert_eq!((&payload["said"]["n"], &payload["sent"]), (&json!(3), &json!(sent)));
            assert!(payload["seq"].is_string(), "{payload}");
        };
        seen(two.hears("veiled:1", "aside").await, 0);
        let withheld =
            two.gets(|frame| frame[2] == "veiled:1" && frame[3] != "presence_state").await;
        assert_eq!(withheld[3], "seq", "it stands behind what it was not told");
        assert_eq!(two.hears("veiled:1", "shout").await["n"], 5);
        assert!(!two.told.iter().any(|frame| frame[3] == "secret"), "{:?}", two.told);
        // What a client missed passes its channel, too.
        let from = json!({ "last_seq": joined["seq"] });
        assert_eq!(two.asks("3", "veiled:1", "phx_join", from).await.1["replayed"], 3);
        seen(two.hears("veiled:1", "aside").await, 0);
        assert_eq!(two.hears("veiled:1", "shout").await["n"], 5);
        assert!(!two.told.iter().any(|frame| frame[3] == "secret"), "{:?}", two.told);
    });
    far.stop();
    service.stop();
}

#[test]
fn a_node_serves_its_families_under_the_names_that_it_is_given() {
    let cluster = Cluster::new();
    let rules = "realtime:*=room,hq:*=network,ops:*=node,room:*=off,room:lobby=room";
    let node = cluster.node("a").arg("--channels").arg(rules).start();
    let user = token(&cluster, "*", &[]);
    let operator = token(&cluster, "*", &["--role", "node_operator"]);
    runtime().block_on(async {
        let mut one = Socket::open(node.http(), &user).await;
        assert_eq!(one.asks("1", "room:1", "phx_join", json!({})).await, error("unmatched topic"));
        assert_eq!(one.asks("2", "room:lobby", "phx_join", json!({})).await, ok(json!({})));
        // As supabase-js does it: frames of version 1.0.0, a prefix of its own, the token in the join.
        assert_eq!(one.asks("3", "realtime:any", "phx_join", json!({})).await, ok(json!({})));
        let stream = TcpStream::connect(node.http()).await.unwrap();
        let url = format!("ws://{}/socket/websocket?apikey=x&vsn=1.0.0", node.http());
        let mut other = client_async(url, stream).await.unwrap().0;
        let config = json!({
            "broadcast": { "ack": true, "self": false },
            "presence": { "key": "", "enabled": false },
            "postgres_changes": [],
            "private": false,
        });
        let join = json!({
            "topic": "realtime:any",
            "event": "phx_join",
            "payload": { "config": config, "access_token": user },
            "ref": "1",
            "join_ref": "1",
        });
        other.send(Message::text(join.to_string())).await.unwrap();
        let said = json!({ "type": "broadcast", "event": "cursor", "payload": { "x": 1 } });
        let push = json!({
            "topic": "realtime:any", "event": "broadcast", "payload": said, "ref": "2", "join_ref": "1",
        });
        other.send(Message::text(push.to_string())).await.unwrap();
        assert_eq!(one.hears("realtime:any", "broadcast").await, said);

        let mut olga = Socket::open(node.http(), &operator).await;
        assert_eq!(olga.asks("1", "hq:updates", "phx_join", json!({})).await, ok(json!({})));
        assert_eq!(olga.hears("hq:updates", "snapshot").await["status"]["name"], "a@127.0.0.1");
        assert!(olga.hears("hq:updates", "figures").await.is_object());
        let (status, view) = olga.asks("1", "hq:updates", "view", json!({})).await;
        assert_eq!(status, "ok", "{view}");
        assert_eq!(olga.asks("1", "hq:updates", "change", json!({})).await, error("reserved"));
        assert_eq!(olga.asks("2", "hq:other", "phx_join", json!({})).await, error("unmatched topic"));
        assert_eq!(olga.asks("3", "ops:heartbeat", "phx_join", json!({})).await, ok(json!({})));
        assert_eq!(olga.hears("ops:heartbeat", "heartbeat").await["node"], "a@127.0.0.1");
        assert_eq!(olga.asks("4", "ops:a@127.0.0.1", "phx_join", json!({})).await, ok(json!({})));
        assert_eq!(olga.hears("ops:a@127.0.0.1", "snapshot").await["status"], "online");
        let refused = olga.asks("4", "ops:a@127.0.0.1", "say", json!({})).await;
        assert_eq!(refused, error("only data can be sent here"));
        assert_eq!(one.asks("5", "hq:updates", "phx_join", json!({})).await, error("unauthorized"));
    });
}

#[test]
fn a_family_that_is_none_keeps_a_node_from_starting() {
    let cluster = Cluster::new();
    let ended = cluster.node("a").arg("--channels").arg("realtime:*=lobby").ends();
    ended.fails_with(2, &["\"lobby\" is no family: room, network, node or off is expected"]);
    let ended = cluster.node("b").arg("--channels").arg("realtime:*").ends();
    ended.fails_with(2, &["is not PATTERN=FAMILY, such as realtime:*=room"]);
}
