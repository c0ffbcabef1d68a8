//! What a join asks for and does not get here: other nodes are asked what they would give it, and what one of them has is given to this
//! join alone, in one order with what this node has.
//!
//! Invariants:
//! 1. A cursor is resumed only where another node resumes it and nothing that this node has heard of since is missing.
//! 2. The log of this node stays as it is, and the join gets nothing that comes to this node later.
//! 3. As many joins ask at once as there are places, for at most [`WITHIN`], one node after another; an answer is bounded
//!    ([`Theirs`]).
//! 4. A text that is no cursor, and a history that nobody has had more of, ask nobody.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::disk::{Loaded, READ, log_of};
use super::past::Past;
use super::sync::add;
use super::{Job, Logged, Member, START, TopicTask};
use crate::actors::exchange::Exchange;
use crate::actors::timer;
use crate::proto::channel::envelope::Envelope;
use crate::proto::history::chunk::{Chunk, Record, UNKNOWN_END};
use crate::proto::history::words::{Question, Theirs};
use crate::proto::history::{Ask, MAX_BYTES};
use crate::proto::node::NodeName;
use crate::proto::replay::{Bounds, Cursor, Log, Standing};
use crate::proto::topic::{Address, Name};

/// How long a join waits for other nodes, at most.
const WITHIN: Duration = Duration::from_secs(1);

/// What another node asks for its join, and where the answer goes.
pub(super) type Asked = (String, Option<Ask>, oneshot::Sender<Bytes>);

/// Asks these, until one resumes the cursor; otherwise what has most messages.
async fn ask(exchange: Exchange, question: Question, peers: Vec<NodeName>) -> Option<Theirs> {
    let messages = |theirs: &Theirs| theirs.chunks.iter().map(Chunk::count).sum::<u32>();
    let (question, until) = (Bytes::from(question.encode().ok()?), timer::now() + WITHIN);
    let mut best: Option<Theirs> = None;
    for peer in peers {
        let to = Address { name: Name::channels(), node: Some(peer) };
        let left = until.saturating_duration_since(timer::now());
        if left.is_zero() {
            break;
        }
        let Ok(answer) = exchange.call(&to, question.clone(), left).await else { continue };
        // One that does not follow the topic answers with something else.
        let Some(theirs) = Theirs::decode(&answer) else { continue };
        if theirs.resumed {
            return Some(theirs);
        }
        if best.as_ref().map_or(0, messages) < messages(&theirs) {
            best = Some(theirs);
        }
    }
    best
}

/// How epochs of publishers follow each other on another node: each with what was current before.
struct Epochs(BTreeMap<NodeName, Vec<u32>>);

impl Epochs {
    /// Of a node that stands here.
    fn of(stood: &Cursor) -> Self {
        Self(stood.iter().map(|(name, at)| (name.clone(), vec![at.epoch])).collect())
    }

    /// This epoch is current from here on.
    fn note(&mut self, of: &NodeName, epoch: u32) {
        let came = self.0.entry(of.clone()).or_default();
        if came.last() != Some(&epoch) {
            came.push(epoch);
        }
    }

    /// Whether this epoch was current at any point so far.
    fn has(&self, of: &NodeName, epoch: u32) -> bool {
        self.0.get(of).is_some_and(|came| came.contains(&epoch))
    }
}

impl TopicTask {
    /// Whether other nodes may have what a join asks for and does not get here.
    pub(super) fn asks_others(&self, member: &Member, past: &Past) -> bool {
        let is_cursor = |it: &str| it.starts_with(START) || it.parse::<Cursor>().is_ok();
        let resumes = past.is_gap() && member.resume.as_deref().is_some_and(is_cursor);
        let short = || self.short && member.history.is_some_and(|ask| past.may_have_more(ask));
        !self.links.is_empty() && (resumes || short())
    }

