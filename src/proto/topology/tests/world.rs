//! Many trackers in one thread: links that come and go, words that are late, lost or doubled.

use super::*;

const FOUL: Weather = Weather { loss: 0.2, twice: 0.1, slowest: 200, mixed: true };

type World = Network<Topology>;

impl World {
    fn booted(nodes: usize, seed: u64, weather: Weather) -> Self {
        let mut world = Self::new(nodes, seed, weather);
        (0..nodes).for_each(|at| world.boot(at));
        world
    }

    /// The next life of a node; it remembers nothing.
    fn boot(&mut self, at: usize) {
        self.start(at, |life, moment, rng| {
            Topology::new(node(at), life, 1, moment.now, moment.wall, rng, Box::new(Toy(node(at))))
        });
    }

    fn own(&mut self, at: usize, peer: usize, state: Status) {
        let since = self.moment().wall;
        let cell = Cell { since, ..cell(state, None) };
        self.input(at, Input::Own(vec![(node(peer), Some(cell))]));
    }

    /// Nodes that reach each other by way of links have one view, which has all they say themselves.
    fn agreed(&self) -> Result<(), String> {
        let mut group: Vec<usize> = (0..self.nodes.len()).collect();
        for _ in 0..self.nodes.len() {
            for (a, b) in self.links.keys() {
                group[*b] = group[*a].min(group[*b]);
            }
        }
        for (at, machine) in self.nodes.iter().enumerate() {
            let (Some(machine), Some(first)) = (machine, &self.nodes[group[at]]) else { continue };
            let same = machine.agreement() == first.agreement() && machine.rows().eq(first.rows());
            if !same {
                let differs = |row: &&Arc<Row>| machine.row_of(&row.origin) != Some(row);
                let names: Vec<_> =
                    first.rows().filter(differs).map(|row| (&row.origin, row.version)).collect();
                return Err(format!("n{at} and n{} differ on {names:?}", group[at]));
            }
            let own = machine.row_of(&node(at)).map(Row::mark);
            let seen = first.row_of(&node(at)).map(Row::mark);
            if own != seen {
                return Err(format!("n{} has {seen:?} of n{at}, which is at {own:?}", group[at]));
            }
        }
        Ok(())
    }

    #[track_caller]
    fn agree_within(&mut self, time: Duration) {
        let end = self.now + time;
        self.run(time);
        assert_eq!(self.now, end);
        assert_eq!(self.agreed(), Ok(()), "seed {} after {time:?}", self.seed);
    }
}

/// Links and nodes come and go for a while, then nothing happens.
fn live_through(nodes: usize, seed: u64, weather: Weather, quiet: Duration) {
    let mut world = World::booted(nodes, seed, weather);
    world.mesh(|_, _| true);
    let changes = world.rng.random_range(1..25);
    for _ in 0..changes {
        let pause = world.rng.random_range(0..1500);
        world.run(ms(pause));
        let (a, b) = (world.rng.random_range(0..nodes), world.rng.random_range(0..nodes));
        match world.rng.random_range(0..10) {
            0 => world.crash(a),
            1 | 2 if world.nodes[a].is_none() => {
                world.boot(a);
                (0..nodes).for_each(|peer| world.link(a, peer));
            }
            3..6 => world.link(a, b),
            6 if world.nodes[a].is_none() => {
                for at in 0..nodes {
                    let (name, life) = (node(a), life(world.lives[a]));
                    world.input(at, Input::Gone(name, life));
                }
            }
            _ => world.cut(a, b),
        }
    }
    world.agree_within(quiet);
}

#[test]
fn connected_nodes_agree_two_seconds_after_the_last_change() {
    for seed in 0..300 {
        live_through(5, seed, FAIR, ms(2000));
    }
    for seed in 0..3 {
        live_through(50, seed, FAIR, ms(2000));
    }
}

#[test]
fn in_foul_weather_they_agree_in_the_end() {
    for seed in 0..300 {
        live_through(5, seed, FOUL, ms(20_000));
    }
    live_through(50, 1, FOUL, ms(20_000));
}

#[test]
fn a_change_crosses_a_chain_within_two_seconds() {
    for seed in 0..50 {
        let mut world = World::booted(6, seed, FAIR);
        world.mesh(|a, b| a + 1 == b);
        world.run(ms(5000));
        assert_eq!(world.agreed(), Ok(()));
        world.own(0, 1, Status::Syncing);
        world.agree_within(ms(600));
    }
}

#[test]
fn two_halves_that_heal_agree() {
    for (nodes, seeds) in [(6, 50), (50, 1)] {
        for seed in 0..seeds {
            let mut world = World::booted(nodes, seed, FAIR);
            world.mesh(|_, _| true);
            world.run(ms(3000));
            for a in (0..nodes).step_by(2) {
                (1..nodes).step_by(2).for_each(|b| world.cut(a, b));
            }
            world.agree_within(ms(2000));
            world.link(0, 1); // one bridge first
            world.agree_within(ms(2000));
            world.mesh(|_, _| true);
            world.agree_within(ms(2000));
        }
    }
}

