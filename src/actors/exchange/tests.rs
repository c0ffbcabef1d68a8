//! Exchanges of several nodes that talk to each other, and to peers that break the rules.

use super::*;
use crate::actors::tests::{PATIENCE, counted, name};
use crate::proto::membership::LinkEnd;

mod broadcasts;
mod calls;
mod edges;
mod groups;
mod hostile;
mod kit;
mod slow;
