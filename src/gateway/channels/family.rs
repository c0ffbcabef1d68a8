//! The channels of every node, a file each: what a pattern of topics can be given to without any service.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub(super) mod network;
pub(super) mod node;
pub(super) mod room;

/// One of so many joins, for as long as it is kept.
pub(super) struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn of(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
