//! What a peer's control messages make ractor keep here: actors that stand for its own, and their memberships in groups.
//!
//! Invariants: at most [`MAX_ACTORS`] actors, and [`MEMBERSHIPS`] bytes of memberships; what ends or leaves gives its
//! place back, as it does in ractor.

use std::collections::{BTreeMap, HashMap};

use prost::Message;

use super::GateError;
use crate::proto::budget::{ACTOR_COST, MAX_ACTORS, MEMBERSHIP_COST, MEMBERSHIPS};
use crate::proto::capability::Capabilities;

/// What each join or leave costs beside its bytes: every session of this node hears of it.
const CHANGE_COST: u64 = 128;

/// A frame whose one field is a control message (`meta.proto` and `control.proto` in ractor_cluster 0.16).
#[derive(Clone, PartialEq, Message)]
struct Frame {
    #[prost(message, optional, tag = "3")]
    control: Option<Control>,
}

#[derive(Clone, PartialEq, Message)]
struct Control {
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9")]
    kind: Option<Kind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Kind {
    #[prost(message, tag = "1")]
    Spawn(Opaque),
    #[prost(message, tag = "2")]
    Terminate(Terminate),
    #[prost(message, tag = "3")]
    Ping(Opaque),
    #[prost(message, tag = "4")]
    Pong(Opaque),
    #[prost(message, tag = "5")]
    Join(Members),
    #[prost(message, tag = "6")]
    Leave(Members),
    #[prost(message, tag = "7")]
    Enumerate(Opaque),
    #[prost(message, tag = "8")]
    Sessions(Opaque),
    #[prost(message, tag = "9")]
    Ready(Opaque),
}

#[derive(Clone, PartialEq, Message)]
struct Terminate {
    #[prost(uint64, repeated, tag = "1")]
    ids: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct Members {
    #[prost(string, tag = "1")]
    group: String,
    #[prost(message, repeated, tag = "2")]
    actors: Vec<Actor>,
    #[prost(string, tag = "3")]
    scope: String,
}

#[derive(Clone, PartialEq, Message)]
struct Actor {
    #[prost(uint64, tag = "1")]
    pid: u64,
    #[prost(string, optional, tag = "2")]
    name: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Opaque {}

/// The actors of one peer, by their number there; of each its groups, and what each membership costs.
#[derive(Debug)]
pub(super) struct Kept {
    may: Capabilities,
    actors: HashMap<u64, BTreeMap<(String, String), usize>>,
    memberships: usize,
}

impl Kept {
    /// Nothing, of a peer that may do this.
    pub(super) fn new(may: Capabilities) -> Self {
        Self { may, actors: HashMap::new(), memberships: 0 }
    }

    /// A frame that is about to pass; what it costs beside its bytes.
    ///
    /// # Errors
    /// [`GateError`]: it is none that a node sends, or asks for more than a peer may have.
    pub(super) fn take(&mut self, frame: &[u8]) -> Result<u64, GateError> {
        let unexpected = GateError::Unexpected("a control message");
        let frame = Frame::decode(frame).map_err(|_malformed| unexpected.clone())?;
        match frame.control.and_then(|control| control.kind) {
            Some(Kind::Join(members)) => self.join(members)?,
            Some(Kind::Leave(members)) => self.leave(members),
            Some(Kind::Terminate(ended)) => {
                ended.ids.iter().for_each(|pid| self.end(*pid));
                return Ok(0);
            }
            // Of an unknown kind, which ractor skips too.
            Some(Kind::Ready(_)) | None => {}
            Some(
                Kind::Spawn(_)
                | Kind::Ping(_)
                | Kind::Pong(_)
                | Kind::Enumerate(_)
                | Kind::Sessions(_),
            ) => return Err(unexpected),
        }
        Ok(CHANGE_COST)
    }

    /// What ractor keeps, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.actors.len() * ACTOR_COST + self.memberships
    }

    fn join(&mut self, members: Members) -> Result<(), GateError> {
        // A group is named, and behind a space the type of its messages.
        let group = members.group.split(' ').next().unwrap_or_default();
        if !self.may.may_join(group) {
            return Err(GateError::NotAllowed(group.chars().take(64).collect()));
        }
        let key = (members.scope, members.group);
        for Actor { pid, name } in members.actors {
            if self.actors.len() >= MAX_ACTORS && !self.actors.contains_key(&pid) {
                return Err(GateError::TooManyActors);
            }
            let cost = MEMBERSHIP_COST + key.0.len() + key.1.len() + name.map_or(0, |it| it.len());
            let before = self.actors.entry(pid).or_default().insert(key.clone(), cost);
            self.memberships = self.memberships + cost - before.unwrap_or(0);
            if self.memberships > MEMBERSHIPS {
                return Err(GateError::TooManyActors);
            }
        }
        Ok(())
    }

