//! The bad member: every word that a node may say, at the wrong time.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;
use xpando_node::Bytes;
use xpando_node::internals::io::identity::Identity;
use xpando_node::internals::io::seals::NodeSeals;
use xpando_node::internals::proto::codec;
use xpando_node::internals::proto::discovery;
use xpando_node::internals::proto::event::{Author, Operator, Status};
use xpando_node::internals::proto::frame::{self, Control, Lane};
use xpando_node::internals::proto::hello::{Greeting, Hello, Refusal};
use xpando_node::internals::proto::hlc::Stamp;
use xpando_node::internals::proto::lists::Marks;
use xpando_node::internals::proto::node::{Contact, Incarnation, NodeName};
use xpando_node::internals::proto::outbox::{self, Outbox, Records};
use xpando_node::internals::proto::registry::{self, Profile, Profiles, Ruling};
use xpando_node::internals::proto::rows::{Row, State, Table, statement};
use xpando_node::internals::proto::seal::Seals;
use xpando_node::internals::proto::talk::{self, Calls, Outcome};
use xpando_node::internals::proto::topic::Name;
use xpando_node::internals::proto::topology::{self, Cell, Links};

use crate::kit::stranger::{LinkPort, Stranger, hello};
use crate::kit::{Node, wall};
use crate::ractor;

/// The version of the words between the actors of two nodes.
const WORDS: u8 = 2;
/// Contacts in one message, at most.
const CONTACTS: usize = 128;

/// A member of the cluster, in one life.
pub(crate) struct Member {
    identity: Arc<Identity>,
    life: u64,
}

/// A link of the member. It lasts until the node wants ractor's handshake, five seconds, or its beats answered.
pub(crate) struct Tie {
    stranger: Stranger,
    seals: NodeSeals,
    name: NodeName,
    life: Incarnation,
    /// The node has hung up, or reads no more.
    over: bool,
    /// What is said is gathered here, and not sent.
    gathered: Option<Vec<u8>>,
}

impl Member {
    pub(crate) fn new(identity: Identity) -> Self {
        Self { identity: Arc::new(identity), life: 0 }
    }

    /// One whose next link is in that life.
    pub(crate) fn in_life(identity: Identity, life: u64) -> Self {
        Self { identity: Arc::new(identity), life: life - 1 }
    }

    /// Says hello to a node; its answer.
    pub(crate) fn greet(&mut self, node: &Node) -> Greeting {
        self.life += 1;
        let mut stranger = Stranger::connect(&self.port(node), Some(&self.identity));
        stranger.greet(&Greeting::Hello(self.hello()));
        stranger.hear().unwrap()
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
        self.link_again(node)
    }

    /// Links with a node, as one that takes signed lists and has none.
    pub(crate) fn link_with_lists(&mut self, node: &Node) -> Tie {
        self.life += 1;
        self.link_as(node, Hello { lists: Some(Marks::default()), ..self.hello() })
    }

    /// Links with a node in the life of its last link.
    pub(crate) fn link_again(&self, node: &Node) -> Tie {
        self.link_as(node, self.hello())
    }

    fn link_as(&self, node: &Node, hello: Hello) -> Tie {
        let mut stranger = Stranger::connect(&self.port(node), Some(&self.identity));
        stranger.greet(&Greeting::Hello(hello));
        let answer = stranger.hear().unwrap();
        assert!(matches!(answer, Greeting::Welcome(_)), "{answer:?}");
        stranger.greet(&Greeting::Confirm);
        let (seals, name) = (NodeSeals::new(self.identity.clone()), self.identity.name().clone());
        Tie { stranger, seals, name, life: Incarnation(self.life), over: false, gathered: None }
    }

