//! What is remembered, across runs, versions of the file, and failures of the disk.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, UNIX_EPOCH};

use sha2::{Digest as _, Sha256};

use super::place::FILE;
use super::*;
use crate::proto::chain::{Tip, Verified};
use crate::proto::codec;
use crate::proto::event::{Event, Reason, Recorded, Status};
use crate::proto::hlc::Stamp;
use crate::proto::node::{Contact, KeyId};
use crate::proto::registry::{Pair, Profile};
use crate::proto::seal::{MAX_SEAL, Seal};

mod chain;
mod crash;
mod damage;
pub(super) mod disk;
mod lasting;

use self::disk::Disk;

/// Writes another number into a file.
fn renumber(file: &Path, number: u64) {
    let database = Database::open(file).expect("opens");
    let write = database.begin_write().expect("begins");
    let mut meta = write.open_table(schema::META).expect("there");
    meta.insert(schema::SCHEMA_KEY, number).expect("writes");
    drop(meta);
    write.commit().expect("writes");
}

/// A node that was seen last at this second.
fn known(name: &str, port: u16, seconds: u64) -> Known {
    Known {
        addresses: vec![([127, 0, 0, 1], port).into()],
        incarnation: Incarnation(1),
        last_seen: Some(1000 * seconds),
        ..Known::new(name.parse().expect("valid"), 0)
    }
}

/// All that can be known of one, and as long as it can be.
fn whole(name: &str) -> Known {
    let words = (0..32).map(|n| format!("{n:02}{}", "s".repeat(62)).parse().expect("a word"));
    let pairs = ["k", "l"].map(|key| Pair::new(key, "x".repeat(2047)).expect("a pair"));
    let name: NodeName = name.parse().expect("valid");
    let state = registry::State::Live(Profile::new(words, pairs, 7).expect("within the bounds"));
    let (origin, incarnation) = (name.clone(), Incarnation(u64::MAX));
    let seal = Some(Seal { certificate: vec![7; MAX_SEAL - 72], signature: vec![7; 72] });
    let addresses = (1..=8).map(|port| ([0xff_u16; 8], port).into());
    Known {
        id: Some(KeyId([7; 16])),
        entry: Some(registry::Entry { origin, incarnation, version: u64::MAX, state, seal }),
        status: Some(Status::Offline),
        reason: Some(Reason::Left),
        incarnation,
        last_seen: Some(u64::MAX),
        last_heartbeat: Some(u64::MAX),
        addresses: addresses.collect(),
        reputation: -0.5,
        ..Known::new(name, u64::MAX)
    }
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

#[test]
fn lives_are_counted_across_openings() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("deep/er");
    for life in 1..=3 {
        let (store, opened) = Store::open(&path, at(0)).expect("opens");
        assert_eq!(opened, Opened::Sound);
        assert_eq!(store.begin_life().expect("writes"), Incarnation(life));
    }
    let (store, _) = Store::open(&path, at(0)).expect("opens");
    assert_eq!(store.raise(Incarnation(9)).expect("writes"), Incarnation(9));
    assert_eq!(store.raise(Incarnation(2)).expect("writes"), Incarnation(9));
    assert_eq!(store.begin_life().expect("writes"), Incarnation(10));
}

#[test]
fn nodes_are_remembered_latest_first() {
    let dir = tempfile::tempdir().expect("a directory");
    let (store, _) = Store::open(dir.path(), at(0)).expect("opens");
    assert_eq!(store.known().expect("reads"), []);
    let [a, b, c] = [known("a@h", 1, 1), known("b@h", 2, 1), known("c@h", 2, 5)];
    store.remember(&[a.clone(), b, c.clone()], &[]).expect("writes");
    let (later, long) = (known("b@h", 3, 2), whole("d@h"));
    store.remember(&[later.clone(), long.clone()], &[c.name]).expect("writes");
    drop(store);
    let (store, _) = Store::open(dir.path(), at(0)).expect("opens");
    assert_eq!(store.known().expect("reads"), [long, later, a]);
}

