//! What a join gets of the past: what it missed since its cursor, or else what it asks for of the topic's history.
//!
//! Invariants: messages come in the order in which this node took them, each once, and none that is older than the
//! topic's [`Rule`](crate::proto::history::Rule) keeps. What is left out is said: `gap`, where it cannot be said what the
//! cursor has missed, `more`, where the history has older messages that were asked for than a join is given.

use std::sync::Arc;
use std::time::Duration;

use super::{Logged, TopicTask};
use crate::proto::history::{Ask, MAX_BYTES};
use crate::proto::replay::Cursor;

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
}

impl Past {
    /// Says so in the answer to the join.
    pub(super) fn describe(&self, response: &mut serde_json::Map<String, serde_json::Value>) {
        if self.asked {
            response.insert("replayed".into(), self.messages.len().into());
        }
        for (word, _) in [("gap", self.gap), ("more", self.more)].iter().filter(|(_, is)| *is) {
            response.insert((*word).into(), true.into());
        }
    }

    /// Whether the answer says where the join stands, rather than its last message.
    pub(super) fn stands(&self) -> bool {
        self.messages.is_empty()
    }
}

impl TopicTask {
    /// What a join gets that has this cursor, if any, and asks for this.
    pub(super) fn past(&mut self, resume: Option<&str>, ask: Option<Ask>) -> Past {
        self.expire();
        let missed = resume.filter(|cursor| !cursor.is_empty()).map(|it| self.missed(it));
        let gap = match missed {
            Some(Ok(messages)) => return Past { messages, asked: true, ..Past::default() },
            Some(Err(())) => true,
            None => false,
        };
        let (messages, more) = ask.map(|ask| self.asked(ask)).unwrap_or_default();
        // Who has seen nothing asks for nothing of the past.
        let asked = ask.is_some() || resume.is_some() && !gap;
        Past { messages, asked, gap, more }
    }

    /// The newest of what is asked for, and whether there is more.
    fn asked(&self, ask: Ask) -> (Vec<Arc<Logged>>, bool) {
        let (mut room, mut messages) = (MAX_BYTES, Vec::new());
        let mut wanted = self.log.iter().rev().filter(|kept| ask.wants(kept.at)).peekable();
        while messages.len() < ask.most()
            && let Some(kept) = wanted.next_if(|kept| kept.cost <= room)
        {
            room -= kept.cost;
            messages.push(kept.clone());
        }
        messages.reverse();
        let more = wanted.peek().is_some() && ask.is_short_of(messages.len());
        (messages, more)
    }

    /// What a client with this cursor has not seen.
    fn missed(&self, cursor: &str) -> Result<Vec<Arc<Logged>>, ()> {
        if cursor.starts_with(super::START) {
            let all = cursor == self.start && self.log.len() == self.taken;
            return all.then(|| self.log.iter().cloned().collect()).ok_or(());
        }
        let cursor: Cursor = cursor.parse().map_err(|_no_cursor| ())?;
        Ok(self.log.after(&cursor).map_err(|_gap| ())?.cloned().collect())
    }

    /// Lets go of what is older than the topic keeps.
    pub(super) fn expire(&mut self) {
        let Some(age) = self.rule.age else { return };
        let before = self.log.cost();
        let first = super::now().saturating_sub(millis(age));
        self.log.expire(|kept| kept.at < first);
        self.shared.count(before, self.log.cost());
    }
}

/// So many milliseconds.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
