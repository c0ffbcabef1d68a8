//! What must hold of the dials of a node.

use xpando_node::internals::proto::event::Reason;
use xpando_node::internals::proto::membership::{self, Input, Output};

use super::Watched;
use crate::world::World;

/// At most four dials at once; none to where a peer that left was, unless that is a seed or a later life is said to be there.
pub(super) fn dials_are_bounded(
    world: &World,
    node: usize,
    watched: &mut Watched,
    input: &Input,
    out: &[Output],
) {
    match input {
        Input::Failed(attempt, _) | Input::Welcomed(attempt, _) => {
            watched.dials.remove(attempt);
        }
        Input::Told(_, contact) => {
            watched.told.insert((contact.address, contact.incarnation));
        }
        _ => {}
    }
    for output in out {
        match output {
            Output::Refuse(attempt, _) | Output::Abandon(attempt) => {
                watched.dials.remove(attempt);
            }
            Output::Dial(attempt, address) => {
                watched.dials.insert(*attempt);
                let to = world.nodes.iter().find(|it| it.address == *address);
                let view = to.and_then(|to| world.life(node).membership.peer(&to.name));
                let liars = world.has_liars(); // they name other nodes there
                let back =
                    |life| watched.told.iter().any(|it| it.0 == *address && (liars || it.1 > life));
                let left = view.is_some_and(|view| {
                    view.reason == Some(Reason::Left) && !back(view.incarnation)
                });
                if left && !world.nodes[node].seeds.contains(address) {
                    world.fail("dials_are_bounded", &format!("{address} left"));
                }
            }
            _ => {}
        }
    }
    if watched.dials.len() > membership::Config::default().dials {
        world.fail("dials_are_bounded", &format!("n{node:03}: {:?}", watched.dials));
    }
}