#[test]
fn addresses_that_worked_come_newest_first_and_lead_to_nobody_forgotten() {
    let mut node = known("a@h", 1, 1);
    (2..=9).for_each(|port| node.reached(([127, 0, 0, 1], port).into()));
    node.reached(([127, 0, 0, 1], 5).into());
    let ports = |node: &Known| node.contacts().map(|it| it.address.port()).collect::<Vec<_>>();
    assert_eq!(ports(&node), [5, 9, 8, 7, 6, 4, 3, 2]);
    let (origin, incarnation) = (node.name.clone(), Incarnation(1));
    let state = registry::State::Gone { at: 1, by: node.name.clone() };
    node.entry = Some(registry::Entry { origin, incarnation, version: 2, state, seal: None });
    assert_eq!(ports(&node), [0; 0]);
}

#[test]
fn lists_are_remembered_by_kind() {
    let dir = tempfile::tempdir().expect("a directory");
    let open = || Store::open(dir.path(), at(1)).expect("opens").0;
    assert_eq!(open().list("tokens").expect("reads"), None);
    let long = vec![7; crate::proto::lists::MAX_LIST];
    for list in [b"first".as_slice(), &long, b"second"] {
        open().keep_list("tokens", list).expect("writes");
        assert_eq!(open().list("tokens").expect("reads").as_deref(), Some(list));
    }
    assert_eq!(open().list("revocations").expect("reads"), None);
}

#[test]
fn a_second_process_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let _first = Store::open(dir.path(), at(0)).expect("opens");
    let second = Store::open(dir.path(), at(0)).expect_err("locked");
    assert!(second.to_string().contains("already running"), "{second}");
}

#[test]
fn a_damaged_file_is_set_aside_and_a_bad_directory_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join(FILE), vec![7; 5000]).expect("writes");
    let (store, opened) = Store::open(dir.path(), at(5)).expect("opens");
    assert_eq!(opened, Opened::SetAside(dir.path().join("node.redb.damaged-5000")));
    assert_eq!(store.begin_life().expect("writes"), Incarnation(1));
    let file = dir.path().join("plain");
    fs::write(&file, "x").expect("writes");
    let error = Store::open(&file, at(0)).expect_err("not a directory").to_string();
    assert!(error.contains("--data-dir"), "{error}");
}

fn event(n: u64) -> Recorded {
    Recorded {
        seq: n,
        noted_by: None,
        at: n,
        since_start: n,
        incarnation: Incarnation(1),
        stamp: Stamp { millis: n, count: 0 },
        hash: None,
        event: Event::Paused { millis: n },
    }
}

/// Whether a stored event is that of its number.
fn is_as_written(stored: &Recorded) -> bool {
    stored.hash.is_some() && Recorded { hash: None, ..stored.clone() } == event(stored.seq)
}

/// Events with these numbers.
fn events(numbers: std::ops::RangeInclusive<u64>) -> Vec<Recorded> {
    numbers.map(event).collect()
}

/// Stands for the node's signature.
fn sign(message: &[u8]) -> Result<Vec<u8>, String> {
    use sha2::{Digest as _, Sha256};
    Ok(Sha256::new().chain_update(b"secret").chain_update(message).finalize().to_vec())
}

fn is_signed(message: &[u8], signature: &[u8]) -> bool {
    sign(message).is_ok_and(|sound| sound == signature)
}

fn trail(store: Store) -> Chain {
    Chain::new(Arc::new(store), "a@127.0.0.1".parse().expect("valid")).expect("its own")
}

fn simulated(disk: &Disk) -> (Store, Opened) {
    let opened = Store::open_at(Place::Simulated(disk.clone()), at(7));
    opened.unwrap_or_else(|_failure| panic!("it does not open"))
}

