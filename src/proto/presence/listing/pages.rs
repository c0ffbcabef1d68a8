//! The entries of a topic in pages of at most [`PART`] bytes, each made once for all who read it.
//!
//! # Invariants
//! 1. A page has the entries from its beginning up to that of the next page; the first one begins before all.
//! 2. A page that has more than [`PART`] bytes holds one entry; one cut is between two keys where that can be.
//! 3. What was made of a page is what it holds now.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

use bytes::Bytes;

use super::PART;
use crate::proto::channel::{Dialect, Json, tail};
use crate::proto::presence::words::{Entry, Ref};

/// A place in the order of entries: key, and reference.
pub(super) type Place = (Box<str>, Ref);

const FIRST: Ref = Ref { tag: 0, number: 0 };

#[derive(Debug, Default)]
struct Page {
    entries: BTreeSet<Arc<Entry>>,
    bytes: usize,
    /// The whole page as a first part or as a later one, in a dialect.
    made: Vec<((bool, Dialect), Bytes)>,
}

/// The pages.
#[derive(Debug)]
pub(super) struct Pages(BTreeMap<Place, Page>);

impl Default for Pages {
    fn default() -> Self {
        Self(BTreeMap::from([((Box::default(), FIRST), Page::default())]))
    }
}

/// What an entry needs as text, at most, but for what is escaped in its key.
pub(super) fn cost(entry: &Entry) -> usize {
    let escapes = entry.key.bytes().filter(|byte| *byte < b' ' || matches!(byte, b'"' | b'\\'));
    entry.meta.len() + entry.key.len() + 5 * escapes.count() + 112
}

/// Whether an entry is before a place.
pub(super) fn is_before(entry: &Entry, place: &Place) -> bool {
    (entry.key.as_ref(), entry.reference) < (place.0.as_ref(), place.1)
}

/// Writes entries, which are in order, as the members of an object: each key with its metas.
pub(super) fn write<'a>(out: &mut Vec<u8>, entries: impl IntoIterator<Item = &'a Entry>) {
    let mut key: Option<&str> = None;
    for entry in entries {
        if key == Some(&entry.key) {
            out.push(b',');
        } else {
            out.extend_from_slice(if key.is_some() { b"]}," } else { b"" });
            // Writing a string to memory does not fail.
            serde_json::to_writer(&mut *out, &entry.key).unwrap_or(());
            out.extend_from_slice(b":{\"metas\":[");
            key = Some(&entry.key);
        }
        out.extend_from_slice(entry.shown().as_bytes());
    }
    out.extend_from_slice(if key.is_some() { b"]}" } else { b"" });
}

fn made<'a>(
    entries: impl IntoIterator<Item = &'a Arc<Entry>>,
    first: bool,
    dialect: Dialect,
) -> Bytes {
    let mut text = Vec::with_capacity(PART + PART / 4);
    text.extend_from_slice(if first { b"{" } else { b"{\"joins\":{" });
    write(&mut text, entries.into_iter().map(Arc::as_ref));
    text.extend_from_slice(if first { b"}" } else { b"},\"leaves\":{}}" });
    tail(dialect, &Json::assembled(text))
}

impl Pages {
    fn start_of(&self, place: &Place) -> Place {
        let at = self.0.range(..=place).next_back();
        at.map_or_else(|| (Box::default(), FIRST), |(start, _)| start.clone())
    }

    pub(super) fn insert(&mut self, entry: Arc<Entry>) {
        let start = self.start_of(&(entry.key.clone(), entry.reference));
        let Some(page) = self.0.get_mut(&start) else { return };
        page.made.clear();
        let cost = cost(&entry);
        if page.entries.insert(entry) {
            page.bytes += cost;
        }
        if page.bytes > PART {
            self.split(&start);
        }
    }

    pub(super) fn remove(&mut self, entry: &Arc<Entry>) {
        let start = self.start_of(&(entry.key.clone(), entry.reference));
        let Some(page) = self.0.get_mut(&start) else { return };
        page.made.clear();
        // Of an entry that replaced another, the members may know another predecessor.
        let same = page.entries.range(bound(entry)..).next();
        let same = same.filter(|it| it.reference == entry.reference && it.key == entry.key);
        if let Some(same) = same.cloned() {
            page.entries.remove(&same);
            page.bytes -= cost(&same);
        }
        if page.bytes < PART / 4 {
            self.merge(&start);
        }
    }

