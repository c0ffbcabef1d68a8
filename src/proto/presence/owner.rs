//! What is known of one owner's entries, and how it is brought up to what the owner says.
//!
//! # Catching up
//! Entries never change and are numbered by the owner's clock, so that a page (all entries within a
//! range of numbers at some clock) is true whenever it arrives. The first page sets the clock from which
//! deltas are applied; the pages after it, up to that clock, may be of any later moment: what left before
//! them is not in them, and what leaves after them is still to come as a delta. A delta that is missing
//! meanwhile starts this anew. For numbers below `have`, all that is still there is here, and pages only
//! name it.
//!
//! # Invariants
//! 1. Unless catching up, `entries` are the owner's entries at `clock`.
//! 2. Catching up, they are so in the range that has been read, and hold every entry numbered up to
//!    `have` that the owner has at `clock`.
//! 3. Each entry is told once when it comes and once when it leaves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::words::{self, Body, Change, Entry, Epoch, HEAD, Output, Page, WORD, Word};
use crate::proto::budget::PRESENCES;
use crate::proto::node::NodeName;

/// The owner broke this rule.
pub(super) type Broken = &'static str;

const TOO_MANY: Broken = "too many entries";

/// An owner's entries at one moment of its clock.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) epoch: Epoch,
    /// How many changes have been made.
    pub(super) clock: u64,
    pub(super) entries: BTreeMap<u64, Arc<Entry>>,
    /// What they cost.
    pub(super) bytes: usize,
    tag: u64,
}

impl Owner {
    pub(super) fn new(name: &NodeName, epoch: Epoch) -> Self {
        let tag = words::tag(name, epoch);
        Self { epoch, clock: 0, entries: BTreeMap::new(), bytes: 0, tag }
    }

    /// The next change.
    pub(super) fn apply(&mut self, change: Change, out: &mut Vec<Output>) {
        self.clock = self.clock.saturating_add(1);
        match change {
            Change::Joined(body) => {
                if let Some(previous) = body.previous {
                    self.leave(previous, out);
                }
                self.join(self.clock, body, out);
            }
            Change::Left(number) => self.leave(number, out),
        }
    }

    fn join(&mut self, number: u64, body: Body, out: &mut Vec<Output>) {
        let entry = Arc::new(body.entry(self.tag, number));
        self.bytes += entry.cost();
        self.entries.insert(number, entry.clone());
        out.push(Output::Joined(entry));
    }

    fn leave(&mut self, number: u64, out: &mut Vec<Output>) {
        if let Some(entry) = self.entries.remove(&number) {
            self.bytes -= entry.cost();
            out.push(Output::Left(entry));
        }
    }

    /// One page of these entries, as large as a word may be.
    pub(super) fn page(&self, have: u64, after: u64, upto: Option<u64>) -> Page {
        let end = upto.unwrap_or(self.clock).min(self.clock);
        let (mut through, mut size) = (after, HEAD);
        let (mut still, mut entries) = (Vec::new(), Vec::new());
        let wanted = self.entries.range(after.saturating_add(1)..);
        for (number, entry) in wanted.take_while(|(number, _)| **number <= end) {
            let known = *number <= have;
            size += if known { 10 } else { words::size(entry) };
            if size > WORD {
                let (epoch, clock) = (self.epoch, self.clock);
                return Page { epoch, clock, after, through, still, entries };
            }
            if known {
                still.push(*number);
            } else {
                entries.push((*number, Body::of(entry)));
            }
            through = *number;
        }
        Page { epoch: self.epoch, clock: self.clock, after, through: end, still, entries }
    }
}

/// Catching up with an owner.
#[derive(Debug)]
struct Reading {
    /// Entries up to here are known, if they are still there.
    have: u64,
    /// Pages up to here were read.
    after: u64,
    /// The last page ends here; `None` before the first one.
    upto: Option<u64>,
}

/// One peer, as an owner.
#[derive(Debug)]
pub(super) struct Peer {
    name: NodeName,
    pub(super) owner: Owner,
    /// It can be talked to.
    pub(super) up: bool,
    /// It broke a rule.
    pub(super) refused: bool,
    /// It has said nothing since its link came up.
    pub(super) fresh: bool,
    reading: Option<Reading>,
}

impl Peer {
    /// One that has not said anything yet: its epoch is before all others.
    pub(super) fn new(name: &NodeName) -> Self {
        let owner = Owner::new(name, Epoch::default());
        Self { name: name.clone(), owner, up: false, refused: false, fresh: false, reading: None }
    }

    /// All its entries leave.
    pub(super) fn clear(&mut self, out: &mut Vec<Output>) {
        out.extend(std::mem::take(&mut self.owner.entries).into_values().map(Output::Left));
        (self.owner.bytes, self.owner.clock) = (0, 0);
        self.reading = None;
    }

