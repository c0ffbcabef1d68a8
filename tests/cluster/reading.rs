//! How what happened is read: on the command line and over HTTP, what is in memory and what is older, at once and as it
//! comes.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;
use xpando_node::internals::io::clock;

use crate::kit::http::head;
use crate::kit::trail::numbers;
use crate::kit::{Cluster, Follow, Node, linked, outputs, until};

/// Of a flood that is one batch of events, mostly: fewer than may wait for somebody who follows.
const BATCH: Duration = Duration::from_micros(20);
const FLOOD: Duration = Duration::from_millis(300);
/// Events that stay in memory.
const MEMORY: u64 = 4096;

/// Has a node note some events, which are stored soon; how many.
#[track_caller]
fn batch(node: &Node) -> u64 {
    let noted = || Some(node.floods(BATCH).over().noted).filter(|noted| *noted > 0);
    until("a batch", || noted().ok_or_else(|| "nothing".to_owned()))
}

/// The number of the last event.
#[track_caller]
fn last(node: &Node) -> u64 {
    numbers(&node.events(&["-n", "1"]))[0]
}

/// What somebody who follows was told up to a number: all of it, in order, but for as many as were said to be missed.
#[track_caller]
fn followed(follow: &Follow, first: u64, last: u64) -> u64 {
    let lines = until(&format!("event {last}"), || {
        let lines = follow.lines();
        let end = lines.iter().position(|(_, line)| line["seq"] == last);
        end.map(|end| lines[..=end].to_vec()).ok_or_else(|| format!("{:?}", lines.last()))
    });
    let (mut next, mut missed) = (first, 0);
    for (_, line) in lines {
        if line["event"] == "events_missed" {
            let number = line["count"].as_u64().unwrap();
            (next, missed) = (next + number, missed + number);
        } else {
            assert_eq!(line["seq"], next, "{line}");
            next += 1;
        }
    }
    missed
}

#[test]
fn who_follows_gets_what_was_and_what_comes_without_gap_or_double() {
    let cluster = Cluster::new();
    assert_eq!(cluster.node("a").start().terminate(), Some(0));
    let a = cluster.node("a").start();
    // A flood may come faster than it is read: then it is said how much is missing.
    let flood = a.floods(FLOOD);
    let in_flood = a.follow(&["events", "--follow", "--json", "--since", "1h"]);
    flood.over();
    let fast = followed(&in_flood, 1, last(&a));
    eprintln!("{fast} events of {} were missed in the flood", last(&a));

    let from = last(&a) + 1;
    let since_now = a.follow(&["events", "--follow", "--json", "-n", "1"]);
    let mut noted = 0;
    for _ in 0..8 {
        noted += batch(&a);
        for follow in [&in_flood, &since_now] {
            until("the batch", || {
                let (_, line) = follow.lines().pop().unwrap();
                if line["seq"] == last(&a) { Ok(()) } else { Err(line.to_string()) }
            });
        }
    }
    let end = last(&a);
    assert_eq!(end, from - 1 + noted);
    assert_eq!(followed(&since_now, from - 1, end), 0);
    assert_eq!(followed(&in_flood, 1, end), fast, "none is missed at leisure");
}

