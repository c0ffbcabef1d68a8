//! For the unit tests of services: handles of several mock nodes in one process.
//!
//! What is between two nodes is a node's own: the lanes, the flow control, the order, the losses. What is
//! not there is the rest of a node: no socket, no certificate, no actor, no file, nobody who redials. A
//! mock peer is a handle on which the test itself serves and publishes. It is made for tokio's paused time,
//! `#[tokio::test(start_paused = true)]` (tokio's feature `test-util`): each run is the same, and a deadline
//! that passes costs no time.
//!
//! ```
//! use std::time::Duration;
//! use xpando_node::{CallError, NodeHandle, NodeError, testkit};
//!
//! /// The service under test: asks a peer, and does without where it cannot.
//! async fn price(node: &NodeHandle) -> Result<u32, NodeError> {
//!     match node.call_typed("price@shop@h", &"tea", Duration::from_secs(5)).await {
//!         Err(NodeError::Call(CallError::NotConnected)) => Ok(100),
//!         other => other,
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (mut mesh, [me, shop]) = testkit::linked(["me@h", "shop@h"]).await?;
//! let _mock = shop.serve_typed("price", |_, _what: String| async { Ok(42_u32) })?;
//! assert_eq!(price(&me).await?, 42);
//! mesh.cut(&me, &shop).await;
//! assert_eq!(price(&me).await?, 100);
//! mesh.heal(&me, &shop).await;
//! assert_eq!(price(&me).await?, 42);
//! # Ok(())
//! # }
//! ```

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::actors::exchange::Exchange;
use crate::actors::link::cable::{End, cable};
use crate::actors::news::Bus;
use crate::actors::peers::{Row, View};
use crate::actors::registry::Registry;
use crate::actors::timer;
use crate::io::clock;
use crate::io::metrics::Metrics;
use crate::node::NodeHandle;
use crate::proto::event::{Event, Reason, Status};
use crate::proto::frame::CloseReason;
use crate::proto::membership::PeerView;
use crate::proto::node::{Incarnation, NameError, NodeName};
use crate::proto::registry::{Entry, Profile, ProfileError, State};

/// The life that every mock node is in.
const LIFE: Incarnation = Incarnation(1);
/// Where they all say they are; nobody dials it.
const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

/// Handles of nodes of these names, each linked with each other.
///
/// # Errors
/// [`NameError`].
pub async fn linked<const N: usize>(
    names: [&str; N],
) -> Result<(Mesh, [NodeHandle; N]), NameError> {
    let mut mesh = Mesh::default();
    let mut handles = Vec::new();
    for name in names {
        let node = mesh.add(name.parse()?);
        for other in &handles {
            mesh.heal(&node, other).await;
        }
        handles.push(node);
    }
    let Ok(handles) = <[NodeHandle; N]>::try_from(handles) else {
        unreachable!("a handle for each name")
    };
    Ok((mesh, handles))
}

/// Returns when every task waits for something from outside: in paused time, all that was said has
/// arrived.
pub async fn settled() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

/// What is between the nodes. All links end when it is dropped.
#[derive(Debug, Default)]
#[must_use = "all links end when it is dropped"]
pub struct Mesh {
    members: BTreeMap<NodeName, watch::Sender<View>>,
    links: BTreeMap<(NodeName, NodeName), [End; 2]>,
    registries: BTreeMap<NodeName, Registry>,
}

impl Mesh {
    /// The handle of another node, which is linked to nobody yet.
    pub fn add(&mut self, name: NodeName) -> NodeHandle {
        let (sender, members) = watch::channel(View::default());
        self.members.insert(name.clone(), sender);
        let metrics = Metrics::default();
        let registry = Registry::new(&metrics, []);
        registry.imagine(&name, |own| {
            (own.status, own.incarnation) = (Some(Status::Online), LIFE);
        });
        self.registries.insert(name.clone(), registry.clone());
        NodeHandle::new(Bus::new(&Exchange::new(name, &metrics)), members, registry)
    }

    /// From now on a node says that it is good for this, and all nodes there are have heard it.
    ///
    /// # Errors
    /// [`ProfileError`]; then nothing changed.
    pub fn specialize(&mut self, node: &NodeHandle, words: &[&str]) -> Result<(), ProfileError> {
        let words = words.iter().map(|word| word.parse()).collect::<Result<Vec<_>, _>>()?;
        let state = State::Live(Profile::new(words, [], clock::millis())?);
        let origin = node.name().clone();
        let entry = Entry { origin, incarnation: LIFE, version: 1, state, seal: None };
        for registry in self.registries.values() {
            registry.imagine(node.name(), |known| known.entry = Some(entry.clone()));
        }
        Ok(())
    }

    /// Links two nodes that are not; returns when each knows what the other wants and serves.
    pub async fn heal(&mut self, a: &NodeHandle, b: &NodeHandle) {
        let key = key(a, b);
        if a.name() == b.name() || self.links.get(&key).is_some_and(|ends| ends[0].runs()) {
            return;
        }
        // In the order of the key, by which `leave` finds the leaver's end.
        let (a, b) = if key.0 == *a.name() { (a, b) } else { (b, a) };
        let ends = cable(a.bus(), b.bus());
        ends.iter().for_each(|end| end.pulse.beat()); // both know the way's time, as lookups want it
        self.links.insert(key, ends);
        for (here, there) in [(a, b), (b, a)] {
            self.set_view(here, there.name(), Status::Online, None);
            let peer = there.name().clone();
            let online = Event::PeerOnline { peer, incarnation: LIFE, address: ADDRESS };
            here.bus().announce(online);
        }
        settled().await;
    }

