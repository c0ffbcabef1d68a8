//! Attempts over real loopback TCP: a Link actor on one side, the test on the other.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use super::*;
use crate::proto::hello::{Greeting, MAX_GREETING};
use crate::proto::node::KeyId;

/// The test's end of a connection: a certificate, and whatever the test says.
pub(super) struct Peer(TlsStream<TcpStream>);

impl Peer {
    pub(super) async fn dial(identity: &Identity, address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("it listens");
        let tls = Tls::new(identity).expect("a sound identity");
        Self(tls.connect(stream).await.expect("the same cluster").0.into())
    }

    async fn accept(identity: &Identity, listener: &tokio::net::TcpListener) -> Self {
        let (stream, _) = listener.accept().await.expect("dialed");
        let tls = Tls::new(identity).expect("a sound identity");
        Self(tls.accept(stream).await.expect("the same cluster").0.into())
    }

    pub(super) async fn send(&mut self, greeting: &Greeting) {
        self.write(&greeting.encode().expect("encodes")).await;
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.expect("sent");
        self.0.flush().await.expect("sent");
    }

    pub(super) async fn hear(&mut self) -> Greeting {
        let reading = async {
            let mut body = vec![0; usize::from(self.0.read_u16().await.expect("an answer"))];
            self.0.read_exact(&mut body).await.expect("whole");
            Greeting::decode(&body).expect("sound")
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("in time")
    }

    /// The other side says nothing more, and closes.
    async fn closed(&mut self) {
        let mut rest = Vec::new();
        // Closed with or without a word of TLS.
        drop(tokio::time::timeout(PATIENCE, self.0.read_to_end(&mut rest)).await.expect("in time"));
        assert_eq!(rest, b"");
    }
}

fn words(identity: &Identity) -> Hello {
    crate::actors::tests::myself(identity, SocketAddr::from(([127, 0, 0, 1], 9))).hello()
}

pub(super) fn hello(identity: &Identity) -> Greeting {
    Greeting::Hello(words(identity))
}

/// A node, and the identity of the peer that the test plays.
async fn node_and_peer() -> (Node, Identity) {
    let mut ids = cluster(&["a@127.0.0.1", "b@127.0.0.1"]);
    let peer = ids.pop().expect("two");
    (Node::start(&ids[0]).await, peer)
}

async fn listener() -> (tokio::net::TcpListener, SocketAddr) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

fn refused(node: &Node, kind: &str) -> u64 {
    counted(&node.metrics, "connections_refused", kind)
}

#[tokio::test]
async fn a_dial_to_nothing_is_refused() {
    let (mut node, _) = node_and_peer().await;
    let (listener, address) = listener().await;
    drop(listener);
    node.link.dial(OUT, address);
    let report = node.report().await;
    assert!(matches!(report, Report::Failed(OUT, Failure::Refused)), "{report:?}");
}

#[tokio::test]
async fn a_dial_to_the_silent_ends_in_time() {
    let (mut node, peer) = node_and_peer().await;
    let (listener, address) = listener().await;
    // Silent from the start.
    node.link.dial(OUT, address);
    let (mut stream, _) = listener.accept().await.expect("dialed");
    stream.read_u8().await.expect("TLS begins");
    tokio::time::pause();
    let start = timer::now();
    let Report::Failed(OUT, Failure::Unreachable(why)) = node.report().await else { panic!() };
    assert_eq!(why, "no TLS within 5 s");
    assert!(timer::now() - start <= Duration::from_secs(6));
    tokio::time::resume();
    // Silent after its certificate.
    let two = AttemptId::Outbound(2);
    node.link.dial(two, address);
    let mut other = Peer::accept(&peer, &listener).await;
    assert!(matches!(node.report().await, Report::Connected(..)));
    node.link.proceed(two);
    assert!(matches!(other.hear().await, Greeting::Hello(_)));
    tokio::time::pause();
    let Report::Failed(attempt, Failure::Unreachable(why)) = node.report().await else { panic!() };
    assert_eq!((attempt, why.as_str()), (two, "no hello within 5 s"));
}

#[tokio::test]
async fn a_dial_to_something_else_is_rejected() {
    let (mut node, _) = node_and_peer().await;
    let (listener, address) = listener().await;
    node.link.dial(OUT, address);
    let (mut stream, _) = listener.accept().await.expect("dialed");
    stream.write_all(b"SSH-2.0-OpenSSH_9.7\r\n").await.expect("sent");
    let report = node.report().await;
    assert!(matches!(report, Report::Failed(OUT, Failure::Rejected(_))), "{report:?}");
}

#[tokio::test]
async fn a_dialer_is_established_step_by_step() {
    let (mut node, id) = node_and_peer().await;
    let (listener, address) = listener().await;
    node.link.dial(OUT, address);
    let mut peer = Peer::accept(&id, &listener).await;
    let Report::Connected(OUT, name, key) = node.report().await else { panic!() };
    assert_eq!((&name, key.key), (id.name(), id.id()));
    node.link.proceed(OUT);
    let Greeting::Hello(hello) = peer.hear().await else { panic!("no hello") };
    assert_eq!((&hello.name, hello.advertise), (&node.name, node.address));
    peer.send(&Greeting::Welcome(words(&id))).await;
    let Report::Welcomed(OUT, welcome) = node.report().await else { panic!() };
    assert_eq!(welcome, words(&id));
    assert_eq!(node.existing_now().await, [], "not agreed yet");
}

impl Node {
    /// As `existing`, but keeps the attempts: links are what Bus has an outlet for.
    async fn existing_now(&self) -> Vec<()> {
        let before = counted(&self.metrics, "node_messages", "not_linked");
        self.bus.send(&name("b@127.0.0.1"), Topic::network_peers(), vec![]);
        until("tried", || counted(&self.metrics, "node_messages", "not_linked") > before).await;
        Vec::new()
    }
}

#[tokio::test]
async fn an_accepted_dialer_that_confirms_is_established() {
    let (mut node, id) = node_and_peer().await;
    let mut peer = Peer::dial(&id, node.address).await;
    peer.send(&hello(&id)).await;
    let Report::Greeted(attempt, heard, key) = node.report().await else { panic!() };
    assert_eq!((heard, key.key), (words(&id), id.id()));
    node.link.proceed(attempt);
    let Greeting::Welcome(welcome) = peer.hear().await else { panic!("not welcome") };
    assert_eq!((&welcome.name, welcome.incarnation), (&node.name, Incarnation(1)));
    peer.send(&Greeting::Confirm).await;
    assert!(matches!(node.report().await, Report::Confirmed(of) if of == attempt));
    let started = timer::now();
    node.link.proceed(attempt);
    // From here on the stream speaks in frames; the first are ractor's or none, until we part.
    until("linked", || {
        node.bus.send(id.name(), Topic::network_peers(), vec![7]);
        counted(&node.metrics, "node_messages", "sent") > 0
    })
    .await;
    assert!(started.elapsed() < PATIENCE);
    assert_eq!(node.existing().await, [(attempt, id.name().clone(), false)]);
    assert_eq!(counted(&node.metrics, "connections_accepted", "tls"), 1);
}

#[tokio::test]
async fn a_dialer_of_a_later_version_is_welcome_and_what_it_alone_knows_is_skipped() {
    let (mut node, id) = node_and_peer().await;
    let mut peer = Peer::dial(&id, node.address).await;
    let mut later = hello(&id).encode().expect("encodes");
    later[3] = 9; // its newest version
    later[4..8].fill(0xff); // its features
    later.extend_from_slice(b"field");
    let length = u16::try_from(later.len() - 2).expect("short");
    later[..2].copy_from_slice(&length.to_be_bytes());
    peer.write(&later).await;
    let Report::Greeted(attempt, heard, _) = node.report().await else { panic!() };
    assert_eq!(heard, words(&id));
    node.link.proceed(attempt);
    assert!(matches!(peer.hear().await, Greeting::Welcome(_)));
    peer.send(&Greeting::Confirm).await;
    assert!(matches!(node.report().await, Report::Confirmed(of) if of == attempt));
    node.link.proceed(attempt);
    // A control message of kind 77.
    peer.write(&[0, 0, 0, 3, 77, 1, 2]).await;
    until("skipped", || counted(&node.metrics, "node_messages", "unknown_kind") == 1).await;
    assert_eq!(node.existing().await, [(attempt, id.name().clone(), false)]);
}

#[tokio::test]
async fn a_hello_that_does_not_match_the_certificate_is_refused_on_the_wire() {
    let (mut node, id) = node_and_peer().await;
    let wrong_name = Hello { name: name("c@127.0.0.1"), ..words(&id) };
    let wrong_cluster = Hello { cluster: KeyId([9; 16]), ..words(&id) };
    for (greeting, refusal) in [
        (Greeting::Hello(wrong_name), Refusal::Name),
        (Greeting::Hello(wrong_cluster), Refusal::Cluster),
        (Greeting::Confirm, Refusal::Unexpected),
        (Greeting::Welcome(words(&id)), Refusal::Unexpected),
    ] {
        let before = refused(&node, refusal.label());
        let mut peer = Peer::dial(&id, node.address).await;
        peer.send(&greeting).await;
        assert_eq!(peer.hear().await, Greeting::Refuse(refusal));
        peer.closed().await;
        let report = node.report().await; // and not Greeted
        assert!(matches!(report, Report::Failed(_, Failure::Rejected(_))), "{report:?}");
        assert_eq!(refused(&node, refusal.label()), before + 1, "{refusal}");
    }
}

#[tokio::test]
async fn a_hello_that_is_too_large_or_no_hello_is_counted() {
    let (mut node, id) = node_and_peer().await;
    let over = u16::try_from(MAX_GREETING + 1).expect("small").to_be_bytes();
    for bytes in [&over as &[u8], &[255, 255], &[0, 0], &[0, 2, 1, 99], &[0, 2, 9, 0]] {
        let before = refused(&node, "hello");
        let mut peer = Peer::dial(&id, node.address).await;
        peer.write(bytes).await;
        peer.closed().await;
        let report = node.report().await;
        assert!(matches!(report, Report::Failed(_, Failure::Rejected(_))), "{report:?}");
        assert_eq!(refused(&node, "hello"), before + 1, "{bytes:?}");
    }
}

#[tokio::test]
async fn the_refusal_of_the_other_side_is_reported_with_its_reason() {
    let (mut node, id) = node_and_peer().await;
    let stale = Refusal::Stale { known: Incarnation(8), linked: Some(([127, 0, 0, 1], 9).into()) };
    let (listener, address) = listener().await;
    node.link.dial(OUT, address);
    let mut peer = Peer::accept(&id, &listener).await;
    assert!(matches!(node.report().await, Report::Connected(..)));
    node.link.proceed(OUT);
    peer.hear().await;
    peer.send(&Greeting::Refuse(stale)).await;
    let report = node.report().await;
    assert!(matches!(report, Report::Failed(OUT, Failure::RefusedBy(why)) if why == stale));

    let mut peer = Peer::dial(&id, node.address).await;
    peer.send(&hello(&id)).await;
    let Report::Greeted(attempt, ..) = node.report().await else { panic!() };
    node.link.proceed(attempt);
    peer.hear().await;
    peer.send(&Greeting::Refuse(Refusal::Crossed)).await;
    let Report::Failed(of, failure) = node.report().await else { panic!() };
    assert_eq!((of, failure), (attempt, Failure::RefusedBy(Refusal::Crossed)));
}

#[tokio::test]
async fn our_refusal_is_told_to_the_other_side() {
    let (mut node, id) = node_and_peer().await;
    let stale = Refusal::Stale { known: Incarnation(8), linked: None };
    let mut peer = Peer::dial(&id, node.address).await;
    peer.send(&hello(&id)).await;
    let Report::Greeted(attempt, ..) = node.report().await else { panic!() };
    node.link.refuse(attempt, stale);
    assert_eq!(peer.hear().await, Greeting::Refuse(stale));
    peer.closed().await;
    let report = node.report().await;
    assert!(matches!(report, Report::Failed(of, Failure::Rejected(_)) if of == attempt));

    let (listener, address) = listener().await;
    node.link.dial(OUT, address);
    let mut peer = Peer::accept(&id, &listener).await;
    assert!(matches!(node.report().await, Report::Connected(..)));
    node.link.proceed(OUT);
    peer.hear().await;
    peer.send(&Greeting::Welcome(words(&id))).await;
    assert!(matches!(node.report().await, Report::Welcomed(..)));
    node.link.refuse(OUT, stale);
    assert_eq!(peer.hear().await, Greeting::Refuse(stale));
    peer.closed().await;
    assert!(matches!(node.report().await, Report::Failed(OUT, Failure::Rejected(_))));
}

#[tokio::test]
async fn a_welcome_that_does_not_match_is_refused() {
    let (mut node, id) = node_and_peer().await;
    let (listener, address) = listener().await;
    let wrong = Greeting::Welcome(Hello { name: name("c@127.0.0.1"), ..words(&id) });
    for (n, answer, refusal) in [
        (1, wrong, Refusal::Name),
        (2, Greeting::Confirm, Refusal::Unexpected),
        (3, hello(&id), Refusal::Unexpected),
    ] {
        let attempt = AttemptId::Outbound(n);
        node.link.dial(attempt, address);
        let mut peer = Peer::accept(&id, &listener).await;
        assert!(matches!(node.report().await, Report::Connected(..)));
        node.link.proceed(attempt);
        peer.hear().await;
        peer.send(&answer).await;
        assert_eq!(peer.hear().await, Greeting::Refuse(refusal));
        let report = node.report().await;
        assert!(matches!(report, Report::Failed(of, Failure::Rejected(_)) if of == attempt));
    }
}

#[tokio::test]
async fn an_abandoned_attempt_is_closed_and_heard_of_no_more() {
    let (mut node, id) = node_and_peer().await;
    let mut peer = Peer::dial(&id, node.address).await;
    peer.send(&hello(&id)).await;
    let Report::Greeted(attempt, ..) = node.report().await else { panic!() };
    node.link.abandon(attempt);
    peer.closed().await;
    node.link.proceed(attempt); // too late, and no harm
    assert_eq!(node.existing().await, []);
}

#[tokio::test]
async fn strangers_are_counted_by_what_they_did() {
    let (mut node, id) = node_and_peer().await;
    let mut garbage = TcpStream::connect(node.address).await.expect("it listens");
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("sent");
    let mut rest = Vec::new();
    drop(tokio::time::timeout(PATIENCE, garbage.read_to_end(&mut rest)).await.expect("closed"));
    let stranger = &cluster(&["b@127.0.0.1"])[0];
    let stream = TcpStream::connect(node.address).await.expect("it listens");
    let tls = Tls::new(stranger).expect("a sound identity");
    assert!(tls.connect(stream).await.is_err(), "another CA");
    until("both counted", || {
        counted(&node.metrics, "connections_accepted", "tcp") == 2
            && node.metrics.text().expect("text").matches("connections_refused_total{").count() == 2
    })
    .await;
    // Silent before TLS, and silent after it.
    let _silent = TcpStream::connect(node.address).await.expect("it listens");
    let _named = Peer::dial(&id, node.address).await;
    until("both are in", || {
        counted(&node.metrics, "connections_accepted", "tcp") == 4
            && counted(&node.metrics, "connections_accepted", "tls") == 1
    })
    .await;
    tokio::time::pause();
    until("both went", || refused(&node, "silent") == 2).await;
    let report = node.report().await;
    assert!(matches!(report, Report::Failed(_, Failure::Unreachable(_))), "{report:?}");
}

#[tokio::test]
async fn silent_connections_never_keep_a_node_out() {
    let (mut node, id) = node_and_peer().await;
    let mut silent = Vec::new();
    for _ in 0..=256 {
        silent.push(TcpStream::connect(node.address).await.expect("it listens"));
    }
    let oldest = tokio::time::timeout(PATIENCE, silent[0].read_u8()).await;
    assert!(oldest.expect("closed").is_err(), "the one that waited longest goes");
    assert_eq!((refused(&node, "evicted"), refused(&node, "silent")), (1, 0));
    let mut peer = Peer::dial(&id, node.address).await;
    peer.send(&hello(&id)).await;
    assert!(matches!(node.report().await, Report::Greeted(..)));
}
