//! What a bad member says of others, and of this node: hearsay leads to a look at most.

use std::net::SocketAddr;

use super::super::{AttemptId, Failure, Input, LinkEnd, Output};
use super::desk::{Desk, address, dialed, hello, home, name, secs};
use crate::proto::event::{Event, Reason, Source, Status};
use crate::proto::frame::CloseReason;
use crate::proto::hello::Refusal;
use crate::proto::node::{Contact, Incarnation};

/// Says that life 7 of this node, or a later one, is known.
fn stale(known: u64) -> Failure {
    Failure::RefusedBy(Refusal::Stale { known: Incarnation(known), linked: None })
}

fn renewed(out: &[Output]) -> Option<u64> {
    out.iter().find_map(|it| match it {
        Output::Renew(Incarnation(to)) => Some(*to),
        _ => None,
    })
}

/// A peer that this node dials refuses it as stale.
fn refused_as_stale(desk: &mut Desk, peer: usize, known: u64) -> Vec<Output> {
    desk.hint(peer, 0, Source::Remembered);
    let dials = |desk: &Desk| desk.machine.peers.get(&name(peer)).and_then(|it| it.dialing);
    while dials(desk).is_none() {
        desk.tick();
    }
    let attempt = dials(desk).expect("just looked");
    assert_eq!(desk.give(Input::Connected(attempt, name(peer))), [Output::Proceed(attempt)]);
    desk.give(Input::Failed(attempt, stale(known)))
}

#[test]
fn one_that_dials_and_calls_this_life_stale_changes_nothing() {
    let mut desk = Desk::new(1);
    let live = desk.link(1, &hello(1, 4));
    for n in 0..100 {
        let inbound = AttemptId::Inbound(100 + n);
        desk.give(Input::Greeted(inbound, hello(9, 1)));
        let out = desk.give(Input::Failed(inbound, stale(7 + n)));
        assert!(!out.contains(&Output::Close(live, CloseReason::Renewed)));
        assert!(!out.iter().any(|it| matches!(it, Output::Announce(Event::RefusedBy { .. }))));
        if let Some(attempt) = dialed(&out) {
            desk.give(Input::Failed(attempt, Failure::Refused));
        }
    }
    assert_eq!((desk.machine.incarnation(), desk.status(1).0), (Incarnation(7), Status::Online));
}

#[test]
fn a_peer_whose_attempts_come_to_nothing_is_dialed_once_a_second_for_them() {
    let mut desk = Desk::new(2);
    let (mut dials, begin) = (0, desk.now);
    for n in 0..400 {
        let inbound = AttemptId::Inbound(n);
        desk.give(Input::Greeted(inbound, hello(9, 1)));
        let mut out = desk.give(Input::Failed(inbound, Failure::Closed));
        desk.now += secs(10) / 400;
        out.extend(desk.give(Input::Tick));
        if let Some(attempt) = dialed(&out) {
            dials += 1;
            desk.give(Input::Failed(attempt, Failure::Refused));
        }
    }
    assert!((5..=12).contains(&dials), "{dials} dials in {:?}", desk.now - begin);
}

#[test]
fn a_life_is_renewed_before_its_first_link_or_where_two_say_so_and_once_a_minute() {
    let mut desk = Desk::new(3);
    assert_eq!(renewed(&refused_as_stale(&mut desk, 1, 9)), Some(10), "it has linked nobody");
    assert_eq!(renewed(&refused_as_stale(&mut desk, 2, 40)), None, "once a minute");
    desk.now += secs(60);
    assert_eq!(renewed(&refused_as_stale(&mut desk, 2, 40)), Some(41));

    desk.now += secs(60);
    let live = desk.link(9, &hello(9, 1));
    for peer in [1, 2, 3] {
        let out = refused_as_stale(&mut desk, peer, 50);
        assert_eq!(renewed(&out), None, "a link shows that nobody knows better");
    }
    desk.give(Input::Ended(live, LinkEnd::TimedOut));
    assert_eq!(renewed(&refused_as_stale(&mut desk, 1, 50)), None);
    assert_eq!(renewed(&refused_as_stale(&mut desk, 1, 51)), None, "the same one again");
    assert_eq!(renewed(&refused_as_stale(&mut desk, 2, 50)), Some(51));
}

