//! Whose output is whose input, between the machines of one node.
//!
//! Each consumer has one mailbox. What concerns it arrives there in one order: the news of links with the messages of
//! its like on other nodes, events, and that something changed that it reads from a view. What consumers want of the
//! membership machine goes back as an [`Ask`]. The node's bus and the simulator's queue deliver by these functions.
//!
//! ```text
//! link ── Up, Message, Down ──► every consumer (a message: to the one of its topic)
//! event log ── PeerForgotten ─► heartbeat monitor, topology tracker, channel router
//!           ── PeerOffline ───► channel router
//!           ── IncarnationRaised ─► topology tracker, registry, channel router (Renewed)
//!           ── CertificatesRevoked ─► topology tracker, registry (Revoked)
//!           ── Equivocation ──► topology tracker, registry
//!           ── suspicion ─────► topology tracker (Changed)
//! the peers' view ── Changed ─► topology tracker, registry
//! measurements ── Changed ────► topology tracker
//! every consumer ── Ask ──────► membership
//! ```
//!
//! # Invariants
//! 1. Of each peer a consumer gets `Up`, then messages, then `Down`, and so on ([`Links`]).
//! 2. One that starts later gets `Up` for each link that is up, before anything else.
//! 3. A consumer gets nothing that it has no use for: what did not change wakes nobody.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::proto::event::{Author, Event, Reason, Source, Status};
use crate::proto::link::{self, Decision, Report};
use crate::proto::membership::{self, PeerView};
use crate::proto::node::{Contact, Credential, Incarnation, NodeName};
use crate::proto::seal::Equivocation;
use crate::proto::talk::DownReason;
use crate::proto::topic::Topic;

/// Measurements are looked at this often.
pub(crate) const MEASURED: Duration = Duration::from_secs(1);

/// A machine that is told of links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Consumer {
    /// Who is alive.
    HeartbeatMonitor,
    /// Who sees whom.
    TopologyTracker,
    /// Who the nodes are.
    Registry,
    /// Where nodes may be.
    Discovery,
    /// Who is in which channel.
    ChannelRouter,
}

/// What arrives in a consumer's mailbox. `M` is a message of its like on another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice<M> {
    /// There is a link to this life of the peer.
    Up(NodeName, Incarnation),
    /// The peer sent this.
    Message(NodeName, M),
    /// The link is gone, and whether the peer left.
    Down(NodeName, DownReason),
    /// The node is forgotten.
    Forgotten(NodeName),
    /// The peer is offline: its link does not come back at once.
    Offline(NodeName),
    /// This node's life was raised to this one.
    Renewed(Incarnation),
    /// Other certificates are revoked than before.
    Revoked,
    /// A node is proven to state different things to different peers.
    Equivocation(Box<Equivocation>),
    /// What the consumer reads of the peers is another than before.
    Changed,
}

impl<M> Notice<M> {
    /// With its message read.
    ///
    /// # Errors
    /// That it cannot be.
    pub fn read<N, E>(self, read: impl FnOnce(M) -> Result<N, E>) -> Result<Notice<N>, E> {
        Ok(match self {
            Self::Up(peer, life) => Notice::Up(peer, life),
            Self::Message(peer, message) => Notice::Message(peer, read(message)?),
            Self::Down(peer, why) => Notice::Down(peer, why),
            Self::Forgotten(node) => Notice::Forgotten(node),
            Self::Offline(peer) => Notice::Offline(peer),
            Self::Renewed(life) => Notice::Renewed(life),
            Self::Revoked => Notice::Revoked,
            Self::Equivocation(proof) => Notice::Equivocation(proof),
            Self::Changed => Notice::Changed,
        })
    }
}

/// What a consumer wants of the membership machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// A node is said to be at an address.
    Hint(Contact, Source),
    /// A node's own beacon says where it is; its key, and since when its certificate counts.
    Beacon(Contact, Credential),
    /// A linked peer says that a node is at an address.
    Told(NodeName, Contact),
    /// A node whose name is not known is said to be at this address.
    Seed(SocketAddr),
    /// Another process of this node's name was heard at this address.
    Namesake(SocketAddr),
    /// A linked peer was not heard for too long: its link is given up.
    Silent(NodeName),
    /// A linked peer keeps breaking rules: its link is cut.
    Cut(NodeName),
    /// A node is forgotten.
    Forget {
        /// Which.
        name: NodeName,
        /// Which life of it.
        life: Incarnation,
        /// Whether it was known beside the peers.
        known: bool,
        /// Who had it forgotten.
        author: Option<Author>,
    },
    /// A node is forgotten no more.
    Revive(NodeName),
}