    /// Asks other nodes for a join, which gets this here.
    pub(super) fn fetch(&mut self, member: Box<Member>, past: Past) {
        let (exchange, topic) = (self.shared.exchange.clone(), self.topic.clone());
        let allowed = self.links.keys().filter(|peer| exchange.may_publish(peer, &topic));
        let peers = allowed.cloned().collect();
        let resume = member.resume.clone().unwrap_or_default();
        let question = Question::Past(topic, resume, member.history);
        let (places, next) = (self.shared.fetching.clone(), self.index);
        self.pending.insert(member.id);
        self.jobs.spawn(async move {
            let place = tokio::time::timeout(WITHIN, places.acquire_owned()).await;
            let theirs = if place.is_ok() { ask(exchange, question, peers).await } else { None };
            drop(place);
            Job::Fetched(member, (past, next), theirs)
        });
    }

    /// Admits a join with what it gets here or, where that is more, with what another node has.
    pub(super) fn fetched(
        &mut self,
        member: Box<Member>,
        (past, next): (Past, u64),
        theirs: Option<Theirs>,
    ) {
        let fetched = theirs.and_then(|theirs| self.joined(&member, theirs));
        let better = fetched
            .filter(|it| !it.is_gap() && past.is_gap() || it.messages.len() > past.messages.len());
        let history = past.may_have_more(member.history.unwrap_or(Ask::Last(0)));
        if better.is_none() && history {
            self.short = false; // nobody has more
        }
        let past = better.unwrap_or_else(|| {
            let meanwhile = self.log.iter().filter(|kept| kept.index >= next).cloned();
            past.with(meanwhile, member.history)
        });
        self.welcome(member, past);
    }

    /// What a join gets of another node's messages and those of this one.
    fn joined(&self, member: &Member, theirs: Theirs) -> Option<Past> {
        let [all] = &theirs.chunks[..] else { return None };
        let stood = Log::<()>::standing(READ, all.standing());
        let mut chunk = Chunk::new(0, all.standing().clone());
        let mut epochs = Epochs::of(stood.cursor());
        for record in all.records().filter(|record| !self.is_on_its_way(record, &mut epochs)) {
            chunk.push(record.at, &record.from, &record.message);
        }
        let mut log = log_of(std::slice::from_ref(&chunk), READ)?;
        self.append_to(&mut log, chunk.next());
        let resume = member.resume.as_deref();
        if !theirs.resumed {
            return Some(self.past_of(&log, theirs.more, (resume, member.history)));
        }
        let asked = resume.and_then(|it| it.parse::<Cursor>().ok());
        let answers = asked.is_none_or(|cursor| cursor == *stood.cursor());
        let messages = log.since(stood.cursor()).ok()?.map(|(_, _, kept)| kept.clone()).collect();
        (answers && log.losses() == stood.losses()).then(|| Past::after(messages))
    }

    /// Whether a message that another node has is on its way here, and will be told to members. They are gone through in
    /// the order in which the other node took them.
    fn is_on_its_way(&self, Record { from, message, .. }: &Record, epochs: &mut Epochs) -> bool {
        let Some(stamp) = Envelope::decode(message).and_then(|it| it.stamp) else { return false };
        epochs.note(from, stamp.epoch);
        let link = self.links.get(from);
        match self.log.latest(from) {
            _ if link.is_none() && *from != self.shared.me => false,
            Some(latest) if latest.epoch == stamp.epoch => stamp.n > latest.n,
            Some(latest) => epochs.has(from, latest.epoch),
            // When it was asked, it had said nothing.
            None => self.asked.get(from) == link && !self.forgot,
        }
    }

