//! A topic's history: what joins ask for, over restarts of one node and of all, on a disk that is full or damaged, at a node that
//! was not there, and when a node leaves.

use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{Message, WebSocket, client};

use crate::kit::disk::Faults;
use crate::kit::{Cluster, Node, Start, linked, until};

/// Longer than anything that a client waits for.
const PATIENCE: Duration = Duration::from_secs(20);
const DISK: &str = "room:*=5000,1d,disk";

/// One client on one topic.
pub(crate) struct Member {
    socket: WebSocket<TcpStream>,
    topic: String,
    /// What it was told at its join.
    pub(crate) reply: Value,
    /// Where it stands.
    pub(crate) seq: Value,
}

impl Member {
    #[track_caller]
    fn join(node: &Node, topic: &str, params: &Value) -> Self {
        Self::asking(node, topic, params).joined()
    }

    /// One that has asked to join.
    pub(crate) fn asking(node: &Node, topic: &str, params: &Value) -> Self {
        let stream = TcpStream::connect(node.http()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let url = format!("ws://{}/socket/websocket?vsn=2.0.0", node.http());
        let (socket, _) = client(url, stream).unwrap();
        let mut member =
            Self { socket, topic: topic.to_owned(), reply: Value::Null, seq: Value::Null };
        member.send("1", "phx_join", params);
        member
    }

    #[track_caller]
    pub(crate) fn joined(mut self) -> Self {
        let (_, reply) = self.next("phx_reply");
        assert_eq!(reply["status"], "ok", "{reply}");
        self.reply = reply["response"].clone();
        self.seq = self.reply["seq"].clone();
        self
    }

    /// One that is told where each message stands.
    #[track_caller]
    pub(crate) fn numbered(node: &Node, topic: &str) -> Self {
        Self::join(node, topic, &json!({ "last_seq": null }))
    }

    fn send(&mut self, reference: &str, event: &str, payload: &Value) {
        let frame = json!(["1", reference, self.topic, event, payload]).to_string();
        self.socket.send(Message::text(frame)).unwrap();
    }

    /// The next frame of this event.
    #[track_caller]
    fn next(&mut self, event: &str) -> (String, Value) {
        loop {
            let frame = self.socket.read().unwrap().into_text().unwrap();
            let frame: Value = serde_json::from_str(&frame).unwrap();
            if frame[3] == event {
                return (event.to_owned(), frame[4].clone());
            }
        }
    }

    /// Tells the topic these numbers, and sees each come back.
    #[track_caller]
    pub(crate) fn says(&mut self, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            self.send("2", "say", &json!({ "n": number }));
            assert_eq!(self.hears(1), [number]);
        }
    }

    /// Likewise, each so many bytes long.
    #[track_caller]
    pub(crate) fn says_long(&mut self, numbers: impl IntoIterator<Item = u64>, bytes: usize) {
        let pad = "x".repeat(bytes);
        for number in numbers {
            self.send("2", "say", &json!({ "n": number, "pad": pad }));
            assert_eq!(self.hears(1), [number]);
        }
    }

    /// The numbers of so many messages.
    #[track_caller]
    pub(crate) fn hears(&mut self, many: usize) -> Vec<u64> {
        let one = |_| {
            let (_, message) = self.next("say");
            self.seq = message["seq"].clone();
            message["n"].as_u64().unwrap()
        };
        (0..many).map(one).collect()
    }
}

/// What a join is told and gets that asks for this.
#[track_caller]
pub(crate) fn asks(node: &Node, params: &Value) -> (Value, Vec<u64>) {
    asks_of(node, "room:1", params)
}

#[track_caller]
fn asks_of(node: &Node, topic: &str, params: &Value) -> (Value, Vec<u64>) {
    let mut member = Member::join(node, topic, params);
    let many = member.reply["replayed"].as_u64().unwrap_or(0);
    let mut reply = member.reply.clone();
    reply.as_object_mut().unwrap().remove("seq");
    (reply, member.hears(usize::try_from(many).unwrap()))
}

pub(crate) fn range(from: u64, to: u64) -> Vec<u64> {
    (from..=to).collect()
}

fn kept(cluster: &Cluster, name: &str) -> Start {
    cluster.node(name).arg("--allow-anonymous").arg("room:*").arg("--history").arg(DISK)
}

/// In the same place at each start.
fn stored(cluster: &Cluster, name: &str) -> Start {
    kept(cluster, name).data_dir(&cluster.path(name))
}

/// Two nodes that keep rooms on disk.
fn two(cluster: &Cluster) -> (Node, Node) {
    let a = stored(cluster, "a").start();
    let b = stored(cluster, "b").join(a.listen()).start();
    linked(&[&a, &b]);
    (a, b)
}

