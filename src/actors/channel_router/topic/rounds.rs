//! When a topic asks other nodes what they have of it: in rounds, one at a time.
//!
//! Nodes are asked that were not asked since they were linked: when the topic opens, when a link comes up, when a join asks for
//! something of the past, and when a node that leaves wants its messages kept. When a link ends, others are asked again: of what
//! that node said last, they may have more. A join after another epoch of a publisher has begun here has all asked, as those
//! may know how the one before ended.
//!
//! Invariants:
//! 1. There is one round at a time. What is to be asked meanwhile is asked next, before the round ends, and no node twice
//!    without a reason; all answers count together.
//! 2. A round for a new link holds back what other nodes say, so that it is heard after what the answers have, and with it their
//!    questions for what a join missed; what this node says is heard at once. What is held back is bounded: beyond that it stays where it comes from.
//! 3. Nothing waits for a round longer than [`WAITS`]; what is answered later counts when it comes.
//! 4. As many topics ask at once as there are places.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::asking::{Answer, Asking};
use super::fetch::Asked;
use super::{Job, KEEPS, Links, Member, QUIET, START, TopicTask};
use crate::actors::exchange::Received;
use crate::actors::timer;
use crate::proto::history::words::KEPT;
use crate::proto::node::NodeName;
use crate::proto::replay::Cursor;

/// How long messages, joins and nodes that leave wait for a round, at most.
const WAITS: Duration = Duration::from_secs(3);
/// Nodes that are asked again when a link ends, at most, and how long after it: they may not have heard all yet.
const SURVIVORS: usize = 8;
const AGAIN: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(1)];
/// Bytes of what is held back.
const HELD: usize = 1024 * 1024;

/// Questions that other nodes are asked, and what waits for the answers.
#[derive(Default)]
pub(super) struct Round {
    /// Somebody is asked.
    runs: bool,
    /// Who was asked, by which link, and what they had.
    asked: BTreeMap<NodeName, u64>,
    answers: Vec<Answer>,
    /// Others are to be asked next, and when others are asked again after the end of a link.
    more: bool,
    again_at: [Option<Instant>; AGAIN.len()],
    /// What waits, if anything, and until when.
    until: Option<Instant>,
    held: Option<Held>,
    joins: BTreeMap<u64, Box<Member>>,
    leavers: Vec<oneshot::Sender<Bytes>>,
    questions: Vec<Asked>,
}

/// What other nodes said, in this order.
#[derive(Default)]
struct Held {
    messages: VecDeque<Received>,
    bytes: usize,
}

impl Held {
    fn push(&mut self, received: Received) {
        self.bytes += size_of::<Received>();
        if let Received::Message(message) = &received {
            self.bytes += message.payload.len();
        }
        self.messages.push_back(received);
    }
}

impl Round {
    /// Something waits for it from now on.
    fn await_it(&mut self) -> &mut Self {
        self.until.get_or_insert_with(|| timer::now() + WAITS);
        self
    }
}

impl TopicTask {
    /// Before it has members: which nodes are linked, and whether it takes all that they have in memory, or the newest.
    pub(in super::super) fn begin_with(&mut self, links: &Links, whole: bool) {
        (self.links, self.whole) = (links.clone(), whole);
    }

    /// Asks how far others are, before there are members.
    pub(in super::super) fn ask_heads(&self) -> impl Future<Output = Vec<Answer>> + Send + use<> {
        Asking { patient: false, ..self.asking() }.heads(self.unasked().collect())
    }

    /// Takes what there is by these answers, before there are members.
    pub(in super::super) async fn catch_up(&mut self, answers: Vec<Answer>) {
        let answers = self.asking().tails(answers).await;
        self.opened_at_once = answers.iter().any(|answer| answer.heads.opening);
        self.merge(answers, VecDeque::new());
    }

    /// Those that opened the topic at the same time know what there is by now.
    pub(super) fn ask_again(&mut self) {
        if std::mem::take(&mut self.opened_at_once) {
            self.hold_back();
        }
    }

