//! A recorded event as JSON: a line of `xpando-node watch --json`, of `events --json`, and an item of `/api/events`.

use std::borrow::Cow;
use std::time::{Duration, UNIX_EPOCH};

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::io::clock::{read_rfc3339, rfc3339};
use crate::proto::event::{Event, Level, Recorded};
use crate::proto::node::{Incarnation, NodeName};

/// The members, in their order; those of the event come last.
#[derive(Serialize, Deserialize)]
struct Members<'a> {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    noted_by: Option<Cow<'a, NodeName>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    at: String,
    #[serde(default)]
    stamp: Option<String>,
    #[serde(default)]
    incarnation: u64,
    #[serde(default)]
    since_start_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hash: Option<String>,
    #[serde(default)]
    level: Option<Level>,
    #[serde(default)]
    text: String,
    #[serde(flatten)]
    event: Cow<'a, Event>,
}

impl Serialize for Recorded {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let members = Members {
            noted_by: self.noted_by.as_ref().map(Cow::Borrowed),
            seq: (self.seq > 0).then_some(self.seq),
            at: rfc3339(UNIX_EPOCH + Duration::from_millis(self.at)),
            stamp: Some(self.stamp.to_string()),
            incarnation: self.incarnation.0,
            since_start_ms: self.since_start,
            hash: self.hash.map(|hash| hash.to_string()),
            level: Some(self.event.level()),
            text: self.event.to_string(),
            event: Cow::Borrowed(&self.event),
        };
        members.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Recorded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let members = Members::deserialize(deserializer)?;
        let bad = |member: &str| D::Error::custom(format!("{member} cannot be read"));
        let stamp = members.stamp.map(|stamp| stamp.parse().map_err(|()| bad("stamp")));
        let hash = members.hash.map(|hash| hash.parse().map_err(|()| bad("hash")));
        Ok(Self {
            seq: members.seq.unwrap_or_default(),
            noted_by: members.noted_by.map(Cow::into_owned),
            at: read_rfc3339(&members.at).ok_or_else(|| bad("at"))?,
            since_start: members.since_start_ms,
            incarnation: Incarnation(members.incarnation),
            stamp: stamp.transpose()?.unwrap_or_default(),
            hash: hash.transpose()?,
            event: members.event.into_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn an_event_is_told_with_its_text_and_level_and_comes_back() {
        let written = json!({
            "noted_by": "a@h",
            "seq": 7,
            "at": "2026-01-02T03:04:05.678Z",
            "stamp": "1767323045678.000003",
            "incarnation": 2,
            "since_start_ms": 9,
            "hash": "0f".repeat(32),
            "level": "info",
            "text": "b@h online at 10.0.0.2:4697, incarnation 5",
            "event": "peer_online",
            "peer": "b@h",
            "peer_incarnation": 5,
            "address": "10.0.0.2:4697",
        });
        let read: Recorded = serde_json::from_value(written.clone()).expect("an event");
        assert_eq!((read.seq, read.incarnation), (7, Incarnation(2)));
        assert!(matches!(&read.event, Event::PeerOnline { incarnation: Incarnation(5), .. }));
        assert_eq!(serde_json::to_value(&read).expect("plain"), written);
        // Of another version, and without a number.
        let other = json!({ "at": "2026-01-02T03:04:05.678Z", "event": "dance", "steps": 3 });
        let read: Recorded = serde_json::from_value(other).expect("an event");
        let told = serde_json::to_value(&read).expect("plain");
        let Value::Object(told) = told else { panic!("{told}") };
        assert_eq!((&told["event"], &told["steps"]), (&json!("dance"), &json!(3)));
        assert_eq!(told["text"], r#"dance {"steps":3}"#);
        assert!(!told.contains_key("seq") && !told.contains_key("hash"));
        for (member, bad) in [("at", "today"), ("stamp", "1"), ("hash", "0"), ("level", "loud")] {
            let mut written = written.clone();
            written[member] = bad.into();
            assert!(serde_json::from_value::<Recorded>(written).is_err(), "{member}");
        }
    }
}
