//! What the machine holds of `--join` addresses, and of another process with this node's name.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::proto::backoff::Backoff;
use crate::proto::event::Event;
use crate::proto::hello::Refusal;
use crate::proto::membership::{Failure, Membership, Output};
use crate::proto::node::NodeName;

/// How long word of a namesake counts: longer than any wait between two dials.
const NAMESAKE: Duration = Duration::from_secs(90);
/// How often it is announced while it lasts.
const AGAIN: Duration = Duration::from_secs(600);

/// How joining goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JoinView {
    /// The `--join` addresses, in order.
    pub seeds: Vec<SeedView>,
    /// Where another process uses this node's name.
    pub namesake: Option<SocketAddr>,
}

/// One `--join` address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeedView {
    /// Where.
    pub address: SocketAddr,
    /// Whose certificate was shown there last; this node's own where it leads back here.
    pub node: Option<NodeName>,
    /// When it was dialed last.
    pub tried: Option<Instant>,
    /// Why that failed; `None` while it did not.
    pub failure: Option<Failure>,
}

impl Membership {
    /// With what this process says in its hellos, so that it knows itself from another process of its name.
    #[must_use]
    pub fn with_hello(mut self, boot: u64, advertise: SocketAddr) -> Self {
        self.own = Some((boot, advertise));
        self
    }

    /// How joining goes.
    pub fn joining(&self) -> JoinView {
        let seeds = self.seeds.iter().map(|(address, seed)| seed.view(*address)).collect();
        JoinView { seeds, namesake: self.namesake.address() }
    }

    pub(super) fn seed_failed(
        &mut self,
        address: SocketAddr,
        failure: Failure,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Some(seed) = self.seeds.get_mut(&address) else { return };
        if failure == Failure::RefusedBy(Refusal::Myself) {
            seed.identified(self.me.clone(), now);
            seed.is_myself();
            return out.push(Output::Announce(Event::SeedIsMyself { address }));
        }
        let wait = seed.backoff.fail(self.config.backoff, &mut self.rng);
        let in_use = matches!(failure, Failure::RefusedBy(refusal) if refusal.is_of_namesake());
        if seed.failed(&failure, wait, now) && !in_use {
            let cause = failure.to_string();
            out.push(Output::Announce(Event::DialFailed { peer: None, address, cause }));
        }
    }

    /// Another process uses this node's name. (At this node's own address it would be an earlier life of this node, in
    /// which others still believe.)
    pub(super) fn meet_namesake(
        &mut self,
        address: SocketAddr,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let other = self.own.is_none_or(|(_, own)| own != address);
        if other && self.namesake.heard(address, now) {
            out.push(Output::Announce(Event::NameInUse { address }));
        }
    }
}

/// A `--join` address.
#[derive(Debug)]
pub(super) struct Seed {
    next: Option<Instant>,
    pub(super) backoff: Backoff,
    node: Option<NodeName>,
    myself: bool,
    tried: Option<Instant>,
    failure: Option<Failure>,
}

impl Seed {
    pub(super) fn new(now: Instant) -> Self {
        let backoff = Backoff::default();
        Self { next: Some(now), backoff, node: None, myself: false, tried: None, failure: None }
    }

    pub(super) fn view(&self, address: SocketAddr) -> SeedView {
        let (node, failure) = (self.node.clone(), self.failure.clone());
        SeedView { address, node, tried: self.tried, failure }
    }

    /// The certificate at this address says who lives there. From now on that peer's own dials
    /// matter; the address is asked again, now and then, while the peer is not linked.
    pub(super) fn identified(&mut self, name: NodeName, again: Instant) {
        self.node = Some(name);
        self.backoff.reset();
        self.failure = None;
        self.next = Some(again);
    }

    /// It leads back to this node: it is dialed no more.
    pub(super) fn is_myself(&mut self) {
        self.myself = true;
        self.failure = None;
    }

    pub(super) fn due(&self, linked: impl Fn(&NodeName) -> bool) -> Option<Instant> {
        let served = self.myself || self.node.as_ref().is_some_and(linked);
        self.next.filter(|_| !served)
    }

    /// True when that is news.
    pub(super) fn failed(&mut self, failure: &Failure, wait: Duration, now: Instant) -> bool {
        self.next = Some(now + wait);
        let news = self.failure.as_ref() != Some(failure);
        self.failure = Some(failure.clone());
        news
    }

    /// Nothing has gone wrong there yet.
    pub(super) fn is_news(&self) -> bool {
        self.failure.is_none()
    }

    /// The link of the peer at this address ended: that peer's own dials come first.
    pub(super) fn leave_to(&mut self, peer: &NodeName, later: Instant) {
        if self.node.as_ref() == Some(peer) && self.next.is_some() {
            self.next = Some(later);
        }
    }

    pub(super) fn dialed(&mut self, now: Instant) {
        (self.next, self.tried) = (None, Some(now));
    }

    pub(super) fn retry(&mut self, now: Instant) {
        self.next = Some(now);
    }
}

/// Another process that uses this node's name.
#[derive(Debug, Default)]
pub(super) struct Namesake {
    heard: Option<(SocketAddr, Instant)>,
    announced: Option<Instant>,
}

impl Namesake {
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.heard.map(|(address, _)| address)
    }

    /// It was heard of, at this address; true when that is to be announced.
    pub(super) fn heard(&mut self, address: SocketAddr, now: Instant) -> bool {
        self.heard = Some((address, now));
        let due = self.announced.is_none_or(|at| now >= at + AGAIN);
        if due {
            self.announced = Some(now);
        }
        due
    }

    /// When it is forgotten unless it is heard of again.
    pub(super) fn until(&self) -> Option<Instant> {
        self.heard.map(|(_, at)| at + NAMESAKE)
    }

    pub(super) fn expire(&mut self, now: Instant) {
        if self.until().is_some_and(|until| until <= now) {
            self.heard = None;
        }
    }
}
