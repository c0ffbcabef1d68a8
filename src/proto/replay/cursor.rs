//! Cursors: where somebody stands in what the publishers of a topic say.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::proto::node::NodeName;

/// Publishers of a cursor, at most.
pub const NODES: usize = 64;
/// Longest text of a cursor, in bytes.
pub const TEXT: usize = 6144;
/// What a publisher needs in that text beside its name, at most.
pub(super) const STAMP: usize = 48;

/// Where in its publisher's sequence a message stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Position {
    /// Which numbering of the publisher; they have no order.
    pub epoch: u32,
    /// From 1.
    pub n: u64,
    /// Drawn at random for each message: only who was sent a cursor with it can name it.
    pub tag: u64,
}

/// What somebody has seen of a topic: everything up to these stamps. As text `a@h/5f3a:12:9c,b@h/1:7:e0`: in
/// order of names, epochs and tags in hexadecimal, numbers in decimal; empty is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor(pub(super) BTreeMap<NodeName, Position>);

impl Cursor {
    /// Whether the cursor has this message behind it.
    pub fn has(&self, from: &NodeName, stamp: Position) -> bool {
        self.0.get(from).is_some_and(|seen| seen.epoch == stamp.epoch && seen.n >= stamp.n)
    }

    /// Whether it has seen nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it has seen all that the other one has.
    pub fn covers(&self, other: &Self) -> bool {
        other.0.iter().all(|(name, stamp)| self.has(name, *stamp))
    }

    /// The publishers that it names, and how far it has seen each.
    pub fn iter(&self) -> impl Iterator<Item = (&NodeName, Position)> {
        self.0.iter().map(|(name, stamp)| (name, *stamp))
    }

    /// Whether a message is the next one of its publisher.
    pub(super) fn continues(&self, from: &NodeName, stamp: Position) -> bool {
        let next =
            |seen: &Position| seen.epoch == stamp.epoch && seen.n.checked_add(1) == Some(stamp.n);
        self.0.get(from).map_or(stamp.n == 1, next)
    }

    /// Has seen a message, too, if it is the next one of its publisher; whether it is.
    pub fn advance(&mut self, from: &NodeName, stamp: Position) -> bool {
        let next = self.continues(from, stamp);
        if next {
            self.0.insert(from.clone(), stamp);
        }
        next
    }

    /// Likewise, or the first of another epoch.
    pub fn follow(&mut self, from: &NodeName, stamp: Position) -> bool {
        let begins = |seen: &Position| seen.epoch != stamp.epoch && stamp.n == 1;
        if self.0.get(from).is_some_and(begins) {
            self.0.insert(from.clone(), stamp);
            return true;
        }
        self.advance(from, stamp)
    }

    pub(super) fn fits(&self, one_more: &NodeName) -> bool {
        let names = self.0.keys().chain([one_more]);
        self.0.len() < NODES && names.map(|name| name.as_str().len() + STAMP).sum::<usize>() <= TEXT
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().enumerate().try_for_each(|(at, (name, stamp))| {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{name}/{:x}:{}:{:x}", stamp.epoch, stamp.n, stamp.tag)
        })
    }
}

/// The text is no cursor. Nothing changed; anyone who supplied it has to start without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no cursor")]
pub struct NoCursor;

impl FromStr for Cursor {
    type Err = NoCursor;

    fn from_str(text: &str) -> Result<Self, NoCursor> {
        if text.len() > TEXT {
            return Err(NoCursor);
        }
        let parts = text.split(',').filter(|_| !text.is_empty());
        let part = |part: &str| {
            let (name, stamp) = part.split_once('/')?;
            let (epoch, stamp) = stamp.split_once(':')?;
            let (n, tag) = stamp.split_once(':')?;
            let (epoch, tag) =
                (u32::from_str_radix(epoch, 16).ok()?, u64::from_str_radix(tag, 16).ok()?);
            let stamp = Position { epoch, n: n.parse().ok()?, tag };
            Some((name.parse().ok()?, stamp)).filter(|_| stamp.n > 0)
        };
        let seen: BTreeMap<_, _> = parts.map(part).collect::<Option<_>>().ok_or(NoCursor)?;
        let cursor = Self(seen);
        // One spelling: in order, each name once, no leading zeros.
        if cursor.0.len() <= NODES && cursor.to_string() == text {
            Ok(cursor)
        } else {
            Err(NoCursor)
        }
    }
}
