//! What must hold after every event: the numbered invariants of the machine, and their consequences.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::super::{AttemptId, Input, LinkEnd, Output, Target};
use super::world::{World, name};
use crate::proto::event::{Event, Source, Status};
use crate::proto::frame::CloseReason;
use crate::proto::hello::Refusal;
use crate::proto::node::{Incarnation, NodeName};

/// What one life of a machine has done so far, kept apart from what it remembers itself.
#[derive(Debug, Default)]
pub(super) struct Watched {
    /// The links it has agreed to and that have not ended.
    links: BTreeMap<AttemptId, NodeName>,
    /// Its dials that have become neither a link nor nothing.
    open: BTreeSet<AttemptId>,
    /// Peers after the last event.
    peers: BTreeMap<NodeName, Seen>,
    /// Peers that said goodbye, until more is heard of them.
    left: BTreeMap<NodeName, Incarnation>,
    stopped: bool,
    ticks: Option<(Instant, u32)>,
}

#[derive(Clone, Debug)]
struct Seen {
    status: Status,
    incarnation: Incarnation,
    live: Option<AttemptId>,
}

/// Checks everything that can be checked after `node`'s machine made `out` of `input`.
pub(super) fn after(world: &mut World, node: usize, input: &Input, out: &[Output]) {
    let Some(life) = world.nodes[node].life.as_mut() else { return };
    let mut watched = std::mem::take(&mut life.watched);
    let case = || format!("n{node}: {input:?} gave {out:?}");
    heard(&mut watched, input);
    for output in out {
        said(world, node, &mut watched, input, output, &case);
    }
    machine_agrees(world, node, &watched, &case);
    older_lives_are_refused(world, &watched, input, out, &case);
    hints_end_no_link(world, node, &watched, input, &case);
    wanted_peers_have_a_time(world, node, &watched, &case);
    no_tight_loop(world, node, &mut watched, input, &case);
    changes_are_announced(world, node, &mut watched, out, &case);
    if let Some(life) = world.nodes[node].life.as_mut() {
        life.watched = watched;
    }
}

/// What the input itself says has ended or begun.
fn heard(watched: &mut Watched, input: &Input) {
    match input {
        Input::Failed(attempt, _) => {
            watched.open.remove(attempt);
            watched.links.remove(attempt);
        }
        Input::Ended(attempt, end) => {
            let ended = watched.links.remove(attempt);
            if let Some(peer) = ended.filter(|_| *end == LinkEnd::Goodbye(CloseReason::Left)) {
                let known = watched.peers.get(&peer).map(|seen| seen.incarnation);
                watched.left.insert(peer, known.unwrap_or_default());
            }
        }
        Input::Hint(contact, _) => lives_on(watched, &contact.name, contact.incarnation),
        Input::Greeted(_, hello) | Input::Welcomed(_, hello) => {
            lives_on(watched, &hello.name, hello.incarnation);
        }
        Input::Existing(attempt, hello, _) => {
            watched.links.insert(*attempt, hello.name.clone());
        }
        Input::Stop => watched.stopped = true,
        _ => {}
    }
}

fn lives_on(watched: &mut Watched, peer: &NodeName, incarnation: Incarnation) {
    if watched.left.get(peer).is_some_and(|left| *left < incarnation) {
        watched.left.remove(peer);
    }
}

