//! Calls at a steady pace to several nodes, with the time of each: what others wait while something else goes on.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::{ANSWER, Fallible, nanos};
use crate::actors::exchange::Exchange;
use crate::actors::timer;
use crate::io::clock;
use crate::proto::node::NodeName;
use crate::proto::topic::{Address, Name};

/// Longest run, so that its answer stays short.
const LONGEST: Duration = Duration::from_secs(10);
/// Shortest pause between two calls.
const SHORTEST: Duration = Duration::from_millis(1);

/// Calls to be made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Probe {
    /// To these nodes by turns.
    pub to: Vec<NodeName>,
    /// One in each such span, whether or not those before were answered.
    pub every: Duration,
    /// For how long.
    pub time: Duration,
}

/// What became of the calls.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Probed {
    /// Of each that was answered: when it was made, in milliseconds since 1970, and its round-trip time in nanoseconds.
    pub answered: Vec<(u64, u64)>,
    /// Those that were not.
    pub failed: u64,
}

pub(super) async fn probe(exchange: &Exchange, order: &Probe) -> Fallible<Probed> {
    if order.time > LONGEST || order.every < SHORTEST || order.to.is_empty() {
        return Err("for 10 s at most, one in a millisecond at most, to somebody".into());
    }
    let (end, mut calls) = (timer::now() + order.time, JoinSet::new());
    let mut pace = tokio::time::interval(order.every);
    // A pace that falls behind would make a burst, which waits for itself.
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for node in order.to.iter().cycle() {
        pace.tick().await;
        if timer::now() >= end {
            break;
        }
        let to = Address { name: Name::echo(), node: Some(node.clone()) };
        let exchange = exchange.clone();
        calls.spawn(async move {
            let (at, start) = (clock::millis(), timer::now());
            let answer = exchange.call(&to, Bytes::from_static(b"probe"), ANSWER).await;
            answer.ok().map(|_echo| (at, nanos(timer::now() - start)))
        });
    }
    let mut probed = Probed::default();
    while let Some(call) = calls.join_next().await {
        match call? {
            Some(answered) => probed.answered.push(answered),
            None => probed.failed += 1,
        }
    }
    Ok(probed)
}
