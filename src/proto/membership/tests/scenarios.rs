//! One story each, told by a few nodes in fair weather.

use std::time::{Duration, Instant};

use rand::RngExt;

use super::super::{Config, Input, Output};
use super::world::{Disk, Weather, World, address, ms, name, secs};
use crate::proto::event::{Event, Reason, Source, Status};
use crate::proto::frame::CloseReason;
use crate::proto::hello::Refusal;
use crate::proto::node::{Contact, Incarnation};

const ONLINE: (Status, Option<Reason>) = (Status::Online, None);

fn offline(reason: Reason) -> (Status, Option<Reason>) {
    (Status::Offline, Some(reason))
}

/// `node` hears where `peer` is, from a source that says nothing of lives.
fn hint(world: &mut World, node: usize, peer: usize) {
    let contact = Contact { incarnation: Incarnation(0), ..world.contact(peer) };
    world.input(node, Input::Hint(contact, Source::Remembered));
}

/// Nodes that are all linked with each other.
fn mesh(count: usize, seed: u64, weather: Weather) -> World {
    let mut world = World::new(count, seed, weather);
    for node in 0..count {
        (0..node).for_each(|peer| hint(&mut world, node, peer));
    }
    await_mesh(&mut world, secs(5));
    world
}

#[track_caller]
fn await_mesh(world: &mut World, limit: Duration) {
    world.run_until(limit, |world| world.meshed().is_ok(), "everybody online with everybody");
}

#[track_caller]
fn await_status(
    world: &mut World,
    limit: Duration,
    (node, peer): (usize, usize),
    status: (Status, Option<Reason>),
) {
    let what = format!("n{node} sees n{peer} as {status:?}");
    world.run_until(limit, |world| world.status(node, peer) == Some(status), &what);
}

fn ended(world: &World, since: Instant) -> Vec<&Event> {
    let ends = |e: &&Event| matches!(e, Event::LinkLost { .. } | Event::LinkReplaced { .. });
    let events = (0..world.nodes.len()).flat_map(|node| world.events(node, since));
    events.filter(ends).collect()
}

#[test]
fn a_hint_leads_to_a_link_in_order() {
    let mut world = World::new(2, 1, Weather::fair());
    let (peer, to) = (name(1), world.nodes[1].address);
    hint(&mut world, 0, 1);
    await_mesh(&mut world, ms(100));
    let incarnation = Incarnation(1);
    let (source, at) = (Source::Remembered, to);
    assert_eq!(
        world.events(0, world.start),
        [
            &Event::PeerDiscovered { peer: peer.clone(), address: to, source },
            &Event::PeerConnecting { peer: peer.clone() },
            &Event::PeerSyncing { peer: peer.clone(), incarnation, address: at },
            &Event::PeerOnline { peer, incarnation, address: at },
        ]
    );
    let (peer, to) = (name(0), world.nodes[0].address);
    assert_eq!(
        world.events(1, world.start),
        [
            &Event::PeerDiscovered { peer: peer.clone(), address: to, source: Source::Link },
            &Event::PeerSyncing { peer: peer.clone(), incarnation, address: to },
            &Event::PeerOnline { peer, incarnation, address: to },
        ]
    );
}

#[test]
fn a_seed_leads_to_a_link_and_is_left_alone_while_it_lasts() {
    let mut world = World::new(2, 2, Weather::fair());
    let seed = world.nodes[1].address;
    (0..3).for_each(|_| world.input(0, Input::Seed(seed)));
    await_mesh(&mut world, ms(100));
    world.run(secs(600));
    assert_eq!((world.dials(0, world.start), world.dials(1, world.start)), (1, 0));
}

#[test]
fn a_seed_that_nobody_answers_is_asked_again_and_reported_once() {
    let mut world = World::new(2, 3, Weather::fair());
    let seed = world.nodes[1].address;
    world.crash(1, false);
    world.input(0, Input::Seed(seed));
    world.run(secs(300));
    let failed = world.events(0, world.start);
    assert!(matches!(failed[..], [Event::DialFailed { peer: None, .. }]), "{failed:?}");
    let dials = world.dials(0, world.start);
    assert!((12..120).contains(&dials), "{dials} dials in 5 minutes");
    world.boot(1, Disk::Kept);
    await_mesh(&mut world, secs(31));
}

