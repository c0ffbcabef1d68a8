//! Bus: its actor alone, the bus as others' tests see it, and whole buses that talk to each other.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use tokio::sync::{Semaphore, mpsc};

use super::*;
use crate::actors::exchange::Exchange;
use crate::actors::exchange::{Message, Outlet, Received};
use crate::actors::supervisor::Root;
use crate::actors::tests::probe;
use crate::actors::tests::{PATIENCE, counted, name, next, run, until};
use crate::proto::capability::Capabilities;
use crate::proto::frame;
use crate::proto::outbox::{Piece, Records};
use crate::proto::talk::DownReason;

/// What a consumer got; the message is out of its mailbox.
pub(crate) fn read(notice: Notice<PeerMessage>) -> Notice<Vec<u8>> {
    notice
        .read(|message| Ok::<_, Infallible>(message.to_vec()))
        .unwrap_or_else(|none| match none {})
}

async fn alone() -> (Bus, Root, Metrics) {
    let metrics = Metrics::default();
    let bus = Bus::new(&Exchange::new(name("a@127.0.0.1"), &metrics));
    let (root, _) = run(&metrics, vec![bus.child()]).await;
    (bus, root, metrics)
}

fn peer() -> NodeName {
    name("b@h")
}

/// The way to a peer, with the test in the place of the link that sends.
#[derive(Clone)]
pub(crate) struct Wire {
    bus: Bus,
    outlet: Arc<Outlet>,
    words: VecDeque<Bytes>,
}

impl Wire {
    /// A link to the first life of a peer.
    pub(crate) fn open(bus: &Bus, peer: &str) -> Self {
        Self::with(bus, peer, 1)
    }

    /// Likewise, to another one.
    pub(crate) fn with(bus: &Bus, peer: &str, life: u64) -> Self {
        let outlet = bus.up(name(peer), Incarnation(life), Capabilities::ALL);
        Self { bus: bus.clone(), outlet, words: VecDeque::new() }
    }

    /// The peer's actor sends this on a topic.
    pub(crate) fn deliver(&self, topic: Topic, payload: Vec<u8>) {
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("free");
        self.bus.received(&self.outlet, words(topic, payload), permit);
    }

    /// Something arrives; returns when Bus has handled it.
    async fn hears(&self, words: Bytes) {
        let room = Arc::new(Semaphore::new(1));
        let permit = room.clone().acquire_owned().await.expect("open");
        self.bus.received(&self.outlet, words, permit);
        let handled = tokio::time::timeout(PATIENCE, room.acquire()).await;
        let _returned = handled.expect("in time").expect("open");
    }

    /// The link is lost.
    pub(crate) fn close(&self) {
        self.bus.down(&self.outlet, DownReason::LinkLost);
    }

    /// The next words of this node's actors that wait to be sent.
    pub(crate) fn try_words(&mut self) -> Option<Bytes> {
        match pin!(self.words()).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(words) => Some(words),
            Poll::Pending => None,
        }
    }

    /// The next words, once there are some.
    pub(crate) async fn words(&mut self) -> Bytes {
        loop {
            if let Some(words) = self.words.pop_front() {
                return words;
            }
            let mut pieces = Vec::new();
            self.outlet.next(&mut pieces).await;
            for Piece { head, body, .. } in pieces {
                assert!(body.is_empty(), "words are no long messages");
                let (header, payload) = head.split_first_chunk().expect("a header");
                if frame::parse_header(*header).expect("sound").0 != Lane::System {
                    continue; // the actors' own words
                }
                let payload = Bytes::copy_from_slice(payload);
                let mut records = Records::of_payload();
                while let Some(range) = records.next(&payload) {
                    self.words.push_back(payload.slice(range.expect("sound")));
                }
            }
        }
    }

    /// How many requests to this name wait to be sent; what else waits is passed over.
    pub(crate) fn requests(&mut self, name: &str) -> usize {
        let mut pieces = Vec::new();
        let mut context = Context::from_waker(Waker::noop());
        let _credit = pin!(self.outlet.next(&mut pieces)).poll(&mut context);
        let calls = pieces.iter().map(|piece| [&piece.head[..], &piece.body].concat());
        calls.map(|it| it.windows(name.len()).filter(|at| *at == name.as_bytes()).count()).sum()
    }

    /// Likewise, in time.
    pub(crate) async fn next(&mut self) -> Bytes {
        tokio::time::timeout(PATIENCE, self.words()).await.expect("in time")
    }
}