/// Three that keep them in memory.
fn three(cluster: &Cluster) -> [Node; 3] {
    let start = |name: &str| cluster.node(name).arg("--allow-anonymous").arg("room:*");
    let a = start("a").start();
    let b = start("b").join(a.listen()).start();
    let c = start("c").join(a.listen()).join(b.listen()).start();
    linked(&[&a, &b, &c]);
    [a, b, c]
}

/// When all that was said is on disk.
#[track_caller]
fn on_disk(node: &Node, bytes: f64) {
    until("the history on disk", || {
        let text = node.ask(&["metrics"])?;
        let found = text.lines().find_map(|line| line.strip_prefix("xpando_history_bytes "));
        match found.and_then(|bytes| bytes.parse::<f64>().ok()) {
            Some(enough) if enough >= bytes => Ok(()),
            few => Err(format!("{few:?} bytes")),
        }
    });
}

#[test]
fn last_seq_and_history_survive_the_restart_of_all_nodes() {
    let cluster = Cluster::new();
    let (a, b) = two(&cluster);
    let (mut anna, mut ben) = (Member::numbered(&a, "room:1"), Member::numbered(&b, "room:1"));
    anna.says(1..=3);
    assert_eq!(ben.hears(3), range(1, 3));
    let early = ben.seq.clone();
    ben.says(4..=6);
    assert_eq!(anna.hears(3), range(4, 6));
    let late = anna.seq.clone();
    assert_eq!((a.terminate(), b.terminate()), (Some(0), Some(0)));

    let (a, b) = two(&cluster);
    for node in [&a, &b] {
        let resumed = asks(node, &json!({ "last_seq": early }));
        assert_eq!(resumed, (json!({ "replayed": 3 }), range(4, 6)), "{}", node.name);
        assert_eq!(asks(node, &json!({ "last_seq": late })).0, json!({ "replayed": 0 }));
        assert_eq!(asks(node, &json!({ "history": 4 })).1, range(3, 6));
        assert_eq!(asks(node, &json!({ "history": "last" })).1, [6]);
        assert_eq!(asks(node, &json!({ "history": { "since": 0 } })).1, range(1, 6));
    }
    // What is said now goes on from there, for those of before, too.
    let mut anna = Member::join(&b, "room:1", &json!({ "last_seq": late }));
    anna.says(7..=8);
    for node in [&a, &b] {
        let resumed = asks(node, &json!({ "last_seq": early }));
        assert_eq!(resumed, (json!({ "replayed": 5 }), range(4, 8)), "{}", node.name);
    }
}

#[test]
fn a_node_that_was_not_there_asks_one_that_was() {
    let cluster = Cluster::new();
    let start = |name: &str| cluster.node(name).arg("--allow-anonymous").arg("room:*");
    let a = start("a").start();
    let mut anna = Member::numbered(&a, "room:1");
    anna.says(1..=2);
    let early = anna.seq.clone();
    anna.says(3..=9);
    let c = start("c").join(a.listen()).start();
    linked(&[&a, &c]);
    let resumed = asks(&c, &json!({ "last_seq": early }));
    assert_eq!(resumed, (json!({ "replayed": 7 }), range(3, 9)));
    assert_eq!(asks(&c, &json!({ "history": 3 })).1, range(7, 9));
    // Both have the same from now on.
    anna.says(10..=10);
    assert_eq!(asks(&c, &json!({ "last_seq": early })).1, range(3, 10));
}

#[test]
fn who_was_there_before_the_first_message_resumes_from_a_node_that_was_there_too() {
    let cluster = Cluster::new();
    let [a, b, c] = three(&cluster);
    // The one comes before, the other after; of a third topic the others know nothing.
    let mut ben = Member::join(&b, "room:1", &json!({}));
    let anna = Member::numbered(&a, "room:1");
    let dora = Member::numbered(&a, "room:2");
    let mut bert = Member::numbered(&b, "room:2");
    let alone = Member::numbered(&a, "room:3");
    a.kill();
    ben.says(1..=3);
    bert.says(4..=5);
    let mut late = Member::numbered(&b, "room:3");
    late.says(6..=6);
    for (member, expected) in [(anna, range(1, 3)), (dora, range(4, 5))] {
        for node in [&c, &b] {
            let mut back = Member::join(node, &member.topic, &json!({ "last_seq": member.seq }));
            assert_eq!(back.reply["replayed"], expected.len(), "{}: {}", node.name, back.reply);
            assert_eq!(back.reply["gap"], Value::Null, "{}", node.name);
            assert_eq!(back.hears(expected.len()), expected);
        }
    }
    // What was said there while it lived, nobody knows.
    let back = Member::join(&c, "room:3", &json!({ "last_seq": alone.seq }));
    assert_eq!(back.reply["gap"], true, "{}", back.reply);
}

