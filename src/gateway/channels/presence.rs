//! What clients ask for about presence: how others see them, and what they see of others.
//!
//! # Protocol
//! ```text
//! join    presence: {…}       it is seen with these fields, and sees everybody
//!         presence: "count"   it is seen, and told how many there are
//!         presence: "watch"   it is not seen, and sees everybody
//!         presence: "off"     neither; also false
//!         presence_meta: {…}  the fields, where `presence` is a word
//! push    presence_meta {…}   from now on it is seen with these fields; answered
//! ```
//!
//! # Invariants
//! 1. `node` and `online_at` are the node's own, and references the cluster's: a client that gives them is refused.
//! 2. Fields are said to others: they need the right to push, at the join too.
//! 3. What is refused changes nothing.

use serde_json::{Map, Value, json};

use super::Refusal;
use crate::io::clock;
use crate::proto::channel::Payload;
use crate::proto::node::NodeName;
use crate::proto::presence::check_meta;
use crate::proto::presence::listing::Sees;

/// The event by which a client changes its fields, and the parameter by which it gives them at the join.
pub(super) const META: &str = "presence_meta";
/// The parameter of a join.
const PRESENCE: &str = "presence";
/// What the node says of each client itself.
const OWN: [&str; 2] = ["node", "online_at"];

const UNKNOWN: Refusal = "presence is an object, \"count\", \"watch\" or \"off\"";
const NO_OBJECT: Refusal = "presence_meta is an object";
const NO_RIGHT: Refusal = "fields of a presence need the right to push";
const RESERVED: Refusal = "node and online_at of a presence are the node's own";
const MALFORMED: Refusal =
    "a presence has at most 1024 bytes and 64 levels, without phx_ref and phx_ref_prev";

pub(super) type Fields = Map<String, Value>;

/// What a join asks for.
pub(super) struct Wish {
    pub(super) seen: bool,
    pub(super) sees: Sees,
    pub(super) fields: Fields,
}

impl Wish {
    /// Reads the parameters of a join.
    pub(super) fn read(params: &Value) -> Result<Self, Refusal> {
        let (seen, sees, given) = match params.get(PRESENCE) {
            None | Some(Value::Null | Value::Bool(true)) => (true, Sees::State, None),
            Some(Value::Object(fields)) => (true, Sees::State, Some(fields)),
            Some(Value::Bool(false)) => (false, Sees::Nothing, None),
            Some(Value::String(word)) => match word.as_str() {
                "count" => (true, Sees::Count, None),
                "watch" => (false, Sees::State, None),
                "off" => (false, Sees::Nothing, None),
                _unknown => return Err(UNKNOWN),
            },
            Some(Value::Number(_) | Value::Array(_)) => return Err(UNKNOWN),
        };
        let fields = match (given, params.get(META)) {
            (Some(fields), _) | (None, Some(Value::Object(fields))) => fields.clone(),
            (None, None | Some(Value::Null)) => Fields::new(),
            (None, Some(_other)) => return Err(NO_OBJECT),
        };
        Ok(Self { seen, sees, fields })
    }
}

/// What the node says of a client to others.
pub(super) struct Face {
    node: NodeName,
    online_at: u64,
}

impl Face {
    /// That of one that comes now.
    pub(super) fn new(node: &NodeName) -> Self {
        let since = clock::wall().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self { node: node.clone(), online_at: since.as_secs() }
    }

    /// The meta with these fields of a client that may push or not.
    pub(super) fn meta(&self, fields: &Fields, pushes: bool) -> Result<String, Refusal> {
        if !fields.is_empty() && !pushes {
            return Err(NO_RIGHT);
        }
        if OWN.iter().any(|own| fields.contains_key(*own)) {
            return Err(RESERVED);
        }
        let mut meta = fields.clone();
        meta.insert("node".to_owned(), json!(self.node));
        meta.insert("online_at".to_owned(), self.online_at.into());
        let meta = Value::Object(meta).to_string();
        check_meta(&meta).map_err(|_refused| MALFORMED)?;
        Ok(meta)
    }
}

/// The fields that a push gives.
pub(super) fn fields(payload: &Payload) -> Result<Fields, Refusal> {
    match payload {
        Payload::Json(json) => json.decode::<Fields>().map_err(|_no_object| NO_OBJECT),
        Payload::Binary(_) => Err(NO_OBJECT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(params: Value) -> Result<(bool, Sees, String), Refusal> {
        let wish = Wish::read(&params)?;
        Ok((wish.seen, wish.sees, Value::Object(wish.fields).to_string()))
    }

    #[test]
    fn what_a_join_asks_for() {
        let plain = || "{}".to_owned();
        let typing = || r#"{"typing":true}"#.to_owned();
        for (params, wanted) in [
            (json!({}), Ok((true, Sees::State, plain()))),
            (json!({ "presence": null }), Ok((true, Sees::State, plain()))),
            (json!({ "presence": true }), Ok((true, Sees::State, plain()))),
            (json!({ "presence": { "typing": true } }), Ok((true, Sees::State, typing()))),
            (json!({ "presence_meta": { "typing": true } }), Ok((true, Sees::State, typing()))),
            (json!({ "presence": "count" }), Ok((true, Sees::Count, plain()))),
            (
                json!({ "presence": "count", "presence_meta": { "typing": true } }),
                Ok((true, Sees::Count, typing())),
            ),
            (json!({ "presence": "watch" }), Ok((false, Sees::State, plain()))),
            (json!({ "presence": "off" }), Ok((false, Sees::Nothing, plain()))),
            (json!({ "presence": false }), Ok((false, Sees::Nothing, plain()))),
            (json!({ "presence": "of" }), Err(UNKNOWN)),
            (json!({ "presence": [] }), Err(UNKNOWN)),
            (json!({ "presence": 1 }), Err(UNKNOWN)),
            (json!({ "presence_meta": "x" }), Err(NO_OBJECT)),
        ] {
            assert_eq!(wish(params.clone()), wanted, "{params}");
        }
    }

    #[test]
    fn fields_are_bounded_and_some_are_not_the_clients() {
        let face = Face { node: "a@h".parse().expect("valid"), online_at: 7 };
        let meta = |fields: Value, pushes| {
            let Value::Object(fields) = fields else { panic!("an object") };
            face.meta(&fields, pushes)
        };
        let own = Ok(r#"{"node":"a@h","online_at":7}"#.to_owned());
        assert_eq!(meta(json!({}), false), own);
        let more = Ok(r#"{"name":"Ann","node":"a@h","online_at":7}"#.to_owned());
        assert_eq!(meta(json!({ "name": "Ann" }), true), more);
        let deep = (0..80).fold(json!(1), |inner, _| json!([inner]));
        for (fields, pushes, why) in [
            (json!({ "name": "Ann" }), false, NO_RIGHT),
            (json!({ "node": "b@h" }), true, RESERVED),
            (json!({ "online_at": 1 }), true, RESERVED),
            (json!({ "phx_ref": "x" }), true, MALFORMED),
            (json!({ "phx_ref_prev": null }), true, MALFORMED),
            (json!({ "x": "x".repeat(1024) }), true, MALFORMED),
            (json!({ "x": deep }), true, MALFORMED),
        ] {
            assert_eq!(meta(fields, pushes), Err(why));
        }
    }
}
