//! HistoryLog: writes what topics keep on disk.
//!
//! - **Owns** when the history is written, shortened and swept; each on a blocking thread, one after another.
//! - **Hears** that something waits; that a write came to its end.
//! - **Says** to all, as events, that history is kept in memory alone, that it is on disk again, and that its file was damaged.
//! - **After a restart**: writes at once. What waits is in the [`Recorder`], which outlives it.
//! - **Never** waits for the disk itself.
//!
//! What a process that is killed had not written is lost: half a second of messages, or a MiB. While the disk fails
//! at most `PENDING` bytes wait; beyond that the oldest of the topic that goes on are dropped and counted, and a join that
//! asks for a history across them is told of a gap.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use ractor::ActorProcessingErr;

use crate::actors::news::Bus;
use crate::actors::supervisor::{Address, Child, Handle, Mail, Process};
use crate::actors::timer;
use crate::io::clock;
use crate::io::metrics::{Count, Metrics};
use crate::io::store::StoreError;
use crate::io::store::history::{Found, History, Writing};
use crate::proto::event::Event;
use crate::proto::history::chunk::Chunk;
use crate::proto::history::{Retentions, Rule};
use crate::proto::node::NodeName;
use crate::proto::replay::Standing;
use crate::proto::topic::Topic;

/// What is taken is written this long after it, at most.
const HOLD: Duration = Duration::from_millis(500);
/// So many bytes do not wait so long.
const MUCH: usize = 1024 * 1024;
/// Bytes that wait to be written, at most.
const PENDING: usize = 16 * 1024 * 1024;
/// A chunk of so many bytes is full.
const FULL: usize = 64 * 1024;
/// Between two looks for what is too old.
const SWEEP: Duration = Duration::from_secs(60);
/// Wait before a failed write is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// What waits of one topic.
struct Waiting {
    /// The chunk that is being filled.
    open: Option<Chunk>,
    /// Full ones, in order; those that are being written stay until they are.
    full: VecDeque<Arc<Chunk>>,
    /// The writer knows of it.
    noted: bool,
}

/// Where a topic's messages go. Clones are the same.
#[derive(Clone)]
pub(crate) struct Tape(Arc<TapeInside>);

struct TapeInside {
    topic: Topic,
    rule: Rule,
    waiting: Mutex<Waiting>,
}

/// Keeps what waits to be written, and reads what was. Clones are the same.
#[derive(Clone)]
pub struct Recorder(Arc<Inside>);

struct Inside {
    history: History,
    rules: Retentions,
    /// Bytes of all topics on disk.
    most: u64,
    metrics: Metrics,
    tapes: Mutex<HashMap<Topic, Weak<TapeInside>>>,
    noted: Mutex<Vec<Tape>>,
    /// Held while it is written: what comes meanwhile waits for the next time, and a write that begins meanwhile includes it.
    writing: Mutex<()>,
    pending: AtomicUsize,
    hurried: AtomicBool,
    handle: Handle<Msg>,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Recorder").field(&self.0.history).finish()
    }
}

impl Recorder {
    /// A recorder that nobody writes for yet.
    pub fn new(history: History, rules: Retentions, most: u64, metrics: &Metrics) -> Self {
        Self(Arc::new(Inside {
            history,
            rules,
            most,
            metrics: metrics.clone(),
            tapes: Mutex::default(),
            noted: Mutex::default(),
            writing: Mutex::default(),
            pending: AtomicUsize::default(),
            hurried: AtomicBool::default(),
            handle: Handle::new("history_log", metrics),
        }))
    }

    /// The child to put under a supervisor.
    pub fn child(&self, bus: &Bus) -> Child {
        Child::actor::<Writer>(&self.0.handle, (self.clone(), bus.clone()))
    }

    /// The file.
    pub fn history(&self) -> &History {
        &self.0.history
    }

    /// Whether this topic is kept on disk.
    pub fn keeps(&self, topic: &Topic) -> bool {
        self.0.rules.of(topic).disk
    }

    /// The topics that are on disk and shall be. Waits for the disk.
    pub(crate) fn topics(&self) -> Vec<Topic> {
        let rows = self.0.history.rows().unwrap_or_else(|error| {
            tracing::warn!(%error, "the topics of the history cannot be read");
            Vec::new()
        });
        rows.into_iter().map(|(topic, _)| topic).filter(|topic| self.keeps(topic)).collect()
    }

    /// Where the messages of this topic go.
    pub(crate) fn tape(&self, topic: &Topic) -> Tape {
        let mut tapes = self.0.tapes.lock();
        if let Some(tape) = tapes.get(topic).and_then(Weak::upgrade) {
            return Tape(tape);
        }
        let waiting = Mutex::new(Waiting { open: None, full: VecDeque::new(), noted: false });
        let rule = self.0.rules.of(topic);
        let tape = Arc::new(TapeInside { topic: topic.clone(), rule, waiting });
        tapes.insert(topic.clone(), Arc::downgrade(&tape));
        Tape(tape)
    }

