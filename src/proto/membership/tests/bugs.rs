//! Failing tests for the report; not delivered.
use super::super::*;
use super::world::{Disk, Weather, World, address, ms, name, secs};
use crate::proto::node::KeyId;
use crate::proto::tests::start;
use rand::SeedableRng;

fn mesh(count: usize) -> World {
    let mut world = World::new(count, 1, Weather::fair());
    for node in 0..count {
        for peer in 0..node {
            let contact = world.contact(peer);
            world.input(node, Input::Hint(contact, Source::Remembered));
        }
    }
    world.run_until(secs(5), |w| w.meshed().is_ok(), "mesh");
    world
}
fn hello(peer: usize, incarnation: u64, port: u16) -> Hello {
    Hello {
        name: name(peer),
        cluster: KeyId([7; 16]),
        incarnation: Incarnation(incarnation),
        boot: incarnation,
        advertise: address(port),
    }
}
fn machine() -> (Membership, Instant) {
    let rng = StdRng::seed_from_u64(1);
    (Membership::new(Config::default(), name(5), Incarnation(7), 0, rng), start())
}

#[test]
fn a1_a_seed_that_is_on_its_way_out_is_dialed_no_more() {
    let mut world = World::new(2, 1, Weather::fair());
    let seed = world.nodes[1].address;
    world.input(0, Input::Seed(seed));
    world.run(secs(60));
    world.input(1, Input::Stop);
    world.run(secs(1)); // drains
    world.crash(1, false);
    world.run(secs(600));
}
#[test]
fn a2_a_late_hello_of_a_peer_that_left_does_not_bring_it_back() {
    let (mut m, now) = machine();
    let mut out = Vec::new();
    let (link, late) = (AttemptId::Inbound(1), AttemptId::Inbound(2));
    m.handle(Input::Greeted(link, hello(1, 4, 3001)), now, &mut out);
    m.handle(Input::Confirmed(link), now, &mut out);
    m.handle(Input::Ready(link), now, &mut out);
    m.handle(Input::Ended(link, LinkEnd::Goodbye(CloseReason::Left)), now, &mut out);
    out.clear();
    m.handle(Input::Greeted(late, hello(1, 4, 3001)), now, &mut out);
    m.handle(Input::Failed(late, Failure::Closed), now, &mut out);
    assert!(!out.iter().any(|o| matches!(o, Output::Dial(..))), "{out:?}");
    assert_eq!(m.peers().next().and_then(|p| p.reason), Some(Reason::Left));
}
#[test]
fn b_a_confirmation_that_cannot_be_written_is_no_link() {
    let (mut m, now) = machine();
    let mut out = Vec::new();
    let contact = Contact { name: name(1), address: address(3001), incarnation: Incarnation(0) };
    m.handle(Input::Hint(contact, Source::Peer), now, &mut out);
    let dial = AttemptId::Outbound(0);
    m.handle(Input::Connected(dial, name(1)), now, &mut out);
    m.handle(Input::Welcomed(dial, hello(1, 1, 3001)), now, &mut out);
    m.handle(Input::Failed(dial, Failure::Closed), now, &mut out);
    assert_ne!(m.peers().next().map(|p| p.status), Some(Status::Syncing));
    assert!(m.deadline().is_some(), "a wanted peer without a link has a time for its next dial");
}
#[test]
fn c1_existing_twice_closes_one() {
    let (mut m, now) = machine();
    let mut out = Vec::new();
    m.handle(Input::Existing(AttemptId::Outbound(3), hello(1, 5, 3001), false), now, &mut out);
    m.handle(Input::Existing(AttemptId::Inbound(2), hello(1, 5, 3001), true), now, &mut out);
    assert_eq!(out.iter().filter(|o| matches!(o, Output::Close(..))).count(), 1, "{out:?}");
}
#[test]
fn c2_existing_of_an_older_life_does_not_lower() {
    let (mut m, now) = machine();
    let mut out = Vec::new();
    m.handle(Input::Existing(AttemptId::Outbound(3), hello(1, 5, 3001), false), now, &mut out);
    m.handle(Input::Existing(AttemptId::Inbound(2), hello(1, 4, 3001), true), now, &mut out);
    assert_eq!(m.peers().next().map(|p| p.incarnation), Some(Incarnation(5)));
    assert!(out.contains(&Output::Close(AttemptId::Inbound(2), CloseReason::Replaced)), "{out:?}");
}
#[test]
fn c3_a_dial_on_its_way_when_the_link_is_reported_is_abandoned() {
    let (mut m, now) = machine();
    let mut out = Vec::new();
    let contact = Contact { name: name(1), address: address(3001), incarnation: Incarnation(0) };
    m.handle(Input::Hint(contact, Source::Remembered), now, &mut out);
    let dial = AttemptId::Outbound(0);
    assert!(out.contains(&Output::Dial(dial, address(3001))), "{out:?}");
    out.clear();
    m.handle(Input::Existing(AttemptId::Inbound(2), hello(1, 5, 3001), true), now, &mut out);
    assert!(out.contains(&Output::Abandon(dial)), "{out:?}");
    m.handle(Input::Connected(dial, name(1)), now, &mut out);
    m.handle(Input::Welcomed(dial, hello(1, 5, 3001)), now, &mut out);
    assert!(!out.iter().any(|o| matches!(o, Output::Proceed(_) | Output::Close(..))), "{out:?}");
    assert_eq!(m.peers().next().map(|p| p.status), Some(Status::Online));
}
#[test]
fn d_a_second_crash_within_a_second_is_offline_at_once_too() {
    let mut world = mesh(2);
    world.run(secs(60));
    world.crash(1, false);
    world.run(secs(60));
    world.boot(1, Disk::Kept);
    let contact = world.contact(0);
    world.input(1, Input::Hint(contact, Source::Remembered));
    world.run_until(secs(2), |w| w.meshed().is_ok(), "mesh");
    world.run(ms(500));
    world.crash(1, false);
    let since = world.now;
    world.run_until(
        secs(60),
        |w| w.status(0, 1).is_some_and(|s| s.0 == Status::Offline),
        "offline",
    );
    assert!(world.now - since < ms(20), "offline after {:?}", world.now - since);
}
#[test]
fn e_a_crash_is_offline_at_once_while_others_are_unreachable() {
    let mut worst = Duration::ZERO;
    for seed in 0..20 {
        let mut world = World::new(2, seed, Weather::fair());
        let contact = world.contact(0);
        world.input(1, Input::Hint(contact, Source::Remembered));
        for port in 2000..2012 {
            world.holes.insert(address(port));
            let c = Contact {
                name: name(usize::from(port)),
                address: address(port),
                incarnation: Incarnation(1),
            };
            world.input(0, Input::Hint(c, Source::Remembered));
        }
        world.run(secs(20));
        world.crash(1, false);
        let since = world.now;
        world.run_until(
            secs(60),
            |w| w.status(0, 1).is_some_and(|s| s.0 == Status::Offline),
            "offline",
        );
        worst = worst.max(world.now - since);
    }
    assert!(worst < ms(20), "offline after {worst:?}");
}
#[test]
fn f_a_peer_that_refuses_because_it_leaves_has_left() {
    let (mut m, now) = machine();
    let mut out = Vec::new();
    let link = AttemptId::Inbound(1);
    m.handle(Input::Greeted(link, hello(1, 4, 3001)), now, &mut out);
    m.handle(Input::Confirmed(link), now, &mut out);
    m.handle(Input::Ready(link), now, &mut out);
    // The peer stops while it believes this link unconfirmed: the stream just ends.
    m.handle(Input::Ended(link, LinkEnd::Closed), now, &mut out);
    let dial = AttemptId::Outbound(0);
    m.handle(Input::Connected(dial, name(1)), now, &mut out);
    m.handle(Input::Failed(dial, Failure::RefusedBy(Refusal::Leaving)), now, &mut out);
    assert_eq!(m.peers().next().and_then(|p| p.reason), Some(Reason::Left));
}
#[test]
fn g_a_wrong_first_address_does_not_skip_the_second() {
    let (mut m, now) = machine();
    let mut out = Vec::new();
    for port in [3001, 3002, 3003] {
        let c = Contact { name: name(1), address: address(port), incarnation: Incarnation(0) };
        m.handle(Input::Hint(c, Source::Peer), now, &mut out);
    }
    m.handle(Input::Connected(AttemptId::Outbound(0), name(5)), now, &mut out);
    let dials: Vec<_> = out
        .iter()
        .filter_map(|o| if let Output::Dial(_, a) = o { Some(a.port()) } else { None })
        .collect();
    assert_eq!(dials, [3001, 3002]);
}
#[test]
fn k_the_end_of_a_seeds_link_is_one_dial() {
    let mut world = World::new(2, 1, Weather::fair());
    let seed = world.nodes[1].address;
    world.input(0, Input::Seed(seed));
    world.run(secs(60));
    let since = world.now;
    world.crash(1, false);
    world.run(ms(20));
    assert_eq!(world.dials(0, since), 1);
}
