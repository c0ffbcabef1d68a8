//! Topics: colon-separated names of what is talked about, such as `network:peers`; patterns over them;
//! and the names under which nodes serve requests.
//!
//! Invariants: a [`Topic`] that exists is 1–255 bytes of printable UTF-8 without spaces or `*`; a
//! [`Name`] likewise, without `@` and without `-` at its beginning, where commands expect options.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::proto::codec;
use crate::proto::node::NodeName;

/// Longest topic, in bytes.
pub(crate) const MAX_TOPIC: usize = 255;

/// A topic of broadcasts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic(Arc<str>);

codec::as_text!(Topic, it => it.as_str());

/// Why a text is not a topic. Nothing changed; anyone who supplied it must correct it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a topic or name has 1 to {MAX_TOPIC} bytes, without spaces, control characters or `*`; a name has no `@` and does not begin with `-`"
)]
pub struct TopicError;

impl Topic {
    /// Addresses of peers, as nodes tell them to each other.
    pub(crate) fn network_peers() -> Self {
        Self("network:peers".into())
    }

    /// Questions and answers about peers that one node does not hear.
    pub(crate) fn node_heartbeat() -> Self {
        Self("node:heartbeat".into())
    }

    /// Rows of the link matrix.
    pub(crate) fn network_topology() -> Self {
        Self("network:topology".into())
    }

    /// Who the nodes are, and who is forgotten.
    pub(crate) fn network_registry() -> Self {
        Self("network:registry".into())
    }

    /// What happens in the cluster, for clients.
    #[cfg(feature = "gateway")]
    pub(crate) fn network_updates() -> Self {
        Self("network:updates".into())
    }

    /// Who is in which channel.
    pub(crate) fn channel_presence() -> Self {
        Self("channel:presence".into())
    }

    /// The topic as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn plain(text: &str) -> bool {
    let odd = |c: char| c.is_whitespace() || c.is_control() || c == '*';
    (1..=MAX_TOPIC).contains(&text.len()) && !text.chars().any(odd)
}

impl TryFrom<&str> for Topic {
    type Error = TopicError;

    fn try_from(text: &str) -> Result<Self, TopicError> {
        if plain(text) { Ok(Self(text.into())) } else { Err(TopicError) }
    }
}

impl FromStr for Topic {
    type Err = TopicError;

    fn from_str(text: &str) -> Result<Self, TopicError> {
        Self::try_from(text)
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One topic, or all topics below one: `room:1`, `room:*` (not `room` itself), `*`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pattern {
    /// This topic.
    Topic(Topic),
    /// Every topic that begins with this text, which is empty or ends with a colon.
    Below(Arc<str>),
}

impl Pattern {
    /// All topics that begin with this text; `None` when it is neither empty nor whole words.
    #[must_use]
    pub fn below(prefix: &str) -> Option<Self> {
        let whole = prefix.is_empty() || (prefix.ends_with(':') && plain(prefix));
        whole.then(|| Self::Below(prefix.into()))
    }

    /// True when `topic` is the one, or one of those, that this names.
    #[must_use]
    pub fn covers(&self, topic: &Topic) -> bool {
        self.matches(topic.as_str())
    }

    /// The rule that counts for a topic: of those whose pattern covers it the most specific one, of equal ones the last. A
    /// topic is more specific than any pattern with a `*`, and a longer prefix than a shorter one.
    pub(crate) fn most_specific<'r, R>(
        rules: &'r [R],
        pattern: impl Fn(&R) -> &Self,
        topic: &Topic,
    ) -> Option<&'r R> {
        let specific = |rule: &&R| match pattern(rule) {
            Self::Topic(_) => usize::MAX,
            Self::Below(prefix) => prefix.len(),
        };
        let covers = rules.iter().filter(|rule| pattern(rule).covers(topic));
        covers.max_by_key(specific) // of equal ones the last
    }

    /// Likewise of any text, such as the name of a service or a group.
    pub(crate) fn matches(&self, text: &str) -> bool {
        match self {
            Self::Topic(one) => one.as_str() == text,
            Self::Below(prefix) => text.starts_with(prefix.as_ref()),
        }
    }
}

impl FromStr for Pattern {
    type Err = TopicError;

    fn from_str(text: &str) -> Result<Self, TopicError> {
        match text.strip_suffix('*') {
            None => text.parse().map(Self::Topic),
            Some(prefix) => Self::below(prefix).ok_or(TopicError),
        }
    }
}

impl From<Topic> for Pattern {
    fn from(topic: Topic) -> Self {
        Self::Topic(topic)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topic(topic) => topic.fmt(f),
            Self::Below(prefix) => write!(f, "{prefix}*"),
        }
    }
}

