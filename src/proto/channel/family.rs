//! Which of a node's own families of channels serves which topics.
//!
//! Pure: a list of rules, the defaults among them. Invariants:
//! 1. Of the rules that cover a topic the most specific one counts, of equal ones the last.
//! 2. What tells of the nodes ([`Family::is_of_nodes`]) tells of them under every name that a rule gives it.

use std::fmt;
use std::str::FromStr;

use strum::{Display, EnumString};

use crate::proto::topic::{Pattern, Topic, TopicError};

/// What can be served on a topic without any service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Display, EnumString)]
#[strum(serialize_all = "snake_case")]
#[non_exhaustive]
pub enum Family {
    /// Members talk to each other, and see who is there.
    Room,
    /// What happens in the cluster: below `network:` the topic `network:updates`.
    Network,
    /// What becomes of one node, or of all: below `node:` the topics `node:heartbeat` and `node:NAME@HOST`.
    Node,
    /// Nothing; a service may have a handler there.
    Off,
}

impl Family {
    /// Whether it tells of the nodes, so that a user's token is not enough.
    pub fn is_of_nodes(self) -> bool {
        match self {
            Self::Network | Self::Node => true,
            Self::Room | Self::Off => false,
        }
    }
}

/// One rule: these topics are this family's. As text `PATTERN=FAMILY`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FamilyRule {
    /// Which topics.
    pub pattern: Pattern,
    /// Whose they are.
    pub family: Family,
}

/// Why a text is no rule. Nothing changed; anyone who supplied it must correct it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FamilyError {
    /// There is no `=`.
    #[error("{0:?} is not PATTERN=FAMILY, such as realtime:*=room")]
    Shape(String),
    /// What stands before the last `=`.
    #[error("{0:?} is neither a topic nor a pattern, such as realtime:*")]
    Pattern(String),
    /// What stands behind it.
    #[error("{0:?} is no family: room, network, node or off is expected")]
    Family(String),
}

impl FromStr for FamilyRule {
    type Err = FamilyError;

    fn from_str(text: &str) -> Result<Self, FamilyError> {
        let (pattern, family) =
            text.rsplit_once('=').ok_or_else(|| FamilyError::Shape(text.to_owned()))?;
        let no_family = |_unknown| FamilyError::Family(family.to_owned());
        let family = family.parse().map_err(no_family)?;
        let no_pattern = |_error: TopicError| FamilyError::Pattern(pattern.to_owned());
        Ok(Self { pattern: pattern.parse().map_err(no_pattern)?, family })
    }
}

impl fmt::Display for FamilyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.pattern, self.family)
    }
}

/// All rules of a node.
#[derive(Clone, Debug)]
pub struct FamilyTable(Vec<FamilyRule>);

impl FamilyTable {
    /// These rules, beside `room:*=room`, `network:*=network` and `node:*=node`.
    pub fn new(rules: &[FamilyRule]) -> Self {
        let default = |prefix: &str, family| Some((Pattern::below(prefix)?, family));
        let defaults = [
            default("room:", Family::Room),
            default("network:", Family::Network),
            default("node:", Family::Node),
        ];
        let defaults = defaults.into_iter().flatten();
        let defaults = defaults.map(|(pattern, family)| FamilyRule { pattern, family });
        Self(defaults.chain(rules.iter().cloned()).collect())
    }