#[test]
fn a_seed_that_is_myself_is_named_once_and_dialed_no_more() {
    let mut world = World::new(1, 4, Weather::fair());
    let address = world.nodes[0].address;
    world.input(0, Input::Seed(address));
    world.run(secs(600));
    assert_eq!(world.events(0, world.start), [&Event::SeedIsMyself { address }]);
    assert_eq!((world.dials(0, world.start), world.machine(0).peers().count()), (1, 0));
}

#[test]
fn another_node_at_the_address_is_linked_as_itself() {
    let mut world = World::new(3, 5, Weather::fair());
    let contact = Contact { name: name(1), ..world.contact(2) };
    world.input(0, Input::Hint(contact, Source::Peer));
    await_status(&mut world, ms(100), (0, 2), ONLINE);
    assert_eq!(world.status(0, 1), Some(offline(Reason::Rejected)));
    assert_eq!(world.dials(0, world.start), 1, "the connection at hand is used");
    world.run(secs(120));
    assert_eq!(world.dials(0, world.start), 1, "the address is not tried again for n1");
    hint(&mut world, 0, 1);
    await_status(&mut world, ms(100), (0, 1), ONLINE);
}

#[test]
fn crossed_dials_end_in_one_link_that_stays() {
    for seed in 0..2500 {
        let slowest = [2, 20, 200, 1500][usize::try_from(seed % 4).expect("small")];
        let weather = Weather { delay: ms(0)..ms(slowest), ..Weather::fair() };
        let mut world = World::new(2, seed, weather);
        let pause = world.rng.random_range(ms(0)..ms(slowest) * 3);
        let (first, by_seed) = (world.rng.random_range(0..2), world.rng.random_bool(0.3));
        for node in [first, 1 - first] {
            if by_seed {
                let seed = world.nodes[1 - node].address;
                world.input(node, Input::Seed(seed));
            } else {
                hint(&mut world, node, 1 - node);
            }
            world.run(pause);
        }
        await_mesh(&mut world, secs(60));
        let ready = world.now;
        world.run(secs(60));
        world.check(world.meshed().is_ok(), || format!("{:?}", world.meshed()));
        world.check(ended(&world, ready).is_empty(), || format!("{:?}", ended(&world, ready)));
        let goodbyes = world.log.iter().any(|(_, _, o)| matches!(o, Output::Close(..)));
        world.check(!goodbyes, || "a link was closed".to_owned());
    }
}

#[test]
fn crossed_dials_are_settled_without_a_wait() {
    for seed in 0..200 {
        let mut world = World::new(2, seed, Weather { delay: ms(9)..ms(10), ..Weather::fair() });
        hint(&mut world, 0, 1);
        hint(&mut world, 1, 0);
        await_mesh(&mut world, ms(80));
    }
}

#[test]
fn five_nodes_that_know_one_reach_a_full_mesh() {
    for seed in 0..50 {
        let weather = Weather { gossip: true, ..Weather::fair() };
        let mut world = World::new(5, seed, weather);
        let seed = world.nodes[0].address;
        (1..5).for_each(|node| world.input(node, Input::Seed(seed)));
        await_mesh(&mut world, secs(30));
        let since = world.now;
        world.run(secs(60));
        world.check(ended(&world, since).is_empty(), || "the mesh flaps".to_owned());
    }
}

#[test]
fn a_restarted_node_replaces_its_stale_session_at_once() {
    for seed in 0..50 {
        let mut world = mesh(3, seed, Weather::fair());
        world.crash(1, true);
        world.nodes[1].address = address(2000);
        let since = world.now;
        world.boot(1, Disk::Kept);
        await_mesh(&mut world, ms(500));
        let incarnation = Incarnation(2);
        for node in [0, 2] {
            let view = world.view(node, 1).expect("known");
            world.check(view.address == Some(address(2000)), || format!("{view:?}"));
            let replaced = Event::LinkReplaced { peer: name(1), incarnation };
            world.check(world.events(node, since).contains(&&replaced), || "unsaid".to_owned());
        }
        world.run(secs(60));
        world.check(world.meshed().is_ok(), || "the dead session's end hurts the new".to_owned());
    }
}

