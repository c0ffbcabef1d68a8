//! Who has a place at the gateway: how many there are, who may take one, and who gives one up for another.
//!
//! # Protocol
//! A connection opens a place as *provisional*, and keeps it when it is *entitled*: a token of its was accepted, or a join.
//! The same rules hold for sessions of long polling, which have places of their own. A place belongs to a group: the
//! address of its client, for IPv6 the network of 64 bits, which one host may use as it likes. A connection of a trusted
//! proxy belongs to no address until [`Admission::attribute`] names its client's.
//!
//! # Invariants
//! 1. At most [`Limits::places`] are taken, at most [`Limits::per_address`] by one address, and of those at most
//!    [`Limits::provisional_per_address`] are provisional.
//! 2. An entitled place is never given to another.
//! 3. Where an address is at its limit, it gives up its own oldest provisional place. Where all places are taken, the
//!    address with the most provisional places does. Only where there is none is a newcomer refused.
//! 4. Memory: an entry for each place that is taken, and for each address that has one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

/// How long a place may be provisional; anyone who holds it sees to that.
pub const PROVISIONAL: Duration = Duration::from_secs(10);

/// The part of the clients' descriptors that those have who gave up their place and did not close their socket yet.
const LEAVING: usize = 8;

/// A bit mask: the part of an IPv6 address that names a network.
const NETWORK: u128 = !0 << 64;

/// How the file descriptors of a process are shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// Links' connections that have not shown a certificate yet.
    pub half_open: usize,
    /// Clients of the gateway.
    pub clients: usize,
    /// Connections of clients beyond those, which are answered and closed.
    pub beyond: usize,
}

impl Descriptors {
    /// The shares of a process that may open so many; `None` is no limit. What no share has is for the store, listeners,
    /// the admin socket and the log, and for links with peers.
    pub fn shares(limit: Option<usize>) -> Self {
        let limit = limit.unwrap_or(usize::MAX);
        let own = (limit / 2).min(64);
        let peers = (limit / 4).min(1024);
        let half_open = (limit / 8).clamp(1, 256);
        let beyond = (limit / 16).clamp(1, 64);
        let clients = limit.saturating_sub(own + peers + half_open + beyond).max(1);
        Self { half_open, clients, beyond }
    }
}

/// How many places there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// In all.
    pub places: usize,
    /// Of one address.
    pub per_address: usize,
    /// Of one address, provisional.
    pub provisional_per_address: usize,
}

impl Limits {
    /// Of so many connections of clients, some of which are those of clients that gave up their place.
    pub fn among(clients: usize) -> Self {
        Self::of((clients - clients / LEAVING).max(1))
    }

    /// Generous to an address whose clients are entitled, for many may share it: three quarters of all places. Strict
    /// to one whose clients are not: half of them, and at most 1,024.
    pub fn of(places: usize) -> Self {
        let per_address = (places - places / 4).max(1);
        Self { places, per_address, provisional_per_address: (places / 2).clamp(1, 1024) }
    }
}

/// A place. A later one has a larger number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PlaceId(u64);

/// Why there is no place. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPlace {
    /// All are taken by clients that are entitled.
    #[error("all places are taken")]
    Full,
    /// The address has as many as it may, all entitled.
    #[error("the address has as many places as it may")]
    Address,
}

/// Whom places are counted for: the address of the client, or the trusted proxies.
type Group = Option<IpAddr>;

#[derive(Debug)]
struct Place {
    group: Group,
    entitled: bool,
}

#[derive(Debug, Default)]
struct Tally {
    entitled: usize,
    provisional: BTreeSet<PlaceId>,
}

/// The machine.
#[derive(Debug)]
pub struct Admission {
    limits: Limits,
    opened: u64,
    places: BTreeMap<PlaceId, Place>,
    groups: BTreeMap<Group, Tally>,
    /// Groups by how many provisional places they have.
    crowds: BTreeSet<(usize, Group)>,
}