#[test]
fn where_another_process_has_this_name_is_no_one_peer_s_word() {
    let taken = |desk: &mut Desk, peer, at| {
        let mut out = desk.hint(peer, 0, Source::Remembered);
        while dialed(&out).is_none() {
            out = desk.tick();
        }
        let linked = Some(address(at));
        let refusal = Refusal::Stale { known: Incarnation(7), linked };
        let attempt = dialed(&out).expect("just looked");
        let out = desk.give(Input::Failed(attempt, Failure::RefusedBy(refusal)));
        out.iter().any(|it| matches!(it, Output::Announce(Event::NameInUse { .. })))
    };
    let mut desk = Desk::new(4);
    let live = desk.link(9, &hello(9, 1));
    assert!(!taken(&mut desk, 1, 6000) && !taken(&mut desk, 2, 6000), "it is linked");
    desk.give(Input::Ended(live, LinkEnd::TimedOut));
    assert!(!taken(&mut desk, 1, 6000) && taken(&mut desk, 2, 6000));
}

#[test]
fn what_was_forgotten_refuses_nobody() {
    let far = 1 << 32;
    for forgotten in [5, 6, far, u64::MAX] {
        let mut desk = Desk::new(5);
        let live = desk.link(1, &hello(1, 5));
        desk.give(Input::Ended(live, LinkEnd::TimedOut));
        desk.forget(1, forgotten);
        assert!(!desk.knows(1));
        let out = desk.hint(1, 6, Source::Peer);
        assert!(dialed(&out).is_some(), "of a later life than it has shown, others may speak");
        desk.link(2, &hello(1, 5));
        assert_eq!((desk.status(1).0, desk.known(1)), (Status::Online, Incarnation(5)));
        desk.link(3, &hello(1, 6));
        assert_eq!((desk.status(1).0, desk.known(1)), (Status::Online, Incarnation(6)));
    }
    let mut desk = Desk::new(5);
    desk.forget(1, far);
    desk.link(1, &hello(1, 1));
    assert_eq!(desk.known(1), Incarnation(1), "nor one that was never here");
}

#[test]
fn an_older_life_gets_in_where_it_goes_on_asking_and_no_later_one_is_linked() {
    let mut desk = Desk::new(6);
    let live = desk.link(1, &hello(1, 4));
    let asks = |desk: &mut Desk, n, after| {
        desk.now += secs(after);
        let inbound = AttemptId::Inbound(n);
        let out = desk.give(Input::Greeted(inbound, hello(1, 3)));
        out.contains(&Output::Proceed(inbound))
    };
    assert!(!asks(&mut desk, 10, 1) && !asks(&mut desk, 11, 60), "the later life is linked");
    desk.give(Input::Ended(live, LinkEnd::TimedOut));
    assert!(!asks(&mut desk, 12, 0) && !asks(&mut desk, 13, 9));
    assert!(asks(&mut desk, 14, 1));
    desk.give(Input::Confirmed(AttemptId::Inbound(14)));
    assert_eq!((desk.status(1).0, desk.known(1)), (Status::Syncing, Incarnation(3)));
    desk.link(15, &hello(1, 4));
    assert_eq!(desk.known(1), Incarnation(4), "the later one replaces it as ever");
}

impl Desk {
    fn hearsay(&mut self, by: usize, of: usize, at: SocketAddr, life: u64) -> Vec<Output> {
        let contact = Contact { name: name(of), address: at, incarnation: Incarnation(life) };
        self.give(Input::Told(name(by), contact))
    }
}

/// Lets dials fail until that time is over; where they went.
fn all_fail(desk: &mut Desk, mut out: Vec<Output>, seconds: u64) -> Vec<SocketAddr> {
    let (until, mut went) = (desk.now + secs(seconds), Vec::new());
    loop {
        let dial = out.iter().find_map(|it| match it {
            Output::Dial(attempt, to) => Some((*attempt, *to)),
            _ => None,
        });
        out = if let Some((attempt, to)) = dial {
            went.push(to);
            let rest = out.into_iter().filter(|it| *it != Output::Dial(attempt, to));
            let rest: Vec<_> = rest.collect();
            [rest, desk.give(Input::Failed(attempt, Failure::Refused))].concat()
        } else {
            match desk.machine.deadline().filter(|at| *at <= until) {
                Some(_) => desk.tick(),
                None => return went,
            }
        };
    }
}

