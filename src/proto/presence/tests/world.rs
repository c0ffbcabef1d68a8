//! Several nodes in one thread: links that come and go, words that are late, lost or doubled, nodes and
//! actors that start anew. Each node has a listener that applies what it is told.

use rand::RngExt;

use super::*;
use crate::proto::tests::network::{Machine, Moment, Network, Sent, Weather, node};

const FAIR: Weather = Weather { loss: 0.0, twice: 0.0, slowest: 1, mixed: true };
const FOUL: Weather = Weather { loss: 0.2, twice: 0.1, slowest: 200, mixed: true };

struct Node {
    machine: Presence,
    epoch: Epoch,
    /// What came and did not leave.
    listener: BTreeSet<Arc<Entry>>,
    /// Its own entries that are there.
    own: Vec<Ref>,
}

impl Node {
    fn new(at: usize, epoch: Epoch, now: Instant, rng: StdRng) -> Self {
        let machine = Presence::new(node(at), epoch, now, rng);
        Self { machine, epoch, listener: BTreeSet::new(), own: Vec::new() }
    }

    /// Does something. The listener applies what follows, and then has the state.
    fn act(
        &mut self,
        Moment { now, seed, .. }: Moment,
        sent: &mut Sent<Self>,
        act: impl FnOnce(&mut Self, Instant, &mut Vec<Output>),
    ) {
        let mut out = Vec::new();
        act(self, now, &mut out);
        let me = &self.machine.me;
        for output in out {
            match output {
                Output::Joined(entry) => {
                    assert!(self.listener.insert(entry.clone()), "seed {seed}: {entry:?} twice");
                }
                Output::Left(entry) => {
                    assert!(self.listener.remove(&entry), "seed {seed}: {entry:?} was not there");
                }
                Output::Say(To::All, word) => sent.push((None, word)),
                Output::Say(To::One(to), word) => sent.push((Some(to), word)),
                Output::Fault(..) => panic!("seed {seed}: honest nodes, but {output:?}"),
            }
        }
        let topics = TOPICS.map(topic);
        let state = topics.iter().flat_map(|topic| self.machine.state(topic));
        let state = state.flat_map(|(key, metas)| {
            assert!(metas.iter().all(|entry| entry.key.as_ref() == key));
            metas
        });
        assert!(state.eq(self.listener.iter().map(Arc::as_ref)), "seed {seed}: listener of {me}");
    }
}

impl Machine for Node {
    type Word = Word;
    const LONGEST: usize = WORD;

    fn kind(word: &Word) -> &'static str {
        match word {
            Word::Delta { .. } => "delta",
            Word::Digest { .. } => "digest",
            Word::Ask { .. } => "ask",
            Word::Page(_) => "page",
        }
    }

    fn up(&mut self, peer: NodeName, _life: Incarnation, at: Moment, out: &mut Sent<Self>) {
        self.act(at, out, |it, now, out| it.machine.up(&peer, now, out));
    }

    fn down(&mut self, peer: NodeName, at: Moment, out: &mut Sent<Self>) {
        self.act(at, out, |it, _, out| it.machine.gone(&peer, out));
        let ghosts = self.listener.iter().any(|entry| is_of(entry, &peer));
        assert!(!ghosts, "seed {}: {} shows {peer}", at.seed, self.machine.me);
    }

    fn hear(&mut self, from: NodeName, word: Word, at: Moment, out: &mut Sent<Self>) {
        self.act(at, out, |it, now, out| it.machine.heard(&from, word, now, out));
    }

    fn tick(&mut self, at: Moment, out: &mut Sent<Self>) {
        self.act(at, out, |it, now, out| it.machine.tick(now, out));
    }

    fn deadline(&self) -> Option<Instant> {
        self.machine.deadline()
    }
}

const TOPICS: [&str; 3] = ["room:1", "room:10", "room:2"];

/// The key of a node's member.
fn key(of: &NodeName, user: usize) -> String {
    format!("{}:u{user}", of.short())
}

fn is_of(entry: &Entry, node: &NodeName) -> bool {
    entry.key.starts_with(&format!("{}:", node.short()))
}

type World = Network<Node>;

impl World {
    fn booted(nodes: usize, seed: u64, weather: Weather) -> Self {
        let mut world = Self::new(nodes, seed, weather);
        world.weigh = true;
        (0..nodes).for_each(|at| world.boot(at));
        world
    }

    fn boot(&mut self, at: usize) {
        self.start(at, |life, moment, rng| Node::new(at, epoch(life.0, 1), moment.now, rng));
    }

    /// The actor of a node starts again: its links are as they were.
    fn restart(&mut self, at: usize) {
        let boot = self.nodes[at].as_ref().expect("it runs").epoch.boot + 1;
        let make = |life: Incarnation, moment: Moment, rng| {
            Node::new(at, epoch(life.0, boot), moment.now, rng)
        };
        self.replace(at, make);
        self.linked(at).into_iter().for_each(|peer| self.inform(at, peer, true));
    }

    fn present(&mut self, at: usize, act: impl FnOnce(&mut Node, Instant, &mut Vec<Output>)) {
        self.act(at, |node, moment, out| node.act(moment, out, act));
    }

    /// A key says whose it is.
    fn track(&mut self, at: usize, meta: &str) {
        let (room, user) =
            (topic(TOPICS[self.rng.random_range(0..3)]), self.rng.random_range(0..3));
        self.present(at, |node, now, out| {
            let key = key(&node.machine.me, user);
            let taken = node.machine.track(&room, &key, meta, now, out);
            node.own.push(taken.expect("taken"));
        });
    }

    /// One of a node's own entries.
    fn any(&mut self, at: usize) -> Option<usize> {
        let most = self.nodes[at].as_ref().map_or(0, |node| node.own.len());
        (most > 0).then(|| self.rng.random_range(0..most))
    }

