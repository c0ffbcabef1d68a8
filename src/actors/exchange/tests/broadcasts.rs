//! Broadcasts between nodes: who gets them, how often, in which order, and what travels at all.

use std::collections::BTreeMap;

use super::kit::*;
use super::*;

#[tokio::test(start_paused = true)]
async fn a_broadcast_reaches_exact_and_prefix_subscribers_everywhere_once_in_order() {
    let (a, b, c) = (exchange(A), exchange(B), exchange(C));
    let subscribe =
        |exchange: &Exchange, text: &str| exchange.subscribe(pattern(text)).expect("few");
    let here = subscribe(&a, "room:1");
    let (exact, below) = (subscribe(&b, "room:1"), subscribe(&b, "room:*"));
    let mut other = subscribe(&b, "room:10");
    let all = subscribe(&c, "*");
    let (_ab, _ac) = (Cable::plug(&a, &b).await, Cable::plug(&a, &c).await);
    for number in 0..500 {
        let report = a.publish(&topic("room:1"), numbered(number, 4)).await;
        assert_eq!(report, Ok(DeliveryReport { local: 1, peers: 2, missed: 0 }));
    }
    settled().await;
    for mut subscription in [here, exact, below, all] {
        let got = drained(&mut subscription);
        assert_eq!(numbers(&got), (0..500).collect::<Vec<_>>(), "{subscription:?}");
        let sound = |got: &Received| match got {
            Received::Message(m) => m.from == name(A) && m.topic == topic("room:1"),
            Received::Missed(_) => false,
        };
        assert!(got.iter().all(sound));
    }
    assert_eq!(drained(&mut other), []);
}

