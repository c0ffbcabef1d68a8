//! Roles, topics and deeds in one table: no token of less right reaches what needs more, by any spelling.
//!
//! Who may do what is written here by hand, and nowhere computed.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::thread;

use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::kit::client::runtime;
use crate::kit::http::head;
use crate::kit::socket::ClientSocket;
use crate::kit::{Cluster, Node};

const UPDATES: &str = "network:updates";
const OF_NODE: &str = "node:a@127.0.0.1";
const BEATS: &str = "node:heartbeat";
/// The same under another prefix.
const HQ: &str = "hq:updates";
const OPS: &str = "ops:a@127.0.0.1";
const OPS_BEATS: &str = "ops:heartbeat";
/// What every topic with an owner is reached by.
const TOPICS: [&str; 9] =
    ["room:1", "room:2", "lobby:1", UPDATES, OF_NODE, BEATS, HQ, OPS, OPS_BEATS];
const ROOMS: &[&str] = &["room:1", "room:2"];
const OF_NODES: &[&str] = &[UPDATES, OF_NODE, BEATS];
const USERS: &[&str] = &["room:1", "room:2", "lobby:1"];
/// By which families the node serves them.
const CHANNELS: &str = "lobby:*=room,hq:*=network,ops:*=node";
/// Other spellings, which are topics of nobody, whoever asks.
const SPELLED: [&str; 30] = [
    "hq:other",
    "hq:",
    "HQ:updates",
    "ops:nobody",
    "ops:*",
    "network",
    "network:",
    "network:Updates",
    "NETWORK:updates",
    "network:updates ",
    " network:updates",
    "network:updates\u{0}",
    "network\u{ff1a}updates",
    "network%3Aupdates",
    "network:*",
    "node:",
    "node:*",
    "Node:a@127.0.0.1",
    "node\u{200b}:a@127.0.0.1",
    "n\u{435}twork:updates",
    "ne\u{301}twork:updates",
    "network:updates:",
    "network::updates",
    ":network:updates",
    "network:updates/",
    "hq:updates:",
    "node:heartbeat:",
    "%6eode:heartbeat",
    "phoenix",
    "*",
];
/// What looks like room:1, and is another room or nobody's topic.
const LIKE_ROOM: [&str; 12] = [
    "room:*",
    "room:1*",
    "room:1:",
    "room:1:*",
    "room:",
    "room:%31",
    "room%3A1",
    "Room:1",
    "room:\u{ff11}",
    "room:1\u{200b}",
    "r\u{43e}om:1",
    "room:1 ",
];

/// A token, and what its bearer may.
struct Bearer {
    role: &'static str,
    grants: &'static [&'static str],
    joins: &'static [&'static str],
    pushes: &'static [&'static str],
    reads: bool,
    changes: bool,
}

const fn bearer(
    (role, grants): (&'static str, &'static [&'static str]),
    joins: &'static [&'static str],
    pushes: &'static [&'static str],
    (reads, changes): (bool, bool),
) -> Bearer {
    Bearer { role, grants, joins, pushes, reads, changes }
}

const TABLE: [Bearer; 17] = [
    bearer(("user", &[]), USERS, USERS, (false, false)),
    bearer(("user", &["*"]), USERS, USERS, (false, false)),
    bearer(("user", &["hq:*", HQ, "ops:*", OPS, OPS_BEATS]), &[], &[], (false, false)),
    bearer(("node_operator", &["hq:*=join"]), &[HQ], &[], (false, false)),
    bearer(("node_operator", &["ops:*"]), &[OPS, OPS_BEATS], &[OPS, OPS_BEATS], (false, false)),
    bearer(("user", &["room:1"]), &["room:1"], &["room:1"], (false, false)),
    bearer(("user", &["room:1=join"]), &["room:1"], &[], (false, false)),
    bearer(("user", &["network:*", "node:*", UPDATES]), &[], &[], (false, false)),
    bearer(("node_operator", &[]), &TOPICS, &TOPICS, (true, false)),
    bearer(("node_operator", &["room:*"]), ROOMS, ROOMS, (false, false)),
    bearer(("node_operator", &["network:*=join"]), &[UPDATES], &[], (true, false)),
    bearer(("node_operator", &["node:*"]), &[OF_NODE, BEATS], &[OF_NODE, BEATS], (false, false)),
    bearer(("admin", &[]), &TOPICS, &TOPICS, (true, true)),
    bearer(("admin", &["*"]), &TOPICS, &TOPICS, (true, true)),
    bearer(("admin", &["*=join"]), &TOPICS, &[], (true, false)),
    bearer(("admin", &["room:1"]), &["room:1"], &["room:1"], (false, false)),
    bearer(("admin", &["network:*", "node:*"]), OF_NODES, OF_NODES, (true, false)),
];

