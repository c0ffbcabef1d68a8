//! HeartbeatMonitor between a mocked link layer and a real bus, in paused time.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::actors::exchange::Exchange;
use crate::actors::link::tests::Mock as LinkMock;
use crate::actors::news::tests::{Wire, parts};
use crate::actors::peers::tests::Mock;
use crate::actors::supervisor::{ActorTable, Root};
use crate::actors::tests::{counted, name, run, settled};
use crate::proto::event::Event;
use crate::proto::frame::Control;
use crate::proto::heartbeat::{Vital, Word};
use crate::proto::questions::{EACH, LISTEN, WORDS};
use crate::proto::wiring::Ask;
use tokio::sync::mpsc;

const B: &str = "b@h";
const C: &str = "c@h";

struct World {
    link: Link,
    lanes: BTreeMap<NodeName, mpsc::Receiver<Control>>,
    bus: Bus,
    peers: Peers,
    asked: Mock,
    wires: BTreeMap<NodeName, Wire>,
    metrics: Metrics,
    events: mpsc::UnboundedReceiver<Event>,
    roster: ActorTable,
    _root: Root,
}

async fn world() -> World {
    let metrics = Metrics::default();
    let (link, _mock) = LinkMock::start().await;
    let bus = Bus::new(&Exchange::new(name("a@127.0.0.1"), &metrics));
    let (peers, asked) = Mock::start().await;
    let setup = Setup {
        config: Config::default(),
        name: name("a@h"),
        link: link.clone(),
        bus: bus.clone(),
        peers: peers.clone(),
        metrics: metrics.clone(),
    };
    let (_root, roster) = run(&metrics, vec![bus.child(), child(setup)]).await;
    let (tx, events) = mpsc::unbounded_channel();
    bus.on_events("test", move |event| drop(tx.send(event.clone())));
    World {
        link,
        lanes: BTreeMap::new(),
        bus,
        peers,
        asked,
        wires: BTreeMap::new(),
        metrics,
        events,
        roster,
        _root,
    }
}

impl World {
    /// A peer comes online; what the bus sends to it.
    async fn online(&mut self, peer: &str) -> Wire {
        self.lanes.insert(name(peer), LinkMock::up(&self.link, &name(peer)));
        let wire = Wire::open(&self.bus, peer);
        self.wires.insert(name(peer), wire.clone());
        settled().await;
        wire
    }