impl From<Ask> for membership::Input {
    fn from(ask: Ask) -> Self {
        match ask {
            Ask::Hint(contact, source) => Self::Hint(contact, source),
            Ask::Beacon(contact, credential) => Self::Beacon(contact, credential),
            Ask::Told(by, contact) => Self::Told(by, contact),
            Ask::Seed(address) => Self::Seed(address),
            Ask::Namesake(address) => Self::Namesake(address),
            Ask::Silent(peer) => Self::Silent(peer),
            Ask::Cut(peer) => Self::Misbehaved(peer),
            Ask::Forget { name, life, known, author } => Self::Forget { name, life, known, author },
            Ask::Revive(node) => Self::Revive(node),
        }
    }
}

/// What NodeManager is to do for a decision of the membership machine.
#[derive(Debug)]
pub enum Decided {
    /// The link layer does this.
    Link(link::Input),
    /// This node goes on in a later life.
    Renew(Incarnation),
    /// Announce this.
    Announce(Event),
}

impl From<membership::Output> for Decided {
    fn from(output: membership::Output) -> Self {
        use membership::Output;
        Self::Link(match output {
            Output::Dial(attempt, address) => link::Input::Dial(attempt, address),
            Output::Proceed(attempt) => link::Input::Decide(attempt, Decision::Proceed),
            Output::Refuse(attempt, why) => link::Input::Decide(attempt, Decision::Refuse(why)),
            Output::Abandon(attempt) => link::Input::Abandon(attempt),
            Output::Close(attempt, parting) => link::Input::Close(attempt, parting),
            Output::Renew(incarnation) => return Self::Renew(incarnation),
            Output::Announce(event) => return Self::Announce(event),
        })
    }
}

/// What comes before that step: the certificate that the attempt showed.
pub fn shown(report: &Report) -> Option<membership::Input> {
    let (attempt, name, credential) = report.shown()?;
    Some(membership::Input::Shown(attempt, name.clone(), credential))
}

/// What a step of the link layer is to the membership machine; `None` once all links that live have been reported.
pub fn step(report: Report) -> Option<membership::Input> {
    use membership::Input;
    Some(match report {
        Report::Connected(attempt, name, _) => Input::Connected(attempt, name),
        Report::Greeted(attempt, hello, _) => Input::Greeted(attempt, hello),
        Report::Existing(attempt, hello, _, ready) => Input::Existing(attempt, hello, ready),
        Report::Welcomed(attempt, hello) => Input::Welcomed(attempt, hello),
        Report::Confirmed(attempt) => Input::Confirmed(attempt),
        Report::Failed(attempt, failure) => Input::Failed(attempt, failure),
        Report::Ready(attempt) => Input::Ready(attempt),
        Report::Ended(attempt, end) => Input::Ended(attempt, end),
        Report::Revoked(attempt) => Input::Revoked(attempt),
        Report::Attached => return None,
    })
}

/// What a membership machine gets that takes the place of another, once it knows the links that live: every other peer
/// of the last view that had not left is looked for where it was.
pub fn recall(earlier: &[PeerView]) -> impl Iterator<Item = membership::Input> {
    let sought = earlier.iter().filter(|peer| peer.reason != Some(Reason::Left));
    sought.filter_map(contact).map(|it| membership::Input::Hint(it, Source::Remembered))
}

/// What is announced then, where `peer` tells how a peer stands now: who was linked, or was given up, is looked for.
pub fn lost(earlier: &[PeerView], peer: impl Fn(&NodeName) -> Option<PeerView>) -> Vec<Event> {
    let mut events = Vec::new();
    for before in earlier.iter().filter(|before| before.status != Status::Connecting) {
        if peer(&before.name).is_some_and(|now| now.status == Status::Connecting) {
            let peer = before.name.clone();
            if is_linked(before) {
                let cause = "the link layer started again".to_owned();
                events.push(Event::LinkLost { peer: peer.clone(), cause });
            }
            events.push(Event::PeerConnecting { peer });
        }
    }
    events
}

