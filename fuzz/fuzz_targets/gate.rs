//! A peer's bytes on their way to ractor, in pieces of any size: the gate neither panics nor takes
//! memory, never passes a byte the peer did not send, and stays shut once it has shut.
#![no_main]

use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use xpando_node::internals::proto::gate::Gate;
use xpando_node::internals::proto::node::NodeName;
use xpando_node_fuzz::bounded;

fuzz_target!(|input: &[u8]| {
    let Some((&size, bytes)) = input.split_first() else { return };
    let name: NodeName = "a@127.0.0.1".parse().expect("a valid name");
    let now = Instant::now();
    for mut gate in [Gate::inbound(name.clone()), Gate::outbound(name.clone())] {
        let (mut rest, mut shut) = (bytes, false);
        for chunk in bytes.chunks(usize::from(size) + 1) {
            let mut out = Vec::new();
            let fed = bounded(|| gate.feed(chunk, now, &mut out));
            assert!(!shut || (fed.is_err() && out.is_empty()), "the gate opened again");
            shut = fed.is_err();
            rest = rest.strip_prefix(out.as_slice()).expect("what passes is what was sent");
        }
    }
});
