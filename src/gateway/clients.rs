//! How many clients are here, and whether they are to go elsewhere.
//!
//! # Drain
//! A node that is drained takes no more clients, and sends each that is here elsewhere at a moment of its own within the
//! drain time: in waves, so that the other nodes are not asked for everything at once. Undone, those that are still here
//! stay. A node that stops sends them all at once.

use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::actors::timer;
use crate::proto::limits::ClientLimits;

/// Over how long clients are sent elsewhere, unless it is told otherwise.
pub const DRAIN_TIME: Duration = Duration::from_secs(30);

/// Whether the node serves clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It does.
    Open,
    /// It takes no more, and the last one goes elsewhere at that time.
    Draining(Instant),
    /// All go now.
    Stopping,
}

/// The clients that are here.
#[derive(Debug)]
pub struct Clients {
    /// Sockets and long-polling sessions.
    pub connected: AtomicUsize,
    /// Topics that they have joined.
    pub joined: AtomicUsize,
    /// Also sent anew, with the same value, when rights may have ended.
    phase: watch::Sender<Phase>,
    /// Whether the node is drained.
    leaving: watch::Sender<bool>,
    drain_time: Duration,
    /// What each may do and have.
    pub limits: ClientLimits,
}

impl Default for Clients {
    fn default() -> Self {
        Self::new(DRAIN_TIME, ClientLimits::default())
    }
}

impl Clients {
    /// Nobody is here; a drain takes so long.
    pub fn new(drain_time: Duration, limits: ClientLimits) -> Self {
        let (connected, joined) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (phase, leaving) = (watch::Sender::new(Phase::Open), watch::Sender::new(false));
        Self { connected, joined, phase, leaving, drain_time, limits }
    }

    /// Whether the node is drained, for those who hand on what is here.
    pub(crate) fn leaving(&self) -> watch::Receiver<bool> {
        self.leaving.subscribe()
    }

    /// Sends the clients elsewhere, over this time or the node's own, and takes no more.
    pub fn drain(&self, over: Option<Duration>) {
        let end = timer::now() + over.unwrap_or(self.drain_time);
        let drains = self.phase.send_if_modified(|phase| {
            let drains = *phase != Phase::Stopping;
            if drains {
                *phase = Phase::Draining(end);
            }
            drains
        });
        if drains {
            self.leaving.send_replace(true);
        }
    }

    /// Takes clients again; those that are still here stay.
    pub(super) fn undrain(&self) {
        let undone = self.phase.send_if_modified(|phase| {
            let drains = matches!(phase, Phase::Draining(_));
            if drains {
                *phase = Phase::Open;
            }
            drains
        });
        if undone {
            self.leaving.send_replace(false);
        }
    }

    /// The node stops: sends all clients elsewhere at once.
    pub fn stop(&self) {
        self.phase.send_replace(Phase::Stopping);
    }

    /// Has all clients look whether their rights have ended.
    #[cfg(feature = "gateway")]
    pub(super) fn look(&self) {
        self.phase.send_modify(|_same| {});
    }

    /// Whether clients are sent elsewhere.
    pub fn draining(&self) -> bool {
        *self.phase.borrow() != Phase::Open
    }

    /// How long it is until the last client is sent elsewhere; `None` when none is.
    pub(super) fn drain_left(&self) -> Option<Duration> {
        match *self.phase.borrow() {
            Phase::Open => None,
            Phase::Draining(end) => Some(end.saturating_duration_since(timer::now())),
            Phase::Stopping => Some(Duration::ZERO),
        }
    }

    /// What one client is told.
    #[cfg(feature = "gateway")]
    pub(super) fn follow(&self) -> Told {
        let mut told = Told { phase: self.phase.subscribe(), goes: None };
        told.look();
        told
    }
}

/// What one client is told: when to go elsewhere, and when to look at its rights.
#[cfg(feature = "gateway")]
#[derive(Debug)]
pub(super) struct Told {
    phase: watch::Receiver<Phase>,
    /// When it is to go.
    goes: Option<Instant>,
}