/// The files of schemas 1 to 3 that earlier versions of this program wrote: three lives, three peers, one of which is
/// at another address than its name says; in the later ones also five records, and a signed head; in the third the profile
/// of one peer, and the tombstone of a fourth.
const SCHEMAS: [&[u8]; 3] = [
    include_bytes!("tests/v1.redb"),
    include_bytes!("tests/v2.redb"),
    include_bytes!("tests/v3.redb"),
];

/// The bytes that a build with postcard 1.1 stored: a build with another version reads that file as its own.
#[test]
fn values_are_stored_as_the_same_bytes_as_ever() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (node, stamp) =
        ("a@h".parse::<NodeName>().expect("valid"), Stamp { millis: 300, count: 2 });
    let record = Recorded { stamp, ..event(7) }.to_bytes().expect("plain");
    // With a node in its place, as events about one have it.
    let record = [&record[..14], b"\x01\x03a@h", &record[15..]].concat();
    let tip = Tip::genesis(&node).then(&record);
    let trail = schema::TrailState { node, tip, bytes: 70_000 };
    let state = schema::State { incarnation: Incarnation(9), trail: Some(trail) };
    let state = schema::sealed(&state).ok().expect("plain");
    let node = schema::sealed(&known("a@h", 4697, 5)).ok().expect("plain");
    let whole = schema::sealed(&whole("d@h")).ok().expect("plain");
    let checksum = &whole[whole.len() - 8..];
    let stored = [
        "02070701ac02020670617573656401036140681d7b226576656e74223a22706175736564222c226d696c6c6973223a377d",
        "0209010361406801ff4457e0f351845d54838f9833546962f30c33da2e5cac53496735ae91c15080f0a20467765e6eaa9bf725",
        "02036140680000000001000188270001007f000001d9240000000000000000b49f2cc8ff980125",
        "11910b3e4cdc3556",
    ];
    assert_eq!([&record, &state, &node, checksum].map(hex), stored);
}

/// What the next version of this program may leave, after which somebody goes back to this one.
#[test]
fn a_file_of_the_next_schema_is_used_where_that_allows_it() {
    const TAGS: redb::TableDefinition<'_, &str, &str> = redb::TableDefinition::new("tags");
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join(FILE);
    let open = || Store::open(dir.path(), at(0)).expect("opens").0;
    let store = open();
    let life = store.begin_life().expect("writes");
    let [b, c] = ["b@h", "c@h"].map(|name| known(name, 3, 2));
    store.remember(&[b.clone(), c.clone()], &[]).expect("writes");
    drop(store);
    let sealed = |mut bytes: Vec<u8>| {
        let seal = Sha256::digest(&bytes);
        bytes.extend_from_slice(&seal[..8]);
        bytes
    };
    let plain = |of: &Known| codec::encode_versioned(2, of).expect("plain");
    let database = redb::Database::open(&path).expect("opens");
    let write = database.begin_write().expect("writes");
    {
        let mut meta = write.open_table(schema::META).expect("there");
        meta.insert(schema::SCHEMA_KEY, schema::SCHEMA + 1).expect("writes");
        meta.insert(schema::READER_KEY, schema::SCHEMA).expect("writes");
        write.open_table(TAGS).expect("new").insert("b@h", "blue").expect("writes");
        let mut nodes = write.open_table(schema::NODES).expect("there");
        // One has a field more, of the other a field is of a kind that is not known here.
        let more = [plain(&b), vec![7]].concat();
        nodes.insert("b@h", sealed(more).as_slice()).expect("writes");
        let other = [&plain(&c)[..8], &[0xff; 40]].concat();
        nodes.insert("c@h", sealed(other).as_slice()).expect("writes");
    }
    write.commit().expect("writes");
    drop(database);

    let store = open();
    assert_eq!(store.condition(), Condition::default());
    assert_eq!(store.known().expect("reads"), std::slice::from_ref(&b));
    assert_eq!(store.begin_life().expect("writes"), life.next());
    store.remember(&[b, c], &[]).expect("writes");
    drop(store);
    let database = redb::Database::open(&path).expect("opens");
    let read = database.begin_read().expect("reads");
    let meta = read.open_table(schema::META).expect("there");
    let number = meta.get(schema::SCHEMA_KEY).expect("reads").map(|number| number.value());
    assert_eq!(number, Some(schema::SCHEMA + 1), "it is the later program's file");
    let tags = read.open_table(TAGS).expect("there");
    assert_eq!(
        tags.get("b@h").expect("reads").map(|tag| tag.value().to_owned()),
        Some("blue".to_owned())
    );
}

