//! What is known of the key sets of others that are fetched for a node.

use std::pin::Pin;
use std::time::SystemTime;

use super::Look;

/// What is being fetched. It comes to an end by itself.
pub type Fetch = Pin<Box<dyn Future<Output = Fetched> + Send>>;

/// What became of a fetch.
#[derive(Debug)]
pub struct Fetched {
    /// Where the set is.
    pub url: String,
    /// Whether it is another set than before; the error says why there is none.
    pub found: Result<Look<()>, String>,
    /// Why it is not on disk, for the next life of the node.
    pub not_kept: Option<String>,
}

/// How it stands with a key set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySetState {
    /// Where it is.
    pub url: String,
    /// How many of its keys count; 0 while there is no set.
    pub keys: usize,
    /// When it was fetched last; `None`: it is from disk, or there is none.
    pub fetched: Option<SystemTime>,
    /// Why the last fetch failed.
    pub error: Option<String>,
}
