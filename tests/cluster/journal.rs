//! What happened is remembered: by the node that runs on, by its next life, and in the file that it leaves.

use std::collections::BTreeMap;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use xpando_node::internals::proto::event::Recorded;

use crate::kit::trail::{Left, flooded, numbers};
use crate::kit::{Cluster, full, linked, outputs, until};

/// Lives that end in a flood.
const ROUNDS: u64 = 20;
/// Rounds after which the file is verified, beside the last one: that takes longer each time.
const LOOK: u64 = 8;

/// A flood that goes on for as long as it is looked at.
const LONG: Duration = Duration::from_secs(60);

/// Numbers rise by one.
#[track_caller]
fn whole(events: &[Value], from: u64) {
    let numbers = numbers(events);
    assert!(!numbers.is_empty(), "no events");
    let broken = numbers.iter().zip(from..).find(|(seq, expected)| *seq != expected);
    assert_eq!(broken, None, "{} events", numbers.len());
}

#[test]
fn what_was_shown_as_stored_outlives_any_kill_in_a_flood() {
    let cluster = Cluster::new();
    let left = Left::by(&cluster, &cluster.path("a"));
    let mut shown = BTreeMap::new();
    for round in 1..=ROUNDS {
        let mut a = cluster.node("a").data_dir(&left.dir).start();
        // Another moment of the writing each time.
        let flood = a.floods(Duration::from_millis(10 * round));
        let mut after = shown.keys().next_back().copied().unwrap_or(0);
        until("an event of this life that is stored", || {
            let page = a.stored(after).ok_or_else(|| "no answer".to_owned())?;
            after = page.next;
            let life = page.events.last().map(|event| event.incarnation.0);
            for event in page.events {
                shown.insert(event.seq, serde_json::to_value(event).unwrap());
            }
            if life == Some(round) { Ok(()) } else { Err(format!("{life:?} up to {after}")) }
        });
        a.signal(Signal::KILL);
        assert_eq!(a.exit_code(), None);
        drop(flood);
        if round % LOOK == 0 || round == ROUNDS {
            let (stored, proved) = left.verified();
            assert!(stored >= after && proved <= stored, "{after} were shown, {stored} are there");
        }
    }
    let found = left.exported();
    whole(&found, 1);
    let lost = shown.iter().find(|(seq, event)| found.get(**seq as usize - 1) != Some(*event));
    assert_eq!(lost, None, "of {} events", shown.len());
    let lives: Vec<_> = found
        .iter()
        .filter(|it| it["event"] == "node_started")
        .map(|it| &it["incarnation"])
        .collect();
    assert_eq!(lives.len() as u64, ROUNDS, "{lives:?}");
    eprintln!("{} events shown, {} stored", shown.len(), found.len());
}

/// The hashes are those that `proto/chain` documents, made from nothing but what was exported.
#[track_caller]
fn chained(events: &[Value], node: &str) {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut tip =
        Sha256::digest([b"xpando-node chain 1 genesis\0", full(node).as_bytes()].concat());
    for event in events {
        let exported: Recorded = serde_json::from_value(event.clone()).unwrap();
        let (seq, record) = (exported.seq.to_be_bytes(), exported.to_bytes().unwrap());
        let link = [b"xpando-node chain 1 link\0", &tip[..], &seq, &record].concat();
        tip = Sha256::digest(link);
        assert_eq!(event["hash"], hex(&tip), "{event}");
    }
}

#[test]
fn each_life_goes_on_where_the_one_before_ended() {
    let cluster = Cluster::new();
    let mut before: Vec<Value> = Vec::new();
    for life in 1..=4_u64 {
        let a = cluster.node("a").start();
        let b = cluster.node("b").join(a.listen()).start();
        linked(&[&a, &b]);
        let exported = a.exported();
        whole(&exported, 1);
        assert_eq!(exported[..before.len()], before, "in life {life}");
        assert!(exported.len() > before.len());
        assert!(exported[before.len()..].iter().all(|it| it["incarnation"] == life));
        chained(&exported, "a");
        let stamps: Vec<_> = exported.iter().map(|it| it["stamp"].as_str().unwrap()).collect();
        assert!(stamps.is_sorted_by(|one, other| one < other), "{stamps:?}");
        // The same without hashes, oldest first, all lives in one.
        let plain = a.events(&["-n", "1000"]);
        assert_eq!(without_hashes(&exported), without_hashes(&plain)[..exported.len()]);
        let (last, proved) = a.verified();
        assert!(last == proved && last >= exported.len() as u64);

        let left = Left::by(&cluster, &a.data_dir);
        drop(b);
        let stops = life % 2 == 0;
        if stops {
            assert_eq!(a.terminate(), Some(0))
        } else {
            a.kill()
        }
        let stored = left.exported();
        whole(&stored, 1);
        assert_eq!(stored[..exported.len()], exported);
        assert_eq!(left.events(&["--since", "1h"]), stored, "in a file everything has its hash");
        assert_eq!(left.events(&["-n", "2"]), stored[stored.len() - 2..]);
        assert_eq!(left.verified().0, stored.len() as u64);
        if stops {
            assert_eq!(left.verified(), (stored.len() as u64, stored.len() as u64));
            assert!(
                stored.iter().any(|it| it["event"] == "node_stopping" && it["incarnation"] == life)
            );
        }
        before = stored;
    }
}

fn without_hashes(events: &[Value]) -> Vec<Value> {
    let mut events = events.to_vec();
    for event in &mut events {
        event.as_object_mut().unwrap().remove("hash");
    }
    events
}

