//! What each peer costs this node, over all its links: its readers and the actors that handle its words pay into it, and
//! what they keep of it is entered.
//!
//! Invariant: an account outlives the links of its peer for as long as anything of it counts, so that a new link does not
//! begin anew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::actors::timer;
use crate::io::usage;
use crate::proto::budget::BESIDE_WATCHES;
use crate::proto::node::NodeName;
use crate::proto::notices::Notices;
use crate::proto::processor::{self, Turn};

/// The account of one peer.
#[derive(Debug)]
pub(crate) struct Account {
    /// Nanoseconds that `machine` was not given yet.
    unpaid: AtomicU64,
    machine: Mutex<processor::Account>,
    /// Bytes of this node's memory.
    held: AtomicUsize,
    notices: Mutex<Notices>,
}

impl Account {
    pub(super) fn new() -> Self {
        let machine = Mutex::new(processor::Account::new(timer::now()));
        Self {
            unpaid: AtomicU64::new(0),
            machine,
            held: AtomicUsize::new(0),
            notices: Mutex::default(),
        }
    }

    /// Adds to what the peer has cost, in nanoseconds of a core.
    pub(crate) fn spend(&self, nanos: u64) {
        self.unpaid.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Whether, and when, more is read of the peer.
    pub(crate) fn turn(&self, now: Instant) -> Turn {
        let mut machine = self.machine.lock();
        machine.spend(self.unpaid.swap(0, Ordering::Relaxed), now);
        machine.turn(now)
    }

    /// Whether nothing that the peer has cost counts any more.
    pub(super) fn is_settled(&self, now: Instant) -> bool {
        self.machine.lock().is_settled(now)
    }

    /// Whether this cause is to be logged for the peer now.
    pub(crate) fn notable(&self, cause: &'static str) -> bool {
        let mut notices = self.notices.lock();
        notices.due(cause, timer::now()).is_some()
    }

    /// What is kept of the peer in one place, of which nothing is there yet.
    pub(crate) fn keep(self: &Arc<Self>) -> Kept {
        Kept { account: self.clone(), bytes: 0 }
    }

    /// Room for what may be refused; `None`: with all that is kept of the peer it would be too much.
    pub(crate) fn room(self: &Arc<Self>, bytes: usize) -> Option<Kept> {
        let mut kept = self.keep();
        kept.set(bytes);
        (self.held.load(Ordering::Relaxed) <= BESIDE_WATCHES).then_some(kept)
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

/// What is kept of a peer in one place; not any more when it is dropped.
#[derive(Debug)]
pub(crate) struct Kept {
    account: Arc<Account>,
    bytes: usize,
}

impl Kept {
    /// Enters how many bytes are kept there now.
    pub(crate) fn set(&mut self, bytes: usize) {
        self.account.held.fetch_add(bytes, Ordering::Relaxed);
        self.account.held.fetch_sub(std::mem::replace(&mut self.bytes, bytes), Ordering::Relaxed);
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// The accounts of all peers.
#[derive(Debug, Default)]
pub(super) struct Accounts(Mutex<BTreeMap<NodeName, Arc<Account>>>);

impl Accounts {
    /// What is kept of each peer, in bytes, beside its watches.
    pub(super) fn kept(&self) -> Vec<(NodeName, usize)> {
        let accounts = self.0.lock();
        let kept = |(peer, account): (&NodeName, &Arc<Account>)| {
            let bytes = account.held.load(Ordering::Relaxed);
            (bytes > 0).then(|| (peer.clone(), bytes))
        };
        accounts.iter().filter_map(kept).collect()
    }

    /// The account of a peer, a new one if it has none. Accounts that count no more are dropped.
    pub(super) fn of(&self, peer: &NodeName) -> Arc<Account> {
        let mut accounts = self.0.lock();
        let now = timer::now();
        accounts.retain(|_, account| Arc::strong_count(account) > 1 || !account.is_settled(now));
        accounts.entry(peer.clone()).or_insert_with(|| Arc::new(Account::new())).clone()
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
        assert!(matches!(account.turn(timer::now()), Turn::At(_)));
        assert!(account.notable("cause") && !account.notable("cause") && account.notable("other"));
        drop(account);
        assert!(matches!(accounts.of(&a).turn(timer::now()), Turn::At(_)));
        assert_eq!(accounts.of(&b).turn(timer::now()), Turn::Now);
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(accounts.of(&b));
        assert_eq!(accounts.0.lock().len(), 1, "the other one is forgotten");
    }

    #[test]
    fn what_may_be_refused_has_the_room_that_all_else_leaves() {
        let account = Arc::new(Account::new());
        let mut lasting = account.keep();
        lasting.set(BESIDE_WATCHES - 10);
        assert!(account.room(11).is_none());
        let room = account.room(10).expect("as much as is left");
        assert!(account.room(1).is_none());
        drop(room);
        lasting.set(BESIDE_WATCHES - 20);
        let rooms = [account.room(10), account.room(10)];
        assert!(rooms.iter().all(Option::is_some) && account.room(1).is_none());
        drop((lasting, rooms));
        assert_eq!(account.held.load(Ordering::Relaxed), 0);
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
