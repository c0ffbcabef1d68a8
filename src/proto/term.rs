//! Erlang's external term format, as far as tokens have it.
//!
//! A term is read into a JSON value: a binary or an atom as a text, `nil` as null, `true` and `false` as themselves, a tuple or
//! a list as an array, a map with names as its keys as an object. Source: "External Term Format" of Erlang/OTP's ERTS.
//! Invariants, whatever the bytes are:
//!
//! 1. Memory is bounded by the length of the input: nothing is reserved by a length that the input only claims.
//! 2. Terms are nested at most 16 deep.
//! 3. Nothing is inflated, and nothing is read that has no meaning outside its node: funs, pids, ports, references.
//! 4. No two keys of a map read as the same name.

use serde_json::{Map, Number, Value};

/// How deep terms may be nested.
const MAX_DEPTH: usize = 16;
/// What every term begins with.
const VERSION: u8 = 131;

/// Why bytes are no term that is read here. Nothing changed; anyone who made it must make another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TermError {
    /// It ends too soon, or goes on behind its end.
    #[error("the term's length is wrong")]
    Length,
    /// Terms in terms, too many.
    #[error("the term is nested too deeply")]
    Depth,
    /// A kind of term that is not read, compressed terms among them.
    #[error("the term has a part of a kind that no token needs")]
    Kind,
    /// A text that is not UTF-8, a number out of range, a key that is no name, or the same name twice.
    #[error("the term has a part that cannot be read")]
    Value,
}

/// Reads a whole term.
///
/// # Errors
/// Each [`TermError`].
pub fn read(bytes: &[u8]) -> Result<Value, TermError> {
    let mut reader = Reader(bytes);
    if reader.byte()? != VERSION {
        return Err(TermError::Kind);
    }
    let term = reader.term(MAX_DEPTH)?;
    if reader.0.is_empty() { Ok(term) } else { Err(TermError::Length) }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], TermError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(TermError::Length)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], TermError> {
        self.take(N)?.try_into().map_err(|_length| TermError::Length)
    }

    fn byte(&mut self) -> Result<u8, TermError> {
        self.array().map(|[byte]| byte)
    }

    fn short(&mut self) -> Result<usize, TermError> {
        self.array().map(u16::from_be_bytes).map(usize::from)
    }

    fn long(&mut self) -> Result<usize, TermError> {
        usize::try_from(u32::from_be_bytes(self.array()?)).map_err(|_long| TermError::Length)
    }

    fn term(&mut self, depth: usize) -> Result<Value, TermError> {
        let deeper = depth.checked_sub(1).ok_or(TermError::Depth)?;
        let kind = self.byte()?;
        Ok(match kind {
            70 => {
                let number = Number::from_f64(f64::from_be_bytes(self.array()?));
                Value::Number(number.ok_or(TermError::Value)?)
            }
            97 => self.byte()?.into(),
            98 => i32::from_be_bytes(self.array()?).into(),
            110 => self.big()?,
            100 | 118 => {
                let length = self.short()?;
                atom(kind == 118, self.take(length)?)?
            }
            115 | 119 => {
                let length = self.byte()?.into();
                atom(kind == 119, self.take(length)?)?
            }
            104 => {
                let many = self.byte()?.into();
                Value::Array(self.many(many, deeper)?)
            }
            105 => {
                let many = self.long()?;
                Value::Array(self.many(many, deeper)?)
            }
            106 => Value::Array(Vec::new()),
            // A list of small numbers.
            107 => {
                let length = self.short()?;
                self.take(length)?.iter().copied().map(Value::from).collect()
            }
            108 => {
                let many = self.long()?;
                let list = self.many(many, deeper)?;
                // A proper list ends with an empty one.
                if self.byte()? == 106 { Value::Array(list) } else { return Err(TermError::Kind) }
            }
            109 => {
                let length = self.long()?;
                Value::String(text(self.take(length)?)?)
            }
            116 => self.map(deeper)?,
            _ => return Err(TermError::Kind),
        })
    }

    /// So many terms. Each takes a byte at least, so a count that is larger than what follows is wrong.
    fn many(&mut self, many: usize, depth: usize) -> Result<Vec<Value>, TermError> {
        if many > self.0.len() {
            return Err(TermError::Length);
        }
        (0..many).map(|_| self.term(depth)).collect()
    }

    fn map(&mut self, depth: usize) -> Result<Value, TermError> {
        let many = self.long()?;
        if many > self.0.len() / 2 {
            return Err(TermError::Length);
        }
        let mut map = Map::new();
        for _ in 0..many {
            // `:sub` and `"sub"` are one name here.
            let key = match (self.0.first(), self.term(depth)?) {
                (_, Value::String(name)) => name,
                (Some(100 | 115 | 118 | 119), Value::Bool(name)) => name.to_string(),
                (Some(100 | 115 | 118 | 119), Value::Null) => "nil".to_owned(),
                (_, Value::Null | Value::Bool(_) | Value::Number(_))
                | (_, Value::Array(_) | Value::Object(_)) => return Err(TermError::Value),
            };
            let value = self.term(depth)?;
            if map.insert(key, value).is_some() {
                return Err(TermError::Value);
            }
        }
        Ok(Value::Object(map))
    }

    /// A number of up to eight bytes, the least significant first.
    fn big(&mut self) -> Result<Value, TermError> {
        let (length, sign) = (usize::from(self.byte()?), self.byte()?);
        let mut bytes = [0; 8];
        let digits = self.take(length)?;
        bytes.get_mut(..length).ok_or(TermError::Value)?.copy_from_slice(digits);
        let number = u64::from_le_bytes(bytes);
        match sign {
            0 => Ok(number.into()),
            1 => {
                let number = 0_i64.checked_sub_unsigned(number).ok_or(TermError::Value)?;
                Ok(number.into())
            }
            _ => Err(TermError::Value),
        }
    }
}

