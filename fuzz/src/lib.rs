//! What the targets share: the bound on memory that hostile bytes may claim.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The most a decoder may hold at any moment because of one input, in bytes.
pub const MAX_MEMORY: usize = 64 * 1024;

/// The system's allocator, counting.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every request goes unchanged to `System`, whose guarantees are these.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(live, Relaxed);
        // SAFETY: the caller's promise about `layout` is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: `pointer` came from `alloc` above, and so from `System`, with this `layout`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Runs `work` and fails the input when it held more than [`MAX_MEMORY`] at any moment.
pub fn bounded<T>(work: impl FnOnce() -> T) -> T {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = work();
    let held = PEAK.load(Relaxed) - before;
    assert!(held <= MAX_MEMORY, "held {held} bytes, at most {MAX_MEMORY} are allowed");
    result
}
