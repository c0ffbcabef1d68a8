//! EventLog: sees to it that what happens is remembered.
//!
//! - **Owns** when the journal is written, signed and shortened, and when a raised incarnation is; each on a blocking
//!   thread, one after another.
//! - **Hears** that something happened; that a write came to its end.
//! - **Says** to all, as events, that nothing is being remembered, that it is again, and that the store's file was
//!   damaged.
//! - **After a restart**: writes at once. What waits to be written is in the trail, which outlives it; an incarnation
//!   whose raise was lost is raised again by the peers' refusal.
//! - **Never** waits for the disk itself.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ractor::ActorProcessingErr;

use crate::actors::news::Bus;
use crate::actors::supervisor::{Address, Child, Handle, Mail, Process};
use crate::actors::timer;
use crate::io::metrics::{Count, Metrics, Timing};
use crate::io::store::{Store, StoreError};
use crate::proto::event::Event;
use crate::proto::node::Incarnation;

mod journal;

pub use journal::{Following, Journal, LIMITS};

/// What happens is written this long after it, at most.
const HOLD: Duration = Duration::from_millis(500);
/// So many events do not wait so long.
const MANY: usize = 256;
/// Between two signatures.
const SEAL: Duration = Duration::from_secs(60);
/// Wait before a failed write is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// What the actor is made from.
#[derive(Clone)]
pub struct Setup {
    /// The open store.
    pub store: Arc<Store>,
    /// What is kept there.
    pub journal: Journal,
    /// Where events come from.
    pub bus: Bus,
    /// Counters.
    pub metrics: Metrics,
}

/// What is to be done on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Work {
    raise: Option<Incarnation>,
    seal: bool,
}

impl Work {
    fn run(self, store: &Store, journal: &Journal) -> Result<(), StoreError> {
        if let Some(to) = self.raise {
            store.raise(to)?;
        }
        journal.write()?;
        if self.seal { journal.seal() } else { Ok(()) }
    }
}

enum Msg {
    /// Something happened.
    News,
    Raised(Incarnation),
    Done(Work, Result<(), StoreError>),
}

/// The handle.
#[derive(Clone)]
pub struct EventLog {
    handle: Handle<Msg>,
}

impl EventLog {
    /// A log that does not run yet.
    pub fn new(metrics: &Metrics) -> Self {
        Self { handle: Handle::new("event_log", metrics) }
    }

    /// The child to put under a supervisor.
    pub fn child(&self, setup: Setup) -> Child {
        Child::actor::<Inside>(&self.handle, setup)
    }
}

struct Inside {
    setup: Setup,
    myself: Address<Msg>,
    /// What the next write does beside writing.
    work: Work,
    working: bool,
    failing: bool,
    set_aside: Option<PathBuf>,
    write_at: Option<Instant>,
    /// When the next write signs too.
    seal_at: Instant,
}

impl Inside {
    fn write_within(&mut self, wait: Duration) {
        self.write_by(timer::now() + wait);
    }

    fn write_by(&mut self, at: Instant) {
        self.write_at = Some(self.write_at.map_or(at, |before| before.min(at)));
    }

    fn write(&mut self) {
        self.working = true;
        self.write_at = self.setup.bus.settle();
        let mut work = std::mem::take(&mut self.work);
        if self.seal_at <= timer::now() {
            work.seal = true;
            self.seal_at = timer::now() + SEAL;
        }
        let Setup { store, journal, metrics, .. } = self.setup.clone();
        let to = self.myself.clone();
        tokio::task::spawn_blocking(move || {
            let begun = timer::now();
            let result = work.run(&store, &journal);
            metrics.took(Timing::StoreWrite, timer::now().saturating_duration_since(begun));
            // The successor of an actor that ended writes at once.
            drop(to.cast(Mail::Message(Msg::Done(work, result))));
        });
    }

    fn done(&mut self, work: Work, result: Result<(), StoreError>) {
        self.working = false;
        let set_aside = self.setup.store.condition().set_aside;
        if set_aside != self.set_aside
            && let Some(path) = &set_aside
        {
            let path = path.display().to_string();
            self.setup.bus.announce(Event::StoreSetAside { path });
        }
        self.set_aside = set_aside;
        match result {
            Ok(()) => {
                self.setup.metrics.count(Count::Store, "ok");
                let unsteady = self.setup.store.condition().failing.is_some();
                if unsteady {
                    // Something is written again soon, whether it happens or not: that shows what is so.
                    self.work.raise = self.work.raise.max(Some(Incarnation(0)));
                    self.write_within(RETRY);
                } else if std::mem::take(&mut self.failing) {
                    self.setup.bus.announce(Event::StoreRecovered);
                }
                match self.setup.journal.trail().waiting() {
                    // What was written is signed in time, also when nothing more happens.
                    0 if !work.seal => self.write_by(self.seal_at),
                    0 => {}
                    MANY.. => self.write_within(Duration::ZERO),
                    _ => self.write_within(HOLD),
                }
            }
            Err(error) => {
                self.setup.metrics.count(Count::Store, "failed");
                if !std::mem::replace(&mut self.failing, true) {
                    self.setup.bus.announce(Event::StoreFailing { why: error.to_string() });
                }
                self.work.raise = self.work.raise.max(work.raise);
                self.work.seal |= work.seal;
                self.write_at = Some(timer::now() + RETRY);
            }
        }
    }
}

impl Process for Inside {
    const NAME: &'static str = "event_log";
    type Message = Msg;
    type Setup = Setup;

    async fn start(setup: Setup, myself: &Address<Msg>) -> Result<Self, ActorProcessingErr> {
        let to = myself.clone();
        setup.bus.on_events("event_log", move |event| {
            let raised = if let Event::IncarnationRaised { to } = event { Some(*to) } else { None };
            let message = raised.map_or(Msg::News, Msg::Raised);
            // The successor of an actor that ended writes at once.
            drop(to.cast(Mail::Message(message)));
        });
        let now = timer::now();
        let set_aside = setup.store.condition().set_aside;
        Ok(Self {
            setup,
            myself: myself.clone(),
            work: Work::default(),
            working: false,
            failing: false,
            set_aside,
            write_at: Some(now),
            seal_at: now + SEAL,
        })
    }

    fn handle(&mut self, message: Msg) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::Done(work, result) => self.done(work, result),
            Msg::Raised(to) => {
                self.work.raise = self.work.raise.max(Some(to));
                self.write_within(Duration::ZERO);
            }
            Msg::News if self.failing => {}
            Msg::News if self.setup.journal.trail().waiting() >= MANY => {
                self.write_within(Duration::ZERO);
            }
            Msg::News => self.write_within(HOLD),
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        self.write_at.filter(|_| !self.working)
    }

    fn tick(&mut self) -> Result<(), ActorProcessingErr> {
        // A message between the alarm and now may have moved it.
        if self.write_at.is_some_and(|at| at <= timer::now()) && !self.working {
            self.write();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
