//! A peer that breaks the protocol loses its link, for the right reason, and nobody else notices.

use super::kit::*;
use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::proto::budget::{WATCH_COST, WATCHES};
use crate::proto::frame::Control;
use crate::proto::interest::Interest;
use crate::proto::outbox::{MAX_MESSAGE, WINDOW};
use crate::proto::talk::{self, DownReason};

const PIECE: &str = "a malformed piece";
const WORDS: &str = "malformed words";

/// Says these pieces to a node that has another, sound link; both are served as before afterwards.
async fn charged(pieces: &[(Lane, Vec<u8>)], why: &str) {
    let (a, b) = (exchange(A), exchange(B));
    let mut heard = b.subscribe(topic("t")).expect("few");
    let cable = Cable::plug(&a, &b).await;
    let mut raw = Raw::plug(&b, C, 1 << 20).await;
    for (lane, payload) in pieces {
        // The last pieces may find the link gone.
        drop(raw.try_say(*lane, payload).await);
    }
    assert_eq!(raw.end.end().await, LinkEnd::Fault(why.to_owned()), "{:?}", pieces.last());
    a.publish(&topic("t"), "x").await.expect("short");
    assert_eq!(message(&mut heard).await.payload, "x");
    assert_eq!(drained(&mut heard), []);
    assert!(cable.runs());
}

fn first(total: usize, bytes: &[u8]) -> Vec<u8> {
    let mut payload = vec![1];
    put(&mut payload, total);
    payload.extend_from_slice(bytes);
    payload
}

fn more(bytes: &[u8]) -> Vec<u8> {
    [&[2], bytes].concat()
}

fn broadcast(topic: &str, payload: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    talk::broadcast(&mut message, Some(&topic.parse().expect("valid")));
    message.extend_from_slice(payload);
    message
}

