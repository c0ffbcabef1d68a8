//! What is lived through.

use std::ops::Range;
use std::time::Duration;

use rand::RngExt;

use xpando_node::internals::proto::event::{Reason, Status};

use crate::invariants::{
    HEARSAY, SILENT_DEATH, all_is_well, disks_hold_what_is_shown, everybody_sees, is_forgotten,
    mesh_is_whole, nodes_agree, presences_agree, quiet_traffic_is_bounded, the_dead_are_offline,
};
use crate::world::{Actor, Disk, Weather, World, ms, secs};

mod liars;
mod links;
pub(crate) use liars::{liar_in_random_weather, liars_among_many};
pub(crate) use links::{
    crossed, crossed_evenly, cut_from_one_another, cut_from_the_start, goodbye, link_and_power,
    lost_disk, one_seed, rolled_back, stale_session, stopped_midway,
};
use links::{ended_as, meshed};

/// Nodes that start together are whole within this in fair weather: a beacon at once, a dial, and
/// for a crossed or a full one the next.
const FORMED: u64 = secs(5);
/// After the start of an actor everything is whole within this: a few rounds of digests.
const MENDED: u64 = secs(20);
/// After the last fault everything is whole within this: the longest backoff, dials that hang, what
/// a cut held back, and a round of digests.
const HEALED: u64 = secs(75);
/// What is shown is written within this: a failed write is tried again after 5 s.
const WRITTEN: u64 = secs(6);

/// Kinds of faults; one more is an error of a failure detector.
const FAULTS: u32 = 18;

/// Faults of all kinds for a while, then quiet, then everything is whole. Returns the run's hash.
pub(crate) fn random_weather(scenario: &'static str, seed: u64, nodes: usize) -> u64 {
    weather(scenario, seed, nodes, FAULTS).trace.hash()
}

/// Likewise, and then no link is lost in peace.
pub(crate) fn weather_and_peace(scenario: &'static str, seed: u64, nodes: usize) {
    let mut world = weather(scenario, seed, nodes, FAULTS + 1);
    let before = world.gaps();
    world.run(secs(20));
    if world.gaps() != before {
        world.fail("peace_costs_no_link", "a link was lost");
    }
    if let Err(why) = all_is_well(&world) {
        world.fail("all_stays_well", &why);
    }
}

fn weather(scenario: &'static str, seed: u64, nodes: usize, kinds: u32) -> World {
    let world = World::new(scenario, seed, nodes, Weather::fair());
    let mut world = weather_of(world, kinds);
    world.run_until("all_is_well", HEALED, all_is_well);
    world.run_until("disks_hold_what_is_shown", WRITTEN, disks_hold_what_is_shown);
    world
}

/// Faults of all kinds for a while, and then everything is mended.
fn weather_of(mut world: World, kinds: u32) -> World {
    let (seed, nodes) = (world.seed, world.nodes.len());
    world.weather.delay = [200..ms(3), ms(5)..ms(40), ms(150)..ms(250)][seed as usize % 3].clone();
    world.weather.loss = [0.0, 0.0, 0.05, 0.2][seed as usize / 3 % 4];
    world.weather.twice = [0.0, 0.1][seed as usize / 12 % 2];
    world.weather.beacons = !seed.is_multiple_of(5);
    world.weather.full = [0.0, 0.2][seed as usize / 24 % 2];
    for node in 0..nodes {
        world.nodes[node].clock.offset = world.rng.random_range(0..3_600_000_000_000);
        world.nodes[node].clock.rate = world.rng.random_range(-10_000..=10_000);
        world.nodes[node].clock.wall = world.rng.random_range(-60_000..=60_000);
        let pause = world.random(0..secs(2));
        world.run(pause);
        world.boot(node, Disk::Kept);
    }
    let faults = world.rng.random_range(3..12);
    for _ in 0..faults {
        let pause = world.random(0..secs(8));
        world.run(pause);
        come_and_go(&mut world);
        fault(&mut world, kinds);
    }
    let pause = world.random(0..secs(20));
    world.run(pause);
    quiet(&mut world);
    world
}

