//! Anyone who can write the file of a stopped node can change what it remembers, but not unseen: `events verify` names
//! the first event that is not as it was written, of the file and of a node that goes on with it.
//!
//! What is in the file is told in `src/io/store/schema.rs` and `src/proto/chain.rs`; here it is written once more, so
//! that a change of the format shows.

use std::path::{Path, PathBuf};

use redb::{Database, ReadableTable, TableDefinition, WriteTransaction};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use xpando_node::internals::proto::chain::{ChainLink, Checkpoint, Head, Signed, Tip};
use xpando_node::internals::proto::node::NodeName;

use crate::kit::trail::Left;
use crate::kit::{Cluster, copy_files, outputs, parsed};

const LINKS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("links");
const HEADS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("heads");
const STATE: TableDefinition<'_, (), &[u8]> = TableDefinition::new("state");
const CHECKPOINT: TableDefinition<'_, (), &[u8]> = TableDefinition::new("checkpoint");
const SIGNERS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("signers");

/// Of the value in `state`.
#[derive(Serialize, Deserialize)]
struct State {
    incarnation: u64,
    trail: Option<TrailState>,
}

#[derive(Serialize, Deserialize)]
struct TrailState {
    node: NodeName,
    tip: Tip,
    bytes: u64,
}

/// A value between its version and its checksum.
fn sealed(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = postcard::to_extend(value, vec![2_u8]).unwrap();
    let sum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&sum[..8]);
    bytes
}

fn opened<T: DeserializeOwned>(bytes: &[u8]) -> T {
    let (value, _sum) = bytes.split_last_chunk::<8>().unwrap();
    postcard::from_bytes(&value[1..]).unwrap()
}

/// The file of a stopped node, open for change.
struct Forgery<'a> {
    write: &'a WriteTransaction,
    identities: &'a Identities,
}

struct Identities {
    node: NodeName,
    other: xpando_node::internals::io::identity::Identity,
}

impl Forgery<'_> {
    fn link(&self, seq: u64) -> Vec<u8> {
        let links = self.write.open_table(LINKS).unwrap();
        links.get(seq).unwrap().unwrap_or_else(|| panic!("no {seq}")).value().to_vec()
    }

    fn put(&self, seq: u64, link: &[u8]) {
        self.write.open_table(LINKS).unwrap().insert(seq, link).unwrap();
    }

    fn take(&self, seq: u64) -> Vec<u8> {
        self.write.open_table(LINKS).unwrap().remove(seq).unwrap().unwrap().value().to_vec()
    }

    fn last(&self) -> u64 {
        self.write.open_table(LINKS).unwrap().last().unwrap().unwrap().0.value()
    }

    /// The bytes of a record with one of its letters changed.
    fn edited(&self, seq: u64) -> Vec<u8> {
        let mut record = ChainLink::from_bytes(&self.link(seq)).unwrap().record.to_vec();
        *record.last_mut().unwrap() ^= 1;
        record
    }

    /// Puts a record behind the one before it, with a hash that fits.
    fn chained(&self, seq: u64, record: &[u8]) -> Tip {
        let tip = ChainLink::from_bytes(&self.link(seq - 1)).unwrap().tip.then(record);
        self.put(seq, &ChainLink { tip, record }.to_bytes());
        tip
    }

    /// Makes all hashes after a number anew, and the note of where the chain ends.
    fn rehash(&self, from: u64) {
        let mut last = None;
        for seq in from..=self.last() {
            let link = self.link(seq);
            last = Some(self.chained(seq, ChainLink::from_bytes(&link).unwrap().record));
        }
        self.ends_at(last.unwrap());
    }

    fn ends_at(&self, tip: Tip) {
        let mut table = self.write.open_table(STATE).unwrap();
        let mut state: State = opened(table.get(()).unwrap().unwrap().value());
        state.trail.as_mut().unwrap().tip = tip;
        table.insert((), &sealed(&state)[..]).unwrap();
    }

    /// The last head, changed.
    fn last_head(&self, change: impl FnOnce(&mut Signed<Head>)) {
        let mut heads = self.write.open_table(HEADS).unwrap();
        let (seq, mut head) = {
            let (seq, bytes) = heads.last().unwrap().unwrap();
            (seq.value(), opened::<Signed<Head>>(bytes.value()))
        };
        change(&mut head);
        heads.insert(seq, &sealed(&head)[..]).unwrap();
    }

    fn other_signs(&self) {
        let Identities { node, other } = self.identities;
        self.last_head(|head| {
            head.signature = other.sign(&head.what.signed_bytes(node)).unwrap();
        });
        let certificate: &[u8] = &other.certificate();
        let mut signers = self.write.open_table(SIGNERS).unwrap();
        signers.insert(&other.id().0[..], &sealed(&certificate)[..]).unwrap();
    }
}

