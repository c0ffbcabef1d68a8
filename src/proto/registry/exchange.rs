//! How entries are brought together: digests, marks, questions and answers.

use std::time::Instant;

use rand::RngExt;

use super::{
    Entry, MOST, Mark, Output, REPEAT, RETRY, Registry, Word, YOUNG, expired, millis,
    profile::Profile,
};
use crate::proto::codec;
use crate::proto::node::NodeName;

/// Each word encodes below this many bytes.
pub(super) const WORD: usize = 48 * 1024;
/// What a word needs beside its items, at most.
const HEAD: usize = 320;
/// One answer has about this many bytes at most.
pub(super) const ANSWER: usize = 1024 * 1024;
/// Entries wanted in one word.
const WANTS: usize = 256;

impl Registry {
    /// Tells one peer what all marks come to: the one that was linked last, or any.
    pub(super) fn send_digest(&mut self, out: &mut Vec<Output>) {
        let newcomer = self.newcomer.take().filter(|peer| self.links.contains_key(peer));
        let one = newcomer.or_else(|| {
            let peers = self.links.len();
            let at = (peers > 0).then(|| self.rng.random_range(0..peers))?;
            self.links.keys().nth(at).cloned()
        });
        out.extend(one.map(|peer| Output::Send(peer, Word::Digest(self.agreement()))));
    }

    /// Tells a peer all marks, once in a while.
    pub(super) fn send_marks(&mut self, peer: &NodeName, now: Instant, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(peer) else { return };
        if link.compared.is_some_and(|at| now < at + REPEAT) {
            return;
        }
        link.compared = Some(now);
        let marks = self.entries.values().map(|entry| (entry.origin.clone(), entry.mark()));
        let parts = codec::chunks(MOST, marks, WORD - HEAD, mark_size);
        let (count, mut after) = (parts.len(), None);
        for (at, marks) in parts.into_iter().enumerate() {
            let last = marks.last().map(|(name, _)| name.clone());
            let after = std::mem::replace(&mut after, last);
            let word = Word::Marks { after, marks, more: at + 1 < count };
            out.push(Output::Send(peer.clone(), word));
        }
    }

    /// Sends what is newer here than in a peer's marks.
    pub(super) fn compare(
        &mut self,
        from: &NodeName,
        after: Option<&NodeName>,
        marks: &[(NodeName, Mark)],
        more: bool,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let last = marks.last().map(|(name, _)| name);
        // Both in order of names; a peer whose list is not gets more than it needs.
        let mut theirs = marks.iter().peekable();
        let newer = self.entries.values().filter(|entry| {
            let name = &entry.origin;
            while theirs.next_if(|(theirs, _)| theirs < name).is_some() {}
            let same = theirs.peek().filter(|(theirs, _)| theirs == name);
            after.is_none_or(|after| name > after)
                && (!more || last.is_some_and(|last| name <= last))
                && same.is_none_or(|(_, mark)| entry.mark() > *mark)
        });
        let newer: Vec<_> = newer.map(|entry| entry.origin.clone()).collect();
        self.answer(from, newer, now, out);
    }

    /// Sends entries, each once in a while.
    pub(super) fn answer(
        &mut self,
        to: &NodeName,
        names: Vec<NodeName>,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Some(link) = self.links.get_mut(to) else { return };
        link.answered.retain(|_, (_, at)| now < *at + REPEAT);
        let (mut entries, mut size) = (Vec::new(), 0);
        for entry in names.iter().filter_map(|name| self.entries.get(name)) {
            let mark = entry.mark();
            let sent = link.answered.get(&entry.origin).is_some_and(|(sent, _)| *sent == mark);
            if sent || size > ANSWER {
                continue;
            }
            link.answered.insert(entry.origin.clone(), (mark, now));
            size += entry_size(entry);
            entries.push(entry.clone());
        }
        for entries in codec::chunks(MOST, entries, WORD - HEAD, entry_size) {
            out.push(Output::Send(to.clone(), Word::Entries(entries)));
        }
    }

