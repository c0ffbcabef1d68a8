//! Those who take less than they are sent: subscribers, and whole peers.

use super::kit::*;
use super::*;
use crate::proto::frame::CloseReason;
use crate::proto::outbox::WINDOW;

/// As in `queue`: bytes that may wait for one subscriber.
const BOUND: usize = 8 * 1024 * 1024;

/// Takes everything at once; hands back what it got after so many messages.
fn eager(mut subscription: Subscription, count: usize) -> tokio::task::JoinHandle<Vec<Received>> {
    tokio::spawn(async move {
        let mut got = Vec::new();
        while got.len() < count {
            got.push(recv(&mut subscription).await.expect("open"));
        }
        got
    })
}

#[tokio::test(start_paused = true)]
async fn a_stuck_subscriber_loses_the_oldest_and_is_told_how_many_and_nobody_else_loses_any() {
    const COUNT: u32 = 3000;
    let (a, (b, metrics)) = (exchange(A), node(B));
    let mut stuck = b.subscribe(topic("t")).expect("few");
    let live = eager(b.subscribe(topic("t")).expect("few"), COUNT as usize);
    let _cable = Cable::plug(&a, &b).await;
    for number in 0..COUNT {
        let report = a.publish(&topic("t"), numbered(number, 16 * 1024)).await;
        assert_eq!(report, Ok(DeliveryReport { local: 0, peers: 1, missed: 0 }));
    }
    assert_eq!(numbers(&live.await.expect("no panic")), (0..COUNT).collect::<Vec<_>>());
    let got = drained(&mut stuck);
    let [Received::Missed(missed), rest @ ..] = &got[..] else { panic!("not told") };
    let missed = u32::try_from(*missed).expect("few");
    assert_eq!(numbers(rest), (missed..COUNT).collect::<Vec<_>>(), "the newest are left");
    assert!(rest.len() * 16 * 1024 <= BOUND, "{} wait", rest.len());
    assert!(rest.len() * 16 * 1024 >= BOUND / 2, "{} wait", rest.len());
    assert_eq!(counted(&metrics, "node_messages", "dropped_slow"), u64::from(missed));
}

