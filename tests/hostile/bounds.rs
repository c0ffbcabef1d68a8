//! Much of what a member may send, none of whose answers it reads: what it makes an innocent node hold stays within
//! bounds, and all serve each other meanwhile.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use xpando_node::internals::proto::channel::Payload;
use xpando_node::internals::proto::channel::envelope::Envelope;
use xpando_node::internals::proto::discovery;
use xpando_node::internals::proto::frame::{Control, Lane};
use xpando_node::internals::proto::history::words::Question;
use xpando_node::internals::proto::interest::Interest;
use xpando_node::internals::proto::node::Incarnation;
use xpando_node::internals::proto::presence::{Body, Change, Epoch, Word};
use xpando_node::internals::proto::replay::Position;
use xpando_node::internals::proto::talk;
use xpando_node::internals::proto::topic::Topic;

use crate::harm::{Harm, Scene};
use crate::kit::client::runtime;
use crate::kit::socket::ClientSocket;
use crate::kit::{Node, during, full, outputs, parsed, wall};
use crate::member::{Member, Tie};
use crate::ractor::{self, Members, Spawn, Terminate, actors};

/// How long a link stays after all was said: what is held is there then, and no beat is missed yet.
const HOLD: Duration = Duration::from_secs(1);

/// Has the member say this to the first node, whose answers it does not read.
fn unread(attack: &str, says: impl FnOnce(&mut Tie)) -> Scene {
    meanwhile(attack, says, |_nodes| {})
}

/// Likewise; this is done while the link stays.
fn meanwhile(attack: &str, says: impl FnOnce(&mut Tie), then: impl FnOnce(&[Node; 3])) -> Scene {
    let mut scene = Scene::new();
    let harm = held(&mut scene, says, then);
    harm.bearable_flood(attack);
    scene
}

fn held(scene: &mut Scene, says: impl FnOnce(&mut Tie), then: impl FnOnce(&[Node; 3])) -> Harm {
    scene.under(|member, nodes| {
        let mut tie = member.link_ractor(&nodes[0]);
        says(&mut tie);
        then(nodes);
        during(HOLD, || {});
    })
}