    /// Wants what is newer at a peer.
    pub(super) fn learn(
        &mut self,
        from: &NodeName,
        marks: Vec<(NodeName, Mark)>,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let (mut wanted, mut absurd) = (Vec::new(), false);
        for (origin, mark) in marks {
            if origin == self.me {
                self.claimed(mark, now, out);
            } else if self.newer(&origin, mark) {
                if self.absurd(&origin, mark) {
                    absurd = true;
                } else if origin != *from && self.links.contains_key(&origin) {
                    self.ask_itself(origin, mark, now, out);
                } else if wanted.len() < WANTS && self.asks(&origin, mark, now) {
                    wanted.push(origin);
                }
            }
        }
        for names in codec::chunks(MOST, wanted, WORD - HEAD, |name| name.as_str().len() + 2) {
            out.push(Output::Send(from.clone(), Word::Want(names)));
        }
        if absurd {
            self.charge(from, "absurd mark", now, out);
        }
    }

    /// Whether that entry is to be asked for now.
    fn asks(&mut self, origin: &NodeName, mark: Mark, now: Instant) -> bool {
        let open =
            self.asks.get(origin).is_some_and(|(asked, at)| *asked >= mark && now < *at + RETRY);
        let known = self.asks.contains_key(origin);
        let may = !open && (known || self.asks.len() < MOST) && self.fits(origin);
        if may {
            self.asks.insert(origin.clone(), (mark, now));
        }
        may
    }

    /// A linked node shall hear what is said of it, and tell us itself what it is.
    fn ask_itself(&mut self, origin: NodeName, mark: Mark, now: Instant, out: &mut Vec<Output>) {
        if self.asks(&origin, mark, now) {
            out.push(Output::Send(origin.clone(), Word::News(vec![(origin.clone(), mark)])));
            out.push(Output::Send(origin.clone(), Word::Want(vec![origin])));
        }
    }

    /// Takes an entry, if it is later than what is known; gives it back if it is to be told to others.
    pub(super) fn take(
        &mut self,
        from: &NodeName,
        entry: Entry,
        now: Instant,
        out: &mut Vec<Output>,
    ) -> Option<Entry> {
        let (origin, mark) = (entry.origin.clone(), entry.mark());
        if origin == self.me {
            self.claimed(mark, now, out);
            return None;
        }
        if !self.newer(&origin, mark) {
            return None;
        }
        if self.absurd(&origin, mark) {
            self.charge(from, "absurd mark", now, out);
            return None;
        }
        if let Some(link) = self.links.get(&origin) {
            if origin != *from {
                self.ask_itself(origin, mark, now, out);
                return None;
            }
            if mark.forgotten {
                self.charge(from, "its own tombstone", now, out);
                return None;
            }
            if mark.incarnation != link.incarnation {
                return None; // of a link that is over, or not reported yet
            }
        }
        let wall = self.wall(now);
        let at = entry.forgotten_at();
        if at.is_some_and(|at| expired(at, wall)) || !self.room(&origin, out) {
            return None;
        }
        let young = at.is_some_and(|at| at.saturating_add(millis(YOUNG)) > wall);
        let told = young.then(|| entry.clone());
        self.put(entry, false, out);
        told
    }

    /// Tells all linked peers but the one it came from.
    pub(super) fn relay(
        &self,
        from: Option<&NodeName>,
        entries: Vec<Entry>,
        out: &mut Vec<Output>,
    ) {
        for entries in codec::chunks(MOST, entries, WORD - HEAD, entry_size) {
            for peer in self.links.keys().filter(|peer| Some(*peer) != from) {
                out.push(Output::Send(peer.clone(), Word::Entries(entries.clone())));
            }
        }
    }
}

// What things need on the wire, at most.

fn mark_size((name, _): &(NodeName, Mark)) -> usize {
    name.as_str().len() + 23
}

pub(super) fn entry_size(entry: &Entry) -> usize {
    entry.origin.as_str().len() + 40 + entry.profile().map_or(0, Profile::size)
}
