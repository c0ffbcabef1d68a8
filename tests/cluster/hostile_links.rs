//! Strangers and liars at the link port: each is refused with a log line and a count, and the link
//! between two genuine nodes does not notice.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;
use xpando_node::internals::io::clock;
use xpando_node::internals::io::identity::{Identity, Validity};
use xpando_node::internals::proto::frame::Lane;
use xpando_node::internals::proto::hello::{Greeting, Hello, MAX_GREETING, Refusal};

use crate::kit::stranger::{LinkPort, Stranger, dial, hello, hung_up, ractor_name};
use crate::kit::{Cluster, Node, linked, now, parsed, until};

const REFUSED: &str = "xpando_connections_refused_total";
const HOUR: Duration = Duration::from_secs(3600);

/// Two genuine nodes, `a` and `c`, whose link nobody may disturb.
struct Scene {
    a: Node,
    c: Node,
    rows: [Value; 2],
    any: Identity,
    cluster: Cluster,
}

impl Scene {
    fn new() -> Self {
        let cluster = Cluster::new();
        let a = cluster.node("a").start();
        let c = cluster.node("c").join(a.listen()).start();
        linked(&[&a, &c]);
        let rows = [a.row("c"), c.row("a")];
        let any = cluster.identity("any");
        Self { a, c, rows, any, cluster }
    }

    fn port(&self) -> LinkPort<'_> {
        LinkPort { address: self.a.listen(), cluster: &self.any }
    }

    /// What `attack` does is counted as `kind` and logged with `message` and `fields`.
    #[track_caller]
    fn refuses(
        &self,
        kind: &str,
        message: &str,
        fields: &[(&str, &str)],
        attack: impl FnOnce(&LinkPort<'_>),
    ) {
        let before = self.a.counter(REFUSED, kind);
        attack(&self.port());
        self.a.counts(REFUSED, kind, before);
        self.a.logged(message, fields);
        self.undisturbed();
    }

    /// The link between `a` and `c` is the one it was, and both answer. A row would show a change
    /// of status in its `since`.
    #[track_caller]
    fn undisturbed(&self) {
        assert_eq!([self.a.row("c"), self.c.row("a")], self.rows);
        for (node, peer) in [(&self.a, "c@"), (&self.c, "a@")] {
            assert_eq!(node.count_logged("link_lost", &[("node", peer)]), 0);
            assert_eq!(node.count_logged("link_replaced", &[("node", peer)]), 0);
            assert_eq!(node.count_logged("panic", &[]), 0);
        }
        assert_eq!(self.c.total("xpando_links_ended_total"), 0);
    }
}

#[test]
fn a_certificate_of_another_authority() {
    let scene = Scene::new();
    let foreign = scene.cluster.foreign_identity("b");
    let fields = [("cause", "untrusted")];
    scene.refuses("untrusted", "connection refused", &fields, |port| {
        Stranger::connect(port, Some(&foreign)).ends();
    });
    assert_eq!(scene.a.row("b"), Value::Null, "it is no peer");
}

#[test]
fn an_expired_certificate_and_one_of_tomorrow() {
    let scene = Scene::new();
    let now = clock::wall();
    let valid = |not_before, not_after| {
        scene.cluster.identity_valid("b", Validity { not_before, not_after })
    };
    let expired = valid(now - HOUR / 2, now - HOUR / 4);
    scene.refuses("expired", "connection refused", &[("cause", "expired")], |port| {
        Stranger::connect(port, Some(&expired)).ends();
    });
    let early = valid(now + HOUR, now + 2 * HOUR);
    scene.refuses("not_yet_valid", "connection refused", &[("cause", "not_yet_valid")], |port| {
        Stranger::connect(port, Some(&early)).ends();
    });
}

#[test]
fn no_client_certificate() {
    let scene = Scene::new();
    let fields = [("cause", "no_certificate")];
    scene.refuses("no_certificate", "connection refused", &fields, |port| {
        Stranger::connect(port, None).ends();
    });
}

#[test]
fn tls_1_2() {
    let scene = Scene::new();
    scene.refuses("version", "connection refused", &[("cause", "version")], |port| {
        let mut stream = dial(port.address);
        stream.write_all(&client_hello_of_tls_1_2()).unwrap();
        hung_up(&mut stream);
    });
}

