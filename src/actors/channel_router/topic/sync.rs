//! What other nodes have of a topic: this one asks them when it opens the topic, when a link to one comes up that it keeps
//! on disk, and before it answers a join that asks for something of the past; and it answers them.
//!
//! Who answers knows by then that messages on the topic are to come here, which is why a new topic waits for the answers
//! before it has members: anyone who hears that it has joined may be told things at once.
//!
//! Invariants:
//! 1. A message of another node is taken only where it goes on from what the log has of its publisher, or where the log has
//!    nothing of it and the message is its first: the log claims no more than it knows.
//! 2. What was published and did not come here, by what its publisher says of itself, is a gap.
//! 3. A node is believed only on a topic where it may publish.
//! 4. Members get what is taken so, too, unless it is older than the topic is here.
//! 5. Asking takes at most [`WITHIN`] for each of its two steps, and of the answers at most [`PAGES`] parts.
//! 6. A start of another node counts here only with what that node took since, or with a gap.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinSet};

use super::kept::now;
use super::{For, Job, KEEPS, Links, Logged, Member, QUIET, TopicTask};
use crate::actors::exchange::Exchange;
use crate::actors::timer;
use crate::proto::channel::envelope::Envelope;
use crate::proto::history::chunk::{Chunk, Record};
use crate::proto::history::words::{
    Heads, KEPT, MAX_STARTS, MAX_STOOD, MAX_TAIL, Question, decode_tail, encode_tail,
};
use crate::proto::node::NodeName;
use crate::proto::replay::{Bounds, Cursor, Log, Position, Standing};
use crate::proto::topic::{Address, Name, Topic};

/// How long asking takes, at most.
const WITHIN: Duration = Duration::from_secs(1);
/// Parts that are asked for at once, at most.
const PAGES: usize = 16;
/// What is read from disk for another node, at most.
const READ: Bounds = Bounds { entries: 10_000, bytes: 8 * MAX_TAIL };
const ALL: Bounds = Bounds { entries: usize::MAX, bytes: usize::MAX };

/// What another node has.
pub(in super::super) struct Answer {
    peer: NodeName,
    link: u64,
    heads: Heads,
    chunks: Vec<Chunk>,
}

/// Who asks, and what it has.
pub(super) struct Asking {
    exchange: Exchange,
    topic: Topic,
    cursor: Cursor,
    /// All that they have in memory, rather than the newest.
    whole: bool,
    until: Instant,
}

impl Asking {
    async fn call(&self, peer: &NodeName, question: &Question) -> Option<Bytes> {
        let to = Address { name: Name::channels(), node: Some(peer.clone()) };
        let left = self.until.saturating_duration_since(timer::now());
        self.exchange.call(&to, question.encode().ok()?, left).await.ok()
    }

    /// Asks these nodes how far they are.
    async fn heads(self, peers: BTreeMap<NodeName, u64>) -> Vec<Answer> {
        let mut asking = JoinSet::new();
        for (peer, link) in peers {
            if !self.exchange.may_publish(&peer, &self.topic) {
                continue;
            }
            let (exchange, topic) = (self.exchange.clone(), self.topic.clone());
            let cursor = Cursor::default();
            let one = Self { exchange, topic, cursor, whole: self.whole, until: self.until };
            asking.spawn(async move {
                let heads = one.call(&peer, &Question::Heads(one.topic.clone())).await?;
                // One of an earlier version answers with nothing.
                let heads = Heads::decode(&heads).unwrap_or_default();
                Some(Answer { peer, link, heads, chunks: Vec::new() })
            });
        }
        let mut answers = Vec::new();
        while let Some(answer) = asking.join_next().await {
            answers.extend(answer.ok().flatten());
        }
        answers.sort_by(|a, b| (b.heads.messages, &a.peer).cmp(&(a.heads.messages, &b.peer)));
        answers
    }

    /// Asks those that are further for what they have.
    async fn tails(mut self, mut answers: Vec<Answer>) -> Vec<Answer> {
        let mut pages = PAGES;
        for answer in &mut answers {
            let Ok(theirs) = answer.heads.cursor.parse::<Cursor>() else { continue };
            while pages > 0 && !self.cursor.covers(&theirs) {
                pages -= 1;
                let question = if self.whole && self.cursor.is_empty() {
                    Question::Whole(self.topic.clone())
                } else {
                    Question::Tail(self.topic.clone(), self.cursor.to_string())
                };
                let tail = self.call(&answer.peer, &question).await;
                let Some(chunks) = tail.and_then(|tail| decode_tail(&tail)) else { break };
                if !self.advance(&chunks) {
                    break;
                }
                answer.chunks.extend(chunks);
            }
        }
        answers
    }

    /// Whether these bring it further.
    fn advance(&mut self, chunks: &[Chunk]) -> bool {
        let mut further = false;
        if let Some(first) = chunks.first().filter(|_| self.cursor.is_empty()) {
            self.cursor = Log::<()>::standing(Bounds::default(), first.standing()).cursor().clone();
        }
        for record in chunks.iter().flat_map(Chunk::records) {
            let stamp = Envelope::decode(&record.message).and_then(|it| it.stamp);
            further |= stamp.is_some_and(|stamp| self.cursor.advance(&record.from, stamp));
        }
        further
    }
}

impl TopicTask {
    /// Whether there is another node that was not asked since it was linked.
    pub(super) fn has_unasked(&self, links: &Links) -> bool {
        links.iter().any(|(peer, link)| self.asked.get(peer) != Some(link))
    }

    fn asking(&self) -> Asking {
        Asking {
            exchange: self.shared.exchange.clone(),
            topic: self.topic.clone(),
            cursor: self.log.cursor().clone(),
            whole: self.whole,
            until: timer::now() + WITHIN,
        }
    }

