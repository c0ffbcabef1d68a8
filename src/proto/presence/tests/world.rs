//! Several nodes in one thread: links that come and go, words that are late, lost or doubled, nodes and
//! actors that start anew. Each node has a listener that applies what it is told.

use rand::Rng;

use super::*;

#[derive(Clone, Copy)]
struct Weather {
    loss: f64,
    twice: f64,
    /// In milliseconds. Words of one link overtake each other.
    slowest: u64,
}

const FAIR: Weather = Weather { loss: 0.0, twice: 0.0, slowest: 1 };
const FOUL: Weather = Weather { loss: 0.2, twice: 0.1, slowest: 200 };

enum Event {
    Word { from: usize, to: usize, link: u64, word: Vec<u8> },
    Tick(usize),
}

struct Node {
    machine: Presence,
    /// What came and did not leave.
    listener: BTreeSet<Arc<Entry>>,
    /// Its own entries that are there.
    own: Vec<Ref>,
}

struct World {
    nodes: Vec<Option<Node>>,
    epochs: Vec<Epoch>,
    /// Links up, and which of the links of that pair it is.
    links: BTreeMap<(usize, usize), u64>,
    queue: BTreeMap<(Instant, u64), Event>,
    seq: u64,
    now: Instant,
    rng: StdRng,
    weather: Weather,
    seed: u64,
    /// Words sent, of each kind, and all their bytes.
    deltas: usize,
    digests: usize,
    asks: usize,
    pages: usize,
    bytes: usize,
}

fn node(at: usize) -> NodeName {
    name(&format!("n{at}@h"))
}

const TOPICS: [&str; 3] = ["room:1", "room:10", "room:2"];

impl World {
    fn new(nodes: usize, seed: u64, weather: Weather) -> Self {
        let mut world = Self {
            nodes: (0..nodes).map(|_| None).collect(),
            epochs: vec![epoch(0, 0); nodes],
            links: BTreeMap::new(),
            queue: BTreeMap::new(),
            seq: 0,
            now: start(),
            rng: StdRng::seed_from_u64(seed),
            weather,
            seed,
            deltas: 0,
            digests: 0,
            asks: 0,
            pages: 0,
            bytes: 0,
        };
        (0..nodes).for_each(|at| world.boot(at, true));
        world
    }

    /// A node starts; or, within its life, the actor alone does: its links are as they were.
    fn boot(&mut self, at: usize, life: bool) {
        let last = self.epochs[at];
        self.epochs[at] =
            if life { epoch(last.life.0 + 1, 1) } else { epoch(last.life.0, last.boot + 1) };
        let rng = StdRng::seed_from_u64(self.rng.next_u64());
        let machine = Presence::new(node(at), self.epochs[at], self.now, rng);
        self.nodes[at] = Some(Node { machine, listener: BTreeSet::new(), own: Vec::new() });
        for peer in self.linked(at) {
            self.input(at, |node, now, out| node.machine.up(&super::name(&peer), now, out));
        }
    }

    fn linked(&self, at: usize) -> Vec<String> {
        let peers = self.links.keys().filter(|(from, _)| *from == at);
        peers.map(|(_, to)| node(*to).to_string()).collect()
    }

    fn push(&mut self, at: Instant, event: Event) {
        self.seq += 1;
        self.queue.insert((at, self.seq), event);
    }

    fn input(&mut self, at: usize, act: impl FnOnce(&mut Node, Instant, &mut Vec<Output>)) {
        let (now, seed) = (self.now, self.seed);
        let Some(node) = &mut self.nodes[at] else { return };
        let mut out = Vec::new();
        act(node, now, &mut out);
        for output in &out {
            match output {
                Output::Joined(entry) => {
                    assert!(node.listener.insert(entry.clone()), "seed {seed}: {entry:?} twice");
                }
                Output::Left(entry) => {
                    assert!(node.listener.remove(entry), "seed {seed}: {entry:?} was not there");
                }
                Output::Say(..) => {}
                Output::Fault(..) => panic!("seed {seed}: honest nodes, but {output:?}"),
            }
        }
        let topics = TOPICS.map(topic);
        let state = topics.iter().flat_map(|topic| node.machine.state(topic));
        let state = state.flat_map(|(key, metas)| {
            assert!(metas.iter().all(|entry| entry.key.as_ref() == key));
            metas
        });
        assert!(state.eq(node.listener.iter().map(Arc::as_ref)), "seed {seed}: n{at}'s listener");
        if let Some(deadline) = node.machine.deadline() {
            self.push(deadline, Event::Tick(at));
        }
        for output in out {
            match output {
                Output::Say(To::All, word) => {
                    for to in 0..self.nodes.len() {
                        self.send(at, to, &word);
                    }
                }
                Output::Say(To::One(to), word) => {
                    let to = to.short()[1..].parse().expect("a number");
                    self.send(at, to, &word);
                }
                _ => {}
            }
        }
    }