#[test]
fn a_rolled_back_node_stays_out_while_its_other_life_is_linked_and_then_rises() {
    for seed in 0..50 {
        let mut world = mesh(2, seed, Weather::fair());
        world.crash(1, true);
        let since = world.now;
        world.boot(1, Disk::RolledBack);
        let linked = Some(world.nodes[1].address);
        let refusal = Refusal::Stale { known: Incarnation(1), linked };
        let told = Event::RefusedBy { peer: name(0), refusal };
        let heard = |world: &World| world.events(1, since).contains(&&told);
        world.run_until(ms(100), heard, "it is told why");
        assert_eq!(world.life(1).incarnation, Incarnation(1));
        assert_eq!(world.status(0, 1), Some(ONLINE), "the link that n0 believes in is kept");
        await_mesh(&mut world, secs(60));
        assert_eq!((world.life(1).incarnation, world.nodes[1].disk), (Incarnation(2), 2));
    }
}

#[test]
fn a_node_that_lost_its_data_rises_above_its_earlier_lives() {
    for seed in 0..50 {
        let mut world = mesh(3, seed, Weather::fair());
        for _ in 0..4 {
            world.crash(1, false);
            world.boot(1, Disk::Kept);
        }
        await_mesh(&mut world, secs(60));
        world.crash(1, false);
        world.run(ms(100));
        let since = world.now;
        world.boot(1, Disk::Lost);
        hint(&mut world, 1, 0);
        await_mesh(&mut world, secs(60));
        let to = Incarnation(6);
        assert_eq!((world.life(1).incarnation, world.nodes[1].disk), (to, 6));
        let raised = |e: &&&Event| matches!(e, Event::IncarnationRaised { .. });
        let raised: Vec<_> = world.events(1, since).into_iter().filter(|e| raised(&e)).collect();
        assert_eq!(raised, [&Event::IncarnationRaised { to }], "once, no matter who says so");
    }
}

#[test]
fn a_goodbye_is_offline_left_and_no_dial_until_a_later_life_is_heard_of() {
    let mut world = mesh(3, 10, Weather::fair());
    world.run(secs(40));
    world.input(1, Input::Stop);
    world.run(ms(10));
    world.crash(1, false);
    let since = world.now;
    assert_eq!(world.status(0, 1), Some(offline(Reason::Left)));
    assert_eq!(world.status(2, 1), Some(offline(Reason::Left)));
    let old = Contact { incarnation: Incarnation(1), ..world.contact(1) };
    for source in [Source::Beacon, Source::Peer, Source::Remembered, Source::Seed] {
        world.input(0, Input::Hint(old.clone(), source));
        hint(&mut world, 2, 1);
        world.run(secs(300));
    }
    assert_eq!((world.dials(0, since), world.dials(2, since)), (0, 0));
    assert_eq!(world.status(0, 1), Some(offline(Reason::Left)));
    world.nodes[1].disk = 1;
    world.crash(2, false);
    world.boot(1, Disk::Kept); // knows nobody: it is n0 that must dial
    let contact = world.contact(1);
    world.input(0, Input::Hint(contact, Source::Peer));
    await_status(&mut world, ms(100), (0, 1), ONLINE);
}

#[test]
fn a_node_that_left_is_welcome_when_it_comes_back_by_itself() {
    let mut world = mesh(2, 11, Weather::fair());
    world.input(1, Input::Stop);
    world.run(ms(10));
    world.crash(1, false);
    world.run(secs(60));
    world.boot(1, Disk::Kept);
    hint(&mut world, 1, 0);
    await_mesh(&mut world, ms(100));
}

#[test]
fn a_crash_is_offline_within_message_delays() {
    for seed in 0..100 {
        let mut world = mesh(5, seed, Weather::fair());
        world.run(secs(2));
        world.crash(3, false);
        let since = world.now;
        // The end of the stream, the dial, its refusal: three words of at most 5 ms each.
        world.run(ms(17));
        for node in [0, 1, 2, 4] {
            let status = world.status(node, 3);
            world.check(status == Some(offline(Reason::Crashed)), || format!("{status:?}"));
            let peer = name(3);
            let told = Event::PeerOffline { peer, reason: Reason::Crashed };
            world.check(world.events(node, since).contains(&&told), || "unsaid".to_owned());
        }
        world.boot(3, Disk::Kept);
        await_mesh(&mut world, ms(100));
    }
}

#[test]
fn a_dial_that_times_out_is_offline_unreachable() {
    let mut world = World::new(2, 12, Weather::fair());
    world.holes.insert(address(1001));
    hint(&mut world, 0, 1);
    world.run(ms(4900));
    assert_eq!(world.status(0, 1), Some((Status::Connecting, None)));
    world.run(ms(200));
    assert_eq!(world.status(0, 1), Some(offline(Reason::Unreachable)));
    world.heal_all();
    await_mesh(&mut world, secs(10));
}

