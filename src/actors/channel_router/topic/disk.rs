//! What a topic has on disk: its log goes on from there when the topic opens, and a join that asks for more than the log
//! holds waits for what is read.
//!
//! Invariants: the indices on disk rise by one with each message that the log takes, and skip one where it missed something; a
//! join that waits is a member only when its answer has been sent, and misses nothing that came meanwhile.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::kept::now;
use super::past::Past;
use super::{LOGGED, Logged, Member, QUIET, TopicTask};
use crate::actors::history_log::{Recorder, Tape};
use crate::proto::channel::envelope::Envelope;
use crate::proto::history::chunk::{Chunk, Record, UNKNOWN_END, rebuild};
use crate::proto::history::{Ask, MAX_BYTES};
use crate::proto::replay::{Bounds, Cursor, Log, Position};

/// What is read for a join at most.
pub(super) const READ: Bounds = Bounds { entries: 10_000, bytes: 2 * MAX_BYTES };

/// After so long a disk hangs.
const HANGS: Duration = Duration::from_secs(5);

/// Bytes that a topic has in memory when it opens, where so many are on disk: all of them have half of what logs may
/// hold together.
fn share(topics: u64) -> usize {
    let topics = usize::try_from(topics).unwrap_or(usize::MAX).max(1);
    (LOGGED / 2 / topics).max(4096)
}

/// What was read.
pub(super) struct Loaded {
    pub(super) log: Log<Arc<Logged>>,
    /// The index after that of its last message.
    next: u64,
    /// There are older messages.
    more: bool,
}

/// What a log keeps of a record.
fn logged(record: &Record) -> Option<(Position, usize, Arc<Logged>)> {
    let Envelope { stamp, event, payload } = Envelope::decode(&record.message)?;
    let (index, at, cost) = (record.index, record.at, record.message.len());
    Some((stamp?, cost, Arc::new(Logged::new(index, at, cost, event, payload))))
}

/// The log in these chunks, whose messages know where they stand.
pub(super) fn log_of(chunks: &[Chunk], bounds: Bounds) -> Option<Log<Arc<Logged>>> {
    rebuild(chunks, bounds, logged, |kept, cursor| kept.stand(cursor))
}

/// Reads the newest chunks, as many as these bounds say, or back to what the cursor has seen.
fn read(
    recorder: &Recorder,
    tape: &Tape,
    bounds: Bounds,
    cursor: Option<&Cursor>,
) -> Option<Loaded> {
    let (mut messages, mut bytes) = (0_usize, 0_usize);
    let found = recorder.newest(tape, |chunk| {
        messages += usize::try_from(chunk.count()).unwrap_or(usize::MAX);
        bytes += chunk.size();
        let seen = cursor.is_some_and(|cursor| chunk.is_seen(cursor));
        seen || messages >= bounds.entries || bytes >= bounds.bytes
    });
    let next = found.chunks.last().map_or(0, Chunk::next);
    let log = log_of(&found.chunks, bounds)?;
    Some(Loaded { log, next, more: found.more })
}

impl TopicTask {
    /// Goes on from what is on disk, before anybody is a member. A disk that hangs is not waited for.
    pub(in super::super) async fn restore(&mut self) {
        let Some((recorder, tape)) = self.shared.recorder.clone().zip(self.tape.clone()) else {
            return;
        };
        // Beyond whatever is there.
        self.index = now() << 20;
        let share = share(recorder.history().totals().topics);
        let bounds = Bounds { bytes: self.bounds.bytes.min(share), ..self.bounds };
        let places = self.shared.places.clone();
        let read = async move {
            let _place = places.acquire_owned().await;
            let read = move || (read(&recorder, &tape, bounds, None), recorder.next(&tape));
            tokio::task::spawn_blocking(read).await
        };
        let Ok(Ok((loaded, next))) = tokio::time::timeout(HANGS, read).await else { return };
        self.index = next;
        let Some(Loaded { mut log, next: last, more }) = loaded else { return };
        if last != next {
            // The last of it is damaged.
            log.missed();
            self.index = next + 1;
        }
        log.set_bounds(self.bounds);
        self.since = log.iter().next_back().map_or(self.since, |kept| kept.at);
        self.older = more;
        // It has a past: who comes now was not here before its first message.
        self.taken = log.len() + 1;
        let before = self.log.cost();
        self.log = log;
        self.shared.count(before, self.log.cost());
        self.expire();
    }

    /// Whether it goes on although nobody is here: what is on disk shall have no holes.
    pub(super) fn stays(&mut self) -> bool {
        self.expire();
        let crowded = self.shared.quiet.load(Ordering::Relaxed) > QUIET;
        self.tape.is_some() && !crowded && !self.log.is_empty()
    }

    /// Whether a join asks for what is on disk, and not in the log.
    pub(super) fn asks_disk(&mut self, resume: Option<&str>, ask: Option<Ask>) -> bool {
        if self.tape.is_none() || !self.older {
            return false;
        }
        let past = self.past(resume, ask);
        past.is_gap() || ask.is_some_and(|ask| past.may_have_more(ask))
    }

    /// Reads what a join asks for.
    pub(super) fn load(&mut self, member: Box<Member>) {
        let Some(reading) = self.reading(member.resume.as_deref()) else {
            return self.consider(member, None);
        };
        self.pending.insert(member.id);
        self.jobs.spawn(async move { super::Job::Loaded(member, reading.await) });
    }

    /// Reads what somebody with this cursor asks for, if it is on disk.
    pub(super) fn reading(
        &self,
        resume: Option<&str>,
    ) -> Option<impl Future<Output = Option<Box<Loaded>>> + Send + use<>> {
        let (recorder, tape) = self.shared.recorder.clone().zip(self.tape.clone())?;
        let places = self.shared.places.clone();
        let cursor: Option<Cursor> = resume.and_then(|it| it.parse().ok());
        Some(async move {
            let _place = places.acquire_owned().await;
            let read = move || read(&recorder, &tape, READ, cursor.as_ref());
            tokio::task::spawn_blocking(read).await.ok().flatten().map(Box::new)
        })
    }

    /// What was read for a join is there.
    pub(super) fn loaded(&mut self, member: Box<Member>, loaded: Option<Box<Loaded>>) {
        let past = loaded.map(|loaded| {
            let (log, more) = self.continued(*loaded);
            self.past_of(&log, more, (member.resume.as_deref(), member.history))
        });
        self.consider(member, past);
    }

    /// With what came since it was read, and what is known to be lost.
    pub(super) fn continued(&self, mut loaded: Loaded) -> (Log<Arc<Logged>>, bool) {
        for (from, position, kept) in self.log.entries() {
            if kept.index < loaded.next {
                continue;
            }
            if kept.index == loaded.next + UNKNOWN_END {
                loaded.log.lost(from);
            } else if kept.index > loaded.next {
                loaded.log.missed();
            }
            loaded.log.push(from, position, kept.cost, kept.clone());
            loaded.next = kept.index + 1;
        }
        if self.index > loaded.next {
            loaded.log.missed();
        }
        loaded.log.inherit_losses(&self.log);
        (loaded.log, loaded.more)
    }

    /// Admits a join with what it gets of the past; from the log, unless it was read. Other nodes are asked first for what
    /// is not here.
    pub(super) fn consider(&mut self, member: Box<Member>, past: Option<Past>) {
        let past = past.unwrap_or_else(|| self.past(member.resume.as_deref(), member.history));
        if self.asks_others(&member, &past) {
            self.fetch(member, past);
        } else {
            self.welcome(member, past);
        }
    }
}
