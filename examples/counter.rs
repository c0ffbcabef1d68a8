//! A replicated counter that only grows: each node counts for itself, tells everybody its own count, and
//! takes of each other node the largest count it has heard. The sum of all is the counter.
//!
//! ```text
//! counter DIR HOST:PORT NAME@HOST UP NODES      counts up to UP; ends when NODES nodes agree
//! ```
//!
//! A message that is lost, doubled or late does no harm, because the largest count wins. What was said
//! before a node came is not said again: so whoever sees a node come online asks it for all it knows.
//! Certificates are in DIR/certs, the node's data in DIR/NAME@HOST; HOST:PORT is a node to join at.
//! `scripts/example counter` starts everything.
#![allow(clippy::print_stdout, reason = "what an example comes to is printed")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use postcard_schema::Schema;
use serde::{Deserialize, Serialize};
use xpando_node::{Event, Node, NodeHandle, NodeName, Received, Status};

type Failure = Box<dyn std::error::Error + Send + Sync>;
/// The largest count heard of each node.
type Counts = BTreeMap<String, u64>;

/// What a node says on `counter:counts`.
#[derive(Serialize, Deserialize, Schema)]
struct Said {
    /// Its own count.
    count: u64,
    /// The sum of all that it knows.
    total: u64,
}

/// Between two things said, and how long an answer may take.
const TICK: Duration = Duration::from_millis(20);
const WITHIN: Duration = Duration::from_secs(5);
/// So often a node says the final total before it goes: each message is sent at most once.
const FAREWELLS: u32 = 10;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, join, name, up, nodes] = args.as_slice() else {
        return Err("counter DIR HOST:PORT NAME@HOST UP NODES".into());
    };
    let node = Node::builder(name)
        .join(join)
        .certs(format!("{dir}/certs"))
        .data_dir(format!("{dir}/{name}"))
        .beacons(false)
        .start()
        .await?;
    let counted = count(&node, up.parse()?, nodes.parse()?).await;
    node.shutdown().await;
    counted
}

/// Counts until so many nodes have the same total.
async fn count(node: &NodeHandle, up: u64, nodes: usize) -> Result<(), Failure> {
    let me = node.name().to_string();
    let counts = Arc::new(Mutex::new(Counts::from([(me.clone(), 0)])));
    let known = counts.clone();
    let _serving = node.serve_typed("counter", move |_from, ()| {
        let known = known.lock().clone();
        async move { Ok(known) }
    })?;
    // In this order: who comes between the two is heard of twice, and never not at all.
    let (mut said, mut events) = (node.subscribe("counter:counts")?, node.events());
    ask_all(node, &counts);
    let (mut totals, mut farewells) = (Counts::new(), 0);
    let mut ticks = tokio::time::interval(TICK);
    let final_total = up * nodes as u64;
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let (count, total) = {
                    let mut counts = counts.lock();
                    let mine = counts.entry(me.clone()).or_default();
                    *mine = up.min(*mine + 1);
                    (*mine, counts.values().sum())
                };
                node.publish_typed("counter:counts", &Said { count, total }).await?;
                farewells += u32::from(total == final_total);
            }
            received = said.recv() => match received {
                Some(Received::Message(message)) => {
                    let Said { count, total } = said.decode(&message)?;
                    merge(&counts, [(message.from.to_string(), count)]);
                    totals.insert(message.from.to_string(), total);
                }
                // The next message of each node says more than those that were missed.
                Some(Received::Missed(_)) => {}
                None => return Err("the subscription has ended".into()),
            },
            event = events.recv() => match event {
                Some(Event::PeerOnline { peer, .. }) => {
                    tokio::spawn(ask(node.clone(), peer, counts.clone()));
                }
                Some(Event::EventsMissed { .. }) => ask_all(node, &counts),
                Some(_) => {}
                None => return Err("the node has ended".into()),
            },
        }
        let agree = totals.values().filter(|total| **total == final_total).count();
        if agree == nodes && farewells >= FAREWELLS {
            println!("{me} counts {final_total}: {:?}", counts.lock());
            return Ok(());
        }
    }
}

/// Asks every node that is online.
fn ask_all(node: &NodeHandle, counts: &Arc<Mutex<Counts>>) {
    let members = node.members();
    for row in members.borrow().iter().filter(|row| row.peer.status == Status::Online) {
        tokio::spawn(ask(node.clone(), row.peer.name.clone(), counts.clone()));
    }
}

/// Asks a node for all it knows. One that is no counter, or gone again, has nothing to say; who does not
/// answer in time is heard at its next count.
async fn ask(node: NodeHandle, peer: NodeName, counts: Arc<Mutex<Counts>>) {
    if let Ok(known) = node.call_typed_on::<_, Counts>(&peer, "counter", &(), WITHIN).await {
        merge(&counts, known);
    }
}

/// Merging is commutative, associative and idempotent.
fn merge(counts: &Mutex<Counts>, heard: impl IntoIterator<Item = (String, u64)>) {
    let mut counts = counts.lock();
    for (node, count) in heard {
        let known = counts.entry(node).or_default();
        *known = count.max(*known);
    }
}
