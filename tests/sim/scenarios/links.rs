//! How two nodes come to one link, and how it ends.

use std::ops::Range;

use rand::RngExt;

use xpando_node::internals::proto::event::{Event, Reason, Status};
use xpando_node::internals::proto::hello::Refusal;
use xpando_node::internals::proto::node::Incarnation;

use super::{seen, whole, whole_again};
use crate::invariants::{SILENT_DEATH, everybody_sees};
use crate::world::{Actor, Disk, Micros, Weather, World, ms, secs};

/// Every two that run are online with each other in their present lives, on one connection.
pub(super) fn meshed(world: &World) -> Result<(), String> {
    for a in world.running() {
        for b in world.running().filter(|b| *b != a) {
            let view = world.life(a).membership.peer(&world.nodes[b].name);
            let online = view.as_ref().is_some_and(|view| {
                view.status == Status::Online && view.incarnation == world.life(b).incarnation
            });
            let line = world.life(a).line(b);
            if !online || line.is_none() || line != world.life(b).line(a) {
                return Err(format!("n{a:03} sees n{b:03} as {view:?}, on {line:?}"));
            }
        }
    }
    Ok(())
}

/// Everybody sees that node as offline, for that reason.
pub(super) fn ended_as(world: &World, peer: usize, reason: Reason) -> Result<(), String> {
    for at in world.running().filter(|at| *at != peer) {
        let view = world.life(at).membership.peer(&world.nodes[peer].name);
        let ended = Some((Status::Offline, Some(reason)));
        if view.as_ref().map(|view| (view.status, view.reason)) != ended {
            return Err(format!("n{at:03} sees {view:?}"));
        }
    }
    Ok(())
}

fn check(world: &World, invariant: &str, holds: Result<(), String>) {
    if let Err(why) = holds {
        world.fail(invariant, &why);
    }
}

/// Nodes that run and have heard of nobody.
fn strangers(scenario: &'static str, seed: u64, count: usize, delay: Range<Micros>) -> World {
    let weather = Weather { delay, beacons: false, ..Weather::fair() };
    let mut world = World::new(scenario, seed, count, weather);
    for node in 0..count {
        world.nodes[node].seeds.clear();
        world.boot(node, Disk::Kept);
    }
    world
}

/// Two nodes dial each other, sooner or later: one link comes of it, and it stays.
pub(crate) fn crossed(scenario: &'static str, seed: u64) {
    let slowest = ms([2, 20, 200, 1500][seed as usize % 4]);
    let mut world = strangers(scenario, seed, 2, 0..slowest);
    let pause = world.random(0..slowest * 3);
    let (first, by_address) = (world.rng.random_range(0..2), world.rng.random_bool(0.3));
    for node in [first, 1 - first] {
        if by_address {
            world.join_at(node, 1 - node);
        } else {
            world.meet(node, 1 - node);
        }
        world.run(pause);
    }
    world.run_until("crossed_dials_end_in_one_link", secs(60), meshed);
    let before = world.gaps();
    world.run(secs(60));
    check(&world, "crossed_dials_end_in_one_link", meshed(&world));
    if world.gaps() != before || world.closed != 0 {
        world.fail("crossed_dials_end_in_one_link", "a link was lost or closed");
    }
}

/// Two nodes dial each other in the same moment: nobody waits for anything but the network.
pub(crate) fn crossed_evenly(scenario: &'static str, seed: u64) {
    let mut world = strangers(scenario, seed, 2, ms(9)..ms(10));
    world.meet(0, 1);
    world.meet(1, 0);
    world.run_until("crossed_dials_are_settled_without_a_wait", ms(80), meshed);
}

/// All know one, which introduces them to each other: before its next round it tells each that is linked.
pub(crate) fn one_seed(scenario: &'static str, seed: u64) {
    let mut world = strangers(scenario, seed, 5, Weather::fair().delay);
    (1..5).for_each(|node| world.join_at(node, 0));
    world.run_until("one_seed_is_enough", secs(3), meshed);
    let before = world.gaps();
    world.run(secs(60));
    if world.gaps() != before {
        world.fail("one_seed_is_enough", "the mesh flaps");
    }
}