#[test]
fn files_of_earlier_schemas_are_read_and_become_ones_of_this() {
    for (schema, file) in (1..).zip(SCHEMAS) {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join(FILE), file).expect("writes");
        let peers = [("c@10.0.0.3", 4699, 9), ("a@10.0.0.1", 4697, 7), ("b@10.0.0.2", 4698, 8)];
        let contacts = peers.map(|(name, port, incarnation)| Contact {
            name: name.parse().expect("valid"),
            address: ([10, 0, 0, 1], port).into(),
            incarnation: Incarnation(incarnation),
        });
        let mut last = if schema == 1 { 0 } else { 5 };
        for life in 4..6 {
            let (store, opened) = Store::open(dir.path(), at(0)).expect("opens");
            assert_eq!((opened, store.condition()), (Opened::Sound, Condition::default()));
            assert_eq!(store.begin_life().expect("writes"), Incarnation(life));
            let mut known = store.known().expect("reads");
            assert!(known.is_sorted_by_key(|node| std::cmp::Reverse(node.last_seen)));
            known.sort_by_key(|node| contacts.iter().position(|one| one.name == node.name));
            let read: Vec<_> = known.iter().flat_map(Known::contacts).collect();
            assert_eq!(read, contacts, "schema {schema}");
            assert_eq!(known.iter().any(Known::is_forgotten), schema == 3);
            known.retain(|node| contacts.iter().any(|one| one.name == node.name));
            assert!(known.iter().all(|node| node.last_seen == Some(node.first_seen)));
            assert_eq!(known.iter().any(|node| node.does("nlp")), schema == 3);
            let chain = trail(store);
            last += 1;
            assert_eq!(chain.append(&[event(last)]).expect("writes").seq, last);
            let proved = if schema == 1 { 0 } else { 5 };
            let verified = Verified { forgotten: 0, lasting: 0, last, proved };
            assert_eq!(chain.verify(is_signed).expect("sound"), verified, "schema {schema}");
        }
    }
}

#[test]
fn a_file_of_the_first_schema_that_was_never_written_is_one_too() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(redb::Database::create(dir.path().join(FILE)).expect("makes"));
    let (store, opened) = Store::open(dir.path(), at(0)).expect("opens");
    assert_eq!(opened, Opened::Sound);
    assert_eq!(store.begin_life().expect("writes"), Incarnation(1));
}

#[test]
fn a_file_of_a_later_schema_is_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let life = || Store::open(dir.path(), at(0)).expect("opens").0.begin_life().expect("writes");
    assert_eq!(life(), Incarnation(1));
    renumber(&dir.path().join(FILE), schema::SCHEMA + 1);
    let error = Store::open(dir.path(), at(0)).expect_err("another schema").to_string();
    let schema = format!("schema {}", schema::SCHEMA + 1);
    assert!(error.contains(&schema) && error.contains("later version"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).expect("reads").count(), 1, "nothing is set aside");
    renumber(&dir.path().join(FILE), schema::SCHEMA);
    assert_eq!(life(), Incarnation(2));
}

#[test]
fn a_first_start_that_ended_too_soon_leaves_nothing_in_the_way() {
    let dir = tempfile::tempdir().expect("a directory");
    for left in [&b""[..], &[7; 5000]] {
        fs::write(dir.path().join("node.redb.new"), left).expect("writes");
        let (store, opened) = Store::open(dir.path(), at(0)).expect("opens");
        assert_eq!(opened, Opened::Sound);
        assert_eq!(store.begin_life().expect("writes"), Incarnation(1));
        drop(store);
        let names =
            || fs::read_dir(dir.path()).expect("reads").map(|e| e.expect("one").file_name());
        assert_eq!(names().collect::<Vec<_>>(), [FILE]);
        fs::remove_file(dir.path().join(FILE)).expect("removes");
    }
}

