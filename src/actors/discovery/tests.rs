//! Discovery with a mock of NodeManager, and beacons that arrive without a network.

use super::*;
use crate::actors::exchange::Exchange;
use crate::actors::news::tests::{Wire, parts};
use crate::actors::peers::tests::{Mock, online};
use crate::actors::supervisor::{ActorTable, Root};
use crate::actors::tests::{PATIENCE, cluster, contact, counted, name, run, settled, until};
use crate::proto::discovery::CONTACTS;

const B: &str = "b@127.0.0.1";

struct World {
    ids: Vec<Arc<Identity>>,
    discovery: Discovery,
    bus: Bus,
    metrics: Metrics,
    peers: Peers,
    asked: Mock,
    roster: ActorTable,
    _root: Root,
}

/// Node a of a cluster of a, b and c.
async fn world(change: impl FnOnce(&mut Setup)) -> World {
    let ids: Vec<_> =
        cluster(&["a@127.0.0.1", B, "c@127.0.0.1"]).into_iter().map(Arc::new).collect();
    let metrics = Metrics::default();
    let bus = Bus::new(&Exchange::new(name("a@127.0.0.1"), &metrics));
    let discovery = Discovery::new(&metrics);
    let (peers, asked) = Mock::start().await;
    let mut setup = Setup {
        config: Config::default(),
        identity: ids[0].clone(),
        incarnation: Arc::new(AtomicU64::new(3)),
        advertise: contact("a@127.0.0.1", 4000, 3).address,
        socket: None,
        seeds: Vec::new(),
        remembered: Vec::new(),
        sequence: Arc::default(),
        peers: peers.clone(),
        bus: bus.clone(),
        metrics: metrics.clone(),
    };
    change(&mut setup);
    let children = vec![bus.child(), discovery.child(setup)];
    let (_root, roster) = run(&metrics, children).await;
    World { ids, discovery, bus, metrics, peers, asked, roster, _root }
}

impl World {
    /// What the node with this identity would send now.
    fn beacon(&self, of: usize, sequence: u64) -> Beacon {
        let identity = &self.ids[of];
        let contact = contact(identity.name().as_str(), 5000, 1);
        Beacon { cluster: identity.cluster(), contact, sequence, sent: clock::millis() }
    }

    fn sealed(&self, of: usize, beacon: &Beacon) -> Vec<u8> {
        beacon::sealed(beacon, &self.ids[of]).expect("fits")
    }

    /// A datagram arrives; the verdict that is counted.
    async fn hear(&self, datagram: Vec<u8>, verdict: Verdict) {
        let before = self.count(verdict);
        let room = Arc::new(Semaphore::new(1));
        let permit = room.clone().acquire_owned().await.expect("open");
        self.discovery.handle.cast(Msg::Datagram(datagram, permit));
        let handled = tokio::time::timeout(PATIENCE, room.acquire()).await;
        let _returned = handled.expect("in time").expect("open");
        assert_eq!(self.count(verdict), before + 1, "{verdict:?}");
    }

    fn count(&self, verdict: Verdict) -> u64 {
        counted(&self.metrics, "beacons_received", verdict.label())
    }

    async fn contact(&mut self) -> (Contact, Source) {
        let ask = self.asked.next().await;
        if let Ask::Told(by, contact) = ask {
            assert_eq!(by, B.parse().expect("valid"));
            return (contact, Source::Peer);
        }
        if let Ask::Beacon(contact, of) = ask {
            let identity = self.ids.iter().find(|it| *it.name() == contact.name);
            assert_eq!(identity.map(|it| it.id()), Some(of.key));
            return (contact, Source::Beacon);
        }
        if let Ask::Hint(contact, source) = ask { (contact, source) } else { panic!("{ask:?}") }
    }

    /// The bus to a peer, as its link would drain it.
    fn outlet(&self, peer: &str) -> Wire {
        Wire::open(&self.bus, peer)
    }

    /// These peers are linked.
    fn linked(&self, contacts: &[Contact]) {
        let row = |contact: &Contact| {
            let mut row = online(contact.name.clone());
            (row.peer.address, row.peer.incarnation) = (Some(contact.address), contact.incarnation);
            row
        };
        self.peers.publish(|_| contacts.iter().map(row).collect());
    }

    /// A message of peer b on the topic for contacts arrives.
    fn received(&self, payload: Vec<u8>) {
        self.outlet(B).deliver(Topic::network_peers(), payload);
    }
}

/// What words of the bus say.
fn contacts(words: &[u8]) -> Vec<Contact> {
    let (topic, payload) = parts(words);
    assert_eq!(topic, Topic::network_peers());
    let word = codec::decode(&payload, MAX_PAYLOAD).expect("a word");
    if let Word::Contacts(contacts) = word { contacts } else { panic!("{word:?}") }
}