#[test]
fn a_restarted_node_is_seen_in_its_new_life_at_once() {
    for seed in 0..20 {
        let mut world = World::booted(5, seed, FAIR);
        world.mesh(|a, b| (a, b) != (0, 1)); // these two never meet
        world.run(ms(3000));
        world.crash(0);
        world.boot(0);
        world.link(0, 2);
        assert_eq!(
            world.nodes[2].as_ref().and_then(|n| n.row_of(&node(0))).map(|row| row.incarnation),
            Some(life(2))
        );
        world.agree_within(ms(500));
    }
}

#[test]
fn a_hundred_nodes_agree() {
    let mut world = World::booted(100, 1, FAIR);
    world.mesh(|a, b| (a * 7 + b * 13) % 10 != 0);
    world.agree_within(ms(2000));
    world.crash(5);
    world.agree_within(ms(2000));
}

#[test]
fn traffic_is_what_changes_and_one_digest_a_second() {
    let nodes = 20;
    let mut world = World::booted(nodes, 1, FAIR);
    world.mesh(|_, _| true);
    world.run(ms(3000));
    world.sent.clear();
    world.run(ms(60_000));
    // 60 or so to somebody, two rounds to everybody; nobody has anything to answer.
    let idle = world.words() / nodes;
    assert!((48 + 38..=76 + 38).contains(&idle), "{idle} words a node in an idle minute");
    // A change costs one word a link, and what a digest that crosses it may ask for.
    world.sent.clear();
    world.weigh = true;
    for change in 0..120 {
        let state = if change / nodes % 2 == 0 { Status::Syncing } else { Status::Online };
        world.own(change % nodes, (change + 1) % nodes, state);
    }
    assert_eq!(world.words(), 120 * (nodes - 1));
    assert!(world.bytes <= world.words() * 64, "{} bytes", world.bytes);
    world.run(ms(1000));
    assert!(world.words() <= 120 * (nodes - 1) + 20 * nodes, "{} words", world.words());
    assert_eq!(world.agreed(), Ok(()));
    // With a pair cut, three others inform each of the two; it asks one of them, of a row that goes on changing once in a while.
    world.cut(3, 4);
    world.run(ms(3000));
    world.sent.clear();
    let rounds = 10;
    for round in 0..rounds {
        let state = if round % 2 == 0 { Status::Connecting } else { Status::Offline };
        world.own(3, 4, state);
        world.run(ms(1000));
        assert_eq!(world.agreed(), Ok(()));
    }
    let most = (nodes - 2) + 3 + 2 + 2 * nodes; // digests fall due meanwhile, and some find the row on its way
    assert!(world.words() <= rounds * most, "{} words", world.words());
}

#[test]
fn a_node_that_joins_gets_the_matrix_about_once() {
    let nodes = 30;
    let mut world = World::booted(nodes, 1, FAIR);
    world.mesh(|_, b| b < nodes - 1);
    world.run(ms(3000));
    (world.bytes, world.weigh) = (0, true);
    world.mesh(|_, _| true);
    world.run(ms(1000));
    assert_eq!(world.agreed(), Ok(()));
    // 30 rows of 30 cells of 20 bytes, the joiner's links at both ends, 60 digests of 30 marks.
    assert!(world.bytes < 4 * 30 * 30 * 20 + 60 * 30 * 20 * 3, "{} bytes", world.bytes);
}

/// One of them forges the row of another: no more than those that cannot ask it are deceived, and
/// not for long.
#[test]
fn a_forged_row_deceives_nobody() {
    let mut world = World::booted(3, 1, FAIR);
    world.mesh(|a, b| (a, b) != (0, 1));
    world.run(ms(3000));
    let genuine = row("n000@h", 1, 1_000_000, &[("n009@h", online())]);
    let seal = |certificate: &NodeName| {
        let mut maker = Toy(certificate.clone());
        table::sealed_by::<Links>(genuine.clone(), &mut maker).seal
    };
    for seal in [None, seal(&node(2)), row("n000@h", 1, 1_000_001, &[]).seal] {
        let (forged, mut out) = (Row { seal, ..genuine.clone() }, Vec::new());
        world.act(1, |machine, moment, _| {
            let word = Word::Rows(vec![forged]);
            machine.handle(Input::Received(node(2), word), moment.now, &mut out);
        });
        let row = world.nodes[1].as_ref().and_then(|n| n.row_of(&node(0))).expect("by n002");
        assert!(row.version < genuine.version);
        world.now += Duration::from_secs(61); // of one mark, one is looked at in a minute
        assert_eq!(out, [Output::Charge(node(2), "unproven row")]);
    }
}

#[test]
fn what_an_origin_does_not_know_of_its_row_is_overruled_by_it() {
    for seed in 0..20 {
        let mut world = World::booted(6, seed, FAIR);
        world.mesh(|a, b| (a, b) != (0, 1));
        world.run(ms(3000));
        let forged = row("n000@h", 1, 1_000_000, &[("n009@h", online())]);
        for at in 1..5 {
            world.input(at, Input::Received(node(5), Word::Rows(vec![forged.clone()])));
        }
        let deceived = |world: &World, at: usize| {
            let row = world.nodes[at].as_ref().and_then(|n| n.row_of(&node(0)));
            row.is_some_and(|row| row.cells().contains_key(&node(9)))
        };
        assert_eq!([1, 2, 3, 4].map(|at| deceived(&world, at)), [true, false, false, false]);
        world.agree_within(ms(2000));
        assert!(!deceived(&world, 1));
    }
}
