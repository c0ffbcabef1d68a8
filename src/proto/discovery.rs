//! Which beacons to believe, when to send our own and share what we know, and when to say that nobody is there.
//!
//! The machine behind Discovery. Invariants:
//! 1. A beacon becomes a hint only after every screening verdict and the signature check passed.
//! 2. Per sender, (incarnation, sequence) of believed beacons only rises: a replay is never a hint.
//! 3. Signature checks are bounded per second, whatever arrives.
//! 4. Memory is bounded: at most `SENDERS` senders are remembered.
//! 5. A peer that sends more lists than it has reason to is cut.
//! 6. A beacon of the linked life of a peer is checked only while nothing comes over the link; of those of peers that are
//!    not doubted, and of those that repeat what their senders were believed before, a few in a second.
//!
//! # How a node shows itself through others
//! A node of which a peer speaks may be out of reach from here, and is believed in all the same when it says itself that
//! it is there: this node asks the peer that spoke of it, that one asks the node, and passes on what it answers, a beacon
//! with its seal.
//! ```text
//! a: Show(c) ──► b: Show(c) ──► c: Shown(sealed by c) ──► b ──► a
//! ```
//! Invariants: nobody is asked again about a node within `ASK_AGAIN`; only what was asked for is checked; a peer may ask
//! `SHOWS` times a minute, and more is not answered.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

use crate::proto::beacon::Beacon;
use crate::proto::node::{ClusterId, Contact, Incarnation, NodeName};
use crate::proto::quota::Quota;
use crate::proto::wiring::{Ask, Notice};

/// Senders remembered at most; beyond it beacons of new senders are dropped as `Flood`.
pub(crate) const SENDERS: usize = 4096;

/// Contacts in one message, at most; more are not read.
pub const CONTACTS: usize = 128;

/// Messages that are read of one peer within a minute: one with a thousand peers sends a hundred where this node is its
/// only one.
const MESSAGES: u32 = 256;

/// A linked peer of which a byte came so lately is not silent. Beats come every second, and are noted with the next one.
const AUDIBLE: Duration = Duration::from_millis(1500);

/// Of beacons that repeat what is known of nodes that are not linked, and of linked ones that are quiet and not doubted
/// (above 12 peers most links are), so many are checked within a second.
const REPEATS: u32 = 4;

/// Questions about other nodes that are answered to one peer within a minute.
const SHOWS: u32 = 120;
/// A node of which a peer spoke has so long to be linked before anybody is asked.
const ASK_AFTER: Duration = Duration::from_secs(2);
/// With many such nodes each one has so much longer than the one before: to link them takes time, too.
const ASK_APART: Duration = Duration::from_millis(50);
/// Nobody is asked about the same node again within so long.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// Nodes of which one peer spoke that are kept, to ask about them.
const UNSEEN: usize = 128;

/// What Discovery sends its like on another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word {
    /// Who is linked to the sender.
    Contacts(Vec<Contact>),
    /// The receiver, or a node that is linked to it, is to say itself where it is.
    Show(NodeName),
    /// A node's own word where it is: a beacon, with its seal.
    Shown(Vec<u8>),
}

/// What `peer` is told of the peers that are linked here, message by message.
pub fn contacts_for(linked: Vec<Contact>, peer: &NodeName) -> Vec<Vec<Contact>> {
    let others: Vec<_> = linked.into_iter().filter(|contact| contact.name != *peer).collect();
    others.chunks(CONTACTS).map(<[Contact]>::to_vec).collect()
}

/// Settings of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Shortest wait between two of our beacons.
    pub beacon_min: Duration,
    /// Longest wait between two of our beacons.
    pub beacon_max: Duration,
    /// Wait between two tellings of known peers to one random peer.
    pub share: Duration,
    /// How far a beacon's time may be from ours.
    pub skew: Duration,
    /// Signatures checked per second at most.
    pub checks: u32,
    /// How long a node may be without any link before that is said.
    pub alone: Duration,
    /// Wait until it is said again.
    pub alone_again: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            beacon_min: Duration::from_secs(1),
            beacon_max: Duration::from_secs(5),
            share: Duration::from_secs(5),
            skew: Duration::from_secs(120),
            checks: 500,
            alone: Duration::from_secs(10),
            alone_again: Duration::from_secs(600),
        }
    }
}

