//! Signs of life of one link: beats go straight to its control lane, and what it hears is written by its
//! own task and read by anyone who asks. No mailbox is in between, nobody waits.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::actors::timer;
use crate::io::tcp;
use crate::proto::frame::Control;
use crate::proto::heartbeat::monitor::Counts;
use crate::proto::heartbeat::{RoundTrip, Trips};

/// The signs of one link. Times are microseconds since it began.
#[derive(Debug)]
pub struct Pulse {
    began: Instant,
    control: mpsc::Sender<Control>,
    /// The connection's address here and there.
    ends: Option<(SocketAddr, SocketAddr)>,
    heard: AtomicU64,
    trips: Mutex<Trips>,
}

impl Pulse {
    pub(super) fn new(
        control: mpsc::Sender<Control>,
        ends: Option<(SocketAddr, SocketAddr)>,
    ) -> Self {
        let (began, heard) = (timer::now(), AtomicU64::new(0));
        Self { began, control, ends, heard, trips: Mutex::default() }
    }

    /// Sends a beat.
    pub fn beat(&self) {
        self.send(Control::Ping(self.micros()));
    }

    /// Says something on the link's own lane. A lane that is full of beats and echoes already says that
    /// the peer does not read.
    pub(super) fn send(&self, control: Control) {
        self.control.try_send(control).unwrap_or(());
    }

    /// What the kernel knows of the connection, as far as it tells.
    pub fn tcp(&self) -> Option<Counts> {
        self.ends.and_then(|(here, there)| tcp::inspect(here, there).ok())
    }

    /// When the last byte arrived.
    pub fn heard(&self) -> Instant {
        self.began + Duration::from_micros(self.heard.load(Ordering::Relaxed))
    }

    /// The round trips of answers since the last call.
    pub fn pongs(&self) -> Vec<Duration> {
        self.trips.lock().pongs()
    }

    /// How long beats take there and back; `None` before the first came back.
    pub fn round_trip(&self) -> Option<RoundTrip> {
        self.trips.lock().measured()
    }

    /// Microseconds since the link began: what a beat carries.
    pub(super) fn micros(&self) -> u64 {
        u64::try_from(timer::now().saturating_duration_since(self.began).as_micros())
            .unwrap_or(u64::MAX)
    }

    pub(super) fn on_bytes(&self) {
        self.heard.store(self.micros(), Ordering::Relaxed);
    }

    /// A beat came back; how long that took. One that was never sent (in the future) is the peer's fault
    /// and ignored.
    pub(super) fn on_pong(&self, sent: u64) -> Option<Duration> {
        let took = Duration::from_micros(self.micros().checked_sub(sent)?);
        self.trips.lock().push(took);
        Some(took)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn wait(millis: u64) {
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn round_trips_are_measured_and_answers_of_the_future_are_not() {
        let pulse = Pulse::new(mpsc::channel(1).0, None);
        assert_eq!(pulse.round_trip(), None);
        for millis in 1..=200 {
            let sent = pulse.micros();
            wait(millis).await;
            pulse.on_pong(sent);
        }
        pulse.on_pong(u64::MAX);
        let trip = pulse.round_trip().expect("measured");
        let millis = |trip: Duration| trip.as_millis();
        assert_eq!((millis(trip.last), millis(trip.p50), millis(trip.p99)), (200, 136, 198));
    }
}
