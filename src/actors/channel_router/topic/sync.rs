//! What other nodes have of a topic: this one asks them when it opens the topic, when a link to one comes up or goes down, and
//! before it answers a join that asks for something of the past; and it answers them.
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
//! 5. While a new link is asked, what other nodes say waits, and is heard after what the answer has; what this node says does not
//!    wait.
//! 6. A start of another node counts here only with what that node took since, or with a gap.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::task::JoinError;

use super::asking::{Answer, Asking, WITHIN};
use super::kept::now;
use super::{For, Job, KEEPS, Links, Logged, Member, QUIET, START, TopicTask};
use crate::actors::exchange::Received;
use crate::actors::timer;
use crate::proto::channel::Payload;
use crate::proto::channel::envelope::Envelope;
use crate::proto::history::chunk::{Chunk, Record};
use crate::proto::history::words::{
    Heads, KEPT, MAX_STARTS, MAX_STOOD, MAX_TAIL, Question, encode_tail,
};
use crate::proto::node::NodeName;
use crate::proto::replay::{Bounds, Cursor, Log, Position, Standing};

/// Nodes that are asked how far one came that is gone, at most, and until they have heard that it is.
const SURVIVORS: usize = 8;
const ENDS: Duration = Duration::from_millis(200);
/// The longest that what others say waits.
const HOLD: Duration = Duration::from_secs(3);
/// Bytes of what waits while others are asked; beyond them it stays where it comes from.
const WAITING: usize = 1024 * 1024;
/// What is read from disk for another node, at most.
const READ: Bounds = Bounds { entries: 10_000, bytes: 8 * MAX_TAIL };
const ALL: Bounds = Bounds { entries: usize::MAX, bytes: usize::MAX };

impl TopicTask {
    /// Whether there is another node that was not asked since it was linked.
    pub(super) fn has_unasked(&self, links: &Links) -> bool {
        self.unasked(links).next().is_some()
    }

    fn unasked(&self, links: &Links) -> impl Iterator<Item = (NodeName, u64)> {
        let new = links.iter().filter(|(peer, link)| self.asked.get(*peer) != Some(*link));
        new.map(|(peer, link)| (peer.clone(), *link))
    }

    fn asking(&self) -> Asking {
        Asking {
            exchange: self.shared.exchange.clone(),
            topic: self.topic.clone(),
            cursor: self.log.cursor().clone(),
            whole: self.whole,
            patient: true,
            until: timer::now() + WITHIN,
        }
    }

    /// Asks those that were not asked since they were linked how far they are.
    pub(in super::super) fn ask_heads(
        &self,
        links: &Links,
    ) -> impl Future<Output = Vec<Answer>> + Send + use<> {
        let asking = Asking { patient: false, ..self.asking() };
        asking.heads(self.unasked(links).collect())
    }

    /// Asks these how far they are, and for what they have.
    fn ask_all(
        &self,
        peers: BTreeMap<NodeName, u64>,
    ) -> impl Future<Output = Vec<Answer>> + Send + use<> {
        let (heads, tails) = (self.asking().heads(peers), self.asking());
        async move { tails.tails(heads.await).await }
    }

    /// Asks for a join that wants something of the past.
    pub(super) fn ask(&mut self, member: Box<Member>, links: &Links) {
        self.pending.insert(member.id);
        // How the epochs ended that were left since, those may know who were asked before.
        let all = self.left > self.settled;
        let peers = if all { (**links).clone() } else { self.unasked(links).collect() };
        let (asking, whom) = (self.ask_all(peers), For::Join(member, self.left));
        self.jobs.spawn(async move { Job::Synced(whom, asking.await) });
    }

    /// Before it has members: which nodes are linked, and whether it takes all that they have in memory, or the newest.
    pub(in super::super) fn begin_with(&mut self, links: &Links, whole: bool) {
        (self.links, self.whole) = (links.clone(), whole);
    }