    fn leave(&mut self, members: Members) {
        let key = (members.scope, members.group);
        for Actor { pid, .. } in members.actors {
            let cost = self.actors.get_mut(&pid).and_then(|groups| groups.remove(&key));
            self.memberships -= cost.unwrap_or(0);
        }
    }

    fn end(&mut self, pid: u64) {
        let groups = self.actors.remove(&pid).unwrap_or_default();
        self.memberships -= groups.values().sum::<usize>();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: Kind) -> Vec<u8> {
        Frame { control: Some(Control { kind: Some(kind) }) }.encode_to_vec()
    }

    fn members(group: &str, pids: std::ops::Range<u64>) -> Members {
        let actors = pids.map(|pid| Actor { pid, name: None }).collect();
        Members { group: group.to_owned(), actors, scope: "xpando".to_owned() }
    }

    fn join(kept: &mut Kept, group: &str, pids: std::ops::Range<u64>) -> Result<u64, GateError> {
        kept.take(&frame(Kind::Join(members(group, pids))))
    }

    #[test]
    fn an_edge_joins_no_group_that_its_certificate_does_not_name() {
        let edge = Capabilities::edge(vec!["sensor:*".parse().expect("a pattern")]);
        let mut kept = Kept::new(edge.expect("short"));
        assert_eq!(join(&mut kept, "sensor:1 u32", 0..1), Ok(CHANGE_COST));
        let refused = join(&mut kept, "billing sensor:1", 1..2);
        assert_eq!(refused, Err(GateError::NotAllowed("billing".to_owned())));
        assert!(join(&mut kept, "", 1..2).is_err() && join(&mut kept, " sensor:1", 1..2).is_err());
        assert_eq!(kept.actors.len(), 1);
    }

    #[test]
    fn actors_are_counted_once_however_many_groups_they_join() {
        let (mut kept, most) = (Kept::new(Capabilities::ALL), MAX_ACTORS as u64);
        for group in ["one", "two", "two"] {
            assert_eq!(join(&mut kept, group, 0..most), Ok(CHANGE_COST));
        }
        assert_eq!(join(&mut kept, "one", most..most + 1), Err(GateError::TooManyActors));
    }

    #[test]
    fn one_that_ends_gives_its_place_back_and_one_that_leaves_its_membership() {
        let (mut kept, most) = (Kept::new(Capabilities::ALL), MAX_ACTORS as u64);
        join(&mut kept, "one", 0..most).expect("room");
        kept.take(&frame(Kind::Leave(members("one", 0..2)))).expect("known");
        assert_eq!(join(&mut kept, "one", most..most + 1), Err(GateError::TooManyActors));
        let ended = Terminate { ids: (0..most).collect() };
        assert_eq!(kept.take(&frame(Kind::Terminate(ended))), Ok(0));
        assert_eq!((kept.actors.len(), kept.memberships), (0, 0));
        assert_eq!(join(&mut kept, "two", 0..most), Ok(CHANGE_COST));
    }

    #[test]
    fn memberships_are_bounded_in_bytes() {
        let mut kept = Kept::new(Capabilities::ALL);
        let joined = (0..10_000)
            .take_while(|number| join(&mut kept, &format!("{number:01000}"), 0..1).is_ok());
        assert_eq!(joined.count(), MEMBERSHIPS / (MEMBERSHIP_COST + 1006));
    }

    #[test]
    fn what_no_node_sends_does_not_pass() {
        let opaque = || Opaque {};
        for kind in [
            Kind::Spawn(opaque()),
            Kind::Ping(opaque()),
            Kind::Pong(opaque()),
            Kind::Enumerate(opaque()),
            Kind::Sessions(opaque()),
        ] {
            let refused = Kept::new(Capabilities::ALL).take(&frame(kind));
            assert_eq!(refused, Err(GateError::Unexpected("a control message")));
        }
        assert_eq!(
            Kept::new(Capabilities::ALL).take(&frame(Kind::Ready(opaque()))),
            Ok(CHANGE_COST)
        );
        assert!(Kept::new(Capabilities::ALL).take(&[0x1a, 2, 0xff, 0xff]).is_err());
    }
}
