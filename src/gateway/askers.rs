//! Which node that asks this one is answered next: each one question at a time.
//!
//! Invariant: no more than [`WAITING`] questions of a node wait, so that one that asks without end leaves the others their
//! places.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::Mutex as Turn;

use crate::actors::exchange::HandlerError;
use crate::actors::timer;
use crate::proto::node::NodeName;

/// After what took a thread some time for another node, so many times as long nothing is done for it.
pub(super) const IDLE: u32 = 5;
/// Questions of one node that wait: an eighth of what may be under way of one name.
const WAITING: usize = 128;

/// When each node that asks is answered next.
#[derive(Default)]
pub(super) struct Askers(Mutex<HashMap<NodeName, Arc<Turn<Instant>>>>);

impl Askers {
    /// The turn of one, which it has while it holds the lock. The next question is answered at the time in it.
    ///
    /// # Errors
    /// Too many of its questions wait.
    pub(super) fn turn(&self, node: &NodeName) -> Result<Arc<Turn<Instant>>, HandlerError> {
        let mut askers = self.0.lock();
        if !askers.contains_key(node) {
            // Those whose time has come are as good as new ones.
            let now = timer::now();
            let due = |turn: &Turn<Instant>| turn.try_lock().is_ok_and(|next| *next <= now);
            askers.retain(|_, turn| Arc::strong_count(turn) > 1 || !due(turn));
        }
        let turn = askers.entry(node.clone()).or_insert_with(|| Arc::new(Turn::new(timer::now())));
        // Each question that waits holds its turn.
        if Arc::strong_count(turn) > WAITING {
            return Err("too many questions at once".into());
        }
        Ok(turn.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_that_asks_without_end_waits_in_a_bounded_number_of_places() {
        let askers = Askers::default();
        let [a, b]: [NodeName; 2] = ["a@h", "b@h"].map(|name| name.parse().expect("valid"));
        let mut turns: Vec<_> = (0..1000).map_while(|_| askers.turn(&a).ok()).collect();
        assert_eq!(turns.len(), WAITING);
        assert!(askers.turn(&b).is_ok(), "another one");
        turns.pop();
        turns.push(askers.turn(&a).expect("one has ended"));
        assert!(askers.turn(&a).is_err());
    }
}
