//! The bad member: every word that a node may say, at the wrong time.

use std::net::SocketAddr;

use serde::Serialize;
use xpando_node::Bytes;
use xpando_node::internals::io::identity::Identity;
use xpando_node::internals::proto::codec;
use xpando_node::internals::proto::discovery;
use xpando_node::internals::proto::frame::Lane;
use xpando_node::internals::proto::hello::{Greeting, Hello, Refusal};
use xpando_node::internals::proto::hlc::Stamp;
use xpando_node::internals::proto::node::{Contact, Incarnation, NodeName};
use xpando_node::internals::proto::outbox::Outbox;
use xpando_node::internals::proto::registry::{self, Profile};
use xpando_node::internals::proto::rows::{Row, State};
use xpando_node::internals::proto::topology;

use crate::kit::stranger::{LinkPort, Stranger, hello};
use crate::kit::{Node, wall};

/// The version of the words between the actors of two nodes.
const WORDS: u8 = 2;
/// Contacts in one message, at most.
const CONTACTS: usize = 128;

/// A member of the cluster, in one life.
pub(crate) struct Member {
    identity: Identity,
    life: u64,
}

/// A link of the member, which lasts until the node wants ractor's handshake: five seconds.
pub(crate) struct Tie(Stranger);

impl Member {
    pub(crate) fn new(identity: Identity) -> Self {
        Self { identity, life: 0 }
    }

    fn port(&self, node: &Node) -> LinkPort<'_> {
        LinkPort { address: node.listen(), cluster: &self.identity }
    }

    fn hello(&self) -> Hello {
        Hello { incarnation: Incarnation(self.life), ..hello(&self.identity) }
    }

    /// Links with a node, in a life above its last one.
    pub(crate) fn link(&mut self, node: &Node) -> Tie {
        self.life += 1;
        let mut stranger = Stranger::connect(&self.port(node), Some(&self.identity));
        stranger.greet(&Greeting::Hello(self.hello()));
        let answer = stranger.hear().unwrap();
        assert!(matches!(answer, Greeting::Welcome(_)), "{answer:?}");
        stranger.greet(&Greeting::Confirm);
        Tie(stranger)
    }

    /// Dials a node, waits for its welcome, and refuses that with this.
    pub(crate) fn refuse(&mut self, node: &Node, refusal: impl FnOnce(&Hello) -> Refusal) {
        let mut stranger = Stranger::connect(&self.port(node), Some(&self.identity));
        stranger.greet(&Greeting::Hello(self.hello()));
        // A node that dials this member at the same time answers otherwise.
        if let Ok(Greeting::Welcome(hello)) = stranger.hear() {
            stranger.greet(&Greeting::Refuse(refusal(&hello)));
        }
    }
}

impl Tie {
    /// Says something to the actors of the node that listen to a topic.
    fn say(&mut self, topic: &str, word: &impl Serialize) {
        let stamp = Stamp { millis: wall(), count: 0 };
        let payload = codec::encode(word).unwrap();
        let words = codec::encode_versioned(WORDS, &(topic, stamp, payload)).unwrap();
        let mut outbox = Outbox::default();
        outbox.push(Lane::System, &[], &Bytes::from(words)).unwrap();
        while let Some(piece) = outbox.take() {
            self.0.send(&[piece.head.as_slice(), &piece.body].concat());
        }
    }

    /// A profile of a node in a life, as if it had stated that.
    pub(crate) fn profile(&mut self, of: &NodeName, life: u64, version: u64) {
        let forged = Profile::new(["forged".parse().unwrap()], [], wall()).unwrap();
        self.entry(of, life, version, State::Live(forged));
    }

    /// That somebody had a node forgotten in that life.
    pub(crate) fn tombstone(&mut self, of: &NodeName, life: u64, version: u64) {
        self.entry(of, life, version, State::Gone { at: wall() });
    }

    fn entry(&mut self, of: &NodeName, life: u64, version: u64, state: State<Profile>) {
        let row = Row { origin: of.clone(), incarnation: Incarnation(life), version, state };
        self.say("network:registry", &registry::Word::Rows(vec![row]));
    }

    /// That a node sees nobody.
    pub(crate) fn row(&mut self, of: &NodeName, life: u64, version: u64) {
        let (origin, incarnation) = (of.clone(), Incarnation(life));
        let row = Row { origin, incarnation, version, state: State::Live(topology::Cells::new()) };
        self.say("network:topology", &topology::Word::Rows(vec![row]));
    }

    /// That these nodes are linked with it.
    pub(crate) fn contacts(&mut self, contacts: &[(NodeName, SocketAddr, u64)]) {
        for some in contacts.chunks(CONTACTS) {
            let contact = |(name, address, life): &(NodeName, SocketAddr, u64)| Contact {
                name: name.clone(),
                address: *address,
                incarnation: Incarnation(*life),
            };
            let some: Vec<_> = some.iter().map(contact).collect();
            self.say("network:peers", &discovery::Word::Contacts(some));
        }
    }
}