    fn send(&mut self, from: usize, to: usize, word: &Word) {
        let Some(link) = self.links.get(&(from, to)).copied() else { return };
        let bytes = codec::encode(word).expect("encodes");
        assert!(bytes.len() <= WORD, "seed {}: a word of {} bytes", self.seed, bytes.len());
        match word {
            Word::Delta { .. } => self.deltas += 1,
            Word::Digest { .. } => self.digests += 1,
            Word::Ask { .. } => self.asks += 1,
            Word::Page(_) => self.pages += 1,
        }
        self.bytes += bytes.len();
        let copies = 1 + usize::from(self.rng.random_bool(self.weather.twice));
        for _ in 0..copies {
            if !self.rng.random_bool(self.weather.loss) {
                let at = self.now + ms(self.rng.random_range(1..=self.weather.slowest));
                self.push(at, Event::Word { from, to, link, word: bytes.clone() });
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= end) {
            let ((at, _), event) = entry.remove_entry();
            self.now = self.now.max(at);
            match event {
                Event::Word { from, to, link, word } => {
                    if self.links.get(&(to, from)) == Some(&link) {
                        let word = codec::decode(&word, WORD).expect("its own bytes");
                        self.input(to, |n, now, out| n.machine.heard(&node(from), word, now, out));
                    }
                }
                Event::Tick(at) => {
                    let machine = self.nodes[at].as_ref().map(|node| &node.machine);
                    let due = machine.and_then(Presence::deadline);
                    if due.is_some_and(|due| due <= self.now) {
                        self.input(at, |node, now, out| node.machine.tick(now, out));
                    }
                }
            }
        }
        self.now = end;
    }

    fn link(&mut self, a: usize, b: usize) {
        let there = self.nodes[a].is_some() && self.nodes[b].is_some();
        if a == b || !there || self.links.contains_key(&(a, b)) {
            return;
        }
        self.seq += 1;
        for (one, other) in [(a, b), (b, a)] {
            self.links.insert((one, other), self.seq);
        }
        for (one, other) in [(a, b), (b, a)] {
            self.input(one, |n, now, out| n.machine.up(&node(other), now, out));
        }
    }

    fn cut(&mut self, a: usize, b: usize) {
        for (one, other) in [(a, b), (b, a)] {
            if self.links.remove(&(one, other)).is_some() {
                self.input(one, |n, _, out| n.machine.gone(&node(other), out));
                let ghost = |entry: &Arc<Entry>| entry.key.starts_with(&format!("n{other}:"));
                let ghosts = self.nodes[one].as_ref().is_some_and(|n| n.listener.iter().any(ghost));
                assert!(!ghosts, "seed {}: n{one} shows n{other}", self.seed);
            }
        }
    }

    fn crash(&mut self, at: usize) {
        self.nodes[at] = None;
        (0..self.nodes.len()).for_each(|other| self.cut(at, other));
    }

    fn mesh(&mut self) {
        for a in 0..self.nodes.len() {
            (a + 1..self.nodes.len()).for_each(|b| self.link(a, b));
        }
    }

    /// A key says whose it is.
    fn track(&mut self, at: usize, meta: &str) {
        let (room, user) =
            (topic(TOPICS[self.rng.random_range(0..3)]), self.rng.random_range(0..3));
        self.input(at, |node, now, out| {
            let key = format!("n{at}:u{user}");
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
        self.input(at, |node, now, out| {
            let updated = node.machine.update(node.own[which], "{\"new\":1}", now, out);
            node.own[which] = updated.expect("it is ours");
        });
    }

    fn untrack(&mut self, at: usize) {
        let Some(which) = self.any(at) else { return };
        self.input(at, |node, now, out| {
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
                let theirs = |e: &&Arc<Entry>| e.key.starts_with(&format!("n{peer}:"));
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
    let mut world = World::new(nodes, seed, weather);
    world.mesh();
    let wide = format!("{{\"w\":\"{}\"}}", "w".repeat(META - 8));
    for _ in 0..world.rng.random_range(10..60) {
        let pause = if world.rng.random_bool(0.3) { 1000 } else { 30 };
        let pause = world.rng.random_range(0..pause);
        world.run(ms(pause));
        let (a, b) = (world.rng.random_range(0..nodes), world.rng.random_range(0..nodes));
        match world.rng.random_range(0..32) {
            0 => world.crash(a),
            1 | 2 if world.nodes[a].is_none() => {
                world.boot(a, true);
                (0..nodes).for_each(|peer| world.link(a, peer));
            }
            1 if world.nodes[a].is_some() => world.boot(a, false),
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
    world.mesh();
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
        (pages, digests) = (pages + world.pages, digests + world.digests);
    }
    assert!(pages > 1000 && digests > 1000, "{pages} pages, {digests} digests");
}

#[test]
fn a_lost_change_costs_little_to_repair() {
    let mut world = World::new(2, 1, FAIR);
    world.mesh();
    (0..5000).for_each(|_| world.track(0, "{\"name\":\"somebody\"}"));
    world.run(ms(100));
    world.agreed();
    assert_eq!((world.asks, world.pages), (0, 0), "deltas are enough");
    // A late one reads it all, in pages.
    world.crash(1);
    world.boot(1, true);
    (world.bytes, world.digests) = (0, 0);
    world.link(0, 1);
    world.run(ms(500));
    world.agreed();
    assert!((4..=8).contains(&world.pages), "{} pages", world.pages);
    assert_eq!((world.asks, world.digests), (world.pages, 4));
    let whole = world.bytes;
    // After a loss, entries that are known are only named.
    world.weather.loss = 1.0;
    world.untrack(0);
    world.track(0, "{}");
    world.run(ms(100));
    world.weather.loss = 0.0;
    (world.bytes, world.pages) = (0, 0);
    world.run(ms(7000));
    world.agreed();
    assert_eq!(world.pages, 1);
    assert!(world.bytes < whole / 10, "{} of {whole} bytes", world.bytes);
}

#[test]
fn a_crowd_is_told_in_few_words() {
    let mut world = World::new(3, 1, FAIR);
    world.mesh();
    world.deltas = 0;
    (0..1000).for_each(|_| world.track(0, "{}"));
    world.run(ms(50));
    world.agreed();
    assert_eq!(world.deltas, 4, "the first change, then the rest, to two peers");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_life_ends_in_agreement(seed in any::<u64>(), nodes in 3..=5_usize) {
        live_through(nodes, seed, FOUL, ms(400_000));
    }
}