#[test]
fn a_node_that_is_drained_or_stops_hands_its_rooms_on() {
    let cluster = Cluster::new();
    let [a, b, c] = three(&cluster);
    let mut anna = Member::numbered(&a, "room:1");
    anna.says(1..=40);
    let early = anna.seq.clone();
    anna.says(41..=100);
    // More than a node takes of another one when it opens a topic.
    let mut ben = Member::numbered(&a, "room:2");
    ben.says_long(1..=40, 50_000);
    let silent = Member::numbered(&a, "room:3");
    a.ask(&["drain", "--drain-time", "1s"]).unwrap();
    until("that the rooms are handed on", || {
        match a.counter("xpando_channel_events_total", "history_handed_on") {
            3.. => Ok(()),
            few => Err(few.to_string()),
        }
    });
    a.kill();
    let mut late = Member::join(&b, "room:3", &json!({}));
    late.says(1..=1);
    for node in [&b, &c] {
        let resumed = asks(node, &json!({ "last_seq": early }));
        assert_eq!(resumed, (json!({ "replayed": 60 }), range(41, 100)), "{}", node.name);
        assert_eq!(asks(node, &json!({ "history": 100 })).1, range(1, 100));
        assert_eq!(asks_of(node, "room:2", &json!({ "history": 40 })).1, range(1, 40));
        let resumed = asks_of(node, "room:3", &json!({ "last_seq": silent.seq }));
        assert_eq!(resumed, (json!({ "replayed": 1 }), vec![1]), "{}", node.name);
    }
    // One that stops does as well, without a drain.
    let mut carl = Member::numbered(&b, "room:4");
    carl.says(1..=5);
    assert_eq!(b.terminate(), Some(0));
    assert_eq!(asks_of(&c, "room:4", &json!({ "history": 9 })).1, range(1, 5));
}

#[test]
fn a_join_gets_what_another_node_has_on_disk_alone() {
    let cluster = Cluster::new();
    let a = stored(&cluster, "a").start();
    let mut anna = Member::numbered(&a, "room:1");
    anna.says(1..=3);
    let early = anna.seq.clone();
    anna.says_long(4..=1500, 1000);
    let b = cluster.node("b").arg("--allow-anonymous").arg("room:*").join(a.listen());
    let b = b.arg("--history").arg("room:*=5000,1d").start();
    linked(&[&a, &b]);
    // More than it takes when it opens the topic, with and without what comes afterwards.
    let last: Vec<u64> = range(601, 1500);
    assert_eq!(asks(&b, &json!({ "history": 900 })).1, last);
    let resumed = asks(&b, &json!({ "last_seq": early }));
    assert_eq!(resumed, (json!({ "replayed": 1497 }), range(4, 1500)));
    anna.says(1501..=1502);
    let resumed = asks(&b, &json!({ "last_seq": early }));
    assert_eq!(resumed, (json!({ "replayed": 1499 }), range(4, 1502)));
    assert_eq!(asks(&b, &json!({ "history": 900 })).1, range(603, 1502));
    // What nobody was given is a gap there, too.
    let text = early.as_str().unwrap();
    let forged = format!("{}:0", text.rsplit_once(':').unwrap().0);
    assert_eq!(asks(&b, &json!({ "last_seq": forged })).0["gap"], true);
}

#[test]
fn a_node_that_was_away_gets_what_was_said_meanwhile() {
    let cluster = Cluster::new();
    let (a, b) = two(&cluster);
    let (mut anna, ben) = (Member::numbered(&a, "room:1"), Member::numbered(&b, "room:1"));
    anna.says(1..=3);
    let early = anna.seq.clone();
    drop(ben);
    assert_eq!(b.terminate(), Some(0));
    anna.says(4..=300);
    let b = stored(&cluster, "b").join(a.listen()).start();
    linked(&[&a, &b]);
    let resumed = asks(&b, &json!({ "last_seq": early }));
    assert_eq!(resumed, (json!({ "replayed": 297 }), range(4, 300)));
    assert_eq!(asks(&b, &json!({ "history": 299 })).1, range(2, 300));
}