/// A host loses power and its node comes back at once, elsewhere, before anybody has missed it.
pub(crate) fn stale_session(scenario: &'static str, seed: u64) {
    let invariant = "stale_session_is_replaced_at_once";
    let mut world = whole(scenario, seed, 3);
    world.keep_log();
    world.weather.beacons = false; // its first one would end the session
    world.crash(1, true);
    world.move_port(1);
    world.boot(1, Disk::Kept);
    world.run_until(invariant, ms(500), meshed);
    let (peer, incarnation) = (world.nodes[1].name.clone(), Incarnation(2));
    let replaced = Event::LinkReplaced { peer: peer.clone(), incarnation };
    for node in [0, 2] {
        let view = world.life(node).membership.peer(&peer).expect("it is online");
        if view.address != Some(world.nodes[1].address) {
            world.fail(invariant, &format!("{view:?}"));
        }
        if !world.announced_by(node).any(|event| *event == replaced) {
            world.fail(invariant, &format!("n{node:03} does not announce it"));
        }
    }
    world.run(secs(60));
    check(&world, invariant, meshed(&world)); // the end of the dead session hurts nobody
}

/// The same, with the disk of before its last life: while that is linked, the node is refused and learns why.
pub(crate) fn rolled_back(scenario: &'static str, seed: u64) {
    let mut world = whole(scenario, seed, 2);
    world.keep_log();
    world.crash(1, true);
    world.boot(1, Disk::Stale);
    let linked = Some(world.nodes[1].address);
    let refusal = Refusal::Stale { known: Incarnation(1), linked };
    let refused = Event::RefusedBy { peer: world.nodes[0].name.clone(), refusal };
    let is_refused = |event: &Event| matches!(event, Event::RefusedBy { .. });
    let learns = |world: &World| {
        let learnt = world.announced_by(1).any(is_refused).then_some(());
        learnt.ok_or_else(|| format!("{:?}", world.announced_by(1).last()))
    };
    world.run_until("rolled_back_node_learns_why", ms(100), learns);
    let learnt = world.announced_by(1).find(|event| is_refused(event));
    // A reset of the dead session may come at any time: then it is linked no more.
    let lost = |event: &Event| matches!(event, Event::LinkLost { .. });
    if !world.announced_by(0).any(lost) {
        let stays = learnt == Some(&refused) && world.life(1).incarnation == Incarnation(1);
        if !stays {
            world.fail("rolled_back_node_stays_out", &format!("{learnt:?}"));
        }
        check(&world, "rolled_back_node_stays_out", seen(&world, 0, 1, Status::Online));
    }
    world.run_until("rolled_back_node_rises", secs(60), meshed);
    rose_to(&world, 1, 2);
}

/// A node that lost its disk goes on above its last life, once, no matter how many tell it of that.
pub(crate) fn lost_disk(scenario: &'static str, seed: u64) {
    let mut world = whole(scenario, seed, 3);
    for _ in 0..4 {
        world.crash(1, false);
        world.boot(1, Disk::Kept);
    }
    world.run_until("restarted_node_is_linked", secs(60), meshed);
    world.crash(1, false);
    world.run(ms(100));
    world.keep_log();
    world.boot(1, Disk::Lost);
    world.run_until("lost_disk_rises", secs(60), meshed);
    rose_to(&world, 1, 6);
    let raised = |event: &&Event| matches!(event, Event::IncarnationRaised { .. });
    let raised: Vec<_> = world.announced_by(1).filter(raised).collect();
    if raised != [&Event::IncarnationRaised { to: Incarnation(6) }] {
        world.fail("lost_disk_rises_once", &format!("{raised:?}"));
    }
}

/// A node goes on in that life, and its disk holds it.
fn rose_to(world: &World, node: usize, life: u64) {
    let (now, stored) = (world.life(node).incarnation, world.nodes[node].counters.last().copied());
    if (now, stored) != (Incarnation(life), Some(life)) {
        world.fail("rises_above_its_last_life", &format!("{now}, stored {stored:?}"));
    }
}

