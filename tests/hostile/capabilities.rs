//! A member with a genuine certificate does more than that lets it.

use xpando_node::internals::io::clock;
use xpando_node::internals::io::identity::{Authority, Identity, LeafOptions, Validity};
use xpando_node::internals::proto::capability::Capabilities;
use xpando_node::internals::proto::frame::Lane;
use xpando_node::internals::proto::interest::Interest;
use xpando_node::internals::proto::node::Incarnation;
use xpando_node::internals::proto::presence::{Body, Change, Epoch, Word};
use xpando_node::internals::proto::talk;

use crate::harm::Scene;
use crate::kit::{Cluster, Node, full, linked, parsed, until};
use crate::lives::known;
use crate::member::Member;
use crate::ractor::{self, Members, actors};

/// A genuine identity that may do this, kept apart from those of the nodes.
fn identity(cluster: &Cluster, name: &str, may: &Capabilities) -> Identity {
    let authority = Authority::open(&cluster.certs()).unwrap();
    let (name, valid) = (parsed(name), Validity::leaf(clock::wall()));
    authority
        .issue_with(
            &cluster.path(name.as_str()),
            &name,
            valid,
            LeafOptions { hosts: &[], capabilities: Some(may) },
        )
        .unwrap()
}

/// Waits until a node knows that a member is linked, which it says behind what it is to have heard.
fn heard(nodes: &[&Node], member: &str) {
    for node in nodes {
        node.sees(member, "syncing");
    }
}

#[test]
fn only_who_may_operate_has_a_node_forgotten() {
    let Scene { nodes: [a, b, c], cluster, .. } = Scene::new();
    let life = c.status().unwrap()["incarnation"].as_u64().unwrap();
    let of = c.name.parse().unwrap();
    c.kill();
    for node in [&a, &b] {
        node.sees("c", "offline");
    }
    let edge = Capabilities::edge(vec!["*".parse().unwrap()]).unwrap();
    for (name, may) in [("m", Capabilities::MEMBER), ("e", edge)] {
        let mut member = Member::new(identity(&cluster, name, &may));
        let before =
            [&a, &b].map(|node| node.counter("xpando_registry_violations_total", "unproven row"));
        let mut ties = [&a, &b].map(|node| member.link(node));
        ties.iter_mut().for_each(|tie| tie.tombstone(&of, life, 1 << 40));
        heard(&[&a, &b], name);
        for (node, before) in [&a, &b].into_iter().zip(before) {
            until(&format!("{} has looked at it", node.name), || {
                let text = node.ask(&["metrics"]).unwrap();
                let now = node.counter("xpando_registry_violations_total", "unproven row");
                if now > before { Ok(()) } else { Err(text) }
            });
            assert_eq!(known(node, "c")["status"], "offline", "{name}");
        }
    }
    let mut member = Member::new(identity(&cluster, "o", &Capabilities::OPERATE));
    member.link(&a).tombstone(&of, life, 1 << 40);
    for node in [&a, &b] {
        until(&format!("{} has forgotten it", node.name), || {
            let c = known(node, "c");
            if c.is_null() { Ok(()) } else { Err(c.to_string()) }
        });
    }
}

#[test]
fn an_edge_is_nowhere_present_and_in_no_group_but_where_its_certificate_says() {
    let Scene { nodes: [a, b, c], cluster, .. } = Scene::new();
    let edge = Capabilities::edge(vec!["sensor:*".parse().unwrap()]).unwrap();
    let mut member = Member::new(identity(&cluster, "e", &edge));
    let mut tie = member.link(&a);
    let body = |topic: &str| Body {
        topic: topic.parse().unwrap(),
        key: "k".to_owned(),
        meta: "{}".to_owned(),
        previous: None,
    };
    let mut say = |after, topic| {
        let epoch = Epoch { life: Incarnation(1), boot: 1 };
        let changes = vec![Change::Joined(body(topic))];
        tie.publish("channel:presence", &Word::Delta { epoch, after, changes });
    };
    say(0, "sensor:1");
    say(1, "room:1");
    a.counts("xpando_channel_events_total", "presence_not_allowed", 0);
    let kept = a.gauge("xpando_peer_kept_bytes", &format!("peer=\"{}\"", full("e")));
    assert!(kept > 0.0, "where it may be, it is");

    // What it publishes and serves: one word of each kind that is let through, and one that is not.
    let services = ["billing", "xpando:issue", "sensor:read"].map(|name| {
        let mut out = Vec::new();
        let name = name.parse().unwrap();
        talk::interest(&mut out, &Interest::Name(name), true);
        out
    });
    tie.messages(Lane::Calls, services);
    let topics = ["room:1", "sensor:1"].map(|topic| {
        let mut out = Vec::new();
        talk::broadcast(&mut out, Some(&topic.parse().unwrap()));
        out
    });
    tie.messages(Lane::Bulk, topics);
    a.counts("xpando_node_messages_total", "not_allowed", 2);

    let mut tie = member.link_ractor(&a);
    let join = |group: &str| Members {
        group: format!("{group} u32"),
        actors: actors(0..1),
        scope: "xpando".to_owned(),
    };
    for group in ["sensor:group", "billing"] {
        tie.control(ractor::Control { join: Some(join(group)), ..Default::default() });
    }
    a.logged("link cut", &[("fault", "joins the group \"billing\"")]);
    linked(&[&a, &b, &c]);
}