#[test]
fn who_looks_at_a_file_learns_what_is_wrong_with_it() {
    let cluster = Cluster::new();
    let (nowhere, empty) = (cluster.path("nowhere"), cluster.path("empty"));
    std::fs::create_dir(&empty).unwrap();
    for dir in [&nowhere, &empty] {
        for args in [&["events", "verify"][..], &["events", "export"], &["events"]] {
            let (code, out, err) = outputs(&Left::by(&cluster, dir).run(args));
            assert_eq!((code, out.as_str()), (Some(1), ""), "{args:?}");
            assert!(err.contains(dir.to_str().unwrap()), "{args:?}: {err}");
        }
    }
    assert!(!nowhere.exists() && std::fs::read_dir(&empty).unwrap().next().is_none());
    let a = cluster.node("a").start();
    let left = Left::by(&cluster, &a.data_dir);
    assert_eq!(a.terminate(), Some(0));
    let (code, _, err) = outputs(&left.run(&["events", "--follow"]));
    assert!(code == Some(1) && err.contains("does not run"), "{err}");
    // One that is damaged is named, and left as it is.
    let file = left.dir.join("node.redb");
    let damaged = vec![0xa5; std::fs::read(&file).unwrap().len()];
    std::fs::write(&file, &damaged).unwrap();
    let (code, _, err) = outputs(&left.run(&["events", "verify"]));
    assert!(code == Some(1) && err.contains("damaged"), "{err}");
    assert!(std::fs::read(&file).unwrap() == damaged);
}

#[test]
fn a_file_that_was_damaged_is_kept_apart_and_the_trail_begins_anew() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let file = a.data_dir.join("node.redb");
    assert_eq!(a.terminate(), Some(0));
    let sound = std::fs::read(&file).unwrap();
    let (half, none, holes) = (sound[..sound.len() / 2].to_vec(), vec![], vec![0; sound.len()]);
    for damaged in [half, none, holes] {
        std::fs::write(&file, &damaged).unwrap();
        let a = cluster.node("a").start();
        let status = a.status().unwrap();
        assert!(status["degraded"].as_str().unwrap().contains("damaged"), "{status}");
        assert_eq!(a.asks("GET /health/ready", &[]).json()["degraded"], true);
        let aside = a.events(&["--type", "store_set_aside"]);
        let [aside] = &aside[..] else { panic!("{aside:?}") };
        assert_eq!(aside["seq"], 1, "{aside}");
        assert!(std::fs::read(aside["path"].as_str().unwrap()).unwrap() == damaged);
        whole(&a.exported(), 1);
        let (last, proved) = a.verified();
        assert_eq!(last, proved);
        assert_eq!(a.terminate(), Some(0));
    }
}

#[test]
fn an_event_log_that_is_killed_again_and_again_misses_nothing() {
    let cluster = Cluster::new();
    let a = cluster.node("a").arg("--chaos").start();
    let flood = a.floods(Duration::from_secs(1));
    // Fewer than its supervisor gives up at.
    for killed in 0..8 {
        a.counts("xpando_store_writes_total", "ok", killed);
        a.kill_actor("event_log").unwrap();
        a.counts("xpando_actor_restarts_total", "event_log", killed);
    }
    let noted = flood.over().noted;
    assert!(noted > 1000, "{noted}");
    let (last, proved) = a.verified();
    let stored = a.exported();
    whole(&stored, 1);
    assert!(last == proved && last <= stored.len() as u64);
    let flooded = flooded(&stored);
    assert!(flooded.iter().copied().eq(0..noted), "{} of {noted}", flooded.len());
    assert_eq!(a.events(&["--type", "actor_ended", "--since", "1h"]).len(), 8);
    assert_eq!(stored.iter().filter(|it| it["event"] == "store_failing").count(), 0);
    eprintln!("{noted} events noted");
}

#[test]
fn a_flood_keeps_nobody_waiting_who_asks_for_what_is_stored() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let mut flood = a.floods(LONG);
    for after in 0..3 {
        let page = a.stored(after).unwrap();
        assert_eq!(page.events.first().map(|event| event.seq), Some(after + 1));
    }
    let (last, proved) = a.verified();
    assert!(proved > 0 && proved <= last, "{proved} {last}");
    assert!(flood.runs());
    a.kill();
}

#[test]
fn starts_and_identities_outlast_a_flood() {
    let cluster = Cluster::new();
    let a = cluster.node("a").arg("--events-size").arg("1").start();
    let kept = until("more events than there is room for", || {
        a.floods(Duration::from_millis(500)).over();
        let (code, out, err) = outputs(&a.run(&["events", "verify"], &[]));
        assert_eq!(code, Some(0), "{err}");
        let kept = out.lines().find(|line| line.starts_with("of the ")).map(str::to_owned);
        kept.ok_or(out)
    });
    assert!(kept.ends_with(" are kept, as they were written"), "{kept}");
    assert!(numbers(&a.events(&["-n", "1000"]))[0] > 1000);
    assert!(numbers(&a.events(&["--type", "identity_loaded"]))[0] < 10);
    let dir = a.data_dir.clone();
    assert_eq!(a.terminate(), Some(0));
    let left = Left::by(&cluster, &dir);
    assert_eq!(left.events(&["--type", "node_started"]).len(), 1);
    left.verified();
}

#[test]
fn what_is_too_old_is_forgotten_and_the_rest_is_sound() {
    let cluster = Cluster::new();
    let a = cluster.node("a").arg("--events-age").arg("1s").start();
    until("the first event is forgotten", || {
        // Verifying signs, and what is too old then is forgotten.
        let (code, out, err) = outputs(&a.run(&["events", "verify"], &[]));
        assert_eq!(code, Some(0), "{err}");
        if out.starts_with("events 1 to ") { Err(out) } else { Ok(()) }
    });
    assert_ne!(numbers(&a.exported()).first(), Some(&1));
}