/// Under which a node serves requests.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// Under which the nodes' channels answer each other.
    #[doc(hidden)]
    pub fn channels() -> Self {
        Self("xpando:channels".into())
    }

    /// Under which nodes tell each other what they see.
    #[doc(hidden)]
    pub fn sight() -> Self {
        Self("xpando:sight".into())
    }

    /// Under which nodes tell each other what happened.
    pub(crate) fn history() -> Self {
        Self("xpando:history".into())
    }

    /// Under which nodes answer polls of their clients that reached another node.
    #[cfg(feature = "gateway")]
    pub(crate) fn polls() -> Self {
        Self("xpando:polls".into())
    }

    /// Under which nodes tell each other whom they trust, and who signed their certificate.
    pub(crate) fn trust() -> Self {
        Self("xpando:trust".into())
    }

    /// Under which nodes that have the authority's key answer requests for certificates.
    #[doc(hidden)]
    pub fn issue() -> Self {
        Self("xpando:issue".into())
    }

    /// Under which every node replies with what it was sent.
    #[must_use]
    pub fn echo() -> Self {
        Self("xpando:echo".into())
    }

    /// Under which a node started with `--bench` takes the orders of benchmarks.
    #[doc(hidden)]
    pub fn bench() -> Self {
        Self("xpando:bench".into())
    }

    /// Whether it is one under which nodes answer each other about themselves.
    pub(crate) fn is_reserved(&self) -> bool {
        self.0.starts_with("xpando:")
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = TopicError;

    fn from_str(text: &str) -> Result<Self, TopicError> {
        let sound = plain(text) && !text.contains('@') && !text.starts_with('-');
        if sound { Ok(Self(text.into())) } else { Err(TopicError) }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whom a request is for: a name on one node, `work@b@127.0.0.1`, or wherever it is offered, `work`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The name.
    pub name: Name,
    /// The node; `None` is any that offers the name.
    pub node: Option<NodeName>,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.node {
            Some(node) => write!(f, "{}@{node}", self.name),
            None => self.name.fmt(f),
        }
    }
}

/// Why a text is not an address. Nothing changed; anyone who supplied it must correct it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// The part before the first `@`.
    #[error(transparent)]
    Name(#[from] TopicError),
    /// The part after it.
    #[error("{0} is no node: NAME or NAME@NODE is expected, such as work@b@127.0.0.1")]
    Node(String),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let Some((name, node)) = text.split_once('@') else {
            return Ok(Self { name: text.parse()?, node: None });
        };
        let node = node.parse().map_err(|_not_a_node| AddressError::Node(node.to_owned()))?;
        Ok(Self { name: name.parse()?, node: Some(node) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_short_and_plain() {
        assert!("room:42".parse::<Topic>().is_ok());
        for bad in [String::new(), "a b".into(), "a\n".into(), "x".repeat(256)] {
            assert_eq!(bad.parse::<Topic>(), Err(TopicError));
        }
        assert_eq!(Topic::network_peers().as_str(), "network:peers");
    }

    #[test]
    fn patterns_are_a_topic_or_all_below_one() {
        for good in ["room:1", "room:*", "*", "a:b:*"] {
            assert_eq!(good.parse::<Pattern>().expect(good).to_string(), good);
        }
        for bad in ["", "room*", "ro*m", "**", "a b:*", ":*x", &format!("{}:*", "x".repeat(255))] {
            assert_eq!(bad.parse::<Pattern>(), Err(TopicError), "{bad}");
        }
    }

    #[test]
    fn a_pattern_covers_its_topics() {
        for (pattern, topic, covered) in [
            ("room:1", "room:1", true),
            ("room:1", "room:12", false),
            ("room:*", "room:1", true),
            ("room:*", "room:1:a", true),
            ("room:*", "room", false),
            ("room:*", "rooms:1", false),
            ("*", "x", true),
        ] {
            let (pattern, topic) = (pattern.parse::<Pattern>(), topic.parse::<Topic>());
            assert_eq!(pattern.expect("valid").covers(&topic.expect("valid")), covered);
        }
    }

    #[test]
    fn the_most_specific_pattern_counts_and_of_equal_ones_the_last() {
        let chosen = |rules: &[&str], topic: &str| {
            let rules: Vec<(Pattern, usize)> = rules
                .iter()
                .enumerate()
                .map(|(at, rule)| (rule.parse().expect("valid"), at))
                .collect();
            let topic = topic.parse().expect("valid");
            Pattern::most_specific(&rules, |(pattern, _)| pattern, &topic).map(|(_, at)| *at)
        };
        // A topic and a pattern of as many bytes, in either order.
        assert_eq!(chosen(&["room:a", "room:*"], "room:a"), Some(0));
        assert_eq!(chosen(&["room:*", "room:a"], "room:a"), Some(1));
        assert_eq!(chosen(&["room:a:*", "room:*", "*"], "room:a:1"), Some(0));
        assert_eq!(chosen(&["*", "room:*", "room:a:*"], "room:a:1"), Some(2));
        assert_eq!(chosen(&["room:*", "room:*", "*"], "room:b"), Some(1));
        assert_eq!(chosen(&["room:b", "room:b", "*"], "room:b"), Some(1));
        assert_eq!(chosen(&["room:a", "node:*"], "room:b"), None);
    }

    #[test]
    fn an_address_is_a_name_and_perhaps_a_node() {
        let on: Address = "work@b@127.0.0.1".parse().expect("valid");
        assert_eq!((on.name.as_str(), on.node), ("work", "b@127.0.0.1".parse().ok()));
        assert_eq!("work".parse::<Address>().expect("valid").node, None);
        assert!(matches!("work@b".parse::<Address>(), Err(AddressError::Node(_))));
        for bad in ["@b@h", "-work", "--timeout=1"] {
            assert!(matches!(bad.parse::<Address>(), Err(AddressError::Name(_))), "{bad}");
        }
    }
}
