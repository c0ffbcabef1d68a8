//! What each fuzz target does with an input: one function for the fuzzer and for the ordinary test beside this file.
//!
//! Each returns whether the input was read as something, so that a test can tell that its inputs come that far.

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::Serialize;
use serde::de::DeserializeOwned;
use xpando_node::internals::actors::timer;
use xpando_node::internals::io::identity::enrol::Line;
use xpando_node::internals::proto::beacon::Beacon;
use xpando_node::internals::proto::capability::Capabilities;
use xpando_node::internals::proto::channel::session::{Ask, Session};
use xpando_node::internals::proto::channel::{
    Dialect, Encoded, Frame, Json, MAX_WORD, Payload, Say,
};
use xpando_node::internals::proto::enrol::{
    Answer, Host, MAX_HOSTS, NamePattern, Request, RequestId,
};
use xpando_node::internals::proto::frame::Control;
use xpando_node::internals::proto::gate::Gate;
use xpando_node::internals::proto::hello::Greeting;
use xpando_node::internals::proto::node::{Credential, Incarnation, KeyId, NodeName};
use xpando_node::internals::proto::outbox::{self, Records};
use xpando_node::internals::proto::registry::{self, Profile, Profiles, Registry};
use xpando_node::internals::proto::rows::{Input, Output, Row, State, Table, statement};
use xpando_node::internals::proto::seal::{Seal, Seals};
use xpando_node::internals::proto::topology::{self, Links, Topology};
use xpando_node::internals::proto::{codec, discovery, heartbeat, presence, talk};

use crate::bounded;

#[path = "../kit/seals.rs"]
mod seals;
pub(crate) use seals::{Toy, seal};

/// Longest word of an actor.
const WORD: usize = 64 * 1024;
/// The length before a greeting, in bytes.
const PREFIX: usize = 2;

/// A frame from any client of the channels, text in both dialects and binary: the reader neither panics nor takes memory,
/// what it reads keeps the bounds, and a text frame means the same when it is sent back.
pub(crate) fn channel_frame(input: &[u8]) -> bool {
    let bytes = Bytes::copy_from_slice(input);
    let texts =
        [Dialect::V1, Dialect::V2].map(|dialect| bounded(|| Frame::text(dialect, &bytes)).ok());
    for frame in texts.iter().flatten() {
        let Payload::Json(json) = &frame.payload else { panic!("a text frame carries text") };
        assert!(
            Json::read(json.as_bytes().clone()).is_some(),
            "a payload that is no JSON, or too deep"
        );
        let say = Say::Push(frame.join_ref.as_ref(), &frame.event, &frame.payload);
        let Some(Encoded::Text(text)) = say.encode(Dialect::V2, &frame.topic) else {
            panic!("no text")
        };
        let again = Frame::text(Dialect::V2, &text).expect("what was read can be sent");
        assert_eq!(
            (&again.join_ref, &again.topic, &again.event),
            (&frame.join_ref, &frame.topic, &frame.event)
        );
        assert_eq!(again.payload, frame.payload);
    }
    let mut read = false;
    for frame in texts.into_iter().flatten().chain(bounded(|| Frame::binary(&bytes)).ok()) {
        read = true;
        for word in [&frame.topic, &frame.event] {
            assert!((1..=MAX_WORD).contains(&word.len()), "a word of {} bytes", word.len());
        }
        let mut session = Session::new(Dialect::V2, 100);
        // Nothing is joined: a frame is answered, or is a join.
        assert!(matches!(session.hear(&frame), Ask::Answer(..) | Ask::Join(_, None)));
    }
    read
}

/// Requests for certificates from strangers, their answers, and what people paste: the readers neither panic nor take memory,
/// and what they read means the same when it is sent or written again.
pub(crate) fn enrol(input: &[u8]) -> bool {
    let mut read = false;
    if let Ok(request) = bounded(|| Request::decode(input)) {
        assert!(request.hosts.len() <= MAX_HOSTS);
        let again = request.encode().expect("what was decoded is encoded");
        assert_eq!(Request::decode(&again), Ok(request));
        read = true;
    }
    if let Ok(answer) = bounded(|| Answer::decode(input)) {
        let again = answer.encode().expect("what was decoded is encoded");
        assert_eq!(Answer::decode(&again), Ok(answer));
        read = true;
    }
    let Ok(text) = std::str::from_utf8(input) else { return read };
    if let Ok(line) = bounded(|| text.parse::<Line>()) {
        let again = line.to_string().parse::<Line>().expect("what was read is written");
        assert_eq!(again.to_string(), line.to_string());
        read = true;
    }
    if let Ok(host) = text.parse::<Host>() {
        assert_eq!(host.to_string().parse(), Ok(host));
        read = true;
    }
    if let Ok(pattern) = text.parse::<NamePattern>() {
        assert_eq!(pattern.to_string().parse(), Ok(pattern));
        read = true;
    }
    read | text.parse::<RequestId>().is_ok()
}

/// A datagram from anyone on the network: the decoder neither panics nor takes memory.
pub(crate) fn decode_beacon(input: &[u8]) -> bool {
    bounded(|| Beacon::decode(input).is_ok())
}