/// Everything is mended.
fn quiet(world: &mut World) {
    world.note(0, || "from now on it is quiet".into());
    world.heal_all();
    for node in 0..world.nodes.len() {
        if world.is_up(node) {
            world.resume(node);
        } else {
            come_back(world, node);
        }
    }
    (world.weather.loss, world.weather.full) = (0.0, 0.0);
}

/// Clients come and go.
fn come_and_go(world: &mut World) {
    for node in world.running() {
        if world.life(node).paused {
            continue;
        }
        match world.rng.random_range(0..4) {
            0 | 1 => {
                let key = format!("k{}", world.rng.random_range(0..3));
                let topic = world.rng.random_range(0..2);
                world.join(node, topic, &key);
            }
            2 => world.part(node),
            _ => {}
        }
    }
}

fn fault(world: &mut World, kinds: u32) {
    let nodes = world.nodes.len();
    let node = world.rng.random_range(0..nodes);
    let other = (node + world.rng.random_range(1..nodes)) % nodes;
    let kind = world.rng.random_range(0..kinds);
    if !world.is_up(node) {
        return come_back(world, node);
    }
    match kind {
        0..3 => {
            let silent = world.rng.random_bool(0.4);
            world.crash(node, silent);
            if world.rng.random_bool(0.4) {
                come_back(world, node);
            }
        }
        3 if !world.life(node).paused => world.leave(node),
        4..6 => world.cut_both(node, other),
        6 => world.cut(node, other),
        7..9 => world.heal_all(),
        9..11 => {
            world.pause(node);
            let time = world.random(ms(100)..secs(20));
            world.run(time);
            world.resume(node);
        }
        11 => world.pause(node),
        12 => {
            let sides = world.rng.random_range(1..(1_u32 << nodes) - 1);
            world.split(|node| sides >> node & 1 == 1);
        }
        13..16 if !world.life(node).paused => {
            let actor = world.rng.random_range(0..Actor::ALL.len());
            world.restart(node, Actor::ALL[actor]);
        }
        16 if !world.life(node).paused => drop(world.forget(node, other)),
        FAULTS if !world.life(node).paused => world.give_up(node, other),
        _ => {
            let millis = world.rng.random_range(-90_000..90_000);
            world.jump(node, millis);
            (0..nodes).for_each(|node| world.resume(node));
        }
    }
}

fn come_back(world: &mut World, node: usize) {
    let disk = match world.rng.random_range(0..6) {
        0 => Disk::Lost,
        1 => Disk::Stale,
        _ => Disk::Kept,
    };
    // A seed stays where it is: what else is it good for?
    if node >= 2 && world.rng.random_bool(0.2) {
        world.move_port(node);
    }
    world.boot(node, disk);
}

/// One seed, one run.
pub(crate) fn the_same_run(scenario: &'static str, seed: u64) {
    let run = || random_weather(scenario, seed, 4);
    let (once, again) = (run(), run());
    assert_eq!(once, again, "SIM_SEED={seed}: two runs of one seed differ");
}

/// Nodes that have started and are whole.
fn whole(scenario: &'static str, seed: u64, nodes: usize) -> World {
    let mut world = World::started(scenario, seed, nodes, Weather::fair());
    world.run_until("all_is_well", FORMED, all_is_well);
    for node in 0..nodes {
        world.join(node, node % 2, &format!("k{}", node % 3));
    }
    let settle = secs(10) + world.random(0..secs(2));
    world.run(settle);
    world
}

fn whole_again(world: &mut World) {
    world.run_until("all_is_well", HEALED, all_is_well);
}

/// Nodes start at once, are whole soon after, and then send little.
pub(crate) fn formation(scenario: &'static str, seed: u64, nodes: usize) {
    let mut world = whole(scenario, seed, nodes);
    quiet_traffic_is_bounded(&mut world, secs(60));
}

