//! One change to a chain, of each kind and at each place, is found there.

use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

use super::*;
use crate::proto::event::Recorded;

fn node() -> NodeName {
    "a@127.0.0.1".parse().expect("valid")
}

/// Stands for a signature: what only the holder of the word can make.
fn sign(message: &[u8]) -> Vec<u8> {
    Sha256::new().chain_update(b"secret").chain_update(message).finalize().to_vec()
}

fn is_signed(message: &[u8], signature: &[u8]) -> bool {
    sign(message) == signature
}

#[derive(Clone, Debug, PartialEq)]
struct Owned {
    tip: Tip,
    record: Vec<u8>,
}

/// A chain of some records after a checkpoint (0: none), with a head at every fifth.
#[derive(Clone, Debug)]
struct Chain {
    checkpoint: Option<Signed<Checkpoint>>,
    links: Vec<Owned>,
    heads: Vec<Signed<Head>>,
    noted: Option<Tip>,
}

fn head(tip: Tip) -> Signed<Head> {
    let what = Head { tip, at: 5 };
    Signed { signature: sign(&what.signed_bytes(&node())), what }
}

fn chain(records: &[Vec<u8>], forgotten: usize) -> Chain {
    let mut tip = Tip::genesis(&node());
    let mut all = Vec::new();
    for record in records {
        tip = tip.then(record);
        all.push(Owned { tip, record: record.clone() });
    }
    let links = all.split_off(forgotten);
    let checkpoint = all.last().map(|last| {
        let what = Checkpoint { tip: last.tip, at: 4 };
        Signed { signature: sign(&what.signed_bytes(&node(), None)), what }
    });
    let heads = links.iter().filter(|l| l.tip.seq % 5 == 0).map(|l| head(l.tip)).collect();
    Chain { checkpoint, links, heads, noted: Some(tip) }
}

impl Chain {
    fn verify(&self) -> Result<Verified, Fault> {
        let node = node();
        let mut verifier = ChainVerifier::new(&node, self.checkpoint.as_ref(), None, is_signed);
        let mut heads = self.heads.iter().peekable();
        for (at, link) in self.links.iter().enumerate() {
            // The place in the file, not what the link says of itself, is what heads are sorted by.
            let place = self.links[0].tip.seq.min(link.tip.seq) + at as u64;
            while let Some(head) = heads.next_if(|head| head.what.tip.seq < place) {
                verifier.head(head);
            }
            verifier.link(&ChainLink { tip: link.tip, record: &link.record });
        }
        heads.for_each(|head| verifier.head(head));
        verifier.finish(self.noted)
    }

    /// Makes all hashes anew, as someone without the key can.
    fn rehash(&mut self) {
        let mut tip = self.checkpoint.as_ref().map_or(Tip::genesis(&node()), |c| c.what.tip);
        for link in &mut self.links {
            tip = tip.then(&link.record);
            link.tip = tip;
        }
        self.noted = Some(tip);
    }
}

fn fault(seq: u64, why: Why) -> Result<Verified, Fault> {
    Err(Fault { seq, why })
}

fn chains() -> impl Strategy<Value = Chain> {
    let record = prop::collection::vec(any::<u8>(), 0..20);
    (prop::collection::vec(record, 6..40), 0_usize..4)
        .prop_map(|(r, forgotten)| chain(&r, forgotten))
}