    /// Whose a topic is, and what it is called there: what a pattern's `*` stands for, or what follows the last colon.
    pub fn of<'t>(&self, topic: &'t Topic) -> Option<(Family, &'t str)> {
        let rule = Pattern::most_specific(&self.0, |rule| &rule.pattern, topic)?;
        let text = topic.as_str();
        let name = match &rule.pattern {
            Pattern::Topic(_) => text.rsplit_once(':').map_or(text, |(_, name)| name),
            Pattern::Below(prefix) => text.strip_prefix(prefix.as_ref()).unwrap_or(text),
        };
        Some((rule.family, name))
    }

    /// The topics of this family that are called so.
    pub fn topics(&self, family: Family, name: &str) -> Vec<Topic> {
        let rules = self.0.iter().filter(|rule| rule.family == family);
        let named = rules.filter_map(|rule| match &rule.pattern {
            Pattern::Topic(topic) => Some(topic.clone()),
            Pattern::Below(prefix) => format!("{prefix}{name}").parse().ok(),
        });
        // What a more specific rule gives away is not among them, and nothing twice.
        let mut topics: Vec<Topic> = Vec::new();
        for topic in named {
            if self.of(&topic) == Some((family, name)) && !topics.contains(&topic) {
                topics.push(topic);
            }
        }
        topics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rules: &[&str]) -> FamilyTable {
        let rules: Vec<_> = rules.iter().map(|rule| rule.parse().expect(rule)).collect();
        FamilyTable::new(&rules)
    }

    fn topic(text: &str) -> Topic {
        text.parse().expect("a topic")
    }

    #[test]
    fn without_rules_there_are_the_three_of_every_node() {
        let table = table(&[]);
        for (text, expected) in [
            ("room:1", Some((Family::Room, "1"))),
            ("room:a:b", Some((Family::Room, "a:b"))),
            ("network:updates", Some((Family::Network, "updates"))),
            ("node:heartbeat", Some((Family::Node, "heartbeat"))),
            ("node:a@h", Some((Family::Node, "a@h"))),
            ("rooms:1", None),
            ("realtime:1", None),
        ] {
            assert_eq!(table.of(&topic(text)), expected, "{text}");
        }
    }

    #[test]
    fn the_most_specific_rule_counts_and_of_equal_ones_the_last() {
        let rules = ["realtime:*=room", "room:*=off", "*=room", "realtime:*=off", "a:b=network"];
        let table = table(&[&rules[..], &["realtime:vip:*=room", "room:lobby=room"]].concat());
        for (text, expected) in [
            ("realtime:1", (Family::Off, "1")),
            ("realtime:vip:1", (Family::Room, "1")),
            ("room:1", (Family::Off, "1")),
            ("room:lobby", (Family::Room, "lobby")),
            ("anything", (Family::Room, "anything")),
            ("network:updates", (Family::Network, "updates")),
            ("a:b", (Family::Network, "b")),
        ] {
            assert_eq!(table.of(&topic(text)), Some(expected), "{text}");
        }
    }

    #[test]
    fn a_family_is_told_under_all_its_names_and_no_other() {
        let rules = ["realtime:*=network", "hq:updates=network", "x:*=network", "x:updates=room"];
        let table = table(&rules);
        let names = |family, name| {
            let mut names: Vec<_> =
                table.topics(family, name).iter().map(Topic::to_string).collect();
            names.sort();
            names
        };
        let all = ["hq:updates", "network:updates", "realtime:updates"];
        assert_eq!(names(Family::Network, "updates"), all);
        assert_eq!(names(Family::Node, "heartbeat"), ["node:heartbeat"]);
    }

    #[test]
    fn what_is_no_rule_is_said() {
        for (text, why) in [
            ("realtime:*", "\"realtime:*\" is not PATTERN=FAMILY, such as realtime:*=room"),
            (
                "realtime*=room",
                "\"realtime*\" is neither a topic nor a pattern, such as realtime:*",
            ),
            ("a:*=lobby", "\"lobby\" is no family: room, network, node or off is expected"),
            ("=room", "\"\" is neither a topic nor a pattern, such as realtime:*"),
        ] {
            assert_eq!(text.parse::<FamilyRule>().expect_err(text).to_string(), why);
        }
        let rule: FamilyRule = "a=b:*=node".parse().expect("a rule");
        assert_eq!((rule.to_string().as_str(), rule.family), ("a=b:*=node", Family::Node));
    }
}