fn contact(peer: &PeerView) -> Option<Contact> {
    let PeerView { name, address, incarnation, .. } = peer;
    address.map(|address| Contact { name: name.clone(), address, incarnation: *incarnation })
}

/// Whether there is a link: one that works, or one on which ractor's sessions do not agree yet.
fn is_linked(peer: &PeerView) -> bool {
    matches!(peer.status, Status::Online | Status::Syncing)
}

/// The peers that are linked, and where.
pub fn contacts<'a>(peers: impl IntoIterator<Item = &'a PeerView>) -> Vec<Contact> {
    peers.into_iter().filter(|peer| is_linked(peer)).filter_map(contact).collect()
}

/// The lives that are forgotten.
#[derive(Clone, Debug, Default)]
pub struct Forgotten(BTreeMap<NodeName, Incarnation>);

impl Forgotten {
    /// These are.
    pub fn new(lives: impl IntoIterator<Item = (NodeName, Incarnation)>) -> Self {
        Self(lives.into_iter().collect())
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Somebody asks that of NodeManager.
    pub fn asked(&mut self, ask: &Ask) {
        match ask {
            Ask::Forget { name, life, .. } => drop(self.0.insert(name.clone(), *life)),
            Ask::Revive(node) => drop(self.0.remove(node)),
            Ask::Hint(..)
            | Ask::Beacon(..)
            | Ask::Told(..)
            | Ask::Seed(_)
            | Ask::Namesake(_)
            | Ask::Silent(_)
            | Ask::Cut(_) => {}
        }
    }

    /// Those of nodes that are no peers again.
    pub fn of_no_peer<'a>(
        &self,
        peers: impl IntoIterator<Item = &'a PeerView>,
    ) -> BTreeMap<NodeName, Incarnation> {
        let mut forgotten = self.0.clone();
        for peer in peers {
            forgotten.remove(&peer.name);
        }
        forgotten
    }
}

/// When measurements are looked at: at most once a second.
#[derive(Debug)]
pub struct Measurements(Instant);

impl Measurements {
    /// At the next change.
    pub fn new(now: Instant) -> Self {
        Self(now)
    }

    /// They changed: whether they are looked at.
    pub fn are_due(&mut self, now: Instant) -> bool {
        let due = now >= self.0;
        if due {
            self.0 = now + MEASURED;
        }
        due
    }
}

impl Consumer {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::HeartbeatMonitor,
        Self::TopologyTracker,
        Self::Registry,
        Self::Discovery,
        Self::ChannelRouter,
    ];

    /// What its messages to its like on other nodes are sent on.
    pub fn topic(self) -> Topic {
        match self {
            Self::HeartbeatMonitor => Topic::node_heartbeat(),
            Self::TopologyTracker => Topic::network_topology(),
            Self::Registry => Topic::network_registry(),
            Self::Discovery => Topic::network_peers(),
            Self::ChannelRouter => Topic::channel_presence(),
        }
    }

    /// What an event is to it.
    pub fn concern<M>(self, event: &Event) -> Option<Notice<M>> {
        let is = |consumers: &[Self]| consumers.contains(&self);
        #[allow(clippy::wildcard_enum_match_arm, reason = "most events concern no consumer")]
        match event {
            Event::PeerForgotten { peer, .. } => {
                is(&[Self::HeartbeatMonitor, Self::TopologyTracker, Self::ChannelRouter])
                    .then(|| Notice::Forgotten(peer.clone()))
            }
            Event::PeerOffline { peer, .. } => {
                is(&[Self::ChannelRouter]).then(|| Notice::Offline(peer.clone()))
            }
            Event::IncarnationRaised { to } => {
                is(&[Self::TopologyTracker, Self::Registry, Self::ChannelRouter])
                    .then_some(Notice::Renewed(*to))
            }
            Event::CertificatesRevoked { .. } => {
                is(&[Self::TopologyTracker, Self::Registry]).then_some(Notice::Revoked)
            }
            Event::Equivocation { .. } if self.takes_proofs() => {
                Equivocation::of_event(event).map(|proof| Notice::Equivocation(Box::new(proof)))
            }
            // A doubt is no measurement: it is looked at soon.
            Event::PeerSuspected { .. } | Event::PeerCleared { .. } => {
                is(&[Self::TopologyTracker]).then_some(Notice::Changed)
            }
            _ => None,
        }
    }

    /// Whether it concludes from what is proven of other nodes.
    pub fn takes_proofs(self) -> bool {
        matches!(self, Self::TopologyTracker | Self::Registry)
    }

    /// Whether it reads the peers' view, and gets [`Notice::Changed`] when that changed.
    pub fn reads_view(self) -> bool {
        matches!(self, Self::TopologyTracker | Self::Registry)
    }

    /// Likewise the measurements of links.
    pub fn reads_measurements(self) -> bool {
        self == Self::TopologyTracker
    }
}

