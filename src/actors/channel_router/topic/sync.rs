//! What other nodes have of a topic: this one takes it, and answers them.
//!
//! Who answers knows by then that messages on the topic are to come here, which is why a new topic waits for the answers
//! before it has members: anyone who hears that it has joined may be told things at once.
//!
//! Invariants:
//! 1. A message of another node is taken only where it goes on from what the log has of its publisher, in its epoch or as the
//!    first of one that follows by what its publisher says or who saw it, or where the log has nothing of it and the message
//!    is its first: the log claims no more than it knows.
//! 2. What was published and did not come here, by what its publisher says of itself, is a gap.
//! 3. A node is believed only on a topic where it may publish.
//! 4. Members get what is taken so, too, unless it is older than the topic is here or their own cursor has seen it.
//! 5. A start of another node counts here only with what that node took since, or with a gap.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::task::JoinError;

use super::asking::Answer;
use super::kept::now;
use super::{Job, Logged, Member, TopicTask};
use crate::actors::exchange::Received;
use crate::proto::channel::Payload;
use crate::proto::channel::envelope::Envelope;
use crate::proto::history::chunk::{Chunk, Record};
use crate::proto::history::words::{Heads, MAX_STARTS, MAX_STOOD, MAX_TAIL, Question, encode_tail};
use crate::proto::node::NodeName;
use crate::proto::replay::{Bounds, Cursor, Log, Position, Standing};

/// What is read from disk for another node, at most.
const READ: Bounds = Bounds { entries: 10_000, bytes: 8 * MAX_TAIL };
const ALL: Bounds = Bounds { entries: usize::MAX, bytes: usize::MAX };

impl TopicTask {
    /// Takes what others have, and then hears what was held back meanwhile and what has come: that goes on from it.
    pub(super) fn merge(&mut self, answers: Vec<Answer>, mut held: VecDeque<Received>) {
        // Of an epoch that was left each may have more: none goes on to the next one before that is here.
        let mut epochs = false;
        answers.iter().for_each(|answer| epochs |= self.take_from(answer, false));
        for answer in answers.iter().filter(|_| epochs) {
            self.take_from(answer, true);
        }
        let own = self.shared.publisher.last(&self.topic);
        while let Some(received) = held.pop_front() {
            self.hear_with(received, |_| held.pop_front());
        }
        self.drain();
        let whole = |answer: &&Answer| !answer.heads.opening && !answer.cut_short;
        for Answer { peer, link, .. } in answers.iter().filter(whole) {
            Arc::make_mut(&mut self.asked).insert(peer.clone(), *link);
        }
        for answer in answers.iter().filter(whole) {
            self.hear_of(answer);
            self.short |= answer.heads.older || answer.heads.messages > self.log.len() as u64;
        }
        self.hear_own(own, &answers);
        answers.into_iter().for_each(|answer| self.adopt(answer));
    }

    /// Hears what has arrived.
    fn drain(&mut self) {
        while self.listens()
            && let Some(received) = self.subscription.try_recv()
        {
            self.receive(received);
        }
    }

    /// The starts of another node are good here, too, if all that it took since is here.
    fn adopt(&mut self, Answer { heads, .. }: Answer) {
        for (id, stood) in heads.starts.into_iter().take(MAX_STARTS) {
            if let Ok(stood) = stood.parse()
                && self.log.since(&stood).is_ok()
            {
                self.begin(id, stood);
            }
        }
    }

    /// What did not come here of what others say was published, is lost.
    fn hear_of(&mut self, Answer { peer, link, heads, cursor, .. }: &Answer) {
        match heads.own {
            // What it answered in an earlier life of the link may be of an earlier life of its own.
            Some(own) if self.links.get(peer) == Some(link) => self.log.correct(peer, own),
            Some(own) => self.log.note_elsewhere(peer, own),
            None => {}
        }
        for (name, latest) in cursor.iter() {
            // Those who are linked say themselves how far they are; but not what an earlier life of theirs has said. An epoch
            // that is unknown here may be an old one.
            let here = self.log.latest(name).map(|here| here.epoch);
            let follows = |here| {
                let after = |(of, epoch, before): &(NodeName, u32, (u32, u64))| {
                    of == name && *epoch == latest.epoch && before.0 == here
                };
                here == latest.epoch || heads.successions.iter().any(after)
            };
            let newer = here.is_none_or(follows);
            if newer && !self.links.contains_key(name) && *name != self.shared.me {
                self.log.hear(name, latest);
            } else {
                self.log.note_elsewhere(name, latest);
            }
        }
        for (name, epoch, before) in &heads.successions {
            self.log.note_succession(name, *epoch, *before);
        }
    }