/// Invariants 1 and 3, as the link layer sees them.
fn said(
    world: &World,
    node: usize,
    watched: &mut Watched,
    input: &Input,
    output: &Output,
    case: &dyn Fn() -> String,
) {
    match output {
        Output::Dial(attempt, _) => {
            watched.open.insert(*attempt);
            let machine = world.machine(node);
            if let Some(Target::Peer(peer)) = machine.dialing.get(attempt).map(|d| &d.target) {
                let linked = watched.links.values().any(|linked| linked == peer);
                world.check(!linked, || format!("3: dials {peer}, which is linked; {}", case()));
                world.check(*peer != name(node), || format!("3: dials itself; {}", case()));
                let left = watched.left.contains_key(peer);
                world.check(!left, || format!("3: dials {peer}, which left; {}", case()));
            }
            world.check(!watched.stopped, || format!("dials after Stop; {}", case()));
            let (open, dials) = (watched.open.len(), world.config.dials);
            world.check(open <= dials, || format!("3: {open} dials at once; {}", case()));
        }
        Output::Proceed(attempt) => {
            world.check(!watched.stopped, || format!("goes on after Stop; {}", case()));
            if matches!(input, Input::Welcomed(..) | Input::Confirmed(_)) {
                watched.open.remove(attempt);
                let machine = world.machine(node);
                let mut peers = machine.peers.iter();
                let owner =
                    peers.find(|(_, p)| p.live.as_ref().is_some_and(|l| l.attempt == *attempt));
                let Some((peer, _)) = owner else {
                    world.fail(&format!("a link of nobody; {}", case()))
                };
                let second = watched.links.values().any(|linked| linked == peer);
                world.check(!second, || format!("1: a second link with {peer}; {}", case()));
                watched.links.insert(*attempt, peer.clone());
                watched.left.remove(peer);
            }
        }
        Output::Refuse(attempt, _) | Output::Abandon(attempt) => {
            watched.open.remove(attempt);
            let linked = watched.links.contains_key(attempt);
            world.check(!linked, || format!("drops a link without a goodbye; {}", case()));
        }
        Output::Close(attempt, _) => {
            let linked = watched.links.remove(attempt).is_some();
            world.check(linked, || format!("closes what is not a link; {}", case()));
        }
        Output::Renew(_) | Output::Announce(_) => {}
    }
}

/// The machine's memory and what it has done are the same.
fn machine_agrees(world: &World, node: usize, watched: &Watched, case: &dyn Fn() -> String) {
    let machine = world.machine(node);
    let live = |(peer, it): (&NodeName, &super::super::Peer)| {
        it.live.as_ref().map(|live| (live.attempt, peer.clone()))
    };
    let links: BTreeMap<_, _> = machine.peers.iter().filter_map(live).collect();
    let truth = &watched.links;
    world.check(links == *truth, || format!("1: links {truth:?}, machine {links:?}; {}", case()));
    let open = &watched.open;
    let same = machine.dialing.keys().eq(open.iter());
    world.check(same, || format!("3: dials {open:?}, machine {:?}; {}", machine.dialing, case()));
    for (peer, it) in &machine.peers {
        let busy = [it.live.is_some(), it.dialing.is_some()].iter().filter(|b| **b).count();
        world.check(busy <= 1, || format!("3: dials {peer}, which is linked; {}", case()));
        let both = it.dialing.is_some() && it.inbound.is_some();
        world.check(!both, || format!("two attempts with {peer}; {}", case()));
        let dialed = it.dialing.is_none_or(|attempt| machine.dialing.contains_key(&attempt));
        world.check(dialed, || format!("{peer}: {:?} is no dial; {}", it.dialing, case()));
        if watched.stopped {
            continue; // what it sees on its way out matters to nobody
        }
        let up = matches!(it.status, Status::Syncing | Status::Online);
        world.check(up == it.live.is_some(), || format!("{peer} is {:?}; {}", it.status, case()));
        let ready = it.live.as_ref().is_some_and(|live| live.ready);
        let online = it.status == Status::Online;
        world.check(online == ready, || format!("{peer} is {:?}; {}", it.status, case()));
    }
}

/// Invariant 2: an older life is refused and told why, and what is known never falls.
fn older_lives_are_refused(
    world: &World,
    watched: &Watched,
    input: &Input,
    out: &[Output],
    case: &dyn Fn() -> String,
) {
    let (Input::Greeted(attempt, hello) | Input::Welcomed(attempt, hello)) = input else { return };
    let Some(seen) = watched.peers.get(&hello.name) else { return };
    if hello.incarnation < seen.incarnation {
        let is_stale = |it: &Output| matches!(it, Output::Refuse(of, Refusal::Stale { known, linked }) if of == attempt && *known == seen.incarnation && linked.is_some() == seen.live.is_some());
        let refused = out.iter().any(is_stale);
        let gone = out.iter().any(|o| {
            *o == Output::Abandon(*attempt) || *o == Output::Refuse(*attempt, Refusal::Leaving)
        });
        world.check(refused || gone, || format!("2: takes an older life; {}", case()));
    }
}