    fn update(&mut self, at: usize) {
        let Some(which) = self.any(at) else { return };
        self.present(at, |node, now, out| {
            let updated = node.machine.update(node.own[which], "{\"new\":1}", now, out);
            node.own[which] = updated.expect("it is ours");
        });
    }

    fn untrack(&mut self, at: usize) {
        let Some(which) = self.any(at) else { return };
        self.present(at, |node, now, out| {
            let reference = node.own.swap_remove(which);
            node.machine.untrack(reference, now, out);
        });
    }

    /// Every node shows its own entries and those of whom it is linked with, and nothing else.
    #[track_caller]
    fn agreed(&self) {
        for (at, here) in self.nodes.iter().enumerate() {
            let Some(here) = here else { continue };
            let mut due = BTreeSet::new();
            for (peer, there) in self.nodes.iter().enumerate() {
                let Some(there) = there else { continue };
                if peer == at || self.links.contains_key(&(at, peer)) {
                    due.extend(there.own.iter().copied());
                }
            }
            let shown: BTreeSet<Ref> = here.listener.iter().map(|e| e.reference).collect();
            assert_eq!(shown, due, "seed {}: n{at}", self.seed);
            for (peer, there) in self.nodes.iter().enumerate() {
                let theirs = |entry: &&Arc<Entry>| is_of(entry, &node(peer));
                if let Some(there) = there.as_ref().filter(|_| self.links.contains_key(&(at, peer)))
                {
                    let said = there.listener.iter().filter(theirs);
                    assert!(said.eq(here.listener.iter().filter(theirs)), "seed {}", self.seed);
                }
            }
        }
    }
}

fn live_through(nodes: usize, seed: u64, weather: Weather, quiet: Duration) -> World {
    let mut world = World::booted(nodes, seed, weather);
    world.mesh(|_, _| true);
    let wide = format!("{{\"w\":\"{}\"}}", "w".repeat(META - 8));
    for _ in 0..world.rng.random_range(10..60) {
        let pause = if world.rng.random_bool(0.3) { 1000 } else { 30 };
        let pause = world.rng.random_range(0..pause);
        world.run(ms(pause));
        let (a, b) = (world.rng.random_range(0..nodes), world.rng.random_range(0..nodes));
        match world.rng.random_range(0..32) {
            0 => world.crash(a),
            1 | 2 if world.nodes[a].is_none() => {
                world.boot(a);
                (0..nodes).for_each(|peer| world.link(a, peer));
            }
            1 if world.nodes[a].is_some() => world.restart(a),
            2 => (0..150).for_each(|_| world.track(a, &wide)),
            3..6 => world.link(a, b),
            6 | 7 => world.cut(a, b),
            8 => (0..nodes).filter(|peer| peer % 2 != a % 2).for_each(|peer| world.cut(a, peer)),
            9..14 => world.update(a),
            14..20 => world.untrack(a),
            20 => (0..40).for_each(|_| world.untrack(a)),
            _ => world.track(a, "{}"),
        }
    }
    world.run(quiet);
    world.agreed(); // as far as they are linked
    world.mesh(|_, _| true);
    world.run(quiet);
    world.agreed();
    world
}

#[test]
fn in_fair_weather_they_agree_at_once() {
    for seed in 0..100 {
        live_through(5, seed, FAIR, ms(100));
    }
}

#[test]
fn in_foul_weather_they_agree_in_the_end() {
    let (mut pages, mut digests) = (0, 0);
    for seed in 0..150 {
        let nodes = 3 + usize::try_from(seed % 3).expect("small");
        let world = live_through(nodes, seed, FOUL, ms(400_000));
        (pages, digests) = (pages + world.count("page"), digests + world.count("digest"));
    }
    assert!(pages > 1000 && digests > 1000, "{pages} pages, {digests} digests");
}

#[test]
fn a_lost_change_costs_little_to_repair() {
    let mut world = World::booted(2, 1, FAIR);
    world.mesh(|_, _| true);
    (0..5000).for_each(|_| world.track(0, "{\"name\":\"somebody\"}"));
    world.run(ms(100));
    world.agreed();
    assert_eq!((world.count("ask"), world.count("page")), (0, 0), "deltas are enough");
    // A late one reads it all, in pages.
    world.crash(1);
    world.boot(1);
    (world.bytes, world.sent) = (0, BTreeMap::new());
    world.link(0, 1);
    world.run(ms(500));
    world.agreed();
    let pages = world.count("page");
    assert!((4..=8).contains(&pages), "{pages} pages");
    assert_eq!((world.count("ask"), world.count("digest")), (pages, 4));
    let whole = world.bytes;
    // After a loss, entries that are known are only named.
    world.weather.loss = 1.0;
    world.untrack(0);
    world.track(0, "{}");
    world.run(ms(100));
    world.weather.loss = 0.0;
    (world.bytes, world.sent) = (0, BTreeMap::new());
    world.run(ms(7000));
    world.agreed();
    assert_eq!(world.count("page"), 1);
    assert!(world.bytes < whole / 10, "{} of {whole} bytes", world.bytes);
}

#[test]
fn a_crowd_is_told_in_few_words() {
    let mut world = World::booted(3, 1, FAIR);
    world.mesh(|_, _| true);
    world.sent.clear();
    (0..1000).for_each(|_| world.track(0, "{}"));
    world.run(ms(50));
    world.agreed();
    assert_eq!(world.count("delta"), 4, "the first change, then the rest, to two peers");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_life_ends_in_agreement(seed in any::<u64>(), nodes in 3..=5_usize) {
        live_through(nodes, seed, FOUL, ms(400_000));
    }
}