    /// Room for the message of this index, which is the topic's next one, or comes after a loss.
    pub(crate) fn take<'a>(&'a self, tape: &'a Tape, index: u64) -> Taking<'a> {
        let waiting = tape.0.waiting.lock();
        let fits = |chunk: &Chunk| chunk.next() == index && chunk.size() < FULL;
        let begins = !waiting.open.as_ref().is_some_and(fits);
        Taking { recorder: self, tape, waiting, index, begins }
    }

    /// There is no room: the oldest of this topic go.
    fn drop_oldest(&self, waiting: &mut Waiting) {
        let oldest =
            waiting.full.pop_front().map(Arc::unwrap_or_clone).or_else(|| waiting.open.take());
        let Some(chunk) = oldest else { return };
        self.0.pending.fetch_sub(chunk.size(), Ordering::Relaxed);
        self.0.metrics.add(Count::Channels, "history_lost", u64::from(chunk.count()));
    }

    /// The newest of a topic, what waits and what is on disk, back to the first chunk of which `enough` says so. Waits
    /// for the disk. While that cannot be read, what waits.
    pub(crate) fn newest(&self, tape: &Tape, mut enough: impl FnMut(&Chunk) -> bool) -> Found {
        let mut waiting: Vec<Chunk> = {
            let waiting = tape.0.waiting.lock();
            let full = waiting.full.iter().map(|chunk| Chunk::clone(chunk));
            full.chain(waiting.open.clone()).collect()
        };
        let oldest = waiting.first().map_or(u64::MAX, Chunk::first);
        if let Some(last) = waiting.iter().rposition(&mut enough) {
            waiting.drain(..last);
            return Found { chunks: waiting, damaged: 0, more: true };
        }
        let older = |chunk: &Chunk| chunk.first() < oldest && enough(chunk);
        let mut found = self.0.history.newest(&tape.0.topic, older).unwrap_or_else(|error| {
            tracing::warn!(%error, topic = %tape.0.topic, "its history cannot be read");
            Found { more: true, ..Found::default() }
        });
        if found.damaged > 0 {
            self.0.metrics.add(Count::Channels, "history_damaged", found.damaged);
            tracing::warn!(chunks = found.damaged, topic = %tape.0.topic, "its history is damaged");
        }
        // What was written meanwhile is in both.
        found.chunks.retain(|chunk| chunk.first() < oldest);
        found.chunks.extend(waiting);
        found
    }

    /// The index that the next message of a topic has. Waits for the disk.
    pub(crate) fn next(&self, tape: &Tape) -> u64 {
        let waiting = {
            let waiting = tape.0.waiting.lock();
            waiting.open.as_ref().or(waiting.full.back().map(Arc::as_ref)).map(Chunk::next)
        };
        let written = match self.0.history.row(&tape.0.topic) {
            Ok(row) => row.map_or(0, |row| row.next),
            // Beyond whatever is there.
            Err(_) => clock::millis() << 20,
        };
        waiting.unwrap_or(0).max(written)
    }

    /// Writes what waits, durable on return, after a write that is under way. Waits for the disk.
    ///
    /// # Errors
    /// [`StoreError`]; what is not written waits on.
    pub fn write(&self) -> Result<(), StoreError> {
        let _one = self.0.writing.lock();
        self.0.hurried.store(false, Ordering::Relaxed);
        let noted = std::mem::take(&mut *self.0.noted.lock());
        let writings: Vec<_> = noted.iter().map(Tape::writing).collect();
        if writings.is_empty() {
            return Ok(());
        }
        let written = self.0.history.write(&writings, self.0.most, clock::millis());
        for (tape, writing) in noted.into_iter().zip(&writings) {
            let last = writing.chunks.last().map(|chunk| chunk.first()).filter(|_| written.is_ok());
            let mut waiting = tape.0.waiting.lock();
            while waiting.full.front().is_some_and(|chunk| Some(chunk.first()) <= last) {
                let Some(chunk) = waiting.full.pop_front() else { break };
                self.0.pending.fetch_sub(chunk.size(), Ordering::Relaxed);
            }
            waiting.noted = waiting.open.is_some() || !waiting.full.is_empty();
            if waiting.noted {
                drop(waiting);
                self.0.noted.lock().push(tape);
            }
        }
        let cut = written?;
        if cut > 0 {
            self.0.metrics.add(Count::Channels, "history_cut", cut);
            tracing::warn!(
                messages = cut,
                "the history has all the room that it may: the oldest messages of those that have most went, or the topics that have fewest"
            );
        }
        Ok(())
    }

    /// Lets go of what is too old. Waits for the disk.
    fn sweep(&self) -> Result<(), StoreError> {
        self.0.tapes.lock().retain(|_, tape| tape.strong_count() > 0);
        let rule = |topic: &Topic| Some(self.0.rules.of(topic)).filter(|rule| rule.disk);
        self.0.history.sweep(rule, clock::millis())
    }

    /// Whether something waits.
    fn waits(&self) -> bool {
        !self.0.noted.lock().is_empty()
    }
}

