//! Before a new topic has members: the other nodes know that messages on it are to come here.

use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;

use crate::actors::news::Bus;
use crate::proto::node::NodeName;
use crate::proto::topic::{Address, Name};

/// How long a new topic waits for the other nodes to know that it has members here.
const ACQUAINT: Duration = Duration::from_millis(250);

/// Waits until these peers know what this node subscribes to now: anyone who hears that it has joined may be told things at
/// once. One that does not answer in time holds up nobody.
pub(super) fn acquainted(
    bus: &Bus,
    peers: &BTreeSet<NodeName>,
) -> impl Future<Output = ()> + Send + use<> {
    let asks = peers.iter().cloned().map(|peer| {
        let bus = bus.clone();
        let to = Address { name: Name::channels(), node: Some(peer) };
        async move { drop(bus.exchange().call(&to, Bytes::new(), ACQUAINT).await) }
    });
    let asks: Vec<_> = asks.collect();
    async move {
        let mut asking = JoinSet::new();
        asks.into_iter().for_each(|ask| drop(asking.spawn(ask)));
        while asking.join_next().await.is_some() {}
    }
}
