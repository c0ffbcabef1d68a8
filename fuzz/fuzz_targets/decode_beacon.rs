//! A datagram from anyone on the network: the decoder neither panics nor takes memory.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xpando_node::internals::proto::beacon::Beacon;
use xpando_node_fuzz::bounded;

fuzz_target!(|datagram: &[u8]| {
    // A beacon or an error: both are answers, and a refusal is the usual one.
    drop(bounded(|| Beacon::decode(datagram)));
});