/// Every two-way split: each side sees all of the other as offline and agrees; then all heal.
pub(crate) fn split(scenario: &'static str, seed: u64, sides: u32) {
    let mut world = whole(scenario, seed, 5);
    let side = |node: usize| sides >> node & 1 == 1;
    world.split(side);
    let cut_off = |world: &World| {
        for way in [true, false] {
            let nodes: Vec<usize> = world.running().filter(|at| side(*at) == way).collect();
            for at in &nodes {
                for other in world.running().filter(|other| side(*other) != way) {
                    seen(world, *at, other, Status::Offline)?;
                }
            }
            mesh_is_whole(world, &nodes)?;
            nodes_agree(world, &nodes)?;
            presences_agree(world, &nodes)?;
        }
        Ok(())
    };
    world.run_until("split_is_seen", SILENT_DEATH + secs(1), cut_off);
    let pause = world.random(0..secs(30));
    world.run(pause);
    world.heal_all();
    whole_again(&mut world);
}

/// How one node sees another.
fn seen(world: &World, at: usize, peer: usize, status: Status) -> Result<(), String> {
    let view = world.life(at).membership.peer(&world.nodes[peer].name);
    match view {
        Some(view) if view.status == status => Ok(()),
        view => Err(format!("n{at:03} sees n{peer:03} as {view:?}")),
    }
}

/// Pairs are cut off from each other, in one direction or both: that shows on their edges, in
/// everybody's matrix, and on no other.
pub(crate) fn cut_pairs(scenario: &'static str, seed: u64, pairs: &[(usize, usize)], both: bool) {
    let mut world = whole(scenario, seed, 5);
    for (from, to) in pairs {
        world.cut(*from, *to);
        if both {
            world.cut(*to, *from);
        }
    }
    let hit = |a, b| pairs.contains(&(a, b)) || pairs.contains(&(b, a));
    let shows = |world: &World| {
        let nodes: Vec<usize> = world.running().collect();
        for at in &nodes {
            for (from, to, cell) in world.life(*at).topology().matrix() {
                let cut = hit(world.index(from), world.index(to));
                if (cell.state == Status::Online) == cut || cell.suspect {
                    return Err(format!("n{at:03}: {from} sees {to} as {cell:?}"));
                }
            }
        }
        nodes_agree(world, &nodes)
    };
    world.run_until("cut_shows_on_its_edges_alone", secs(12), shows);
    for _ in 0..20 {
        world.run(secs(1));
        if let Err(why) = shows(&world) {
            // Dials go on: the state of the cut edges may differ for a moment, others never.
            let others = world.nodes.len() * (world.nodes.len() - 1) - 2 * pairs.len();
            let online = world.life(0).topology().matrix().filter(|c| c.2.state == Status::Online);
            if online.count() != others {
                world.fail("cut_shows_on_its_edges_alone", &why);
            }
        }
    }
    let unreachable = Some((Status::Offline, Some(Reason::Unreachable)));
    for (a, b) in pairs.iter().flat_map(|(a, b)| [(*a, *b), (*b, *a)]).filter(|_| both) {
        let view = world.life(a).membership.peer(&world.nodes[b].name);
        if view.as_ref().map(|view| (view.status, view.reason)) != unreachable {
            world.fail("cut_is_unreachable_on_both_sides", &format!("n{a:03} sees {view:?}"));
        }
    }
    world.heal_all();
    world.run_until("cut_mends_without_help", secs(35), meshed);
    whole_again(&mut world);
}

/// One node is stopped for a while. Not long: nobody gives anybody up. Long: it alone is offline.
pub(crate) fn pause(scenario: &'static str, seed: u64, seconds: u64) {
    let mut world = whole(scenario, seed, 5);
    world.pause(4);
    if seconds <= 3 {
        world.run(secs(seconds));
    } else {
        world.run(secs(6));
        let doubted = |_, suspect| suspect;
        if let Err(why) = everybody_sees(&world, 4, doubted) {
            world.fail("silent_peer_is_suspect_within_six_seconds", &why);
        }
        world.run(SILENT_DEATH - secs(6));
        let offline = |status, _| status == Status::Offline;
        if let Err(why) = everybody_sees(&world, 4, offline) {
            world.fail("silent_peer_is_offline_within_ten_seconds", &why);
        }
        world.run(secs(seconds) - SILENT_DEATH);
    }
    let before = world.gaps();
    world.resume(4);
    whole_again(&mut world);
    world.run(secs(20));
    if seconds <= 3 && world.gaps() != before {
        world.fail("short_pause_costs_no_link", "a link was lost");
    }
}