#[tokio::test]
async fn a_genuine_beacon_is_a_hint() {
    let mut world = world(|_| {}).await;
    let beacon = world.beacon(1, 1);
    world.hear(world.sealed(1, &beacon), Verdict::Accepted).await;
    assert_eq!(world.contact().await, (beacon.contact, Source::Beacon));
}

#[tokio::test]
async fn what_is_no_genuine_beacon_is_counted_and_no_hint() {
    let mut world = world(|_| {}).await;
    let genuine = world.beacon(1, 5);
    let forged = world.sealed(2, &genuine); // c says it is b
    world.hear(forged, Verdict::Forged).await;
    let mut tampered = world.sealed(1, &genuine);
    *tampered.last_mut().expect("a signature") ^= 1;
    world.hear(tampered, Verdict::Forged).await;
    let stranger = &cluster(&[B])[0];
    let foreign = Beacon { cluster: stranger.cluster(), ..genuine.clone() };
    let foreign = beacon::sealed(&foreign, stranger).expect("fits");
    world.hear(foreign, Verdict::Foreign).await;
    let claims = beacon::sealed(&genuine, stranger).expect("fits");
    world.hear(claims, Verdict::Forged).await;
    let mut own = world.beacon(0, 1);
    own.contact.address = contact("a@127.0.0.1", 4000, 3).address;
    world.hear(world.sealed(0, &own), Verdict::Echo).await;
    for sent in [genuine.sent - 200_000, genuine.sent + 200_000] {
        let stale = Beacon { sent, ..genuine.clone() };
        world.hear(world.sealed(1, &stale), Verdict::Stale).await;
    }
    for malformed in [vec![], vec![0; 100], vec![7; MAX_BEACON + 1]] {
        world.hear(malformed, Verdict::Malformed).await;
    }
    let mut other = world.sealed(1, &genuine);
    other[3] = 9;
    world.hear(other, Verdict::Version).await;
    assert!(world.asked.heard().is_none(), "not one is a hint");

    // None of them has silenced the genuine one, which counts once.
    world.hear(world.sealed(1, &genuine), Verdict::Accepted).await;
    world.hear(world.sealed(1, &genuine), Verdict::Replayed).await;
    let older = world.beacon(1, 4);
    world.hear(world.sealed(1, &older), Verdict::Replayed).await;
    assert_eq!(world.contact().await, (genuine.contact, Source::Beacon));
    assert!(world.asked.heard().is_none());
}

#[tokio::test]
async fn the_remembered_and_the_seeds_are_hints_at_every_start() {
    let remembered = [contact(B, 1, 1), contact("c@127.0.0.1", 2, 7)];
    let mut world = world(|setup| {
        setup.remembered = remembered.to_vec();
        setup.seeds = vec!["127.0.0.1:9999".parse().expect("valid")];
    })
    .await;
    for life in 0..2 {
        let (mut known, mut seeds) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let ask = world.asked.next().await;
            if let Ask::Hint(contact, Source::Remembered) = ask {
                known.push(contact);
            } else if let Ask::Seed(address) = ask {
                seeds.push(address.to_string());
            } else {
                panic!("{ask:?}");
            }
        }
        assert_eq!(
            (known.as_slice(), seeds.as_slice()),
            (&remembered[..], &["127.0.0.1:9999".to_owned()][..])
        );
        if life == 0 {
            assert!(world.roster.kill("discovery"));
        }
    }
    // The next life hears again, once the handle points at it.
    let probe = SocketAddr::from(([127, 0, 0, 1], 1));
    until("it hears", || {
        world.discovery.handle.cast(Msg::LookedUp(0, Ok(vec![probe])));
        world.asked.heard() == Some(Ask::Seed(probe))
    })
    .await;
    let beacon = world.beacon(1, 1);
    world.hear(world.sealed(1, &beacon), Verdict::Accepted).await;
    let heard = loop {
        if let Ask::Beacon(contact, _) = world.asked.next().await {
            break contact;
        }
    };
    assert_eq!(heard, beacon.contact);
}

#[tokio::test]
async fn after_a_restart_a_beacon_may_be_heard_once_more() {
    let mut world = world(|_| {}).await;
    let beacon = world.beacon(1, 1);
    world.hear(world.sealed(1, &beacon), Verdict::Accepted).await;
    world.hear(world.sealed(1, &beacon), Verdict::Replayed).await;
    assert!(world.roster.kill("discovery"));
    until("restarted", || counted(&world.metrics, "actor_restarts", "discovery") == 1).await;
    until("it hears", || {
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("free");
        let datagram = world.sealed(1, &beacon);
        world.discovery.handle.cast(Msg::Datagram(datagram, permit));
        world.count(Verdict::Accepted) == 2
    })
    .await;
    for _ in 0..2 {
        assert_eq!(world.contact().await.0, beacon.contact);
    }
}

