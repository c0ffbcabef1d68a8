//! What a join asks for of a topic's history, in its parameter `history`.
//!
//! ```text
//! 50                             the last 50 messages
//! "last"                         the last one
//! {"since": 1767225600000}       those since this time, in milliseconds since 1970
//! {"since": "2026-01-01T00:00:00Z"}
//! ```
//! Anything else asks for nothing: an application that moves here may have a parameter of that name.

use serde_json::{Number, Value};

use crate::io::clock;
use crate::proto::history::Ask;

/// A whole number, however it is written: some encoders have floats alone.
fn whole(number: &Number) -> Option<u64> {
    number.as_u64().or_else(|| number.as_f64()?.to_string().parse().ok())
}

/// What the parameter asks for.
pub(super) fn read(history: &Value) -> Option<Ask> {
    match history {
        Value::Number(count) => {
            let count = usize::try_from(whole(count)?).ok()?;
            Some(Ask::Last(count))
        }
        Value::String(word) => (word == "last").then_some(Ask::Last(1)),
        Value::Object(object) => match object.get("since")? {
            Value::Number(millis) => Some(Ask::Since(whole(millis)?)),
            Value::String(time) => clock::read_rfc3339(time).map(Ask::Since),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        },
        Value::Null | Value::Bool(_) | Value::Array(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_count_a_time_or_the_last_one() {
        assert_eq!(read(&json!(50)), Some(Ask::Last(50)));
        for whole in ["50.0", "5e1", "500e-1"] {
            let read = read(&serde_json::from_str(whole).expect("a number"));
            assert_eq!(read, Some(Ask::Last(50)), "{whole}");
        }
        assert_eq!(read(&json!({ "since": 7.0 })), Some(Ask::Since(7)));
        assert_eq!(read(&json!("last")), Some(Ask::Last(1)));
        assert_eq!(read(&json!({ "since": 7 })), Some(Ask::Since(7)));
        let time = json!({ "since": "1970-01-01T01:00:01+01:00" });
        assert_eq!(read(&time), Some(Ask::Since(1000)));
        for nothing in [
            json!(null),
            json!(-1),
            json!(1.5),
            json!(1e300),
            json!(-1.0),
            json!("all"),
            json!([1]),
            json!({}),
            json!({ "since": "yesterday" }),
            json!({ "since": -1 }),
            json!({ "since": null }),
        ] {
            assert_eq!(read(&nothing), None, "{nothing}");
        }
    }
}