    /// Links with a node, and goes through ractor's handshake as well.
    pub(crate) fn link_ractor(&mut self, node: &Node) -> Tie {
        let mut tie = self.link(node);
        ractor::enter(&mut tie.stranger, &self.identity);
        tie
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

/// A number as messages have it.
fn varint(out: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

impl Tie {
    /// Sends a word to the actors of the node that listen to a topic.
    pub(crate) fn publish(&mut self, topic: &str, word: &impl Serialize) {
        let stamp = Stamp { millis: wall(), count: 0 };
        let payload = codec::encode(word).unwrap();
        let words = codec::encode_versioned(WORDS, &(topic, stamp, payload)).unwrap();
        let mut outbox = Outbox::default();
        outbox.push(Lane::System, &[], &Bytes::from(words)).unwrap();
        while let Some(piece) = outbox.take() {
            self.send(&[piece.head.as_slice(), &piece.body].concat());
        }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        if let Some(gathered) = &mut self.gathered {
            return gathered.extend_from_slice(bytes);
        }
        self.over = self.over || self.stranger.try_send(bytes).is_err();
    }

    /// Whether the node has hung up.
    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    /// What would be sent, to be sent later.
    pub(crate) fn gathered(&mut self, says: impl FnOnce(&mut Self)) -> Vec<u8> {
        self.gathered = Some(Vec::new());
        says(self);
        self.gathered.take().unwrap()
    }

    /// A piece of a lane.
    pub(crate) fn piece(&mut self, lane: Lane, payload: &[u8]) {
        let header = frame::header(lane, payload.len()).unwrap();
        self.send(&[&header, payload].concat());
    }

    /// Whole messages of a lane, as many in a piece as fit.
    pub(crate) fn messages(&mut self, lane: Lane, messages: impl IntoIterator<Item = Vec<u8>>) {
        let mut piece = vec![0];
        for message in messages {
            if piece.len() + message.len() + 3 > frame::MAX_PAYLOAD {
                self.piece(lane, &std::mem::replace(&mut piece, vec![0]));
            }
            varint(&mut piece, message.len());
            piece.extend_from_slice(&message);
        }
        if piece.len() > 1 {
            self.piece(lane, &piece);
        }
    }

    /// The beginning of a long message with this head, and more of it, up to so many bytes.
    pub(crate) fn begin_message(&mut self, lane: Lane, head: &[u8], total: usize, sent: usize) {
        let mut piece = vec![1];
        varint(&mut piece, total);
        piece.extend_from_slice(head);
        piece.resize(60_000, 0);
        self.piece(lane, &piece);
        piece = vec![0; 60_000];
        piece[0] = 2;
        for _ in 1..sent / piece.len() {
            self.piece(lane, &piece);
        }
    }

    /// Requests of a name, numbered from 0.
    pub(crate) fn requests(&mut self, name: &str, payload: &[u8], many: u64) {
        let name: Name = name.parse().unwrap();
        let request = |call| {
            let mut out = Vec::new();
            talk::request(&mut out, call, 60_000, &name);
            [out.as_slice(), payload].concat()
        };
        self.messages(Lane::Calls, (0..many).map(request));
    }

    /// Answers the next request of a name, and beats before it.
    pub(crate) fn answers(&mut self, name: &str, payload: &[u8]) {
        loop {
            let (lane, piece) = self.stranger.hear_piece().unwrap();
            if lane == Lane::Control
                && let Ok(Some(Control::Ping(number))) = Control::decode(&piece)
            {
                self.piece(Lane::Control, &Control::Pong(number).encode().unwrap());
            }
            if lane != Lane::Calls || piece[0] != 0 {
                continue;
            }
            let mut records = Records::of_payload();
            while let Some(range) = records.next(&piece) {
                let asked = talk::read_calls(&piece[range.unwrap()]).unwrap();
                if let Calls::Request { call, name: asked, .. } = asked
                    && asked.as_str() == name
                {
                    let mut head = Vec::new();
                    talk::reply(&mut head, call, Outcome::Replied);
                    let mut outbox = Outbox::default();
                    outbox.push(Lane::Calls, &head, &Bytes::copy_from_slice(payload)).unwrap();
                    while let Some(piece) = outbox.take() {
                        self.send(&[piece.head.as_slice(), &piece.body].concat());
                    }
                    return;
                }
            }
        }
    }

    /// A frame for ractor's session.
    pub(crate) fn control(&mut self, control: ractor::Control) {
        let frame = ractor::frame(control);
        for piece in frame.chunks(60_000) {
            self.piece(Lane::Ractor, piece);
        }
    }

    /// Messages of bulk, which wait for the credit that they need.
    pub(crate) fn broadcasts(&mut self, messages: impl Iterator<Item = Vec<u8>>) {
        let mut untaken = 0;
        let mut messages = messages.peekable();
        while messages.peek().is_some() && !self.over {
            while untaken > outbox::WINDOW / 2 {
                match self.stranger.hear_piece() {
                    Ok((Lane::Control, payload)) => {
                        if let Ok(Some(Control::Credit(bytes))) = Control::decode(&payload) {
                            untaken -= bytes as usize;
                        }
                    }
                    Ok(_) => {}
                    Err(_gone) => return,
                }
            }
            let some: Vec<_> = messages.by_ref().take(250).collect();
            untaken += some.iter().map(|it| it.len() + 2).sum::<usize>() + 1;
            self.messages(Lane::Bulk, some);
        }
    }

    /// A profile of a node in a life, as if it had stated that.
    pub(crate) fn profile(&mut self, of: &NodeName, life: u64, version: u64) {
        let forged = Profile::new(["forged".parse().unwrap()], [], wall()).unwrap();
        self.entry(of, life, version, State::Live(forged));
    }

    /// A profile of its own, in the life that it is in.
    pub(crate) fn own_profile(&mut self) {
        let (name, life) = (self.name.clone(), self.life.0);
        self.profile(&name, life, 1);
    }

    /// That somebody had a node forgotten in that life.
    pub(crate) fn tombstone(&mut self, of: &NodeName, life: u64, version: u64) {
        let author = Author::new(self.name.clone(), Operator::local(0));
        let ruling = Ruling { forgotten: true, at: wall(), author, last: None };
        self.entry(of, life, version, State::Ruled(Box::new(ruling)));
    }

    fn entry(&mut self, of: &NodeName, life: u64, version: u64, state: State<Profile>) {
        let (origin, incarnation) = (of.clone(), Incarnation(life));
        let row = Row { origin, incarnation, version, state, seal: None };
        let row = self.sealed::<Profiles>(row);
        self.publish("network:registry", &registry::Word::Rows(vec![row]));
    }

    /// That a node sees nobody.
    pub(crate) fn row(&mut self, of: &NodeName, life: u64, version: u64) {
        let (origin, incarnation) = (of.clone(), Incarnation(life));
        let state = State::Live(topology::Cells::new());
        let row = Row { origin, incarnation, version, state, seal: None };
        let row = self.sealed::<Links>(row);
        self.publish("network:topology", &topology::Word::Rows(vec![row]));
    }

    /// That this member itself sees these.
    pub(crate) fn cells(&mut self, nodes: impl Iterator<Item = NodeName>) {
        let (state, since) = (Status::Online, wall());
        let cell = Cell { state, suspect: false, rtt: None, phi: 0, since, reason: None };
        let (origin, incarnation) = (self.name.clone(), self.life);
        let state = State::Live(nodes.map(|node| (node, cell.clone())).collect());
        let row = Row { origin, incarnation, version: 9, state, seal: None };
        let row = self.sealed::<Links>(row);
        self.publish("network:topology", &topology::Word::Rows(vec![row]));
    }

    /// With the only seal that it can make: its own.
    fn sealed<T: Table>(&mut self, row: Row<T::Value>) -> Row<T::Value> {
        Row { seal: self.seals.make(&statement::<T>(&row)), ..row }
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
            self.publish("network:peers", &discovery::Word::Contacts(some));
        }
    }
}