proptest! {
    #[test]
    fn a_chain_as_it_was_written_is_sound(chain in chains()) {
        let (first, last) = (chain.links[0].tip.seq, chain.links.last().expect("some").tip.seq);
        let proved = chain.heads.last().map_or(first - 1, |head| head.what.tip.seq);
        prop_assert_eq!(chain.verify(), Ok(Verified { forgotten: first - 1, lasting: 0, last, proved }));
    }

    #[test]
    fn an_edited_byte_is_found_at_its_record(
        mut chain in chains(), at: prop::sample::Index, byte: prop::sample::Index, flip in 1_u8..,
    ) {
        let at = at.index(chain.links.len());
        let (mut link, seq) = (chain.links[at].clone(), chain.links[at].tip.seq);
        let byte = byte.index(HASH + link.record.len());
        match byte.checked_sub(HASH) {
            None => link.tip.hash.0[byte] ^= flip,
            Some(byte) => link.record[byte] ^= flip,
        }
        chain.links[at] = link;
        prop_assert_eq!(chain.verify(), fault(seq, Why::Edited));
    }

    #[test]
    fn a_removed_record_is_found(mut chain in chains(), at: prop::sample::Index) {
        let at = at.index(chain.links.len());
        let seq = chain.links.remove(at).tip.seq;
        let why = if at == chain.links.len() { Why::TailCut } else { Why::Missing };
        prop_assert_eq!(chain.verify(), fault(seq, why));
    }

    #[test]
    fn swapped_records_are_found_at_the_first(
        mut chain in chains(), one: prop::sample::Index, other: prop::sample::Index,
    ) {
        let (one, other) = (one.index(chain.links.len()), other.index(chain.links.len()));
        prop_assume!(one != other);
        let seq = chain.links[one.min(other)].tip.seq;
        chain.links.swap(one, other);
        prop_assert_eq!(chain.verify(), fault(seq, Why::Reordered));
        // The same with the numbers left where they were.
        let numbers = (chain.links[one].tip.seq, chain.links[other].tip.seq);
        (chain.links[one].tip.seq, chain.links[other].tip.seq) = (numbers.1, numbers.0);
        prop_assert_eq!(chain.verify(), fault(seq, Why::Edited));
    }

    #[test]
    fn an_inserted_record_is_found_where_it_stands(
        mut chain in chains(), at: prop::sample::Index, copied: prop::sample::Index, fresh: bool,
    ) {
        let at = at.index(chain.links.len());
        let mut link = chain.links[copied.index(chain.links.len())].clone();
        let seq = chain.links[at].tip.seq;
        if fresh {
            link = Owned { tip: Tip { seq, ..link.tip }, record: b"never happened".to_vec() };
        }
        let copy = link.tip.seq;
        chain.links.insert(at, link);
        let expected = match copy.cmp(&seq) {
            std::cmp::Ordering::Greater => fault(seq, Why::Reordered),
            std::cmp::Ordering::Less => fault(copy, Why::Inserted),
            // A copy beside its original: the second of the two is the one too many.
            std::cmp::Ordering::Equal => fault(seq, Why::Inserted),
        };
        prop_assert_eq!(chain.verify(), expected);
    }

    #[test]
    fn a_cut_tail_is_found_by_the_note_and_below_a_head_by_the_signature(
        mut chain in chains(), keep: prop::sample::Index,
    ) {
        let keep = keep.index(chain.links.len());
        let seq = chain.links[keep].tip.seq;
        chain.links.truncate(keep);
        prop_assert_eq!(chain.verify(), fault(seq, Why::TailCut));
        // Anyone who cuts can change the note, but not sign.
        chain.noted = Some(chain.links.last().map_or_else(
            || chain.checkpoint.as_ref().map_or(Tip::genesis(&node()), |c| c.what.tip),
            |last| last.tip,
        ));
        let signed = chain.heads.last().is_some_and(|head| head.what.tip.seq >= seq);
        let found = chain.verify();
        prop_assert_eq!(found.is_ok(), !signed);
        prop_assert!(!signed || found == fault(seq, Why::TailCut));
    }

    #[test]
    fn hashes_made_anew_are_found_by_the_next_head(mut chain in chains(), at: prop::sample::Index) {
        let at = at.index(chain.links.len());
        chain.links[at].record.push(1);
        let seq = chain.links[at].tip.seq;
        chain.rehash();
        let first = chain.links[0].tip.seq - 1;
        let before = chain.heads.iter().map(|h| h.what.tip.seq).filter(|head| *head < seq).max();
        let proved = before.unwrap_or(first);
        if chain.heads.iter().any(|head| head.what.tip.seq >= seq) {
            prop_assert_eq!(chain.verify(), fault(proved + 1, Why::Rewritten));
        } else {
            // Nothing vouches for those after the last head.
            prop_assert_eq!(chain.verify().map(|verified| verified.proved), Ok(proved));
        }
    }

    #[test]
    fn no_bytes_are_too_strange_for_a_link_or_a_record(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Some(link) = ChainLink::from_bytes(&bytes) {
            prop_assert_eq!(link.to_bytes(), bytes.clone());
        }
        if let Ok(read) = Recorded::from_bytes(&bytes) {
            prop_assert_eq!(Recorded::at_of(&bytes), Some(read.at));
        }
    }
}