#[test]
fn what_is_wanted_is_shown_and_nothing_else() {
    let cluster = Cluster::new();
    assert_eq!(cluster.node("a").start().terminate(), Some(0));
    let a = cluster.node("a").start();
    let follow = a.follow(&["events", "--follow", "--json", "--type", "node_started"]);
    let of_b = ["events", "--follow", "--json", "--node", "b@127.0.0.1", "--since", "1h"];
    let b = cluster.node("b").join(a.listen()).start();
    let c = cluster.node("c").join(a.listen()).start();
    linked(&[&a, &b, &c]);
    let of_b = a.follow(&of_b);
    let gone = b.name.clone();
    assert_eq!(b.terminate(), Some(0));
    a.sees("b", "offline");
    let everything = a.events(&["-n", "1000"]);
    let about_b =
        |it: &Value| [&it["peer"], &it["from"], &it["to"]].contains(&&gone.clone().into());
    let expected: Vec<_> = everything.iter().filter(|it| about_b(it)).cloned().collect();
    let shown = |events: &[&str]| numbers(&a.events(events));
    let at_least = expected.len();
    let told_of_b = until("all about b", || {
        let lines: Vec<_> = of_b.lines().into_iter().map(|(_, line)| line).collect();
        if lines.len() >= at_least { Ok(lines) } else { Err(format!("{lines:?}")) }
    });
    assert!(told_of_b.iter().all(about_b), "{told_of_b:?}");
    assert_eq!(numbers(&told_of_b[..at_least]), numbers(&expected));
    assert_eq!(follow.lines().len(), 2, "two lives: {:?}", follow.lines());

    // By time, by type and both, from memory and from the disk.
    let at = |event: &Value| event["at"].as_str().unwrap().to_owned();
    let gone = everything.iter().rfind(|it| it["event"] == "peer_offline").unwrap();
    let (since, until) = (at(&everything[2]), at(gone));
    let between =
        |it: &&Value| (since.as_str()..until.as_str()).contains(&it["at"].as_str().unwrap());
    let expected: Vec<_> = everything.iter().filter(between).cloned().collect();
    assert_eq!(shown(&["--since", &since, "--until", &until]), numbers(&expected));
    assert_eq!(shown(&["-n", "1000", "--since", &since, "--until", &until]), numbers(&expected));
    let online: Vec<_> = expected.into_iter().filter(|it| it["event"] == "peer_online").collect();
    let wanted = ["--type", "peer_online", "--since", &since, "--until", &until];
    assert_eq!((shown(&wanted), online.len()), (numbers(&online), 2));
    let exported = outputs(&a.run(&[&["events", "export"][..], &wanted].concat(), &[])).1;
    assert_eq!(exported.lines().count(), 2, "{exported}");
    assert!(shown(&["--since", &until, "--until", &since]).is_empty());
}

#[test]
fn a_time_that_is_still_to_come_holds_for_what_follows_too() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let soon = clock::rfc3339(clock::wall() + Duration::from_secs(2));
    let waiting = a.follow_quietly(&["events", "--follow", "--json", "--since", &soon]);
    let lines = until("an event after that time", || {
        batch(&a);
        let lines = waiting.lines();
        if lines.is_empty() { Err("nothing".to_owned()) } else { Ok(lines) }
    });
    let early = lines.iter().find(|(_, line)| line["at"].as_str().unwrap() < soon.as_str());
    assert_eq!(early, None, "before {soon}");
}

#[test]
fn what_cannot_be_meant_is_refused_with_a_word_why() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let refused: [(&[&str], &str); 15] = [
        (&["--type", "party"], "party"),
        (&["--type", ""], "--type"),
        (&["--type", "node_started,peer_online"], "--type"),
        (&["--node", "nobody"], "--node"),
        (&["--node", ""], "--node"),
        (&["--since", "yesterday"], "2026-01-02T03:04:05Z"),
        (&["--since", ""], "--since"),
        (&["--since", "2026-13-01T00:00:00Z"], "--since"),
        (&["--until", "99999999999999999999d"], "--until"),
        (&["-n", "0"], "1 and 1000"),
        (&["-n", "1001"], "1 and 1000"),
        (&["-n", "-1"], "-1"),
        (&["--follow", "--all"], "--all"),
        (&["--follow", "--until", "1h"], "--until"),
        (&["verify", "--type", "paused"], "--type"),
    ];
    for (args, word) in refused {
        let (code, out, err) = outputs(&a.run(&[&["events"], args].concat(), &[]));
        assert_eq!((code, out.as_str()), (Some(2), ""), "{args:?}: {err}");
        assert!(err.contains(word), "{args:?}: {word:?} is not in: {err}");
    }
}

/// The numbers of the next events of a stream.
fn ids(stream: &mut BufReader<TcpStream>) -> impl Iterator<Item = u64> {
    let lines = stream.lines().map(Result::unwrap);
    lines.filter_map(|line| Some(line.strip_prefix("id: ")?.parse().unwrap()))
}

