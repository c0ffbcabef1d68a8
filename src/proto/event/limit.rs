//! How many events about others are taken down: a peer that causes them without end does not wash the trail away.
//!
//! Events of one kind about one node have a share of the trail, and all of one kind have one too, since a peer can name
//! any number of nodes. What exceeds either is counted, and told as one event once there is room again, or soon.
//!
//! # Invariants
//! 1. Each event is taken down, or counted in one later [`Event::EventsOmitted`].
//! 2. Of each kind at most [`KIND`] allows, whatever names it is about. Memory: [`SUBJECTS`] nodes and kinds.
//! 3. Events about no node are always taken down: peers do not cause them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Event;
use crate::proto::node::NodeName;
use crate::proto::share::{Rate, Share};

/// Events of one kind about one node: one a second, and 64 at once after a time of quiet.
const SUBJECT: Rate = Rate { second: 1.0, burst: 64.0 };
/// Events of one kind about all nodes.
const KIND: Rate = Rate { second: 16.0, burst: 4096.0 };
/// Nodes and kinds that are told apart.
const SUBJECTS: usize = 8192;
/// Those that are as good as new are dropped this often at most.
const SWEEP: Duration = Duration::from_secs(1);
/// What was left out is told within so long.
const SOON: Duration = Duration::from_secs(10);

/// A kind, and the node that its events are about; `None`: all of the kind.
type Subject = (&'static str, Option<NodeName>);

struct Room {
    share: Share,
    omitted: u64,
    /// Since when events are left out.
    since: Instant,
}

/// The machine.
#[derive(Default)]
pub struct Limiter {
    rooms: BTreeMap<Subject, Room>,
    /// When those that are as good as new were last dropped.
    swept: Option<Instant>,
}

impl Limiter {
    /// Something happened: what is to be taken down of it and of what was left out before, in order.
    pub fn take(&mut self, event: &Event, now: Instant) -> Vec<Event> {
        let label = Event::known_label(event.label());
        let (Some(label), Some(about)) = (label, event.about()) else {
            return vec![event.clone()];
        };
        let subject = (label, Some(about.clone()));
        if self.rooms.len() >= SUBJECTS && self.swept.is_none_or(|at| at + SWEEP <= now) {
            self.rooms.retain(|_, room| room.omitted > 0 || !room.share.is_whole(now));
            self.swept = Some(now);
        }
        let own = self.rooms.len() < SUBJECTS || self.rooms.contains_key(&subject);
        let mut out = Vec::new();
        for (subject, rate) in
            own.then_some((subject, SUBJECT)).into_iter().chain([((label, None), KIND)])
        {
            let new = || Room { share: Share::new(rate, now), omitted: 0, since: now };
            let room = self.rooms.entry(subject.clone()).or_insert_with(new);
            if room.share.ready(now).is_some() {
                if room.omitted == 0 {
                    room.since = now;
                }
                room.omitted += 1;
                return out;
            }
            room.share.spend(1, now);
            out.extend(room.omission(&subject));
        }
        out.push(event.clone());
        out
    }

    /// What was left out for long enough to be told.
    pub fn due(&mut self, now: Instant) -> Vec<Event> {
        let due = self.rooms.iter_mut().filter(|(_, room)| room.since + SOON <= now);
        due.filter_map(|(subject, room)| room.omission(subject)).collect()
    }

    /// When [`Self::due`] has something, if nothing happens before.
    pub fn deadline(&self) -> Option<Instant> {
        self.rooms.values().filter(|room| room.omitted > 0).map(|room| room.since + SOON).min()
    }
}

impl Room {
    fn omission(&mut self, (kind, about): &Subject) -> Option<Event> {
        let count = std::mem::take(&mut self.omitted);
        let kind = (*kind).to_owned();
        (count > 0).then(|| Event::EventsOmitted { count, kind, peer: about.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::tests::start;

    fn connecting(peer: &str) -> Event {
        Event::PeerConnecting { peer: peer.parse().expect("valid") }
    }

    fn omitted(count: u64, peer: Option<&str>) -> Event {
        let peer = peer.map(|peer| peer.parse().expect("valid"));
        Event::EventsOmitted { count, kind: "peer_connecting".into(), peer }
    }

    #[test]
    fn what_happens_too_often_is_counted_and_told_once() {
        let (mut limiter, now) = (Limiter::default(), start());
        let taken = (0..1000).filter(|_| !limiter.take(&connecting("b@h"), now).is_empty());
        assert_eq!(taken.count(), 65, "a share is overdrawn by one");
        assert_eq!(limiter.take(&connecting("c@h"), now), [connecting("c@h")], "of another node");
        assert_eq!(limiter.deadline(), Some(now + SOON));
        assert_eq!(limiter.due(now + SOON - Duration::from_millis(1)), []);
        assert_eq!(limiter.due(now + SOON), [omitted(935, Some("b@h"))]);
        assert_eq!((limiter.due(now + SOON), limiter.deadline()), (vec![], None));
    }

    #[test]
    fn once_there_is_room_again_it_is_told_first() {
        let (mut limiter, now) = (Limiter::default(), start());
        (0..70).for_each(|_| drop(limiter.take(&connecting("b@h"), now)));
        let later = now + Duration::from_secs(5);
        let told = [omitted(5, Some("b@h")), connecting("b@h")];
        assert_eq!(limiter.take(&connecting("b@h"), later), told);
    }

    #[test]
    fn names_without_end_are_bounded_by_their_kind() {
        let (mut limiter, now) = (Limiter::default(), start());
        let names = (0..100_000).map(|number| connecting(&format!("x{number}@h")));
        let taken = names.filter(|event| !limiter.take(event, now).is_empty()).count();
        assert_eq!(taken, KIND.burst as usize + 1);
        assert!(limiter.rooms.len() <= SUBJECTS + 1, "{}", limiter.rooms.len());
        let told = limiter.due(now + SOON);
        assert_eq!(told, [omitted(100_000 - taken as u64, None)]);
    }

    #[test]
    fn what_is_about_no_node_is_always_taken_down() {
        let (mut limiter, event) = (Limiter::default(), Event::Paused { millis: 1 });
        assert!((0..10_000).all(|_| limiter.take(&event, start()).len() == 1));
    }
}