/// All are stopped at once, as a laptop is that sleeps: they go on as if nothing had been.
pub(crate) fn all_paused(scenario: &'static str, seed: u64) {
    let mut world = whole(scenario, seed, 5);
    (0..5).for_each(|node| world.pause(node));
    let time = world.random(secs(2)..secs(600));
    world.run(time);
    let before = world.gaps();
    for node in 0..5 {
        let stagger = world.random(0..ms(500));
        world.run(stagger);
        world.resume(node);
    }
    world.run(secs(30));
    if world.gaps() != before {
        world.fail("sleep_of_all_costs_no_link", "a link was lost");
    }
    whole_again(&mut world);
}

/// Clocks that are wrong: a wall clock that jumps, monotonic ones that are slow or fast.
pub(crate) fn clocks(scenario: &'static str, seed: u64) {
    let mut world = World::new(scenario, seed, 5, Weather::fair());
    for node in 0..5 {
        world.nodes[node].clock.rate = [-10_000, 0, 10_000][world.random(0..3) as usize];
        world.nodes[node].clock.offset = world.random(0..secs(3600)) * 1000;
        world.boot(node, Disk::Kept);
    }
    world.run_until("all_is_well", FORMED, all_is_well);
    let before = world.gaps();
    for _ in 0..4 {
        let (node, millis) = (world.random(0..5) as usize, world.random(0..7_200_000));
        world.jump(node, i64::try_from(millis).expect("small") - 3_600_000);
        world.run(secs(20));
    }
    if world.gaps() != before {
        world.fail("clocks_cost_no_link", "a link was lost");
    }
    whole_again(&mut world);
}

/// Messages that take 200 ± 50 ms, a fifth of them lost: slow, but nobody is given up while what is
/// sent arrives in bearable time.
pub(crate) fn foul_network(scenario: &'static str, seed: u64) {
    let mut world = World::started(scenario, seed, 5, Weather::fair());
    world.run_until("all_is_well", FORMED, all_is_well);
    (world.weather.delay, world.weather.loss) = (ms(150)..ms(250), 0.2);
    world.run(secs(120));
    world.weather.loss = 0.0;
    whole_again(&mut world);
}

/// A node is killed and comes back: known as dead at once, and in its new life soon after.
pub(crate) fn restart(scenario: &'static str, seed: u64, disk: Disk) {
    let mut world = whole(scenario, seed, 5);
    for _ in 0..3 {
        let node = world.random(0..5) as usize;
        world.crash(node, false);
        let crashed = |world: &World| everybody_sees(world, node, |s, _| s == Status::Offline);
        let refused = 3 * world.weather.delay.end + ms(2);
        world.run_until("crash_is_known_at_once", refused, crashed);
        if let Err(why) = ended_as(&world, node, Reason::Crashed) {
            world.fail("crash_is_known_as_one", &why);
        }
        let pause = world.random(0..secs(40));
        world.run(pause);
        world.boot(node, disk);
        if disk == Disk::Kept {
            world.run_until("one_that_is_back_is_linked_at_once", ms(100), meshed);
        }
        whole_again(&mut world);
        world.run(secs(2)); // one that dies sooner after its start is dialed with some patience
    }
}

/// Each actor starts again, on some node: of those above the links none costs a link, and all is well soon after.
pub(crate) fn actors(scenario: &'static str, seed: u64) {
    let mut world = whole(scenario, seed, 5);
    for actor in Actor::ALL {
        let node = world.random(0..5) as usize;
        let before = world.gaps();
        world.restart(node, actor);
        world.run_until("restart_of_an_actor_is_mended", MENDED, all_is_well);
        if actor > Actor::Link && world.gaps() != before {
            world.fail("restart_of_an_actor_costs_no_link", &format!("{actor:?}"));
        }
        let pause = world.random(0..secs(5));
        world.run(pause);
    }
}