#[test]
fn a_node_that_is_killed_has_lost_no_more_than_its_last_moment() {
    let cluster = Cluster::new();
    let start = || stored(&cluster, "a").start();
    let a = start();
    let mut anna = Member::numbered(&a, "room:1");
    anna.says(1..=5);
    let before = anna.seq.clone();
    on_disk(&a, 300.0);
    a.kill();
    let a = start();
    // What it published last is not known any more.
    let (reply, got) = asks(&a, &json!({ "last_seq": before, "history": 50 }));
    assert_eq!(reply["gap"], true, "{reply}");
    assert!(!got.is_empty() && range(1, 5).starts_with(&got), "{got:?}");
    let mut anna = Member::numbered(&a, "room:1");
    anna.says(6..=7);
    let (_, got) = asks(&a, &json!({ "history": 50 }));
    assert!(got.ends_with(&[6, 7]), "{got:?}");
}

#[test]
fn a_disk_that_fails_costs_no_message_and_is_said() {
    let cluster = Cluster::new();
    let dir = cluster.path("a");
    let Some(faults) = Faults::build(&cluster.path("")) else { return };
    let a = faults.under(kept(&cluster, "a"), &dir).start();
    let mut anna = Member::numbered(&a, "room:1");
    anna.says(1..=3);
    on_disk(&a, 200.0);
    faults.fail(&["write", "fsync"]);
    anna.says(4..=6);
    a.shows("that it is degraded", |status| status["degraded"].is_string());
    until("that history fails", || {
        match a.counter("xpando_store_writes_total", "history_failed") {
            0 => Err("no failure".to_owned()),
            _ => Ok(()),
        }
    });
    assert_eq!(asks(&a, &json!({ "history": 9 })).1, range(1, 6));
    faults.fail(&[]);
    a.shows("nothing degraded", |status| status["degraded"].is_null());
    let seen = |kind: &str| a.events(&["--type", kind]).len();
    assert_eq!((seen("history_failing"), seen("history_recovered")), (1, 1));
    assert_eq!(a.terminate(), Some(0));
    let a = kept(&cluster, "a").data_dir(&dir).start();
    assert_eq!(asks(&a, &json!({ "history": 9 })), (json!({ "replayed": 6 }), range(1, 6)));
}

#[test]
fn all_topics_together_have_as_much_disk_as_they_may() {
    let cluster = Cluster::new();
    let a = kept(&cluster, "a").arg("--history-size").arg("1").start();
    for topic in ["room:1", "room:2"] {
        Member::numbered(&a, topic).says_long(1..=20, 50_000);
    }
    until("that the first has let go", || {
        match a.counter("xpando_channel_events_total", "history_cut") {
            0 => Err("nothing let go".to_owned()),
            _ => Ok(()),
        }
    });
    let text = a.ask(&["metrics"]).unwrap();
    let bytes = text.lines().find_map(|line| line.strip_prefix("xpando_history_bytes ")).unwrap();
    assert!(bytes.parse::<f64>().unwrap() <= f64::from(1 << 20), "{bytes}");
}

/// Changes these bytes wherever they are in a file.
fn change(file: &Path, what: &[u8], to: u8) -> usize {
    let mut bytes = std::fs::read(file).unwrap();
    let is = |at: &usize| bytes.get(*at..at + what.len()) == Some(what);
    let places: Vec<_> = (0..bytes.len()).filter(is).collect();
    places.iter().for_each(|at| bytes[*at] = to);
    std::fs::write(file, bytes).unwrap();
    places.len()
}

#[test]
fn damage_is_said_and_a_join_across_it_is_told_of_a_gap() {
    let cluster = Cluster::new();
    let dir = cluster.path("a");
    let start = || kept(&cluster, "a").data_dir(&dir).start();
    let a = start();
    let mut anna = Member::numbered(&a, "room:1");
    let pad = "x".repeat(60_000);
    // Longer than a file that is read whole when it is opened, in chunks of one message.
    for n in 1..=350 {
        anna.send("2", "say", &json!({ "n": n, "pad": pad, "mark": format!("mark{n}mark") }));
        assert_eq!(anna.hears(1), [n]);
    }
    drop(anna);
    assert_eq!(a.terminate(), Some(0));
    assert!(change(&dir.join("history.redb"), b"mark340mark", b'!') > 0);
    let a = start();
    let (reply, got) = asks(&a, &json!({ "history": 20 }));
    assert_eq!(reply["gap"], true, "{reply}");
    assert!(!got.contains(&340) && got.ends_with(&range(345, 350)), "{got:?}");
    assert!(a.counter("xpando_channel_events_total", "history_damaged") > 0);
}

#[test]
fn what_history_cannot_be_is_said_at_the_start() {
    let cluster = Cluster::new();
    let start = |history: &str| cluster.node("a").arg("--history").arg(history);
    start("room:*=0,1d").ends().fails_with(2, &["the count is 1 to"]);
    start("room:*=10,forever").ends().fails_with(2, &["the age is a time such as"]);
    start("room:*").ends().fails_with(2, &["PATTERN=COUNT,AGE[,disk]"]);
}
