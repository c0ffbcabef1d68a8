//! Messages between nodes as an operator says and hears them: `publish`, `subscribe`, `call`.

use std::io::{BufRead, BufReader, Write};
use std::process::Output;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::process::Signal;
use serde_json::{Value, json};
use xpando_node::internals::io::sockets;

use crate::kit::{Cluster, Follow, Node, full, linked, outputs, three, until};

/// A message as `subscribe --json` prints it.
fn printed(topic: &str, from: &Node, payload: &[u8]) -> Value {
    match std::str::from_utf8(payload) {
        Ok(text) => json!({"topic": topic, "from": from.name, "payload": text}),
        Err(_) => json!({"topic": topic, "from": from.name, "base64": STANDARD.encode(payload)}),
    }
}

/// Exactly these messages come, in this order, apart from those of [`Node::reaches`] and what nodes tell each other's
/// subscribers of themselves, which comes when it comes.
#[track_caller]
fn hears(follow: &Follow, wanted: &[Value]) {
    let messages = || {
        let all = follow.messages().into_iter();
        let topic = |line: &Value| line["topic"].as_str().unwrap_or_default().to_owned();
        let asked = |topic: &str| topic != "warm" && !topic.starts_with("network:");
        all.filter(|line| asked(&topic(line))).collect::<Vec<_>>()
    };
    until("messages", || match messages() {
        got if got.len() >= wanted.len() => Ok(()),
        got => Err(format!("{got:?}")),
    });
    assert_eq!(messages(), wanted);
}

#[track_caller]
fn fails(output: &Output, code: i32, why: &str) {
    let (ended, out, err) = outputs(output);
    assert_eq!((ended, out.as_str()), (Some(code), ""), "{err}");
    assert!(err.contains(why), "{why:?} is not in: {err}");
}

#[test]
fn subscribers_hear_what_is_published_on_their_topics_once_and_in_order() {
    let cluster = Cluster::new();
    let [a, b, c] = three(&cluster);
    assert_eq!(a.publish("room:1", b"to nobody"), (0, 0));
    let [exact, rooms, all] =
        ["room:1", "room:*", "*"].map(|pattern| b.follow(&["subscribe", "--json", pattern]));
    let here = a.follow(&["subscribe", "--json", "room:2"]);
    a.reaches("warm", 1);
    let binary: Vec<u8> = (0..=255).rev().collect();
    let said: [(&str, &[u8], _); 7] = [
        ("room:1", b"one", (0, 1)),
        ("room:2", "zwei, größer".as_bytes(), (1, 1)),
        ("room:1", &binary, (0, 1)),
        ("rooms", b"not below room:", (0, 1)),
        ("room:1:door", b"below", (0, 1)),
        ("room:1", b"", (0, 1)),
        ("room:1", b"two\nlines\n", (0, 1)),
    ];
    for (topic, payload, spread) in said {
        assert_eq!(a.publish(topic, payload), spread, "{topic}");
    }
    let wanted = |fits: fn(&str) -> bool| {
        let fits = said.iter().filter(|(topic, ..)| fits(topic));
        fits.map(|(topic, payload, _)| printed(topic, &a, payload)).collect::<Vec<_>>()
    };
    hears(&exact, &wanted(|topic| topic == "room:1"));
    hears(&rooms, &wanted(|topic| topic.starts_with("room:")));
    hears(&here, &wanted(|topic| topic == "room:2"));
    hears(&all, &wanted(|_| true));

    // Who comes later hears what is said later.
    let late = c.follow(&["subscribe", "--json", "room:1"]);
    a.reaches("room:1", 2);
    assert_eq!(b.publish("room:1", b"by b"), (3, 1));
    let last = printed("room:1", &b, b"by b");
    until("the last message", || {
        let heard = [&exact, &late].map(|follow| follow.messages());
        let both = heard.map(|lines| lines.iter().filter(|line| **line == last).count());
        if both == [1, 1] { Ok(()) } else { Err(format!("{both:?}")) }
    });
    // Who goes is not sent anything any more.
    drop((exact, rooms, all, late));
    a.reaches("room:1", 0);
}

#[test]
fn a_long_message_arrives_whole_and_a_longer_one_is_refused() {
    let cluster = Cluster::new();
    let [a, b, _c] = three(&cluster);
    let follow = b.follow(&["subscribe", "--json", "long"]);
    a.reaches("long", 1);
    let long: Vec<u8> = (0..15 << 20).map(|n: usize| ((n * 31) >> 7) as u8).collect();
    assert_eq!(a.publish("long", &long), (0, 1));
    until("a long message", || {
        let got = follow.messages().into_iter().find(|line| line.get("base64").is_some());
        let got = got.ok_or("none")?;
        assert!(got == printed("long", &a, &long), "other bytes");
        Ok(())
    });
    let over = vec![b'x'; (16 << 20) + 1];
    fails(&a.run(&["publish", "long", "-"], &over), 1, "more than 16 MiB");
    fails(&a.run(&["call", "xpando:echo", "-"], &over), 1, "more than 16 MiB");
    // Not everybody comes through the command line.
    let mut socket = sockets::connect(&a.data_dir).unwrap();
    let ask = json!({"ask": "publish", "topic": "long", "bytes": over.len()});
    socket.write_all(format!("{ask}\n").as_bytes()).unwrap();
    let mut answer = String::new();
    BufReader::new(socket).read_line(&mut answer).unwrap();
    assert!(answer.contains("over 16 MiB"), "{answer:?}");
    assert_eq!(a.publish("long", b"after that"), (0, 1), "nobody lost a link");
}