    async fn seconds(&self, seconds: u64, alive: &[&str]) {
        for _ in 0..seconds * 2 {
            alive.iter().for_each(|peer| LinkMock::byte_from(&self.link, &name(peer)));
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    fn vital(&self, peer: &str) -> Vital {
        self.peers.vitals().peers.get(&name(peer)).cloned().expect("known")
    }

    fn received(&self, from: &str, word: &Word) {
        let payload = codec::encode(word).expect("encodes");
        self.wires[&name(from)].deliver(Topic::node_heartbeat(), payload);
    }
}

/// The words in what the bus sent.
fn words(wire: &mut Wire) -> Vec<Word> {
    let mut words = Vec::new();
    while let Some(told) = wire.try_words() {
        let (topic, payload) = parts(&told);
        assert_eq!(topic, Topic::node_heartbeat());
        words.push(codec::decode(&payload, MAX_WORD).expect("a word"));
    }
    words
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_doubted_asked_about_given_up_and_told_of() {
    let mut world = world().await;
    let _b = world.online(B).await;
    let mut c = world.online(C).await;
    world.seconds(3, &[B, C]).await;
    assert!(!world.vital(B).suspect);
    world.seconds(6, &[C]).await;
    assert!(world.vital(B).suspect && !world.vital(C).suspect);
    assert_eq!(words(&mut c), [Word::Ask(name(B))]);
    world.received(C, &Word::Answer(name(B), true));
    world.seconds(5, &[C]).await;
    assert_eq!(world.asked.heard(), Some(Ask::Silent(name(B))));
    assert!(world.asked.heard().is_none(), "once, and nobody else");
    assert_eq!(words(&mut c), [], "among a few all watch all");
    let evidence = world.vital(B).evidence.expect("kept");
    assert_eq!(evidence.heard_by, [name(C)].into());
    assert!(evidence.phi >= 8.0 && evidence.missed >= 8, "{evidence:?}");
    let told: Vec<Event> = std::iter::from_fn(|| world.events.try_recv().ok()).collect();
    assert!(matches!(
        &told[..],
        [Event::PeerSuspected { .. }, Event::PeerSilent { heard_by, .. }] if *heard_by == [name(C)]
    ));
}

#[tokio::test(start_paused = true)]
async fn beats_go_out_every_second_while_a_peer_is_linked() {
    let mut world = world().await;
    let _b = world.online(B).await;
    world.seconds(10, &[B]).await;
    let lane = world.lanes.get_mut(&name(B)).expect("up");
    let beats = std::iter::from_fn(|| lane.try_recv().ok()).count();
    assert!((10..=11).contains(&beats), "{beats}");
    world.wires[&name(B)].close();
    settled().await;
    world.seconds(10, &[]).await;
    assert!(world.lanes[&name(B)].is_empty(), "no link, no beat");
    assert!(world.asked.heard().is_none(), "no link, no verdict");
}

#[tokio::test(start_paused = true)]
async fn a_question_is_answered_by_what_was_heard_since() {
    let mut world = world().await;
    let (mut b, _c) = (world.online(B).await, world.online(C).await);
    world.seconds(1, &[B, C]).await;
    world.received(B, &Word::Ask(name(C)));
    world.received(B, &Word::Ask(name("nobody@h")));
    settled().await;
    assert_eq!(words(&mut b), [], "it listens first");
    LinkMock::byte_from(&world.link, &name(C));
    tokio::time::sleep(LISTEN).await;
    settled().await;
    let answers = [Word::Answer(name(C), true), Word::Answer(name("nobody@h"), false)];
    assert_eq!(words(&mut b), answers);
}

#[tokio::test(start_paused = true)]
async fn a_flood_and_nonsense_are_counted_and_a_flooder_is_cut() {
    let mut world = world().await;
    let (mut b, mut c) = (world.online(B).await, world.online(C).await);
    for _ in 0..EACH + 10 {
        world.received(B, &Word::Ask(name(C)));
    }
    world.received(C, &Word::Ask(name(B)));
    world.received(B, &Word::Ask(name("a@h")));
    world.wires[&name(B)].deliver(Topic::node_heartbeat(), vec![0xff; 10]);
    tokio::time::sleep(LISTEN * 2).await;
    assert_eq!((words(&mut b).len(), words(&mut c).len()), (EACH, 1));
    let counted = |kind| counted(&world.metrics, "heartbeat_verdicts", kind);
    assert_eq!((counted("flood"), counted("absurd")), (10, 1));
    assert!(world.asked.heard().is_none(), "bounded, and put up with");
    let lane = world.lanes.get_mut(&name(C)).expect("up");
    while lane.try_recv().is_ok() {}
    for _ in 0..WORDS {
        world.received(B, &Word::Doubted(name(C)));
    }
    settled().await;
    assert_eq!(world.asked.heard(), Some(Ask::Cut(name(B))));
    let beats = world.lanes[&name(C)].len();
    assert!(beats <= 1, "a flood of doubts is no flood of beats: {beats}");
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_the_linked_peers_are_watched_as_if_just_heard() {
    let mut world = world().await;
    let _b = world.online(B).await;
    world.seconds(3, &[B]).await;
    world.seconds(5, &[]).await;
    assert!(world.vital(B).suspect);
    assert!(world.roster.kill("heartbeat_monitor"));
    settled().await;
    assert!(!world.vital(B).suspect, "doubts are forgotten");
    assert!(world.asked.heard().is_none());
    world.seconds(12, &[]).await;
    assert_eq!(world.asked.heard(), Some(Ask::Silent(name(B))), "watched from the start");
}
