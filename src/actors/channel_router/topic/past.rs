//! What a join gets of the past: what it missed since its cursor, or else what it asks for of the topic's history.
//!
//! Invariants: messages come in the order in which this node took them, each once, and none that is older than the
//! topic's [`Rule`](crate::proto::history::Rule) keeps. What is left out is said: `gap`, where it cannot be said what the
//! cursor has missed or something between the messages is lost, `more`, where the history has older messages that were asked for than a join is given.

use std::sync::Arc;

use super::kept::now;
use super::telling::{Manner, SEQ, replay};
use super::{Logged, Member, TopicTask};
use crate::actors::timer;
use crate::proto::channel::{Json, Outcome, Payload, Say};
use crate::proto::history::{Ask, MAX_BYTES};
use crate::proto::replay::{Cursor, Log};

/// What the answer to a join says of the past, and messages of where they stand: nobody else says it.
const OWN: [&str; 4] = [SEQ, "replayed", "gap", "more"];

/// What a join gets of the past, and what its answer says of that.
#[derive(Default)]
pub(super) struct Past {
    pub(super) messages: Vec<Arc<Logged>>,
    /// It asked for something of the past.
    asked: bool,
    /// What it missed is not known.
    gap: bool,
    /// There is more of what it asked for.
    more: bool,
    /// It goes on from its cursor.
    resumed: bool,
    /// Older messages are none that it asks for.
    ended: bool,
}

impl Past {
    /// These messages after its cursor.
    pub(super) fn after(messages: Vec<Arc<Logged>>) -> Self {
        Self { messages, asked: true, resumed: true, ..Self::default() }
    }

    /// Whether it goes on from its cursor.
    pub(super) fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// Whether there is more of what it asked for.
    pub(super) fn has_more(&self) -> bool {
        self.more
    }

    /// Likewise, with what came since, if it asks for this.
    pub(super) fn with(
        mut self,
        later: impl Iterator<Item = Arc<Logged>>,
        ask: Option<Ask>,
    ) -> Self {
        let Some(ask) = ask else { return self };
        self.messages.extend(later);
        let beyond = self.messages.len().saturating_sub(ask.most());
        self.messages.drain(..beyond);
        self.more |= beyond > 0 && ask.is_short_of(self.messages.len());
        self
    }

    /// Says so in the answer to the join.
    pub(super) fn describe(&self, response: &mut serde_json::Map<String, serde_json::Value>) {
        if self.asked {
            response.insert("replayed".into(), self.messages.len().into());
        }
        for (word, _) in [("gap", self.gap), ("more", self.more)].iter().filter(|(_, is)| *is) {
            response.insert((*word).into(), true.into());
        }
    }

    /// Whether it is not known what it missed.
    pub(super) fn is_gap(&self) -> bool {
        self.gap
    }

    /// Whether it has fewer messages than it asks for, and older ones may be had.
    pub(super) fn may_have_more(&self, ask: Ask) -> bool {
        self.asked && self.messages.len() < ask.most() && !self.resumed && !self.ended
    }

    /// Whether the answer says where the join stands, rather than its last message.
    pub(super) fn stands(&self) -> bool {
        self.messages.is_empty()
    }
}

impl TopicTask {
    /// Makes a join a member, which gets this of the past.
    pub(super) fn welcome(&mut self, mut member: Box<Member>, past: Past) {
        let numbered = member.resume.is_some();
        let mut response = std::mem::take(&mut member.response);
        if numbered || member.history.is_some() {
            response.retain(|name, _| !OWN.contains(&name.as_str()));
        }
        past.describe(&mut response);
        // Who is given messages stands where the last of them says.
        if numbered && past.stands() {
            response.insert(SEQ.into(), self.cursor().into());
        }
        let topic = self.topic.as_str();
        let (join_ref, reference) = (member.join_ref.as_ref(), member.reference.as_ref());
        let payload = Payload::Json(Json::of(&response));
        let reply = Say::Reply(join_ref, reference, Outcome::Ok, &payload);
        member.outbox.welcome(reply.encode(member.dialect, topic));
        let manner =
            Manner { topic: &self.topic, dialect: member.dialect, numbered, join: Some(join_ref) };
        // What other nodes answer later is sent to this member only beyond its last message.
        let stands = past.messages.last().and_then(|last| last.cursor.get()).cloned();
        match &member.intercept {
            Some(intercept) => {
                past.messages.iter().for_each(|kept| intercept.send(kept, &manner, true));
            }
            None if past.messages.is_empty() => {}
            None => member.outbox.replay(replay(past.messages, &manner)),
        }
        for (event, payload) in member.greeting.take().map(|make| make()).unwrap_or_default() {
            let push = Say::Push(member.join_ref.as_ref(), event, &payload);
            member.outbox.welcome(push.encode(member.dialect, topic));
        }
        self.listing.admit(member.id, member.sees, member.dialect, timer::now());
        if numbered && stands.is_some() {
            member.resume = stands;
        }
        if let Some(ready) = member.ready.take() {
            ready.send(()).unwrap_or(()); // who gave up waiting leaves
        }
        self.members.insert(member.id, member);
    }

