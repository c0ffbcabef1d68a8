//! `events --all`: what happened on all nodes, in one order that no wall clock spoils.

use serde_json::Value;

use crate::clocks::{Wall, end, libfaketime, tells};
use crate::kit::{Cluster, Node, full, linked, outputs};

/// `events --all --json`, and what it says of nodes that are missing.
#[track_caller]
fn all(node: &Node, args: &[&str]) -> (Vec<Value>, String) {
    let output = node.run(&[&["events", "--all", "--json"], args].concat(), &[]);
    let (code, out, err) = outputs(&output);
    assert_eq!(code, Some(0), "{err}");
    (out.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), err)
}

/// Where the last event is that a node noted with these fields.
#[track_caller]
fn place(events: &[Value], noted_by: &str, fields: &[(&str, &str)]) -> usize {
    let fits =
        |it: &Value| it["noted_by"] == noted_by && fields.iter().all(|(key, is)| it[*key] == *is);
    let found = events.iter().rposition(fits);
    found.unwrap_or_else(|| panic!("{noted_by} noted no {fields:?}: {events:#?}"))
}

/// In the order of their stamps, and of each node in the order of its numbers.
#[track_caller]
fn ordered(events: &[Value]) {
    assert!(events.is_sorted_by_key(|it| it["stamp"].as_str().unwrap()), "{events:#?}");
    for node in ["a", "b", "c"].map(full) {
        let own = events.iter().filter(|it| it["noted_by"] == node);
        let numbers: Vec<_> = own.map(|it| it["seq"].as_u64().unwrap()).collect();
        assert!(numbers.windows(2).all(|two| two[1] == two[0] + 1), "{node}: {numbers:?}");
    }
}

/// Waits until a node has noted that another one sees a third offline: an event once that one's row rests.
fn noted(node: &Node, from: &Node, gone: &str) {
    let about = |it: &Value| it["event"] == "link_changed" && it["from"] == from.name.as_str();
    let offline = |it: &Value| about(it) && it["to"] == gone && it["state"] == "offline";
    crate::kit::until("the event of the other's view", || {
        let events = node.events(&["-n", "1000"]);
        if events.iter().any(offline) { Ok(()) } else { Err(format!("{events:?}")) }
    });
}

#[test]
fn causes_come_before_what_they_cause_whatever_the_wall_clocks_say() {
    let Some(library) = libfaketime() else { return };
    let cluster = Cluster::new();
    let [of_b, of_c] = ["b", "c"].map(|name| Wall::of(&cluster, name));
    let a = cluster.node("a").start();
    let b = of_b.shown_to(cluster.node("b").join(a.listen()), &library).start();
    let c = of_c.shown_to(cluster.node("c").join(a.listen()), &library).start();
    linked(&[&a, &b, &c]);
    for node in [&a, &b, &c] {
        let (events, missing) = all(node, &["-n", "1000"]);
        assert_eq!(missing, "");
        ordered(&events);
        for by in [&a, &b, &c] {
            let started = place(&events, &by.name, &[("event", "node_started")]);
            assert_eq!(events[started]["incarnation"], 1);
        }
    }
    of_b.set(1);
    of_c.set(-1);
    tells(&b, 1);
    tells(&c, -1);
    let gone = a.name.clone();
    a.kill();
    for (here, there) in [(&b, &c), (&c, &b)] {
        here.sees(&gone, "offline");
        // The other one's view, as it was told here.
        let offline =
            || there.links().contains(&(here.name.clone(), gone.clone(), "offline".into()));
        crate::kit::until("the view of the other", || {
            if offline() { Ok(()) } else { Err("online".into()) }
        });
        noted(there, here, &gone);
    }
    let seen = [&b, &c].map(|node| {
        let (events, missing) = all(node, &["-n", "1000"]);
        assert!(missing.starts_with(&format!("xpando-node: no events of {gone}: ")), "{missing}");
        assert_eq!(missing.lines().count(), 1, "{missing}");
        ordered(&events);
        for (cause, told) in [(&b, &c), (&c, &b)] {
            let cause_at =
                place(&events, &cause.name, &[("event", "peer_offline"), ("peer", &gone)]);
            let view = [
                ("event", "link_changed"),
                ("from", &cause.name),
                ("to", &gone),
                ("state", "offline"),
            ];
            let told_at = place(&events, &told.name, &view);
            assert!(cause_at < told_at, "{} then {}", events[cause_at], events[told_at]);
            let at = [cause_at, told_at].map(|at: usize| events[at]["at"].as_str().unwrap());
            assert_eq!(
                at[0] < at[1],
                cause.name == c.name,
                "by wall clocks one of the two is wrong"
            );
        }
        events
    });
    let common = |of: usize, other: usize| -> Vec<&Value> {
        seen[of].iter().filter(|it| seen[other].contains(it)).collect()
    };
    assert_eq!(common(0, 1), common(1, 0), "one order, no matter who is asked");

    let (last, _) = all(&b, &["-n", "3", "--type", "peer_offline", "--node", &gone]);
    assert!(last.len() <= 3 && last.iter().any(|it| it["noted_by"] == c.name), "{last:?}");
    assert!(last.iter().all(|it| it["event"] == "peer_offline" && it["peer"] == gone.as_str()));
    let (code, out, _) = outputs(&b.run(&["events", "--all", "-n", "1000"], &[]));
    assert_eq!(code, Some(0));
    assert!(
        out.lines().all(|line| line.starts_with("b@127") || line.starts_with("c@127")),
        "{out}"
    );
    end([b, c]);
}