    /// Cuts a page in two, between two keys if it has several.
    fn split(&mut self, start: &Place) {
        let Some(page) = self.0.get_mut(start) else { return };
        let (mut bytes, mut cuts, mut before) = (0_usize, Vec::new(), None::<&Arc<Entry>>);
        for entry in &page.entries {
            if let Some(before) = before {
                let between = before.key != entry.key;
                let place = (entry.key.clone(), if between { FIRST } else { entry.reference });
                cuts.push((!between, bytes.abs_diff(page.bytes / 2), place, bytes));
            }
            bytes += cost(entry);
            before = Some(entry);
        }
        let Some((.., place, bytes)) = cuts.into_iter().min() else { return };
        let all = std::mem::take(&mut page.entries).into_iter();
        let (before, entries) = all.partition(|entry| is_before(entry, &place));
        page.entries = before;
        let rest = Page { entries, bytes: page.bytes - bytes, made: Vec::new() };
        page.bytes = bytes;
        let (this, that) = (page.bytes, rest.bytes);
        self.0.insert(place.clone(), rest);
        // A cut between keys may leave one part long.
        for (start, bytes) in [(start, this), (&place, that)] {
            if bytes > PART {
                self.split(start);
            }
        }
    }

    /// Takes the page after this one into it, or this one into that before, if both are short.
    fn merge(&mut self, start: &Place) {
        let after = self.0.range((Excluded(start), Unbounded)).next().map(|(place, _)| place);
        let before = self.0.range(..start).next_back().map(|(place, _)| place);
        let pairs = [(Some(start), after), (before, Some(start))];
        let pairs: Vec<_> =
            pairs.into_iter().filter_map(|(a, b)| Some((a?.clone(), b?.clone()))).collect();
        for (first, second) in pairs {
            let bytes = |place| self.0.get(place).map_or(0, |page: &Page| page.bytes);
            if bytes(&first) + bytes(&second) <= PART / 2
                && let Some(rest) = self.0.remove(&second)
                && let Some(page) = self.0.get_mut(&first)
            {
                page.made.clear();
                page.bytes += rest.bytes;
                page.entries.extend(rest.entries);
                return;
            }
        }
    }

    /// The part at a place, none where it would be empty; and where the next one begins.
    pub(super) fn part(
        &mut self,
        from: Option<&Place>,
        dialect: Dialect,
    ) -> (Option<Bytes>, Option<Place>) {
        let first = from.is_none();
        let from = from.cloned().unwrap_or_else(|| (Box::default(), FIRST));
        let start = self.start_of(&from);
        let next =
            self.0.range((Excluded(&from), Unbounded)).next().map(|(place, _)| place.clone());
        let Some(page) = self.0.get_mut(&start) else { return (None, next) };
        if start != from {
            let rest: Vec<_> =
                page.entries.iter().filter(|entry| !is_before(entry, &from)).collect();
            let empty = rest.is_empty();
            return ((!empty).then(|| made(rest, first, dialect)), next);
        }
        if page.entries.is_empty() && !first {
            return (None, next);
        }
        let shape = (first, dialect);
        let part = page.made.iter().find(|(made, _)| *made == shape).map(|(_, part)| part.clone());
        let part = part.unwrap_or_else(|| {
            let part = made(&page.entries, first, dialect);
            page.made.push((shape, part.clone()));
            part
        });
        (Some(part), next)
    }

    /// Nobody reads: short lists are made anew when somebody comes.
    pub(super) fn rest(&mut self) {
        if self.0.len() == 1 {
            self.0.values_mut().for_each(|page| page.made = Vec::new());
        }
    }

    #[cfg(test)]
    pub(super) fn check(&self) {
        let mut starts = self.0.keys().skip(1).cloned().map(Some).collect::<Vec<_>>();
        starts.push(None);
        for ((start, page), end) in self.0.iter().zip(starts) {
            let within = |entry: &Arc<Entry>| {
                !is_before(entry, start) && end.as_ref().is_none_or(|end| is_before(entry, end))
            };
            assert!(page.entries.iter().all(within), "an entry is in its page");
            assert_eq!(page.bytes, page.entries.iter().map(|it| cost(it)).sum::<usize>());
            assert!(page.bytes <= PART || page.entries.len() == 1, "{} bytes", page.bytes);
            let anew = |(first, dialect)| made(&page.entries, first, dialect);
            assert!(page.made.iter().all(|(shape, part)| anew(*shape) == *part));
        }
    }
}

/// The least entry of this key and reference.
fn bound(entry: &Entry) -> Arc<Entry> {
    Arc::new(Entry { previous: None, meta: Box::default(), ..entry.clone() })
}
