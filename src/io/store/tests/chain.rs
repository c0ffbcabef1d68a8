//! The chain in its file: kept, paged, forgotten, and no change to it unseen.

use redb::{Database, ReadableTable, WriteTransaction};

use super::super::schema::{CHECKPOINT, HEADS, LINKS};
use super::*;
use crate::proto::chain::{ChainLink, Why};
use crate::proto::event::MAX_RECORD;

fn numbers(events: &[Recorded]) -> Vec<u64> {
    events.iter().map(|event| event.seq).collect()
}

#[test]
fn what_is_appended_comes_back_in_another_run() {
    let dir = tempfile::tempdir().expect("a directory");
    let chain = trail(Store::open(dir.path(), at(0)).expect("opens").0);
    assert_eq!((chain.first().expect("reads"), chain.last().expect("reads").seq), (1, 0));
    assert_eq!(chain.newest(u64::MAX, 9, |_| true).expect("reads"), []);
    assert!(chain.sign_head(at(1), sign).expect("reads").is_none(), "nothing to sign");
    chain.append(&events(1..=10)).expect("writes");
    drop(chain);
    let chain = trail(Store::open(dir.path(), at(0)).expect("opens").0);
    let last = chain.append(&events(11..=12)).expect("writes");
    assert_eq!((last, last.seq), (chain.last().expect("reads"), 12));
    assert_eq!(numbers(&chain.newest(u64::MAX, 3, |_| true).expect("reads")), [10, 11, 12]);
    assert_eq!(numbers(&chain.newest(u64::MAX, 3, |r| r.at % 4 == 0).expect("reads")), [4, 8, 12]);
    let page = chain.after(9, 2, |_| true).expect("reads");
    assert_eq!(numbers(&page), [10, 11]);
    assert!(is_as_written(&page[0]) && page[0].hash != page[1].hash, "{page:?}");
    assert!(chain.after(12, 2, |_| true).expect("reads").is_empty());
    assert_eq!(chain.append::<Recorded>(&[]).expect("writes"), last);
}

#[test]
fn heads_are_signed_when_there_is_something_new() {
    let dir = tempfile::tempdir().expect("a directory");
    let chain = trail(Store::open(dir.path(), at(0)).expect("opens").0);
    chain.append(&events(1..=5)).expect("writes");
    let refused = chain.sign_head(at(1), |_| Err("no entropy")).expect_err("unsigned");
    assert!(refused.to_string().contains("no entropy"), "{refused}");
    assert!(!chain.store.condition().is_degraded(), "the disk is sound");
    let head = chain.sign_head(at(1), sign).expect("writes").expect("new");
    assert_eq!((head.what.tip.seq, head.what.at), (5, 1000));
    assert!(chain.sign_head(at(2), sign).expect("reads").is_none());
    chain.append(&events(6..=7)).expect("writes");
    let sound = |proved| Verified { forgotten: 0, lasting: 0, last: 7, proved };
    assert_eq!(chain.verify(is_signed).expect("sound"), sound(5));
    chain.sign_head(at(3), sign).expect("writes").expect("new");
    assert_eq!(chain.verify(is_signed).expect("sound"), sound(7));
    let error = chain.verify(|_, _| false).expect_err("another key").to_string();
    assert!(error.contains("record 5 is vouched for by a signature that is not"), "{error}");
}