/// A node says goodbye: all know at once that it left, and that stays so until it is back.
pub(crate) fn goodbye(scenario: &'static str, seed: u64) {
    let mut world = whole(scenario, seed, 5);
    let node = world.random(0..5) as usize;
    world.stop(node);
    let left = |world: &World| ended_as(world, node, Reason::Left);
    world.run_until("goodbye_is_known_at_once", ms(30), left);
    let drain = world.random(0..secs(2));
    world.run(drain);
    world.crash(node, false);
    world.run(secs(60));
    check(&world, "who_left_stays_away", left(&world));
    world.boot(node, Disk::Kept);
    world.run_until("one_that_is_back_is_linked_at_once", ms(100), meshed);
    whole_again(&mut world);
}

/// A dial into nothing takes its time; once somebody answers, all is well.
pub(crate) fn cut_from_the_start(scenario: &'static str, seed: u64) {
    let mut world = strangers(scenario, seed, 2, ms(1)..ms(5));
    world.cut_both(0, 1);
    world.meet(0, 1);
    world.run(ms(4900));
    check(&world, "dial_into_nothing_takes_its_time", seen(&world, 0, 1, Status::Connecting));
    world.run(ms(200));
    let view = world.life(0).membership.peer(&world.nodes[1].name);
    if view.as_ref().and_then(|view| view.reason) != Some(Reason::Unreachable) {
        world.fail("dial_into_nothing_is_unreachable", &format!("{view:?}"));
    }
    world.heal_all();
    world.run_until("cut_mends_without_help", secs(10), meshed);
}

/// Two of three cannot reach each other from the start: each shows the other all the same, which the third knows.
pub(crate) fn cut_from_one_another(scenario: &'static str, seed: u64) {
    let mut world = strangers(scenario, seed, 3, ms(1)..ms(5));
    world.cut_both(0, 2);
    [(0, 1), (2, 1)].into_iter().for_each(|(node, other)| world.meet(node, other));
    world.run_until("what_is_out_of_reach_is_shown", secs(60), |world| {
        seen(world, 0, 2, Status::Offline).and(seen(world, 2, 0, Status::Offline))
    });
    world.heal_all();
    world.run_until("cut_mends_without_help", secs(40), meshed);
}

/// A node stops while it shakes hands with others: they are rid of it, and nothing of it is left.
pub(crate) fn stopped_midway(scenario: &'static str, seed: u64) {
    let mut world = strangers(scenario, seed, 3, ms(5)..ms(9));
    [(0, 1), (2, 0), (1, 2)].into_iter().for_each(|(node, other)| world.meet(node, other));
    let pause = world.random(0..ms(60));
    world.run(pause);
    world.stop(0);
    world.run(secs(20));
    let ends = world.life(0).ends();
    if ends != 0 {
        world.fail("stop_leaves_nothing_behind", &format!("{ends} attempts or links"));
    }
    for at in [1, 2] {
        let view = world.life(at).membership.peer(&world.nodes[0].name);
        if view.as_ref().is_some_and(|view| view.status != Status::Offline) {
            world.fail("stop_leaves_nothing_behind", &format!("n{at:03} sees {view:?}"));
        }
    }
    check(&world, "others_are_undisturbed", seen(&world, 1, 2, Status::Online));
}

/// Link starts again when a host has just lost power: who was linked is looked for, and that is announced.
pub(crate) fn link_and_power(scenario: &'static str, seed: u64) {
    let mut world = whole(scenario, seed, 5);
    let [node, dead] = [0, 1].map(|n| (seed as usize + n) % 5);
    world.crash(dead, true);
    world.keep_log();
    world.restart(node, Actor::Link);
    world.run(secs(1));
    let peer = world.nodes[dead].name.clone();
    let lost = |event: &Event| matches!(event, Event::LinkLost { peer: of, .. } if *of == peer);
    if !world.announced_by(node).any(lost) {
        world.fail("lost_links_are_announced", &format!("n{node:03} does not of {peer}"));
    }
    check(&world, "lost_links_are_announced", seen(&world, node, dead, Status::Connecting));
    let offline = |world: &World| everybody_sees(world, dead, |s, _| s == Status::Offline);
    world.run_until("silent_peer_is_offline_within_ten_seconds", SILENT_DEATH, offline);
    world.boot(dead, Disk::Kept);
    whole_again(&mut world);
}