    /// Goes on for a node that leaves, for as long as after a last member.
    pub(super) fn keep_for(&mut self, to: oneshot::Sender<Bytes>, links: &Links) {
        self.links = links.clone();
        if self.shared.quiet.load(Ordering::Relaxed) < QUIET / KEEPS {
            self.empty = self.empty.map(|_since| timer::now());
        }
        if !self.has_unasked(links) {
            return to.send(KEPT.into()).unwrap_or(()); // it may have gone
        }
        let asking = self.ask_all(self.unasked(links).collect());
        self.jobs.spawn(async move { Job::Synced(For::Keep(to), asking.await) });
    }

    /// Other nodes are linked now. What one of them has goes before what it says from now on.
    pub(super) fn linked(&mut self, links: &Links) {
        self.links = links.clone();
        let (silent, nobody) = (self.log.is_empty(), self.members.is_empty());
        if !(silent && nobody) && self.has_unasked(links) {
            self.ask_before(links);
        }
        self.consider_early();
    }

    /// A node is not linked any more. Of what it said last, others may have more.
    pub(super) fn unlinked(&mut self, peer: &NodeName, links: &Links) {
        self.links = links.clone();
        let mut others = self.shared.exchange.subscribers(&self.topic);
        others.truncate(SURVIVORS);
        Arc::make_mut(&mut self.asked).retain(|asked, _| !others.contains(asked));
        if self.log.latest(peer).is_none() || self.members.is_empty() && self.tape.is_none() {
            return; // joins ask
        }
        let (asking, places) =
            (self.ask_all(self.unasked(links).collect()), self.shared.places.clone());
        self.jobs.spawn(async move {
            tokio::time::sleep(ENDS).await;
            let place = tokio::time::timeout(WITHIN, places.acquire_owned()).await;
            let answers = if place.is_ok() { asking.await } else { Vec::new() };
            Job::Synced(For::Here, answers)
        });
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
        timer::now() < self.shared.settled_at && (self.links.is_empty() || !linked)
    }

    /// Joins that wait for links are looked at again.
    pub(super) fn consider_early(&mut self) {
        for (id, member) in std::mem::take(&mut self.early_joins) {
            self.pending.remove(&id);
            let links = self.links.clone();
            self.join(member, &links);
        }
    }

    /// Those that opened the topic at the same time know what there is by now.
    pub(super) fn ask_again(&mut self) {
        let early = std::mem::take(&mut self.early);
        if !early.is_empty() {
            self.ask_before(&early);
        }
    }

    /// Asks these before anything else is told.
    fn ask_before(&mut self, links: &Links) {
        let until = timer::now() + HOLD;
        self.hold_until = self.hold_until.filter(|_| self.held > 0).or(Some(until));
        self.held += 1;
        let asking = self.ask_all(self.unasked(links).collect());
        let places = self.shared.places.clone();
        self.jobs.spawn(async move {
            // Live messages wait for this, and it waits for no disk.
            match tokio::time::timeout(WITHIN, places.acquire_owned()).await {
                Ok(_place) => Job::Synced(For::All, asking.await),
                Err(_elapsed) => Job::Synced(For::All, Vec::new()),
            }
        });
    }

    /// Asks for what there is by these answers, before anybody is a member.
    pub(in super::super) async fn catch_up(&mut self, answers: Vec<Answer>) {
        let answers = self.asking().tails(answers).await;
        let early = answers.iter().filter(|answer| answer.heads.opening);
        self.early = Arc::new(early.map(|it| (it.peer.clone(), it.link)).collect());
        self.merge(answers);
    }

    /// Hears what has arrived.
    fn drain(&mut self) {
        while self.listens()
            && let Some(received) = self.subscription.try_recv()
        {
            self.receive(received);
        }
    }

    /// Whether it takes what comes: what waits is bounded.
    pub(super) fn listens(&self) -> bool {
        self.held == 0 || self.waiting_bytes < WAITING
    }

    /// Hears this; but while others are asked before anything is told, what is theirs waits.
    pub(super) fn receive(&mut self, received: Received) {
        match &received {
            _ if self.held == 0 => self.hear(received),
            Received::Message(it) if it.from == self.shared.me => {
                self.hear_with(received, |_| None);
            }
            Received::Message(_) | Received::Missed(_) => {
                self.waiting_bytes += cost(&received);
                self.waiting.push_back(received);
            }
        }
    }