#[tokio::test]
async fn a_peer_that_comes_online_is_told_who_else_is_linked() {
    let mut world = world(|_| {}).await;
    let others = vec![contact("c@127.0.0.1", 2, 1), contact("d@127.0.0.1", 3, 9)];
    world.linked(&[&[contact(B, 1, 1)], others.as_slice()].concat());
    let mut wire = world.outlet(B);
    assert_eq!(contacts(&wire.next().await), others, "all but itself");
    // Nobody else is linked: nothing to tell.
    world.linked(&[contact(B, 1, 1)]);
    let mut alone = world.outlet(B);
    alone.deliver(
        Topic::network_peers(),
        codec::encode(&Word::Contacts(others.clone())).expect("encodes"),
    );
    world.contact().await; // what came before is done
    world.linked(&[contact(B, 1, 1), contact("x@127.0.0.1", 9, 9)]);
    let mut again = world.outlet("c@127.0.0.1");
    until("told again", || again.try_words().is_some()).await;
    assert!(alone.try_words().is_none());
}

#[tokio::test]
async fn many_contacts_are_told_in_several_messages() {
    let world = world(|_| {}).await;
    let many: Vec<_> = (1..=300).map(|n| contact(&format!("n{n}@127.0.0.1"), n, 1)).collect();
    world.linked(&many);
    let mut wire = world.outlet(B);
    let mut told = Vec::new();
    while told.len() < many.len() {
        let some = contacts(&wire.next().await);
        assert!(some.len() <= CONTACTS);
        told.extend(some);
    }
    assert_eq!(told, many);
}

#[tokio::test(start_paused = true)]
async fn now_and_then_a_random_linked_peer_is_told() {
    let world = world(|_| {}).await;
    let both = vec![contact(B, 1, 1), contact("c@127.0.0.1", 2, 1)];
    let (to_b, to_c) = (world.outlet(B), world.outlet("c@127.0.0.1"));
    settled().await;
    world.linked(&both);
    let start = timer::now();
    for (mut wire, other) in [(to_b, &both[1]), (to_c, &both[0])] {
        // Each turn tells one of two: within an hour both had theirs.
        let words = tokio::time::timeout(Duration::from_secs(3600), wire.words()).await;
        let told = contacts(&words.expect("in time"));
        assert_eq!(told, std::slice::from_ref(other));
    }
    assert!(timer::now() - start >= Duration::from_secs(3));
}

#[tokio::test]
async fn what_a_peer_tells_is_a_hint_of_a_peer_and_bounded() {
    let mut world = world(|_| {}).await;
    let many: Vec<_> = (1..=200).map(|n| contact(&format!("n{n}@127.0.0.1"), n, 1)).collect();
    world.received(codec::encode(&Word::Contacts(many.clone())).expect("encodes"));
    for expected in &many[..CONTACTS] {
        assert_eq!(world.contact().await, (expected.clone(), Source::Peer));
    }
    let last = contact("last@127.0.0.1", 1, 1);
    world.received(codec::encode(&Word::Contacts(vec![last.clone()])).expect("encodes"));
    assert_eq!(world.contact().await, (last, Source::Peer), "the 72 beyond the bound are dropped");
}

#[tokio::test]
async fn a_malformed_list_is_counted_and_no_hint() {
    let mut world = world(|_| {}).await;
    let list = codec::encode(&Word::Contacts(vec![contact(B, 1, 1)])).expect("encodes");
    for bad in [vec![0xff; 30], [list.clone(), vec![0]].concat(), list[..list.len() - 1].to_vec()] {
        world.received(bad);
    }
    until("counted", || counted(&world.metrics, "node_messages", "malformed") == 3).await;
    assert!(world.asked.heard().is_none());
    world.received(list);
    assert_eq!(world.contact().await.1, Source::Peer);
}