#[test]
fn a_restarted_node_is_told_what_others_want_and_tells_what_it_wants() {
    let cluster = Cluster::new();
    let [a, b, c] = three(&cluster);
    let stays = c.follow(&["subscribe", "--json", "news"]);
    let goes = b.follow(&["subscribe", "--json", "news"]);
    a.reaches("news", 2);
    drop(goes);
    b.kill();
    a.reaches("news", 1);
    let b = cluster.node("b").join(a.listen()).start();
    linked(&[&a, &b, &c]);
    let again = b.follow(&["subscribe", "--json", "news"]);
    a.reaches("news", 2);
    b.reaches("news", 1);
    for (by, payload) in [(&a, "from a"), (&b, "from b"), (&c, "from c")] {
        by.publish("news", payload.as_bytes());
        until("it on both", || {
            let wanted = printed("news", by, payload.as_bytes());
            let heard =
                [&stays, &again].map(|f| f.messages().iter().filter(|m| **m == wanted).count());
            if heard == [1, 1] { Ok(()) } else { Err(format!("{heard:?}")) }
        });
    }
}

#[test]
fn calls_bring_the_reply_or_say_why_not() {
    let cluster = Cluster::new();
    let [a, b, _c] = three(&cluster);
    let at_b = format!("xpando:echo@{}", full("b"));
    let call = |to: &str, payload: &[u8]| a.run(&["call", to, "-"], payload);
    let long: Vec<u8> = (0..1 << 20).map(|n: usize| ((n * 7) >> 3) as u8).collect();
    for payload in [&b""[..], b"hello", b"no end of line\n\0\xff", &long] {
        let output = call(&at_b, payload);
        assert!(output.status.success() && output.stdout == payload, "{} bytes", payload.len());
    }
    let output = a.run(&["call", &at_b, "an argument"], b"");
    assert_eq!(outputs(&output).1, "an argument");
    // Any node that serves it, and this one itself.
    for to in ["xpando:echo".to_owned(), format!("xpando:echo@{}", a.name)] {
        assert_eq!(call(&to, b"x").stdout, b"x");
    }
    fails(&call(&format!("nothing@{}", full("b")), b"x"), 1, "b@127.0.0.1 serves no nothing\n");
    fails(&call("nothing", b"x"), 1, "no node that a@127.0.0.1 is linked with serves nothing\n");
    fails(
        &call(&format!("xpando:echo@{}", full("nobody")), b"x"),
        1,
        "no node nobody@127.0.0.1 is known",
    );
    b.signal(Signal::STOP);
    let hurried = a.run(&["call", "--timeout", "0.3", &at_b, "x"], b"");
    b.signal(Signal::CONT);
    fails(&hurried, 1, "the deadline passed");
    assert_eq!(call(&at_b, b"again").stdout, b"again");
}

#[test]
fn benchmarks_are_obeyed_only_where_the_operator_says_so() {
    let cluster = Cluster::new();
    let a = cluster.node("a").without_bench().start();
    let b = cluster.node("b").join(a.listen()).start();
    linked(&[&a, &b]);
    let order =
        |to: &str| b.run(&["call", &format!("xpando:bench@{}", full(to)), "-"], b"\"Seen\"");
    fails(&order("a"), 1, "a@127.0.0.1 serves no xpando:bench");
    assert!(order("b").status.success());
    let refused = b.run(&["bench", "cast", "--to", &full("a"), "--seconds", "0.1"], b"");
    fails(&refused, 1, "start each of these nodes with --bench");
    assert!(b.echo("a").is_ok(), "every node replies to an echo");
}

#[test]
fn what_is_no_topic_pattern_or_address_is_bad_usage() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let long = "x".repeat(256);
    for topic in ["", "two words", "room:*", "a\tb", &long] {
        fails(&a.run(&["publish", topic, "x"], b""), 2, "a topic");
    }
    for pattern in ["", "two words", "room*", "*:room", &long] {
        fails(&a.run(&["subscribe", pattern], b""), 2, "a topic");
    }
    for address in ["", "two words", "echo@b", "echo@", "@b@h", &long] {
        fails(&a.run(&["call", address, "x"], b""), 2, "invalid value");
    }
    for timeout in ["0", "-1", "soon", "1e9"] {
        let option = format!("--timeout={timeout}");
        fails(&a.run(&["call", &option, "xpando:echo", "x"], b""), 2, "--timeout");
    }
    let mut named = cluster.command();
    named.args(["publish", "--name", "nobody@127.0.0.1", "t", "x"]);
    fails(&named.output().unwrap(), 1, "no node nobody@127.0.0.1 runs");
}
