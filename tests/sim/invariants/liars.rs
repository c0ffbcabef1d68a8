//! What must hold where members lie.

use xpando_node::internals::proto::node::NodeName;
use xpando_node::internals::proto::rows::MAX_ROWS;
use xpando_node::internals::proto::topology::{Row, tracker};
use xpando_node::internals::proto::wiring::Ask;

use super::SHORTEST_SILENCE;
use crate::world::World;

/// Nodes that do not exist are no peers and are not shown, and what liars say is kept within bounds.
pub(crate) fn nobody_is_invented(world: &World) {
    if !world.has_liars() {
        return;
    }
    for at in world.innocents() {
        let life = world.life(at);
        let peers = life.membership.peers().map(|peer| peer.name);
        let entries = life.nodes.values().filter(|known| !known.is_forgotten());
        let known = entries.map(|known| known.name.clone());
        let shown = life.matrix.nodes().into_keys();
        if let Some(ghost) = peers.chain(known).chain(shown).find(|name| world.find(name).is_none())
        {
            world.fail("nobody_is_invented", &format!("n{at:03} shows {ghost}"));
        }
        let rows = life.topology().rows().count().max(life.registry().rows().count());
        if rows > MAX_ROWS {
            world.fail("memory_is_bounded", &format!("n{at:03}: {rows} rows"));
        }
    }
}

/// Two nodes that run undisturbed do not doubt each other, where nothing is lost on the way.
pub(super) fn healthy_pair_is_never_doubted(world: &World, node: usize, peer: &NodeName) {
    let well = world.well_for(node, world.index(peer), SHORTEST_SILENCE);
    if well && world.weather.loss == 0.0 {
        world.fail("healthy_pair_is_never_doubted", &format!("n{node:03} doubts {peer}"));
    }
}

/// Nobody but a liar breaks the topology's rules here.
pub(super) fn innocent_nodes_are_never_charged(world: &World, out: &[tracker::Output]) {
    let charged = |output: &&tracker::Output| match output {
        tracker::Output::Send(..) | tracker::Output::Announce(_) => false,
        tracker::Output::Charge(peer, _) | tracker::Output::Ask(Ask::Cut(peer)) => {
            world.is_innocent(peer)
        }
        tracker::Output::Ask(_) => true,
    };
    if let Some(charge) = out.iter().find(charged) {
        world.fail("honest_nodes_are_never_charged", &format!("{charge:?}"));
    }
}

/// What a node has of another one is what that one states under this mark.
pub(super) fn rows_are_their_origins(world: &World, node: usize, origin: usize, row: &Row) {
    let life = world.nodes[origin].life.as_ref();
    let own = life.and_then(|life| life.rests()?.row_of(&row.origin));
    if own.is_some_and(|own| own.mark() == row.mark() && own.cells() != row.cells()) {
        world.fail("rows_are_their_origins", &format!("n{node:03}: {row:?}, not {own:?}"));
    }
}