#[tokio::test(start_paused = true)]
async fn a_stuck_subscriber_holds_up_no_bulk_although_the_link_is_never_silent() {
    let (a, b) = (exchange(A), exchange(B));
    let _stuck = b.subscribe(topic("t")).expect("few");
    let count = 4 * WINDOW / (16 * 1024);
    let live = eager(b.subscribe(topic("t")).expect("few"), count);
    let _echo = b.serve("echo".parse().expect("valid"), |r| async move { Ok(r.payload) });
    let _cable = Cable::plug(&a, &b).await;
    let calls = a.clone();
    let calling = tokio::spawn(async move {
        let to = "echo@b@127.0.0.1".parse().expect("valid");
        loop {
            calls.call(&to, "x", PATIENCE).await.expect("answered");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let sending = async {
        for number in 0..count {
            let payload = numbered(number as u32, 16 * 1024);
            a.publish(&topic("t"), payload).await.expect("short");
        }
    };
    tokio::time::timeout(PATIENCE, sending).await.expect("nobody holds it up");
    assert_eq!(numbers(&live.await.expect("no panic")).len(), count);
    calling.abort();
}

#[tokio::test(start_paused = true)]
async fn who_would_rather_be_disconnected_gets_what_waits_and_then_the_end() {
    let (a, b) = (exchange(A), exchange(B));
    let mut stuck = b.subscribe_with(topic("t"), OverflowPolicy::Disconnect).expect("few");
    let live = eager(b.subscribe(topic("t")).expect("few"), 1000);
    let _cable = Cable::plug(&a, &b).await;
    for number in 0..1000 {
        a.publish(&topic("t"), numbered(number, 16 * 1024)).await.expect("short");
    }
    assert_eq!(live.await.expect("no panic").len(), 1000);
    let got = drained(&mut stuck);
    assert!((256..=512).contains(&got.len()), "{}", got.len());
    assert_eq!(numbers(&got), (0..got.len() as u32).collect::<Vec<_>>(), "the oldest are kept");
    assert_eq!(recv(&mut stuck).await, None);
    assert_eq!(recv(&mut stuck).await, None, "it stays ended");
}

/// A subscriber that takes 128 KiB a millisecond from a sender without a limit.
async fn everything_at_half_speed(count: u32, length: usize) {
    let (a, b) = (exchange(A), exchange(B));
    let mut slow = b.subscribe(topic("t")).expect("few");
    let _cable = Cable::plug(&a, &b).await;
    let sending = tokio::spawn(async move {
        for number in 0..count {
            a.publish(&topic("t"), numbered(number, length)).await.expect("not too long");
        }
        a
    });
    let (mut got, mut taken) = (Vec::new(), 0);
    while got.len() < count as usize {
        let received = recv(&mut slow).await.expect("open");
        if let Received::Message(message) = received {
            got.push(Received::Message(Message { payload: message.payload.slice(..4), ..message }));
            taken += length;
        } else {
            panic!("{received:?} after {}", got.len());
        }
        while taken >= 128 * 1024 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            taken -= 128 * 1024;
        }
    }
    assert_eq!(numbers(&got), (0..count).collect::<Vec<_>>());
    sending.await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_keeps_up_slows_its_sender_and_loses_nothing() {
    everything_at_half_speed(40_000, 1024).await;
}

#[tokio::test(start_paused = true)]
async fn likewise_with_long_messages() {
    everything_at_half_speed(60, 1024 * 1024).await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_read_is_missed_and_what_was_taken_arrives_when_it_does() {
    const LENGTH: usize = 10_000;
    let ((a, metrics), b) = (node(A), exchange(B));
    let mut heard = b.subscribe(topic("t")).expect("few");
    let cable = Cable::plug(&a, &b).await;
    cable.open(false);
    let mut accepted = 0;
    loop {
        let report = a.try_publish(&topic("t"), numbered(accepted, LENGTH)).expect("short");
        if report.missed == 1 {
            break;
        }
        assert_eq!(report.peers, 1);
        accepted += 1;
        tokio::task::yield_now().await;
    }
    let waiting = accepted as usize * LENGTH;
    assert!((2 << 20..=4 << 20).contains(&waiting), "{waiting} bytes wait");
    let refused = a.try_publish_to(&name(B), &topic("t"), vec![0; LENGTH]);
    assert_eq!(refused, Err(SendError::Overloaded));
    assert!(counted(&metrics, "node_messages", "overloaded") >= 1);
    // Who can wait does, until there is room.
    let patient = a.clone();
    let waits =
        tokio::spawn(async move { patient.publish(&topic("t"), numbered(accepted, LENGTH)).await });
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!waits.is_finished());
    cable.open(true);
    assert_eq!(waits.await.expect("no panic").map(|report| report.peers), Ok(1));
    settled().await;
    assert_eq!(numbers(&drained(&mut heard)), (0..=accepted).collect::<Vec<_>>());
    assert!(cable.runs());
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_room_learns_that_the_link_is_gone() {
    let (a, b) = (exchange(A), exchange(B));
    let _heard = b.subscribe(topic("t")).expect("few");
    let cable = Cable::plug(&a, &b).await;
    cable.open(false);
    while a.try_publish(&topic("t"), vec![0; 60_000]).expect("short").missed == 0 {
        tokio::task::yield_now().await;
    }
    let (one, two) = (a.clone(), a.clone());
    let waits = tokio::spawn(async move { one.publish(&topic("t"), "x").await });
    let direct =
        tokio::spawn(async move { two.publish_to(&name(B), &topic("t"), vec![0; 60_000]).await });
    settled().await;
    cable.cut().await;
    let report = DeliveryReport { missed: 1, ..DeliveryReport::default() };
    let told = waits.await.expect("no panic").expect("short");
    assert!(told == report || told.peers == 1, "{told:?}");
    assert_eq!(direct.await.expect("no panic"), Err(SendError::NotConnected));
}

#[tokio::test(start_paused = true)]
async fn many_who_wait_for_room_all_get_it() {
    let (a, b) = (exchange(A), exchange(B));
    let mut heard = b.subscribe(topic("t")).expect("few");
    let cable = Cable::plug(&a, &b).await;
    cable.open(false);
    let waiting: Vec<_> = (0..200)
        .map(|number| {
            let a = a.clone();
            let length = if number % 50 == 0 { 3 << 20 } else { 100_000 };
            tokio::spawn(async move { a.publish(&topic("t"), numbered(number, length)).await })
        })
        .collect();
    settled().await;
    cable.open(true);
    let mut got = Vec::new();
    while got.len() < waiting.len() {
        got.push(recv(&mut heard).await.expect("open"));
    }
    let mut got = numbers(&got);
    got.sort_unstable();
    assert_eq!(got, (0..200).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn what_was_flushed_comes_before_the_goodbye() {
    const COUNT: u32 = 1500;
    let (a, b) = (exchange(A), exchange(B));
    let mut heard = b.subscribe(topic("t")).expect("few");
    let mut cable = Cable::plug(&a, &b).await;
    cable.open(false);
    for number in 0..COUNT {
        let report = a.try_publish(&topic("t"), numbered(number, 2000)).expect("short");
        assert_eq!(report.missed, 0);
    }
    let patience = tokio::time::timeout(Duration::from_secs(1), a.flushed()).await;
    assert!(patience.is_err(), "nothing is taken");
    cable.open(true);
    tokio::time::timeout(PATIENCE, a.flushed()).await.expect("all is taken");
    cable.ends[0].part.take().expect("once").send(CloseReason::Left).expect("runs");
    assert_eq!(cable.ends[1].end().await, LinkEnd::Goodbye(CloseReason::Left));
    assert_eq!(numbers(&drained(&mut heard)), (0..COUNT).collect::<Vec<_>>());
}
