//! What must hold of the registry and of presence.

use std::collections::BTreeSet;
use std::sync::Arc;

use xpando_node::internals::proto::event::Status;
use xpando_node::internals::proto::node::NodeName;
use xpando_node::internals::proto::presence::{Entry, Output};
use xpando_node::internals::proto::registry::{Mark, Word, book};
use xpando_node::internals::proto::wiring::{Ask, Notice};

use super::{SETTLED, Watched, runs, with};
use crate::world::{Actor, Micros, World, secs, topics};

/// Nobody shows a client of a node that has been dead for so long: what the kernel needs to notice, and a dial.
const GHOSTS: Micros = secs(26 + 15);

impl Watched {
    /// An actor has started again: its machine remembers nothing.
    pub(crate) fn restarted(&mut self, actor: Actor) {
        match actor {
            Actor::News | Actor::Link | Actor::Discovery => {}
            Actor::NodeManager => {
                self.links.clear();
                self.dials.clear();
                self.lives.clear();
            }
            Actor::HeartbeatMonitor => {
                self.linked.clear();
                self.doubts.clear();
            }
            Actor::TopologyTracker => self.rows.clear(),
            Actor::Registry => self.entries.clear(),
            Actor::ChannelRouter => self.present.clear(),
        }
    }
}

/// Whose entries an input can change.
pub(crate) fn stated(input: &book::Input) -> Vec<NodeName> {
    match input {
        book::Input::Notice(Notice::Message(_, Word::Rows(rows))) => {
            rows.iter().map(|row| row.origin.clone()).collect()
        }
        book::Input::Forget(name, ..) => vec![name.clone()],
        _ => Vec::new(),
    }
}

pub(crate) fn after_book(
    world: &mut World,
    node: usize,
    concerned: &[NodeName],
    out: &[book::Output],
) {
    let me = world.nodes[node].name.clone();
    let own = world.life(node).registry().row(&me).map(|row| (row.incarnation, row.version));
    let stated = &mut world.nodes[node].stated;
    *stated = (*stated).max(own.unwrap_or_default());
    with(world, node, |world, watched| {
        for origin in concerned.iter().chain([&me]) {
            entry_never_falls(world, node, watched, origin);
        }
        let honest = |output: &book::Output| {
            let charged = match output {
                book::Output::Charge(peer, _) | book::Output::Ask(Ask::Cut(peer)) => peer,
                _ => return true,
            };
            !world.is_innocent(charged)
        };
        if let Some(charge) = out.iter().find(|output| !honest(output)) {
            world.fail("honest_nodes_are_never_charged", &format!("{charge:?}"));
        }
    });
}

/// What is known of an origin only rises, and a profile never above what the origin has stated itself.
fn entry_never_falls(world: &World, node: usize, watched: &mut Watched, origin: &NodeName) {
    if !world.is_innocent(origin) {
        return;
    }
    let Some(entry) = world.life(node).registry().row(origin) else {
        watched.entries.remove(origin);
        return;
    };
    let mark = entry.mark();
    let known = watched.entries.entry(origin.clone()).or_insert(mark);
    // A link shows that a node runs in a life that was over.
    let back = mark.incarnation < known.incarnation && runs(world, origin, mark.incarnation);
    // And that what a liar said of its end is wrong, however far that was above what it states.
    let back = back || known.gone && !mark.gone && world.has_liars();
    if mark < *known && !back {
        let what = format!("n{node:03} of {origin}: {mark:?} after {known:?}");
        world.fail("entry_never_falls", &what);
    }
    *known = mark;
    let stated = world.nodes[world.index(origin)].stated;
    if !mark.gone && (mark.incarnation, mark.version) > stated {
        world.fail("entry_never_falls", &format!("{origin}: {mark:?}, never above {stated:?}"));
    }
}

pub(crate) fn after_presence(world: &mut World, node: usize, out: &[Output]) {
    with(world, node, |world, watched| {
        for output in out {
            match output {
                Output::Joined(entry) => {
                    if !watched.present.insert(entry.clone()) {
                        world.fail("presences_are_told_once", &format!("{entry:?} joins twice"));
                    }
                }
                Output::Left(entry) => {
                    if !watched.present.remove(entry) {
                        world.fail("presences_are_told_once", &format!("{entry:?} was not there"));
                    }
                    member_is_kept(world, node, entry);
                }
                Output::Fault(peer, _) if !world.is_innocent(peer) => {}
                Output::Fault(..) => {
                    world.fail("honest_nodes_are_never_charged", &format!("{output:?}"));
                }
                Output::Say(..) => {}
            }
        }
    });
}

/// The node whose client that is.
fn owner(world: &World, entry: &Entry) -> usize {
    let name = entry.meta.split('"').nth(3).and_then(|name| name.parse().ok());
    world.index(&name.unwrap_or_else(|| world.fail("sim", &format!("whose is {entry:?}?"))))
}

/// No client is lost while it stays, and its node and the network are well.
fn member_is_kept(world: &World, node: usize, entry: &Entry) {
    let owner = owner(world, entry);
    let stays = world.nodes[owner].life.as_ref().is_some_and(|life| {
        life.members.values().any(|member| member.meta.as_str() == entry.meta.as_ref())
    });
    if stays && owner != node && world.well_for(node, owner, SETTLED) {
        world.fail("member_is_kept", &format!("n{node:03} loses {entry:?}"));
    }
}