#[test]
fn what_is_old_or_too_much_is_forgotten_and_the_rest_verifies() {
    let dir = tempfile::tempdir().expect("a directory");
    let chain = trail(Store::open(dir.path(), at(0)).expect("opens").0);
    let all = Limits { age: Duration::from_secs(1000), bytes: u64::MAX };
    for n in 0..10 {
        // Record n is n milliseconds old.
        chain.append(&events(10 * n + 1..=10 * n + 10)).expect("writes");
        chain.sign_head(at(1), sign).expect("writes");
    }
    let retain = |limits: Limits, now| chain.retain(&limits, now, sign, is_signed).expect("writes");
    let now = UNIX_EPOCH + Duration::from_millis(1041);
    assert_eq!(retain(all, now), 0);
    assert_eq!(retain(Limits { age: Duration::from_secs(1), ..all }, now), 40);
    assert_eq!((chain.first().expect("reads"), chain.last().expect("reads").seq), (41, 100));
    let verified = chain.verify(is_signed).expect("sound");
    assert_eq!(verified, Verified { forgotten: 40, lasting: 0, last: 100, proved: 100 });
    let size = ChainLink {
        tip: chain.last().expect("reads"),
        record: &event(50).to_bytes().expect("short"),
    }
    .to_bytes()
    .len() as u64;
    assert_eq!(
        retain(Limits { bytes: 20 * size + 4, ..all }, now),
        40,
        "100 is a byte longer, twice"
    );
    assert_eq!(
        numbers(&chain.after(0, 100, |_| true).expect("reads")),
        (81..=100).collect::<Vec<_>>()
    );
    let forged = chain.retain(&Limits { bytes: 0, ..all }, now, sign, |_, _| false);
    let forged = forged.expect_err("another's checkpoint").to_string();
    assert!(forged.contains("not the node's"), "{forged}");
    let unsigned = chain.retain(&Limits { bytes: 0, ..all }, now, |_| Err("no entropy"), is_signed);
    assert!(unsigned.is_err());
    assert_eq!(chain.first().expect("reads"), 81, "nothing is forgotten without a signature");
    assert_eq!(retain(Limits { bytes: 0, ..all }, now), 20);
    assert_eq!((chain.first().expect("reads"), chain.last().expect("reads").seq), (101, 100));
    chain.append(&events(101..=102)).expect("writes");
    let verified = chain.verify(is_signed).expect("sound");
    assert_eq!(verified, Verified { forgotten: 100, lasting: 0, last: 102, proved: 100 });
    drop(chain);
    let chain = trail(Store::open(dir.path(), at(0)).expect("opens").0);
    assert_eq!(chain.verify(is_signed).expect("sound"), verified);
}

#[test]
fn a_chain_belongs_to_one_node() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Arc::new(Store::open(dir.path(), at(0)).expect("opens").0);
    let (a, b) = ("a@h".parse().expect("valid"), "b@h".parse().expect("valid"));
    let one = Chain::new(store.clone(), a).expect("nobody's yet");
    one.append(&events(1..=2)).expect("writes");
    let error = Chain::new(store, b).expect_err("another's").to_string();
    assert!(error.contains("the trail of a@h"), "{error}");
}

#[test]
fn a_record_that_could_not_be_read_back_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let chain = trail(Store::open(dir.path(), at(0)).expect("opens").0);
    let label =
        crate::proto::event::OtherEvent { event: "x".repeat(MAX_RECORD), ..Default::default() };
    let long = Recorded { event: Event::Other(label), ..event(2) };
    let error = chain.append(&[event(1), long]).expect_err("too long");
    assert!(matches!(error, StoreError::Record(_)), "{error}");
    assert_eq!(chain.last().expect("reads").seq, 0, "whole or not at all");
}

/// What verification says after `change` was made to a file of 30 records, forgotten up to 5, with heads at 10, 20
/// and 25.
fn after(change: impl FnOnce(&WriteTransaction)) -> String {
    let dir = tempfile::tempdir().expect("a directory");
    let chain = trail(Store::open(dir.path(), at(0)).expect("opens").0);
    for part in [1..=10, 11..=20, 21..=25] {
        chain.append(&events(part)).expect("writes");
        chain.sign_head(at(1), sign).expect("writes");
    }
    chain.append(&events(26..=30)).expect("writes");
    let limits = Limits { age: Duration::from_millis(4), bytes: u64::MAX };
    let now = UNIX_EPOCH + Duration::from_millis(10);
    assert_eq!(chain.retain(&limits, now, sign, is_signed).expect("writes"), 5);
    drop(chain);
    let database = Database::open(dir.path().join(FILE)).expect("opens");
    let write = database.begin_write().expect("begins");
    change(&write);
    write.commit().expect("writes");
    drop(database);
    let (store, opened) = Store::open(dir.path(), at(0)).expect("opens");
    assert_eq!(opened, Opened::Sound, "the file itself is whole");
    match trail(store).verify(is_signed) {
        Ok(verified) => format!("{verified:?}"),
        Err(StoreError::Chain(fault)) => fault.to_string(),
        Err(other) => other.to_string(),
    }
}

fn link(write: &WriteTransaction, seq: u64) -> Vec<u8> {
    write.open_table(LINKS).expect("there").get(seq).expect("reads").expect("one").value().to_vec()
}

fn put(write: &WriteTransaction, seq: u64, link: &[u8]) {
    write.open_table(LINKS).expect("there").insert(seq, link).expect("writes");
}

