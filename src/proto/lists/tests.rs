//! Nodes whose links have an order, are cut and come back, and lists that appear anywhere.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

fn mark(number: u64, digest: u8) -> Mark {
    Mark { number, digest: [digest; 16] }
}

fn marks(number: u64, digest: u8) -> Marks {
    [(ListKind::Revocations, mark(number, digest))].into_iter().collect()
}

/// A direction of a link: the bytes of words.
type Queue = VecDeque<Vec<u8>>;

struct Link {
    ends: [usize; 2],
    /// The side of each end, and what goes there; `None` while the link is cut.
    up: Option<[(Side, Queue); 2]>,
}

struct World {
    /// Of each node what is in force, and whether it is of its own disk.
    nodes: Vec<(Marks, bool)>,
    links: Vec<Link>,
}

/// The bytes of a list stand for it: its mark.
fn list(mark: Mark) -> Vec<u8> {
    codec::encode(&mark).expect("encodes")
}

impl World {
    fn new(nodes: usize) -> Self {
        let pairs = (0..nodes).flat_map(|a| (a + 1..nodes).map(move |b| [a, b]));
        let links = pairs.map(|ends| Link { ends, up: None }).collect();
        Self { nodes: vec![(Marks::default(), false); nodes], links }
    }

    /// Puts what follows from a side's step on the wire.
    fn perform(&mut self, link: usize, from: usize, out: Vec<Output>) {
        for output in out {
            let own = self.nodes[self.links[link].ends[from]].0.clone();
            let words: Vec<Vec<u8>> = match output {
                Output::Send(kind) => {
                    let mark = own.get(kind).expect("in force");
                    let bytes = list(mark);
                    let begin = Word::begin(kind, mark, bytes.len());
                    let more = bytes.chunks(7).map(Word::More);
                    std::iter::once(begin).chain(more).map(|word| word.encode().unwrap()).collect()
                }
                Output::Say(word) => vec![word.encode().expect("encodes")],
                Output::Judge(kind, said, bytes) => {
                    let found: Mark = codec::decode(&bytes, 100).expect("a mark");
                    assert_eq!(found, said);
                    self.take(self.links[link].ends[from], kind, found, false);
                    continue;
                }
                Output::Skipped(_) => continue,
            };
            if let Some(up) = &mut self.links[link].up {
                up[1 - from].1.extend(words);
            }
        }
    }

    fn take(&mut self, node: usize, kind: ListKind, mark: Mark, here: bool) {
        let before = self.nodes[node].0.clone();
        if !self.nodes[node].0.raise(kind, mark) {
            assert_eq!(self.nodes[node].0, before, "never backwards");
            return;
        }
        assert!(self.nodes[node].0.get(kind) > before.get(kind));
        self.nodes[node].1 = here;
        for link in 0..self.links.len() {
            for end in 0..2 {
                if self.links[link].ends[end] == node {
                    let own = self.nodes[node].0.clone();
                    let mut out = Vec::new();
                    if let Some(up) = &mut self.links[link].up {
                        up[end].0.changed(&own, |_| here, &mut out);
                    }
                    self.perform(link, end, out);
                }
            }
        }
    }

    fn heal(&mut self, link: usize) {
        if self.links[link].up.is_some() {
            return;
        }
        let [a, b] = self.links[link].ends.map(|end| self.nodes[end].0.clone());
        let hello = |of: &Marks| Marks::decode(&of.encode().unwrap()).expect("decodes");
        let (mut from_a, mut from_b) = (Vec::new(), Vec::new());
        let sides = [
            (Side::new(&a, hello(&b), &mut from_a), Queue::new()),
            (Side::new(&b, hello(&a), &mut from_b), Queue::new()),
        ];
        self.links[link].up = Some(sides);
        self.perform(link, 0, from_a);
        self.perform(link, 1, from_b);
    }