    /// Other nodes are linked now. What one of them has goes before what it says from now on.
    pub(super) fn linked(&mut self, links: &Links) {
        self.links = links.clone();
        let (silent, nobody) = (self.log.is_empty(), self.members.is_empty());
        if !(silent && nobody) && self.has_unasked() {
            self.hold_back();
        }
        self.retry_early_joins();
    }

    /// A node is not linked any more. Of what it said last, others may have more, or get it soon.
    pub(super) fn unlinked(&mut self, peer: &NodeName, links: &Links) {
        self.links = links.clone();
        self.doubt_others();
        if self.log.latest(peer).is_some() {
            self.round.again_at = AGAIN.map(|after| Some(timer::now() + after));
        }
    }

    /// Others may have something since they were asked that will not come here by itself.
    fn doubt_others(&mut self) {
        let mut others = self.shared.exchange.subscribers(&self.topic);
        others.truncate(SURVIVORS);
        Arc::make_mut(&mut self.asked).retain(|asked, _| !others.contains(asked));
        self.round.asked.retain(|asked, _| !others.contains(asked));
    }

    /// When something of this is due.
    pub(super) fn rounds_due(&self) -> Option<Instant> {
        let early = (!self.early_joins.is_empty()).then_some(self.shared.links_by);
        let due = [self.round.until, early].into_iter().chain(self.round.again_at);
        due.flatten().min()
    }

    /// Does what is due.
    pub(super) fn step_rounds(&mut self, now: Instant) {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if is_due(self.round.until) {
            self.release();
        }
        if self.round.again_at.into_iter().any(is_due) {
            self.round.again_at = self.round.again_at.map(|at| at.filter(|_| !is_due(at)));
            self.doubt_others();
            // Without members, joins ask.
            if !self.members.is_empty() || self.tape.is_some() {
                self.ask();
            }
        }
        if self.shared.links_by <= now && !self.early_joins.is_empty() {
            self.retry_early_joins();
        }
    }

    /// Has others asked before a join that wants something of the past is a member.
    pub(super) fn ask_for(&mut self, member: Box<Member>) {
        self.pending.insert(member.id);
        self.ask().await_it().joins.insert(member.id, member);
    }

    /// Goes on for a node that leaves, for as long as after a last member.
    pub(super) fn keep_for(&mut self, to: oneshot::Sender<Bytes>, links: &Links) {
        self.links = links.clone();
        if self.shared.quiet.load(Ordering::Relaxed) < QUIET / KEEPS {
            self.empty = self.empty.map(|_since| timer::now());
        }
        if self.has_unasked() {
            self.ask().await_it().leavers.push(to);
        } else {
            to.send(KEPT.into()).unwrap_or(()); // it may have gone
        }
    }

    /// Has others asked before anything else that they say is heard.
    fn hold_back(&mut self) {
        self.ask().await_it().held.get_or_insert_default();
    }

    /// Whether others are asked before a join that wants something of the past is a member.
    pub(super) fn is_to_ask(&self) -> bool {
        self.epoch_began || self.has_unasked()
    }

    fn has_unasked(&self) -> bool {
        self.unasked().next().is_some()
    }

    /// Those that were not asked since they were linked.
    fn unasked(&self) -> impl Iterator<Item = (NodeName, u64)> {
        let new = self.links.iter().filter(|(peer, link)| self.asked.get(*peer) != Some(*link));
        new.map(|(peer, link)| (peer.clone(), *link))
    }

    fn asking(&self) -> Asking {
        Asking {
            exchange: self.shared.exchange.clone(),
            topic: self.topic.clone(),
            cursor: self.log.cursor().clone(),
            whole: self.whole,
            patient: true,
            until: timer::now(),
        }
    }