/// What became of a received datagram; each is a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Verdict {
    /// Believed: its sender is a hint.
    Accepted,
    /// Not a beacon.
    Malformed,
    /// Of another version of the format.
    Version,
    /// Of another cluster.
    Foreign,
    /// Believed, although another node passed it on: its sender is a hint.
    Relayed,
    /// Of a peer that is linked and heard: it tells nothing new, and its seal is not checked.
    Linked,
    /// It repeats what its sender was believed before, and enough of those were checked within this second.
    Repeated,
    /// Our own, heard back.
    Echo,
    /// Believed: another process uses our name.
    Namesake,
    /// Heard before, or older than one heard before.
    Replayed,
    /// Sent too long ago, or in the future: a recording, or a clock that is off.
    Stale,
    /// The signature or the certificate does not hold, or names another node.
    Forged,
    /// More than can be checked: dropped unread.
    Flood,
}

impl Verdict {
    /// The verdict as a metric label.
    pub fn label(self) -> &'static str {
        self.into()
    }
}

/// What the machine wants done at its deadline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a beacon with this sequence number.
    Beacon(u64),
    /// Tell one random linked peer who is linked here.
    Share,
    /// Tell this peer, which has just been linked.
    ShareWith(NodeName),
    /// Send this peer a word.
    Send(NodeName, Word),
    /// Send this peer a beacon of this node, as [`Word::Shown`].
    ShowTo(NodeName),
    /// Check the seal of this beacon, which was asked for; if it holds, its contact is a hint.
    Check(Vec<u8>),
    /// Ask NodeManager.
    Ask(Ask),
    /// No node has been linked for this long, and that was announced before or not.
    Alone(Duration, Announced),
}

/// Whether something is announced for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announced {
    /// It was not announced before.
    Never,
    /// It goes on.
    Before,
}

/// This process, as its beacons have it.
#[derive(Clone, Debug)]
pub struct Own {
    /// Its name.
    pub name: NodeName,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Where others reach it.
    pub address: SocketAddr,
    /// When it began, in milliseconds since the Unix epoch: what was sent before is of an earlier life.
    pub begun: u64,
}

/// What went over the air so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Air {
    /// Beacons of this node.
    pub sent: u64,
    /// Beacons of other nodes that were believed.
    pub heard: u64,
    /// Beacons of other clusters.
    pub foreign: u64,
}

/// Since when no node is linked.
#[derive(Clone, Copy, Debug)]
struct Alone {
    since: Instant,
    next: Instant,
    announced: Announced,
}

impl Alone {
    fn new(config: Config, now: Instant) -> Self {
        Self { since: now, next: now + config.alone, announced: Announced::Never }
    }
}

/// A node of which a peer spoke, and that is not linked here.
#[derive(Clone, Debug)]
struct Unseen {
    by: NodeName,
    /// When that peer is asked, or was.
    at: Instant,
    asked: bool,
}

/// The machine.
#[derive(Debug)]
pub struct Discovery {
    config: Config,
    own: Own,
    air: Air,
    linked: BTreeMap<NodeName, Incarnation>,
    unseen: BTreeMap<NodeName, Unseen>,
    /// Which peers wait for the own word of a linked one.
    waiting: BTreeMap<NodeName, BTreeSet<NodeName>>,
    shows: Quota,
    alone: Option<Alone>,
    /// The latest beacon of each sender that was believed.
    heard: BTreeMap<NodeName, Heard>,
    sequence: u64,
    beacon_at: Option<Instant>,
    share_at: Instant,
    told: Quota,
    checks_since: Instant,
    checks: u32,
    repeats: u32,
    rng: StdRng,
}

/// What a beacon said.
#[derive(Clone, Copy, Debug)]
struct Heard {
    incarnation: Incarnation,
    sequence: u64,
    address: SocketAddr,
}

impl Discovery {
    /// A node that has heard nothing yet. It sends its first beacon at once, or never when
    /// `beacons` is false. `sequence` must be at least that of any beacon this life has sent.
    pub fn new(
        config: Config,
        own: Own,
        beacons: bool,
        sequence: u64,
        now: Instant,
        rng: StdRng,
    ) -> Self {
        Self {
            config,
            own,
            air: Air::default(),
            linked: BTreeMap::new(),
            unseen: BTreeMap::new(),
            waiting: BTreeMap::new(),
            shows: Quota::new(SHOWS),
            alone: Some(Alone::new(config, now)),
            heard: BTreeMap::new(),
            sequence,
            beacon_at: beacons.then_some(now),
            share_at: now + config.share,
            told: Quota::new(MESSAGES),
            checks_since: now,
            checks: 0,
            repeats: 0,
            rng,
        }
    }