#[test]
fn invented_nodes_are_no_peers_and_cost_few_dials() {
    let mut desk = Desk::new(7);
    desk.link(1, &hello(1, 1));
    let mut out = Vec::new();
    for ghost in 100..2100 {
        out.extend(desk.hearsay(1, ghost, address(9000), 1));
    }
    let dials = all_fail(&mut desk, out, 59);
    assert!((1..=15).contains(&dials.len()), "{} dials in a minute", dials.len());
    assert_eq!(desk.machine.peers().count(), 1);
    assert!(desk.machine.rumours.len() <= 1024);
    let again = all_fail(&mut desk, vec![], 60);
    assert!(again.len() <= 13, "{} dials in the next one", again.len());
    assert_eq!(
        desk.hearsay(8, 50, address(9000), 1),
        [],
        "one that is not linked speaks of nobody"
    );
}

#[test]
fn a_node_of_which_a_peer_speaks_is_a_peer_once_it_shows_its_certificate() {
    let mut desk = Desk::new(8);
    desk.link(1, &hello(1, 1));
    // One that invents nodes, and holds up none of those of which others speak.
    desk.link(2, &hello(2, 1));
    let mut out = Vec::new();
    for ghost in 100..200 {
        out.extend(desk.hearsay(2, ghost, address(9000), 1));
    }
    all_fail(&mut desk, out, 30);
    let out = desk.hearsay(1, 9, home(9), 1);
    let attempt = dialed(&out).expect("dialed at once");
    assert_eq!(out, [Output::Dial(attempt, home(9))], "no event");
    let out = desk.give(Input::Connected(attempt, name(9)));
    let (peer, address, source) = (name(9), home(9), Source::Peer);
    let found = Event::PeerDiscovered { peer: peer.clone(), address, source };
    let events = [found, Event::PeerConnecting { peer }].map(Output::Announce);
    assert_eq!(out, [&events[..], &[Output::Proceed(attempt)]].concat());
    desk.give(Input::Welcomed(attempt, hello(9, 3)));
    assert_eq!((desk.status(9).0, desk.known(9)), (Status::Syncing, Incarnation(3)));
}

#[test]
fn what_others_say_of_a_peer_s_address_does_not_delay_what_is_known_of_it() {
    let mut desk = Desk::new(9);
    desk.link(2, &hello(2, 1));
    let live = desk.link(1, &hello(1, 4));
    for port in 1..200 {
        desk.hearsay(2, 1, address(port), 9);
    }
    let out = desk.give(Input::Ended(live, LinkEnd::Closed));
    let mut out = [out, desk.hearsay(2, 1, address(300), 9)].concat();
    let redial = dialed(&out).expect("at once");
    assert!(out.contains(&Output::Dial(redial, home(1))));
    out = desk.give(Input::Failed(redial, Failure::Refused));
    assert_eq!(desk.status(1), (Status::Offline, Some(Reason::Crashed)), "{out:?}");
    // At the address it may be found all the same.
    out.extend(desk.hearsay(2, 1, address(300), 9));
    while dialed(&out).is_none() {
        out = desk.tick();
    }
    let went = all_fail(&mut desk, out, 20);
    assert!(went.contains(&address(300)) && went.contains(&home(1)), "{went:?}");
}

#[test]
fn that_a_node_came_back_is_seen_and_not_believed() {
    let mut desk = Desk::new(10);
    desk.link(2, &hello(2, 1));
    let live = desk.link(1, &hello(1, 4));
    desk.give(Input::Ended(live, LinkEnd::Goodbye(CloseReason::Left)));
    assert_eq!(desk.hearsay(2, 1, address(300), 4), [], "that life has left");
    let out = desk.hearsay(2, 1, address(300), 5);
    let attempt = dialed(&out).expect("a later one may live there");
    assert_eq!(desk.status(1), (Status::Offline, Some(Reason::Left)));
    desk.give(Input::Connected(attempt, name(1)));
    desk.give(Input::Welcomed(attempt, hello(1, 5)));
    assert_eq!(desk.status(1).0, Status::Syncing);
}
