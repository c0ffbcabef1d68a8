//! Nodes that are killed: what any of the others has of what they said, members get, wherever they are and come back.

use serde_json::json;

use crate::history::{Member, asks, range};
use crate::kit::{Cluster, Node, Ways, linked, until};

const KEPT: [&str; 2] = ["room:*=5000,1d", "room:*=5000,1d,disk"];
const APART: [(usize, usize); 2] = [(1, 2), (2, 1)];

/// A node with rooms, in the same place at each start.
fn run(cluster: &Cluster, ways: &Ways<'_>, number: usize, history: &str) -> Node {
    let node = ways.node(number).arg("--allow-anonymous").arg("room:*");
    let node = node.arg("--history").arg(history).data_dir(&cluster.path(&format!("n{number}")));
    let node = ways.launch(number, node);
    node.listen();
    node
}

#[test]
fn what_is_said_before_the_first_link_comes_to_all_and_no_seq_is_lost() {
    for history in KEPT {
        let cluster = Cluster::new();
        let ways = Ways::between(&cluster, 2);
        let run = |number| run(&cluster, &ways, number, history);
        let (a, b) = (run(1), run(2));
        linked(&[&a, &b]);
        let (mut ben, mut anna) = (Member::numbered(&a, "room:1"), Member::numbered(&b, "room:1"));
        anna.says(1..=3);
        assert_eq!(ben.hears(2), [1, 2]);
        let early = ben.seq.clone();
        assert_eq!(ben.hears(1), [3]);
        b.kill();

        ways.set(&APART, false);
        let b = run(2);
        // Who comes back to a node that is alone waits for what others have.
        let back = Member::asking(&b, "room:1", &json!({ "last_seq": early }));
        let mut anna = Member::numbered(&b, "room:1");
        anna.says(4..=6);
        ways.set(&APART, true);
        assert_eq!(ben.hears(3), range(4, 6), "{history}");
        let mut back = back.joined();
        assert_eq!(back.reply["gap"], json!(null), "{history}");
        assert_eq!(back.hears(4), range(3, 6), "{history}");
        anna.says(7..=7);
        assert_eq!((ben.hears(1), back.hears(1)), (vec![7], vec![7]));
        for node in [&a, &b] {
            let resumed = asks(node, &json!({ "last_seq": early }));
            let expected = (json!({ "replayed": 5 }), range(3, 7));
            assert_eq!(resumed, expected, "{history} {}", node.name);
        }
    }
}

#[test]
fn what_a_killed_node_said_last_comes_to_all_if_it_came_to_one() {
    let cluster = Cluster::new();
    let ways = Ways::between(&cluster, 3);
    let [a, b, c] = [1, 2, 3].map(|number| run(&cluster, &ways, number, KEPT[0]));
    linked(&[&a, &b, &c]);
    let mut members = [&a, &b].map(|node| Member::numbered(node, "room:1"));
    let mut anna = Member::numbered(&c, "room:1");
    anna.says(1..=1);
    members.iter_mut().for_each(|member| assert_eq!(member.hears(1), [1]));
    ways.set(&[(2, 3), (3, 2)], false);
    anna.says(2..=4);
    assert_eq!(members[0].hears(3), range(2, 4));
    c.kill();
    ways.sever(2, 3);
    assert_eq!(members[1].hears(3), range(2, 4), "they were on their way");
}

#[test]
fn a_long_topic_goes_on_over_a_crash_and_says_what_it_has_lost() {
    let cluster = Cluster::new();
    let ways = Ways::between(&cluster, 2);
    let run = |number| run(&cluster, &ways, number, KEPT[1]);
    let (a, b) = (run(1), run(2));
    linked(&[&a, &b]);
    let (mut anna, mut ben) = (Member::numbered(&a, "room:1"), Member::numbered(&b, "room:1"));
    // More than is in memory.
    anna.says(1..=1500);
    ben.hears(1499);
    let early = ben.seq.clone();
    ben.hears(1);
    a.kill();
    let a = run(1);
    linked(&[&a, &b]);
    assert_eq!(b.terminate(), Some(0));
    let mut anna = Member::numbered(&a, "room:1");
    anna.says(1501..=1530);
    let b = run(2);
    linked(&[&a, &b]);
    until("that it has caught up", || {
        let (reply, got) = asks(&b, &json!({ "history": 40 }));
        if got == range(1491, 1530) { Ok(()) } else { Err(format!("{reply}: {got:?}")) }
    });
    let resumed = asks(&b, &json!({ "last_seq": early }));
    assert_eq!(resumed, (json!({ "replayed": 31 }), range(1500, 1530)));

    // What one said that was alone, nobody knows.
    assert_eq!(b.terminate(), Some(0));
    let late = anna.seq.clone();
    anna.says(1531..=1531);
    a.kill();
    let a = run(1);
    let back = Member::asking(&a, "room:1", &json!({ "last_seq": late })).joined();
    assert_eq!(back.reply["gap"], true, "{}", back.reply);
    let mut anna = Member::numbered(&a, "room:1");
    anna.says(1532..=1532);
    for seq in [&early, &late] {
        let (reply, _) = asks(&a, &json!({ "last_seq": seq }));
        assert_eq!(reply["gap"], true, "{reply}");
    }
}
