//! The token of a long-polling session, which a client takes from each answer and shows in its next request.
//!
//! `<32 hexadecimal digits>~<the home's name, Base64>~<how many answers with messages the client has>`: which session, of
//! which node, and what was read. It has no full stop, by which bearers' tokens are told.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use crate::proto::node::NodeName;

/// A token, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ticket<'a> {
    /// What of it is the session's own.
    pub(super) session: &'a str,
    /// The node that has the session.
    pub(super) home: NodeName,
    /// Answers with messages that the client has taken.
    pub(super) taken: u64,
}

/// What is the session's own in the tokens of a new session of this node.
pub(super) fn session(home: &NodeName) -> String {
    format!("{:032x}~{}", rand::random::<u128>(), BASE64_URL_SAFE_NO_PAD.encode(home.as_str()))
}

/// The token with which so many answers were taken.
pub(super) fn text(session: &str, taken: u64) -> String {
    format!("{session}~{taken}")
}

impl<'a> Ticket<'a> {
    /// What a token says; `None` where it is none of a session.
    pub(super) fn read(token: &'a str) -> Option<Self> {
        let (session, taken) = token.rsplit_once('~')?;
        let (number, home) = session.split_once('~')?;
        let sound = number.len() == 32 && number.bytes().all(|byte| byte.is_ascii_hexdigit());
        let home = BASE64_URL_SAFE_NO_PAD.decode(home).ok().filter(|_| sound)?;
        let home = std::str::from_utf8(&home).ok()?.parse().ok()?;
        Some(Self { session, home, taken: taken.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_what_was_put_into_it_and_no_other_text_says_anything() {
        for name in ["a@10.0.0.1", "node-7@h", "~@h", "x?>@h"] {
            let Ok(home) = name.parse::<NodeName>() else { continue };
            let session = session(&home);
            let token = text(&session, 17);
            assert!(!token.contains('.'), "{token}");
            assert_eq!(Ticket::read(&token), Some(Ticket { session: &session, home, taken: 17 }));
        }
        let number = "0".repeat(32);
        for none in ["", "~", "~~0", &number, "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ4In0.c2ln"] {
            assert_eq!(Ticket::read(none), None, "{none}");
        }
        for none in ["~", "~!~0", "~YUBo~", "~YUBo~x", "~YUBo", "~YUBo~-1"] {
            assert_eq!(Ticket::read(&format!("{number}{none}")), None, "{none}");
        }
        assert!(Ticket::read(&format!("{number}~YUBo~0")).is_some(), "a@h");
        assert_eq!(Ticket::read("00~YUBo~0"), None, "too short");
    }
}
