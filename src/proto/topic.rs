//! Topics: colon-separated names of what is talked about, such as `network:peers`.
//!
//! Invariant: a [`Topic`] that exists is 1–255 bytes of printable UTF-8 without spaces.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest topic, in bytes.
pub const MAX_TOPIC: usize = 255;

/// A topic of the door between nodes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Topic(Arc<str>);

/// Why a text is not a topic. Nothing changed; whoever supplied it must correct it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a topic has 1 to {MAX_TOPIC} bytes, without spaces or control characters")]
pub struct TopicError;

impl Topic {
    /// Addresses of peers, as nodes tell them to each other.
    #[must_use]
    pub fn network_peers() -> Self {
        Self("network:peers".into())
    }

    /// Questions and answers about peers that one node does not hear.
    #[must_use]
    pub fn node_heartbeat() -> Self {
        Self("node:heartbeat".into())
    }

    /// Rows of the link matrix.
    #[must_use]
    pub fn network_topology() -> Self {
        Self("network:topology".into())
    }

    /// The topic as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Topic {
    type Error = TopicError;

    fn try_from(text: String) -> Result<Self, TopicError> {
        let fits = (1..=MAX_TOPIC).contains(&text.len());
        let plain = !text.chars().any(|c| c.is_whitespace() || c.is_control());
        if fits && plain { Ok(Self(text.into())) } else { Err(TopicError) }
    }
}

impl From<Topic> for String {
    fn from(topic: Topic) -> Self {
        topic.0.as_ref().to_owned()
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_short_and_plain() {
        assert!(Topic::try_from("room:42".to_owned()).is_ok());
        for bad in [String::new(), "a b".into(), "a\n".into(), "x".repeat(256)] {
            assert_eq!(Topic::try_from(bad), Err(TopicError));
        }
        assert_eq!(Topic::network_peers().as_str(), "network:peers");
    }
}