/// Invariant 5.
fn hints_end_no_link(
    world: &World,
    node: usize,
    watched: &Watched,
    input: &Input,
    case: &dyn Fn() -> String,
) {
    if !matches!(input, Input::Hint(..) | Input::Seed(_) | Input::Tick) {
        return;
    }
    for (peer, seen) in &watched.peers {
        let excused = matches!(input, Input::Hint(contact, Source::Beacon)
            if contact.name == *peer && contact.incarnation > seen.incarnation);
        let now = world.machine(node).peers.get(peer).and_then(|it| it.live.as_ref());
        let kept = now.map(|live| live.attempt) == seen.live;
        world.check(kept || excused, || format!("5: the link with {peer}; {}", case()));
    }
}

/// Invariant 4, and that the machine asks to be woken in time for it.
fn wanted_peers_have_a_time(
    world: &World,
    node: usize,
    watched: &Watched,
    case: &dyn Fn() -> String,
) {
    let life = world.life(node);
    for (peer, it) in &life.machine.peers {
        if watched.stopped || it.left() || !it.idle() || it.first_address().is_none() {
            continue;
        }
        let Some(next) = it.next_dial else {
            world.fail(&format!("4: no next dial of {peer}; {}", case()))
        };
        // One dial may be kept back for a peer that was lost just now.
        let full = watched.open.len() + 1 >= world.config.dials;
        let woken = full || life.deadline.is_some_and(|at| at <= next);
        world.check(woken, || format!("4: no deadline for {peer}; {}", case()));
    }
}

/// Whatever was due is done: the next deadline lies ahead.
fn no_tight_loop(
    world: &World,
    node: usize,
    watched: &mut Watched,
    input: &Input,
    case: &dyn Fn() -> String,
) {
    let (now, deadline) = (world.now, world.life(node).deadline);
    world.check(deadline.is_none_or(|at| at > now), || format!("due for ever; {}", case()));
    if matches!(input, Input::Tick) {
        let before = watched.ticks.filter(|(at, _)| *at == now).map_or(0, |(_, count)| count);
        watched.ticks = Some((now, before + 1));
        world.check(before < 1000, || format!("1000 ticks at one instant; {}", case()));
    }
}

/// A status that differs from before was announced, and no incarnation fell.
fn changes_are_announced(
    world: &World,
    node: usize,
    watched: &mut Watched,
    out: &[Output],
    case: &dyn Fn() -> String,
) {
    let machine = world.machine(node);
    for (peer, it) in &machine.peers {
        let live = it.live.as_ref().map(|live| live.attempt);
        let seen = Seen { status: it.status, incarnation: it.incarnation, live };
        if let Some(before) = watched.peers.get(peer) {
            let fell = it.incarnation < before.incarnation;
            world.check(!fell, || format!("2: {peer} was {before:?}; {}", case()));
            let told = before.status == it.status || announced(out, peer, it.status);
            world.check(told, || format!("{peer} is {:?}, unsaid; {}", it.status, case()));
        }
        watched.peers.insert(peer.clone(), seen);
    }
}

fn announced(out: &[Output], of: &NodeName, status: Status) -> bool {
    let says = |event: &Event| match event {
        Event::PeerConnecting { peer } => status == Status::Connecting && peer == of,
        Event::PeerSyncing { peer, .. } => status == Status::Syncing && peer == of,
        Event::PeerOnline { peer, .. } => status == Status::Online && peer == of,
        Event::PeerOffline { peer, .. } => status == Status::Offline && peer == of,
        _ => false,
    };
    out.iter().any(|output| matches!(output, Output::Announce(event) if says(event)))
}
