//! `cargo fuzz run --sanitizer none enrol -- -runs=1000000`, from the repository's root. What it does is in `bodies`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xpando_node_fuzz::bounded;

#[path = "../../tests/fuzz/bodies.rs"]
#[allow(dead_code, reason = "one target of several")]
mod bodies;

fuzz_target!(|input: &[u8]| {
    bodies::enrol(input);
});