/// Topic and payload of words.
pub(crate) fn parts(words: &[u8]) -> (Topic, Vec<u8>) {
    let words: Words = codec::decode_versioned(VERSION, words, MAX_PAYLOAD).expect("sound words");
    (words.topic, words.payload)
}

/// Words as they travel.
fn words(topic: Topic, payload: Vec<u8>) -> Bytes {
    codec::encode_versioned(VERSION, &Words { topic, stamp: Stamp::default(), payload })
        .expect("encodes")
        .into()
}

#[tokio::test]
async fn words_go_out_of_one_door_and_in_at_the_other() {
    let (bus, _root, metrics) = alone().await;
    let topic = Topic::network_peers();
    let mut wire = Wire::open(&bus, "b@h");
    bus.send(&peer(), topic.clone(), b"hi".to_vec());
    bus.send(&name("c@h"), topic.clone(), vec![]);
    bus.send(&peer(), topic.clone(), vec![0; MAX_PAYLOAD]);
    let sent = wire.next().await;
    assert_eq!(wire.try_words(), None);
    // Anyone who finds no room is refused, and what waits stays in order.
    let mut told = 1;
    while counted(&metrics, "node_messages", "overloaded") == 0 {
        bus.send(&peer(), topic.clone(), vec![0; 60_000]);
        told += 1;
    }
    assert!((6..=10).contains(&told), "{told} messages of 60 kB in half a megabyte");

    let (tx, mut rx) = mpsc::unbounded_channel();
    bus.attach(Consumer::Discovery, move |notice| drop(tx.send(read(notice))));
    wire.hears(sent).await;
    assert_eq!(next(&mut rx).await, Notice::Up(peer(), Incarnation(1)));
    assert_eq!(next(&mut rx).await, Notice::Message(peer(), b"hi".to_vec()));
    wire.hears(vec![9; 20].into()).await;
    assert_eq!(counted(&metrics, "node_messages", "sent"), told - 1);
    for kind in ["overloaded", "not_linked", "too_large", "received", "malformed"] {
        assert_eq!(counted(&metrics, "node_messages", kind), 1, "{kind}");
    }
}

#[tokio::test]
async fn events_reach_each_listener_once() {
    let (bus, _root, _) = alone().await;
    let (tx, mut rx) = mpsc::unbounded_channel();
    let again = tx.clone();
    bus.on_events("test", move |_| tx.send("replaced").expect("the test listens"));
    bus.on_events("test", move |_| again.send("second").expect("the test listens"));
    bus.announce(Event::PeerConnecting { peer: peer() });
    assert_eq!(next(&mut rx).await, "second");
    assert!(rx.try_recv().is_err());
}

/// A bus behind which nobody answers: what it was told waits in the receiver.
pub(crate) struct Silent(mpsc::UnboundedReceiver<Msg>);

impl Silent {
    /// Lets the next words of a peer go; their length, or `None` when none wait.
    pub(crate) fn release_words(&mut self) -> Option<usize> {
        while let Ok(message) = self.0.try_recv() {
            if let Msg::Received(_, words, _permit) = message {
                return Some(words.len());
            }
        }
        None
    }

    /// The words of peers that wait: they keep their permits until this is dropped.
    pub(crate) fn waiting(&mut self) -> Vec<impl Sized + use<>> {
        let mut pieces = Vec::new();
        while let Ok(message) = self.0.try_recv() {
            if matches!(message, Msg::Received(..)) {
                pieces.push(message);
            }
        }
        pieces
    }
}

/// A handle to a bus behind which nobody answers.
pub(crate) async fn silent() -> (Bus, Silent) {
    let (handle, heard) = probe("news").await;
    (
        Bus { handle, ..Bus::new(&Exchange::new(name("a@127.0.0.1"), &Metrics::default())) },
        Silent(heard),
    )
}