    /// It begins anew, with nothing.
    pub(super) fn renew(&mut self, epoch: Epoch, out: &mut Vec<Output>) {
        self.clear(out);
        self.owner = Owner::new(&self.name, epoch);
        self.refused = false;
    }

    /// Takes a word of its current epoch; gives what to ask.
    pub(super) fn heard(
        &mut self,
        word: Word,
        out: &mut Vec<Output>,
    ) -> Result<Option<Word>, Broken> {
        match word {
            Word::Delta { after, changes, .. } => self.delta(after, changes, out),
            Word::Digest { clock, .. } => {
                if self.reading.is_some() {
                    return Ok(self.ask()); // a question or its answer may be lost
                }
                Ok((clock > self.owner.clock).then(|| self.lacks()).flatten())
            }
            Word::Page(page) => self.page(page, out),
            Word::Ask { .. } => Ok(None),
        }
    }

    fn delta(
        &mut self,
        after: u64,
        changes: Vec<Change>,
        out: &mut Vec<Output>,
    ) -> Result<Option<Word>, Broken> {
        let length = u64::try_from(changes.len()).unwrap_or(u64::MAX);
        after.checked_add(length).ok_or("clock at its end")?;
        if after > self.owner.clock {
            return Ok(self.lacks());
        }
        let known = usize::try_from(self.owner.clock - after).unwrap_or(usize::MAX);
        for change in changes.into_iter().skip(known) {
            if let Change::Joined(body) = &change {
                body.check().map_err(|_refused| "malformed entry")?;
            }
            self.owner.apply(change, out);
            if let Some(anew) = self.count(out)? {
                return Ok(Some(anew));
            }
        }
        Ok(None)
    }

    /// That it has no more than it may. Catching up, some that have left may still be here: then all of them leave, and
    /// everything is read from the beginning.
    fn count(&mut self, out: &mut Vec<Output>) -> Result<Option<Word>, Broken> {
        if self.owner.bytes <= PRESENCES {
            return Ok(None);
        }
        if self.reading.as_ref().is_none_or(|reading| reading.have == 0) {
            return Err(TOO_MANY);
        }
        self.clear(out);
        Ok(self.lacks())
    }

    /// Changes are missing: everything is read, or read anew.
    fn lacks(&mut self) -> Option<Word> {
        if self.reading.as_ref().is_some_and(|reading| reading.upto.is_none()) {
            return None; // asked already
        }
        let have = self.reading.as_ref().map_or(self.owner.clock, |reading| reading.have);
        self.reading = Some(Reading { have, after: 0, upto: None });
        self.ask()
    }

    fn ask(&self) -> Option<Word> {
        let Reading { have, after, upto } = *self.reading.as_ref()?;
        Some(Word::Ask { epoch: self.owner.epoch, have, after, upto })
    }

    fn page(&mut self, page: Page, out: &mut Vec<Output>) -> Result<Option<Word>, Broken> {
        let expected = self.reading.as_mut().filter(|reading| reading.after == page.after);
        let Some(reading) = expected.filter(|_| page.clock >= self.owner.clock) else {
            return Ok(None); // not asked for, or what left since is forgotten
        };
        let upto = reading.upto.unwrap_or(page.clock);
        let numbers: Vec<u64> = page
            .still
            .iter()
            .chain(page.entries.iter().map(|(number, _)| number))
            .copied()
            .collect();
        let rises = std::iter::once(&page.after).chain(&numbers).is_sorted_by(|a, b| a < b);
        let ends = numbers.last().is_none_or(|last| *last <= page.through);
        let moves = page.through > page.after || page.through >= upto;
        if !rises || !ends || !moves || page.through > page.clock {
            return Err("page out of order");
        }
        if page.still.iter().any(|number| !self.owner.entries.contains_key(number)) {
            return Ok(None); // of an answer to an earlier question
        }
        let through = page.through.min(upto);
        if reading.upto.is_none() {
            self.owner.clock = page.clock;
        }
        (reading.after, reading.upto) = (through, Some(upto));

        let there: BTreeSet<u64> = numbers.into_iter().collect();
        let known = self.owner.entries.range(page.after.saturating_add(1)..);
        let known = known.map(|(number, _)| *number).take_while(|number| *number <= through);
        let left: Vec<u64> = known.filter(|number| !there.contains(number)).collect();
        left.into_iter().for_each(|number| self.owner.leave(number, out));
        for (number, body) in page.entries.into_iter().take_while(|(n, _)| *n <= through) {
            body.check().map_err(|_refused| "malformed entry")?;
            if !self.owner.entries.contains_key(&number) {
                self.owner.join(number, body, out);
                if let Some(anew) = self.count(out)? {
                    return Ok(Some(anew));
                }
            }
        }
        if through < upto {
            return Ok(self.ask());
        }
        self.reading = None;
        Ok(None)
    }
}
