//! Actors of other nodes, through ractor's own process groups and sessions.
//!
//! An actor whose message derives `RactorClusterMessage` joins a group; every node finds it there and
//! sends it messages as if it were near. A reference of ours keeps what ractor's does not promise:
//! 1. Nobody far away can stop an actor, or the session that leads to it: there is no such method.
//! 2. Every call has a deadline, and a lost link is told apart from a late answer.
//! 3. What waits in ractor's session for one peer is bounded, and what is more is refused.
//! 4. Of this node's actors at most as many are in groups as a peer lets one node have (`proto::budget`).
//! 5. No actor gets a message of another type than its own: ractor's name of a group is ours and the type's.
//!
//! ractor's session copies and queues each message several times: for a few thousand messages a second of
//! actors that exist anyway. Broadcasts and requests take the shorter way.

use std::any::type_name;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use ractor::message::SerializedMessage;
use ractor::{ActorCell, ActorId, ActorRef, Message, RpcReplyPort, pg};
use tokio::sync::oneshot;

use crate::actors::exchange::calls::CallError;
use crate::actors::exchange::outlet::{Outlet, SendError};
use crate::actors::exchange::topics::Topics;
use crate::io::metrics::{Count, Metrics};
use crate::proto::budget::{MAX_ACTORS, MEMBERSHIP_COST, MEMBERSHIPS};
use crate::proto::interest::TooMany;
use crate::proto::node::NodeName;
use crate::proto::outbox::MAX_MESSAGE;
use crate::proto::topic::Name;

/// ractor's scope of our groups.
const SCOPE: &str = "xpando";
/// Room for what ractor puts around a message.
const AROUND: usize = 1024;

/// Where each of ractor's sessions leads, by its number.
#[derive(Default)]
pub(super) struct Groups(Mutex<HashMap<u64, Arc<Outlet>>>);

/// An actor of a group, here or on another node.
#[derive(Clone, Debug)]
pub struct RemoteActor<M> {
    actor: ActorRef<M>,
    node: NodeName,
    outlet: Option<Arc<Outlet>>,
    metrics: Metrics,
    /// What it takes, where that is not `M`.
    other: Option<String>,
}

impl Groups {
    fn sessions(&self) -> MutexGuard<'_, HashMap<u64, Arc<Outlet>>> {
        let mut sessions = self.0.lock();
        sessions.retain(|_, outlet| !outlet.is_closed());
        sessions
    }

    /// ractor's session to a peer is ready.
    pub(super) fn session(&self, number: u64, outlet: Arc<Outlet>) {
        self.sessions().insert(number, outlet);
    }

    /// The actors of a group on this node, `me`, and all linked ones.
    pub(super) fn members<M: Message>(&self, of: &Topics, group: &Name) -> Vec<RemoteActor<M>> {
        let sessions = self.sessions();
        let scope = SCOPE.to_owned();
        let named = pg::which_scoped_groups(&scope).into_iter().filter(|_| M::serializable());
        let typed = named.filter_map(|name| Some((typed(group, &name)?.to_owned(), name)));
        let members = typed.flat_map(|(takes, name)| {
            let members = pg::get_scoped_members(&scope, &name).into_iter();
            members.map(move |cell| (cell, takes.clone()))
        });
        let actor = |(cell, takes): (ActorCell, String)| {
            let (node, outlet) = match cell.get_id() {
                ActorId::Local(_) => (of.me().clone(), None),
                ActorId::Remote { node_id, .. } => {
                    let outlet = sessions.get(&node_id)?.clone();
                    (outlet.peer().clone(), Some(outlet))
                }
            };
            let other = (takes != type_name::<M>()).then_some(takes);
            Some(RemoteActor {
                actor: cell.into(),
                node,
                outlet,
                metrics: of.metrics().clone(),
                other,
            })
        };
        members.filter_map(actor).collect()
    }
}

/// Why an actor does not join a group. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GroupError {
    /// This node is an edge, whose certificate does not name the group.
    #[error("this node's certificate does not let its actors join the group {0}")]
    NotAllowed(Name),
    /// More than a node may have.
    #[error(transparent)]
    TooMany(#[from] TooMany),
}

/// The type in ractor's name of a group, if it is this group: no name has a space.
fn typed<'a>(group: &Name, name: &'a str) -> Option<&'a str> {
    name.strip_prefix(group.as_str())?.strip_prefix(' ')
}

/// An actor of this node joins a group, until it stops.
pub(super) fn join<M: Message>(group: &Name, actor: &ActorRef<M>) -> Result<(), TooMany> {
    let name = format!("{group} {}", type_name::<M>());
    let cost = |key: &str| MEMBERSHIP_COST + SCOPE.len() + key.len();
    let mut actors = HashSet::from([actor.get_id()]);
    let mut bytes = cost(&name);
    for key in pg::which_scopes_and_groups() {
        let members = pg::get_scoped_local_members(&key.get_scope(), &key.get_group());
        let remote = members.iter().filter(|member| member.supports_remoting());
        bytes += remote.clone().count() * cost(&key.get_group());
        actors.extend(remote.map(ActorCell::get_id));
    }
    if actors.len() > MAX_ACTORS || bytes > MEMBERSHIPS {
        return Err(TooMany::ACTORS);
    }
    pg::join_scoped(SCOPE.to_owned(), name, vec![actor.get_cell()]);
    Ok(())
}

impl<M: Message> RemoteActor<M> {
    /// The node it is on.
    #[must_use]
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// Sends a message: at most once, in order.
    ///
    /// # Errors
    /// [`SendError`]; nothing was sent.
    pub fn cast(&self, message: M) -> Result<(), SendError> {
        if let Some(other) = &self.other {
            self.metrics.count(Count::Messages, "other_type");
            return Err(SendError::OtherType(other.clone()));
        }
        match &self.outlet {
            None => self.actor.cast(message).map_err(|_stopped| SendError::NotConnected),
            Some(outlet) => self.send(outlet, message),
        }
    }

    /// Makes a call and waits for its reply, at most so long. `message` puts the port for the reply into
    /// the message.
    ///
    /// # Errors
    /// [`CallError`]. [`CallError::OutcomeUnknown`] is also that of an actor that dropped the port.
    pub async fn call<R: Send + 'static>(
        &self,
        message: impl FnOnce(RpcReplyPort<R>) -> M,
        within: Duration,
    ) -> Result<R, CallError> {
        let (reply, replied) = oneshot::channel();
        self.cast(message(RpcReplyPort::from((reply, within))))?;
        match tokio::time::timeout(within, replied).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_dropped)) => Err(CallError::OutcomeUnknown),
            Err(_elapsed) => Err(CallError::DeadlinePassed),
        }
    }

    fn send(&self, outlet: &Outlet, message: M) -> Result<(), SendError> {
        // Only messages that travel have such a reference.
        let message = message.serialize().map_err(|_cannot| SendError::NotConnected)?;
        let length = match &message {
            SerializedMessage::Cast { args, .. } | SerializedMessage::Call { args, .. } => {
                args.len()
            }
            SerializedMessage::CallReply(_, reply) => reply.len(),
        };
        // ractor would take it, and the peer end the link.
        if length > MAX_MESSAGE - AROUND {
            return Err(SendError::TooLong(length));
        }
        outlet.hand_to_ractor(length + AROUND)?;
        self.actor.get_cell().send_serialized(message).map_err(|_gone| SendError::NotConnected)
    }
}
