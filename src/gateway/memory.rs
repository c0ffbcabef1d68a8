//! Whether there is memory for more: more clients, and more that they join.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::actors::timer;
use crate::io::limits::{Memory, Scarce};

/// How long one look counts.
const LOOK: Duration = Duration::from_millis(200);

/// What was seen of the memory. Clones are the same.
#[derive(Clone)]
pub(super) struct MemoryWatch(Arc<Mutex<Seen>>);

struct Seen {
    memory: Memory,
    at: Option<Instant>,
    scarce: Option<Scarce>,
}

impl MemoryWatch {
    pub(super) fn new() -> Self {
        let memory = Memory::of_this_process();
        Self(Arc::new(Mutex::new(Seen { memory, at: None, scarce: None })))
    }

    /// The limit that is nearly reached, if one is.
    pub(super) fn scarce(&self) -> Option<Scarce> {
        let mut seen = self.0.lock();
        let now = timer::now();
        if seen.at.is_none_or(|at| at + LOOK <= now) {
            (seen.at, seen.scarce) = (Some(now), seen.memory.scarce());
        }
        seen.scarce.clone()
    }
}
