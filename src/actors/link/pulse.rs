//! Signs of life of one link, written by its own task and read by whoever asks: no message, no wait.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::actors::timer;

/// Round-trip times kept.
const TIMES: usize = 128;

/// The signs of one link. Times are microseconds since it began.
#[derive(Debug)]
pub struct Pulse {
    began: Instant,
    heard: AtomicU64,
    beat: AtomicU64,
    round_trips: Mutex<VecDeque<Duration>>,
}

/// Round-trip times of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundTrip {
    /// The latest.
    pub last: Duration,
    /// The median of the last 128.
    pub p50: Duration,
    /// Their 99th percentile.
    pub p99: Duration,
}

impl Pulse {
    pub(super) fn new() -> Self {
        let began = timer::now();
        let (heard, beat) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { began, heard, beat, round_trips: Mutex::default() }
    }

    /// When the last byte arrived.
    #[must_use]
    pub fn heard(&self) -> Instant {
        self.began + Duration::from_micros(self.heard.load(Ordering::Relaxed))
    }

    /// When the last beat arrived.
    #[must_use]
    pub fn beat(&self) -> Option<Instant> {
        let micros = self.beat.load(Ordering::Relaxed);
        (micros != 0).then(|| self.began + Duration::from_micros(micros))
    }

    /// How long beats take there and back; `None` before the first came back.
    #[must_use]
    pub fn round_trip(&self) -> Option<RoundTrip> {
        let times = self.round_trips.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let last = *times.back()?;
        let mut sorted: Vec<_> = times.into();
        sorted.sort_unstable();
        let at = |percent: usize| sorted.get((sorted.len() - 1) * percent / 100).copied();
        Some(RoundTrip { last, p50: at(50)?, p99: at(99)? })
    }

    /// Microseconds since the link began: what a beat carries.
    pub(super) fn micros(&self) -> u64 {
        u64::try_from(timer::now().saturating_duration_since(self.began).as_micros())
            .unwrap_or(u64::MAX)
    }

    pub(super) fn on_bytes(&self) {
        self.heard.store(self.micros(), Ordering::Relaxed);
    }

    pub(super) fn on_beat(&self) {
        self.beat.store(self.micros().max(1), Ordering::Relaxed);
    }

    /// A beat came back. One that was never sent (in the future) is the peer's fault and ignored.
    pub(super) fn on_echo(&self, sent: u64) {
        if let Some(took) = self.micros().checked_sub(sent) {
            let mut times = self.round_trips.lock().unwrap_or_else(PoisonError::into_inner);
            times.push_back(Duration::from_micros(took));
            if times.len() > TIMES {
                times.pop_front();
            }
        }
    }
}