    /// One word arrives; false when none is on the way.
    fn deliver(&mut self, link: usize, to: usize) -> bool {
        let own = self.nodes[self.links[link].ends[to]].0.clone();
        let Some(up) = &mut self.links[link].up else { return false };
        let Some(bytes) = up[to].1.pop_front() else { return false };
        let mut out = Vec::new();
        let word = Word::decode(&bytes).expect("a word").expect("known");
        up[to].0.word(word, &own, |_| Ok(()), &mut out).expect("no fault");
        self.perform(link, to, out);
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn all_end_with_the_latest_list(
        nodes in 2..5_usize,
        steps in proptest::collection::vec((0..8_u8, 0..10_usize, 0..2_usize, 0..6_u64, 0..3_u8), 0..120),
    ) {
        let mut world = World::new(nodes);
        let mut latest = None;
        for (step, which, end, number, digest) in steps {
            let link = which % world.links.len();
            match step {
                0 => world.links[link].up = None,
                1 | 2 => world.heal(link),
                3 => {
                    let mark = mark(number, digest);
                    latest = latest.max(Some(mark));
                    world.take(which % nodes, ListKind::Revocations, mark, end == 0);
                }
                _ => drop(world.deliver(link, end)),
            }
        }
        // It is enough that each node is linked with the next.
        for link in 0..world.links.len() {
            let [a, b] = world.links[link].ends;
            if b == a + 1 { world.heal(link) }
        }
        let mut words = 0;
        while (0..world.links.len()).any(|link| world.deliver(link, 0) || world.deliver(link, 1)) {
            words += 1;
            prop_assert!(words < 10_000, "they come to rest");
        }
        for (marks, _) in &world.nodes {
            prop_assert_eq!(marks.get(ListKind::Revocations), latest);
        }
    }

    #[test]
    fn random_bytes_never_panic(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..8)) {
        let mut side = Side::new(&marks(3, 0), Marks::default(), &mut Vec::new());
        for bytes in pieces {
            let _either = Marks::decode(&bytes);
            if let Ok(Some(word)) = Word::decode(&bytes) {
                let _either = side.word(word, &marks(3, 0), |_| Ok(()), &mut Vec::new());
            }
        }
    }
}

#[test]
fn the_later_list_goes_first_and_once() {
    let mut out = Vec::new();
    let (ours, theirs) = (marks(3, 7), marks(3, 6));
    let mut side = Side::new(&ours, theirs.clone(), &mut out);
    assert_eq!(out, [Output::Send(ListKind::Revocations)], "the greater digest is later");
    out.clear();
    for _ in 0..3 {
        side.word(Word::Want(1), &ours, |_| Ok(()), &mut out).expect("no fault");
    }
    assert_eq!(out, [], "it is on its way");
    assert!(Side::new(&theirs, ours, &mut out).coming.is_none() && out.is_empty());
    side.changed(&marks(4, 0), |_| false, &mut out);
    side.changed(&marks(4, 0), |_| false, &mut out);
    assert_eq!(out, [Output::Say(Word::Have(1, mark(4, 0)))], "named once");
    out.clear();
    side.word(Word::Want(1), &marks(4, 0), |_| Ok(()), &mut out).expect("no fault");
    assert_eq!(out, [Output::Send(ListKind::Revocations)]);
}

#[test]
fn what_is_not_later_has_no_room_or_is_unknown_is_skipped() {
    let own = marks(3, 0);
    for (begin, room, why) in [
        (Word::Begin(1, mark(3, 0), 4), Ok(()), "known"),
        (Word::Begin(1, mark(2, 9), 4), Ok(()), "known"),
        (Word::Begin(9, mark(9, 9), 4), Ok(()), "unknown_kind"),
        (Word::Begin(1, mark(4, 0), 4), Err("no_room"), "no_room"),
    ] {
        let (mut side, mut out) = (Side::new(&own, own.clone(), &mut Vec::new()), Vec::new());
        side.word(begin, &own, |_| room, &mut out).expect("no fault");
        side.word(Word::More(b"abcd"), &own, |_| Ok(()), &mut out).expect("no fault");
        assert_eq!(out, [Output::Skipped(why)]);
        assert!(!side.holds());
    }
}

#[test]
fn what_breaks_the_protocol_is_a_fault() {
    let own = marks(3, 0);
    let begin = |length| Word::Begin(1, mark(4, 0), length);
    let faults = |words: &[Word<'_>]| {
        let mut side = Side::new(&own, own.clone(), &mut Vec::new());
        words.iter().find_map(|word| side.word(*word, &own, |_| Ok(()), &mut Vec::new()).err())
    };
    assert_eq!(faults(&[begin(3), Word::More(b"ab"), Word::More(b"c")]), None);
    assert_eq!(faults(&[Word::More(b"a")]), Some(ListFault::Part));
    assert_eq!(faults(&[begin(2), Word::More(b"abc")]), Some(ListFault::Part));
    assert_eq!(faults(&[begin(2), Word::More(b"")]), Some(ListFault::Part));
    assert_eq!(faults(&[begin(2), begin(2)]), Some(ListFault::Nested));
    assert_eq!(faults(&[begin(0)]), Some(ListFault::Length(0)));
    let much = u32::try_from(MAX_LIST).expect("fits") + 1;
    assert_eq!(faults(&[begin(much)]), Some(ListFault::Length(much)));
}

#[test]
fn words_of_later_versions_are_told_from_bad_ones() {
    assert_eq!(Word::decode(&[WORDS, 1, 2]), Ok(None));
    assert_eq!(Word::decode(&[1, 1, 2]), Err(CodecError::Trailing(1)));
    assert_eq!(Word::decode(&[0]), Err(CodecError::Malformed));
    let more = [(250_u8, mark(1, 1)), (1, mark(2, 2))];
    let known = Marks::decode(&codec::encode(&more.to_vec()).expect("encodes"));
    assert_eq!(known, Some(marks(2, 2)), "a kind of a later version is skipped");
}