#[test]
fn of_the_files_that_were_set_aside_the_last_two_stay() {
    let dir = tempfile::tempdir().expect("a directory");
    let name = |stamp: u64| dir.path().join(format!("node.redb.damaged-{stamp}"));
    for other in ["history.redb.damaged-1", "node.redb.damaged-x", "node.redb.damaged-"] {
        fs::write(dir.path().join(other), "").expect("writes");
    }
    // Several in one millisecond, and one after the clock was set back.
    let set_aside = [(0, 0, 5, 5000), (1, 5000, 5, 5001), (2, 5000, 5, 5002), (3, 5000, 4, 4000)];
    for (n, length, time, stamp) in set_aside {
        fs::write(dir.path().join(FILE), vec![n; length]).expect("writes");
        let (store, opened) = Store::open(dir.path(), at(time)).expect("opens");
        let aside = name(stamp);
        assert_eq!(fs::read(&aside).expect("reads"), vec![n; length]);
        assert_eq!(opened, Opened::SetAside(aside.clone()));
        assert_eq!(store.condition(), Condition { set_aside: Some(aside), failing: None });
        assert!(store.condition().is_degraded());
    }
    let there = [4000, 5000, 5001, 5002].map(|stamp| name(stamp).exists());
    assert_eq!(there, [true, false, false, true]);
    assert_eq!(fs::read_dir(dir.path()).expect("reads").count(), 6, "others' files stay");
}

/// A full disk and one with errors: each call says so, the condition says so, what was acknowledged stays, and the
/// first write after it is over succeeds without a restart. Only when writes have succeeded for a while all is well.
#[tokio::test(start_paused = true)]
async fn a_failing_disk_costs_the_calls_it_fails_and_no_more() {
    for kind in [ErrorKind::StorageFull, ErrorKind::Other] {
        let disk = Disk::default();
        let (store, _) = simulated(&disk);
        assert_eq!(store.begin_life().expect("writes"), Incarnation(1));
        let store = Arc::new(store);
        let chain = Chain::new(store.clone(), "a@127.0.0.1".parse().expect("valid")).expect("own");
        chain.append(&events(1..=300)).expect("writes");
        chain.sign_head(at(1), sign).expect("writes");
        for _ in 0..3 {
            disk.fail(Some(kind));
            for _ in 0..3 {
                let error = chain.append(&events(301..=400)).expect_err("the disk fails");
                assert!(matches!(error, StoreError::Storage(_)), "{error}");
                assert!(store.condition().failing.is_some() && store.condition().is_degraded());
                assert!(store.remember(&[known("b@h", 1, 1)], &[]).is_err());
            }
            disk.fail(None);
            assert_eq!(chain.last().expect("reads").seq, 300, "whole or not at all");
            assert!(store.condition().is_degraded(), "nothing has been written yet");
            assert_eq!(store.raise(Incarnation(1)).expect("writes"), Incarnation(1));
            tokio::time::advance(STEADY - Duration::from_millis(1)).await;
            assert!(
                store.condition().failing.is_some(),
                "a small write may succeed on a full disk"
            );
            disk.fail(Some(kind));
            assert!(chain.append(&events(301..=400)).is_err());
            disk.fail(None);
            assert_eq!(store.raise(Incarnation(1)).expect("writes"), Incarnation(1));
            tokio::time::advance(STEADY - Duration::from_millis(1)).await;
            assert!(store.condition().failing.is_some(), "the time runs from the last failure");
            tokio::time::advance(Duration::from_millis(1)).await;
            assert_eq!(store.condition(), Condition::default());
        }
        chain.append(&events(301..=400)).expect("writes");
        let verified = chain.verify(is_signed).expect("sound");
        assert_eq!(verified, Verified { forgotten: 0, lasting: 0, last: 400, proved: 300 });
    }
}

