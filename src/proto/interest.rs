//! Interest: who wants what is said on which topic, here and on the linked peers, and who offers which
//! name.
//!
//! # Protocol
//! A node tells a peer all it wants and offers when their link comes up, and each change after that, on
//! the link itself: in order, and lost only with the link, when all of the peer's interest is forgotten.
//!
//! # Invariants
//! 1. A [`Route`] names each local subscriber that matches its topic once, and each peer that wants it once.
//! 2. A cached route is the route that would be computed now.
//! 3. One peer's interest is at most `MAX_INTERESTS` entries, each a digest; this node's own likewise; the cache holds
//!    at most `ROUTES` bytes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use crate::proto::budget::{MAX_ACTORS, MAX_INTERESTS, ROUTE_COST, ROUTES, WATCHES};
use crate::proto::node::NodeName;
use crate::proto::topic::{Name, Pattern, Topic};

/// What a node wants to hear, or offers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Interest {
    /// This topic.
    Topic(Topic),
    /// Every topic that begins with this text, which is empty or ends with a colon.
    Below(Arc<str>),
    /// It serves this name.
    Name(Name),
}

impl Interest {
    /// Every topic below this text; `None` when it is not empty and does not end with a colon.
    pub fn below(prefix: &str) -> Option<Self> {
        Pattern::below(prefix).as_ref().map(Self::from)
    }
}

impl From<&Pattern> for Interest {
    fn from(pattern: &Pattern) -> Self {
        match pattern {
            Pattern::Topic(topic) => Self::Topic(topic.clone()),
            Pattern::Below(prefix) => Self::Below(prefix.clone()),
        }
    }
}

/// More than a node may have. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {most} {what}")]
#[non_exhaustive]
pub struct TooMany {
    /// Of what.
    pub what: &'static str,
    /// How many a node may have.
    pub most: usize,
}

impl TooMany {
    pub(crate) const INTERESTS: Self =
        Self { what: "topics, patterns and names", most: MAX_INTERESTS };
    pub(crate) const WATCHES: Self = Self { what: "bytes of watches", most: WATCHES };
    pub(crate) const ACTORS: Self = Self { what: "actors in groups", most: MAX_ACTORS };
}

/// Where a message on a topic goes.
#[derive(Debug)]
pub struct Route<S, P> {
    /// Local subscribers.
    pub local: Vec<(u64, S)>,
    /// Peers, by name.
    pub peers: Vec<P>,
}

#[derive(Debug)]
struct Peer<P> {
    outlet: P,
    wants: HashSet<u128>,
}

/// What stands for an interest of a peer: of every length the same memory. Nobody outside knows the keys, so nobody can
/// make two interests collide.
#[derive(Debug, Default)]
struct Digests([RandomState; 2]);

impl Digests {
    fn of(&self, interest: &Interest) -> u128 {
        let [high, low] = self.0.each_ref().map(|key| u128::from(key.hash_one(interest)));
        high << 64 | low
    }
}

/// The machine. `S` stands for a local subscriber, `P` for a peer.
#[derive(Debug)]
pub struct Interests<S, P> {
    local: BTreeMap<Interest, Vec<(u64, S)>>,
    names: BTreeSet<Name>,
    peers: BTreeMap<NodeName, Peer<P>>,
    digests: Digests,
    cache: Cache<S, P>,
}

impl<S, P> Default for Interests<S, P> {
    fn default() -> Self {
        let (local, names, peers) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        Self { local, names, peers, digests: Digests::default(), cache: Cache::default() }
    }
}

impl<S: Clone, P: Clone> Interests<S, P> {
    /// A local subscriber, numbered by the caller. True when this is news for the peers.
    ///
    /// # Errors
    /// [`TooMany`].
    pub fn subscribe(&mut self, pattern: &Pattern, number: u64, who: S) -> Result<bool, TooMany> {
        let interest = Interest::from(pattern);
        let first = !self.local.contains_key(&interest);
        if first && self.local.len() + self.names.len() >= MAX_INTERESTS {
            return Err(TooMany::INTERESTS);
        }
        self.forget(&interest);
        self.local.entry(interest).or_default().push((number, who));
        Ok(first)
    }

