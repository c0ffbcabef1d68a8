//! The one binary codec: postcard with a cap.
//!
//! Invariants: the length is checked before a byte is decoded, so hostile input allocates no more
//! than its own size; a value is the whole input, trailing bytes are an error. Enums on the wire
//! only ever grow at their end.
//!
//! What services publish, ask and answer as values begins with the fingerprint of its type, of eight bytes.

use postcard_schema::Schema;
use postcard_schema::key::Key;
use postcard_schema::schema::DataModelType;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why bytes are not a value. Nothing changed; anyone who sent the bytes is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The input is longer than its kind may be.
    #[error("{length} bytes where at most {cap} are allowed")]
    TooLong {
        /// Bytes received.
        length: usize,
        /// Bytes allowed.
        cap: usize,
    },
    /// The bytes are not a value of the expected kind.
    #[error("malformed")]
    Malformed,
    /// A value was followed by more bytes.
    #[error("{0} bytes after the end")]
    Trailing(usize),
    /// The value is of a version this node does not speak.
    #[error("version {0} is not spoken here")]
    Version(u8),
    /// The bytes are no value of this type.
    #[error("no value of the type {0}, but of another")]
    OtherType(&'static str),
}

/// Encodes a value.
///
/// # Errors
/// [`CodecError::Malformed`] when the value's own `Serialize` refuses, which no wire type does.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    postcard::to_stdvec(value).map_err(|_refused_by_serialize| CodecError::Malformed)
}

/// Decodes a value of at most `cap` bytes that fills the input.
///
/// # Errors
/// Any [`CodecError`] but `Version` and `OtherType`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], cap: usize) -> Result<T, CodecError> {
    let (value, rest) = take(bytes, cap)?;
    if rest.is_empty() { Ok(value) } else { Err(CodecError::Trailing(rest.len())) }
}

/// As [`decode`], of a value behind which a later version may have more.
///
/// # Errors
/// [`CodecError::TooLong`], [`CodecError::Malformed`].
pub(crate) fn decode_open<T: DeserializeOwned>(bytes: &[u8], cap: usize) -> Result<T, CodecError> {
    take(bytes, cap).map(|(value, _later)| value)
}

/// As [`decode_open`], and what is behind the value.
///
/// # Errors
/// As [`decode_open`].
pub(crate) fn decode_first<T: DeserializeOwned>(
    bytes: &[u8],
    cap: usize,
) -> Result<(T, &[u8]), CodecError> {
    take(bytes, cap)
}

fn take<T: DeserializeOwned>(bytes: &[u8], cap: usize) -> Result<(T, &[u8]), CodecError> {
    if bytes.len() > cap {
        return Err(CodecError::TooLong { length: bytes.len(), cap });
    }
    postcard::take_from_bytes(bytes).map_err(|_detail_is_the_sender_s| CodecError::Malformed)
}

/// As [`encode`], behind one byte that says which version of the format follows.
///
/// # Errors
/// As [`encode`].
pub fn encode_versioned<T: Serialize>(version: u8, value: &T) -> Result<Vec<u8>, CodecError> {
    postcard::to_extend(value, vec![version]).map_err(|_refused_by_serialize| CodecError::Malformed)
}

/// As [`decode`], after checking the version byte.
///
/// # Errors
/// Any [`CodecError`] but `OtherType`.
pub fn decode_versioned<T: DeserializeOwned>(
    version: u8,
    bytes: &[u8],
    cap: usize,
) -> Result<T, CodecError> {
    match bytes.split_first() {
        Some((found, rest)) if *found == version => decode(rest, cap),
        Some((found, _)) => Err(CodecError::Version(*found)),
        None => Err(CodecError::Malformed),
    }
}

/// What tells types apart: a hash of the fields, variants and types in a type, in their order, and of its own name if it
/// is a struct or an enum. It is the same in each build and on each machine.
const fn fingerprint<T: Schema + ?Sized>() -> [u8; 8] {
    use DataModelType::{Enum, NewtypeStruct, Struct, TupleStruct, UnitStruct};
    let named = matches!(
        T::SCHEMA.ty,
        Enum(_) | NewtypeStruct(_) | Struct(_) | TupleStruct(_) | UnitStruct
    );
    Key::for_path::<T>(if named { T::SCHEMA.name } else { "" }).to_bytes()
}

/// As [`encode`], behind the fingerprint of the type.
///
/// # Errors
/// As [`encode`].
pub fn encode_typed<T: Serialize + Schema + ?Sized>(value: &T) -> Result<Vec<u8>, CodecError> {
    let fingerprint = const { fingerprint::<T>() };
    postcard::to_extend(value, fingerprint.to_vec())
        .map_err(|_refused_by_serialize| CodecError::Malformed)
}

/// As [`decode`], after checking the fingerprint.
///
/// # Errors
/// Any [`CodecError`] but `Version`.
pub fn decode_typed<T: DeserializeOwned + Schema>(
    bytes: &[u8],
    cap: usize,
) -> Result<T, CodecError> {
    match bytes.split_first_chunk() {
        Some((found, rest)) if *found == const { fingerprint::<T>() } => decode(rest, cap),
        Some(_) | None => Err(CodecError::OtherType(T::SCHEMA.name)),
    }
}