impl Bearer {
    fn token(&self, cluster: &Cluster) -> String {
        token(cluster, self.role, self.grants)
    }
}

/// A token of x.
fn token(cluster: &Cluster, role: &str, grants: &[&str]) -> String {
    let create = ["token", "create", "--sub", "x", "--role", role, "--certs", "certs"];
    let grants = grants.iter().flat_map(|grant| ["--topics", grant]);
    let args: Vec<&str> = create.into_iter().chain(grants).collect();
    cluster.print(&args).trim().to_owned()
}

/// Where a client without a token is let in with one in its joins.
async fn guest(node: &Node, token: &str) -> BTreeSet<&'static str> {
    let (mut joined, mut socket) = (BTreeSet::new(), ClientSocket::open(node, None).await);
    for (at, topic) in TOPICS.into_iter().chain(SPELLED).enumerate() {
        let answer = socket.asks(at as u64, topic, "phx_join", json!({ "token": token })).await;
        if answer == "ok" {
            joined.insert(topic);
        }
    }
    joined
}

/// Where a client that polls is let in.
fn polled(node: &Node, token: &str) -> BTreeSet<&'static str> {
    let bearer = format!("Bearer {token}");
    let path = "/socket/longpoll?vsn=2.0.0";
    let poll = |session: &str| {
        node.asks(&format!("GET {path}&token={session}"), &[("Authorization", &bearer)]).json()
    };
    let session = |answer: &Value| answer["token"].as_str().unwrap().to_owned();
    let mut taken = session(&poll(""));
    let topics: Vec<&str> = TOPICS.into_iter().chain(SPELLED).collect();
    let frames = topics.iter().enumerate().map(|(at, topic)| {
        let at = at.to_string();
        json!([at, at, topic, "phx_join", {}]).to_string()
    });
    let body = frames.collect::<Vec<_>>().join("\n");
    let length = body.len().to_string();
    let headers = [("Content-Type", "application/x-ndjson"), ("Content-Length", &*length)];
    let mut posted = node.request(&format!("POST {path}&token={taken}"), &headers);
    posted.get_mut().write_all(body.as_bytes()).unwrap();
    assert_eq!(head(&mut posted).status, 200);
    let (mut joined, mut answers) = (BTreeSet::new(), 0);
    while answers < topics.len() {
        let answer = poll(&taken);
        taken = session(&answer);
        for message in answer["messages"].as_array().into_iter().flatten() {
            let frame: Value = serde_json::from_str(message.as_str().unwrap()).unwrap();
            if frame[3] == "phx_reply" {
                answers += 1;
                let topic = topics.iter().find(|topic| frame[2] == **topic).unwrap();
                if frame[4]["status"] == "ok" {
                    joined.insert(*topic);
                }
            }
        }
    }
    joined
}

/// Where a bearer is let in and may say something, of all topics and spellings.
async fn reached(node: &Node, token: &str) -> (BTreeSet<&'static str>, BTreeSet<&'static str>) {
    let (mut joined, mut pushed) = (BTreeSet::new(), BTreeSet::new());
    let mut socket = ClientSocket::open(node, Some(token)).await;
    for (at, topic) in TOPICS.into_iter().chain(SPELLED).enumerate() {
        let join = 100 + at as u64;
        let answer = socket.asks(join, topic, "phx_join", json!({})).await;
        if answer == "ok" {
            joined.insert(topic);
            let data = topic.starts_with("node:") || topic.starts_with("ops:");
            let event = if data { "data" } else { "say" };
            let answer = socket.asks(join, topic, event, json!({ "x": 1 })).await;
            assert!(["ok", "unauthorized"].contains(&answer.as_str()), "{topic}: {answer}");
            if answer == "ok" {
                pushed.insert(topic);
            }
        } else {
            assert!(["unauthorized", "unmatched topic"].contains(&answer.as_str()), "{answer}");
            // Without a join, and under the join of another topic, nothing is said there.
            for stolen in [join, join - 1] {
                let answer = socket.asks(stolen, topic, "say", json!({})).await;
                assert_eq!(answer, "unmatched topic", "{topic:?} by the join {stolen}");
            }
        }
    }
    (joined, pushed)
}