    /// What a join gets that has this cursor, if any, and asks for this.
    pub(super) fn past(&mut self, resume: Option<&str>, ask: Option<Ask>) -> Past {
        self.expire();
        self.past_of(&self.log, self.older, (resume, ask))
    }

    /// What it gets of this log, which may have older messages elsewhere.
    pub(super) fn past_of(
        &self,
        log: &Log<Arc<Logged>>,
        older: bool,
        (resume, ask): (Option<&str>, Option<Ask>),
    ) -> Past {
        let missed = resume.filter(|cursor| !cursor.is_empty()).map(|it| self.missed(log, it));
        let gap = match missed {
            Some(Ok(messages)) => return Past::after(messages),
            Some(Err(())) => true,
            None => false,
        };
        let mut past = ask.map(|ask| self.asked(log, older, ask)).unwrap_or_default();
        // Who has seen nothing asks for nothing of the past.
        past.asked = ask.is_some() || resume.is_some() && !gap;
        past.gap |= gap;
        past
    }

    /// The newest of what is asked for, in this log.
    fn asked(&self, log: &Log<Arc<Logged>>, older: bool, ask: Ask) -> Past {
        let first = self.rule.first(now());
        let (mut room, mut past) = (MAX_BYTES, Past::default());
        let newest = log.iter().rev().take(self.rule.count);
        let mut kept = newest.filter(|kept| kept.at >= first).peekable();
        while past.messages.len() < ask.most()
            && let Some(kept) = kept.next_if(|kept| ask.wants(kept.at) && kept.cost <= room)
        {
            room -= kept.cost;
            let jumps = past.messages.last().is_some_and(|later| later.index > kept.index + 1);
            past.gap |= jumps;
            past.messages.push(kept.clone());
        }
        past.messages.reverse();
        past.ended = kept.peek().is_some_and(|kept| !ask.wants(kept.at));
        let rest = kept.peek().is_some() || older && past.messages.len() < self.rule.count;
        let rest = rest && !past.ended;
        past.more = rest && ask.is_short_of(past.messages.len());
        past
    }

    /// What a client with this cursor has not seen.
    fn missed(&self, log: &Log<Arc<Logged>>, cursor: &str) -> Result<Vec<Arc<Logged>>, ()> {
        if self.ended_unknown() {
            return Err(());
        }
        if let Some(id) = cursor.strip_prefix(super::START) {
            let id = u64::from_str_radix(id, 16).map_err(|_no_start| ())?;
            let start = self.starts.iter().find(|start| start.id == id).ok_or(())?;
            let entries = log.since(&start.stood).ok().filter(|_| start.losses == log.losses());
            return Ok(entries.ok_or(())?.map(|(_, _, kept)| kept.clone()).collect());
        }
        let cursor: Cursor = cursor.parse().map_err(|_no_cursor| ())?;
        Ok(log.after(&cursor).map_err(|_gap| ())?.cloned().collect())
    }

    /// Lets go of what is older than the topic keeps.
    pub(super) fn expire(&mut self) {
        let first = self.rule.first(now());
        if first == 0 {
            return;
        }
        let before = self.log.cost();
        self.log.expire(|kept| kept.at < first);
        self.shared.count(before, self.log.cost());
    }
}
