//! Members that state different things to different peers, and those that do not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::proto::event::Event;
use crate::proto::node::{Credential, KeyId};
use crate::proto::seal::{Equivocation, Seal, Sealed};

/// The seals of a node as ECDSA has them: each signature is another. Its certificate is of a key with a number, which
/// may be revoked.
#[derive(Debug)]
pub(super) struct Keyed {
    name: NodeName,
    key: u8,
    made: u8,
    revoked: Arc<AtomicBool>,
}

impl Keyed {
    pub(super) fn new(of: &NodeName, key: u8) -> Self {
        Self { name: of.clone(), key, made: 0, revoked: Arc::default() }
    }
}

impl Seals for Keyed {
    fn make(&mut self, statement: &[u8]) -> Option<Seal> {
        self.made += 1;
        let mut seal = crate::proto::tests::seals::seal(&self.name, statement);
        seal.signature.push(self.made);
        seal.certificate.push(self.key);
        Some(seal)
    }

    fn is_current(&self, seal: &Seal) -> bool {
        seal.certificate.last() == Some(&self.key)
    }

    fn credential(&self, seal: &Seal) -> Option<Credential> {
        let number = seal.certificate.last()?;
        Some(Credential { key: KeyId([*number; 16]), since: u64::from(*number) })
    }

    fn may_operate(&self, _seal: &Seal) -> bool {
        true
    }

    fn is_revoked(&self, _seal: &Seal) -> bool {
        self.revoked.load(Ordering::Relaxed)
    }

    fn hold(&mut self, maker: &NodeName, statement: &[u8], found: &Seal) -> bool {
        let mut right = crate::proto::tests::seals::seal(maker, statement);
        right.signature.extend(found.signature.last());
        right.certificate.extend(found.certificate.last());
        *found == right && !self.revoked.load(Ordering::Relaxed)
    }
}

/// A machine, and the proofs that it announced.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) machine: Topology,
    pub(super) proven: Vec<NodeName>,
}

impl Watched {
    fn new(me: NodeName, life: Incarnation, now: Instant, rng: StdRng) -> Self {
        Self::with(Keyed::new(&me, 1), life, now, rng)
    }

    fn with(seals: Keyed, life: Incarnation, now: Instant, rng: StdRng) -> Self {
        let name = seals.name.clone();
        let machine = Topology::new(name, life, 1, now, WALL, rng, Box::new(seals));
        Self { machine, proven: Vec::new() }
    }

    pub(super) fn mark(&self, of: &NodeName) -> Option<u64> {
        self.machine.row_of(of).map(|row| row.version)
    }
}

impl table::Machine for Watched {
    type Table = Links;

    fn table(&self) -> &Rows<Links> {
        &self.machine.rows
    }

    fn sees(peer: NodeName, up: bool, wall: u64) -> Option<Input> {
        <Topology as table::Machine>::sees(peer, up, wall)
    }

    fn handle(&mut self, input: Input, now: Instant, out: &mut Vec<Output>) {
        let mut all = Vec::new();
        self.machine.handle(input, now, &mut all);
        for output in all {
            if let Output::Equivocation(key, proof) = output {
                let event = proof.event(key).expect("a proof");
                assert_eq!(Equivocation::of_event(&event).as_ref(), Some(&*proof));
                self.proven.extend(event.about().cloned());
            } else {
                out.push(output);
            }
        }
    }
}

pub(super) fn liar() -> NodeName {
    name("x@h")
}

/// A row of the liar that sees this one, under its first key.
pub(super) fn states(version: u64, sees: &str) -> Row {
    states_under(&mut Keyed::new(&liar(), 1), version, sees)
}

pub(super) fn states_under(seals: &mut Keyed, version: u64, sees: &str) -> Row {
    let row = row("x@h", 7, version, &[(sees, online())]);
    table::sealed_by::<Links>(row, seals)
}

fn sealed(row: &Row) -> Sealed {
    let seal = row.seal.clone().expect("sealed");
    Sealed { statement: rows::statement::<Links>(row), seal }
}

pub(super) type Net = Network<Watched>;

