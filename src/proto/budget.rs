//! Budgets: what one peer may make this node hold, in bytes of this node's memory.
//!
//! Each queue and table that a peer can fill has a bound here, counted in what an entry costs this node and not in what
//! it costs the peer to send. What exceeds a bound is refused, or ends the link as a fault of the peer; an honest node
//! keeps the same bounds as a sender, so that it never exceeds them.

/// Actors of one peer, of all its groups together: each is a task with a mailbox of its own here (9 to 10 kB, measured).
pub const MAX_ACTORS: usize = 1024;
/// A membership of an actor in a group, beside the names of scope and group.
pub const MEMBERSHIP_COST: usize = 256;
/// Memberships of one peer's actors, in bytes.
pub const MEMBERSHIPS: usize = 2 * 1024 * 1024;
/// Topics, patterns and names of one node: of each a digest is kept, with its place in a table 20 bytes.
pub(crate) const MAX_INTERESTS: usize = 900_000;
/// A watch, beside the name that is watched.
pub const WATCH_COST: usize = 256;
/// Watches of one peer, and the answers to them that wait to be sent, in bytes.
pub const WATCHES: usize = 20 * 1024 * 1024;
/// A request, beside its payload.
pub const REQUEST_COST: usize = 256;
/// Requests of one peer that are under way, in bytes, or one that is longer.
pub const REQUESTS: usize = 4 * 1024 * 1024;
/// Answers to one peer that are made or wait to be sent, in bytes, or one that is longer.
pub const ANSWERS: usize = 16 * 1024 * 1024;
/// Somebody's presence in a topic, beside topic, key and meta.
pub(crate) const PRESENCE_COST: usize = 400;
/// Presences of one node, in bytes; of a peer twice that while they are read anew.
pub(crate) const PRESENCES: usize = 16 * 1024 * 1024;
/// Where the messages on a topic go, beside the topic.
pub(crate) const ROUTE_COST: usize = 192;
/// Routes that are kept ready, in bytes.
pub(crate) const ROUTES: usize = 24 * 1024 * 1024;
/// Messages of one peer's actors that wait for the actors here.
pub const MAX_WORDS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::frame::MAX_PAYLOAD;
    use crate::proto::outbox::MAX_MESSAGE;
    use std::fmt::Write as _;

    /// A remote actor, in bytes.
    const ACTOR_COST: usize = 10 * 1024;
    /// A digest with its place in a table, in bytes.
    const INTEREST_COST: usize = 20;

    /// What is bounded of one peer, at how many bytes of this node's memory, and what happens beyond.
    const PER_PEER: [(&str, usize, &str); 11] = [
        ("remote actors", MAX_ACTORS * ACTOR_COST, "link ends"),
        ("memberships in groups", MEMBERSHIPS, "link ends"),
        ("topics, patterns and names", MAX_INTERESTS * INTEREST_COST, "link ends"),
        ("watches and their answers", WATCHES, "link ends"),
        ("requests under way", REQUESTS, "refused as overloaded"),
        ("answers made or unsent", ANSWERS, "the request waits, until its deadline"),
        ("a long message of calls", MAX_MESSAGE, "link ends"),
        ("a long message of bulk", MAX_MESSAGE, "link ends"),
        ("messages for actors", MAX_WORDS * MAX_PAYLOAD, "the link is not read"),
        ("presences", 2 * PRESENCES, "ignored until its next link"),
        ("routes of topics, of all peers together", ROUTES, "made anew"),
    ];

    #[test]
    fn the_document_has_the_bounds_and_none_is_larger_than_promised() {
        let mut table = String::new();
        for (what, bytes, beyond) in PER_PEER {
            assert!(bytes <= 32 * 1024 * 1024, "{what}");
            writeln!(table, "| {what} | {bytes} | {beyond} |").expect("a string takes everything");
        }
        let document = include_str!("../../docs/SECURITY.md");
        assert!(document.contains(&table), "docs/SECURITY.md has no longer:\n{table}");
    }
}