/// The first bytes of a link: the decoder neither panics nor takes memory, and what it accepts means the same when it is
/// sent again.
pub(crate) fn decode_hello(input: &[u8]) -> bool {
    let Ok(greeting) = bounded(|| Greeting::decode(input)) else { return false };
    let again = greeting.encode().expect("what was decoded within the cap is encoded within it");
    assert_eq!(Greeting::decode(&again[PREFIX..]), Ok(greeting));
    true
}

/// A peer's bytes on their way to ractor, in pieces of any size: the gate neither panics nor takes memory, never passes a
/// byte the peer did not send, and stays shut once it has shut.
pub(crate) fn gate(input: &[u8]) -> bool {
    let Some((&size, bytes)) = input.split_first() else { return false };
    let name: NodeName = "a@127.0.0.1".parse().expect("a valid name");
    let (now, mut read) = (timer::now(), false);
    for mut gate in [
        Gate::inbound(name.clone(), Capabilities::ALL),
        Gate::outbound(name.clone(), Capabilities::ALL),
    ] {
        let (mut rest, mut shut) = (bytes, false);
        for chunk in bytes.chunks(usize::from(size) + 1) {
            let mut out = Vec::new();
            let fed = bounded(|| gate.feed(chunk, now, &mut out));
            assert!(!shut || (fed.is_err() && out.is_empty()), "the gate opened again");
            shut = fed.is_err();
            rest = rest.strip_prefix(out.as_slice()).expect("what passes is what was sent");
        }
        read |= !shut;
    }
    read
}

/// Words of both anti-entropy tables from a hostile peer: what a machine sends because of one is bounded, and each row that
/// it takes is the peer's own, or proven by its maker's seal.
pub(crate) fn rows(input: &[u8]) -> bool {
    let [me, peer]: [NodeName; 2] = ["a@h", "b@h"].map(|name| name.parse().expect("valid"));
    let (now, rng) = (timer::now(), || StdRng::seed_from_u64(1));
    let life = Incarnation(7);
    let mut read = false;
    if let Ok(word) = codec::decode::<topology::Word>(input, WORD) {
        let seals = Box::new(Toy(me.clone()));
        let mut machine = Topology::new(me.clone(), Incarnation(1), 1, now, 0, rng(), seals);
        let mut out = Vec::new();
        machine.handle(Input::Linked(peer.clone(), life), now, &mut out);
        machine.handle(Input::Received(peer.clone(), word), now, &mut out);
        few(&out);
        machine.rows().for_each(|row| proven::<Links>(row));
        read = true;
    }
    if let Ok(word) = codec::decode::<registry::Word>(input, WORD) {
        let state = State::Live(Profile::default());
        let own =
            Row { origin: me.clone(), incarnation: Incarnation(1), version: 1, state, seal: None };
        let mut machine = Registry::new(own, [], now, 0, rng(), Box::new(Toy(me.clone())));
        let mut out = Vec::new();
        machine.handle(Input::Linked(peer.clone(), life), now, &mut out);
        machine.handle(Input::Received(peer.clone(), word), now, &mut out);
        few(&out);
        machine.rows().for_each(|row| proven::<Profiles>(row));
        read = true;
    }
    read
}

/// A word from one peer makes few.
fn few<V, C>(out: &[Output<V, C>]) {
    let sent = out.iter().filter(|it| matches!(it, Output::Send(..))).count();
    assert!(sent <= 2 * 1024, "{sent} words");
}

/// A row is of this node or its peer, or its maker's seal holds; likewise what it has of its origin.
fn proven<T: Table>(row: &Row<T::Value>) {
    let holds =
        |row: &Row<T::Value>| row.seal.as_ref() == Some(&seal(row.maker(), &statement::<T>(row)));
    let by_a_peer = ["a@h", "b@h"].contains(&row.maker().as_str());
    assert!(by_a_peer || holds(row), "{row:?} is not proven");
    if let Some(last) = row.ruling().and_then(|ruling| ruling.last.clone()) {
        let last = last.row(row.origin.clone());
        assert!(holds(&last), "{last:?} is not proven");
    }
}

/// All else that a peer sends: pieces, requests, broadcasts, and the words of the other actors.
pub(crate) fn words(input: &[u8]) -> bool {
    let mut read = Control::decode(input).is_ok() | outbox::start(input).is_ok();
    let mut records = Records::of_payload();
    while let Some(Ok(record)) = records.next(input) {
        assert!(record.end <= input.len(), "a message outside its piece");
    }
    read |= talk::read_calls(input).is_ok() | talk::read_bulk(input).is_ok();
    read |= means_the_same::<discovery::Word>(input);
    read |= means_the_same::<heartbeat::Word>(input);
    read | means_the_same::<presence::Word>(input)
}

/// What is read means the same when it is sent on.
fn means_the_same<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
    input: &[u8],
) -> bool {
    let Ok(word) = codec::decode::<T>(input, WORD) else { return false };
    let again = codec::encode(&word).expect("what was decoded is encoded");
    assert_eq!(codec::decode::<T>(&again, WORD), Ok(word));
    true
}