/// Link starts again while a peer dies: nothing that is gone is shown as if it were there.
pub(crate) fn link_and_peer(scenario: &'static str, seed: u64) {
    let mut world = whole(scenario, seed, 5);
    let [node, dead] = [0, 1].map(|n| (seed as usize + n) % 5);
    world.join(dead, 0, "gone");
    world.run(secs(2));
    let actor = if world.random(0..2) == 0 { Actor::News } else { Actor::Link };
    world.restart(node, actor);
    world.crash(dead, false);
    let up: Vec<usize> = world.running().collect();
    let offline = |world: &World| everybody_sees(world, dead, |s, _| s == Status::Offline);
    world.run_until("silent_peer_is_offline_within_ten_seconds", SILENT_DEATH, offline);
    world.run_until("what_is_gone_is_not_shown", secs(2), |world| presences_agree(world, &up));
    world.boot(dead, Disk::Kept);
    whole_again(&mut world);
}

/// A dead node is forgotten, at one node, and so everywhere and for good, whatever starts again; until it lives again.
pub(crate) fn forgotten(scenario: &'static str, seed: u64) {
    let mut world = whole(scenario, seed, 5);
    let [gone, at, late] = [0, 1, 2].map(|n| (seed as usize + n) % 5);
    world.crash(gone, false);
    world.run(secs(12));
    world.crash(late, false);
    world.run(secs(2));
    if !world.forget(at, gone) {
        world.fail("forgotten_is_forgotten", "the operator may not");
    }
    let up: Vec<usize> = world.running().collect();
    let forgotten = |nodes: Vec<usize>| move |world: &World| is_forgotten(world, &nodes, gone);
    world.run_until("forgotten_is_forgotten", secs(1), forgotten(up));
    // One that was away learns of it; then nobody who starts again takes up what is gone.
    world.boot(late, Disk::Kept);
    let up: Vec<usize> = world.running().collect();
    let kept = |world: &World| {
        is_forgotten(world, &up, gone).and_then(|()| disks_hold_what_is_shown(world))
    };
    world.run_until("forgotten_is_forgotten", secs(20), kept);
    for step in 0..10 {
        let node = up[world.random(0..up.len() as u64) as usize];
        let actor = Actor::ALL[world.random(0..Actor::ALL.len() as u64) as usize];
        if step % 3 == 0 {
            world.crash(node, false);
            world.boot(node, Disk::Kept);
        } else {
            world.restart(node, actor);
        }
        for pause in [0, secs(5)] {
            world.run(pause);
            if let Err(why) = is_forgotten(&world, &up, gone) {
                world.fail("forgotten_stays_forgotten", &why);
            }
        }
    }
    world.boot(gone, Disk::Kept);
    whole_again(&mut world);
}

/// Two nodes that do not reach each other have each other forgotten, though both live: others know it better, and they
/// find each other by what others say alone.
pub(crate) fn forgotten_alive(scenario: &'static str, seed: u64) {
    let mut world = whole(scenario, seed, 5);
    world.weather.beacons = false;
    (0..5).for_each(|node| world.restart(node, Actor::Discovery));
    world.cut_both(3, 4);
    let apart =
        |world: &World| seen(world, 3, 4, Status::Offline).and(seen(world, 4, 3, Status::Offline));
    world.run_until("split_is_seen", SILENT_DEATH + secs(1), apart);
    let pause = world.random(0..secs(2));
    world.run(pause);
    if !world.forget(3, 4) || !world.forget(4, 3) {
        world.fail("forgotten_is_forgotten", "the operator may not");
    }
    let pause = world.random(0..secs(2));
    world.run(pause);
    world.heal_all();
    whole_again(&mut world);
}

/// A host loses power: everybody knows in ten seconds.
pub(crate) fn power_loss(scenario: &'static str, seed: u64) {
    let mut world = whole(scenario, seed, 5);
    let node = world.random(0..5) as usize;
    world.crash(node, true);
    let offline = |world: &World| everybody_sees(world, node, |s, _| s == Status::Offline);
    world.run_until("silent_peer_is_offline_within_ten_seconds", SILENT_DEATH, offline);
    let pause = world.random(0..secs(40));
    world.run(pause);
    world.boot(node, Disk::Kept);
    whole_again(&mut world);
}