    /// Adds what this log has to another node's, whose next index is this, and what it has lost.
    fn append_to(&self, log: &mut Log<Arc<Logged>>, mut next: u64) {
        let mut before = None;
        for (from, position, kept) in self.log.entries() {
            // How an epoch ended of which that is not known here, the other one knows.
            let ends = |before: u64| [before + 1, before + 1 + UNKNOWN_END].contains(&kept.index);
            if before.is_some_and(|before| kept.index > before && !ends(before)) {
                log.missed();
                next += 1;
            }
            before = Some(kept.index);
            let last = log.latest(from);
            match last.map(|last| self.order(log, from, (last.epoch, position.epoch))) {
                None | Some(Some(Ordering::Less | Ordering::Equal)) => {}
                Some(Some(Ordering::Greater)) => continue, // it has more than that
                Some(None) => log.missed(),
            }
            let Logged { at, cost, ref event, ref payload, except, .. } = **kept;
            let copy = Logged::new(next, at, cost, event.clone(), payload.clone());
            let copy = Arc::new(Logged { except, ..copy });
            log.push(from, position, cost, copy.clone());
            if log.latest(from) != last {
                copy.stand(log.cursor());
                next += 1;
            }
        }
        let lost_last = before.map_or(self.forgot, |before| self.index > before + 1);
        if lost_last {
            log.missed();
        }
        for (name, latest) in self.log.cursor().iter() {
            let last = log.latest(name);
            match last.map(|last| self.order(log, name, (last.epoch, latest.epoch))) {
                None | Some(Some(Ordering::Less | Ordering::Equal)) => log.hear(name, latest),
                Some(Some(Ordering::Greater)) => {}
                Some(None) => log.missed(),
            }
        }
    }

    /// How an epoch of a publisher that is current in another log stands to one of this log, if that is known.
    fn order(
        &self,
        other: &Log<Arc<Logged>>,
        of: &NodeName,
        (there, here): (u32, u32),
    ) -> Option<Ordering> {
        let follows = |epoch, earlier| {
            self.log.follows(of, epoch, earlier) || other.follows(of, epoch, earlier)
        };
        match () {
            () if there == here => Some(Ordering::Equal),
            () if follows(here, there) => Some(Ordering::Less),
            () if follows(there, here) => Some(Ordering::Greater),
            () => None,
        }
    }

    /// Answers what another node asks for its join, from the log or from disk.
    pub(super) fn answer_past(&mut self, asked: Asked) {
        let resume = Some(asked.0.as_str());
        let reading = if self.asks_disk(resume, asked.1) { self.reading(resume) } else { None };
        match reading {
            Some(reading) => drop(self.jobs.spawn(async move { Job::Read(asked, reading.await) })),
            None => self.answer_from(asked, None),
        }
    }

    /// Answers from what was read, or from the log.
    pub(super) fn answer_from(&mut self, (resume, ask, to): Asked, loaded: Option<Box<Loaded>>) {
        self.expire();
        let theirs = match loaded {
            Some(loaded) => {
                let (log, more) = self.continued(*loaded);
                self.theirs(&log, more, &resume, ask)
            }
            None => self.theirs(&self.log, self.older, &resume, ask),
        };
        to.send(theirs.unwrap_or_default().encode().into()).unwrap_or(()); // it may have gone
    }

    fn theirs(
        &self,
        log: &Log<Arc<Logged>>,
        older: bool,
        resume: &str,
        ask: Option<Ask>,
    ) -> Option<Theirs> {
        let past = self.past_of(log, older, (Some(resume), ask));
        let (resumed, more) = (past.is_resumed(), past.has_more());
        let (standing, entries) = if resumed {
            let stood = self.stood(resume)?;
            (Standing::at(&stood), log.since(&stood).ok()?.collect())
        } else {
            log.tail(Bounds { entries: past.messages.len(), bytes: MAX_BYTES })
        };
        let bytes: usize = entries.iter().map(|(_, _, kept)| kept.cost).sum();
        let mut chunk = Chunk::new(0, standing);
        entries.into_iter().for_each(|entry| add(&mut chunk, entry));
        (bytes <= MAX_BYTES).then(|| Theirs { resumed, more, chunks: vec![chunk] })
    }

    /// Where somebody stands with this `last_seq`.
    fn stood(&self, resume: &str) -> Option<Cursor> {
        let Some(id) = resume.strip_prefix(START) else { return resume.parse().ok() };
        let id = u64::from_str_radix(id, 16).ok()?;
        self.starts.iter().find(|start| start.id == id).map(|start| start.stood.clone())
    }
}

#[cfg(test)]
mod tests;