/// Honest nodes that are linked as said, and the liar, which is linked with all of them and runs no machine.
pub(super) fn net(nodes: usize, seed: u64, linked: impl Fn(usize, usize) -> bool) -> Net {
    let mut net = Net::new(nodes + 1, seed, FAIR);
    for at in 0..nodes {
        net.start(at, |life, moment, rng| Watched::new(node(at), life, moment.now, rng));
    }
    net.mesh(linked);
    for at in 0..nodes {
        net.links.extend([((at, nodes), 0), ((nodes, at), 0)]);
        net.input(at, Input::Linked(node(nodes), life(7)));
    }
    net
}

/// The liar's row of one mark, as it sends it to that node.
pub(super) fn lie(net: &mut Net, at: usize, version: u64, sees: &str, seals: &mut Keyed) {
    let of = node(net.nodes.len() - 1);
    let row = row(of.as_str(), 7, version, &[(sees, online())]);
    let row = table::sealed_by::<Links>(row, seals);
    net.input(at, Input::Received(of, Word::Rows(vec![row])));
}

/// How honest nodes are linked: as a chain with some links more.
fn shape() -> impl Strategy<Value = (usize, Vec<bool>)> {
    (3_usize..=5).prop_flat_map(|nodes| (Just(nodes), prop::collection::vec(any::<bool>(), 25)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn two_rows_under_one_mark_are_found_out_by_all_within_a_round(
        (nodes, more) in shape(),
        seed in any::<u64>(),
        stated in prop::collection::vec(0_usize..3, 5),
    ) {
        let mut net = net(nodes, seed, |a, b| a + 1 == b || b < nodes && more[a * 5 + b]);
        net.run(ms(500));
        let mut seals = Keyed::new(&node(nodes), 1);
        let sees = ["a@h", "b@h", "c@h"];
        for at in 0..nodes {
            lie(&mut net, at, 9, sees[stated[at]], &mut seals);
        }
        let lies = stated[..nodes].iter().any(|it| *it != stated[0]);
        // Every peer gets a digest in a round. In a chain the proof goes from one to the next with it.
        net.run(Links::ROUND.expect("there is one") * 4);
        for at in 0..nodes {
            lie(&mut net, at, 10, "d@h", &mut seals);
        }
        net.run(ms(2000));
        for machine in net.nodes.iter().flatten() {
            let expected = if lies { vec![node(nodes)] } else { vec![] };
            prop_assert_eq!(&machine.proven, &expected);
            let version = if lies { 9 } else { 10 };
            prop_assert_eq!(machine.mark(&node(nodes)), Some(version), "frozen or not");
            for other in 0..nodes {
                // What the innocent ones know of each other is whole.
                let own = net.nodes[other].as_ref().expect("it runs").machine.row_of(&node(other));
                prop_assert_eq!(machine.machine.row_of(&node(other)), own);
            }
        }
    }

    #[test]
    fn what_is_sealed_again_is_the_same_row(seed in any::<u64>(), versions in prop::collection::vec(0_u64..3, 1..8)) {
        let mut net = net(3, seed, |_, b| b < 3);
        let mut seals = Keyed::new(&node(3), 1);
        let mut version = 9;
        for (step, more) in versions.into_iter().enumerate() {
            version += more;
            seals.key = u8::try_from(step / 3).expect("few"); // renewed now and then
            for at in 0..3 {
                lie(&mut net, at, version, &format!("y{version}@h"), &mut seals);
            }
            net.run(ms(1500));
        }
        for machine in net.nodes.iter().flatten() {
            prop_assert_eq!(&machine.proven, &[]);
            prop_assert_eq!(machine.mark(&node(3)), Some(version));
        }
    }
}

/// `a@h`, linked with these.
pub(super) fn a(peers: &[&str]) -> table::Alone<Watched> {
    let (now, rng) = (start(), StdRng::seed_from_u64(1));
    table::Alone::linked(Watched::new(name("a@h"), life(3), now, rng), now, peers)
}

fn proof(words: &[Output]) -> usize {
    words.iter().filter(|it| matches!(it, Output::Send(_, Word::Equivocation(_)))).count()
}

#[test]
fn two_rows_over_its_own_link_are_proof_and_all_are_sent_it() {
    let mut a = a(&["b@h", "x@h"]);
    a.hears("x@h", Word::Rows(vec![states(9, "c@h")]));
    assert_eq!(a.hears("x@h", Word::Rows(vec![states(9, "c@h")])), [], "it is sealed again");
    let out = a.hears("x@h", Word::Rows(vec![states(9, "d@h")]));
    assert_eq!((&a.machine.proven[..], proof(&out)), (&[liar()][..], 2));
    // Nothing of that key is taken any more, whatever it is and from whom it comes.
    a.hears("x@h", Word::Rows(vec![states(10, "d@h")]));
    let delta = Word::Delta {
        origin: liar(),
        incarnation: life(7),
        from: 9,
        to: 10,
        change: vec![],
        signature: vec![],
    };
    assert_eq!(a.hears("x@h", delta), []);
    a.input(Input::Unlinked(liar()));
    a.input(Input::Linked(liar(), life(8)));
    let later = table::sealed_by::<Links>(
        row("x@h", 8, 1, &[("d@h", online())]),
        &mut Keyed::new(&liar(), 1),
    );
    for from in ["x@h", "b@h"] {
        a.hears(from, Word::Rows(vec![later.clone()]));
    }
    assert_eq!(a.machine.mark(&liar()), Some(0), "of its later life nothing is known but the link");
    assert!(a.machine.proven.len() == 1);
    // A row without a seal is of no other key.
    a.hears("x@h", Word::Rows(vec![Row { seal: None, ..later }]));
    assert_eq!(a.machine.mark(&liar()), Some(0));
}

#[test]
fn another_key_of_that_name_is_taken_and_so_is_the_first_one_once_it_is_revoked() {
    let seals = Keyed::new(&name("a@h"), 1);
    let (now, rng, revoked) = (start(), StdRng::seed_from_u64(1), seals.revoked.clone());
    let machine = Watched::with(seals, life(3), now, rng);
    let mut a = table::Alone::linked(machine, now, &["b@h", "x@h"]);
    for sees in ["c@h", "d@h"] {
        a.hears("x@h", Word::Rows(vec![states(9, sees)]));
    }
    let second = states_under(&mut Keyed::new(&liar(), 2), 10, "c@h");
    let forged = states_under(&mut Keyed::new(&name("b@h"), 2), 11, "c@h");
    a.hears("x@h", Word::Rows(vec![forged]));
    assert_eq!(a.machine.mark(&liar()), Some(9), "its seal does not hold");
    a.hears("x@h", Word::Rows(vec![second]));
    assert_eq!(a.machine.mark(&liar()), Some(10));
    a.hears("x@h", Word::Rows(vec![states(11, "d@h")]));
    assert_eq!(a.machine.mark(&liar()), Some(10));
    revoked.store(true, Ordering::Relaxed);
    a.input(Input::Revoked);
    revoked.store(false, Ordering::Relaxed);
    a.hears("x@h", Word::Rows(vec![states(12, "d@h")]));
    assert_eq!(a.machine.mark(&liar()), Some(12));
}

#[test]
fn what_is_no_proof_bars_nobody() {
    let words = |other: Sealed| {
        [
            Word::Sealed(vec![other.clone()]),
            Word::Equivocation(Box::new(Equivocation([sealed(&states(9, "c@h")), other]))),
        ]
    };
    let tombstone = Row { state: State::Gone { at: WALL, by: liar() }, ..states(9, "d@h") };
    let of_key =
        |key, seals: &NodeName| sealed(&states_under(&mut Keyed::new(seals, key), 9, "d@h"));
    let mut broken = of_key(1, &liar());
    broken.statement.push(0);
    let others = [
        sealed(&states(9, "c@h")),
        sealed(&states(8, "d@h")),
        sealed(&table::sealed_by::<Links>(tombstone, &mut Keyed::new(&liar(), 1))),
        of_key(1, &name("b@h")),
        of_key(2, &liar()),
        broken,
        Sealed { statement: vec![], ..of_key(1, &liar()) },
    ];
    for (case, other) in others.into_iter().enumerate() {
        for word in words(other) {
            let mut a = a(&["b@h", "x@h"]);
            a.hears("x@h", Word::Rows(vec![states(9, "c@h")]));
            let out = a.hears("b@h", word);
            assert_eq!((&a.machine.proven[..], proof(&out)), (&[][..], 0), "{case}");
            a.hears("x@h", Word::Rows(vec![states(10, "d@h")]));
            assert_eq!(a.machine.mark(&liar()), Some(10), "{case}");
        }
    }
    // One whose own row is not proven here compares nothing.
    let mut a = a(&["b@h", "x@h"]);
    a.hears("x@h", Word::Rows(vec![states_under(&mut Keyed::new(&name("b@h"), 1), 9, "c@h")]));
    assert_eq!(proof(&a.hears("b@h", Word::Sealed(vec![sealed(&states(9, "d@h"))]))), 0);
    assert_eq!(a.machine.proven, []);
}

#[test]
fn a_proof_that_comes_from_elsewhere_holds_here_and_is_passed_to_those_that_name_such_rows() {
    let both = ["c@h", "d@h"].map(|sees| sealed(&states(9, sees)));
    let found = Equivocation(both);
    // A peer's, of a node of which nothing is known here.
    let mut a = a(&["b@h", "c@h"]);
    let word = Word::Equivocation(Box::new(found.clone()));
    assert_eq!(a.hears("b@h", word.clone()), []);
    assert_eq!(a.hears("b@h", word.clone()), []);
    assert_eq!(a.machine.proven, [liar()]);
    a.hears("b@h", Word::Rows(vec![states(9, "c@h")]));
    assert_eq!(a.machine.mark(&liar()), None);
    let news = || Word::News(vec![mark("x@h", 7, 9)]);
    assert_eq!(proof(&a.hears("c@h", news())), 1);
    assert_eq!(proof(&a.hears("c@h", news())), 0, "once a minute");
    a.tick(Duration::from_secs(60));
    assert_eq!(proof(&a.hears("c@h", news())), 1);
    // Of the registry of this node: it was announced there.
    let mut a = self::a(&["x@h"]);
    a.input(Input::Equivocation(Box::new(found.clone())));
    a.hears("x@h", Word::Rows(vec![states(9, "c@h")]));
    assert_eq!((a.machine.mark(&liar()), &a.machine.proven[..]), (Some(0), &[][..]));
    // What an event holds is all of it.
    let event = found.event(KeyId([1; 16])).expect("a proof");
    let Event::Equivocation { peer, version, table, .. } = &event else { panic!("{event:?}") };
    assert_eq!((peer, *version, table.as_str()), (&liar(), 9, Links::KIND));
}

#[test]
fn a_node_announces_that_its_own_key_is_used_twice_and_goes_on() {
    let own = name("a@h");
    let twice = |sees: &str| {
        let row = row("a@h", 3, 9, &[(sees, online())]);
        sealed(&table::sealed_by::<Links>(row, &mut Keyed::new(&own, 1)))
    };
    let mut a = a(&["b@h"]);
    a.hears("b@h", Word::Equivocation(Box::new(Equivocation([twice("c@h"), twice("d@h")]))));
    assert_eq!(a.machine.proven, std::slice::from_ref(&own));
    let out = a.input(Input::Own(vec![(name("b@h"), Some(online()))]));
    assert_eq!(deltas(&out), 1);
    let out = a.hears("b@h", Word::Want(vec![own]));
    assert!(out.iter().any(|it| matches!(it, Output::Send(_, Word::Rows(_)))), "{out:?}");
}

#[test]
fn short_hashes_differ_with_the_salt_and_agree_on_two_nodes() {
    let mut marks = BTreeMap::new();
    for seed in [1, 2] {
        let (now, rng) = (start(), StdRng::seed_from_u64(seed));
        let machine = Watched::new(name("a@h"), life(3), now, rng);
        let mut a = table::Alone::linked(machine, now, &["x@h"]);
        a.hears("x@h", Word::Rows(vec![states(9, "c@h")]));
        let digest = a.machine.machine.rows.digest();
        let out = a.hears("x@h", Word::Digest(!digest));
        let [Output::Send(_, Word::Marks { values, .. })] = &out[..] else { panic!("{out:?}") };
        assert!(values.hashes.iter().all(Option::is_some), "{values:?}");
        marks.insert(values.hashes.clone(), digest);
    }
    let digests: Vec<_> = marks.values().collect();
    assert!(digests.len() == 2 && digests[0] == digests[1], "{marks:?}");
}