/// The links that are up. `L` tells the links of one peer apart.
#[derive(Debug)]
pub struct Links<L>(BTreeMap<NodeName, (L, Incarnation)>);

impl<L> Default for Links<L> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<L: PartialEq> Links<L> {
    /// A link to this life of a peer is up. An earlier one of the peer is gone, whatever else is heard of it.
    pub fn up<M>(&mut self, peer: NodeName, life: Incarnation, link: L) -> Vec<Notice<M>> {
        let earlier = self.0.insert(peer.clone(), (link, life));
        let down = earlier.map(|_| Notice::Down(peer.clone(), DownReason::LinkLost));
        down.into_iter().chain([Notice::Up(peer, life)]).collect()
    }

    /// Whether this link to the peer is up.
    pub fn is_up(&self, peer: &NodeName, link: &L) -> bool {
        self.0.get(peer).is_some_and(|(current, _)| current == link)
    }

    /// A link is gone.
    pub fn down<M>(&mut self, peer: &NodeName, link: &L, why: DownReason) -> Option<Notice<M>> {
        if !self.is_up(peer, link) {
            return None;
        }
        self.0.remove(peer);
        Some(Notice::Down(peer.clone(), why))
    }

    /// What a consumer is told that starts now.
    pub fn all<M>(&self) -> impl Iterator<Item = Notice<M>> {
        self.0.iter().map(|(peer, (_, life))| Notice::Up(peer.clone(), *life))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::event::Reason;
    use proptest::prelude::*;

    fn name(text: &str) -> NodeName {
        text.parse().expect("valid")
    }

    proptest! {
        /// Two peers with three links each that come and go as they like.
        #[test]
        fn each_peer_is_up_and_down_by_turns(steps in proptest::collection::vec((0..2usize, 0..3u8, 0..3u8), 0..40)) {
            let peers = [name("a@h"), name("b@h")];
            let (mut links, mut up) = (Links::default(), [None; 2]);
            for (peer, link, step) in steps {
                let who = peers[peer].clone();
                let news: Vec<Notice<u8>> = match step {
                    0 => links.up(who, Incarnation(u64::from(link)), link),
                    1 => links.down(&who, &link, DownReason::LinkLost).into_iter().collect(),
                    _ if links.is_up(&who, &link) => vec![Notice::Message(who, link)],
                    _ => vec![],
                };
                for news in news {
                    match news {
                        Notice::Up(who, life) => {
                            prop_assert_eq!(up[peer].replace(life), None);
                            prop_assert_eq!(who, peers[peer].clone());
                        }
                        Notice::Message(_, of) => prop_assert_eq!(up[peer], Some(Incarnation(u64::from(of)))),
                        Notice::Down(..) => prop_assert!(up[peer].take().is_some()),
                        Notice::Forgotten(_)
                        | Notice::Offline(_)
                        | Notice::Renewed(_)
                        | Notice::Revoked
                        | Notice::Equivocation(_)
                        | Notice::Changed => {
                            prop_assert!(false, "no news of a link");
                        }
                    }
                }
                let all: Vec<Notice<u8>> = links.all().collect();
                prop_assert_eq!(all.len(), up.iter().flatten().count());
            }
        }
    }

    #[test]
    fn an_event_reaches_whom_it_concerns_and_nobody_else() {
        let peer = || name("b@h");
        let heard = |event: &Event| -> Vec<_> {
            let all = Consumer::ALL.iter();
            all.filter_map(|it| Some((*it, it.concern::<()>(event)?))).collect()
        };
        let (monitor, tracker) = (Consumer::HeartbeatMonitor, Consumer::TopologyTracker);
        let forgotten = || Notice::Forgotten(peer());
        let event = Event::PeerForgotten { peer: peer(), author: None };
        let all = [monitor, tracker, Consumer::ChannelRouter].map(|it| (it, forgotten()));
        assert_eq!(heard(&event), all);
        let event = Event::PeerOffline { peer: peer(), reason: Reason::Crashed };
        assert_eq!(heard(&event), [(Consumer::ChannelRouter, Notice::Offline(peer()))]);
        let event = Event::CertificatesRevoked { certificates: 1, own: false };
        let revoked = [tracker, Consumer::Registry].map(|it| (it, Notice::Revoked));
        assert_eq!(heard(&event), revoked);
        assert_eq!(heard(&Event::PeerCleared { peer: peer() }), [(tracker, Notice::Changed)]);
        let event = Event::PeerSuspected { peer: peer(), phi: 8.0, missed: 3 };
        assert_eq!(heard(&event), [(tracker, Notice::Changed)]);
        assert_eq!(heard(&Event::PeerConnecting { peer: peer() }), []);
    }

    fn view(of: &str, status: Status) -> PeerView {
        let (address, incarnation) = (Some(([127, 0, 0, 1], 4697).into()), Incarnation(3));
        let (reason, cause, since) = (None, None, crate::proto::tests::start());
        PeerView { name: name(of), address, status, reason, cause, incarnation, since }
    }

    #[test]
    fn who_was_linked_and_is_looked_for_is_lost() {
        let [online, syncing] = ["a@h", "b@h"].map(name);
        let earlier = [
            view("a@h", Status::Online),
            view("b@h", Status::Syncing),
            view("c@h", Status::Offline),
            view("d@h", Status::Connecting),
            view("e@h", Status::Online),
        ];
        let cause = || "the link layer started again".to_owned();
        let all_sought = lost(&earlier[..4], |of| Some(view(of.as_str(), Status::Connecting)));
        assert_eq!(
            all_sought,
            [
                Event::LinkLost { peer: online.clone(), cause: cause() },
                Event::PeerConnecting { peer: online },
                Event::LinkLost { peer: syncing.clone(), cause: cause() },
                Event::PeerConnecting { peer: syncing },
                Event::PeerConnecting { peer: name("c@h") },
            ]
        );
        for now in [Some(Status::Online), Some(Status::Offline), None] {
            let announced = lost(&earlier[4..], |of| Some(view(of.as_str(), now?)));
            assert_eq!(announced, [], "{now:?}");
        }
    }

    #[test]
    fn who_had_not_left_is_looked_for_where_it_was() {
        let left = PeerView { reason: Some(Reason::Left), ..view("a@h", Status::Offline) };
        let nowhere = PeerView { address: None, ..view("b@h", Status::Connecting) };
        let earlier = [left, nowhere, view("c@h", Status::Offline)];
        let [hint] = recall(&earlier).collect::<Vec<_>>().try_into().expect("one of them");
        let membership::Input::Hint(contact, Source::Remembered) = hint else { panic!("{hint:?}") };
        assert_eq!((contact.name, contact.incarnation), (name("c@h"), Incarnation(3)));
    }

    #[test]
    fn who_is_forgotten_is_remembered_until_it_is_revived_or_a_peer() {
        let mut forgotten = Forgotten::new([(name("a@h"), Incarnation(1))]);
        let (b, life) = (name("b@h"), Incarnation(4));
        forgotten.asked(&Ask::Forget { name: b, life, known: true, author: None });
        let both = BTreeMap::from([(name("a@h"), Incarnation(1)), (name("b@h"), Incarnation(4))]);
        assert_eq!(forgotten.of_no_peer(&[view("c@h", Status::Online)]), both);
        let first = BTreeMap::from([(name("a@h"), Incarnation(1))]);
        assert_eq!(forgotten.of_no_peer(&[view("b@h", Status::Connecting)]), first);
        forgotten.asked(&Ask::Revive(name("b@h")));
        assert_eq!(forgotten.of_no_peer(&[]), first);
    }

    #[test]
    fn each_topic_has_one_consumer() {
        let mut topics = Consumer::ALL.map(Consumer::topic).to_vec();
        topics.sort();
        topics.dedup();
        assert_eq!(topics.len(), Consumer::ALL.len());
    }
}