/// What is done to a file that has one head at a number and one at its end, and which fault it then has.
type Case = (&'static str, fn(&Forgery<'_>, u64), fn(u64, u64) -> String);

const CUT_WITH_ITS_END: &str = "cut off with the note of the end";

const CASES: [Case; 13] = [
    (
        "edited",
        |file, _| {
            let (link, record) = (file.link(3), file.edited(3));
            file.put(
                3,
                &ChainLink { record: &record, ..ChainLink::from_bytes(&link).unwrap() }.to_bytes(),
            );
        },
        |_, _| "record 3 was edited".to_owned(),
    ),
    (
        "hash edited",
        |file, _| {
            let mut link = file.link(3);
            link[0] ^= 1;
            file.put(3, &link);
        },
        |_, _| "record 3 was edited".to_owned(),
    ),
    ("removed", |file, _| drop(file.take(3)), |_, _| "record 3 is missing".to_owned()),
    ("the first removed", |file, _| drop(file.take(1)), |_, _| "record 1 is missing".to_owned()),
    (
        "reordered",
        |file, _| {
            let (third, fourth) = (file.take(3), file.take(4));
            file.put(3, &fourth);
            file.put(4, &third);
        },
        |_, _| "record 3 is out of its order".to_owned(),
    ),
    (
        "reordered under each other's numbers",
        |file, _| {
            let links = [file.link(3), file.link(4)];
            let [third, fourth] =
                [0, 1].map(|at: usize| ChainLink::from_bytes(&links[at]).unwrap());
            file.put(3, &ChainLink { record: fourth.record, ..third }.to_bytes());
            file.put(4, &ChainLink { record: third.record, ..fourth }.to_bytes());
        },
        |_, _| "record 3 was edited".to_owned(),
    ),
    (
        "inserted",
        |file, _| {
            for seq in (3..=file.last()).rev() {
                let link = file.take(seq);
                file.put(seq + 1, &link);
            }
            let forged = ChainLink::from_bytes(&file.link(6)).unwrap().record.to_vec();
            file.chained(3, &forged);
        },
        |_, _| "record 3 was inserted".to_owned(),
    ),
    (
        "made unreadable",
        |file, _| file.put(3, b"nothing"),
        |_, _| "record 3 cannot be read".to_owned(),
    ),
    (
        "edited, and all hashes made anew",
        |file, head| {
            let record = file.edited(head + 2);
            file.chained(head + 2, &record);
            file.rehash(head + 2);
        },
        |head, _| format!("record {} or one after it was changed", head + 1),
    ),
    (
        "cut off",
        |file, _| {
            let last = file.last();
            (last - 2..=last).for_each(|seq| drop(file.take(seq)));
        },
        |_, last| format!("record {} and all after it were cut off", last - 2),
    ),
    (
        CUT_WITH_ITS_END,
        |file, _| {
            let last = file.last();
            (last - 2..=last).for_each(|seq| drop(file.take(seq)));
            file.ends_at(ChainLink::from_bytes(&file.link(last - 3)).unwrap().tip);
        },
        |_, last| format!("record {} and all after it were cut off", last - 2),
    ),
    (
        "another node's signature, and its certificate",
        |file, _| file.other_signs(),
        |_, last| format!("record {last} is vouched for by a signature that is not the node's"),
    ),
    (
        "forgotten by another node's word",
        |file, _| {
            let Identities { node, other } = file.identities;
            let tip = ChainLink::from_bytes(&file.link(4)).unwrap().tip;
            (1..=4).for_each(|seq| drop(file.take(seq)));
            let what = Checkpoint { tip, at: 0 };
            let signature = other.sign(&what.signed_bytes(node, None)).unwrap();
            let mut table = file.write.open_table(CHECKPOINT).unwrap();
            table.insert((), &sealed(&Signed { what, signature })[..]).unwrap();
        },
        |_, _| "record 4 is vouched for by a signature that is not the node's".to_owned(),
    ),
];

