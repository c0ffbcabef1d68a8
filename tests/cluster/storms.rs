//! Many topics, and topics that come and go faster than anybody could mean it.

use std::time::Duration;

use xpando_node::internals::node::bench::{Changed, Numbers, Order, Sent};

use crate::kit::{Cluster, Node, linked, until};

const TOPICS: u64 = 100_000;
/// Bytes that a topic may cost a node: its text, its place in a table, a subscriber's queue.
const EACH: u64 = 1500;
/// KiB that a storm may leave behind.
const LEFT: u64 = 32 * 1024;

/// Waits until each of the topics goes to so many of the other nodes.
#[track_caller]
fn reached(node: &Node, below: &str, topics: u64, nodes: u64) {
    let (below, size) = (below.to_owned(), 16);
    let pause = Duration::ZERO;
    let once = Order::Numbers(Numbers { below, topics, size, count: topics, wait: true, pause });
    until("the interest of the other node", || {
        let sent: Sent = node.order(&once);
        if sent.reached == nodes * topics { Ok(()) } else { Err(format!("{sent:?}")) }
    });
}

#[test]
fn a_hundred_thousand_topics_and_as_many_changes_a_second_stay_bounded() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let b = cluster.node("b").join(a.listen()).start();
    linked(&[&a, &b]);
    let before = [&a, &b].map(Node::memory);
    let grown = || [(&a, before[0]), (&b, before[1])].map(|(n, b)| n.memory().saturating_sub(b));

    let held: Changed = a.order(&Order::Topics("held:".to_owned(), TOPICS));
    reached(&b, "held:", TOPICS, 1);
    let grown_by_topics = grown();
    eprintln!("{TOPICS} topics: {held:?}, KiB here and there {grown_by_topics:?}");
    for kib in grown_by_topics {
        assert!(kib * 1024 <= TOPICS * EACH, "{kib} KiB");
    }

    let storm = a.ordered::<Changed>(&Order::Churn("storm:".to_owned(), Duration::from_secs(5)));
    // Whatever else comes and goes, one more topic is soon known, wherever it stands among them.
    let mut during = [0; 2];
    for topic in ["a", "stormy", "zzz"] {
        let _follow = a.follow(&["subscribe", "--json", topic]);
        b.reaches(topic, 1);
        let now = grown();
        during = [during[0].max(now[0]), during[1].max(now[1])];
    }
    let known_during = !storm.is_finished();
    let changed = storm.join().unwrap();
    assert!(known_during, "a topic was known only when the storm was over");
    let rate = changed.subscribed as f64 / changed.took.as_secs_f64();
    eprintln!("{rate:.0} subscribed and unsubscribed a second; KiB {during:?}");
    assert_eq!(changed.subscribed, changed.unsubscribed);
    until("end of the storm", || match b.publish("storm:000000", b"") {
        (0, 0) => Ok(()),
        spread => Err(format!("{spread:?}")),
    });
    for (now, topics) in grown().into_iter().zip(grown_by_topics) {
        assert!(now <= topics + LEFT, "{now} KiB after the storm, {topics} before");
    }
    reached(&b, "held:", TOPICS, 1);
    let none: Changed = a.order(&Order::Topics("held:".to_owned(), 0));
    assert_eq!(none.subscribed, 0);
    reached(&b, "held:", TOPICS, 0);
    eprintln!("KiB in the end {:?}", grown());
    for node in [&a, &b] {
        assert_eq!(node.total("xpando_links_ended_total"), 0, "{}", node.name);
    }
}
