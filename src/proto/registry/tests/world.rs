//! Many registries in one thread: links that come and go, words that are late or lost, nodes that are forgotten.

use std::ops::{Deref, DerefMut};

use super::*;

const FOUL: Weather = Weather { loss: 0.2, twice: 0.0, slowest: 300, mixed: true };

struct World {
    net: Network<Registry>,
    /// What each has on disk.
    disks: Vec<Vec<Entry>>,
}

impl Deref for World {
    type Target = Network<Registry>;

    fn deref(&self) -> &Network<Registry> {
        &self.net
    }
}

impl DerefMut for World {
    fn deref_mut(&mut self) -> &mut Network<Registry> {
        &mut self.net
    }
}

impl World {
    fn new(nodes: usize, seed: u64, weather: Weather) -> Self {
        let net = Network::new(nodes, seed, Weather { mixed: true, ..weather });
        let mut world = Self { net, disks: vec![Vec::new(); nodes] };
        (0..nodes).for_each(|at| world.boot(at));
        world
    }

    /// The next life of a node, with what it remembers.
    fn boot(&mut self, at: usize) {
        let remembered = self.disks[at].clone();
        self.start(at, |life, moment, rng| {
            let own = entry(node(at).as_str(), life.0, 1, &format!("s{at}-{}", life.0));
            let seals = Box::new(Toy(node(at)));
            Registry::new(own, remembered, moment.now, moment.wall, rng, seals)
        });
    }

    fn down(&mut self, at: usize) {
        for other in 0..self.nodes.len() {
            self.link(at, other, false);
        }
        let machine = self.nodes[at].take().expect("it is up");
        self.disks[at] = machine.rows().map(|row| Entry::clone(row)).collect();
    }

    /// Both sides of a link come or go; one side may learn it a little later.
    fn link(&mut self, a: usize, b: usize, up: bool) {
        if !self.connect(a, b, up) {
            return;
        }
        let late = ms(self.rng.random_range(0..30));
        self.inform(a, b, up);
        if up {
            self.run(late);
        }
        self.inform(b, a, up);
    }

    fn mesh(&mut self, of: impl IntoIterator<Item = usize> + Clone) {
        for a in of.clone() {
            for b in of.clone().into_iter().filter(|b| a < *b) {
                self.link(a, b, true);
            }
        }
    }

    /// Every running node says the same of this one, and what. (Two that rule at once on it do not by the same clock, and
    /// may know different versions of it: nothing follows from that but when it ends, and what an offline node is shown
    /// with.)
    fn agreed(&self, of: usize) -> Option<(Mark, Option<Profile>)> {
        let stated = |entry: &Entry| entry.value().filter(|_| entry.ruling().is_none()).cloned();
        let says = |entry: &Entry| (entry.mark(), stated(entry));
        let nodes = self.nodes.iter().flatten();
        let mut said: Vec<_> = nodes.map(|it| it.row(&node(of)).map(says)).collect();
        said.dedup();
        assert!(said.len() <= 1, "seed {}: of n{of} {said:?}", self.seed);
        said.pop().flatten() // nobody may be up
    }

    /// What every running node shows of this one.
    fn shown(&self, of: usize) -> Option<Profile> {
        let shown = |it: &Registry| it.row(&node(of)).and_then(|row| row.value().cloned());
        let mut shown: Vec<_> = self.nodes.iter().flatten().map(shown).collect();
        shown.dedup();
        assert!(shown.len() <= 1, "seed {}: of n{of} {shown:?}", self.seed);
        shown.pop().flatten()
    }

    fn all_agree(&self) {
        (0..self.nodes.len()).for_each(|of| drop(self.agreed(of)));
        let hashes: BTreeSet<_> = self.nodes.iter().flatten().map(Registry::agreement).collect();
        assert!(hashes.len() <= 1, "seed {}", self.seed);
    }

    fn forgotten(&self, of: usize) -> bool {
        self.agreed(of).is_some_and(|(mark, _)| mark.gone)
    }
}

#[test]
fn nodes_that_start_together_say_few_words() {
    let mut world = World::new(50, 1, FAIR);
    // All links at the same moment: nobody knows of anybody from a third one.
    let pairs = || (0..50).flat_map(|a| (0..50).map(move |b| (a, b))).filter(|(a, b)| a != b);
    world.links.extend(pairs().map(|pair| (pair, 0)));
    pairs().for_each(|(a, b)| world.input(a, Input::Linked(node(b), life(1))));
    world.run(ms(3000));
    world.all_agree();
    // Own profile and a question on each side of a link, the answers, some digests and what they find missing.
    assert!(world.words() < 50 * 49 * 5, "{} words", world.words());
    world.sent.clear();
    world.run(Duration::from_secs(100));
    assert!(world.words() <= 50 * 13, "{} words in 100 s of rest", world.words());
}

#[test]
fn a_forgotten_node_is_forgotten_everywhere_at_once() {
    let mut world = World::new(30, 2, FAIR);
    world.mesh(0..30);
    world.run(ms(3000));
    world.down(7);
    world.sent.clear();
    world.input(3, forget(node(7), life(1)));
    world.run(ms(100));
    assert!(world.forgotten(7));
    assert!(world.words() <= 29 * 29, "{} words", world.words());
}

#[test]
fn what_is_brought_back_is_the_same_on_every_node() {
    // The last one knows what n3 stated; the author does, or does not.
    for author in [0, 1] {
        let mut world = World::new(4, 5, FAIR);
        world.link(2, 3, true);
        if author == 1 {
            world.link(1, 2, true);
        }
        world.run(ms(3000));
        world.down(3);
        world.input(author, forget(node(3), life(1)));
        world.mesh(0..3);
        world.run(Duration::from_secs(60));
        assert!(world.forgotten(3));
        world.input(author, restore(node(3)));
        world.run(Duration::from_secs(60));
        assert_eq!(world.shown(3), (author == 1).then(|| does("s3-1")));
    }
}