#[tokio::test(start_paused = true)]
async fn pieces_that_are_none() {
    for lane in [Lane::System, Lane::Calls, Lane::Bulk] {
        for bad in [
            vec![3],
            vec![0xff; 100],
            vec![0, 5, 1, 2],
            vec![0, 0x80],
            vec![0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80],
            vec![1],
            vec![1, 0],
            vec![1, 0x80],
            first(MAX_MESSAGE + 1, b"x"),
            first(usize::from(u16::MAX) << 17, b"x"),
            first(3, b"four"),
            more(b"of nothing"),
        ] {
            charged(&[(lane, bad)], PIECE).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn long_messages_out_of_order() {
    for lane in [Lane::System, Lane::Calls, Lane::Bulk] {
        let begun = (lane, first(100, &[1; 50]));
        charged(&[begun.clone(), begun.clone()], PIECE).await;
        charged(&[begun.clone(), (lane, more(&[1; 51]))], PIECE).await;
        charged(&[begun.clone(), (lane, whole(b"between"))], PIECE).await;
        charged(&[begun.clone(), (lane, more(b""))], PIECE).await;
        let done = (lane, more(&[1; 50]));
        if lane == Lane::System {
            charged(&[begun, done.clone(), done], PIECE).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn words_that_are_none() {
    let long_topic = [&[1, 255][..], &[b'x'; 254]].concat();
    let bulk: &[&[u8]] = &[
        b"",
        b"\x00no topic was said",
        b"\x01",
        b"\x01\x00empty",
        b"\x01\x02\xff\xfe",
        b"\x01\x03a b",
        b"\x01\x01*",
        &long_topic,
        b"\x02",
        b"\x02\x01\x09",
        b"\x02\x01\x00more",
    ];
    for bad in bulk {
        charged(&[(Lane::Bulk, whole(bad))], WORDS).await;
        if !bad.is_empty() {
            charged(&[(Lane::Bulk, first(bad.len(), bad))], WORDS).await;
        }
    }
    charged(&[(Lane::Bulk, first(3, b"\x02\x01\x00"))], WORDS).await;
    let calls: &[&[u8]] = &[
        b"",
        b"\x00\x01\x01\x00",
        b"\x00\x01\x01\x03a@b",
        b"\x00\x01\x01\x05a",
        b"\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x01\x01a",
        b"\x01\x01\x05",
        b"\x02\x01\x01\xff",
        b"\x02\x01\x01aa",
        b"\x03",
        b"\x03\x01\x01",
        b"\x04\x00\x01\x00",
        b"\x04\x00\x02\x01a",
        b"\x04\x03\x01\x01a",
        b"\x04\x01\x01\x04room",
        b"\x04\x02\x01\x03a@b",
        b"\x04\x00\x01\x01\x80",
    ];
    for bad in calls {
        charged(&[(Lane::Calls, whole(bad))], WORDS).await;
        if !bad.is_empty() {
            charged(&[(Lane::Calls, first(bad.len(), bad))], WORDS).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_before_bad_words_counts_and_what_follows_does_not() {
    let b = exchange(B);
    let mut heard = b.subscribe(topic("t")).expect("few");
    let mut raw = Raw::plug(&b, C, 1 << 20).await;
    raw.send(Lane::Bulk, &whole(&broadcast("t", b"one"))).await;
    let mut two = whole(b"\x00two");
    two.extend_from_slice(&whole(b"\x02")[1..]);
    two.extend_from_slice(&whole(b"\x00three")[1..]);
    raw.send(Lane::Bulk, &two).await;
    assert_eq!(raw.end.end().await, LinkEnd::Fault(WORDS.to_owned()));
    let got = drained(&mut heard);
    assert!(matches!(&got[0], Received::Message(m) if m.payload == "one" && m.from == name(C)));
    assert!(got.len() <= 2, "{got:?}");
}

#[tokio::test(start_paused = true)]
async fn credit_that_was_never_used() {
    let credit = |bytes| (Lane::Control, Control::Credit(bytes).encode().expect("encodes"));
    charged(&[credit(1)], "credit never used").await;
    charged(&[credit(u32::MAX)], "credit never used").await;
    // Of what was used it may return just as much.
    let b = exchange(B);
    let mut raw = Raw::plug(&b, C, 1 << 20).await;
    b.try_publish_to(&name(C), &topic("t"), vec![0; 100]).expect("room");
    let (lane, piece) = raw.hear().await.expect("sent");
    assert_eq!(lane, Lane::Bulk);
    let used = u32::try_from(piece.len()).expect("short");
    raw.send(Lane::Control, &credit(used).1).await;
    settled().await;
    assert!(raw.end.runs());
    raw.send(Lane::Control, &credit(1).1).await;
    assert_eq!(raw.end.end().await, LinkEnd::Fault("credit never used".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn bulk_beyond_its_credit() {
    let (a, b) = (exchange(A), exchange(B));
    let mut stuck = b.subscribe(topic("t")).expect("few");
    let cable = Cable::plug(&a, &b).await;
    let mut raw = Raw::plug(&b, C, 1 << 20).await;
    let piece = whole(&broadcast("t", &[7; 60_000]));
    let mut said = 0;
    while raw.try_say(Lane::Bulk, &piece).await.is_ok() && raw.end.runs() {
        said += piece.len();
        tokio::task::yield_now().await; // no time passes, or the subscriber would give up the credit
    }
    assert_eq!(raw.end.end().await, LinkEnd::Fault("more bulk than it had credit for".to_owned()));
    assert!((WINDOW..WINDOW + (2 << 20)).contains(&said), "{said}");
    assert!(drained(&mut stuck).len() * 60_000 < WINDOW + (1 << 17));
    a.publish(&topic("t"), "x").await.expect("short");
    assert_eq!(message(&mut stuck).await.payload, "x");
    assert!(cable.runs());
}

#[tokio::test(start_paused = true)]
async fn half_a_long_message() {
    for lane in [Lane::System, Lane::Calls, Lane::Bulk] {
        let began = crate::actors::timer::now();
        charged(&[(lane, first(100, b"half"))], "a long message did not go on for 30 s").await;
        let took = crate::actors::timer::now() - began;
        assert!(took >= Duration::from_secs(30) && took < Duration::from_secs(31), "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn half_a_long_message_is_found_although_the_peer_says_other_things() {
    let b = exchange(B);
    let mut raw = Raw::plug(&b, C, 1 << 20).await;
    raw.send(Lane::Bulk, &first(100, b"half")).await;
    let ping = Control::Ping(1).encode().expect("encodes");
    for _ in 0..70 {
        drop(raw.try_say(Lane::Control, &ping).await);
        while raw.end.runs() && raw.hear().await.is_some() {}
        tokio::time::sleep(Duration::from_millis(499)).await;
    }
    let why = LinkEnd::Fault("a long message did not go on for 30 s".to_owned());
    assert_eq!(raw.end.end().await, why);
}

#[tokio::test(start_paused = true)]
async fn a_long_message_that_is_slow_but_goes_on_is_no_fault() {
    let b = exchange(B);
    let mut heard = b.subscribe(topic("t")).expect("few");
    let mut raw = Raw::plug(&b, C, 1 << 20).await;
    let long = broadcast("t", &[9; 7]);
    raw.send(Lane::Bulk, &first(long.len(), &long[..4])).await;
    for byte in &long[4..] {
        tokio::time::sleep(Duration::from_secs(29)).await;
        raw.send(Lane::Bulk, &more(&[*byte])).await;
    }
    assert_eq!(message(&mut heard).await.payload, vec![9; 7]);
    assert!(raw.end.runs());
}

#[tokio::test(start_paused = true)]
async fn one_number_watches_once() {
    let b = exchange(B);
    let _serving = b.serve("work".parse().expect("valid"), |r| async move { Ok(r.payload) });
    let mut raw = Raw::plug(&b, C, 1 << 20).await;
    let mut word = Vec::new();
    talk::watch(&mut word, 7, &"work".parse().expect("valid"));
    for _ in 0..100 {
        drop(raw.try_say(Lane::Calls, &whole(&word)).await);
    }
    settled().await;
    assert!(b.calls.watchers(&"work".parse().expect("valid")) <= 1);
}

#[tokio::test(start_paused = true)]
async fn replies_and_ends_that_nobody_waits_for_are_no_fault() {
    let (b, metrics) = node(B);
    let mut raw = Raw::plug(&b, C, 1 << 20).await;
    let (mut reply, mut gone) = (Vec::new(), Vec::new());
    talk::reply(&mut reply, 77, talk::Outcome::Replied);
    talk::gone(&mut gone, 77, DownReason::Failed);
    raw.send(Lane::Calls, &whole(&reply)).await;
    raw.send(Lane::Bulk, &whole(&gone)).await;
    settled().await;
    assert!(raw.end.runs());
    assert_eq!(counted(&metrics, "node_messages", "late_reply"), 1);
}

/// Words of a watch on a name, each with a number of its own.
fn watches(name: &str, numbers: std::ops::Range<u64>) -> Vec<u8> {
    let name = name.parse().expect("valid");
    let mut piece = vec![0];
    for number in numbers {
        let mut word = Vec::new();
        talk::watch(&mut word, number, &name);
        put(&mut piece, word.len());
        piece.extend_from_slice(&word);
    }
    piece
}

#[tokio::test(start_paused = true)]
async fn watches_whose_answers_are_not_read_end_the_link_at_their_bound() {
    let b = exchange(B);
    let mut raw = Raw::plug(&b, C, 1024).await;
    let mut interest = Vec::new();
    talk::interest(&mut interest, &Interest::Topic(topic("t")), true);
    raw.send(Lane::Calls, &whole(&interest)).await;
    settled().await;
    while b.try_publish(&topic("t"), vec![0; 5000]).expect("short").missed == 0 {}
    let long = "x".repeat(200);
    let most = WATCHES as u64 / (WATCH_COST as u64 + 200);
    for number in (0..most).step_by(100) {
        raw.send(Lane::Calls, &watches(&long, number..(number + 100).min(most))).await;
    }
    settled().await;
    assert!(raw.end.runs(), "as many as there may be");
    raw.send(Lane::Calls, &watches(&long, most..most + 100)).await;
    assert_eq!(raw.end.end().await, LinkEnd::Fault("too much interest".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn what_is_watched_here_is_bounded_as_a_peer_bounds_it() {
    let (a, b) = (exchange(A), exchange(B));
    let cable = Cable::plug(&b, &a).await;
    cable.open(false); // what b answers is not read
    let long: Name = "x".repeat(200).parse().expect("valid");
    let mut watches = Vec::new();
    loop {
        let mut watch = a.watch(&long, b.name());
        if watch.is_err() {
            settled().await; // the lane has room again
            watch = a.watch(&long, b.name());
        }
        match watch {
            Ok(watch) => watches.push(watch),
            Err(error) => break assert_eq!(error, SendError::Overloaded),
        }
    }
    let peer = a.topics.peer(b.name()).expect("linked");
    assert_eq!(peer.pending().open().1, WATCHES / (WATCH_COST + 200));
    drop(watches);
    settled().await;
    assert_eq!(peer.pending().open().1, 0, "what was taken back gave its place back");
    cable.open(true);
    settled().await;
    assert!(cable.runs());
    assert_eq!(a.watch(&long, b.name()).expect("room").gone().await, DownReason::NoSuchName);
}

#[tokio::test(start_paused = true)]
async fn long_answers_that_are_not_read_hold_up_the_next_requests() {
    let b = exchange(B);
    let made = Arc::new(AtomicUsize::new(0));
    let count = made.clone();
    let _serving = b.serve("work".parse().expect("valid"), move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        async move { Ok(vec![7; 1024 * 1024].into()) }
    });
    let mut raw = Raw::plug(&b, C, 1024).await;
    let request = |call| {
        let mut word = Vec::new();
        talk::request(&mut word, call, 600_000, &"work".parse().expect("valid"));
        whole(&word)
    };
    drop(raw.try_say(Lane::Calls, &request(0)).await);
    settled().await;
    for call in 1..500 {
        drop(raw.try_say(Lane::Calls, &request(call)).await);
    }
    settled().await;
    let made = made.load(Ordering::Relaxed);
    assert!((10..=17).contains(&made), "{made} answers of 1 MiB, where 16 MiB may wait");
    assert!(raw.end.runs());
}

#[tokio::test(start_paused = true)]
async fn messages_that_a_later_version_knows_are_skipped_and_counted() {
    let (b, metrics) = node(B);
    let mut heard = b.subscribe(topic("t")).expect("few");
    let mut raw = Raw::plug(&b, C, 1 << 20).await;
    let later = [b"\x09later".as_slice(), &[200; 300]];
    for later in later {
        raw.send(Lane::Calls, &whole(later)).await;
        raw.send(Lane::Calls, &first(later.len(), later)).await;
        raw.send(Lane::Bulk, &first(later.len(), later)).await;
        // Between two broadcasts of one topic in a piece.
        let mut piece = whole(&broadcast("t", b"one"));
        for message in [later, b"\x00two"] {
            put(&mut piece, message.len());
            piece.extend_from_slice(message);
        }
        raw.send(Lane::Bulk, &piece).await;
        assert_eq!(message(&mut heard).await.payload, "one");
        assert_eq!(message(&mut heard).await.payload, "two");
    }
    raw.send(Lane::Control, &[77, 1, 2]).await;
    settled().await;
    assert_eq!(counted(&metrics, "node_messages", "unknown_kind"), 9);
    assert!(raw.end.runs());
}