impl Admission {
    /// Nothing is taken yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            opened: 0,
            places: BTreeMap::new(),
            groups: BTreeMap::new(),
            crowds: BTreeSet::new(),
        }
    }

    /// Opens a provisional place for a client of this address, `None` for one that a trusted proxy speaks for. Places in
    /// `evicted` are given up for it, and closed already.
    ///
    /// # Errors
    /// [`NoPlace`].
    pub fn open(
        &mut self,
        from: Option<IpAddr>,
        evicted: &mut Vec<PlaceId>,
    ) -> Result<PlaceId, NoPlace> {
        let group = from.map(network);
        self.make_room(group, evicted)?;
        self.opened += 1;
        let id = PlaceId(self.opened);
        self.put(id, Place { group, entitled: false });
        Ok(id)
    }

    /// A trusted proxy has named its client's address: the place is that client's, and provisional.
    ///
    /// # Errors
    /// [`NoPlace::Address`].
    pub fn attribute(
        &mut self,
        id: PlaceId,
        from: IpAddr,
        evicted: &mut Vec<PlaceId>,
    ) -> Result<(), NoPlace> {
        let Some(place) = self.take(id) else { return Ok(()) };
        let group = Some(network(from));
        let room = self.make_room(group, evicted);
        let group = if room.is_ok() { group } else { place.group };
        let entitled = room.is_err() && place.entitled;
        self.put(id, Place { group, entitled });
        room
    }

    /// The client has a right to its place from now on.
    pub fn entitle(&mut self, id: PlaceId) {
        if let Some(place) = self.take(id) {
            self.put(id, Place { entitled: true, ..place });
        }
    }

    /// The place is free again. One that was evicted is already.
    pub fn close(&mut self, id: PlaceId) {
        self.take(id);
    }

    /// Places that are taken.
    pub fn taken(&self) -> usize {
        self.places.len()
    }

    fn make_room(&mut self, group: Group, evicted: &mut Vec<PlaceId>) -> Result<(), NoPlace> {
        let (mut entitled, mut provisional, mut oldest) = (0, 0, None);
        if let Some(tally) = self.groups.get(&group) {
            (entitled, provisional) = (tally.entitled, tally.provisional.len());
            oldest = tally.provisional.first().copied();
        }
        let crowded = group.is_some()
            && (provisional >= self.limits.provisional_per_address
                || entitled + provisional >= self.limits.per_address);
        if crowded {
            let oldest = oldest.ok_or(NoPlace::Address)?;
            self.close(oldest);
            evicted.push(oldest);
        }
        if self.places.len() >= self.limits.places {
            let crowd = self.crowds.last().and_then(|(_, group)| self.groups.get(group));
            let oldest = crowd.and_then(|tally| tally.provisional.first().copied());
            let oldest = oldest.ok_or(NoPlace::Full)?;
            self.close(oldest);
            evicted.push(oldest);
        }
        Ok(())
    }

    fn take(&mut self, id: PlaceId) -> Option<Place> {
        let place = self.places.remove(&id)?;
        self.count(place.group, |tally| {
            if place.entitled {
                tally.entitled -= 1;
            } else {
                tally.provisional.remove(&id);
            }
        });
        Some(place)
    }

    fn put(&mut self, id: PlaceId, place: Place) {
        self.count(place.group, |tally| {
            if place.entitled {
                tally.entitled += 1;
            } else {
                tally.provisional.insert(id);
            }
        });
        self.places.insert(id, place);
    }

    fn count(&mut self, group: Group, change: impl FnOnce(&mut Tally)) {
        let tally = self.groups.entry(group).or_default();
        let before = tally.provisional.len();
        change(tally);
        let (after, gone) = (tally.provisional.len(), tally.entitled == 0);
        if gone && after == 0 {
            self.groups.remove(&group);
        }
        if before != after {
            self.crowds.remove(&(before, group));
            self.crowds.extend((after > 0).then_some((after, group)));
        }
    }
}

