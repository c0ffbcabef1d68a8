//! One link's lanes over a pipe in memory, with a scripted peer at the other end.

use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use tokio::io::{AsyncWriteExt, DuplexStream, duplex, split};
use tokio::task::JoinHandle;

use super::*;
use crate::actors::exchange::Exchange;
use crate::actors::exchange::{Received, SendError};
use crate::actors::link::mux::{LinkGuard, Own, PIPE, gate, run as run_mux};
use crate::actors::news::tests::{parts, read, silent};
use crate::proto::budget::MAX_WORDS;
use crate::proto::capability::Capabilities;
use crate::proto::frame::{Control, HEADER, Lane, MAX_PAYLOAD, header, parse_header};
use crate::proto::heartbeat::{self, Heartbeat};
use crate::proto::interest::Interest;
use crate::proto::processor::PATTERN;
use crate::proto::talk;
use crate::proto::wiring::{Consumer, Notice};

const PEER: &str = "b@127.0.0.1";
/// Two frames of ractor.
const RACTOR: &[u8] = b"\0\0\0\0\0\0\0\x06ractor";
const MORE: &[u8] = b"\0\0\0\0\0\0\0\x04more";
/// Words of one peer that fill a piece and may wait: in five portions each.
const WAITING: usize = MAX_WORDS / 5;
/// Words that fill a piece, with what is before them.
const WORDS: usize = MAX_PAYLOAD - 4;

/// A link that runs, and the ends of it that the test holds.
struct World {
    peer: DuplexStream,
    ractor: DuplexStream,
    bus: Bus,
    part: Option<oneshot::Sender<CloseReason>>,
    control: mpsc::Sender<Control>,
    pulse: Arc<Pulse>,
    end: JoinHandle<LinkEnd>,
}

fn world(bus: Bus, inbound: bool, buffer: usize) -> World {
    let (ours, peer) = duplex(buffer);
    let (mut pipe, ractor) = duplex(PIPE);
    let (part, parting) = oneshot::channel();
    let guard = LinkGuard::open(&bus, (name(PEER), Capabilities::ALL), Incarnation(1));
    let (control, controls) = mpsc::channel(CONTROLS);
    let pulse = Arc::new(Pulse::new(control.clone(), None));
    let own =
        Own { parting, controls, pulse: pulse.clone(), lists: None, revoked: Box::new(|| false) };
    let end = tokio::spawn(async move {
        run_mux(ours, gate(inbound, name(PEER), &guard), &mut pipe, guard, own).await
    });
    World { peer, ractor, bus, part: Some(part), control, pulse, end }
}