fn twelve() -> Chain {
    chain(&(0_u8..12).map(|n| vec![n]).collect::<Vec<_>>(), 2)
}

#[test]
fn only_the_node_s_own_signatures_count() {
    let sound = twelve();
    let mut forged = sound.clone();
    forged.heads[1].signature[0] ^= 1;
    assert_eq!(forged.verify(), fault(10, Why::Signature));
    let mut moved = sound.clone();
    moved.heads[1].what.at += 1;
    assert_eq!(moved.verify(), fault(10, Why::Signature));
    let mut forged = sound.clone();
    forged.checkpoint.as_mut().expect("one").signature[0] ^= 1;
    assert_eq!(forged.verify(), fault(2, Why::Signature));
    // A head does not pass for a checkpoint: else the past could be cut off at any head.
    let mut posing = sound.clone();
    let Signed { what, signature } = posing.heads[0].clone();
    posing.checkpoint = Some(Signed { what: Checkpoint { tip: what.tip, at: what.at }, signature });
    posing.links.drain(..3);
    posing.heads.remove(0);
    assert_eq!(posing.verify(), fault(5, Why::Signature));
    // Nor does another node's.
    let (other, what) = ("b@127.0.0.1".parse().expect("valid"), sound.heads[1].what);
    let mut foreign = sound.clone();
    foreign.heads[1].signature = sign(&what.signed_bytes(&other));
    assert_eq!(foreign.verify(), fault(10, Why::Signature));
    assert_ne!(Tip::genesis(&other), Tip::genesis(&node()));
}

#[test]
fn the_past_is_not_forgotten_without_a_checkpoint() {
    let mut chain = twelve();
    chain.checkpoint = None;
    assert_eq!(chain.verify(), fault(1, Why::Missing));
    let mut chain = twelve();
    chain.links.remove(0);
    assert_eq!(chain.verify(), fault(3, Why::Missing));
}

#[test]
fn records_past_the_noted_end_were_inserted() {
    let mut chain = twelve();
    chain.noted = Some(chain.links[8].tip);
    assert_eq!(chain.verify(), fault(12, Why::Inserted));
    chain.noted = Some(Tip { hash: Hash([0; 32]), ..chain.links[9].tip });
    assert_eq!(chain.verify(), fault(11, Why::Rewritten), "10 is proved");
}

#[test]
fn what_cannot_be_read_is_named() {
    let (node, chain) = (node(), twelve());
    let mut verifier = ChainVerifier::new(&node, chain.checkpoint.as_ref(), None, is_signed);
    verifier.unreadable(3);
    verifier.link(&ChainLink { tip: chain.links[1].tip, record: &chain.links[1].record });
    assert_eq!(verifier.finish(chain.noted), fault(3, Why::Unreadable));
}

/// What is hashed and signed must never change: files that exist would no longer verify.
#[test]
fn the_bytes_are_those_of_version_1() {
    let tip = Tip::genesis(&node()).then(b"record");
    assert_eq!(
        tip.hash.to_string(),
        "3c9003a63dd3023cb2fa0b36e6cd7823103c9f35f72082d4374a0e37223de8ab"
    );
    assert_eq!(tip.hash.to_string().parse(), Ok(tip.hash));
    assert_eq!(format!("{}é", "0".repeat(62)).parse::<Hash>(), Err(()));
    let bytes = Head { tip: Tip { seq: 7, hash: Hash([9; 32]) }, at: 8 }.signed_bytes(&node());
    let expected =
        [HEAD, &[0, 0, 0, 0, 0, 0, 0, 7], &[9; 32], &[0, 0, 0, 0, 0, 0, 0, 8], b"a@127.0.0.1"];
    assert_eq!(bytes, expected.concat());
}
