//! A few members lie, about everybody and to everybody, from the start to the end: those that do not lie form a mesh, keep
//! it, see each other as they are, and see who of them dies.

use rand::RngExt;
use rand::seq::SliceRandom;

use super::{FORMED, HEALED, WRITTEN, weather_of};
use crate::invariants::{
    HEARSAY, ROUND, SILENT_DEATH, disks_hold_what_is_shown, innocents_are_well, innocents_see,
};
use crate::world::{Disk, Weather, World, secs};
use xpando_node::internals::proto::event::Status;

/// Faults of all kinds and one liar.
pub(crate) fn liar_in_random_weather(scenario: &'static str, seed: u64, nodes: usize) {
    let mut world = World::new(scenario, seed, nodes, Weather::fair());
    let liar = world.rng.random_range(0..nodes);
    world.lie_from_now_on([liar]);
    let mut world = weather_of(world, super::FAULTS);
    world.run_until("all_is_well", HEALED, innocents_are_well);
    world.run_until("disks_hold_what_is_shown", WRITTEN, disks_hold_what_is_shown);
    if world.lies() == 0 {
        world.fail("sim", "nobody lied");
    }
}

/// Three of fifty lie. Of the others one dies without a word, one is killed, and both come back.
pub(crate) fn liars_among_many(scenario: &'static str, seed: u64, nodes: usize) {
    let mut world = World::new(scenario, seed, nodes, Weather::fair());
    let mut all: Vec<usize> = (0..nodes).collect();
    all.shuffle(&mut world.rng);
    let liars = (nodes * 3 / 50).max(1);
    world.lie_from_now_on(all.drain(..liars));
    for node in 0..nodes {
        let pause = world.random(0..secs(1) / nodes as u64);
        world.run(pause);
        world.boot(node, Disk::Kept);
    }
    world.run_until("all_is_well", FORMED + secs(nodes as u64 / 10), innocents_are_well);
    for (number, node) in all.iter().take(10).enumerate() {
        world.join(*node, number % 2, "k");
    }
    world.run(secs(10));
    let (silent, killed) = (all[0], all[1]);
    world.crash(silent, true);
    let offline = |world: &World| innocents_see(world, silent, |status| status == Status::Offline);
    let limit = SILENT_DEATH + HEARSAY + ROUND;
    world.run_until("silent_peer_is_offline_in_time", limit, offline);
    world.crash(killed, false);
    world.run(secs(5));
    for node in [silent, killed] {
        world.boot(node, Disk::Kept);
    }
    world.run_until("all_is_well", HEALED, innocents_are_well);
    let before = world.gaps();
    world.run(secs(20));
    if world.gaps() != before {
        world.fail("peace_costs_no_link", "a link between innocent nodes was lost");
    }
}
