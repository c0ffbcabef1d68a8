//! Events as fast as they can be stored.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::actors::news::Bus;
use crate::actors::timer;
use crate::proto::event::{Event, Status};

/// Events that are noted between two looks at how many wait.
const BATCH: u64 = 256;
/// Events that may wait for the disk.
const WAITING: usize = 16 * 1024;
/// Between two looks while too many wait.
const PAUSE: Duration = Duration::from_millis(1);

/// What a flood came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flooded {
    /// Events noted.
    pub noted: u64,
    /// The last event that was stored by its end.
    pub stored: u64,
    /// How long it took.
    pub took: Duration,
}

/// Notes events for so long: changes of links from `1@flood`, `2@flood`, and so on, to this node.
pub(super) async fn flood(bus: &Bus, time: Duration) -> Flooded {
    let event = |number: u64| {
        let from = format!("{number}@flood").parse().ok()?;
        let (to, state) = (bus.exchange().name().clone(), Status::Online);
        Some(Event::LinkChanged { from, to, state, suspect: false, reason: None })
    };
    let (trail, start) = (bus.trail(), timer::now());
    let mut noted = 0;
    while start.elapsed() < time {
        if trail.waiting() > WAITING {
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        let last = noted + BATCH - 1;
        (noted..last).filter_map(event).for_each(|event| trail.note(event));
        // This one wakes the writer.
        event(last).into_iter().for_each(|event| bus.announce(event));
        noted += BATCH;
        tokio::task::yield_now().await;
    }
    Flooded { noted, stored: trail.unstored(0).0, took: start.elapsed() }
}