fn check(cluster: &Cluster, node: &Node, runtime: &Runtime, bearer: &Bearer) {
    let about = format!("{} {:?}", bearer.role, bearer.grants);
    let token = bearer.token(cluster);
    let (joined, pushed) = runtime.block_on(reached(node, &token));
    let set = |topics: &[&'static str]| topics.iter().copied().collect::<BTreeSet<_>>();
    assert_eq!(joined, set(bearer.joins), "{about} joins");
    assert_eq!(pushed, set(bearer.pushes), "{about} says something");
    let by_join = runtime.block_on(guest(node, &token));
    assert_eq!(by_join, set(bearer.joins), "{about} joins with the token in its joins");
    assert_eq!(polled(node, &token), set(bearer.joins), "{about} joins by polling");

    let header = format!("Bearer {token}");
    let asks = |what: &str| node.asks(what, &[("Authorization", &header)]).status;
    for read in ["/api/status", "/api/nodes", "/api/topology", "/api/events", "/metrics"] {
        let expected = if bearer.reads { 200 } else { 403 };
        assert_eq!(asks(&format!("GET {read}")), expected, "{about}: {read}");
    }
    // A deed of which nothing comes: nobody is called so.
    for change in [
        "POST /api/nodes/x@127.0.0.1/disconnect",
        "POST /api/nodes/x@127.0.0.1/forget",
        "DELETE /api/nodes/x@127.0.0.1/forget",
    ] {
        assert_eq!(asks(change), if bearer.changes { 404 } else { 403 }, "{about}: {change}");
    }
    for other in [
        "GET /api//status",
        "GET /API/status",
        "GET /api/status/",
        "GET /api/./status",
        "GET /%61pi/status",
        "GET /api/st%61tus",
        "GET /api%2Fstatus",
        "GET /api/status%00",
        "POST /api//drain",
        "POST /api/drain/",
        "POST /API/drain",
        "POST /api/dr%61in",
        "PATCH /api/drain",
    ] {
        assert!(asks(other) >= 400, "{about}: {other}");
    }
    // The name of a node may be written in more ways; the right is the same.
    for change in
        ["POST /api/nodes/x%40127.0.0.1/disconnect", "POST /api/nodes/%78@127.0.0.1/forget"]
    {
        assert_eq!(asks(change), if bearer.changes { 404 } else { 403 }, "{about}: {change}");
    }
}

#[test]
fn no_token_of_less_right_reaches_what_needs_more() {
    let cluster = Cluster::new();
    let node = cluster.node("a").arg("--channels").arg(CHANNELS).start();
    let runtime = runtime();
    let (cluster, node, runtime) = (&cluster, &node, &runtime);
    // What is refused is answered late: they wait at the same time.
    thread::scope(|scope| {
        for bearer in &TABLE {
            scope.spawn(move || check(cluster, node, runtime, bearer));
        }
    });
}

#[test]
fn a_token_of_one_room_opens_no_other_by_any_spelling() {
    let cluster = Cluster::new();
    let node = cluster.node("a").start();
    let token = token(&cluster, "user", &["room:1"]);
    runtime().block_on(async {
        let mut socket = ClientSocket::open(&node, Some(&token)).await;
        for (at, topic) in LIKE_ROOM.into_iter().enumerate() {
            let answer = socket.asks(at as u64, topic, "phx_join", json!({})).await;
            assert_ne!(answer, "ok", "{topic:?}");
        }
        assert_eq!(socket.asks(99, "room:1", "phx_join", json!({})).await, "ok");
    });
}

/// A join that is renewed has the right of its new token; no other join has, and no later one.
#[test]
fn a_renewal_to_another_role_moves_no_other_right() {
    let cluster = Cluster::new();
    let node = cluster.node("a").start();
    let [user, operator, listener, elsewhere] = [
        ("user", &[][..]),
        ("node_operator", &[]),
        ("user", &["room:1=join"]),
        ("user", &["room:2"]),
    ]
    .map(|(role, grants)| token(&cluster, role, grants));
    runtime().block_on(async {
        let mut socket = ClientSocket::open(&node, Some(&user)).await;
        let renewal = |token: &str| json!({ "access_token": token });
        for (join, topic, event, payload, answer) in [
            (1, "room:1", "phx_join", json!({}), "ok"),
            (1, "room:1", "access_token", renewal(&operator), "ok"),
            // The socket's own token is still the user's, and the join is still the room's.
            (2, UPDATES, "phx_join", json!({}), "unauthorized"),
            (1, UPDATES, "say", json!({}), "unmatched topic"),
            (3, UPDATES, "phx_join", json!({ "token": operator }), "ok"),
            // Less right than the topic needs renews nothing; the join goes on with what it had.
            (3, UPDATES, "access_token", renewal(&user), "unauthorized"),
            (3, UPDATES, "say", json!({}), "ok"),
            (1, "room:1", "access_token", renewal(&elsewhere), "unauthorized"),
            (1, "room:1", "say", json!({}), "ok"),
            (1, "room:1", "access_token", renewal(&listener), "ok"),
            (1, "room:1", "say", json!({}), "unauthorized"),
            (1, "room:1", "access_token", renewal(&user), "ok"),
            (1, "room:1", "say", json!({}), "ok"),
            (4, BEATS, "phx_join", json!({}), "unauthorized"),
        ] {
            let found = socket.asks(join, topic, event, payload.clone()).await;
            assert_eq!(found, answer, "{topic} {event} {payload}");
        }
    });
}

/// What a bearer may do with its presence in a room: at the join, by a push, and with events that are the node's own.
#[test]
fn a_presence_says_something_only_where_its_bearer_may() {
    let cluster = Cluster::new();
    let node = cluster.node("a").start();
    let (invalid, bounded) = ("presence_invalid", json!({ "x": "x".repeat(1024) }));
    let listener = "fields of a presence need the right to push";
    let own = "node and online_at of a presence are the node's own";
    let malformed =
        "a presence has at most 1024 bytes and 64 levels, without phx_ref and phx_ref_prev";
    runtime().block_on(async {
        for (grant, speaks) in [("room:1=join", false), ("room:1", true)] {
            let create = ["token", "create", "--sub", "x", "--topics", grant, "--certs", "certs"];
            let token = cluster.print(&create).trim().to_owned();
            let mut socket = ClientSocket::open(&node, Some(&token)).await;
            let may = |why: &'static str| if speaks { "ok" } else { why };
            let invalid_before = node.counter("xpando_channel_events_total", invalid);
            for (params, answer) in [
                (json!({ "presence": { "name": "Ann" } }), may(listener)),
                (json!({ "presence": "count", "presence_meta": { "name": "Ann" } }), may(listener)),
                (json!({ "presence": {} }), "ok"),
                (json!({ "presence": { "node": "b@h" } }), if speaks { own } else { listener }),
                (json!({ "presence": bounded }), if speaks { malformed } else { listener }),
                (json!({ "presence": "count" }), "ok"),
                (json!({}), "ok"),
            ] {
                assert_eq!(
                    socket.asks(1, "room:1", "phx_join", params.clone()).await,
                    answer,
                    "{params}"
                );
            }
            let refused = node.counter("xpando_channel_events_total", invalid) - invalid_before;
            assert_eq!(refused, if speaks { 2 } else { 4 });
            for (fields, answer) in [
                (json!({ "name": "Ann" }), may("unauthorized")),
                (json!({}), may("unauthorized")),
                (json!({ "online_at": 1 }), if speaks { own } else { "unauthorized" }),
                (json!({ "phx_ref": "x" }), if speaks { malformed } else { "unauthorized" }),
            ] {
                let said = socket.asks(1, "room:1", "presence_meta", fields.clone()).await;
                assert_eq!(said, answer, "{fields}");
            }
            for event in ["presence_state", "presence_diff", "presence_count", "token_expiring"] {
                assert_ne!(socket.asks(1, "room:1", event, json!({})).await, "ok", "{event}");
            }
            // Who is not seen has nothing to show.
            assert_eq!(
                socket.asks(1, "room:1", "phx_join", json!({ "presence": "off" })).await,
                "ok"
            );
            let unseen = socket.asks(1, "room:1", "presence_meta", json!({})).await;
            assert_eq!(unseen, if speaks { "this join is not seen" } else { "unauthorized" });
        }
    });
}
