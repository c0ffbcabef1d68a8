//! Budgets: what one peer may make this node hold, in bytes of this node's memory.
//!
//! Each queue and table that a peer can fill has a bound here, counted in what an entry costs this node and not in what
//! it costs the peer to send. What exceeds a bound is refused, or ends the link as a fault of the peer; an honest node
//! keeps the same bounds as a sender, so that it never exceeds them. All together come to `TOTAL`: what lasts fits in
//! it, and of what passes (requests, answers, long messages) as much is taken as there is room beside.

/// What one peer may make this node hold, of all kinds together, in bytes.
pub(crate) const TOTAL: usize = 23 * 1024 * 1024;
/// Actors of one peer, of all its groups together.
pub const MAX_ACTORS: usize = 512;
/// Each is a task with a mailbox of its own here (9 to 10 kB, measured).
pub(crate) const ACTOR_COST: usize = 10 * 1024;
/// A membership of an actor in a group, beside the names of scope and group.
pub const MEMBERSHIP_COST: usize = 256;
/// Memberships of one peer's actors, in bytes.
pub const MEMBERSHIPS: usize = 1024 * 1024;
/// Topics, patterns and names of one node.
pub(crate) const MAX_INTERESTS: usize = 200_000;
/// Of each a digest is kept, with its place in a table.
pub const INTEREST_COST: usize = 23;
/// A watch, beside the name that is watched.
pub const WATCH_COST: usize = 256;
/// Watches of one peer, and the answers to them that wait to be sent, in bytes.
pub const WATCHES: usize = 2 * 1024 * 1024;
/// A request, beside its payload.
pub const REQUEST_COST: usize = 256;
/// Requests of one peer that are under way, in bytes, or one that is longer.
pub const REQUESTS: usize = 4 * 1024 * 1024;
/// Answers to one peer that are made or wait to be sent, in bytes, or one that is longer.
pub const ANSWERS: usize = 16 * 1024 * 1024;
/// Somebody's presence in a topic, beside topic, key and meta.
pub(crate) const PRESENCE_COST: usize = 400;
/// Presences of one node, in bytes.
pub(crate) const PRESENCES: usize = 10 * 1024 * 1024;
/// Where the messages on a topic go, beside the topic.
pub(crate) const ROUTE_COST: usize = 192;
/// Routes that are kept ready, in bytes.
pub(crate) const ROUTES: usize = 4 * 1024 * 1024;
/// Messages of one peer's actors that wait for the actors here, counted in portions.
pub const MAX_WORDS: usize = 64;
/// What of a message's bytes is one portion, begun or whole.
pub const WORD_PORTION: usize = 16 * 1024;
/// What a peer may hold beside its watches, for which there is always room.
pub const BESIDE_WATCHES: usize = TOTAL - WATCHES;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::lists::MAX_LIST;
    use crate::proto::outbox::{BOUNDS, MAX_MESSAGE};
    use std::fmt::Write as _;

    /// What lasts of one peer, at how many bytes of this node's memory, and what happens beyond.
    const LASTS: [(&str, usize, &str); 5] = [
        ("remote actors", MAX_ACTORS * ACTOR_COST, "link ends"),
        ("memberships in groups", MEMBERSHIPS, "link ends"),
        ("topics, patterns and names", MAX_INTERESTS * INTEREST_COST, "link ends"),
        ("watches and their answers", WATCHES, "link ends"),
        ("presences", PRESENCES, "ignored until its next link"),
    ];
    /// What passes, likewise, and in what room all else leaves.
    const PASSES: [(&str, usize, &str); 5] = [
        ("requests under way", REQUESTS, "refused as overloaded"),
        ("answers made or unsent", ANSWERS, "the request waits, until its deadline"),
        ("a long message of calls", MAX_MESSAGE, "refused as overloaded"),
        ("a long message of bulk", MAX_MESSAGE, "skipped"),
        ("a signed list", MAX_LIST, "skipped"),
    ];
    /// What is beside that.
    const BESIDE: [(&str, usize, &str); 3] = [
        ("messages for actors", MAX_WORDS * WORD_PORTION, "the link is not read"),
        (
            "messages to the peer that it does not read",
            BOUNDS[0] + BOUNDS[1] + BOUNDS[2],
            "refused as overloaded",
        ),
        ("routes of topics, of all peers together", ROUTES, "made anew"),
    ];

    fn sum(of: &[(&str, usize, &str)]) -> usize {
        of.iter().map(|(_, bytes, _)| bytes).sum()
    }

    #[test]
    fn the_document_has_the_bounds_and_together_they_are_what_was_promised() {
        assert!(sum(&LASTS) <= TOTAL, "{}", sum(&LASTS));
        assert!(TOTAL + sum(&BESIDE) <= 32 * 1024 * 1024);
        let mut table = String::new();
        let total = ("all of these together", TOTAL, "");
        for (what, bytes, beyond) in LASTS.into_iter().chain(PASSES).chain([total]).chain(BESIDE) {
            writeln!(table, "| {what} | {bytes} | {beyond} |").expect("a string takes everything");
        }
        let document = include_str!("../../docs/SECURITY.md");
        assert!(document.contains(&table), "docs/SECURITY.md has no longer:\n{table}");
    }
}