#[tokio::test(start_paused = true)]
async fn topics_that_alternate_keep_their_names_and_their_order() {
    let (a, b) = (exchange(A), exchange(B));
    let mut all = b.subscribe(pattern("*")).expect("few");
    let _cable = Cable::plug(&a, &b).await;
    let name_of = |number: u32| topic(&format!("t:{}", number / 3 % 5));
    for number in 0..1000 {
        let length = if number % 100 == 50 { 100_000 } else { 20 };
        a.publish(&name_of(number), numbered(number, length)).await.expect("short");
    }
    for number in 0..1000 {
        let got = message(&mut all).await;
        assert_eq!((got.topic, got.payload.slice(..4)), (name_of(number), numbered(number, 4)));
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_travels_to_a_node_without_a_subscriber() {
    let (a, b) = (exchange(A), exchange(B));
    let mut room = b.subscribe(topic("room:1")).expect("few");
    let cable = Cable::plug(&a, &b).await;
    let before = cable.carried();
    for _ in 0..100 {
        let report = a.publish(&topic("room:2"), vec![0; 1024]).await;
        assert_eq!(report, Ok(DeliveryReport::default()));
    }
    settled().await;
    assert_eq!(cable.carried(), before);
    a.publish(&topic("room:1"), "x").await.expect("short");
    settled().await;
    assert_eq!(drained(&mut room).len(), 1);
    let after = cable.carried();
    assert!(after > before && after < before + 64, "{} bytes for one message", after - before);
    drop(room);
    settled().await;
    assert_eq!(a.publish(&topic("room:1"), "x").await, Ok(DeliveryReport::default()));
    settled().await;
    assert_eq!(cable.carried(), after, "nobody is left there");
}

#[tokio::test(start_paused = true)]
async fn a_publisher_can_be_left_out_of_its_own_broadcast() {
    let (a, b) = (exchange(A), exchange(B));
    let [mut one, mut two] = [(); 2].map(|()| a.subscribe(topic("t")).expect("few"));
    let mut far = b.subscribe(topic("t")).expect("few");
    let _cable = Cable::plug(&a, &b).await;
    let report = a.publish_from(&one, &topic("t"), "everywhere").await;
    assert_eq!(report, Ok(DeliveryReport { local: 1, peers: 1, missed: 0 }));
    let report = a.publish_here_from(&one, &topic("t"), "here");
    assert_eq!(report, Ok(DeliveryReport { local: 1, peers: 0, missed: 0 }));
    let report = a.publish_here(&topic("t"), "all here");
    assert_eq!(report, Ok(DeliveryReport { local: 2, peers: 0, missed: 0 }));
    settled().await;
    assert_eq!(drained(&mut one).len(), 1);
    assert_eq!(drained(&mut two).len(), 3);
    assert_eq!(drained(&mut far).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_direct_broadcast_reaches_one_node_alone() {
    let ((a, b, c), t) = ((exchange(A), exchange(B), node(C)), topic("t"));
    let [mut at_a, mut at_b] = [&a, &b].map(|exchange| exchange.subscribe(t.clone()).expect("few"));
    let (_ab, _ac) = (Cable::plug(&a, &b).await, Cable::plug(&a, &c.0).await);
    assert_eq!(a.publish_to(&name(B), &t, "b").await, Ok(()));
    assert_eq!(a.try_publish_to(&name(A), &t, "a"), Ok(()));
    assert_eq!(a.try_publish_to(&name(C), &t, "nobody there"), Ok(()));
    let unlinked = Err(SendError::NotConnected);
    assert_eq!(a.publish_to(&name("d@h"), &t, "x").await, unlinked);
    assert_eq!(b.try_publish_to(&name(C), &t, "x"), unlinked, "a is no relay");
    settled().await;
    assert_eq!((message(&mut at_a).await.payload, drained(&mut at_a)), ("a".into(), vec![]));
    assert_eq!((message(&mut at_b).await.payload, drained(&mut at_b)), ("b".into(), vec![]));
    assert_eq!(counted(&c.1, "node_messages", "no_subscriber"), 1);
}

#[tokio::test(start_paused = true)]
async fn long_payloads_arrive_whole_and_in_their_place() {
    let (a, b) = (exchange(A), exchange(B));
    let mut heard = b.subscribe(topic("t")).expect("few");
    let _cable = Cable::plug(&a, &b).await;
    let lengths = [10, 64 << 10, 8 << 10, 1 << 20, 10, (64 << 10) - 7, 15 << 20, 0, 9000];
    let payload = |length: usize| Bytes::from_iter((0..length).map(|at| (at / 7 + at) as u8));
    let sending = tokio::spawn(async move {
        for length in lengths {
            a.publish(&topic("t"), payload(length)).await.expect("not too long");
        }
        a
    });
    for length in lengths {
        let got = message(&mut heard).await.payload;
        assert!(got == payload(length), "{length} bytes, got {}", got.len());
    }
    sending.await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn what_is_too_long_is_refused_and_the_longest_is_not() {
    let (a, b) = (exchange(A), exchange(B));
    let mut heard = b.subscribe(topic("t")).expect("few");
    let cable = Cable::plug(&a, &b).await;
    let (before, t) = (cable.carried(), topic("t"));
    let long = Bytes::from(vec![0; 16 << 20]);
    let refused = SendError::TooLong(16 << 20);
    assert_eq!(a.publish(&t, long.clone()).await, Err(refused.clone()));
    assert_eq!(a.try_publish(&t, long.clone()), Err(refused.clone()));
    assert_eq!(a.publish_here(&t, long.clone()), Err(refused.clone()));
    assert_eq!(a.publish_to(&name(B), &t, long.clone()).await, Err(refused.clone()));
    assert_eq!(a.try_publish_to(&name(B), &t, long.clone()), Err(refused));
    settled().await;
    assert_eq!(cable.carried(), before);
    let longest = (16 << 20) - 512;
    let wide = topic(&"x".repeat(255));
    let mut wide_heard = b.subscribe(wide.clone()).expect("few");
    settled().await;
    a.publish(&wide, long.slice(..longest)).await.expect("the longest");
    assert_eq!(message(&mut wide_heard).await.payload.len(), longest);
    a.publish(&t, "still").await.expect("short");
    assert_eq!(message(&mut heard).await.payload, "still");
    assert!(cable.runs());
}

#[tokio::test(start_paused = true)]
async fn a_new_link_brings_the_interest_as_it_is_by_then() {
    let (a, b) = (exchange(A), exchange(B));
    let peers = |a: &Exchange, text: &str| a.topics.route(&topic(text)).peers.len();
    let (_stays, goes) = (b.subscribe(topic("stays")), b.subscribe(topic("goes")));
    let cable = Cable::plug(&a, &b).await;
    assert_eq!([peers(&a, "stays"), peers(&a, "goes")], [1, 1]);
    cable.cut().await;
    assert_eq!([peers(&a, "stays"), peers(&a, "goes")], [0, 0]);
    drop(goes);
    let _comes = b.subscribe(pattern("comes:*"));
    let first = Cable::plug(&a, &b).await;
    assert_eq!([peers(&a, "stays"), peers(&a, "goes"), peers(&a, "comes:1")], [1, 0, 1]);
    // A newer link takes its place while it still runs, and its end changes nothing.
    let _late = b.subscribe(topic("late"));
    let second = Cable::plug(&a, &b).await;
    first.cut().await;
    let _later = b.subscribe(topic("later"));
    settled().await;
    assert_eq!([peers(&a, "stays"), peers(&a, "comes:1")], [1, 1]);
    assert_eq!([peers(&a, "late"), peers(&a, "later"), peers(&a, "goes")], [1, 1, 0]);
    let mut heard = b.subscribe(topic("stays")).expect("few");
    a.publish(&topic("stays"), "x").await.expect("short");
    settled().await;
    assert_eq!(drained(&mut heard).len(), 1, "over one link, not both");
    assert!(second.runs());
}

#[tokio::test(start_paused = true)]
async fn storms_of_subscriptions_leave_both_sides_agreeing() {
    let (a, b) = (exchange(A), exchange(B));
    let cable = Cable::plug(&a, &b).await;
    let mut kept: BTreeMap<usize, Subscription> = BTreeMap::new();
    let mut which = 1_usize;
    for round in 0..20 {
        // While nothing is read, the news of the same topics must not pile up.
        cable.open(round % 2 == 0);
        for _ in 0..2000 {
            which = (which * 5 + 1234) % 3989;
            if kept.remove(&which).is_none() {
                let text = if which.is_multiple_of(3) {
                    format!("s:{which}:*")
                } else {
                    format!("s:{which}:x")
                };
                kept.insert(which, a.subscribe(pattern(&text)).expect("few"));
            }
        }
        tokio::task::yield_now().await;
    }
    cable.open(true);
    settled().await;
    let wanted = |which: usize| !b.topics.route(&topic(&format!("s:{which}:x"))).peers.is_empty();
    for which in 0..3989 {
        assert_eq!(wanted(which), kept.contains_key(&which), "{which}");
    }
    drop(kept);
    settled().await;
    assert!(!(0..3989).any(wanted));
    assert!(cable.runs());
}

#[tokio::test(start_paused = true)]
async fn topics_that_come_and_go_while_a_peer_does_not_read_leave_no_news() {
    let (a, b) = (exchange(A), exchange(B));
    let cable = Cable::plug(&a, &b).await;
    let told = a.subscribe(topic("told")).expect("few");
    settled().await;
    cable.open(false);
    let outlet = a.topics.peer(&name(B)).expect("linked");
    for number in 0..100_000 {
        drop(a.subscribe(topic(&format!("t:{number}"))).expect("few"));
        if number % 1000 == 0 {
            tokio::task::yield_now().await;
        }
    }
    assert!(outlet.waiting_news() < 1000, "{} pieces of news", outlet.waiting_news());
    drop(told);
    let again = a.subscribe(topic("told")).expect("few");
    let goes = a.subscribe(topic("goes")).expect("few");
    cable.open(true);
    settled().await;
    let wanted = |text: &str| b.topics.route(&topic(text)).peers.len();
    assert_eq!(["told", "goes", "t:0", "t:99999"].map(wanted), [1, 1, 0, 0]);
    drop((again, goes));
    settled().await;
    assert_eq!(["told", "goes"].map(wanted), [0, 0]);
}
