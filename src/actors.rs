//! Floor 3: the actors, and the tree they live in.
//!
//! ```text
//! root            rest_for_one
//! ├─ news         what happens and which links are up, told inside this node; messages to actors of others
//! ├─ records      one_for_one: nobody depends on it, so its crashes stay its own
//! │  └─ event_log     what happens, and this node's life in the store
//! ├─ cluster      rest_for_one
//! │  ├─ link          connections, handshakes, ractor_cluster's sessions
//! │  ├─ node_manager  who is a peer, whom to dial
//! │  ├─ heartbeat_monitor  who is alive
//! │  ├─ topology_tracker   who sees whom, in the whole cluster
//! │  ├─ registry      who the nodes are, remembered in the store
//! │  ├─ discovery     beacons, seeds, what peers tell: it feeds dials
//! │  └─ files         notices new lists, certificates and keys
//! └─ gateway      one_for_all
//!    └─ admin         the Unix socket for status and metrics
//! ```
//!
//! An actor is a [`Process`](supervisor::Process): it turns a message into an input of its pure
//! machine, performs the outputs and names its next deadline. It never waits. Commands go down
//! through handles, news goes up through `news`, reads go through `watch` views.
//!
//! `exchange` is no actor: broadcasts, requests and groups pass through it without a mailbox.
//!
//! Every actor file begins with its card: what it **owns**, **hears**, **says**, what it is **after a
//! restart**, and what it does **never**.

pub mod channel_router;
pub mod discovery;
pub mod event_log;
pub mod exchange;
pub mod files;
pub mod heartbeat_monitor;
pub mod history_log;
pub mod link;
pub mod lists;
pub mod news;
pub mod node_manager;
pub mod peers;
pub mod registry;
pub mod supervisor;
pub mod timer;
pub mod topology_tracker;

#[cfg(test)]
pub(crate) mod tests;