#[tokio::test]
async fn datagrams_on_the_socket_are_read_and_beacons_sent_count_up_across_lives() {
    let socket = || {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        socket.set_nonblocking(true).expect("nonblocking");
        // What it sends to the group goes nowhere.
        socket.set_multicast_ttl_v4(0).expect("set");
        socket.set_multicast_loop_v4(false).expect("set");
        Arc::new(socket)
    };
    let (ours, sequence) = (socket(), Arc::new(AtomicU64::new(0)));
    let (given, count) = (ours.clone(), sequence.clone());
    let mut world = world(move |setup| {
        setup.socket = Some(given);
        setup.sequence = count;
    })
    .await;
    assert_eq!(sequence.load(Ordering::Relaxed), 1, "the first beacon goes out at the start");
    let beacon = world.beacon(1, 1);
    let to = ours.local_addr().expect("bound");
    socket().send_to(&world.sealed(1, &beacon), to).expect("sent");
    assert_eq!(world.contact().await, (beacon.contact, Source::Beacon));
    socket().send_to(&[1; MAX_BEACON + 500], to).expect("sent");
    until("counted", || world.count(Verdict::Malformed) == 1).await;
    assert!(world.roster.kill("discovery"));
    until("restarted", || sequence.load(Ordering::Relaxed) > 1).await;
    let beacon = world.beacon(2, 1);
    socket().send_to(&world.sealed(2, &beacon), to).expect("sent");
    assert_eq!(world.contact().await, (beacon.contact, Source::Beacon), "the socket survives");
}

#[tokio::test]
async fn another_process_of_this_name_is_heard_and_is_no_contact() {
    let mut world = world(|_| {}).await;
    let mut other = world.beacon(0, 1);
    other.sent += 1000; // after this process began
    world.hear(world.sealed(0, &other), Verdict::Namesake).await;
    let Ask::Namesake(address) = world.asked.next().await else { panic!("no word of it") };
    assert_eq!(address, other.contact.address);
    let forged = Beacon { sequence: 2, ..other };
    world.hear(world.sealed(1, &forged), Verdict::Forged).await;
}

#[tokio::test]
async fn what_became_of_each_seed_is_kept() {
    let seed = |text: &str| text.parse::<Seed>().expect("valid");
    let world = world(|setup| setup.seeds = vec![seed("127.0.0.1:9999"), seed("[::1]:9999")]).await;
    let me = name("a@127.0.0.1");
    let rows = || world.discovery.seeds(&world.peers, &me);
    until("both are looked up", || rows().iter().all(|row| row.address.is_some())).await;
    world.discovery.handle.cast(Msg::LookedUp(1, Err(std::io::Error::other("no such host"))));
    until("one fails", || rows()[1].error.is_some()).await;
    let told: Vec<_> = rows().iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        ["127.0.0.1:9999: no answer yet", "[::1]:9999: cannot be looked up: no such host"]
    );
}

#[tokio::test(start_paused = true)]
async fn what_a_node_says_itself_through_a_peer_is_a_hint_if_its_seal_holds() {
    let mut world = world(|_| {}).await;
    let c = name("c@127.0.0.1");
    let genuine = world.beacon(2, 0);
    let sealed = world.sealed(2, &genuine);
    let forged = world.sealed(1, &genuine);
    let long_ago = Beacon { sent: genuine.sent - 200_000, ..genuine.clone() };
    let old = world.sealed(2, &long_ago);
    let mut wire = world.outlet(B);
    let list = codec::encode(&Word::Contacts(vec![genuine.contact.clone()])).expect("encodes");
    wire.deliver(Topic::network_peers(), list);
    assert_eq!(world.contact().await, (genuine.contact.clone(), Source::Peer));
    let (_, asked) = parts(&wire.next().await);
    assert_eq!(codec::decode(&asked, MAX_PAYLOAD), Ok(Word::Show(c)));
    for (shown, verdict) in
        [(forged, Verdict::Forged), (old, Verdict::Stale), (sealed, Verdict::Relayed)]
    {
        let word = codec::encode(&Word::Shown(shown)).expect("encodes");
        wire.deliver(Topic::network_peers(), word);
        until("judged", || world.count(verdict) == 1).await;
    }
    let ask = world.asked.next().await;
    assert_eq!(ask, Ask::Hint(genuine.contact, Source::Peer));
    assert!(world.asked.heard().is_none());
}

#[tokio::test]
async fn a_node_that_is_asked_shows_itself() {
    let world = world(|_| {}).await;
    let mut wire = world.outlet(B);
    let word = codec::encode(&Word::Show(name("a@127.0.0.1"))).expect("encodes");
    wire.deliver(Topic::network_peers(), word);
    let (_, answer) = parts(&wire.next().await);
    let Ok(Word::Shown(sealed)) = codec::decode(&answer, MAX_PAYLOAD) else { panic!() };
    let sealed = Beacon::decode(&sealed).expect("a beacon");
    let contact = contact("a@127.0.0.1", 4000, 3);
    assert_eq!((&sealed.beacon.contact, sealed.beacon.sequence), (&contact, 0));
    assert!(SealChecker::new(world.ids[1].verifier()).holds(&sealed).is_some());
}