/// A ClientHello as of RFC 5246: ECDHE with AES-128-GCM, P-256, no `supported_versions`.
fn client_hello_of_tls_1_2() -> Vec<u8> {
    let extensions = [
        [0x00, 0x0a, 0x00, 0x04, 0x00, 0x02, 0x00, 0x17].as_slice(), // supported_groups: P-256
        &[0x00, 0x0b, 0x00, 0x02, 0x01, 0x00],                       // ec_point_formats
        &[0x00, 0x0d, 0x00, 0x06, 0x00, 0x04, 0x04, 0x03, 0x04, 0x01], // signature_algorithms
        &[0x00, 0x17, 0x00, 0x00],                                   // extended_master_secret
    ]
    .concat();
    let mut body = [[0x03, 0x03].as_slice(), &[7; 32], &[0x00]].concat(); // version, random, session
    body.extend([0x00, 0x04, 0xc0, 0x2b, 0xc0, 0x2f, 0x01, 0x00]); // two suites, no compression
    body.extend([0x00, u8::try_from(extensions.len()).unwrap()]);
    body.extend(extensions);
    let length = u8::try_from(body.len()).unwrap();
    let handshake = [[0x01, 0x00, 0x00, length].as_slice(), &body].concat();
    [[0x16, 0x03, 0x01, 0x00, length + 4].as_slice(), &handshake].concat()
}

#[test]
fn garbage_over_plain_tcp() {
    let scene = Scene::new();
    for words in ["GET / HTTP/1.1\r\nHost: a\r\n\r\n", "\u{0}\u{1}\u{2}\u{3}\u{4}\u{5}\u{6}\u{7}"] {
        scene.refuses("garbage", "connection refused", &[("cause", "garbage")], |port| {
            let mut stream = dial(port.address);
            stream.write_all(words.as_bytes()).unwrap();
            hung_up(&mut stream);
        });
    }
}

#[test]
fn the_hello_claims_another_name_than_the_certificate() {
    let scene = Scene::new();
    let b = scene.cluster.identity("b");
    for claimed in ["a", "c", "x"] {
        let fields = [("cause", "name"), ("detail", "b@127.0.0.1")];
        scene.refuses("name", "connection refused", &fields, |port| {
            let mut stranger = Stranger::connect(port, Some(&b));
            let name = parsed(claimed);
            stranger.greet(&Greeting::Hello(Hello { name, ..hello(&b) }));
            assert_eq!(stranger.hear().unwrap(), Greeting::Refuse(Refusal::Name), "it is told why");
            stranger.ends();
        });
    }
    assert_eq!(scene.a.row("b"), Value::Null, "it is no peer");
}

#[test]
fn the_hello_claims_another_cluster() {
    let scene = Scene::new();
    let b = scene.cluster.identity("b");
    let elsewhere = scene.cluster.foreign_identity("b").cluster();
    scene.refuses("cluster", "connection refused", &[("cause", "cluster")], |port| {
        let mut stranger = Stranger::connect(port, Some(&b));
        stranger.greet(&Greeting::Hello(Hello { cluster: elsewhere, ..hello(&b) }));
        assert_eq!(stranger.hear().unwrap(), Greeting::Refuse(Refusal::Cluster));
        stranger.ends();
    });
}

#[test]
fn ractor_s_handshake_claims_another_name_than_the_certificate() {
    let scene = Scene::new();
    let b = scene.cluster.identity("b");
    for claimed in ["a", "c"] {
        let claimed = parsed(claimed);
        let words = format!("claims the name \"{claimed}\"");
        let fields = [("peer", "b@127.0.0.1"), ("fault", words.as_str())];
        scene.refuses("protocol", "link cut", &fields, |port| {
            let mut stranger = Stranger::link(port, &b);
            stranger.piece(Lane::Ractor, &ractor_name(claimed.as_str()));
            stranger.ends();
        });
        scene.a.sees_as("b", "offline", |row| row["reason"] == "rejected");
    }
}

/// The same, a byte at a time: the gate reads across pieces.
#[test]
fn ractor_s_handshake_lies_in_small_pieces() {
    let scene = Scene::new();
    let b = scene.cluster.identity("b");
    scene.refuses(
        "protocol",
        "link cut",
        &[("fault", "claims the name \"c@127.0.0.1\"")],
        |port| {
            let mut stranger = Stranger::link(port, &b);
            for byte in ractor_name(parsed("c").as_str()) {
                stranger.piece(Lane::Ractor, &[byte]);
            }
            stranger.ends();
        },
    );
}

#[test]
fn a_hello_larger_than_its_cap() {
    let scene = Scene::new();
    let b = scene.cluster.identity("b");
    let words = format!("at most {MAX_GREETING} are allowed");
    let fields = [("cause", "hello"), ("detail", words.as_str())];
    scene.refuses("hello", "connection refused", &fields, |port| {
        let mut stranger = Stranger::connect(port, Some(&b));
        stranger.send(&u16::MAX.to_be_bytes());
        stranger.ends();
    });
}

#[test]
fn a_hello_that_is_none() {
    let scene = Scene::new();
    let b = scene.cluster.identity("b");
    for body in [[1_u8, 0xff, 0xff, 0xff], [9, 0, 0, 0]] {
        let fields = [("cause", "hello"), ("detail", "bad hello")];
        scene.refuses("hello", "connection refused", &fields, |port| {
            let mut stranger = Stranger::connect(port, Some(&b));
            stranger.send(&[[0, 4].as_slice(), &body].concat());
            stranger.ends();
        });
    }
    scene.refuses("unexpected", "connection refused", &[("cause", "unexpected")], |port| {
        let mut stranger = Stranger::connect(port, Some(&b));
        stranger.greet(&Greeting::Confirm);
        assert_eq!(stranger.hear().unwrap(), Greeting::Refuse(Refusal::Unexpected));
        stranger.ends();
    });
}

