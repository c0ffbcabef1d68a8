//! Many topics, and topics that come and go.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::Fallible;
use super::numbered::topics;
use crate::actors::exchange::{Exchange, Subscription};
use crate::actors::timer;
use crate::proto::topic::Topic;

/// Between two looks at what came on all the topics.
const LOOK: Duration = Duration::from_millis(100);
/// Topics that are open at a time while others come and go.
const OPEN: usize = 1000;
/// Different topics that come and go.
const TURNS: u64 = 1_000_000;
/// Changes between two looks at the clock.
const PORTION: u64 = 64;

/// What many changes of subscriptions came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// Subscriptions made.
    pub subscribed: u64,
    /// And ended.
    pub unsubscribed: u64,
    /// How long that took.
    pub took: Duration,
}

/// Subscribes to so many topics; a task among `tasks` holds and reads them.
pub(super) fn hold(
    exchange: &Exchange,
    below: &str,
    count: u64,
    tasks: &mut JoinSet<()>,
) -> Fallible<Changed> {
    let topics = topics(below, count)?;
    let start = timer::now();
    let open = |topic: Topic| exchange.subscribe(topic);
    let mut held = topics.into_iter().map(open).collect::<Result<Vec<Subscription>, _>>()?;
    let changed = Changed { subscribed: count, unsubscribed: 0, took: timer::now() - start };
    // A task each would be more than the topics cost.
    tasks.spawn(async move {
        loop {
            for subscription in &mut held {
                while subscription.try_recv().is_some() {}
            }
            tokio::time::sleep(LOOK).await;
        }
    });
    Ok(changed)
}

/// Subscribes to ever other topics and unsubscribes again, for so long.
pub(super) async fn churn(exchange: &Exchange, below: &str, time: Duration) -> Fallible<Changed> {
    let (mut open, mut changed) = (VecDeque::with_capacity(OPEN + 1), Changed::default());
    let start = timer::now();
    while changed.took < time {
        for _ in 0..PORTION {
            let topic = format!("{below}{:06}", changed.subscribed % TURNS);
            open.push_back(exchange.subscribe(topic.parse::<Topic>()?)?);
            changed.subscribed += 1;
            if open.len() > OPEN {
                open.pop_front();
                changed.unsubscribed += 1;
            }
        }
        tokio::task::yield_now().await;
        changed.took = timer::now() - start;
    }
    changed.unsubscribed += open.len() as u64;
    drop(open);
    Ok(changed)
}