    /// Asks all who are to be asked, now or, where a round runs, next in it.
    fn ask(&mut self) -> &mut Round {
        if std::mem::replace(&mut self.round.runs, true) {
            self.round.more = true;
        } else {
            self.ask_next();
        }
        &mut self.round
    }

    /// Those who are to be asked and were not yet in this round.
    fn next_asked(&self) -> BTreeMap<NodeName, u64> {
        if self.epoch_began {
            return (*self.links).clone(); // how the one before ended, any of them may know
        }
        let new = |(peer, link): &(NodeName, u64)| self.round.asked.get(peer) != Some(link);
        self.unasked().filter(new).collect()
    }

    fn ask_next(&mut self) {
        let peers = self.next_asked();
        self.epoch_began = false;
        self.round.more = false;
        self.round.asked.extend(peers.clone());
        let (heads, tails) = (self.asking(), self.asking());
        let places = self.shared.rounds.clone();
        self.jobs.spawn(async move {
            let _place = places.acquire_owned().await;
            Job::Asked(tails.tails(heads.heads(peers).await).await)
        });
    }

    /// Those who were asked have answered, or had the time to.
    pub(super) fn answered(&mut self, answers: Vec<Answer>) {
        self.round.answers.extend(answers);
        if self.round.more && !self.next_asked().is_empty() {
            return self.ask_next();
        }
        (self.round.runs, self.round.more) = (false, false);
        self.round.asked.clear();
        self.release();
    }

    /// Nothing waits any more: what was answered counts now.
    pub(super) fn release(&mut self) {
        let round = &mut self.round;
        round.until = None;
        let (joins, leavers) =
            (std::mem::take(&mut round.joins), std::mem::take(&mut round.leavers));
        let (answers, held) = (std::mem::take(&mut round.answers), round.held.take());
        let questions = std::mem::take(&mut round.questions);
        self.merge(answers, held.unwrap_or_default().messages);
        for (id, member) in joins {
            if self.pending.remove(&id) {
                self.admit(member);
            }
        }
        leavers.into_iter().for_each(|to| to.send(KEPT.into()).unwrap_or(())); // it may have gone
        questions.into_iter().for_each(|asked| self.answer_past(asked));
    }

    /// Another node asks for a join of its own, perhaps for what it has just said itself: while that is held back, it waits.
    pub(super) fn asked_for_past(&mut self, asked: Asked) {
        if self.round.held.is_some() {
            self.round.questions.push(asked);
        } else {
            self.answer_past(asked);
        }
    }

    /// Whether it takes what comes: what is held back is bounded.
    pub(super) fn listens(&self) -> bool {
        self.round.held.as_ref().is_none_or(|held| held.bytes < HELD)
    }

    /// Hears this, unless it is held back.
    pub(super) fn receive(&mut self, received: Received) {
        match (&received, &mut self.round.held) {
            (_, None) => self.hear(received),
            (Received::Message(it), Some(_)) if it.from == self.shared.me => {
                self.hear_with(received, |_| None);
            }
            (_, Some(held)) => held.push(received),
        }
    }

    /// Whether a join goes on from what another node has that may be linked soon, as this one has just started.
    pub(super) fn waits_for_links(&self, member: &Member) -> bool {
        let Some(resume) = member.resume.as_deref().filter(|it| !it.is_empty()) else {
            return false;
        };
        let names = |name: &NodeName| *name == self.shared.me || self.links.contains_key(name);
        let linked = match resume.parse::<Cursor>() {
            Ok(cursor) => cursor.iter().all(|(name, _)| names(name)),
            Err(_) if resume.starts_with(START) => true,
            Err(_) => return false,
        };
        timer::now() < self.shared.links_by && (self.links.is_empty() || !linked)
    }

    /// Joins that wait for links are looked at again.
    fn retry_early_joins(&mut self) {
        for (id, member) in std::mem::take(&mut self.early_joins) {
            self.pending.remove(&id);
            let links = self.links.clone();
            self.join(member, &links);
        }
    }
}

#[cfg(test)]
mod tests;
