//! The first bytes of a link: the decoder neither panics nor takes memory, and what it accepts
//! means the same when it is sent again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xpando_node::internals::proto::hello::Greeting;
use xpando_node_fuzz::bounded;

/// The length before a greeting, in bytes.
const PREFIX: usize = 2;

fuzz_target!(|body: &[u8]| {
    let Ok(greeting) = bounded(|| Greeting::decode(body)) else { return };
    let again = greeting.encode().expect("what was decoded within the cap is encoded within it");
    assert_eq!(Greeting::decode(&again[PREFIX..]), Ok(greeting));
});