/// A host loses power: on jittery links it is doubted later than on steady ones, and on both known in time.
pub(crate) fn adaptation(scenario: &'static str, seed: u64, nodes: usize) {
    let doubted_after = |delay: Range<u64>| {
        let mut world = whole(scenario, seed, nodes);
        world.weather.delay = delay;
        world.run(secs(60));
        let node = world.random(0..nodes as u64) as usize;
        world.crash(node, true);
        let offline = |world: &World| everybody_sees(world, node, |s, _| s == Status::Offline);
        let limit = if nodes > 13 { SILENT_DEATH + HEARSAY } else { SILENT_DEATH };
        world.run_until("silent_peer_is_offline_within_ten_seconds", limit, offline);
        let name = &world.nodes[node].name;
        let doubts = world.running().filter_map(|at| world.life(at).watched.doubted_after(name));
        // Those that only another node's doubt made look give it a second.
        doubts.filter(|it| it.as_secs() > 1).collect::<Vec<_>>()
    };
    let (steady, jittery) = (doubted_after(200..ms(3)), doubted_after(200..ms(250)));
    let watchers = if nodes > 13 { 9 } else { nodes - 1 };
    assert_eq!((steady.len(), jittery.len()), (watchers, watchers), "SIM_SEED={seed}");
    let within = |all: &[Duration], from, to| {
        let range = Duration::from_millis(from)..Duration::from_millis(to);
        assert!(
            all.iter().all(|it| range.contains(it)),
            "SIM_SEED={seed}: {all:?} not in {range:?}"
        );
    };
    within(&steady, 4100, 4200);
    within(&jittery, 4400, 5600);
}

/// A pair that is cut off and healed again and again, and everybody else is undisturbed.
pub(crate) fn flapping(scenario: &'static str, seed: u64) {
    let mut world = whole(scenario, seed, 5);
    for _ in 0..15 {
        world.cut_both(0, 1);
        let cut = world.random(ms(100)..secs(15));
        world.run(cut);
        world.heal_all();
        let healed = world.random(ms(100)..secs(15));
        world.run(healed);
    }
    whole_again(&mut world);
}

/// Many nodes form, some of them die while the others fall apart, and all come together again.
pub(crate) fn many(scenario: &'static str, seed: u64, nodes: usize, apart: usize) {
    let mut world = World::started(scenario, seed, nodes, Weather::fair());
    world.run_until("all_is_well", FORMED, all_is_well);
    for node in (0..nodes).step_by(nodes / 10) {
        world.join(node, node % 2, "k");
    }
    let small = nodes <= 100; // what a death costs grows with the cube of it
    world.run(if small { secs(10) } else { secs(1) });
    let first = world.random(0..nodes as u64) as usize;
    let side = |node: usize| (node + nodes - first) % nodes < apart;
    // Each on its own side, and some of those that watch it there as well.
    for (place, silent) in [(apart / 2, true), (nodes * 7 / 10, small), (nodes * 9 / 10, false)] {
        world.crash((first + place) % nodes, silent);
    }
    world.split(side);
    let known = |world: &World| {
        let up: Vec<usize> = world.running().collect();
        for way in [true, false] {
            let nodes: Vec<usize> = up.iter().copied().filter(|at| side(*at) == way).collect();
            the_dead_are_offline(world, &nodes)?;
        }
        for (a, b) in up.iter().flat_map(|a| up.iter().map(move |b| (*a, *b))) {
            if side(a) != side(b) {
                seen(world, a, b, Status::Offline)?;
            }
        }
        Ok(())
    };
    world.run_until("deaths_and_split_are_known", SILENT_DEATH + HEARSAY, known);
    world.heal_all();
    for node in 0..nodes {
        if !world.is_up(node) {
            world.boot(node, Disk::Kept);
        }
    }
    whole_again(&mut world);
}