    /// Judges what a beacon says before its signature is checked; `wall` is our clock in milliseconds since the Unix epoch,
    /// `sign` when the last byte of a linked peer arrived, `None` of one that is doubted.
    ///
    /// # Errors
    /// The [`Verdict`] that ends it.
    pub fn screen(
        &mut self,
        beacon: &Beacon,
        sign: impl FnOnce(&NodeName) -> Option<Instant>,
        wall: u64,
        now: Instant,
    ) -> Result<(), Verdict> {
        let contact = &beacon.contact;
        if beacon.cluster != self.own.cluster {
            self.air.foreign += 1;
            return Err(Verdict::Foreign);
        }
        let echo = contact.address == self.own.address || beacon.sent < self.own.begun;
        if contact.name == self.own.name && echo {
            return Err(Verdict::Echo);
        }
        if !self.is_current(beacon, wall) {
            return Err(Verdict::Stale);
        }
        let last = self.heard.get(&contact.name).copied();
        match last.map(|last| (last.incarnation, last.sequence)) {
            Some(last) if last >= (contact.incarnation, beacon.sequence) => {
                return Err(Verdict::Replayed);
            }
            None if self.heard.len() >= SENDERS => return Err(Verdict::Flood),
            _ => {}
        }
        if now.saturating_duration_since(self.checks_since) >= Duration::from_secs(1) {
            (self.checks_since, self.checks, self.repeats) = (now, 0, 0);
        }
        let linked = self.linked.get(&contact.name);
        let repeats = if linked == Some(&contact.incarnation) {
            // Of one that falls silent the beacons count: they tell a bad line from a dead process.
            match sign(&contact.name) {
                Some(heard) if now.saturating_duration_since(heard) < AUDIBLE => {
                    return Err(Verdict::Linked);
                }
                quiet => quiet.is_some(),
            }
        } else {
            let same = |last: Heard| {
                (last.incarnation, last.address) == (contact.incarnation, contact.address)
            };
            linked.is_none() && last.is_some_and(same)
        };
        if repeats {
            self.repeats += 1;
            if self.repeats > REPEATS {
                return Err(Verdict::Repeated);
            }
        }
        self.checks += 1;
        if self.checks > self.config.checks { Err(Verdict::Flood) } else { Ok(()) }
    }

    /// A screened beacon's signature holds: remember it. The verdict is [`Verdict::Accepted`] or [`Verdict::Namesake`].
    pub fn believe(&mut self, beacon: &Beacon) -> Verdict {
        let contact = &beacon.contact;
        let (incarnation, sequence) = (contact.incarnation, beacon.sequence);
        let heard = Heard { incarnation, sequence, address: contact.address };
        self.heard.insert(contact.name.clone(), heard);
        if contact.name == self.own.name {
            return Verdict::Namesake;
        }
        self.air.heard += 1;
        Verdict::Accepted
    }

    /// What went over the air so far.
    pub fn air(&self) -> Air {
        self.air
    }

    /// Takes news of a link.
    pub fn handle(&mut self, notice: Notice<Word>, now: Instant, out: &mut Vec<Output>) {
        match notice {
            Notice::Up(peer, life) => {
                self.linked.insert(peer.clone(), life);
                self.unseen.remove(&peer);
                // The name is of another key: its sequences begin anew, too.
                if self.heard.get(&peer).is_some_and(|heard| heard.incarnation > life) {
                    self.heard.remove(&peer);
                }
                self.alone = None;
                out.push(Output::ShareWith(peer));
            }
            Notice::Message(peer, Word::Contacts(contacts)) => {
                if !self.told.spend(&peer, now) {
                    return out.push(Output::Ask(Ask::Cut(peer)));
                }
                for contact in contacts.into_iter().take(CONTACTS) {
                    self.spoken_of(&contact.name, &peer, now);
                    out.push(Output::Ask(Ask::Told(peer.clone(), contact)));
                }
            }
            Notice::Message(peer, Word::Show(node)) => self.asked(peer, node, now, out),
            Notice::Message(peer, Word::Shown(sealed)) => self.shown(&peer, sealed, out),
            Notice::Down(peer, _) => {
                self.linked.remove(&peer);
                self.unseen.retain(|_, unseen| unseen.by != peer);
                self.waiting.remove(&peer);
                for waiting in self.waiting.values_mut() {
                    waiting.remove(&peer);
                }
                if self.linked.is_empty() && self.alone.is_none() {
                    self.alone = Some(Alone::new(self.config, now));
                }
            }
            Notice::Forgotten(_)
            | Notice::Offline(_)
            | Notice::Renewed(_)
            | Notice::Revoked
            | Notice::Equivocation(_)
            | Notice::Changed => {}
        }
    }