/// Clients of a node that has been dead for long are shown nowhere.
pub(crate) fn no_ghost_is_shown(world: &World) {
    for node in world.running() {
        let well = world.nodes[node].well.checked_add(GHOSTS).is_some_and(|at| at < world.now);
        let present = &world.life(node).watched.present;
        let innocent = |entry: &&Arc<Entry>| !world.is_liar(owner(world, entry));
        for entry in present.iter().filter(|_| well).filter(innocent) {
            let it = &world.nodes[owner(world, entry)];
            if it.life.is_none() && it.died + GHOSTS < world.now {
                world.fail("no_ghost_is_shown", &format!("n{node:03} shows {entry:?}"));
            }
        }
    }
}

/// Nodes with a lost disk whose later life no peer remembers, but rows that were passed on do: those keep what it states
/// now from being believed. Only a node that runs has such a life. And liars: they state several things at once.
pub(super) fn below(world: &World, nodes: &[usize]) -> BTreeSet<usize> {
    let truth = |at: usize| world.nodes[at].truth.0.max(world.nodes[at].stated.0);
    let below = |at: &&usize| truth(**at) > world.life(**at).incarnation;
    let liars = (0..world.nodes.len()).filter(|at| world.is_liar(*at));
    nodes.iter().filter(below).copied().chain(liars).collect()
}

/// These connected nodes know the same entries, of each of them what it states itself, and show all of each other.
pub(crate) fn registries_agree(world: &World, nodes: &[usize]) -> Result<(), String> {
    let Some(first) = nodes.first() else { return Ok(()) };
    let below = below(world, nodes);
    let marks = |of: usize| -> BTreeSet<(&NodeName, Mark)> {
        let rows = world.life(of).registry().rows();
        // A tombstone that a liar made is taken by some, and not by others.
        let counts = |name: &NodeName| world.find(name).is_some_and(|at| !below.contains(&at));
        let rows = rows.filter(|row| counts(&row.origin) && counts(row.maker()));
        rows.map(|row| (&row.origin, row.mark())).collect()
    };
    let same = world.life(*first).registry().agreement();
    for a in nodes {
        let life = world.life(*a);
        if life.registry().agreement() != same {
            let (ours, theirs) = (marks(*a), marks(*first));
            let differ: Vec<_> = ours.symmetric_difference(&theirs).collect();
            if !differ.is_empty() {
                return Err(format!("the registries of n{a:03}, n{first:03} differ: {differ:?}"));
            }
        }
        for b in nodes.iter().filter(|b| !below.contains(b)) {
            let name = &world.nodes[*b].name;
            let own = world.life(*b).registry().row(name);
            let known = life.nodes.get(name);
            let shown = known.and_then(|known| known.entry.as_ref());
            let online = known.is_some_and(|known| known.status == Some(Status::Online));
            if !online || own.is_none() || shown != own {
                return Err(format!("n{a:03} shows n{b:03} as {known:?}"));
            }
        }
    }
    Ok(())
}

/// These connected nodes show the clients of each of them, and no other.
pub(crate) fn presences_agree(world: &World, nodes: &[usize]) -> Result<(), String> {
    let below = below(world, nodes);
    let there = |at: &&usize| !below.contains(at);
    let members = nodes.iter().filter(there).flat_map(|at| world.life(*at).members.values());
    let all: BTreeSet<&str> = members.map(|member| member.meta.as_str()).collect();
    for at in nodes {
        let life = world.life(*at);
        let entries: Vec<&Entry> = life.watched.present.iter().map(AsRef::as_ref).collect();
        let rooms = topics();
        let state = rooms.iter().flat_map(|topic| life.presence().state(topic));
        let state: BTreeSet<&Entry> = state.flat_map(|(_, entries)| entries).collect();
        if state != entries.iter().copied().collect() {
            world.fail("presences_are_told_once", &format!("n{at:03}: {entries:?}, not {state:?}"));
        }
        let shown = state.iter().filter(|entry| !below.contains(&owner(world, entry)));
        let shown: BTreeSet<&str> = shown.map(|entry| entry.meta.as_ref()).collect();
        if shown != all {
            let differ: Vec<_> = shown.symmetric_difference(&all).take(3).collect();
            return Err(format!("n{at:03} shows {} of {}: {differ:?}", shown.len(), all.len()));
        }
    }
    Ok(())
}

/// What a node shows of others is on its disk.
pub(crate) fn disks_hold_what_is_shown(world: &World) -> Result<(), String> {
    for at in world.innocents() {
        let it = &world.nodes[at];
        let disk = it.disks.last().expect("a disk");
        let nodes = world.life(at).nodes.iter().filter(|(name, _)| **name != it.name);
        let shown: Vec<_> = nodes.map(|(name, known)| (name, &known.entry)).collect();
        let stored: Vec<_> = disk.iter().map(|(name, known)| (name, &known.entry)).collect();
        if shown != stored {
            return Err(format!("n{at:03} shows {shown:?}, its disk holds {stored:?}"));
        }
    }
    Ok(())
}

/// On all of these nodes that one is forgotten: nobody looks for it or shows anything of it.
pub(crate) fn is_forgotten(world: &World, nodes: &[usize], gone: usize) -> Result<(), String> {
    let name = &world.nodes[gone].name;
    for at in nodes {
        let life = world.life(*at);
        let known = life.nodes.get(name).is_some_and(|known| known.is_forgotten())
            && life.registry().row(name).is_some_and(|row| row.mark().gone);
        if !known || life.membership.peer(name).is_some() || life.topology().row_of(name).is_some()
        {
            let peer = life.membership.peer(name);
            return Err(format!("n{at:03} remembers {name}: {known} {peer:?}"));
        }
    }
    Ok(())
}
