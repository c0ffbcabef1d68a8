//! One JSON value as text, which is passed on without being read.
//!
//! Invariant: [`Json::with`] leaves exactly one member of that name, with the server's value, however the text spells
//! its own.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::DEPTH;

/// One JSON value as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Json(pub(super) Bytes);

impl Json {
    /// `{}`.
    #[must_use]
    pub fn empty() -> Self {
        Self(Bytes::from_static(b"{}"))
    }

    /// The text, if it is one JSON value, and not too deep.
    #[must_use]
    pub fn read(text: Bytes) -> Option<Self> {
        let sound = serde_json::from_slice::<&RawValue>(&text).is_ok() && shallow(&text);
        sound.then_some(Self(text))
    }

    /// Text that was put together of sound values, of which none is too deep for it.
    pub(crate) fn assembled(text: Vec<u8>) -> Self {
        debug_assert!(Self::read(text.clone().into()).is_some(), "one JSON value");
        Self(text.into())
    }

    /// A value as JSON; `null` when it does not serialize.
    #[must_use]
    pub fn of(value: &impl Serialize) -> Self {
        let text = serde_json::to_vec(value).unwrap_or_else(|_unserializable| b"null".to_vec());
        Self(text.into())
    }

    /// The value.
    ///
    /// # Errors
    /// It is of another type.
    pub fn decode<'a, T: Deserialize<'a>>(&'a self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.0)
    }

    /// Whether it is an object.
    pub(crate) fn is_object(&self) -> bool {
        self.0.trim_ascii_start().starts_with(b"{")
    }

    /// An object with this member, as the last one, in place of all that have its name. The name is ASCII. What is
    /// no object becomes one.
    #[must_use]
    pub fn with(&self, name: &str, value: &impl Serialize) -> Self {
        let member = Self::of(&std::collections::BTreeMap::from([(name, value)]));
        let mut out = self.others(name);
        if out.len() > 1 {
            out.push(b',');
        }
        out.extend_from_slice(member.0.strip_prefix(b"{").unwrap_or_default());
        Self(out.into())
    }

    /// An object without the members of this name, which is ASCII. What is no object stays as it is.
    pub(crate) fn without(&self, name: &str) -> Self {
        if !self.is_object() || members(&self.0).all(|member| !is_named(member, name)) {
            return self.clone();
        }
        let mut out = self.others(name);
        out.push(b'}');
        Self(out.into())
    }

    /// The members that are not of this name, behind an opening brace.
    fn others(&self, name: &str) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.0.len() + 64);
        out.push(b'{');
        for member in members(&self.0).filter(|member| !is_named(member, name)) {
            if out.len() > 1 {
                out.push(b',');
            }
            out.extend_from_slice(member);
        }
        out
    }

    /// The text.
    #[must_use]
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }
}

/// Where in a sound JSON text a reader stands.
#[derive(Default)]
struct Place {
    depth: usize,
    quoted: bool,
    escaped: bool,
}

impl Place {
    fn pass(&mut self, byte: u8) {
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' => self.escaped = true,
            b'"' => self.quoted = !self.quoted,
            b'[' | b'{' if !self.quoted => self.depth += 1,
            b']' | b'}' if !self.quoted => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
    }
}

/// Whether brackets nest no deeper than [`DEPTH`], in a sound JSON text.
pub(super) fn shallow(text: &[u8]) -> bool {
    nests_within(text, DEPTH)
}

/// Whether brackets nest no deeper than this, in a sound JSON text.
pub(crate) fn nests_within(text: &[u8], levels: usize) -> bool {
    let mut place = Place::default();
    text.iter().all(|byte| {
        place.pass(*byte);
        place.depth <= levels
    })
}

/// The members of an object, each as its text; none of anything else.
fn members(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let inner = text.trim_ascii().strip_prefix(b"{").and_then(|text| text.strip_suffix(b"}"));
    let mut place = Place::default();
    let parts = inner.unwrap_or_default().split(move |byte| {
        place.pass(*byte);
        *byte == b',' && place.depth == 0 && !place.quoted
    });
    parts.map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}