/// A node's directory with a trail that was signed at some event and at its end: those two, and the directory.
fn signed_twice(cluster: &Cluster) -> (PathBuf, u64, u64) {
    let a = cluster.node("a").start();
    let visit = || {
        let b = cluster.node("b").join(a.listen()).start();
        crate::kit::linked(&[&a, &b]);
        assert_eq!(b.terminate(), Some(0));
        a.sees("b", "offline");
    };
    visit();
    let (head, proved) = a.verified();
    assert!(head == proved && head > 6, "{head} {proved}");
    visit();
    visit();
    let dir = a.data_dir.clone();
    assert_eq!(a.terminate(), Some(0));
    let (last, proved) = Left::by(cluster, &dir).verified();
    assert!(last == proved && last > head + 3, "{head} {last} {proved}");
    (dir, head, last)
}

fn forge(dir: &Path, identities: &Identities, forgery: impl FnOnce(&Forgery<'_>)) {
    let database = Database::open(dir.join("node.redb")).unwrap();
    let write = database.begin_write().unwrap();
    forgery(&Forgery { write: &write, identities });
    write.commit().unwrap();
}

#[test]
fn what_was_done_to_a_file_is_named_by_its_first_record() {
    let cluster = Cluster::new();
    let (dir, head, last) = signed_twice(&cluster);
    let identities = Identities { node: parsed("a"), other: cluster.identity("b") };
    for (number, (what, forgery, fault)) in CASES.into_iter().enumerate() {
        let copy = cluster.path(&format!("copy-{number}"));
        copy_files(&dir, &copy);
        forge(&copy, &identities, |file| forgery(file, head));
        let fault = fault(head, last);
        let (code, out, err) = outputs(&Left::by(&cluster, &copy).run(&["events", "verify"]));
        assert_eq!((code, out.as_str()), (Some(1), ""), "{what}");
        assert!(err.contains(&fault), "{what}: {fault:?} is not in: {err}");

        // A node starts all the same, and says so too. What it adds may tell more of how, and nothing of where; but
        // what takes the place of a tail that was cut off is only known not to be what was signed.
        let a = cluster.node("a").data_dir(&copy).start();
        let (code, _, err) = outputs(&a.run(&["events", "verify"], &[]));
        let rewritten = what == CUT_WITH_ITS_END;
        let place = if rewritten { format!("record {}", head + 1) } else { fault };
        let place = place.split(' ').take(2).collect::<Vec<_>>().join(" ") + " ";
        assert!(code == Some(1) && err.contains(&place), "{what}: {place:?} is not in: {err}");
        assert_eq!(a.terminate(), Some(0), "{what}");
    }
}

#[test]
fn a_copy_that_nobody_changed_is_sound() {
    let cluster = Cluster::new();
    let (dir, _, last) = signed_twice(&cluster);
    let copy = cluster.path("copy");
    copy_files(&dir, &copy);
    let identities = Identities { node: parsed("a"), other: cluster.identity("b") };
    forge(&copy, &identities, |file| file.rehash(2));
    assert_eq!(Left::by(&cluster, &copy).verified(), (last, last));
    // Where the cluster's authority is not at hand, no signature can be judged.
    let nowhere = cluster.path("nowhere");
    let args = ["events", "verify", "--certs", nowhere.to_str().unwrap()];
    let (code, _, err) = outputs(&Left::by(&cluster, &copy).run(&args));
    assert!(code == Some(1) && err.contains("--certs"), "{err}");
}
