//! What is not user's traffic, as fast as a member can send it: the node reads it in pauses, and serves the others meanwhile.

use std::ops::Range;
use std::time::Duration;

use xpando_node::internals::proto::frame::{Control, Lane};
use xpando_node::internals::proto::history::words::Question;
use xpando_node::internals::proto::interest::Interest;
use xpando_node::internals::proto::presence::{Epoch, Word};
use xpando_node::internals::proto::talk;

use crate::harm::Scene;
use crate::kit::{Node, now, parsed};
use crate::member::Tie;
use crate::ractor::{self, Members, actors};

/// How long each flood goes on at least.
const FLOOD: Duration = Duration::from_secs(2);
/// By then it has been read in a pause, or the link has ended.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the member sends.
type Says<'a> = &'a dyn Fn(&mut Tie);

/// Has the member send all this to the first node, again and again. How much of a core that cost is printed: builds that
/// are not optimised take several times as long for each word as its price is.
fn flood(scene: &mut Scene, attack: &str, says: &[Says<'_>]) {
    let paused = |node: &Node| node.counter("xpando_node_messages_total", "reader_paused");
    let before = paused(&scene.nodes[0]);
    let mut over = false;
    let harm = scene.under(|member, nodes| {
        let mut tie = member.link_ractor(&nodes[0]);
        let all: Vec<_> = says.iter().map(|says| tie.gathered(says)).collect();
        let start = now();
        while !tie.is_over()
            && (start.elapsed() < FLOOD
                || paused(&nodes[0]) == before && start.elapsed() < PATIENCE)
        {
            (0..10).for_each(|_| all.iter().for_each(|bytes| tie.send(bytes)));
        }
        over = tie.is_over();
    });
    harm.bearable_flood(attack);
    let pauses = paused(&scene.nodes[0]) - before;
    eprintln!("{attack}: {pauses} pauses, cut off: {over}");
    assert!(pauses > 0 || over, "{attack}");
}

/// Topics that are wanted, or not any more.
fn interest(tie: &mut Tie, there: bool) {
    let interest = |number: u32| {
        let mut out = Vec::new();
        let topic = Interest::Topic(format!("topic:{number}").parse().unwrap());
        talk::interest(&mut out, &topic, there);
        out
    };
    tie.messages(Lane::Calls, (0..10_000).map(interest));
}

/// Topics that are to be kept.
fn keep(tie: &mut Tie, topics: Range<u32>) {
    for number in topics {
        let topic = format!("kept:{number}").parse().unwrap();
        tie.requests("xpando:channels", &Question::Keep(topic).encode().unwrap(), 1);
    }
}

/// Actors that join groups and leave them.
fn groups(tie: &mut Tie) {
    let members = || {
        let (group, scope) = ("group".to_owned(), "xpando".to_owned());
        Some(Members { group, actors: actors(0..500), scope })
    };
    tie.control(ractor::Control { join: members(), ..Default::default() });
    tie.control(ractor::Control { leave: members(), ..Default::default() });
}

#[test]
fn words_of_every_kind_at_full_speed() {
    let mut scene = Scene::new();
    let (a, epoch) = (parsed("a"), Epoch::default());
    let beat = Control::Ping(1).encode().unwrap();
    let floods: [(&str, &[Says<'_>]); 9] = [
        ("beats", &[&|tie| (0..1_000).for_each(|_| tie.piece(Lane::Control, &beat))]),
        ("unknown words", &[&|tie| tie.messages(Lane::Calls, (0..20_000).map(|_| vec![9; 2]))]),
        ("interest", &[&|tie| interest(tie, true), &|tie| interest(tie, false)]),
        ("questions to the node", &[&|tie| tie.requests("xpando:channels", b"", 2_000)]),
        ("topics to keep", &[&|tie| keep(tie, 0..2_000), &|tie| keep(tie, 2_000..4_000)]),
        ("questions to nobody", &[&|tie| tie.requests("nobody", b"", 2_000)]),
        (
            "statements that it cannot seal",
            &[&|tie| {
                (0..100).for_each(|version| tie.profile(&a, 1, version));
                (0..100).for_each(|version| tie.row(&a, 1, version));
            }],
        ),
        (
            "presence",
            &[&|tie| {
                let word = Word::Digest { epoch, clock: 1 };
                (0..1_000).for_each(|_| tie.publish("channel:presence", &word));
            }],
        ),
        // The gate ends the link when there are more of them than any node has.
        ("groups", &[&groups]),
    ];
    for (attack, says) in floods {
        flood(&mut scene, attack, says);
    }
}
