//! What outlasts the rest of a chain that is shortened: kept, paged, proven, and bounded.

use redb::{Database, ReadableTable as _, WriteTransaction};

use super::super::schema::{KEPT, LASTING, META, SCHEMA_KEY};
use super::*;
use crate::proto::chain::{ChainLink, Kept, kept_from_bytes, kept_to_bytes};
use crate::proto::event::Query;
use crate::proto::seal::Equivocation;

/// A start every ten events, and noise.
fn noisy(n: u64) -> Recorded {
    let start = Event::NodeStarted { version: format!("{n:08}") };
    if n.is_multiple_of(10) { Recorded { event: start, ..event(n) } } else { event(n) }
}

fn size(n: u64, chain: &Chain) -> u64 {
    let (tip, record) = (chain.last().expect("reads"), noisy(n).to_bytes().expect("short"));
    ChainLink { tip, record: &record }.to_bytes().len() as u64
}

/// A chain of 1000 events, with room for about 100.
fn shortened(dir: &Path) -> (Chain, Limits) {
    let chain = trail(Store::open(dir, at(0)).expect("opens").0);
    let all: Vec<_> = (1..=1000).map(noisy).collect();
    chain.append(&all).expect("writes");
    chain.sign_head(at(1), sign).expect("writes");
    let limits = Limits { age: Duration::from_secs(1000), bytes: 100 * size(999, &chain) };
    retain(&chain, &limits, 2);
    (chain, limits)
}

fn retain(chain: &Chain, limits: &Limits, seconds: u64) -> u64 {
    chain.retain(limits, at(seconds), sign, is_signed).expect("writes")
}

fn numbers(events: &[Recorded]) -> Vec<u64> {
    assert!(events.iter().all(|it| Recorded { hash: None, ..it.clone() } == noisy(it.seq)));
    events.iter().map(|event| event.seq).collect()
}

#[test]
fn starts_outlast_noise_and_are_proven() {
    let dir = tempfile::tempdir().expect("a directory");
    let (chain, limits) = shortened(dir.path());
    let verified = chain.verify(is_signed).expect("sound");
    let first = chain.first().expect("reads");
    assert_eq!((verified.forgotten + 1, verified.last, verified.proved), (first, 1000, 1000));
    let part = limits.bytes / 4;
    assert_eq!(verified.lasting, part / size(990, &chain));
    let older: Vec<u64> = (1..first).filter(|n| n % 10 == 0).collect();
    let older = older[older.len() - usize::try_from(verified.lasting).expect("few")..].to_vec();
    let whole: Vec<u64> = older.iter().copied().chain(first..=1000).collect();
    assert_eq!(numbers(&chain.after(0, 2000, |_| true).expect("reads")), whole);
    assert_eq!(numbers(&chain.newest(u64::MAX, 2000, |_| true).expect("reads")), whole);
    let some = chain.after(older[2], 4, |_| true).expect("reads");
    assert_eq!(numbers(&some), older[3..7]);
    let some = chain.newest(first + 1, 3, |_| true).expect("reads");
    assert_eq!(numbers(&some), [older[older.len() - 2], older[older.len() - 1], first]);
    let label = Some("node_started".to_owned());
    let page = chain.read(&Query { label, ..Query::default() }).expect("reads");
    assert_eq!((page.first, page.next), (first, 1000));
    assert!(page.events.iter().any(|it| it.seq < first && it.hash.is_some()));
    // All of it together is no more than what may stay.
    let bytes: u64 = whole.iter().map(|n| size(*n, &chain)).sum();
    assert!(bytes <= limits.bytes && bytes > limits.bytes - size(990, &chain), "{bytes}");
    drop(chain);
    let chain = trail(Store::open(dir.path(), at(0)).expect("opens").0);
    assert_eq!(chain.verify(is_signed).expect("sound"), verified);

    // Noise alone does not drive them out, and what is too old goes, whatever it is.
    let before = numbers(&chain.after(0, 2000, |_| true).expect("reads"));
    chain.append(&(1001..=1019).map(noisy).collect::<Vec<_>>()).expect("writes");
    assert!(retain(&chain, &limits, 3) > 0);
    let verified = chain.verify(is_signed).expect("sound");
    let after = numbers(&chain.after(0, 2000, |_| true).expect("reads"));
    assert!(
        before[..20].iter().filter(|n| after.contains(n)).count() >= 18,
        "{before:?} {after:?}"
    );
    let age = Duration::from_millis(10_000 - older[5]);
    assert_eq!(retain(&chain, &Limits { age, ..limits }, 10), 0, "none leaves the chain");
    let left = chain.after(0, 2000, |_| true).expect("reads");
    assert!(left.iter().all(|it| it.at >= older[5]));
    let few = chain.verify(is_signed).expect("sound");
    assert!(few.lasting < verified.lasting && few.forgotten == verified.forgotten, "{few:?}");
    retain(&chain, &Limits { age: Duration::ZERO, ..limits }, 10);
    assert_eq!(chain.verify(is_signed).expect("sound").lasting, 0);
}