#[test]
fn a_file_that_is_removed_or_replaced_under_a_running_node_is_told_and_made_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let (store, _) = Store::open(&data, at(0)).expect("opens");
    store.begin_life().expect("writes");
    let other = dir.path().join("other");
    let removals: [&dyn Fn(); 3] = [
        &|| fs::remove_file(data.join(FILE)).expect("removes"),
        &|| fs::remove_dir_all(&data).expect("removes"),
        &|| {
            drop(Store::open(&other, at(0)).expect("opens"));
            fs::rename(other.join(FILE), data.join(FILE)).expect("replaces");
        },
    ];
    for (n, remove) in (2..).zip(removals) {
        remove();
        let error = store.begin_life().expect_err("it is gone");
        assert!(matches!(&error, StoreError::Removed(path) if *path == data.join(FILE)), "{error}");
        assert!(store.condition().failing.is_some_and(|why| why == error.to_string()));
        let life = store.begin_life().expect("a new file").0;
        assert_eq!(life, if n == 4 { 1 } else { n }, "a file that is put there counts as it is");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&data), mode(&data.join(FILE))), (0o700, 0o600));
    }
}

#[test]
fn directory_and_file_are_the_owners_alone_whatever_there_was() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    drop(Store::open(&data, at(0)).expect("opens"));
    set(&data, 0o775).and_then(|()| set(&data.join(FILE), 0o666)).expect("set");
    drop(Store::open(&data, at(0)).expect("opens"));
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode(&data), mode(&data.join(FILE))), (0o700, 0o600));
    for open in [0o777, 0o1777, 0o702] {
        set(&data, open).expect("set");
        let error = Store::open(&data, at(0)).expect_err("others may write it");
        let text = error.to_string();
        assert!(text.contains(&format!("(mode {open:04o})")), "{text}");
        assert!(text.contains(&format!("`chmod go-w {}`", data.display())), "{text}");
    }
}

#[test]
fn a_start_that_failed_takes_back_what_it_made_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("one/two");
    Store::open(&data, at(0)).expect("opens").0.unmake();
    assert!(!dir.path().join("one").exists());
    fs::create_dir(dir.path().join("one")).expect("made");
    fs::write(dir.path().join("one/file"), "x").expect("written");
    Store::open(&data, at(0)).expect("opens").0.unmake();
    assert!(dir.path().join("one/file").exists() && !data.exists());
    drop(Store::open(&data, at(0)).expect("opens"));
    Store::open(&data, at(0)).expect("opens").0.unmake();
    assert!(data.join(FILE).exists(), "it was there before");
}

/// Damage that shows only while the node runs: the call says so, the next one starts on an empty file, which goes on
/// with the incarnation of this run.
#[test]
fn a_file_that_is_damaged_under_a_running_node_is_set_aside() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Arc::new(Store::open(dir.path(), at(0)).expect("opens").0);
    for _ in 0..3 {
        store.begin_life().expect("writes");
    }
    // More than stays in memory.
    let chain = Chain::new(store.clone(), "a@127.0.0.1".parse().expect("valid")).expect("own");
    chain.append(&events(1..=20_000)).expect("writes");
    let file = dir.path().join(FILE);
    let mut bytes = fs::read(&file).expect("reads");
    bytes[4096..].fill(0xa5);
    fs::write(&file, &bytes).expect("writes");
    let error = chain.after(0, usize::MAX, |_| true).expect_err("damaged");
    assert!(matches!(error, StoreError::Damaged(_)), "{error}");
    assert!(store.condition().failing.is_some());
    assert_eq!(store.begin_life().expect("a new file"), Incarnation(4));
    let Condition { set_aside: Some(aside), failing: None } = store.condition() else {
        panic!("{:?}", store.condition())
    };
    assert!(aside.exists() && store.condition().is_degraded());
    assert_eq!(chain.append(&events(1..=1)).expect("writes").seq, 1);
}