    /// The starts that hold here, for another node.
    fn starts(&self) -> Vec<(u64, String)> {
        let mut room = MAX_STOOD;
        let losses = self.log.losses();
        let holding = self.starts.iter().filter(|start| start.losses == losses);
        let holding = holding.filter(|start| self.log.since(&start.stood).is_ok());
        let texts = holding.map(|start| (start.id, start.stood.to_string()));
        let fits = texts.filter(|(_, stood)| {
            let fits = stood.len() <= room;
            room -= if fits { stood.len() } else { 0 };
            fits
        });
        fits.take(MAX_STARTS).collect()
    }

    /// Takes what goes on from what is here, into other epochs or not; whether it has some that would.
    fn take_from(&mut self, answer: &Answer, epochs: bool) -> bool {
        let chunks = &answer.chunks;
        let Some(first) = chunks.first() else { return false };
        let new = self.taken == 0 && !self.forgot && self.log.cursor().is_empty();
        if new {
            let before = self.log.cost();
            self.log = Log::standing(self.bounds, first.standing());
            self.shared.count(before, self.log.cost());
        }
        let (mut heard, mut stamps, mut left) = (Vec::new(), Vec::new(), false);
        for record in chunks.iter().flat_map(Chunk::records) {
            let known = self.log.latest(&record.from).is_some() && !new;
            let Some((stamp, said)) = numbered(&record) else { continue };
            let next = self.log.continues(&record.from, stamp);
            if !next && (!epochs || !self.succeeds(&record.from, stamp, answer)) {
                left |= self.succeeds(&record.from, stamp, answer);
                continue;
            }
            let Some(kept) = self.take_record(&record, stamp, said, new) else { continue };
            if known || kept.at >= self.opened {
                heard.push(kept);
                stamps.push((record.from, stamp));
            }
        }
        // Who has seen some of it elsewhere gets the rest.
        self.deliver_but(&heard, |member| {
            let seen: Cursor = member.resume.as_deref()?.parse().ok()?;
            let fresh = stamps.iter().zip(&heard).filter(|((from, at), _)| !seen.has(from, *at));
            let fresh: Vec<_> = fresh.map(|(_, kept)| kept.clone()).collect();
            (fresh.len() < heard.len()).then_some(fresh)
        });
        left
    }

    fn take_record(
        &mut self,
        record: &Record,
        stamp: Position,
        (event, payload): (String, Payload),
        new: bool,
    ) -> Option<Arc<Logged>> {
        // Of a publisher that is unknown because something was lost, it cannot be told what was here before.
        let known = self.log.latest(&record.from).is_some();
        let later = record.at >= self.since && !self.forgot;
        if !known && !later && !new {
            return None;
        }
        let cost = record.message.len();
        // A peer whose clock is ahead has nothing kept longer here.
        let kept = Logged::new(self.index, record.at.min(now()), cost, event, payload);
        let kept = Arc::new(Logged { except: self.excepted(&stamp), ..kept });
        self.keep(&record.from, stamp, &record.message, &kept).then_some(kept)
    }

    /// What this node itself has published last is in the log, or lost.
    fn hear_own(&mut self, own: Option<Position>, answers: &[Answer]) {
        let me = &self.shared.me;
        if let Some(last) = own {
            self.log.hear(me, last);
        }
        let Some(latest) = self.log.latest(me) else { return };
        let knows = |answer: &Answer| {
            let of_me = |(name, at): (&NodeName, Position)| {
                name == me && at.epoch == latest.epoch && at.n <= latest.n
            };
            answer.cursor.iter().any(of_me)
        };
        self.own_end_known |= answers.iter().any(knows);
    }

    /// Whether nobody knows what this node said last in its life before, which was killed.
    pub(super) fn ended_unknown(&self) -> bool {
        let said = self.shared.publisher.last(&self.topic).map(|last| last.epoch);
        let before = self.log.latest(&self.shared.me).is_some_and(|it| Some(it.epoch) != said);
        before && !self.own_end_known
    }

    /// Whether a message that another node has is the first of an epoch that follows the one here. Its publisher knows, and
    /// who saw it after that one.
    fn succeeds(&self, from: &NodeName, stamp: Position, answer: &Answer) -> bool {
        let Answer { peer, heads, .. } = answer;
        let Some(latest) = self.log.latest(from) else { return false };
        let own = *from == *peer && heads.own.is_some_and(|own| own.epoch == stamp.epoch);
        let saw = |(name, epoch, before): &(NodeName, u32, (u32, u64))| {
            *name == *from && *epoch == stamp.epoch && before.0 == latest.epoch
        };
        self.log.begins(from, stamp) && (own || heads.successions.iter().any(saw))
    }

    /// Admits a join, once what it asks for is read.
    pub(super) fn admit(&mut self, member: Box<Member>) {
        if self.asks_disk(member.resume.as_deref(), member.history) {
            self.load(member);
        } else {
            self.consider(member, None);
        }
    }