    /// A peer spoke of a node.
    fn spoken_of(&mut self, node: &NodeName, by: &NodeName, now: Instant) {
        if *node == self.own.name || self.linked.contains_key(node) {
            return;
        }
        let fresh = |unseen: &Unseen| !unseen.asked || now < unseen.at + ASK_AGAIN;
        if self.unseen.get(node).is_some_and(fresh) {
            return;
        }
        if self.unseen.values().filter(|unseen| unseen.by == *by).count() >= UNSEEN {
            self.unseen.retain(|_, unseen| fresh(unseen));
            return;
        }
        let before = self.unseen.values().filter(|unseen| !unseen.asked).count();
        let at = now + ASK_AFTER + ASK_APART * u32::try_from(before).unwrap_or(u32::MAX);
        let unseen = Unseen { by: by.clone(), at, asked: false };
        self.unseen.insert(node.clone(), unseen);
    }

    /// A peer wants a node's own word.
    fn asked(&mut self, peer: NodeName, node: NodeName, now: Instant, out: &mut Vec<Output>) {
        if !self.shows.spend(&peer, now) {
            return;
        }
        if node == self.own.name {
            out.push(Output::ShowTo(peer));
        } else if self.linked.contains_key(&node) && node != peer {
            let waiting = self.waiting.entry(node.clone()).or_default();
            let first = waiting.is_empty();
            // One that asks again had no answer.
            if !waiting.insert(peer) || first {
                out.push(Output::Send(node.clone(), Word::Show(node)));
            }
        }
    }

    /// A peer passes on a node's own word, or says its own.
    fn shown(&mut self, peer: &NodeName, sealed: Vec<u8>, out: &mut Vec<Output>) {
        let Ok(beacon) = Beacon::decode(&sealed).map(|sealed| sealed.beacon) else { return };
        let node = beacon.contact.name;
        if node == *peer {
            let waiting = self.waiting.remove(&node).unwrap_or_default();
            out.extend(waiting.into_iter().map(|it| Output::Send(it, Word::Shown(sealed.clone()))));
        } else if self.unseen.get(&node).is_some_and(|it| it.asked && it.by == *peer) {
            out.push(Output::Check(sealed));
        }
    }

    /// Whether a beacon that was passed on is of this cluster and of about now; `wall` as in [`Self::screen`].
    pub fn is_current(&self, beacon: &Beacon, wall: u64) -> bool {
        let skew = u64::try_from(self.config.skew.as_millis()).unwrap_or(0);
        beacon.cluster == self.own.cluster && wall.abs_diff(beacon.sent) <= skew
    }

    /// When the machine wants its next [`Discovery::tick`].
    pub fn deadline(&self) -> Instant {
        let alone = self.alone.map(|alone| alone.next);
        let asks = self.unseen.values().filter(|unseen| !unseen.asked).map(|unseen| unseen.at);
        self.beacon_at.into_iter().chain(alone).chain(asks).fold(self.share_at, Instant::min)
    }

    /// What is due.
    pub fn tick(&mut self, now: Instant, out: &mut Vec<Output>) {
        if self.beacon_at.is_some_and(|at| at <= now) {
            self.sequence += 1;
            self.air.sent += 1;
            out.push(Output::Beacon(self.sequence));
            let wait = self.rng.random_range(self.config.beacon_min..=self.config.beacon_max);
            self.beacon_at = Some(now + wait);
        }
        if self.share_at <= now {
            out.push(Output::Share);
            self.share_at = now + self.config.share.mul_f64(self.rng.random_range(0.8..=1.2));
        }
        for (node, unseen) in &mut self.unseen {
            if !unseen.asked && unseen.at <= now {
                unseen.asked = true;
                out.push(Output::Send(unseen.by.clone(), Word::Show(node.clone())));
            }
        }
        if let Some(alone) = self.alone.as_mut().filter(|alone| alone.next <= now) {
            let since = now.saturating_duration_since(alone.since);
            out.push(Output::Alone(since, alone.announced));
            (alone.next, alone.announced) = (now + self.config.alone_again, Announced::Before);
        }
    }