/// What verification says after `change` was made to what outlasted the rest, and the oldest of it.
fn after(change: impl FnOnce(&WriteTransaction, &[u64])) -> (String, u64) {
    let dir = tempfile::tempdir().expect("a directory");
    let (chain, _) = shortened(dir.path());
    let first = chain.first().expect("reads");
    let kept = numbers(&chain.after(0, 2000, |it| it.seq < first).expect("reads"));
    drop(chain);
    let database = Database::open(dir.path().join(FILE)).expect("opens");
    let write = database.begin_write().expect("begins");
    change(&write, &kept);
    write.commit().expect("writes");
    drop(database);
    let (store, opened) = Store::open(dir.path(), at(0)).expect("opens");
    assert_eq!(opened, Opened::Sound, "the file itself is whole");
    let said = match trail(store).verify(is_signed) {
        Ok(verified) => format!("{verified:?}"),
        Err(error) => error.to_string(),
    };
    (said, kept[0])
}

fn entry(write: &WriteTransaction, seq: u64) -> Vec<u8> {
    let lasting = write.open_table(LASTING).expect("there");
    lasting.get(seq).expect("reads").expect("one").value().to_vec()
}

fn put(write: &WriteTransaction, seq: u64, bytes: &[u8]) {
    write.open_table(LASTING).expect("there").insert(seq, bytes).expect("writes");
}

#[test]
fn every_change_to_what_outlasted_the_rest_is_found() {
    assert!(after(|_, _| {}).0.starts_with("Verified"));
    let named = |seq| format!("record {seq} or a lasting one beside it was changed");
    let is = |(said, _): (String, u64), seq: u64| assert!(said.contains(&named(seq)), "{said}");
    let edited = after(|write, kept| {
        let mut bytes = entry(write, kept[3]);
        *bytes.last_mut().expect("some") ^= 1;
        put(write, kept[3], &bytes);
    });
    let oldest = edited.1;
    is(edited, oldest + 30);
    is(after(|write, kept| put(write, kept[3], b"short")), oldest + 30);
    is(after(|write, kept| put(write, kept[3] + 1, &entry(write, kept[3]))), oldest + 31);
    let remove = |write: &WriteTransaction, seq| {
        write.open_table(LASTING).expect("there").remove(seq).expect("writes");
    };
    is(after(|write, kept| remove(write, kept[0])), oldest + 10);
    is(after(|write, kept| remove(write, kept[3])), oldest + 40);
    let last = after(|write, kept| remove(write, kept[kept.len() - 1])).0;
    assert!(last.contains("or a lasting one beside it"), "{last}");
    // All of them with the note of what there was, and a whole chain that was made anew.
    let all = after(|write, _| {
        write.open_table(LASTING).expect("there").retain(|_, _| false).expect("writes");
        write.open_table(KEPT).expect("there").remove(()).expect("writes");
    });
    assert!(all.0.contains("vouched for by a signature that is not the node's"), "{}", all.0);
    let rewritten = after(|write, kept| {
        let mut made = Kept::genesis(&"a@127.0.0.1".parse().expect("valid"));
        for seq in &kept[1..] {
            let bytes = entry(write, *seq);
            let link = kept_from_bytes(&bytes).expect("one").1.to_vec();
            put(write, *seq, &kept_to_bytes(made.push(&link), &link));
        }
        remove(write, kept[0]);
        let sealed = schema::sealed(&made).ok().expect("plain");
        write.open_table(KEPT).expect("there").insert((), sealed.as_slice()).expect("writes");
    });
    let words = "vouched for by a signature that is not the node's";
    assert!(rewritten.0.contains(words), "{}", rewritten.0);
}