/// Whether a member has this name, however it is escaped. Read here: names that are no Unicode text (lone surrogates),
/// which some readers take, must not keep the others from being looked at.
fn is_named(member: &[u8], name: &str) -> bool {
    let Some(mut text) = member.strip_prefix(b"\"") else { return false };
    let mut wanted = name.bytes();
    loop {
        let (unit, rest) = match text {
            [] | [b'"', ..] => return wanted.next().is_none(),
            [b'\\', b'u', a, b, c, d, rest @ ..] => {
                let digits = [*a, *b, *c, *d];
                let digits = std::str::from_utf8(&digits).unwrap_or_default();
                (u16::from_str_radix(digits, 16).unwrap_or(u16::MAX), rest)
            }
            [b'\\', escape, rest @ ..] => {
                let byte = match escape {
                    b'b' => 8,
                    b'f' => 12,
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    itself => *itself,
                };
                (u16::from(byte), rest)
            }
            [byte, rest @ ..] => (u16::from(*byte), rest),
        };
        if wanted.next().map(u16::from) != Some(unit) {
            return false;
        }
        text = rest;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value};

    use super::*;

    fn json(text: &str) -> Json {
        Json::read(Bytes::copy_from_slice(text.as_bytes())).expect(text)
    }

    fn text(json: &Json) -> &str {
        std::str::from_utf8(json.as_bytes()).expect("UTF-8")
    }

    #[test]
    fn what_the_server_adds_stands_once_and_last() {
        let ours = |of: &str| text(&json(of).with("seq", &"s")).to_owned();
        for (of, wanted) in [
            ("{}", r#"{"seq":"s"}"#),
            (" { } ", r#"{"seq":"s"}"#),
            (r#"{"x":1}"#, r#"{"x":1,"seq":"s"}"#),
            (r#"{"seq":1}"#, r#"{"seq":"s"}"#),
            (r#"{"\u0073eq":1,"x":[1,{"seq":2}]}"#, r#"{"x":[1,{"seq":2}],"seq":"s"}"#),
            (
                r#"{"s\u0065\u0071" : 1 , "y" : "a,\"seq\":1"}"#,
                r#"{"y" : "a,\"seq\":1","seq":"s"}"#,
            ),
            (r#"{"seq":1,"seq":{"a":1},"\u0073\u0065\u0071":3}"#, r#"{"seq":"s"}"#),
            (r#"{"\ud800":1,"seq":2}"#, r#"{"\ud800":1,"seq":"s"}"#),
            (
                r#"{"seq\u0000":1,"se":2,"seqs":3,"Seq":4,"ſeq":5}"#,
                r#"{"seq\u0000":1,"se":2,"seqs":3,"Seq":4,"ſeq":5,"seq":"s"}"#,
            ),
            (
                r#"{"":1,"\"seq":2,"\\u0073eq":3,"\/":4}"#,
                r#"{"":1,"\"seq":2,"\\u0073eq":3,"\/":4,"seq":"s"}"#,
            ),
            ("[1]", r#"{"seq":"s"}"#),
        ] {
            assert_eq!(ours(of), wanted, "{of}");
        }
        for (of, wanted) in [
            (r#"{"x":1}"#, r#"{"x":1}"#),
            (r#"{"seq":1}"#, "{}"),
            (r#"{ "\u0073eq" :1, "x":2 , "seq":3}"#, r#"{"x":2}"#),
        ] {
            assert_eq!(text(&json(of).without("seq")), wanted, "{of}");
        }
        assert_eq!(text(&json("[{\"seq\":1}]").without("seq")), "[{\"seq\":1}]");
    }

    /// A JSON string of this text in which the characters that `escape` chooses are escapes.
    fn spelled(name: &str, escape: u32) -> String {
        let spell = |(at, char): (usize, char)| match escape >> (at % 32) & 1 {
            1 if u32::from(char) < 0x1_0000 => format!("\\u{:04X}", u32::from(char)),
            _ => char.to_string(),
        };
        let text: String = name.chars().enumerate().map(spell).collect();
        format!("\"{text}\"")
    }

    proptest! {
        #[test]
        fn a_reader_sees_the_servers_value_and_all_others(
            names in prop::collection::vec("seq|s[e-f]q|[a-z,:{}\\[\\]é ]{0,4}", 0..8),
            escape: u32,
            space in " {0,2}",
        ) {
            let value = r#"{"a":["seq",{"seq":0}],"b":"\"seq\":1,"}"#;
            let members: Vec<_> = names.iter().map(|name| format!("{space}{}{space}:{value}", spelled(name, escape))).collect();
            let object = json(&format!("{{{}}}", members.join(",")));
            let mut wanted: Map<String, Value> = object.decode().expect("an object");
            wanted.remove("seq");
            let without: Map<String, Value> = object.without("seq").decode().expect("an object");
            prop_assert_eq!(&without, &wanted);
            let with = object.with("seq", &"ours");
            prop_assert!(Json::read(with.as_bytes().clone()).is_some());
            let read: Map<String, Value> = with.decode().expect("an object");
            wanted.insert("seq".to_owned(), "ours".into());
            prop_assert_eq!(read, wanted);
            let named = super::members(with.as_bytes()).filter(|member| is_named(member, "seq"));
            prop_assert_eq!(named.count(), 1);
        }
    }
}
