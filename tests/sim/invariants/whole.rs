//! What holds once it is quiet: of everybody at once.

use std::collections::BTreeSet;

use xpando_node::internals::proto::event::Status;
use xpando_node::internals::proto::node::NodeName;

use super::records::below;
use super::{presences_agree, registries_agree};
use crate::world::{World, is_trusted};

/// Every two of these nodes are online with each other, in their present lives, without a doubt.
pub(crate) fn mesh_is_whole(world: &World, nodes: &[usize]) -> Result<(), String> {
    for a in nodes {
        for b in nodes.iter().filter(|b| *b != a) {
            let (life, name) = (world.life(*a), &world.nodes[*b].name);
            let view = life.membership.peer(name);
            let online = view.as_ref().is_some_and(|view| {
                view.status == Status::Online && view.incarnation == world.life(*b).incarnation
            });
            if !online || !is_trusted(life, name) {
                return Err(format!("n{a:03} sees n{b:03} as {view:?}"));
            }
        }
    }
    Ok(())
}

/// These connected nodes know the same rows, and of each of them what it says itself.
pub(crate) fn nodes_agree(world: &World, nodes: &[usize]) -> Result<(), String> {
    let Some(first) = nodes.first() else { return Ok(()) };
    let below = below(world, nodes);
    let marks = |of: usize| -> BTreeSet<_> {
        let rows = world.life(of).topology().rows();
        let rows = rows.filter(|row| !below.contains(&world.index(&row.origin)));
        rows.map(|row| (&row.origin, row.mark())).collect()
    };
    let same = world.life(*first).topology().agreement();
    for a in nodes {
        let topology = world.life(*a).topology();
        if topology.agreement() != same {
            let (ours, theirs) = (marks(*a), marks(*first));
            let differ: Vec<_> = ours.symmetric_difference(&theirs).collect();
            if !differ.is_empty() {
                return Err(format!("n{a:03} and n{first:03} differ: {differ:?}"));
            }
        }
        let name = &world.nodes[*a].name;
        let known = world.life(*first).topology().row_of(name);
        if !below.contains(a) && known != topology.row_of(name) {
            return Err(format!("n{first:03} knows another row of n{a:03}"));
        }
    }
    Ok(())
}

/// Who is not running is offline in everybody's eyes, and in every row.
pub(crate) fn the_dead_are_offline(world: &World, nodes: &[usize]) -> Result<(), String> {
    let name = |at: &usize| &world.nodes[*at].name;
    let dead: Vec<&NodeName> =
        world.nodes.iter().filter(|it| it.life.is_none()).map(|it| &it.name).collect();
    for a in nodes.iter().filter(|_| !dead.is_empty()) {
        let topology = world.life(*a).topology();
        for row in nodes.iter().filter_map(|at| topology.row_of(name(at))) {
            let cells = dead.iter().filter_map(|to| Some((to, row.cells().get(*to)?)));
            if let Some((to, cell)) = { cells }.find(|(_, cell)| cell.state != Status::Offline) {
                let (from, state) = (&row.origin, cell.state);
                return Err(format!("n{a:03} hears from {from} that {to} is {state:?}"));
            }
        }
    }
    Ok(())
}

/// All of it, of all that run.
pub(crate) fn all_is_well(world: &World) -> Result<(), String> {
    are_well(world, world.running().collect())
}

/// All of it, of those that run and do not lie, about each other.
pub(crate) fn innocents_are_well(world: &World) -> Result<(), String> {
    are_well(world, world.innocents().collect())
}

fn are_well(world: &World, nodes: Vec<usize>) -> Result<(), String> {
    the_dead_are_offline(world, &nodes)?;
    mesh_is_whole(world, &nodes)?;
    nodes_agree(world, &nodes)?;
    if world.records {
        registries_agree(world, &nodes)?;
        presences_agree(world, &nodes)?;
    }
    Ok(())
}

/// Of those that run and do not lie: everybody sees this of `peer`.
pub(crate) fn innocents_see(
    world: &World,
    peer: usize,
    what: impl Fn(Status) -> bool,
) -> Result<(), String> {
    let name = &world.nodes[peer].name;
    for at in world.innocents().filter(|at| *at != peer) {
        let view = world.life(at).membership.peer(name);
        if view.as_ref().is_some_and(|view| !what(view.status)) {
            return Err(format!("n{at:03} sees {view:?}"));
        }
    }
    Ok(())
}

/// Of all that run: everybody sees this of `peer`.
pub(crate) fn everybody_sees(
    world: &World,
    peer: usize,
    what: impl Fn(Status, bool) -> bool,
) -> Result<(), String> {
    let name = &world.nodes[peer].name;
    for at in world.running().filter(|at| *at != peer) {
        let life = world.life(at);
        let Some(view) = life.membership.peer(name) else { continue };
        let suspect = life.signs.peers.get(name).is_some_and(|vital| vital.suspect);
        if !what(view.status, suspect) {
            return Err(format!("n{at:03} sees {view:?}, suspect: {suspect}"));
        }
    }
    Ok(())
}
