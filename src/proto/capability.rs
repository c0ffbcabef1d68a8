//! What the holder of a certificate may do in the cluster, as its certificate says.
//!
//! Owns the words. A *member* publishes and serves what it likes. Beside that it may *operate* (rule that a node is
//! forgotten, or is not any more), and *issue* (answer requests for certificates). An *edge* is less than a member: it
//! publishes, serves and joins groups only where its patterns say so; it subscribes and calls as others do.
//! Whoever receives something enforces it by the certificate of the one it is from.
//!
//! Invariants: what a certificate does not say is not granted, and an edge neither operates nor issues, whatever else is
//! said. Words that nobody here knows are none: they may be an organization's own.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::proto::topic::{Name, Pattern, Topic};

/// Longest text of an edge's patterns, in bytes: a certificate travels in one packet.
const MAX_PATTERNS: usize = 128;

/// What a node may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Words", into = "Words")]
pub enum Capabilities {
    /// All that members do.
    Member {
        /// Whether it may have nodes forgotten.
        operate: bool,
        /// Whether its answers to requests for certificates count.
        issue: bool,
    },
    /// Publishes, serves and joins groups under these patterns alone.
    Edge(Vec<Pattern>),
}

/// As a certificate has them: words, and the patterns of an edge, each behind a space.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename = "Capabilities")]
struct Words {
    can: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    patterns: String,
}

/// Why a text names no capabilities. Nothing changed; anyone who supplied it must correct it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CapabilitiesError {
    /// The patterns of an edge.
    #[error(
        "the patterns of an edge are topics or names, such as sensor:* or report, of at most {MAX_PATTERNS} bytes together"
    )]
    Patterns,
    /// An edge that is more than one.
    #[error("an edge neither operates nor issues")]
    Both,
}

impl Capabilities {
    /// What every node may that is no edge.
    pub const MEMBER: Self = Self::Member { operate: false, issue: false };
    /// What a node may that operators work on.
    pub const OPERATE: Self = Self::Member { operate: true, issue: false };
    /// Everything.
    pub const ALL: Self = Self::Member { operate: true, issue: true };

    /// Those of an edge.
    ///
    /// # Errors
    /// [`CapabilitiesError::Patterns`].
    pub fn edge(patterns: Vec<Pattern>) -> Result<Self, CapabilitiesError> {
        let edge = Self::Edge(patterns);
        let fits = edge.patterns().len() <= MAX_PATTERNS;
        if fits { Ok(edge) } else { Err(CapabilitiesError::Patterns) }
    }

    /// What a certificate says in so many words, and those of its patterns; `None` where it says nothing.
    ///
    /// # Errors
    /// [`CapabilitiesError::Patterns`].
    pub fn read(words: &str, patterns: &str) -> Result<Option<Self>, CapabilitiesError> {
        let says = |word: &str| words.split(' ').any(|it| it == word);
        if says("edge") {
            let patterns = patterns.split(' ').filter(|it| !it.is_empty());
            let patterns: Result<_, _> = patterns.map(str::parse).collect();
            return Self::edge(patterns.map_err(|_text| CapabilitiesError::Patterns)?).map(Some);
        }
        let (operate, issue) = (says("operate"), says("issue"));
        let said = operate || issue || says("member");
        Ok(said.then_some(Self::Member { operate, issue }))
    }

    /// As a certificate says them: `member operate issue`, `edge`.
    pub fn words(&self) -> &'static str {
        match self {
            Self::Member { operate: false, issue: false } => "member",
            Self::Member { operate: true, issue: false } => "member operate",
            Self::Member { operate: false, issue: true } => "member issue",
            Self::Member { operate: true, issue: true } => "member operate issue",
            Self::Edge(_) => "edge",
        }
    }

    /// The patterns of an edge, each behind a space.
    pub fn patterns(&self) -> String {
        let Self::Edge(patterns) = self else { return String::new() };
        patterns.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    /// Whether it may have nodes forgotten.
    pub fn may_operate(&self) -> bool {
        matches!(self, Self::Member { operate: true, .. })
    }

    /// Whether its answers to requests for certificates count.
    pub fn may_issue(&self) -> bool {
        matches!(self, Self::Member { issue: true, .. })
    }

    /// Whether it may publish on a topic, and be present there.
    pub fn may_publish(&self, topic: &Topic) -> bool {
        self.covers(topic.as_str())
    }

    /// Whether it may serve a name. What nodes answer of themselves each of them does.
    pub fn may_serve(&self, name: &Name) -> bool {
        if *name == Name::issue() {
            return self.may_issue();
        }
        name.is_reserved() || self.covers(name.as_str())
    }

    /// Whether its actors may be in a group.
    pub fn may_join(&self, group: &str) -> bool {
        self.covers(group)
    }

    fn covers(&self, text: &str) -> bool {
        match self {
            Self::Member { .. } => true,
            Self::Edge(patterns) => patterns.iter().any(|pattern| pattern.matches(text)),
        }
    }
}