/// A payload of which each part is another.
fn long(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

#[test]
fn actors_behind_the_gate() {
    let mut scene = Scene::new();
    let spawn = || Spawn { actors: actors(0..5_000) };
    let members = |group: u64, pids| Members {
        group: format!("group {group}"),
        actors: actors(pids),
        scope: "xpando".to_owned(),
    };
    let harm = scene.under(|member: &mut Member, nodes| {
        for _ in 0..3 {
            let mut tie = member.link_ractor(&nodes[0]);
            for _ in 0..20 {
                tie.control(ractor::Control { spawn: Some(spawn()), ..Default::default() });
            }
            // That link is over. On another one: as many as there may be, then others in their place, then more.
            let mut tie = member.link_ractor(&nodes[0]);
            for group in 0..7 {
                let join = Some(members(group, 0..500));
                tie.control(ractor::Control { join, ..Default::default() });
            }
            let terminate = Some(Terminate { ids: (0..500).collect() });
            tie.control(ractor::Control { terminate, ..Default::default() });
            for group in 0..7 {
                let join = Some(members(group, 1000..1500));
                tie.control(ractor::Control { join, ..Default::default() });
            }
            during(HOLD, || {});
            let join = Some(members(9, 5000..9000));
            tie.control(ractor::Control { join, ..Default::default() });
        }
    });
    harm.bearable_flood("actors");
    scene.nodes[0].logged("link cut", &[("fault", "waiting for a control message")]);
    scene.nodes[0].logged("link cut", &[("fault", "actors in groups")]);
}

/// The last events of all nodes, as each shows them: no node is missing.
fn tells_of_all(nodes: &[Node; 3]) {
    for node in nodes {
        let (code, _, err) = outputs(&node.run(&["events", "--all", "-n", "100"], &[]));
        let missing: Vec<_> = err.lines().filter(|line| !line.contains("m@")).collect();
        assert_eq!((code, missing), (Some(0), vec![]), "{}", node.name);
    }
}

#[test]
fn questions_what_a_node_sees() {
    let asks = |tie: &mut Tie| tie.requests("xpando:sight", b"", 4_000);
    meanwhile("sights", asks, |nodes| {
        for node in &nodes[1..] {
            let (code, out, err) =
                outputs(&node.run(&["call", &format!("xpando:sight@{}", full("a")), "-"], &[]));
            assert!(code == Some(0) && out.contains("majority"), "{out} {err}");
        }
    });
}

#[test]
fn questions_what_happened() {
    let asks = |tie: &mut Tie| tie.requests("xpando:history", b"{}", 12_000);
    meanwhile("histories", asks, tells_of_all);
}

#[test]
fn topics_that_are_to_be_kept() {
    let mut scene = Scene::new();
    let create = ["token", "create", "--sub", "x", "--certs", "certs"];
    let token = scene.cluster.print(&create).trim().to_owned();
    let topic = |number: u32| format!("kept:{number}").parse::<Topic>().unwrap();
    let keep = |tie: &mut Tie, some: Range<u32>| {
        for number in some {
            let question = Question::Keep(topic(number)).encode().unwrap();
            tie.requests("xpando:channels", &question, 1);
        }
    };
    // With something in them, topics without members last.
    let first = Position { epoch: 1, n: 1, tag: 1 };
    let message = Envelope::encode(first, "say", &Payload::Binary(Bytes::new())).unwrap();
    let say = |number| {
        let mut out = Vec::new();
        talk::broadcast(&mut out, Some(&topic(number)));
        [&out, &message[..]].concat()
    };
    let harm = scene.under(|member, nodes| {
        // Both that could keep the topics of the third.
        let mut ties = [member.link(&nodes[0]), member.link_again(&nodes[1])];
        for first in (0..6_000).step_by(500) {
            ties.iter_mut().for_each(|tie| keep(tie, first..first + 500));
            during(HOLD, || {});
            ties.iter_mut().for_each(|tie| tie.broadcasts((first..first + 500).map(say)));
        }
        // Others have theirs kept all the same.
        runtime().block_on(async {
            let mut socket = ClientSocket::open(&nodes[2], Some(&token)).await;
            assert_eq!(socket.asks(1, "room:1", "phx_join", json!({})).await, "ok");
            assert_eq!(socket.asks(1, "room:1", "say", json!({ "n": 1 })).await, "ok");
            nodes[2].ask(&["drain", "--drain-time", "1s"]).unwrap();
            nodes[2].counts("xpando_channel_events_total", "history_handed_on", 0);
        });
    });
    harm.bearable_flood("topics to keep");
}

/// Watches of a name, each with a number of its own.
fn watch(tie: &mut Tie, name: &str, many: u64) {
    let name = name.parse().unwrap();
    let watch = |number| {
        let mut out = Vec::new();
        talk::watch(&mut out, number, &name);
        out
    };
    tie.messages(Lane::Calls, (0..many).map(watch));
}

/// The first node ends the link, for all that is to be watched.
fn is_cut(nodes: &[Node; 3]) {
    nodes[0].logged("link cut", &[("fault", "too much interest")]);
}

#[test]
fn watches_of_a_name_that_nobody_serves() {
    let mut scene = Scene::new();
    let harm = scene.under(|member, nodes| {
        let mut tie = member.link_ractor(&nodes[0]);
        let mut wants = Vec::new();
        talk::interest(&mut wants, &Interest::Topic("t".parse().unwrap()), true);
        tie.messages(Lane::Calls, [wants]);
        nodes[0].reaches("t", 1);
        // It takes none of this: answers wait behind it.
        let full = || !nodes[0].run(&["publish", "t", "-"], &long(1 << 20)).status.success();
        assert!((0..100).any(|_| full()));
        watch(&mut tie, &"x".repeat(200), 120_000);
        is_cut(nodes);
    });
    harm.bearable_flood("watches");
}

#[test]
fn watches_of_a_name_that_is_served() {
    meanwhile("watches of echo", |tie| watch(tie, "xpando:echo", 200_000), is_cut);
}

#[test]
fn echoes_that_are_not_read() {
    unread("short echoes", |tie| tie.requests("xpando:echo", &long(50), 50_000));
    unread("long echoes", |tie| tie.requests("xpando:echo", &long(60_000), 1_000));
}

#[test]
fn interest_that_comes_and_goes_and_as_much_as_there_may_be() {
    let interest = |number: u32, there| {
        let mut out = Vec::new();
        let topic = Interest::Topic(format!("topic:{number}").parse().unwrap());
        talk::interest(&mut out, &topic, there);
        out
    };
    unread("interest", |tie| {
        for _ in 0..5 {
            let both = (0..20_000).flat_map(|it| [interest(it, true), interest(it, false)]);
            tie.messages(Lane::Calls, both);
        }
        tie.messages(Lane::Calls, (0..200_000).map(|it| interest(it, true)));
    });
}

#[test]
fn words_that_only_a_later_version_knows() {
    unread("unknown kinds", |tie| {
        for _ in 0..20 {
            tie.messages(Lane::Calls, (0..5_000).map(|_| vec![9; 30]));
            tie.messages(Lane::Calls, [vec![200; 60_000]]);
            tie.messages(Lane::Bulk, (0..1_000).map(|_| vec![77; 30]));
            (0..1_000).for_each(|_| tie.piece(Lane::Control, &[99, 1, 2]));
        }
    });
}

#[test]
fn long_messages_that_do_not_go_on() {
    unread("half of long messages", |tie| {
        tie.begin_message(Lane::Calls, b"", 16 << 20, 16_000_000);
        tie.begin_message(Lane::Bulk, b"", 16 << 20, 4_000_000);
    });
}

#[test]
fn credit_that_was_never_used_and_bulk_beyond_it() {
    let scene = unread("credit", |tie| {
        let credit = Control::Credit(u32::MAX).encode().unwrap();
        tie.piece(Lane::Control, &credit);
    });
    scene.nodes[0].logged("link cut", &[("fault", "credit never used")]);
}

#[test]
fn broadcasts_on_topics_without_end() {
    let topic = |number: u32| format!("{number:0200}").parse().unwrap();
    unread("topics", |tie| {
        let say = |number| {
            let mut out = Vec::new();
            talk::broadcast(&mut out, Some(&topic(number)));
            out
        };
        tie.broadcasts((0..110_000).map(say));
    });
}

/// So many presences of the member.
fn presences(tie: &mut Tie, many: u64) {
    let epoch = Epoch { life: Incarnation(1), boot: wall() };
    let joined = || {
        Change::Joined(Body {
            topic: "room:1".parse().unwrap(),
            key: String::new(),
            meta: "{}".to_owned(),
            previous: None,
        })
    };
    for after in (0..many).step_by(2_000) {
        let changes = (0..2_000).map(|_| joined()).collect();
        tie.publish("channel:presence", &Word::Delta { epoch, after, changes });
    }
}

#[test]
fn presences_without_end() {
    unread("presences", |tie| presences(tie, 200_000));
}

#[test]
fn words_for_actors_and_questions_that_others_have_to_answer() {
    let others = ["a", "b", "c"].map(parsed);
    unread("words for actors", |tie| {
        for _ in 0..1_000 {
            for other in &others {
                tie.publish("network:peers", &discovery::Word::Show(other.clone()));
            }
        }
        tie.messages(Lane::System, (0..100).map(|_| vec![0xff; 30_000]));
        for topic in ["network:registry", "network:topology", "node:heartbeat", "no:actor"] {
            (0..100).for_each(|_| tie.publish(topic, &long(10_000)));
        }
    });
}

#[test]
fn all_of_it_at_once() {
    let name = "x".repeat(200).parse().unwrap();
    let mut scene = Scene::new();
    let says = |tie: &mut Tie| {
        for group in 0..7 {
            let members = Members {
                group: format!("group {group}"),
                actors: actors(0..500),
                scope: "xpando".to_owned(),
            };
            tie.control(ractor::Control { join: Some(members), ..Default::default() });
        }
        let watch = |number| {
            let mut out = Vec::new();
            talk::watch(&mut out, number, &name);
            out
        };
        tie.messages(Lane::Calls, (0..4_000).map(watch));
        let interest = |number: u32| {
            let mut out = Vec::new();
            let topic = Interest::Topic(format!("topic:{number}").parse().unwrap());
            talk::interest(&mut out, &topic, true);
            out
        };
        tie.messages(Lane::Calls, (0..200_000).map(interest));
        presences(tie, 24_000);
        let topic = |number: u32| format!("{number:0200}").parse().unwrap();
        let broadcast = |number| {
            let mut out = Vec::new();
            talk::broadcast(&mut out, Some(&topic(number)));
            out
        };
        tie.messages(Lane::Bulk, (0..12_000).map(broadcast));
        tie.requests("xpando:echo", &long(60_000), 300);
        tie.requests("xpando:sight", b"", 1_000);
        let mut head = Vec::new();
        talk::request(&mut head, 1_000, 60_000, &"xpando:echo".parse().unwrap());
        tie.begin_message(Lane::Calls, &head, 16 << 20, 16_000_000);
        tie.begin_message(Lane::Bulk, &broadcast(0), 16 << 20, 1_000_000);
    };
    held(&mut scene, says, |nodes| {
        let kept = nodes[0].gauge("xpando_peer_kept_bytes", &format!("peer=\"{}\"", full("m")));
        eprintln!("{kept} bytes are kept of the member");
        assert!(kept > 15e6 && kept < 24e6, "{kept}");
    })
    .bearable_flood("all at once");
}
