//! Weather: crashes, restarts with good and bad disks, leaves, cuts and heals, at random.
//!
//! Every event is checked by `rules`; at the end all faults are healed, and within three minutes
//! everybody is online with everybody and stays so.

use rand::RngExt;

use super::super::Input;
use super::world::{Disk, Weather, World, ms, name, secs};

/// Chaos for a minute or so, then peace.
fn live_through(nodes: usize, seed: u64) {
    let beacons = seed.is_multiple_of(3);
    let slowest = [5, 50, 400][usize::try_from(seed / 3 % 3).expect("small")];
    let weather = Weather { delay: ms(0)..ms(slowest), gossip: true, beacons };
    let mut world = World::new(nodes, seed, weather);
    for node in 0..nodes {
        // Two nodes that everybody asks, themselves included.
        let seeds: Vec<_> = (0..2).map(|seed| world.nodes[seed].address).collect();
        world.nodes[node].seeds.clone_from(&seeds);
        seeds.into_iter().for_each(|seed| world.input(node, Input::Seed(seed)));
    }
    let faults = world.rng.random_range(3..12);
    for _ in 0..faults {
        let pause = world.rng.random_range(ms(0)..secs(12));
        world.run(pause);
        fault(&mut world);
    }
    let pause = world.rng.random_range(ms(0)..secs(5));
    world.run(pause);
    world.heal_all();
    for node in 0..nodes {
        if world.nodes[node].life.is_none() {
            come_back(&mut world, node);
        }
    }
    world.run(secs(10)); // connections that a cut broke are noticed by then
    world.run_until(secs(170), |world| world.meshed().is_ok(), "everybody online with everybody");
    let since = world.now;
    world.run(secs(20));
    world.check(world.meshed().is_ok(), || format!("the mesh came apart: {:?}", world.meshed()));
    for node in 0..nodes {
        let lost = world
            .events(node, since)
            .into_iter()
            .find(|event| matches!(event, crate::proto::event::Event::LinkLost { .. }));
        world.check(lost.is_none(), || format!("n{node} lost a link in peace: {lost:?}"));
    }
}

fn fault(world: &mut World) {
    let nodes = world.nodes.len();
    let node = world.rng.random_range(0..nodes);
    let other = (node + world.rng.random_range(1..nodes)) % nodes;
    match (world.nodes[node].life.is_some(), world.rng.random_range(0..11)) {
        (false, _) => come_back(world, node),
        (true, 0..4) => {
            let silent = world.rng.random_bool(0.3);
            world.crash(node, silent);
            if world.rng.random_bool(0.5) {
                come_back(world, node);
            }
        }
        (true, 4) => {
            world.input(node, Input::Stop);
            let drain = world.rng.random_range(ms(0)..secs(2));
            world.run(drain);
            world.crash(node, false);
        }
        (true, 5..8) => world.cut(node, other),
        (true, 9) => world.input(node, Input::Silent(name(other))),
        (true, 8) => world.restart_machine(node),
        (true, _) => world.heal(node, other),
    }
}

fn come_back(world: &mut World, node: usize) {
    let disk = match world.rng.random_range(0..6) {
        0 => Disk::Lost,
        1 => Disk::RolledBack,
        _ => Disk::Kept,
    };
    world.boot(node, disk);
}

#[test]
fn two_nodes_survive_random_weather() {
    (0..200).for_each(|seed| live_through(2, seed));
}

#[test]
fn five_nodes_survive_random_weather() {
    (0..80).for_each(|seed| live_through(5, seed));
}

#[test]
fn twelve_nodes_survive_random_weather() {
    (0..24).for_each(|seed| live_through(12, seed));
}