impl Default for Capabilities {
    /// What a certificate grants that says nothing of them.
    fn default() -> Self {
        Self::MEMBER
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())?;
        let patterns = self.patterns();
        if patterns.is_empty() { Ok(()) } else { write!(f, " {patterns}") }
    }
}

impl From<Capabilities> for Words {
    fn from(it: Capabilities) -> Self {
        Self { can: it.words().to_owned(), patterns: it.patterns() }
    }
}

impl TryFrom<Words> for Capabilities {
    type Error = CapabilitiesError;

    fn try_from(it: Words) -> Result<Self, CapabilitiesError> {
        Self::read(&it.can, &it.patterns).map(Option::unwrap_or_default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &str, patterns: &str) -> Option<Capabilities> {
        Capabilities::read(words, patterns).expect("readable")
    }

    fn topic(text: &str) -> Topic {
        text.parse().expect("a topic")
    }

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    #[test]
    fn what_is_said_is_read_again_and_what_is_not_said_is_not_granted() {
        let edge = Capabilities::edge(vec!["sensor:*".parse().expect("a pattern")]).expect("short");
        let (operate, issue) = (false, true);
        let issues = Capabilities::Member { operate, issue };
        for all in [Capabilities::MEMBER, Capabilities::OPERATE, Capabilities::ALL, issues, edge] {
            assert_eq!(read(all.words(), &all.patterns()), Some(all.clone()));
            let text = serde_json::to_string(&all).expect("plain");
            assert_eq!(serde_json::from_str::<Capabilities>(&text).expect("its own"), all);
        }
        assert_eq!(read("", "sensor:*"), None);
        assert_eq!(read("Engineering", ""), None); // an organization's own word
        assert_eq!(read("operators reissue", ""), None);
        assert_eq!(read("Engineering operate", ""), Some(Capabilities::OPERATE));
        assert_eq!(Capabilities::default(), Capabilities::MEMBER);
        assert!(!Capabilities::MEMBER.may_operate() && !Capabilities::MEMBER.may_issue());
        assert!(Capabilities::ALL.may_operate() && Capabilities::ALL.may_issue());
        assert_eq!(Capabilities::ALL.to_string(), "member operate issue");
    }

    #[test]
    fn an_edge_is_bound_by_its_patterns_and_is_nothing_else() {
        let edge = read("member operate issue edge", "sensor:* report").expect("said");
        assert!(!edge.may_operate() && !edge.may_issue());
        assert!(edge.may_publish(&topic("sensor:1")) && edge.may_publish(&topic("report")));
        for other in ["sensor", "sensors:1", "report:1", "room:1", "xpando:echo"] {
            assert!(!edge.may_publish(&topic(other)), "{other}");
        }
        assert!(edge.may_serve(&name("report")) && edge.may_join("sensor:group"));
        assert!(!edge.may_serve(&name("billing")) && !edge.may_join("billing"));
        assert!(edge.may_serve(&Name::sight()) && edge.may_serve(&Name::trust()));
        assert!(
            !edge.may_serve(&Name::issue()) && !Capabilities::OPERATE.may_serve(&Name::issue())
        );
        assert!(Capabilities::ALL.may_serve(&Name::issue()));
        assert!(Capabilities::MEMBER.may_publish(&topic("room:1")));
        let nothing = read("edge", "").expect("said");
        assert!(!nothing.may_publish(&topic("sensor:1")));
        assert!(read("edge", "*").expect("said").may_publish(&topic("room:1")));
    }

    #[test]
    fn patterns_that_cannot_be_read_or_are_too_long_are_none() {
        let long = format!("{}:*", "x".repeat(MAX_PATTERNS));
        for bad in ["a:*b", "**", "a\u{7}", &long] {
            assert_eq!(Capabilities::read("edge", bad), Err(CapabilitiesError::Patterns), "{bad}");
        }
        assert_eq!(read("member", "a:*b"), Some(Capabilities::MEMBER)); // of no edge
    }
}