#[tokio::test]
async fn after_a_restart_nobody_listens_and_subscriptions_and_links_stay() {
    let metrics = Metrics::default();
    let bus = Bus::new(&Exchange::new(name("a@127.0.0.1"), &metrics));
    let (root, roster) = run(&metrics, vec![bus.child()]).await;
    let (tx, mut heard) = mpsc::unbounded_channel();
    let (events, messages) = (tx.clone(), tx.clone());
    bus.on_events("test", move |_| events.send("event").unwrap_or(()));
    bus.attach(Consumer::Discovery, move |_| messages.send("link").unwrap_or(()));
    drop(tx);
    let topic: Topic = "room:1".parse().expect("valid");
    let mut subscription = bus.exchange().subscribe(topic.clone()).expect("few");
    let mut wire = Wire::open(&bus, "b@h");
    bus.announce(Event::PeerConnecting { peer: peer() });
    assert_eq!(next(&mut heard).await, "link");
    assert_eq!(next(&mut heard).await, "event");

    assert!(roster.kill("news"));
    assert_eq!(heard.recv().await, None, "the listeners end with the actor");
    until("restarted", || counted(&metrics, "actor_restarts", "news") == 1).await;
    let (tx, mut heard) = mpsc::unbounded_channel();
    until("the new life hears", || {
        let tx = tx.clone();
        bus.on_events("test", move |_| tx.send("again").unwrap_or(()));
        bus.announce(Event::PeerConnecting { peer: peer() });
        heard.try_recv() == Ok("again")
    })
    .await;
    wire.hears(words(Topic::network_peers(), vec![1])).await;
    assert_eq!(counted(&metrics, "node_messages", "link_gone"), 1, "the tree restarts the links");
    bus.exchange().publish_here(&topic, "still").expect("short");
    let message = subscription.try_recv();
    assert!(
        matches!(message, Some(Received::Message(Message { payload, .. })) if payload == "still")
    );
    bus.send(&peer(), Topic::network_peers(), vec![1]);
    assert_eq!(parts(&wire.next().await), (Topic::network_peers(), vec![1]));
    root.stop().await;
}

#[tokio::test]
async fn a_link_that_is_down_takes_its_own_outlet_and_no_other() {
    let (bus, _root, metrics) = alone().await;
    let first = Wire::open(&bus, "b@h");
    let mut second = Wire::open(&bus, "b@h");
    assert!(first.outlet.is_closed(), "the newer link took its place");
    first.close();
    bus.send(&peer(), Topic::network_peers(), vec![1]);
    assert!(second.try_words().is_some(), "the end of the old link is not that of the new");
    second.close();
    assert!(second.outlet.is_closed());
    bus.send(&peer(), Topic::network_peers(), vec![1]);
    assert_eq!(counted(&metrics, "node_messages", "not_linked"), 1);
}

#[tokio::test]
async fn links_are_told_in_one_order_and_to_a_newcomer_from_the_start() {
    let (bus, _root, metrics) = alone().await;
    let attach = || {
        let (tx, heard) = mpsc::unbounded_channel();
        bus.attach(Consumer::Discovery, move |notice| drop(tx.send(read(notice))));
        heard
    };
    let message = || words(Topic::network_peers(), vec![1]);
    let up = |life| Notice::Up(peer(), Incarnation(life));
    let sent = || Notice::Message(peer(), vec![1]);
    let down = || Notice::Down(peer(), DownReason::LinkLost);
    let mut heard = attach();
    let first = Wire::with(&bus, "b@h", 1);
    first.hears(message()).await;
    // The task of a link that was cancelled may end after the next link began.
    let second = Wire::with(&bus, "b@h", 2);
    first.hears(message()).await;
    first.close();
    second.hears(message()).await;
    let mut late = attach();
    second.close();
    second.hears(message()).await;
    let mut after = attach();
    second.hears(message()).await;
    let all = |heard: &mut mpsc::UnboundedReceiver<Notice<Vec<u8>>>| {
        std::iter::from_fn(|| heard.try_recv().ok()).collect::<Vec<_>>()
    };
    assert_eq!(
        all(&mut heard),
        [up(1), sent(), down(), up(2), sent()],
        "then another took its place"
    );
    assert_eq!(all(&mut late), [up(2), down()]);
    assert_eq!(all(&mut after), []);
    assert_eq!(counted(&metrics, "node_messages", "link_gone"), 3);
}

#[tokio::test]
async fn a_message_counts_as_waiting_until_its_actor_has_dropped_it() {
    let (bus, _root, _) = alone().await;
    let (tx, mut rx) = mpsc::unbounded_channel();
    bus.attach(Consumer::Discovery, move |notice| drop(tx.send(notice)));
    let wire = Wire::open(&bus, "b@h");
    let room = Arc::new(Semaphore::new(1));
    let permit = room.clone().try_acquire_owned().expect("free");
    bus.received(&wire.outlet, words(Topic::network_peers(), vec![1]), permit);
    assert!(matches!(next(&mut rx).await, Notice::Up(..)));
    let message = next(&mut rx).await;
    assert_eq!(room.available_permits(), 0);
    drop(message);
    assert_eq!(room.available_permits(), 1);
}