    /// One of `count` things, at random.
    pub fn pick(&mut self, count: usize) -> Option<usize> {
        (count > 0).then(|| self.rng.random_range(0..count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::node::KeyId;
    use crate::proto::talk::DownReason;
    use crate::proto::tests::start;
    use rand::SeedableRng;

    const WALL: u64 = 1_700_000_000_000;

    fn machine(beacons: bool, now: Instant) -> Discovery {
        let own = Own {
            name: "me@127.0.0.1".parse().expect("valid"),
            cluster: KeyId([1; 16]),
            address: "127.0.0.1:4697".parse().expect("valid"),
            begun: WALL - 1000,
        };
        Discovery::new(Config::default(), own, beacons, 0, now, StdRng::seed_from_u64(4))
    }

    fn beacon(name: &str, incarnation: u64, sequence: u64) -> Beacon {
        Beacon {
            cluster: KeyId([1; 16]),
            contact: Contact {
                name: name.parse().expect("valid"),
                address: "127.0.0.1:4697".parse().expect("valid"),
                incarnation: Incarnation(incarnation),
            },
            sequence,
            sent: WALL,
        }
    }

    /// Nothing comes over a link.
    fn silent(_: &NodeName) -> Option<Instant> {
        None
    }

    #[test]
    fn foreign_echoed_and_stale_beacons_are_screened_out() {
        let now = start();
        let mut discovery = machine(true, now);
        let mut screen = |beacon: &Beacon| discovery.screen(beacon, silent, WALL, now);
        let good = beacon("a@127.0.0.1", 1, 1);
        assert_eq!(screen(&good), Ok(()));
        assert_eq!(
            screen(&Beacon { cluster: KeyId([2; 16]), ..good.clone() }),
            Err(Verdict::Foreign)
        );
        assert_eq!(screen(&beacon("me@127.0.0.1", 1, 1)), Err(Verdict::Echo));
        for off in [WALL - 120_001, WALL + 120_001] {
            assert_eq!(screen(&Beacon { sent: off, ..good.clone() }), Err(Verdict::Stale));
        }
    }

    #[test]
    fn another_process_of_this_name_is_told_from_this_one_and_its_earlier_lives() {
        let now = start();
        let mut discovery = machine(true, now);
        let elsewhere = |sent| {
            let mut beacon = Beacon { sent, ..beacon("me@127.0.0.1", 1, 1) };
            beacon.contact.address = "127.0.0.1:5000".parse().expect("valid");
            beacon
        };
        assert_eq!(
            discovery.screen(&beacon("me@127.0.0.1", 1, 1), silent, WALL, now),
            Err(Verdict::Echo)
        );
        assert_eq!(
            discovery.screen(&elsewhere(WALL - 1001), silent, WALL, now),
            Err(Verdict::Echo)
        );
        let other = elsewhere(WALL);
        assert_eq!(discovery.screen(&other, silent, WALL, now), Ok(()));
        assert_eq!(discovery.believe(&other), Verdict::Namesake);
        assert_eq!(discovery.screen(&other, silent, WALL, now), Err(Verdict::Replayed));
        assert_eq!(discovery.air().heard, 0);
    }

    /// When the machine says that it is alone until `until`, in seconds since `since`.
    fn alone(discovery: &mut Discovery, since: Instant, until: u64) -> Vec<(u64, u64, Announced)> {
        let (mut said, mut out) = (Vec::new(), Vec::new());
        loop {
            let now = discovery.deadline();
            if now > since + Duration::from_secs(until) {
                return said;
            }
            discovery.tick(now, &mut out);
            for output in out.drain(..) {
                if let Output::Alone(alone, announced) = output {
                    said.push(((now - since).as_secs(), alone.as_secs(), announced));
                }
            }
        }
    }

    #[test]
    fn a_node_without_links_says_so_after_ten_seconds_and_then_every_ten_minutes() {
        let (now, again) = (start(), Announced::Before);
        let first = (10, 10, Announced::Never);
        let mut discovery = machine(true, now);
        assert_eq!(
            alone(&mut discovery, now, 1300),
            [first, (610, 610, again), (1210, 1210, again)]
        );
        let later = now + Duration::from_secs(1300);
        let b: NodeName = "b@h".parse().expect("valid");
        discovery.handle(Notice::Up(b.clone(), Incarnation(1)), later, &mut Vec::new());
        assert_eq!(alone(&mut discovery, later, 1300), []);
        let lost = later + Duration::from_secs(1300);
        for at in [lost, lost + Duration::from_secs(5)] {
            let down = Notice::Down(b.clone(), DownReason::LinkLost);
            discovery.handle(down, at, &mut Vec::new());
        }
        assert_eq!(alone(&mut discovery, lost, 60), [first], "from the loss on");
        assert!(discovery.air().sent > 100 && discovery.air().heard == 0);
    }

    #[test]
    fn only_rising_sequences_pass_and_only_believed_ones_count() {
        let now = start();
        let mut discovery = machine(true, now);
        let mut hear = |incarnation, sequence, believe| {
            let beacon = beacon("a@127.0.0.1", incarnation, sequence);
            let verdict = discovery.screen(&beacon, silent, WALL, now);
            if believe && verdict.is_ok() {
                discovery.believe(&beacon);
            }
            verdict
        };
        assert_eq!(hear(1, 9, false), Ok(()), "a forged one must not silence the genuine");
        assert_eq!(hear(1, 5, true), Ok(()));
        assert_eq!(hear(1, 5, true), Err(Verdict::Replayed));
        assert_eq!(hear(1, 4, true), Err(Verdict::Replayed));
        assert_eq!(hear(2, 1, true), Ok(()));
        assert_eq!(hear(1, 6, true), Err(Verdict::Replayed));
    }

    #[test]
    fn of_a_linked_peer_the_beacons_are_checked_while_it_is_silent_or_lives_again() {
        let (now, a) = (start(), node("a@h"));
        let mut discovery = machine(true, now);
        let screen = |discovery: &mut Discovery, life, heard: Option<Duration>| {
            let heard =
                |peer: &NodeName| heard.filter(|_| *peer == node("a@h")).map(|ago| now - ago);
            discovery.screen(&beacon("a@h", life, 1), heard, WALL, now)
        };
        let just_now = Some(Duration::from_millis(900));
        assert_eq!(screen(&mut discovery, 2, just_now), Ok(()), "it is not linked");
        handle(&mut discovery, Notice::Up(a.clone(), Incarnation(2)), now);
        for _ in 0..1000 {
            assert_eq!(screen(&mut discovery, 2, just_now), Err(Verdict::Linked));
        }
        assert_eq!(screen(&mut discovery, 2, Some(AUDIBLE)), Ok(()), "it may be silent");
        assert_eq!(screen(&mut discovery, 2, None), Ok(()), "nothing came yet");
        assert_eq!(screen(&mut discovery, 3, just_now), Ok(()), "it is a later life");
        handle(&mut discovery, Notice::Down(a, DownReason::LinkLost), now);
        assert_eq!(screen(&mut discovery, 2, just_now), Ok(()), "the link is gone");
    }

    #[test]
    fn of_a_name_with_another_key_the_sequences_begin_anew() {
        let now = start();
        let mut discovery = machine(true, now);
        assert_eq!(hear(&mut discovery, beacon("a@h", 7, 9), now), Ok(Verdict::Accepted));
        for (life, then) in [(7, Err(Verdict::Replayed)), (1, Ok(Verdict::Accepted))] {
            handle(&mut discovery, Notice::Up(node("a@h"), Incarnation(life)), now);
            handle(&mut discovery, Notice::Down(node("a@h"), DownReason::LinkLost), now);
            let verdict = hear(&mut discovery, beacon("a@h", 1, 9), now);
            assert_eq!(verdict, then, "linked in life {life}");
        }
    }

    #[test]
    fn of_beacons_that_repeat_what_is_known_a_few_are_checked() {
        let now = start();
        let mut discovery = machine(true, now);
        let names: Vec<_> = (0..20).map(|n| format!("n{n}@h")).collect();
        for name in &names {
            let verdict = hear(&mut discovery, beacon(name, 1, 1), now);
            assert_eq!(verdict, Ok(Verdict::Accepted), "news of {name}");
        }
        let repeated = |discovery: &mut Discovery, sequence, now| {
            let verdicts = names.iter().map(|it| hear(discovery, beacon(it, 1, sequence), now));
            verdicts.filter(|it| *it == Err(Verdict::Repeated)).count()
        };
        assert_eq!(repeated(&mut discovery, 2, now), 16);
        assert_eq!(repeated(&mut discovery, 3, now + Duration::from_secs(1)), 16);
        let later = now + Duration::from_secs(1);
        let elsewhere = |mut beacon: Beacon| {
            beacon.contact.address = "127.0.0.1:5000".parse().expect("valid");
            beacon
        };
        let news = [beacon(&names[0], 2, 1), elsewhere(beacon(&names[1], 1, 4))];
        for beacon in news {
            assert_eq!(hear(&mut discovery, beacon, later), Ok(Verdict::Accepted));
        }
        // One that is linked and silent is no news either, and tells a bad line from a dead process.
        handle(&mut discovery, Notice::Up(node(&names[2]), Incarnation(1)), later);
        assert_eq!(hear(&mut discovery, beacon(&names[2], 1, 9), later), Ok(Verdict::Accepted));
    }

    #[test]
    fn of_quiet_links_a_few_beacons_are_checked_and_all_of_a_doubted_peer() {
        let now = start();
        let mut discovery = machine(true, now);
        let names: Vec<_> = (0..20).map(|n| format!("n{n}@h")).collect();
        for name in &names {
            handle(&mut discovery, Notice::Up(node(name), Incarnation(1)), now);
        }
        let doubted = |peer: &NodeName| names[..6].iter().any(|it| *it == peer.as_str());
        let sign = |peer: &NodeName| (!doubted(peer)).then(|| now - AUDIBLE);
        let mut screen = |name: &String| discovery.screen(&beacon(name, 1, 1), sign, WALL, now);
        let verdicts: Vec<_> = names.iter().map(&mut screen).collect();
        assert_eq!(verdicts[..10], [Ok(()); 10]);
        assert_eq!(verdicts[10..], [Err(Verdict::Repeated); 10]);
    }

    #[test]
    fn checks_and_memory_are_bounded() {
        let now = start();
        let mut discovery = machine(true, now);
        let passed = |discovery: &mut Discovery, at| {
            (0..2000)
                .filter(|n| discovery.screen(&beacon("a@h", 1, n + 1), silent, WALL, at).is_ok())
                .count()
        };
        assert_eq!(passed(&mut discovery, now), 500);
        assert_eq!(passed(&mut discovery, now + Duration::from_secs(1)), 500);
        for n in 0..SENDERS {
            discovery.believe(&beacon(&format!("n{n}@h"), 1, 1));
        }
        let later = now + Duration::from_secs(9);
        assert_eq!(
            discovery.screen(&beacon("new@h", 1, 1), silent, WALL, later),
            Err(Verdict::Flood)
        );
    }

    #[test]
    fn the_first_beacon_goes_at_once_and_then_every_one_to_five_seconds() {
        let mut now = start();
        let mut discovery = machine(true, now);
        let (mut out, mut last, mut expected) = (Vec::new(), None::<Instant>, 0);
        for _ in 0..200 {
            now = discovery.deadline();
            out.clear();
            discovery.tick(now, &mut out);
            assert!(!out.is_empty(), "a deadline is a promise");
            for output in &out {
                if let Output::Beacon(sequence) = output {
                    expected += 1;
                    assert_eq!(*sequence, expected);
                    if let Some(last) = last.replace(now) {
                        let wait = now - last;
                        assert!(wait >= Duration::from_secs(1) && wait <= Duration::from_secs(5));
                    }
                }
            }
        }
        assert!(expected > 100 && out.len() < 3);
        let mut silent = machine(false, now);
        out.clear();
        silent.tick(now + Duration::from_secs(60), &mut out);
        assert_eq!(out, [Output::Share, Output::Alone(Duration::from_secs(60), Announced::Never)]);
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn node(text: &str) -> NodeName {
        text.parse().expect("valid")
    }

    fn handle(discovery: &mut Discovery, notice: Notice<Word>, now: Instant) -> Vec<Output> {
        let mut out = Vec::new();
        discovery.handle(notice, now, &mut out);
        out
    }

    fn hear(discovery: &mut Discovery, beacon: Beacon, now: Instant) -> Result<Verdict, Verdict> {
        let verdict = discovery.screen(&beacon, silent, WALL, now);
        verdict.map(|()| discovery.believe(&beacon))
    }

    fn hears(discovery: &mut Discovery, from: &str, word: Word, now: Instant) -> Vec<Output> {
        handle(discovery, Notice::Message(node(from), word), now)
    }

    /// What is asked of others when it is due.
    fn asks(discovery: &mut Discovery, now: Instant) -> Vec<Output> {
        let mut out = Vec::new();
        discovery.tick(now, &mut out);
        out.retain(|output| matches!(output, Output::Send(..)));
        out
    }

    fn contacts(name: &str) -> Word {
        Word::Contacts(vec![beacon(name, 1, 0).contact])
    }

    fn sealed(name: &str) -> Vec<u8> {
        Beacon::seal(beacon(name, 1, 0).to_sign().expect("encodes"), &[], &[]).expect("short")
    }

    #[test]
    fn the_own_word_of_a_node_that_is_not_linked_is_asked_for_once_and_checked() {
        let now = start();
        let mut discovery = machine(false, now);
        for peer in ["b@h", "d@h"] {
            handle(&mut discovery, Notice::Up(node(peer), Incarnation(1)), now);
        }
        let show = || Output::Send(node("b@h"), Word::Show(node("c@h")));
        let shown = || Word::Shown(sealed("c@h"));
        hears(&mut discovery, "b@h", contacts("c@h"), now);
        hears(&mut discovery, "d@h", contacts("c@h"), now);
        hears(&mut discovery, "d@h", contacts("b@h"), now);
        assert_eq!(hears(&mut discovery, "b@h", shown(), now), [], "nobody asked yet");
        assert_eq!(asks(&mut discovery, now + ASK_AFTER - SECOND), []);
        assert!(discovery.deadline() <= now + ASK_AFTER);
        let asked = now + ASK_AFTER;
        assert_eq!(asks(&mut discovery, asked), [show()]);
        assert_eq!(hears(&mut discovery, "d@h", shown(), asked), [], "another was asked");
        let check = Output::Check(sealed("c@h"));
        assert_eq!(hears(&mut discovery, "b@h", shown(), asked), [check]);
        hears(&mut discovery, "b@h", contacts("c@h"), asked + ASK_AGAIN - SECOND);
        assert_eq!(asks(&mut discovery, asked + ASK_AGAIN + SECOND), [], "not so soon");
        hears(&mut discovery, "b@h", contacts("c@h"), asked + ASK_AGAIN);
        assert_eq!(asks(&mut discovery, asked + ASK_AGAIN + ASK_AFTER), [show()]);
        hears(&mut discovery, "d@h", contacts("e@h"), asked + 2 * ASK_AGAIN);
        handle(&mut discovery, Notice::Up(node("e@h"), Incarnation(1)), asked);
        assert_eq!(asks(&mut discovery, asked + 3 * ASK_AGAIN), [], "it is linked");
    }

    #[test]
    fn of_one_peer_so_many_nodes_are_asked_for() {
        let now = start();
        let mut discovery = machine(false, now);
        for peer in ["b@h", "d@h"] {
            handle(&mut discovery, Notice::Up(node(peer), Incarnation(1)), now);
        }
        for number in 0..2 * UNSEEN {
            hears(&mut discovery, "b@h", contacts(&format!("x{number}@h")), now);
        }
        hears(&mut discovery, "d@h", contacts("c@h"), now);
        let all = ASK_APART * u32::try_from(UNSEEN).expect("few");
        let asked =
            |discovery: &mut Discovery, after| asks(discovery, now + ASK_AFTER + after).len();
        assert_eq!(asked(&mut discovery, ASK_APART * 9), 10, "one after the other");
        assert_eq!(asked(&mut discovery, all), UNSEEN + 1 - 10);
    }

    #[test]
    fn a_question_goes_on_to_the_node_and_its_answer_back() {
        let now = start();
        let mut discovery = machine(false, now);
        for peer in ["a@h", "c@h", "d@h"] {
            handle(&mut discovery, Notice::Up(node(peer), Incarnation(1)), now);
        }
        let show = |name: &str| Word::Show(node(name));
        let go_on = [Output::Send(node("c@h"), show("c@h"))];
        assert_eq!(hears(&mut discovery, "a@h", show("c@h"), now), go_on);
        assert_eq!(hears(&mut discovery, "d@h", show("c@h"), now), [], "it is asked already");
        assert_eq!(hears(&mut discovery, "a@h", show("c@h"), now), go_on, "and has not answered");
        let back = ["a@h", "d@h"].map(|to| Output::Send(node(to), Word::Shown(sealed("c@h"))));
        assert_eq!(hears(&mut discovery, "c@h", Word::Shown(sealed("c@h")), now), back);
        assert_eq!(hears(&mut discovery, "c@h", Word::Shown(sealed("c@h")), now), []);
        assert_eq!(hears(&mut discovery, "a@h", show("x@h"), now), [], "it is not linked here");
        let own = hears(&mut discovery, "a@h", show("me@127.0.0.1"), now);
        assert_eq!(own, [Output::ShowTo(node("a@h"))]);
        assert_eq!(hears(&mut discovery, "a@h", Word::Shown(vec![1]), now), []);
        let answered =
            (0..1000).filter(|_| !hears(&mut discovery, "d@h", show("c@h"), now).is_empty());
        assert_eq!(answered.count(), SHOWS as usize - 1, "a bound, and no reason to cut it");
    }
}
