//! Words of both anti-entropy tables from a hostile peer: what a machine sends because of one is bounded, and no row of a
//! node that is not linked is taken without its maker's seal.
//!
//! `cargo fuzz run --sanitizer none rows -- -runs=1000000`, from the repository's root.
#![no_main]

use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use rand::SeedableRng;
use rand::rngs::StdRng;
use xpando_node::internals::proto::codec;
use xpando_node::internals::proto::node::{Incarnation, NodeName};
use xpando_node::internals::proto::registry::{self, Profile, Registry};
use xpando_node::internals::proto::rows::{Input, Output, Row, State};
use xpando_node::internals::proto::seal::{Seal, Seals};
use xpando_node::internals::proto::topology::{self, Topology};

#[path = "../../tests/kit/seals.rs"]
mod seals;
use seals::Toy;

const WORD: usize = 64 * 1024;

fuzz_target!(|input: &[u8]| {
    let (me, peer): (NodeName, NodeName) = ("a@h".parse().unwrap(), "b@h".parse().unwrap());
    let (now, rng) = (Instant::now(), || StdRng::seed_from_u64(1));
    if let Ok(word) = codec::decode::<topology::Word>(input, WORD) {
        let seals = Box::new(Toy(me.clone()));
        let mut machine = Topology::new(me.clone(), Incarnation(1), 1, now, 0, rng(), seals);
        let mut out = Vec::new();
        machine.handle(Input::Linked(peer.clone(), Incarnation(7)), now, &mut out);
        machine.handle(Input::Received(peer.clone(), word), now, &mut out);
        let sent = out.iter().filter(|it| matches!(it, Output::Send(..))).count();
        assert!(sent <= 2 * 1024, "{sent} words");
        for row in machine.rows() {
            assert!([&me, &peer].contains(&&row.origin), "{row:?} is not proven");
        }
    }
    if let Ok(word) = codec::decode::<registry::Word>(input, WORD) {
        let state = State::Live(Profile::default());
        let own = Row { origin: me.clone(), incarnation: Incarnation(1), version: 1, state, seal: None };
        let mut machine = Registry::new(own, [], now, 0, rng(), Box::new(Toy(me.clone())));
        let mut out = Vec::new();
        machine.handle(Input::Linked(peer.clone(), Incarnation(7)), now, &mut out);
        machine.handle(Input::Received(peer.clone(), word), now, &mut out);
        for row in machine.rows() {
            assert!([&me, &peer].contains(&row.maker()), "{row:?} is not proven");
        }
    }
});
