//! Receivers that take nothing: what that costs others.

use std::io::{Read, Write};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use xpando_node::internals::io::sockets;
use xpando_node::internals::node::bench::{Ledger, Numbers, Order, Sent};

use crate::kit::{Cluster, Node, grows, linked, now, outputs, until};

/// KiB that a node may grow by for the sake of one that takes nothing.
const MOST: u64 = 16 * 1024;

fn numbers(below: &str, size: usize, count: u64, wait: bool, pause: Duration) -> Order {
    Order::Numbers(Numbers { below: below.to_owned(), topics: 1, size, count, wait, pause })
}

/// Waits until a ledger has entered so many messages, lost ones among them.
#[track_caller]
fn entered(node: &Node, count: u64) -> Ledger {
    until(&format!("{count} messages on {}", node.name), || {
        let ledger = node.ledger();
        if ledger.streams.iter().map(|stream| stream.next).sum::<u64>() >= count {
            Ok(ledger)
        } else {
            Err(format!("{ledger:?}"))
        }
    })
}

#[test]
fn a_stopped_receiver_costs_its_sender_a_bounded_outbox_and_others_nothing() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let b = cluster.node("b").join(a.listen()).start();
    let c = cluster.node("c").join(a.listen()).start();
    linked(&[&a, &b, &c]);
    for node in [&b, &c] {
        node.check("t:*");
    }
    a.reaches("t:ready", 2);
    // Buffers are as large as they get where all goes well.
    let warm: Sent = a.order(&numbers("t:warm:", 1024, 50_000, true, Duration::ZERO));
    assert_eq!((warm.reached, warm.missed), (100_000, 0));
    entered(&c, 50_000);
    c.check("t:*");
    a.reaches("t:ready", 2);

    b.signal(Signal::STOP);
    let stopped = now();
    // About 15 MB/s for as long as it takes to give the receiver up, and beyond.
    let flood = numbers("t:", 1024, 200_000, false, Duration::from_millis(15));
    let (grown, sent) = grows(&a, || {
        let flooding = a.ordered::<Sent>(&flood);
        let mut calls = 0;
        while !flooding.is_finished() {
            let served = a.echo("c");
            assert!(served.is_ok(), "call {calls} to a third node: {served:?}");
            calls += 1;
            if calls == 100 {
                a.counts("xpando_node_messages_total", "overloaded", 0);
                until("refusal of more", || {
                    let (code, out, err) =
                        outputs(&a.run(&["publish", "t:more", "-"], &[b'x'; 4096]));
                    let refused = code == Some(1) && err.contains("overloaded");
                    if refused { Ok(()) } else { Err(format!("{out}{err}")) }
                });
            }
        }
        assert!(calls > 100, "{calls} calls");
        eprintln!("{calls} calls to the third node meanwhile");
        flooding.join().unwrap()
    });
    a.logged("peer_offline", &[("node", "b@"), ("message", "unreachable")]);
    eprintln!("stopped for {:?}; the sender grew by {grown} KiB; {sent:?}", stopped.elapsed());
    assert!(sent.missed > 0, "nothing was refused");
    assert!(sent.longest < Duration::from_secs(1), "it waited for the stopped one: {sent:?}");
    assert!(grown <= MOST, "the sender grew by {grown} KiB");
    let there = entered(&c, 190_000);
    let [stream] = &there.streams[..] else { panic!("{there:?}") };
    // What the command line said is not numbered.
    assert_eq!(stream.back, 0, "{there:?}");
    assert!(stream.lost * 10 <= sent.sent, "a third node lost {} of {}", stream.lost, sent.sent);

    b.signal(Signal::CONT);
    linked(&[&a, &b, &c]);
    for node in [&b, &c] {
        node.check("t:*");
    }
    a.reaches("t:ready", 2);
    let again: Sent = a.order(&numbers("t:", 1024, 20_000, true, Duration::ZERO));
    assert_eq!((again.reached, again.missed), (40_000, 0));
    for node in [&b, &c] {
        let ledger = entered(node, 20_000);
        assert_eq!((ledger.streams[0].lost, ledger.streams[0].back), (0, 0), "{}", node.name);
    }
    a.echo("b").unwrap();
}

#[test]
fn a_stuck_subscriber_costs_its_node_a_bounded_queue_and_others_nothing() {
    const COUNT: u64 = 80_000;
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let b = cluster.node("b").join(a.listen()).start();
    linked(&[&a, &b]);
    b.check("t:*");
    a.reaches("t:ready", 1);
    let warm: Sent = a.order(&numbers("t:warm:", 4096, 20_000, true, Duration::ZERO));
    assert_eq!(warm.reached, 20_000);
    entered(&b, 20_000);
    b.check("t:*");
    a.reaches("t:ready", 1);
    let mut stuck = sockets::connect(&b.data_dir).unwrap();
    let ask = json!({"ask": "subscribe", "pattern": "t:*"});
    stuck.write_all(format!("{ask}\n").as_bytes()).unwrap();

    // Longer than the node's patience with it: some of it comes after it was let go.
    let flood = numbers("t:", 4096, COUNT, true, Duration::from_millis(20));
    let (grown, sent) = grows(&b, || a.order::<Sent>(&flood));
    eprintln!("the receiver grew by {grown} KiB; {sent:?}");
    assert_eq!((sent.reached, sent.missed), (COUNT, 0));
    assert!(grown <= MOST, "the receiver grew by {grown} KiB");
    let ledger = entered(&b, COUNT);
    let [stream] = &ledger.streams[..] else { panic!("{ledger:?}") };
    assert_eq!((stream.received, stream.lost, stream.back), (COUNT, 0, 0));
    assert_eq!((ledger.dropped, ledger.foreign), (0, 0));
    // It was let go; what had been written for it is all there is.
    stuck.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut rest = Vec::new();
    stuck.read_to_end(&mut rest).unwrap();
    assert!(rest.len() < COUNT as usize * 4096 / 2, "{} bytes", rest.len());
    assert!(
        b.counter("xpando_node_messages_total", "dropped_slow") > 0,
        "its queue was never full"
    );
}
