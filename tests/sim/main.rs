//! Many nodes in one thread: the machines that production runs, in a seeded world (see `world`).
//!
//! A test is a scenario and a range of seeds. A failure prints the command that replays its seed.
//! `SIM_SEED=N` runs one seed, `SIM_SEEDS=FIRST..LAST` a range, `SIM_TRACE=1` shows everything, `SIM_NODES=N` says of how many
//! nodes those scenarios are that are of many.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "a test that cannot go on ends here, and says what it saw; it looks for what it is about"
)]

mod invariants;
mod scenarios;
#[path = "../kit/seals.rs"]
mod seals;
mod world;

use std::env;
use std::ops::Range;

use scenarios::{
    actors, adaptation, all_paused, clocks, crossed, crossed_evenly, cut_from_one_another,
    cut_from_the_start, cut_pairs, flapping, forgotten, forgotten_alive, formation, foul_network,
    goodbye, liar_in_random_weather, liars_among_many, link_and_peer, link_and_power, lost_disk,
    many, one_seed, pause, power_loss, random_weather, restart, rolled_back, split, stale_session,
    stopped_midway, the_same_run, weather_and_peace,
};
use world::Disk;
use xpando_node::internals::proto::node::{Credential, KeyId, NodeName};
use xpando_node::internals::proto::seal::{Seal, Seals};

/// The seeds of a test, or those that the environment asks for.
fn seeds(usual: Range<u64>, run: impl Fn(u64)) {
    let number = |text: &str| text.parse::<u64>().expect("seeds are numbers");
    let asked = env::var("SIM_SEED").map(|one| number(&one)..number(&one) + 1);
    let range = env::var("SIM_SEEDS").map(|range| {
        let (first, last) = range.split_once("..").expect("SIM_SEEDS=FIRST..LAST");
        number(first)..number(last)
    });
    asked.or(range).unwrap_or(usual).for_each(run);
}

/// One test: a scenario that takes its own name, for the command that replays it, and a seed.
macro_rules! scenario {
    ($name:ident, $seeds:expr, $run:expr) => {
        #[test]
        fn $name() {
            let run: fn(&'static str, u64) = $run;
            seeds($seeds, |seed| run(stringify!($name), seed));
        }
    };
}

scenario!(random_weather_of_3, 0..450, |name, seed| {
    random_weather(name, seed, 3);
});
scenario!(random_weather_of_5, 0..450, |name, seed| {
    random_weather(name, seed, 5);
});
scenario!(random_weather_of_7, 0..200, |name, seed| {
    random_weather(name, seed, 7);
});
scenario!(random_weather_of_9, 0..100, |name, seed| {
    random_weather(name, seed, 9);
});
scenario!(two_in_random_weather_and_then_peace, 0..40, |name, seed| {
    weather_and_peace(name, seed, 2);
});
scenario!(twelve_in_random_weather_and_then_peace, 0..3, |name, seed| {
    weather_and_peace(name, seed, 12);
});
scenario!(one_seed_is_one_run, 0..10, the_same_run);

scenario!(crossed_dials_end_in_one_link_that_stays, 0..80, crossed);
scenario!(crossed_dials_are_settled_without_a_wait, 0..40, crossed_evenly);
scenario!(five_that_know_one_reach_a_full_mesh, 0..5, one_seed);
scenario!(restarted_node_replaces_its_stale_session, 0..5, stale_session);
scenario!(rolled_back_node_stays_out_and_then_rises, 0..10, rolled_back);
scenario!(lost_disk_rises_above_all_earlier_lives, 0..5, lost_disk);
scenario!(node_that_leaves_is_welcome_again, 0..5, goodbye);
scenario!(cut_from_the_start_is_unreachable, 0..4, cut_from_the_start);
scenario!(cut_from_one_another_is_shown, 0..20, cut_from_one_another);
scenario!(stop_midway_leaves_nothing_behind, 0..40, stopped_midway);
scenario!(link_starts_again_while_a_host_loses_power, 0..4, link_and_power);

scenario!(fifty_at_rest, 0..3, |name, seed| formation(name, seed, 50));
scenario!(five_form_at_once_and_then_rest, 0..10, |name, seed| formation(name, seed, 5));
scenario!(every_split_of_five_heals, 1..16, |name, seed| split(name, seed, seed as u32 % 15 + 1));
scenario!(one_way_cut_shows_on_its_pair_alone, 0..10, |name, seed| {
    cut_pairs(name, seed, &[(1, 3)], false);
});
scenario!(partial_partition_shows_on_its_pairs_alone, 0..10, |name, seed| {
    cut_pairs(name, seed, &[(0, 1), (2, 3), (0, 4)], true);
});
scenario!(pause_of_three_seconds_harms_nobody, 0..10, |name, seed| pause(name, seed, 3));
scenario!(pause_of_thirty_seconds_is_an_absence, 0..10, |name, seed| pause(name, seed, 30));
scenario!(all_paused_at_once, 0..10, all_paused);
scenario!(wrong_clocks_harm_nobody, 0..10, clocks);
scenario!(slow_and_lossy_harms_nobody, 0..10, foul_network);
scenario!(restart_with_its_disk, 0..10, |name, seed| restart(name, seed, Disk::Kept));
scenario!(restart_with_stale_disk, 0..10, |name, seed| restart(name, seed, Disk::Stale));
scenario!(restart_with_lost_disk, 0..10, |name, seed| restart(name, seed, Disk::Lost));
scenario!(power_loss_is_known_in_ten_seconds, 0..20, power_loss);
scenario!(every_actor_starts_again, 0..10, actors);
scenario!(link_starts_again_while_a_peer_dies, 0..10, link_and_peer);
scenario!(forgotten_nodes_stay_forgotten, 0..10, forgotten);
scenario!(forgotten_nodes_that_live_come_back, 0..10, forgotten_alive);
scenario!(doubt_adapts_to_jitter, 0..5, |name, seed| adaptation(name, seed, 5));
scenario!(doubt_adapts_above_twelve_peers_too, 0..3, |name, seed| adaptation(name, seed, 20));
scenario!(flapping_link, 0..10, flapping);

scenario!(fifty_nodes, 0..10, |name, seed| many(name, seed, 50, 20));
scenario!(hundreds_of_nodes, 0..1, |name, seed| many(name, seed, nodes(120), 3));

scenario!(one_of_five_lies, 80..120, |name, seed| liar_in_random_weather(name, seed, 5));
// Of fifty three. What fifty take is too much for each change.
scenario!(some_of_many_lie, 0..3, |name, seed| liars_among_many(name, seed, nodes(20)));

/// How many are simulated, `usual` where none is told: what they take grows with the cube of their number.
fn nodes(usual: usize) -> usize {
    env::var("SIM_NODES").map_or(usual, |nodes| nodes.parse().expect("a number of nodes"))
}