/// Whom an address belongs to: itself, or the network of 64 bits that it is in.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip) & NETWORK).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { places: 8, per_address: 6, provisional_per_address: 4 };

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().expect("an address"))
    }

    struct Gate {
        machine: Admission,
        evicted: Vec<PlaceId>,
    }

    impl Gate {
        fn new() -> Self {
            Self { machine: Admission::new(LIMITS), evicted: Vec::new() }
        }

        fn open(&mut self, from: &str) -> Result<PlaceId, NoPlace> {
            self.machine.open(ip(from), &mut self.evicted)
        }

        fn entitled(&mut self, from: &str) -> PlaceId {
            let id = self.open(from).expect("a place");
            self.machine.entitle(id);
            id
        }

        fn evicted(&mut self) -> Vec<PlaceId> {
            std::mem::take(&mut self.evicted)
        }
    }

    #[test]
    fn an_address_at_its_limit_gives_up_its_own_oldest_provisional_place() {
        let mut gate = Gate::new();
        let other = gate.open("10.0.0.9").expect("a place");
        let first = gate.open("10.0.0.1").expect("a place");
        let kept = gate.entitled("10.0.0.1");
        for _ in 0..3 {
            gate.open("10.0.0.1").expect("a place");
        }
        assert_eq!(gate.evicted(), []);
        gate.open("10.0.0.1").expect("a place");
        assert_eq!(gate.evicted(), [first], "neither the entitled one nor another's older one");
        for id in [other, kept] {
            assert!(gate.machine.places.contains_key(&id));
        }
    }

    #[test]
    fn where_all_is_taken_the_address_with_the_most_provisional_places_gives_one_up() {
        let mut gate = Gate::new();
        let few = [gate.open("10.0.0.1"), gate.open("10.0.0.1")].map(|id| id.expect("a place"));
        let many = [(); 3].map(|()| gate.open("10.0.0.2").expect("a place"));
        for _ in 0..3 {
            gate.entitled("10.0.0.3");
        }
        gate.open("10.0.0.4").expect("a place");
        assert_eq!(gate.evicted(), [many[0]], "older ones of smaller crowds stay");
        gate.open("10.0.0.4").expect("a place");
        assert_eq!(gate.evicted().len(), 1);
        assert!(few.iter().any(|id| gate.machine.places.contains_key(id)));
        assert_eq!(gate.machine.taken(), LIMITS.places);
    }

    #[test]
    fn the_entitled_are_never_evicted_and_then_newcomers_are_refused() {
        let mut gate = Gate::new();
        let mine: Vec<_> = (0..6).map(|_| gate.entitled("10.0.0.1")).collect();
        assert_eq!(gate.open("10.0.0.1"), Err(NoPlace::Address), "three quarters, not more");
        let last = [gate.entitled("10.0.0.2"), gate.entitled("10.0.0.2")];
        assert_eq!(gate.open("10.0.0.3"), Err(NoPlace::Full));
        assert_eq!(gate.evicted(), []);
        gate.machine.close(last[0]);
        assert_eq!(gate.open("10.0.0.1"), Err(NoPlace::Address));
        assert!(gate.open("10.0.0.3").is_ok() && mine.len() == 6);
    }

    #[test]
    fn one_network_of_ipv6_is_one_address_and_mapped_ipv4_is_ipv4() {
        for (one, other) in
            [("2001:db8::1", "2001:db8::ffff:ffff:0:2"), ("::ffff:10.0.0.1", "10.0.0.1")]
        {
            assert_eq!(ip(one).map(network), ip(other).map(network), "{one} {other}");
        }
        assert_ne!(ip("2001:db8::1").map(network), ip("2001:db8:0:1::1").map(network));
    }

    #[test]
    fn a_proxys_connections_have_no_address_until_it_names_one() {
        let mut gate = Gate::new();
        let mut proxied = Vec::new();
        for _ in 0..7 {
            proxied.push(gate.machine.open(None, &mut gate.evicted).expect("a place"));
        }
        assert_eq!(gate.evicted(), [], "more than any address may have");
        for (at, id) in proxied.iter().enumerate() {
            let named = gate.machine.attribute(*id, [10, 0, 0, 1].into(), &mut gate.evicted);
            assert_eq!(named, Ok(()));
            let evicted = gate.evicted();
            assert_eq!(evicted.len(), usize::from(at >= 4), "{at}: its own oldest");
        }
        for id in &proxied[3..] {
            gate.machine.entitle(*id);
        }
        assert_eq!(gate.machine.taken(), 4);
        let more = [(); 2].map(|()| gate.entitled("10.0.0.1"));
        let late = gate.machine.open(None, &mut gate.evicted).expect("a place");
        let named = gate.machine.attribute(late, [10, 0, 0, 1].into(), &mut gate.evicted);
        assert_eq!((named, gate.evicted(), more.len()), (Err(NoPlace::Address), vec![], 2));
        assert!(gate.machine.places.contains_key(&late), "the place is still the proxy's");
    }

    #[test]
    fn descriptors_are_shared_out_within_the_limit() {
        let shares = Descriptors::shares(Some(1024));
        assert_eq!(shares, Descriptors { half_open: 128, clients: 512, beyond: 64 });
        for limit in [64, 256, 1024, 4096, 20_000, 1 << 20] {
            let Descriptors { half_open, clients, beyond } = Descriptors::shares(Some(limit));
            let others = limit - half_open - clients - beyond;
            assert!(others >= 32 + limit.min(4096) / 4, "{limit}: {others} for links and the node");
        }
        assert!(Descriptors::shares(None).clients > 1 << 20);
        assert_eq!(Descriptors::shares(Some(0)).clients, 1);
    }

    proptest! {
        #[test]
        fn invariants_hold_whatever_happens(steps in prop::collection::vec((0_u8..5, 0_u8..4, 0_usize..9), 0..200)) {
            let mut gate = Gate::new();
            let (mut open, mut entitled) = (BTreeSet::new(), BTreeSet::new());
            for (what, address, which) in steps {
                let chosen = open.iter().nth(which).copied();
                let from = (address > 0).then(|| IpAddr::from([10, 0, 0, address]));
                match (what, chosen) {
                    (0 | 1, _) => {
                        if let Ok(id) = gate.machine.open(from, &mut gate.evicted) {
                            open.insert(id);
                        }
                    }
                    (2, Some(id)) => {
                        gate.machine.entitle(id);
                        entitled.insert(id);
                    }
                    (3, Some(id)) => {
                        gate.machine.close(id);
                        open.remove(&id);
                    }
                    (4, Some(id)) => {
                        let group = gate.machine.places[&id].group;
                        if let (None, Some(from)) = (group, from) {
                            // What its proxy was entitled to is not its client's.
                            entitled.remove(&id);
                            let named = gate.machine.attribute(id, from, &mut gate.evicted);
                            prop_assert!(named != Err(NoPlace::Full), "its own place is one");
                        }
                    }
                    _ => {}
                }
                for id in gate.evicted() {
                    prop_assert!(!entitled.contains(&id), "an entitled place was evicted");
                    prop_assert!(open.remove(&id));
                }
                prop_assert!(open.iter().eq(gate.machine.places.keys()));
                prop_assert!(open.len() <= LIMITS.places);
                for (group, tally) in &gate.machine.groups {
                    let all = tally.entitled + tally.provisional.len();
                    prop_assert!(all > 0);
                    prop_assert!(group.is_none() || all <= LIMITS.per_address);
                    prop_assert!(group.is_none() || tally.provisional.len() <= LIMITS.provisional_per_address);
                    let ranked = gate.machine.crowds.contains(&(tally.provisional.len(), *group));
                    prop_assert_eq!(ranked, !tally.provisional.is_empty());
                }
            }
        }
    }
}