#[test]
fn a_peer_never_met_whose_dial_is_refused_is_unreachable_not_crashed() {
    let mut world = World::new(2, 13, Weather::fair());
    world.crash(1, false);
    hint(&mut world, 0, 1);
    await_status(&mut world, ms(100), (0, 1), offline(Reason::Unreachable));
}

#[test]
fn a_cut_is_unreachable_on_both_sides_and_mends_without_help() {
    for seed in 0..50 {
        let mut world = mesh(3, seed, Weather::fair());
        world.run(secs(60));
        world.cut(0, 1);
        world.run(secs(10));
        world.check(world.status(0, 1) == Some(offline(Reason::Unreachable)), || "n0".to_owned());
        world.check(world.status(1, 0) == Some(offline(Reason::Unreachable)), || "n1".to_owned());
        world.check(world.status(2, 0) == Some(ONLINE), || "n2 is not concerned".to_owned());
        world.run(secs(120));
        world.heal(0, 1);
        await_mesh(&mut world, secs(35));
    }
}

#[test]
fn at_most_four_dials_at_once_and_everybody_has_a_turn() {
    let mut world = World::new(1, 14, Weather::fair());
    let holes: Vec<_> = (2000..2030).map(address).collect();
    world.holes.extend(holes.iter().copied());
    for (peer, hole) in (100..).zip(&holes) {
        let (name, incarnation) = (name(peer), Incarnation(1));
        let contact = Contact { name, address: *hole, incarnation };
        world.input(0, Input::Hint(contact, Source::Remembered));
    }
    assert_eq!(world.dials(0, world.start), Config::default().dials);
    world.run(secs(5) * 8 + ms(500));
    for hole in holes {
        let dialed =
            world.said(0, world.start).any(|o| matches!(o, Output::Dial(_, to) if *to == hole));
        assert!(dialed, "{hole} within eight rounds of four");
    }
}

#[test]
fn stop_says_goodbye_everywhere_and_takes_no_more_links() {
    let mut world = mesh(5, 15, Weather::fair());
    let since = world.now;
    world.input(2, Input::Stop);
    world.run(ms(30));
    let goodbye = |o: &&Output| matches!(o, Output::Close(_, CloseReason::Left));
    assert_eq!(world.said(2, since).filter(goodbye).count(), 4);
    for node in [0, 1, 3, 4] {
        assert_eq!(world.status(node, 2), Some(offline(Reason::Left)));
    }
    let (hinted, seed) = (world.contact(4), world.nodes[4].address);
    world.input(2, Input::Hint(hinted, Source::Beacon));
    world.input(2, Input::Seed(seed));
    world.run(secs(60));
    assert_eq!(world.dials(2, since), 0);
    let stranger = World::new(1, 0, Weather::fair()).contact(0);
    world.input(2, Input::Hint(stranger, Source::Peer));
    assert_eq!(world.machine(2).deadline(), None, "nothing is left to do");
}

#[test]
fn stop_in_the_middle_of_handshakes_leaves_nothing_behind() {
    for seed in 0..200 {
        let mut world = World::new(3, seed, Weather { delay: ms(5)..ms(9), ..Weather::fair() });
        for (node, peer) in [(0, 1), (2, 0), (1, 2)] {
            hint(&mut world, node, peer);
        }
        let pause = world.rng.random_range(ms(0)..ms(60));
        world.run(pause);
        world.input(0, Input::Stop);
        world.run(secs(20));
        let machine = world.machine(0);
        let idle = machine.peers.values().all(super::super::Peer::idle);
        world.check(idle && machine.dialing.is_empty(), || format!("{machine:?}"));
        let seen = [world.status(1, 0), world.status(2, 0)];
        let gone = seen.iter().flatten().all(|(status, _)| *status == Status::Offline);
        world.check(gone, || format!("{seen:?}"));
        world.check(world.status(1, 2) == Some(ONLINE), || "the others stay".to_owned());
    }
}

#[test]
fn a_restarted_machine_keeps_its_links() {
    for seed in 0..50 {
        let mut world = mesh(4, seed, Weather::fair());
        let since = world.now;
        world.restart_machine(0);
        world.check(world.meshed().is_ok(), || format!("{:?}", world.meshed()));
        world.run(secs(60));
        world.check(world.meshed().is_ok() && ended(&world, since).is_empty(), || {
            format!("{:?} {:?}", world.meshed(), ended(&world, since))
        });
        assert_eq!(world.dials(0, since), 0);
    }
}