#[test]
fn over_http_what_memory_has_forgotten_is_read_as_well() {
    let cluster = Cluster::new();
    let open = || cluster.node("a").arg("--allow-anonymous").arg("network:updates").start();
    assert_eq!(open().terminate(), Some(0));
    let a = open();
    until("more than memory holds", || match a.floods(FLOOD).over() {
        _ if last(&a) > 2 * MEMORY => Ok(()),
        flooded => Err(format!("{flooded:?}")),
    });
    let page = |path: &str| a.asks(&format!("GET /api/events{path}"), &[]);
    let events = |path: &str| page(path).json()["events"].as_array().unwrap().clone();
    let first = page("?after=0&limit=5").json();
    assert_eq!(numbers(first["events"].as_array().unwrap()), [1, 2, 3, 4, 5]);
    assert_eq!((&first["next"], &first["first"]), (&5.into(), &1.into()));
    let lives = events("?after=0&type=node_started&limit=1000");
    assert_eq!(lives.len(), 2, "{lives:?}");
    let life = |at: usize| lives[at]["at"].as_str().unwrap();
    let (from, until) = (life(0), life(1));
    let earlier = events(&format!("?after=0&limit=1000&since={from}&until={until}"));
    assert!(!earlier.is_empty() && earlier.iter().all(|it| it["incarnation"] == 1), "{earlier:?}");
    let latest = events(&format!("?until={until}&limit=2"));
    assert_eq!(latest, earlier[earlier.len() - 2..], "the latest of them");
    // An offset is written with a plus, which is a space in a query.
    let zoned = until.replace('Z', "+00:00");
    assert_eq!(events(&format!("?after=0&limit=1000&since={from}&until={zoned}")), earlier);

    for (number, by) in [(1_u64, "Last-Event-ID"), (2, "query"), (last(&a) - 7, "both")] {
        let (id, text) = (number.to_string(), "text/event-stream");
        let mut headers = vec![("Accept", text)];
        let mut path = "GET /api/events".to_owned();
        if by == "query" {
            path += &format!("?after={id}")
        } else {
            headers.push(("Last-Event-ID", &id))
        }
        if by == "both" {
            path += "?after=1"
        }
        let mut stream = a.request(&path, &headers);
        assert_eq!(head(&mut stream).status, 200);
        let end = last(&a);
        let told: Vec<u64> =
            ids(&mut stream).take(usize::try_from(end - number).unwrap()).collect();
        assert!(told.iter().copied().eq(number + 1..=end), "{by}: {} after {number}", told.len());
        let noted = batch(&a);
        let told: Vec<u64> = ids(&mut stream).take(usize::try_from(noted).unwrap()).collect();
        assert!(told.iter().copied().eq(end + 1..=end + noted), "{by}: {told:?}");
    }
}

#[test]
fn hostile_questions_over_http_cost_nobody_but_who_asks() {
    let cluster = Cluster::new();
    let a = cluster.node("a").arg("--allow-anonymous").arg("network:updates").start();
    let long = format!("since={}", "9".repeat(5000));
    for query in [
        "since=yesterday",
        "since=",
        "since=0",
        "since=-1",
        "until=now",
        "until=2026-01-02",
        "until=2026-01-02T25:00:00Z",
        "since=2026-01-02T03:04:05Z&since=2026-01-02T03:04:05Z",
        "after=1.5",
        "after=0x10",
        "after=18446744073709551616",
        "after=",
        "limit=",
        "limit=-1",
        "limit=1e3",
        "limit=18446744073709551615",
        "type=",
        "type=node_started%00",
        "type[]=paused",
        "node=",
        "node=@",
        "from=2026-01-02T03:04:05Z",
        "seq=1",
        &long,
    ] {
        for accept in ["application/json", "text/event-stream"] {
            let answer = a.asks(&format!("GET /api/events?{query}"), &[("Accept", accept)]);
            answer.problem(400);
        }
    }
    for id in ["", "-1", "1;2", "18446744073709551616", "0x1", "é"] {
        let headers = [("Accept", "text/event-stream"), ("Last-Event-ID", id)];
        a.asks("GET /api/events", &headers).problem(400);
    }
    // Odd, and not wrong.
    for query in [
        "after=18446744073709551615",
        "since=9999-12-31T23:59:59Z",
        "until=1970-01-01T00:00:00Z",
        "since=2026-01-02T03:04:05Z&until=2026-01-01T03:04:05Z",
        "node=x@y",
    ] {
        let page = a.asks(&format!("GET /api/events?{query}"), &[]);
        assert_eq!((page.status, &page.json()["events"]), (200, &Value::Array(vec![])), "{query}");
    }
    assert_eq!(a.asks("GET /api/status", &[]).status, 200);
}
