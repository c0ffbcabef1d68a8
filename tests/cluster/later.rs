//! Nodes of two programs in one cluster: this one, and one that speaks a later version of the link protocol.

use std::time::Duration;

use xpando_node::internals::proto::hello::Offer;
use xpando_node::{Node, Received, Request};

use crate::kit::{Cluster, full, linked, outputs};

const PATIENCE: Duration = Duration::from_secs(20);
const UNKNOWN: (&str, &str) = ("xpando_node_messages_total", "unknown_kind");

/// The later node is the library in this process: it offers a version and a feature that the other two do not know, and
/// sends words that they do not know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_a_later_program_is_one_of_the_cluster() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let b = cluster.node("b").join(a.listen()).start();
    linked(&[&a, &b]);
    let name = full("later");
    let later = Node::builder(name.as_str()).certs(cluster.certs()).data_dir(cluster.path("later"));
    let seed = a.listen().to_string();
    let later = later.listen("127.0.0.1:0").beacons(false).join(seed.as_str());
    let mut config = later.config().unwrap();
    config.offer = Offer { oldest: 1, newest: 2, features: 1 << 31 };
    let later = Node::start(config).await.unwrap();
    later.linked(2, PATIENCE).await.unwrap();
    for node in [&a, &b] {
        node.sees("later", "online");
    }

    // Requests and broadcasts, both ways.
    let _serving = later.serve("work", |it: Request| async move {
        Ok([b"done ", &it.payload[..]].concat().into())
    });
    let mut room = later.subscribe("room:*").unwrap();
    for (node, word) in [(&a, "of-a"), (&b, "of-b")] {
        let (code, out, err) = outputs(&node.run(&["call", "work", word], &[]));
        assert_eq!((code, out.trim()), (Some(0), format!("done {word}").as_str()), "{err}");
        let (code, _, err) = outputs(&node.run(&["publish", "room:1", word], &[]));
        assert_eq!(code, Some(0), "{err}");
        let got = tokio::time::timeout(PATIENCE, room.recv()).await.expect("in time");
        let Some(Received::Message(message)) = got else { panic!("{got:?}") };
        assert_eq!(
            (&message.payload[..], message.from.as_str()),
            (word.as_bytes(), full(&node.name).as_str())
        );
        let echo = format!("xpando:echo@{}", full(&node.name));
        assert_eq!(later.call(&echo, word, PATIENCE).await.as_deref(), Ok(word.as_bytes()));
    }

    // What only the later one knows is skipped and counted, and nothing ends.
    let lost = [&a, &b].map(|node| node.total("xpando_peer_losses_total"));
    let before = [&a, &b].map(|node| node.counter(UNKNOWN.0, UNKNOWN.1));
    later.exchange().send_later_words();
    for (node, before) in [&a, &b].into_iter().zip(before) {
        node.counts(UNKNOWN.0, UNKNOWN.1, before + 1);
    }
    let (code, _, err) = outputs(&a.run(&["call", "work", "after"], &[]));
    assert_eq!(code, Some(0), "{err}");
    linked(&[&a, &b]);
    assert_eq!([&a, &b].map(|node| node.total("xpando_peer_losses_total")), lost);
    later.shutdown().await;
    a.sees_as("later", "offline", |row| row["reason"] == "left");
}
