//! What each peer costs this node, over all its links: its readers and the actors that handle its words pay into it.
//!
//! Invariant: an account outlives the links of its peer for as long as anything of it counts, so that a new link does not
//! begin anew.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::actors::timer;
use crate::io::usage;
use crate::proto::node::NodeName;
use crate::proto::processor::{self, Turn};

/// The account of one peer.
#[derive(Debug)]
pub(crate) struct Account {
    /// Nanoseconds that are not in the machine yet.
    unpaid: AtomicU64,
    machine: Mutex<processor::Account>,
}

impl Account {
    pub(super) fn new() -> Self {
        let machine = Mutex::new(processor::Account::new(timer::now()));
        Self { unpaid: AtomicU64::new(0), machine }
    }

    /// So many nanoseconds of a core.
    pub(crate) fn spend(&self, nanos: u64) {
        self.unpaid.fetch_add(nanos, Ordering::Relaxed);
    }

    /// When the peer is read on, and whether that is to be logged.
    pub(crate) fn turn(&self, now: Instant) -> (Turn, bool) {
        let mut machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        machine.spend(self.unpaid.swap(0, Ordering::Relaxed), now);
        let turn = machine.turn(now);
        (turn, turn != Turn::Now && machine.is_notable(now))
    }

    /// Pays for what this thread does until the result is dropped.
    pub(crate) fn measure(self: &Arc<Self>) -> Measured {
        Measured { account: self.clone(), began: usage::thread() }
    }
}

/// What a thread does for a peer.
#[must_use = "it ends when this is dropped"]
#[derive(Debug)]
pub(crate) struct Measured {
    account: Arc<Account>,
    began: Duration,
}

impl Drop for Measured {
    fn drop(&mut self) {
        let took = usage::thread().saturating_sub(self.began);
        self.account.spend(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }
}

/// The accounts of all peers.
#[derive(Debug, Default)]
pub(super) struct Accounts(Mutex<HashMap<NodeName, Arc<Account>>>);

impl Accounts {
    /// That of a peer.
    pub(super) fn of(&self, peer: &NodeName) -> Arc<Account> {
        let mut accounts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = timer::now();
        accounts.retain(|_, account| Arc::strong_count(account) > 1 || !account.is_settled(now));
        accounts.entry(peer.clone()).or_insert_with(|| Arc::new(Account::new())).clone()
    }
}

impl Account {
    pub(super) fn is_settled(&self, now: Instant) -> bool {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner).is_settled(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_new_link_goes_on_with_the_account_until_nothing_of_it_counts() {
        let accounts = Accounts::default();
        let [a, b] = ["a@h", "b@h"].map(|name| name.parse::<NodeName>().expect("valid"));
        let account = accounts.of(&a);
        account.spend(1_000_000_000);
        assert!(matches!(account.turn(timer::now()), (Turn::At(_), true)));
        drop(account);
        assert!(matches!(accounts.of(&a).turn(timer::now()), (Turn::At(_), false)));
        assert_eq!(accounts.of(&b).turn(timer::now()), (Turn::Now, false));
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(accounts.of(&b));
        assert_eq!(accounts.0.lock().expect("sound").len(), 1, "the other one is forgotten");
    }

    #[test]
    fn what_a_thread_does_is_paid_for() {
        let account = Arc::new(Account::new());
        let measured = account.measure();
        let began = usage::thread();
        while usage::thread() - began < Duration::from_millis(2) {}
        drop(measured);
        assert!(account.unpaid.load(Ordering::Relaxed) >= 2_000_000);
    }
}