/// A message that is about to be taken.
pub(crate) struct Taking<'a> {
    recorder: &'a Recorder,
    tape: &'a Tape,
    waiting: MutexGuard<'a, Waiting>,
    index: u64,
    begins: bool,
}

impl Taking<'_> {
    /// Whether it begins a chunk, which has to say how the log stood before it.
    pub(crate) fn begins(&self) -> bool {
        self.begins
    }

    /// Takes the message.
    pub(crate) fn append(mut self, at: u64, from: &NodeName, message: &[u8], standing: Standing) {
        let Inside { metrics, pending, noted, hurried, handle, .. } = &*self.recorder.0;
        let waiting = &mut *self.waiting;
        if self.begins {
            let full = waiting.open.take();
            waiting.full.extend(full.map(Arc::new));
        }
        let open = waiting.open.get_or_insert_with(|| Chunk::new(self.index, standing));
        let before = open.size();
        if !open.push(at, from, message) {
            return metrics.count(Count::Channels, "history_lost");
        }
        let added = open.size() - before;
        let pending = pending.fetch_add(added, Ordering::Relaxed) + added;
        if pending > PENDING {
            self.recorder.drop_oldest(waiting);
        }
        if !std::mem::replace(&mut waiting.noted, true) {
            noted.lock().push(self.tape.clone());
            handle.cast(Msg::News);
        }
        if pending > MUCH && !hurried.swap(true, Ordering::Relaxed) {
            handle.cast(Msg::Much);
        }
    }
}

impl Tape {
    fn writing(&self) -> Writing {
        let mut waiting = self.0.waiting.lock();
        let open = waiting.open.take();
        waiting.full.extend(open.map(Arc::new));
        let chunks = waiting.full.iter().cloned().collect();
        Writing { topic: self.0.topic.clone(), rule: self.0.rule, chunks }
    }
}

enum Msg {
    /// Something waits.
    News,
    /// Much does.
    Much,
    Done(Result<(), StoreError>),
}

struct Writer {
    recorder: Recorder,
    bus: Bus,
    myself: Address<Msg>,
    working: bool,
    failing: bool,
    set_aside: Option<PathBuf>,
    write_at: Option<Instant>,
    sweep_at: Instant,
}

impl Writer {
    fn write_within(&mut self, wait: Duration) {
        let at = timer::now() + wait;
        self.write_at = Some(self.write_at.map_or(at, |before| before.min(at)));
    }

    fn write(&mut self) {
        self.working = true;
        self.write_at = None;
        let now = timer::now();
        let sweeps = self.sweep_at <= now;
        if sweeps {
            self.sweep_at = now + SWEEP;
        }
        let (recorder, to) = (self.recorder.clone(), self.myself.clone());
        tokio::task::spawn_blocking(move || {
            let swept = if sweeps { recorder.sweep() } else { Ok(()) };
            let done = recorder.write().and(swept);
            // The successor of an actor that ended writes at once.
            drop(to.cast(Mail::Message(Msg::Done(done))));
        });
    }

    fn done(&mut self, done: Result<(), StoreError>) {
        self.working = false;
        let condition = self.recorder.history().condition();
        if condition.set_aside != self.set_aside
            && let Some(path) = &condition.set_aside
        {
            let path = path.display().to_string();
            self.bus.announce(Event::HistorySetAside { path });
        }
        self.set_aside = condition.set_aside;
        let outcome = if done.is_ok() { "history_ok" } else { "history_failed" };
        self.recorder.0.metrics.count(Count::Store, outcome);
        match done {
            Ok(()) if condition.failing.is_some() => self.write_within(RETRY),
            Ok(()) => {
                if std::mem::take(&mut self.failing) {
                    self.bus.announce(Event::HistoryRecovered);
                }
                if self.recorder.waits() {
                    self.write_within(HOLD);
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    self.bus.announce(Event::HistoryFailing { why: error.to_string() });
                }
                self.write_at = Some(timer::now() + RETRY);
            }
        }
    }
}

impl Process for Writer {
    const NAME: &'static str = "history_log";
    type Message = Msg;
    type Setup = (Recorder, Bus);

    async fn start(
        (recorder, bus): (Recorder, Bus),
        myself: &Address<Msg>,
    ) -> Result<Self, ActorProcessingErr> {
        let now = timer::now();
        let set_aside = recorder.history().condition().set_aside;
        Ok(Self {
            recorder,
            bus,
            myself: myself.clone(),
            working: false,
            failing: false,
            set_aside,
            write_at: Some(now),
            sweep_at: now,
        })
    }

    fn handle(&mut self, message: Msg) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::Done(done) => self.done(done),
            Msg::News | Msg::Much if self.failing => {}
            Msg::News => self.write_within(HOLD),
            Msg::Much => self.write_within(Duration::ZERO),
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        let write = self.write_at.map_or(self.sweep_at, |at| at.min(self.sweep_at));
        (!self.working).then_some(write)
    }

    fn tick(&mut self) -> Result<(), ActorProcessingErr> {
        let now = timer::now();
        let due = self.sweep_at <= now || self.write_at.is_some_and(|at| at <= now);
        if due && !self.working {
            self.write();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