/// A piece's payload with one whole message in it.
fn whole(message: &[u8]) -> Vec<u8> {
    let mut payload = vec![0];
    let mut length = message.len();
    while length >= 0x80 {
        payload.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    payload.push(u8::try_from(length).expect("below 128"));
    payload.extend_from_slice(message);
    payload
}

impl World {
    /// This node's actors tell the peer's something.
    fn post(&self, payload: &[u8]) {
        self.bus.send(&name(PEER), Topic::network_peers(), payload.to_vec());
    }

    async fn send(&mut self, lane: Lane, payload: &[u8]) {
        let header = header(lane, payload.len()).expect("a piece");
        self.peer.write_all(&[&header, payload].concat()).await.expect("the link reads");
    }

    async fn hear(&mut self) -> (Lane, Vec<u8>) {
        let mut head = [0; HEADER];
        self.peer.read_exact(&mut head).await.expect("a piece");
        let (lane, length) = parse_header(head).expect("sound");
        let mut payload = vec![0; length];
        self.peer.read_exact(&mut payload).await.expect("whole");
        (lane, payload)
    }

    async fn end(self) -> LinkEnd {
        tokio::time::timeout(PATIENCE, self.end).await.expect("ends in time").expect("no panic")
    }
}

/// A frame of ractor's handshake with one message field in it, as protobuf writes it.
fn auth(step: u8, inner: &[u8]) -> Vec<u8> {
    let field =
        |tag: u8, body: &[u8]| [&[tag, u8::try_from(body.len()).expect("short")], body].concat();
    let body = field(0x0a, &field(step, inner));
    [&(body.len() as u64).to_be_bytes(), body.as_slice()].concat()
}

/// The dialer's first frame.
fn named(claimed: &str) -> Vec<u8> {
    let text = [&[0x0a, u8::try_from(claimed.len()).expect("short")], claimed.as_bytes()].concat();
    auth(0x0a, &text)
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_ends_the_link_with_its_reason() {
    for why in [CloseReason::Left, CloseReason::Replaced, CloseReason::Renewed] {
        let mut world = world(silent().await.0, true, 1024);
        world.send(Lane::Control, &Control::Goodbye(why).encode().expect("encodes")).await;
        assert_eq!(world.end().await, LinkEnd::Goodbye(why));
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_stream_ends_the_link_wherever_it_comes() {
    let piece = header(Lane::System, 10).expect("a piece");
    for before in [&[] as &[u8], &piece[..2], &piece, &[&piece[..], b"half"].concat()] {
        let mut world = world(silent().await.0, true, 1024);
        world.peer.write_all(before).await.expect("written");
        world.peer.shutdown().await.expect("closed");
        assert_eq!(world.end().await, LinkEnd::Closed, "after {before:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_breaks_the_protocol_is_at_fault() {
    let bad_control = [&header(Lane::Control, 2).expect("a piece")[..], &[0, 99]].concat();
    let long_control = [&header(Lane::Control, 400).expect("a piece")[..], &[0; 400]].concat();
    for (bytes, why) in [
        (&[6_u8, 0, 0, 1, 0] as &[u8], "no lane 6"),
        (&[0, 0, 0, 0], "a piece of 0 bytes"),
        (&[2, 0, 0, 0], "a piece of 0 bytes"),
        (&[2, 1, 2, 1], "a piece of 66049 bytes"),
        (&[1, 255, 255, 255], "a piece of 16777215 bytes"),
        (&bad_control, "control message: malformed"),
        (&long_control, "control message: 400 bytes where at most 256 are allowed"),
    ] {
        let mut world = world(silent().await.0, true, 1024);
        world.peer.write_all(bytes).await.expect("written");
        assert_eq!(world.end().await, LinkEnd::Fault(why.to_owned()));
    }
}

#[tokio::test(start_paused = true)]
async fn ractor_hears_nothing_before_the_peer_has_named_itself() {
    let mut world = world(silent().await.0, true, 1024);
    let first = named(PEER);
    let (half, rest) = first.split_at(first.len() - 1);
    for byte in half {
        world.send(Lane::Ractor, &[*byte]).await;
    }
    settled().await;
    let mut got = vec![0; first.len()];
    let early = tokio::time::timeout(Duration::from_secs(1), world.ractor.read(&mut got)).await;
    assert!(early.is_err(), "held: {early:?}");
    world.send(Lane::Ractor, rest).await;
    world.ractor.read_exact(&mut got).await.expect("passes");
    assert_eq!(got, first);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_names_another_node_is_cut_off_before_ractor_hears_it() {
    let claim = [
        (true, named("c@127.0.0.1")),
        (false, [auth(0x12, &[]), auth(0x22, &named("c@127.0.0.1")[12..])].concat()),
    ];
    for (inbound, bytes) in claim {
        let mut world = world(silent().await.0, inbound, 1024);
        world.send(Lane::Ractor, &bytes).await;
        let (mut ractor, (rest, _)) = (world.ractor, duplex(1));
        world.ractor = rest;
        let end = world.end().await;
        let LinkEnd::Fault(fault) = &end else { panic!("{end:?}") };
        assert!(fault.contains("claims the name \"c@127.0.0.1\""), "{fault}");
        let mut heard = Vec::new();
        ractor.read_to_end(&mut heard).await.expect("closed");
        let status = auth(0x12, &[]); // names nobody, and may pass
        assert!(heard.is_empty() || (!inbound && heard == status), "{heard:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn ractor_closing_its_end_ends_the_link() {
    let mut world = world(silent().await.0, true, 1024);
    world.ractor.shutdown().await.expect("closed");
    assert_eq!(world.end().await, LinkEnd::Closed);
}

#[tokio::test(start_paused = true)]
async fn words_reach_listeners_with_the_peers_name() {
    let metrics = Metrics::default();
    let bus = Bus::new(&Exchange::new(name("a@127.0.0.1"), &metrics));
    let (_root, _) = run(&metrics, vec![bus.child()]).await;
    let (tx, mut heard) = unbounded_channel();
    bus.attach(Consumer::Discovery, move |news| drop(tx.send(read(news))));
    let mut world = world(bus, true, 1024);
    // What one exchange sends, another understands.
    world.post(b"told");
    let (lane, piece) = world.hear().await;
    assert_eq!(lane, Lane::System);
    world.send(Lane::System, &piece).await;
    assert_eq!(next(&mut heard).await, Notice::Up(name(PEER), Incarnation(1)));
    assert_eq!(next(&mut heard).await, Notice::Message(name(PEER), b"told".to_vec()));
    // What the peer's actors get wrong is counted and costs nobody the link.
    world.send(Lane::System, &whole(&[0xff; 9])).await;
    until("counted", || counted(&metrics, "node_messages", "malformed") == 1).await;
    assert!(!world.end.is_finished());
}

#[tokio::test(start_paused = true)]
async fn what_waits_at_the_door_is_bounded_and_the_reader_holds() {
    let (bus, mut guard) = silent().await;
    let World { mut peer, end, ractor: _ractor, part: _part, control: _control, .. } =
        world(bus, true, 1024);
    let written = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let writing = written.clone();
    tokio::spawn(async move {
        let payload = whole(&[1; WORDS]);
        let head = header(Lane::System, payload.len()).expect("a piece");
        loop {
            peer.write_all(&[&head[..], &payload].concat()).await.expect("still linked");
            writing.fetch_add(1, Ordering::Relaxed);
        }
    });
    settled().await;
    // One more piece may have been read, and waits for room.
    let taken = written.load(Ordering::Relaxed);
    assert!((WAITING..=WAITING + 2).contains(&taken), "{taken} pieces were read");
    assert_eq!(guard.release_words(), Some(WORDS));
    settled().await;
    assert_eq!(written.load(Ordering::Relaxed), taken + 1, "room for one is room for one");
    let waiting = guard.waiting();
    assert_eq!(waiting.len(), WAITING);
    settled().await;
    assert!(guard.waiting().is_empty(), "no room, no more pieces");
    drop(waiting);
    settled().await;
    assert_eq!(guard.waiting().len(), WAITING);
    assert!(!end.is_finished());
}

#[tokio::test(start_paused = true)]
async fn door_and_ractor_both_have_their_turn_and_each_keeps_its_order() {
    let mut world = world(silent().await.0, true, 1 << 20);
    world.ractor.write_all(RACTOR).await.expect("written");
    world.post(b"one");
    world.post(b"two");
    let mut heard = [world.hear().await, world.hear().await];
    heard.sort();
    assert_eq!(heard[0], (Lane::Ractor, RACTOR.to_vec()));
    let (lane, words) = &heard[1];
    assert_eq!(*lane, Lane::System);
    let (first, second) = words[1..].split_at(1 + usize::from(words[1]));
    let told = [first, second].map(|words| parts(&words[1..]).1);
    assert_eq!(told, [b"one", b"two"], "what is there goes together");
    // A newer link takes the exchange's words with it; ractor goes on.
    let _newer = world.bus.exchange().topics.up(name(PEER), Capabilities::ALL);
    world.post(b"three");
    world.ractor.write_all(MORE).await.expect("written");
    assert_eq!(world.hear().await, (Lane::Ractor, MORE.to_vec()));
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_goes_first_and_nothing_follows() {
    let mut world = world(silent().await.0, true, 1 << 20);
    world.ractor.write_all(RACTOR).await.expect("written");
    world.post(b"words");
    world.control.try_send(Control::Ping(1)).expect("room");
    world.part.take().expect("once").send(CloseReason::Renewed).expect("the link runs");
    let goodbye = Control::Goodbye(CloseReason::Renewed).encode().expect("encodes");
    assert_eq!(world.hear().await, (Lane::Control, goodbye));
    let mut rest = Vec::new();
    world.peer.read_to_end(&mut rest).await.expect("closed");
    assert_eq!(rest, b"");
    assert_eq!(world.end().await, LinkEnd::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_link_whose_owner_is_gone_ends() {
    let mut world = world(silent().await.0, true, 1024);
    drop(world.part.take());
    assert_eq!(world.end().await, LinkEnd::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_is_found_although_nobody_takes_our_own_words() {
    let mut world = world(silent().await.0, true, 1024);
    world
        .send(Lane::Control, &Control::Goodbye(CloseReason::Left).encode().expect("encodes"))
        .await;
    world.post(&[1; 4096]);
    let (rest, _) = duplex(1);
    drop(std::mem::replace(&mut world.peer, rest));
    assert_eq!(world.end().await, LinkEnd::Goodbye(CloseReason::Left));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_read_holds_up_no_parting() {
    let mut world = world(silent().await.0, true, 16);
    let start = timer::now();
    world.part.take().expect("once").send(CloseReason::Left).expect("the link runs");
    let (rest, _) = duplex(1);
    let _unread = std::mem::replace(&mut world.peer, rest);
    assert_eq!(world.end().await, LinkEnd::Closed);
    assert!(timer::now() - start <= Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn a_beat_is_echoed_before_anything_else_and_leaves_its_signs() {
    let mut world = world(silent().await.0, true, 1 << 20);
    let began = timer::now();
    assert_eq!((world.pulse.heard(), world.pulse.pongs()), (began, Vec::new()));
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.ractor.write_all(RACTOR).await.expect("written");
    world.send(Lane::System, &whole(&[0xff])).await;
    world.send(Lane::Control, &Control::Ping(77).encode().expect("encodes")).await;
    let mut heard = [world.hear().await, world.hear().await];
    heard.sort_by_key(|(_, payload)| payload.len());
    let pong = Control::Pong(77).encode().expect("encodes");
    assert_eq!(heard, [(Lane::Control, pong), (Lane::Ractor, RACTOR.to_vec())]);
    assert!(world.pulse.heard() >= began + Duration::from_secs(2));
    assert!(world.pulse.pongs().is_empty());
    assert_eq!(world.pulse.round_trip(), None, "the peer's beat measures nothing here");

    // Our own beat, and its echo after three seconds.
    world.control.send(Control::Ping(world.pulse.micros())).await.expect("room");
    let (lane, ping) = world.hear().await;
    let Some(Control::Ping(number)) = Control::decode(&ping).expect("sound") else {
        panic!("{ping:?}")
    };
    assert_eq!(lane, Lane::Control);
    tokio::time::sleep(Duration::from_secs(3)).await;
    world.send(Lane::Control, &Control::Pong(number).encode().expect("encodes")).await;
    settled().await;
    let trip = world.pulse.round_trip().expect("measured").last;
    assert!(trip >= Duration::from_secs(3) && trip < Duration::from_secs(4), "{trip:?}");
    // An echo of a beat that was never sent is no news.
    world.send(Lane::Control, &Control::Pong(u64::MAX).encode().expect("encodes")).await;
    settled().await;
    assert_eq!(world.pulse.round_trip().expect("measured").last, trip);
    assert!(!world.end.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_floods_beats_and_reads_nothing_costs_a_bounded_queue() {
    let mut world = world(silent().await.0, true, 16);
    let ping = Control::Ping(1).encode().expect("encodes");
    for _ in 0..1000 {
        world.send(Lane::Control, &ping).await; // never blocks: the reader goes on
    }
    settled().await;
    assert_eq!(world.control.capacity(), 0, "full");
    assert!(!world.end.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_costs_more_than_its_share_is_read_in_pauses_and_cut_when_it_goes_on() {
    /// Patterns in a piece.
    const MANY: usize = 1_000;
    let bus = silent().await.0;
    let metrics = bus.exchange().metrics().clone();
    let World { mut peer, end, ractor: _ractor, part: _part, control: _control, .. } =
        world(bus, true, 1024);
    let (began, read) = (timer::now(), Arc::new(AtomicU64::new(0)));
    let count = read.clone();
    tokio::spawn(async move {
        let mut pattern = Vec::new();
        talk::interest(&mut pattern, &Interest::below("a:").expect("sound"), true);
        let payload = [&[0], whole(&pattern)[1..].repeat(MANY).as_slice()].concat();
        let head = header(Lane::Calls, payload.len()).expect("a piece");
        while peer.write_all(&[&head[..], &payload].concat()).await.is_ok() {
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    settled().await;
    assert!(read.load(Ordering::Relaxed) > 20, "a burst waits for nothing");
    tokio::time::sleep(Duration::from_secs(10)).await;
    let spent = read.load(Ordering::Relaxed) * MANY as u64 * PATTERN;
    let spent = Duration::from_nanos(spent).as_secs_f64();
    assert!((1.4..1.6).contains(&spent), "half a second, and a tenth of ten: {spent}");
    assert!(counted(&metrics, "node_messages", "reader_paused") > 20);
    let LinkEnd::Fault(fault) = end.await.expect("no panic") else { panic!("not at fault") };
    assert_eq!(fault, "more processor time than a peer may cost, for too long");
    let lasted = timer::now() - began;
    assert!(lasted > Duration::from_secs(30) && lasted < Duration::from_secs(60), "{lasted:?}");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_read_holds_up_no_parting_midway() {
    let mut world = world(silent().await.0, true, 16);
    world.post(&[1; 4096]);
    settled().await; // the piece is on its way, and stuck
    let start = timer::now();
    world.part.take().expect("once").send(CloseReason::Left).expect("the link runs");
    let (rest, _) = duplex(1);
    let _unread = std::mem::replace(&mut world.peer, rest);
    assert!(matches!(world.end().await, LinkEnd::Closed | LinkEnd::TimedOut));
    assert!(timer::now() - start <= Duration::from_secs(2));
}

/// Bytes a second each way: a piece takes 13 ms.
const RATE: u64 = 5_000_000;

/// One end of a link whose outlet is always full of bulk.
struct Busy {
    pulse: Arc<Pulse>,
    monitor: Heartbeat,
    doubts: Vec<heartbeat::Output>,
    end: JoinHandle<LinkEnd>,
    _rest: (DuplexStream, oneshot::Sender<CloseReason>),
}

impl Busy {
    /// Says as much as the link takes, and hears all that the other says.
    fn start(stream: DuplexStream, bus: &Bus, other: &str, carried: &Arc<AtomicU64>) -> Self {
        let (mut pipe, ractor) = duplex(PIPE);
        let (part, parting) = oneshot::channel();
        let (control, controls) = mpsc::channel(CONTROLS);
        let pulse = Arc::new(Pulse::new(control, None));
        let own = Own {
            parting,
            controls,
            pulse: pulse.clone(),
            lists: None,
            revoked: Box::new(|| false),
        };
        let topic: Topic = "bulk".parse().expect("valid");
        let mut heard = bus.exchange().subscribe(topic.clone()).expect("few");
        let guard = LinkGuard::open(bus, (name(other), Capabilities::ALL), Incarnation(1));
        let gate = gate(true, name(other), &guard);
        let end = tokio::spawn(async move { run_mux(stream, gate, &mut pipe, guard, own).await });
        let (says, to, payload) = (bus.clone(), name(other), Bytes::from(vec![0; MAX_PAYLOAD]));
        tokio::spawn(async move {
            let mut said = Ok(());
            while said != Err(SendError::NotConnected) {
                said = says.exchange().publish_to(&to, &topic, payload.clone()).await;
            }
        });
        let (carried, me) = (carried.clone(), name(other));
        tokio::spawn(async move {
            while let Some(Received::Message(message)) = heard.recv().await {
                if message.from == me {
                    carried.fetch_add(message.payload.len() as u64, Ordering::Relaxed);
                }
            }
        });
        let mut monitor = Heartbeat::new(heartbeat::Config::default(), name("a@127.0.0.1"));
        monitor.handle(heartbeat::Input::Linked(name(PEER)), timer::now(), &mut Vec::new());
        Self { pulse, monitor, doubts: Vec::new(), end, _rest: (ractor, part) }
    }

    /// What HeartbeatMonitor does with a pulse.
    fn look(&mut self) {
        let mut out = Vec::new();
        let pongs = self.pulse.pongs().into_iter();
        let pongs = pongs.map(|took| heartbeat::Input::Pong(name(PEER), took));
        let heard = heartbeat::Input::Heard(name(PEER), self.pulse.heard());
        for input in pongs.chain([heard, heartbeat::Input::Tick]) {
            self.monitor.handle(input, timer::now(), &mut out);
        }
        for output in out {
            if let heartbeat::Output::Beat(_) = output {
                self.pulse.beat();
            } else {
                self.doubts.push(output);
            }
        }
    }
}

/// A line that carries so many bytes a second.
async fn line(mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin, rate: u64) {
    let mut bytes = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut bytes).await {
        tokio::time::sleep(Duration::from_micros(length as u64 * 1_000_000 / rate)).await;
        to.write_all(&bytes[..length]).await.expect("the link reads");
    }
}

#[tokio::test(start_paused = true)]
async fn half_a_minute_of_bulk_both_ways_delays_no_beat_into_a_doubt() {
    let guards =
        ["a@127.0.0.1", PEER].map(|me| Bus::new(&Exchange::new(name(me), &Metrics::default())));
    let carried = Arc::new(AtomicU64::new(0));
    let ((a, to_a), (b, to_b)) = (duplex(64 * 1024), duplex(64 * 1024));
    let ((a_reads, a_writes), (b_reads, b_writes)) = (split(to_a), split(to_b));
    tokio::spawn(line(a_reads, b_writes, RATE));
    tokio::spawn(line(b_reads, a_writes, RATE));
    let mut ends = [
        Busy::start(a, &guards[0], PEER, &carried),
        Busy::start(b, &guards[1], "a@127.0.0.1", &carried),
    ];
    for _ in 0..300 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        ends.iter_mut().for_each(Busy::look);
    }
    let carried = carried.load(Ordering::Relaxed);
    assert!(carried > 2 * 20 * RATE, "the line was busy all the time: {carried} bytes");
    for end in &ends {
        assert_eq!(end.doubts, []);
        assert!(!end.end.is_finished());
        let trip = end.pulse.round_trip().expect("measured");
        // Each way: what the pipe holds, and one piece that is under way.
        assert!(trip.p99 < Duration::from_millis(150), "{trip:?}");
    }
}