    /// Breaks the link of two nodes: what is under way between them is lost. Returns when both know.
    pub async fn cut(&mut self, a: &NodeHandle, b: &NodeHandle) {
        let Some(ends) = self.links.remove(&key(a, b)) else { return };
        for end in ends {
            end.stop().await;
        }
        for (here, there) in [(a, b), (b, a)] {
            let (peer, cause) = (there.name().clone(), "cut".to_owned());
            here.bus().announce(Event::LinkLost { peer, cause });
            self.offline(here, there.name(), Reason::Unreachable);
        }
    }

    /// One node says goodbye to another, as it does to all when it shuts down.
    pub async fn leave(&mut self, leaver: &NodeHandle, other: &NodeHandle) {
        let key = key(leaver, other);
        let Some([mut first, mut second]) = self.links.remove(&key) else { return };
        let of_leaver = if key.0 == *leaver.name() { &mut first } else { &mut second };
        if let Some(part) = of_leaver.part.take() {
            part.send(CloseReason::Left).unwrap_or(()); // its end may have come already
        }
        for end in [&mut first, &mut second] {
            drop(end.ended().await);
        }
        self.offline(other, leaver.name(), Reason::Left);
    }

    fn offline(&self, here: &NodeHandle, peer: &NodeName, reason: Reason) {
        self.set_view(here, peer, Status::Offline, Some(reason));
        here.bus().announce(Event::PeerOffline { peer: peer.clone(), reason });
    }

    /// Changes a node's view of another.
    fn set_view(&self, here: &NodeHandle, peer: &NodeName, status: Status, reason: Option<Reason>) {
        let Some(members) = self.members.get(here.name()) else { return };
        let view = PeerView {
            name: peer.clone(),
            address: Some(ADDRESS),
            status,
            reason,
            cause: None,
            incarnation: LIFE,
            since: timer::now(),
        };
        let row = Row { peer: view, id: None, since: clock::wall() };
        here.registry().imagine(peer, |known| {
            (known.status, known.reason, known.incarnation) = (Some(status), reason, LIFE);
        });
        members.send_modify(|members| {
            let rows = Arc::make_mut(members);
            match rows.binary_search_by(|row| row.peer.name.cmp(peer)) {
                Ok(at) => rows[at] = row,
                Err(at) => rows.insert(at, row),
            }
        });
    }
}

fn key(a: &NodeHandle, b: &NodeHandle) -> (NodeName, NodeName) {
    let (a, b) = (a.name().clone(), b.name().clone());
    if a < b { (a, b) } else { (b, a) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    use crate::actors::exchange::{CallError, Received};
    use crate::proto::talk::DownReason;

    const HOUR: Duration = Duration::from_secs(3600);

    fn statuses(node: &NodeHandle) -> Vec<(String, Status)> {
        let members = node.members();
        let rows = members.borrow();
        rows.iter().map(|row| (row.peer.name.short().to_owned(), row.peer.status)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_ends_what_is_under_way_and_is_seen_and_healed() {
        let (mut mesh, [a, b, c]) = linked(["a@h", "b@h", "c@h"]).await.expect("names");
        let online = |name: &str| (name.to_owned(), Status::Online);
        assert_eq!(statuses(&a), [online("b"), online("c")]);
        let mut events = a.events();
        let _stuck = b.serve("stuck", |_| std::future::pending()).expect("free");
        let mut heard = c.subscribe("t").expect("sound");
        settled().await;
        let asking = tokio::spawn({
            let a = a.clone();
            async move { a.call("stuck@b@h", "", HOUR).await }
        });
        settled().await;
        mesh.cut(&b, &a).await;
        assert_eq!(asking.await.expect("no panic"), Err(CallError::OutcomeUnknown.into()));
        assert_eq!(statuses(&a), [("b".to_owned(), Status::Offline), online("c")]);
        let lost = events.recv().await;
        assert!(matches!(lost, Some(Event::LinkLost { .. })), "{lost:?}");
        a.publish("t", "still").await.expect("sound");
        let still = heard.recv().await;
        assert!(matches!(still, Some(Received::Message(m)) if m.payload == "still"));
        mesh.heal(&a, &b).await;
        mesh.heal(&a, &b).await; // nothing is left to heal
        assert_eq!(statuses(&a), [online("b"), online("c")]);
        let late = a.call("stuck@b@h", "", HOUR).await;
        assert_eq!(late, Err(CallError::DeadlinePassed.into()), "an hour passes at once");
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_is_known_to_have_left() {
        let (mut mesh, [a, b]) = linked(["a@h", "b@h"]).await.expect("names");
        let _serving = a.serve("name", |_| async { Ok(Bytes::new()) }).expect("free");
        settled().await;
        let watch = b.watch("name", a.name()).expect("linked");
        mesh.leave(&a, &b).await;
        assert_eq!(watch.gone().await, DownReason::NodeOffline);
        let left = Some(Reason::Left);
        assert_eq!(b.members().borrow().first().and_then(|row| row.peer.reason), left);
        assert!(linked(["nobody"]).await.is_err());
    }
}