/// What a client is to do.
#[cfg(feature = "gateway")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Go elsewhere.
    Go,
    /// Look at its rights.
    Look,
}

#[cfg(feature = "gateway")]
impl Told {
    /// Waits for what the client is to do. Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> Order {
        let goes = self.goes;
        let time = async {
            match goes {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = time => Order::Go,
            changed = self.phase.changed() => {
                if changed.is_err() {
                    return Order::Go;
                }
                self.look();
                if self.goes.is_some_and(|at| at <= timer::now()) { Order::Go } else { Order::Look }
            }
        }
    }

    /// Waits until rights may have ended, or the node drains or stops.
    pub(super) async fn changed(&mut self) {
        if self.phase.changed().await.is_err() {
            // Nothing ends rights any more but time.
            std::future::pending::<()>().await;
        }
    }

    /// Waits until the client is to go.
    pub(super) async fn go(&mut self) {
        while self.next().await != Order::Go {}
    }

    fn look(&mut self) {
        let (phase, now) = (*self.phase.borrow_and_update(), timer::now());
        self.goes = match (phase, self.goes) {
            (Phase::Open, _) => None,
            (Phase::Draining(end), Some(at)) if at <= end => Some(at),
            (Phase::Draining(end), _) => {
                let left = end.saturating_duration_since(now);
                Some(now + left.mul_f64(rand::random::<f64>()))
            }
            (Phase::Stopping, _) => Some(now),
        };
    }
}

#[cfg(all(test, feature = "gateway"))]
mod tests {
    use super::*;

    async fn is_told(told: &mut Told, within: Duration) -> Option<Order> {
        tokio::time::timeout(within, told.next()).await.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn clients_go_one_after_another_over_the_drain_time() {
        let clients = Clients::default();
        let mut all: Vec<Told> = (0..1000).map(|_| clients.follow()).collect();
        clients.drain(None);
        let start = timer::now();
        let mut gone = Vec::new();
        for told in &mut all {
            told.look();
            gone.push(told.goes.expect("goes").duration_since(start).as_secs_f64());
        }
        assert!(gone.iter().all(|at| (0.0..=30.0).contains(at)));
        for third in 0..3 {
            let (from, to) = (f64::from(third) * 10.0, f64::from(third + 1) * 10.0);
            let share = gone.iter().filter(|at| (from..to).contains(*at)).count();
            assert!((200..467).contains(&share), "{share} of 1000 from {from} to {to}");
        }
        let mut one = all.remove(0);
        one.go().await;
        let took = timer::now() - start;
        assert!((took.as_secs_f64() - gone[0]).abs() < 0.01, "{took:?}, not {}", gone[0]);
        assert_eq!(clients.drain_left(), Some(Duration::from_secs(30) - took));
    }

    #[tokio::test(start_paused = true)]
    async fn an_undone_drain_keeps_those_that_are_here_and_a_stop_sends_all_at_once() {
        let clients = Clients::default();
        let mut told = clients.follow();
        clients.drain(None);
        assert_eq!(is_told(&mut told, Duration::ZERO).await, Some(Order::Look));
        clients.undrain();
        assert!(!clients.draining() && clients.drain_left().is_none());
        assert_eq!(is_told(&mut told, Duration::ZERO).await, Some(Order::Look));
        assert_eq!(is_told(&mut told, Duration::from_secs(3600)).await, None, "it stays");
        // A shorter time hastens those who would go later; rights that are looked at change no moment.
        clients.drain(Some(Duration::from_secs(3600)));
        let mut late = clients.follow();
        clients.drain(Some(Duration::from_secs(1)));
        let before = timer::now();
        clients.look();
        late.go().await;
        assert!(timer::now() - before <= Duration::from_secs(1));
        clients.stop();
        assert_eq!(is_told(&mut told, Duration::ZERO).await, Some(Order::Go));
        clients.undrain();
        assert!(clients.draining(), "what stops is not undone");
        let mut newcomer = clients.follow();
        assert_eq!(is_told(&mut newcomer, Duration::ZERO).await, Some(Order::Go));
    }
}
