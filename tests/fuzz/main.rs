//! The fuzz targets without a fuzzer: the same functions, on random bytes and on changed valid inputs, the same each time.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on ends here, and says what it saw"
)]

mod bodies;
mod valid;

use std::collections::BTreeSet;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Inputs of each target.
const INPUTS: usize = 4000;

/// A target: its name, what it does, and valid inputs for it.
type Target = (&'static str, fn(&[u8]) -> bool, fn() -> Vec<Vec<u8>>);

const TARGETS: [Target; 7] = [
    ("channel_frame", bodies::channel_frame, valid::channel_frames),
    ("decode_beacon", bodies::decode_beacon, valid::beacons),
    ("decode_hello", bodies::decode_hello, valid::greetings),
    ("enrol", bodies::enrol, valid::enrolments),
    ("gate", bodies::gate, valid::frames),
    ("rows", bodies::rows, valid::rows),
    ("words", bodies::words, valid::words),
];

/// Under the fuzzer, what it holds is counted.
fn bounded<T>(work: impl FnOnce() -> T) -> T {
    work()
}

/// A few bytes of a valid input are others, more, fewer, or of another one.
fn changed(all: &[Vec<u8>], rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = all[rng.random_range(0..all.len())].clone();
    for _ in 0..rng.random_range(1..=4) {
        let at = rng.random_range(0..=bytes.len());
        match rng.random_range(0..6) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, rng.random()),
            2 => {
                let other = &all[rng.random_range(0..all.len())];
                bytes.truncate(at);
                bytes.extend_from_slice(&other[rng.random_range(0..=other.len())..]);
            }
            3 => bytes.extend_from_within(at..),
            _ if at == bytes.len() => {}
            4 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][rng.random_range(0..5)],
            _ => bytes[at] ^= 1 << rng.random_range(0..8),
        }
        bytes.truncate(8 * 1024);
    }
    bytes
}

#[test]
fn each_target_takes_what_is_valid_and_survives_what_is_not() {
    for (name, target, valid) in TARGETS {
        let (valid, mut rng) = (valid(), StdRng::seed_from_u64(7));
        for (at, input) in valid.iter().enumerate() {
            assert!(target(input), "{name}: valid input {at} is not read");
        }
        let mut read = 0;
        for _ in 0..INPUTS / 2 {
            read += usize::from(target(&changed(&valid, &mut rng)));
            let mut random = vec![0; rng.random_range(0..600)];
            rng.fill(&mut random[..]);
            target(&random);
        }
        assert!(read > INPUTS / 50, "{name}: {read} changed inputs were read as something");
    }
}

#[test]
fn each_fuzz_target_calls_its_function() {
    let home = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/fuzz_targets");
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(home).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(&format!("bodies::{name}(input)")), "{name}");
        found.insert(name);
    }
    assert_eq!(found, TARGETS.map(|(name, ..)| name.to_owned()).into());
    let manifest = include_str!("../../fuzz/Cargo.toml");
    assert!(found.iter().all(|name| manifest.contains(&format!("name = \"{name}\""))));
}