#[test]
fn every_change_to_the_file_is_named() {
    let untouched = "Verified { forgotten: 5, lasting: 0, last: 30, proved: 25 }";
    assert_eq!(after(|_| {}), untouched);
    for at in [6, 13, 30] {
        let edited = after(|write| {
            let mut bytes = link(write, at);
            *bytes.last_mut().expect("some") ^= 1;
            put(write, at, &bytes);
        });
        assert_eq!(edited, format!("record {at} was edited"));
        let removed = after(|write| {
            write.open_table(LINKS).expect("there").remove(at).expect("writes");
        });
        let how = if at == 30 { "and all after it were cut off" } else { "is missing" };
        assert_eq!(removed, format!("record {at} {how}"));
        let short = after(|write| put(write, at, b"short"));
        assert_eq!(short, format!("record {at} cannot be read"));
    }
    let swapped = after(|write| {
        let (one, other) = (link(write, 12), link(write, 17));
        put(write, 12, &other);
        put(write, 17, &one);
    });
    assert_eq!(swapped, "record 12 is out of its order");
    let inserted = after(|write| {
        for seq in (15..=30).rev() {
            put(write, seq + 1, &link(write, seq));
        }
        let forged = ChainLink {
            tip: ChainLink::from_bytes(&link(write, 15)).expect("one").tip,
            record: b"x",
        };
        put(write, 15, &forged.to_bytes());
    });
    assert_eq!(inserted, "record 15 was inserted");
    let cut = after(|write| {
        write.open_table(LINKS).expect("there").retain_in(23.., |_, _| false).expect("writes");
    });
    assert_eq!(cut, "record 23 and all after it were cut off");
}

#[test]
fn whoever_makes_the_hashes_anew_is_found_by_the_next_head() {
    let rewritten = |from: u64| {
        after(|write| {
            let mut tip = ChainLink::from_bytes(&link(write, from - 1)).expect("one").tip;
            for seq in from..=30 {
                let record = if seq == from { event(99) } else { event(seq) };
                let record = record.to_bytes().expect("short");
                tip = tip.then(&record);
                put(write, seq, &ChainLink { tip, record: &record }.to_bytes());
            }
            let mut table = write.open_table(schema::STATE_TABLE).expect("there");
            let mut state = State::read(&table).ok().expect("reads");
            state.trail.as_mut().expect("one").tip = tip;
            assert!(state.write(&mut table).is_ok());
        })
    };
    let words = "or one after it was changed, and the hashes made anew";
    assert_eq!(rewritten(13), format!("record 11 {words}"), "10 is proved");
    assert_eq!(rewritten(21), format!("record 21 {words}"));
    assert_eq!(
        rewritten(27),
        "Verified { forgotten: 5, lasting: 0, last: 30, proved: 25 }",
        "as it says"
    );
    let head = after(|write| {
        let mut heads = write.open_table(HEADS).expect("there");
        let bytes = heads.get(20).expect("reads").expect("one").value().to_vec();
        let mut head: crate::proto::chain::Signed<crate::proto::chain::Head> =
            schema::opened(&bytes).ok().expect("reads");
        head.signature[0] ^= 1;
        heads.insert(20, schema::sealed(&head).ok().expect("plain").as_slice()).expect("writes");
    });
    assert_eq!(head, Fault { seq: 20, why: Why::Signature }.to_string());
    let unmarked = after(|write| {
        write.open_table(CHECKPOINT).expect("there").remove(()).expect("writes");
    });
    assert_eq!(unmarked, "record 1 is missing");
}

#[test]
fn what_was_changed_is_not_forgotten() {
    let dir = tempfile::tempdir().expect("a directory");
    let chain = trail(Store::open(dir.path(), at(0)).expect("opens").0);
    chain.append(&events(1..=20)).expect("writes");
    drop(chain);
    let database = Database::open(dir.path().join(FILE)).expect("opens");
    let write = database.begin_write().expect("begins");
    let mut bytes = link(&write, 7);
    *bytes.last_mut().expect("some") ^= 1;
    put(&write, 7, &bytes);
    write.commit().expect("writes");
    drop(database);
    let chain = trail(Store::open(dir.path(), at(0)).expect("opens").0);
    let limits = Limits { age: Duration::ZERO, bytes: u64::MAX };
    let error = chain.retain(&limits, at(1), sign, is_signed).expect_err("changed").to_string();
    assert!(error.contains("record 7 was edited"), "{error}");
    assert_eq!(chain.first().expect("reads"), 1);
}