fn text(bytes: &[u8]) -> Result<String, TermError> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_binary| TermError::Value)
}

fn atom(utf8: bool, bytes: &[u8]) -> Result<Value, TermError> {
    // Older atoms are Latin-1, of which each byte is the character of its number.
    let name = if utf8 { text(bytes)? } else { bytes.iter().copied().map(char::from).collect() };
    Ok(match name.as_str() {
        "nil" => Value::Null,
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        _ => Value::String(name),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// `term_to_binary` of what stands beside it, written down by hand from the format's description.
    #[test]
    fn terms_are_read() {
        for (bytes, value) in [
            (&b"\x83a\x07"[..], json!(7)),
            (b"\x83b\xff\xff\xff\xfe", json!(-2)),
            (b"\x83n\x06\x00\x00\x10\xa5\xd4\xe8\x00", json!(1_000_000_000_000_u64)),
            (b"\x83n\x01\x01\x05", json!(-5)),
            (b"\x83F\x3f\xf8\x00\x00\x00\x00\x00\x00", json!(1.5)),
            (b"\x83m\x00\x00\x00\x02hi", json!("hi")),
            (b"\x83w\x02ok", json!("ok")),
            (b"\x83d\x00\x03nil", json!(null)),
            (b"\x83s\x04true", json!(true)),
            (b"\x83v\x00\x05false", json!(false)),
            (b"\x83s\x01\xe4", json!("ä")),
            (b"\x83h\x02a\x01a\x02", json!([1, 2])),
            (b"\x83i\x00\x00\x00\x01j", json!([[]])),
            (b"\x83k\x00\x02\x01\xff", json!([1, 255])),
            (b"\x83l\x00\x00\x00\x01m\x00\x00\x00\x01xj", json!(["x"])),
            (b"\x83t\x00\x00\x00\x01w\x02idm\x00\x00\x00\x01x", json!({ "id": "x" })),
            (b"\x83t\x00\x00\x00\x01w\x03nila\x01", json!({ "nil": 1 })),
        ] {
            assert_eq!(read(bytes), Ok(value), "{bytes:?}");
        }
    }

    #[test]
    fn what_no_token_needs_is_refused() {
        use TermError::{Depth, Kind, Length, Value};
        let deep = |many| [&b"\x83"[..], &b"h\x01".repeat(many), b"j"].concat();
        assert!(read(&deep(MAX_DEPTH - 1)).is_ok());
        for (bytes, why) in [
            (&b""[..], Length),
            (b"\x82a\x01", Kind),
            (b"\x83", Length),
            (b"\x83a\x01a", Length),
            // A compressed term, which could be a bomb; a pid, a reference, a fun, an export, a port, a bit string.
            (b"\x83P\xff\xff\xff\xffx\x9c", Kind),
            (b"\x83X", Kind),
            (b"\x83Z", Kind),
            (b"\x83p", Kind),
            (b"\x83q", Kind),
            (b"\x83Y", Kind),
            (b"\x83M", Kind),
            // Lengths that are only claimed.
            (b"\x83i\xff\xff\xff\xff", Length),
            (b"\x83l\xff\xff\xff\xffa\x01", Length),
            (b"\x83t\x7f\xff\xff\xff", Length),
            (b"\x83m\xff\xff\xff\xffx", Length),
            (b"\x83o\xff\xff\xff\xff\x00", Kind),
            (b"\x83n\x09\x00123456789", Value),
            (b"\x83n\x08\x01\xff\xff\xff\xff\xff\xff\xff\xff", Value),
            (b"\x83n\x01\x02\x01", Value),
            (b"\x83m\x00\x00\x00\x01\xff", Value),
            (b"\x83F\x7f\xf0\x00\x00\x00\x00\x00\x00", Value),
            (b"\x83l\x00\x00\x00\x01a\x01a\x02", Kind),
            (b"\x83t\x00\x00\x00\x01a\x01a\x01", Value),
            (b"\x83t\x00\x00\x00\x02w\x01xa\x01m\x00\x00\x00\x01xa\x02", Value),
            (&deep(MAX_DEPTH), Depth),
            (&deep(1000), Depth),
        ] {
            assert_eq!(read(bytes), Err(why), "{bytes:?}");
        }
    }

    /// `term_to_binary` of a value, in the forms that it chooses.
    fn write(value: &serde_json::Value, bytes: &mut Vec<u8>) {
        let long = |length: usize| u32::try_from(length).expect("short").to_be_bytes();
        match value {
            Value::Null => bytes.extend(b"w\x03nil"),
            Value::Bool(true) => bytes.extend(b"w\x04true"),
            Value::Bool(false) => bytes.extend(b"w\x05false"),
            Value::Number(number) => {
                let number = number.as_i64().expect("whole");
                bytes.extend([b'n', 8, u8::from(number < 0)]);
                bytes.extend(number.unsigned_abs().to_le_bytes());
            }
            Value::String(text) => {
                bytes.push(b'm');
                bytes.extend(long(text.len()));
                bytes.extend(text.as_bytes());
            }
            Value::Array(all) => {
                bytes.push(b'i');
                bytes.extend(long(all.len()));
                all.iter().for_each(|it| write(it, bytes));
            }
            Value::Object(all) => {
                bytes.push(b't');
                bytes.extend(long(all.len()));
                for (key, value) in all {
                    write(&Value::String(key.clone()), bytes);
                    write(value, bytes);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_term_or_none(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _either = read(&bytes);
            let _either = read(&[&[VERSION], &bytes[..]].concat());
        }

        #[test]
        fn a_term_survives(value in prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "\\PC{0,20}".prop_map(Value::from),
        ].prop_recursive(4, 32, 4, |inner| prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("\\PC{0,4}", inner, 0..4)
                .prop_map(|all| Value::Object(all.into_iter().collect())),
        ])) {
            let mut bytes = vec![VERSION];
            write(&value, &mut bytes);
            prop_assert_eq!(read(&bytes), Ok(value));
            // And no part of it is one.
            prop_assert!((0..bytes.len()).all(|end| read(&bytes[..end]).is_err()));
        }
    }
}