    pub(super) fn finish(&mut self, job: Result<Job, JoinError>) {
        match job {
            Ok(Job::Loaded(member, loaded)) => {
                if self.pending.remove(&member.id) {
                    self.loaded(member, loaded);
                }
            }
            Ok(Job::Asked(answers)) => self.answered(answers),
            Ok(Job::Fetched(member, past, theirs)) => {
                if self.pending.remove(&member.id) {
                    self.fetched(member, past, theirs);
                }
            }
            Ok(Job::Read(asked, loaded)) => self.answer_from(asked, loaded),
            // One that crashed may have been a round's; it leaves a join of its own unanswered: the client asks again.
            Err(_) => self.answered(Vec::new()),
        }
        self.mind();
    }

    /// Answers another node.
    pub(super) fn answer(&mut self, question: &Question, to: oneshot::Sender<Bytes>) {
        match question {
            Question::Heads(_) => {
                // Its log has by then what it says that it has published.
                let said = self.shared.publisher.last(&self.topic);
                let own = if self.listens() { said } else { self.log.latest(&self.shared.me) };
                self.drain();
                if self.taken == 0 {
                    self.cursor(); // who opens the topic now begins where this node has begun
                }
                let heads = Heads {
                    own,
                    cursor: self.log.cursor().to_string(),
                    messages: self.log.len() as u64,
                    opening: false,
                    starts: self.starts(),
                    older: self.older,
                    successions: Heads::fitting(self.log.successions()),
                };
                to.send(heads.encode().unwrap_or_default().into()).unwrap_or(());
            }
            Question::Whole(_) => {
                let (standing, entries) = self.log.tail(ALL);
                to.send(encode_tail(&[part(0, standing, entries)]).into()).unwrap_or(());
            }
            Question::Past(_, resume, ask) => self.asked_for_past((resume.clone(), *ask, to)),
            Question::Keep(_) => {} // the router's
            Question::Tail(_, cursor) => self.answer_tail(&cursor.parse().unwrap_or_default(), to),
        }
    }

    fn answer_tail(&self, cursor: &Cursor, to: oneshot::Sender<Bytes>) {
        if let Ok(entries) = self.log.entries_after(cursor) {
            let mut entries = entries.peekable();
            let first = entries.peek().map_or(0, |(_, _, kept)| kept.index);
            let chunk = part(first, self.log.beginning(), entries);
            return to.send(encode_tail(&[chunk]).into()).unwrap_or(());
        }
        let newest = {
            let (standing, entries) = self.log.tail(Bounds { bytes: MAX_TAIL / 2, ..ALL });
            let mut chunk = Chunk::new(0, standing);
            entries.into_iter().for_each(|entry| add(&mut chunk, entry));
            encode_tail(&[chunk])
        };
        let Some((recorder, tape)) = self.shared.recorder.clone().zip(self.tape.clone()) else {
            return to.send(newest.into()).unwrap_or(());
        };
        let (places, cursor) = (self.shared.places.clone(), cursor.clone());
        tokio::spawn(async move {
            let _place = places.acquire_owned().await;
            let read = tokio::task::spawn_blocking(move || {
                let (mut messages, mut bytes, mut seen) = (0, 0, false);
                let found = recorder.newest(&tape, |chunk| {
                    messages += chunk.count() as usize;
                    bytes += chunk.size();
                    seen = chunk.is_seen(&cursor);
                    seen || messages >= READ.entries || bytes >= READ.bytes
                });
                (seen && !cursor.is_empty()).then_some(found.chunks)
            });
            let chunks = read.await.ok().flatten();
            let tail = chunks.map_or(newest, |chunks| {
                let mut room = MAX_TAIL / 2;
                let fits = |chunk: &&Chunk| {
                    let fits = room > 0;
                    room = room.saturating_sub(chunk.size());
                    fits
                };
                encode_tail(&chunks.iter().take_while(fits).cloned().collect::<Vec<_>>())
            });
            to.send(tail.into()).unwrap_or(());
        });
    }
}

/// The number of a message that another node has, and what it says.
fn numbered(record: &Record) -> Option<(Position, (String, Payload))> {
    let Envelope { stamp, event, payload } = Envelope::decode(&record.message)?;
    Some((stamp?, (event, payload)))
}

/// The oldest of these that one answer has room for.
fn part<'a>(
    first: u64,
    standing: Standing,
    entries: impl IntoIterator<Item = (&'a NodeName, Position, &'a Arc<Logged>)>,
) -> Chunk {
    let (mut room, mut chunk) = (MAX_TAIL / 2, Chunk::new(first, standing));
    for entry in entries {
        let Some(left) = room.checked_sub(entry.2.cost) else { break };
        room = left;
        add(&mut chunk, entry);
    }
    chunk
}

pub(super) fn add(chunk: &mut Chunk, (from, position, kept): (&NodeName, Position, &Arc<Logged>)) {
    if let Some(message) = Envelope::encode(position, &kept.event, &kept.payload) {
        chunk.push(kept.at, from, &message);
    }
}