    /// Takes what others have.
    pub(super) fn merge(&mut self, answers: Vec<Answer>) {
        // What was said since, and is on its way or waits, goes on from it.
        // Of an epoch that was left each may have more: none goes on to the next one before that is here.
        let mut epochs = false;
        answers.iter().for_each(|answer| epochs |= self.take_from(answer, false));
        for answer in answers.iter().filter(|_| epochs) {
            self.take_from(answer, true);
        }
        let own = self.shared.publisher.last(&self.topic);
        let mut waiting = std::mem::take(&mut self.waiting);
        self.waiting_bytes = 0;
        while let Some(received) = waiting.pop_front() {
            self.hear_with(received, |_| waiting.pop_front());
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
        self.settle_own(own, &answers);
        answers.into_iter().for_each(|answer| self.adopt(answer));
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
    fn hear_of(&mut self, Answer { peer, link, heads, .. }: &Answer) {
        match heads.own {
            // What it answered in an earlier life of the link may be of an earlier life of its own.
            Some(own) if self.links.get(peer) == Some(link) => self.log.correct(peer, own),
            Some(own) => self.log.note_elsewhere(peer, own),
            None => {}
        }
        let theirs: Cursor = heads.cursor.parse().unwrap_or_default();
        for (name, latest) in theirs.iter() {
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
    fn settle_own(&mut self, own: Option<Position>, answers: &[Answer]) {
        let me = &self.shared.me;
        if let Some(last) = own {
            self.log.hear(me, last);
        }
        let Some(latest) = self.log.latest(me) else { return };
        let knows = |answer: &Answer| {
            let theirs: Cursor = answer.heads.cursor.parse().unwrap_or_default();
            theirs
                .iter()
                .any(|(name, at)| name == me && at.epoch == latest.epoch && at.n <= latest.n)
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
    pub(super) fn settle(&mut self, member: Box<Member>) {
        if self.asks_disk(member.resume.as_deref(), member.history) {
            self.load(member);
        } else {
            self.consider(member, None);
        }
    }

    pub(super) fn finish(&mut self, job: Result<Job, JoinError>) {
        // One that crashed leaves its join unanswered: the client asks again.
        match job {
            Ok(Job::Loaded(member, loaded)) => {
                if self.pending.remove(&member.id) {
                    self.loaded(member, loaded);
                }
            }
            Ok(Job::Synced(whom, answers)) => {
                self.held = self.held.saturating_sub(usize::from(matches!(whom, For::All)));
                self.answered.push((whom, answers));
                if self.held == 0 {
                    self.synced();
                }
            }
            Ok(Job::Fetched(member, past, theirs)) => {
                if self.pending.remove(&member.id) {
                    self.fetched(member, past, theirs);
                }
            }
            Ok(Job::Read(asked, loaded)) => self.answer_from(asked, loaded),
            Err(_) => {}
        }
        self.mind();
    }

    /// When what others say waits no longer, though one that was asked has not answered.
    pub(super) fn hold_ends(&self) -> Option<Instant> {
        self.hold_until.filter(|_| self.held > 0)
    }

    /// Nothing waits any more: what has been answered counts now.
    pub(super) fn synced(&mut self) {
        self.held = 0;
        let (all, answers): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.answered).into_iter().unzip();
        self.merge(answers.into_iter().flatten().collect());
        for whom in all {
            match whom {
                For::Join(member, left) => {
                    self.settled = self.settled.max(left);
                    if self.pending.remove(&member.id) {
                        self.settle(member);
                    }
                }
                For::All | For::Here => {}
                For::Keep(to) => to.send(KEPT.into()).unwrap_or(()), // it may have gone
            }
        }
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
            Question::Past(_, resume, ask) => self.answer_past((resume.clone(), *ask, to)),
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

/// What a message that waits costs, in bytes.
fn cost(received: &Received) -> usize {
    size_of::<Received>() + if let Received::Message(it) = received { it.payload.len() } else { 0 }
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