    /// The end of a subscription. True when this is news for the peers.
    pub fn unsubscribe(&mut self, pattern: &Pattern, number: u64) -> bool {
        let interest = Interest::from(pattern);
        self.forget(&interest);
        let Some(subscribers) = self.local.get_mut(&interest) else { return false };
        subscribers.retain(|(other, _)| *other != number);
        let last = subscribers.is_empty();
        if last {
            self.local.remove(&interest);
        }
        last
    }

    /// This node serves a name.
    ///
    /// # Errors
    /// [`TooMany`].
    pub fn offer(&mut self, name: &Name) -> Result<(), TooMany> {
        if self.local.len() + self.names.len() >= MAX_INTERESTS {
            return Err(TooMany::INTERESTS);
        }
        self.names.insert(name.clone());
        Ok(())
    }

    /// It does not any more.
    pub fn withdraw(&mut self, name: &Name) {
        self.names.remove(name);
    }

    /// Everything this node wants and offers.
    pub fn own(&self) -> impl Iterator<Item = Interest> + '_ {
        self.local.keys().cloned().chain(self.names.iter().cloned().map(Interest::Name))
    }

    /// Every local subscriber.
    pub fn subscribers(&self) -> impl Iterator<Item = &S> + '_ {
        self.local.values().flatten().map(|(_, who)| who)
    }

    /// A link to a peer: nothing is known of what it wants. The peer of an earlier link is replaced.
    pub fn up(&mut self, peer: NodeName, outlet: P) -> Option<P> {
        self.cache.clear();
        let new = Peer { outlet, wants: HashSet::new() };
        self.peers.insert(peer, new).map(|old| old.outlet)
    }

    /// The link is gone.
    pub fn down(&mut self, peer: &NodeName) {
        self.cache.clear();
        self.peers.remove(peer);
    }

    /// A linked peer.
    pub fn peer(&self, peer: &NodeName) -> Option<&P> {
        self.peers.get(peer).map(|peer| &peer.outlet)
    }

    /// All linked peers.
    pub fn peers(&self) -> impl Iterator<Item = &P> + '_ {
        self.peers.values().map(|peer| &peer.outlet)
    }

    /// What a linked peer wants or offers, from now on or no more.
    ///
    /// # Errors
    /// [`TooMany`]; the entry is not taken.
    pub fn wants(
        &mut self,
        peer: &NodeName,
        interest: &Interest,
        there: bool,
    ) -> Result<(), TooMany> {
        self.forget(interest);
        let Some(peer) = self.peers.get_mut(peer) else { return Ok(()) };
        let digest = self.digests.of(interest);
        if !there {
            peer.wants.remove(&digest);
        } else if peer.wants.len() < MAX_INTERESTS {
            peer.wants.insert(digest);
        } else {
            return Err(TooMany::INTERESTS);
        }
        Ok(())
    }

    /// How much a linked peer wants and offers.
    pub fn wanted(&self, peer: &NodeName) -> usize {
        self.peers.get(peer).map_or(0, |peer| peer.wants.len())
    }

    /// The nodes that offer a name, in order, this one not among them.
    pub fn offered_by(&self, name: &Name) -> Vec<(NodeName, P)> {
        let wanted = self.digests.of(&Interest::Name(name.clone()));
        let offers = self.peers.iter().filter(|(_, peer)| peer.wants.contains(&wanted));
        offers.map(|(node, peer)| (node.clone(), peer.outlet.clone())).collect()
    }

    /// The route of a topic, if it is ready.
    pub fn ready(&self, topic: &Topic) -> Option<Arc<Route<S, P>>> {
        self.cache.routes.get(topic).cloned()
    }

    /// The route of a topic.
    pub fn route(&mut self, topic: &Topic) -> Arc<Route<S, P>> {
        if let Some(route) = self.ready(topic) {
            return route;
        }
        let wanted: Vec<Interest> = matching(topic).collect();
        let local = wanted.iter().filter_map(|interest| self.local.get(interest)).flatten();
        let digests: Vec<u128> = wanted.iter().map(|interest| self.digests.of(interest)).collect();
        let wants = |peer: &&Peer<P>| digests.iter().any(|digest| peer.wants.contains(digest));
        let peers = self.peers.values().filter(wants).map(|peer| peer.outlet.clone()).collect();
        let route = Arc::new(Route { local: local.cloned().collect(), peers });
        self.cache.insert(topic.clone(), route.clone());
        route
    }

    /// Drops the routes that a change of this interest may change.
    fn forget(&mut self, interest: &Interest) {
        match interest {
            Interest::Topic(topic) => self.cache.remove(topic),
            Interest::Below(_) => self.cache.clear(),
            Interest::Name(_) => {}
        }
    }
}