/// Cuts a list into words so that no piece is larger than `limit` bytes, or has more than `most` things.
pub fn chunks<T>(
    most: usize,
    items: impl IntoIterator<Item = T>,
    limit: usize,
    size: fn(&T) -> usize,
) -> Vec<Vec<T>> {
    let (mut done, mut piece, mut filled) = (Vec::new(), Vec::new(), 0);
    for item in items {
        let size = size(&item);
        if !piece.is_empty() && (filled + size > limit || piece.len() >= most) {
            done.push(std::mem::take(&mut piece));
            filled = 0;
        }
        filled += size;
        piece.push(item);
    }
    if !piece.is_empty() {
        done.push(piece);
    }
    done
}

/// Has a type travel as its text, which is read as people's is.
macro_rules! as_text {
    ($type:ty) => {
        $crate::proto::codec::as_text!($type, value => &value.to_string());
    };
    ($type:ty, $value:ident => $text:expr) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let $value = self;
                serializer.serialize_str($text)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;

                impl serde::de::Visitor<'_> for Text {
                    type Value = $type;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("a string")
                    }

                    // Without a copy: names are in nearly every message.
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }

                deserializer.deserialize_str(Text)
            }
        }

        impl postcard_schema::Schema for $type {
            const SCHEMA: &'static postcard_schema::schema::NamedType =
                <String as postcard_schema::Schema>::SCHEMA;
        }
    };
}
pub(crate) use as_text;

/// Bytes as text: two lower-case hexadecimal digits each.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The reverse of [`hexadecimal`], in either case; `None` where a pair is no two digits.
pub fn read_hexadecimal(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| u8::try_from(char::from(*byte).to_digit(16)?).ok();
    let (pairs, odd) = text.as_bytes().as_chunks::<2>();
    let byte = |[high, low]: &[u8; 2]| Some(digit(high)? << 4 | digit(low)?);
    if odd.is_empty() { pairs.iter().map(byte).collect() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_fills_its_input_and_keeps_its_cap() {
        let bytes = encode(&("abc".to_owned(), 7_u64)).expect("plain values encode");
        let back: (String, u64) = decode(&bytes, 16).expect("its own bytes");
        assert_eq!(back, ("abc".to_owned(), 7));
        let long = [bytes.clone(), vec![0]].concat();
        assert_eq!(decode::<(String, u64)>(&long, 16), Err(CodecError::Trailing(1)));
        assert_eq!(
            decode::<(String, u64)>(&bytes, 2),
            Err(CodecError::TooLong { length: 5, cap: 2 })
        );
        assert_eq!(decode::<(String, u64)>(&bytes[..3], 16), Err(CodecError::Malformed));
    }

    #[test]
    fn types_that_differ_in_anything_have_other_fingerprints() {
        macro_rules! of {
            ($kind:tt $name:ident $($shape:tt)*) => {{
                #[derive(Schema)]
                #[expect(dead_code, reason = "its shape alone is wanted")]
                $kind $name $($shape)*
                fingerprint::<$name>()
            }};
        }
        let all = [
            of! { struct Moved { piece: String, to: (u8, u8) } },
            of! { struct Moved { piece: String, from: (u8, u8) } },
            of! { struct Moved { to: (u8, u8), piece: String } },
            of! { struct Moved { piece: String, to: (u8, i8) } },
            of! { struct Moved { piece: String, to: (u8, u8), at: u64 } },
            of! { struct Taken { piece: String, to: (u8, u8) } },
            of! { enum Way { Up, Down } },
            of! { enum Way { Down, Up } },
            of! { enum Way { Up, Down, Left } },
            of! { enum Way { Up, Down(u8) } },
            of! { struct Celsius(f64); },
            of! { struct Kelvin(f64); },
            fingerprint::<f64>(),
            fingerprint::<u32>(),
            fingerprint::<u64>(),
            fingerprint::<i32>(),
            fingerprint::<Option<u32>>(),
            fingerprint::<Vec<u32>>(),
            fingerprint::<(u32,)>(),
            fingerprint::<(u32, u32)>(),
            fingerprint::<String>(),
            fingerprint::<()>(),
        ];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
        // A literal: it is the same in every build.
        assert_eq!(fingerprint::<u32>(), [2, 27, 3, 134, 76, 142, 100, 175]);
        assert_eq!(fingerprint::<&str>(), fingerprint::<String>(), "and what travels alike is one");
    }

    #[test]
    fn a_value_is_read_as_its_own_type_alone() {
        let bytes = encode_typed(&21_i32).expect("plain values encode");
        assert_eq!(decode_typed::<i32>(&bytes, 8), Ok(21));
        assert_eq!(decode_typed::<u32>(&bytes, 8), Err(CodecError::OtherType("u32")));
        let bare = encode(&21_u32).expect("plain values encode");
        assert_eq!(decode_typed::<u32>(&bare, 8), Err(CodecError::OtherType("u32")));
        assert_eq!(decode_typed::<i32>(&bytes[..8], 8), Err(CodecError::Malformed));
    }

    #[test]
    fn another_version_is_named() {
        let bytes = encode_versioned(1, &5_u32).expect("plain values encode");
        assert_eq!(decode_versioned::<u32>(1, &bytes, 8), Ok(5));
        assert_eq!(decode_versioned::<u32>(2, &bytes, 8), Err(CodecError::Version(1)));
        assert_eq!(decode_versioned::<u32>(1, &[], 8), Err(CodecError::Malformed));
    }
}