#[test]
fn a_ractor_frame_over_4_kib_before_authentication() {
    let scene = Scene::new();
    let b = scene.cluster.identity("b");
    for length in [4 * 1024 + 1, u64::MAX] {
        let words = format!("a handshake frame of {length} bytes");
        scene.refuses("protocol", "link cut", &[("fault", &words)], |port| {
            let mut stranger = Stranger::link(port, &b);
            stranger.piece(Lane::Ractor, &length.to_be_bytes());
            stranger.ends();
        });
    }
}

#[test]
fn a_lane_that_does_not_exist_and_pieces_of_no_and_too_much_length() {
    let scene = Scene::new();
    let b = scene.cluster.identity("b");
    for (header, words) in [
        ([7, 0, 0, 1], "no lane 7"),
        ([1, 0, 0, 0], "a piece of 0 bytes"),
        ([2, 1, 2, 1], "a piece of 66049 bytes"),
        ([3, 0, 0, 9], "a malformed piece"),
        ([4, 0, 0, 9], "a malformed piece"),
        ([0, 0, 1, 1], "control message"),
    ] {
        scene.refuses("protocol", "link cut", &[("fault", words)], |port| {
            let mut stranger = Stranger::link(port, &b);
            stranger.send(&[header.as_slice(), &[0xff; 257]].concat());
            stranger.ends();
        });
    }
}

/// What a peer sends to other actors is judged there: it costs nobody a link.
#[test]
fn nonsense_on_the_door_lane_is_counted() {
    let scene = Scene::new();
    let b = scene.cluster.identity("b");
    let mut stranger = Stranger::link(&scene.port(), &b);
    // One whole message of 100 bytes.
    stranger.piece(Lane::System, &[&[0, 100][..], &[0xff; 100]].concat());
    scene.a.counts("xpando_node_messages_total", "malformed", 0);
    scene.undisturbed();
}

/// It dials, shows a sound certificate, and then says nothing more.
#[test]
fn silence_after_the_certificate() {
    let scene = Scene::new();
    let b = scene.cluster.identity("b");
    let fields = [("cause", "silent"), ("detail", "no hello within the deadline")];
    scene.refuses("silent", "connection refused", &fields, |port| {
        Stranger::connect(port, Some(&b)).ends();
    });
}

#[test]
fn five_hundred_silent_connections() {
    let scene = Scene::new();
    // What the first flood allocates for good is the allocator's; the second must not add to it.
    let flood = || -> Vec<TcpStream> { (0..500).map(|_| dial(scene.a.listen())).collect() };
    let before = scene.a.memory();
    let silent = flood();
    let start = now();
    let b = scene.cluster.node("b").join(scene.a.listen()).start();
    linked(&[&scene.a, &scene.c, &b]);
    eprintln!(
        "a genuine node joined {:?} after its start, beside 500 silent ones",
        start.elapsed()
    );
    scene.a.counts(REFUSED, "evicted", 0);
    let during = scene.a.memory();
    drop(silent);
    let few = scene.a.memory_at_most(before + 8 * 1024);
    eprintln!("resident: {before} KiB before, {during} during, {few} after");

    let mut silent = flood();
    for stream in &mut silent {
        hung_up(stream); // each gets its five seconds, and no more
    }
    scene.a.counts(REFUSED, "silent", 0);
    scene.a.memory_at_most(before + 8 * 1024);
    until("a that listens again", || {
        let open = scene.a.open_connections();
        if open <= 3 { Ok(()) } else { Err(format!("{open} connections")) }
    });
    scene.undisturbed();
}

#[test]
fn silent_connections_do_not_use_up_the_descriptors() {
    let cluster = Cluster::new();
    let mut a = cluster.node("a").descriptors(64).start();
    let c = cluster.node("c").join(a.listen()).start();
    linked(&[&a, &c]);
    let rows = [a.row("c"), c.row("a")];
    let silent: Vec<TcpStream> = (0..80).map(|_| dial(a.listen())).collect();
    a.counts(REFUSED, "evicted", 0);
    // All this while the eighty hold on to what they have.
    assert_eq!(a.status().unwrap()["name"], a.name);
    let b = cluster.node("b").join(a.listen()).start();
    linked(&[&a, &b, &c]);
    drop(silent);
    assert!(a.runs());
    assert_eq!([a.row("c"), c.row("a")], rows, "the link is undisturbed");
    assert_eq!(a.total("xpando_actor_restarts_total"), 0);
}