#[test]
fn what_was_changed_is_not_signed_anew() {
    let dir = tempfile::tempdir().expect("a directory");
    let (chain, limits) = shortened(dir.path());
    let first = chain.after(0, 1, |_| true).expect("reads")[0].seq;
    drop(chain);
    let database = Database::open(dir.path().join(FILE)).expect("opens");
    let write = database.begin_write().expect("begins");
    let mut bytes = entry(&write, first);
    *bytes.last_mut().expect("some") ^= 1;
    put(&write, first, &bytes);
    write.commit().expect("writes");
    drop(database);
    let chain = trail(Store::open(dir.path(), at(0)).expect("opens").0);
    let none = Limits { bytes: 0, ..limits };
    let error = chain.retain(&none, at(3), sign, is_signed).expect_err("changed").to_string();
    assert!(error.contains(&format!("record {first} or a lasting one")), "{error}");
    assert_eq!(chain.after(0, 1, |_| true).expect("reads")[0].seq, first, "nothing is forgotten");
}

#[test]
fn a_file_of_schema_3_goes_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let chain = trail(Store::open(dir.path(), at(0)).expect("opens").0);
    chain.append(&(1..=1000).map(noisy).collect::<Vec<_>>()).expect("writes");
    let limits = Limits { age: Duration::from_millis(1500), bytes: u64::MAX };
    assert_eq!(retain(&chain, &limits, 2), 499, "too old: nothing of it is kept");
    let verified = chain.verify(is_signed).expect("sound");
    assert_eq!(verified.lasting, 0);
    drop(chain);
    let database = Database::open(dir.path().join(FILE)).expect("opens");
    let write = database.begin_write().expect("begins");
    write.delete_table(LASTING).expect("there");
    write.delete_table(KEPT).expect("there");
    write.open_table(META).expect("there").insert(SCHEMA_KEY, 3).expect("writes");
    write.commit().expect("writes");
    drop(database);
    let (store, opened) = Store::open(dir.path(), at(0)).expect("opens");
    assert_eq!(opened, Opened::Sound);
    let chain = trail(store);
    assert_eq!(chain.verify(is_signed).expect("sound"), verified, "the checkpoint of then counts");
    retain(&chain, &Limits { bytes: 100 * size(999, &chain), ..limits }, 2);
    assert!(chain.verify(is_signed).expect("sound").lasting > 0);
}

#[test]
fn a_proof_is_kept_for_good_and_once_for_each_key() {
    let dir = tempfile::tempdir().expect("a directory");
    let chain = trail(Store::open(dir.path(), at(0)).expect("opens").0);
    assert_eq!(chain.proofs().expect("reads"), [], "a file from before has none");
    let proof = |key: u8, text: u8| Event::Equivocation {
        peer: "m@h".parse().expect("valid"),
        key: format!("{key:032x}"),
        table: "topology".to_owned(),
        incarnation: Incarnation(1),
        version: 7,
        statements: [text, key].map(|it| format!("{it:02x}")),
        signatures: ["aa", "bb"].map(str::to_owned),
        certificates: ["cc", "dd"].map(str::to_owned),
    };
    let keys = [(1, 5), (2, 5), (1, 6)];
    let all: Vec<_> = (1..)
        .zip(keys)
        .map(|(n, (key, text))| Recorded { event: proof(key, text), ..event(n) })
        .collect();
    chain.append(&all).expect("writes");
    let kept = [proof(1, 6), proof(2, 5)].map(|it| Equivocation::of_event(&it).expect("whole"));
    assert_eq!(chain.proofs().expect("reads"), kept);
    drop(chain);
    let chain = trail(Store::open(dir.path(), at(1)).expect("opens").0);
    assert_eq!(chain.proofs().expect("reads"), kept);
}