/// Routes that are ready, and how many bytes they take. Peers choose the topics.
#[derive(Debug)]
struct Cache<S, P> {
    routes: HashMap<Topic, Arc<Route<S, P>>>,
    bytes: usize,
}

impl<S, P> Default for Cache<S, P> {
    fn default() -> Self {
        Self { routes: HashMap::new(), bytes: 0 }
    }
}

impl<S, P> Cache<S, P> {
    fn cost(topic: &Topic) -> usize {
        ROUTE_COST + topic.as_str().len()
    }

    /// A route that is not there yet.
    fn insert(&mut self, topic: Topic, route: Arc<Route<S, P>>) {
        let cost = Self::cost(&topic);
        if self.bytes + cost > ROUTES {
            self.clear();
        }
        self.bytes += cost;
        self.routes.insert(topic, route);
    }

    fn remove(&mut self, topic: &Topic) {
        if self.routes.remove(topic).is_some() {
            self.bytes -= Self::cost(topic);
        }
    }

    fn clear(&mut self) {
        self.routes.clear();
        self.bytes = 0;
    }
}

/// Every interest that a message on this topic satisfies.
fn matching(topic: &Topic) -> impl Iterator<Item = Interest> + '_ {
    let text = topic.as_str();
    let colons = text.match_indices(':').filter_map(|(at, _)| text.get(..=at));
    let below = std::iter::once("").chain(colons).map(|prefix| Interest::Below(prefix.into()));
    std::iter::once(Interest::Topic(topic.clone())).chain(below)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type World = Interests<&'static str, &'static str>;

    fn pattern(text: &str) -> Pattern {
        text.parse().expect("valid")
    }

    fn topic(text: &str) -> Topic {
        Topic::try_from(text).expect("valid")
    }

    fn node(text: &str) -> NodeName {
        text.parse().expect("valid")
    }

    fn to(world: &mut World, text: &str) -> (Vec<&'static str>, Vec<&'static str>) {
        let route = world.route(&topic(text));
        (route.local.iter().map(|(_, who)| *who).collect(), route.peers.clone())
    }

    #[test]
    fn topics_and_patterns_meet() {
        let mut world = World::default();
        assert_eq!(world.subscribe(&pattern("room:1"), 1, "exact"), Ok(true));
        assert_eq!(world.subscribe(&pattern("room:*"), 2, "rooms"), Ok(true));
        assert_eq!(world.subscribe(&pattern("*"), 3, "all"), Ok(true));
        assert_eq!(world.subscribe(&pattern("room:1"), 4, "again"), Ok(false));
        assert_eq!(to(&mut world, "room:1").0, ["exact", "again", "all", "rooms"]);
        assert_eq!(to(&mut world, "room:10").0, ["all", "rooms"]);
        assert_eq!(to(&mut world, "room").0, ["all"]);
        assert!(!world.unsubscribe(&pattern("room:1"), 1), "another is left");
        assert!(world.unsubscribe(&pattern("room:1"), 4));
        assert_eq!(to(&mut world, "room:1").0, ["all", "rooms"]);
        assert_eq!(world.own().count(), 2);
    }

    #[test]
    fn a_peer_gets_only_what_it_wants_and_nothing_after_its_link() {
        let mut world = World::default();
        world.up(node("b@h"), "b");
        world.up(node("c@h"), "c");
        assert_eq!(to(&mut world, "room:1").1, [""; 0]);
        let rooms = Interest::below("room:").expect("valid");
        world.wants(&node("b@h"), &rooms, true).expect("few");
        world.wants(&node("b@h"), &Interest::Topic(topic("room:1")), true).expect("few");
        world.wants(&node("c@h"), &Interest::Topic(topic("room:1")), true).expect("few");
        world.wants(&node("d@h"), &rooms, true).expect("nobody");
        assert_eq!(to(&mut world, "room:1").1, ["b", "c"], "once each");
        assert_eq!(to(&mut world, "room:2").1, ["b"]);
        world.wants(&node("b@h"), &rooms, false).expect("few");
        assert_eq!(to(&mut world, "room:2").1, [""; 0]);
        assert_eq!(world.up(node("b@h"), "b again"), Some("b"));
        assert_eq!(to(&mut world, "room:1").1, ["c"]);
        world.down(&node("c@h"));
        assert_eq!(to(&mut world, "room:1").1, [""; 0]);
    }

    #[test]
    fn names_are_found_where_they_are_offered() {
        let mut world = World::default();
        let work: Name = "work".parse().expect("valid");
        world.offer(&work).expect("few");
        for (name, offers) in [("c@h", true), ("b@h", true), ("d@h", false)] {
            world.up(node(name), name);
            world.wants(&node(name), &Interest::Name(work.clone()), offers).expect("few");
        }
        let nodes: Vec<_> = world.offered_by(&work).into_iter().map(|(_, p)| p).collect();
        assert_eq!(nodes, ["b@h", "c@h"]);
        assert_eq!(world.own().collect::<Vec<_>>(), [Interest::Name(work.clone())]);
        world.withdraw(&work);
        assert_eq!(world.own().count(), 0);
    }

    #[test]
    fn routes_take_no_more_bytes_than_they_may() {
        let mut world = World::default();
        let mut most = 0;
        for number in 0..200_000 {
            world.route(&topic(&format!("{number:0200}")));
            most = most.max(world.cache.routes.len());
        }
        assert_eq!(most, ROUTES / (ROUTE_COST + 200));
        for number in 0..200_000 {
            world.forget(&Interest::Topic(topic(&format!("{number:0200}"))));
        }
        assert_eq!((world.cache.bytes, world.cache.routes.len()), (0, 0));
    }

    #[test]
    fn only_whole_words_can_be_a_prefix() {
        assert_eq!(Interest::below("room"), None);
        assert!(Interest::below("room:").is_some() && Interest::below("").is_some());
        assert_eq!(Interest::below(&format!("{}:", "x".repeat(255))), None);
    }

    proptest! {
        #[test]
        fn the_cache_never_shows(steps in proptest::collection::vec((0..5_u8, 0..6_usize, 0..3_u64), 0..80)) {
            let patterns = ["a", "a:*", "a:b", "a:b:*", "*", "c"].map(pattern);
            let topics = ["a", "a:b", "a:b:c", "c", "a:c"];
            let peers = ["x@h", "y@h", "z@h"];
            let (mut cached, mut fresh) = (World::default(), World::default());
            for (step, which, number) in steps {
                let (pattern, peer) = (&patterns[which], peers[number as usize]);
                for world in [&mut cached, &mut fresh] {
                    match step {
                        0 => drop(world.subscribe(pattern, number, peer)),
                        1 => drop(world.unsubscribe(pattern, number)),
                        2 => drop(world.up(node(peer), peer)),
                        3 => world.down(&node(peer)),
                        _ => drop(world.wants(&node(peer), &Interest::from(pattern), which % 2 == 0)),
                    }
                }
                for text in topics {
                    fresh.cache.clear();
                    prop_assert_eq!(to(&mut cached, text), to(&mut fresh, text));
                }
            }
        }
    }
}