    /// Asks those that were not asked since they were linked how far they are.
    pub(in super::super) fn ask_heads(
        &self,
        links: &Links,
    ) -> impl Future<Output = Vec<Answer>> + Send + use<> {
        let new = links.iter().filter(|(peer, link)| self.asked.get(*peer) != Some(*link));
        self.asking().heads(new.map(|(peer, link)| (peer.clone(), *link)).collect())
    }

    /// Likewise, and for what they have.
    fn ask_all(&self, links: &Links) -> impl Future<Output = Vec<Answer>> + Send + use<> {
        let (heads, tails) = (self.ask_heads(links), self.asking());
        async move { tails.tails(heads.await).await }
    }

    /// Asks for a join that wants something of the past.
    pub(super) fn ask(&mut self, member: Box<Member>, links: &Links) {
        self.pending.insert(member.id);
        let asking = self.ask_all(links);
        self.jobs.spawn(async move { Job::Synced(For::Join(member), asking.await) });
    }

    /// Before it has members: whether it takes all that others have in memory, or the newest.
    pub(in super::super) fn take_whole(&mut self, whole: bool) {
        self.whole = whole;
    }

    /// Goes on for a node that leaves, for as long as after a last member.
    pub(super) fn keep_for(&mut self, to: oneshot::Sender<Bytes>, links: &Links) {
        if self.shared.quiet.load(Ordering::Relaxed) < QUIET / KEEPS {
            self.empty = self.empty.map(|_since| timer::now());
        }
        if !self.has_unasked(links) {
            return to.send(KEPT.into()).unwrap_or(()); // it may have gone
        }
        let asking = self.ask_all(links);
        self.jobs.spawn(async move { Job::Synced(For::Keep(to), asking.await) });
    }

    /// Other nodes are linked now. What one of them has goes before what it says from now on.
    pub(super) fn linked(&mut self, links: &Links) {
        self.links = links.clone();
        if self.tape.is_some() && !self.log.is_empty() && self.has_unasked(links) {
            self.ask_before(links);
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
        self.held += 1;
        let (asking, places) = (self.ask_all(links), self.shared.places.clone());
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
        // What was said since the topic was subscribed to waits, and goes on from what there is.
        for answer in &answers {
            self.take_from(answer);
        }
        self.merge(answers);
    }

    /// Takes what others have.
    pub(super) fn merge(&mut self, answers: Vec<Answer>) {
        // What this node has said so far has arrived, and what others said before they answered.
        let own = self.shared.publisher.last(&self.topic);
        while let Some(received) = self.subscription.try_recv() {
            self.hear(received);
        }
        for Answer { peer, link, .. } in answers.iter().filter(|answer| !answer.heads.opening) {
            Arc::make_mut(&mut self.asked).insert(peer.clone(), *link);
        }
        for answer in &answers {
            self.take_from(answer);
            self.hear_of(answer);
            self.short |= answer.heads.older || answer.heads.messages > self.log.len() as u64;
        }
        self.settle_own(own);
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
    fn hear_of(&mut self, Answer { peer, heads, .. }: &Answer) {
        if let Some(own) = heads.own {
            self.log.hear(peer, own);
        }
        let theirs: Cursor = heads.cursor.parse().unwrap_or_default();
        for (name, latest) in theirs.iter() {
            // Those who are linked say so themselves.
            if !self.asked.contains_key(name) && *name != self.shared.me {
                self.log.hear(name, latest);
            }
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

    fn take_from(&mut self, Answer { chunks, .. }: &Answer) {
        let Some(first) = chunks.first() else { return };
        let new = self.taken == 0 && !self.forgot && self.log.cursor().is_empty();
        if new {
            let before = self.log.cost();
            self.log = Log::standing(self.bounds, first.standing());
            self.shared.count(before, self.log.cost());
        }
        let mut heard = Vec::new();
        for record in chunks.iter().flat_map(Chunk::records) {
            let known = self.log.latest(&record.from).is_some() && !new;
            let taken = self.take_record(&record, new);
            heard.extend(taken.filter(|kept| known || kept.at >= self.opened));
        }
        self.deliver(&heard);
    }

    fn take_record(&mut self, record: &Record, new: bool) -> Option<Arc<Logged>> {
        let Envelope { stamp, event, payload } = Envelope::decode(&record.message)?;
        // Of a publisher that is unknown because something was lost, it cannot be told what was here before.
        let known = self.log.latest(&record.from).is_some();
        let later = record.at >= self.since && !self.forgot;
        let stamp = stamp.filter(|stamp| self.log.continues(&record.from, *stamp))?;
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
    fn settle_own(&mut self, own: Option<Position>) {
        let me = &self.shared.me;
        match own {
            Some(last) => self.log.hear(me, last),
            None => self.log.lost(me),
        }
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
                self.merge(answers);
                match whom {
                    For::Join(member) if self.pending.remove(&member.id) => self.settle(member),
                    For::Join(_) => {}
                    For::All => self.held = self.held.saturating_sub(1),
                    For::Keep(to) => to.send(KEPT.into()).unwrap_or(()), // it may have gone
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

    /// Answers another node.
    pub(super) fn answer(&mut self, question: &Question, to: oneshot::Sender<Bytes>) {
        match question {
            Question::Heads(_) => {
                if self.taken == 0 {
                    self.cursor(); // who opens the topic now begins where this node has begun
                }
                let heads = Heads {
                    own: self.shared.publisher.last(&self.topic),
                    cursor: self.log.cursor().to_string(),
                    messages: self.log.len() as u64,
                    opening: false,
                    starts: self.starts(),
                    older: self.older,
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
