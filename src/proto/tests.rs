//! What the unit tests of the machines share.

pub(crate) mod network;
#[path = "../../tests/kit/seals.rs"]
pub(crate) mod seals;

use crate::proto::node::{Credential, KeyId, NodeName};
use crate::proto::seal::{Seal, Seals};

/// A point in time for machines under test to count from.
#[expect(clippy::disallowed_methods, reason = "the one place where proto's tests get a start")]
pub(crate) fn start() -> std::time::Instant {
    std::time::Instant::now()
}