#[test]
fn in_a_chain_a_tombstone_goes_from_node_to_node() {
    let mut world = World::new(12, 3, FAIR);
    (0..11).for_each(|at| world.link(at, at + 1, true));
    world.run(Duration::from_secs(300));
    world.all_agree();
    world.down(11);
    world.input(0, forget(node(11), life(1)));
    world.run(ms(11 * 20));
    assert!(world.forgotten(11));
}

#[test]
fn who_was_away_learns_of_a_tombstone_and_brings_nobody_back() {
    for seed in 0..40 {
        let mut world = World::new(6, seed, FOUL);
        world.mesh(0..6);
        world.run(Duration::from_secs(120));
        // One is cut off, another is down, a third one dies; then that one is forgotten.
        (0..6).for_each(|other| world.link(0, other, false));
        world.down(1);
        world.down(2);
        world.run(ms(500));
        world.input(4, forget(node(2), life(1)));
        world.run(Duration::from_secs(60));
        let of_cut = world.nodes[0].as_ref().and_then(|it| it.row(&node(2)));
        assert!(of_cut.is_some_and(|entry| entry.value().is_some()), "seed {seed}: it was away");
        world.boot(1);
        world.mesh(0..6);
        world.run(Duration::from_secs(300));
        assert!(world.forgotten(2), "seed {seed}");
        world.all_agree();
        // And its next life is nobody's old acquaintance.
        world.disks[2].clear();
        world.boot(2);
        world.mesh(0..6);
        world.run(Duration::from_secs(300));
        assert!(!world.forgotten(2), "seed {seed}");
    }
}

#[test]
fn who_was_away_while_it_was_taken_back_learns_of_that() {
    for seed in 0..40 {
        let mut world = World::new(6, seed, FOUL);
        world.mesh(0..6);
        world.run(Duration::from_secs(120));
        world.down(2);
        world.run(ms(500));
        world.input(4, forget(node(2), life(1)));
        world.run(Duration::from_secs(60));
        assert!(world.forgotten(2), "seed {seed}");
        // One is away with the tombstone, another one takes it back, and is gone before the first comes back.
        world.down(1);
        world.input(3, restore(node(2)));
        world.run(Duration::from_secs(60));
        world.down(3);
        world.boot(1);
        world.mesh(0..6);
        world.run(Duration::from_secs(300));
        assert_eq!(world.shown(2), Some(does("s2-1")), "seed {seed}: as it was");
        world.all_agree();
        world.boot(2);
        world.mesh(0..6);
        world.run(Duration::from_secs(300));
        assert_eq!(world.agreed(2).and_then(|(_, profile)| profile), Some(does("s2-2")));
    }
}

#[test]
fn the_forgotten_one_that_lives_is_back_everywhere() {
    for seed in 0..40 {
        let mut world = World::new(5, seed, FOUL);
        // Node 0 sees all but node 4, which others are linked with.
        (0..4).for_each(|a| (0..5).for_each(|b| world.link(a, b, (a, b) != (0, 4))));
        world.run(Duration::from_secs(200));
        world.input(0, forget(node(4), life(1)));
        world.run(Duration::from_secs(300));
        assert!(!world.forgotten(4), "seed {seed}");
        world.all_agree();
        // It was away itself, and in the same life all the time.
        (0..4).for_each(|other| world.link(4, other, false));
        world.input(1, forget(node(4), life(1)));
        world.run(Duration::from_secs(120));
        world.link(4, 2, true);
        world.run(Duration::from_secs(300));
        assert!(!world.forgotten(4), "seed {seed}");
        world.all_agree();
    }
}

/// What may happen to six nodes.
#[derive(Clone, Debug)]
enum Act {
    Link(usize, usize, bool),
    Restart(usize),
    Down(usize),
    Forget(usize, usize),
    Restore(usize, usize),
    Wait(u64),
}

fn act() -> impl Strategy<Value = Act> {
    let one = || 0..6_usize;
    prop_oneof![
        4 => (one(), one(), any::<bool>()).prop_map(|(a, b, up)| Act::Link(a, b, up)),
        1 => one().prop_map(Act::Restart),
        1 => one().prop_map(Act::Down),
        2 => (one(), one()).prop_map(|(by, of)| Act::Forget(by, of)),
        2 => (one(), one()).prop_map(|(by, of)| Act::Restore(by, of)),
        2 => (0..15_000_u64).prop_map(Act::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn connected_nodes_come_to_know_the_same(
        seed in any::<u64>(),
        acts in prop::collection::vec(act(), 1..60),
    ) {
        let mut world = World::new(6, seed, FOUL);
        for act in acts {
            match act {
                Act::Link(a, b, up) => world.link(a, b, up),
                Act::Restart(at) => {
                    if world.nodes[at].is_some() {
                        world.down(at);
                    }
                    world.boot(at);
                }
                Act::Down(at) => if world.nodes[at].is_some() {
                    world.down(at);
                },
                Act::Forget(by, of) => {
                    let life = life(world.lives[of]);
                    world.input(by, forget(node(of), life));
                }
                Act::Restore(by, of) => world.input(by, restore(node(of))),
                Act::Wait(time) => world.run(ms(time)),
            }
        }
        world.mesh(0..6);
        world.run(Duration::from_secs(400));
        world.all_agree();
        for at in (0..6).filter(|at| world.nodes[*at].is_some()) {
            prop_assert!(!world.forgotten(at), "n{at} runs and is linked");
        }
    }
}
